#include "kernels/cpu/ops_priv.h"

enum { GRAIN_NUMEL = 64 };

static void swiglu_forward_part(void *arg, int part_idx, int part_numel)
{
    const tess_swiglu_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->gate.numel, GRAIN_NUMEL, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->swiglu_forward(a, lo, hi);
}

tess_status tess_cpu_swiglu_forward(const tess_swiglu_args *a, tess_stream *s)
{
    TESS_TRY(tess_swiglu_check(a));
    tess_swiglu_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, 4 * a->gate.numel), swiglu_forward_part, &args);
    return TESS_OK;
}

static void swiglu_backward_part(void *arg, int part_idx, int part_numel)
{
    const tess_swiglu_backward_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->gate.numel, GRAIN_NUMEL, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->swiglu_backward(a, lo, hi);
}

tess_status tess_cpu_swiglu_backward(const tess_swiglu_backward_args *a, tess_stream *s)
{
    TESS_TRY(tess_swiglu_backward_check(a));
    tess_swiglu_backward_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, 4 * a->gate.numel), swiglu_backward_part, &args);
    return TESS_OK;
}

static void relu_part(void *arg, int part_idx, int part_numel)
{
    const tess_relu_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->out.numel, GRAIN_NUMEL, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->relu(a, lo, hi);
}

tess_status tess_cpu_relu(const tess_relu_args *a, tess_stream *s)
{
    TESS_TRY(tess_relu_check(a));
    tess_relu_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->out.numel), relu_part, &args);
    return TESS_OK;
}

static void add_part(void *arg, int part_idx, int part_numel)
{
    const tess_add_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->out.numel, GRAIN_NUMEL, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->add(a, lo, hi);
}

tess_status tess_cpu_add(const tess_add_args *a, tess_stream *s)
{
    TESS_TRY(tess_add_check(a));
    tess_add_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->out.numel), add_part, &args);
    return TESS_OK;
}

static void add_bias_part(void *arg, int part_idx, int part_numel)
{
    const tess_add_bias_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->x.numel / a->bias.numel, 1, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->add_bias(a, lo, hi);
}

tess_status tess_cpu_add_bias(const tess_add_bias_args *a, tess_stream *s)
{
    TESS_TRY(tess_add_bias_check(a));
    tess_add_bias_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->x.numel), add_bias_part, &args);
    return TESS_OK;
}

void tess_cpu_chunks_add(const float *work, int64_t dim, float *out)
{
    for (int64_t i = 0; i < dim; i++) {
        float sum = work[i];
        for (int chunk = 1; chunk < TESS_ROW_CHUNK_NUMEL; chunk++)
            sum = sum + work[chunk * dim + i];
        out[i] = out[i] + sum;
    }
}

static void sum_rows_part(void *arg, int part_idx, int part_numel)
{
    const tess_cpu_rows *rows = tess_cpu_rows_get();
    for (int chunk = part_idx; chunk < TESS_ROW_CHUNK_NUMEL; chunk += part_numel)
        rows->sum_rows(arg, chunk);
}

tess_status tess_cpu_sum_rows(const tess_sum_rows_args *a, tess_stream *s)
{
    TESS_TRY(tess_sum_rows_check(a));
    tess_sum_rows_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->x.numel), sum_rows_part, &args);
    tess_cpu_chunks_add(a->work, a->dim, a->out);
    return TESS_OK;
}

static void dropout_part(void *arg, int part_idx, int part_numel)
{
    const tess_dropout_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->x.numel, GRAIN_NUMEL, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->dropout(a, lo, hi);
}

tess_status tess_cpu_dropout(const tess_dropout_args *a, tess_stream *s)
{
    TESS_TRY(tess_dropout_check(a));
    tess_dropout_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, 4 * a->x.numel), dropout_part, &args);
    return TESS_OK;
}

static void cast_part(void *arg, int part_idx, int part_numel)
{
    const tess_cast_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->src.numel, GRAIN_NUMEL, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->cast(a, lo, hi);
}

tess_status tess_cpu_cast(const tess_cast_args *a, tess_stream *s)
{
    TESS_TRY(tess_cast_check(a));
    tess_cast_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->src.numel), cast_part, &args);
    return TESS_OK;
}
