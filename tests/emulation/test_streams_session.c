/*
 * A whole run of the tiny Llama, LoRA on an NF4 base, on emulated devices: loading, training,
 * evaluation, checkpoints and export give the host's bits and never touch device memory.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "core/memory.h"
#include "emulation/emu_session.h"
#include "support/tiny_run.h"
#include "train/session_priv.h"

enum { STEP_NUMEL = 3, VOCAB_NUMEL = 61 };

/* Bits that a run leaves. */
typedef struct trained {
    double loss[STEP_NUMEL], norm[STEP_NUMEL], eval_loss;
    float logits[VOCAB_NUMEL];
    tess_sha256 exported; /* tensors */
} trained;

static const char full_text[] =
    "model: {path: MODEL, init: random}\n"
    "data: {path: TRAIN, sequence_length: 32}\n"
    "train: {mode: full, steps: 3, micro_batch: 2, micro_batches: 5, clip_norm: 0.05, seed: 3}\n"
    "output: {dir: OUT, checkpoint_every: 0}\n";

/* ---- steps by hand: no checkpoints, any number of ranks ---- */

static tess_status batch_of(void *arg, int64_t m, const void **batch)
{
    tess_session *s = arg;
    *batch = &s->batch;
    return session_fill_batch(s, s->step * s->run->train.micro_batches + m);
}

static tess_status train_by_hand(tess_session *s, trained *out)
{
    const tess_run *run = s->run;
    const int64_t m_numel = run->train.micro_batches, b = run->train.micro_batch;
    for (; s->step < STEP_NUMEL; s->step++) {
        tess_step_result result;
        tess_step_request request = {.first_micro_batch_idx = s->step * m_numel,
                                     .update = {.step = s->step + 1,
                                                .learning_rate = 0.02,
                                                .beta1 = run->train.beta1,
                                                .beta2 = run->train.beta2,
                                                .eps = run->train.eps,
                                                .weight_decay = run->train.weight_decay,
                                                .clip_norm = run->train.clip_norm,
                                                .momentum = run->train.muon_momentum,
                                                .matches_adamw = true},
                                     .arg = s,
                                     .batch_of = batch_of,
                                     .wants_replay = run->compute.check_replay > 0};
        TESS_TRY(tess_dataset_loss_tokens(s->train_data, s->step * m_numel * b, m_numel * b,
                                          &request.loss_token_numel));
        TESS_TRY(tess_runtime_step(s->rt, &request, &result));
        TESS_CHECK(result.replay_unit == -1 && result.replay_rank == -1, TESS_E_STATE,
                   "step %d: rank %d has other gradients of unit %d when replayed", (int)s->step,
                   result.replay_rank, result.replay_unit);
        out->loss[s->step] = result.loss;
        out->norm[s->step] = result.grad_norm;
    }
    return TESS_OK;
}

static tess_status hash_export(tiny_run *t, tess_session *s, trained *out)
{
    char dir[300], path[340];
    char *text = NULL;
    size_t nbytes = 0;
    snprintf(dir, sizeof dir, "%s/exported", t->dir);
    const tess_export_request request = {
        .dir = dir, .format = TESS_RUN_EXPORT_AUTO, .dt = s->d.registry.compute_dt};
    TESS_TRY(tess_session_export(s, &request));
    TESS_TRY(tess_comm_barrier(s->world));
    snprintf(path, sizeof path, "%s/%s", dir,
             s->run->train.mode == TESS_RUN_MODE_FULL ? "model.safetensors"
                                                      : "adapter_model.safetensors");
    TESS_TRY(tess_io_read_all(t->ctx.io, path, 16 << 20, &text, &nbytes));
    uint64_t header_nbytes = 0; /* it names the folder of the model */
    memcpy(&header_nbytes, text, sizeof header_nbytes);
    const size_t front = sizeof header_nbytes + (size_t)header_nbytes;
    const tess_status st = front < nbytes
                               ? tess_sha256_of(text + front, nbytes - front, &out->exported)
                               : TESS_FAIL(TESS_E_FORMAT, "adapter of %zu bytes", nbytes);
    tess_free(text);
    return st;
}

/* What a sample asks for: logits of one token, in host memory once the call is over. */
static tess_status take_logits(tess_session *s, float *logits)
{
    double loss_sum = 0.0;
    TESS_TRY(session_fill_batch(s, 0));
    s->batch.logits_token_idx = 5;
    s->batch.logits = logits;
    return tess_runtime_forward(s->rt, TESS_CALL_LOGITS, &s->batch, &loss_sum);
}

