/*
 * Adafactor: lines of a matrix lie on several ranks. Three exchanges an update, each over all
 * tensors at once: largest squares, exact sums of squares, exact sizes of updates. What is made of
 * them, the moments of lines, every rank computes for itself, and so holds whole.
 */
#include <math.h>

#include "core/arith.h"
#include "core/memory.h"
#include "shard/optimizer_priv.h"

enum { MOMENT = 1, EXP_AVG = 2 };
static const double eps_square = 1e-30, eps_param = 1e-3, clip_threshold = 1.0, decay_rate = 0.8;

/* Work: [lines] most, [lines] sum, [lines] root, then two exact sums a tensor: updates, masters. */
typedef struct lines {
    int64_t *most, *sum;
    float *root;
    tess_exact *square; /* [2 tensor_numel] */
    int64_t numel;
    int tensor_numel;
} lines;

static int64_t line_numel(const tess_registry *reg)
{
    int64_t numel = 0;
    for (int i = 0; i < reg->unit_numel; i++)
        numel += tess_state_total_numel(reg, i, TESS_GRAIN_FACTOR);
    return numel;
}

static size_t square_nbytes(int tensor_numel)
{
    return 2 * (size_t)tensor_numel * sizeof(tess_exact);
}

size_t adafactor_work_nbytes(const tess_registry *reg, const tess_kernels *kernels,
                             int thread_numel)
{
    (void)kernels;
    (void)thread_numel;
    const size_t each = 2 * sizeof(int64_t) + sizeof(float); /* lines come in multiples of 256 */
    return (size_t)line_numel(reg) * each + square_nbytes(reg->param_numel);
}

/* Integers of lines that are exchanged at once. */
enum { EXCHANGE_NUMEL = 1 << 17 };

size_t adafactor_host_nbytes(const tess_registry *reg)
{
    const int64_t numel = TESS_MIN(line_numel(reg), (int64_t)EXCHANGE_NUMEL);
    return TESS_MAX((size_t)numel * sizeof(int64_t), square_nbytes(reg->param_numel));
}

static lines lines_of(tess_runtime *rt)
{
    lines l = {.numel = rt->parts.plan->factor_numel,
               .tensor_numel = rt->parts.registry->param_numel};
    l.most = optimizer_work(rt);
    l.sum = l.most + l.numel;
    l.square = (tess_exact *)(void *)(l.sum + l.numel);
    l.root = (float *)(void *)(l.square + 2 * l.tensor_numel);
    return l;
}

/* Rates of one tensor in this step. */
typedef struct tensor_pace {
    double rate, decay;
} tensor_pace;

static tess_adafactor_args args_of(tess_runtime *rt, const lines *l, int tensor_idx)
{
    const tess_update *u = &rt->request->update;
    const tess_registry *reg = rt->parts.registry;
    const tess_param *p = &reg->param[tensor_idx];
    int64_t first = 0, numel = 0;
    tess_state_place(reg, tensor_idx, TESS_GRAIN_FACTOR, &first, &numel);
    first += rt->parts.plan->unit[p->unit_idx].factor_first_idx;
    tess_exact *square = l->square + 2 * tensor_idx;
    return (tess_adafactor_args){
        .rows = p->shape[0],
        .cols = p->shape_rank > 1 ? p->numel / p->shape[0] : 0,
        .most = l->most + first,
        .sum = l->sum + first,
        .root = l->root + first,
        .moment = (float *)optimizer_array(rt, MOMENT, first),
        .update_square = &square[0],
        .param_square = u->scales_by_param ? &square[1] : NULL,
        .beta1 = u->beta1,
        .beta2 = 1.0 - pow((double)u->step, -decay_rate),
        .eps = eps_square,
    };
}

typedef tess_status (*line_pass)(const tess_adafactor_args *a, tess_stream *s);

static tess_status run_segments(tess_runtime *rt, const lines *l, float clip_factor, line_pass pass)
{
    for (int i = 0; i < rt->segment_numel; i++) {
        const update_segment *s = &rt->segment[i];
        tess_adafactor_args args = args_of(rt, l, s->tensor_idx);
        args.part = segment_part(rt, s, clip_factor);
        args.first_idx = s->first_idx;
        TESS_TRY(pass(&args, rt->compute));
    }
    return TESS_OK;
}

static tess_view bytes_of(const tess_runtime *rt, const void *data, size_t nbytes)
{
    return runtime_view(rt, data, (int64_t)nbytes, TESS_U8_OPAQUE);
}

