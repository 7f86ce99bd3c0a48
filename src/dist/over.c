#include "dist/over_priv.h"

#include <stdio.h>
#include <string.h>

#include "core/device.h"

void over_init(over_comm *o, const tess_comm_ops *ops, tess_comm *host, tess_device *d,
               const char *name)
{
    o->base.ops = ops;
    o->base.rank = host->rank;
    o->base.world = host->world;
    o->base.first_world_rank = host->first_world_rank;
    o->base.space = d->space;
    o->base.host = host;
    o->base.is_checking = host->is_checking;
    snprintf(o->base.name, sizeof o->base.name, "%.10s(%.18s)", name, host->name);
    o->device = d;
}

void over_fini(over_comm *o)
{
    if (o->owns_host)
        tess_comm_destroy(&o->base.host);
}

tess_status over_control(tess_comm *comm, int64_t *sum, int sum_numel, int64_t *max, int max_numel)
{
    return tess_comm_control(comm->host, sum, sum_numel, max, max_numel);
}

tess_status over_bcast(tess_comm *comm, int root_rank, void *data, size_t nbytes)
{
    return tess_comm_bcast(comm->host, root_rank, data, nbytes);
}

tess_status over_gather_bytes(tess_comm *comm, int root_rank, const void *src, size_t nbytes,
                              void *dst)
{
    return tess_comm_gather_bytes(comm->host, root_rank, src, nbytes, dst);
}

void over_abort(tess_comm *comm, int exit_code) { tess_comm_abort(comm->host, exit_code); }
double over_blocked_s(const tess_comm *comm) { return tess_comm_blocked_s(comm->host); }
void over_dump(const tess_comm *comm, int fd) { tess_comm_dump(comm->host, fd); }
void over_describe(const tess_comm *comm, int fd) { tess_comm_describe(comm->host, fd); }

void over_set_checking(tess_comm *comm, bool is_on)
{
    comm->is_checking = is_on;
    memset(comm->checked_seq, 0, sizeof comm->checked_seq);
}

tess_status over_copy_own(over_comm *o, const tess_comm_exchange_args *a, tess_stream *s)
{
    const int rank = o->base.rank;
    int i = piece_next_own(a->sends, a->send_numel, rank, 0);
    int k = piece_next_own(a->receives, a->receive_numel, rank, 0);
    while (i < a->send_numel && k < a->receive_numel) { /* both lists match: comm.c has looked */
        if (a->sends[i].view.data != a->receives[k].view.data)
            TESS_TRY(tess_device_copy(o->device, a->receives[k].view, a->sends[i].view, s));
        i = piece_next_own(a->sends, a->send_numel, rank, i + 1);
        k = piece_next_own(a->receives, a->receive_numel, rank, k + 1);
    }
    return TESS_OK;
}
