#include <inttypes.h>
#include <math.h>

#include "train/vectors/kmeans_priv.h"

enum { SEED_PER_CODE = 64, SINGLE_NUMEL = 256, CENTER_SHARE = 32 };

/* A search costs little more for many centers than for one, and of many the weights that do not
 * know the last 1/32 yet draw nearly as well. */
int64_t kmeans_center_numel(int64_t chosen_numel)
{
    return chosen_numel < SINGLE_NUMEL ? 1 : chosen_numel / CENTER_SHARE;
}

int kmeans_best(const tess_kmeans_config *c)
{
    return (int)TESS_MIN((int64_t)c->beam_numel, c->code_numel);
}

int kmeans_entries(const tess_kmeans_config *c, int level)
{
    int64_t entries = 1;
    for (int l = 0; l < level && entries < c->beam_numel; l++)
        entries = TESS_MIN(entries * TESS_MIN(c->code_numel, (int64_t)TESS_KMEANS_BEAM_MAX),
                           (int64_t)c->beam_numel);
    return (int)entries;
}

int64_t tess_kmeans_step_numel(const tess_kmeans_config *c)
{
    return c->group_numel * (c->level_numel * c->pass_numel + c->refine_numel);
}

/* ---- checks ---- */

static tess_status check(const tess_kmeans_plan_request *r)
{
    const tess_kmeans_config *c = &r->config;
    TESS_CHECK(r->dim % c->group_numel == 0, TESS_E_CONFIG,
               "quantizer.groups: %d groups do not divide the %" PRId64
               " dimensions of data.path; choose a divisor",
               c->group_numel, r->dim);
    TESS_CHECK(r->dim / c->group_numel <= TESS_NEAREST_DIM_MAX, TESS_E_CONFIG,
               "quantizer.groups: %" PRId64
               " dimensions a group, expected at most %d; choose more groups",
               r->dim / c->group_numel, TESS_NEAREST_DIM_MAX);
    TESS_CHECK(
        !c->is_spherical || c->level_numel == 1, TESS_E_CONFIG,
        "quantizer.spherical: what a level leaves of vectors of length 1 has another length: "
        "expected quantizer.levels 1, found %d",
        c->level_numel);
    TESS_CHECK(!c->is_spherical || (c->group_numel == 1 && c->batch_numel == 0), TESS_E_CONFIG,
               "quantizer.spherical: lengths are those of whole vectors, and means of full passes: "
               "expected quantizer.groups 1 and quantizer.batch 0, found %d and %" PRId64,
               c->group_numel, c->batch_numel);
    TESS_CHECK(r->is_reader || c->batch_numel <= r->vector_numel, TESS_E_CONFIG,
               "quantizer.batch: %" PRId64 " vectors a batch, but data.path holds %" PRId64
               "; choose less, or 0 for full passes",
               c->batch_numel, r->vector_numel);
    return TESS_OK;
}

/* ---- sizes ---- */

/* Sum of a x b x c elements of `nbytes`, into `*total`. */
static tess_status add_room(size_t *total, int64_t a, int64_t b, size_t nbytes)
{
    int64_t numel = 0;
    TESS_TRY(tess_mul_i64(a, b, &numel));
    TESS_TRY(tess_mul_i64(numel, (int64_t)nbytes, &numel));
    TESS_TRY(tess_add_i64((int64_t)*total, numel, &numel));
    *total = (size_t)numel;
    return TESS_OK;
}

/* A place behind the others. */
static tess_status add_place(kmeans_layout *l, kmeans_place which, int64_t rows, int64_t cols,
                             size_t nbytes)
{
    size_t *total = which < KMEANS_HOST_X ? &l->near_nbytes : &l->host_nbytes;
    l->offset_nbytes[which] = *total;
    TESS_TRY(add_room(total, rows, cols, nbytes));
    *total = (size_t)tess_round_up((int64_t)*total, TESS_ARENA_ALIGN_NBYTES);
    return TESS_OK;
}

