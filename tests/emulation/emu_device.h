/** Inner structure of the emulated device, its streams and the world around them. */
#pragma once

#include <semaphore.h>

#include "core/device.h"
#include "emulation/emu_ranges.h"
#include "emulation/emu_world.h"

enum { EMU_WHAT_NBYTES = 96 };

typedef struct emu_world emu_world;
typedef struct emu_device emu_device;
typedef struct emu_collective emu_collective;

/** How many operations of each stream are known to be over. */
typedef struct emu_clock {
    uint32_t seq[EMU_STREAM_MAX];
} emu_clock;

/** One operation as the checker remembers it. */
typedef struct emu_entry {
    char what[EMU_WHAT_NBYTES];
    int stream_idx;
    uint32_t seq;    /* in its stream, from 1 */
    emu_clock clock; /* what is over when it is over */
    bool is_done;
} emu_entry;

/** Bytes [lo, hi) of an allocation that have one history. Entries count from 1; 0: none. */
typedef struct emu_segment {
    size_t lo, hi;
    uint32_t writer;
    uint32_t reader[EMU_STREAM_MAX]; /* last one per stream since the write */
} emu_segment;

typedef struct emu_memory {
    char *base;  /* as the program knows it; the host may not touch it */
    char *alias; /* the same bytes for operations */
    size_t nbytes;
    int idx;
    tess_space space;
    char *before, *after;  /* audit: bytes around a kernel */
    unsigned char *access; /* audit: emu_access of every byte */
    emu_segment *segment;  /* ascending, without gaps */
    int segment_numel, segment_room;
    struct emu_memory *next;
} emu_memory;

/** Host memory that an operation reads (until the host waits for it, it must stay as it is) or
 * writes (the bytes come when the host has waited). */
typedef struct emu_host_range {
    uint32_t entry;
    char *data;
    size_t nbytes;
    uint64_t hash; /* read: of the bytes as they were enqueued */
    char *bytes;   /* write: on their way */
    struct emu_host_range *next;
} emu_host_range;

typedef enum emu_op_kind {
    EMU_OP_KERNEL,
    EMU_OP_COPY,
    EMU_OP_COPY_ROWS,
    EMU_OP_ZERO,
    EMU_OP_COLLECTIVE,
    EMU_OP_RECORD,
    EMU_OP_WAIT
} emu_op_kind;

typedef struct emu_op {
    emu_op_kind kind;
    uint32_t entry;        /* its own; WAIT: the record's */
    emu_kernel_call *call; /* KERNEL */
    tess_view dst, src;    /* COPY, ZERO */
    tess_rows_copy rows;   /* COPY_ROWS */
    emu_collective *collective;
    uint64_t issue; /* COLLECTIVE: number on its device */
    struct emu_op *next;
} emu_op;

typedef struct emu_stream {
    tess_stream base; /* first */
    emu_device *device;
    int idx;
    uint32_t seq;
    emu_clock clock;
    emu_op *head, *tail;
} emu_stream;

/** A place for decoded weights, see emu_lane.c. */
typedef struct emu_slot {
    void *data;
    tess_event ready; /* recorded on the lane: it is filled */
    tess_event free;  /* recorded on the compute stream: its product is done */
} emu_slot;

typedef struct emu_lane {
    emu_stream *stream, *compute; /* NULL: weights are not dequantized ahead */
    emu_slot slot[2];
    int next_idx;
} emu_lane;

struct emu_device {
    tess_device base; /* first */
    emu_world *world;
    int rank;
    char name[16];
    emu_stream *stream[EMU_STREAM_MAX];
    char stream_name[EMU_STREAM_MAX][24];
    int stream_numel;
    emu_lane lane;
    emu_entry *entry; /* [entry_numel], number 1 first */
    uint32_t entry_numel, entry_room;
    emu_clock host; /* what the host has waited for */
    emu_clock seen; /* and what a query showed: bytes are there, but the order was luck */
    emu_memory *memory;
    int memory_numel;
    emu_host_range *reads, *writes;
    const tess_event *ignored;
    int64_t ignored_numel;
    uint64_t issue_numel, issued_done_numel;
    /* the rank's thread */
    sem_t baton;
    bool is_finished;
    bool (*is_ready)(const void *arg); /* NULL: may go on */
    const void *ready_arg;
    const char *waits_for;
    emu_rank self;
    tess_status status;
    char error[2048];
};

struct emu_world {
    emu_options options;
    emu_device device[EMU_RANK_MAX];
    emu_body body;
    void *arg;
    uint64_t random;
    bool is_failed;
    char failure[EMU_TEXT_NBYTES];
    struct emu_group *groups;
    int group_numel;
    emu_report *report;
};

