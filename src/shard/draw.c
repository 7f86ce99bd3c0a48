#include "shard/draw.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"

typedef struct drawn {
    uint64_t output;
    int64_t element_idx;
} drawn;

static int by_output(const void *a, const void *b)
{
    const drawn *x = a, *y = b;
    if (x->output != y->output)
        return x->output < y->output ? -1 : 1;
    return (x->element_idx > y->element_idx) - (x->element_idx < y->element_idx);
}

/* What a binomial number with mean m does not exceed, or m is exceeded by that of this mean, all
 * but surely: beyond 8 standard deviations. */
static double widened(double m) { return m + 8.0 * sqrt(m) + 16.0; }

size_t tess_draw_room_nbytes(int64_t drawn_numel, int world)
{
    const double each = widened(widened((double)drawn_numel) / world + 1.0);
    return sizeof(drawn) * (size_t)(world + 1) * (size_t)each;
}

/* Below it lie the smallest m outputs. */
static uint64_t first_limit(int64_t element_numel, int64_t drawn_numel)
{
    const double share = widened((double)drawn_numel) / (double)element_numel;
    return share >= 1.0 ? UINT64_MAX : (uint64_t)(share * 0x1p64);
}

/* Elements [lo, hi) whose output is at most `limit`; `out` may be NULL to count them. */
static int64_t collect(const tess_draw *draw, const int64_t range[2], uint64_t limit, drawn *out)
{
    int64_t found = 0;
    for (int64_t g = range[0]; g < range[1]; g++) {
        const uint64_t output = tess_draw_output(draw, (uint64_t)g);
        if (output > limit)
            continue;
        if (out != NULL)
            out[found] = (drawn){output, g};
        found++;
    }
    return found;
}

/* Rank 0 sorts what all found: `own` [most] of every rank, `all` [world, most] of rank 0. */
static tess_status sort_out(tess_comm *comm, const drawn *own, int64_t most, drawn *all,
                            int64_t drawn_numel, int64_t *element_idx)
{
    TESS_TRY(tess_comm_gather_bytes(comm, 0, own, (size_t)most * sizeof *own, all));
    if (tess_comm_rank(comm) == 0) {
        qsort(all, (size_t)(most * tess_comm_world(comm)), sizeof *all, by_output);
        for (int64_t i = 0; i < drawn_numel; i++)
            element_idx[i] = all[i].element_idx;
    }
    return tess_comm_bcast(comm, 0, element_idx, (size_t)drawn_numel * sizeof *element_idx);
}

static tess_status select_without_replacement(tess_comm *comm, const tess_draw *draw,
                                              int64_t element_numel, int64_t drawn_numel,
                                              const tess_view *room, int64_t *element_idx)
{
    const int64_t rank = tess_comm_rank(comm), world = tess_comm_world(comm);
    const int64_t per_rank = tess_ceil_div(element_numel, world);
    const int64_t range[2] = {TESS_MIN(rank * per_rank, element_numel),
                              TESS_MIN((rank + 1) * per_rank, element_numel)};
    uint64_t limit = first_limit(element_numel, drawn_numel);
    int64_t found = 0, total = 0, most = 0;
    for (;;) {
        found = most = total = collect(draw, range, limit, NULL);
        TESS_TRY(tess_comm_control(comm, &total, 1, &most, 1));
        if (total >= drawn_numel || limit == UINT64_MAX)
            break;
        limit = limit > UINT64_MAX / 2 ? UINT64_MAX : 2 * limit;
    }
    const int64_t room_numel = most * (rank == 0 ? world + 1 : 1);
    const bool is_given =
        room != NULL && most * (world + 1) * (int64_t)sizeof(drawn) <= room->numel;
    void *memory = NULL;
    if (!is_given)
        TESS_TRY(tess_agree(comm, tess_alloc_array(room_numel, sizeof(drawn), &memory)));
    drawn *own = is_given ? room->data : memory;
    (void)collect(draw, range, limit, own);
    for (int64_t i = found; i < most; i++)
        own[i] = (drawn){UINT64_MAX, INT64_MAX};
    const tess_status st =
        sort_out(comm, own, most, rank == 0 ? own + most : NULL, drawn_numel, element_idx);
    tess_free(memory);
    return st;
}

tess_status tess_draw_select(tess_comm *comm, const tess_draw *draw, int64_t element_numel,
                             int64_t drawn_numel, const tess_view *room, int64_t *element_idx)
{
    TESS_CHECK(element_numel >= 1, TESS_E_RANGE, "draw: %" PRId64 " of an empty set", drawn_numel);
    if (drawn_numel <= element_numel)
        return select_without_replacement(comm, draw, element_numel, drawn_numel, room,
                                          element_idx);
    for (int64_t j = 0; j < drawn_numel; j++)
        element_idx[j] = (int64_t)tess_draw_below(draw, (uint64_t)j, (uint64_t)element_numel);
    return TESS_OK;
}
