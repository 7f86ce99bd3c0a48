/**
 * Runs a plan: memory, gathers, stages, gradient flow and optimizer of one rank.
 *
 * Everything is allocated by tess_runtime_create(); steps allocate nothing. A failure inside a step
 * is fatal for the launch: peers may already wait in a collective that this rank will not enter.
 */
#pragma once

#include "core/digest.h"
#include "core/exact.h"
#include "core/pool.h"
#include "dist/comm.h"
#include "shard/plan.h"
#include "shard/trace.h"

TESS_BEGIN_DECLS

typedef struct tess_runtime tess_runtime;

/** All pointers are borrowed while the runtime lives. */
typedef struct tess_runtime_parts {
    const tess_plan *plan;
    const tess_registry *registry;
    tess_device *device; /* NULL: the host, with threads of `pool` */
    const tess_kernels *kernels;
    tess_pool *pool;
    tess_comm *world;
    tess_comm *
        group; /* the gather group; NULL when the plan's group is 1, `world` when it is the world */
    const tess_stage_ops *ops;
    void *model;
    uint64_t seed;
    double train_blend; /* of optimizers that train beside their masters: how far, 1 - beta1 */
} tess_runtime_parts;

struct tess_step_result;

/** One training step. */
typedef struct tess_step_request {
    int64_t first_micro_batch_idx; /* global number of micro-batch 0 of this step */
    int64_t loss_token_numel;      /* T, equal on all ranks */
    tess_update update;
    void *arg;
    /* Batch of this rank's micro-batch `m` (0 .. M-1); borrowed until the next call. */
    tess_status (*batch_of)(void *arg, int64_t m, const void **batch);
    /* Gradients of units that are held and learn, of losses times `grad_scale`, into
     * tess_runtime_gradient() of them, which begins as zeros; NULL where there are none. Collective
     * over `world`, after the last backward. */
    tess_status (*sum_held)(void *arg, float grad_scale);
    /* Whether the update is applied, of loss and norm of a step whose values are finite; the same
     * answer on all ranks, as what it is given is. NULL: always. */
    bool (*wants_update)(void *arg, const struct tess_step_result *result);
    const int64_t *flags; /* [flag_numel] this rank's flags, maxima over ranks come back */
    int flag_numel;       /* at most TESS_FLAG_MAX */
    bool wants_replay; /* this rank's first micro-batch is computed twice; not with joint stages */
    bool has_veto;     /* where the last flag is not 0 on any rank nothing is updated */
} tess_step_request;

enum { TESS_FLAG_MAX = 16 };

typedef struct tess_step_result {
    double loss;      /* sum over all tokens / T, the same bits on every rank */
    double grad_norm; /* before clipping */
    float clip_factor;
    int64_t nonfinite_numel; /* gradient elements that are not finite; > 0: the update was skipped
                                everywhere */
    int nonfinite_rank, nonfinite_unit; /* lowest owner rank and unit with one, -1 */
    int64_t flags[TESS_FLAG_MAX];       /* maxima over ranks */
    /* Lowest rank whose replay had other bits, and the unit whose gradient it was, -1: none; then
     * nothing was updated. */
    int replay_rank, replay_unit;
    bool is_vetoed;        /* parameters and state are those before the step */
    double exposed_comm_s; /* the compute lane stood still for gathers and gradient traffic: the
                              most of any rank; what follows an update counts with the next step */
    double exposed_comm_least_s; /* the least of any, with the time until all had come to the record
                                    of the step before: what a rank sends last holds the others up,
                                    and so itself there. The rest of the most is waiting for slower
                                    ranks */
    double wait_s; /* of this rank alone: as exposed_comm_s, and until all came to the record */
} tess_step_result;

/** Local (no communication). @return TESS_E_MEMORY; TESS_E_ARG parts that do not fit together */
TESS_MUST_CHECK tess_status tess_runtime_create(const tess_runtime_parts *parts,
                                                tess_runtime **out);
/** Waits for what is under way. After a failed step, or where that fails, nothing is freed: posted
 * messages may still touch the memory, see [Note: broken runtime]. Local. NULL is fine. */
void tess_runtime_destroy(tess_runtime **rt);

/** Where the plan's memory is. Local. */
tess_device *tess_runtime_device(tess_runtime *rt);
/** Compute stream: copies in front of a step's kernels go here. Local. */
tess_stream *tess_runtime_stream(tess_runtime *rt);
/** Copy between memory of the runtime and the host's and wait for it. Not inside a step. Local. */
TESS_MUST_CHECK tess_status tess_runtime_copy(tess_runtime *rt, tess_view dst, tess_view src);
/**
 * Host memory to stage tensors in between steps: the WORK arena itself on the host, else an arena
 * of the plan's `load_nbytes`, made at the first call. Local. @return TESS_E_MEMORY
 */
TESS_MUST_CHECK tess_status tess_runtime_host_work(tess_runtime *rt, tess_view *out);

