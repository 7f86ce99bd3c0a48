#include "train/data/dataset.h"

#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "core/rng.h"

/* Prefix sums over the document order of one epoch; epoch e lives in slot e % 2, so that a batch
 * that straddles two epochs does not rebuild them in turn. */
typedef struct epoch_slot {
    int64_t epoch_idx; /* -1: empty */
    int64_t *start;    /* [document_numel + 1] place in the stream of the k-th document */
} epoch_slot;

struct tess_dataset {
    tess_token_file *file;
    tess_dataset_config config;
    tess_dataset_info info;
    const int64_t *doc_offset; /* of the file */
    epoch_slot slot[2];
    int32_t *resident_tokens; /* [token_numel] or NULL */
    uint8_t *resident_mask;   /* [token_numel] or NULL */
    int32_t *tokens;          /* [S + 1] scratch */
    uint8_t *mask;            /* [S + 1] scratch */
};

/* A run of tokens of one document in one sequence. */
typedef struct piece {
    int64_t first_idx; /* in the file */
    int64_t numel;
    bool has_next; /* the document goes on behind the piece */
} piece;

static int64_t resident_nbytes(const tess_token_file_info *file, const tess_dataset_config *config)
{
    const int64_t per_token =
        (int64_t)sizeof(int32_t) + (file->has_mask && !config->ignores_mask ? 1 : 0);
    return file->token_numel <= config->resident_limit_nbytes / per_token
               ? file->token_numel * per_token
               : 0;
}

int64_t tess_dataset_sequence_numel(const tess_token_file_info *file, int64_t sequence_length,
                                    bool packing)
{
    return packing ? file->token_numel / sequence_length : file->document_numel;
}

tess_status tess_dataset_plan(const tess_token_file_info *file, const tess_dataset_config *config,
                              tess_dataset_memory *out)
{
    int64_t index = 0, scratch = 0;
    TESS_CHECK(config->sequence_numel >= 1 && config->sequence_numel < INT32_MAX, TESS_E_RANGE,
               "data.sequence_length is %" PRId64 ", expected 1 .. 2147483646",
               config->sequence_numel);
    /* The file's own offsets and, shuffled or not, one table per epoch slot. */
    TESS_TRY(tess_mul_i64(file->document_numel + 1, 3 * (int64_t)sizeof(int64_t), &index));
    TESS_TRY(tess_mul_i64(config->sequence_numel + 1, sizeof(int32_t) + 1, &scratch));
    out->index_nbytes = (size_t)index;
    out->resident_nbytes = (size_t)resident_nbytes(file, config);
    out->scratch_nbytes = (size_t)scratch;
    return TESS_OK;
}

const tess_dataset_info *tess_dataset_get_info(const tess_dataset *dataset)
{
    return &dataset->info;
}

static int64_t document_at(const tess_dataset *d, int64_t epoch_idx, int64_t place)
{
    if (!d->config.shuffle)
        return place;
    const tess_rng rng =
        tess_rng_make(d->config.seed, TESS_RNG_SHUFFLE, 0, (uint32_t)(uint64_t)epoch_idx);
    return tess_rng_permute(&rng, d->info.document_numel, place);
}

static int64_t document_numel(const tess_dataset *d, int64_t document)
{
    return d->doc_offset[document + 1] - d->doc_offset[document];
}

static const int64_t *epoch_starts(tess_dataset *d, int64_t epoch_idx)
{
    epoch_slot *slot = &d->slot[epoch_idx % 2];
    if (slot->epoch_idx != epoch_idx) {
        int64_t total = 0;
        for (int64_t k = 0; k < d->info.document_numel; k++) {
            slot->start[k] = total;
            total += document_numel(d, document_at(d, epoch_idx, k));
        }
        slot->start[d->info.document_numel] = total;
        slot->epoch_idx = epoch_idx;
    }
    return slot->start;
}

