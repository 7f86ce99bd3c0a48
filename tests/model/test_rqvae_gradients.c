/*
 * An RQ-VAE against central differences in fp64.
 *
 * [Note: differences past a stop] Where the model stops gradients, the reference holds what is
 * behind the stop at its value in the middle: the output of the quantizer is z + c (or the rotation
 * of z, its matrix constant), a level's losses are |q - r0|^2 and beta |q0 - (z - c)|^2. Its
 * differences are then the gradients that the model promises, and it consists of forward code only.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "core/rng.h"
#include "model/rqvae.h"
#include "tests/support/stage_chain.h"

enum {
    D = 7,
    DIM = 3,
    CODES = 5,
    LEVELS = 2,
    ROWS = 6,
    HIDDEN = 2,
    LAYERS = HIDDEN + 1,
    WIDEST = 9
};

static const int64_t hidden[HIDDEN] = {9, 5};
static const int64_t sizes[LAYERS + 1] = {D, 9, 5, DIM};

static void expect_ok(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s: %s\n%s", tess_status_name(st), tess_error_message(), tess_error_trace_text());
}

/* ---- the model ---- */

typedef struct choice {
    tess_dtype dt;
    bool is_sum, has_bias, is_recomputed, is_averaged;
    tess_estimator estimator;
    int thread_numel;
} choice;

static stage_chain open_chain(const choice *o)
{
    stage_chain c = {.is_recomputed = o->is_recomputed};
    const tess_rqvae_config config = {.dim = D,
                                      .code_dim = DIM,
                                      .hidden = hidden,
                                      .hidden_numel = HIDDEN,
                                      .has_bias = o->has_bias,
                                      .code_numel = CODES,
                                      .level_numel = LEVELS,
                                      .is_sum = o->is_sum,
                                      .commitment = 0.25,
                                      .estimator = o->estimator,
                                      .is_averaged = o->is_averaged};
    const tess_model_options options = {
        .compute_dt = o->dt, .micro_batch = ROWS, .thread_numel = o->thread_numel};
    expect_ok(tess_kernels_cpu_select(tess_cpu_path_best()));
    tess_registry_init(&c.reg, o->dt);
    expect_ok(tess_rqvae_create(&config, &options, &c.reg, &c.model));
    expect_ok(stage_chain_init(&c, o->thread_numel));
    const tess_rng rng = tess_rng_make(4, TESS_RNG_TEST, 0, 0);
    for (int i = 0, at = 0; i < c.reg.param_numel; i++)
        for (int64_t k = 0; k < c.reg.param[i].numel; k++)
            stage_chain_master(&c, c.reg.param[i].name)[k] =
                (float)(0.6 * tess_rng_normal(&rng, (uint64_t)at++));
    expect_ok(stage_chain_publish(&c));
    return c;
}

static void fill_x(float x[ROWS * D])
{
    const tess_rng rng = tess_rng_make(4, TESS_RNG_TEST, 1, 0);
    for (int i = 0; i < ROWS * D; i++) /* values that bf16 holds */
        x[i] = tess_bf16_to_f32(tess_bf16_from_f32((float)tess_rng_normal(&rng, (uint64_t)i)));
}

/* ---- the reference ---- */

typedef struct reference {
    const choice *o;
    double *param[4 * LAYERS + LEVELS]; /* as the registry has them */
    int bias_step;
    double x[ROWS][D];
    uint32_t code[LEVELS][ROWS];
    bool is_held; /* values behind the stops are there */
    double z0[ROWS][DIM], sum0[ROWS][DIM];
    double r0[LEVELS][ROWS][DIM], q0[LEVELS][ROWS][DIM];
} reference;

static void layers(const reference *f, int first_param, const int64_t *size, const double *in,
                   double *out)
{
    double a[WIDEST], b[WIDEST];
    memcpy(a, in, (size_t)size[0] * sizeof *a);
    for (int l = 0; l < LAYERS; l++) {
        const double *w = f->param[first_param + f->bias_step * l];
        const double *bias = f->bias_step == 2 ? f->param[first_param + 2 * l + 1] : NULL;
        for (int64_t j = 0; j < size[l + 1]; j++) {
            b[j] = bias != NULL ? bias[j] : 0.0;
            for (int64_t k = 0; k < size[l]; k++)
                b[j] += w[j * size[l] + k] * a[k];
            if (l + 1 < LAYERS)
                b[j] = fmax(b[j], 0.0);
        }
        memcpy(a, b, sizeof a);
    }
    memcpy(out, a, (size_t)size[LAYERS] * sizeof *out);
}

static double dot(const double *a, const double *b)
{
    double sum = 0.0;
    for (int j = 0; j < DIM; j++)
        sum += a[j] * b[j];
    return sum;
}

