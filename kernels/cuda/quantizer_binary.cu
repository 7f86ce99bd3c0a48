/* Quantizers with a sign per dimension, and the entropy of a whole step. */
#include "kernels/quantizer_binary.h"

#include <math.h>

#include "kernels/cuda/quantizer_priv.cuh"

__device__ static inline uint32_t bit_of(tess_bit_order order, int64_t dim, int64_t j)
{
    return UINT32_C(1) << (order == TESS_BITS_MSB_FIRST ? dim - 1 - j : j);
}

__device__ static inline int64_t row_at(const tess_sign_rows &r, int64_t row)
{
    return row * (r.stride > 0 ? r.stride : r.dim);
}

/* NULL where the vector is masked. */
__device__ static inline const float *sign_row(const tess_sign_rows &r, int64_t row)
{
    return r.valid != nullptr && r.valid[row] == 0 ? nullptr : r.x + row_at(r, row);
}

/* ---- signs, a thread per vector ---- */

struct sign_job {
    tess_quantizer_sign_args a;
    tess_edge out;
};

struct sign_op {
    __device__ static inline void one(const sign_job &job, int64_t row)
    {
        const tess_sign_rows &r = job.a.rows;
        const float *x = sign_row(r, row);
        uint32_t index = 0;
        for (int64_t j = 0; j < r.dim; j++) {
            const float q = x == nullptr ? 0.0f : x[j] > 0.0f ? r.magnitude : -r.magnitude;
            index |= q > 0.0f ? bit_of(job.a.order, r.dim, j) : 0;
            if (job.out.data != nullptr)
                tess_edge_put(job.out, row, j, q);
        }
        if (job.a.index != nullptr)
            job.a.index[row] = x == nullptr ? TESS_NO_CODE : index;
    }
};

extern "C" tess_status tess_cuda_quantizer_sign(const tess_quantizer_sign_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_sign_check(a));
    const sign_job job = {*a, tess_edge_of(a->out, a->out_stride, a->rows.dim)};
    return tess_each_launch<sign_op>(job, a->rows.row_numel, s);
}

struct sign_decode_job {
    tess_quantizer_sign_decode_args a;
    tess_edge out;
};

struct sign_decode_op {
    __device__ static inline void one(const sign_decode_job &job, int64_t row)
    {
        const tess_quantizer_sign_decode_args &a = job.a;
        const uint32_t index = a.index[row];
        for (int64_t j = 0; j < a.dim; j++) {
            const bool is_set = (index & bit_of(a.order, a.dim, j)) != 0;
            const float q = index == TESS_NO_CODE ? 0.0f : is_set ? a.magnitude : -a.magnitude;
            tess_edge_put(job.out, row, j, q);
        }
    }
};

extern "C" tess_status tess_cuda_quantizer_sign_decode(const tess_quantizer_sign_decode_args *a,
                                                       tess_stream *s)
{
    TESS_TRY(tess_quantizer_sign_decode_check(a));
    const sign_decode_job job = {*a, tess_edge_of(a->out, a->out_stride, a->dim)};
    return tess_each_launch<sign_decode_op>(job, a->row_numel, s);
}

struct sign_loss_op {
    __device__ static inline void one(const tess_quantizer_sign_loss_args &a, int64_t row)
    {
        const tess_sign_rows &r = a.rows;
        const double slope = 4.0 * a.beta * (double)r.magnitude;
        const float *x = sign_row(r, row);
        double loss = 0.0, entropy = 0.0;
        for (int64_t j = 0; x != nullptr && j < r.dim; j++) {
            const float d = x[j] - (x[j] > 0.0f ? r.magnitude : -r.magnitude);
            loss = loss + (double)d * (double)d;
            if (a.entropy != nullptr)
                entropy = entropy + tess_coin_of(slope * (double)x[j]).entropy;
        }
        if (a.loss != nullptr)
            a.loss[row] = loss;
        if (a.entropy != nullptr)
            a.entropy[row] = entropy;
    }
};

