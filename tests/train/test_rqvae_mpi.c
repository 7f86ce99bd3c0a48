/*
 * Whole RQ-VAE runs on this many ranks against one rank: the same bits, whatever the dtype, the
 * estimator, the optimizer; stopped and resumed on other numbers of ranks; and that they learn.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "tests/support/rank_test.h"
#include "tests/support/vector_run.h"
#include "train/session.h"

/* M = 5 micro-batches and K = 19 codes divide by no number of ranks above 1; N = 301 vectors are
 * less than two epochs of 12 steps with 40 vectors each, and no whole number of steps. */
static const char run_text[] =
    "model: {family: rqvae}\n"
    "data: {path: %s, eval_path: %s}\n"
    "train: {steps: 12, micro_batch: 8, micro_batches: 5, learning_rate: 1.0e-2, warmup_steps: 2,\n"
    "        eval_every: 5, seed: 11}\n"
    "quantizer: {codes: 19, levels: 3, code_dim: 6, encoder: [24, 10], window: 5}\n"
    "compute: {memory_limit: 1GiB}\n"
    "output: {dir: %s/%s, checkpoint_every: 4, keep: 2}\n";

enum { OVERRIDE_MAX = 4 };

typedef struct launch {
    const char *name;
    const char *override[OVERRIDE_MAX]; /* ends with NULL */
    bool is_stopped;                    /* as a signal would, after one step */
} launch;

static tess_status train(tess_comm *comm, vector_run *v, const launch *l, bool *is_done)
{
    static volatile sig_atomic_t stop = 1;
    char text[2048];
    tess_session *session = NULL;
    tess_run_override overrides[OVERRIDE_MAX];
    int numel = 0;
    for (; numel < OVERRIDE_MAX && l->override[numel] != NULL; numel++)
        overrides[numel] = (tess_run_override){l->override[numel], numel + 1};
    snprintf(text, sizeof text, run_text, v->file, v->file, v->dir, l->name);
    const tess_session_options options = {.kind = TESS_SESSION_TRAIN,
                                          .run_path = "run.yaml",
                                          .run_text = text,
                                          .overrides = overrides,
                                          .override_numel = numel,
                                          .needs_data = true,
                                          .stop_request = l->is_stopped ? &stop : NULL};
    TESS_TRY(tess_session_open(&v->ctx, comm, &options, &session));
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

typedef struct outcome {
    tess_sha256 digest; /* losses, norms, levels, evaluations, tensors */
    double first_loss, last_loss;
    int step_numel;
} outcome;

static tess_status read_file(vector_run *v, const char *run, const char *name, char **text,
                             size_t *nbytes)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s/%s", v->dir, run, name);
    return tess_io_read_all(v->ctx.io, path, 1 << 24, text, nbytes);
}

/* Bits of the losses, and the norms in front of the learning rates. */
static tess_status hash_steps(const char *text, tess_sha256_state *sha, outcome *out)
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

static tess_status outcome_of(vector_run *v, const char *run, outcome *out)
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

static tess_status expect_same(vector_run *v, const char *a_name, const char *b_name)
{
    outcome a = {0}, b = {0};
    TESS_TRY(outcome_of(v, a_name, &a));
    TESS_TRY(outcome_of(v, b_name, &b));
    TESS_CHECK(tess_sha256_is_equal(&a.digest, &b.digest), TESS_E_STATE,
               "runs '%s' and '%s' differ: last losses %.17g and %.17g", a_name, b_name,
               a.last_loss, b.last_loss);
    TESS_CHECK(a.step_numel == 12, TESS_E_STATE, "run '%s' has %d steps", a_name, a.step_numel);
    return TESS_OK;
}

/* ---- checks ---- */

