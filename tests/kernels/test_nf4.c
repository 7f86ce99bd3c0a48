/* NF4: constants, worked examples, special values, ranges, and what bitsandbytes made. */
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
#include "core/memory.h"
#include "kernels/cpu/cpu_priv.h"
#include "support/crc32.h"

enum { CANARY = 0x5a, CANARY_NBYTES = 64, BLOCK_MAX = 20000 };

/* A quantized tensor with canaries behind every part. */
typedef struct quantized {
    tess_codec codec;
    int64_t numel;
    tess_codec_part part[TESS_CODEC_PART_MAX];
    int part_numel;
    void *data[TESS_CODEC_PART_MAX];
    float *absmax_work;
} quantized;

static uint32_t bits_of(float x)
{
    uint32_t bits = 0;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

static float from_bits(uint32_t bits)
{
    float x = 0.0F;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

static void *zeroed(size_t nbytes)
{
    void *p = NULL;
    assert_int_equal(tess_alloc(nbytes, &p), TESS_OK);
    return p;
}

static void quantized_init(quantized *q, int64_t numel, int block_numel, bool double_quant)
{
    memset(q, 0, sizeof(*q));
    q->codec = (tess_codec){
        .format = TESS_FORMAT_NF4, .block_numel = block_numel, .double_quant = double_quant};
    q->numel = numel;
    assert_int_equal(tess_codec_parts(&q->codec, numel, q->part, &q->part_numel), TESS_OK);
    for (int i = 0; i < q->part_numel; i++) {
        q->data[i] = zeroed(q->part[i].nbytes + CANARY_NBYTES);
        memset(q->data[i], CANARY, q->part[i].nbytes + CANARY_NBYTES);
    }
    q->absmax_work = zeroed((size_t)tess_ceil_div(numel, block_numel) * sizeof(float));
}

static void quantized_fini(quantized *q)
{
    for (int i = 0; i < q->part_numel; i++) {
        for (size_t j = 0; j < CANARY_NBYTES; j++)
            assert_int_equal(((uint8_t *)q->data[i])[q->part[i].nbytes + j], CANARY);
        tess_free(q->data[i]);
    }
    tess_free(q->absmax_work);
}

static tess_status quantize_view(quantized *q, tess_view src, int thread_numel)
{
    tess_pool *pool = NULL;
    tess_stream stream;
    tess_quantize_args a = {
        .codec = q->codec,
        .src = src,
        .absmax_work = q->absmax_work,
        .tensor_name = "model.w",
    };
    memcpy(a.part, q->data, sizeof(a.part));
    assert_int_equal(tess_pool_create(thread_numel, &pool), TESS_OK);
    tess_stream_init_inline(&stream, "compute", pool);
    tess_alloc_freeze();
    const tess_status st = tess_kernels_cpu.quantize(&a, &stream);
    tess_alloc_thaw();
    tess_pool_destroy(&pool);
    return st;
}

static void quantize(quantized *q, const float *x)
{
    assert_int_equal(quantize_view(q, tess_view_host((void *)(uintptr_t)x, q->numel, TESS_F32), 1),
                     TESS_OK);
}

static void dequantize(const quantized *q, int64_t first_idx, tess_view dst, int thread_numel)
{
    tess_pool *pool = NULL;
    tess_stream stream;
    tess_dequantize_args a = {.codec = q->codec, .first_idx = first_idx, .dst = dst};
    for (int i = 0; i < q->part_numel; i++)
        a.part[i] = q->data[i];
    assert_int_equal(tess_pool_create(thread_numel, &pool), TESS_OK);
    tess_stream_init_inline(&stream, "compute", pool);
    assert_int_equal(tess_kernels_cpu.dequantize(&a, &stream), TESS_OK);
    tess_pool_destroy(&pool);
}

static void dequantize_f32(const quantized *q, float *dst)
{
    dequantize(q, 0, tess_view_host(dst, q->numel, TESS_F32), 1);
}

static void path_set(int path)
{
    tess_cpu_path_reset();
    assert_int_equal(tess_kernels_cpu_select((tess_cpu_path)path), TESS_OK);
}

static void fill_t(float *x, int64_t numel)
{
    for (int64_t i = 0; i < numel; i++)
        x[i] = (float)(((i * 7919 + 13) % 2003) - 1001) / 1024.0F;
}

static void test_constants_have_published_bits(void **state)
{
    (void)state;
    const uint32_t table[16] = {0xbf800000, 0xbf3239b1, 0xbf066b30, 0xbeca32a0,
                                0xbe91a24d, 0xbe3d353f, 0xbdba7871, 0x00000000,
                                0x3da2faff, 0x3e24cae3, 0x3e7c04dd, 0x3ead033a,
                                0x3ee1a4b8, 0x3f1007ab, 0x3f3913b3, 0x3f800000};
    const uint32_t threshold[15] = {0xbf591cd9, 0xbf1c5270, 0xbeeb8480, 0xbeadea76, 0xbe703cec,
                                    0xbe0d38bc, 0xbd3a7871, 0x3d22faff, 0x3df64863, 0x3e5067e0,
                                    0x3e9582d4, 0x3ec753f9, 0x3f006d03, 0x3f248daf, 0x3f5c89d9};
    for (int i = 0; i < 16; i++)
        assert_int_equal(bits_of(tess_nf4_table[i]), table[i]);
    for (int i = 0; i < 15; i++)
        assert_int_equal(bits_of(tess_nf4_threshold[i]), threshold[i]);
}

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a;
    const float y = *(const float *)b;
    return (x > y) - (x < y);
}

/* The map built again from its rule, with the fused multiply-add that decides last bits. */
static void test_dynamic_map_follows_its_rule(void **state)
{
    (void)state;
    float map[256] = {0.0F, 1.0F};
    int numel = 2;
    for (int i = 0; i < 7; i++) {
        const int n = (1 << i) + 1;
        const float step = (1.0F - 0.1F) / (float)(n - 1);
        float bound[65];
        for (int k = 0; k < n; k++)
            bound[k] =
                k < n / 2 ? fmaf(step, (float)k, 0.1F) : fmaf(-step, (float)(n - 1 - k), 1.0F);
        const float scale = (float)pow(10.0, i - 6);
        for (int k = 0; k + 1 < n; k++) {
            const float mean = (bound[k] + bound[k + 1]) / 2.0F;
            map[numel++] = mean * scale;
            map[numel++] = -(mean * scale);
        }
    }
    assert_int_equal(numel, 256);
    qsort(map, 256, sizeof(float), by_value);
    assert_memory_equal(map, tess_dynamic_map_signed(), sizeof(map));
    assert_int_equal(crc_of(map, sizeof(map)), 0x1b137aeb);
    assert_int_equal(bits_of(map[0]), 0xbf7e3333);
    assert_int_equal(bits_of(map[128]), 0x3513a3b7);
    for (int k = 1; k <= 127; k++)
        assert_true(map[127 + k] == -map[127 - k]);
}

static void test_quantize_worked_examples(void **state)
{
    (void)state;
    const float x[8] = {-2.0F, -1.0F, -0.25F, 0.0F, 0.1F, 0.5F, 1.0F, 2.0F};
    const float back[8] = {-2.0F,      -1.0501461F, -0.18210007F, 0.0F,
                           0.1591606F, 0.4922246F,  0.88141966F,  2.0F};
    const uint8_t codes[4] = {0x02, 0x67, 0x8a, 0xcf};
    const float y[3] = {0.3F, -0.6F, 0.15F};
    const uint8_t y_codes[2] = {0xc0, 0xa7};
    float got[8];
    quantized q;
    quantized_init(&q, 8, 64, false);
    quantize(&q, x);
    assert_memory_equal(q.data[0], codes, 4);
    assert_int_equal(bits_of(*(float *)q.data[1]), bits_of(2.0F));
    for (int path = 0; path <= (int)tess_cpu_path_highest(); path++) {
        path_set(path);
        dequantize_f32(&q, got);
        for (int i = 0; i < 8; i++) /* the page prints 8 digits: 2^-24 relative and half a digit */
            assert_true(fabsf(got[i] - back[i]) <= 1.2e-7F * fabsf(back[i]));
    }
    quantized_fini(&q);
    quantized_init(&q, 3, 64, false);
    quantize(&q, y);
    assert_memory_equal(q.data[0], y_codes, 2);
    assert_int_equal(bits_of(*(float *)q.data[1]), bits_of(0.6F));
    quantized_fini(&q);
}

static void test_quantize_vector_t_has_published_digests(void **state)
{
    (void)state;
    const float absmax[4] = {0.96484375F, 0.962890625F, 0.9697265625F, 0.9765625F};
    const uint8_t begin[4] = {0x0f, 0xee, 0xed, 0xcb};
    float x[256];
    float got[256];
    fill_t(x, 256);
    assert_int_equal(crc_of(x, sizeof(x)), 0x26e6347d);
    quantized q;
    quantized_init(&q, 256, 64, false);
    quantize(&q, x);
    assert_memory_equal(q.data[1], absmax, sizeof(absmax));
    assert_memory_equal(q.data[0], begin, sizeof(begin));
    assert_int_equal(crc_of(q.data[0], 128), 0x800ff980);
    for (int path = 0; path <= (int)tess_cpu_path_highest(); path++) {
        path_set(path);
        dequantize_f32(&q, got);
        assert_int_equal(crc_of(got, sizeof(got)), 0x291e72f7);
    }
    quantized_fini(&q);
}

/* The table and thresholds of bitsandbytes on the same examples. */
static void test_fp4_worked_examples_and_vector_t(void **state)
{
    (void)state;
    const float x[8] = {-2.0F, -1.0F, -0.25F, 0.0F, 0.1F, 0.5F, 1.0F, 2.0F};
    const uint8_t codes[4] = {0xbd, 0xe0, 0x17, 0x53}, begin[4] = {0xb3, 0x32, 0x25, 0x54};
    float t[256], got[256], zero[64] = {0}, tiny[2] = {-0x1p-30F, 1.0F};
    quantized q;
    quantized_init(&q, 8, 64, false);
    q.codec.format = TESS_FORMAT_FP4;
    quantize(&q, x);
    assert_memory_equal(q.data[0], codes, 4);
    quantized_fini(&q);
    fill_t(t, 256);
    quantized_init(&q, 256, 64, false);
    q.codec.format = TESS_FORMAT_FP4;
    quantize(&q, t);
    assert_memory_equal(q.data[0], begin, sizeof begin);
    assert_int_equal(crc_of(q.data[0], 128), 0x88a890c8);
    for (int path = 0; path <= (int)tess_cpu_path_highest(); path++) {
        path_set(path);
        dequantize_f32(&q, got);
        assert_int_equal(crc_of(got, sizeof got), 0x40ec946c);
    }
    quantized_fini(&q);
    quantized_init(&q, 64, 64, false);
    q.codec.format = TESS_FORMAT_FP4;
    quantize(&q, zero); /* all codes of zero, and absmax 0 */
    for (int i = 0; i < 32; i++)
        assert_int_equal(((const uint8_t *)q.data[0])[i], 0);
    assert_true(*(float *)q.data[1] == 0.0F);
    quantized_fini(&q);
    quantized_init(&q, 2, 64, false);
    q.codec.format = TESS_FORMAT_FP4;
    quantize(&q, tiny); /* a tiny negative is minus zero */
    assert_int_equal(*(const uint8_t *)q.data[0], 0x83);
    quantized_fini(&q);
}

static unsigned code_at(const quantized *q, int64_t idx)
{
    const uint8_t byte = ((const uint8_t *)q->data[0])[idx / 2];
    return idx % 2 == 0 ? byte >> 4 : byte & 15;
}

static void test_quantize_at_threshold_takes_lower_code(void **state)
{
    (void)state;
    float x[46] = {1.0F};
    for (int t = 0; t < 15; t++) {
        x[1 + 3 * t] = nextafterf(tess_nf4_threshold[t], -2.0F);
        x[2 + 3 * t] = tess_nf4_threshold[t];
        x[3 + 3 * t] = nextafterf(tess_nf4_threshold[t], 2.0F);
    }
    quantized q;
    quantized_init(&q, 46, 64, false);
    quantize(&q, x);
    assert_int_equal(code_at(&q, 0), 15);
    for (unsigned t = 0; t < 15; t++) {
        assert_int_equal(code_at(&q, 1 + 3 * t), t);
        assert_int_equal(code_at(&q, 2 + 3 * t), t);
        assert_int_equal(code_at(&q, 3 + 3 * t), t + 1);
    }
    quantized_fini(&q);
}

static void test_quantize_zero_and_subnormal_blocks(void **state)
{
    (void)state;
    float x[97] = {0.0F};
    float got[97];
    x[33] = -0.0F;
    for (int i = 32; i < 96; i++) /* two blocks: absmax 2^-128, where 1/absmax overflows, and 0 */
        x[i] = i < 64 ? 0x1p-128F * (float)(i - 48) / 16.0F : 0.0F;
    x[96] = 0x1p-149F;
    quantized q;
    quantized_init(&q, 97, 32, false);
    quantize(&q, x);
    const float *absmax = q.data[1];
    assert_true(absmax[0] == 0.0F && absmax[2] == 0.0F);
    assert_int_equal(bits_of(absmax[1]), bits_of(0x1p-128F));
    assert_int_equal(bits_of(absmax[3]), 1);
    for (int i = 0; i < 32; i++)
        assert_int_equal(code_at(&q, i), 7);
    assert_int_equal(code_at(&q, 32), 0);
    assert_int_equal(code_at(&q, 48), 7);
    assert_int_equal(code_at(&q, 63), 15); /* 15/16 > 0.861 */
    assert_int_equal(code_at(&q, 96), 15);
    assert_int_equal(((uint8_t *)q.data[0])[48] & 15, 7);
    for (int path = 0; path <= (int)tess_cpu_path_highest(); path++) {
        uint16_t half[97];
        path_set(path);
        dequantize_f32(&q, got);
        dequantize(&q, 0, tess_view_host(half, 97, TESS_BF16), 1);
        assert_int_equal(bits_of(got[96]), 1);
        assert_int_equal(bits_of(got[32]), bits_of(-0x1p-128F));
        assert_int_equal(half[32], 0x8020); /* subnormals are rounded, not flushed */
        for (int i = 0; i < 97; i++)
            assert_int_equal(half[i], tess_bf16_from_f32(got[i]));
    }
    quantized_fini(&q);
}

static void test_quantize_non_finite_is_refused(void **state)
{
    (void)state;
    const float bad[3] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        float x[300];
        char expected[64];
        quantized q;
        fill_t(x, 300);
        x[200 + i] = bad[i];
        quantized_init(&q, 300, 64, i == 1);
        tess_error_clear();
        assert_int_equal(quantize_view(&q, tess_view_host(x, 300, TESS_F32), 2), TESS_E_FORMAT);
        snprintf(expected, sizeof(expected), "tensor 'model.w': element %d is ", 200 + i);
        assert_non_null(strstr(tess_error_message(), expected));
        tess_error_clear();
        quantized_fini(&q);
    }
}

