/*
 * A run that is stopped and started again gives the bits of a run that never stopped: at the same
 * and at another world size, with other gather groups and other settings that decide no bits,
 * without its source files where the base was quantized, and never after a change that decides bits
 * unless it is told to.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/memory.h"
#include "shard/ckpt.h"
#include "support/rank_test.h"
#include "support/tiny_run.h"

/* A model that is trained whole first, and is the source of the runs on weights. */
static const char full_text[] =
    "model: {path: MODEL, init: random}\n"
    "data: {path: TRAIN, sequence_length: 32}\n"
    "train: {mode: full, steps: 2, micro_batch: 2, micro_batches: 4, learning_rate: 1.0e-3}\n"
    "output: {dir: OUT, checkpoint_every: 0}\n";

typedef struct world_pair {
    tess_comm *comm;
    tess_comm *self; /* of this rank alone */
    tiny_run t;
} world_pair;

/* ---- stopping at a step ---- */

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

/* ---- counting quantizer ---- */

static int64_t quantized_numel;
static bool is_quantizer_refusing;

static tess_status count_quantize(const tess_quantize_args *a, tess_stream *s)
{
    quantized_numel++;
    TESS_CHECK(!is_quantizer_refusing, TESS_E_STATE, "tensor '%s' is quantized a second time",
               a->tensor_name);
    return tess_kernels_cpu.quantize(a, s);
}

/* ---- lives ---- */

typedef struct life {
    const char *name;             /* of the run directory */
    const char *const *overrides; /* NULL-terminated */
    int stop_after;               /* steps, even, less than 20; 0: to the end */
    int resumed_at;               /* where it must go on */
    bool accepts_change;
    const tess_kernels *kernels;
} life;

static tess_status live(world_pair *w, tess_comm *comm, const life *l)
{
    char eval_every[32], line[32];
    const char *overrides[TINY_OVERRIDE_MAX] = {0};
    int numel = 0;
    tess_session *session = NULL;
    for (int i = 0; l->overrides != NULL && l->overrides[i] != NULL; i++)
        overrides[numel++] = l->overrides[i];
    snprintf(eval_every, sizeof eval_every, "train.eval_every=%d", l->stop_after - 1);
    snprintf(line, sizeof line, "eval step=%d loss", l->stop_after - 1);
    if (l->stop_after > 0)
        overrides[numel++] = eval_every;
    stop_line = l->stop_after > 0 ? line : NULL;
    stop_request = 0;
    w->t.ctx.log.sink = stop_after;
    const tess_session_options o = {.kind = TESS_SESSION_TRAIN,
                                    .accept_config_change = l->accepts_change,
                                    .stop_request = &stop_request,
                                    .kernels = l->kernels};
    TESS_TRY(tiny_run_open_as(comm, &w->t, l->name, overrides, &o, &session));
    tess_status st = TESS_OK;
    if (tess_session_step(session) != l->resumed_at)
        st = TESS_FAIL(TESS_E_STATE, "'%s' begins at step %lld, expected %d", l->name,
                       (long long)tess_session_step(session), l->resumed_at);
    if (st == TESS_OK)
        st = tess_session_train(session);
    const int64_t step = tess_session_step(session);
    tess_session_close(&session);
    if (l->stop_after > 0 && st == TESS_E_PREEMPTED) {
        tess_error_clear();
        st = TESS_OK;
    } else if (l->stop_after > 0 && st == TESS_OK) {
        st = TESS_FAIL(TESS_E_STATE, "'%s' ran to the end", l->name);
    }
    TESS_TRY(st);
    const int want = l->stop_after > 0 ? l->stop_after : 20;
    TESS_CHECK(step == want, TESS_E_STATE, "'%s' ended after step %lld, expected %d", l->name,
               (long long)step, want);
    return TESS_OK;
}

/* Rank 0 lives it alone; the others wait. */
static tess_status live_alone(world_pair *w, const life *l)
{
    const bool is_root = tess_comm_rank(w->comm) == 0;
    return tess_agree(w->comm, is_root ? live(w, w->self, l) : TESS_OK);
}

