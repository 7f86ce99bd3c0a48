#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/memory.h"
#include "kernels/elementwise.h"
#include "train/data/latents_priv.h"

struct tess_latents {
    tess_ctx ctx;
    char *path;
    int fd;
    latents_layout layout;
    tess_latents_sample *sample; /* [N] */
};

const char *tess_latents_path(const tess_latents *f) { return f->path; }
const tess_latents_info *tess_latents_get_info(const tess_latents *f) { return &f->layout.info; }
const tess_latents_bucket *tess_latents_buckets(const tess_latents *f) { return f->layout.bucket; }

const tess_latents_sample *tess_latents_sample_at(const tess_latents *f, int64_t sample_idx)
{
    return &f->sample[sample_idx];
}

int64_t tess_latents_bucket_of(const tess_latents *f, int64_t sample_idx)
{
    int64_t b = f->layout.info.bucket_numel - 1;
    while (f->layout.bucket[b].first_idx > sample_idx)
        b--;
    return b;
}

tess_status tess_latents_is(const tess_ctx *ctx, const char *path, bool *out)
{
    char start[sizeof TESS_LATENTS_MAGIC - 1] = "";
    int fd = -1;
    int64_t file_nbytes = 0;
    TESS_TRY(tess_io_open_read(ctx->io, path, true, &fd, &file_nbytes));
    tess_status st = TESS_OK;
    if (file_nbytes >= (int64_t)sizeof start)
        st = tess_io_pread(ctx->io, path, fd, start, sizeof start, 0);
    (void)!tess_io_close(ctx->io, path, &fd);
    TESS_TRY(st);
    *out = memcmp(start, TESS_LATENTS_MAGIC, sizeof start) == 0;
    return TESS_OK;
}

/* ---- open ---- */

static tess_status pread_at(const tess_latents *f, void *dst, int64_t nbytes, int64_t at)
{
    return tess_io_pread(f->ctx.io, f->path, f->fd, dst, (size_t)nbytes, at);
}

static tess_status read_block(tess_latents *f, int64_t file_nbytes)
{
    uint8_t start[TESS_LATENTS_AT_TEXT];
    int64_t nbytes = 0;
    void *block = NULL;
    TESS_CHECK(file_nbytes >= TESS_LATENTS_BLOCK_MIN_NBYTES, TESS_E_FORMAT,
               "'%s' is no cache: %" PRId64 " bytes, at least %d are expected; make one with "
               "tessera cache",
               f->path, file_nbytes, TESS_LATENTS_BLOCK_MIN_NBYTES);
    TESS_TRY(pread_at(f, start, sizeof start, 0));
    TESS_TRY(latents_block_size(f->path, start, &nbytes));
    TESS_CHECK(nbytes <= file_nbytes, TESS_E_FORMAT,
               "cache '%s' ends in its user block; copy it again", f->path);
    TESS_TRY(tess_alloc((size_t)nbytes, &block));
    tess_status st = pread_at(f, block, nbytes, 0);
    if (st == TESS_OK)
        st = latents_block_decode(f->path, block, nbytes, file_nbytes, &f->layout);
    tess_free(block);
    return st;
}

static const latents_section *next_section(const latents_layout *l, int64_t at)
{
    const latents_section *next = NULL;
    for (int i = 0; i < l->section_numel; i++)
        if (l->section[i].offset_nbytes >= at &&
            (next == NULL || l->section[i].offset_nbytes < next->offset_nbytes))
            next = &l->section[i];
    return next;
}

