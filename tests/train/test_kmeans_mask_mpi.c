/*
 * k-means jobs over vectors of which some are masked, and NaN: the bits are those of a file that
 * has the valid ones alone, on any number of ranks, in both shardings, and after a stop at every
 * step; masks that cannot be meant are refused.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "support/rank_test.h"
#include "support/rqvae_run.h"
#include "train/data/codes_file.h"
#include "train/vectors/vectors_code.h"

enum { N = 5003, D = 6, BAD = 4321 };

/* Neither the first nor the last vector, none of a whole block, single ones and runs of others. */
static bool is_valid(int64_t i)
{
    return i > 0 && i < N - 1 && (i < 1000 || i >= 3100) && (i * 7 % 10 < 6 || i / 100 % 2 == 1);
}

typedef struct files {
    float *x; /* [N, D] */
    float *flag;
    int64_t kept_numel;
} files;

static tess_status write_kept(vector_run *v, files *f)
{
    for (int64_t i = 0; i < N; i++) {
        if (is_valid(i))
            memcpy(f->x + f->kept_numel++ * D, v->x + i * D, D * sizeof *f->x);
        f->flag[i] = is_valid(i) ? 1.0f : 0.0f;
    }
    TESS_TRY(rqvae_write(v, "kept.fbin", f->x, (const int64_t[]){f->kept_numel, D}));
    return rqvae_write(v, "mask.fbin", f->flag, (const int64_t[]){N, 1});
}

static tess_status write_masked(vector_run *v, files *f)
{
    for (int64_t i = 0; i < N; i++)
        for (int64_t j = 0; j < D; j++)
            f->x[i * D + j] = is_valid(i) ? v->x[i * D + j] : NAN;
    TESS_TRY(rqvae_write(v, "masked.npy", f->x, (const int64_t[]){N, D}));
    f->x[BAD * D + 2] = INFINITY;
    return rqvae_write(v, "bad.npy", f->x, (const int64_t[]){N, D});
}

/* Masks of another form, with another number, and of nothing but zeros. */
static tess_status write_wrong(vector_run *v, files *f)
{
    TESS_TRY(rqvae_write(v, "short.fbin", f->flag, (const int64_t[]){N - 1, 1}));
    f->flag[17] = 0.5f;
    TESS_TRY(rqvae_write(v, "half.fbin", f->flag, (const int64_t[]){N, 1}));
    memset(f->flag, 0, N * sizeof *f->flag);
    return rqvae_write(v, "none.fbin", f->flag, (const int64_t[]){N, 1});
}

static tess_status write_files(tess_comm *comm, vector_run *v)
{
    void *x = NULL, *flag = NULL;
    tess_status st = TESS_OK;
    TESS_CHECK(is_valid(BAD), TESS_E_STATE, "vector %d is masked", BAD);
    if (tess_comm_rank(comm) == 0) {
        st = tess_alloc_array((int64_t)N * D, sizeof(float), &x);
        if (st == TESS_OK)
            st = tess_alloc_array(N, sizeof(float), &flag);
        files f = {.x = x, .flag = flag};
        if (st == TESS_OK)
            st = write_kept(v, &f);
        if (st == TESS_OK)
            st = write_masked(v, &f);
        if (st == TESS_OK)
            st = write_wrong(v, &f);
        tess_free(x);
        tess_free(flag);
    }
    return tess_agree(comm, st);
}

/* The same folder, another file and mask. */
static vector_run over(const vector_run *v, const char *file, const char *mask)
{
    vector_run out = *v;
    snprintf(out.file, sizeof out.file, "%.200s/%s", v->dir, file);
    if (mask != NULL)
        snprintf(out.mask, sizeof out.mask, "%.200s/%s", v->dir, mask);
    return out;
}

static tess_status check_same_bits(tess_comm *comm, tess_comm *self, const vector_run *v)
{
    static const char *const choices[] = {"quantizer.levels=2", "quantizer.batch=500",
                                          "quantizer.init=sample"};
    vector_run kept = over(v, "kept.fbin", NULL), masked = over(v, "masked.npy", "mask.fbin");
    for (int i = 0; i < TESS_NELEM(choices); i++)
        TESS_TRY(vector_run_check_resume(comm, self, &kept, &masked, i, choices[i]));
    return TESS_OK;
}

