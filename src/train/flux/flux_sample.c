/*
 * Latents sampled from a FLUX.1 transformer, on the ranks and in the memory that train it.
 *
 * [Note: rounds] Image i of all is row i % B of a micro-batch of rank i / B % W; a rank without
 * images takes part in the gathers alone. Rows of a micro-batch do not see one another, so neither
 * B nor W changes a bit.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "core/rng.h"
#include "format/json.h"
#include "format/safetensors.h"
#include "train/flux/flux_data.h"
#include "train/session_priv.h"

typedef struct sampler {
    tess_session *s;
    const tess_latent_request *request;
    tess_latents *cache;
    int64_t *caption_idx; /* [captions] in the cache */
    tess_flux_image image;
    tess_flux_shape shape; /* of a micro-batch: B, n, T */
    double shift;
    tess_safetensors_writer *writer; /* rank 0 */
} sampler;

/* ---- request ---- */

static tess_status find_caption(sampler *p, int64_t idx)
{
    const char *wanted = p->request->caption[idx];
    const int64_t numel = tess_latents_get_info(p->cache)->caption_numel;
    for (int64_t i = 0; i < numel; i++) {
        char *text = NULL;
        TESS_TRY(tess_latents_caption(p->cache, i, &text));
        const bool is_equal = strcmp(text, wanted) == 0;
        tess_free(text);
        if (is_equal) {
            p->caption_idx[idx] = i;
            return TESS_OK;
        }
    }
    return TESS_FAIL(TESS_E_CONFIG,
                     "sample: '%s' holds no text '%.100s'; text encoders do not run here: give one "
                     "of its %" PRId64 " captions (tessera inspect lists them), or a cache with it",
                     tess_latents_path(p->cache), wanted, numel);
}

static tess_status check_sizes(const sampler *p)
{
    const tess_latent_request *q = p->request;
    const tess_flux_shape *planned = &p->s->d.flux_shape;
    const tess_latents_info *info = tess_latents_get_info(p->cache);
    const int64_t side = TESS_LATENTS_PIXELS * TESS_LATENTS_PATCH;
    const int64_t packed = info->channel_numel * TESS_LATENTS_PATCH * TESS_LATENTS_PATCH;
    TESS_CHECK(q->height > 0 && q->width > 0 && q->height % side == 0 && q->width % side == 0,
               TESS_E_CONFIG,
               "sample: size %" PRId64 "x%" PRId64 ": expected multiples of %" PRId64 " pixels",
               q->width, q->height, side);
    TESS_CHECK(p->shape.image_numel <= planned->image_numel, TESS_E_CONFIG,
               "sample: size %" PRId64 "x%" PRId64 " has %" PRId64 " tokens, memory is planned for "
               "%" PRId64 "; set data.resolution",
               q->width, q->height, p->shape.image_numel, planned->image_numel);
    TESS_CHECK(info->text_numel <= planned->text_numel, TESS_E_CONFIG,
               "sample: texts of '%s' have %" PRId64 " tokens, memory is planned for %" PRId64
               "; set data.text_length",
               tess_latents_path(p->cache), info->text_numel, planned->text_numel);
    /* Fill, Canny and Depth take an image beside the latent. */
    TESS_CHECK(
        packed == p->s->d.flux.in_channels && packed == p->s->d.flux.out_channels, TESS_E_CONFIG,
        "sample: '%s' holds packed latents of %" PRId64 ", the model takes %" PRId64
        " and gives %" PRId64 ": expected a model that is told captions alone",
        tess_latents_path(p->cache), packed, p->s->d.flux.in_channels, p->s->d.flux.out_channels);
    TESS_CHECK(info->text_dim == p->s->d.flux.text_dim &&
                   info->pooled_dim == p->s->d.flux.pooled_dim,
               TESS_E_CONFIG,
               "sample: texts of '%s' have %" PRId64 " and %" PRId64 " dimensions, the model takes "
               "%" PRId64 " and %" PRId64,
               tess_latents_path(p->cache), info->text_dim, info->pooled_dim, p->s->d.flux.text_dim,
               p->s->d.flux.pooled_dim);
    TESS_CHECK(q->step_numel > 0 && q->image_numel > 0 && q->caption_numel > 0, TESS_E_ARG,
               "sample: %" PRId64 " steps, %" PRId64 " images of %" PRId64 " captions",
               q->step_numel, q->image_numel, q->caption_numel);
    return TESS_OK;
}

