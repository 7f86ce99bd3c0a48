/* Ops of modulated transformers in the emulation, against the C twins. Runs on a device too. */
#include "tests/emulation/emulation.h"
#include "tests/emulation/twin.h"

typedef struct shape {
    tess_dtype dt, w;
    int64_t samples, rows, dim, heads;
    int64_t row_gap, sample_gap; /* elements behind each row, each sample */
    int64_t shift;               /* elements behind an aligned address */
} shape;

#define CALL(t, op, args) ((t)->is_cuda ? tess_cuda_##op(args, s) : tess_cpu_##op(args, s))

static int64_t width(const shape *c) { return c->dim * c->heads; }

static tess_sample_rows rows_of(const twin *t, int i)
{
    const shape *c = t->ctx;
    const int64_t stride = width(c) + c->row_gap;
    return (tess_sample_rows){twin_view(t, i), c->rows * stride + c->sample_gap, stride};
}

static int64_t rows_numel(const shape *c)
{
    const int64_t stride = width(c) + c->row_gap;
    if (c->samples == 0 || c->rows == 0)
        return 0;
    return (c->samples - 1) * (c->rows * stride + c->sample_gap) + (c->rows - 1) * stride +
           width(c);
}

/* Factors of a sample lie as in the output of a modulation, one of three. */
static int64_t factor_stride(const shape *c) { return 3 * c->dim + c->row_gap; }

static int64_t factor_numel(const shape *c)
{
    return c->samples == 0 ? 0 : (c->samples - 1) * factor_stride(c) + c->dim;
}

static tess_sample_shape extents(const shape *c)
{
    return (tess_sample_shape){c->samples, c->rows, c->dim};
}

/* One to several tiles of a row, chunks of rows with and without rows, the width of FLUX.1. */
static const shape norms[] = {
    {TESS_F32, 0, 0, 3, 8, 1, 0, 0, 0},
    {TESS_F32, 0, 2, 0, 8, 1, 0, 0, 0},
    {TESS_F32, 0, 1, 1, 1, 1, 0, 0, 0},
    {TESS_F32, 0, 3, 5, 37, 1, 3, 1, 1},
    {TESS_F32, 0, 2, 2, 2060, 1, 4, 0, 0},
    {TESS_F32, 0, 2, 33, 64, 1, 0, 0, 0},
    {TESS_BF16, 0, 1, 2, 3072, 1, 0, 0, 0},
    {TESS_BF16, 0, 2, 2, 3072, 1, 16, 3072, 0},
    {TESS_BF16, 0, 2, 19, 40, 1, 8, 0, 0},
    {TESS_BF16, 0, 3, 3, 333, 1, 2, 5, 1},
    {TESS_BF16, 0, 2, 2, 4101, 1, 0, 0, 0},
    {TESS_BF16, 0, 3, 300, 3072, 1, 0, 0, 0}, /* fills a device, as the last of the others do */
};

static void norm_make(twin *t, int case_idx)
{
    const shape *c = &norms[case_idx];
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "x", c->dt, rows_numel(c), 3.0);
    twin_random(t, "shift", c->dt, factor_numel(c), 1.0);
    twin_random(t, "scale", c->dt, factor_numel(c), 0.5);
    twin_output(t, "y", c->dt, rows_numel(c));
    twin_output(t, "mean", TESS_F32, c->samples * c->rows);
    twin_output(t, "inv", TESS_F32, c->samples * c->rows);
    twin_random(t, "d_y", c->dt, rows_numel(c), 1.0);
    twin_random(t, "residual", c->dt, rows_numel(c), 1.0);
    twin_output(t, "d_x", c->dt, rows_numel(c));
    twin_output(t, "d_shift", c->dt, factor_numel(c));
    twin_output(t, "d_scale", c->dt, factor_numel(c));
    twin_output(t, "work", TESS_F32, c->samples * 16 * 2 * c->dim);
}

