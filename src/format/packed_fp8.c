/*
 * Weights in fp8: F8_E4M3 or F8_E5M2 tensors, with a scale beside them or none (a raw cast).
 *
 * X.weight_scale is what vLLM, compressed-tensors and ComfyUI write, X.scale_weight what ComfyUI
 * wrote before: both multiply codes. Block scales (X.weight_scale_inv of DeepSeek) are refused.
 * Scales of activations (X.input_scale, X.scale_input) say nothing about weights: they are dropped.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "format/packed_priv.h"
#include "format/text_priv.h"

/* ---- what ComfyUI says of its files ---- */

static const char layer_mark[] = ".comfy_quant", file_mark[] = "scaled_fp8";
static const char layers_key[] = "_quantization_metadata";
enum { MARK_MAX_NBYTES = 4096 };

static bool ends_in(const char *name, const char *tail)
{
    const size_t nbytes = strlen(name), tail_nbytes = strlen(tail);
    return nbytes >= tail_nbytes && strcmp(name + nbytes - tail_nbytes, tail) == 0;
}

/* A mark of the whole file, or of one model in it. */
static bool is_file_mark(const char *name)
{
    return strcmp(name, file_mark) == 0 || ends_in(name, ".scaled_fp8");
}

/* {"format": "float8_e4m3fn", ...} of one layer. */
static tess_status check_layer(const tess_json *layer)
{
    const char *format = NULL;
    char where[512], tame[64];
    TESS_TRY(tess_json_get_string(layer, "format", &format));
    tess_json_where(layer, where, sizeof where);
    TESS_CHECK(strcmp(format, "float8_e4m3fn") == 0 || strcmp(format, "float8_e5m2") == 0,
               TESS_E_UNSUPPORTED,
               "%s: ComfyUI's format '%s' is not read, expected 'float8_e4m3fn' or 'float8_e5m2'; "
               "give the model in one of these, in 16 bits, or as GGUF",
               where, tess_text_tame(format, tame, sizeof tame));
    return TESS_OK;
}

static tess_status read_layer_mark(const tess_packing *p, const tess_model_tensor *t)
{
    char text[MARK_MAX_NBYTES], source[1024];
    const weight_file *f = &p->dir->file[t->file_idx];
    tess_json *root = NULL;
    TESS_CHECK(t->st->dtype == TESS_ST_U8 && t->st->nbytes <= MARK_MAX_NBYTES, TESS_E_FORMAT,
               "'%s/%s': tensor '%s': expected at most %d bytes of JSON", p->dir->path, f->name,
               t->name, MARK_MAX_NBYTES);
    TESS_TRY(tess_safetensors_read(f->st, t->st, 0, (size_t)t->st->nbytes, text));
    snprintf(source, sizeof source, "%.400s/%.80s: tensor %.400s", p->dir->path, f->name, t->name);
    TESS_TRY(tess_json_parse(source, text, (size_t)t->st->nbytes, &root));
    const tess_status st = check_layer(root);
    tess_json_destroy(&root);
    return st;
}

static tess_status check_layers(const tess_json *root)
{
    const tess_json *layers = NULL;
    TESS_TRY(tess_json_get_object(root, "layers", &layers));
    for (int64_t i = 0; i < tess_json_numel(layers); i++)
        TESS_TRY(check_layer(tess_json_at(layers, i)));
    return TESS_OK;
}

static tess_status read_layers(const tess_packing *p, const weight_file *f)
{
    const char *text = tess_safetensors_metadata(f->st, layers_key);
    char source[1024];
    tess_json *root = NULL;
    if (text == NULL)
        return TESS_OK;
    snprintf(source, sizeof source, "%.400s/%.80s: %s", p->dir->path, f->name, layers_key);
    TESS_TRY(tess_json_parse(source, text, strlen(text), &root));
    const tess_status st = check_layers(root);
    tess_json_destroy(&root);
    return st;
}

tess_status tess_packed_fp8_marks(tess_packing *p)
{
    for (int i = 0; i < p->dir->file_numel; i++)
        TESS_TRY(read_layers(p, &p->dir->file[i]));
    for (int64_t i = 0; i < p->dir->tensor_numel; i++) {
        const tess_model_tensor *t = &p->dir->tensor[i];
        const bool is_layer_mark = ends_in(t->name, layer_mark);
        if (is_layer_mark)
            TESS_TRY(read_layer_mark(p, t));
        p->is_member[i] = is_layer_mark || is_file_mark(t->name);
    }
    return TESS_OK;
}

/* ---- one weight ---- */

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

static tess_status drop_activations(const tess_packing_weight *w, const char *suffix)
{
    const tess_model_tensor *t = tess_packing_beside(w, suffix);
    tess_dtype dt = TESS_F32;
    if (t == NULL)
        return TESS_OK;
    TESS_TRY(tess_packing_scale_dtype(w, t, &dt));
    TESS_CHECK(t->st->numel == 1, TESS_E_FORMAT,
               "'%s/%s': tensor '%s': expected one number, found %" PRId64, w->p->dir->path,
               tess_packing_file(w), t->name, t->st->numel);
    tess_packing_take(w, t);
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
    TESS_TRY(drop_activations(w, ".input_scale"));
    TESS_TRY(drop_activations(w, ".scale_input"));
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
    codec->format = st->dtype == TESS_ST_F8_E4M3 ? TESS_FORMAT_E4M3 : TESS_FORMAT_E5M2;
    TESS_TRY(find_scale(w, &scale, &codec->meaning));
    w->to->whole = *st;
    tess_packing_put(w->to, w->codes, TESS_PACKED_CODES);
    return scale != NULL ? join_scaled(w, scale) : TESS_OK;
}
