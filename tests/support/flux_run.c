#include "support/flux_run.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "core/memory.h"
#include "core/rng.h"
#include "format/flux_names.h"
#include "format/safetensors.h"
#include "support/flux_case.h"
#include "train/data/latents.h"

/* M = 5 micro-batches of B = 2 samples divide by no number of ranks above 1. */
static const char run_text[] =
    "model: {path: %s}\n" /* in whatever layout: the family is found */
    "%s"
    "data: {path: %s, eval_path: %s}\n"
    "objective: {timesteps: sigmoid, caption_dropout: 0.2, guidance: 1.0}\n"
    "train: {steps: 4, micro_batch: 2, micro_batches: 5, learning_rate: 1.0e-2, warmup_steps: 2,\n"
    "        eval_every: 2, seed: 11}\n"
    "compute: {memory_limit: 2GiB}\n"
    "output: {dir: %s/%s, checkpoint_every: 2, keep: 2}\n";

static const char adapter_text[] = "base: {format: bf16}\n"
                                   "lora: {rank: 3, alpha: 6, targets: all}\n";

tess_flux_config flux_run_config(flux_size size)
{
    tess_flux_config c = flux_tiny().config;
    if (size == FLUX_RUN_WIDE) {
        c.double_numel = c.single_numel = 1;
        c.head_dim = 64;
        c.axis_dim[0] = 16;
        c.axis_dim[1] = c.axis_dim[2] = 24;
    }
    return c;
}

/* ---- weights ---- */

/* A tensor of a file: rows of others, one below the other. */
typedef struct piece {
    char name[4][160]; /* diffusers' names */
    int numel;
    bool is_swapped;
} piece;

typedef struct weights {
    tess_io *io;
    const tess_registry *reg;
    tess_st_tensor tensor[512];
    char name[512][160];
    piece from[512];
    int numel;
} weights;

static const tess_param *param_of(const weights *w, const char *name)
{
    const int idx = tess_registry_find(w->reg, name);
    return idx >= 0 ? &w->reg->param[idx] : NULL;
}

static void add(weights *w, const char *name, const piece *from)
{
    const tess_param *first = param_of(w, from->name[0]);
    tess_st_tensor *t = &w->tensor[w->numel];
    snprintf(w->name[w->numel], sizeof w->name[0], "%s", name);
    *t = (tess_st_tensor){
        .name = w->name[w->numel], .dtype = TESS_ST_BF16, .dim_numel = first->shape_rank};
    for (int i = 0; i < from->numel; i++)
        t->dim[0] += param_of(w, from->name[i])->shape[0];
    if (first->shape_rank > 1)
        t->dim[1] = first->shape[1];
    w->from[w->numel++] = *from;
}

static void list_plain(weights *w)
{
    for (int i = 0; i < w->reg->param_numel; i++) {
        piece p = {.numel = 1};
        snprintf(p.name[0], sizeof p.name[0], "%s", w->reg->param[i].name);
        add(w, p.name[0], &p);
    }
}

static void list_site(weights *w, const tess_flux_name *site, const char *leaf)
{
    char name[160];
    piece p = {.numel = site->part_numel, .is_swapped = tess_flux_is_swapped(site->site)};
    for (int i = 0; i < site->part_numel; i++) {
        char part[TESS_FLUX_NAME_NBYTES];
        tess_flux_part_name(site->site, i, part);
        snprintf(p.name[i], sizeof p.name[i], "%s.%s", part, leaf);
    }
    snprintf(name, sizeof name, "%s.%s", site->text, leaf);
    if (param_of(w, p.name[0]) != NULL)
        add(w, name, &p);
}

static void list_norm(weights *w, const char *name, const char *diffusers)
{
    piece p = {.numel = 1};
    snprintf(p.name[0], sizeof p.name[0], "%s", diffusers);
    if (param_of(w, diffusers) != NULL)
        add(w, name, &p);
}

