/*
 * The matrix product of every instruction path this CPU has, against fp64.
 *
 * Bound: a sum of L products in f32, in any order and with or without fused steps, is within
 * (L + 1) * 2^-24 * S of the exact one to first order (S: sum of the absolute products); a scaled
 * term adds two roundings of at most S, a bias or an old C one each. With L counting all terms,
 * (L + 8) * 2^-23 * (S + |bias| + |old|) is twice that, which also covers the second order for
 * L < 2^20. A bf16 result adds half a unit in the last place, 2^-8 relative to be on the safe side
 * of a bound that moves the result across a power of two. Inputs are normal numbers of size 2^-6 to
 * 2, so flushed subnormals do not count.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "kernels/cpu/cpu_priv.h"

enum { CANARY = 0xa5, CANARY_NBYTES = 64, THREADS_MAX = 3 };

typedef struct spec {
    tess_gemm_kind kind;
    tess_dtype dt;
    int64_t m, n;
    int term_numel;
    int64_t k[3];
    tess_codec codec[3];
    float scale[3];
    tess_dtype c_dt;
    bool is_accumulating;
    bool has_bias;
    tess_dtype bias_dt;
    int64_t pad; /* elements between the end of a row and the next, of A and C */
} spec;

/* What a spec becomes: buffers of one product and its fp64 result. */
typedef struct problem {
    spec s;
    tess_gemm_args args;
    tess_matrix bias;
    double *a_value[3]; /* [M, K] whatever the kind */
    double *b_value[3]; /* [K, N] whatever the kind */
    double *bias_value;
    float *c_old;
    double *want;
    double *bound;
    char *c; /* between canaries */
    size_t c_nbytes;
    char *work;
} problem;

static uint64_t random_state;

static uint32_t random_u32(void)
{
    random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)(random_state >> 32);
}

/* Sign, and magnitude in [2^-6, 2). */
static float random_value(void)
{
    const float mantissa = 1.0F + (float)(random_u32() >> 9) * 0x1p-23F;
    const float x = ldexpf(mantissa, -(int)(random_u32() % 7));
    return (random_u32() & 1) != 0 ? x : -x;
}

static void *zeroed(int64_t numel, size_t elem_nbytes)
{
    void *p = NULL;
    assert_int_equal(tess_alloc_array(numel, elem_nbytes, &p), TESS_OK);
    return p;
}

static double stored(tess_dtype dt, void *dst, int64_t idx, float x)
{
    if (dt == TESS_BF16) {
        ((uint16_t *)dst)[idx] = tess_bf16_from_f32(x);
        return (double)tess_bf16_to_f32(((uint16_t *)dst)[idx]);
    }
    ((float *)dst)[idx] = x;
    return (double)x;
}

static double loaded(tess_dtype dt, const void *src, int64_t idx)
{
    return dt == TESS_BF16 ? (double)tess_bf16_to_f32(((const uint16_t *)src)[idx])
                           : (double)((const float *)src)[idx];
}

/* A weight as the compute dtype sees it: one rounding to bf16 where that is the dtype. */
static double seen(tess_dtype dt, float x)
{
    return dt == TESS_BF16 ? (double)tess_bf16_to_f32(tess_bf16_from_f32(x)) : (double)x;
}

static float nf4_value(const tess_matrix *b, int64_t idx)
{
    const uint8_t byte = ((const uint8_t *)b->part[0])[idx / 2];
    const int64_t block = idx / b->codec.block_numel;
    float absmax = 0.0F;
    if (b->codec.double_quant) {
        const float entry = tess_dynamic_map_signed()[((const uint8_t *)b->part[1])[block]];
        const float product = entry * ((const float *)b->part[2])[block / 256];
        absmax = product + *(const float *)b->part[3];
    } else {
        absmax = ((const float *)b->part[1])[block];
    }
    return tess_nf4_table[idx % 2 == 0 ? byte >> 4 : byte & 15] * absmax;
}

