/*
 * Steps that spike in a whole run: their updates are left out, or the run goes back to a checkpoint
 * and passes over the data since, with the same bits at any number of ranks and over every end of a
 * life. It is the data that spike, at a place that a rollback passes over.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "core/digest.h"
#include "support/flux_run.h"
#include "support/loud_loss.h"
#include "support/rank_test.h"
#include "support/rqvae_run.h"
#include "support/tiny_run.h"
#include "train/session_priv.h"

enum { M = 3, STEPS = 50, VISIT_MAX = 80 };

/* One begin of a step. */
typedef struct visit {
    int64_t step, first_idx; /* completed before; the first micro-batch of rank 0, -1: others */
    tess_logical_hash state; /* this rank's */
} visit;

/* How a life ends before the run does. */
typedef enum life_end { LIVES, STOPS, FAILS_IN_ROLLBACK, FAILS_BEHIND_ROLLBACK } life_end;

/* What a life is to do. */
typedef struct plan {
    const char *name;
    const char *on_spike, *keep, *every, *threshold; /* overrides; NULL: as other plans have them */
    bool (*is_loud)(int64_t place);
    life_end end;
    int64_t stop_place; /* STOPS: with the step at this place of the data */
} plan;

static struct {
    tess_session *session;
    const session_feed *feed; /* of the session as it was opened */
    const plan *plan;
    int64_t loud_place; /* the last one that was made loud */
    visit visit[VISIT_MAX];
    int visit_numel;
    int64_t updates, skipped, rollbacks; /* as it ended */
    char text[4000];                     /* what the log said of the guard */
} life;

static volatile sig_atomic_t stop_request;

static void listen(void *arg, tess_log_level level, const char *line)
{
    const size_t used = strlen(life.text);
    (void)arg;
    if (level == TESS_LOG_WARN)
        snprintf(life.text + used, sizeof life.text - used, "%s\n", line);
}

/* ---- spikes ---- */

/* The first micro-batch of a step is loud. */
static tess_status cross_entropy(const tess_cross_entropy_args *a, tess_stream *s)
{
    const int64_t place = session_data_step(life.session);
    if (a->d_logits.numel == 0 || place == life.loud_place || !life.plan->is_loud(place) ||
        tess_comm_rank(life.session->world) != 0)
        return tess_kernels_cpu.cross_entropy(a, s);
    life.loud_place = place;
    return loud_cross_entropy(a, s);
}

static void hash_state(tess_logical_hash *out)
{
    const tess_session *s = life.session;
    for (int u = 0; u < s->d.plan->unit_numel; u++)
        for (int kind = 0; kind < TESS_STATE_NUMEL; kind++) {
            const tess_view v = tess_runtime_state(s->rt, u, (tess_state_kind)kind);
            tess_logical_hash_add(out, v.data, v.numel, 4,
                                  ((int64_t)u << 40) + ((int64_t)kind << 36));
        }
}

static tess_status count(tess_session *s, int64_t *loss_numel)
{
    const plan *p = life.plan;
    if (p->end == FAILS_BEHIND_ROLLBACK && s->guard.rollback_numel > 0)
        return TESS_FAIL(TESS_E_IO, "a life ends behind a rollback");
    if (p->end == STOPS && session_data_step(s) == p->stop_place)
        stop_request = 1; /* the step that follows is asked */
    if (life.visit_numel < VISIT_MAX) {
        visit *v = &life.visit[life.visit_numel++];
        *v = (visit){.step = s->step, .first_idx = -1};
        hash_state(&v->state);
    }
    const int64_t each = M * s->run->train.micro_batch;
    int64_t numel = 0;
    TESS_TRY(life.feed->count(s, loss_numel));
    TESS_TRY(tess_dataset_loss_tokens(s->train_data, session_data_step(s) * each, each, &numel));
    TESS_CHECK(*loss_numel == numel, TESS_E_STATE,
               "step %lld counts %lld tokens with a loss, its data have %lld",
               (long long)s->step + 1, (long long)*loss_numel, (long long)numel);
    return TESS_OK;
}

static tess_status fill(tess_session *s, int64_t micro_batch_idx, const void **batch)
{
    visit *v = &life.visit[life.visit_numel - 1];
    if (tess_comm_rank(s->world) == 0 && v->first_idx < 0)
        v->first_idx = micro_batch_idx;
    return life.feed->fill(s, micro_batch_idx, batch);
}

