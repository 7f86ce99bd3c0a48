/* The identity of a codec: words that say everything its bytes depend on. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/arith.h"
#include "core/codec.h"

static const char *const rule_word[] = {
#define X(name, text) [TESS_SCALE_RULE_##name] = (text),
    TESS_SCALE_RULE_LIST(X)
#undef X
};
static const char *const scaling_word[] = {
#define X(name, text) [TESS_SCALING_##name] = (text),
    TESS_SCALING_LIST(X)
#undef X
};
static const char *const meaning_word[] = {
#define X(name, text) [TESS_SCALE_##name] = (text),
    TESS_SCALE_MEANING_LIST(X)
#undef X
};

static bool is_fp8(tess_format format)
{
    return format == TESS_FORMAT_E4M3 || format == TESS_FORMAT_E5M2;
}

static bool is_quanto8(tess_format format)
{
    return format == TESS_FORMAT_QINT8 || format == TESS_FORMAT_QFLOAT8 ||
           format == TESS_FORMAT_QFLOAT8_E5M2;
}

static bool is_quanto(tess_format format)
{
    return format == TESS_FORMAT_QINT4 || format == TESS_FORMAT_QINT2;
}

/* ---- describing ---- */

static void add(char text[TESS_CODEC_TEXT_NBYTES], const char *word)
{
    const size_t nbytes = strlen(text);
    snprintf(text + nbytes, TESS_CODEC_TEXT_NBYTES - nbytes, "/%s", word);
}

static void add_number(char text[TESS_CODEC_TEXT_NBYTES], int64_t number)
{
    char word[24];
    snprintf(word, sizeof word, "%" PRId64, number);
    add(text, word);
}

static void describe_fp8(const tess_codec *codec, char text[TESS_CODEC_TEXT_NBYTES])
{
    add(text, scaling_word[codec->scaling]);
    if (codec->scaling == TESS_SCALING_RAW)
        return;
    add(text, meaning_word[codec->meaning]);
    if (codec->scale_dt != TESS_F32)
        add(text, tess_dtype_name(codec->scale_dt));
}

void tess_codec_describe(const tess_codec *codec, char text[TESS_CODEC_TEXT_NBYTES])
{
    snprintf(text, TESS_CODEC_TEXT_NBYTES, "%s", tess_format_name(codec->format));
    if (is_fp8(codec->format)) {
        describe_fp8(codec, text);
    } else if (is_quanto8(codec->format)) {
        add(text, scaling_word[TESS_SCALING_ROW]);
        add(text, tess_dtype_name(codec->scale_dt));
    } else if (tess_format_code_bits(codec->format) > 0) {
        add_number(text, codec->block_numel);
        if (is_quanto(codec->format)) {
            add(text, tess_dtype_name(codec->scale_dt));
            if (codec->rule != TESS_SCALE_RULE_MINMAX)
                add(text, rule_word[codec->rule]);
        } else if (codec->double_quant && codec->format != TESS_FORMAT_INT8) {
            add(text, "double");
        }
    }
}

/* ---- parsing ---- */

static bool is_one_of(const char *word, const char *const *list, int numel, unsigned *at)
{
    for (int i = 0; i < numel; i++) {
        if (strcmp(list[i], word) == 0) {
            *at = (unsigned)i;
            return true;
        }
    }
    return false;
}

/* Every word says by itself what it means; that it stands where it may is seen by describing what
 * was understood. */
static void take(const char *word, int64_t col_numel, tess_codec *codec)
{
    static const char *const dtype_word[] = {"f32", "bf16", "f16"};
    static const tess_dtype dtype[] = {TESS_F32, TESS_BF16, TESS_F16};
    unsigned at = 0;
    if (is_one_of(word, rule_word, TESS_NELEM(rule_word), &at)) {
        codec->rule = (tess_scale_rule)at;
    } else if (is_one_of(word, meaning_word, TESS_NELEM(meaning_word), &at)) {
        codec->meaning = (tess_scale_meaning)at;
    } else if (is_one_of(word, dtype_word, TESS_NELEM(dtype_word), &at)) {
        codec->scale_dt = dtype[at];
    } else if (is_one_of(word, scaling_word, TESS_NELEM(scaling_word), &at)) {
        codec->scaling = is_fp8(codec->format) ? (tess_scaling)at : TESS_SCALING_RAW;
        codec->block_numel = at == TESS_SCALING_ROW ? col_numel : 0;
    } else if (strcmp(word, "double") == 0) {
        codec->double_quant = true;
    } else {
        codec->block_numel = strtoll(word, NULL, 10);
    }
}

tess_status tess_codec_parse(const char *text, int64_t col_numel, tess_codec *out)
{
    char word[TESS_CODEC_TEXT_NBYTES] = "", again[TESS_CODEC_TEXT_NBYTES];
    tess_codec codec = {0};
    TESS_CHECK(strlen(text) < sizeof word, TESS_E_UNSUPPORTED, "base format of %zu bytes",
               strlen(text));
    for (const char *at = text; at != NULL;) {
        const char *slash = strchr(at, '/');
        const size_t nbytes = slash != NULL ? (size_t)(slash - at) : strlen(at);
        memcpy(word, at, nbytes);
        word[nbytes] = '\0';
        if (at == text) {
            TESS_TRY(tess_format_parse(word, &codec.format));
            codec = tess_codec_of_format(codec.format);
        } else {
            take(word, col_numel, &codec);
        }
        at = slash != NULL ? slash + 1 : NULL;
    }
    if (is_fp8(codec.format) && codec.scaling != TESS_SCALING_RAW &&
        codec.scale_dt == TESS_U8_OPAQUE)
        codec.scale_dt = TESS_F32;
    tess_codec_describe(&codec, again);
    TESS_CHECK(strcmp(again, text) == 0, TESS_E_UNSUPPORTED,
               "base format '%.64s': expected a format as in '%s' or 'nf4/64/double'", text, again);
    *out = codec;
    return TESS_OK;
}
