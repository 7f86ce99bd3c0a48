/**
 * Matrix products that every device has to get right: plain and stored matrices, terms beside each
 * other and apart, strides, biases, accumulation. The program that includes this says how its
 * device runs one of them (run_device), in the emulation and behind the plugin's door alike.
 *
 * Bound: as in tests/kernels/test_gemm.c, (L + 8) * 2^-23 * (S + |bias| + |old|) with L products of
 * absolute sum S, and half a unit in the last place of a bf16 result, 2^-8 relative. It holds for
 * any order of the additions, for additions that truncate (2^-23 of the larger operand, as tensor
 * cores may), and for a scale applied to a joint sum. With small integers every sum is exact, so
 * that the bits must be those of tess_cpu_gemm().
 */
#pragma once

#include "tests/emulation/gemm_problem.h"
#include "tests/support/must.h"

/** Of the program: one run, number `run_idx` of the problem; results lie in its C. How often each
 * problem runs, with equal bits, is RUN_NUMEL, which stands before this header is included. */
static void run_device(problem *p, int run_idx);
/** Of the program: after the last run; device memory is free again. */
static void release_device(void);

/* The exact result of one element, and its bound. */
static double exact(const problem *p, int64_t row, int64_t col, double *bound)
{
    const spec *s = &p->s;
    const bool is_tn = s->kind == TESS_GEMM_TN, is_nt = s->kind == TESS_GEMM_NT;
    double sum = 0.0, size = 0.0;
    int64_t length = 0;
    for (int t = 0; t < s->term_numel; t++) {
        for (int64_t k = 0; k < s->k[t]; k++) {
            const int64_t a_idx = is_tn ? k * p->a_stride[t] + row : row * p->a_stride[t] + k;
            const int64_t b_idx = is_nt ? col * s->k[t] + k : k * s->n + col;
            const double product = (double)p->host.term[t].scale *
                                   loaded(s->dt, p->a_host[t], a_idx) *
                                   (double)p->b_value[t][b_idx];
            sum += product;
            size += fabs(product);
        }
        length += s->k[t];
    }
    const double bias = s->has_bias ? loaded(s->bias_dt, p->host_bias.part[0], col) : 0.0;
    const double old =
        s->is_accumulating ? loaded(s->c_dt, p->c->host, row * (s->n + s->pad) + col) : 0.0;
    const double want = sum + bias + old;
    *bound = (double)(length + 8) * 0x1p-23 * (size + fabs(bias) + fabs(old));
    if (s->c_dt == TESS_BF16)
        *bound += 0x1p-8 * fabs(want) + *bound;
    return want;
}

static void check_bound(const problem *p, const void *got)
{
    const spec *s = &p->s;
    const int64_t stride = s->n + s->pad;
    const size_t nbytes = tess_dtype_block_nbytes(s->c_dt);
    for (int64_t i = 0; i < s->m * stride; i++) {
        if (i % stride >= s->n) {
            for (size_t j = 0; j < nbytes; j++)
                assert_int_equal(((const uint8_t *)got)[(size_t)i * nbytes + j], PAD_BYTE);
            continue;
        }
        double bound = 0.0;
        const double want = exact(p, i / stride, i % stride, &bound);
        const double x = loaded(s->c_dt, got, i);
        if (!(fabs(x - want) <= bound))
            fail_msg("kind %d %s [%d, %d]: C[%d, %d] is %.9g, expected %.9g +- %.3g", (int)s->kind,
                     tess_dtype_name(s->dt), (int)s->m, (int)s->n, (int)(i / stride),
                     (int)(i % stride), x, want, bound);
    }
}

static void run_host(problem *p)
{
    tess_stream s;
    void *work = NULL;
    const size_t work_nbytes = tess_cpu_gemm_work_nbytes(&p->host, 1);
    work = zeroed((int64_t)work_nbytes, 1);
    p->host.work = tess_view_host(work, (int64_t)work_nbytes, TESS_U8_OPAQUE);
    tess_stream_init_inline(&s, "compute", NULL);
    must(tess_cpu_gemm(&p->host, &s));
    tess_free(work);
}