static tess_status list_fused(weights *w, const tess_flux_config *c)
{
    static const char *const norm[][2] = {{"img_attn.norm.query_norm.scale", "norm_q"},
                                          {"img_attn.norm.key_norm.scale", "norm_k"},
                                          {"txt_attn.norm.query_norm.scale", "norm_added_q"},
                                          {"txt_attn.norm.key_norm.scale", "norm_added_k"},
                                          {"norm.query_norm.scale", "norm_q"},
                                          {"norm.key_norm.scale", "norm_k"}};
    tess_flux_names *names = NULL;
    char a[160], b[160];
    TESS_TRY(tess_flux_names_create(TESS_FLUX_BFL, &names));
    for (int64_t i = 0; i < tess_flux_names_numel(names); i++) {
        list_site(w, tess_flux_names_at(names, i), "weight");
        list_site(w, tess_flux_names_at(names, i), "bias");
    }
    tess_flux_names_destroy(&names);
    for (int i = 0; i < TESS_NELEM(norm); i++) {
        const bool is_double = i < 4;
        for (int k = 0; k < (int)(is_double ? c->double_numel : c->single_numel); k++) {
            snprintf(a, sizeof a, "%s_blocks.%d.%s", is_double ? "double" : "single", k,
                     norm[i][0]);
            snprintf(b, sizeof b, "%stransformer_blocks.%d.attn.%s.weight",
                     is_double ? "" : "single_", k, norm[i][1]);
            list_norm(w, a, b);
        }
    }
    return TESS_OK;
}

static tess_status append(tess_safetensors_writer *writer, const weights *w, int idx)
{
    const piece *p = &w->from[idx];
    for (int i = 0; i < p->numel; i++) {
        const tess_param *param = param_of(w, p->name[i]);
        const int64_t rows = param->shape_rank > 1 ? param->shape[0] : 1;
        void *wide = NULL, *narrow = NULL;
        TESS_TRY(tess_alloc_array(param->numel, sizeof(float), &wide));
        TESS_TRY(tess_alloc_array(param->numel, sizeof(uint16_t), &narrow));
        flux_hash_fill(param->name, rows, param->numel / rows, wide);
        for (int64_t k = 0; k < param->numel; k++) {
            const int64_t half = param->numel / 2;
            const int64_t at = !p->is_swapped ? k : k < half ? k + half : k - half;
            ((uint16_t *)narrow)[k] = tess_bf16_from_f32(((const float *)wide)[at]);
        }
        const tess_status st = tess_safetensors_writer_append(
            writer, idx, narrow, (size_t)param->numel * sizeof(uint16_t));
        tess_free(wide);
        tess_free(narrow);
        TESS_TRY(st);
    }
    return TESS_OK;
}

static tess_status write_weights(const weights *w, const char *path)
{
    tess_safetensors_writer *writer = NULL;
    TESS_TRY(tess_safetensors_writer_create(w->io, path, w->tensor, w->numel, NULL, 0, &writer));
    tess_status st = TESS_OK;
    for (int i = 0; i < w->numel && st == TESS_OK; i++)
        st = append(writer, w, i);
    if (st == TESS_OK)
        st = tess_safetensors_writer_finish(writer);
    tess_safetensors_writer_destroy(&writer);
    return st;
}

static tess_status source_of(void *arg, const tess_param *p, tess_codec *out)
{
    (void)arg;
    (void)p;
    *out = (tess_codec){.format = TESS_FORMAT_BF16};
    return TESS_OK;
}

static tess_status codec_of(void *arg, const tess_param *p, bool is_linear, tess_codec source,
                            tess_codec *out)
{
    (void)arg;
    (void)p;
    (void)is_linear;
    *out = source;
    return TESS_OK;
}

static tess_status lora_of(void *arg, const char *path, bool is_head, tess_lora_choice *out)
{
    (void)arg;
    (void)path;
    (void)is_head;
    *out = (tess_lora_choice){0};
    return TESS_OK;
}

