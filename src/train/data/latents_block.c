/* The user block of a cache. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "train/data/latents_priv.h"

enum { HEX_NBYTES = 2 * TESS_XXH128_NBYTES + 1 };

static const char model_space[] = "model"; /* of attribute space */

/* ---- encoding ---- */

static tess_status add_section(const latents_section *s, tess_json *list)
{
    tess_json *row = NULL;
    uint8_t lanes[TESS_XXH128_NBYTES];
    char hex[HEX_NBYTES];
    for (int i = 0; i < TESS_XXH128_NBYTES; i++)
        lanes[i] = (uint8_t)(s->hash.lane[i / 8] >> (56 - 8 * (i % 8)));
    tess_hex(lanes, sizeof lanes, hex);
    TESS_TRY(tess_json_add_array(list, NULL, &row));
    TESS_TRY(tess_json_add_string(row, NULL, s->name));
    TESS_TRY(tess_json_add_i64(row, NULL, s->offset_nbytes));
    return tess_json_add_string(row, NULL, hex);
}

static tess_status add_bucket(const tess_latents_bucket *b, tess_json *list)
{
    tess_json *row = NULL;
    TESS_TRY(tess_json_add_array(list, NULL, &row));
    TESS_TRY(tess_json_add_i64(row, NULL, b->height));
    TESS_TRY(tess_json_add_i64(row, NULL, b->width));
    return tess_json_add_i64(row, NULL, b->sample_numel);
}

static tess_status fill_lists(const latents_layout *l, tess_json *to)
{
    char hex[HEX_NBYTES];
    tess_json *list = NULL;
    tess_hex(l->metadata.byte, sizeof l->metadata.byte, hex);
    TESS_TRY(tess_json_add_string(to, "metadata", hex));
    TESS_TRY(tess_json_add_array(to, "buckets", &list));
    for (int64_t b = 0; b < l->info.bucket_numel; b++)
        TESS_TRY(add_bucket(&l->bucket[b], list));
    TESS_TRY(tess_json_add_array(to, "datasets", &list));
    for (int i = 0; i < l->section_numel; i++)
        TESS_TRY(add_section(&l->section[i], list));
    return TESS_OK;
}

static tess_status fill_json(const latents_layout *l, tess_json *to)
{
    const tess_latents_info *i = &l->info;
    TESS_TRY(tess_json_add_i64(to, "file_nbytes", i->file_nbytes));
    TESS_TRY(tess_json_add_string(to, "space", model_space));
    TESS_TRY(tess_json_add_i64(to, "samples", i->sample_numel));
    TESS_TRY(tess_json_add_i64(to, "captions", i->caption_numel));
    TESS_TRY(tess_json_add_i64(to, "channels", i->channel_numel));
    TESS_TRY(tess_json_add_i64(to, "text_tokens", i->text_numel));
    TESS_TRY(tess_json_add_i64(to, "text_dim", i->text_dim));
    TESS_TRY(tess_json_add_i64(to, "pooled_dim", i->pooled_dim));
    TESS_TRY(tess_json_add_string(to, "latent_dtype", tess_dtype_name(i->latent_dt)));
    TESS_TRY(tess_json_add_string(to, "text_dtype", tess_dtype_name(i->text_dt)));
    TESS_TRY(tess_json_add_bool(to, "has_masks", i->has_masks));
    TESS_TRY(tess_json_add_bool(to, "has_empty", i->has_empty));
    TESS_TRY(tess_json_add_bool(to, "is_text_masked", i->is_text_masked));
    TESS_TRY(tess_json_add_i64(to, "name_nbytes", i->name_nbytes));
    TESS_TRY(tess_json_add_i64(to, "caption_nbytes", i->caption_nbytes));
    TESS_TRY(tess_json_add_string(to, "tool", i->origin.tool));
    TESS_TRY(tess_json_add_string(to, "vae", i->origin.vae));
    TESS_TRY(tess_json_add_string(to, "text_encoders", i->origin.text_encoders));
    TESS_TRY(tess_json_add_string(to, "posterior", i->origin.posterior));
    return fill_lists(l, to);
}

