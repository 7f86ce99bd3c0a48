/*
 * [Note: two passes] Shapes and names of all inputs are listed first, and texts are read once to
 * find equal ones: then the counts of the output are known, and it is written row by row.
 */
#include "train/prepare/cache.h"

#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "train/prepare/cache_priv.h"

enum { DEPTH_MAX = 32 };

static void free_set(cache_set *set)
{
    for (int64_t i = 0; i < set->image_numel; i++) {
        tess_free(set->image[i].name);
        tess_free(set->image[i].path);
        tess_free(set->image[i].key);
        tess_free(set->image[i].text_name);
    }
    for (int64_t i = 0; i < set->text_numel; i++) {
        tess_free(set->text[i].path);
        tess_free(set->text[i].key);
        tess_free(set->text[i].caption);
    }
    tess_safetensors_close(&set->file);
    tess_free(set->image);
    tess_free(set->text);
    tess_free(set->first_path);
}

/* ---- list ---- */

static tess_status scan_file(cache_set *set, const char *path, bool is_named)
{
    if (cache_kohya_is_latents(path))
        return cache_kohya_scan(set, path);
    if (cache_tensors_is(path))
        return cache_tensors_scan(set, path);
    TESS_CHECK(!is_named, TESS_E_CONFIG,
               "'%s' is no cache: expected a folder, a file NAME_flux.npz of sd-scripts, or "
               "NAME.safetensors; docs/data.md says how to convert others",
               path);
    return TESS_OK;
}

static tess_status scan_path(cache_set *set, const char *path, int depth);

static tess_status scan_folder(cache_set *set, const char *path, int depth)
{
    char **name = NULL;
    int64_t numel = 0;
    TESS_CHECK(depth < DEPTH_MAX, TESS_E_CONFIG, "'%s': more than %d folders deep", path,
               DEPTH_MAX);
    TESS_TRY(tess_io_list(set->ctx->io, path, &name, &numel));
    tess_status st = TESS_OK;
    for (int64_t i = 0; st == TESS_OK && i < numel; i++) {
        char *below = NULL;
        st = tess_asprintf(&below, "%s/%s", path, name[i]);
        if (st == TESS_OK)
            st = scan_path(set, below, depth + 1);
        tess_free(below);
    }
    tess_io_list_free(&name, numel);
    return st;
}

static tess_status scan_path(cache_set *set, const char *path, int depth)
{
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    TESS_TRY(tess_io_stat(set->ctx->io, path, &kind, &nbytes));
    TESS_CHECK(kind != TESS_IO_MISSING || depth > 0, TESS_E_CONFIG, "'%s' is missing", path);
    if (kind == TESS_IO_DIR)
        return scan_folder(set, path, depth);
    return kind == TESS_IO_FILE ? scan_file(set, path, depth == 0) : TESS_OK;
}

/* The embeddings of "" that the user names. */
static tess_status add_empty(cache_set *set)
{
    const char *path = set->options->empty_path;
    const int64_t before = set->text_numel;
    if (path == NULL)
        return TESS_OK;
    set->empty_idx = -1;
    if (set->kind == CACHE_KIND_KOHYA) {
        TESS_CHECK(cache_kohya_is_text(path), TESS_E_CONFIG,
                   "--empty: '%s' is no text cache of sd-scripts (NAME_flux_te.npz)", path);
        return cache_kohya_add_empty(set, path);
    }
    TESS_TRY(cache_tensors_scan(set, path));
    TESS_CHECK(set->text_numel == before + 1, TESS_E_FORMAT,
               "--empty: '%s' has %" PRId64 " texts, expected one", path, set->text_numel - before);
    set->empty_idx = before;
    return TESS_OK;
}

static tess_status list_inputs(cache_set *set)
{
    const tess_cache_options *o = set->options;
    for (int64_t i = 0; i < o->input_numel; i++)
        TESS_TRY(scan_path(set, o->inputs[i], 0));
    TESS_CHECK(set->image_numel > 0, TESS_E_CONFIG,
               "'%s' holds no latents: expected files NAME_flux.npz of sd-scripts, or "
               "NAME.safetensors with tensors NAME.latent; tools/make_flux_cache.py makes them of "
               "images, and docs/data.md says how to convert caches of other tools",
               o->input_numel > 0 ? o->inputs[0] : "");
    return add_empty(set);
}

/* ---- texts ---- */

static int by_key(const void *a, const void *b)
{
    return strcmp((*(const cache_text *const *)a)->key, (*(const cache_text *const *)b)->key);
}

static int compare_key(const void *key, const void *text)
{
    return strcmp(key, (*(const cache_text *const *)text)->key);
}

