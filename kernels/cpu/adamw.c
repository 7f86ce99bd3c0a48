#include "kernels/cpu/ops_priv.h"

/* By squaring, so that the bits do not depend on a C library's pow. */
static double power(double base, int64_t exponent)
{
    double result = 1.0;
    for (; exponent > 0; exponent /= 2) {
        if (exponent % 2 != 0)
            result = result * base;
        base = base * base;
    }
    return result;
}

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
    adamw_job job = {
        .args = *a,
        .scalars =
            {
                .decay = (float)(1.0 - a->learning_rate * a->weight_decay),
                .beta1 = (float)a->beta1,
                .one_minus_beta1 = (float)(1.0 - a->beta1),
                .beta2 = (float)a->beta2,
                .one_minus_beta2 = (float)(1.0 - a->beta2),
                .step_size = (float)(a->learning_rate / (1.0 - power(a->beta1, a->step))),
                .bias2 = (float)(1.0 - power(a->beta2, a->step)),
                .eps = (float)a->eps,
            },
    };
    tess_pool_run(s->pool, tess_cpu_part_numel(s, 4 * a->numel), adamw_part, &job);
    return TESS_OK;
}
