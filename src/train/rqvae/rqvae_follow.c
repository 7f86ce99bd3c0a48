/*
 * Codes follow a step: sums of its vectors where they were made, averages at the owners of rows.
 *
 * [Note: averages on a device] Vectors, their sums and the averages stay on the device. Down come
 * the largest magnitude and the size of each book, once a step for all books, and the flags of dead
 * codes where a run replaces them. Between ranks sums and new codes travel through host memory, as
 * all exchanges of codebooks do (shard/codebook.h); alone a rank moves neither.
 */
#include <math.h>
#include <string.h>

#include "core/arith.h"
#include "shard/draw.h"
#include "train/rqvae/rqvae_average_priv.h"

/* Where kernels work: memory of the host, or of the device. */
typedef struct workplace {
    const tess_kernels *k;
    tess_stream *stream;
    tess_space space;
    char *data; /* of the layout */
    uint32_t *most;
    int64_t *total;
    int64_t *sum, *tally; /* of owned rows of the book under way */
    float *value, *embed; /* of owned rows; `embed` NULL: the codebooks' */
    int64_t *row;
    uint8_t *expired;
    int64_t *expired_numel;
} workplace;

typedef struct follow {
    codes_job job;
    workplace w;
    int exponent[TESS_RQVAE_LEVEL_MAX]; /* [books] */
} follow;

static void *far_at(const codes_job *job, size_t offset_nbytes)
{
    return codes_far_room(job->s, job->at) + offset_nbytes;
}

static workplace workplace_of(const codes_job *job)
{
    const tess_average_room *at = &job->at->far;
    const codes_room *r = &job->r;
    workplace w = {.k = job->s->kernels,
                   .stream = tess_runtime_stream(job->s->rt),
                   .space = TESS_HOST,
                   .data = codes_work_data(job->s, job->at),
                   .most = r->most,
                   .total = r->total,
                   .value = r->value,
                   .row = r->row,
                   .expired = r->expired,
                   .expired_numel = r->expired_numel};
    if (!job->is_far)
        return w;
    w.space = TESS_DEVICE;
    w.most = far_at(job, at->most);
    w.total = far_at(job, at->total);
    w.sum = (int64_t *)far_at(job, at->sum) + job->lo_idx * job->at->shape.dim;
    w.tally = (int64_t *)far_at(job, at->tally) + job->lo_idx;
    w.value = far_at(job, at->value);
    w.embed = far_at(job, at->embed);
    w.row = far_at(job, at->row);
    w.expired = far_at(job, at->expired);
    w.expired_numel = far_at(job, at->expired_numel);
    return w;
}

/* ---- between the host and where kernels work ---- */

static tess_view view_of(const workplace *w, const void *data, int64_t numel, tess_dtype dt)
{
    return (tess_view){(void *)(uintptr_t)data, numel, dt, w->space};
}

static tess_status clear(const follow *f, void *data, int64_t numel, tess_dtype dt)
{
    return tess_device_zero(tess_runtime_device(f->job.s->rt), view_of(&f->w, data, numel, dt),
                            f->w.stream);
}

/* What kernels wrote, when they are done; on the host it is there already. */
static tess_status bring(const follow *f, void *host, const void *data, int64_t numel,
                         tess_dtype dt)
{
    if (!f->job.is_far)
        return tess_stream_finish(f->w.stream);
    return tess_runtime_copy(f->job.s->rt, tess_view_host(host, numel, dt),
                             view_of(&f->w, data, numel, dt));
}

static tess_status send(const follow *f, void *data, const void *host, int64_t numel, tess_dtype dt)
{
    if (!f->job.is_far)
        return TESS_OK;
    return tess_runtime_copy(f->job.s->rt, view_of(&f->w, data, numel, dt),
                             tess_view_host((void *)(uintptr_t)host, numel, dt));
}

/* ---- vectors of the step ---- */

static void choose_book(follow *f, int book)
{
    const tess_vector_layout *v = f->job.at;
    f->job.x = (float *)(void *)(f->w.data + v->kept) + (int64_t)book * v->row_numel * v->shape.dim;
}

/* Codes of part p of micro-batch t, where they are in `data`. */
static uint32_t *codes_at(const follow *f, char *data, int book, int part, int64_t t)
{
    const tess_vector_layout *v = f->job.at;
    const int64_t index = book + (int64_t)part * v->shape.book_numel;
    return (uint32_t *)(void *)(data + v->code) + (t * v->shape.index_numel + index) * v->row_numel;
}

