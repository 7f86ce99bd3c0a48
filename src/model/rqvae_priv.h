/** Body of an RQ-VAE, shared by its registration, its stage calls and its quantizer. */
#pragma once

#include "model/perceptron_priv.h"
#include "model/rqvae.h"

TESS_BEGIN_DECLS

enum { TESS_RQVAE_ENCODER, TESS_RQVAE_QUANTIZER, TESS_RQVAE_DECODER, TESS_RQVAE_STAGE_NUMEL };

typedef struct tess_rqvae {
    tess_rqvae_config config; /* without `hidden` */
    tess_dtype dt;
    const tess_kernels *kernels; /* sizes only; calls bring their own */
    int thread_numel;
    int64_t row_numel; /* of the planned micro-batch */
    tess_perceptron encoder, decoder;
    int codebook_idx[TESS_RQVAE_LEVEL_MAX];
    double reconstruction_weight, level_weight; /* of a vector's loss: rec and w */
} tess_rqvae;

/** Views of a call, or of none while planning. R rows, L levels. */
typedef struct tess_rqvae_io {
    const tess_vector_batch *batch;
    tess_view x;        /* [R, D] f32: the batch */
    tess_view input;    /* [R, d] dt: of quantizer and decoder */
    tess_view output;   /* [R, d] dt: of encoder and quantizer; numel 0: not wanted again */
    tess_view square;   /* [L, R] f64: out of the quantizer, into the decoder */
    tess_view code;     /* [L, R] u32 in dtype i32: saved by the quantizer */
    tess_view d_output; /* [R, d] dt */
    tess_view d_input;  /* [R, d] dt */
    float grad_scale;   /* 1 / T */
    double *loss_sum;
} tess_rqvae_io;

/** Run a kernel of the quantizers, or nothing while planning. */
#define TESS_RQVAE_RUN(ex, op, args)                                                               \
    ((ex)->is_plan || (ex)->is_announced ? TESS_OK                                                 \
                                         : (ex)->kernels->quantizers->op((args), (ex)->stream))

/** Enqueue a copy of `src` to host memory where it is wanted. Local. */
TESS_MUST_CHECK tess_status tess_rqvae_give(const tess_exec *ex, void *host, tess_view src);

/** Codes of z into `code`, squared residuals and the sum of codes. Local. */
TESS_MUST_CHECK tess_status tess_rqvae_quantize(const tess_rqvae *m, tess_exec *ex,
                                                const tess_rqvae_io *io);
/** Gradients of all codes, and d_input. Local. */
TESS_MUST_CHECK tess_status tess_rqvae_quantize_backward(const tess_rqvae *m, tess_exec *ex,
                                                         const tess_rqvae_io *io);

/** Memory of a stage, by running its code in plan mode over `reg`. Local. */
TESS_MUST_CHECK tess_status tess_rqvae_plan_stage(const tess_rqvae *m, const tess_registry *reg,
                                                  int stage_idx, tess_stage *stage);

extern const tess_stage_ops tess_rqvae_stage_ops;

TESS_END_DECLS
