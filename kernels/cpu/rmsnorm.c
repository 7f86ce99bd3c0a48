#include "kernels/cpu/ops_priv.h"

static void forward_part(void *arg, int part_idx, int part_numel)
{
    const tess_rmsnorm_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->row_numel, 1, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->rmsnorm_forward(a, lo, hi);
}

tess_status tess_cpu_rmsnorm_forward(const tess_rmsnorm_args *a, tess_stream *s)
{
    TESS_TRY(tess_rmsnorm_check(a));
    tess_rmsnorm_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->x.numel), forward_part, &args);
    return TESS_OK;
}

static void backward_part(void *arg, int part_idx, int part_numel)
{
    const tess_rmsnorm_backward_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->row_numel, 1, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->rmsnorm_backward(a, lo, hi);
}

static void backward_w_part(void *arg, int part_idx, int part_numel)
{
    const tess_cpu_rows *rows = tess_cpu_rows_get();
    for (int chunk = part_idx; chunk < TESS_ROW_CHUNK_NUMEL; chunk += part_numel)
        rows->rmsnorm_backward_w(arg, chunk);
}

tess_status tess_cpu_rmsnorm_backward(const tess_rmsnorm_backward_args *a, tess_stream *s)
{
    TESS_TRY(tess_rmsnorm_backward_check(a));
    tess_rmsnorm_backward_args args = *a;
    const int part_numel = tess_cpu_part_numel(s, 2 * a->x.numel);
    /* d_w first: d_x may take the place of d_y. */
    if (a->d_w != NULL) {
        tess_pool_run(s->pool, part_numel, backward_w_part, &args);
        tess_cpu_chunks_add(a->work, a->dim, a->d_w);
    }
    tess_pool_run(s->pool, part_numel, backward_part, &args);
    return TESS_OK;
}
