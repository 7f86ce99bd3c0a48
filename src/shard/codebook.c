#include "shard/codebook.h"

#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "shard/codebook_priv.h"

enum { SLICE_NBYTES = 4 << 20 }; /* of received pieces of sums */

/* ---- plan ---- */

/* Room of one array of `count` x `rows` x `cols` elements. */
static tess_status room(tess_codebook_plan *plan, tess_codebook_place place, const char *name,
                        tess_dtype dt, const int64_t extent[3])
{
    int64_t numel = 0;
    size_t nbytes = 0;
    TESS_TRY(tess_mul_i64(extent[0], extent[1], &numel));
    TESS_TRY(tess_mul_i64(numel, extent[2], &numel));
    TESS_TRY(tess_nbytes(dt, numel, &nbytes));
    plan->buffer[place] = (tess_codebook_buffer){.name = name, .nbytes = nbytes};
    return TESS_OK;
}

static tess_status room_bytes(tess_codebook_plan *plan, tess_codebook_place place, const char *name,
                              int64_t copies, size_t nbytes)
{
    const int64_t extent[3] = {copies, (int64_t)nbytes, 1};
    return room(plan, place, name, TESS_U8, extent);
}

static tess_status lay_out(tess_codebook_plan *plan)
{
    int64_t total[2] = {0, 0};
    for (int i = 0; i < TESS_BOOK_PLACE_NUMEL; i++) {
        tess_codebook_buffer *b = &plan->buffer[i];
        b->is_beside = plan->shape.is_device && (i == TESS_BOOK_COUNT || i >= TESS_BOOK_OWN_CODE);
        int64_t *sum = &total[b->is_beside];
        b->offset_nbytes = (size_t)*sum;
        const int64_t padded = tess_round_up((int64_t)b->nbytes, TESS_ARENA_ALIGN_NBYTES);
        TESS_TRY(tess_add_i64(*sum, padded, sum));
    }
    plan->total_nbytes = (size_t)total[0];
    plan->beside_nbytes = (size_t)total[1];
    return TESS_OK;
}

/* The host of a device. */
static tess_status room_beside(tess_codebook_plan *plan)
{
    const tess_codebook_shape *s = &plan->shape;
    const int64_t c = plan->row_numel, d = s->dim, others = s->world - 1;
    const int64_t own = s->is_device ? c : 0, summed = s->has_sums ? own : 0;
    const int64_t pieces = s->is_device && s->has_sums ? others * plan->slice_numel * d : 0;
    const int64_t keys = s->world * s->block_numel * s->best_numel;
    const int64_t slots = s->is_device ? s->world + 2 : 0;
    TESS_TRY(room(plan, TESS_BOOK_OWN_CODE, "host: owned codes", TESS_F32,
                  (int64_t[3]){s->book_numel, own, d}));
    TESS_TRY(
        room(plan, TESS_BOOK_OWN_SUM, "host: owned sums", TESS_I64, (int64_t[3]){summed, d, 1}));
    TESS_TRY(room(plan, TESS_BOOK_OWN_TALLY, "host: owned counts of a pass", TESS_I64,
                  (int64_t[3]){summed, 1, 1}));
    TESS_TRY(room(plan, TESS_BOOK_OWN_ROW, "host: rows", TESS_I32,
                  (int64_t[3]){slots, s->block_numel, 1}));
    return room(plan, TESS_BOOK_LANDED, "host: keys or sums of others", TESS_I64,
                (int64_t[3]){s->is_sharded && s->is_device ? keys : pieces, 1, 1});
}

