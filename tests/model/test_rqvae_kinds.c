/*
 * Every kind of quantizer against central differences in fp64, in groups where it has them: one
 * linear layer on each side, stops held at their values in the middle
 * (test_rqvae_gradients.c, [Note: differences past a stop]).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "core/memory.h"
#include "core/rng.h"
#include "model/rqvae.h"
#include "tests/support/stage_chain.h"

enum { D = 7, DIM = 6, CODES = 5, ROWS = 6, PARAM_MAX = 12, INDEX_MAX = 4, GROUP_CODES = 8 };

static const int64_t axes[DIM] = {4, 5, 3, 8, 6, 7};

#define ALL(k, levels, ...)                                                                        \
    {                                                                                              \
        .kind = TESS_QUANTIZER_##k, .dim = D, .code_dim = DIM, .code_numel = CODES,                \
        .level_numel = (levels), .commitment = 0.25, .axis_level = axes, .axis_numel = DIM,        \
        __VA_ARGS__                                                                                \
    }
#define SIGNS_OF(...)                                                                              \
    ALL(SIGNS, 1, .group_numel = 2, .entropy = 0.3, .confidence = 0.6, .diversity = 0.5,           \
        .scale = 1.25, .inverse_temperature = 2.0, __VA_ARGS__)

#define STRAIGHT .group_numel = 2, .estimator = TESS_ESTIMATOR_STRAIGHT

static const tess_rqvae_config kinds[] = {
    ALL(CODES, 2, STRAIGHT),
    ALL(CODES, 2, .group_numel = 2, .estimator = TESS_ESTIMATOR_ROTATION),
    ALL(CODES, 1, STRAIGHT, .is_shared = true, .orthogonal = 3.0),
    ALL(CODES, 2, STRAIGHT, .orthogonal = 3.0),
    ALL(CODES, 1, STRAIGHT, .is_spherical = true, .is_averaged = true),
    ALL(MAPPED_CODES, 2, STRAIGHT, .orthogonal = 2.0),
    ALL(MAPPED_CODES, 1, .group_numel = 2, .is_shared = true, .estimator = TESS_ESTIMATOR_ROTATION),
    ALL(PROJECTED, 1, .group_numel = 2, .is_spherical = true),
    ALL(SCALARS, 1, .rule = TESS_LEVEL_UPPER),
    ALL(SCALARS, 1, .rule = TESS_LEVEL_LOWER),
    ALL(SCALARS, 1, .rule = TESS_LEVEL_SYMMETRIC),
    ALL(SCALARS, 1, .rule = TESS_LEVEL_CLAMPED),
    ALL(SCALARS, 1, .is_stack = true),
    ALL(SCALARS, 2, .is_stack = true),
    SIGNS_OF(.is_sum = false),
    SIGNS_OF(.is_sum = true),
    SIGNS_OF(.is_spherical = true, .is_binary_spherical = true),
    ALL(VALUES, 1, .is_sum = false)};

static void expect_ok(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s: %s\n%s", tess_status_name(st), tess_error_message(), tess_error_trace_text());
}

/* ---- the model ---- */

static stage_chain open_chain(const tess_rqvae_config *config)
{
    stage_chain c = {0};
    const tess_model_options options = {
        .compute_dt = TESS_F32, .micro_batch = ROWS, .thread_numel = 1};
    expect_ok(tess_kernels_cpu_select(tess_cpu_path_best()));
    tess_registry_init(&c.reg, TESS_F32);
    expect_ok(tess_rqvae_create(config, &options, &c.reg, &c.model));
    expect_ok(stage_chain_init(&c, 1));
    const tess_rng rng = tess_rng_make(9, TESS_RNG_TEST, 0, 0);
    for (int i = 0, at = 0; i < c.reg.param_numel; i++)
        for (int64_t k = 0; k < c.reg.param[i].numel; k++)
            stage_chain_master(&c, c.reg.param[i].name)[k] =
                (float)(0.6 * tess_rng_normal(&rng, (uint64_t)at++));
    expect_ok(stage_chain_publish(&c));
    return c;
}

