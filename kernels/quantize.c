#include "kernels/quantize.h"

#include <inttypes.h>

#include "core/arith.h"

static tess_status parts_check(const tess_codec *codec, int64_t numel, const void *const *part,
                               const char *what)
{
    tess_codec_part expected[TESS_CODEC_PART_MAX];
    int part_numel = 0;
    TESS_CHECK(tess_format_is_quantized(codec->format), TESS_E_ARG,
               "%s: codec is %s, expected a quantized format", what,
               tess_format_name(codec->format));
    TESS_TRY(tess_codec_parts(codec, numel, expected, &part_numel));
    for (int i = 0; i < part_numel; i++)
        TESS_CHECK(part[i] != NULL || expected[i].numel == 0, TESS_E_ARG,
                   "%s: part %d ('%s') is missing, expected %" PRId64 " elements of %s", what, i,
                   expected[i].name, expected[i].numel, tess_dtype_name(expected[i].dt));
    return TESS_OK;
}

static tess_status view_check(const tess_view *v, const char *what, const char *name)
{
    TESS_CHECK(v->dt == TESS_F32 || v->dt == TESS_BF16, TESS_E_DTYPE,
               "%s: %s is %s, expected f32 or bf16", what, name, tess_dtype_name(v->dt));
    TESS_CHECK(v->numel >= 0 && (v->data != NULL || v->numel == 0), TESS_E_ARG,
               "%s: %s has %" PRId64 " elements and data %p", what, name, v->numel, v->data);
    return TESS_OK;
}

tess_status tess_quantize_check(const tess_quantize_args *a)
{
    const char *name = a->tensor_name != NULL ? a->tensor_name : "quantize";
    TESS_TRY(view_check(&a->src, name, "src"));
    TESS_TRY(parts_check(&a->codec, a->src.numel, (const void *const *)a->part, name));
    TESS_CHECK(!a->codec.double_quant || a->absmax_work != NULL || a->src.numel == 0, TESS_E_ARG,
               "%s: double quantization needs absmax_work [ceil(numel/%" PRId64 ")] f32", name,
               a->codec.block_numel);
    return TESS_OK;
}

tess_status tess_dequantize_check(const tess_dequantize_args *a)
{
    int64_t end_idx = 0;
    TESS_TRY(view_check(&a->dst, "dequantize", "dst"));
    TESS_CHECK(a->first_idx >= 0, TESS_E_ARG, "dequantize: first_idx is %" PRId64, a->first_idx);
    TESS_CHECK(!__builtin_add_overflow(a->first_idx, a->dst.numel, &end_idx), TESS_E_ARG,
               "dequantize: range %" PRId64 " + %" PRId64 " overflows", a->first_idx, a->dst.numel);
    TESS_CHECK(a->numel == 0 || a->numel >= end_idx, TESS_E_ARG,
               "dequantize: range %" PRId64 " + %" PRId64 " of %" PRId64 " elements", a->first_idx,
               a->dst.numel, a->numel);
    const int64_t block_numel = tess_format_block(a->codec.format).numel;
    if (a->numel > 0)
        end_idx = a->numel;
    else if (block_numel > 0) /* its last block may be used in part */
        end_idx = tess_round_up(end_idx, block_numel);
    return parts_check(&a->codec, end_idx, a->part, "dequantize");
}
