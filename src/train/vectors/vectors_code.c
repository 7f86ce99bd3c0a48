#include "train/vectors/vectors_code.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/exact.h"
#include "core/memory.h"
#include "train/vectors/vectors_coder.h"
#include "train/vectors/vectors_session.h"

/* Vectors of every rank in round t: block t W + r of the file is rank r's. */
static void count_round(const tess_session *s, const tess_coder *c, int64_t vector_numel,
                        int64_t round, int64_t *numel)
{
    const int64_t world = tess_comm_world(s->world), block = c->block_numel;
    for (int64_t r = 0; r < world; r++)
        numel[r] = TESS_MIN(TESS_MAX(vector_numel - (round * world + r) * block, 0), block);
}

static int64_t first_of(const tess_session *s, const tess_coder *c, int64_t round)
{
    return (round * tess_comm_world(s->world) + tess_comm_rank(s->world)) * c->block_numel;
}

static int64_t round_numel(const tess_session *s, const tess_coder *c, int64_t vector_numel)
{
    return tess_ceil_div(tess_ceil_div(vector_numel, c->block_numel), tess_comm_world(s->world));
}

/* ---- codebooks of k-means ---- */

/* Identity of all codebooks: their elements by number. */
static tess_status name_codebooks(tess_session *s, char text[TESS_CODES_TEXT_NBYTES])
{
    vectors_session *v = s->vectors;
    const tess_codebook_plan *p = &v->plan.book;
    tess_logical_hash h = {{0}};
    int64_t lo = 0, hi = 0, lanes[2];
    tess_codebook_owned(p, tess_comm_rank(s->world), &lo, &hi);
    for (int b = 0; b < p->shape.book_numel; b++)
        tess_logical_hash_add(&h, tess_codebooks_rows(tess_kmeans_books(v->job), b),
                              (hi - lo) * p->shape.dim, sizeof(float),
                              (b * p->shape.code_numel + lo) * p->shape.dim);
    memcpy(lanes, &h, sizeof lanes);
    TESS_TRY(tess_comm_control(s->world, lanes, 2, NULL, 0));
    snprintf(text, TESS_CODES_TEXT_NBYTES,
             "%dx%dx%" PRId64 "x%" PRId64 "/%016" PRIx64 "%016" PRIx64, v->plan.config.group_numel,
             v->plan.config.level_numel, p->shape.code_numel, p->shape.dim, (uint64_t)lanes[0],
             (uint64_t)lanes[1]);
    return TESS_OK;
}

static tess_status encode_by_books(tess_session *s, const tess_code_round *round)
{
    const tess_kmeans_encoding what = {.x = round->x,
                                       .vector_numel = round->vector_numel,
                                       .code = round->code,
                                       .error = round->error};
    return session_section(s, tess_kmeans_encode(s->vectors->job, &what));
}

static tess_status decode_by_books(tess_session *s, const tess_code_round *round)
{
    const tess_kmeans_decoding what = {
        .code = round->code, .vector_numel = round->vector_numel, .x = round->x};
    return session_section(s, tess_kmeans_decode(s->vectors->job, &what));
}

tess_status tess_coder_of_kmeans(tess_session *s, tess_coder *out)
{
    const tess_kmeans_config *c = &s->vectors->plan.config;
    *out = (tess_coder){.block_numel = TESS_KMEANS_BLOCK_NUMEL,
                        .dim = s->vectors->plan.dim,
                        .position_numel = 1,
                        .sample = {.dim = s->vectors->plan.dim},
                        .info = {.code_numel = c->code_numel,
                                 .level_numel = c->level_numel,
                                 .group_numel = c->group_numel,
                                 .bit_order = TESS_CODES_ROW},
                        .encode = encode_by_books,
                        .decode = decode_by_books};
    return name_codebooks(s, out->info.codebooks);
}

static tess_status find_coder(tess_session *s, tess_coder *out)
{
    TESS_CHECK(s->vectors != NULL || tess_run_is_rqvae(s->run), TESS_E_CONFIG,
               "the checkpoint is of a run of family %s; codes come from runs with model.family "
               "kmeans, rqvae or vqvae",
               s->d.family_name);
    return s->vectors != NULL ? tess_coder_of_kmeans(s, out) : tess_coder_of_rqvae(s, out);
}

/* ---- encode ---- */

