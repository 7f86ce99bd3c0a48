/*
 * Codes that follow moving averages (van den Oord et al. 2017, appendix A.1), on one update per
 * step from the codes of its start. The owner of a row keeps its averages and moves them by exact
 * sums over all ranks; checkpoints hold equal ranges of all averages.
 */
#include <math.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "shard/draw.h"
#include "train/rqvae_codes.h"

static const double EPS = 1e-5; /* of vector-quantize-pytorch */

static char *data_at(tess_session *s, size_t offset_nbytes)
{
    return (char *)tess_runtime_arena(s->rt, TESS_LIFE_DATA).data + offset_nbytes;
}

/* Owned rows of a book. */
static tess_codebook_rows rows_of(const codes_job *job, int book)
{
    const tess_vector_layout *v = job->at;
    const int64_t c = v->book.row_numel, d = v->shape.dim;
    float *average = (float *)(void *)data_at(job->s, v->average);
    return (tess_codebook_rows){.embed = codes_rows(job, book),
                                .embed_avg = average + book * c * d,
                                .cluster_size = average + v->shape.book_numel * c * d + book * c,
                                .row_numel = job->hi_idx - job->lo_idx,
                                .dim = d};
}

static bool is_cosine(const tess_session *s)
{
    return s->run->quantizer.type == TESS_RUN_QUANTIZER_COSINE;
}

/* ---- start and checkpoints ---- */

/* Codes of length 1 from the start; the divisor of sizes 1 is 1. */
static tess_status make_unit(const codes_job *job, const tess_codebook_rows *rows)
{
    const tess_quantizer_embed_args args = {.rows = *rows,
                                            .total = (double)job->at->shape.code_numel,
                                            .code_numel = job->at->shape.code_numel,
                                            .eps = EPS,
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
        TESS_TRY(codes_load(&job, b, rows.embed_avg));
        for (int64_t k = 0; k < rows.row_numel; k++)
            rows.cluster_size[k] = 1.0f;
        if (!is_cosine(s))
            continue;
        TESS_TRY(session_agree(s, make_unit(&job, &rows)));
        TESS_TRY(codes_keep(&job, b));
    }
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
    float *saved = (float *)(void *)data_at(job->s, job->at->saved);
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
    for (int b = 0; b < layout->shape.book_numel; b++) {
        const tess_codebook_rows rows = rows_of(&job, b);
        const int64_t first = b * layout->average_numel;
        TESS_TRY(recut(&job, first, rows.dim, rows.embed_avg, to_rows));
        TESS_TRY(recut(&job, first + codes, 1, rows.cluster_size, to_rows));
    }
    return TESS_OK;
}

/* ---- update ---- */

/* Sums and counts of the step's vectors, over all ranks, at their owners; the sums in f32 too. */
static tess_status add_up(codes_job *job, int book)
{
    const tess_vector_layout *v = job->at;
    const uint32_t *code = (const uint32_t *)(const void *)data_at(job->s, v->code);
    int exponent = 0;
    TESS_TRY(codes_exponent(job, &exponent));
    TESS_TRY(tess_codebooks_begin_sums(job->books, exponent));
    for (int64_t i = 0; i < job->round_numel * job->part_numel; i++) {
        const int64_t t = i / job->part_numel;
        const int part = (int)(i % job->part_numel), index = book + part * v->shape.book_numel;
        const tess_codebook_round round = codes_round(job, book, part, t);
        const int64_t first =
            t < job->batch_numel ? (t * v->shape.index_numel + index) * v->row_numel : 0;
        TESS_TRY(tess_codebooks_add(job->books, &round, code + first));
    }
    TESS_TRY(tess_codebooks_end_sums(job->books));
    const int64_t *sum = tess_codebooks_sum(job->books);
    for (int64_t i = 0; i < (job->hi_idx - job->lo_idx) * v->shape.dim; i++)
        job->r.value[i] = (float)tess_fixed_value(sum[i], exponent);
    return TESS_OK;
}

/* Averages of the owned rows, and what they add to the size of all codes. */
static tess_status move_averages(codes_job *job, const tess_codebook_rows *rows, int64_t *total)
{
    const tess_quantizer_kernels *q = codes_kernels(job->s)->quantizers;
    tess_stream *stream = codes_stream(job->s);
    const tess_quantizer_average_args average = {.rows = *rows,
                                                 .count = tess_codebooks_tally(job->books),
                                                 .sum = job->r.value,
                                                 .decay = job->s->run->quantizer.decay};
    const tess_quantizer_total_args sizes = {
        .cluster_size = rows->cluster_size, .row_numel = rows->row_numel, .total = total};
    TESS_TRY(q->average(&average, stream));
    TESS_TRY(q->total(&sizes, stream));
    return tess_stream_finish(stream);
}

