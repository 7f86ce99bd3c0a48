/* The table of optimizers, and what every update has in common. */
#include "shard/optimizer.h"

#include <math.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "shard/optimizer_priv.h"

enum { BLOCK = TESS_TRAINABLE_BLOCK_NUMEL };

/* ---- the table ---- */

static bool has_adamw(const tess_kernels *k) { return k->adamw != NULL; }
static bool has_adamw_8bit(const tess_kernels *k) { return k->adamw_8bit != NULL; }
static bool has_lion(const tess_kernels *k) { return k->lion != NULL; }
static bool has_schedule_free(const tess_kernels *k) { return k->schedule_free != NULL; }

static bool has_prodigy(const tess_kernels *k)
{
    return k->prodigy_measure != NULL && k->prodigy_apply != NULL;
}

static bool has_adafactor(const tess_kernels *k)
{
    return k->adafactor_most != NULL && k->adafactor_sum != NULL && k->adafactor_factor != NULL &&
           k->adafactor_size != NULL && k->adafactor_apply != NULL;
}

static bool has_muon(const tess_kernels *k)
{
    return k->muon_momentum != NULL && k->muon_apply != NULL && k->scale != NULL;
}

#define MASTER                                                                                     \
    {                                                                                              \
        "master", TESS_F32, TESS_GRAIN_ELEMENT, true                                               \
    }
#define ELEMENTS(role)                                                                             \
    {                                                                                              \
        role, TESS_F32, TESS_GRAIN_ELEMENT, false                                                  \
    }

static const tess_optimizer table[TESS_OPTIMIZER_NUMEL] = {
    [TESS_OPTIMIZER_ADAMW] = {.name = "adamw",
                              .array = {MASTER, ELEMENTS("exp_avg"), ELEMENTS("exp_avg_sq")},
                              .array_numel = 3,
                              .has_kernels = has_adamw,
                              .update = update_adamw},
    [TESS_OPTIMIZER_ADAMW_8BIT] = {.name = "adamw-8bit",
                                   .array = {MASTER,
                                             {"exp_avg", TESS_U8, TESS_GRAIN_ELEMENT, false},
                                             {"exp_avg_sq", TESS_U8, TESS_GRAIN_ELEMENT, false},
                                             {"exp_avg_absmax", TESS_F32, TESS_GRAIN_BLOCK, false},
                                             {"exp_avg_sq_absmax", TESS_F32, TESS_GRAIN_BLOCK,
                                              false}},
                                   .array_numel = 5,
                                   .has_kernels = has_adamw_8bit,
                                   .update = update_adamw_8bit},
    [TESS_OPTIMIZER_LION] = {.name = "lion",
                             .array = {MASTER, ELEMENTS("exp_avg")},
                             .array_numel = 2,
                             .has_kernels = has_lion,
                             .update = update_lion},
    [TESS_OPTIMIZER_SCHEDULE_FREE] = {.name = "adamw-schedule-free",
                                      .array = {MASTER,
                                                {"z", TESS_F32, TESS_GRAIN_ELEMENT, true},
                                                ELEMENTS("exp_avg_sq")},
                                      .array_numel = 3,
                                      .scalar = {"optimizer.rate_max", "optimizer.weight_sum"},
                                      .scalar_numel = 2,
                                      .train_array_idx = 1,
                                      .has_kernels = has_schedule_free,
                                      .update = update_schedule_free},
    [TESS_OPTIMIZER_PRODIGY] = {.name = "prodigy",
                                .array = {MASTER,
                                          ELEMENTS("exp_avg"),
                                          ELEMENTS("exp_avg_sq"),
                                          ELEMENTS("s"),
                                          {"start", TESS_F32, TESS_GRAIN_ELEMENT, true}},
                                .array_numel = 5,
                                .scalar = {"optimizer.d", "optimizer.d_numerator"},
                                .scalar_numel = 2,
                                .work_nbytes = prodigy_work_nbytes,
                                .has_kernels = has_prodigy,
                                .update = update_prodigy},
    [TESS_OPTIMIZER_ADAFACTOR] = {.name = "adafactor",
                                  .array = {MASTER,
                                            {"exp_avg_sq", TESS_F32, TESS_GRAIN_FACTOR, false}},
                                  .array_numel = 2,
                                  .work_nbytes = adafactor_work_nbytes,
                                  .host_nbytes = adafactor_host_nbytes,
                                  .has_kernels = has_adafactor,
                                  .update = update_adafactor},
    [TESS_OPTIMIZER_ADAFACTOR_MOMENTUM] =
        {.name = "adafactor-momentum",
         .array = {MASTER, {"exp_avg_sq", TESS_F32, TESS_GRAIN_FACTOR, false}, ELEMENTS("exp_avg")},
         .array_numel = 3,
         .work_nbytes = adafactor_work_nbytes,
         .host_nbytes = adafactor_host_nbytes,
         .has_kernels = has_adafactor,
         .update = update_adafactor},
    [TESS_OPTIMIZER_MUON] = {.name = "muon",
                             .array = {MASTER,
                                       ELEMENTS("exp_avg"),
                                       {"exp_avg_sq", TESS_F32, TESS_GRAIN_REST, false}},
                             .array_numel = 3,
                             .work_nbytes = muon_work_nbytes,
                             .wire_numel = muon_wire_numel,
                             .announce = announce_muon,
                             .has_kernels = has_muon,
                             .update = update_muon},
};

