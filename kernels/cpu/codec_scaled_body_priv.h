/*
 * Scaled codes in C that compilers turn into vector code; a path's file includes this once. Every
 * operation is rounded by itself, to the dtype of the scale where the format says so.
 */
#pragma once

#include <math.h>
#include <string.h>

#include "core/arith.h"
#include "core/fp8.h"
#include "core/half.h"
#include "kernels/cpu/codec_scaled_priv.h"
#include "kernels/elementwise.h"
#include "kernels/math_priv.h"

#define FORCE static inline __attribute__((always_inline))

/* Infinity stays, and so does the NaN of an fp8 code: its low bits are zero, so nothing is carried
 * into the sign. */
FORCE float to_bf16(float x)
{
    const uint32_t bits = tess_f32_bits(x);
    return tess_f32_of_bits((bits + 0x7fffU + (bits >> 16 & 1U)) & 0xffff0000U);
}

/* Masks and no choices: compilers leave a choice between sums as a branch. */
FORCE float to_f16(float x)
{
    const uint32_t bits = tess_f32_bits(x), sign = bits & 0x80000000U;
    const uint32_t magnitude = bits & 0x7fffffffU;
    const uint32_t normal = (magnitude + 0xfffU + (magnitude >> 13 & 1U)) & 0xffffe000U;
    /* The last place of 0.5 is the step of f16's subnormals. */
    const uint32_t small = tess_f32_bits((tess_f32_of_bits(magnitude) + 0.5F) - 0.5F);
    const uint32_t is_small = 0U - (uint32_t)(magnitude < 0x38800000U);
    const uint32_t is_over = 0U - (uint32_t)(magnitude >= 0x477ff000U); /* 65520 */
    const uint32_t is_nan = 0U - (uint32_t)(magnitude > 0x7f800000U);
    const uint32_t over = 0x7f800000U | (0x400000U & is_nan);
    const uint32_t held = (small & is_small) | (normal & ~is_small);
    return tess_f32_of_bits(sign | (over & is_over) | (held & ~is_over));
}

FORCE float to_dtype(tess_dtype dt, float x)
{
    return dt == TESS_BF16 ? to_bf16(x) : dt == TESS_F16 ? to_f16(x) : x;
}

FORCE float array_get(const void *array, tess_dtype dt, int64_t idx)
{
    if (dt == TESS_F32)
        return ((const float *)array)[idx];
    const uint16_t x = ((const uint16_t *)array)[idx];
    return dt == TESS_BF16 ? tess_bf16_to_f32(x) : tess_f16_to_f32(x);
}

/* ---- decoding ---- */

/* Elements of one block. */
typedef struct piece {
    const uint8_t *codes;
    int64_t numel;
    float scale, shift;
    int first_bit;
    uint32_t mask;
    void *dst;
} piece;

FORCE float number_of(tess_code_kind kind, uint8_t code, int first_bit, uint32_t mask)
{
    switch (kind) {
    case TESS_CODE_INT8:
        return (float)(int8_t)code;
    case TESS_CODE_E4M3:
        return tess_e4m3_to_f32(code);
    case TESS_CODE_E5M2:
        return tess_e5m2_to_f32(code);
    case TESS_CODE_BITS:
        break;
    }
    return (float)(int32_t)((uint32_t)code >> first_bit & mask);
}

FORCE float element_of(const piece *p, int64_t i, tess_code_kind kind, tess_dtype dt)
{
    const float x = to_dtype(dt, p->scale * number_of(kind, p->codes[i], p->first_bit, p->mask));
    return kind == TESS_CODE_BITS ? to_dtype(dt, x - p->shift) : x;
}

FORCE void decode_as(piece p, tess_code_kind kind, tess_dtype dt, bool is_bf16)
{
    float *restrict wide = p.dst;
    uint16_t *restrict half = p.dst;
    if (is_bf16) {
        for (int64_t i = 0; i < p.numel; i++)
            half[i] = (uint16_t)(tess_f32_bits(to_bf16(element_of(&p, i, kind, dt))) >> 16);
    } else {
        for (int64_t i = 0; i < p.numel; i++)
            wide[i] = element_of(&p, i, kind, dt);
    }
}

