/* Packing, dequantization and results with 512-bit vectors. */
#include "kernels/cpu/gemm_avx512_priv.h"
#include "kernels/cpu/gemm_generic_priv.h"

/* Lanes [0, numel) of 16, 32. */
TESS_INLINE __mmask16 avx512_mask16(int64_t numel)
{
    const unsigned mask = numel >= 16 ? 0xffffU : (1U << numel) - 1U;
    return (__mmask16)mask;
}

TESS_INLINE __mmask32 avx512_mask32(int64_t numel)
{
    const uint64_t mask = numel >= 32 ? 0xffffffffU : (1ULL << numel) - 1U;
    return (__mmask32)mask;
}

/* -------- packing -------- */

typedef enum avx512_source { AVX512_F32, AVX512_WIDEN, AVX512_PAIR } avx512_source;

static inline avx512_source avx512_source_of(const tess_gemm_pack *p)
{
    if (!p->is_src_bf16)
        return AVX512_F32;
    return p->unit == TESS_GEMM_UNIT_PAIR ? AVX512_PAIR : AVX512_WIDEN;
}

TESS_INLINE __m512i avx512_widen(__m256i x)
{
    return _mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16);
}

/* A block of the packing: `is_full` when all its words and lanes are there, so that the common case
 * has no masks and no branches. `is_run` when all its words are there and up to 8 lanes lie without
 * gaps: then the spare lanes of a store are where the next words come, of which there must be 8. */
typedef struct avx512_block {
    const tess_gemm_pack *p;
    avx512_source source;
    int64_t line, word_idx, word_numel;
    bool is_full, is_run;
} avx512_block;

/* 16 words of 4 bytes of one row: f32, or pairs of bf16; beyond the row's end they are zero. */
TESS_INLINE __m512i avx512_load_words(const avx512_block *b, int64_t i)
{
    const tess_gemm_pack *p = b->p;
    const int64_t base = (b->line + i) * p->stride;
    const int64_t k = b->source == AVX512_F32 ? b->word_idx : 2 * b->word_idx;
    const uint32_t *src_f32 = (const uint32_t *)p->src + base + k;
    const uint16_t *src_bf16 = (const uint16_t *)p->src + base + k;
    if (!b->is_full && b->line + i >= p->line_numel)
        return _mm512_setzero_si512();
    if (b->is_full || b->is_run)
        return _mm512_loadu_si512(b->source == AVX512_F32 ? (const void *)src_f32 : src_bf16);
    if (b->source == AVX512_F32)
        return _mm512_maskz_loadu_epi32(avx512_mask16(p->k_numel - k), src_f32);
    return _mm512_maskz_loadu_epi16(avx512_mask32(p->k_numel - k), src_bf16);
}

TESS_INLINE void avx512_store(uint32_t *dst, const avx512_block *b, __mmask16 mask, __m512i x)
{
    if (b->is_full)
        _mm512_storeu_si512(dst, x);
    else if (b->is_run)
        _mm256_storeu_si256((void *)dst, _mm512_castsi512_si256(x));
    else
        _mm512_mask_storeu_epi32(dst, mask, x);
}

/* Word `i` of the block's 16 rows: as it is, or as the two f32 of its pair. */
TESS_INLINE void avx512_store_word(const avx512_block *b, int64_t i, __mmask16 mask, __m512i word)
{
    const tess_gemm_pack *p = b->p;
    const int64_t word_idx = b->word_idx + i;
    if (!b->is_full && !b->is_run && i >= b->word_numel)
        return;
    if (b->source != AVX512_WIDEN) {
        avx512_store(p->dst + word_idx * p->dst_stride + b->line, b, mask, word);
        return;
    }
    uint32_t *dst = p->dst + 2 * word_idx * p->dst_stride + b->line;
    avx512_store(dst, b, mask, _mm512_slli_epi32(word, 16));
    if (b->is_full || b->is_run || 2 * word_idx + 1 < p->k_numel)
        avx512_store(dst + p->dst_stride, b, mask,
                     _mm512_and_si512(word, _mm512_set1_epi32((int)0xffff0000U)));
}

/* Two steps of a transposition: quads of rows in every 128-bit lane. */
TESS_INLINE void avx512_transpose_4x4(const __m512i in[4], __m512i out[4])
{
    const __m512i low_01 = _mm512_unpacklo_epi32(in[0], in[1]);
    const __m512i high_01 = _mm512_unpackhi_epi32(in[0], in[1]);
    const __m512i low_23 = _mm512_unpacklo_epi32(in[2], in[3]);
    const __m512i high_23 = _mm512_unpackhi_epi32(in[2], in[3]);
    out[0] = _mm512_unpacklo_epi64(low_01, low_23);
    out[1] = _mm512_unpackhi_epi64(low_01, low_23);
    out[2] = _mm512_unpacklo_epi64(high_01, high_23);
    out[3] = _mm512_unpackhi_epi64(high_01, high_23);
}

