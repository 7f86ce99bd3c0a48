/** The one door of libtessera_cuda.so; see plugin.h. */
#include "kernels/cuda/plugin.h"

#include <cublasLt.h>
#include <stdio.h>

#ifdef TESS_HAS_NCCL
#include <nccl.h>
#endif

#include "kernels/cuda/cuda_priv.h"
#include "kernels/cuda/device_priv.h"

static char versions[128];

static const tess_kernels *kernels_of(tess_device *d)
{
    (void)d; /* one table serves all capabilities */
    return &tess_kernels_cuda;
}

static tess_cuda_plugin plugin = {
    .abi = TESS_CUDA_ABI,
    .versions = versions,
    .device_numel = tess_cuda_device_numel,
    .device_info = tess_cuda_device_info,
    .device_open = tess_cuda_device_open,
    .device_close = tess_cuda_device_close,
    .kernels = kernels_of,
    .prepare = tess_cuda_prepare,
    .prepare_nbytes = tess_cuda_prepare_nbytes,
#ifdef TESS_HAS_NCCL
    .collectives = &tess_nccl_collectives,
#endif
};

static void describe_versions(void)
{
    int runtime = 0;
    (void)cudaRuntimeGetVersion(&runtime);
    const size_t lt = cublasLtGetVersion();
    int n = snprintf(versions, sizeof versions, "CUDA %d.%d, cuBLASLt %zu.%zu.%zu", runtime / 1000,
                     runtime % 1000 / 10, lt / 10000, lt % 10000 / 100, lt % 100);
#ifdef TESS_HAS_NCCL
    int nccl = 0;
    if (n > 0 && (size_t)n < sizeof versions && ncclGetVersion(&nccl) == ncclSuccess)
        snprintf(versions + n, sizeof versions - (size_t)n, ", NCCL %d.%d.%d", nccl / 10000,
                 nccl % 10000 / 100, nccl % 100);
#else
    (void)n;
#endif
}

TESS_EXPORT const tess_cuda_plugin *tess_cuda_plugin_open(const tess_cuda_host *host);

const tess_cuda_plugin *tess_cuda_plugin_open(const tess_cuda_host *host)
{
    if (!tess_cuda_host_set(host))
        return NULL;
    describe_versions();
    return &plugin;
}