/* What the decoder gets: linear in z, all else held. */
static void pass(const reference *f, int i, const double *z, double *out)
{
    const double *z0 = f->z0[i], *q = f->sum0[i];
    double u[DIM], v[DIM], w[DIM];
    const double x_norm = sqrt(dot(z0, z0)), q_norm = sqrt(dot(q, q));
    for (int j = 0; j < DIM; j++) {
        u[j] = z0[j] / x_norm;
        v[j] = q[j] / q_norm;
        w[j] = u[j] + v[j];
        out[j] = z[j] + (q[j] - z0[j]);
    }
    if (f->o->estimator != TESS_ESTIMATOR_ROTATION)
        return;
    const double w_norm = sqrt(dot(w, w)), l = q_norm / x_norm;
    const double zw = dot(z, w) / w_norm, zu = dot(z, u);
    for (int j = 0; j < DIM; j++)
        out[j] = l * (z[j] - 2.0 * zw * w[j] / w_norm + 2.0 * zu * v[j]);
}

/* Everything behind the stops, at this point. */
static void hold(reference *f, int i, const double *z)
{
    memcpy(f->z0[i], z, sizeof f->z0[i]);
    memset(f->sum0[i], 0, sizeof f->sum0[i]);
    for (int l = 0; l < LEVELS; l++)
        for (int j = 0; j < DIM; j++) {
            const double *codes = f->param[LAYERS * f->bias_step + l];
            f->q0[l][i][j] = codes[f->code[l][i] * DIM + (uint32_t)j];
            f->r0[l][i][j] = z[j] - f->sum0[i][j];
            f->sum0[i][j] += f->q0[l][i][j];
        }
}

static double row_loss(reference *f, int i)
{
    const int64_t mirrored[LAYERS + 1] = {sizes[3], sizes[2], sizes[1], sizes[0]};
    const double rec = f->o->is_sum ? 1.0 : 1.0 / D, weight = f->o->is_sum ? 1.0 : 1.0 / DIM;
    double z[DIM], in[DIM], y[D], loss = 0.0;
    layers(f, 0, sizes, f->x[i], z);
    if (!f->is_held)
        hold(f, i, z);
    pass(f, i, z, in);
    layers(f, LAYERS * f->bias_step + LEVELS, mirrored, in, y);
    for (int j = 0; j < D; j++)
        loss += rec * (y[j] - f->x[i][j]) * (y[j] - f->x[i][j]);
    for (int l = 0; l < LEVELS; l++)
        for (int j = 0; j < DIM; j++) {
            const double q = f->param[LAYERS * f->bias_step + l][f->code[l][i] * DIM + (uint32_t)j];
            const double r = z[j] - (f->z0[i][j] - f->r0[l][i][j]);
            loss += weight *
                    ((f->o->is_averaged ? 0.0 : 1.0) * (q - f->r0[l][i][j]) * (q - f->r0[l][i][j]) +
                     0.25 * (f->q0[l][i][j] - r) * (f->q0[l][i][j] - r));
        }
    return loss;
}

static double total_loss(reference *f)
{
    double sum = 0.0;
    for (int i = 0; i < ROWS; i++)
        sum += row_loss(f, i);
    return sum;
}

static void open_reference(const choice *o, stage_chain *c, const float *x, const uint32_t *code,
                           reference *f)
{
    memset(f, 0, sizeof *f);
    f->o = o;
    f->bias_step = o->has_bias ? 2 : 1;
    for (int i = 0; i < c->reg.param_numel; i++) {
        const tess_param *p = &c->reg.param[i];
        const bool is_rounded = c->reg.unit[p->unit_idx].compute_dt == TESS_BF16;
        void *memory = NULL;
        expect_ok(tess_alloc_array(p->numel, sizeof(double), &memory));
        f->param[i] = memory;
        for (int64_t k = 0; k < p->numel; k++) {
            const float value = stage_chain_master(c, p->name)[k];
            f->param[i][k] = is_rounded ? tess_bf16_to_f32(tess_bf16_from_f32(value)) : value;
        }
    }
    for (int i = 0; i < ROWS * D; i++)
        f->x[i / D][i % D] = x[i];
    memcpy(f->code, code, sizeof f->code);
}

/* The codes that the model took are those nearest in fp64, by a margin that rounding is far from;
 * in bf16 that the margin is met is luck of the draw, so it is required of f32 alone. */
static void expect_nearest(const reference *f, bool is_strict)
{
    for (int i = 0; i < ROWS && is_strict; i++)
        for (int l = 0; l < LEVELS; l++) {
            double best = INFINITY;
            uint32_t found = 0;
            for (uint32_t k = 0; k < CODES; k++) {
                double square = 0.0;
                for (uint32_t j = 0; j < DIM; j++) {
                    const double t =
                        f->r0[l][i][j] - f->param[LAYERS * f->bias_step + l][k * DIM + j];
                    square += t * t;
                }
                if (square < best) {
                    best = square;
                    found = k;
                }
            }
            assert_int_equal(found, f->code[l][i]);
        }
}

