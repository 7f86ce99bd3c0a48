#include "kernels/cuda/flash_backward_plain_priv.cuh"

/*
 * [Note: backward] Three kernels, every sum in one thread's registers in one order:
 *   delta[i] = sum over d of d_out * out;
 *   keys: a block owns 16 keys per warp and visits, query head by query head of its group, the
 *     tiles of rows that see one of them, ascending. It computes S^T = K Q^T and dP^T = V dO^T, so
 *     that P^T and dS^T leave the product in the layout of the A operand of dV += P^T dO and
 *     dK += dS^T Q: no shuffle, no shared memory;
 *   queries: a block owns 16 rows per warp and visits the tiles of keys they see, ascending; S and
 *     dP once more, dQ += dS K.
 * Seven products in place of five. Tiles come in two stages: the next is loaded under the products
 * of this one. D 256 halves the tile and gets d_v and d_k from two launches, as 16 x 256 sums of
 * both do not fit the registers.
 */
template <int D> struct backward_size {
    enum {
        WARPS = D <= 128 ? 8 : 4,
        THREADS = 32 * WARPS,
        ROWS = 16 * WARPS,
        TILE = D <= 128 ? 64 : 32,
        NT = TILE / 8,
    };
};

/* Rows that pass by, with what the softmax needs of them. */
template <int D> struct query_stage {
    uint16_t q[backward_size<D>::TILE * D];
    uint16_t d_out[backward_size<D>::TILE * D];
    float lse[backward_size<D>::TILE];
    float delta[backward_size<D>::TILE];
    int32_t doc_start[backward_size<D>::TILE];
};

template <int D> struct keys_shared {
    uint16_t k[backward_size<D>::ROWS * D];
    uint16_t v[backward_size<D>::ROWS * D];
    query_stage<D> stage[2];
};

template <int D> struct queries_shared {
    uint16_t q[backward_size<D>::ROWS * D];
    uint16_t d_out[backward_size<D>::ROWS * D];
    struct {
        uint16_t k[backward_size<D>::TILE * D];
        uint16_t v[backward_size<D>::TILE * D];
    } stage[2];
};

/* delta: one warp per row of a head, pairs of elements dealt to lanes, a tree over the lanes. */
template <bool IS_BF16>
__global__ void __launch_bounds__(PLAIN_THREADS) flash_delta(flash_params params)
{
    const flash_params moved = flash_segment<IS_BF16>(params), *const p = &moved;
    const int64_t at = static_cast<int64_t>(blockIdx.x) * PLAIN_WARPS + threadIdx.x / 32;
    if (at >= static_cast<int64_t>(p->token_numel) * p->head_numel)
        return;
    const int64_t row = at / p->head_numel, head = at % p->head_numel;
    const int64_t out_at = row * p->stride.out + head * p->dim;
    const int64_t d_out_at = row * p->stride.d_out + head * p->dim;
    float sum = 0.0f;
    for (int d = 2 * (threadIdx.x % 32); d < p->dim; d += 64)
        for (int e = d; e < TESS_MIN(d + 2, p->dim); e++)
            sum = fmaf(plain_get<IS_BF16>(p->out, out_at + e),
                       plain_get<IS_BF16>(p->d_out, d_out_at + e), sum);
    sum = plain_sum(sum);
    if (threadIdx.x % 32 == 0)
        p->delta[head * p->head_stride + row] = sum;
}

