/* GGUF blocks: what the gguf package decodes and encodes, worked examples, ranges, refusals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "core/memory.h"
#include "kernels/cpu/codec_gguf_priv.h"
#include "kernels/elementwise.h"
#include "kernels/kernels.h"
#include "support/crc32.h"

enum { BLOCK_MAX = 256, CASE_NUMEL = 16 };

static uint32_t bits_of(float x)
{
    uint32_t bits = 0;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static void dequantize(tess_format format, const void *blocks, int64_t first, tess_view dst)
{
    const tess_dequantize_args a = {
        .codec = tess_codec_of_format(format), .part = {blocks}, .first_idx = first, .dst = dst};
    assert_int_equal(tess_kernels_cpu.dequantize(&a, NULL), TESS_OK);
}

static tess_status quantize(tess_format format, const float *x, int64_t numel, void *blocks)
{
    const tess_quantize_args a = {.codec = tess_codec_of_format(format),
                                      .src = tess_view_host((void *)(uintptr_t)x, numel, TESS_F32),
                                      .part = {blocks},
                                      .tensor_name = "w"};
    return tess_kernels_cpu.quantize(&a, NULL);
}

/* The values of tests/golden/make_gguf_blocks.py. */
static void golden_values(float *x, int64_t numel)
{
    for (int64_t i = 0; i < numel; i++)
        x[i] = (float)((i * 7919 + 29) % 2003 - 1001) / 1024.0F *
               (float)ldexp(1.0, -(int)(i / 32 * 5 % 7));
}

/* The vector T of the formats' own examples. */
static void vector_t(float *x)
{
    for (int64_t i = 0; i < 256; i++)
        x[i] = (float)((i * 7919 + 13) % 2003 - 1001) / 1024.0F;
}

/* ---- golden blocks ---- */

static void unhex(const char *hex, uint8_t *out, size_t nbytes)
{
    for (size_t i = 0; i < nbytes; i++) {
        unsigned byte = 0;
        assert_int_equal(sscanf(hex + 2 * i, "%2x", &byte), 1);
        out[i] = (uint8_t)byte;
    }
}

typedef struct golden_type {
    tess_format format;
    uint8_t blocks[CASE_NUMEL * BLOCK_MAX];
    uint32_t crc[CASE_NUMEL];
    int numel;
} golden_type;

static void check_crc(const golden_type *g, int i, const float *y, const char *what)
{
    const size_t numel = (size_t)tess_format_block(g->format).numel;
    const uint32_t found = crc_of(y, numel * sizeof *y);
    if (found != g->crc[i])
        fail_msg("%s, block %d, %s: crc %08x, expected %08x", tess_format_name(g->format), i, what,
                 found, g->crc[i]);
}

/* All blocks at once, then by ranges that begin and end inside blocks, then in bf16. */
static void check_type(const golden_type *g)
{
    static float whole[CASE_NUMEL * BLOCK_MAX], part[CASE_NUMEL * BLOCK_MAX];
    static uint16_t rounded[CASE_NUMEL * BLOCK_MAX];
    const int64_t block_numel = tess_format_block(g->format).numel, numel = g->numel * block_numel;
    dequantize(g->format, g->blocks, 0, tess_view_host(whole, numel, TESS_F32));
    for (int i = 0; i < g->numel; i++)
        check_crc(g, i, whole + i * block_numel, "decoded");
    for (int64_t step = 1; step < numel; step = step * 3 + 2) {
        memset(part, 0x5a, sizeof part);
        for (int64_t at = 0; at < numel; at += step) {
            const int64_t run = at + step <= numel ? step : numel - at;
            dequantize(g->format, g->blocks, at, tess_view_host(part + at, run, TESS_F32));
            dequantize(g->format, g->blocks, at, tess_view_host(rounded + at, run, TESS_BF16));
        }
        assert_memory_equal(part, whole, (size_t)numel * sizeof *part);
        for (int64_t i = 0; i < numel; i++)
            assert_int_equal(rounded[i], tess_bf16_from_f32(whole[i]));
    }
}

