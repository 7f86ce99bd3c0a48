/** A device of the CUDA part for tests, or the reason why there is none. */
#pragma once

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "kernels/cuda/door.h"

TESS_BEGIN_DECLS

enum { CUDA_PATH_NBYTES = 4096, CUDA_SKIP_CODE = 77 /* of ctest: not run */ };

/** Leave the program with the code for a test that did not run. Local. */
static inline void cuda_skip(const char *reason)
{
    printf("skipped: %s\n", reason);
    exit(CUDA_SKIP_CODE);
}

/** What TESSERA_CUDA_PLUGIN names, or the library of the build that TESS_BUILD_DIR names. Local. */
static inline void cuda_plugin_path(char path[CUDA_PATH_NBYTES])
{
    const char *chosen = getenv("TESSERA_CUDA_PLUGIN"), *build = getenv("TESS_BUILD_DIR");
    if (chosen != NULL && chosen[0] != '\0')
        snprintf(path, CUDA_PATH_NBYTES, "%s", chosen);
    else if (build != NULL && build[0] != '\0')
        snprintf(path, CUDA_PATH_NBYTES, "%s/bin/libtessera_cuda.so", build);
    else
        cuda_skip("no CUDA part: name it in TESSERA_CUDA_PLUGIN, or the build's folder in "
                  "TESS_BUILD_DIR");
}

/**
 * Device 0 for a test. Does not return where the plugin, the driver or a device is missing: then
 * the program ends with code 77 and says what is, so that nothing that did not run counts as
 * passed. Whatever is there and fails is a failure: code 1. Local.
 */
static inline void cuda_door_open_or_skip(tess_cuda_door *door)
{
    char path[CUDA_PATH_NBYTES], text[CUDA_PATH_NBYTES + 64];
    const char *chosen = getenv("TESSERA_CUDA_PLUGIN");
    int numel = 0;
    cuda_plugin_path(path);
    snprintf(text, sizeof text, "no CUDA part: no file '%s'", path);
    if (access(path, F_OK) != 0)
        cuda_skip(text);
    if ((chosen == NULL || chosen[0] == '\0') && dlopen("libcuda.so.1", RTLD_LAZY) == NULL)
        cuda_skip("no CUDA driver (libcuda.so.1) on this machine");
    tess_status st = tess_cuda_plugin_load(path, &door->plugin);
    if (st == TESS_OK && door->plugin->device_numel(&numel) != TESS_OK)
        cuda_skip(tess_error_message());
    if (st == TESS_OK && numel == 0)
        cuda_skip("the CUDA driver shows no device; look at CUDA_VISIBLE_DEVICES");
    if (st == TESS_OK)
        st = tess_cuda_door_open(path, 0, door);
    if (st == TESS_OK)
        return;
    fprintf(stderr, "%s\n", tess_error_message());
    exit(1);
}

TESS_END_DECLS
