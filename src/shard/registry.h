/**
 * What a model family tells the runtime: parameters with roles, units that are gathered together,
 * and stages that compute with one unit each.
 *
 * The runtime knows nothing else of models. A family registers everything once (a pure function of
 * its configuration), then receives calls per stage with views of gathered parameters.
 *
 * [Note: units and stages] Forward runs stages 0 .. n-1, backward n-1 .. 0. A stage uses exactly
 * one unit; a unit may serve several stages (a tied embedding belongs to one unit that serves the
 * first and the last stage). Stage s reads the output of stage s-1 and writes its own; the last
 * stage ends in the loss.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/codec.h"
#include "core/device.h"
#include "core/view.h"
#include "kernels/cost.h"
#include "kernels/kernels.h"

TESS_BEGIN_DECLS

enum { TESS_NAME_NBYTES = 160, TESS_PARAM_RANK_MAX = 4, TESS_TRAINABLE_BLOCK_NUMEL = 256 };

typedef enum tess_role {
    TESS_ROLE_FROZEN,    /* stored bytes in a base format, never differentiated */
    TESS_ROLE_TRAINABLE, /* fp32 master, compute copy derived by one rounding */
} tess_role;

typedef enum tess_init_kind {
    TESS_INIT_SOURCE, /* from the model files; refused when missing there */
    TESS_INIT_ZERO,
    TESS_INIT_ONE,
    TESS_INIT_UNIFORM, /* U(-scale, scale) */
    TESS_INIT_NORMAL,  /* N(0, scale^2) */
    TESS_INIT_DERIVED, /* made from another tensor while that one is loaded: its `derived` */
} tess_init_kind;

/** How an adapter takes a part of the weights W over; what is stored is a base of its own. */
typedef enum tess_low_rank {
    TESS_LOW_RANK_NONE,
    /* s B A = the largest singular values of W; W - s B A is stored. Meng et al., arXiv 2404.02948
     */
    TESS_LOW_RANK_PISSA,
    /* s B A = the largest of what quantizing W - s B A loses, in turns. Li et al., arXiv 2310.08659
     */
    TESS_LOW_RANK_LOFTQ,
} tess_low_rank;

/** Tensors that are made together with a frozen matrix [out, in]; 0: none (a matrix comes before
 * what is made of it). */
typedef struct tess_derived {
    int magnitude_idx; /* [out]: lengths of the rows as stored, in the compute dtype */
    tess_low_rank low_rank;
    int a_idx, b_idx;                 /* A [r, in], B [out, r]; values of the compute dtype */
    int initial_a_idx, initial_b_idx; /* frozen f32 copies: what A and B started as */
    int power_numel;                  /* iterations of the subspace (shard/low_rank.h) */
    int turn_numel;                   /* LoftQ: quantizations */
    double scale;                     /* s */
} tess_derived;

/** One named tensor. Filled by the family except for the last block, which the layout fills. */
typedef struct tess_param {
    char name[TESS_NAME_NBYTES]; /* canonical: "model.layers.0.self_attn.q_proj.weight" */
    int unit_idx;
    tess_role role;
    int shape_rank;
    int64_t shape[TESS_PARAM_RANK_MAX];
    tess_codec codec;    /* frozen: how it is stored; trainable: ignored */
    tess_init_kind init; /* `init: random` of a run turns SOURCE into the family's random rule */
    double init_scale;
    tess_init_kind random_init; /* used instead of SOURCE when the run asks for random weights */
    double random_scale;
    double learning_rate_ratio; /* 1; LoRA+ ratio on B */
    bool has_weight_decay;
    bool is_outer; /* an embedding or output layer: Muon leaves it to AdamW */
    tess_derived derived;
    bool is_in_front; /* trainable: lies before those of its unit that are not, in registration
                         order among its like */

    int64_t numel;          /* product of shape */
    int64_t slab_first_idx; /* trainable: element in the unit's slab, a multiple of 256 */
    size_t part_offset_nbytes[TESS_CODEC_PART_MAX]; /* frozen: place in the unit's byte string */
    tess_codec_part part[TESS_CODEC_PART_MAX];
    int part_numel;
} tess_param;