/* Both layouts of one model. */
static tess_status write_model(flux_run *r, flux_size size)
{
    static weights plain, fused;
    const tess_flux_config config = flux_run_config(size);
    const tess_flux_shape shape = {1, 16, 8};
    const tess_model_options options = {.compute_dt = TESS_F32,
                                        .thread_numel = 1,
                                        .lora_of = lora_of,
                                        .codec_of = codec_of,
                                        .source_of = source_of};
    char path[400];
    tess_registry reg;
    tess_model *model = NULL;
    tess_json *json = NULL;
    tess_registry_init(&reg, TESS_F32);
    TESS_TRY(tess_flux_create(&config, &shape, &options, &reg, &model));
    plain = fused = (weights){.io = r->ctx.io, .reg = &reg};
    list_plain(&plain);
    TESS_TRY(list_fused(&fused, &config));
    TESS_TRY(tess_io_mkdirs(r->ctx.io, r->model[size]));
    snprintf(path, sizeof path, "%s/diffusion_pytorch_model.safetensors", r->model[size]);
    TESS_TRY(write_weights(&plain, path));
    TESS_TRY(tess_flux_config_json(&config, &json));
    snprintf(path, sizeof path, "%s/config.json", r->model[size]);
    TESS_TRY(tess_json_write(r->ctx.io, path, json, 2));
    snprintf(path, sizeof path, "%.*s", (int)(strrchr(r->single[size], '/') - r->single[size]),
             r->single[size]);
    TESS_TRY(tess_io_mkdirs(r->ctx.io, path));
    TESS_TRY(write_weights(&fused, r->single[size]));
    strcat(path, "/config.json");
    TESS_TRY(tess_json_write(r->ctx.io, path, json, 2));
    tess_json_destroy(&json);
    tess_model_destroy(&model);
    tess_registry_fini(&reg);
    return TESS_OK;
}

/* ---- caches ---- */

static void normals(uint32_t key, int64_t numel, double scale, float *out)
{
    const tess_rng rng = tess_rng_make(5, TESS_RNG_TEST, key, 0);
    for (int64_t i = 0; i < numel; i++)
        out[i] = (float)(scale * tess_rng_normal(&rng, (uint64_t)i));
}

/* 4 channels, so that a packed token has 16; sizes 8 x 8 (16 tokens) and 4 x 10 (10 tokens). */
static tess_status write_cache(flux_run *r, const char *path, uint32_t key, int sample_numel)
{
    enum { CAPTIONS = 4, T = 8, D = 32, C = 4 };
    static const char *const caption[CAPTIONS] = {"", "a red cube", "two cats", "the sea"};
    const int other = sample_numel / 3;
    const tess_latents_info info = {
        .sample_numel = sample_numel,
        .caption_numel = CAPTIONS,
        .bucket_numel = 2,
        .channel_numel = C,
        .text_numel = T,
        .text_dim = D,
        .pooled_dim = D,
        .latent_dt = TESS_F32,
        .text_dt = TESS_BF16,
        .has_empty = true,
        .name_nbytes = (int64_t)sample_numel * (int64_t)sizeof "image-000",
        .caption_nbytes = sizeof "" + sizeof "a red cube" + sizeof "two cats" + sizeof "the sea",
        .origin = {.tool = "test"}};
    const tess_latents_bucket bucket[] = {{4, 10, other, 0}, {8, 8, sample_numel - other, 0}};
    float text[T * D], pooled[D], latent[C * 64];
    tess_latents_writer *w = NULL;
    TESS_TRY(tess_latents_writer_create(&r->ctx, path, &info, bucket, &w));
    tess_status st = TESS_OK;
    for (int i = 0; i < CAPTIONS && st == TESS_OK; i++) {
        normals(100 + (uint32_t)i, (int64_t)T * D, 0.5, text);
        normals(200 + (uint32_t)i, D, 0.5, pooled);
        st = tess_latents_writer_text(w, &(tess_latents_text){caption[i], text, pooled, 5});
    }
    for (int i = 0; i < sample_numel && st == TESS_OK; i++) {
        char name[32];
        const int b = i >= other;
        normals(key + (uint32_t)i, C * bucket[b].height * bucket[b].width, 1.0, latent);
        snprintf(name, sizeof name, "image-%03d", i);
        const tess_latents_image image = {
            .name = name, .latent = latent, .sample = {.caption_idx = (uint32_t)(1 + i % 3)}};
        st = tess_latents_writer_image(w, b, &image);
    }
    if (st == TESS_OK)
        st = tess_latents_writer_finish(w);
    tess_latents_writer_destroy(&w);
    return st;
}

