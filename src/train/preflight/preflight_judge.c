/* What is odd among the ranks of a launch, and what to do about it. */
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "train/median.h"
#include "train/preflight/preflight_priv.h"

static const double CLOCK_LIMIT_S = 1.0;

static void add(tess_preflight *p, const char *fmt, ...) TESS_PRINTF(2, 3);

static void add(tess_preflight *p, const char *fmt, ...)
{
    va_list args;
    if (p->finding_numel == TESS_PREFLIGHT_FINDING_MAX) {
        p->finding_more_numel++;
        return;
    }
    va_start(args, fmt);
    vsnprintf(p->finding[p->finding_numel++], TESS_PREFLIGHT_TEXT_NBYTES, fmt, args);
    va_end(args);
}

/* ---- what must be equal ---- */

static const struct {
    size_t offset;
    const char *name, *fix;
} texts[] = {
#define FIELD(field, name, fix)                                                                    \
    {                                                                                              \
        offsetof(tess_preflight_card, field), name, fix                                            \
    }
    FIELD(program, "tessera", "install the same build on every node"),
    FIELD(mpi, "MPI", "load the same MPI on every node"),
    FIELD(hdf5, "HDF5", "install the same HDF5 library on every node"),
    FIELD(cuda, "CUDA libraries", "install the same CUDA part and libraries on every node"),
    FIELD(driver, "GPU driver", "install the same driver on every node"),
#undef FIELD
};

static const char *text_at(const tess_preflight *p, int rank, size_t offset)
{
    return (const char *)&p->card[rank] + offset;
}

/* Rank whose value most ranks share; of equals the lowest. */
static int most_common(const tess_preflight *p, size_t offset)
{
    int best = 0, best_numel = 0;
    for (int r = 0; r < p->world && best_numel <= p->world / 2; r++) {
        int numel = 0;
        for (int o = 0; o < p->world; o++)
            numel += strcmp(text_at(p, r, offset), text_at(p, o, offset)) == 0;
        if (numel > best_numel) {
            best = r;
            best_numel = numel;
        }
    }
    return best;
}

static const char *or_none(const char *text) { return text[0] != '\0' ? text : "none"; }

static void judge_texts(tess_preflight *p)
{
    for (int i = 0; i < TESS_NELEM(texts); i++) {
        const size_t at = texts[i].offset;
        const char *most = text_at(p, most_common(p, at), at);
        for (int r = 0; r < p->world; r++)
            if (strcmp(text_at(p, r, at), most) != 0)
                add(p, "rank %d on '%s' has %s %s, most ranks have %s: %s", r, p->card[r].host,
                    texts[i].name, or_none(text_at(p, r, at)), or_none(most), texts[i].fix);
    }
}

/* ---- what must be alike ---- */

static void judge_least(tess_preflight *p, double *value, const char *what, const char *fix)
{
    for (int r = 0; r < p->world; r++)
        value[p->world + r] = value[r];
    const double median = tess_median(value + p->world, p->world);
    for (int r = 0; r < p->world; r++)
        if (value[r] < median / 2)
            add(p, "rank %d on '%s' has %.2f GiB of %s free, the median is %.2f GiB: %s", r,
                p->card[r].host, value[r] / 0x1p30, what, median / 0x1p30, fix);
}

static void judge_clocks(tess_preflight *p, double *value)
{
    for (int r = 0; r < p->world; r++)
        value[r] = p->card[r].clock_s;
    const double median = tess_median(value, p->world);
    for (int r = 0; r < p->world; r++)
        if (fabs(p->card[r].clock_s - median) > CLOCK_LIMIT_S)
            add(p,
                "the clock of rank %d on '%s' is off by %+.1f s: times in logs will not "
                "agree; set it by NTP",
                r, p->card[r].host, p->card[r].clock_s - median);
}

static void judge_folders(tess_preflight *p)
{
    for (int r = 0; r < p->world; r++)
        if (!p->card[r].sees_folder)
            add(p,
                "rank %d on '%s' does not see what rank 0 on '%s' writes in '%s' (%s): "
                "output.dir must lie on a file system that all nodes share",
                r, p->card[r].host, p->card[0].host, p->dir, or_none(p->card[r].folder));
}

/* ---- links ---- */

/* [Note: the odd end] A slow node makes all its pairs slow, and its partners are not to blame: an
 * end is judged by its best pair against the median of all ends' best. A pair of good ends that is
 * slow all the same is named by itself. */
