/*
 * Encoders of quanto's formats and of fp8.
 *
 * Values are first rounded to the dtype of a quanto scale, as a weight of that dtype is what quanto
 * quantizes. qint8, qfloat8: scale = round(amax / max), code = clamp(round(x / scale)), max 127,
 * 448 or 57344. qint4, qint2: codec_scaled_fit.c gives scale and shift, code = clamp(round(round(x
 * + shift) / scale)). fp8: the scale is f32(amax / max) and x / scale becomes a code, or it is
 * f32(max / max(amax, 1e-12)), the quotient in f64, and f32(x * scale) does; raw: x does. Codes are
 * rounded half to even and clamped before they are narrowed. A scale of 0 (zeros, or an underflow)
 * has codes 0.
 *
 * @source optimum-quanto library/quantize.py, tensor/optimizers; torchao float8/float8_utils.py
 */
#include <inttypes.h>
#include <math.h>

#include "core/arith.h"
#include "core/fp8.h"
#include "kernels/cpu/codec_scaled_priv.h"

enum { PART_MAX = 1024 };

typedef struct job {
    const tess_quantize_args *a;
    const tess_scaled_path *path;
    tess_scaled_rule rule;     /* scale and shift of a whole tensor */
    int64_t block_numel;       /* elements that share them, or are worked on together */
    float amax[PART_MAX];      /* per part */
    int64_t bad_idx[PART_MAX]; /* per part: first element of a block that cannot be held, or -1 */
} job;

/* Lower *least and raise *most to the values of a block; false where one is not finite. */
static bool block_span(const job *j, int64_t first, int64_t numel, float *least, float *most)
{
    float x[TESS_SCALED_CHUNK_NUMEL];
    bool is_finite = true;
    for (int64_t at = 0; at < numel && is_finite; at += TESS_SCALED_CHUNK_NUMEL) {
        const int64_t chunk = TESS_MIN(numel - at, TESS_SCALED_CHUNK_NUMEL);
        j->path->read(&j->a->src, first + at, chunk, j->rule.round, x);
        is_finite = j->path->span(x, chunk, least, most);
    }
    return is_finite;
}

/* Name the element of a block that cannot be held: not finite, or else the largest. */
static tess_status refuse(const job *j, int64_t first)
{
    const tess_quantize_args *a = j->a;
    const int64_t numel = TESS_MIN(j->block_numel, a->src.numel - first);
    char text[TESS_CODEC_TEXT_NBYTES];
    float worst = 0.0F;
    int64_t worst_idx = first;
    for (int64_t i = first; i < first + numel && isfinite(worst); i++) {
        float x = 0.0F;
        j->path->read(&a->src, i, 1, TESS_F32, &x);
        if (!isfinite(x) || fabsf(x) > fabsf(worst)) {
            worst = x;
            worst_idx = i;
        }
    }
    tess_codec_describe(&a->codec, text);
    return TESS_FAIL(TESS_E_FORMAT,
                     "tensor '%s': element %" PRId64 " is %g, expected %s%s; %s cannot hold it, so "
                     "repair the source or keep this tensor in bf16",
                     a->tensor_name != NULL ? a->tensor_name : "", worst_idx, (double)worst,
                     isfinite(worst) ? "values that fit, with their scale, in " : "finite values",
                     isfinite(worst) ? tess_dtype_name(j->rule.round) : "", text);
}

static tess_status run(job *j, tess_pool *pool, void (*body)(void *, int, int))
{
    const int part_numel = tess_pool_thread_numel(pool);
    tess_pool_run(pool, part_numel, body, j);
    for (int i = 0; i < part_numel; i++)
        if (j->bad_idx[i] >= 0)
            return refuse(j, j->bad_idx[i]);
    return TESS_OK;
}

/* ---- a code per byte ---- */

static bool is_fp8(const tess_codec *c)
{
    return c->format == TESS_FORMAT_E4M3 || c->format == TESS_FORMAT_E5M2;
}

