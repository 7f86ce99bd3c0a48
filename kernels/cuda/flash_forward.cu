#include "kernels/cuda/flash_plain_priv.cuh"

/*
 * [Note: forward] A block of 4 warps owns 64 MT query rows of one head, 16 MT per warp, and visits
 * the tiles of 64 keys that some row sees, ascending. Two loads are always in flight beside the
 * arithmetic: V of this tile under the scores, K of the next tile under softmax and P V. One buffer
 * each for K and V leaves room for two blocks per multiprocessor on sm_80, which two stages of both
 * would not (D 128: 64 KB against 96 KB).
 */
enum { FORWARD_WARPS = 4, FORWARD_TILE = 64, FORWARD_NT = FORWARD_TILE / 8 };
enum { FORWARD_THREADS = 32 * FORWARD_WARPS };

/* What a warp keeps of its rows between tiles. */
template <int D, int MT> struct forward_state {
    float out[MT][D / 8][4];
    float max[MT][2]; /* of scores, base 2 */
    float sum[MT][2]; /* of this lane's columns */
};

template <int D, int MT>
static __device__ __forceinline__ void forward_init(forward_state<D, MT> *w)
{
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            w->out[m][n][0] = w->out[m][n][1] = w->out[m][n][2] = w->out[m][n][3] = 0.0f;
        w->max[m][0] = w->max[m][1] = -INFINITY;
        w->sum[m][0] = w->sum[m][1] = 0.0f;
    }
}

/* Scores of the warp's rows with a tile of keys. */
template <int D, int MT>
static __device__ __forceinline__ void forward_scores(float (*s)[FORWARD_NT][4], const uint16_t *q,
                                                      const uint16_t *k)
{
    const int row = static_cast<int>(threadIdx.x) / 32 * 16 * MT;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < FORWARD_NT; n++)
            s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0.0f;
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        uint32_t a[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++)
            flash_frag_a<D>(a[m], q, row, 16 * m, 2 * step);
#pragma unroll
        for (int n = 0; n < FORWARD_NT; n += 2) {
            uint32_t b[4];
            flash_frag_b_rows<D>(b, k, 8 * n, 2 * step);
#pragma unroll
            for (int m = 0; m < MT; m++) {
                tess_mma(s[m][n], a[m], b);
                tess_mma(s[m][n + 1], a[m], b + 2);
            }
        }
    }
}

/* Columns that a row does not see become -infinity. A row past T, which is not stored, stands for
 * the last token. What rows see is read again where needed: registers are scarcer than loads. */
template <int MT>
static __device__ __forceinline__ void forward_mask(float (*s)[FORWARD_NT][4], int row_lo,
                                                    int col_lo, const flash_params *p)
{
    const int col = col_lo + 2 * (threadIdx.x & 3);
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int row = row_lo + 16 * m + 8 * r + (threadIdx.x & 31) / 4;
            const int seen = TESS_MIN(row, p->token_numel - 1);
            const int first = flash_first(p, seen), last = flash_last(p, seen);
#pragma unroll
            for (int n = 0; n < FORWARD_NT; n++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    if (col + 8 * n + e < first || col + 8 * n + e > last)
                        s[m][n][2 * r + e] = -INFINITY;
        }
}

/* Scores to probabilities relative to the largest score so far; sums so far are scaled to it. */
template <int D, int MT>
static __device__ __forceinline__ void forward_softmax(float (*s)[FORWARD_NT][4],
                                                       forward_state<D, MT> *w, float scale_log2)
{
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float largest = -INFINITY;
#pragma unroll
            for (int n = 0; n < FORWARD_NT; n++)
                largest = fmaxf(largest, fmaxf(s[m][n][2 * r], s[m][n][2 * r + 1]));
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
            const float max = fmaxf(w->max[m][r], largest * scale_log2);
            const float base = max == -INFINITY ? 0.0f : max; /* a row that saw nothing yet */
            const float shrink = tess_exp2(w->max[m][r] - base);
            float sum = w->sum[m][r] * shrink;
#pragma unroll
            for (int n = 0; n < FORWARD_NT; n++)
#pragma unroll
                for (int e = 2 * r; e < 2 * r + 2; e++) {
                    s[m][n][e] = tess_exp2(fmaf(s[m][n][e], scale_log2, -base));
                    sum += s[m][n][e];
                }
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                w->out[m][n][2 * r] *= shrink;
                w->out[m][n][2 * r + 1] *= shrink;
            }
            w->max[m][r] = max;
            w->sum[m][r] = sum;
        }
}

