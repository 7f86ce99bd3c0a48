/**
 * Quantizers whose code is a level per dimension: finite scalar quantization (Mentzer et al.,
 * Finite Scalar Quantization, 2023) and latent quantization (Hsu et al., Disentanglement via Latent
 * Quantization, 2023). No codebook: a vector's index follows from its levels.
 *
 * f32 inside, one rounding on the way out. index = sum_j level_j * prod_{i<j} L_i in integers: the
 * first dimension is the least significant. Every element depends on itself alone.
 */
#pragma once

#include "core/rng.h"
#include "core/stream.h"
#include "core/view.h"

TESS_BEGIN_DECLS

enum { TESS_LEVEL_DIM_MAX = 32 };

/**
 * How a number z becomes one of L levels; hw = L / 2 (integers), off = 1/2 for even L, else 0.
 *
 * UPPER and LOWER: r = round-half-even(b), b = tanh(z + shift) half - off; code r / hw, level r +
 * hw; dz = g half / hw (1 - tanh^2(z + shift)). UPPER (vector-quantize-pytorch): half = (L-1)(1 +
 * 1e-3) / 2, shift = atanh(off / half). LOWER (google-research, fsq.ipynb): half = (L-1)(1 - 1e-3)
 * / 2, shift = tan(off / half).
 *
 * SYMMETRIC: level k = floor((L-1)(t + 1) / 2 + 1/2) with t = tanh(z), code 2k / (L-1) - 1; dz = g
 * (1 - t^2). CLAMPED: the same with t = z clamped to [-1, 1]; dz = g where |z| <= 1, else 0.
 *
 * half, shift and off are formed in fp64 and rounded to f32. A level past the first or the last is
 * that one; NaN has none.
 */
typedef enum tess_level_rule {
    TESS_LEVEL_UPPER,
    TESS_LEVEL_LOWER,
    TESS_LEVEL_SYMMETRIC,
    TESS_LEVEL_CLAMPED,
} tess_level_rule;

/** Levels of each dimension, with a scale for stacks: z = x / scale, and codes are times it. */
typedef struct tess_levels {
    const int32_t *levels; /* [dim] at least 2; host memory; their product below 2^32 - 1 */
    const float *scale;    /* [dim] above 0, host memory; NULL: 1 */
    int64_t dim;           /* at most TESS_LEVEL_DIM_MAX */
    tess_level_rule rule;
} tess_levels;

/**
 * out = code of x, index. With noise (SYMMETRIC and CLAMPED): after the index, with probability p
 * per element, code += u - 1/2, clamped to [-1, 1], before the scale: two draws per element, word <
 * p 2^32 decides, the next one gives u.
 */
typedef struct tess_quantizer_level_args {
    tess_levels levels;
    tess_view x; /* [row_numel, dim] f32 or bf16 */
    int64_t row_numel;
    int64_t x_stride, out_stride; /* elements between rows, 0: contiguous */
    tess_view out;                /* [row_numel, dim] f32 or bf16; may be x where both are alike */
    uint32_t *index;              /* [row_numel] out; NULL: not wanted */
    double noise;                 /* p, 0 <= p <= 1; 0: none */
    tess_rng rng;                 /* words 2 e and 2 e + 1 of element e */
    int64_t first_idx;            /* e of the first element: global row * dim */
    const float *uniform;         /* [row_numel, dim, 2] draws in [0, 1) instead; NULL */
} tess_quantizer_level_args;

/** out = codes of indices. An index past the last one is refused on the host. */
typedef struct tess_quantizer_level_decode_args {
    tess_levels levels;
    const uint32_t *index; /* [row_numel] */
    int64_t row_numel;
    int64_t out_stride;
    tess_view out; /* [row_numel, dim] f32 or bf16 */
} tess_quantizer_level_decode_args;

