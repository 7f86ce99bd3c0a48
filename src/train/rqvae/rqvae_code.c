/* Codes of a trained model: the encoder and its quantizer, the quantizer and its decoder. Rows do
 * not depend on each other, so that blocks may be any rank's. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "train/rqvae/rqvae_codes.h"
#include "train/run_file/run_file.h"
#include "train/vectors/vectors_coder.h"

enum { BLOCK_NUMEL_MAX = 1024 }; /* vectors, or one image */

/* The batch over the DATA arena, which no training uses now. On a device vectors and codes go up
 * from there, and results come down to it. */
typedef struct block {
    tess_vector_layout at;
    char *data; /* host */
    char *near; /* where kernels read it */
    int64_t row_numel;
    float *x;         /* [rows, dim] host */
    uint32_t *code;   /* [indices, rows] host */
    uint32_t *spread; /* [rows, 1 + lines] of masked images, host; else NULL */
} block;

/* What a model that was not trained with masks has no place for. Other vectors' rows do not depend
 * on masked ones. */
static tess_status spread_mask(const tess_code_round *round, block *b)
{
    void *spread = NULL;
    if (round->valid == NULL || b->at.line_numel == 0)
        return TESS_OK;
    TESS_CHECK(b->near == b->data, TESS_E_UNSUPPORTED,
               "masked images are encoded on the host, found a device; hide it by an empty "
               "CUDA_VISIBLE_DEVICES");
    TESS_TRY(tess_alloc_array(b->row_numel, (size_t)(1 + b->at.line_numel) * sizeof *b->spread,
                              &spread));
    b->spread = spread;
    (void)tess_mask_spread(&b->at, round->valid, b->row_numel, b->spread, b->spread + b->row_numel);
    return TESS_OK;
}

/* What a pass sees of the mask. */
static void set_mask(const tess_code_round *round, const block *b, tess_vector_batch *batch)
{
    if (b->spread == NULL)
        return;
    batch->valid = round->valid;
    batch->own = b->spread;
    batch->line = b->spread + b->row_numel;
}

static tess_status open_block(tess_session *s, const tess_code_round *round, block *b)
{
    TESS_TRY(tess_vector_layout_make(s->run, &s->d.sample, tess_comm_world(s->world),
                                     tess_rqvae_sharding(&s->d), &b->at));
    b->data = tess_runtime_arena(s->rt, TESS_LIFE_DATA).data;
    b->row_numel = round->vector_numel[tess_comm_rank(s->world)];
    b->near = session_vector_near(s);
    b->x = (float *)(void *)(b->data + b->at.x);
    b->code = (uint32_t *)(void *)(b->data + b->at.code);
    return spread_mask(round, b);
}

static size_t x_nbytes(const block *b) { return (size_t)(b->row_numel * b->at.dim) * sizeof *b->x; }

static tess_status pass(tess_session *s, const tess_code_round *round, const block *b,
                        tess_vector_batch *batch)
{
    double loss_sum = 0.0;
    set_mask(round, b, batch);
    TESS_TRY(session_section(s, tess_runtime_forward(s->rt, TESS_CALL_EVAL,
                                                     b->row_numel > 0 ? batch : NULL, &loss_sum)));
    return session_section(s, tess_stream_finish(tess_runtime_stream(s->rt)));
}

static tess_status open_together(tess_session *s, const tess_code_round *round, block *b)
{
    const tess_status st = session_agree(s, open_block(s, round, b));
    if (st != TESS_OK)
        tess_free(b->spread);
    return st;
}

static tess_status encode(tess_session *s, const tess_code_round *round)
{
    block b = {0};
    TESS_TRY(open_together(s, round, &b));
    double *square = (double *)(void *)(b.data + b.at.square);
    tess_vector_batch batch = {.vector_numel = b.row_numel,
                               .x = (const float *)(const void *)(b.near + b.at.x),
                               .code = b.code,
                               .square = square};
    if (b.row_numel > 0)
        memcpy(b.x, round->x, x_nbytes(&b));
    tess_status st = session_agree(s, session_vector_send(s, b.at.x, (int64_t)x_nbytes(&b)));
    if (st == TESS_OK)
        st = pass(s, round, &b, &batch);
    tess_free(b.spread);
    TESS_TRY(st);
    const int columns = b.at.shape.index_numel;
    for (int64_t i = 0; i < b.row_numel; i++) {
        round->error[i] = (float)square[i];
        for (int c = 0; c < columns; c++)
            round->code[i * columns + c] = b.code[c * b.row_numel + i];
    }
    return TESS_OK;
}

/* Codes, and vectors of zeros: their losses are nobody's. */
static tess_status send_codes(tess_session *s, const block *b)
{
    const size_t code_nbytes =
        (size_t)b->at.shape.index_numel * (size_t)b->row_numel * sizeof *b->code;
    TESS_TRY(session_vector_send(s, b->at.x, (int64_t)x_nbytes(b)));
    return session_vector_send(s, b->at.code, (int64_t)code_nbytes);
}

