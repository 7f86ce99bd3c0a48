#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/memory.h"
#include "kernels/elementwise.h"
#include "train/data/latents_priv.h"

/* Texts that are written when all of them are there. */
typedef struct text_table {
    char *bytes;   /* [room_nbytes] */
    uint64_t *end; /* [numel] of each text, its NUL included */
    int64_t room_nbytes, used_nbytes;
} text_table;

struct tess_latents_writer {
    tess_partial_file file; /* range i: section i */
    latents_layout layout;
    tess_latents_sample *sample; /* [N] */
    char **name;                 /* [N], owned */
    int64_t *done_numel;         /* [buckets] */
    text_table caption;
    int64_t caption_numel; /* appended so far */
    uint16_t *scratch;     /* [largest row] */
};

/* ---- start ---- */

static int64_t largest_row(const latents_layout *l)
{
    int64_t most = 1;
    for (int i = 0; i < l->section_numel; i++)
        most = TESS_MAX(most, l->section[i].column_numel);
    return most;
}

static tess_status alloc_tables(tess_latents_writer *w)
{
    const tess_latents_info *i = &w->layout.info;
    void *room = NULL;
    TESS_TRY(tess_alloc_array(i->sample_numel, sizeof *w->sample, &room));
    w->sample = room;
    TESS_TRY(tess_alloc_array(i->sample_numel, sizeof *w->name, &room));
    w->name = room;
    TESS_TRY(tess_alloc_array(i->bucket_numel, sizeof *w->done_numel, &room));
    w->done_numel = room;
    TESS_TRY(tess_alloc((size_t)i->caption_nbytes, &room));
    w->caption.bytes = room;
    w->caption.room_nbytes = i->caption_nbytes;
    TESS_TRY(tess_alloc_array(i->caption_numel + 1, sizeof *w->caption.end, &room));
    w->caption.end = room;
    TESS_TRY(tess_alloc_array(largest_row(&w->layout), sizeof *w->scratch, &room));
    w->scratch = room;
    return TESS_OK;
}

static tess_status lay_out(tess_latents_writer *w, const tess_ctx *ctx, const char *path)
{
    const tess_latents_info *i = &w->layout.info;
    const tess_h5_attribute attributes[] = {{"format_version", NULL, TESS_LATENTS_VERSION},
                                            {"space", "model", 0},
                                            {"channels", NULL, i->channel_numel},
                                            {"text_tokens", NULL, i->text_numel},
                                            {"text_dim", NULL, i->text_dim},
                                            {"latent_dtype", tess_dtype_name(i->latent_dt), 0},
                                            {"text_dtype", tess_dtype_name(i->text_dt), 0},
                                            {"has_masks", NULL, i->has_masks},
                                            {"has_empty", NULL, i->has_empty},
                                            {"is_text_masked", NULL, i->is_text_masked},
                                            {"tool", i->origin.tool, 0},
                                            {"vae", i->origin.vae, 0},
                                            {"text_encoders", i->origin.text_encoders, 0},
                                            {"posterior", i->origin.posterior, 0}};
    void *room = NULL;
    TESS_TRY(tess_alloc_array(w->layout.section_numel, sizeof(tess_h5_dataset), &room));
    tess_h5_dataset *dataset = room;
    for (int d = 0; d < w->layout.section_numel; d++) {
        const latents_section *s = &w->layout.section[d];
        dataset[d] = (tess_h5_dataset){.name = s->name,
                                       .type = s->type,
                                       .dim_numel = s->column_numel == 1 ? 1 : 2,
                                       .dim = {s->row_numel, s->column_numel}};
    }
    tess_h5_layout layout = {latents_block_nbytes(&w->layout), attributes, TESS_NELEM(attributes),
                             dataset, w->layout.section_numel};
    const tess_status st =
        tess_h5_start_file(&w->file, ctx->io, path, &layout, &w->layout.metadata);
    for (int d = 0; d < w->layout.section_numel; d++)
        w->layout.section[d].offset_nbytes = dataset[d].offset_nbytes;
    w->layout.info.file_nbytes = w->file.file_nbytes;
    tess_free(dataset);
    return st;
}

static tess_status start(tess_latents_writer *w, const tess_ctx *ctx, const char *path,
                         const tess_latents_info *info, const tess_latents_bucket *bucket)
{
    TESS_TRY(latents_layout_init(path, TESS_E_ARG, info, bucket, &w->layout));
    TESS_TRY(alloc_tables(w));
    return lay_out(w, ctx, path);
}

