#include "kernels/cuda/rows_priv.cuh"
#include "kernels/cuda/sigmoid_priv.cuh"

/* silu(g) = g / (1 + exp(-g)), times up, in place of g. */
template <bool IS_TAME, int N> __device__ static inline void swiglu(float g[N], const float up[N])
{
#pragma unroll
    for (int k = 0; k < N; k++)
        g[k] = tess_quotient<IS_TAME>(g[k], tess_sigmoid_divisor<IS_TAME>(g[k])) * up[k];
}

template <bool IS_BF16> struct swiglu_forward_op {
    enum { NUMEL = tess_chunk<IS_BF16>::NUMEL };
    template <bool IS_WHOLE>
    __device__ static inline void chunk(const tess_swiglu_args &a, int64_t i, int n)
    {
        chunk_at<IS_WHOLE>(a, i, n, 0);
    }
    template <bool IS_WHOLE>
    __device__ static inline void chunk_at(const tess_swiglu_args &a, int64_t i, int n,
                                           int64_t shift)
    {
        float g[NUMEL], up[NUMEL];
        tess_load<IS_BF16, IS_WHOLE, NUMEL>(a.gate.data, i, n, g);
        tess_load<IS_BF16, IS_WHOLE, NUMEL>(a.up.data, i, n, up);
        if (tess_are_divisible<NUMEL>(g))
            swiglu<true, NUMEL>(g, up);
        else
            swiglu<false, NUMEL>(g, up);
        tess_store<IS_BF16, IS_WHOLE, NUMEL>(a.out.data, i + shift, n, g);
    }
};

extern "C" tess_status tess_cuda_swiglu_forward(const tess_swiglu_args *a, tess_stream *s)
{
    TESS_TRY(tess_swiglu_check(a));
    const tess_layout layout = {a->gate.numel, a->dim, a->out_stride};
    const bool is_aligned = tess_is_aligned(a->gate.data, a->up.data, a->out.data);
    if (a->gate.dt == TESS_BF16)
        TESS_TRY(tess_rows_launch<swiglu_forward_op<true>>(*a, layout, is_aligned, s));
    else
        TESS_TRY(tess_rows_launch<swiglu_forward_op<false>>(*a, layout, is_aligned, s));
    return TESS_OK;
}

/* Gradients in place of g and up. */
template <bool IS_TAME, int N>
__device__ static inline void swiglu_backward(float g[N], float up[N], const float d[N])
{
#pragma unroll
    for (int k = 0; k < N; k++) {
        const float s = tess_reciprocal<IS_TAME>(tess_sigmoid_divisor<IS_TAME>(g[k]));
        const float silu = g[k] * s;
        g[k] = d[k] * up[k] * (s + silu * (1.0f - s));
        up[k] = d[k] * silu;
    }
}

template <bool IS_BF16> struct swiglu_backward_op {
    enum { NUMEL = tess_chunk<IS_BF16>::NUMEL };
    template <bool IS_WHOLE>
    __device__ static inline void chunk(const tess_swiglu_backward_args &a, int64_t i, int n)
    {
        chunk_at<IS_WHOLE>(a, i, n, 0);
    }
    template <bool IS_WHOLE>
    __device__ static inline void chunk_at(const tess_swiglu_backward_args &a, int64_t i, int n,
                                           int64_t shift)
    {
        float g[NUMEL], up[NUMEL], d[NUMEL];
        tess_load<IS_BF16, IS_WHOLE, NUMEL>(a.gate.data, i, n, g);
        tess_load<IS_BF16, IS_WHOLE, NUMEL>(a.up.data, i, n, up);
        tess_load<IS_BF16, IS_WHOLE, NUMEL>(a.d_out.data, i, n, d);
        if (tess_are_tame<NUMEL>(g))
            swiglu_backward<true, NUMEL>(g, up, d);
        else
            swiglu_backward<false, NUMEL>(g, up, d);
        tess_store<IS_BF16, IS_WHOLE, NUMEL>(a.d_up.data, i + shift, n, up);
        tess_store<IS_BF16, IS_WHOLE, NUMEL>(a.d_gate.data, i + shift, n, g);
    }
};

