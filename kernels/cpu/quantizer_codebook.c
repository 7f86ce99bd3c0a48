/* One source for all instruction paths; see kernels/quantizer_codebook.h. */
#include <math.h>
#include <string.h>

#include "kernels/check_priv.h"
#include "kernels/cpu/ops_priv.h"
#include "kernels/cpu/quantizer_priv.h"
#include "kernels/quantizer_priv.h"

static void average_part(void *arg, int part_idx, int part_numel)
{
    const tess_quantizer_average_args *a = arg;
    const tess_codebook_rows *r = &a->rows;
    const float step = (float)(1.0 - a->decay);
    int64_t lo = 0, hi = 0;
    tess_pool_range(r->row_numel, 1, part_idx, part_numel, &lo, &hi);
    for (int64_t k = lo; k < hi; k++) {
        const float w = a->weight != NULL ? step * a->weight[k] : step;
        float *restrict avg = r->embed_avg + k * r->dim;
        const float *restrict sum = a->sum + k * r->dim;
        r->cluster_size[k] = tess_lerp_f32(r->cluster_size[k], (float)a->count[k], w);
        for (int64_t j = 0; j < r->dim; j++)
            avg[j] = tess_lerp_f32(avg[j], sum[j], w);
    }
}

tess_status tess_cpu_quantizer_average(const tess_quantizer_average_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_average_check(a));
    tess_quantizer_average_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->rows.row_numel * a->rows.dim), average_part,
                  &args);
    return TESS_OK;
}

tess_status tess_cpu_quantizer_total(const tess_quantizer_total_args *a, tess_stream *s)
{
    (void)s;
    TESS_TRY(tess_quantizer_total_check(a));
    for (int64_t k = 0; k < a->row_numel; k++)
        *a->total += llrint((double)a->cluster_size[k] * 0x1p20);
    return TESS_OK;
}

/* v becomes a unit vector. */
static void make_unit(float *v, int64_t dim)
{
    const float factor = (float)tess_cpu_unit_factor(v, dim);
    for (int64_t j = 0; j < dim; j++)
        v[j] = v[j] * factor;
}

static void embed_part(void *arg, int part_idx, int part_numel)
{
    const tess_quantizer_embed_args *a = arg;
    const tess_codebook_rows *r = &a->rows;
    int64_t lo = 0, hi = 0;
    tess_pool_range(r->row_numel, 1, part_idx, part_numel, &lo, &hi);
    for (int64_t k = lo; k < hi; k++) {
        const double share =
            ((double)r->cluster_size[k] + a->eps) / (a->total + (double)a->code_numel * a->eps);
        const float size = (float)(share * a->total);
        float *restrict embed = r->embed + k * r->dim;
        const float *restrict avg = r->embed_avg + k * r->dim;
        for (int64_t j = 0; j < r->dim; j++)
            embed[j] = avg[j] / size;
        if (a->is_cosine)
            make_unit(embed, r->dim);
    }
}

tess_status tess_cpu_quantizer_embed(const tess_quantizer_embed_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_embed_check(a));
    tess_quantizer_embed_args args = *a;
    tess_pool_run(s->pool, tess_cpu_part_numel(s, a->rows.row_numel * a->rows.dim), embed_part,
                  &args);
    return TESS_OK;
}

tess_status tess_cpu_quantizer_expire(const tess_quantizer_expire_args *a, tess_stream *s)
{
    (void)s;
    TESS_TRY(tess_quantizer_expire_check(a));
    const float threshold = (float)a->threshold;
    int64_t expired_numel = 0;
    for (int64_t k = 0; k < a->row_numel; k++) {
        a->expired[k] = a->cluster_size[k] < threshold ? 1 : 0;
        expired_numel += a->expired[k];
    }
    *a->expired_numel = expired_numel;
    return TESS_OK;
}

tess_status tess_cpu_quantizer_replace(const tess_quantizer_replace_args *a, tess_stream *s)
{
    (void)s;
    TESS_TRY(tess_quantizer_replace_check(a));
    const tess_codebook_rows *r = &a->rows;
    for (int64_t i = 0; i < a->replace_numel; i++)
        TESS_CHECK(a->row[i] >= 0 && a->row[i] < r->row_numel, TESS_E_RANGE,
                   "quantizer replace: row %" PRId64 ", expected below %" PRId64, a->row[i],
                   r->row_numel);
    const float reset = (float)a->reset;
    for (int64_t i = 0; i < a->replace_numel; i++) {
        float *embed = r->embed + a->row[i] * r->dim, *avg = r->embed_avg + a->row[i] * r->dim;
        memcpy(embed, a->vector + i * r->dim, (size_t)r->dim * sizeof *embed);
        if (a->is_cosine)
            make_unit(embed, r->dim);
        for (int64_t j = 0; j < r->dim; j++)
            avg[j] = embed[j] * reset;
        r->cluster_size[a->row[i]] = reset;
    }
    return TESS_OK;
}
