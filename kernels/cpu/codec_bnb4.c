/* NF4 and FP4 of bitsandbytes; see kernels/nf4.h. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/arith.h"
#include "kernels/cpu/codec_priv.h"
#include "kernels/cpu/gemm_priv.h"
#include "kernels/math_priv.h"

enum { SLICE_NUMEL = 64, NF4_CODE_OF_ZERO = 7, FP4_CODE_OF_ZERO = 0, NESTED_CODE_OF_ZERO = 127 };

/* 1/absmax overflows at and below this. */
static const float smallest_inverted = 0x1p-128F;

typedef struct job {
    const tess_quantize_args *a;
    float *absmax;         /* [nb], part 1 or the caller's workspace */
    int64_t bad_idx[1024]; /* per part: first element that is not finite, or -1 */
} job;

static float element_get(const tess_view *src, int64_t idx)
{
    return src->dt == TESS_BF16 ? tess_bf16_to_f32(((const uint16_t *)src->data)[idx])
                                : ((const float *)src->data)[idx];
}

static void slice_read(const tess_view *src, int64_t first_idx, int numel, float *out)
{
    for (int i = 0; i < numel; i++)
        out[i] = element_get(src, first_idx + i);
}

/* Largest absolute value of a block; infinity when an element is not finite. */
static float block_absmax(const tess_view *src, int64_t first_idx, int64_t numel)
{
    float absmax = 0.0F;
    for (int64_t i = 0; i < numel; i++) {
        const float x = fabsf(element_get(src, first_idx + i));
        if (!(x <= absmax)) /* also true for NaN */
            absmax = isfinite(x) ? x : INFINITY;
    }
    return absmax;
}

static void nf4_codes(const float *u, int32_t *code)
{
    for (int t = 0; t < TESS_NELEM(tess_nf4_threshold); t++) {
        for (int i = 0; i < SLICE_NUMEL; i++)
            code[i] += u[i] > tess_nf4_threshold[t];
    }
}

static void fp4_codes(const float *u, int32_t *code)
{
    for (int t = 0; t < TESS_NELEM(tess_fp4_threshold); t++) {
        for (int i = 0; i < SLICE_NUMEL; i++)
            code[i] += fabsf(u[i]) > tess_fp4_threshold[t];
    }
    for (int i = 0; i < SLICE_NUMEL; i++)
        code[i] = tess_fp4_code[code[i]] | (u[i] < 0.0F ? 8 : 0);
}

/* Codes of at most 64 scaled elements. */
static void slice_encode(tess_format format, const float *scaled, int numel, uint8_t *codes)
{
    int32_t code[SLICE_NUMEL] = {0};
    float u[SLICE_NUMEL] = {0};
    for (int i = 0; i < numel; i++)
        u[i] = scaled[i];
    if (format == TESS_FORMAT_NF4)
        nf4_codes(u, code);
    else
        fp4_codes(u, code);
    for (int i = numel; i < SLICE_NUMEL; i++)
        code[i] = format == TESS_FORMAT_NF4 ? NF4_CODE_OF_ZERO : FP4_CODE_OF_ZERO;
    for (int i = 0; i < numel; i += 2)
        codes[i / 2] = (uint8_t)(code[i] << 4 | code[i + 1]);
}

static void block_encode(const tess_quantize_args *a, int64_t first_idx, int64_t numel,
                         float absmax)
{
    uint8_t *codes = (uint8_t *)a->part[0] + first_idx / 2;
    const bool is_divided = absmax <= smallest_inverted;
    const float inverse = is_divided ? 0.0F : 1.0F / absmax;
    for (int64_t done = 0; done < numel; done += SLICE_NUMEL) {
        const int slice_numel = (int)TESS_MIN(numel - done, SLICE_NUMEL);
        float x[SLICE_NUMEL];
        slice_read(&a->src, first_idx + done, slice_numel, x);
        for (int i = 0; i < slice_numel; i++)
            x[i] = is_divided ? (absmax > 0.0F ? x[i] / absmax : 0.0F) : x[i] * inverse;
        slice_encode(a->codec.format, x, slice_numel, codes + done / 2);
    }
}

static int64_t first_not_finite(const tess_view *src, int64_t first_idx, int64_t numel)
{
    for (int64_t i = 0; i < numel; i++) {
        if (!isfinite(element_get(src, first_idx + i)))
            return first_idx + i;
    }
    return -1;
}

static void quantize_body(void *arg, int part_idx, int part_numel)
{
    job *j = arg;
    const tess_quantize_args *a = j->a;
    const int64_t block_numel = a->codec.block_numel;
    int64_t lo = 0;
    int64_t hi = 0;
    tess_pool_range(a->src.numel, block_numel, part_idx, part_numel, &lo, &hi);
    j->bad_idx[part_idx] = -1;
    for (int64_t idx = lo; idx < hi; idx += block_numel) {
        const int64_t numel = TESS_MIN(block_numel, hi - idx);
        const float absmax = block_absmax(&a->src, idx, numel);
        if (!isfinite(absmax)) {
            j->bad_idx[part_idx] = first_not_finite(&a->src, idx, numel);
            return;
        }
        j->absmax[idx / block_numel] = absmax;
        block_encode(a, idx, numel, absmax);
    }
}

