/*
 * Weights that optimum-quanto has packed: X.weight._data (8 bits) or X.weight._data._data (4 and 2
 * bits), X.weight._scale, X.weight._shift, and a map of modules to types in a file of its own.
 * Where diffusers has written them there is no map: config.json states one type for all that is
 * packed.
 *
 * The files do not know the shape of a weight of 4 or 2 bits: it is one of whole groups, and gets
 * its shape when the model claims it. Only axis 0 is read: along the other one constants belong to
 * columns, and a codec has them for consecutive elements.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "format/packed_priv.h"

bool tess_packed_is_quanto(const char *name, size_t *nbytes)
{
    static const char *const suffix[] = {".weight._data._data", ".weight._data"};
    const size_t length = strlen(name);
    for (int i = 0; i < TESS_NELEM(suffix); i++) {
        const size_t tail = strlen(suffix[i]);
        if (length > tail && strcmp(name + length - tail, suffix[i]) == 0) {
            *nbytes = length - tail + sizeof ".weight" - 1;
            return true;
        }
    }
    return false;
}

/* ---- the map ---- */

tess_status tess_packed_quanto_open(tess_packing *p)
{
    static const char *const name[] = {"quantization_map.json", "quanto_qmap.json"};
    tess_io *io = p->dir->ctx->io;
    for (int i = 0; i < TESS_NELEM(name); i++) {
        tess_io_kind kind = TESS_IO_MISSING;
        int64_t nbytes = 0;
        char *path = NULL;
        TESS_TRY(tess_asprintf(&path, "%s/%s", p->dir->path, name[i]));
        tess_status st = tess_io_stat(io, path, &kind, &nbytes);
        if (st == TESS_OK && kind == TESS_IO_FILE && p->map != NULL)
            st = TESS_FAIL(TESS_E_FORMAT,
                           "'%s': found '%s' and '%s'; keep the one that belongs to "
                           "the weights",
                           p->dir->path, name[0], name[1]);
        if (st == TESS_OK && kind == TESS_IO_FILE) {
            p->map_name = name[i];
            st = tess_json_read(io, path, &p->map);
        }
        tess_free(path);
        TESS_TRY(st);
    }
    return p->map != NULL ? tess_json_expect(p->map, TESS_JSON_OBJECT) : TESS_OK;
}

/* The type of a module in the map: "none", "qint4", ... */
static tess_status read_entry(const tess_json *entry, const char **weights)
{
    const char *activations = NULL;
    char where[512];
    tess_json_where(entry, where, sizeof where);
    TESS_TRY(tess_json_expect(entry, TESS_JSON_OBJECT));
    TESS_TRY(tess_json_get_string(entry, "weights", weights));
    TESS_TRY(tess_json_get_string(entry, "activations", &activations));
    TESS_CHECK(tess_json_numel(entry) == 2, TESS_E_UNSUPPORTED,
               "%s: expected the keys weights and activations alone", where);
    TESS_CHECK(
        strcmp(activations, "none") == 0, TESS_E_UNSUPPORTED,
        "%s: activations are '%.32s', expected 'none': quantized activations are not trained "
        "through; quantize the weights alone",
        where, activations);
    return TESS_OK;
}

static tess_status format_of(const tess_json *entry, const char *weights, tess_format *out)
{
    static const struct {
        const char *name;
        tess_format format;
    } rows[] = {{"qint8", TESS_FORMAT_QINT8},
                {"qint4", TESS_FORMAT_QINT4},
                {"qint2", TESS_FORMAT_QINT2},
                {"qfloat8", TESS_FORMAT_QFLOAT8},
                {"qfloat8_e4m3fn", TESS_FORMAT_QFLOAT8},
                {"qfloat8_e5m2", TESS_FORMAT_QFLOAT8_E5M2}};
    char where[512];
    for (int i = 0; i < TESS_NELEM(rows); i++) {
        if (strcmp(rows[i].name, weights) == 0) {
            *out = rows[i].format;
            return TESS_OK;
        }
    }
    tess_json_where(entry, where, sizeof where);
    return TESS_FAIL(TESS_E_UNSUPPORTED,
                     "%s: weights are '%.32s', expected qint8, qint4, qint2, qfloat8_e4m3fn or "
                     "qfloat8_e5m2",
                     where, weights);
}

