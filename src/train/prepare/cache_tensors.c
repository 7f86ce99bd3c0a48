/* Caches in safetensors files: see train/prepare/cache.h for the names. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/half.h"
#include "core/memory.h"
#include "format/safetensors.h"
#include "kernels/elementwise.h"
#include "train/prepare/cache_priv.h"

static const char end_of_file[] = ".safetensors";
enum { KEY_NBYTES = TESS_ST_NAME_MAX_NBYTES + 32 };

bool cache_tensors_is(const char *path)
{
    const size_t nbytes = strlen(path), end = sizeof end_of_file - 1;
    return nbytes > end && strcmp(path + nbytes - end, end_of_file) == 0;
}

/* ---- reading ---- */

static const char *metadata_of(const tess_safetensors *file, const char *name, const char *what)
{
    char key[KEY_NBYTES];
    snprintf(key, sizeof key, "%.512s.%s", name, what);
    return tess_safetensors_metadata(file, key);
}

static const tess_st_tensor *find(const tess_safetensors *file, const char *name, const char *what)
{
    char key[KEY_NBYTES];
    snprintf(key, sizeof key, "%.512s.%s", name, what);
    return tess_safetensors_find(file, key);
}

static tess_status check_dims(const tess_safetensors *file, const tess_st_tensor *t, int dim_numel,
                              const char *expected)
{
    char shape[192];
    tess_st_shape_text(t->dim, t->dim_numel, shape, sizeof shape);
    TESS_CHECK(t->dim_numel == dim_numel, TESS_E_FORMAT, "'%s': '%s' has shape %s, expected %s",
               tess_safetensors_path(file), t->name, shape, expected);
    TESS_CHECK(t->dtype == TESS_ST_F32 || t->dtype == TESS_ST_BF16 || t->dtype == TESS_ST_F16,
               TESS_E_FORMAT, "'%s': '%s' has type %s, expected F32, BF16 or F16",
               tess_safetensors_path(file), t->name, tess_st_dtype_name(t->dtype));
    return TESS_OK;
}

/* A tensor as f32; 16-bit ones wait at the end of the destination, as in latents_read.c. */
static tess_status read_f32(const tess_safetensors *file, const tess_st_tensor *t, float *out)
{
    char name[KEY_NBYTES + 512];
    char *raw = (char *)out + t->numel * (int64_t)sizeof(float) - t->nbytes;
    TESS_TRY(tess_safetensors_read(file, t, 0, (size_t)t->nbytes, raw));
    for (int64_t i = 0; t->dtype != TESS_ST_F32 && i < t->numel; i++) {
        uint16_t half = 0;
        memcpy(&half, raw + 2 * i, sizeof half);
        out[i] = t->dtype == TESS_ST_BF16 ? tess_bf16_to_f32(half) : tess_f16_to_f32(half);
    }
    snprintf(name, sizeof name, "%.500s: %s", tess_safetensors_path(file), t->name);
    return cache_check_finite(name, out, t->numel);
}

/* ---- list ---- */

static tess_status take_word(const tess_safetensors *file, const char *key,
                             char out[TESS_LATENTS_TEXT_NBYTES])
{
    const char *text = tess_safetensors_metadata(file, key);
    TESS_CHECK(text == NULL || strlen(text) < TESS_LATENTS_TEXT_NBYTES, TESS_E_FORMAT,
               "'%s': metadata '%s' is longer than %d bytes", tess_safetensors_path(file), key,
               TESS_LATENTS_TEXT_NBYTES - 1);
    snprintf(out, TESS_LATENTS_TEXT_NBYTES, "%s", text == NULL ? "" : text);
    return TESS_OK;
}

