/*
 * Training over weights that bitsandbytes has packed: the same bits as over the same codes made on
 * load, under every label of their bytes, at any number of ranks, and after a resume that has
 * neither the source nor a quantizer.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "support/rank_test.h"
#include "support/tiny_run.h"

#define GOLDEN TESS_TEST_SOURCE_DIR "/tests/golden/bnb/"

enum { STEP_NUMEL = 4, STOP_AFTER = 2 };

typedef struct world_pair {
    tess_comm *comm;
    tess_comm *self; /* of this rank alone */
    tiny_run t;
} world_pair;

static volatile sig_atomic_t stop_request;
static const char *stop_line;

/* An evaluation after step k is reported before step k + 1 begins: that step is then the last. */
static void stop_after(void *arg, tess_log_level level, const char *line)
{
    (void)arg;
    (void)level;
    if (stop_line != NULL && strstr(line, stop_line) != NULL)
        stop_request = 1;
}

/* Nothing of these models may be quantized. */
static tess_status refuse_quantize(const tess_quantize_args *a, tess_stream *s)
{
    (void)s;
    return TESS_FAIL(TESS_E_STATE, "tensor '%s' is quantized again", a->tensor_name);
}

typedef struct life {
    const char *name; /* of the run directory */
    const char *base; /* "base.format=keep" */
    bool may_quantize, is_stopped;
    const char *group;
} life;

static tess_status live(world_pair *w, tess_comm *comm, const life *l)
{
    const char *const overrides[TINY_OVERRIDE_MAX] = {"model.init=weights",
                                                      "train.steps=4",
                                                      "train.micro_batches=3",
                                                      "base.double_quant=false",
                                                      "train.warmup_steps=1",
                                                      "output.base=copy",
                                                      l->base,
                                                      l->group != NULL ? l->group
                                                                       : "shard.gather_group=world",
                                                      "train.eval_every=1"};
    tess_session *session = NULL;
    tess_kernels kernels = tess_kernels_cpu;
    if (!l->may_quantize)
        kernels.quantize = refuse_quantize;
    const tess_session_options o = {
        .kind = TESS_SESSION_TRAIN, .stop_request = &stop_request, .kernels = &kernels};
    stop_request = 0;
    stop_line = l->is_stopped ? "eval step=1 loss" : NULL;
    w->t.ctx.log.sink = stop_after;
    TESS_TRY(tiny_run_open_as(comm, &w->t, l->name, overrides, &o, &session));
    tess_status st = tess_session_train(session);
    const int64_t step = tess_session_step(session);
    tess_session_close(&session);
    if (l->is_stopped && st == TESS_E_PREEMPTED) {
        tess_error_clear();
        st = TESS_OK;
    }
    TESS_TRY(st);
    TESS_CHECK(step == (l->is_stopped ? STOP_AFTER : STEP_NUMEL), TESS_E_STATE,
               "'%s' ended after step %lld", l->name, (long long)step);
    return TESS_OK;
}

static tess_status live_alone(world_pair *w, const life *l)
{
    const bool is_root = tess_comm_rank(w->comm) == 0;
    return tess_agree(w->comm, is_root ? live(w, w->self, l) : TESS_OK);
}

static tess_status compare(world_pair *w, const char *a, const char *b)
{
    tiny_outcome one, other;
    TESS_TRY(tess_agree(w->comm, tiny_run_outcome(&w->t, a, &one)));
    TESS_TRY(tess_agree(w->comm, tiny_run_outcome(&w->t, b, &other)));
    TESS_CHECK(one.step_numel == STEP_NUMEL && other.step_numel == STEP_NUMEL, TESS_E_STATE,
               "'%s' has %lld steps, '%s' %lld, expected %d", a, (long long)one.step_numel, b,
               (long long)other.step_numel, STEP_NUMEL);
    TESS_CHECK(tess_sha256_is_equal(&one.losses, &other.losses), TESS_E_STATE,
               "losses of '%s' and '%s' differ; last %.17g and %.17g", a, b, one.last_loss,
               other.last_loss);
    TESS_CHECK(tess_sha256_is_equal(&one.adapter, &other.adapter), TESS_E_STATE,
               "adapters of '%s' and '%s' differ", a, b);
    return TESS_OK;
}

static tess_status shell(world_pair *w, const char *fmt, const char *a, const char *b)
{
    char command[1400];
    tess_status st = TESS_OK;
    if (tess_comm_rank(w->comm) == 0) {
        snprintf(command, sizeof command, fmt, a, b);
        if (system(command) != 0)
            st = TESS_FAIL(TESS_E_STATE, "'%s' failed", command);
    }
    return tess_agree(w->comm, st);
}

