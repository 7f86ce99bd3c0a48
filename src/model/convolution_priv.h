/**
 * Convolutions on images one after the other, with ReLU in front of every layer but the first.
 *
 * Images are [B, H, W, C] in the compute dtype, B = row_numel of the call / the stack's positions.
 * A layer is one convolution, or a residual block: x + second(relu(first(relu(x)))). Products are
 * those of linear layers over patches (kernels/im2col.h).
 */
#pragma once

#include "model/layers_priv.h"

TESS_BEGIN_DECLS

enum { TESS_CONVOLUTION_LAYER_MAX = 32 };

/** How a convolution changes the size of an image. */
typedef enum tess_convolution_kind {
    TESS_CONVOLUTION_POINT, /* 1 x 1 */
    TESS_CONVOLUTION_SAME,  /* 3 x 3, pad 1 */
    TESS_CONVOLUTION_DOWN,  /* 4 x 4, stride 2, pad 1: half of it */
    TESS_CONVOLUTION_UP,    /* the transposed one of DOWN: twice of it */
} tess_convolution_kind;

typedef struct tess_convolution {
    tess_convolution_kind kind;
    /* POINT, SAME, DOWN: [C_out, k k C_in]. UP: [k k C_out, C_in], no bias of its own. */
    tess_linear linear;
    int up_bias_idx;             /* UP: [C_out], -1: none */
    int64_t in_numel, out_numel; /* C_in, C_out */
    int64_t height, width;       /* of its input */
    int64_t out_height, out_width;
} tess_convolution;

typedef struct tess_convolution_layer {
    tess_convolution first, second; /* `second` of a residual block */
    bool is_residual;
    bool has_relu; /* in front */
} tess_convolution_layer;

typedef struct tess_convolutions {
    tess_convolution_layer layer[TESS_CONVOLUTION_LAYER_MAX];
    int layer_numel;        /* at least 1 */
    int64_t position_numel; /* rows of the call for each image */
} tess_convolutions;

/** What backward reads beside the input; before ReLU. */
typedef struct tess_convolutions_saved {
    tess_view hidden[TESS_CONVOLUTION_LAYER_MAX]; /* what each layer but the last gave */
    tess_view inner[TESS_CONVOLUTION_LAYER_MAX];  /* of residual blocks: what `first` gave */
} tess_convolutions_saved;

/** A convolution without tensors yet: sizes of its product and of its output. Local, pure. */
tess_convolution tess_convolution_make(tess_convolution_kind kind, int64_t in_numel,
                                       int64_t out_numel, int64_t height, int64_t width);
/** Carve them; the same order in forward and backward. Local. */
TESS_MUST_CHECK tess_status tess_convolutions_take_saved(const tess_exec *ex,
                                                         const tess_convolutions *c,
                                                         tess_carve *carve,
                                                         tess_convolutions_saved *saved);
/** @param[in] x images dt  @param[out] y images dt or f32; numel 0: only `saved`. Local. */
TESS_MUST_CHECK tess_status tess_convolutions_forward(tess_exec *ex, const tess_convolutions *c,
                                                      tess_view x,
                                                      const tess_convolutions_saved *saved,
                                                      tess_view y);
/** Operands of a backward pass. */
typedef struct tess_convolutions_gradients {
    tess_view x;   /* images dt, as of the forward */
    tess_view d_y; /* images dt */
    tess_view d_x; /* images dt out; numel 0: not wanted */
} tess_convolutions_gradients;

/** Gradients of all weights and biases, and of the input. Local. */
TESS_MUST_CHECK tess_status tess_convolutions_backward(tess_exec *ex, const tess_convolutions *c,
                                                       const tess_convolutions_saved *saved,
                                                       const tess_convolutions_gradients *g);

TESS_END_DECLS
