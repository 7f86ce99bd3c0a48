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

/* Entropies of all groups into `value`, in their order. */
static tess_status form(tess_session *s, const tess_vector_layout *v)
{
    const int64_t step_numel = count_vectors(s, v);
    const int64_t each = v->shape.mean_numel / v->shape.group_numel;
    double *value = (double *)(void *)data_at(s, v->mean_value);
    *value = 0.0;
    for (int g = 0; g < v->shape.group_numel; g++) {
        double entropy = 0.0;
        const tess_quantizer_batch_entropy_args args = {
            .sum = (int64_t *)(void *)data_at(s, v->mean_sum) + g * each,
            .dim = v->shape.dim,
            .valid_numel = step_numel,
            .exponent = tess_rqvae_mean_exponent(step_numel),
            .least = LEAST,
            .loss = &entropy,
            .slope = (double *)(void *)data_at(s, v->mean_slope) + g * each};
        TESS_TRY(codes_kernels(s)->quantizers->batch_entropy(&args, codes_stream(s)));
        TESS_TRY(tess_stream_finish(codes_stream(s)));
        *value += entropy;
    }
    return TESS_OK;
}

tess_status tess_mean_entropy(tess_session *s, const tess_vector_layout *layout)
{
    int64_t *sum = (int64_t *)(void *)data_at(s, layout->mean_sum);
    int numel = 0;
    TESS_TRY(tess_to_int(layout->shape.mean_numel, &numel));
    TESS_TRY(tess_comm_control(s->world, sum, numel, NULL, 0));
    return session_agree(s, form(s, layout));
}