/* ---- the reference ---- */

typedef struct reference {
    tess_rqvae_config c;
    tess_quantizer_shape shape;
    int param_numel;
    double *param[PARAM_MAX]; /* encoder, of the quantizer, decoder */
    double x[ROWS][D];
    bool is_masked[ROWS];
    int valid_numel;
    uint32_t code[INDEX_MAX][ROWS];
    bool is_held; /* values behind the stops are there */
    double u0[ROWS][DIM], q0[ROWS][DIM];
    double r0[INDEX_MAX][ROWS][DIM], c0[INDEX_MAX][ROWS][DIM]; /* of levels: left, codes */
} reference;

static double weight_of(const reference *f) { return f->c.is_sum ? 1.0 : 1.0 / DIM; }

static double dot(const double *a, const double *b, int64_t numel)
{
    double sum = 0.0;
    for (int64_t j = 0; j < numel; j++)
        sum += a[j] * b[j];
    return sum;
}

static void make_unit(double *v, int64_t numel)
{
    const double norm = sqrt(dot(v, v, numel));
    for (int64_t j = 0; j < numel; j++)
        v[j] /= norm;
}

/* Row k of a book: F A^T where codes are mapped; tables and maps take turns. */
static void code_of(const reference *f, int book, uint32_t k, double *out)
{
    const int64_t d = f->shape.dim;
    const bool is_mapped = f->c.kind == TESS_QUANTIZER_MAPPED_CODES;
    const double *row = f->param[1 + (is_mapped ? 2 * book : book)] + (int64_t)k * d;
    for (int64_t j = 0; j < d; j++)
        out[j] = is_mapped ? dot(row, f->param[2 + 2 * book] + j * d, d) : row[j];
}

/* What passes the codes of one group: u plus a constant, or a constant matrix times u. */
static void pass(const reference *f, const double *u, const double *u0, const double *q,
                 double *out)
{
    const int64_t d = f->shape.dim;
    double a[DIM], b[DIM], w[DIM];
    memcpy(a, u0, (size_t)d * sizeof *a);
    memcpy(b, q, (size_t)d * sizeof *b);
    make_unit(a, d);
    make_unit(b, d);
    for (int64_t j = 0; j < d; j++) {
        w[j] = a[j] + b[j];
        out[j] = u[j] + (q[j] - u0[j]);
    }
    if (f->c.estimator != TESS_ESTIMATOR_ROTATION)
        return;
    make_unit(w, d);
    const double scale = sqrt(dot(q, q, d) / dot(u0, u0, d));
    for (int64_t j = 0; j < d; j++)
        out[j] = scale * (u[j] - 2.0 * dot(u, w, d) * w[j] + 2.0 * dot(u, a, d) * b[j]);
}

static double pass_codes(reference *f, int i, const double *u, double *out)
{
    const int64_t d = f->shape.dim;
    const double own = f->c.is_averaged ? 0.0 : 1.0;
    double loss = 0.0;
    for (int g = 0; g < 2; g++) {
        double *q = f->q0[i] + g * d;
        const double *u0 = f->u0[i] + g * d;
        if (!f->is_held)
            memset(q, 0, (size_t)d * sizeof *q);
        for (int l = 0; l < f->c.level_numel; l++) {
            const int index = g * f->c.level_numel + l;
            double code[DIM], *r0 = f->r0[index][i], *c0 = f->c0[index][i];
            code_of(f, index % f->shape.book_numel, f->code[index][i], code);
            for (int64_t j = 0; j < d; j++) {
                if (!f->is_held) {
                    r0[j] = u0[j] - q[j];
                    c0[j] = code[j];
                    q[j] += code[j];
                }
                const double r = u[g * d + j] - (u0[j] - r0[j]);
                loss += weight_of(f) * (own * (code[j] - r0[j]) * (code[j] - r0[j]) +
                                        f->c.commitment * (c0[j] - r) * (c0[j] - r));
            }
        }
        pass(f, u + g * d, u0, q, out + g * d);
    }
    return loss;
}