/* Runs on the device: within the bound, equal bits where sums are exact, the same in every run. */
static void check(const spec *s)
{
    problem *p = problem_create(s);
    void *got = zeroed((int64_t)p->c->nbytes + 1, 1);
    void *again = zeroed((int64_t)p->c->nbytes + 1, 1);
    run_device(p, 0);
    if (p->c->nbytes > 0)
        must(tess_emulation_read(got, p->c->device, p->c->nbytes));
    check_bound(p, got);
    for (int i = 1; i < RUN_NUMEL; i++) {
        upload(p->c);
        run_device(p, i);
        if (p->c->nbytes > 0)
            must(tess_emulation_read(again, p->c->device, p->c->nbytes));
        assert_memory_equal(got, again, p->c->nbytes);
    }
    if (s->is_integer) {
        run_host(p);
        assert_memory_equal(got, p->c->host, p->c->nbytes);
    }
    tess_free(got);
    tess_free(again);
    problem_destroy(p);
    release_device();
}

static tess_codec plain(tess_dtype dt)
{
    return tess_codec_of_format(dt == TESS_BF16 ? TESS_FORMAT_BF16 : TESS_FORMAT_F32);
}

static tess_codec nf4(int64_t block_numel, bool double_quant)
{
    return (tess_codec){
        .format = TESS_FORMAT_NF4, .block_numel = block_numel, .double_quant = double_quant};
}

static spec spec_of(tess_gemm_kind kind, tess_dtype dt, int64_t m, int64_t n, int64_t k)
{
    return (spec){.kind = kind,
                  .dt = dt,
                  .c_dt = dt,
                  .m = m,
                  .n = n,
                  .term_numel = 1,
                  .k = {k},
                  .codec = {plain(dt)},
                  .bias_dt = TESS_F32};
}

static const int64_t sizes[][3] = {
    {1, 1, 1}, {3, 17, 2}, {5, 33, 31}, {6, 64, 64}, {13, 48, 136}, {9, 24, 257},
};

static const tess_dtype dtypes[] = {TESS_F32, TESS_BF16};
static const tess_gemm_kind kinds[] = {TESS_GEMM_NT, TESS_GEMM_NN, TESS_GEMM_TN};

static void test_gemm_plain_any_size_runs_where_it_lies(void **state)
{
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        for (int dt = 0; dt < 2; dt++) {
            for (int i = 0; i < TESS_NELEM(sizes); i++) {
                spec s = spec_of(kinds[kind], dtypes[dt], sizes[i][0], sizes[i][1], sizes[i][2]);
                s.product_numel = 1;
                s.pad = i % 2 == 0 ? 0 : 3;
                s.is_integer = i % 3 == 0;
                check(&s);
                s.c_dt = TESS_F32;
                s.is_accumulating = true;
                check(&s);
            }
        }
    }
}

/* Whether a quantized matrix is multiplied while it is decoded: few rows of whole chunks. */
static bool is_thin(const spec *s)
{
    return s->kind == TESS_GEMM_NT && s->dt == TESS_BF16 && s->m <= 8 && s->k[0] % 8 == 0;
}

static void test_gemm_quantized_and_other_dtypes_pass_through_scratch(void **state)
{
    (void)state;
    const tess_codec fp4 = {.format = TESS_FORMAT_FP4, .block_numel = 64, .double_quant = true};
    const tess_codec codecs[] = {nf4(64, false), nf4(64, true), fp4, nf4(32, true),
                                 nf4(128, false)};
    for (int kind = 0; kind < 2; kind++) {
        for (int dt = 0; dt < 2; dt++) {
            for (int i = 0; i < TESS_NELEM(sizes); i++) {
                spec s = spec_of(kinds[kind], dtypes[dt], sizes[i][0], sizes[i][1], sizes[i][2]);
                s.product_numel = is_thin(&s) ? NO_PRODUCT : 1;
                s.codec[0] = codecs[i % TESS_NELEM(codecs)];
                check(&s);
                s.product_numel = 1;
                s.codec[0] = plain(dtypes[1 - dt]);
                check(&s);
            }
        }
    }
}

