/* Which datasets a cache has, by its counts alone. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "train/data/latents_priv.h"
#include "train/strbuf.h"

enum { DIM_MAX = 1 << 20, TEXT_NUMEL_MAX = 1 << 16, BLOCK_OF_SECTION_NBYTES = 160 };

/* ---- checks ---- */

static tess_status check_count(const char *path, tess_status code, const char *what, int64_t found,
                               int64_t least, int64_t most)
{
    TESS_CHECK(found >= least && found <= most, code,
               "cache '%s': %s is %" PRId64 ", expected %" PRId64 " to %" PRId64, path, what, found,
               least, most);
    return TESS_OK;
}

static tess_status check_text(const char *path, tess_status code, const char *what,
                              const char *text)
{
    TESS_CHECK(memchr(text, '\0', TESS_LATENTS_TEXT_NBYTES) != NULL, code,
               "cache '%s': %s is longer than %d bytes", path, what, TESS_LATENTS_TEXT_NBYTES - 1);
    return TESS_OK;
}

static tess_status check_info(const char *path, tess_status code, const tess_latents_info *i)
{
    TESS_TRY(check_count(path, code, "samples", i->sample_numel, 1, UINT32_MAX));
    TESS_TRY(check_count(path, code, "captions", i->caption_numel, 1, UINT32_MAX));
    TESS_TRY(check_count(path, code, "buckets", i->bucket_numel, 1, TESS_LATENTS_BUCKET_MAX));
    TESS_TRY(check_count(path, code, "channels", i->channel_numel, 1, 1024));
    TESS_TRY(check_count(path, code, "text_tokens", i->text_numel, 1, TEXT_NUMEL_MAX));
    TESS_TRY(check_count(path, code, "text_dim", i->text_dim, 1, DIM_MAX));
    TESS_TRY(check_count(path, code, "pooled_dim", i->pooled_dim, 1, DIM_MAX));
    TESS_TRY(check_count(path, code, "name_nbytes", i->name_nbytes, i->sample_numel, INT64_MAX));
    TESS_TRY(
        check_count(path, code, "caption_nbytes", i->caption_nbytes, i->caption_numel, INT64_MAX));
    TESS_CHECK((i->latent_dt == TESS_BF16 || i->latent_dt == TESS_F32) &&
                   (i->text_dt == TESS_BF16 || i->text_dt == TESS_F32),
               code, "cache '%s': dtypes other than bf16 and f32", path);
    TESS_TRY(check_text(path, code, "tool", i->origin.tool));
    TESS_TRY(check_text(path, code, "vae", i->origin.vae));
    TESS_TRY(check_text(path, code, "text_encoders", i->origin.text_encoders));
    return check_text(path, code, "posterior", i->origin.posterior);
}

static tess_status check_buckets(const char *path, tess_status code, const latents_layout *l)
{
    const tess_latents_bucket *b = l->bucket;
    int64_t sample_numel = 0;
    for (int64_t i = 0; i < l->info.bucket_numel; i++) {
        TESS_CHECK(b[i].height >= 2 && b[i].width >= 2 && b[i].height <= TESS_LATENTS_SIDE_MAX &&
                       b[i].width <= TESS_LATENTS_SIDE_MAX && b[i].height % 2 == 0 &&
                       b[i].width % 2 == 0,
                   code,
                   "cache '%s': latents of %" PRId64 " x %" PRId64
                   ", expected even sides from 2 to %d (images of a multiple of 16 pixels)",
                   path, b[i].height, b[i].width, TESS_LATENTS_SIDE_MAX);
        TESS_CHECK(i == 0 || b[i - 1].height < b[i].height ||
                       (b[i - 1].height == b[i].height && b[i - 1].width < b[i].width),
                   code,
                   "cache '%s': bucket %" PRId64 " (%" PRId64 " x %" PRId64
                   ") is not behind the one before it",
                   path, i, b[i].height, b[i].width);
        TESS_TRY(check_count(path, code, "samples of a bucket", b[i].sample_numel, 1,
                             l->info.sample_numel - sample_numel));
        sample_numel += b[i].sample_numel;
    }
    TESS_CHECK(sample_numel == l->info.sample_numel, code,
               "cache '%s': buckets hold %" PRId64 " samples, expected %" PRId64, path,
               sample_numel, l->info.sample_numel);
    return TESS_OK;
}

/* ---- sections ---- */

static tess_h5_type type_of(tess_dtype dt) { return dt == TESS_F32 ? TESS_H5_F32 : TESS_H5_U16; }

static latents_section make_section(const char *name, tess_h5_type type, int64_t row_numel,
                                    int64_t column_numel)
{
    static const size_t elem_nbytes[] = {[TESS_H5_U8] = 1,
                                         [TESS_H5_U16] = 2,
                                         [TESS_H5_U32] = 4,
                                         [TESS_H5_U64] = 8,
                                         [TESS_H5_F32] = 4};
    latents_section s = {.type = type,
                         .elem_nbytes = elem_nbytes[type],
                         .row_numel = row_numel,
                         .column_numel = column_numel};
    snprintf(s.name, sizeof s.name, "%s", name);
    return s;
}

