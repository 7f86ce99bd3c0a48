/*
 * Codes files of trained quantizers on this many ranks: what is not of the model is refused by name
 * before a code is read, whatever its digest says, and errors that are no numbers end an encoding.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "tests/support/rank_test.h"
#include "tests/support/rqvae_run.h"
#include "train/data/codes_file.h"
#include "train/data/vectors.h"
#include "train/vectors/vectors_code.h"

enum { N = 2100, DIM = 5 };

/* Masters as the seed gives them, the same for the same shapes. */
#define UNTRAINED "train.learning_rate=0", "train.steps=2", "train.eval_every=0"
#define FSQ "type: fsq, axis_levels: [5, 4, 3]"
#define STACK "type: residual-fsq, axis_levels: [5, 4, 3]"

static const rqvae_launch upper = {.name = "upper", .quantizer = FSQ, .override = {UNTRAINED}};
static const rqvae_launch lower = {
    .name = "lower", .quantizer = FSQ ", rule: lower", .override = {UNTRAINED}};
static const rqvae_launch stack = {.name = "stack", .quantizer = STACK, .override = {UNTRAINED}};
static const rqvae_launch three = {
    .name = "three", .quantizer = STACK ", levels: 3", .override = {UNTRAINED}};
static const rqvae_launch wide = {
    .name = "wide",
    .quantizer = FSQ,
    .override = {UNTRAINED, "train.micro_batch=1500", "train.micro_batches=1"}};

static void path_of(const vector_run *v, const char *name, char path[600])
{
    snprintf(path, 600, "%s/%s", v->dir, name);
}

typedef enum way { ENCODE, DECODE } way;

/* `from` through the newest checkpoint of the run to `to`, both in the folder. Collective. */
static tess_status convert(tess_comm *comm, vector_run *v, const rqvae_launch *l, way to_do,
                           const char *const file[2])
{
    char from[600], to[600];
    tess_session *session = NULL;
    tess_encode_result result;
    path_of(v, file[0], from);
    path_of(v, file[1], to);
    TESS_TRY(rqvae_open(comm, v, l, true, &session));
    const tess_status st = to_do == ENCODE ? tess_session_encode(session, from, NULL, to, &result)
                                           : tess_session_decode(session, from, to);
    tess_session_close(&session);
    return st;
}

static tess_status expect_refused(tess_status st, tess_status code, const char *words)
{
    TESS_CHECK(st == code && strstr(tess_error_message(), words) != NULL, TESS_E_STATE,
               "expected %s with '%s', found %s: %s", tess_status_name(code), words,
               tess_status_name(st), tess_error_message());
    tess_error_clear();
    return TESS_OK;
}

static tess_status make_runs(tess_comm *comm, vector_run *v)
{
    const rqvae_launch *const all[] = {&upper, &lower, &stack, &three, &wide};
    bool is_done = false;
    for (int i = 0; i < TESS_NELEM(all); i++)
        TESS_TRY(rqvae_train(comm, v, all[i], &is_done));
    TESS_TRY(convert(comm, v, &upper, ENCODE, (const char *[]){"all.fbin", "upper.h5"}));
    return convert(comm, v, &three, ENCODE, (const char *[]){"all.fbin", "three.h5"});
}

/* Equal masters, another rule, another number of levels: another digest. */
static tess_status check_names(tess_comm *comm, vector_run *v)
{
    static const char words[] = "give the checkpoint that encoded it";
    TESS_TRY(
        expect_refused(convert(comm, v, &lower, DECODE, (const char *[]){"upper.h5", "back.fbin"}),
                       TESS_E_CONFIG, words));
    TESS_TRY(
        expect_refused(convert(comm, v, &stack, DECODE, (const char *[]){"three.h5", "back.fbin"}),
                       TESS_E_CONFIG, words));
    return convert(comm, v, &upper, DECODE, (const char *[]){"upper.h5", "back.fbin"});
}

/* A file that states the digest of the run's codes and another form. Local, of rank 0. */
static tess_status forge(vector_run *v, int field)
{
    char from[600], to[600];
    tess_codes_file *file = NULL;
    tess_codes_writer *writer = NULL;
    int64_t code[1 << 6] = {0};
    path_of(v, "upper.h5", from);
    path_of(v, "forged.h5", to);
    TESS_TRY(tess_codes_file_open(&v->ctx, from, &file));
    tess_codes_info info = *tess_codes_file_get_info(file);
    tess_codes_file_close(&file);
    info.vector_numel = 8;
    info.code_numel += field == 0;
    info.level_numel += field == 1 ? 6 : 0;
    info.group_numel += field == 2 ? 6 : 0;
    info.bit_order = field == 3 ? TESS_CODES_MSB_FIRST : info.bit_order;
    TESS_TRY(tess_codes_writer_create(&v->ctx, to, &info, &writer));
    tess_status st = tess_codes_writer_append(writer, code, info.vector_numel);
    if (st == TESS_OK)
        st = tess_codes_writer_finish(writer);
    tess_codes_writer_destroy(&writer);
    return st;
}

