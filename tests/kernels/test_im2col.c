/* Patches of images and their sums, against loops over their definition: every bit, on every path.
 */
#include "tests/kernels/op_support.h"

typedef struct problem {
    tess_patch_shape shape;
    op_buffer image, patches, bias;
    bool has_bias;
} problem;

static int64_t height_of(const problem *p) { return tess_patch_numel(&p->shape, p->shape.height); }
static int64_t width_of(const problem *p) { return tess_patch_numel(&p->shape, p->shape.width); }

static problem open_problem(tess_dtype dt, tess_patch_shape shape)
{
    problem p = {.shape = shape};
    const int64_t channels = shape.sample_numel * shape.channel_numel;
    p.image = buffer_random(dt, channels * shape.height * shape.width, 3, 1.0);
    p.patches = buffer_random(
        dt, channels * height_of(&p) * width_of(&p) * shape.kernel * shape.kernel, 4, 1.0);
    p.bias = buffer_random(TESS_F32, shape.channel_numel, 5, 1.0);
    return p;
}

static void close_problem(problem *p)
{
    buffer_destroy(&p->image);
    buffer_destroy(&p->patches);
    buffer_destroy(&p->bias);
}

/* Where element (ky, kx, c) of a patch lies in the image; -1: outside. */
static int64_t pixel_at(const tess_patch_shape *s, const int64_t at[6])
{
    const int64_t y = at[1] * s->stride - s->pad + at[3], x = at[2] * s->stride - s->pad + at[4];
    const bool is_inside = y >= 0 && y < s->height && x >= 0 && x < s->width;
    return is_inside ? ((at[0] * s->height + y) * s->width + x) * s->channel_numel + at[5] : -1;
}

/* Sample, row, column, ky, kx and channel of element `i` of the patches. */
static void split(const problem *p, int64_t i, int64_t at[6])
{
    const int64_t extent[6] = {p->shape.sample_numel, height_of(p),    width_of(p),
                               p->shape.kernel,       p->shape.kernel, p->shape.channel_numel};
    for (int d = 5; d >= 0; i /= extent[d--])
        at[d] = i % extent[d];
}

static tess_status call_im2col(void *ctx, tess_stream *s)
{
    problem *p = ctx;
    const tess_im2col_args a = {p->shape, p->image.view, p->patches.view};
    return tess_cpu_im2col(&a, s);
}

static void check_im2col(void *ctx)
{
    problem *p = ctx;
    int64_t at[6];
    for (int64_t i = 0; i < p->patches.view.numel; i++) {
        split(p, i, at);
        const int64_t from = pixel_at(&p->shape, at);
        assert_true(p->patches.value[i] == (from < 0 ? 0.0 : p->image.value[from]));
    }
}

static tess_status call_col2im(void *ctx, tess_stream *s)
{
    problem *p = ctx;
    tess_col2im_args a = {.shape = p->shape, .patches = p->patches.view, .image = p->image.view};
    if (p->has_bias)
        a.bias = p->bias.view;
    return tess_cpu_col2im(&a, s);
}

/* Element (ky, kx) of all patches in turn: the order of a pixel's sum. */
static void check_col2im(void *ctx)
{
    problem *p = ctx;
    const int64_t channels = p->shape.channel_numel, taps = p->shape.kernel * p->shape.kernel;
    const int64_t rows = p->patches.view.numel / taps / channels;
    op_buffer want = buffer_create(TESS_F32, p->image.view.numel, false);
    float *sum = want.view.data;
    for (int64_t i = 0; i < want.view.numel; i++)
        sum[i] = p->has_bias ? (float)p->bias.value[i % channels] : 0.0f;
    for (int64_t tap = 0; tap < taps; tap++)
        for (int64_t i = 0; i < rows * channels; i++) {
            int64_t at[6];
            const int64_t from = (i / channels * taps + tap) * channels + i % channels;
            split(p, from, at);
            const int64_t pixel = pixel_at(&p->shape, at);
            if (pixel >= 0)
                sum[pixel] = sum[pixel] + (float)p->patches.value[from];
        }
    for (int64_t i = 0; i < want.view.numel; i++)
        buffer_set(&want, i,
                   p->image.view.dt == TESS_BF16 ? tess_bf16_to_f32(tess_bf16_from_f32(sum[i]))
                                                 : sum[i]);
    buffer_read(&want);
    assert_close("image", &p->image, want.value, 0.0, 0.0);
    buffer_destroy(&want);
}

