/**
 * Quantized autoencoder over vectors or images: encoder, quantizer, decoder.
 *
 * z = encoder(x), q = the quantizer's codes of z, y = decoder(q). Encoder and decoder are linear
 * layers with ReLU between them, the decoder's sizes those of the encoder backwards: where the
 * vectors' dimension is not that of the codes they are the projections around the quantizer.
 *
 * [Note: images] Convolutions as in van den Oord et al., Neural Discrete Representation Learning,
 * 2017: 4 x 4 with stride 2 that halve height and width, residual blocks (3 x 3, 1 x 1), 1 x 1 to d
 * channels; the decoder backwards, with transposed ones. Each position of the latent image is a
 * vector z of its own, position by position, image by image; x and y are [images, H, W, C], read as
 * one row of D = C 4^halvings elements for each position. So everything behind the encoder, and
 * every loss, is that of `images x positions` vectors: means over positions are means over images.
 *
 * Loss of a vector: rec |x - y|^2 plus the terms of its quantizer, with rec = 1 / D and w = 1 / d
 * (means over elements) or rec = w = 1 (sums). g is the gradient at q.
 *
 * CODES, a residual stack: r_0 = z, q_l = the code of level l nearest to r_l, r_(l+1) = r_l - q_l,
 * q = sum of q_l. Terms w (1 + beta) |r_l - q_l|^2: one unit of it moves codes to vectors, beta
 * (the commitment) vectors to codes; where codes are averages the former is left out. No gradient
 * passes through a subtracted code, and g passes once, by the estimator, from q to z. Groups are
 * equal parts of z with stacks of their own; shared ones have their codes in common (heads).
 * Spherical: parts of length 1 enter, codes have length 1. Orthogonal: a term over each codebook
 * (quantizer_vector.h). A temperature draws codes by their distances while training.
 *
 * MAPPED_CODES: the same with codes F A^T, F a fixed normal table, A learned (SimVQ, Zhu et al.,
 * Addressing Representation Collapse, 2024).
 *
 * PROJECTED: nothing in front of the decoder learns (Chiu et al., Self-supervised Learning with
 * Random-projection Quantizer for Speech Recognition, 2022). z = P norm(x), P a fixed normal matrix
 * without a bias, norm to mean 0 and variance 1 over the elements of x; each group of z takes the
 * code of the largest cosine among those of its own fixed normal table; no term. The decoder learns
 * from codes of length 1.
 *
 * SCALARS: every dimension is rounded to its levels (quantizer_scalar.h), no term. Of a stack
 * (ResidualFSQ, be it of one level) the input is clamped softly, level l rounds what is left in
 * units of L^-l, clamped and symmetric, and g passes once, through the soft clamp.
 *
 * SIGNS: a sign per dimension (quantizer_binary.h) times a scale, straight-through; terms w beta |z
 * - q|^2, e g_0 H(p_i) and - e g_d H(mean p) over the whole step, p the soft assignment; groups are
 * parts with an index, and entropies, of their own: of G groups their means. Binary spherical (BSQ,
 * Zhao et al., Image and Video Tokenization with Binary Spherical Quantization, 2024): all of z has
 * length 1; terms beta |z - q|^2 whatever w is, and entropies that are sums over groups (of H(p_i)
 * that is the entropy over all bits), with e / (inverse temperature) for e.
 *
 * [Note: row-sharded codes] Codes of CODES may stay with the owners of their rows
 * (shard/codebook.h). The quantizer's stage is then joint: in every level all ranks search
 * together, or draw, also those without a micro-batch, and a vector's code comes to its rank, where
 * backward finds it again. Backward leaves the codes' own gradients to the trainer, who makes them
 * of what `left` and `code` give. Indices, codes and all that follows are the same bits.
 *
 * VALUES: a list of learned values per dimension (latent quantization); terms w (1 + beta)
 * |z - q|^2, straight-through.
 *
 * [Note: f32 codes] Codes are f32 whatever the compute dtype; searches, residuals, losses and the
 * reconstruction are f32 or wider. Activations between layers have the compute dtype.
 */
#pragma once

#include "kernels/kernels.h"
#include "model/model.h"
#include "shard/codebook.h"

TESS_BEGIN_DECLS

