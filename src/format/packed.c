/*
 * Weights that bitsandbytes has packed: which tensors of the files belong together, and whether
 * they decode by the tables that the kernels have.
 *
 * 4 bits: X.weight (codes, under the label of any quant_storage), X.weight.absmax, .quant_map,
 * .quant_state.bitsandbytes__nf4 or __fp4 (JSON), and where absmax are in 8 bits .nested_absmax and
 * .nested_quant_map. 8 bits by row: X.weight I8, X.SCB, X.weight_format.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "format/json.h"
#include "format/model_dir_priv.h"
#include "format/text_priv.h"

enum { STATE_MAX_NBYTES = 4096, MAP_NUMEL = 256, TABLE_NUMEL = 16 };

static const char state_prefix[] = ".quant_state.bitsandbytes__";

/* SHA-256 of the f32 tables as bitsandbytes writes them; minus zero counts as zero. */
static const char nf4_sha[] = "8501941daa1b8a90ad1bbfeb632e5101b5dddbc4bb52d6e55abcfd777e60c06a";
static const char fp4_sha[] = "b830bcf8857895e5676b8e2ce608a60bb8af9b3ce6270073e9de34814196f09c";
static const char map_sha[] = "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c";

/* One packed weight while it is put together. */
typedef struct group {
    const tess_model_dir *dir;
    const tess_model_tensor *codes; /* X.weight */
    const tess_model_tensor *absmax, *quant_map, *nested_absmax, *nested_map, *state;
    tess_packed *to;
} group;

static const char *file_of(const group *g) { return g->dir->file[g->codes->file_idx].name; }

static tess_status read_member(const group *g, const tess_model_tensor *t, void *dst)
{
    return tess_safetensors_read(g->dir->file[t->file_idx].st, t->st, 0, (size_t)t->st->nbytes,
                                 dst);
}

static tess_status check_member(const group *g, const tess_model_tensor *t, const char *suffix,
                                tess_st_dtype dtype, int64_t numel)
{
    char found[256];
    TESS_CHECK(t != NULL, TESS_E_FORMAT, "'%s/%s': tensor '%s%s' is missing beside '%s'",
               g->dir->path, file_of(g), g->codes->name, suffix, g->codes->name);
    tess_st_shape_text(t->st->dim, t->st->dim_numel, found, sizeof found);
    TESS_CHECK(t->st->dtype == dtype && t->st->dim_numel == 1 && t->st->numel == numel,
               TESS_E_FORMAT,
               "'%s/%s': tensor '%s': expected %s [%" PRId64 "], found %s %s; repack the model",
               g->dir->path, g->dir->file[t->file_idx].name, t->name, tess_st_dtype_name(dtype),
               numel, tess_st_dtype_name(t->st->dtype), found);
    return TESS_OK;
}

/* The table in the file is the one the kernels have. */
static tess_status check_table(const group *g, const tess_model_tensor *t, const char *sha)
{
    float value[MAP_NUMEL];
    tess_sha256 found, expected;
    TESS_TRY(read_member(g, t, value));
    for (int64_t i = 0; i < t->st->numel; i++)
        value[i] = value[i] == 0.0F ? 0.0F : value[i];
    TESS_TRY(tess_sha256_of(value, (size_t)t->st->nbytes, &found));
    TESS_TRY(tess_unhex(sha, sizeof expected.byte, expected.byte));
    TESS_CHECK(tess_sha256_is_equal(&found, &expected), TESS_E_UNSUPPORTED,
               "'%s/%s': tensor '%s' is another table than bitsandbytes' own, by which its codes "
               "are decoded here; repack the model with the standard table",
               g->dir->path, g->dir->file[t->file_idx].name, t->name);
    return TESS_OK;
}

static void put_part(tess_packed *to, const tess_model_tensor *t, bool has_scales)
{
    to->part[to->part_numel].st = t != NULL ? t->st : NULL;
    to->part[to->part_numel].file_idx = t != NULL ? t->file_idx : 0;
    to->part[to->part_numel].nbytes = t != NULL ? (size_t)t->st->nbytes : sizeof(float);
    to->part[to->part_numel].has_scales = has_scales;
    to->part_numel++;
}

/* ---- the state of a 4-bit weight ---- */

static tess_status expect_text(const tess_json *root, const char *key, const char *const *choice,
                               int choice_numel)
{
    const char *text = NULL;
    char where[512], tame[64];
    TESS_TRY(tess_json_get_string(root, key, &text));
    for (int i = 0; i < choice_numel; i++)
        if (strcmp(text, choice[i]) == 0)
            return TESS_OK;
    tess_json_where(tess_json_find(root, key), where, sizeof where);
    return TESS_FAIL(TESS_E_UNSUPPORTED, "%s: expected '%s'%s, found '%s'", where, choice[0],
                     choice_numel > 1 ? " or another of its kind" : "",
                     tess_text_tame(text, tame, sizeof tame));
}