/* out += P V */
template <int D, int MT>
static __device__ __forceinline__ void forward_output(forward_state<D, MT> *w,
                                                      float (*s)[FORWARD_NT][4], const uint16_t *v)
{
#pragma unroll
    for (int step = 0; step < FORWARD_NT / 2; step++) {
        uint32_t a[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float *const tile = s[m][2 * step + half];
                a[m][2 * half] = tess_pack_bf16(tile[0], tile[1]);
                a[m][2 * half + 1] = tess_pack_bf16(tile[2], tile[3]);
            }
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            uint32_t b[4];
            flash_frag_b<D>(b, v, 16 * step, n);
#pragma unroll
            for (int m = 0; m < MT; m++) {
                tess_mma(w->out[m][n], a[m], b);
                tess_mma(w->out[m][n + 1], a[m], b + 2);
            }
        }
    }
}

template <int D, int MT>
static __device__ __forceinline__ void forward_store(forward_state<D, MT> *w, int row_lo, int head,
                                                     const flash_params *p)
{
    uint16_t *const out = static_cast<uint16_t *>(p->out_dst) + head * p->dim;
#pragma unroll
    for (int m = 0; m < MT; m++) {
        const int row = row_lo + 16 * m + (threadIdx.x & 31) / 4;
        float inverse[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float sum = w->sum[m][r];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            inverse[r] = 1.0f / sum;
            if (row + 8 * r < p->token_numel && (threadIdx.x & 3) == 0)
                p->lse_dst[head * p->head_stride + row + 8 * r] =
                    fmaf(w->max[m][r], FLASH_LN2, logf(sum));
        }
        flash_store<D>(w->out[m], inverse, out, p->stride.out, row, p);
    }
}

template <int D, int MT>
__global__ void __launch_bounds__(FORWARD_THREADS) flash_forward(flash_params params)
{
    enum { ROWS = 16 * MT * FORWARD_WARPS };
    const flash_params moved = flash_segment<true>(params), *const p = &moved;
    TESS_DYN_SHARED(uint16_t, q_tile);
    uint16_t *const k_tile = q_tile + ROWS * D;
    uint16_t *const v_tile = k_tile + FORWARD_TILE * D;
    /* the last tiles of rows see most: they start first */
    const int tile_numel = static_cast<int>(gridDim.x) / p->head_numel;
    const int tile = tile_numel - 1 - static_cast<int>(blockIdx.x) / p->head_numel;
    const int head = static_cast<int>(blockIdx.x) % p->head_numel;
    const int kv_head = head / p->group_numel;
    const uint16_t *const q = static_cast<const uint16_t *>(p->q) + head * p->dim;
    const uint16_t *const k = static_cast<const uint16_t *>(p->k) + kv_head * p->dim;
    const uint16_t *const v = static_cast<const uint16_t *>(p->v) + kv_head * p->dim;
    const int i_lo = tile * ROWS, i_hi = TESS_MIN(i_lo + ROWS, p->token_numel);
    const int warp_lo = i_lo + static_cast<int>(threadIdx.x) / 32 * 16 * MT;
    const int warp_last = TESS_MIN(warp_lo + 16 * MT, p->token_numel) - 1;
    const int warp_first = flash_first(p, TESS_MIN(warp_lo, p->token_numel - 1));
    const int warp_first_of_last = flash_first(p, TESS_MAX(warp_last, 0));
    const int col_end = flash_last(p, i_hi - 1) + 1;
    const float scale_log2 = p->scale * FLASH_LOG2E;
    forward_state<D, MT> w;
    forward_init(&w);
    int col = flash_first(p, i_lo) / FORWARD_TILE * FORWARD_TILE;
    flash_load<D, ROWS, FORWARD_THREADS>(q_tile, q, p->stride.q, i_lo, p);
    flash_load<D, FORWARD_TILE, FORWARD_THREADS>(k_tile, k, p->stride.k, col, p);
    tess_cp_commit();
    for (; col < col_end; col += FORWARD_TILE) {
        const bool sees = col <= flash_last(p, warp_last) && col + FORWARD_TILE > warp_first;
        const bool sees_all =
            col + FORWARD_TILE - 1 <= flash_last(p, warp_lo) && col >= warp_first_of_last;
        float s[MT][FORWARD_NT][4];
        tess_cp_wait();
        __syncthreads(); /* K is here, V is used up */
        flash_load<D, FORWARD_TILE, FORWARD_THREADS>(v_tile, v, p->stride.v, col, p);
        tess_cp_commit();
        if (sees)
            forward_scores<D, MT>(s, q_tile, k_tile);
        tess_cp_wait();
        __syncthreads(); /* V is here, K is used up */
        if (col + FORWARD_TILE < col_end)
            flash_load<D, FORWARD_TILE, FORWARD_THREADS>(k_tile, k, p->stride.k, col + FORWARD_TILE,
                                                         p);
        tess_cp_commit();
        if (!sees)
            continue;
        if (!sees_all)
            forward_mask<MT>(s, warp_lo, col, p);
        forward_softmax(s, &w, scale_log2);
        forward_output(&w, s, v_tile);
    }
    forward_store(&w, warp_lo, head, p);
}