/* Codes of the step came to the host for its counts. */
static tess_status send_codes(const follow *f)
{
    const tess_vector_layout *v = f->job.at;
    const int64_t numel = v->kept_numel * v->shape.index_numel;
    return codes_carry(f->job.s, v, v->code, numel * (int64_t)sizeof(uint32_t), false);
}

static tess_status find_most(follow *f, int book)
{
    const tess_vector_layout *v = f->job.at;
    choose_book(f, book);
    for (int p = 0; p < f->job.part_numel; p++)
        for (int64_t t = 0; t < f->job.batch_numel; t++) {
            const tess_code_most_args args = {.x = codes_vectors(&f->job, p, t),
                                              .row = codes_at(f, f->w.data, book, p, t),
                                              .vector_numel = v->row_numel,
                                              .dim = v->shape.dim,
                                              .most = f->w.most + book};
            TESS_TRY(f->w.k->code_most(&args, f->w.stream));
        }
    return TESS_OK;
}

static tess_status find_all_most(follow *f)
{
    const int books = f->job.at->shape.book_numel;
    TESS_TRY(send_codes(f));
    TESS_TRY(clear(f, f->w.most, books, TESS_I32));
    for (int b = 0; b < books; b++)
        TESS_TRY(find_most(f, b));
    return bring(f, f->job.r.most, f->w.most, books, TESS_I32);
}

/* Exponents of all books, from the vectors of all ranks. */
static tess_status find_exponents(follow *f)
{
    const int books = f->job.at->shape.book_numel;
    int64_t bits[TESS_RQVAE_LEVEL_MAX];
    TESS_TRY(session_agree(f->job.s, find_all_most(f)));
    for (int b = 0; b < books; b++)
        bits[b] = TESS_MAX(f->job.r.most[b], tess_ordered_bits(0.0f));
    TESS_TRY(tess_comm_control(f->job.s->world, NULL, 0, bits, books));
    for (int b = 0; b < books; b++)
        TESS_TRY(codes_exponent_of(&f->job, (uint32_t)bits[b], &f->exponent[b]));
    return TESS_OK;
}

/* ---- sums at owners ---- */

/* Over all ranks, in the codebooks' memory. */
static tess_status add_up_near(follow *f, int book)
{
    codes_job *job = &f->job;
    TESS_TRY(tess_codebooks_begin_sums(job->books, f->exponent[book]));
    for (int64_t i = 0; i < job->round_numel * job->part_numel; i++) {
        const int64_t t = i / job->part_numel;
        const int part = (int)(i % job->part_numel);
        const tess_codebook_round round = codes_round(job, book, part, t);
        const int64_t own = t < job->batch_numel ? t : 0;
        TESS_TRY(tess_codebooks_add(job->books, &round, codes_at(f, f->w.data, book, part, own)));
    }
    TESS_TRY(tess_codebooks_end_sums(job->books));
    f->w.sum = (int64_t *)(uintptr_t)tess_codebooks_sum(job->books);
    f->w.tally = (int64_t *)(uintptr_t)tess_codebooks_tally(job->books);
    return TESS_OK;
}

/* Of this rank's vectors for all rows, where they lie. */
static tess_status add_own(follow *f, int book)
{
    const tess_vector_layout *v = f->job.at;
    const int64_t codes = v->shape.code_numel, d = v->shape.dim;
    int64_t *sum = far_at(&f->job, v->far.sum), *tally = far_at(&f->job, v->far.tally);
    TESS_TRY(clear(f, sum, codes * d, TESS_I64));
    TESS_TRY(clear(f, tally, codes, TESS_I64));
    for (int p = 0; p < f->job.part_numel; p++)
        for (int64_t t = 0; t < f->job.batch_numel; t++) {
            const tess_code_sum_args args = {.x = codes_vectors(&f->job, p, t),
                                             .row = codes_at(f, f->w.data, book, p, t),
                                             .vector_numel = v->row_numel,
                                             .dim = d,
                                             .row_numel = codes,
                                             .exponent = f->exponent[book],
                                             .sum = sum,
                                             .count = tally};
            TESS_TRY(f->w.k->code_sum(&args, f->w.stream));
        }
    return TESS_OK;
}

