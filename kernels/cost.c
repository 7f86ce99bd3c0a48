#include "kernels/cost.h"

#include <string.h>

#include "core/arith.h"

static double product(int64_t a, int64_t b) { return (double)a * (double)b; }

/* FLOPs that are done as often as the mathematics asks. */
static tess_cost once(double flops, double nbytes)
{
    const tess_cost cost = {.model_flops = flops, .hardware_flops = flops, .nbytes = nbytes};
    return cost;
}

enum { FIELD_NUMEL = sizeof(tess_cost) / sizeof(double) };
_Static_assert(sizeof(tess_cost) == FIELD_NUMEL * sizeof(double), "nothing but doubles");

tess_cost tess_cost_sum(tess_cost a, tess_cost b)
{
    double x[FIELD_NUMEL], y[FIELD_NUMEL];
    memcpy(x, &a, sizeof a);
    memcpy(y, &b, sizeof b);
    for (int i = 0; i < FIELD_NUMEL; i++)
        x[i] += y[i];
    memcpy(&a, x, sizeof a);
    return a;
}

tess_cost tess_cost_times(tess_cost a, double factor)
{
    double x[FIELD_NUMEL];
    memcpy(x, &a, sizeof a);
    for (int i = 0; i < FIELD_NUMEL; i++)
        x[i] *= factor;
    memcpy(&a, x, sizeof a);
    return a;
}

const char *tess_cost_op_name(tess_cost_op op)
{
    static const char *const name[TESS_COST_OP_NUMEL] = {
#define X(name, text, is_flops) text,
        TESS_COST_OP_LIST(X)
#undef X
    };
    return (unsigned)op < TESS_COST_OP_NUMEL ? name[op] : "unknown";
}

bool tess_cost_op_is_flops(tess_cost_op op)
{
    static const bool is_flops[TESS_COST_OP_NUMEL] = {
#define X(name, text, is_flops) is_flops,
        TESS_COST_OP_LIST(X)
#undef X
    };
    return (unsigned)op < TESS_COST_OP_NUMEL && is_flops[op];
}

int tess_cost_extent_class(int64_t m, int64_t n, int64_t k)
{
    const int64_t least = TESS_MIN(TESS_MIN(m, n), k);
    int i = 0;
    while (i + 1 < TESS_COST_EXTENT_NUMEL && least >> (i + 1) > 0)
        i++;
    return i;
}

tess_cost tess_cost_linear(int64_t token_numel, int64_t out_numel, int64_t in_numel,
                           size_t elem_nbytes, bool is_trained, tess_cost_pass pass)
{
    const double weight = product(out_numel, in_numel);
    const double rows = product(token_numel, in_numel) + product(token_numel, out_numel);
    const tess_cost one =
        once(2.0 * (double)token_numel * weight, (double)elem_nbytes * (rows + weight));
    if (pass == TESS_COST_FORWARD || !is_trained)
        return one;
    const tess_cost weight_grad =
        once(one.model_flops, (double)elem_nbytes * rows + sizeof(float) * weight);
    return tess_cost_sum(one, weight_grad);
}

tess_status tess_cost_dequantize(const tess_codec *codec, int64_t numel, size_t elem_nbytes,
                                 tess_cost *out)
{
    tess_codec_part part[TESS_CODEC_PART_MAX];
    int part_numel = 0;
    TESS_TRY(tess_codec_parts(codec, numel, part, &part_numel));
    double nbytes = (double)elem_nbytes * (double)numel;
    for (int i = 0; i < part_numel; i++)
        nbytes += (double)part[i].nbytes;
    *out = once(0.0, tess_format_is_quantized(codec->format) ? nbytes : 0.0);
    return TESS_OK;
}

