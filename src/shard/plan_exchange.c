#include "shard/plan_exchange.h"

#include <string.h>

#include "core/memory.h"
#include "shard/plan_priv.h"

const char *tess_exchange_name(tess_exchange exchange)
{
    static const char *const name[] = {"auto", "direct", "by-node"};
    return (unsigned)exchange < TESS_NELEM(name) ? name[exchange] : "unknown";
}

/* ---- nodes ---- */

tess_status plan_keep_nodes(tess_plan *plan)
{
    tess_plan_options *o = &plan->options;
    void *array = NULL;
    if (o->node_rank_numel > 0)
        o->node_first_rank = NULL;
    if (o->node_first_rank == NULL)
        return TESS_OK;
    TESS_TRY(tess_alloc_array(o->node_numel + 1, sizeof(int), &array));
    plan->node_first_rank = array;
    memcpy(array, o->node_first_rank, (size_t)(o->node_numel + 1) * sizeof(int));
    o->node_first_rank = array;
    return TESS_OK;
}

tess_node_ranks tess_plan_node_of(const tess_plan *plan, int rank)
{
    const tess_plan_options *o = &plan->options;
    if (o->node_rank_numel > 0) {
        const int first = rank / o->node_rank_numel * o->node_rank_numel;
        return (tess_node_ranks){first, TESS_MIN(o->node_rank_numel, o->world - first)};
    }
    if (o->node_first_rank == NULL)
        return (tess_node_ranks){0, o->world};
    int lo = 0, hi = o->node_numel; /* first_rank[lo] <= rank < first_rank[hi] */
    while (hi - lo > 1) {
        const int mid = lo + (hi - lo) / 2;
        if (o->node_first_rank[mid] <= rank)
            lo = mid;
        else
            hi = mid;
    }
    return (tess_node_ranks){o->node_first_rank[lo],
                             o->node_first_rank[hi] - o->node_first_rank[lo]};
}

tess_node_ranks tess_plan_exchange_node(const tess_plan *plan, int unit_idx, int rank)
{
    return plan->unit[unit_idx].is_by_node ? tess_plan_node_of(plan, rank)
                                           : (tess_node_ranks){0, plan->options.world};
}

void tess_plan_node_owned(const tess_plan *plan, int unit_idx, tess_node_ranks node,
                          int64_t *lo_idx, int64_t *hi_idx)
{
    int64_t none = 0;
    tess_plan_owned(plan, unit_idx, node.first, lo_idx, &none);
    tess_plan_owned(plan, unit_idx, node.first + node.numel - 1, &none, hi_idx);
}

/* Of [0, end), those at a place of k. */
static int64_t at_place(int64_t end, int place, int k)
{
    return end > place ? (end - place - 1) / k + 1 : 0;
}

/* The node's own ranks are k in a row: one of them is at the place, too, and is no other node's. */
int64_t tess_plan_relayed(tess_node_ranks node, int rank, int64_t sender_numel)
{
    const int k = node.numel, place = rank - node.first;
    const int own = node.first + (place + k - node.first % k) % k;
    return at_place(sender_numel, place, k) - (own < sender_numel);
}

int64_t tess_plan_relayed_per_step(const tess_plan *plan, tess_node_ranks node, int rank)
{
    const int64_t m = plan->options.micro_batch_numel, world = plan->options.world;
    return m / world * tess_plan_relayed(node, rank, world) +
           tess_plan_relayed(node, rank, m % world);
}

double tess_plan_passed_numel(const tess_plan *plan, int unit_idx, int rank)
{
    const tess_node_ranks node = tess_plan_exchange_node(plan, unit_idx, rank);
    int64_t lo = 0, hi = 0, node_lo = 0, node_hi = 0;
    tess_plan_owned(plan, unit_idx, rank, &lo, &hi);
    tess_plan_node_owned(plan, unit_idx, node, &node_lo, &node_hi);
    return (double)tess_plan_relayed_per_step(plan, node, rank) *
           (double)(node_hi - node_lo - (hi - lo));
}

/* ---- messages ---- */

/* Of [first, end), the ranks that own a part of the unit. */
static int64_t owners_among(const tess_unit_plan *u, int64_t first, int64_t end)
{
    const int64_t numel = (u->slab_numel + u->slab_shard_numel - 1) / u->slab_shard_numel;
    return TESS_MAX(TESS_MIN(end, numel) - first, (int64_t)0);
}

/* Nodes with owners, which are the first ones: the node of the last owner and all before it. */
static int64_t owner_nodes(const tess_plan *plan, const tess_unit_plan *u)
{
    const int64_t owners = owners_among(u, 0, plan->options.world);
    int64_t numel = 0;
    for (int64_t first = 0; first < owners; numel++) {
        const tess_node_ranks node = tess_plan_node_of(plan, (int)first);
        first += node.numel;
    }
    return numel;
}

static void add_messages(const tess_plan *plan, int unit_idx, int rank, tess_link_messages *out)
{
    const tess_unit_plan *u = &plan->unit[unit_idx];
    const tess_node_ranks node = tess_plan_node_of(plan, rank);
    const double active = tess_plan_active_rounds(plan, rank);
    const int64_t here = owners_among(u, node.first, node.first + node.numel);
    const int64_t others_here = here - owners_among(u, rank, rank + 1);
    int64_t far = owners_among(u, 0, plan->options.world) - here;
    if (u->is_by_node) {
        far = owner_nodes(plan, u) - (here > 0);
        out->inside += (double)(tess_plan_relayed_per_step(plan, node, rank) * others_here);
    }
    out->inside += active * (double)others_here;
    out->across += active * (double)far;
}

