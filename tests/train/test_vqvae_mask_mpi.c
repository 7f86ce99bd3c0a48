/*
 * Images of which positions are masked: what lies there changes no bit, the bits are those of one
 * rank, of any sharding of the codes, and of a run that is stopped after every step; masks of
 * another form are refused; codes of masked positions are absent, and the error that an encoding
 * tells is that of what decodes.
 * M = 5 micro-batches of 2 images divide by no number of ranks above 1; all of every fourth image
 * is masked, and so are all images of the micro-batches 1 and 2 of the first step.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "tests/support/rank_test.h"
#include "tests/support/rqvae_run.h"
#include "train/data/codes_file.h"
#include "train/data/vectors.h"
#include "train/vectors/vectors_code.h"

enum { N = 37, SIDE = 16, CELL = 4, GRID = SIDE / CELL, POSITIONS = GRID * GRID };
enum { ELEMENTS = 3 * SIDE * SIDE };

#define SMALL "train.micro_batch=2"
#define AVERAGED "type: vq, codes: 19, code_dim: 4, update: ema, decay: 0.8, threshold: 1.5"
#define SIGNS "type: lfq, code_dim: 6, groups: 2"

static bool is_valid(int64_t image, int64_t position)
{
    for (int i = 2; i < 6; i++)
        if (rqvae_vector_at(N, i) == image)
            return false;
    return image % 4 != 1 && (image * 5 + position * 3 + position / 7) % 8 < 5;
}

static int64_t position_of(int64_t element)
{
    const int64_t y = element / 3 / SIDE, x = element / 3 % SIDE;
    return y / CELL * GRID + x / CELL;
}

/* ---- files ---- */

/* The image with other values where it is masked. */
static tess_status make_dirty(vector_run *v, int image)
{
    char path[600], *bytes = NULL;
    size_t nbytes = 0;
    snprintf(path, sizeof path, "%s/images/%03d.npy", v->dir, image);
    TESS_TRY(tess_io_read_all(v->ctx.io, path, 1 << 20, &bytes, &nbytes));
    char *pixel = bytes + nbytes - ELEMENTS;
    for (int i = 0; i < ELEMENTS; i++)
        if (!is_valid(image, position_of(i)))
            pixel[i] = (char)~pixel[i];
    snprintf(path, sizeof path, "%s/dirty/%03d.npy", v->dir, image);
    const tess_status st = tess_io_write_all(v->ctx.io, path, bytes, nbytes);
    tess_free(bytes);
    return st;
}

static tess_status make_masks(vector_run *v)
{
    static float flag[N * POSITIONS];
    int64_t valid_numel = 0;
    for (int64_t i = 0; i < N * POSITIONS; i++) {
        flag[i] = is_valid(i / POSITIONS, i % POSITIONS) ? 1.0f : 0.0f;
        valid_numel += flag[i] > 0.0f;
    }
    TESS_CHECK(valid_numel > N * POSITIONS / 4 && valid_numel < N * POSITIONS / 2, TESS_E_STATE,
               "%" PRId64 " positions are valid", valid_numel);
    TESS_TRY(rqvae_write(v, "positions.fbin", flag, (const int64_t[]){N, POSITIONS}));
    TESS_TRY(rqvae_write(v, "images.fbin", flag, (const int64_t[]){N, 1}));
    memset(flag, 0, sizeof flag);
    return rqvae_write(v, "none.fbin", flag, (const int64_t[]){N, POSITIONS});
}

static tess_status make_files(tess_comm *comm, vector_run *v)
{
    tess_status st = TESS_OK;
    TESS_TRY(rqvae_make_images(comm, v, "images", N));
    TESS_TRY(rqvae_make_images(comm, v, "dirty", 0));
    if (tess_comm_rank(comm) == 0)
        st = make_masks(v);
    for (int i = 0; i < N && st == TESS_OK && tess_comm_rank(comm) == 0; i++)
        st = make_dirty(v, i);
    return tess_agree(comm, st);
}

/* ---- training ---- */

static rqvae_launch masked(const char *name, const char *quantizer, const char *override)
{
    return (rqvae_launch){.name = name,
                          .quantizer = quantizer,
                          .images = "images",
                          .is_masked = true,
                          .override = {SMALL, override}};
}

