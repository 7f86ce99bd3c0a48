/*
 * What a step does to masters and moments is AdamW of fp64 on the step's own gradient: clipped by
 * the norm over all ranks, with each tensor's own rate and decay.
 */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/memory.h"
#include "reference/reference.h"
#include "shard/loader.h"
#include "shard/runtime.h"
#include "support/rank_test.h"
#include "support/two_matrices.h"

enum { UNIT_NUMEL = 4, MICRO_BATCH_NUMEL = 3, STEP_NUMEL = 2, WORLD_MAX = 64 };
enum { SLAB_MAX = 2048 }; /* of 33 x 33 weights, padded */

static const double U = 0x1p-24; /* half an ulp of fp32 relative to the value */

/* Rate ratio and decay in all four combinations, one a tensor. */
static const double ratio_of[UNIT_NUMEL] = {1.0, 16.0, 4.0, 1.0};
static const bool has_decay[UNIT_NUMEL] = {true, true, false, false};

typedef struct setting {
    double clip_norm;
    bool is_clipping; /* what that norm has to mean */
    bool is_full;
} setting;

/* One unit's owned elements. */
typedef struct owned {
    double master[SLAB_MAX], exp_avg[SLAB_MAX], exp_avg_sq[SLAB_MAX], grad[SLAB_MAX];
    int64_t numel;
} owned;

typedef struct trial {
    tess_comm *comm;
    const setting *s;
    two_matrices model;
    tess_registry registry;
    tess_plan *plan;
    tess_runtime *rt;
    owned unit[UNIT_NUMEL];
} trial;

/* ---- what the step started from ---- */

static void widen(tess_view v, double *out)
{
    for (int64_t i = 0; i < v.numel; i++)
        out[i] = (double)((const float *)v.data)[i];
}

static void note_state(trial *t)
{
    for (int u = 0; u < UNIT_NUMEL; u++) {
        widen(tess_runtime_state(t->rt, u, TESS_STATE_MASTER), t->unit[u].master);
        widen(tess_runtime_state(t->rt, u, TESS_STATE_EXP_AVG), t->unit[u].exp_avg);
        widen(tess_runtime_state(t->rt, u, TESS_STATE_EXP_AVG_SQ), t->unit[u].exp_avg_sq);
        t->unit[u].numel = tess_runtime_state(t->rt, u, TESS_STATE_MASTER).numel;
    }
}

/* ---- the norm ---- */

/* Every rank's part of the sum, carried as bits, added up in the order of ranks. */
static tess_status reference_norm(trial *t, double *norm)
{
    int64_t bits[WORLD_MAX] = {0};
    double square = 0.0;
    for (int u = 0; u < UNIT_NUMEL; u++) {
        widen(tess_runtime_gradient(t->rt, u), t->unit[u].grad);
        square += ref_square_norm(t->unit[u].numel, t->unit[u].grad);
    }
    memcpy(&bits[tess_comm_rank(t->comm)], &square, sizeof square);
    TESS_TRY(tess_comm_control(t->comm, bits, WORLD_MAX, NULL, 0));
    double sum = 0.0;
    for (int r = 0; r < tess_comm_world(t->comm); r++) {
        memcpy(&square, &bits[r], sizeof square);
        sum += square;
    }
    *norm = sqrt(sum);
    return TESS_OK;
}

/* At most 8192 squares summed in fp64, an error of 8192 * 2^-53 of their sum. The factor is
 * rounded to fp32 once, after arithmetic in fp64. */
static tess_status check_norm(const trial *t, const tess_step_result *r, double norm, double factor)
{
    TESS_CHECK(norm > 0.0, TESS_E_STATE, "the gradient is zero");
    TESS_CHECK(fabs(r->grad_norm - norm) <= 0x1p-40 * norm, TESS_E_STATE,
               "gradient norm %.17g, expected %.17g", r->grad_norm, norm);
    TESS_CHECK((factor < 0.9) == t->s->is_clipping, TESS_E_STATE,
               "norm %g is clipped to %g by a factor of %g", norm, t->s->clip_norm, factor);
    TESS_CHECK(fabs((double)r->clip_factor - factor) <= 1.001 * U * factor, TESS_E_STATE,
               "clip factor %.9g, expected %.9g", (double)r->clip_factor, factor);
    return TESS_OK;
}

