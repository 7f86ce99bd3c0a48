/*
 * Weights as bitsandbytes packs them in safetensors: which tensors stand for one, and what
 * config.json says of them. The reader is packed.c.
 *
 * [Note: fixed texts] Headers are written before the data, so a quant_state must have its length
 * before its nested_offset is known: the offset is a mean of magnitudes, never negative, and %.17e
 * gives every f32 of that kind 23 characters that read back exactly.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "format/model_write_priv.h"
#include "format/safetensors_priv.h"

static const char *torch_name(tess_dtype dt)
{
    return dt == TESS_F32    ? "float32"
           : dt == TESS_F16  ? "float16"
           : dt == TESS_BF16 ? "bfloat16"
                             : "uint8";
}

static bool is_4bit(const tess_codec *codec)
{
    return codec->format == TESS_FORMAT_NF4 || codec->format == TESS_FORMAT_FP4;
}

bool tess_packed_is_packed(const tess_codec *codec)
{
    return is_4bit(codec) || codec->format == TESS_FORMAT_INT8;
}

void tess_packed_state_text(const tess_model_write_tensor *t, float nested_offset,
                            char text[TESS_PACKED_TEXT_NBYTES])
{
    const int n = snprintf(text, TESS_PACKED_TEXT_NBYTES,
                           "{\"quant_type\": \"%s\", \"blocksize\": %" PRId64
                           ", \"dtype\": \"%s\", \"shape\": [%" PRId64 ", %" PRId64 "]",
                           tess_format_name(t->codec.format), t->codec.block_numel,
                           torch_name(t->origin), t->dim[0], t->dim[1]);
    if (t->codec.double_quant)
        snprintf(text + n, TESS_PACKED_TEXT_NBYTES - (size_t)n,
                 ", \"nested_blocksize\": %d, \"nested_dtype\": \"float32\", "
                 "\"nested_offset\": %.17e}",
                 TESS_NESTED_BLOCK_NUMEL, (double)nested_offset);
    else
        snprintf(text + n, TESS_PACKED_TEXT_NBYTES - (size_t)n, "}");
}

tess_packed_item *tess_packed_add(tess_packed_list *l, int cut, const char *suffix,
                                  tess_st_dtype dtype, int64_t numel)
{
    tess_packed_item *it = &l->item[l->numel++];
    *it = (tess_packed_item){.source = TESS_PACKED_PART,
                             .st = {.dtype = dtype, .dim_numel = 1, .dim = {numel}}};
    snprintf(it->name, sizeof it->name, "%.*s%s", (int)strlen(l->tensor->name) - cut,
             l->tensor->name, suffix);
    return it;
}

static void add_table(tess_packed_list *l, const char *suffix, const float *table, int64_t numel)
{
    tess_packed_item *it = tess_packed_add(l, 0, suffix, TESS_ST_F32, numel);
    it->source = TESS_PACKED_TABLE;
    it->table = table;
}

static tess_status list_bnb4(const tess_model_write_request *q, tess_packed_list *l)
{
    const tess_model_write_tensor *t = l->tensor;
    const int64_t numel = t->dim[0] * t->dim[1];
    const int64_t label_nbytes = (int64_t)tess_dtype_block_nbytes(q->storage);
    const int64_t nbytes = tess_ceil_div(numel, 2);
    const int64_t block_numel = tess_ceil_div(numel, t->codec.block_numel);
    char suffix[64], text[TESS_PACKED_TEXT_NBYTES];
    tess_st_dtype label = TESS_ST_U8;
    TESS_TRY(tess_st_dtype_from_core(q->storage, &label));
    TESS_CHECK(nbytes % label_nbytes == 0, TESS_E_UNSUPPORTED,
               "tensor '%s': %" PRId64 " bytes of codes are no whole number of %s elements; use "
               "quant_storage uint8",
               t->name, nbytes, torch_name(q->storage));
    tess_packed_item *codes = tess_packed_add(l, 0, "", label, nbytes / label_nbytes);
    codes->st.dim_numel = 2;
    codes->st.dim[1] = 1;
    const bool is_double = t->codec.double_quant;
    tess_packed_add(l, 0, ".absmax", is_double ? TESS_ST_U8 : TESS_ST_F32, block_numel)->part_idx =
        1;
    add_table(l, ".quant_map", t->codec.format == TESS_FORMAT_NF4 ? q->tables.nf4 : q->tables.fp4,
              16);
    if (is_double) {
        tess_packed_add(l, 0, ".nested_absmax", TESS_ST_F32,
                        tess_ceil_div(block_numel, TESS_NESTED_BLOCK_NUMEL))
            ->part_idx = 2;
        add_table(l, ".nested_quant_map", q->tables.dynamic, 256);
    }
    snprintf(suffix, sizeof suffix, ".quant_state.bitsandbytes__%s",
             tess_format_name(t->codec.format));
    tess_packed_state_text(t, 0.0F, text);
    tess_packed_add(l, 0, suffix, TESS_ST_U8, (int64_t)strlen(text))->source = TESS_PACKED_STATE;
    return TESS_OK;
}

static void list_int8(tess_packed_list *l)
{
    static const int weight_nbytes = sizeof ".weight" - 1;
    const tess_model_write_tensor *t = l->tensor;
    tess_packed_item *codes = tess_packed_add(l, 0, "", TESS_ST_I8, t->dim[0]);
    codes->st.dim_numel = 2;
    codes->st.dim[1] = t->dim[1];
    tess_packed_add(l, weight_nbytes, ".SCB", TESS_ST_F32, t->dim[0])->part_idx = 1;
    tess_packed_item *layout = tess_packed_add(l, weight_nbytes, ".weight_format", TESS_ST_U8, 0);
    layout->st.dim_numel = 0;
    layout->source = TESS_PACKED_CONSTANT; /* 0: rows */
}

