#include "core/codec.h"

#include <inttypes.h>
#include <string.h>

#include "core/arith.h"

/** How the tensors of a family of formats are laid out. */
typedef struct codec_family {
    bool is_quantized;
    tess_status (*parts)(const tess_codec *codec, int64_t numel, tess_codec_part *parts,
                         int *part_numel);
} codec_family;

static tess_status add_part(tess_codec_part *parts, int *part_numel, const char *name,
                            tess_dtype dt, int64_t numel)
{
    tess_codec_part *p = &parts[(*part_numel)++];
    p->name = name;
    p->dt = dt;
    p->numel = numel;
    return tess_nbytes(dt, numel, &p->nbytes);
}

static tess_status bnb4_parts(const tess_codec *codec, int64_t numel, tess_codec_part *parts,
                              int *part_numel)
{
    const int64_t bs = codec->block_numel;
    TESS_CHECK(bs >= 32 && bs <= 4096 && (bs & (bs - 1)) == 0, TESS_E_UNSUPPORTED,
               "%s block size %" PRId64 ": expected a power of two from 32 to 4096",
               tess_format_name(codec->format), bs);
    const int64_t block_numel = tess_ceil_div(numel, bs);
    TESS_TRY(add_part(parts, part_numel, "codes", TESS_U8, tess_ceil_div(numel, 2)));
    if (!codec->double_quant)
        return add_part(parts, part_numel, "absmax", TESS_F32, block_numel);
    TESS_TRY(add_part(parts, part_numel, "absmax", TESS_U8, block_numel));
    TESS_TRY(add_part(parts, part_numel, "nested_absmax", TESS_F32,
                      tess_ceil_div(block_numel, TESS_NESTED_BLOCK_NUMEL)));
    return add_part(parts, part_numel, "nested_offset", TESS_F32, 1);
}

static tess_status plain_f32_parts(const tess_codec *codec, int64_t numel, tess_codec_part *parts,
                                   int *part_numel)
{
    (void)codec;
    return add_part(parts, part_numel, "values", TESS_F32, numel);
}

static tess_status plain_bf16_parts(const tess_codec *codec, int64_t numel, tess_codec_part *parts,
                                    int *part_numel)
{
    (void)codec;
    return add_part(parts, part_numel, "values", TESS_BF16, numel);
}

static tess_status half_parts(const tess_codec *codec, int64_t numel, tess_codec_part *parts,
                              int *part_numel)
{
    (void)codec;
    return add_part(parts, part_numel, "values", TESS_F16, numel);
}

static tess_status gguf_parts(const tess_codec *codec, int64_t numel, tess_codec_part *parts,
                              int *part_numel)
{
    const tess_block_size block = tess_format_block(codec->format);
    int64_t nbytes = 0;
    TESS_CHECK(codec->block_numel == block.numel, TESS_E_UNSUPPORTED,
               "%s block size %" PRId64 ": expected %" PRId64, tess_format_name(codec->format),
               codec->block_numel, block.numel);
    TESS_TRY(tess_codec_check_rows(codec, numel));
    TESS_TRY(tess_mul_i64(numel / block.numel, (int64_t)block.nbytes, &nbytes));
    return add_part(parts, part_numel, "blocks", TESS_U8, nbytes);
}

static tess_status int8_parts(const tess_codec *codec, int64_t numel, tess_codec_part *parts,
                              int *part_numel)
{
    TESS_CHECK(codec->block_numel > 0, TESS_E_UNSUPPORTED,
               "int8 block size %" PRId64 ": expected the row length", codec->block_numel);
    TESS_TRY(add_part(parts, part_numel, "codes", TESS_U8, numel));
    return add_part(parts, part_numel, "scb", TESS_F32, tess_ceil_div(numel, codec->block_numel));
}

/* A scale per block, with or without a shift. */
static tess_status scale_parts(const tess_codec *codec, int64_t scale_numel, bool has_shift,
                               tess_codec_part *parts, int *part_numel)
{
    const tess_dtype dt = codec->scale_dt;
    TESS_CHECK(dt == TESS_F32 || dt == TESS_BF16 || dt == TESS_F16, TESS_E_UNSUPPORTED,
               "%s with scales in %s: expected f32, bf16 or f16", tess_format_name(codec->format),
               tess_dtype_name(dt));
    TESS_TRY(add_part(parts, part_numel, "scale", dt, scale_numel));
    return has_shift ? add_part(parts, part_numel, "shift", dt, scale_numel) : TESS_OK;
}