/* 16 words of up to 8 rows. */
TESS_INLINE void avx512_across_8(const avx512_block *b)
{
    __m512i in[8];
    __m512i quad[8];
    TESS_UNROLL
    for (int i = 0; i < 8; i++)
        in[i] = avx512_load_words(b, i);
    avx512_transpose_4x4(in, quad);
    avx512_transpose_4x4(in + 4, quad + 4);
    const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    __m512i word[16];
    TESS_UNROLL
    for (int i = 0; i < 4; i++) {
        word[i] = _mm512_permutex2var_epi64(quad[i], low, quad[i + 4]);
        word[4 + i] = _mm512_shuffle_i64x2(word[i], word[i], 0xee);
        word[8 + i] = _mm512_permutex2var_epi64(quad[i], high, quad[i + 4]);
        word[12 + i] = _mm512_shuffle_i64x2(word[8 + i], word[8 + i], 0xee);
    }
    const __mmask16 mask = avx512_mask16(b->p->fill_numel);
    TESS_UNROLL
    for (int i = 0; i < 16; i++)
        avx512_store_word(b, i, mask, word[i]);
}

/* 16 words of up to 16 rows. */
TESS_INLINE void avx512_across_16(const avx512_block *b)
{
    __m512i in[16];
    __m512i quad[16];
    TESS_UNROLL
    for (int i = 0; i < 16; i++)
        in[i] = avx512_load_words(b, i);
    TESS_UNROLL
    for (int i = 0; i < 16; i += 4)
        avx512_transpose_4x4(in + i, quad + i);
    __m512i word[16];
    TESS_UNROLL
    for (int i = 0; i < 4; i++) {
        const __m512i low_0 = _mm512_shuffle_i32x4(quad[i], quad[4 + i], 0x44);
        const __m512i high_0 = _mm512_shuffle_i32x4(quad[i], quad[4 + i], 0xee);
        const __m512i low_1 = _mm512_shuffle_i32x4(quad[8 + i], quad[12 + i], 0x44);
        const __m512i high_1 = _mm512_shuffle_i32x4(quad[8 + i], quad[12 + i], 0xee);
        word[i] = _mm512_shuffle_i32x4(low_0, low_1, 0x88);
        word[4 + i] = _mm512_shuffle_i32x4(low_0, low_1, 0xdd);
        word[8 + i] = _mm512_shuffle_i32x4(high_0, high_1, 0x88);
        word[12 + i] = _mm512_shuffle_i32x4(high_0, high_1, 0xdd);
    }
    const __mmask16 mask = avx512_mask16(b->p->fill_numel - b->line);
    TESS_UNROLL
    for (int i = 0; i < 16; i++)
        avx512_store_word(b, i, mask, word[i]);
}

TESS_INLINE void avx512_across(const tess_gemm_pack *p, avx512_source source)
{
    const int64_t word_numel = source == AVX512_F32 ? p->k_numel : (p->k_numel + 1) / 2;
    const int64_t whole_numel = source == AVX512_F32 ? p->k_numel : p->k_numel / 2;
    for (int64_t i = 0; i < word_numel; i += 16) {
        avx512_block b = {p, source, 0, i, word_numel - i, false, false};
        if (p->fill_numel <= 8) {
            avx512_block run = b;
            run.is_run = true;
            if (i + 16 + 8 <= whole_numel && p->dst_stride == p->fill_numel)
                avx512_across_8(&run);
            else
                avx512_across_8(&b);
            continue;
        }
        for (; b.line < p->fill_numel; b.line += 16) {
            avx512_block full = b;
            full.is_full = true;
            if (i + 16 <= whole_numel && b.line + 16 <= p->line_numel)
                avx512_across_16(&full);
            else
                avx512_across_16(&b);
        }
    }
}

void tess_avx512_pack_across(const tess_gemm_pack *p)
{
    switch (avx512_source_of(p)) {
    case AVX512_F32:
        avx512_across(p, AVX512_F32);
        break;
    case AVX512_WIDEN:
        avx512_across(p, AVX512_WIDEN);
        break;
    case AVX512_PAIR:
        avx512_across(p, AVX512_PAIR);
        break;
    }
}

