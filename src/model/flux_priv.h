/**
 * Body of the FLUX.1 family, shared by its registration and its stages.
 *
 * Stage 0 embeds, stages 1 .. D are double blocks, D + 1 .. D + E single blocks, the last one is
 * norm, projection and loss. Legend: B samples, T text and n image tokens each, S = T + n, N tokens
 * of one stream, H hidden, D head dim.
 *
 * [Note: joint and split rows] Between stages and in attention the rows of a sample lie together,
 * text before image: joint rows. The linears of a double block differ by stream, so they see split
 * rows: all samples' text rows, then all samples' image rows. A linear then runs once over all of a
 * stream's rows: a stored weight is decoded once per product and not once per sample, which is what
 * counts at small images. Norms, gates and rotations read one order and write the other; only v,
 * the mixed values and their gradients are copied, 4 H of some 40 H elements that a row moves, and
 * with one sample not even they: joint and split rows are then the same rows.
 */
#pragma once

#include "model/flux.h"
#include "model/layers_priv.h"

TESS_BEGIN_DECLS

enum { TESS_FLUX_TEXT, TESS_FLUX_IMAGE, TESS_FLUX_STREAM_NUMEL };

/** linear_2(silu(linear_1(x))). */
typedef struct tess_flux_embedder {
    tess_linear linear_1, linear_2;
} tess_flux_embedder;

enum { TESS_FLUX_TIME, TESS_FLUX_GUIDANCE, TESS_FLUX_POOLED, TESS_FLUX_EMBEDDER_NUMEL };

/** One stream of a double block. */
typedef struct tess_flux_half {
    tess_linear modulation; /* [6 H, H]: shift, scale, gate of attention, then of the MLP */
    tess_linear q, k, v, out;
    tess_norm q_norm, k_norm;
    tess_linear up, down;
} tess_flux_half;

typedef struct tess_flux_double {
    tess_flux_half half[TESS_FLUX_STREAM_NUMEL];
} tess_flux_double;

typedef struct tess_flux_single {
    tess_linear modulation; /* [3 H, H]: shift, scale, gate */
    tess_linear q, k, v, up;
    tess_norm q_norm, k_norm;
    tess_linear down; /* [H, 5 H]: of mixed values, then of the MLP's */
} tess_flux_single;

typedef struct tess_flux_final {
    tess_linear modulation; /* [2 H, H]: scale, shift */
    tess_linear out;
} tess_flux_final;

typedef struct tess_flux {
    tess_flux_config config;
    tess_flux_shape shape; /* planned */
    tess_dtype dt;
    const tess_kernels *kernels; /* sizes only; calls bring their own */
    int thread_numel;
    int64_t hidden_numel;
    float dropout;
    tess_linear latent_in, text_in; /* x_embedder, context_embedder */
    tess_flux_embedder embedder[TESS_FLUX_EMBEDDER_NUMEL];
    tess_flux_double *double_block; /* owned */
    tess_flux_single *single_block; /* owned */
    tess_flux_final final;
    int double_numel, single_numel;
    bool
        embedders_learn; /* something of `embedder`: gradients of the modulation input are wanted */
    bool *stage_learns;  /* [stages] something of the stage beside `embedder`; owned */
} tess_flux;

static inline int tess_flux_stage_numel(const tess_flux *m)
{
    return m->double_numel + m->single_numel + 2;
}

/** What passes between stages. */
typedef struct tess_flux_edge {
    tess_view h; /* [B, S, H] dt, joint; numel 0: absent */
    tess_view s; /* [B, H] dt: silu of the embedded time, guidance and pooled text */
} tess_flux_edge;

/** One stage call, or a plan of it. */
typedef struct tess_flux_call {
    const tess_flux *m;
    tess_exec *ex;
    const tess_flux_batch *batch;              /* sizes alone where nothing is computed */
    int64_t sample_numel;                      /* B */
    int64_t row_numel[TESS_FLUX_STREAM_NUMEL]; /* T, n */
    int64_t token_numel;                       /* S */
    tess_flux_edge input, output, d_output, d_input;
    tess_carve *keep; /* what backward reads: `saved`, or `work` where there is no backward */
    bool wants_d_h;   /* something below learns from the gradient of input.h */
    bool wants_d_s;   /* the embedders learn */
} tess_flux_call;

/* ---- rows ---- */

