/** The tiny FLUX.1 of flux.md section 8 (or a like one): data by hash of names, batches, and the
 * same model in fp64. */
#pragma once

#include "model/flux.h"
#include "reference/flux_reference.h"
#include "support/stage_chain.h"

enum { FLUX_SAMPLE_MAX = 2 };

/** Value i of the tensor `name`: off + scale (2 u - 1), u a hash of both in [0, 1). */
float flux_hash_value(const char *name, int64_t i, double off, double scale);
/** Values of a parameter by its name and shape: weights sqrt(3 / in), biases and norms 0.1, lora_B
 * 0.1. `name` may have a prefix that the hash leaves out (none today). */
void flux_hash_fill(const char *name, int64_t rows, int64_t cols, float *out);

/** A choice of model. */
typedef struct flux_choice {
    tess_flux_config config;
    tess_dtype dt;
    int sample_numel; /* planned */
    int64_t height, width, text_numel;
    bool is_full, is_recomputed;
    int thread_numel;
    double dropout;
    const char *const
        *targets; /* modules with LoRA: whole names, or "*" and a suffix; NULL-ended */
    bool shares_a, is_dora;
    const tess_kernels *kernels;
    const tess_kernels *planned; /* table whose workspaces are planned; NULL: the CPU's */
    tess_adapter_start start;
    bool is_random;   /* the family's random rules instead of weights given */
    tess_format base; /* of linears with enough columns, when random; F32: as they come */
} flux_choice;

/** f32, 2 + 2 blocks of 4 heads x 16, guidance, one sample of 4 x 4 tokens and 8 of text, frozen.
 */
flux_choice flux_tiny(void);
/** The seven modules whose LoRA gradients section 8.3 lists. */
extern const char *const flux_golden_targets[];
extern const char *const flux_every_target[];

/** Registry and model alone. Local. */
tess_status flux_describe(const flux_choice *o, tess_registry *reg, tess_model **model);
/** A model ready to run; weights are those of the hash. */
stage_chain flux_open(const flux_choice *o);

/** A batch with memory of its own. */
typedef struct flux_inputs {
    tess_flux_batch batch;
    float *memory[10];
    int memory_numel;
} flux_inputs;

/** Samples `first` .. of the hash: sample 0 has the inputs of section 8 (t 0.75, guidance 3.5),
 * sample k those of names ending in ".k", other times and guidances. Weights 1 / (n C). */
flux_inputs flux_inputs_open(const flux_choice *o, int first, int sample_numel);
void flux_inputs_close(flux_inputs *x);

/** The same weights and inputs in fp64. */
typedef struct flux_twin {
    flux_reference f;
    double *memory[16 * FLUX_SAMPLE_MAX];
    int memory_numel;
    tape_node output[FLUX_SAMPLE_MAX], loss; /* loss: sum over samples */
} flux_twin;

/** Weights are those that the model computes with. */
void flux_twin_open(const flux_choice *o, stage_chain *c, const flux_inputs *x, flux_wrong wrong,
                    flux_twin *out);
void flux_twin_close(flux_twin *t);
