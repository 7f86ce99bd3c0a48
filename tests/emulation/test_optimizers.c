/* Updates of optimizers in the emulation, against the C twins. Runs on a device too. */
#include <math.h>

#include "kernels/nf4.h"
#include "tests/emulation/emulation.h"
#include "tests/emulation/twin.h"

typedef struct shape {
    tess_dtype dt;
    int64_t numel;
    int64_t shift; /* elements behind an aligned address */
    bool has_param;
} shape;

/* Sizes around a chunk of 4, a block of 256 elements, a thread block and several of them. */
static const shape shapes[] = {
    {TESS_F32, 0, 0, true},        {TESS_F32, 1, 0, true},
    {TESS_BF16, 255, 0, true},     {TESS_BF16, 256, 0, true},
    {TESS_F32, 257, 1, true},      {TESS_BF16, 1023, 0, false},
    {TESS_BF16, 4096, 0, true},    {TESS_BF16, 9001, 3, true},
    {TESS_BF16, 1000003, 0, true}, /* fills a device */
};

#define CALL(t, op, args) ((t)->is_cuda ? tess_cuda_##op(args, s) : tess_cpu_##op(args, s))

enum { MASTER, GRAD, PARAM, STATE };

static const shape *make_part(twin *t, int case_idx)
{
    const shape *c = &shapes[case_idx];
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "master", TESS_F32, c->numel, 1.0);
    twin_random(t, "grad", TESS_F32, c->numel, 1.0);
    twin_output(t, "param", c->dt, c->has_param ? c->numel : 0);
    return c;
}

static tess_update_part part_of(const twin *t)
{
    return (tess_update_part){.master = t->x[MASTER].data,
                              .grad = t->x[GRAD].data,
                              .param = twin_view(t, PARAM),
                              .numel = t->x[MASTER].numel,
                              .clip_factor = 0.7f};
}

static void make_squares(twin *t, const char *name, int64_t numel)
{
    twin_operand *v = twin_random(t, name, TESS_F32, numel, 0.1);
    for (int64_t i = 0; i < numel; i++)
        ((float *)v->initial)[i] = fabsf(((float *)v->initial)[i]);
}

/* ---- Lion ---- */

static void lion_make(twin *t, int case_idx)
{
    twin_random(t, "exp_avg", TESS_F32, make_part(t, case_idx)->numel, 0.1);
}

static tess_status lion_call(twin *t, tess_stream *s)
{
    const tess_lion_args a = {.part = part_of(t),
                              .exp_avg = t->x[STATE].data,
                              .learning_rate = 1e-3,
                              .beta1 = 0.9,
                              .beta2 = 0.99,
                              .weight_decay = 0.1};
    TESS_TRY(CALL(t, lion, &a));
    return CALL(t, lion, &a);
}

/* ---- schedule-free AdamW ---- */

static void schedule_free_make(twin *t, int case_idx)
{
    const shape *c = make_part(t, case_idx);
    twin_random(t, "z", TESS_F32, c->numel, 1.0);
    make_squares(t, "exp_avg_sq", c->numel);
}

static tess_status schedule_free_call(twin *t, tess_stream *s)
{
    tess_schedule_free_args a = {.part = part_of(t),
                                 .z = t->x[STATE].data,
                                 .exp_avg_sq = t->x[STATE + 1].data,
                                 .learning_rate = 1e-3,
                                 .beta2 = 0.999,
                                 .eps = 1e-8,
                                 .weight_decay = 0.1,
                                 .blend = 0.1,
                                 .average = 1.0,
                                 .step = 1};
    TESS_TRY(CALL(t, schedule_free, &a));
    a.step = 2;
    a.average = 0.5;
    return CALL(t, schedule_free, &a);
}

/* ---- blend ---- */

static tess_status blend_call(twin *t, tess_stream *s)
{
    float *a = t->x[MASTER].data, *b = t->x[GRAD].data;
    const tess_blend_args to_copy = {.a = a, .b = b, .dst = twin_view(t, PARAM), .weight = 0.25};
    const tess_blend_args in_place = {.a = a, .b = b, .dst = twin_view(t, MASTER), .weight = 0.001};
    TESS_TRY(CALL(t, blend, &to_copy));
    return CALL(t, blend, &in_place);
}

