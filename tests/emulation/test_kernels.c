/* Element-wise kernels, sums and AdamW in the emulation, against the C twins. Runs on a device too.
 */
#include "tests/emulation/emulation.h"
#include "tests/emulation/twin.h"

typedef struct shape {
    tess_dtype dt, other;
    int64_t rows, dim;
    int64_t shift;  /* elements behind an aligned address */
    int64_t stride; /* 0: contiguous */
} shape;

enum { LARGE = 2 }; /* the last of flat and matrix fill a device */

/* Sizes around a chunk of 4 or 8, a block of 2048 elements and several of them. */
static const shape flat[] = {
    {TESS_F32, TESS_F32, 1, 0, 0, 0},        {TESS_F32, TESS_F32, 1, 1, 0, 0},
    {TESS_F32, TESS_F32, 1, 1023, 0, 0},     {TESS_F32, TESS_F32, 1, 6001, 1, 0},
    {TESS_F32, TESS_F32, 1, 4096, 0, 0},     {TESS_BF16, TESS_F32, 1, 0, 0, 0},
    {TESS_BF16, TESS_F32, 1, 1, 0, 0},       {TESS_BF16, TESS_F32, 1, 2051, 0, 0},
    {TESS_BF16, TESS_F32, 1, 9001, 3, 0},    {TESS_BF16, TESS_F32, 1, 8192, 0, 0},
    {TESS_F32, TESS_BF16, 1, 4099, 0, 0},    {TESS_BF16, TESS_BF16, 1, 4099, 0, 0},
    {TESS_F32, TESS_BF16, 1, 1029, 2, 0},    {TESS_BF16, TESS_BF16, 1, 777, 1, 0},
    {TESS_F32, TESS_BF16, 1, 1000003, 1, 0}, {TESS_BF16, TESS_F32, 1, 2000003, 0, 0},
};

/* Matrices: rows of odd length, whole chunks, one row, longer than a block, with a stride. */
static const shape matrix[] = {
    {TESS_F32, TESS_F32, 0, 5, 0, 0},
    {TESS_F32, TESS_F32, 1, 1, 0, 0},
    {TESS_F32, TESS_F32, 37, 13, 0, 0},
    {TESS_F32, TESS_BF16, 5, 1028, 0, 1040},
    {TESS_F32, TESS_F32, 3, 64, 1, 67},
    {TESS_BF16, TESS_BF16, 0, 5, 0, 0},
    {TESS_BF16, TESS_BF16, 17, 33, 0, 0},
    {TESS_BF16, TESS_F32, 33, 2056, 0, 2064},
    {TESS_BF16, TESS_BF16, 4, 256, 0, 264},
    {TESS_BF16, TESS_BF16, 19, 40, 1, 48},
    {TESS_BF16, TESS_F32, 7, 40, 0, 41},
    {TESS_F32, TESS_F32, 3001, 515, 1, 0},
    {TESS_BF16, TESS_BF16, 2099, 1000, 0, 1024},
};

static int64_t strided_numel(const shape *c)
{
    if (c->rows == 0)
        return 0;
    return c->stride == 0 ? c->rows * c->dim : (c->rows - 1) * c->stride + c->dim;
}

#define CALL(t, op, args) ((t)->is_cuda ? tess_cuda_##op(args, s) : tess_cpu_##op(args, s))

static void swiglu_make(twin *t, int case_idx)
{
    const shape *c = &matrix[case_idx];
    const int64_t numel = c->rows * c->dim;
    t->ctx = c;
    t->shift = c->shift;
    twin_extremes(twin_random(t, "gate", c->dt, numel, 30.0));
    twin_random(t, "up", c->dt, numel, 1.0);
    twin_random(t, "d_out", c->dt, numel, 1.0);
    twin_output(t, "out", c->dt, strided_numel(c));
    twin_output(t, "d_gate", c->dt, strided_numel(c));
    twin_output(t, "d_up", c->dt, strided_numel(c));
}

static tess_status swiglu_call(twin *t, tess_stream *s)
{
    const shape *c = t->ctx;
    const tess_swiglu_args forward = {.gate = twin_view(t, 0),
                                      .up = twin_view(t, 1),
                                      .out = twin_view(t, 3),
                                      .dim = c->dim,
                                      .out_stride = c->stride};
    const tess_swiglu_backward_args backward = {.gate = twin_view(t, 0),
                                                .up = twin_view(t, 1),
                                                .d_out = twin_view(t, 2),
                                                .d_gate = twin_view(t, 4),
                                                .d_up = twin_view(t, 5),
                                                .dim = c->dim,
                                                .d_stride = c->stride};
    TESS_TRY(CALL(t, swiglu_forward, &forward));
    return CALL(t, swiglu_backward, &backward);
}