typedef struct encoder {
    tess_session *s;
    const char *input;
    const char *mask; /* NULL: no vector is masked */
    tess_coder c;
    tess_samples *samples;
    tess_codes_writer *writer; /* rank 0 */
    int64_t vector_numel;
    int64_t *numel;    /* [world] */
    float *x;          /* [block, dim] */
    uint8_t *valid;    /* [block] */
    int64_t counts[2]; /* valid vectors, samples with any */
    float *error;      /* [block] */
    uint32_t *code;    /* [block, columns] */
    uint32_t *all;     /* rank 0: [world, block, columns] */
    int64_t *wide;     /* rank 0: [block, columns] */
    tess_exact sums[2];
    tess_logical_hash digest;
} encoder;

static tess_status room(void *slot, int64_t a, int64_t b, size_t nbytes)
{
    int64_t numel = 0;
    void *out = NULL;
    TESS_TRY(tess_mul_i64(a, b, &numel));
    TESS_TRY(tess_alloc_array(numel, nbytes, &out));
    memcpy(slot, &out, sizeof out);
    return TESS_OK;
}

static tess_status open_samples(encoder *e, const char *input)
{
    tess_session *s = e->s;
    char found[TESS_SAMPLE_TEXT_NBYTES], expected[TESS_SAMPLE_TEXT_NBYTES];
    TESS_TRY(tess_samples_open(s->ctx, input, e->c.sample.channel_numel > 0, &e->samples));
    const tess_sample_size *size = tess_samples_size(e->samples);
    tess_sample_text(size, found);
    tess_sample_text(&e->c.sample, expected);
    TESS_CHECK(tess_sample_is_equal(size, &e->c.sample), TESS_E_CONFIG,
               "'%s' holds %s, the checkpoint is of %s", input, found, expected);
    const tess_samples_mask mask = {
        .path = e->mask, .key = "--mask", .halving_numel = e->c.halving_numel};
    TESS_TRY(tess_samples_open_mask(s->ctx, e->samples, &mask));
    return tess_mul_i64(tess_samples_numel(e->samples), e->c.position_numel, &e->vector_numel);
}

static tess_status open_encoder(encoder *e, const char *input)
{
    tess_session *s = e->s;
    const int64_t columns = tess_coder_column_numel(&e->c), world = tess_comm_world(s->world);
    TESS_TRY(open_samples(e, input));
    TESS_TRY(room(&e->valid, e->c.block_numel, 1, sizeof(uint8_t)));
    TESS_TRY(room(&e->numel, world, 1, sizeof(int64_t)));
    TESS_TRY(room(&e->x, e->c.block_numel, e->c.dim, sizeof(float)));
    TESS_TRY(room(&e->error, e->c.block_numel, 1, sizeof(float)));
    TESS_TRY(room(&e->code, e->c.block_numel, columns, sizeof(uint32_t)));
    if (tess_comm_rank(s->world) != 0)
        return TESS_OK;
    TESS_TRY(room(&e->all, world * e->c.block_numel, columns, sizeof(uint32_t)));
    return room(&e->wide, e->c.block_numel, columns, sizeof(int64_t));
}

static void close_encoder(encoder *e)
{
    tess_codes_writer_destroy(&e->writer);
    tess_samples_close(&e->samples);
    void *const owned[] = {e->numel, e->x, e->valid, e->error, e->code, e->all, e->wide};
    for (int i = 0; i < TESS_NELEM(owned); i++)
        tess_free(owned[i]);
}

static void count_valid(encoder *e, const uint8_t *valid)
{
    int64_t numel = 0;
    for (int64_t p = 0; p < e->c.position_numel; p++)
        numel += valid[p];
    e->counts[0] += numel;
    e->counts[1] += numel > 0;
}

static tess_status read_own(encoder *e, int64_t round)
{
    const tess_session *s = e->s;
    const int64_t numel = e->numel[tess_comm_rank(s->world)] / e->c.position_numel;
    const int64_t first = first_of(s, &e->c, round) / e->c.position_numel, dim = e->c.sample.dim;
    if (numel == 0)
        return TESS_OK;
    TESS_TRY(tess_samples_read(e->samples, first, numel, e->x, e->valid));
    for (int64_t i = 0; i < numel; i++) {
        double square = 0.0;
        count_valid(e, e->valid + i * e->c.position_numel);
        for (int64_t j = 0; j < dim; j++)
            square += (double)e->x[i * dim + j] * (double)e->x[i * dim + j];
        TESS_CHECK(tess_exact_add(&e->sums[1], square), TESS_E_FORMAT,
                   "'%s': vector %" PRId64
                   " is not finite or too large for squares in f32; remove or scale it",
                   e->input, first + i);
    }
    tess_vectors_digest_add(&e->digest, e->x, dim, first, numel);
    return TESS_OK;
}