static void check_paths(const golden_type *g)
{
    const tess_gguf_path *const path[] = {&tess_gguf_portable, &tess_gguf_avx2, &tess_gguf_avx512};
    const tess_cpu_path best = tess_cpu_path_current();
    const bool is_there[] = {true, best >= TESS_CPU_AVX2, best >= TESS_CPU_AVX512};
    static float y[CASE_NUMEL * BLOCK_MAX];
    for (int k = 0; k < 3; k++) {
        if (!is_there[k])
            continue;
        path[k]->decode[g->format](g->blocks, g->numel, y);
        for (int i = 0; i < g->numel; i++)
            check_crc(g, i, y + i * tess_format_block(g->format).numel, "on another path");
    }
}

static void check_encoder(const char *name, uint32_t source_crc, uint32_t made_crc)
{
    enum { NUMEL = 64 * 32 };
    static float x[NUMEL];
    static uint8_t made[NUMEL * 2];
    tess_format format = TESS_FORMAT_F32;
    tess_codec_part part[TESS_CODEC_PART_MAX];
    int part_numel = 0;
    golden_values(x, NUMEL);
    assert_int_equal(crc_of(x, sizeof x), source_crc);
    assert_int_equal(tess_format_parse(name, &format), TESS_OK);
    const tess_codec codec = tess_codec_of_format(format);
    assert_int_equal(tess_codec_parts(&codec, NUMEL, part, &part_numel), TESS_OK);
    assert_int_equal(part_numel, 1);
    assert_int_equal(quantize(format, x, NUMEL, made), TESS_OK);
    assert_int_equal(crc_of(made, part[0].nbytes), made_crc);
}

static void test_golden(void **state)
{
    FILE *f = fopen(TESS_TEST_SOURCE_DIR "/tests/golden/gguf_blocks.txt", "r");
    static char line[4096], word[1024];
    static golden_type g;
    int type_numel = 0, encoder_numel = 0;
    unsigned a = 0, b = 0;
    (void)state;
    assert_non_null(f);
    while (fgets(line, sizeof line, f) != NULL) {
        if (line[0] == '#')
            continue;
        if (sscanf(line, "encode %1000s %x %x", word, &a, &b) == 3) {
            check_encoder(word, a, b);
            encoder_numel++;
        } else if (sscanf(line, "type %1000s", word) == 1) {
            memset(&g, 0, sizeof g);
            assert_int_equal(tess_format_parse(word, &g.format), TESS_OK);
        } else {
            const size_t nbytes = tess_format_block(g.format).nbytes;
            assert_int_equal(sscanf(line, "%1000s %x", word, &a), 2);
            assert_int_equal(strlen(word), 2 * nbytes);
            unhex(word, g.blocks + (size_t)g.numel * nbytes, nbytes);
            g.crc[g.numel++] = a;
            if (g.numel == CASE_NUMEL) {
                check_type(&g);
                check_paths(&g);
                type_numel++;
            }
        }
    }
    fclose(f);
    assert_int_equal(type_numel, 10);
    assert_int_equal(encoder_numel, 3);
}

/* ---- worked examples ---- */

static void test_t(void **state)
{
    static const struct {
        tess_format format;
        uint32_t crc, decoded_crc;
    } rows[] = {{TESS_FORMAT_Q8_0, 0xeb007e61, 0x5d9c14ad},
                {TESS_FORMAT_Q4_0, 0x97bbfece, 0xa6c9ca1a}};
    float x[256], y[256];
    uint8_t made[272];
    (void)state;
    vector_t(x);
    assert_int_equal(crc_of(x, sizeof x), 0x26e6347d);
    for (int i = 0; i < TESS_NELEM(rows); i++) {
        const tess_block_size block = tess_format_block(rows[i].format);
        assert_int_equal(quantize(rows[i].format, x, 256, made), TESS_OK);
        assert_int_equal(crc_of(made, 8 * block.nbytes), rows[i].crc);
        dequantize(rows[i].format, made, 0, tess_view_host(y, 256, TESS_F32));
        assert_int_equal(crc_of(y, sizeof y), rows[i].decoded_crc);
    }
}