static tess_status swiglu_in_place_call(twin *t, tess_stream *s)
{
    const shape *c = t->ctx;
    const tess_swiglu_args forward = {
        .gate = twin_view(t, 0), .up = twin_view(t, 1), .out = twin_view(t, 1)};
    const tess_swiglu_backward_args backward = {.gate = twin_view(t, 0),
                                                .up = twin_view(t, 1),
                                                .d_out = twin_view(t, 2),
                                                .d_gate = twin_view(t, 0),
                                                .d_up = twin_view(t, 1)};
    (void)c;
    TESS_TRY(CALL(t, swiglu_forward, &forward));
    return CALL(t, swiglu_backward, &backward);
}

static void flat_make(twin *t, int case_idx)
{
    const shape *c = &flat[case_idx];
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "a", c->dt, c->dim, 1.0);
    twin_random(t, "b", c->dt, c->dim, 1.0);
    twin_random(t, "other", c->other, c->dim, 1.0);
    twin_output(t, "out", c->dt, c->dim);
    twin_output(t, "out_other", c->other, c->dim);
}

static tess_status add_call(twin *t, tess_stream *s)
{
    const tess_add_args a = {twin_view(t, 0), twin_view(t, 1), twin_view(t, 3)};
    const tess_add_args in_place = {twin_view(t, 0), twin_view(t, 3), twin_view(t, 0)};
    TESS_TRY(CALL(t, add, &a));
    return CALL(t, add, &in_place);
}

static tess_status dropout_call(twin *t, tess_stream *s)
{
    const tess_rng rng = tess_rng_make(1234, TESS_RNG_DROPOUT, 3, 5);
    for (int64_t first = 0; first < 4; first++) {
        const tess_dropout_args a = {.x = twin_view(t, 0),
                                     .add = twin_view(t, 2),
                                     .out = twin_view(t, 4),
                                     .p = 0.3f,
                                     .rng = rng,
                                     .first_idx = first * 1001};
        const tess_dropout_args alone = {.x = twin_view(t, 2),
                                         .out = twin_view(t, 3),
                                         .p = first == 3 ? 0.0f : 0.9f,
                                         .rng = rng,
                                         .first_idx = (INT64_C(1) << 34) + first};
        TESS_TRY(CALL(t, dropout, &a));
        TESS_TRY(CALL(t, dropout, &alone));
    }
    return TESS_OK;
}

/* NaN of both signs, infinities, denormals and the largest numbers among the values. */
static void cast_make(twin *t, int case_idx)
{
    static const uint32_t special[] = {0x7fc00001u, 0xffffffffu, 0x7f800001u, 0x7f800000u,
                                       0xff800000u, 1u,          0x80008000u, 0x7f7fffffu,
                                       0x00008000u, 0x3f808000u, 0x3f818000u, 0x80000000u};
    flat_make(t, case_idx);
    t->has_nan_bits = true;
    for (int i = 0; i < 3; i++) {
        twin_operand *x = &t->x[i];
        for (int64_t k = 0; k < TESS_MIN(x->numel, TESS_NELEM(special)); k++) {
            if (x->dt == TESS_F32)
                ((uint32_t *)x->initial)[k] = special[k];
            else
                ((uint16_t *)x->initial)[k] = (uint16_t)(special[k] >> 16);
        }
    }
}

static tess_status cast_call(twin *t, tess_stream *s)
{
    const tess_cast_args there = {twin_view(t, 0), twin_view(t, 4)};
    const tess_cast_args back = {twin_view(t, 2), twin_view(t, 3)};
    const tess_cast_args same = {twin_view(t, 0), twin_view(t, 1)};
    TESS_TRY(CALL(t, cast, &there));
    TESS_TRY(CALL(t, cast, &back));
    return CALL(t, cast, &same);
}

static void columns_make(twin *t, int case_idx)
{
    const shape *c = &matrix[case_idx];
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "x", c->dt, c->rows * c->dim, 1.0);
    twin_random(t, "bias", c->other, c->dim, 1.0);
    twin_random(t, "out", TESS_F32, c->dim, 1.0);
    twin_output(t, "work", TESS_F32, 16 * c->dim);
}

static tess_status columns_call(twin *t, tess_stream *s)
{
    const shape *c = t->ctx;
    const tess_add_bias_args bias = {twin_view(t, 0), twin_view(t, 1)};
    const tess_sum_rows_args sum = {twin_view(t, 0), c->rows, c->dim, t->x[2].data, t->x[3].data};
    TESS_TRY(CALL(t, add_bias, &bias));
    return CALL(t, sum_rows, &sum);
}