/* All bytes behind the user block and outside the datasets, which are few. */
static tess_status read_around(const tess_latents *f, char *bytes, int64_t around_nbytes)
{
    int64_t at = latents_block_nbytes(&f->layout);
    for (int i = 0; i <= f->layout.section_numel; i++) {
        const latents_section *s = next_section(&f->layout, at);
        const int64_t end = s == NULL ? f->layout.info.file_nbytes : s->offset_nbytes;
        TESS_CHECK(end >= at && end - at <= around_nbytes, TESS_E_FORMAT,
                   "cache '%s': datasets overlap; convert again", f->path);
        TESS_TRY(pread_at(f, bytes, end - at, at));
        bytes += end - at;
        around_nbytes -= end - at;
        at = s == NULL ? end : end + s->row_numel * latents_row_nbytes(s);
    }
    TESS_CHECK(around_nbytes == 0, TESS_E_FORMAT, "cache '%s': datasets overlap; convert again",
               f->path);
    return TESS_OK;
}

static tess_status check_metadata(const tess_latents *f)
{
    const latents_layout *l = &f->layout;
    int64_t around_nbytes = l->info.file_nbytes - latents_block_nbytes(l);
    void *room = NULL;
    for (int i = 0; i < l->section_numel; i++)
        around_nbytes -= l->section[i].row_numel * latents_row_nbytes(&l->section[i]);
    TESS_CHECK(around_nbytes >= 0 && around_nbytes <= TESS_H5_METADATA_LIMIT_NBYTES, TESS_E_FORMAT,
               "cache '%s': %" PRId64 " bytes belong to no dataset, expected 0 to %d", f->path,
               around_nbytes, TESS_H5_METADATA_LIMIT_NBYTES);
    TESS_TRY(tess_alloc((size_t)around_nbytes + 1, &room));
    const tess_status st = read_around(f, room, around_nbytes);
    const tess_xxh128 digest = tess_xxh128_of(room, (size_t)around_nbytes);
    tess_free(room);
    TESS_TRY(st);
    TESS_CHECK(memcmp(digest.byte, l->metadata.byte, sizeof digest.byte) == 0, TESS_E_FORMAT,
               "cache '%s': HDF5 metadata does not match its digest; the file was changed by "
               "another program, convert again",
               f->path);
    return TESS_OK;
}

static tess_status check_hash(const tess_latents *f, const latents_section *s,
                              const tess_logical_hash *found)
{
    TESS_CHECK(s->hash.lane[0] == found->lane[0] && s->hash.lane[1] == found->lane[1],
               TESS_E_FORMAT,
               "cache '%s': dataset '%s' does not match its digest; the file is damaged, convert "
               "again",
               f->path, s->name);
    return TESS_OK;
}

static tess_status load_samples(tess_latents *f)
{
    const latents_section *s = &f->layout.section[TESS_LATENTS_AT_SAMPLE];
    tess_logical_hash hash = {{0}};
    void *room = NULL;
    TESS_TRY(tess_alloc_array(s->row_numel, sizeof *f->sample, &room));
    f->sample = room;
    TESS_TRY(pread_at(f, room, s->row_numel * latents_row_nbytes(s), s->offset_nbytes));
    tess_logical_hash_add(&hash, room, s->row_numel * s->column_numel, s->elem_nbytes, 0);
    TESS_TRY(check_hash(f, s, &hash));
    for (int64_t i = 0; i < s->row_numel; i++)
        TESS_CHECK(f->sample[i].caption_idx < f->layout.info.caption_numel, TESS_E_FORMAT,
                   "cache '%s': sample %" PRId64 " has caption %" PRIu32 " of %" PRId64, f->path, i,
                   f->sample[i].caption_idx, f->layout.info.caption_numel);
    return TESS_OK;
}

static tess_status open_file(tess_latents *f, const char *path)
{
    int64_t file_nbytes = 0;
    TESS_TRY(tess_strdup(path, &f->path));
    TESS_TRY(tess_io_open_read(f->ctx.io, path, true, &f->fd, &file_nbytes));
    TESS_TRY(read_block(f, file_nbytes));
    TESS_TRY(check_metadata(f));
    return load_samples(f);
}

tess_status tess_latents_open(const tess_ctx *ctx, const char *path, tess_latents **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_latents), &object));
    tess_latents *f = object;
    f->ctx = *ctx;
    f->fd = -1;
    const tess_status st = open_file(f, path);
    if (st != TESS_OK) {
        tess_latents_close(&f);
        return st;
    }
    *out = f;
    return TESS_OK;
}

