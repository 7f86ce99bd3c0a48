#include "kernels/cpu/ops_priv.h"

static void rope_part(void *arg, int part_idx, int part_numel)
{
    const tess_rope_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->token_numel, 1, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->rope(a, lo, hi);
}

tess_status tess_cpu_rope(const tess_rope_args *a, tess_stream *s)
{
    TESS_TRY(tess_rope_check(a));
    tess_rope_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->x.numel), rope_part, &args);
    return TESS_OK;
}
