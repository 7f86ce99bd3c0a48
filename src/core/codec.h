/**
 * Base formats: how one frozen tensor is laid out as bytes.
 *
 * A tensor is a list of parts (codes first, then constants); each part starts at a multiple of 256
 * bytes in the unit's byte string. Pure arithmetic: sizes here, layouts of foreign files in
 * src/format, math in kernels/.
 *
 * [Note: a new format] One row of the list below, the layout of its family in codec.c, the words of
 * its identity in codec_text.c, its decoder and encoder in kernels/cpu/codec_<family>.c and its
 * decoder in kernels/cuda/codec_<family>.cu, its words in the run schema, and where files hold it a
 * reader in src/format. In every format constants belong to consecutive elements of the row-major
 * tensor: blocks of `block_numel`, which is the row length where a format has constants per row.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/dtype.h"

TESS_BEGIN_DECLS

/* X(NAME, "name in run files", family of layouts). A plain format is an array of its dtype. */
#define TESS_FORMAT_LIST(X)                                                                        \
    X(F32, "f32", plain_f32)                                                                       \
    X(BF16, "bf16", plain_bf16)                                                                    \
    X(NF4, "nf4", bnb4)                                                                            \
    X(FP4, "fp4", bnb4)                                                                            \
    X(F16, "f16", half)                                                                            \
    X(Q8_0, "q8_0", gguf)                                                                          \
    X(Q4_0, "q4_0", gguf)                                                                          \
    X(Q4_1, "q4_1", gguf)                                                                          \
    X(Q5_0, "q5_0", gguf)                                                                          \
    X(Q5_1, "q5_1", gguf)                                                                          \
    X(Q2_K, "q2_k", gguf)                                                                          \
    X(Q3_K, "q3_k", gguf)                                                                          \
    X(Q4_K, "q4_k", gguf)                                                                          \
    X(Q5_K, "q5_k", gguf)                                                                          \
    X(Q6_K, "q6_k", gguf)                                                                          \
    X(INT8, "int8", int8)                                                                          \
    X(QINT8, "qint8", quanto8)                                                                     \
    X(QFLOAT8, "qfloat8", quanto8)                                                                 \
    X(QFLOAT8_E5M2, "qfloat8_e5m2", quanto8)                                                       \
    X(QINT4, "qint4", quanto)                                                                      \
    X(QINT2, "qint2", quanto)                                                                      \
    X(E4M3, "e4m3", fp8)                                                                           \
    X(E5M2, "e5m2", fp8)

typedef enum tess_format {
#define X(name, text, family) TESS_FORMAT_##name,
    TESS_FORMAT_LIST(X)
#undef X
        TESS_FORMAT_NUMEL
} tess_format;

enum { TESS_CODEC_PART_MAX = 4, TESS_NESTED_BLOCK_NUMEL = 256, TESS_CODEC_TEXT_NBYTES = 48 };

/* X(NAME, "word in run files and identities") */
/* How scale and shift of a group are chosen. MINMAX is optimum-quanto's own rule, and stands for
 * files that name none: decoding does not depend on it. */
#define TESS_SCALE_RULE_LIST(X) X(MINMAX, "minmax") X(MSE, "mse") X(HQQ, "hqq")
/* What has a scale of its own in fp8 weights; RAW: a cast without any. */
#define TESS_SCALING_LIST(X) X(RAW, "raw") X(TENSOR, "tensor") X(ROW, "row")
/* What the scale of fp8 weights multiplies: codes, or the values before they became codes. */
#define TESS_SCALE_MEANING_LIST(X) X(DEQUANT, "dequant_scale") X(QUANT, "quant_scale")

typedef enum tess_scale_rule {
#define X(name, text) TESS_SCALE_RULE_##name,
    TESS_SCALE_RULE_LIST(X)
#undef X
} tess_scale_rule;
typedef enum tess_scaling {
#define X(name, text) TESS_SCALING_##name,
    TESS_SCALING_LIST(X)
#undef X
} tess_scaling;
typedef enum tess_scale_meaning {
#define X(name, text) TESS_SCALE_##name,
    TESS_SCALE_MEANING_LIST(X)
#undef X
} tess_scale_meaning;

/** How one tensor is stored: every choice that decides its bytes. Plain data, compared field by
 * field; what a format has no choice of is zero. */
typedef struct tess_codec {
    tess_format format;
    int64_t block_numel;  /* elements that share constants; 0: plain formats, or one block in all */
    bool double_quant;    /* nf4, fp4: absmax themselves in 8 bits */
    tess_dtype scale_dt;  /* quanto: of scale and shift, and of its arithmetic; scaled fp8: of the
                             scale. f32, bf16 or f16 */
    tess_scale_rule rule; /* qint4, qint2 */
    tess_scaling scaling; /* e4m3, e5m2 */
    tess_scale_meaning meaning; /* e4m3, e5m2 that are scaled */
} tess_codec;

