#include <dlfcn.h>

#include "kernels/cuda/sdpa_library_priv.h"

/* 9.10 gives -inf in masks its meaning; earlier ones want the largest negative number. */
enum { VERSION_MIN = 91002 };

tess_status tess_cudnn_fail(const tess_cudnn *lib, cudnnStatus_t e, const char *file, int line,
                            const char *what)
{
    char words[512] = "";
    lib->GetLastErrorString(words, sizeof(words));
    for (char *p = words; *p != '\0'; p++)
        *p = *p == '\n' ? ' ' : *p;
    const bool is_lost = e == CUDNN_STATUS_EXECUTION_FAILED;
    return tess_error_set(is_lost ? TESS_E_COMM : TESS_E_UNSUPPORTED, file, line,
                          "cuDNN: %s says %s: %s", what, lib->GetErrorString(e), words);
}

static tess_status find_functions(tess_cudnn *lib)
{
#define X(name, result, args)                                                                      \
    *(void **)(void *)&lib->name = dlsym(lib->library, "cudnn" #name);                             \
    TESS_CHECK(lib->name != NULL, TESS_E_UNSUPPORTED,                                              \
               "cuDNN lacks cudnn" #name "; install version 9.10.2 or newer");
    TESS_CUDNN_LIST(X)
#undef X
    const size_t version = lib->GetVersion();
    TESS_CHECK(version >= VERSION_MIN && version < 100000, TESS_E_UNSUPPORTED,
               "cuDNN is version %zu, expected %d to 99999; install version 9.10.2 or newer",
               version, VERSION_MIN);
    return TESS_OK;
}

/* It stays open: kernels it registered and libraries it opened do not survive the contrary. */
tess_status tess_cudnn_open(tess_cudnn *out)
{
    tess_cudnn lib = {.library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL)};
    TESS_CHECK(lib.library != NULL, TESS_E_UNSUPPORTED, "no cuDNN (%s); attention uses own kernels",
               dlerror());
    TESS_TRY(find_functions(&lib));
    *out = lib;
    return TESS_OK;
}