/* ---- folder ---- */

static tess_status write_all(flux_run *r)
{
    for (int size = 0; size < FLUX_RUN_SIZE_NUMEL; size++)
        TESS_TRY(write_model(r, (flux_size)size));
    TESS_TRY(write_cache(r, r->train, 1000, 25));
    return write_cache(r, r->eval, 2000, 7);
}

tess_status flux_run_create(tess_comm *comm, flux_run *r)
{
    memset(r, 0, sizeof *r);
    snprintf(r->dir, sizeof r->dir, "/tmp/tessera-flux-XXXXXX");
    tess_status st = tess_io_create(tess_comm_rank(comm), &r->ctx.io);
    if (st == TESS_OK && tess_comm_rank(comm) == 0 && mkdtemp(r->dir) == NULL)
        st = TESS_FAIL(TESS_E_IO, "no temporary folder '%s'", r->dir);
    TESS_TRY(tess_agree(comm, st));
    TESS_TRY(tess_comm_bcast(comm, 0, r->dir, sizeof r->dir));
    for (int size = 0; size < FLUX_RUN_SIZE_NUMEL; size++) {
        snprintf(r->model[size], sizeof r->model[size], "%s/model-%d", r->dir, size);
        snprintf(r->single[size], sizeof r->single[size], "%s/single-%d/flux1.safetensors", r->dir,
                 size);
    }
    snprintf(r->train, sizeof r->train, "%s/train.h5", r->dir);
    snprintf(r->eval, sizeof r->eval, "%s/eval.h5", r->dir);
    return tess_agree(comm, tess_comm_rank(comm) == 0 ? write_all(r) : TESS_OK);
}

void flux_run_destroy(tess_comm *comm, flux_run *r)
{
    char command[512];
    if (tess_comm_barrier(comm) == TESS_OK && tess_comm_rank(comm) == 0) {
        snprintf(command, sizeof command, "rm -rf '%s'", r->dir);
        if (system(command) != 0)
            fprintf(stderr, "could not remove '%s'\n", r->dir);
    }
    tess_io_destroy(&r->ctx.io);
}

/* ---- runs ---- */

static tess_status open_run(tess_comm *comm, flux_run *r, const flux_launch *l,
                            tess_session_options *options, tess_session **out)
{
    char text[2048];
    tess_run_override overrides[TESS_NELEM(l->override)];
    int numel = 0;
    bool is_full = false;
    for (; numel < TESS_NELEM(l->override) && l->override[numel] != NULL; numel++) {
        is_full = is_full || strcmp(l->override[numel], "train.mode=full") == 0;
        overrides[numel] = (tess_run_override){l->override[numel], numel + 1};
    }
    snprintf(text, sizeof text, run_text, l->model, is_full ? "" : adapter_text, r->train, r->eval,
             r->dir, l->name);
    options->run_path = "run.yaml";
    options->run_text = text;
    options->overrides = overrides;
    options->override_numel = numel;
    options->adapter = l->adapter;
    options->checkpoint = l->checkpoint;
    options->device = l->device;
    options->kernels = l->kernels;
    return tess_session_open(&r->ctx, comm, options, out);
}

tess_status flux_run_open(tess_comm *comm, flux_run *r, const flux_launch *l,
                          tess_session_kind kind, tess_session **out)
{
    tess_session_options options = {.kind = kind, .needs_data = true};
    return open_run(comm, r, l, &options, out);
}

tess_status flux_run_open_without(tess_comm *comm, flux_run *r, const flux_launch *l,
                                  tess_session **out)
{
    tess_session_options options = {.kind = TESS_SESSION_READER};
    return open_run(comm, r, l, &options, out);
}

