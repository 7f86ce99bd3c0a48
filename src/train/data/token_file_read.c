#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "train/data/token_file_priv.h"

struct tess_token_file {
    tess_ctx ctx;
    char *path;
    int fd;
    tess_token_file_info info;
    int64_t *doc_offset; /* [document_numel + 1] */
};

const tess_token_file_info *tess_token_file_get_info(const tess_token_file *file)
{
    return &file->info;
}

const char *tess_token_file_path(const tess_token_file *file) { return file->path; }

const int64_t *tess_token_file_doc_offsets(const tess_token_file *file) { return file->doc_offset; }

/* Read a section of moderate size and compare its digest. */
static tess_status read_section(const tess_token_file *file, const char *name,
                                const tess_token_section *section, void *dst)
{
    tess_token_chain chain = {{0}};
    uint8_t *at = dst;
    TESS_TRY(tess_io_pread(file->ctx.io, file->path, file->fd, dst, (size_t)section->nbytes,
                           section->offset_nbytes));
    for (int64_t done = 0; done < section->nbytes; done += TESS_TOKEN_BLOCK_NBYTES)
        tess_token_chain_add(
            &chain, at + done,
            (size_t)TESS_MIN(section->nbytes - done, (int64_t)TESS_TOKEN_BLOCK_NBYTES));
    const tess_xxh128 digest = tess_token_chain_digest(&chain);
    TESS_CHECK(memcmp(digest.byte, section->digest.byte, TESS_XXH128_NBYTES) == 0, TESS_E_FORMAT,
               "token file '%s': section %s does not match its digest; the file is damaged, "
               "tokenize again",
               file->path, name);
    return TESS_OK;
}

static tess_status check_metadata(const tess_token_file *file, const tess_xxh128 *expected)
{
    uint8_t *bytes = NULL;
    size_t nbytes = 0;
    TESS_TRY(
        tess_token_metadata_read(file->ctx.io, file->path, file->fd, &file->info, &bytes, &nbytes));
    const tess_xxh128 digest = tess_xxh128_of(bytes, nbytes);
    tess_free(bytes);
    TESS_CHECK(memcmp(digest.byte, expected->byte, TESS_XXH128_NBYTES) == 0, TESS_E_FORMAT,
               "token file '%s': HDF5 metadata does not match its digest; the file was changed "
               "by another program, tokenize again",
               file->path);
    return TESS_OK;
}

static tess_status load_offsets(tess_token_file *file)
{
    void *offsets = NULL;
    const int64_t numel = file->info.document_numel;
    TESS_TRY(tess_alloc_array(numel + 1, sizeof(int64_t), &offsets));
    file->doc_offset = offsets;
    TESS_TRY(read_section(file, "doc_offsets", &file->info.doc_offsets, offsets));
    TESS_CHECK(file->doc_offset[0] == 0, TESS_E_FORMAT,
               "token file '%s': doc_offsets[0] is %" PRId64 ", expected 0", file->path,
               file->doc_offset[0]);
    for (int64_t i = 0; i < numel; i++)
        TESS_CHECK(file->doc_offset[i + 1] > file->doc_offset[i], TESS_E_FORMAT,
                   "token file '%s': doc_offsets[%" PRId64 "] is %" PRId64
                   ", expected more than %" PRId64,
                   file->path, i + 1, file->doc_offset[i + 1], file->doc_offset[i]);
    TESS_CHECK(file->doc_offset[numel] == file->info.token_numel, TESS_E_FORMAT,
               "token file '%s': doc_offsets ends at %" PRId64 ", expected %" PRId64 " tokens",
               file->path, file->doc_offset[numel], file->info.token_numel);
    return TESS_OK;
}

