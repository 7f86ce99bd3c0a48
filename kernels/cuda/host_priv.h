/** The program's services inside a plugin; see host.c. */
#pragma once

#include "kernels/cuda/plugin.h"

TESS_BEGIN_DECLS

/** Remember the program's services; false when they are of another version. */
bool tess_cuda_host_set(const tess_cuda_host *host);
/** Seconds of the program's clock. */
double tess_cuda_now_s(void);

TESS_END_DECLS
