#include "train/describe/base_formats_priv.h"

#include <inttypes.h>
#include <string.h>

/* Half precision of safetensors widens exactly to f32 (bf16 would lose fraction bits), and so do
 * vectors, which kernels read as plain arrays. */
tess_codec tess_describe_kept(tess_codec stored, bool is_coded_file, bool is_matrix)
{
    if (tess_format_is_quantized(stored.format) && !(is_coded_file && is_matrix))
        return (tess_codec){.format = TESS_FORMAT_F32};
    return stored;
}

tess_codec tess_base_kept(const tess_model_tensor *t, tess_codec stored)
{
    return tess_describe_kept(stored, t->gguf != NULL || t->packed != NULL, t->st->dim_numel > 1);
}

tess_codec tess_base_hinted(const tess_description *d)
{
    const bool is_f32 =
        strcmp(d->dtype_hint, "float32") == 0 || strcmp(d->dtype_hint, "float16") == 0;
    return (tess_codec){.format = is_f32 ? TESS_FORMAT_F32 : TESS_FORMAT_BF16};
}

/* What the kept config.json says of a tensor of a file that may be gone. */
static tess_status kept_format(const tess_description *d, const tess_param *p, bool *is_known,
                               tess_codec *out)
{
    const tess_json *formats = NULL;
    const char *text = NULL;
    *is_known = false;
    TESS_TRY(tess_json_opt_object(d->config_root, TESS_BASE_FORMATS_KEY, &formats));
    if (formats == NULL || tess_json_find(formats, p->name) == NULL)
        return TESS_OK;
    TESS_TRY(tess_json_get_string(formats, p->name, &text));
    TESS_TRY(tess_codec_parse(text, p->shape[p->shape_rank - 1], out));
    *is_known = true;
    return TESS_OK;
}

tess_status tess_base_source_of(void *arg, const tess_param *p, tess_codec *out)
{
    const tess_base_choices *c = arg;
    const tess_model_tensor *t = c->d->dir != NULL ? tess_model_dir_find(c->d->dir, p->name) : NULL;
    bool is_known = false;
    if (t != NULL) {
        TESS_TRY(tess_model_tensor_codec(t, out));
        *out = tess_base_kept(t, *out);
        return TESS_OK;
    }
    TESS_TRY(kept_format(c->d, p, &is_known, out));
    if (is_known)
        return TESS_OK;
    *out = tess_base_hinted(c->d);
    return TESS_OK;
}

/* The dtype that a scale of quanto takes from the weight. Half precision that is widened when it is
 * kept (tess_base_kept) is known by config.json alone once the files are gone. */
static tess_status scale_dtype(const tess_description *d, const tess_param *p, tess_codec source,
                               tess_dtype *dt)
{
    const char *hint = d->dtype_hint;
    const tess_model_tensor *t = d->dir != NULL ? tess_model_dir_find(d->dir, p->name) : NULL;
    const bool is_half = strcmp(hint, "float16") == 0;
    *dt = source.format == TESS_FORMAT_BF16                             ? TESS_BF16
          : source.format == TESS_FORMAT_F16 || (t == NULL && is_half)  ? TESS_F16
          : t != NULL && t->gguf == NULL && t->st->dtype == TESS_ST_F16 ? TESS_F16
                                                                        : TESS_F32;
    TESS_CHECK(source.format != TESS_FORMAT_F32 || t == NULL || t->gguf != NULL ||
                   (t->st->dtype == TESS_ST_F16) == is_half,
               TESS_E_CONFIG,
               "base.format: tensor '%s' is %s in the file, but torch_dtype of config.json is "
               "'%s'; correct it there, so that a resume finds the same scales",
               p->name, tess_st_dtype_name(t->st->dtype), hint);
    return TESS_OK;
}

static tess_status grouped_codec(const tess_base_choices *c, const tess_param *p,
                                 tess_format format, tess_codec source, tess_codec *out)
{
    const tess_run *run = c->d->run;
    const int64_t col_numel = p->shape[p->shape_rank - 1];
    *out = (tess_codec){.format = format,
                        .block_numel = run->base.group_size == TESS_RUN_AUTO
                                           ? tess_codec_group_numel(col_numel)
                                           : run->base.group_size,
                        .rule = run->base.rule};
    TESS_CHECK(col_numel % out->block_numel == 0, TESS_E_CONFIG,
               "base.group_size: tensor '%s' has rows of %" PRId64 " elements, which %" PRId64
               " does not divide; choose a divisor, auto, or another format for it in "
               "base.overrides",
               p->name, col_numel, out->block_numel);
    return scale_dtype(c->d, p, source, &out->scale_dt);
}

static tess_codec fp8_codec(const tess_run *run, const tess_param *p, tess_format format)
{
    tess_codec codec = {.format = format, .scaling = run->base.scaling};
    if (codec.scaling == TESS_SCALING_RAW)
        return codec;
    codec.scale_dt = TESS_F32;
    codec.meaning = run->base.scale_meaning;
    if (codec.scaling == TESS_SCALING_ROW)
        codec.block_numel = p->shape[p->shape_rank - 1];
    return codec;
}

