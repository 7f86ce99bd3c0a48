/**
 * The program's side of the CUDA part's door: open libtessera_cuda.so, take a device.
 *
 * Header only, so that sessions, benchmarks and tests open it with the same words and each links
 * dlopen itself.
 */
#pragma once

#include <dlfcn.h>

#include "core/clock.h"
#include "core/memory.h"
#include "kernels/cuda/plugin.h"

TESS_BEGIN_DECLS

/** A device of the CUDA part in this process. Open until the process ends: the runtime inside does
 * not survive dlclose. */
typedef struct tess_cuda_door {
    const tess_cuda_plugin *plugin;
    tess_device *device;
    const tess_kernels *kernels; /* of the device */
} tess_cuda_door;

static inline tess_status tess_cuda_host_error_set(tess_status st, const char *file, int line,
                                                   const char *text)
{
    return tess_error_set(st, file, line, "%s", text);
}

/**
 * Load the CUDA part and hand it this program's services. Local.
 * @param path  of libtessera_cuda.so
 * @return TESS_E_UNSUPPORTED it cannot be loaded, or is no CUDA part of this version
 */
TESS_MUST_CHECK static inline tess_status tess_cuda_plugin_load(const char *path,
                                                                const tess_cuda_plugin **out)
{
    static tess_cuda_host services; /* the plugin has a copy */
    services.abi = TESS_CUDA_ABI;
    services.error_set = tess_cuda_host_error_set;
    services.error_trace = tess_error_trace;
    services.error_message = tess_error_message;
    services.error_clear = tess_error_clear;
    services.alloc = tess_alloc;
    services.free = tess_free;
    services.now_s = tess_clock_s;
    void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    TESS_CHECK(object != NULL, TESS_E_UNSUPPORTED, "the CUDA part cannot be loaded: %s", dlerror());
    union {
        void *symbol;
        tess_cuda_plugin_open_fn open;
    } entry = {dlsym(object, "tess_cuda_plugin_open")};
    TESS_CHECK(entry.symbol != NULL, TESS_E_UNSUPPORTED,
               "'%s' is not the CUDA part of this program: no tess_cuda_plugin_open", path);
    const tess_cuda_plugin *plugin = entry.open(&services);
    TESS_CHECK(plugin != NULL && plugin->abi == TESS_CUDA_ABI, TESS_E_UNSUPPORTED,
               "'%s' was built from another version (interface %u, the program's is %d); build "
               "both from the same sources",
               path, plugin != NULL ? plugin->abi : 0, TESS_CUDA_ABI);
    *out = plugin;
    return TESS_OK;
}

/** Device `idx` of the CUDA part at `path`, for one process and its lifetime. Local. */
TESS_MUST_CHECK static inline tess_status tess_cuda_door_open(const char *path, int idx,
                                                              tess_cuda_door *door)
{
    TESS_TRY(tess_cuda_plugin_load(path, &door->plugin));
    TESS_TRY(door->plugin->device_open(idx, &door->device));
    door->kernels = door->plugin->kernels(door->device);
    TESS_CHECK(door->kernels != NULL, TESS_E_UNSUPPORTED, "'%s' has no kernels for %s", path,
               door->device->name);
    return TESS_OK;
}

TESS_END_DECLS
