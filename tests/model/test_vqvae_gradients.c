/*
 * A quantized autoencoder over images against central differences in fp64, its convolutions written
 * down pixel by pixel. Stopped gradients are held as in test_rqvae_gradients.c.
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

enum { IMAGES = 2, CHANNELS = 2, HEIGHT = 8, WIDTH = 4, HIDDEN = 6, INNER = 4, DIM = 3, CODES = 5 };
enum { PIXELS = HEIGHT * WIDTH, ELEMENTS = PIXELS * CHANNELS, PARAM_MAX = 32, BUFFER = 64 };

static void expect_ok(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s: %s\n%s", tess_status_name(st), tess_error_message(), tess_error_trace_text());
}

/* ---- the model ---- */

typedef struct choice {
    tess_dtype dt;
    int halvings, residuals;
    bool has_bias, is_recomputed;
    int thread_numel;
} choice;

static tess_rqvae_images images_of(const choice *o)
{
    return (tess_rqvae_images){.channel_numel = CHANNELS,
                               .height = HEIGHT,
                               .width = WIDTH,
                               .halving_numel = o->halvings,
                               .hidden_channel_numel = HIDDEN,
                               .residual_numel = o->residuals,
                               .residual_channel_numel = INNER};
}

static int positions_of(const choice *o)
{
    const tess_rqvae_images images = images_of(o);
    return (int)tess_rqvae_position_numel(&images);
}

static stage_chain open_chain(const choice *o)
{
    stage_chain c = {.is_recomputed = o->is_recomputed};
    const tess_rqvae_images images = images_of(o);
    const tess_rqvae_config config = {.dim = tess_rqvae_share_numel(&images),
                                      .images = images,
                                      .code_dim = DIM,
                                      .has_bias = o->has_bias,
                                      .code_numel = CODES,
                                      .level_numel = 1,
                                      .commitment = 0.25,
                                      .estimator = TESS_ESTIMATOR_STRAIGHT};
    const tess_model_options options = {.compute_dt = o->dt,
                                        .micro_batch = IMAGES * positions_of(o),
                                        .thread_numel = o->thread_numel};
    expect_ok(tess_kernels_cpu_select(tess_cpu_path_best()));
    tess_registry_init(&c.reg, o->dt);
    expect_ok(tess_rqvae_create(&config, &options, &c.reg, &c.model));
    expect_ok(stage_chain_init(&c, o->thread_numel));
    const tess_rng rng = tess_rng_make(4, TESS_RNG_TEST, 0, 0);
    for (int i = 0, at = 0; i < c.reg.param_numel; i++)
        for (int64_t k = 0; k < c.reg.param[i].numel; k++)
            stage_chain_master(&c, c.reg.param[i].name)[k] =
                (float)(0.4 * tess_rng_normal(&rng, (uint64_t)at++));
    expect_ok(stage_chain_publish(&c));
    return c;
}

static void fill_x(float x[IMAGES * ELEMENTS])
{
    const tess_rng rng = tess_rng_make(4, TESS_RNG_TEST, 1, 0);
    for (int i = 0; i < IMAGES * ELEMENTS; i++) /* values that bf16 holds */
        x[i] = tess_bf16_to_f32(tess_bf16_from_f32((float)tess_rng_normal(&rng, (uint64_t)i)));
}

/* ---- the reference ---- */

typedef struct image {
    int height, width, channels;
    double at[PIXELS * HIDDEN]; /* the largest: halved once, HIDDEN, or whole, CHANNELS */
} image;

typedef struct reference {
    const choice *o;
    const tess_registry *reg;
    double *param[PARAM_MAX];
    image x[IMAGES];
    uint32_t code[IMAGES * PIXELS];
    bool is_held; /* values behind the stops are there */
    double z0[IMAGES * PIXELS * DIM], q0[CODES * DIM];
    image y[IMAGES];
} reference;

static const double *param_of(const reference *f, const char *path, const char *what)
{
    char name[2 * BUFFER];
    snprintf(name, sizeof name, "%s.%s", path, what);
    const int idx = tess_registry_find(f->reg, name);
    if (idx < 0 && strcmp(what, "weight") == 0)
        fail_msg("there is no tensor '%s'", name);
    return idx >= 0 ? f->param[idx] : NULL;
}