static tess_status prepare(sampler *p)
{
    const tess_latent_request *q = p->request;
    const tess_session *s = p->s;
    void *memory = NULL;
    TESS_TRY(tess_latents_open(s->ctx, q->cache != NULL ? q->cache : s->run->data.path, &p->cache));
    p->image = (tess_flux_image){s->d.flux.in_channels / 4, q->height / TESS_LATENTS_PIXELS,
                                 q->width / TESS_LATENTS_PIXELS};
    p->shape = (tess_flux_shape){s->d.flux_shape.sample_numel, p->image.height * p->image.width / 4,
                                 tess_latents_get_info(p->cache)->text_numel};
    TESS_TRY(check_sizes(p));
    TESS_TRY(tess_alloc_array(q->caption_numel, sizeof(int64_t), &memory));
    p->caption_idx = memory;
    for (int64_t i = 0; i < q->caption_numel; i++)
        TESS_TRY(find_caption(p, i));
    p->shift = q->shift;
    if (p->shift == 0.0)
        p->shift =
            s->d.flux.has_guidance ? tess_objective_resolution_shift(p->shape.image_numel) : 1.0;
    return TESS_OK;
}

/* ---- the file ---- */

/* A JSON list: captions may hold anything. */
static tess_status list_captions(const tess_latent_request *q, char **text)
{
    tess_json *list = NULL;
    TESS_TRY(tess_json_create_array(&list));
    tess_status st = TESS_OK;
    for (int64_t i = 0; i < q->caption_numel && st == TESS_OK; i++)
        st = tess_json_add_string(list, NULL, q->caption[i]);
    if (st == TESS_OK)
        st = tess_json_dump(list, 0, text, NULL);
    tess_json_destroy(&list);
    return st;
}

static tess_status create_output(sampler *p, const char *captions)
{
    const tess_latent_request *q = p->request;
    char text[8][64];
    const tess_st_tensor tensor = {.name = "latents",
                                   .dtype = TESS_ST_F32,
                                   .dim_numel = 4,
                                   .dim = {q->caption_numel * q->image_numel,
                                           p->image.channel_numel, p->image.height,
                                           p->image.width}};
    snprintf(text[0], sizeof text[0], "%" PRIu64, q->seed);
    snprintf(text[1], sizeof text[1], "%" PRId64, q->step_numel);
    snprintf(text[2], sizeof text[2], "%.9g", q->guidance);
    snprintf(text[3], sizeof text[3], "%.9g", p->shift);
    snprintf(text[4], sizeof text[4], "%" PRId64, p->s->step);
    snprintf(text[5], sizeof text[5], "%.4f", TESS_LATENTS_SCALE);
    snprintf(text[6], sizeof text[6], "%.4f", TESS_LATENTS_SHIFT);
    const tess_st_pair pair[] = {
        {"captions", captions}, {"seed", text[0]},      {"steps", text[1]},
        {"guidance", text[2]},  {"shift", text[3]},     {"trained_steps", text[4]},
        {"vae_scale", text[5]}, {"vae_shift", text[6]}, {"model", p->s->run->model.path}};
    return tess_safetensors_writer_create(p->s->ctx->io, q->output, &tensor, 1, pair,
                                          TESS_NELEM(pair), &p->writer);
}

static tess_status open_output(sampler *p)
{
    char *captions = NULL;
    TESS_TRY(list_captions(p->request, &captions));
    const tess_status st = create_output(p, captions);
    tess_free(captions);
    return st;
}

/* ---- steps ---- */

static int64_t latent_numel(const sampler *p)
{
    return p->image.channel_numel * p->image.height * p->image.width;
}

/* Sigma before step `i`; 0 behind the last. */
static double sigma_at(const sampler *p, int64_t i)
{
    const double even = 1.0 - (double)i / (double)p->request->step_numel;
    return p->shift * even / (1.0 + (p->shift - 1.0) * even);
}

