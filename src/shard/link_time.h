/**
 * What collectives take on described links. All functions are Local and pure.
 *
 * [Note: times of collectives] A collective takes as long as its slower kind of hop: inside the
 * node, and across nodes, where the ranks of a node share its adapters. Each kind takes latency, a
 * time for every message, and bytes over the rate that the link has for so many. A gather in a ring
 * brings every byte into a node once and passes all of them through every rank; a direct one sends
 * every shard to every member.
 */
#pragma once

#include "shard/profile.h"

TESS_BEGIN_DECLS

/** Ranks on a device's nodes and what connects them. Links are borrowed. */
typedef struct tess_links {
    int world, node_rank_numel;
    bool is_ring; /* gathers go around a ring */
    const tess_link *inside, *across;
} tess_links;

/** A network's own link inside nodes replaces the device's. */
tess_links tess_links_of(const tess_device_profile *device, const tess_network_profile *network,
                         int world);

/** One kind of hop of a collective. */
typedef struct tess_hop {
    double start_s; /* latency and messages, during which others may have the link */
    double bytes_s; /* at the link's full rate */
} tess_hop;

typedef enum tess_hop_kind { TESS_HOP_INSIDE, TESS_HOP_ACROSS, TESS_HOP_NUMEL } tess_hop_kind;

/** Hops of both kinds that run beside each other. */
typedef struct tess_leg {
    tess_hop hop[TESS_HOP_NUMEL];
} tess_leg;

/** Nothing where there are neither bytes nor messages. */
tess_hop tess_link_hop(const tess_link *link, double nbytes, double message_numel);
double tess_hop_s(const tess_hop *hop);
/** Of the slower kind. */
double tess_leg_s(const tess_leg *leg);

/** Ranks [first, end) of [from, to) that share a node with `rank`. */
typedef struct tess_near_ranks {
    int64_t first, end;
} tess_near_ranks;
tess_near_ranks tess_links_near(const tess_links *links, int rank, int64_t from, int64_t to);

/** Consecutive ranks. */
typedef struct tess_rank_run {
    int first, numel;
} tess_rank_run;
/** `nbytes` from each of `ranks` to all of them, one of which is `rank`, as a list of pieces. */
tess_leg tess_links_gather(const tess_links *links, int rank, tess_rank_run ranks, double nbytes,
                           int piece_numel);
/** `nbytes` from every rank to every other. */
tess_leg tess_links_swap(const tess_links *links, int rank, double nbytes);
/** Ranks of a node that share one of its adapters, on average; at least 1. */
double tess_links_sharers(const tess_links *links, double near_numel);
/** A record of `nbytes` summed up over all ranks: up a tree and down again. */
double tess_links_record_s(const tess_links *links, double nbytes);

TESS_END_DECLS
