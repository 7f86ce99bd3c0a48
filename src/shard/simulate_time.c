#include <math.h>

#include "core/arith.h"
#include "kernels/cost_count.h"
#include "shard/plan_exchange.h"
#include "shard/simulate_priv.h"

static int64_t owned_numel(const sim_model *m, int unit_idx, int rank)
{
    int64_t lo = 0, hi = 0;
    tess_plan_owned(m->plan, unit_idx, rank, &lo, &hi);
    return hi - lo;
}

static int64_t senders_of(const sim_model *m, int round_idx)
{
    const int64_t world = m->plan->options.world;
    return TESS_MIN(m->plan->options.micro_batch_numel - round_idx * world, world);
}

/* ---- links ---- */

static tess_links links_of(const sim_model *m)
{
    return (tess_links){.world = m->plan->options.world,
                        .node_rank_numel = m->device->node_rank_numel,
                        .is_ring = m->device->is_ring,
                        .inside = m->node,
                        .across = m->across};
}

static tess_near_ranks near_of(const sim_model *m, int rank, int64_t first, int64_t end)
{
    const tess_links links = links_of(m);
    return tess_links_near(&links, rank, first, end);
}

double sim_collective_s(const sim_collective *c)
{
    return tess_leg_s(&c->leg[0]) + tess_leg_s(&c->leg[1]);
}

/* `nbytes` from each rank of the world to all. */
static tess_leg all_gather(const sim_model *m, int rank, double nbytes)
{
    const tess_links links = links_of(m);
    return tess_links_gather(&links, rank, (tess_rank_run){0, links.world}, nbytes, 1);
}

/* Elements of a slab that the ranks [first, end) own. */
static double owned_by(const sim_model *m, int unit_idx, int64_t first, int64_t end)
{
    const tess_unit_plan *u = &m->plan->unit[unit_idx];
    const int64_t lo = TESS_MIN(u->slab_shard_numel * first, u->slab_numel);
    const int64_t hi = TESS_MIN(u->slab_shard_numel * end, u->slab_numel);
    return (double)(hi - lo);
}

static double owners_among(const sim_model *m, int unit_idx, int64_t first, int64_t end)
{
    const tess_unit_plan *u = &m->plan->unit[unit_idx];
    const int64_t owners = (u->slab_numel + u->slab_shard_numel - 1) / u->slab_shard_numel;
    return (double)TESS_MAX(TESS_MIN(end, owners) - first, (int64_t)0);
}

/* What a rank moves in an exchange: elements, messages, each way. */
typedef struct moved {
    double sent, received, sent_messages, received_messages;
} moved;

/* Both directions at once: the busier one counts, for bytes and for messages. */
static tess_hop moved_hop(const tess_link *link, const moved *v, double shared)
{
    return tess_link_hop(link, sizeof(float) * shared * TESS_MAX(v->sent, v->received),
                         TESS_MAX(v->sent_messages, v->received_messages));
}

/* Second hop of [Note: exchange by node] (plan_exchange.h); `far` is what the first brings and
 * sends across, and becomes messages to nodes. */
static tess_leg pass_on(const sim_model *m, int rank, int unit_idx, int64_t senders, moved *far)
{
    const tess_near_ranks n = near_of(m, rank, 0, m->plan->options.world);
    const tess_node_ranks node = {(int)n.first, (int)(n.end - n.first)};
    const double relayed = (double)tess_plan_relayed(node, rank, senders);
    const double own = (double)owned_numel(m, unit_idx, rank);
    const double whole = owned_by(m, unit_idx, n.first, n.end);
    const double from_others = own > 0 ? far->received_messages - relayed : 0.0;
    const moved pass = {.sent = relayed * (whole - own),
                        .received = from_others * own,
                        .sent_messages = relayed * (owners_among(m, unit_idx, n.first, n.end) -
                                                    (own > 0 ? 1.0 : 0.0)),
                        .received_messages = from_others};
    far->received = relayed * whole;
    far->received_messages = whole > 0 ? relayed : 0.0;
    if (far->sent_messages > 0.0) /* one to every other node with owners */
        far->sent_messages = (double)(tess_plan_owner_nodes(m->plan, unit_idx) - (whole > 0.0));
    return (tess_leg){{[TESS_HOP_INSIDE] = moved_hop(m->node, &pass, 1.0)}};
}

