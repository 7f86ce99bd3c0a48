/* Caches of sd-scripts: see train/prepare/cache.h for the names. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "format/npz.h"
#include "train/prepare/cache_priv.h"

static const char latents_end[] = "_flux.npz", text_end[] = "_flux_te.npz";

static bool ends_in(const char *text, const char *end)
{
    const size_t text_nbytes = strlen(text), end_nbytes = strlen(end);
    return text_nbytes > end_nbytes && strcmp(text + text_nbytes - end_nbytes, end) == 0;
}

bool cache_kohya_is_latents(const char *path) { return ends_in(path, latents_end); }
bool cache_kohya_is_text(const char *path) { return ends_in(path, text_end); }

/* Bytes of a path without "_flux.npz" and the image size before it. */
static size_t stem_nbytes(const char *path)
{
    const size_t whole = strlen(path) - (sizeof latents_end - 1);
    size_t at = whole;
    while (at > 0 && path[at - 1] >= '0' && path[at - 1] <= '9')
        at--;
    if (at == whole || at == 0 || path[at - 1] != 'x')
        return whole;
    const size_t by = --at;
    while (at > 0 && path[at - 1] >= '0' && path[at - 1] <= '9')
        at--;
    return at < by && at > 1 && path[at - 1] == '_' ? at - 1 : whole;
}

static tess_status open_npz(const cache_set *set, const char *path, tess_npz **out)
{
    return tess_npz_open(set->ctx->io, path, out);
}

/* Array `name``key`; `*array` is to be freed. */
static tess_status read_array(const tess_npz *npz, const char *name, const char *key,
                              tess_npz_array *array)
{
    char whole[64];
    snprintf(whole, sizeof whole, "%s%.40s", name, key);
    const int64_t idx = tess_npz_find(npz, whole);
    TESS_CHECK(idx >= 0, TESS_E_FORMAT,
               "'%s' has no array '%s'; make the cache again with sd-scripts' FLUX trainer",
               tess_npz_path(npz), whole);
    return tess_npz_read(npz, idx, array);
}

/* As f32, with the shape that is expected; -1 takes any extent. */
static tess_status read_f32(const tess_npz *npz, const char *name, const char *key, int dim_numel,
                            const int64_t *dim, float *out)
{
    tess_npz_array a;
    TESS_TRY(read_array(npz, name, key, &a));
    bool fits = a.header.dim_numel == dim_numel;
    for (int i = 0; i < dim_numel && fits; i++)
        fits = a.header.dim[i] == dim[i];
    tess_status st = TESS_OK;
    if (fits)
        tess_npz_to_f32(&a, out);
    else
        st = TESS_FAIL(TESS_E_FORMAT, "'%s' has another shape than when it was listed", a.name);
    if (st == TESS_OK)
        st = cache_check_finite(a.name, out, a.numel);
    tess_npz_array_fini(&a);
    return st;
}

/* Shape of an array, which must have `dim_numel` axes. */
static tess_status read_shape(const tess_npz *npz, const char *name, const char *key, int dim_numel,
                              int64_t *dim)
{
    tess_npz_array a;
    TESS_TRY(read_array(npz, name, key, &a));
    const int found = a.header.dim_numel;
    memcpy(dim, a.header.dim, (size_t)dim_numel * sizeof *dim);
    tess_npz_array_fini(&a);
    TESS_CHECK(found == dim_numel, TESS_E_FORMAT,
               "'%s': array '%s%s' has %d dimensions, expected %d", tess_npz_path(npz), name, key,
               found, dim_numel);
    return TESS_OK;
}

/* ---- texts ---- */

static tess_status read_caption(const cache_set *set, const char *stem, char **out)
{
    static const char *const ends[] = {".txt", ".caption"};
    for (int i = 0; i < TESS_NELEM(ends); i++) {
        char *path = NULL;
        tess_io_kind kind = TESS_IO_MISSING;
        int64_t nbytes = 0;
        size_t text_nbytes = 0;
        TESS_TRY(tess_asprintf(&path, "%s%s", stem, ends[i]));
        tess_status st = tess_io_stat(set->ctx->io, path, &kind, &nbytes);
        if (st == TESS_OK && kind == TESS_IO_FILE)
            st = tess_io_read_all(set->ctx->io, path, 1 << 20, out, &text_nbytes);
        tess_free(path);
        TESS_TRY(st);
        if (kind != TESS_IO_FILE)
            continue;
        for (; text_nbytes > 0 && strchr(" \t\r\n", (*out)[text_nbytes - 1]) != NULL; text_nbytes--)
            (*out)[text_nbytes - 1] = '\0';
        return TESS_OK;
    }
    return TESS_OK;
}

