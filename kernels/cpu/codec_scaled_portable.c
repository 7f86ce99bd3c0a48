/* Scaled codes of the portable path. */
#include "kernels/cpu/codec_scaled_body_priv.h"

const tess_scaled_path tess_scaled_portable = SCALED_PATH;
