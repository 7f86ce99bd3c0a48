/* Ops of quantizers in the emulation, against the C twins. Runs on a device too. */
#include "tests/emulation/emulation.h"
#include "tests/emulation/twin.h"

#define CALL(t, op, args)                                                                          \
    ((t)->is_cuda ? tess_cuda_quantizer_##op(args, s) : tess_cpu_quantizer_##op(args, s))

typedef struct shape {
    tess_dtype dt;
    int64_t rows, dim, codes;
    int64_t gap; /* elements behind each row of activations */
    int64_t shift;
    int variant;
} shape;

static int64_t edge_numel(const shape *c)
{
    return c->rows == 0 ? 0 : (c->rows - 1) * (c->dim + c->gap) + c->dim;
}

static int64_t stride_of(const shape *c) { return c->gap > 0 ? c->dim + c->gap : 0; }

/* Some vectors are masked. */
static twin_operand *add_codes(twin *t, const char *name, const shape *c)
{
    twin_operand *x = twin_index(t, name, c->rows, c->codes);
    for (int64_t i = 2; i < c->rows; i += 5)
        ((uint32_t *)x->initial)[i] = TESS_NO_CODE;
    return x;
}

static tess_coded_rows coded(const twin *t, int codes, int code)
{
    const shape *c = t->ctx;
    return (tess_coded_rows){.codes = t->x[codes].data,
                             .code = t->x[code].data,
                             .row_numel = c->rows,
                             .dim = c->dim,
                             .code_numel = c->codes};
}

/* ---- rows of vectors ---- */

/* Fewer elements than lanes, odd ends, more than one round of lanes, more rows than a block has. */
static const shape rows[] = {
    {TESS_F32, 0, 4, 3, 0, 0, 0},    {TESS_F32, 1, 1, 1, 0, 0, 1},
    {TESS_F32, 7, 3, 4, 2, 1, 2},    {TESS_BF16, 35, 16, 5, 0, 0, 2},
    {TESS_BF16, 19, 33, 9, 7, 1, 1}, {TESS_F32, 17, 100, 3, 0, 0, 2},
    {TESS_BF16, 3, 257, 2, 1, 0, 0}, {TESS_BF16, 9001, 64, 300, 0, 0, 2}, /* fills a device */
};

static void edge_make(twin *t, int case_idx)
{
    const shape *c = &rows[case_idx];
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "x", c->dt, edge_numel(c), 2.0);
    twin_output(t, "core", TESS_F32, c->rows * c->dim);
    twin_output(t, "norm", TESS_F32, c->rows);
    twin_random(t, "d_core", TESS_F32, c->rows * c->dim, 1.0);
    twin_random(t, "d_x", c->dt, edge_numel(c), 1.0);
    twin_random(t, "row", c->dt, c->rows * c->dim, 1.0);
    twin_output(t, "normal", c->dt, c->rows * c->dim);
    for (int64_t i = 0; i < (c->rows > 0 ? c->dim : 0); i++) /* a row without a length */
        memset((char *)t->x[0].initial + (size_t)i * tess_dtype_block_nbytes(c->dt), 0,
               tess_dtype_block_nbytes(c->dt));
}

static tess_status edge_call(twin *t, tess_stream *s)
{
    const shape *c = t->ctx;
    tess_quantizer_enter_args enter = {.x = twin_view(t, 0),
                                       .row_numel = c->rows,
                                       .dim = c->dim,
                                       .x_stride = stride_of(c),
                                       .length = 0.0f,
                                       .least = TESS_UNIT_LEAST,
                                       .core = t->x[1].data};
    tess_quantizer_enter_backward_args backward = {.d_core = t->x[3].data,
                                                   .row_numel = c->rows,
                                                   .dim = c->dim,
                                                   .d_stride = stride_of(c),
                                                   .least = TESS_UNIT_LEAST,
                                                   .d_x = twin_view(t, 4),
                                                   .accumulate = true};
    tess_quantizer_layer_norm_args norm = {.x = twin_view(t, 5),
                                           .row_numel = c->rows,
                                           .dim = c->dim,
                                           .eps = 1e-5,
                                           .y = twin_view(t, 6)};
    TESS_TRY(CALL(t, enter, &enter));
    TESS_TRY(CALL(t, enter_backward, &backward));
    enter.length = backward.length = 1.5f;
    enter.norm = t->x[2].data;
    backward.norm = t->x[2].data;
    backward.core = t->x[1].data;
    TESS_TRY(CALL(t, enter, &enter));
    TESS_TRY(CALL(t, enter_backward, &backward));
    backward.accumulate = false;
    TESS_TRY(c->rows % 2 == 0 ? TESS_OK : CALL(t, enter_backward, &backward));
    TESS_TRY(CALL(t, layer_norm, &norm));
    norm.y = norm.x; /* in place */
    return CALL(t, layer_norm, &norm);
}