tess_link_messages tess_plan_gradient_messages(const tess_plan *plan, int rank)
{
    tess_link_messages m = {0};
    for (int i = 0; i < plan->unit_numel && !plan->options.is_library; i++)
        if (tess_unit_grad_numel(&plan->unit[i]) > 0)
            add_messages(plan, i, rank, &m);
    return m;
}

int tess_plan_by_node_numel(const tess_plan *plan)
{
    int numel = 0;
    for (int i = 0; i < plan->unit_numel; i++)
        numel += plan->unit[i].is_by_node;
    return numel;
}

/* ---- the choice ---- */

/*
 * [Note: when by node] Links of CPU hosts as they are without a description: a message across nodes
 * takes 15 us to post and to match, one inside a node 1 us, and bytes pass inside at 1 GB/s while
 * all ranks do so. So a piece of less than 14 KB is cheaper passed on than sent alone; and what is
 * saved in all must exceed the 20 us in which the second hop begins.
 */
static const tess_link usual_inside = {
    .latency_s = 20e-6, .message_s = 1e-6, .rate = {1, {1}, {1e9}}, .adapter_numel = 1};
static const tess_link usual_across = {
    .latency_s = 20e-6, .message_s = 15e-6, .rate = {1, {1}, {1e9}}, .adapter_numel = 1};

/* Of rank 0, in a round that all ranks have a micro-batch of: what its messages across would take
 * more, against what it passes on. */
static bool is_cheaper_by_node(const tess_plan *plan, const tess_unit_plan *u)
{
    const tess_plan_options *o = &plan->options;
    const tess_link *inside = o->link_inside != NULL ? o->link_inside : &usual_inside;
    const tess_link *across = o->link_across != NULL ? o->link_across : &usual_across;
    const tess_node_ranks node = tess_plan_node_of(plan, 0);
    const int64_t here = owners_among(u, 0, node.numel);
    const int64_t far = owners_among(u, 0, o->world) - here;
    const int64_t saved = far - (owner_nodes(plan, u) - (here > 0));
    const int64_t senders = TESS_MIN((int64_t)o->world, o->micro_batch_numel);
    const double passed = (double)(tess_plan_relayed(node, 0, senders) * (here - 1));
    const double nbytes = passed * sizeof(float) * (double)u->slab_shard_numel;
    const double bytes_s = nbytes > 0.0 ? nbytes / tess_curve_at(&inside->rate, nbytes) : 0.0;
    return (double)saved * across->message_s >
           inside->latency_s + passed * inside->message_s + bytes_s;
}

/* One rank a node, or one node: nothing to group. */
static bool has_groups(const tess_plan *plan)
{
    int widest = 0;
    for (int first = 0; first < plan->options.world;) {
        const tess_node_ranks node = tess_plan_node_of(plan, first);
        widest = TESS_MAX(widest, node.numel);
        first += node.numel;
    }
    return widest > 1 && widest < plan->options.world;
}

void plan_exchanges(tess_plan *plan)
{
    const tess_plan_options *o = &plan->options;
    if (o->is_library || o->is_device || o->exchange == TESS_EXCHANGE_DIRECT || !has_groups(plan))
        return;
    for (int i = 0; i < plan->unit_numel; i++) {
        tess_unit_plan *u = &plan->unit[i];
        u->is_by_node = tess_unit_grad_numel(u) > 0 &&
                        (o->exchange == TESS_EXCHANGE_BY_NODE || is_cheaper_by_node(plan, u));
    }
}

/* ---- memory ---- */

/* Of a rank, in a full round: rows of a part each and, as a relay, of a node's; gradient.c. */
static int64_t received_rows(const tess_plan *plan, tess_node_ranks node, int rank)
{
    const int64_t senders = TESS_MIN((int64_t)plan->options.world, plan->options.micro_batch_numel);
    const int64_t relayed = tess_plan_relayed(node, rank, senders);
    return senders - (rank < senders) + relayed * node.numel;
}

/* All ranks allocate what the one with the most needs. */
int64_t plan_received_numel(const tess_plan *plan)
{
    const int world = plan->options.world;
    const tess_node_ranks all = {0, world};
    int64_t straight = 1, by_node = 0, numel = 0;
    if (!plan->options.is_library) /* a rank without a micro-batch hears from every sender */
        straight = world == 1 ? 0 : received_rows(plan, all, world - 1);
    const bool has_relays = tess_plan_by_node_numel(plan) > 0;
    for (int r = 0; r < world && has_relays; r++)
        by_node = TESS_MAX(by_node, received_rows(plan, tess_plan_node_of(plan, r), r));
    for (int i = 0; i < plan->unit_numel; i++) {
        const tess_unit_plan *u = &plan->unit[i];
        if (tess_unit_grad_numel(u) > 0)
            numel = TESS_MAX(numel, u->slab_shard_numel * (u->is_by_node ? by_node : straight));
    }
    return numel;
}
