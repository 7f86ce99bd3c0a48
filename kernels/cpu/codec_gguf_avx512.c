/* GGUF decoders of the avx512 path. */
#include "kernels/cpu/codec_gguf_body_priv.h"

const tess_gguf_path tess_gguf_avx512 = GGUF_PATH;
