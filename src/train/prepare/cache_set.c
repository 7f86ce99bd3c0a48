/* The list of inputs. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/memory.h"
#include "train/prepare/cache_priv.h"

/* ---- growing ---- */

static tess_status copy_text(const char *text, char **out)
{
    return text == NULL ? TESS_OK : tess_strdup(text, out);
}

static tess_status grow(int64_t numel, int64_t *room_numel, size_t elem_nbytes, void **array)
{
    const int64_t more = *room_numel == 0 ? 64 : 2 * *room_numel;
    if (numel < *room_numel)
        return TESS_OK;
    TESS_TRY(tess_realloc_array(*room_numel, more, elem_nbytes, array));
    *room_numel = more;
    return TESS_OK;
}

static tess_status check_image(const cache_image *i)
{
    TESS_CHECK(i->channel_numel >= 1 && i->height >= 2 && i->width >= 2 && i->height % 2 == 0 &&
                   i->width % 2 == 0 && i->height <= TESS_LATENTS_SIDE_MAX &&
                   i->width <= TESS_LATENTS_SIDE_MAX && i->channel_numel <= 1024,
               TESS_E_FORMAT,
               "'%s': the latent of '%s' is [%" PRId64 ", %" PRId64 ", %" PRId64
               "], expected [16, h, w] with even h and w up to %d: images of a multiple of 16 "
               "pixels",
               i->path, i->name, i->channel_numel, i->height, i->width, TESS_LATENTS_SIDE_MAX);
    return TESS_OK;
}

tess_status cache_add_image(cache_set *set, const cache_image *image)
{
    void *array = set->image;
    TESS_TRY(check_image(image));
    TESS_CHECK(set->image_numel == 0 || set->image[0].channel_numel == image->channel_numel,
               TESS_E_FORMAT,
               "'%s': the latent of '%s' has %" PRId64 " channels, that of '%s' %" PRId64
               ": they are of two autoencoders",
               image->path, image->name, image->channel_numel, set->image[0].name,
               set->image[0].channel_numel);
    TESS_TRY(grow(set->image_numel, &set->image_room_numel, sizeof *set->image, &array));
    set->image = array;
    cache_image *to = &set->image[set->image_numel++];
    *to = *image;
    to->name = to->path = to->key = to->text_name = NULL;
    TESS_TRY(copy_text(image->name, &to->name));
    TESS_TRY(copy_text(image->path, &to->path));
    TESS_TRY(copy_text(image->key, &to->key));
    return copy_text(image->text_name, &to->text_name);
}

static tess_status check_text(const cache_set *set, const cache_text *t)
{
    const int64_t wanted = set->options->text_numel;
    TESS_CHECK(wanted == 0 || t->token_numel == wanted, TESS_E_FORMAT,
               "'%s' has texts of %" PRId64 " tokens, --text-length is %" PRId64
               "; encode them again with that length",
               t->path, t->token_numel, wanted);
    if (set->text_numel == 0)
        return TESS_OK;
    const cache_text *first = &set->text[0];
    TESS_CHECK(t->token_numel == first->token_numel && t->dim == first->dim &&
                   t->pooled_dim == first->pooled_dim,
               TESS_E_FORMAT,
               "'%s' has texts of %" PRId64 " x %" PRId64 " and %" PRId64 ", '%s' of %" PRId64
               " x %" PRId64 " and %" PRId64 "; encode all with one model and length",
               t->path, t->token_numel, t->dim, t->pooled_dim, first->path, first->token_numel,
               first->dim, first->pooled_dim);
    return TESS_OK;
}

tess_status cache_add_text(cache_set *set, const cache_text *text)
{
    void *array = set->text;
    TESS_TRY(check_text(set, text));
    TESS_TRY(grow(set->text_numel, &set->text_room_numel, sizeof *set->text, &array));
    set->text = array;
    cache_text *to = &set->text[set->text_numel++];
    *to = *text;
    to->path = to->key = to->caption = NULL;
    to->caption_idx = -1;
    TESS_TRY(copy_text(text->path, &to->path));
    TESS_TRY(copy_text(text->key, &to->key));
    TESS_TRY(copy_text(text->caption, &to->caption));
    if (set->empty_idx < 0 && text->caption != NULL && *text->caption == '\0')
        set->empty_idx = set->text_numel - 1;
    return TESS_OK;
}

