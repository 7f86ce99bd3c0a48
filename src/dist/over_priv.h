/** What communicators over a device leave to the host communicator of the same ranks. */
#pragma once

#include "core/device.h"
#include "dist/comm_priv.h"

TESS_BEGIN_DECLS

/** First member of such a communicator; `base.host` is set. */
typedef struct over_comm {
    tess_comm base;
    bool owns_host; /* a group's */
    tess_device *device;
} over_comm;

/** Fill what does not depend on the kind; streams and ops are the caller's. */
void over_init(over_comm *o, const tess_comm_ops *ops, tess_comm *host, tess_device *d,
               const char *name);
/** Destroys the host communicator when it is owned. */
void over_fini(over_comm *o);

tess_status over_control(tess_comm *comm, int64_t *sum, int sum_numel, int64_t *max, int max_numel);
tess_status over_bcast(tess_comm *comm, int root_rank, void *data, size_t nbytes);
tess_status over_gather_bytes(tess_comm *comm, int root_rank, const void *src, size_t nbytes,
                              void *dst);
void over_abort(tess_comm *comm, int exit_code);
double over_blocked_s(const tess_comm *comm);
void over_dump(const tess_comm *comm, int fd);
void over_describe(const tess_comm *comm, int fd);
void over_set_checking(tess_comm *comm, bool is_on);

/** Pieces to the own rank: copies on `s`, the k-th send to the k-th receive. */
TESS_MUST_CHECK tess_status over_copy_own(over_comm *o, const tess_comm_exchange_args *a,
                                          tess_stream *s);

TESS_END_DECLS
