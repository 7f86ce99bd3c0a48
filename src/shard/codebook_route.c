/* What of a codebook moves between ranks beside searches and sums: numbers of rows from one cut to
 * another, vectors to owners of rows. */
#include <string.h>

#include "core/arith.h"
#include "shard/codebook_priv.h"

/* ---- shared ---- */

tess_status codebook_gather(tess_codebooks *b, wire_idx wire, const void *own, size_t own_nbytes,
                            void *all)
{
    const tess_wire *w = &b->wire[wire];
    const bool is_far = codebook_is_far(b) && wire == WIRE_VECTOR;
    tess_comm *comm = is_far ? b->parts.comm : tess_comm_host(b->parts.comm);
    tess_stream *stream = tess_comm_gather_stream(comm);
    const tess_view full = {all, w->numel_per_rank * b->plan.shape.world, w->wire,
                            is_far ? TESS_DEVICE : TESS_HOST};
    const tess_view shard = tess_view_slice(full, b->rank * w->numel_per_rank, w->numel_per_rank);
    if (is_far) {
        const int64_t numel = (int64_t)own_nbytes;
        TESS_TRY(tess_device_copy(b->parts.device, codebook_view(b, shard.data, numel, TESS_U8),
                                  codebook_view(b, own, numel, TESS_U8), b->parts.stream));
        TESS_TRY(codebook_before(b, stream));
    } else if (own_nbytes > 0)
        memcpy(shard.data, own, own_nbytes);
    TESS_TRY(tess_comm_all_gather(comm, w, shard, full, stream));
    return tess_stream_finish(stream);
}

tess_status codebook_exchange(tess_codebooks *b, wire_idx wire)
{
    const int world = b->plan.shape.world;
    tess_stream *stream = tess_comm_reduce_stream(b->parts.comm);
    TESS_TRY(codebook_before(b, stream));
    TESS_TRY(tess_comm_exchange(b->parts.comm, &b->wire[wire], b->piece, world, b->piece + world,
                                world, stream));
    return tess_stream_finish(stream);
}

tess_status tess_codebooks_share_sizes(tess_codebooks *b, int64_t vector_numel, int64_t first_idx,
                                       tess_codebook_sizes *all)
{
    const int world = b->plan.shape.world;
    const int64_t own[2] = {vector_numel, first_idx};
    int64_t *numel = b->size + 2 * world, *first = numel + world;
    TESS_TRY(codebook_gather(b, WIRE_SIZE, own, sizeof own, b->size));
    for (int r = 0; r < world; r++) {
        numel[r] = b->size[2 * r];
        first[r] = b->size[2 * r + 1];
    }
    *all = (tess_codebook_sizes){numel, first};
    return TESS_OK;
}

/* ---- cuts ---- */

/* Elements that `of_rows` owns of rows of `width` and rank `of_other` in the other cut. */
static int64_t overlap(const tess_codebook_plan *plan, const tess_codebook_cut *cut, int of_rows,
                       int of_other, int64_t *lo)
{
    int64_t first = 0, end = 0;
    tess_codebook_owned(plan, of_rows, &first, &end);
    *lo = TESS_MAX(first * cut->width, cut->bound[of_other]);
    return TESS_MAX(TESS_MIN(end * cut->width, cut->bound[of_other + 1]) - *lo, 0);
}

static tess_piece piece_of(int peer_rank, float *base, int64_t first, int64_t lo, int64_t numel)
{
    return (tess_piece){peer_rank,
                        tess_view_host(numel > 0 ? base + (lo - first) : base, numel, TESS_F32)};
}

tess_status tess_codebooks_recut(tess_codebooks *b, const tess_codebook_cut *cut)
{
    const int world = b->plan.shape.world;
    tess_piece *rows = b->piece + (cut->to_rows ? world : 0);
    tess_piece *other = b->piece + (cut->to_rows ? 0 : world);
    for (int r = 0; r < world; r++) {
        int64_t lo = 0, numel = overlap(&b->plan, cut, b->rank, r, &lo);
        rows[r] = piece_of(r, cut->rows, b->lo * cut->width, lo, numel);
        numel = overlap(&b->plan, cut, r, b->rank, &lo);
        other[r] = piece_of(r, cut->other, cut->bound[b->rank], lo, numel);
    }
    return codebook_exchange(b, WIRE_CUT);
}

