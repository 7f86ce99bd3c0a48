#include "train/flux/objective.h"

#include <math.h>
#include <string.h>

#include "core/rng.h"

static const double pi = 3.14159265358979323846;

static tess_rng rng_of(uint64_t seed, tess_rng_purpose purpose, int64_t sample)
{
    const uint64_t key = (uint64_t)sample;
    return tess_rng_make(seed, purpose, (uint32_t)(key >> 32), (uint32_t)key);
}

/* In (0, 1), all 32 bits. */
static double uniform(const tess_rng *rng, uint64_t element)
{
    return ((double)tess_rng_u32(rng, element) + 0.5) * 0x1p-32;
}

/* ---- sigma ---- */

static double logistic(double x) { return 1.0 / (1.0 + exp(-x)); }

static double draw_beta(const tess_rng *rng, int64_t alpha, int64_t beta)
{
    double sorted[128]; /* alpha and beta are at most 64 */
    for (int64_t i = 0; i < alpha + beta - 1; i++) {
        const double u = uniform(rng, (uint64_t)i);
        int64_t at = i;
        for (; at > 0 && sorted[at - 1] > u; at--)
            sorted[at] = sorted[at - 1];
        sorted[at] = u;
    }
    return sorted[alpha - 1];
}

static double draw_mode(double u, double scale)
{
    const double c = cos(pi * u / 2.0);
    return u + scale * (c * c - 1.0 + u);
}

static double draw_fast(double u)
{
    static const double last[] = {0.75, 0.5, 0.25};
    const int tenth = (int)(10.0 * u);
    return tenth < 7 ? 1.0 : last[tenth - 7];
}

static double draw(const tess_run_objective_keys *k, const tess_rng *rng)
{
    switch (k->timesteps) {
    case TESS_RUN_TIMESTEPS_UNIFORM:
        return uniform(rng, 0);
    case TESS_RUN_TIMESTEPS_LOGIT_NORMAL:
        return logistic(k->logit_mean + k->logit_std * tess_rng_normal(rng, 0));
    case TESS_RUN_TIMESTEPS_SIGMOID:
        return logistic(k->sigmoid_scale * tess_rng_normal(rng, 0));
    case TESS_RUN_TIMESTEPS_BETA:
        return draw_beta(rng, k->beta_alpha, k->beta_beta);
    case TESS_RUN_TIMESTEPS_MODE:
        return draw_mode(uniform(rng, 0), k->mode_scale);
    case TESS_RUN_TIMESTEPS_FAST:
        return draw_fast(uniform(rng, 0));
    }
    return 1.0;
}

double tess_objective_resolution_shift(int64_t token_numel)
{
    return exp(0.5 + (double)(token_numel - 256) * (1.15 - 0.5) / (4096 - 256));
}

double tess_objective_shift_factor(const tess_run_objective_keys *keys, int64_t token_numel)
{
    switch (keys->shift) {
    case TESS_RUN_SHIFT_NONE:
        break;
    case TESS_RUN_SHIFT_STATIC:
        return keys->shift_factor;
    case TESS_RUN_SHIFT_AUTO:
        return tess_objective_resolution_shift(token_numel);
    }
    return 1.0;
}

double tess_objective_sigma(const tess_objective *o, int64_t sample, int64_t token_numel)
{
    const tess_run_objective_keys *k = o->keys;
    const tess_rng rng = rng_of(o->seed, TESS_RNG_SIGMA, sample);
    const double s = tess_objective_shift_factor(k, token_numel);
    double sigma = draw(k, &rng);
    if (k->timesteps == TESS_RUN_TIMESTEPS_FAST) /* a list of its own: neither rounded nor moved */
        return (k->min_timestep + (k->max_timestep - k->min_timestep) * sigma) / 1000.0;
    if (k->levels > 0)
        sigma = TESS_MAX(ceil(sigma * (double)k->levels), 1.0) / (double)k->levels;
    sigma = s * sigma / (1.0 + (s - 1.0) * sigma);
    return (k->min_timestep + (k->max_timestep - k->min_timestep) * sigma) / 1000.0;
}

double tess_objective_weight(const tess_run_objective_keys *keys, double sigma)
{
    switch (keys->weighting) {
    case TESS_RUN_WEIGHTING_NONE:
        break;
    case TESS_RUN_WEIGHTING_SIGMA_SQRT:
        return 1.0 / (sigma * sigma);
    case TESS_RUN_WEIGHTING_COSMAP:
        return 2.0 / (pi * (1.0 - 2.0 * sigma + 2.0 * sigma * sigma));
    }
    return 1.0;
}

double tess_objective_held_out_sigma(int64_t sample, int64_t sample_numel)
{
    const tess_rng rng = rng_of(0, TESS_RNG_HELD_OUT_SIGMA, 0);
    return ((double)tess_rng_permute(&rng, sample_numel, sample) + 0.5) / (double)sample_numel;
}

/* ---- other draws ---- */

double tess_objective_guidance(const tess_objective *o, int64_t sample)
{
    const tess_run_objective_keys *k = o->keys;
    const tess_rng rng = rng_of(o->seed, TESS_RNG_GUIDANCE, sample);
    if (k->guidance_mode == TESS_RUN_GUIDANCE_CONSTANT)
        return k->guidance;
    return k->guidance_min + (k->guidance_max - k->guidance_min) * uniform(&rng, 0);
}

bool tess_objective_drops_caption(const tess_objective *o, int64_t sample)
{
    const tess_rng rng = rng_of(o->seed, TESS_RNG_CAPTION, sample);
    return uniform(&rng, 0) < o->keys->caption_dropout;
}

void tess_objective_noise(const tess_objective *o, int64_t sample, int64_t numel, float *noise)
{
    const tess_rng rng = rng_of(o->seed, TESS_RNG_NOISE, sample);
    tess_rng_normal_fill(&rng, 0, numel, 1.0F, noise);
}

void tess_objective_held_out_noise(int64_t sample, int64_t numel, float *noise)
{
    const tess_rng rng = rng_of(0, TESS_RNG_HELD_OUT_NOISE, sample);
    tess_rng_normal_fill(&rng, 0, numel, 1.0F, noise);
}

/* ---- arrays ---- */

void tess_objective_mix(double sigma, int64_t numel, float *latent, float *noise)
{
    for (int64_t i = 0; i < numel; i++) {
        const double z = (double)latent[i], e = (double)noise[i];
        latent[i] = (float)((1.0 - sigma) * z + sigma * e);
        noise[i] = (float)(e - z);
    }
}

/* Place of element (c, y, x) among the packed tokens. */
static int64_t packed_at(const tess_flux_image *image, int64_t c, int64_t y, int64_t x)
{
    const int64_t token = y / 2 * (image->width / 2) + x / 2;
    return token * 4 * image->channel_numel + 4 * c + 2 * (y % 2) + x % 2;
}

void tess_flux_pack(const tess_flux_image *image, const float *latent, float *packed)
{
    for (int64_t c = 0; c < image->channel_numel; c++)
        for (int64_t y = 0; y < image->height; y++)
            for (int64_t x = 0; x < image->width; x++)
                packed[packed_at(image, c, y, x)] = *latent++;
}

void tess_flux_unpack(const tess_flux_image *image, const float *packed, float *latent)
{
    for (int64_t c = 0; c < image->channel_numel; c++)
        for (int64_t y = 0; y < image->height; y++)
            for (int64_t x = 0; x < image->width; x++)
                *latent++ = packed[packed_at(image, c, y, x)];
}
