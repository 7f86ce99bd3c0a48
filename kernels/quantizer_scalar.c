#include "kernels/quantizer_scalar.h"

#include <math.h>

#include "kernels/check_priv.h"
#include "kernels/quantizer_priv.h"

tess_level tess_level_make(const tess_levels *levels, int64_t j)
{
    const int32_t numel = levels->levels[j];
    const bool is_lower = levels->rule == TESS_LEVEL_LOWER;
    const double off = numel % 2 == 0 ? 0.5 : 0.0;
    const double half = (double)(numel - 1) * (is_lower ? 1.0 - 1e-3 : 1.0 + 1e-3) / 2.0;
    const tess_level level = {.shift = (float)(is_lower ? tan(off / half) : atanh(off / half)),
                              .half = (float)half,
                              .off = (float)off,
                              .width = (float)(numel / 2),
                              .scale = levels->scale != NULL ? levels->scale[j] : 1.0f,
                              .level_numel = numel};
    return level;
}

/* Two levels at least in each dimension, and indices below the mark of no code. */
static tess_status check_level_list(const char *op, const int32_t *levels, int64_t dim)
{
    int64_t product = 1;
    TESS_CHECK(dim >= 1 && dim <= TESS_LEVEL_DIM_MAX, TESS_E_RANGE,
               "%s: %" PRId64 " dimensions, expected 1 to %d", op, dim, TESS_LEVEL_DIM_MAX);
    TESS_TRY(tess_check_pointer(op, "levels", levels, dim));
    for (int64_t j = 0; j < dim; j++) {
        TESS_CHECK(levels[j] >= 2, TESS_E_RANGE,
                   "%s: dimension %" PRId64 " has %" PRId32 " levels, expected at least 2", op, j,
                   levels[j]);
        product *= levels[j];
        TESS_CHECK(product < (int64_t)UINT32_MAX, TESS_E_RANGE,
                   "%s: the product of levels reaches 2^32 - 1 at dimension %" PRId64
                   "; use fewer levels, or groups with an index each",
                   op, j);
    }
    return TESS_OK;
}

static tess_status check_levels(const char *op, const tess_levels *l)
{
    TESS_TRY(check_level_list(op, l->levels, l->dim));
    TESS_CHECK(l->rule <= TESS_LEVEL_CLAMPED, TESS_E_ARG,
               "%s: rule %d is not one of tess_level_rule", op, (int)l->rule);
    for (int64_t j = 0; j < l->dim; j++) {
        TESS_CHECK(l->rule > TESS_LEVEL_LOWER || l->levels[j] > 2, TESS_E_RANGE,
                   "%s: dimension %" PRId64 " has 2 levels, which only the symmetric and clamped "
                   "rules have",
                   op, j);
        TESS_CHECK(l->scale == NULL || l->scale[j] > 0.0f, TESS_E_RANGE,
                   "%s: the scale of dimension %" PRId64 " is %g, expected above 0", op, j,
                   (double)l->scale[j]);
    }
    return TESS_OK;
}

tess_status tess_quantizer_level_check(const tess_quantizer_level_args *a)
{
    static const char op[] = "quantizer level";
    const int64_t dim = a->levels.dim;
    TESS_TRY(tess_check_extent(op, "row_numel", a->row_numel, 0));
    TESS_TRY(check_levels(op, &a->levels));
    TESS_TRY(tess_check_float_rows(op, "x", a->x, a->row_numel, dim, a->x_stride));
    TESS_TRY(tess_check_float_rows(op, "out", a->out, a->row_numel, dim, a->out_stride));
    TESS_CHECK(a->noise >= 0.0 && a->noise <= 1.0, TESS_E_RANGE,
               "%s: noise is %g, expected 0 <= noise <= 1", op, a->noise);
    TESS_CHECK(a->noise == 0.0 || a->levels.rule > TESS_LEVEL_LOWER, TESS_E_ARG,
               "%s: noise needs the symmetric or the clamped rule; set one, or noise to 0", op);
    TESS_TRY(tess_check_extent(op, "first_idx", a->first_idx, 0));
    if (a->out.dt != a->x.dt || a->out_stride != a->x_stride)
        return tess_check_disjoint(op, "x", a->out, a->x);
    return tess_check_alias(op, "x", a->out, a->x);
}