static void coded_make(twin *t, int case_idx)
{
    const shape *c = &rows[case_idx];
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "codes", TESS_F32, c->codes * c->dim, 1.0);
    add_codes(t, "code", c);
    twin_random(t, "x", TESS_F32, c->rows * c->dim, 1.0);
    twin_output(t, "out", c->dt, edge_numel(c));
    twin_random(t, "masked", c->dt, edge_numel(c), 1.0);
    twin_random(t, "sum", TESS_F32, c->rows * c->dim, 1.0);
    twin_output(t, "loss", TESS_F64, c->rows);
    twin_random(t, "d_out", c->dt, edge_numel(c), 1.0);
    twin_random(t, "d_next", TESS_F32, c->rows * c->dim, 1.0);
    twin_random(t, "d_x", TESS_F32, c->rows * c->dim, 1.0);
    twin_random(t, "d_codes", TESS_F32, c->codes * c->dim, 1.0);
}

static tess_status coded_call(twin *t, tess_stream *s)
{
    const shape *c = t->ctx;
    const tess_coded_rows r = coded(t, 0, 1);
    tess_quantizer_gather_args gather = {
        .rows = r, .masked = twin_view(t, 4), .out_stride = stride_of(c), .out = twin_view(t, 3)};
    const tess_quantizer_residual_args residual = {
        .rows = r, .r = t->x[2].data, .next = t->x[2].data, .sum = t->x[5].data};
    const tess_quantizer_row_loss_args loss = {.rows = r, .x = t->x[2].data, .out = t->x[6].data};
    tess_quantizer_backward_args backward = {.rows = r,
                                             .x = t->x[2].data,
                                             .d_out = twin_view(t, 7),
                                             .d_stride = stride_of(c),
                                             .d_next = c->variant == 1 ? NULL : t->x[8].data,
                                             .keep = 0.75f,
                                             .estimator = (tess_estimator)c->variant,
                                             .commitment = 0.3f,
                                             .is_masked_input = c->rows % 2 == 1,
                                             .d_x = t->x[9].data};
    const tess_quantizer_code_gradient_args move = {
        .rows = r, .x = t->x[2].data, .coefficient = 0.7f, .d_codes = t->x[10].data};
    TESS_TRY(CALL(t, row_loss, &loss));
    TESS_TRY(CALL(t, residual, &residual));
    TESS_TRY(CALL(t, backward, &backward));
    backward.accumulate = true;
    backward.d_out = (tess_view){0};
    TESS_TRY(CALL(t, backward, &backward));
    TESS_TRY(CALL(t, code_gradient, &move));
    if (c->rows % 2 == 0)
        gather.masked = (tess_view){0};
    return CALL(t, gather, &gather);
}

/* One row of codes, or several. */
static void mask_make(twin *t, int case_idx)
{
    const shape *c = &rows[case_idx];
    t->ctx = c;
    t->shift = c->shift;
    twin_index(t, "code", (1 + c->variant) * c->rows, c->codes);
    twin_operand *valid = twin_add(t, "valid", TESS_U8, c->rows);
    for (int64_t i = 0; i < c->rows; i++)
        ((uint8_t *)valid->initial)[i] = i % 3 != 1;
}

static tess_status mask_call(twin *t, tess_stream *s)
{
    const shape *c = t->ctx;
    const tess_quantizer_mask_args mask = {.valid = t->x[1].data,
                                           .row_numel = c->rows,
                                           .index_numel = 1 + c->variant,
                                           .code = t->x[0].data};
    return CALL(t, mask, &mask);
}

