/*
 * Quantizers with codebooks: levels of codes, each for what the ones before it leave, in groups of
 * dimensions. Codes are a tensor, a table times a learned map, or the rows of a fixed table brought
 * to length 1.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "model/rqvae_priv.h"

/* ---- description ---- */

static bool is_mapped(const tess_rqvae *m) { return m->config.kind == TESS_QUANTIZER_MAPPED_CODES; }

static bool is_projected(const tess_rqvae_config *c) { return c->kind == TESS_QUANTIZER_PROJECTED; }

/* Codes that every call makes of a table, in a room of its own. */
static bool has_room(const tess_rqvae *m) { return is_mapped(m) || is_projected(&m->config); }

static tess_status shape(const tess_rqvae_config *c, tess_quantizer_shape *out)
{
    TESS_CHECK(c->code_numel >= 1 && c->code_numel < (int64_t)TESS_NO_CODE, TESS_E_CONFIG,
               "quantizer.codes: %" PRId64 " is out of range", c->code_numel);
    TESS_CHECK(!is_projected(c) || c->images.channel_numel == 0, TESS_E_CONFIG,
               "quantizer.type: random-projection is over vectors; use model.family rqvae");
    TESS_CHECK(!c->is_spherical || is_projected(c) || (c->level_numel == 1 && c->is_averaged),
               TESS_E_CONFIG,
               "quantizer.type: cosine has one level of codes that are averages; set "
               "quantizer.levels to 1 and quantizer.update to ema");
    TESS_CHECK(!c->is_sharded || !(c->orthogonal > 0.0), TESS_E_CONFIG,
               "quantizer.sharding: rows has no orthogonal codes, whose loss is over all of them; "
               "set quantizer.orthogonal to 0, or choose replicated");
    TESS_CHECK(!(c->orthogonal > 0.0) || !c->is_averaged, TESS_E_CONFIG,
               "quantizer.orthogonal: averages undo what it does to codes; set quantizer.update to "
               "gradient");
    out->code_numel = c->code_numel;
    out->book_numel = c->is_shared ? c->level_numel : out->index_numel;
    TESS_CHECK(!(c->orthogonal > 0.0) || out->index_numel + out->book_numel <= TESS_RQVAE_TERM_MAX,
               TESS_E_CONFIG,
               "quantizer.orthogonal: %d indices and %d codebooks, expected at most %d together",
               out->index_numel, out->book_numel, TESS_RQVAE_TERM_MAX);
    return TESS_OK;
}

/* Of each codebook: the mean over those of a level, as over heads. */
static double orthogonal_of(const tess_rqvae *m)
{
    return m->config.orthogonal * (double)m->config.level_numel / (double)m->shape.book_numel;
}

static void terms(const tess_rqvae *m, tess_quantizer_terms *out)
{
    const tess_rqvae_config *c = &m->config;
    const double weight =
        is_projected(c) ? 0.0 : m->level_weight * ((c->is_averaged ? 0.0 : 1.0) + c->commitment);
    *out = (tess_quantizer_terms){.numel = m->shape.index_numel, .of_rows = m->shape.index_numel};
    for (int i = 0; i < out->numel; i++)
        out->weight[i] = weight;
    for (int b = 0; b < m->shape.book_numel && c->orthogonal > 0.0; b++)
        out->weight[out->numel++] = orthogonal_of(m);
}

/* Codes begin uniform in sqrt(6 / (K d)) (Kaiming over all of a codebook, as
 * vector-quantize-pytorch has it), unless the trainer sets them from data. */