/** One part of a stored tensor. */
typedef struct tess_codec_part {
    /* "codes", "absmax", "nested_absmax", "nested_offset", "values", "blocks", "scb", "scale",
     * "shift" */
    const char *name;
    tess_dtype dt; /* of its elements */
    int64_t numel;
    size_t nbytes;
} tess_codec_part;

const char *tess_format_name(tess_format format);
TESS_MUST_CHECK tess_status tess_format_parse(const char *name, tess_format *out);
/** Whether values are decoded before use: all formats that are no array of a compute dtype, f16
 * among them. Local. */
bool tess_format_is_quantized(tess_format format);
/** A block of a format whose blocks hold codes and constants together. */
typedef struct tess_block_size {
    int64_t numel;
    size_t nbytes;
} tess_block_size;
/** Block of a GGUF format, {0, 0} of any other. Rows of such a tensor are whole blocks. Local. */
tess_block_size tess_format_block(tess_format format);
/** The codec of a tensor in this format that has no choices: plain, f16 and GGUF formats. Local. */
tess_codec tess_codec_of_format(tess_format format);
/** Elements of a group of qint4 and qint2 where nobody chooses: 128, less where rows of `col_numel`
 * elements ask for it, else the whole row. Local.
 * @source optimum-quanto nn/qmodule.py QModuleMixin */
int64_t tess_codec_group_numel(int64_t col_numel);
/** Bits of a code of a format that keeps codes apart from constants; 0 for others. Local. */
int tess_format_code_bits(tess_format format);
/**
 * Rows of packed codes of a qint4 or qint2 tensor of `numel` elements. Local.
 *
 * The tensor is a matrix of groups [numel / block_numel, block_numel]. Its rows are packed in
 * planes: group r has its codes in packed row r mod P, above bit (r div P) * bits of every byte;
 * P = ceil(groups * bits / 8) is what this gives.
 * @source optimum-quanto tensor/packed.py pack_weights
 */
int64_t tess_codec_plane_rows(const tess_codec *codec, int64_t numel);
/**
 * Whether rows of `col_numel` elements can be stored so. Local.
 * @return TESS_E_UNSUPPORTED GGUF formats, qint4, qint2: rows that are no whole blocks; formats
 * with a scale per row: blocks of another length
 */
TESS_MUST_CHECK tess_status tess_codec_check_rows(const tess_codec *codec, int64_t col_numel);
/**
 * Parts of a tensor of `numel` elements, in canonical order. Local.
 * Plain: values [numel]. NF4, FP4: codes u8 [ceil(numel/2)]; absmax f32 [nb], or with double_quant
 * absmax u8 [nb], nested_absmax f32 [ceil(nb/256)], nested_offset f32 [1]; nb =
 * ceil(numel/block_numel). F16: values. GGUF: blocks u8, as they lie in the file. INT8: codes, int8
 * in u8 [numel]; scb f32 [nb]. QINT8, QFLOAT8: codes u8 [numel]; scale [nb]. QINT4, QINT2: codes u8
 * [P, block_numel] (tess_codec_plane_rows); scale [nb]; shift [nb]. E4M3, E5M2: codes u8 [numel];
 * unless raw, scale [1] or [nb].
 * @return TESS_E_RANGE overflow; TESS_E_UNSUPPORTED illegal block size (legal: 32, 64, ..., 4096;
 * GGUF: the format's own; a scale per row: the row length), blocks that are not whole (GGUF, QINT4,
 * QINT2), or a scale dtype that is none of f32, bf16, f16
 */
TESS_MUST_CHECK tess_status tess_codec_parts(const tess_codec *codec, int64_t numel,
                                             tess_codec_part parts[TESS_CODEC_PART_MAX],
                                             int *part_numel);
/**
 * The identity of a format, as in adapter metadata, plans and checkpoints. Local.
 *
 * "nf4/64/double", "nf4/64", "bf16", "q4_k"; "qint8/row/bf16"; "qint2/128/bf16" (minmax),
 * "qint2/128/bf16/hqq"; "e4m3/raw", "e4m3/row/dequant_scale", "e5m2/tensor/quant_scale"; a scale of
 * fp8 that is no f32 adds its dtype: "e4m3/row/dequant_scale/bf16".
 */
void tess_codec_describe(const tess_codec *codec, char text[TESS_CODEC_TEXT_NBYTES]);
/**
 * Inverse of tess_codec_describe, for a tensor whose rows have `col_numel` elements. Local.
 * @return TESS_E_UNSUPPORTED any other text
 */
TESS_MUST_CHECK tess_status tess_codec_parse(const char *text, int64_t col_numel, tess_codec *out);
bool tess_codec_is_equal(const tess_codec *a, const tess_codec *b);
/** Name of every format, separated by ", ": for messages. Local. */
const char *tess_format_names(void);

TESS_END_DECLS