/* Begin to copy a stage of rows of one head. */
template <int D>
static __device__ __forceinline__ void stage_load(query_stage<D> *stage, int head, int row_lo,
                                                  const flash_params *p)
{
    enum { TILE = backward_size<D>::TILE, THREADS = backward_size<D>::THREADS };
    const uint16_t *const q = static_cast<const uint16_t *>(p->q) + head * p->dim;
    const uint16_t *const d_out = static_cast<const uint16_t *>(p->d_out) + head * p->dim;
    flash_load<D, TILE, THREADS>(stage->q, q, p->stride.q, row_lo, p);
    flash_load<D, TILE, THREADS>(stage->d_out, d_out, p->stride.d_out, row_lo, p);
    const int row = row_lo + static_cast<int>(threadIdx.x);
    if (threadIdx.x < TILE) {
        const bool has = row < p->token_numel;
        const int from = has ? row : 0;
        const int64_t at = head * p->head_stride + from;
        tess_cp_async_4(stage->lse + threadIdx.x, p->lse + at, has);
        tess_cp_async_4(stage->delta + threadIdx.x, p->delta + at, has);
        if (p->doc_start != nullptr)
            tess_cp_async_4(stage->doc_start + threadIdx.x, p->doc_start + from, has);
    }
}

template <int D>
static __device__ __forceinline__ int stage_first(const query_stage<D> *stage, int at, int row_lo,
                                                  const flash_params *p)
{
    if (p->doc_start == nullptr)
        return 0;
    const int start = stage->doc_start[at];
    return p->window > 0 ? TESS_MAX(start, row_lo + at - p->window + 1) : start;
}

/* Transposed scores to probabilities: 0 where the row is past T or does not see the key. */
template <int D>
static __device__ __forceinline__ void keys_softmax(float (*s)[4], const query_stage<D> *stage,
                                                    int row_lo, int key, bool sees_all,
                                                    const flash_params *p)
{
    const float scale_log2 = p->scale * FLASH_LOG2E;
#pragma unroll
    for (int n = 0; n < backward_size<D>::NT; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int at = 8 * n + 2 * (threadIdx.x & 3) + e, row = row_lo + at;
            const float lse_log2 = stage->lse[at] * FLASH_LOG2E;
            s[n][e] = tess_exp2(fmaf(s[n][e], scale_log2, -lse_log2));
            s[n][2 + e] = tess_exp2(fmaf(s[n][2 + e], scale_log2, -lse_log2));
            if (sees_all)
                continue;
            const int first = row < p->token_numel ? stage_first(stage, at, row_lo, p) : INT32_MAX;
            const int last = flash_last(p, row);
            if (key < first || key > last)
                s[n][e] = 0.0f;
            if (key + 8 < first || key + 8 > last)
                s[n][2 + e] = 0.0f;
        }
}

/* d_s = p (d_p - delta), over d_p */
template <int D>
static __device__ __forceinline__ void keys_d_scores(float (*d_p)[4], const float (*prob)[4],
                                                     const query_stage<D> *stage)
{
#pragma unroll
    for (int n = 0; n < backward_size<D>::NT; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const float delta = stage->delta[8 * n + 2 * (threadIdx.x & 3) + e];
            d_p[n][e] = prob[n][e] * (d_p[n][e] - delta);
            d_p[n][2 + e] = prob[n][2 + e] * (d_p[n][2 + e] - delta);
        }
}

template <int D> static __device__ __forceinline__ void clear(float (*acc)[4])
{
#pragma unroll
    for (int n = 0; n < D / 8; n++)
        acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0.0f;
}

/* One tile of rows of one head, for the 16 keys of a warp. */
template <int D, bool HAS_DV, bool HAS_DK>
static __device__ __forceinline__ void
keys_tile(float (*d_v)[4], float (*d_k)[4], const keys_shared<D> *m, const query_stage<D> *stage,
          int row_lo, int key_lo, const flash_params *p)
{
    enum { TILE = backward_size<D>::TILE, NT = backward_size<D>::NT };
    const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16, last_key = key_lo + 15;
    const int row_last = TESS_MIN(row_lo + TILE, p->token_numel) - 1;
    if (flash_last(p, row_last) < key_lo || stage_first(stage, 0, row_lo, p) > last_key)
        return;
    const bool sees_all = flash_last(p, row_lo) >= last_key && row_lo + TILE <= p->token_numel &&
                          stage_first(stage, TILE - 1, row_lo, p) <= key_lo;
    float s[NT][4], d_p[NT][4];
    flash_scores<D, NT>(s, m->k, warp_row, stage->q);
    keys_softmax(s, stage, row_lo, key_lo + static_cast<int>(threadIdx.x & 31) / 4, sees_all, p);
    if (HAS_DV)
        flash_accumulate<D, NT>(d_v, s, stage->d_out);
    if (!HAS_DK)
        return;
    flash_scores<D, NT>(d_p, m->v, warp_row, stage->d_out);
    keys_d_scores(d_p, s, stage);
    flash_accumulate<D, NT>(d_k, d_p, stage->q);
}