/** What is gathered together. The lower block is filled by the layout. */
typedef struct tess_unit {
    char name[TESS_NAME_NBYTES]; /* "embed", "blk.3", "head" */
    /* Of its trainable slab as stages see it and as it travels: the registry's, unless the family
     * asks for f32 with tess_registry_widen_unit(). */
    tess_dtype compute_dt;
    bool is_set;  /* the trainer sets its masters: nothing differentiates it */
    bool is_held; /* owners use their shards where they are: tess_registry_hold_unit() */

    size_t frozen_nbytes;    /* length of the byte string, unpadded end */
    int64_t trainable_numel; /* length of the slab in elements, a multiple of 256 */
    int stage_numel;         /* stages that use it */
} tess_unit;

/** What one micro-batch of full shape costs in a stage, counted by its code while it is planned. */
typedef struct tess_stage_cost {
    tess_cost forward; /* of the last stage where it is fused: evaluation's, no part of a step */
    tess_cost again;   /* the forward that a recomputation runs; its model FLOPs do not count */
    tess_cost backward;
} tess_stage_cost;

/** A backward, behind the forward's repetition where there is one: that counts in the hardware's
 * FLOPs alone. Local. */
tess_cost tess_stage_cost_backward(const tess_stage_cost *cost, bool is_recomputed);

/** One step of forward and backward. */
typedef struct tess_stage {
    char name[TESS_NAME_NBYTES];
    int unit_idx;
    size_t
        output_nbytes; /* output kept for the next stage (and its backward); 0 for the last stage */
    size_t
        saved_nbytes; /* what its backward reads beside its input; recomputed under checkpointing */
    size_t work_nbytes; /* scratch of one call, forward or backward */
    bool is_fused_loss; /* last stage: backward computes loss and gradient at once, no training
                           forward */
    /* A recomputation may pass `output` with numel 0: then only `saved` is written, which costs
     * less. */
    bool skips_output;
    /* Its forward exchanges with other ranks: all of them call it in every round, those without a
     * micro-batch with `batch` NULL, and it is not run again before its backward. */
    bool is_joint;
    tess_stage_cost cost;
} tess_stage;

typedef enum tess_call_mode {
    TESS_CALL_TRAIN,  /* forward of a training micro-batch, or its recomputation */
    TESS_CALL_EVAL,   /* forward only; the last stage writes the loss */
    TESS_CALL_LOGITS, /* forward only; the last stage writes logits of one token (see family) */
    /* Nothing is computed: the products of a full micro-batch, of training or of evaluation, are
     * announced to the backend. There is no batch. */
    TESS_CALL_PREPARE_TRAIN,
    TESS_CALL_PREPARE_EVAL
} tess_call_mode;

static inline bool tess_call_is_announced(tess_call_mode mode)
{
    return mode == TESS_CALL_PREPARE_TRAIN || mode == TESS_CALL_PREPARE_EVAL;
}
/** Whether a stage keeps what its backward reads, and drops out. */
static inline bool tess_call_is_training(tess_call_mode mode)
{
    return mode == TESS_CALL_TRAIN || mode == TESS_CALL_PREPARE_TRAIN;
}

typedef struct tess_registry tess_registry;

/** Everything a stage may touch during one call. All views are borrowed for the call; they and the
 * addresses below are in the space of `device`. */
typedef struct tess_stage_call {
    const tess_registry *registry;
    const tess_kernels *kernels;
    tess_device *device;
    tess_stream *stream;
    int stage_idx;
    tess_call_mode mode;
    uint64_t seed;
    int64_t micro_batch_idx; /* global number over the whole run: g = step * M + m */
    const void *batch;       /* the family's own batch type; NULL: see is_joint */
    const char *frozen;      /* the unit's byte string, or NULL when it has none */
    const char *trainable;   /* the unit's slab in the unit's compute dtype, or NULL */
    float *grad; /* [trainable_numel] f32, zero before the unit's first backward call; accumulate */
    tess_view input;    /* output of stage - 1 (numel 0 for stage 0), U8_OPAQUE */
    tess_view output;   /* where to write the output (numel 0: see skips_output); U8_OPAQUE */
    tess_view saved;    /* forward writes, backward reads; U8_OPAQUE */
    tess_view work;     /* U8_OPAQUE */
    tess_view d_output; /* backward: gradient of the output (numel 0 for the last stage) */
    tess_view d_input;  /* backward: where to write; must not alias d_output; numel 0 for stage 0 */
    float grad_scale;   /* 1/T: the loss kernel multiplies gradients by it */
    /* Last stage: where to write the fp64 sum of this micro-batch's token losses, in row order. */
    double *loss_sum;
} tess_stage_call;

