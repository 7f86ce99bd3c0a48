/**
 * Optimizers, one row of a table each: which arrays of state it keeps, which kernels it needs, how
 * it updates. Plan, snapshot, checkpoint and resharding follow from the row.
 *
 * [Note: state arrays] Beside each master lie the optimizer's own numbers. An array has one number
 * per element (cut like the masters), one per block of 256 elements (blocks count from a tensor's
 * start and never cross tensors or ranks), or one per row and column of a matrix: these few are
 * whole on every rank, which all compute the same ones from exact sums.
 */
#pragma once

#include "shard/registry.h"

TESS_BEGIN_DECLS

/** X(NAME, "word of train.optimizer"). */
#define TESS_OPTIMIZER_LIST(X)                                                                     \
    X(ADAMW, "adamw")                                                                              \
    X(ADAMW_8BIT, "adamw-8bit")                                                                    \
    X(LION, "lion")                                                                                \
    X(SCHEDULE_FREE, "adamw-schedule-free")                                                        \
    X(PRODIGY, "prodigy")                                                                          \
    X(ADAFACTOR, "adafactor")                                                                      \
    X(ADAFACTOR_MOMENTUM, "adafactor-momentum")                                                    \
    X(MUON, "muon")

typedef enum tess_optimizer_kind {
#define X(name, text) TESS_OPTIMIZER_##name,
    TESS_OPTIMIZER_LIST(X)
#undef X
        TESS_OPTIMIZER_NUMEL
} tess_optimizer_kind;

typedef enum tess_state_grain {
    TESS_GRAIN_ELEMENT, /* as the slab */
    TESS_GRAIN_BLOCK,   /* one number per 256 elements of the slab */
    TESS_GRAIN_FACTOR,  /* rows, then columns of each tensor; whole on every rank */
    TESS_GRAIN_REST,    /* as the slab, but only of units with a tensor that is no hidden matrix */
} tess_state_grain;

typedef struct tess_state_array {
    const char *role; /* name in plans and checkpoints */
    tess_dtype dt;
    tess_state_grain grain;
    bool starts_as_master; /* else as zeros */
} tess_state_array;

/** Hyperparameters of one update. */
typedef struct tess_update {
    int64_t step; /* t of AdamW, from 1 */
    double learning_rate, beta1, beta2, eps, weight_decay;
    double clip_norm;  /* 0: no clipping */
    double ema_decay;  /* of the averaged weights, where the plan has them */
    double d0, d_coef; /* Prodigy: the first estimate, and what later ones are multiplied by */
    bool has_bias_correction, has_safeguard; /* Prodigy: of the rate; s without it */
    bool has_relative_step,
        scales_by_param; /* Adafactor: rate / sqrt(t); rate times a tensor's size */
    double momentum;     /* Muon */
    bool matches_adamw;  /* Muon: updates of the size that AdamW's have */
} tess_update;

enum { TESS_STATE_ARRAY_MAX = 7, TESS_OPTIMIZER_SCALAR_MAX = 3 };

struct tess_runtime;

typedef struct tess_optimizer {
    const char *name;
    tess_state_array array[TESS_STATE_ARRAY_MAX]; /* masters are the first */
    int array_numel;
    const char *scalar[TESS_OPTIMIZER_SCALAR_MAX]; /* names of f64 numbers of the whole run */
    int scalar_numel;                              /* they start as zeros */
    /** Trains at another point than its master, `blend` of the way from it to this array; the
     * master is what is evaluated. 0: at the master. */
    int train_array_idx;
    /** Memory of the device for an update; NULL: none. */
    size_t (*work_nbytes)(const tess_registry *reg, const tess_kernels *kernels, int thread_numel);
    /** Memory beside a device, of its host, for what goes through an update's exchanges at once;
     * NULL: the step record's is enough. */
    size_t (*host_nbytes)(const tess_registry *reg);
    /** Elements of f32 that one rank receives at once, and all of an update; NULL: none travel. */
    int64_t (*wire_numel)(const tess_registry *reg, int64_t *total_numel);
    /** Whether a backend has what it needs. */
    bool (*has_kernels)(const tess_kernels *kernels);
    /** Announce the matrix products of an update to a backend that chooses among algorithms; NULL:
     * it has none. */
    tess_status (*announce)(struct tess_runtime *rt);
    /** All tensors of this rank; `clip_factor` scales gradients. Collective over the world where it
     * exchanges sums. */
    tess_status (*update)(struct tess_runtime *rt, float clip_factor);
} tess_optimizer;

const tess_optimizer *tess_optimizer_get(tess_optimizer_kind kind);
/** Local. @return TESS_E_UNSUPPORTED a backend without its kernels (both are named) */
TESS_MUST_CHECK tess_status tess_optimizer_check(const tess_optimizer *optimizer,
                                                 const tess_kernels *kernels);

/** A trainable matrix that is not an embedding or output layer. Local. */
bool tess_param_is_hidden_matrix(const tess_param *p);
/** Numbers that a unit's part of an array has in all. Local. */
int64_t tess_state_total_numel(const tess_registry *reg, int unit_idx, tess_state_grain grain);
/** Numbers of a tensor, and the place of the first in its unit's part. Local. */
void tess_state_place(const tess_registry *reg, int param_idx, tess_state_grain grain,
                      int64_t *first_idx, int64_t *numel);
/** An array's part of a unit is cut at multiples of this many numbers. Local. */
int64_t tess_state_align_numel(tess_state_grain grain);

TESS_END_DECLS