FORCE void decode_kind(const piece *p, tess_code_kind kind, tess_dtype dt, bool is_bf16)
{
    if (dt == TESS_BF16 && is_bf16)
        decode_as(*p, kind, TESS_BF16, true);
    else if (dt == TESS_BF16)
        decode_as(*p, kind, TESS_BF16, false);
    else if (dt == TESS_F16 && is_bf16)
        decode_as(*p, kind, TESS_F16, true);
    else if (dt == TESS_F16)
        decode_as(*p, kind, TESS_F16, false);
    else if (is_bf16)
        decode_as(*p, kind, TESS_F32, true);
    else
        decode_as(*p, kind, TESS_F32, false);
}

static void decode_piece(const tess_scaled_run *r, const piece *p)
{
    switch (r->kind) {
    case TESS_CODE_INT8:
        decode_kind(p, TESS_CODE_INT8, r->round, r->is_dst_bf16);
        return;
    case TESS_CODE_E4M3:
        decode_kind(p, TESS_CODE_E4M3, r->round, r->is_dst_bf16);
        return;
    case TESS_CODE_E5M2:
        decode_kind(p, TESS_CODE_E5M2, r->round, r->is_dst_bf16);
        return;
    case TESS_CODE_BITS:
        decode_kind(p, TESS_CODE_BITS, r->round, r->is_dst_bf16);
        return;
    }
}

static void scaled_decode(const tess_scaled_run *r)
{
    const size_t elem_nbytes = r->is_dst_bf16 ? 2 : 4;
    int64_t block_idx = 0, left = r->block_numel - r->skip_numel;
    piece p = {.first_bit = r->first_bit, .mask = (1U << r->code_bits) - 1U};
    for (int64_t done = 0; done < r->numel; done += p.numel) {
        const float scale = r->scale != NULL ? array_get(r->scale, r->scale_dt, block_idx) : 1.0F;
        p.codes = r->codes + done;
        p.dst = (char *)r->dst + (size_t)done * elem_nbytes;
        p.numel = TESS_MIN(left, r->numel - done);
        p.scale = r->is_inverse ? 1.0F / scale : scale;
        p.shift = r->shift != NULL ? array_get(r->shift, r->scale_dt, block_idx) : 0.0F;
        decode_piece(r, &p);
        left = r->block_numel;
        block_idx++;
    }
}

FORCE void int8_as(const int8_t *restrict code, float scb, int64_t numel, bool is_bf16, void *dst)
{
    float *restrict wide = dst;
    uint16_t *restrict half = dst;
    for (int64_t i = 0; i < numel; i++) {
        const float x = (float)code[i] * scb / 127.0F;
        if (is_bf16)
            half[i] = (uint16_t)(tess_f32_bits(to_bf16(x)) >> 16);
        else
            wide[i] = x;
    }
}

static void scaled_int8(const int8_t *code, float scb, int64_t numel, bool is_dst_bf16, void *dst)
{
    uint16_t *half = dst;
    if (!is_dst_bf16)
        int8_as(code, scb, numel, false, dst);
    else if (isfinite(scb))
        int8_as(code, scb, numel, true, dst);
    else /* a NaN of any bits may come out */
        for (int64_t i = 0; i < numel; i++)
            half[i] = tess_bf16_from_f32((float)code[i] * scb / 127.0F);
}

/* ---- encoding ---- */

static void scaled_read(const tess_view *src, int64_t first, int64_t numel, tess_dtype round,
                        float *restrict x)
{
    if (src->dt == TESS_BF16) {
        const uint16_t *from = (const uint16_t *)src->data + first;
        for (int64_t i = 0; i < numel; i++)
            x[i] = tess_bf16_to_f32(from[i]);
    } else {
        memcpy(x, (const float *)src->data + first, (size_t)numel * sizeof *x);
    }
    if (round == TESS_F16) {
        for (int64_t i = 0; i < numel; i++)
            x[i] = x[i] != x[i] ? x[i] : to_f16(x[i]);
    } else if (round == TESS_BF16 && src->dt != TESS_BF16) {
        for (int64_t i = 0; i < numel; i++)
            x[i] = x[i] != x[i] ? x[i] : to_bf16(x[i]);
    }
}