tess_status tess_latents_writer_create(const tess_ctx *ctx, const char *path,
                                       const tess_latents_info *info,
                                       const tess_latents_bucket *bucket, tess_latents_writer **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_latents_writer), &object));
    tess_latents_writer *w = object;
    w->file.fd = -1;
    const tess_status st = start(w, ctx, path, info, bucket);
    if (st != TESS_OK) {
        tess_latents_writer_destroy(&w);
        return st;
    }
    *out = w;
    return TESS_OK;
}

/* ---- rows ---- */

/* The next rows of a section, as they are stored. */
static tess_status put_raw(tess_latents_writer *w, int section_idx, const void *rows,
                           int64_t row_numel)
{
    latents_section *s = &w->layout.section[section_idx];
    const tess_partial_range *r = &w->file.range[section_idx];
    const int64_t numel = row_numel * s->column_numel;
    const int64_t first = r->done_nbytes / (int64_t)s->elem_nbytes;
    TESS_TRY(tess_partial_file_append(&w->file, section_idx, rows, (size_t)numel * s->elem_nbytes));
    tess_logical_hash_add(&s->hash, rows, numel, s->elem_nbytes, first);
    return TESS_OK;
}

/* One row of numbers, rounded to the section's dtype. `whose` names it in messages. */
static tess_status put_row(tess_latents_writer *w, int section_idx, const float *x,
                           const char *whose)
{
    const latents_section *s = &w->layout.section[section_idx];
    const bool is_bf16 = s->type == TESS_H5_U16;
    for (int64_t i = 0; i < s->column_numel; i++) {
        const uint16_t rounded = tess_bf16_from_f32(x[i]);
        TESS_CHECK(isfinite(x[i]) && (!is_bf16 || isfinite(tess_bf16_to_f32(rounded))),
                   TESS_E_FORMAT,
                   "'%s': element %" PRId64 " of %s is %g, expected a finite number; make the "
                   "entry again or leave it out",
                   whose, i, s->name, (double)x[i]);
        w->scratch[i] = rounded;
    }
    return is_bf16 ? put_raw(w, section_idx, w->scratch, 1) : put_raw(w, section_idx, x, 1);
}

tess_status tess_latents_writer_text(tess_latents_writer *w, const tess_latents_text *text)
{
    const tess_latents_info *info = &w->layout.info;
    const int64_t nbytes = (int64_t)strlen(text->caption) + 1;
    text_table *t = &w->caption;
    TESS_CHECK(w->caption_numel < info->caption_numel && nbytes <= t->room_nbytes - t->used_nbytes,
               TESS_E_RANGE, "cache '%s': caption %" PRId64 " of %" PRId64 " does not fit",
               w->file.path, w->caption_numel, info->caption_numel);
    TESS_CHECK(text->length >= 0 && text->length <= info->text_numel, TESS_E_RANGE,
               "cache '%s': caption '%.80s' has %" PRId64 " tokens, expected 0 to %" PRId64,
               w->file.path, text->caption, text->length, info->text_numel);
    const uint32_t length = (uint32_t)text->length;
    TESS_TRY(put_row(w, TESS_LATENTS_AT_TEXTS, text->text, text->caption));
    TESS_TRY(put_row(w, TESS_LATENTS_AT_POOLED, text->pooled, text->caption));
    TESS_TRY(put_raw(w, TESS_LATENTS_AT_LENGTH, &length, 1));
    memcpy(t->bytes + t->used_nbytes, text->caption, (size_t)nbytes);
    t->used_nbytes += nbytes;
    t->end[w->caption_numel++] = (uint64_t)t->used_nbytes;
    return TESS_OK;
}

static tess_status put_mask(tess_latents_writer *w, int section_idx, const char *name,
                            const float *mask)
{
    const latents_section *s = &w->layout.section[section_idx];
    float *row = (float *)(void *)w->scratch; /* a latent of as many tokens is far longer */
    for (int64_t i = 0; i < s->column_numel; i++) {
        row[i] = mask == NULL ? 1.0F : mask[i];
        TESS_CHECK(row[i] >= 0.0F && row[i] <= 1.0F, TESS_E_FORMAT,
                   "'%s': element %" PRId64 " of the mask is %g, expected 0 to 1", name, i,
                   (double)row[i]);
    }
    return put_raw(w, section_idx, row, 1);
}