static tess_status open_file(tess_token_file *file, const char *path)
{
    uint8_t header[TESS_TOKEN_FILE_HEADER_NBYTES];
    tess_xxh128 metadata;
    int64_t file_nbytes = 0;
    TESS_TRY(tess_strdup(path, &file->path));
    TESS_TRY(tess_io_open_read(file->ctx.io, path, true, &file->fd, &file_nbytes));
    TESS_CHECK(file_nbytes >= TESS_TOKEN_FILE_HEADER_NBYTES, TESS_E_FORMAT,
               "'%s' is not a token file: %" PRId64 " bytes, at least %d are expected", path,
               file_nbytes, TESS_TOKEN_FILE_HEADER_NBYTES);
    TESS_TRY(tess_io_pread(file->ctx.io, path, file->fd, header, sizeof header, 0));
    TESS_TRY(tess_token_header_decode(path, header, file_nbytes, &file->info, &metadata));
    TESS_TRY(check_metadata(file, &metadata));
    return load_offsets(file);
}

tess_status tess_token_file_open(const tess_ctx *ctx, const char *path, tess_token_file **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_token_file), &object));
    tess_token_file *file = object;
    file->ctx = *ctx;
    file->fd = -1;
    const tess_status st = open_file(file, path);
    if (st != TESS_OK) {
        tess_token_file_close(&file);
        return st;
    }
    *out = file;
    return TESS_OK;
}

void tess_token_file_close(tess_token_file **file)
{
    tess_token_file *f = *file;
    if (f == NULL)
        return;
    if (f->fd >= 0)
        (void)!tess_io_close(f->ctx.io, f->path, &f->fd);
    tess_free(f->path);
    tess_free(f->doc_offset);
    tess_free(f);
    *file = NULL;
}

tess_status tess_token_file_read_sources(const tess_token_file *file, char **text)
{
    void *room = NULL;
    TESS_TRY(tess_alloc((size_t)file->info.sources.nbytes + 1, &room));
    const tess_status st = file->info.sources.nbytes > 0
                               ? read_section(file, "sources", &file->info.sources, room)
                               : TESS_OK;
    if (st != TESS_OK) {
        tess_free(room);
        return st;
    }
    *text = room;
    return TESS_OK;
}

static tess_status check_range(const tess_token_file *file, int64_t first_idx, int64_t numel)
{
    TESS_CHECK(first_idx >= 0 && numel >= 0 && first_idx <= file->info.token_numel - numel,
               TESS_E_RANGE,
               "token file '%s': tokens %" PRId64 " + %" PRId64 " asked for, it has %" PRId64,
               file->path, first_idx, numel, file->info.token_numel);
    return TESS_OK;
}

tess_status tess_token_file_read_mask(const tess_token_file *file, int64_t first_idx, int64_t numel,
                                      uint8_t *mask)
{
    TESS_TRY(check_range(file, first_idx, numel));
    if (!file->info.has_mask) {
        memset(mask, 1, (size_t)numel);
        return TESS_OK;
    }
    TESS_TRY(tess_io_pread(file->ctx.io, file->path, file->fd, mask, (size_t)numel,
                           file->info.loss_mask.offset_nbytes + first_idx));
    for (int64_t i = 0; i < numel; i++)
        TESS_CHECK(mask[i] <= 1, TESS_E_FORMAT,
                   "token file '%s': loss_mask[%" PRId64 "] is %d, expected 0 or 1", file->path,
                   first_idx + i, mask[i]);
    return TESS_OK;
}

tess_status tess_token_file_read(const tess_token_file *file, int64_t first_idx, int64_t numel,
                                 int32_t *tokens, uint8_t *mask)
{
    TESS_TRY(check_range(file, first_idx, numel));
    const size_t elem = file->info.token_nbytes;
    /* Stored ids go to the end of the destination and are widened in place from the front: entry i
     * is written at byte 4i, entry i + 1 waits at or behind byte 4i + 4. */
    uint8_t *raw = (uint8_t *)tokens + (sizeof(int32_t) - elem) * (size_t)numel;
    TESS_TRY(tess_io_pread(file->ctx.io, file->path, file->fd, raw, elem * (size_t)numel,
                           file->info.tokens.offset_nbytes + first_idx * (int64_t)elem));
    for (int64_t i = 0; i < numel; i++) {
        uint32_t id = 0;
        for (size_t b = 0; b < elem; b++)
            id |= (uint32_t)raw[(size_t)i * elem + b] << (8 * b);
        TESS_CHECK(id < (uint64_t)file->info.vocab_numel, TESS_E_FORMAT,
                   "token file '%s': tokens[%" PRId64 "] is %u, the vocabulary has %" PRId64
                   " ids; the file is damaged, tokenize again",
                   file->path, first_idx + i, id, file->info.vocab_numel);
        tokens[i] = (int32_t)id;
    }
    return mask != NULL ? tess_token_file_read_mask(file, first_idx, numel, mask) : TESS_OK;
}