/* Norm of the difference over the norm of the tensor's gradient. */
static double grad_error(reference *f, stage_chain *c, int param_idx)
{
    static const double step = 1e-6;
    const tess_param *p = &c->reg.param[param_idx];
    const float *grad = stage_chain_grad(c, p->name);
    double difference = 0.0, norm = 0.0;
    if (f->o->is_averaged && strstr(p->name, "codes") != NULL) {
        for (int64_t k = 0; k < p->numel; k++)
            assert_true(grad[k] == 0.0f);
        assert_true(p->learning_rate_ratio == 0.0 && !p->has_weight_decay);
        return 0.0;
    }
    for (int64_t k = 0; k < p->numel; k++) {
        double *at = &f->param[param_idx][k], loss[2];
        const double middle = *at;
        for (int side = 0; side < 2; side++) {
            *at = middle + (side == 0 ? step : -step);
            loss[side] = total_loss(f);
        }
        *at = middle;
        const double expected = (loss[0] - loss[1]) / (2.0 * step) / ROWS;
        difference += (grad[k] - expected) * (grad[k] - expected);
        norm += expected * expected;
    }
    assert_true(norm > 0.0);
    return sqrt(difference / norm);
}

/*
 * f32: at most 8 layers and edges on a path, each sum of at most 9 products: 8 * (9 + 2) * 2^-24,
 * about 1e-5 of the terms; cancellation among ROWS gradients is covered by a factor of 8. The
 * differences themselves are good to 1e-8. bf16: 2^-9 where a value is stored, 14 stores on the
 * longest path (forward and back), a factor of 2 for cancellation.
 */
static void check_gradients(const choice *o)
{
    float x[ROWS * D], latent[ROWS * DIM], left[LEVELS][ROWS][DIM];
    uint32_t code[LEVELS * ROWS];
    double square[(1 + LEVELS) * ROWS], loss = 0.0, eval = 0.0;
    const double bound = o->dt == TESS_F32 ? 1e-4 : 28.0 / 512.0;
    stage_chain c = open_chain(o);
    reference f;
    fill_x(x);
    const tess_vector_batch batch = {.vector_numel = ROWS,
                                     .x = x,
                                     .code = code,
                                     .square = square,
                                     .latent = latent,
                                     .left = left[0][0]};
    expect_ok(stage_chain_train(&c, &batch, 1.0f / ROWS, &loss));
    expect_ok(stage_chain_eval(&c, &batch, &eval));
    assert_memory_equal(&loss, &eval, sizeof loss);
    open_reference(o, &c, x, code, &f);
    const double expected = total_loss(&f);
    f.is_held = true;
    expect_nearest(&f, o->dt == TESS_F32);
    assert_true(fabs(loss - expected) <= bound * expected);
    for (int i = 0; i < ROWS * DIM; i++)
        assert_true(fabs(latent[i] - f.z0[i / DIM][i % DIM]) <=
                    bound * sqrt(dot(f.z0[i / DIM], f.z0[i / DIM])));
    for (int i = 0; i < LEVELS * ROWS; i++)
        for (int j = 0; j < DIM; j++)
            assert_true(fabs(left[i / ROWS][i % ROWS][j] - f.r0[i / ROWS][i % ROWS][j]) <=
                        bound * sqrt(dot(f.z0[i % ROWS], f.z0[i % ROWS])));
    double parts = 0.0;
    for (int i = 0; i < (1 + LEVELS) * ROWS; i++)
        parts +=
            square[i] * (i < ROWS ? (o->is_sum ? 1.0 : 1.0 / D)
                                  : (o->is_averaged ? 0.25 : 1.25) * (o->is_sum ? 1.0 : 1.0 / DIM));
    assert_true(fabs(parts - loss) <= 1e-12 * loss);
    for (int i = 0; i < c.reg.param_numel; i++) {
        const double error = grad_error(&f, &c, i);
        if (!(error <= bound))
            fail_msg("%s: gradient is %g away, bound %g", c.reg.param[i].name, error, bound);
    }
    for (int i = 0; i < c.reg.param_numel; i++)
        tess_free(f.param[i]);
    stage_chain_fini(&c);
}

static void test_gradients_match_differences(void **state)
{
    (void)state;
    for (int i = 0; i < 32; i++) {
        const choice o = {.dt = i & 1 ? TESS_BF16 : TESS_F32,
                          .estimator = i & 2 ? TESS_ESTIMATOR_ROTATION : TESS_ESTIMATOR_STRAIGHT,
                          .is_sum = (i & 4) != 0,
                          .has_bias = (i & 8) != 0,
                          .is_averaged = (i & 16) != 0,
                          .thread_numel = 1};
        check_gradients(&o);
    }
}