/* One byte of the middle of a shard, on the device. */
static tess_status flip_frozen(tess_session *s, int unit_idx)
{
    uint8_t byte = 0;
    const tess_view near = tess_view_host(&byte, 1, TESS_U8_OPAQUE);
    const tess_view shard = tess_runtime_frozen_shard(s->rt, unit_idx);
    const tess_view one = tess_view_slice(shard, shard.numel / 3, 1);
    TESS_TRY(tess_runtime_copy(s->rt, near, one));
    byte ^= 16;
    return tess_runtime_copy(s->rt, one, near);
}

/* The digest of a shard says whether one of its bits changed. */
static tess_status check_digests(tess_session *s)
{
    tess_xxh128 before, after, again;
    for (int i = 0; i < s->d.plan->unit_numel; i++) {
        if (s->d.plan->unit[i].frozen_nbytes == 0)
            continue;
        TESS_TRY(tess_runtime_frozen_digest(s->rt, i, &before));
        TESS_TRY(flip_frozen(s, i));
        TESS_TRY(tess_runtime_frozen_digest(s->rt, i, &after));
        TESS_TRY(flip_frozen(s, i));
        TESS_TRY(tess_runtime_frozen_digest(s->rt, i, &again));
        TESS_CHECK(memcmp(&before, &after, sizeof before) != 0 &&
                       memcmp(&before, &again, sizeof before) == 0,
                   TESS_E_STATE, "unit %d: a flipped bit is not seen, or seen when it is not there",
                   i);
    }
    return TESS_OK;
}

typedef struct job {
    const char *const *overrides;
    const char *run_text; /* NULL: LoRA on NF4 */
    bool ignores_upload;  /* the wait for a batch's copy is taken away */
    trained out[EMU_RANK_MAX];
    tiny_outcome outcome[EMU_RANK_MAX];
} job;

static tess_status use_session(const job *j, const emu_rank *rank, tiny_run *t, tess_session *s,
                               trained *out)
{
    tess_eval_result eval;
    if (j->ignores_upload)
        emu_ignore_event(rank, &s->batch_read);
    if (s->run->shard.check_base == TESS_RUN_SWITCH_ON)
        TESS_TRY(check_digests(s));
    TESS_TRY(train_by_hand(s, out));
    TESS_TRY(tess_session_evaluate(s, &eval));
    out->eval_loss = eval.loss;
    TESS_TRY(take_logits(s, out->logits));
    return hash_export(t, s, out);
}

/* `rank` NULL: the host. */
static tess_status run_by_hand(const job *j, const emu_rank *rank, tess_comm *comm, trained *out)
{
    tiny_run t;
    tess_session *s = NULL;
    const tess_session_options options = {.kind = TESS_SESSION_TRAIN,
                                          .run_text = j->run_text,
                                          .device = rank != NULL ? rank->device : NULL,
                                          .kernels =
                                              rank != NULL ? &emu_kernels : &tess_kernels_cpu};
    TESS_TRY(tiny_run_create(comm, &t));
    tess_status st = tiny_run_open_as(comm, &t, "run", j->overrides, &options, &s);
    if (st == TESS_OK)
        st = use_session(j, rank, &t, s, out);
    if (rank != NULL)
        emu_ignore_event(rank, NULL);
    tess_session_close(&s);
    tiny_run_destroy(comm, &t);
    return st;
}

static tess_status body_by_hand(void *arg, const emu_rank *rank)
{
    job *j = arg;
    return run_by_hand(j, rank, rank->comm, &j->out[rank->rank]);
}

static void on_host(const char *run_text, const char *const *overrides, trained *out)
{
    const job j = {.run_text = run_text, .overrides = overrides};
    tess_comm *self = NULL;
    memset(out, 0, sizeof *out);
    assert_int_equal(tess_comm_create_self(&self), TESS_OK);
    if (run_by_hand(&j, NULL, self, out) != TESS_OK)
        fail_msg("on the host: %s", tess_error_message());
    tess_comm_destroy(&self);
}

