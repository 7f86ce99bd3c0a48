/** A matrix product twice: operands on the host and their copies on a device. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/half.h"
#include "core/memory.h"
#include "kernels/cpu/cpu_priv.h"
#include "kernels/gemm.h"
#include "tests/emulation/emulation.h"

enum { TERM_MAX = 4, PAD_BYTE = 0xa5, NO_PRODUCT = -1 };

typedef struct spec {
    tess_gemm_kind kind;
    tess_dtype dt, c_dt;
    int64_t m, n;
    int term_numel;
    int64_t k[TERM_MAX];
    tess_codec codec[TERM_MAX];
    float scale[TERM_MAX]; /* 0: 1 */
    bool is_adjacent;      /* the A's are columns of one buffer */
    int64_t gap;           /* finite columns between them */
    bool is_integer;       /* small integers, not NF4 */
    bool is_accumulating;
    bool has_bias;
    tess_dtype bias_dt;
    int64_t pad;           /* elements behind each row of A and C */
    int64_t product_numel; /* library calls expected, 0: not checked, NO_PRODUCT: none */
} spec;

/* One operand on the host and its copy on the device. */
typedef struct twins {
    void *host, *device;
    size_t nbytes;
} twins;

enum { TWINS_MAX = 32 };

typedef struct problem {
    spec s;
    tess_gemm_args host, device;
    tess_matrix host_bias, device_bias;
    twins all[TWINS_MAX];
    int twins_numel;
    twins *c;
    void *a_host[TERM_MAX];
    int64_t a_stride[TERM_MAX];
    float *b_value[TERM_MAX]; /* as the compute dtype sees it */
} problem;

static uint64_t random_state;

static uint32_t random_u32(void)
{
    random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)(random_state >> 32);
}

static float random_value(const spec *s)
{
    if (s->is_integer)
        return (float)((int)(random_u32() % 7) - 3);
    const float x = ldexpf(1.0F + (float)(random_u32() >> 9) * 0x1p-23F, -(int)(random_u32() % 7));
    return (random_u32() & 1) != 0 ? x : -x;
}

static void *zeroed(int64_t numel, size_t elem_nbytes)
{
    void *p = NULL;
    assert_int_equal(tess_alloc_array(numel, elem_nbytes, &p), TESS_OK);
    return p;
}

static void stored(tess_dtype dt, void *dst, int64_t idx, float x)
{
    if (dt == TESS_BF16)
        ((uint16_t *)dst)[idx] = tess_bf16_from_f32(x);
    else
        ((float *)dst)[idx] = x;
}

static double loaded(tess_dtype dt, const void *src, int64_t idx)
{
    return dt == TESS_BF16 ? (double)tess_bf16_to_f32(((const uint16_t *)src)[idx])
                           : (double)((const float *)src)[idx];
}

/* `offset_nbytes` shifts the device's copy, so that alignments vary. */
static twins *twins_make(problem *p, size_t nbytes, size_t offset_nbytes)
{
    twins *t = &p->all[p->twins_numel++];
    void *base = NULL;
    assert_true(p->twins_numel <= TWINS_MAX);
    t->nbytes = nbytes;
    t->host = zeroed((int64_t)nbytes + 1, 1);
    assert_int_equal(tess_emulation_alloc("operand", nbytes + offset_nbytes, &base), TESS_OK);
    t->device = (char *)base + offset_nbytes;
    return t;
}

static void upload(const twins *t)
{
    if (t->nbytes > 0)
        assert_int_equal(tess_emulation_write(t->device, t->host, t->nbytes), TESS_OK);
}

static void constant_store(tess_dtype dt, void *dst, int64_t idx, float x)
{
    if (dt == TESS_F16)
        ((uint16_t *)dst)[idx] = tess_f16_from_f32(x);
    else
        stored(dt, dst, idx, x);
}

/* Codes of any bits but those of an exponent of all ones, be it an fp8's or an f16's. */
static void part_fill(const spec *s, const tess_codec *codec, const tess_codec_part *part, int idx,
                      void *dst)
{
    const bool is_coded = tess_format_is_quantized(codec->format);
    for (int64_t j = 0; j < part->numel; j++) {
        if (part->dt == TESS_U8)
            ((uint8_t *)dst)[j] = (uint8_t)random_u32() & (idx == 0 ? 0xbf : 0xff);
        else if (is_coded && idx > 0)
            constant_store(part->dt, dst, j,
                           idx == 3 ? 1.5F : 0.5F + fabsf(random_value(s)) / 8.0F);
        else
            constant_store(part->dt, dst, j, random_value(s));
    }
}

static void matrix_make(problem *p, const tess_codec *codec, int64_t rows, int64_t cols,
                        tess_matrix *host, tess_matrix *device)
{
    tess_codec_part part[TESS_CODEC_PART_MAX];
    int part_numel = 0;
    *host = (tess_matrix){.codec = *codec, .rows = rows, .cols = cols};
    *device = *host;
    assert_int_equal(tess_codec_parts(codec, rows * cols, part, &part_numel), TESS_OK);
    for (int i = 0; i < part_numel; i++) {
        twins *t = twins_make(p, part[i].nbytes, 0);
        part_fill(&p->s, codec, &part[i], i, t->host);
        upload(t);
        host->part[i] = t->host;
        device->part[i] = t->device;
    }
}

