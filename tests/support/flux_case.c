#include "support/flux_case.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"

/* ---- data ---- */

float flux_hash_value(const char *name, int64_t i, double off, double scale)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (const char *p = name; *p != '\0'; p++)
        h = (h ^ (uint64_t)(unsigned char)*p) * 0x100000001b3u;
    uint64_t z = h + (uint64_t)i + 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    const double u = (double)(z >> 11) * 0x1p-53;
    return (float)(off + scale * (2.0 * u - 1.0));
}

static bool ends_with(const char *name, const char *end)
{
    const size_t a = strlen(name), b = strlen(end);
    return a >= b && strcmp(name + a - b, end) == 0;
}

void flux_hash_fill(const char *name, int64_t rows, int64_t cols, float *out)
{
    double off = 0.0, scale = 0.1;
    if (ends_with(name, ".lora_magnitude_vector") ||
        (rows == 1 && ends_with(name, ".weight") && strstr(name, "norm") != NULL))
        off = 1.0;
    else if (ends_with(name, ".weight") && !ends_with(name, ".lora_B.weight"))
        scale = sqrt(3.0 / (double)cols);
    for (int64_t i = 0; i < rows * cols; i++)
        out[i] = flux_hash_value(name, i, off, scale);
}

/* ---- choices ---- */

flux_choice flux_tiny(void)
{
    return (flux_choice){.config = {.in_channels = 16,
                                    .out_channels = 16,
                                    .double_numel = 2,
                                    .single_numel = 2,
                                    .head_numel = 4,
                                    .head_dim = 16,
                                    .text_dim = 32,
                                    .pooled_dim = 32,
                                    .has_guidance = true,
                                    .axis_dim = {4, 6, 6}},
                         .dt = TESS_F32,
                         .sample_numel = 1,
                         .height = 4,
                         .width = 4,
                         .text_numel = 8,
                         .thread_numel = 1};
}

const char *const flux_golden_targets[] = {
    "transformer_blocks.0.attn.to_q",        "transformer_blocks.0.attn.add_k_proj",
    "transformer_blocks.1.ff_context.net.2", "transformer_blocks.1.norm1.linear",
    "single_transformer_blocks.0.attn.to_v", "single_transformer_blocks.1.proj_mlp",
    "single_transformer_blocks.1.proj_out",  NULL};

const char *const flux_every_target[] = {"*", NULL};

static tess_status lora_of(void *arg, const char *path, bool is_head, tess_lora_choice *out)
{
    const flux_choice *o = arg;
    (void)is_head;
    *out = (tess_lora_choice){0};
    for (const char *const *name = o->targets; name != NULL && *name != NULL; name++)
        if (**name == '*' ? ends_with(path, *name + 1) : strcmp(path, *name) == 0)
            *out = (tess_lora_choice){
                .rank = 2, .scale = 2.0, .is_dora = o->is_dora, .shares_a = o->shares_a};
    return TESS_OK;
}

static tess_status source_of(void *arg, const tess_param *p, tess_codec *out)
{
    const flux_choice *o = arg;
    (void)p;
    *out = (tess_codec){.format = o->is_random ? TESS_FORMAT_BF16 : TESS_FORMAT_F32};
    return TESS_OK;
}

static tess_status codec_of(void *arg, const tess_param *p, bool is_linear, tess_codec source,
                            tess_codec *out)
{
    const flux_choice *o = arg;
    *out = source;
    if (o->base == TESS_FORMAT_F32 || !is_linear || p->shape[1] < 64)
        return TESS_OK;
    out->format = o->base;
    out->block_numel = p->shape[1];
    if (o->base == TESS_FORMAT_NF4) {
        out->block_numel = 64;
        out->double_quant = true;
    } else if (o->base == TESS_FORMAT_QINT4) {
        out->block_numel = tess_codec_group_numel(p->shape[1]);
        out->scale_dt = TESS_BF16;
    }
    return TESS_OK;
}

static void must(tess_status st)
{
    if (st == TESS_OK)
        return;
    fprintf(stderr, "%s: %s\n%s\n", tess_status_name(st), tess_error_message(),
            tess_error_trace_text());
    abort();
}

static void fill_weights(stage_chain *c)
{
    for (int i = 0; i < c->reg.param_numel; i++) {
        const tess_param *p = &c->reg.param[i];
        const int64_t rows = p->shape_rank == 1 ? 1 : p->shape[0];
        flux_hash_fill(p->name, rows, p->numel / rows, stage_chain_master(c, p->name));
    }
}