tess_cost tess_cost_lora(int64_t token_numel, int64_t out_numel, int64_t in_numel, int64_t rank,
                         size_t elem_nbytes, tess_cost_pass pass)
{
    /* forward: t = x A^T, then its columns of the joined product; x is read once more. Backward:
     * u = dy B and its columns of dx, dB = dy^T t, dA = u^T x. */
    const double flops =
        2.0 * (double)token_numel * (double)rank * ((double)in_numel + (double)out_numel);
    const double x = product(token_numel, in_numel), y = product(token_numel, out_numel);
    const double inner = product(token_numel, rank);
    const double elem = (double)elem_nbytes;
    if (pass == TESS_COST_FORWARD)
        return once(flops, elem * (x + 2.0 * inner));
    return once(2.0 * flops, elem * (x + 2.0 * y + 4.0 * inner));
}

tess_cost tess_cost_attention(const tess_cost_attention_shape *shape, tess_cost_pass pass)
{
    const double t = (double)shape->token_numel;
    const double width = product(shape->head_numel, shape->dim);
    const double kv_width = product(shape->kv_head_numel, shape->dim);
    const double forward = 2.0 * shape->square_numel * width;
    const double elem = (double)shape->elem_nbytes;
    const double row = sizeof(float) * t * (double)shape->head_numel;
    if (pass == TESS_COST_FORWARD)
        return once(forward, elem * t * (2.0 * width + 2.0 * kv_width) + row);
    /* dV, dP, dQ, dK: four products of two; S once more is hardware's */
    const tess_cost cost = {.model_flops = 2.0 * forward,
                            .hardware_flops = 2.5 * forward,
                            .nbytes = elem * t * (4.0 * width + 4.0 * kv_width) + 2.0 * row};
    return cost;
}

tess_cost tess_cost_rmsnorm(int64_t token_numel, int64_t dim, size_t elem_nbytes,
                            tess_cost_pass pass)
{
    const double numel = product(token_numel, dim);
    const tess_cost cost = {.other_flops = (pass == TESS_COST_FORWARD ? 6.0 : 10.0) * numel,
                            .nbytes = 4.0 * (double)elem_nbytes * numel};
    return cost;
}

tess_cost tess_cost_swiglu(int64_t token_numel, int64_t dim, size_t elem_nbytes,
                           tess_cost_pass pass)
{
    const double vectors = pass == TESS_COST_FORWARD ? 3.0 : 5.0;
    return once(0.0, vectors * (double)elem_nbytes * product(token_numel, dim));
}

tess_cost tess_cost_rope(int64_t token_numel, int64_t head_numel, int64_t dim, size_t elem_nbytes)
{
    return once(0.0, 2.0 * (double)elem_nbytes * product(token_numel, head_numel) * (double)dim);
}

tess_cost tess_cost_head_loss(int64_t token_numel, int64_t hidden_numel, int64_t vocab_numel,
                              size_t elem_nbytes, tess_cost_pass pass)
{
    const double logits = product(token_numel, vocab_numel);
    const double flops = 2.0 * logits * (double)hidden_numel;
    /* forward writes them, reads them and writes their gradient; backward reads that */
    const double passes = pass == TESS_COST_FORWARD ? 3.0 : 1.0;
    return once(flops, passes * (double)elem_nbytes * logits);
}

tess_cost tess_cost_adamw(int64_t param_numel)
{
    /* read master, two moments, gradient; write master and moments; write the bf16 copy */
    return once(0.0, (4.0 * 4.0 + 3.0 * 4.0 + 2.0) * (double)param_numel);
}

static double share(int world) { return world > 0 ? (double)(world - 1) / (double)world : 0.0; }

tess_cost tess_cost_all_gather(double nbytes, int world)
{
    const tess_cost cost = {.nbytes = share(world) * nbytes, .wire_nbytes = share(world) * nbytes};
    return cost;
}

tess_cost tess_cost_reduce_scatter(int64_t param_numel, int world)
{
    const tess_cost cost = {.wire_nbytes = share(world) * sizeof(float) * (double)param_numel};
    return cost;
}

/* -------- a decoder -------- */