static tess_status append_all(encoder *e)
{
    const int64_t columns = tess_coder_column_numel(&e->c);
    for (int r = 0; r < tess_comm_world(e->s->world); r++) {
        const uint32_t *code = e->all + r * e->c.block_numel * columns;
        for (int64_t i = 0; i < e->numel[r] * columns; i++)
            e->wide[i] = code[i] == TESS_NO_CODE ? -1 : (int64_t)code[i];
        TESS_TRY(tess_codes_writer_append(e->writer, e->wide, e->numel[r]));
    }
    return TESS_OK;
}

/* Codes of what the model cannot say are worth nothing. */
static tess_status add_errors(encoder *e, int64_t round)
{
    for (int64_t i = 0; i < e->numel[tess_comm_rank(e->s->world)]; i++)
        TESS_CHECK(tess_exact_add(&e->sums[0], (double)e->error[i]), TESS_E_NUMERIC,
                   "'%s': the error of %s %" PRId64 " is not a finite number of f32; leave it out, "
                   "or give a checkpoint whose weights are sound",
                   e->input, e->c.sample.channel_numel > 0 ? "image" : "vector",
                   (first_of(e->s, &e->c, round) + i) / e->c.position_numel);
    return TESS_OK;
}

/* Whatever the model says of zeros. Errors of an image are those of shares of its pixels, which
 * are not the positions', and of what is masked nothing. */
static void leave_masked(encoder *e)
{
    const int64_t columns = tess_coder_column_numel(&e->c);
    for (int64_t i = 0; e->mask != NULL && i < e->numel[tess_comm_rank(e->s->world)]; i++) {
        if (e->valid[i] != 0)
            continue;
        if (e->c.position_numel == 1)
            e->error[i] = 0.0f;
        for (int64_t c = 0; c < columns; c++)
            e->code[i * columns + c] = TESS_NO_CODE;
    }
}

static tess_status encode_round(encoder *e, int64_t round)
{
    tess_session *s = e->s;
    count_round(s, &e->c, e->vector_numel, round, e->numel);
    TESS_TRY(session_agree(s, read_own(e, round)));
    const tess_code_round what = {.x = e->x,
                                  .vector_numel = e->numel,
                                  .code = e->code,
                                  .error = e->error,
                                  .valid = e->mask != NULL ? e->valid : NULL};
    TESS_TRY(e->c.encode(s, &what));
    leave_masked(e);
    TESS_TRY(session_agree(s, add_errors(e, round)));
    tess_exact_carry(&e->sums[0]);
    tess_exact_carry(&e->sums[1]);
    TESS_TRY(tess_comm_gather_bytes(
        s->world, 0, e->code,
        (size_t)(e->c.block_numel * tess_coder_column_numel(&e->c)) * sizeof *e->code, e->all));
    return session_agree(s, tess_comm_rank(s->world) == 0 ? append_all(e) : TESS_OK);
}

/* The identity of the vectors is known when all were read: the first pass is for it alone. */
static tess_status identify(encoder *e, tess_codes_info *info)
{
    tess_session *s = e->s;
    tess_status st = TESS_OK;
    for (int64_t t = 0; t < round_numel(s, &e->c, e->vector_numel) && st == TESS_OK; t++) {
        count_round(s, &e->c, e->vector_numel, t, e->numel);
        st = read_own(e, t);
    }
    TESS_TRY(session_agree(s, st));
    TESS_TRY(tess_vectors_digest_join(s->world, &e->digest));
    tess_vectors_digest_text(&e->digest, tess_samples_numel(e->samples), e->c.sample.dim,
                             info->source);
    memset(e->sums, 0, sizeof e->sums);
    memset(e->counts, 0, sizeof e->counts);
    return TESS_OK;
}