/* absmax 1, 2, 3, 4: offset 2.5, nested absmax 1.5. */
static void test_double_quant_worked_example(void **state)
{
    (void)state;
    const uint8_t codes[4] = {0, 47, 207, 255};
    const float back[4] = {1.0105469F, 2.001953125F, 2.998046875F, 4.0F};
    float x[128] = {0.0F};
    float got[128];
    for (int i = 0; i < 4; i++)
        x[32 * i] = (float)(i + 1);
    quantized q;
    quantized_init(&q, 128, 32, true);
    quantize(&q, x);
    assert_int_equal(bits_of(*(float *)q.data[3]), bits_of(2.5F));
    assert_int_equal(bits_of(*(float *)q.data[2]), bits_of(1.5F));
    assert_memory_equal(q.data[1], codes, 4);
    for (int path = 0; path <= (int)tess_cpu_path_highest(); path++) {
        path_set(path);
        dequantize_f32(&q, got);
        for (int i = 0; i < 4; i++) /* 8 printed digits of a number near 1 */
            assert_true(fabsf(got[32 * i] - back[i]) <= 1.2e-7F);
    }
    quantized_fini(&q);
}

static void test_double_quant_equal_blocks_give_zero_code(void **state)
{
    (void)state;
    float x[64];
    for (int i = 0; i < 64; i++)
        x[i] = i % 2 == 0 ? 3.0F : -3.0F;
    quantized q;
    quantized_init(&q, 64, 32, true);
    quantize(&q, x);
    assert_int_equal(((uint8_t *)q.data[1])[0], 127);
    assert_int_equal(((uint8_t *)q.data[1])[1], 127);
    assert_true(*(float *)q.data[2] == 0.0F && *(float *)q.data[3] == 3.0F);
    quantized_fini(&q);
}

