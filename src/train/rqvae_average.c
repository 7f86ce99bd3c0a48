/*
 * Codes that follow moving averages (van den Oord et al. 2017, appendix A.1), on one update per
 * step from the codes of its start. Every rank holds all averages and makes the same update from
 * the same exact sums; it saves its range of them.
 */
#include <math.h>
#include <string.h>

#include "core/memory.h"
#include "shard/draw.h"
#include "train/rqvae_codes.h"

static const double EPS = 1e-5; /* of vector-quantize-pytorch */

static char *data_at(tess_session *s, size_t offset_nbytes)
{
    return (char *)tess_runtime_arena(s->rt, TESS_LIFE_DATA).data + offset_nbytes;
}

static tess_codebook_rows rows_of(tess_session *s, const tess_vector_layout *v, int book)
{
    float *average = (float *)(void *)data_at(s, v->average) + book * v->average_numel;
    return (tess_codebook_rows){.embed = (float *)(void *)data_at(s, v->embed) +
                                         book * v->shape.code_numel * v->shape.dim,
                                .embed_avg = average,
                                .cluster_size = average + v->shape.code_numel * v->shape.dim,
                                .row_numel = v->shape.code_numel,
                                .dim = v->shape.dim};
}

static bool is_cosine(const tess_session *s)
{
    return s->run->quantizer.type == TESS_RUN_QUANTIZER_COSINE;
}

/* Codes of length 1 from the start; the divisor of sizes 1 is 1. */
static tess_status make_unit(tess_session *s, const tess_codebook_rows *rows)
{
    const tess_quantizer_embed_args args = {.rows = *rows,
                                            .total = (double)rows->row_numel,
                                            .code_numel = rows->row_numel,
                                            .eps = EPS,
                                            .is_cosine = true};
    TESS_TRY(codes_kernels(s)->quantizers->embed(&args, codes_stream(s)));
    TESS_TRY(tess_stream_finish(codes_stream(s)));
    memcpy(rows->embed_avg, rows->embed,
           (size_t)(rows->row_numel * rows->dim) * sizeof *rows->embed);
    return TESS_OK;
}

tess_status tess_averages_start(tess_session *s, const tess_vector_layout *layout)
{
    codes_job job;
    TESS_TRY(codes_begin(s, layout, &job));
    for (int b = 0; b < layout->shape.book_numel; b++) {
        const tess_codebook_rows rows = rows_of(s, layout, b);
        TESS_TRY(codes_gather(&job, b, rows.embed));
        memcpy(rows.embed_avg, rows.embed,
               (size_t)(rows.row_numel * rows.dim) * sizeof *rows.embed);
        for (int64_t k = 0; k < rows.row_numel; k++)
            rows.cluster_size[k] = 1.0f;
        if (!is_cosine(s))
            continue;
        tess_status st = make_unit(s, &rows);
        if (st == TESS_OK)
            st = codes_keep(&job, b, rows.embed);
        TESS_TRY(session_agree(s, st));
    }
    return TESS_OK;
}

tess_status tess_averages_resume(tess_session *s, const tess_vector_layout *layout)
{
    codes_job job;
    TESS_TRY(codes_begin(s, layout, &job));
    for (int b = 0; b < layout->shape.book_numel; b++) {
        const tess_codebook_rows rows = rows_of(s, layout, b);
        TESS_TRY(codes_gather(&job, b, rows.embed));
        TESS_TRY(codes_join(&job, rows.embed_avg, layout->average_numel));
    }
    return TESS_OK;
}

