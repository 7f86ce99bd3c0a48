#include "kernels/cuda/codec_priv.h"

#include <string.h>

/* Families by name, as in TESS_FORMAT_LIST. */
#define CODEC_plain_f32 NULL
#define CODEC_plain_bf16 NULL
#define CODEC_bnb4 tess_cuda_decode_bnb4
#define CODEC_half tess_cuda_decode_half
#define CODEC_gguf tess_cuda_decode_gguf
#define CODEC_int8 tess_cuda_decode_int8
#define CODEC_quanto8 tess_cuda_decode_bytes
#define CODEC_quanto tess_cuda_decode_planes
#define CODEC_fp8 tess_cuda_decode_bytes

static tess_status (*const table[TESS_FORMAT_NUMEL])(const tess_decode_args *a, tess_stream *s) = {
#define X(name, text, family) [TESS_FORMAT_##name] = CODEC_##family,
    TESS_FORMAT_LIST(X)
#undef X
};

tess_status tess_cuda_decode(const tess_decode_args *a, tess_stream *s)
{
    return a->rows > 0 && a->cols > 0 ? table[a->codec.format](a, s) : TESS_OK;
}

tess_status tess_cuda_dequantize(const tess_dequantize_args *a, tess_stream *s)
{
    TESS_TRY(tess_dequantize_check(a));
    tess_decode_args args = {.codec = a->codec,
                             .numel = a->numel > 0 ? a->numel : a->first_idx + a->dst.numel,
                             .first_idx = a->first_idx,
                             .rows = 1,
                             .cols = a->dst.numel,
                             .dst = a->dst.data,
                             .dst_stride = a->dst.numel,
                             .dt = a->dst.dt};
    memcpy(args.part, a->part, sizeof args.part);
    return tess_cuda_decode(&args, s);
}