static tess_status add_codebooks(tess_rqvae *m, tess_registry *reg, int unit_idx)
{
    const tess_rqvae_config *c = &m->config;
    const int64_t d = m->shape.dim;
    for (int b = 0; b < m->shape.book_numel; b++) {
        tess_param p = {.unit_idx = unit_idx,
                        .shape_rank = 2,
                        .shape = {c->code_numel, d},
                        .init = TESS_INIT_UNIFORM,
                        .init_scale = sqrt(6.0 / ((double)c->code_numel * (double)d)),
                        .learning_rate_ratio = c->is_averaged ? 0.0 : 1.0,
                        .is_outer = true};
        snprintf(p.name, sizeof p.name, "quantizer.%d.codes", b);
        TESS_TRY(tess_rqvae_add_param(reg, &p, &m->book_idx[b]));
    }
    if (c->is_averaged)
        TESS_TRY(tess_registry_set_unit(reg, unit_idx));
    return c->is_sharded ? tess_registry_hold_unit(reg, unit_idx) : TESS_OK;
}

/* A fixed table, N(0, 1 / d). */
static tess_status add_table(tess_rqvae *m, tess_registry *reg, int unit_idx, int book)
{
    tess_param table = {.unit_idx = unit_idx,
                        .shape_rank = 2,
                        .shape = {m->config.code_numel, m->shape.dim},
                        .init = TESS_INIT_NORMAL,
                        .init_scale = 1.0 / sqrt((double)m->shape.dim),
                        .learning_rate_ratio = 0.0,
                        .is_outer = true};
    snprintf(table.name, sizeof table.name, "quantizer.%d.table", book);
    return tess_rqvae_add_param(reg, &table, &m->book_idx[book]);
}

static tess_status add_tables(tess_rqvae *m, tess_registry *reg, int unit_idx)
{
    for (int b = 0; b < m->shape.book_numel; b++)
        TESS_TRY(add_table(m, reg, unit_idx, b));
    return tess_registry_set_unit(reg, unit_idx);
}

/* A as PyTorch's Linear begins. */
static tess_status add_mapped(tess_rqvae *m, tess_registry *reg, int unit_idx)
{
    const int64_t d = m->shape.dim;
    for (int b = 0; b < m->shape.book_numel; b++) {
        tess_param map = {.unit_idx = unit_idx,
                          .shape_rank = 2,
                          .shape = {d, d},
                          .init = TESS_INIT_UNIFORM,
                          .init_scale = 1.0 / sqrt((double)d),
                          .learning_rate_ratio = 1.0,
                          .has_weight_decay = true};
        snprintf(map.name, sizeof map.name, "quantizer.%d.map", b);
        TESS_TRY(add_table(m, reg, unit_idx, b));
        TESS_TRY(tess_rqvae_add_param(reg, &map, &m->map_idx[b]));
    }
    return TESS_OK;
}

/* ---- one codebook in a call ---- */

/* F A^T, K x d x d products: once for each level of each pass. */
static tess_status map_codes(const tess_rqvae *m, tess_exec *ex, int book, tess_view table,
                             tess_view codes)
{
    const int64_t d = m->shape.dim;
    tess_gemm_args args = {
        .kind = TESS_GEMM_NT,
        .m = m->config.code_numel,
        .n = d,
        .term_numel = 1,
        .term = {{.a = table, .b = tess_exec_matrix(ex, m->map_idx[book]), .k = d, .scale = 1.0f}},
        .c = codes};
    return tess_exec_gemm(ex, &args);
}