/* See [Note: plain blocks]. */
template <bool IS_BF16>
__global__ void __launch_bounds__(PLAIN_THREADS) flash_forward_plain(flash_params params)
{
    const flash_params moved = flash_segment<IS_BF16>(params), *const p = &moved;
    TESS_DYN_SHARED(float, q_rows);
    float *const k_tile = q_rows + PLAIN_ROWS * plain_pitch(p->dim);
    float *const v_tile = k_tile + PLAIN_TILE * plain_pitch(p->dim);
    const int tile_numel = static_cast<int>(gridDim.x) / p->head_numel;
    const int tile = tile_numel - 1 - static_cast<int>(blockIdx.x) / p->head_numel;
    const int head = static_cast<int>(blockIdx.x) % p->head_numel;
    const int64_t kv_offset = static_cast<int64_t>(head / p->group_numel) * p->dim;
    const plain_operand q = {p->q, static_cast<int64_t>(head) * p->dim, p->stride.q};
    const plain_operand k = {p->k, kv_offset, p->stride.k}, v = {p->v, kv_offset, p->stride.v};
    const int i_lo = tile * PLAIN_ROWS, i_hi = TESS_MIN(i_lo + PLAIN_ROWS, p->token_numel);
    const int row = i_lo + static_cast<int>(threadIdx.x) / 32 * PLAIN_OWN;
    const int lane = threadIdx.x % 32;
    float out[PLAIN_OWN][PLAIN_COLUMNS] = {{0.0f}};
    float max[PLAIN_OWN] = {-INFINITY, -INFINITY}, sum[PLAIN_OWN] = {0.0f, 0.0f};
    const int col_end = flash_last(p, i_hi - 1) + 1;
    plain_load<IS_BF16>(q_rows, q, i_lo, PLAIN_ROWS, p);
    for (int col = flash_first(p, i_lo) / PLAIN_TILE * PLAIN_TILE; col < col_end;
         col += PLAIN_TILE) {
        float score[PLAIN_OWN];
        __syncthreads(); /* the last tile is used up */
        plain_load<IS_BF16>(k_tile, k, col, PLAIN_TILE, p);
        plain_load<IS_BF16>(v_tile, v, col, PLAIN_TILE, p);
        __syncthreads(); /* this one is here */
        plain_scores(score, q_rows, k_tile, p->dim);
#pragma unroll
        for (int r = 0; r < PLAIN_OWN; r++) {
            const int i = TESS_MIN(row + r, p->token_numel - 1);
            const bool sees = col + lane >= flash_first(p, i) && col + lane <= flash_last(p, i);
            const float x = sees ? score[r] * p->scale : -INFINITY;
            const float largest = fmaxf(max[r], plain_largest(x));
            const float base = largest == -INFINITY ? 0.0f : largest;
            const float shrink = expf(max[r] - base), weight = expf(x - base);
            max[r] = largest;
            sum[r] = fmaf(sum[r], shrink, plain_sum(weight));
#pragma unroll
            for (int c = 0; c < PLAIN_COLUMNS; c++)
                out[r][c] *= shrink;
            plain_accumulate(out[r], plain_round<IS_BF16>(weight), v_tile, p->dim);
        }
    }
#pragma unroll
    for (int r = 0; r < PLAIN_OWN; r++) {
        if (row + r >= p->token_numel)
            continue;
        plain_store<IS_BF16>(out[r], 1.0f / sum[r], p->out_dst,
                             q.head_offset + (row + r) * p->stride.out, p->dim);
        if (lane == 0)
            p->lse_dst[head * p->head_stride + row + r] = max[r] + logf(sum[r]);
    }
}

