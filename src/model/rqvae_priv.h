/** Body of an RQ-VAE, shared by its registration, its stage calls and its quantizers. */
#pragma once

#include "model/convolution_priv.h"
#include "model/perceptron_priv.h"
#include "model/rqvae.h"

TESS_BEGIN_DECLS

enum { TESS_RQVAE_ENCODER, TESS_RQVAE_QUANTIZER, TESS_RQVAE_DECODER, TESS_RQVAE_STAGE_NUMEL };
enum { TESS_RQVAE_TERM_MAX = TESS_MIX_TERM_MAX - 1 };
enum { TESS_RQVAE_HALVING_MAX = 8, TESS_RQVAE_RESIDUAL_MAX = 16 };

_Static_assert(TESS_RQVAE_HALVING_MAX + TESS_RQVAE_RESIDUAL_MAX + 1 <= TESS_CONVOLUTION_LAYER_MAX,
               "layers of an encoder");

typedef struct tess_rqvae tess_rqvae;

/** Views of a call, or of none while planning. R rows, T terms of the loss. */
typedef struct tess_rqvae_io {
    const tess_vector_batch *batch;
    bool is_training;
    tess_view x;        /* [R, D] f32: the batch */
    tess_view input;    /* [R, d] dt: of quantizer and decoder */
    tess_view output;   /* [R, d] dt: of encoder and quantizer; numel 0: not wanted again */
    tess_view term;     /* [T, R] f64: out of the quantizer, into the decoder */
    tess_view code;     /* [indices, R] u32 in dtype i32: saved by the quantizer */
    tess_view chosen;   /* [indices, R, d / groups] f32: codes of row-sharded ones, saved too */
    tess_view d_output; /* [R, d] dt */
    tess_view d_input;  /* [R, d] dt */
    float grad_scale;   /* 1 / T */
    double *loss_sum;
} tess_rqvae_io;

/** Terms of the loss that a quantizer has. */
typedef struct tess_quantizer_terms {
    int numel;   /* the first index_numel are |r_i - q_i|^2 of each vector */
    int of_rows; /* how many are of vectors; those behind them stand for the whole micro-batch, in
                    the row of its first vector, and count once for every vector */
    double weight[TESS_RQVAE_TERM_MAX];
} tess_quantizer_terms;

/** A quantizer between encoder and decoder: one file each. All are Local. */
typedef struct tess_quantizer_ops {
    /* Check the config (code_dim, level_numel and group_numel are sound) and fill `out`. */
    tess_status (*shape)(const tess_rqvae_config *c, tess_quantizer_shape *out);
    /* Of `m` the config, shape and level_weight are there. */
    void (*terms)(const tess_rqvae *m, tess_quantizer_terms *out);
    /* Register its tensors in a unit of its own. NULL: it has none. */
    tess_status (*add_tensors)(tess_rqvae *m, tess_registry *reg, int unit_idx);
    /* z in `input` to `code`; where `output` is wanted also that and `term`. */
    tess_status (*forward)(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io);
    /* Take part in the forward of other ranks, row-sharded; NULL: nobody is asked to. */
    tess_status (*attend)(const tess_rqvae *m);
    /* Codes in `code` to `output`. */
    tess_status (*decode)(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io);
    /* Gradients of its tensors, and d_input. */
    tess_status (*backward)(const tess_rqvae *m, tess_exec *ex, const tess_rqvae_io *io);
} tess_quantizer_ops;

const tess_quantizer_ops *tess_quantizer_ops_of(tess_quantizer_kind kind);
extern const tess_quantizer_ops tess_quantizer_of_codes, tess_quantizer_of_mapped_codes,
    tess_quantizer_of_projected, tess_quantizer_of_scalars, tess_quantizer_of_signs,
    tess_quantizer_of_values;

/** Encoder or decoder, by what the model is over. */
typedef union tess_rqvae_body {
    tess_perceptron vectors;
    tess_convolutions images;
} tess_rqvae_body;

typedef union tess_rqvae_saved {
    tess_perceptron_saved vectors;
    tess_convolutions_saved images;
} tess_rqvae_saved;

struct tess_rqvae {
    tess_rqvae_config config; /* without borrowed arrays */
    tess_dtype dt;
    const tess_kernels *kernels; /* sizes only; calls bring their own */
    int thread_numel;
    int64_t row_numel; /* of the planned micro-batch */
    tess_rqvae_body encoder, decoder;
    double reconstruction_weight, level_weight; /* of a vector's loss: rec and w */
    const tess_quantizer_ops *ops;
    tess_quantizer_shape shape;
    tess_quantizer_terms terms;
    tess_codebooks *books;             /* row-sharded codes; borrowed */
    int book_idx[TESS_RQVAE_TERM_MAX]; /* codes [K, d / groups], or tables */
    int map_idx[TESS_RQVAE_TERM_MAX];  /* MAPPED_CODES: A */
    int value_idx;                     /* VALUES */
    int32_t axis_level[TESS_LEVEL_DIM_MAX];
};

