#include "tests/reference/reference.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* Index of A (row i, sum index p) and B (column j, sum index p) of a product. */
static int64_t a_at(ref_gemm_shape s, int64_t i, int64_t p)
{
    return s.kind == REF_TN ? p * s.m + i : i * s.k + p;
}

static int64_t b_at(ref_gemm_shape s, int64_t j, int64_t p)
{
    return s.kind == REF_NT ? j * s.k + p : p * s.n + j;
}

void ref_gemm(ref_gemm_shape s, const double *a, const double *b, double scale, double *c)
{
    for (int64_t i = 0; i < s.m; i++)
        for (int64_t j = 0; j < s.n; j++) {
            double sum = 0.0;
            for (int64_t p = 0; p < s.k; p++)
                sum += a[a_at(s, i, p)] * b[b_at(s, j, p)];
            c[i * s.n + j] += scale * sum;
        }
}

void ref_gemm_backward(ref_gemm_shape s, const double *a, const double *b, const double *d_c,
                       double *d_a, double *d_b)
{
    for (int64_t i = 0; i < s.m; i++)
        for (int64_t j = 0; j < s.n; j++)
            for (int64_t p = 0; p < s.k; p++) {
                d_a[a_at(s, i, p)] += d_c[i * s.n + j] * b[b_at(s, j, p)];
                d_b[b_at(s, j, p)] += d_c[i * s.n + j] * a[a_at(s, i, p)];
            }
}

