/* What goes from owners of codes to all, and what is summed for them. */
#include <string.h>

#include "core/arith.h"
#include "core/trace.h"
#include "shard/codebook_priv.h"

/* ---- publish ---- */

tess_status tess_codebooks_publish(tess_codebooks *b, int book_idx)
{
    const tess_codebook_shape *s = &b->plan.shape;
    float *code = codebook_code(b, book_idx);
    const int64_t shard_numel = b->plan.row_numel * s->dim;
    const int64_t searched = s->is_sharded ? b->hi - b->lo : s->code_numel;
    if (codebook_is_far(b)) {
        TESS_TRY(codebook_move(b, code + (s->is_sharded ? 0 : b->lo * s->dim),
                               tess_codebooks_rows(b, book_idx), (b->hi - b->lo) * s->dim, TESS_F32,
                               true));
        TESS_TRY(tess_stream_finish(b->parts.stream)); /* the host may change its rows again */
    }
    if (!s->is_sharded) {
        tess_stream *stream = tess_comm_gather_stream(b->parts.comm);
        const tess_view full = codebook_view(b, code, shard_numel * s->world, TESS_F32);
        TESS_TRY(tess_comm_all_gather(b->parts.comm, &b->wire[WIRE_CODE],
                                      tess_view_slice(full, b->rank * shard_numel, shard_numel),
                                      full, stream));
        TESS_TRY(tess_stream_finish(stream));
    }
    const tess_nearest_prepare_args args = {.code =
                                                codebook_view(b, code, searched * s->dim, TESS_F32),
                                            .pack = codebook_pack(b, book_idx),
                                            .code_numel = searched,
                                            .dim = s->dim};
    tess_trace_kernel_begin(b->parts.stream, "nearest_prepare");
    return tess_trace_kernel_end(b->parts.stream,
                                 b->parts.kernels->nearest_prepare(&args, b->parts.stream));
}

/* ---- sums ---- */

tess_status tess_codebooks_begin_sums(tess_codebooks *b, int exponent)
{
    TESS_CHECK(b->plan.shape.has_sums, TESS_E_STATE, "codebooks: planned without statistics");
    static const tess_codebook_place zero[] = {TESS_BOOK_SUM, TESS_BOOK_TALLY};
    b->exponent = exponent;
    for (int i = 0; i < TESS_NELEM(zero); i++) {
        const size_t nbytes = b->plan.buffer[zero[i]].nbytes;
        if (!codebook_is_far(b))
            memset(codebook_place(b, zero[i]), 0, nbytes);
        else
            TESS_TRY(tess_device_zero(
                b->parts.device,
                codebook_view(b, codebook_place(b, zero[i]), (int64_t)nbytes, TESS_U8_OPAQUE),
                b->parts.stream));
    }
    return TESS_OK;
}

/* Rows [first, first + numel) of what a rank owns: slice `k` of it. */
static void slice_of(const tess_codebooks *b, int rank, int64_t k, int64_t *first, int64_t *numel)
{
    int64_t lo = 0, hi = 0;
    tess_codebook_owned(&b->plan, rank, &lo, &hi);
    *first = TESS_MIN(lo + k * b->plan.slice_numel, hi);
    *numel = TESS_MIN(b->plan.slice_numel, hi - *first);
}

static void add_integers(int64_t *dst, const int64_t *src, int64_t numel)
{
    for (int64_t i = 0; i < numel; i++)
        dst[i] += src[i];
}

/* What was taken of all rows, `width` integers each, and what of it the owner of rows keeps. */
typedef struct taken {
    wire_idx wire;
    int64_t width;
    int64_t *full, *received; /* where kernels work */
    int64_t *own;             /* [hi - lo, width], host; on the host part of `full` */
} taken;

/* Pieces go to the rows' owners and are added there. */
static tess_status reduce_slice(tess_codebooks *b, const taken *t, int64_t k)
{
    const int world = b->plan.shape.world;
    const int64_t width = t->width;
    tess_piece *send = b->piece, *receive = b->piece + world;
    tess_stream *stream = tess_comm_reduce_stream(b->parts.comm);
    int64_t first = 0, numel = 0, own_first = 0, own_numel = 0;
    int at = 0;
    slice_of(b, b->rank, k, &own_first, &own_numel);
    for (int r = 0; r < world; r++) {
        if (r == b->rank)
            continue;
        slice_of(b, r, k, &first, &numel);
        send[at] =
            (tess_piece){r, codebook_view(b, t->full + first * width, numel * width, TESS_I64)};
        receive[at] = (tess_piece){
            r, codebook_view(b, t->received + at * own_numel * width, own_numel * width, TESS_I64)};
        at++;
    }
    TESS_TRY(codebook_before(b, stream));
    TESS_TRY(tess_comm_exchange(b->parts.comm, &b->wire[t->wire], send, at, receive, at, stream));
    TESS_TRY(tess_stream_finish(stream));
    const int64_t *landed = t->received;
    if (codebook_is_far(b)) {
        TESS_TRY(codebook_move(b, codebook_place(b, TESS_BOOK_LANDED), t->received,
                               at * own_numel * width, TESS_I64, false));
        TESS_TRY(tess_stream_finish(b->parts.stream));
        landed = codebook_place(b, TESS_BOOK_LANDED);
    }
    for (int i = 0; i < at; i++)
        add_integers(t->own + (own_first - b->lo) * width, landed + i * own_numel * width,
                     own_numel * width);
    return TESS_OK;
}

/* The owner's own part of what a device summed. */
static tess_status land_own(tess_codebooks *b, const taken *t)
{
    const int64_t *near = t->full + (b->plan.shape.is_sharded ? 0 : b->lo * t->width);
    if (!codebook_is_far(b))
        return TESS_OK;
    TESS_TRY(codebook_move(b, t->own, near, (b->hi - b->lo) * t->width, TESS_I64, false));
    return tess_stream_finish(b->parts.stream);
}

tess_status tess_codebooks_end_sums(tess_codebooks *b)
{
    const tess_codebook_shape *s = &b->plan.shape;
    const int64_t slice_numel = tess_ceil_div(b->plan.row_numel, b->plan.slice_numel);
    int64_t *tally = codebook_place(b, TESS_BOOK_TALLY);
    const taken sums = {WIRE_SUM, s->dim, codebook_place(b, TESS_BOOK_SUM),
                        codebook_place(b, TESS_BOOK_RECEIVE), codebook_own_sum(b)};
    const taken counts = {WIRE_TALLY, 1, tally, tally + s->world * b->plan.row_numel,
                          codebook_own_tally(b)};
    TESS_TRY(land_own(b, &sums));
    TESS_TRY(land_own(b, &counts));
    if (s->is_sharded || s->world == 1)
        return TESS_OK;
    for (int64_t k = 0; k < slice_numel; k++) {
        TESS_TRY(reduce_slice(b, &sums, k));
        TESS_TRY(reduce_slice(b, &counts, k));
    }
    return TESS_OK;
}
