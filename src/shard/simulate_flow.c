#include <math.h>

#include "shard/simulate_priv.h"

void sim_flow_add(sim_flow *flow, double from_s, const sim_collective *c, double share)
{
    for (int i = 0; i < TESS_NELEM(c->leg); i++) {
        sim_part *p = &flow->part[flow->part_numel];
        *p = (sim_part){.from_s = from_s, .left = c->leg[i]};
        for (int hop = 0; hop < TESS_HOP_NUMEL; hop++) {
            p->left.hop[hop].start_s *= share;
            p->left.hop[hop].bytes_s *= share;
        }
        flow->part_numel += tess_leg_s(&p->left) > 0.0;
    }
}

static const sim_part *part_of(const sim_flow *f) { return &f->part[f->part_idx]; }

static bool is_on_link(const sim_flow *f, int hop, double now_s)
{
    if (!f->is_under_way || f->part_idx == f->part_numel || part_of(f)->from_s > now_s)
        return false;
    const tess_hop *left = &part_of(f)->left.hop[hop];
    return left->start_s <= 0.0 && left->bytes_s > 0.0;
}

/* Flows on the link of a hop, this one included. Those of one lane have no rank in common, and so
 * no link; what two of the other lane have on their links counts once: they are on two nodes. */
static double sharers(const sim_flow *flow, int numel, int idx, int hop, double now_s)
{
    for (int i = 0; i < numel; i++)
        if (flow[i].lane != flow[idx].lane && (flow[i].rank_bits & flow[idx].rank_bits) != 0 &&
            is_on_link(&flow[i], hop, now_s))
            return 2.0;
    return 1.0;
}

/* Until a hop begins, starts to move bytes, or has moved them; INFINITY: nothing is left. */
static double next_s(const sim_flow *flow, int numel, int idx, int hop, double now_s)
{
    const sim_flow *f = &flow[idx];
    if (!f->is_under_way || f->part_idx == f->part_numel)
        return INFINITY;
    if (part_of(f)->from_s > now_s)
        return part_of(f)->from_s - now_s;
    const tess_hop *left = &part_of(f)->left.hop[hop];
    if (left->start_s > 0.0)
        return left->start_s;
    return left->bytes_s > 0.0 ? left->bytes_s * sharers(flow, numel, idx, hop, now_s) : INFINITY;
}

static void go_on(sim_flow *f, int hop, double now_s, double dt_s, double own_s)
{
    if (isinf(own_s) || part_of(f)->from_s > now_s)
        return;
    tess_hop *left = &f->part[f->part_idx].left.hop[hop];
    double *what = left->start_s > 0.0 ? &left->start_s : &left->bytes_s;
    *what = own_s <= dt_s ? 0.0 : *what * (1.0 - dt_s / own_s);
}

static void end_parts(sim_flow *f, double now_s)
{
    while (f->part_idx < f->part_numel && tess_leg_s(&part_of(f)->left) <= 0.0)
        f->part_idx++;
    if (f->is_under_way && f->part_idx == f->part_numel && f->end_s < 0.0)
        f->end_s = now_s;
}

static bool has_ended(const sim_flow *flow, int numel)
{
    for (int i = 0; i < numel; i++)
        if (flow[i].is_under_way && flow[i].end_s >= 0.0)
            return true;
    return false;
}

void sim_flows_run(sim_flow *flow, int numel, double *now_s, double until_s)
{
    double own_s[SIM_FLOW_MAX][TESS_HOP_NUMEL];
    for (int i = 0; i < numel; i++)
        end_parts(&flow[i], *now_s);
    while (*now_s < until_s && !has_ended(flow, numel)) {
        double dt_s = until_s - *now_s;
        for (int i = 0; i < numel; i++)
            for (int hop = 0; hop < TESS_HOP_NUMEL; hop++) {
                own_s[i][hop] = next_s(flow, numel, i, hop, *now_s);
                dt_s = TESS_MIN(dt_s, own_s[i][hop]);
            }
        if (isinf(dt_s)) /* nothing is under way */
            return;
        for (int i = 0; i < numel; i++)
            for (int hop = 0; hop < TESS_HOP_NUMEL; hop++)
                go_on(&flow[i], hop, *now_s, dt_s, own_s[i][hop]);
        /* A wait that is over is over, whatever the sum is rounded to. */
        double at_s = *now_s + dt_s;
        for (int i = 0; i < numel; i++)
            if (flow[i].is_under_way && flow[i].part_idx < flow[i].part_numel &&
                part_of(&flow[i])->from_s > *now_s && own_s[i][0] <= dt_s)
                at_s = part_of(&flow[i])->from_s;
        *now_s = at_s;
        for (int i = 0; i < numel; i++)
            end_parts(&flow[i], *now_s);
    }
}