void tess_latents_close(tess_latents **file)
{
    tess_latents *f = *file;
    if (f == NULL)
        return;
    if (f->fd >= 0)
        (void)!tess_io_close(f->ctx.io, f->path, &f->fd);
    latents_layout_fini(&f->layout);
    tess_free(f->sample);
    tess_free(f->path);
    tess_free(f);
    *file = NULL;
}

/* ---- rows ---- */

/* One row as f32. Stored bf16 goes to the end of the destination and is widened in place from the
 * front: entry i is written at byte 4i, entry i + 1 waits at or behind byte 4i + 4. */
static tess_status read_row(const tess_latents *f, int section_idx, int64_t row_idx, float *dst)
{
    const latents_section *s = &f->layout.section[section_idx];
    const int64_t nbytes = latents_row_nbytes(s);
    char *raw = (char *)dst + s->column_numel * (int64_t)sizeof(float) - nbytes;
    TESS_TRY(pread_at(f, raw, nbytes, s->offset_nbytes + row_idx * nbytes));
    for (int64_t i = 0; s->type == TESS_H5_U16 && i < s->column_numel; i++) {
        uint16_t stored = 0;
        memcpy(&stored, raw + 2 * i, sizeof stored);
        dst[i] = tess_bf16_to_f32(stored);
    }
    return TESS_OK;
}

static tess_status check_sample(const tess_latents *f, int64_t sample_idx)
{
    TESS_CHECK(sample_idx >= 0 && sample_idx < f->layout.info.sample_numel, TESS_E_RANGE,
               "cache '%s': sample %" PRId64 " of %" PRId64, f->path, sample_idx,
               f->layout.info.sample_numel);
    return TESS_OK;
}

static tess_status check_caption(const tess_latents *f, int64_t caption_idx)
{
    TESS_CHECK(caption_idx >= 0 && caption_idx < f->layout.info.caption_numel, TESS_E_RANGE,
               "cache '%s': caption %" PRId64 " of %" PRId64, f->path, caption_idx,
               f->layout.info.caption_numel);
    return TESS_OK;
}

tess_status tess_latents_read(const tess_latents *f, int64_t sample_idx, float *latent)
{
    TESS_TRY(check_sample(f, sample_idx));
    const int64_t b = tess_latents_bucket_of(f, sample_idx);
    return read_row(f, latents_at_latent(b), sample_idx - f->layout.bucket[b].first_idx, latent);
}

tess_status tess_latents_read_mask(const tess_latents *f, int64_t sample_idx, float *mask)
{
    TESS_TRY(check_sample(f, sample_idx));
    const int64_t b = tess_latents_bucket_of(f, sample_idx);
    const tess_latents_bucket *of = &f->layout.bucket[b];
    for (int64_t i = 0; !f->layout.info.has_masks && i < tess_latents_token_numel(of); i++)
        mask[i] = 1.0F;
    return f->layout.info.has_masks
               ? read_row(f, latents_at_mask(&f->layout, b), sample_idx - of->first_idx, mask)
               : TESS_OK;
}

tess_status tess_latents_read_text(const tess_latents *f, int64_t caption_idx, float *text,
                                   float *pooled)
{
    TESS_TRY(check_caption(f, caption_idx));
    TESS_TRY(read_row(f, TESS_LATENTS_AT_TEXTS, caption_idx, text));
    return read_row(f, TESS_LATENTS_AT_POOLED, caption_idx, pooled);
}