static tess_status check_block(const tess_codec *codec, const char *expected)
{
    TESS_CHECK(codec->block_numel > 0, TESS_E_UNSUPPORTED, "%s block size %" PRId64 ": expected %s",
               tess_format_name(codec->format), codec->block_numel, expected);
    return TESS_OK;
}

static tess_status quanto8_parts(const tess_codec *codec, int64_t numel, tess_codec_part *parts,
                                 int *part_numel)
{
    TESS_TRY(check_block(codec, "the row length"));
    TESS_TRY(add_part(parts, part_numel, "codes", TESS_U8, numel));
    return scale_parts(codec, tess_ceil_div(numel, codec->block_numel), false, parts, part_numel);
}

static tess_status quanto_parts(const tess_codec *codec, int64_t numel, tess_codec_part *parts,
                                int *part_numel)
{
    TESS_TRY(check_block(codec, "a divisor of the row length"));
    TESS_TRY(tess_codec_check_rows(codec, numel));
    TESS_TRY(add_part(parts, part_numel, "codes", TESS_U8,
                      tess_codec_plane_rows(codec, numel) * codec->block_numel));
    return scale_parts(codec, numel / codec->block_numel, true, parts, part_numel);
}

static tess_status fp8_parts(const tess_codec *codec, int64_t numel, tess_codec_part *parts,
                             int *part_numel)
{
    TESS_TRY(add_part(parts, part_numel, "codes", TESS_U8, numel));
    switch (codec->scaling) {
    case TESS_SCALING_RAW:
        return TESS_OK;
    case TESS_SCALING_TENSOR:
        return scale_parts(codec, 1, false, parts, part_numel);
    case TESS_SCALING_ROW:
        TESS_TRY(check_block(codec, "the row length"));
        return scale_parts(codec, tess_ceil_div(numel, codec->block_numel), false, parts,
                           part_numel);
    }
    return TESS_FAIL(TESS_E_ARG, "scaling number %d is not in the table", (int)codec->scaling);
}

static const codec_family plain_f32 = {false, plain_f32_parts};
static const codec_family plain_bf16 = {false, plain_bf16_parts};
static const codec_family bnb4 = {true, bnb4_parts};
static const codec_family half = {true, half_parts};
static const codec_family gguf = {true, gguf_parts};
static const codec_family int8 = {true, int8_parts};
static const codec_family quanto8 = {true, quanto8_parts};
static const codec_family quanto = {true, quanto_parts};
static const codec_family fp8 = {true, fp8_parts};

static const struct {
    const char *name;
    const codec_family *family;
} table[TESS_FORMAT_NUMEL] = {
#define X(name, text, family) [TESS_FORMAT_##name] = {text, &family},
    TESS_FORMAT_LIST(X)
#undef X
};

const char *tess_format_name(tess_format format)
{
    return (unsigned)format < TESS_FORMAT_NUMEL ? table[format].name : "unknown";
}

const char *tess_format_names(void)
{
    return ""
#define X(name, text, family) text ", "
        TESS_FORMAT_LIST(X)
#undef X
            "keep";
}

bool tess_format_is_quantized(tess_format format)
{
    return (unsigned)format < TESS_FORMAT_NUMEL && table[format].family->is_quantized;
}

tess_block_size tess_format_block(tess_format format)
{
    static const tess_block_size block[TESS_FORMAT_NUMEL] = {
        [TESS_FORMAT_Q8_0] = {32, 34},   [TESS_FORMAT_Q4_0] = {32, 18},
        [TESS_FORMAT_Q4_1] = {32, 20},   [TESS_FORMAT_Q5_0] = {32, 22},
        [TESS_FORMAT_Q5_1] = {32, 24},   [TESS_FORMAT_Q2_K] = {256, 84},
        [TESS_FORMAT_Q3_K] = {256, 110}, [TESS_FORMAT_Q4_K] = {256, 144},
        [TESS_FORMAT_Q5_K] = {256, 176}, [TESS_FORMAT_Q6_K] = {256, 210},
    };
    return (unsigned)format < TESS_FORMAT_NUMEL ? block[format] : (tess_block_size){0, 0};
}

