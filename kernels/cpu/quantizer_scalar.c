/* One source for all instruction paths; see kernels/quantizer_scalar.h. */
#include <math.h>

#include "kernels/check_priv.h"
#include "kernels/cpu/ops_priv.h"
#include "kernels/cpu/quantizer_priv.h"
#include "kernels/quantizer_priv.h"

static void make_levels(const tess_levels *levels, tess_level out[TESS_LEVEL_DIM_MAX])
{
    for (int64_t j = 0; j < levels->dim; j++)
        out[j] = tess_level_make(levels, j);
}

/* ---- levels ---- */

typedef struct level_job {
    tess_quantizer_level_args a;
    tess_level level[TESS_LEVEL_DIM_MAX];
} level_job;

static float add_noise(const tess_quantizer_level_args *a, int64_t element, float code)
{
    float offset = 0.0f;
    bool is_noisy = false;
    if (a->uniform != NULL) {
        is_noisy = (double)a->uniform[2 * element] < a->noise;
        offset = a->uniform[2 * element + 1];
    } else {
        const uint64_t word = 2 * (uint64_t)(a->first_idx + element);
        is_noisy = (double)tess_rng_u32(&a->rng, word) < a->noise * 0x1p32;
        offset = tess_rng_uniform(&a->rng, word + 1);
    }
    if (!is_noisy)
        return code;
    const float moved = code + (offset - 0.5f);
    return moved > 1.0f ? 1.0f : moved < -1.0f ? -1.0f : moved;
}

static void level_part(void *arg, int part_idx, int part_numel)
{
    const level_job *job = arg;
    const tess_quantizer_level_args *a = &job->a;
    const int64_t dim = a->levels.dim;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->row_numel, 1, part_idx, part_numel, &lo, &hi);
    for (int64_t row = lo; row < hi; row++) {
        const int64_t x_at = tess_cpu_row_at(row, a->x_stride, dim),
                      out_at = tess_cpu_row_at(row, a->out_stride, dim);
        uint32_t index = 0, basis = 1;
        bool is_whole = true;
        for (int64_t j = 0; j < dim; j++) {
            const tess_level *l = &job->level[j];
            const tess_level_code c =
                tess_level_of(a->levels.rule, l, tess_cpu_get(a->x, x_at + j) / l->scale);
            is_whole = is_whole && c.level >= 0;
            index += basis * (uint32_t)c.level;
            basis *= (uint32_t)l->level_numel;
            const float code = a->noise > 0.0 ? add_noise(a, row * dim + j, c.code) : c.code;
            tess_cpu_put(a->out, out_at + j, code * l->scale);
        }
        if (a->index != NULL)
            a->index[row] = is_whole ? index : UINT32_MAX;
    }
}

tess_status tess_cpu_quantizer_level(const tess_quantizer_level_args *a, tess_stream *s)
{
    TESS_TRY(tess_quantizer_level_check(a));
    level_job job = {.a = *a};
    make_levels(&a->levels, job.level);
    tess_pool_run(s->pool, tess_cpu_part_numel(s, 8 * a->row_numel * a->levels.dim), level_part,
                  &job);
    return TESS_OK;
}

static tess_status check_indices(const char *op, const uint32_t *index, int64_t row_numel,
                                 const int32_t *levels, int64_t dim, bool has_none)
{
    uint32_t end = 1;
    for (int64_t j = 0; j < dim; j++)
        end *= (uint32_t)levels[j];
    for (int64_t row = 0; row < row_numel; row++)
        TESS_CHECK(index[row] < end || (has_none && index[row] == UINT32_MAX), TESS_E_RANGE,
                   "%s: vector %" PRId64 " has index %" PRIu32 ", expected below %" PRIu32, op, row,
                   index[row], end);
    return TESS_OK;
}

tess_status tess_cpu_quantizer_level_decode(const tess_quantizer_level_decode_args *a,
                                            tess_stream *s)
{
    (void)s;
    static const char op[] = "quantizer level_decode";
    const int64_t dim = a->levels.dim;
    TESS_TRY(tess_quantizer_level_decode_check(a));
    TESS_TRY(check_indices(op, a->index, a->row_numel, a->levels.levels, dim, false));
    tess_level level[TESS_LEVEL_DIM_MAX];
    make_levels(&a->levels, level);
    for (int64_t row = 0; row < a->row_numel; row++) {
        uint32_t rest = a->index[row];
        for (int64_t j = 0; j < dim; j++) {
            const uint32_t numel = (uint32_t)level[j].level_numel;
            const float code =
                tess_level_code_of(a->levels.rule, &level[j], (int32_t)(rest % numel));
            tess_cpu_put(a->out, tess_cpu_row_at(row, a->out_stride, dim) + j,
                         code * level[j].scale);
            rest /= numel;
        }
    }
    return TESS_OK;
}

typedef struct level_backward_job {
    tess_quantizer_level_backward_args a;
    tess_level level[TESS_LEVEL_DIM_MAX];
} level_backward_job;

