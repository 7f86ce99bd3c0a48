#define NEAREST_TABLE tess_nearest_avx2
/* 12 sums, 2 codes and a vector's value fill the 16 registers. */
enum { ROWS = 6 };
#include "kernels/cpu/nearest_body_priv.h"