/* What differs first. */
static void check_bits(const trained *want, const trained *got, const char *where)
{
    for (int i = 0; i < STEP_NUMEL; i++)
        if (memcmp(&want->loss[i], &got->loss[i], 8) != 0 ||
            memcmp(&want->norm[i], &got->norm[i], 8) != 0)
            fail_msg("%s: step %d has loss %.17g, norm %.17g, the host %.17g, %.17g", where, i,
                     got->loss[i], got->norm[i], want->loss[i], want->norm[i]);
    if (memcmp(&want->eval_loss, &got->eval_loss, 8) != 0)
        fail_msg("%s: evaluation %.17g, the host %.17g", where, got->eval_loss, want->eval_loss);
    if (memcmp(want->logits, got->logits, sizeof want->logits) != 0)
        fail_msg("%s: logits %.9g.., the host %.9g", where, (double)got->logits[0],
                 (double)want->logits[0]);
    if (!tess_sha256_is_equal(&want->exported, &got->exported))
        fail_msg("%s: other tensors are exported than the host's", where);
}

/* Every kernel of the model and the runtime touches what emu_ranges.c lists, and nothing else. */
static void check_operands(const char *const *overrides, const char *run_text)
{
    static job j;
    emu_report report;
    const emu_options o = {.rank_numel = 1, .is_audited = true};
    memset(&j, 0, sizeof j);
    j.overrides = overrides;
    j.run_text = run_text;
    emu_run(&o, body_by_hand, &j, &report);
    emu_session_check("tiny llama", &o, &report);
}

static void check_settings(int rank_numel, const char *const *overrides, const char *run_text,
                           const trained *want)
{
    for (uint64_t seed = 0; seed < 6; seed++) {
        static job j;
        emu_report report;
        const emu_options o = {.rank_numel = rank_numel, .seed = seed, .is_serial = seed % 2 == 1};
        memset(&j, 0, sizeof j);
        j.overrides = overrides;
        j.run_text = run_text;
        emu_run(&o, body_by_hand, &j, &report);
        emu_session_check("tiny llama", &o, &report);
        for (int r = 0; r < rank_numel; r++) {
            char where[64];
            snprintf(where, sizeof where, "%d ranks, seed %llu, rank %d", rank_numel,
                     (unsigned long long)seed, r);
            check_bits(want, &j.out[r], where);
        }
        if (seed == 0)
            print_message("%d ranks: %lld operations\n", rank_numel,
                          (long long)report.operation_numel);
    }
}

static void test_lora(void **state)
{
    (void)state;
    const char *const plain[] = {NULL};
    const char *const grouped[] = {"shard.gather_group=world",
                                   "compute.activation_checkpointing=on", NULL};
    const char *const late[] = {"shard.gather_group=world",       "shard.prefetch=0",
                                "shard.reshard_after_forward=on", "shard.check_base=on",
                                "compute.check_replay=1",         NULL};
    trained want;
    on_host(NULL, NULL, &want);
    assert_true(want.loss[STEP_NUMEL - 1] < want.loss[0]);
    check_settings(1, plain, NULL, &want);
    check_settings(2, grouped, NULL, &want);
    check_settings(3, late, NULL, &want);
}

static void test_full(void **state)
{
    (void)state;
    const char *const whole[] = {NULL};
    const char *const grouped[] = {"shard.gather_group=world", "compute.check_replay=1", NULL};
    trained want;
    on_host(full_text, NULL, &want);
    check_settings(1, whole, full_text, &want);
    check_settings(2, grouped, full_text, &want);
    check_settings(3, whole, full_text, &want);
}

/* Embedding, norms and matrices of every shape: what an optimizer treats as a vector or apart. */
static void test_full_with_exchanges(void **state)
{
    (void)state;
    const char *const adafactor[] = {"train.optimizer=adafactor", NULL};
    const char *const muon[] = {"train.optimizer=muon", NULL};
    const char *const *const all[] = {adafactor, muon};
    for (int i = 0; i < TESS_NELEM(all); i++) {
        trained want;
        on_host(full_text, all[i], &want);
        for (int rank_numel = 1; rank_numel <= 3; rank_numel++)
            check_settings(rank_numel, all[i], full_text, &want);
    }
}

static void test_operands(void **state)
{
    (void)state;
    const char *const muon[] = {"train.micro_batches=1", "train.optimizer=muon", NULL};
    const char *const adafactor[] = {"train.micro_batches=1", "train.optimizer=adafactor", NULL};
    const char *const lora[] = {"train.micro_batches=1", "compute.activation_checkpointing=on",
                                NULL};
    const char *const full[] = {"train.micro_batches=1", NULL};
    check_operands(lora, NULL);
    check_operands(full, full_text);
    check_operands(muon, full_text);
    check_operands(adafactor, full_text);
}

