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
#include <string.h>

#include "core/arith.h"
#include "format/packed_priv.h"
#include "format/text_priv.h"

enum { STATE_MAX_NBYTES = 4096, MAP_NUMEL = 256, TABLE_NUMEL = 16 };

static const char state_prefix[] = ".quant_state.bitsandbytes__";

/* SHA-256 of the f32 tables as bitsandbytes writes them; minus zero counts as zero. */
static const char nf4_sha[] = "8501941daa1b8a90ad1bbfeb632e5101b5dddbc4bb52d6e55abcfd777e60c06a";
static const char fp4_sha[] = "b830bcf8857895e5676b8e2ce608a60bb8af9b3ce6270073e9de34814196f09c";
static const char map_sha[] = "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c";

/* One packed weight while it is put together. */
typedef struct group {
    const tess_packing_weight *w;
    const tess_model_dir *dir;
    const tess_model_tensor *codes; /* X.weight */
    const tess_model_tensor *absmax, *quant_map, *nested_absmax, *nested_map, *state;
    tess_packed *to;
} group;

/* The table in the file is the one the kernels have. */
static tess_status check_table(const group *g, const tess_model_tensor *t, const char *sha)
{
    float value[MAP_NUMEL];
    tess_sha256 found, expected;
    TESS_TRY(tess_packing_read(g->w, t, value));
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
    char where[512];
    TESS_TRY(check_keys(root));
    TESS_TRY(expect_text(root, "quant_type", &type, 1));
    TESS_TRY(expect_text(root, "dtype", dtypes, TESS_NELEM(dtypes)));
    TESS_TRY(tess_json_get_i64(root, "blocksize", &to->codec.block_numel));
    TESS_TRY(read_shape(root, &to->whole));
    TESS_TRY(read_nested(root, to));
    tess_json_where(tess_json_find(root, "blocksize"), where, sizeof where);
    const int64_t block = to->codec.block_numel;
    TESS_CHECK(block >= 32 && block <= 4096 && (block & (block - 1)) == 0, TESS_E_UNSUPPORTED,
               "%s: expected a power of two from 32 to 4096, found %" PRId64, where, block);
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
    TESS_TRY(tess_packing_read(g->w, g->state, text));
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
               g->dir->path, tess_packing_file(g->w), g->codes->name, nbytes, shape,
               tess_st_dtype_name(st->dtype), found, st->nbytes);
    return TESS_OK;
}

