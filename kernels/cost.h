/**
 * FLOPs and bytes of every op in closed form: one table for plan, report and benchmarks.
 *
 * Model FLOPs are what the mathematics asks for once; hardware FLOPs count work that is done again
 * (scores in the backward of attention, a replayed forward). A multiply-add is two. Causal
 * attention counts half of each document's square. Elementwise work is in the bytes, not in the
 * FLOPs, but for the norms, whose FLOPs are given apart because utilization leaves them out. Bytes
 * are those that must pass the device's memory when every operand is read and every result written
 * once.
 *
 * With a frozen base a linear costs 2 T N K forward and 2 T N K backward: "4 N" per token, not 6.
 */
#pragma once

#include "core/codec.h"

TESS_BEGIN_DECLS

typedef enum tess_cost_pass { TESS_COST_FORWARD, TESS_COST_BACKWARD } tess_cost_pass;

/**
 * What a device's time for it depends on, beside the products of matrices: their amounts are FLOPs
 * of the hardware (is_flops) or bytes. X(NAME, "word of device files", is_flops)
 */
#define TESS_COST_OP_LIST(X)                                                                       \
    X(ATTENTION, "attention", true)                                                                \
    X(ATTENTION_BACKWARD, "attention_backward", true)                                              \
    X(SEARCH, "search", true)                                                                      \
    X(DISTANCE, "distance", true)                                                                  \
    X(NORM, "norm", false)                                                                         \
    X(NORM_BACKWARD, "norm_backward", false)                                                       \
    X(ROPE, "rope", false)                                                                         \
    X(SWIGLU, "swiglu", false)                                                                     \
    X(SWIGLU_BACKWARD, "swiglu_backward", false)                                                   \
    X(LOSS, "loss", false)                                                                         \
    X(EMBEDDING, "embedding", false)                                                               \
    X(ELEMENT, "element", false)                                                                   \
    X(FOLD, "fold", false)                                                                         \
    X(SQUARES, "squares", false)                                                                   \
    X(OPTIMIZER, "optimizer", false)

typedef enum tess_cost_op {
#define X(name, text, is_flops) TESS_COST_##name,
    TESS_COST_OP_LIST(X)
#undef X
        TESS_COST_OP_NUMEL
} tess_cost_op;

const char *tess_cost_op_name(tess_cost_op op);
bool tess_cost_op_is_flops(tess_cost_op op);

/* Products fall into classes by their smallest extent: class i from 2^i to 2^(i+1) - 1, the last
 * open. */
enum { TESS_COST_EXTENT_NUMEL = 13 };
int tess_cost_extent_class(int64_t m, int64_t n, int64_t k);

/** Doubles: whole numbers are exact up to 9e15, and a step of a large model stays below. Nothing
 * but doubles: sums and multiples go over all of them. */
typedef struct tess_cost {
    double model_flops, hardware_flops;
    double other_flops; /* of norms: reported, in no utilization */
    double nbytes;      /* of device memory */
    double wire_nbytes; /* sent by one rank */
    /* The same work by what it is; closed forms below leave it empty, kernels/cost_count.h fills
     * it. */
    double product_flops[TESS_COST_EXTENT_NUMEL];
    double weight_numel[TESS_FORMAT_NUMEL]; /* elements of B of products, by how they are stored */
    double weight_nbytes;                   /* what their decoding reads and writes */
    double op[TESS_COST_OP_NUMEL];
    double launch_numel;
    double unlisted_numel; /* launches without a closed form */
} tess_cost;

tess_cost tess_cost_sum(tess_cost a, tess_cost b);
tess_cost tess_cost_times(tess_cost a, double factor);

/** y = x W^T, W [out, in]; activations of `elem_nbytes`. Backward: dx, and dW in f32 if it trains.
 */
tess_cost tess_cost_linear(int64_t token_numel, int64_t out_numel, int64_t in_numel,
                           size_t elem_nbytes, bool is_trained, tess_cost_pass pass);
/** A stored matrix to the compute dtype; the same in both passes.
 * @return as tess_codec_parts() */
TESS_MUST_CHECK tess_status tess_cost_dequantize(const tess_codec *codec, int64_t numel,
                                                 size_t elem_nbytes, tess_cost *out);
/** The branch of an adapter of `rank` beside a linear, concatenated with it in K. */
tess_cost tess_cost_lora(int64_t token_numel, int64_t out_numel, int64_t in_numel, int64_t rank,
                         size_t elem_nbytes, tess_cost_pass pass);

typedef struct tess_cost_attention_shape {
    int64_t token_numel;
    double square_numel; /* sum over documents of their length squared */
    int64_t head_numel, kv_head_numel, dim;
    size_t elem_nbytes;
} tess_cost_attention_shape;
tess_cost tess_cost_attention(const tess_cost_attention_shape *shape, tess_cost_pass pass);

/** RMSNorm with the residual's addition. */
tess_cost tess_cost_rmsnorm(int64_t token_numel, int64_t dim, size_t elem_nbytes,
                            tess_cost_pass pass);
tess_cost tess_cost_swiglu(int64_t token_numel, int64_t dim, size_t elem_nbytes,
                           tess_cost_pass pass);
/** In place on q and k. */
tess_cost tess_cost_rope(int64_t token_numel, int64_t head_numel, int64_t dim, size_t elem_nbytes);
/** Head and cross-entropy in chunks: logits are written, read and overwritten, and read again. */
tess_cost tess_cost_head_loss(int64_t token_numel, int64_t hidden_numel, int64_t vocab_numel,
                              size_t elem_nbytes, tess_cost_pass pass);
/** f32 master, two moments and gradient; the bf16 copy is written: 30 bytes a parameter. */
tess_cost tess_cost_adamw(int64_t param_numel);
/** A unit of `nbytes` from and to all of `world` ranks. */
tess_cost tess_cost_all_gather(double nbytes, int world);
tess_cost tess_cost_reduce_scatter(int64_t param_numel, int world);

/** A decoder whose layers are alike. */
typedef struct tess_cost_model {
    int64_t layer_numel, hidden_numel, ffn_numel, vocab_numel;
    int64_t head_numel, kv_head_numel, head_dim;
    int64_t lora_rank;    /* on all linears of the layers, 0: none */
    bool is_base_trained; /* else frozen */
    tess_codec codec;     /* of the layers' linears */
    size_t elem_nbytes;   /* of activations */
} tess_cost_model;

/**
 * Forward and backward of `token_numel` tokens, without optimizer and wire. `is_replayed`: the
 * layers' forward runs once more, in hardware FLOPs and bytes only.
 * @return as tess_codec_parts()
 */
TESS_MUST_CHECK tess_status tess_cost_model_step(const tess_cost_model *model, int64_t token_numel,
                                                 double square_numel, bool is_replayed,
                                                 tess_cost *out);

TESS_END_DECLS
