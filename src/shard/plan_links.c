#include "shard/plan_links.h"

#include "shard/plan_exchange.h"

const char *tess_traffic_name(tess_traffic traffic)
{
    static const char *const name[TESS_TRAFFIC_NUMEL] = {"unit gathers", "gradients",
                                                         "trainable copies", "codebooks"};
    return name[traffic];
}

int tess_plan_node_numel(const tess_plan *plan)
{
    const tess_plan_options *o = &plan->options;
    return o->node_rank_numel > 0 ? (o->world + o->node_rank_numel - 1) / o->node_rank_numel : 0;
}

/* Consecutive ranks [lo, hi). */
typedef struct span {
    int lo, hi;
} span;

static span node_span(const tess_plan *plan, int node)
{
    const tess_plan_options *o = &plan->options;
    const int lo = node * o->node_rank_numel;
    return (span){lo, TESS_MIN(lo + o->node_rank_numel, o->world)};
}

static span node_of(const tess_plan *plan, int rank)
{
    return node_span(plan, rank / plan->options.node_rank_numel);
}

static span group_of(const tess_plan *plan, int rank)
{
    const int numel = plan->options.gather_group_numel;
    const int lo = rank / numel * numel;
    return (span){lo, lo + numel};
}

static int overlap(span a, span b)
{
    return TESS_MAX(TESS_MIN(a.hi, b.hi) - TESS_MAX(a.lo, b.lo), 0);
}

/* Every member gets the same from `rank`, `each` bytes. */
static tess_link_nbytes to_members(span members, span node, double each)
{
    const int here = overlap(members, node);
    return (tess_link_nbytes){each * (here - 1), each * (members.hi - members.lo - here)};
}

/* An all-gather over whole nodes: to every other node once, then the rows of its place on all nodes
 * to every rank of the own node; dist/engine_priv.h, [Note: gathers across nodes]. */
static tess_link_nbytes gather_to(const tess_plan *plan, span members, span node, double each)
{
    const int k = plan->options.node_rank_numel, numel = members.hi - members.lo;
    if (k < 2 || numel <= k || numel % k != 0 || members.lo % k != 0)
        return to_members(members, node, each);
    return (tess_link_nbytes){each * (k - 1) * (numel / k), each * (numel / k - 1)};
}

static tess_link_nbytes add(tess_link_nbytes a, tess_link_nbytes b)
{
    return (tess_link_nbytes){a.inside + b.inside, a.across + b.across};
}

static span all_of(const tess_plan *plan) { return (span){0, plan->options.world}; }

/* Bytes per receiver; nothing is received where nobody else is. */
static double each_of(double nbytes, int member_numel)
{
    return member_numel > 1 ? nbytes / (member_numel - 1) : 0.0;
}

static tess_link_nbytes gather_sends(const tess_plan *plan, int rank)
{
    const span node = node_of(plan, rank);
    const double slab = plan->gather_slab_nbytes_per_step;
    const double frozen = plan->gather_nbytes_per_step - slab;
    const tess_link_nbytes units = gather_to(plan, group_of(plan, rank), node,
                                             each_of(frozen, plan->options.gather_group_numel));
    return add(units, gather_to(plan, all_of(plan), node, each_of(slab, plan->options.world)));
}

/* Elements of all slabs that ranks [lo, hi) own. */
static double owned_numel(const tess_plan *plan, span ranks)
{
    double numel = 0;
    for (int i = 0; i < plan->unit_numel; i++)
        for (int r = ranks.lo; r < ranks.hi && tess_unit_grad_numel(&plan->unit[i]) > 0; r++) {
            int64_t lo = 0, hi = 0;
            tess_plan_owned(plan, i, r, &lo, &hi);
            numel += (double)(hi - lo);
        }
    return numel;
}

static double grad_numel(const tess_plan *plan)
{
    double numel = 0;
    for (int i = 0; i < plan->unit_numel; i++)
        numel += (double)tess_unit_grad_numel(&plan->unit[i]);
    return numel;
}