static tess_status take_file(cache_set *set, const tess_safetensors *file)
{
    const char *path = tess_safetensors_path(file);
    const char *space = tess_safetensors_metadata(file, "space");
    tess_latents_origin origin = {.tool = ""};
    TESS_CHECK(space != NULL && (strcmp(space, "model") == 0 || strcmp(space, "raw") == 0),
               TESS_E_FORMAT,
               "'%s': metadata 'space' is %s%s%s, expected 'model' (latents shifted and scaled, "
               "(enc - 0.1159) 0.3611) or 'raw' (as the autoencoder gives them)",
               path, space == NULL ? "missing" : "'", space == NULL ? "" : space,
               space == NULL ? "" : "'");
    TESS_TRY(take_word(file, "tool", origin.tool));
    TESS_TRY(take_word(file, "vae", origin.vae));
    TESS_TRY(take_word(file, "text_encoders", origin.text_encoders));
    TESS_TRY(take_word(file, "posterior", origin.posterior));
    return cache_take_origin(set, &origin, strcmp(space, "raw") == 0, path);
}

static tess_status scan_text(cache_set *set, const tess_safetensors *file, const char *name)
{
    const tess_st_tensor *t5 = find(file, name, "t5"), *pooled = find(file, name, "pooled");
    TESS_CHECK(pooled != NULL, TESS_E_FORMAT, "'%s' has '%s.t5' and no '%s.pooled'",
               tess_safetensors_path(file), name, name);
    TESS_TRY(check_dims(file, t5, 2, "[tokens, width of T5]"));
    TESS_TRY(check_dims(file, pooled, 1, "[width of CLIP]"));
    const cache_text text = {.path = (char *)(uintptr_t)tess_safetensors_path(file),
                             .key = (char *)(uintptr_t)name,
                             .caption = (char *)(uintptr_t)metadata_of(file, name, "caption"),
                             .token_numel = t5->dim[0],
                             .dim = t5->dim[1],
                             .pooled_dim = pooled->dim[0]};
    return cache_add_text(set, &text);
}

static tess_status scan_image(cache_set *set, const tess_safetensors *file, const char *name)
{
    const tess_st_tensor *latent = find(file, name, "latent"), *mask = find(file, name, "mask");
    const char *text = metadata_of(file, name, "text");
    TESS_TRY(check_dims(file, latent, 3, "[channels, height, width]"));
    if (mask != NULL)
        TESS_TRY(check_dims(file, mask, 2, "[height, width]"));
    const cache_image image = {.name = (char *)(uintptr_t)name,
                               .path = (char *)(uintptr_t)tess_safetensors_path(file),
                               .key = (char *)(uintptr_t)name,
                               .channel_numel = latent->dim[0],
                               .height = latent->dim[1],
                               .width = latent->dim[2],
                               .text_idx = -1,
                               .text_name = (char *)(uintptr_t)(text == NULL ? name : text),
                               .has_mask = mask != NULL};
    return cache_add_image(set, &image);
}

/* "NAME" of "NAME.what" if tensor `t` is called so. */
static bool is_called(const tess_st_tensor *t, const char *what, char name[KEY_NBYTES])
{
    const char *dot = strrchr(t->name, '.');
    if (dot == NULL || dot == t->name || strcmp(dot + 1, what) != 0)
        return false;
    snprintf(name, KEY_NBYTES, "%.*s", (int)(dot - t->name), t->name);
    return true;
}

static tess_status scan_tensors(cache_set *set, const tess_safetensors *file)
{
    int64_t known_numel = 0;
    char name[KEY_NBYTES];
    for (int64_t i = 0; i < tess_safetensors_numel(file); i++) {
        const tess_st_tensor *t = tess_safetensors_at(file, i);
        known_numel += is_called(t, "t5", name) || is_called(t, "latent", name);
    }
    TESS_CHECK(known_numel > 0, TESS_E_FORMAT,
               "'%s' has no tensor 'NAME.latent' and none 'NAME.t5'; docs/data.md describes the "
               "layout, and how to convert caches of SimpleTuner and ai-toolkit",
               tess_safetensors_path(file));
    TESS_TRY(take_file(set, file));
    for (int64_t i = 0; i < tess_safetensors_numel(file); i++) {
        const tess_st_tensor *t = tess_safetensors_at(file, i);
        if (is_called(t, "t5", name))
            TESS_TRY(scan_text(set, file, name));
        else if (is_called(t, "latent", name))
            TESS_TRY(scan_image(set, file, name));
    }
    return TESS_OK;
}