static tess_status check_keys(const tess_json *root)
{
    static const char *const known[] = {"quant_type",       "blocksize",    "dtype",        "shape",
                                        "nested_blocksize", "nested_dtype", "nested_offset"};
    char where[512];
    TESS_TRY(tess_json_expect(root, TESS_JSON_OBJECT));
    for (int64_t i = 0; i < tess_json_numel(root); i++) {
        bool is_known = false;
        for (int k = 0; k < TESS_NELEM(known) && !is_known; k++)
            is_known = strcmp(tess_json_key(tess_json_at(root, i)), known[k]) == 0;
        tess_json_where(tess_json_at(root, i), where, sizeof where);
        TESS_CHECK(is_known, TESS_E_UNSUPPORTED, "%s: unknown key of a quant_state", where);
    }
    return TESS_OK;
}

static tess_status read_shape(const tess_json *root, tess_st_tensor *whole)
{
    const tess_json *shape = NULL;
    char where[512];
    TESS_TRY(tess_json_get_array(root, "shape", &shape));
    tess_json_where(shape, where, sizeof where);
    TESS_CHECK(tess_json_numel(shape) == 2, TESS_E_UNSUPPORTED,
               "%s: expected two extents [out, in], found %" PRId64, where, tess_json_numel(shape));
    whole->dim_numel = 2;
    for (int i = 0; i < 2; i++) {
        TESS_TRY(tess_json_as_i64(tess_json_at(shape, i), &whole->dim[i]));
        TESS_CHECK(whole->dim[i] > 0 && whole->dim[i] <= INT32_MAX, TESS_E_FORMAT,
                   "%s: extent %d: expected 1 to 2^31 - 1, found %" PRId64, where, i,
                   whole->dim[i]);
    }
    whole->numel = whole->dim[0] * whole->dim[1];
    return TESS_OK;
}

static tess_status read_nested(const tess_json *root, tess_packed *to)
{
    static const char *const f32[] = {"float32"};
    const bool is_stated = tess_json_find(root, "nested_blocksize") != NULL ||
                           tess_json_find(root, "nested_dtype") != NULL ||
                           tess_json_find(root, "nested_offset") != NULL;
    int64_t block = 0;
    double offset = 0.0;
    char where[512];
    tess_json_where(root, where, sizeof where);
    TESS_CHECK(is_stated == to->codec.double_quant, TESS_E_FORMAT,
               "%s: %s nested_absmax, but %s keys nested_*", where,
               to->codec.double_quant ? "there is a tensor" : "there is no tensor",
               is_stated ? "there are" : "there are no");
    if (!is_stated)
        return TESS_OK;
    TESS_TRY(tess_json_get_i64(root, "nested_blocksize", &block));
    TESS_CHECK(block == TESS_NESTED_BLOCK_NUMEL, TESS_E_UNSUPPORTED,
               "%s: nested_blocksize: expected %d, found %" PRId64, where, TESS_NESTED_BLOCK_NUMEL,
               block);
    TESS_TRY(expect_text(root, "nested_dtype", f32, 1));
    TESS_TRY(tess_json_get_f64(root, "nested_offset", &offset));
    to->nested_offset = (float)offset;
    TESS_CHECK(isfinite(to->nested_offset), TESS_E_FORMAT,
               "%s: nested_offset: %g is out of the range of f32", where, offset);
    return TESS_OK;
}

static tess_status read_state_object(const group *g, const tess_json *root)
{
    static const char *const dtypes[] = {"bfloat16", "float16", "float32"};
    const char *type = g->state->name + strlen(g->codes->name) + sizeof state_prefix - 1;
    tess_packed *to = g->to;
    tess_codec_part part[TESS_CODEC_PART_MAX];
    int part_numel = 0;
    char where[512];
    TESS_TRY(check_keys(root));
    TESS_TRY(expect_text(root, "quant_type", &type, 1));
    TESS_TRY(expect_text(root, "dtype", dtypes, TESS_NELEM(dtypes)));
    TESS_TRY(tess_json_get_i64(root, "blocksize", &to->codec.block_numel));
    TESS_TRY(read_shape(root, &to->whole));
    TESS_TRY(read_nested(root, to));
    tess_json_where(root, where, sizeof where);
    const tess_status st = tess_codec_parts(&to->codec, to->whole.numel, part, &part_numel);
    TESS_CHECK(st == TESS_OK, st,
               "%s: blocksize: expected a power of two from 32 to 4096, found "
               "%" PRId64,
               where, to->codec.block_numel);
    return TESS_OK;
}