/* Through the checkpoint of the first choice. Collective. */
static tess_status encode(tess_comm *comm, vector_run *v, const char *to, tess_encode_result *out)
{
    char path[400];
    tess_session *session = NULL;
    snprintf(path, sizeof path, "%s/%s", v->dir, to);
    TESS_TRY(vector_run_read(comm, v, "parts0", "quantizer.levels=2", &session));
    const tess_status st =
        tess_session_encode(session, v->file, v->mask[0] != '\0' ? v->mask : NULL, path, out);
    tess_session_close(&session);
    return st;
}

static tess_status read_codes(const vector_run *v, const char *name, int64_t numel, int64_t *code)
{
    char path[400];
    tess_codes_file *f = NULL;
    snprintf(path, sizeof path, "%s/%s", v->dir, name);
    TESS_TRY(tess_codes_file_open(&v->ctx, path, &f));
    const tess_status st = tess_codes_file_read(f, 0, numel, code);
    tess_codes_file_close(&f);
    return st;
}

/* Codes of the valid vectors at their places, -1 elsewhere. Local. */
static tess_status compare_codes(const vector_run *v, int64_t kept_numel)
{
    static int64_t kept[N][2], all[N][2];
    int64_t at = 0;
    TESS_TRY(read_codes(v, "kept.h5", kept_numel, kept[0]));
    TESS_TRY(read_codes(v, "all.h5", N, all[0]));
    for (int64_t i = 0; i < N; i++) {
        for (int l = 0; l < 2; l++)
            TESS_CHECK(all[i][l] == (is_valid(i) ? kept[at][l] : -1), TESS_E_STATE,
                       "vector %" PRId64 ": code %" PRId64, i, all[i][l]);
        at += is_valid(i);
    }
    TESS_CHECK(at == kept_numel, TESS_E_STATE, "%" PRId64 " vectors are valid", at);
    return TESS_OK;
}

static tess_status check_codes(tess_comm *comm, const vector_run *v)
{
    vector_run kept = over(v, "kept.fbin", NULL), masked = over(v, "masked.npy", "mask.fbin");
    tess_encode_result of_kept, of_all;
    TESS_TRY(encode(comm, &kept, "kept.h5", &of_kept));
    TESS_TRY(encode(comm, &masked, "all.h5", &of_all));
    TESS_CHECK(of_kept.sample_numel == of_all.sample_numel && of_kept.error == of_all.error,
               TESS_E_STATE, "errors %.17g and %.17g", of_kept.error, of_all.error);
    return tess_agree(comm, compare_codes(v, of_kept.sample_numel));
}

static tess_status check_refusals(tess_comm *comm, const vector_run *v)
{
    static const struct {
        const char *file, *mask;
        tess_status code;
        const char *words;
    } wrong[] = {{"masked.npy", "short.fbin", TESS_E_CONFIG, "is [5002, 1], expected [5003, 1]"},
                 {"masked.npy", "kept.fbin", TESS_E_CONFIG, "a number for each vector"},
                 {"masked.npy", "half.fbin", TESS_E_FORMAT, "of vector 17 is 0.5, expected 0"},
                 {"masked.npy", "none.fbin", TESS_E_FORMAT, "masks all of the 5003 vectors"},
                 {"bad.npy", "mask.fbin", TESS_E_FORMAT, "dimension 2 of vector 4321 is inf"},
                 {"masked.npy", NULL, TESS_E_FORMAT, "dimension 0 of vector 0 is nan"}};
    for (int i = 0; i < TESS_NELEM(wrong); i++) {
        vector_run bad = over(v, wrong[i].file, wrong[i].mask);
        bool is_done = false;
        const vector_launch l = {.name = "refused", .override = {"quantizer.levels=1"}};
        const tess_status st = vector_run_train(comm, &bad, &l, &is_done);
        TESS_CHECK(st == wrong[i].code && strstr(tess_error_message(), wrong[i].words) != NULL,
                   TESS_E_STATE, "%s with %s: status %d, message '%s', expected '%s'",
                   wrong[i].file, wrong[i].mask, (int)st, tess_error_message(), wrong[i].words);
        tess_error_clear();
    }
    return TESS_OK;
}

static tess_status body(tess_comm *comm)
{
    tess_comm *self = NULL;
    vector_run v;
    TESS_TRY(tess_comm_create_self(&self));
    TESS_TRY(vector_run_create(comm, N, D, VECTORS_CLUSTERS, &v));
    tess_status st = write_files(comm, &v);
    if (st == TESS_OK)
        st = check_same_bits(comm, self, &v);
    if (st == TESS_OK)
        st = check_codes(comm, &v);
    if (st == TESS_OK)
        st = check_refusals(comm, &v);
    vector_run_destroy(comm, &v);
    tess_comm_destroy(&self);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, body); }
