/* Kernels over rows in the emulation, against the C twins: norms, rope, loss. Runs on a device too.
 */
#include "tests/emulation/emulation.h"
#include "tests/emulation/twin.h"

typedef struct shape {
    tess_dtype dt, w;
    int64_t rows, dim;
    int64_t shift;
    int64_t stride;
} shape;

/* Short rows (16 threads each), long ones: one tile, exactly two, and odd ends of every kind. */
static const shape norms[] = {
    {TESS_F32, TESS_F32, 0, 8, 0, 0},        {TESS_F32, TESS_F32, 1, 1, 0, 0},
    {TESS_F32, TESS_BF16, 37, 13, 1, 0},     {TESS_F32, TESS_F32, 19, 128, 0, 0},
    {TESS_F32, TESS_F32, 3, 257, 0, 260},    {TESS_F32, TESS_BF16, 5, 2060, 0, 2064},
    {TESS_F32, TESS_F32, 2, 6148, 0, 0},     {TESS_BF16, TESS_BF16, 1, 1, 0, 0},
    {TESS_BF16, TESS_F32, 33, 96, 0, 104},   {TESS_BF16, TESS_BF16, 7, 333, 1, 0},
    {TESS_BF16, TESS_BF16, 5, 4096, 0, 0},   {TESS_BF16, TESS_F32, 3, 2056, 0, 2072},
    {TESS_BF16, TESS_BF16, 2, 4101, 0, 0},   {TESS_F32, TESS_BF16, 3001, 333, 1, 0},
    {TESS_BF16, TESS_BF16, 700, 4096, 0, 0},
};
enum { LARGE_NORMS = 2 }; /* they fill a device */

#define CALL(t, op, args) ((t)->is_cuda ? tess_cuda_##op(args, s) : tess_cpu_##op(args, s))

static void norm_make(twin *t, int case_idx)
{
    const shape *c = &norms[case_idx];
    const int64_t numel = c->rows * c->dim, stride = c->stride != 0 ? c->stride : c->dim;
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "x", c->dt, numel, 3.0);
    twin_random(t, "w", c->w, c->dim, 1.0);
    twin_random(t, "d_y", c->dt, numel, 1.0);
    twin_random(t, "residual", c->dt, numel, 1.0);
    twin_output(t, "y", c->dt, c->rows == 0 ? 0 : (c->rows - 1) * stride + c->dim);
    twin_output(t, "inv_rms", TESS_F32, c->rows);
    twin_output(t, "d_x", c->dt, numel);
    twin_random(t, "d_w", TESS_F32, c->dim, 1.0);
    twin_output(t, "work", TESS_F32, 16 * c->dim);
}

static tess_rmsnorm_args forward_args(const twin *t)
{
    const shape *c = t->ctx;
    const tess_rmsnorm_args a = {.x = twin_view(t, 0),
                                 .w = twin_view(t, 1),
                                 .row_numel = c->rows,
                                 .dim = c->dim,
                                 .eps = 1e-5f,
                                 .y = twin_view(t, 4),
                                 .inv_rms = t->x[5].data,
                                 .y_stride = c->stride};
    return a;
}

static tess_rmsnorm_backward_args backward_args(const twin *t)
{
    const shape *c = t->ctx;
    const tess_rmsnorm_backward_args a = {.x = twin_view(t, 0),
                                          .w = twin_view(t, 1),
                                          .inv_rms = t->x[5].data,
                                          .d_y = twin_view(t, 2),
                                          .row_numel = c->rows,
                                          .dim = c->dim,
                                          .residual = twin_view(t, 3),
                                          .d_x = twin_view(t, 6),
                                          .d_w = t->x[7].data,
                                          .work = t->x[8].data};
    return a;
}

static tess_status norm_call(twin *t, tess_stream *s)
{
    const tess_rmsnorm_args forward = forward_args(t);
    const tess_rmsnorm_backward_args backward = backward_args(t);
    TESS_TRY(CALL(t, rmsnorm_forward, &forward));
    return CALL(t, rmsnorm_backward, &backward);
}

/* The sum with the residual first, into d_x; frozen w, no residual behind, d_x in place of d_y. */
static tess_status norm_sum_call(twin *t, tess_stream *s)
{
    tess_rmsnorm_args forward = forward_args(t);
    tess_rmsnorm_backward_args backward = backward_args(t);
    forward.residual = twin_view(t, 3);
    forward.sum = twin_view(t, 6);
    TESS_TRY(CALL(t, rmsnorm_forward, &forward));
    forward.sum = twin_view(t, 3);
    TESS_TRY(CALL(t, rmsnorm_forward, &forward));
    if (forward.y_stride == 0) {
        forward.residual = forward.sum = (tess_view){0};
        forward.y = forward.x = twin_view(t, 3);
        forward.inv_rms = NULL;
        TESS_TRY(CALL(t, rmsnorm_forward, &forward));
    }
    backward.residual = (tess_view){0};
    backward.d_x = backward.d_y;
    backward.d_w = NULL;
    backward.work = NULL;
    return CALL(t, rmsnorm_backward, &backward);
}

