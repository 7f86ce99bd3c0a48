/*
 * Whole runs with every optimizer: the same bits on these ranks as on one, and after a stop at half
 * way on these ranks and on one, wherever the other half ran; with the moving average as well.
 */
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "support/rank_test.h"
#include "support/tiny_run.h"

enum { KEY_MAX = 6 };

typedef struct choice {
    const char *name, *keys[KEY_MAX];
} choice;

static const choice choices[] = {
    {"adamw",
     {"train.optimizer=adamw", "train.ema_decay=0.75", "train.eval_weights=ema",
      "output.export_weights=ema"}},
    {"adamw-8bit", {"train.optimizer=adamw-8bit", "train.schedule=wsd"}},
    {"lion", {"train.optimizer=lion", "train.cycles=2", "train.ema_decay=0.75"}},
    {"schedule-free",
     {"train.optimizer=adamw-schedule-free", "train.schedule=constant", "train.ema_decay=0.5"}},
    {"prodigy",
     {"train.optimizer=prodigy", "train.learning_rate=1.0", "train.prodigy_d0=1.0e-3",
      "train.prodigy_safeguard_warmup=true"}},
    {"adafactor",
     {"train.optimizer=adafactor", "train.adafactor_scale_parameter=true", "train.schedule=wsd",
      "train.learning_rate=0.3", "train.ema_decay=0.75"}},
    {"adafactor-momentum", {"train.optimizer=adafactor-momentum"}},
    {"muon", {"train.optimizer=muon", "train.ema_decay=0.75"}},
};

typedef struct worlds {
    tess_comm *comm, *self; /* all ranks; this rank alone */
    tiny_run t;
    volatile sig_atomic_t stop_request;
} worlds;

static worlds w;

/* The evaluation after step 4 is reported before step 5 begins: that step is then the last. */
static void listen(void *arg, tess_log_level level, const char *line)
{
    (void)arg;
    (void)level;
    if (strstr(line, "eval step=4 ") != NULL)
        w.stop_request = 1;
}

static void list_keys(const choice *c, const char *overrides[TINY_OVERRIDE_MAX])
{
    int numel = 0;
    for (int i = 0; i < KEY_MAX && c->keys[i] != NULL; i++)
        overrides[numel++] = c->keys[i];
    overrides[numel++] = "train.steps=10";
    overrides[numel++] = "train.eval_every=4";
    overrides[numel++] = "train.micro_batches=4";
    overrides[numel] = NULL;
}

/* @param stops  at step 5 */
static tess_status live(tess_comm *comm, const choice *c, const char *name, bool stops)
{
    const char *overrides[TINY_OVERRIDE_MAX];
    tess_session *session = NULL;
    list_keys(c, overrides);
    w.stop_request = 0;
    w.t.ctx.log.sink = stops ? listen : NULL;
    const tess_session_options o = {.kind = TESS_SESSION_TRAIN, .stop_request = &w.stop_request};
    TESS_TRY(tiny_run_open_as(comm, &w.t, name, overrides, &o, &session));
    tess_status st = tess_session_train(session);
    const int64_t step = tess_session_step(session);
    tess_session_close(&session);
    if (stops && st == TESS_E_PREEMPTED) {
        tess_error_clear();
        st = TESS_OK;
    }
    TESS_TRY(st);
    TESS_CHECK(step == (stops ? 5 : 10), TESS_E_STATE, "'%s' ended after step %d", name, (int)step);
    return TESS_OK;
}

/* Rank 0 alone, while the others wait. */
static tess_status live_alone(const choice *c, const char *name, bool stops)
{
    const bool is_root = tess_comm_rank(w.comm) == 0;
    return tess_agree(w.comm, is_root ? live(w.self, c, name, stops) : TESS_OK);
}

static tess_status compare(const char *name, const tiny_outcome *want)
{
    tiny_outcome got;
    TESS_TRY(tess_agree(w.comm, tiny_run_outcome(&w.t, name, &got)));
    TESS_CHECK(got.step_numel == 10, TESS_E_STATE, "'%s' reports %d steps", name,
               (int)got.step_numel);
    TESS_CHECK(tess_sha256_is_equal(&got.losses, &want->losses), TESS_E_STATE,
               "'%s': losses differ from the run on one rank", name);
    TESS_CHECK(tess_sha256_is_equal(&got.adapter, &want->adapter), TESS_E_STATE,
               "'%s': the adapter differs from that of the run on one rank", name);
    return TESS_OK;
}

