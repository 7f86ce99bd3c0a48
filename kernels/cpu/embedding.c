#include "kernels/cpu/ops_priv.h"

static tess_status copy_row(const tess_embedding_args *a, int64_t t, tess_stream *s)
{
    const int64_t cols = a->table.cols, first_idx = a->tokens[t] * cols;
    const tess_view dst = tess_view_slice(a->out, t * cols, cols);
    if (tess_format_is_quantized(a->table.codec.format)) {
        tess_dequantize_args args = {.codec = a->table.codec,
                                     .numel = a->table.rows * cols,
                                     .first_idx = first_idx,
                                     .dst = dst};
        for (int i = 0; i < TESS_CODEC_PART_MAX; i++)
            args.part[i] = a->table.part[i];
        return tess_cpu_dequantize(&args, s);
    }
    const bool is_bf16 = a->table.codec.format == TESS_FORMAT_BF16;
    const tess_cast_args args = {
        .src = {(char *)(uintptr_t)a->table.part[0] + (size_t)first_idx * (is_bf16 ? 2 : 4), cols,
                is_bf16 ? TESS_BF16 : TESS_F32, TESS_HOST},
        .dst = dst};
    return tess_cpu_cast(&args, s);
}

tess_status tess_cpu_embedding_forward(const tess_embedding_args *a, tess_stream *s)
{
    TESS_TRY(tess_embedding_check(a));
    for (int64_t t = 0; t < a->token_numel; t++)
        TESS_TRY(copy_row(a, t, s));
    return TESS_OK;
}

static void backward_part(void *arg, int part_idx, int part_numel)
{
    const tess_embedding_backward_args *a = arg;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->hidden_numel, 16, part_idx, part_numel, &lo, &hi);
    tess_cpu_rows_get()->embedding_backward(a, lo, hi);
}

tess_status tess_cpu_embedding_backward(const tess_embedding_backward_args *a, tess_stream *s)
{
    TESS_TRY(tess_embedding_backward_check(a));
    tess_embedding_backward_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->d_out.numel), backward_part, &args);
    return TESS_OK;
}
