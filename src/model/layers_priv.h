/**
 * Layers that families are built from: linear with LoRA and bias, RMSNorm, attention, gated MLP.
 *
 * Shapes: T tokens of the micro-batch (row_numel), R rows of one call, H hidden, r LoRA rank.
 * Activations have the compute dtype `dt`. Every layer has a forward that writes what its backward
 * reads into a `*_saved` struct, whose buffers are carved by one function for both.
 */
#pragma once

#include "model/exec_priv.h"

TESS_BEGIN_DECLS

enum { TESS_GROUP_MAX = 4 };

/**
 * y = x W^T + u B^T + bias with u = round(s drop(x) A^T); s = alpha / r, or with rsLoRA alpha /
 * sqrt(r). With DoRA see dora.c.
 *
 * Both products of y are terms of one matrix product with one rounding. Indices are parameters of
 * the registry.
 */
typedef struct tess_linear {
    int weight_idx;    /* [out, in] */
    int bias_idx;      /* [out], -1: none */
    int lora_a_idx;    /* [r, in], -1: none */
    int lora_b_idx;    /* [out, r], -1: none */
    int magnitude_idx; /* [out], -1: no DoRA */
    int64_t in_numel, out_numel;
    int64_t lora_rank; /* 0: no adapter */
    float lora_scale;
    uint32_t adapter_idx; /* layer number of its dropout draws; linears that share A share it */
    bool is_trainable;    /* weight and bias learn */
} tess_linear;

/**
 * Input shared by the linears of a group, and their adapters' activations.
 *
 * [Note: side by side] A product of several terms runs as one where their A's are columns of the
 * same rows (kernels.h, wants_adjacent_terms). For such backends the buffer is
 * [x | u_0 | u_1 | ...], so that x W^T + u B^T is one product, and backward works on
 * [dy_0 | dy_1 | ... | du_0 | ...]. Elsewhere every part is a buffer of its own. Values and their
 * roundings are the same.
 */
typedef struct tess_group_input {
    tess_rows x;                 /* [R, in] dt */
    tess_rows u[TESS_GROUP_MAX]; /* [R, r] dt; numel 0 without adapter */
    tess_rows z[TESS_GROUP_MAX]; /* DoRA: [R, out] dt, products before their scale; else numel 0 */
    tess_view norm[TESS_GROUP_MAX]; /* DoRA: [out] f32, lengths of the rows of W + s B A */
} tess_group_input;

/** A group of linears during a call. */
typedef struct tess_group {
    int numel;
    const tess_linear *linear[TESS_GROUP_MAX]; /* all with the same in_numel */
    tess_group_input in;                       /* forward writes u, backward reads x and u */
    tess_rows y[TESS_GROUP_MAX]; /* forward: [R, out] dt or f32, written, numel 0: only u;
                                    backward: gradient of it, dt */
    tess_rows d_out;   /* backward: [R, sum of out and of r] that holds y from its front, or numel 0
                        */
    int64_t first_row; /* of the micro-batch: where R rows lie in the [T, in] dropout mask */
    bool has_norms;    /* in.norm is there: the group's rows come in several calls */
} tess_group;

/** A linear by itself. Local. */
static inline tess_group tess_group_one(const tess_linear *linear)
{
    return (tess_group){.numel = 1, .linear = {linear}};
}

/** y = n * w; n = x / rms(x). */
typedef struct tess_norm {
    int weight_idx; /* [dim], -1: no such norm */
    int64_t dim;
    float eps;
    bool is_trainable;
} tess_norm;

/** Angles of the rotary embedding, values of the compute dtype. */
typedef struct tess_rope_table {
    const float *cos, *sin; /* [row_numel, half_numel] f32, where kernels read them */
    int64_t row_numel, half_numel;
} tess_rope_table;

typedef struct tess_attention {
    tess_linear q, k, v, o;
    tess_norm q_norm, k_norm; /* over heads, before the rotation */
    int64_t head_numel, kv_head_numel, head_dim;
    int64_t window; /* 0: none */
} tess_attention;

/** q and k are the projections when they are normed (norm and rotation are repeated in backward),
 * else rotated. */
typedef struct tess_attention_saved {
    tess_view q;            /* [T, heads, D] dt */
    tess_view k, v;         /* [T, kv_heads, D] dt */
    tess_group_input mixed; /* [T, heads * D] dt: attention output, input of o */
    tess_view lse;          /* [heads, T] f32 */
} tess_attention_saved;

/** down(silu(gate(x)) * up(x)). */
typedef struct tess_mlp {
    tess_linear gate, up, down;
} tess_mlp;

typedef struct tess_mlp_saved {
    tess_view gate, up;       /* [T, I] dt */
    tess_group_input product; /* [T, I] dt: input of down; x numel 0 when nothing of down learns */
} tess_mlp_saved;