static tess_status run_choice(const choice *c, tiny_outcome *want)
{
    char name[4][48];
    static const char *const kind[] = {"one", "many", "one-many", "many-one"};
    for (int i = 0; i < 4; i++)
        snprintf(name[i], sizeof name[i], "%s-%s", c->name, kind[i]);
    TESS_TRY(live_alone(c, name[0], false));
    TESS_TRY(tess_agree(w.comm, tiny_run_outcome(&w.t, name[0], want)));
    TESS_CHECK(want->last_loss < want->first_loss, TESS_E_STATE, "%s: loss %.4f to %.4f", c->name,
               want->first_loss, want->last_loss);
    TESS_TRY(live(w.comm, c, name[1], false));
    TESS_TRY(compare(name[1], want));
    TESS_TRY(live_alone(c, name[2], true));
    TESS_TRY(live(w.comm, c, name[2], false));
    TESS_TRY(compare(name[2], want));
    TESS_TRY(live(w.comm, c, name[3], true));
    TESS_TRY(live_alone(c, name[3], false));
    return compare(name[3], want);
}

/* Which weights are exported is told apart. */
static tess_status check_exports(const tiny_outcome *ema)
{
    static const choice plain = {"adamw-plain", {"train.optimizer=adamw", "train.ema_decay=0.75"}};
    tiny_outcome trained;
    TESS_TRY(live(w.comm, &plain, plain.name, false));
    TESS_TRY(tess_agree(w.comm, tiny_run_outcome(&w.t, plain.name, &trained)));
    TESS_CHECK(tess_sha256_is_equal(&trained.losses, &ema->losses), TESS_E_STATE,
               "evaluating the average changes the training");
    TESS_CHECK(!tess_sha256_is_equal(&trained.adapter, &ema->adapter), TESS_E_STATE,
               "the average is exported where the trained weights were asked for");
    return TESS_OK;
}

/* Loss on the held-out text of the newest checkpoint, or of an adapter over the same base.
 * @param weights  in place of the choice's own train.eval_weights; NULL: as they are */
static tess_status loss_of(const choice *c, const char *adapter, const char *weights, double *out)
{
    const char *overrides[TINY_OVERRIDE_MAX];
    char name[48];
    int numel = 0;
    choice read = *c;
    tess_session *session = NULL;
    tess_eval_result got = {0};
    const tess_session_options o = {.kind = TESS_SESSION_READER, .adapter = adapter};
    snprintf(name, sizeof name, "%s-many", c->name);
    while (weights != NULL && read.keys[numel] != NULL &&
           strstr(read.keys[numel], "eval_weights") == NULL)
        numel++;
    if (weights != NULL)
        read.keys[numel] = weights;
    list_keys(&read, overrides);
    w.t.ctx.log.sink = NULL;
    TESS_TRY(tiny_run_open_as(w.comm, &w.t, name, overrides, &o, &session));
    const tess_status st = tess_session_evaluate(session, &got);
    tess_session_close(&session);
    *out = got.loss;
    return st;
}

/* A checkpoint is evaluated at the weights that are exported, which are not those that gradients
 * were taken at (schedule-free) or that were trained (the average). */
static tess_status check_evaluated(const choice *c)
{
    char dir[400];
    double found = 0.0, exported = 0.0, trained = 0.0;
    snprintf(dir, sizeof dir, "%s/%s-many/export", w.t.dir, c->name);
    TESS_TRY(loss_of(c, NULL, NULL, &found));
    TESS_TRY(loss_of(c, dir, NULL, &exported));
    TESS_CHECK(found == exported, TESS_E_STATE,
               "%s: loss %.17g of the checkpoint, %.17g of what it exports", c->name, found,
               exported);
    TESS_TRY(loss_of(c, NULL, "train.eval_weights=trained", &trained));
    const bool is_average = c->keys[2] != NULL && strstr(c->keys[2], "eval_weights=ema") != NULL;
    TESS_CHECK((trained != found) == is_average, TESS_E_STATE,
               "%s: loss %.17g, of the trained weights %.17g", c->name, found, trained);
    return TESS_OK;
}

static tess_status run_all(void)
{
    tiny_outcome outcome[TESS_NELEM(choices)];
    for (int i = 0; i < TESS_NELEM(choices); i++) {
        TESS_TRY(run_choice(&choices[i], &outcome[i]));
        TESS_TRY(check_evaluated(&choices[i]));
    }
    return check_exports(&outcome[0]);
}

static tess_status run(tess_comm *comm)
{
    w.comm = comm;
    TESS_TRY(tess_comm_create_self(&w.self));
    tess_status st = tiny_run_create(comm, &w.t);
    if (st == TESS_OK) {
        st = run_all();
        tiny_run_destroy(comm, &w.t);
    }
    tess_comm_destroy(&w.self);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