static tess_status check_against_one_rank(tess_comm *comm, tess_comm *self, vector_run *v)
{
    static const launch choice[] = {
        {.name = "f32", .override = {"compute.dtype=f32"}},
        {.name = "bf16", .override = {"compute.dtype=bf16", "quantizer.estimator=rotation"}},
        {.name = "sum",
         .override = {"compute.dtype=bf16", "quantizer.loss=sum", "train.optimizer=muon",
                      "compute.activation_checkpointing=on"}},
        {.name = "ema",
         .override = {"quantizer.update=ema", "quantizer.decay=0.8", "quantizer.threshold=1.5"}},
        {.name = "ema-few",
         .override = {"quantizer.update=ema", "train.micro_batches=2", "quantizer.codes=300",
                      "quantizer.threshold=0.5"}},
        {.name = "ema-f32",
         .override = {"quantizer.update=ema", "compute.dtype=f32", "quantizer.init=random",
                      "train.optimizer=lion"}},
        {.name = "few",
         .override = {"train.micro_batches=2", "quantizer.init=sample", "quantizer.codes=300",
                      "compute.threads=2"}},
        {.name = "random",
         .override = {"quantizer.init=random", "train.ema_decay=0.9",
                      "shard.reshard_after_forward=on"}}};
    for (int i = 0; i < TESS_NELEM(choice); i++) {
        char alone_name[32];
        bool is_done = false;
        launch alone = choice[i];
        snprintf(alone_name, sizeof alone_name, "%s-alone", choice[i].name);
        alone.name = alone_name;
        TESS_TRY(train(comm, v, &choice[i], &is_done));
        tess_status st = TESS_OK;
        if (tess_comm_rank(comm) == 0)
            st = train(self, v, &alone, &is_done);
        if (st == TESS_OK && tess_comm_rank(comm) == 0)
            st = expect_same(v, choice[i].name, alone_name);
        TESS_TRY(tess_agree(comm, st));
    }
    return TESS_OK;
}

/* Stopped after every step, with all ranks and with one in turn. */
static tess_status check_resume(tess_comm *comm, tess_comm *self, vector_run *v,
                                const launch *whole)
{
    char parts_name[32];
    launch parts = *whole;
    snprintf(parts_name, sizeof parts_name, "%s-parts", whole->name);
    parts.name = parts_name;
    parts.is_stopped = true;
    int64_t is_over = 0;
    int launches = 0;
    bool is_done = false;
    TESS_TRY(train(comm, v, whole, &is_done));
    for (; is_over == 0; launches++) {
        tess_status st = TESS_OK;
        is_done = false;
        if (launches % 2 == 0)
            st = train(comm, v, &parts, &is_done);
        else if (tess_comm_rank(comm) == 0)
            st = train(self, v, &parts, &is_done);
        TESS_TRY(tess_agree(comm, st));
        is_over = is_done;
        TESS_TRY(tess_comm_control(comm, NULL, 0, &is_over, 1));
    }
    TESS_CHECK(launches == 12, TESS_E_STATE, "%d launches of one step each", launches);
    return tess_agree(comm, expect_same(v, whole->name, parts_name));
}

/* 50 centers of spread 5 leave 1 of 26 where codes tell them apart; half of the loss is far from
 * both. Then: a checkpoint of another run is noticed. */
static tess_status check_learning(tess_comm *comm, vector_run *v)
{
    bool is_done = false;
    static const launch more[] = {
        {.name = "more", .override = {"train.steps=1200", "output.checkpoint_every=0"}},
        {.name = "more-ema",
         .override = {"train.steps=1200", "output.checkpoint_every=0", "quantizer.update=ema",
                      "quantizer.threshold=0.5"}}};
    const launch other = {.name = "more", .override = {"train.steps=1200", "train.seed=12"}};
    for (int i = 0; i < TESS_NELEM(more); i++) {
        outcome out = {0};
        TESS_TRY(train(comm, v, &more[i], &is_done));
        TESS_TRY(tess_agree(comm, outcome_of(v, more[i].name, &out)));
        TESS_CHECK(out.last_loss < 0.5 * out.first_loss, TESS_E_STATE,
                   "%s: loss went from %g to %g", more[i].name, out.first_loss, out.last_loss);
    }
    const tess_status st = train(comm, v, &other, &is_done);
    TESS_CHECK(st == TESS_E_CONFIG && strstr(tess_error_message(), "train.seed: 11 -> 12") != NULL,
               TESS_E_STATE, "resume with another seed: %s: %s", tess_status_name(st),
               tess_error_message());
    tess_error_clear();
    return TESS_OK;
}