static void blend_make(twin *t, int case_idx) { make_part(t, case_idx); }

/* ---- AdamW in 8 bits ---- */

/* Random codes with some of both ends; one block of zeros, one element without a finite gradient.
 */
static void adamw_8bit_make(twin *t, int case_idx)
{
    const shape *c = make_part(t, case_idx);
    const int64_t block_numel = (c->numel + 255) / 256;
    for (int k = 0; k < 2; k++) {
        twin_operand *codes = twin_add(t, k == 0 ? "exp_avg" : "exp_avg_sq", TESS_U8, c->numel);
        const tess_rng rng = tess_rng_make(5 + (uint64_t)k, TESS_RNG_TEST, 0, 0);
        for (int64_t i = 0; i < c->numel; i++)
            ((uint8_t *)codes->initial)[i] = (uint8_t)tess_rng_below(&rng, (uint64_t)i, 256);
    }
    make_squares(t, "exp_avg_absmax", block_numel);
    make_squares(t, "exp_avg_sq_absmax", block_numel);
    float *grad = t->x[GRAD].initial;
    for (int64_t i = 256; i < TESS_MIN(c->numel, 512); i++)
        grad[i] = 0.0f;
    if (block_numel > 1)
        ((float *)t->x[STATE + 2].initial)[1] = ((float *)t->x[STATE + 3].initial)[1] = 0.0f;
    if (c->numel > 600)
        grad[600] = NAN;
}

static tess_status adamw_8bit_call(twin *t, tess_stream *s)
{
    tess_adamw_8bit_args a = {.part = part_of(t),
                              .exp_avg = t->x[STATE].data,
                              .exp_avg_sq = t->x[STATE + 1].data,
                              .exp_avg_absmax = t->x[STATE + 2].data,
                              .exp_avg_sq_absmax = t->x[STATE + 3].data,
                              .learning_rate = 1e-3,
                              .beta1 = 0.9,
                              .beta2 = 0.999,
                              .eps = 1e-8,
                              .weight_decay = 0.1,
                              .step = 1};
    TESS_TRY(CALL(t, adamw_8bit, &a));
    a.step = 2;
    return CALL(t, adamw_8bit, &a);
}

/* ---- Prodigy ---- */

static void prodigy_make(twin *t, int case_idx)
{
    const shape *c = make_part(t, case_idx);
    twin_random(t, "exp_avg", TESS_F32, c->numel, 0.1);
    make_squares(t, "exp_avg_sq", c->numel);
    twin_random(t, "s", TESS_F32, c->numel, 0.1);
    twin_random(t, "start", TESS_F32, c->numel, 1.0);
    t->shift = 0;
    twin_operand *sums =
        twin_add(t, "sums", TESS_I64, (int64_t)(sizeof(tess_prodigy_sums) / sizeof(int64_t)));
    memset(sums->initial, 0, sums->nbytes);
    if (c->numel > 600)
        ((float *)t->x[STATE + 3].initial)[600] = INFINITY; /* its block is counted */
}

static tess_status prodigy_call(twin *t, tess_stream *s)
{
    const tess_prodigy_measure_args measure = {.part = part_of(t),
                                               .start = t->x[STATE + 3].data,
                                               .exp_avg = t->x[STATE].data,
                                               .exp_avg_sq = t->x[STATE + 1].data,
                                               .s = t->x[STATE + 2].data,
                                               .sums = t->x[STATE + 4].data,
                                               .beta1 = 0.9,
                                               .beta2 = 0.999,
                                               .beta3 = 0.99,
                                               .d = 0.125,
                                               .s_rate = 0.5};
    const tess_prodigy_apply_args apply = {.part = part_of(t),
                                           .exp_avg = t->x[STATE].data,
                                           .exp_avg_sq = t->x[STATE + 1].data,
                                           .rate = 1e-2,
                                           .decay = 1e-3,
                                           .eps = 1e-9};
    TESS_TRY(CALL(t, prodigy_measure, &measure));
    TESS_TRY(CALL(t, prodigy_apply, &apply));
    return CALL(t, prodigy_measure, &measure);
}

/* ---- Adafactor ---- */