static void directed_make(twin *t, int case_idx)
{
    const shape *c = &rows[case_idx];
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "codes", TESS_F32, c->codes * c->dim, 1.0);
    add_codes(t, "code", c);
    twin_random(t, "x", TESS_F32, c->rows * c->dim, 1.0);
    twin_random(t, "noise", TESS_F32, c->rows * c->dim, 1.0);
    twin_output(t, "out", c->dt, edge_numel(c));
    twin_random(t, "d_out", c->dt, edge_numel(c), 1.0);
    twin_random(t, "d_x", TESS_F32, c->rows * c->dim, 1.0);
    twin_output(t, "d_q", TESS_F32, c->rows * c->dim);
    twin_random(t, "d_codes", TESS_F32, c->codes * c->dim, 1.0);
}

static tess_status directed_call(twin *t, tess_stream *s)
{
    const shape *c = t->ctx;
    const tess_coded_rows r = coded(t, 0, 1);
    const tess_quantizer_directed_args forward = {.rows = r,
                                                  .x = t->x[2].data,
                                                  .noise = t->x[3].data,
                                                  .spread = 0.07f,
                                                  .out_stride = stride_of(c),
                                                  .out = twin_view(t, 4)};
    const tess_quantizer_directed_backward_args backward = {.rows = r,
                                                            .x = t->x[2].data,
                                                            .noise = t->x[3].data,
                                                            .spread = 0.07f,
                                                            .d_stride = stride_of(c),
                                                            .d_out = twin_view(t, 5),
                                                            .d_x = t->x[6].data,
                                                            .d_q = t->x[7].data,
                                                            .accumulate = c->rows % 2 == 1};
    const tess_quantizer_code_gradient_args move = {
        .rows = r, .d_q = t->x[7].data, .d_codes = t->x[8].data};
    TESS_TRY(CALL(t, directed, &forward));
    TESS_TRY(CALL(t, directed_backward, &backward));
    return CALL(t, code_gradient, &move);
}

/* ---- codebooks ---- */

/* Codes beyond a tile, columns beyond one, slices with several codes. */
static const shape books[] = {
    {0, 3, 1, 1, 0, 0, 0},       {0, 5, 3, 7, 0, 1, 1},     {0, 40, 17, 70, 0, 0, 0},
    {0, 300, 5, 600, 0, 0, 1},   {0, 150, 130, 3, 0, 0, 0}, {0, 2, 260, 2, 0, 0, 1},
    {0, 1000, 64, 700, 0, 0, 1}, /* fills a device */
};

static void book_make(twin *t, int case_idx)
{
    const shape *c = &books[case_idx];
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "codes", TESS_F32, c->codes * c->dim, 1.0);
    for (int64_t i = 0; i < c->dim && c->codes > 1; i++)
        ((float *)t->x[0].initial)[c->dim + i] = 0.0f; /* a code without a length */
    twin_add(t, "use", TESS_U8, c->codes);
    for (int64_t k = 0; k < c->codes; k++)
        ((uint8_t *)t->x[1].initial)[k] = k % 3 != 1;
    twin_add(t, "gram", TESS_I64, c->dim * c->dim);
    twin_output(t, "work", TESS_F64, (c->dim + 1) * c->dim);
    twin_random(t, "d_codes", TESS_F32, c->codes * c->dim, 1.0);
    twin_output(t, "loss", TESS_F64, 1);
    add_codes(t, "code", c);
    twin_random(t, "x", TESS_F32, c->rows * c->dim, 1.0);
    twin_output(t, "key", TESS_U64, c->rows);
    twin_output(t, "given", TESS_U64, c->rows);
    for (int64_t i = 0; i < c->rows; i++)
        ((uint64_t *)t->x[9].initial)[i] = i % 2 == 0 ? TESS_NO_KEY : tess_key_make(-1.0f, 3);
}

/* The last row of the workspace is a thread's own, and what is in it no result. The kernels here do
 * not use it; of a device that is not known. */