static tess_status resumed(tess_session *s)
{
    (void)s;
    return life.plan->end == FAILS_IN_ROLLBACK ? TESS_FAIL(TESS_E_IO, "a life ends in a rollback")
                                               : TESS_OK;
}

/* ---- a life ---- */

static const char *or_else(const char *given, const char *usual)
{
    return given != NULL ? given : usual;
}

static tess_status live(tess_comm *comm, tiny_run *t, const plan *p)
{
    const char *const list[] = {"train.steps=50",
                                "train.micro_batches=3",
                                "train.eval_every=0",
                                or_else(p->keep, "output.keep=3"),
                                or_else(p->every, "output.checkpoint_every=10"),
                                or_else(p->threshold, "train.spike_threshold=100"),
                                or_else(p->on_spike, "train.on_spike=warn"),
                                NULL};
    static tess_kernels kernels;
    session_feed feed;
    tess_session *session = NULL;
    const tess_session_options o = {
        .kind = TESS_SESSION_TRAIN, .kernels = &kernels, .stop_request = &stop_request};
    memset(&life, 0, sizeof life);
    life.plan = p;
    life.loud_place = -1;
    stop_request = 0;
    kernels = tess_kernels_cpu;
    kernels.cross_entropy = cross_entropy;
    t->ctx.log.sink = listen;
    TESS_TRY(tiny_run_open_as(comm, t, p->name, list, &o, &session));
    life.session = session;
    life.feed = session->feed;
    feed = *session->feed;
    feed.count = count;
    feed.fill = fill;
    feed.resumed = resumed;
    session->feed = &feed;
    const tess_status st = tess_session_train(session);
    session->feed = life.feed;
    life.updates = session->update_numel;
    life.skipped = session->skipped_numel;
    life.rollbacks = session->guard.rollback_numel;
    tess_session_close(&session);
    return st;
}

static tess_status expect_end(tess_status st, tess_status code, const char *words)
{
    char message[TESS_ERROR_MESSAGE_NBYTES];
    snprintf(message, sizeof message, "%s", tess_error_message());
    tess_error_clear();
    TESS_CHECK(st == code && strstr(message, words) != NULL, TESS_E_STATE,
               "ended with %s, expected %s with '%s': %.900s", tess_status_name(st),
               tess_status_name(code), words, message);
    return TESS_OK;
}

static tess_status live_to_end(tess_comm *comm, tiny_run *t, const plan *p)
{
    static const char *const words[] = {[STOPS] = "stopped on request",
                                        [FAILS_IN_ROLLBACK] = "ends in a rollback",
                                        [FAILS_BEHIND_ROLLBACK] = "ends behind a rollback"};
    const tess_status st = live(comm, t, p);
    if (p->end == LIVES)
        return st;
    return expect_end(st, p->end == STOPS ? TESS_E_PREEMPTED : TESS_E_IO, words[p->end]);
}

/* Rank 0 by itself. Collective over `comm`. */
static tess_status live_alone(tess_comm *comm, tess_comm *self, tiny_run *t, const plan *p)
{
    return tess_agree(comm, tess_comm_rank(comm) == 0 ? live_to_end(self, t, p) : TESS_OK);
}

/* ---- expectations ---- */

/* Rank 0 hears the log. */
static tess_status expect_said(const tess_comm *comm, const char *words)
{
    TESS_CHECK(tess_comm_rank(comm) != 0 || strstr(life.text, words) != NULL, TESS_E_STATE,
               "the log does not say '%s' but: %s", words, life.text);
    return TESS_OK;
}

static tess_status expect_counts(int64_t updates, int64_t skipped, int64_t rollbacks)
{
    TESS_CHECK(life.updates == updates && life.skipped == skipped && life.rollbacks == rollbacks,
               TESS_E_STATE, "%lld updates, %lld skipped, %lld rollbacks; not %lld, %lld, %lld",
               (long long)life.updates, (long long)life.skipped, (long long)life.rollbacks,
               (long long)updates, (long long)skipped, (long long)rollbacks);
    return TESS_OK;
}

/* The i-th begin of a step is of this step, at this place of the data. */
static tess_status expect_visit(const tess_comm *comm, int i, int64_t step, int64_t place)
{
    const visit *v = &life.visit[i];
    TESS_CHECK(i < life.visit_numel && v->step == step &&
                   (tess_comm_rank(comm) != 0 || v->first_idx == place * M),
               TESS_E_STATE, "begin %d of %d is of step %lld with micro-batch %lld, not %lld, %lld",
               i, life.visit_numel, (long long)v->step, (long long)v->first_idx, (long long)step,
               (long long)(place * M));
    return TESS_OK;
}