/* A part of a tensor: from where on, and of what. Rows and columns around the tiles of a block
 * (powers of two up to 256 columns, 64 rows and more), parts that begin and end inside a row, a
 * vector (no columns). */
typedef struct adafactor_shape {
    int64_t rows, cols, first_idx, numel;
    int64_t shift;
    tess_dtype dt;
    bool has_moment, has_param;
} adafactor_shape;

static const adafactor_shape adafactor_shapes[] = {
    {1, 1, 0, 1, 0, TESS_F32, true, true},
    {5, 3, 0, 15, 1, TESS_BF16, false, true},
    {700, 0, 0, 700, 0, TESS_F32, true, true},
    {1000, 0, 256, 511, 3, TESS_BF16, false, true},
    {300, 1, 0, 300, 0, TESS_F32, true, false},
    {4200, 2, 512, 7000, 0, TESS_BF16, true, true},
    {70, 16, 256, 700, 0, TESS_F32, true, true},
    {16, 300, 0, 4800, 0, TESS_BF16, true, true},
    {16, 300, 1024, 3000, 2, TESS_F32, false, true},
    {150, 33, 512, 4000, 0, TESS_BF16, true, false},
    {9, 257, 256, 1800, 0, TESS_F32, true, true},
    {130, 64, 0, 0, 0, TESS_F32, true, true},
};

enum { MOST = STATE, SUM, MOMENT, ROOT, SQUARES, EXP_AVG };

/* Gradients of all sizes: nothing, subnormal numbers, numbers whose squares nearly leave f32 (of a
 * vector, far more: its moments are infinite). Some rows and columns have none but zeros of either
 * sign. */
static void make_gradients(float *grad, const adafactor_shape *c)
{
    const int64_t cols = TESS_MAX(c->cols, 1);
    for (int64_t i = 0; i < c->numel; i++) {
        const int64_t row = (c->first_idx + i) / cols, col = (c->first_idx + i) % cols;
        if (row % 7 == 3 || (cols > 8 && col % 11 == 5))
            grad[i] = row % 2 == 0 ? 0.0f : -0.0f;
        else if (row % 7 == 4)
            grad[i] *= 0x1p-140f;
        else if (row % 7 == 5)
            grad[i] *= c->cols > 0 ? 0x1p+60f : 0x1p+120f;
        else if (row % 7 == 6 && col % 2 == 1)
            grad[i] *= 0x1p-40f;
    }
}

static void adafactor_make(twin *t, int case_idx)
{
    const adafactor_shape *c = &adafactor_shapes[case_idx];
    const int64_t line_numel = c->rows + c->cols;
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "master", TESS_F32, c->numel, 1.0);
    make_gradients(twin_random(t, "grad", TESS_F32, c->numel, 1.0)->initial, c);
    twin_output(t, "param", c->dt, c->has_param ? c->numel : 0);
    t->shift = 0;
    memset(twin_add(t, "most", TESS_I64, line_numel)->initial, 0, 8 * (size_t)line_numel);
    memset(twin_add(t, "sum", TESS_I64, line_numel)->initial, 0, 8 * (size_t)line_numel);
    make_squares(t, "moment", line_numel);
    twin_output(t, "root", TESS_F32, line_numel);
    const size_t square_nbytes = 2 * sizeof(tess_exact);
    memset(twin_add(t, "squares", TESS_I64, (int64_t)square_nbytes / 8)->initial, 0, square_nbytes);
    t->shift = c->shift;
    twin_random(t, "exp_avg", TESS_F32, c->has_moment ? c->numel : 0, 0.1);
    /* A tensor's other part may have the largest square of a line, and more of its sum. */
    int64_t *most = t->x[MOST].initial, *sum = t->x[SUM].initial;
    for (int64_t line = 1; line < line_numel; line += 5) {
        most[line] = INT64_C(1025) << 52; /* 4 */
        sum[line] = line;
    }
}

