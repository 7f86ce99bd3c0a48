/**
 * Attention by cuDNN's graphs, through its backend C interface, opened with dlopen.
 *
 * [Note: packs] Documents of a pack are a batch of ragged sequences: offsets into the token rows
 * and lengths, computed on the device from doc_start by one small kernel. A plan is built for the
 * most documents a pack may have; places without a document have length 0 and lie behind the last
 * token (as Transformer Engine passes them). A pack of one document takes a plan without any of
 * this. Segments are a batch of equal lengths: no lengths, no offsets and no mask.
 *
 * [Note: row statistics] The library keeps log-sum-exp token by token in ragged graphs; kernels/
 * attention.h wants [heads, T]. A transposition of 4 bytes per token and head on both sides keeps
 * the contract, so that forward and backward may take different kernels.
 *
 * [Note: deterministic backward] The form without atomics stores all scores: 2 batch heads length^2
 * bytes. It runs over groups of key-value heads, as many as fit the limit; where not even one fits
 * (packs of many long documents), or the device has no such engine (ragged on sm_80), own kernels
 * take over. They do, too, where a pack has so many documents that starting them one after another
 * would take longer than own kernels do (is_worth in sdpa_covers.c).
 */
#pragma once

#include "core/stream.h"
#include "kernels/cuda_work.h"

TESS_BEGIN_DECLS

typedef struct tess_sdpa tess_sdpa;

enum { TESS_SDPA_REASON_NBYTES = 256, TESS_SDPA_DOCUMENT_MAX = 1024 };

/** What graphs depend on. Zero all of it before filling it in: compared as bytes. */
typedef struct tess_sdpa_case {
    int64_t batch_numel;  /* documents of a pack that one execution covers, or segments; else 1 */
    int64_t length_numel; /* of the longest document, or of each segment */
    int64_t dim;          /* of a head */
    int64_t head_numel, kv_head_numel; /* of the tensors, all of them */
    int64_t group_kv_numel;            /* key-value heads that one execution covers */
    int32_t is_packed, is_backward, is_deterministic;
    int32_t is_whole; /* segments: a token sees all of its own; else what comes before it */
} tess_sdpa_case;

typedef struct tess_sdpa_settings {
    int capability;         /* of the device, 10 * major + minor */
    int64_t document_max;   /* of a pack, at most TESS_SDPA_DOCUMENT_MAX */
    size_t work_max_nbytes; /* of the library's workspace: plans that need more are refused */
    bool is_deterministic;  /* of the backward; the forward always is */
    double execution_s;     /* of tess_cuda_work */
} tess_sdpa_settings;

/** The engine that a case gets. */
typedef struct tess_sdpa_engine {
    int64_t engine_idx;   /* global index of the engine; engines differ by architecture */
    int64_t engine_numel; /* configurations the heuristic offers */
    bool is_compiled;     /* false: only found, for want of a device */
    size_t work_nbytes;   /* 0 unless compiled */
} tess_sdpa_engine;

/**
 * Open cuDNN for the calling thread's device, or, with `device_json` (cuDNN's description of one),
 * for a device that is not there: then graphs are finalized and engines found, but nothing runs.
 * Local. @return TESS_E_UNSUPPORTED it is absent, too old or unusable, said in one line
 */
TESS_MUST_CHECK tess_status tess_sdpa_create(const tess_sdpa_settings *settings,
                                             const char *device_json, tess_sdpa **out);
/** NULL is fine. Local. */
void tess_sdpa_destroy(tess_sdpa **sdpa);
/** "cuDNN 9.19.0". */
const char *tess_sdpa_version(const tess_sdpa *sdpa);

/** Finalize the graph of a case and find its engine, without keeping anything. Local.
 * @return TESS_E_UNSUPPORTED with the library's words */
TESS_MUST_CHECK tess_status tess_sdpa_probe(tess_sdpa *sdpa, const tess_sdpa_case *c,
                                            tess_sdpa_engine *out);

/**
 * Build the plans of a shape, forward and backward; takes seconds. What cannot be planned is left
 * to own kernels, with the reason kept. Local. @return TESS_E_MEMORY
 */
TESS_MUST_CHECK tess_status tess_sdpa_plan(tess_sdpa *sdpa, const tess_attention_shape *shape);
/** Library workspace of all plans so far. */
size_t tess_sdpa_library_nbytes(const tess_sdpa *sdpa);
/** Memory for it, [tess_sdpa_library_nbytes] on the device, aligned to 256 bytes; borrowed. */
void tess_sdpa_library_set(tess_sdpa *sdpa, void *memory, size_t nbytes);

/**
 * Whether a plan covers this call; `why` says in one line why not, or with what. Never fails.
 */
bool tess_sdpa_covers(const tess_sdpa *sdpa, const tess_attention_shape *shape, int64_t window,
                      bool is_backward, char why[TESS_SDPA_REASON_NBYTES]);

/** Enqueue what tess_sdpa_covers() has confirmed. */
TESS_MUST_CHECK tess_status tess_sdpa_forward(tess_sdpa *sdpa, const tess_attention_args *a,
                                              tess_stream *s);
TESS_MUST_CHECK tess_status tess_sdpa_backward(tess_sdpa *sdpa,
                                               const tess_attention_backward_args *a,
                                               tess_stream *s);

/** Places of one execution's documents and their last end, in whole 16 bytes. */
static inline int64_t tess_sdpa_place_stride(int64_t chunk_numel)
{
    return (chunk_numel + 1 + 3) / 4 * 4;
}

/**
 * Offsets of documents for ragged tensors, from doc_start [T] on the device, a row for each chunk
 * of documents that an execution covers: [document_max / chunk, tess_sdpa_place_stride(chunk)].
 * Places behind the last document have length 0 and start at T. A pack with more documents than
 * `document_max` is the caller's mistake: what is behind them is left out.
 */
enum { TESS_SDPA_SCALE_MAX = 5 };
typedef struct tess_sdpa_offsets_args {
    const int32_t *doc_start;
    int64_t token_numel, document_max;
    int64_t chunk_numel;                  /* divides document_max */
    int32_t *length;                      /* the first `chunk` of a row */
    int32_t *offset[TESS_SDPA_SCALE_MAX]; /* the first `chunk` + 1 of a row */
    int32_t scale[TESS_SDPA_SCALE_MAX];   /* elements of a token's row */
    int scaled_numel;
} tess_sdpa_offsets_args;
TESS_MUST_CHECK tess_status tess_cuda_sdpa_offsets(const tess_sdpa_offsets_args *a, tess_stream *s);
/** dst [cols, rows] = src [rows, cols]^T, f32. */
TESS_MUST_CHECK tess_status tess_cuda_sdpa_transpose(const float *src, int64_t rows, int64_t cols,
                                                     float *dst, tess_stream *s);

TESS_END_DECLS