tess_status latents_block_encode(const latents_layout *l, uint8_t *block)
{
    const size_t block_nbytes = (size_t)latents_block_nbytes(l);
    const size_t room = block_nbytes - TESS_LATENTS_AT_TEXT - TESS_XXH128_NBYTES;
    tess_json *root = NULL;
    char *text = NULL;
    size_t nbytes = 0;
    TESS_TRY(tess_json_create_object(&root));
    tess_status st = fill_json(l, root);
    if (st == TESS_OK)
        st = tess_json_dump(root, 0, &text, &nbytes);
    tess_json_destroy(&root);
    if (st == TESS_OK && nbytes > room)
        st = TESS_FAIL(TESS_E_ARG, "cache: a header of %zu bytes, %zu fit", nbytes, room);
    if (st == TESS_OK) {
        const uint32_t sizes[2] = {(uint32_t)block_nbytes, (uint32_t)nbytes};
        memset(block, 0, block_nbytes);
        snprintf((char *)block, TESS_LATENTS_MAGIC_NBYTES, TESS_LATENTS_MAGIC "%d",
                 TESS_LATENTS_VERSION);
        memcpy(block + TESS_LATENTS_MAGIC_NBYTES, sizes, sizeof sizes);
        memcpy(block + TESS_LATENTS_AT_TEXT, text, nbytes);
        const tess_xxh128 digest = tess_xxh128_of(block, block_nbytes - TESS_XXH128_NBYTES);
        memcpy(block + block_nbytes - TESS_XXH128_NBYTES, digest.byte, sizeof digest.byte);
    }
    tess_free(text);
    return st;
}

/* ---- decoding ---- */

tess_status latents_block_size(const char *path, const uint8_t start[TESS_LATENTS_AT_TEXT],
                               int64_t *nbytes)
{
    char expected[TESS_LATENTS_MAGIC_NBYTES] = "";
    uint32_t found = 0;
    snprintf(expected, sizeof expected, TESS_LATENTS_MAGIC "%d", TESS_LATENTS_VERSION);
    TESS_CHECK(memcmp(start, TESS_LATENTS_MAGIC, sizeof TESS_LATENTS_MAGIC - 1) == 0, TESS_E_FORMAT,
               "'%s' is no cache: it does not start with " TESS_LATENTS_MAGIC
               "; make one with tessera cache",
               path);
    const uint8_t version = start[sizeof TESS_LATENTS_MAGIC - 1];
    TESS_CHECK(memcmp(start, expected, sizeof expected) == 0, TESS_E_UNSUPPORTED,
               "cache '%s' has version %c, this program reads %d", path,
               version > 0x20 && version < 0x7f ? (char)version : '?', TESS_LATENTS_VERSION);
    memcpy(&found, start + TESS_LATENTS_MAGIC_NBYTES, sizeof found);
    TESS_CHECK(found >= TESS_LATENTS_BLOCK_MIN_NBYTES && found <= TESS_LATENTS_BLOCK_MAX_NBYTES &&
                   (found & (found - 1)) == 0,
               TESS_E_FORMAT, "cache '%s': a user block of %" PRIu32 " bytes", path, found);
    *nbytes = found;
    return TESS_OK;
}

static tess_status get_dtype(const tess_json *from, const char *key, tess_dtype *out)
{
    const char *text = NULL;
    TESS_TRY(tess_json_get_string(from, key, &text));
    if (tess_dtype_parse(text, out) == TESS_OK)
        return TESS_OK;
    tess_error_clear();
    return TESS_FAIL(TESS_E_FORMAT, "%s: %s is '%s', expected bf16 or f32", tess_json_source(from),
                     key, text);
}

static tess_status get_hex(const tess_json *value, uint8_t out[TESS_XXH128_NBYTES])
{
    const char *hex = NULL;
    TESS_TRY(tess_json_as_string(value, &hex));
    if (tess_unhex(hex, TESS_XXH128_NBYTES, out) == TESS_OK)
        return TESS_OK;
    tess_error_clear();
    return TESS_FAIL(TESS_E_FORMAT, "%s: '%s' is no digest of 32 hex digits",
                     tess_json_source(value), hex);
}

