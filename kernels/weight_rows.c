#include "kernels/weight_rows.h"

tess_status tess_weight_rows(const tess_kernels *k, const tess_matrix *w, int64_t first_row,
                             tess_view narrow, tess_view wide, tess_stream *s)
{
    const int64_t first = first_row * w->cols;
    if (tess_format_is_quantized(w->codec.format)) {
        tess_dequantize_args args = {.codec = w->codec, .first_idx = first, .dst = narrow};
        for (int i = 0; i < TESS_CODEC_PART_MAX; i++)
            args.part[i] = w->part[i];
        TESS_TRY(k->dequantize(&args, s));
    } else {
        const tess_dtype dt = w->codec.format == TESS_FORMAT_F32 ? TESS_F32 : TESS_BF16;
        const char *rows = (const char *)w->part[0] + (size_t)first * tess_dtype_block_nbytes(dt);
        /* Views carry no const; the rows are only read. */
        const tess_cast_args args = {
            .src = {(void *)(uintptr_t)rows, narrow.numel, dt, narrow.space}, .dst = narrow};
        TESS_TRY(k->cast(&args, s));
    }
    if (narrow.data == wide.data)
        return TESS_OK;
    const tess_cast_args args = {.src = narrow, .dst = wide};
    return k->cast(&args, s);
}
