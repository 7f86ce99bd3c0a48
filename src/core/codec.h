/**
 * Base formats: how one frozen tensor is laid out as bytes.
 *
 * A tensor is a list of parts (codes first, then constants); each part starts at a multiple of 256
 * bytes in the unit's byte string. Pure arithmetic: sizes here, layouts of foreign files in
 * src/format, math in kernels/.
 *
 * [Note: a new format] One row of the list below, the layout of its family in codec.c, its decoder
 * and encoder in kernels/cpu/codec_<family>.c, its words in the run schema, and where files hold it
 * a reader in src/format. In every format constants belong to consecutive elements of the row-major
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
    X(INT8, "int8", int8)

typedef enum tess_format {
#define X(name, text, family) TESS_FORMAT_##name,
    TESS_FORMAT_LIST(X)
#undef X
        TESS_FORMAT_NUMEL
} tess_format;

enum { TESS_CODEC_PART_MAX = 4, TESS_NESTED_BLOCK_NUMEL = 256, TESS_CODEC_TEXT_NBYTES = 48 };

/** How one tensor is stored. Plain data, compared field by field. */
typedef struct tess_codec {
    tess_format format;
    int64_t block_numel; /* elements that share constants; 0: plain formats, or one block in all */
    bool double_quant;   /* nf4, fp4: absmax themselves in 8 bits */
} tess_codec;

/** One part of a stored tensor. */
typedef struct tess_codec_part {
    const char
        *name; /* "codes", "absmax", "nested_absmax", "nested_offset", "values", "blocks", "scb" */
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
/**
 * Whether rows of `col_numel` elements can be stored so. Local.
 * @return TESS_E_UNSUPPORTED GGUF formats: rows that are no whole blocks
 */
TESS_MUST_CHECK tess_status tess_codec_check_rows(const tess_codec *codec, int64_t col_numel);
/**
 * Parts of a tensor of `numel` elements, in canonical order. Local.
 * Plain: values [numel]. NF4, FP4: codes u8 [ceil(numel/2)]; absmax f32 [nb], or with double_quant
 * absmax u8 [nb], nested_absmax f32 [ceil(nb/256)], nested_offset f32 [1]; nb =
 * ceil(numel/block_numel). F16: values. GGUF: blocks u8, as they lie in the file. INT8: codes, int8
 * in u8 [numel]; scb f32 [nb].
 * @return TESS_E_RANGE overflow; TESS_E_UNSUPPORTED illegal block size (legal: 32, 64, ..., 4096;
 * GGUF: the format's own; INT8: the row length), or GGUF blocks that are not whole
 */
TESS_MUST_CHECK tess_status tess_codec_parts(const tess_codec *codec, int64_t numel,
                                             tess_codec_part parts[TESS_CODEC_PART_MAX],
                                             int *part_numel);
/** "nf4/64/double", "nf4/64", "bf16", "q4_k": as in adapter metadata and plans. Local. */
void tess_codec_describe(const tess_codec *codec, char text[TESS_CODEC_TEXT_NBYTES]);
/** Inverse of tess_codec_describe. Local. @return TESS_E_UNSUPPORTED any other text */
TESS_MUST_CHECK tess_status tess_codec_parse(const char *text, tess_codec *out);
bool tess_codec_is_equal(const tess_codec *a, const tess_codec *b);
/** Name of every format, separated by ", ": for messages. Local. */
const char *tess_format_names(void);

TESS_END_DECLS