/* Last document of the order that starts at or before `place`. */
static int64_t find_document(const int64_t *start, int64_t numel, int64_t place)
{
    int64_t low = 0, high = numel;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        if (start[middle] <= place)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Walks the pieces of one sequence. */
typedef struct piece_walk {
    int64_t epoch_idx, order_idx; /* next document of the order */
    int64_t skip_numel;           /* tokens of it that lie before the sequence */
    int64_t left_numel;           /* places left in the sequence */
} piece_walk;

static piece_walk walk_begin(tess_dataset *d, int64_t sequence_idx)
{
    const int64_t epoch_idx = sequence_idx / d->info.sequences_per_epoch;
    const int64_t place = sequence_idx % d->info.sequences_per_epoch;
    piece_walk walk = {.epoch_idx = epoch_idx, .left_numel = d->config.sequence_numel};
    if (d->config.packing) {
        const int64_t first = place * d->config.sequence_numel;
        const int64_t *start = epoch_starts(d, epoch_idx);
        walk.order_idx = find_document(start, d->info.document_numel, first);
        walk.skip_numel = first - start[walk.order_idx];
    } else {
        walk.order_idx = place;
    }
    return walk;
}

static bool walk_next(const tess_dataset *d, piece_walk *walk, piece *out)
{
    if (walk->left_numel == 0)
        return false;
    const int64_t document = document_at(d, walk->epoch_idx, walk->order_idx);
    const int64_t numel = document_numel(d, document) - walk->skip_numel;
    out->first_idx = d->doc_offset[document] + walk->skip_numel;
    out->numel = TESS_MIN(numel, walk->left_numel);
    out->has_next = out->numel < numel;
    walk->order_idx++;
    walk->skip_numel = 0;
    walk->left_numel = d->config.packing ? walk->left_numel - out->numel : 0;
    return true;
}

static tess_status read_mask(tess_dataset *d, int64_t first_idx, int64_t numel,
                             const uint8_t **mask)
{
    if (d->resident_mask != NULL) {
        *mask = d->resident_mask + first_idx;
        return TESS_OK;
    }
    TESS_TRY(tess_token_file_read_mask(d->file, first_idx, numel, d->mask));
    *mask = d->mask;
    return TESS_OK;
}

/* A tokenizer may know tokens that its model does not embed, such as padding that a fine-tune
 * added: only those that the data holds are an error. */
static bool exceeds_model(const tess_dataset *d)
{
    return d->config.vocab_numel > 0 &&
           tess_token_file_get_info(d->file)->vocab_numel > d->config.vocab_numel;
}

/* Into the one sequence of d->tokens. */
static tess_status read_ids(tess_dataset *d, int64_t first_idx, int64_t numel)
{
    TESS_TRY(tess_token_file_read(d->file, first_idx, numel, d->tokens, NULL));
    for (int64_t i = 0; i < numel && exceeds_model(d); i++)
        TESS_CHECK(d->tokens[i] < d->config.vocab_numel, TESS_E_RANGE,
                   "token file '%s': token %" PRId64 " has id %d of a vocabulary of %" PRId64
                   ", the model embeds ids below %" PRId64
                   "; leave out of the data what becomes this token, or tokenize with the "
                   "model's own tokenizer.json",
                   tess_token_file_path(d->file), first_idx + i, d->tokens[i],
                   tess_token_file_get_info(d->file)->vocab_numel, d->config.vocab_numel);
    return TESS_OK;
}

static tess_status read_tokens(tess_dataset *d, int64_t first_idx, int64_t numel,
                               const int32_t **tokens)
{
    if (d->resident_tokens != NULL) {
        *tokens = d->resident_tokens + first_idx;
        return TESS_OK;
    }
    TESS_TRY(read_ids(d, first_idx, numel));
    *tokens = d->tokens;
    return TESS_OK;
}

/* Where rows of a batch go. */
typedef struct row {
    int32_t *tokens, *labels, *positions, *doc_start;
    int32_t base; /* row * S */
} row;

static void fill_places(const row *r, int64_t column, int64_t numel)
{
    for (int64_t i = 0; i < numel; i++) {
        r->positions[column + i] = (int32_t)i;
        r->doc_start[column + i] = r->base + (int32_t)column;
    }
}

static tess_status fill_piece(tess_dataset *d, const piece *p, const row *r, int64_t column)
{
    const int32_t *tokens = NULL;
    const uint8_t *mask = NULL;
    const int64_t numel = p->numel + (p->has_next ? 1 : 0);
    TESS_TRY(read_tokens(d, p->first_idx, numel, &tokens));
    if (d->info.has_mask)
        TESS_TRY(read_mask(d, p->first_idx, numel, &mask));
    memcpy(r->tokens + column, tokens, (size_t)p->numel * sizeof(int32_t));
    for (int64_t i = 0; i < p->numel; i++) {
        const bool counts = i + 1 < numel && (mask == NULL || mask[i + 1] != 0);
        r->labels[column + i] = counts ? tokens[i + 1] : -1;
    }
    fill_places(r, column, p->numel);
    return TESS_OK;
}

static tess_status fill_row(tess_dataset *d, int64_t sequence_idx, const row *r)
{
    const int64_t width = d->config.sequence_numel;
    piece_walk walk = walk_begin(d, sequence_idx);
    piece p;
    int64_t column = 0;
    while (walk_next(d, &walk, &p)) {
        TESS_TRY(fill_piece(d, &p, r, column));
        column += p.numel;
    }
    /* Padding: a masked piece of its own, of the one id that every vocabulary has. */
    for (int64_t i = column; i < width; i++) {
        r->tokens[i] = 0;
        r->labels[i] = -1;
    }
    fill_places(r, column, width - column);
    return TESS_OK;
}

static tess_status check_sequences(const tess_dataset *d, int64_t first_idx, int64_t numel)
{
    TESS_CHECK(first_idx >= 0 && numel >= 0 && first_idx <= INT64_MAX - numel, TESS_E_RANGE,
               "token file '%s': sequences %" PRId64 " + %" PRId64 " asked for",
               tess_token_file_path(d->file), first_idx, numel);
    TESS_CHECK((first_idx + numel) / d->info.sequences_per_epoch <= UINT32_MAX, TESS_E_RANGE,
               "token file '%s': sequence %" PRId64 " lies beyond epoch %u",
               tess_token_file_path(d->file), first_idx + numel, UINT32_MAX);
    return TESS_OK;
}

tess_status tess_dataset_fill(tess_dataset *d, int64_t first_sequence_idx, int64_t sequence_numel,
                              const tess_dataset_batch *batch)
{
    const int64_t width = d->config.sequence_numel;
    int64_t total = 0;
    TESS_TRY(check_sequences(d, first_sequence_idx, sequence_numel));
    TESS_TRY(tess_mul_i64(sequence_numel, width, &total));
    TESS_CHECK(total <= INT32_MAX, TESS_E_RANGE,
               "micro-batch of %" PRId64 " x %" PRId64 " tokens exceeds 2147483647; lower "
               "train.micro_batch",
               sequence_numel, width);
    for (int64_t i = 0; i < sequence_numel; i++) {
        const int64_t at = i * width;
        const row r = {batch->tokens + at, batch->labels + at, batch->positions + at,
                       batch->doc_start + at, (int32_t)at};
        TESS_TRY(fill_row(d, first_sequence_idx + i, &r));
    }
    return TESS_OK;
}

static tess_status count_piece(tess_dataset *d, const piece *p, int64_t *total)
{
    const uint8_t *mask = NULL;
    const int64_t numel = p->numel - (p->has_next ? 0 : 1);
    if (!d->info.has_mask || numel == 0) {
        *total += numel;
        return TESS_OK;
    }
    TESS_TRY(read_mask(d, p->first_idx + 1, numel, &mask));
    for (int64_t i = 0; i < numel; i++)
        *total += mask[i] != 0;
    return TESS_OK;
}

tess_status tess_dataset_loss_tokens(tess_dataset *d, int64_t first_sequence_idx,
                                     int64_t sequence_numel, int64_t *loss_token_numel)
{
    int64_t total = 0;
    TESS_TRY(check_sequences(d, first_sequence_idx, sequence_numel));
    for (int64_t i = 0; i < sequence_numel; i++) {
        piece_walk walk = walk_begin(d, first_sequence_idx + i);
        piece p;
        while (walk_next(d, &walk, &p))
            TESS_TRY(count_piece(d, &p, &total));
    }
    *loss_token_numel = total;
    return TESS_OK;
}

static void describe(tess_dataset *d)
{
    const tess_token_file_info *file = tess_token_file_get_info(d->file);
    const int64_t width = d->config.sequence_numel;
    tess_dataset_info *info = &d->info;
    info->document_numel = file->document_numel;
    info->token_numel = file->token_numel;
    info->has_mask = file->has_mask && !d->config.ignores_mask;
    info->is_resident = resident_nbytes(file, &d->config) > 0;
    info->tokenizer = file->tokenizer;
    info->payload_digest = file->payload_digest;
    info->sequences_per_epoch = tess_dataset_sequence_numel(file, width, d->config.packing);
    info->dropped_token_numel = d->config.packing ? file->token_numel % width : 0;
    for (int64_t i = 0; !d->config.packing && i < file->document_numel; i++) {
        const int64_t numel = document_numel(d, i);
        info->dropped_token_numel += TESS_MAX(numel - width, 0);
        info->padding_token_numel += TESS_MAX(width - numel, 0);
    }
}

static tess_status load_resident(tess_dataset *d)
{
    void *tokens = NULL, *mask = NULL;
    /* What stays in memory is checked once and completely; larger files are checked as read. */
    TESS_TRY(tess_token_file_verify(d->file));
    TESS_TRY(tess_alloc_array(d->info.token_numel, sizeof(int32_t), &tokens));
    d->resident_tokens = tokens;
    if (d->info.has_mask) {
        TESS_TRY(tess_alloc_array(d->info.token_numel, 1, &mask));
        d->resident_mask = mask;
    }
    return tess_token_file_read(d->file, 0, d->info.token_numel, tokens, mask);
}

static tess_status allocate(tess_dataset *d)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(d->config.sequence_numel + 1, sizeof(int32_t), &memory));
    d->tokens = memory;
    TESS_TRY(tess_alloc_array(d->config.sequence_numel + 1, 1, &memory));
    d->mask = memory;
    for (int i = 0; i < 2; i++) {
        TESS_TRY(tess_alloc_array(d->info.document_numel + 1, sizeof(int64_t), &memory));
        d->slot[i].start = memory;
        d->slot[i].epoch_idx = -1;
    }
    return d->info.is_resident ? load_resident(d) : TESS_OK;
}