/* Rows of length 1, K x d: once for each pass. */
static tess_status make_unit(const tess_rqvae *m, tess_exec *ex, tess_view table, tess_view codes)
{
    const size_t mark = tess_carve_mark(&ex->work);
    tess_view norm = {0};
    TESS_TRY(tess_carve_take(&ex->work, m->config.code_numel, TESS_F32, &norm));
    const tess_quantizer_enter_args args = {.x = table,
                                            .row_numel = m->config.code_numel,
                                            .dim = m->shape.dim,
                                            .length = 1.0f,
                                            .least = TESS_UNIT_LEAST,
                                            .core = codes.data,
                                            .norm = norm.data};
    TESS_TRY(TESS_RQVAE_RUN(ex, enter, &args));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

/* Codes of a book [K, d]; where they are made of a table they lie in `room`. */
static tess_status codes_of(const tess_rqvae *m, tess_exec *ex, int book, tess_view room,
                            tess_view *codes)
{
    TESS_TRY(tess_exec_vector(ex, m->book_idx[book], codes));
    if (!has_room(m))
        return TESS_OK;
    TESS_TRY(is_mapped(m) ? map_codes(m, ex, book, *codes, room) : make_unit(m, ex, *codes, room));
    *codes = room;
    return TESS_OK;
}

static tess_status take_room(const tess_rqvae *m, tess_exec *ex, tess_view *room)
{
    *room = (tess_view){0};
    if (!has_room(m))
        return TESS_OK;
    return tess_carve_take_2d(&ex->work, m->config.code_numel, m->shape.dim, TESS_F32, room);
}

static tess_view chosen_of(const tess_rqvae *m, const tess_exec *ex, const tess_rqvae_io *io,
                           int index)
{
    return tess_view_rows(io->chosen, index, 1, ex->row_numel * m->shape.dim);
}

static tess_coded_rows rows_of(const tess_rqvae *m, const tess_exec *ex, tess_view codes,
                               tess_view code)
{
    return (tess_coded_rows){.codes = codes.data,
                             .code = code.data,
                             .row_numel = ex->row_numel,
                             .dim = m->shape.dim,
                             .code_numel = m->config.code_numel};
}

/* The codes of an index that was found before; mapped ones lie in `room`. */
static tess_status coded(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io, int index,
                         tess_view room, tess_coded_rows *rows)
{
    tess_view codes = {0};
    if (m->config.is_sharded) {
        *rows = tess_rqvae_valid_rows(ex, io, chosen_of(m, ex, io, index), m->shape.dim);
        return TESS_OK;
    }
    TESS_TRY(codes_of(m, ex, index % m->shape.book_numel, room, &codes));
    *rows = rows_of(m, ex, codes, tess_rqvae_row(ex, io->code, index));
    return TESS_OK;
}

/* r becomes what the level leaves, sum gains its codes. */
static tess_status subtract(const tess_exec *ex, const tess_coded_rows *rows, tess_view r,
                            tess_view sum)
{
    const tess_quantizer_residual_args args = {
        .rows = *rows, .r = r.data, .next = r.data, .sum = sum.data};
    return TESS_RQVAE_RUN(ex, residual, &args);
}

/* ---- row-sharded: calls of all ranks ---- */

static bool is_called(const tess_exec *ex) { return !ex->is_plan && !ex->is_announced; }

/* What a rank brings to a call: the number of its first vector, whose codes are drawn, or these. */
enum { FIRST_NEAREST = -1, FIRST_GIVEN = -2 };

/* What all ranks bring, the same everywhere. */
typedef struct meeting {
    tess_codebook_sizes size;
    bool is_drawn, is_given; /* codes are drawn; they are known, and only fetched */
    tess_codebook_draw draw;
} meeting;

static tess_status meet(const tess_rqvae *m, int64_t vector_numel, int64_t first_idx, meeting *all)
{
    const int world = tess_codebooks_world(m->books);
    *all = (meeting){0};
    TESS_TRY(tess_codebooks_share_sizes(m->books, vector_numel, first_idx, &all->size));
    for (int r = 0; r < world; r++) {
        const bool is_there = all->size.vector_numel[r] > 0;
        all->is_drawn = all->is_drawn || (is_there && all->size.first_idx[r] >= 0);
        all->is_given = all->is_given || (is_there && all->size.first_idx[r] == FIRST_GIVEN);
    }
    return TESS_OK;
}

static tess_rng rng_of(const tess_rqvae *m, int index)
{
    return tess_rng_make(m->config.seed, TESS_RNG_QUANTIZER, (uint32_t)index, 0);
}

/* Vectors and keys are the caller's to fill in. */
static tess_codebook_round round_of(const tess_rqvae *m, meeting *all, int index)
{
    all->draw = (tess_codebook_draw){.temperature = m->config.temperature,
                                     .is_cosine = m->config.is_spherical,
                                     .rng = rng_of(m, index),
                                     .first_idx = all->size.first_idx};
    return (tess_codebook_round){.book_idx = index % m->shape.book_numel,
                                 .vector_numel = all->size.vector_numel,
                                 .best_numel = 1,
                                 .draw = all->is_drawn ? &all->draw : NULL};
}

/* What calls of other ranks wait for, index by index. */
static tess_status attend(const tess_rqvae *m)
{
    meeting all;
    TESS_TRY(meet(m, 0, FIRST_NEAREST, &all));
    for (int i = 0; i < m->shape.index_numel; i++) {
        const tess_codebook_round round = round_of(m, &all, i);
        if (!all.is_given)
            TESS_TRY(tess_codebooks_search(m->books, &round));
        TESS_TRY(tess_codebooks_fetch(m->books, &round, NULL, NULL));
    }
    return TESS_OK;
}

/* The codes that are known already. */
static tess_status fetch_given(const tess_rqvae *m, const tess_exec *ex, const tess_rqvae_io *io)
{
    meeting all;
    TESS_TRY(meet(m, ex->row_numel, FIRST_GIVEN, &all));
    for (int i = 0; i < m->shape.index_numel; i++) {
        const tess_codebook_round round = round_of(m, &all, i);
        TESS_TRY(tess_codebooks_fetch(m->books, &round, tess_rqvae_row(ex, io->code, i).data,
                                      chosen_of(m, ex, io, i).data));
    }
    return TESS_OK;
}

/* ---- search ---- */

/* Memory of a forward pass, the same for every level. */
typedef struct search {
    tess_view pack, work, key;
    tess_view r, sum, norm, room; /* what is left, the sum of codes */
    meeting all;                  /* row-sharded */
} search;

static tess_status take_core(const tess_rqvae *m, tess_exec *ex, tess_view *core, tess_view *norm)
{
    TESS_TRY(tess_carve_take_2d(&ex->work, ex->row_numel, m->shape.dim, TESS_F32, core));
    *norm = (tess_view){0};
    return m->config.is_spherical ? tess_carve_take(&ex->work, ex->row_numel, TESS_F32, norm)
                                  : TESS_OK;
}

static tess_status take_search(const tess_rqvae *m, tess_exec *ex, search *s)
{
    const tess_kernels *k = ex->kernels;
    const int64_t d = m->shape.dim;
    const size_t pack_nbytes = k->nearest_pack_nbytes(m->config.code_numel, d);
    const size_t work_nbytes = k->nearest_work_nbytes(d, 1, ex->thread_numel);
    TESS_TRY(take_core(m, ex, &s->r, &s->norm));
    TESS_TRY(tess_carve_take(&ex->work, s->r.numel, TESS_F32, &s->sum));
    TESS_TRY(tess_carve_take(&ex->work, ex->row_numel, TESS_U64, &s->key));
    if (m->config.is_sharded) /* owners have their rows packed */
        return TESS_OK;
    TESS_TRY(tess_carve_take(&ex->work, (int64_t)pack_nbytes, TESS_U8_OPAQUE, &s->pack));
    TESS_TRY(tess_carve_take(&ex->work, (int64_t)work_nbytes, TESS_U8_OPAQUE, &s->work));
    return take_room(m, ex, &s->room);
}

/* Keys of the codes nearest to r. */
static tess_status find(const tess_rqvae *m, const tess_exec *ex, const search *s, tess_view codes)
{
    const int64_t d = m->shape.dim, k = m->config.code_numel;
    const tess_nearest_prepare_args prepare = {
        .code = codes, .pack = s->pack, .code_numel = k, .dim = d};
    const tess_nearest_args args = {.x = s->r,
                                    .code = codes,
                                    .pack = s->pack,
                                    .key = s->key,
                                    .work = s->work,
                                    .vector_numel = ex->row_numel,
                                    .code_numel = k,
                                    .dim = d,
                                    .best_numel = 1};
    TESS_TRY(TESS_EXEC_RUN(ex, nearest_prepare, &prepare));
    return TESS_EXEC_RUN(ex, nearest, &args);
}

/* Keys of codes drawn by their distances, by the number of the vector over the whole run. */
static tess_status draw(const tess_rqvae *m, const tess_exec *ex, const search *s,
                        const tess_rqvae_io *io, int index, tess_view codes)
{
    const tess_quantizer_sample_args args = {.x = s->r.data,
                                             .codes = codes.data,
                                             .row_numel = ex->row_numel,
                                             .dim = m->shape.dim,
                                             .code_numel = m->config.code_numel,
                                             .first_row_idx = io->batch->first_idx,
                                             .all_numel = m->config.code_numel,
                                             .temperature = m->config.temperature,
                                             .is_cosine = m->config.is_spherical,
                                             .is_first = true,
                                             .rng = rng_of(m, index),
                                             .key = s->key.data};
    return TESS_RQVAE_RUN(ex, sample, &args);
}

/* Rows of the keys that a search found; none of masked vectors. */
static tess_status take_rows(tess_exec *ex, const search *s, const tess_rqvae_io *io,
                             tess_view code)
{
    const tess_code_row_args row = {
        .key = s->key.data, .row = code.data, .vector_numel = ex->row_numel};
    TESS_TRY(TESS_EXEC_RUN(ex, code_row, &row));
    return tess_rqvae_mask(ex, io, code);
}

/* Row-sharded: the level's codes, from all ranks. While planning, the work of its search. */
static tess_status find_among_all(const tess_rqvae *m, tess_exec *ex, search *s,
                                  const tess_rqvae_io *io, int index)
{
    const int64_t numel = m->config.code_numel * m->shape.dim;
    if (!is_called(ex))
        return find(m, ex, s, tess_view_host(NULL, numel, TESS_F32));
    const tess_view code = tess_rqvae_row(ex, io->code, index);
    tess_codebook_round round = round_of(m, &s->all, index);
    round.x = s->r.data;
    round.key = s->key.data;
    TESS_TRY(tess_codebooks_search(m->books, &round));
    TESS_TRY(take_rows(ex, s, io, code));
    return tess_codebooks_fetch(m->books, &round, code.data, chosen_of(m, ex, io, index).data);
}

/* The codes nearest to r, or drawn. */
static tess_status choose(const tess_rqvae *m, tess_exec *ex, search *s, const tess_rqvae_io *io,
                          int index, tess_coded_rows *rows)
{
    const tess_view code = tess_rqvae_row(ex, io->code, index);
    tess_view codes = {0};
    if (m->config.is_sharded) {
        TESS_TRY(find_among_all(m, ex, s, io, index));
        return coded(m, ex, io, index, s->room, rows);
    }
    TESS_TRY(codes_of(m, ex, index % m->shape.book_numel, s->room, &codes));
    if (m->config.temperature > 0.0 && io->batch->is_drawn)
        TESS_TRY(draw(m, ex, s, io, index, codes));
    else
        TESS_TRY(find(m, ex, s, codes));
    *rows = rows_of(m, ex, codes, code);
    return take_rows(ex, s, io, code);
}

/* What a level begins with stays where it is made. */
static tess_status keep_left(const tess_exec *ex, float *left, int index, tess_view r)
{
    tess_view dst = r;
    if (left == NULL || !is_called(ex))
        return TESS_OK;
    dst.data = left + index * r.numel;
    return tess_device_copy(ex->call->device, dst, r, ex->stream);
}

static tess_status quantize_level(const tess_rqvae *m, tess_exec *ex, search *s,
                                  const tess_rqvae_io *io, int index)
{
    tess_coded_rows rows;
    TESS_TRY(choose(m, ex, s, io, index, &rows));
    if (io->output.numel > 0) {
        const tess_quantizer_row_loss_args loss = {
            .rows = rows, .x = s->r.data, .out = tess_rqvae_row(ex, io->term, index).data};
        TESS_TRY(TESS_RQVAE_RUN(ex, row_loss, &loss));
        TESS_TRY(keep_left(ex, io->batch->left, index, s->r));
    }
    return subtract(ex, &rows, s->r, s->sum);
}

static tess_status quantize_group(const tess_rqvae *m, tess_exec *ex, search *s,
                                  const tess_rqvae_io *io, int group)
{
    const int levels = m->config.level_numel;
    const tess_vector_batch *b = io->batch;
    const int64_t stride = b->latent_stride > 0 ? b->latent_stride : s->r.numel;
    const tess_rows in = tess_rqvae_part(m, ex, io->input, group);
    TESS_TRY(tess_rqvae_enter(ex, &in, s->r, s->norm));
    TESS_TRY(tess_exec_zero(ex, s->sum));
    if (io->output.numel > 0)
        TESS_TRY(tess_rqvae_give(ex, b->latent != NULL ? b->latent + group * stride : NULL, s->r));
    for (int l = 0; l < levels; l++)
        TESS_TRY(quantize_level(m, ex, s, io, group * levels + l));
    if (io->output.numel == 0)
        return TESS_OK;
    const tess_rows out = tess_rqvae_part(m, ex, io->output, group);
    return tess_rqvae_leave(ex, io, s->sum, &out);
}

/* ---- orthogonal codes ---- */

/* Loss of a book's codes into `loss`, or its gradient, for every vector once: both NULL or one. */
static tess_status make_orthogonal(const tess_rqvae *m, tess_exec *ex, tess_view codes,
                                   tess_view loss, tess_view d_codes, double weight)
{
    const size_t mark = tess_carve_mark(&ex->work);
    const int64_t d = m->shape.dim, k = m->config.code_numel;
    tess_view gram = {0}, work = {0};
    TESS_TRY(tess_carve_take_2d(&ex->work, d, d, TESS_I64, &gram));
    TESS_TRY(tess_carve_take(&ex->work, tess_orthogonal_work_numel(d, ex->thread_numel), TESS_F64,
                             &work));
    TESS_TRY(tess_exec_zero(ex, gram));
    const int exponent = TESS_MIN(tess_fixed_exponent(1.0f, k), 50);
    const tess_quantizer_gram_args add = {
        .codes = codes.data, .code_numel = k, .dim = d, .exponent = exponent, .gram = gram.data};
    const tess_quantizer_orthogonal_args args = {.codes = codes.data,
                                                 .gram = gram.data,
                                                 .code_numel = k,
                                                 .dim = d,
                                                 .used_numel = k,
                                                 .exponent = exponent,
                                                 .weight = weight,
                                                 .work = work.data,
                                                 .d_codes = d_codes.data,
                                                 .loss = loss.data};
    TESS_TRY(TESS_RQVAE_RUN(ex, gram, &add));
    TESS_TRY(TESS_RQVAE_RUN(ex, orthogonal, &args));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

static tess_status orthogonal_losses(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io,
                                     tess_view room)
{
    for (int b = 0; b < m->shape.book_numel; b++) {
        const tess_view row = tess_rqvae_row(ex, io->term, m->shape.index_numel + b);
        tess_view codes = {0};
        TESS_TRY(codes_of(m, ex, b, room, &codes));
        TESS_TRY(tess_exec_zero(ex, row));
        TESS_TRY(make_orthogonal(m, ex, codes, row, (tess_view){0}, 0.0));
    }
    return TESS_OK;
}

/* ---- forward ---- */

static tess_status forward(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io)
{
    const size_t mark = tess_carve_mark(&ex->work);
    const bool is_drawn = m->config.temperature > 0.0 && io->batch->is_drawn;
    search s = {0};
    TESS_TRY(take_search(m, ex, &s));
    if (m->config.is_sharded && is_called(ex))
        TESS_TRY(meet(m, ex->row_numel, is_drawn ? io->batch->first_idx : FIRST_NEAREST, &s.all));
    for (int g = 0; g < m->shape.group_numel; g++)
        TESS_TRY(quantize_group(m, ex, &s, io, g));
    if (io->output.numel > 0 && m->config.orthogonal > 0.0)
        TESS_TRY(orthogonal_losses(m, ex, io, s.room));
    if (io->output.numel > 0)
        TESS_TRY(tess_rqvae_give(ex, io->batch->code, io->code));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

/* ---- decode ---- */

/* Sum of a group's codes. */
static tess_status add_codes(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io, int group,
                             tess_view room, tess_view sum)
{
    TESS_TRY(tess_exec_zero(ex, sum));
    for (int l = 0; l < m->config.level_numel; l++) {
        const int index = group * m->config.level_numel + l;
        tess_quantizer_residual_args add = {.sum = sum.data};
        TESS_TRY(coded(m, ex, io, index, room, &add.rows));
        TESS_TRY(TESS_RQVAE_RUN(ex, residual, &add));
    }
    return TESS_OK;
}

static tess_status decode(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io)
{
    const size_t mark = tess_carve_mark(&ex->work);
    tess_view sum = {0}, room = {0};
    if (m->config.is_sharded && is_called(ex))
        TESS_TRY(fetch_given(m, ex, io));
    TESS_TRY(tess_carve_take_2d(&ex->work, ex->row_numel, m->shape.dim, TESS_F32, &sum));
    TESS_TRY(take_room(m, ex, &room));
    for (int g = 0; g < m->shape.group_numel; g++) {
        const tess_rows out = tess_rqvae_part(m, ex, io->output, g);
        TESS_TRY(add_codes(m, ex, io, g, room, sum));
        TESS_TRY(tess_rqvae_leave(ex, io, sum, &out));
    }
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

/* ---- backward ---- */

/* Memory of a backward pass, the same for every level. */
typedef struct way_back {
    tess_view r, norm, d_z;
    tess_view room, d_room; /* of mapped codes */
} way_back;

/* The gradient of the sum of codes, as the estimator hands it to z. */
static tess_status estimate(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io,
                            const way_back *w, int group)
{
    const size_t mark = tess_carve_mark(&ex->work);
    const tess_rows d_out = tess_rqvae_part(m, ex, io->d_output, group);
    tess_view sum = {0};
    TESS_TRY(tess_carve_take(&ex->work, w->r.numel, TESS_F32, &sum));
    TESS_TRY(add_codes(m, ex, io, group, w->room, sum));
    const tess_quantizer_backward_args args = {.rows =
                                                   tess_rqvae_valid_rows(ex, io, sum, m->shape.dim),
                                               .x = w->r.data,
                                               .d_out = d_out.view,
                                               .d_stride = tess_rows_gap(&d_out),
                                               .estimator = m->config.estimator,
                                               .d_x = w->d_z.data};
    TESS_TRY(TESS_RQVAE_RUN(ex, backward, &args));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

/* dA += dC^T F. */
static tess_status map_gradient(const tess_rqvae *m, tess_exec *ex, int book, tess_view d_codes)
{
    const int64_t d = m->shape.dim;
    tess_gemm_args args = {.kind = TESS_GEMM_TN,
                           .m = d,
                           .n = d,
                           .term_numel = 1,
                           .term = {{.a = d_codes,
                                     .b = tess_exec_matrix(ex, m->book_idx[book]),
                                     .k = m->config.code_numel,
                                     .scale = 1.0f}},
                           .c = tess_exec_grad(ex, m->map_idx[book]),
                           .accumulate = true};
    return tess_exec_gemm(ex, &args);
}

static tess_status move_codes(const tess_rqvae *m, tess_exec *ex, const tess_coded_rows *rows,
                              const way_back *w, int book, float coefficient)
{
    const tess_view d_codes = is_mapped(m) ? w->d_room : tess_exec_grad(ex, m->book_idx[book]);
    const tess_quantizer_code_gradient_args move = {
        .rows = *rows, .x = w->r.data, .coefficient = coefficient, .d_codes = d_codes.data};
    if (is_mapped(m))
        TESS_TRY(tess_exec_zero(ex, d_codes));
    TESS_TRY(TESS_RQVAE_RUN(ex, code_gradient, &move));
    return is_mapped(m) ? map_gradient(m, ex, book, d_codes) : TESS_OK;
}

/* The level's own loss: its codes move to r, d_z gains what moves z to them. */
static tess_status level_backward(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io,
                                  const way_back *w, int index)
{
    const double scale = tess_rqvae_level_scale(m, io->grad_scale);
    const int book = index % m->shape.book_numel;
    tess_coded_rows rows;
    TESS_TRY(coded(m, ex, io, index, w->room, &rows));
    const tess_quantizer_backward_args commit = {.rows = rows,
                                                 .x = w->r.data,
                                                 .commitment =
                                                     (float)(scale * m->config.commitment),
                                                 .accumulate = true,
                                                 .d_x = w->d_z.data};
    TESS_TRY(TESS_RQVAE_RUN(ex, backward, &commit));
    if (!m->config.is_averaged && !m->config.is_sharded)
        TESS_TRY(move_codes(m, ex, &rows, w, book, (float)scale));
    if ((index + 1) % m->config.level_numel == 0) /* nobody wants what is left */
        return TESS_OK;
    return subtract(ex, &rows, w->r, (tess_view){0});
}

static tess_status group_backward(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io,
                                  const way_back *w, int group)
{
    const tess_rows in = tess_rqvae_part(m, ex, io->input, group);
    const tess_rows d_in = tess_rqvae_part(m, ex, io->d_input, group);
    TESS_TRY(tess_rqvae_enter(ex, &in, w->r, w->norm));
    TESS_TRY(estimate(m, ex, io, w, group));
    for (int l = 0; l < m->config.level_numel; l++)
        TESS_TRY(level_backward(m, ex, io, w, group * m->config.level_numel + l));
    return tess_rqvae_enter_backward(ex, w->r, w->norm, w->d_z, &d_in);
}

static tess_status orthogonal_backward(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io,
                                       const way_back *w)
{
    const double weight =
        orthogonal_of(m) * (double)io->grad_scale * (double)tess_rqvae_valid_numel(ex, io);
    for (int b = 0; b < m->shape.book_numel; b++) {
        const tess_view d_codes = is_mapped(m) ? w->d_room : tess_exec_grad(ex, m->book_idx[b]);
        tess_view codes = {0};
        TESS_TRY(codes_of(m, ex, b, w->room, &codes));
        if (is_mapped(m))
            TESS_TRY(tess_exec_zero(ex, d_codes));
        TESS_TRY(make_orthogonal(m, ex, codes, (tess_view){0}, d_codes, weight));
        if (is_mapped(m))
            TESS_TRY(map_gradient(m, ex, b, d_codes));
    }
    return TESS_OK;
}

static tess_status backward(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io)
{
    const size_t mark = tess_carve_mark(&ex->work);
    way_back w = {0};
    TESS_TRY(take_core(m, ex, &w.r, &w.norm));
    TESS_TRY(tess_carve_take(&ex->work, w.r.numel, TESS_F32, &w.d_z));
    TESS_TRY(take_room(m, ex, &w.room));
    TESS_TRY(take_room(m, ex, &w.d_room));
    for (int g = 0; g < m->shape.group_numel; g++)
        TESS_TRY(group_backward(m, ex, io, &w, g));
    if (m->config.orthogonal > 0.0)
        TESS_TRY(orthogonal_backward(m, ex, io, &w));
    tess_carve_release(&ex->work, mark);
    return TESS_OK;
}

/* Nothing that a gradient could reach. */
static tess_status leave_alone(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io)
{
    (void)m;
    return tess_exec_zero(ex, io->d_input);
}

const tess_quantizer_ops tess_quantizer_of_codes = {.shape = shape,
                                                    .terms = terms,
                                                    .add_tensors = add_codebooks,
                                                    .forward = forward,
                                                    .attend = attend,
                                                    .decode = decode,
                                                    .backward = backward};
const tess_quantizer_ops tess_quantizer_of_mapped_codes = {.shape = shape,
                                                           .terms = terms,
                                                           .add_tensors = add_mapped,
                                                           .forward = forward,
                                                           .decode = decode,
                                                           .backward = backward};
const tess_quantizer_ops tess_quantizer_of_projected = {.shape = shape,
                                                        .terms = terms,
                                                        .add_tensors = add_tables,
                                                        .forward = forward,
                                                        .decode = decode,
                                                        .backward = leave_alone};