static tess_status read_state(const group *g)
{
    char text[STATE_MAX_NBYTES], source[1024];
    tess_json *root = NULL;
    const tess_st_tensor *st = g->state->st;
    const char *type = g->state->name + strlen(g->codes->name) + sizeof state_prefix - 1;
    const char *file = g->dir->file[g->state->file_idx].name;
    TESS_CHECK(strcmp(type, "nf4") == 0 || strcmp(type, "fp4") == 0, TESS_E_UNSUPPORTED,
               "'%s/%s': tensor '%s': expected quant type nf4 or fp4", g->dir->path, file,
               g->state->name);
    TESS_CHECK(st->dtype == TESS_ST_U8 && st->nbytes > 0 && st->nbytes <= STATE_MAX_NBYTES,
               TESS_E_FORMAT,
               "'%s/%s': tensor '%s': expected 1 to %d bytes of JSON in U8, found "
               "%" PRId64 " in %s",
               g->dir->path, file, g->state->name, STATE_MAX_NBYTES, st->nbytes,
               tess_st_dtype_name(st->dtype));
    g->to->codec.format = strcmp(type, "nf4") == 0 ? TESS_FORMAT_NF4 : TESS_FORMAT_FP4;
    g->to->codec.double_quant = g->nested_absmax != NULL;
    TESS_TRY(read_member(g, g->state, text));
    snprintf(source, sizeof source, "%.400s/%.80s: %s", g->dir->path, file, g->state->name);
    TESS_TRY(tess_json_parse(source, text, (size_t)st->nbytes, &root));
    const tess_status result = read_state_object(g, root);
    tess_json_destroy(&root);
    return result;
}

/* ---- 4 bits ---- */

/* Every tensor X.weight.* has its place; one that has none is refused. */
static tess_status place_member(group *g, const tess_model_tensor *t)
{
    const char *suffix = t->name + strlen(g->codes->name);
    const struct {
        const char *suffix;
        const tess_model_tensor **place;
    } rows[] = {{".absmax", &g->absmax},
                {".quant_map", &g->quant_map},
                {".nested_absmax", &g->nested_absmax},
                {".nested_quant_map", &g->nested_map}};
    for (int i = 0; i < TESS_NELEM(rows); i++) {
        if (strcmp(rows[i].suffix, suffix) == 0) {
            *rows[i].place = t;
            return TESS_OK;
        }
    }
    const char *file = g->dir->file[t->file_idx].name;
    TESS_CHECK(strncmp(suffix, state_prefix, sizeof state_prefix - 1) == 0, TESS_E_UNSUPPORTED,
               "'%s/%s': tensor '%s' is no part of a weight of bitsandbytes", g->dir->path, file,
               t->name);
    TESS_CHECK(g->state == NULL, TESS_E_FORMAT,
               "'%s/%s': tensor '%s' is a second quant_state beside '%s'", g->dir->path, file,
               t->name, g->state->name);
    g->state = t;
    return TESS_OK;
}

static tess_status check_codes(const group *g)
{
    const tess_st_tensor *st = g->codes->st;
    const int64_t nbytes = tess_ceil_div(g->to->whole.numel, 2);
    char found[256], shape[256];
    const bool is_label = st->dtype == TESS_ST_U8 || st->dtype == TESS_ST_BF16 ||
                          st->dtype == TESS_ST_F16 || st->dtype == TESS_ST_F32;
    tess_st_shape_text(st->dim, st->dim_numel, found, sizeof found);
    tess_st_shape_text(g->to->whole.dim, 2, shape, sizeof shape);
    TESS_CHECK(is_label && st->dim_numel == 2 && st->dim[1] == 1 && st->nbytes == nbytes,
               TESS_E_FORMAT,
               "'%s/%s': tensor '%s': expected %" PRId64 " bytes of codes for %s in one column of "
               "U8, BF16, F16 or F32, found %s %s of %" PRId64 " bytes",
               g->dir->path, file_of(g), g->codes->name, nbytes, shape,
               tess_st_dtype_name(st->dtype), found, st->nbytes);
    return TESS_OK;
}