static void level_backward_part(void *arg, int part_idx, int part_numel)
{
    const level_backward_job *job = arg;
    const tess_quantizer_level_backward_args *a = &job->a;
    const int64_t dim = a->levels.dim;
    int64_t lo = 0, hi = 0;
    tess_pool_range(a->row_numel, 1, part_idx, part_numel, &lo, &hi);
    for (int64_t row = lo; row < hi; row++) {
        const int64_t x_at = tess_cpu_row_at(row, a->x_stride, dim),
                      g_at = tess_cpu_row_at(row, a->d_out_stride, dim);
        const int64_t d_at = tess_cpu_row_at(row, a->d_x_stride, dim);
        for (int64_t j = 0; j < dim; j++) {
            const tess_level *l = &job->level[j];
            const float slope =
                tess_level_slope(a->levels.rule, l, tess_cpu_get(a->x, x_at + j) / l->scale);
            const float d = tess_cpu_get(a->d_out, g_at + j) * slope;
            tess_cpu_put(a->d_x, d_at + j, a->accumulate ? tess_cpu_get(a->d_x, d_at + j) + d : d);
        }
    }
}

tess_status tess_cpu_quantizer_level_backward(const tess_quantizer_level_backward_args *a,
                                              tess_stream *s)
{
    TESS_TRY(tess_quantizer_level_backward_check(a));
    level_backward_job job = {.a = *a};
    make_levels(&a->levels, job.level);
    tess_pool_run(s->pool, tess_cpu_part_numel(s, 8 * a->row_numel * a->levels.dim),
                  level_backward_part, &job);
    return TESS_OK;
}

/* ---- soft clamp ---- */

static float clamp_of(const int32_t *levels, int64_t j)
{
    return (float)(1.0 + 1.0 / (double)(levels[j] - 1));
}

tess_status tess_cpu_quantizer_soft_clamp(const tess_quantizer_soft_clamp_args *a, tess_stream *s)
{
    (void)s;
    TESS_TRY(tess_quantizer_soft_clamp_check(a));
    for (int64_t i = 0; i < a->row_numel * a->dim; i++) {
        const float c = clamp_of(a->levels, i % a->dim);
        a->y[i] = c * tess_tanh_f32(tess_cpu_get(a->x, i) / c).value;
    }
    return TESS_OK;
}

tess_status tess_cpu_quantizer_soft_clamp_backward(const tess_quantizer_soft_clamp_backward_args *a,
                                                   tess_stream *s)
{
    (void)s;
    TESS_TRY(tess_quantizer_soft_clamp_backward_check(a));
    for (int64_t i = 0; i < a->row_numel * a->dim; i++) {
        const float c = clamp_of(a->levels, i % a->dim);
        tess_cpu_put(a->d_x, i, a->d_y[i] * tess_tanh_f32(tess_cpu_get(a->x, i) / c).slope);
    }
    return TESS_OK;
}

/* ---- lists of values ---- */

static int32_t nearest_value(const float *value, int32_t numel, float x)
{
    int32_t best = 0;
    for (int32_t i = 1; i < numel; i++)
        if (fabsf(x - value[i]) < fabsf(x - value[best]))
            best = i;
    return best;
}

tess_status tess_cpu_quantizer_latent(const tess_quantizer_latent_args *a, tess_stream *s)
{
    (void)s;
    TESS_TRY(tess_quantizer_latent_check(a));
    const tess_latents *l = &a->latents;
    for (int64_t row = 0; row < a->row_numel; row++) {
        const float *value = l->value, *x = a->x + row * l->dim;
        uint32_t index = 0, basis = 1;
        bool is_whole = true;
        for (int64_t j = 0; j < l->dim; j++) {
            const int32_t level = nearest_value(value, l->levels[j], x[j]);
            is_whole = is_whole && x[j] == x[j];
            index += basis * (uint32_t)level;
            a->out[row * l->dim + j] = x[j] == x[j] ? value[level] : x[j];
            value += l->levels[j];
            basis *= (uint32_t)l->levels[j];
        }
        a->index[row] = is_whole ? index : UINT32_MAX;
    }
    return TESS_OK;
}

tess_status tess_cpu_quantizer_latent_decode(const tess_quantizer_latent_decode_args *a,
                                             tess_stream *s)
{
    (void)s;
    const tess_latents *l = &a->latents;
    TESS_TRY(tess_quantizer_latent_decode_check(a));
    TESS_TRY(
        check_indices("quantizer latent_decode", a->index, a->row_numel, l->levels, l->dim, true));
    for (int64_t row = 0; row < a->row_numel; row++) {
        const float *value = l->value;
        const bool is_none = a->index[row] == UINT32_MAX;
        uint32_t rest = a->index[row];
        for (int64_t j = 0; j < l->dim; j++) {
            a->out[row * l->dim + j] = is_none ? NAN : value[rest % (uint32_t)l->levels[j]];
            rest /= (uint32_t)l->levels[j];
            value += l->levels[j];
        }
    }
    return TESS_OK;
}

tess_status tess_cpu_quantizer_latent_gradient(const tess_quantizer_latent_gradient_args *a,
                                               tess_stream *s)
{
    (void)s;
    const tess_latents *l = &a->latents;
    TESS_TRY(tess_quantizer_latent_gradient_check(a));
    TESS_TRY(check_indices("quantizer latent_gradient", a->index, a->row_numel, l->levels, l->dim,
                           true));
    for (int64_t row = 0; row < a->row_numel; row++) {
        int64_t first = 0;
        uint32_t rest = a->index[row];
        for (int64_t j = 0; j < l->dim && a->index[row] != UINT32_MAX; j++) {
            const int64_t v = first + rest % (uint32_t)l->levels[j];
            a->d_value[v] = a->d_value[v] + a->coefficient * (l->value[v] - a->x[row * l->dim + j]);
            rest /= (uint32_t)l->levels[j];
            first += l->levels[j];
        }
    }
    return TESS_OK;
}
