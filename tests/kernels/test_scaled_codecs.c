/*
 * quanto's formats and fp8: the bytes and values that optimum-quanto and PyTorch make of the same
 * weights, on every instruction path, and the rules that choose scale and shift.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/fp8.h"
#include "core/half.h"
#include "core/pool.h"
#include "core/rng.h"
#include "kernels/cpu/cpu_priv.h"
#include "kernels/elementwise.h"
#include "kernels/kernels.h"
#include "support/crc32.h"

#define GOLDEN TESS_TEST_SOURCE_DIR "/tests/golden/quanto/"

enum { NUMEL_MAX = 1 << 16 };

/* A tensor as it is stored. */
typedef struct stored {
    tess_codec codec;
    int64_t numel;
    tess_codec_part part[TESS_CODEC_PART_MAX];
    int part_numel;
    _Alignas(16) char bytes[TESS_CODEC_PART_MAX][NUMEL_MAX * 4];
} stored;

static tess_status encode(stored *s, const char *text, int64_t rows, int64_t cols, tess_view src,
                          tess_pool *pool)
{
    tess_stream stream;
    tess_quantize_args a = {.src = src, .tensor_name = "w"};
    tess_stream_init_inline(&stream, "test", pool);
    assert_int_equal(tess_codec_parse(text, cols, &s->codec), TESS_OK);
    s->numel = rows * cols;
    assert_int_equal(tess_codec_parts(&s->codec, s->numel, s->part, &s->part_numel), TESS_OK);
    a.codec = s->codec;
    for (int i = 0; i < s->part_numel; i++) {
        assert_true(s->part[i].nbytes <= sizeof s->bytes[i]);
        memset(s->bytes[i], 0x5a, sizeof s->bytes[i]);
        a.part[i] = s->bytes[i];
    }
    return tess_kernels_cpu.quantize(&a, &stream);
}

static void decode(const stored *s, int64_t first_idx, tess_view dst)
{
    tess_dequantize_args a = {
        .codec = s->codec, .numel = s->numel, .first_idx = first_idx, .dst = dst};
    for (int i = 0; i < s->part_numel; i++)
        a.part[i] = s->bytes[i];
    assert_int_equal(tess_kernels_cpu.dequantize(&a, NULL), TESS_OK);
}

/* ---- golden files ---- */

typedef struct vector {
    char text[TESS_CODEC_TEXT_NBYTES];
    int64_t rows, cols;
    uint32_t codes, constants, decoded;
    const float *w;
} vector;

static float *load_weights(void)
{
    static float w[NUMEL_MAX];
    FILE *f = fopen(GOLDEN "weights.bin", "rb");
    assert_non_null(f);
    assert_true(fread(w, sizeof *w, NUMEL_MAX, f) > 4000);
    fclose(f);
    return w;
}

static void check_ranges(const stored *s, const float *whole)
{
    static float part[NUMEL_MAX];
    static uint16_t rounded[NUMEL_MAX];
    for (int64_t step = 1; step < s->numel; step = step * 3 + 2) {
        memset(part, 0x5a, sizeof part);
        for (int64_t at = 0; at < s->numel; at += step) {
            const int64_t run = at + step <= s->numel ? step : s->numel - at;
            decode(s, at, tess_view_host(part + at, run, TESS_F32));
            decode(s, at, tess_view_host(rounded + at, run, TESS_BF16));
        }
        assert_memory_equal(part, whole, (size_t)s->numel * sizeof *part);
        for (int64_t i = 0; i < s->numel; i++)
            assert_int_equal(rounded[i], tess_bf16_from_f32(whole[i]));
    }
}

static void check_bytes(const stored *s, const vector *v)
{
    static float value[NUMEL_MAX];
    static char constants[NUMEL_MAX];
    size_t nbytes = 0;
    for (int i = 1; i < s->part_numel; i++) {
        memcpy(constants + nbytes, s->bytes[i], s->part[i].nbytes);
        nbytes += s->part[i].nbytes;
    }
    decode(s, 0, tess_view_host(value, s->numel, TESS_F32));
    const uint32_t found[] = {crc_of(s->bytes[0], s->part[0].nbytes), crc_of(constants, nbytes),
                              crc_of(value, (size_t)s->numel * sizeof *value)};
    if (found[0] != v->codes || found[1] != v->constants || found[2] != v->decoded)
        fail_msg("%s [%lld, %lld]: codes %08x constants %08x values %08x, expected %08x %08x %08x",
                 v->text, (long long)v->rows, (long long)v->cols, found[0], found[1], found[2],
                 v->codes, v->constants, v->decoded);
    check_ranges(s, value);
}