/* One file may hold thousands of samples: it stays open until another one is asked for. */
static tess_status open_file(cache_set *set, const char *path)
{
    if (set->file != NULL && strcmp(tess_safetensors_path(set->file), path) == 0)
        return TESS_OK;
    tess_safetensors_close(&set->file);
    return tess_safetensors_open(set->ctx->io, path, &set->file);
}

tess_status cache_tensors_scan(cache_set *set, const char *path)
{
    TESS_TRY(cache_take_kind(set, CACHE_KIND_TENSORS, path));
    TESS_TRY(open_file(set, path));
    return scan_tensors(set, set->file);
}

/* ---- load ---- */

static tess_status gone(const char *path, const char *name)
{
    return TESS_FAIL(TESS_E_FORMAT, "'%s': '%s' changed while it was converted; try again", path,
                     name);
}

static tess_status load_text(const tess_safetensors *file, const cache_text *text, cache_row *row)
{
    const tess_st_tensor *t5 = find(file, text->key, "t5"),
                         *pooled = find(file, text->key, "pooled");
    const char *length = metadata_of(file, text->key, "length");
    if (t5 == NULL || pooled == NULL || t5->numel != text->token_numel * text->dim ||
        pooled->numel != text->pooled_dim)
        return gone(text->path, text->key);
    row->length = 0;
    TESS_CHECK(length == NULL || (sscanf(length, "%" SCNd64, &row->length) == 1 &&
                                  row->length >= 0 && row->length <= text->token_numel),
               TESS_E_FORMAT, "'%s': metadata '%s.length' is '%s', expected 0 to %" PRId64,
               text->path, text->key, length, text->token_numel);
    TESS_TRY(read_f32(file, t5, row->text));
    return read_f32(file, pooled, row->pooled);
}

tess_status cache_tensors_text(cache_set *set, const cache_text *text, cache_row *row)
{
    TESS_TRY(open_file(set, text->path));
    return load_text(set->file, text, row);
}

static tess_status load_mask(const tess_safetensors *file, const cache_image *image, float *mask)
{
    const tess_st_tensor *t = find(file, image->key, "mask");
    void *room = NULL;
    if (t == NULL || t->dim_numel != 2)
        return gone(image->path, image->key);
    TESS_TRY(tess_alloc_array(t->numel + 1, sizeof(float), &room));
    tess_status st = read_f32(file, t, room);
    if (st == TESS_OK)
        st = cache_mask(image->name, image, t->dim, room, mask);
    tess_free(room);
    return st;
}

static tess_status load_image(const tess_safetensors *file, const cache_image *image,
                              cache_row *row)
{
    const tess_st_tensor *t = find(file, image->key, "latent");
    const char *size = metadata_of(file, image->key, "original_size");
    const char *crop = metadata_of(file, image->key, "crop");
    tess_latents_sample s = {0};
    if (t == NULL || t->numel != image->channel_numel * image->height * image->width)
        return gone(image->path, image->key);
    TESS_CHECK(size == NULL || sscanf(size, "%" SCNu32 " %" SCNu32, &s.width, &s.height) == 2,
               TESS_E_FORMAT, "'%s': metadata '%s.original_size' is '%s', expected 'W H'",
               image->path, image->key, size);
    TESS_CHECK(crop == NULL || sscanf(crop, "%" SCNu32 " %" SCNu32 " %" SCNu32 " %" SCNu32, &s.left,
                                      &s.top, &s.right, &s.bottom) == 4,
               TESS_E_FORMAT, "'%s': metadata '%s.crop' is '%s', expected 'left top right bottom'",
               image->path, image->key, crop);
    row->sample = s;
    TESS_TRY(read_f32(file, t, row->latent));
    return image->has_mask ? load_mask(file, image, row->mask) : TESS_OK;
}

tess_status cache_tensors_image(cache_set *set, const cache_image *image, cache_row *row)
{
    TESS_TRY(open_file(set, image->path));
    return load_image(set->file, image, row);
}
