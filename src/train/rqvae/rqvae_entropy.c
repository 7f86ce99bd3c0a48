/* The entropy of what all vectors of a step are assigned to on average: one exact sum over ranks
 * (quantizer_binary.h, [Note: the batch entropy at any number of ranks]). */
#include "core/arith.h"
#include "core/memory.h"
#include "train/rqvae/rqvae_codes.h"

static const double LEAST = 1e-5; /* of vector-quantize-pytorch, under the logarithm */

/* Vectors of the step that are not masked. */
static int64_t count_vectors(tess_session *s, const tess_vector_layout *v)
{
    const int64_t m_numel = s->run->train.micro_batches;
    const int64_t *before = (const int64_t *)(const void *)(codes_host_data(s) + v->valid_before);
    return v->is_masked ? before[m_numel] : m_numel * v->row_numel;
}

/* Places of the layout where kernels work. */
static void *work_at(tess_session *s, const tess_vector_layout *v, size_t offset_nbytes)
{
    return codes_work_data(s, v) + offset_nbytes;
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

/* Alone a rank's sums are those of all. */
static tess_status add_up(tess_session *s, const tess_vector_layout *v)
{
    const int64_t nbytes = v->shape.mean_numel * (int64_t)sizeof(int64_t);
    int64_t *sum = (int64_t *)(void *)(codes_host_data(s) + v->mean_sum);
    int numel = 0;
    if (tess_comm_world(s->world) == 1)
        return TESS_OK;
    TESS_TRY(tess_to_int(v->shape.mean_numel, &numel));
    TESS_TRY(session_agree(s, codes_carry(s, v, v->mean_sum, nbytes, true)));
    TESS_TRY(tess_comm_control(s->world, sum, numel, NULL, 0));
    return session_agree(s, codes_carry(s, v, v->mean_sum, nbytes, false));
}

tess_status tess_mean_entropy(tess_session *s, const tess_vector_layout *layout)
{
    TESS_TRY(add_up(s, layout));
    return session_agree(s, form(s, layout));
}