static tess_status check_bits(tess_comm *comm, tess_comm *self, vector_run *v)
{
    static const char *const choice[][3] = {
        {"vq", AVERAGED, "compute.dtype=f32"},
        {"levels", "codes: 19, code_dim: 4, levels: 2, groups: 2", "compute.dtype=bf16"},
        {"fsq", "type: fsq, axis_levels: [5, 4, 3]", "compute.activation_checkpointing=on"},
        {"lfq", SIGNS, "compute.dtype=f32"}};
    for (int i = 0; i < TESS_NELEM(choice); i++) {
        const rqvae_launch l = masked(choice[i][0], choice[i][1], choice[i][2]);
        rqvae_launch dirty = masked("dirty", l.quantizer, l.override[1]);
        char name[32];
        bool is_done = false;
        TESS_TRY(rqvae_check_alone(comm, self, v, &l));
        snprintf(name, sizeof name, "dirty-%s", l.name);
        dirty.name = name;
        dirty.images = "dirty";
        if (i == 0)
            dirty.override[2] = "quantizer.sharding=rows";
        TESS_TRY(rqvae_train(comm, v, &dirty, &is_done));
        TESS_TRY(tess_agree(comm, rqvae_expect_same(v, l.name, name)));
    }
    return TESS_OK;
}

static tess_status check_refusals(tess_comm *comm, vector_run *v)
{
    char key[400];
    rqvae_launch l = masked("no", AVERAGED, NULL);
    l.override[1] = key;
    snprintf(key, sizeof key, "data.mask_path=%s/images.fbin", v->dir);
    TESS_TRY(rqvae_expect_refused(comm, v, &l, TESS_E_CONFIG,
                                  "is [37, 1], expected [37, 16]: a number for each position"));
    snprintf(key, sizeof key, "data.mask_path=%s/none.fbin", v->dir);
    return rqvae_expect_refused(comm, v, &l, TESS_E_FORMAT,
                                "step 1 of train.steps 12: all of its 10 images are masked");
}

/* ---- codes ---- */

static tess_status encode(tess_comm *comm, vector_run *v, const rqvae_launch *l, const char *folder,
                          tess_encode_result *result)
{
    char from[600], mask[600], to[600];
    tess_session *session = NULL;
    snprintf(from, sizeof from, "%s/%s", v->dir, folder);
    snprintf(mask, sizeof mask, "%s/positions.fbin", v->dir);
    snprintf(to, sizeof to, "%s/%s.h5", v->dir, folder);
    TESS_TRY(rqvae_open(comm, v, l, true, &session));
    const tess_status st = tess_session_encode(session, from, mask, to, result);
    tess_session_close(&session);
    return st;
}

static tess_status decode(tess_comm *comm, vector_run *v, const rqvae_launch *l)
{
    char from[600], to[600];
    tess_session *session = NULL;
    snprintf(from, sizeof from, "%s/images.h5", v->dir);
    snprintf(to, sizeof to, "%s/back.fbin", v->dir);
    TESS_TRY(rqvae_open(comm, v, l, true, &session));
    const tess_status st = tess_session_decode(session, from, to);
    tess_session_close(&session);
    return st;
}

/* Absent where masked, and what lies there changes none of the others. Local. */
static tess_status compare_codes(vector_run *v, int columns)
{
    static int64_t code[2][N * POSITIONS * 2];
    static const char *const name[] = {"images.h5", "dirty.h5"};
    for (int i = 0; i < 2; i++) {
        char path[600];
        tess_codes_file *f = NULL;
        snprintf(path, sizeof path, "%s/%s", v->dir, name[i]);
        TESS_TRY(tess_codes_file_open(&v->ctx, path, &f));
        const tess_status st = tess_codes_file_read(f, 0, N * POSITIONS, code[i]);
        tess_codes_file_close(&f);
        TESS_TRY(st);
    }
    for (int64_t i = 0; i < (int64_t)N * POSITIONS * columns; i++) {
        const int64_t row = i / columns;
        TESS_CHECK((code[0][i] >= 0) == is_valid(row / POSITIONS, row % POSITIONS) &&
                       code[0][i] == code[1][i],
                   TESS_E_STATE, "code of row %" PRId64 " is %" PRId64 " and %" PRId64, row,
                   code[0][i], code[1][i]);
    }
    return TESS_OK;
}

