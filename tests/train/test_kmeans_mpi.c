/* Runs at 5 and 8 ranks too. k-means gives the same codes on any number of ranks and threads,
 * replicated or sharded by rows, and after a stop at every step on another number of ranks;
 * degenerate data have defined results.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/digest.h"
#include "core/memory.h"
#include "core/rng.h"
#include "support/rank_test.h"
#include "support/vector_run.h"

enum { PASS_MAX = 64 };

typedef struct outcome {
    uint64_t error_bits[PASS_MAX];
    int64_t pass_numel;
    tess_logical_hash codes;
    int64_t used_numel, split_numel;
} outcome;

typedef struct setting {
    const char *name;
    int64_t n, d;
    vector_kind kind;
    tess_kmeans_config config;
} setting;

/* K is no multiple of any number of ranks, and the last block is ragged. */
static const setting settings[] = {
    {"residual, beam, refinement",
     50003,
     12,
     VECTORS_CLUSTERS,
     {.code_numel = 97,
      .level_numel = 3,
      .group_numel = 1,
      .beam_numel = 3,
      .pass_numel = 2,
      .refine_numel = 1,
      .seed = 5}},
    {"groups, drawn start codes",
     50003,
     12,
     VECTORS_CLUSTERS,
     {.code_numel = 61,
      .level_numel = 2,
      .group_numel = 3,
      .beam_numel = 1,
      .pass_numel = 2,
      .init = TESS_KMEANS_SAMPLE,
      .seed = 6}},
    {"mini-batches, random start codes",
     50003,
     12,
     VECTORS_CLUSTERS,
     {.code_numel = 97,
      .level_numel = 2,
      .group_numel = 1,
      .beam_numel = 2,
      .pass_numel = 4,
      .batch_numel = 5000,
      .init = TESS_KMEANS_RANDOM,
      .seed = 7}},
    {"spherical",
     50003,
     12,
     VECTORS_CLUSTERS,
     {.code_numel = 97,
      .level_numel = 1,
      .group_numel = 1,
      .beam_numel = 1,
      .pass_numel = 3,
      .is_spherical = true,
      .seed = 8}},
    {"fewer vectors than codes",
     40,
     5,
     VECTORS_CLUSTERS,
     {.code_numel = 64,
      .level_numel = 2,
      .group_numel = 1,
      .beam_numel = 3,
      .pass_numel = 3,
      .init = TESS_KMEANS_SAMPLE,
      .seed = 9}},
    {"fewer vectors than codes, seeded",
     40,
     5,
     VECTORS_CLUSTERS,
     {.code_numel = 64,
      .level_numel = 1,
      .group_numel = 1,
      .beam_numel = 1,
      .pass_numel = 3,
      .seed = 9}},
    {"seeds of several centers at once",
     3000,
     3,
     VECTORS_CLUSTERS,
     {.code_numel = 301,
      .level_numel = 1,
      .group_numel = 1,
      .beam_numel = 1,
      .pass_numel = 2,
      .seed = 2}},
    {"one vector",
     1,
     3,
     VECTORS_CLUSTERS,
     {.code_numel = 5,
      .level_numel = 2,
      .group_numel = 1,
      .beam_numel = 2,
      .pass_numel = 3,
      .seed = 1}},
    {"equal vectors",
     3000,
     4,
     VECTORS_EQUAL,
     {.code_numel = 7,
      .level_numel = 2,
      .group_numel = 2,
      .beam_numel = 2,
      .pass_numel = 3,
      .refine_numel = 1,
      .seed = 2}},
    {"one vector for most of them",
     3000,
     4,
     VECTORS_BLANK,
     {.code_numel = 41,
      .level_numel = 2,
      .group_numel = 2,
      .beam_numel = 2,
      .pass_numel = 5,
      .refine_numel = 1,
      .init = TESS_KMEANS_SAMPLE,
      .seed = 2}},
    {"zeros",
     1500,
     4,
     VECTORS_ZERO,
     {.code_numel = 7,
      .level_numel = 2,
      .group_numel = 1,
      .beam_numel = 1,
      .pass_numel = 3,
      .refine_numel = 1,
      .seed = 3}},
};

