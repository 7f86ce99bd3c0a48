/* Rounds of vectors: search, statistics, residuals; alone over replicated codes, or all ranks
 * together over their rows. */
#include <string.h>

#include "core/arith.h"
#include "core/trace.h"
#include "shard/codebook_priv.h"

/* ---- shared by both ways ---- */

static tess_status check_round(const tess_codebooks *b, const tess_codebook_round *round)
{
    for (int r = 0; r < b->plan.shape.world; r++)
        TESS_CHECK(round->vector_numel[r] >= 0 &&
                       round->vector_numel[r] <= b->plan.shape.block_numel,
                   TESS_E_ARG, "codebooks: a round of %" PRId64 " vectors, planned for %" PRId64,
                   round->vector_numel[r], b->plan.shape.block_numel);
    TESS_CHECK(!round->adds || round->best_numel == 1, TESS_E_ARG,
               "codebooks: a round that adds looks for %d codes a vector, expected 1",
               round->best_numel);
    TESS_CHECK(round->book_idx >= 0 && round->book_idx < b->plan.shape.book_numel, TESS_E_ARG,
               "codebooks: book %d of %d", round->book_idx, b->plan.shape.book_numel);
    TESS_CHECK(round->draw == NULL || (b->plan.shape.is_sharded && round->best_numel == 1),
               TESS_E_ARG, "codebooks: one code of a vector is drawn, from rows of owners");
    return TESS_OK;
}

static tess_status search_rows(tess_codebooks *b, int book_idx, const float *x,
                               int64_t vector_numel, int best_numel, uint64_t *key)
{
    const tess_codebook_shape *s = &b->plan.shape;
    const int64_t code_numel = s->is_sharded ? b->hi - b->lo : s->code_numel;
    const tess_nearest_args args = {
        .x = codebook_view(b, x, vector_numel * s->dim, TESS_F32),
        .code = codebook_view(b, codebook_code(b, book_idx), code_numel * s->dim, TESS_F32),
        .pack = codebook_pack(b, book_idx),
        .key = codebook_view(b, key, vector_numel * best_numel, TESS_U64),
        .work = tess_codebooks_work(b),
        .vector_numel = vector_numel,
        .code_numel = code_numel,
        .dim = s->dim,
        .first_row_idx = s->is_sharded ? b->lo : 0,
        .best_numel = best_numel};
    tess_trace_kernel_begin(b->parts.stream, "nearest");
    return tess_trace_kernel_end(b->parts.stream,
                                 b->parts.kernels->nearest(&args, b->parts.stream));
}

/* Into sums of all rows, or of the owned ones; `row` where kernels read it. */
static tess_status sum_rows(tess_codebooks *b, const float *x, const uint32_t *row,
                            int64_t vector_numel)
{
    const tess_codebook_shape *s = &b->plan.shape;
    const tess_code_sum_args args = {.x = x,
                                     .row = row,
                                     .vector_numel = vector_numel,
                                     .dim = s->dim,
                                     .first_row_idx = s->is_sharded ? b->lo : 0,
                                     .row_numel = s->is_sharded ? b->hi - b->lo : s->code_numel,
                                     .exponent = b->exponent,
                                     .sum = codebook_place(b, TESS_BOOK_SUM),
                                     .count = codebook_place(b, TESS_BOOK_TALLY)};
    tess_trace_kernel_begin(b->parts.stream, "code_sum");
    return tess_trace_kernel_end(b->parts.stream,
                                 b->parts.kernels->code_sum(&args, b->parts.stream));
}

static void rows_of_keys(const uint64_t *key, int64_t numel, uint32_t *row)
{
    for (int64_t i = 0; i < numel; i++)
        row[i] = tess_key_row(key[i]);
}

/* ---- row-sharded ---- */

tess_status codebook_gather_vectors(tess_codebooks *b, const float *x, int64_t vector_numel)
{
    return codebook_gather(b, WIRE_VECTOR, x,
                           (size_t)(vector_numel * b->plan.shape.dim) * sizeof *x,
                           codebook_place(b, TESS_BOOK_GATHERED));
}