tess_status kmeans_lay_out(const tess_kmeans_plan *p, const tess_kernels *kernels,
                           kmeans_layout *out)
{
    const tess_kmeans_config *c = &p->config;
    const int64_t entries = KMEANS_BLOCK * (int64_t)c->beam_numel, d = p->group_dim;
    const int64_t blocks = p->is_device ? 2 : 0, apart = p->is_device ? 1 : 0;
    const int64_t sliced = c->group_numel > 1 ? KMEANS_BLOCK : 0;
    const int64_t centers = p->seed_numel > 0 ? kmeans_center_numel(c->code_numel) : 0;
    const size_t pack_nbytes = centers > 0 ? kernels->nearest_pack_nbytes(centers, d) : 0;
    kmeans_layout l = {.near_nbytes = 0};
    TESS_TRY(add_place(&l, KMEANS_X, TESS_MAX(blocks, 1) * KMEANS_BLOCK, p->dim, sizeof(float)));
    TESS_TRY(add_place(&l, KMEANS_SLICE, sliced, d, sizeof(float)));
    TESS_TRY(add_place(&l, KMEANS_RESIDUAL, entries, d, sizeof(float)));
    TESS_TRY(add_place(&l, KMEANS_SEED, p->seed_numel, d, sizeof(float)));
    TESS_TRY(add_place(&l, KMEANS_SEED_KEY, apart, p->seed_numel, sizeof(uint64_t)));
    TESS_TRY(add_place(&l, KMEANS_CENTER, apart * centers, d, sizeof(float)));
    TESS_TRY(add_place(&l, KMEANS_CENTER_PACK, (int64_t)pack_nbytes, 1, 1));
    TESS_TRY(add_place(&l, KMEANS_HOST_X, blocks * KMEANS_BLOCK, p->dim, sizeof(float)));
    TESS_TRY(add_place(&l, KMEANS_HOST_KEY, entries, kmeans_best(c), sizeof(uint64_t)));
    TESS_TRY(add_place(&l, KMEANS_HOST_SEED_KEY, p->seed_numel, 1, sizeof(uint64_t)));
    TESS_TRY(add_place(&l, KMEANS_HOST_CENTER, centers, d, sizeof(float)));
    *out = l;
    return TESS_OK;
}

static tess_status size_blocks(tess_kmeans_plan *p, const tess_kernels *kernels)
{
    const tess_kmeans_config *c = &p->config;
    const int64_t entries = KMEANS_BLOCK * (int64_t)c->beam_numel;
    kmeans_layout layout;
    TESS_TRY(kmeans_lay_out(p, kernels, &layout));
    p->near_nbytes = layout.near_nbytes;
    p->block_nbytes = layout.host_nbytes;
    TESS_TRY(add_room(&p->block_nbytes, entries, 2 + c->level_numel, sizeof(uint32_t)));
    /* All of a sample may lie in one rank's blocks: distance, number, weight, sums. */
    TESS_TRY(add_room(&p->seed_nbytes, p->seed_numel, 6, sizeof(float)));
    /* Counts of all codes; while a level starts or is repaired, drawn numbers or pairs of codes. */
    return add_room(&p->block_nbytes, c->code_numel, 1, 8 * sizeof(int64_t));
}

static tess_status plan_books(const tess_kmeans_plan_request *r, const tess_kernels *kernels,
                              bool is_sharded, const tess_kmeans_plan *p, tess_codebook_plan *out)
{
    const tess_codebook_shape shape = {.world = r->world,
                                       .book_numel = r->config.group_numel * r->config.level_numel,
                                       .code_numel = r->config.code_numel,
                                       .dim = p->group_dim,
                                       .block_numel = KMEANS_BLOCK,
                                       .best_numel = kmeans_best(&r->config),
                                       .thread_numel = r->thread_numel,
                                       .is_sharded = is_sharded,
                                       .has_sums = !r->is_reader,
                                       .is_device = r->is_device};
    return tess_codebook_plan_make(&shape, kernels, out);
}

/* ---- choice ---- */

static size_t on_host(const tess_kmeans_plan *p)
{
    return p->state_nbytes + p->block_nbytes + p->seed_nbytes + p->snapshot_nbytes;
}

/* Beside the codebooks, of the memory that the limit is of. */
static size_t beside(const tess_kmeans_plan *p)
{
    return p->near_nbytes + (p->is_device ? 0 : on_host(p));
}