static tess_status room_all(tess_codebook_plan *plan, const tess_kernels *kernels)
{
    const tess_codebook_shape *s = &plan->shape;
    const int64_t c = plan->row_numel, d = s->dim, w = s->world, b = s->block_numel;
    const bool is_sharded = s->is_sharded;
    const int64_t held = is_sharded ? c : w * c, searched = is_sharded ? c : s->code_numel;
    const int64_t summed = s->has_sums ? held : 0;
    const int64_t pieces = is_sharded ? b : (s->has_sums && w > 1 ? 2 * w * plan->slice_numel : 0);
    const int64_t round = is_sharded ? w : 0, near = s->is_device && !is_sharded ? 1 : 2 * round;
    TESS_TRY(room(plan, TESS_BOOK_CODE, "codes", TESS_F32, (int64_t[3]){s->book_numel, held, d}));
    TESS_TRY(room(plan, TESS_BOOK_COUNT, "counts", TESS_I64, (int64_t[3]){s->book_numel, c, 1}));
    TESS_TRY(room_bytes(plan, TESS_BOOK_PACK, "codes, packed", s->book_numel,
                        pack_nbytes(kernels, searched, d)));
    TESS_TRY(room(plan, TESS_BOOK_SUM, "sums", TESS_I64, (int64_t[3]){summed, d, 1}));
    TESS_TRY(room(plan, TESS_BOOK_TALLY, "counts of a pass", TESS_I64,
                  (int64_t[3]){s->has_sums ? (is_sharded ? c : (w + w) * c) : 0, 1, 1}));
    TESS_TRY(room(plan, TESS_BOOK_RECEIVE, "received rows", TESS_F32, (int64_t[3]){pieces, d, 1}));
    TESS_TRY(
        room(plan, TESS_BOOK_GATHERED, "gathered vectors", TESS_F32, (int64_t[3]){round, b, d}));
    TESS_TRY(room(plan, TESS_BOOK_KEY, "keys", TESS_U64, (int64_t[3]){near, b, s->best_numel}));
    TESS_TRY(room(plan, TESS_BOOK_ROW, "rows", TESS_I32, (int64_t[3]){w + 1 + s->is_device, b, 1}));
    TESS_TRY(room(plan, TESS_BOOK_ROUTE, "routed vectors", TESS_F32,
                  (int64_t[3]){2, s->route_numel, d}));
    TESS_TRY(room_beside(plan));
    return room_bytes(plan, TESS_BOOK_WORK, "search", 1,
                      kernels->nearest_work_nbytes(d, s->best_numel, s->thread_numel));
}

tess_status tess_codebook_plan_make(const tess_codebook_shape *shape, const tess_kernels *kernels,
                                    tess_codebook_plan *out)
{
    tess_codebook_plan plan = {.shape = *shape};
    TESS_CHECK(kernels->nearest != NULL, TESS_E_UNSUPPORTED,
               "backend '%s' has no search for codes; set compute.device: cpu", kernels->name);
    TESS_CHECK(shape->world >= 1 && shape->book_numel >= 1 && shape->code_numel >= 1 &&
                   shape->dim >= 1 && shape->block_numel >= 1 && shape->best_numel >= 1,
               TESS_E_RANGE,
               "codebooks: %d of %" PRId64 " codes in %" PRId64
               " dimensions over %d ranks, expected at least one of each",
               shape->book_numel, shape->code_numel, shape->dim, shape->world);
    TESS_CHECK(shape->code_numel < (int64_t)UINT32_MAX, TESS_E_RANGE,
               "codebooks: %" PRId64 " codes, expected below 2^32 - 1", shape->code_numel);
    plan.row_numel = tess_ceil_div(shape->code_numel, shape->world);
    const int64_t row_nbytes = shape->dim * 8 * shape->world;
    plan.slice_numel = TESS_MIN(TESS_MAX(SLICE_NBYTES / row_nbytes, 1), plan.row_numel);
    TESS_TRY(room_all(&plan, kernels));
    TESS_TRY(lay_out(&plan));
    *out = plan;
    return TESS_OK;
}

double tess_codebook_pass_nbytes(const tess_codebook_plan *plan, int64_t round_numel)
{
    const tess_codebook_shape *s = &plan->shape;
    const double others = s->world - 1, d = (double)s->dim;
    if (s->is_sharded) /* vectors and rows of the whole block, keys of the own one */
        return others * (double)round_numel * (double)s->block_numel * (4.0 * d + 8.0 + 4.0);
    return others * (double)plan->row_numel * (8.0 * d + 8.0 + 4.0 * d);
}

void tess_codebook_owned(const tess_codebook_plan *plan, int rank, int64_t *lo_idx, int64_t *hi_idx)
{
    *lo_idx = TESS_MIN(rank * plan->row_numel, plan->shape.code_numel);
    *hi_idx = TESS_MIN((rank + 1) * plan->row_numel, plan->shape.code_numel);
}

