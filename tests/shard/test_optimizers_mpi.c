/*
 * Every optimizer does to masters and state what its peer did (golden files made by
 * tests/golden/make_optimizers.py), step by step from the peer's numbers; and steps in a row give
 * the same bits on this number of ranks as on one.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/digest.h"
#include "core/memory.h"
#include "kernels/nf4.h"
#include "shard/runtime.h"
#include "support/given_gradients.h"
#include "support/rank_test.h"

enum { STEP_NUMEL = 3 };

static const double U = 0x1p-24; /* half an ulp of fp32 relative to the value */

typedef struct trial {
    tess_comm *comm;
    tess_optimizer_kind kind;
    const tess_optimizer *optimizer;
    bool has_ema, is_full;
    tess_golden *golden;
    given_gradients model;
    tess_registry registry;
    tess_plan *plan;
    tess_runtime *rt;
    tess_update update;
} trial;

/* ---- a runtime of one optimizer ---- */

static tess_status batch_of(void *arg, int64_t m, const void **batch)
{
    (void)m;
    *batch = arg;
    return TESS_OK;
}

static double header(const trial *t, int64_t step, const char *key)
{
    char name[64];
    const char *dot = strchr(key, '.');
    snprintf(name, sizeof name, "%d.%s", (int)step, dot != NULL ? dot + 1 : key);
    return step > 0 ? tess_golden_number(t->golden, name) : 0.0;
}

static void read_hyperparameters(trial *t)
{
    t->update = (tess_update){.learning_rate = tess_golden_number(t->golden, "learning_rate"),
                              .beta1 = tess_golden_number(t->golden, "beta1"),
                              .beta2 = tess_golden_number(t->golden, "beta2"),
                              .eps = tess_golden_number(t->golden, "eps"),
                              .weight_decay = tess_golden_number(t->golden, "weight_decay"),
                              .ema_decay = tess_golden_number(t->golden, "ema_decay"),
                              .d0 = tess_golden_number(t->golden, "d0"),
                              .d_coef = tess_golden_number(t->golden, "d_coef"),
                              .has_bias_correction = true,
                              .has_safeguard = true,
                              .momentum = tess_golden_number(t->golden, "momentum"),
                              .matches_adamw = true};
    if (t->update.d0 <= 0.0) /* of another optimizer's file */
        t->update.d0 = t->update.d_coef = 1e-3;
}

static tess_status open_trial(trial *t, const tess_golden *gradients)
{
    char path[96];
    snprintf(path, sizeof path, "tests/golden/optimizers/%s.golden",
             t->has_ema ? "ema" : t->optimizer->name);
    TESS_TRY(tess_golden_open(path, &t->golden));
    t->model.golden = gradients;
    read_hyperparameters(t);
    TESS_TRY(given_gradients_describe(&t->model, &t->registry));
    const tess_plan_options o = {.world = tess_comm_world(t->comm),
                                 .gather_group_numel = 1,
                                 .reshard = TESS_ON,
                                 .checkpointing = TESS_OFF,
                                 .is_full = t->is_full,
                                 .optimizer = t->optimizer,
                                 .has_ema = t->has_ema,
                                 .micro_batch_numel = GIVEN_MICRO_BATCH_NUMEL};
    TESS_TRY(tess_plan_create(&t->registry, &o, &t->plan));
    const tess_runtime_parts parts = {.plan = t->plan,
                                      .registry = &t->registry,
                                      .kernels = &tess_kernels_cpu,
                                      .world = t->comm,
                                      .ops = &given_gradients_ops,
                                      .model = &t->model,
                                      .train_blend = 1.0 - t->update.beta1};
    return tess_runtime_create(&parts, &t->rt);
}

static void close_trial(trial *t)
{
    tess_runtime_destroy(&t->rt);
    tess_plan_destroy(&t->plan);
    tess_registry_fini(&t->registry);
    tess_golden_close(&t->golden);
}

static tess_status run_step(trial *t, int64_t step)
{
    tess_step_result result;
    char rate[16];
    t->model.step = step;
    t->update.step = step;
    snprintf(rate, sizeof rate, "rate.%d", (int)step);
    if (tess_golden_text(t->golden, rate) != NULL)
        t->update.learning_rate = tess_golden_number(t->golden, rate);
    const tess_step_request request = {
        .loss_token_numel = 1, .update = t->update, .arg = &t->model, .batch_of = batch_of};
    return tess_runtime_step(t->rt, &request, &result);
}

