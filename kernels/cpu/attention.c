#include "kernels/cpu/attention_priv.h"

#include "core/arith.h"

static size_t aligned(size_t nbytes) { return (nbytes + 255) / 256 * 256; }

/* Segments are computed one after another. */
static tess_attention_shape one_segment(const tess_attention_shape *shape)
{
    tess_attention_shape one = *shape;
    if (shape->segment_numel > 0)
        one.token_numel = one.longest_numel = shape->segment_numel;
    return one;
}

/* Operands count 4 bytes each on every path, so that a plan does not depend on the path. */
static void layout_init(tess_attention_layout *l, const tess_attention_shape *shape,
                        int thread_numel)
{
    enum { ROWS = TESS_ATTENTION_BWD_ROWS, PANEL = TESS_ATTENTION_PANEL };
    l->shape = *shape;
    l->group_numel = shape->head_numel / shape->kv_head_numel;
    l->panel_numel = tess_ceil_div(shape->token_numel, PANEL);
    l->pair_dim = tess_round_up(shape->dim, 2);
    l->vec_dim = tess_round_up(shape->dim, TESS_ATTENTION_VECTOR);
    const int64_t seen_numel = TESS_MIN(shape->longest_numel, shape->token_numel);
    l->visible_numel =
        TESS_MIN(tess_round_up(seen_numel + ROWS, PANEL) + PANEL, l->panel_numel * PANEL);
    l->wave_kv_numel =
        TESS_MIN(shape->kv_head_numel, tess_ceil_div(4 * (int64_t)thread_numel, l->group_numel));
    const size_t padded_tokens = (size_t)(l->panel_numel * PANEL);
    l->pack_head_nbytes = aligned(padded_tokens * (size_t)l->vec_dim * sizeof(float));
    l->pack_kind_nbytes = l->pack_head_nbytes * (size_t)l->wave_kv_numel;
    l->grad_head_nbytes = aligned(padded_tokens * (size_t)shape->dim * sizeof(float));
    l->grad_offset = l->pack_kind_nbytes * TESS_PACK_NUMEL;
    l->scratch_offset =
        l->grad_offset + 2 * l->grad_head_nbytes * (size_t)(l->wave_kv_numel * l->group_numel);
    const size_t vec_dim = (size_t)l->vec_dim;
    const size_t forward_numel =
        (size_t)TESS_ATTENTION_FWD_ROWS * ((size_t)l->visible_numel + 2 * vec_dim);
    const size_t backward_numel = (size_t)ROWS * (5 * PANEL + 5 * vec_dim + 2);
    /* a guard vector per buffer keeps whole-vector stores inside */
    l->scratch_nbytes = aligned(TESS_MAX(forward_numel, backward_numel) * sizeof(float) + 16 * 256);
    l->nbytes = l->scratch_offset + l->scratch_nbytes * (size_t)thread_numel;
}

size_t tess_cpu_attention_work_nbytes(const tess_attention_shape *shape, int thread_numel)
{
    tess_attention_layout layout;
    const tess_attention_shape one = one_segment(shape);
    layout_init(&layout, &one, thread_numel);
    return layout.nbytes;
}

static const tess_attention_ops *ops_get(tess_dtype dt)
{
    switch (tess_cpu_path_current()) {
    case TESS_CPU_AVX512_BF16:
        return dt == TESS_BF16 ? &tess_attention_ops_avx512_bf16 : &tess_attention_ops_avx512;
    case TESS_CPU_AVX512:
        return &tess_attention_ops_avx512;
    case TESS_CPU_AVX2:
        return &tess_attention_ops_avx2;
    case TESS_CPU_PORTABLE:
        break;
    }
    return &tess_attention_ops_portable;
}

static void pack_part(void *arg, int part_idx, int part_numel)
{
    const tess_attention_job *job = arg;
    const tess_attention_ops *ops = ops_get(job->layout.shape.dt);
    const int64_t panel_numel = job->layout.panel_numel;
    for (int64_t i = part_idx; i < job->kv_numel * panel_numel; i += part_numel)
        ops->pack(job, i / panel_numel, i % panel_numel);
}

static void forward_part(void *arg, int part_idx, int part_numel)
{
    const tess_attention_job *job = arg;
    const tess_attention_layout *l = &job->layout;
    const tess_attention_ops *ops = ops_get(l->shape.dt);
    const int64_t block_numel = tess_ceil_div(l->shape.token_numel, TESS_ATTENTION_FWD_ROWS);
    char *scratch = job->work + l->scratch_offset + (size_t)part_idx * l->scratch_nbytes;
    for (int64_t i = part_idx; i < job->kv_numel * l->group_numel * block_numel; i += part_numel)
        ops->forward(job, i / block_numel, i % block_numel, scratch);
}

static void backward_part(void *arg, int part_idx, int part_numel)
{
    const tess_attention_job *job = arg;
    const tess_attention_layout *l = &job->layout;
    const tess_attention_ops *ops = ops_get(l->shape.dt);
    char *scratch = job->work + l->scratch_offset + (size_t)part_idx * l->scratch_nbytes;
    for (int64_t head = part_idx; head < job->kv_numel * l->group_numel; head += part_numel)
        ops->backward(job, head, scratch);
}

