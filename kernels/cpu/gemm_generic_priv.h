/**
 * Parts of an instruction path in plain C, compiled once in the file of each path that includes
 * them.
 */
#pragma once

#include <string.h>

#include "kernels/cpu/gemm_priv.h"

static inline uint32_t generic_load(const tess_gemm_pack *p, int64_t idx)
{
    if (p->is_src_bf16)
        return (uint32_t)((const uint16_t *)p->src)[idx];
    return ((const uint32_t *)p->src)[idx];
}

/* Unit `unit_idx` of line `line`: element strides of both axes are given. */
static inline uint32_t generic_unit(const tess_gemm_pack *p, int64_t base, int64_t k_stride,
                                    int64_t unit_idx)
{
    if (p->unit == TESS_GEMM_UNIT_F32) {
        const uint32_t x = generic_load(p, base + unit_idx * k_stride);
        return p->is_src_bf16 ? x << 16 : x;
    }
    const int64_t k = 2 * unit_idx;
    const uint32_t low = generic_load(p, base + k * k_stride);
    const uint32_t high = k + 1 < p->k_numel ? generic_load(p, base + (k + 1) * k_stride) : 0;
    return low | high << 16;
}

static inline int64_t generic_units(const tess_gemm_pack *p)
{
    return p->unit == TESS_GEMM_UNIT_PAIR ? (p->k_numel + 1) / 2 : p->k_numel;
}

static inline void generic_pack_across(const tess_gemm_pack *p)
{
    const int64_t unit_numel = generic_units(p);
    for (int64_t u = 0; u < unit_numel; u++) {
        uint32_t *dst = p->dst + u * p->dst_stride;
        for (int64_t i = 0; i < p->fill_numel; i++)
            dst[i] = i < p->line_numel ? generic_unit(p, i * p->stride, 1, u) : 0;
    }
}

static inline void generic_pack_along(const tess_gemm_pack *p)
{
    const int64_t unit_numel = generic_units(p);
    for (int64_t u = 0; u < unit_numel; u++) {
        uint32_t *dst = p->dst + u * p->dst_stride;
        for (int64_t i = 0; i < p->fill_numel; i++)
            dst[i] = i < p->line_numel ? generic_unit(p, i, p->stride, u) : 0;
    }
}

static inline void generic_add_scaled(float *dst, const float *src, float scale, int64_t numel)
{
    for (int64_t i = 0; i < numel; i++)
        dst[i] += scale * src[i];
}

static inline float generic_bias(const tess_gemm_out *o, int64_t col)
{
    return o->is_bias_bf16 ? tess_bf16_to_f32(((const uint16_t *)o->bias)[col])
                           : ((const float *)o->bias)[col];
}

static inline void generic_write_row(const tess_gemm_out *o, const float *restrict sum, void *c)
{
    float *restrict c_f32 = c;
    uint16_t *restrict c_bf16 = c;
    float row[TESS_GEMM_PANEL_MAX];
    for (int64_t j = 0; j < o->col_numel; j++)
        row[j] = sum[j];
    if (o->bias != NULL) {
        for (int64_t j = 0; j < o->col_numel; j++)
            row[j] += generic_bias(o, j);
    }
    if (o->is_c_bf16) {
        for (int64_t j = 0; j < o->col_numel; j++)
            c_bf16[j] = tess_bf16_from_f32(row[j]);
    } else if (o->is_accumulating) {
        for (int64_t j = 0; j < o->col_numel; j++)
            c_f32[j] += row[j];
    } else {
        for (int64_t j = 0; j < o->col_numel; j++)
            c_f32[j] = row[j];
    }
}

static inline void generic_write_transposed(const tess_gemm_out *o)
{
    for (int64_t j = 0; j < o->col_numel; j++) {
        for (int64_t i = 0; i < o->row_numel; i++) {
            const float sum = o->sum[i * o->sum_stride + j];
            float *c_f32 = (float *)o->c + j * o->c_stride + i;
            if (o->is_c_bf16)
                ((uint16_t *)o->c)[j * o->c_stride + i] = tess_bf16_from_f32(sum);
            else
                *c_f32 = o->is_accumulating ? *c_f32 + sum : sum;
        }
    }
}

static inline void generic_write(const tess_gemm_out *o)
{
    if (o->is_transposed) {
        generic_write_transposed(o);
        return;
    }
    const int64_t elem_nbytes = o->is_c_bf16 ? 2 : 4;
    for (int64_t i = 0; i < o->row_numel; i++)
        generic_write_row(o, o->sum + i * o->sum_stride,
                          (char *)o->c + i * o->c_stride * elem_nbytes);
}

static inline unsigned generic_code4(const uint8_t *codes, int64_t idx)
{
    const unsigned byte = codes[idx >> 1];
    return (idx & 1) != 0 ? byte & 15U : byte >> 4;
}

/* Elements [first, first + numel) of the tensor, all of one block. */
static inline void generic_lut16_block(const tess_lut16_rows *r, int64_t first, int64_t numel,
                                       float absmax, void *dst)
{
    float f32[16];
    uint16_t bf16[16];
    for (int i = 0; i < 16; i++) {
        f32[i] = r->table[i] * absmax;
        bf16[i] = tess_bf16_from_f32(f32[i]);
    }
    for (int64_t i = 0; i < numel; i++) {
        const unsigned code = generic_code4(r->codes, first + i);
        if (r->is_dst_bf16)
            ((uint16_t *)dst)[i] = bf16[code];
        else
            ((float *)dst)[i] = f32[code];
    }
}

static inline void generic_lut16_rows(const tess_lut16_rows *r)
{
    char *dst = r->dst;
    for (int64_t row = 0; row < r->row_numel; row++) {
        const float *absmax = r->absmax + row * r->absmax_stride;
        const int64_t end = r->first_idx + row * r->stride + r->col_numel;
        for (int64_t idx = end - r->col_numel, numel = 0; idx < end; idx += numel) {
            numel = TESS_MIN((idx | (r->block_numel - 1)) + 1, end) - idx;
            generic_lut16_block(r, idx, numel, *absmax++, dst);
            dst += numel * (r->is_dst_bf16 ? 2 : 4);
        }
    }
}