/* ---- one job ---- */

static tess_status take_outcome(tess_comm *comm, tess_kmeans *job, outcome *out)
{
    const tess_kmeans_plan *plan = tess_kmeans_get_plan(job);
    tess_logical_hash h = {{0}};
    int64_t lo = 0, hi = 0, lanes[2];
    tess_codebook_owned(&plan->book, tess_comm_rank(comm), &lo, &hi);
    for (int b = 0; b < plan->book.shape.book_numel; b++) {
        const int64_t d = plan->group_dim, first = ((int64_t)b << 40) + lo * d;
        tess_logical_hash_add(&h, tess_codebooks_rows(tess_kmeans_books(job), b), (hi - lo) * d, 4,
                              first);
        tess_logical_hash_add(&h, tess_codebooks_counts(tess_kmeans_books(job), b), hi - lo, 8,
                              ((int64_t)b << 40) + (INT64_C(1) << 39) + lo);
    }
    memcpy(lanes, &h, sizeof lanes);
    TESS_TRY(tess_comm_control(comm, lanes, 2, NULL, 0));
    memcpy(&out->codes, lanes, sizeof lanes);
    return TESS_OK;
}

static tess_status run_passes(tess_comm *comm, tess_kmeans *job, outcome *out)
{
    TESS_TRY(tess_kmeans_scan(job));
    while (!tess_kmeans_is_done(job)) {
        tess_kmeans_report report;
        TESS_CHECK(out->pass_numel < PASS_MAX, TESS_E_STATE, "more passes than planned");
        TESS_TRY(tess_kmeans_step(job, &report));
        memcpy(&out->error_bits[out->pass_numel++], &report.error, 8);
        TESS_CHECK(isfinite(report.error) && report.error >= 0.0, TESS_E_STATE, "error is %g",
                   report.error);
        out->used_numel = report.used_numel;
        out->split_numel += report.split_numel;
    }
    return take_outcome(comm, job, out);
}

typedef struct way {
    tess_kmeans_sharding sharding;
    int thread_numel;
} way;

static tess_status run_job(tess_comm *comm, const vector_run *v, const setting *s, way how,
                           outcome *out)
{
    vector_job job;
    memset(out, 0, sizeof *out);
    const vector_job_options options = {
        .config = s->config, .sharding = how.sharding, .thread_numel = how.thread_numel};
    TESS_TRY(vector_job_open(comm, v, &options, &job));
    const tess_status st = run_passes(comm, job.job, out);
    vector_job_close(&job);
    return st;
}

static tess_status compare(const setting *s, way how, const outcome *a, const outcome *b)
{
    TESS_CHECK(a->pass_numel == b->pass_numel, TESS_E_STATE, "%s: %lld passes alone, %lld together",
               s->name, (long long)a->pass_numel, (long long)b->pass_numel);
    for (int64_t i = 0; i < a->pass_numel; i++)
        TESS_CHECK(a->error_bits[i] == b->error_bits[i], TESS_E_STATE,
                   "%s, sharding %d, %d threads: error of pass %lld differs", s->name,
                   (int)how.sharding, how.thread_numel, (long long)i);
    TESS_CHECK(memcmp(a, b, sizeof *a) == 0, TESS_E_STATE,
               "%s, sharding %d, %d threads: codes or counts differ", s->name, (int)how.sharding,
               how.thread_numel);
    return TESS_OK;
}

