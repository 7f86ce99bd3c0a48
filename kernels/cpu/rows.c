#define TESS_ROWS_TABLE tess_cpu_rows_portable
#include "kernels/cpu/rows_table_priv.h"
