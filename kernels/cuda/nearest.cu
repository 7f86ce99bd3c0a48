/*
 * The nearest codes on tensor cores: scores in bf16 pairs, a short list while tiles go by,
 * canonical distances of what is on it.
 *
 * [Note: scores of pairs] Vectors and codes less a common offset are cut into two bf16, v = h + l +
 * e with |l| <= 2^-8 |v| and |e| <= 2^-16 |v|, and x.c is taken as h.h + h.l + l.h: three products
 * at the speed of bf16. What is left out is at most 3.125 2^-16 |x||c|. With S = |x| max|c| +
 * max|c|^2 / 2, sums of 18 terms per instruction, each truncated 2^-23 below the largest of them
 * (twice what the documented rounding would be), add at most 1.1 (4 d + 128) 2^-23 S; rounding of
 * the differences, of |c|^2 / 2 and of the bar is below 8 of the 128. So the window of a list is 2
 * E with E the sum of both, and the code that is canonically nearest is on the list of its slice,
 * whatever order the hardware adds in. Lists are sets: the order in which they fill shows nowhere.
 *
 * [Note: who is searched in full] A vector whose list overflows, or whose bound is not finite, gets
 * the key 0, which no distance has; a second kernel then takes all codes canonically. So it does
 * where more than one key is wanted.
 */
#include <cfloat>

#include "core/arith.h"
#include "kernels/cuda/common_priv.cuh"
#include "kernels/cuda/mma_priv.cuh"

enum {
    THREADS = 256,
    VECTORS = 64, /* of a block's tile; warps of 32 x 32, two by four */
    CODES = 128,
    DEPTH = 32,         /* dimensions of a stage */
    PITCH = DEPTH + 8,  /* bf16 from row to row: eight rows on different banks */
    RESIDENT_NUMEL = 8, /* stages of vectors that stay in shared memory */
    LIST_NUMEL = 32,
    SAMPLE_NUMEL = 1024, /* codes that the offset is the mean of */
    BLOCK_WANTED = 264 /* blocks that fill a device: few vectors are searched in slices of codes */
};

#define NO_RESULT UINT64_C(0) /* the key of a vector that is to be searched in full */

/* ---- pack ---- */

/* Parts of a pack for kernels. */
struct pack_parts {
    unsigned *square_max; /* bits of f32, |c|^2 rounded up; infinity: not all are finite */
    float *offset;        /* [dim] */
    float *half;          /* [padded codes] -|c|^2 / 2; -infinity of padding */
    uint16_t *high, *low; /* [padded codes, padded dim] bf16 */
    int64_t code_numel, dim;
    int64_t padded_numel, padded_dim;
};

static pack_parts parts_of(tess_view pack, int64_t code_numel, int64_t dim)
{
    const tess_cuda_nearest_pack at = tess_cuda_nearest_pack_of(code_numel, dim);
    char *base = static_cast<char *>(pack.data);
    const pack_parts parts = {reinterpret_cast<unsigned *>(base),
                              reinterpret_cast<float *>(base + at.offset),
                              reinterpret_cast<float *>(base + at.half),
                              reinterpret_cast<uint16_t *>(base + at.high),
                              reinterpret_cast<uint16_t *>(base + at.low),
                              code_numel,
                              dim,
                              at.padded_numel,
                              at.padded_dim};
    return parts;
}

/* Any offset will do; the mean of some codes makes the error bound small. */
__global__ static void __launch_bounds__(THREADS) offset_kernel(const float *code, pack_parts p)
{
    const int64_t step = TESS_MAX(p.code_numel / SAMPLE_NUMEL, (int64_t)1);
    if (blockIdx.x == 0 && threadIdx.x == 0)
        *p.square_max = 0;
    for (int64_t j = (int64_t)blockIdx.x * THREADS + threadIdx.x; j < p.dim;
         j += (int64_t)gridDim.x * THREADS) {
        float sum = 0.0f, numel = 0.0f;
        for (int64_t k = 0; k < p.code_numel; k += step) {
            sum = sum + code[k * p.dim + j];
            numel = numel + 1.0f;
        }
        const float mean = numel > 0.0f ? sum / numel : 0.0f;
        p.offset[j] = fabsf(mean) <= FLT_MAX ? mean : 0.0f;
    }
}