static tess_status bring_sums(follow *f, int book)
{
    const tess_vector_layout *v = f->job.at;
    const int64_t codes = v->shape.code_numel, d = v->shape.dim;
    TESS_TRY(tess_codebooks_begin_sums(f->job.books, f->exponent[book]));
    TESS_TRY(bring(f, tess_codebooks_all_sums(f->job.books), far_at(&f->job, v->far.sum), codes * d,
                   TESS_I64));
    return bring(f, tess_codebooks_all_tallies(f->job.books), far_at(&f->job, v->far.tally), codes,
                 TESS_I64);
}

static tess_status send_sums(follow *f)
{
    const int64_t rows = f->job.hi_idx - f->job.lo_idx;
    TESS_TRY(
        send(f, f->w.sum, tess_codebooks_sum(f->job.books), rows * f->job.at->shape.dim, TESS_I64));
    return send(f, f->w.tally, tess_codebooks_tally(f->job.books), rows, TESS_I64);
}

static tess_status add_up_far(follow *f, int book)
{
    choose_book(f, book);
    TESS_TRY(session_agree(f->job.s, add_own(f, book)));
    if (f->job.world == 1)
        return TESS_OK;
    TESS_TRY(session_agree(f->job.s, bring_sums(f, book)));
    TESS_TRY(tess_codebooks_end_sums(f->job.books));
    return session_agree(f->job.s, send_sums(f));
}

static tess_status add_up(follow *f, int book)
{
    choose_book(f, book);
    return f->job.is_far ? add_up_far(f, book) : add_up_near(f, book);
}

/* ---- averages and codes of owned rows ---- */

static tess_codebook_rows rows_of(const follow *f, int book)
{
    tess_codebook_rows rows = averages_rows(&f->job, f->w.data, book);
    if (f->w.embed != NULL)
        rows.embed = f->w.embed;
    return rows;
}

/* And what they add to the size of all codes. */
static tess_status move_averages(const follow *f, int book)
{
    const workplace *w = &f->w;
    const tess_codebook_rows rows = rows_of(f, book);
    const tess_code_value_args value = {.sum = w->sum,
                                        .numel = rows.row_numel * rows.dim,
                                        .exponent = f->exponent[book],
                                        .value = w->value};
    const tess_quantizer_average_args average = {
        .rows = rows, .count = w->tally, .sum = w->value, .decay = f->job.s->run->quantizer.decay};
    const tess_quantizer_total_args sizes = {
        .cluster_size = rows.cluster_size, .row_numel = rows.row_numel, .total = w->total + book};
    TESS_TRY(w->k->code_value(&value, w->stream));
    TESS_TRY(w->k->quantizers->average(&average, w->stream));
    return w->k->quantizers->total(&sizes, w->stream);
}

/* Sizes of all codes of every book come to all ranks. */
static tess_status move_all(follow *f)
{
    tess_session *s = f->job.s;
    const int books = f->job.at->shape.book_numel;
    tess_status st = clear(f, f->w.total, books, TESS_I64);
    for (int b = 0; b < books; b++) {
        TESS_TRY(session_agree(s, st));
        TESS_TRY(add_up(f, b));
        st = move_averages(f, b);
    }
    if (st == TESS_OK)
        st = bring(f, f->job.r.total, f->w.total, books, TESS_I64);
    TESS_TRY(session_agree(s, st));
    return tess_comm_control(s->world, f->job.r.total, books, NULL, 0);
}

static tess_status set_codes(const follow *f, int book)
{
    const tess_quantizer_embed_args embed = {.rows = rows_of(f, book),
                                             .total = ldexp((double)f->job.r.total[book], -20),
                                             .code_numel = f->job.at->shape.code_numel,
                                             .eps = AVERAGES_EPS,
                                             .is_cosine = averages_are_cosine(f->job.s)};
    return f->w.k->quantizers->embed(&embed, f->w.stream);
}

/* ---- dead codes ---- */