typedef struct link_ends {
    bool is_across;
    int numel;
    double *best;   /* [numel] GB/s; 0: no pair of this kind */
    double *sorted; /* [numel] */
    double median;
} link_ends;

static int end_of(const tess_preflight *p, const link_ends *e, int rank)
{
    return e->is_across ? p->card[rank].node : rank;
}

static bool is_of(const tess_preflight *p, const link_ends *e, const tess_preflight_pair *pair)
{
    return (p->card[pair->a].node != p->card[pair->b].node) == e->is_across;
}

static void find_best(const tess_preflight *p, link_ends *e)
{
    int64_t numel = 0;
    memset(e->best, 0, (size_t)e->numel * sizeof *e->best);
    for (int64_t i = 0; i < p->pair_numel; i++) {
        const tess_preflight_pair *pair = &p->pair[i];
        if (!is_of(p, e, pair))
            continue;
        double *a = &e->best[end_of(p, e, pair->a)], *b = &e->best[end_of(p, e, pair->b)];
        *a = TESS_MAX(*a, pair->gbps);
        *b = TESS_MAX(*b, pair->gbps);
    }
    for (int i = 0; i < e->numel; i++)
        if (e->best[i] > 0)
            e->sorted[numel++] = e->best[i];
    e->median = tess_median(e->sorted, numel);
}

static const char *host_of(const tess_preflight *p, const link_ends *e, int end)
{
    for (int r = 0; e->is_across && r < p->world; r++)
        if (p->card[r].node == end)
            return p->card[r].host;
    return p->card[end].host;
}

static void judge_ends(tess_preflight *p, const link_ends *e)
{
    for (int i = 0; i < e->numel; i++)
        if (e->best[i] > 0 && e->best[i] < e->median / 2) {
            if (e->is_across)
                add(p,
                    "node %d '%s' reaches others at %.3f GB/s at best, the median of nodes is "
                    "%.3f: look at its cable, port and interface (NCCL_SOCKET_IFNAME, "
                    "btl_tcp_if_include)",
                    i, host_of(p, e, i), e->best[i], e->median);
            else
                add(p,
                    "rank %d on '%s' reaches its neighbours at %.3f GB/s at best, the median of "
                    "ranks is %.3f: look at what else runs on its cores",
                    i, host_of(p, e, i), e->best[i], e->median);
        }
}

static void judge_pairs(tess_preflight *p, const link_ends *e)
{
    for (int64_t i = 0; i < p->pair_numel; i++) {
        const tess_preflight_pair *pair = &p->pair[i];
        if (!is_of(p, e, pair))
            continue;
        const double a = e->best[end_of(p, e, pair->a)], b = e->best[end_of(p, e, pair->b)];
        const double least = TESS_MIN(a, b);
        if (pair->gbps < least / 2 && e->is_across)
            add(p,
                "ranks %d on '%s' and %d on '%s' reach each other at %.3f GB/s, others at %.3f: "
                "look at the path between these nodes",
                pair->a, p->card[pair->a].host, pair->b, p->card[pair->b].host, pair->gbps, least);
    }
}

static void judge_links(tess_preflight *p, double *room)
{
    for (int across = 0; across < 2; across++) {
        link_ends e = {.is_across = across == 1,
                       .numel = across == 1 ? p->node_numel : p->world,
                       .best = room,
                       .sorted = room + p->world};
        find_best(p, &e);
        judge_ends(p, &e);
        judge_pairs(p, &e);
    }
}

void tess_preflight_judge(tess_preflight *p)
{
    void *memory = NULL;
    p->finding_numel = p->finding_more_numel = 0;
    judge_texts(p);
    judge_folders(p);
    if (tess_alloc_array(2 * (int64_t)p->world, sizeof(double), &memory) != TESS_OK) {
        add(p, "out of memory on rank 0: numbers were not compared");
        return;
    }
    double *room = memory;
    judge_clocks(p, room);
    for (int r = 0; r < p->world; r++)
        room[r] = (double)p->card[r].memory_free_nbytes;
    judge_least(p, room, "memory", "something else runs on its node");
    for (int r = 0; r < p->world; r++)
        room[r] = (double)p->card[r].disk_free_nbytes;
    judge_least(p, room, "disk", "output.dir is another file system there");
    judge_links(p, room);
    tess_free(memory);
}