/* Kernels 4 / 2 / 1, 3 / 1 / 1 and 1 / 1 / 0 of the model, and uneven ones: columns that no patch
 * reaches, a patch wider than the image, more channels than a block of the sum. */
static void test_patches_match_their_definition(void **state)
{
    (void)state;
    static const tess_patch_shape shape[] = {{2, 8, 6, 3, 4, 2, 1}, {3, 5, 4, 7, 3, 1, 1},
                                             {2, 3, 2, 5, 1, 1, 0}, {1, 7, 9, 2, 3, 4, 2},
                                             {2, 2, 1, 1, 5, 3, 4}, {1, 4, 4, 300, 4, 2, 1},
                                             {1, 1, 1, 1, 1, 1, 0}, {0, 4, 4, 2, 4, 2, 1}};
    for (int i = 0; i < 2 * TESS_NELEM(shape); i++) {
        problem p = open_problem(i & 1 ? TESS_BF16 : TESS_F32, shape[i / 2]);
        const op_run gather = {
            .call = call_im2col, .ctx = &p, .outputs = {&p.patches}, .output_numel = 1};
        const op_run sum = {
            .call = call_col2im, .ctx = &p, .outputs = {&p.image}, .output_numel = 1};
        run_everywhere(&gather, check_im2col);
        for (int bias = 0; bias < 2; bias++) {
            p.has_bias = bias != 0;
            buffer_fill(&p.patches, 7, 1.0);
            run_everywhere(&sum, check_col2im);
        }
        close_problem(&p);
    }
}

static void test_wrong_operands_are_refused(void **state)
{
    (void)state;
    float image[32], patches[64];
    const tess_im2col_args good = {{1, 4, 4, 1, 4, 2, 1},
                                   tess_view_host(image, 16, TESS_F32),
                                   tess_view_host(patches, 64, TESS_F32)};
    tess_im2col_args bad[8];
    for (int i = 0; i < TESS_NELEM(bad); i++)
        bad[i] = good;
    bad[0].shape.stride = 0;
    bad[1].shape.pad = 4;
    bad[2].shape.kernel = TESS_PATCH_KERNEL_MAX + 1;
    bad[3].shape.height = 1; /* 1 + 2 pad is less than the kernel */
    bad[4].image.numel = 32;
    bad[5].patches.numel = 32;
    bad[6].patches.dt = TESS_BF16;
    bad[7].image.data = patches;
    tess_stream s = inline_stream();
    assert_done(tess_cpu_im2col(&good, &s));
    for (int i = 0; i < TESS_NELEM(bad); i++) {
        const tess_col2im_args back = {
            .shape = bad[i].shape, .patches = bad[i].patches, .image = bad[i].image};
        assert_int_equal(tess_cpu_im2col(&bad[i], &s), i == 6 ? TESS_E_DTYPE : TESS_E_ARG);
        assert_int_equal(tess_cpu_col2im(&back, &s), i == 6 ? TESS_E_DTYPE : TESS_E_ARG);
    }
    const tess_col2im_args bias = {.shape = good.shape,
                                   .patches = good.patches,
                                   .image = good.image,
                                   .bias = tess_view_host(image + 16, 2, TESS_F32)};
    assert_int_equal(tess_cpu_col2im(&bias, &s), TESS_E_ARG);
    tess_error_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_patches_match_their_definition),
        cmocka_unit_test(test_wrong_operands_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
