/**
 * The FLUX.1 transformer: velocity of a packed latent, given text, a pooled text vector, time and
 * guidance.
 *
 * B samples of one size in a micro-batch, n image tokens and T text tokens each, S = T + n; H
 * hidden. Names of tensors and their shapes are those of diffusers' FluxTransformer2DModel, q, k, v
 * and MLP split; what files fuse is cut while it is read.
 *
 * [Note: dtypes] Inputs of a batch are f32 and rounded to the compute dtype once. Norms,
 * modulation, gates, rotations, softmax and the loss are f32 inside; what lies between ops has the
 * compute dtype. Time and guidance reach the model as sinusoids that the host computes in f64, so
 * no rounding of a timestep to bf16 can move them.
 *
 * [Note: loss of a sample] sum over its tokens t and channels c of weight[t] (v - target)^2. The
 * trainer puts 1 / (n C), the weighting of the timestep and the mask into `weight`, and counts
 * samples: the loss of a step is a mean over samples, whatever their sizes.
 *
 * @source diffusers 0.42 transformer_flux.py; black-forest-labs/flux src/flux/model.py
 */
#pragma once

#include "format/flux_config.h"
#include "model/model.h"

TESS_BEGIN_DECLS

enum { TESS_FLUX_SINUSOID_NUMEL = 256, TESS_FLUX_MLP_RATIO = 4 };

/** Largest batch of a run; sizes of arenas. */
typedef struct tess_flux_shape {
    int64_t sample_numel; /* B */
    int64_t image_numel;  /* n */
    int64_t text_numel;   /* T */
} tess_flux_shape;

/** One micro-batch; arrays lie where kernels read them unless said otherwise. */
typedef struct tess_flux_batch {
    int64_t sample_numel;             /* B, at most the planned one */
    int64_t image_numel;              /* n of every sample, at most the planned one */
    int64_t text_numel;               /* T of every sample, at most the planned one */
    const float *latent;              /* [B, n, in_channels] f32: noisy, packed */
    const float *text;                /* [B, T, text_dim] f32 */
    const float *pooled;              /* [B, pooled_dim] f32 */
    const float *time;                /* [B, 256] f32: tess_flux_sinusoid of 1000 t */
    const float *guidance;            /* [B, 256] f32: of 1000 g; NULL where the model has none */
    const float *rope_cos, *rope_sin; /* [T + n, head_dim / 2] f32: tess_flux_rope() */
    const float *target;              /* [B, n, out_channels] f32; NULL without a loss */
    const float *weight; /* [B, n] f32, see Note: loss of a sample; NULL without a loss */
    float *velocity;     /* TESS_CALL_LOGITS: [B, n, out_channels] f32 out, host memory, there when
                            the stream has passed the call */
} tess_flux_batch;

/**
 * Embedding of a time or a guidance: out[i] = cos(a f_i), out[128 + i] = sin(a f_i), f_i =
 * 10000^(-i / 128), i < 128; a = 1000 t. Computed in f64, rounded once. Local, pure.
 */
void tess_flux_sinusoid(double a, float out[TESS_FLUX_SINUSOID_NUMEL]);
/**
 * Angles of T text tokens (all 0), then of an image of `height` x `width` packed tokens in row
 * order: ids (0, row, column), angle of axis a and j < d_a / 2: id_a 10000^(-2 j / d_a). f64,
 * rounded once. Local, pure.
 * @param[out] cos, sin  [T + height * width, head_dim / 2] f32
 */
void tess_flux_rope(const tess_flux_config *config, int64_t text_numel, int64_t height,
                    int64_t width, float *cos, float *sin);
/**
 * Describe the model: fills `reg` (initialized, empty) with units embed, double.<i>, single.<i>,
 * final, and lays it out. Of `options` it does not read sequence_length and micro_batch. Local.
 * @return TESS_E_CONFIG sizes that do not fit together (named), TESS_E_UNSUPPORTED a backend
 * without the family's ops
 */
TESS_MUST_CHECK tess_status tess_flux_create(const tess_flux_config *config,
                                             const tess_flux_shape *shape,
                                             const tess_model_options *options, tess_registry *reg,
                                             tess_model **out);
TESS_END_DECLS
