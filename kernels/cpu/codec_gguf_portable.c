/* GGUF decoders of the portable path. */
#include "kernels/cpu/codec_gguf_body_priv.h"

const tess_gguf_path tess_gguf_portable = GGUF_PATH;