static float spread_value(int64_t i)
{
    return ldexpf((float)(((i * 7919 + 71) % 2003) - 1001) / 1024.0F, -(int)(i / 32 * 5 % 7));
}

/* Codes never depend on threads or on how the source is stored. */
static void test_quantize_threads_and_sources_give_same_bytes(void **state)
{
    (void)state;
    enum { NUMEL = 64 * 261 + 17 };
    float *x = zeroed(NUMEL * sizeof(float));
    uint16_t *half = zeroed(NUMEL * sizeof(uint16_t));
    for (int64_t i = 0; i < NUMEL; i++) {
        half[i] = tess_bf16_from_f32(spread_value(i));
        x[i] = tess_bf16_to_f32(half[i]);
    }
    quantized want;
    quantized_init(&want, NUMEL, 64, true);
    quantize(&want, x);
    for (int threads = 1; threads <= 3; threads++) {
        quantized got;
        quantized_init(&got, NUMEL, 64, true);
        const tess_view src = threads == 2 ? tess_view_host(x, NUMEL, TESS_F32)
                                           : tess_view_host(half, NUMEL, TESS_BF16);
        assert_int_equal(quantize_view(&got, src, threads), TESS_OK);
        for (int i = 0; i < want.part_numel; i++)
            assert_memory_equal(got.data[i], want.data[i], want.part[i].nbytes);
        quantized_fini(&got);
    }
    quantized_fini(&want);
    tess_free(x);
    tess_free(half);
}