static tess_status outcome_of(world_pair *w, const char *name, tiny_outcome *out)
{
    return tess_agree(w->comm, tiny_run_outcome(&w->t, name, out));
}

static tess_status compare(world_pair *w, const char *name, const tiny_outcome *want)
{
    tiny_outcome got;
    TESS_TRY(outcome_of(w, name, &got));
    TESS_CHECK(got.step_numel == want->step_numel, TESS_E_STATE,
               "'%s': %lld steps in metrics.jsonl, expected %lld", name, (long long)got.step_numel,
               (long long)want->step_numel);
    TESS_CHECK(tess_sha256_is_equal(&got.losses, &want->losses), TESS_E_STATE,
               "'%s': losses differ; last %.17g, the run in one go has %.17g", name, got.last_loss,
               want->last_loss);
    TESS_CHECK(tess_sha256_is_equal(&got.adapter, &want->adapter), TESS_E_STATE,
               "'%s': adapter differs from the one of the run in one go", name);
    return TESS_OK;
}

/* A life that must be refused when it opens, with this status and all of these words. */
static tess_status expect_refusal(world_pair *w, const life *l, tess_status want,
                                  const char *const words[3])
{
    const tess_status st = live(w, w->comm, l);
    TESS_CHECK(st == want, st != TESS_OK ? st : TESS_E_STATE, "'%s' gave %s, expected %s", l->name,
               tess_status_name(st), tess_status_name(want));
    for (int i = 0; i < 3 && words[i] != NULL; i++)
        if (strstr(tess_error_message(), words[i]) == NULL) {
            char message[TESS_ERROR_MESSAGE_NBYTES];
            snprintf(message, sizeof message, "%s", tess_error_message());
            tess_error_clear();
            return TESS_FAIL(TESS_E_STATE, "no '%s' in: %.900s", words[i], message);
        }
    tess_error_clear();
    return TESS_OK;
}

/* ---- other settings, other worlds ---- */

static const char *const plain[] = {"shard.gather_group=world", NULL};
static const char *const other[] = {"shard.gather_group=1",
                                    "shard.prefetch=0",
                                    "shard.reshard_after_forward=off",
                                    "compute.activation_checkpointing=off",
                                    "compute.threads=2",
                                    NULL};

static tess_status check_worlds(world_pair *w, tiny_outcome *want)
{
    const life whole = {.name = "whole", .overrides = plain};
    TESS_TRY(live_alone(w, &whole));
    TESS_TRY(outcome_of(w, "whole", want));
    TESS_CHECK(want->step_numel == 20, TESS_E_STATE, "%lld steps", (long long)want->step_numel);
    /* world, one rank, world */
    TESS_TRY(live(w, w->comm, &(life){.name = "a", .overrides = plain, .stop_after = 7}));
    TESS_TRY(live_alone(w, &(life){"a", other, 13, 7, false, NULL}));
    TESS_TRY(live(w, w->comm, &(life){"a", other, 0, 13, false, NULL}));
    TESS_TRY(compare(w, "a", want));
    /* one rank, world with other settings, world; checkpoints on the way */
    const char *const often[] = {"output.checkpoint_every=2", "output.keep=2", NULL};
    TESS_TRY(live_alone(w, &(life){.name = "b", .overrides = other, .stop_after = 3}));
    TESS_TRY(live(w, w->comm, &(life){"b", often, 10, 3, false, NULL}));
    TESS_TRY(live(w, w->comm, &(life){"b", plain, 0, 10, false, NULL}));
    TESS_TRY(compare(w, "b", want));
    /* a run that is finished stays finished */
    TESS_TRY(live(w, w->comm, &(life){"b", plain, 0, 20, false, NULL}));
    return compare(w, "b", want);
}

/* ---- what decides bits ---- */