/* rows are tokens, dim the head dimension, stride the number of heads */
static const shape ropes[] = {{TESS_F32, 0, 0, 8, 0, 1},   {TESS_F32, 0, 1, 2, 0, 1},
                              {TESS_F32, 0, 7, 6, 0, 3},   {TESS_F32, 0, 5, 64, 0, 5},
                              {TESS_BF16, 0, 9, 10, 1, 2}, {TESS_BF16, 0, 5, 128, 0, 33},
                              {TESS_BF16, 0, 3, 64, 4, 9}, {TESS_BF16, 0, 1000, 128, 0, 33}};
enum { POSITIONS = 50 };

static void rope_make(twin *t, int case_idx)
{
    const shape *c = &ropes[case_idx];
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "x", c->dt, c->rows * c->stride * c->dim, 2.0);
    t->shift = 0;
    twin_index(t, "positions", c->rows, POSITIONS);
    twin_random(t, "cos", TESS_F32, POSITIONS * c->dim / 2, 1.0);
    twin_random(t, "sin", TESS_F32, POSITIONS * c->dim / 2, 1.0);
}

static tess_status rope_call(twin *t, tess_stream *s)
{
    const shape *c = t->ctx;
    tess_rope_args a = {.x = twin_view(t, 0),
                        .token_numel = c->rows,
                        .head_numel = c->stride,
                        .dim = c->dim,
                        .positions = t->x[1].data,
                        .cos_table = t->x[2].data,
                        .sin_table = t->x[3].data,
                        .table_rows = POSITIONS};
    TESS_TRY(CALL(t, rope, &a));
    a.inverse = true;
    a.sin_table = t->x[2].data;
    return CALL(t, rope, &a);
}

static const shape losses[] = {
    {TESS_F32, 0, 0, 8, 0, 0},     {TESS_F32, 0, 1, 1, 0, 0},     {TESS_F32, 0, 7, 61, 0, 0},
    {TESS_F32, 0, 3, 2048, 0, 0},  {TESS_F32, 0, 5, 6156, 0, 0},  {TESS_BF16, 0, 9, 33, 1, 0},
    {TESS_BF16, 0, 5, 2052, 0, 0}, {TESS_BF16, 0, 4, 4199, 0, 0}, {TESS_BF16, 0, 100, 32003, 0, 0}};

static void loss_make(twin *t, int case_idx)
{
    const shape *c = &losses[case_idx];
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "logits", TESS_F32, c->rows * c->dim, 8.0);
    twin_operand *labels = twin_index(t, "labels", c->rows, c->dim);
    twin_output(t, "row_loss", TESS_F64, c->rows);
    twin_output(t, "d_logits", c->dt, c->rows * c->dim);
    twin_output(t, "loss_only", TESS_F64, c->rows);
    float *z = t->x[0].initial;
    if (c->rows > 4) {
        ((int32_t *)labels->initial)[1] = -1;
        z[2 * c->dim + 1] = -INFINITY;
        z[3 * c->dim + c->dim - 1] = NAN;
        z[4 * c->dim] = -200.0f;
        z[4 * c->dim + c->dim / 2] = 90.0f;
    }
}

static tess_status loss_call(twin *t, tess_stream *s)
{
    const shape *c = t->ctx;
    tess_cross_entropy_args a = {.logits = twin_view(t, 0),
                                 .row_numel = c->rows,
                                 .vocab_numel = c->dim,
                                 .labels = t->x[1].data,
                                 .row_loss = t->x[4].data};
    TESS_TRY(CALL(t, cross_entropy, &a));
    a.grad_scale = 0.125f;
    a.row_loss = t->x[2].data;
    a.d_logits = twin_view(t, 3);
    TESS_TRY(CALL(t, cross_entropy, &a));
    a.d_logits = a.logits; /* in place */
    return CALL(t, cross_entropy, &a);
}

static const twin_op ops[] = {
    {"rmsnorm", norm_make, norm_call, TESS_NELEM(norms), LARGE_NORMS},
    {"rmsnorm with a sum", norm_make, norm_sum_call, TESS_NELEM(norms), LARGE_NORMS},
    {"rope", rope_make, rope_call, TESS_NELEM(ropes), 1},
    {"cross_entropy", loss_make, loss_call, TESS_NELEM(losses), 1},
};

static const twin_suite suite = {
    ops, TESS_NELEM(ops), {"rmsnorm.cu", "rope.cu", "cross_entropy.cu", "rows_priv.cuh", NULL}};

int main(void) { return twin_suite_main(&suite); }
