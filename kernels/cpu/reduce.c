#include <math.h>
#include <string.h>

#include "kernels/cpu/ops_priv.h"

static void fold_part(void *arg, int part_idx, int part_numel)
{
    const tess_fold_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->numel, 64, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->fold(a, lo, hi);
}

tess_status tess_cpu_fold(const tess_fold_args *a, tess_stream *s)
{
    TESS_TRY(tess_fold_check(a));
    tess_fold_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->numel), fold_part, &args);
    return TESS_OK;
}

/* All pieces of a block before the next block, so that its levels stay in the cache and a piece is
 * read once. */
enum { PIECES_BLOCK_NUMEL = 1024 };

/* Elements [lo, hi) of every piece; an even piece whose partner comes with it is not stored. */
static void push_block(const tess_fold_pieces_args *a, int64_t lo, int64_t hi)
{
    const float *even = NULL;
    for (int64_t i = 0; i < a->piece_numel; i++) {
        const int64_t m = a->first_idx + i;
        const float *carried = tess_fold_piece(a, i);
        if ((m & 1) == 0) {
            even = carried;
            continue;
        }
        for (int l = 0; (m >> l & 1) != 0; l++) {
            float *here = a->levels + l * a->level_stride_numel;
            float *dst = (m >> (l + 1) & 1) != 0 ? here : here + a->level_stride_numel;
            const tess_fold_args one = {.a = l == 0 && even != NULL ? even : here,
                                        .b = carried,
                                        .dst = dst,
                                        .numel = a->numel};
            tess_cpu_rows_get()->fold(&one, lo, hi);
            carried = dst;
        }
        even = NULL;
    }
    if (even != NULL)
        memcpy(a->levels + lo, even + lo, (size_t)(hi - lo) * sizeof(float));
}

static void pieces_part(void *arg, int part_idx, int part_numel)
{
    const tess_fold_pieces_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->numel, 64, part_idx, part_numel, &lo, &hi);
    for (int64_t at = lo; at < hi; at += PIECES_BLOCK_NUMEL)
        push_block(a, at, TESS_MIN(at + PIECES_BLOCK_NUMEL, hi));
}

tess_status tess_cpu_fold_pieces(const tess_fold_pieces_args *a, tess_stream *s)
{
    TESS_TRY(tess_fold_pieces_check(a));
    tess_fold_pieces_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->numel), pieces_part, &args);
    return TESS_OK;
}

/* Blocks in batches that fit the stack; limbs are integers, so any order of batches and threads
 * gives the same accumulator. */
enum { BLOCK_NUMEL = 256, BATCH_BLOCKS = 1024, PART_BLOCKS = 64 };

typedef struct norm_batch {
    const float *x;
    int64_t numel;
    double *sum; /* [ceil(numel / 256)] */
} norm_batch;

static void norm_part(void *arg, int part_idx, int part_numel)
{
    const norm_batch *batch = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(batch->numel, PART_BLOCKS * BLOCK_NUMEL, part_idx, part_numel, &lo, &hi);
    if (lo < hi)
        tess_cpu_rows_get()->square_blocks(batch->x + lo, hi - lo, batch->sum + lo / BLOCK_NUMEL);
}

static int64_t count_nonfinite(const float *x, int64_t numel)
{
    int64_t count = 0;
    for (int64_t i = 0; i < numel; i++)
        count += isfinite(x[i]) ? 0 : 1;
    return count;
}

tess_status tess_cpu_square_norm(const tess_square_norm_args *a, tess_stream *s)
{
    TESS_TRY(tess_square_norm_check(a));
    double sum[BATCH_BLOCKS];
    for (int64_t first = 0; first < a->numel; first += BATCH_BLOCKS * BLOCK_NUMEL) {
        norm_batch batch = {a->x + first,
                            TESS_MIN(a->numel - first, (int64_t)BATCH_BLOCKS * BLOCK_NUMEL), sum};
        tess_pool_run(s->pool, tess_cpu_part_numel(s, batch.numel), norm_part, &batch);
        for (int64_t lo = 0; lo < batch.numel; lo += BLOCK_NUMEL) {
            /* Squares of finite f32 cannot overflow fp64: only a non-finite element can. */
            if (!tess_exact_add(a->acc, sum[lo / BLOCK_NUMEL]))
                *a->nonfinite_numel +=
                    count_nonfinite(batch.x + lo, TESS_MIN(batch.numel - lo, (int64_t)BLOCK_NUMEL));
        }
    }
    return TESS_OK;
}

tess_status tess_cpu_sum(const tess_sum_args *a, tess_stream *s)
{
    (void)s;
    TESS_TRY(tess_sum_check(a));
    double sum = 0.0;
    for (int64_t i = 0; i < a->numel; i++)
        sum += a->x[i];
    *a->out = sum;
    return TESS_OK;
}

tess_status tess_cpu_mix(const tess_mix_args *a, tess_stream *s)
{
    (void)s;
    TESS_TRY(tess_mix_check(a));
    for (int64_t i = 0; i < a->row_numel; i++) {
        double sum = a->weight[0] * a->x[i];
        for (int t = 1; t < a->term_numel; t++)
            sum += a->weight[t] * a->x[t * a->row_numel + i];
        a->out[i] = sum;
    }
    return TESS_OK;
}

tess_status tess_cpu_exact_add(const tess_exact_add_args *a, tess_stream *s)
{
    (void)s;
    TESS_TRY(tess_exact_add_check(a));
    if (!tess_exact_add(a->acc, *a->x))
        ++*a->nonfinite_numel;
    return TESS_OK;
}