/* One pass over tokens and masks in blocks: digests, ids, masks and the count of loss tokens. */
static tess_status verify_payload(const tess_token_file *file, uint8_t *block, int32_t *tokens)
{
    const tess_token_file_info *info = &file->info;
    tess_token_chain chain = {{0}};
    for (int64_t done = 0; done < info->tokens.nbytes; done += TESS_TOKEN_BLOCK_NBYTES) {
        const size_t nbytes =
            (size_t)TESS_MIN(info->tokens.nbytes - done, (int64_t)TESS_TOKEN_BLOCK_NBYTES);
        TESS_TRY(tess_io_pread(file->ctx.io, file->path, file->fd, block, nbytes,
                               info->tokens.offset_nbytes + done));
        tess_token_chain_add(&chain, block, nbytes);
        TESS_TRY(tess_token_file_read(file, done / (int64_t)info->token_nbytes,
                                      (int64_t)(nbytes / info->token_nbytes), tokens, NULL));
    }
    tess_xxh128 digest = tess_token_chain_digest(&chain);
    TESS_CHECK(memcmp(digest.byte, info->tokens.digest.byte, TESS_XXH128_NBYTES) == 0,
               TESS_E_FORMAT,
               "token file '%s': section tokens does not match its digest; the file is damaged, "
               "tokenize again",
               file->path);
    if (!info->has_mask)
        return TESS_OK;
    int64_t loss_numel = 0;
    chain = (tess_token_chain){{0}};
    for (int64_t done = 0; done < info->token_numel; done += TESS_TOKEN_BLOCK_NBYTES) {
        const int64_t numel = TESS_MIN(info->token_numel - done, (int64_t)TESS_TOKEN_BLOCK_NBYTES);
        TESS_TRY(tess_token_file_read_mask(file, done, numel, block));
        tess_token_chain_add(&chain, block, (size_t)numel);
        for (int64_t i = 0; i < numel; i++)
            loss_numel += block[i];
    }
    digest = tess_token_chain_digest(&chain);
    TESS_CHECK(memcmp(digest.byte, info->loss_mask.digest.byte, TESS_XXH128_NBYTES) == 0,
               TESS_E_FORMAT,
               "token file '%s': section loss_mask does not match its digest; the file is "
               "damaged, tokenize again",
               file->path);
    TESS_CHECK(loss_numel == info->loss_token_numel, TESS_E_FORMAT,
               "token file '%s': %" PRId64 " masks are 1, field loss_token_numel says %" PRId64,
               file->path, loss_numel, info->loss_token_numel);
    return TESS_OK;
}

tess_status tess_token_file_verify(const tess_token_file *file)
{
    void *block = NULL, *tokens = NULL;
    char *sources = NULL;
    tess_status st = tess_alloc(TESS_TOKEN_BLOCK_NBYTES, &block);
    if (st == TESS_OK)
        st = tess_alloc_array(TESS_TOKEN_BLOCK_NBYTES / 2, sizeof(int32_t), &tokens);
    if (st == TESS_OK)
        st = verify_payload(file, block, tokens);
    if (st == TESS_OK)
        st = tess_token_file_read_sources(file, &sources);
    tess_free(sources);
    tess_free(tokens);
    tess_free(block);
    return st;
}
