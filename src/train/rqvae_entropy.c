/* The entropy of what all vectors of a step are assigned to on average: one exact sum over ranks
 * (quantizer_binary.h, [Note: the batch entropy at any number of ranks]). */
#include "core/arith.h"
#include "core/memory.h"
#include "train/rqvae_codes.h"

static const double LEAST = 1e-5; /* of vector-quantize-pytorch, under the logarithm */

static char *data_at(tess_session *s, size_t offset_nbytes)
{
    return (char *)tess_runtime_arena(s->rt, TESS_LIFE_DATA).data + offset_nbytes;
}

/* Vectors of the step that are not masked. */
static int64_t count_vectors(tess_session *s, const tess_vector_layout *v)
{
    const int64_t m_numel = s->run->train.micro_batches;
    const int64_t *before = (const int64_t *)(const void *)data_at(s, v->valid_before);
    return v->is_masked ? before[m_numel] : m_numel * v->row_numel;
}

/* Places of the layout where kernels work. */
static void *work_at(tess_session *s, const tess_vector_layout *v, size_t offset_nbytes)
{
    return codes_are_far(s) ? codes_far_data(s, v) + offset_nbytes : data_at(s, offset_nbytes);
}

/* Entropies of all groups, and their sum in their order. */
static tess_status form(tess_session *s, const tess_vector_layout *v)
{
    const int64_t step_numel = count_vectors(s, v);
    const int64_t each = v->shape.mean_numel / v->shape.group_numel;
    double *entropy = work_at(s, v, v->mean_entropy);
    tess_stream *stream = tess_runtime_stream(s->rt);
    for (int g = 0; g < v->shape.group_numel; g++) {
        const tess_quantizer_batch_entropy_args args = {
            .sum = (int64_t *)work_at(s, v, v->mean_sum) + g * each,
            .dim = v->shape.dim,
            .valid_numel = step_numel,
            .exponent = tess_rqvae_mean_exponent(step_numel),
            .least = LEAST,
            .loss = entropy + g,
            .slope = (double *)work_at(s, v, v->mean_slope) + g * each};
        TESS_TRY(s->kernels->quantizers->batch_entropy(&args, stream));
    }
    const tess_sum_args sum = {
        .x = entropy, .numel = v->shape.group_numel, .out = work_at(s, v, v->mean_value)};
    return s->kernels->sum(&sum, stream);
}

/* Sums of a device to the host that adds them up, or back. */
static tess_status carry(tess_session *s, const tess_vector_layout *v, bool is_back)
{
    const tess_view host = tess_view_host(data_at(s, v->mean_sum), v->shape.mean_numel, TESS_I64);
    tess_view far = host;
    if (!codes_are_far(s))
        return TESS_OK;
    far.data = work_at(s, v, v->mean_sum);
    far.space = TESS_DEVICE;
    return tess_runtime_copy(s->rt, is_back ? host : far, is_back ? far : host);
}

/* Alone a rank's sums are those of all. */
static tess_status add_up(tess_session *s, const tess_vector_layout *v)
{
    int numel = 0;
    if (tess_comm_world(s->world) == 1)
        return TESS_OK;
    TESS_TRY(tess_to_int(v->shape.mean_numel, &numel));
    TESS_TRY(session_agree(s, carry(s, v, true)));
    TESS_TRY(
        tess_comm_control(s->world, (int64_t *)(void *)data_at(s, v->mean_sum), numel, NULL, 0));
    return session_agree(s, carry(s, v, false));
}

tess_status tess_mean_entropy(tess_session *s, const tess_vector_layout *layout)
{
    TESS_TRY(add_up(s, layout));
    return session_agree(s, form(s, layout));
}