template <int D, int MT> static tess_status forward_launch(const flash_params *p, tess_stream *s)
{
    const int rows = 16 * MT * FORWARD_WARPS;
    const dim3 blocks = flash_grid(p, rows, p->head_numel);
    const size_t nbytes = static_cast<size_t>(rows + 2 * FORWARD_TILE) * D * sizeof(uint16_t);
    const auto kernel = flash_forward<D, MT>;
    TESS_ALLOW_SHARED(kernel, nbytes);
    TESS_LAUNCH(kernel, blocks, FORWARD_THREADS, nbytes, s, *p);
    return TESS_OK;
}

template <bool IS_BF16>
static tess_status forward_plain_launch(const flash_params *p, tess_stream *s)
{
    const dim3 blocks = flash_grid(p, PLAIN_ROWS, p->head_numel);
    const size_t nbytes = plain_shared_nbytes(p->dim);
    const auto kernel = flash_forward_plain<IS_BF16>;
    TESS_ALLOW_SHARED(kernel, nbytes);
    TESS_LAUNCH(kernel, blocks, PLAIN_THREADS, nbytes, s, *p);
    return TESS_OK;
}

static bool forward_is_aligned(const flash_params *p)
{
    return p->dim % 8 == 0 && flash_is_aligned(p->q, p->stride.q) &&
           flash_is_aligned(p->k, p->stride.k) && flash_is_aligned(p->v, p->stride.v) &&
           flash_is_aligned(p->out_dst, p->stride.out);
}

tess_status tess_flash_forward_strided(const tess_attention_args *a,
                                       const tess_flash_strides *strides, tess_stream *s)
{
    TESS_TRY(tess_attention_check(a));
    if (a->shape.token_numel == 0)
        return TESS_OK;
    flash_params p = {};
    TESS_TRY(flash_params_init(&p, &a->shape, strides, a->window));
    p.q = a->q.data;
    p.k = a->k.data;
    p.v = a->v.data;
    p.out_dst = a->out.data;
    p.lse_dst = a->lse;
    p.doc_start = a->shape.segment_numel > 0 ? nullptr : a->doc_start;
    p.scale = a->scale;
    if (a->shape.dt == TESS_F32)
        return forward_plain_launch<false>(&p, s);
    if (!forward_is_aligned(&p))
        return forward_plain_launch<true>(&p, s);
    switch (flash_dim(p.dim)) {
    case 32:
        return forward_launch<32, 2>(&p, s);
    case 64:
        return forward_launch<64, 2>(&p, s);
    case 96:
        return forward_launch<96, 2>(&p, s);
    case 128:
        return forward_launch<128, 2>(&p, s);
    default:
        return forward_launch<256, 1>(&p, s);
    }
}

tess_status tess_flash_forward(const tess_attention_args *a, tess_stream *s)
{
    const tess_flash_strides strides = tess_flash_strides_plain(&a->shape, a->out_stride);
    return tess_flash_forward_strided(a, &strides, s);
}