/* Every token once: what a run of days would refuse at last is refused at its start. */
static tess_status check_ids(tess_dataset *d)
{
    const int64_t block_numel = d->config.sequence_numel + 1;
    for (int64_t first = 0; first < d->info.token_numel && exceeds_model(d); first += block_numel)
        TESS_TRY(read_ids(d, first, TESS_MIN(d->info.token_numel - first, block_numel)));
    return TESS_OK;
}

static tess_status open_dataset(tess_dataset *d, const tess_ctx *ctx, const char *path)
{
    tess_dataset_memory memory;
    TESS_TRY(tess_token_file_open(ctx, path, &d->file));
    const tess_token_file_info *file = tess_token_file_get_info(d->file);
    TESS_TRY(tess_dataset_plan(file, &d->config, &memory));
    d->doc_offset = tess_token_file_doc_offsets(d->file);
    describe(d);
    TESS_CHECK(d->info.sequences_per_epoch > 0, TESS_E_RANGE,
               "token file '%s': %" PRId64 " tokens are less than one sequence of %" PRId64
               "; lower data.sequence_length or add data",
               path, d->info.token_numel, d->config.sequence_numel);
    TESS_TRY(allocate(d));
    return check_ids(d);
}

tess_status tess_dataset_open(const tess_ctx *ctx, const char *path,
                              const tess_dataset_config *config, tess_dataset **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_dataset), &object));
    tess_dataset *d = object;
    d->config = *config;
    const tess_status st = open_dataset(d, ctx, path);
    if (st != TESS_OK) {
        tess_dataset_close(&d);
        return st;
    }
    *out = d;
    return TESS_OK;
}

void tess_dataset_close(tess_dataset **dataset)
{
    tess_dataset *d = *dataset;
    if (d == NULL)
        return;
    for (int i = 0; i < 2; i++)
        tess_free(d->slot[i].start);
    tess_free(d->resident_tokens);
    tess_free(d->resident_mask);
    tess_free(d->tokens);
    tess_free(d->mask);
    tess_token_file_close(&d->file);
    tess_free(d);
    *dataset = NULL;
}
