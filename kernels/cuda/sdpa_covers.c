/* Which calls compiled graphs can take, and why not the others. */
#include <stdio.h>

#include "core/arith.h"
#include "kernels/cuda/sdpa_library_priv.h"

enum { DIM_STEP = 8 };

static bool refuse(char why[TESS_SDPA_REASON_NBYTES], const char *text)
{
    (void)snprintf(why, TESS_SDPA_REASON_NBYTES, "%s", text);
    return false;
}

/* Reasons that lie in the call. */
static bool is_usable(const tess_sdpa *sdpa, const tess_attention_shape *shape, int64_t window,
                      char why[TESS_SDPA_REASON_NBYTES])
{
    if (shape->dt != TESS_BF16)
        return refuse(why, "cuDNN's attention takes bf16");
    if (window != 0 && window < shape->longest_numel)
        return refuse(why, "sliding windows are not in cuDNN's graphs here");
    if (shape->dim % DIM_STEP != 0)
        return refuse(why, "cuDNN's attention takes head dims that are multiples of 8");
    if (shape->document_numel == 0 && shape->segment_numel == 0)
        return refuse(why, "the number of documents is not known");
    if (tess_sdpa_is_packed(shape) && shape->document_numel > sdpa->settings.document_max) {
        (void)snprintf(why, TESS_SDPA_REASON_NBYTES,
                       "%" PRId64 " documents in the pack, cuDNN's plan is for %" PRId64,
                       shape->document_numel, sdpa->settings.document_max);
        return false;
    }
    const double last = (double)shape->token_numel * (double)shape->head_numel * (double)shape->dim;
    if (last > (double)INT32_MAX)
        return refuse(why, "offsets of cuDNN's ragged tensors have 32 bits");
    return true;
}

static int64_t execution_numel(const tess_sdpa_compiled *p, const tess_attention_shape *shape)
{
    const int64_t chunk_numel =
        p->c.is_packed ? tess_ceil_div(shape->document_numel, p->c.batch_numel) : 1;
    return chunk_numel * (p->c.kv_head_numel / p->c.group_kv_numel);
}

/* [Note: many executions] What one execution takes beside its products does not shrink with its
 * documents, all products of a pack do. Rates are estimates for sm_90, not measured: the library's
 * of its data sheets, own kernels at half of it. */
static bool is_worth(const tess_sdpa *sdpa, const tess_sdpa_compiled *p,
                     const tess_attention_shape *shape)
{
    static const double LIBRARY_FLOP_PER_S = 450e12, OWN_FLOP_PER_S = 225e12;
    const double heads = (double)(shape->head_numel * shape->dim);
    const int64_t document_numel = p->c.is_packed ? TESS_MAX(shape->document_numel, 1) : 1;
    const double length = (double)shape->token_numel / (double)document_numel;
    const double flop = (p->c.is_whole ? 10.0 : 5.0) * heads * (double)shape->token_numel *
                        TESS_MIN(length, (double)p->c.length_numel); /* of the backward */
    const double more_s = (double)(execution_numel(p, shape) - 1) * sdpa->settings.execution_s;
    return more_s <= flop / OWN_FLOP_PER_S - flop / LIBRARY_FLOP_PER_S;
}

bool tess_sdpa_covers(const tess_sdpa *sdpa, const tess_attention_shape *shape, int64_t window,
                      bool is_backward, char why[TESS_SDPA_REASON_NBYTES])
{
    if (!is_usable(sdpa, shape, window, why))
        return false;
    const tess_sdpa_case c =
        tess_sdpa_case_of(sdpa, shape, tess_sdpa_is_packed(shape), is_backward);
    const tess_sdpa_compiled *p = tess_sdpa_find(sdpa, &c);
    if (p == NULL)
        return refuse(why, "cuDNN has no plan for this shape");
    if (p->refusal[0] != '\0')
        return refuse(why, p->refusal);
    if (p->engine.work_nbytes > sdpa->library_work_nbytes)
        return refuse(why, "cuDNN's workspace was not given");
    if (!is_worth(sdpa, p, shape)) {
        (void)snprintf(why, TESS_SDPA_REASON_NBYTES,
                       "%" PRId64 " documents take %" PRId64
                       " executions of cuDNN, own kernels are faster",
                       shape->document_numel, execution_numel(p, shape));
        return false;
    }
    char chunk[64] = "";
    if (p->c.is_packed && p->c.batch_numel < sdpa->settings.document_max)
        (void)snprintf(chunk, sizeof chunk, " of %" PRId64 " document%s", p->c.batch_numel,
                       p->c.batch_numel == 1 ? "" : "s");
    (void)snprintf(why, TESS_SDPA_REASON_NBYTES,
                   "%s, engine %" PRId64 ", %" PRId64 " of %" PRId64 " key-value heads%s at a time",
                   sdpa->version, p->engine.engine_idx, p->c.group_kv_numel, p->c.kv_head_numel,
                   chunk);
    return true;
}
