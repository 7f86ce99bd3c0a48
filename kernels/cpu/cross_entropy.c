#include "kernels/cpu/ops_priv.h"

static void cross_entropy_part(void *arg, int part_idx, int part_numel)
{
    const tess_cross_entropy_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->row_numel, 1, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->cross_entropy(a, lo, hi);
}

tess_status tess_cpu_cross_entropy(const tess_cross_entropy_args *a, tess_stream *s)
{
    TESS_TRY(tess_cross_entropy_check(a));
    tess_cross_entropy_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, 4 * a->logits.numel), cross_entropy_part, &args);
    return TESS_OK;
}