const tess_optimizer *tess_optimizer_get(tess_optimizer_kind kind)
{
    return &table[(unsigned)kind < TESS_OPTIMIZER_NUMEL ? kind : TESS_OPTIMIZER_ADAMW];
}

/* ---- places of state ---- */

/* A matrix has a number per row and per column, a vector one per element. */
static int64_t factor_numel(const tess_param *p)
{
    return p->shape_rank == 1 ? p->numel : p->shape[0] + p->numel / p->shape[0];
}

int64_t tess_state_align_numel(tess_state_grain grain)
{
    return grain == TESS_GRAIN_BLOCK ? 1 : BLOCK;
}

bool tess_param_is_hidden_matrix(const tess_param *p)
{
    return p->role == TESS_ROLE_TRAINABLE && p->shape_rank == 2 && !p->is_outer;
}

static bool has_rest(const tess_registry *reg, int unit_idx)
{
    for (int i = 0; i < reg->param_numel; i++) {
        const tess_param *p = &reg->param[i];
        if (p->unit_idx == unit_idx && p->role == TESS_ROLE_TRAINABLE &&
            !tess_param_is_hidden_matrix(p))
            return true;
    }
    return false;
}

static int64_t factor_room(const tess_registry *reg, int unit_idx, int end_param_idx)
{
    int64_t numel = 0;
    for (int i = 0; i < end_param_idx; i++) {
        const tess_param *p = &reg->param[i];
        if (p->role == TESS_ROLE_TRAINABLE && p->unit_idx == unit_idx)
            numel += tess_round_up(factor_numel(p), BLOCK);
    }
    return numel;
}

int64_t tess_state_total_numel(const tess_registry *reg, int unit_idx, tess_state_grain grain)
{
    const bool is_set = reg->unit[unit_idx].is_set;
    switch (grain) {
    case TESS_GRAIN_BLOCK:
        return reg->unit[unit_idx].trainable_numel / BLOCK;
    case TESS_GRAIN_FACTOR:
        return is_set ? 0 : factor_room(reg, unit_idx, reg->param_numel);
    case TESS_GRAIN_REST:
        return !is_set && has_rest(reg, unit_idx) ? reg->unit[unit_idx].trainable_numel : 0;
    case TESS_GRAIN_ELEMENT:
        break;
    }
    return reg->unit[unit_idx].trainable_numel;
}

void tess_state_place(const tess_registry *reg, int param_idx, tess_state_grain grain,
                      int64_t *first_idx, int64_t *numel)
{
    const tess_param *p = &reg->param[param_idx];
    *first_idx = p->slab_first_idx;
    *numel = p->numel;
    if (grain == TESS_GRAIN_BLOCK) {
        *first_idx /= BLOCK;
        *numel = tess_ceil_div(p->numel, BLOCK);
    } else if (grain == TESS_GRAIN_FACTOR) {
        *first_idx = factor_room(reg, p->unit_idx, param_idx);
        *numel = factor_numel(p);
    }
}