static void matrix_fill(tess_matrix *b, const tess_codec *codec, int64_t rows, int64_t cols)
{
    tess_codec_part part[TESS_CODEC_PART_MAX];
    int part_numel = 0;
    b->codec = *codec;
    b->rows = rows;
    b->cols = cols;
    assert_int_equal(tess_codec_parts(codec, rows * cols, part, &part_numel), TESS_OK);
    for (int i = 0; i < part_numel; i++) {
        void *data = zeroed((int64_t)part[i].nbytes, 1);
        for (int64_t j = 0; j < part[i].numel; j++) {
            if (part[i].dt == TESS_U8)
                ((uint8_t *)data)[j] = (uint8_t)random_u32();
            else
                (void)stored(part[i].dt, data, j,
                             codec->format == TESS_FORMAT_NF4
                                 ? (i == 3 ? 1.5F : 0.5F + fabsf(random_value()) / 8.0F)
                                 : random_value());
        }
        b->part[i] = data;
    }
}

static double matrix_value(const tess_matrix *b, int64_t idx, tess_dtype dt)
{
    if (b->codec.format == TESS_FORMAT_NF4)
        return seen(dt, nf4_value(b, idx));
    const tess_dtype stored_dt = b->codec.format == TESS_FORMAT_BF16 ? TESS_BF16 : TESS_F32;
    return seen(dt, (float)loaded(stored_dt, b->part[0], idx));
}

static void term_fill(problem *p, int t)
{
    const spec *s = &p->s;
    const bool is_tn = s->kind == TESS_GEMM_TN;
    const int64_t k = s->k[t];
    const int64_t rows = is_tn ? k : s->m;
    const int64_t cols = is_tn ? s->m : k;
    const int64_t stride = cols + s->pad;
    tess_gemm_term *term = &p->args.term[t];
    void *a = zeroed(rows * stride + 1, tess_dtype_block_nbytes(s->dt));
    p->a_value[t] = zeroed(s->m * k + 1, sizeof(double));
    p->b_value[t] = zeroed(s->n * k + 1, sizeof(double));
    for (int64_t i = 0; i < rows * stride; i++) {
        const bool is_pad = i % stride >= cols;
        const double x = stored(s->dt, a, i, is_pad ? NAN : random_value());
        if (!is_pad)
            p->a_value[t][is_tn ? (i % stride) * k + i / stride : i / stride * k + i % stride] = x;
    }
    /* The view ends with the last element of the last row: nothing behind it may be read. */
    const int64_t a_numel = rows == 0 || cols == 0 ? 0 : (rows - 1) * stride + cols;
    term->a = tess_view_host(a, a_numel, s->dt);
    term->a_stride = s->pad != 0 ? stride : 0;
    term->k = k;
    term->scale = s->scale[t];
    const bool is_nt = s->kind == TESS_GEMM_NT;
    matrix_fill(&term->b, &s->codec[t], is_nt ? s->n : k, is_nt ? k : s->n);
    for (int64_t i = 0; i < s->n * k; i++) {
        const int64_t at = is_nt ? i % k * s->n + i / k : i;
        p->b_value[t][at] = matrix_value(&term->b, i, s->dt);
    }
}

static void reference(problem *p)
{
    const spec *s = &p->s;
    for (int64_t i = 0; i < s->m * s->n; i++) {
        const int64_t row = i / s->n;
        const int64_t col = i % s->n;
        double sum = 0.0;
        double size = 0.0;
        int64_t length = 0;
        for (int t = 0; t < s->term_numel; t++) {
            for (int64_t k = 0; k < s->k[t]; k++) {
                const double product = (double)s->scale[t] * p->a_value[t][row * s->k[t] + k] *
                                       p->b_value[t][k * s->n + col];
                sum += product;
                size += fabs(product);
            }
            length += s->k[t];
        }
        const double bias = s->has_bias ? p->bias_value[col] : 0.0;
        const double old = s->is_accumulating ? (double)p->c_old[i] : 0.0;
        p->want[i] = sum + bias + old;
        p->bound[i] = (double)(length + 8) * 0x1p-23 * (size + fabs(bias) + fabs(old));
        if (s->c_dt == TESS_BF16)
            p->bound[i] += 0x1p-8 * fabs(p->want[i]) + p->bound[i];
    }
}

