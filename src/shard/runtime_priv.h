/**
 * Inner structure of the runtime: what lives as long as it does (runtime.c), a step and its
 * operations (runtime_step.c), gathers, gradients, optimizers, times.
 */
#pragma once

#include "core/memory.h"
#include "shard/runtime.h"

TESS_BEGIN_DECLS

/** A range of owned elements that one update call covers: one tensor's part of the shard. */
typedef struct update_segment {
    int tensor_idx;             /* in the registry */
    int64_t first_idx;          /* of its first element in the tensor, a multiple of 256 */
    int64_t state_idx;          /* first element in the STATE arrays */
    size_t param_offset_nbytes; /* of its first element in the PARAM arena */
    int64_t numel;
    double learning_rate_ratio;
    bool has_weight_decay;
} update_segment;

/** The collectives of a bucket: what to whom, see runtime_gather.c. */
typedef struct bucket_lists {
    const tess_gather_piece *frozen, *slab; /* in `gather_piece` of the runtime */
    int frozen_numel, slab_numel;
} bucket_lists;

/** Exchanges whose lists may be read at once: one more waits for the first of them. */
enum { PIECE_LIST_NUMEL = 4 };

typedef struct program {
    tess_schedule schedule;
    tess_event *event; /* [op_numel] */
} program;

/**
 * What a step sums up where its kernels run; the host reads it once, after the last of them. Words
 * of 8 bytes: plan.h knows how many.
 */
typedef struct step_record {
    tess_exact loss, norm;
    int64_t nonfinite_loss_numel; /* micro-batches whose loss is not finite */
    double loss_sum;              /* of the micro-batch under way */
    int64_t nonfinite_numel[];    /* [unit_numel] gradient elements */
} step_record;

struct tess_runtime {
    tess_runtime_parts parts;
    tess_host_device host; /* used when no device was given */
    tess_device *device;
    int rank, world;
    tess_arena *arena[TESS_LIFE_NUMEL];
    tess_arena *host_work; /* not on the host: staging of tensors */
    tess_arena
        *record_copy; /* not on the host: what the host reads, the step record first of all */
    tess_stream *compute;
    tess_stream *lane[TESS_LANE_NUMEL];
    program train, eval;
    bucket_lists *bucket;                    /* [bucket_numel] */
    tess_gather_piece *gather_piece;         /* [2 * unit_numel] */
    tess_piece *pieces[PIECE_LIST_NUMEL];    /* lists of the last exchanges: sends, then receives */
    tess_event piece_sent[PIECE_LIST_NUMEL]; /* the exchanges of a list are over */
    int piece_list_idx;                      /* the next one to use */
    int d_parity; /* which of the two gradient activations holds d_output */
    update_segment *segment;
    int segment_numel, set_segment_numel; /* of tensors that learn, and behind them of set ones */
    double scalar[TESS_OPTIMIZER_SCALAR_MAX]; /* of the optimizer */
    tess_event updated;     /* the compute lane, once it has written the slabs' own rows */
    tess_event published;   /* the world's stream, once all ranks' rows are there */
    tess_event drained[2];  /* the last gather, the last send of a program */
    tess_event joined[2];   /* the gather lane before, the world's stream after a slab's gather */
    const tess_event *held; /* what the next update waits for, NULL */
    tess_mark *wait_mark;   /* [wait_mark_numel] pairs around waits, see runtime_trace.c */
    int wait_mark_numel;
    int wait_used;      /* marks passed and not read */
    double agreement_s; /* of the last step: until all ranks had come to its record */
    tess_trace *trace;  /* of the caller, NULL */

    bool is_broken;            /* a step failed: its work may never end */
    tess_runtime *left_before; /* see [Note: broken runtime] */

    /* the step that runs */
    const tess_step_request *request;
    const void *batch;
    int batch_round_idx;
    tess_xxh128 *gradient; /* [op_numel of `train`] of backwards of round 0, where it is replayed */
    bool is_replaying;
    int replay_unit_idx; /* the first that came out otherwise the second time, -1 */

    /* the forward that runs */
    tess_call_mode forward_mode;
};

/** Address of an element count into an arena. */
char *runtime_at(tess_runtime *rt, tess_lifetime life, size_t offset_nbytes);
int64_t runtime_owned_numel(const tess_runtime *rt, int unit_idx);
/** What a stage of an operation sees. */
tess_stage_call runtime_call(tess_runtime *rt, const tess_sched_op *op, tess_call_mode mode);
/** Elements at an address in memory of the device. */
tess_view runtime_view(const tess_runtime *rt, const void *data, int64_t numel, tess_dtype dt);
/** Later work of `to` comes after everything enqueued on `from` so far; `ev` is of `from`. */
TESS_MUST_CHECK tess_status runtime_follow(tess_stream *from, tess_stream *to, tess_event *ev);

