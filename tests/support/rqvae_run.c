#include "tests/support/rqvae_run.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "core/rng.h"
#include "format/npy.h"
#include "train/data/vectors.h"
#include "train/session.h"

/* M = 5 micro-batches and K = 19 codes divide by no number of ranks above 1; N = 301 vectors are
 * less than two epochs of 12 steps with 40 vectors each, and no whole number of steps. */
enum { SEED = 11, MICRO_BATCH = 8, MICRO_BATCHES = 5 };
static const char run_text[] = "model: {family: %s}\n"
                               "data: {path: %s, eval_path: %s%s}\n"
                               "train: {steps: 12, micro_batch: %d, micro_batches: %d, "
                               "learning_rate: 1.0e-2, warmup_steps: 2,\n"
                               "        eval_every: 5, seed: %d}\n"
                               "quantizer: {%s, %s, window: 5}\n"
                               "compute: {memory_limit: 1GiB}\n"
                               "output: {dir: %s/%s, checkpoint_every: 4, keep: 2}\n";

tess_status rqvae_make_image(vector_run *v, const char *folder, int idx, int extent)
{
    enum { EXTENT_MAX = 32 };
    const tess_rng rng = tess_rng_make(5, TESS_RNG_TEST, 0, 0);
    tess_npy_header h = {.descr = "|u1", .dim_numel = 3, .dim = {extent, extent, 3}};
    char path[600], bytes[TESS_NPY_MADE_NBYTES + 3 * EXTENT_MAX * EXTENT_MAX];
    double draw[9]; /* of a disk, its color and the other one */
    for (int i = 0; i < TESS_NELEM(draw); i++)
        draw[i] = tess_rng_uniform(&rng, (uint64_t)(idx * TESS_NELEM(draw) + i));
    tess_npy_make_header(&h, bytes);
    for (int i = 0; i < 3 * extent * extent; i++) {
        const double y = i / 3 / extent - extent * draw[0], x = i / 3 % extent - extent * draw[1];
        const bool is_inside = sqrt(x * x + y * y) < extent * (0.1 + 0.4 * draw[2]);
        bytes[h.data_offset_nbytes + i] = (char)(int)(255.0 * draw[(is_inside ? 3 : 6) + i % 3]);
    }
    snprintf(path, sizeof path, "%s/%s/%03d.npy", v->dir, folder, idx);
    return tess_io_write_all(v->ctx.io, path, bytes,
                             (size_t)(h.data_offset_nbytes + 3 * extent * extent));
}

tess_status rqvae_make_images(tess_comm *comm, vector_run *v, const char *folder, int numel)
{
    char path[600];
    tess_status st = TESS_OK;
    snprintf(path, sizeof path, "%s/%s", v->dir, folder);
    if (tess_comm_rank(comm) == 0)
        st = tess_io_mkdir(v->ctx.io, path, false);
    for (int i = 0; i < numel && st == TESS_OK && tess_comm_rank(comm) == 0; i++)
        st = rqvae_make_image(v, folder, i, 16);
    return tess_agree(comm, st);
}

tess_status rqvae_write(vector_run *v, const char *name, const float *x, const int64_t shape[2])
{
    char path[600];
    tess_vectors_writer *writer = NULL;
    snprintf(path, sizeof path, "%s/%s", v->dir, name);
    TESS_TRY(tess_vectors_writer_create(&v->ctx, path, shape[0], shape[1], &writer));
    tess_status st = tess_vectors_writer_append(writer, x, shape[0]);
    if (st == TESS_OK)
        st = tess_vectors_writer_finish(writer);
    tess_vectors_writer_destroy(&writer);
    return st;
}

/* ---- masks ---- */

int64_t rqvae_vector_at(int64_t n, int64_t place)
{
    const tess_rng rng = tess_rng_make(SEED, TESS_RNG_SHUFFLE, 0, 0);
    return tess_rng_permute(&rng, n, place);
}

bool rqvae_is_valid(int64_t n, int64_t vector_idx)
{
    for (int64_t i = MICRO_BATCH; i < (MICRO_BATCHES - 1) * MICRO_BATCH; i++)
        if (rqvae_vector_at(n, i) == vector_idx)
            return false;
    return vector_idx * 7 % 10 < 3;
}

/* In step 0 there are micro-batches with valid vectors and without, and beside ranks with some one
 * with none. */