static problem *problem_create(const spec *s)
{
    problem *p = zeroed(1, sizeof(*p));
    const int64_t c_stride = s->n + s->pad;
    p->s = *s;
    p->args.kind = s->kind;
    p->args.m = s->m;
    p->args.n = s->n;
    p->args.term_numel = s->term_numel;
    for (int t = 0; t < s->term_numel; t++)
        term_fill(p, t);
    p->bias_value = zeroed(s->n, sizeof(double));
    if (s->has_bias) {
        const tess_codec codec =
            tess_codec_of_format(s->bias_dt == TESS_BF16 ? TESS_FORMAT_BF16 : TESS_FORMAT_F32);
        matrix_fill(&p->bias, &codec, 1, s->n);
        p->args.bias = &p->bias;
        for (int64_t j = 0; j < s->n; j++)
            p->bias_value[j] = loaded(s->bias_dt, p->bias.part[0], j);
    }
    p->c_old = zeroed(s->m * s->n, sizeof(float));
    for (int64_t i = 0; i < s->m * s->n; i++)
        p->c_old[i] = random_value();
    p->want = zeroed(s->m * s->n, sizeof(double));
    p->bound = zeroed(s->m * s->n, sizeof(double));
    p->c_nbytes = (size_t)(s->m * c_stride) * tess_dtype_block_nbytes(s->c_dt);
    p->c = zeroed((int64_t)p->c_nbytes + 2 * CANARY_NBYTES, 1);
    p->args.c = tess_view_host(p->c + CANARY_NBYTES, s->m * c_stride, s->c_dt);
    p->args.c_stride = s->pad != 0 ? c_stride : 0;
    p->args.accumulate = s->is_accumulating;
    reference(p);
    return p;
}

static void problem_destroy(problem *p)
{
    for (int t = 0; t < p->s.term_numel; t++) {
        tess_free(p->args.term[t].a.data);
        tess_free(p->a_value[t]);
        tess_free(p->b_value[t]);
        for (int i = 0; i < TESS_CODEC_PART_MAX; i++)
            tess_free((void *)(uintptr_t)p->args.term[t].b.part[i]);
    }
    tess_free((void *)(uintptr_t)p->bias.part[0]);
    tess_free(p->bias_value);
    tess_free(p->c_old);
    tess_free(p->want);
    tess_free(p->bound);
    tess_free(p->c);
    tess_free(p);
}

static void c_reset(problem *p)
{
    const int64_t c_stride = p->s.n + p->s.pad;
    memset(p->c, CANARY, p->c_nbytes + (size_t)2 * CANARY_NBYTES);
    for (int64_t i = 0; p->s.is_accumulating && i < p->s.m * p->s.n; i++)
        ((float *)(void *)(p->c + CANARY_NBYTES))[i / p->s.n * c_stride + i % p->s.n] = p->c_old[i];
}

static void assert_canaries(const char *data, size_t nbytes)
{
    for (size_t i = 0; i < nbytes; i++)
        assert_int_equal((unsigned char)data[i], CANARY);
}

static void c_check(const problem *p)
{
    const spec *s = &p->s;
    const int64_t c_stride = s->n + s->pad;
    const size_t elem_nbytes = tess_dtype_block_nbytes(s->c_dt);
    assert_canaries(p->c, CANARY_NBYTES);
    assert_canaries(p->c + CANARY_NBYTES + p->c_nbytes, CANARY_NBYTES);
    for (int64_t i = 0; i < s->m * c_stride; i++) {
        const int64_t row = i / c_stride;
        const int64_t col = i % c_stride;
        if (col >= s->n) {
            assert_canaries((const char *)p->args.c.data + (size_t)i * elem_nbytes, elem_nbytes);
            continue;
        }
        const double got = loaded(s->c_dt, p->args.c.data, i);
        const int64_t at = row * s->n + col;
        if (!(fabs(got - p->want[at]) <= p->bound[at]))
            fail_msg("path %s kind %d dt %s [%d, %d]: C[%d, %d] is %.9g, expected %.9g +- %.3g",
                     tess_kernels_cpu.path(), (int)s->kind, tess_dtype_name(s->dt), (int)s->m,
                     (int)s->n, (int)row, (int)col, got, p->want[at], p->bound[at]);
    }
}