static tess_status norm_call(twin *t, tess_stream *s)
{
    const shape *c = t->ctx;
    const tess_modulate_args forward = {.shape = extents(c),
                                        .x = rows_of(t, 0),
                                        .shift = twin_view(t, 1),
                                        .scale = twin_view(t, 2),
                                        .factor_stride = factor_stride(c),
                                        .eps = 1e-6f,
                                        .y = rows_of(t, 3),
                                        .mean = t->x[4].data,
                                        .inv = t->x[5].data};
    tess_modulate_backward_args backward = {.shape = extents(c),
                                            .x = rows_of(t, 0),
                                            .scale = twin_view(t, 2),
                                            .factor_stride = factor_stride(c),
                                            .mean = t->x[4].data,
                                            .inv = t->x[5].data,
                                            .d_y = rows_of(t, 6),
                                            .d_x = rows_of(t, 8)};
    TESS_TRY(CALL(t, modulate, &forward));
    TESS_TRY(CALL(t, modulate_backward, &backward));
    backward.d_y = rows_of(t, 8);
    backward.residual = backward.d_x = rows_of(t, 7);
    backward.d_shift = twin_view(t, 9);
    backward.d_scale = twin_view(t, 10);
    backward.work = t->x[11].data;
    return CALL(t, modulate_backward, &backward);
}

/* The gradients of the factors alone. */
static tess_status norm_factors_call(twin *t, tess_stream *s)
{
    const shape *c = t->ctx;
    const tess_modulate_backward_args backward = {.shape = extents(c),
                                                  .x = rows_of(t, 0),
                                                  .factor_stride = factor_stride(c),
                                                  .mean = t->x[4].data,
                                                  .inv = t->x[5].data,
                                                  .d_y = rows_of(t, 6),
                                                  .d_shift = twin_view(t, 9),
                                                  .d_scale = twin_view(t, 10),
                                                  .work = t->x[11].data};
    return CALL(t, modulate_backward, &backward);
}

static void norm_factors_make(twin *t, int case_idx)
{
    norm_make(t, case_idx);
    for (int i = 4; i < 6; i++)
        for (int64_t k = 0; k < t->x[i].numel; k++)
            ((float *)t->x[i].initial)[k] = 0.5f + (float)(k % 7);
}

static void gate_make(twin *t, int case_idx)
{
    const shape *c = &norms[case_idx];
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "x", c->dt, rows_numel(c), 1.0);
    twin_random(t, "f", c->dt, rows_numel(c), 1.0);
    twin_random(t, "gate", c->dt, factor_numel(c), 1.0);
    twin_output(t, "y", c->dt, rows_numel(c));
    twin_random(t, "d_y", c->dt, rows_numel(c), 1.0);
    twin_output(t, "d_f", c->dt, rows_numel(c));
    twin_output(t, "d_gate", c->dt, factor_numel(c));
    twin_output(t, "work", TESS_F32, c->samples * 16 * c->dim);
}

static tess_status gate_call(twin *t, tess_stream *s)
{
    const shape *c = t->ctx;
    tess_gate_args forward = {.shape = extents(c),
                              .x = rows_of(t, 0),
                              .f = rows_of(t, 1),
                              .gate = twin_view(t, 2),
                              .factor_stride = factor_stride(c),
                              .y = rows_of(t, 3)};
    tess_gate_backward_args backward = {.shape = extents(c),
                                        .d_y = rows_of(t, 4),
                                        .gate = twin_view(t, 2),
                                        .factor_stride = factor_stride(c),
                                        .d_f = rows_of(t, 5),
                                        .f = rows_of(t, 1),
                                        .d_gate = twin_view(t, 6),
                                        .work = t->x[7].data};
    TESS_TRY(CALL(t, gate, &forward));
    forward.y = rows_of(t, 0);
    TESS_TRY(CALL(t, gate, &forward)); /* in place */
    TESS_TRY(CALL(t, gate_backward, &backward));
    backward.d_y = rows_of(t, 5);
    backward.d_f = rows_of(t, 4);
    backward.d_gate = (tess_factor){0};
    return CALL(t, gate_backward, &backward);
}

/* Fewer elements than lanes, odd multiples of two, the heads of FLUX.1, more than stay in
 * registers; more heads than a block has places. */
