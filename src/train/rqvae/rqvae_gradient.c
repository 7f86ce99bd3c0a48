/* Gradients of codes that owners hold by rows: from what the step's micro-batches left of every
 * vector, once the last one went back. */
#include "train/rqvae/rqvae_codes.h"

/* Micro-batches of all ranks in round t. */
static tess_codebook_gradient round_of(const codes_job *job, int book, int64_t t, float scale)
{
    const tess_vector_layout *v = job->at;
    const tess_codebook_round round = codes_round(job, book, 0, t);
    const char *data = tess_runtime_arena(job->s->rt, TESS_LIFE_DATA).data;
    const uint32_t *code = (const uint32_t *)(const void *)(data + v->code);
    const int64_t first = t < job->batch_numel ? t * v->shape.index_numel + book : 0;
    return (tess_codebook_gradient){.book_idx = round.book_idx,
                                    .part_numel = job->part_numel,
                                    .vector_numel = round.vector_numel,
                                    .x = round.x,
                                    .row = code + first * v->row_numel,
                                    .x_stride = job->part_stride,
                                    .row_stride = v->shape.book_numel * v->row_numel,
                                    .coefficient = scale,
                                    .first_idx = t * job->world,
                                    .leaf = job->r.leaf,
                                    .level = job->r.level,
                                    .level_numel = v->level_numel};
}

/* The sum to where the optimizer finds gradients of the masters. */
static tess_status hand_over(codes_job *job, int book, float *sum)
{
    tess_session *s = job->s;
    const int param_idx = tess_rqvae_codebook(s->d.model, book);
    const codes_range range = codes_range_of(s, param_idx);
    const tess_view all = tess_runtime_gradient(s->rt, s->d.registry.param[param_idx].unit_idx);
    tess_status st = TESS_OK;
    TESS_TRY(codes_share(job, book, sum));
    if (range.master.numel > 0)
        st = tess_runtime_copy(s->rt, tess_view_slice(all, range.shard_idx, range.master.numel),
                               tess_view_host(job->r.share, range.master.numel, TESS_F32));
    return session_agree(s, st);
}

static tess_status sum_book(codes_job *job, int book, float scale)
{
    const int64_t owned = (job->hi_idx - job->lo_idx) * job->at->shape.dim;
    tess_codebook_gradient g = round_of(job, book, 0, scale);
    for (int64_t t = 0; t < job->round_numel; t++) {
        g = round_of(job, book, t, scale);
        TESS_TRY(tess_codebooks_add_gradient(job->books, &g));
    }
    TESS_TRY(tess_codebooks_end_gradient(job->books, &g, job->s->run->train.micro_batches));
    return hand_over(job, book, g.level + (g.level_numel - 1) * owned);
}

tess_status tess_codes_gradient(tess_session *s, const tess_vector_layout *layout,
                                tess_codebooks *books, float grad_scale)
{
    const float scale = tess_rqvae_code_scale(s->d.model, grad_scale);
    const int64_t each = layout->row_numel * layout->shape.dim;
    char *data = tess_runtime_arena(s->rt, TESS_LIFE_DATA).data;
    codes_job job;
    TESS_TRY(codes_begin(s, layout, books, &job));
    job.stride = layout->shape.index_numel * each;
    job.part_stride = layout->shape.book_numel * each;
    for (int b = 0; b < layout->shape.book_numel; b++) {
        job.x = (float *)(void *)(data + layout->kept) + b * each;
        TESS_TRY(sum_book(&job, b, scale));
    }
    return TESS_OK;
}
