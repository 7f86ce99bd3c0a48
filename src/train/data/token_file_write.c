#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "train/data/token_file_priv.h"

/* A section on its way: whole blocks go to a spool file, digests are chained as they leave. */
typedef struct spool {
    char *path;
    int fd;
    uint8_t *block; /* [TESS_TOKEN_BLOCK_NBYTES] */
    size_t filled_nbytes;
    int64_t written_nbytes;
    tess_token_chain chain;
} spool;

struct tess_token_writer {
    tess_ctx ctx;
    char *path, *hdf5_path, *final_path;
    bool has_final;
    tess_token_file_info info;
    spool tokens, mask;
    int64_t *doc_offset; /* [document_numel + 1] */
    int64_t doc_room_numel;
    char *sources;
    size_t sources_nbytes;
};

static tess_status spool_open(tess_io *io, const char *path, const char *suffix, spool *s)
{
    void *block = NULL;
    s->fd = -1;
    TESS_TRY(tess_asprintf(&s->path, "%s.%s.tmp", path, suffix));
    TESS_TRY(tess_alloc(TESS_TOKEN_BLOCK_NBYTES, &block));
    s->block = block;
    TESS_TRY(tess_io_unlink(io, s->path, true));
    return tess_io_open_new(io, s->path, &s->fd);
}

static tess_status spool_flush(tess_io *io, spool *s)
{
    if (s->filled_nbytes == 0)
        return TESS_OK;
    tess_token_chain_add(&s->chain, s->block, s->filled_nbytes);
    TESS_TRY(tess_io_pwrite(io, s->path, s->fd, s->block, s->filled_nbytes, s->written_nbytes));
    s->written_nbytes += (int64_t)s->filled_nbytes;
    s->filled_nbytes = 0;
    return TESS_OK;
}

static void spool_close(tess_io *io, spool *s)
{
    if (s->fd >= 0)
        (void)!tess_io_close(io, s->path, &s->fd);
    if (s->path != NULL)
        (void)!tess_io_unlink(io, s->path, true);
    tess_free(s->path);
    tess_free(s->block);
    *s = (spool){.fd = -1};
}

static tess_status writer_open(tess_token_writer *w, const char *path)
{
    void *offsets = NULL;
    TESS_TRY(tess_strdup(path, &w->path));
    TESS_TRY(tess_asprintf(&w->hdf5_path, "%s.hdf5.tmp", path));
    TESS_TRY(tess_asprintf(&w->final_path, "%s.tmp", path));
    TESS_TRY(tess_alloc_array(1024, sizeof(int64_t), &offsets));
    w->doc_offset = offsets;
    w->doc_room_numel = 1024;
    TESS_TRY(spool_open(w->ctx.io, path, "tokens", &w->tokens));
    return spool_open(w->ctx.io, path, "mask", &w->mask);
}

tess_status tess_token_writer_create(const tess_ctx *ctx, const char *path, int64_t vocab_numel,
                                     const tess_sha256 *tokenizer, tess_token_writer **out)
{
    void *object = NULL;
    TESS_CHECK(vocab_numel >= 1 && vocab_numel <= INT32_MAX, TESS_E_ARG,
               "token file '%s': vocabulary of %" PRId64 ", expected 1 .. 2147483647", path,
               vocab_numel);
    TESS_TRY(tess_alloc(sizeof(tess_token_writer), &object));
    tess_token_writer *w = object;
    w->ctx = *ctx;
    w->tokens.fd = w->mask.fd = -1;
    w->info.vocab_numel = vocab_numel;
    w->info.token_nbytes = vocab_numel <= 65536 ? 2 : 4;
    w->info.tokenizer = *tokenizer;
    const tess_status st = writer_open(w, path);
    if (st != TESS_OK) {
        tess_token_writer_destroy(&w);
        return st;
    }
    *out = w;
    return TESS_OK;
}

static tess_status grow_offsets(tess_token_writer *w)
{
    if (w->info.document_numel + 2 <= w->doc_room_numel)
        return TESS_OK;
    void *grown = w->doc_offset;
    TESS_TRY(tess_realloc_array(w->doc_room_numel, w->doc_room_numel * 2, sizeof(int64_t), &grown));
    w->doc_offset = grown;
    w->doc_room_numel *= 2;
    return TESS_OK;
}