/* Texts, guidance and noise of images [first, first + numel). */
static tess_status begin_images(sampler *p, int64_t first, int64_t numel)
{
    const tess_latents_info *info = tess_latents_get_info(p->cache);
    tess_flux_arrays *a = session_flux_arrays(p->s);
    float *noise = tess_flux_array(a, a->at.scratch[0]);
    tess_flux_put_rotations(&p->s->d.flux, p->shape.text_numel, p->image.height, p->image.width, a);
    for (int64_t i = 0; i < numel; i++) {
        const int64_t at = first + i, image = at % p->request->image_numel;
        const tess_rng rng = tess_rng_make(p->request->seed, TESS_RNG_LATENT, 0, (uint32_t)image);
        tess_rng_normal_fill(&rng, 0, latent_numel(p), 1.0F, noise);
        tess_flux_pack(&p->image, noise, tess_flux_array(a, a->at.latent) + i * latent_numel(p));
        tess_flux_sinusoid(1000.0 * p->request->guidance,
                           tess_flux_array(a, a->at.guidance) + i * TESS_FLUX_SINUSOID_NUMEL);
        TESS_TRY(tess_latents_read_text(p->cache, p->caption_idx[at / p->request->image_numel],
                                        tess_flux_array(a, a->at.text) +
                                            i * info->text_numel * info->text_dim,
                                        tess_flux_array(a, a->at.pooled) + i * info->pooled_dim));
    }
    return TESS_OK;
}

/* x += (sigma' - sigma) v. */
static void advance(const sampler *p, int64_t step, int64_t numel, const float *velocity)
{
    const tess_flux_arrays *a = session_flux_arrays(p->s);
    float *x = tess_flux_array(a, a->at.latent);
    const double d_sigma = sigma_at(p, step + 1) - sigma_at(p, step);
    for (int64_t i = 0; i < numel * latent_numel(p); i++)
        x[i] = (float)((double)x[i] + d_sigma * (double)velocity[i]);
}

/* One step of this rank's images; without any it takes part in the gathers. */
static tess_status run_step(sampler *p, int64_t step, int64_t numel)
{
    tess_session *s = p->s;
    tess_flux_arrays *a = session_flux_arrays(s);
    float *velocity = tess_flux_array(a, a->at.target);
    tess_flux_shape shape = p->shape;
    double loss_sum = 0.0;
    tess_status sent = TESS_OK;
    shape.sample_numel = numel;
    tess_flux_batch batch = tess_flux_batch_over(&s->d.flux, a, shape);
    batch.target = batch.weight = NULL;
    batch.velocity = velocity;
    if (numel > 0) {
        for (int64_t i = 0; i < numel; i++)
            tess_flux_sinusoid(1000.0 * sigma_at(p, step),
                               tess_flux_array(a, a->at.time) + i * TESS_FLUX_SINUSOID_NUMEL);
        sent = session_flux_send(s); /* who fails goes on taking part until all agree */
    }
    const bool is_part = numel > 0 && sent == TESS_OK;
    TESS_TRY(session_section(
        s, tess_runtime_forward(s->rt, TESS_CALL_LOGITS, is_part ? &batch : NULL, &loss_sum)));
    if (is_part)
        advance(p, step, numel, velocity);
    return session_agree(s, sent);
}

/* ---- rounds ---- */

static tess_status append(sampler *p, int64_t image, const float *packed)
{
    const tess_flux_arrays *a = session_flux_arrays(p->s);
    float *latent = tess_flux_array(a, a->at.scratch[1]);
    tess_flux_unpack(&p->image, packed, latent);
    for (int64_t i = 0; i < latent_numel(p); i++)
        TESS_CHECK(isfinite(latent[i]), TESS_E_NUMERIC,
                   "sample: image %" PRId64 " has a latent that is not finite", image);
    return tess_safetensors_writer_append(p->writer, 0, latent,
                                          (size_t)latent_numel(p) * sizeof *latent);
}

/* Images of a round, rank by rank, to rank 0. */
static tess_status collect(sampler *p, int64_t first, int64_t numel)
{
    tess_comm *world = p->s->world;
    const tess_flux_arrays *a = session_flux_arrays(p->s);
    const int64_t batch = p->shape.sample_numel;
    float *shared = tess_flux_array(a, a->at.scratch[0]);
    tess_status st = TESS_OK;
    for (int64_t i = 0; i < numel; i++) {
        const int owner = (int)(i / batch);
        const size_t nbytes = (size_t)latent_numel(p) * sizeof(float);
        if (owner == tess_comm_rank(world))
            memcpy(shared, tess_flux_array(a, a->at.latent) + i % batch * latent_numel(p), nbytes);
        TESS_TRY(tess_comm_bcast(world, owner, shared, nbytes));
        if (p->writer != NULL && st == TESS_OK)
            st = append(p, first + i, shared);
    }
    return session_agree(p->s, st);
}