tess_status flux_run_train(tess_comm *comm, flux_run *r, const flux_launch *l, bool *is_done)
{
    static volatile sig_atomic_t stop = 1;
    tess_session *session = NULL;
    tess_session_options options = {.kind = TESS_SESSION_TRAIN,
                                    .needs_data = true,
                                    .stop_request = l->is_stopped ? &stop : NULL};
    TESS_TRY(open_run(comm, r, l, &options, &session));
    tess_status st = tess_session_train(session);
    tess_session_close(&session);
    *is_done = st == TESS_OK;
    if (st == TESS_E_PREEMPTED && l->is_stopped) {
        tess_error_clear();
        st = TESS_OK;
    }
    return st;
}

/* Bits of the losses, and the norms in front of the learning rates. */
static tess_status hash_steps(const char *text, tess_sha256_state *sha, flux_outcome *out)
{
    for (const char *p = strstr(text, "\"loss\": "); p != NULL; p = strstr(p + 1, "\"loss\": ")) {
        const char *bits = strstr(p, "\"loss_bits\""), *end = strstr(p, "\"lr\"");
        TESS_CHECK(bits != NULL && end != NULL, TESS_E_FORMAT, "metrics.jsonl: '%.80s'", p);
        out->last_loss = strtod(p + 8, NULL);
        if (out->step_numel++ == 0)
            out->first_loss = out->last_loss;
        TESS_TRY(tess_sha256_update(sha, bits, (size_t)(end - bits)));
    }
    return TESS_OK;
}

static bool has_prompts(flux_run *r, const char *name)
{
    char path[600], *text = NULL;
    size_t nbytes = 0;
    snprintf(path, sizeof path, "%s/%s/run.yaml", r->dir, name);
    const bool is_read = tess_io_read_all(r->ctx.io, path, 1 << 20, &text, &nbytes) == TESS_OK;
    const bool has = is_read && strstr(text, "prompts: [") != NULL;
    tess_free(text);
    return has;
}

tess_status flux_run_outcome(flux_run *r, const char *name, flux_outcome *out)
{
    static const char *const file[] = {"metrics.jsonl", "eval.jsonl", "export",
                                       "samples/step-00000002.safetensors",
                                       "samples/step-00000004.safetensors"};
    tess_sha256_state *sha = NULL;
    *out = (flux_outcome){0};
    TESS_TRY(tess_sha256_create(&sha));
    tess_status st = TESS_OK;
    for (int i = 0; i < TESS_NELEM(file) && st == TESS_OK; i++) {
        static const char *const adapter[] = {"pytorch_lora_weights.safetensors",
                                              "adapter_model.safetensors",
                                              "diffusion_pytorch_model.safetensors"};
        char path[600], *text = NULL;
        size_t nbytes = 0;
        tess_io_kind kind = TESS_IO_MISSING;
        int64_t size = 0;
        snprintf(path, sizeof path, "%s/%s/%s", r->dir, name, file[i]);
        if (i > 2) { /* images are sampled by some runs only */
            st = tess_io_stat(r->ctx.io, path, &kind, &size);
            if (kind == TESS_IO_MISSING && !has_prompts(r, name))
                break;
        }
        for (int k = 0; i == 2 && k < TESS_NELEM(adapter) && kind == TESS_IO_MISSING; k++) {
            snprintf(path, sizeof path, "%s/%s/%s/%s", r->dir, name, file[i], adapter[k]);
            st = tess_io_stat(r->ctx.io, path, &kind, &size);
        }
        if (st == TESS_OK)
            st = tess_io_read_all(r->ctx.io, path, 1 << 26, &text, &nbytes);
        uint64_t header = 0; /* of the tensors alone: the metadata names the model's path */
        if (st == TESS_OK && i >= 2) {
            memcpy(&header, text, sizeof header);
            header += sizeof header;
        }
        if (st == TESS_OK)
            st = i == 0 ? hash_steps(text, sha, out)
                        : tess_sha256_update(sha, text + header, nbytes - header);
        tess_free(text);
    }
    if (st == TESS_OK)
        st = tess_sha256_final(sha, &out->digest);
    tess_sha256_destroy(&sha);
    return st;
}