extern "C" tess_status tess_cuda_quantizer_sign_loss(const tess_quantizer_sign_loss_args *a,
                                                     tess_stream *s)
{
    TESS_TRY(tess_quantizer_sign_loss_check(a));
    return tess_each_launch<sign_loss_op>(*a, a->rows.row_numel, s);
}

struct sign_backward_job {
    tess_quantizer_sign_backward_args a;
    tess_edge d_out;
};

__device__ static inline float sign_gradient(const tess_quantizer_sign_backward_args &a, float x)
{
    const float magnitude = a.rows.magnitude;
    const float d = a.commitment * (x - (x > 0.0f ? magnitude : -magnitude));
    if (a.entropy == 0.0)
        return d;
    const double slope = 4.0 * a.beta * (double)magnitude, t = slope * (double)x;
    const tess_coin coin = tess_coin_of(t);
    return d - (float)(a.entropy * slope * t * coin.positive * coin.negative);
}

struct sign_backward_op {
    __device__ static inline void one(const sign_backward_job &job, int64_t at)
    {
        const tess_quantizer_sign_backward_args &a = job.a;
        const int64_t row = at / a.rows.dim, j = at % a.rows.dim;
        const float *x = sign_row(a.rows, row);
        float *d_x = a.d_x + row_at(a.rows, row) + j;
        float d = x != nullptr ? sign_gradient(a, x[j]) : 0.0f;
        if (x != nullptr && job.d_out.data != nullptr)
            d = tess_edge_get(job.d_out, row, j) + d;
        *d_x = a.accumulate ? *d_x + d : d;
    }
};

extern "C" tess_status tess_cuda_quantizer_sign_backward(const tess_quantizer_sign_backward_args *a,
                                                         tess_stream *s)
{
    TESS_TRY(tess_quantizer_sign_backward_check(a));
    const sign_backward_job job = {*a, tess_edge_of(a->d_out, a->d_out_stride, a->rows.dim)};
    return tess_each_launch<sign_backward_op>(job, a->rows.row_numel * a->rows.dim, s);
}

/* ---- the batch entropy ---- */

enum {
    HALF_DIM_MAX = TESS_ENTROPY_DIM_MAX / 2,
    HALF_NUMEL_MAX = 1 << HALF_DIM_MAX,
    TURN_NUMEL = TESS_ENTROPY_ROW_NUMEL /* vectors whose coins are in shared memory */
};

/* Coin j of a vector. */
__device__ static inline tess_coin coin_at(const tess_sign_rows &r, double beta, const float *x,
                                           int64_t j)
{
    return tess_coin_of(4.0 * beta * (double)r.magnitude * (double)x[j]);
}

/* Probability of code c of `bit_numel` bits, the first coin's the most significant. */
__device__ static inline double half_of(const double2 *coin, int bit_numel, int64_t c)
{
    double p = 1.0;
    for (int j = 0; j < bit_numel; j++)
        p = p * ((c >> (bit_numel - 1 - j) & 1) != 0 ? coin[j].x : coin[j].y);
    return p;
}

/* A thread per code; all vectors in order, as a product of two halves ([Note: halves] of
 * kernels/cpu/quantizer_entropy.c). */