float *codebook_vectors(const tess_codebooks *b, int rank)
{
    return (float *)codebook_place(b, TESS_BOOK_GATHERED) +
           rank * b->plan.shape.block_numel * b->plan.shape.dim;
}

tess_status codebook_gather_rows(tess_codebooks *b, const uint32_t *row, int64_t numel)
{
    TESS_TRY(codebook_rows_wait(b));
    return codebook_gather(b, WIRE_ROW, row, (size_t)numel * sizeof *row, codebook_rows_of(b, 0));
}

/* The keys that other ranks found for the own vectors, below each other. */
static tess_status exchange_keys(tess_codebooks *b, const tess_codebook_round *round)
{
    const int world = b->plan.shape.world;
    const int64_t stride = b->plan.shape.block_numel * b->plan.shape.best_numel;
    uint64_t *found = codebook_place(b, TESS_BOOK_KEY), *received = found + world * stride;
    tess_piece *send = b->piece, *receive = b->piece + world;
    for (int r = 0; r < world; r++) {
        const int64_t theirs = round->vector_numel[r] * round->best_numel;
        const int64_t own = round->vector_numel[b->rank] * round->best_numel;
        send[r] = (tess_piece){r, codebook_view(b, found + r * stride, theirs, TESS_U64)};
        receive[r] = (tess_piece){r, codebook_view(b, received + r * stride, own, TESS_U64)};
    }
    return codebook_exchange(b, WIRE_KEY);
}

/* What exchange_keys() brought, where the host reads it. */
static tess_status land_keys(tess_codebooks *b, const uint64_t **landed)
{
    const int64_t numel =
        b->plan.shape.world * b->plan.shape.block_numel * b->plan.shape.best_numel;
    const uint64_t *received = (const uint64_t *)codebook_place(b, TESS_BOOK_KEY) + numel;
    *landed = received;
    if (!codebook_is_far(b))
        return TESS_OK;
    *landed = codebook_place(b, TESS_BOOK_LANDED);
    TESS_TRY(
        codebook_move(b, codebook_place(b, TESS_BOOK_LANDED), received, numel, TESS_U64, false));
    return tess_stream_finish(b->parts.stream);
}

/* The least `numel` of two ascending lists, into the first. */
static void merge_keys(uint64_t *key, const uint64_t *other, int numel)
{
    uint64_t least[TESS_NEAREST_BEST_MAX];
    for (int i = 0, j = 0, k = 0; k < numel; k++)
        least[k] = key[i] <= other[j] ? key[i++] : other[j++];
    memcpy(key, least, (size_t)numel * sizeof *key);
}

static void choose_keys(const tess_codebooks *b, const tess_codebook_round *round,
                        const uint64_t *received)
{
    const int world = b->plan.shape.world, best = round->best_numel;
    const int64_t stride = b->plan.shape.block_numel * b->plan.shape.best_numel;
    const int64_t numel = round->vector_numel[b->rank];
    if (numel == 0) /* and there may be no memory for keys */
        return;
    memcpy(round->key, received, (size_t)(numel * best) * sizeof *received);
    for (int r = 1; r < world; r++)
        for (int64_t i = 0; i < numel; i++)
            merge_keys(round->key + i * best, received + r * stride + i * best, best);
}

static tess_status sum_gathered(tess_codebooks *b, const tess_codebook_round *round)
{
    TESS_TRY(codebook_rows_send(b, 0, b->plan.shape.world * b->plan.shape.block_numel));
    for (int r = 0; r < b->plan.shape.world; r++)
        TESS_TRY(
            sum_rows(b, codebook_vectors(b, r), codebook_near_rows(b, r), round->vector_numel[r]));
    return TESS_OK;
}

/* Of the vectors of a rank, among the owned rows. */
static tess_status draw_rows(tess_codebooks *b, const tess_codebook_round *round, int rank,
                             uint64_t *key)
{
    const tess_codebook_draw *draw = round->draw;
    const tess_quantizer_sample_args args = {.x = codebook_vectors(b, rank),
                                             .codes = codebook_code(b, round->book_idx),
                                             .row_numel = round->vector_numel[rank],
                                             .dim = b->plan.shape.dim,
                                             .code_numel = b->hi - b->lo,
                                             .first_row_idx = TESS_MAX(draw->first_idx[rank], 0),
                                             .first_code_idx = b->lo,
                                             .all_numel = b->plan.shape.code_numel,
                                             .temperature = draw->temperature,
                                             .is_cosine = draw->is_cosine,
                                             .rng = draw->rng,
                                             .is_first = true,
                                             .key = key};
    return b->parts.kernels->quantizers->sample(&args, b->parts.stream);
}

