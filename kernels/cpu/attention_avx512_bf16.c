#define TESS_ATTENTION_BF16
#define TESS_ATTENTION_TABLE tess_attention_ops_avx512_bf16
#include "kernels/cpu/attention_body_priv.h"