/* Views of this rank's memory, in the space of its device; numel 0 where it has none. Local. */
tess_view tess_runtime_frozen_shard(tess_runtime *rt, int unit_idx); /* u8 [frozen_shard_nbytes] */
/** Places of AdamW's arrays in the plan's list of state; of every list the master's. */
typedef enum tess_state_kind {
    TESS_STATE_MASTER,
    TESS_STATE_EXP_AVG,
    TESS_STATE_EXP_AVG_SQ,
    TESS_STATE_NUMEL
} tess_state_kind;
/** Of array `array_idx` of the plan: its dtype, [tess_plan_state_owned()]. */
tess_view tess_runtime_state(tess_runtime *rt, int unit_idx, int array_idx);
tess_view tess_runtime_param_shard(tess_runtime *rt, int unit_idx); /* compute dtype [owned] */
tess_view tess_runtime_arena(tess_runtime *rt, tess_lifetime life); /* u8_opaque, whole arena */

/**
 * XXH3-128 of 4 MiB after 4 MiB, each with the digest before it, of memory as it is now: of this
 * rank's shard of a unit's frozen bytes, without padding; of what every rank has a copy of (trained
 * slabs that are kept whole, optimizer state that is whole everywhere), zeros where a unit has
 * none. Equal on all ranks with the same bytes. Not inside a step. Local.
 */
TESS_MUST_CHECK tess_status tess_runtime_frozen_digest(tess_runtime *rt, int unit_idx,
                                                       tess_xxh128 *out);
TESS_MUST_CHECK tess_status tess_runtime_copies_digest(tess_runtime *rt, int unit_idx,
                                                       tess_xxh128 *out);

/** Numbers of the whole run that the optimizer keeps, [scalar_numel] of its row, equal on all
 * ranks; they belong into a checkpoint. Local. */
double *tess_runtime_scalars(tess_runtime *rt);
/** After masters were set from something else than a checkpoint: state that begins as a copy of
 * them becomes one. Local. */
TESS_MUST_CHECK tess_status tess_runtime_begin(tess_runtime *rt);
/** After a checkpoint was loaded: arrays that are whole on every rank are put together. Collective
 * over `world`. */
TESS_MUST_CHECK tess_status tess_runtime_resume(tess_runtime *rt);

/** Which weights the compute copies hold. */
typedef enum tess_weights {
    TESS_WEIGHTS_TRAINING, /* where gradients are taken */
    TESS_WEIGHTS_TRAINED,  /* the masters: what a run is for */
    TESS_WEIGHTS_EMA,      /* their moving average */
} tess_weights;

/**
 * Round masters (or what `weights` names) to the compute copies and, in LoRA mode, gather them on
 * all ranks. Steps want TESS_WEIGHTS_TRAINING, as they leave them. Collective over `world`.
 */
TESS_MUST_CHECK tess_status tess_runtime_publish_as(tess_runtime *rt, tess_weights weights);
TESS_MUST_CHECK tess_status tess_runtime_publish(tess_runtime *rt);
/** Array of state that holds these weights in f32. Local. */
int tess_runtime_weights_array(const tess_runtime *rt, tess_weights weights);
/**
 * The next update waits for `event`, somebody's copy of the state it changes; NULL: for nothing.
 * `event` is borrowed until that update. Local.
 */
void tess_runtime_hold(tess_runtime *rt, const tess_event *event);
/** Steps record spans in `trace`, borrowed until another one or NULL is given. Local. */
void tess_runtime_trace(tess_runtime *rt, tess_trace *trace);
/** Room that a trace needs for the spans of a step, single kernels included or not. Local. */
int tess_runtime_span_numel(const tess_runtime *rt, bool has_kernels);
/** Closed forms of this rank's forwards and backwards of a step, recomputation included; without
 * sums of gradients, optimizer and traffic. Local. */
tess_cost tess_runtime_step_cost(const tess_runtime *rt);
/**
 * Announce every matrix product of a step to a backend that chooses among algorithms, and take rank
 * 0's choices on all ranks. Does nothing on others. Collective over `world`.
 */
TESS_MUST_CHECK tess_status tess_runtime_prepare(tess_runtime *rt);
/**
 * Forward and backward of all M micro-batches, ordered reduction, control record, clipping, update,
 * publish. Collective over `world`. @return fatal statuses; anything wrong inside a step is
 * reported as such
 */
TESS_MUST_CHECK tess_status tess_runtime_step(tess_runtime *rt, const tess_step_request *request,
                                              tess_step_result *result);
/**
 * Forward of one micro-batch (`batch` NULL: take part in gathers only). Collective over `world`.
 * @param[out] loss_sum  fp64 sum of token losses of this rank's batch; untouched without batch
 */
TESS_MUST_CHECK tess_status tess_runtime_forward(tess_runtime *rt, tess_call_mode mode,
                                                 const void *batch, double *loss_sum);
/** The summed gradient of a unit that learns as of the last step, f32 [owned]. Local. */
tess_view tess_runtime_gradient(tess_runtime *rt, int unit_idx);

TESS_END_DECLS
