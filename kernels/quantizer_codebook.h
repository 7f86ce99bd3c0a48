/**
 * Update of a codebook by moving averages, on the rows of one owner.
 *
 * Persistent state of a row, f32: its code `embed`, the average `embed_avg` of the sums of its
 * vectors, the average `cluster_size` of their counts. A step: average, total (added over owners),
 * embed, then expire and replace. Every row depends on nothing but its own state and the totals.
 */
#pragma once

#include "core/stream.h"
#include "core/view.h"

TESS_BEGIN_DECLS

/** Rows of one owner. */
typedef struct tess_codebook_rows {
    float *embed;        /* [row_numel, dim] f32 */
    float *embed_avg;    /* [row_numel, dim] f32 */
    float *cluster_size; /* [row_numel] f32 */
    int64_t row_numel, dim;
} tess_codebook_rows;

/**
 * cluster_size and embed_avg move to the counts and sums of the whole step: old + w (new - old)
 * where w < 0.5, else new - (new - old) (1 - w), with w = f32(1 - decay), times the row's weight
 * where there are weights (PyTorch's lerp).
 */
typedef struct tess_quantizer_average_args {
    tess_codebook_rows rows; /* cluster_size and embed_avg in place */
    const int64_t *count;    /* [row_numel] */
    const float *sum;        /* [row_numel, dim] f32 */
    const float *weight;     /* [row_numel] f32; NULL: 1 */
    double decay;            /* 0 <= decay < 1 */
} tess_quantizer_average_args;

/** total += sum of llrint(2^20 cluster_size): exact over rows and owners. */
typedef struct tess_quantizer_total_args {
    const float *cluster_size; /* [row_numel] f32 */
    int64_t row_numel;
    int64_t *total; /* [1] in place, multiples of 2^-20 */
} tess_quantizer_total_args;

/** embed = embed_avg / f32((cluster_size + eps) / (M + K eps) M), the divisor in fp64; with
 * is_cosine the row then becomes a unit vector. */
typedef struct tess_quantizer_embed_args {
    tess_codebook_rows rows; /* embed out */
    double total;            /* M, sum of all cluster sizes */
    int64_t code_numel;      /* K, of all owners */
    double eps;
    bool is_cosine;
} tess_quantizer_embed_args;

/** expired[i] = cluster_size[i] < f32(threshold) ? 1 : 0, and how many. */
typedef struct tess_quantizer_expire_args {
    const float *cluster_size; /* [row_numel] f32 */
    int64_t row_numel;
    double threshold;       /* hits per global step */
    uint8_t *expired;       /* [row_numel] out */
    int64_t *expired_numel; /* [1] out */
} tess_quantizer_expire_args;

/** Row row[j] becomes vector j: embed = v, cluster_size = reset, embed_avg = reset v; with
 * is_cosine v is made a unit vector first. All three change together: a stale average would undo
 * it. */
typedef struct tess_quantizer_replace_args {
    tess_codebook_rows rows; /* in place */
    const int64_t *row;      /* [replace_numel] distinct, below row_numel */
    const float *vector;     /* [replace_numel, dim] f32 */
    int64_t replace_numel;
    double reset;
    bool is_cosine;
} tess_quantizer_replace_args;

TESS_MUST_CHECK tess_status tess_quantizer_average_check(const tess_quantizer_average_args *a);
TESS_MUST_CHECK tess_status tess_quantizer_total_check(const tess_quantizer_total_args *a);
TESS_MUST_CHECK tess_status tess_quantizer_embed_check(const tess_quantizer_embed_args *a);
TESS_MUST_CHECK tess_status tess_quantizer_expire_check(const tess_quantizer_expire_args *a);
TESS_MUST_CHECK tess_status tess_quantizer_replace_check(const tess_quantizer_replace_args *a);

TESS_END_DECLS