static tess_scaled_rule byte_rule(const tess_codec *c)
{
    tess_scaled_rule r = {.kind = TESS_CODE_E4M3,
                          .scale = 1.0F,
                          .round = is_fp8(c) ? TESS_F32 : c->scale_dt,
                          .is_multiplied = is_fp8(c) && c->meaning == TESS_SCALE_QUANT,
                          .least = -TESS_E4M3_MAX,
                          .most = TESS_E4M3_MAX};
    if (c->format == TESS_FORMAT_QINT8) {
        r.kind = TESS_CODE_INT8;
        r.least = -128.0F;
        r.most = 127.0F;
    } else if (c->format == TESS_FORMAT_E5M2 || c->format == TESS_FORMAT_QFLOAT8_E5M2) {
        r.kind = TESS_CODE_E5M2;
        r.least = -TESS_E5M2_MAX;
        r.most = TESS_E5M2_MAX;
    }
    return r;
}

/* The scale of values of at most `amax`, stored and as it will be read. */
static bool put_scale(const job *j, float amax, int64_t block_idx, tess_scaled_rule *r)
{
    const tess_codec *c = &j->a->codec;
    const float scale =
        r->is_multiplied ? (float)((double)r->most / fmax((double)amax, 1e-12)) : amax / r->most;
    const bool is_finite = tess_scaled_put(j->a->part[1], c->scale_dt, block_idx, scale);
    r->scale = tess_scaled_get(j->a->part[1], c->scale_dt, block_idx);
    return is_finite;
}

static void block_encode(const job *j, int64_t first, int64_t numel, const tess_scaled_rule *r)
{
    float x[TESS_SCALED_CHUNK_NUMEL];
    for (int64_t at = 0; at < numel; at += TESS_SCALED_CHUNK_NUMEL) {
        const int64_t chunk = TESS_MIN(numel - at, TESS_SCALED_CHUNK_NUMEL);
        j->path->read(&j->a->src, first + at, chunk, r->round, x);
        j->path->encode(x, chunk, r, (uint8_t *)j->a->part[0] + first + at);
    }
}

static void span_body(void *arg, int part_idx, int part_numel)
{
    job *j = arg;
    int64_t lo = 0, hi = 0;
    float least = 0.0F, most = 0.0F;
    tess_pool_range(j->a->src.numel, j->block_numel, part_idx, part_numel, &lo, &hi);
    j->bad_idx[part_idx] = -1;
    for (int64_t at = lo; at < hi && j->bad_idx[part_idx] < 0; at += j->block_numel)
        if (!block_span(j, at, TESS_MIN(j->block_numel, hi - at), &least, &most))
            j->bad_idx[part_idx] = at;
    j->amax[part_idx] = TESS_MAX(-least, most);
}

static void shared_body(void *arg, int part_idx, int part_numel)
{
    job *j = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(j->a->src.numel, j->block_numel, part_idx, part_numel, &lo, &hi);
    j->bad_idx[part_idx] = -1;
    block_encode(j, lo, hi - lo, &j->rule);
}

static void rows_body(void *arg, int part_idx, int part_numel)
{
    job *j = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(j->a->src.numel, j->block_numel, part_idx, part_numel, &lo, &hi);
    j->bad_idx[part_idx] = -1;
    for (int64_t at = lo; at < hi; at += j->block_numel) {
        const int64_t numel = TESS_MIN(j->block_numel, hi - at);
        tess_scaled_rule r = j->rule;
        float least = 0.0F, most = 0.0F;
        if (!block_span(j, at, numel, &least, &most) ||
            !put_scale(j, TESS_MAX(-least, most), at / j->block_numel, &r)) {
            j->bad_idx[part_idx] = at;
            return;
        }
        block_encode(j, at, numel, &r);
    }
}