void *optimizer_array(tess_runtime *rt, int array_idx, int64_t idx)
{
    const tess_state_plan *s = &rt->parts.plan->state[array_idx];
    return runtime_at(rt, TESS_LIFE_STATE,
                      s->offset_nbytes + (size_t)idx * tess_dtype_block_nbytes(s->array.dt));
}

void *optimizer_work(tess_runtime *rt)
{
    return runtime_at(rt, TESS_LIFE_GRAD, rt->parts.plan->optimizer_work_offset_nbytes);
}

int64_t optimizer_first(const tess_runtime *rt, int unit_idx, int array_idx)
{
    const tess_plan *plan = rt->parts.plan;
    const tess_unit_plan *u = &plan->unit[unit_idx];
    int64_t lo = 0, hi = 0;
    switch (plan->state[array_idx].array.grain) {
    case TESS_GRAIN_BLOCK:
        return u->state_first_idx / BLOCK;
    case TESS_GRAIN_FACTOR:
        tess_plan_state_owned(plan, unit_idx, array_idx, rt->rank, &lo, &hi);
        return u->factor_first_idx + lo;
    case TESS_GRAIN_REST:
        return u->rest_first_idx;
    case TESS_GRAIN_ELEMENT:
        break;
    }
    return u->state_first_idx;
}

/* ---- segments ---- */

/* The parts that this rank owns of trainable tensors that learn, or that are set. */
static int visit_segments(const tess_runtime *rt, bool is_set, update_segment *out)
{
    const tess_plan *plan = rt->parts.plan;
    const tess_registry *reg = rt->parts.registry;
    int numel = 0;
    for (int i = 0; i < reg->param_numel; i++) {
        const tess_param *p = &reg->param[i];
        const tess_unit_plan *u = &plan->unit[p->unit_idx];
        int64_t lo = 0, hi = 0;
        tess_plan_owned(plan, p->unit_idx, rt->rank, &lo, &hi);
        const int64_t first = TESS_MAX(lo, p->slab_first_idx);
        const int64_t end = TESS_MIN(hi, p->slab_first_idx + p->numel);
        if (p->role != TESS_ROLE_TRAINABLE || u->is_set != is_set || first >= end)
            continue;
        const int64_t row = plan->options.is_full ? 0 : u->slab_shard_numel * rt->rank;
        const size_t elem_nbytes = tess_dtype_block_nbytes(tess_param_compute_dt(reg, p));
        if (out != NULL)
            out[numel] =
                (update_segment){.tensor_idx = i,
                                 .first_idx = first - p->slab_first_idx,
                                 .state_idx = u->state_first_idx + first - lo,
                                 .param_offset_nbytes = u->param_offset_nbytes +
                                                        (size_t)(row + first - lo) * elem_nbytes,
                                 .numel = end - first,
                                 .learning_rate_ratio = p->learning_rate_ratio,
                                 .has_weight_decay = p->has_weight_decay};
        numel++;
    }
    return numel;
}

static const tess_optimizer *optimizer_of(const tess_runtime *rt)
{
    return rt->parts.plan->options.optimizer;
}

tess_status optimizer_create(tess_runtime *rt)
{
    void *array = NULL;
    TESS_TRY(tess_optimizer_check(optimizer_of(rt), rt->parts.kernels));
    rt->segment_numel = visit_segments(rt, false, NULL);
    rt->set_segment_numel = visit_segments(rt, true, NULL);
    TESS_TRY(
        tess_alloc_array(rt->segment_numel + rt->set_segment_numel, sizeof *rt->segment, &array));
    rt->segment = array;
    (void)visit_segments(rt, false, rt->segment);
    (void)visit_segments(rt, true, rt->segment + rt->segment_numel);
    return TESS_OK;
}

tess_status tess_optimizer_check(const tess_optimizer *optimizer, const tess_kernels *kernels)
{
    TESS_CHECK(optimizer->has_kernels(kernels), TESS_E_UNSUPPORTED,
               "train.optimizer: %s has no kernels on %s; choose another one or set "
               "compute.device to cpu",
               optimizer->name, kernels->name);
    return TESS_OK;
}

