/*
 * Adapters that start from the weights: the function at the start is the model's own, the base is
 * another one, and what was trained is an adapter of the original weights too. And adapters of
 * every kind that are written and read back.
 *
 * [Note: bound] All runs compute in f32. W - s B A is rounded to f32 once, A and B once each: 3
 * roundings of 2^-24 of a weight or of a term of s B A (which is no larger: singular values of W).
 * A loss is a mean over more than 1000 tokens of sums over at most 80 weights in 3 layers, so the
 * relative difference stays far below 1e-5, the bound of parity in test_llama_parity.c.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "format/peft.h"
#include "support/rank_test.h"
#include "support/tiny_run.h"

enum { KEY_MAX = 12 };
static const double bound = 1e-5;

#define COMMON                                                                                     \
    "model.init=weights", "train.steps=4", "train.micro_batches=3", "train.warmup_steps=1",        \
        "compute.dtype=f32", "lora.dropout=0", "train.clip_norm=1"

typedef struct world_pair {
    tess_comm *comm;
    tiny_run t;
} world_pair;

/* Loss on the held-out text before the first step, or of the newest checkpoint. */
static tess_status loss_of(world_pair *w, const char *name, const char *const *overrides,
                           tess_session_kind kind, double *out)
{
    tess_session *session = NULL;
    tess_eval_result got = {0};
    TESS_TRY(tiny_run_open(w->comm, &w->t, name, overrides, kind, &session));
    const tess_status st = tess_session_evaluate(session, &got);
    tess_session_close(&session);
    *out = got.loss;
    return st;
}

static tess_status near(const char *what, double got, double want)
{
    TESS_CHECK(fabs(got - want) <= bound * want, TESS_E_STATE, "%s: loss %.9g, expected %.9g", what,
               got, want);
    return TESS_OK;
}

/* Another turn quantizes what the adapter of the first one leaves, so it starts elsewhere. */
static tess_status check_turns(world_pair *w)
{
    const char *const once[] = {COMMON, "base.format=nf4", "lora.init=loftq", NULL};
    const char *const thrice[] = {COMMON, "base.format=nf4", "lora.init=loftq",
                                  "lora.init_iterations=3", NULL};
    double first = 0.0, last = 0.0;
    TESS_TRY(loss_of(w, "loftq-once", once, TESS_SESSION_TRAIN, &first));
    TESS_TRY(loss_of(w, "loftq-thrice", thrice, TESS_SESSION_TRAIN, &last));
    TESS_CHECK(first != last, TESS_E_STATE, "lora.init_iterations changes nothing: loss %.17g",
               first);
    return TESS_OK;
}

/* 48 ranks are all that a matrix of this model has: nothing is left to be lost. */
static tess_status check_start(world_pair *w)
{
    const char *const plain[] = {COMMON, "base.format=f32", NULL};
    const char *const coarse[] = {COMMON, "base.format=nf4", NULL};
    const char *const pissa[] = {COMMON, "base.format=f32", "lora.init=pissa", NULL};
    const char *const loftq[] = {COMMON,         "base.format=nf4",        "lora.init=loftq",
                                 "lora.rank=48", "lora.init_iterations=2", NULL};
    double want = 0.0, lossy = 0.0, got = 0.0;
    TESS_TRY(loss_of(w, "plain", plain, TESS_SESSION_TRAIN, &want));
    TESS_TRY(loss_of(w, "coarse", coarse, TESS_SESSION_TRAIN, &lossy));
    TESS_CHECK(fabs(lossy - want) > 20 * bound * want, TESS_E_STATE,
               "nf4 loses nothing of this model: %.9g and %.9g", lossy, want);
    TESS_TRY(loss_of(w, "pissa-start", pissa, TESS_SESSION_TRAIN, &got));
    TESS_TRY(near("pissa at the start", got, want));
    TESS_TRY(loss_of(w, "loftq-start", loftq, TESS_SESSION_TRAIN, &got));
    TESS_TRY(near("loftq of full rank at the start", got, want));
    return check_turns(w);
}

static tess_status train(world_pair *w, const char *name, const char *const *overrides)
{
    tess_session *session = NULL;
    TESS_TRY(tiny_run_open(w->comm, &w->t, name, overrides, TESS_SESSION_TRAIN, &session));
    const tess_status st = tess_session_train(session);
    tess_session_close(&session);
    return st;
}