static tess_status run_rounds(sampler *p)
{
    tess_session *s = p->s;
    const int64_t all = p->request->caption_numel * p->request->image_numel;
    const int64_t batch = p->shape.sample_numel, round = batch * tess_comm_world(s->world);
    for (int64_t first = 0; first < all; first += round) {
        const int64_t own = first + batch * tess_comm_rank(s->world);
        const int64_t numel = TESS_MAX(TESS_MIN(all - own, batch), INT64_C(0));
        tess_status st = session_begin_batch(s);
        if (st == TESS_OK)
            st = begin_images(p, own, numel);
        TESS_TRY(session_agree(s, st));
        for (int64_t step = 0; step < p->request->step_numel; step++) {
            if (p->request->tick != NULL)
                p->request->tick(p->request->tick_arg);
            TESS_TRY(run_step(p, step, numel));
        }
        TESS_TRY(collect(p, first, TESS_MIN(all - first, round)));
    }
    return TESS_OK;
}

static tess_status sample(sampler *p)
{
    const bool is_root = tess_comm_rank(p->s->world) == 0;
    const tess_weights before = p->s->shown;
    TESS_TRY(session_agree(p->s, prepare(p)));
    TESS_TRY(session_agree(p->s, is_root ? open_output(p) : TESS_OK));
    TESS_TRY(session_show(p->s, session_weights(p->s->run->train.eval_weights)));
    const tess_status st = run_rounds(p);
    if (!tess_session_is_broken(p->s))
        TESS_TRY(session_show(p->s, before));
    TESS_TRY(st);
    return session_agree(p->s, is_root ? tess_safetensors_writer_finish(p->writer) : TESS_OK);
}

tess_status tess_session_sample_latents(tess_session *s, const tess_latent_request *request)
{
    TESS_CHECK(tess_run_is_flux(s->run), TESS_E_UNSUPPORTED,
               "sample: the run is of no diffusion model: it has no latents");
    sampler p = {.s = s, .request = request};
    const tess_status st = sample(&p);
    tess_safetensors_writer_destroy(&p.writer);
    tess_latents_close(&p.cache);
    tess_free(p.caption_idx);
    return st;
}

/* ---- while training ---- */

tess_latent_request tess_session_latent_request(const tess_session *s)
{
    const tess_run_sample_keys *k = &s->run->sample;
    return (tess_latent_request){.caption = (const char *const *)k->prompts.item,
                                 .caption_numel = k->prompts.item_numel,
                                 .image_numel = k->images,
                                 .height = k->height,
                                 .width = k->width,
                                 .step_numel = k->steps,
                                 .guidance = k->guidance,
                                 .seed = (uint64_t)k->seed};
}

tess_status session_check_images(tess_session *s)
{
    const tess_latent_request request = tess_session_latent_request(s);
    sampler p = {.s = s, .request = &request};
    const tess_status st = request.caption_numel > 0 ? prepare(&p) : TESS_OK;
    tess_latents_close(&p.cache);
    tess_free(p.caption_idx);
    return st;
}

tess_status session_sample_images(tess_session *s, void (*tick)(void *arg), void *arg)
{
    char name[64], path[1024];
    tess_latent_request request = tess_session_latent_request(s);
    tess_status st = session_path(s, "samples", path);
    if (st == TESS_OK && tess_comm_rank(s->world) == 0)
        st = tess_io_mkdirs(s->ctx->io, path);
    TESS_TRY(session_agree(s, st));
    snprintf(name, sizeof name, "samples/step-%08" PRId64 ".safetensors", s->step);
    TESS_TRY(session_agree(s, session_path(s, name, path)));
    request.output = path;
    request.tick = tick;
    request.tick_arg = arg;
    TESS_TRY(tess_session_sample_latents(s, &request));
    tess_log_root(&s->ctx->log, TESS_LOG_INFO, "sampled '%s'", path);
    return TESS_OK;
}