/* ---- create ---- */

static void *place(const tess_codebooks *b, tess_codebook_place which)
{
    const tess_codebook_buffer *buffer = &b->plan.buffer[which];
    return (buffer->is_beside ? b->beside : b->memory) + buffer->offset_nbytes;
}

static tess_wire make_wire(const tess_codebook_plan *plan, wire_idx idx, const char *name,
                           tess_dtype dt, int64_t numel_per_rank)
{
    const bool is_gather =
        idx == WIRE_CODE || idx == WIRE_VECTOR || idx == WIRE_ROW || idx == WIRE_SIZE;
    tess_wire w = {.op = is_gather ? TESS_COMM_ALL_GATHER : TESS_COMM_EXCHANGE,
                   .storage = dt,
                   .wire = dt,
                   .accumulate = dt,
                   .numel_per_rank = numel_per_rank,
                   .numel_total = numel_per_rank * plan->shape.world,
                   .config_key = "quantizer.sharding"};
    snprintf(w.name, sizeof w.name, "codebook/%s", name);
    return w;
}

static void make_wires(const tess_codebook_plan *plan, uint32_t first_entry_idx,
                       tess_wire wire[WIRE_NUMEL])
{
    const tess_codebook_shape *s = &plan->shape;
    const int64_t c = plan->row_numel, block = s->block_numel;
    wire[WIRE_CODE] = make_wire(plan, WIRE_CODE, "codes", TESS_F32, c * s->dim);
    wire[WIRE_SUM] = make_wire(plan, WIRE_SUM, "sums", TESS_I64, c * s->dim);
    wire[WIRE_TALLY] = make_wire(plan, WIRE_TALLY, "counts", TESS_I64, c);
    wire[WIRE_VECTOR] = make_wire(plan, WIRE_VECTOR, "vectors", TESS_F32, block * s->dim);
    wire[WIRE_KEY] = make_wire(plan, WIRE_KEY, "keys", TESS_U64, block * s->best_numel);
    wire[WIRE_ROW] = make_wire(plan, WIRE_ROW, "rows", TESS_I32, block);
    wire[WIRE_FETCH] = make_wire(plan, WIRE_FETCH, "fetched codes", TESS_F32, block * s->dim);
    wire[WIRE_SIZE] = make_wire(plan, WIRE_SIZE, "sizes", TESS_I64, 2);
    wire[WIRE_CUT] = make_wire(plan, WIRE_CUT, "cuts", TESS_F32, c * s->dim);
    wire[WIRE_ROUTE] =
        make_wire(plan, WIRE_ROUTE, "routed vectors", TESS_F32, s->route_numel * s->dim);
    for (int i = 0; i < WIRE_NUMEL; i++)
        wire[i].entry_idx = first_entry_idx + (uint32_t)i;
}

tess_status tess_codebook_plan_contract(const tess_codebook_plan *plan, tess_contract *contract)
{
    tess_wire wire[WIRE_NUMEL];
    make_wires(plan, (uint32_t)tess_contract_wire_numel(contract), wire);
    for (int i = 0; i < WIRE_NUMEL; i++)
        TESS_TRY(tess_contract_add_wire(contract, &wire[i]));
    return TESS_OK;
}

/* Of a device and its host, whose contents are not defined: zeros. */
static tess_status take_device(tess_codebooks *b)
{
    tess_device *device = b->parts.device;
    tess_view all, beside;
    const size_t nbytes = TESS_MAX(b->plan.total_nbytes, 1), beside_nbytes = b->plan.beside_nbytes;
    TESS_TRY(tess_device_arena_create(device, device->space, "codebooks", nbytes, &b->arena[0]));
    TESS_TRY(tess_device_arena_create(device, TESS_HOST, "codebooks of a device's host",
                                      TESS_MAX(beside_nbytes, 1), &b->arena[1]));
    TESS_TRY(tess_arena_view(b->arena[0], 0, (int64_t)nbytes, TESS_U8_OPAQUE, &all));
    TESS_TRY(tess_arena_view(b->arena[1], 0, (int64_t)beside_nbytes, TESS_U8_OPAQUE, &beside));
    b->memory = all.data;
    b->beside = beside.data;
    memset(b->beside, 0, beside_nbytes);
    TESS_TRY(tess_event_init(&b->enqueued, b->parts.stream));
    TESS_TRY(tess_event_init(&b->rows_up, b->parts.stream));
    return tess_device_zero(device, all, b->parts.stream);
}