tess_status tess_token_writer_add(tess_token_writer *w, const int32_t *id, const uint8_t *mask,
                                  int64_t numel)
{
    TESS_CHECK(numel >= 1, TESS_E_ARG, "token file '%s': document of %" PRId64 " tokens", w->path,
               numel);
    for (int64_t i = 0; i < numel; i++)
        TESS_CHECK(id[i] >= 0 && id[i] < w->info.vocab_numel, TESS_E_RANGE,
                   "token file '%s': id %d at place %" PRId64 " of document %" PRId64
                   ", the vocabulary has %" PRId64 " ids",
                   w->path, id[i], i, w->info.document_numel, w->info.vocab_numel);
    TESS_TRY(grow_offsets(w));
    for (int64_t i = 0; i < numel; i++) {
        const uint8_t counts = mask == NULL || mask[i] != 0;
        for (size_t b = 0; b < w->info.token_nbytes; b++)
            w->tokens.block[w->tokens.filled_nbytes++] = (uint8_t)((uint32_t)id[i] >> (8 * b));
        w->mask.block[w->mask.filled_nbytes++] = counts;
        w->info.loss_token_numel += counts;
        if (w->tokens.filled_nbytes == TESS_TOKEN_BLOCK_NBYTES)
            TESS_TRY(spool_flush(w->ctx.io, &w->tokens));
        if (w->mask.filled_nbytes == TESS_TOKEN_BLOCK_NBYTES)
            TESS_TRY(spool_flush(w->ctx.io, &w->mask));
    }
    w->info.token_numel += numel;
    w->doc_offset[++w->info.document_numel] = w->info.token_numel;
    return TESS_OK;
}

/* JSON string body: quotes, backslashes and control characters escaped; other bytes as they are. */
static tess_status json_escape(const char *text, char **out)
{
    void *room = NULL;
    TESS_TRY(tess_alloc(6 * strlen(text) + 1, &room));
    char *at = room;
    for (const char *p = text; *p; p++) {
        const unsigned char c = (unsigned char)*p;
        if (c == '"' || c == '\\' || c < 0x20)
            at += snprintf(at, 7, "\\u%04x", c);
        else
            *at++ = *p;
    }
    *out = room;
    return TESS_OK;
}

tess_status tess_token_writer_add_source(tess_token_writer *w, const char *name, int64_t nbytes,
                                         const tess_sha256 *digest)
{
    char hex[TESS_SHA256_HEX_NBYTES], *escaped = NULL, *joined = NULL;
    tess_hex(digest->byte, TESS_SHA256_NBYTES, hex);
    TESS_TRY(json_escape(name, &escaped));
    const tess_status st = tess_asprintf(
        &joined, "%s{\"name\": \"%s\", \"nbytes\": %" PRId64 ", \"sha256\": \"%s\"}\n",
        w->sources != NULL ? w->sources : "", escaped, nbytes, hex);
    tess_free(escaped);
    TESS_TRY(st);
    tess_free(w->sources);
    w->sources = joined;
    w->sources_nbytes = strlen(joined);
    return TESS_OK;
}

static tess_xxh128 digest_of_memory(const void *data, size_t nbytes)
{
    tess_token_chain chain = {{0}};
    const uint8_t *at = data;
    for (size_t done = 0; done < nbytes; done += TESS_TOKEN_BLOCK_NBYTES)
        tess_token_chain_add(&chain, at + done,
                             TESS_MIN(nbytes - done, (size_t)TESS_TOKEN_BLOCK_NBYTES));
    return tess_token_chain_digest(&chain);
}

static void describe_sections(tess_token_writer *w)
{
    tess_token_file_info *info = &w->info;
    info->has_mask = info->loss_token_numel != info->token_numel;
    info->tokens.nbytes = w->tokens.written_nbytes;
    info->tokens.digest = tess_token_chain_digest(&w->tokens.chain);
    info->doc_offsets.nbytes = (info->document_numel + 1) * 8;
    info->doc_offsets.digest =
        digest_of_memory(w->doc_offset, (size_t)(info->document_numel + 1) * 8);
    info->loss_mask.nbytes = info->has_mask ? w->mask.written_nbytes : 0;
    if (info->has_mask)
        info->loss_mask.digest = tess_token_chain_digest(&w->mask.chain);
    info->sources.nbytes = (int64_t)w->sources_nbytes;
    if (w->sources_nbytes > 0)
        info->sources.digest = digest_of_memory(w->sources, w->sources_nbytes);
    info->payload_digest = tess_token_payload_digest(info);
}

static tess_status copy_spool(tess_token_writer *w, spool *s, const tess_token_section *section,
                              int fd)
{
    for (int64_t done = 0; done < section->nbytes; done += TESS_TOKEN_BLOCK_NBYTES) {
        const size_t nbytes =
            (size_t)TESS_MIN(section->nbytes - done, (int64_t)TESS_TOKEN_BLOCK_NBYTES);
        TESS_TRY(tess_io_pread(w->ctx.io, s->path, s->fd, s->block, nbytes, done));
        TESS_TRY(tess_io_pwrite(w->ctx.io, w->final_path, fd, s->block, nbytes,
                                section->offset_nbytes + done));
    }
    return TESS_OK;
}

/* Write what HDF5 put around the sections to the same places of the final file. */
static tess_status copy_metadata(tess_token_writer *w, const uint8_t *bytes, int fd)
{
    tess_token_section sorted[TESS_TOKEN_SECTION_NUMEL + 1];
    int numel = 0;
    TESS_TRY(tess_token_sections_sorted(w->path, &w->info, sorted, &numel));
    sorted[numel] = (tess_token_section){.offset_nbytes = w->info.file_nbytes};
    int64_t end = TESS_TOKEN_FILE_HEADER_NBYTES;
    size_t done = 0;
    for (int i = 0; i <= numel; i++) {
        const size_t gap = (size_t)(sorted[i].offset_nbytes - end);
        if (gap > 0)
            TESS_TRY(tess_io_pwrite(w->ctx.io, w->final_path, fd, bytes + done, gap, end));
        done += gap;
        end = sorted[i].offset_nbytes + sorted[i].nbytes;
    }
    return TESS_OK;
}