static tess_status list_plain(tess_packed_list *l)
{
    const tess_model_write_tensor *t = l->tensor;
    const tess_format format = t->codec.format;
    char text[TESS_CODEC_TEXT_NBYTES];
    tess_codec_describe(&t->codec, text);
    TESS_CHECK(format == TESS_FORMAT_F32 || format == TESS_FORMAT_BF16 || format == TESS_FORMAT_F16,
               TESS_E_UNSUPPORTED,
               "tensor '%s': %s has no place in safetensors; give a file name that ends in .gguf",
               t->name, text);
    tess_packed_item *it = tess_packed_add(l, 0, "",
                                           format == TESS_FORMAT_F32    ? TESS_ST_F32
                                           : format == TESS_FORMAT_BF16 ? TESS_ST_BF16
                                                                        : TESS_ST_F16,
                                           t->dim[0]);
    it->st.dim_numel = t->dim_numel;
    it->st.dim[1] = t->dim[1];
    return TESS_OK;
}

tess_status tess_packed_items(const tess_model_write_request *request,
                              const tess_model_write_tensor *tensor,
                              tess_packed_item item[TESS_PACKED_ITEM_MAX], int *item_numel)
{
    const size_t nbytes = strlen(tensor->name);
    tess_packed_list l = {.tensor = tensor, .item = item};
    TESS_CHECK(nbytes + 64 <= TESS_ST_NAME_MAX_NBYTES, TESS_E_RANGE,
               "tensor name of %zu bytes: expected at most %d", nbytes,
               TESS_ST_NAME_MAX_NBYTES - 64);
    const bool is_quanto = tess_packed_is_quanto_codec(&tensor->codec);
    const bool is_fp8 = tess_packed_is_fp8_codec(&tensor->codec);
    TESS_CHECK(!(tess_packed_is_packed(&tensor->codec) || is_quanto || is_fp8) ||
                   (tensor->dim_numel == 2 && nbytes > 7 &&
                    strcmp(tensor->name + nbytes - 7, ".weight") == 0),
               TESS_E_UNSUPPORTED, "tensor '%s': expected a matrix named X.weight for %s",
               tensor->name, tess_format_name(tensor->codec.format));
    if (is_4bit(&tensor->codec))
        TESS_TRY(list_bnb4(request, &l));
    else if (tensor->codec.format == TESS_FORMAT_INT8)
        list_int8(&l);
    else if (is_quanto)
        TESS_TRY(tess_packed_add_quanto(&l));
    else if (is_fp8)
        TESS_TRY(tess_packed_add_fp8(&l));
    else
        TESS_TRY(list_plain(&l));
    for (int i = 0; i < l.numel; i++)
        TESS_TRY(tess_st_sizes(item[i].name, TESS_E_RANGE, &item[i].st));
    *item_numel = l.numel;
    return TESS_OK;
}

