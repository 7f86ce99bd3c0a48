#include "kernels/cuda/squares_priv.cuh"

/* dst = a + b: chunks of f32. */
struct fold_op {
    enum { NUMEL = tess_chunk<false>::NUMEL };
    template <bool IS_WHOLE>
    __device__ static inline void chunk(const tess_fold_args &f, int64_t i, int n)
    {
        float a[NUMEL], b[NUMEL];
        tess_load<false, IS_WHOLE, NUMEL>(f.a, i, n, a);
        tess_load<false, IS_WHOLE, NUMEL>(f.b, i, n, b);
#pragma unroll
        for (int k = 0; k < NUMEL; k++)
            a[k] = a[k] + b[k];
        tess_store<false, IS_WHOLE, NUMEL>(f.dst, i, n, a);
    }
};

extern "C" tess_status tess_cuda_fold(const tess_fold_args *a, tess_stream *s)
{
    TESS_TRY(tess_fold_check(a));
    TESS_TRY(tess_chunks_launch<fold_op>(*a, a->numel, tess_is_aligned(a->a, a->b, a->dst), s));
    return TESS_OK;
}

/*
 * A thread keeps the counter of an element. Pieces are short where there are many, so that what
 * takes time is waiting for them: FOLD_AHEAD are read before the first of them is added.
 */
enum { FOLD_THREADS = 128, FOLD_AHEAD = 8 };

__global__ static void __launch_bounds__(FOLD_THREADS) fold_pieces_kernel(tess_fold_pieces_args f)
{
    const int64_t end_idx = f.first_idx + f.piece_numel;
    for (int64_t i = (int64_t)blockIdx.x * FOLD_THREADS + threadIdx.x; i < f.numel;
         i += (int64_t)gridDim.x * FOLD_THREADS) {
        float level[TESS_FOLD_LEVEL_MAX];
        for (int l = 0; l < f.level_numel; l++)
            if (f.first_idx >> l & 1)
                level[l] = f.levels[l * f.level_stride_numel + i];
        for (int64_t first = 0; first < f.piece_numel; first += FOLD_AHEAD) {
            float x[FOLD_AHEAD];
#pragma unroll
            for (int k = 0; k < FOLD_AHEAD; k++)
                x[k] = first + k < f.piece_numel ? tess_fold_piece(&f, first + k)[i] : 0.0f;
#pragma unroll
            for (int k = 0; k < FOLD_AHEAD; k++) {
                if (first + k >= f.piece_numel)
                    break;
                const int64_t m = f.first_idx + first + k;
                int l = 0;
                for (; m >> l & 1; l++)
                    x[k] = level[l] + x[k];
                level[l] = x[k];
            }
        }
        for (int l = 0; l < f.level_numel; l++)
            if (end_idx >> l & 1)
                f.levels[l * f.level_stride_numel + i] = level[l];
    }
}

extern "C" tess_status tess_cuda_fold_pieces(const tess_fold_pieces_args *a, tess_stream *s)
{
    TESS_TRY(tess_fold_pieces_check(a));
    if (a->numel > 0 && a->piece_numel > 0)
        TESS_LAUNCH(fold_pieces_kernel, tess_grid(a->numel, FOLD_THREADS), FOLD_THREADS, 0, s, *a);
    return TESS_OK;
}

struct square_norm_values {
    const float *x;
    __device__ inline float at(int64_t i) const { return x[i]; }
};

extern "C" tess_status tess_cuda_square_norm(const tess_square_norm_args *a, tess_stream *s)
{
    TESS_TRY(tess_square_norm_check(a));
    const square_norm_values values = {a->x};
    return tess_squares_launch(values, a->numel, a->acc, a->nonfinite_numel, s);
}

/* One block: all threads load, the first adds in ascending order. */
enum { SUM_THREADS = 256 };

__global__ static void __launch_bounds__(SUM_THREADS)
    sum_kernel(const double *x, int64_t numel, double *out)
{
    TESS_SHARED(double, tile, 2 * SUM_THREADS);
    double sum = 0.0;
    int half = 0;
    for (int64_t first = 0; first < numel; first += SUM_THREADS) {
        double *const part = tile + half * SUM_THREADS;
        const int n = (int)TESS_MIN(numel - first, (int64_t)SUM_THREADS);
        if ((int)threadIdx.x < n)
            part[threadIdx.x] = x[first + threadIdx.x];
        __syncthreads();
        if (threadIdx.x == 0)
            for (int i = 0; i < n; i++)
                sum = sum + part[i];
        half = 1 - half;
    }
    if (threadIdx.x == 0)
        *out = sum;
}

extern "C" tess_status tess_cuda_sum(const tess_sum_args *a, tess_stream *s)
{
    TESS_TRY(tess_sum_check(a));
    TESS_LAUNCH(sum_kernel, 1, SUM_THREADS, 0, s, a->x, a->numel, a->out);
    return TESS_OK;
}

__global__ static void __launch_bounds__(TESS_BLOCK_THREADS) mix_kernel(const tess_mix_args a)
{
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < a.row_numel; i += stride) {
        double sum = a.weight[0] * a.x[i];
        for (int t = 1; t < a.term_numel; t++)
            sum = sum + a.weight[t] * a.x[t * a.row_numel + i];
        a.out[i] = sum;
    }
}

extern "C" tess_status tess_cuda_mix(const tess_mix_args *a, tess_stream *s)
{
    TESS_TRY(tess_mix_check(a));
    const tess_mix_args args = *a;
    if (a->row_numel > 0)
        TESS_LAUNCH(mix_kernel, tess_grid(a->row_numel, TESS_BLOCK_THREADS), TESS_BLOCK_THREADS, 0,
                    s, args);
    return TESS_OK;
}

__global__ static void exact_add_kernel(const double *x, int64_t *acc, int64_t *nonfinite_numel)
{
    int limb_idx = 0;
    int64_t piece[TESS_EXACT_PIECE_NUMEL];
    if (!tess_exact_split(*x, &limb_idx, piece)) {
        ++*nonfinite_numel;
        return;
    }
    for (int i = 0; i < TESS_EXACT_PIECE_NUMEL; i++)
        acc[limb_idx + i] += piece[i];
}

extern "C" tess_status tess_cuda_exact_add(const tess_exact_add_args *a, tess_stream *s)
{
    TESS_TRY(tess_exact_add_check(a));
    TESS_LAUNCH(exact_add_kernel, 1, 1, 0, s, a->x, a->acc->limb, a->nonfinite_numel);
    return TESS_OK;
}