/* Sums and counts of the step's vectors, over all ranks; the sums also in f32. */
static tess_status add_up(codes_job *job, int book)
{
    const tess_vector_layout *v = job->at;
    tess_session *s = job->s;
    const uint32_t *code = (const uint32_t *)(const void *)data_at(s, v->code);
    const int64_t numel = v->shape.code_numel * v->shape.dim;
    int exponent = 0;
    tess_status st = TESS_OK;
    TESS_TRY(codes_exponent(job, &exponent));
    memset(job->r.sum, 0, (size_t)numel * sizeof *job->r.sum);
    memset(job->r.count, 0, (size_t)v->shape.code_numel * sizeof *job->r.count);
    for (int64_t i = 0; i < job->batch_numel * job->part_numel && st == TESS_OK; i++) {
        const int64_t t = i / job->part_numel;
        const int part = (int)(i % job->part_numel), index = book + part * v->shape.book_numel;
        const tess_code_sum_args args = {.x = codes_vectors(job, part, t),
                                         .row = code +
                                                (t * v->shape.index_numel + index) * v->row_numel,
                                         .vector_numel = v->row_numel,
                                         .dim = v->shape.dim,
                                         .row_numel = v->shape.code_numel,
                                         .exponent = exponent,
                                         .sum = job->r.sum,
                                         .count = job->r.count};
        st = codes_kernels(s)->code_sum(&args, codes_stream(s));
    }
    TESS_TRY(session_agree(s, st));
    TESS_TRY(codes_share(job, job->r.sum, numel));
    TESS_TRY(codes_share(job, job->r.count, v->shape.code_numel));
    for (int64_t i = 0; i < numel; i++)
        job->r.code[i] = (float)tess_fixed_value(job->r.sum[i], exponent);
    return TESS_OK;
}

static tess_status move(codes_job *job, const tess_codebook_rows *rows)
{
    const tess_quantizer_kernels *q = codes_kernels(job->s)->quantizers;
    tess_stream *stream = codes_stream(job->s);
    int64_t total = 0;
    const tess_quantizer_average_args average = {.rows = *rows,
                                                 .count = job->r.count,
                                                 .sum = job->r.code,
                                                 .decay = job->s->run->quantizer.decay};
    const tess_quantizer_total_args sizes = {
        .cluster_size = rows->cluster_size, .row_numel = rows->row_numel, .total = &total};
    TESS_TRY(q->average(&average, stream));
    TESS_TRY(q->total(&sizes, stream));
    TESS_TRY(tess_stream_finish(stream));
    const tess_quantizer_embed_args embed = {.rows = *rows,
                                             .total = ldexp((double)total, -20),
                                             .code_numel = rows->row_numel,
                                             .eps = EPS,
                                             .is_cosine = is_cosine(job->s)};
    return q->embed(&embed, stream);
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

/* Codes that too few vectors came to begin again at vectors of the step. */
static tess_status replace(codes_job *job, const tess_codebook_rows *rows, int book)
{
    tess_session *s = job->s;
    int64_t expired_numel = 0, numel = 0;
    TESS_TRY(session_agree(s, find_expired(job, rows, &expired_numel)));
    if (expired_numel == 0)
        return TESS_OK;
    const tess_draw draw = {.seed = (uint64_t)s->run->train.seed,
                            .purpose = TESS_DRAW_REPLACE,
                            .step = (uint32_t)s->step,
                            .layer = (uint32_t)book};
    TESS_TRY(codes_draw(job, &draw, expired_numel));
    for (int64_t k = 0; k < rows->row_numel; k++)
        if (job->r.expired[k] != 0)
            job->r.count[numel++] = k;
    const tess_quantizer_replace_args args = {.rows = *rows,
                                              .row = job->r.count,
                                              .vector = job->r.code,
                                              .replace_numel = numel,
                                              .reset = s->run->quantizer.threshold,
                                              .is_cosine = is_cosine(s)};
    return session_agree(s, codes_kernels(s)->quantizers->replace(&args, codes_stream(s)));
}

tess_status tess_averages_update(tess_session *s, const tess_vector_layout *layout)
{
    codes_job job;
    TESS_TRY(codes_begin(s, layout, &job));
    const int64_t each = layout->row_numel * layout->shape.dim;
    job.stride = layout->shape.index_numel * each;
    job.part_stride = layout->shape.book_numel * each;
    for (int b = 0; b < layout->shape.book_numel; b++) {
        const tess_codebook_rows rows = rows_of(s, layout, b);
        job.x = (float *)(void *)data_at(s, layout->kept) + b * each;
        TESS_TRY(add_up(&job, b));
        TESS_TRY(session_agree(s, move(&job, &rows)));
        if (s->run->quantizer.threshold > 0.0)
            TESS_TRY(replace(&job, &rows, b));
        TESS_TRY(session_agree(s, codes_keep(&job, b, rows.embed)));
    }
    return TESS_OK;
}