/* ---- the update ---- */

typedef struct element {
    const char *what;
    int unit_idx;
    int64_t idx;
    double found, want, bound;
} element;

static tess_status check_element(const element *e)
{
    TESS_CHECK(fabs(e->found - e->want) <= e->bound, TESS_E_STATE,
               "%s of unit %d, owned element %" PRId64 ": %.9g, expected %.9g within %.2g", e->what,
               e->unit_idx, e->idx, e->found, e->want, e->bound);
    return TESS_OK;
}

/*
 * One step from the same fp32 state, so errors of earlier steps are in neither. With u = 2^-24:
 *  - clipped gradient g: the factor and the product are rounded, 2 u.
 *  - m = b1 m + (1 - b1) g: coefficient and product 2 u more, the sum u: 5 u of the terms'
 *    magnitudes M = b1 |m| + (1 - b1) |g|.
 *  - v, all terms positive: coefficient, two products, the sum and twice g: 8 u.
 *  - denominator sqrt(v / bias2) + eps: half of 8 + 2 u, then root, eps and sum: 8 u at most.
 *  - update: step size, product, quotient and denominator 11 u of |update|, and m's 5 u.
 *  - master: factor and product of the decay and the difference, 3 u of |p| and u of the update.
 * |update| <= step size * M / denominator =: B, so 3 u |p| + 17 u B, here 4 and 20 for terms of
 * u^2. FLT_MIN stands for what underflows.
 */
static tess_status check_unit(trial *t, int u, const ref_adamw_args *a)
{
    owned *o = &t->unit[u];
    static double old_avg[SLAB_MAX];
    const float *master = tess_runtime_state(t->rt, u, TESS_STATE_MASTER).data;
    const float *exp_avg = tess_runtime_state(t->rt, u, TESS_STATE_EXP_AVG).data;
    const float *exp_avg_sq = tess_runtime_state(t->rt, u, TESS_STATE_EXP_AVG_SQ).data;
    const float *copy = tess_runtime_param_shard(t->rt, u).data;
    memcpy(old_avg, o->exp_avg, sizeof old_avg);
    ref_adamw(a, o->numel, o->grad, o->master, o->exp_avg, o->exp_avg_sq);
    const double bias1 = 1.0 - pow(a->beta1, (double)a->step);
    const double bias2 = 1.0 - pow(a->beta2, (double)a->step);
    for (int64_t i = 0; i < o->numel; i++) {
        const double terms = a->beta1 * fabs(old_avg[i]) +
                             (1.0 - a->beta1) * fabs(o->grad[i] * a->clip_factor) + 0x1p-126;
        const double most =
            a->learning_rate / bias1 * terms / (sqrt(o->exp_avg_sq[i] / bias2) + a->eps);
        const element e[] = {
            {"exp_avg", u, i, (double)exp_avg[i], o->exp_avg[i], 6.0 * U * terms},
            {"exp_avg_sq", u, i, (double)exp_avg_sq[i], o->exp_avg_sq[i],
             9.0 * U * o->exp_avg_sq[i] + 0x1p-126},
            {"master", u, i, (double)master[i], o->master[i],
             4.0 * U * fabs(o->master[i]) + 20.0 * U * most},
            {"compute copy", u, i, (double)copy[i], (double)master[i], 0.0},
        };
        for (int k = 0; k < TESS_NELEM(e); k++)
            TESS_TRY(check_element(&e[k]));
    }
    return TESS_OK;
}