template <int D, bool HAS_DV, bool HAS_DK>
__global__ void __launch_bounds__(backward_size<D>::THREADS) flash_keys(flash_params params)
{
    enum {
        TILE = backward_size<D>::TILE,
        ROWS = backward_size<D>::ROWS,
        THREADS = backward_size<D>::THREADS,
    };
    const flash_params moved = flash_segment<true>(params), *const p = &moved;
    TESS_DYN_SHARED(keys_shared<D>, m);
    /* the first keys are seen most: they start first */
    const int kv_head = static_cast<int>(blockIdx.x) % p->kv_head_numel;
    const int block_lo = static_cast<int>(blockIdx.x) / p->kv_head_numel * ROWS;
    const int block_last = TESS_MIN(block_lo + ROWS, p->token_numel) - 1;
    const int key_lo = block_lo + static_cast<int>(threadIdx.x) / 32 * 16;
    const int row_begin = flash_rows_begin(p, block_lo) / TILE * TILE;
    const int tile_numel =
        (flash_rows_end(p, block_last, block_last) - row_begin + TILE - 1) / TILE;
    const int step_numel = tile_numel * p->group_numel;
    const int64_t head_at = static_cast<int64_t>(kv_head) * p->dim;
    const uint16_t *const k = static_cast<const uint16_t *>(p->k) + head_at;
    const uint16_t *const v = static_cast<const uint16_t *>(p->v) + head_at;
    float d_v[HAS_DV ? D / 8 : 1][4], d_k[HAS_DK ? D / 8 : 1][4];
    clear<HAS_DV ? D : 8>(d_v);
    clear<HAS_DK ? D : 8>(d_k);
    flash_load<D, ROWS, THREADS>(m->k, k, p->stride.k, block_lo, p);
    flash_load<D, ROWS, THREADS>(m->v, v, p->stride.v, block_lo, p);
    stage_load<D>(&m->stage[0], kv_head * p->group_numel, row_begin, p);
    tess_cp_commit();
    int head = kv_head * p->group_numel, tile = 0;
    for (int step = 0; step < step_numel; step++) {
        const int row_lo = row_begin + tile * TILE;
        tess_cp_wait();
        __syncthreads(); /* this stage is here, the other one is used up */
        if (++tile == tile_numel) {
            tile = 0;
            head++;
        }
        if (step + 1 < step_numel)
            stage_load<D>(&m->stage[(step + 1) & 1], head, row_begin + tile * TILE, p);
        tess_cp_commit();
        keys_tile<D, HAS_DV, HAS_DK>(d_v, d_k, m, &m->stage[step & 1], row_lo, key_lo, p);
    }
    const int row = key_lo + static_cast<int>(threadIdx.x & 31) / 4;
    const float one[2] = {1.0f, 1.0f}, scale[2] = {p->scale, p->scale};
    if (HAS_DV)
        flash_store<HAS_DV ? D : 8>(d_v, one, static_cast<uint16_t *>(p->d_v) + head_at,
                                    p->stride.d_v, row, p);
    if (HAS_DK)
        flash_store<HAS_DK ? D : 8>(d_k, scale, static_cast<uint16_t *>(p->d_k) + head_at,
                                    p->stride.d_k, row, p);
}

/* Softmax facts of the two rows of a lane. */
typedef struct row_pair {
    float lse_log2[2], delta[2];
} row_pair;

