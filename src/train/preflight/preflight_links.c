/*
 * Bandwidth and latency of pairs of ranks.
 *
 * [Note: a tournament of links] In a round every node talks to at most one other, so no two pairs
 * share a node's link. First the pairs inside nodes, all nodes at once. Then a round robin of nodes
 * (circle method) for each pair of places (j, k): the j-th rank of the lower node with the k-th of
 * the higher. That covers every pair of ranks; where it would take more than ROUND_MAX rounds only
 * j = k is played, which still covers every pair of nodes and every rank's own adapter.
 */
#include <string.h>

#include "core/arith.h"
#include "core/clock.h"
#include "core/memory.h"
#include "train/preflight/preflight_priv.h"

enum {
    ROUND_MAX = 512, /* of a few hundredths of a second on gigabit links */
    LATENCY_REPEAT = 16,
    RATE_REPEAT = 6,
    RATE_NBYTES = 1 << 20 /* one chunk of the engine, past the plateau of its links */
};

/* ---- schedule ---- */

static int node_size(const preflight_shape *s, int node)
{
    return s->first_rank[node + 1] - s->first_rank[node];
}

static int widest_node(const preflight_shape *s)
{
    int most = 0;
    for (int n = 0; n < s->node_numel; n++)
        most = TESS_MAX(most, node_size(s, n));
    return most;
}

/* Circle method: rounds of a round robin of `numel` players, an odd one out where numel is odd. */
static int64_t circle_rounds(int numel) { return numel > 1 ? numel + numel % 2 - 1 : 0; }

static int circle_partner(int numel, int64_t round, int player)
{
    const int last = (int)circle_rounds(numel); /* the player that the others turn around */
    int other = player == last ? (int)round : (int)((2 * round - player + last) % last);
    if (other == player)
        other = last;
    return other < numel ? other : -1;
}

/* Pairs of places that a round robin of nodes is played for. */
static int64_t place_pairs(const preflight_shape *s)
{
    const int64_t k = widest_node(s);
    return circle_rounds(s->node_numel) * k * k <= ROUND_MAX ? k * k : k;
}

int64_t preflight_round_numel(const preflight_shape *s)
{
    return circle_rounds(widest_node(s)) + circle_rounds(s->node_numel) * place_pairs(s);
}

static int node_of(const preflight_shape *s, int rank)
{
    int node = 0;
    while (s->first_rank[node + 1] <= rank)
        node++;
    return node;
}

static int partner_across(const preflight_shape *s, int64_t round, int rank)
{
    const int64_t k = widest_node(s), rounds = circle_rounds(s->node_numel);
    const int64_t play = round / rounds;
    const int place[2] = {(int)(play % k), (int)((play % k + play / k) % k)}; /* lower, higher */
    const int node = node_of(s, rank), other = circle_partner(s->node_numel, round % rounds, node);
    if (other < 0)
        return -1;
    const bool is_lower = node < other;
    const int mine = place[is_lower ? 0 : 1], theirs = place[is_lower ? 1 : 0];
    if (rank - s->first_rank[node] != mine || theirs >= node_size(s, other))
        return -1;
    return s->first_rank[other] + theirs;
}

int preflight_partner(const preflight_shape *s, int64_t round, int rank)
{
    const int widest = widest_node(s), node = node_of(s, rank);
    const int64_t inside = circle_rounds(widest);
    if (round >= inside)
        return partner_across(s, round - inside, rank);
    const int place = circle_partner(widest, round, rank - s->first_rank[node]);
    return place >= 0 && place < node_size(s, node) ? s->first_rank[node] + place : -1;
}

/* ---- measuring ---- */

/* What a rank found out about another. Plain bytes: it travels. */
typedef struct measured {
    double latency_s, gbps; /* 0: not measured */
} measured;

typedef struct probe {
    tess_comm *world;
    char *out, *in;  /* [RATE_NBYTES] */
    measured *found; /* [world] */
} probe;

/* One exchange with the partner, or an empty one: every rank takes part in every collective. */
static tess_status swap(const probe *p, int partner, int64_t nbytes, double *elapsed_s)
{
    const tess_wire wire = {.op = TESS_COMM_EXCHANGE,
                            .storage = TESS_U8,
                            .wire = TESS_U8,
                            .accumulate = TESS_U8,
                            .numel_per_rank = nbytes,
                            .numel_total = nbytes,
                            .name = "check/link"};
    const tess_piece send = {partner, tess_view_host(p->out, nbytes, TESS_U8)};
    const tess_piece receive = {partner, tess_view_host(p->in, nbytes, TESS_U8)};
    const int numel = partner >= 0;
    tess_stream *s = tess_comm_gather_stream(p->world);
    tess_event done = {0};
    const double from_s = tess_clock_s();
    TESS_TRY(tess_comm_exchange(p->world, &wire, &send, numel, &receive, numel, s));
    tess_status st = tess_event_record(&done, s);
    if (st == TESS_OK)
        st = tess_event_finish(&done);
    *elapsed_s = tess_clock_s() - from_s;
    return st;
}

