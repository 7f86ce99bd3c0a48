/*
 * Latents of a FLUX.1 run: the same on any number of ranks and samples a micro-batch; from a
 * checkpoint, from its export in every dialect, over another base; a model that was trained gives
 * others than its base.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "format/safetensors.h"
#include "tests/support/flux_run.h"
#include "tests/support/rank_test.h"

enum { IMAGES = 5, NUMEL = IMAGES * 4 * 8 * 8 };

static const char *const caption[] = {"two cats"};

static tess_latent_request request_of(const char *output)
{
    return (tess_latent_request){.caption = caption,
                                 .caption_numel = 1,
                                 .image_numel = IMAGES,
                                 .height = 64,
                                 .width = 64,
                                 .step_numel = 4,
                                 .guidance = 3.5,
                                 .seed = 7,
                                 .output = output};
}

static tess_status read_latents(flux_run *r, const char *path, float *latent)
{
    tess_safetensors *st = NULL;
    TESS_TRY(tess_safetensors_open(r->ctx.io, path, &st));
    const tess_st_tensor *t = tess_safetensors_find(st, "latents");
    const tess_status result =
        t != NULL && t->nbytes == NUMEL * (int64_t)sizeof(float)
            ? tess_safetensors_read(st, t, 0, (size_t)t->nbytes, latent)
            : TESS_FAIL(TESS_E_STATE, "'%s' has no latents of the size asked for", path);
    tess_safetensors_close(&st);
    return result;
}

/* Sample as `l` says into `dir`/`file`, and read the file on rank 0 into `latent` [NUMEL]. */
static tess_status sample(tess_comm *comm, flux_run *r, const flux_launch *l, const char *file,
                          float *latent)
{
    char path[400];
    tess_session *session = NULL;
    snprintf(path, sizeof path, "%s/%s.safetensors", r->dir, file);
    const tess_latent_request request = request_of(path);
    TESS_TRY(flux_run_open(comm, r, l, TESS_SESSION_READER, &session));
    const tess_status st = tess_session_sample_latents(session, &request);
    tess_session_close(&session);
    if (st != TESS_OK || tess_comm_rank(comm) != 0)
        return st;
    return read_latents(r, path, latent);
}

static double distance(const float *a, const float *b)
{
    double square = 0.0, whole = 0.0;
    for (int i = 0; i < NUMEL; i++) {
        square += pow((double)a[i] - (double)b[i], 2);
        whole += pow((double)b[i], 2);
    }
    return sqrt(square / whole);
}

static tess_status expect_equal(tess_comm *comm, const float *a, const float *b, const char *what)
{
    tess_status st = TESS_OK;
    if (tess_comm_rank(comm) == 0 && memcmp(a, b, NUMEL * sizeof *a) != 0)
        st = TESS_FAIL(TESS_E_STATE, "%s: latents differ by %g", what, distance(a, b));
    return tess_agree(comm, st);
}

/* W ranks, one rank, one sample a micro-batch. */
static tess_status check_ranks(tess_comm *comm, tess_comm *self, flux_run *r, const float *whole)
{
    static float other[NUMEL];
    const flux_launch l = {.name = "trained", .model = r->model[FLUX_RUN_TINY]};
    const flux_launch narrow = {
        .name = "trained", .model = r->model[FLUX_RUN_TINY], .override = {"train.micro_batch=1"}};
    tess_status st = TESS_OK;
    if (tess_comm_rank(comm) == 0)
        st = sample(self, r, &l, "alone", other);
    TESS_TRY(tess_agree(comm, st));
    TESS_TRY(expect_equal(comm, other, whole, "one rank"));
    TESS_TRY(sample(comm, r, &narrow, "narrow", other));
    return expect_equal(comm, other, whole, "one sample a micro-batch");
}

/* Latents over the adapter that a run exports in one form, instead of its checkpoint. */
static tess_status sample_export(tess_comm *comm, flux_run *r, const flux_launch *trained,
                                 tess_run_export form, float *latent)
{
    static const char *const file[] = {[TESS_RUN_EXPORT_PEFT] = "",
                                       [TESS_RUN_EXPORT_DIFFUSERS] =
                                           "/pytorch_lora_weights.safetensors",
                                       [TESS_RUN_EXPORT_KOHYA] = "/kohya.safetensors",
                                       [TESS_RUN_EXPORT_COMFYUI] = "/comfyui.safetensors"};
    char path[400], output[64];
    tess_session *session = NULL;
    snprintf(path, sizeof path, "%s/%s-%d", r->dir, trained->name, (int)form);
    snprintf(output, sizeof output, "from-%s-%d", trained->name, (int)form);
    const tess_export_request request = {.dir = path, .format = form, .dt = TESS_F32};
    TESS_TRY(flux_run_open(comm, r, trained, TESS_SESSION_READER, &session));
    const tess_status st = tess_session_export(session, &request);
    tess_session_close(&session);
    TESS_TRY(st);
    strcat(path, file[form]);
    const flux_launch l = {.name = "none",
                           .model = r->model[FLUX_RUN_TINY],
                           .adapter = path,
                           .override = {"compute.dtype=f32"}};
    return sample(comm, r, &l, output, latent);
}