/* What is rounded to code, as a function of z; a stack's is its soft clamp. */
static double bounded(const reference *f, int64_t j, double z)
{
    const double numel = (double)f->c.axis_level[j], off = f->c.axis_level[j] % 2 == 0 ? 0.5 : 0.0;
    const double half = (numel - 1) * (f->c.rule == TESS_LEVEL_LOWER ? 0.999 : 1.001) / 2;
    const double shift = f->c.rule == TESS_LEVEL_LOWER ? tan(off / half) : atanh(off / half);
    const double soft = 1.0 + 1.0 / (numel - 1);
    if (f->c.is_stack)
        return soft * tanh(z / soft);
    if (f->c.rule == TESS_LEVEL_SYMMETRIC)
        return tanh(z);
    if (f->c.rule == TESS_LEVEL_CLAMPED)
        return fmin(1.0, fmax(-1.0, z));
    return (tanh(z + shift) * half - off) / floor(numel / 2);
}

/* Codes by their levels, least significant dimension first. */
static double scalar_of(const reference *f, int i, int64_t j)
{
    double sum = 0.0, scale = 1.0;
    for (int l = 0; l < f->c.level_numel; l++) {
        uint32_t rest = f->code[l][i];
        for (int64_t k = 0; k < j; k++)
            rest /= (uint32_t)f->c.axis_level[k];
        const double numel = (double)f->c.axis_level[j], level = rest % (uint32_t)numel;
        const bool is_even = f->c.is_stack || f->c.rule >= TESS_LEVEL_SYMMETRIC;
        sum += scale * (is_even ? 2.0 * level / (numel - 1.0) - 1.0
                                : (level - floor(numel / 2)) / floor(numel / 2));
        scale /= numel;
    }
    return sum;
}

static void pass_scalars(const reference *f, int i, const double *z, double *out)
{
    for (int64_t j = 0; j < DIM; j++)
        out[j] = scalar_of(f, i, j) + (bounded(f, j, z[j]) - bounded(f, j, f->u0[i][j]));
}

static double magnitude_of(const reference *f)
{
    return f->c.is_spherical ? 1.0 / sqrt(DIM) : f->c.scale;
}

/* |z - q|^2 and H(p_i), with weights as published for either. */
static double pass_signs(const reference *f, int i, const double *u, double *out)
{
    const double m = magnitude_of(f), beta = f->c.inverse_temperature;
    const bool is_bsq = f->c.is_binary_spherical;
    double square = 0.0, entropy = 0.0;
    for (int64_t j = 0; j < DIM; j++) {
        const double q = f->u0[i][j] > 0.0 ? m : -m, t = 4.0 * beta * m * u[j];
        const double p = 1.0 / (1.0 + exp(-t)), n = 1.0 / (1.0 + exp(t));
        out[j] = u[j] + (q - f->u0[i][j]);
        square += (u[j] - q) * (u[j] - q);
        entropy -= p * log(p) + n * log(n);
    }
    return f->c.commitment * (is_bsq ? 1.0 : weight_of(f)) * square +
           f->c.entropy * f->c.confidence * entropy / (is_bsq ? beta : 2.0);
}

static double pass_values(const reference *f, int i, const double *z, double *out)
{
    const double *value = f->param[1];
    uint32_t rest = f->code[0][i];
    double loss = 0.0;
    for (int64_t j = 0; j < DIM; j++) {
        const uint32_t numel = (uint32_t)f->c.axis_level[j];
        const double v = value[rest % numel], z0 = f->u0[i][j];
        double *q0 = (double *)(uintptr_t)&f->q0[i][j];
        if (!f->is_held)
            *q0 = v;
        out[j] = z[j] + (*q0 - z0);
        loss +=
            weight_of(f) * ((v - z0) * (v - z0) + f->c.commitment * (*q0 - z[j]) * (*q0 - z[j]));
        rest /= numel;
        value += numel;
    }
    return loss;
}