/* ---- numbers of the peer ---- */

/* One tensor's part of an array of state that this rank owns, beside the golden numbers. */
typedef struct part {
    const tess_param *p;
    const tess_state_array *array;
    int array_idx;
    void *own;                  /* of the runtime */
    const void *before, *after; /* golden, NULL where the peer begins at zero */
    const float *grad;
    int64_t first_idx, numel; /* in the tensor's part of the array */
} part;

static const void *golden_at(const trial *t, int64_t step, const part *x)
{
    char name[256];
    const void *found = NULL;
    int64_t numel = 0;
    snprintf(name, sizeof name, "%d.%s.%s", (int)step, x->p->name, x->array->role);
    found = tess_golden_tensor(t->golden, name, x->array->dt, &numel);
    if (found == NULL && step == 0 && x->array->starts_as_master) {
        snprintf(name, sizeof name, "0.%s.master", x->p->name);
        found = tess_golden_tensor(t->golden, name, TESS_F32, &numel);
    }
    return found;
}

static const float *gradient_of(const trial *t, int64_t step, const part *x)
{
    char name[256];
    int64_t numel = 0;
    snprintf(name, sizeof name, "%d.%s", (int)step, x->p->name);
    return tess_golden_tensor(t->model.golden, name, TESS_F32, &numel);
}

/* Call `visit` for every tensor and array that the peer has and this rank owns a part of. */
static tess_status visit_parts(trial *t, int64_t step,
                               tess_status (*visit)(trial *t, int64_t step, const part *x))
{
    for (int i = 0; i < t->registry.param_numel; i++)
        for (int a = 0; a < t->plan->state_array_numel; a++) {
            part x = {
                .p = &t->registry.param[i], .array = &t->plan->state[a].array, .array_idx = a};
            int64_t lo = 0, hi = 0, first = 0, numel = 0;
            const tess_view own = tess_runtime_state(t->rt, x.p->unit_idx, a);
            tess_plan_state_owned(t->plan, x.p->unit_idx, a, tess_comm_rank(t->comm), &lo, &hi);
            tess_state_place(&t->registry, i, x.array->grain, &first, &numel);
            const int64_t from = TESS_MAX(lo, first), end = TESS_MIN(hi, first + numel);
            x.after = golden_at(t, step, &x);
            if (x.after == NULL || from >= end)
                continue;
            x.before = golden_at(t, step - 1, &x);
            x.first_idx = from - first;
            x.numel = end - from;
            x.own = (char *)own.data + (size_t)(from - lo) * tess_dtype_block_nbytes(own.dt);
            x.grad = gradient_of(t, step, &x);
            TESS_TRY(visit(t, step, &x));
        }
    return TESS_OK;
}

static tess_status place_before(trial *t, int64_t step, const part *x)
{
    (void)t;
    (void)step;
    const size_t each = tess_dtype_block_nbytes(x->array->dt);
    if (x->before == NULL)
        memset(x->own, 0, (size_t)x->numel * each);
    else
        memcpy(x->own, (const char *)x->before + (size_t)x->first_idx * each,
               (size_t)x->numel * each);
    return TESS_OK;
}

/* ---- bounds ---- */

static double number(const trial *t, int64_t step, const part *x, const char *role, int64_t i)
{
    char name[256];
    int64_t numel = 0;
    snprintf(name, sizeof name, "%d.%s.%s", (int)step, x->p->name, role);
    const float *found = tess_golden_tensor(t->golden, name, TESS_F32, &numel);
    return found != NULL ? (double)found[i] : 0.0;
}

/* Magnitude of the terms of AdamW's update: no cancellation inside m makes them small. */
static double adam_terms(const trial *t, int64_t step, const part *x, int64_t i, double old_m,
                         double new_v)
{
    const tess_update *u = &t->update;
    const double bias1 = 1.0 - pow(u->beta1, (double)step),
                 bias2 = 1.0 - pow(u->beta2, (double)step);
    const double m = u->beta1 * fabs(old_m) + (1.0 - u->beta1) * fabs((double)x->grad[i]);
    return u->learning_rate / bias1 * m / (sqrt(new_v / bias2) + u->eps);
}

