/* Quantize and dequantize: a format's own family does the work, threads share ranges of elements.
 */
#include "kernels/cpu/codec_priv.h"

#include "core/arith.h"

/* Families by name, as in TESS_FORMAT_LIST. */
#define CODEC_plain_f32 NULL
#define CODEC_plain_bf16 NULL
#define CODEC_bnb4 &tess_cpu_codec_bnb4
#define CODEC_half &tess_cpu_codec_half
#define CODEC_gguf &tess_cpu_codec_gguf
#define CODEC_int8 &tess_cpu_codec_int8
#define CODEC_quanto8 &tess_cpu_codec_quanto8
#define CODEC_quanto &tess_cpu_codec_quanto
#define CODEC_fp8 &tess_cpu_codec_fp8

static const tess_cpu_codec *const table[TESS_FORMAT_NUMEL] = {
#define X(name, text, family) [TESS_FORMAT_##name] = CODEC_##family,
    TESS_FORMAT_LIST(X)
#undef X
};

const tess_cpu_codec *tess_cpu_codec_of(tess_format format) { return table[format]; }

typedef struct dequantize_job {
    const tess_dequantize_args *a;
    int64_t grain_numel;
} dequantize_job;

static void dequantize_body(void *arg, int part_idx, int part_numel)
{
    const dequantize_job *job = arg;
    const tess_dequantize_args *a = job->a;
    const tess_coded from = {&a->codec, a->part,
                             a->numel > 0 ? a->numel : a->first_idx + a->dst.numel};
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->dst.numel, job->grain_numel, part_idx, part_numel, &lo, &hi);
    if (lo < hi)
        table[a->codec.format]->decode(&from, a->first_idx + lo,
                                       tess_view_slice(a->dst, lo, hi - lo));
}

tess_status tess_cpu_dequantize(const tess_dequantize_args *a, tess_stream *s)
{
    tess_pool *pool = s != NULL ? s->pool : NULL;
    TESS_TRY(tess_dequantize_check(a));
    dequantize_job job = {a, a->codec.block_numel > 0 ? a->codec.block_numel : 256};
    tess_pool_run(pool, tess_pool_thread_numel(pool), dequantize_body, &job);
    return TESS_OK;
}

tess_status tess_cpu_quantize(const tess_quantize_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantize_check(a));
    TESS_CHECK(a->src.space == TESS_HOST, TESS_E_ARG,
               "quantize: the cpu backend was given device memory");
    return table[a->codec.format]->encode(a, s != NULL ? s->pool : NULL);
}
