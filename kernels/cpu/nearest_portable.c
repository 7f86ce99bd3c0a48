#define NEAREST_TABLE tess_nearest_portable
enum { ROWS = 4 };
#include "kernels/cpu/nearest_body_priv.h"
