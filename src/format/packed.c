/*
 * Weights whose codes and constants are tensors of their own in safetensors files: bitsandbytes
 * (packed_bnb.c), optimum-quanto (packed_quanto.c), fp8 (packed_fp8.c). Each becomes one tensor of
 * the directory whose bytes are the parts of its codec.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/arith.h"
#include "core/fp8.h"
#include "core/half.h"
#include "core/memory.h"
#include "format/packed_priv.h"

/* ---- what the kinds share ---- */

const char *tess_packing_file(const tess_packing_weight *w)
{
    return w->p->dir->file[w->codes->file_idx].name;
}

tess_status tess_packing_read(const tess_packing_weight *w, const tess_model_tensor *t, void *dst)
{
    return tess_safetensors_read(w->p->dir->file[t->file_idx].st, t->st, 0, (size_t)t->st->nbytes,
                                 dst);
}

tess_status tess_packing_check(const tess_packing_weight *w, const tess_model_tensor *t,
                               const char *suffix, tess_st_dtype dtype, int64_t numel)
{
    const tess_model_dir *dir = w->p->dir;
    char found[256];
    TESS_CHECK(t != NULL, TESS_E_FORMAT, "'%s/%s': tensor '%s%s' is missing beside '%s'", dir->path,
               tess_packing_file(w), w->codes->name, suffix, w->codes->name);
    tess_st_shape_text(t->st->dim, t->st->dim_numel, found, sizeof found);
    TESS_CHECK(t->st->dtype == dtype && t->st->dim_numel == 1 && t->st->numel == numel,
               TESS_E_FORMAT,
               "'%s/%s': tensor '%s': expected %s [%" PRId64 "], found %s %s; repack the model",
               dir->path, dir->file[t->file_idx].name, t->name, tess_st_dtype_name(dtype), numel,
               tess_st_dtype_name(t->st->dtype), found);
    return TESS_OK;
}

const tess_model_tensor *tess_packing_beside(const tess_packing_weight *w, const char *suffix)
{
    char name[TESS_ST_NAME_MAX_NBYTES + 32];
    const size_t nbytes = strlen(w->name), tail = sizeof ".weight" - 1;
    if (nbytes <= tail || strcmp(w->name + nbytes - tail, ".weight") != 0)
        return NULL;
    snprintf(name, sizeof name, "%.*s%s", (int)(nbytes - tail), w->name, suffix);
    return tess_model_dir_find(w->p->dir, name);
}

void tess_packing_take(const tess_packing_weight *w, const tess_model_tensor *t)
{
    w->p->is_member[t - w->p->dir->tensor] = true;
}

void tess_packing_put(tess_packed *to, const tess_model_tensor *t, tess_packed_check check)
{
    to->part[to->part_numel].st = t != NULL ? t->st : NULL;
    to->part[to->part_numel].file_idx = t != NULL ? t->file_idx : 0;
    to->part[to->part_numel].nbytes = t != NULL ? (size_t)t->st->nbytes : sizeof(float);
    to->part[to->part_numel].check = check;
    to->part_numel++;
}

tess_status tess_packing_stated(const tess_packing_weight *w, const char **text)
{
    const tess_json *formats = w->p->formats[w->codes->file_idx];
    *text = NULL;
    if (formats == NULL || tess_json_find(formats, w->name) == NULL)
        return TESS_OK;
    return tess_json_get_string(formats, w->name, text);
}

tess_status tess_packing_scale_dtype(const tess_packing_weight *w, const tess_model_tensor *t,
                                     tess_dtype *dt)
{
    const tess_st_dtype found = t->st->dtype;
    TESS_CHECK(found == TESS_ST_F32 || found == TESS_ST_BF16 || found == TESS_ST_F16, TESS_E_FORMAT,
               "'%s/%s': tensor '%s': expected F32, BF16 or F16, found %s", w->p->dir->path,
               w->p->dir->file[t->file_idx].name, t->name, tess_st_dtype_name(found));
    *dt = found == TESS_ST_F32 ? TESS_F32 : found == TESS_ST_BF16 ? TESS_BF16 : TESS_F16;
    return TESS_OK;
}