/* Gradient pieces of a unit in a round. */
static sim_collective exchange(const sim_model *m, int rank, int unit_idx, int round_idx)
{
    sim_collective c = {0};
    const int64_t world = m->plan->options.world, senders = senders_of(m, round_idx);
    if (tess_unit_grad_numel(&m->plan->unit[unit_idx]) == 0)
        return c;
    const tess_near_ranks n = near_of(m, rank, 0, world);
    const tess_near_ranks active = near_of(m, rank, 0, senders);
    const double own = (double)owned_numel(m, unit_idx, rank);
    const double mine = rank < senders ? 1.0 : 0.0;
    const double is_owner = own > 0 ? 1.0 : 0.0;
    const double near_from = (double)(active.end - active.first) - mine;
    const double near_sent = owned_by(m, unit_idx, n.first, n.end) - own;
    const double owners = owners_among(m, unit_idx, n.first, n.end) - is_owner;
    const moved near = {.sent = mine * near_sent,
                        .received = near_from * own,
                        .sent_messages = mine * owners,
                        .received_messages = is_owner * near_from};
    const double far_from = (double)senders - mine - near_from;
    moved far = {.sent = mine * (owned_by(m, unit_idx, 0, world) - own - near_sent),
                 .received = far_from * own,
                 .sent_messages = mine * (owners_among(m, unit_idx, 0, world) - is_owner - owners),
                 .received_messages = is_owner * far_from};
    const tess_links links = links_of(m);
    const double shared = tess_links_sharers(&links, (double)(n.end - n.first));
    if (m->plan->unit[unit_idx].is_by_node)
        c.leg[1] = pass_on(m, rank, unit_idx, senders, &far);
    c.leg[0].hop[TESS_HOP_INSIDE] = moved_hop(m->node, &near, 1.0);
    c.leg[0].hop[TESS_HOP_ACROSS] = moved_hop(m->across, &far, shared);
    return c;
}

/* One library reduction of a unit. */
static sim_collective reduction(const sim_model *m, int rank, int unit_idx)
{
    const double nbytes = sizeof(float) * (double)m->plan->unit[unit_idx].slab_shard_numel;
    return (sim_collective){{all_gather(m, rank, nbytes)}};
}

static double slab_nbytes(const sim_model *m, int unit_idx)
{
    return (double)m->plan->unit[unit_idx].slab_shard_numel *
           (double)tess_dtype_block_nbytes(m->reg->unit[unit_idx].compute_dt);
}

double sim_publish_s(const sim_model *m, int rank, int unit_idx)
{
    if (m->plan->options.is_full || m->plan->unit[unit_idx].slab_numel == 0)
        return 0.0;
    const tess_leg leg = all_gather(m, rank, slab_nbytes(m, unit_idx));
    return tess_leg_s(&leg);
}

double sim_agree_s(const sim_model *m)
{
    const tess_links links = links_of(m);
    return tess_links_record_s(&links, 0.0);
}

/* ---- kernels ---- */

/* Weights that stay decoded cost a step nothing: the first of a run decodes them. */
static double seconds(const sim_model *m, const tess_cost *c)
{
    tess_cost left = *c;
    const double share = 1.0 - m->plan->options.kept_share;
    left.weight_nbytes *= share;
    for (int i = 0; i < TESS_FORMAT_NUMEL; i++)
        if (tess_format_is_quantized((tess_format)i))
            left.weight_numel[i] *= share;
    return tess_profile_seconds(m->device, &left);
}

static double padded_nbytes(const sim_model *m, int unit_idx)
{
    return sizeof(float) * (double)m->plan->unit[unit_idx].slab_shard_numel *
           (double)m->plan->options.world;
}

static double backward_s(const sim_model *m, const tess_sched_op *op)
{
    const tess_stage *stage = &m->reg->stage[op->stage_idx];
    tess_cost c = tess_stage_cost_backward(&stage->cost, op->is_recomputed);
    if (op->clears_grad)
        tess_count_copy(&c, 0.5 * padded_nbytes(m, op->unit_idx));
    return seconds(m, &c);
}

static double set_bits(int64_t x)
{
    double numel = 0.0;
    for (; x > 0; x /= 2)
        numel += (double)(x & 1);
    return numel;
}

