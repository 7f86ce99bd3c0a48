/* Any bytes as a token file, as they are and with digests that fit, as a hostile writer would make
 * them: refused, or a data set that fills sequences with ids of the vocabulary. */
#include <string.h>

#include "fuzz.h"
#include "train/data/dataset.h"
#include "train/data/token_file_priv.h"

enum { WIDTH = 24, ROWS = 3, FILE_MAX_NBYTES = 1 << 16 };

static void check_batch(tess_dataset *d, const tess_dataset_batch *batch, int64_t vocab_numel)
{
    for (int64_t i = 0; i < ROWS * WIDTH; i++) {
        fuzz_require(batch->tokens[i] >= 0 && batch->tokens[i] < vocab_numel, "a foreign id");
        fuzz_require(batch->labels[i] >= -1 && batch->labels[i] < vocab_numel, "a foreign label");
        fuzz_require(batch->doc_start[i] >= i - i % WIDTH && batch->doc_start[i] <= i, "start");
        fuzz_require(batch->positions[i] == i - batch->doc_start[i], "position");
    }
    fuzz_require(tess_dataset_get_info(d)->token_numel > 0, "no tokens");
}

static tess_status use(const tess_ctx *ctx, const char *path, int variant)
{
    static int32_t room[4][ROWS * WIDTH];
    const tess_dataset_batch batch = {room[0], room[1], room[2], room[3]};
    const tess_dataset_config config = {.sequence_numel = WIDTH,
                                        .packing = variant % 2 == 0,
                                        .shuffle = variant < 2,
                                        .seed = 1,
                                        .resident_limit_nbytes = variant == 0 ? 1 << 20 : 0};
    tess_dataset *d = NULL;
    tess_token_file *file = NULL;
    TESS_TRY(tess_token_file_open(ctx, path, &file));
    const int64_t vocab_numel = tess_token_file_get_info(file)->vocab_numel;
    tess_token_file_close(&file);
    tess_status st = tess_dataset_open(ctx, path, &config, &d);
    if (st == TESS_E_RANGE) { /* fewer tokens than a sequence */
        tess_error_clear();
        return TESS_OK;
    }
    if (st == TESS_OK)
        st = tess_dataset_fill(d, 1, ROWS, &batch);
    if (st == TESS_OK)
        check_batch(d, &batch, vocab_numel);
    tess_dataset_close(&d);
    return st;
}

static void run(const uint8_t *data, size_t nbytes)
{
    const tess_ctx ctx = {.io = fuzz_io()};
    char path[64];
    const int fd = fuzz_file_open(data, nbytes, path);
    for (int variant = 0; variant < 4; variant++) {
        const size_t before_nbytes = tess_alloc_nbytes();
        tess_error_clear();
        fuzz_verdict(use(&ctx, path, variant), before_nbytes);
    }
    fuzz_file_close(fd);
}

static tess_xxh128 chain_of(const uint8_t *data, int64_t nbytes)
{
    tess_token_chain chain = {{0}};
    for (int64_t done = 0; done < nbytes; done += TESS_TOKEN_BLOCK_NBYTES)
        tess_token_chain_add(&chain, data + done,
                             (size_t)TESS_MIN(nbytes - done, (int64_t)TESS_TOKEN_BLOCK_NBYTES));
    return tess_token_chain_digest(&chain);
}

/* Make every digest fit that can be made to. */
static void forge(uint8_t *bytes, size_t nbytes)
{
    tess_token_file_info info;
    tess_token_section *section[TESS_TOKEN_SECTION_NUMEL];
    tess_xxh128 metadata = tess_xxh128_of(bytes, TESS_TOKEN_AT_HEADER_DIGEST);
    char path[64];
    uint8_t *outside = NULL;
    size_t outside_nbytes = 0;
    memcpy(bytes + TESS_TOKEN_AT_HEADER_DIGEST, metadata.byte, sizeof metadata.byte);
    if (tess_token_header_decode("x", bytes, (int64_t)nbytes, &info, &metadata) != TESS_OK)
        return;
    const int fd = fuzz_file_open(bytes, nbytes, path);
    if (tess_token_metadata_read(fuzz_io(), path, fd, &info, &outside, &outside_nbytes) == TESS_OK)
        metadata = tess_xxh128_of(outside, outside_nbytes);
    tess_free(outside);
    fuzz_file_close(fd);
    tess_token_sections(&info, section);
    for (int i = 0; i < TESS_TOKEN_SECTION_NUMEL; i++)
        section[i]->digest = chain_of(bytes + section[i]->offset_nbytes, section[i]->nbytes);
    tess_token_header_encode(&info, &metadata, bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    static uint8_t forged[FILE_MAX_NBYTES];
    if (nbytes > sizeof forged)
        return 0;
    run(data, nbytes);
    if (nbytes < TESS_TOKEN_FILE_HEADER_NBYTES)
        return 0;
    memcpy(forged, data, nbytes);
    forge(forged, nbytes);
    run(forged, nbytes);
    return 0;
}