/* Codes of length 1 that nothing moves. */
static double pass_fixed(const reference *f, int i, double *out)
{
    for (int g = 0; g < 2; g++) {
        code_of(f, g, f->code[g][i], out + g * f->shape.dim);
        make_unit(out + g * f->shape.dim, f->shape.dim);
    }
    return 0.0;
}

static double quantize(reference *f, int i, const double *u, double *out)
{
    switch (f->c.kind) {
    case TESS_QUANTIZER_CODES:
    case TESS_QUANTIZER_MAPPED_CODES:
        return pass_codes(f, i, u, out);
    case TESS_QUANTIZER_PROJECTED:
        return pass_fixed(f, i, out);
    case TESS_QUANTIZER_SCALARS:
        pass_scalars(f, i, u, out);
        return 0.0;
    case TESS_QUANTIZER_SIGNS:
        return pass_signs(f, i, u, out);
    case TESS_QUANTIZER_VALUES:
        break;
    }
    return pass_values(f, i, u, out);
}

/* Sum over groups of H(mean p), p over all codes by the definition. */
static double mean_entropy(double u[ROWS][DIM], const reference *f)
{
    double sum = 0.0;
    for (int g = 0; g < 2; g++)
        for (int c = 0; c < GROUP_CODES; c++) {
            double mean = 0.0;
            for (int i = 0; i < ROWS; i++) {
                double p = f->is_masked[i] ? 0.0 : 1.0;
                for (int j = 0; j < DIM / 2; j++) {
                    const double t =
                        4.0 * f->c.inverse_temperature * magnitude_of(f) * u[i][3 * g + j];
                    p /= 1.0 + exp((c >> (2 - j) & 1) != 0 ? -t : t);
                }
                mean += p / f->valid_numel;
            }
            sum -= mean * log(mean);
        }
    return sum;
}

static double orthogonal_loss(const reference *f)
{
    double sum = 0.0, code[CODES][DIM];
    for (int b = 0; b < f->shape.book_numel; b++) {
        for (uint32_t k = 0; k < CODES; k++) {
            code_of(f, b, k, code[k]);
            make_unit(code[k], f->shape.dim);
        }
        for (int k = 0; k < CODES; k++)
            for (int l = 0; l < CODES; l++)
                sum += pow(dot(code[k], code[l], f->shape.dim), 2.0) / (CODES * CODES);
        sum -= 1.0 / CODES;
    }
    return f->c.orthogonal * sum * f->c.level_numel / f->shape.book_numel; /* a mean over heads */
}

/* Mean 0 and variance 1 in front of a fixed projection. */
static void normalize(const double *x, double *out)
{
    double mean = 0.0, variance = 0.0;
    for (int j = 0; j < D; j++)
        mean += x[j] / D;
    for (int j = 0; j < D; j++)
        variance += (x[j] - mean) * (x[j] - mean) / D;
    for (int j = 0; j < D; j++)
        out[j] = (x[j] - mean) / sqrt(variance + 1e-5);
}

static double total_loss(reference *f)
{
    const bool is_signs = f->c.kind == TESS_QUANTIZER_SIGNS;
    const double *decoder = f->param[f->param_numel - 1];
    double u[ROWS][DIM], sum = 0.0;
    for (int i = 0; i < ROWS; i++) {
        double out[DIM], x[D];
        memcpy(x, f->x[i], sizeof x);
        if (f->is_masked[i])
            continue;
        if (f->c.kind == TESS_QUANTIZER_PROJECTED)
            normalize(f->x[i], x);
        for (int j = 0; j < DIM; j++)
            u[i][j] = dot(f->param[0] + j * D, x, D);
        for (int g = 0; g < 2 && f->c.is_spherical; g++)
            if (!is_signs)
                make_unit(u[i] + g * f->shape.dim, f->shape.dim);
        if (f->c.is_spherical && is_signs)
            make_unit(u[i], DIM);
        if (!f->is_held)
            memcpy(f->u0[i], u[i], sizeof u[i]);
        sum += quantize(f, i, u[i], out);
        for (int j = 0; j < D; j++)
            sum +=
                pow(dot(decoder + j * DIM, out, DIM) - f->x[i][j], 2.0) / (f->c.is_sum ? 1.0 : D);
    }
    if (f->c.orthogonal > 0.0)
        sum += f->valid_numel * orthogonal_loss(f);
    if (is_signs)
        sum -= f->valid_numel * f->c.entropy * f->c.diversity * mean_entropy(u, f) /
               (f->c.is_binary_spherical ? f->c.inverse_temperature : 2.0);
    return sum;
}