/* A golden model takes the place of the run's source: adapters name that path, and the base id. */
static tess_status put_source(world_pair *w, const char *golden)
{
    char from[512];
    snprintf(w->t.model, sizeof w->t.model, "%s/source", w->t.dir);
    snprintf(from, sizeof from, GOLDEN "%s", golden);
    TESS_TRY(shell(w, "rm -rf '%s'%s", w->t.model, ""));
    return shell(w, "cp -r '%s' '%s'", from, w->t.model);
}

static const char keep[] = "base.format=keep";

/* The codes that bitsandbytes made are those that are made on load. */
static tess_status check_on_load(world_pair *w)
{
    TESS_TRY(put_source(w, "plain"));
    TESS_TRY(
        live(w, w->comm, &(life){.name = "load", .base = "base.format=nf4", .may_quantize = true}));
    TESS_TRY(put_source(w, "nf4"));
    TESS_TRY(live(w, w->comm, &(life){.name = "nf4", .base = keep}));
    return compare(w, "nf4", "load");
}

/* The same base id and bits under the four labels of quant_storage. */
static tess_status check_labels(world_pair *w)
{
    static const char *const label[] = {"double_uint8", "double_bfloat16", "double_float16",
                                        "double_float32"};
    for (int i = 0; i < TESS_NELEM(label); i++) {
        TESS_TRY(put_source(w, label[i]));
        TESS_TRY(live(w, w->comm, &(life){.name = label[i], .base = keep}));
        TESS_TRY(compare(w, label[i], label[0]));
    }
    return TESS_OK;
}

/* One rank alone, all of them, and a run that is stopped and goes on elsewhere without its source.
 */
static tess_status check_worlds(world_pair *w, const char *golden)
{
    char whole[64], all[64], cut[64];
    snprintf(whole, sizeof whole, "%s-whole", golden);
    snprintf(all, sizeof all, "%s-all", golden);
    snprintf(cut, sizeof cut, "%s-cut", golden);
    TESS_TRY(put_source(w, golden));
    TESS_TRY(live_alone(w, &(life){.name = whole, .base = keep}));
    TESS_TRY(live(w, w->comm, &(life){.name = all, .base = keep}));
    TESS_TRY(compare(w, all, whole));
    TESS_TRY(live(w, w->comm, &(life){.name = cut, .base = keep, .is_stopped = true}));
    TESS_TRY(shell(w, "rm -r '%s'%s", w->t.model, ""));
    TESS_TRY(live_alone(w, &(life){.name = cut, .base = keep, .group = "shard.gather_group=1"}));
    return compare(w, cut, whole);
}

static tess_status expect_refusal(world_pair *w, const life *l, const char *const words[2])
{
    const tess_status st = live(w, w->comm, l);
    TESS_CHECK(st == TESS_E_CONFIG, st != TESS_OK ? st : TESS_E_STATE, "'%s' gave %s", l->name,
               tess_status_name(st));
    for (int i = 0; i < 2; i++)
        if (strstr(tess_error_message(), words[i]) == NULL) {
            char message[TESS_ERROR_MESSAGE_NBYTES];
            snprintf(message, sizeof message, "%s", tess_error_message());
            tess_error_clear();
            return TESS_FAIL(TESS_E_STATE, "no '%s' in: %.900s", words[i], message);
        }
    tess_error_clear();
    return TESS_OK;
}

static tess_status run_all(world_pair *w)
{
    const char *const again[2] = {"nf4/64/double", "would be quantized again"};
    TESS_TRY(check_on_load(w));
    TESS_TRY(check_labels(w));
    TESS_TRY(check_worlds(w, "mixed"));
    TESS_TRY(check_worlds(w, "int8"));
    /* dequantized on request, never requantized */
    TESS_TRY(put_source(w, "mixed"));
    TESS_TRY(live(w, w->comm, &(life){.name = "wide", .base = "base.format=f32"}));
    TESS_TRY(put_source(w, "double_uint8"));
    return expect_refusal(w, &(life){.name = "again", .base = "base.format=nf4"}, again);
}

static tess_status run(tess_comm *comm)
{
    world_pair w = {.comm = comm};
    TESS_TRY(tess_comm_create_self(&w.self));
    tess_status st = tiny_run_create(comm, &w.t);
    if (st == TESS_OK) {
        st = run_all(&w);
        tiny_run_destroy(comm, &w.t);
    }
    tess_comm_destroy(&w.self);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