/* ---- same bits ---- */

static void expect_same(const choice *a, const choice *b)
{
    float x[ROWS * D];
    double loss[2] = {0.0, 0.0};
    const choice *o[2] = {a, b};
    stage_chain c[2];
    fill_x(x);
    const tess_vector_batch batch = {.vector_numel = ROWS, .x = x};
    for (int i = 0; i < 2; i++) {
        c[i] = open_chain(o[i]);
        expect_ok(stage_chain_train(&c[i], &batch, 0.125f, &loss[i]));
    }
    assert_memory_equal(&loss[0], &loss[1], sizeof loss[0]);
    for (int u = 0; u < c[0].reg.unit_numel; u++)
        assert_memory_equal(c[0].grad[u], c[1].grad[u],
                            (size_t)c[0].reg.unit[u].trainable_numel * sizeof(float));
    stage_chain_fini(&c[0]);
    stage_chain_fini(&c[1]);
}

static void test_recomputation_and_threads_give_the_same_bits(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        const choice plain = {.dt = i ? TESS_BF16 : TESS_F32,
                              .has_bias = true,
                              .estimator = TESS_ESTIMATOR_STRAIGHT,
                              .thread_numel = 1};
        choice other = plain;
        other.is_recomputed = true;
        expect_same(&plain, &other);
        other.thread_numel = 2;
        expect_same(&plain, &other);
    }
}

/* A ragged micro-batch of evaluation is its rows and nothing else. */
static void test_fewer_rows_give_their_part_of_the_loss(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        const choice o = {.dt = i ? TESS_BF16 : TESS_F32, .has_bias = true, .thread_numel = 1};
        stage_chain c = open_chain(&o);
        float x[ROWS * D];
        double all[(1 + LEVELS) * ROWS], few[(1 + LEVELS) * 2], loss = 0.0;
        fill_x(x);
        const tess_vector_batch whole = {.vector_numel = ROWS, .x = x, .square = all};
        const tess_vector_batch ragged = {.vector_numel = 2, .x = x + 3 * D, .square = few};
        expect_ok(stage_chain_eval(&c, &whole, &loss));
        expect_ok(stage_chain_eval(&c, &ragged, &loss));
        for (int l = 0; l < 1 + LEVELS; l++)
            assert_memory_equal(&few[2 * l], &all[ROWS * l + 3], 2 * sizeof *few);
        stage_chain_fini(&c);
    }
}

static void test_codes_are_f32_in_every_run(void **state)
{
    (void)state;
    const choice o = {.dt = TESS_BF16, .thread_numel = 1};
    stage_chain c = open_chain(&o);
    assert_int_equal(c.reg.unit[0].compute_dt, TESS_BF16);
    assert_int_equal(c.reg.unit[1].compute_dt, TESS_F32);
    assert_int_equal(tess_rqvae_codebook(c.model, 1),
                     tess_registry_find(&c.reg, "quantizer.1.codes"));
    stage_chain_fini(&c);
}

static void test_wrong_sizes_are_refused(void **state)
{
    (void)state;
    const int64_t sizes_given[1] = {0};
    const tess_rqvae_config good = {
        .dim = 4, .code_dim = 2, .code_numel = 3, .level_numel = 1, .hidden = sizes_given};
    const tess_model_options options = {
        .compute_dt = TESS_F32, .micro_batch = 2, .thread_numel = 1};
    static const char *const key[] = {"quantizer.code_dim", "quantizer.levels", "quantizer.codes",
                                      "quantizer.encoder"};
    for (int i = 0; i < TESS_NELEM(key); i++) {
        tess_rqvae_config bad = good;
        tess_registry reg;
        tess_model *model = NULL;
        bad.code_dim = i == 0 ? 0 : bad.code_dim;
        bad.level_numel = i == 1 ? TESS_RQVAE_LEVEL_MAX + 1 : bad.level_numel;
        bad.code_numel = i == 2 ? 0 : bad.code_numel;
        bad.hidden_numel = i == 3 ? 1 : 0;
        tess_registry_init(&reg, TESS_F32);
        assert_int_equal(tess_rqvae_create(&bad, &options, &reg, &model), TESS_E_CONFIG);
        assert_non_null(strstr(tess_error_message(), key[i]));
        tess_error_clear();
        tess_registry_fini(&reg);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients_match_differences),
        cmocka_unit_test(test_recomputation_and_threads_give_the_same_bits),
        cmocka_unit_test(test_fewer_rows_give_their_part_of_the_loss),
        cmocka_unit_test(test_codes_are_f32_in_every_run),
        cmocka_unit_test(test_wrong_sizes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
