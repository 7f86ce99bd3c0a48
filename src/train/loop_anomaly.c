/* What a loop says of ranks that are slow. Nothing of a run depends on it. */
#include <inttypes.h>
#include <unistd.h>

#include "core/arith.h"
#include "core/clock.h"
#include "core/memory.h"
#include "train/anomaly.h"
#include "train/loop_priv.h"

enum { PACE_STEP_NUMEL = 50, HOST_NBYTES = 64 };

/* What a rank tells of itself. */
typedef struct card {
    double own_s; /* of the steps since the last one */
    char host[HOST_NBYTES];
} card;

struct loop_anomaly {
    double begin_s, blocked_s; /* clock and waits as the step begins */
    card mine;
    int64_t step_numel;   /* in mine.own_s */
    bool has_begun;       /* the first step of a process, in which libraries start, is over */
    card *card;           /* [world] rank 0, as the rest */
    tess_rank_pace *pace; /* [world] */
    double *scratch;      /* [world] */
};

tess_status loop_anomaly_create(const tess_session *s, loop_anomaly **out)
{
    const int world = tess_comm_world(s->world), rank = tess_comm_rank(s->world);
    TESS_TRY(tess_alloc_array(1, sizeof **out, (void **)out));
    loop_anomaly *a = *out;
    (void)gethostname(a->mine.host, sizeof a->mine.host - 1);
    if (rank != 0)
        return TESS_OK;
    TESS_TRY(tess_alloc_array(world, sizeof *a->card, (void **)&a->card));
    TESS_TRY(tess_alloc_array(world, sizeof *a->pace, (void **)&a->pace));
    return tess_alloc_array(world, sizeof *a->scratch, (void **)&a->scratch);
}

void loop_anomaly_destroy(loop_anomaly **a)
{
    if (*a == NULL)
        return;
    tess_free((*a)->card);
    tess_free((*a)->pace);
    tess_free((*a)->scratch);
    tess_free(*a);
    *a = NULL;
}

/* ---- slow ranks ---- */

static void say_slow(session_loop *l, const loop_anomaly *a, int rank)
{
    const tess_rank_pace *p = &a->pace[rank];
    tess_progress_hide(&l->progress);
    tess_log_root(&l->s->ctx->log, TESS_LOG_WARN,
                  "step %" PRId64 ": rank %d on '%s' is slow and others wait for it: it computes "
                  "%.4g s per %s, the median rank %.4g s, %.2f times as long; look at what else "
                  "runs there, at clocks, temperature and binding to cores",
                  l->s->step, rank, a->card[rank].host, p->time_s,
                  p->is_by_step ? "step" : "micro-batch", p->median_s, p->time_s / p->median_s);
}

static tess_status compare_ranks(session_loop *l, loop_anomaly *a)
{
    const tess_session *s = l->s;
    const int world = tess_comm_world(s->world);
    TESS_TRY(tess_comm_gather_bytes(s->world, 0, &a->mine, sizeof a->mine, a->card));
    if (tess_comm_rank(s->world) != 0)
        return TESS_OK;
    for (int i = 0; i < world; i++) {
        a->pace[i].own_s = a->card[i].own_s / PACE_STEP_NUMEL;
        a->pace[i].micro_batch_numel =
            tess_ceil_div(TESS_MAX(s->run->train.micro_batches - i, 0), world);
    }
    tess_rank_pace_judge(a->pace, world, a->scratch);
    for (int i = 0; i < world; i++)
        if (a->pace[i].is_news)
            say_slow(l, a, i);
    return TESS_OK;
}

static tess_status watch_ranks(session_loop *l, loop_anomaly *a, double own_s)
{
    if (a->has_begun) {
        a->mine.own_s += own_s;
        a->step_numel++;
    }
    a->has_begun = true;
    if (a->step_numel < PACE_STEP_NUMEL)
        return TESS_OK;
    const tess_status st = compare_ranks(l, a);
    a->step_numel = 0;
    a->mine.own_s = 0.0;
    return st;
}

/* ---- a step ---- */

void loop_anomaly_begin(const session_loop *l, loop_anomaly *a)
{
    if (a == NULL)
        return;
    a->begin_s = tess_clock_s();
    a->blocked_s = tess_comm_blocked_s(l->s->world);
}

tess_status loop_anomaly_step(session_loop *l, loop_anomaly *a, const tess_step_result *r)
{
    const tess_session *s = l->s;
    if (a == NULL)
        return TESS_OK;
    /* On the host it is this thread that waits, wherever it does; a device waits by itself. */
    const double wait_s =
        s->device == NULL ? tess_comm_blocked_s(s->world) - a->blocked_s : r->wait_s;
    const double own_s = tess_clock_s() - a->begin_s - wait_s;
    return tess_comm_world(s->world) > 1 ? watch_ranks(l, a, own_s) : TESS_OK;
}