/* Run with a workspace of exactly the stated size between canaries. */
static void run(problem *p, int thread_numel)
{
    tess_pool *pool = NULL;
    tess_stream stream;
    const size_t work_nbytes = tess_cpu_gemm_work_nbytes(&p->args, thread_numel);
    char *work = zeroed((int64_t)work_nbytes + 2 * CANARY_NBYTES, 1);
    memset(work, CANARY, work_nbytes + (size_t)2 * CANARY_NBYTES);
    p->args.work = tess_view_host(work + CANARY_NBYTES, (int64_t)work_nbytes, TESS_U8_OPAQUE);
    assert_int_equal(tess_pool_create(thread_numel, &pool), TESS_OK);
    tess_stream_init_inline(&stream, "compute", pool);
    c_reset(p);
    tess_alloc_freeze();
    const tess_status st = tess_kernels_cpu.gemm(&p->args, &stream);
    tess_alloc_thaw();
    if (st != TESS_OK)
        fail_msg("%s", tess_error_message());
    assert_canaries(work, CANARY_NBYTES);
    assert_canaries(work + CANARY_NBYTES + work_nbytes, CANARY_NBYTES);
    tess_pool_destroy(&pool);
    tess_free(work);
}

/* Rows [first, first + numel) computed alone equal those of the whole. */
static void check_rows_alone(problem *p, const char *whole, int64_t first, int64_t numel)
{
    const spec *s = &p->s;
    const tess_gemm_args kept = p->args;
    const size_t a_nbytes = tess_dtype_block_nbytes(s->dt);
    const size_t c_nbytes = tess_dtype_block_nbytes(s->c_dt);
    const int64_t c_stride = s->n + s->pad;
    for (int t = 0; t < s->term_numel; t++) {
        tess_gemm_term *term = &p->args.term[t];
        const int64_t a_stride = (s->kind == TESS_GEMM_TN ? s->m : s->k[t]) + s->pad;
        const int64_t skip = s->kind == TESS_GEMM_TN ? first : first * a_stride;
        term->a.data = (char *)term->a.data + (size_t)skip * a_nbytes;
        term->a.numel -= TESS_MIN(skip, term->a.numel);
        term->a_stride = a_stride;
    }
    p->args.m = numel;
    p->args.c = tess_view_slice(p->args.c, first * c_stride, numel * c_stride);
    run(p, 1);
    const size_t offset = CANARY_NBYTES + (size_t)(first * c_stride) * c_nbytes;
    assert_memory_equal(p->c + offset, whole + offset, (size_t)(numel * c_stride) * c_nbytes);
    p->args = kept;
}

/* Every path, 1 to 3 threads, and parts of the rows. */
static void check(const spec *s)
{
    problem *p = problem_create(s);
    char *whole = zeroed((int64_t)p->c_nbytes + 2 * CANARY_NBYTES, 1);
    for (int path = 0; path <= (int)tess_cpu_path_highest(); path++) {
        tess_cpu_path_reset();
        assert_int_equal(tess_kernels_cpu_select((tess_cpu_path)path), TESS_OK);
        for (int threads = 1; threads <= THREADS_MAX; threads++) {
            run(p, threads);
            c_check(p);
            if (threads == 1)
                memcpy(whole, p->c, p->c_nbytes + (size_t)2 * CANARY_NBYTES);
            else
                assert_memory_equal(whole, p->c, p->c_nbytes + (size_t)2 * CANARY_NBYTES);
        }
        if (s->m > 1) {
            check_rows_alone(p, whole, s->m - 1, 1);
            check_rows_alone(p, whole, s->m / 2, s->m - s->m / 2);
        }
    }
    tess_cpu_path_reset();
    tess_free(whole);
    problem_destroy(p);
}

static spec spec_of(tess_gemm_kind kind, tess_dtype dt, int64_t m, int64_t n, int64_t k,
                    tess_codec codec)
{
    const spec s = {
        .kind = kind,
        .dt = dt,
        .m = m,
        .n = n,
        .term_numel = 1,
        .k = {k},
        .codec = {codec},
        .scale = {1.0F, 1.0F, 1.0F},
        .c_dt = dt,
        .bias_dt = TESS_F32,
    };
    return s;
}