tess_status flux_describe(const flux_choice *o, tess_registry *reg, tess_model **model)
{
    const tess_flux_shape shape = {.sample_numel = o->sample_numel,
                                   .image_numel = o->height * o->width,
                                   .text_numel = o->text_numel};
    const tess_model_options options = {.compute_dt = o->dt,
                                        .is_full = o->is_full,
                                        .is_random = o->is_random,
                                        .thread_numel = o->thread_numel,
                                        .dropout = o->dropout,
                                        .kernels = o->planned,
                                        .start = o->start,
                                        .lora_plus_ratio = 1.0,
                                        .arg = (void *)(uintptr_t)o,
                                        .lora_of = lora_of,
                                        .source_of = source_of,
                                        .codec_of = codec_of};
    return tess_flux_create(&o->config, &shape, &options, reg, model);
}

stage_chain flux_open(const flux_choice *o)
{
    stage_chain c = {.is_recomputed = o->is_recomputed, .kernels = o->kernels};
    must(tess_kernels_cpu_select(tess_cpu_path_best()));
    tess_registry_init(&c.reg, o->dt);
    must(flux_describe(o, &c.reg, &c.model));
    must(stage_chain_init(&c, o->thread_numel));
    fill_weights(&c);
    must(stage_chain_publish(&c));
    return c;
}

/* ---- batches ---- */

static float *take(flux_inputs *x, int64_t numel)
{
    void *memory = NULL;
    must(tess_alloc_array(numel, sizeof(float), &memory));
    x->memory[x->memory_numel++] = memory;
    return memory;
}

/* Names of sample k's inputs. */
static void fill_input(const char *name, int sample, int64_t numel, float *out)
{
    char full[64];
    snprintf(full, sizeof full, sample == 0 ? "%s" : "%s.%d", name, sample);
    for (int64_t i = 0; i < numel; i++)
        out[i] = flux_hash_value(full, i, 0.0, 1.0);
}

static double sigma_of(int sample) { return sample % 2 == 0 ? 0.75 : 0.25; }

/* Packed noisy latent (channel 4 c + 2 dy + dx of token (row, col)) and target. */
static void pack(const flux_choice *o, int sample, float *latent, float *target)
{
    const int64_t h = 2 * o->height, w = 2 * o->width, channels = o->config.in_channels / 4;
    const double sigma = sigma_of(sample);
    float *x0 = calloc((size_t)(channels * h * w), sizeof *x0);
    float *noise = calloc((size_t)(channels * h * w), sizeof *noise);
    fill_input("input.latent", sample, channels * h * w, x0);
    fill_input("input.noise", sample, channels * h * w, noise);
    for (int64_t c = 0; c < channels; c++)
        for (int64_t y = 0; y < h; y++)
            for (int64_t x = 0; x < w; x++) {
                const int64_t from = (c * h + y) * w + x;
                const int64_t token = y / 2 * o->width + x / 2;
                const int64_t to = token * o->config.in_channels + c * 4 + y % 2 * 2 + x % 2;
                latent[to] =
                    (float)((1.0 - sigma) * (double)x0[from] + sigma * (double)noise[from]);
                target[to] = (float)((double)noise[from] - (double)x0[from]);
            }
    free(x0);
    free(noise);
}

flux_inputs flux_inputs_open(const flux_choice *o, int first, int sample_numel)
{
    flux_inputs x = {0};
    const tess_flux_config *c = &o->config;
    const int64_t n = o->height * o->width, t = o->text_numel, half = c->head_dim / 2;
    float *latent = take(&x, sample_numel * n * c->in_channels);
    float *target = take(&x, sample_numel * n * c->in_channels);
    float *weight = take(&x, sample_numel * n), *text = take(&x, sample_numel * t * c->text_dim);
    float *pooled = take(&x, sample_numel * c->pooled_dim);
    float *time = take(&x, sample_numel * TESS_FLUX_SINUSOID_NUMEL);
    float *guidance = take(&x, sample_numel * TESS_FLUX_SINUSOID_NUMEL);
    float *cosine = take(&x, (t + n) * half), *sine = take(&x, (t + n) * half);
    for (int64_t b = 0; b < sample_numel; b++) {
        const int sample = first + (int)b;
        pack(o, sample, latent + b * n * c->in_channels, target + b * n * c->in_channels);
        fill_input("input.prompt", sample, t * c->text_dim, text + b * t * c->text_dim);
        fill_input("input.pooled", sample, c->pooled_dim, pooled + b * c->pooled_dim);
        tess_flux_sinusoid(1000.0 * sigma_of(sample), time + b * TESS_FLUX_SINUSOID_NUMEL);
        tess_flux_sinusoid(1000.0 * (sample % 2 == 0 ? 3.5 : 1.0),
                           guidance + b * TESS_FLUX_SINUSOID_NUMEL);
        for (int64_t i = 0; i < n; i++)
            weight[b * n + i] = (float)(1.0 / (double)(n * c->out_channels));
    }
    tess_flux_rope(c, t, o->height, o->width, cosine, sine);
    float *velocity = take(&x, sample_numel * n * c->out_channels);
    x.batch = (tess_flux_batch){.sample_numel = sample_numel,
                                .image_numel = n,
                                .text_numel = t,
                                .latent = latent,
                                .text = text,
                                .pooled = pooled,
                                .time = time,
                                .guidance = c->has_guidance ? guidance : NULL,
                                .rope_cos = cosine,
                                .rope_sin = sine,
                                .target = target,
                                .weight = weight,
                                .velocity = velocity};
    return x;
}