enum { TESS_RQVAE_HIDDEN_MAX = 16, TESS_RQVAE_LEVEL_MAX = 64, TESS_RQVAE_VALUE_MAX = 4096 };

typedef enum tess_quantizer_kind {
    TESS_QUANTIZER_CODES,
    TESS_QUANTIZER_MAPPED_CODES,
    TESS_QUANTIZER_PROJECTED,
    TESS_QUANTIZER_SCALARS,
    TESS_QUANTIZER_SIGNS,
    TESS_QUANTIZER_VALUES,
} tess_quantizer_kind;

/** A convolutional encoder and decoder; channel_numel 0: vectors. */
typedef struct tess_rqvae_images {
    int64_t channel_numel, height, width; /* of the images */
    int64_t halving_numel;                /* of height and width */
    int64_t hidden_channel_numel;         /* of all layers between */
    int64_t residual_numel, residual_channel_numel;
} tess_rqvae_images;

/** Sizes and losses. Names in messages are those of section quantizer. */
typedef struct tess_rqvae_config {
    int64_t dim; /* D of the vectors; of images the share of a position */
    tess_rqvae_images images;
    int64_t code_dim;      /* d */
    const int64_t *hidden; /* [hidden_numel] sizes between them, as the encoder has them; borrowed
                              for the create call */
    int hidden_numel;      /* 0 .. TESS_RQVAE_HIDDEN_MAX */
    bool has_bias;
    bool is_sum; /* losses are sums over elements, not means */

    tess_quantizer_kind kind;
    int64_t code_numel; /* K of each codebook; kinds with codebooks */
    int level_numel;    /* 1 .. TESS_RQVAE_LEVEL_MAX */
    int group_numel;    /* divides code_dim; 0: 1 */
    bool is_shared;     /* groups have their codebooks in common */
    bool is_spherical;
    double commitment; /* beta */
    tess_estimator estimator;
    /* Codes follow moving averages that the trainer keeps: they have no gradient and no loss of
     * their own, and the optimizer leaves them alone. */
    bool is_averaged;
    bool is_sharded;           /* codes live with the owners of their rows and are searched there:
                                  tess_rqvae_use_books() */
    double orthogonal;         /* weight of that term, the mean over a level's codebooks; 0: none */
    double temperature;        /* of draws; 0: the nearest code */
    uint64_t seed;             /* of draws */
    const int64_t *axis_level; /* [code_dim] L of each dimension: SCALARS and VALUES; borrowed for
                                  the call */
    int axis_numel;
    bool is_stack;                         /* SCALARS: levels of a residual stack, be it of one */
    tess_level_rule rule;                  /* SCALARS that are none */
    double noise;                          /* SCALARS: probability of noise on a code */
    bool is_binary_spherical;              /* SIGNS: weights of BSQ; is_spherical too */
    double entropy, confidence, diversity; /* SIGNS: e, g_0 and g_d */
    double scale;               /* SIGNS that are not spherical: magnitude of q, above 0 */
    double inverse_temperature; /* SIGNS: beta of p */
} tess_rqvae_config;

/** Vectors that the encoder gives for a sample: 1, or the positions of an image. Local, pure. */
static inline int64_t tess_rqvae_position_numel(const tess_rqvae_images *i)
{
    return i->channel_numel > 0 ? (i->height >> i->halving_numel) * (i->width >> i->halving_numel)
                                : 1;
}
/** Elements of an image for each of its positions. Local, pure. */
static inline int64_t tess_rqvae_share_numel(const tess_rqvae_images *i)
{
    return i->channel_numel << 2 * i->halving_numel;
}

/** What a quantizer gives for a vector: indices, and what is counted of them. */
typedef struct tess_quantizer_shape {
    int group_numel;    /* parts of z */
    int index_numel;    /* indices of a vector: group x levels + level */
    int64_t code_numel; /* values of each: 0 .. code_numel - 1 */
    int64_t dim;        /* of what an index stands for: code_dim / group_numel */
    int book_numel;     /* codebooks, 0: there are none; of index i it is i % book_numel */
    int64_t mean_numel; /* mean p over a step: elements, 0: not wanted; [group_numel, 2^dim] */
} tess_quantizer_shape;

/** One micro-batch. Results go where they are wanted; host memory, there when the stream has passed
 * the call. */
