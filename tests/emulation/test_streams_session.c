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
#include "emulation/emu_world.h"
#include "support/tiny_run.h"
#include "train/session_priv.h"

enum { STEP_NUMEL = 3 };

/* Bits that a run leaves. */
typedef struct trained {
    double loss[STEP_NUMEL], norm[STEP_NUMEL], eval_loss;
    tess_sha256 adapter;
} trained;

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
                                                .clip_norm = run->train.clip_norm},
                                     .arg = s,
                                     .batch_of = batch_of};
        TESS_TRY(tess_dataset_loss_tokens(s->train_data, s->step * m_numel * b, m_numel * b,
                                          &request.loss_token_numel));
        TESS_TRY(tess_runtime_step(s->rt, &request, &result));
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
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", dir);
    TESS_TRY(tess_io_read_all(t->ctx.io, path, 16 << 20, &text, &nbytes));
    uint64_t header_nbytes = 0; /* it names the folder of the model */
    memcpy(&header_nbytes, text, sizeof header_nbytes);
    const size_t front = sizeof header_nbytes + (size_t)header_nbytes;
    const tess_status st =
        front < nbytes ? tess_sha256_of(text + front, nbytes - front, &out->adapter)
                       : TESS_FAIL(TESS_E_FORMAT, "adapter of %zu bytes", nbytes);
    tess_free(text);
    return st;
}

typedef struct job {
    const char *const *overrides;
    bool ignores_upload; /* the wait for a batch's copy is taken away */
    trained out[EMU_RANK_MAX];
    tiny_outcome outcome[EMU_RANK_MAX];
} job;

static tess_status use_session(const job *j, const emu_rank *rank, tiny_run *t, tess_session *s,
                               trained *out)
{
    tess_eval_result eval;
    if (j->ignores_upload)
        emu_ignore_event(rank, &s->batch_read);
    TESS_TRY(train_by_hand(s, out));
    TESS_TRY(tess_session_evaluate(s, &eval));
    out->eval_loss = eval.loss;
    return hash_export(t, s, out);
}

/* `rank` NULL: the host. */
static tess_status run_by_hand(const job *j, const emu_rank *rank, tess_comm *comm, trained *out)
{
    tiny_run t;
    tess_session *s = NULL;
    const tess_session_options options = {.kind = TESS_SESSION_TRAIN,
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

static void on_host(const char *const *overrides, trained *out)
{
    const job j = {.overrides = overrides};
    tess_comm *self = NULL;
    memset(out, 0, sizeof *out);
    assert_int_equal(tess_comm_create_self(&self), TESS_OK);
    if (run_by_hand(&j, NULL, self, out) != TESS_OK)
        fail_msg("on the host: %s", tess_error_message());
    tess_comm_destroy(&self);
}

static void check_report(const emu_options *o, const emu_report *r)
{
    if (r->status != TESS_OK || r->violation_numel != 0)
        fail_msg("%d ranks, seed %llu: %s; %lld violations: %s", o->rank_numel,
                 (unsigned long long)o->seed, r->error, (long long)r->violation_numel,
                 r->violation);
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
    if (!tess_sha256_is_equal(&want->adapter, &got->adapter))
        fail_msg("%s: another adapter than the host's", where);
}

static void check_settings(int rank_numel, const char *const *overrides, const trained *want)
{
    for (uint64_t seed = 0; seed < 6; seed++) {
        static job j;
        emu_report report;
        const emu_options o = {.rank_numel = rank_numel, .seed = seed, .is_serial = seed % 2 == 1};
        memset(&j, 0, sizeof j);
        j.overrides = overrides;
        emu_run(&o, body_by_hand, &j, &report);
        check_report(&o, &report);
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
    const char *const plain[] = {"compute.threads=1", NULL};
    const char *const grouped[] = {"compute.threads=1", "shard.gather_group=world",
                                   "shard.prefetch=1", "compute.activation_checkpointing=on", NULL};
    trained want;
    on_host(plain, &want);
    assert_true(want.loss[STEP_NUMEL - 1] < want.loss[0]);
    check_settings(1, plain, &want);
    check_settings(2, grouped, &want);
    check_settings(3, grouped, &want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lora),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