static float number_at(const char *bytes, tess_st_dtype dtype)
{
    uint16_t half = 0;
    float x = 0.0F;
    if (dtype == TESS_ST_F32) {
        memcpy(&x, bytes, sizeof x);
        return x;
    }
    memcpy(&half, bytes, sizeof half);
    const uint32_t wide = (uint32_t)half << 16;
    memcpy(&x, &wide, sizeof x);
    return dtype == TESS_ST_BF16 ? x : tess_f16_to_f32(half);
}

tess_status tess_packing_no_activations(const tess_packing_weight *w, const char *suffix)
{
    const tess_model_tensor *t = tess_packing_beside(w, suffix);
    tess_dtype dt = TESS_F32;
    char bytes[sizeof(float)];
    if (t == NULL)
        return TESS_OK;
    TESS_TRY(tess_packing_scale_dtype(w, t, &dt));
    TESS_CHECK(t->st->numel == 1, TESS_E_FORMAT,
               "'%s/%s': tensor '%s': expected one number, found %" PRId64, w->p->dir->path,
               w->p->dir->file[t->file_idx].name, t->name, t->st->numel);
    TESS_TRY(tess_packing_read(w, t, bytes));
    const float value = number_at(bytes, t->st->dtype);
    TESS_CHECK(value == 1.0F, TESS_E_UNSUPPORTED,
               "'%s/%s': tensor '%s' is %g: activations are quantized, which is not trained "
               "through; quantize the weights alone",
               w->p->dir->path, w->p->dir->file[t->file_idx].name, t->name, (double)value);
    tess_packing_take(w, t);
    return TESS_OK;
}

/* ---- all of them ---- */

static bool is_weight(const char *name)
{
    const size_t nbytes = strlen(name);
    return nbytes > sizeof ".weight" - 1 && strcmp(name + nbytes - 7, ".weight") == 0;
}

static bool is_fp8(const tess_model_tensor *t)
{
    return t->st->dtype == TESS_ST_F8_E4M3 || t->st->dtype == TESS_ST_F8_E5M2;
}

static bool is_codes(const tess_model_tensor *t)
{
    size_t nbytes = 0;
    return is_weight(t->name) || is_fp8(t) || tess_packed_is_quanto(t->name, &nbytes);
}

/* The weight whose codes are tensor `idx`; to->part_numel stays 0 for a plain one. */
static tess_status join_one(tess_packing *p, int64_t idx, tess_packed *to)
{
    tess_packing_weight w = {.p = p, .codes = &p->dir->tensor[idx], .to = to};
    size_t nbytes = strlen(w.codes->name);
    const bool is_quanto = tess_packed_is_quanto(w.codes->name, &nbytes);
    TESS_TRY(tess_asprintf(&to->name, "%.*s", (int)nbytes, w.codes->name));
    w.name = to->name;
    TESS_TRY(is_quanto         ? tess_packed_quanto(&w)
             : is_fp8(w.codes) ? tess_packed_fp8(&w)
                               : tess_packed_bnb(&w));
    to->whole.name = to->name;
    to->whole.dtype = TESS_ST_U8;
    to->whole.nbytes = 0;
    for (int i = 0; i < to->part_numel; i++)
        to->whole.nbytes += (int64_t)to->part[i].nbytes;
    return TESS_OK;
}

static tess_status join_all(tess_packing *p, const tess_packed **packed_of)
{
    tess_model_dir *dir = p->dir;
    for (int64_t i = 0; i < dir->tensor_numel; i++) {
        tess_packed *to = &dir->packed[dir->packed_numel];
        if (p->is_member[i] || !is_codes(&dir->tensor[i]))
            continue;
        dir->packed_numel++; /* what is half made is freed with the others */
        memset(to, 0, sizeof *to);
        TESS_TRY(join_one(p, i, to));
        if (to->part_numel > 0) {
            packed_of[i] = to;
            continue;
        }
        tess_free(to->name);
        to->name = NULL;
        dir->packed_numel--;
    }
    return TESS_OK;
}