static tess_status search_sharded(tess_codebooks *b, const tess_codebook_round *round)
{
    const int64_t stride = b->plan.shape.block_numel * b->plan.shape.best_numel;
    uint64_t *found = codebook_place(b, TESS_BOOK_KEY);
    TESS_TRY(codebook_gather_vectors(b, round->x, round->vector_numel[b->rank]));
    for (int r = 0; r < b->plan.shape.world; r++)
        TESS_TRY(round->draw != NULL
                     ? draw_rows(b, round, r, found + r * stride)
                     : search_rows(b, round->book_idx, codebook_vectors(b, r),
                                   round->vector_numel[r], round->best_numel, found + r * stride));
    const uint64_t *received = NULL;
    TESS_TRY(exchange_keys(b, round));
    TESS_TRY(land_keys(b, &received));
    choose_keys(b, round, received);
    if (!round->adds)
        return TESS_OK;
    const int64_t numel = round->vector_numel[b->rank];
    TESS_TRY(codebook_rows_wait(b));
    rows_of_keys(round->key, numel, codebook_rows_of(b, b->plan.shape.world));
    TESS_TRY(codebook_gather_rows(b, codebook_rows_of(b, b->plan.shape.world), numel));
    return sum_gathered(b, round);
}

/* ---- search and add ---- */

/* Codes are all here, and all of it stays where kernels work; keys come down behind it. */
static tess_status search_far(tess_codebooks *b, const tess_codebook_round *round)
{
    const int64_t numel = round->vector_numel[b->rank];
    uint64_t *key = codebook_place(b, TESS_BOOK_KEY);
    uint32_t *row = codebook_near_rows(b, b->plan.shape.world);
    const tess_code_row_args rows = {.key = key, .row = row, .vector_numel = numel};
    TESS_TRY(search_rows(b, round->book_idx, round->x, numel, round->best_numel, key));
    TESS_TRY(codebook_move(b, round->key, key, numel * round->best_numel, TESS_U64, false));
    if (!round->adds)
        return TESS_OK;
    TESS_TRY(b->parts.kernels->code_row(&rows, b->parts.stream));
    return sum_rows(b, round->x, row, numel);
}

tess_status tess_codebooks_search(tess_codebooks *b, const tess_codebook_round *round)
{
    const int64_t numel = round->vector_numel[b->rank];
    TESS_TRY(check_round(b, round));
    if (b->plan.shape.is_sharded)
        return search_sharded(b, round);
    if (codebook_is_far(b))
        return search_far(b, round);
    TESS_TRY(search_rows(b, round->book_idx, round->x, numel, round->best_numel, round->key));
    if (!round->adds)
        return TESS_OK;
    rows_of_keys(round->key, numel, codebook_rows_of(b, b->plan.shape.world));
    return sum_rows(b, round->x, codebook_rows_of(b, b->plan.shape.world), numel);
}

tess_status tess_codebooks_add(tess_codebooks *b, const tess_codebook_round *round,
                               const uint32_t *row)
{
    const int64_t numel = round->vector_numel[b->rank];
    const uint32_t *near = NULL;
    TESS_TRY(check_round(b, round));
    if (!b->plan.shape.is_sharded) {
        TESS_TRY(codebook_rows_put(b, b->plan.shape.world, row, numel, &near));
        return sum_rows(b, round->x, near, numel);
    }
    TESS_TRY(codebook_gather_vectors(b, round->x, numel));
    TESS_TRY(codebook_gather_rows(b, row, numel));
    return sum_gathered(b, round);
}

/* ---- residuals ---- */

static tess_status take_off(tess_codebooks *b, const tess_code_residual_args *args)
{
    return b->parts.kernels->code_residual(args, b->parts.stream);
}