static double fold_s(const sim_model *m, int rank, const tess_sched_op *op)
{
    const tess_plan *plan = m->plan;
    const double numel = (double)owned_numel(m, op->unit_idx, rank);
    tess_cost c = {0};
    if (numel == 0.0)
        return 0.0;
    if (!plan->options.is_library) {
        const int64_t first = (int64_t)op->round_idx * plan->options.world;
        const int64_t pieces = senders_of(m, op->round_idx);
        tess_count_fold_pieces(&c, numel, (double)pieces,
                               set_bits(first) + set_bits(first + pieces));
    } else if (plan->is_library_once || op->round_idx == 0) {
        tess_count_copy(&c, sizeof(float) * numel);
    } else {
        tess_count_fold(&c, numel);
    }
    return seconds(m, &c);
}

/* Frozen strings in one call, slabs in another. */
static sim_collective gather(const sim_model *m, int rank, int bucket_idx)
{
    const tess_links links = links_of(m);
    sim_collective c = {0};
    const tess_plan *plan = m->plan;
    const tess_bucket_plan *b = &plan->bucket[bucket_idx];
    const int group = plan->options.gather_group_numel;
    int frozen_numel = 0, slab_numel = 0;
    for (int i = 0; i < b->unit_numel; i++) {
        const tess_unit_plan *u = &plan->unit[plan->bucket_unit[b->first_idx + i]];
        frozen_numel += u->frozen_wire_idx >= 0;
        slab_numel += plan->options.is_full && u->slab_wire_idx >= 0;
    }
    if (frozen_numel > 0)
        c.leg[0] = tess_links_gather(&links, rank, (tess_rank_run){rank / group * group, group},
                                     (double)b->frozen_shard_nbytes, frozen_numel);
    if (slab_numel > 0)
        c.leg[1] = tess_links_gather(&links, rank, (tess_rank_run){0, plan->options.world},
                                     (double)b->slab_shard_nbytes, slab_numel);
    return c;
}

sim_collective sim_op_collective(const sim_model *m, int rank, const tess_sched_op *op)
{
    if (op->kind == TESS_SCHED_GATHER)
        return gather(m, rank, op->bucket_idx);
    if (op->kind == TESS_SCHED_SEND)
        return exchange(m, rank, op->unit_idx, op->round_idx);
    return reduction(m, rank, op->unit_idx);
}

double sim_op_s(const sim_model *m, int rank, const tess_sched_op *op)
{
    tess_cost c = {0};
    switch (op->kind) {
    case TESS_SCHED_FORWARD:
        return seconds(m, &m->reg->stage[op->stage_idx].cost.forward);
    case TESS_SCHED_BACKWARD:
        return backward_s(m, op);
    case TESS_SCHED_FOLD:
        return fold_s(m, rank, op);
    case TESS_SCHED_CLEAR:
        tess_count_copy(&c, 0.5 * padded_nbytes(m, op->unit_idx));
        return seconds(m, &c);
    case TESS_SCHED_GATHER:
    case TESS_SCHED_SEND:
    case TESS_SCHED_REDUCE:
        break; /* sim_op_collective() */
    }
    return 0.0;
}

/* The share of a bucket's frozen strings that the first messages to a peer hold. */
static double handed_over(const tess_plan *plan, const tess_bucket_plan *b)
{
    const int64_t each_nbytes = TESS_COMM_FAR_NBYTES / TESS_COMM_FAR_MESSAGE_NUMEL;
    int64_t left_numel = TESS_COMM_FAR_MESSAGE_NUMEL, nbytes = 0;
    for (int i = 0; i < b->unit_numel; i++) {
        const tess_unit_plan *u = &plan->unit[plan->bucket_unit[b->first_idx + i]];
        const int64_t shard = (int64_t)u->frozen_shard_nbytes;
        const int64_t numel = TESS_MIN(tess_ceil_div(shard, each_nbytes), left_numel);
        nbytes += TESS_MIN(shard, numel * each_nbytes);
        left_numel -= numel;
    }
    return (double)nbytes / (double)TESS_MAX(b->frozen_shard_nbytes, (size_t)1);
}

/* No two ranks of the collective share a node, and the engine sends it in messages that the network
 * carries by itself. */