static tess_status hide_room(twin *t)
{
    const shape *c = t->ctx;
    double *room = (double *)t->x[3].data + c->dim * c->dim;
    const size_t offset = (size_t)(c->dim * c->dim), nbytes = (size_t)c->dim * sizeof *room;
    if (t->is_cuda && tess_emulation_is_device())
        return tess_emulation_write(room, (double *)t->x[3].initial + offset, nbytes);
    if (!t->is_cuda)
        memset(room, 0xff, nbytes);
    return TESS_OK;
}

static tess_status book_call(twin *t, tess_stream *s)
{
    const shape *c = t->ctx;
    const uint8_t *use = c->variant == 1 ? t->x[1].data : NULL;
    const tess_quantizer_gram_args gram = {.codes = t->x[0].data,
                                           .use = use,
                                           .code_numel = c->codes,
                                           .dim = c->dim,
                                           .exponent = 40,
                                           .gram = t->x[2].data};
    const tess_quantizer_orthogonal_args orthogonal = {.codes = t->x[0].data,
                                                       .use = use,
                                                       .gram = t->x[2].data,
                                                       .code_numel = c->codes,
                                                       .dim = c->dim,
                                                       .used_numel = c->codes,
                                                       .exponent = 40,
                                                       .weight = 0.5,
                                                       .work = t->x[3].data,
                                                       .d_codes = t->x[4].data,
                                                       .loss = t->x[5].data};
    const tess_quantizer_code_gradient_args move = {
        .rows = coded(t, 0, 6), .x = t->x[7].data, .coefficient = 0.7f, .d_codes = t->x[4].data};
    tess_quantizer_sample_args sample = {.x = t->x[7].data,
                                         .codes = t->x[0].data,
                                         .row_numel = c->rows,
                                         .dim = c->dim,
                                         .code_numel = c->codes,
                                         .first_row_idx = 11,
                                         .first_code_idx = 2,
                                         .all_numel = c->codes + 3,
                                         .temperature = 0.4,
                                         .is_cosine = c->variant == 1,
                                         .rng = tess_rng_make(3, TESS_RNG_QUANTIZER, 1, 0),
                                         .is_first = true,
                                         .key = t->x[8].data};
    TESS_TRY(CALL(t, gram, &gram));
    TESS_TRY(CALL(t, orthogonal, &orthogonal));
    TESS_TRY(hide_room(t));
    TESS_TRY(CALL(t, code_gradient, &move));
    TESS_TRY(CALL(t, sample, &sample));
    sample.is_first = false;
    sample.key = t->x[9].data;
    return CALL(t, sample, &sample);
}

static void average_make(twin *t, int case_idx)
{
    const shape *c = &books[case_idx];
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "embed", TESS_F32, c->codes * c->dim, 1.0);
    twin_random(t, "average", TESS_F32, c->codes * c->dim, 1.0);
    twin_random(t, "size", TESS_F32, c->codes, 1.0);
    twin_add(t, "count", TESS_I64, c->codes);
    for (int64_t k = 0; k < c->codes; k++)
        ((int64_t *)t->x[3].initial)[k] = k * 7 % 5;
    twin_random(t, "sum", TESS_F32, c->codes * c->dim, 1.0);
    twin_random(t, "weight", TESS_F32, c->codes, 0.3);
    twin_add(t, "total", TESS_I64, 1);
    twin_output(t, "expired", TESS_U8, c->codes);
    twin_output(t, "expired_numel", TESS_I64, 1);
    twin_add(t, "row", TESS_I64, (c->codes + 1) / 2);
    for (int64_t i = 0; i < t->x[9].numel; i++)
        ((int64_t *)t->x[9].initial)[i] = (c->codes - 1) / 2 * 2 - 2 * i;
    twin_random(t, "vector", TESS_F32, t->x[9].numel * c->dim, 1.0);
}