static image empty(const reference *f, const char *path, int height, int width, int channels)
{
    const double *bias = param_of(f, path, "bias");
    image y = {.height = height, .width = width, .channels = channels};
    assert_true((bias != NULL) == f->o->has_bias);
    for (int i = 0; i < height * width * channels; i++)
        y.at[i] = bias != NULL ? bias[i % channels] : 0.0;
    return y;
}

/* Every pair of an output pixel and an input pixel that a tap of the kernel joins, in the direction
 * of the larger image to the smaller one. */
static image convolve(const reference *f, const char *path, const image *x, int kernel, int out)
{
    const int stride = kernel == 4 ? 2 : 1, pad = kernel > 1 ? 1 : 0;
    const double *w = param_of(f, path, "weight");
    image y = empty(f, path, x->height / stride, x->width / stride, out);
    for (int oy = 0; oy < y.height; oy++)
        for (int ox = 0; ox < y.width; ox++)
            for (int tap = 0; tap < kernel * kernel; tap++) {
                const int iy = oy * stride - pad + tap / kernel;
                const int ix = ox * stride - pad + tap % kernel;
                if (iy < 0 || ix < 0 || iy >= x->height || ix >= x->width)
                    continue;
                for (int o = 0; o < out; o++)
                    for (int i = 0; i < x->channels; i++)
                        y.at[(oy * y.width + ox) * out + o] +=
                            w[(o * kernel * kernel + tap) * x->channels + i] *
                            x->at[(iy * x->width + ix) * x->channels + i];
            }
    return y;
}

static image enlarge(const reference *f, const char *path, const image *x, int out)
{
    const double *w = param_of(f, path, "weight");
    image y = empty(f, path, 2 * x->height, 2 * x->width, out);
    for (int iy = 0; iy < x->height; iy++)
        for (int ix = 0; ix < x->width; ix++)
            for (int tap = 0; tap < 16; tap++) {
                const int oy = 2 * iy - 1 + tap / 4, ox = 2 * ix - 1 + tap % 4;
                if (oy < 0 || ox < 0 || oy >= y.height || ox >= y.width)
                    continue;
                for (int o = 0; o < out; o++)
                    for (int i = 0; i < x->channels; i++)
                        y.at[(oy * y.width + ox) * out + o] +=
                            w[(tap * out + o) * x->channels + i] *
                            x->at[(iy * x->width + ix) * x->channels + i];
            }
    return y;
}

static image relu(const image *x)
{
    image y = *x;
    for (int i = 0; i < x->height * x->width * x->channels; i++)
        y.at[i] = fmax(x->at[i], 0.0);
    return y;
}

static image blocks(const reference *f, const char *name, int layer, const image *x)
{
    image y = *x;
    for (int r = 0; r < f->o->residuals; r++) {
        char path[BUFFER];
        image in = relu(&y);
        snprintf(path, sizeof path, "%s.%d.0", name, layer + r);
        const image inner = convolve(f, path, &in, 3, INNER);
        in = relu(&inner);
        snprintf(path, sizeof path, "%s.%d.1", name, layer + r);
        const image branch = convolve(f, path, &in, 1, HIDDEN);
        for (int i = 0; i < y.height * y.width * HIDDEN; i++)
            y.at[i] += branch.at[i];
    }
    return relu(&y);
}

static image encode(const reference *f, const image *x)
{
    char path[BUFFER];
    image h = *x;
    for (int l = 0; l < f->o->halvings; l++) {
        snprintf(path, sizeof path, "encoder.%d", l);
        h = l > 0 ? relu(&h) : h;
        h = convolve(f, path, &h, 4, HIDDEN);
    }
    h = blocks(f, "encoder", f->o->halvings, &h);
    snprintf(path, sizeof path, "encoder.%d", f->o->halvings + f->o->residuals);
    return convolve(f, path, &h, 1, DIM);
}

static image decode(const reference *f, const image *q)
{
    char path[BUFFER];
    image h = convolve(f, "decoder.0", q, 1, HIDDEN);
    h = blocks(f, "decoder", 1, &h);
    for (int l = 0; l < f->o->halvings; l++) {
        snprintf(path, sizeof path, "decoder.%d", 1 + f->o->residuals + l);
        h = l > 0 ? relu(&h) : h;
        h = enlarge(f, path, &h, l + 1 == f->o->halvings ? CHANNELS : HIDDEN);
    }
    return h;
}

