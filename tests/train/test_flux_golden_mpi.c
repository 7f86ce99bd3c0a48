/*
 * 20 steps of the real trainer, from the cache to the exported adapter, against the same run by
 * diffusers, peft and torch.optim.AdamW in fp64 (tests/golden/make_flux_run.py): order of samples,
 * dropped captions, noise, sigma, weights, gradients and updates at once, on any number of ranks.
 * Then latents sampled from the adapter that came of it against diffusers' scheduler.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "format/safetensors.h"
#include "support/flux_case.h"
#include "support/flux_run.h"
#include "support/golden.h"
#include "support/rank_test.h"
#include "train/data/latents.h"

enum { CHANNELS = 4, TEXT = 8, DIM = 32, CAPTIONS = 3, STEPS = 20, TEXT_NBYTES = 4096 };

/* Roundings of 2^-24, some hundred in a row between latents and loss, and those of a dot product's
 * terms, which are random: sqrt(100) 2^-24 = 6e-7 of each element's error, of which the loss
 * averages 16 n. What is wrong by convention is wrong by 1e-2 and more. */
static const double loss_bound = 1e-6;
/* AdamW moves an element by lr whatever its gradient, so one whose gradient is below its own error,
 * 1e-6 of the tensor's rms, may move anywhere: 1e-6 of normal elements, sqrt(1e-6) of all that
 * moved. */
static const double moved_bound = 1e-3;

/* What training leaves of the distance, 1e-6, and roundings of a few Euler steps. */
static const double latent_bound = 1e-5;

typedef struct golden_run {
    flux_run files;
    tess_golden *golden;
    char cache[300], adapter[300];
} golden_run;

/* ---- files ---- */

static const tess_latents_bucket buckets[] = {{4, 10, 3, 0}, {8, 8, 5, 3}};

static void hashed(const char *kind, int idx, int64_t numel, float *out)
{
    char name[64];
    snprintf(name, sizeof name, "cache.%s.%d", kind, idx);
    for (int64_t i = 0; i < numel; i++)
        out[i] = flux_hash_value(name, i, 0.0, 1.0);
}

static tess_status fill_cache(tess_latents_writer *w)
{
    static const char *const caption[CAPTIONS] = {"", "one", "two"};
    float text[TEXT * DIM], pooled[DIM], latent[CHANNELS * 64];
    int idx = 0;
    for (int c = 0; c < CAPTIONS; c++) {
        hashed("text", c, TEXT * DIM, text);
        hashed("pooled", c, DIM, pooled);
        TESS_TRY(tess_latents_writer_text(w, &(tess_latents_text){caption[c], text, pooled, TEXT}));
    }
    for (int b = 0; b < TESS_NELEM(buckets); b++) {
        for (int64_t i = 0; i < buckets[b].sample_numel; i++, idx++) {
            char name[16];
            snprintf(name, sizeof name, "s%d", idx);
            hashed("latent", idx, CHANNELS * buckets[b].height * buckets[b].width, latent);
            const tess_latents_image image = {
                .name = name, .latent = latent, .sample = {.caption_idx = (uint32_t)(1 + idx % 2)}};
            TESS_TRY(tess_latents_writer_image(w, b, &image));
        }
    }
    return tess_latents_writer_finish(w);
}

static tess_status write_cache(const golden_run *g)
{
    const tess_latents_info info = {.sample_numel = 8,
                                    .caption_numel = CAPTIONS,
                                    .bucket_numel = TESS_NELEM(buckets),
                                    .channel_numel = CHANNELS,
                                    .text_numel = TEXT,
                                    .text_dim = DIM,
                                    .pooled_dim = DIM,
                                    .latent_dt = TESS_F32,
                                    .text_dt = TESS_F32,
                                    .has_empty = true,
                                    .name_nbytes = 8 * (int64_t)sizeof "s0",
                                    .caption_nbytes = sizeof "" + sizeof "one" + sizeof "two",
                                    .origin = {.tool = "test"}};
    tess_latents_writer *w = NULL;
    TESS_TRY(tess_latents_writer_create(&g->files.ctx, g->cache, &info, buckets, &w));
    const tess_status st = fill_cache(w);
    tess_latents_writer_destroy(&w);
    return st;
}