/* Half the widest gap of the table is (1 - 0.6961928) / 2 < 0.152; the thresholds move by one ulp.
 * Double quantization adds its own error of the absmax: at most half the widest gap of the map,
 * 0.0071, times nested absmax. */
static void test_round_trip_error_is_within_half_a_gap(void **state)
{
    (void)state;
    enum { NUMEL = 64 * 300 + 5 };
    float *x = zeroed(NUMEL * sizeof(float));
    float *got = zeroed(NUMEL * sizeof(float));
    for (int64_t i = 0; i < NUMEL; i++)
        x[i] = spread_value(i);
    for (int is_double = 0; is_double < 2; is_double++) {
        quantized q;
        quantized_init(&q, NUMEL, 64, is_double != 0);
        quantize(&q, x);
        dequantize_f32(&q, got);
        for (int64_t i = 0; i < NUMEL; i++) {
            float absmax = 0.0F;
            for (int64_t j = i / 64 * 64; j < TESS_MIN(i / 64 * 64 + 64, NUMEL); j++)
                absmax = fmaxf(absmax, fabsf(x[j]));
            const float nested =
                is_double != 0 ? ((float *)q.data[2])[i / 64 / TESS_NESTED_BLOCK_NUMEL] : 0.0F;
            assert_true(fabsf(got[i] - x[i]) <= 0.152F * absmax + 0.0072F * nested);
        }
        quantized_fini(&q);
    }
    tess_free(x);
    tess_free(got);
}

