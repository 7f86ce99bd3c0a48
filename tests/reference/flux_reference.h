/** The FLUX.1 transformer in fp64 on a tape, with a switch for every convention that
 * implementations get wrong. */
#pragma once

#include "reference/tape.h"

typedef enum flux_wrong {
    FLUX_RIGHT,
    FLUX_HALF_SPLIT,    /* pairs (i, i + D / 2) */
    FLUX_FINAL_SWAPPED, /* shift before scale at the end */
    FLUX_MSA_SWAPPED,   /* scale before shift in front of attention, double blocks */
    FLUX_ALL_SWAPPED,   /* in front of every layer of double blocks */
    FLUX_SINE_FIRST,
    FLUX_NO_THOUSAND,
    FLUX_IMAGE_FIRST, /* image rows before text rows in double blocks, angles as they were */
    FLUX_MLP_FIRST,   /* MLP before attention in the single blocks' proj_out */
    FLUX_WRONG_NUMEL
} flux_wrong;

enum { FLUX_TRACE_MAX = 64, FLUX_TENSOR_MAX = 512 };

/** One tensor by name. */
typedef struct flux_tensor {
    char name[160];
    tape_node node;
} flux_tensor;

typedef struct flux_reference {
    tape *t;
    flux_tensor tensor[FLUX_TENSOR_MAX]; /* leaves that the caller adds */
    int tensor_numel;
    double lora_scale;
    int double_numel, single_numel;
    int64_t head_numel, head_dim;
    bool has_guidance;
    flux_wrong wrong;
    tape_node trace[FLUX_TRACE_MAX]; /* temb, image and text rows embedded, then each double block's
                                        image and text, each single block's rows, the output */
    int trace_numel;
} flux_reference;

/** One sample's inputs; arrays are kept by the caller while the tape is used. */
typedef struct flux_sample {
    int64_t image_numel, text_numel, channels, text_dim, pooled_dim;
    const double *latent, *text, *pooled;
    const double *time, *guidance; /* [256] */
    const double *cosine, *sine;   /* [T + n, head_dim / 2] */
    const double *target, *weight; /* [n, channels], [n] */
} flux_sample;

/** A leaf of that name; biases and norms are rows. */
tape_node flux_reference_add(flux_reference *f, const char *name, int64_t rows, int64_t cols);
/** -1: there is none. */
tape_node flux_reference_find(const flux_reference *f, const char *name);
/** Velocity [n, channels] of one sample; a module with lora_A and lora_B takes them. */
tape_node flux_reference_run(flux_reference *f, const flux_sample *s);
