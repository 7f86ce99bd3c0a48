/* Small kernels around the library's attention: offsets of documents, statistics transposed. */
#include "kernels/cuda/common_priv.cuh"

#include "kernels/cuda/sdpa_priv.h"

enum { THREAD_NUMEL = 256, TILE = 32, TILE_ROWS = THREAD_NUMEL / TILE };

/* One block: counts, a prefix sum over the threads, first tokens, then what the library reads.
 * `stride`: places of a chunk. */
static __global__ void __launch_bounds__(THREAD_NUMEL)
    find_documents(tess_sdpa_offsets_args a, int64_t stride)
{
    TESS_DYN_SHARED(int32_t, shared);
    int32_t *count = shared;                /* [THREAD_NUMEL] documents up to this thread's end */
    int32_t *start = shared + THREAD_NUMEL; /* [document_max + 1] */
    const int thread = (int)threadIdx.x;
    const int64_t share = (a.token_numel + THREAD_NUMEL - 1) / THREAD_NUMEL;
    const int64_t first = thread * share;
    const int64_t end = first + share < a.token_numel ? first + share : a.token_numel;
    int32_t found = 0;
    for (int64_t i = first; i < end; i++)
        found += a.doc_start[i] == (int32_t)i ? 1 : 0;
    count[thread] = found;
    __syncthreads();
    for (int step = 1; step < THREAD_NUMEL; step *= 2) {
        const int32_t before = thread >= step ? count[thread - step] : 0;
        __syncthreads();
        count[thread] += before;
        __syncthreads();
    }
    const int32_t document_numel = count[THREAD_NUMEL - 1];
    for (int64_t j = document_numel + thread; j <= a.document_max; j += THREAD_NUMEL)
        start[j] = (int32_t)a.token_numel;
    int64_t document = count[thread] - found;
    for (int64_t i = first; i < end && document <= a.document_max; i++) {
        if (a.doc_start[i] == (int32_t)i)
            start[document++] = (int32_t)i;
    }
    __syncthreads();
    for (int64_t place = thread; place < a.document_max / a.chunk_numel * stride;
         place += THREAD_NUMEL) {
        const int64_t in_chunk = place % stride;
        const int64_t j = place / stride * a.chunk_numel + in_chunk;
        if (in_chunk > a.chunk_numel)
            continue;
        if (in_chunk < a.chunk_numel)
            a.length[place] = start[j + 1] - start[j];
#pragma unroll
        for (int k = 0; k < TESS_SDPA_SCALE_MAX; k++) {
            if (k < a.scaled_numel)
                a.offset[k][place] = start[j] * a.scale[k];
        }
    }
}

/* Tiles of 32 x 32, read and written along rows. */
static __global__ void __launch_bounds__(THREAD_NUMEL)
    transpose(const float *src, int64_t rows, int64_t cols, float *dst)
{
    TESS_DYN_SHARED(float, tile); /* [TILE][TILE + 1]: columns lie in different banks */
    const int x = (int)threadIdx.x % TILE, y = (int)threadIdx.x / TILE;
    const int64_t col_tiles = (cols + TILE - 1) / TILE;
    const int64_t row_tiles = (rows + TILE - 1) / TILE;
    for (int64_t t = blockIdx.x; t < col_tiles * row_tiles; t += gridDim.x) {
        const int64_t row = t / col_tiles * TILE, col = t % col_tiles * TILE;
        for (int i = y; i < TILE; i += TILE_ROWS) {
            if (row + i < rows && col + x < cols)
                tile[i * (TILE + 1) + x] = src[(row + i) * cols + col + x];
        }
        __syncthreads();
        for (int i = y; i < TILE; i += TILE_ROWS) {
            if (col + i < cols && row + x < rows)
                dst[(col + i) * rows + row + x] = tile[x * (TILE + 1) + i];
        }
        __syncthreads();
    }
}

extern "C" tess_status tess_cuda_sdpa_offsets(const tess_sdpa_offsets_args *a, tess_stream *s)
{
    TESS_CHECK(a->document_max >= 1 && a->document_max <= TESS_SDPA_DOCUMENT_MAX, TESS_E_ARG,
               "attention: a plan for %lld documents, expected 1 to %d", (long long)a->document_max,
               (int)TESS_SDPA_DOCUMENT_MAX);
    TESS_CHECK(a->chunk_numel >= 1 && a->document_max % a->chunk_numel == 0, TESS_E_ARG,
               "attention: chunks of %lld documents, expected a divisor of %lld",
               (long long)a->chunk_numel, (long long)a->document_max);
    const size_t shared_nbytes = (size_t)(THREAD_NUMEL + a->document_max + 1) * sizeof(int32_t);
    TESS_LAUNCH(find_documents, 1, THREAD_NUMEL, shared_nbytes, s, *a,
                tess_sdpa_place_stride(a->chunk_numel));
    return TESS_OK;
}

extern "C" tess_status tess_cuda_sdpa_transpose(const float *src, int64_t rows, int64_t cols,
                                                float *dst, tess_stream *s)
{
    const int64_t tiles = ((rows + TILE - 1) / TILE) * ((cols + TILE - 1) / TILE);
    const size_t shared_nbytes = TILE * (TILE + 1) * sizeof(float);
    if (tiles == 0)
        return TESS_OK;
    TESS_LAUNCH(transpose, tess_grid(tiles, 1), THREAD_NUMEL, shared_nbytes, s, src, rows, cols,
                dst);
    return TESS_OK;
}