static const shape heads[] = {
    {TESS_F32, TESS_F32, 0, 2, 8, 2, 0, 0, 0},
    {TESS_F32, TESS_F32, 1, 1, 2, 1, 0, 0, 0},
    {TESS_F32, TESS_BF16, 2, 5, 6, 7, 2, 4, 0},
    {TESS_F32, TESS_F32, 2, 3, 24, 3, 3, 0, 1},
    {TESS_F32, TESS_F32, 1, 40, 128, 1, 0, 0, 0},
    {TESS_BF16, TESS_BF16, 2, 3, 128, 24, 0, 0, 0},
    {TESS_BF16, TESS_F32, 2, 19, 64, 2, 128, 8, 0},
    {TESS_BF16, TESS_BF16, 3, 2, 34, 5, 1, 0, 0},
    {TESS_BF16, TESS_F32, 1, 3, 200, 2, 0, 0, 0},
    {TESS_BF16, TESS_BF16, 1, 2, 512, 1, 0, 0, 1},
    {TESS_F32, TESS_F32, 1, 17, 510, 1, 0, 0, 0},
    {TESS_BF16, TESS_F32, 1, 33, 16, 40, 0, 0, 0},
    {TESS_BF16, TESS_BF16, 2, 300, 128, 24, 0, 0, 0},
};

static void rotate_make(twin *t, int case_idx)
{
    const shape *c = &heads[case_idx];
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "x", c->dt, rows_numel(c), 2.0);
    twin_random(t, "w", c->w, c->dim, 1.0);
    twin_random(t, "cos", TESS_F32, c->rows * c->dim / 2, 1.0);
    twin_random(t, "sin", TESS_F32, c->rows * c->dim / 2, 1.0);
    twin_output(t, "y", c->dt, rows_numel(c));
    twin_random(t, "d_y", c->dt, rows_numel(c), 1.0);
    twin_output(t, "d_x", c->dt, rows_numel(c));
    twin_random(t, "d_w", TESS_F32, c->dim, 1.0);
    twin_output(t, "work", TESS_F32, 16 * c->dim);
}

static tess_status rotate_call(twin *t, tess_stream *s)
{
    const shape *c = t->ctx;
    const tess_rotate_args forward = {.shape = extents(c),
                                      .head_numel = c->heads,
                                      .x = rows_of(t, 0),
                                      .w = twin_view(t, 1),
                                      .eps = 1e-6f,
                                      .cos_table = t->x[2].data,
                                      .sin_table = t->x[3].data,
                                      .y = rows_of(t, 4)};
    tess_rotate_backward_args backward = {.shape = extents(c),
                                          .head_numel = c->heads,
                                          .x = rows_of(t, 0),
                                          .w = twin_view(t, 1),
                                          .eps = 1e-6f,
                                          .cos_table = t->x[2].data,
                                          .sin_table = t->x[3].data,
                                          .d_y = rows_of(t, 5),
                                          .d_x = rows_of(t, 6),
                                          .d_w = t->x[7].data,
                                          .work = t->x[8].data};
    TESS_TRY(CALL(t, rotate, &forward));
    TESS_TRY(CALL(t, rotate_backward, &backward));
    backward.d_y = rows_of(t, 6);
    backward.d_x = rows_of(t, 5);
    backward.d_w = NULL;
    backward.work = NULL;
    return CALL(t, rotate_backward, &backward);
}

static const shape activations[] = {
    {TESS_F32, 0, 1, 0, 5, 1, 0, 0, 0},           {TESS_F32, 0, 1, 7, 13, 1, 0, 0, 0},
    {TESS_F32, 0, 1, 3, 1028, 1, 12, 0, 0},       {TESS_F32, 0, 1, 3, 64, 1, 3, 0, 1},
    {TESS_BF16, 0, 1, 5, 33, 1, 0, 0, 0},         {TESS_BF16, 0, 1, 3, 2056, 1, 8, 0, 0},
    {TESS_BF16, 0, 1, 2, 12288, 1, 3072, 0, 0},   {TESS_BF16, 0, 1, 9, 40, 1, 1, 0, 1},
    {TESS_BF16, 0, 1, 300, 12288, 1, 3072, 0, 0},
};

static void activation_make(twin *t, int case_idx)
{
    const shape *c = &activations[case_idx];
    const int64_t stride = c->dim + c->row_gap;
    const int64_t numel = c->rows == 0 ? 0 : (c->rows - 1) * stride + c->dim;
    t->ctx = c;
    t->shift = c->shift;
    twin_extremes(twin_random(t, "x", c->dt, c->rows * c->dim, 20.0));
    twin_output(t, "y", c->dt, numel);
    twin_random(t, "d_y", c->dt, numel, 1.0);
    twin_output(t, "d_x", c->dt, c->rows * c->dim);
    twin_output(t, "silu", c->dt, c->rows * c->dim);
}