/* ---- emu_world.c ---- */

/** The rank waits until `is_ready`; NULL: others may come before it. @return TESS_E_COMM the job
 * failed */
TESS_MUST_CHECK tess_status emu_block(emu_device *d, const char *what,
                                      bool (*is_ready)(const void *arg), const void *arg);
/** By chance, let others come before the next operation of this rank. */
TESS_MUST_CHECK tess_status emu_may_yield(emu_device *d);
/** The job cannot go on: every rank fails. */
void emu_fail(emu_world *w, const char *fmt, ...) TESS_PRINTF(2, 3);
/** Something illegal was found; the job goes on. */
void emu_violation(emu_device *d, const char *fmt, ...) TESS_PRINTF(2, 3);

/* ---- emu_device.c ---- */

void emu_device_init(emu_device *d, emu_world *w, int rank);
void emu_device_fini(emu_device *d);
TESS_MUST_CHECK tess_status emu_stream_create(emu_device *d, const char *name, emu_stream **out);
void emu_stream_destroy(emu_stream *s);
/** The stream as one of ours. @return TESS_E_ARG it is another's */
TESS_MUST_CHECK tess_status emu_stream_of(const char *what, tess_stream *s, emu_stream **out);
/** A new operation of a stream; its ranges are touched next, then it is enqueued. */
TESS_MUST_CHECK tess_status emu_begin(emu_stream *s, emu_op_kind kind, const char *what,
                                      emu_op **out);
TESS_MUST_CHECK tess_status emu_enqueue(emu_stream *s, emu_op *op);
/** The operation in front of a stream that may start, NULL: none. */
emu_op *emu_startable(emu_stream *s);
/** Run the operation in front; a collective on all its ranks. */
void emu_execute(emu_stream *s);
/** Take the operation in front, which has run, off the stream. */
void emu_retire(emu_stream *s);
/** Where the bytes of device memory are for an operation; NULL: it is not this device's. */
char *emu_alias(const emu_device *d, const void *data, size_t nbytes);
/** Bytes for an operation to read, and a way to write. */
const char *emu_source(const emu_device *d, tess_view v);
void emu_deliver(emu_device *d, uint32_t entry, tess_view dst, const char *bytes);

/* ---- emu_lane.c ---- */

/** A lane beside this stream, unless the device has one. */
TESS_MUST_CHECK tess_status emu_lane_open(emu_stream *compute);
/** The end of the stream's lane, where it has one. */
void emu_lane_close(emu_stream *compute);
/** Decode quantized matrices of a product on `s` ahead: its terms name what is decoded then.
 * @param out  free when the product is done; NULL: the product decodes for itself */
TESS_MUST_CHECK tess_status emu_lane_fill(emu_stream *s, tess_gemm_args *a, emu_slot **out);

/* ---- emu_check.c ---- */

void emu_memory_init(emu_memory *m);
/** An operation touches bytes of a device's memory or the host's. */
void emu_touch_view(emu_device *d, uint32_t entry, tess_view v, emu_access access);
void emu_touch_rows(emu_device *d, uint32_t entry, const tess_rows_copy *c);
void emu_touch_call(emu_device *d, uint32_t entry, emu_kernel_call *call);
/** Host memory that operations still read has not changed. */
void emu_check_host_reads(emu_device *d);
/** The host has waited for `clock`, or a query has shown that it is over: then host memory may be
 * used, but other runs may find it not over, so later operations are not ordered by it. */
void emu_host_joins(emu_device *d, const emu_clock *clock, bool has_waited);
/** Nothing uses the memory any more as far as the host knows. */
void emu_check_release(emu_device *d, const emu_memory *m);
void emu_clock_join(emu_clock *a, const emu_clock *b);

/* ---- emu_audit.c ---- */

/** Run a kernel, and once more with every byte changed that it does not read. */
TESS_MUST_CHECK tess_status emu_audit(emu_device *d, const emu_op *op);
/** The twin of a call, on the aliases of its operands. */
TESS_MUST_CHECK tess_status emu_run_twin(const emu_device *d, const emu_kernel_call *call);

/* ---- emu_comm.c ---- */

TESS_MUST_CHECK tess_status emu_comm_create(emu_device *d, tess_comm **out);
void emu_groups_destroy(emu_world *w);
/** Whether all ranks have arrived at the collective. */
bool emu_collective_is_met(const emu_collective *c);
void emu_collective_run(const emu_collective *c);
void emu_collective_destroy(emu_collective *c);