tess_status tess_latents_writer_image(tess_latents_writer *w, int64_t bucket_idx,
                                      const tess_latents_image *image)
{
    const latents_layout *l = &w->layout;
    TESS_CHECK(bucket_idx >= 0 && bucket_idx < l->info.bucket_numel &&
                   w->done_numel[bucket_idx] < l->bucket[bucket_idx].sample_numel,
               TESS_E_RANGE, "cache '%s': sample '%s' of bucket %" PRId64 " does not fit",
               w->file.path, image->name, bucket_idx);
    TESS_CHECK(image->sample.caption_idx < l->info.caption_numel, TESS_E_RANGE,
               "cache '%s': sample '%s' has caption %" PRIu32 " of %" PRId64, w->file.path,
               image->name, image->sample.caption_idx, l->info.caption_numel);
    TESS_CHECK(image->mask == NULL || l->info.has_masks, TESS_E_ARG,
               "cache '%s': sample '%s' has a mask, none were announced", w->file.path,
               image->name);
    TESS_TRY(put_row(w, latents_at_latent(bucket_idx), image->latent, image->name));
    if (l->info.has_masks)
        TESS_TRY(put_mask(w, latents_at_mask(l, bucket_idx), image->name, image->mask));
    const int64_t at = l->bucket[bucket_idx].first_idx + w->done_numel[bucket_idx];
    TESS_TRY(tess_strdup(image->name, &w->name[at]));
    w->sample[at] = image->sample;
    w->done_numel[bucket_idx]++;
    return TESS_OK;
}

/* ---- finish ---- */

static tess_status put_names(tess_latents_writer *w)
{
    uint64_t end = 0;
    TESS_TRY(put_raw(w, TESS_LATENTS_AT_NAME_AT, &end, 1));
    for (int64_t i = 0; i < w->layout.info.sample_numel; i++) {
        const size_t nbytes = strlen(w->name[i]) + 1;
        end += nbytes;
        TESS_TRY(put_raw(w, TESS_LATENTS_AT_NAME, w->name[i], (int64_t)nbytes));
        TESS_TRY(put_raw(w, TESS_LATENTS_AT_NAME_AT, &end, 1));
    }
    return TESS_OK;
}

tess_status tess_latents_writer_finish(tess_latents_writer *w)
{
    const latents_layout *l = &w->layout;
    const uint64_t zero = 0;
    void *block = NULL;
    for (int64_t b = 0; b < l->info.bucket_numel; b++)
        TESS_CHECK(w->done_numel[b] == l->bucket[b].sample_numel, TESS_E_STATE,
                   "cache '%s': %" PRId64 " of %" PRId64 " samples of bucket %" PRId64
                   " are written",
                   w->file.path, w->done_numel[b], l->bucket[b].sample_numel, b);
    TESS_CHECK(w->caption_numel == l->info.caption_numel, TESS_E_STATE,
               "cache '%s': %" PRId64 " of %" PRId64 " captions are written", w->file.path,
               w->caption_numel, l->info.caption_numel);
    TESS_TRY(put_raw(w, TESS_LATENTS_AT_SAMPLE, w->sample, l->info.sample_numel));
    TESS_TRY(put_names(w));
    TESS_TRY(put_raw(w, TESS_LATENTS_AT_CAPTION, w->caption.bytes, w->caption.used_nbytes));
    TESS_TRY(put_raw(w, TESS_LATENTS_AT_CAPTION_AT, &zero, 1));
    TESS_TRY(put_raw(w, TESS_LATENTS_AT_CAPTION_AT, w->caption.end, l->info.caption_numel));
    const size_t block_nbytes = (size_t)latents_block_nbytes(l);
    TESS_TRY(tess_alloc(block_nbytes, &block));
    tess_status st = latents_block_encode(l, block);
    if (st == TESS_OK)
        st = tess_partial_file_patch(&w->file, 0, block, block_nbytes);
    tess_free(block);
    TESS_TRY(st);
    return tess_partial_file_finish(&w->file);
}

void tess_latents_writer_destroy(tess_latents_writer **writer)
{
    tess_latents_writer *w = *writer;
    if (w == NULL)
        return;
    tess_partial_file_fini(&w->file);
    for (int64_t i = 0; w->name != NULL && i < w->layout.info.sample_numel; i++)
        tess_free(w->name[i]);
    tess_free(w->name);
    tess_free(w->sample);
    tess_free(w->done_numel);
    tess_free(w->caption.bytes);
    tess_free(w->caption.end);
    tess_free(w->scratch);
    latents_layout_fini(&w->layout);
    tess_free(w);
    *writer = NULL;
}
