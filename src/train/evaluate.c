/* Held-out loss: every rank takes each W-th micro-batch; sums are exact, so the ranks do not
 * matter. */
#include <math.h>

#include "core/exact.h"
#include "train/session_priv.h"

typedef struct eval_sum {
    tess_exact loss;
    int64_t loss_token_numel;
    int64_t nonfinite_numel; /* micro-batches */
} eval_sum;

static int64_t slot_numel(const tess_session *s)
{
    const session_source *source = &s->source[1];
    return source->slot_numel > 0 ? source->slot_numel : source->sequence_numel;
}

/*
 * One micro-batch of this rank, or none: gathers are collective. What cannot be read is remembered
 * in `read_status`: the rank goes on taking part until all agree.
 */
static tess_status add_micro_batch(tess_session *s, int64_t micro_batch_idx, eval_sum *sum,
                                   tess_status *read_status)
{
    const int64_t b = s->run->train.micro_batch, first = micro_batch_idx * b;
    const int64_t left = slot_numel(s) - first;
    const void *batch = NULL;
    int64_t loss_token_numel = 0;
    double loss_sum = 0.0;
    if (left > 0 && *read_status == TESS_OK)
        *read_status = s->feed->fill_eval(s, first, TESS_MIN(left, b), &batch, &loss_token_numel);
    if (*read_status != TESS_OK)
        batch = NULL;
    TESS_TRY(session_section(s, tess_runtime_forward(s->rt, TESS_CALL_EVAL, batch, &loss_sum)));
    sum->loss_token_numel += loss_token_numel;
    sum->nonfinite_numel += !tess_exact_add(&sum->loss, loss_sum);
    return TESS_OK;
}

tess_status session_eval_loss(tess_session *s, void (*tick)(void *arg), void *arg,
                              tess_eval_result *out)
{
    const int world = tess_comm_world(s->world);
    eval_sum sum = {0};
    tess_status read_status = TESS_OK;
    const tess_weights before = s->shown;
    TESS_TRY(session_show(s, session_weights(s->run->train.eval_weights)));
    for (int64_t first = 0; first * s->run->train.micro_batch < slot_numel(s); first += world) {
        if (tick != NULL)
            tick(arg);
        TESS_TRY(add_micro_batch(s, first + tess_comm_rank(s->world), &sum, &read_status));
    }
    TESS_TRY(session_show(s, before));
    TESS_TRY(session_agree(s, read_status));
    TESS_TRY(tess_comm_control(s->world, (int64_t *)(void *)&sum,
                               (int)(sizeof sum / sizeof(int64_t)), NULL, 0));
    TESS_CHECK(sum.nonfinite_numel == 0, TESS_E_NUMERIC,
               "data.eval_path: %lld micro-batches gave a loss that is not finite",
               (long long)sum.nonfinite_numel);
    TESS_CHECK(sum.loss_token_numel > 0, TESS_E_FORMAT,
               "data.eval_path: '%s' has no token with a loss", s->run->data.eval_path);
    const double loss = tess_exact_round(&sum.loss) / (double)sum.loss_token_numel;
    *out = (tess_eval_result){.loss = loss,
                              .perplexity = s->feed == &session_token_feed ? exp(loss) : 0.0,
                              .loss_token_numel = sum.loss_token_numel,
                              .sequence_numel = s->source[1].sequence_numel,
                              .step = s->step};
    return TESS_OK;
}

tess_status tess_session_evaluate(tess_session *s, tess_eval_result *out)
{
    if (s->vectors != NULL)
        return session_vectors_evaluate(s, out);
    TESS_CHECK(session_has_eval(s), TESS_E_CONFIG,
               "data.eval_path is not set: give held-out data, e.g. data.eval_path=eval.h5");
    TESS_TRY(session_eval_loss(s, NULL, NULL, out));
    return s->feed->evaluated != NULL ? session_section(s, s->feed->evaluated(s, NULL)) : TESS_OK;
}
