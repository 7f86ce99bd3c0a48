/** Cases of tests/golden/quantizers/ (tests/golden/make_quantizers.py). */
#pragma once

#include <stdio.h>

#include "kernels/nearest.h"
#include "kernels/quantizer_vector.h"
#include "tests/kernels/op_support.h"
#include "tests/support/golden.h"

static inline tess_golden *open_golden(const char *name)
{
    char path[128];
    tess_golden *golden = NULL;
    snprintf(path, sizeof path, "tests/golden/quantizers/%s.golden", name);
    assert_done(tess_golden_open(path, &golden));
    return golden;
}

static inline const void *tensor_of(const tess_golden *g, const char *name, const char *tensor,
                                    tess_dtype dt, int64_t *numel)
{
    char full[160];
    snprintf(full, sizeof full, "%s.%s", name, tensor);
    const void *data = tess_golden_tensor(g, full, dt, numel);
    if (data == NULL)
        fail_msg("no tensor %s of %s", full, tess_dtype_name(dt));
    return data;
}

static inline const float *floats_of(const tess_golden *g, const char *name, const char *tensor)
{
    return tensor_of(g, name, tensor, TESS_F32, NULL);
}

static inline double number_of(const tess_golden *g, const char *name, const char *key)
{
    char full[160];
    snprintf(full, sizeof full, "%s.%s", name, key);
    if (tess_golden_text(g, full) == NULL)
        fail_msg("no number %s", full);
    return tess_golden_number(g, full);
}

/** The numbers of a tensor in a dtype that holds them exactly. */
static inline op_buffer buffer_golden(const tess_golden *g, const char *name, const char *tensor,
                                      tess_dtype dt)
{
    int64_t numel = 0;
    const float *x = tensor_of(g, name, tensor, TESS_F32, &numel);
    op_buffer b = buffer_create(dt, numel, true);
    for (int64_t i = 0; i < numel; i++)
        buffer_set(&b, i, x[i]);
    buffer_read(&b);
    for (int64_t i = 0; i < numel; i++)
        assert_true(b.value[i] == (double)x[i]);
    return b;
}

static inline void assert_value(const char *what, int64_t i, double got, double want,
                                double tolerance)
{
    if (!(fabs(got - want) <= tolerance))
        fail_msg("%s[%" PRId64 "]: got %.9g, want %.9g, error %.3g above %.3g", what, i, got, want,
                 fabs(got - want), tolerance);
}

/** code[i] of the nearest row of `codes`. */
static inline void find_codes(const float *x, int64_t row_numel, const float *codes,
                              int64_t code_numel, int64_t dim, uint32_t *code)
{
    const tess_kernels *k = &tess_kernels_cpu;
    tess_stream s = inline_stream();
    const size_t pack_nbytes = k->nearest_pack_nbytes(code_numel, dim);
    const size_t work_nbytes = k->nearest_work_nbytes(dim, 1, 1);
    uint64_t *key = must_alloc((size_t)row_numel * sizeof *key);
    const tess_nearest_prepare_args prepare = {
        .code = tess_view_host((void *)(uintptr_t)codes, code_numel * dim, TESS_F32),
        .pack = tess_view_host(must_alloc(pack_nbytes), (int64_t)pack_nbytes, TESS_U8_OPAQUE),
        .code_numel = code_numel,
        .dim = dim};
    const tess_nearest_args search = {
        .x = tess_view_host((void *)(uintptr_t)x, row_numel * dim, TESS_F32),
        .code = prepare.code,
        .pack = prepare.pack,
        .key = tess_view_host(key, row_numel, TESS_U64),
        .work = tess_view_host(must_alloc(work_nbytes), (int64_t)work_nbytes, TESS_U8_OPAQUE),
        .vector_numel = row_numel,
        .code_numel = code_numel,
        .dim = dim,
        .best_numel = 1};
    assert_done(k->nearest_prepare(&prepare, &s));
    assert_done(k->nearest(&search, &s));
    for (int64_t i = 0; i < row_numel; i++)
        code[i] = tess_key_row(key[i]);
    tess_free(prepare.pack.data);
    tess_free(search.work.data);
    tess_free(key);
}

static inline double norm_of(const float *x, int64_t dim)
{
    double square = 0.0;
    for (int64_t j = 0; j < dim; j++)
        square += (double)x[j] * (double)x[j];
    return sqrt(square);
}

static inline double total_of(const double *x, int64_t numel)
{
    double sum = 0.0;
    for (int64_t i = 0; i < numel; i++)
        sum += x[i];
    return sum;
}