/* Both halves of a value: |v - h - l| <= 2^-16 |v|. */
struct bf16_pair {
    uint16_t high, low;
};

__device__ static inline bf16_pair split(float v)
{
    const uint32_t high = tess_pack_bf16(v, 0.0f) & 0xffffu;
    const uint32_t low = tess_pack_bf16(v - tess_f32_of_bits(high << 16), 0.0f) & 0xffffu;
    const bf16_pair pair = {(uint16_t)high, (uint16_t)low};
    return pair;
}

__device__ static inline double warp_sum(double sum)
{
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
        sum = sum + __shfl_xor_sync(0xffffffffu, sum, step);
    return sum;
}

/* The square of a length in f32, not below it; infinity where it is not of use. */
__device__ static inline float square_above(double square)
{
    return square < FLT_MAX / 8 ? (float)(square * (1.0 + 0x1p-20)) + 0x1p-126f : INFINITY;
}

/* A warp per code. */
__global__ static void __launch_bounds__(THREADS) pack_kernel(const float *code, pack_parts p)
{
    const int lane = (int)threadIdx.x % 32;
    const int64_t warp_numel = (int64_t)gridDim.x * (THREADS / 32);
    float most = 0.0f;
    for (int64_t k = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32; k < p.padded_numel;
         k += warp_numel) {
        double square = 0.0;
        for (int64_t j = lane; j < p.padded_dim; j += 32) {
            const bool has = k < p.code_numel && j < p.dim;
            const float v = has ? code[k * p.dim + j] - p.offset[j] : 0.0f;
            const bf16_pair pair = split(v);
            p.high[k * p.padded_dim + j] = pair.high;
            p.low[k * p.padded_dim + j] = pair.low;
            square = square + (double)v * (double)v;
        }
        square = warp_sum(square);
        if (lane == 0)
            p.half[k] = k < p.code_numel ? (float)(-0.5 * square) : -INFINITY;
        most = fmaxf(most, square_above(square));
    }
    if (lane == 0)
        atomicMax(p.square_max, tess_f32_bits(most));
}

extern "C" tess_status tess_cuda_nearest_prepare(const tess_nearest_prepare_args *a, tess_stream *s)
{
    TESS_TRY(tess_nearest_prepare_check(a, tess_cuda_nearest_pack_nbytes(a->code_numel, a->dim)));
    const pack_parts parts = parts_of(a->pack, a->code_numel, a->dim);
    const float *code = static_cast<const float *>(a->code.data);
    TESS_LAUNCH(offset_kernel, tess_grid(a->dim, THREADS), THREADS, 0, s, code, parts);
    if (parts.padded_numel > 0)
        TESS_LAUNCH(pack_kernel, tess_grid(parts.padded_numel, THREADS / 32), THREADS, 0, s, code,
                    parts);
    return TESS_OK;
}

/* ---- canonical distances ---- */

__device__ static inline uint64_t key_of(const float *x, const float *code, int64_t dim,
                                         uint32_t row)
{
    double acc = 0.0;
    for (int64_t j = 0; j < dim; j++) {
        const double t = (double)x[j] - (double)code[j];
        acc = fma(t, t, acc);
    }
    return tess_key_make((float)acc, row);
}

struct search_job {
    const float *x, *code;
    unsigned long long *key;
    pack_parts pack;
    int64_t vector_numel, dim;
    uint32_t first_row;
    int64_t vector_tile_numel, code_tile_numel, slice_numel;
    int stage_numel, slot_numel; /* of a vector; of those in shared memory */
    int best_numel;              /* the full search alone */
};