/* ---- comparison ---- */

static void open_reference(stage_chain *c, reference *f)
{
    const tess_rng rng = tess_rng_make(9, TESS_RNG_TEST, 1, 0);
    f->param_numel = c->reg.param_numel;
    assert_true(f->param_numel <= PARAM_MAX);
    for (int i = 0; i < c->reg.param_numel; i++) {
        const tess_param *p = &c->reg.param[i];
        void *memory = NULL;
        expect_ok(tess_alloc_array(p->numel, sizeof(double), &memory));
        f->param[i] = memory;
        for (int64_t k = 0; k < p->numel; k++)
            f->param[i][k] = (double)stage_chain_master(c, p->name)[k];
    }
    f->valid_numel = ROWS;
    for (int i = 0; i < ROWS * D; i++)
        f->x[i / D][i % D] = (double)(float)tess_rng_normal(&rng, (uint64_t)i);
}

/* Rows 1 and 4, which then have numbers that would be seen in any sum. */
static void mask_rows(reference *f, tess_vector_batch *batch, float *x)
{
    static uint8_t valid[ROWS];
    static uint32_t own[ROWS];
    batch->valid = valid;
    batch->own = own;
    batch->valid_numel = f->valid_numel = ROWS - 2;
    for (int i = 0; i < ROWS; i++) {
        f->is_masked[i] = i == 1 || i == 4;
        valid[i] = !f->is_masked[i];
        own[i] = f->is_masked[i] ? TESS_NO_CODE : (uint32_t)i;
        for (int j = 0; j < D && f->is_masked[i]; j++)
            x[i * D + j] = 1e3f * (float)(1 + j);
    }
}

/* What a masked vector leaves: no code, no squares. */
static void check_masked(const reference *f, const double *square)
{
    for (int t = 0; t <= f->shape.index_numel; t++)
        for (int i = 0; i < ROWS; i++) {
            if (!f->is_masked[i])
                continue;
            assert_true(square[t * ROWS + i] == 0.0);
            if (t > 0)
                assert_int_equal(f->code[t - 1][i], TESS_NO_CODE);
        }
}

/* A step of one micro-batch: the mean assignment first, where it is wanted. */
static void train(stage_chain *c, const reference *f, tess_vector_batch *batch, double *loss)
{
    static int64_t sum[2 * GROUP_CODES];
    static double slope[2 * GROUP_CODES], value;
    tess_stream s = c->stream;
    batch->step_numel = f->valid_numel;
    if (f->shape.mean_numel > 0) {
        double ignored = 0.0;
        memset(sum, 0, sizeof sum);
        batch->mean_sum = sum;
        expect_ok(stage_chain_eval(c, batch, &ignored));
        batch->mean_sum = NULL;
        value = 0.0;
        for (int g = 0; g < 2; g++) {
            double entropy = 0.0;
            const tess_quantizer_batch_entropy_args a = {
                .sum = sum + g * GROUP_CODES,
                .dim = f->shape.dim,
                .valid_numel = f->valid_numel,
                .exponent = tess_rqvae_mean_exponent(f->valid_numel),
                .least = 1e-5,
                .loss = &entropy,
                .slope = slope + g * GROUP_CODES};
            expect_ok(tess_kernels_cpu.quantizers->batch_entropy(&a, &s));
            value += entropy;
        }
        batch->mean_slope = slope;
        batch->mean_value = &value;
    }
    expect_ok(stage_chain_train(c, batch, 1.0f / (float)f->valid_numel, loss));
}

