/**
 * Workspaces that calls of the CUDA backend take. Pure arithmetic that the program and the plugin
 * share, so that a plan for a GPU needs neither.
 */
#pragma once

#include "kernels/kernels.h"

TESS_BEGIN_DECLS

/* [Note: rows of logits on a device] Every chunk of rows reads the output projection twice, 1 GiB
 * of bf16 for 128k tokens of 4096: below some 600 rows that takes longer than multiplying. 1024
 * rows also give each multiprocessor several rows of the loss kernel. */
enum { TESS_CUDA_LOGITS_ROW_MAX = 1024, TESS_CUDA_LOGITS_MAX_NUMEL = 128 << 20 };

enum {
    TESS_CUDA_GEMM_LINE_NUMEL = 8, /* rows of scratch are multiples: 16 bytes of bf16 */
    TESS_CUDA_GEMM_GAP_MAX = 256,  /* columns between two terms that are multiplied by zeros */
    TESS_THIN_ROW_MAX = 8,         /* rows that are multiplied while codes are decoded */
    TESS_SDPA_PLACE_NUMEL = 1056,  /* places for documents and their ends */
    TESS_SDPA_OFFSET_KIND_NUMEL = 5
};

/** An upper bound for any placement of the operands; reads no pointer. Local. */
size_t tess_cuda_gemm_work_nbytes(const tess_gemm_args *a, int thread_numel);
/** Rows of C whose f32 sums exist at once, and their bytes. Local. */
int64_t tess_cuda_gemm_sum_rows(const tess_gemm_args *a);
size_t tess_cuda_gemm_sum_nbytes(const tess_gemm_args *a);
/**
 * An upper bound of the memory of a product's decoded matrices where they are kept ([Note: kept
 * weights] in kernels/cuda/kept_priv.h); 0: nothing is decoded. Reads no pointer. Local.
 */
size_t tess_cuda_gemm_kept_nbytes(const tess_gemm_args *a);
/** Whether B is used where it lies, in dtype `dt`. Local. */
bool tess_cuda_gemm_is_stored_as(const tess_matrix *b, tess_dtype dt);

/** Either implementation of attention may be taken: the larger of both. Local. */
size_t tess_cuda_attention_work_nbytes(const tess_attention_shape *shape, int thread_numel);
size_t tess_flash_work_nbytes(const tess_attention_shape *shape);
size_t tess_sdpa_work_nbytes(const tess_attention_shape *shape);

/** Where the parts of a pack of codes lie (kernels/cuda/nearest.cu), in bytes from its begin. */
typedef struct tess_cuda_nearest_pack {
    size_t offset, half, high, low, total;
    int64_t padded_numel, padded_dim; /* whole tiles */
} tess_cuda_nearest_pack;

/** Local, pure. */
tess_cuda_nearest_pack tess_cuda_nearest_pack_of(int64_t code_numel, int64_t dim);
size_t tess_cuda_nearest_pack_nbytes(int64_t code_numel, int64_t dim);
/** Short lists live in shared memory: no workspace. */
size_t tess_cuda_nearest_work_nbytes(int64_t dim, int best_numel, int thread_numel);

/** A table to plan with: workspaces and wishes of the CUDA backend. Its kernels are the CPU's and
 * are not run. Local. */
const tess_kernels *tess_kernels_cuda_planned(void);

TESS_END_DECLS