static tess_status refuse(const tess_kmeans_plan_request *r, const tess_kmeans_plan *p,
                          const tess_codebook_plan *books)
{
    const bool is_sharded = books->shape.is_sharded;
    const size_t state_nbytes = p->is_device ? 0 : p->state_nbytes;
    return TESS_FAIL(
        TESS_E_FIT,
        "codebooks %s need %zu bytes a rank (codes %zu, packed %zu, sums %zu, vectors' codes %zu, "
        "others %zu), the limit is %zu; %sraise compute.memory_limit, use more ranks, or lower "
        "quantizer.codes (%" PRId64 ")",
        is_sharded ? "sharded by rows" : "replicated", books->total_nbytes + beside(p),
        books->buffer[TESS_BOOK_CODE].nbytes, books->buffer[TESS_BOOK_PACK].nbytes,
        books->buffer[TESS_BOOK_SUM].nbytes, state_nbytes,
        books->total_nbytes + beside(p) - books->buffer[TESS_BOOK_CODE].nbytes -
            books->buffer[TESS_BOOK_PACK].nbytes - books->buffer[TESS_BOOK_SUM].nbytes -
            state_nbytes,
        r->memory_limit_nbytes, is_sharded || r->world == 1 ? "" : "set quantizer.sharding: rows, ",
        r->config.code_numel);
}

static bool fits(const tess_kmeans_plan_request *r, const tess_kmeans_plan *p,
                 const tess_codebook_plan *books)
{
    return r->memory_limit_nbytes == 0 || books->total_nbytes + beside(p) <= r->memory_limit_nbytes;
}

/* What fits, and of that what sends less. */
static bool choose_sharded(const tess_kmeans_plan_request *r, const tess_kmeans_plan *p,
                           const tess_codebook_plan books[2])
{
    if (r->sharding != TESS_KMEANS_SHARD_AUTO)
        return r->sharding == TESS_KMEANS_ROWS;
    if (r->world == 1)
        return false;
    if (fits(r, p, &books[0]) != fits(r, p, &books[1]))
        return fits(r, p, &books[1]);
    return tess_codebook_pass_nbytes(&books[1], p->round_numel) <
           tess_codebook_pass_nbytes(&books[0], p->round_numel);
}

tess_status tess_kmeans_plan_make(const tess_kmeans_plan_request *r, const tess_kernels *kernels,
                                  tess_kmeans_plan *out)
{
    tess_kmeans_plan p = {.config = r->config,
                          .vector_numel = r->vector_numel,
                          .dim = r->dim,
                          .world = r->world,
                          .is_device = r->is_device};
    tess_codebook_plan books[2];
    TESS_TRY(check(r));
    p.group_dim = r->dim / r->config.group_numel;
    p.block_numel = tess_ceil_div(r->vector_numel, KMEANS_BLOCK);
    p.round_numel = tess_ceil_div(p.block_numel, r->world);
    p.held_numel = p.round_numel * KMEANS_BLOCK;
    if (r->config.init == TESS_KMEANS_PLUS_PLUS && !r->is_reader)
        p.seed_numel = TESS_MIN(r->vector_numel, SEED_PER_CODE * r->config.code_numel);
    TESS_TRY(size_blocks(&p, kernels));
    if (!r->is_reader)
        TESS_TRY(add_room(&p.state_nbytes, p.held_numel,
                          (int64_t)r->config.beam_numel * r->config.level_numel, sizeof(uint32_t)));
    if (!r->is_reader)
        TESS_TRY(add_room(&p.snapshot_nbytes,
                          (int64_t)r->config.group_numel * r->config.level_numel *
                              tess_ceil_div(r->config.code_numel, r->world),
                          p.group_dim * 4 + 8, 1));
    for (int i = 0; i < 2; i++)
        TESS_TRY(plan_books(r, kernels, i == 1, &p, &books[i]));
    const int chosen = choose_sharded(r, &p, books);
    p.book = books[chosen];
    p.other = books[!chosen];
    p.total_nbytes = p.book.total_nbytes + beside(&p);
    p.beside_nbytes = p.is_device ? p.book.beside_nbytes + on_host(&p) : 0;
    if (!fits(r, &p, &p.book))
        return refuse(r, &p, &p.book);
    *out = p;
    return TESS_OK;
}
