#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "format/json.h"
#include "train/data/codes_file_priv.h"

enum { DIGEST_HEX_NBYTES = 2 * TESS_XXH128_NBYTES + 1 };

static const char *const order_name[TESS_CODES_ORDER_NUMEL] = {
#define X(name, text) [TESS_CODES_##name] = text,
    TESS_CODES_ORDER_LIST(X)
#undef X
};

const char *tess_codes_order_name(tess_codes_order order)
{
    return (unsigned)order < TESS_CODES_ORDER_NUMEL ? order_name[order] : "unknown";
}

tess_status tess_codes_check_info(const char *path, tess_status code, tess_codes_info *info)
{
    int64_t columns = 0, numel = 0, nbytes = 0;
    TESS_CHECK(info->code_numel >= 1 && info->code_numel <= UINT32_MAX, code,
               "codes file '%s': %" PRId64 " codes, expected 1 to %" PRIu32, path, info->code_numel,
               UINT32_MAX);
    TESS_CHECK(info->level_numel >= 1 && info->group_numel >= 1 &&
                   !__builtin_mul_overflow(info->level_numel, info->group_numel, &columns) &&
                   columns <= TESS_CODES_COLUMN_MAX,
               code,
               "codes file '%s': %" PRId64 " groups of %" PRId64
               " levels, expected 1 to %d codes in a row",
               path, info->group_numel, info->level_numel, TESS_CODES_COLUMN_MAX);
    const int64_t values_numel = info->code_numel + info->has_absent;
    info->code_nbytes = values_numel <= 256 ? 1 : values_numel <= 65536 ? 2 : 4;
    TESS_CHECK(info->vector_numel >= 1 &&
                   !__builtin_mul_overflow(info->vector_numel, columns, &numel) &&
                   !__builtin_mul_overflow(numel, (int64_t)info->code_nbytes, &nbytes),
               code,
               "codes file '%s': %" PRId64 " vectors, expected at least 1 and less than 2^63 "
               "bytes of codes",
               path, info->vector_numel);
    TESS_CHECK((unsigned)info->bit_order < TESS_CODES_ORDER_NUMEL, code,
               "codes file '%s': bit order %d is unknown", path, (int)info->bit_order);
    return TESS_OK;
}

int64_t tess_codes_scratch_numel(const tess_codes_info *info)
{
    const int64_t row_nbytes = tess_codes_column_numel(info) * (int64_t)info->code_nbytes;
    return TESS_MIN(TESS_MAX(TESS_CODES_SCRATCH_NBYTES / row_nbytes, 1), info->vector_numel);
}

/* ---- encoding ---- */

static void lanes_to_bytes(const tess_logical_hash *h, uint8_t bytes[TESS_XXH128_NBYTES])
{
    for (int i = 0; i < TESS_XXH128_NBYTES; i++)
        bytes[i] = (uint8_t)(h->lane[i / 8] >> (56 - 8 * (i % 8)));
}

static void lanes_from_bytes(const uint8_t bytes[TESS_XXH128_NBYTES], tess_logical_hash *h)
{
    *h = (tess_logical_hash){{0}};
    for (int i = 0; i < TESS_XXH128_NBYTES; i++)
        h->lane[i / 8] = h->lane[i / 8] << 8 | bytes[i];
}

static tess_status add_hex(tess_json *to, const char *key, const uint8_t bytes[TESS_XXH128_NBYTES])
{
    char hex[DIGEST_HEX_NBYTES];
    tess_hex(bytes, TESS_XXH128_NBYTES, hex);
    return tess_json_add_string(to, key, hex);
}

static tess_status fill_json(const tess_codes_info *info, const tess_codes_place *place,
                             tess_json *to)
{
    uint8_t payload[TESS_XXH128_NBYTES];
    lanes_to_bytes(&info->payload, payload);
    TESS_TRY(tess_json_add_i64(to, "file_nbytes", info->file_nbytes));
    TESS_TRY(tess_json_add_i64(to, "offset", place->offset_nbytes));
    TESS_TRY(tess_json_add_i64(to, "vectors", info->vector_numel));
    TESS_TRY(tess_json_add_i64(to, "codes", info->code_numel));
    TESS_TRY(tess_json_add_i64(to, "levels", info->level_numel));
    TESS_TRY(tess_json_add_i64(to, "groups", info->group_numel));
    TESS_TRY(tess_json_add_bool(to, "has_absent", info->has_absent));
    TESS_TRY(tess_json_add_string(to, "bit_order", tess_codes_order_name(info->bit_order)));
    TESS_TRY(tess_json_add_string(to, "codebooks", info->codebooks));
    TESS_TRY(tess_json_add_string(to, "source", info->source));
    TESS_TRY(add_hex(to, "metadata", place->metadata.byte));
    return add_hex(to, "payload", payload);
}