static tess_status check_forms(tess_comm *comm, vector_run *v)
{
    static const char *const words[] = {"codes is 61, the checkpoint has 60", "levels is 7",
                                        "groups is 7",
                                        "bit_order is msb-first, the checkpoint has lsb-first"};
    for (int i = 0; i < TESS_NELEM(words); i++) {
        TESS_TRY(tess_agree(comm, tess_comm_rank(comm) == 0 ? forge(v, i) : TESS_OK));
        TESS_TRY(expect_refused(
            convert(comm, v, &upper, DECODE, (const char *[]){"forged.h5", "back.fbin"}),
            TESS_E_FORMAT, words[i]));
    }
    return TESS_OK;
}

/* Its square is finite in f64, its error in f32 is not. */
static tess_status make_files(vector_run *v)
{
    TESS_TRY(rqvae_write(v, "all.fbin", v->x, (const int64_t[]){N, DIM}));
    for (int j = 0; j < DIM; j++)
        v->x[1234 * DIM + j] = 3e38f;
    return rqvae_write(v, "huge.fbin", v->x, (const int64_t[]){N, DIM});
}

/* A vector that becomes NaN: its steps are skipped, `latent` too, and what levels.jsonl tells is of
 * whole micro-batches of 200 finite errors each. */
static tess_status check_windows(tess_comm *comm, vector_run *v)
{
    static const char *const quantizer[] = {FSQ, "type: latent, axis_levels: [5, 4, 3]"};
    char data[700];
    snprintf(data, sizeof data, "data.path=%s/huge.fbin", v->dir);
    for (int i = 0; i < TESS_NELEM(quantizer); i++) {
        const rqvae_launch l = {
            .name = i == 0 ? "huge0" : "huge1",
            .quantizer = quantizer[i],
            .override = {data, "train.micro_batch=200", "train.eval_every=0", "compute.dtype=f32"}};
        char path[600], *text = NULL;
        bool is_done = false, is_whole = true;
        size_t nbytes = 0;
        TESS_TRY(rqvae_train(comm, v, &l, &is_done));
        snprintf(path, sizeof path, "%s/%s/levels.jsonl", v->dir, l.name);
        TESS_TRY(tess_io_read_all(v->ctx.io, path, 1 << 20, &text, &nbytes));
        int64_t total = 0; /* of three windows, two levels */
        for (const char *p = strstr(text, "\"train\""); p != NULL; p = strstr(p + 1, "\"train\"")) {
            const char *at = strstr(p, "\"vectors\": ");
            const int64_t numel = at != NULL ? strtoll(at + 11, NULL, 10) : -1;
            is_whole = is_whole && numel > 0 && numel % 200 == 0;
            total += numel;
        }
        tess_free(text);
        TESS_CHECK(is_whole && total > 0 && total < 2 * 12000, TESS_E_STATE,
                   "%s: %" PRId64 " vectors in all windows", path, total);
    }
    return TESS_OK;
}

/* Blocks of micro-batches above 1024 vectors are cut, to the same codes. */
static tess_status check_blocks(tess_comm *comm, vector_run *v)
{
    char path[600];
    tess_codes_file *file = NULL;
    tess_logical_hash payload[2];
    static const char *const name[] = {"upper.h5", "wide.h5"};
    TESS_TRY(convert(comm, v, &wide, ENCODE, (const char *[]){"all.fbin", "wide.h5"}));
    for (int i = 0; i < 2; i++) {
        path_of(v, name[i], path);
        TESS_TRY(tess_codes_file_open(&v->ctx, path, &file));
        payload[i] = tess_codes_file_get_info(file)->payload;
        tess_codes_file_close(&file);
    }
    TESS_CHECK(memcmp(&payload[0], &payload[1], sizeof payload[0]) == 0, TESS_E_STATE,
               "codes depend on the micro-batch");
    return TESS_OK;
}

/* ---- codes by rows ---- */