__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    pbar_kernel(const tess_quantizer_pbar_args a, double scale)
{
    TESS_SHARED(double2, coin, TURN_NUMEL * TESS_ENTROPY_DIM_MAX); /* positive, negative */
    TESS_SHARED(int, has, TURN_NUMEL);
    const tess_sign_rows &r = a.rows;
    const int dim = (int)r.dim, high = dim / 2, low = dim - high;
    const int64_t code_numel = INT64_C(1) << dim;
    for (int64_t base = (int64_t)blockIdx.x * blockDim.x; base < code_numel;
         base += (int64_t)gridDim.x * blockDim.x) {
        const int64_t c = base + threadIdx.x;
        double sum = 0.0;
        for (int64_t first = 0; first < r.row_numel; first += TURN_NUMEL) {
            const int turn = (int)TESS_MIN(r.row_numel - first, (int64_t)TURN_NUMEL);
            for (int i = (int)threadIdx.x; i < turn * dim; i += (int)blockDim.x) {
                const int row = i / dim, j = i % dim;
                const float *x = sign_row(r, first + row);
                if (j == 0)
                    has[row] = x != nullptr ? 1 : 0;
                if (x == nullptr)
                    continue;
                const tess_coin made = coin_at(r, a.beta, x, j);
                coin[row * dim + j].x = made.positive;
                coin[row * dim + j].y = made.negative;
            }
            __syncthreads();
            for (int row = 0; row < turn; row++)
                if (has[row] != 0)
                    sum = sum +
                          half_of(coin + row * dim, high, c >> low) *
                              half_of(coin + row * dim + high, low, c & ((INT64_C(1) << low) - 1));
            __syncthreads(); /* the coins are used up */
        }
        if (c < code_numel && fabs(sum) < INFINITY)
            a.sum[c] += (int64_t)llrint(sum * scale);
    }
}

extern "C" tess_status tess_cuda_quantizer_pbar(const tess_quantizer_pbar_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_pbar_check(a));
    const tess_quantizer_pbar_args args = *a;
    TESS_LAUNCH(pbar_kernel, tess_grid(INT64_C(1) << a->rows.dim, TESS_BLOCK_THREADS),
                TESS_BLOCK_THREADS, 0, s, args, ldexp(1.0, a->exponent));
    return TESS_OK;
}

/* One block; its first thread subtracts in ascending order. */
__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    batch_entropy_kernel(const tess_quantizer_batch_entropy_args a, double unit)
{
    TESS_SHARED(double, tile, TESS_BLOCK_THREADS);
    const double numel = (double)a.valid_numel;
    const int64_t code_numel = INT64_C(1) << a.dim;
    double loss = 0.0;
    for (int64_t first = 0; first < code_numel; first += TESS_BLOCK_THREADS) {
        const int64_t c = first + threadIdx.x;
        if (c < code_numel) {
            const double p = (double)a.sum[c] * unit / numel;
            const bool is_below = p <= 0.0 || p < a.least;
            double log = 0.0;
            if (!is_below || a.least > 0.0)
                log = tess_log_f64(is_below ? a.least : p);
            tile[threadIdx.x] = p * log;
            a.slope[c] = -(is_below ? log : log + 1.0) / numel;
        }
        __syncthreads();
        for (int k = 0; threadIdx.x == 0 && k < TESS_MIN(code_numel - first, (int64_t)blockDim.x);
             k++)
            loss = loss - tile[k];
        __syncthreads(); /* the tile is used up */
    }
    if (threadIdx.x == 0)
        *a.loss = loss;
}

extern "C" tess_status tess_cuda_quantizer_batch_entropy(const tess_quantizer_batch_entropy_args *a,
                                                         tess_stream *s)
{
    TESS_TRY(tess_quantizer_batch_entropy_check(a));
    const tess_quantizer_batch_entropy_args args = *a;
    TESS_LAUNCH(batch_entropy_kernel, 1, TESS_BLOCK_THREADS, 0, s, args, ldexp(1.0, -a->exponent));
    return TESS_OK;
}

/* Both halves of a vector's probabilities; then each times what the slopes make of it. */
struct halves {
    double2 *coin;
    double *a, *b;
};