static tess_status expect_refused(tess_comm *comm, vector_run *v, const launch *l, tess_status code,
                                  const char *words)
{
    bool is_done = false;
    const tess_status st = train(comm, v, l, &is_done);
    TESS_CHECK(st == code && strstr(tess_error_message(), words) != NULL, TESS_E_STATE,
               "%s: expected a refusal with '%s', found %s: %s", l->name, words,
               tess_status_name(st), tess_error_message());
    tess_error_clear();
    return TESS_OK;
}

static tess_status check_refusals(tess_comm *comm, vector_run *v)
{
    static const struct {
        launch l;
        const char *words;
    } wrong[] = {
        {{.name = "no1", .override = {"quantizer.dim=7"}}, "data.path: '"},
        {{.name = "no2", .override = {"quantizer.init=kmeans++"}}, "kmeans, sample, random"},
        {{.name = "no3", .override = {"quantizer.beam=2"}}, "no meaning with model.family rqvae"},
        {{.name = "no4", .override = {"train.mode=full"}}, "no meaning with model.family rqvae"},
        {{.name = "no5", .override = {"lora.rank=2"}}, "no meaning with model.family rqvae"},
        {{.name = "no7", .override = {"quantizer.decay=0.5"}}, "choose ema"},
        {{.name = "no8", .override = {"quantizer.update=ema", "train.ema_decay=0.9"}},
         "averages already"},
        {{.name = "no9",
          .override = {"quantizer.update=ema", "train.optimizer=adamw-schedule-free"}},
         "choose another optimizer"},
        {{.name = "no6", .override = {"quantizer.estimator=gumbel"}}, "straight-through"}};
    for (int i = 0; i < TESS_NELEM(wrong); i++)
        TESS_TRY(expect_refused(comm, v, &wrong[i].l, TESS_E_CONFIG, wrong[i].words));
    return TESS_OK;
}

static tess_status check_nan(tess_comm *comm)
{
    vector_run v;
    const launch l = {.name = "nan"};
    TESS_TRY(vector_run_create(comm, 2000, 5, VECTORS_ONE_NAN, &v));
    const tess_status st =
        expect_refused(comm, &v, &l, TESS_E_FORMAT, "dimension 1 of vector 1234 is nan");
    vector_run_destroy(comm, &v);
    return st;
}

static tess_status run(tess_comm *comm)
{
    tess_comm *self = NULL;
    vector_run v;
    TESS_TRY(tess_comm_create_self(&self));
    tess_status st = vector_run_create(comm, 301, 19, VECTORS_CLUSTERS, &v);
    if (st == TESS_OK)
        st = check_against_one_rank(comm, self, &v);
    if (st == TESS_OK)
        st = check_learning(comm, &v);
    if (st == TESS_OK)
        st = check_resume(comm, self, &v, &(launch){.name = "whole"});
    if (st == TESS_OK)
        st = check_resume(comm, self, &v,
                          &(launch){.name = "whole-ema",
                                    .override = {"quantizer.update=ema", "quantizer.decay=0.8",
                                                 "quantizer.threshold=1.5"}});
    if (st == TESS_OK)
        st = check_refusals(comm, &v);
    vector_run_destroy(comm, &v);
    if (st == TESS_OK)
        st = check_nan(comm);
    tess_comm_destroy(&self);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
