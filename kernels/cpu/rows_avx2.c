#define TESS_ROWS_TABLE tess_cpu_rows_avx2
#include "kernels/cpu/rows_table_priv.h"