static bool scaled_span(const float *x, int64_t numel, float *least, float *most)
{
    float lo = *least, hi = *most;
    uint32_t worst = 0;
    for (int64_t i = 0; i < numel; i++) {
        const uint32_t magnitude = tess_f32_bits(x[i]) & 0x7fffffffU;
        worst = magnitude > worst ? magnitude : worst;
        lo = x[i] < lo ? x[i] : lo;
        hi = x[i] > hi ? x[i] : hi;
    }
    *least = lo;
    *most = hi;
    return worst < 0x7f800000U;
}

/* Rounded to a whole number, half to even: |x| is far below 2^22. */
FORCE float to_whole(float x) { return (x + 12582912.0F) - 12582912.0F; }

FORCE float scaled_of(const tess_scaled_rule *rule, float x, tess_dtype dt)
{
    const float sum = rule->kind == TESS_CODE_BITS ? to_dtype(dt, x + rule->shift) : x;
    const float y = to_dtype(dt, rule->is_multiplied ? sum * rule->scale : sum / rule->scale);
    const float above = y < rule->least ? rule->least : y;
    return above > rule->most ? rule->most : above;
}

FORCE void encode_as(const float *restrict x, int64_t numel, const tess_scaled_rule *rule,
                     tess_dtype dt, uint8_t *restrict code)
{
    const tess_scaled_rule r = *rule;
    switch (r.kind) {
    case TESS_CODE_E4M3:
        for (int64_t i = 0; i < numel; i++)
            code[i] = tess_e4m3_from_f32(scaled_of(&r, x[i], dt));
        return;
    case TESS_CODE_E5M2:
        for (int64_t i = 0; i < numel; i++)
            code[i] = tess_e5m2_from_f32(scaled_of(&r, x[i], dt));
        return;
    case TESS_CODE_INT8:
    case TESS_CODE_BITS:
        for (int64_t i = 0; i < numel; i++)
            code[i] = (uint8_t)(int8_t)to_whole(scaled_of(&r, x[i], dt));
        return;
    }
}

static void scaled_encode(const float *x, int64_t numel, const tess_scaled_rule *rule,
                          uint8_t *code)
{
    if (rule->scale == 0.0F)
        memset(code, 0, (size_t)numel);
    else if (rule->round == TESS_BF16)
        encode_as(x, numel, rule, TESS_BF16, code);
    else if (rule->round == TESS_F16)
        encode_as(x, numel, rule, TESS_F16, code);
    else
        encode_as(x, numel, rule, TESS_F32, code);
}

FORCE void values_as(const uint8_t *restrict code, int64_t numel, const tess_scaled_rule *rule,
                     tess_dtype dt, float *restrict y)
{
    const float scale = rule->scale, shift = rule->shift;
    for (int64_t i = 0; i < numel; i++)
        y[i] = to_dtype(dt, to_dtype(dt, scale * (float)code[i]) - shift);
}

static void scaled_values(const uint8_t *code, int64_t numel, const tess_scaled_rule *rule,
                          float *y)
{
    if (rule->round == TESS_BF16)
        values_as(code, numel, rule, TESS_BF16, y);
    else if (rule->round == TESS_F16)
        values_as(code, numel, rule, TESS_F16, y);
    else
        values_as(code, numel, rule, TESS_F32, y);
}

#define SCALED_PATH                                                                                \
    {                                                                                              \
        .decode = scaled_decode, .int8 = scaled_int8, .read = scaled_read, .span = scaled_span,    \
        .encode = scaled_encode, .values = scaled_values,                                          \
    }
