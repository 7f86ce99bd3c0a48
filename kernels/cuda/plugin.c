/** The one door of libtessera_cuda.so; see plugin.h. */
#include "kernels/cuda/plugin.h"

#include <cublasLt.h>
#include <stdio.h>

#include "kernels/cuda/cuda_priv.h"
#include "kernels/cuda/device_priv.h"

static char versions[384];

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
};

static int describe_versions(void)
{
    int runtime = 0, driver = 0; /* 0: none */
    (void)cudaRuntimeGetVersion(&runtime);
    (void)cudaDriverGetVersion(&driver);
    const size_t lt = cublasLtGetVersion();
    return snprintf(versions, sizeof versions,
                    "CUDA %d.%d (driver of CUDA %d.%d), cuBLASLt %zu.%zu.%zu", runtime / 1000,
                    runtime % 1000 / 10, driver / 1000, driver % 1000 / 10, lt / 10000,
                    lt % 10000 / 100, lt % 100);
}

/* Without the library collectives take another way, which the program says; the versions say why.
 */
static void find_collectives(char *text, size_t text_nbytes)
{
#ifdef TESS_HAS_NCCL
    int v = 0;
    if (tess_nccl_open(&v) == TESS_OK) {
        plugin.collectives = &tess_nccl_collectives;
        snprintf(text, text_nbytes, ", NCCL %d.%d.%d", v / 10000, v % 10000 / 100, v % 100);
        return;
    }
    snprintf(text, text_nbytes, ", %s", tess_error_message());
    tess_error_clear();
#else
    snprintf(text, text_nbytes, ", built without NCCL");
#endif
}

TESS_EXPORT const tess_cuda_plugin *tess_cuda_plugin_open(const tess_cuda_host *host);

const tess_cuda_plugin *tess_cuda_plugin_open(const tess_cuda_host *host)
{
    if (!tess_cuda_host_set(host))
        return NULL;
    const int used = describe_versions();
    if (plugin.collectives == NULL && used > 0 && (size_t)used < sizeof versions)
        find_collectives(versions + used, sizeof versions - (size_t)used);
    return &plugin;
}