/** The family's side of the calls. A stage call must be a pure function of what the call shows. */
typedef struct tess_stage_ops {
    tess_status (*forward)(void *model, const tess_stage_call *call);
    tess_status (*backward)(void *model, const tess_stage_call *call);
    /* Tables that calls read, for devices other than the host: their bytes, and a copy of them into
     * `place` [constant_nbytes] that calls then use. NULL: there are none. */
    size_t (*constant_nbytes)(const void *model);
    tess_status (*place_constants)(void *model, tess_device *device, tess_view place,
                                   tess_stream *stream);
} tess_stage_ops;

struct tess_registry {
    tess_param *param;
    int param_numel;
    tess_unit *unit;
    int unit_numel;
    tess_stage *stage;
    int stage_numel;
    tess_dtype compute_dt; /* TESS_BF16 or TESS_F32: of activations and, by default, of units */
    bool is_laid_out;
};

/** Empty registry in the caller's memory. Local. */
void tess_registry_init(tess_registry *reg, tess_dtype compute_dt);
void tess_registry_fini(tess_registry *reg);
/** Local. @return TESS_E_ARG a name that is too long */
TESS_MUST_CHECK tess_status tess_registry_add_unit(tess_registry *reg, const char *name,
                                                   int *unit_idx);
/** The unit's slab is f32 whatever the compute dtype: for what loses too much in bf16, such as
 * codes that are searched. Local. @return TESS_E_STATE after the layout */
TESS_MUST_CHECK tess_status tess_registry_widen_unit(tess_registry *reg, int unit_idx);
/** The trainer sets the masters of its tensors, which are all outer ones: no gradients are kept or
 * travel, the optimizer keeps and does nothing. Local. @return TESS_E_STATE after the layout */
TESS_MUST_CHECK tess_status tess_registry_set_unit(tess_registry *reg, int unit_idx);
/** Owners use their shards where they are: the unit is not gathered, no stage sees it. Unless it is
 * set, the trainer adds up its gradients. Local. @return TESS_E_STATE after the layout */
TESS_MUST_CHECK tess_status tess_registry_hold_unit(tess_registry *reg, int unit_idx);
/** Copy of `param` into the registry; shapes are checked. Local. @return TESS_E_ARG duplicate name,
 * bad unit or shape */
TESS_MUST_CHECK tess_status tess_registry_add_param(tess_registry *reg, const tess_param *param,
                                                    int *param_idx);
TESS_MUST_CHECK tess_status tess_registry_add_stage(tess_registry *reg, const tess_stage *stage);
/**
 * Compute places of all parameters: frozen parts at multiples of 256 bytes in registration order,
 * trainable tensors at multiples of 256 elements. Nothing may be added afterwards. Local.
 */
TESS_MUST_CHECK tess_status tess_registry_lay_out(tess_registry *reg);
/** How the bytes of a frozen tensor were made, for the identity of a base: "nf4/64/double", and
 * behind it "/pissa/r16" or the like. Local. */
enum { TESS_RULE_NBYTES = TESS_CODEC_TEXT_NBYTES + 32 };
void tess_param_rule(const tess_registry *reg, const tess_param *p, char text[TESS_RULE_NBYTES]);
/** Whether `next_idx` begins right behind `idx` in a slab, both trainable; known before the layout.
 * Local. */
bool tess_registry_is_behind(const tess_registry *reg, int idx, int next_idx);
/** Index of a parameter by name, -1 when absent. Local. */
int tess_registry_find(const tess_registry *reg, const char *name);

/** Dtype of a parameter's unit. Local. */
static inline tess_dtype tess_param_compute_dt(const tess_registry *reg, const tess_param *p)
{
    return reg->unit[p->unit_idx].compute_dt;
}
/** Parameter as a stored matrix: frozen from the byte string, trainable from the slab (plain, the
 * unit's compute dtype). Local. */
tess_matrix tess_call_matrix(const tess_stage_call *call, int param_idx);
/** Gradient of a trainable parameter [numel] f32. Local. */
float *tess_call_grad(const tess_stage_call *call, int param_idx);

TESS_END_DECLS