static tess_status encode_all(encoder *e, const char *output, tess_encode_result *out)
{
    tess_session *s = e->s;
    tess_codes_info info = e->c.info;
    info.vector_numel = e->vector_numel;
    info.has_absent = e->mask != NULL;
    tess_status st = TESS_OK;
    TESS_TRY(identify(e, &info));
    if (tess_comm_rank(s->world) == 0)
        st = tess_codes_writer_create(s->ctx, output, &info, &e->writer);
    TESS_TRY(session_agree(s, st));
    for (int64_t t = 0; t < round_numel(s, &e->c, e->vector_numel); t++)
        TESS_TRY(encode_round(e, t));
    if (tess_comm_rank(s->world) == 0)
        st = tess_codes_writer_finish(e->writer);
    TESS_TRY(session_agree(s, st));
    for (int i = 0; i < 2; i++)
        TESS_TRY(tess_comm_control(s->world, e->sums[i].limb, TESS_EXACT_LIMB_NUMEL, NULL, 0));
    TESS_TRY(tess_comm_control(s->world, e->counts, 2, NULL, 0));
    const double numel = (double)TESS_MAX(e->counts[0], 1) / (double)e->c.position_numel;
    *out = (tess_encode_result){.sample_numel = e->counts[1],
                                .is_images = e->c.sample.channel_numel > 0,
                                .error = tess_exact_round(&e->sums[0]) / numel,
                                .mean_square = tess_exact_round(&e->sums[1]) / numel};
    return TESS_OK;
}

tess_status tess_session_encode(tess_session *s, const char *input, const char *mask,
                                const char *output, tess_encode_result *out)
{
    encoder e = {.s = s, .input = input, .mask = mask};
    TESS_TRY(find_coder(s, &e.c));
    tess_status st = session_agree(s, open_encoder(&e, input));
    if (st == TESS_OK)
        st = encode_all(&e, output, out);
    close_encoder(&e);
    return st;
}

/* ---- decode ---- */

typedef struct decoder {
    tess_session *s;
    tess_coder c;
    tess_codes_file *file;
    tess_vectors_writer *writer; /* rank 0 */
    int64_t *numel;              /* [world] */
    int64_t *wide;               /* [block, columns] */
    uint32_t *code;              /* the same */
    uint8_t *valid;              /* [block] */
    float *x;                    /* [block, dim] */
    float *all;                  /* rank 0: [world, block, dim] */
} decoder;

/* The digest is a text that a file states; sizes of buffers follow from these. */
static tess_status check_form(const char *input, const tess_codes_info *found,
                              const tess_codes_info *expected)
{
    const struct {
        const char *name;
        int64_t found, expected;
    } form[] = {{"codes", found->code_numel, expected->code_numel},
                {"levels", found->level_numel, expected->level_numel},
                {"groups", found->group_numel, expected->group_numel}};
    for (int i = 0; i < TESS_NELEM(form); i++)
        TESS_CHECK(form[i].found == form[i].expected, TESS_E_FORMAT,
                   "'%s': %s is %" PRId64 ", the checkpoint has %" PRId64
                   "; give the checkpoint that encoded it",
                   input, form[i].name, form[i].found, form[i].expected);
    TESS_CHECK(found->bit_order == expected->bit_order, TESS_E_FORMAT,
               "'%s': bit_order is %s, the checkpoint has %s; give the checkpoint that encoded it",
               input, tess_codes_order_name(found->bit_order),
               tess_codes_order_name(expected->bit_order));
    return TESS_OK;
}

static tess_status check_codes(const decoder *d, const char *input)
{
    const tess_codes_info *info = tess_codes_file_get_info(d->file), *expected = &d->c.info;
    TESS_CHECK(strcmp(info->codebooks, expected->codebooks) == 0, TESS_E_CONFIG,
               "'%s' was encoded with codebooks %s, the checkpoint holds %s; give the checkpoint "
               "that encoded it",
               input, info->codebooks, expected->codebooks);
    TESS_TRY(check_form(input, info, expected));
    TESS_CHECK(info->vector_numel % d->c.position_numel == 0, TESS_E_FORMAT,
               "'%s': %" PRId64 " rows of codes, expected %" PRId64 " for each image", input,
               info->vector_numel, d->c.position_numel);
    return TESS_OK;
}

static tess_status open_decoder(decoder *d, const char *input, const char *output)
{
    tess_session *s = d->s;
    const int64_t columns = tess_coder_column_numel(&d->c), dim = d->c.dim;
    TESS_TRY(tess_codes_file_open(s->ctx, input, &d->file));
    TESS_TRY(check_codes(d, input));
    TESS_TRY(room(&d->numel, tess_comm_world(s->world), 1, sizeof(int64_t)));
    TESS_TRY(room(&d->wide, d->c.block_numel, columns, sizeof(int64_t)));
    TESS_TRY(room(&d->code, d->c.block_numel, columns, sizeof(uint32_t)));
    TESS_TRY(room(&d->valid, d->c.block_numel, 1, sizeof(uint8_t)));
    TESS_TRY(room(&d->x, d->c.block_numel, dim, sizeof(float)));
    if (tess_comm_rank(s->world) != 0)
        return TESS_OK;
    TESS_TRY(room(&d->all, tess_comm_world(s->world) * d->c.block_numel, dim, sizeof(float)));
    const tess_sample_size *size = &d->c.sample;
    const int64_t vectors = tess_codes_file_get_info(d->file)->vector_numel;
    const tess_vectors_shape shape = {.vector_numel = vectors / d->c.position_numel,
                                      .dim = size->dim,
                                      .image = {size->height, size->width, size->channel_numel}};
    return tess_vectors_writer_create_shaped(s->ctx, output, &shape, &d->writer);
}

