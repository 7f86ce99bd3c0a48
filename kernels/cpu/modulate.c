#include "core/arith.h"
#include "kernels/cpu/ops_priv.h"

static int64_t rows_of(const tess_sample_shape *shape)
{
    return shape->sample_numel * shape->row_numel;
}

static int parts_of(const tess_stream *s, const tess_sample_shape *shape, int64_t cost)
{
    return tess_cpu_part_numel(s, cost * rows_of(shape) * shape->dim);
}

/* Vectors of B samples, each the sum of TESS_ROW_CHUNK_NUMEL partial ones `chunk_stride` apart. */
typedef struct factor_sums {
    const float *work;
    int64_t chunk_stride;
    tess_factor out;
    int64_t factor_stride;
} factor_sums;

static void store_sums(const tess_sample_shape *shape, const factor_sums *sums)
{
    for (int64_t b = 0; b < shape->sample_numel; b++) {
        const float *work = sums->work + b * TESS_ROW_CHUNK_NUMEL * sums->chunk_stride;
        for (int64_t i = 0; i < shape->dim; i++) {
            float sum = work[i];
            for (int chunk = 1; chunk < TESS_ROW_CHUNK_NUMEL; chunk++)
                sum = sum + work[chunk * sums->chunk_stride + i];
            const int64_t at = b * sums->factor_stride + i;
            if (sums->out.dt == TESS_BF16)
                ((uint16_t *)sums->out.data)[at] = tess_bf16_from_f32(sum);
            else
                ((float *)sums->out.data)[at] = sum;
        }
    }
}

/* ---- norms ---- */

static void modulate_part(void *arg, int part_idx, int part_numel)
{
    const tess_modulate_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(rows_of(&a->shape), 1, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->modulate(a, lo, hi);
}

tess_status tess_cpu_modulate(const tess_modulate_args *a, tess_stream *s)
{
    TESS_TRY(tess_modulate_check(a));
    tess_modulate_args args = *a;
    tess_pool_run(s->pool, parts_of(s, &a->shape, 3), modulate_part, &args);
    return TESS_OK;
}

static void modulate_backward_part(void *arg, int part_idx, int part_numel)
{
    const tess_modulate_backward_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(rows_of(&a->shape), 1, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->modulate_backward(a, lo, hi);
}

static void modulate_factors_part(void *arg, int part_idx, int part_numel)
{
    const tess_modulate_backward_args *a = arg;
    const tess_cpu_rows *rows = tess_cpu_rows_get();
    for (int64_t i = part_idx; i < a->shape.sample_numel * TESS_ROW_CHUNK_NUMEL; i += part_numel)
        rows->modulate_factors(a, i / TESS_ROW_CHUNK_NUMEL, (int)(i % TESS_ROW_CHUNK_NUMEL));
}

tess_status tess_cpu_modulate_backward(const tess_modulate_backward_args *a, tess_stream *s)
{
    TESS_TRY(tess_modulate_backward_check(a));
    tess_modulate_backward_args args = *a;
    if (a->d_shift.numel > 0) {
        tess_pool_run(s->pool, parts_of(s, &a->shape, 2), modulate_factors_part, &args);
        factor_sums sums = {a->work, 2 * a->shape.dim, a->d_shift, a->factor_stride};
        store_sums(&a->shape, &sums);
        sums.work += a->shape.dim;
        sums.out = a->d_scale;
        store_sums(&a->shape, &sums);
    }
    if (a->d_x.view.numel > 0)
        tess_pool_run(s->pool, parts_of(s, &a->shape, 4), modulate_backward_part, &args);
    return TESS_OK;
}

/* ---- gates ---- */

static void gate_part(void *arg, int part_idx, int part_numel)
{
    const tess_gate_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(rows_of(&a->shape), 1, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->gate(a, lo, hi);
}

tess_status tess_cpu_gate(const tess_gate_args *a, tess_stream *s)
{
    TESS_TRY(tess_gate_check(a));
    tess_gate_args args = *a;
    tess_pool_run(s->pool, parts_of(s, &a->shape, 1), gate_part, &args);
    return TESS_OK;
}

static void gate_backward_part(void *arg, int part_idx, int part_numel)
{
    const tess_gate_backward_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(rows_of(&a->shape), 1, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->gate_backward(a, lo, hi);
}

static void gate_factor_part(void *arg, int part_idx, int part_numel)
{
    const tess_gate_backward_args *a = arg;
    const tess_cpu_rows *rows = tess_cpu_rows_get();
    for (int64_t i = part_idx; i < a->shape.sample_numel * TESS_ROW_CHUNK_NUMEL; i += part_numel)
        rows->gate_factor(a, i / TESS_ROW_CHUNK_NUMEL, (int)(i % TESS_ROW_CHUNK_NUMEL));
}

tess_status tess_cpu_gate_backward(const tess_gate_backward_args *a, tess_stream *s)
{
    TESS_TRY(tess_gate_backward_check(a));
    tess_gate_backward_args args = *a;
    if (a->d_gate.numel > 0) {
        const factor_sums sums = {a->work, a->shape.dim, a->d_gate, a->factor_stride};
        tess_pool_run(s->pool, parts_of(s, &a->shape, 1), gate_factor_part, &args);
        store_sums(&a->shape, &sums);
    }
    tess_pool_run(s->pool, parts_of(s, &a->shape, 1), gate_backward_part, &args);
    return TESS_OK;
}

/* ---- rotated heads ---- */

static int rotate_parts(const tess_stream *s, const tess_sample_shape *shape, int64_t head_numel)
{
    return parts_of(s, shape, 3 * head_numel);
}

static void rotate_part(void *arg, int part_idx, int part_numel)
{
    const tess_rotate_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(rows_of(&a->shape), 1, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->rotate(a, lo, hi);
}

tess_status tess_cpu_rotate(const tess_rotate_args *a, tess_stream *s)
{
    TESS_TRY(tess_rotate_check(a));
    tess_rotate_args args = *a;
    tess_pool_run(s->pool, rotate_parts(s, &a->shape, a->head_numel), rotate_part, &args);
    return TESS_OK;
}

static void rotate_backward_part(void *arg, int part_idx, int part_numel)
{
    const tess_rotate_backward_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(rows_of(&a->shape), 1, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->rotate_backward(a, lo, hi);
}

static void rotate_backward_w_part(void *arg, int part_idx, int part_numel)
{
    const tess_cpu_rows *rows = tess_cpu_rows_get();
    for (int chunk = part_idx; chunk < TESS_ROW_CHUNK_NUMEL; chunk += part_numel)
        rows->rotate_backward_w(arg, chunk);
}

tess_status tess_cpu_rotate_backward(const tess_rotate_backward_args *a, tess_stream *s)
{
    TESS_TRY(tess_rotate_backward_check(a));
    tess_rotate_backward_args args = *a;
    const int part_numel = rotate_parts(s, &a->shape, a->head_numel);
    if (a->d_w != NULL) {
        tess_pool_run(s->pool, part_numel, rotate_backward_w_part, &args);
        tess_cpu_chunks_add(a->work, a->shape.dim, a->d_w);
    }
    tess_pool_run(s->pool, part_numel, rotate_backward_part, &args);
    return TESS_OK;
}