/* bitsandbytes functional.py, create_normal_map: the 16 values as published. */
static const float nf4_value[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

/* Entry `code` of the signed dynamic map: 7 decades of means of neighbours of 2^i + 1 points. */
static float dynamic_value(int code)
{
    if (code == 127)
        return 0.0f;
    if (code == 255)
        return 1.0f;
    const int magnitude_idx = code > 127 ? code - 128 : 126 - code;
    int decade = 0, first = 0;
    while (first + (1 << decade) <= magnitude_idx)
        first += 1 << decade++;
    const int point_numel = (1 << decade) + 1, k = magnitude_idx - first;
    const float step = (1.0f - 0.1f) / (float)(point_numel - 1);
    float point[2];
    for (int e = 0; e < 2; e++)
        point[e] = k + e < point_numel / 2 ? fmaf(step, (float)(k + e), 0.1f)
                                           : fmaf(-step, (float)(point_numel - 1 - k - e), 1.0f);
    const float mean = (point[0] + point[1]) / 2.0f;
    const float value = mean * (float)pow(10.0, decade - 6);
    return code > 127 ? value : -value;
}

void ref_nf4_dequantize(const ref_nf4 *t, double *out)
{
    for (int64_t i = 0; i < t->numel; i++) {
        const int64_t block = i / t->block_numel;
        float absmax = 0.0f;
        if (t->absmax != NULL) {
            absmax = t->absmax[block];
        } else {
            const float product =
                dynamic_value(t->absmax_code[block]) * t->nested_absmax[block / 256];
            absmax = product + t->nested_offset;
        }
        const int code = i % 2 == 0 ? t->codes[i / 2] >> 4 : t->codes[i / 2] & 15;
        const float value = nf4_value[code] * absmax;
        out[i] = (double)value;
    }
}

void ref_embedding(const double *table, int64_t dim, const int32_t *tokens, int64_t token_numel,
                   double *out)
{
    for (int64_t t = 0; t < token_numel; t++)
        for (int64_t d = 0; d < dim; d++)
            out[t * dim + d] = table[tokens[t] * dim + d];
}

void ref_embedding_backward(const double *d_out, int64_t dim, const int32_t *tokens,
                            int64_t token_numel, double *d_table)
{
    for (int64_t t = 0; t < token_numel; t++)
        for (int64_t d = 0; d < dim; d++)
            d_table[tokens[t] * dim + d] += d_out[t * dim + d];
}

static double inverse_rms(const double *x, int64_t dim, double eps)
{
    double sum = 0.0;
    for (int64_t d = 0; d < dim; d++)
        sum += x[d] * x[d];
    return 1.0 / sqrt(sum / (double)dim + eps);
}

void ref_rmsnorm(ref_rows s, const double *x, const double *w, double eps, double *y)
{
    for (int64_t r = 0; r < s.row_numel; r++) {
        const double inv = inverse_rms(x + r * s.dim, s.dim, eps);
        for (int64_t d = 0; d < s.dim; d++)
            y[r * s.dim + d] = x[r * s.dim + d] * inv * w[d];
    }
}

void ref_rmsnorm_backward(ref_rows s, const double *x, const double *w, double eps,
                          const double *d_y, double *d_x_d_w[2])
{
    double *d_x = d_x_d_w[0], *d_w = d_x_d_w[1];
    for (int64_t r = 0; r < s.row_numel; r++) {
        const double *row = x + r * s.dim, *g = d_y + r * s.dim;
        const double inv = inverse_rms(row, s.dim, eps);
        double dot = 0.0;
        for (int64_t d = 0; d < s.dim; d++) {
            dot += g[d] * w[d] * row[d];
            d_w[d] += g[d] * row[d] * inv;
        }
        /* d inv / d x = -inv^3 x / D */
        for (int64_t d = 0; d < s.dim; d++)
            d_x[r * s.dim + d] = g[d] * w[d] * inv - inv * inv * inv * row[d] * dot / (double)s.dim;
    }
}

void ref_rope(ref_rope_shape s, const int32_t *positions, const double *cos_table,
              const double *sin_table, double sign, double *x)
{
    const int64_t half = s.dim / 2;
    for (int64_t t = 0; t < s.token_numel; t++)
        for (int64_t h = 0; h < s.head_numel; h++)
            for (int64_t i = 0; i < half; i++) {
                double *head = x + (t * s.head_numel + h) * s.dim;
                const double c = cos_table[positions[t] * half + i];
                const double sine = sign * sin_table[positions[t] * half + i];
                const double first = head[i], second = head[i + half];
                head[i] = first * c - second * sine;
                head[i + half] = second * c + first * sine;
            }
}

static bool is_visible(const ref_attention *a, int64_t i, int64_t j)
{
    if (a->segment_numel > 0)
        return i / a->segment_numel == j / a->segment_numel;
    return j <= i && j >= a->doc_start[i] && (a->window == 0 || j > i - a->window);
}

static const double *query_at(const ref_attention *a, const double *x, int64_t i, int64_t head)
{
    return x + (i * a->head_numel + head) * a->dim;
}

static int64_t key_at(const ref_attention *a, int64_t j, int64_t head)
{
    return (j * a->kv_head_numel + head / (a->head_numel / a->kv_head_numel)) * a->dim;
}

static double dot(const double *x, const double *y, int64_t numel)
{
    double sum = 0.0;
    for (int64_t i = 0; i < numel; i++)
        sum += x[i] * y[i];
    return sum;
}

/* Log of the sum of exponentials of the scores of query (i, head). */
static double row_lse(const ref_attention *a, int64_t i, int64_t head)
{
    const double *q = query_at(a, a->q, i, head);
    double max = -INFINITY, sum = 0.0;
    for (int64_t j = 0; j < a->token_numel; j++)
        if (is_visible(a, i, j))
            max = fmax(max, a->scale * dot(q, a->k + key_at(a, j, head), a->dim));
    for (int64_t j = 0; j < a->token_numel; j++)
        if (is_visible(a, i, j))
            sum += exp(a->scale * dot(q, a->k + key_at(a, j, head), a->dim) - max);
    return max + log(sum);
}

void ref_attention_forward(const ref_attention *a, double *out, double *lse)
{
    for (int64_t head = 0; head < a->head_numel; head++)
        for (int64_t i = 0; i < a->token_numel; i++) {
            const double *q = query_at(a, a->q, i, head);
            double *o = out + (i * a->head_numel + head) * a->dim;
            const double row = row_lse(a, i, head);
            memset(o, 0, (size_t)a->dim * sizeof *o);
            for (int64_t j = 0; j < a->token_numel; j++) {
                if (!is_visible(a, i, j))
                    continue;
                const int64_t at = key_at(a, j, head);
                const double p = exp(a->scale * dot(q, a->k + at, a->dim) - row);
                for (int64_t d = 0; d < a->dim; d++)
                    o[d] += p * a->v[at + d];
            }
            if (lse != NULL)
                lse[head * a->token_numel + i] = row;
        }
}

/* Gradients through row i of one head; `delta` is the sum over j of p_j * d_p_j. */
static void backward_row(const ref_attention *a, int64_t i, int64_t head, const double *d_out,
                         double *grad[3])
{
    const double *q = query_at(a, a->q, i, head), *d_o = query_at(a, d_out, i, head);
    double *d_q = grad[0] + (i * a->head_numel + head) * a->dim;
    const double row = row_lse(a, i, head);
    double delta = 0.0;
    for (int64_t j = 0; j < a->token_numel; j++)
        if (is_visible(a, i, j)) {
            const int64_t at = key_at(a, j, head);
            delta += exp(a->scale * dot(q, a->k + at, a->dim) - row) * dot(d_o, a->v + at, a->dim);
        }
    for (int64_t j = 0; j < a->token_numel; j++) {
        if (!is_visible(a, i, j))
            continue;
        const int64_t at = key_at(a, j, head);
        const double p = exp(a->scale * dot(q, a->k + at, a->dim) - row);
        const double d_s = a->scale * p * (dot(d_o, a->v + at, a->dim) - delta);
        for (int64_t d = 0; d < a->dim; d++) {
            d_q[d] += d_s * a->k[at + d];
            grad[1][at + d] += d_s * q[d];
            grad[2][at + d] += p * d_o[d];
        }
    }
}

void ref_attention_backward(const ref_attention *a, const double *d_out, double *d_q, double *d_k,
                            double *d_v)
{
    const size_t query_numel = (size_t)(a->token_numel * a->head_numel * a->dim);
    const size_t key_numel = (size_t)(a->token_numel * a->kv_head_numel * a->dim);
    double *grad[3] = {d_q, d_k, d_v};
    memset(d_q, 0, query_numel * sizeof *d_q);
    memset(d_k, 0, key_numel * sizeof *d_k);
    memset(d_v, 0, key_numel * sizeof *d_v);
    for (int64_t head = 0; head < a->head_numel; head++)
        for (int64_t i = 0; i < a->token_numel; i++)
            backward_row(a, i, head, d_out, grad);
}

void ref_swiglu(int64_t numel, const double *gate, const double *up, double *out)
{
    for (int64_t i = 0; i < numel; i++)
        out[i] = gate[i] / (1.0 + exp(-gate[i])) * up[i];
}

void ref_swiglu_backward(int64_t numel, const double *gate, const double *up, const double *d_out,
                         double *d_gate, double *d_up)
{
    for (int64_t i = 0; i < numel; i++) {
        const double s = 1.0 / (1.0 + exp(-gate[i]));
        d_up[i] = d_out[i] * gate[i] * s;
        d_gate[i] = d_out[i] * up[i] * (s + gate[i] * s * (1.0 - s));
    }
}

void ref_add(int64_t numel, const double *a, const double *b, double *out)
{
    for (int64_t i = 0; i < numel; i++)
        out[i] = a[i] + b[i];
}

void ref_add_bias(ref_rows s, const double *bias, double *x)
{
    for (int64_t i = 0; i < s.row_numel * s.dim; i++)
        x[i] += bias[i % s.dim];
}

void ref_sum_rows(ref_rows s, const double *x, double *out)
{
    for (int64_t i = 0; i < s.row_numel * s.dim; i++)
        out[i % s.dim] += x[i];
}

void ref_dora(ref_rows s, const double *z, const double *m, const double *n, double *y)
{
    for (int64_t i = 0; i < s.row_numel * s.dim; i++)
        y[i] = n[i % s.dim] > 0.0 ? m[i % s.dim] / n[i % s.dim] * z[i] : 0.0;
}

void ref_dora_backward(ref_rows s, const double *z, const double *m, const double *n,
                       const double *d_y, double *const grads[3])
{
    for (int64_t i = 0; i < s.row_numel * s.dim; i++) {
        const int64_t k = i % s.dim;
        const double g = n[k] > 0.0 ? m[k] / n[k] : 0.0;
        grads[0][i] = g * d_y[i];
        grads[1][i] = (g - 1.0) * d_y[i];
        if (n[k] > 0.0)
            grads[2][k] += d_y[i] * z[i] / n[k];
    }
}

void ref_dropout(int64_t numel, const double *x, const bool *keep, double p, double *out)
{
    for (int64_t i = 0; i < numel; i++)
        out[i] = keep[i] ? x[i] / (1.0 - p) : 0.0;
}

void ref_philox(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4])
{
    uint32_t c[4], k[2] = {key[0], key[1]};
    memcpy(c, counter, sizeof c);
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = UINT64_C(0xD2511F53) * c[0], p1 = UINT64_C(0xCD9E8D57) * c[2];
        const uint32_t next[4] = {(uint32_t)(p1 >> 32) ^ c[1] ^ k[0], (uint32_t)p1,
                                  (uint32_t)(p0 >> 32) ^ c[3] ^ k[1], (uint32_t)p0};
        memcpy(c, next, sizeof c);
        k[0] += 0x9E3779B9u;
        k[1] += 0xBB67AE85u;
    }
    memcpy(out, c, sizeof c);
}