static tess_status find_texts(cache_set *set, const cache_text **sorted)
{
    for (int64_t i = 0; i < set->text_numel; i++)
        sorted[i] = &set->text[i];
    qsort((void *)sorted, (size_t)set->text_numel, sizeof *sorted, by_key);
    for (int64_t i = 1; i < set->text_numel; i++)
        TESS_CHECK(strcmp(sorted[i - 1]->key, sorted[i]->key) != 0, TESS_E_FORMAT,
                   "text '%s' is in '%s' and in '%s': rename one", sorted[i]->key,
                   sorted[i - 1]->path, sorted[i]->path);
    for (int64_t i = 0; i < set->image_numel; i++) {
        cache_image *image = &set->image[i];
        const cache_text *const *found =
            bsearch(image->text_name, (const void *)sorted, (size_t)set->text_numel, sizeof *sorted,
                    compare_key);
        TESS_CHECK(found != NULL, TESS_E_FORMAT,
                   "'%s': sample '%s' has no text: expected tensors '%s.t5' and '%s.pooled', here "
                   "or in another input",
                   image->path, image->name, image->text_name, image->text_name);
        image->text_idx = *found - set->text;
    }
    return TESS_OK;
}

static tess_status load_text(cache_set *set, const cache_text *text, cache_row *row)
{
    return set->kind == CACHE_KIND_KOHYA ? cache_kohya_text(set, text, row)
                                         : cache_tensors_text(set, text, row);
}

static tess_status digest_texts(cache_set *set, cache_row *row)
{
    for (int64_t i = 0; i < set->text_numel; i++) {
        cache_text *t = &set->text[i];
        TESS_TRY(load_text(set, t, row));
        const tess_xxh128 part[2] = {
            tess_xxh128_of(row->text, (size_t)(t->token_numel * t->dim) * sizeof(float)),
            tess_xxh128_of(row->pooled, (size_t)t->pooled_dim * sizeof(float))};
        t->digest = tess_xxh128_of(part, sizeof part);
    }
    return TESS_OK;
}

static int by_digest(const void *a, const void *b)
{
    const cache_text *x = *(const cache_text *const *)a, *y = *(const cache_text *const *)b;
    const int order = memcmp(x->digest.byte, y->digest.byte, sizeof x->digest.byte);
    return order != 0 ? order : (x > y) - (x < y);
}

/* Text i stands for all equal ones: the first of them. */
static void join_equal(cache_set *set, cache_text **sorted, int64_t *same_idx)
{
    for (int64_t i = 0; i < set->text_numel; i++)
        sorted[i] = &set->text[i];
    qsort(sorted, (size_t)set->text_numel, sizeof *sorted, by_digest);
    for (int64_t i = 0; i < set->text_numel; i++) {
        const bool is_same = i > 0 && memcmp(sorted[i - 1]->digest.byte, sorted[i]->digest.byte,
                                             sizeof sorted[i]->digest.byte) == 0;
        same_idx[sorted[i] - set->text] =
            is_same ? same_idx[sorted[i - 1] - set->text] : sorted[i] - set->text;
    }
}

static int by_size(const void *a, const void *b)
{
    const cache_image *x = a, *y = b;
    return x->height != y->height ? (x->height > y->height) - (x->height < y->height)
           : x->width != y->width ? (x->width > y->width) - (x->width < y->width)
                                  : strcmp(x->name, y->name);
}

static tess_status check_names(const cache_set *set)
{
    for (int64_t i = 1; i < set->image_numel; i++)
        TESS_CHECK(by_size(&set->image[i - 1], &set->image[i]) != 0, TESS_E_FORMAT,
                   "sample '%s' of %" PRId64 " x %" PRId64 " is in '%s' and in '%s': leave one out",
                   set->image[i].name, set->image[i].height, set->image[i].width,
                   set->image[i - 1].path, set->image[i].path);
    return TESS_OK;
}

/* Numbers of captions in the order in which samples first have them, the empty one in front.
 * @param[out] order  [text_numel] texts by caption number */
static void number_captions(cache_set *set, const int64_t *same_idx, int64_t *order,
                            int64_t *caption_numel)
{
    int64_t numel = 0;
    if (set->empty_idx >= 0) {
        const int64_t empty = same_idx[set->empty_idx];
        set->text[empty].caption_idx = 0;
        order[numel++] = empty;
    }
    for (int64_t i = 0; i < set->image_numel; i++) {
        const int64_t text = same_idx[set->image[i].text_idx];
        if (set->text[text].caption_idx < 0) {
            set->text[text].caption_idx = numel;
            order[numel++] = text;
        }
        set->image[i].text_idx = text;
    }
    *caption_numel = numel;
}

/* ---- write ---- */

static const char *caption_of(const cache_set *set, int64_t text_idx, int64_t number)
{
    const char *caption = set->text[text_idx].caption;
    if (number == 0 && set->empty_idx >= 0)
        return "";
    return caption == NULL ? "(not known)" : caption;
}