static bool has_same_state(int i, int k)
{
    return memcmp(&life.visit[i].state, &life.visit[k].state, sizeof life.visit[i].state) == 0;
}

static tess_status compare(tiny_run *t, const char *a_name, const char *b_name)
{
    tiny_outcome a, b;
    TESS_TRY(tiny_run_outcome(t, a_name, &a));
    TESS_TRY(tiny_run_outcome(t, b_name, &b));
    TESS_CHECK(a.step_numel == STEPS && b.step_numel == STEPS, TESS_E_STATE, "%lld and %lld steps",
               (long long)a.step_numel, (long long)b.step_numel);
    TESS_CHECK(tess_sha256_is_equal(&a.losses, &b.losses) &&
                   tess_sha256_is_equal(&a.adapter, &b.adapter),
               TESS_E_STATE, "'%s' and '%s' have different bits", a_name, b_name);
    return TESS_OK;
}

static tess_status expect_same(tess_comm *comm, tiny_run *t, const char *a, const char *b)
{
    return tess_agree(comm, tess_comm_rank(comm) == 0 ? compare(t, a, b) : TESS_OK);
}

/* `numel` lines of metrics.jsonl have these words, the first of them is of this step. */
static tess_status find_lines(tiny_run *t, const char *name, const char *words, int first,
                              int expected_numel)
{
    char path[400], step[40], *text = NULL;
    size_t nbytes = 0;
    int numel = 0;
    snprintf(path, sizeof path, "%s/%s/metrics.jsonl", t->dir, name);
    snprintf(step, sizeof step, "{\"step\": %d,", first);
    TESS_TRY(tess_io_read_all(t->ctx.io, path, 1 << 20, &text, &nbytes));
    const char *line = strstr(text, step), *found = strstr(text, words);
    const bool is_first = line != NULL && found > line && found < strchr(line, '\n');
    for (const char *at = found; at != NULL; at = strstr(at + 1, words))
        numel++;
    tess_free(text);
    TESS_CHECK(is_first && numel == expected_numel, TESS_E_STATE,
               "%s: %d lines with %s, expected %d from step %d on", path, numel, words,
               expected_numel, first);
    return TESS_OK;
}

static tess_status expect_lines(tess_comm *comm, tiny_run *t, const char *name, const char *words,
                                int first, int numel)
{
    return tess_agree(comm, tess_comm_rank(comm) == 0 ? find_lines(t, name, words, first, numel)
                                                      : TESS_OK);
}

/* ---- skipped steps ---- */

static bool at_35(int64_t place) { return place == 35; }
static bool from_35(int64_t place) { return place >= 35; }

static tess_status check_skip(tess_comm *comm, tess_comm *self, tiny_run *t)
{
    plan p = {.name = "skip", .on_spike = "train.on_spike=skip", .is_loud = at_35};
    TESS_TRY(live_to_end(comm, t, &p));
    TESS_TRY(expect_counts(STEPS - 1, 1, 0));
    TESS_TRY(expect_said(comm, "step 36: loss "));
    TESS_TRY(expect_said(comm, "its data are micro-batches 105 to 107"));
    TESS_TRY(expect_said(comm, "step 36 skipped: "));
    TESS_CHECK(has_same_state(35, 36) && !has_same_state(34, 35), TESS_E_STATE,
               "step 36 changed the state, or the one before did not");
    TESS_TRY(expect_lines(comm, t, "skip", "\"skipped\": \"spike\"", 36, 1));
    p.name = "skip-alone";
    TESS_TRY(live_alone(comm, self, t, &p));
    TESS_TRY(expect_same(comm, t, "skip", "skip-alone"));
    /* fewer values than a verdict needs come behind the checkpoint */
    p.name = "skip-parts";
    p.end = STOPS;
    p.stop_place = 29;
    TESS_TRY(live_alone(comm, self, t, &p));
    p.end = LIVES;
    TESS_TRY(live_to_end(comm, t, &p));
    TESS_TRY(expect_counts(STEPS - 1, 1, 0));
    return expect_same(comm, t, "skip", "skip-parts");
}