double tess_codebook_recut_nbytes(const tess_codebook_plan *plan, int64_t width,
                                  const int64_t *bound, int rank, bool to_rows)
{
    const tess_codebook_cut cut = {.width = width, .bound = bound};
    int64_t lo = 0, hi = 0;
    const int64_t own = overlap(plan, &cut, rank, rank, &lo);
    tess_codebook_owned(plan, rank, &lo, &hi);
    const int64_t all = to_rows ? (hi - lo) * width : bound[rank + 1] - bound[rank];
    return (double)sizeof(float) * (double)(all - own);
}

/* ---- vectors to owners ---- */

/* Vectors of [lo, hi) that go to `rank`. */
static void going_to(const tess_codebook_route *route, int rank, int64_t lo, int64_t hi,
                     int64_t *first, int64_t *end)
{
    *first = TESS_MIN(TESS_MAX(lo, route->first[rank]), hi);
    *end = TESS_MAX(TESS_MIN(hi, route->first[rank + 1]), *first);
}

static int64_t pack_vectors(const tess_codebooks *b, const tess_codebook_route *route, int64_t lo,
                            int64_t hi, float *dst)
{
    const int64_t d = b->plan.shape.dim;
    int64_t numel = 0;
    for (int64_t i = lo; i < hi; i++)
        if (route->holder(route->arg, i) == b->rank)
            memcpy(dst + numel++ * d, route->vector(route->arg, i), (size_t)d * sizeof *dst);
    return numel;
}

static int64_t count_of(const tess_codebook_route *route, int holder, int64_t lo, int64_t hi)
{
    int64_t numel = 0;
    for (int64_t i = lo; i < hi; i++)
        numel += route->holder(route->arg, i) == holder;
    return numel;
}

/* What came from `holder` to its places. */
static void unpack_vectors(const tess_codebooks *b, const tess_codebook_route *route, int holder,
                           int64_t lo, int64_t hi)
{
    const int64_t d = b->plan.shape.dim;
    const float *from = b->piece[b->plan.shape.world + holder].view.data;
    for (int64_t i = lo; i < hi; i++) {
        if (route->holder(route->arg, i) != holder)
            continue;
        memcpy(route->dst + (i - route->first[b->rank]) * d, from, (size_t)d * sizeof *from);
        from += d;
    }
}

static tess_status route_block(tess_codebooks *b, const tess_codebook_route *route, int64_t lo,
                               int64_t hi)
{
    const int world = b->plan.shape.world;
    const int64_t d = b->plan.shape.dim;
    float *sent = codebook_place(b, TESS_BOOK_ROUTE);
    float *received = sent + b->plan.shape.route_numel * d;
    int64_t first = 0, end = 0, own = 0, own_end = 0;
    going_to(route, b->rank, lo, hi, &own, &own_end);
    for (int r = 0; r < world; r++) {
        going_to(route, r, lo, hi, &first, &end);
        const int64_t numel = pack_vectors(b, route, first, end, sent);
        b->piece[r] = (tess_piece){r, tess_view_host(sent, numel * d, TESS_F32)};
        sent += numel * d;
        const int64_t from = count_of(route, r, own, own_end);
        b->piece[world + r] = (tess_piece){r, tess_view_host(received, from * d, TESS_F32)};
        received += from * d;
    }
    TESS_TRY(codebook_exchange(b, WIRE_ROUTE));
    for (int r = 0; r < world; r++)
        unpack_vectors(b, route, r, own, own_end);
    return TESS_OK;
}

tess_status tess_codebooks_route(tess_codebooks *b, const tess_codebook_route *route)
{
    const int64_t numel = route->first[b->plan.shape.world], block = b->plan.shape.route_numel;
    TESS_CHECK(block > 0, TESS_E_STATE, "codebooks: planned without routes");
    for (int64_t lo = 0; lo < numel; lo += block)
        TESS_TRY(route_block(b, route, lo, TESS_MIN(lo + block, numel)));
    return TESS_OK;
}
