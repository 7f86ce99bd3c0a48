#include "kernels/cpu/ops_priv.h"

/* Parts begin at whole blocks of state. */
enum { GRAIN_NUMEL = 256 };

#define UPDATE(op)                                                                                 \
    typedef struct op##_job {                                                                      \
        tess_##op##_args args;                                                                     \
        tess_##op##_scalars scalars;                                                               \
    } op##_job;                                                                                    \
    static void op##_part(void *arg, int part_idx, int part_numel)                                 \
    {                                                                                              \
        const op##_job *job = arg;                                                                 \
        int64_t lo = 0, hi = 0;                                                                    \
        tess_pool_range(job->args.part.numel, GRAIN_NUMEL, part_idx, part_numel, &lo, &hi);        \
        tess_cpu_rows_get()->op(&job->args, &job->scalars, lo, hi);                                \
    }                                                                                              \
    tess_status tess_cpu_##op(const tess_##op##_args *a, tess_stream *s)                           \
    {                                                                                              \
        TESS_TRY(tess_##op##_check(a));                                                            \
        op##_job job = {.args = *a, .scalars = tess_##op##_scalars_make(a)};                       \
        tess_pool_run(s->pool, tess_cpu_part_numel(s, 4 * a->part.numel), op##_part, &job);        \
        return TESS_OK;                                                                            \
    }

UPDATE(lion)
UPDATE(adamw_8bit)
UPDATE(schedule_free)

static void blend_part(void *arg, int part_idx, int part_numel)
{
    const tess_blend_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->dst.numel, GRAIN_NUMEL, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->blend(a, lo, hi);
}

tess_status tess_cpu_blend(const tess_blend_args *a, tess_stream *s)
{
    TESS_TRY(tess_blend_check(a));
    tess_blend_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->dst.numel), blend_part, &args);
    return TESS_OK;
}
