/**
 * How kernels are started, and what a translation unit of kernels needs, on a device and in the
 * host emulation of tests/emulation (which defines TESS_EMULATE and its own versions).
 */
#pragma once

#include "core/device.h"
#include "kernels/kernels.h"

#ifdef TESS_EMULATE
#include "tests/emulation/cuda_emulation.hpp"
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>

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

/** Start `kernel` on stream `s` and return its launch status. */
#define TESS_LAUNCH(kernel, grid, block, shared_nbytes, s, ...)                                    \
    do {                                                                                           \
        kernel<<<(grid), (block), (shared_nbytes), tess_cuda_stream(s)>>>(__VA_ARGS__);            \
        TESS_CUDA_TRY(cudaGetLastError());                                                         \
    } while (0)

/** Dynamic shared memory of a kernel as an array of T. */
#define TESS_DYN_SHARED(T, name)                                                                   \
    extern __shared__ __align__(16) unsigned char tess_dyn_shared_[];                              \
    T *name = reinterpret_cast<T *>(tess_dyn_shared_)
#endif
