/**
 * Services of the program, for code inside the plugin: the functions of core/status.h and
 * core/memory.h that the plugin uses are forwarded, so that there is one error record and one
 * count of allocations in the process.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "kernels/cuda/host_priv.h"

static tess_cuda_host services;

bool tess_cuda_host_set(const tess_cuda_host *host)
{
    if (host == NULL || host->abi != TESS_CUDA_ABI)
        return false;
    services = *host;
    return true;
}

double tess_cuda_now_s(void) { return services.now_s(); }

tess_status tess_error_set(tess_status st, const char *file, int line, const char *fmt, ...)
{
    char text[TESS_ERROR_MESSAGE_NBYTES];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return services.error_set(st, file, line, text);
}

tess_status tess_error_trace(tess_status st, const char *file, int line, const char *call)
{
    return services.error_trace(st, file, line, call);
}

const char *tess_error_message(void) { return services.error_message(); }
void tess_error_clear(void) { services.error_clear(); }

tess_status tess_alloc(size_t nbytes, void **out) { return services.alloc(nbytes, out); }
void tess_free(void *ptr) { services.free(ptr); }

tess_status tess_alloc_array(int64_t numel, size_t elem_nbytes, void **out)
{
    size_t nbytes = 0;
    TESS_CHECK(numel >= 0 && !__builtin_mul_overflow((size_t)numel, elem_nbytes, &nbytes),
               TESS_E_RANGE, "size of an array of %lld elements overflows", (long long)numel);
    return tess_alloc(nbytes, out);
}
