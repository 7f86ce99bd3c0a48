/* Tensors that are made of a frozen matrix while it is loaded. */
#include <math.h>
#include <string.h>

#include "core/arith.h"
#include "kernels/weight_rows.h"
#include "shard/loader_priv.h"
#include "shard/low_rank.h"

/* Elements of a matrix that are plain at once while lengths are taken. */
enum { ROWS_NUMEL = 1 << 20 };

static bool is_initial(const tess_param *p, int idx)
{
    return idx == p->derived.initial_a_idx || idx == p->derived.initial_b_idx;
}

int loader_derived_at(const tess_param *p, int k)
{
    const tess_derived *d = &p->derived;
    const int idx[] = {d->magnitude_idx, d->a_idx, d->b_idx, d->initial_a_idx, d->initial_b_idx};
    for (int i = 0; i < TESS_NELEM(idx); i++)
        if (idx[i] > 0 && k-- == 0)
            return idx[i];
    return -1;
}

/* A and B lie one after the other behind the lengths; their first values are the same bytes. */
static float *place_of(const tess_registry *reg, const tess_param *p, const staging *s, int idx)
{
    const tess_derived *d = &p->derived;
    char *place = (char *)s->derived;
    if (idx == d->magnitude_idx)
        return s->derived;
    if (d->magnitude_idx > 0)
        place += loader_up((size_t)reg->param[d->magnitude_idx].numel * sizeof(float));
    if (idx == d->b_idx || idx == d->initial_b_idx)
        place += loader_up((size_t)reg->param[d->a_idx].numel * sizeof(float));
    return (float *)(void *)place;
}

float *loader_derived_place(const tess_registry *reg, const tess_param *p, const staging *s, int k)
{
    return place_of(reg, p, s, loader_derived_at(p, k));
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
        *derived_nbytes += is_initial(p, idx) ? 0 : loader_up(nbytes);
    }
    if (p->derived.magnitude_idx > 0)
        TESS_TRY(tess_nbytes(TESS_F32, 2 * step_of(p) * p->shape[1], scratch_nbytes));
    if (!loader_has_low_rank(p))
        return TESS_OK;
    size_t rest_nbytes = 0, work_nbytes = 0;
    int64_t work_numel = 0;
    TESS_TRY(tess_nbytes(TESS_F32, p->numel, &rest_nbytes));
    TESS_TRY(tess_low_rank_work_numel(p->shape[0], p->shape[1],
                                      reg->param[p->derived.a_idx].shape[0], &work_numel));
    TESS_TRY(tess_nbytes(TESS_F64, work_numel, &work_nbytes));
    *scratch_nbytes = TESS_MAX(*scratch_nbytes, loader_up(rest_nbytes) + work_nbytes);
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

tess_status loader_take_lengths(loader *l, const tess_param *p, const staging *s)
{
    return p->derived.magnitude_idx > 0 ? row_lengths(l, p, s, s->derived) : TESS_OK;
}

/* ---- what an adapter takes over ---- */

typedef struct low_rank_job {
    const tess_param *p;
    float *a, *b; /* [r, in], [out, r] */
    float *rest;  /* [out, in] f32: what is left to do */
    double *work;
    int64_t rank;
} low_rank_job;

/* Largest singular values of `rest` over s into A and B, in values of the compute dtype. */
static void factor(loader *l, const low_rank_job *j)
{
    const tess_param *p = j->p;
    const bool is_bf16 = l->rt->parts.registry->compute_dt == TESS_BF16;
    const float root = (float)(1.0 / sqrt(p->derived.scale));
    const tess_low_rank_args args = {
        .w = j->rest,
        .rows = p->shape[0],
        .cols = p->shape[1],
        .rank = j->rank,
        .power_numel = p->derived.power_numel,
        .rng = tess_rng_make(l->q->seed, TESS_RNG_INIT, (uint32_t)p->derived.a_idx, 0),
        .work = j->work,
        .left = j->b,
        .right = j->a};
    tess_low_rank_factor(&args, l->stream.pool);
    float *const side[] = {j->a, j->b};
    const int64_t numel[] = {j->rank * args.cols, args.rows * j->rank};
    for (int k = 0; k < 2; k++)
        for (int64_t i = 0; i < numel[k]; i++) {
            const float v = side[k][i] * root;
            side[k][i] = is_bf16 ? tess_bf16_to_f32(tess_bf16_from_f32(v)) : v;
        }
}

