/**
 * Codes that stand for numbers, times a scale per block, less a shift: the families quanto8, quanto
 * and fp8, and the decoder of int8. One table per instruction path: the same bits from each.
 */
#pragma once

#include "kernels/cpu/codec_priv.h"

TESS_BEGIN_DECLS

enum { TESS_SCALED_CHUNK_NUMEL = 512 }; /* elements that are encoded together */

/* What a code stands for. BITS: an unsigned number of `code_bits` bits. */
typedef enum tess_code_kind {
    TESS_CODE_INT8,
    TESS_CODE_E4M3,
    TESS_CODE_E5M2,
    TESS_CODE_BITS
} tess_code_kind;

/** Consecutive elements whose codes lie in consecutive bytes. */
typedef struct tess_scaled_run {
    tess_code_kind kind;
    const uint8_t *codes;     /* of the first element */
    int first_bit, code_bits; /* BITS: where codes lie in their bytes */
    int64_t numel;
    int64_t block_numel;       /* elements that share scale and shift */
    int64_t skip_numel;        /* elements of the first block that lie before the first element */
    const void *scale, *shift; /* `scale_dt`, at the first block; NULL: 1, and 0 */
    tess_dtype scale_dt;
    bool is_inverse;  /* the scale is 1 over the number */
    tess_dtype round; /* product and difference are rounded to it; f32, bf16 or f16 */
    bool is_dst_bf16; /* else f32 */
    void *dst;
} tess_scaled_run;

/** How values become codes. */
typedef struct tess_scaled_rule {
    tess_code_kind kind;
    float scale, shift;
    tess_dtype round;   /* sum and quotient are rounded to it */
    bool is_multiplied; /* by the scale, instead of divided */
    float least, most;  /* codes are clamped to it; before they are narrowed */
} tess_scaled_rule;

/** A group of qint4 or qint2 whose scale and shift are sought. */
typedef struct tess_scaled_group {
    const tess_view *src;
    int64_t first_idx, numel;
    tess_dtype dt; /* of scale and shift */
    tess_scale_rule rule;
    float most; /* code */
} tess_scaled_group;

typedef struct tess_scaled_path {
    void (*decode)(const tess_scaled_run *r);
    /* Elements of one row of int8: f32(f32(code * scb) / 127), to bf16 or f32. */
    void (*int8)(const int8_t *code, float scb, int64_t numel, bool is_dst_bf16, void *dst);
    /* Elements [first, first + numel) of f32 or bf16, rounded to `round`. */
    void (*read)(const tess_view *src, int64_t first, int64_t numel, tess_dtype round, float *x);
    /* Lower *least and raise *most to the values; false where one is not finite. */
    bool (*span)(const float *x, int64_t numel, float *least, float *most);
    /* One code per byte. */
    void (*encode)(const float *x, int64_t numel, const tess_scaled_rule *rule, uint8_t *code);
    /* What stands for `code`, as decoding gives it in f32; of BITS. */
    void (*values)(const uint8_t *code, int64_t numel, const tess_scaled_rule *rule, float *y);
} tess_scaled_path;

extern const tess_scaled_path tess_scaled_portable, tess_scaled_avx2, tess_scaled_avx512;

tess_status tess_scaled_rows_encode(const tess_quantize_args *a, tess_pool *pool);
tess_status tess_scaled_groups_encode(const tess_quantize_args *a, tess_pool *pool);
/** Scale and shift by the group's rule; `least`, `greatest`: its values. Local. @return whether
 * they are finite */
bool tess_scaled_fit(const tess_scaled_group *g, float least, float greatest, float *scale,
                     float *shift);

/** Of the current instruction path. Local. */
const tess_scaled_path *tess_scaled_path_current(void);
/** Number `idx` of an array of f32, bf16 or f16. Local. */
float tess_scaled_get(const void *array, tess_dtype dt, int64_t idx);
/** Store a number that `dt` holds. Local. @return whether it is finite in `dt` */
bool tess_scaled_put(void *array, tess_dtype dt, int64_t idx, float x);
/** x rounded to `dt`. Local. */
float tess_scaled_round(tess_dtype dt, float x);

TESS_END_DECLS
