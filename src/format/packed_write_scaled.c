/*
 * Weights as optimum-quanto packs them, and fp8 weights with the scale beside them. The readers are
 * packed_quanto.c and packed_fp8.c: names and shapes stand there.
 */
#include <stdio.h>
#include <string.h>

#include "format/model_dir.h"
#include "format/model_write_priv.h"

bool tess_packed_is_quanto_codec(const tess_codec *codec)
{
    return codec->format == TESS_FORMAT_QINT8 || codec->format == TESS_FORMAT_QINT4 ||
           codec->format == TESS_FORMAT_QINT2 || codec->format == TESS_FORMAT_QFLOAT8 ||
           codec->format == TESS_FORMAT_QFLOAT8_E5M2;
}

bool tess_packed_is_fp8_codec(const tess_codec *codec)
{
    return codec->format == TESS_FORMAT_E4M3 || codec->format == TESS_FORMAT_E5M2;
}

static tess_st_dtype code_dtype(tess_format format)
{
    const bool is_e4m3 = format == TESS_FORMAT_QFLOAT8 || format == TESS_FORMAT_E4M3;
    const bool is_e5m2 = format == TESS_FORMAT_QFLOAT8_E5M2 || format == TESS_FORMAT_E5M2;
    return is_e4m3 ? TESS_ST_F8_E4M3 : is_e5m2 ? TESS_ST_F8_E5M2 : TESS_ST_I8;
}

static void set_matrix(tess_packed_item *it, int64_t row_numel, int64_t col_numel)
{
    it->st.dim_numel = 2;
    it->st.dim[0] = row_numel;
    it->st.dim[1] = col_numel;
}

/* A scale of activations that are not quantized: 1. */
static void add_one(tess_packed_list *l, const char *suffix, tess_st_dtype dtype)
{
    tess_packed_item *it = tess_packed_add(l, (int)sizeof ".weight" - 1, suffix, dtype, 0);
    it->st.dim_numel = 0;
    it->source = TESS_PACKED_CONSTANT;
    it->constant = dtype == TESS_ST_F32 ? 0x3f800000U : dtype == TESS_ST_BF16 ? 0x3f80U : 0x3c00U;
}

tess_status tess_packed_add_quanto(tess_packed_list *l)
{
    const tess_model_write_tensor *t = l->tensor;
    const int64_t numel = t->dim[0] * t->dim[1], group_numel = numel / t->codec.block_numel;
    tess_st_dtype dtype = TESS_ST_F32;
    TESS_TRY(tess_st_dtype_from_core(t->codec.scale_dt, &dtype));
    const bool is_grouped = tess_format_code_bits(t->codec.format) < 8;
    if (is_grouped)
        set_matrix(tess_packed_add(l, 0, "._data._data", TESS_ST_U8, 0),
                   tess_codec_plane_rows(&t->codec, numel), t->codec.block_numel);
    else
        set_matrix(tess_packed_add(l, 0, "._data", code_dtype(t->codec.format), 0), t->dim[0],
                   t->dim[1]);
    tess_packed_item *scale = tess_packed_add(l, 0, "._scale", dtype, 0);
    set_matrix(scale, group_numel, 1);
    scale->part_idx = 1;
    if (is_grouped) {
        tess_packed_item *shift = tess_packed_add(l, 0, "._shift", dtype, 0);
        set_matrix(shift, group_numel, 1);
        shift->part_idx = 2;
    }
    add_one(l, ".input_scale", dtype);
    add_one(l, ".output_scale", dtype);
    return TESS_OK;
}

tess_status tess_packed_add_fp8(tess_packed_list *l)
{
    const tess_model_write_tensor *t = l->tensor;
    const bool is_row = t->codec.scaling == TESS_SCALING_ROW;
    tess_st_dtype dtype = TESS_ST_F32;
    set_matrix(tess_packed_add(l, 0, "", code_dtype(t->codec.format), 0), t->dim[0], t->dim[1]);
    if (t->codec.scaling == TESS_SCALING_RAW)
        return TESS_OK;
    TESS_TRY(tess_st_dtype_from_core(t->codec.scale_dt, &dtype));
    tess_packed_item *scale = tess_packed_add(
        l, (int)sizeof ".weight" - 1,
        t->codec.meaning == TESS_SCALE_QUANT ? TESS_MODEL_QUANT_SCALE_SUFFIX : ".weight_scale",
        dtype, 0);
    set_matrix(scale, t->dim[0], 1);
    scale->st.dim_numel = is_row ? 2 : 0;
    scale->part_idx = 1;
    return TESS_OK;
}

/* ---- the map ---- */

static const char *quanto_name(tess_format format)
{
    return format == TESS_FORMAT_QFLOAT8        ? "qfloat8_e4m3fn"
           : format == TESS_FORMAT_QFLOAT8_E5M2 ? "qfloat8_e5m2"
                                                : tess_format_name(format);
}

static tess_status fill_map(const tess_model_write_request *q, tess_json *map)
{
    char path[TESS_ST_NAME_MAX_NBYTES + 1];
    for (int64_t i = 0; i < q->tensor_numel; i++) {
        const tess_model_write_tensor *t = &q->tensor[i];
        tess_json *entry = NULL;
        if (!tess_packed_is_quanto_codec(&t->codec))
            continue;
        snprintf(path, sizeof path, "%.*s", (int)(strlen(t->name) - (sizeof ".weight" - 1)),
                 t->name);
        TESS_TRY(tess_json_add_object(map, path, &entry));
        TESS_TRY(tess_json_add_string(entry, "weights", quanto_name(t->codec.format)));
        TESS_TRY(tess_json_add_string(entry, "activations", "none"));
    }
    return TESS_OK;
}

tess_status tess_packed_quanto_map(const tess_model_write_request *request, tess_json **out)
{
    tess_json *map = NULL;
    TESS_TRY(tess_json_create_object(&map));
    const tess_status st = fill_map(request, map);
    if (st != TESS_OK || tess_json_numel(map) == 0)
        tess_json_destroy(&map);
    *out = map;
    return st;
}