/* A batch is written into the array that the last copy still reads: found on every seed. */
static void test_missing_wait_for_upload(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 6; seed++) {
        static job j;
        emu_report report;
        const emu_options o = {.rank_numel = 1, .seed = seed};
        memset(&j, 0, sizeof j);
        j.ignores_upload = true;
        emu_run(&o, body_by_hand, &j, &report);
        assert_true(report.violation_numel > 0);
        assert_non_null(strstr(report.violation, "bytes of host memory changed after 'copy of"));
    }
}

/* ---- tess_session_train() with checkpoints, one rank: their writers are threads ---- */

typedef struct whole_run {
    const char *optimizer; /* an override */
    bool is_resumed;
    bool ignores_snapshot; /* the optimizer's wait for the copy of what it writes is taken away */
    tiny_outcome out;
} whole_run;

static tess_status train_in(tess_comm *comm, const emu_rank *rank, tiny_run *t, const char *steps,
                            bool ignores_snapshot, whole_run *w)
{
    const char *const overrides[] = {steps, "output.checkpoint_every=2", "train.eval_every=2",
                                     w->optimizer, NULL};
    const tess_session_options options = {.kind = TESS_SESSION_TRAIN,
                                          .accept_config_change = true,
                                          .device = rank != NULL ? rank->device : NULL,
                                          .kernels =
                                              rank != NULL ? &emu_kernels : &tess_kernels_cpu};
    tess_session *s = NULL;
    TESS_TRY(tiny_run_open_as(comm, t, "run", overrides, &options, &s));
    if (ignores_snapshot)
        emu_ignore_event(rank, tess_ckpt_snapshot_event(s->store));
    const tess_status st = tess_session_train(s);
    if (rank != NULL)
        emu_ignore_event(rank, NULL);
    tess_session_close(&s);
    TESS_TRY(st);
    return tiny_run_outcome(t, "run", &w->out);
}

static tess_status train_whole(tess_comm *comm, const emu_rank *rank, whole_run *w)
{
    tiny_run t;
    TESS_TRY(tiny_run_create(comm, &t));
    tess_status st = TESS_OK;
    if (w->is_resumed)
        st = train_in(comm, rank, &t, "train.steps=2", false, w);
    if (st == TESS_OK)
        st = train_in(comm, rank, &t, "train.steps=5", w->ignores_snapshot, w);
    tiny_run_destroy(comm, &t);
    return st;
}

static tess_status body_whole(void *arg, const emu_rank *rank)
{
    return train_whole(rank->comm, rank, arg);
}

static void check_checkpoints(const char *optimizer, uint64_t seed_numel)
{
    for (int resumed = 0; resumed < 2; resumed++) {
        whole_run want = {.optimizer = optimizer, .is_resumed = resumed != 0};
        tess_comm *self = NULL;
        assert_int_equal(tess_comm_create_self(&self), TESS_OK);
        if (train_whole(self, NULL, &want) != TESS_OK)
            fail_msg("on the host: %s", tess_error_message());
        tess_comm_destroy(&self);
        for (uint64_t seed = 0; seed < seed_numel; seed++) {
            whole_run got = {.optimizer = optimizer, .is_resumed = resumed != 0};
            emu_report report;
            const emu_options o = {.rank_numel = 1, .seed = seed};
            emu_run(&o, body_whole, &got, &report);
            emu_session_check("tiny llama", &o, &report);
            assert_int_equal(got.out.step_numel, 5);
            assert_true(tess_sha256_is_equal(&got.out.losses, &want.out.losses));
        }
    }
}

static void test_checkpoints(void **state)
{
    (void)state;
    check_checkpoints("train.optimizer=adamw", 4);
    check_checkpoints("train.optimizer=adafactor-momentum", 2);
    check_checkpoints("train.optimizer=muon", 2);
}

/* The optimizer writes what a snapshot still copies: found on every seed, also where a query has
 * shown by luck that the copy is over. */
static void test_missing_wait_for_snapshot(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 6; seed++) {
        whole_run w = {.optimizer = "train.optimizer=adamw", .ignores_snapshot = true};
        emu_report report;
        const emu_options o = {.rank_numel = 1, .seed = seed};
        emu_run(&o, body_whole, &w, &report);
        if (report.violation_numel == 0 || strstr(report.violation, "'adamw'") == NULL ||
            strstr(report.violation, "(stream copy") == NULL)
            fail_msg("seed %llu: found '%s'", (unsigned long long)seed, report.violation);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lora),
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_full_with_exchanges),
        cmocka_unit_test(test_operands),
        cmocka_unit_test(test_missing_wait_for_upload),
        cmocka_unit_test(test_checkpoints),
        cmocka_unit_test(test_missing_wait_for_snapshot),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