/* One scale of the whole tensor, or none. */
static tess_status shared_encode(job *j, tess_pool *pool)
{
    float amax = 0.0F;
    j->block_numel = TESS_SCALED_CHUNK_NUMEL;
    TESS_TRY(run(j, pool, span_body));
    for (int i = 0; i < tess_pool_thread_numel(pool); i++)
        amax = TESS_MAX(amax, j->amax[i]);
    if (j->a->codec.scaling == TESS_SCALING_TENSOR) {
        const bool is_held = put_scale(j, amax, 0, &j->rule);
        j->block_numel = is_held ? j->block_numel : j->a->src.numel;
        if (!is_held)
            return refuse(j, 0);
    }
    return run(j, pool, shared_body);
}

tess_status tess_scaled_rows_encode(const tess_quantize_args *a, tess_pool *pool)
{
    job j = {.a = a,
             .path = tess_scaled_path_current(),
             .rule = byte_rule(&a->codec),
             .block_numel = a->codec.block_numel};
    if (is_fp8(&a->codec) && a->codec.scaling != TESS_SCALING_ROW)
        return shared_encode(&j, pool);
    return run(&j, pool, rows_body);
}

/* ---- groups in planes ---- */

static bool group_encode(const job *j, int64_t group, int bit, uint8_t *packed)
{
    const tess_codec *c = &j->a->codec;
    const int64_t first = group * j->block_numel;
    float least = INFINITY, most = -INFINITY, x[TESS_SCALED_CHUNK_NUMEL];
    uint8_t code[TESS_SCALED_CHUNK_NUMEL];
    tess_scaled_rule r = j->rule;
    const tess_scaled_group g = {.src = &j->a->src,
                                 .first_idx = first,
                                 .numel = j->block_numel,
                                 .dt = c->scale_dt,
                                 .rule = c->rule,
                                 .most = r.most};
    if (!block_span(j, first, j->block_numel, &least, &most) ||
        !tess_scaled_fit(&g, least, most, &r.scale, &r.shift))
        return false;
    for (int64_t at = 0; at < j->block_numel; at += TESS_SCALED_CHUNK_NUMEL) {
        const int64_t chunk = TESS_MIN(j->block_numel - at, TESS_SCALED_CHUNK_NUMEL);
        j->path->read(&j->a->src, first + at, chunk, r.round, x);
        j->path->encode(x, chunk, &r, code);
        for (int64_t i = 0; i < chunk; i++)
            packed[at + i] = (uint8_t)((bit > 0 ? packed[at + i] : 0) | code[i] << bit);
    }
    return tess_scaled_put(j->a->part[1], c->scale_dt, group, r.scale) &&
           tess_scaled_put(j->a->part[2], c->scale_dt, group, r.shift);
}

/* Groups that share bytes belong to one part. */
static void groups_body(void *arg, int part_idx, int part_numel)
{
    job *j = arg;
    const tess_codec *c = &j->a->codec;
    const int64_t row_numel = tess_codec_plane_rows(c, j->a->src.numel);
    const int64_t group_numel = j->a->src.numel / c->block_numel;
    const int code_bits = tess_format_code_bits(c->format);
    int64_t lo = 0, hi = 0;
    tess_pool_range(row_numel, 1, part_idx, part_numel, &lo, &hi);
    j->bad_idx[part_idx] = -1;
    for (int64_t row = lo; row < hi; row++) {
        uint8_t *packed = (uint8_t *)j->a->part[0] + row * c->block_numel;
        int bit = 0;
        for (int64_t group = row; group < group_numel; group += row_numel) {
            if (!group_encode(j, group, bit, packed)) {
                j->bad_idx[part_idx] = group * c->block_numel;
                return;
            }
            bit += code_bits;
        }
    }
}

tess_status tess_scaled_groups_encode(const tess_quantize_args *a, tess_pool *pool)
{
    const float most = (float)((1 << tess_format_code_bits(a->codec.format)) - 1);
    job j = {.a = a,
             .path = tess_scaled_path_current(),
             .rule = {.kind = TESS_CODE_BITS, .round = a->codec.scale_dt, .most = most},
             .block_numel = a->codec.block_numel};
    return run(&j, pool, groups_body);
}