float *segment_f32(tess_runtime *rt, const update_segment *s, int array_idx)
{
    const tess_plan *plan = rt->parts.plan;
    const int unit_idx = rt->parts.registry->param[s->tensor_idx].unit_idx;
    const int64_t into = s->state_idx - plan->unit[unit_idx].state_first_idx;
    const bool is_block = plan->state[array_idx].array.grain == TESS_GRAIN_BLOCK;
    return optimizer_array(
        rt, array_idx, optimizer_first(rt, unit_idx, array_idx) + (is_block ? into / BLOCK : into));
}

uint8_t *segment_u8(tess_runtime *rt, const update_segment *s, int array_idx)
{
    return optimizer_array(rt, array_idx, s->state_idx);
}

tess_update_part segment_part(tess_runtime *rt, const update_segment *s, float clip_factor)
{
    const tess_registry *reg = rt->parts.registry;
    const tess_dtype dt = tess_param_compute_dt(reg, &reg->param[s->tensor_idx]);
    const float *grad = gradient_sum(rt, 0) - rt->parts.plan->unit[0].state_first_idx;
    return (tess_update_part){
        .master = segment_f32(rt, s, TESS_STATE_MASTER),
        .grad = grad + s->state_idx,
        .param =
            runtime_view(rt, runtime_at(rt, TESS_LIFE_PARAM, s->param_offset_nbytes), s->numel, dt),
        .numel = s->numel,
        .clip_factor = clip_factor,
    };
}

double segment_rate(const tess_runtime *rt, const update_segment *s)
{
    return rt->request->update.learning_rate * s->learning_rate_ratio;
}

double segment_decay(const tess_runtime *rt, const update_segment *s)
{
    return s->has_weight_decay ? rt->request->update.weight_decay : 0.0;
}

/* ---- weights ---- */

int tess_runtime_weights_array(const tess_runtime *rt, tess_weights weights)
{
    return weights == TESS_WEIGHTS_EMA ? rt->parts.plan->ema_array_idx : TESS_STATE_MASTER;
}

tess_status optimizer_copy(tess_runtime *rt, int unit_idx, tess_weights weights)
{
    const int train_idx = optimizer_of(rt)->train_array_idx;
    const tess_view beside = tess_runtime_state(rt, unit_idx, train_idx);
    const tess_view from =
        tess_runtime_state(rt, unit_idx, tess_runtime_weights_array(rt, weights));
    const tess_view to = tess_runtime_param_shard(rt, unit_idx);
    if (from.numel == 0)
        return TESS_OK;
    if (weights == TESS_WEIGHTS_TRAINING && train_idx != 0 && beside.numel > 0) {
        const tess_blend_args args = {
            .a = from.data, .b = beside.data, .dst = to, .weight = rt->parts.train_blend};
        return rt->parts.kernels->blend(&args, rt->compute);
    }
    const tess_cast_args args = {.src = from, .dst = to};
    return rt->parts.kernels->cast(&args, rt->compute);
}

tess_status tess_runtime_begin(tess_runtime *rt)
{
    const tess_plan *plan = rt->parts.plan;
    for (int i = 1; i < plan->state_array_numel; i++)
        for (int u = 0; u < plan->unit_numel && plan->state[i].array.starts_as_master; u++) {
            const tess_view array = tess_runtime_state(rt, u, i);
            if (array.numel > 0)
                TESS_TRY(tess_device_copy(
                    rt->device, array, tess_runtime_state(rt, u, TESS_STATE_MASTER), rt->compute));
        }
    return TESS_OK;
}

/* Numbers of one exchange: the host has room for them in the step record. */
enum { SHARE_NUMEL = 256 };
_Static_assert(SHARE_NUMEL * sizeof(float) <= sizeof(step_record), "room for what is shared");

