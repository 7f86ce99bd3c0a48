#include "kernels/codebook.h"

#include <math.h>

#include "kernels/check_priv.h"
#include "kernels/nearest.h"

enum { SUM_BITS = 62, TERM_BITS = 51 };

int tess_fixed_exponent(float largest, int64_t vector_numel)
{
    int exponent = 0, bits = 0; /* 2^bits >= N */
    while (bits < 63 && INT64_C(1) << bits < vector_numel)
        bits++;
    /* |x| < 2^exponent; of zeros any exponent serves. */
    (void)frexpf(largest, &exponent);
    return TESS_MIN(SUM_BITS - bits, TERM_BITS) - exponent;
}

double tess_fixed_value(int64_t sum, int exponent) { return ldexp((double)sum, -exponent); }

tess_status tess_code_most_check(const tess_code_most_args *a)
{
    static const char op[] = "code_most";
    int64_t numel = 0;
    TESS_TRY(tess_check_extent(op, "vector_numel", a->vector_numel, 0));
    TESS_TRY(tess_check_extent(op, "dim", a->dim, 1));
    TESS_TRY(tess_mul_i64(a->vector_numel, a->dim, &numel));
    TESS_TRY(tess_check_pointer(op, "x", a->x, numel));
    TESS_TRY(tess_check_pointer(op, "row", a->row, a->vector_numel));
    return tess_check_pointer(op, "most", a->most, 1);
}

tess_status tess_code_value_check(const tess_code_value_args *a)
{
    static const char op[] = "code_value";
    TESS_TRY(tess_check_extent(op, "numel", a->numel, 0));
    TESS_TRY(tess_check_pointer(op, "sum", a->sum, a->numel));
    return tess_check_pointer(op, "value", a->value, a->numel);
}

tess_status tess_code_sum_check(const tess_code_sum_args *a)
{
    static const char op[] = "code_sum";
    int64_t numel = 0;
    TESS_TRY(tess_check_extent(op, "vector_numel", a->vector_numel, 0));
    TESS_TRY(tess_check_extent(op, "dim", a->dim, 1));
    TESS_TRY(tess_check_extent(op, "row_numel", a->row_numel, 0));
    TESS_TRY(tess_mul_i64(a->vector_numel, a->dim, &numel));
    TESS_TRY(tess_check_pointer(op, "x", a->x, numel));
    TESS_TRY(tess_check_pointer(op, "row", a->row, a->vector_numel));
    TESS_TRY(tess_mul_i64(a->row_numel, a->dim, &numel));
    TESS_TRY(tess_check_pointer(op, "sum", a->sum, numel));
    return tess_check_pointer(op, "count", a->count, a->row_numel);
}

tess_status tess_code_mean_check(const tess_code_mean_args *a)
{
    static const char op[] = "code_mean";
    int64_t numel = 0;
    TESS_TRY(tess_check_extent(op, "dim", a->dim, 1));
    TESS_TRY(tess_check_extent(op, "row_numel", a->row_numel, 0));
    TESS_TRY(tess_mul_i64(a->row_numel, a->dim, &numel));
    TESS_TRY(tess_check_pointer(op, "sum", a->sum, numel));
    TESS_TRY(tess_check_pointer(op, "count", a->count, a->row_numel));
    return tess_check_pointer(op, "code", a->code, numel);
}

tess_status tess_code_residual_check(const tess_code_residual_args *a)
{
    static const char op[] = "code_residual";
    int64_t numel = 0;
    TESS_TRY(tess_check_extent(op, "vector_numel", a->vector_numel, 0));
    TESS_TRY(tess_check_extent(op, "dim", a->dim, 1));
    TESS_TRY(tess_mul_i64(a->vector_numel, a->dim, &numel));
    TESS_TRY(tess_check_pointer(op, "x", a->x, numel));
    TESS_TRY(tess_check_pointer(op, "dst", a->dst, numel));
    TESS_TRY(tess_check_pointer(op, "row", a->row, a->vector_numel));
    TESS_TRY(tess_mul_i64(a->code_numel, a->dim, &numel));
    return tess_check_pointer(op, "code", a->code, numel);
}

tess_status tess_code_row_check(const tess_code_row_args *a)
{
    static const char op[] = "code_row";
    TESS_TRY(tess_check_extent(op, "vector_numel", a->vector_numel, 0));
    TESS_TRY(tess_check_pointer(op, "key", a->key, a->vector_numel));
    return tess_check_pointer(op, "row", a->row, a->vector_numel);
}