static tess_codec plain(tess_dtype dt)
{
    return tess_codec_of_format(dt == TESS_BF16 ? TESS_FORMAT_BF16 : TESS_FORMAT_F32);
}

static tess_codec nf4(int block_numel, bool double_quant)
{
    const tess_codec codec = {
        .format = TESS_FORMAT_NF4, .block_numel = block_numel, .double_quant = double_quant};
    return codec;
}

static const int64_t sizes[][3] = {
    {1, 1, 1},   {1, 17, 2},    {2, 16, 3},    {5, 33, 31},  {6, 64, 64},
    {7, 65, 65}, {13, 48, 130}, {25, 100, 96}, {70, 5, 257}, {12, 129, 515},
};

static void check_sizes(tess_gemm_kind kind, tess_dtype dt, tess_codec codec)
{
    random_state = 1;
    for (int i = 0; i < TESS_NELEM(sizes); i++) {
        const spec s = spec_of(kind, dt, sizes[i][0], sizes[i][1], sizes[i][2], codec);
        check(&s);
    }
}

static void test_gemm_plain_any_size_is_within_bound(void **state)
{
    (void)state;
    const tess_gemm_kind kinds[] = {TESS_GEMM_NT, TESS_GEMM_NN, TESS_GEMM_TN};
    for (int i = 0; i < TESS_NELEM(kinds); i++) {
        check_sizes(kinds[i], TESS_F32, plain(TESS_F32));
        check_sizes(kinds[i], TESS_BF16, plain(TESS_BF16));
    }
}

static void test_gemm_weight_of_other_dtype_is_converted_once(void **state)
{
    (void)state;
    check_sizes(TESS_GEMM_NT, TESS_F32, plain(TESS_BF16));
    check_sizes(TESS_GEMM_NT, TESS_BF16, plain(TESS_F32));
    check_sizes(TESS_GEMM_NN, TESS_F32, plain(TESS_BF16));
    check_sizes(TESS_GEMM_NN, TESS_BF16, plain(TESS_F32));
}

static void test_gemm_nf4_blocks_cross_rows_is_within_bound(void **state)
{
    (void)state;
    for (int dt = 0; dt < 2; dt++) {
        const tess_dtype dtype = dt == 0 ? TESS_F32 : TESS_BF16;
        check_sizes(TESS_GEMM_NT, dtype, nf4(64, true));
        check_sizes(TESS_GEMM_NN, dtype, nf4(64, true));
        check_sizes(TESS_GEMM_NT, dtype, nf4(32, false));
        check_sizes(TESS_GEMM_NN, dtype, nf4(32, false));
        check_sizes(TESS_GEMM_NT, dtype, nf4(4096, false));
        check_sizes(TESS_GEMM_NN, dtype, nf4(256, true));
    }
}

static void test_gemm_nf4_aligned_rows_is_within_bound(void **state)
{
    (void)state;
    const int blocks[] = {32, 64, 128, 512};
    random_state = 2;
    for (int i = 0; i < TESS_NELEM(blocks); i++) {
        for (int kind = 0; kind < 2; kind++) {
            spec s = spec_of(kind == 0 ? TESS_GEMM_NT : TESS_GEMM_NN, TESS_BF16, 9, 192, 576,
                             nf4(blocks[i], i % 2 == 0));
            check(&s);
            s.dt = TESS_F32;
            s.c_dt = TESS_F32;
            check(&s);
        }
    }
}

