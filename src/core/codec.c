#include "core/codec.h"

#include <stdio.h>
#include <string.h>

#include "core/arith.h"

static const struct {
    const char *name;
    bool is_quantized;
} table[TESS_FORMAT_NUMEL] = {
#define X(name, text, quantized) [TESS_FORMAT_##name] = {text, quantized},
    TESS_FORMAT_LIST(X)
#undef X
};

const char *tess_format_name(tess_format format)
{
    return (unsigned)format < TESS_FORMAT_NUMEL ? table[format].name : "unknown";
}

bool tess_format_is_quantized(tess_format format)
{
    return (unsigned)format < TESS_FORMAT_NUMEL && table[format].is_quantized;
}

tess_status tess_format_parse(const char *name, tess_format *out)
{
    for (int i = 0; i < TESS_FORMAT_NUMEL; i++) {
        if (strcmp(table[i].name, name) == 0) {
            *out = (tess_format)i;
            return TESS_OK;
        }
    }
    return TESS_FAIL(TESS_E_UNSUPPORTED, "unknown base format '%s' (known: f32, bf16, nf4)", name);
}

static tess_status add_part(tess_codec_part *parts, int *part_numel, const char *name,
                            tess_dtype dt, int64_t numel)
{
    tess_codec_part *p = &parts[(*part_numel)++];
    p->name = name;
    p->dt = dt;
    p->numel = numel;
    return tess_nbytes(dt, numel, &p->nbytes);
}

static tess_status nf4_parts(const tess_codec *codec, int64_t numel, tess_codec_part *parts,
                             int *part_numel)
{
    const int bs = codec->block_numel;
    TESS_CHECK(bs >= 32 && bs <= 4096 && (bs & (bs - 1)) == 0, TESS_E_UNSUPPORTED,
               "nf4 block size %d: expected a power of two from 32 to 4096", bs);
    const int64_t block_numel = tess_ceil_div(numel, bs);
    TESS_TRY(add_part(parts, part_numel, "codes", TESS_U8, tess_ceil_div(numel, 2)));
    if (!codec->double_quant)
        return add_part(parts, part_numel, "absmax", TESS_F32, block_numel);
    TESS_TRY(add_part(parts, part_numel, "absmax", TESS_U8, block_numel));
    TESS_TRY(add_part(parts, part_numel, "nested_absmax", TESS_F32,
                      tess_ceil_div(block_numel, TESS_NESTED_BLOCK_NUMEL)));
    return add_part(parts, part_numel, "nested_offset", TESS_F32, 1);
}

tess_status tess_codec_parts(const tess_codec *codec, int64_t numel,
                             tess_codec_part parts[TESS_CODEC_PART_MAX], int *part_numel)
{
    TESS_CHECK(numel >= 0, TESS_E_RANGE, "negative element count");
    *part_numel = 0;
    switch (codec->format) {
    case TESS_FORMAT_F32:
        return add_part(parts, part_numel, "values", TESS_F32, numel);
    case TESS_FORMAT_BF16:
        return add_part(parts, part_numel, "values", TESS_BF16, numel);
    case TESS_FORMAT_NF4:
        return nf4_parts(codec, numel, parts, part_numel);
    case TESS_FORMAT_NUMEL:
        break;
    }
    return TESS_FAIL(TESS_E_ARG, "base format number %d is not in the table", (int)codec->format);
}

void tess_codec_describe(const tess_codec *codec, char text[32])
{
    if (tess_format_is_quantized(codec->format))
        snprintf(text, 32, "%s/%d%s", tess_format_name(codec->format), codec->block_numel,
                 codec->double_quant ? "/double" : "");
    else
        snprintf(text, 32, "%s", tess_format_name(codec->format));
}
