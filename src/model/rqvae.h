/**
 * RQ-VAE over vectors: encoder, residual quantizer, decoder.
 *
 * z = encoder(x); r_0 = z, q_l = the code of level l nearest to r_l, r_(l+1) = r_l - q_l; y =
 * decoder(sum of q_l). Encoder and decoder are linear layers with ReLU between them, the decoder's
 * sizes those of the encoder backwards.
 *
 * Loss of a vector: rec |x - y|^2 + w sum_l ((1 + beta) |r_l - q_l|^2), with rec = 1 / D and
 * w = 1 / d (means over elements) or rec = w = 1 (sums). One unit of it moves codes to vectors,
 * beta (the commitment) vectors to codes; where codes are averages the former is left out. No
 * gradient passes through a subtracted code, and the one of the output passes the quantizer once,
 * by the estimator, from the sum of codes to z.
 *
 * [Note: f32 codes] Codes are f32 whatever the compute dtype; searches, residuals, losses and the
 * reconstruction are f32 or wider. Activations between layers have the compute dtype.
 */
#pragma once

#include "kernels/quantizer_vector.h"
#include "model/model.h"

TESS_BEGIN_DECLS

enum { TESS_RQVAE_HIDDEN_MAX = 16, TESS_RQVAE_LEVEL_MAX = 64 };

/** Sizes and losses. Names in messages are those of section quantizer. */
typedef struct tess_rqvae_config {
    int64_t dim;           /* D of the vectors */
    int64_t code_dim;      /* d */
    const int64_t *hidden; /* [hidden_numel] sizes between them, as the encoder has them; borrowed
                              for the create call */
    int hidden_numel;      /* 0 .. TESS_RQVAE_HIDDEN_MAX */
    bool has_bias;
    int64_t code_numel; /* K of each level */
    int level_numel;    /* 1 .. TESS_RQVAE_LEVEL_MAX */
    bool is_sum;        /* losses are sums over elements, not means */
    double commitment;  /* beta */
    tess_estimator estimator;
    /* Codes follow moving averages that the trainer keeps: they have no gradient and no loss of
     * their own, and the optimizer leaves them alone. */
    bool is_averaged;
} tess_rqvae_config;

/** One micro-batch. Results go where they are wanted; host memory, there when the stream has passed
 * the call. */
typedef struct tess_vector_batch {
    int64_t vector_numel; /* of training: exactly the planned ones */
    const float *x;       /* [vector_numel, D] f32, where kernels read it */
    uint32_t *code;       /* [levels, vector_numel] out, or NULL */
    double *square; /* [1 + levels, vector_numel] f64 out, or NULL: |x - y|^2, |r_l - q_l|^2 */
    float *latent;  /* [vector_numel, d] f32 out, or NULL: z */
    float *left;    /* [levels, vector_numel, d] f32 out, or NULL: r_l */
} tess_vector_batch;

/**
 * Describe the model: fills `reg` (initialized, empty) and lays it out. Of `options` it reads
 * compute_dt, micro_batch (vectors), thread_numel and kernels. Local.
 * @return TESS_E_CONFIG names the key of the run file; TESS_E_UNSUPPORTED a backend without
 * quantizers
 */
TESS_MUST_CHECK tess_status tess_rqvae_create(const tess_rqvae_config *config,
                                              const tess_model_options *options, tess_registry *reg,
                                              tess_model **out);
/** The registry's tensor of a level's codes [K, d]. Local. */
int tess_rqvae_codebook(const tess_model *model, int level_idx);

TESS_END_DECLS