static tess_status export_to(world_pair *w, const char *name, const char *const *overrides,
                             const tess_export_request *request)
{
    tess_session *session = NULL;
    TESS_TRY(tiny_run_open(w->comm, &w->t, name, overrides, TESS_SESSION_READER, &session));
    const tess_status st = tess_session_export(session, request);
    tess_session_close(&session);
    return st;
}

/* One rank's reading of the config: twice the rank, the scale as it was. */
static tess_status check_config(world_pair *w, const char *dir, int64_t rank, double scale)
{
    static const tess_peft_module down = {.path = "model.layers.1.mlp.down_proj"};
    tess_peft_dir *adapter = NULL;
    tess_peft_match match = {.is_target = false};
    TESS_TRY(tess_peft_dir_open(w->t.ctx.io, dir, &adapter));
    tess_status st = tess_peft_spec_match(tess_peft_dir_spec(adapter), &down, &match);
    if (st == TESS_OK && (match.rank != rank || fabs(match.scale - scale) > 1e-12))
        st = TESS_FAIL(TESS_E_STATE, "'%s': rank %d and scale %g, expected %d and %g", dir,
                       (int)match.rank, match.scale, (int)rank, scale);
    if (st == TESS_OK && tess_peft_dir_metadata(adapter, "base.identity") != NULL)
        st = TESS_FAIL(TESS_E_STATE, "'%s' names a base that it does not belong to", dir);
    tess_peft_dir_close(&adapter);
    return st;
}

/* An adapter of twice the rank on the original weights computes what the run trained. */
static tess_status check_difference(world_pair *w, const char *name, const char *init,
                                    const char *rslora)
{
    const char *const own[] = {
        COMMON, "base.format=f32", init, rslora, "lora.rank_pattern={down_proj: 3}", NULL};
    char dir[400], resume[440];
    snprintf(dir, sizeof dir, "%s/%s-difference", w->t.dir, name);
    snprintf(resume, sizeof resume, "adapter.resume=%s", dir);
    const bool is_rs = strstr(rslora, "true") != NULL;
    const char *const original[] = {COMMON,
                                    "base.format=f32",
                                    resume,
                                    rslora,
                                    "lora.rank=8",
                                    "lora.rank_pattern={down_proj: 6}",
                                    is_rs ? "lora.alpha=11.313708498984761" : "lora.alpha=16",
                                    NULL};
    const tess_export_request request = {
        .dir = dir, .format = TESS_RUN_EXPORT_PEFT, .dt = TESS_F32, .is_difference = true};
    double want = 0.0, start = 0.0, got = 0.0;
    TESS_TRY(train(w, name, own));
    TESS_TRY(loss_of(w, "plain", (const char *const[]){COMMON, "base.format=f32", NULL},
                     TESS_SESSION_TRAIN, &start));
    TESS_TRY(loss_of(w, name, own, TESS_SESSION_READER, &want));
    TESS_CHECK(fabs(want - start) > 20 * bound * start, TESS_E_STATE,
               "'%s' learned nothing: %.9g and %.9g", name, want, start);
    TESS_TRY(export_to(w, name, own, &request));
    TESS_TRY(tess_agree(w->comm, check_config(w, dir, 6, is_rs ? 8.0 / sqrt(3.0) : 8.0 / 3.0)));
    char applied[64];
    snprintf(applied, sizeof applied, "%s-applied", name);
    const tess_status refused = loss_of(w, applied, original, TESS_SESSION_TRAIN, &got);
    TESS_CHECK(refused == TESS_E_CONFIG &&
                   strstr(tess_error_message(), "trained on base (not stated)") != NULL,
               TESS_E_STATE, "an adapter without a base was taken: %s", tess_status_name(refused));
    tess_error_clear();
    const char *accepted[KEY_MAX + 8] = {"adapter.allow_base_change=true"};
    for (int i = 0; original[i] != NULL; i++)
        accepted[i + 1] = original[i];
    TESS_TRY(loss_of(w, applied, accepted, TESS_SESSION_TRAIN, &got));
    return near("the difference on the original weights", got, want);
}

/* What a GGUF adapter has no place for. */
static tess_status refuse_gguf(world_pair *w, const char *name, const char *const *overrides)
{
    char dir[400];
    snprintf(dir, sizeof dir, "%s/%s-gguf", w->t.dir, name);
    const tess_export_request request = {
        .dir = dir, .format = TESS_RUN_EXPORT_GGUF, .dt = TESS_F32};
    const tess_status st = export_to(w, name, overrides, &request);
    TESS_CHECK(st == TESS_E_UNSUPPORTED && strstr(tess_error_message(), "export gguf: ") != NULL,
               TESS_E_STATE, "'%s' as GGUF gave %s: %.600s", name, tess_status_name(st),
               tess_error_message());
    tess_error_clear();
    return TESS_OK;
}