static bool is_carried(const sim_model *m, int rank, const tess_sched_op *op)
{
    const tess_plan *plan = m->plan;
    const int group = plan->options.gather_group_numel;
    const int64_t first = op->kind == TESS_SCHED_GATHER ? rank / group * group : 0;
    const int64_t numel = op->kind == TESS_SCHED_GATHER ? group : plan->options.world;
    const tess_near_ranks near = near_of(m, rank, first, first + numel);
    const bool is_far = near.end - near.first == 1 && numel > 1;
    return is_far && op->kind != TESS_SCHED_REDUCE && !plan->options.is_full;
}

double sim_carried(const sim_model *m, int rank, const tess_sched_op *op)
{
    const tess_plan *plan = m->plan;
    if (!is_carried(m, rank, op))
        return 0.0;
    if (op->kind == TESS_SCHED_GATHER)
        return handed_over(plan, &plan->bucket[op->bucket_idx]);
    const double nbytes = sizeof(float) * (double)plan->unit[op->unit_idx].slab_shard_numel;
    return TESS_MIN(TESS_COMM_FAR_NBYTES / TESS_MAX(nbytes, 1.0), 1.0);
}

double sim_arrived_s(const sim_model *m, int rank, const tess_sched_op *op)
{
    const tess_plan *plan = m->plan;
    if (m->device->has_overlap || m->across->arrived_rate == 0.0 || !is_carried(m, rank, op))
        return 0.0;
    const int64_t senders = op->kind == TESS_SCHED_SEND ? senders_of(m, op->round_idx) : 0;
    const double nbytes = op->kind == TESS_SCHED_GATHER
                              ? (plan->options.gather_group_numel - 1.0) *
                                    (double)plan->bucket[op->bucket_idx].frozen_shard_nbytes
                              : sizeof(float) * (double)(senders - (rank < senders)) *
                                    (double)owned_numel(m, op->unit_idx, rank);
    return nbytes / m->across->arrived_rate;
}

double sim_sum_s(const sim_model *m, int rank)
{
    const int64_t batches = m->plan->options.is_library ? 1 : m->plan->options.micro_batch_numel;
    tess_cost one = {0};
    (void)rank; /* padding is summed too */
    tess_count_fold(&one, (double)m->plan->summed_numel);
    one = tess_cost_times(one, set_bits(batches) - 1.0);
    return seconds(m, &one);
}

double sim_squares_s(const sim_model *m, int rank)
{
    tess_cost c = {0};
    for (int i = 0; i < m->plan->unit_numel; i++)
        if (owned_numel(m, i, rank) > 0)
            tess_count_squares(&c, (double)owned_numel(m, i, rank));
    return seconds(m, &c);
}

/* State is read and written, the gradient read, the copy in the compute dtype written: AdamW's 30
 * bytes (kernels/cost_count.h), and what others keep. */
double sim_optimizer_s(const sim_model *m, int rank)
{
    const tess_plan *plan = m->plan;
    double state = 0;
    tess_cost c = {0};
    for (int i = 0; i < plan->state_array_numel; i++)
        state += 2.0 * (double)TESS_MIN(plan->state[i].numel, plan->learning_numel) *
                 (double)tess_dtype_block_nbytes(plan->state[i].array.dt);
    const double each = plan->learning_numel > 0 ? state / (double)plan->learning_numel : 0.0;
    for (int i = 0; i < plan->unit_numel; i++) {
        if (plan->unit[i].is_set)
            continue;
        const double numel = (double)owned_numel(m, i, rank);
        const double copy = (double)tess_dtype_block_nbytes(m->reg->unit[i].compute_dt);
        c.op[TESS_COST_OPTIMIZER] += numel * (each + sizeof(float) + copy);
    }
    return seconds(m, &c);
}

double sim_reduction_s(const sim_model *m, tess_reduction kind)
{
    const int rounds = kind == TESS_REDUCTION_LIBRARY_ONCE ? 1 : m->plan->round_numel;
    double s = 0;
    for (int i = 0; i < m->plan->unit_numel; i++)
        for (int r = 0; r < rounds && tess_unit_grad_numel(&m->plan->unit[i]) > 0; r++) {
            const sim_collective c =
                kind == TESS_REDUCTION_EXACT ? exchange(m, 0, i, r) : reduction(m, 0, i);
            s += sim_collective_s(&c);
        }
    return s;
}