/* One unit row of 16 columns from column `line`. */
TESS_INLINE __m512i avx512_load_columns(const tess_gemm_pack *p, avx512_source source, int64_t line,
                                        int64_t unit_idx)
{
    const __mmask16 mask = avx512_mask16(TESS_MAX(p->line_numel - line, 0));
    if (source == AVX512_F32)
        return _mm512_maskz_loadu_epi32(mask,
                                        (const uint32_t *)p->src + unit_idx * p->stride + line);
    if (source == AVX512_WIDEN)
        return avx512_widen(
            _mm256_maskz_loadu_epi16(mask, (const uint16_t *)p->src + unit_idx * p->stride + line));
    const uint16_t *src = (const uint16_t *)p->src + 2 * unit_idx * p->stride + line;
    const __m512i even = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, src));
    if (2 * unit_idx + 1 >= p->k_numel)
        return even;
    return _mm512_or_si512(even, avx512_widen(_mm256_maskz_loadu_epi16(mask, src + p->stride)));
}

/* One unit row of the first `numel` columns, a multiple of 32; both rows of the pair are there. */
TESS_INLINE void avx512_along_pairs(const tess_gemm_pack *p, int64_t unit_idx, int64_t numel)
{
    /* Word j: element j of the even row, and j of the odd row, whose indices begin at 32. */
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i pair = _mm512_or_si512(lane, _mm512_slli_epi32(lane, 16));
    const __m512i low = _mm512_add_epi32(pair, _mm512_set1_epi32(32 << 16));
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(16 << 16 | 16));
    const uint16_t *even = (const uint16_t *)p->src + 2 * unit_idx * p->stride;
    uint32_t *dst = p->dst + unit_idx * p->dst_stride;
    for (int64_t line = 0; line < numel; line += 32) {
        const __m512i x = _mm512_loadu_si512(even + line);
        const __m512i y = _mm512_loadu_si512(even + p->stride + line);
        _mm512_storeu_si512(dst + line, _mm512_permutex2var_epi16(x, low, y));
        _mm512_storeu_si512(dst + line + 16, _mm512_permutex2var_epi16(x, high, y));
    }
}

TESS_INLINE void avx512_along(const tess_gemm_pack *p, avx512_source source)
{
    const int64_t unit_numel = generic_units(p);
    for (int64_t u = 0; u < unit_numel; u++) {
        uint32_t *dst = p->dst + u * p->dst_stride;
        const bool is_pair = source == AVX512_PAIR && 2 * u + 1 < p->k_numel;
        const int64_t paired_numel = is_pair ? p->line_numel / 32 * 32 : 0;
        avx512_along_pairs(p, u, paired_numel);
        for (int64_t line = paired_numel; line < p->fill_numel; line += 16)
            _mm512_mask_storeu_epi32(dst + line, avx512_mask16(p->fill_numel - line),
                                     avx512_load_columns(p, source, line, u));
    }
}

void tess_avx512_pack_along(const tess_gemm_pack *p)
{
    switch (avx512_source_of(p)) {
    case AVX512_F32:
        avx512_along(p, AVX512_F32);
        break;
    case AVX512_WIDEN:
        avx512_along(p, AVX512_WIDEN);
        break;
    case AVX512_PAIR:
        avx512_along(p, AVX512_PAIR);
        break;
    }
}

/* -------- NF4 -------- */

/* Nearest even in integers: vcvtneps2bf16 would flush subnormals. */
TESS_INLINE __m256i avx512_round_bf16(__m512 x)
{
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
    const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x8000));
    const __m512i nan = _mm512_or_si512(sign, _mm512_set1_epi32(0x7fc0));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, is_nan, nan));
}

/* Codes of 32 elements in 16 bytes, as bf16; the table is twice in `lut` because a word index has
 * five bits and the fifth is another element's. */
TESS_INLINE __m512i avx512_nf4_bf16(__m128i bytes, __m512i lut)
{
    const __m512i wide = _mm512_cvtepu8_epi32(bytes);
    const __m512i idx = _mm512_or_si512(_mm512_srli_epi32(wide, 4), _mm512_slli_epi32(wide, 16));
    return _mm512_permutexvar_epi16(idx, lut);
}

/* Codes of 16 elements in 8 bytes, as f32. */
TESS_INLINE __m512 avx512_nf4_f32(__m128i bytes, __m512 lut)
{
    const __m512i wide = _mm512_cvtepu8_epi64(bytes);
    const __m512i idx = _mm512_or_si512(_mm512_srli_epi64(wide, 4), _mm512_slli_epi64(wide, 32));
    return _mm512_permutexvar_ps(idx, lut);
}

TESS_INLINE void avx512_lut16_bf16(const uint8_t *codes, int64_t numel, __m512 lut, uint16_t *dst)
{
    const __m512i words = _mm512_broadcast_i64x4(avx512_round_bf16(lut));
    int64_t i = 0;
    for (; i + 32 <= numel; i += 32)
        _mm512_storeu_si512(dst + i,
                            avx512_nf4_bf16(_mm_loadu_si128((const void *)(codes + i / 2)), words));
    if (i < numel) {
        const __m128i bytes =
            _mm_maskz_loadu_epi8(avx512_mask16((numel - i + 1) / 2), codes + i / 2);
        _mm512_mask_storeu_epi16(dst + i, avx512_mask32(numel - i), avx512_nf4_bf16(bytes, words));
    }
}

