#include "kernels/cpu/ops_priv.h"

static void row_norm_part(void *arg, int part_idx, int part_numel)
{
    const tess_row_norm_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->row_numel, 1, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->row_norm(a, lo, hi);
}

tess_status tess_cpu_row_norm(const tess_row_norm_args *a, tess_stream *s)
{
    TESS_TRY(tess_row_norm_check(a));
    tess_row_norm_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->row_numel * a->dim), row_norm_part, &args);
    return TESS_OK;
}

static void forward_part(void *arg, int part_idx, int part_numel)
{
    const tess_dora_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->row_numel, 1, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->dora_forward(a, lo, hi);
}

tess_status tess_cpu_dora_forward(const tess_dora_args *a, tess_stream *s)
{
    TESS_TRY(tess_dora_check(a));
    tess_dora_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, 2 * a->z.numel), forward_part, &args);
    return TESS_OK;
}

static void backward_part(void *arg, int part_idx, int part_numel)
{
    const tess_cpu_rows *rows = tess_cpu_rows_get();
    for (int chunk = part_idx; chunk < TESS_ROW_CHUNK_NUMEL; chunk += part_numel)
        rows->dora_backward(arg, chunk);
}

tess_status tess_cpu_dora_backward(const tess_dora_backward_args *a, tess_stream *s)
{
    TESS_TRY(tess_dora_backward_check(a));
    tess_dora_backward_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, 3 * a->z.numel), backward_part, &args);
    for (int64_t i = 0; i < a->dim; i++) {
        float sum = a->work[i];
        for (int chunk = 1; chunk < TESS_ROW_CHUNK_NUMEL; chunk++)
            sum = sum + a->work[chunk * a->dim + i];
        if (a->norm[i] > 0.0f)
            a->d_magnitude[i] = a->d_magnitude[i] + sum / a->norm[i];
    }
    return TESS_OK;
}