/** A unit's slab of all ranks, where it is kept whole. */
tess_view runtime_whole_slab(tess_runtime *rt, int unit_idx);
/** Slabs travel, now or in the next step, as the compute stream leaves them. Collective. */
TESS_MUST_CHECK tess_status runtime_gather_kept(tess_runtime *rt);

/* runtime_digest.c */
/** Go on with a digest over the bytes of a view; finishes the compute stream of a device. */
TESS_MUST_CHECK tess_status runtime_digest(tess_runtime *rt, tess_view v, tess_xxh128 *chain);

/* runtime_host.c */
size_t runtime_record_nbytes(const tess_runtime *rt);
/** Memory of the host for what it reads, where that is not the device. */
TESS_MUST_CHECK tess_status runtime_host_create(tess_runtime *rt);
/** Bytes on the device, at most those of the step record or the optimizer's host_nbytes(), as the
 * host has them: finishes the compute stream; valid until the next call. */
TESS_MUST_CHECK tess_status runtime_read(tess_runtime *rt, tess_view dev, void **out);
/** What was read from there, and changed by the host, goes back; finishes the compute stream. */
TESS_MUST_CHECK tess_status runtime_write(tess_runtime *rt, tess_view dev);

/* runtime_trace.c */
TESS_MUST_CHECK tess_status runtime_timing_create(tess_runtime *rt);
void runtime_timing_destroy(tess_runtime *rt);
/** The compute lane waits for `ev` of another lane; in a step the time counts as exposed. */
TESS_MUST_CHECK tess_status runtime_wait(tess_runtime *rt, const tess_event *ev, tess_lane lane);
/** Sum of the waits since the last call; all of them are over. */
TESS_MUST_CHECK tess_status runtime_exposed(tess_runtime *rt, double *exposed_s);
/** What follows belongs to an operation of the training program; NULL: to none. */
void runtime_trace_place(tess_runtime *rt, const tess_sched_op *op);
/** Run one operation of a step inside its span and range. */
TESS_MUST_CHECK tess_status runtime_traced_op(tess_runtime *rt, const tess_sched_op *op,
                                              tess_status (*run)(tess_runtime *,
                                                                 const tess_sched_op *));
/** A span of the compute lane. */
int runtime_span(tess_runtime *rt, const char *name);
void runtime_span_end(tess_runtime *rt, int span_idx);

/* runtime_gather.c */
/** Lists of all buckets; addresses in the arenas are final. */
TESS_MUST_CHECK tess_status gather_create(tess_runtime *rt);
void gather_destroy(tess_runtime *rt);
TESS_MUST_CHECK tess_status gather_bucket(tess_runtime *rt, const tess_sched_op *op);

/** Pieces in one set of lists. */
int64_t gradient_piece_numel(const tess_runtime *rt);
TESS_MUST_CHECK tess_status gradient_send(tess_runtime *rt, const tess_sched_op *op);
TESS_MUST_CHECK tess_status gradient_clear(tess_runtime *rt, const tess_sched_op *op);
TESS_MUST_CHECK tess_status gradient_reduce(tess_runtime *rt, const tess_sched_op *op);
TESS_MUST_CHECK tess_status gradient_fold(tess_runtime *rt, const tess_sched_op *op);
/** Merge the leftover subtrees; the sum then lies in the top level. */
TESS_MUST_CHECK tess_status gradient_finish(tess_runtime *rt);
float *gradient_sum(tess_runtime *rt, int unit_idx);

/** Check that the backend has the kernels and list the segments. */
TESS_MUST_CHECK tess_status optimizer_create(tess_runtime *rt);
/** Address of a number of an array of state. */
void *optimizer_array(tess_runtime *rt, int array_idx, int64_t idx);
/** Where this rank's own part of a unit begins in an array of state. */
int64_t optimizer_first(const tess_runtime *rt, int unit_idx, int array_idx);
/** Round a unit's own weights to the compute dtype. */
TESS_MUST_CHECK tess_status optimizer_copy(tess_runtime *rt, int unit_idx, tess_weights weights);
TESS_MUST_CHECK tess_status optimizer_update(tess_runtime *rt, tess_step_result *result);

TESS_END_DECLS