/* The 8-bit moments before and after a step, the second in fp64. */
static double coded(const trial *t, int64_t step, const part *x, const char *role, int64_t i)
{
    char name[256], absmax[64];
    int64_t numel = 0;
    snprintf(name, sizeof name, "%d.%s.%s", (int)step, x->p->name, role);
    snprintf(absmax, sizeof absmax, "%s_absmax", role);
    const uint8_t *codes = tess_golden_tensor(t->golden, name, TESS_U8, &numel);
    const bool is_signed = strcmp(role, "exp_avg") == 0;
    const float *map = is_signed ? tess_dynamic_map_signed() : tess_dynamic_map_unsigned();
    return codes == NULL ? 0.0 : (double)map[codes[i]] * number(t, step, x, absmax, i / 256);
}

static double new_coded(const trial *t, int64_t step, const part *x, const char *role, int64_t i)
{
    const bool is_signed = strcmp(role, "exp_avg") == 0;
    const double g = (double)x->grad[i], beta = is_signed ? t->update.beta1 : t->update.beta2;
    return beta * coded(t, step - 1, x, role, i) + (1.0 - beta) * (is_signed ? g : g * g);
}

/* Of optimizers that keep one number per element. */
static double second_moment(const trial *t, int64_t step, const part *x, int64_t i)
{
    return number(t, step, x, "exp_avg_sq", i);
}

/* What one update adds to a master, term by term in magnitude. */
static double update_terms(const trial *t, int64_t step, const part *x, int64_t i)
{
    const tess_update *u = &t->update;
    const double before = number(t, step - 1, x, "master", i);
    const double decay = x->p->has_weight_decay ? u->weight_decay : 0.0;
    switch (t->kind) {
    case TESS_OPTIMIZER_ADAMW:
        return adam_terms(t, step, x, i, number(t, step - 1, x, "exp_avg", i),
                          second_moment(t, step, x, i));
    case TESS_OPTIMIZER_ADAMW_8BIT:
        return adam_terms(t, step, x, i, coded(t, step - 1, x, "exp_avg", i),
                          new_coded(t, step, x, "exp_avg_sq", i));
    case TESS_OPTIMIZER_LION:
        return u->learning_rate;
    case TESS_OPTIMIZER_SCHEDULE_FREE: {
        const double z = step > 1 ? number(t, step - 1, x, "z", i) : before;
        const double bias2 = 1.0 - pow(u->beta2, (double)step);
        const double slope =
            fabs((double)x->grad[i]) / (sqrt(second_moment(t, step, x, i) / bias2) + u->eps);
        return fabs(z) + u->learning_rate * (slope + decay * (fabs(before) + fabs(z)));
    }
    case TESS_OPTIMIZER_PRODIGY: {
        /* m and v carry d and d^2, and the rate d: all three cancel but for one */
        const double d = fmax(header(t, step - 1, "optimizer.d"), u->d0);
        const double new_d = header(t, step, "optimizer.d");
        const double m = u->beta1 * fabs(number(t, step - 1, x, "exp_avg", i)) +
                         d * (1.0 - u->beta1) * fabs((double)x->grad[i]);
        const double bias =
            sqrt(1.0 - pow(u->beta2, (double)step)) / (1.0 - pow(u->beta1, (double)step));
        return d * bias *
               (m / (sqrt(second_moment(t, step, x, i)) + new_d * u->eps) + decay * fabs(before));
    }
    case TESS_OPTIMIZER_ADAFACTOR:
    case TESS_OPTIMIZER_ADAFACTOR_MOMENTUM: /* no cancellation: the update itself */
        return fabs(number(t, step, x, "master", i) - before) +
               u->learning_rate * decay * fabs(before);
    case TESS_OPTIMIZER_MUON: {
        /* Rounding in one step of the iteration, a sum of at most 41 products beside two terms,
         * grows by the polynomial's slope at zero, 3.4445, in each later one: 3.4445^5 < 485. */
        const double sides[] = {(double)x->p->shape[0], (double)x->p->shape[1]};
        if (x->p->shape_rank == 1)
            return adam_terms(t, step, x, i, number(t, step - 1, x, "exp_avg", i),
                              second_moment(t, step, x, i));
        return 485.0 * 43.0 / 44.0 * u->learning_rate * 0.2 * sqrt(fmax(sides[0], sides[1]));
    }
    case TESS_OPTIMIZER_NUMEL:
        break;
    }
    return INFINITY;
}

/*
 * Both sides round: the peer's numbers are fp64 rounded to fp32, or fp32 throughout, ours fp32 with
 * the operation counts of tests/shard/test_optimizer_mpi.c: at most 20 roundings enter the terms of
 * an update, once more for a peer in fp32, and 4 the master itself.
 */