/* Constants whose codes are not there. */
static tess_status check_left(const tess_packing *p)
{
    static const char *const suffix[] = {".weight._scale",    ".weight._shift",
                                         ".weight_scale",     ".scale_weight",
                                         ".weight_scale_inv", TESS_MODEL_QUANT_SCALE_SUFFIX};
    for (int64_t i = 0; i < p->dir->tensor_numel; i++) {
        const tess_model_tensor *t = &p->dir->tensor[i];
        const size_t nbytes = strlen(t->name);
        for (int k = 0; k < TESS_NELEM(suffix) && !p->is_member[i]; k++) {
            const size_t tail = strlen(suffix[k]);
            TESS_CHECK(nbytes <= tail || strcmp(t->name + nbytes - tail, suffix[k]) != 0,
                       TESS_E_FORMAT,
                       "'%s/%s': tensor '%s' is a scale or shift, but its codes are missing",
                       p->dir->path, p->dir->file[t->file_idx].name, t->name);
        }
    }
    return TESS_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const tess_model_tensor *)a)->name, ((const tess_model_tensor *)b)->name);
}

/* Weights take the place of their parts. */
static void replace(const tess_packing *p, const tess_packed *const *packed_of)
{
    tess_model_dir *dir = p->dir;
    int64_t kept_numel = 0;
    for (int64_t i = 0; i < dir->tensor_numel; i++) {
        if (p->is_member[i])
            continue;
        tess_model_tensor *t = &dir->tensor[kept_numel++];
        *t = dir->tensor[i];
        t->packed = packed_of[i];
        if (t->packed != NULL) {
            t->st = &t->packed->whole;
            t->name = t->packed->name;
        }
    }
    dir->tensor_numel = kept_numel;
    if (kept_numel > 1)
        qsort(dir->tensor, (size_t)kept_numel, sizeof *dir->tensor, by_name);
}

/* ---- what files say of themselves ---- */

static tess_status open_formats(tess_packing *p)
{
    for (int i = 0; i < p->dir->file_numel; i++) {
        const weight_file *f = &p->dir->file[i];
        const char *text = tess_safetensors_metadata(f->st, TESS_MODEL_FORMATS_KEY);
        char source[1024];
        if (text == NULL)
            continue;
        snprintf(source, sizeof source, "%.400s/%.80s: " TESS_MODEL_FORMATS_KEY, p->dir->path,
                 f->name);
        TESS_TRY(tess_json_parse(source, text, strlen(text), &p->formats[i]));
        TESS_TRY(tess_json_expect(p->formats[i], TESS_JSON_OBJECT));
    }
    return TESS_OK;
}

/* Tensors are what the metadata says. Of the joined directory. */
static tess_status check_formats(const tess_packing *p, int file_idx)
{
    const tess_json *formats = p->formats[file_idx];
    for (int64_t i = 0; formats != NULL && i < tess_json_numel(formats); i++) {
        const tess_json *member = tess_json_at(formats, i);
        const tess_model_tensor *t = tess_model_dir_find(p->dir, tess_json_key(member));
        char found[TESS_CODEC_TEXT_NBYTES] = "absent", where[512];
        const char *stated = NULL;
        tess_codec codec;
        TESS_TRY(tess_json_as_string(member, &stated));
        if (t != NULL) {
            TESS_TRY(tess_model_tensor_codec(t, &codec));
            tess_codec_describe(&codec, found);
        }
        tess_json_where(member, where, sizeof where);
        TESS_CHECK(strcmp(found, stated) == 0, TESS_E_FORMAT,
                   "%s: expected '%.64s', found tensors that are %s", where, stated, found);
    }
    return TESS_OK;
}

static tess_status join(tess_packing *p, const tess_packed **packed_of)
{
    TESS_TRY(open_formats(p));
    TESS_TRY(tess_packed_quanto_open(p));
    TESS_TRY(tess_packed_fp8_marks(p));
    TESS_TRY(join_all(p, packed_of));
    TESS_TRY(check_left(p));
    replace(p, packed_of);
    TESS_TRY(tess_packed_quanto_check(p));
    for (int i = 0; i < p->dir->file_numel; i++)
        TESS_TRY(check_formats(p, i));
    return TESS_OK;
}