/* The adapter that a run exported is the start of another one: the same bits. */
static tess_status check_round_trip(world_pair *w, const char *name, const char *key,
                                    const char *other)
{
    const char *const own[] = {COMMON, "base.format=nf4", key, NULL};
    char resume[440], again[64];
    double want = 0.0, got = 0.0;
    snprintf(resume, sizeof resume, "adapter.resume=%s/%s/export", w->t.dir, name);
    snprintf(again, sizeof again, "%s-again", name);
    const char *const from[] = {COMMON, "base.format=nf4", key, resume, NULL};
    const bool is_own_base = strstr(other, "base") != NULL;
    const char *const without[] = {COMMON, "base.format=nf4", resume,
                                   is_own_base ? NULL : "adapter.allow_base_change=true", NULL};
    TESS_TRY(train(w, name, own));
    TESS_TRY(loss_of(w, name, own, TESS_SESSION_READER, &want));
    TESS_TRY(refuse_gguf(w, name, own));
    TESS_TRY(loss_of(w, again, from, TESS_SESSION_TRAIN, &got));
    TESS_CHECK(got == want, TESS_E_STATE, "'%s': loss %.17g, after import %.17g", name, want, got);
    const tess_status st = loss_of(w, again, without, TESS_SESSION_TRAIN, &got);
    TESS_CHECK(st == TESS_E_CONFIG && strstr(tess_error_message(), other) != NULL, TESS_E_STATE,
               "'%s' was taken for another kind (%s): %.600s", name, tess_status_name(st),
               tess_error_message());
    tess_error_clear();
    return TESS_OK;
}

static tess_status expect(world_pair *w, const char *const *overrides, tess_status want,
                          const char *words)
{
    double loss = 0.0;
    const tess_status st = loss_of(w, "refused", overrides, TESS_SESSION_TRAIN, &loss);
    TESS_CHECK(st == want && strstr(tess_error_message(), words) != NULL, TESS_E_STATE,
               "expected '%s', found %s: %.700s", words, tess_status_name(st),
               tess_error_message());
    tess_error_clear();
    return TESS_OK;
}

static tess_status check_refusals(world_pair *w)
{
    const char *const unknown[] = {COMMON, "lora.modules_to_save=[classifier]", NULL};
    const char *const both[] = {COMMON, "lora.modules_to_save=[_proj]", NULL};
    const char *const pointless[] = {COMMON, "lora.init=loftq", "base.format=keep", NULL};
    const char *const two[] = {COMMON, "lora.init=pissa", "lora.dora=true", NULL};
    TESS_TRY(expect(w, unknown, TESS_E_CONFIG, "no module's path ends in 'classifier'"));
    TESS_TRY(expect(w, both, TESS_E_CONFIG, "by lora.modules_to_save and by lora.targets"));
    TESS_TRY(expect(w, pointless, TESS_E_CONFIG, "loftq makes up for what quantizing loses"));
    return expect(w, two, TESS_E_CONFIG, "choose lora.dora or one of them");
}

static tess_status run_all(world_pair *w)
{
    TESS_TRY(tiny_run_make_weights(w->comm, &w->t));
    TESS_TRY(check_refusals(w));
    TESS_TRY(check_start(w));
    TESS_TRY(check_difference(w, "pissa", "lora.init=pissa", "lora.rslora=false"));
    TESS_TRY(check_difference(w, "pissa-rs", "lora.init=pissa", "lora.rslora=true"));
    TESS_TRY(check_round_trip(w, "dora", "lora.dora=true", "set lora.dora=true"));
    TESS_TRY(check_round_trip(w, "saved", "lora.modules_to_save=[norm, lm_head, k_proj]",
                              "change lora.modules_to_save"));
    return check_round_trip(w, "loftq", "lora.init=loftq", "was trained on base");
}

static tess_status run(tess_comm *comm)
{
    world_pair w = {.comm = comm};
    tess_status st = tiny_run_create(comm, &w.t);
    if (st == TESS_OK) {
        st = run_all(&w);
        tiny_run_destroy(comm, &w.t);
    }
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