extern "C" tess_status tess_cuda_swiglu_backward(const tess_swiglu_backward_args *a, tess_stream *s)
{
    TESS_TRY(tess_swiglu_backward_check(a));
    const tess_layout layout = {a->gate.numel, a->dim, a->d_stride};
    const bool is_aligned =
        tess_is_aligned(a->gate.data, a->up.data, a->d_out.data, a->d_gate.data, a->d_up.data);
    if (a->gate.dt == TESS_BF16)
        TESS_TRY(tess_rows_launch<swiglu_backward_op<true>>(*a, layout, is_aligned, s));
    else
        TESS_TRY(tess_rows_launch<swiglu_backward_op<false>>(*a, layout, is_aligned, s));
    return TESS_OK;
}

template <bool IS_BF16> struct relu_op {
    enum { NUMEL = tess_chunk<IS_BF16>::NUMEL };
    template <bool IS_WHOLE>
    __device__ static inline void chunk(const tess_relu_args &args, int64_t i, int n)
    {
        float x[NUMEL], gate[NUMEL];
        tess_load<IS_BF16, IS_WHOLE, NUMEL>(args.x.data, i, n, x);
        tess_load<IS_BF16, IS_WHOLE, NUMEL>(args.gate.data, i, n, gate);
#pragma unroll
        for (int k = 0; k < NUMEL; k++)
            x[k] = gate[k] <= 0.0f ? 0.0f : x[k];
        tess_store<IS_BF16, IS_WHOLE, NUMEL>(args.out.data, i, n, x);
    }
};

extern "C" tess_status tess_cuda_relu(const tess_relu_args *a, tess_stream *s)
{
    TESS_TRY(tess_relu_check(a));
    const bool is_aligned = tess_is_aligned(a->x.data, a->gate.data, a->out.data);
    if (a->out.dt == TESS_BF16)
        return tess_chunks_launch<relu_op<true>>(*a, a->out.numel, is_aligned, s);
    return tess_chunks_launch<relu_op<false>>(*a, a->out.numel, is_aligned, s);
}

template <bool IS_BF16> struct add_op {
    enum { NUMEL = tess_chunk<IS_BF16>::NUMEL };
    template <bool IS_WHOLE>
    __device__ static inline void chunk(const tess_add_args &args, int64_t i, int n)
    {
        float a[NUMEL], b[NUMEL];
        tess_load<IS_BF16, IS_WHOLE, NUMEL>(args.a.data, i, n, a);
        tess_load<IS_BF16, IS_WHOLE, NUMEL>(args.b.data, i, n, b);
#pragma unroll
        for (int k = 0; k < NUMEL; k++)
            a[k] = a[k] + b[k];
        tess_store<IS_BF16, IS_WHOLE, NUMEL>(args.out.data, i, n, a);
    }
};

extern "C" tess_status tess_cuda_add(const tess_add_args *a, tess_stream *s)
{
    TESS_TRY(tess_add_check(a));
    const bool is_aligned = tess_is_aligned(a->a.data, a->b.data, a->out.data);
    if (a->out.dt == TESS_BF16)
        TESS_TRY(tess_chunks_launch<add_op<true>>(*a, a->out.numel, is_aligned, s));
    else
        TESS_TRY(tess_chunks_launch<add_op<false>>(*a, a->out.numel, is_aligned, s));
    return TESS_OK;
}

/* A block per row, so that no thread divides by the length of the bias. */
template <bool IS_BF16, bool IS_BIAS_BF16, bool IS_WHOLE, int N>
__device__ static inline void add_bias_chunk(void *x, const void *bias, int64_t first, int64_t i,
                                             int n)
{
    float v[N], b[N];
    tess_load<IS_BF16, IS_WHOLE, N>(x, first + i, n, v);
    tess_load<IS_BIAS_BF16, IS_WHOLE, N>(bias, i, n, b);
#pragma unroll
    for (int k = 0; k < N; k++)
        v[k] = v[k] + b[k];
    tess_store<IS_BF16, IS_WHOLE, N>(x, first + i, n, v);
}

template <bool IS_BF16, bool IS_BIAS_BF16>
__global__ static void __launch_bounds__(TESS_BLOCK_THREADS)
    add_bias_kernel(void *x, const void *bias, int64_t row_numel, int64_t dim, bool is_aligned)
{
    constexpr int N = tess_chunk<IS_BF16>::NUMEL;
    for (int64_t row = blockIdx.x; row < row_numel; row += gridDim.x) {
        for (int64_t i = (int64_t)threadIdx.x * N; i < dim; i += (int64_t)blockDim.x * N) {
            if (is_aligned)
                add_bias_chunk<IS_BF16, IS_BIAS_BF16, true, N>(x, bias, row * dim, i, N);
            else
                add_bias_chunk<IS_BF16, IS_BIAS_BF16, false, N>(x, bias, row * dim, i,
                                                                (int)TESS_MIN(dim - i, (int64_t)N));
        }
    }
}