/* The bits of those in [lo, hi), which this rank has loaded, and zeros for the others. */
static void take_words(const float *loaded, int64_t first, int64_t numel, const int64_t range[2],
                       int64_t word[SHARE_NUMEL])
{
    for (int64_t i = 0; i < numel; i++) {
        uint32_t bits = 0;
        if (first + i >= range[0] && first + i < range[1])
            memcpy(&bits, &loaded[i], sizeof bits);
        word[i] = (int64_t)bits;
    }
}

static void put_words(float *all, int64_t numel, const int64_t word[SHARE_NUMEL])
{
    for (int64_t i = 0; i < numel; i++) {
        const uint32_t bits = (uint32_t)word[i];
        memcpy(&all[i], &bits, sizeof bits);
    }
}

/* Numbers [first, first + numel) of a unit. A copy that failed here keeps its rank in step with the
 * others: `local` says so. */
static tess_status share_some(tess_runtime *rt, tess_view part, int64_t first,
                              const int64_t range[2], tess_status *local)
{
    const int64_t numel = part.numel / (int64_t)sizeof(float);
    int64_t word[SHARE_NUMEL] = {0};
    void *near = NULL;
    if (*local == TESS_OK)
        *local = runtime_read(rt, part, &near);
    if (*local == TESS_OK)
        take_words(near, first, numel, range, word);
    TESS_TRY(tess_comm_control(rt->parts.world, word, (int)numel, NULL, 0));
    if (*local != TESS_OK)
        return TESS_OK;
    put_words(near, numel, word);
    *local = runtime_write(rt, part);
    return TESS_OK;
}

/* Every rank has loaded its own range of them; the others' come as sums with zeros. */
static tess_status share_factors(tess_runtime *rt, int array_idx)
{
    const tess_plan *plan = rt->parts.plan;
    tess_status local = TESS_OK;
    for (int u = 0; u < plan->unit_numel; u++) {
        float *all = optimizer_array(rt, array_idx, plan->unit[u].factor_first_idx);
        int64_t range[2];
        tess_plan_state_owned(plan, u, array_idx, rt->rank, &range[0], &range[1]);
        for (int64_t first = 0; first < plan->unit[u].factor_numel; first += SHARE_NUMEL) {
            const int64_t numel =
                TESS_MIN(plan->unit[u].factor_numel - first, (int64_t)SHARE_NUMEL);
            const tess_view part =
                runtime_view(rt, all + first, numel * (int64_t)sizeof(float), TESS_U8_OPAQUE);
            TESS_TRY(share_some(rt, part, first, range, &local));
        }
    }
    return tess_agree(tess_comm_host(rt->parts.world), local);
}

tess_status tess_runtime_resume(tess_runtime *rt)
{
    const tess_plan *plan = rt->parts.plan;
    for (int i = 0; i < plan->state_array_numel; i++)
        if (plan->state[i].array.grain == TESS_GRAIN_FACTOR)
            TESS_TRY(share_factors(rt, i));
    return TESS_OK;
}

double *tess_runtime_scalars(tess_runtime *rt) { return rt->scalar; }

/* ema += (1 - decay) (master - ema) */
static tess_status average(tess_runtime *rt)
{
    const int array_idx = rt->parts.plan->ema_array_idx;
    const int numel = rt->segment_numel + rt->set_segment_numel;
    for (int i = 0; i < numel && array_idx != 0; i++) {
        const update_segment *s = &rt->segment[i];
        float *ema = segment_f32(rt, s, array_idx);
        const tess_blend_args args = {.a = ema,
                                      .b = segment_f32(rt, s, TESS_STATE_MASTER),
                                      .dst = runtime_view(rt, ema, s->numel, TESS_F32),
                                      .weight = 1.0 - rt->request->update.ema_decay};
        TESS_TRY(rt->parts.kernels->blend(&args, rt->compute));
    }
    return TESS_OK;
}

tess_status optimizer_update(tess_runtime *rt, tess_step_result *result)
{
    const double clip_norm = rt->request->update.clip_norm;
    result->clip_factor = 1.0f;
    if (clip_norm > 0.0)
        result->clip_factor = (float)fmin(1.0, clip_norm / (result->grad_norm + 1e-6));
    TESS_TRY(optimizer_of(rt)->update(rt, result->clip_factor));
    return average(rt);
}