/* Five in a row end the run, as steps do that are not finite. */
static tess_status check_row(tess_comm *comm, tiny_run *t)
{
    const plan p = {.name = "row", .on_spike = "train.on_spike=skip", .is_loud = from_35};
    TESS_TRY(expect_end(live(comm, t, &p), TESS_E_NUMERIC,
                        "step 40: 5 steps in a row and 5 in all were skipped, the last for a "
                        "spike (train.spike_threshold); lower train.learning_rate or"));
    return expect_counts(35, 5, 0);
}

/* ---- rollback ---- */

static bool at_45(int64_t place) { return place == 45; }
static bool from_45(int64_t place) { return place >= 45; }

static tess_status check_rollback(tess_comm *comm, tess_comm *self, tiny_run *t)
{
    plan p = {.name = "back", .on_spike = "train.on_spike=rollback", .is_loud = at_45};
    TESS_TRY(live_to_end(comm, t, &p));
    TESS_TRY(expect_counts(STEPS, 0, 1));
    TESS_TRY(expect_said(comm, "rollback 1 of at most 3: from step 46 to the checkpoint of step 40;"
                               " micro-batches 120 to 137 are left out from here on"));
    TESS_TRY(expect_visit(comm, 45, 45, 45));
    for (int i = 0; i < 10; i++)
        TESS_TRY(expect_visit(comm, 46 + i, 40 + i, 46 + i));
    TESS_CHECK(life.visit_numel == 56 && has_same_state(46, 40) && !has_same_state(47, 41),
               TESS_E_STATE, "%d steps were begun, not 56, or not from the checkpoint's state",
               life.visit_numel);
    TESS_TRY(expect_lines(comm, t, "back", "\"rollbacks\": 1", 41, 10));
    p.name = "back-alone";
    TESS_TRY(live_alone(comm, self, t, &p));
    return expect_same(comm, t, "back", "back-alone");
}

/* Ends in front of a rollback, in it, behind it, and behind a save that knows of it; checkpoints of
 * stops are none to go back to. All ranks and one in turn. */
static tess_status check_lives(tess_comm *comm, tess_comm *self, tiny_run *t)
{
    plan p = {.name = "lives",
              .on_spike = "train.on_spike=rollback",
              .keep = "output.keep=6",
              .is_loud = at_45,
              .end = STOPS,
              .stop_place = 42};
    TESS_TRY(live_to_end(comm, t, &p));
    p.end = FAILS_IN_ROLLBACK;
    TESS_TRY(live_alone(comm, self, t, &p));
    TESS_TRY(live_to_end(comm, t, &p));
    p.end = FAILS_BEHIND_ROLLBACK;
    TESS_TRY(live_to_end(comm, t, &p));
    TESS_TRY(live_alone(comm, self, t, &p));
    p.end = STOPS;
    p.stop_place = 47;
    TESS_TRY(live_to_end(comm, t, &p));
    p.end = LIVES;
    TESS_TRY(live_to_end(comm, t, &p));
    TESS_TRY(expect_visit(comm, 0, 43, 49)); /* the stop was behind the rollback */
    TESS_TRY(expect_counts(STEPS, 0, 1));
    return expect_same(comm, t, "back", "lives");
}

/* The checkpoint to go back to went behind those of stops: the bits are others, which is said. */
static tess_status check_lost(tess_comm *comm, tiny_run *t)
{
    plan p = {.name = "lost",
              .on_spike = "train.on_spike=rollback",
              .keep = "output.keep=2",
              .is_loud = at_45,
              .end = STOPS,
              .stop_place = 41};
    TESS_TRY(live_to_end(comm, t, &p));
    p.stop_place = 43;
    TESS_TRY(live_to_end(comm, t, &p));
    p.end = LIVES;
    TESS_TRY(live_to_end(comm, t, &p));
    return expect_said(comm, "the spike of step 46 is to go back to the checkpoint of step 40, "
                             "which is missing or damaged");
}

/* Without a checkpoint a step is skipped: with the bits of a run that skips it. */
static tess_status check_none(tess_comm *comm, tiny_run *t)
{
    const plan p = {.name = "none",
                    .on_spike = "train.on_spike=rollback",
                    .every = "output.checkpoint_every=100",
                    .is_loud = at_35};
    TESS_TRY(live_to_end(comm, t, &p));
    TESS_TRY(expect_counts(STEPS - 1, 1, 0));
    TESS_TRY(expect_said(comm, "step 36: there is no checkpoint to go back to yet "
                               "(output.checkpoint_every 100), its update is skipped"));
    return expect_same(comm, t, "skip", "none");
}

