/** Adapter files made for a test, and their updates compared. */
#pragma once

#include "format_test.h"

#include <math.h>

#include "core/half.h"
#include "format/adapter.h"

enum { CASE_TENSOR_MAX = 512, CASE_NUMEL_MAX = 4096 };

/* What one rounding to a dtype may change, relative to the value: half a unit in the last place. */
static inline double unit_of(tess_dtype dt)
{
    return dt == TESS_F32 ? 0x1p-24 : dt == TESS_F16 ? 0x1p-11 : 0x1p-8;
}

/* A number in [-1, 1) that depends on a name and a place, exact in every dtype that is tested (8
 * bits), and in [0.5, 1) in magnitude, so that nothing is subnormal in f16 after scaling. */
static inline float case_value(const char *name, int64_t i)
{
    uint64_t z = 0xcbf29ce484222325U;
    for (; *name != '\0'; name++)
        z = (z ^ (uint64_t)(unsigned char)*name) * 0x100000001b3U;
    z += (uint64_t)i * 0x9e3779b97f4a7c15U;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    z ^= z >> 31;
    const float magnitude = (float)(128 + (int)(z >> 40 & 127U)) / 256.0F;
    return (z & 1U) != 0 ? -magnitude : magnitude;
}

/** A safetensors file in the making. */
typedef struct case_file {
    tess_st_tensor tensor[CASE_TENSOR_MAX];
    char name[CASE_TENSOR_MAX][128];
    float *value[CASE_TENSOR_MAX];
    int64_t numel;
    tess_st_dtype dtype;
} case_file;

/* Add a tensor of values that its name decides; they may be changed until the file is written. */
static inline float *case_add(case_file *c, const char *name, int64_t rows, int64_t cols)
{
    const int64_t i = c->numel++;
    assert_true(i < CASE_TENSOR_MAX && rows * cols <= CASE_NUMEL_MAX);
    snprintf(c->name[i], sizeof c->name[i], "%s", name);
    c->tensor[i] = (tess_st_tensor){
        .name = c->name[i], .dtype = c->dtype, .dim_numel = cols > 0 ? 2 : 1, .dim = {rows, cols}};
    const int64_t numel = rows * TESS_MAX(cols, (int64_t)1);
    c->value[i] = calloc((size_t)numel, sizeof(float));
    for (int64_t k = 0; k < numel; k++)
        c->value[i][k] = case_value(name, k);
    return c->value[i];
}

/* Add a scalar, in f32. */
static inline void case_add_scalar(case_file *c, const char *name, float x)
{
    float *value = case_add(c, name, 1, 1);
    *value = x;
    c->tensor[c->numel - 1].dim_numel = 0;
    c->tensor[c->numel - 1].dtype = TESS_ST_F32;
}

static inline void case_put(tess_safetensors_writer *w, int64_t idx, const case_file *c)
{
    const tess_st_tensor *t = &c->tensor[idx];
    int64_t numel = 1;
    for (int i = 0; i < t->dim_numel; i++)
        numel *= t->dim[i];
    for (int64_t i = 0; i < numel; i++) {
        const float x = c->value[idx][i];
        uint32_t bits = 0;
        memcpy(&bits, &x, sizeof bits);
        const uint16_t half =
            t->dtype == TESS_ST_F16 ? tess_f16_from_f32(x) : (uint16_t)(bits >> 16);
        if (t->dtype == TESS_ST_F32)
            assert_ok(tess_safetensors_writer_append(w, idx, &x, 4));
        else
            assert_ok(tess_safetensors_writer_append(w, idx, &half, 2));
    }
}

static inline void case_write(const fixture *f, case_file *c, const char *path,
                              const tess_st_pair *pair, int64_t pair_numel)
{
    tess_safetensors_writer *w = NULL;
    assert_ok(
        tess_safetensors_writer_create(f->io, path, c->tensor, c->numel, pair, pair_numel, &w));
    for (int64_t i = 0; i < c->numel; i++) {
        case_put(w, i, c);
        free(c->value[i]);
    }
    assert_ok(tess_safetensors_writer_finish(w));
    tess_safetensors_writer_destroy(&w);
    c->numel = 0;
}

static inline float *case_read(const tess_adapter *a, int64_t idx, tess_adapter_part part)
{
    float *value = calloc(CASE_NUMEL_MAX, sizeof(float));
    assert_ok(tess_adapter_read(a, idx, part, value));
    return value;
}