tess_status tess_packed_join(tess_model_dir *dir)
{
    void *packed = NULL, *member = NULL, *of = NULL, *packing = NULL;
    int64_t codes_numel = 0;
    for (int64_t i = 0; i < dir->tensor_numel; i++)
        codes_numel += is_codes(&dir->tensor[i]);
    TESS_TRY(tess_alloc_array(codes_numel + 1, sizeof *dir->packed, &packed));
    dir->packed = packed;
    TESS_TRY(tess_alloc(sizeof(tess_packing), &packing));
    tess_packing *p = packing;
    p->dir = dir;
    tess_status st = tess_alloc_array(dir->tensor_numel, sizeof(bool), &member);
    if (st == TESS_OK)
        st = tess_alloc_array(dir->tensor_numel, sizeof(tess_packed *), &of);
    p->is_member = member;
    if (st == TESS_OK)
        st = join(p, of);
    for (int i = 0; i < dir->file_numel; i++)
        tess_json_destroy(&p->formats[i]);
    tess_json_destroy(&p->map);
    tess_json_destroy(&p->config);
    tess_free(of);
    tess_free(member);
    tess_free(p);
    return st;
}

/* ---- reading ---- */

static bool is_held(tess_packed_check check, const char *bytes, tess_st_dtype dtype, float *value)
{
    const uint8_t code = (uint8_t)*bytes;
    if (check == TESS_PACKED_CODES) {
        *value = dtype == TESS_ST_F8_E4M3 ? tess_e4m3_to_f32(code) : tess_e5m2_to_f32(code);
        return isfinite(*value);
    }
    *value = number_at(bytes, dtype);
    return isfinite(*value) && (check == TESS_PACKED_SHIFTS || *value > 0.0F ||
                                (*value == 0.0F && check == TESS_PACKED_SCALES));
}

/* Whole elements in bytes [first, first + nbytes) of a part. */
static tess_status check_values(const tess_model_dir *dir, const tess_model_tensor *t, int part_idx,
                                int64_t first, size_t nbytes, const char *bytes)
{
    const tess_packed_check check = t->packed->part[part_idx].check;
    const tess_st_tensor *st = t->packed->part[part_idx].st;
    const int64_t size = st->dtype == TESS_ST_F32 ? 4 : check == TESS_PACKED_CODES ? 1 : 2;
    for (int64_t i = tess_ceil_div(first, size); size * (i + 1) <= first + (int64_t)nbytes; i++) {
        float value = 0.0F;
        if (is_held(check, bytes + size * i - first, st->dtype, &value))
            continue;
        return TESS_FAIL(TESS_E_FORMAT,
                         "'%s/%s': tensor '%s': %s %" PRId64
                         " is %g, expected a finite number%s; the file is "
                         "damaged",
                         dir->path, dir->file[t->packed->part[part_idx].file_idx].name, st->name,
                         check == TESS_PACKED_CODES    ? "code"
                         : check == TESS_PACKED_SHIFTS ? "shift"
                                                       : "scale",
                         i, (double)value,
                         check == TESS_PACKED_SCALES      ? " of at least 0"
                         : check == TESS_PACKED_POSITIVES ? " above 0"
                                                          : "");
    }
    return TESS_OK;
}

tess_status tess_packed_read(const tess_model_dir *dir, const tess_model_tensor *tensor,
                             int64_t first_nbytes, size_t nbytes, void *dst)
{
    const tess_packed *p = tensor->packed;
    const int64_t end_nbytes = first_nbytes + (int64_t)nbytes;
    int64_t at = 0;
    TESS_CHECK(first_nbytes >= 0 && end_nbytes <= p->whole.nbytes, TESS_E_RANGE,
               "tensor '%s': bytes %" PRId64 " + %zu of %" PRId64, tensor->name, first_nbytes,
               nbytes, p->whole.nbytes);
    for (int i = 0; i < p->part_numel; at += (int64_t)p->part[i++].nbytes) {
        const int64_t lo = TESS_MAX(first_nbytes - at, INT64_C(0));
        const int64_t hi = TESS_MIN(end_nbytes - at, (int64_t)p->part[i].nbytes);
        if (lo >= hi)
            continue;
        char *to = (char *)dst + (at + lo - first_nbytes);
        if (p->part[i].st == NULL) {
            memcpy(to, (const char *)&p->nested_offset + lo, (size_t)(hi - lo));
            continue;
        }
        TESS_TRY(tess_safetensors_read(dir->file[p->part[i].file_idx].st, p->part[i].st, lo,
                                       (size_t)(hi - lo), to));
        if (p->part[i].check != TESS_PACKED_ANY)
            TESS_TRY(check_values(dir, tensor, i, lo, (size_t)(hi - lo), to));
    }
    return TESS_OK;
}