static void check_vector(const vector *v)
{
    static stored s;
    static uint16_t half[NUMEL_MAX];
    tess_pool *pool = NULL;
    const int64_t numel = v->rows * v->cols;
    assert_int_equal(encode(&s, v->text, v->rows, v->cols,
                            tess_view_host((void *)(uintptr_t)v->w, numel, TESS_F32), NULL),
                     TESS_OK);
    check_bytes(&s, v);
    assert_int_equal(tess_pool_create(3, &pool), TESS_OK);
    assert_int_equal(encode(&s, v->text, v->rows, v->cols,
                            tess_view_host((void *)(uintptr_t)v->w, numel, TESS_F32), pool),
                     TESS_OK);
    check_bytes(&s, v);
    if (s.codec.scale_dt == TESS_BF16) { /* a weight of that dtype is what quanto has seen */
        for (int64_t i = 0; i < numel; i++)
            half[i] = tess_bf16_from_f32(v->w[i]);
        assert_int_equal(
            encode(&s, v->text, v->rows, v->cols, tess_view_host(half, numel, TESS_BF16), pool),
            TESS_OK);
        check_bytes(&s, v);
    }
    tess_pool_destroy(&pool);
}

static int check_all_vectors(void)
{
    const float *w = load_weights();
    vector v = {0}, before = {0};
    long long rows = 0, cols = 0;
    int seen = 0;
    FILE *f = fopen(GOLDEN "vectors.txt", "r");
    assert_non_null(f);
    while (fscanf(f, "%47s %lldx%lld %x %x %x", v.text, &rows, &cols, &v.codes, &v.constants,
                  &v.decoded) == 6) {
        v.rows = rows;
        v.cols = cols;
        v.w = seen == 0 ? w
              : v.rows == before.rows && v.cols == before.cols
                  ? before.w
                  : before.w + before.rows * before.cols;
        check_vector(&v);
        before = v;
        seen++;
    }
    fclose(f);
    return seen;
}

static void on_every_path(void (*check)(void))
{
    const tess_cpu_path highest = tess_cpu_path_highest();
    for (int p = TESS_CPU_PORTABLE; p <= (int)highest; p++) {
        assert_int_equal(tess_kernels_cpu_select((tess_cpu_path)p), TESS_OK);
        check();
        tess_cpu_path_reset();
    }
}

static void check_vectors(void) { assert_int_equal(check_all_vectors(), 6 * (3 * 5 + 2 * 5)); }

static void test_golden_vectors_have_the_bytes_of_quanto_and_torch(void **state)
{
    (void)state;
    on_every_path(check_vectors);
}

/* All 256 codes; a NaN stays one, and its sign is not compared. */
static void test_every_fp8_code_has_the_value_of_torch(void **state)
{
    char name[16];
    unsigned want = 0;
    int seen = 0;
    FILE *f = fopen(GOLDEN "codes.txt", "r");
    (void)state;
    assert_non_null(f);
    while (fscanf(f, "%15s %x", name, &want) == 2) {
        const bool is_e4m3 = strcmp(name, "e4m3") == 0;
        float value[256];
        int nan_numel = 0;
        for (int c = 0; c < 256; c++) {
            value[c] = is_e4m3 ? tess_e4m3_to_f32((uint8_t)c) : tess_e5m2_to_f32((uint8_t)c);
            const uint8_t again =
                is_e4m3 ? tess_e4m3_from_f32(value[c]) : tess_e5m2_from_f32(value[c]);
            if (isnan(value[c])) {
                value[c] = 0.0F;
                nan_numel++;
            } else if (isfinite(value[c])) {
                assert_int_equal(again, c);
            }
        }
        assert_int_equal(nan_numel, is_e4m3 ? 2 : 6);
        assert_int_equal(crc_of(value, sizeof value), want);
        seen++;
    }
    fclose(f);
    assert_int_equal(seen, 2);
}

