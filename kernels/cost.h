/**
 * FLOPs and bytes of what a device does: one record for plan, predictions and benchmarks. Closed
 * forms that fill it stand in kernels/cost_count.h.
 *
 * Model FLOPs are what the mathematics asks for once; hardware FLOPs count work that is done again
 * (scores in the backward of attention). A multiply-add is two. Causal attention counts the pairs
 * it sees. Elementwise work and norms are in the bytes, not in the FLOPs. Bytes are those that must
 * pass the device's memory when every operand is read and every result written once.
 */
#pragma once

#include "core/codec.h"

TESS_BEGIN_DECLS

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
 * but doubles: sums and multiples go over all of them but the widest. */
typedef struct tess_cost {
    double model_flops, hardware_flops;
    double nbytes; /* of device memory */
    /* The same work by what it is. */
    double product_flops[TESS_COST_EXTENT_NUMEL];
    double weight_numel[TESS_FORMAT_NUMEL]; /* elements of B of products, by how they are stored */
    double weight_nbytes;                   /* what their decoding reads and writes */
    double kept_nbytes;   /* of all decoded matrices, as tess_cuda_gemm_kept_nbytes() */
    double widest_nbytes; /* of those of one product: the most, where all else adds up */
    double op[TESS_COST_OP_NUMEL];
    double launch_numel;
    double unlisted_numel; /* launches without a closed form */
} tess_cost;

tess_cost tess_cost_sum(tess_cost a, tess_cost b);
tess_cost tess_cost_times(tess_cost a, double factor);

TESS_END_DECLS