void flux_inputs_close(flux_inputs *x)
{
    for (int i = 0; i < x->memory_numel; i++)
        tess_free(x->memory[i]);
    *x = (flux_inputs){0};
}

/* ---- the same in fp64 ---- */

static float rounded(float x, bool is_bf16)
{
    return is_bf16 ? tess_bf16_to_f32(tess_bf16_from_f32(x)) : x;
}

static const double *widened(flux_twin *t, const float *x, int64_t numel, bool is_bf16)
{
    double *out = calloc((size_t)numel, sizeof *out);
    t->memory[t->memory_numel++] = out;
    for (int64_t i = 0; i < numel; i++)
        out[i] = (double)rounded(x[i], is_bf16);
    return out;
}

static void add_weights(const flux_choice *o, stage_chain *c, flux_twin *t)
{
    for (int i = 0; i < c->reg.param_numel; i++) {
        const tess_param *p = &c->reg.param[i];
        const int64_t rows = p->shape_rank == 1 ? 1 : p->shape[0];
        const tape_node n = flux_reference_add(&t->f, p->name, rows, p->numel / rows);
        const float *x = stage_chain_master(c, p->name);
        /* Matrices round to the compute dtype as operands of products, vectors do not. */
        const bool is_bf16 = o->dt == TESS_BF16 && (p->role == TESS_ROLE_TRAINABLE || rows > 1);
        for (int64_t k = 0; k < p->numel; k++)
            tape_value(t->f.t, n)[k] = (double)rounded(x[k], is_bf16);
    }
}

void flux_twin_open(const flux_choice *o, stage_chain *c, const flux_inputs *x, flux_wrong wrong,
                    flux_twin *t)
{
    const tess_flux_config *f = &o->config;
    const tess_flux_batch *b = &x->batch;
    const bool is_bf16 = o->dt == TESS_BF16;
    const int64_t n = b->image_numel, rows = b->text_numel + n, half = f->head_dim / 2;
    memset(t, 0, sizeof *t);
    t->f = (flux_reference){.t = tape_create(),
                            .lora_scale = 2.0,
                            .double_numel = (int)f->double_numel,
                            .single_numel = (int)f->single_numel,
                            .head_numel = f->head_numel,
                            .head_dim = f->head_dim,
                            .has_guidance = f->has_guidance,
                            .wrong = wrong};
    add_weights(o, c, t);
    for (int i = 0; i < b->sample_numel; i++) {
        const flux_sample s = {
            .image_numel = n,
            .text_numel = b->text_numel,
            .channels = f->in_channels,
            .text_dim = f->text_dim,
            .pooled_dim = f->pooled_dim,
            .latent = widened(t, b->latent + i * n * f->in_channels, n * f->in_channels, is_bf16),
            .text = widened(t, b->text + i * b->text_numel * f->text_dim,
                            b->text_numel * f->text_dim, is_bf16),
            .pooled = widened(t, b->pooled + i * f->pooled_dim, f->pooled_dim, is_bf16),
            .time = widened(t, b->time + i * 256, 256, is_bf16),
            .guidance =
                b->guidance == NULL ? NULL : widened(t, b->guidance + i * 256, 256, is_bf16),
            .cosine = widened(t, b->rope_cos, rows * half, false),
            .sine = widened(t, b->rope_sin, rows * half, false),
            .target = widened(t, b->target + i * n * f->out_channels, n * f->out_channels, false),
            .weight = widened(t, b->weight + i * n, n, false)};
        t->output[i] = flux_reference_run(&t->f, &s);
        const tape_node loss = tape_square_error(t->f.t, t->output[i], s.target, s.weight);
        t->loss = i == 0 ? loss : tape_add(t->f.t, t->loss, loss);
    }
}

void flux_twin_close(flux_twin *t)
{
    for (int i = 0; i < t->memory_numel; i++)
        free(t->memory[i]);
    tape_destroy(t->f.t);
}