static tess_status check_three(tess_comm *comm, tess_comm *self, tiny_run *t)
{
    static const char words[] = "step 41: loss or gradient norm spikes again after 3 rollbacks";
    const plan p = {.name = "three", .on_spike = "train.on_spike=rollback", .is_loud = from_45};
    TESS_TRY(expect_end(live(comm, t, &p), TESS_E_NUMERIC, words));
    TESS_TRY(expect_counts(41 - 1, 0, 3));
    for (int i = 0; i < 3; i++)
        TESS_TRY(expect_visit(comm, 46 + i, 40, 46 + i));
    tess_status st = TESS_OK; /* started again it comes to the same end */
    if (tess_comm_rank(comm) == 0)
        st = expect_end(live(self, t, &p), TESS_E_NUMERIC, words);
    return tess_agree(comm, st);
}

/* ---- what decides bits ---- */

static bool never(int64_t place) { return place < 0; }

static tess_status check_numerics(tess_comm *comm, tiny_run *t)
{
    const char *const other = "train.spike_threshold=99";
    plan p = {
        .name = "skip", .on_spike = "train.on_spike=skip", .threshold = other, .is_loud = never};
    TESS_TRY(expect_end(live(comm, t, &p), TESS_E_CONFIG, "train.spike_threshold: 1.0e+02 -> 99"));
    p.on_spike = NULL;
    TESS_TRY(expect_end(live(comm, t, &p), TESS_E_CONFIG, "train.on_spike: skip -> absent"));
    p = (plan){.name = "back",
               .on_spike = "train.on_spike=rollback",
               .every = "output.checkpoint_every=5",
               .is_loud = never};
    TESS_TRY(expect_end(live(comm, t, &p), TESS_E_CONFIG, "output.checkpoint_every: 10 -> 5"));
    /* a run that only warns compares none of them */
    p = (plan){.name = "warn", .is_loud = at_35};
    TESS_TRY(live(comm, t, &p));
    TESS_TRY(expect_counts(STEPS, 0, 0));
    p.threshold = other;
    p.every = "output.checkpoint_every=5";
    return live(comm, t, &p);
}

/* ---- other families ---- */

static struct {
    const session_feed *feed;
    int64_t loud_place;
} other;

/* Values that were small make those of a step a spike. */
static tess_status count_loud(tess_session *s, int64_t *loss_numel)
{
    if (session_data_step(s) == other.loud_place)
        for (int i = 0; i < 40; i++)
            (void)tess_spike_score(&s->guard.window[SESSION_LOSS], 1e-6 * i);
    return other.feed->count(s, loss_numel);
}

/* A run that ends goes back once, over `passed_numel` steps. Closes the session. */
static tess_status train_other(tess_session *session, int64_t loud_place, int64_t passed_numel)
{
    session_feed feed = *session->feed;
    other.feed = session->feed;
    other.loud_place = loud_place;
    feed.count = count_loud;
    session->feed = &feed;
    tess_status st = tess_session_train(session);
    const session_guard *g = &session->guard;
    if (st == TESS_OK && (g->rollback_numel != 1 || g->passed_numel != passed_numel))
        st = TESS_FAIL(TESS_E_STATE, "%lld rollbacks over %lld steps, not 1 over %lld",
                       (long long)g->rollback_numel, (long long)g->passed_numel,
                       (long long)passed_numel);
    session->feed = other.feed;
    tess_session_close(&session);
    return st;
}

static tess_status train_vectors(tess_comm *comm, vector_run *v, const rqvae_launch *l,
                                 bool *is_done)
{
    tess_session *session = NULL;
    TESS_TRY(rqvae_open(comm, v, l, false, &session));
    const tess_status st = train_other(session, 7, 4);
    *is_done = st == TESS_OK;
    if (st != TESS_E_PREEMPTED || !l->is_stopped)
        return st;
    tess_error_clear();
    return TESS_OK;
}

