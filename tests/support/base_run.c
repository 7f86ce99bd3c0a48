#include "support/base_run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "train/session_priv.h"

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

static void list_overrides(const base_life *l, const char *overrides[TINY_OVERRIDE_MAX + 1])
{
    static const char *const always[] = {"train.steps=4", "train.micro_batches=3",
                                         "train.warmup_steps=1", "train.eval_every=1",
                                         "output.base=copy"};
    int numel = 0;
    for (; numel < TESS_NELEM(always); numel++)
        overrides[numel] = always[numel];
    overrides[numel++] = l->group != NULL ? l->group : "shard.gather_group=world";
    for (int i = 0; i < BASE_RUN_OVERRIDE_MAX && l->overrides[i] != NULL; i++)
        overrides[numel++] = l->overrides[i];
    overrides[numel] = NULL;
}

tess_status base_live(base_world *w, tess_comm *comm, const base_life *l)
{
    const char *overrides[TINY_OVERRIDE_MAX + 1];
    list_overrides(l, overrides);
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
    TESS_CHECK(step == (l->is_stopped ? BASE_RUN_STOP_AFTER : BASE_RUN_STEP_NUMEL), TESS_E_STATE,
               "'%s' ended after step %lld", l->name, (long long)step);
    return TESS_OK;
}

tess_status base_live_alone(base_world *w, const base_life *l)
{
    const bool is_root = tess_comm_rank(w->comm) == 0;
    return tess_agree(w->comm, is_root ? base_live(w, w->self, l) : TESS_OK);
}

tess_status base_compare(base_world *w, const char *a, const char *b)
{
    tiny_outcome one, other;
    TESS_TRY(tess_agree(w->comm, tiny_run_outcome(&w->t, a, &one)));
    TESS_TRY(tess_agree(w->comm, tiny_run_outcome(&w->t, b, &other)));
    TESS_CHECK(one.step_numel == BASE_RUN_STEP_NUMEL && other.step_numel == BASE_RUN_STEP_NUMEL,
               TESS_E_STATE, "'%s' has %lld steps, '%s' %lld, expected %d", a,
               (long long)one.step_numel, b, (long long)other.step_numel, BASE_RUN_STEP_NUMEL);
    TESS_CHECK(tess_sha256_is_equal(&one.losses, &other.losses), TESS_E_STATE,
               "losses of '%s' and '%s' differ; last %.17g and %.17g", a, b, one.last_loss,
               other.last_loss);
    TESS_CHECK(tess_sha256_is_equal(&one.adapter, &other.adapter), TESS_E_STATE,
               "adapters of '%s' and '%s' differ", a, b);
    return TESS_OK;
}

tess_status base_shell(base_world *w, const char *fmt, const char *a, const char *b)
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
tess_status base_put_source(base_world *w, const char *golden)
{
    char from[600];
    snprintf(w->t.model, sizeof w->t.model, "%s/source", w->t.dir);
    snprintf(from, sizeof from, "%s/tests/golden/%s", TESS_TEST_SOURCE_DIR, golden);
    TESS_TRY(base_shell(w, "rm -rf '%s'%s", w->t.model, ""));
    return base_shell(w, "cp -r '%s' '%s'", from, w->t.model);
}

tess_status base_refuse(base_world *w, const base_life *l, tess_status want, const char *text)
{
    char message[TESS_ERROR_MESSAGE_NBYTES];
    const tess_status st = base_live(w, w->comm, l);
    snprintf(message, sizeof message, "%s", tess_error_message());
    tess_error_clear();
    TESS_CHECK(st == want && strstr(message, text) != NULL, TESS_E_STATE,
               "'%s' gave %s, expected %s with '%s' in: %.900s", l->name, tess_status_name(st),
               tess_status_name(want), text, message);
    return TESS_OK;
}

/* ---- what is cut ---- */

/* Bytes of codes that share constants, if they lie together. */
static size_t block_nbytes_of(const tess_codec *codec)
{
    const size_t gguf_nbytes = tess_format_block(codec->format).nbytes;
    const bool is_in_planes =
        codec->format == TESS_FORMAT_QINT4 || codec->format == TESS_FORMAT_QINT2;
    const int64_t bits = is_in_planes ? 8 : tess_format_code_bits(codec->format);
    return gguf_nbytes > 0 ? gguf_nbytes : (size_t)(codec->block_numel * bits / 8);
}

/* Tensors that a shard ends inside of, of which those inside a block; and the most tensors of a
 * unit that one rank has parts of. */
static void count_cuts(const tess_session *s, int *cut_numel, int *block_cut_numel, int *most)
{
    const tess_registry *reg = &s->d.registry;
    const int world = tess_comm_world(s->world);
    *cut_numel = *block_cut_numel = *most = 0;
    for (int rank = 0; rank < world; rank++) {
        for (int u = 0; u < reg->unit_numel; u++) {
            const int64_t c = (int64_t)s->d.plan->unit[u].frozen_shard_nbytes;
            int part_numel = 0;
            for (int i = 0; i < reg->param_numel; i++) {
                const tess_param *p = &reg->param[i];
                if (p->role != TESS_ROLE_FROZEN || p->unit_idx != u)
                    continue;
                const int64_t lo = (int64_t)p->part_offset_nbytes[0];
                const int64_t hi = lo + (int64_t)p->part[0].nbytes, end = c * (rank + 1);
                part_numel += lo < end && hi > c * rank;
                if (lo >= end || hi <= end)
                    continue;
                ++*cut_numel;
                const size_t block_nbytes = block_nbytes_of(&p->codec);
                *block_cut_numel += block_nbytes > 0 && (size_t)(end - lo) % block_nbytes != 0;
            }
            *most = part_numel > *most ? part_numel : *most;
        }
    }
}

tess_status base_check_cuts(base_world *w, const base_life *l, bool is_in_block)
{
    const char *overrides[TINY_OVERRIDE_MAX + 1];
    tess_session *session = NULL;
    int cut_numel = 0, block_cut_numel = 0, most = 0;
    list_overrides(l, overrides);
    TESS_TRY(tiny_run_open(w->comm, &w->t, "plan", overrides, TESS_SESSION_TRAIN, &session));
    count_cuts(session, &cut_numel, &block_cut_numel, &most);
    tess_session_close(&session);
    TESS_TRY(base_shell(w, "rm -r '%s/plan'%s", w->t.dir, ""));
    TESS_CHECK(
        tess_comm_world(w->comm) == 1 ||
            (cut_numel >= 1 && most >= 2 && (block_cut_numel >= 1 || !is_in_block)),
        TESS_E_STATE,
        "'%s': %d tensors are cut, %d inside a block, %d tensors on one rank; expected 1, %d "
        "and 2 or more",
        l->name, cut_numel, block_cut_numel, most, (int)is_in_block);
    return TESS_OK;
}

tess_status base_world_run(tess_comm *comm, tess_status (*body)(base_world *w))
{
    base_world w = {.comm = comm};
    TESS_TRY(tess_comm_create_self(&w.self));
    tess_status st = tiny_run_create(comm, &w.t);
    if (st == TESS_OK) {
        st = body(&w);
        tiny_run_destroy(comm, &w.t);
    }
    tess_comm_destroy(&w.self);
    return st;
}