/* One block of each K type with the constants of the formats' examples. */
static void test_k_examples(void **state)
{
    static const uint8_t scales[12] = {0x41, 0x52, 0x63, 0x74, 0x85, 0x96,
                                       0xa7, 0xb8, 0xc9, 0xda, 0xeb, 0xfc};
    uint8_t b[210];
    float y[256];
    (void)state;
    memcpy(b, (const uint8_t[]){0x00, 0x3c, 0x00, 0x38}, 4);
    memcpy(b + 4, scales, 12);
    for (int i = 0; i < 128; i++)
        b[16 + i] = (uint8_t)(7 * i + 3);
    dequantize(TESS_FORMAT_Q4_K, b, 0, tess_view_host(y, 256, TESS_F32));
    assert_int_equal(crc_of(y, sizeof y), 0x0be48202);
    assert_true(y[0] == 0.5F && y[32] == -11.0F && y[64] == 85.5F && y[255] == 172.5F);
    memmove(b + 48, b + 16, 128);
    for (int i = 0; i < 32; i++)
        b[16 + i] = (uint8_t)(5 * i + 1);
    dequantize(TESS_FORMAT_Q5_K, b, 0, tess_view_host(y, 256, TESS_F32));
    assert_int_equal(crc_of(y, sizeof y), 0x3b94d73c);
    for (int i = 0; i < 128; i++)
        b[i] = (uint8_t)(7 * i + 3);
    for (int i = 0; i < 64; i++)
        b[128 + i] = (uint8_t)(5 * i + 1);
    for (int i = 0; i < 16; i++)
        b[192 + i] = (uint8_t)(i - 8);
    memcpy(b + 208, (const uint8_t[]){0x00, 0x3c}, 2);
    dequantize(TESS_FORMAT_Q6_K, b, 0, tess_view_host(y, 256, TESS_F32));
    assert_int_equal(crc_of(y, sizeof y), 0x5debad68);
}

/* The largest element at each place with both signs: no code wraps. */
static void test_extremes(void **state)
{
    uint8_t made[34];
    float y[32];
    (void)state;
    for (int i = 0; i < 64; i++) {
        const float most = i < 32 ? 3.0F : -3.0F;
        float x[32];
        for (int k = 0; k < 32; k++)
            x[k] = k == i % 32 ? most : most * (float)(k - 16) / 17.0F;
        assert_int_equal(quantize(TESS_FORMAT_Q8_0, x, 32, made), TESS_OK);
        assert_int_equal((int8_t)made[2 + i % 32], i < 32 ? 127 : -127);
        dequantize(TESS_FORMAT_Q8_0, made, 0, tess_view_host(y, 32, TESS_F32));
        /* Half a step of amax/127, and fp16 rounding of the scale: 2^-11 relative. */
        for (int k = 0; k < 32; k++)
            assert_true(fabsf(y[k] - x[k]) <= 3.0F / 254.0F * 1.001F + 3.0F * 0x1p-11F);
        assert_int_equal(quantize(TESS_FORMAT_Q4_0, x, 32, made), TESS_OK);
        const int code = i % 32 < 16 ? made[2 + i % 16] & 15 : made[2 + i % 16] >> 4;
        assert_int_equal(code, 0); /* the signed maximum is -8 steps */
    }
}

static void test_zero_and_tiny(void **state)
{
    uint8_t made[34];
    float x[32] = {0};
    (void)state;
    assert_int_equal(quantize(TESS_FORMAT_Q8_0, x, 32, made), TESS_OK);
    for (int i = 0; i < 34; i++)
        assert_int_equal(made[i], 0);
    assert_int_equal(quantize(TESS_FORMAT_Q4_0, x, 32, made), TESS_OK);
    assert_int_equal(made[0], 0);
    assert_int_equal(made[1], 0x80);
    assert_int_equal(made[2], 0x88);
    x[3] = -0x1p-149F;
    assert_int_equal(quantize(TESS_FORMAT_Q8_0, x, 32, made), TESS_OK);
    assert_int_equal(made[0] | made[1], 0);
    assert_int_equal(quantize(TESS_FORMAT_Q4_0, x, 32, made), TESS_OK);
    assert_int_equal(made[0] | (made[1] & 0x7f), 0);
}

