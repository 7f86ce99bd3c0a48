#include "support/vector_run.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "core/rng.h"
#include "shard/ckpt.h"

/* ---- the file ---- */

static void fill(vector_run *v, vector_kind kind)
{
    const tess_rng center = tess_rng_make(3, TESS_RNG_TEST, 1, 0);
    const tess_rng noise = tess_rng_make(3, TESS_RNG_TEST, 2, 0);
    for (int64_t i = 0; i < v->n; i++) {
        const int64_t c = (int64_t)tess_rng_below(&noise, (uint64_t)(i + (INT64_C(1) << 40)), 50);
        for (int64_t j = 0; j < v->d; j++) {
            double x = 5.0 * tess_rng_normal(&center, (uint64_t)(c * v->d + j));
            x += tess_rng_normal(&noise, (uint64_t)(i * v->d + j));
            if (kind == VECTORS_EQUAL)
                x = 0.1 * (double)(j + 1);
            if (kind == VECTORS_BLANK && i % 3 != 0)
                x = 30.0; /* outside the clusters */
            v->x[i * v->d + j] = kind == VECTORS_ZERO ? 0.0f : (float)x;
        }
    }
    if (kind == VECTORS_ONE_NAN)
        v->x[1234 * v->d + 1] = NAN;
}

static tess_status write_file(const vector_run *v)
{
    const size_t record = 4 + (size_t)v->d * 4;
    const int32_t dim = (int32_t)v->d;
    void *memory = NULL;
    TESS_TRY(tess_alloc(record * (size_t)v->n, &memory));
    char *at = memory;
    for (int64_t i = 0; i < v->n; i++, at += record) {
        memcpy(at, &dim, 4);
        memcpy(at + 4, v->x + i * v->d, record - 4);
    }
    const tess_status st = tess_io_write_all(v->ctx.io, v->file, memory, record * (size_t)v->n);
    tess_free(memory);
    return st;
}

tess_status vector_run_create(tess_comm *comm, int64_t n, int64_t d, vector_kind kind,
                              vector_run *v)
{
    void *x = NULL;
    memset(v, 0, sizeof *v);
    v->n = n;
    v->d = d;
    snprintf(v->dir, sizeof v->dir, "/tmp/tessera-vectors-XXXXXX");
    tess_status st = tess_io_create(tess_comm_rank(comm), &v->ctx.io);
    if (st == TESS_OK)
        st = tess_alloc_array(n * d, sizeof(float), &x);
    v->x = x;
    if (st == TESS_OK)
        fill(v, kind);
    if (st == TESS_OK && tess_comm_rank(comm) == 0 && mkdtemp(v->dir) == NULL)
        st = TESS_FAIL(TESS_E_IO, "no temporary folder '%s'", v->dir);
    TESS_TRY(tess_agree(comm, st));
    TESS_TRY(tess_comm_bcast(comm, 0, v->dir, sizeof v->dir));
    snprintf(v->file, sizeof v->file, "%s/train.fvecs", v->dir);
    if (tess_comm_rank(comm) == 0)
        st = write_file(v);
    return tess_agree(comm, st);
}

void vector_run_destroy(tess_comm *comm, vector_run *v)
{
    char command[512];
    if (tess_comm_barrier(comm) == TESS_OK && tess_comm_rank(comm) == 0) {
        snprintf(command, sizeof command, "rm -rf '%s'", v->dir);
        if (system(command) != 0)
            fprintf(stderr, "could not remove '%s'\n", v->dir);
    }
    tess_free(v->x);
    tess_io_destroy(&v->ctx.io);
}

/* ---- jobs ---- */