typedef struct tess_vector_batch {
    int64_t vector_numel; /* of training: exactly the planned ones; positions of whole images */
    const float *x;       /* [vector_numel, D] f32, where kernels read it */
    /* Masked vectors: 0 in `valid`, TESS_NO_CODE in `own`, which holds i of every other vector i.
     * Their codes are TESS_NO_CODE, q = 0; they have no loss and no gradient. Where kernels read
     * them; NULL: none is masked, and valid_numel is not looked at. */
    const uint8_t *valid; /* [vector_numel] */
    const uint32_t *own;  /* [vector_numel] */
    /* With `valid`, of images: the same for the lines of a position's pixels, 2^halvings each:
     * lines [images, height, width / 2^halvings]. Of masked ones x is 0, and so is y. */
    const uint32_t *line;
    int64_t valid_numel;
    bool is_drawn;     /* of training: codes may be drawn and noisy */
    int64_t first_idx; /* with is_drawn: number of the first vector over the whole run */
    /* [indices, vector_numel] codes to decode: then x is not looked at but for its losses, and
     * nothing is searched. NULL: those of x. Evaluation alone. */
    const uint32_t *given;
    float *y;       /* [vector_numel, D] f32 out, or NULL: what the decoder makes of the codes */
    uint32_t *code; /* [indices, vector_numel] out, or NULL */
    double *square; /* [1 + indices, vector_numel] f64 out, or NULL: |x - y|^2, |r_i - q_i|^2 */
    float *latent;  /* [groups][vector_numel, d / groups] f32 out, or NULL: z, as it enters */
    int64_t latent_stride; /* elements between groups of `latent`, 0: contiguous */
    float *left; /* [indices, vector_numel, d / groups] f32 out, or NULL: r_i; where kernels work */
    /* The mean of p over a step of step_numel vectors: sums of p are added up in `mean_sum` where
     * that is given; else training wants what the whole sum gave, or NULL: the term is left out.
     * Masked ones do not count. */
    int64_t *mean_sum;        /* [mean_numel] in place, multiples of 2^-exponent */
    const double *mean_slope; /* [mean_numel], as of batch_entropy (quantizer_binary.h) */
    const double *mean_value; /* [1] f64, where kernels read it: H(mean p), of all groups */
    int64_t step_numel;
} tess_vector_batch;

/** Exponent of mean_sum: that of sums of `step_numel` probabilities. Local, pure. */
static inline int tess_rqvae_mean_exponent(int64_t step_numel)
{
    return tess_fixed_exponent(1.0f, step_numel);
}

/** Sizes of a quantizer, and whether it is one. Local, pure. @return TESS_E_CONFIG names the key */
TESS_MUST_CHECK tess_status tess_quantizer_shape_make(const tess_rqvae_config *config,
                                                      tess_quantizer_shape *out);
/** Whether encoder and decoder have sizes that they can have. Local, pure. @return TESS_E_CONFIG
 * names the key */
TESS_MUST_CHECK tess_status tess_rqvae_check_config(const tess_rqvae_config *config);
/**
 * Describe the model: fills `reg` (initialized, empty) and lays it out. Of `options` it reads
 * compute_dt, micro_batch (vectors, positions of images), thread_numel and kernels. Local.
 * @return TESS_E_CONFIG names the key of the run file; TESS_E_UNSUPPORTED a backend without
 * quantizers
 */
TESS_MUST_CHECK tess_status tess_rqvae_create(const tess_rqvae_config *config,
                                              const tess_model_options *options, tess_registry *reg,
                                              tess_model **out);
/** The registry's tensor of a codebook [K, d / groups]. Local. */
int tess_rqvae_codebook(const tess_model *model, int book_idx);
/** What codes that learn by gradients move by of their distance to a vector: the coefficient of
 * code_gradient (quantizer_vector.h) for losses times `grad_scale`. Local. */
float tess_rqvae_code_scale(const tess_model *model, float grad_scale);
/** Row-sharded codes: where stages search them, borrowed while the model is called. Local. */
void tess_rqvae_use_books(tess_model *model, tess_codebooks *books);
/** The registry's tensor of the learned values, and what they start as [sum of L] (Hsu et al.,
 * Disentanglement via Latent Quantization, 2023). Local. @return -1: there are none */
int tess_rqvae_values(const tess_model *model);
void tess_rqvae_values_start(const tess_model *model, float *value);

TESS_END_DECLS
