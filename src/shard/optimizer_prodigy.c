/*
 * Prodigy: a first pass measures how far the run has come along its gradients, over all parameters
 * of all ranks; the sums are exact, so every rank makes the same new estimate of the distance.
 */
#include <math.h>
#include <string.h>

#include "core/memory.h"
#include "shard/optimizer_priv.h"

enum { EXP_AVG = 1, EXP_AVG_SQ, S, START };

size_t prodigy_work_nbytes(const tess_registry *reg, const tess_kernels *kernels, int thread_numel)
{
    (void)reg;
    (void)kernels;
    (void)thread_numel;
    return sizeof(tess_prodigy_sums);
}

/* Of one update. */
typedef struct pace {
    double d, dlr, beta3, s_rate;
} pace;

static pace make_pace(tess_runtime *rt)
{
    const tess_update *u = &rt->request->update;
    pace p = {.d = rt->scalar[0] > 0.0 ? rt->scalar[0] : u->d0, .beta3 = sqrt(u->beta2)};
    const double bias = u->has_bias_correction ? sqrt(1.0 - tess_power_f64(u->beta2, u->step)) /
                                                     (1.0 - tess_power_f64(u->beta1, u->step))
                                               : 1.0;
    p.dlr = p.d * u->learning_rate * bias;
    p.s_rate = p.d / u->d0 * (u->has_safeguard ? p.d : p.dlr);
    return p;
}

static tess_status measure(tess_runtime *rt, const pace *p, float clip_factor,
                           tess_prodigy_sums *sums)
{
    const tess_view work =
        runtime_view(rt, optimizer_work(rt), (int64_t)sizeof *sums, TESS_U8_OPAQUE);
    TESS_TRY(tess_device_zero(rt->device, work, rt->compute));
    for (int i = 0; i < rt->segment_numel; i++) {
        const update_segment *s = &rt->segment[i];
        const tess_prodigy_measure_args args = {
            .part = segment_part(rt, s, clip_factor),
            .start = segment_f32(rt, s, START),
            .exp_avg = segment_f32(rt, s, EXP_AVG),
            .exp_avg_sq = segment_f32(rt, s, EXP_AVG_SQ),
            .s = segment_f32(rt, s, S),
            .sums = work.data,
            .beta1 = rt->request->update.beta1,
            .beta2 = rt->request->update.beta2,
            .beta3 = p->beta3,
            .d = p->d,
            .s_rate = p->s_rate,
        };
        TESS_TRY(rt->parts.kernels->prodigy_measure(&args, rt->compute));
    }
    void *found = NULL;
    TESS_TRY(runtime_read(rt, work, &found));
    memcpy(sums, found, sizeof *sums);
    return tess_comm_control(rt->parts.world, (int64_t *)(void *)sums,
                             (int)(sizeof *sums / sizeof(int64_t)), NULL, 0);
}

static tess_status apply(tess_runtime *rt, const pace *p, double new_d, float clip_factor)
{
    for (int i = 0; i < rt->segment_numel; i++) {
        const update_segment *s = &rt->segment[i];
        const double rate = p->dlr * s->learning_rate_ratio;
        const tess_prodigy_apply_args args = {
            .part = segment_part(rt, s, clip_factor),
            .exp_avg = segment_f32(rt, s, EXP_AVG),
            .exp_avg_sq = segment_f32(rt, s, EXP_AVG_SQ),
            .rate = rate,
            .decay = rate * segment_decay(rt, s),
            .eps = new_d * rt->request->update.eps,
        };
        TESS_TRY(rt->parts.kernels->prodigy_apply(&args, rt->compute));
    }
    return TESS_OK;
}

tess_status update_prodigy(tess_runtime *rt, float clip_factor)
{
    const tess_update *u = &rt->request->update;
    const pace p = make_pace(rt);
    tess_prodigy_sums sums;
    TESS_TRY(measure(rt, &p, clip_factor, &sums));
    TESS_CHECK(sums.nonfinite_numel == 0, TESS_E_NUMERIC,
               "prodigy: weights or their sums are not finite in %lld blocks; lower "
               "train.prodigy_d_coef or train.learning_rate",
               (long long)sums.nonfinite_numel);
    const double denominator = tess_exact_round(&sums.denominator);
    if (!(denominator > 0.0)) /* no gradient at all: nothing to learn from, nothing to do */
        return TESS_OK;
    const double delta = p.d / u->d0 * p.dlr * tess_exact_round(&sums.numerator);
    rt->scalar[1] = p.beta3 * rt->scalar[1] + delta;
    rt->scalar[0] = fmax(p.d, u->d_coef * rt->scalar[1] / denominator);
    return apply(rt, &p, rt->scalar[0], clip_factor);
}