/* Means over the elements of an image and over those of its latent, times its positions. */
static double image_loss(reference *f, int i)
{
    const int positions = positions_of(f->o);
    const double *codes = param_of(f, "quantizer.0", "codes");
    double loss = 0.0, *z0 = f->z0 + i * positions * DIM;
    image z = encode(f, &f->x[i]), in = z;
    if (!f->is_held) {
        memcpy(z0, z.at, (size_t)(positions * DIM) * sizeof *z0);
        memcpy(f->q0, codes, sizeof f->q0);
    }
    for (int p = 0; p < positions; p++)
        for (int j = 0; j < DIM; j++) {
            const int at = p * DIM + j;
            const uint32_t from = f->code[i * positions + p] * DIM + (uint32_t)j;
            const double q = codes[from], held = f->q0[from];
            in.at[at] = z.at[at] + (held - z0[at]);
            loss +=
                ((q - z0[at]) * (q - z0[at]) + 0.25 * (held - z.at[at]) * (held - z.at[at])) / DIM;
        }
    f->y[i] = decode(f, &in);
    for (int k = 0; k < ELEMENTS; k++)
        loss += (f->y[i].at[k] - f->x[i].at[k]) * (f->y[i].at[k] - f->x[i].at[k]) * positions /
                ELEMENTS;
    return loss;
}

static double total_loss(reference *f)
{
    double sum = 0.0;
    for (int i = 0; i < IMAGES; i++)
        sum += image_loss(f, i);
    return sum;
}

static void open_reference(const choice *o, stage_chain *c, const float *x, const uint32_t *code,
                           reference *f)
{
    memset(f, 0, sizeof *f);
    f->o = o;
    f->reg = &c->reg;
    assert_true(c->reg.param_numel <= PARAM_MAX);
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
    for (int i = 0; i < IMAGES; i++) {
        f->x[i] = (image){.height = HEIGHT, .width = WIDTH, .channels = CHANNELS};
        for (int k = 0; k < ELEMENTS; k++)
            f->x[i].at[k] = x[i * ELEMENTS + k];
    }
    memcpy(f->code, code, (size_t)(IMAGES * positions_of(o)) * sizeof *code);
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
        const double expected = (loss[0] - loss[1]) / (2.0 * step) / (IMAGES * positions_of(f->o));
        difference += (grad[k] - expected) * (grad[k] - expected);
        norm += expected * expected;
    }
    if (!(norm > 0.0))
        fail_msg("%s has no gradient: not a test of it", p->name);
    return sqrt(difference / norm);
}

static double distance(const float *a, const double *b, int64_t numel)
{
    double difference = 0.0, norm = 0.0;
    for (int64_t i = 0; i < numel; i++) {
        difference += (a[i] - b[i]) * (a[i] - b[i]);
        norm += b[i] * b[i];
    }
    return sqrt(difference / norm);
}

/*
 * f32: at most 9 convolutions on a path and as many back, each sum of at most 16 * 6 products:
 * 18 * 98 * 2^-24, about 1e-4 of the terms; a factor of 4 for cancellation. Differences are good to
 * 1e-8. bf16: 2^-9 where a value is stored; the longest path stores 15 times forward (a transposed
 * convolution and a residual block's sum twice) and as often back, a factor of 2 for cancellation.
 */
static void check_gradients(const choice *o)
{
    const int rows = IMAGES * positions_of(o);
    const double bound = o->dt == TESS_F32 ? 4e-4 : 60.0 / 512.0;
    float x[IMAGES * ELEMENTS], y[IMAGES * ELEMENTS], latent[IMAGES * PIXELS * DIM];
    uint32_t code[IMAGES * PIXELS];
    double loss = 0.0, eval = 0.0;
    stage_chain c = open_chain(o);
    static reference f;
    fill_x(x);
    const tess_vector_batch batch = {.vector_numel = rows, .x = x, .code = code};
    expect_ok(stage_chain_train(&c, &batch, 1.0f / (float)rows, &loss));
    const tess_vector_batch whole = {
        .vector_numel = rows, .x = x, .code = code, .latent = latent, .y = y};
    expect_ok(stage_chain_eval(&c, &whole, &eval));
    assert_memory_equal(&loss, &eval, sizeof loss);
    open_reference(o, &c, x, code, &f);
    const double expected = total_loss(&f);
    f.is_held = true;
    assert_true(fabs(loss - expected) <= bound * expected);
    assert_true(distance(latent, f.z0, rows * DIM) <= bound);
    for (int i = 0; i < IMAGES; i++)
        assert_true(distance(y + i * ELEMENTS, f.y[i].at, ELEMENTS) <= bound);
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
    for (int i = 0; i < 16; i++) {
        const choice o = {.dt = i & 1 ? TESS_BF16 : TESS_F32,
                          .halvings = i & 2 ? 2 : 1,
                          .residuals = i & 4 ? 2 : 0,
                          .has_bias = (i & 8) != 0,
                          .thread_numel = 1};
        check_gradients(&o);
    }
}