/** d_x (+)= gradient of the rule at x, in f32, one rounding. The scale cancels. */
typedef struct tess_quantizer_level_backward_args {
    tess_levels levels;
    tess_view x;     /* [row_numel, dim] f32 or bf16, input of the forward */
    tess_view d_out; /* [row_numel, dim] f32 or bf16 */
    int64_t row_numel;
    int64_t x_stride, d_out_stride, d_x_stride;
    tess_view d_x; /* [row_numel, dim] f32 or bf16 */
    bool accumulate;
} tess_quantizer_level_backward_args;

/** Soft clamp of a stack's input: y = c tanh(x / c), c = 1 + 1 / (L - 1) per dimension. */
typedef struct tess_quantizer_soft_clamp_args {
    const int32_t *levels; /* [dim], host memory */
    int64_t row_numel, dim;
    tess_view x; /* [row_numel, dim] f32 or bf16, contiguous */
    float *y;    /* [row_numel, dim] f32 out */
} tess_quantizer_soft_clamp_args;

/** d_x = d_y (1 - tanh^2(x / c)). */
typedef struct tess_quantizer_soft_clamp_backward_args {
    const int32_t *levels;
    int64_t row_numel, dim;
    tess_view x;      /* of the forward */
    const float *d_y; /* [row_numel, dim] f32 */
    tess_view d_x;    /* [row_numel, dim] f32 or bf16, contiguous */
} tess_quantizer_soft_clamp_backward_args;

/** Lists of values, one per dimension. */
typedef struct tess_latents {
    const float *value;    /* [sum of levels] f32: the values of dimension 0, of 1, ... */
    const int32_t *levels; /* [dim], host memory; their product below 2^32 - 1 */
    int64_t dim;           /* at most TESS_LEVEL_DIM_MAX */
} tess_latents;

/** out_j = the value of dimension j nearest to x_j, the lower position where two are equally near;
 * the index is of positions, whatever the values are. The straight-through gradient and the losses
 * are those of vectors with a code row each (quantizer_vector.h, `code` NULL). */
typedef struct tess_quantizer_latent_args {
    tess_latents latents;
    const float *x; /* [row_numel, dim] f32 */
    int64_t row_numel;
    float *out;      /* [row_numel, dim] f32; may be x */
    uint32_t *index; /* [row_numel] out */
} tess_quantizer_latent_args;

/** out = values of indices; the largest number, no code, gives NaN. */
typedef struct tess_quantizer_latent_decode_args {
    tess_latents latents;
    const uint32_t *index; /* [row_numel] */
    int64_t row_numel;
    float *out; /* [row_numel, dim] f32 */
} tess_quantizer_latent_decode_args;

/** d_value += coefficient (value - x) of every vector that has a code, rows ascending: learned
 * values. */
typedef struct tess_quantizer_latent_gradient_args {
    tess_latents latents;
    const float *x;        /* [row_numel, dim] f32 */
    const uint32_t *index; /* [row_numel] */
    int64_t row_numel;
    float coefficient;
    float *d_value; /* [sum of levels] f32, in place */
} tess_quantizer_latent_gradient_args;

TESS_MUST_CHECK tess_status tess_quantizer_level_check(const tess_quantizer_level_args *a);
TESS_MUST_CHECK tess_status
tess_quantizer_level_decode_check(const tess_quantizer_level_decode_args *a);
TESS_MUST_CHECK tess_status
tess_quantizer_level_backward_check(const tess_quantizer_level_backward_args *a);
TESS_MUST_CHECK tess_status
tess_quantizer_soft_clamp_check(const tess_quantizer_soft_clamp_args *a);
TESS_MUST_CHECK tess_status
tess_quantizer_soft_clamp_backward_check(const tess_quantizer_soft_clamp_backward_args *a);
TESS_MUST_CHECK tess_status tess_quantizer_latent_check(const tess_quantizer_latent_args *a);
TESS_MUST_CHECK tess_status
tess_quantizer_latent_decode_check(const tess_quantizer_latent_decode_args *a);
TESS_MUST_CHECK tess_status
tess_quantizer_latent_gradient_check(const tess_quantizer_latent_gradient_args *a);

TESS_END_DECLS