/** Split rows of a stream out of [B S, cols]. Local. */
tess_view tess_flux_split(const tess_flux_call *c, tess_view v, int stream, int64_t cols);
/** Joint rows of a stream out of [B, S, cols], as ops over samples take them. Local. */
tess_sample_rows tess_flux_joint(const tess_flux_call *c, tess_view v, int stream, int64_t cols);
/** [B, N] rows one after the other. Local. */
tess_sample_rows tess_flux_rows(int64_t row_numel, const tess_rows *rows);
/** Copy between split rows of a stream and the joint rows they are. Local. */
TESS_MUST_CHECK tess_status tess_flux_to_joint(const tess_flux_call *c, int stream, tess_rows split,
                                               tess_rows joint);
TESS_MUST_CHECK tess_status tess_flux_from_joint(const tess_flux_call *c, int stream,
                                                 tess_rows joint, tess_rows split);
/** Split rows of a stream: with one sample those of `joint` themselves, else from `carve`. Local.
 */
TESS_MUST_CHECK tess_status tess_flux_take_split(const tess_flux_call *c, int stream,
                                                 tess_view joint, tess_carve *carve, int64_t cols,
                                                 tess_view *out);
static inline int64_t tess_flux_stream_numel(const tess_flux_call *c, int stream)
{
    return c->sample_numel * c->row_numel[stream];
}

/* ---- groups ---- */

/** Input and adapters' activations of a group; see tess_group_take_input(). Local. */
TESS_MUST_CHECK tess_status tess_flux_take_input(const tess_flux_call *c, const tess_group *group,
                                                 int64_t row_numel, bool wants_x, tess_carve *carve,
                                                 tess_group_input *in);
/** Put `x` into the input of a group: by name, or where the backend wants it beside the adapters'
 * activations, as a copy. Local. */
TESS_MUST_CHECK tess_status tess_flux_give_input(const tess_flux_call *c, tess_rows x,
                                                 tess_group_input *in);

/* ---- modulation ---- */

/** Shifts, scales and gates of the samples. */
typedef struct tess_flux_factors {
    const tess_linear *linear;
    tess_group_input in; /* x is the modulation input; u */
    tess_view value;     /* [B, stride] dt */
    tess_view gradient;  /* [B, stride] dt, backward; numel 0: not wanted */
    int64_t stride;      /* of a sample: H times their number */
} tess_flux_factors;

TESS_MUST_CHECK tess_status tess_flux_factors_take(const tess_flux_call *c,
                                                   const tess_linear *linear, tess_carve *carve,
                                                   tess_flux_factors *f);
TESS_MUST_CHECK tess_status tess_flux_factors_forward(const tess_flux_call *c,
                                                      tess_flux_factors *f);
/** Whether gradients of the factors are wanted. Local. */
bool tess_flux_factors_learn(const tess_flux_call *c, const tess_linear *linear);
/** Room for the gradients where they are wanted. Local. */
TESS_MUST_CHECK tess_status tess_flux_factors_open(const tess_flux_call *c, tess_flux_factors *f);
/** From their gradients to those of the linear, and d_input.s += those of the modulation input.
 * Local. */
TESS_MUST_CHECK tess_status tess_flux_factors_close(const tess_flux_call *c, tess_flux_factors *f);

/** A norm under modulation, as backward needs it. */
typedef struct tess_flux_norm {
    tess_view mean, inv; /* [B N] f32 */
} tess_flux_norm;

TESS_MUST_CHECK tess_status tess_flux_norm_take(int64_t row_numel, tess_carve *carve,
                                                tess_flux_norm *norm);

/** One modulated norm: rows of a stream, and the factors' columns (in units of H). */
typedef struct tess_flux_modulated {
    const tess_flux_factors *factors;
    int shift_idx, scale_idx;
    int64_t row_numel; /* of a sample */
    tess_flux_norm norm;
    tess_sample_rows x;
} tess_flux_modulated;

TESS_MUST_CHECK tess_status tess_flux_modulate(const tess_flux_call *c,
                                               const tess_flux_modulated *m, tess_sample_rows y);
/** d_x = residual + gradient; d_x and residual numel 0: not wanted, none. Local. */
TESS_MUST_CHECK tess_status tess_flux_modulate_backward(const tess_flux_call *c,
                                                        const tess_flux_modulated *m,
                                                        tess_sample_rows d_y,
                                                        tess_sample_rows residual,
                                                        tess_sample_rows d_x);