/* A and B of the golden file's modules as the hash starts them. */
static tess_status start_of(const tess_golden *golden, const char *name, tess_st_tensor *t,
                            float **start)
{
    const int64_t rank = (int64_t)tess_golden_number(golden, "rank");
    const bool is_a = strstr(name, ".lora_A.") != NULL;
    int64_t numel = 0;
    void *memory = NULL;
    TESS_CHECK(tess_golden_tensor(golden, name, TESS_F32, &numel) != NULL, TESS_E_FORMAT,
               "run.golden: no '%s'", name);
    *t = (tess_st_tensor){.dtype = TESS_ST_F32,
                          .dim_numel = 2,
                          .dim = {is_a ? rank : numel / rank, is_a ? numel / rank : rank},
                          .numel = numel};
    TESS_TRY(tess_alloc_array(numel, sizeof(float), &memory));
    flux_hash_fill(name, t->dim[0], t->dim[1], memory);
    *start = memory;
    return TESS_OK;
}

static tess_status append_starts(const golden_run *g, tess_safetensors_writer *w)
{
    const char *name = NULL;
    for (int i = 1; (name = tess_golden_tensor_name(g->golden, i)) != NULL; i++) {
        tess_st_tensor t;
        float *start = NULL;
        TESS_TRY(start_of(g->golden, name, &t, &start));
        const tess_status st =
            tess_safetensors_writer_append(w, i - 1, start, (size_t)t.numel * sizeof *start);
        tess_free(start);
        TESS_TRY(st);
    }
    return tess_safetensors_writer_finish(w);
}

static tess_status write_adapter(const golden_run *g)
{
    static char key[64][192];
    tess_st_tensor tensor[64];
    tess_safetensors_writer *w = NULL;
    int64_t numel = 0;
    for (const char *name; (name = tess_golden_tensor_name(g->golden, (int)numel + 1)) != NULL;) {
        float *start = NULL;
        TESS_CHECK(numel < TESS_NELEM(key), TESS_E_RANGE, "run.golden: too many tensors");
        TESS_TRY(start_of(g->golden, name, &tensor[numel], &start));
        tess_free(start);
        snprintf(key[numel], sizeof key[0], "transformer.%s", name);
        tensor[numel].name = key[numel];
        numel++;
    }
    TESS_TRY(
        tess_safetensors_writer_create(g->files.ctx.io, g->adapter, tensor, numel, NULL, 0, &w));
    const tess_status st = append_starts(g, w);
    tess_safetensors_writer_destroy(&w);
    return st;
}

/* ---- sampling ---- */

static int64_t whole_number(const tess_golden *golden, const char *kind, const char *what)
{
    char name[32];
    snprintf(name, sizeof name, "%s_%s", kind, what);
    return (int64_t)tess_golden_number(golden, name);
}

static tess_status check_latents(const golden_run *g, const tess_golden *golden, const char *kind,
                                 const char *path)
{
    int64_t numel = 0;
    float ours[CHANNELS * 64];
    double error = 0.0, whole = 0.0;
    tess_safetensors *file = NULL;
    const float *want = tess_golden_tensor(golden, kind, TESS_F32, &numel);
    TESS_TRY(tess_safetensors_open(g->files.ctx.io, path, &file));
    const tess_st_tensor *t = tess_safetensors_find(file, "latents");
    tess_status st = TESS_OK;
    if (want == NULL || t == NULL || t->numel != numel || numel > TESS_NELEM(ours))
        st = TESS_FAIL(TESS_E_STATE, "'%s': not the golden file's size", path);
    if (st == TESS_OK)
        st = tess_safetensors_read(file, t, 0, (size_t)numel * sizeof(float), ours);
    tess_safetensors_close(&file);
    TESS_TRY(st);
    for (int64_t i = 0; i < numel; i++) {
        error += pow((double)ours[i] - (double)want[i], 2);
        whole += pow((double)want[i], 2);
    }
    TESS_CHECK(sqrt(error) <= latent_bound * sqrt(whole), TESS_E_STATE,
               "%s shift: latents differ by %.3g from diffusers'", kind, sqrt(error / whole));
    return TESS_OK;
}