/* b[c] (sum over codes of the high half, ascending, of a slope), a[c] (slope . b). */
__device__ static inline void weigh(const double *slope, const halves &h, int64_t a_numel,
                                    int64_t b_numel, double *weighted)
{
    const int lane = (int)threadIdx.x % TESS_ROW_LANES;
    for (int64_t c = threadIdx.x; c < b_numel; c += blockDim.x) {
        double sum = 0.0;
        for (int64_t i = 0; i < a_numel; i++)
            sum = sum + h.a[i] * slope[i * b_numel + c];
        weighted[HALF_NUMEL_MAX + c] = h.b[c] * sum;
    }
    for (int64_t first = 0; first < a_numel; first += TESS_LANE_ROWS) {
        const int64_t i = first + (int)threadIdx.x / TESS_ROW_LANES;
        double sum = 0.0;
        for (int64_t c = lane; i < a_numel && c < b_numel; c += TESS_ROW_LANES)
            sum = sum + slope[i * b_numel + c] * h.b[c];
        sum = tess_lanes_sum(sum);
        if (lane == 0 && i < a_numel)
            weighted[i] = h.a[i] * sum;
    }
}

/* (1 - p) S1 - p S0 of bit j, S1 and S0 the sums over codes with the bit set and not. */
__device__ static inline double bit_gradient(double2 coin, int bit_numel, int j,
                                             const double *weighted)
{
    double off = 0.0, on = 0.0;
    for (int64_t c = 0; c < INT64_C(1) << bit_numel; c++) {
        if ((c >> (bit_numel - 1 - j) & 1) != 0)
            on = on + weighted[c];
        else
            off = off + weighted[c];
    }
    return coin.y * on - coin.x * off;
}

/* A block per vector. */
__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    batch_entropy_backward_kernel(const tess_quantizer_batch_entropy_backward_args a, double scale)
{
    TESS_SHARED(double2, coin, TESS_ENTROPY_DIM_MAX);
    TESS_SHARED(double, half, 2 * HALF_NUMEL_MAX);
    TESS_SHARED(double, weighted, 2 * HALF_NUMEL_MAX);
    const tess_sign_rows &r = a.rows;
    const int dim = (int)r.dim, high = dim / 2, low = dim - high, own = (int)threadIdx.x;
    const int64_t a_numel = INT64_C(1) << high, b_numel = INT64_C(1) << low;
    const halves h = {coin, half, half + HALF_NUMEL_MAX};
    for (int64_t row = blockIdx.x; row < r.row_numel; row += gridDim.x) {
        const float *x = sign_row(r, row);
        if (x == nullptr)
            continue;
        if (own < dim) {
            const tess_coin made = coin_at(r, a.beta, x, own);
            coin[own].x = made.positive;
            coin[own].y = made.negative;
        }
        __syncthreads();
        for (int64_t c = own; c < a_numel; c += blockDim.x)
            h.a[c] = half_of(coin, high, c);
        for (int64_t c = own; c < b_numel; c += blockDim.x)
            h.b[c] = half_of(coin + high, low, c);
        __syncthreads();
        weigh(a.slope, h, a_numel, b_numel, weighted);
        __syncthreads();
        if (own < dim) {
            const bool is_high = own < high;
            const double d =
                is_high ? bit_gradient(coin[own], high, own, weighted)
                        : bit_gradient(coin[own], low, own - high, weighted + HALF_NUMEL_MAX);
            float *d_x = a.d_x + row_at(r, row) + own;
            *d_x = *d_x + (float)(scale * d);
        }
    }
}

extern "C" tess_status
tess_cuda_quantizer_batch_entropy_backward(const tess_quantizer_batch_entropy_backward_args *a,
                                           tess_stream *s)
{
    TESS_TRY(tess_quantizer_batch_entropy_backward_check(a));
    const tess_quantizer_batch_entropy_backward_args args = *a;
    const double scale = a->weight * 4.0 * a->beta * (double)a->rows.magnitude;
    if (a->rows.row_numel > 0)
        TESS_LAUNCH(batch_entropy_backward_kernel, tess_grid(a->rows.row_numel, 1),
                    TESS_BLOCK_THREADS, 0, s, args, scale);
    return TESS_OK;
}
