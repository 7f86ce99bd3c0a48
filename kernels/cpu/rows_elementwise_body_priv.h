/** Element-wise loops; included by rows*.c once per instruction path. */
#pragma once

#include <math.h>

#include "kernels/cpu/ops_priv.h"
#include "kernels/cpu/vec_priv.h"

INLINE vf sigmoid(vf g) { return 1.0f / (vf_exp(-g) + 1.0f); }

/* Elements [i, end) of a flat range that lie in one row of an output with a stride: where it
 * begins in the output, and the end of the row. */
INLINE int64_t strided_run(int64_t i, int64_t end, int64_t dim, int64_t stride, int64_t *run_end)
{
    *run_end = end;
    if (stride == 0)
        return i;
    const int64_t row = i / dim;
    *run_end = TESS_MIN(end, (row + 1) * dim);
    return row * stride + (i - row * dim);
}

INLINE void swiglu_forward_dt(const tess_swiglu_args *a, int64_t lo, int64_t hi, bool is_bf16)
{
    for (int64_t run = lo, end = lo; run < hi; run = end) {
        const int64_t shift = strided_run(run, hi, a->dim, a->out_stride, &end) - run;
        for (int64_t i = run; i < end; i += VL) {
            const int64_t n = TESS_MIN(VL, end - i);
            const vf g = vf_get(a->gate.data, i, n, is_bf16);
            const vf silu = g / (vf_exp(-g) + 1.0f);
            vf_put(a->out.data, i + shift, n, silu * vf_get(a->up.data, i, n, is_bf16), is_bf16);
        }
    }
}

static void swiglu_forward(const tess_swiglu_args *a, int64_t lo, int64_t hi)
{
    if (a->gate.dt == TESS_BF16)
        swiglu_forward_dt(a, lo, hi, true);
    else
        swiglu_forward_dt(a, lo, hi, false);
}

INLINE void swiglu_backward_dt(const tess_swiglu_backward_args *a, int64_t lo, int64_t hi,
                               bool is_bf16)
{
    for (int64_t run = lo, end = lo; run < hi; run = end) {
        const int64_t shift = strided_run(run, hi, a->dim, a->d_stride, &end) - run;
        for (int64_t i = run; i < end; i += VL) {
            const int64_t n = TESS_MIN(VL, end - i);
            const vf g = vf_get(a->gate.data, i, n, is_bf16);
            const vf up = vf_get(a->up.data, i, n, is_bf16);
            const vf d = vf_get(a->d_out.data, i, n, is_bf16);
            const vf s = sigmoid(g);
            const vf silu = g * s;
            vf_put(a->d_up.data, i + shift, n, d * silu, is_bf16);
            vf_put(a->d_gate.data, i + shift, n, d * up * (s + silu * (1.0f - s)), is_bf16);
        }
    }
}

static void swiglu_backward(const tess_swiglu_backward_args *a, int64_t lo, int64_t hi)
{
    if (a->gate.dt == TESS_BF16)
        swiglu_backward_dt(a, lo, hi, true);
    else
        swiglu_backward_dt(a, lo, hi, false);
}

INLINE void relu_dt(const tess_relu_args *a, int64_t lo, int64_t hi, bool is_bf16)
{
    for (int64_t i = lo; i < hi; i += VL) {
        const int64_t n = TESS_MIN(VL, hi - i);
        const vi is_off = vf_get(a->gate.data, i, n, is_bf16) <= (vf){0};
        vf_put(a->out.data, i, n, vf_select(is_off, (vf){0}, vf_get(a->x.data, i, n, is_bf16)),
               is_bf16);
    }
}

static void relu(const tess_relu_args *a, int64_t lo, int64_t hi)
{
    if (a->out.dt == TESS_BF16)
        relu_dt(a, lo, hi, true);
    else
        relu_dt(a, lo, hi, false);
}

INLINE void add_dt(const tess_add_args *a, int64_t lo, int64_t hi, bool is_bf16)
{
    for (int64_t i = lo; i < hi; i += VL) {
        const int64_t n = TESS_MIN(VL, hi - i);
        vf_put(a->out.data, i, n,
               vf_get(a->a.data, i, n, is_bf16) + vf_get(a->b.data, i, n, is_bf16), is_bf16);
    }
}

static void add(const tess_add_args *a, int64_t lo, int64_t hi)
{
    if (a->out.dt == TESS_BF16)
        add_dt(a, lo, hi, true);
    else
        add_dt(a, lo, hi, false);
}

