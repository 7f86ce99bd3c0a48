#include "tests/emulation/mma_probe.h"

#include "kernels/cuda/flash_priv.cuh"

tess_tensor_faults tess_tensor_faults_take(void)
{
    const tess_emulation::tensor_faults f = tess_emulation::tensor_faults_take();
    return {f.misaligned, f.bank_conflicts, f.lost_copies, f.mma_numel, f.ldmatrix_numel};
}

static uint32_t pair_of(uint16_t lo, uint16_t hi)
{
    return static_cast<uint32_t>(lo) | static_cast<uint32_t>(hi) << 16;
}

/* Layouts as the PTX manual draws them for m16n8k16. */
static __global__ void mma_kernel(const uint16_t *a, const uint16_t *b, float *d)
{
    const int g = threadIdx.x / 4, c = threadIdx.x % 4 * 2;
    uint32_t fa[4], fb[2];
    float fd[4];
    for (int r = 0; r < 4; r++) {
        const int row = g + (r == 1 || r == 3 ? 8 : 0), col = c + (r >= 2 ? 8 : 0);
        fa[r] = pair_of(a[row * 16 + col], a[row * 16 + col + 1]);
    }
    for (int r = 0; r < 2; r++)
        fb[r] = pair_of(b[(c + 8 * r) * 8 + g], b[(c + 8 * r + 1) * 8 + g]);
    for (int e = 0; e < 4; e++)
        fd[e] = d[(g + e / 2 * 8) * 8 + c + e % 2];
    tess_mma(fd, fa, fb);
    for (int e = 0; e < 4; e++)
        d[(g + e / 2 * 8) * 8 + c + e % 2] = fd[e];
}

static __global__ void ldmatrix_kernel(const uint16_t *src, bool is_transposed, uint16_t *dst)
{
    TESS_DYN_SHARED(uint16_t, rows);
    const int lane = threadIdx.x;
    for (int e = 0; e < 8; e++)
        rows[lane * 8 + e] = src[lane * 8 + e];
    __syncwarp();
    uint32_t r[4];
    if (is_transposed)
        tess_ldmatrix_trans(r, rows + lane * 8);
    else
        tess_ldmatrix(r, rows + lane * 8);
    for (int m = 0; m < 4; m++) {
        dst[lane * 8 + 2 * m] = static_cast<uint16_t>(r[m] & 0xffff);
        dst[lane * 8 + 2 * m + 1] = static_cast<uint16_t>(r[m] >> 16);
    }
}

template <int D>
static __global__ void tiles_kernel(const uint16_t *ab, flash_params params, float *c, float *d)
{
    TESS_DYN_SHARED(uint16_t, a_tile);
    uint16_t *const b_tile = a_tile + 16 * D;
    const int g = threadIdx.x / 4, col = threadIdx.x % 4 * 2, dim = params.dim;
    float s[2][4], acc[D / 8][4];
    flash_load<D, 16, 32>(a_tile, ab, dim, 0, &params);
    flash_load<D, 16, 32>(b_tile, ab, dim, 16, &params);
    tess_cp_commit();
    tess_cp_wait();
    __syncthreads();
    flash_scores<D, 2>(s, a_tile, 0, b_tile);
    for (int n = 0; n < D / 8; n++)
        for (int e = 0; e < 4; e++)
            acc[n][e] = 0.0f;
    flash_accumulate<D, 2>(acc, s, b_tile);
    for (int e = 0; e < 4; e++) {
        const int row = g + e / 2 * 8;
        for (int n = 0; n < 2; n++)
            c[row * 16 + 8 * n + col + e % 2] = s[n][e];
        for (int n = 0; n < dim / 8; n++)
            d[row * dim + 8 * n + col + e % 2] = acc[n][e];
    }
}

static __global__ void copy_kernel(const uint16_t *src, probe_copy_part part, uint16_t *dst)
{
    TESS_DYN_SHARED(uint16_t, rows);
    const int lane = threadIdx.x;
    tess_cp_async_16(rows + lane * 8, src + lane * 8, part != PROBE_COPY_NO_SOURCE);
    if (part != PROBE_COPY_NO_COMMIT)
        tess_cp_commit();
    if (part != PROBE_COPY_NO_WAIT)
        tess_cp_wait();
    for (int e = 0; e < 8; e++)
        dst[lane * 8 + e] = rows[lane * 8 + e];
}

static __global__ void scalar_kernel(const float *x, float *y, uint32_t *pair)
{
    const int i = threadIdx.x;
    y[i] = tess_exp2(x[i]);
    pair[i] = tess_pack_bf16(x[i], y[i]);
}

tess_status probe_mma(const uint16_t *a, const uint16_t *b, float *d, tess_stream *s)
{
    TESS_LAUNCH(mma_kernel, 1, 32, 0, s, a, b, d);
    return TESS_OK;
}

tess_status probe_ldmatrix(const uint16_t *src, bool is_transposed, uint16_t *dst, tess_stream *s)
{
    TESS_LAUNCH(ldmatrix_kernel, 1, 32, 512, s, src, is_transposed, dst);
    return TESS_OK;
}

template <int D>
static tess_status tiles_launch(const uint16_t *ab, int dim, float *c, float *d, tess_stream *s)
{
    flash_params p = {};
    p.token_numel = 32;
    p.dim = dim;
    const auto kernel = tiles_kernel<D>;
    TESS_LAUNCH(kernel, 1, 32, 2 * 16 * D * sizeof(uint16_t), s, ab, p, c, d);
    return TESS_OK;
}

tess_status probe_tiles(const uint16_t *ab, int dim, int columns, float *c, float *d,
                        tess_stream *s)
{
    switch (columns) {
    case 32:
        return tiles_launch<32>(ab, dim, c, d, s);
    case 64:
        return tiles_launch<64>(ab, dim, c, d, s);
    case 96:
        return tiles_launch<96>(ab, dim, c, d, s);
    case 128:
        return tiles_launch<128>(ab, dim, c, d, s);
    default:
        return tiles_launch<256>(ab, dim, c, d, s);
    }
}

tess_status probe_copy(const uint16_t *src, probe_copy_part part, uint16_t *dst, tess_stream *s)
{
    TESS_LAUNCH(copy_kernel, 1, 32, 512, s, src, part, dst);
    return TESS_OK;
}

tess_status probe_scalar(const float *x, float *y, uint32_t *pair, tess_stream *s)
{
    TESS_LAUNCH(scalar_kernel, 1, 32, 0, s, x, y, pair);
    return TESS_OK;
}
