/* Codes between the owners of their rows and the masters, which have the cut of all trainable
 * tensors. */
#include "core/arith.h"
#include "model/rqvae.h"
#include "train/rqvae/rqvae_codes.h"

codes_range codes_range_of(tess_session *s, int param_idx)
{
    const tess_param *p = &s->d.registry.param[param_idx];
    int64_t lo = 0, hi = 0;
    tess_plan_owned(s->d.plan, p->unit_idx, tess_comm_rank(s->world), &lo, &hi);
    const int64_t first = TESS_MAX(lo, p->slab_first_idx);
    const int64_t numel = TESS_MAX(TESS_MIN(hi, p->slab_first_idx + p->numel) - first, 0);
    codes_range range = {.master = tess_runtime_state(s->rt, p->unit_idx, TESS_STATE_MASTER),
                         .copy = tess_runtime_param_shard(s->rt, p->unit_idx),
                         .first_idx = first - p->slab_first_idx,
                         .shard_idx = numel > 0 ? first - lo : 0};
    range.master = tess_view_slice(range.master, range.shard_idx, numel);
    range.copy = tess_view_slice(range.copy, range.shard_idx, numel);
    return range;
}

tess_status codes_keep_param(tess_session *s, int param_idx, const float *value)
{
    const codes_range range = codes_range_of(s, param_idx);
    if (range.master.numel == 0)
        return TESS_OK;
    const tess_view from =
        tess_view_host((float *)(uintptr_t)(value + range.first_idx), range.master.numel, TESS_F32);
    TESS_TRY(tess_runtime_copy(s->rt, range.master, from));
    return tess_runtime_copy(s->rt, range.copy, from);
}

static int param_of(const codes_job *job, int book)
{
    return tess_rqvae_codebook(job->s->d.model, book);
}

/* Rows of a book, cut as masters are. */
static tess_codebook_cut cut_of(const codes_job *job, int book, float *rows, bool to_rows)
{
    const int param_idx = param_of(job, book);
    tess_codes_bounds(&job->s->d.registry, job->world, param_idx, job->r.bound);
    return (tess_codebook_cut){.width = job->at->shape.dim,
                               .bound = job->r.bound,
                               .rows = rows,
                               .other = job->r.share,
                               .to_rows = to_rows};
}

/* As tess_plan_owned() cuts the unit. */
void tess_codes_bounds(const tess_registry *reg, int world, int param_idx, int64_t *bound)
{
    const tess_param *p = &reg->param[param_idx];
    const int64_t slab_numel = reg->unit[p->unit_idx].trainable_numel;
    const int64_t each =
        tess_ceil_div(slab_numel / TESS_TRAINABLE_BLOCK_NUMEL, world) * TESS_TRAINABLE_BLOCK_NUMEL;
    for (int r = 0; r <= world; r++)
        bound[r] =
            TESS_MIN(TESS_MAX(TESS_MIN(each * r, slab_numel) - p->slab_first_idx, 0), p->numel);
}

tess_status codes_share(codes_job *job, int book, float *rows)
{
    const tess_codebook_cut cut = cut_of(job, book, rows, false);
    return tess_codebooks_recut(job->books, &cut);
}

tess_status codes_keep(codes_job *job, int book)
{
    const codes_range range = codes_range_of(job->s, param_of(job, book));
    const tess_view from = tess_view_host(job->r.share, range.master.numel, TESS_F32);
    TESS_TRY(codes_share(job, book, codes_rows(job, book)));
    tess_status st = TESS_OK;
    if (range.master.numel > 0)
        st = tess_runtime_copy(job->s->rt, range.master, from);
    if (st == TESS_OK && range.copy.numel > 0)
        st = tess_runtime_copy(job->s->rt, range.copy, from);
    return session_agree(job->s, st);
}

tess_status codes_load(codes_job *job, int book, bool is_copy, float *rows)
{
    const tess_codebook_cut cut = cut_of(job, book, rows, true);
    const codes_range range = codes_range_of(job->s, param_of(job, book));
    const tess_view from = is_copy ? range.copy : range.master;
    tess_status st = TESS_OK;
    if (from.numel > 0)
        st =
            tess_runtime_copy(job->s->rt, tess_view_host(job->r.share, from.numel, TESS_F32), from);
    TESS_TRY(session_agree(job->s, st));
    return tess_codebooks_recut(job->books, &cut);
}

tess_status tess_codes_load(tess_session *s, const tess_vector_layout *layout,
                            tess_codebooks *books)
{
    codes_job job;
    if (!layout->book.shape.is_sharded)
        return TESS_OK;
    TESS_TRY(codes_begin(s, layout, books, &job));
    for (int b = 0; b < layout->shape.book_numel; b++) {
        TESS_TRY(codes_load(&job, b, true, codes_rows(&job, b)));
        TESS_TRY(tess_codebooks_publish(books, b));
    }
    return TESS_OK;
}