/* Norm of the difference over the norm of the tensor's gradient. */
static double grad_error(reference *f, stage_chain *c, int param_idx)
{
    static const double step = 1e-6;
    const tess_param *p = &c->reg.param[param_idx];
    const float *grad = stage_chain_grad(c, p->name);
    double difference = 0.0, norm = 0.0;
    for (int64_t k = 0; k < p->numel; k++) {
        double *at = &f->param[param_idx][k], loss[2];
        const double middle = *at;
        for (int side = 0; side < 2; side++) {
            *at = middle + (side == 0 ? step : -step);
            loss[side] = total_loss(f);
        }
        *at = middle;
        const double expected = (loss[0] - loss[1]) / (2.0 * step) / f->valid_numel;
        difference += (grad[k] - expected) * (grad[k] - expected);
        norm += expected * expected;
    }
    assert_true(norm > 0.0);
    return sqrt(difference / norm);
}

/* f32: at most 8 layers and edges on a path, each sum of at most 9 products: 8 (9 + 2) 2^-24, 5e-6
 * of the terms; 16 times that for cancellation among terms of opposite sign. */
static void check_kind(int kind, bool is_masked)
{
    static const double bound = 1e-4;
    static reference f;
    float x[ROWS * D];
    double loss = 0.0, square[(1 + INDEX_MAX) * ROWS];
    f = (reference){.c = kinds[kind]};
    stage_chain c = open_chain(&f.c);
    expect_ok(tess_quantizer_shape_make(&f.c, &f.shape));
    open_reference(&c, &f);
    for (int i = 0; i < ROWS * D; i++)
        x[i] = (float)f.x[i / D][i % D];
    tess_vector_batch batch = {.vector_numel = ROWS, .x = x, .code = f.code[0], .square = square};
    if (is_masked)
        mask_rows(&f, &batch, x);
    train(&c, &f, &batch, &loss);
    check_masked(&f, square);
    const double expected = total_loss(&f);
    f.is_held = true;
    if (!(fabs(loss - expected) <= bound * fabs(expected)))
        fail_msg("kind %d: loss is %.9g, expected %.9g", kind, loss, expected);
    for (int i = 0; i < c.reg.param_numel; i++) {
        if (c.reg.param[i].learning_rate_ratio == 0.0)
            continue;
        const double error = grad_error(&f, &c, i);
        if (!(error <= bound))
            fail_msg("kind %d, %s: gradient is %g away, bound %g", kind, c.reg.param[i].name, error,
                     bound);
    }
    for (int i = 0; i < c.reg.param_numel; i++)
        tess_free(f.param[i]);
    stage_chain_fini(&c);
}

static void test_gradients_match_differences(void **state)
{
    (void)state;
    for (int kind = 0; kind < TESS_NELEM(kinds); kind++)
        check_kind(kind, false);
}

static void test_masked_vectors_have_no_part(void **state)
{
    (void)state;
    for (int kind = 0; kind < TESS_NELEM(kinds); kind++)
        check_kind(kind, true);
}

/* Every kind hands a number that is none to the loss and to gradients, which the trainer looks at:
 * nothing aborts. */
static void test_nan_is_seen_and_not_refused(void **state)
{
    (void)state;
    for (int kind = 0; kind < TESS_NELEM(kinds); kind++) {
        static reference f;
        float x[ROWS * D] = {0};
        double loss = 0.0;
        f = (reference){.c = kinds[kind], .valid_numel = ROWS};
        stage_chain c = open_chain(&f.c);
        expect_ok(tess_quantizer_shape_make(&f.c, &f.shape));
        x[D + 2] = NAN;
        tess_vector_batch batch = {.vector_numel = ROWS, .x = x, .code = f.code[0]};
        train(&c, &f, &batch, &loss);
        assert_true(isnan(loss));
        assert_true(isnan(stage_chain_grad(&c, c.reg.param[0].name)[2]));
        stage_chain_fini(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_gradients_match_differences),
                                       cmocka_unit_test(test_masked_vectors_have_no_part),
                                       cmocka_unit_test(test_nan_is_seen_and_not_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
