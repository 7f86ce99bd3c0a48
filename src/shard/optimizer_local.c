/* Optimizers whose update of an element needs nothing from other ranks. */
#include "core/memory.h"
#include "shard/optimizer_priv.h"

tess_status update_adamw_segment(tess_runtime *rt, const update_segment *s, float clip_factor)
{
    const tess_update *u = &rt->request->update;
    const tess_update_part part = segment_part(rt, s, clip_factor);
    const tess_adamw_args args = {
        .master = part.master,
        .exp_avg = segment_f32(rt, s, TESS_STATE_EXP_AVG),
        .exp_avg_sq = segment_f32(rt, s, TESS_STATE_EXP_AVG_SQ),
        .grad = part.grad,
        .param = part.param,
        .numel = part.numel,
        .clip_factor = clip_factor,
        .learning_rate = segment_rate(rt, s),
        .beta1 = u->beta1,
        .beta2 = u->beta2,
        .eps = u->eps,
        .weight_decay = segment_decay(rt, s),
        .step = u->step,
    };
    return rt->parts.kernels->adamw(&args, rt->compute);
}

tess_status update_adamw(tess_runtime *rt, float clip_factor)
{
    for (int i = 0; i < rt->segment_numel; i++)
        TESS_TRY(update_adamw_segment(rt, &rt->segment[i], clip_factor));
    return TESS_OK;
}

tess_status update_adamw_8bit(tess_runtime *rt, float clip_factor)
{
    enum { EXP_AVG = 1, EXP_AVG_SQ, EXP_AVG_ABSMAX, EXP_AVG_SQ_ABSMAX };
    const tess_update *u = &rt->request->update;
    for (int i = 0; i < rt->segment_numel; i++) {
        const update_segment *s = &rt->segment[i];
        const tess_adamw_8bit_args args = {
            .part = segment_part(rt, s, clip_factor),
            .exp_avg = segment_u8(rt, s, EXP_AVG),
            .exp_avg_sq = segment_u8(rt, s, EXP_AVG_SQ),
            .exp_avg_absmax = segment_f32(rt, s, EXP_AVG_ABSMAX),
            .exp_avg_sq_absmax = segment_f32(rt, s, EXP_AVG_SQ_ABSMAX),
            .learning_rate = segment_rate(rt, s),
            .beta1 = u->beta1,
            .beta2 = u->beta2,
            .eps = u->eps,
            .weight_decay = segment_decay(rt, s),
            .step = u->step,
        };
        TESS_TRY(rt->parts.kernels->adamw_8bit(&args, rt->compute));
    }
    return TESS_OK;
}

tess_status update_lion(tess_runtime *rt, float clip_factor)
{
    enum { EXP_AVG = 1 };
    const tess_update *u = &rt->request->update;
    for (int i = 0; i < rt->segment_numel; i++) {
        const update_segment *s = &rt->segment[i];
        const tess_lion_args args = {
            .part = segment_part(rt, s, clip_factor),
            .exp_avg = segment_f32(rt, s, EXP_AVG),
            .learning_rate = segment_rate(rt, s),
            .beta1 = u->beta1,
            .beta2 = u->beta2,
            .weight_decay = segment_decay(rt, s),
        };
        TESS_TRY(rt->parts.kernels->lion(&args, rt->compute));
    }
    return TESS_OK;
}

/* The average gives a step the weight of the largest rate so far, squared (the package's
 * weight_lr_power = 2, r = 0); rates of tensors keep their ratios, which no weight sees. */
static double average_weight(double *rate_max, double *weight_sum, double rate)
{
    *rate_max = TESS_MAX(*rate_max, rate);
    const double weight = *rate_max * *rate_max;
    *weight_sum += weight;
    return *weight_sum > 0.0 ? weight / *weight_sum : 0.0;
}

tess_status update_schedule_free(tess_runtime *rt, float clip_factor)
{
    enum { Z = 1, EXP_AVG_SQ };
    const tess_update *u = &rt->request->update;
    const double average = average_weight(&rt->scalar[0], &rt->scalar[1], u->learning_rate);
    for (int i = 0; i < rt->segment_numel; i++) {
        const update_segment *s = &rt->segment[i];
        const tess_schedule_free_args args = {
            .part = segment_part(rt, s, clip_factor),
            .z = segment_f32(rt, s, Z),
            .exp_avg_sq = segment_f32(rt, s, EXP_AVG_SQ),
            .learning_rate = segment_rate(rt, s),
            .beta2 = u->beta2,
            .eps = u->eps,
            .weight_decay = segment_decay(rt, s),
            .blend = rt->parts.train_blend,
            .average = average,
            .step = u->step,
        };
        TESS_TRY(rt->parts.kernels->schedule_free(&args, rt->compute));
    }
    return TESS_OK;
}