/* Alone on rank 0 first, then all together in every way. */
static tess_status check_setting(tess_comm *comm, tess_comm *self, const setting *s)
{
    static const way ways[] = {{TESS_KMEANS_REPLICATED, 1},
                               {TESS_KMEANS_REPLICATED, 2},
                               {TESS_KMEANS_ROWS, 1},
                               {TESS_KMEANS_ROWS, 2}};
    vector_run v;
    outcome alone, together;
    TESS_TRY(vector_run_create(comm, s->n, s->d, s->kind, &v));
    tess_status st = TESS_OK;
    if (tess_comm_rank(comm) == 0)
        st = run_job(self, &v, s, ways[0], &alone);
    st = tess_agree(comm, st);
    if (st == TESS_OK)
        st = tess_comm_bcast(comm, 0, &alone, sizeof alone);
    for (int i = 0; i < TESS_NELEM(ways) && st == TESS_OK; i++) {
        st = run_job(comm, &v, s, ways[i], &together);
        if (st == TESS_OK)
            st = tess_agree(comm, compare(s, ways[i], &alone, &together));
    }
    vector_run_destroy(comm, &v);
    return st;
}

static tess_status check_same_bits(tess_comm *comm, tess_comm *self)
{
    for (int i = 0; i < TESS_NELEM(settings); i++)
        TESS_TRY(check_setting(comm, self, &settings[i]));
    return TESS_OK;
}

/* ---- what it finds ---- */

/* Well-separated clusters are found, and the error is the sum that brute force gives. */
static tess_status check_error(tess_comm *comm)
{
    enum { N = 3000, D = 6, K = 20 };
    vector_run v;
    vector_job job;
    tess_status st = TESS_OK;
    const vector_job_options options = {.config = {.code_numel = K,
                                                   .level_numel = 1,
                                                   .group_numel = 1,
                                                   .beam_numel = 1,
                                                   .pass_numel = 30,
                                                   .seed = 4},
                                        .sharding = TESS_KMEANS_REPLICATED,
                                        .thread_numel = 1};
    double error = 0.0, mean_square = 0.0, brute = 0.0;
    TESS_TRY(vector_run_create(comm, N, D, VECTORS_CLUSTERS, &v));
    TESS_TRY(vector_job_open(comm, &v, &options, &job));
    outcome out = {0};
    st = run_passes(comm, job.job, &out);
    if (st == TESS_OK)
        st = tess_kmeans_evaluate(job.job, job.vectors, &error, &mean_square);
    const float *code = tess_codebooks_all(tess_kmeans_books(job.job), 0);
    for (int64_t i = 0; st == TESS_OK && i < N; i++) {
        double least = INFINITY;
        for (int64_t k = 0; k < K; k++) {
            double acc = 0.0;
            for (int64_t j = 0; j < D; j++) {
                const double t = (double)v.x[i * D + j] - (double)code[k * D + j];
                acc = fma(t, t, acc);
            }
            least = fmin(least, acc);
        }
        brute += (double)(float)least;
    }
    vector_job_close(&job);
    vector_run_destroy(comm, &v);
    TESS_TRY(st);
    TESS_CHECK(fabs(error * N - brute) <= brute * N * 0x1p-52, TESS_E_STATE,
               "error %.17g, brute force %.17g", error * N, brute);
    /* The data are clusters of variance 1 per dimension around 50 centers with spread 5. */
    TESS_CHECK(error < mean_square / 2, TESS_E_STATE, "error %g of %g", error, mean_square);
    return TESS_OK;
}

/* Codes are means when a run ends, whatever is left empty: nothing is split by its last pass. */
static tess_status check_equal(tess_comm *comm)
{
    vector_run v;
    vector_job job;
    outcome out = {0};
    double error = 0.0, mean_square = 0.0;
    const vector_job_options options = {.config = {.code_numel = 7,
                                                   .level_numel = 1,
                                                   .group_numel = 1,
                                                   .beam_numel = 1,
                                                   .pass_numel = 3},
                                        .thread_numel = 1};
    TESS_TRY(vector_run_create(comm, 3000, 4, VECTORS_EQUAL, &v));
    tess_status st = vector_job_open(comm, &v, &options, &job);
    if (st == TESS_OK) {
        st = run_passes(comm, job.job, &out);
        if (st == TESS_OK)
            st = tess_kmeans_evaluate(job.job, job.vectors, &error, &mean_square);
        vector_job_close(&job);
    }
    vector_run_destroy(comm, &v);
    TESS_TRY(st);
    TESS_CHECK(error == 0.0 && mean_square > 0.0, TESS_E_STATE,
               "equal vectors are %g away from their code, expected 0", error);
    return TESS_OK;
}

