#include "dist/nodes_priv.h"

#include "core/memory.h"
#include "dist/comm_priv.h"

static int count_nodes(const int *lowest_rank, int world)
{
    int numel = 0;
    for (int r = 0; r < world; r++)
        numel += lowest_rank[r] == r;
    return numel;
}

/* `next` [world] is where the next rank of the node with that lowest rank goes. */
static void order(const int *lowest_rank, int world, int *next, int *new_rank, int *first_rank)
{
    int at = 0, node = 0;
    for (int r = 0; r < world; r++)
        next[lowest_rank[r]]++;
    for (int r = 0; r < world; r++) {
        const int numel = next[r];
        if (numel == 0)
            continue; /* not the lowest of its node */
        first_rank[node++] = at;
        next[r] = at;
        at += numel;
    }
    first_rank[node] = at;
    for (int r = 0; r < world; r++)
        new_rank[r] = next[lowest_rank[r]]++;
}

tess_status dist_nodes_create(const int *lowest_rank, int world, int *new_rank, dist_nodes **out)
{
    void *object = NULL, *first = NULL, *next = NULL;
    const int node_numel = count_nodes(lowest_rank, world);
    tess_status st = tess_alloc(sizeof(dist_nodes), &object);
    if (st == TESS_OK)
        st = tess_alloc_array(node_numel + 1, sizeof(int), &first);
    if (st == TESS_OK)
        st = tess_alloc_array(world, sizeof(int), &next);
    if (st != TESS_OK) {
        tess_free(first);
        tess_free(object);
        return st;
    }
    order(lowest_rank, world, next, new_rank, first);
    tess_free(next);
    dist_nodes *nodes = object;
    nodes->node_numel = node_numel;
    nodes->first_rank = first;
    *out = nodes;
    return TESS_OK;
}

void dist_nodes_destroy(dist_nodes **nodes)
{
    if (*nodes == NULL)
        return;
    tess_free((*nodes)->first_rank);
    tess_free(*nodes);
    *nodes = NULL;
}

int dist_nodes_find(const dist_nodes *nodes, int rank)
{
    int lo = 0, hi = nodes->node_numel; /* first_rank[lo] <= rank < first_rank[hi] */
    while (hi - lo > 1) {
        const int mid = lo + (hi - lo) / 2;
        if (nodes->first_rank[mid] <= rank)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

int dist_nodes_even(const dist_nodes *nodes, int first_rank, int numel)
{
    if (nodes == NULL)
        return 0;
    const int first = dist_nodes_find(nodes, first_rank);
    const int k = nodes->first_rank[first + 1] - nodes->first_rank[first];
    if (k < 2 || numel <= k || numel % k != 0)
        return 0;
    for (int i = 0; i <= numel / k; i++) /* also where the last one ends */
        if (nodes->first_rank[first + i] != first_rank + i * k)
            return 0;
    return k;
}

/* ---- communicators ---- */

/* NULL where all ranks are one process. */
static const dist_nodes *nodes_of(const tess_comm *comm)
{
    return comm->host != NULL ? comm->host->nodes : comm->nodes;
}

int tess_comm_node_numel(const tess_comm *comm)
{
    const dist_nodes *nodes = nodes_of(comm);
    return nodes != NULL ? tess_comm_node_of(comm, comm->world - 1) + 1 : 1;
}

/* Node of the launch on which `comm` begins. */
static int first_node(const tess_comm *comm, const dist_nodes *nodes)
{
    return dist_nodes_find(nodes, comm->first_world_rank);
}

int tess_comm_node_of(const tess_comm *comm, int rank)
{
    const dist_nodes *nodes = nodes_of(comm);
    if (nodes == NULL)
        return 0;
    return dist_nodes_find(nodes, comm->first_world_rank + rank) - first_node(comm, nodes);
}

int tess_comm_node_rank(const tess_comm *comm)
{
    const dist_nodes *nodes = nodes_of(comm);
    const int rank = tess_comm_launch_rank(comm);
    return nodes != NULL ? rank - nodes->first_rank[dist_nodes_find(nodes, rank)] : 0;
}

int tess_comm_node_rank_numel(const tess_comm *comm, int node)
{
    const dist_nodes *nodes = nodes_of(comm);
    if (nodes == NULL)
        return 1;
    const int *first_rank = &nodes->first_rank[first_node(comm, nodes) + node];
    const int first = TESS_MAX(first_rank[0], comm->first_world_rank);
    return TESS_MIN(first_rank[1], comm->first_world_rank + comm->world) - first;
}
