#define NEAREST_TABLE tess_nearest_avx512
/* 24 sums, 2 codes and a vector's value of the 32 registers. */
enum { ROWS = 12 };
#include "kernels/cpu/nearest_body_priv.h"
