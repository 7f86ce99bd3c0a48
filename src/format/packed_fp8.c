/*
 * Weights in fp8: F8_E4M3 or F8_E5M2 tensors, with a scale beside them or none (a raw cast).
 *
 * X.weight_scale is what vLLM and compressed-tensors write, X.scale_weight is ComfyUI's: both
 * multiply codes. Block scales (X.weight_scale_inv of DeepSeek) are refused.
 */
#include <inttypes.h>
#include <string.h>

#include "format/packed_priv.h"

/* The one scale of the weight, NULL when it has none. */
static tess_status find_scale(const tess_packing_weight *w, const tess_model_tensor **scale,
                              tess_scale_meaning *meaning)
{
    static const struct {
        const char *suffix;
        tess_scale_meaning meaning;
    } rows[] = {{".weight_scale", TESS_SCALE_DEQUANT},
                {".scale_weight", TESS_SCALE_DEQUANT},
                {TESS_MODEL_QUANT_SCALE_SUFFIX, TESS_SCALE_QUANT}};
    const tess_model_tensor *block = tess_packing_beside(w, ".weight_scale_inv");
    TESS_CHECK(block == NULL, TESS_E_UNSUPPORTED,
               "'%s/%s': tensor '%s' scales blocks of rows and columns; expected one scale per "
               "tensor or row, so convert the weight to one of these, or to bf16",
               w->p->dir->path, tess_packing_file(w), block->name);
    *scale = NULL;
    for (int i = 0; i < TESS_NELEM(rows); i++) {
        const tess_model_tensor *t = tess_packing_beside(w, rows[i].suffix);
        TESS_CHECK(t == NULL || *scale == NULL, TESS_E_FORMAT,
                   "'%s/%s': tensor '%s' has two scales, '%s' and '%s'; keep the right one",
                   w->p->dir->path, tess_packing_file(w), w->name, (*scale)->name, t->name);
        if (t == NULL)
            continue;
        *scale = t;
        *meaning = rows[i].meaning;
    }
    return TESS_OK;
}

/* X.weight_scale of a file that says so may be the other one. */
static tess_status stated_meaning(const tess_packing_weight *w, const tess_model_tensor *scale,
                                  tess_codec *codec)
{
    const char *text = NULL;
    tess_codec stated;
    TESS_TRY(tess_packing_stated(w, &text));
    if (text == NULL || strstr(scale->name, TESS_MODEL_QUANT_SCALE_SUFFIX) != NULL)
        return TESS_OK;
    TESS_TRY(tess_codec_parse(text, w->codes->st->dim[1], &stated));
    codec->meaning = stated.meaning;
    return TESS_OK;
}

static tess_status join_scaled(tess_packing_weight *w, const tess_model_tensor *scale)
{
    const tess_st_tensor *st = w->codes->st, *s = scale->st;
    tess_codec *codec = &w->to->codec;
    char found[256], shape[256];
    tess_st_shape_text(s->dim, s->dim_numel, found, sizeof found);
    tess_st_shape_text(st->dim, st->dim_numel, shape, sizeof shape);
    const bool is_tensor = s->numel == 1;
    const bool is_row = st->dim_numel == 2 && s->numel == st->dim[0] && s->dim_numel >= 1 &&
                        s->dim[0] == st->dim[0] && (s->dim_numel == 1 || s->dim_numel == 2);
    TESS_CHECK(st->dim_numel == 2 && st->numel > 0 && (is_tensor || is_row), TESS_E_UNSUPPORTED,
               "'%s/%s': tensor '%s' %s has the scale '%s' %s; expected one number, or one per row",
               w->p->dir->path, tess_packing_file(w), w->name, shape, scale->name, found);
    codec->scaling = is_tensor ? TESS_SCALING_TENSOR : TESS_SCALING_ROW;
    codec->block_numel = is_tensor ? 0 : st->dim[1];
    TESS_TRY(tess_packing_scale_dtype(w, scale, &codec->scale_dt));
    TESS_TRY(stated_meaning(w, scale, codec));
    TESS_TRY(tess_packing_no_activations(w, ".input_scale"));
    TESS_TRY(tess_packing_no_activations(w, ".scale_input"));
    tess_packing_put(w->to, scale,
                     codec->meaning == TESS_SCALE_QUANT ? TESS_PACKED_POSITIVES
                                                        : TESS_PACKED_SCALES);
    tess_packing_take(w, scale);
    return TESS_OK;
}

tess_status tess_packed_fp8(tess_packing_weight *w)
{
    const tess_st_tensor *st = w->codes->st;
    const tess_model_tensor *scale = NULL;
    tess_codec *codec = &w->to->codec;
    if (strcmp(w->name, "scaled_fp8") == 0) { /* ComfyUI's mark of a file with scales */
        tess_packing_take(w, w->codes);
        return TESS_OK;
    }
    codec->format = st->dtype == TESS_ST_F8_E4M3 ? TESS_FORMAT_E4M3 : TESS_FORMAT_E5M2;
    TESS_TRY(find_scale(w, &scale, &codec->meaning));
    w->to->whole = *st;
    tess_packing_put(w->to, w->codes, TESS_PACKED_CODES);
    return scale != NULL ? join_scaled(w, scale) : TESS_OK;
}