static tess_status activation_call(twin *t, tess_stream *s)
{
    const shape *c = t->ctx;
    const int64_t stride = c->row_gap > 0 ? c->dim + c->row_gap : 0;
    tess_activation_args forward = {.kind = TESS_ACTIVATION_GELU_TANH,
                                    .row_numel = c->rows,
                                    .dim = c->dim,
                                    .x = twin_view(t, 0),
                                    .y = twin_view(t, 1),
                                    .y_stride = stride};
    tess_activation_backward_args backward = {.kind = TESS_ACTIVATION_GELU_TANH,
                                              .row_numel = c->rows,
                                              .dim = c->dim,
                                              .x = twin_view(t, 0),
                                              .d_y = twin_view(t, 2),
                                              .d_y_stride = stride,
                                              .d_x = twin_view(t, 3)};
    TESS_TRY(CALL(t, activation, &forward));
    TESS_TRY(CALL(t, activation_backward, &backward));
    forward.kind = backward.kind = TESS_ACTIVATION_SILU;
    forward.y = twin_view(t, 4);
    forward.y_stride = 0;
    TESS_TRY(CALL(t, activation, &forward));
    backward.d_x = backward.d_y; /* in place */
    backward.d_x_stride = stride;
    TESS_TRY(CALL(t, activation_backward, &backward));
    forward.y = forward.x; /* in place */
    return CALL(t, activation, &forward);
}

static const shape errors[] = {
    {TESS_F32, 0, 1, 0, 8, 1, 0, 0, 0},    {TESS_F32, 0, 1, 1, 1, 1, 0, 0, 0},
    {TESS_F32, 0, 1, 70, 64, 1, 0, 0, 0},  {TESS_BF16, 0, 1, 33, 33, 1, 0, 0, 1},
    {TESS_BF16, 0, 1, 31, 64, 1, 0, 0, 0}, {TESS_BF16, 0, 1, 9001, 64, 1, 0, 0, 0},
};

static void error_make(twin *t, int case_idx)
{
    const shape *c = &errors[case_idx];
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "y", TESS_F32, c->rows * c->dim, 1.0);
    twin_random(t, "target", TESS_F32, c->rows * c->dim, 1.0);
    twin_random(t, "weight", TESS_F32, c->rows, 1.0);
    twin_output(t, "row_loss", TESS_F64, c->rows);
    twin_output(t, "d_y", c->dt, c->rows * c->dim);
    twin_output(t, "loss_only", TESS_F64, c->rows);
}

static tess_status error_call(twin *t, tess_stream *s)
{
    const shape *c = t->ctx;
    tess_square_error_args a = {.row_numel = c->rows,
                                .dim = c->dim,
                                .y = twin_view(t, 0),
                                .target = t->x[1].data,
                                .weight = t->x[2].data,
                                .row_loss = t->x[5].data};
    TESS_TRY(CALL(t, square_error, &a));
    a.grad_scale = 0.125f;
    a.row_loss = t->x[3].data;
    a.d_y = twin_view(t, 4);
    TESS_TRY(CALL(t, square_error, &a));
    if (c->rows % 2 == 0) { /* in place */
        a.d_y = a.y;
        TESS_TRY(CALL(t, square_error, &a));
    }
    return TESS_OK;
}

static const twin_op ops[] = {
    {"modulate", norm_make, norm_call, TESS_NELEM(norms), 1},
    {"gradients of modulation alone", norm_factors_make, norm_factors_call, TESS_NELEM(norms), 1},
    {"gate", gate_make, gate_call, TESS_NELEM(norms), 1},
    {"rotate", rotate_make, rotate_call, TESS_NELEM(heads), 1},
    {"activation", activation_make, activation_call, TESS_NELEM(activations), 1},
    {"square_error", error_make, error_call, TESS_NELEM(errors), 1},
};

static const twin_suite suite = {
    ops, TESS_NELEM(ops), {"modulate.cu", "rotate.cu", "activation.cu", "rows_priv.cuh", NULL}};

int main(void) { return twin_suite_main(&suite); }