static spec joined_spec(tess_gemm_kind kind, tess_dtype dt, const char *format)
{
    spec s = spec_of(kind, dt, 11, 256, 256);
    assert_int_equal(tess_codec_parse(format, 256, &s.codec[0]), TESS_OK);
    s.term_numel = 2;
    s.k[1] = 8;
    s.codec[1] = plain(dt);
    s.is_adjacent = true;
    s.product_numel = 1;
    return s;
}

/* An adapter beside weights in every format, whatever the compute dtype. */
static void test_gemm_every_format_passes_through_scratch(void **state)
{
    (void)state;
    static const char *const format[] = {"f16",
                                         "q8_0",
                                         "q4_0",
                                         "q4_1",
                                         "q5_0",
                                         "q5_1",
                                         "q2_k",
                                         "q3_k",
                                         "q4_k",
                                         "q5_k",
                                         "q6_k",
                                         "int8/256",
                                         "fp4/64",
                                         "qint8/row/bf16",
                                         "qfloat8/row/f16",
                                         "qfloat8_e5m2/row/f32",
                                         "e4m3/raw",
                                         "e5m2/tensor/quant_scale"};
    for (int i = 0; i < TESS_NELEM(format); i++)
        for (int dt = 0; dt < 2; dt++) {
            const spec s = joined_spec(kinds[(i + dt) % 2], dtypes[dt], format[i]);
            check(&s);
        }
}

/* int4 asks for no dtype of activations and for no special kernel; nor does int2. */
static void test_gemm_int4_and_int2_take_f32_and_bf16_activations(void **state)
{
    (void)state;
    static const char *const format[] = {"qint4/128/bf16", "qint4/64/f32", "qint2/128/bf16",
                                         "qint2/256/f16"};
    for (int i = 0; i < TESS_NELEM(format); i++)
        for (int kind = 0; kind < 2; kind++)
            for (int dt = 0; dt < 2; dt++) {
                const spec s = joined_spec(kinds[kind], dtypes[dt], format[i]);
                check(&s);
            }
}

/* One to eight rows, in every format, with an adapter of any scale, a bias of either dtype, an f32
 * result that is added to; where rows or addresses are odd, products as ever. */
static void test_gemm_few_rows_are_multiplied_while_decoded(void **state)
{
    (void)state;
    static const char *const format[] = {"nf4/64",
                                         "f16",
                                         "q8_0",
                                         "q4_0",
                                         "q4_1",
                                         "q5_0",
                                         "q5_1",
                                         "q2_k",
                                         "q3_k",
                                         "q4_k",
                                         "q5_k",
                                         "q6_k",
                                         "int8/256",
                                         "fp4/64",
                                         "qint8/row/bf16",
                                         "qfloat8/row/f16",
                                         "e4m3/raw",
                                         "qint4/128/bf16",
                                         "qint4/64/f32",
                                         "qint2/128/bf16",
                                         "e5m2/tensor/quant_scale"};
    for (int i = 0; i < TESS_NELEM(format); i++) {
        spec s = joined_spec(TESS_GEMM_NT, TESS_BF16, format[i]);
        s.m = 1 + i % 8;
        s.n = 40;
        s.codec[1] = plain(dtypes[i % 2]);
        s.has_bias = i % 3 != 0;
        s.bias_dt = dtypes[i % 3 % 2];
        s.product_numel = NO_PRODUCT;
        s.pad = 8;
        check(&s);
        s.scale[1] = 0.3F;
        s.c_dt = TESS_F32;
        s.is_accumulating = true;
        check(&s);
        s.is_adjacent = false; /* and so at an odd address */
        s.product_numel = 2;
        check(&s);
        s.is_accumulating = false;
        s.term_numel = 1;
        s.pad = 3;
        s.product_numel = 1;
        check(&s);
    }
}