static tess_status run_step(trial *t, int64_t step)
{
    two_matrices_feed feed = {0};
    tess_step_result result;
    const tess_step_request request = {.loss_token_numel = 7 * MICRO_BATCH_NUMEL,
                                       .update = {.step = step,
                                                  .learning_rate = 0.01 / (double)step,
                                                  .beta1 = 0.8,
                                                  .beta2 = 0.95,
                                                  .eps = 1e-5,
                                                  .weight_decay = 0.25,
                                                  .clip_norm = t->s->clip_norm},
                                       .arg = &feed,
                                       .batch_of = two_matrices_batch_of};
    const tess_update *up = &request.update;
    double norm = 0.0;
    note_state(t);
    TESS_TRY(tess_runtime_step(t->rt, &request, &result));
    TESS_TRY(reference_norm(t, &norm));
    const double factor = up->clip_norm > 0.0 ? fmin(1.0, up->clip_norm / (norm + 1e-6)) : 1.0;
    TESS_TRY(check_norm(t, &result, norm, factor));
    for (int u = 0; u < UNIT_NUMEL; u++) {
        const ref_adamw_args a = {.learning_rate = up->learning_rate * ratio_of[u],
                                  .beta1 = up->beta1,
                                  .beta2 = up->beta2,
                                  .eps = up->eps,
                                  .weight_decay = has_decay[u] ? up->weight_decay : 0.0,
                                  .clip_factor = factor,
                                  .step = step};
        TESS_TRY(check_unit(t, u, &a));
    }
    return TESS_OK;
}

/* ---- a run ---- */

static tess_status describe(trial *t)
{
    const tess_plan_options o = {.world = tess_comm_world(t->comm),
                                 .gather_group_numel = 1,
                                 .reshard = TESS_ON,
                                 .checkpointing = TESS_OFF,
                                 .is_full = t->s->is_full,
                                 .micro_batch_numel = MICRO_BATCH_NUMEL,
                                 .load_nbytes = 1 << 16};
    t->model = (two_matrices){.row_numel = 7,
                              .in_numel = 19,
                              .mid_numel = 33,
                              .out_numel = 29,
                              .between_numel = UNIT_NUMEL - 2};
    TESS_TRY(two_matrices_describe(&t->model, &t->registry));
    for (int i = 0; i < t->registry.param_numel; i++) /* each stage squares what it gets */
        t->registry.param[i].init_scale = 0.1;
    for (int u = 0; u < UNIT_NUMEL; u++) {
        tess_param *p = &t->registry.param[t->model.trainable[u]];
        TESS_CHECK(p->unit_idx == u, TESS_E_STATE, "'%s' is of unit %d", p->name, p->unit_idx);
        p->learning_rate_ratio = ratio_of[u];
        p->has_weight_decay = has_decay[u];
    }
    return tess_plan_create(&t->registry, &o, &t->plan);
}

static tess_status run_steps(trial *t)
{
    const tess_load_request load = {.wants_frozen = true, .wants_trainable = true, .seed = 5};
    const tess_runtime_parts parts = {.plan = t->plan,
                                      .registry = &t->registry,
                                      .kernels = &tess_kernels_cpu,
                                      .world = t->comm,
                                      .ops = &two_matrices_ops,
                                      .model = &t->model};
    TESS_TRY(tess_runtime_create(&parts, &t->rt));
    TESS_TRY(tess_load(t->rt, &load, NULL));
    TESS_TRY(tess_runtime_publish(t->rt));
    for (int64_t step = 1; step <= STEP_NUMEL; step++) {
        const tess_status st = run_step(t, step);
        TESS_CHECK(st == TESS_OK, st, "step %" PRId64 ", clip norm %g, full %d", step,
                   t->s->clip_norm, t->s->is_full);
    }
    return TESS_OK;
}

static tess_status run_setting(tess_comm *comm, const setting *s)
{
    static trial t;
    memset(&t, 0, sizeof t);
    t.comm = comm;
    t.s = s;
    tess_registry_init(&t.registry, TESS_F32);
    tess_status st = describe(&t);
    if (st == TESS_OK)
        st = run_steps(&t);
    tess_runtime_destroy(&t.rt);
    tess_plan_destroy(&t.plan);
    tess_registry_fini(&t.registry);
    return st;
}

static tess_status run(tess_comm *comm)
{
    static const setting settings[] = {
        {.clip_norm = 0.01, .is_clipping = true},
        {.clip_norm = 0.01, .is_clipping = true, .is_full = true},
        {.clip_norm = 1e3},
        {.clip_norm = 0.0},
    };
    TESS_CHECK(tess_comm_world(comm) <= WORLD_MAX, TESS_E_ARG, "test has room for %d ranks",
               WORLD_MAX);
    for (int i = 0; i < TESS_NELEM(settings); i++)
        TESS_TRY(run_setting(comm, &settings[i]));
    return TESS_OK;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