static tess_status lay_out(tess_token_writer *w, uint8_t **metadata, size_t *nbytes)
{
    int fd = -1;
    TESS_TRY(tess_io_unlink(w->ctx.io, w->hdf5_path, true));
    TESS_TRY(tess_token_hdf5_create(w->hdf5_path, &w->info));
    TESS_TRY(tess_io_open_read(w->ctx.io, w->hdf5_path, false, &fd, &w->info.file_nbytes));
    tess_status st =
        tess_token_metadata_read(w->ctx.io, w->hdf5_path, fd, &w->info, metadata, nbytes);
    if (st == TESS_OK)
        st = tess_io_close(w->ctx.io, w->hdf5_path, &fd);
    else
        (void)!tess_io_close(w->ctx.io, w->hdf5_path, &fd);
    return st;
}

static tess_status write_final(tess_token_writer *w, const uint8_t *metadata, size_t nbytes, int fd)
{
    tess_io *io = w->ctx.io;
    uint8_t header[TESS_TOKEN_FILE_HEADER_NBYTES];
    const tess_xxh128 digest = tess_xxh128_of(metadata, nbytes);
    TESS_TRY(copy_metadata(w, metadata, fd));
    TESS_TRY(copy_spool(w, &w->tokens, &w->info.tokens, fd));
    TESS_TRY(copy_spool(w, &w->mask, &w->info.loss_mask, fd));
    TESS_TRY(tess_io_pwrite(io, w->final_path, fd, w->doc_offset,
                            (size_t)w->info.doc_offsets.nbytes, w->info.doc_offsets.offset_nbytes));
    if (w->sources_nbytes > 0)
        TESS_TRY(tess_io_pwrite(io, w->final_path, fd, w->sources, w->sources_nbytes,
                                w->info.sources.offset_nbytes));
    tess_token_header_encode(&w->info, &digest, header);
    TESS_TRY(tess_io_pwrite(io, w->final_path, fd, header, sizeof header, 0));
    return tess_io_fsync(io, w->final_path, fd);
}

static tess_status commit(tess_token_writer *w)
{
    char *folder = NULL;
    TESS_TRY(tess_io_rename(w->ctx.io, w->final_path, w->path));
    w->has_final = false;
    TESS_TRY(tess_strdup(w->path, &folder));
    char *slash = strrchr(folder, '/');
    if (slash != NULL)
        slash[slash == folder] = '\0';
    const tess_status st = tess_io_fsync_dir(w->ctx.io, slash != NULL ? folder : ".");
    tess_free(folder);
    return st;
}

tess_status tess_token_writer_finish(tess_token_writer *w, tess_token_file_info *info)
{
    uint8_t *metadata = NULL;
    size_t nbytes = 0;
    int fd = -1;
    TESS_CHECK(w->info.document_numel > 0, TESS_E_ARG,
               "token file '%s': no document was added; check the inputs", w->path);
    TESS_TRY(spool_flush(w->ctx.io, &w->tokens));
    TESS_TRY(spool_flush(w->ctx.io, &w->mask));
    describe_sections(w);
    tess_status st = lay_out(w, &metadata, &nbytes);
    if (st == TESS_OK)
        st = tess_io_unlink(w->ctx.io, w->final_path, true);
    if (st == TESS_OK)
        st = tess_io_open_new(w->ctx.io, w->final_path, &fd);
    w->has_final = fd >= 0;
    if (st == TESS_OK)
        st = write_final(w, metadata, nbytes, fd);
    tess_free(metadata);
    if (st == TESS_OK)
        st = tess_io_close(w->ctx.io, w->final_path, &fd);
    else if (fd >= 0)
        (void)!tess_io_close(w->ctx.io, w->final_path, &fd);
    if (st == TESS_OK)
        st = commit(w);
    TESS_TRY(st);
    if (info != NULL)
        *info = w->info;
    return TESS_OK;
}

void tess_token_writer_destroy(tess_token_writer **writer)
{
    tess_token_writer *w = *writer;
    if (w == NULL)
        return;
    spool_close(w->ctx.io, &w->tokens);
    spool_close(w->ctx.io, &w->mask);
    if (w->hdf5_path != NULL)
        (void)!tess_io_unlink(w->ctx.io, w->hdf5_path, true);
    if (w->has_final)
        (void)!tess_io_unlink(w->ctx.io, w->final_path, true);
    tess_free(w->path);
    tess_free(w->hdf5_path);
    tess_free(w->final_path);
    tess_free(w->doc_offset);
    tess_free(w->sources);
    tess_free(w);
    *writer = NULL;
}
