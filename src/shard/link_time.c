#include "shard/link_time.h"

#include <math.h>

tess_links tess_links_of(const tess_device_profile *device, const tess_network_profile *network,
                         int world)
{
    return (tess_links){.world = world,
                        .node_rank_numel = device->node_rank_numel,
                        .is_ring = device->is_ring,
                        .inside = network->has_node ? &network->node : &device->link,
                        .across = &network->across};
}

tess_hop tess_link_hop(const tess_link *link, double nbytes, double message_numel)
{
    if (nbytes <= 0.0 && message_numel <= 0.0)
        return (tess_hop){0};
    return (tess_hop){.start_s = link->latency_s + message_numel * link->message_s,
                      .bytes_s = nbytes > 0.0 ? nbytes / tess_curve_at(&link->rate, nbytes) : 0.0};
}

double tess_hop_s(const tess_hop *hop) { return hop->start_s + hop->bytes_s; }

double tess_leg_s(const tess_leg *leg)
{
    return TESS_MAX(tess_hop_s(&leg->hop[TESS_HOP_INSIDE]), tess_hop_s(&leg->hop[TESS_HOP_ACROSS]));
}

tess_near_ranks tess_links_near(const tess_links *links, int rank, int64_t from, int64_t to)
{
    const int64_t q = links->node_rank_numel;
    const int64_t node = rank / q * q;
    tess_near_ranks n = {TESS_MAX(from, node), TESS_MIN(to, node + q)};
    n.end = TESS_MAX(n.end, n.first);
    return n;
}

double tess_links_sharers(const tess_links *links, double near_numel)
{
    return near_numel / TESS_MIN((double)links->across->adapter_numel, near_numel);
}

tess_leg tess_links_gather(const tess_links *links, int rank, tess_rank_run ranks, double nbytes,
                           int piece_numel)
{
    const tess_near_ranks n =
        tess_links_near(links, rank, ranks.first, (int64_t)ranks.first + ranks.numel);
    const double near = (double)(n.end - n.first), far = (double)ranks.numel - near;
    const double adapters = TESS_MIN((double)links->across->adapter_numel, near);
    const double passing = links->is_ring ? near + far - 1.0 : near - 1.0;
    const double node_nbytes = near > 1.0 ? passing * nbytes : 0.0;
    const double senders = links->is_ring ? 1.0 : near;
    const double hops = links->is_ring ? ceil(far / near) : far;
    const double messages = links->is_ring ? 1.0 : piece_numel; /* a ring sends them as one */
    return (tess_leg){
        {[TESS_HOP_INSIDE] = tess_link_hop(links->inside, node_nbytes, messages * (near - 1.0)),
         [TESS_HOP_ACROSS] =
             tess_link_hop(links->across, senders * far * nbytes / adapters, messages * hops)}};
}

tess_leg tess_links_swap(const tess_links *links, int rank, double nbytes)
{
    const tess_near_ranks n = tess_links_near(links, rank, 0, links->world);
    const double near = (double)(n.end - n.first), far = (double)links->world - near;
    const double shared = tess_links_sharers(links, near);
    return (tess_leg){
        {[TESS_HOP_INSIDE] = tess_link_hop(links->inside, (near - 1.0) * nbytes, near - 1.0),
         [TESS_HOP_ACROSS] = tess_link_hop(links->across, shared * far * nbytes, far)}};
}

double tess_links_record_s(const tess_links *links, double nbytes)
{
    const int world = links->world, q = links->node_rank_numel;
    const double inside = ceil(log2((double)TESS_MIN(world, q)));
    const double nodes = world > q ? ceil(log2((double)world / (double)q)) : 0.0;
    double s = 2.0 * (inside * links->inside->latency_s + nodes * links->across->latency_s);
    /* Large records are summed in parts, each rank's share once up and once down. */
    if (nbytes > 0.0 && inside > 0.0)
        s += 2.0 * nbytes / tess_curve_at(&links->inside->rate, nbytes);
    if (nbytes > 0.0 && nodes > 0.0)
        s += 2.0 * nbytes / tess_curve_at(&links->across->rate, nbytes);
    return s;
}