static tess_status join_bnb4(group *g)
{
    tess_packed *to = g->to;
    TESS_CHECK(g->state != NULL, TESS_E_FORMAT,
               "'%s/%s': tensor '%s%snf4' (or fp4) is missing beside '%s.*'", g->dir->path,
               file_of(g), g->codes->name, state_prefix, g->codes->name);
    TESS_TRY(read_state(g));
    TESS_TRY(check_codes(g));
    const bool is_double = to->codec.double_quant;
    const int64_t block_numel = tess_ceil_div(to->whole.numel, to->codec.block_numel);
    TESS_TRY(
        check_member(g, g->absmax, ".absmax", is_double ? TESS_ST_U8 : TESS_ST_F32, block_numel));
    TESS_TRY(check_member(g, g->quant_map, ".quant_map", TESS_ST_F32, TABLE_NUMEL));
    TESS_TRY(check_table(g, g->quant_map, to->codec.format == TESS_FORMAT_NF4 ? nf4_sha : fp4_sha));
    put_part(to, g->codes, false);
    put_part(to, g->absmax, !is_double);
    if (!is_double) {
        TESS_CHECK(g->nested_map == NULL, TESS_E_FORMAT,
                   "'%s/%s': tensor '%s' stands without nested_absmax", g->dir->path, file_of(g),
                   g->nested_map->name);
        return TESS_OK;
    }
    TESS_TRY(check_member(g, g->nested_absmax, ".nested_absmax", TESS_ST_F32,
                          tess_ceil_div(block_numel, TESS_NESTED_BLOCK_NUMEL)));
    TESS_TRY(check_member(g, g->nested_map, ".nested_quant_map", TESS_ST_F32, MAP_NUMEL));
    TESS_TRY(check_table(g, g->nested_map, map_sha));
    put_part(to, g->nested_absmax, true);
    put_part(to, NULL, false);
    return TESS_OK;
}

/* ---- int8 by row ---- */

static tess_status join_int8(group *g, const tess_model_tensor *scb,
                             const tess_model_tensor *layout)
{
    const tess_st_tensor *st = g->codes->st;
    char found[256];
    uint8_t value = 0;
    tess_st_shape_text(st->dim, st->dim_numel, found, sizeof found);
    TESS_CHECK(st->dim_numel == 2 && st->numel > 0, TESS_E_FORMAT,
               "'%s/%s': tensor '%s': expected I8 [out, in], found %s", g->dir->path, file_of(g),
               g->codes->name, found);
    TESS_CHECK(scb != NULL, TESS_E_FORMAT,
               "'%s/%s': tensor '%s' is I8, but its scales (SCB) are missing", g->dir->path,
               file_of(g), g->codes->name);
    TESS_TRY(check_member(g, scb, "", TESS_ST_F32, st->dim[0]));
    if (layout != NULL) {
        TESS_CHECK(layout->st->dtype == TESS_ST_U8 && layout->st->numel == 1, TESS_E_FORMAT,
                   "'%s/%s': tensor '%s': expected one U8, found %" PRId64 " of %s", g->dir->path,
                   file_of(g), layout->name, layout->st->numel,
                   tess_st_dtype_name(layout->st->dtype));
        TESS_TRY(read_member(g, layout, &value));
        TESS_CHECK(value == 0, TESS_E_UNSUPPORTED,
                   "'%s/%s': tensor '%s': expected 0 (rows), found layout %d of a GPU; save the "
                   "model again with a newer bitsandbytes",
                   g->dir->path, file_of(g), layout->name, value);
    }
    g->to->whole = *st;
    g->to->codec = (tess_codec){.format = TESS_FORMAT_INT8, .block_numel = st->dim[1]};
    put_part(g->to, g->codes, false);
    put_part(g->to, scb, true);
    return TESS_OK;
}

/* ---- all of them ---- */

/* Tensor X + `suffix` beside X.weight. */
static const tess_model_tensor *find_beside(const tess_model_dir *dir, const char *weight,
                                            const char *suffix)
{
    char name[TESS_ST_NAME_MAX_NBYTES + 32];
    snprintf(name, sizeof name, "%.*s%s", (int)(strlen(weight) - (sizeof ".weight" - 1)), weight,
             suffix);
    return tess_model_dir_find(dir, name);
}

static bool is_weight(const char *name)
{
    const size_t nbytes = strlen(name);
    return nbytes > sizeof ".weight" - 1 && strcmp(name + nbytes - 7, ".weight") == 0;
}

/* The weight that is tensor `idx`, and how many names "X.weight.*" follow; to->part_numel stays 0
 * for a plain one. */
