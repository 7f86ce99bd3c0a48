#include "kernels/nf4.h"

#include <inttypes.h>

#include "core/arith.h"

const float tess_nf4_table[16] = {
    -1.0F,
    -0.6961928009986877F,
    -0.5250730514526367F,
    -0.39491748809814453F,
    -0.28444138169288635F,
    -0.18477343022823334F,
    -0.09105003625154495F,
    0.0F,
    0.07958029955625534F,
    0.16093020141124725F,
    0.24611230194568634F,
    0.33791524171829224F,
    0.44070982933044434F,
    0.5626170039176941F,
    0.7229568362236023F,
    1.0F,
};

const float tess_nf4_threshold[15] = {
    -0.8480964004993439F,  -0.6106329262256622F,  -0.4599952697753906F,   -0.33967943489551544F,
    -0.23460740596055984F, -0.13791173323988914F, -0.045525018125772476F, 0.03979014977812767F,
    0.1202552504837513F,   0.2035212516784668F,   0.2920137718319893F,    0.3893125355243683F,
    0.5016634166240692F,   0.6427869200706482F,   0.8614784178118011F,
};

/* Bit 3 is the sign; magnitudes in twelfths: 0, 1/16, 8, 12, 4, 6, 2, 3. */
const float tess_fp4_table[16] = {
    0.0F,  0x1.555556p-8F,  0x1.555556p-1F,  1.0F,  0x1.555556p-2F,  0.5F,  0x1.555556p-3F,  0.25F,
    -0.0F, -0x1.555556p-8F, -0x1.555556p-1F, -1.0F, -0x1.555556p-2F, -0.5F, -0x1.555556p-3F, -0.25F,
};

const float tess_fp4_threshold[7] = {
    0x1.555572p-9F, 0x1.6p-4F,     0x1.aaaaaap-3F, 0x1.2aaaaap-2F,
    0x1.aaaaacp-2F, 0x1.2aaaap-1F, 0x1.aaaaaap-1F,
};

const uint8_t tess_fp4_code[8] = {0, 1, 6, 7, 4, 5, 2, 3};

const float *tess_codec_table16(tess_format format)
{
    return format == TESS_FORMAT_NF4 ? tess_nf4_table : tess_fp4_table;
}

/* bitsandbytes create_dynamic_map(signed=True), computed with a fused multiply-add where torch's
 * linspace has one; the test rebuilds it from that rule. */
