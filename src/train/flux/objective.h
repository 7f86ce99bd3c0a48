/**
 * The objective of a FLUX.1 run: flow matching between latents and noise.
 *
 *     x = (1 - sigma) z + sigma e,   target e - z,   loss = mean w(sigma) m (v - target)^2
 *
 * z: latent of a sample, e: standard normal, m: mask of a token. Everything random is a Philox
 * number keyed by the run's seed and the sample's number in the run (micro-batch number x samples
 * of one, plus its row), never by a rank. What the keys of section objective mean, in the order
 * of application:
 *
 *     timesteps     sigma in (0, 1]: see tess_objective_sigma()
 *     levels N      ceil(N sigma) / N
 *     shift S       S sigma / (1 + (S - 1) sigma)
 *     min, max      min / 1000 + (max - min) / 1000 sigma
 *
 * [Note: evaluation] Held-out sample i of N has sigma = (p(i) + 1/2) / N, p a permutation, and
 * noise, both the same in every evaluation of every run: losses of two runs compare, whatever they
 * were trained with, and one model has one loss, to the bit. No weighting, no caption dropout.
 *
 * @source flux.md: diffusers training_utils.py, SimpleTuner, sd-scripts flux_train_utils.py
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "train/run_file/run_file.h"

TESS_BEGIN_DECLS

typedef struct tess_objective {
    uint64_t seed;
    const tess_run_objective_keys *keys; /* borrowed */
} tess_objective;

static inline tess_objective tess_objective_of(const tess_run *run)
{
    return (tess_objective){(uint64_t)run->train.seed, &run->objective};
}

/* All Local and pure. */

/**
 * Share of noise of a sample of `token_numel` packed tokens. By objective.timesteps, u uniform in
 * (0, 1), N standard normal:
 *
 *     uniform       u
 *     logit-normal  1 / (1 + exp(-(mean + std N)))
 *     sigmoid       1 / (1 + exp(-scale N))
 *     beta          the alpha-th smallest of alpha + beta - 1 uniforms
 *     mode          u + s (cos(pi u / 2)^2 - 1 + u)
 *     fast          1 in seven of ten cases, else 0.75, 0.5 or 0.25
 */
double tess_objective_sigma(const tess_objective *o, int64_t sample, int64_t token_numel);
/** S of objective.shift: 1 without one. mu = 0.5 + (n - 256) 0.65 / 3840, S = exp(mu). */
double tess_objective_shift_factor(const tess_run_objective_keys *keys, int64_t token_numel);
/** S = exp(mu) of so many packed tokens. */
double tess_objective_resolution_shift(int64_t token_numel);
/** w: 1, sigma^-2, or 2 / (pi (1 - 2 sigma + 2 sigma^2)). */
double tess_objective_weight(const tess_run_objective_keys *keys, double sigma);
/** Guidance that the model is told. */
double tess_objective_guidance(const tess_objective *o, int64_t sample);
/** Whether a sample is trained with the empty caption. */
bool tess_objective_drops_caption(const tess_objective *o, int64_t sample);
/** e of a sample. @param[out] noise  [numel], as the latent [C, h, w] lies */
void tess_objective_noise(const tess_objective *o, int64_t sample, int64_t numel, float *noise);

/** sigma and noise of held-out sample `sample` of `sample_numel`, see [Note: evaluation]. */
double tess_objective_held_out_sigma(int64_t sample, int64_t sample_numel);
void tess_objective_held_out_noise(int64_t sample, int64_t numel, float *noise);

/**
 * Latent and noise become what the model takes and its target; in f64, rounded once.
 * @param[in,out] latent  [numel] z -> x   @param[in,out] noise  [numel] e -> e - z
 */
void tess_objective_mix(double sigma, int64_t numel, float *latent, float *noise);

/** A latent and its packed tokens. */
typedef struct tess_flux_image {
    int64_t channel_numel, height, width; /* of the latent; even sides */
} tess_flux_image;
/** packed[row (w/2) + column][4 c + 2 dy + dx] = latent[c][2 row + dy][2 column + dx].
 * @param[in] latent  [C, h, w]   @param[out] packed  [(h/2) (w/2), 4 C] */
void tess_flux_pack(const tess_flux_image *image, const float *latent, float *packed);
/** The inverse. */
void tess_flux_unpack(const tess_flux_image *image, const float *packed, float *latent);

TESS_END_DECLS
