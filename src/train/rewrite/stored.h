/**
 * One whole tensor in its stored form, on the host: read, decoded, encoded, compared, named.
 *
 * For jobs that stream a model tensor by tensor without ranks: memory is that of the largest.
 */
#pragma once

#include "core/digest.h"
#include "core/pool.h"
#include "format/model_dir.h"
#include "kernels/kernels.h"

TESS_BEGIN_DECLS

/** A tensor as parts of its codec, plain ones included. Starts as {0}; memory grows and is used
 * again for the next tensor. */
typedef struct tess_stored {
    tess_codec codec;
    int64_t numel;
    int part_numel;
    tess_codec_part part[TESS_CODEC_PART_MAX];
    void *at[TESS_CODEC_PART_MAX]; /* each at a multiple of 64 */
    void *memory;
    size_t memory_nbytes;
    float *work; /* of encoders: [work_numel] */
    int64_t work_numel;
} tess_stored;

/** Lay out `numel` elements in `codec`; contents are undefined. Local. */
TESS_MUST_CHECK tess_status tess_stored_prepare(tess_stored *s, const tess_codec *codec,
                                                int64_t numel);
void tess_stored_fini(tess_stored *s);
/** Bytes of all parts. Local. */
int64_t tess_stored_nbytes(const tess_stored *s);
/** The whole of a tensor of the files, as it lies there. Local. */
TESS_MUST_CHECK tess_status tess_stored_read(tess_stored *s, const tess_model_dir *dir,
                                             const tess_model_tensor *tensor);
/** Values [first, first + numel) in f32. Local; `first` is a multiple of 256. */
TESS_MUST_CHECK tess_status tess_stored_decode(const tess_stored *s, int64_t first_idx,
                                               int64_t numel, float *dst);
/** All of them, threads sharing the work. Local. @param[out] dst  [numel] f32 */
TESS_MUST_CHECK tess_status tess_stored_decode_all(const tess_stored *s, tess_pool *pool,
                                                   float *dst);
/**
 * Encode values. Local.
 * @param src   [numel] f32 or bf16
 * @param name  for messages
 * @return TESS_E_FORMAT an element that is not finite, or that the codec cannot hold: named
 */
TESS_MUST_CHECK tess_status tess_stored_encode(tess_stored *s, tess_view src, const char *name,
                                               tess_pool *pool);
/** Values as a view where they lie so (bf16, f32), else decoded into `plain` [numel]. Local. */
TESS_MUST_CHECK tess_status tess_stored_values(const tess_stored *s, tess_pool *pool, float *plain,
                                               tess_view *out);

/** How far a tensor is from another. */
typedef struct tess_stored_error {
    double square;        /* sum of squares of `before` */
    double error_square;  /* and of the difference */
    double most;          /* largest absolute difference */
    int64_t zeroed_numel; /* blocks whose scale became 0 although they hold values */
} tess_stored_error;

/**
 * Compare what is stored with what it was made of. Local; sums in fp64 in a fixed order, the same
 * for any number of threads.
 * @return TESS_E_FORMAT an element of either that is not finite: `name`, index, value
 */
TESS_MUST_CHECK tess_status tess_stored_compare(const tess_stored *before, const tess_stored *after,
                                                const char *name, tess_pool *pool,
                                                tess_stored_error *out);
/** SHA-256 of its canonical bytes when it is kept as `kept`: its parts, or its values in f32.
 * Local. */
TESS_MUST_CHECK tess_status tess_stored_sha256(const tess_stored *s, const tess_codec *kept,
                                               tess_sha256 *out);

TESS_END_DECLS
