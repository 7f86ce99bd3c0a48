/**
 * Fills a runtime's parameters from model files or from initialization rules, streaming.
 *
 * One rank reads and encodes a whole tensor (quantizer blocks never depend on shards) and routes
 * its bytes to their owners; W ranks work on W tensors at a time. No rank ever holds the model.
 * Staging lies in the WORK arena, or beside a device in host memory.
 */
#pragma once

#include "core/ctx.h"
#include "core/digest.h"
#include "shard/runtime.h"

TESS_BEGIN_DECLS

/** Where tensors with TESS_INIT_SOURCE come from. Called on one rank per tensor. */
typedef struct tess_load_source {
    void *arg;
    /* dtype of the tensor in the files: f32, bf16 or f16. Pure. */
    tess_status (*dtype_of)(void *arg, const tess_param *p, tess_dtype *dt);
    /* How the tensor is stored in the files; NULL, or a plain codec: an array of dtype_of. Where a
     * quantized codec equals the parameter's, the bytes are kept as they are; else the values are
     * decoded, then stored as the parameter says. Pure. */
    tess_status (*codec_of)(void *arg, const tess_param *p, tess_codec *codec);
    /* All bytes of the tensor, row-major; of a quantized codec its parts one after the other. */
    tess_status (*read)(void *arg, const tess_param *p, void *dst, size_t nbytes);
} tess_load_source;

/** Seconds of this rank in tess_load(). */
typedef struct tess_load_times {
    double read_s;       /* from the source */
    double make_s;       /* drawn, decoded, quantized, hashed */
    double distribute_s; /* to the owners, with the waits for ranks that were slower */
} tess_load_times;

typedef struct tess_load_request {
    const tess_load_source *source; /* NULL when nothing has TESS_INIT_SOURCE */
    bool is_random;                 /* random_init instead of TESS_INIT_SOURCE */
    bool wants_frozen;              /* false: the base comes from elsewhere (a checkpoint) */
    bool wants_trainable;           /* false: masters come from elsewhere */
    bool is_device; /* the runtime's memory is a device's: bytes land in host memory first */
    uint64_t seed;
    tess_load_times *times; /* NULL: nobody asks */
} tess_load_request;

/** Staging bytes that loading needs on any rank. Local. */
TESS_MUST_CHECK tess_status tess_load_plan(const tess_registry *reg,
                                           const tess_load_request *request, size_t *nbytes);
/**
 * Load. Collective over the runtime's world; every rank leaves with the same verdict.
 *
 * @param[out] tensor_sha  [param_numel] SHA-256 of each frozen tensor's canonical bytes (parts in
 * order, without the padding between them), on all ranks; zero for others; may be NULL
 * @return TESS_E_FORMAT, TESS_E_IO from the source; TESS_E_NUMERIC a non-finite weight (named)
 */
TESS_MUST_CHECK tess_status tess_load(tess_runtime *rt, const tess_load_request *request,
                                      tess_sha256 *tensor_sha);

TESS_END_DECLS