static void describe(const cache_set *set, const int64_t *order, int64_t caption_numel,
                     tess_latents_info *info)
{
    const cache_text *text = &set->text[0];
    *info = (tess_latents_info){.sample_numel = set->image_numel,
                                .caption_numel = caption_numel,
                                .channel_numel = set->image[0].channel_numel,
                                .text_numel = text->token_numel,
                                .text_dim = text->dim,
                                .pooled_dim = text->pooled_dim,
                                .latent_dt = set->options->latent_dt,
                                .text_dt = set->options->text_dt,
                                .has_empty = set->empty_idx >= 0,
                                .is_text_masked = set->is_text_masked,
                                .origin = set->origin};
    for (int64_t i = 0; i < set->image_numel; i++) {
        info->has_masks = info->has_masks || set->image[i].has_mask;
        info->name_nbytes += (int64_t)strlen(set->image[i].name) + 1;
    }
    for (int64_t i = 0; i < caption_numel; i++)
        info->caption_nbytes += (int64_t)strlen(caption_of(set, order[i], i)) + 1;
}

/* Sizes of the sorted images. @param[out] bucket  [TESS_LATENTS_BUCKET_MAX] */
static tess_status make_buckets(const cache_set *set, tess_latents_bucket *bucket,
                                tess_latents_info *info)
{
    int64_t n = 0;
    for (int64_t i = 0; i < set->image_numel; i++) {
        const cache_image *image = &set->image[i];
        if (n == 0 || bucket[n - 1].height != image->height ||
            bucket[n - 1].width != image->width) {
            TESS_CHECK(n < TESS_LATENTS_BUCKET_MAX, TESS_E_CONFIG,
                       "more than %d sizes of latents; make caches with fewer bucket sizes",
                       TESS_LATENTS_BUCKET_MAX);
            bucket[n++] = (tess_latents_bucket){.height = image->height, .width = image->width};
        }
        bucket[n - 1].sample_numel++;
    }
    info->bucket_numel = n;
    return TESS_OK;
}

/* Sums of latents, to see whether they are what they are said to be. */
typedef struct moments {
    double numel, sum, squares;
} moments;

static void take_latent(const cache_set *set, float *latent, int64_t numel, moments *m)
{
    for (int64_t i = 0; i < numel; i++) {
        if (set->is_raw)
            latent[i] = (float)(((double)latent[i] - TESS_LATENTS_SHIFT) * TESS_LATENTS_SCALE);
        m->sum += (double)latent[i];
        m->squares += (double)latent[i] * (double)latent[i];
    }
    m->numel += (double)numel;
}

static tess_status write_images(cache_set *set, cache_row *row, tess_latents_writer *w, moments *m)
{
    int64_t bucket = -1;
    for (int64_t i = 0; i < set->image_numel; i++) {
        const cache_image *image = &set->image[i];
        bucket += i == 0 || image[-1].height != image->height || image[-1].width != image->width;
        TESS_TRY(set->kind == CACHE_KIND_KOHYA ? cache_kohya_image(set, image, row)
                                               : cache_tensors_image(set, image, row));
        take_latent(set, row->latent, image->channel_numel * image->height * image->width, m);
        row->sample.caption_idx = (uint32_t)set->text[image->text_idx].caption_idx;
        const tess_latents_image put = {image->name, row->sample, row->latent,
                                        image->has_mask ? row->mask : NULL};
        TESS_TRY(tess_latents_writer_image(w, bucket, &put));
    }
    return TESS_OK;
}

/* Model space has a deviation near 1, the autoencoder's own 2.8 times that. */
static tess_status check_deviation(const cache_set *set, const moments *m, double *out)
{
    const double mean = m->sum / m->numel;
    *out = sqrt(fmax(m->squares / m->numel - mean * mean, 0.0));
    TESS_CHECK(*out <= 2.0, TESS_E_FORMAT,
               "'%s': latents have a standard deviation of %.3g, expected about 1: they are not "
               "shifted and scaled by (enc - 0.1159) 0.3611%s",
               set->first_path, *out,
               set->kind == CACHE_KIND_TENSORS && !set->is_raw ? "; set metadata 'space' to 'raw'"
                                                               : "; make the cache again");
    TESS_CHECK(!set->is_raw || *out >= 0.05, TESS_E_FORMAT,
               "'%s': after shift and scale, latents have a standard deviation of %.3g, expected "
               "about 1: metadata 'space' should be 'model'",
               set->first_path, *out);
    return TESS_OK;
}

static tess_status write_all(cache_set *set, const int64_t *order, cache_row *row,
                             tess_latents_writer *w, tess_cache_result *out)
{
    moments m = {0};
    for (int64_t i = 0; i < out->info.caption_numel; i++) {
        const cache_text *text = &set->text[order[i]];
        TESS_TRY(load_text(set, text, row));
        const tess_latents_text put = {caption_of(set, order[i], i), row->text, row->pooled,
                                       row->length};
        TESS_TRY(tess_latents_writer_text(w, &put));
    }
    TESS_TRY(write_images(set, row, w, &m));
    TESS_TRY(check_deviation(set, &m, &out->deviation));
    return tess_latents_writer_finish(w);
}