/** One gate: y = x + gate f. */
typedef struct tess_flux_gated {
    const tess_flux_factors *factors;
    int gate_idx;
    int64_t row_numel;
    tess_sample_rows f;
} tess_flux_gated;

TESS_MUST_CHECK tess_status tess_flux_gate(const tess_flux_call *c, const tess_flux_gated *g,
                                           tess_sample_rows x, tess_sample_rows y);
TESS_MUST_CHECK tess_status tess_flux_gate_backward(const tess_flux_call *c,
                                                    const tess_flux_gated *g, tess_sample_rows d_y,
                                                    tess_sample_rows d_f);

/* ---- attention ---- */

/** One projection on its way into attention. */
typedef struct tess_flux_turn {
    const tess_norm *norm;
    int64_t first_row, row_numel; /* of a sample, and of the tables of angles */
    tess_sample_rows x;           /* as projected */
} tess_flux_turn;

TESS_MUST_CHECK tess_status tess_flux_turn_forward(const tess_flux_call *c, const tess_flux_turn *t,
                                                   tess_sample_rows y);
TESS_MUST_CHECK tess_status tess_flux_turn_backward(const tess_flux_call *c,
                                                    const tess_flux_turn *t, tess_sample_rows d_y,
                                                    tess_sample_rows d_x);

/** Operands of attention over the samples, joint rows. */
typedef struct tess_flux_mix {
    tess_view q, k, v; /* [B S, H] dt, q and k rotated */
    tess_rows mixed;   /* [B S, H] dt */
    tess_view lse;     /* [heads, B S] f32 */
} tess_flux_mix;

TESS_MUST_CHECK tess_status tess_flux_mix_forward(const tess_flux_call *c, const tess_flux_mix *x);
/** @param[in] d_mixed [B S, H] dt  @param[out] d [B S, H] dt: of q, k, v. Local. */
TESS_MUST_CHECK tess_status tess_flux_mix_backward(const tess_flux_call *c, const tess_flux_mix *x,
                                                   tess_view d_mixed, const tess_view d[3]);

/* ---- activations and sums ---- */

TESS_MUST_CHECK tess_status tess_flux_activate(const tess_flux_call *c, tess_activation kind,
                                               tess_rows x, tess_rows y);
TESS_MUST_CHECK tess_status tess_flux_activate_backward(const tess_flux_call *c,
                                                        tess_activation kind, tess_rows x,
                                                        tess_rows d_y, tess_rows d_x);
/** out = a + b. Local. */
TESS_MUST_CHECK tess_status tess_flux_add(const tess_flux_call *c, tess_view a, tess_view b,
                                          tess_view out);
/** A contiguous copy of the same elements. Local. */
TESS_MUST_CHECK tess_status tess_flux_copy(const tess_flux_call *c, tess_view dst, tess_view src);

/* ---- stages ---- */

TESS_MUST_CHECK tess_status tess_flux_embed_forward(const tess_flux_call *c);
TESS_MUST_CHECK tess_status tess_flux_embed_backward(const tess_flux_call *c);
TESS_MUST_CHECK tess_status tess_flux_double_forward(const tess_flux_call *c,
                                                     const tess_flux_double *block);
TESS_MUST_CHECK tess_status tess_flux_double_backward(const tess_flux_call *c,
                                                      const tess_flux_double *block);
TESS_MUST_CHECK tess_status tess_flux_single_forward(const tess_flux_call *c,
                                                     const tess_flux_single *block);
TESS_MUST_CHECK tess_status tess_flux_single_backward(const tess_flux_call *c,
                                                      const tess_flux_single *block);
/** Loss, or velocity in TESS_CALL_LOGITS. */
TESS_MUST_CHECK tess_status tess_flux_final_forward(const tess_flux_call *c);
TESS_MUST_CHECK tess_status tess_flux_final_backward(const tess_flux_call *c);

/** Memory of stage `stage_idx`, by running its code in plan mode over `reg`. Local. */
TESS_MUST_CHECK tess_status tess_flux_plan_stage(const tess_flux *m, const tess_registry *reg,
                                                 int stage_idx, tess_stage *stage);

extern const tess_stage_ops tess_flux_stage_ops;

TESS_END_DECLS