/* More chunks than two turns of a warp, rows that do not fill one, one row of the matrix. */
static void test_gemm_few_rows_of_any_extent(void **state)
{
    (void)state;
    static const int64_t extents[][3] = {{1, 1, 8},     {2, 3, 264},  {8, 17, 512},
                                         {3, 37, 1032}, {5, 18, 768}, {8, 2, 3072}};
    for (int i = 0; i < TESS_NELEM(extents); i++) {
        spec s = spec_of(TESS_GEMM_NT, TESS_BF16, extents[i][0], extents[i][1], extents[i][2]);
        s.codec[0] = nf4(64, i % 2 == 0);
        /* the sums must fit where the decoded matrix would have */
        s.product_numel = i == 0 ? 0 : NO_PRODUCT;
        check(&s);
    }
}

/* A matrix of one row, whose scales lie by groups. */
static void test_gemm_few_rows_times_one_row(void **state)
{
    (void)state;
    static const char *const format[] = {"qint4/128/bf16", "qint2/64/f32", "nf4/64"};
    for (int i = 0; i < TESS_NELEM(format); i++) {
        spec s = spec_of(TESS_GEMM_NT, TESS_BF16, 3, 1, 512);
        assert_int_equal(tess_codec_parse(format[i], 512, &s.codec[0]), TESS_OK);
        check(&s);
    }
}

/* [x | u] times [W | B]^T and [dy | du] times [W; A]: one product, whatever the widths. */
static void test_gemm_adjacent_terms_are_one_product(void **state)
{
    (void)state;
    const int64_t ks[][3] = {{64, 16, 0}, {72, 8, 8}, {33, 5, 7}, {128, 0, 16}};
    for (int kind = 0; kind < 2; kind++) {
        for (int dt = 0; dt < 2; dt++) {
            for (int i = 0; i < TESS_NELEM(ks); i++) {
                spec s = spec_of(kinds[kind], dtypes[dt], 11, i % 2 == 0 ? 40 : 23, ks[i][0]);
                s.term_numel = ks[i][2] == 0 ? 2 : 3;
                s.k[1] = ks[i][1];
                s.k[2] = ks[i][2];
                s.codec[0] = nf4(64, i % 2 == 0);
                s.codec[1] = s.codec[2] = plain(dtypes[(dt + i) % 2]);
                s.is_adjacent = true;
                /* neighbours in memory, but a term without elements lies between them */
                s.product_numel = ks[i][1] == 0 ? 2 : 1;
                s.pad = i % 3;
                check(&s);
                s.scale[0] = s.scale[1] = s.scale[2] = 0.3F;
                check(&s);
                s.is_integer = true;
                s.scale[0] = s.scale[1] = s.scale[2] = 2.0F;
                s.codec[0] = plain(TESS_BF16);
                check(&s);
            }
        }
    }
}

/* As [x | u_q | u_k] for k: what lies between is multiplied by zeros, up to a limit. */
static void test_gemm_columns_between_terms_do_not_count(void **state)
{
    (void)state;
    static const int64_t gaps[] = {1, 16, 256, 257};
    for (int i = 0; i < 4 * TESS_NELEM(gaps); i++) {
        spec s = spec_of(kinds[i / 2 % 2], dtypes[i % 2], 9, 24, 64);
        s.term_numel = 3;
        s.k[1] = 8;
        s.k[2] = 5;
        s.codec[0] = nf4(64, true);
        s.codec[1] = s.codec[2] = plain(dtypes[i % 2]);
        s.is_adjacent = true;
        s.gap = gaps[i / 4];
        s.product_numel = s.gap <= 256 ? 1 : 3;
        check(&s);
        s.is_integer = true;
        s.codec[0] = plain(TESS_BF16);
        check(&s);
    }
}

static void test_gemm_terms_apart_are_rounded_once(void **state)
{
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        for (int dt = 0; dt < 2; dt++) {
            spec s = spec_of(kinds[kind], dtypes[dt], 10, 36, 64);
            s.term_numel = 3;
            s.k[1] = 7;
            s.k[2] = 33;
            s.codec[0] = kinds[kind] == TESS_GEMM_TN ? plain(dtypes[dt]) : nf4(64, true);
            s.codec[1] = s.codec[2] = plain(dtypes[dt]);
            s.product_numel = 3;
            check(&s);
            s.pad = 5;
            s.scale[1] = 0.7F;
            check(&s);
            s.has_bias = true;
            check(&s);
            s.bias_dt = TESS_BF16;
            s.is_accumulating = true;
            s.c_dt = TESS_F32;
            check(&s);
            s.is_integer = true;
            s.codec[0] = plain(dtypes[dt]);
            s.scale[1] = -2.0F;
            check(&s);
        }
    }
}

