/*
 * What holds for the encoder of every format, on every instruction path: codes keep the order of
 * the values in a block (a code that wraps would not), the error has the bound of the format, bytes
 * depend on neither threads nor the dtype that an exact source comes in, and what cannot be held is
 * refused by name.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/arith.h"
#include "core/pool.h"
#include "core/rng.h"
#include "kernels/cpu/cpu_priv.h"
#include "kernels/elementwise.h"
#include "kernels/kernels.h"

enum { ROWS = 3, COLS_MAX = 256, NUMEL_MAX = ROWS * COLS_MAX, NBYTES_MAX = 4 * NUMEL_MAX };

/*
 * `bound`: error over the largest magnitude of a block, 0: none (searched scales clip, raw fp8
 * saturates, a double quantization changes scales). Half a step: nf4 0.152, fp4 1/6, int8 types
 * 0.5/127, q4_0 a whole step of 1/8 at the other end, qint4 a fifteenth of a span of two, qint2 a
 * third, e4m3 2^-4, e5m2 2^-3 of the value; and what scales and values lose to their dtype: 2^-9
 * for bf16 in four roundings, so 1/64 where it is bf16 and nothing to speak of elsewhere.
 */
static const struct {
    const char *text; /* %d: the row length, or a divisor where blocks need one */
    double bound;
    int cols_multiple;
} formats[] = {
    {"nf4/64", 0.153, 1},
    {"nf4/32/double", 0.0, 1},
    {"fp4/128", 0.168, 1},
    {"int8/%d", 0.5 / 127 + 0x1p-10, 1},
    {"f16", 0x1p-11, 1},
    {"q8_0", 0.5 / 127 + 0x1p-10, 32},
    {"q4_0", 0.126, 32},
    {"qint8/row/f32", 0.5 / 127 + 1e-6, 1},
    {"qint8/row/bf16", 0.5 / 127 + 0x1p-6, 1},
    {"qint8/row/f16", 0.5 / 127 + 0x1p-9, 1},
    {"qfloat8/row/bf16", 0x1p-4 + 0x1p-6, 1},
    {"qfloat8_e5m2/row/f32", 0x1p-3 + 1e-6, 1},
    {"qint4/%d/f32", 1.0 / 15 + 1e-6, 1},
    {"qint4/%d/bf16", 1.0 / 15 + 0x1p-6, 1},
    {"qint4/%d/f16/mse", 0.0, 1},
    {"qint4/%d/bf16/hqq", 0.0, 1},
    {"qint2/%d/f32", 1.0 / 3 + 1e-6, 1},
    {"qint2/%d/bf16", 1.0 / 3 + 0x1p-6, 1},
    {"qint2/%d/bf16/mse", 0.0, 1},
    {"qint2/%d/f32/hqq", 0.0, 1},
    {"e4m3/raw", 0.0, 1},
    {"e5m2/raw", 0.0, 1},
    {"e4m3/row/dequant_scale", 0x1p-4 + 1e-6, 1},
    {"e5m2/tensor/dequant_scale", 0x1p-3 + 1e-6, 1},
    {"e4m3/tensor/quant_scale", 0x1p-4 + 1e-6, 1},
    {"e4m3/row/quant_scale", 0x1p-4 + 1e-6, 1},
};

typedef struct problem {
    tess_codec codec;
    double bound;
    int64_t numel, block_numel; /* elements that share a scale */
    float x[NUMEL_MAX], y[NUMEL_MAX];
    _Alignas(16) char bytes[TESS_CODEC_PART_MAX][NBYTES_MAX];
} problem;

static tess_pool *three; /* threads */

static tess_status encode(problem *p, tess_dtype dt, int thread_numel)
{
    static uint16_t half[NUMEL_MAX];
    static float work[NUMEL_MAX];
    tess_stream stream;
    tess_quantize_args a = {.codec = p->codec,
                            .src = tess_view_host(p->x, p->numel, TESS_F32),
                            .absmax_work = work,
                            .tensor_name = "blk.weight"};
    for (int64_t i = 0; i < p->numel; i++)
        half[i] = tess_bf16_from_f32(p->x[i]);
    if (dt == TESS_BF16)
        a.src = tess_view_host(half, p->numel, TESS_BF16);
    memset(p->bytes, 0, sizeof p->bytes);
    for (int i = 0; i < TESS_CODEC_PART_MAX; i++)
        a.part[i] = p->bytes[i];
    tess_stream_init_inline(&stream, "test", thread_numel > 1 ? three : NULL);
    tess_error_clear();
    return tess_kernels_cpu.quantize(&a, &stream);
}

static void decode(problem *p)
{
    tess_dequantize_args a = {
        .codec = p->codec, .numel = p->numel, .dst = tess_view_host(p->y, p->numel, TESS_F32)};
    for (int i = 0; i < TESS_CODEC_PART_MAX; i++)
        a.part[i] = p->bytes[i];
    assert_int_equal(tess_kernels_cpu.dequantize(&a, NULL), TESS_OK);
}

