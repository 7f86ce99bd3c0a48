/** Statistics of codes: sums of rounded integers. */
#pragma once

#include "kernels/cpu/ops_priv.h"
#include "kernels/cpu/vec_priv.h"

typedef int64_t vl __attribute__((vector_size(VL * 4)));

/* x 2^S to the nearest integer, ties to even: below 2^51 the sum with 1.5 2^52 holds it in its low
 * bits. */
INLINE void add_fixed(int64_t *sum, const float *x, vd scale)
{
    enum { HALF = VL / 2 };
    vf_half value;
    vl total;
    const vd magic = (vd){0} + 0x1.8p52;
    memcpy(&value, x, sizeof value);
    memcpy(&total, sum, sizeof total);
    const vd shifted = __builtin_convertvector(value, vd) * scale + magic;
    total += (vl)shifted - (vl)magic;
    memcpy(sum, &total, sizeof total);
    _Static_assert(sizeof total == HALF * sizeof *sum, "");
}

/* Columns [lo, hi) of all vectors. */
static void code_sum(const tess_code_sum_args *a, int64_t lo, int64_t hi)
{
    enum { HALF = VL / 2, AHEAD = 8 };
    const double factor = __builtin_ldexp(1.0, a->exponent);
    const vd scale = (vd){0} + factor;
    for (int64_t i = 0; i < a->vector_numel; i++) {
        const int64_t row = (int64_t)a->row[i] - a->first_row_idx;
        if (i + AHEAD < a->vector_numel) {
            const int64_t next = (int64_t)a->row[i + AHEAD] - a->first_row_idx;
            if (next >= 0 && next < a->row_numel)
                for (int64_t j = lo; j < hi; j += 8)
                    __builtin_prefetch(a->sum + next * a->dim + j, 1);
        }
        if (row < 0 || row >= a->row_numel)
            continue;
        const float *x = a->x + i * a->dim;
        int64_t *sum = a->sum + row * a->dim;
        int64_t j = lo;
        for (; j + HALF <= hi; j += HALF)
            add_fixed(sum + j, x + j, scale);
        for (; j < hi; j++) {
            const double shifted = (double)x[j] * factor + 0x1.8p52;
            int64_t bits = 0;
            memcpy(&bits, &shifted, sizeof bits);
            sum[j] += bits - INT64_C(0x4338000000000000);
        }
    }
}

/* Vectors [lo, hi). */
static void code_residual(const tess_code_residual_args *a, int64_t lo, int64_t hi)
{
    for (int64_t i = lo; i < hi; i++) {
        const float *x = a->x + (a->parent != NULL ? a->parent[i] : (uint32_t)i) * a->dim;
        const float *code = a->row[i] < a->code_numel ? a->code + a->row[i] * a->dim : NULL;
        float *dst = a->dst + i * a->dim;
        int64_t j = 0;
        for (; code != NULL && j + VL <= a->dim; j += VL)
            vf_store(dst + j, vf_load(x + j) - vf_load(code + j));
        for (; j < a->dim; j++)
            dst[j] = code != NULL ? x[j] - code[j] : x[j];
    }
}