/* A block per vector; the b-th pass finds the least key above that of the last. */
__global__ static void __launch_bounds__(THREADS) full_kernel(const search_job a)
{
    TESS_SHARED(unsigned long long, least_of, THREADS / 32);
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    for (int64_t v = blockIdx.x; v < a.vector_numel; v += gridDim.x) {
        unsigned long long *key = a.key + v * a.best_numel, last = 0;
        if (a.best_numel == 1 && *key != NO_RESULT)
            continue;
        for (int b = 0; b < a.best_numel; b++) {
            unsigned long long least = TESS_NO_KEY;
            for (int64_t k = threadIdx.x; k < a.pack.code_numel; k += THREADS) {
                const unsigned long long found =
                    key_of(a.x + v * a.dim, a.code + k * a.dim, a.dim, a.first_row + (uint32_t)k);
                if (found > last && found < least)
                    least = found;
            }
#pragma unroll
            for (int step = 16; step > 0; step /= 2) {
                const unsigned long long other = __shfl_xor_sync(0xffffffffu, least, step);
                least = TESS_MIN(least, other);
            }
            if (lane == 0)
                least_of[warp] = least;
            __syncthreads();
            for (int w = 0; w < THREADS / 32; w++)
                least = TESS_MIN(least, least_of[w]);
            if (threadIdx.x == 0)
                key[b] = least;
            last = least;
            __syncthreads(); /* least_of is used up */
        }
    }
}

/* ---- search by scores ---- */

struct list_entry {
    float score;
    uint32_t code;
};

/* What a block knows of its vectors. */
struct shared_parts {
    uint16_t *x;      /* [slot][high, low][VECTORS][PITCH] */
    uint16_t *code;   /* [2][high, low][CODES][PITCH] */
    list_entry *list; /* [VECTORS][LIST_NUMEL] */
    unsigned *best;   /* [VECTORS] ordered bits of the best score */
    int *count;       /* [VECTORS] of the list */
    float *slack;     /* [VECTORS] 2 E; NaN: left to the full search */
    float *square;    /* [VECTORS] |x|^2, not below it */
};

enum {
    X_NUMEL = 2 * VECTORS * PITCH, /* of a slot */
    CODE_NUMEL = 2 * CODES * PITCH
};

static size_t shared_nbytes(int slot_numel)
{
    return ((size_t)slot_numel * X_NUMEL + 2 * CODE_NUMEL) * sizeof(uint16_t) +
           (size_t)VECTORS * (LIST_NUMEL * sizeof(list_entry) + 4 * sizeof(float));
}

__device__ static inline shared_parts shared_of(unsigned char *base, int slot_numel)
{
    shared_parts p;
    p.x = reinterpret_cast<uint16_t *>(base);
    p.code = p.x + slot_numel * X_NUMEL;
    p.list = reinterpret_cast<list_entry *>(p.code + 2 * CODE_NUMEL);
    p.best = reinterpret_cast<unsigned *>(p.list + VECTORS * LIST_NUMEL);
    p.count = reinterpret_cast<int *>(p.best + VECTORS);
    p.slack = reinterpret_cast<float *>(p.count + VECTORS);
    p.square = p.slack + VECTORS;
    return p;
}

/* Scores below it are out, one of `found` being there: canonical distances that round to the same
 * f32 lie within 2^-23 of each other. NaN where the slack is. */
__device__ static inline float bar_of(const shared_parts &p, int row, float found)
{
    const float score = fmaxf(tess_ordered_value(p.best[row]), found), slack = p.slack[row];
    const float distance = p.square[row] - 2.0f * score + slack;
    return score - slack - fmaxf(distance, 0.0f) * 0x1p-23f;
}

/* 2 E of [Note: scores of pairs]; NaN where it bounds nothing. */
__device__ static inline float slack_of(double square, double square_max, int64_t dim)
{
    const double x = sqrt(square), c = sqrt(square_max), d = (double)dim;
    const double scale = x * c + 0.5 * square_max;
    const double error = scale * (0x1.9p-15 + 1.1 * (4.0 * d + 128.0) * 0x1p-23) +
                         d * (1.0 + x + c) * 0x1p-120; /* of what underflows */
    const float slack = (float)(2.0 * error * (1.0 + 0x1p-20)) + 0x1p-126f;
    const bool is_safe = slack < FLT_MAX / 8 && square < FLT_MAX / 8 && square_max < FLT_MAX / 8;
    return is_safe ? slack : NAN;
}

/* Dimensions of stage `stage` of the tile's vectors into a slot. */
__device__ static inline void load_x(const search_job &a, const shared_parts &p, int64_t first,
                                     int stage, int slot)
{
    uint16_t *dst = p.x + slot * X_NUMEL;
    for (int i = (int)threadIdx.x; i < VECTORS * DEPTH; i += THREADS) {
        const int row = i / DEPTH, col = i % DEPTH;
        const int64_t v = first + row, j = (int64_t)stage * DEPTH + col;
        const bool has = v < a.vector_numel && j < a.dim;
        const bf16_pair pair = split(has ? a.x[v * a.dim + j] - a.pack.offset[j] : 0.0f);
        dst[row * PITCH + col] = pair.high;
        dst[(VECTORS + row) * PITCH + col] = pair.low;
    }
}

