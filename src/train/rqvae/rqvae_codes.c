#include "train/rqvae/rqvae_codes.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "shard/draw.h"

/* ---- memory ---- */

static tess_status take(codes_room *r, int64_t a, int64_t b, size_t elem_nbytes, void *slot)
{
    int64_t nbytes = 0, end = 0;
    TESS_TRY(tess_mul_i64(a, b, &nbytes));
    TESS_TRY(tess_mul_i64(nbytes, (int64_t)elem_nbytes, &nbytes));
    void *at = r->base != NULL ? r->base + r->used_nbytes : NULL;
    memcpy(slot, &at, sizeof at);
    TESS_TRY(tess_add_i64((int64_t)r->used_nbytes, tess_round_up(nbytes, TESS_ARENA_ALIGN_NBYTES),
                          &end));
    r->used_nbytes = (size_t)end;
    return TESS_OK;
}

/* Numbers of a book's codes in one rank's masters: all books lie behind each other in one slab. */
static int64_t share_numel(const tess_vector_layout *v)
{
    const int64_t block = TESS_TRAINABLE_BLOCK_NUMEL, numel = v->shape.code_numel * v->shape.dim;
    const int64_t blocks = v->shape.book_numel * tess_ceil_div(numel, block);
    return TESS_MIN(numel, tess_ceil_div(blocks, v->book.shape.world) * block);
}

static tess_status lay_out(const tess_vector_layout *v, codes_room *r)
{
    const int64_t c = v->book.row_numel, d = v->shape.dim, world = v->book.shape.world;
    void *books = NULL;
    if (!v->book.shape.is_sharded) /* in front, as tess_codes_create() has them */
        TESS_TRY(take(r, (int64_t)v->book.total_nbytes, 1, 1, &books));
    TESS_TRY(take(r, v->shape.book_numel, 1, sizeof *r->most, &r->most));
    TESS_TRY(take(r, v->shape.book_numel, 1, sizeof *r->total, &r->total));
    TESS_TRY(take(r, c, d, sizeof *r->value, &r->value));
    TESS_TRY(take(r, d, 1, sizeof *r->vector, &r->vector));
    TESS_TRY(take(r, share_numel(v), 1, sizeof *r->share, &r->share));
    TESS_TRY(take(r, v->shape.code_numel, 1, sizeof *r->drawn, &r->drawn));
    TESS_TRY(take(r, (int64_t)tess_draw_room_nbytes(v->shape.code_numel, v->book.shape.world), 1, 1,
                  &r->draws));
    TESS_TRY(take(r, c, 1, sizeof *r->row, &r->row));
    TESS_TRY(take(r, c, 1, sizeof *r->expired, &r->expired));
    TESS_TRY(take(r, 1, 1, sizeof *r->expired_numel, &r->expired_numel));
    TESS_TRY(take(r, v->row_numel, 1, sizeof *r->key, &r->key));
    TESS_TRY(take(r, v->row_numel, 1, sizeof *r->code, &r->code));
    TESS_TRY(take(r, world, 1, sizeof *r->numel, &r->numel));
    TESS_TRY(take(r, world + 1, 1, sizeof *r->first, &r->first));
    TESS_TRY(take(r, world + 1, 1, sizeof *r->bound, &r->bound));
    if (!v->learns_by_rows)
        return TESS_OK;
    const int64_t leaf_numel = tess_vector_layout_pooled(v) > 1 ? world : 1;
    TESS_TRY(take(r, leaf_numel * c, d, sizeof *r->leaf, &r->leaf));
    return take(r, v->level_numel * c, d, sizeof *r->level, &r->level);
}

tess_status tess_codes_room_nbytes(const tess_vector_layout *layout, size_t *nbytes)
{
    codes_room r = {0};
    *nbytes = 0;
    if (!layout->has_books)
        return TESS_OK;
    TESS_TRY(lay_out(layout, &r));
    *nbytes = r.used_nbytes;
    return TESS_OK;
}