tess_codec tess_codec_of_format(tess_format format)
{
    return (tess_codec){.format = format, .block_numel = tess_format_block(format).numel};
}

int tess_format_code_bits(tess_format format)
{
    static const int bits[TESS_FORMAT_NUMEL] = {
        [TESS_FORMAT_NF4] = 4,   [TESS_FORMAT_FP4] = 4,          [TESS_FORMAT_INT8] = 8,
        [TESS_FORMAT_QINT8] = 8, [TESS_FORMAT_QFLOAT8] = 8,      [TESS_FORMAT_QINT4] = 4,
        [TESS_FORMAT_QINT2] = 2, [TESS_FORMAT_QFLOAT8_E5M2] = 8, [TESS_FORMAT_E4M3] = 8,
        [TESS_FORMAT_E5M2] = 8,
    };
    return (unsigned)format < TESS_FORMAT_NUMEL ? bits[format] : 0;
}

int64_t tess_codec_group_numel(int64_t col_numel)
{
    int64_t numel = 128;
    while (col_numel > 128 && col_numel % numel != 0 && numel > 32)
        numel -= 32;
    return col_numel % numel == 0 ? numel : col_numel;
}

int64_t tess_codec_plane_rows(const tess_codec *codec, int64_t numel)
{
    return tess_ceil_div(numel / codec->block_numel, 8 / tess_format_code_bits(codec->format));
}

static bool is_grouped(tess_format format)
{
    return format == TESS_FORMAT_QINT4 || format == TESS_FORMAT_QINT2;
}

tess_status tess_codec_check_rows(const tess_codec *codec, int64_t col_numel)
{
    const char *name = tess_format_name(codec->format);
    const int64_t block_numel =
        is_grouped(codec->format) ? codec->block_numel : tess_format_block(codec->format).numel;
    TESS_CHECK(block_numel == 0 || col_numel % block_numel == 0, TESS_E_UNSUPPORTED,
               "%s: a row of %" PRId64 " elements is not a whole number of blocks of %" PRId64,
               name, col_numel, block_numel);
    const bool is_by_row = tess_format_code_bits(codec->format) == 8 && codec->scale_dt != 0 &&
                           codec->block_numel != 0;
    TESS_CHECK(!is_by_row || codec->block_numel == col_numel, TESS_E_UNSUPPORTED,
               "%s: a row of %" PRId64 " elements has one scale, but blocks have %" PRId64, name,
               col_numel, codec->block_numel);
    return TESS_OK;
}

tess_status tess_format_parse(const char *name, tess_format *out)
{
    for (int i = 0; i < TESS_FORMAT_NUMEL; i++) {
        if (strcmp(table[i].name, name) == 0) {
            *out = (tess_format)i;
            return TESS_OK;
        }
    }
    return TESS_FAIL(TESS_E_UNSUPPORTED, "unknown base format '%s' (known: %s)", name,
                     tess_format_names());
}

tess_status tess_codec_parts(const tess_codec *codec, int64_t numel,
                             tess_codec_part parts[TESS_CODEC_PART_MAX], int *part_numel)
{
    TESS_CHECK(numel >= 0, TESS_E_RANGE, "negative element count");
    TESS_CHECK((unsigned)codec->format < TESS_FORMAT_NUMEL, TESS_E_ARG,
               "base format number %d is not in the table", (int)codec->format);
    *part_numel = 0;
    return table[codec->format].family->parts(codec, numel, parts, part_numel);
}

bool tess_codec_is_equal(const tess_codec *a, const tess_codec *b)
{
    return a->format == b->format && a->block_numel == b->block_numel &&
           a->double_quant == b->double_quant && a->scale_dt == b->scale_dt && a->rule == b->rule &&
           a->scaling == b->scaling && a->meaning == b->meaning;
}
