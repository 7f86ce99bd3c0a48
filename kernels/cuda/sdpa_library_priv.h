/** cuDNN's functions, found with dlopen, and graphs built with them. Host code of sdpa*.c only. */
#pragma once

#include <cudnn.h>

#include "kernels/cuda/sdpa_priv.h"

TESS_BEGIN_DECLS

/* X(name, arguments) of every function used */
#define TESS_CUDNN_LIST(X)                                                                         \
    X(GetVersion, size_t, (void))                                                                  \
    X(GetErrorString, const char *, (cudnnStatus_t))                                               \
    X(GetLastErrorString, void, (char *, size_t))                                                  \
    X(Create, cudnnStatus_t, (cudnnHandle_t *))                                                    \
    X(Destroy, cudnnStatus_t, (cudnnHandle_t))                                                     \
    X(SetStream, cudnnStatus_t, (cudnnHandle_t, cudaStream_t))                                     \
    X(BackendCreateDescriptor, cudnnStatus_t,                                                      \
      (cudnnBackendDescriptorType_t, cudnnBackendDescriptor_t *))                                  \
    X(BackendDestroyDescriptor, cudnnStatus_t, (cudnnBackendDescriptor_t))                         \
    X(BackendFinalize, cudnnStatus_t, (cudnnBackendDescriptor_t))                                  \
    X(BackendSetAttribute, cudnnStatus_t,                                                          \
      (cudnnBackendDescriptor_t, cudnnBackendAttributeName_t, cudnnBackendAttributeType_t,         \
       int64_t, const void *))                                                                     \
    X(BackendGetAttribute, cudnnStatus_t,                                                          \
      (cudnnBackendDescriptor_t, cudnnBackendAttributeName_t, cudnnBackendAttributeType_t,         \
       int64_t, int64_t *, void *))                                                                \
    X(BackendExecute, cudnnStatus_t,                                                               \
      (cudnnHandle_t, cudnnBackendDescriptor_t, cudnnBackendDescriptor_t))

typedef struct tess_cudnn {
    void *library;
#define X(name, result, args) result(*name) args;
    TESS_CUDNN_LIST(X)
#undef X
} tess_cudnn;

/** Local. @return TESS_E_UNSUPPORTED absent, or of another major version */
TESS_MUST_CHECK tess_status tess_cudnn_open(tess_cudnn *out);
/** Put a failure into the error record, with the library's own words. */
tess_status tess_cudnn_fail(const tess_cudnn *lib, cudnnStatus_t e, const char *file, int line,
                            const char *what);

#define TESS_CUDNN_TRY(lib, call)                                                                  \
    do {                                                                                           \
        const cudnnStatus_t tess_cudnn_e_ = (lib)->call;                                           \
        if (TESS_UNLIKELY(tess_cudnn_e_ != CUDNN_STATUS_SUCCESS))                                  \
            return tess_cudnn_fail((lib), tess_cudnn_e_, __FILE__, __LINE__, #call);               \
    } while (0)

/** Names of real tensors in a graph, and in the list of addresses that executes it. */
typedef enum tess_sdpa_uid {
    TESS_SDPA_Q = 1,
    TESS_SDPA_K,
    TESS_SDPA_V,
    TESS_SDPA_O,
    TESS_SDPA_STATS,
    TESS_SDPA_D_O,
    TESS_SDPA_D_Q,
    TESS_SDPA_D_K,
    TESS_SDPA_D_V,
    TESS_SDPA_SUM,      /* row sums of dO * O, f32, written and read by the graph */
    TESS_SDPA_D_Q_SUM,  /* dQ in f32, not in the deterministic form */
    TESS_SDPA_LENGTH,   /* of documents, int32 */
    TESS_SDPA_OFFSET_Q, /* of documents in elements of each tensor, int32 */
    TESS_SDPA_OFFSET_KV,
    TESS_SDPA_OFFSET_STATS,
    TESS_SDPA_OFFSET_SUM,
    TESS_SDPA_OFFSET_D_Q_SUM,
    TESS_SDPA_SCALE, /* scalars, f32 on the host */
    TESS_SDPA_MINUS_INFINITY,
    TESS_SDPA_ONE,
    TESS_SDPA_UID_END,
    TESS_SDPA_UID_VIRTUAL = 100
} tess_sdpa_uid;

/** Descriptors of one graph; all are destroyed together. */
enum { TESS_SDPA_DESC_MAX = 160, TESS_SDPA_OP_MAX = 40 };
typedef struct tess_sdpa_graph {
    const tess_cudnn *lib;
    cudnnBackendDescriptor_t desc[TESS_SDPA_DESC_MAX];
    int desc_numel;
    cudnnBackendDescriptor_t op[TESS_SDPA_OP_MAX];
    int op_numel;
    cudnnBackendDescriptor_t graph; /* the operation graph, finalized */
    int64_t next_virtual;
    tess_status st; /* the first failure: later calls do nothing */
} tess_sdpa_graph;

/** Build and finalize for the device of `handle`, or where that is NULL for any; `g` is in the
 * caller's memory and is finished with tess_sdpa_graph_fini() whatever this returns. Local. */
TESS_MUST_CHECK tess_status tess_sdpa_graph_init(tess_sdpa_graph *g, const tess_cudnn *lib,
                                                 cudnnHandle_t handle, const tess_sdpa_case *c);
void tess_sdpa_graph_fini(tess_sdpa_graph *g);

/** A compiled graph; or a case that own kernels must take, and why. */
typedef struct tess_sdpa_compiled {
    tess_sdpa_case c;
    cudnnBackendDescriptor_t execution; /* NULL: refused, or a described device */
    tess_sdpa_engine engine;
    char refusal[TESS_SDPA_REASON_NBYTES]; /* empty: none */
} tess_sdpa_compiled;

enum { TESS_SDPA_PLAN_MAX = 32 };
struct tess_sdpa {
    tess_cudnn lib;
    tess_sdpa_settings settings;
    cudnnHandle_t handle;               /* NULL for a described device */
    cudnnBackendDescriptor_t described; /* NULL for one that is there */
    char version[32];
    tess_sdpa_compiled plan[TESS_SDPA_PLAN_MAX];
    int plan_numel;
    size_t library_nbytes; /* the most that a plan needs */
    void *library_work;
    size_t library_work_nbytes;
};

/** The plan of a case, whatever its group; NULL: nobody planned it. */
const tess_sdpa_compiled *tess_sdpa_find(const tess_sdpa *sdpa, const tess_sdpa_case *c);
/** Whether a call takes the ragged graph: more than one document, or an unknown number. */
static inline bool tess_sdpa_is_packed(const tess_attention_shape *shape)
{
    return shape->segment_numel == 0 &&
           (shape->document_numel != 1 || shape->longest_numel < shape->token_numel);
}
/** The case of a call, with its group zero. */
tess_sdpa_case tess_sdpa_case_of(const tess_sdpa *sdpa, const tess_attention_shape *shape,
                                 bool is_packed, bool is_backward);

TESS_END_DECLS
