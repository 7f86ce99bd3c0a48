/** Cross-entropy, gradient folding and squared norms; included by rows*.c once per path. */
#pragma once

#include <math.h>

#include "kernels/cpu/ops_priv.h"
#include "kernels/cpu/vec_priv.h"

/* The maximum does not depend on the order; four chains hide its latency. */
INLINE float row_max(const float *z, int64_t numel)
{
    enum { CHAINS = 4 };
    vf best[CHAINS];
    for (int c = 0; c < CHAINS; c++)
        best[c] = vf_set1(-__builtin_inff());
    int64_t i = 0;
    for (; i + CHAINS * VL <= numel; i += CHAINS * VL)
        for (int c = 0; c < CHAINS; c++)
            best[c] = vf_max(best[c], vf_load(z + i + c * VL));
    float lane[CHAINS * VL];
    memcpy(lane, best, sizeof lane);
    float result = lane[0];
    for (int l = 1; l < CHAINS * VL; l++)
        result = lane[l] > result ? lane[l] : result;
    for (; i < numel; i++)
        result = z[i] > result ? z[i] : result;
    return result;
}

/* fp64 sum of exp(z - max), element i in lane i % 16. */
INLINE double sum_exp(const float *z, int64_t numel, float max)
{
    vd acc[2 * LANE_VECTORS] = {{0}};
    for (int64_t i = 0; i < numel; i += LANES) {
        for (int h = 0; h < LANE_VECTORS; h++) {
            const int64_t first = i + h * VL;
            if (first >= numel)
                break;
            const int64_t n = TESS_MIN(VL, numel - first);
            vf e = vf_exp_below(vf_get(z, first, n, false) - max);
            if (n < VL)
                e = (vf)((vi)e & (vi_iota(0) < (int32_t)n));
            vf_half half[2];
            memcpy(half, &e, sizeof e);
            acc[2 * h] = acc[2 * h] + __builtin_convertvector(half[0], vd);
            acc[2 * h + 1] = acc[2 * h + 1] + __builtin_convertvector(half[1], vd);
        }
    }
    double lane[LANES];
    memcpy(lane, acc, sizeof lane);
    return lanes_sum_f64(lane);
}

INLINE void softmax_gradient(const tess_cross_entropy_args *a, int64_t row, float max, double sum,
                             bool is_bf16)
{
    const int64_t numel = a->vocab_numel;
    const float *z = (const float *)a->logits.data + row * numel;
    char *d = (char *)a->d_logits.data + (size_t)(row * numel) * (is_bf16 ? 2 : 4);
    const float inv = (float)(1.0 / sum), scale = a->grad_scale;
    const int32_t label = a->labels[row];
    vf hit = vf_exp_below(vf_set1(z[label] - max));
    hit = (hit * inv - 1.0f) * scale;
    for (int64_t i = 0; i < numel; i += VL) {
        const int64_t n = TESS_MIN(VL, numel - i);
        const vf p = vf_exp_below(vf_get(z, i, n, false) - max) * inv;
        vf_put(d, i, n, p * scale, is_bf16);
    }
    float one[VL];
    vf_store(one, hit);
    if (is_bf16)
        ((uint16_t *)(void *)d)[label] = tess_bf16_from_f32(one[0]);
    else
        ((float *)(void *)d)[label] = one[0];
}

static void cross_entropy(const tess_cross_entropy_args *a, int64_t lo, int64_t hi)
{
    const bool is_bf16 = a->d_logits.dt == TESS_BF16;
    const size_t row_nbytes = (size_t)a->vocab_numel * (is_bf16 ? 2 : 4);
    for (int64_t row = lo; row < hi; row++) {
        const float *z = (const float *)a->logits.data + row * a->vocab_numel;
        if (a->labels[row] < 0) {
            a->row_loss[row] = 0.0;
            if (a->d_logits.numel > 0)
                memset((char *)a->d_logits.data + (size_t)row * row_nbytes, 0, row_nbytes);
            continue;
        }
        const float max = row_max(z, a->vocab_numel);
        const double sum = sum_exp(z, a->vocab_numel, max);
        /* A row with NaN or infinity has no finite sum: the loss must say so, not log of bits. */
        const double lse = sum < 0x1p1000 ? (double)max + tess_log_f64(sum) : (double)sum;
        a->row_loss[row] = lse - (double)z[a->labels[row]];
        if (a->d_logits.numel == 0)
            continue;
        if (is_bf16)
            softmax_gradient(a, row, max, sum, true);
        else
            softmax_gradient(a, row, max, sum, false);
    }
}

static void fold(const tess_fold_args *a, int64_t lo, int64_t hi)
{
    for (int64_t i = lo; i < hi; i += VL) {
        const int64_t n = TESS_MIN(VL, hi - i);
        vf_put(a->dst, i, n, vf_get(a->a, i, n, false) + vf_get(a->b, i, n, false), false);
    }
}

enum { NORM_BLOCK_NUMEL = 256, NORM_BLOCKS = 8 };

/* Eight blocks at once: eight independent chains hide the latency of ascending additions. */
static void square_blocks(const float *x, int64_t numel, double *out)
{
    const int64_t whole = numel / NORM_BLOCK_NUMEL;
    int64_t block = 0;
    for (; block + NORM_BLOCKS <= whole; block += NORM_BLOCKS) {
        const float *first = x + block * NORM_BLOCK_NUMEL;
        double sum[NORM_BLOCKS] = {0};
        for (int i = 0; i < NORM_BLOCK_NUMEL; i++)
            for (int b = 0; b < NORM_BLOCKS; b++) {
                const double v = (double)first[b * NORM_BLOCK_NUMEL + i];
                sum[b] = sum[b] + v * v;
            }
        memcpy(out + block, sum, sizeof sum);
    }
    for (; block * NORM_BLOCK_NUMEL < numel; block++) {
        const int64_t hi = TESS_MIN(numel, (block + 1) * NORM_BLOCK_NUMEL);
        double sum = 0.0;
        for (int64_t i = block * NORM_BLOCK_NUMEL; i < hi; i++)
            sum = sum + (double)x[i] * (double)x[i];
        out[block] = sum;
    }
}