/* Any range, any block size, every path, both dtypes: the bits of the formula. */
static void test_dequantize_range_equals_formula(void **state)
{
    (void)state;
    enum { NUMEL = 4096 * 2 + 77 };
    const int blocks[] = {32, 64, 128, 4096};
    float *x = zeroed(NUMEL * sizeof(float));
    float *got = zeroed((NUMEL + 16) * sizeof(float));
    uint16_t *half = zeroed((NUMEL + 16) * sizeof(uint16_t));
    for (int64_t i = 0; i < NUMEL; i++)
        x[i] = spread_value(i);
    for (int b = 0; b < TESS_NELEM(blocks); b++) {
        quantized q;
        quantized_init(&q, NUMEL, blocks[b], false);
        quantize(&q, x);
        for (int trial = 0; trial < 40; trial++) {
            /* Four at the end of a block, whatever its size. */
            const int64_t first = trial < 4   ? trial
                                  : trial < 8 ? blocks[b] - 1
                                              : (trial * 2311) % NUMEL;
            const int64_t numel = TESS_MIN(NUMEL - first, trial < 20 ? trial * 7 : NUMEL);
            path_set(trial % ((int)tess_cpu_path_highest() + 1));
            got[numel] = 123.0F;
            half[numel] = 123;
            dequantize(&q, first, tess_view_host(got, numel, TESS_F32), 1 + trial % 3);
            dequantize(&q, first, tess_view_host(half, numel, TESS_BF16), 1 + trial % 3);
            for (int64_t i = 0; i < numel; i++) {
                const float absmax = ((float *)q.data[1])[(first + i) / blocks[b]];
                const float want = tess_nf4_table[code_at(&q, first + i)] * absmax;
                assert_int_equal(bits_of(got[i]), bits_of(want));
                assert_int_equal(half[i], tess_bf16_from_f32(want));
            }
            assert_true(got[numel] == 123.0F && half[numel] == 123);
        }
        quantized_fini(&q);
    }
    tess_free(x);
    tess_free(got);
    tess_free(half);
}