static tess_status open_local(tess_comm *comm, const vector_run *v, const vector_job_options *o,
                              vector_job *job)
{
    tess_kmeans_plan plan;
    const tess_kmeans_plan_request request = {.config = o->config,
                                              .vector_numel = v->n,
                                              .dim = v->d,
                                              .world = tess_comm_world(comm),
                                              .thread_numel = o->thread_numel,
                                              .sharding = o->sharding};
    TESS_TRY(tess_vectors_open(&v->ctx, v->file, &job->vectors));
    TESS_TRY(tess_kmeans_plan_make(&request, &tess_kernels_cpu, &plan));
    if (o->thread_numel > 1)
        TESS_TRY(tess_pool_create(o->thread_numel, &job->pool));
    tess_stream_init_inline(&job->stream, "test", job->pool);
    const tess_kmeans_parts parts = {.ctx = &v->ctx,
                                     .plan = &plan,
                                     .kernels = &tess_kernels_cpu,
                                     .stream = &job->stream,
                                     .host_stream = &job->stream,
                                     .comm = comm,
                                     .vectors = job->vectors};
    return tess_kmeans_create(&parts, &job->job);
}

tess_status vector_job_open(tess_comm *comm, const vector_run *v, const vector_job_options *options,
                            vector_job *job)
{
    memset(job, 0, sizeof *job);
    const tess_status st = tess_agree(comm, open_local(comm, v, options, job));
    if (st != TESS_OK)
        vector_job_close(job);
    return st;
}

void vector_job_close(vector_job *job)
{
    tess_kmeans_destroy(&job->job);
    tess_pool_destroy(&job->pool);
    tess_vectors_close(&job->vectors);
}

/* ---- whole runs ---- */

static const char run_text[] =
    "model: {family: kmeans}\n"
    "data: {path: %s, eval_path: %s%s}\n"
    "train: {seed: 11}\n"
    "quantizer: {codes: 37, levels: 1, beam: 2, passes: 3, refine: 2, sharding: %s}\n"
    "output: {dir: %s/%s, checkpoint_every: 1, keep: 2}\n";

tess_status vector_run_open(tess_comm *comm, vector_run *v, const vector_launch *l, bool is_reader,
                            tess_session **session)
{
    char text[4096], masks[700] = "";
    static volatile sig_atomic_t stop = 1;
    tess_run_override overrides[VECTOR_OVERRIDE_MAX];
    int numel = 0;
    for (; numel < VECTOR_OVERRIDE_MAX && l->override[numel] != NULL; numel++)
        overrides[numel] = (tess_run_override){l->override[numel], numel + 1};
    if (v->mask[0] != '\0')
        snprintf(masks, sizeof masks, ", mask_path: %s, eval_mask_path: %s", v->mask, v->mask);
    /* Another sharding on more ranks: the bits do not tell. */
    snprintf(text, sizeof text, run_text, v->file, v->file, masks,
             tess_comm_world(comm) > 1 ? "rows" : "replicated", v->dir, l->name);
    const tess_session_options options = {.kind =
                                              is_reader ? TESS_SESSION_READER : TESS_SESSION_TRAIN,
                                          .run_path = "run.yaml",
                                          .run_text = text,
                                          .overrides = overrides,
                                          .override_numel = numel,
                                          .device = l->device,
                                          .kernels = l->kernels,
                                          .stop_request = l->is_stopped ? &stop : NULL};
    return tess_session_open(&v->ctx, comm, &options, session);
}

tess_status vector_run_read(tess_comm *comm, vector_run *v, const char *name, const char *override,
                            tess_session **session)
{
    char dim[32];
    snprintf(dim, sizeof dim, "quantizer.dim=%lld", (long long)v->d);
    const vector_launch l = {.name = name, .override = {override, dim}};
    return vector_run_open(comm, v, &l, true, session);
}

tess_status vector_run_train(tess_comm *comm, vector_run *v, const vector_launch *l, bool *is_done)
{
    tess_session *session = NULL;
    TESS_TRY(vector_run_open(comm, v, l, false, &session));
    tess_status st = tess_session_train(session);
    tess_session_close(&session);
    *is_done = st == TESS_OK;
    if (st == TESS_E_PREEMPTED && l->is_stopped) {
        tess_error_clear();
        st = TESS_OK;
    }
    return st;
}

