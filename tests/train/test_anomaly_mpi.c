/*
 * A run warns of ranks that are slow and of steps that spike, and of nothing else.
 *
 * Odd ranks sleep in every fifth step, as long as twenty of the others take: the median is then the
 * slowest of the other ranks at least, whatever the machine does to these, so that none of them can
 * be above it.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "core/clock.h"
#include "support/loud_loss.h"
#include "support/rank_test.h"
#include "support/rqvae_run.h"
#include "support/tiny_run.h"
#include "train/session_priv.h"

enum { SPIKE_STEP = 40, WARNING_MAX = 16 };

static struct {
    const tess_session *session;
    const session_feed *feed; /* of the session as it was opened */
    int64_t seen_step;
    double begin_s, calm_s; /* of the step, of steps without a sleep */
    int calm_numel;
    int line_numel;
    char line[WARNING_MAX][400];
} life;

static void listen(void *arg, tess_log_level level, const char *line)
{
    (void)arg;
    const bool is_ours =
        strstr(line, "z-score") != NULL || strstr(line, " is slow and others wait") != NULL;
    if (level == TESS_LOG_WARN && is_ours && life.line_numel < WARNING_MAX)
        snprintf(life.line[life.line_numel++], sizeof life.line[0], "%s", line);
}

/* Every rank sleeps in the same steps, so that from the first step behind one to the last in front
 * of the next no time is counted in which one waits for another's sleep. */
static void be_slow(int64_t step)
{
    const double now_s = tess_clock_s();
    if (step % 5 >= 2) {
        life.calm_s += now_s - life.begin_s;
        life.calm_numel++;
    }
    if (step % 5 == 0 && step > 0) {
        const double delay_s = 20.0 * life.calm_s / life.calm_numel;
        const struct timespec t = {(time_t)delay_s, (long)(1e9 * fmod(delay_s, 1.0))};
        (void)nanosleep(&t, NULL);
    }
    life.begin_s = now_s;
}

/* The data of rank 0 in one step are loud. */
static tess_status cross_entropy(const tess_cross_entropy_args *a, tess_stream *s)
{
    if (tess_comm_rank(life.session->world) == 0 &&
        tess_session_step(life.session) == SPIKE_STEP - 1)
        return loud_cross_entropy(a, s);
    return tess_kernels_cpu.cross_entropy(a, s);
}

static tess_status fill_slowly(tess_session *s, int64_t micro_batch_idx, const void **batch)
{
    if (tess_comm_rank(s->world) % 2 == 1 && s->step != life.seen_step)
        be_slow(s->step);
    life.seen_step = s->step;
    return life.feed->fill(s, micro_batch_idx, batch);
}

static void begin_life(const tess_session *session)
{
    memset(&life, 0, sizeof life);
    life.session = session;
    life.feed = session->feed;
    life.seen_step = -1;
}

static tess_status train_slowly(tess_session *session)
{
    session_feed feed = *session->feed;
    begin_life(session);
    feed.fill = fill_slowly;
    session->feed = &feed;
    const tess_status st = tess_session_train(session);
    session->feed = life.feed;
    return st;
}

/* Nothing is learned: the loss has the noise of the data and no trend. With so little data in a
 * step that noise is not normal: gradient norms of 8 deviations occur. */
static tess_status open_tiny(tess_comm *comm, tiny_run *t, const char *name, const char *steps,
                             const char *limit, tess_session **session)
{
    static tess_kernels kernels;
    const char *const overrides[] = {
        steps, limit, "train.learning_rate=0", "train.micro_batches=7", "train.eval_every=0", NULL};
    const tess_session_options o = {.kind = TESS_SESSION_TRAIN, .kernels = &kernels};
    kernels = tess_kernels_cpu;
    kernels.cross_entropy = cross_entropy;
    t->ctx.log.sink = listen;
    return tiny_run_open_as(comm, t, name, overrides, &o, session);
}

static tess_status expect_lines(const char *what, int numel)
{
    TESS_CHECK(life.line_numel == numel, TESS_E_STATE, "%s: %d warnings, expected %d, first: %s",
               what, life.line_numel, numel, life.line_numel > 0 ? life.line[0] : "none");
    return TESS_OK;
}