static void test_empty_tensor_is_accepted(void **state)
{
    (void)state;
    quantized q;
    quantized_init(&q, 0, 64, true);
    assert_int_equal(quantize_view(&q, tess_view_host(NULL, 0, TESS_F32), 1), TESS_OK);
    assert_true(*(float *)q.data[3] == 0.0F);
    quantized_fini(&q);
}

static void assert_message(tess_status got, tess_status want, const char *text)
{
    assert_int_equal(got, want);
    if (strstr(tess_error_message(), text) == NULL)
        fail_msg("message '%s' does not contain '%s'", tess_error_message(), text);
    tess_error_clear();
}

static void test_wrong_arguments_are_refused(void **state)
{
    (void)state;
    float x[8] = {0.0F};
    uint8_t codes[4];
    float absmax[1];
    tess_quantize_args a = {
        .codec = {.format = TESS_FORMAT_NF4, .block_numel = 64},
        .src = tess_view_host(x, 8, TESS_F32),
        .part = {codes, NULL},
        .tensor_name = "w",
    };
    tess_error_clear();
    assert_message(tess_quantize_check(&a), TESS_E_ARG, "w: part 1 ('absmax') is missing");
    a.part[1] = absmax;
    a.codec.block_numel = 48;
    assert_message(tess_quantize_check(&a), TESS_E_UNSUPPORTED, "nf4 block size 48");
    a.codec.block_numel = 64;
    a.src.dt = TESS_F64;
    assert_message(tess_quantize_check(&a), TESS_E_DTYPE, "src is f64, expected f32 or bf16");
    tess_dequantize_args d = {
        .codec = {.format = TESS_FORMAT_BF16},
        .dst = tess_view_host(x, 8, TESS_F32),
    };
    assert_message(tess_dequantize_check(&d), TESS_E_ARG,
                   "codec is bf16, expected a quantized format");
    d.codec = a.codec;
    d.first_idx = -1;
    assert_message(tess_dequantize_check(&d), TESS_E_ARG, "first_idx is -1");
}