static tess_status check_config_change(world_pair *w)
{
    const char *const changed[] = {"train.learning_rate=1.0e-2", "train.seed=4", NULL};
    const char *const words[3] = {"train.learning_rate: 0.02 -> 0.01", "train.seed: 3 -> 4",
                                  "--accept-config-change"};
    tiny_outcome got;
    TESS_TRY(live(w, w->comm, &(life){.name = "c", .overrides = plain, .stop_after = 3}));
    TESS_TRY(expect_refusal(w, &(life){"c", changed, 0, 3, false, NULL}, TESS_E_CONFIG, words));
    TESS_TRY(live(w, w->comm, &(life){"c", changed, 0, 3, true, NULL}));
    TESS_TRY(outcome_of(w, "c", &got));
    TESS_CHECK(got.step_numel == 20, TESS_E_STATE, "%lld steps after an accepted change",
               (long long)got.step_numel);
    return TESS_OK;
}

/* ---- source files ---- */

static tess_status shell(world_pair *w, const char *fmt, const char *a, const char *b)
{
    char command[1024];
    tess_status st = TESS_OK;
    if (tess_comm_rank(w->comm) == 0) {
        snprintf(command, sizeof command, fmt, a, b);
        if (system(command) != 0)
            st = TESS_FAIL(TESS_E_STATE, "'%s' failed", command);
    }
    return tess_agree(w->comm, st);
}

/* A model with weights: two steps of full training, exported; `source` gets a copy. */
static tess_status make_source(world_pair *w, char source[300])
{
    tess_session *session = NULL;
    char exported[400];
    const tess_session_options o = {.kind = TESS_SESSION_TRAIN, .run_text = full_text};
    TESS_TRY(tiny_run_open_as(w->comm, &w->t, "full", NULL, &o, &session));
    const tess_status st = tess_session_train(session);
    tess_session_close(&session);
    TESS_TRY(st);
    snprintf(exported, sizeof exported, "%s/full/export", w->t.dir);
    snprintf(source, 300, "%s/source", w->t.dir);
    TESS_TRY(shell(w, "cp -r '%s' '%s'", exported, source));
    TESS_TRY(shell(w, "echo '{}' > '%s/tokenizer.json'%s", source, ""));
    snprintf(w->t.model, sizeof w->t.model, "%s", source);
    return TESS_OK;
}

static tess_status sum_quantized(world_pair *w, int64_t *sum)
{
    *sum = quantized_numel;
    int64_t none = 0;
    quantized_numel = 0;
    return tess_comm_control(w->comm, sum, 1, &none, 1);
}

/* The newest checkpoint of `d` goes on in another folder, twice: that folder has all it needs. */
static tess_status check_other_folder(world_pair *w, const tiny_outcome *want,
                                      const tess_kernels *kernels)
{
    char run_dir[400], checkpoint[400], resume[440];
    tiny_outcome got;
    snprintf(run_dir, sizeof run_dir, "%s/d", w->t.dir);
    TESS_TRY(tess_ckpt_resolve(&w->t.ctx, run_dir, checkpoint, sizeof checkpoint));
    snprintf(resume, sizeof resume, "output.resume=%s", checkpoint);
    const char *const from[] = {"model.init=weights", resume, NULL};
    const char *const on[] = {"model.init=weights", NULL};
    TESS_TRY(live(w, w->comm, &(life){"moved", from, 15, 11, false, kernels}));
    TESS_TRY(shell(w, "test -e '%s/moved/model/tokenizer.json' && test -d '%s/moved/base'",
                   w->t.dir, w->t.dir));
    TESS_TRY(shell(w, "mv '%s/d' '%s/d.away'", w->t.dir, w->t.dir));
    TESS_TRY(live(w, w->comm, &(life){"moved", on, 0, 15, false, kernels}));
    TESS_TRY(shell(w, "mv '%s/d.away' '%s/d'", w->t.dir, w->t.dir));
    TESS_TRY(outcome_of(w, "moved", &got));
    TESS_CHECK(tess_sha256_is_equal(&got.adapter, &want->adapter), TESS_E_STATE,
               "the adapter of a run that moved differs from the one of the run in one go");
    return TESS_OK;
}