extern "C" tess_status tess_cuda_add_bias(const tess_add_bias_args *a, tess_stream *s)
{
    TESS_TRY(tess_add_bias_check(a));
    const int64_t dim = a->bias.numel, row_numel = a->x.numel / dim;
    if (row_numel == 0)
        return TESS_OK;
    const bool is_bf16 = a->x.dt == TESS_BF16, is_bias_bf16 = a->bias.dt == TESS_BF16;
    const bool is_aligned =
        tess_is_aligned(a->x.data, a->bias.data) && dim % (is_bf16 ? 8 : 4) == 0;
    const unsigned grid = tess_grid(row_numel, 1);
#define ADD_BIAS(IS_BF16, IS_BIAS_BF16)                                                            \
    TESS_LAUNCH((add_bias_kernel<IS_BF16, IS_BIAS_BF16>), grid, TESS_BLOCK_THREADS, 0, s,          \
                a->x.data, a->bias.data, row_numel, dim, is_aligned)
    if (is_bf16 && is_bias_bf16)
        ADD_BIAS(true, true);
    else if (is_bf16)
        ADD_BIAS(true, false);
    else if (is_bias_bf16)
        ADD_BIAS(false, true);
    else
        ADD_BIAS(false, false);
#undef ADD_BIAS
    return TESS_OK;
}

template <bool IS_BF16> struct column_sum {
    const void *x;
    int64_t dim, i;
    float sum;
    template <int N> __device__ inline void add(int64_t row)
    {
        float v[N];
#pragma unroll
        for (int k = 0; k < N; k++)
            v[k] = tess_get<IS_BF16>(x, (row + k) * dim + i);
#pragma unroll
        for (int k = 0; k < N; k++)
            sum = sum + v[k];
    }
};

/* A thread per column and chunk of rows, rows ascending. */
template <bool IS_BF16>
__global__ static void __launch_bounds__(TESS_BLOCK_THREADS, TESS_COLUMN_BLOCKS)
    sum_rows_kernel(const void *x, int64_t row_numel, int64_t dim, float *work)
{
    int64_t lo = 0, hi = 0;
    tess_row_chunk(row_numel, (int)blockIdx.y, &lo, &hi);
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < dim; i += stride) {
        column_sum<IS_BF16> column = {x, dim, i, 0.0f};
        tess_rows_add<TESS_ROWS_AHEAD>(column, lo, hi);
        work[blockIdx.y * dim + i] = column.sum;
    }
}

extern "C" tess_status tess_cuda_sum_rows(const tess_sum_rows_args *a, tess_stream *s)
{
    TESS_TRY(tess_sum_rows_check(a));
    const dim3 grid(tess_grid(a->dim, TESS_BLOCK_THREADS), TESS_ROW_CHUNK_NUMEL);
    if (a->x.dt == TESS_BF16)
        TESS_LAUNCH(sum_rows_kernel<true>, grid, TESS_BLOCK_THREADS, 0, s, a->x.data, a->row_numel,
                    a->dim, a->work);
    else
        TESS_LAUNCH(sum_rows_kernel<false>, grid, TESS_BLOCK_THREADS, 0, s, a->x.data, a->row_numel,
                    a->dim, a->work);
    return tess_cuda_row_chunks_add(a->work, a->dim, a->out, s);
}

struct dropout_job {
    const void *x, *add; /* add NULL: none */
    void *out;
    float keep;
    uint32_t threshold;
    tess_rng rng;
    uint64_t first_idx;
};

/* Words of elements first .. first+3: their quad, and the next where they cross into it. */
__device__ static inline void draw(const tess_rng &rng, uint64_t first, uint32_t word[4])
{
    uint32_t quad[8];
    const int phase = (int)(first % 4);
    tess_rng_quad(&rng, first / 4, quad);
    if (phase != 0)
        tess_rng_quad(&rng, first / 4 + 1, quad + 4);
#pragma unroll
    for (int k = 0; k < 4; k++)
        word[k] = phase == 0   ? quad[k]
                  : phase == 1 ? quad[k + 1]
                  : phase == 2 ? quad[k + 2]
                               : quad[k + 3];
}

