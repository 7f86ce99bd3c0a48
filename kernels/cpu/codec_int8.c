/*
 * int8 by row, as bitsandbytes' LLM.int8 keeps weights.
 *
 * Encode: x is rounded to fp16; scb = amax of the row; code = rint(x * (127/scb)), half to even; a
 * row of zeros has scb 0 and codes 0. Decode: f32(f32(code * scb) / 127), then one rounding to what
 * is asked for. Division and product in f32 as written: bitsandbytes multiplies by f32(1/127),
 * which differs in the last bit of some values.
 */
#include <inttypes.h>
#include <math.h>

#include "core/arith.h"
#include "core/half.h"
#include "kernels/cpu/codec_scaled_priv.h"

enum { CODE_MAX = 127, PART_MAX = 1024 };

static void decode(const tess_coded *from, int64_t first_idx, tess_view dst)
{
    const tess_scaled_path *path = tess_scaled_path_current();
    const int64_t row_numel = from->codec->block_numel;
    const bool is_bf16 = dst.dt == TESS_BF16;
    for (int64_t done = 0, numel = 0; done < dst.numel; done += numel) {
        const int64_t idx = first_idx + done, row_idx = idx / row_numel;
        const int8_t *code = (const int8_t *)from->part[0] + idx;
        const float scb = ((const float *)from->part[1])[row_idx];
        numel = TESS_MIN((row_idx + 1) * row_numel - idx, dst.numel - done);
        path->int8(code, scb, numel, is_bf16, (char *)dst.data + (size_t)done * (is_bf16 ? 2 : 4));
    }
}

/* ---- encoding ---- */

typedef struct job {
    const tess_quantize_args *a;
    int64_t bad_idx[PART_MAX]; /* per part: first element that fp16 cannot hold, or -1 */
} job;

static float element_get(const tess_view *src, int64_t idx)
{
    return src->dt == TESS_BF16 ? tess_bf16_to_f32(((const uint16_t *)src->data)[idx])
                                : ((const float *)src->data)[idx];
}

static float half_get(const tess_view *src, int64_t idx)
{
    return tess_f16_to_f32(tess_f16_from_f32(element_get(src, idx)));
}

/* The first element that is not finite in fp16, or -1. */
static int64_t row_encode(const tess_quantize_args *a, int64_t first_idx, int64_t numel)
{
    int8_t *code = (int8_t *)a->part[0] + first_idx;
    float scb = 0.0F;
    for (int64_t i = 0; i < numel; i++) {
        const float x = half_get(&a->src, first_idx + i);
        if (!isfinite(x))
            return first_idx + i;
        scb = fmaxf(scb, fabsf(x));
    }
    const float scale = scb > 0.0F ? (float)CODE_MAX / scb : 0.0F;
    for (int64_t i = 0; i < numel; i++)
        code[i] = (int8_t)rintf(half_get(&a->src, first_idx + i) * scale);
    ((float *)a->part[1])[first_idx / a->codec.block_numel] = scb;
    return -1;
}

static void encode_body(void *arg, int part_idx, int part_numel)
{
    job *j = arg;
    const int64_t row_numel = j->a->codec.block_numel;
    int64_t lo = 0, hi = 0;
    tess_pool_range(j->a->src.numel, row_numel, part_idx, part_numel, &lo, &hi);
    j->bad_idx[part_idx] = -1;
    for (int64_t idx = lo; idx < hi && j->bad_idx[part_idx] < 0; idx += row_numel)
        j->bad_idx[part_idx] = row_encode(j->a, idx, TESS_MIN(row_numel, hi - idx));
}

static tess_status encode(const tess_quantize_args *a, tess_pool *pool)
{
    const int part_numel = tess_pool_thread_numel(pool);
    job j = {.a = a};
    tess_pool_run(pool, part_numel, encode_body, &j);
    for (int i = 0; i < part_numel; i++)
        TESS_CHECK(j.bad_idx[i] < 0, TESS_E_FORMAT,
                   "tensor '%s': element %" PRId64 " is %g, expected values that fp16 holds; int8 "
                   "cannot keep it, so repair the source or keep this tensor in bf16",
                   a->tensor_name != NULL ? a->tensor_name : "", j.bad_idx[i],
                   (double)element_get(&a->src, j.bad_idx[i]));
    return TESS_OK;
}

const tess_cpu_codec tess_cpu_codec_int8 = {.decode = decode, .encode = encode};
