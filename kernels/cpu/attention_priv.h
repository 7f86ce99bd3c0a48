/**
 * Attention of the CPU backend: workspace, jobs, and one table of inner loops per operand kind.
 *
 * [Note: blocks] Keys and values are packed once per key-value head into panels of 64 tokens. A
 * query head is walked in blocks of rows; a block visits the panels it can see, ascending, and
 * inside a panel only the vectors of 16 tokens that some row sees. Forward keeps the scores of a
 * block (rows x visible tokens), so that probabilities are normalized before they are rounded.
 * Backward adds d_k and d_v of each query head in f32, transposed, in memory of its own; the heads
 * of a group are added ascending at the end. Heads go in waves, so that the memory grows with the
 * number of threads and not with the number of heads; no order of additions depends on it.
 */
#pragma once

#include "kernels/cpu/ops_priv.h"

TESS_BEGIN_DECLS

enum {
    TESS_ATTENTION_PANEL = 64,  /* tokens of a packed panel */
    TESS_ATTENTION_VECTOR = 16, /* tokens that are skipped or computed together */
    TESS_ATTENTION_FWD_ROWS = 24,
    TESS_ATTENTION_BWD_ROWS = 32,
};

/** Extents and offsets of one call. Offsets in bytes from the workspace. */
typedef struct tess_attention_layout {
    tess_attention_shape shape;
    int64_t group_numel;     /* query heads per key-value head */
    int64_t panel_numel;     /* ceil(T / 64) */
    int64_t pair_dim;        /* D rounded up to 2: length of a packed row of A */
    int64_t vec_dim;         /* D rounded up to 16: width of packed B over D */
    int64_t visible_numel;   /* most columns a block of rows can see, in whole panels */
    int64_t wave_kv_numel;   /* key-value heads in flight */
    size_t pack_head_nbytes; /* one packed copy of one head's keys or values */
    size_t pack_kind_nbytes; /* one kind of packed copy, all heads of a wave */
    size_t grad_head_nbytes; /* transposed f32 gradient of keys or values of one query head */
    size_t grad_offset;      /* d_v then d_k of all query heads of a wave */
    size_t scratch_offset;   /* per part */
    size_t scratch_nbytes;
    size_t nbytes;
} tess_attention_layout;

/** Kinds of packed copies. */
enum {
    TESS_PACK_K_T,     /* [panel][D/pair][64][pair]: B of scores */
    TESS_PACK_V,       /* forward: [T/pair][vec_dim][pair], B of the output */
    TESS_PACK_V_T = 1, /* backward: as K_T, B of d_p */
    TESS_PACK_K,       /* backward: as V, B of d_q */
    TESS_PACK_NUMEL,
};

typedef struct tess_attention_job {
    tess_attention_layout layout;
    const tess_attention_args *forward; /* one of the two is NULL */
    const tess_attention_backward_args *backward;
    const void *q, *k, *v;
    const int32_t *doc_start;
    int64_t lse_stride; /* elements between heads of lse */
    int64_t window;
    float scale;
    char *work;
    int64_t kv_lo, kv_numel; /* this wave */
} tess_attention_job;

/** Inner loops for one kind of operands. */
typedef struct tess_attention_ops {
    /* Pack panel `panel` of head kv_lo + kv. */
    void (*pack)(const tess_attention_job *job, int64_t kv, int64_t panel);
    /* Rows of block `block` of query head `head` of the wave. */
    void (*forward)(const tess_attention_job *job, int64_t head, int64_t block, char *scratch);
    /* All rows of query head `head` of the wave: d_q, and d_k, d_v of this head in f32. */
    void (*backward)(const tess_attention_job *job, int64_t head, char *scratch);
    /* d_k, d_v of panel `panel` of head kv_lo + kv. */
    void (*reduce)(const tess_attention_job *job, int64_t kv, int64_t panel);
} tess_attention_ops;

extern const tess_attention_ops tess_attention_ops_portable;    /* f32 operands, mul and add */
extern const tess_attention_ops tess_attention_ops_avx2;        /* f32 operands, fma */
extern const tess_attention_ops tess_attention_ops_avx512;      /* f32 operands, fma */
extern const tess_attention_ops tess_attention_ops_avx512_bf16; /* bf16 operands, dot products */

/** First token that token i sees; a job is one segment where there are segments. */
static inline int64_t tess_attention_first(const tess_attention_job *job, int64_t i)
{
    if (job->layout.shape.segment_numel > 0)
        return 0;
    const int64_t start = job->doc_start[i];
    return job->window > 0 ? TESS_MAX(start, i - job->window + 1) : start;
}

/** Last token that token i sees. */
static inline int64_t tess_attention_last(const tess_attention_job *job, int64_t i)
{
    return job->layout.shape.segment_numel > 0 ? job->layout.shape.token_numel - 1 : i;
}

TESS_END_DECLS