/* formats.md 4 */
static void test_fp8_rounds_half_to_even_and_saturates(void **state)
{
    static const struct {
        float x;
        uint8_t e4m3, e5m2;
    } rows[] = {{1.0F, 0x38, 0x3c},       {0.1F, 0x1d, 0x2e},    {0x1p-10F, 0x00, 0x14},
                {0x1.8p-10F, 0x01, 0x16}, {0x1p-9F, 0x01, 0x18}, {0.0146484375F, 0x08, 0x24},
                {447.0F, 0x7e, 0x5f}};
    static const struct {
        float x;
        uint8_t e4m3;
    } more[] = {{1.0625F, 0x38}, {1.1875F, 0x3a}, {17.0F, 0x58},   {19.0F, 0x5a},
                {480.0F, 0x7e},  {-464.0F, 0xfe}, {1e30F, 0x7e},   {-0.0F, 0x80},
                {0x1p-149F, 0},  {448.0F, 0x7e},  {-1e-20F, 0x80}, {464.0F, 0x7e}};
    float x[256];
    uint8_t code[256];
    (void)state;
    for (int i = 0; i < TESS_NELEM(rows); i++) {
        assert_int_equal(tess_e4m3_from_f32(rows[i].x), rows[i].e4m3);
        assert_int_equal(tess_e5m2_from_f32(rows[i].x), rows[i].e5m2);
    }
    for (int i = 0; i < TESS_NELEM(more); i++)
        assert_int_equal(tess_e4m3_from_f32(more[i].x), more[i].e4m3);
    assert_int_equal(tess_e5m2_from_f32(61440.0F), 0x7b);
    for (int i = 0; i < 256; i++)
        x[i] = (float)((i * 7919 + 13) % 2003 - 1001) / 1024.0F * 500.0F;
    for (int i = 0; i < 256; i++)
        code[i] = tess_e4m3_from_f32(x[i]);
    assert_int_equal(crc_of(code, sizeof code), 0x67108ae1);
    for (int i = 0; i < 256; i++)
        code[i] = tess_e5m2_from_f32(x[i] * 200.0F);
    assert_int_equal(crc_of(code, sizeof code), 0x6a5c5026);
}

/* formats.md 2.1 and 2.5 */
static void test_quanto_examples(void **state)
{
    static stored s;
    float x[] = {.5F, -1.0F, .25F, .1F}, z[] = {-1.0F, 0.0F, .5F, 2.0F}, y[12];
    const int8_t code[] = {64, -127, 32, 13};
    (void)state;
    assert_int_equal(encode(&s, "qint8/row/f32", 1, 4, tess_view_host(x, 4, TESS_F32), NULL), 0);
    assert_memory_equal(s.bytes[0], code, 4);
    assert_true(*(const float *)(const void *)s.bytes[1] == 0.007874015718698502F);
    assert_int_equal(encode(&s, "qint8/row/bf16", 1, 4, tess_view_host(x, 4, TESS_F32), NULL), 0);
    assert_memory_equal(s.bytes[0], code, 4);
    decode(&s, 0, tess_view_host(y, 4, TESS_F32));
    assert_true(y[0] == .50390625F && y[1] == -1.0F && y[2] == .251953125F && y[3] == .1025390625F);
    assert_int_equal(encode(&s, "qint4/4/bf16", 1, 4, tess_view_host(z, 4, TESS_F32), NULL), 0);
    assert_memory_equal(s.bytes[0], "\x00\x05\x08\x0f", 4);
    decode(&s, 0, tess_view_host(y, 4, TESS_F32));
    assert_true(y[0] == -1.0F && y[1] == 0.0F && y[2] == .6015625F && y[3] == 2.0F);
    /* planes: rows {1,2,3,4}, {1,2,3} of one element beside a 0 and a 15 that fix the scale */
    float rows4[12], rows3[9];
    for (int i = 0; i < 4; i++)
        memcpy(rows4 + 3 * i, (float[]){(float)(i + 1), 0.0F, 15.0F}, 12);
    memcpy(rows3, rows4, sizeof rows3);
    assert_int_equal(encode(&s, "qint4/3/f32", 4, 3, tess_view_host(rows4, 12, TESS_F32), NULL), 0);
    assert_memory_equal(s.bytes[0], "\x31\x00\xff\x42\x00\xff", 6);
    assert_int_equal(encode(&s, "qint4/3/f32", 3, 3, tess_view_host(rows3, 9, TESS_F32), NULL), 0);
    assert_memory_equal(s.bytes[0], "\x31\x00\xff\x02\x00\x0f", 6);
}

/* ---- rules ---- */

static double relative_error(const stored *s, const float *x)
{
    static float y[NUMEL_MAX];
    double sum = 0.0, all = 0.0;
    decode(s, 0, tess_view_host(y, s->numel, TESS_F32));
    for (int64_t i = 0; i < s->numel; i++) {
        sum += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
        all += (double)x[i] * (double)x[i];
    }
    return sqrt(sum / all);
}