/** Whether backward needs the layer's input: its weight or its adapter learns. Local. */
bool tess_linear_learns(const tess_linear *linear);
/** A group of one linear without an adapter. Local. */
tess_group tess_group_of(const tess_exec *ex, const tess_linear *linear, const tess_rows *x,
                         const tess_rows *y);
/**
 * Take the input of a group of `row_numel` rows, its adapters' activations with it (of DoRA see
 * tess_group_take_dora()). `wants_x` false: somebody else holds x, if no product wants it beside u.
 * Local.
 */
TESS_MUST_CHECK tess_status tess_group_take_input(const tess_exec *ex, const tess_group *group,
                                                  int64_t row_numel, bool wants_x,
                                                  tess_carve *carve, tess_group_input *in);
/** Take z of `row_numel` rows, and the norms, of the group's DoRA linears. Local. */
TESS_MUST_CHECK tess_status tess_group_take_dora(const tess_exec *ex, const tess_group *group,
                                                 int64_t row_numel, tess_carve *carve,
                                                 tess_group_input *in);
/** Rows for the gradients of a group's outputs, y of every linear among them. Local. */
TESS_MUST_CHECK tess_status tess_group_take_gradient(tess_exec *ex, tess_group *group,
                                                     int64_t row_numel);
TESS_MUST_CHECK tess_status tess_group_forward(tess_exec *ex, const tess_group *group);
/**
 * Gradients of the parameters of a group, and dx = sum over its linears, rounded once. Local.
 * @param[out] d_x  [R, in] dt, contiguous; numel 0: not wanted
 */
TESS_MUST_CHECK tess_status tess_group_backward(tess_exec *ex, const tess_group *group,
                                                tess_view d_x);

/** Operands of one norm; rows are x.numel / dim. */
typedef struct tess_norm_io {
    tess_view x;        /* contiguous */
    tess_rows y;        /* may alias x */
    tess_view inv_rms;  /* numel 0: not wanted */
    tess_view residual; /* numel 0: none */
    tess_view sum;      /* with a residual: x + residual, takes the place of x; may alias either */
} tess_norm_io;

TESS_MUST_CHECK tess_status tess_norm_forward(tess_exec *ex, const tess_norm *norm,
                                              const tess_norm_io *io);
/** residual numel 0: none; d_x may alias d_y or residual. Local. */
TESS_MUST_CHECK tess_status tess_norm_backward(tess_exec *ex, const tess_norm *norm, tess_view x,
                                               tess_view inv_rms, tess_view d_y, tess_view residual,
                                               tess_view d_x);

/** Input of the projections of a layer; see tess_group_take_input(). Local. */
TESS_MUST_CHECK tess_status tess_attention_take_input(const tess_exec *ex,
                                                      const tess_attention *layer, bool wants_x,
                                                      tess_carve *carve, tess_group_input *in);
TESS_MUST_CHECK tess_status tess_mlp_take_input(const tess_exec *ex, const tess_mlp *layer,
                                                bool wants_x, tess_carve *carve,
                                                tess_group_input *in);
/** Buffers that the backward of these layers reads beside their input; the same order in forward
 * and backward. Local. */
TESS_MUST_CHECK tess_status tess_attention_take_saved(tess_exec *ex, const tess_attention *layer,
                                                      tess_attention_saved *saved);
/** @param[in] in x [T, H] dt; u is written  @param[out] y [T, H] dt */
TESS_MUST_CHECK tess_status tess_attention_forward(tess_exec *ex, const tess_attention *layer,
                                                   const tess_rope_table *rope,
                                                   const tess_group_input *in,
                                                   const tess_attention_saved *saved, tess_view y);
/** @param[in] d_y [T, H] dt  @param[out] d_x [T, H] dt, numel 0: not wanted */
TESS_MUST_CHECK tess_status tess_attention_backward(tess_exec *ex, const tess_attention *layer,
                                                    const tess_rope_table *rope,
                                                    const tess_group_input *in,
                                                    const tess_attention_saved *saved,
                                                    tess_view d_y, tess_view d_x);

TESS_MUST_CHECK tess_status tess_mlp_take_saved(tess_exec *ex, const tess_mlp *layer,
                                                tess_mlp_saved *saved);
/** @param[out] y [T, H] dt; numel 0: only what backward reads, without the product of down */
TESS_MUST_CHECK tess_status tess_mlp_forward(tess_exec *ex, const tess_mlp *layer,
                                             const tess_group_input *in,
                                             const tess_mlp_saved *saved, tess_view y);
TESS_MUST_CHECK tess_status tess_mlp_backward(tess_exec *ex, const tess_mlp *layer,
                                              const tess_group_input *in,
                                              const tess_mlp_saved *saved, tess_view d_y,
                                              tess_view d_x);

TESS_END_DECLS