void ref_cross_entropy(ref_rows s, const double *logits, const int32_t *labels, double scale,
                       double *loss, double *d_logits)
{
    for (int64_t r = 0; r < s.row_numel; r++) {
        const double *z = logits + r * s.dim;
        double max = -INFINITY, sum = 0.0;
        for (int64_t i = 0; i < s.dim; i++)
            max = fmax(max, z[i]);
        for (int64_t i = 0; i < s.dim; i++)
            sum += exp(z[i] - max);
        loss[r] = labels[r] < 0 ? 0.0 : max + log(sum) - z[labels[r]];
        for (int64_t i = 0; d_logits != NULL && i < s.dim; i++) {
            const double p = exp(z[i] - max) / sum;
            d_logits[r * s.dim + i] =
                labels[r] < 0 ? 0.0 : (p - (i == labels[r] ? 1.0 : 0.0)) * scale;
        }
    }
}

static void rotate_gram(double *g, int64_t n, int64_t p, int64_t q)
{
    const double off = g[p * n + q];
    if (off == 0.0)
        return;
    const double theta = (g[q * n + q] - g[p * n + p]) / (2.0 * off);
    const double t = copysign(1.0, theta) / (fabs(theta) + sqrt(theta * theta + 1.0));
    const double c = 1.0 / sqrt(t * t + 1.0), s = t * c;
    for (int64_t k = 0; k < n; k++) {
        const double a = g[p * n + k], b = g[q * n + k];
        g[p * n + k] = c * a - s * b;
        g[q * n + k] = s * a + c * b;
    }
    for (int64_t k = 0; k < n; k++) {
        const double a = g[k * n + p], b = g[k * n + q];
        g[k * n + p] = c * a - s * b;
        g[k * n + q] = s * a + c * b;
    }
}