tess_status tess_codes_header_encode(const tess_codes_info *info, const tess_codes_place *place,
                                     uint8_t header[TESS_CODES_HEADER_NBYTES])
{
    tess_json *root = NULL;
    char *text = NULL;
    size_t nbytes = 0;
    TESS_TRY(tess_json_create_object(&root));
    tess_status st = fill_json(info, place, root);
    if (st == TESS_OK)
        st = tess_json_dump(root, 0, &text, &nbytes);
    tess_json_destroy(&root);
    TESS_TRY(st);
    if (nbytes > TESS_CODES_AT_DIGEST - TESS_CODES_AT_TEXT) {
        tess_free(text);
        return TESS_FAIL(TESS_E_ARG, "codes file: a header of %zu bytes; shorten the digests",
                         nbytes);
    }
    const uint32_t text_nbytes = (uint32_t)nbytes;
    memset(header, 0, TESS_CODES_HEADER_NBYTES);
    snprintf((char *)header, TESS_CODES_MAGIC_NBYTES, TESS_CODES_MAGIC "%d",
             TESS_CODES_FILE_VERSION);
    memcpy(header + TESS_CODES_MAGIC_NBYTES, &text_nbytes, sizeof text_nbytes);
    memcpy(header + TESS_CODES_AT_TEXT, text, nbytes);
    tess_free(text);
    const tess_xxh128 digest = tess_xxh128_of(header, TESS_CODES_AT_DIGEST);
    memcpy(header + TESS_CODES_AT_DIGEST, digest.byte, sizeof digest.byte);
    return TESS_OK;
}

/* ---- decoding ---- */

static tess_status get_hex(const tess_json *from, const char *key,
                           uint8_t bytes[TESS_XXH128_NBYTES])
{
    const char *hex = NULL;
    TESS_TRY(tess_json_get_string(from, key, &hex));
    if (tess_unhex(hex, TESS_XXH128_NBYTES, bytes) != TESS_OK) {
        tess_error_clear();
        return TESS_FAIL(TESS_E_FORMAT, "%s: %s is no digest of 32 hex digits",
                         tess_json_source(from), key);
    }
    return TESS_OK;
}

static tess_status get_order(const tess_json *from, tess_codes_order *out)
{
    const char *text = NULL;
    TESS_TRY(tess_json_get_string(from, "bit_order", &text));
    for (int i = 0; i < TESS_CODES_ORDER_NUMEL; i++) {
        if (strcmp(order_name[i], text) == 0) {
            *out = (tess_codes_order)i;
            return TESS_OK;
        }
    }
    return TESS_FAIL(TESS_E_FORMAT, "%s: bit_order is none of row, lsb-first, msb-first",
                     tess_json_source(from));
}

static tess_status take_json(const tess_json *root, tess_codes_info *info, tess_codes_place *place)
{
    uint8_t payload[TESS_XXH128_NBYTES];
    TESS_TRY(tess_json_expect(root, TESS_JSON_OBJECT));
    TESS_TRY(tess_json_get_i64(root, "file_nbytes", &info->file_nbytes));
    TESS_TRY(tess_json_get_i64(root, "offset", &place->offset_nbytes));
    TESS_TRY(tess_json_get_i64(root, "vectors", &info->vector_numel));
    TESS_TRY(tess_json_get_i64(root, "codes", &info->code_numel));
    TESS_TRY(tess_json_get_i64(root, "levels", &info->level_numel));
    TESS_TRY(tess_json_get_i64(root, "groups", &info->group_numel));
    TESS_TRY(tess_json_opt_bool(root, "has_absent", false, &info->has_absent));
    TESS_TRY(get_order(root, &info->bit_order));
    TESS_TRY(tess_json_get_text(root, "codebooks", sizeof info->codebooks, info->codebooks));
    TESS_TRY(tess_json_get_text(root, "source", sizeof info->source, info->source));
    TESS_TRY(get_hex(root, "metadata", place->metadata.byte));
    TESS_TRY(get_hex(root, "payload", payload));
    lanes_from_bytes(payload, &info->payload);
    return TESS_OK;
}