/* Where the bits of a step's error stand in a line of metrics.jsonl. */
static tess_status hash_losses(const char *text, tess_sha256_state *sha)
{
    static const char key[] = "\"loss_bits\": \"";
    for (const char *p = strstr(text, key); p != NULL; p = strstr(p + 1, key))
        TESS_TRY(tess_sha256_update(sha, p + sizeof key - 1, 16));
    return TESS_OK;
}

tess_status vector_run_outcome(vector_run *v, const char *name, tess_sha256 *out)
{
    char path[600], *text = NULL;
    size_t nbytes = 0;
    tess_sha256_state *sha = NULL;
    TESS_TRY(tess_sha256_create(&sha));
    tess_status st = TESS_OK;
    static const char *const files[] = {"metrics.jsonl", "export/codebooks.safetensors"};
    for (int i = 0; i < TESS_NELEM(files) && st == TESS_OK; i++) {
        snprintf(path, sizeof path, "%s/%s/%s", v->dir, name, files[i]);
        st = tess_io_read_all(v->ctx.io, path, 1 << 24, &text, &nbytes);
        if (st == TESS_OK)
            st = i == 0 ? hash_losses(text, sha) : tess_sha256_update(sha, text, nbytes);
        tess_free(text);
        text = NULL;
    }
    if (st == TESS_OK)
        st = tess_sha256_final(sha, out);
    tess_sha256_destroy(&sha);
    return st;
}

static tess_status train_in_parts(tess_comm *comm, tess_comm *self, vector_run *v,
                                  const vector_launch *l)
{
    bool is_done = false, is_alone = false;
    int launches = 0;
    for (; !is_done; launches++, is_alone = !is_alone) {
        tess_status st = TESS_OK;
        if (!is_alone)
            st = vector_run_train(comm, v, l, &is_done);
        else if (tess_comm_rank(comm) == 0)
            st = vector_run_train(self, v, l, &is_done);
        TESS_TRY(tess_agree(comm, st));
        int64_t flag = is_done;
        TESS_TRY(tess_comm_control(comm, NULL, 0, &flag, 1));
        is_done = flag != 0;
    }
    TESS_CHECK(launches >= 5, TESS_E_STATE, "%s: only %d launches", l->override[0], launches);
    return TESS_OK;
}

tess_status vector_run_check_resume(tess_comm *comm, tess_comm *self, vector_run *whole,
                                    vector_run *parts, int idx, const char *override)
{
    char name[2][32];
    bool is_done = false;
    tess_sha256 a, b;
    snprintf(name[0], sizeof name[0], "whole%d", idx);
    snprintf(name[1], sizeof name[1], "parts%d", idx);
    vector_launch l = {.name = name[0], .override = {override}};
    TESS_TRY(vector_run_train(comm, whole, &l, &is_done));
    l.name = name[1];
    l.is_stopped = true;
    TESS_TRY(train_in_parts(comm, self, parts, &l));
    TESS_TRY(tess_agree(comm, vector_run_outcome(whole, name[0], &a)));
    TESS_TRY(tess_agree(comm, vector_run_outcome(parts, name[1], &b)));
    TESS_CHECK(tess_sha256_is_equal(&a, &b), TESS_E_STATE,
               "%s: launches in turns gave other bits than one", override);
    return TESS_OK;
}

tess_status vector_run_expect_same_file(vector_run *v, const char *a_name, const char *b_name)
{
    const char *const name[2] = {a_name, b_name};
    char path[600], *text[2] = {NULL, NULL};
    size_t nbytes[2] = {0, 0};
    tess_status st = TESS_OK;
    for (int i = 0; i < 2 && st == TESS_OK; i++) {
        snprintf(path, sizeof path, "%s/%s", v->dir, name[i]);
        st = tess_io_read_all(v->ctx.io, path, 1 << 24, &text[i], &nbytes[i]);
    }
    if (st == TESS_OK && (nbytes[0] != nbytes[1] || memcmp(text[0], text[1], nbytes[0]) != 0))
        st = TESS_FAIL(TESS_E_STATE, "'%s' and '%s' differ", a_name, b_name);
    tess_free(text[0]);
    tess_free(text[1]);
    return st;
}