tess_status tess_codes_create(tess_session *s, const tess_vector_layout *layout,
                              tess_codebooks **out)
{
    const bool is_sharded = layout->book.shape.is_sharded;
    tess_view memory = tess_runtime_arena(s->rt, TESS_LIFE_DATA);
    if (!is_sharded)
        TESS_TRY(tess_runtime_host_work(s->rt, &memory));
    const tess_codebooks_parts parts = {
        .plan = &layout->book,
        .kernels = codes_kernels(s),
        .stream = codes_stream(s),
        .comm = tess_comm_host(s->world),
        .first_entry_idx = (uint32_t)s->d.plan->wire_numel,
        .memory = tess_view_slice(memory, is_sharded ? (int64_t)layout->books : 0,
                                  (int64_t)layout->book.total_nbytes)};
    return tess_codebooks_create(&parts, out);
}

tess_status codes_begin(tess_session *s, const tess_vector_layout *layout, tess_codebooks *books,
                        codes_job *job)
{
    const int64_t m = s->run->train.micro_batches;
    const int world = tess_comm_world(s->world), rank = tess_comm_rank(s->world);
    *job = (codes_job){.s = s,
                       .at = layout,
                       .books = books,
                       .world = world,
                       .rank = rank,
                       .round_numel = tess_ceil_div(m, world),
                       .batch_numel = rank < m ? (m - 1 - rank) / world + 1 : 0,
                       .all_numel = m * layout->row_numel,
                       .part_numel = tess_vector_layout_pooled(layout)};
    const char *data = tess_runtime_arena(s->rt, TESS_LIFE_DATA).data;
    if (layout->is_masked) {
        job->valid = (const uint8_t *)data + layout->valid;
        job->valid_before = (const int64_t *)(const void *)(data + layout->valid_before);
    }
    tess_view work = {0};
    tess_codebook_owned(&layout->book, rank, &job->lo_idx, &job->hi_idx);
    tess_status st = tess_runtime_host_work(s->rt, &work);
    job->r.base = work.data;
    if (st == TESS_OK)
        st = lay_out(layout, &job->r);
    if (st == TESS_OK && job->r.used_nbytes > (size_t)work.numel)
        st = TESS_FAIL(TESS_E_STATE, "codes need %zu bytes of staging, the plan has %" PRId64,
                       job->r.used_nbytes, work.numel);
    return session_agree(s, st);
}

tess_status codes_carry(tess_session *s, const tess_vector_layout *v, size_t offset_nbytes,
                        int64_t nbytes, bool is_back)
{
    const tess_view host =
        tess_view_host(codes_host_data(s) + offset_nbytes, nbytes, TESS_U8_OPAQUE);
    tess_view far = host;
    if (!codes_are_far(s))
        return TESS_OK;
    far.data = codes_far_data(s, v) + offset_nbytes;
    far.space = TESS_DEVICE;
    return tess_runtime_copy(s->rt, is_back ? host : far, is_back ? far : host);
}

/* ---- masks ---- */

int64_t tess_mask_spread(const tess_vector_layout *v, const uint8_t *valid, int64_t row_numel,
                         uint32_t *own, uint32_t *line)
{
    int64_t valid_numel = 0;
    for (int64_t i = 0; i < row_numel; i++) {
        own[i] = valid[i] != 0 ? (uint32_t)i : TESS_NO_CODE;
        valid_numel += valid[i];
        for (int64_t r = 0; r < v->line_numel; r++) {
            const int64_t at =
                (i / v->column_numel * v->line_numel + r) * v->column_numel + i % v->column_numel;
            line[at] = valid[i] != 0 ? (uint32_t)at : TESS_NO_CODE;
        }
    }
    return valid_numel;
}

/* ---- vectors of the step ---- */

tess_codebook_round codes_round(const codes_job *job, int book, int part, int64_t t)
{
    for (int r = 0; r < job->world; r++)
        job->r.numel[r] =
            t * job->world + r < job->s->run->train.micro_batches ? job->at->row_numel : 0;
    return (tess_codebook_round){.book_idx = codes_place(job, book),
                                 .x = t < job->batch_numel ? codes_vectors(job, part, t) : job->x,
                                 .vector_numel = job->r.numel,
                                 .best_numel = 1,
                                 .key = job->r.key};
}

/* Valid vectors of a part in the step: what draws are from. */
static int64_t valid_numel(const codes_job *job)
{
    return job->valid_before != NULL ? job->valid_before[job->s->run->train.micro_batches]
                                     : job->all_numel;
}

