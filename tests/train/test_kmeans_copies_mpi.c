/*
 * A bit that changes in one rank's copy of replicated codes ends a k-means job, at the next
 * comparison or before the next save; the newest checkpoint is from before it.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "support/rank_test.h"
#include "support/vector_run.h"
#include "train/vectors/vectors_session.h"

/* The second level searches while the codes of the first lie still. */
enum { N = 2000, D = 6, FLIP_STEP = 4, ODD_RANK = 2 };

static struct {
    tess_session *session;
    bool is_due; /* the bit is still to be changed */
} seen;

static tess_status nearest(const tess_nearest_args *a, tess_stream *stream)
{
    TESS_TRY(tess_kernels_cpu.nearest(a, stream));
    const tess_session *s = seen.session;
    if (!seen.is_due || s->step + 1 != FLIP_STEP ||
        tess_comm_rank(s->world) != ODD_RANK % tess_comm_world(s->world))
        return TESS_OK;
    const float *first = tess_codebooks_all(tess_kmeans_books(s->vectors->job), 0);
    seen.is_due = false;
    if (first != NULL)
        ((uint8_t *)(uintptr_t)first)[9] ^= 4;
    return TESS_OK;
}

static tess_status live(tess_comm *comm, vector_run *v, const vector_launch *l)
{
    TESS_TRY(vector_run_open(comm, v, l, false, &seen.session));
    seen.is_due = true;
    const tess_status st = tess_session_train(seen.session);
    seen.is_due = false;
    tess_session_close(&seen.session);
    return st;
}

static tess_status expect_newest(tess_comm *comm, vector_run *v, const vector_launch *l,
                                 int64_t step)
{
    tess_session *session = NULL;
    TESS_TRY(vector_run_open(comm, v, l, false, &session));
    const int64_t found = tess_session_step(session);
    tess_session_close(&session);
    TESS_CHECK(found == step, TESS_E_STATE, "'%s' goes on from step %" PRId64 ", expected %" PRId64,
               l->name, found, step);
    return TESS_OK;
}

/* The job ends after step `step` and has saved up to step `saved`. */
static tess_status expect_end(tess_comm *comm, vector_run *v, const vector_launch *l, int step,
                              int64_t saved)
{
    char words[300], who[80], message[TESS_ERROR_MESSAGE_NBYTES];
    const tess_status st = live(comm, v, l);
    snprintf(message, sizeof message, "%s", tess_error_message());
    tess_error_clear();
    snprintf(who, sizeof who, "those of rank 0 and rank 1 are not equal");
    if (tess_comm_world(comm) >= 3)
        snprintf(who, sizeof who, "rank %d has other bytes than most", ODD_RANK);
    snprintf(words, sizeof words,
             "after step %d: codes or progress of 'group.0.level.0' differ between ranks that "
             "hold copies of them: %s",
             step, who);
    tess_status told = TESS_OK;
    if (st != TESS_E_NUMERIC || strstr(message, words) == NULL)
        told = TESS_FAIL(TESS_E_STATE, "%s: status %s, expected E_NUMERIC and '%s' in: %.900s",
                         l->name, tess_status_name(st), words, message);
    TESS_TRY(tess_agree(comm, told));
    return expect_newest(comm, v, l, saved);
}

#define REPLICATED "quantizer.sharding=replicated", "quantizer.levels=2", "quantizer.refine=0"

static tess_status check(tess_comm *comm, vector_run *v, const tess_kernels *kernels)
{
    const vector_launch compared = {
        .name = "compared",
        .kernels = kernels,
        .override = {REPLICATED, "shard.check_copies=2", "output.checkpoint_every=3"}};
    const vector_launch saved = {
        .name = "saved", .kernels = kernels, .override = {REPLICATED, "output.checkpoint_every=2"}};
    const vector_launch never = {
        .name = "never", .kernels = kernels, .override = {REPLICATED, "shard.check_copies=0"}};
    const vector_launch by_rows = {.name = "by rows",
                                   .kernels = kernels,
                                   .override = {"quantizer.sharding=rows", "quantizer.levels=2",
                                                "shard.check_copies=1", "quantizer.refine=0"}};
    if (tess_comm_world(comm) > 1) {
        TESS_TRY(expect_end(comm, v, &compared, FLIP_STEP, 3));
        TESS_TRY(expect_end(comm, v, &saved, FLIP_STEP, 2));
    }
    TESS_TRY(live(comm, v, &never));
    TESS_TRY(live(comm, v, &by_rows));
    return expect_newest(comm, v, &by_rows, 6);
}

static tess_status body(tess_comm *comm)
{
    static tess_kernels kernels;
    vector_run v;
    kernels = tess_kernels_cpu;
    kernels.nearest = nearest;
    TESS_TRY(vector_run_create(comm, N, D, VECTORS_CLUSTERS, &v));
    const tess_status st = check(comm, &v, &kernels);
    vector_run_destroy(comm, &v);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, body); }