static int owner_of(const tess_codebooks *b, uint32_t row)
{
    return (int)(row / b->plan.row_numel);
}

/* dst[i] = x[row[i]] of `x_numel` rows; all where kernels work. */
static tess_status pick(tess_codebooks *b, const float *x, int64_t x_numel, const uint32_t *row,
                        int64_t numel, float *dst)
{
    const int64_t d = b->plan.shape.dim;
    const tess_quantizer_gather_args args = {
        .rows = {.codes = x, .code = row, .row_numel = numel, .dim = d, .code_numel = x_numel},
        .out = codebook_view(b, dst, numel * d, TESS_F32)};
    return numel > 0 ? b->parts.kernels->quantizers->gather(&args, b->parts.stream) : TESS_OK;
}

/* Of the rows that a rank wants those owned here, by number among them: in its order, in place.
 * @return how many */
static int64_t keep_owned(const tess_codebooks *b, int rank, int64_t numel)
{
    uint32_t *row = codebook_rows_of(b, rank);
    int64_t found = 0;
    for (int64_t i = 0; i < numel; i++)
        if (row[i] != TESS_NO_CODE && owner_of(b, row[i]) == b->rank)
            row[found++] = row[i] - (uint32_t)b->lo;
    return found;
}

/* Rows wanted from each owner lie together; afterwards `local` says where each one is. */
static void place_wanted(const tess_codebooks *b, const uint32_t *row, int64_t numel,
                         int64_t *first, uint32_t *local)
{
    int64_t at = 0;
    for (int owner = 0; owner < b->plan.shape.world; owner++) {
        first[owner] = at;
        for (int64_t i = 0; i < numel; i++)
            if (row[i] != TESS_NO_CODE && owner_of(b, row[i]) == owner)
                local[i] = (uint32_t)at++;
    }
    first[b->plan.shape.world] = at;
    for (int64_t i = 0; i < numel; i++)
        if (row[i] == TESS_NO_CODE)
            local[i] = TESS_NO_CODE;
}

/* Codes of rows that the ranks want, numel[rank] each, at most a block: they lie together behind
 * each other, and scratch rows say where each one is. @param first  [world + 1] scratch */
static tess_status fetch_rows(tess_codebooks *b, int book_idx, const uint32_t *row,
                              const int64_t *numel, int64_t *first)
{
    const int world = b->plan.shape.world;
    const int64_t d = b->plan.shape.dim, own = numel[b->rank];
    tess_piece *send = b->piece, *receive = b->piece + world;
    float *sent = codebook_place(b, TESS_BOOK_GATHERED);
    float *received = codebook_place(b, TESS_BOOK_RECEIVE);
    TESS_TRY(codebook_gather_rows(b, row, own));
    place_wanted(b, row, own, first, codebook_rows_of(b, b->plan.shape.world));
    for (int r = 0; r < world; r++) {
        const int64_t found = keep_owned(b, r, numel[r]);
        send[r] = (tess_piece){r, codebook_view(b, sent, found * d, TESS_F32)};
        sent += found * d;
        receive[r] = (tess_piece){
            r, codebook_view(b, received + first[r] * d, (first[r + 1] - first[r]) * d, TESS_F32)};
    }
    TESS_TRY(codebook_rows_send(b, 0, (world + 1) * b->plan.shape.block_numel));
    for (int r = 0; r < world; r++)
        TESS_TRY(pick(b, codebook_code(b, book_idx), b->hi - b->lo, codebook_near_rows(b, r),
                      send[r].view.numel / d, send[r].view.data));
    return codebook_exchange(b, WIRE_FETCH);
}

/* Entries [lo, lo + numel[rank]) of every rank, at most a block each. */
static tess_status subtract_round(tess_codebooks *b, const tess_codebook_subtraction *what,
                                  int64_t lo, const int64_t *numel, int64_t *first)
{
    const int64_t d = b->plan.shape.dim;
    const int world = b->plan.shape.world;
    const uint32_t *parent = NULL;
    TESS_TRY(fetch_rows(b, what->book_idx, what->row + lo, numel, first));
    if (what->parent != NULL)
        TESS_TRY(codebook_rows_put(b, world + 1, what->parent + lo, numel[b->rank], &parent));
    const tess_code_residual_args args = {.x = what->parent != NULL ? what->x : what->x + lo * d,
                                          .parent = parent,
                                          .code = codebook_place(b, TESS_BOOK_RECEIVE),
                                          .row = codebook_near_rows(b, world),
                                          .vector_numel = numel[b->rank],
                                          .code_numel = first[world],
                                          .dim = d,
                                          .dst = what->dst + lo * d};
    return take_off(b, &args);
}

