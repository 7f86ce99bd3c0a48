/** A stored tensor of finite numbers, for benchmarks of decoders. */
#pragma once

#include "core/memory.h"
#include "kernels/kernels.h"

typedef struct decode_problem {
    tess_codec codec;
    tess_codec_part part[TESS_CODEC_PART_MAX];
    void *data[TESS_CODEC_PART_MAX];
    int part_numel;
    int64_t numel;
    size_t nbytes; /* of all parts */
} decode_problem;

/* Every format, by some of its choices. */
static const char *const decode_formats[] = {"nf4/64",
                                             "nf4/64/double",
                                             "f16",
                                             "q8_0",
                                             "q4_0",
                                             "q4_1",
                                             "q5_0",
                                             "q5_1",
                                             "q2_k",
                                             "q3_k",
                                             "q4_k",
                                             "q5_k",
                                             "q6_k",
                                             "int8/4096",
                                             "qint8/row/bf16",
                                             "qfloat8/row/bf16",
                                             "qfloat8_e5m2/row/bf16",
                                             "qint4/128/bf16",
                                             "qint4/128/f32",
                                             "qint4/128/f16",
                                             "qint2/128/bf16",
                                             "e4m3/raw",
                                             "e4m3/row/dequant_scale",
                                             "e5m2/raw"};

static inline int decode_by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Codes of every kind, of finite numbers; constants around 0.05. */
static inline void decode_fill(const tess_codec_part *part, void *data)
{
    uint64_t seed = 7;
    for (size_t i = 0; i < part->nbytes; i++) {
        seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
        ((uint8_t *)data)[i] = (uint8_t)(seed >> 40) & 0xbf; /* no exponent of all ones */
    }
    for (int64_t i = 0; part->dt != TESS_U8 && i < part->numel; i++) {
        if (part->dt == TESS_F32)
            ((float *)data)[i] = 0.05F;
        else
            ((uint16_t *)data)[i] = part->dt == TESS_BF16 ? 0x3d4d : 0x2a66;
    }
}

/** The caller frees with decode_problem_fini(), also after a failure. */
static inline tess_status decode_problem_init(const char *text, int64_t rows, int64_t cols,
                                              decode_problem *out)
{
    *out = (decode_problem){.numel = rows * cols};
    TESS_TRY(tess_codec_parse(text, cols, &out->codec));
    TESS_TRY(tess_codec_parts(&out->codec, out->numel, out->part, &out->part_numel));
    for (int i = 0; i < out->part_numel; i++) {
        TESS_TRY(tess_alloc(out->part[i].nbytes, &out->data[i]));
        decode_fill(&out->part[i], out->data[i]);
        out->nbytes += out->part[i].nbytes;
    }
    return TESS_OK;
}

static inline void decode_problem_fini(decode_problem *p)
{
    for (int i = 0; i < p->part_numel; i++)
        tess_free(p->data[i]);
}

/** Arguments over other copies of the parts. */
static inline tess_dequantize_args
decode_problem_args(const decode_problem *p, void *const data[TESS_CODEC_PART_MAX], tess_view dst)
{
    tess_dequantize_args a = {.codec = p->codec, .numel = p->numel, .dst = dst};
    for (int i = 0; i < p->part_numel; i++)
        a.part[i] = data[i];
    return a;
}