static tess_status find_outcome(tess_comm *comm, vector_kind kind, tess_kmeans_init init,
                                outcome *out)
{
    const vector_job_options options = {.config = {.code_numel = 40,
                                                   .level_numel = 1,
                                                   .group_numel = 1,
                                                   .beam_numel = 1,
                                                   .pass_numel = 20,
                                                   .init = init},
                                        .thread_numel = 1};
    vector_run v;
    vector_job job;
    TESS_TRY(vector_run_create(comm, 3000, 4, kind, &v));
    tess_status st = vector_job_open(comm, &v, &options, &job);
    if (st == TESS_OK) {
        st = run_passes(comm, job.job, out);
        vector_job_close(&job);
    }
    vector_run_destroy(comm, &v);
    return st;
}

/* A code of equal vectors is not split, however many these are: every other code gets some. Where
 * there is nothing to split, a level ends when its error repeats. */
static tess_status check_blank(tess_comm *comm)
{
    for (tess_kmeans_init init = TESS_KMEANS_PLUS_PLUS; init <= TESS_KMEANS_RANDOM; init++) {
        outcome blank = {0}, equal = {0};
        TESS_TRY(find_outcome(comm, VECTORS_BLANK, init, &blank));
        TESS_TRY(find_outcome(comm, VECTORS_EQUAL, init, &equal));
        TESS_CHECK(blank.used_numel == 40, TESS_E_STATE, "init %d: %lld of 40 codes are used",
                   (int)init, (long long)blank.used_numel);
        TESS_CHECK(equal.pass_numel <= 3, TESS_E_STATE,
                   "init %d: equal vectors take %lld passes, expected 3 at most", (int)init,
                   (long long)equal.pass_numel);
    }
    return TESS_OK;
}

static tess_status check_refusals(tess_comm *comm)
{
    vector_run v;
    vector_job job;
    const vector_job_options options = {.config = {.code_numel = 8,
                                                   .level_numel = 1,
                                                   .group_numel = 1,
                                                   .beam_numel = 1,
                                                   .pass_numel = 2},
                                        .thread_numel = 1};
    TESS_TRY(vector_run_create(comm, 2000, 3, VECTORS_ONE_NAN, &v));
    tess_status st = vector_job_open(comm, &v, &options, &job);
    if (st == TESS_OK) {
        const tess_status scanned = tess_kmeans_scan(job.job);
        const bool is_named = strstr(tess_error_message(), "dimension 1 of vector 1234") != NULL;
        tess_error_clear();
        if (scanned != TESS_E_FORMAT || !is_named)
            st = TESS_FAIL(TESS_E_STATE, "a NaN was not refused by name");
        vector_job_close(&job);
    }
    vector_run_destroy(comm, &v);
    return tess_agree(comm, st);
}

/* ---- on the wire ---- */

static int64_t received_nbytes(const tess_comm *spy)
{
    const tess_spy_record *record = NULL;
    const int64_t numel = tess_spy_records(spy, &record);
    int64_t total = 0;
    for (int64_t i = 0; i < numel; i++)
        total += record[i].receive_numel * (int64_t)tess_dtype_block_nbytes(record[i].wire);
    return total;
}