static tess_status write_output(cache_set *set, const int64_t *order, cache_row *row,
                                tess_cache_result *out)
{
    const char *path = set->options->output_path;
    tess_latents_writer *w = NULL;
    tess_latents *file = NULL;
    void *bucket = NULL;
    TESS_TRY(tess_alloc_array(TESS_LATENTS_BUCKET_MAX, sizeof(tess_latents_bucket), &bucket));
    tess_status st = make_buckets(set, bucket, &out->info);
    if (st == TESS_OK)
        st = tess_latents_writer_create(set->ctx, path, &out->info, bucket, &w);
    if (st == TESS_OK)
        st = write_all(set, order, row, w, out);
    tess_latents_writer_destroy(&w);
    tess_free(bucket);
    if (st == TESS_OK)
        st = tess_latents_open(set->ctx, path, &file);
    if (st == TESS_OK)
        out->info = *tess_latents_get_info(file);
    tess_latents_close(&file);
    return st;
}

/* ---- run ---- */

static tess_status alloc_row(const cache_set *set, cache_row *row)
{
    int64_t latent_numel = 1, mask_numel = 1, text_numel = 1, pooled_numel = 1;
    void *room = NULL;
    for (int64_t i = 0; i < set->image_numel; i++) {
        const cache_image *image = &set->image[i];
        latent_numel = TESS_MAX(latent_numel, image->channel_numel * image->height * image->width);
        mask_numel = TESS_MAX(mask_numel, image->height * image->width);
    }
    if (set->text_numel > 0) {
        TESS_CHECK(set->text[0].token_numel <= 1 << 16 && set->text[0].dim <= 1 << 20,
                   TESS_E_FORMAT, "'%s': texts of %" PRId64 " x %" PRId64, set->text[0].path,
                   set->text[0].token_numel, set->text[0].dim);
        text_numel = TESS_MAX(set->text[0].token_numel * set->text[0].dim, 1);
        pooled_numel = TESS_MAX(set->text[0].pooled_dim, 1);
        mask_numel = TESS_MAX(mask_numel, set->text[0].token_numel);
    }
    TESS_TRY(tess_alloc_array(latent_numel, sizeof(float), &room));
    row->latent = room;
    TESS_TRY(tess_alloc_array(mask_numel, sizeof(float), &room));
    row->mask = room;
    TESS_TRY(tess_alloc_array(text_numel, sizeof(float), &room));
    row->text = room;
    TESS_TRY(tess_alloc_array(pooled_numel, sizeof(float), &room));
    row->pooled = room;
    return TESS_OK;
}

/* @param tables  [3][text_numel]: sorted pointers, equal texts, texts by caption */
static tess_status convert(cache_set *set, cache_row *row, int64_t *tables, tess_cache_result *out)
{
    int64_t *same_idx = tables + set->text_numel, *order = same_idx + set->text_numel;
    int64_t caption_numel = 0;
    _Static_assert(sizeof(void *) <= sizeof(int64_t), "room for pointers");
    if (set->kind == CACHE_KIND_TENSORS)
        TESS_TRY(find_texts(set, (const cache_text **)(void *)tables));
    TESS_TRY(digest_texts(set, row));
    join_equal(set, (cache_text **)(void *)tables, same_idx);
    qsort(set->image, (size_t)set->image_numel, sizeof *set->image, by_size);
    TESS_TRY(check_names(set));
    number_captions(set, same_idx, order, &caption_numel);
    describe(set, order, caption_numel, &out->info);
    out->flipped_numel = set->flipped_numel;
    return write_output(set, order, row, out);
}

tess_status tess_cache_run(const tess_ctx *ctx, const tess_cache_options *options,
                           tess_cache_result *out)
{
    cache_set set = {.ctx = ctx, .options = options, .empty_idx = -1};
    cache_row row = {.latent = NULL};
    tess_cache_result result = {.flipped_numel = 0};
    void *tables = NULL;
    tess_status st = list_inputs(&set);
    if (st == TESS_OK)
        st = alloc_row(&set, &row);
    if (st == TESS_OK)
        st = tess_alloc_array(3 * set.text_numel + 1, sizeof(int64_t), &tables);
    if (st == TESS_OK)
        st = convert(&set, &row, tables, &result);
    tess_free(tables);
    tess_free(row.latent);
    tess_free(row.mask);
    tess_free(row.text);
    tess_free(row.pooled);
    free_set(&set);
    if (st == TESS_OK)
        *out = result;
    return st;
}