TESS_INLINE void avx512_lut16_f32(const uint8_t *codes, int64_t numel, __m512 lut, float *dst)
{
    int64_t i = 0;
    for (; i + 16 <= numel; i += 16)
        _mm512_storeu_ps(dst + i,
                         avx512_nf4_f32(_mm_loadl_epi64((const void *)(codes + i / 2)), lut));
    if (i < numel) {
        const __m128i bytes =
            _mm_maskz_loadu_epi8(avx512_mask16((numel - i + 1) / 2), codes + i / 2);
        _mm512_mask_storeu_ps(dst + i, avx512_mask16(numel - i), avx512_nf4_f32(bytes, lut));
    }
}

TESS_INLINE void avx512_lut16_row(const tess_lut16_rows *r, int64_t idx, const float *absmax,
                                  char *dst)
{
    const __m512 table = _mm512_loadu_ps(r->table);
    const int64_t elem_nbytes = r->is_dst_bf16 ? 2 : 4;
    const int64_t end = idx + r->col_numel;
    int64_t numel = idx & 1;
    if (numel != 0) { /* the low half of a byte whose high half is the element before */
        generic_lut16_block(r, idx, numel, *absmax, dst);
        absmax += ((idx + 1) & (r->block_numel - 1)) == 0;
    }
    for (idx += numel, dst += numel * elem_nbytes; idx < end; idx += numel) {
        numel = TESS_MIN((idx | (r->block_numel - 1)) + 1, end) - idx;
        const __m512 lut = _mm512_mul_ps(table, _mm512_set1_ps(*absmax++));
        if (r->is_dst_bf16)
            avx512_lut16_bf16(r->codes + (idx >> 1), numel, lut, (uint16_t *)(void *)dst);
        else
            avx512_lut16_f32(r->codes + (idx >> 1), numel, lut, (float *)(void *)dst);
        dst += numel * elem_nbytes;
    }
}

void tess_avx512_lut16_rows(const tess_lut16_rows *r)
{
    const int64_t row_nbytes = r->col_numel * (r->is_dst_bf16 ? 2 : 4);
    for (int64_t i = 0; i < r->row_numel; i++)
        avx512_lut16_row(r, r->first_idx + i * r->stride, r->absmax + i * r->absmax_stride,
                         (char *)r->dst + i * row_nbytes);
}

/* -------- results -------- */

void tess_avx512_add_scaled(float *dst, const float *src, float scale, int64_t numel)
{
    generic_add_scaled(dst, src, scale, numel);
}

/* 16 columns of a row, or the first ones that `mask` names. */
TESS_INLINE void avx512_write_16(const tess_gemm_out *o, const float *sum, int64_t col, void *c,
                                 __mmask16 mask)
{
    __m512 x = _mm512_loadu_ps(sum + col);
    if (o->bias != NULL && o->is_bias_bf16)
        x = _mm512_add_ps(x, _mm512_castsi512_ps(avx512_widen(
                                 _mm256_maskz_loadu_epi16(mask, (const uint16_t *)o->bias + col))));
    else if (o->bias != NULL)
        x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(mask, (const float *)o->bias + col));
    if (o->is_c_bf16) {
        const __m256i rounded = avx512_round_bf16(x);
        if (mask == 0xffff)
            _mm256_storeu_si256((void *)((uint16_t *)c + col), rounded);
        else
            _mm256_mask_storeu_epi16((uint16_t *)c + col, mask, rounded);
        return;
    }
    float *dst = (float *)c + col;
    if (o->is_accumulating)
        x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(mask, dst));
    _mm512_mask_storeu_ps(dst, mask, x);
}

/* Rows of sums are whole vectors. */
void tess_avx512_write(const tess_gemm_out *o)
{
    if (o->is_transposed) {
        generic_write_transposed(o);
        return;
    }
    const int64_t whole_numel = o->col_numel / 16 * 16;
    for (int64_t i = 0; i < o->row_numel; i++) {
        const float *sum = o->sum + i * o->sum_stride;
        char *c = (char *)o->c + i * o->c_stride * (o->is_c_bf16 ? 2 : 4);
        for (int64_t col = 0; col < whole_numel; col += 16)
            avx512_write_16(o, sum, col, c, 0xffff);
        if (whole_numel < o->col_numel)
            avx512_write_16(o, sum, whole_numel, c, avx512_mask16(o->col_numel - whole_numel));
    }
}