static tess_status decode(tess_session *s, const tess_code_round *round)
{
    block b = {0};
    TESS_TRY(open_together(s, round, &b));
    const int columns = b.at.shape.index_numel;
    const bool is_far = b.near != b.data;
    memset(b.x, 0, x_nbytes(&b));
    for (int64_t i = 0; i < b.row_numel; i++)
        for (int c = 0; c < columns; c++)
            b.code[c * b.row_numel + i] = round->code[i * columns + c];
    tess_vector_batch batch = {
        .vector_numel = b.row_numel,
        .x = (const float *)(const void *)(b.near + b.at.x),
        .given = (const uint32_t *)(const void *)(b.near + b.at.code),
        .y = is_far ? b.x : round->x}; /* of a device into memory that its copies reach */
    tess_status st = session_agree(s, send_codes(s, &b));
    if (st == TESS_OK)
        st = pass(s, round, &b, &batch);
    tess_free(b.spread);
    TESS_TRY(st);
    if (is_far && b.row_numel > 0)
        memcpy(round->x, b.x, x_nbytes(&b));
    for (int64_t i = 0; s->d.sample.channel_numel > 0 && i < b.row_numel * b.at.dim; i++)
        round->x[i] = 0.5f * round->x[i] + 0.5f; /* as images have them */
    return TESS_OK;
}

/* This rank's masters of a tensor, whose first element has number `first_idx`. */
static tess_status add_masters(tess_session *s, int param_idx, int64_t first_idx,
                               tess_logical_hash *h)
{
    const codes_range own = codes_range_of(s, param_idx);
    tess_view room = {0};
    if (own.master.space == TESS_DEVICE)
        TESS_TRY(tess_runtime_host_work(s->rt, &room));
    const int64_t most = own.master.space == TESS_DEVICE ? room.numel / (int64_t)sizeof(float)
                                                         : TESS_MAX(own.master.numel, 1);
    for (int64_t lo = 0; lo < own.master.numel; lo += most) {
        tess_view part = tess_view_slice(own.master, lo, TESS_MIN(most, own.master.numel - lo));
        if (own.master.space == TESS_DEVICE) {
            const tess_view here = tess_view_host(room.data, part.numel, TESS_F32);
            TESS_TRY(tess_runtime_copy(s->rt, here, part));
            part = here;
        }
        tess_logical_hash_add(h, part.data, part.numel, sizeof(float),
                              first_idx + own.first_idx + lo);
    }
    return TESS_OK;
}

/* Identity of the model: what it computes, and its masters by number, tensor after tensor. */
static tess_status name_model(tess_session *s, char text[TESS_CODES_TEXT_NBYTES])
{
    tess_logical_hash h = {{0}};
    int64_t lanes[2], first_idx = 0;
    tess_status st = TESS_OK;
    for (int i = 0; i < s->d.registry.param_numel && st == TESS_OK; i++) {
        st = add_masters(s, i, first_idx, &h);
        first_idx += s->d.registry.param[i].numel;
    }
    TESS_TRY(session_agree(s, st));
    memcpy(lanes, &h, sizeof lanes);
    TESS_TRY(tess_comm_control(s->world, lanes, 2, NULL, 0));
    char weights[32], sample[TESS_SAMPLE_TEXT_NBYTES], hex[2 * sizeof(tess_xxh128) + 1];
    tess_sample_text(&s->d.sample, sample);
    const tess_xxh128 part[] = {tess_xxh128_of(s->d.config_text, strlen(s->d.config_text)),
                                tess_xxh128_of(sample, strlen(sample))};
    const tess_xxh128 form = tess_xxh128_of(part, sizeof part);
    tess_hex(&form, sizeof form, hex);
    tess_run_word_at(tess_run_key_at(TESS_RUN_KEY_train_eval_weights)->words,
                     (int)s->run->train.eval_weights, weights);
    snprintf(text, TESS_CODES_TEXT_NBYTES, "%s/%s/%s/%" PRId64 "/%016" PRIx64 "%016" PRIx64,
             s->d.family_name, hex, weights, first_idx, (uint64_t)lanes[0], (uint64_t)lanes[1]);
    return TESS_OK;
}

static tess_codes_order order_of(tess_quantizer_kind kind)
{
    switch (kind) {
    case TESS_QUANTIZER_CODES:
    case TESS_QUANTIZER_MAPPED_CODES:
    case TESS_QUANTIZER_PROJECTED:
        break;
    case TESS_QUANTIZER_SCALARS:
    case TESS_QUANTIZER_VALUES:
        return TESS_CODES_LSB_FIRST;
    case TESS_QUANTIZER_SIGNS:
        return TESS_CODES_MSB_FIRST;
    }
    return TESS_CODES_ROW;
}

tess_status tess_coder_of_rqvae(tess_session *s, tess_coder *out)
{
    const tess_rqvae_config config = tess_rqvae_config_of(s->run, &s->d.sample);
    tess_quantizer_shape shape = {0};
    TESS_TRY(tess_quantizer_shape_make(&config, &shape));
    const int64_t positions = tess_rqvae_position_numel(&config.images);
    /* Rank 0 holds a block of every rank. */
    const int64_t most = TESS_MAX(BLOCK_NUMEL_MAX / positions, 1);
    *out = (tess_coder){.block_numel = TESS_MIN(s->run->train.micro_batch, most) * positions,
                        .dim = config.dim,
                        .position_numel = positions,
                        .halving_numel = (int)config.images.halving_numel,
                        .sample = s->d.sample,
                        .info = {.code_numel = shape.code_numel,
                                 .level_numel = shape.index_numel / shape.group_numel,
                                 .group_numel = shape.group_numel,
                                 .bit_order = order_of(config.kind)},
                        .encode = encode,
                        .decode = decode};
    TESS_TRY(session_show(s, session_weights(s->run->train.eval_weights)));
    return name_model(s, out->info.codebooks);
}