static tess_status sample_as(tess_comm *comm, tess_session *session, const golden_run *g,
                             const tess_golden *golden, const char *kind)
{
    char path[400];
    const char *caption = tess_golden_text(golden, "caption");
    snprintf(path, sizeof path, "%s/%s.safetensors", g->files.dir, kind);
    const tess_latent_request request = {
        .caption = &caption,
        .caption_numel = 1,
        .image_numel = 1,
        .height = 8 * whole_number(golden, kind, "height"),
        .width = 8 * whole_number(golden, kind, "width"),
        .step_numel = whole_number(golden, kind, "steps"),
        .guidance = tess_golden_number(golden, "guidance"),
        .shift = strcmp(kind, "static") == 0 ? tess_golden_number(golden, "shift") : 0.0,
        .seed = (uint64_t)tess_golden_number(golden, "seed"),
        .output = path};
    TESS_TRY(tess_session_sample_latents(session, &request));
    return tess_agree(comm,
                      tess_comm_rank(comm) == 0 ? check_latents(g, golden, kind, path) : TESS_OK);
}

static tess_status sample(tess_comm *comm, tess_session *session, const golden_run *g,
                          const char *kind)
{
    tess_golden *golden = NULL;
    tess_status st = tess_agree(comm, tess_golden_open("tests/golden/flux/sample.golden", &golden));
    if (st == TESS_OK)
        st = sample_as(comm, session, g, golden, kind);
    tess_golden_close(&golden);
    return st;
}

/* ---- the run ---- */

/* Whole paths of the adapted modules, as a list. */
static void list_targets(const tess_golden *golden, char text[TEXT_NBYTES])
{
    const char *name = NULL;
    size_t used = 0;
    for (int i = 1; (name = tess_golden_tensor_name(golden, i)) != NULL; i++) {
        const char *end = strstr(name, ".lora_A.");
        if (end != NULL)
            used += (size_t)snprintf(text + used, TEXT_NBYTES - used, "%s%.*s",
                                     used > 0 ? ", " : "", (int)(end - name), name);
    }
}

static tess_status train(tess_comm *comm, golden_run *g)
{
    char text[2 * TEXT_NBYTES], targets[TEXT_NBYTES];
    tess_session *session = NULL;
    const int rank = (int)tess_golden_number(g->golden, "rank");
    list_targets(g->golden, targets);
    snprintf(text, sizeof text,
             "model: {path: %s}\n"
             "base: {format: keep}\n"
             "lora: {rank: %d, alpha: %d, targets: [%s]}\n"
             "adapter: {resume: %s, allow_base_change: true}\n"
             "data: {path: %s}\n"
             "objective: {%s}\n"
             "train: {steps: %d, micro_batch: 2, micro_batches: 3, learning_rate: %s,\n"
             "        schedule: constant, warmup_steps: 0, weight_decay: %s, clip_norm: 0, "
             "seed: %s}\n"
             "compute: {dtype: f32, memory_limit: 1GiB}\n"
             "output: {dir: %s/run, checkpoint_every: 0}\n",
             g->files.model[FLUX_RUN_TINY], rank, rank, targets, g->adapter, g->cache,
             tess_golden_text(g->golden, "objective"), STEPS, tess_golden_text(g->golden, "lr"),
             tess_golden_text(g->golden, "decay"), tess_golden_text(g->golden, "seed"),
             g->files.dir);
    const tess_session_options options = {
        .kind = TESS_SESSION_TRAIN, .run_path = "run.yaml", .run_text = text, .needs_data = true};
    TESS_TRY(tess_session_open(&g->files.ctx, comm, &options, &session));
    tess_status st = tess_session_train(session);
    if (st == TESS_OK)
        st = sample(comm, session, g, "static");
    if (st == TESS_OK)
        st = sample(comm, session, g, "dynamic");
    tess_session_close(&session);
    return st;
}