static const float dynamic_map_signed[256] = {
    -0.992968738F,    -0.978906274F,    -0.96484375F,     -0.950781226F,
    -0.936718762F,    -0.922656238F,    -0.908593774F,    -0.89453125F,
    -0.880468726F,    -0.866406262F,    -0.852343738F,    -0.838281274F,
    -0.82421875F,     -0.810156226F,    -0.796093762F,    -0.782031238F,
    -0.767968774F,    -0.75390625F,     -0.739843726F,    -0.725781262F,
    -0.711718798F,    -0.697656274F,    -0.68359375F,     -0.669531226F,
    -0.655468762F,    -0.641406298F,    -0.627343774F,    -0.61328125F,
    -0.599218726F,    -0.585156262F,    -0.571093798F,    -0.557031274F,
    -0.54296875F,     -0.528906226F,    -0.514843702F,    -0.500781238F,
    -0.486718714F,    -0.47265625F,     -0.458593726F,    -0.444531262F,
    -0.430468738F,    -0.416406244F,    -0.40234375F,     -0.388281226F,
    -0.374218762F,    -0.360156238F,    -0.346093744F,    -0.33203125F,
    -0.317968726F,    -0.303906262F,    -0.289843738F,    -0.275781274F,
    -0.26171875F,     -0.247656241F,    -0.233593747F,    -0.219531253F,
    -0.205468744F,    -0.19140625F,     -0.177343756F,    -0.163281247F,
    -0.149218753F,    -0.135156244F,    -0.12109375F,     -0.107031256F,
    -0.0985937491F,   -0.0957812592F,   -0.0929687545F,   -0.0901562497F,
    -0.0873437524F,   -0.0845312476F,   -0.0817187577F,   -0.078906253F,
    -0.0760937482F,   -0.0732812509F,   -0.0704687461F,   -0.0676562563F,
    -0.0648437515F,   -0.0620312504F,   -0.0592187531F,   -0.0564062484F,
    -0.053593751F,    -0.05078125F,     -0.047968749F,    -0.0451562516F,
    -0.0423437469F,   -0.0395312496F,   -0.0367187522F,   -0.0339062512F,
    -0.0310937501F,   -0.028281251F,    -0.0254687499F,   -0.0226562507F,
    -0.0198437516F,   -0.0170312505F,   -0.0142187504F,   -0.0114062503F,
    -0.00971874967F,  -0.00915624946F,  -0.00859375019F,  -0.00803124998F,
    -0.00746874977F,  -0.00690625003F,  -0.00634374982F,  -0.00578125007F,
    -0.00521875033F,  -0.00465624966F,  -0.00409374991F,  -0.00353124971F,
    -0.00296874996F,  -0.00240624999F,  -0.00184375001F,  -0.00128124992F,
    -0.000943750085F, -0.000831249985F, -0.00071875006F,  -0.000606250076F,
    -0.000493750034F, -0.000381250022F, -0.000268750038F, -0.000156250011F,
    -8.87499991e-05F, -6.62500024e-05F, -4.37499984e-05F, -2.12499981e-05F,
    -7.7499999e-06F,  -3.25000019e-06F, -5.50000038e-07F, 0.0F,
    5.50000038e-07F,  3.25000019e-06F,  7.7499999e-06F,   2.12499981e-05F,
    4.37499984e-05F,  6.62500024e-05F,  8.87499991e-05F,  0.000156250011F,
    0.000268750038F,  0.000381250022F,  0.000493750034F,  0.000606250076F,
    0.00071875006F,   0.000831249985F,  0.000943750085F,  0.00128124992F,
    0.00184375001F,   0.00240624999F,   0.00296874996F,   0.00353124971F,
    0.00409374991F,   0.00465624966F,   0.00521875033F,   0.00578125007F,
    0.00634374982F,   0.00690625003F,   0.00746874977F,   0.00803124998F,
    0.00859375019F,   0.00915624946F,   0.00971874967F,   0.0114062503F,
    0.0142187504F,    0.0170312505F,    0.0198437516F,    0.0226562507F,
    0.0254687499F,    0.028281251F,     0.0310937501F,    0.0339062512F,
    0.0367187522F,    0.0395312496F,    0.0423437469F,    0.0451562516F,
    0.047968749F,     0.05078125F,      0.053593751F,     0.0564062484F,
    0.0592187531F,    0.0620312504F,    0.0648437515F,    0.0676562563F,
    0.0704687461F,    0.0732812509F,    0.0760937482F,    0.078906253F,
    0.0817187577F,    0.0845312476F,    0.0873437524F,    0.0901562497F,
    0.0929687545F,    0.0957812592F,    0.0985937491F,    0.107031256F,
    0.12109375F,      0.135156244F,     0.149218753F,     0.163281247F,
    0.177343756F,     0.19140625F,      0.205468744F,     0.219531253F,
    0.233593747F,     0.247656241F,     0.26171875F,      0.275781274F,
    0.289843738F,     0.303906262F,     0.317968726F,     0.33203125F,
    0.346093744F,     0.360156238F,     0.374218762F,     0.388281226F,
    0.40234375F,      0.416406244F,     0.430468738F,     0.444531262F,
    0.458593726F,     0.47265625F,      0.486718714F,     0.500781238F,
    0.514843702F,     0.528906226F,     0.54296875F,      0.557031274F,
    0.571093798F,     0.585156262F,     0.599218726F,     0.61328125F,
    0.627343774F,     0.641406298F,     0.655468762F,     0.669531226F,
    0.68359375F,      0.697656274F,     0.711718798F,     0.725781262F,
    0.739843726F,     0.75390625F,      0.767968774F,     0.782031238F,
    0.796093762F,     0.810156226F,     0.82421875F,      0.838281274F,
    0.852343738F,     0.866406262F,     0.880468726F,     0.89453125F,
    0.908593774F,     0.922656238F,     0.936718762F,     0.950781226F,
    0.96484375F,      0.978906274F,     0.992968738F,     1.0F,
};

const float *tess_dynamic_map_signed(void) { return dynamic_map_signed; }

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

tess_status tess_nf4_quantize_check(const tess_nf4_quantize_args *a)
{
    const char *name = a->tensor_name != NULL ? a->tensor_name : "nf4 quantize";
    TESS_TRY(view_check(&a->src, name, "src"));
    TESS_TRY(parts_check(&a->codec, a->src.numel, (const void *const *)a->part, name));
    TESS_CHECK(!a->codec.double_quant || a->absmax_work != NULL || a->src.numel == 0, TESS_E_ARG,
               "%s: double quantization needs absmax_work [ceil(numel/%" PRId64 ")] f32", name,
               a->codec.block_numel);
    return TESS_OK;
}

tess_status tess_nf4_dequantize_check(const tess_nf4_dequantize_args *a)
{
    int64_t end_idx = 0;
    TESS_TRY(view_check(&a->dst, "nf4 dequantize", "dst"));
    TESS_CHECK(a->first_idx >= 0, TESS_E_ARG, "nf4 dequantize: first_idx is %" PRId64,
               a->first_idx);
    TESS_CHECK(!__builtin_add_overflow(a->first_idx, a->dst.numel, &end_idx), TESS_E_ARG,
               "nf4 dequantize: range %" PRId64 " + %" PRId64 " overflows", a->first_idx,
               a->dst.numel);
    const int64_t block_numel = tess_format_block(a->codec.format).numel;
    if (block_numel > 0) /* its last block may be used in part */
        end_idx = tess_round_up(end_idx, block_numel);
    return parts_check(&a->codec, end_idx, a->part, "nf4 dequantize");
}