/* Text `idx` of a table of texts. */
static tess_status read_string(const tess_latents *f, int bytes_idx, int ends_idx, int64_t idx,
                               char **out)
{
    const latents_section *bytes = &f->layout.section[bytes_idx];
    uint64_t at[2];
    void *room = NULL;
    TESS_TRY(pread_at(f, at, sizeof at,
                      f->layout.section[ends_idx].offset_nbytes + idx * (int64_t)sizeof *at));
    TESS_CHECK(at[0] < at[1] && at[1] <= (uint64_t)bytes->row_numel, TESS_E_FORMAT,
               "cache '%s': entry %" PRId64 " of '%s_at' is damaged; convert again", f->path, idx,
               bytes->name);
    TESS_TRY(tess_alloc((size_t)(at[1] - at[0]) + 1, &room));
    const tess_status st =
        pread_at(f, room, (int64_t)(at[1] - at[0]), bytes->offset_nbytes + (int64_t)at[0]);
    if (st != TESS_OK) {
        tess_free(room);
        return st;
    }
    *out = room;
    return TESS_OK;
}

tess_status tess_latents_name(const tess_latents *f, int64_t sample_idx, char **out)
{
    TESS_TRY(check_sample(f, sample_idx));
    return read_string(f, TESS_LATENTS_AT_NAME, TESS_LATENTS_AT_NAME_AT, sample_idx, out);
}

tess_status tess_latents_caption(const tess_latents *f, int64_t caption_idx, char **out)
{
    TESS_TRY(check_caption(f, caption_idx));
    return read_string(f, TESS_LATENTS_AT_CAPTION, TESS_LATENTS_AT_CAPTION_AT, caption_idx, out);
}

/* ---- verify ---- */

enum { BLOCK_NUMEL = 1 << 16 };

/* Values of a block that lies in `bytes`. */
static tess_status check_values(const tess_latents *f, int section_idx, int64_t first,
                                int64_t numel, const uint8_t *bytes)
{
    const latents_section *s = &f->layout.section[section_idx];
    const bool is_mask = section_idx >= TESS_LATENTS_FIXED_NUMEL + (int)f->layout.info.bucket_numel;
    if (s->type != TESS_H5_U16 && s->type != TESS_H5_F32)
        return TESS_OK;
    for (int64_t i = 0; i < numel; i++) {
        uint16_t half = 0;
        float x = 0.0F;
        if (s->type == TESS_H5_U16) {
            memcpy(&half, bytes + 2 * i, sizeof half);
            x = tess_bf16_to_f32(half);
        } else {
            memcpy(&x, bytes + 4 * i, sizeof x);
        }
        TESS_CHECK(isfinite(x) && (!is_mask || (x >= 0.0F && x <= 1.0F)), TESS_E_FORMAT,
                   "cache '%s': element %" PRId64 " of row %" PRId64
                   " of '%s' is %g; convert again",
                   f->path, (first + i) % s->column_numel, (first + i) / s->column_numel, s->name,
                   (double)x);
    }
    return TESS_OK;
}

static tess_status verify_section(const tess_latents *f, int section_idx, uint8_t *room)
{
    const latents_section *s = &f->layout.section[section_idx];
    const int64_t numel = s->row_numel * s->column_numel;
    tess_logical_hash hash = {{0}};
    for (int64_t done = 0; done < numel; done += BLOCK_NUMEL) {
        const int64_t part = TESS_MIN(numel - done, (int64_t)BLOCK_NUMEL);
        TESS_TRY(pread_at(f, room, part * (int64_t)s->elem_nbytes,
                          s->offset_nbytes + done * (int64_t)s->elem_nbytes));
        TESS_TRY(check_values(f, section_idx, done, part, room));
        tess_logical_hash_add(&hash, room, part, s->elem_nbytes, done);
    }
    return check_hash(f, s, &hash);
}

tess_status tess_latents_verify(const tess_latents *f)
{
    void *room = NULL;
    TESS_TRY(tess_alloc(BLOCK_NUMEL * sizeof(uint64_t), &room));
    tess_status st = TESS_OK;
    for (int i = 0; st == TESS_OK && i < f->layout.section_numel; i++)
        st = verify_section(f, i, room);
    tess_free(room);
    return st;
}