static tess_status check_masked(cache_set *set, const tess_npz *npz)
{
    tess_npz_array a;
    float flag = 0.0F;
    TESS_TRY(read_array(npz, "apply_t5_attn_mask", "", &a));
    const bool is_one = a.numel == 1;
    if (is_one)
        tess_npz_to_f32(&a, &flag);
    tess_npz_array_fini(&a);
    TESS_CHECK(is_one, TESS_E_FORMAT, "'%s': apply_t5_attn_mask is no single value",
               tess_npz_path(npz));
    const bool is_masked = flag != 0.0F;
    TESS_CHECK(set->text_numel == 0 || set->is_text_masked == is_masked, TESS_E_CONFIG,
               "'%s' was made %s apply_t5_attn_mask, '%s' %s it: cache all texts with one setting",
               tess_npz_path(npz), is_masked ? "with" : "without", set->text[0].path,
               is_masked ? "without" : "with");
    set->is_text_masked = is_masked;
    return TESS_OK;
}

static tess_status scan_text(cache_set *set, const tess_npz *npz, const char *caption)
{
    int64_t dim[2] = {0}, pooled_dim = 0;
    TESS_TRY(check_masked(set, npz));
    TESS_TRY(read_shape(npz, "t5_out", "", 2, dim));
    TESS_TRY(read_shape(npz, "l_pooled", "", 1, &pooled_dim));
    const cache_text text = {.path = (char *)(uintptr_t)tess_npz_path(npz),
                             .caption = (char *)(uintptr_t)caption,
                             .token_numel = dim[0],
                             .dim = dim[1],
                             .pooled_dim = pooled_dim};
    return cache_add_text(set, &text);
}

static tess_status add_text(cache_set *set, const char *path, const char *caption)
{
    tess_npz *npz = NULL;
    TESS_TRY(open_npz(set, path, &npz));
    const tess_status st = scan_text(set, npz, caption);
    tess_npz_close(&npz);
    return st;
}

tess_status cache_kohya_add_empty(cache_set *set, const char *path)
{
    TESS_TRY(add_text(set, path, ""));
    set->empty_idx = set->text_numel - 1;
    return TESS_OK;
}

/* The text of the images of `stem`. */
static tess_status add_text_of(cache_set *set, const char *stem, const char *latents_path)
{
    char *path = NULL, *caption = NULL;
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    TESS_TRY(tess_asprintf(&path, "%s%s", stem, text_end));
    tess_status st = tess_io_stat(set->ctx->io, path, &kind, &nbytes);
    if (st == TESS_OK && kind != TESS_IO_FILE)
        st = TESS_FAIL(TESS_E_FORMAT,
                       "'%s' has no text embeddings: expected '%s'; cache them with "
                       "--cache_text_encoder_outputs_to_disk",
                       latents_path, path);
    if (st == TESS_OK)
        st = read_caption(set, stem, &caption);
    if (st == TESS_OK)
        st = add_text(set, path, caption);
    tess_free(path);
    tess_free(caption);
    return st;
}

tess_status cache_kohya_text(cache_set *set, const cache_text *text, cache_row *row)
{
    tess_npz *npz = NULL;
    tess_npz_array a = {.bytes = NULL};
    const int64_t dim[2] = {text->token_numel, text->dim};
    TESS_TRY(open_npz(set, text->path, &npz));
    tess_status st = read_f32(npz, "t5_out", "", 2, dim, row->text);
    if (st == TESS_OK)
        st = read_f32(npz, "l_pooled", "", 1, &text->pooled_dim, row->pooled);
    if (st == TESS_OK)
        st = read_array(npz, "t5_attn_mask", "", &a);
    if (st == TESS_OK && a.numel != text->token_numel)
        st = TESS_FAIL(TESS_E_FORMAT, "'%s' has %" PRId64 " values, expected %" PRId64, a.name,
                       a.numel, text->token_numel);
    if (st == TESS_OK) {
        tess_npz_to_f32(&a, row->mask); /* a mask has room for as many */
        row->length = 0;
        for (int64_t i = 0; i < a.numel; i++)
            row->length += row->mask[i] != 0.0F;
    }
    tess_npz_array_fini(&a);
    tess_npz_close(&npz);
    return st;
}

/* ---- images ---- */

static bool parse_key(const char *key, int64_t *height, int64_t *width)
{
    int used = 0;
    *height = *width = 0;
    return *key == '\0' || (sscanf(key, "_%" SCNd64 "x%" SCNd64 "%n", height, width, &used) == 2 &&
                            key[used] == '\0');
}

/* Array `idx`, if it is a latent. */
static tess_status scan_array(cache_set *set, const tess_npz *npz, int64_t idx, const char *stem)
{
    static const char latents[] = "latents", flipped[] = "latents_flipped";
    const char *name = tess_npz_name(npz, idx), *key = name + sizeof latents - 1;
    int64_t height = 0, width = 0, dim[3] = {0};
    char alpha[64], whole[512];
    if (strncmp(name, flipped, sizeof flipped - 1) == 0)
        set->flipped_numel++;
    if (strncmp(name, latents, sizeof latents - 1) != 0 || !parse_key(key, &height, &width))
        return TESS_OK;
    TESS_TRY(read_shape(npz, latents, key, 3, dim));
    TESS_CHECK(*key == '\0' || (dim[1] == height && dim[2] == width), TESS_E_FORMAT,
               "'%s': array '%s' is %" PRId64 " x %" PRId64 "; make it again", tess_npz_path(npz),
               name, dim[1], dim[2]);
    snprintf(alpha, sizeof alpha, "alpha_mask%.40s", key);
    snprintf(whole, sizeof whole, "%.440s%.40s", stem, key);
    const cache_image image = {.name = whole,
                               .path = (char *)(uintptr_t)tess_npz_path(npz),
                               .key = (char *)(uintptr_t)key,
                               .channel_numel = dim[0],
                               .height = dim[1],
                               .width = dim[2],
                               .text_idx = set->text_numel - 1,
                               .has_mask = tess_npz_find(npz, alpha) >= 0};
    return cache_add_image(set, &image);
}