/* 3 joined, then 1: a scale of its own parts neighbours. */
static void test_gemm_other_scale_parts_neighbours(void **state)
{
    (void)state;
    spec s = spec_of(TESS_GEMM_NN, TESS_BF16, 7, 24, 32);
    s.term_numel = 3;
    s.k[1] = s.k[2] = 8;
    s.codec[0] = nf4(64, false);
    s.codec[1] = s.codec[2] = plain(TESS_BF16);
    s.is_adjacent = true;
    s.scale[2] = 0.5F;
    s.product_numel = 2;
    check(&s);
}

static void test_gemm_bias_of_any_dtype_is_added_before_rounding(void **state)
{
    (void)state;
    for (int dt = 0; dt < 2; dt++) {
        for (int bias = 0; bias < 2; bias++) {
            for (int c = 0; c <= dt; c++) {
                spec s = spec_of(TESS_GEMM_NT, dtypes[dt], 9, 21, 40);
                s.c_dt = dtypes[c];
                s.has_bias = true;
                s.bias_dt = dtypes[bias];
                s.product_numel = 1;
                check(&s);
                s.is_integer = true;
                s.n = 32;
                check(&s);
                s.is_accumulating = s.c_dt == TESS_F32;
                s.pad = 4;
                check(&s);
            }
        }
    }
}

static void test_gemm_empty_sums_and_results(void **state)
{
    (void)state;
    for (int dt = 0; dt < 2; dt++) {
        spec s = spec_of(TESS_GEMM_NT, dtypes[dt], 6, 10, 0);
        check(&s);
        s.has_bias = true;
        check(&s);
        s.c_dt = TESS_F32;
        s.is_accumulating = true;
        check(&s);
        s = spec_of(TESS_GEMM_NT, dtypes[dt], 0, 10, 8);
        s.product_numel = NO_PRODUCT;
        check(&s);
        s = spec_of(TESS_GEMM_TN, dtypes[dt], 4, 0, 8);
        s.product_numel = NO_PRODUCT;
        check(&s);
    }
}

/* More rows than the f32 scratch takes at a time: 1,024 with so many columns. */
static void test_gemm_many_rows_apart_run_in_chunks(void **state)
{
    (void)state;
    spec s = spec_of(TESS_GEMM_NT, TESS_BF16, 1027, 33000, 1);
    s.term_numel = 2;
    s.k[1] = 1;
    s.codec[1] = plain(TESS_BF16);
    s.product_numel = 2 * 2;
    check(&s);
}

/** All of them, X(name). */
#define GEMM_CASE_LIST(X)                                                                          \
    X(test_gemm_plain_any_size_runs_where_it_lies)                                                 \
    X(test_gemm_quantized_and_other_dtypes_pass_through_scratch)                                   \
    X(test_gemm_every_format_passes_through_scratch)                                               \
    X(test_gemm_int4_and_int2_take_f32_and_bf16_activations)                                       \
    X(test_gemm_few_rows_are_multiplied_while_decoded)                                             \
    X(test_gemm_few_rows_of_any_extent)                                                            \
    X(test_gemm_few_rows_times_one_row)                                                            \
    X(test_gemm_adjacent_terms_are_one_product)                                                    \
    X(test_gemm_columns_between_terms_do_not_count)                                                \
    X(test_gemm_terms_apart_are_rounded_once)                                                      \
    X(test_gemm_other_scale_parts_neighbours)                                                      \
    X(test_gemm_bias_of_any_dtype_is_added_before_rounding)                                        \
    X(test_gemm_empty_sums_and_results)                                                            \
    X(test_gemm_many_rows_apart_run_in_chunks)