static tess_status take_info(const tess_json *root, tess_latents_info *i)
{
    const char *space = NULL;
    TESS_TRY(tess_json_expect(root, TESS_JSON_OBJECT));
    TESS_TRY(tess_json_get_string(root, "space", &space));
    TESS_CHECK(strcmp(space, model_space) == 0, TESS_E_FORMAT,
               "cache '%s': latents are in space '%s', expected '%s': shifted and scaled as the "
               "transformer takes them; convert again",
               tess_json_source(root), space, model_space);
    TESS_TRY(tess_json_get_i64(root, "file_nbytes", &i->file_nbytes));
    TESS_TRY(tess_json_get_i64(root, "samples", &i->sample_numel));
    TESS_TRY(tess_json_get_i64(root, "captions", &i->caption_numel));
    TESS_TRY(tess_json_get_i64(root, "channels", &i->channel_numel));
    TESS_TRY(tess_json_get_i64(root, "text_tokens", &i->text_numel));
    TESS_TRY(tess_json_get_i64(root, "text_dim", &i->text_dim));
    TESS_TRY(tess_json_get_i64(root, "pooled_dim", &i->pooled_dim));
    TESS_TRY(get_dtype(root, "latent_dtype", &i->latent_dt));
    TESS_TRY(get_dtype(root, "text_dtype", &i->text_dt));
    TESS_TRY(tess_json_opt_bool(root, "has_masks", false, &i->has_masks));
    TESS_TRY(tess_json_opt_bool(root, "has_empty", false, &i->has_empty));
    TESS_TRY(tess_json_opt_bool(root, "is_text_masked", false, &i->is_text_masked));
    TESS_TRY(tess_json_get_i64(root, "name_nbytes", &i->name_nbytes));
    TESS_TRY(tess_json_get_i64(root, "caption_nbytes", &i->caption_nbytes));
    TESS_TRY(tess_json_get_text(root, "tool", sizeof i->origin.tool, i->origin.tool));
    TESS_TRY(tess_json_get_text(root, "vae", sizeof i->origin.vae, i->origin.vae));
    TESS_TRY(tess_json_get_text(root, "text_encoders", sizeof i->origin.text_encoders,
                                i->origin.text_encoders));
    return tess_json_get_text(root, "posterior", sizeof i->origin.posterior, i->origin.posterior);
}

static tess_status take_buckets(const tess_json *list, tess_latents_bucket *bucket)
{
    for (int64_t i = 0; i < tess_json_numel(list); i++) {
        const tess_json *row = tess_json_at(list, i);
        TESS_TRY(tess_json_expect(row, TESS_JSON_ARRAY));
        TESS_CHECK(tess_json_numel(row) == 3, TESS_E_FORMAT, "%s: a bucket of %" PRId64 " numbers",
                   tess_json_source(list), tess_json_numel(row));
        TESS_TRY(tess_json_as_i64(tess_json_at(row, 0), &bucket[i].height));
        TESS_TRY(tess_json_as_i64(tess_json_at(row, 1), &bucket[i].width));
        TESS_TRY(tess_json_as_i64(tess_json_at(row, 2), &bucket[i].sample_numel));
    }
    return TESS_OK;
}

static tess_status take_section(const tess_json *row, latents_section *s)
{
    const char *name = NULL;
    uint8_t lanes[TESS_XXH128_NBYTES];
    TESS_TRY(tess_json_expect(row, TESS_JSON_ARRAY));
    TESS_CHECK(tess_json_numel(row) == 3, TESS_E_FORMAT, "%s: a dataset of %" PRId64 " values",
               tess_json_source(row), tess_json_numel(row));
    TESS_TRY(tess_json_as_string(tess_json_at(row, 0), &name));
    TESS_CHECK(strcmp(name, s->name) == 0, TESS_E_FORMAT,
               "cache '%s': dataset '%s', expected '%s' by its counts", tess_json_source(row), name,
               s->name);
    TESS_TRY(tess_json_as_i64(tess_json_at(row, 1), &s->offset_nbytes));
    TESS_TRY(get_hex(tess_json_at(row, 2), lanes));
    for (int i = 0; i < TESS_XXH128_NBYTES; i++)
        s->hash.lane[i / 8] = s->hash.lane[i / 8] << 8 | lanes[i];
    return TESS_OK;
}

