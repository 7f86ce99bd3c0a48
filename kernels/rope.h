/** Rotary embedding, half split: element i pairs with i + D/2; in place; the inverse is the
 * backward. */
#pragma once

#include "core/stream.h"
#include "core/view.h"

TESS_BEGIN_DECLS

typedef struct tess_rope_args {
    tess_view x; /* [T, heads, D] dt, in place */
    int64_t token_numel, head_numel, dim;
    const int32_t *positions; /* [T], each in [0, table_rows) */
    const float *cos_table;   /* [table_rows, D/2] f32 holding values of the compute dtype */
    const float *sin_table;
    int64_t table_rows;
    bool inverse; /* rotate by the negative angle */
} tess_rope_args;

TESS_MUST_CHECK tess_status tess_rope_check(const tess_rope_args *a);

TESS_END_DECLS