static tess_status read_config(tess_packing *p)
{
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    char *path = NULL;
    TESS_TRY(tess_asprintf(&path, "%s/config.json", p->dir->path));
    tess_status st = tess_io_stat(p->dir->ctx->io, path, &kind, &nbytes);
    if (st == TESS_OK && kind == TESS_IO_FILE)
        st = tess_json_read(p->dir->ctx->io, path, &p->config);
    tess_free(path);
    return st;
}

/* The quantization_config of diffusers' QuantoConfig, NULL: none is there. */
static tess_status find_stated(tess_packing *p, const tess_json **out)
{
    const char *method = NULL;
    *out = NULL;
    if (p->config == NULL)
        TESS_TRY(read_config(p));
    if (p->config == NULL)
        return TESS_OK;
    TESS_TRY(tess_json_opt_object(p->config, "quantization_config", out));
    if (*out == NULL)
        return TESS_OK;
    TESS_TRY(tess_json_opt_string(*out, "quant_method", "", &method));
    if (strcmp(method, "quanto") != 0)
        *out = NULL;
    return TESS_OK;
}

/* "int4" of QuantoConfig is quanto's qint4. */
static tess_status stated_format(const tess_json *stated, tess_format *out)
{
    const char *weights = NULL;
    char name[64];
    TESS_TRY(tess_json_get_string(stated, "weights_dtype", &weights));
    snprintf(name, sizeof name, "q%.32s", weights);
    return format_of(stated, name, out);
}

static tess_status mapped_format(const tess_packing_weight *w, tess_format *out)
{
    const tess_model_dir *dir = w->p->dir;
    char module[TESS_ST_NAME_MAX_NBYTES + 1];
    const char *weights = NULL;
    const tess_json *stated = NULL;
    if (w->p->map == NULL)
        TESS_TRY(find_stated(w->p, &stated));
    if (stated != NULL)
        return stated_format(stated, out);
    TESS_CHECK(w->p->map != NULL, TESS_E_FORMAT,
               "'%s/%s': tensor '%s' is packed by optimum-quanto, but its map is missing; save "
               "quantization_map(model) as '%s/quantization_map.json'",
               dir->path, tess_packing_file(w), w->codes->name, dir->path);
    snprintf(module, sizeof module, "%.*s", (int)(strlen(w->name) - (sizeof ".weight" - 1)),
             w->name);
    const tess_json *entry = tess_json_find(w->p->map, module);
    TESS_CHECK(entry != NULL, TESS_E_FORMAT,
               "'%s/%s': tensor '%s' is packed by optimum-quanto, but '%s' has no module '%s'",
               dir->path, tess_packing_file(w), w->codes->name, w->p->map_name, module);
    TESS_TRY(read_entry(entry, &weights));
    return format_of(entry, weights, out);
}

tess_status tess_packed_quanto_check(const tess_packing *p)
{
    for (int64_t i = 0; p->map != NULL && i < tess_json_numel(p->map); i++) {
        const tess_json *entry = tess_json_at(p->map, i);
        const char *weights = NULL;
        char name[TESS_ST_NAME_MAX_NBYTES + 16], where[512];
        TESS_TRY(read_entry(entry, &weights));
        snprintf(name, sizeof name, "%.*s.weight", TESS_ST_NAME_MAX_NBYTES, tess_json_key(entry));
        const tess_model_tensor *t = tess_model_dir_find(p->dir, name);
        const bool is_stated = strcmp(weights, "none") != 0;
        tess_json_where(entry, where, sizeof where);
        TESS_CHECK(!is_stated || (t != NULL && t->packed != NULL), TESS_E_FORMAT,
                   "%s: weights are '%.32s', but '%.200s' is %s", where, weights, name,
                   t == NULL ? "missing" : "not packed");
    }
    return TESS_OK;
}

/* ---- weights ---- */