/* Scores and d_p of a tile of keys to d_s, over d_p. */
template <int NT>
static __device__ __forceinline__ void queries_d_scores(float (*d_p)[4], const float (*s)[4],
                                                        const row_pair *rows, float scale_log2)
{
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float prob = tess_exp2(fmaf(s[n][e], scale_log2, -rows->lse_log2[e >> 1]));
            d_p[n][e] = prob * (d_p[n][e] - rows->delta[e >> 1]);
        }
}

/* d_s of keys a row does not see becomes 0. A row past T stands for the last token. */
template <int NT>
static __device__ __forceinline__ void queries_mask(float (*d_s)[4], int row_lo, int key_lo,
                                                    const flash_params *p)
{
    const int key = key_lo + 2 * (threadIdx.x & 3);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row =
            TESS_MIN(row_lo + 8 * r + static_cast<int>(threadIdx.x & 31) / 4, p->token_numel - 1);
        const int first = flash_first(p, row), last = flash_last(p, row);
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                if (key + 8 * n + e < first || key + 8 * n + e > last)
                    d_s[n][2 * r + e] = 0.0f;
    }
}

template <int D>
__global__ void __launch_bounds__(backward_size<D>::THREADS) flash_queries(flash_params params)
{
    enum {
        TILE = backward_size<D>::TILE,
        ROWS = backward_size<D>::ROWS,
        THREADS = backward_size<D>::THREADS,
        NT = backward_size<D>::NT,
    };
    const flash_params moved = flash_segment<true>(params), *const p = &moved;
    TESS_DYN_SHARED(queries_shared<D>, m);
    const int tile_numel = static_cast<int>(gridDim.x) / p->head_numel;
    const int tile = tile_numel - 1 - static_cast<int>(blockIdx.x) / p->head_numel;
    const int head = static_cast<int>(blockIdx.x) % p->head_numel;
    const int64_t head_at = static_cast<int64_t>(head) * p->dim;
    const int64_t kv_at = static_cast<int64_t>(head / p->group_numel) * p->dim;
    const uint16_t *const q = static_cast<const uint16_t *>(p->q) + head_at;
    const uint16_t *const d_out = static_cast<const uint16_t *>(p->d_out) + head_at;
    const uint16_t *const k = static_cast<const uint16_t *>(p->k) + kv_at;
    const uint16_t *const v = static_cast<const uint16_t *>(p->v) + kv_at;
    const int i_lo = tile * ROWS, i_hi = TESS_MIN(i_lo + ROWS, p->token_numel);
    const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16, warp_lo = i_lo + warp_row;
    const int warp_last = TESS_MIN(warp_lo + 16, p->token_numel) - 1;
    const int warp_first = flash_first(p, TESS_MIN(warp_lo, p->token_numel - 1));
    const int warp_first_of_last = flash_first(p, warp_last);
    const float scale_log2 = p->scale * FLASH_LOG2E;
    const int row = warp_lo + static_cast<int>(threadIdx.x & 31) / 4;
    row_pair rows;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int64_t at = head * p->head_stride + TESS_MIN(row + 8 * r, p->token_numel - 1);
        rows.lse_log2[r] = p->lse[at] * FLASH_LOG2E;
        rows.delta[r] = p->delta[at];
    }
    float d_q[D / 8][4];
    clear<D>(d_q);
    const int key_end = flash_last(p, i_hi - 1) + 1;
    int key = flash_first(p, i_lo) / TILE * TILE;
    flash_load<D, ROWS, THREADS>(m->q, q, p->stride.q, i_lo, p);
    flash_load<D, ROWS, THREADS>(m->d_out, d_out, p->stride.d_out, i_lo, p);
    flash_load<D, TILE, THREADS>(m->stage[0].k, k, p->stride.k, key, p);
    flash_load<D, TILE, THREADS>(m->stage[0].v, v, p->stride.v, key, p);
    tess_cp_commit();
    for (int step = 0; key < key_end; step++, key += TILE) {
        auto *const stage = &m->stage[step & 1], *const next = &m->stage[(step + 1) & 1];
        tess_cp_wait();
        __syncthreads(); /* this stage is here, the other one is used up */
        if (key + TILE < key_end) {
            flash_load<D, TILE, THREADS>(next->k, k, p->stride.k, key + TILE, p);
            flash_load<D, TILE, THREADS>(next->v, v, p->stride.v, key + TILE, p);
        }
        tess_cp_commit();
        if (key > flash_last(p, warp_last) || key + TILE <= warp_first)
            continue;
        float s[NT][4], d_p[NT][4];
        flash_scores<D, NT>(s, m->q, warp_row, stage->k);
        flash_scores<D, NT>(d_p, m->d_out, warp_row, stage->v);
        queries_d_scores<NT>(d_p, s, &rows, scale_log2);
        if (key + TILE - 1 > flash_last(p, warp_lo) || key < warp_first_of_last)
            queries_mask<NT>(d_p, warp_lo, key, p);
        flash_accumulate<D, NT>(d_q, d_p, stage->k);
    }
    const float scale[2] = {p->scale, p->scale};
    flash_store<D>(d_q, scale, static_cast<uint16_t *>(p->d_q) + head_at, p->stride.d_q, row, p);
}