static tess_status take_memory(tess_codebooks *b)
{
    tess_view all = b->parts.memory;
    if (codebook_is_far(b))
        return take_device(b);
    if (all.numel > 0)
        TESS_CHECK((size_t)all.numel >= b->plan.total_nbytes, TESS_E_STATE,
                   "codebooks need %zu bytes, the plan has %" PRId64, b->plan.total_nbytes,
                   all.numel);
    else {
        TESS_TRY(tess_arena_create("codebooks", TESS_MAX(b->plan.total_nbytes, 1), &b->arena[0]));
        TESS_TRY(
            tess_arena_view(b->arena[0], 0, (int64_t)b->plan.total_nbytes, TESS_U8_OPAQUE, &all));
    }
    b->memory = all.data;
    return TESS_OK;
}

tess_status tess_codebooks_create(const tess_codebooks_parts *parts, tess_codebooks **out)
{
    void *object = NULL, *pieces = NULL, *extents = NULL;
    const tess_space space = parts->device != NULL ? parts->device->space : TESS_HOST;
    TESS_CHECK(parts->plan->shape.is_device == (space == TESS_DEVICE), TESS_E_STATE,
               "codebooks: planned for %s",
               parts->plan->shape.is_device ? "a device, found the host"
                                            : "the host, found a device");
    TESS_TRY(tess_alloc(sizeof(tess_codebooks), &object));
    tess_codebooks *b = object;
    b->plan = *parts->plan;
    b->parts = *parts;
    b->parts.plan = &b->plan;
    b->space = space;
    b->rank = tess_comm_rank(parts->comm);
    tess_codebook_owned(&b->plan, b->rank, &b->lo, &b->hi);
    make_wires(&b->plan, parts->first_entry_idx, b->wire);
    tess_status st =
        tess_alloc_array(2 * (int64_t)b->plan.shape.world, sizeof(tess_piece), &pieces);
    b->piece = pieces;
    if (st == TESS_OK)
        st = tess_alloc_array(6 * (int64_t)b->plan.shape.world + 1, sizeof(int64_t), &extents);
    b->extent = extents;
    b->size = b->extent != NULL ? b->extent + 2 * b->plan.shape.world + 1 : NULL;
    if (st == TESS_OK)
        st = take_memory(b);
    if (st != TESS_OK) {
        tess_codebooks_destroy(&b);
        return st;
    }
    *out = b;
    return TESS_OK;
}

void tess_codebooks_destroy(tess_codebooks **books)
{
    if (*books == NULL)
        return;
    if (codebook_is_far(*books)) {
        tess_event_fini(&(*books)->enqueued, (*books)->parts.stream);
        tess_event_fini(&(*books)->rows_up, (*books)->parts.stream);
    }
    for (int i = 0; i < 2; i++)
        tess_arena_destroy(&(*books)->arena[i]);
    tess_free((*books)->piece);
    tess_free((*books)->extent);
    tess_free(*books);
    *books = NULL;
}

tess_status tess_codebooks_contract(const tess_codebooks *books, tess_contract *contract)
{
    for (int i = 0; i < WIRE_NUMEL; i++)
        TESS_TRY(tess_contract_add_wire(contract, &books->wire[i]));
    return TESS_OK;
}

/* ---- places ---- */

float *codebook_code(const tess_codebooks *b, int book_idx)
{
    const int64_t held = b->plan.row_numel * (b->plan.shape.is_sharded ? 1 : b->plan.shape.world);
    return (float *)place(b, TESS_BOOK_CODE) + book_idx * held * b->plan.shape.dim;
}

tess_view codebook_pack(const tess_codebooks *b, int book_idx)
{
    const size_t nbytes = b->plan.buffer[TESS_BOOK_PACK].nbytes / (size_t)b->plan.shape.book_numel;
    return codebook_view(b, (char *)place(b, TESS_BOOK_PACK) + (size_t)book_idx * nbytes,
                         (int64_t)nbytes, TESS_U8_OPAQUE);
}