/* Begin to copy a stage of a tile's codes. */
__device__ static inline void begin_codes(const search_job &a, const shared_parts &p,
                                          int64_t code_tile, int stage, int half)
{
    constexpr int CHUNKS = DEPTH / 8; /* of 16 bytes in a row */
    uint16_t *dst = p.code + half * CODE_NUMEL;
    for (int i = (int)threadIdx.x; i < 2 * CODES * CHUNKS; i += THREADS) {
        const int row = i / CHUNKS, col = i % CHUNKS * 8;
        const uint16_t *plane = row < CODES ? a.pack.high : a.pack.low;
        const int64_t k = code_tile * CODES + row % CODES;
        tess_cp_async_16(dst + row * PITCH + col,
                         plane + k * a.pack.padded_dim + (int64_t)stage * DEPTH + col, true);
    }
    tess_cp_commit();
}

/* Empty lists and the bounds of a tile's vectors, four threads each: those that decided this row of
 * the last tile, and have used its list up before they meet. */
__device__ static inline void begin_vectors(const search_job &a, const shared_parts &p,
                                            int64_t first)
{
    static_assert(THREADS == 4 * VECTORS, "four threads a vector");
    const int row = (int)threadIdx.x / 4;
    const int64_t v = first + row;
    double square = 0.0;
    for (int64_t j = threadIdx.x % 4; v < a.vector_numel && j < a.dim; j += 4) {
        const float d = a.x[v * a.dim + j] - a.pack.offset[j];
        square = square + (double)d * (double)d;
    }
    square = square + __shfl_xor_sync(0xffffffffu, square, 1);
    square = square + __shfl_xor_sync(0xffffffffu, square, 2);
    tess_warp_fence();
    if (threadIdx.x % 4 != 0)
        return;
    p.best[row] = tess_ordered_bits(-INFINITY);
    p.count[row] = 0;
    p.square[row] = square_above(square);
    p.slack[row] = slack_of(square, (double)tess_f32_of_bits(*a.pack.square_max), a.dim);
}

/* Where the warp's 32 x 32 scores lie in the tile, and this thread's in them. */
struct warp_place {
    int row, col; /* first of the warp */
    int lane, g, c;
};

__device__ static inline warp_place place_of(void)
{
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const warp_place place = {warp / 4 * 32, warp % 4 * 32, lane, lane / 4, lane % 4 * 2};
    return place;
}

/* One stage: acc += h.h + h.l + l.h. */
__device__ static inline void multiply(const uint16_t *x, const uint16_t *code,
                                       const warp_place &at, float acc[2][4][4])
{
    const int matrix = at.lane / 8, line = at.lane % 8;
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
        uint32_t xh[2][4], xl[2][4];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint16_t *row =
                x + (at.row + i * 16 + matrix % 2 * 8 + line) * PITCH + k + matrix / 2 * 8;
            tess_ldmatrix(xh[i], row);
            tess_ldmatrix(xl[i], row + VECTORS * PITCH);
        }
#pragma unroll
        for (int pair = 0; pair < 2; pair++) {
            uint32_t ch[4], cl[4];
            const uint16_t *row =
                code + (at.col + pair * 16 + matrix / 2 * 8 + line) * PITCH + k + matrix % 2 * 8;
            tess_ldmatrix(ch, row);
            tess_ldmatrix(cl, row + CODES * PITCH);
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int t = 0; t < 2; t++) {
                    float *d = acc[i][2 * pair + t];
                    tess_mma(d, xh[i], ch + 2 * t);
                    tess_mma(d, xh[i], cl + 2 * t);
                    tess_mma(d, xl[i], ch + 2 * t);
                }
        }
    }
}