static void test_refusals(void **state)
{
    static const struct {
        tess_format format;
        float value;
        const char *expected;
    } rows[] = {
        {TESS_FORMAT_Q8_0, NAN, "tensor 'w': element 37 is nan, expected finite values"},
        {TESS_FORMAT_Q4_0, -INFINITY, "tensor 'w': element 37 is -inf, expected finite values"},
        {TESS_FORMAT_F16, INFINITY, "tensor 'w': element 37 is inf, expected finite values"},
        {TESS_FORMAT_F16, 65520.0F, "element 37 is 65520, expected values whose scale fits fp16"},
        {TESS_FORMAT_Q8_0, 1e8F, "element 37 is 1e+08, expected values whose scale fits fp16"},
        {TESS_FORMAT_Q4_0, 1e6F, "element 37 is 1e+06, expected values whose scale fits fp16"},
    };
    uint8_t made[128];
    (void)state;
    for (int i = 0; i < TESS_NELEM(rows); i++) {
        float x[64];
        for (int k = 0; k < 64; k++)
            x[k] = k == 37 ? rows[i].value : (float)k / 64.0F;
        tess_error_clear();
        assert_int_equal(quantize(rows[i].format, x, 64, made), TESS_E_FORMAT);
        if (strstr(tess_error_message(), rows[i].expected) == NULL)
            fail_msg("found '%s', expected '%s'", tess_error_message(), rows[i].expected);
    }
    const float x[256] = {0};
    tess_error_clear();
    uint8_t block[210];
    assert_int_equal(quantize(TESS_FORMAT_Q6_K, x, 256, block), TESS_E_UNSUPPORTED);
    assert_non_null(strstr(tess_error_message(), "q6_k is read from GGUF files but not written"));
    tess_error_clear();
    assert_int_equal(quantize(TESS_FORMAT_Q8_0, x, 40, made), TESS_E_UNSUPPORTED);
    assert_non_null(strstr(tess_error_message(), "40 elements is not a whole number of blocks"));
    tess_error_clear();
}

/* Every half, and every float next to where rounding changes. */
static void test_half(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        const float x = tess_f16_to_f32((uint16_t)h);
        if ((h & 0x7c00) == 0x7c00 && (h & 0x3ff) != 0) {
            assert_true(isnan(x));
            continue;
        }
        const double expected =
            (h >> 10 & 31) == 31
                ? (double)INFINITY
                : ((h >> 10 & 31) == 0 ? ldexp(h & 1023, -24)
                                       : ldexp(1024 + (h & 1023), (int)(h >> 10 & 31) - 25));
        assert_true((double)fabsf(x) == expected && (signbit(x) != 0) == (h >> 15 != 0));
        assert_int_equal(tess_f16_from_f32(x), h);
        if ((h & 0x7fff) >= 0x7bff)
            continue;
        const float next = tess_f16_to_f32((uint16_t)(h + 1)), middle = (x + next) / 2.0F;
        assert_int_equal(tess_f16_from_f32(middle), h + (h & 1));
        assert_int_equal(tess_f16_from_f32(nextafterf(middle, x)), h);
        assert_int_equal(tess_f16_from_f32(nextafterf(middle, next)), h + 1);
    }
    assert_int_equal(tess_f16_from_f32(65519.996F), 0x7bff);
    assert_int_equal(tess_f16_from_f32(65520.0F), 0x7c00);
    assert_int_equal(bits_of(tess_f16_to_f32(0x8000)), 0x80000000U);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),        cmocka_unit_test(test_t),
        cmocka_unit_test(test_k_examples),    cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_zero_and_tiny), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_half),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