/* ---- launches ---- */

template <bool IS_BF16> static tess_status delta_launch(const flash_params *p, tess_stream *s)
{
    const int64_t rows = static_cast<int64_t>(p->token_numel) * p->head_numel;
    const auto kernel = flash_delta<IS_BF16>;
    const dim3 blocks(static_cast<unsigned>(tess_ceil_div(rows, PLAIN_WARPS)),
                      static_cast<unsigned>(p->segment_numel));
    TESS_LAUNCH(kernel, blocks, PLAIN_THREADS, 0, s, *p);
    return TESS_OK;
}

template <int D, bool HAS_DV, bool HAS_DK>
static tess_status keys_launch(const flash_params *p, tess_stream *s)
{
    const dim3 blocks = flash_grid(p, backward_size<D>::ROWS, p->kv_head_numel);
    const unsigned threads = backward_size<D>::THREADS;
    const size_t nbytes = sizeof(keys_shared<D>);
    const auto kernel = flash_keys<D, HAS_DV, HAS_DK>;
    TESS_ALLOW_SHARED(kernel, nbytes);
    TESS_LAUNCH(kernel, blocks, threads, nbytes, s, *p);
    return TESS_OK;
}

template <int D> static tess_status queries_launch(const flash_params *p, tess_stream *s)
{
    const dim3 blocks = flash_grid(p, backward_size<D>::ROWS, p->head_numel);
    const unsigned threads = backward_size<D>::THREADS;
    const size_t nbytes = sizeof(queries_shared<D>);
    const auto kernel = flash_queries<D>;
    TESS_ALLOW_SHARED(kernel, nbytes);
    TESS_LAUNCH(kernel, blocks, threads, nbytes, s, *p);
    return TESS_OK;
}

template <int D> static tess_status backward_launch(const flash_params *p, tess_stream *s)
{
    TESS_TRY((keys_launch<D, true, true>(p, s)));
    return queries_launch<D>(p, s);
}

static tess_status backward_launch_256(const flash_params *p, tess_stream *s)
{
    TESS_TRY((keys_launch<256, true, false>(p, s)));
    TESS_TRY((keys_launch<256, false, true>(p, s)));
    return queries_launch<256>(p, s);
}

template <bool IS_BF16>
static tess_status backward_plain_launch(const flash_params *p, tess_stream *s)
{
    const size_t nbytes = plain_shared_nbytes(p->dim);
    const dim3 key_blocks = flash_grid(p, PLAIN_ROWS, p->kv_head_numel);
    const dim3 query_blocks = flash_grid(p, PLAIN_ROWS, p->head_numel);
    const auto keys = flash_keys_plain<IS_BF16>;
    const auto queries = flash_queries_plain<IS_BF16>;
    TESS_ALLOW_SHARED(keys, nbytes);
    TESS_LAUNCH(keys, key_blocks, PLAIN_THREADS, nbytes, s, *p);
    TESS_ALLOW_SHARED(queries, nbytes);
    TESS_LAUNCH(queries, query_blocks, PLAIN_THREADS, nbytes, s, *p);
    return TESS_OK;
}