/* -------- against bitsandbytes' pure PyTorch backend -------- */

typedef struct golden {
    char name[32];
    int64_t numel;
    int block_numel, is_spread, is_double;
    int64_t seed;
    float *x;
    uint32_t word[3][BLOCK_MAX]; /* values, absmax, nested_absmax */
    uint8_t codes[BLOCK_MAX];    /* of elements, or of absmax */
    uint32_t offset;
} golden;

static void read_words(FILE *f, uint32_t *out, int64_t numel)
{
    for (int64_t i = 0; i < numel; i++)
        assert_int_equal(fscanf(f, "%8x", &out[i]), 1);
}

static void read_bytes(FILE *f, uint8_t *out, int64_t numel)
{
    for (int64_t i = 0; i < numel; i++) {
        unsigned byte = 0;
        assert_int_equal(fscanf(f, "%2x", &byte), 1);
        out[i] = (uint8_t)byte;
    }
}

static bool golden_read(FILE *f, golden *g)
{
    char key[32];
    if (fscanf(f, " case %31s %ld %d %ld %d %d", g->name, &g->numel, &g->block_numel, &g->seed,
               &g->is_spread, &g->is_double) != 6)
        return false;
    const int64_t block_numel = tess_ceil_div(g->numel, g->block_numel);
    for (;;) {
        const long at = ftell(f);
        if (fscanf(f, " %31s", key) != 1)
            return true;
        if (strcmp(key, "values") == 0)
            read_words(f, g->word[0], g->numel);
        else if (strcmp(key, "absmax") == 0)
            read_words(f, g->word[1], block_numel);
        else if (strcmp(key, "nested_absmax") == 0)
            read_words(f, g->word[2], tess_ceil_div(block_numel, TESS_NESTED_BLOCK_NUMEL));
        else if (strcmp(key, "offset") == 0)
            read_words(f, &g->offset, 1);
        else if (strcmp(key, "codes") == 0)
            read_bytes(f, g->codes, tess_ceil_div(g->numel, 2));
        else if (strcmp(key, "nested_codes") == 0)
            read_bytes(f, g->codes, block_numel);
        else
            return fseek(f, at, SEEK_SET) == 0;
    }
}

static void golden_values(const golden *g, float *x)
{
    for (int64_t i = 0; i < g->numel; i++) {
        x[i] = (float)(((i * 7919 + g->seed) % 2003) - 1001) / 1024.0F;
        if (g->is_spread != 0)
            x[i] = ldexpf(x[i], -(int)(i / 32 * 5 % 7));
        if (g->seed < 0)
            x[i] = from_bits(g->word[0][i]);
    }
}

/* bitsandbytes compares with f32 midpoints and divides in a short last block: a code may differ by
 * one where the scaled value is within 2 ulp of a threshold. Returns the number of such codes. */
static int compare_codes(const golden *g, const quantized *q, const float *x)
{
    int exception_numel = 0;
    for (int64_t i = 0; i < g->numel; i++) {
        const unsigned want = i % 2 == 0 ? g->codes[i / 2] >> 4 : g->codes[i / 2] & 15;
        const unsigned got = code_at(q, i);
        if (got == want)
            continue;
        const float absmax = from_bits(g->word[1][i / g->block_numel]);
        const float u = x[i] * (1.0F / absmax);
        const float t = tess_nf4_threshold[TESS_MIN(got, want)];
        const int32_t ulps = (int32_t)(bits_of(u) - bits_of(t));
        assert_int_equal(TESS_MAX(got, want) - TESS_MIN(got, want), 1);
        assert_in_range(ulps + 2, 0, 4);
        exception_numel++;
    }
    return exception_numel;
}

/* Their mean adds in another order, so the offset may differ in its last bits and shift absmax -
 * offset by as much; near a midpoint that moves a code by one. */
