/* The numbers of a run file reach the optimizer: what a run's steps do to its adapters is AdamW of
 * fp64 with them, on the step's own gradient. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "core/memory.h"
#include "reference/reference.h"
#include "support/tiny_run.h"
#include "train/session_priv.h"

enum { STEP_NUMEL = 3, STATE_MAX = 1 << 15 };

static const double U = 0x1p-24; /* half an ulp of fp32 relative to the value */
static const double RATE = 2e-2, B_RATIO = 4.0, BETA1 = 0.7, BETA2 = 0.9, EPS = 1e-4, DECAY = 0.25,
                    CLIP_NORM = 0.05;

static tess_comm *self;
static tiny_run tiny;

/* All units' elements in a row. */
typedef struct state {
    double array[TESS_STATE_NUMEL][STATE_MAX];
    double grad[STATE_MAX];
    int64_t numel;
} state;

static state before, after;

static void append(tess_view v, double *out)
{
    for (int64_t i = 0; i < v.numel; i++)
        out[i] = (double)((const float *)v.data)[i];
}

static void note_state(tess_session *s, state *out)
{
    out->numel = 0;
    for (int u = 0; u < s->d.registry.unit_numel; u++) {
        const int64_t at = out->numel;
        out->numel += s->d.registry.unit[u].trainable_numel;
        assert_true(out->numel <= STATE_MAX);
        for (int kind = 0; kind < TESS_STATE_NUMEL; kind++)
            append(tess_runtime_state(s->rt, u, (tess_state_kind)kind), out->array[kind] + at);
        append(tess_runtime_gradient(s->rt, u), out->grad + at);
    }
}

/* One rounding more or less as derived in tests/shard/test_optimizer_mpi.c; the gradient norm here
 * is of fp64 sums on both sides. */
static void check_tensor(const tess_param *p, int64_t at, const ref_adamw_args *a)
{
    double *master = before.array[TESS_STATE_MASTER] + at;
    double *exp_avg = before.array[TESS_STATE_EXP_AVG] + at;
    double *exp_avg_sq = before.array[TESS_STATE_EXP_AVG_SQ] + at;
    for (int64_t i = 0; i < p->numel; i++) {
        const double grad = after.grad[at + i];
        const double terms =
            a->beta1 * fabs(exp_avg[i]) + (1.0 - a->beta1) * fabs(grad * a->clip_factor) + 0x1p-126;
        ref_adamw(a, 1, &grad, &master[i], &exp_avg[i], &exp_avg_sq[i]);
        const double bias1 = 1.0 - pow(a->beta1, (double)a->step);
        const double bias2 = 1.0 - pow(a->beta2, (double)a->step);
        const double most =
            a->learning_rate / bias1 * terms / (sqrt(exp_avg_sq[i] / bias2) + a->eps);
        const double want[] = {master[i], exp_avg[i], exp_avg_sq[i]};
        const double bound[] = {4.0 * U * fabs(master[i]) + 20.0 * U * most, 6.0 * U * terms,
                                9.0 * U * exp_avg_sq[i] + 0x1p-126};
        for (int kind = 0; kind < TESS_STATE_NUMEL; kind++) {
            const double found = after.array[kind][at + i];
            if (!(fabs(found - want[kind]) <= bound[kind]))
                fail_msg("step %d, '%s', element %d, state array %d: %.9g, expected %.9g within "
                         "%.2g",
                         (int)a->step, p->name, (int)i, kind, found, want[kind], bound[kind]);
        }
    }
}

static void check_update(const tess_session *s, int64_t step)
{
    const double norm = sqrt(ref_square_norm(after.numel, after.grad));
    int b_numel = 0;
    assert_true(norm > 2.0 * CLIP_NORM);
    assert_int_equal(before.numel, after.numel);
    for (int i = 0; i < s->d.registry.param_numel; i++) {
        const tess_param *p = &s->d.registry.param[i];
        int64_t at = p->slab_first_idx;
        for (int u = 0; u < p->unit_idx; u++)
            at += s->d.registry.unit[u].trainable_numel;
        if (p->role != TESS_ROLE_TRAINABLE)
            continue;
        const bool is_b = strstr(p->name, ".lora_B.") != NULL;
        const ref_adamw_args a = {.learning_rate = RATE * (is_b ? B_RATIO : 1.0),
                                  .beta1 = BETA1,
                                  .beta2 = BETA2,
                                  .eps = EPS,
                                  .weight_decay = DECAY,
                                  .clip_factor = CLIP_NORM / (norm + 1e-6),
                                  .step = step};
        check_tensor(p, at, &a);
        b_numel += is_b;
    }
    assert_true(b_numel > 0);
}

/* Runs of 1, 2 and 3 steps: the same first steps, for nothing depends on the last. */
static void run_to(int64_t step)
{
    tess_session *session = NULL;
    char name[16], text[8][64];
    const char *overrides[TINY_OVERRIDE_MAX] = {"train.schedule=constant", "train.warmup_steps=0",
                                                "train.micro_batches=2", "train.eval_every=0"};
    snprintf(name, sizeof name, "update%d", (int)step);
    snprintf(text[0], sizeof text[0], "train.steps=%d", (int)step);
    snprintf(text[1], sizeof text[1], "train.learning_rate=%.17g", RATE);
    snprintf(text[2], sizeof text[2], "lora.plus_ratio=%.17g", B_RATIO);
    snprintf(text[3], sizeof text[3], "train.beta1=%.17g", BETA1);
    snprintf(text[4], sizeof text[4], "train.beta2=%.17g", BETA2);
    snprintf(text[5], sizeof text[5], "train.eps=%.17g", EPS);
    snprintf(text[6], sizeof text[6], "train.weight_decay=%.17g", DECAY);
    snprintf(text[7], sizeof text[7], "train.clip_norm=%.17g", CLIP_NORM);
    for (int i = 0; i < 8; i++)
        overrides[4 + i] = text[i];
    if (tiny_run_open(self, &tiny, name, overrides, TESS_SESSION_TRAIN, &session) != TESS_OK)
        fail_msg("%s", tess_error_message());
    if (step == 1)
        note_state(session, &before);
    if (tess_session_train(session) != TESS_OK)
        fail_msg("%s", tess_error_message());
    note_state(session, &after);
    check_update(session, step);
    before = after;
    tess_session_close(&session);
}

static void test_updates_are_those_of_the_run_file(void **unused)
{
    (void)unused;
    for (int64_t step = 1; step <= STEP_NUMEL; step++)
        run_to(step);
}

static int setup(void **unused)
{
    (void)unused;
    return tess_comm_create_self(&self) == TESS_OK && tiny_run_create(self, &tiny) == TESS_OK ? 0
                                                                                              : -1;
}

static int teardown(void **unused)
{
    (void)unused;
    tiny_run_destroy(self, &tiny);
    tess_comm_destroy(&self);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_updates_are_those_of_the_run_file)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
