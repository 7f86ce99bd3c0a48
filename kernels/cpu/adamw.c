#include "kernels/cpu/ops_priv.h"

typedef struct adamw_job {
    tess_adamw_args args;
    tess_adamw_scalars scalars;
} adamw_job;

static void adamw_part(void *arg, int part_idx, int part_numel)
{
    const adamw_job *job = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(job->args.numel, 64, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->adamw(&job->args, &job->scalars, lo, hi);
}

tess_status tess_cpu_adamw(const tess_adamw_args *a, tess_stream *s)
{
    TESS_TRY(tess_adamw_check(a));
    adamw_job job = {.args = *a, .scalars = tess_adamw_scalars_make(a)};
    tess_pool_run(s->pool, tess_cpu_part_numel(s, 4 * a->numel), adamw_part, &job);
    return TESS_OK;
}
