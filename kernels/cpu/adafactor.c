/* One source for all instruction paths; see kernels/adafactor.h. */
#include "kernels/adafactor.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/ops_priv.h"

enum { BLOCK_NUMEL = 256 };

static float gradient(const tess_adafactor_args *a, int64_t i)
{
    return a->part.grad[i] * a->part.clip_factor;
}

static double square(const tess_adafactor_args *a, int64_t i)
{
    const double g = (double)gradient(a, i);
    return g * g;
}

static int64_t row_of(const tess_adafactor_args *a, int64_t i)
{
    return a->cols > 0 ? (a->first_idx + i) / a->cols : a->first_idx + i;
}

static int64_t col_of(const tess_adafactor_args *a, int64_t i)
{
    return a->rows + (a->first_idx + i) % a->cols;
}

/* Bits of numbers that are not negative order as the numbers. */
static int64_t bits_of(double x)
{
    int64_t bits = 0;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static double number_of(int64_t bits)
{
    double x = 0.0;
    memcpy(&x, &bits, sizeof x);
    return x;
}

tess_status tess_cpu_adafactor_most(const tess_adafactor_args *a, tess_stream *s)
{
    (void)s;
    TESS_TRY(tess_adafactor_check(a));
    for (int64_t i = 0; i < a->part.numel; i++) {
        const int64_t bits = bits_of(square(a, i)), row = row_of(a, i);
        a->most[row] = TESS_MAX(a->most[row], bits);
        if (a->cols > 0)
            a->most[col_of(a, i)] = TESS_MAX(a->most[col_of(a, i)], bits);
    }
    return TESS_OK;
}

static int bit_numel(int64_t x)
{
    int bits = 0;
    for (; x > 0; x /= 2)
        bits++;
    return bits;
}

/* What a square of this line is multiplied by: 2^(62 - e), where all of them are below 2^e. */
static int shift_of(const tess_adafactor_args *a, int64_t line)
{
    const int64_t term_numel = a->cols == 0 ? 1 : line < a->rows ? a->cols : a->rows;
    int exponent = 0;
    (void)frexp(number_of(a->most[line]), &exponent); /* below 2^exponent */
    return 62 - bit_numel(term_numel) - exponent;
}

static void add_square(const tess_adafactor_args *a, int64_t line, double square)
{
    if (a->most[line] != 0)
        a->sum[line] += llrint(ldexp(square, shift_of(a, line)));
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

static double mean_of(const tess_adafactor_args *a, int64_t line)
{
    const int64_t term_numel = a->cols == 0 ? 1 : line < a->rows ? a->cols : a->rows;
    if (a->most[line] == 0)
        return 0.0;
    return ldexp((double)a->sum[line], -shift_of(a, line)) / (double)term_numel;
}

tess_status tess_cpu_adafactor_factor(const tess_adafactor_args *a, tess_stream *s)
{
    (void)s;
    TESS_TRY(tess_adafactor_check(a));
    double row_sum = 0.0;
    for (int64_t line = 0; line < a->rows + a->cols; line++) {
        const double mean = mean_of(a, line) + a->eps;
        a->moment[line] = (float)(a->beta2 * (double)a->moment[line] + (1.0 - a->beta2) * mean);
        if (line < a->rows)
            row_sum = row_sum + (double)a->moment[line];
    }
    const double row_mean = a->cols > 0 ? row_sum / (double)a->rows : 1.0;
    for (int64_t line = 0; line < a->rows + a->cols; line++) {
        const double scale = line < a->rows ? row_mean : 1.0;
        a->root[line] = (float)(1.0 / sqrt((double)a->moment[line] / scale));
    }
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
    const float rate = (float)a->rate, keep = (float)(1.0 - a->decay);
    const float beta1 = (float)a->beta1, one_minus_beta1 = (float)(1.0 - a->beta1);
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->part.numel, BLOCK_NUMEL, part_idx, part_numel, &lo, &hi);
    for (int64_t i = lo; i < hi; i++) {
        float u = rate * update(a, i);
        if (a->exp_avg != NULL)
            u = a->exp_avg[i] = beta1 * a->exp_avg[i] + one_minus_beta1 * u;
        a->part.master[i] = a->part.master[i] * keep - u;
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
