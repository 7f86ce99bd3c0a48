/**
 * Inside of the CPU matrix product: packed layouts and what an instruction path provides.
 *
 * [Note: units] Packed operands are made of 4-byte units: one f32, or a pair of bf16 of
 * neighbouring k (the even one in the low half; an odd K ends with a zero). Everything between
 * packing and the innermost kernel counts units, so one blocking serves fp32, bf16 pairs and bf16
 * widened to fp32.
 *
 * Packed A: blocks of `block_rows` rows (the last block as narrow as its rows), each
 * [unit][row of the block]. Packed B: one panel at a time, [unit][columns rounded up to a vector].
 */
#pragma once

#include "kernels/cpu/cpu_priv.h"

TESS_BEGIN_DECLS

/* Loops over registers must disappear, and kernels be compiled once per shape. */
#ifdef __clang__
#define TESS_UNROLL _Pragma("clang loop unroll(full)")
#else
#define TESS_UNROLL _Pragma("GCC unroll 16")
#endif
#define TESS_INLINE static inline __attribute__((always_inline))

enum {
    TESS_GEMM_BLOCK_MAX = 16,  /* rows of the tallest kernel */
    TESS_GEMM_VECTOR_MAX = 4,  /* vectors of the widest panel */
    TESS_GEMM_PANEL_MAX = 64,  /* columns of the widest panel */
    TESS_GEMM_DEPTH = 384,     /* units of one pass over a panel, at most */
    TESS_GEMM_ROWS_MAX = 1024, /* rows of C in flight: packed A and sums stay near the core */
};

typedef enum tess_gemm_unit { TESS_GEMM_UNIT_F32, TESS_GEMM_UNIT_PAIR } tess_gemm_unit;

typedef enum tess_gemm_mode {
    TESS_GEMM_FIRST,  /* sums start at zero */
    TESS_GEMM_NEXT,   /* sums continue from c */
    TESS_GEMM_SCALED, /* sums start at zero; c += scale * sum */
} tess_gemm_mode;

/** One innermost product: c[mr, nv * lane_numel] over `unit_numel` units. */
typedef struct tess_gemm_tile {
    const uint32_t *a;  /* [unit_numel, mr] */
    const uint32_t *b;  /* [unit_numel, nv * lane_numel] */
    int64_t unit_numel; /* may be 0 */
    float *c;           /* rows `c_stride` apart */
    int64_t c_stride;
    tess_gemm_mode mode;
    float scale;
    const uint32_t *next_a; /* [unit_numel, mr] of the tile that follows, to be brought near */
    const float *next_c;    /* its sums */
} tess_gemm_tile;

typedef void (*tess_gemm_micro)(const tess_gemm_tile *t);

/** Lines of a source (rows for `across`, columns for `along`) into [unit][dst_stride]. */
typedef struct tess_gemm_pack {
    const void *src;
    bool is_src_bf16; /* else f32; a pair unit needs bf16 */
    tess_gemm_unit unit;
    int64_t stride; /* elements between rows of src */
    int64_t k_numel;
    int64_t line_numel; /* lines of src */
    int64_t fill_numel; /* lines to write, at least line_numel; the others are zero */
    int64_t dst_stride; /* units between packed rows, at least fill_numel */
    uint32_t *dst;
} tess_gemm_pack;

/** One row of sums on its way out. */
typedef struct tess_gemm_out {
    const float *sum; /* [row_numel, sum_stride] */
    int64_t sum_stride;
    const void *bias; /* at the panel's first column, or NULL */
    bool is_bias_bf16, is_c_bf16, is_accumulating;
    bool is_transposed; /* c[col, row]; no bias */
    void *c;
    int64_t c_stride;
    int64_t row_numel, col_numel;
} tess_gemm_out;

/** Rows of 4-bit elements that stand for 16 values times the scale of their block. */
typedef struct tess_lut16_rows {
    const float *table;   /* [16] */
    const uint8_t *codes; /* of the whole tensor */
    const float *absmax;  /* [row_numel, absmax_stride], from the block of a row's first element */
    int64_t absmax_stride;
    int64_t block_numel;       /* a power of two, at least 32 */
    int64_t first_idx, stride; /* row i begins at first_idx + i * stride */
    int64_t row_numel, col_numel;
    bool is_dst_bf16;
    void *dst; /* [row_numel, col_numel] */
} tess_lut16_rows;

typedef struct tess_gemm_path {
    tess_gemm_unit bf16_unit; /* what bf16 operands become */
    int lane_numel;           /* columns of a vector */
    int vector_max;           /* vectors of the widest panel */
    int block_rows[TESS_GEMM_VECTOR_MAX + 1];
    /* [unit][vectors - 1][rows - 1]; NULL above block_rows and for a unit the path does not use */
    const tess_gemm_micro (*micro[2])[TESS_GEMM_BLOCK_MAX];
    void (*pack_across)(const tess_gemm_pack *p); /* src [line_numel, k_numel] */
    void (*pack_along)(const tess_gemm_pack *p);  /* src [k_numel, line_numel] */
    void (*add_scaled)(float *dst, const float *src, float scale, int64_t numel);
    void (*write)(const tess_gemm_out *o);
    void (*lut16_rows)(const tess_lut16_rows *r);
} tess_gemm_path;

extern const tess_gemm_path tess_gemm_path_portable;
extern const tess_gemm_path tess_gemm_path_avx2;
extern const tess_gemm_path tess_gemm_path_avx512;
extern const tess_gemm_path tess_gemm_path_avx512_bf16;

/** Kernels of the current instruction path. Local. */
const tess_gemm_path *tess_gemm_path_current(void);

TESS_END_DECLS
