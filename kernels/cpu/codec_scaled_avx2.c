/* Scaled codes of the avx2 path. */
#include "kernels/cpu/codec_scaled_body_priv.h"

const tess_scaled_path tess_scaled_avx2 = SCALED_PATH;