__device__ static inline void begin_scores(const search_job &a, int64_t code_tile,
                                           const warp_place &at, float acc[2][4][4])
{
#pragma unroll
    for (int t = 0; t < 4; t++) {
        const float *half = a.pack.half + code_tile * CODES + at.col + t * 8 + at.c;
#pragma unroll
        for (int i = 0; i < 4; i++)
            acc[i / 2][t][i % 2 * 2] = half[0], acc[i / 2][t][i % 2 * 2 + 1] = half[1];
    }
}

/* Codes that reach the bar of their row into the lists; what does not fit is counted all the same.
 * Other warps may raise the best score meanwhile: a bar that does not know it is lower, no more. */
__device__ static inline void append(const shared_parts &p, int64_t code_tile, const warp_place &at,
                                     const float acc[2][4][4])
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = at.row + i * 8 + at.g;
        float most = -INFINITY;
#pragma unroll
        for (int t = 0; t < 8; t++)
            most = fmaxf(most, acc[i / 2][t / 2][i % 2 * 2 + t % 2]);
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        if (!(most > -INFINITY)) /* nothing but padding */
            continue;
        if (at.lane % 4 == 0)
            atomicMax(p.best + row, tess_ordered_bits(most));
        const float bar = bar_of(p, row, most);
#pragma unroll
        for (int t = 0; t < 8; t++) {
            const float score = acc[i / 2][t / 2][i % 2 * 2 + t % 2];
            if (!(score >= bar))
                continue;
            const int n = atomicAdd(p.count + row, 1);
            if (n < LIST_NUMEL)
                p.list[row * LIST_NUMEL + n] = {
                    score, (uint32_t)(code_tile * CODES + at.col + t / 2 * 8 + at.c + t % 2)};
        }
    }
}

/* Lists that are half full drop what fell below the bar, an entry a lane; those that lost codes are
 * given up. */
__device__ static inline void tidy(const shared_parts &p)
{
    static_assert(LIST_NUMEL == 32, "an entry a lane");
    const int lane = (int)threadIdx.x % 32, first = (int)threadIdx.x / 32;
    for (int row = first; row < VECTORS; row += THREADS / 32) {
        const int numel = p.count[row];
        if (numel <= LIST_NUMEL / 2)
            continue;
        const list_entry entry = p.list[row * LIST_NUMEL + lane];
        const bool is_kept = lane < numel && entry.score >= bar_of(p, row, -INFINITY);
        const unsigned kept = __ballot_sync(0xffffffffu, is_kept);
        tess_warp_fence(); /* all have read before anybody writes */
        if (is_kept)
            p.list[row * LIST_NUMEL + __popc(kept & ((1u << lane) - 1u))] = entry;
        if (lane == 0)
            p.count[row] = __popc(kept);
        if (lane == 0 && numel > LIST_NUMEL)
            p.slack[row] = NAN;
    }
}

/* What the lists hold, four threads a vector. */
__device__ static inline void decide(const search_job &a, const shared_parts &p, int64_t first)
{
    const int row = (int)threadIdx.x / 4;
    const int64_t v = first + row;
    const float bar = bar_of(p, row, -INFINITY);
    if (v >= a.vector_numel)
        return;
    if (bar != bar && threadIdx.x % 4 == 0)
        atomicMin(a.key + v, NO_RESULT);
    for (int i = (int)threadIdx.x % 4; i < TESS_MIN(p.count[row], (int)LIST_NUMEL); i += 4) {
        const list_entry entry = p.list[row * LIST_NUMEL + i];
        if (entry.score >= bar && entry.code < a.pack.code_numel) /* padding is no code */
            atomicMin(a.key + v, key_of(a.x + v * a.dim, a.code + entry.code * a.dim, a.dim,
                                        a.first_row + entry.code));
    }
}

