/*
 * Codes that follow moving averages (van den Oord et al. 2017, appendix A.1), on one update per
 * step from the codes of its start. The owner of a row keeps its averages and moves them by exact
 * sums over all ranks; checkpoints hold equal ranges of all averages. See rqvae_follow.c for the
 * update.
 */
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "train/rqvae/rqvae_average_priv.h"

tess_codebook_rows averages_rows(const codes_job *job, char *data, int book)
{
    const tess_vector_layout *v = job->at;
    const int64_t c = v->book.row_numel, d = v->shape.dim;
    float *average = (float *)(void *)(data + v->average);
    return (tess_codebook_rows){.embed = codes_rows(job, book),
                                .embed_avg = average + book * c * d,
                                .cluster_size = average + v->shape.book_numel * c * d + book * c,
                                .row_numel = job->hi_idx - job->lo_idx,
                                .dim = d};
}

/* Of the host. */
static tess_codebook_rows rows_of(const codes_job *job, int book)
{
    return averages_rows(job, codes_host_data(job->s), book);
}

/* All averages of this rank to the device that moves them, or back. */
static tess_status carry(tess_session *s, const tess_vector_layout *v, bool is_back)
{
    const int64_t numel = v->shape.book_numel * v->book.row_numel * (v->shape.dim + 1);
    return codes_carry(s, v, v->average, numel * (int64_t)sizeof(float), is_back);
}

/* ---- start and checkpoints ---- */

/* Codes of length 1 from the start; the divisor of sizes 1 is 1. */
static tess_status make_unit(const codes_job *job, const tess_codebook_rows *rows)
{
    const tess_quantizer_embed_args args = {.rows = *rows,
                                            .total = (double)job->at->shape.code_numel,
                                            .code_numel = job->at->shape.code_numel,
                                            .eps = AVERAGES_EPS,
                                            .is_cosine = true};
    tess_stream *stream = codes_stream(job->s);
    TESS_TRY(codes_kernels(job->s)->quantizers->embed(&args, stream));
    TESS_TRY(tess_stream_finish(stream));
    memcpy(rows->embed_avg, rows->embed,
           (size_t)(rows->row_numel * rows->dim) * sizeof *rows->embed);
    return TESS_OK;
}

tess_status tess_averages_start(tess_session *s, const tess_vector_layout *layout,
                                tess_codebooks *books)
{
    codes_job job;
    TESS_TRY(codes_begin(s, layout, books, &job));
    for (int b = 0; b < layout->shape.book_numel; b++) {
        const tess_codebook_rows rows = rows_of(&job, b);
        TESS_TRY(codes_load(&job, b, false, rows.embed_avg));
        for (int64_t k = 0; k < rows.row_numel; k++)
            rows.cluster_size[k] = 1.0f;
        if (!averages_are_cosine(s))
            continue;
        TESS_TRY(session_agree(s, make_unit(&job, &rows)));
        TESS_TRY(codes_keep(&job, b));
    }
    TESS_TRY(session_agree(s, carry(s, layout, false)));
    return tess_codes_load(s, layout, books);
}

/* Numbers of a book in a checkpoint's list of all, cut in equal ranges. */
static void bounds_of(const codes_job *job, int64_t first, int64_t numel, int64_t *bound)
{
    const tess_vector_layout *v = job->at;
    const int64_t all = v->shape.book_numel * v->average_numel;
    const int64_t each = tess_ceil_div(all, job->world);
    for (int r = 0; r <= job->world; r++)
        bound[r] = TESS_MIN(TESS_MAX(TESS_MIN(each * r, all) - first, 0), numel);
}

/* `first`: of `width` numbers for each row of a book, the place in that list. */
static tess_status recut(codes_job *job, int64_t first, int64_t width, float *rows, bool to_rows)
{
    const int64_t lo =
        tess_ceil_div(job->at->shape.book_numel * job->at->average_numel, job->world) * job->rank;
    float *saved = (float *)(void *)(codes_host_data(job->s) + job->at->saved);
    bounds_of(job, first, job->at->shape.code_numel * width, job->r.bound);
    const tess_codebook_cut cut = {.width = width,
                                   .bound = job->r.bound,
                                   .rows = rows,
                                   .other = saved + TESS_MAX(first - lo, 0),
                                   .to_rows = to_rows};
    return tess_codebooks_recut(job->books, &cut);
}

tess_status tess_averages_recut(tess_session *s, const tess_vector_layout *layout,
                                tess_codebooks *books, bool to_rows)
{
    const int64_t codes = layout->shape.code_numel * layout->shape.dim;
    codes_job job;
    TESS_TRY(codes_begin(s, layout, books, &job));
    TESS_TRY(session_agree(s, to_rows ? TESS_OK : carry(s, layout, true)));
    for (int b = 0; b < layout->shape.book_numel; b++) {
        const tess_codebook_rows rows = rows_of(&job, b);
        const int64_t first = b * layout->average_numel;
        TESS_TRY(recut(&job, first, rows.dim, rows.embed_avg, to_rows));
        TESS_TRY(recut(&job, first + codes, 1, rows.cluster_size, to_rows));
    }
    return session_agree(s, to_rows ? carry(s, layout, false) : TESS_OK);
}
