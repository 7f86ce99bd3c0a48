#define TESS_ATTENTION_TABLE tess_attention_ops_avx2
#include "kernels/cpu/attention_body_priv.h"