/* One linear with its weight from storage and its adapter. */
static tess_status linear_sum(const tess_cost_model *m, int64_t token_numel, int64_t out_numel,
                              int64_t in_numel, tess_cost_pass pass, tess_cost *sum)
{
    tess_cost stored = {0};
    int64_t numel = 0;
    TESS_TRY(tess_mul_i64(out_numel, in_numel, &numel));
    TESS_TRY(tess_cost_dequantize(&m->codec, numel, m->elem_nbytes, &stored));
    *sum = tess_cost_sum(*sum, stored);
    *sum = tess_cost_sum(*sum, tess_cost_linear(token_numel, out_numel, in_numel, m->elem_nbytes,
                                                m->is_base_trained, pass));
    if (m->lora_rank > 0)
        *sum = tess_cost_sum(*sum, tess_cost_lora(token_numel, out_numel, in_numel, m->lora_rank,
                                                  m->elem_nbytes, pass));
    return TESS_OK;
}

static tess_status layer_cost(const tess_cost_model *m, int64_t token_numel, double square_numel,
                              tess_cost_pass pass, tess_cost *out)
{
    const int64_t d = m->hidden_numel, f = m->ffn_numel;
    const int64_t q = m->head_numel * m->head_dim, kv = m->kv_head_numel * m->head_dim;
    const int64_t linear[][2] = {{q, d}, {kv, d}, {kv, d}, {d, q}, {f, d}, {f, d}, {d, f}};
    const tess_cost_attention_shape attention = {.token_numel = token_numel,
                                                 .square_numel = square_numel,
                                                 .head_numel = m->head_numel,
                                                 .kv_head_numel = m->kv_head_numel,
                                                 .dim = m->head_dim,
                                                 .elem_nbytes = m->elem_nbytes};
    tess_cost sum = {0};
    for (int i = 0; i < TESS_NELEM(linear); i++)
        TESS_TRY(linear_sum(m, token_numel, linear[i][0], linear[i][1], pass, &sum));
    const tess_cost norm = tess_cost_rmsnorm(token_numel, d, m->elem_nbytes, pass);
    sum = tess_cost_sum(sum, tess_cost_times(norm, 2.0));
    sum = tess_cost_sum(sum, tess_cost_rope(token_numel, m->head_numel + m->kv_head_numel,
                                            m->head_dim, m->elem_nbytes));
    sum = tess_cost_sum(sum, tess_cost_attention(&attention, pass));
    *out = tess_cost_sum(sum, tess_cost_swiglu(token_numel, f, m->elem_nbytes, pass));
    return TESS_OK;
}

tess_status tess_cost_model_step(const tess_cost_model *model, int64_t token_numel,
                                 double square_numel, bool is_replayed, tess_cost *out)
{
    tess_cost forward = {0}, backward = {0};
    TESS_TRY(layer_cost(model, token_numel, square_numel, TESS_COST_FORWARD, &forward));
    TESS_TRY(layer_cost(model, token_numel, square_numel, TESS_COST_BACKWARD, &backward));
    tess_cost layer = tess_cost_sum(forward, backward);
    if (is_replayed) {
        tess_cost again = forward;
        again.model_flops = 0.0;
        layer = tess_cost_sum(layer, again);
    }
    tess_cost sum = tess_cost_times(layer, (double)model->layer_numel);
    for (int pass = 0; pass < 2; pass++) {
        const tess_cost_pass p = pass == 0 ? TESS_COST_FORWARD : TESS_COST_BACKWARD;
        sum = tess_cost_sum(
            sum, tess_cost_rmsnorm(token_numel, model->hidden_numel, model->elem_nbytes, p));
        sum = tess_cost_sum(sum, tess_cost_head_loss(token_numel, model->hidden_numel,
                                                     model->vocab_numel, model->elem_nbytes, p));
    }
    if (model->is_base_trained) { /* the head's gradient */
        sum.model_flops +=
            2.0 * (double)token_numel * product(model->hidden_numel, model->vocab_numel);
        sum.hardware_flops +=
            2.0 * (double)token_numel * product(model->hidden_numel, model->vocab_numel);
    }
    *out = sum;
    return TESS_OK;
}
