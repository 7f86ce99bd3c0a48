/** A load under way, for the files of the loader. */
#pragma once

#include "core/arith.h"
#include "core/stream.h"
#include "shard/loader.h"
#include "shard/runtime_priv.h"

TESS_BEGIN_DECLS

/** Tensors are made on the host whatever device they go to. */
typedef struct loader {
    tess_runtime *rt;
    const tess_load_request *q;
    const tess_kernels *kernels;
    tess_stream stream; /* of the host */
    tess_comm *world;   /* for host memory */
    tess_view work;     /* staging */
    bool is_device;
    tess_load_times times;
} loader;

/** Areas of staging for one tensor. */
enum { LOADER_SOURCE, LOADER_PLAIN, LOADER_ENCODED, LOADER_ABSMAX, LOADER_DERIVED, LOADER_SCRATCH };
enum { LOADER_AREA_NUMEL = LOADER_SCRATCH + 1 };

typedef struct staging {
    char *source;   /* as read, or generated f32 */
    float *plain;   /* f32 copy: trainable tensors, and sources that need widening */
    char *encoded;  /* parts, at the same distances as in the unit's byte string */
    float *absmax;  /* scratch of the quantizer */
    float *derived; /* f32 tensors made of it, in the order of loader_derived_at() */
    char *scratch;  /* of making them */
} staging;

/** Index of the `k`-th tensor that is made of `p`, -1: no more. */
int loader_derived_at(const tess_param *p, int k);
enum { LOADER_DERIVED_MAX = 5 };
/** Where it lies in staging. */
float *loader_derived_place(const tess_registry *reg, const tess_param *p, const staging *s, int k);
/** Bytes of the areas DERIVED and SCRATCH. */
TESS_MUST_CHECK tess_status loader_derived_size(const tess_registry *reg, const tess_param *p,
                                                size_t *derived_nbytes, size_t *scratch_nbytes);
/** Whether `p` is stored as what an adapter leaves of it. */
static inline bool loader_has_low_rank(const tess_param *p)
{
    return p->derived.low_rank != TESS_LOW_RANK_NONE;
}
/** Make A and B from the values in `plain`, and store in their place what they leave. Local. */
TESS_MUST_CHECK tess_status loader_take_low_rank(loader *l, const tess_param *p, const staging *s);
/** Make the lengths of the rows of `p`, which is encoded. Local. */
TESS_MUST_CHECK tess_status loader_take_lengths(loader *l, const tess_param *p, const staging *s);
/** Store values in the parameter's own format. Local. */
TESS_MUST_CHECK tess_status loader_encode(loader *l, const tess_param *p, const staging *s,
                                          tess_view values);
/** The places of a tensor's parts in its staging. */
void loader_parts_of(const tess_param *p, const staging *s, void *part[TESS_CODEC_PART_MAX]);
static inline size_t loader_up(size_t nbytes)
{
    return (size_t)tess_round_up((int64_t)nbytes, TESS_ARENA_ALIGN_NBYTES);
}

TESS_END_DECLS