static tess_status find_expired(const follow *f, const tess_codebook_rows *rows)
{
    const codes_room *r = &f->job.r;
    const tess_quantizer_expire_args expire = {.cluster_size = rows->cluster_size,
                                               .row_numel = rows->row_numel,
                                               .threshold = f->job.s->run->quantizer.threshold,
                                               .expired = f->w.expired,
                                               .expired_numel = f->w.expired_numel};
    TESS_TRY(f->w.k->quantizers->expire(&expire, f->w.stream));
    TESS_TRY(bring(f, r->expired_numel, f->w.expired_numel, 1, TESS_I64));
    if (*r->expired_numel == 0)
        return TESS_OK;
    return bring(f, r->expired, f->w.expired, rows->row_numel, TESS_U8);
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

static tess_status place_drawn(const follow *f, const tess_codebook_rows *rows)
{
    const codes_room *r = &f->job.r;
    int64_t numel = 0;
    for (int64_t k = 0; k<rows->row_numel && * r->expired_numel> 0; k++)
        if (r->expired[k] != 0)
            r->row[numel++] = k;
    TESS_TRY(send(f, f->w.row, r->row, numel, TESS_I64));
    TESS_TRY(send(f, f->w.value, r->value, numel * rows->dim, TESS_F32));
    const tess_quantizer_replace_args args = {.rows = *rows,
                                              .row = f->w.row,
                                              .vector = f->w.value,
                                              .replace_numel = numel,
                                              .reset = f->job.s->run->quantizer.threshold,
                                              .is_cosine = averages_are_cosine(f->job.s)};
    return f->w.k->quantizers->replace(&args, f->w.stream);
}

/* Codes that too few vectors came to begin again at vectors of the step. */
static tess_status replace(follow *f, int book)
{
    tess_session *s = f->job.s;
    const codes_room *r = &f->job.r;
    const tess_codebook_rows rows = rows_of(f, book);
    TESS_TRY(session_agree(s, find_expired(f, &rows)));
    TESS_TRY(count_expired(&f->job, *r->expired_numel));
    if (r->first[f->job.world] == 0)
        return TESS_OK;
    const tess_draw draw = {.seed = (uint64_t)s->run->train.seed,
                            .purpose = TESS_DRAW_REPLACE,
                            .step = (uint32_t)s->step,
                            .layer = (uint32_t)book};
    choose_book(f, book);
    TESS_TRY(codes_draw(&f->job, &draw, r->first[f->job.world], r->value));
    return session_agree(s, place_drawn(f, &rows));
}

/* ---- masters ---- */

/* Alone a rank owns all rows, and all numbers of their tensor. */
static tess_status keep_far(const follow *f, int book)
{
    const codes_range range =
        codes_range_of(f->job.s, tess_rqvae_codebook(f->job.s->d.model, book));
    const tess_view codes = view_of(&f->w, f->w.embed, range.master.numel, TESS_F32);
    TESS_TRY(tess_runtime_copy(f->job.s->rt, range.master, codes));
    return tess_runtime_copy(f->job.s->rt, range.copy, codes);
}

static tess_status keep(follow *f, int book)
{
    codes_job *job = &f->job;
    const int64_t numel = (job->hi_idx - job->lo_idx) * job->at->shape.dim;
    if (job->is_far && job->world == 1)
        return session_agree(job->s, keep_far(f, book));
    const tess_status st = bring(f, codes_rows(job, book), f->w.embed, numel, TESS_F32);
    TESS_TRY(job->is_far ? session_agree(job->s, st) : st); /* of a host nothing can fail */
    TESS_TRY(codes_keep(job, book));
    return job->at->book.shape.is_sharded ? tess_codebooks_publish(job->books, book) : TESS_OK;
}

static tess_status update_book(follow *f, int book)
{
    TESS_TRY(session_agree(f->job.s, set_codes(f, book)));
    if (f->job.s->run->quantizer.threshold > 0.0)
        TESS_TRY(replace(f, book));
    return keep(f, book);
}

tess_status tess_averages_update(tess_session *s, const tess_vector_layout *layout,
                                 tess_codebooks *books)
{
    const int64_t each = layout->row_numel * layout->shape.dim;
    follow f;
    TESS_TRY(codes_begin(s, layout, books, &f.job));
    f.job.is_far = codes_are_far(s);
    f.job.stride = layout->shape.index_numel * each;
    f.job.part_stride = layout->shape.book_numel * each;
    f.w = workplace_of(&f.job);
    TESS_TRY(find_exponents(&f));
    TESS_TRY(move_all(&f));
    for (int b = 0; b < layout->shape.book_numel; b++)
        TESS_TRY(update_book(&f, b));
    return TESS_OK;
}
