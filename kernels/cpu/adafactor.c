/* One source for all instruction paths; see kernels/adafactor.h. */
#include "kernels/adafactor_priv.h"

#include "kernels/cpu/ops_priv.h"

enum { BLOCK_NUMEL = 256 };

static float gradient(const tess_adafactor_args *a, int64_t i)
{
    return a->part.grad[i] * a->part.clip_factor;
}

static double square(const tess_adafactor_args *a, int64_t i)
{
    return tess_adafactor_square(gradient(a, i));
}

static int64_t row_of(const tess_adafactor_args *a, int64_t i)
{
    return a->cols > 0 ? (a->first_idx + i) / a->cols : a->first_idx + i;
}

static int64_t col_of(const tess_adafactor_args *a, int64_t i)
{
    return a->rows + (a->first_idx + i) % a->cols;
}

tess_status tess_cpu_adafactor_most(const tess_adafactor_args *a, tess_stream *s)
{
    (void)s;
    TESS_TRY(tess_adafactor_check(a));
    for (int64_t i = 0; i < a->part.numel; i++) {
        const int64_t bits = tess_adafactor_bits(square(a, i)), row = row_of(a, i);
        a->most[row] = TESS_MAX(a->most[row], bits);
        if (a->cols > 0)
            a->most[col_of(a, i)] = TESS_MAX(a->most[col_of(a, i)], bits);
    }
    return TESS_OK;
}

static void add_square(const tess_adafactor_args *a, int64_t line, double square)
{
    const int term_bits = tess_adafactor_term_bits(tess_adafactor_term_numel(a, line));
    a->sum[line] += tess_adafactor_multiple(square, tess_adafactor_scale(a->most[line], term_bits));
}

tess_status tess_cpu_adafactor_sum(const tess_adafactor_args *a, tess_stream *s)
{
    (void)s;
    TESS_TRY(tess_adafactor_check(a));
    for (int64_t i = 0; i < a->part.numel; i++) {
        add_square(a, row_of(a, i), square(a, i));
        if (a->cols > 0)
            add_square(a, col_of(a, i), square(a, i));
    }
    return TESS_OK;
}

tess_status tess_cpu_adafactor_factor(const tess_adafactor_args *a, tess_stream *s)
{
    (void)s;
    TESS_TRY(tess_adafactor_check(a));
    double row_sum = 0.0;
    for (int64_t line = 0; line < a->rows + a->cols; line++) {
        a->moment[line] = tess_adafactor_moment(a, line);
        if (line < a->rows)
            row_sum = row_sum + (double)a->moment[line];
    }
    const double row_mean = a->cols > 0 ? row_sum / (double)a->rows : 1.0;
    for (int64_t line = 0; line < a->rows + a->cols; line++)
        a->root[line] = tess_adafactor_root(a->moment[line], line < a->rows ? row_mean : 1.0);
    return TESS_OK;
}

static float update(const tess_adafactor_args *a, int64_t i)
{
    const float root = a->root[row_of(a, i)];
    return (a->cols > 0 ? root * a->root[col_of(a, i)] : root) * gradient(a, i);
}

tess_status tess_cpu_adafactor_size(const tess_adafactor_args *a, tess_stream *s)
{
    (void)s;
    TESS_TRY(tess_adafactor_check(a));
    for (int64_t first = 0; first < a->part.numel; first += BLOCK_NUMEL) {
        const int64_t end = TESS_MIN(a->part.numel, first + BLOCK_NUMEL);
        double updates = 0.0, params = 0.0;
        for (int64_t i = first; i < end; i++) {
            const double u = (double)update(a, i), p = (double)a->part.master[i];
            updates = updates + u * u;
            params = params + p * p;
        }
        /* Squares of finite f32 cannot overflow fp64; an update that is not finite shows in no
         * sum and in the weights. */
        (void)tess_exact_add(a->update_square, updates);
        if (a->param_square != NULL)
            (void)tess_exact_add(a->param_square, params);
    }
    return TESS_OK;
}

static void apply_part(void *arg, int part_idx, int part_numel)
{
    const tess_adafactor_args *a = arg;
    const tess_adafactor_scalars k = tess_adafactor_scalars_make(a);
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->part.numel, BLOCK_NUMEL, part_idx, part_numel, &lo, &hi);
    for (int64_t i = lo; i < hi; i++) {
        float u = k.rate * update(a, i);
        if (a->exp_avg != NULL)
            u = tess_adafactor_average(u, &a->exp_avg[i], &k);
        a->part.master[i] = tess_adafactor_apply_one(a->part.master[i], u, &k);
    }
    if (a->part.param.numel > 0)
        tess_cpu_copy_param(&a->part, lo, hi);
}

tess_status tess_cpu_adafactor_apply(const tess_adafactor_args *a, tess_stream *s)
{
    TESS_TRY(tess_adafactor_check(a));
    tess_adafactor_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, 4 * a->part.numel), apply_part, &args);
    return TESS_OK;
}