static tess_status average_call(twin *t, tess_stream *s)
{
    const shape *c = t->ctx;
    const bool is_cosine = c->variant == 1;
    const tess_codebook_rows r = {t->x[0].data, t->x[1].data, t->x[2].data, c->codes, c->dim};
    const tess_quantizer_average_args average = {.rows = r,
                                                 .count = t->x[3].data,
                                                 .sum = t->x[4].data,
                                                 .weight = is_cosine ? t->x[5].data : NULL,
                                                 .decay = is_cosine ? 0.3 : 0.99};
    const tess_quantizer_total_args total = {t->x[2].data, c->codes, t->x[6].data};
    const tess_quantizer_embed_args embed = {
        .rows = r, .total = 12.5, .code_numel = c->codes + 4, .eps = 1e-5, .is_cosine = is_cosine};
    const tess_quantizer_expire_args expire = {.cluster_size = t->x[2].data,
                                               .row_numel = c->codes,
                                               .threshold = 0.6,
                                               .expired = t->x[7].data,
                                               .expired_numel = t->x[8].data};
    const tess_quantizer_replace_args replace = {.rows = r,
                                                 .row = t->x[9].data,
                                                 .vector = t->x[10].data,
                                                 .replace_numel = t->x[9].numel,
                                                 .reset = 0.6,
                                                 .is_cosine = is_cosine};
    TESS_TRY(CALL(t, average, &average));
    TESS_TRY(CALL(t, total, &total));
    TESS_TRY(CALL(t, embed, &embed));
    TESS_TRY(CALL(t, expire, &expire));
    return CALL(t, replace, &replace);
}

/* ---- levels ---- */

static const int32_t level_of[] = {8, 5, 5, 3, 7, 4, 6, 9};
static const float scale_of[] = {1.0f, 0.5f, 0.25f, 2.0f, 1.0f, 0.125f, 1.0f, 3.0f};

static const shape levels[] = {
    {TESS_F32, 0, 3, 0, 0, 0, 0},
    {TESS_F32, 1, 1, 0, 0, 0, TESS_LEVEL_UPPER},
    {TESS_F32, 37, 4, 0, 3, 1, TESS_LEVEL_LOWER},
    {TESS_BF16, 300, 8, 0, 0, 0, TESS_LEVEL_SYMMETRIC},
    {TESS_BF16, 19, 5, 0, 2, 1, TESS_LEVEL_CLAMPED},
    {TESS_BF16, 30001, 8, 0, 0, 0, TESS_LEVEL_SYMMETRIC}, /* fills a device */
};

static void level_make(twin *t, int case_idx)
{
    const shape *c = &levels[case_idx];
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "x", c->dt, edge_numel(c), 1.5);
    twin_output(t, "out", c->dt, edge_numel(c));
    twin_output(t, "index", TESS_I32, c->rows);
    twin_output(t, "decoded", c->dt, edge_numel(c));
    twin_random(t, "d_out", c->dt, edge_numel(c), 1.0);
    twin_random(t, "d_x", c->dt, edge_numel(c), 1.0);
    twin_random(t, "plain", c->dt, c->rows * c->dim, 1.5);
    twin_output(t, "clamped", TESS_F32, c->rows * c->dim);
    twin_output(t, "d_plain", c->dt, c->rows * c->dim);
}

static tess_status level_call(twin *t, tess_stream *s)
{
    const shape *c = t->ctx;
    const tess_level_rule rule = (tess_level_rule)c->variant;
    const tess_levels l = {level_of, c->gap > 0 ? scale_of : NULL, c->dim, rule};
    tess_quantizer_level_args forward = {.levels = l,
                                         .x = twin_view(t, 0),
                                         .row_numel = c->rows,
                                         .x_stride = stride_of(c),
                                         .out_stride = stride_of(c),
                                         .out = twin_view(t, 1),
                                         .index = t->x[2].data,
                                         .rng = tess_rng_make(3, TESS_RNG_QUANTIZER, 1, 0),
                                         .first_idx = 5,
                                         .noise = rule > TESS_LEVEL_LOWER ? 0.5 : 0.0};
    const tess_quantizer_level_decode_args decode = {.levels = l,
                                                     .index = t->x[2].data,
                                                     .row_numel = c->rows,
                                                     .out_stride = stride_of(c),
                                                     .out = twin_view(t, 3)};
    tess_quantizer_level_backward_args backward = {.levels = l,
                                                   .x = twin_view(t, 0),
                                                   .d_out = twin_view(t, 4),
                                                   .row_numel = c->rows,
                                                   .x_stride = stride_of(c),
                                                   .d_out_stride = stride_of(c),
                                                   .d_x_stride = stride_of(c),
                                                   .d_x = twin_view(t, 5),
                                                   .accumulate = true};
    const tess_quantizer_soft_clamp_args clamp = {level_of, c->rows, c->dim, twin_view(t, 6),
                                                  t->x[7].data};
    const tess_quantizer_soft_clamp_backward_args clamp_backward = {
        level_of, c->rows, c->dim, twin_view(t, 6), t->x[7].data, twin_view(t, 8)};
    TESS_TRY(CALL(t, level, &forward));
    TESS_TRY(CALL(t, level_decode, &decode));
    TESS_TRY(CALL(t, level_backward, &backward));
    forward.index = NULL;
    forward.out = forward.x; /* in place */
    TESS_TRY(CALL(t, level, &forward));
    TESS_TRY(CALL(t, soft_clamp, &clamp));
    return CALL(t, soft_clamp_backward, &clamp_backward);
}