static void nested_block_encode(const float *absmax, float offset, int64_t numel, uint8_t *codes,
                                float *nested_absmax)
{
    const float *map = tess_dynamic_map_signed();
    float largest = 0.0F;
    for (int64_t i = 0; i < numel; i++)
        largest = fmaxf(largest, fabsf(absmax[i] - offset));
    *nested_absmax = largest;
    const bool is_divided = largest <= smallest_inverted;
    const float inverse = is_divided ? 0.0F : 1.0F / largest;
    for (int64_t i = 0; i < numel; i++) {
        const float x = absmax[i] - offset;
        codes[i] = largest > 0.0F
                       ? (uint8_t)tess_map_code(map, is_divided ? x / largest : x * inverse)
                       : (uint8_t)NESTED_CODE_OF_ZERO;
    }
}

static void nested_encode(const tess_quantize_args *a, int64_t block_numel)
{
    double sum = 0.0;
    for (int64_t i = 0; i < block_numel; i++)
        sum += (double)a->absmax_work[i];
    const float offset = block_numel > 0 ? (float)(sum / (double)block_numel) : 0.0F;
    ((float *)a->part[3])[0] = offset;
    for (int64_t i = 0; i < block_numel; i += TESS_NESTED_BLOCK_NUMEL)
        nested_block_encode(
            a->absmax_work + i, offset, TESS_MIN(TESS_NESTED_BLOCK_NUMEL, block_numel - i),
            (uint8_t *)a->part[1] + i, (float *)a->part[2] + i / TESS_NESTED_BLOCK_NUMEL);
}

static tess_status encode(const tess_quantize_args *a, tess_pool *pool)
{
    const int part_numel = tess_pool_thread_numel(pool);
    job j = {.a = a};
    j.absmax = a->codec.double_quant ? a->absmax_work : a->part[1];
    tess_pool_run(pool, part_numel, quantize_body, &j);
    for (int i = 0; i < part_numel; i++) {
        TESS_CHECK(j.bad_idx[i] < 0, TESS_E_FORMAT,
                   "tensor '%s': element %" PRId64 " is %f, expected finite values; %s cannot hold "
                   "it, so repair the source or keep this tensor in bf16",
                   a->tensor_name != NULL ? a->tensor_name : "", j.bad_idx[i],
                   (double)element_get(&a->src, j.bad_idx[i]), tess_format_name(a->codec.format));
    }
    if (a->codec.double_quant)
        nested_encode(a, tess_ceil_div(a->src.numel, a->codec.block_numel));
    return TESS_OK;
}

/* ---- decoding ---- */

static void absmax_read(const tess_codec *codec, const void *const *part, int64_t first_block,
                        int64_t block_numel, float *absmax)
{
    if (!codec->double_quant) {
        memcpy(absmax, (const float *)part[1] + first_block, (size_t)block_numel * sizeof *absmax);
        return;
    }
    const float *map = tess_dynamic_map_signed();
    const float offset = ((const float *)part[3])[0];
    for (int64_t i = first_block; i < first_block + block_numel; i++) {
        const float nested = ((const float *)part[2])[i / TESS_NESTED_BLOCK_NUMEL];
        const float scaled = map[((const uint8_t *)part[1])[i]] * nested;
        *absmax++ = scaled + offset;
    }
}

static void decode_rows(const tess_coded *from, const tess_row_span *rows, tess_view dst)
{
    enum { ABSMAX_NUMEL = 256 }; /* of rows decoded together; the longest has 129 */
    float absmax[ABSMAX_NUMEL];
    const tess_codec *codec = from->codec;
    const int shift = __builtin_ctzll((uint64_t)codec->block_numel); /* a power of two */
    const int64_t elem_nbytes = (int64_t)tess_dtype_block_nbytes(dst.dt);
    tess_lut16_rows run = {
        .table = tess_codec_table16(codec->format),
        .codes = from->part[0],
        .absmax = absmax,
        .absmax_stride = ((rows->col_numel - 1) >> shift) + 2,
        .block_numel = codec->block_numel,
        .stride = rows->stride,
        .col_numel = rows->col_numel,
        .is_dst_bf16 = dst.dt == TESS_BF16,
    };
    const int64_t most_rows = ABSMAX_NUMEL / run.absmax_stride;
    for (int64_t row = 0; row < rows->row_numel; row += run.row_numel) {
        run.first_idx = rows->first_idx + row * rows->stride;
        run.row_numel = TESS_MIN(rows->row_numel - row, most_rows);
        run.dst = (char *)dst.data + row * rows->col_numel * elem_nbytes;
        for (int64_t i = 0; i < run.row_numel; i++) {
            const int64_t idx = run.first_idx + i * run.stride;
            const int64_t first = idx >> shift;
            absmax_read(codec, from->part, first, ((idx + run.col_numel - 1) >> shift) + 1 - first,
                        absmax + i * run.absmax_stride);
        }
        tess_gemm_path_current()->lut16_rows(&run);
    }
}

static void decode(const tess_coded *from, int64_t first_idx, tess_view dst)
{
    for (int64_t done = 0; done < dst.numel; done += TESS_ROW_SPAN_MAX) {
        const int64_t numel = TESS_MIN(dst.numel - done, TESS_ROW_SPAN_MAX);
        const tess_row_span row = {first_idx + done, 0, 1, numel};
        decode_rows(from, &row, tess_view_slice(dst, done, numel));
    }
}

const tess_cpu_codec tess_cpu_codec_bnb4 = {
    .decode = decode, .decode_rows = decode_rows, .encode = encode};