/* Tiles [lo, hi) of codes for a tile of vectors. */
__device__ static inline void search_tiles(const search_job &a, const shared_parts &p,
                                           int64_t first, int64_t lo, int64_t hi)
{
    const warp_place at = place_of();
    const bool is_resident = a.slot_numel == a.stage_numel;
    const int64_t numel = (hi - lo) * a.stage_numel;
    float acc[2][4][4];
    begin_vectors(a, p, first);
    begin_codes(a, p, lo, 0, 0);
    for (int stage = 0; stage < (is_resident ? a.stage_numel : 1); stage++)
        load_x(a, p, first, stage, stage);
    int64_t tile = lo;
    int stage = 0;
    for (int64_t i = 0; i < numel; i++) {
        const int next = stage + 1 < a.stage_numel ? stage + 1 : 0;
        const int slot = is_resident ? stage : (int)(i % 2);
        tess_cp_wait();
        __syncthreads(); /* this stage is there, the one before it used up */
        if (i + 1 < numel) {
            begin_codes(a, p, tile + (next == 0), next, (int)((i + 1) % 2));
            if (!is_resident)
                load_x(a, p, first, next, 1 - slot);
        }
        if (stage == 0)
            begin_scores(a, tile, at, acc);
        multiply(p.x + slot * X_NUMEL, p.code + (i % 2) * CODE_NUMEL, at, acc);
        if (next == 0) {
            append(p, tile, at, acc);
            __syncthreads();
            tidy(p);
            tile++;
        }
        stage = next;
    }
    __syncthreads();
    decide(a, p, first);
}

__global__ static void __launch_bounds__(THREADS) search_kernel(const search_job a)
{
    TESS_DYN_SHARED(unsigned char, base);
    const shared_parts p = shared_of(base, a.slot_numel);
    const int64_t item_numel = a.vector_tile_numel * a.slice_numel;
    for (int64_t item = blockIdx.x; item < item_numel; item += gridDim.x) {
        const int64_t slice = item / a.vector_tile_numel;
        const int64_t first = item % a.vector_tile_numel * VECTORS;
        search_tiles(a, p, first, a.code_tile_numel * slice / a.slice_numel,
                     a.code_tile_numel * (slice + 1) / a.slice_numel);
    }
}

struct fill_key {
    enum { NUMEL = 2 };
    template <bool IS_WHOLE>
    __device__ static inline void chunk(unsigned long long *const &key, int64_t i, int n)
    {
        for (int k = 0; k < n; k++)
            key[i + k] = TESS_NO_KEY;
    }
};

static search_job job_of(const tess_nearest_args *a)
{
    const int64_t wanted = TESS_MIN((int64_t)BLOCK_WANTED, tess_grid_max());
    search_job job = {};
    job.x = static_cast<const float *>(a->x.data);
    job.code = static_cast<const float *>(a->code.data);
    job.key = static_cast<unsigned long long *>(a->key.data);
    job.pack = parts_of(a->pack, a->code_numel, a->dim);
    job.vector_numel = a->vector_numel;
    job.dim = a->dim;
    job.first_row = (uint32_t)a->first_row_idx;
    job.vector_tile_numel = tess_ceil_div(a->vector_numel, VECTORS);
    job.code_tile_numel = job.pack.padded_numel / CODES;
    job.slice_numel =
        TESS_MIN(tess_ceil_div(wanted, TESS_MAX(job.vector_tile_numel, 1)), job.code_tile_numel);
    job.stage_numel = (int)(job.pack.padded_dim / DEPTH);
    const bool is_resident =
        job.stage_numel <= RESIDENT_NUMEL && tess_shared_fits(shared_nbytes(job.stage_numel));
    job.slot_numel = is_resident ? job.stage_numel : 2;
    job.best_numel = a->best_numel;
    return job;
}

extern "C" tess_status tess_cuda_nearest(const tess_nearest_args *a, tess_stream *s)
{
    TESS_TRY(tess_nearest_check(a, tess_cuda_nearest_pack_nbytes(a->code_numel, a->dim),
                                tess_cuda_nearest_work_nbytes(a->dim, a->best_numel, 1)));
    const search_job job = job_of(a);
    if (a->vector_numel == 0)
        return TESS_OK;
    if (a->best_numel == 1 || a->code_numel == 0)
        TESS_TRY(tess_chunks_launch<fill_key>(job.key, a->key.numel, false, s));
    if (a->code_numel == 0)
        return TESS_OK;
    if (a->best_numel == 1) {
        const size_t nbytes = shared_nbytes(job.slot_numel);
        TESS_ALLOW_SHARED(search_kernel, nbytes);
        TESS_LAUNCH(search_kernel, tess_grid(job.vector_tile_numel * job.slice_numel, 1), THREADS,
                    nbytes, s, job);
    }
    TESS_LAUNCH(full_kernel, tess_grid(a->vector_numel, 1), THREADS, 0, s, job);
    return TESS_OK;
}