INLINE void add_bias_dt(const tess_add_bias_args *a, int64_t lo, int64_t hi, bool is_bf16)
{
    const int64_t dim = a->bias.numel;
    const bool bias_bf16 = a->bias.dt == TESS_BF16;
    for (int64_t row = lo; row < hi; row++) {
        char *x = (char *)a->x.data + (size_t)(row * dim) * (is_bf16 ? 2 : 4);
        for (int64_t i = 0; i < dim; i += VL) {
            const int64_t n = TESS_MIN(VL, dim - i);
            vf_put(x, i, n, vf_get(x, i, n, is_bf16) + vf_get(a->bias.data, i, n, bias_bf16),
                   is_bf16);
        }
    }
}

static void add_bias(const tess_add_bias_args *a, int64_t lo, int64_t hi)
{
    if (a->x.dt == TESS_BF16)
        add_bias_dt(a, lo, hi, true);
    else
        add_bias_dt(a, lo, hi, false);
}

INLINE void sum_rows_dt(const tess_sum_rows_args *a, int chunk_idx, bool is_bf16)
{
    float *sum = a->work + chunk_idx * a->dim;
    int64_t lo = 0, hi = 0;
    tess_row_chunk(a->row_numel, chunk_idx, &lo, &hi);
    memset(sum, 0, (size_t)a->dim * sizeof *sum);
    for (int64_t row = lo; row < hi; row++) {
        const char *x = (const char *)a->x.data + (size_t)(row * a->dim) * (is_bf16 ? 2 : 4);
        for (int64_t i = 0; i < a->dim; i += VL) {
            const int64_t n = TESS_MIN(VL, a->dim - i);
            vf_put(sum, i, n, vf_get(sum, i, n, false) + vf_get(x, i, n, is_bf16), false);
        }
    }
}

static void sum_rows(const tess_sum_rows_args *a, int chunk_idx)
{
    if (a->x.dt == TESS_BF16)
        sum_rows_dt(a, chunk_idx, true);
    else
        sum_rows_dt(a, chunk_idx, false);
}

/*
 * [Note: Philox in lanes] One quad of words per 64-bit lane; the upper halves may hold anything, as
 * the 32 x 32 product reads the lower halves only. Several vectors at once, because one round waits
 * for the round before.
 */
typedef uint64_t vq __attribute__((vector_size(VL * 4)));
enum { QUADS = VL / 2, DRAW_VECTORS = 4, DRAW_NUMEL = 4 * QUADS * DRAW_VECTORS };

INLINE vq mul_u32(vq a, uint64_t b)
{
#if defined(__AVX512F__)
    return (vq)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64((long long)b));
#elif defined(__AVX2__)
    return (vq)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x((long long)b));
#else
    return (a & 0xffffffffu) * b;
#endif
}

/* Words c0 c1 c2 c3 of each quad, quad after quad. */
INLINE void store_words(uint32_t *word, const vq c[4])
{
    const vq low = (c[0] & 0xffffffffu) | c[1] << 32;
    const vq high = (c[2] & 0xffffffffu) | c[3] << 32;
#if defined(__AVX512F__)
    const __m512i first = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0);
    const __m512i second = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
    _mm512_storeu_si512(word, _mm512_permutex2var_epi64((__m512i)low, first, (__m512i)high));
    _mm512_storeu_si512(word + 16, _mm512_permutex2var_epi64((__m512i)low, second, (__m512i)high));
#else
    uint64_t low_lane[QUADS], high_lane[QUADS], pair[2 * QUADS];
    memcpy(low_lane, &low, sizeof low);
    memcpy(high_lane, &high, sizeof high);
    for (int l = 0; l < QUADS; l++) {
        pair[2 * l] = low_lane[l];
        pair[2 * l + 1] = high_lane[l];
    }
    memcpy(word, pair, sizeof pair);
#endif
}