static double master_bound(const trial *t, int64_t step, const part *x, int64_t i, double want)
{
    return U * (6.0 * fabs(want) + 44.0 * update_terms(t, step, x, i));
}

/* State is a sum a s + b y; b y is no larger than the new and the old number together. 10 roundings
 * on either side. z of the schedule-free optimizer adds what a master adds. */
static double state_bound(const trial *t, int64_t step, const part *x, int64_t i, double want)
{
    const double before = x->before != NULL ? fabs((double)((const float *)x->before)[i]) : 0.0;
    const double terms =
        strcmp(x->array->role, "z") == 0 ? 44.0 * update_terms(t, step, x, i) : 0.0;
    return U * (20.0 * (fabs(want) + 2.0 * before) + terms) + 0x1p-126;
}

/* ---- comparison ---- */

static tess_status differ(const trial *t, int64_t step, const part *x, int64_t i, double found,
                          double want, double bound)
{
    return TESS_FAIL(TESS_E_STATE,
                     "%s, step %d: %s of '%s', number %" PRId64 ": %.9g, expected %.9g within %.2g",
                     t->optimizer->name, (int)step, x->array->role, x->p->name, i, found, want,
                     bound);
}

/* A code is the peer's, or another nearest one: its entry is as near as the peer's but for the
 * rounding of the moment and the absmax, 12 u each, or it mends the sign. */
static tess_status check_code(trial *t, int64_t step, const part *x, int64_t i)
{
    const uint8_t found = ((const uint8_t *)x->own)[i - x->first_idx];
    const uint8_t want = ((const uint8_t *)x->after)[i];
    if (found == want)
        return TESS_OK;
    const bool is_signed = strcmp(x->array->role, "exp_avg") == 0;
    const float *map = is_signed ? tess_dynamic_map_signed() : tess_dynamic_map_unsigned();
    char absmax[32];
    snprintf(absmax, sizeof absmax, "%s_absmax", x->array->role);
    const double u = new_coded(t, step, x, x->array->role, i) / number(t, step, x, absmax, i / 256);
    const double slack = 24.0 * U * (fabs(u) + 1e-7);
    const bool is_as_near =
        fabs(fabs((double)map[found] - u) - fabs((double)map[want] - u)) <= 2.0 * slack;
    const bool mends_sign = is_signed && (double)map[want] * u <= 0.0 &&
                            (double)map[found] * u > 0.0 && abs(found - want) == 1;
    return is_as_near || mends_sign ? TESS_OK
                                    : differ(t, step, x, i, (double)found, (double)want, 0.0);
}

static tess_status check_after(trial *t, int64_t step, const part *x)
{
    for (int64_t i = x->first_idx; i < x->first_idx + x->numel; i++) {
        if (x->array->dt == TESS_U8) {
            TESS_TRY(check_code(t, step, x, i));
            continue;
        }
        const double found = (double)((const float *)x->own)[i - x->first_idx];
        const double want = (double)((const float *)x->after)[i];
        const double bound = x->array_idx == TESS_STATE_MASTER ? master_bound(t, step, x, i, want)
                                                               : state_bound(t, step, x, i, want);
        if (!(fabs(found - want) <= bound))
            return differ(t, step, x, i, found, want, bound);
    }
    return TESS_OK;
}

/* Numbers of the whole run carry the rounding of fp32 sums' terms. */
static tess_status check_scalars(trial *t, int64_t step)
{
    for (int i = 0; i < t->optimizer->scalar_numel; i++) {
        const char *name = t->optimizer->scalar[i];
        const double found = tess_runtime_scalars(t->rt)[i], want = header(t, step, name);
        TESS_CHECK(fabs(found - want) <= 8.0 * U * fabs(want), TESS_E_STATE,
                   "%s, step %d: %s is %.17g, expected %.17g", t->optimizer->name, (int)step, name,
                   found, want);
    }
    return TESS_OK;
}

static tess_status check_steps(trial *t)
{
    for (int64_t step = 1; step <= STEP_NUMEL; step++) {
        TESS_TRY(visit_parts(t, step, place_before));
        for (int i = 0; i < t->optimizer->scalar_numel; i++)
            tess_runtime_scalars(t->rt)[i] = header(t, step - 1, t->optimizer->scalar[i]);
        TESS_TRY(tess_runtime_resume(t->rt));
        TESS_TRY(run_step(t, step));
        TESS_TRY(tess_agree(t->comm, visit_parts(t, step, check_after)));
        TESS_TRY(check_scalars(t, step));
    }
    return TESS_OK;
}

