/* In place of sdpa*.c where cudnn.h was absent when this was built: attention uses own kernels. */
#include <stdio.h>

#include "kernels/cuda/sdpa_priv.h"

static tess_status refuse(void)
{
    return TESS_FAIL(TESS_E_UNSUPPORTED, "built without cudnn.h: attention uses own kernels");
}

tess_status tess_sdpa_create(const tess_sdpa_settings *settings, const char *device_json,
                             tess_sdpa **out)
{
    (void)settings;
    (void)device_json;
    (void)out;
    return refuse();
}

void tess_sdpa_destroy(tess_sdpa **sdpa) { *sdpa = NULL; }

const char *tess_sdpa_version(const tess_sdpa *sdpa)
{
    (void)sdpa;
    return "no cuDNN";
}

tess_status tess_sdpa_probe(tess_sdpa *sdpa, const tess_sdpa_case *c, tess_sdpa_engine *out)
{
    (void)sdpa;
    (void)c;
    (void)out;
    return refuse();
}

tess_status tess_sdpa_plan(tess_sdpa *sdpa, const tess_attention_shape *shape)
{
    (void)sdpa;
    (void)shape;
    return refuse();
}

size_t tess_sdpa_library_nbytes(const tess_sdpa *sdpa)
{
    (void)sdpa;
    return 0;
}

void tess_sdpa_library_set(tess_sdpa *sdpa, void *memory, size_t nbytes)
{
    (void)sdpa;
    (void)memory;
    (void)nbytes;
}

bool tess_sdpa_covers(const tess_sdpa *sdpa, const tess_attention_shape *shape, int64_t window,
                      bool is_backward, char why[TESS_SDPA_REASON_NBYTES])
{
    (void)sdpa;
    (void)shape;
    (void)window;
    (void)is_backward;
    (void)snprintf(why, TESS_SDPA_REASON_NBYTES, "built without cudnn.h");
    return false;
}

tess_status tess_sdpa_forward(tess_sdpa *sdpa, const tess_attention_args *a, tess_stream *s)
{
    (void)sdpa;
    (void)a;
    (void)s;
    return refuse();
}

tess_status tess_sdpa_backward(tess_sdpa *sdpa, const tess_attention_backward_args *a,
                               tess_stream *s)
{
    (void)sdpa;
    (void)a;
    (void)s;
    return refuse();
}