static bool prepare(problem *p, int format_idx, int64_t rows, int64_t cols)
{
    char text[64];
    const int64_t group = cols % 3 == 0 ? cols / 3 : cols;
    if (cols % formats[format_idx].cols_multiple != 0)
        return false;
    const bool is_grouped = strncmp(formats[format_idx].text, "qint4", 5) == 0 ||
                            strncmp(formats[format_idx].text, "qint2", 5) == 0;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(text, sizeof text, formats[format_idx].text, (int)(is_grouped ? group : cols));
#pragma GCC diagnostic pop
    assert_int_equal(tess_codec_parse(text, cols, &p->codec), TESS_OK);
    p->bound = formats[format_idx].bound;
    p->numel = rows * cols;
    p->block_numel = p->codec.block_numel > 0 ? p->codec.block_numel : p->numel;
    return true;
}

static void blame(const problem *p, int64_t i, const char *what)
{
    char text[TESS_CODEC_TEXT_NBYTES];
    tess_codec_describe(&p->codec, text);
    fail_msg("%s, %lld elements on path %s: %s: element %lld of %.9g became %.9g", text,
             (long long)p->numel, tess_cpu_path_name(tess_cpu_path_current()), what, (long long)i,
             (double)p->x[i], (double)p->y[i]);
}

/* Order and error of every block. */
static void check_blocks(const problem *p)
{
    for (int64_t first = 0; first < p->numel; first += p->block_numel) {
        const int64_t end = TESS_MIN(first + p->block_numel, p->numel);
        double amax = 0.0;
        int64_t top = first, bottom = first;
        for (int64_t i = first; i < end; i++) {
            amax = fmax(amax, fabs((double)p->x[i]));
            top = p->x[i] > p->x[top] ? i : top;
            bottom = p->x[i] < p->x[bottom] ? i : bottom;
        }
        for (int64_t i = first; i < end; i++) {
            if (!isfinite(p->y[i]))
                blame(p, i, "is not finite");
            if (p->y[i] > p->y[top] || p->y[i] < p->y[bottom])
                blame(p, p->y[i] > p->y[top] ? top : bottom, "a code wraps");
            if (p->bound > 0.0 && fabs((double)p->x[i] - (double)p->y[i]) > p->bound * amax)
                blame(p, i, "beyond the bound");
        }
    }
}

/* Encode from both dtypes (values are exact in bf16), bf16 on `thread_numel` threads: the same
 * bytes; then look at every block. */
static void check_on(problem *p, int thread_numel)
{
    static char before[TESS_CODEC_PART_MAX][NBYTES_MAX];
    assert_int_equal(encode(p, TESS_F32, 1), TESS_OK);
    memcpy(before, p->bytes, sizeof before);
    assert_int_equal(encode(p, TESS_BF16, thread_numel), TESS_OK);
    if (memcmp(before, p->bytes, sizeof before) != 0) /* at once; then where, byte by byte */
        assert_memory_equal(before, p->bytes, sizeof before);
    decode(p);
    check_blocks(p);
}

static void check(problem *p) { check_on(p, 3); }

static void fill(problem *p, uint32_t stream, float scale)
{
    const tess_rng rng = tess_rng_make(11, TESS_RNG_TEST, stream, 0);
    tess_rng_normal_fill(&rng, 0, p->numel, scale, p->x);
    for (int64_t i = 0; i < p->numel; i++)
        p->x[i] = tess_bf16_to_f32(tess_bf16_from_f32(p->x[i]));
}

/* Rows of whole blocks, one element short of a block, and a ragged last one. */
static const int64_t cols_of[] = {64, 63, 33, 256, 65, 1, 96};

static void for_each(void (*body)(problem *p))
{
    static problem p;
    for (int path = TESS_CPU_PORTABLE; path <= (int)tess_cpu_path_highest(); path++) {
        assert_int_equal(tess_kernels_cpu_select((tess_cpu_path)path), TESS_OK);
        for (int f = 0; f < TESS_NELEM(formats); f++)
            for (int k = 0; k < TESS_NELEM(cols_of); k++)
                for (int64_t rows = 1; rows <= ROWS; rows++)
                    if (prepare(&p, f, rows, cols_of[k]))
                        body(&p);
        tess_cpu_path_reset();
    }
}

static void ordinary(problem *p)
{
    fill(p, 0, 0.05F);
    check(p);
    for (int64_t i = 0; i < p->numel; i++) /* far from centred */
        p->x[i] = tess_bf16_to_f32(tess_bf16_from_f32(p->x[i] + 1.0F));
    check(p);
}

static void test_order_and_error_of_random_values(void **state)
{
    (void)state;
    for_each(ordinary);
}

/* Zeros stay zero; what is constant stays within the bound, and exact where a shift holds it. */
static void constant(problem *p)
{
    static const float value[] = {0.0F, 0.375F, -0.375F};
    for (int k = 0; k < TESS_NELEM(value); k++) {
        for (int64_t i = 0; i < p->numel; i++)
            p->x[i] = value[k];
        check(p);
        const bool is_exact = value[k] == 0.0F || p->codec.format == TESS_FORMAT_QINT4 ||
                              p->codec.format == TESS_FORMAT_QINT2;
        for (int64_t i = 0; i < p->numel && is_exact; i++)
            if (p->y[i] != value[k])
                blame(p, i, "a constant changed");
    }
}