/* A quantized weight and a LoRA branch, as a linear layer runs them. */
static void test_gemm_terms_scale_and_bias_are_within_bound(void **state)
{
    (void)state;
    random_state = 3;
    for (int i = 0; i < 24; i++) {
        const tess_dtype dt = i % 2 == 0 ? TESS_BF16 : TESS_F32;
        spec s = spec_of(i / 2 % 2 == 0 ? TESS_GEMM_NT : TESS_GEMM_NN, dt, 11 + i, 70 + i, 70,
                         nf4(64, i % 3 == 0));
        s.term_numel = 3;
        s.k[1] = 16;
        s.k[2] = i % 4 == 0 ? 600 : 1;
        s.codec[1] = plain(dt);
        s.codec[2] = plain(TESS_BF16);
        s.scale[0] = i % 5 == 0 ? 0.5F : 1.0F;
        s.scale[1] = 2.0F / 3.0F;
        s.scale[2] = i % 3 == 0 ? -1.25F : 1.0F;
        s.has_bias = i % 3 != 1;
        s.bias_dt = i % 2 == 0 ? TESS_F32 : TESS_BF16;
        s.c_dt = i % 4 == 1 ? TESS_F32 : dt;
        s.pad = i % 7;
        check(&s);
    }
}

static void test_gemm_long_scaled_first_term_is_within_bound(void **state)
{
    (void)state;
    random_state = 4;
    for (int kind = 0; kind < 3; kind++) {
        spec s = spec_of((tess_gemm_kind)kind, TESS_BF16, 14, 16, 1100, plain(TESS_BF16));
        s.scale[0] = 0.3F;
        check(&s);
        s.m = 16;
        s.n = 150;
        check(&s);
    }
}

static void test_gemm_accumulate_adds_to_f32_result(void **state)
{
    (void)state;
    random_state = 5;
    for (int kind = 0; kind < 3; kind++) {
        spec s = spec_of((tess_gemm_kind)kind, TESS_BF16, 19, 45, 40, plain(TESS_BF16));
        s.c_dt = TESS_F32;
        s.is_accumulating = true;
        s.pad = 3;
        check(&s);
    }
}

/* More rows than a chunk, more panels than a group, and a LoRA gradient's narrow sides. */
static void test_gemm_many_rows_and_columns_is_within_bound(void **state)
{
    (void)state;
    random_state = 6;
    spec s = spec_of(TESS_GEMM_NT, TESS_BF16, 1030, 20, 33, nf4(64, true));
    check(&s);
    s = spec_of(TESS_GEMM_NN, TESS_BF16, 10, 1300, 40, nf4(64, true));
    check(&s);
    s = spec_of(TESS_GEMM_TN, TESS_BF16, 16, 1100, 40, plain(TESS_BF16));
    check(&s);
    s = spec_of(TESS_GEMM_TN, TESS_BF16, 1100, 16, 40, plain(TESS_BF16));
    s.c_dt = TESS_F32;
    check(&s);
}

/* An infinite activation reaches its own row only, and never through padding. */
static void test_gemm_infinity_stays_in_its_row(void **state)
{
    (void)state;
    random_state = 7;
    const spec s = spec_of(TESS_GEMM_NT, TESS_BF16, 5, 20, 33, plain(TESS_BF16));
    problem *p = problem_create(&s);
    ((uint16_t *)p->args.term[0].a.data)[3 * 33 + 32] = 0x7f80;
    for (int path = 0; path <= (int)tess_cpu_path_highest(); path++) {
        tess_cpu_path_reset();
        assert_int_equal(tess_kernels_cpu_select((tess_cpu_path)path), TESS_OK);
        run(p, 1);
        for (int64_t i = 0; i < 5 * 20; i++)
            assert_int_equal(isinf(loaded(TESS_BF16, p->args.c.data, i)) != 0, i / 20 == 3);
    }
    tess_cpu_path_reset();
    problem_destroy(p);
}

static void test_gemm_empty_sum_is_bias(void **state)
{
    (void)state;
    random_state = 8;
    spec s = spec_of(TESS_GEMM_NT, TESS_F32, 3, 18, 0, plain(TESS_F32));
    s.has_bias = true;
    check(&s);
    s.scale[0] = 0.5F;
    check(&s);
}

static void assert_refused(const tess_gemm_args *a, tess_status want, const char *text)
{
    tess_error_clear();
    assert_int_equal(tess_kernels_cpu.gemm(a, NULL), want);
    if (strstr(tess_error_message(), text) == NULL)
        fail_msg("message '%s' does not contain '%s'", tess_error_message(), text);
    tess_error_clear();
}

