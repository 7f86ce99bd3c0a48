/** What every file of the plugin needs of its device: streams, errors. C and C++. */
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/host_priv.h"

TESS_BEGIN_DECLS

/** The CUDA stream behind a stream of the device. */
cudaStream_t tess_cuda_stream(const tess_stream *s);
/** Put a CUDA error into the error record: which call, what CUDA says. */
tess_status tess_cuda_fail(cudaError_t e, const char *file, int line, const char *call);

#define TESS_CUDA_TRY(call)                                                                        \
    do {                                                                                           \
        const cudaError_t tess_cuda_e_ = (call);                                                   \
        if (TESS_UNLIKELY(tess_cuda_e_ != cudaSuccess))                                            \
            return tess_cuda_fail(tess_cuda_e_, __FILE__, __LINE__, #call);                        \
    } while (0)

/** The device of a stream. */
tess_device *tess_cuda_stream_device(const tess_stream *s);
/** Compute capability, 10 * major + minor. */
int tess_cuda_capability(const tess_device *d);
/** Make `d` the calling thread's current device. Local. */
TESS_MUST_CHECK tess_status tess_cuda_enter(const tess_device *d);

/** A stream's libraries, NULL: not opened; see library.c. */
struct stream_library **tess_cuda_stream_slot(tess_stream *s);
/** library.c: the stream on which weights are dequantized ahead for `s`, NULL: none. */
tess_stream *tess_cuda_library_lane(const struct stream_library *library);
/** library.c: NULL is fine. */
void tess_cuda_library_close(struct stream_library **library);
TESS_MUST_CHECK tess_status tess_cuda_prepare(tess_device *d, tess_stream *compute,
                                              const tess_cuda_work *work,
                                              char note[TESS_CUDA_NOTE_NBYTES]);
size_t tess_cuda_prepare_nbytes(const tess_cuda_work *work);

/** device.c */
TESS_MUST_CHECK tess_status tess_cuda_device_numel(int *numel);
TESS_MUST_CHECK tess_status tess_cuda_device_info(int idx, tess_cuda_info *out);
TESS_MUST_CHECK tess_status tess_cuda_device_open(int idx, tess_device **out);
void tess_cuda_device_close(tess_device **d);

/** nccl.c: find the library, once, before anything else of it.
 * @return TESS_E_UNSUPPORTED absent, or of a version that cannot be used, in one line */
TESS_MUST_CHECK tess_status tess_nccl_open(int *version);
extern const tess_gpu_collectives tess_nccl_collectives;

TESS_END_DECLS