static void dora_make(twin *t, int case_idx)
{
    const shape *c = &matrix[case_idx];
    const int64_t numel = c->rows * c->dim;
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "z", c->dt, numel, 1.0);
    twin_random(t, "magnitude", c->dt, c->dim, 1.0);
    twin_operand *norm = twin_random(t, "norm", TESS_F32, c->dim, 1.0);
    twin_random(t, "bias", c->other, c->dim, 1.0);
    twin_output(t, "y", c->dt, strided_numel(c));
    twin_random(t, "d_y", c->dt, strided_numel(c), 1.0);
    twin_output(t, "d_direct", c->dt, numel);
    twin_random(t, "d_magnitude", TESS_F32, c->dim, 1.0);
    twin_output(t, "work", TESS_F32, 16 * c->dim);
    twin_random(t, "logits", TESS_F32, strided_numel(c), 1.0);
    twin_random(t, "x", TESS_F32, numel, 1.0);
    twin_output(t, "lengths", TESS_F32, c->rows);
    for (int64_t i = 0; i < c->dim; i++)
        ((float *)norm->initial)[i] = i == 3 ? 0.0f : fabsf(((float *)norm->initial)[i]);
}

static tess_status dora_call(twin *t, tess_stream *s)
{
    const shape *c = t->ctx;
    tess_dora_args forward = {.z = twin_view(t, 0),
                              .magnitude = twin_view(t, 1),
                              .norm = t->x[2].data,
                              .bias = twin_view(t, 3),
                              .row_numel = c->rows,
                              .dim = c->dim,
                              .y = twin_view(t, 4),
                              .y_stride = c->stride};
    const tess_dora_backward_args backward = {.d_y = twin_view(t, 5),
                                              .d_y_stride = c->stride,
                                              .z = twin_view(t, 0),
                                              .magnitude = twin_view(t, 1),
                                              .norm = t->x[2].data,
                                              .row_numel = c->rows,
                                              .dim = c->dim,
                                              .d_z = twin_view(t, 5),
                                              .d_z_stride = c->stride,
                                              .d_direct = twin_view(t, 6),
                                              .d_magnitude = t->x[7].data,
                                              .work = t->x[8].data};
    const tess_row_norm_args lengths = {t->x[10].data, c->rows, c->dim, c->dt, t->x[11].data};
    TESS_TRY(CALL(t, dora_forward, &forward));
    forward.y = twin_view(t, 9);
    forward.accumulate = true;
    forward.bias.numel = 0;
    TESS_TRY(CALL(t, dora_forward, &forward));
    TESS_TRY(CALL(t, dora_backward, &backward));
    return CALL(t, row_norm, &lengths);
}

static const int64_t numels[] = {0, 1, 3, 255, 256, 257, 1024, 5003, 40001, 1000001};

static void reduce_make(twin *t, int case_idx)
{
    const int64_t numel = numels[case_idx];
    t->shift = case_idx % 2;
    twin_random(t, "a", TESS_F32, numel, 1e-18);
    twin_random(t, "b", TESS_F32, numel, 1e3);
    twin_output(t, "dst", TESS_F32, numel);
    twin_random(t, "x", TESS_F64, TESS_MIN(numel, 3000), 1.0);
    twin_random(t, "out", TESS_F64, 1, 1.0);
    twin_add(t, "acc", TESS_I64, TESS_EXACT_LIMB_NUMEL);
    twin_add(t, "nonfinite", TESS_I64, 1);
    if (numel > 300) { /* two in one block, one in another */
        ((float *)t->x[1].initial)[299] = NAN;
        ((float *)t->x[1].initial)[300] = INFINITY;
        ((float *)t->x[1].initial)[numel - 1] = -INFINITY;
        ((float *)t->x[1].initial)[0] = 0x1p-149f;
    }
}

static tess_status reduce_call(twin *t, tess_stream *s)
{
    float *a = t->x[0].data, *b = t->x[1].data, *dst = t->x[2].data;
    const int64_t numel = t->x[0].numel;
    const tess_fold_args fold = {a, b, dst, numel}, in_place = {a, dst, a, numel};
    const tess_sum_args sum = {t->x[3].data, t->x[3].numel, t->x[4].data};
    const tess_exact_add_args add = {t->x[4].data, t->x[5].data, t->x[6].data};
    TESS_TRY(CALL(t, fold, &fold));
    TESS_TRY(CALL(t, fold, &in_place));
    TESS_TRY(CALL(t, sum, &sum));
    TESS_TRY(CALL(t, exact_add, &add));
    for (int i = 0; i < 3; i++) {
        const tess_square_norm_args norm = {t->x[i].data, numel, t->x[5].data, t->x[6].data};
        TESS_TRY(CALL(t, square_norm, &norm));
    }
    return TESS_OK;
}