/* B of a term in f32, after the rounding that the compute dtype asks for. */
static float *values_of(const tess_matrix *b, tess_dtype dt)
{
    const int64_t numel = b->rows * b->cols;
    float *value = zeroed(numel + 1, sizeof(float));
    if (tess_format_is_quantized(b->codec.format)) {
        tess_dequantize_args args = {.codec = b->codec,
                                     .dst = tess_view_host(value, numel, TESS_F32)};
        memcpy(args.part, b->part, sizeof(args.part));
        assert_int_equal(tess_cpu_dequantize(&args, NULL), TESS_OK);
    }
    for (int64_t i = 0; i < numel; i++) {
        if (!tess_format_is_quantized(b->codec.format))
            value[i] = (float)loaded(tess_matrix_dtype(b), b->part[0], i);
        if (dt == TESS_BF16)
            value[i] = tess_bf16_to_f32(tess_bf16_from_f32(value[i]));
    }
    return value;
}

/* A's: buffers of their own, or columns of one. */
static void a_make(problem *p)
{
    const spec *s = &p->s;
    const bool is_tn = s->kind == TESS_GEMM_TN;
    const size_t nbytes = tess_dtype_block_nbytes(s->dt);
    int64_t k_sum = 0, before = 0;
    for (int t = 0; t < s->term_numel; t++)
        k_sum += s->k[t] + (t > 0 ? s->gap : 0);
    twins *shared = NULL;
    for (int t = 0; t < s->term_numel; t++) {
        const int64_t rows = is_tn ? s->k[t] : s->m;
        const int64_t cols = is_tn ? s->m : s->is_adjacent ? k_sum : s->k[t];
        const int64_t stride = cols + s->pad;
        twins *own = shared;
        if (own == NULL) {
            own = twins_make(p, (size_t)(rows * stride) * nbytes, (size_t)(t % 2) * nbytes);
            for (int64_t i = 0; i < rows * stride; i++)
                stored(s->dt, own->host, i, i % stride >= cols ? NAN : random_value(s));
            upload(own);
        }
        shared = s->is_adjacent ? own : NULL;
        const size_t skip = s->is_adjacent ? (size_t)before * nbytes : 0;
        const int64_t used_cols = is_tn ? s->m : s->k[t];
        const int64_t numel = rows == 0 || used_cols == 0 ? 0 : (rows - 1) * stride + used_cols;
        p->a_host[t] = (char *)own->host + skip;
        p->a_stride[t] = stride;
        p->host.term[t].a = tess_view_host(p->a_host[t], numel, s->dt);
        p->device.term[t].a = (tess_view){(char *)own->device + skip, numel, s->dt, TESS_DEVICE};
        p->host.term[t].a_stride = p->device.term[t].a_stride =
            s->pad != 0 || s->is_adjacent ? stride : 0;
        before += s->k[t] + s->gap;
    }
}

static void c_make(problem *p)
{
    const spec *s = &p->s;
    const int64_t stride = s->n + s->pad;
    p->c = twins_make(p, (size_t)(s->m * stride) * tess_dtype_block_nbytes(s->c_dt), 0);
    memset(p->c->host, PAD_BYTE, p->c->nbytes);
    for (int64_t i = 0; s->is_accumulating && i < s->m * stride; i++)
        if (i % stride < s->n)
            ((float *)p->c->host)[i] = random_value(s);
    upload(p->c);
    p->host.c = tess_view_host(p->c->host, s->m * stride, s->c_dt);
    p->device.c = (tess_view){p->c->device, s->m * stride, s->c_dt, TESS_DEVICE};
    p->host.c_stride = p->device.c_stride = s->pad != 0 ? stride : 0;
}

static problem *problem_create(const spec *s)
{
    problem *p = zeroed(1, sizeof(*p));
    p->s = *s;
    tess_gemm_args *sides[] = {&p->host, &p->device};
    for (int i = 0; i < 2; i++) {
        sides[i]->kind = s->kind;
        sides[i]->m = s->m;
        sides[i]->n = s->n;
        sides[i]->term_numel = s->term_numel;
        sides[i]->accumulate = s->is_accumulating;
    }
    a_make(p);
    for (int t = 0; t < s->term_numel; t++) {
        const bool is_nt = s->kind == TESS_GEMM_NT;
        matrix_make(p, &s->codec[t], is_nt ? s->n : s->k[t], is_nt ? s->k[t] : s->n,
                    &p->host.term[t].b, &p->device.term[t].b);
        p->b_value[t] = values_of(&p->host.term[t].b, s->dt);
        p->host.term[t].k = p->device.term[t].k = s->k[t];
        p->host.term[t].scale = p->device.term[t].scale = s->scale[t] == 0.0F ? 1.0F : s->scale[t];
    }
    if (s->has_bias) {
        const tess_codec codec =
            tess_codec_of_format(s->bias_dt == TESS_BF16 ? TESS_FORMAT_BF16 : TESS_FORMAT_F32);
        matrix_make(p, &codec, 1, s->n, &p->host_bias, &p->device_bias);
        p->host.bias = &p->host_bias;
        p->device.bias = &p->device_bias;
    }
    c_make(p);
    return p;
}

static void problem_destroy(problem *p)
{
    for (int i = 0; i < p->twins_numel; i++)
        tess_free(p->all[i].host);
    for (int t = 0; t < p->s.term_numel; t++)
        tess_free(p->b_value[t]);
    tess_free(p);
}