static tess_status move(codes_job *job, const tess_codebook_rows *rows)
{
    tess_stream *stream = codes_stream(job->s);
    int64_t total = 0;
    TESS_TRY(session_agree(job->s, move_averages(job, rows, &total)));
    TESS_TRY(tess_comm_control(job->s->world, &total, 1, NULL, 0));
    const tess_quantizer_embed_args embed = {.rows = *rows,
                                             .total = ldexp((double)total, -20),
                                             .code_numel = job->at->shape.code_numel,
                                             .eps = EPS,
                                             .is_cosine = is_cosine(job->s)};
    tess_status st = codes_kernels(job->s)->quantizers->embed(&embed, stream);
    if (st == TESS_OK)
        st = tess_stream_finish(stream);
    return session_agree(job->s, st);
}

static tess_status find_expired(codes_job *job, const tess_codebook_rows *rows,
                                int64_t *expired_numel)
{
    tess_session *s = job->s;
    const tess_quantizer_expire_args expire = {.cluster_size = rows->cluster_size,
                                               .row_numel = rows->row_numel,
                                               .threshold = s->run->quantizer.threshold,
                                               .expired = job->r.expired,
                                               .expired_numel = expired_numel};
    TESS_TRY(codes_kernels(s)->quantizers->expire(&expire, codes_stream(s)));
    return tess_stream_finish(codes_stream(s));
}

/* How many rows expired on which ranks: first[r] are those in front of rank r's. */
static tess_status count_expired(codes_job *job, int64_t own)
{
    int64_t *first = job->r.first;
    memset(first, 0, (size_t)(job->world + 1) * sizeof *first);
    first[job->rank + 1] = own;
    TESS_TRY(tess_comm_control(job->s->world, first, job->world + 1, NULL, 0));
    for (int r = 0; r < job->world; r++)
        first[r + 1] += first[r];
    return TESS_OK;
}

/* Codes that too few vectors came to begin again at vectors of the step. */
static tess_status replace(codes_job *job, const tess_codebook_rows *rows, int book)
{
    tess_session *s = job->s;
    int64_t expired_numel = 0, numel = 0;
    TESS_TRY(session_agree(s, find_expired(job, rows, &expired_numel)));
    TESS_TRY(count_expired(job, expired_numel));
    if (job->r.first[job->world] == 0)
        return TESS_OK;
    const tess_draw draw = {.seed = (uint64_t)s->run->train.seed,
                            .purpose = TESS_DRAW_REPLACE,
                            .step = (uint32_t)s->step,
                            .layer = (uint32_t)book};
    TESS_TRY(codes_draw(job, &draw, job->r.first[job->world], job->r.value));
    for (int64_t k = 0; k < rows->row_numel; k++)
        if (job->r.expired[k] != 0)
            job->r.row[numel++] = k;
    const tess_quantizer_replace_args args = {.rows = *rows,
                                              .row = job->r.row,
                                              .vector = job->r.value,
                                              .replace_numel = numel,
                                              .reset = s->run->quantizer.threshold,
                                              .is_cosine = is_cosine(s)};
    return session_agree(s, codes_kernels(s)->quantizers->replace(&args, codes_stream(s)));
}

static tess_status update_book(codes_job *job, int book)
{
    const tess_codebook_rows rows = rows_of(job, book);
    TESS_TRY(add_up(job, book));
    TESS_TRY(move(job, &rows));
    if (job->s->run->quantizer.threshold > 0.0)
        TESS_TRY(replace(job, &rows, book));
    TESS_TRY(codes_keep(job, book));
    return job->at->book.shape.is_sharded ? tess_codebooks_publish(job->books, book) : TESS_OK;
}

tess_status tess_averages_update(tess_session *s, const tess_vector_layout *layout,
                                 tess_codebooks *books)
{
    codes_job job;
    TESS_TRY(codes_begin(s, layout, books, &job));
    const int64_t each = layout->row_numel * layout->shape.dim;
    job.stride = layout->shape.index_numel * each;
    job.part_stride = layout->shape.book_numel * each;
    for (int b = 0; b < layout->shape.book_numel; b++) {
        job.x = (float *)(void *)data_at(s, layout->kept) + b * each;
        TESS_TRY(update_book(&job, b));
    }
    return TESS_OK;
}
