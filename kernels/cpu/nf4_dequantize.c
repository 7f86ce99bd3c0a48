#include "core/arith.h"
#include "kernels/cpu/gemm_priv.h"

static float absmax_get(const tess_codec *codec, const void *const *part, int64_t block_idx)
{
    if (!codec->double_quant)
        return ((const float *)part[1])[block_idx];
    const uint8_t code = ((const uint8_t *)part[1])[block_idx];
    const float nested = ((const float *)part[2])[block_idx / TESS_NESTED_BLOCK_NUMEL];
    const float offset = ((const float *)part[3])[0];
    const float scaled = tess_dynamic_map_signed()[code] * nested;
    return scaled + offset;
}

void tess_nf4_range(const tess_gemm_path *path, const tess_codec *codec, const void *const *part,
                    int64_t first_idx, tess_view dst)
{
    const int64_t block_numel = codec->block_numel;
    const size_t elem_nbytes = tess_dtype_block_nbytes(dst.dt);
    int64_t done = 0;
    while (done < dst.numel) {
        const int64_t idx = first_idx + done;
        const int64_t block_idx = idx / block_numel;
        const tess_nf4_run run = {
            .codes = part[0],
            .first_idx = idx,
            .numel = TESS_MIN((block_idx + 1) * block_numel - idx, dst.numel - done),
            .absmax = absmax_get(codec, part, block_idx),
            .is_dst_bf16 = dst.dt == TESS_BF16,
            .dst = (char *)dst.data + (size_t)done * elem_nbytes,
        };
        path->nf4_run(&run);
        done += run.numel;
    }
}

typedef struct dequantize_job {
    const tess_nf4_dequantize_args *a;
    const tess_gemm_path *path;
} dequantize_job;

static void dequantize_body(void *arg, int part_idx, int part_numel)
{
    const dequantize_job *job = arg;
    const tess_nf4_dequantize_args *a = job->a;
    int64_t lo = 0;
    int64_t hi = 0;
    tess_pool_range(a->dst.numel, a->codec.block_numel, part_idx, part_numel, &lo, &hi);
    tess_nf4_range(job->path, &a->codec, a->part, a->first_idx + lo,
                   tess_view_slice(a->dst, lo, hi - lo));
}

tess_status tess_cpu_nf4_dequantize(const tess_nf4_dequantize_args *a, tess_stream *s)
{
    tess_pool *pool = s != NULL ? s->pool : NULL;
    TESS_TRY(tess_nf4_dequantize_check(a));
    dequantize_job job = {a, tess_gemm_path_current()};
    tess_pool_run(pool, tess_pool_thread_numel(pool), dequantize_body, &job);
    return TESS_OK;
}