/* Stopped after each of the first seven steps, with all ranks and with one in turn. */
static tess_status train_parts(tess_comm *comm, tess_comm *self, vector_run *v,
                               const rqvae_launch *l)
{
    int64_t is_over = 0;
    for (int i = 0; is_over == 0; i++) {
        rqvae_launch part = *l;
        bool is_done = false;
        tess_status st = TESS_OK;
        part.is_stopped = i < 7;
        if (i % 2 == 0)
            st = train_vectors(comm, v, &part, &is_done);
        else if (tess_comm_rank(comm) == 0)
            st = train_vectors(self, v, &part, &is_done);
        TESS_TRY(tess_agree(comm, st));
        is_over = is_done;
        TESS_TRY(tess_comm_control(comm, NULL, 0, &is_over, 1));
    }
    return TESS_OK;
}

/* Averages of codes and windows of usage go back too. */
static tess_status check_vectors(tess_comm *comm, tess_comm *self, vector_run *v)
{
    rqvae_launch l = {.name = "back",
                      .override = {"train.on_spike=rollback", "train.spike_threshold=1e5",
                                   "quantizer.update=ema", "quantizer.decay=0.8",
                                   "quantizer.threshold=1.5", "output.keep=12"}};
    bool is_done = false;
    TESS_TRY(train_vectors(comm, v, &l, &is_done));
    l.name = "back-alone";
    TESS_TRY(tess_agree(comm, tess_comm_rank(comm) == 0 ? train_vectors(self, v, &l, &is_done)
                                                        : TESS_OK));
    TESS_TRY(tess_agree(comm, rqvae_expect_same(v, "back", "back-alone")));
    l.name = "back-parts";
    TESS_TRY(train_parts(comm, self, v, &l));
    return tess_agree(comm, rqvae_expect_same(v, "back", "back-parts"));
}

static tess_status train_flux(tess_comm *comm, flux_run *r, const char *name)
{
    const flux_launch l = {.name = name,
                           .model = r->model[FLUX_RUN_TINY],
                           .override = {"train.on_spike=rollback", "train.spike_threshold=1e5"}};
    tess_session *session = NULL;
    TESS_TRY(flux_run_open(comm, r, &l, TESS_SESSION_TRAIN, &session));
    return train_other(session, 2, 1);
}

static tess_status check_flux(tess_comm *comm, tess_comm *self, flux_run *r)
{
    flux_outcome all, alone;
    TESS_TRY(tess_agree(comm, train_flux(comm, r, "back")));
    if (tess_comm_rank(comm) != 0)
        return TESS_OK;
    TESS_TRY(train_flux(self, r, "back-alone"));
    TESS_TRY(flux_run_outcome(r, "back", &all));
    TESS_TRY(flux_run_outcome(r, "back-alone", &alone));
    TESS_CHECK(all.step_numel == 4 && tess_sha256_is_equal(&all.digest, &alone.digest),
               TESS_E_STATE, "FLUX.1: %d steps, or other bits than alone", all.step_numel);
    return TESS_OK;
}

/* ---- all ---- */

static tess_status run_tiny(tess_comm *comm, tess_comm *self)
{
    tiny_run t;
    TESS_TRY(tiny_run_create(comm, &t));
    tess_status st = check_skip(comm, self, &t);
    if (st == TESS_OK)
        st = check_row(comm, &t);
    if (st == TESS_OK)
        st = check_rollback(comm, self, &t);
    if (st == TESS_OK)
        st = check_lives(comm, self, &t);
    if (st == TESS_OK)
        st = check_lost(comm, &t);
    if (st == TESS_OK)
        st = check_none(comm, &t);
    if (st == TESS_OK)
        st = check_three(comm, self, &t);
    if (st == TESS_OK)
        st = check_numerics(comm, &t);
    st = tess_agree(comm, st);
    tiny_run_destroy(comm, &t);
    return st;
}

static tess_status run(tess_comm *comm)
{
    tess_comm *self = NULL;
    vector_run v;
    flux_run r;
    TESS_TRY(tess_comm_create_self(&self));
    tess_status st = run_tiny(comm, self);
    if (st == TESS_OK)
        st = vector_run_create(comm, 301, 19, VECTORS_CLUSTERS, &v);
    if (st == TESS_OK) {
        st = tess_agree(comm, check_vectors(comm, self, &v));
        vector_run_destroy(comm, &v);
    }
    if (st == TESS_OK)
        st = flux_run_create(comm, &r);
    if (st == TESS_OK) {
        st = tess_agree(comm, check_flux(comm, self, &r));
        flux_run_destroy(comm, &r);
    }
    tess_comm_destroy(&self);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