/* Rows and one piece apart from them. In the end all levels are live: others may hold anything. */
static const shape pieces[] = {{.dim = 1},    {.dim = 3},     {.dim = 129},
                               {.dim = 1000}, {.dim = 40001}, {.dim = 100003}};

static void pieces_make(twin *t, int case_idx)
{
    const int64_t numel = pieces[case_idx].dim;
    twin_random(t, "pieces", TESS_F32, 21 * numel, 1.0);
    twin_random(t, "own", TESS_F32, numel, 1.0);
    twin_random(t, "levels", TESS_F32, 6 * numel, 1.0);
}

static tess_status pieces_call(twin *t, tess_stream *s)
{
    static const int64_t calls[][3] = {{1, -1, 0},  {5, 4, 1},   {21, -1, 6},
                                       {22, 7, 27}, {0, -1, 49}, {14, -1, 49}};
    for (int i = 0; i < TESS_NELEM(calls); i++) {
        const tess_fold_pieces_args a = {.pieces = t->x[0].data,
                                         .own = calls[i][1] >= 0 ? t->x[1].data : NULL,
                                         .own_idx = calls[i][1],
                                         .piece_numel = calls[i][0],
                                         .stride_numel = t->x[1].numel,
                                         .levels = t->x[2].data,
                                         .level_stride_numel = t->x[1].numel,
                                         .level_numel = 6,
                                         .first_idx = calls[i][2],
                                         .numel = t->x[1].numel};
        TESS_TRY(CALL(t, fold_pieces, &a));
    }
    return TESS_OK;
}

static void adamw_make(twin *t, int case_idx)
{
    const shape *c = &flat[case_idx];
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "master", TESS_F32, c->dim, 1.0);
    twin_random(t, "exp_avg", TESS_F32, c->dim, 0.1);
    twin_operand *v = twin_random(t, "exp_avg_sq", TESS_F32, c->dim, 0.1);
    for (int64_t i = 0; i < c->dim; i++)
        ((float *)v->initial)[i] = fabsf(((float *)v->initial)[i]);
    twin_random(t, "grad", TESS_F32, c->dim, 1.0);
    twin_output(t, "param", c->dt, case_idx == 3 ? 0 : c->dim);
}

static tess_status adamw_call(twin *t, tess_stream *s)
{
    tess_adamw_args a = {.master = t->x[0].data,
                         .exp_avg = t->x[1].data,
                         .exp_avg_sq = t->x[2].data,
                         .grad = t->x[3].data,
                         .param = twin_view(t, 4),
                         .numel = t->x[0].numel,
                         .clip_factor = 0.7f,
                         .learning_rate = 1e-3,
                         .beta1 = 0.9,
                         .beta2 = 0.999,
                         .eps = 1e-8,
                         .weight_decay = 0.1,
                         .step = 1};
    TESS_TRY(CALL(t, adamw, &a));
    a.step = 2;
    return CALL(t, adamw, &a);
}

static const twin_op ops[] = {
    {"swiglu", swiglu_make, swiglu_call, TESS_NELEM(matrix), LARGE},
    {"swiglu in place", swiglu_make, swiglu_in_place_call, TESS_NELEM(matrix), LARGE},
    {"add", flat_make, add_call, TESS_NELEM(flat), LARGE},
    {"dropout", flat_make, dropout_call, TESS_NELEM(flat), LARGE},
    {"cast", cast_make, cast_call, TESS_NELEM(flat), LARGE},
    {"add_bias and sum_rows", columns_make, columns_call, TESS_NELEM(matrix), LARGE},
    {"dora", dora_make, dora_call, TESS_NELEM(matrix), LARGE},
    {"fold, sum, square_norm, exact_add", reduce_make, reduce_call, TESS_NELEM(numels), 1},
    {"fold_pieces", pieces_make, pieces_call, TESS_NELEM(pieces), 1},
    {"adamw", adamw_make, adamw_call, TESS_NELEM(flat), LARGE},
};

static const twin_suite suite = {ops,
                                 TESS_NELEM(ops),
                                 {"elementwise.cu", "dora.cu", "reduce.cu", "adamw.cu",
                                  "squares_priv.cuh", "common_priv.cuh", NULL}};

int main(void) { return twin_suite_main(&suite); }
