/* f16, and the blocks of GGUF files; encoders of f16, Q8_0 and Q4_0. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "core/arith.h"
#include "core/half.h"
#include "kernels/cpu/codec_gguf_priv.h"
#include "kernels/elementwise.h"

enum { STAGE_NUMEL = 256, PART_MAX = 1024 };

static const tess_gguf_path *path_current(void)
{
    switch (tess_cpu_path_current()) {
    case TESS_CPU_AVX512_BF16:
    case TESS_CPU_AVX512:
        return &tess_gguf_avx512;
    case TESS_CPU_AVX2:
        return &tess_gguf_avx2;
    case TESS_CPU_PORTABLE:
        break;
    }
    return &tess_gguf_portable;
}

/* ---- decoding ---- */

/* Elements in f32 to where they go. */
static void put(const tess_gguf_path *path, tess_view dst, int64_t at, const float *x,
                int64_t numel)
{
    if (dst.dt == TESS_BF16)
        path->round(x, numel, (uint16_t *)dst.data + at);
    else
        memcpy((float *)dst.data + at, x, (size_t)numel * sizeof *x);
}

static void decode(const tess_coded *coded, int64_t first_idx, tess_view dst)
{
    const tess_gguf_path *path = path_current();
    const tess_format format = coded->codec->format;
    const tess_block_size size = tess_format_block(format);
    const uint8_t *block = coded->part[0];
    float stage[STAGE_NUMEL];
    for (int64_t done = 0, numel = 0; done < dst.numel; done += numel) {
        const int64_t idx = first_idx + done, skip = idx % size.numel, left = dst.numel - done;
        const uint8_t *from = block + (size_t)(idx / size.numel) * size.nbytes;
        const int64_t whole_numel = skip == 0 ? left / size.numel : 0;
        if (whole_numel > 0 && dst.dt == TESS_F32) {
            numel = whole_numel * size.numel;
            path->decode[format](from, whole_numel, (float *)dst.data + done);
            continue;
        }
        const int64_t block_numel =
            TESS_MAX(TESS_MIN(whole_numel, STAGE_NUMEL / size.numel), INT64_C(1));
        path->decode[format](from, block_numel, stage);
        numel = TESS_MIN(block_numel * size.numel - skip, left);
        put(path, dst, done, stage + skip, numel);
    }
}

static void half_decode(const tess_coded *coded, int64_t first_idx, tess_view dst)
{
    const tess_gguf_path *path = path_current();
    const uint16_t *x = (const uint16_t *)coded->part[0] + first_idx;
    float stage[STAGE_NUMEL];
    if (dst.dt == TESS_F32) {
        path->half(x, dst.numel, dst.data);
        return;
    }
    for (int64_t at = 0; at < dst.numel; at += STAGE_NUMEL) {
        const int64_t numel = TESS_MIN(dst.numel - at, STAGE_NUMEL);
        path->half(x + at, numel, stage);
        put(path, dst, at, stage, numel);
    }
}

/* ---- encoding ---- */

typedef struct encode_job {
    const tess_quantize_args *a;
    int64_t unit_numel;        /* elements encoded together */
    int64_t bad_idx[PART_MAX]; /* per part: first element of a block that cannot be held, or -1 */
} encode_job;

static void read_elements(const tess_view *src, int64_t first_idx, int64_t numel, float *x)
{
    for (int64_t i = 0; i < numel; i++)
        x[i] = src->dt == TESS_BF16 ? tess_bf16_to_f32(((const uint16_t *)src->data)[first_idx + i])
                                    : ((const float *)src->data)[first_idx + i];
}

static bool put_scale(float d, uint8_t *block)
{
    const uint16_t half = tess_f16_from_f32(d);
    block[0] = (uint8_t)(half & 255);
    block[1] = (uint8_t)(half >> 8);
    return (half & 0x7fff) < 0x7c00; /* also false for NaN */
}

static bool q8_0_encode(const float *x, uint8_t *block)
{
    float most = 0.0F;
    for (int i = 0; i < 32; i++)
        most = isfinite(x[i]) ? fmaxf(most, fabsf(x[i])) : INFINITY;
    const float d = most / 127.0F, inverse = d > 0.0F ? 1.0F / d : 0.0F;
    if (!put_scale(d, block))
        return false;
    for (int i = 0; i < 32; i++) {
        /* 1/d overflows where d is subnormal; the stored scale is 0 then. */
        const float scaled = isfinite(inverse) ? roundf(x[i] * inverse) : 0.0F;
        block[2 + i] = (uint8_t)(int8_t)fminf(fmaxf(scaled, -127.0F), 127.0F);
    }
    return true;
}