static tess_status codec_of_choice(const tess_base_choices *c, const tess_param *p,
                                   tess_run_base_format choice, tess_codec source, tess_codec *out)
{
    static const tess_format format_of[] = {
        [TESS_RUN_BASE_F32] = TESS_FORMAT_F32,
        [TESS_RUN_BASE_BF16] = TESS_FORMAT_BF16,
        [TESS_RUN_BASE_NF4] = TESS_FORMAT_NF4,
        [TESS_RUN_BASE_FP4] = TESS_FORMAT_FP4,
        [TESS_RUN_BASE_F16] = TESS_FORMAT_F16,
        [TESS_RUN_BASE_Q8_0] = TESS_FORMAT_Q8_0,
        [TESS_RUN_BASE_Q4_0] = TESS_FORMAT_Q4_0,
        [TESS_RUN_BASE_INT8] = TESS_FORMAT_INT8,
        [TESS_RUN_BASE_QINT8] = TESS_FORMAT_QINT8,
        [TESS_RUN_BASE_QINT4] = TESS_FORMAT_QINT4,
        [TESS_RUN_BASE_INT4] = TESS_FORMAT_QINT4,
        [TESS_RUN_BASE_QINT2] = TESS_FORMAT_QINT2,
        [TESS_RUN_BASE_INT2] = TESS_FORMAT_QINT2,
        [TESS_RUN_BASE_QFLOAT8] = TESS_FORMAT_QFLOAT8,
        [TESS_RUN_BASE_QFLOAT8_E5M2] = TESS_FORMAT_QFLOAT8_E5M2,
        [TESS_RUN_BASE_E4M3] = TESS_FORMAT_E4M3,
        [TESS_RUN_BASE_E5M2] = TESS_FORMAT_E5M2,
    };
    const tess_run *run = c->d->run;
    *out = source;
    if (choice == TESS_RUN_BASE_KEEP)
        return TESS_OK;
    TESS_CHECK((unsigned)choice < TESS_NELEM(format_of), TESS_E_STATE,
               "base.format: choice %d is not in the schema", (int)choice);
    *out = tess_codec_of_format(format_of[choice]);
    switch (choice) {
    case TESS_RUN_BASE_NF4:
    case TESS_RUN_BASE_FP4:
        out->block_numel = run->base.block_size;
        out->double_quant = run->base.double_quant;
        return TESS_OK;
    case TESS_RUN_BASE_QINT8:
    case TESS_RUN_BASE_QFLOAT8:
    case TESS_RUN_BASE_QFLOAT8_E5M2:
        out->block_numel = p->shape[p->shape_rank - 1];
        return scale_dtype(c->d, p, source, &out->scale_dt);
    case TESS_RUN_BASE_INT8:
        out->block_numel = p->shape[p->shape_rank - 1];
        return TESS_OK;
    case TESS_RUN_BASE_QINT4:
    case TESS_RUN_BASE_INT4:
    case TESS_RUN_BASE_QINT2:
    case TESS_RUN_BASE_INT2:
        return grouped_codec(c, p, out->format, source, out);
    case TESS_RUN_BASE_E4M3:
    case TESS_RUN_BASE_E5M2:
        *out = fp8_codec(run, p, out->format);
        return TESS_OK;
    case TESS_RUN_BASE_KEEP:
    case TESS_RUN_BASE_F32:
    case TESS_RUN_BASE_BF16:
    case TESS_RUN_BASE_F16:
    case TESS_RUN_BASE_Q8_0:
    case TESS_RUN_BASE_Q4_0:
        break;
    }
    return TESS_OK;
}

tess_status tess_describe_codec(tess_description *d, const tess_param *p,
                                tess_run_base_format choice, tess_codec source, tess_codec *out)
{
    const tess_base_choices c = {.d = d};
    return codec_of_choice(&c, p, choice, source, out);
}

bool tess_describe_is_ragged(const tess_param *p, const tess_codec *codec)
{
    const int64_t block_numel = tess_format_block(codec->format).numel;
    return block_numel > 0 && p->shape[p->shape_rank - 1] % block_numel != 0;
}

/* A choice never quantizes again what the files hold in few bits. */
static tess_status check_again(const tess_param *p, const tess_codec *source, const tess_codec *out)
{
    char found[TESS_CODEC_TEXT_NBYTES], asked[TESS_CODEC_TEXT_NBYTES];
    tess_codec_describe(source, found);
    tess_codec_describe(out, asked);
    TESS_CHECK(tess_codec_is_equal(out, source) || source->format == TESS_FORMAT_F16 ||
                   !tess_format_is_quantized(source->format) ||
                   !tess_format_is_quantized(out->format),
               TESS_E_CONFIG,
               "base.format: tensor '%s' is %s in the file and would be quantized again to %s; set "
               "base.format to keep (or bf16, f32), or add a rule to base.overrides",
               p->name, found, asked);
    return TESS_OK;
}

tess_status tess_base_codec_of(void *arg, const tess_param *p, bool is_linear, tess_codec source,
                               tess_codec *out)
{
    const tess_base_choices *c = arg;
    const tess_run *run = c->d->run;
    const bool is_head = strcmp(p->name, "lm_head.weight") == 0;
    tess_run_base_format choice = is_linear && !is_head ? run->base.format : TESS_RUN_BASE_KEEP;
    bool is_rule = false;
    for (int64_t i = 0; i < run->base.overrides.item_numel; i++) {
        bool is_match = false;
        TESS_TRY(tess_regex_matches(c->override[i], p->name, &is_match));
        if (is_match) {
            choice = run->base.overrides.item[i].format;
            is_rule = true;
            break;
        }
    }
    TESS_TRY(codec_of_choice(c, p, choice, source, out));
    if (c->d->keeps_ragged && !is_rule && tess_describe_is_ragged(p, out))
        *out = source;
    if (!c->d->requantizes)
        TESS_TRY(check_again(p, &source, out));
    if (!tess_codec_is_equal(out, &source))
        c->d->is_base_as_source = false;
    return TESS_OK;
}