/* delta W = alpha / rank B A in fp64, and the same sum of magnitudes. */
static inline void case_delta(const tess_adapter *a, int64_t idx, double *delta, double *most)
{
    const tess_adapter_module *m = tess_adapter_at(a, idx);
    float *matrix_a = case_read(a, idx, TESS_ADAPTER_A), *b = case_read(a, idx, TESS_ADAPTER_B);
    const double scale = m->alpha / (double)m->rank;
    for (int64_t i = 0; i < m->out_numel * m->in_numel; i++) {
        const int64_t row = i / m->in_numel, col = i % m->in_numel;
        delta[i] = most[i] = 0.0;
        for (int64_t k = 0; k < m->rank; k++) {
            const double x =
                scale * (double)b[row * m->rank + k] * (double)matrix_a[k * m->in_numel + col];
            delta[i] += x;
            most[i] += fabs(x);
        }
    }
    free(matrix_a);
    free(b);
}

/*
 * Every update of `from` is in `to`, and `to` has nothing else.
 *
 * A term of delta W is s b a. `roundings` of its factors were made to a dtype of unit u, and alpha
 * is f32 in a file, so that a term may differ by (1 + u)^roundings (1 + 2^-24)^2 - 1; the sums of
 * fp64 add 100 * 2^-53.
 */
static inline void case_compare(const tess_adapter *from, const tess_adapter *to, double u,
                                int roundings)
{
    double *want = calloc(CASE_NUMEL_MAX, 8), *found = calloc(CASE_NUMEL_MAX, 8);
    double *most = calloc(CASE_NUMEL_MAX, 8), *unused = calloc(CASE_NUMEL_MAX, 8);
    const double slack = pow(1.0 + u, roundings) * pow(1.0 + 0x1p-24, 2) - 1.0 + 100.0 * 0x1p-53;
    int64_t there_numel = 0;
    for (int64_t i = 0; i < tess_adapter_numel(from); i++) {
        const tess_adapter_module *m = tess_adapter_at(from, i);
        const int64_t at = tess_adapter_find(to, m->path);
        if (at < 0)
            fail_msg("'%s' is lost", m->path);
        there_numel++;
        case_delta(from, i, want, most);
        case_delta(to, at, found, unused);
        assert_int_equal(tess_adapter_at(to, at)->in_numel, m->in_numel);
        assert_int_equal(tess_adapter_at(to, at)->out_numel, m->out_numel);
        for (int64_t k = 0; k < m->in_numel * m->out_numel; k++)
            if (!(fabs(want[k] - found[k]) <= slack * most[k]))
                fail_msg("'%s' [%lld]: %.17g became %.17g, may differ by %g", m->path, (long long)k,
                         want[k], found[k], slack * most[k]);
        assert_int_equal(tess_adapter_at(to, at)->has_magnitude, m->has_magnitude);
        if (m->has_magnitude) {
            float *x = case_read(from, i, TESS_ADAPTER_MAGNITUDE);
            float *y = case_read(to, at, TESS_ADAPTER_MAGNITUDE);
            assert_memory_equal(x, y, (size_t)m->out_numel * sizeof *x);
            free(x);
            free(y);
        }
    }
    for (int64_t i = 0; i < tess_adapter_numel(to); i++) {
        if (tess_adapter_find(from, tess_adapter_at(to, i)->path) >= 0)
            continue;
        case_delta(to, i, found, most);
        for (int64_t k = 0;
             k < tess_adapter_at(to, i)->in_numel * tess_adapter_at(to, i)->out_numel; k++)
            assert_true(found[k] == 0.0);
    }
    assert_int_equal(there_numel, tess_adapter_numel(from));
    free(want);
    free(found);
    free(most);
    free(unused);
}

static inline tess_adapter *case_open(const fixture *f, const char *path,
                                      const tess_llm_config *base)
{
    tess_adapter *a = NULL;
    const tess_adapter_options options = {.base = base};
    assert_ok(tess_adapter_open(f->io, path, &options, &a));
    return a;
}

/* Remove the files of a folder and the folder. */
static inline void case_remove(const fixture *f, const char *dir)
{
    char **name = NULL, path[512];
    int64_t numel = 0;
    assert_int_equal(tess_io_list(f->io, dir, &name, &numel), TESS_OK); /* keeps an error */
    for (int64_t i = 0; i < numel; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, name[i]);
        remove(path);
    }
    tess_io_list_free(&name, numel);
    rmdir(dir);
}