template <bool IS_X_BF16, bool IS_ADD_BF16, bool IS_OUT_BF16> struct dropout_op {
    enum { NUMEL = 4 };
    template <bool IS_WHOLE>
    __device__ static inline void chunk(const dropout_job &a, int64_t i, int n)
    {
        float v[NUMEL], add[NUMEL];
        uint32_t word[NUMEL];
        tess_load<IS_X_BF16, IS_WHOLE, NUMEL>(a.x, i, n, v);
        if (a.add != nullptr)
            tess_load<IS_ADD_BF16, IS_WHOLE, NUMEL>(a.add, i, n, add);
        draw(a.rng, a.first_idx + (uint64_t)i, word);
#pragma unroll
        for (int k = 0; k < NUMEL; k++) {
            v[k] = word[k] >= a.threshold ? v[k] / a.keep : 0.0f;
            if (a.add != nullptr)
                v[k] = v[k] + add[k];
        }
        tess_store<IS_OUT_BF16, IS_WHOLE, NUMEL>(a.out, i, n, v);
    }
};

template <bool IS_X_BF16, bool IS_ADD_BF16>
static tess_status dropout_launch(const dropout_job &job, const tess_dropout_args *a,
                                  tess_stream *s)
{
    using op_bf16 = dropout_op<IS_X_BF16, IS_ADD_BF16, true>;
    using op_f32 = dropout_op<IS_X_BF16, IS_ADD_BF16, false>;
    const bool is_aligned = tess_is_aligned(job.x, job.add, job.out);
    if (a->out.dt == TESS_BF16)
        TESS_TRY(tess_chunks_launch<op_bf16>(job, a->x.numel, is_aligned, s));
    else
        TESS_TRY(tess_chunks_launch<op_f32>(job, a->x.numel, is_aligned, s));
    return TESS_OK;
}

extern "C" tess_status tess_cuda_dropout(const tess_dropout_args *a, tess_stream *s)
{
    TESS_TRY(tess_dropout_check(a));
    const bool has_add = a->add.numel > 0;
    const dropout_job job = {a->x.data,
                             has_add ? a->add.data : nullptr,
                             a->out.data,
                             1.0f - a->p,
                             (uint32_t)ceil((double)a->p * 4294967296.0),
                             a->rng,
                             (uint64_t)a->first_idx};
    const bool is_add_bf16 = has_add && a->add.dt == TESS_BF16;
    if (a->x.dt == TESS_BF16)
        return is_add_bf16 ? dropout_launch<true, true>(job, a, s)
                           : dropout_launch<true, false>(job, a, s);
    return is_add_bf16 ? dropout_launch<false, true>(job, a, s)
                       : dropout_launch<false, false>(job, a, s);
}

/* NaN to 0x7fc0 | sign, as the op says. */
template <bool IS_SRC_BF16> struct cast_op {
    enum { NUMEL = 4 };
    template <bool IS_WHOLE>
    __device__ static inline void chunk(const tess_cast_args &a, int64_t i, int n)
    {
        float v[NUMEL];
        tess_load<IS_SRC_BF16, IS_WHOLE, NUMEL>(a.src.data, i, n, v);
        tess_store<!IS_SRC_BF16, IS_WHOLE, NUMEL, true>(a.dst.data, i, n, v);
    }
};

template <bool IS_BF16> struct copy_op {
    enum { NUMEL = tess_chunk<IS_BF16>::NUMEL };
    template <bool IS_WHOLE>
    __device__ static inline void chunk(const tess_cast_args &a, int64_t i, int n)
    {
        tess_copy<IS_BF16, IS_WHOLE, NUMEL>(a.dst.data, i, a.src.data, i, n);
    }
};

extern "C" tess_status tess_cuda_cast(const tess_cast_args *a, tess_stream *s)
{
    TESS_TRY(tess_cast_check(a));
    const bool is_aligned = tess_is_aligned(a->src.data, a->dst.data);
    const bool is_src_bf16 = a->src.dt == TESS_BF16;
    if (a->src.dt == a->dst.dt && is_src_bf16)
        TESS_TRY(tess_chunks_launch<copy_op<true>>(*a, a->src.numel, is_aligned, s));
    else if (a->src.dt == a->dst.dt)
        TESS_TRY(tess_chunks_launch<copy_op<false>>(*a, a->src.numel, is_aligned, s));
    else if (is_src_bf16)
        TESS_TRY(tess_chunks_launch<cast_op<true>>(*a, a->src.numel, is_aligned, s));
    else
        TESS_TRY(tess_chunks_launch<cast_op<false>>(*a, a->src.numel, is_aligned, s));
    return TESS_OK;
}