static tess_status evaluate(tess_comm *comm, vector_run *v, const rqvae_launch *l, double *loss)
{
    tess_session *session = NULL;
    tess_eval_result result;
    TESS_TRY(rqvae_open(comm, v, l, true, &session));
    const tess_status st = tess_session_evaluate(session, &result);
    tess_session_close(&session);
    *loss = result.loss;
    return st;
}

/* Codes and vectors of one sharding against the other's, element by element. Local. */
static tess_status compare_shardings(vector_run *v)
{
    static int64_t code[2][4 * N];
    static float x[2][N * DIM];
    for (int i = 0; i < 2; i++) {
        char path[600];
        tess_codes_file *codes = NULL;
        tess_vectors *vectors = NULL;
        path_of(v, i == 0 ? "whole.h5" : "rows.h5", path);
        TESS_TRY(tess_codes_file_open(&v->ctx, path, &codes));
        tess_status st = tess_codes_file_read(codes, 0, N, code[i]);
        tess_codes_file_close(&codes);
        TESS_TRY(st);
        path_of(v, i == 0 ? "whole-back.fbin" : "rows-back.fbin", path);
        TESS_TRY(tess_vectors_open(&v->ctx, path, &vectors));
        st = tess_vectors_read(vectors, 0, N, x[i]);
        tess_vectors_close(&vectors);
        TESS_TRY(st);
    }
    TESS_CHECK(memcmp(code[0], code[1], sizeof code[0]) == 0, TESS_E_STATE,
               "codes of rows are others");
    TESS_CHECK(memcmp(x[0], x[1], sizeof x[0]) == 0, TESS_E_STATE, "rows decode to others");
    return TESS_OK;
}

/* What a model reads through its codes by rows, where no rank has all of them: the same bits. */
static tess_status check_rows(tess_comm *comm, vector_run *v)
{
    static const char quantizer[] = "codes: 29, code_dim: 4, levels: 2, groups: 2, update: ema";
    static const rqvae_launch whole = {
        .name = "codes",
        .quantizer = quantizer,
        .reads_data = true,
        .override = {"train.steps=2", "train.eval_every=0", "quantizer.sharding=replicated"}};
    static const rqvae_launch rows = {
        .name = "codes",
        .quantizer = quantizer,
        .reads_data = true,
        .override = {"train.steps=2", "train.eval_every=0", "quantizer.sharding=rows"}};
    double loss[2] = {0.0, 1.0};
    bool is_done = false;
    TESS_TRY(rqvae_train(comm, v, &whole, &is_done));
    TESS_TRY(evaluate(comm, v, &whole, &loss[0]));
    TESS_TRY(evaluate(comm, v, &rows, &loss[1]));
    TESS_CHECK(memcmp(&loss[0], &loss[1], sizeof loss[0]) == 0, TESS_E_STATE,
               "loss %.17g of rows is %.17g", loss[0], loss[1]);
    TESS_TRY(convert(comm, v, &whole, ENCODE, (const char *[]){"all.fbin", "whole.h5"}));
    TESS_TRY(convert(comm, v, &rows, ENCODE, (const char *[]){"all.fbin", "rows.h5"}));
    TESS_TRY(convert(comm, v, &whole, DECODE, (const char *[]){"rows.h5", "whole-back.fbin"}));
    TESS_TRY(convert(comm, v, &rows, DECODE, (const char *[]){"whole.h5", "rows-back.fbin"}));
    return tess_agree(comm, tess_comm_rank(comm) == 0 ? compare_shardings(v) : TESS_OK);
}

/* ---- masks ---- */

/* Codes of `name`: -1 of what is masked, else those of `plain`. Local. */
static tess_status compare_codes(vector_run *v, const char *plain, const char *name)
{
    static int64_t code[2][N];
    const char *const file[] = {plain, name};
    for (int i = 0; i < 2; i++) {
        char path[600];
        tess_codes_file *f = NULL;
        path_of(v, file[i], path);
        TESS_TRY(tess_codes_file_open(&v->ctx, path, &f));
        const tess_status st = tess_codes_file_read(f, 0, N, code[i]);
        tess_codes_file_close(&f);
        TESS_TRY(st);
    }
    for (int64_t i = 0; i < N; i++)
        TESS_CHECK(code[1][i] == (rqvae_is_valid(N, i) ? code[0][i] : -1), TESS_E_STATE,
                   "vector %" PRId64 ": code %" PRId64 ", without a mask %" PRId64, i, code[1][i],
                   code[0][i]);
    return TESS_OK;
}