static tess_status best_of(const probe *p, int partner, int64_t nbytes, int repeat, double *best_s)
{
    double elapsed_s = 0;
    TESS_TRY(swap(p, partner, nbytes, best_s)); /* opens the connection; not counted */
    *best_s = 1e30;
    for (int i = 0; i < repeat; i++) {
        TESS_TRY(swap(p, partner, nbytes, &elapsed_s));
        *best_s = TESS_MIN(*best_s, elapsed_s);
    }
    return TESS_OK;
}

static tess_status play(probe *p, const preflight_shape *s)
{
    double latency_s = 0, rate_s = 0;
    for (int64_t round = 0; round < preflight_round_numel(s); round++) {
        const int partner = preflight_partner(s, round, tess_comm_rank(p->world));
        TESS_TRY(tess_comm_barrier(p->world)); /* no pair of another round is on the links */
        TESS_TRY(best_of(p, partner, 1, LATENCY_REPEAT, &latency_s));
        TESS_TRY(best_of(p, partner, RATE_NBYTES, RATE_REPEAT, &rate_s));
        if (partner >= 0)
            p->found[partner] = (measured){latency_s, RATE_NBYTES / TESS_MAX(rate_s, 1e-9) / 1e9};
    }
    return TESS_OK;
}

/* Of the two views of a pair the worse counts: the other end may have waited less. */
static tess_status join(const measured *all, int world, tess_preflight *p)
{
    void *memory = NULL;
    for (int a = 0; a < world; a++)
        for (int b = a + 1; b < world; b++)
            p->pair_numel += all[(int64_t)a * world + b].gbps > 0;
    TESS_TRY(tess_alloc_array(TESS_MAX(p->pair_numel, (int64_t)1), sizeof *p->pair, &memory));
    p->pair = memory;
    int64_t at = 0;
    for (int a = 0; a < world; a++)
        for (int b = a + 1; b < world; b++) {
            const measured *x = &all[(int64_t)a * world + b], *y = &all[(int64_t)b * world + a];
            if (x->gbps > 0)
                p->pair[at++] = (tess_preflight_pair){a, b, TESS_MAX(x->latency_s, y->latency_s),
                                                      TESS_MIN(x->gbps, y->gbps)};
        }
    return TESS_OK;
}

static tess_status collect(tess_comm *world, const measured *mine, tess_preflight *p)
{
    const int numel = tess_comm_world(world);
    const bool is_root = tess_comm_rank(world) == 0;
    void *all = NULL;
    tess_status st = TESS_OK;
    if (is_root)
        st = tess_alloc_array((int64_t)numel * numel, sizeof(measured), &all);
    st = tess_agree(world, st);
    if (st == TESS_OK)
        st = tess_comm_gather_bytes(world, 0, mine, (size_t)numel * sizeof *mine, all);
    if (st == TESS_OK)
        st = tess_agree(world, is_root ? join(all, numel, p) : TESS_OK);
    tess_free(all);
    return st;
}

static tess_status alloc_probe(probe *p, int world, int node_numel, int **first_rank)
{
    void *part[3] = {NULL}, *first = NULL;
    const int64_t numel[3] = {RATE_NBYTES, RATE_NBYTES, world * (int64_t)sizeof(measured)};
    tess_status st = tess_alloc_array(node_numel + 1, sizeof(int), &first);
    for (int i = 0; i < 3 && st == TESS_OK; i++)
        st = tess_alloc_array(numel[i], 1, &part[i]);
    p->out = part[0];
    p->in = part[1];
    p->found = part[2];
    *first_rank = first;
    return st;
}

tess_status preflight_links(tess_comm *world, tess_preflight *p)
{
    probe b = {.world = world};
    int *first_rank = NULL;
    const int node_numel = tess_comm_node_numel(world);
    tess_status st = alloc_probe(&b, tess_comm_world(world), node_numel, &first_rank);
    st = tess_agree(world, st);
    for (int n = 0; n < node_numel && st == TESS_OK; n++)
        first_rank[n + 1] = first_rank[n] + tess_comm_node_rank_numel(world, n);
    const preflight_shape shape = {tess_comm_world(world), node_numel, first_rank};
    if (st == TESS_OK)
        st = play(&b, &shape);
    if (st == TESS_OK)
        st = collect(world, b.found, p);
    tess_free(b.found);
    tess_free(b.in);
    tess_free(b.out);
    tess_free(first_rank);
    return st;
}