static void check_rules(void)
{
    static const char *const text[] = {"qint2/128/bf16",     "qint2/128/bf16/mse",
                                       "qint2/128/bf16/hqq", "qint4/128/bf16",
                                       "qint4/128/bf16/mse", "qint4/128/bf16/hqq"};
    static float x[64 * 1024];
    static stored s;
    double error[TESS_NELEM(text)];
    const tess_rng rng = tess_rng_make(3, TESS_RNG_TEST, 0, 0);
    tess_rng_normal_fill(&rng, 0, NUMEL_MAX, 0.02F, x);
    for (int i = 0; i < NUMEL_MAX; i++)
        x[i] = tess_bf16_to_f32(tess_bf16_from_f32(x[i]));
    for (int i = 0; i < TESS_NELEM(text); i++) {
        assert_int_equal(
            encode(&s, text[i], 64, 1024, tess_view_host(x, NUMEL_MAX, TESS_F32), NULL), TESS_OK);
        error[i] = relative_error(&s, x);
        printf("%-20s relative RMS error %.4f\n", text[i], error[i]);
    }
    /* formats.md 11: about 50 % and 10 % */
    assert_true(error[0] > 0.4 && error[0] < 0.6 && error[3] > 0.08 && error[3] < 0.12);
    assert_true(error[1] <= 0.8 * error[0] && error[2] <= 0.8 * error[0]);
    assert_true(error[4] <= error[3]);
}

static void test_searched_scales_have_less_error(void **state)
{
    (void)state;
    check_rules();
}

/* What is stored decodes to `expected`, in f32 and rounded once to bf16. */
static void check_decoded(const stored *s, const float *expected)
{
    static float wide[NUMEL_MAX];
    static uint16_t half[NUMEL_MAX];
    decode(s, 0, tess_view_host(wide, s->numel, TESS_F32));
    decode(s, 0, tess_view_host(half, s->numel, TESS_BF16));
    for (int64_t i = 0; i < s->numel; i++) {
        const bool is_nan = isnan(expected[i]);
        assert_true(is_nan ? isnan(wide[i]) : memcmp(&wide[i], &expected[i], sizeof wide[i]) == 0);
        assert_true(is_nan ? isnan(tess_bf16_to_f32(half[i]))
                           : half[i] == tess_bf16_from_f32(expected[i]));
    }
}

/* Rows whose scale is ordinary, overflows in products, is infinite, and a NaN of all bits. */
static void check_int8(void)
{
    enum { ROWS = 4, COLS = 256 + 3 };
    static const uint32_t scale_bits[ROWS] = {0x3e99999aU, 0x7e967699U, 0x7f800000U, 0x7fffffffU};
    static float expected[ROWS * COLS];
    static stored s = {.numel = ROWS * COLS, .part_numel = 2};
    assert_int_equal(tess_codec_parse("int8/259", COLS, &s.codec), TESS_OK);
    memcpy(s.bytes[1], scale_bits, sizeof scale_bits);
    for (int i = 0; i < ROWS * COLS; i++) {
        float scale = 0.0F;
        memcpy(&scale, &scale_bits[i / COLS], sizeof scale);
        const int8_t code = (int8_t)(i % COLS);
        memcpy(&s.bytes[0][i], &code, 1);
        expected[i] = (float)code * scale / 127.0F;
    }
    check_decoded(&s, expected);
}

static void test_int8_is_code_times_scale_over_127(void **state)
{
    (void)state;
    on_every_path(check_int8);
}

static void check_f16(void)
{
    static float expected[NUMEL_MAX];
    static stored s = {.numel = NUMEL_MAX, .part_numel = 1};
    s.codec = tess_codec_of_format(TESS_FORMAT_F16);
    for (int i = 0; i < NUMEL_MAX; i++) {
        const int exponent = i >> 10 & 31, fraction = i & 1023;
        const double finite =
            ldexp(exponent > 0 ? fraction + 1024 : fraction, exponent > 0 ? exponent - 25 : -24);
        const double special = fraction == 0 ? (double)INFINITY : (double)NAN;
        const double magnitude = exponent == 31 ? special : finite;
        const uint16_t code = (uint16_t)i;
        memcpy(s.bytes[0] + 2 * i, &code, sizeof code);
        expected[i] = (float)(i >> 15 != 0 ? -magnitude : magnitude);
    }
    check_decoded(&s, expected);
}

static void test_every_f16_code_has_its_value(void **state)
{
    (void)state;
    on_every_path(check_f16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_vectors_have_the_bytes_of_quanto_and_torch),
        cmocka_unit_test(test_every_fp8_code_has_the_value_of_torch),
        cmocka_unit_test(test_fp8_rounds_half_to_even_and_saturates),
        cmocka_unit_test(test_quanto_examples),
        cmocka_unit_test(test_searched_scales_have_less_error),
        cmocka_unit_test(test_int8_is_code_times_scale_over_127),
        cmocka_unit_test(test_every_f16_code_has_its_value),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