static tess_adafactor_args adafactor_args_of(const twin *t)
{
    const adafactor_shape *c = t->ctx;
    tess_exact *squares = t->x[SQUARES].data;
    return (tess_adafactor_args){.part = part_of(t),
                                 .first_idx = c->first_idx,
                                 .rows = c->rows,
                                 .cols = c->cols,
                                 .most = t->x[MOST].data,
                                 .sum = t->x[SUM].data,
                                 .moment = t->x[MOMENT].data,
                                 .root = t->x[ROOT].data,
                                 .update_square = squares,
                                 .param_square = c->has_param ? squares + 1 : NULL,
                                 .exp_avg = c->has_moment ? t->x[EXP_AVG].data : NULL,
                                 .beta1 = 0.9,
                                 .beta2 = 0.75,
                                 .eps = 1e-30,
                                 .rate = 1e-2,
                                 .decay = 1e-3};
}

static tess_status adafactor_call(twin *t, tess_stream *s)
{
    const tess_adafactor_args a = adafactor_args_of(t);
    TESS_TRY(CALL(t, adafactor_most, &a));
    TESS_TRY(CALL(t, adafactor_sum, &a));
    TESS_TRY(CALL(t, adafactor_factor, &a));
    TESS_TRY(CALL(t, adafactor_size, &a));
    return CALL(t, adafactor_apply, &a);
}

/* An update that is not finite is in no sum of squares and shows in the weights. */
static void wild_make(twin *t, int case_idx)
{
    adafactor_make(t, 7 + case_idx);
    float *grad = t->x[GRAD].initial, *root = t->x[ROOT].initial;
    const adafactor_shape *c = t->ctx;
    for (int64_t line = 0; line < c->rows + c->cols; line++)
        root[line] = line % 9 == 4 ? INFINITY : 0.25f * (float)(line + 1);
    grad[c->numel / 2] = NAN;
}

static tess_status wild_call(twin *t, tess_stream *s)
{
    const tess_adafactor_args a = adafactor_args_of(t);
    TESS_TRY(CALL(t, adafactor_size, &a));
    return CALL(t, adafactor_apply, &a);
}

/* ---- Muon ---- */

static void muon_make(twin *t, int case_idx)
{
    const shape *c = make_part(t, case_idx);
    twin_random(t, "exp_avg", TESS_F32, c->numel, 0.1);
    twin_output(t, "scaled", TESS_F32, c->numel);
}

static tess_status muon_call(twin *t, tess_stream *s)
{
    float *grad = t->x[GRAD].data;
    const int64_t numel = t->x[GRAD].numel;
    const tess_muon_momentum_args momentum = {.exp_avg = t->x[STATE].data,
                                              .grad = grad,
                                              .numel = numel,
                                              .clip_factor = 0.7f,
                                              .beta = 0.95};
    const tess_scale_args aside = {
        .x = grad, .dst = t->x[STATE + 1].data, .numel = numel, .factor = -4.775f};
    const tess_scale_args in_place = {.x = grad, .dst = grad, .numel = numel, .factor = 0.3f};
    const tess_muon_apply_args apply = {.part = part_of(t), .rate = 2e-2, .decay = 1e-3};
    TESS_TRY(CALL(t, muon_momentum, &momentum));
    TESS_TRY(CALL(t, scale, &aside));
    TESS_TRY(CALL(t, scale, &in_place));
    return CALL(t, muon_apply, &apply);
}

static const twin_op ops[] = {
    {"lion", lion_make, lion_call, TESS_NELEM(shapes), 1},
    {"schedule_free", schedule_free_make, schedule_free_call, TESS_NELEM(shapes), 1},
    {"blend", blend_make, blend_call, TESS_NELEM(shapes), 1},
    {"prodigy", prodigy_make, prodigy_call, TESS_NELEM(shapes), 1},
    {"adamw_8bit", adamw_8bit_make, adamw_8bit_call, TESS_NELEM(shapes), 1},
    {"adafactor", adafactor_make, adafactor_call, TESS_NELEM(adafactor_shapes), 0},
    {"adafactor, not finite", wild_make, wild_call, 3, 0},
    {"muon", muon_make, muon_call, TESS_NELEM(shapes), 1},
};

static const twin_suite suite = {ops,
                                 TESS_NELEM(ops),
                                 {"optimizers.cu", "adafactor.cu", "muon.cu", "squares_priv.cuh",
                                  "update_priv.cuh", "common_priv.cuh", NULL}};

int main(void) { return twin_suite_main(&suite); }