static tess_status check_mask(const vector_run *v, int world)
{
    int of_batch[MICRO_BATCHES] = {0}, full_batches = 0, full_ranks = 0;
    for (int i = 0; i < MICRO_BATCHES * MICRO_BATCH; i++)
        of_batch[i / MICRO_BATCH] += rqvae_is_valid(v->n, rqvae_vector_at(v->n, i));
    for (int m = 0; m < MICRO_BATCHES; m++)
        full_batches += of_batch[m] > 0;
    for (int r = 0; r < TESS_MIN(world, MICRO_BATCHES); r++) {
        int numel = 0;
        for (int m = r; m < MICRO_BATCHES; m += world)
            numel += of_batch[m];
        full_ranks += numel > 0;
    }
    TESS_CHECK(full_batches > 0 && full_batches < MICRO_BATCHES, TESS_E_STATE,
               "mask: %d micro-batches of step 0 have valid vectors", full_batches);
    TESS_CHECK(full_ranks > 0 && (world == 1 || full_ranks < TESS_MIN(world, MICRO_BATCHES)),
               TESS_E_STATE, "mask: %d ranks have valid vectors in step 0", full_ranks);
    return TESS_OK;
}

static tess_status write_mask(vector_run *v)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(v->n, sizeof(float), &memory));
    float *valid = memory;
    for (int64_t i = 0; i < v->n; i++)
        valid[i] = rqvae_is_valid(v->n, i) ? 1.0f : 0.0f;
    const tess_status st = rqvae_write(v, "mask.fbin", valid, (const int64_t[]){v->n, 1});
    tess_free(memory);
    return st;
}

tess_status rqvae_make_mask(tess_comm *comm, vector_run *v)
{
    TESS_TRY(check_mask(v, tess_comm_world(comm)));
    return tess_agree(comm, tess_comm_rank(comm) == 0 ? write_mask(v) : TESS_OK);
}

tess_status rqvae_open(tess_comm *comm, vector_run *v, const rqvae_launch *l, bool is_reader,
                       tess_session **session)
{
    static volatile sig_atomic_t stop = 1;
    char text[4096], masks[1400] = "";
    tess_run_override overrides[RQVAE_OVERRIDE_MAX];
    int numel = 0;
    for (; numel < RQVAE_OVERRIDE_MAX && l->override[numel] != NULL; numel++)
        overrides[numel] = (tess_run_override){l->override[numel], numel + 1};
    char data[600];
    if (l->images != NULL)
        snprintf(data, sizeof data, "%s/%s", v->dir, l->images);
    else
        snprintf(data, sizeof data, "%s", v->file);
    const char *mask = l->images != NULL ? "positions.fbin" : "mask.fbin";
    if (l->is_masked)
        snprintf(masks, sizeof masks, ", mask_path: %s/%s, eval_mask_path: %s/%s", v->dir, mask,
                 v->dir, mask);
    snprintf(text, sizeof text, run_text, l->images != NULL ? "vqvae" : "rqvae", data, data, masks,
             MICRO_BATCH, MICRO_BATCHES, SEED,
             l->quantizer != NULL ? l->quantizer : "codes: 19, levels: 3, code_dim: 6",
             l->images != NULL
                 ? "downsample: 2, channels: 6, residual_blocks: 1, residual_channels: 4"
                 : "encoder: [24, 10]",
             v->dir, l->name);
    const tess_session_options options = {.kind =
                                              is_reader ? TESS_SESSION_READER : TESS_SESSION_TRAIN,
                                          .run_path = "run.yaml",
                                          .run_text = text,
                                          .overrides = overrides,
                                          .override_numel = numel,
                                          .needs_data = !is_reader || l->reads_data,
                                          .device = l->device,
                                          .kernels = l->kernels,
                                          .stop_request = l->is_stopped ? &stop : NULL};
    return tess_session_open(&v->ctx, comm, &options, session);
}

tess_status rqvae_train(tess_comm *comm, vector_run *v, const rqvae_launch *l, bool *is_done)
{
    tess_session *session = NULL;
    TESS_TRY(rqvae_open(comm, v, l, false, &session));
    tess_status st = tess_session_train(session);
    tess_session_close(&session);
    *is_done = st == TESS_OK;
    if (st == TESS_E_PREEMPTED && l->is_stopped) {
        tess_error_clear();
        st = TESS_OK;
    }
    return st;
}

/* ---- what a run leaves ---- */

static tess_status read_file(vector_run *v, const char *run, const char *name, char **text,
                             size_t *nbytes)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s/%s", v->dir, run, name);
    return tess_io_read_all(v->ctx.io, path, 1 << 24, text, nbytes);
}

/* Bits of the losses, and the norms in front of the learning rates. */
static tess_status hash_steps(const char *text, tess_sha256_state *sha, rqvae_outcome *out)
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

