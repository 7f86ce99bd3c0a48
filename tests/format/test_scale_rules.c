/* The rules that choose scale and shift of int2, on the weights of examples/base. */
#include <math.h>

#include "core/codec.h"
#include "format/model_dir.h"
#include "format_test.h"
#include "kernels/elementwise.h"
#include "kernels/kernels.h"

enum { NUMEL_MAX = 704 * 256 };

typedef struct sums {
    double error, all;
} sums;

/* Squared error of one weight in this format, and its squares, added to `to`. */
static void add(const tess_codec *codec, const uint16_t *x, int64_t numel, sums *to)
{
    static _Alignas(16) char bytes[TESS_CODEC_PART_MAX][NUMEL_MAX];
    static float y[NUMEL_MAX];
    tess_quantize_args q = {.codec = *codec,
                            .src = tess_view_host((void *)(uintptr_t)x, numel, TESS_BF16),
                            .tensor_name = "w"};
    tess_dequantize_args d = {.codec = *codec, .dst = tess_view_host(y, numel, TESS_F32)};
    tess_stream stream;
    tess_stream_init_inline(&stream, "test", NULL);
    for (int i = 0; i < TESS_CODEC_PART_MAX; i++)
        d.part[i] = q.part[i] = bytes[i];
    assert_ok(tess_kernels_cpu.quantize(&q, &stream));
    assert_ok(tess_kernels_cpu.dequantize(&d, &stream));
    for (int64_t i = 0; i < numel; i++) {
        const double value = (double)tess_bf16_to_f32(x[i]), off = value - (double)y[i];
        to->error += off * off;
        to->all += value * value;
    }
}

/* Relative RMS error of all linear layers whose rows 128 divides. */
static double error_of(const tess_model_dir *dir, tess_scale_rule rule)
{
    static uint16_t x[NUMEL_MAX];
    sums s = {0};
    int seen = 0;
    for (int64_t i = 0; i < tess_model_dir_tensor_numel(dir); i++) {
        const tess_model_tensor *t = tess_model_dir_at(dir, i);
        const tess_codec codec = {
            .format = TESS_FORMAT_QINT2, .block_numel = 128, .scale_dt = TESS_BF16, .rule = rule};
        if (strstr(t->name, "_proj.weight") == NULL || t->st->dim[1] % 128 != 0)
            continue;
        assert_true(t->st->numel <= NUMEL_MAX && t->st->dtype == TESS_ST_BF16);
        assert_ok(tess_model_dir_read(dir, t, 0, (size_t)t->st->nbytes, x));
        add(&codec, x, t->st->numel, &s);
        seen++;
    }
    assert_int_equal(seen, 5 * 6);
    return sqrt(s.error / s.all);
}

static void test_searched_scales_have_less_error_on_the_example(void **state)
{
    const fixture *f = *state;
    const tess_ctx ctx = {.io = f->io};
    tess_model_dir *dir = NULL;
    assert_ok(tess_model_dir_open(&ctx, TESS_TEST_SOURCE_DIR "/examples/base", &dir));
    const double minmax = error_of(dir, TESS_SCALE_RULE_MINMAX);
    const double mse = error_of(dir, TESS_SCALE_RULE_MSE), hqq = error_of(dir, TESS_SCALE_RULE_HQQ);
    printf("relative RMS error: minmax %.4f, mse %.4f, hqq %.4f\n", minmax, mse, hqq);
    assert_true(minmax > 0.3 && minmax < 0.7);
    assert_true(mse <= 0.8 * minmax && hqq <= 0.8 * minmax);
    tess_model_dir_close(&dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        format_test(test_searched_scales_have_less_error_on_the_example),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
