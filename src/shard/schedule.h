/**
 * The order of a step's work: which gather, computation, send and sum comes when, on which lane,
 * and what waits for what. Pure arithmetic; the same on every rank except for computations of
 * rounds without a micro-batch.
 *
 * [Note: waits] Each operation names the buffers it reads and writes. A wait is generated where a
 * buffer's last writer or readers sit on another lane, unless another wait already implies it
 * (vector clocks over lanes). There are no hand-written waits anywhere.
 *
 * [Note: slots] Units are gathered in buckets, runs of units that travel together and share a slot.
 * Stage visits are known in advance, so the slot to reuse is the one whose bucket is needed last
 * (Belady). With two slots this is gather-compute-release; with as many slots as buckets nothing is
 * gathered twice in a step. Prefetch counts buckets: that of the next ones is gathered while the
 * first stage of the present one computes, in whichever direction stages are visited.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/status.h"

TESS_BEGIN_DECLS

typedef enum tess_lane {
    TESS_LANE_COMPUTE,
    TESS_LANE_GATHER,
    TESS_LANE_REDUCE,
    TESS_LANE_NUMEL
} tess_lane;

typedef enum tess_sched_kind {
    TESS_SCHED_GATHER,   /* bucket -> slot, gather lane */
    TESS_SCHED_FORWARD,  /* stage, compute lane */
    TESS_SCHED_BACKWARD, /* stage, compute lane; recomputes first where asked. Stages below the
                            first that learns have none */
    TESS_SCHED_SEND,     /* unit's gradient pieces to their owners, reduce lane */
    TESS_SCHED_FOLD,     /* received pieces into the ordered sum, compute lane */
    TESS_SCHED_CLEAR,    /* zeros where a library reduction has no gradient, compute lane */
    TESS_SCHED_REDUCE,   /* library reduce-scatter of a unit's gradient, reduce lane */
} tess_sched_kind;

typedef struct tess_sched_op {
    tess_sched_kind kind;
    tess_lane lane;
    int round_idx;
    int stage_idx;             /* FORWARD, BACKWARD; else -1 */
    int unit_idx;              /* GATHER: the one of the bucket that is needed first */
    int bucket_idx;            /* GATHER; else -1 */
    int slot_idx;              /* GATHER, FORWARD, BACKWARD of a gathered unit; else -1 */
    int grad_idx;              /* gradient buffer of BACKWARD, SEND, FOLD, CLEAR, REDUCE; else -1 */
    bool clears_grad;          /* BACKWARD: the buffer starts from zero */
    bool is_recomputed;        /* BACKWARD: run the stage's forward first */
    bool is_recorded;          /* somebody waits for this operation */
    int wait[TESS_LANE_NUMEL]; /* operation of that lane to wait for, -1: none */
} tess_sched_op;

/** What decides the order. All arrays are borrowed. */
typedef struct tess_sched_spec {
    int stage_numel;
    const int *stage_unit;         /* [stage_numel] */
    const bool *stage_checkpoints; /* [stage_numel] recompute before backward */
    const bool *stage_is_joint;    /* [stage_numel] all ranks run its forward in every round; NULL:
                                      none */
    bool is_last_fused;            /* the last stage has no training forward */
    int unit_numel;
    int bucket_numel;
    const int *unit_bucket;      /* [unit_numel] bucket it is gathered with, -1: it lies in place */
    const bool *unit_has_grad;   /* [unit_numel] */
    const int *unit_stage_numel; /* [unit_numel] stages using it */
    /* What an exchange of gradients moves on this rank, so that nothing waits for what is not
     * there. NULL: all of it. */
    const bool *unit_is_sent;    /* [unit_numel] other ranks own a part */
    const bool *unit_is_owned;   /* [unit_numel] this rank owns a part */
    const bool *unit_is_relayed; /* [unit_numel] it passes parts on */
    const bool *round_has_peer;  /* [round_numel] another rank has a micro-batch too */
    int round_numel;             /* ceil(M / W) */
    int active_round_numel; /* rounds in which this rank has a micro-batch: round_numel or one less
                             */
    int slot_numel;         /* one a bucket, or fewer but at least two */
    int prefetch;           /* gathers issued ahead of the running bucket, 0 .. slot_numel - 1; any
                               where every bucket has a slot */
    bool is_library;        /* library reduction instead of the ordered one */
    bool is_library_once;   /* library: one reduction per step, gradients of rounds added locally */
    bool is_eval;           /* forward only */
} tess_sched_spec;

typedef struct tess_schedule {
    tess_sched_op *op;
    int op_numel;
    int grad_buffer_numel; /* gradient buffers used */
    int *grad_unit;        /* [grad_buffer_numel] the one unit a dedicated buffer serves, -1: any */
    int gather_numel;      /* gathers in all */
} tess_schedule;

/** Make the schedule. Local. @return TESS_E_ARG impossible numbers; TESS_E_MEMORY */
TESS_MUST_CHECK tess_status tess_schedule_create(const tess_sched_spec *spec, tess_schedule *out);
void tess_schedule_fini(tess_schedule *sched);
const char *tess_sched_kind_name(tess_sched_kind kind);

TESS_END_DECLS