static tess_status scan_arrays(cache_set *set, const tess_npz *npz, const char *stem)
{
    const int64_t before = set->image_numel;
    for (int64_t i = 0; i < tess_npz_numel(npz); i++)
        TESS_TRY(scan_array(set, npz, i, stem));
    TESS_CHECK(set->image_numel > before, TESS_E_FORMAT,
               "'%s' has no array 'latents_<h>x<w>'; make it again with sd-scripts' FLUX trainer",
               tess_npz_path(npz));
    return TESS_OK;
}

tess_status cache_kohya_scan(cache_set *set, const char *path)
{
    static const tess_latents_origin origin = {
        .tool = "sd-scripts", .vae = "", .text_encoders = "", .posterior = "sample"};
    char *stem = NULL;
    tess_npz *npz = NULL;
    TESS_TRY(cache_take_kind(set, CACHE_KIND_KOHYA, path));
    TESS_TRY(cache_take_origin(set, &origin, false, path));
    TESS_TRY(tess_strndup(path, stem_nbytes(path), &stem));
    tess_status st = add_text_of(set, stem, path);
    if (st == TESS_OK)
        st = open_npz(set, path, &npz);
    if (st == TESS_OK)
        st = scan_arrays(set, npz, stem);
    tess_npz_close(&npz);
    tess_free(stem);
    return st;
}

/* `numel` small numbers, which older caches do not have: then 0. */
static tess_status read_numbers(const tess_npz *npz, const char *name, const char *key, int numel,
                                uint32_t *out)
{
    char whole[64];
    tess_npz_array a;
    float x[4] = {0};
    snprintf(whole, sizeof whole, "%s%.40s", name, key);
    if (tess_npz_find(npz, whole) < 0)
        return TESS_OK;
    TESS_TRY(read_array(npz, name, key, &a));
    const bool fits = a.numel == numel;
    if (fits)
        tess_npz_to_f32(&a, x);
    tess_npz_array_fini(&a);
    TESS_CHECK(fits, TESS_E_FORMAT, "'%s': array '%s' has other than %d values", tess_npz_path(npz),
               whole, numel);
    for (int i = 0; i < numel; i++)
        out[i] = x[i] > 0.0F && x[i] < 1e9F ? (uint32_t)x[i] : 0;
    return TESS_OK;
}

static tess_status read_mask(const tess_npz *npz, const cache_image *image, float *mask)
{
    tess_npz_array a;
    void *room = NULL;
    TESS_TRY(read_array(npz, "alpha_mask", image->key, &a));
    tess_status st = TESS_OK;
    if (a.header.dim_numel != 2)
        st = TESS_FAIL(TESS_E_FORMAT, "'%s' has %d dimensions, expected 2", a.name,
                       a.header.dim_numel);
    if (st == TESS_OK)
        st = tess_alloc_array(a.numel + 1, sizeof(float), &room);
    if (st == TESS_OK) {
        tess_npz_to_f32(&a, room);
        st = cache_mask(a.name, image, a.header.dim, room, mask);
    }
    tess_free(room);
    tess_npz_array_fini(&a);
    return st;
}

static tess_status load_image(const tess_npz *npz, const cache_image *image, cache_row *row)
{
    const int64_t dim[3] = {image->channel_numel, image->height, image->width};
    uint32_t size[2] = {0}, crop[4] = {0}; /* width, height; left, top, right, bottom */
    TESS_TRY(read_f32(npz, "latents", image->key, 3, dim, row->latent));
    TESS_TRY(read_numbers(npz, "original_size", image->key, 2, size));
    TESS_TRY(read_numbers(npz, "crop_ltrb", image->key, 4, crop));
    row->sample = (tess_latents_sample){.height = size[1],
                                        .width = size[0],
                                        .left = crop[0],
                                        .top = crop[1],
                                        .right = crop[2],
                                        .bottom = crop[3]};
    return image->has_mask ? read_mask(npz, image, row->mask) : TESS_OK;
}

tess_status cache_kohya_image(cache_set *set, const cache_image *image, cache_row *row)
{
    tess_npz *npz = NULL;
    TESS_TRY(open_npz(set, image->path, &npz));
    const tess_status st = load_image(npz, image, row);
    tess_npz_close(&npz);
    return st;
}
