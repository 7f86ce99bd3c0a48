/**
 * Attention over packed documents, causal with an optional sliding window, or over whole segments;
 * grouped queries; linear memory.
 *
 * Causal: token i sees tokens j with max(doc_start[i], i - window + 1) <= j <= i. With
 * `segment_numel` the tokens are segments of that many, one after another, and a token sees all of
 * its segment; the bits of a segment do not depend on the others. KV head h serves query heads
 * h*g .. h*g+g-1. Scores and softmax in f32; probabilities are rounded to dt before the
 * product with V, as the products take operands of dt; fixed order over j. `lse` is the natural log
 * of the sum of exponentials.
 */
#pragma once

#include "core/stream.h"
#include "core/view.h"

TESS_BEGIN_DECLS

typedef struct tess_attention_shape {
    tess_dtype dt;
    int64_t token_numel; /* T of the micro-batch (sequences one after another; doc_start separates
                            them) */
    int64_t head_numel, kv_head_numel, dim;
    int64_t longest_numel;  /* no token sees further back than this: sequence_length */
    int64_t document_numel; /* documents of the micro-batch as the host counted them, 0: unknown;
                               libraries that plan for a most need it */
    int64_t segment_numel;  /* 0: causal; else T is a multiple of it, and there are no documents */
} tess_attention_shape;

typedef struct tess_attention_args {
    tess_attention_shape shape;
    tess_view q;              /* [T, heads, D] dt */
    tess_view k, v;           /* [T, kv_heads, D] dt */
    const int32_t *doc_start; /* [T] first token of the document of token i; NULL with segments */
    int64_t window;           /* 0: none */
    float scale;              /* D^-0.5 */
    tess_view out;            /* [T, heads, D] dt */
    int64_t out_stride;       /* elements between tokens of out, 0: contiguous */
    float *lse;               /* [heads, T] f32 */
    tess_view work;           /* U8_OPAQUE, attention_work_nbytes() */
} tess_attention_args;

typedef struct tess_attention_backward_args {
    tess_attention_shape shape;
    tess_view q, k, v, out; /* as stored by the forward */
    int64_t out_stride;     /* of the forward */
    const float *lse;       /* [heads, T] */
    tess_view d_out;        /* [T, heads, D] dt */
    const int32_t *doc_start;
    int64_t window;
    float scale;
    tess_view d_q;      /* [T, heads, D] dt; must not alias */
    tess_view d_k, d_v; /* [T, kv_heads, D] dt; must not alias */
    tess_view work;
} tess_attention_backward_args;

TESS_MUST_CHECK tess_status tess_attention_check(const tess_attention_args *a);
TESS_MUST_CHECK tess_status tess_attention_backward_check(const tess_attention_backward_args *a);

TESS_END_DECLS