/* Every tensor X.weight* is data, scale or shift. */
static tess_status check_members(const tess_packing_weight *w, const tess_model_tensor *scale,
                                 const tess_model_tensor *shift)
{
    const tess_model_dir *dir = w->p->dir;
    const size_t nbytes = strlen(w->name);
    for (int64_t i = 0; i < dir->tensor_numel; i++) {
        const tess_model_tensor *t = &dir->tensor[i];
        if (strncmp(t->name, w->name, nbytes) != 0 ||
            (t->name[nbytes] != '.' && t->name[nbytes] != '\0'))
            continue;
        TESS_CHECK(t == w->codes || t == scale || t == shift, TESS_E_FORMAT,
                   "'%s/%s': tensor '%s' is no part of a weight of optimum-quanto beside '%s'",
                   dir->path, dir->file[t->file_idx].name, t->name, w->codes->name);
    }
    return TESS_OK;
}

static tess_status find_part(const tess_packing_weight *w, const char *suffix, bool is_needed,
                             const tess_model_tensor **out)
{
    char name[TESS_ST_NAME_MAX_NBYTES + 32];
    snprintf(name, sizeof name, ".weight%s", suffix);
    *out = tess_packing_beside(w, name);
    TESS_CHECK((*out != NULL) == is_needed, TESS_E_FORMAT, "'%s/%s': tensor '%s%s' is %s '%s'",
               w->p->dir->path, tess_packing_file(w), w->name, suffix,
               is_needed ? "missing beside" : "there, but has no place beside", w->codes->name);
    return TESS_OK;
}

/* One number per block, in a column. */
static tess_status check_constants(const tess_packing_weight *w, const tess_model_tensor *t,
                                   int64_t numel)
{
    const tess_st_tensor *st = t->st;
    char found[256];
    tess_st_shape_text(st->dim, st->dim_numel, found, sizeof found);
    TESS_CHECK(
        st->dim_numel != 2 || st->dim[0] != 1 || st->dim[1] <= 1, TESS_E_UNSUPPORTED,
        "'%s/%s': tensor '%s' %s: quantized along axis -1, where constants belong to columns; "
        "expected axis 0, as quanto's layers have it",
        w->p->dir->path, w->p->dir->file[t->file_idx].name, t->name, found);
    const bool is_column = st->dim_numel == 2 && st->dim[0] == numel && st->dim[1] == 1;
    TESS_CHECK(is_column || (numel == 1 && st->numel == 1), TESS_E_FORMAT,
               "'%s/%s': tensor '%s': expected [%" PRId64 ", 1], found %s", w->p->dir->path,
               w->p->dir->file[t->file_idx].name, t->name, numel, found);
    return TESS_OK;
}

static tess_status check_codes(const tess_packing_weight *w, tess_st_dtype dtype)
{
    const tess_st_tensor *st = w->codes->st;
    char found[256];
    tess_st_shape_text(st->dim, st->dim_numel, found, sizeof found);
    TESS_CHECK(st->dtype == dtype && st->dim_numel == 2 && st->numel > 0, TESS_E_FORMAT,
               "'%s/%s': tensor '%s': expected %s of two extents, found %s %s", w->p->dir->path,
               tess_packing_file(w), w->codes->name, tess_st_dtype_name(dtype),
               tess_st_dtype_name(st->dtype), found);
    return TESS_OK;
}

static tess_status join_bytes(tess_packing_weight *w, const tess_model_tensor *scale)
{
    const tess_st_tensor *st = w->codes->st;
    tess_codec *codec = &w->to->codec;
    const bool is_int8 = codec->format == TESS_FORMAT_QINT8;
    TESS_TRY(check_codes(w, is_int8                                ? TESS_ST_I8
                            : codec->format == TESS_FORMAT_QFLOAT8 ? TESS_ST_F8_E4M3
                                                                   : TESS_ST_F8_E5M2));
    TESS_TRY(check_constants(w, scale, st->dim[0]));
    codec->block_numel = st->dim[1];
    w->to->whole = *st;
    tess_packing_put(w->to, w->codes, is_int8 ? TESS_PACKED_ANY : TESS_PACKED_CODES);
    tess_packing_put(w->to, scale, TESS_PACKED_SCALES);
    return TESS_OK;
}