typedef struct subtraction {
    const low_rank_job *j;
    const float *from;
} subtraction;

/* rest = from - s B A, the product in fp64 with k ascending, one rounding. */
static void subtract_part(void *arg, int part_idx, int part_numel)
{
    const subtraction *d = arg;
    const low_rank_job *j = d->j;
    const int64_t cols = j->p->shape[1];
    int64_t lo = 0, hi = 0;
    tess_pool_range(j->p->shape[0], 1, part_idx, part_numel, &lo, &hi);
    for (int64_t r = lo; r < hi; r++)
        for (int64_t c = 0; c < cols; c++) {
            double sum = 0.0;
            for (int64_t k = 0; k < j->rank; k++)
                sum += (double)j->b[r * j->rank + k] * (double)j->a[k * cols + c];
            j->rest[r * cols + c] =
                (float)((double)d->from[r * cols + c] - j->p->derived.scale * sum);
        }
}

static void subtract(loader *l, const low_rank_job *j, const float *from)
{
    subtraction d = {j, from};
    tess_pool_run(l->stream.pool, tess_pool_thread_numel(l->stream.pool), subtract_part, &d);
}

/* rest = W - what is stored. */
static tess_status lose(loader *l, const low_rank_job *j, const staging *s)
{
    const tess_param *p = j->p;
    const tess_view rest = tess_view_host(j->rest, p->numel, TESS_F32);
    void *part[TESS_CODEC_PART_MAX] = {0};
    loader_parts_of(p, s, part);
    if (tess_format_is_quantized(p->codec.format)) {
        tess_dequantize_args args = {.codec = p->codec, .dst = rest};
        for (int i = 0; i < TESS_CODEC_PART_MAX; i++)
            args.part[i] = part[i];
        TESS_TRY(l->kernels->dequantize(&args, &l->stream));
    } else {
        const tess_cast_args args = {.src = tess_view_host(part[0], p->numel, p->part[0].dt),
                                     .dst = rest};
        TESS_TRY(l->kernels->cast(&args, &l->stream));
    }
    for (int64_t i = 0; i < p->numel; i++)
        j->rest[i] = s->plain[i] - j->rest[i];
    return TESS_OK;
}

/* One rank at a time makes a whole tensor, so nothing here depends on how many there are. */
tess_status loader_take_low_rank(loader *l, const tess_param *p, const staging *s)
{
    const tess_registry *reg = l->rt->parts.registry;
    const size_t rest_nbytes = loader_up((size_t)p->numel * sizeof(float));
    const low_rank_job j = {.p = p,
                            .a = place_of(reg, p, s, p->derived.a_idx),
                            .b = place_of(reg, p, s, p->derived.b_idx),
                            .rest = (float *)(void *)s->scratch,
                            .work = (double *)(void *)(s->scratch + rest_nbytes),
                            .rank = reg->param[p->derived.a_idx].shape[0]};
    const tess_view rest = tess_view_host(j.rest, p->numel, TESS_F32);
    memcpy(j.rest, s->plain, (size_t)p->numel * sizeof(float));
    if (p->derived.low_rank == TESS_LOW_RANK_PISSA) {
        factor(l, &j);
        subtract(l, &j, s->plain);
        return loader_encode(l, p, s, rest);
    }
    for (int turn = 0; turn < p->derived.turn_numel; turn++) {
        if (turn > 0)
            subtract(l, &j, s->plain);
        TESS_TRY(loader_encode(l, p, s, rest));
        TESS_TRY(lose(l, &j, s));
        factor(l, &j);
    }
    return TESS_OK;
}