/* ---- what belongs together ---- */

tess_status cache_take_kind(cache_set *set, cache_kind kind, const char *path)
{
    static const char *const name[] = {[CACHE_KIND_NONE] = "nothing",
                                       [CACHE_KIND_KOHYA] = "sd-scripts",
                                       [CACHE_KIND_TENSORS] = "safetensors"};
    if (set->kind == CACHE_KIND_NONE) {
        set->kind = kind;
        return tess_strdup(path, &set->first_path);
    }
    TESS_CHECK(set->kind == kind, TESS_E_CONFIG,
               "'%s' is a cache of %s, '%s' one of %s: encoders of two tools differ, so convert "
               "one of them",
               path, name[kind], set->first_path, name[set->kind]);
    return TESS_OK;
}

tess_status cache_take_origin(cache_set *set, const tess_latents_origin *origin, bool is_raw,
                              const char *path)
{
    const tess_latents_origin *o = &set->origin;
    if (!set->has_origin) {
        set->origin = *origin;
        set->is_raw = is_raw;
        set->has_origin = true;
        return TESS_OK;
    }
    const bool is_same = strcmp(o->tool, origin->tool) == 0 && strcmp(o->vae, origin->vae) == 0 &&
                         strcmp(o->text_encoders, origin->text_encoders) == 0 &&
                         strcmp(o->posterior, origin->posterior) == 0 && set->is_raw == is_raw;
    TESS_CHECK(is_same, TESS_E_CONFIG,
               "'%s' was made by tool '%s', vae '%s', text encoders '%s', posterior '%s', space "
               "%s; '%s' by '%s', '%s', '%s', '%s', %s: convert one of them",
               path, origin->tool, origin->vae, origin->text_encoders, origin->posterior,
               is_raw ? "raw" : "model", set->first_path, o->tool, o->vae, o->text_encoders,
               o->posterior, set->is_raw ? "raw" : "model");
    return TESS_OK;
}

/* ---- arrays ---- */

tess_status cache_check_finite(const char *name, const float *x, int64_t numel)
{
    for (int64_t i = 0; i < numel; i++)
        TESS_CHECK(isfinite(x[i]), TESS_E_FORMAT,
                   "'%s': element %" PRId64 " is %g, expected a finite number; make the entry "
                   "again or leave it out",
                   name, i, (double)x[i]);
    return TESS_OK;
}

tess_status cache_mask(const char *name, const cache_image *image, const int64_t dim[2],
                       const float *values, float *mask)
{
    const int64_t rows = image->height / TESS_LATENTS_PATCH;
    const int64_t columns = image->width / TESS_LATENTS_PATCH;
    const int64_t dy = dim[0] / rows, dx = dim[1] / columns;
    TESS_CHECK(dy >= 1 && dx >= 1 && dy * rows == dim[0] && dx * columns == dim[1], TESS_E_FORMAT,
               "'%s': a mask of %" PRId64 " x %" PRId64 ", expected a whole multiple of %" PRId64
               " x %" PRId64 " (tokens of the latent)",
               name, dim[0], dim[1], rows, columns);
    for (int64_t i = 0; i < dim[0] * dim[1]; i++)
        TESS_CHECK(values[i] >= 0.0F && values[i] <= 1.0F, TESS_E_FORMAT,
                   "'%s': element %" PRId64 " of the mask is %g, expected 0 to 1", name, i,
                   (double)values[i]);
    for (int64_t t = 0; t < rows * columns; t++) {
        double sum = 0.0;
        for (int64_t y = 0; y < dy; y++)
            for (int64_t x = 0; x < dx; x++)
                sum += (double)values[(t / columns * dy + y) * dim[1] + t % columns * dx + x];
        mask[t] = (float)(sum / (double)(dy * dx));
    }
    return TESS_OK;
}
