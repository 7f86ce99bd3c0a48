#include <math.h>

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
UPDATE(prodigy_apply)

/* Blocks in batches that fit the stack; limbs are integers, so any order of batches and threads
 * gives the same accumulators. */
enum { BATCH_BLOCKS = 512 };

typedef struct measure_batch {
    const tess_prodigy_measure_args *args;
    tess_prodigy_measure_scalars scalars;
    int64_t first_idx, end_idx;
    double (*sums)[2]; /* [BATCH_BLOCKS] numerator, denominator */
} measure_batch;

static void measure_part(void *arg, int part_idx, int part_numel)
{
    const measure_batch *b = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(b->end_idx - b->first_idx, GRAIN_NUMEL, part_idx, part_numel, &lo, &hi);
    if (lo < hi)
        tess_cpu_rows_get()->prodigy_measure(b->args, &b->scalars, b->sums + lo / GRAIN_NUMEL,
                                             b->first_idx + lo, b->first_idx + hi);
}

tess_status tess_cpu_prodigy_measure(const tess_prodigy_measure_args *a, tess_stream *s)
{
    TESS_TRY(tess_prodigy_measure_check(a));
    double sums[BATCH_BLOCKS][2];
    measure_batch b = {.args = a, .scalars = tess_prodigy_measure_scalars_make(a), .sums = sums};
    for (; b.first_idx < a->part.numel; b.first_idx = b.end_idx) {
        b.end_idx = TESS_MIN(a->part.numel, b.first_idx + (int64_t)BATCH_BLOCKS * GRAIN_NUMEL);
        const int64_t numel = b.end_idx - b.first_idx;
        tess_pool_run(s->pool, tess_cpu_part_numel(s, 4 * numel), measure_part, &b);
        for (int64_t i = 0; i * GRAIN_NUMEL < numel; i++) {
            const bool is_finite = isfinite(sums[i][0]) && isfinite(sums[i][1]);
            a->sums->nonfinite_numel += !is_finite;
            if (is_finite && tess_exact_add(&a->sums->numerator, sums[i][0]))
                (void)tess_exact_add(&a->sums->denominator, sums[i][1]);
        }
    }
    return TESS_OK;
}

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

void tess_cpu_copy_param(const tess_update_part *part, int64_t lo, int64_t hi)
{
    const tess_view master = {part->master, part->numel, TESS_F32, part->param.space};
    const tess_cast_args cast = {.src = master, .dst = part->param};
    tess_cpu_rows_get()->cast(&cast, lo, hi);
}
