/**
 * How gradient pieces travel to their owners: straight, or by node.
 *
 * [Note: exchange by node] The owners on a node are consecutive ranks, so that their parts of a
 * unit's slab are one range of it. A rank sends that range to one rank of the node, the relay, and
 * the relay passes the parts on; inside its own node it sends straight to the owners. The relay of
 * sender s on a node of k ranks is the node's rank number s mod k: where all nodes have k ranks,
 * the one at the sender's own place, and on any others the load is even too. Owners add pieces up
 * in the order of micro-batches whichever way they came, so the bits of a run do not depend on it.
 *
 * Across nodes the same bytes go in fewer messages; inside, each of those bytes but the relay's own
 * part goes once more. All functions are Local and pure.
 */
#pragma once

#include "shard/plan.h"

TESS_BEGIN_DECLS

/** Consecutive ranks [first, first + numel). */
typedef struct tess_node_ranks {
    int first, numel;
} tess_node_ranks;

/** Ranks of the node of `rank`; all ranks where the plan knows no nodes. */
tess_node_ranks tess_plan_node_of(const tess_plan *plan, int rank);
/** The same for exchanges of a unit: all ranks where its pieces go straight. */
tess_node_ranks tess_plan_exchange_node(const tess_plan *plan, int unit_idx, int rank);

static inline bool tess_node_has(tess_node_ranks node, int rank)
{
    return rank >= node.first && rank - node.first < node.numel;
}

/** The rank of another rank's node that takes what `sender` has for that node. */
static inline int tess_plan_relay(tess_node_ranks node, int sender)
{
    return node.first + sender % node.numel;
}

/** Elements of a unit's slab that ranks of a node own: [lo, hi), may be empty. */
void tess_plan_node_owned(const tess_plan *plan, int unit_idx, tess_node_ranks node,
                          int64_t *lo_idx, int64_t *hi_idx);
/** Of the ranks [0, sender_numel), those on other nodes that `rank` is the relay of. */
int64_t tess_plan_relayed(tess_node_ranks node, int rank, int64_t sender_numel);
/** The same over all micro-batches of a step. */
int64_t tess_plan_relayed_per_step(const tess_plan *plan, tess_node_ranks node, int rank);

/** Elements of a unit's pieces that `rank` passes on in a step: so much more than straight it
 * sends, and so much more it receives. */
double tess_plan_passed_numel(const tess_plan *plan, int unit_idx, int rank);

/** Messages of a step, by whether sender and receiver share a node. */
typedef struct tess_link_messages {
    double inside, across;
} tess_link_messages;

/** What `rank` sends in exchanges of gradients in a step; none with a library reduction. */
tess_link_messages tess_plan_gradient_messages(const tess_plan *plan, int rank);
/** Units with gradients whose pieces go by node. */
int tess_plan_by_node_numel(const tess_plan *plan);
/** "auto", "direct", "by-node". */
const char *tess_exchange_name(tess_exchange exchange);

TESS_END_DECLS