/* `whole`: latents from the checkpoint; `bound`: of the difference, as a share of the base's. */
static tess_status check_exports(tess_comm *comm, flux_run *r, const flux_launch *trained,
                                 int form_numel, const float *whole, const float *base,
                                 double bound)
{
    static const tess_run_export form[] = {TESS_RUN_EXPORT_PEFT, TESS_RUN_EXPORT_DIFFUSERS,
                                           TESS_RUN_EXPORT_KOHYA, TESS_RUN_EXPORT_COMFYUI};
    static float other[NUMEL];
    for (int i = 0; i < form_numel; i++) {
        tess_status st = TESS_OK;
        TESS_TRY(sample_export(comm, r, trained, form[i], other));
        if (tess_comm_rank(comm) == 0 && !(distance(other, whole) < bound * distance(base, whole)))
            st = TESS_FAIL(TESS_E_STATE, "%s, export %d: latents differ by %g, the base's by %g",
                           trained->name, i, distance(other, whole), distance(base, whole));
        TESS_TRY(tess_agree(comm, st));
    }
    return TESS_OK;
}

/* Magnitudes go along in files of one tool, and come back: they are most of what is trained. */
static tess_status check_dora(tess_comm *comm, flux_run *r, const float *base)
{
    static float whole[NUMEL];
    bool is_done = false;
    const flux_launch train = {.name = "dora",
                               .model = r->model[FLUX_RUN_TINY],
                               .override = {"compute.dtype=f32", "train.learning_rate=0.05",
                                            "lora.dora=true", "lora.targets=kohya"}};
    TESS_TRY(flux_run_train(comm, r, &train, &is_done));
    TESS_TRY(sample(comm, r, &train, "dora", whole));
    return check_exports(comm, r, &train, 3, whole, base, 1e-4); /* ComfyUI has no place for it */
}

static tess_status check_refusals(tess_comm *comm, flux_run *r)
{
    tess_session *session = NULL;
    tess_latent_request request = request_of("/nowhere/x.safetensors");
    static const char *const unknown[] = {"a caption that is not there"};
    const flux_launch l = {.name = "trained", .model = r->model[FLUX_RUN_TINY]};
    TESS_TRY(flux_run_open(comm, r, &l, TESS_SESSION_READER, &session));
    request.caption = unknown;
    tess_status st = tess_session_sample_latents(session, &request);
    const bool is_refused =
        st == TESS_E_CONFIG && strstr(tess_error_message(), "holds no text") != NULL;
    tess_error_clear();
    request.caption = caption;
    request.height = 128;
    st = tess_session_sample_latents(session, &request);
    const bool is_large =
        st == TESS_E_CONFIG && strstr(tess_error_message(), "data.resolution") != NULL;
    tess_session_close(&session);
    TESS_CHECK(is_refused && is_large, TESS_E_STATE, "refusals: %s", tess_error_message());
    tess_error_clear();
    return TESS_OK;
}

/* Exports and samples do without the cache that was trained on. */
static tess_status check_without_cache(tess_comm *comm, flux_run *r, const float *whole)
{
    static float other[NUMEL];
    char gone[400], path[400];
    tess_session *session = NULL;
    snprintf(gone, sizeof gone, "data.path=%s/gone.h5", r->dir);
    snprintf(path, sizeof path, "%s/without", r->dir);
    const flux_launch l = {.name = "trained", .model = r->model[FLUX_RUN_TINY], .override = {gone}};
    const tess_export_request request = {
        .dir = path, .format = TESS_RUN_EXPORT_KOHYA, .dt = TESS_F32};
    tess_latent_request images = request_of(path);
    char output[420];
    TESS_TRY(flux_run_open_without(comm, r, &l, &session));
    tess_status st = tess_session_export(session, &request);
    snprintf(output, sizeof output, "%s.safetensors", path);
    images.cache = r->train;
    images.output = output;
    if (st == TESS_OK)
        st = tess_session_sample_latents(session, &images);
    tess_session_close(&session);
    TESS_TRY(st);
    if (tess_comm_rank(comm) == 0)
        st = read_latents(r, output, other);
    TESS_TRY(tess_agree(comm, st));
    return expect_equal(comm, other, whole, "without the cache");
}

static tess_status run_all(tess_comm *comm, tess_comm *self, flux_run *r)
{
    static float whole[NUMEL], base[NUMEL];
    bool is_done = false;
    const flux_launch train = {.name = "trained",
                               .model = r->model[FLUX_RUN_TINY],
                               .override = {"compute.dtype=f32", "train.learning_rate=0.05"}};
    const flux_launch l = {.name = "trained", .model = r->model[FLUX_RUN_TINY]};
    const flux_launch none = {
        .name = "trained", .model = r->model[FLUX_RUN_TINY], .checkpoint = "none"};
    TESS_TRY(flux_run_train(comm, r, &train, &is_done));
    TESS_TRY(sample(comm, r, &l, "whole", whole));
    TESS_TRY(sample(comm, r, &none, "base", base));
    tess_status st = TESS_OK;
    if (tess_comm_rank(comm) == 0 && !(distance(whole, base) > 0.01))
        st = TESS_FAIL(TESS_E_STATE, "training moved latents by %g only", distance(whole, base));
    TESS_TRY(tess_agree(comm, st));
    TESS_TRY(check_ranks(comm, self, r, whole));
    TESS_TRY(check_exports(comm, r, &l, 4, whole, base, 0.1));
    TESS_TRY(check_dora(comm, r, base));
    TESS_TRY(check_without_cache(comm, r, whole));
    return check_refusals(comm, r);
}

static tess_status run(tess_comm *comm)
{
    tess_comm *self = NULL;
    flux_run r;
    TESS_TRY(tess_comm_create_self(&self));
    tess_status st = flux_run_create(comm, &r);
    if (st == TESS_OK)
        st = run_all(comm, self, &r);
    flux_run_destroy(comm, &r);
    tess_comm_destroy(&self);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
