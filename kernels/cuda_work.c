#include "kernels/cuda_work.h"

#include "core/arith.h"
#include "core/memory.h"

enum {
    ALIGN_NBYTES = TESS_ARENA_ALIGN_NBYTES,
    SUM_NBYTES_MAX =
        128 << 20, /* of the f32 scratch, unless that is fewer rows than SUM_ROWS_MIN */
    SUM_ROWS_MIN = 1024,
    SUM_ROWS_STEP = 256
};

static size_t aligned(int64_t nbytes) { return (size_t)tess_round_up(nbytes, ALIGN_NBYTES); }

/* ---- matrix products ---- */

bool tess_cuda_gemm_is_stored_as(const tess_matrix *b, tess_dtype dt)
{
    const tess_format format = b->codec.format;
    return (format == TESS_FORMAT_F32 || format == TESS_FORMAT_BF16) && tess_matrix_dtype(b) == dt;
}

int64_t tess_cuda_gemm_sum_rows(const tess_gemm_args *a)
{
    const int64_t fit = SUM_NBYTES_MAX / 4 / TESS_MAX(a->n, 1) / SUM_ROWS_STEP * SUM_ROWS_STEP;
    return TESS_MIN(a->m, TESS_MAX(fit, SUM_ROWS_MIN));
}

size_t tess_cuda_gemm_sum_nbytes(const tess_gemm_args *a)
{
    return aligned(tess_cuda_gemm_sum_rows(a) * a->n * 4);
}

size_t tess_cuda_gemm_work_nbytes(const tess_gemm_args *a, int thread_numel)
{
    (void)thread_numel;
    const tess_dtype dt = a->term[0].a.dt;
    const bool is_nt = a->kind == TESS_GEMM_NT;
    size_t nbytes = 0;
    for (int t = 0; t < a->term_numel && a->kind != TESS_GEMM_TN; t++) {
        const tess_gemm_term *term = &a->term[t];
        if (a->term_numel == 1 && tess_cuda_gemm_is_stored_as(&term->b, dt))
            continue;
        const int64_t k = term->k + (t > 0 ? TESS_CUDA_GEMM_GAP_MAX : 0);
        const int64_t rows = is_nt ? a->n : k;
        const int64_t cols = tess_round_up(is_nt ? k : a->n, TESS_CUDA_GEMM_LINE_NUMEL);
        nbytes += aligned(rows * cols * (int64_t)tess_dtype_block_nbytes(dt));
    }
    const bool is_plain_bias = a->bias == NULL || tess_matrix_dtype(a->bias) == a->c.dt;
    if (a->c.dt == TESS_BF16 && (a->term_numel > 1 || !is_plain_bias))
        nbytes += tess_cuda_gemm_sum_nbytes(a);
    return nbytes == 0 ? 0 : nbytes + ALIGN_NBYTES;
}

/* Rows of scratch reach as far as those of A, which lie side by side in one buffer. */
size_t tess_cuda_gemm_kept_nbytes(const tess_gemm_args *a)
{
    const tess_gemm_term *first = &a->term[0];
    const bool is_nt = a->kind == TESS_GEMM_NT;
    const bool is_thin = is_nt && a->m <= TESS_THIN_ROW_MAX && first->a.dt == TESS_BF16;
    int64_t k = 0, gap = 0;
    bool has_quantized = false;
    for (int t = 0; t < a->term_numel; t++) {
        k += a->term[t].k;
        gap += t > 0 ? TESS_CUDA_GEMM_GAP_MAX : 0;
        has_quantized = has_quantized || tess_format_is_quantized(a->term[t].b.codec.format);
    }
    if (!has_quantized || is_thin)
        return 0;
    k = TESS_MAX(k, TESS_MIN(first->a_stride, k + gap));
    const int64_t rows = is_nt ? a->n : k;
    const int64_t cols = tess_round_up(is_nt ? k : a->n, TESS_CUDA_GEMM_LINE_NUMEL);
    /* terms that lie apart have a matrix each, whose rows are rounded by themselves */
    const int64_t round = (a->term_numel - 1) * TESS_CUDA_GEMM_LINE_NUMEL * rows;
    return aligned((rows * cols + round) * (int64_t)tess_dtype_block_nbytes(first->a.dt)) +
           (size_t)(a->term_numel - 1) * ALIGN_NBYTES;
}

/* ---- attention ---- */

static size_t rows_nbytes(const tess_attention_shape *shape)
{
    return aligned(shape->token_numel * shape->head_numel * (int64_t)sizeof(float));
}

size_t tess_flash_work_nbytes(const tess_attention_shape *shape) { return rows_nbytes(shape); }

size_t tess_sdpa_work_nbytes(const tess_attention_shape *shape)
{
    if (shape->dt != TESS_BF16)
        return 0;
    const size_t places = aligned(TESS_SDPA_PLACE_NUMEL * (int64_t)sizeof(int32_t));
    const int64_t numel = shape->token_numel * shape->head_numel * shape->dim;
    const size_t sums = aligned(numel * (int64_t)sizeof(float));
    const size_t out = aligned(numel * (int64_t)sizeof(uint16_t));
    return ALIGN_NBYTES + (1 + TESS_SDPA_OFFSET_KIND_NUMEL) * places + 2 * rows_nbytes(shape) +
           sums + out;
}

size_t tess_cuda_attention_work_nbytes(const tess_attention_shape *shape, int thread_numel)
{
    (void)thread_numel;
    return TESS_MAX(tess_flash_work_nbytes(shape), tess_sdpa_work_nbytes(shape));
}

/* ---- nearest codes ---- */

tess_cuda_nearest_pack tess_cuda_nearest_pack_of(int64_t code_numel, int64_t dim)
{
    enum { CODES = 128, DEPTH = 32 }; /* of a tile */
    tess_cuda_nearest_pack p = {.padded_numel = tess_round_up(code_numel, CODES),
                                .padded_dim = tess_round_up(dim, DEPTH)};
    const size_t plane = aligned(p.padded_numel * p.padded_dim * (int64_t)sizeof(uint16_t));
    p.offset = ALIGN_NBYTES;
    p.half = p.offset + aligned(dim * (int64_t)sizeof(float));
    p.high = p.half + aligned(p.padded_numel * (int64_t)sizeof(float));
    p.low = p.high + plane;
    p.total = p.low + plane;
    return p;
}

size_t tess_cuda_nearest_pack_nbytes(int64_t code_numel, int64_t dim)
{
    return tess_cuda_nearest_pack_of(code_numel, dim).total;
}

size_t tess_cuda_nearest_work_nbytes(int64_t dim, int best_numel, int thread_numel)
{
    (void)dim, (void)best_numel, (void)thread_numel;
    return 0;
}
