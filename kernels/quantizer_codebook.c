#include "kernels/quantizer_codebook.h"

#include "kernels/check_priv.h"

static tess_status check_rows(const char *op, const tess_codebook_rows *r, bool has_embed)
{
    int64_t numel = 0;
    TESS_TRY(tess_check_extent(op, "row_numel", r->row_numel, 0));
    TESS_TRY(tess_check_extent(op, "dim", r->dim, 1));
    TESS_TRY(tess_mul_i64(r->row_numel, r->dim, &numel));
    TESS_TRY(tess_check_pointer(op, "embed_avg", r->embed_avg, numel));
    TESS_TRY(tess_check_pointer(op, "cluster_size", r->cluster_size, r->row_numel));
    return has_embed ? tess_check_pointer(op, "embed", r->embed, numel) : TESS_OK;
}

tess_status tess_quantizer_average_check(const tess_quantizer_average_args *a)
{
    static const char op[] = "quantizer average";
    TESS_TRY(check_rows(op, &a->rows, false));
    TESS_CHECK(a->decay >= 0.0 && a->decay < 1.0, TESS_E_RANGE,
               "%s: decay is %g, expected 0 <= decay < 1", op, a->decay);
    TESS_TRY(tess_check_pointer(op, "count", a->count, a->rows.row_numel));
    return tess_check_pointer(op, "sum", a->sum, a->rows.row_numel);
}

tess_status tess_quantizer_total_check(const tess_quantizer_total_args *a)
{
    static const char op[] = "quantizer total";
    TESS_TRY(tess_check_extent(op, "row_numel", a->row_numel, 0));
    TESS_TRY(tess_check_pointer(op, "cluster_size", a->cluster_size, a->row_numel));
    return tess_check_pointer(op, "total", a->total, 1);
}

tess_status tess_quantizer_embed_check(const tess_quantizer_embed_args *a)
{
    static const char op[] = "quantizer embed";
    TESS_TRY(check_rows(op, &a->rows, true));
    TESS_TRY(tess_check_extent(op, "code_numel", a->code_numel, a->rows.row_numel));
    TESS_CHECK(a->eps >= 0.0, TESS_E_RANGE, "%s: eps is %g, expected at least 0", op, a->eps);
    TESS_CHECK(a->total > 0.0, TESS_E_RANGE,
               "%s: the cluster sizes add up to %g, expected above 0; give every row a start of 1",
               op, a->total);
    return TESS_OK;
}

tess_status tess_quantizer_expire_check(const tess_quantizer_expire_args *a)
{
    static const char op[] = "quantizer expire";
    TESS_TRY(tess_check_extent(op, "row_numel", a->row_numel, 0));
    TESS_TRY(tess_check_pointer(op, "cluster_size", a->cluster_size, a->row_numel));
    TESS_TRY(tess_check_pointer(op, "expired", a->expired, a->row_numel));
    TESS_CHECK(a->threshold >= 0.0, TESS_E_RANGE, "%s: threshold is %g, expected at least 0", op,
               a->threshold);
    return tess_check_pointer(op, "expired_numel", a->expired_numel, 1);
}

tess_status tess_quantizer_replace_check(const tess_quantizer_replace_args *a)
{
    static const char op[] = "quantizer replace";
    TESS_TRY(check_rows(op, &a->rows, true));
    TESS_TRY(tess_check_extent(op, "replace_numel", a->replace_numel, 0));
    TESS_CHECK(a->replace_numel <= a->rows.row_numel, TESS_E_ARG,
               "%s: %" PRId64 " vectors for %" PRId64 " rows, expected at most one each", op,
               a->replace_numel, a->rows.row_numel);
    TESS_CHECK(a->reset > 0.0, TESS_E_RANGE, "%s: reset is %g, expected above 0", op, a->reset);
    TESS_TRY(tess_check_pointer(op, "row", a->row, a->replace_numel));
    return tess_check_pointer(op, "vector", a->vector, a->replace_numel);
}
