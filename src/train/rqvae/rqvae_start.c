/* Start codes: k-means over what the encoder makes of all vectors of the first step, level by
 * level. */
#include "core/memory.h"
#include "shard/draw.h"
#include "train/rqvae/rqvae_codes.h"

/* Nearest codes of a round of vectors enter their sums; none of masked ones, whose codes have to
 * come back first. */
static tess_status add_round(codes_job *k, int book, int part, int64_t t)
{
    tess_codebook_round round = codes_round(k, book, part, t);
    const int64_t own = round.vector_numel[k->rank];
    const tess_code_row_args row = {round.key, k->r.code, own};
    round.adds = k->valid == NULL;
    TESS_TRY(tess_codebooks_search(k->books, &round));
    if (round.adds)
        return TESS_OK;
    TESS_TRY(codes_kernels(k->s)->code_row(&row, codes_stream(k->s)));
    TESS_TRY(tess_stream_finish(codes_stream(k->s)));
    for (int64_t i = 0; i < own; i++)
        if (codes_is_masked(k, t, i))
            k->r.code[i] = TESS_NO_CODE;
    return tess_codebooks_add(k->books, &round, k->r.code);
}

/* A code that no vector comes to keeps its place. */
static tess_status lloyd_round(codes_job *k, int book, int exponent)
{
    TESS_TRY(tess_codebooks_publish(k->books, codes_place(k, book)));
    TESS_TRY(tess_codebooks_begin_sums(k->books, exponent));
    for (int64_t i = 0; i < k->round_numel * k->part_numel; i++)
        TESS_TRY(add_round(k, book, (int)(i % k->part_numel), i / k->part_numel));
    TESS_TRY(tess_codebooks_end_sums(k->books));
    const tess_code_mean_args mean = {.sum = tess_codebooks_sum(k->books),
                                      .count = tess_codebooks_tally(k->books),
                                      .code = codes_rows(k, book),
                                      .row_numel = k->hi_idx - k->lo_idx,
                                      .dim = k->at->shape.dim,
                                      .exponent = exponent,
                                      .is_unit =
                                          k->s->run->quantizer.type == TESS_RUN_QUANTIZER_COSINE};
    return session_agree(k->s, codes_kernels(k->s)->code_mean(&mean, codes_stream(k->s)));
}

/* The next level's vectors. */
static tess_status subtract(codes_job *k, int book)
{
    for (int64_t i = 0; i < k->round_numel * k->part_numel; i++) {
        const int64_t t = i / k->part_numel;
        const tess_codebook_round round = codes_round(k, book, (int)(i % k->part_numel), t);
        const int64_t own = round.vector_numel[k->rank];
        const tess_code_row_args row = {round.key, k->r.code, own};
        TESS_TRY(tess_codebooks_search(k->books, &round));
        TESS_TRY(codes_kernels(k->s)->code_row(&row, codes_stream(k->s)));
        const tess_codebook_subtraction what = {.book_idx = round.book_idx,
                                                .x = round.x,
                                                .row = k->r.code,
                                                .entry_numel = round.vector_numel,
                                                .dst = k->x + (round.x - k->x)};
        TESS_TRY(tess_codebooks_subtract(k->books, &what));
    }
    return TESS_OK;
}

static tess_status start_book(codes_job *k, int book)
{
    const tess_run_quantizer_keys *q = &k->s->run->quantizer;
    const tess_draw draw = {.seed = (uint64_t)k->s->run->train.seed,
                            .purpose = TESS_DRAW_INIT,
                            .layer = (uint32_t)book};
    int exponent = 0;
    int64_t end = 0;
    TESS_TRY(codes_exponent(k, &exponent));
    for (int r = 0; r < k->world; r++)
        tess_codebook_owned(&k->at->book, r, &k->r.first[r], &end);
    k->r.first[k->world] = k->at->shape.code_numel;
    TESS_TRY(codes_draw(k, &draw, k->at->shape.code_numel, codes_rows(k, book)));
    for (int64_t i = 0; i < q->passes && q->init == TESS_RUN_CODE_INIT_KMEANS; i++)
        TESS_TRY(lloyd_round(k, book, exponent));
    TESS_TRY(tess_codebooks_publish(k->books, codes_place(k, book)));
    TESS_TRY(codes_keep(k, book));
    return subtract(k, book);
}

tess_status tess_codes_start(tess_session *s, const tess_vector_layout *layout,
                             tess_codebooks *books)
{
    const int levels = layout->shape.index_numel / layout->shape.group_numel;
    codes_job job;
    TESS_TRY(codes_begin(s, layout, books, &job));
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