/* Zeros of what is masked, else what decodes without a mask. Local. */
static tess_status compare_vectors(vector_run *v)
{
    static float x[2][N * DIM];
    const char *const file[] = {"back.fbin", "masked-back.fbin"};
    for (int i = 0; i < 2; i++) {
        char path[600];
        tess_vectors *f = NULL;
        path_of(v, file[i], path);
        TESS_TRY(tess_vectors_open(&v->ctx, path, &f));
        const tess_status st = tess_vectors_read(f, 0, N, x[i]);
        tess_vectors_close(&f);
        TESS_TRY(st);
    }
    for (int64_t i = 0; i < (int64_t)N * DIM; i++)
        TESS_CHECK(x[1][i] == (rqvae_is_valid(N, i / DIM) ? x[0][i] : 0.0f), TESS_E_STATE,
                   "element %" PRId64 " is %g, without a mask %g", i, (double)x[1][i],
                   (double)x[0][i]);
    return TESS_OK;
}

static tess_status encode_masked(tess_comm *comm, vector_run *v, tess_encode_result *result)
{
    char from[600], mask[600], to[600];
    tess_session *session = NULL;
    path_of(v, "all.fbin", from);
    path_of(v, "mask.fbin", mask);
    path_of(v, "masked.h5", to);
    TESS_TRY(rqvae_open(comm, v, &upper, true, &session));
    const tess_status st = tess_session_encode(session, from, mask, to, result);
    tess_session_close(&session);
    return st;
}

/* A file of three levels with one code of vector 5 absent. Local, of rank 0. */
static tess_status forge_absent(vector_run *v)
{
    char from[600], to[600];
    tess_codes_file *file = NULL;
    tess_codes_writer *writer = NULL;
    int64_t code[8 * 3] = {[5 * 3 + 1] = -1};
    path_of(v, "three.h5", from);
    path_of(v, "forged.h5", to);
    TESS_TRY(tess_codes_file_open(&v->ctx, from, &file));
    tess_codes_info info = *tess_codes_file_get_info(file);
    tess_codes_file_close(&file);
    info.vector_numel = 8;
    info.has_absent = true;
    TESS_TRY(tess_codes_writer_create(&v->ctx, to, &info, &writer));
    tess_status st = tess_codes_writer_append(writer, code, info.vector_numel);
    if (st == TESS_OK)
        st = tess_codes_writer_finish(writer);
    tess_codes_writer_destroy(&writer);
    return st;
}

static tess_status check_masks(tess_comm *comm, vector_run *v)
{
    tess_encode_result result;
    int64_t valid_numel = 0;
    for (int64_t i = 0; i < N; i++)
        valid_numel += rqvae_is_valid(N, i);
    TESS_TRY(rqvae_make_mask(comm, v));
    TESS_TRY(encode_masked(comm, v, &result));
    TESS_CHECK(result.sample_numel == valid_numel && result.error > 0.0, TESS_E_STATE,
               "%" PRId64 " vectors counted, expected %" PRId64, result.sample_numel, valid_numel);
    TESS_TRY(tess_agree(comm, compare_codes(v, "upper.h5", "masked.h5")));
    TESS_TRY(convert(comm, v, &upper, DECODE, (const char *[]){"masked.h5", "masked-back.fbin"}));
    TESS_TRY(tess_agree(comm, compare_vectors(v)));
    TESS_TRY(tess_agree(comm, tess_comm_rank(comm) == 0 ? forge_absent(v) : TESS_OK));
    return expect_refused(
        convert(comm, v, &three, DECODE, (const char *[]){"forged.h5", "back.fbin"}), TESS_E_FORMAT,
        "codes of row 5: 1 of 3 are absent");
}

static tess_status check_all(tess_comm *comm, vector_run *v)
{
    TESS_TRY(tess_agree(comm, tess_comm_rank(comm) == 0 ? make_files(v) : TESS_OK));
    TESS_TRY(make_runs(comm, v));
    TESS_TRY(check_names(comm, v));
    TESS_TRY(check_masks(comm, v));
    TESS_TRY(check_forms(comm, v));
    TESS_TRY(check_blocks(comm, v));
    TESS_TRY(check_rows(comm, v));
    TESS_TRY(check_windows(comm, v));
    return expect_refused(convert(comm, v, &upper, ENCODE, (const char *[]){"huge.fbin", "no.h5"}),
                          TESS_E_NUMERIC, "the error of vector 1234 is not a finite");
}

static tess_status run(tess_comm *comm)
{
    vector_run v;
    TESS_TRY(vector_run_create(comm, N, DIM, VECTORS_CLUSTERS, &v));
    const tess_status st = tess_agree(comm, check_all(comm, &v));
    vector_run_destroy(comm, &v);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