static void test_constant_blocks(void **state)
{
    (void)state;
    for_each(constant);
}

/* Subnormals: scales that lose their bits, or are 0; then all that is promised is a finite result
 * in order, no further off than the smallest step of a scale, times the largest code. */
static void tiny(problem *p)
{
    static const float size[] = {0x1p-149F, 0x1p-133F, 0x1p-127F, 0x1p-120F, 0x1p-24F, 0x1p-20F};
    const double bound = p->bound;
    for (int k = 0; k < TESS_NELEM(size); k++) {
        for (int64_t i = 0; i < p->numel; i++)
            p->x[i] =
                tess_bf16_to_f32(tess_bf16_from_f32(size[k] * (float)((i * 37 + 11) % 17 - 8)));
        p->bound = 0.0;
        check(p);
        p->bound = bound;
    }
}

static void test_subnormal_values_stay_finite_and_in_order(void **state)
{
    (void)state;
    for_each(tiny);
}

/* Held, finite and in order, or refused by name. */
static void huge(problem *p)
{
    static const float size[] = {4e4F, 1e6F, 1e30F, 3.3e38F};
    char text[TESS_CODEC_TEXT_NBYTES];
    const double bound = p->bound;
    tess_codec_describe(&p->codec, text);
    for (int k = 0; k < TESS_NELEM(size); k++) {
        for (int64_t i = 0; i < p->numel; i++)
            p->x[i] = tess_bf16_to_f32(
                tess_bf16_from_f32(size[k] * (float)((i * 37 + 11) % 17 - 8) / 8.0F));
        const tess_status st = encode(p, TESS_F32, 1);
        if (st != TESS_OK) {
            assert_int_equal(st, TESS_E_FORMAT);
            assert_non_null(strstr(tess_error_message(), "'blk.weight': element "));
            continue;
        }
        decode(p);
        /* the largest code times its scale may lie above what bf16 or f32 hold */
        for (int64_t i = 0; i < p->numel; i++)
            p->y[i] = isfinite(p->y[i]) || size[k] < 1e38F ? p->y[i] : copysignf(3.4e38F, p->y[i]);
        check_blocks(p);
    }
    p->bound = bound;
}

static void test_huge_values_are_held_or_refused_by_name(void **state)
{
    (void)state;
    for_each(huge);
}

/* The largest element at each position of the first blocks, with both signs. Threads cut by rows
 * and blocks, not by values: in the thousands of cases here they take part at both ends of the
 * tensor. */
static void extreme(problem *p)
{
    if (p->numel > 3 * 65)
        return;
    for (int64_t at = 0; at < p->numel; at++) {
        for (int sign = -1; sign <= 1; sign += 2) {
            fill(p, (uint32_t)at, 0.2F);
            for (int64_t i = 0; i < p->numel; i++)
                p->x[i] = fmaxf(fminf(p->x[i], 1.0F), -1.0F);
            p->x[at] = (float)sign * (1.0F + 0.03125F * (float)(at % 32));
            check_on(p, at == 0 || at == p->numel - 1 ? 3 : 1);
        }
    }
}

static void test_the_largest_element_never_wraps(void **state)
{
    (void)state;
    for_each(extreme);
}

static void not_finite(problem *p)
{
    static const float value[] = {NAN, INFINITY, -INFINITY};
    char where[64];
    for (int k = 0; k < TESS_NELEM(value); k++) {
        for (int64_t at = 0; at < p->numel; at += TESS_MAX(p->numel / 5, INT64_C(1))) {
            fill(p, 1, 0.05F);
            p->x[at] = value[k];
            for (int thread_numel = 1; thread_numel <= 3; thread_numel += 2) {
                const tess_dtype dt = thread_numel == 1 ? TESS_F32 : TESS_BF16;
                assert_int_equal(encode(p, dt, thread_numel), TESS_E_FORMAT);
                snprintf(where, sizeof where, "'blk.weight': element %lld is ", (long long)at);
                if (strstr(tess_error_message(), where) == NULL)
                    fail_msg("'%s' is not in: %s", where, tess_error_message());
            }
        }
    }
}

static void test_values_that_are_not_finite_are_refused_by_name(void **state)
{
    (void)state;
    for_each(not_finite);
}

static int make_threads(void **state)
{
    (void)state;
    return tess_pool_create(3, &three) == TESS_OK ? 0 : -1;
}

static int end_threads(void **state)
{
    (void)state;
    tess_pool_destroy(&three);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_and_error_of_random_values),
        cmocka_unit_test(test_constant_blocks),
        cmocka_unit_test(test_subnormal_values_stay_finite_and_in_order),
        cmocka_unit_test(test_huge_values_are_held_or_refused_by_name),
        cmocka_unit_test(test_the_largest_element_never_wraps),
        cmocka_unit_test(test_values_that_are_not_finite_are_refused_by_name),
    };
    return cmocka_run_group_tests(tests, make_threads, end_threads);
}