static void close_decoder(decoder *d)
{
    tess_vectors_writer_destroy(&d->writer);
    tess_codes_file_close(&d->file);
    void *const owned[] = {d->numel, d->wide, d->code, d->valid, d->x, d->all};
    for (int i = 0; i < TESS_NELEM(owned); i++)
        tess_free(owned[i]);
}

/* Codes of a vector: all of a masked one are absent, and any number may stand in for them. */
static tess_status take_codes(decoder *d, int64_t i, int64_t row)
{
    const int64_t columns = tess_coder_column_numel(&d->c), *wide = d->wide + i * columns;
    int64_t absent_numel = 0;
    for (int64_t c = 0; c < columns; c++) {
        absent_numel += wide[c] < 0;
        d->code[i * columns + c] = wide[c] < 0 ? 0 : (uint32_t)wide[c];
    }
    d->valid[i] = absent_numel != columns;
    TESS_CHECK(absent_numel == 0 || d->valid[i] == 0, TESS_E_FORMAT,
               "codes of row %" PRId64 ": %" PRId64 " of %" PRId64
               " are absent, expected none, or all of a masked vector",
               row, absent_numel, columns);
    return TESS_OK;
}

/* Masked pixels of images are what the coder makes of them. */
static void leave_zeros(const decoder *d)
{
    const int64_t dim = d->c.dim;
    for (int64_t i = 0; d->c.position_numel == 1 && i < d->numel[tess_comm_rank(d->s->world)]; i++)
        if (d->valid[i] == 0)
            memset(d->x + i * dim, 0, (size_t)dim * sizeof *d->x);
}

static tess_status read_codes(decoder *d, int64_t round)
{
    const tess_session *s = d->s;
    const int64_t numel = d->numel[tess_comm_rank(s->world)];
    if (numel == 0)
        return TESS_OK;
    TESS_TRY(tess_codes_file_read(d->file, first_of(s, &d->c, round), numel, d->wide));
    for (int64_t i = 0; i < numel; i++)
        TESS_TRY(take_codes(d, i, first_of(s, &d->c, round) + i));
    return TESS_OK;
}

static tess_status decode_round(decoder *d, int64_t round)
{
    tess_session *s = d->s;
    const int64_t dim = d->c.dim;
    tess_status st = TESS_OK;
    count_round(s, &d->c, tess_codes_file_get_info(d->file)->vector_numel, round, d->numel);
    TESS_TRY(session_agree(s, read_codes(d, round)));
    const tess_code_round what = {.code = d->code,
                                  .vector_numel = d->numel,
                                  .x = d->x,
                                  .valid = tess_codes_file_get_info(d->file)->has_absent ? d->valid
                                                                                         : NULL};
    TESS_TRY(d->c.decode(s, &what));
    leave_zeros(d);
    TESS_TRY(tess_comm_gather_bytes(s->world, 0, d->x,
                                    (size_t)(d->c.block_numel * dim) * sizeof *d->x, d->all));
    for (int r = 0; d->all != NULL && st == TESS_OK && r < tess_comm_world(s->world); r++)
        if (d->numel[r] > 0)
            st = tess_vectors_writer_append(d->writer, d->all + r * d->c.block_numel * dim,
                                            d->numel[r] / d->c.position_numel);
    return session_agree(s, st);
}

tess_status tess_session_decode(tess_session *s, const char *input, const char *output)
{
    decoder d = {.s = s};
    TESS_TRY(find_coder(s, &d.c));
    tess_status st = session_agree(s, open_decoder(&d, input, output));
    const int64_t rounds =
        st == TESS_OK ? round_numel(s, &d.c, tess_codes_file_get_info(d.file)->vector_numel) : 0;
    for (int64_t t = 0; t < rounds && st == TESS_OK; t++)
        st = decode_round(&d, t);
    if (st == TESS_OK)
        st = session_agree(s, d.writer != NULL ? tess_vectors_writer_finish(d.writer) : TESS_OK);
    close_decoder(&d);
    return st;
}