static tess_link_nbytes gradient_sends(const tess_plan *plan, int rank)
{
    const span node = node_of(plan, rank);
    if (plan->options.is_library) /* whole padded rows to everybody */
        return to_members(all_of(plan), node,
                          each_of(plan->grad_nbytes_per_step, plan->options.world));
    const double nbytes = (double)sizeof(float) * tess_plan_active_rounds(plan, rank);
    const double here = owned_numel(plan, node);
    const double own = owned_numel(plan, (span){rank, rank + 1});
    double passed = 0;
    for (int i = 0; i < plan->unit_numel; i++)
        passed += sizeof(float) * tess_plan_passed_numel(plan, i, rank);
    return (tess_link_nbytes){nbytes * (here - own) + passed, nbytes * (grad_numel(plan) - here)};
}

/* What the rank that receives the most gets, as all send it: keys, sums and codes that single ranks
 * exchange are the same for each pair, or depend on the data. */
static tess_link_nbytes codebook_sends(const tess_plan *plan, int rank)
{
    const tess_plan_codes *codes = &plan->options.codes;
    const span all = all_of(plan), node = node_of(plan, rank);
    const int world = plan->options.world;
    return add(gather_to(plan, all, node, each_of(codes->gathered_nbytes, world)),
               to_members(all, node, each_of(codes->step_nbytes - codes->gathered_nbytes, world)));
}

tess_link_nbytes tess_plan_rank_sends(const tess_plan *plan, tess_traffic traffic, int rank)
{
    switch (traffic) {
    case TESS_TRAFFIC_GATHER:
        return gather_sends(plan, rank);
    case TESS_TRAFFIC_GRADIENT:
        return gradient_sends(plan, rank);
    case TESS_TRAFFIC_TRAINABLE:
        return gather_to(plan, all_of(plan), node_of(plan, rank),
                         each_of(plan->slab_nbytes_per_step, plan->options.world));
    case TESS_TRAFFIC_CODEBOOK:
        return codebook_sends(plan, rank);
    case TESS_TRAFFIC_NUMEL:
        break;
    }
    return (tess_link_nbytes){0};
}

/* Gradients that other nodes send to owners on this one. */
static double gradients_received(const tess_plan *plan, span node)
{
    double rounds = 0;
    for (int r = 0; r < plan->options.world; r++)
        if (r < node.lo || r >= node.hi)
            rounds += tess_plan_active_rounds(plan, r);
    return rounds * (double)sizeof(float) * owned_numel(plan, node);
}

void tess_plan_node_traffic(const tess_plan *plan, int node, double *sent_nbytes,
                            double *received_nbytes)
{
    const span ranks = node_span(plan, node);
    *sent_nbytes = *received_nbytes = 0;
    for (int kind = 0; kind < TESS_TRAFFIC_NUMEL; kind++)
        for (int r = ranks.lo; r < ranks.hi; r++) {
            const double across = tess_plan_rank_sends(plan, (tess_traffic)kind, r).across;
            *sent_nbytes += across;
            /* shards are equal, so gathers and library reductions bring what they take */
            if (kind != TESS_TRAFFIC_GRADIENT || plan->options.is_library)
                *received_nbytes += across;
        }
    if (!plan->options.is_library)
        *received_nbytes += gradients_received(plan, ranks);
}

static int member_numel(const tess_plan *plan, tess_traffic traffic)
{
    const tess_plan_options *o = &plan->options;
    return traffic == TESS_TRAFFIC_GATHER && !o->is_full ? o->gather_group_numel : o->world;
}

bool tess_plan_is_inside(const tess_plan *plan, tess_traffic traffic)
{
    const int members = member_numel(plan, traffic), node = plan->options.node_rank_numel;
    /* a group that divides the node never lies on two */
    return members == 1 || (members <= node && node % members == 0);
}

const char *tess_plan_link_name(const tess_plan *plan, tess_traffic traffic)
{
    return member_numel(plan, traffic) == 1     ? "one rank"
           : tess_plan_is_inside(plan, traffic) ? "node"
                                                : "network";
}