static void latent_make(twin *t, int case_idx)
{
    const shape *c = &levels[case_idx];
    int64_t values = 0;
    for (int64_t j = 0; j < c->dim; j++)
        values += level_of[j];
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "value", TESS_F32, values, 1.0);
    twin_random(t, "x", TESS_F32, c->rows * c->dim, 1.0);
    twin_output(t, "out", TESS_F32, c->rows * c->dim);
    twin_output(t, "index", TESS_I32, c->rows);
    twin_output(t, "decoded", TESS_F32, c->rows * c->dim);
    twin_random(t, "d_value", TESS_F32, values, 1.0);
    if (c->rows > 4)
        ((float *)t->x[1].initial)[4 * c->dim] = NAN; /* a vector without a code */
}

static tess_status latent_call(twin *t, tess_stream *s)
{
    const shape *c = t->ctx;
    const tess_latents l = {t->x[0].data, level_of, c->dim};
    const tess_quantizer_latent_args forward = {l, t->x[1].data, c->rows, t->x[2].data,
                                                t->x[3].data};
    const tess_quantizer_latent_decode_args decode = {l, t->x[3].data, c->rows, t->x[4].data};
    const tess_quantizer_latent_gradient_args gradient = {l,       t->x[1].data, t->x[3].data,
                                                          c->rows, 0.3f,         t->x[5].data};
    TESS_TRY(CALL(t, latent, &forward));
    TESS_TRY(CALL(t, latent_decode, &decode));
    return CALL(t, latent_gradient, &gradient);
}

/* ---- signs ---- */

/* One bit to eleven; more codes than a block has threads; more vectors than a turn. */
static const shape signs[] = {
    {TESS_F32, 0, 3, 0, 0, 0, 0},   {TESS_F32, 1, 1, 0, 0, 0, 1},
    {TESS_F32, 37, 4, 0, 3, 1, 0},  {TESS_BF16, 40, 9, 0, 0, 0, 1},
    {TESS_BF16, 5, 11, 0, 2, 1, 0}, {TESS_F32, 300, 11, 0, 0, 0, 1}, /* fills a device */
};

static void sign_make(twin *t, int case_idx)
{
    const shape *c = &signs[case_idx];
    const int64_t codes = INT64_C(1) << c->dim;
    t->ctx = c;
    t->shift = c->shift;
    twin_random(t, "x", TESS_F32, edge_numel(c), 1.0);
    twin_add(t, "valid", TESS_U8, c->rows);
    for (int64_t i = 0; i < c->rows; i++)
        ((uint8_t *)t->x[1].initial)[i] = i % 4 != 3;
    twin_output(t, "out", c->dt, edge_numel(c));
    twin_output(t, "index", TESS_I32, c->rows);
    twin_output(t, "decoded", c->dt, edge_numel(c));
    twin_output(t, "loss", TESS_F64, c->rows);
    twin_output(t, "entropy", TESS_F64, c->rows);
    twin_random(t, "d_out", c->dt, edge_numel(c), 1.0);
    twin_random(t, "d_x", TESS_F32, edge_numel(c), 1.0);
    twin_add(t, "sum", TESS_I64, codes);
    twin_output(t, "batch", TESS_F64, 1);
    twin_output(t, "slope", TESS_F64, codes);
}