/* A pass receives no more than planned, and nothing of vectors times codes is allocated. */
static tess_status check_wire(tess_comm *comm, tess_kmeans_sharding sharding)
{
    enum { N = 9000, D = 8, K = 4001 };
    const vector_job_options options = {.config = {.code_numel = K,
                                                   .level_numel = 1,
                                                   .group_numel = 1,
                                                   .beam_numel = 1,
                                                   .pass_numel = 5,
                                                   .init = TESS_KMEANS_RANDOM,
                                                   .seed = 3},
                                        .sharding = sharding,
                                        .thread_numel = 1};
    vector_run v;
    vector_job job;
    tess_comm *spy = NULL;
    tess_kmeans_report report;
    TESS_TRY(tess_comm_create_spy(comm, &spy));
    TESS_TRY(vector_run_create(comm, N, D, VECTORS_CLUSTERS, &v));
    TESS_TRY(vector_job_open(spy, &v, &options, &job));
    tess_status st = tess_kmeans_scan(job.job);
    for (int i = 0; i < 3 && st == TESS_OK; i++) {
        tess_spy_clear(spy);
        st = tess_kmeans_step(job.job, &report);
    }
    const tess_kmeans_plan *plan = tess_kmeans_get_plan(job.job);
    double planned = tess_codebook_pass_nbytes(&plan->book, plan->round_numel);
    /* The repair of codes without a vector publishes once more, or fetches a few rows. */
    const double others = tess_comm_world(comm) - 1;
    if (report.split_numel > 0 && !plan->book.shape.is_sharded)
        planned += others * (double)plan->book.row_numel * D * 4;
    else if (report.split_numel > 0)
        planned += others * TESS_KMEANS_BLOCK_NUMEL * 4 * (1 + K / TESS_KMEANS_BLOCK_NUMEL) +
                   (double)report.split_numel * D * 4;
    const double received = (double)received_nbytes(spy);
    if (st == TESS_OK && received > planned)
        st = TESS_FAIL(TESS_E_STATE, "sharding %d: received %.0f bytes, planned %.0f",
                       (int)sharding, received, planned);
    if (st == TESS_OK && tess_comm_world(comm) > 1 && received < planned / 2)
        st = TESS_FAIL(TESS_E_STATE,
                       "sharding %d: received %.0f bytes, planned %.0f: what is missing?",
                       (int)sharding, received, planned);
    for (int i = 0; i < TESS_BOOK_PLACE_NUMEL; i++)
        if (st == TESS_OK &&
            plan->book.buffer[i].nbytes >= (size_t)TESS_KMEANS_BLOCK_NUMEL * K * sizeof(float))
            st = TESS_FAIL(TESS_E_STATE, "buffer '%s' holds a matrix of distances",
                           plan->book.buffer[i].name);
    vector_job_close(&job);
    vector_run_destroy(comm, &v);
    tess_comm_destroy(&spy);
    return tess_agree(comm, st);
}

/* ---- stop and go on ---- */

static tess_status check_resume(tess_comm *comm, tess_comm *self)
{
    static const char *const choices[] = {"quantizer.levels=2", "quantizer.batch=500"};
    vector_run v;
    TESS_TRY(vector_run_create(comm, 3000, 6, VECTORS_CLUSTERS, &v));
    tess_status st = TESS_OK;
    for (int i = 0; i < TESS_NELEM(choices) && st == TESS_OK; i++)
        st = vector_run_check_resume(comm, self, &v, &v, i, choices[i]);
    vector_run_destroy(comm, &v);
    return st;
}

static tess_status body(tess_comm *comm)
{
    tess_comm *self = NULL;
    TESS_TRY(tess_comm_create_self(&self));
    tess_status st = check_same_bits(comm, self);
    if (st == TESS_OK)
        st = check_error(comm);
    if (st == TESS_OK)
        st = check_equal(comm);
    if (st == TESS_OK)
        st = check_blank(comm);
    if (st == TESS_OK)
        st = check_refusals(comm);
    if (st == TESS_OK)
        st = check_wire(comm, TESS_KMEANS_REPLICATED);
    if (st == TESS_OK)
        st = check_wire(comm, TESS_KMEANS_ROWS);
    if (st == TESS_OK)
        st = check_resume(comm, self);
    tess_comm_destroy(&self);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, body); }
