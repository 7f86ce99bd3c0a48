/**
 * A model on one rank without the runtime: lays out a registry, owns every buffer, runs all stages.
 *
 * Independent of plan, schedule and communicators, so that a failure here is one of the model or
 * its kernels.
 */
#pragma once

#include "core/pool.h"
#include "format/peft.h"
#include "model/model.h"

TESS_BEGIN_DECLS

/** Choices of one run. */
typedef struct tess_run_options {
    tess_dtype compute_dt;
    bool is_full;
    bool is_recomputed; /* forward of a stage is repeated before its backward, `saved` is shared */
    int lora_rank;
    double lora_alpha;
    bool has_head_lora;
    const tess_peft_spec *spec; /* decides on adapters and saved modules; NULL: the four above */
    const char *lora_suffix;    /* only modules that end in this; NULL: all */
    double dropout;
    tess_codec base;   /* frozen linears */
    tess_codec source; /* everything else that is frozen */
    int thread_numel;
    int64_t sequence_length, micro_batch;
    uint64_t seed;
    const tess_kernels *kernels; /* NULL: tess_kernels_cpu */
} tess_run_options;

/** Value of a parameter: fills [numel] f32. */
typedef void (*tess_run_value)(void *arg, const tess_param *param, float *value);

typedef struct tess_run_model {
    tess_run_options options;
    tess_registry reg;
    tess_model *model;
    tess_pool *pool;
    tess_host_device device;
    tess_stream stream;
    char **frozen;    /* per unit */
    char **trainable; /* per unit: compute copy */
    float **master;   /* per unit: f32 */
    float **grad;     /* per unit: of one micro-batch */
    float **grad_sum; /* per unit: of the step */
    float **moment1, **moment2;
    char **output; /* per stage */
    char **saved;  /* per stage; all the same when recomputed */
    char *work;
    char *d_ping, *d_pong;
    size_t output_max_nbytes, saved_max_nbytes, work_max_nbytes;
} tess_run_model;

/** Local. The caller destroys it. */
TESS_MUST_CHECK tess_status tess_run_model_create(const tess_llm_config *config,
                                                  const tess_run_options *options,
                                                  tess_run_model **out);
void tess_run_model_destroy(tess_run_model **run);
/** Set every parameter; frozen ones are encoded in their codec. Local. */
TESS_MUST_CHECK tess_status tess_run_model_fill(tess_run_model *run, tess_run_value value,
                                                void *arg);
/**
 * Forward and backward of one step: gradients of the micro-batches are summed in order. Local.
 * @param[in]  batch     [batch_numel]
 * @param[in]  number    [batch_numel] global micro-batch numbers
 * @param[out] loss_sum  [batch_numel] fp64 loss sums
 */
TESS_MUST_CHECK tess_status tess_run_model_step(tess_run_model *run, const tess_token_batch *batch,
                                                const int64_t *number, int batch_numel,
                                                double *loss_sum);
/** Forward in evaluation. Local. */
TESS_MUST_CHECK tess_status tess_run_model_eval(tess_run_model *run, const tess_token_batch *batch,
                                                double *loss_sum);
/** Logits [V] f32 of one row. Local. */
TESS_MUST_CHECK tess_status tess_run_model_logits(tess_run_model *run,
                                                  const tess_token_batch *batch, int64_t row_idx,
                                                  float *logits);
/** Clip by global norm, AdamW on the masters, round to the compute copies. @param step from 1.
 * Local. */
TESS_MUST_CHECK tess_status tess_run_model_adamw(tess_run_model *run, int64_t step, double lr,
                                                 double clip, double weight_decay, double *norm);
/** Summed gradient of a parameter, NULL when there is no trainable one of that name. Local. */
const float *tess_run_model_grad(const tess_run_model *run, const char *name, int64_t *numel);

TESS_END_DECLS