static tess_status check_magic(const char *path, const uint8_t *header)
{
    char expected[TESS_CODES_MAGIC_NBYTES], version[3] = "";
    snprintf(expected, sizeof expected, TESS_CODES_MAGIC "%d", TESS_CODES_FILE_VERSION);
    TESS_CHECK(memcmp(header, TESS_CODES_MAGIC, sizeof TESS_CODES_MAGIC - 1) == 0, TESS_E_FORMAT,
               "'%s' is no codes file: it does not start with " TESS_CODES_MAGIC, path);
    for (int i = 0; i < 2; i++) {
        const uint8_t c = header[sizeof TESS_CODES_MAGIC - 1 + (size_t)i];
        version[i] = c == 0 ? '\0' : c > 0x20 && c < 0x7f ? (char)c : '?';
    }
    TESS_CHECK(memcmp(header, expected, sizeof expected) == 0, TESS_E_UNSUPPORTED,
               "codes file '%s' has version %s, this program reads %d", path, version,
               TESS_CODES_FILE_VERSION);
    return TESS_OK;
}

static tess_status check_place(const char *path, int64_t file_nbytes, const tess_codes_info *info,
                               const tess_codes_place *place)
{
    const int64_t nbytes =
        info->vector_numel * tess_codes_column_numel(info) * (int64_t)info->code_nbytes;
    TESS_CHECK(info->file_nbytes == file_nbytes, TESS_E_FORMAT,
               "codes file '%s' has %" PRId64 " bytes, expected %" PRId64 "; copy it again", path,
               file_nbytes, info->file_nbytes);
    TESS_CHECK(place->offset_nbytes >= TESS_CODES_HEADER_NBYTES && nbytes <= file_nbytes &&
                   place->offset_nbytes <= file_nbytes - nbytes &&
                   file_nbytes - nbytes <= TESS_CODES_METADATA_LIMIT_NBYTES,
               TESS_E_FORMAT,
               "codes file '%s': %" PRId64 " bytes of codes at %" PRId64 " do not fit %" PRId64,
               path, nbytes, place->offset_nbytes, file_nbytes);
    return TESS_OK;
}

tess_status tess_codes_header_decode(const char *path,
                                     const uint8_t header[TESS_CODES_HEADER_NBYTES],
                                     int64_t file_nbytes, tess_codes_info *info,
                                     tess_codes_place *place)
{
    uint32_t nbytes = 0;
    tess_json *root = NULL;
    tess_codes_info found = {0};
    tess_codes_place where = {0};
    TESS_TRY(check_magic(path, header));
    const tess_xxh128 digest = tess_xxh128_of(header, TESS_CODES_AT_DIGEST);
    TESS_CHECK(memcmp(digest.byte, header + TESS_CODES_AT_DIGEST, sizeof digest.byte) == 0,
               TESS_E_FORMAT,
               "codes file '%s': the user block does not match its digest; the file is damaged, "
               "encode again",
               path);
    memcpy(&nbytes, header + TESS_CODES_MAGIC_NBYTES, sizeof nbytes);
    TESS_CHECK(nbytes <= TESS_CODES_AT_DIGEST - TESS_CODES_AT_TEXT, TESS_E_FORMAT,
               "codes file '%s': a text of %" PRIu32 " bytes in the user block, at most %d fit",
               path, nbytes, TESS_CODES_AT_DIGEST - TESS_CODES_AT_TEXT);
    TESS_TRY(tess_json_parse(path, (const char *)header + TESS_CODES_AT_TEXT, nbytes, &root));
    const tess_status st = take_json(root, &found, &where);
    tess_json_destroy(&root);
    TESS_TRY(st);
    TESS_TRY(tess_codes_check_info(path, TESS_E_FORMAT, &found));
    TESS_TRY(check_place(path, file_nbytes, &found, &where));
    *info = found;
    *place = where;
    return TESS_OK;
}
