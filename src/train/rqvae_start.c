/* Start codes: k-means over what the encoder makes of the first step, level by level. */
#include <string.h>

#include "core/memory.h"
#include "shard/draw.h"
#include "train/rqvae_codes.h"

static int64_t pooled_rows(const codes_job *k)
{
    return k->batch_numel * k->at->row_numel * k->part_numel;
}

/* Nearest codes of this rank's vectors, which lie in one piece. */
static tess_status assign(codes_job *k)
{
    const tess_kernels *kernels = codes_kernels(k->s);
    tess_stream *stream = codes_stream(k->s);
    const int64_t rows = pooled_rows(k), d = k->at->shape.dim;
    const tess_view code = tess_view_host(k->r.code, k->at->shape.code_numel * d, TESS_F32);
    const tess_nearest_prepare_args prepare = {
        .code = code, .pack = k->r.pack, .code_numel = k->at->shape.code_numel, .dim = d};
    const tess_nearest_args nearest = {.x = tess_view_host(k->x, rows * d, TESS_F32),
                                       .code = code,
                                       .pack = k->r.pack,
                                       .key = tess_view_host(k->r.key, rows, TESS_U64),
                                       .work = k->r.work,
                                       .vector_numel = rows,
                                       .code_numel = k->at->shape.code_numel,
                                       .dim = d,
                                       .best_numel = 1};
    const tess_code_row_args row = {k->r.key, k->r.row, rows};
    TESS_TRY(kernels->nearest_prepare(&prepare, stream));
    TESS_TRY(kernels->nearest(&nearest, stream));
    TESS_TRY(kernels->code_row(&row, stream));
    return tess_stream_finish(stream);
}

static tess_status add_own(codes_job *k, int exponent)
{
    const tess_code_sum_args args = {.x = k->x,
                                     .row = k->r.row,
                                     .vector_numel = pooled_rows(k),
                                     .dim = k->at->shape.dim,
                                     .row_numel = k->at->shape.code_numel,
                                     .exponent = exponent,
                                     .sum = k->r.sum,
                                     .count = k->r.count};
    memset(k->r.sum, 0, (size_t)(k->at->shape.code_numel * k->at->shape.dim) * sizeof *k->r.sum);
    memset(k->r.count, 0, (size_t)k->at->shape.code_numel * sizeof *k->r.count);
    TESS_TRY(assign(k));
    return codes_kernels(k->s)->code_sum(&args, codes_stream(k->s));
}

/* A code that no vector comes to keeps its place. */
static tess_status lloyd_round(codes_job *k, int exponent)
{
    const tess_code_mean_args mean = {.sum = k->r.sum,
                                      .count = k->r.count,
                                      .code = k->r.code,
                                      .row_numel = k->at->shape.code_numel,
                                      .dim = k->at->shape.dim,
                                      .exponent = exponent,
                                      .is_unit =
                                          k->s->run->quantizer.type == TESS_RUN_QUANTIZER_COSINE};
    TESS_TRY(session_agree(k->s, add_own(k, exponent)));
    TESS_TRY(codes_share(k, k->r.sum, k->at->shape.code_numel * k->at->shape.dim));
    TESS_TRY(codes_share(k, k->r.count, k->at->shape.code_numel));
    return session_agree(k->s, codes_kernels(k->s)->code_mean(&mean, codes_stream(k->s)));
}

/* The next level's vectors. */
static tess_status subtract(codes_job *k)
{
    const tess_code_residual_args args = {.x = k->x,
                                          .code = k->r.code,
                                          .row = k->r.row,
                                          .vector_numel = pooled_rows(k),
                                          .code_numel = k->at->shape.code_numel,
                                          .dim = k->at->shape.dim,
                                          .dst = k->x};
    TESS_TRY(assign(k));
    return codes_kernels(k->s)->code_residual(&args, codes_stream(k->s));
}

static tess_status start_book(codes_job *k, int book)
{
    const tess_run_quantizer_keys *q = &k->s->run->quantizer;
    const tess_draw draw = {.seed = (uint64_t)k->s->run->train.seed,
                            .purpose = TESS_DRAW_INIT,
                            .layer = (uint32_t)book};
    int exponent = 0;
    TESS_TRY(codes_exponent(k, &exponent));
    TESS_TRY(codes_draw(k, &draw, k->at->shape.code_numel));
    for (int64_t i = 0; i < q->passes && q->init == TESS_RUN_CODE_INIT_KMEANS; i++)
        TESS_TRY(lloyd_round(k, exponent));
    tess_status st = codes_keep(k, book, k->r.code);
    if (st == TESS_OK)
        st = subtract(k);
    return session_agree(k->s, st);
}

tess_status tess_codes_start(tess_session *s, const tess_vector_layout *layout)
{
    const int levels = layout->shape.index_numel / layout->shape.group_numel;
    codes_job job;
    TESS_TRY(codes_begin(s, layout, &job));
    job.stride = layout->row_numel * layout->shape.dim;
    job.part_stride = job.batch_numel * job.stride;
    float *latent =
        (float *)(void *)((char *)tess_runtime_arena(s->rt, TESS_LIFE_DATA).data + layout->kept);
    for (int book = 0; book < layout->shape.book_numel; book++) {
        job.x = latent + book / levels * job.part_stride;
        TESS_TRY(start_book(&job, book));
    }
    return TESS_OK;
}