static void make_fixed(latents_layout *l)
{
    const tess_latents_info *i = &l->info;
    const tess_h5_type text = type_of(i->text_dt);
    latents_section *s = l->section;
    s[TESS_LATENTS_AT_SAMPLE] =
        make_section("sample", TESS_H5_U32, i->sample_numel, TESS_LATENTS_SAMPLE_WORDS);
    s[TESS_LATENTS_AT_TEXTS] =
        make_section("text", text, i->caption_numel, i->text_numel * i->text_dim);
    s[TESS_LATENTS_AT_POOLED] = make_section("pooled", text, i->caption_numel, i->pooled_dim);
    s[TESS_LATENTS_AT_LENGTH] = make_section("text_length", TESS_H5_U32, i->caption_numel, 1);
    s[TESS_LATENTS_AT_NAME] = make_section("name", TESS_H5_U8, i->name_nbytes, 1);
    s[TESS_LATENTS_AT_NAME_AT] = make_section("name_at", TESS_H5_U64, i->sample_numel + 1, 1);
    s[TESS_LATENTS_AT_CAPTION] = make_section("caption", TESS_H5_U8, i->caption_nbytes, 1);
    s[TESS_LATENTS_AT_CAPTION_AT] =
        make_section("caption_at", TESS_H5_U64, i->caption_numel + 1, 1);
    s[TESS_LATENTS_AT_SAMPLE].decides = s[TESS_LATENTS_AT_TEXTS].decides =
        s[TESS_LATENTS_AT_POOLED].decides = true;
}

static void make_of_buckets(latents_layout *l)
{
    char name[40];
    int64_t first = 0;
    for (int64_t b = 0; b < l->info.bucket_numel; b++) {
        tess_latents_bucket *of = &l->bucket[b];
        of->first_idx = first;
        first += of->sample_numel;
        snprintf(name, sizeof name, "latent_%" PRId64 "x%" PRId64, of->height, of->width);
        latents_section *s = &l->section[latents_at_latent(b)];
        *s = make_section(name, type_of(l->info.latent_dt), of->sample_numel,
                          tess_latents_numel(&l->info, of));
        s->decides = true;
        if (!l->info.has_masks)
            continue;
        snprintf(name, sizeof name, "mask_%" PRId64 "x%" PRId64, of->height, of->width);
        s = &l->section[latents_at_mask(l, b)];
        *s = make_section(name, TESS_H5_F32, of->sample_numel, tess_latents_token_numel(of));
        s->decides = true;
    }
}

/* Sizes of all sections, and of the file, are numbers. */
static tess_status check_sizes(const char *path, tess_status code, const latents_layout *l)
{
    int64_t total = 0;
    for (int i = 0; i < l->section_numel; i++) {
        const latents_section *s = &l->section[i];
        int64_t nbytes = 0;
        TESS_CHECK(!__builtin_mul_overflow(s->row_numel, latents_row_nbytes(s), &nbytes) &&
                       !__builtin_add_overflow(total, nbytes, &total) && total < INT64_MAX / 2,
                   code, "cache '%s': %s with %" PRId64 " rows is too large", path, s->name,
                   s->row_numel);
    }
    return TESS_OK;
}

static tess_status build(const char *path, tess_status code, const tess_latents_bucket *bucket,
                         latents_layout *l)
{
    void *room = NULL;
    TESS_TRY(check_info(path, code, &l->info));
    const int64_t bucket_numel = l->info.bucket_numel;
    TESS_TRY(tess_alloc_array(bucket_numel, sizeof *l->bucket, &room));
    l->bucket = room;
    memcpy(l->bucket, bucket, (size_t)bucket_numel * sizeof *l->bucket);
    TESS_TRY(check_buckets(path, code, l));
    l->section_numel = TESS_LATENTS_FIXED_NUMEL + (int)bucket_numel * (l->info.has_masks ? 2 : 1);
    TESS_TRY(tess_alloc_array(l->section_numel, sizeof *l->section, &room));
    l->section = room;
    make_fixed(l);
    make_of_buckets(l);
    return check_sizes(path, code, l);
}

tess_status latents_layout_init(const char *path, tess_status code, const tess_latents_info *info,
                                const tess_latents_bucket *bucket, latents_layout *out)
{
    latents_layout l = {.info = *info};
    const tess_status st = build(path, code, bucket, &l);
    if (st != TESS_OK) {
        latents_layout_fini(&l);
        return st;
    }
    *out = l;
    return TESS_OK;
}

void latents_layout_fini(latents_layout *l)
{
    tess_free(l->bucket);
    tess_free(l->section);
    *l = (latents_layout){0};
}

int64_t latents_block_nbytes(const latents_layout *l)
{
    const int64_t least =
        TESS_LATENTS_BLOCK_MIN_NBYTES / 2 + (int64_t)l->section_numel * BLOCK_OF_SECTION_NBYTES;
    int64_t nbytes = TESS_LATENTS_BLOCK_MIN_NBYTES;
    while (nbytes < least)
        nbytes *= 2;
    return nbytes;
}

tess_status latents_identify(latents_layout *l)
{
    tess_strbuf text = {0};
    tess_status st = tess_strbuf_add(&text, "C=%" PRId64 " T=%" PRId64 "\n", l->info.channel_numel,
                                     l->info.text_numel);
    for (int i = 0; st == TESS_OK && i < l->section_numel; i++) {
        const latents_section *s = &l->section[i];
        if (s->decides)
            st = tess_strbuf_add(
                &text, "%s %d %" PRId64 "x%" PRId64 " %016" PRIx64 "%016" PRIx64 "\n", s->name,
                (int)s->type, s->row_numel, s->column_numel, s->hash.lane[0], s->hash.lane[1]);
    }
    if (st == TESS_OK)
        l->info.digest = tess_xxh128_of(text.text, text.nbytes);
    tess_strbuf_fini(&text);
    return st;
}
