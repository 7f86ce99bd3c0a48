/**
 * One matrix product of plain operands, as the library of a device runs it, and the cache of the
 * algorithms chosen for them. C only: nothing here knows CUDA, so the emulation has its own.
 *
 * [Note: when algorithms are chosen] At plan time tess_cuda_gemm_plan() walks the products of a
 * step and fills the cache; rank 0's cache goes to all ranks as bytes (tess_blas_export,
 * tess_blas_import), so that they run the same kernels. After tess_blas_settle() a product that
 * nobody planned still runs, with the first algorithm the library offers, and counts as late.
 */
#pragma once

#include "core/stream.h"
#include "core/view.h"
#include "kernels/gemm.h"

TESS_BEGIN_DECLS

enum { TESS_BLAS_ALIGN_MAX = 16, TESS_BLAS_IDENTITY_NBYTES = 128 };

/**
 * C = alpha * op(A) op(B) [+ C] [+ bias], f32 sums, one rounding, row-major. Everything an
 * algorithm may depend on, hashed and compared as bytes: zero all of it before filling it in.
 */
typedef struct tess_blas_product {
    int64_t m, n, k;                      /* as in kernels/gemm.h, each at least 1 */
    int64_t a_stride, b_stride, c_stride; /* elements between rows */
    uint64_t work_nbytes;                 /* library workspace of the stream */
    int32_t kind;                         /* tess_gemm_kind */
    int32_t dt;                           /* tess_dtype of A and B */
    int32_t c_dt;                         /* of C and of the bias: f32, or dt */
    int32_t is_added;                     /* the old C is added */
    int32_t has_bias;                     /* [N] c_dt */
    int32_t may_split;                    /* ordered split of K allowed */
    int32_t a_align, b_align, c_align;    /* bytes, a power of two up to TESS_BLAS_ALIGN_MAX */
    int32_t sm_numel;                     /* multiprocessors to aim at, 0: all */
} tess_blas_product;

/** What the library needs to run it: plain data, written to files and sent between ranks. */
typedef struct tess_blas_choice {
    uint64_t data[8];
    uint64_t work_nbytes; /* of the workspace it uses */
    uint64_t is_split;    /* K is split, and summed in a fixed order */
} tess_blas_choice;

typedef struct tess_blas_operands {
    const void *a, *b;
    void *c;
    const void *bias;
    float alpha;
    void *work; /* product.work_nbytes of this stream alone */
} tess_blas_operands;

typedef struct tess_blas tess_blas;

typedef struct tess_blas_ops {
    /* Library, version, device and its number of multiprocessors: caches are good for one of it. */
    void (*identify)(const tess_blas *b, char text[TESS_BLAS_IDENTITY_NBYTES]);
    /* Algorithms that fit, best first by the library's own estimate; at least one.
     * @return TESS_E_UNSUPPORTED there is none */
    tess_status (*choose)(tess_blas *b, const tess_blas_product *p, tess_blas_choice *out,
                          int choice_max, int *choice_numel);
    tess_status (*run)(tess_blas *b, const tess_blas_product *p, const tess_blas_choice *choice,
                       const tess_blas_operands *o, tess_stream *s);
    void (*destroy)(tess_blas *b); /* what the implementation holds, then `b` itself */
} tess_blas_ops;

typedef struct tess_blas_entry {
    tess_blas_product product; /* m is 0: an empty place */
    tess_blas_choice choice;
} tess_blas_entry;

/** Base object; implementations embed it as first member. */
struct tess_blas {
    const tess_blas_ops *ops;
    tess_blas_entry *entry; /* open addressing, [capacity] */
    int64_t capacity, entry_numel;
    int64_t late_numel; /* products after settle that nobody planned */
    bool is_settled;
};

/** cuBLASLt on the calling thread's device. Local. @return TESS_E_UNSUPPORTED; TESS_E_MEMORY */
TESS_MUST_CHECK tess_status tess_blas_lt_create(tess_blas **out);

/** Room for the cache of a base object whose ops are set; the rest of it is zero. Local. */
TESS_MUST_CHECK tess_status tess_blas_init(tess_blas *b);
/** NULL is fine. Local. */
void tess_blas_destroy(tess_blas **b);

/** Choose an algorithm for `p` unless the cache has one. Local. */
TESS_MUST_CHECK tess_status tess_blas_plan(tess_blas *b, const tess_blas_product *p);
/** From here on a product outside the cache counts as late. Local. */
void tess_blas_settle(tess_blas *b);
/** Run with the algorithm of the cache. Enqueued on `s`; operands are borrowed until it passes. */
TESS_MUST_CHECK tess_status tess_blas_run(tess_blas *b, const tess_blas_product *p,
                                          const tess_blas_operands *o, tess_stream *s);

/** Bytes of the cache with identity and digest. Local. */
size_t tess_blas_export_nbytes(const tess_blas *b);
/** `data` has tess_blas_export_nbytes(). Local. */
void tess_blas_export(const tess_blas *b, void *data);
/**
 * Take the choices of another rank; those of equal products are replaced. Local.
 * @return TESS_E_CONTRACT other library, version or device; TESS_E_FORMAT damaged
 */
TESS_MUST_CHECK tess_status tess_blas_import(tess_blas *b, const void *data, size_t nbytes);

/** Alignment class of an address: the largest power of two up to TESS_BLAS_ALIGN_MAX. NULL, as in
 * planning, counts as aligned. */
static inline int32_t tess_blas_align(const void *data)
{
    const uintptr_t low = (uintptr_t)data & (TESS_BLAS_ALIGN_MAX - 1);
    return low == 0 ? TESS_BLAS_ALIGN_MAX : (int32_t)(low & (~low + 1));
}

TESS_END_DECLS