static bool q4_0_encode(const float *x, uint8_t *block)
{
    float most = 0.0F, signed_most = 0.0F;
    for (int i = 0; i < 32; i++) {
        if (!isfinite(x[i]))
            return false;
        if (fabsf(x[i]) > most) {
            most = fabsf(x[i]);
            signed_most = x[i];
        }
    }
    const float d = signed_most / -8.0F, inverse = d != 0.0F ? 1.0F / d : 0.0F;
    uint8_t q[32];
    for (int i = 0; i < 32; i++) {
        const float scaled = isfinite(inverse) ? x[i] * inverse : 0.0F;
        q[i] = (uint8_t)fminf(scaled + 8.5F, 15.0F);
    }
    for (int i = 0; i < 16; i++)
        block[2 + i] = (uint8_t)(q[i] | q[i + 16] << 4);
    return put_scale(d, block);
}

static bool half_encode(const float *x, int64_t numel, uint16_t *y)
{
    bool is_held = true;
    for (int64_t i = 0; i < numel; i++) {
        y[i] = tess_f16_from_f32(x[i]);
        is_held = is_held && (y[i] & 0x7fff) < 0x7c00;
    }
    return is_held;
}

static bool unit_encode(const tess_quantize_args *a, int64_t idx, int64_t numel)
{
    const tess_block_size size = tess_format_block(a->codec.format);
    float x[STAGE_NUMEL];
    read_elements(&a->src, idx, numel, x);
    if (a->codec.format == TESS_FORMAT_F16)
        return half_encode(x, numel, (uint16_t *)a->part[0] + idx);
    uint8_t *block = (uint8_t *)a->part[0] + (size_t)(idx / size.numel) * size.nbytes;
    return a->codec.format == TESS_FORMAT_Q8_0 ? q8_0_encode(x, block) : q4_0_encode(x, block);
}

static void encode_body(void *arg, int part_idx, int part_numel)
{
    encode_job *j = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(j->a->src.numel, j->unit_numel, part_idx, part_numel, &lo, &hi);
    j->bad_idx[part_idx] = -1;
    for (int64_t idx = lo; idx < hi; idx += j->unit_numel) {
        if (!unit_encode(j->a, idx, TESS_MIN(j->unit_numel, hi - idx))) {
            j->bad_idx[part_idx] = idx;
            return;
        }
    }
}

/* Name the element of a block that cannot be held: not finite, or else the largest. */
static tess_status refuse(const encode_job *j, int64_t first_idx)
{
    const tess_quantize_args *a = j->a;
    const int64_t numel = TESS_MIN(j->unit_numel, a->src.numel - first_idx);
    int64_t worst = 0;
    float x[STAGE_NUMEL];
    read_elements(&a->src, first_idx, numel, x);
    for (int64_t i = 0; i < numel && isfinite(x[worst]); i++)
        if (!isfinite(x[i]) || fabsf(x[i]) > fabsf(x[worst]))
            worst = i;
    return TESS_FAIL(TESS_E_FORMAT,
                     "tensor '%s': element %" PRId64 " is %g, expected %s; %s cannot hold it, so "
                     "repair the source or keep this tensor in bf16",
                     a->tensor_name != NULL ? a->tensor_name : "", first_idx + worst,
                     (double)x[worst],
                     isfinite(x[worst]) ? "values whose scale fits fp16" : "finite values",
                     tess_format_name(a->codec.format));
}

static tess_status encode(const tess_quantize_args *a, tess_pool *pool)
{
    const int part_numel = tess_pool_thread_numel(pool);
    const tess_format format = a->codec.format;
    encode_job j = {.a = a, .unit_numel = format == TESS_FORMAT_F16 ? STAGE_NUMEL : 32};
    TESS_CHECK(format == TESS_FORMAT_F16 || format == TESS_FORMAT_Q8_0 ||
                   format == TESS_FORMAT_Q4_0,
               TESS_E_UNSUPPORTED,
               "tensor '%s': %s is read from GGUF files but not written; expected f16, q8_0 or "
               "q4_0",
               a->tensor_name != NULL ? a->tensor_name : "", tess_format_name(format));
    tess_pool_run(pool, part_numel, encode_body, &j);
    for (int i = 0; i < part_numel; i++)
        if (j.bad_idx[i] >= 0)
            return refuse(&j, j.bad_idx[i]);
    return TESS_OK;
}

const tess_cpu_codec tess_cpu_codec_gguf = {.decode = decode, .encode = encode};
const tess_cpu_codec tess_cpu_codec_half = {.decode = half_decode, .encode = encode};