/* The base was quantized once; its source may go. */
static tess_status check_quantized(world_pair *w, const char *source)
{
    int64_t numel = 0;
    tiny_outcome want;
    tess_kernels kernels = tess_kernels_cpu;
    kernels.quantize = count_quantize;
    const char *const overrides[] = {"model.init=weights", "shard.gather_group=world", NULL};
    const char *const regrouped[] = {"model.init=weights", "shard.gather_group=1", NULL};
    is_quantizer_refusing = false;
    TESS_TRY(live_alone(w, &(life){"d-whole", overrides, 0, 0, false, &kernels}));
    TESS_TRY(sum_quantized(w, &numel));
    TESS_CHECK(numel == 3 * 7, TESS_E_STATE,
               "%lld tensors were quantized, expected 7 in each of 3 layers", (long long)numel);
    TESS_TRY(outcome_of(w, "d-whole", &want));
    TESS_TRY(live(w, w->comm, &(life){"d", overrides, 5, 0, false, &kernels}));
    TESS_TRY(shell(w, "rm -r '%s'%s", source, ""));
    is_quantizer_refusing = true;
    quantized_numel = 0;
    TESS_TRY(live(w, w->comm, &(life){"d", regrouped, 11, 5, false, &kernels}));
    TESS_TRY(check_other_folder(w, &want, &kernels));
    TESS_TRY(live_alone(w, &(life){"d", overrides, 0, 11, false, &kernels}));
    TESS_TRY(sum_quantized(w, &numel));
    TESS_CHECK(numel == 0, TESS_E_STATE, "%lld tensors were quantized by a resume",
               (long long)numel);
    return compare(w, "d", &want);
}

/* The base is the source's own bytes: checkpoints refer to the files and know them by content. */
static tess_status check_reference(world_pair *w, const char *source)
{
    char saved[320];
    tiny_outcome want;
    snprintf(saved, sizeof saved, "%s.saved", source);
    const char *const overrides[] = {"model.init=weights", "base.format=keep", NULL};
    const char *const mentions[3] = {source, "model.safetensors", "base id"};
    const char *const missing[3] = {"model.path", source, NULL};
    TESS_TRY(live_alone(w, &(life){.name = "e-whole", .overrides = overrides}));
    TESS_TRY(outcome_of(w, "e-whole", &want));
    TESS_TRY(live(w, w->comm, &(life){.name = "e", .overrides = overrides, .stop_after = 5}));
    TESS_TRY(shell(w, "! test -e '%s/e/base%s'", w->t.dir, ""));
    /* one other byte in the last tensor */
    TESS_TRY(shell(w, "cp -r '%s' '%s'", source, saved));
    TESS_TRY(shell(w,
                   "cd '%s' && n=$(stat -c %%s model.safetensors) && "
                   "b=$(tail -c 5 model.safetensors | head -c 1 | od -An -tu1 | tr -d ' ') && "
                   "printf \"\\\\$(printf %%03o $(((b + 1) %% 256)))\" | dd of=model.safetensors "
                   "bs=1 seek=$((n - 5)) conv=notrunc 2> /dev/null%s",
                   source, ""));
    TESS_TRY(
        expect_refusal(w, &(life){"e", overrides, 0, 5, false, NULL}, TESS_E_FORMAT, mentions));
    TESS_TRY(shell(w, "rm -r '%s'%s", source, ""));
    TESS_TRY(expect_refusal(w, &(life){"e", overrides, 0, 5, false, NULL}, TESS_E_CONFIG, missing));
    TESS_TRY(shell(w, "cp -r '%s' '%s'", saved, source));
    TESS_TRY(live(w, w->comm, &(life){"e", overrides, 0, 5, false, NULL}));
    return compare(w, "e", &want);
}

/* ---- */

static tess_status run_all(world_pair *w)
{
    tiny_outcome want;
    char source[300];
    TESS_TRY(check_worlds(w, &want));
    TESS_TRY(check_config_change(w));
    TESS_TRY(make_source(w, source));
    TESS_TRY(check_reference(w, source));
    return check_quantized(w, source);
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