static bool backward_is_aligned(const flash_params *p)
{
    return p->dim % 8 == 0 && flash_is_aligned(p->q, p->stride.q) &&
           flash_is_aligned(p->k, p->stride.k) && flash_is_aligned(p->v, p->stride.v) &&
           flash_is_aligned(p->d_out, p->stride.d_out) && flash_is_aligned(p->d_q, p->stride.d_q) &&
           flash_is_aligned(p->d_k, p->stride.d_k) && flash_is_aligned(p->d_v, p->stride.d_v);
}

static tess_status backward_params(flash_params *p, const tess_attention_backward_args *a,
                                   const tess_flash_strides *strides)
{
    const size_t have_nbytes = tess_view_nbytes(a->work);
    TESS_TRY(flash_params_init(p, &a->shape, strides, a->window));
    TESS_CHECK(a->work.data != NULL && have_nbytes >= tess_flash_work_nbytes(&a->shape), TESS_E_ARG,
               "attention backward: workspace of %zu bytes, expected %zu; size it with "
               "attention_work_nbytes()",
               have_nbytes, tess_flash_work_nbytes(&a->shape));
    p->q = a->q.data;
    p->k = a->k.data;
    p->v = a->v.data;
    p->out = a->out.data;
    p->d_out = a->d_out.data;
    p->d_q = a->d_q.data;
    p->d_k = a->d_k.data;
    p->d_v = a->d_v.data;
    p->lse = a->lse;
    p->delta = static_cast<float *>(a->work.data);
    p->doc_start = a->shape.segment_numel > 0 ? nullptr : a->doc_start;
    p->scale = a->scale;
    return TESS_OK;
}

template <int D> static constexpr size_t backward_nbytes(void)
{
    return TESS_MAX(sizeof(keys_shared<D>), sizeof(queries_shared<D>));
}

static bool backward_fits(int64_t dim)
{
    switch (dim) {
    case 32:
        return tess_shared_fits(backward_nbytes<32>());
    case 64:
        return tess_shared_fits(backward_nbytes<64>());
    case 96:
        return tess_shared_fits(backward_nbytes<96>());
    case 128:
        return tess_shared_fits(backward_nbytes<128>());
    default:
        return tess_shared_fits(backward_nbytes<256>());
    }
}

tess_status tess_flash_backward_strided(const tess_attention_backward_args *a,
                                        const tess_flash_strides *strides, tess_stream *s)
{
    TESS_TRY(tess_attention_backward_check(a));
    if (a->shape.token_numel == 0)
        return TESS_OK;
    flash_params p = {};
    TESS_TRY(backward_params(&p, a, strides));
    if (a->shape.dt == TESS_F32) {
        TESS_TRY(delta_launch<false>(&p, s));
        return backward_plain_launch<false>(&p, s);
    }
    TESS_TRY(delta_launch<true>(&p, s));
    if (!backward_is_aligned(&p) || !backward_fits(flash_dim(p.dim)))
        return backward_plain_launch<true>(&p, s);
    switch (flash_dim(p.dim)) {
    case 32:
        return backward_launch<32>(&p, s);
    case 64:
        return backward_launch<64>(&p, s);
    case 96:
        return backward_launch<96>(&p, s);
    case 128:
        return backward_launch<128>(&p, s);
    default:
        return backward_launch_256(&p, s);
    }
}

tess_status tess_flash_backward(const tess_attention_backward_args *a, tess_stream *s)
{
    const tess_flash_strides strides = tess_flash_strides_plain(&a->shape, a->out_stride);
    return tess_flash_backward_strided(a, &strides, s);
}