static tess_status expect_line(int idx, const char *text)
{
    TESS_CHECK(strstr(life.line[idx], text) != NULL, TESS_E_STATE, "no '%s' in: %s", text,
               life.line[idx]);
    return TESS_OK;
}

/* ---- slow ranks ---- */

/* Each odd rank after a window of 50 steps, in which the first step is not, and nobody else. */
static tess_status expect_odd_ranks(const tess_comm *comm)
{
    if (tess_comm_rank(comm) != 0)
        return expect_lines("another rank than 0", 0);
    TESS_TRY(expect_lines("slow ranks", tess_comm_world(comm) / 2));
    for (int i = 0; i < life.line_numel; i++) {
        char text[40];
        snprintf(text, sizeof text, "step 51: rank %d on '", 2 * i + 1);
        TESS_TRY(expect_line(i, text));
    }
    return TESS_OK;
}

static tess_status check_slow(tess_comm *comm, tiny_run *t)
{
    tess_session *session = NULL;
    TESS_TRY(open_tiny(comm, t, "slow", "train.steps=51", "train.spike_threshold=0", &session));
    const tess_status st = train_slowly(session);
    tess_session_close(&session);
    return st == TESS_OK ? expect_odd_ranks(comm) : st;
}

/* Where stages are joint, ranks wait for each other inside of them too. */
static tess_status check_slow_in_joint_stages(tess_comm *comm, vector_run *v)
{
    const rqvae_launch rows = {.name = "rows",
                               .quantizer =
                                   "codes: 19, code_dim: 6, update: gradient, sharding: rows",
                               .override = {"train.steps=51", "train.spike_threshold=0",
                                            "train.eval_every=0", "output.checkpoint_every=0"}};
    tess_session *session = NULL;
    v->ctx.log.sink = listen;
    TESS_TRY(rqvae_open(comm, v, &rows, false, &session));
    const tess_status st = train_slowly(session);
    tess_session_close(&session);
    return st == TESS_OK ? expect_odd_ranks(comm) : st;
}

/* ---- spikes ---- */

static tess_status train_spike(tess_comm *comm, tiny_run *t, const char *name, const char *limit)
{
    tess_session *session = NULL;
    TESS_TRY(open_tiny(comm, t, name, "train.steps=45", limit, &session));
    begin_life(session);
    const tess_status st = tess_session_train(session);
    tess_session_close(&session);
    return st;
}

static tess_status check_spike(tess_comm *comm, tiny_run *t)
{
    TESS_TRY(train_spike(comm, t, "spike", "train.spike_threshold=100"));
    if (tess_comm_rank(comm) != 0)
        return expect_lines("another rank than 0", 0);
    TESS_TRY(expect_lines("a spike", 2));
    TESS_TRY(expect_line(0, "step 40: loss "));
    TESS_TRY(expect_line(1, "step 40: gradient norm "));
    return expect_line(0, "its data are micro-batches 273 to 279");
}

static tess_status check_off(tess_comm *comm, tiny_run *t)
{
    TESS_TRY(train_spike(comm, t, "off", "train.spike_threshold=0"));
    return expect_lines("train.spike_threshold 0", 0);
}

static tess_status run_tiny(tess_comm *comm)
{
    tiny_run t;
    TESS_TRY(tiny_run_create(comm, &t));
    tess_status st = tess_agree(comm, check_slow(comm, &t));
    if (st == TESS_OK)
        st = tess_agree(comm, check_spike(comm, &t));
    if (st == TESS_OK)
        st = tess_agree(comm, check_off(comm, &t));
    tiny_run_destroy(comm, &t);
    return st;
}

static tess_status run(tess_comm *comm)
{
    vector_run v;
    TESS_TRY(run_tiny(comm));
    TESS_TRY(vector_run_create(comm, 301, 19, VECTORS_CLUSTERS, &v));
    const tess_status st = tess_agree(comm, check_slow_in_joint_stages(comm, &v));
    vector_run_destroy(comm, &v);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