static int descending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

void ref_singular_values(int64_t rows, int64_t cols, const double *w, double *sigma)
{
    const bool is_tall = rows > cols;
    const int64_t n = is_tall ? cols : rows, m = is_tall ? rows : cols;
    double *g = calloc((size_t)(n * n), sizeof *g);
    for (int64_t i = 0; i < n * n; i++)
        for (int64_t k = 0; k < m; k++)
            g[i] += is_tall ? w[k * cols + i / n] * w[k * cols + i % n]
                            : w[i / n * cols + k] * w[i % n * cols + k];
    for (int sweep = 0; sweep < 60; sweep++)
        for (int64_t p = 0; p < n; p++)
            for (int64_t q = p + 1; q < n; q++)
                rotate_gram(g, n, p, q);
    for (int64_t i = 0; i < n; i++)
        sigma[i] = sqrt(fmax(g[i * n + i], 0.0));
    qsort(sigma, (size_t)n, sizeof *sigma, descending);
    free(g);
}

double ref_square_norm(int64_t numel, const double *x)
{
    double sum = 0.0;
    for (int64_t i = 0; i < numel; i++)
        sum += x[i] * x[i];
    return sum;
}

void ref_adamw(const ref_adamw_args *a, int64_t numel, const double *grad, double *param,
               double *exp_avg, double *exp_avg_sq)
{
    const double bias1 = 1.0 - pow(a->beta1, (double)a->step);
    const double bias2 = 1.0 - pow(a->beta2, (double)a->step);
    for (int64_t i = 0; i < numel; i++) {
        const double g = grad[i] * a->clip_factor;
        param[i] *= 1.0 - a->learning_rate * a->weight_decay;
        exp_avg[i] = a->beta1 * exp_avg[i] + (1.0 - a->beta1) * g;
        exp_avg_sq[i] = a->beta2 * exp_avg_sq[i] + (1.0 - a->beta2) * g * g;
        const double m_hat = exp_avg[i] / bias1, v_hat = exp_avg_sq[i] / bias2;
        param[i] -= a->learning_rate * m_hat / (sqrt(v_hat) + a->eps);
    }
}