static void reduce_part(void *arg, int part_idx, int part_numel)
{
    const tess_attention_job *job = arg;
    const tess_attention_ops *ops = ops_get(job->layout.shape.dt);
    const int64_t panel_numel = job->layout.panel_numel;
    for (int64_t i = part_idx; i < job->kv_numel * panel_numel; i += part_numel)
        ops->reduce(job, i / panel_numel, i % panel_numel);
}

static tess_status job_init(tess_attention_job *job, tess_view work, int thread_numel)
{
    const size_t have_nbytes = tess_view_nbytes(work);
    TESS_CHECK(work.data != NULL && have_nbytes >= job->layout.nbytes, TESS_E_ARG,
               "attention: workspace of %zu bytes, %d threads need %zu; size it with "
               "attention_work_nbytes()",
               have_nbytes, thread_numel, job->layout.nbytes);
    job->work = work.data;
    return TESS_OK;
}

static void run_waves(tess_attention_job *job, tess_stream *s)
{
    const int part_numel = tess_pool_thread_numel(s->pool);
    const tess_attention_layout *l = &job->layout;
    for (int64_t kv = 0; kv < l->shape.kv_head_numel; kv += l->wave_kv_numel) {
        job->kv_lo = kv;
        job->kv_numel = TESS_MIN(l->wave_kv_numel, l->shape.kv_head_numel - kv);
        tess_pool_run(s->pool, part_numel, pack_part, job);
        if (job->forward != NULL) {
            tess_pool_run(s->pool, part_numel, forward_part, job);
        } else {
            tess_pool_run(s->pool, part_numel, backward_part, job);
            tess_pool_run(s->pool, part_numel, reduce_part, job);
        }
    }
}

/* Elements [first, first + numel) of rows `stride` apart, from a view that may end before a gap. */
static tess_view from_row(tess_view v, int64_t first_row, int64_t stride)
{
    return tess_view_slice(v, first_row * stride, v.numel - first_row * stride);
}

static int64_t segments_of(const tess_attention_shape *shape)
{
    return shape->segment_numel > 0 ? shape->token_numel / shape->segment_numel : 1;
}

tess_status tess_cpu_attention_forward(const tess_attention_args *a, tess_stream *s)
{
    TESS_TRY(tess_attention_check(a));
    if (a->shape.token_numel == 0)
        return TESS_OK;
    const int thread_numel = tess_pool_thread_numel(s->pool);
    const tess_attention_shape one = one_segment(&a->shape);
    const int64_t row = one.head_numel * one.dim, kv_row = one.kv_head_numel * one.dim;
    for (int64_t i = 0; i < segments_of(&a->shape); i++) {
        const int64_t first = i * one.token_numel;
        tess_attention_args part = *a;
        part.out = from_row(a->out, first, a->out_stride != 0 ? a->out_stride : row);
        part.lse = a->lse + first;
        tess_attention_job job = {.forward = &part,
                                  .q = from_row(a->q, first, row).data,
                                  .k = from_row(a->k, first, kv_row).data,
                                  .v = from_row(a->v, first, kv_row).data,
                                  .doc_start = a->doc_start,
                                  .lse_stride = a->shape.token_numel,
                                  .window = a->window,
                                  .scale = a->scale};
        layout_init(&job.layout, &one, thread_numel);
        TESS_TRY(job_init(&job, a->work, thread_numel));
        run_waves(&job, s);
    }
    return TESS_OK;
}

tess_status tess_cpu_attention_backward(const tess_attention_backward_args *a, tess_stream *s)
{
    TESS_TRY(tess_attention_backward_check(a));
    if (a->shape.token_numel == 0)
        return TESS_OK;
    const int thread_numel = tess_pool_thread_numel(s->pool);
    const tess_attention_shape one = one_segment(&a->shape);
    const int64_t row = one.head_numel * one.dim, kv_row = one.kv_head_numel * one.dim;
    for (int64_t i = 0; i < segments_of(&a->shape); i++) {
        const int64_t first = i * one.token_numel;
        tess_attention_backward_args part = *a;
        part.out = from_row(a->out, first, a->out_stride != 0 ? a->out_stride : row);
        part.lse = a->lse + first;
        part.d_out = from_row(a->d_out, first, row);
        part.d_q = from_row(a->d_q, first, row);
        part.d_k = from_row(a->d_k, first, kv_row);
        part.d_v = from_row(a->d_v, first, kv_row);
        tess_attention_job job = {.backward = &part,
                                  .q = from_row(a->q, first, row).data,
                                  .k = from_row(a->k, first, kv_row).data,
                                  .v = from_row(a->v, first, kv_row).data,
                                  .doc_start = a->doc_start,
                                  .lse_stride = a->shape.token_numel,
                                  .window = a->window,
                                  .scale = a->scale};
        layout_init(&job.layout, &one, thread_numel);
        TESS_TRY(job_init(&job, a->work, thread_numel));
        run_waves(&job, s);
    }
    return TESS_OK;
}