static int compare_nested(const golden *g, const quantized *q)
{
    const float *map = tess_dynamic_map_signed();
    const float offset = *(const float *)q->data[3];
    const float shift = fabsf(offset - from_bits(g->offset));
    int exception_numel = 0;
    assert_true(shift <= 4.0F * 0x1p-24F * offset);
    for (int64_t i = 0; i < tess_ceil_div(g->numel, g->block_numel); i++) {
        const int got = ((const uint8_t *)q->data[1])[i];
        const int want = g->codes[i];
        const float nested = ((const float *)q->data[2])[i / TESS_NESTED_BLOCK_NUMEL];
        const float their = from_bits(g->word[2][i / TESS_NESTED_BLOCK_NUMEL]);
        assert_true(fabsf(nested - their) <= shift + 0x1p-23F * nested);
        if (got == want)
            continue;
        const float u = (q->absmax_work[i] - offset) / nested;
        const float middle = (map[got] + map[want]) * 0.5F;
        assert_int_equal(abs(got - want), 1);
        assert_true(fabsf(u - middle) <= 2.0F * shift / nested + 4.0F * 0x1p-24F);
        exception_numel++;
    }
    return exception_numel;
}

static void test_quantize_agrees_with_bitsandbytes(void **state)
{
    (void)state;
    char first_line[128];
    int case_numel = 0;
    int exception_numel = 0;
    golden *g = zeroed(sizeof(*g));
    float *x = zeroed(BLOCK_MAX * sizeof(float));
    FILE *f = fopen(TESS_TEST_SOURCE_DIR "/tests/golden/nf4.txt", "r");
    assert_non_null(f);
    assert_non_null(fgets(first_line, sizeof(first_line), f));
    while (golden_read(f, g)) {
        quantized q;
        assert_in_range(g->numel, 1, BLOCK_MAX);
        golden_values(g, x);
        quantized_init(&q, g->numel, g->block_numel, g->is_double != 0);
        quantize(&q, x);
        if (g->is_double == 0)
            assert_memory_equal(q.data[1], g->word[1], q.part[1].nbytes);
        const int found = g->is_double != 0 ? compare_nested(g, &q) : compare_codes(g, &q, x);
        print_message("%s: %d of %d codes differ, each at a threshold\n", g->name, found,
                      (int)g->numel);
        exception_numel += found;
        case_numel++;
        quantized_fini(&q);
    }
    fclose(f);
    assert_int_equal(case_numel, 6);
    /* Of the 45 values next to thresholds, those that lie between our threshold and the midpoint:
     * one for each of the four thresholds that differ from it. Chance adds next to none. */
    assert_in_range(exception_numel, 1, 8);
    tess_free(g);
    tess_free(x);
}

static int teardown(void **state)
{
    (void)state;
    tess_cpu_path_reset();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_constants_have_published_bits),
        cmocka_unit_test(test_dynamic_map_follows_its_rule),
        cmocka_unit_test_teardown(test_quantize_worked_examples, teardown),
        cmocka_unit_test_teardown(test_quantize_vector_t_has_published_digests, teardown),
        cmocka_unit_test_teardown(test_fp4_worked_examples_and_vector_t, teardown),
        cmocka_unit_test(test_quantize_at_threshold_takes_lower_code),
        cmocka_unit_test_teardown(test_quantize_zero_and_subnormal_blocks, teardown),
        cmocka_unit_test(test_quantize_non_finite_is_refused),
        cmocka_unit_test_teardown(test_double_quant_worked_example, teardown),
        cmocka_unit_test(test_double_quant_equal_blocks_give_zero_code),
        cmocka_unit_test(test_quantize_threads_and_sources_give_same_bytes),
        cmocka_unit_test(test_round_trip_error_is_within_half_a_gap),
        cmocka_unit_test_teardown(test_dequantize_range_equals_formula, teardown),
        cmocka_unit_test(test_empty_tensor_is_accepted),
        cmocka_unit_test(test_wrong_arguments_are_refused),
        cmocka_unit_test(test_quantize_agrees_with_bitsandbytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