tess_status rqvae_outcome_of(vector_run *v, const char *run, rqvae_outcome *out)
{
    static const char *const file[] = {"metrics.jsonl", "levels.jsonl", "eval.jsonl",
                                       "export/model.safetensors"};
    tess_sha256_state *sha = NULL;
    TESS_TRY(tess_sha256_create(&sha));
    tess_status st = TESS_OK;
    for (int i = 0; i < TESS_NELEM(file) && st == TESS_OK; i++) {
        char *text = NULL;
        size_t nbytes = 0;
        st = read_file(v, run, file[i], &text, &nbytes);
        if (st == TESS_OK)
            st = i == 0 ? hash_steps(text, sha, out) : tess_sha256_update(sha, text, nbytes);
        tess_free(text);
    }
    if (st == TESS_OK)
        st = tess_sha256_final(sha, &out->digest);
    tess_sha256_destroy(&sha);
    return st;
}

tess_status rqvae_expect_same(vector_run *v, const char *a_name, const char *b_name)
{
    rqvae_outcome a = {0}, b = {0};
    TESS_TRY(rqvae_outcome_of(v, a_name, &a));
    TESS_TRY(rqvae_outcome_of(v, b_name, &b));
    TESS_CHECK(tess_sha256_is_equal(&a.digest, &b.digest), TESS_E_STATE,
               "runs '%s' and '%s' differ: last losses %.17g and %.17g", a_name, b_name,
               a.last_loss, b.last_loss);
    TESS_CHECK(a.step_numel == RQVAE_STEPS, TESS_E_STATE, "run '%s' has %d steps", a_name,
               a.step_numel);
    return TESS_OK;
}

tess_status rqvae_check_alone(tess_comm *comm, tess_comm *self, vector_run *v,
                              const rqvae_launch *l)
{
    char alone_name[48];
    bool is_done = false;
    rqvae_launch alone = *l;
    snprintf(alone_name, sizeof alone_name, "%s-alone", l->name);
    alone.name = alone_name;
    TESS_TRY(rqvae_train(comm, v, l, &is_done));
    tess_status st = TESS_OK;
    if (tess_comm_rank(comm) == 0)
        st = rqvae_train(self, v, &alone, &is_done);
    if (st == TESS_OK && tess_comm_rank(comm) == 0)
        st = rqvae_expect_same(v, l->name, alone_name);
    return tess_agree(comm, st);
}

/* Stopped after every step, with all ranks and with one in turn. */
tess_status rqvae_check_resume(tess_comm *comm, tess_comm *self, vector_run *v,
                               const rqvae_launch *whole)
{
    char parts_name[32];
    rqvae_launch parts = *whole;
    snprintf(parts_name, sizeof parts_name, "%s-parts", whole->name);
    parts.name = parts_name;
    parts.is_stopped = true;
    int64_t is_over = 0;
    int launches = 0;
    bool is_done = false;
    TESS_TRY(rqvae_train(comm, v, whole, &is_done));
    for (; is_over == 0; launches++) {
        tess_status st = TESS_OK;
        is_done = false;
        if (launches % 2 == 0)
            st = rqvae_train(comm, v, &parts, &is_done);
        else if (tess_comm_rank(comm) == 0)
            st = rqvae_train(self, v, &parts, &is_done);
        TESS_TRY(tess_agree(comm, st));
        is_over = is_done;
        TESS_TRY(tess_comm_control(comm, NULL, 0, &is_over, 1));
    }
    TESS_CHECK(launches == RQVAE_STEPS, TESS_E_STATE, "%d launches of one step each", launches);
    return tess_agree(comm, rqvae_expect_same(v, whole->name, parts_name));
}

tess_status rqvae_expect_refused(tess_comm *comm, vector_run *v, const rqvae_launch *l,
                                 tess_status code, const char *words)
{
    bool is_done = false;
    const tess_status st = rqvae_train(comm, v, l, &is_done);
    TESS_CHECK(st == code && strstr(tess_error_message(), words) != NULL, TESS_E_STATE,
               "%s: expected a refusal with '%s', found %s: %s", l->name, words,
               tess_status_name(st), tess_error_message());
    tess_error_clear();
    return TESS_OK;
}

tess_status rqvae_planned(vector_run *v, const char *run, const char *key, int64_t *out)
{
    char path[400], *text = NULL;
    size_t nbytes = 0;
    snprintf(path, sizeof path, "%s/%s/plan.json", v->dir, run);
    TESS_TRY(tess_io_read_all(v->ctx.io, path, 1 << 20, &text, &nbytes));
    const char *at = strstr(text, key);
    if (at != NULL)
        *out = strtoll(at + strlen(key) + 2, NULL, 10);
    tess_free(text);
    TESS_CHECK(at != NULL, TESS_E_FORMAT, "%s: no '%s'", path, key);
    return TESS_OK;
}