static tess_status entropy_call(twin *t, const tess_sign_rows *r, tess_stream *s)
{
    const shape *c = t->ctx;
    const size_t work_nbytes = (size_t)tess_entropy_work_numel(c->dim) * sizeof(double);
    const tess_view work = twin_room(t, work_nbytes);
    const tess_quantizer_pbar_args pbar = {
        .rows = *r, .beta = 0.7, .exponent = 50, .sum = t->x[9].data, .work = work.data};
    const tess_quantizer_batch_entropy_args entropy = {.sum = t->x[9].data,
                                                       .dim = c->dim,
                                                       .valid_numel = c->rows + 1,
                                                       .exponent = 50,
                                                       .least = c->variant == 1 ? 1e-5 : 0.0,
                                                       .loss = t->x[10].data,
                                                       .slope = t->x[11].data};
    const tess_quantizer_batch_entropy_backward_args backward = {
        .rows = *r, .beta = 0.7, .slope = t->x[11].data, .weight = 0.3, .d_x = t->x[8].data};
    tess_status st = CALL(t, pbar, &pbar);
    twin_room_free(work);
    if (st == TESS_OK)
        st = CALL(t, batch_entropy, &entropy);
    return st == TESS_OK ? CALL(t, batch_entropy_backward, &backward) : st;
}

static tess_status sign_call(twin *t, tess_stream *s)
{
    const shape *c = t->ctx;
    const tess_bit_order order = c->variant == 1 ? TESS_BITS_LSB_FIRST : TESS_BITS_MSB_FIRST;
    const tess_sign_rows r = {.x = t->x[0].data,
                              .valid = c->variant == 1 ? NULL : t->x[1].data,
                              .row_numel = c->rows,
                              .dim = c->dim,
                              .stride = stride_of(c),
                              .magnitude = 0.5f};
    const tess_quantizer_sign_args forward = {.rows = r,
                                              .order = order,
                                              .out_stride = stride_of(c),
                                              .out = twin_view(t, 2),
                                              .index = t->x[3].data};
    const tess_quantizer_sign_decode_args decode = {.index = t->x[3].data,
                                                    .row_numel = c->rows,
                                                    .dim = c->dim,
                                                    .magnitude = 0.5f,
                                                    .order = order,
                                                    .out_stride = stride_of(c),
                                                    .out = twin_view(t, 4)};
    const tess_quantizer_sign_loss_args loss = {
        .rows = r, .beta = 0.7, .loss = t->x[5].data, .entropy = t->x[6].data};
    const tess_quantizer_sign_backward_args backward = {.rows = r,
                                                        .d_out_stride = stride_of(c),
                                                        .d_out = twin_view(t, 7),
                                                        .beta = 0.7,
                                                        .commitment = 0.2f,
                                                        .entropy = c->variant == 1 ? 0.1 : 0.0,
                                                        .d_x = t->x[8].data,
                                                        .accumulate = true};
    TESS_TRY(CALL(t, sign, &forward));
    TESS_TRY(CALL(t, sign_decode, &decode));
    TESS_TRY(CALL(t, sign_loss, &loss));
    TESS_TRY(CALL(t, sign_backward, &backward));
    return entropy_call(t, &r, s);
}

static const twin_op ops[] = {
    {"edges", edge_make, edge_call, TESS_NELEM(rows), 1},
    {"coded rows", coded_make, coded_call, TESS_NELEM(rows), 1},
    {"masks", mask_make, mask_call, TESS_NELEM(rows), 1},
    {"directed", directed_make, directed_call, TESS_NELEM(rows), 1},
    {"codes", book_make, book_call, TESS_NELEM(books), 1},
    {"averages", average_make, average_call, TESS_NELEM(books), 1},
    {"levels", level_make, level_call, TESS_NELEM(levels), 1},
    {"latents", latent_make, latent_call, TESS_NELEM(levels), 1},
    {"signs", sign_make, sign_call, TESS_NELEM(signs), 1},
};

static const twin_suite suite = {ops,
                                 TESS_NELEM(ops),
                                 {"quantizer_vector.cu", "quantizer_codebook.cu",
                                  "quantizer_scalar.cu", "quantizer_binary.cu", NULL}};

int main(void) { return twin_suite_main(&suite); }