/* ---- same bits ---- */

static void expect_same(const choice *a, const choice *b)
{
    float x[IMAGES * ELEMENTS];
    double loss[2] = {0.0, 0.0};
    const choice *o[2] = {a, b};
    stage_chain c[2];
    fill_x(x);
    const tess_vector_batch batch = {.vector_numel = IMAGES * positions_of(a), .x = x};
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
                              .halvings = 2,
                              .residuals = 1,
                              .has_bias = true,
                              .thread_numel = 1};
        choice other = plain;
        other.is_recomputed = true;
        expect_same(&plain, &other);
        other.thread_numel = 2;
        expect_same(&plain, &other);
    }
}

/* A ragged micro-batch of evaluation is its images and nothing else; half an image is refused. */
static void test_fewer_images_give_their_own_part(void **state)
{
    (void)state;
    const choice o = {.dt = TESS_F32, .halvings = 1, .residuals = 1, .thread_numel = 1};
    const int positions = positions_of(&o);
    float x[IMAGES * ELEMENTS], all[IMAGES * ELEMENTS], one[ELEMENTS];
    double loss = 0.0;
    stage_chain c = open_chain(&o);
    fill_x(x);
    const tess_vector_batch whole = {.vector_numel = IMAGES * positions, .x = x, .y = all};
    const tess_vector_batch last = {.vector_numel = positions, .x = x + ELEMENTS, .y = one};
    const tess_vector_batch half = {.vector_numel = positions / 2, .x = x};
    expect_ok(stage_chain_eval(&c, &whole, &loss));
    expect_ok(stage_chain_eval(&c, &last, &loss));
    assert_memory_equal(one, all + ELEMENTS, sizeof one);
    assert_int_equal(stage_chain_eval(&c, &half, &loss), TESS_E_ARG);
    tess_error_clear();
    stage_chain_fini(&c);
}

static tess_kernels without_convolutions(void)
{
    tess_kernels k = tess_kernels_cpu;
    k.name = "other";
    k.im2col = NULL;
    k.col2im = NULL;
    return k;
}

static void test_wrong_sizes_are_refused(void **state)
{
    (void)state;
    const tess_kernels other = without_convolutions();
    static const char *const word[] = {
        "not halved 3 times",          "quantizer.downsample: expected 1",
        "quantizer.channels",          "quantizer.residual_blocks",
        "quantizer.residual_channels", "no convolutions on other"};
    for (int i = 0; i < TESS_NELEM(word); i++) {
        const choice o = {.halvings = i == 0 ? 3 : i == 1 ? 0 : 1};
        tess_rqvae_images images = images_of(&o);
        images.hidden_channel_numel = i == 2 ? 0 : HIDDEN;
        images.residual_numel = i == 3 ? 17 : 1;
        images.residual_channel_numel = i == 4 ? 0 : INNER;
        const tess_rqvae_config config = {.dim = tess_rqvae_share_numel(&images),
                                          .images = images,
                                          .code_dim = DIM,
                                          .code_numel = CODES,
                                          .level_numel = 1};
        const tess_model_options options = {.compute_dt = TESS_F32,
                                            .micro_batch = 64,
                                            .thread_numel = 1,
                                            .kernels = i == 5 ? &other : NULL};
        tess_registry reg;
        tess_model *model = NULL;
        tess_registry_init(&reg, TESS_F32);
        assert_true(tess_rqvae_create(&config, &options, &reg, &model) != TESS_OK);
        if (strstr(tess_error_message(), word[i]) == NULL)
            fail_msg("message '%s' lacks '%s'", tess_error_message(), word[i]);
        tess_error_clear();
        tess_registry_fini(&reg);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients_match_differences),
        cmocka_unit_test(test_recomputation_and_threads_give_the_same_bits),
        cmocka_unit_test(test_fewer_images_give_their_own_part),
        cmocka_unit_test(test_wrong_sizes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
