/* Trainable tensors that are made of a frozen matrix while it is loaded. */
#include "core/arith.h"
#include "kernels/weight_rows.h"
#include "shard/loader_priv.h"

/* Elements of a matrix that are plain at once while lengths are taken. */
enum { ROWS_NUMEL = 1 << 20 };

int loader_derived_at(const tess_param *p, int k)
{
    return k == 0 && p->derived.magnitude_idx > 0 ? p->derived.magnitude_idx : -1;
}

float *loader_derived_place(const tess_registry *reg, const tess_param *p, const staging *s, int k)
{
    char *place = (char *)s->derived;
    for (int i = 0; i < k; i++)
        place += loader_up((size_t)reg->param[loader_derived_at(p, i)].numel * sizeof(float));
    return (float *)(void *)place;
}

/* Rows of one step, in f32 and in front of that in the compute dtype. */
static int64_t step_of(const tess_param *p)
{
    return TESS_MIN(TESS_MAX(ROWS_NUMEL / p->shape[1], (int64_t)1), p->shape[0]);
}

tess_status loader_derived_size(const tess_registry *reg, const tess_param *p,
                                size_t *derived_nbytes, size_t *scratch_nbytes)
{
    *derived_nbytes = *scratch_nbytes = 0;
    for (int k = 0, idx = 0; (idx = loader_derived_at(p, k)) >= 0; k++) {
        size_t nbytes = 0;
        TESS_TRY(tess_nbytes(TESS_F32, reg->param[idx].numel, &nbytes));
        *derived_nbytes += loader_up(nbytes);
    }
    if (p->derived.magnitude_idx > 0)
        TESS_TRY(tess_nbytes(TESS_F32, 2 * step_of(p) * p->shape[1], scratch_nbytes));
    return TESS_OK;
}

/* Lengths of the rows as the model will take them: of what is stored, in the compute dtype. */
static tess_status row_lengths(loader *l, const tess_param *p, const staging *s, float *norm)
{
    const tess_dtype dt = l->rt->parts.registry->compute_dt;
    const int64_t step = step_of(p);
    tess_matrix w = {.codec = p->codec, .rows = p->shape[0], .cols = p->shape[1]};
    void *part[TESS_CODEC_PART_MAX] = {0};
    loader_parts_of(p, s, part);
    for (int i = 0; i < TESS_CODEC_PART_MAX; i++)
        w.part[i] = part[i];
    for (int64_t first = 0; first < w.rows; first += step) {
        const int64_t rows = TESS_MIN(step, w.rows - first), numel = rows * w.cols;
        const tess_view wide = tess_view_host(s->scratch, numel, TESS_F32);
        const tess_view narrow =
            dt == TESS_F32 ? wide
                           : tess_view_host(s->scratch + (size_t)(step * w.cols) * 4, numel, dt);
        TESS_TRY(tess_weight_rows(l->kernels, &w, first, narrow, wide, &l->stream));
        const tess_row_norm_args args = {
            .x = wide.data, .row_numel = rows, .dim = w.cols, .dt = TESS_F32, .norm = norm + first};
        TESS_TRY(l->kernels->row_norm(&args, &l->stream));
    }
    return TESS_OK;
}

tess_status loader_derive(loader *l, const tess_param *p, const staging *s)
{
    if (p->derived.magnitude_idx > 0)
        TESS_TRY(row_lengths(l, p, s, s->derived));
    return TESS_OK;
}