/** 2 w / T, of squared distances between vectors and codes. Local. */
static inline double tess_rqvae_level_scale(const tess_rqvae *m, float grad_scale)
{
    return 2.0 * m->level_weight * (double)grad_scale;
}

/** Run a kernel of the quantizers; while planning only count it. */
#define TESS_RQVAE_RUN(ex, op, args) TESS_EXEC_RUN_OF(ex, (ex)->kernels->quantizers, op, args)

/** Enqueue a copy of `src` to host memory where it is wanted. Local. */
TESS_MUST_CHECK tess_status tess_rqvae_give(const tess_exec *ex, void *host, tess_view src);
/** Register a trainable tensor. Local. */
TESS_MUST_CHECK tess_status tess_rqvae_add_param(tess_registry *reg, tess_param *p, int *idx);

/** Register the encoder or the decoder in a unit of its own. Local. */
TESS_MUST_CHECK tess_status tess_rqvae_add_body(tess_rqvae *m, const int64_t *hidden,
                                                tess_registry *reg, bool is_decoder);
/** As of tess_perceptron and tess_convolutions; views are rows or images. Local. */
TESS_MUST_CHECK tess_status tess_rqvae_body_take_saved(const tess_rqvae *m, const tess_exec *ex,
                                                       const tess_rqvae_body *body,
                                                       tess_carve *carve, tess_rqvae_saved *saved);
TESS_MUST_CHECK tess_status tess_rqvae_body_forward(const tess_rqvae *m, tess_exec *ex,
                                                    const tess_rqvae_body *body, tess_view x,
                                                    const tess_rqvae_saved *saved, tess_view y);
TESS_MUST_CHECK tess_status tess_rqvae_body_backward(const tess_rqvae *m, tess_exec *ex,
                                                     const tess_rqvae_body *body,
                                                     const tess_rqvae_saved *saved,
                                                     const tess_convolutions_gradients *g);

/** Row `idx` of an array with a row of R elements for each index or term. Local. */
static inline tess_view tess_rqvae_row(const tess_exec *ex, tess_view all, int idx)
{
    return tess_view_rows(all, idx, 1, ex->row_numel);
}

/** Columns of a group in rows of dimension d. Local. */
static inline tess_rows tess_rqvae_part(const tess_rqvae *m, const tess_exec *ex, tess_view v,
                                        int group_idx)
{
    return tess_rows_cols(tess_rows_of(v, ex->row_numel, m->config.code_dim),
                          group_idx * m->shape.dim, m->shape.dim);
}

/** One f32 row for each vector, as codes. Local. */
static inline tess_coded_rows tess_rqvae_own_rows(const tess_exec *ex, tess_view q, int64_t dim)
{
    return (tess_coded_rows){
        .codes = q.data, .row_numel = ex->row_numel, .dim = dim, .code_numel = ex->row_numel};
}

/** Rows of the vectors that are valid, as codes; the others have none. Local. */
static inline tess_coded_rows tess_rqvae_valid_rows(const tess_exec *ex, const tess_rqvae_io *io,
                                                    tess_view q, int64_t dim)
{
    tess_coded_rows rows = tess_rqvae_own_rows(ex, q, dim);
    rows.code = io->batch->own;
    return rows;
}

/** Vectors of the micro-batch that are valid. Local. */
static inline int64_t tess_rqvae_valid_numel(const tess_exec *ex, const tess_rqvae_io *io)
{
    return io->batch->valid != NULL ? io->batch->valid_numel : ex->row_numel;
}

/** Masked vectors lose their codes: code [numel, R]. Local. */
TESS_MUST_CHECK tess_status tess_rqvae_mask(const tess_exec *ex, const tess_rqvae_io *io,
                                            tess_view code);
/** core [R, part.cols] f32 = part; with norm.numel > 0 as unit vectors. Local. */
TESS_MUST_CHECK tess_status tess_rqvae_enter(const tess_exec *ex, const tess_rows *part,
                                             tess_view core, tess_view norm);
/** part = gradient d_core handed back through it. Local. */
TESS_MUST_CHECK tess_status tess_rqvae_enter_backward(const tess_exec *ex, tess_view core,
                                                      tess_view norm, tess_view d_core,
                                                      const tess_rows *part);
/** part = rows of q [R, part.cols] f32, rounded once; 0 of masked vectors. Local. */
TESS_MUST_CHECK tess_status tess_rqvae_leave(const tess_exec *ex, const tess_rqvae_io *io,
                                             tess_view q, const tess_rows *part);

/** Shape of a quantizer with levels for every dimension. Local. @return TESS_E_CONFIG */
TESS_MUST_CHECK tess_status tess_rqvae_axis_shape(const tess_rqvae_config *c,
                                                  tess_quantizer_shape *out);

/** Memory of a stage, by running its code in plan mode over `reg`. Local. */
TESS_MUST_CHECK tess_status tess_rqvae_plan_stage(const tess_rqvae *m, const tess_registry *reg,
                                                  int stage_idx, tess_stage *stage);

extern const tess_stage_ops tess_rqvae_stage_ops;

TESS_END_DECLS
