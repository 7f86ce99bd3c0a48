/**
 * Reverse-mode differentiation of matrix programs in fp64: the oracle of whole models.
 *
 * A node is a matrix [rows, cols]; ops append nodes, tape_backward() walks them in reverse. One
 * loop nest per op, no rounding, nothing shared with the kernels.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

typedef struct tape tape;

/** A node by number. */
typedef int tape_node;

tape *tape_create(void);
void tape_destroy(tape *t);
int64_t tape_rows(const tape *t, tape_node x);
int64_t tape_cols(const tape *t, tape_node x);
/** [rows, cols], to be filled after creation for leaves. */
double *tape_value(const tape *t, tape_node x);
/** Gradient after tape_backward(). */
const double *tape_grad(const tape *t, tape_node x);

tape_node tape_leaf(tape *t, int64_t rows, int64_t cols);
/** x w^T. */
tape_node tape_linear(tape *t, tape_node x, tape_node w);
tape_node tape_add(tape *t, tape_node a, tape_node b);
/** x + row, row [1, cols]. */
tape_node tape_add_row(tape *t, tape_node x, tape_node row);
/** x (offset + row). */
tape_node tape_mul_row(tape *t, tape_node x, tape_node row, double offset);
tape_node tape_scale(tape *t, tape_node x, double factor);
tape_node tape_layer_norm(tape *t, tape_node x, double eps);
/** RMSNorm of heads as wide as w [1, dim]. */
tape_node tape_rms_heads(tape *t, tape_node x, tape_node w, double eps);
/** Rotation of every head of `dim` elements; tables [rows, dim / 2], kept by the caller. */
typedef struct tape_turn {
    const double *cosine, *sine;
    int64_t dim;
    bool is_half_split;
} tape_turn;
tape_node tape_rotate(tape *t, tape_node x, const tape_turn *turn);
/** Whole attention of q, k, v [rows, heads * dim]. */
tape_node tape_attention(tape *t, const tape_node qkv[3], int64_t head_numel);
tape_node tape_gelu_tanh(tape *t, tape_node x);
tape_node tape_silu(tape *t, tape_node x);
tape_node tape_slice_rows(tape *t, tape_node x, int64_t first, int64_t numel);
tape_node tape_slice_cols(tape *t, tape_node x, int64_t first, int64_t numel);
tape_node tape_join_rows(tape *t, tape_node a, tape_node b);
tape_node tape_join_cols(tape *t, tape_node a, tape_node b);
/** sum over rows of weight[r] |y - target|^2, [1, 1]; arrays kept by the caller. */
tape_node tape_square_error(tape *t, tape_node y, const double *target, const double *weight);
/** Gradients of sum(d_y y); d_y is as large as y. */
void tape_backward(tape *t, tape_node y, const double *d_y);