static tess_status join_groups(tess_packing_weight *w, const tess_model_tensor *scale,
                               const tess_model_tensor *shift)
{
    const tess_st_tensor *st = w->codes->st;
    tess_packed *to = w->to;
    tess_dtype shift_dt = TESS_F32;
    const int64_t group_numel = scale->st->numel;
    TESS_TRY(check_codes(w, TESS_ST_U8));
    TESS_TRY(check_constants(w, scale, group_numel));
    TESS_TRY(check_constants(w, shift, group_numel));
    TESS_TRY(tess_packing_scale_dtype(w, shift, &shift_dt));
    TESS_CHECK(shift_dt == to->codec.scale_dt, TESS_E_FORMAT,
               "'%s/%s': tensor '%s' is %s, but its scale is %s", w->p->dir->path,
               tess_packing_file(w), shift->name, tess_dtype_name(shift_dt),
               tess_dtype_name(to->codec.scale_dt));
    to->codec.block_numel = st->dim[1];
    to->whole.dim_numel = 2;
    to->whole.dim[0] = group_numel;
    to->whole.dim[1] = st->dim[1];
    TESS_TRY(tess_mul_i64(group_numel, st->dim[1], &to->whole.numel));
    to->is_grouped = true;
    const int64_t row_numel = tess_codec_plane_rows(&to->codec, to->whole.numel);
    TESS_CHECK(st->dim[0] == row_numel, TESS_E_FORMAT,
               "'%s/%s': tensor '%s': expected %" PRId64 " rows of %s for %" PRId64
               " groups, found %" PRId64,
               w->p->dir->path, tess_packing_file(w), w->codes->name, row_numel,
               tess_format_name(to->codec.format), group_numel, st->dim[0]);
    tess_packing_put(to, w->codes, TESS_PACKED_ANY);
    tess_packing_put(to, scale, TESS_PACKED_SCALES);
    tess_packing_put(to, shift, TESS_PACKED_SHIFTS);
    return TESS_OK;
}

/* The rule does not show in the bytes. */
static tess_status stated_rule(const tess_packing_weight *w, tess_codec *codec)
{
    const char *text = NULL;
    tess_codec stated;
    TESS_TRY(tess_packing_stated(w, &text));
    if (text == NULL)
        return TESS_OK;
    TESS_TRY(tess_codec_parse(text, codec->block_numel, &stated));
    codec->rule = stated.rule;
    return TESS_OK;
}

tess_status tess_packed_quanto(tess_packing_weight *w)
{
    const size_t nbytes = strlen(w->codes->name), named = strlen(w->name);
    const bool is_groups = nbytes > named + strlen("._data");
    const tess_model_tensor *scale = NULL, *shift = NULL;
    tess_codec *codec = &w->to->codec;
    TESS_TRY(mapped_format(w, &codec->format));
    TESS_CHECK((tess_format_code_bits(codec->format) < 8) == is_groups, TESS_E_FORMAT,
               "'%s/%s': tensor '%s' is no %s, but '%s' says so", w->p->dir->path,
               tess_packing_file(w), w->codes->name, tess_format_name(codec->format),
               w->p->map != NULL ? w->p->map_name : "config.json");
    TESS_TRY(find_part(w, "._scale", true, &scale));
    TESS_TRY(find_part(w, "._shift", is_groups, &shift));
    TESS_TRY(check_members(w, scale, shift));
    TESS_TRY(tess_packing_scale_dtype(w, scale, &codec->scale_dt));
    TESS_TRY(is_groups ? join_groups(w, scale, shift) : join_bytes(w, scale));
    tess_packing_take(w, scale);
    if (is_groups) {
        TESS_TRY(stated_rule(w, codec));
        tess_packing_take(w, shift);
    }
    TESS_TRY(tess_packing_no_activations(w, ".input_scale"));
    return tess_packing_no_activations(w, ".output_scale");
}