tess_status tess_quantizer_level_decode_check(const tess_quantizer_level_decode_args *a)
{
    static const char op[] = "quantizer level_decode";
    TESS_TRY(tess_check_extent(op, "row_numel", a->row_numel, 0));
    TESS_TRY(check_levels(op, &a->levels));
    TESS_TRY(tess_check_pointer(op, "index", a->index, a->row_numel));
    return tess_check_float_rows(op, "out", a->out, a->row_numel, a->levels.dim, a->out_stride);
}

tess_status tess_quantizer_level_backward_check(const tess_quantizer_level_backward_args *a)
{
    static const char op[] = "quantizer level_backward";
    const int64_t dim = a->levels.dim;
    TESS_TRY(tess_check_extent(op, "row_numel", a->row_numel, 0));
    TESS_TRY(check_levels(op, &a->levels));
    TESS_TRY(tess_check_float_rows(op, "x", a->x, a->row_numel, dim, a->x_stride));
    TESS_TRY(tess_check_float_rows(op, "d_out", a->d_out, a->row_numel, dim, a->d_out_stride));
    return tess_check_float_rows(op, "d_x", a->d_x, a->row_numel, dim, a->d_x_stride);
}

tess_status tess_quantizer_soft_clamp_check(const tess_quantizer_soft_clamp_args *a)
{
    static const char op[] = "quantizer soft_clamp";
    TESS_TRY(tess_check_extent(op, "row_numel", a->row_numel, 0));
    TESS_TRY(check_level_list(op, a->levels, a->dim));
    TESS_TRY(tess_check_float_rows(op, "x", a->x, a->row_numel, a->dim, 0));
    return tess_check_pointer(op, "y", a->y, a->row_numel);
}

tess_status
tess_quantizer_soft_clamp_backward_check(const tess_quantizer_soft_clamp_backward_args *a)
{
    static const char op[] = "quantizer soft_clamp_backward";
    TESS_TRY(tess_check_extent(op, "row_numel", a->row_numel, 0));
    TESS_TRY(check_level_list(op, a->levels, a->dim));
    TESS_TRY(tess_check_float_rows(op, "x", a->x, a->row_numel, a->dim, 0));
    TESS_TRY(tess_check_pointer(op, "d_y", a->d_y, a->row_numel));
    return tess_check_float_rows(op, "d_x", a->d_x, a->row_numel, a->dim, 0);
}

static tess_status check_latents(const char *op, const tess_latents *l, int64_t row_numel)
{
    TESS_TRY(tess_check_extent(op, "row_numel", row_numel, 0));
    TESS_TRY(check_level_list(op, l->levels, l->dim));
    return tess_check_pointer(op, "value", l->value, 1);
}

tess_status tess_quantizer_latent_check(const tess_quantizer_latent_args *a)
{
    static const char op[] = "quantizer latent";
    TESS_TRY(check_latents(op, &a->latents, a->row_numel));
    TESS_TRY(tess_check_pointer(op, "x", a->x, a->row_numel));
    TESS_TRY(tess_check_pointer(op, "out", a->out, a->row_numel));
    return tess_check_pointer(op, "index", a->index, a->row_numel);
}

tess_status tess_quantizer_latent_decode_check(const tess_quantizer_latent_decode_args *a)
{
    static const char op[] = "quantizer latent_decode";
    TESS_TRY(check_latents(op, &a->latents, a->row_numel));
    TESS_TRY(tess_check_pointer(op, "index", a->index, a->row_numel));
    return tess_check_pointer(op, "out", a->out, a->row_numel);
}

tess_status tess_quantizer_latent_gradient_check(const tess_quantizer_latent_gradient_args *a)
{
    static const char op[] = "quantizer latent_gradient";
    TESS_TRY(check_latents(op, &a->latents, a->row_numel));
    TESS_TRY(tess_check_pointer(op, "x", a->x, a->row_numel));
    TESS_TRY(tess_check_pointer(op, "index", a->index, a->row_numel));
    return tess_check_pointer(op, "d_value", a->d_value, 1);
}