static tess_status check_losses(const golden_run *g)
{
    char path[400], *text = NULL;
    size_t nbytes = 0;
    int64_t numel = 0;
    int step = 0;
    const double *want = tess_golden_tensor(g->golden, "losses", TESS_F64, &numel);
    TESS_CHECK(want != NULL && numel == STEPS, TESS_E_FORMAT, "run.golden: no losses");
    snprintf(path, sizeof path, "%s/run/metrics.jsonl", g->files.dir);
    TESS_TRY(tess_io_read_all(g->files.ctx.io, path, 1 << 20, &text, &nbytes));
    tess_status st = TESS_OK;
    const char *p = text;
    for (; st == TESS_OK && step < STEPS && (p = strstr(p, "\"loss\": ")) != NULL; step++, p++) {
        const double loss = strtod(p + 8, NULL);
        if (!(fabs(loss - want[step]) <= loss_bound * want[step]))
            st = TESS_FAIL(TESS_E_STATE, "step %d: loss %.9g, expected %.9g", step + 1, loss,
                           want[step]);
    }
    if (st == TESS_OK && step != STEPS)
        st = TESS_FAIL(TESS_E_STATE, "'%s' has %d steps", path, step);
    tess_free(text);
    return st;
}

/* Where a tensor went, relative to how far the reference went. */
static tess_status check_moved(const golden_run *g, const tess_safetensors *file, const char *name)
{
    char key[192];
    tess_st_tensor t;
    float *start = NULL;
    void *memory = NULL;
    snprintf(key, sizeof key, "transformer.%s", name);
    const tess_st_tensor *found = tess_safetensors_find(file, key);
    const float *want = tess_golden_tensor(g->golden, name, TESS_F32, &t.numel);
    TESS_TRY(start_of(g->golden, name, &t, &start));
    tess_status st = tess_alloc_array(t.numel, sizeof(float), &memory);
    if (st == TESS_OK && (found == NULL || found->numel != t.numel || found->dtype != TESS_ST_F32))
        st = TESS_FAIL(TESS_E_STATE, "the export has no '%s' of %" PRId64 " f32", key, t.numel);
    if (st == TESS_OK)
        st = tess_safetensors_read(file, found, 0, (size_t)t.numel * sizeof(float), memory);
    const float *ours = memory;
    double error = 0.0, moved = 0.0;
    for (int64_t i = 0; st == TESS_OK && i < t.numel; i++) {
        error += pow((double)ours[i] - (double)want[i], 2);
        moved += pow((double)want[i] - (double)start[i], 2);
    }
    if (st == TESS_OK && !(moved > 0.0 && sqrt(error) <= moved_bound * sqrt(moved)))
        st = TESS_FAIL(TESS_E_STATE, "'%s': moved by %.3g, %.3g of it elsewhere", name, sqrt(moved),
                       sqrt(error / moved));
    tess_free(start);
    tess_free(memory);
    return st;
}

static tess_status check_adapter(const golden_run *g)
{
    char path[400];
    tess_safetensors *file = NULL;
    snprintf(path, sizeof path, "%s/run/export/pytorch_lora_weights.safetensors", g->files.dir);
    TESS_TRY(tess_safetensors_open(g->files.ctx.io, path, &file));
    tess_status st = TESS_OK;
    const char *name = NULL;
    for (int i = 1; st == TESS_OK && (name = tess_golden_tensor_name(g->golden, i)) != NULL; i++)
        st = check_moved(g, file, name);
    tess_safetensors_close(&file);
    return st;
}

static tess_status make_files(const golden_run *g)
{
    TESS_TRY(write_cache(g));
    return write_adapter(g);
}

static tess_status run(tess_comm *comm)
{
    golden_run g = {0};
    const bool is_root = tess_comm_rank(comm) == 0;
    TESS_TRY(flux_run_create(comm, &g.files));
    snprintf(g.cache, sizeof g.cache, "%s/golden.h5", g.files.dir);
    snprintf(g.adapter, sizeof g.adapter, "%s/start.safetensors", g.files.dir);
    tess_status st = tess_agree(comm, tess_golden_open("tests/golden/flux/run.golden", &g.golden));
    if (st == TESS_OK)
        st = tess_agree(comm, is_root ? make_files(&g) : TESS_OK);
    if (st == TESS_OK)
        st = train(comm, &g);
    if (st == TESS_OK)
        st = tess_agree(comm, is_root ? check_losses(&g) : TESS_OK);
    if (st == TESS_OK)
        st = tess_agree(comm, is_root ? check_adapter(&g) : TESS_OK);
    tess_golden_close(&g.golden);
    flux_run_destroy(comm, &g.files);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