static tess_status join_one(tess_model_dir *dir, int64_t idx, tess_packed *to, bool *is_member)
{
    group g = {.dir = dir, .codes = &dir->tensor[idx], .to = to};
    const size_t nbytes = strlen(g.codes->name);
    const tess_model_tensor *scb = NULL, *layout = NULL;
    bool is_bnb4 = false;
    for (int64_t i = idx + 1; i < dir->tensor_numel; i++) {
        const tess_model_tensor *t = &dir->tensor[i];
        if (strncmp(t->name, g.codes->name, nbytes) != 0)
            break;
        if (t->name[nbytes] != '.')
            continue;
        TESS_TRY(place_member(&g, t));
        is_bnb4 = is_member[i] = true;
    }
    scb = find_beside(dir, g.codes->name, ".SCB");
    TESS_CHECK(scb == NULL || (!is_bnb4 && g.codes->st->dtype == TESS_ST_I8), TESS_E_FORMAT,
               "'%s/%s': tensor '%s' belongs to int8 weights, but '%s' is %s", dir->path,
               file_of(&g), scb->name, g.codes->name, tess_st_dtype_name(g.codes->st->dtype));
    if (is_bnb4) {
        TESS_TRY(join_bnb4(&g));
    } else if (g.codes->st->dtype == TESS_ST_I8) {
        layout = find_beside(dir, g.codes->name, ".weight_format");
        TESS_TRY(join_int8(&g, scb, layout));
        is_member[scb - dir->tensor] = true;
        if (layout != NULL)
            is_member[layout - dir->tensor] = true;
    }
    to->whole.name = g.codes->name;
    to->whole.dtype = TESS_ST_U8;
    to->whole.nbytes = 0;
    for (int i = 0; i < to->part_numel; i++)
        to->whole.nbytes += (int64_t)to->part[i].nbytes;
    return TESS_OK;
}

static int64_t weight_numel(const tess_model_dir *dir)
{
    int64_t numel = 0;
    for (int64_t i = 0; i < dir->tensor_numel; i++)
        numel += is_weight(dir->tensor[i].name);
    return numel;
}

static tess_status join_all(tess_model_dir *dir, bool *is_member, const tess_packed **packed_of)
{
    for (int64_t i = 0; i < dir->tensor_numel; i++) {
        tess_packed *to = &dir->packed[dir->packed_numel];
        if (is_member[i] || !is_weight(dir->tensor[i].name))
            continue;
        memset(to, 0, sizeof *to);
        TESS_TRY(join_one(dir, i, to, is_member));
        if (to->part_numel == 0)
            continue;
        packed_of[i] = to;
        dir->packed_numel++;
    }
    return TESS_OK;
}

tess_status tess_packed_join(tess_model_dir *dir)
{
    void *packed = NULL, *member = NULL, *of = NULL;
    int64_t kept_numel = 0;
    TESS_TRY(tess_alloc_array(weight_numel(dir) + 1, sizeof *dir->packed, &packed));
    dir->packed = packed;
    tess_status st = tess_alloc_array(dir->tensor_numel, sizeof(bool), &member);
    if (st == TESS_OK)
        st = tess_alloc_array(dir->tensor_numel, sizeof(tess_packed *), &of);
    bool *is_member = member;
    const tess_packed **packed_of = of;
    if (st == TESS_OK)
        st = join_all(dir, is_member, packed_of);
    for (int64_t i = 0; st == TESS_OK && i < dir->tensor_numel; i++) {
        if (is_member[i])
            continue;
        tess_model_tensor *t = &dir->tensor[kept_numel++];
        *t = dir->tensor[i];
        t->packed = packed_of[i];
        if (t->packed != NULL)
            t->st = &t->packed->whole;
    }
    if (st == TESS_OK)
        dir->tensor_numel = kept_numel;
    tess_free(of);
    tess_free(member);
    return st;
}

/* ---- reading ---- */

/* Whole f32 scales of bytes [first, first + nbytes) of a part. */
static tess_status check_scales(const tess_model_dir *dir, const tess_model_tensor *t, int part_idx,
                                int64_t first, size_t nbytes, const char *bytes)
{
    for (int64_t i = tess_ceil_div(first, 4); 4 * i + 4 <= first + (int64_t)nbytes; i++) {
        float value = 0.0F;
        memcpy(&value, bytes + 4 * i - first, sizeof value);
        TESS_CHECK(isfinite(value) && value >= 0.0F, TESS_E_FORMAT,
                   "'%s/%s': tensor '%s': scale %" PRId64 " is %g, expected a finite number of at "
                   "least 0; the file is damaged",
                   dir->path, dir->file[t->packed->part[part_idx].file_idx].name,
                   t->packed->part[part_idx].st->name, i, (double)value);
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
        if (p->part[i].has_scales)
            TESS_TRY(check_scales(dir, tensor, i, lo, (size_t)(hi - lo), to));
    }
    return TESS_OK;
}
