#include "train/data/token_file_priv.h"

#include <string.h>

#include "core/arith.h"
#include "core/memory.h"

static void put_u32(uint8_t *at, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

static void put_i64(uint8_t *at, int64_t value)
{
    for (int i = 0; i < 8; i++)
        at[i] = (uint8_t)((uint64_t)value >> (8 * i));
}

static uint32_t get_u32(const uint8_t *at)
{
    uint32_t value = 0;
    for (int i = 3; i >= 0; i--)
        value = value << 8 | at[i];
    return value;
}

/* Values above 2^63 - 1 come out negative and are refused by the range checks. */
static int64_t get_i64(const uint8_t *at)
{
    return (int64_t)((uint64_t)get_u32(at + 4) << 32 | get_u32(at));
}

void tess_token_chain_add(tess_token_chain *chain, const void *block, size_t nbytes)
{
    const tess_xxh128 of_block = tess_xxh128_of(block, nbytes);
    memcpy(chain->link + TESS_XXH128_NBYTES, of_block.byte, TESS_XXH128_NBYTES);
    const tess_xxh128 next = tess_xxh128_of(chain->link, sizeof chain->link);
    memcpy(chain->link, next.byte, TESS_XXH128_NBYTES);
}

tess_xxh128 tess_token_chain_digest(const tess_token_chain *chain)
{
    tess_xxh128 digest;
    memcpy(digest.byte, chain->link, TESS_XXH128_NBYTES);
    return digest;
}

void tess_token_sections(tess_token_file_info *info,
                         tess_token_section *out[TESS_TOKEN_SECTION_NUMEL])
{
    out[0] = &info->tokens;
    out[1] = &info->doc_offsets;
    out[2] = &info->loss_mask;
    out[3] = &info->sources;
}

tess_xxh128 tess_token_payload_digest(const tess_token_file_info *info)
{
    uint8_t all[3 * TESS_XXH128_NBYTES];
    memcpy(all, info->tokens.digest.byte, TESS_XXH128_NBYTES);
    memcpy(all + TESS_XXH128_NBYTES, info->doc_offsets.digest.byte, TESS_XXH128_NBYTES);
    memcpy(all + 2 * TESS_XXH128_NBYTES, info->loss_mask.digest.byte, TESS_XXH128_NBYTES);
    return tess_xxh128_of(all, sizeof all);
}

void tess_token_header_encode(const tess_token_file_info *info, const tess_xxh128 *metadata,
                              uint8_t header[TESS_TOKEN_FILE_HEADER_NBYTES])
{
    tess_token_file_info copy = *info;
    tess_token_section *section[TESS_TOKEN_SECTION_NUMEL];
    memset(header, 0, TESS_TOKEN_FILE_HEADER_NBYTES);
    memcpy(header + TESS_TOKEN_AT_MAGIC, TESS_TOKEN_MAGIC, 16);
    put_u32(header + TESS_TOKEN_AT_VERSION, TESS_TOKEN_FILE_VERSION);
    put_u32(header + TESS_TOKEN_AT_HEADER_NBYTES, TESS_TOKEN_FILE_HEADER_NBYTES);
    put_i64(header + TESS_TOKEN_AT_FILE_NBYTES, info->file_nbytes);
    put_i64(header + TESS_TOKEN_AT_VOCAB, info->vocab_numel);
    put_i64(header + TESS_TOKEN_AT_TOKENS, info->token_numel);
    put_i64(header + TESS_TOKEN_AT_DOCUMENTS, info->document_numel);
    put_i64(header + TESS_TOKEN_AT_LOSS_TOKENS, info->loss_token_numel);
    put_u32(header + TESS_TOKEN_AT_TOKEN_NBYTES, (uint32_t)info->token_nbytes);
    put_u32(header + TESS_TOKEN_AT_FLAGS, info->has_mask ? 1 : 0);
    memcpy(header + TESS_TOKEN_AT_TOKENIZER, info->tokenizer.byte, TESS_SHA256_NBYTES);
    tess_token_sections(&copy, section);
    for (int i = 0; i < TESS_TOKEN_SECTION_NUMEL; i++) {
        uint8_t *at = header + TESS_TOKEN_AT_SECTIONS + 32 * i;
        put_i64(at, section[i]->offset_nbytes);
        put_i64(at + 8, section[i]->nbytes);
        memcpy(at + 16, section[i]->digest.byte, TESS_XXH128_NBYTES);
    }
    memcpy(header + TESS_TOKEN_AT_METADATA_DIGEST, metadata->byte, TESS_XXH128_NBYTES);
    const tess_xxh128 digest = tess_xxh128_of(header, TESS_TOKEN_AT_HEADER_DIGEST);
    memcpy(header + TESS_TOKEN_AT_HEADER_DIGEST, digest.byte, TESS_XXH128_NBYTES);
}

tess_status tess_token_sections_sorted(const char *path, const tess_token_file_info *info,
                                       tess_token_section *out, int *numel)
{
    tess_token_file_info copy = *info;
    tess_token_section *section[TESS_TOKEN_SECTION_NUMEL];
    int n = 0;
    tess_token_sections(&copy, section);
    for (int i = 0; i < TESS_TOKEN_SECTION_NUMEL; i++) {
        if (section[i]->nbytes == 0)
            continue;
        int at = n++;
        for (; at > 0 && out[at - 1].offset_nbytes > section[i]->offset_nbytes; at--)
            out[at] = out[at - 1];
        out[at] = *section[i];
    }
    int64_t end = TESS_TOKEN_FILE_HEADER_NBYTES;
    for (int i = 0; i < n; i++) {
        TESS_CHECK(out[i].offset_nbytes >= end && out[i].nbytes > 0 &&
                       out[i].nbytes <= info->file_nbytes &&
                       out[i].offset_nbytes <= info->file_nbytes - out[i].nbytes,
                   TESS_E_FORMAT,
                   "token file '%s': section of %" PRId64 " bytes at %" PRId64
                   " overlaps what ends at %" PRId64 " or leaves the file of %" PRId64
                   " bytes; tokenize again",
                   path, out[i].nbytes, out[i].offset_nbytes, end, info->file_nbytes);
        end = out[i].offset_nbytes + out[i].nbytes;
    }
    *numel = n;
    return TESS_OK;
}

static tess_status check_counts(const char *path, const tess_token_file_info *info)
{
    TESS_CHECK(info->vocab_numel >= 1 && info->vocab_numel <= INT32_MAX, TESS_E_FORMAT,
               "token file '%s': field vocab_numel is %" PRId64 ", expected 1 .. 2147483647", path,
               info->vocab_numel);
    const size_t token_nbytes = info->vocab_numel <= 65536 ? 2 : 4;
    TESS_CHECK(info->token_nbytes == token_nbytes, TESS_E_FORMAT,
               "token file '%s': field token_nbytes is %zu, expected %zu for a vocabulary of "
               "%" PRId64,
               path, info->token_nbytes, token_nbytes, info->vocab_numel);
    TESS_CHECK(info->token_numel >= 1 && info->token_numel <= info->file_nbytes / 2, TESS_E_FORMAT,
               "token file '%s': field token_numel is %" PRId64 ", the file has %" PRId64 " bytes",
               path, info->token_numel, info->file_nbytes);
    TESS_CHECK(info->document_numel >= 1 && info->document_numel <= info->token_numel,
               TESS_E_FORMAT,
               "token file '%s': field document_numel is %" PRId64 ", expected 1 .. %" PRId64, path,
               info->document_numel, info->token_numel);
    TESS_CHECK(info->loss_token_numel >= 0 && info->loss_token_numel <= info->token_numel &&
                   (info->has_mask || info->loss_token_numel == info->token_numel),
               TESS_E_FORMAT,
               "token file '%s': field loss_token_numel is %" PRId64 " of %" PRId64 " tokens %s",
               path, info->loss_token_numel, info->token_numel,
               info->has_mask ? "with a mask" : "without a mask");
    return TESS_OK;
}

static tess_status check_section(const char *path, const char *name, int64_t found,
                                 int64_t expected)
{
    TESS_CHECK(found == expected, TESS_E_FORMAT,
               "token file '%s': section %s has %" PRId64 " bytes, expected %" PRId64
               " by its counts; tokenize again",
               path, name, found, expected);
    return TESS_OK;
}

/* An absent section is all zero: its digest is part of the identity of the data. */
static tess_status check_absent(const char *path, const tess_token_file_info *info)
{
    static const tess_token_section zero;
    tess_token_file_info copy = *info;
    tess_token_section *section[TESS_TOKEN_SECTION_NUMEL];
    tess_token_sections(&copy, section);
    for (int i = 0; i < TESS_TOKEN_SECTION_NUMEL; i++)
        TESS_CHECK(section[i]->nbytes != 0 || memcmp(section[i], &zero, sizeof zero) == 0,
                   TESS_E_FORMAT,
                   "token file '%s': section %d is absent, but has an offset or a digest", path, i);
    return TESS_OK;
}

static tess_status check_sections(const char *path, const tess_token_file_info *info)
{
    tess_token_section sorted[TESS_TOKEN_SECTION_NUMEL];
    int numel = 0;
    TESS_TRY(check_absent(path, info));
    /* Counts are at most half the bytes of a real file, so these products cannot overflow. */
    TESS_TRY(check_section(path, "tokens", info->tokens.nbytes,
                           info->token_numel * (int64_t)info->token_nbytes));
    TESS_TRY(check_section(path, "doc_offsets", info->doc_offsets.nbytes,
                           (info->document_numel + 1) * 8));
    TESS_TRY(check_section(path, "loss_mask", info->loss_mask.nbytes,
                           info->has_mask ? info->token_numel : 0));
    TESS_CHECK(info->sources.nbytes >= 0, TESS_E_FORMAT,
               "token file '%s': section sources has %" PRId64 " bytes", path,
               info->sources.nbytes);
    TESS_TRY(tess_token_sections_sorted(path, info, sorted, &numel));
    int64_t outside = info->file_nbytes - TESS_TOKEN_FILE_HEADER_NBYTES;
    for (int i = 0; i < numel; i++)
        outside -= sorted[i].nbytes;
    TESS_CHECK(outside <= TESS_TOKEN_METADATA_NBYTES_LIMIT, TESS_E_FORMAT,
               "token file '%s': %" PRId64 " bytes belong to no section, at most %d are expected",
               path, outside, TESS_TOKEN_METADATA_NBYTES_LIMIT);
    return TESS_OK;
}

static void decode_fields(const uint8_t *header, tess_token_file_info *info)
{
    tess_token_section *section[TESS_TOKEN_SECTION_NUMEL];
    info->vocab_numel = get_i64(header + TESS_TOKEN_AT_VOCAB);
    info->token_numel = get_i64(header + TESS_TOKEN_AT_TOKENS);
    info->document_numel = get_i64(header + TESS_TOKEN_AT_DOCUMENTS);
    info->loss_token_numel = get_i64(header + TESS_TOKEN_AT_LOSS_TOKENS);
    info->token_nbytes = get_u32(header + TESS_TOKEN_AT_TOKEN_NBYTES);
    info->has_mask = (get_u32(header + TESS_TOKEN_AT_FLAGS) & 1) != 0;
    memcpy(info->tokenizer.byte, header + TESS_TOKEN_AT_TOKENIZER, TESS_SHA256_NBYTES);
    tess_token_sections(info, section);
    for (int i = 0; i < TESS_TOKEN_SECTION_NUMEL; i++) {
        const uint8_t *at = header + TESS_TOKEN_AT_SECTIONS + 32 * i;
        section[i]->offset_nbytes = get_i64(at);
        section[i]->nbytes = get_i64(at + 8);
        memcpy(section[i]->digest.byte, at + 16, TESS_XXH128_NBYTES);
    }
}

tess_status tess_token_header_decode(const char *path,
                                     const uint8_t header[TESS_TOKEN_FILE_HEADER_NBYTES],
                                     int64_t file_nbytes, tess_token_file_info *info,
                                     tess_xxh128 *metadata)
{
    tess_token_file_info found = {.file_nbytes = file_nbytes};
    TESS_CHECK(memcmp(header + TESS_TOKEN_AT_MAGIC, TESS_TOKEN_MAGIC, 15) == 0, TESS_E_FORMAT,
               "'%s' is not a token file: expected '%s' at byte 0; make one with `tessera "
               "tokenize` (HDF5 files that Tessera did not write are refused)",
               path, TESS_TOKEN_MAGIC);
    const uint32_t version = get_u32(header + TESS_TOKEN_AT_VERSION);
    TESS_CHECK(version == TESS_TOKEN_FILE_VERSION && header[15] == '1', TESS_E_FORMAT,
               "token file '%s': format version %u, this program reads version %d; tokenize again",
               path, version, TESS_TOKEN_FILE_VERSION);
    const tess_xxh128 digest = tess_xxh128_of(header, TESS_TOKEN_AT_HEADER_DIGEST);
    TESS_CHECK(
        memcmp(digest.byte, header + TESS_TOKEN_AT_HEADER_DIGEST, TESS_XXH128_NBYTES) == 0,
        TESS_E_FORMAT,
        "token file '%s': user block (bytes 0 .. 511) does not match its digest; the file is "
        "damaged, tokenize again",
        path);
    TESS_CHECK(get_u32(header + TESS_TOKEN_AT_HEADER_NBYTES) == TESS_TOKEN_FILE_HEADER_NBYTES,
               TESS_E_FORMAT, "token file '%s': field header_nbytes is %u, expected %d", path,
               get_u32(header + TESS_TOKEN_AT_HEADER_NBYTES), TESS_TOKEN_FILE_HEADER_NBYTES);
    const int64_t declared = get_i64(header + TESS_TOKEN_AT_FILE_NBYTES);
    TESS_CHECK(declared == file_nbytes, TESS_E_FORMAT,
               "token file '%s': %" PRId64 " bytes, expected %" PRId64
               " (field file_nbytes); the file is truncated or extended",
               path, file_nbytes, declared);
    TESS_CHECK(get_u32(header + TESS_TOKEN_AT_FLAGS) <= 1, TESS_E_FORMAT,
               "token file '%s': field flags is %u, expected 0 or 1", path,
               get_u32(header + TESS_TOKEN_AT_FLAGS));
    decode_fields(header, &found);
    TESS_TRY(check_counts(path, &found));
    TESS_TRY(check_sections(path, &found));
    found.payload_digest = tess_token_payload_digest(&found);
    memcpy(metadata->byte, header + TESS_TOKEN_AT_METADATA_DIGEST, TESS_XXH128_NBYTES);
    *info = found;
    return TESS_OK;
}

tess_status tess_token_metadata_read(tess_io *io, const char *path, int fd,
                                     const tess_token_file_info *info, uint8_t **bytes,
                                     size_t *nbytes)
{
    tess_token_section sorted[TESS_TOKEN_SECTION_NUMEL + 1];
    int numel = 0;
    TESS_TRY(tess_token_sections_sorted(path, info, sorted, &numel));
    sorted[numel] = (tess_token_section){.offset_nbytes = info->file_nbytes};
    int64_t total = info->file_nbytes - TESS_TOKEN_FILE_HEADER_NBYTES;
    for (int i = 0; i < numel; i++)
        total -= sorted[i].nbytes;
    void *room = NULL;
    TESS_TRY(tess_alloc((size_t)total + 1, &room));
    int64_t end = TESS_TOKEN_FILE_HEADER_NBYTES;
    size_t done = 0;
    tess_status st = TESS_OK;
    for (int i = 0; i <= numel && st == TESS_OK; i++) {
        const size_t gap = (size_t)(sorted[i].offset_nbytes - end);
        if (gap > 0)
            st = tess_io_pread(io, path, fd, (uint8_t *)room + done, gap, end);
        done += gap;
        end = sorted[i].offset_nbytes + sorted[i].nbytes;
    }
    if (st != TESS_OK) {
        tess_free(room);
        return st;
    }
    *bytes = room;
    *nbytes = (size_t)total;
    return TESS_OK;
}
