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

enum { TESS_GROUP_MAX = 3 };

/**
 * y = x W^T + u B^T + bias with u = round(s drop(x) A^T); s = alpha / r.
 *
 * Both products of y are terms of one matrix product with one rounding. Indices are parameters of
 * the registry.
 */
typedef struct tess_linear {
    int weight_idx; /* [out, in] */
    int bias_idx;   /* [out], -1: none */
    int lora_a_idx; /* [r, in], -1: none */
    int lora_b_idx; /* [out, r], -1: none */
    int64_t in_numel, out_numel;
    int64_t lora_rank; /* 0: no adapter */
    float lora_scale;
    uint32_t adapter_idx; /* layer number of its dropout draws */
    bool is_trainable;    /* weight and bias learn */
} tess_linear;

/** Input shared by the linears of a group. */
typedef struct tess_linear_input {
    tess_view x;       /* [R, in] dt; backward of a group in which nothing learns: unused */
    int64_t row_numel; /* R */
    int64_t first_row; /* of the micro-batch: where R rows lie in the [T, in] dropout mask */
} tess_linear_input;

/** One linear of a group during a call. */
typedef struct tess_linear_io {
    const tess_linear *linear;
    tess_view y; /* forward: [R, out] dt or f32, written; backward: gradient of it, dt */
    tess_view u; /* [R, r] dt: forward writes, backward reads; numel 0 without adapter */
} tess_linear_io;

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
    tess_view q;                  /* [T, heads, D] dt */
    tess_view k, v;               /* [T, kv_heads, D] dt */
    tess_view mixed;              /* [T, heads, D] dt: attention output, input of o */
    tess_view lse;                /* [heads, T] f32 */
    tess_view u_q, u_k, u_v, u_o; /* [T, r] dt */
} tess_attention_saved;

/** down(silu(gate(x)) * up(x)). */
typedef struct tess_mlp {
    tess_linear gate, up, down;
} tess_mlp;

typedef struct tess_mlp_saved {
    tess_view gate, up; /* [T, I] dt */
    tess_view product;  /* [T, I] dt: input of down; numel 0 when nothing of down learns */
    tess_view u_gate, u_up, u_down;
} tess_mlp_saved;

/** Whether backward needs the layer's input: its weight or its adapter learns. Local. */
bool tess_linear_learns(const tess_linear *linear);
/** Take the saved LoRA activation of `row_numel` rows. Local. */
TESS_MUST_CHECK tess_status tess_linear_take_u(const tess_exec *ex, const tess_linear *linear,
                                               int64_t row_numel, tess_carve *carve, tess_view *u);
/** y numel 0: only u, for a backward that does not read y. Local. */
TESS_MUST_CHECK tess_status tess_linear_forward(tess_exec *ex, const tess_linear_input *in,
                                                const tess_linear_io *io);
/**
 * Gradients of the parameters of a group, and dx = sum over its linears, rounded once. Local.
 * @param[out] d_x  [R, in] dt; numel 0: not wanted
 */
TESS_MUST_CHECK tess_status tess_linear_group_backward(tess_exec *ex, const tess_linear_input *in,
                                                       const tess_linear_io *io, int io_numel,
                                                       tess_view d_x);

/** Rows x numel / dim of `x`; y may alias x; inv_rms numel 0: not wanted. Local. */
TESS_MUST_CHECK tess_status tess_norm_forward(tess_exec *ex, const tess_norm *norm, tess_view x,
                                              tess_view y, tess_view inv_rms);
/** residual numel 0: none; d_x may alias d_y or residual. Local. */
TESS_MUST_CHECK tess_status tess_norm_backward(tess_exec *ex, const tess_norm *norm, tess_view x,
                                               tess_view inv_rms, tess_view d_y, tess_view residual,
                                               tess_view d_x);

/** Buffers that the backward of these layers reads; the same order in forward and backward. Local.
 */
TESS_MUST_CHECK tess_status tess_attention_take_saved(tess_exec *ex, const tess_attention *layer,
                                                      tess_attention_saved *saved);
/** @param[in] x [T, H] dt  @param[out] y [T, H] dt */
TESS_MUST_CHECK tess_status tess_attention_forward(tess_exec *ex, const tess_attention *layer,
                                                   const tess_rope_table *rope, tess_view x,
                                                   const tess_attention_saved *saved, tess_view y);
/** @param[in] d_y [T, H] dt  @param[out] d_x [T, H] dt, numel 0: not wanted */
TESS_MUST_CHECK tess_status tess_attention_backward(tess_exec *ex, const tess_attention *layer,
                                                    const tess_rope_table *rope, tess_view x,
                                                    const tess_attention_saved *saved,
                                                    tess_view d_y, tess_view d_x);

TESS_MUST_CHECK tess_status tess_mlp_take_saved(tess_exec *ex, const tess_mlp *layer,
                                                tess_mlp_saved *saved);
/** @param[out] y [T, H] dt; numel 0: only what backward reads, without the product of down */
TESS_MUST_CHECK tess_status tess_mlp_forward(tess_exec *ex, const tess_mlp *layer, tess_view x,
                                             const tess_mlp_saved *saved, tess_view y);
TESS_MUST_CHECK tess_status tess_mlp_backward(tess_exec *ex, const tess_mlp *layer, tess_view x,
                                              const tess_mlp_saved *saved, tess_view d_y,
                                              tess_view d_x);

TESS_END_DECLS