/* ---- the same bits ---- */

/* Everything that steps change, over all ranks. */
typedef struct state_hash {
    tess_logical_hash array[TESS_STATE_ARRAY_MAX], published;
} state_hash;

static tess_status hash_state(trial *t, state_hash *out)
{
    memset(out, 0, sizeof *out);
    const int rank = tess_comm_rank(t->comm);
    for (int u = 0; u < t->plan->unit_numel; u++) {
        int64_t lo = 0, hi = 0;
        for (int a = 0; a < t->plan->state_array_numel; a++) {
            const tess_view v = tess_runtime_state(t->rt, u, a);
            tess_plan_state_owned(t->plan, u, a, rank, &lo, &hi);
            tess_logical_hash_add(&out->array[a], v.data, v.numel, tess_dtype_block_nbytes(v.dt),
                                  lo + ((int64_t)u << 40));
        }
        const tess_view shard = tess_runtime_param_shard(t->rt, u);
        tess_plan_owned(t->plan, u, rank, &lo, &hi);
        tess_logical_hash_add(&out->published, shard.data, shard.numel, 2, lo + ((int64_t)u << 40));
    }
    return tess_comm_control(t->comm, (int64_t *)(void *)out, (int)(sizeof *out / sizeof(int64_t)),
                             NULL, 0);
}

static tess_status run_in_a_row(trial *t, state_hash *out)
{
    TESS_TRY(visit_parts(t, 1, place_before));
    TESS_TRY(tess_runtime_begin(t->rt));
    TESS_TRY(tess_runtime_publish(t->rt));
    for (int64_t step = 1; step <= STEP_NUMEL; step++)
        TESS_TRY(run_step(t, step));
    return hash_state(t, out);
}

typedef struct choice {
    tess_optimizer_kind kind;
    bool has_ema, is_full;
} choice;

/* @param out  NULL: compare with the peer */
static tess_status run_choice(tess_comm *comm, const tess_golden *gradients, const choice *c,
                              state_hash *out)
{
    trial t = {.comm = comm,
               .kind = c->kind,
               .optimizer = tess_optimizer_get(c->kind),
               .has_ema = c->has_ema,
               .is_full = c->is_full};
    tess_registry_init(&t.registry, out != NULL ? TESS_BF16 : TESS_F32);
    tess_status st = open_trial(&t, gradients);
    if (st == TESS_OK)
        st = out != NULL ? run_in_a_row(&t, out) : check_steps(&t);
    close_trial(&t);
    return st;
}

static tess_status compare_worlds(tess_comm *comm, tess_comm *self, const tess_golden *gradients,
                                  const choice *c)
{
    state_hash one, many;
    TESS_TRY(run_choice(self, gradients, c, &one));
    TESS_TRY(run_choice(comm, gradients, c, &many));
    TESS_CHECK(memcmp(&one, &many, sizeof one) == 0, TESS_E_STATE,
               "%s%s: %d ranks give other bits than one", tess_optimizer_get(c->kind)->name,
               c->has_ema ? " with an average" : "", tess_comm_world(comm));
    return TESS_OK;
}

static tess_status run_all(tess_comm *comm, tess_comm *self, const tess_golden *gradients)
{
    for (int kind = 0; kind < TESS_OPTIMIZER_NUMEL; kind++)
        for (int mode = 0; mode < 2; mode++) {
            choice c = {.kind = (tess_optimizer_kind)kind, .is_full = mode == 1};
            TESS_TRY(run_choice(comm, gradients, &c, NULL));
            c.has_ema = true; /* the average of every one of them, beside the others' state */
            if (kind == TESS_OPTIMIZER_ADAMW)
                TESS_TRY(run_choice(comm, gradients, &c, NULL));
            TESS_TRY(compare_worlds(comm, self, gradients, &c));
        }
    return TESS_OK;
}

static tess_status run(tess_comm *comm)
{
    tess_comm *self = NULL;
    tess_golden *gradients = NULL;
    TESS_TRY(tess_comm_create_self(&self));
    tess_status st = tess_golden_open("tests/golden/optimizers/gradients.golden", &gradients);
    if (st == TESS_OK)
        st = run_all(comm, self, gradients);
    tess_golden_close(&gradients);
    tess_comm_destroy(&self);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
