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
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/device_priv.h"

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

/** In the emulation, an address that is no multiple of `nbytes` fails the launch. */
#define TESS_ALIGNED(p, nbytes) ((void)(p))

/** An array of T in shared memory; the emulation puts canaries behind it. */
#define TESS_SHARED(T, name, numel) __shared__ T name[numel]
#endif