void *codebook_place(const tess_codebooks *b, tess_codebook_place which) { return place(b, which); }

float *tess_codebooks_rows(tess_codebooks *b, int book_idx)
{
    if (codebook_is_far(b))
        return (float *)place(b, TESS_BOOK_OWN_CODE) +
               book_idx * b->plan.row_numel * b->plan.shape.dim;
    return codebook_code(b, book_idx) + (b->plan.shape.is_sharded ? 0 : b->lo * b->plan.shape.dim);
}

int64_t *tess_codebooks_counts(tess_codebooks *b, int book_idx)
{
    return (int64_t *)place(b, TESS_BOOK_COUNT) + book_idx * b->plan.row_numel;
}

int tess_codebooks_world(const tess_codebooks *b) { return b->plan.shape.world; }

const float *tess_codebooks_all(const tess_codebooks *b, int book_idx)
{
    return b->plan.shape.is_sharded || codebook_is_far(b) ? NULL : codebook_code(b, book_idx);
}

int64_t *codebook_own_sum(const tess_codebooks *b)
{
    if (codebook_is_far(b))
        return place(b, TESS_BOOK_OWN_SUM);
    return (int64_t *)place(b, TESS_BOOK_SUM) +
           (b->plan.shape.is_sharded ? 0 : b->lo * b->plan.shape.dim);
}

int64_t *codebook_own_tally(const tess_codebooks *b)
{
    if (codebook_is_far(b))
        return place(b, TESS_BOOK_OWN_TALLY);
    return (int64_t *)place(b, TESS_BOOK_TALLY) + (b->plan.shape.is_sharded ? 0 : b->lo);
}

const int64_t *tess_codebooks_sum(const tess_codebooks *b) { return codebook_own_sum(b); }
const int64_t *tess_codebooks_tally(const tess_codebooks *b) { return codebook_own_tally(b); }
int64_t *tess_codebooks_all_sums(const tess_codebooks *b) { return place(b, TESS_BOOK_SUM); }
int64_t *tess_codebooks_all_tallies(const tess_codebooks *b) { return place(b, TESS_BOOK_TALLY); }
int tess_codebooks_exponent(const tess_codebooks *b) { return b->exponent; }

tess_view tess_codebooks_work(const tess_codebooks *b)
{
    return codebook_view(b, place(b, TESS_BOOK_WORK),
                         (int64_t)b->plan.buffer[TESS_BOOK_WORK].nbytes, TESS_U8_OPAQUE);
}

/* ---- copies ---- */

/* Rows that are hashed at once; of a device they fit what pieces of sums come down in. */
static tess_status digest_rows(tess_codebooks *b, const float *rows, int64_t row_numel,
                               tess_xxh128 *chain)
{
    const int64_t numel = row_numel * b->plan.shape.dim;
    if (codebook_is_far(b)) {
        float *landed = codebook_place(b, TESS_BOOK_LANDED);
        TESS_TRY(codebook_move(b, landed, rows, numel, TESS_F32, false));
        TESS_TRY(tess_stream_finish(b->parts.stream));
        rows = landed;
    }
    const tess_xxh128 pair[2] = {*chain, tess_xxh128_of(rows, (size_t)numel * sizeof *rows)};
    *chain = tess_xxh128_of(pair, sizeof pair);
    return TESS_OK;
}

tess_status tess_codebooks_copies_digest(tess_codebooks *b, int book_idx, tess_xxh128 *out)
{
    const tess_codebook_shape *s = &b->plan.shape;
    const float *code = codebook_code(b, book_idx);
    const int64_t copied_numel = s->is_sharded ? 0 : s->code_numel;
    tess_xxh128 chain = {{0}};
    TESS_CHECK(!codebook_is_far(b) || (s->has_sums && s->world > 1), TESS_E_STATE,
               "codebooks of a device: only what trains on several ranks holds copies to compare");
    for (int64_t k = 0; k < copied_numel; k += b->plan.slice_numel)
        TESS_TRY(digest_rows(b, code + k * s->dim, TESS_MIN(b->plan.slice_numel, copied_numel - k),
                             &chain));
    *out = chain;
    return TESS_OK;
}