/* Words of DRAW_NUMEL elements from quad `quad`, in element order. */
static void draw_words(const tess_rng *rng, uint64_t quad, uint32_t word[DRAW_NUMEL])
{
    vq c[DRAW_VECTORS][4];
    uint64_t lane[QUADS * DRAW_VECTORS];
    for (unsigned l = 0; l < QUADS * DRAW_VECTORS; l++)
        lane[l] = quad + l;
    for (int v = 0; v < DRAW_VECTORS; v++) {
        memcpy(&c[v][0], lane + v * QUADS, sizeof c[v][0]);
        c[v][1] = c[v][0] >> 32;
        c[v][2] = (vq){0} + rng->index;
        c[v][3] = (vq){0} + rng->purpose_layer;
    }
    uint32_t k0 = rng->key[0], k1 = rng->key[1];
    for (int round = 0; round < 10; round++) {
#pragma GCC unroll 4
        for (int v = 0; v < DRAW_VECTORS; v++) {
            const vq p0 = mul_u32(c[v][0], 0xD2511F53u);
            const vq p1 = mul_u32(c[v][2], 0xCD9E8D57u);
            c[v][0] = (p1 >> 32) ^ c[v][1] ^ (uint64_t)k0;
            c[v][1] = p1;
            c[v][2] = (p0 >> 32) ^ c[v][3] ^ (uint64_t)k1;
            c[v][3] = p0;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    for (int v = 0; v < DRAW_VECTORS; v++)
        store_words(word + v * 4 * QUADS, c[v]);
}

/* Elements lo .. hi-1; one call draws for the group of DRAW_NUMEL elements that holds `lo`. */
INLINE void dropout_group(const tess_dropout_args *a, int64_t lo, int64_t hi, uint32_t threshold)
{
    const bool x_bf16 = a->x.dt == TESS_BF16, add_bf16 = a->add.dt == TESS_BF16;
    const bool out_bf16 = a->out.dt == TESS_BF16;
    const uint64_t element = (uint64_t)(a->first_idx + lo);
    const uint64_t group = element / DRAW_NUMEL * DRAW_NUMEL;
    uint32_t word[DRAW_NUMEL + VL] = {0};
    draw_words(&a->rng, group / 4, word);
    const uint32_t *w = word + (element - group);
    const float keep = 1.0f - a->p;
    for (int64_t i = lo; i < hi; i += VL) {
        const int64_t n = TESS_MIN(VL, hi - i);
        vu draw;
        memcpy(&draw, w + (i - lo), sizeof draw);
        const vi is_kept = (vi)(draw >= threshold);
        vf v = vf_get(a->x.data, i, n, x_bf16) / keep;
        v = (vf)((vi)v & is_kept);
        if (a->add.numel > 0)
            v = v + vf_get(a->add.data, i, n, add_bf16);
        vf_put(a->out.data, i, n, v, out_bf16);
    }
}

static void dropout(const tess_dropout_args *a, int64_t lo, int64_t hi)
{
    const uint32_t threshold = (uint32_t)ceil((double)a->p * 0x1p32);
    int64_t i = lo;
    while (i < hi) {
        const int64_t phase = (a->first_idx + i) % DRAW_NUMEL;
        const int64_t end = TESS_MIN(hi, i + DRAW_NUMEL - phase);
        dropout_group(a, i, end, threshold);
        i = end;
    }
}

INLINE void cast_dt(const tess_cast_args *a, int64_t lo, int64_t hi, bool from_bf16, bool to_bf16)
{
    for (int64_t i = lo; i < hi; i += VL) {
        const int64_t n = TESS_MIN(VL, hi - i);
        vf_put(a->dst.data, i, n, vf_get(a->src.data, i, n, from_bf16), to_bf16);
    }
}

static void cast(const tess_cast_args *a, int64_t lo, int64_t hi)
{
    if (a->src.dt == a->dst.dt) {
        const size_t elem_nbytes = tess_dtype_block_nbytes(a->src.dt);
        memcpy((char *)a->dst.data + (size_t)lo * elem_nbytes,
               (const char *)a->src.data + (size_t)lo * elem_nbytes,
               (size_t)(hi - lo) * elem_nbytes);
    } else if (a->src.dt == TESS_BF16) {
        cast_dt(a, lo, hi, true, false);
    } else {
        cast_dt(a, lo, hi, false, true);
    }
}

INLINE void embedding_backward_dt(const tess_embedding_backward_args *a, int64_t lo, int64_t hi,
                                  bool is_bf16)
{
    for (int64_t t = 0; t < a->token_numel; t++) {
        float *row = a->d_table + a->tokens[t] * a->hidden_numel;
        const char *d =
            (const char *)a->d_out.data + (size_t)(t * a->hidden_numel) * (is_bf16 ? 2 : 4);
        for (int64_t i = lo; i < hi; i += VL) {
            const int64_t n = TESS_MIN(VL, hi - i);
            vf_put(row, i, n, vf_get(row, i, n, false) + vf_get(d, i, n, is_bf16), false);
        }
    }
}

static void embedding_backward(const tess_embedding_backward_args *a, int64_t lo, int64_t hi)
{
    if (a->d_out.dt == TESS_BF16)
        embedding_backward_dt(a, lo, hi, true);
    else
        embedding_backward_dt(a, lo, hi, false);
}

static void exp_array(const float *x, float *out, int64_t numel)
{
    for (int64_t i = 0; i < numel; i += VL) {
        const int64_t n = TESS_MIN(VL, numel - i);
        vf_put(out, i, n, vf_exp(vf_get(x, i, n, false)), false);
    }
}

static void exp_below_array(const float *x, float *out, int64_t numel)
{
    for (int64_t i = 0; i < numel; i += VL) {
        const int64_t n = TESS_MIN(VL, numel - i);
        vf_put(out, i, n, vf_exp_below(vf_get(x, i, n, false)), false);
    }
}
