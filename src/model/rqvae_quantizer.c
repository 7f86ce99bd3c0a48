/* What the quantizers share: edges between activations and their f32 core. */
#include <inttypes.h>

#include "model/rqvae_priv.h"

tess_status tess_rqvae_enter(const tess_exec *ex, const tess_rows *part, tess_view core,
                             tess_view norm)
{
    const tess_quantizer_enter_args args = {.x = part->view,
                                            .row_numel = ex->row_numel,
                                            .dim = part->cols,
                                            .x_stride = tess_rows_gap(part),
                                            .length = norm.numel > 0 ? 1.0f : 0.0f,
                                            .least = TESS_UNIT_LEAST,
                                            .core = core.data,
                                            .norm = norm.data};
    return TESS_RQVAE_RUN(ex, enter, &args);
}

tess_status tess_rqvae_enter_backward(const tess_exec *ex, tess_view core, tess_view norm,
                                      tess_view d_core, const tess_rows *part)
{
    const tess_quantizer_enter_backward_args args = {.core = core.data,
                                                     .norm = norm.data,
                                                     .d_core = d_core.data,
                                                     .row_numel = ex->row_numel,
                                                     .dim = part->cols,
                                                     .d_stride = tess_rows_gap(part),
                                                     .length = norm.numel > 0 ? 1.0f : 0.0f,
                                                     .least = TESS_UNIT_LEAST,
                                                     .d_x = part->view};
    return TESS_RQVAE_RUN(ex, enter_backward, &args);
}

tess_status tess_rqvae_mask(const tess_exec *ex, const tess_rqvae_io *io, tess_view code)
{
    const tess_quantizer_mask_args args = {.valid = io->batch->valid,
                                           .row_numel = ex->row_numel,
                                           .index_numel = code.numel / TESS_MAX(ex->row_numel, 1),
                                           .code = code.data};
    return io->batch->valid != NULL ? TESS_RQVAE_RUN(ex, mask, &args) : TESS_OK;
}

tess_status tess_rqvae_leave(const tess_exec *ex, const tess_rqvae_io *io, tess_view q,
                             const tess_rows *part)
{
    const tess_quantizer_gather_args args = {.rows = tess_rqvae_valid_rows(ex, io, q, part->cols),
                                             .out_stride = tess_rows_gap(part),
                                             .out = part->view};
    return TESS_RQVAE_RUN(ex, gather, &args);
}

static const tess_quantizer_ops *const ops_of[] = {
    [TESS_QUANTIZER_CODES] = &tess_quantizer_of_codes,
    [TESS_QUANTIZER_MAPPED_CODES] = &tess_quantizer_of_mapped_codes,
    [TESS_QUANTIZER_PROJECTED] = &tess_quantizer_of_projected,
    [TESS_QUANTIZER_SCALARS] = &tess_quantizer_of_scalars,
    [TESS_QUANTIZER_SIGNS] = &tess_quantizer_of_signs,
    [TESS_QUANTIZER_VALUES] = &tess_quantizer_of_values};

const tess_quantizer_ops *tess_quantizer_ops_of(tess_quantizer_kind kind) { return ops_of[kind]; }

tess_status tess_quantizer_shape_make(const tess_rqvae_config *c, tess_quantizer_shape *out)
{
    const int groups = c->group_numel > 0 ? c->group_numel : 1;
    TESS_CHECK(c->code_dim >= 1 && c->code_dim <= TESS_NEAREST_DIM_MAX, TESS_E_CONFIG,
               "quantizer.code_dim: %" PRId64 " for vectors of %" PRId64
               " dimensions: expected 1 to %d",
               c->code_dim, c->dim, TESS_NEAREST_DIM_MAX);
    TESS_CHECK(c->level_numel >= 1 && c->level_numel <= TESS_RQVAE_LEVEL_MAX, TESS_E_CONFIG,
               "quantizer.levels: expected 1 to %d, found %d", TESS_RQVAE_LEVEL_MAX,
               c->level_numel);
    TESS_CHECK(c->code_dim % groups == 0, TESS_E_CONFIG,
               "quantizer.groups: %d parts of %" PRId64
               " dimensions are not equal; choose a divisor of quantizer.code_dim",
               groups, c->code_dim);
    tess_quantizer_shape shape = {
        .group_numel = groups, .index_numel = groups * c->level_numel, .dim = c->code_dim / groups};
    TESS_CHECK((int64_t)groups * c->level_numel <= TESS_RQVAE_LEVEL_MAX, TESS_E_CONFIG,
               "quantizer.groups: %d groups of %d levels, expected at most %d indices of a vector",
               groups, c->level_numel, TESS_RQVAE_LEVEL_MAX);
    TESS_TRY(ops_of[c->kind]->shape(c, &shape));
    *out = shape;
    return TESS_OK;
}