/* ---- config.json ---- */

/* Linear layers that are plain: transformers would make packed ones of them. */
static tess_status add_skipped(const tess_model_write_request *q, tess_json *to)
{
    tess_json *list = NULL;
    char path[TESS_ST_NAME_MAX_NBYTES + 1];
    TESS_TRY(tess_json_add_array(to, "llm_int8_skip_modules", &list));
    TESS_TRY(tess_json_add_string(list, NULL, "lm_head"));
    for (int64_t i = 0; i < q->tensor_numel; i++) {
        const tess_model_write_tensor *t = &q->tensor[i];
        if (!t->is_linear || tess_packed_is_packed(&t->codec) ||
            strcmp(t->name, "lm_head.weight") == 0)
            continue;
        snprintf(path, sizeof path, "%.*s", (int)strlen(t->name) - 7, t->name);
        TESS_TRY(tess_json_add_string(list, NULL, path));
    }
    return TESS_OK;
}

static tess_status fill_config(const tess_model_write_request *q,
                               const tess_model_write_tensor *first, tess_json *to)
{
    const bool is_4 = is_4bit(&first->codec);
    TESS_TRY(tess_json_add_string(to, "quant_method", "bitsandbytes"));
    TESS_TRY(tess_json_add_bool(to, "load_in_4bit", is_4));
    TESS_TRY(tess_json_add_bool(to, "load_in_8bit", !is_4));
    TESS_TRY(tess_json_add_f64(to, "llm_int8_threshold", 6.0));
    if (is_4) {
        TESS_TRY(
            tess_json_add_string(to, "bnb_4bit_quant_type", tess_format_name(first->codec.format)));
        TESS_TRY(tess_json_add_bool(to, "bnb_4bit_use_double_quant", first->codec.double_quant));
        TESS_TRY(tess_json_add_string(to, "bnb_4bit_compute_dtype", torch_name(first->origin)));
        TESS_TRY(tess_json_add_string(to, "bnb_4bit_quant_storage", torch_name(q->storage)));
    }
    return add_skipped(q, to);
}

tess_status tess_packed_config(const tess_model_write_request *request, tess_json *config)
{
    const tess_model_write_tensor *first = NULL;
    tess_json *to = NULL;
    for (int64_t i = 0; i < request->tensor_numel; i++) {
        const tess_model_write_tensor *t = &request->tensor[i];
        if (!tess_packed_is_packed(&t->codec))
            continue;
        first = first == NULL ? t : first;
        TESS_CHECK(is_4bit(&t->codec) == is_4bit(&first->codec), TESS_E_UNSUPPORTED,
                   "tensor '%s' would be %s and '%s' %s: bitsandbytes loads a model in 4 or in 8 "
                   "bits; change the overrides",
                   t->name, tess_format_name(t->codec.format), first->name,
                   tess_format_name(first->codec.format));
    }
    if (first == NULL)
        return TESS_OK;
    TESS_TRY(tess_json_add_object(config, "quantization_config", &to));
    return fill_config(request, first, to);
}