/* Sums, or maxima, over all ranks, in place: by way of the host. */
static tess_status exchange(tess_runtime *rt, int64_t *values, int64_t numel, bool is_max)
{
    for (int64_t first = 0; first < numel; first += EXCHANGE_NUMEL) {
        const int n = (int)TESS_MIN(numel - first, (int64_t)EXCHANGE_NUMEL);
        const tess_view part = bytes_of(rt, values + first, (size_t)n * sizeof *values);
        void *near = NULL;
        TESS_TRY(runtime_read(rt, part, &near));
        TESS_TRY(is_max ? tess_comm_control(rt->parts.world, NULL, 0, near, n)
                        : tess_comm_control(rt->parts.world, near, n, NULL, 0));
        TESS_TRY(runtime_write(rt, part));
    }
    return TESS_OK;
}

/* Sizes of all tensors' updates and masters, of all ranks, as the host has them. */
static tess_status exchange_squares(tess_runtime *rt, const lines *l, const tess_exact **out)
{
    void *near = NULL;
    TESS_TRY(runtime_read(rt, bytes_of(rt, l->square, square_nbytes(l->tensor_numel)), &near));
    *out = near;
    return tess_comm_control(rt->parts.world, near, 2 * l->tensor_numel * TESS_EXACT_LIMB_NUMEL,
                             NULL, 0);
}

/* The root of the mean square of a tensor. */
static double rms(const tess_exact *square, const tess_param *p)
{
    return sqrt(tess_exact_round(square) / (double)p->numel);
}

static tensor_pace pace_of(const tess_runtime *rt, const tess_exact *squares,
                           const update_segment *s)
{
    const tess_update *u = &rt->request->update;
    const tess_param *p = &rt->parts.registry->param[s->tensor_idx];
    const tess_exact *square = squares + 2 * s->tensor_idx;
    double rate = segment_rate(rt, s);
    if (u->has_relative_step)
        rate *= fmin(1e-2, 1.0 / sqrt((double)u->step));
    if (u->scales_by_param)
        rate *= fmax(eps_param, rms(&square[1], p));
    const double size = rms(&square[0], p) / clip_threshold;
    return (tensor_pace){.rate = rate / fmax(1.0, size), .decay = rate * segment_decay(rt, s)};
}

static tess_status apply(tess_runtime *rt, const lines *l, const tess_exact *squares,
                         float clip_factor)
{
    const bool has_moment = rt->parts.plan->options.optimizer->array_numel > EXP_AVG;
    for (int i = 0; i < rt->segment_numel; i++) {
        const update_segment *s = &rt->segment[i];
        const tensor_pace pace = pace_of(rt, squares, s);
        tess_adafactor_args args = args_of(rt, l, s->tensor_idx);
        args.part = segment_part(rt, s, clip_factor);
        args.first_idx = s->first_idx;
        args.rate = pace.rate;
        args.decay = pace.decay;
        args.exp_avg = has_moment ? segment_f32(rt, s, EXP_AVG) : NULL;
        TESS_TRY(rt->parts.kernels->adafactor_apply(&args, rt->compute));
    }
    return TESS_OK;
}

tess_status update_adafactor(tess_runtime *rt, float clip_factor)
{
    const tess_kernels *k = rt->parts.kernels;
    const tess_registry *reg = rt->parts.registry;
    const lines l = lines_of(rt);
    const tess_exact *squares = NULL;
    TESS_TRY(tess_device_zero(rt->device,
                              bytes_of(rt, optimizer_work(rt), adafactor_work_nbytes(reg, k, 1)),
                              rt->compute));
    TESS_TRY(run_segments(rt, &l, clip_factor, k->adafactor_most));
    TESS_TRY(exchange(rt, l.most, l.numel, true));
    TESS_TRY(run_segments(rt, &l, clip_factor, k->adafactor_sum));
    TESS_TRY(exchange(rt, l.sum, l.numel, false));
    for (int i = 0; i < reg->param_numel; i++) {
        const tess_adafactor_args args = args_of(rt, &l, i);
        const tess_param *p = &reg->param[i];
        if (p->role == TESS_ROLE_TRAINABLE && !reg->unit[p->unit_idx].is_set)
            TESS_TRY(k->adafactor_factor(&args, rt->compute));
    }
    TESS_TRY(run_segments(rt, &l, clip_factor, k->adafactor_size));
    TESS_TRY(exchange_squares(rt, &l, &squares));
    return apply(rt, &l, squares, clip_factor);
}