static void test_gemm_wrong_arguments_are_refused(void **state)
{
    (void)state;
    random_state = 9;
    const spec s = spec_of(TESS_GEMM_TN, TESS_BF16, 4, 18, 6, plain(TESS_BF16));
    problem *p = problem_create(&s);
    tess_gemm_args a = p->args;
    assert_refused(&a, TESS_E_ARG, "work has 0 bytes");
    a.m = 5;
    assert_refused(&a, TESS_E_ARG, "A [6, 5] needs 30 elements");
    a = p->args;
    a.n = 17;
    assert_refused(&a, TESS_E_ARG, "B is [6, 18], expected [6, 17]");
    a = p->args;
    a.term[0].b.codec = plain(TESS_F32);
    assert_refused(&a, TESS_E_DTYPE, "B of term 0 is f32; the weight gradient takes plain bf16");
    a = p->args;
    a.accumulate = true;
    assert_refused(&a, TESS_E_DTYPE, "only an f32 result can be accumulated");
    a = p->args;
    a.c.dt = TESS_F16;
    assert_refused(&a, TESS_E_DTYPE, "C is f16, expected f32 or the compute dtype bf16");
    a = p->args;
    a.term_numel = 9;
    assert_refused(&a, TESS_E_ARG, "9 terms");
    a = p->args;
    a.c_stride = 7;
    assert_refused(&a, TESS_E_ARG, "rows of C are 7 elements apart but hold 18");
    a = p->args;
    a.term[0].a.dt = TESS_F64;
    assert_refused(&a, TESS_E_DTYPE, "A of term 0 is f64");
    a = p->args;
    a.kind = TESS_GEMM_NT;
    a.term[0].b.rows = 18;
    a.term[0].b.cols = 6;
    a.term[0].b.codec = nf4(48, false);
    assert_refused(&a, TESS_E_UNSUPPORTED, "nf4 block size 48");
    problem_destroy(p);
}

/* What is planned for a batch holds any smaller one. */
static void test_work_never_shrinks_with_rows(void **state)
{
    static const int64_t n[] = {1, 16, 24, 64, 96, 256, 3072};
    static const tess_dtype dtypes[] = {TESS_F32, TESS_BF16};
    (void)state;
    for (int i = 0; i < TESS_NELEM(n) * 12; i++) {
        const int thread_numel = 1 + i % 3;
        const tess_gemm_kind kind = i / 3 % 2 == 0 ? TESS_GEMM_NT : TESS_GEMM_TN;
        size_t before = 0;
        for (int64_t rows = 1; rows < 2200; rows += rows < 40 || rows % 1024 > 1000 ? 1 : 17) {
            const bool is_tn = kind == TESS_GEMM_TN;
            const tess_gemm_args args = {
                .kind = kind,
                .m = is_tn ? 192 : rows,
                .n = n[i / 12],
                .term_numel = 1,
                .term = {{.a = {.dt = dtypes[i / 6 % 2]}, .k = is_tn ? rows : 320, .scale = 1.0F}}};
            const size_t found = tess_cpu_gemm_work_nbytes(&args, thread_numel);
            if (found < before)
                fail_msg("%d rows, n %d, %d threads: %zu bytes, fewer rows take %zu", (int)rows,
                         (int)n[i / 12], thread_numel, found, before);
            before = found;
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_work_never_shrinks_with_rows),
        cmocka_unit_test(test_gemm_plain_any_size_is_within_bound),
        cmocka_unit_test(test_gemm_weight_of_other_dtype_is_converted_once),
        cmocka_unit_test(test_gemm_nf4_blocks_cross_rows_is_within_bound),
        cmocka_unit_test(test_gemm_nf4_aligned_rows_is_within_bound),
        cmocka_unit_test(test_gemm_terms_scale_and_bias_are_within_bound),
        cmocka_unit_test(test_gemm_long_scaled_first_term_is_within_bound),
        cmocka_unit_test(test_gemm_accumulate_adds_to_f32_result),
        cmocka_unit_test(test_gemm_many_rows_and_columns_is_within_bound),
        cmocka_unit_test(test_gemm_infinity_stays_in_its_row),
        cmocka_unit_test(test_gemm_empty_sum_is_bias),
        cmocka_unit_test(test_gemm_wrong_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