static tess_status join_bnb4(group *g)
{
    tess_packed *to = g->to;
    TESS_CHECK(g->state != NULL, TESS_E_FORMAT,
               "'%s/%s': tensor '%s%snf4' (or fp4) is missing beside '%s.*'", g->dir->path,
               tess_packing_file(g->w), g->codes->name, state_prefix, g->codes->name);
    TESS_TRY(read_state(g));
    TESS_TRY(check_codes(g));
    const bool is_double = to->codec.double_quant;
    const int64_t block_numel = tess_ceil_div(to->whole.numel, to->codec.block_numel);
    TESS_TRY(tess_packing_check(g->w, g->absmax, ".absmax", is_double ? TESS_ST_U8 : TESS_ST_F32,
                                block_numel));
    TESS_TRY(tess_packing_check(g->w, g->quant_map, ".quant_map", TESS_ST_F32, TABLE_NUMEL));
    TESS_TRY(check_table(g, g->quant_map, to->codec.format == TESS_FORMAT_NF4 ? nf4_sha : fp4_sha));
    tess_packing_put(to, g->codes, TESS_PACKED_ANY);
    tess_packing_put(to, g->absmax, is_double ? TESS_PACKED_ANY : TESS_PACKED_SCALES);
    if (!is_double) {
        TESS_CHECK(g->nested_map == NULL, TESS_E_FORMAT,
                   "'%s/%s': tensor '%s' stands without nested_absmax", g->dir->path,
                   tess_packing_file(g->w), g->nested_map->name);
        return TESS_OK;
    }
    TESS_TRY(tess_packing_check(g->w, g->nested_absmax, ".nested_absmax", TESS_ST_F32,
                                tess_ceil_div(block_numel, TESS_NESTED_BLOCK_NUMEL)));
    TESS_TRY(tess_packing_check(g->w, g->nested_map, ".nested_quant_map", TESS_ST_F32, MAP_NUMEL));
    TESS_TRY(check_table(g, g->nested_map, map_sha));
    tess_packing_put(to, g->nested_absmax, TESS_PACKED_SCALES);
    tess_packing_put(to, NULL, TESS_PACKED_ANY);
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
               "'%s/%s': tensor '%s': expected I8 [out, in], found %s", g->dir->path,
               tess_packing_file(g->w), g->codes->name, found);
    TESS_CHECK(scb != NULL, TESS_E_FORMAT,
               "'%s/%s': tensor '%s' is I8, but its scales (SCB) are missing", g->dir->path,
               tess_packing_file(g->w), g->codes->name);
    TESS_TRY(tess_packing_check(g->w, scb, "", TESS_ST_F32, st->dim[0]));
    if (layout != NULL) {
        TESS_CHECK(layout->st->dtype == TESS_ST_U8 && layout->st->numel == 1, TESS_E_FORMAT,
                   "'%s/%s': tensor '%s': expected one U8, found %" PRId64 " of %s", g->dir->path,
                   tess_packing_file(g->w), layout->name, layout->st->numel,
                   tess_st_dtype_name(layout->st->dtype));
        TESS_TRY(tess_packing_read(g->w, layout, &value));
        TESS_CHECK(value == 0, TESS_E_UNSUPPORTED,
                   "'%s/%s': tensor '%s': expected 0 (rows), found layout %d of a GPU; save the "
                   "model again with a newer bitsandbytes",
                   g->dir->path, tess_packing_file(g->w), layout->name, value);
    }
    g->to->whole = *st;
    g->to->codec = (tess_codec){.format = TESS_FORMAT_INT8, .block_numel = st->dim[1]};
    tess_packing_put(g->to, g->codes, TESS_PACKED_ANY);
    tess_packing_put(g->to, scb, TESS_PACKED_SCALES);
    return TESS_OK;
}

/* ---- both ---- */

tess_status tess_packed_bnb(tess_packing_weight *w)
{
    const tess_model_dir *dir = w->p->dir;
    group g = {.w = w, .dir = dir, .codes = w->codes, .to = w->to};
    const size_t nbytes = strlen(g.codes->name);
    const tess_model_tensor *scb = tess_packing_beside(w, ".SCB");
    bool is_bnb4 = false;
    for (const tess_model_tensor *t = g.codes + 1; t < dir->tensor + dir->tensor_numel; t++) {
        if (strncmp(t->name, g.codes->name, nbytes) != 0)
            break;
        if (t->name[nbytes] != '.')
            continue;
        TESS_TRY(place_member(&g, t));
        tess_packing_take(w, t);
        is_bnb4 = true;
    }
    TESS_CHECK(scb == NULL || (!is_bnb4 && g.codes->st->dtype == TESS_ST_I8), TESS_E_FORMAT,
               "'%s/%s': tensor '%s' belongs to int8 weights, but '%s' is %s", dir->path,
               tess_packing_file(w), scb->name, g.codes->name,
               tess_st_dtype_name(g.codes->st->dtype));
    if (is_bnb4)
        return join_bnb4(&g);
    if (g.codes->st->dtype != TESS_ST_I8)
        return TESS_OK;
    const tess_model_tensor *layout = tess_packing_beside(w, ".weight_format");
    TESS_TRY(join_int8(&g, scb, layout));
    tess_packing_take(w, scb);
    if (layout != NULL)
        tess_packing_take(w, layout);
    return TESS_OK;
}