static tess_status subtract_sharded(tess_codebooks *b, const tess_codebook_subtraction *what)
{
    const int world = b->plan.shape.world;
    const int64_t block = b->plan.shape.block_numel;
    int64_t most = 0, *numel = b->extent, *first = numel + world;
    for (int r = 0; r < world; r++)
        most = TESS_MAX(most, what->entry_numel[r]);
    for (int64_t lo = 0; lo < most; lo += block) {
        for (int r = 0; r < world; r++)
            numel[r] = TESS_MIN(TESS_MAX(what->entry_numel[r] - lo, 0), block);
        TESS_TRY(subtract_round(b, what, lo, numel, first));
    }
    return TESS_OK;
}

tess_status tess_codebooks_subtract(tess_codebooks *b, const tess_codebook_subtraction *what)
{
    const int64_t numel = what->entry_numel[b->rank], d = b->plan.shape.dim;
    const int64_t most = codebook_is_far(b) ? b->plan.shape.block_numel : TESS_MAX(numel, 1);
    if (b->plan.shape.is_sharded)
        return subtract_sharded(b, what);
    for (int64_t lo = 0; lo < numel; lo += most) {
        tess_code_residual_args args = {.x = what->parent != NULL ? what->x : what->x + lo * d,
                                        .code = codebook_code(b, what->book_idx),
                                        .vector_numel = TESS_MIN(most, numel - lo),
                                        .code_numel = b->plan.shape.code_numel,
                                        .dim = d,
                                        .dst = what->dst + lo * d};
        const int slot = b->plan.shape.world;
        TESS_TRY(codebook_rows_put(b, slot, what->row + lo, args.vector_numel, &args.row));
        if (what->parent != NULL)
            TESS_TRY(
                codebook_rows_put(b, slot + 1, what->parent + lo, args.vector_numel, &args.parent));
        TESS_TRY(take_off(b, &args));
    }
    return TESS_OK;
}

tess_status tess_codebooks_pick(tess_codebooks *b, const float *x, const uint32_t *row,
                                int64_t numel, float *dst)
{
    const int64_t block = b->plan.shape.block_numel, d = b->plan.shape.dim;
    for (int64_t lo = 0; lo < numel; lo += block) {
        const int64_t part = TESS_MIN(block, numel - lo);
        const uint32_t *near = NULL;
        int64_t most = 0;
        for (int64_t i = lo; i < lo + part; i++)
            most = TESS_MAX(most, (int64_t)row[i]);
        TESS_TRY(codebook_rows_put(b, b->plan.shape.world, row + lo, part, &near));
        TESS_TRY(pick(b, x, most + 1, near, part, dst + lo * d));
    }
    return TESS_OK;
}

tess_status tess_codebooks_fetch(tess_codebooks *b, const tess_codebook_round *round,
                                 const uint32_t *row, float *dst)
{
    const int64_t d = b->plan.shape.dim;
    const float *received = codebook_place(b, TESS_BOOK_RECEIVE);
    TESS_TRY(check_round(b, round));
    TESS_CHECK(b->plan.shape.is_sharded && !codebook_is_far(b), TESS_E_STATE,
               "codebooks: fetched where all codes are, or on a device");
    TESS_TRY(
        fetch_rows(b, round->book_idx, row, round->vector_numel, b->extent + b->plan.shape.world));
    for (int64_t i = 0; i < round->vector_numel[b->rank]; i++) {
        const uint32_t at = codebook_rows_of(b, b->plan.shape.world)[i];
        if (at == TESS_NO_CODE)
            memset(dst + i * d, 0, (size_t)d * sizeof *dst);
        else
            memcpy(dst + i * d, received + at * d, (size_t)d * sizeof *dst);
    }
    return TESS_OK;
}