/*
 * The middle where masked; elsewhere the error is what the encoding told. Images in [0, 1] are
 * rounded halves of those in [-1, 1]: each difference is off by up to 2^-23, of an image's root of
 * the mean square, above 0.1 here, 2^-23 / 0.1 = 1.2e-6, and twice that in squares. Local.
 */
static tess_status check_decoded(vector_run *v, const tess_encode_result *told)
{
    static float y[N * ELEMENTS];
    char path[600], *bytes = NULL;
    size_t nbytes = 0;
    tess_vectors *f = NULL;
    double sum = 0.0;
    int64_t valid_numel = 0;
    snprintf(path, sizeof path, "%s/back.fbin", v->dir);
    TESS_TRY(tess_vectors_open(&v->ctx, path, &f));
    const tess_status st = tess_vectors_read(f, 0, N, y);
    tess_vectors_close(&f);
    TESS_TRY(st);
    for (int64_t i = 0; i < (int64_t)N * ELEMENTS; i++) {
        const int64_t image = i / ELEMENTS, at = i % ELEMENTS;
        if (at == 0) {
            tess_free(bytes);
            snprintf(path, sizeof path, "%s/images/%03d.npy", v->dir, (int)image);
            TESS_TRY(tess_io_read_all(v->ctx.io, path, 1 << 20, &bytes, &nbytes));
        }
        const double x = (double)(uint8_t)bytes[nbytes - ELEMENTS + (size_t)at] / 255.0;
        const double difference = 2.0 * ((double)y[i] - x);
        const bool is_one = is_valid(image, position_of(at));
        TESS_CHECK(is_one || y[i] == 0.5f, TESS_E_STATE, "element %" PRId64 " is %g, not masked", i,
                   (double)y[i]);
        sum += is_one ? difference * difference : 0.0;
        valid_numel += is_one;
    }
    tess_free(bytes);
    const double error = sum / (double)valid_numel * ELEMENTS;
    TESS_CHECK(fabs(told->error - error) <= 3e-6 * error && error > 0.01 * ELEMENTS, TESS_E_STATE,
               "encoding told an error of %.9g, what decodes has %.9g", told->error, error);
    return TESS_OK;
}

static tess_status check_codes(tess_comm *comm, vector_run *v, const rqvae_launch *l, int columns)
{
    tess_encode_result result[2];
    int64_t image_numel = 0;
    for (int64_t i = 0; i < N; i++) {
        bool is_any = false;
        for (int p = 0; p < POSITIONS; p++)
            is_any = is_any || is_valid(i, p);
        image_numel += is_any;
    }
    TESS_TRY(encode(comm, v, l, "images", &result[0]));
    TESS_TRY(encode(comm, v, l, "dirty", &result[1]));
    TESS_CHECK(result[0].sample_numel == image_numel && result[0].error == result[1].error &&
                   result[0].mean_square == result[1].mean_square,
               TESS_E_STATE, "%" PRId64 " images, errors %.17g and %.17g", result[0].sample_numel,
               result[0].error, result[1].error);
    TESS_TRY(tess_agree(comm, compare_codes(v, columns)));
    TESS_TRY(decode(comm, v, l));
    return tess_agree(comm, check_decoded(v, &result[0]));
}

static tess_status check_all(tess_comm *comm, tess_comm *self, vector_run *v)
{
    const rqvae_launch whole = masked("whole", AVERAGED, NULL);
    const rqvae_launch vq = masked("vq", AVERAGED, "compute.dtype=f32");
    const rqvae_launch lfq = masked("lfq", SIGNS, "compute.dtype=f32");
    TESS_TRY(make_files(comm, v));
    TESS_TRY(check_bits(comm, self, v));
    TESS_TRY(rqvae_check_resume(comm, self, v, &whole));
    TESS_TRY(check_refusals(comm, v));
    TESS_TRY(check_codes(comm, v, &vq, 1));
    return check_codes(comm, v, &lfq, 2);
}

static tess_status run(tess_comm *comm)
{
    tess_comm *self = NULL;
    vector_run v;
    TESS_TRY(tess_comm_create_self(&self));
    tess_status st = vector_run_create(comm, 10, 4, VECTORS_CLUSTERS, &v);
    if (st == TESS_OK)
        st = check_all(comm, self, &v);
    vector_run_destroy(comm, &v);
    tess_comm_destroy(&self);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