static tess_status take_sections(const char *path, const tess_json *root, int64_t block_nbytes,
                                 latents_layout *l)
{
    const tess_json *list = NULL;
    TESS_TRY(tess_json_get_array(root, "datasets", &list));
    TESS_CHECK(tess_json_numel(list) == l->section_numel, TESS_E_FORMAT,
               "cache '%s': %" PRId64 " datasets, expected %d by its counts", path,
               tess_json_numel(list), l->section_numel);
    for (int i = 0; i < l->section_numel; i++) {
        latents_section *s = &l->section[i];
        const int64_t nbytes = s->row_numel * latents_row_nbytes(s);
        TESS_TRY(take_section(tess_json_at(list, i), s));
        TESS_CHECK(s->offset_nbytes >= block_nbytes && nbytes <= l->info.file_nbytes &&
                       s->offset_nbytes <= l->info.file_nbytes - nbytes,
                   TESS_E_FORMAT,
                   "cache '%s': dataset '%s' of %" PRId64 " bytes at %" PRId64
                   " leaves the file of %" PRId64,
                   path, s->name, nbytes, s->offset_nbytes, l->info.file_nbytes);
    }
    return get_hex(tess_json_find(root, "metadata"), l->metadata.byte);
}

static tess_status take_json(const char *path, const tess_json *root, int64_t block_nbytes,
                             latents_layout *l)
{
    tess_latents_info info = {0};
    const tess_json *list = NULL;
    void *room = NULL;
    TESS_TRY(take_info(root, &info));
    TESS_TRY(tess_json_get_array(root, "buckets", &list));
    info.bucket_numel = tess_json_numel(list);
    TESS_TRY(tess_alloc_array(info.bucket_numel + 1, sizeof(tess_latents_bucket), &room));
    tess_status st = take_buckets(list, room);
    if (st == TESS_OK)
        st = latents_layout_init(path, TESS_E_FORMAT, &info, room, l);
    tess_free(room);
    TESS_TRY(st);
    st = tess_json_find(root, "metadata") != NULL
             ? take_sections(path, root, block_nbytes, l)
             : TESS_FAIL(TESS_E_FORMAT, "cache '%s': 'metadata' is missing", path);
    if (st == TESS_OK)
        st = latents_identify(l);
    if (st != TESS_OK)
        latents_layout_fini(l);
    return st;
}

tess_status latents_block_decode(const char *path, const uint8_t *block, int64_t block_nbytes,
                                 int64_t file_nbytes, latents_layout *out)
{
    const int64_t end = block_nbytes - TESS_XXH128_NBYTES;
    uint32_t nbytes = 0;
    tess_json *root = NULL;
    latents_layout found = {0};
    const tess_xxh128 digest = tess_xxh128_of(block, (size_t)end);
    TESS_CHECK(memcmp(digest.byte, block + end, sizeof digest.byte) == 0, TESS_E_FORMAT,
               "cache '%s': the user block does not match its digest; the file is damaged, "
               "convert again",
               path);
    memcpy(&nbytes, block + TESS_LATENTS_MAGIC_NBYTES + sizeof nbytes, sizeof nbytes);
    TESS_CHECK((int64_t)nbytes <= end - TESS_LATENTS_AT_TEXT, TESS_E_FORMAT,
               "cache '%s': a text of %" PRIu32 " bytes in a user block of %" PRId64, path, nbytes,
               block_nbytes);
    TESS_TRY(tess_json_parse(path, (const char *)block + TESS_LATENTS_AT_TEXT, nbytes, &root));
    const tess_status st = take_json(path, root, block_nbytes, &found);
    tess_json_destroy(&root);
    TESS_TRY(st);
    if (found.info.file_nbytes != file_nbytes) {
        const int64_t expected = found.info.file_nbytes;
        latents_layout_fini(&found);
        return TESS_FAIL(TESS_E_FORMAT,
                         "cache '%s' has %" PRId64 " bytes, expected %" PRId64 "; copy it again",
                         path, file_nbytes, expected);
    }
    *out = found;
    return TESS_OK;
}