/* Micro-batch of valid vector v of the step: the last one that has no more than v in front. */
static int64_t batch_of(const codes_job *job, int64_t v)
{
    int64_t low = 0, high = job->s->run->train.micro_batches;
    if (job->valid_before == NULL)
        return v / job->at->row_numel;
    while (high - low > 1) {
        const int64_t mid = low + (high - low) / 2;
        *(job->valid_before[mid] <= v ? &low : &high) = mid;
    }
    return low;
}

/* Its row, in a micro-batch m that this rank has. */
static int64_t row_of(const codes_job *job, int64_t v, int64_t m)
{
    const int64_t t = m / job->world;
    if (job->valid_before == NULL)
        return v % job->at->row_numel;
    int64_t row = 0;
    for (int64_t left = v - job->valid_before[m];; row++)
        if (!codes_is_masked(job, t, row) && left-- == 0)
            return row;
}

/* Micro-batches go round: vector g of the valid ones of all parts of the step. */
static int holder_of(const void *arg, int64_t idx)
{
    const codes_job *job = arg;
    return (int)(batch_of(job, job->r.drawn[idx] % valid_numel(job)) % job->world);
}

/* A vector of the device, there until the next one. */
static const float *fetch(const codes_job *job, const float *x)
{
    const int64_t d = job->at->shape.dim;
    const tess_view from = {(void *)(uintptr_t)x, d, TESS_F32, TESS_DEVICE};
    if (*job->fetched == TESS_OK)
        *job->fetched =
            tess_runtime_copy(job->s->rt, tess_view_host(job->r.vector, d, TESS_F32), from);
    return job->r.vector;
}

static const float *vector_of(const void *arg, int64_t idx)
{
    const codes_job *job = arg;
    const int64_t g = job->r.drawn[idx], numel = valid_numel(job);
    const int64_t m = batch_of(job, g % numel);
    const float *x = codes_vectors(job, (int)(g / numel), m / job->world) +
                     row_of(job, g % numel, m) * job->at->shape.dim;
    return job->is_far ? fetch(job, x) : x;
}

tess_status codes_draw(codes_job *job, const tess_draw *draw, int64_t numel, float *dst)
{
    const tess_codebook_route route = {
        .first = job->r.first, .holder = holder_of, .vector = vector_of, .arg = job, .dst = dst};
    const size_t nbytes = tess_draw_room_nbytes(job->at->shape.code_numel, job->world);
    const tess_view room = tess_view_host(job->r.draws, (int64_t)nbytes, TESS_U8_OPAQUE);
    tess_status fetched = TESS_OK;
    job->fetched = &fetched;
    TESS_TRY(tess_draw_select(job->s->world, draw, valid_numel(job) * job->part_numel, numel, &room,
                              job->r.drawn));
    TESS_TRY(tess_codebooks_route(job->books, &route));
    return job->is_far ? session_agree(job->s, fetched) : TESS_OK;
}

tess_status codes_exponent_of(const codes_job *job, uint32_t most, int *exponent)
{
    const float largest = tess_ordered_value(most);
    TESS_CHECK(isfinite(largest), TESS_E_NUMERIC,
               "quantizer: the encoder gives numbers that are not finite; lower "
               "train.learning_rate or scale the vectors down");
    *exponent = tess_fixed_exponent(largest, job->all_numel * job->part_numel);
    return TESS_OK;
}

tess_status codes_exponent(const codes_job *job, int *exponent)
{
    float most = 0.0f;
    for (int p = 0; p < job->part_numel; p++)
        for (int64_t t = 0; t < job->batch_numel; t++) {
            const float *x = codes_vectors(job, p, t);
            for (int64_t i = 0; i < job->at->row_numel * job->at->shape.dim; i++)
                if (!(fabsf(x[i]) <= most) && !isnan(x[i]) &&
                    !codes_is_masked(job, t, i / job->at->shape.dim))
                    most = fabsf(x[i]);
        }
    int64_t bits = (int64_t)tess_ordered_bits(most);
    TESS_TRY(tess_comm_control(job->s->world, NULL, 0, &bits, 1));
    return codes_exponent_of(job, (uint32_t)bits, exponent);
}
