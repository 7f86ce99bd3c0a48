#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "train/median.h"
#include "train/preflight/preflight_priv.h"
#include "train/strbuf.h"

/* ---- text ---- */

static const char *or_dash(const char *text) { return text[0] != '\0' ? text : "-"; }

static tess_status say_ranks(const tess_preflight *p, tess_strbuf *t)
{
    TESS_TRY(tess_strbuf_add(
        t, "%d rank%s on %d node%s\n  %-5s %-5s %-16s %-14s %-6s %11s %11s %9s  %s\n", p->world,
        p->world == 1 ? "" : "s", p->node_numel, p->node_numel == 1 ? "" : "s", "rank", "node",
        "host", "cores", "NUMA", "memory free", "disk free", "clock", "device"));
    for (int r = 0; r < p->world; r++) {
        const tess_preflight_card *c = &p->card[r];
        TESS_TRY(tess_strbuf_add(
            t, "  %-5d %-5d %-16s %3d: %-9s %-6s %7.1f GiB %7.1f GiB %+8.3fs  %s\n", r, c->node,
            c->host, c->core_numel, c->cores, or_dash(c->numa),
            (double)c->memory_free_nbytes / 0x1p30, (double)c->disk_free_nbytes / 0x1p30,
            c->clock_s - p->card[0].clock_s, or_dash(c->device)));
    }
    const tess_preflight_card *c = &p->card[0];
    return tess_strbuf_add(t,
                           "rank 0 runs\n  tessera %s, kernels %s\n  %s, HDF5 %s\n  CUDA part: "
                           "%s; driver: %s\n",
                           c->program, c->kernels, c->mpi, c->hdf5, or_dash(c->cuda),
                           or_dash(c->driver));
}

/* Columns of one kind of links: least, median, most. */
static tess_status say_kind(const tess_preflight *p, bool is_across, tess_strbuf *t)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(2 * TESS_MAX(p->pair_numel, (int64_t)1), sizeof(double), &memory));
    double *latency = memory, *rate = latency + TESS_MAX(p->pair_numel, (int64_t)1);
    int64_t numel = 0;
    for (int64_t i = 0; i < p->pair_numel; i++)
        if ((p->card[p->pair[i].a].node != p->card[p->pair[i].b].node) == is_across) {
            latency[numel] = 1e6 * p->pair[i].latency_s;
            rate[numel++] = p->pair[i].gbps;
        }
    const double middle = tess_median(latency, numel), rate_middle = tess_median(rate, numel);
    tess_status st = TESS_OK;
    if (numel > 0)
        st = tess_strbuf_add(t, "  %-14s %6lld %9.1f %9.1f %9.1f %10.3f %9.3f %9.3f\n",
                             is_across ? "across nodes" : "inside a node", (long long)numel,
                             latency[0], middle, latency[numel - 1], rate[0], rate_middle,
                             rate[numel - 1]);
    tess_free(memory);
    return st;
}

static tess_status say_links(const tess_preflight *p, tess_strbuf *t)
{
    if (p->pair_numel == 0)
        return TESS_OK;
    TESS_TRY(tess_strbuf_add(t, "links %15s %29s %30s\n  %-14s %6s %9s %9s %9s %10s %9s %9s\n", "",
                             "latency, us", "GB/s each way", "", "pairs", "least", "median", "most",
                             "least", "median", "most"));
    TESS_TRY(say_kind(p, false, t));
    return say_kind(p, true, t);
}

static tess_status say_findings(const tess_preflight *p, tess_strbuf *t)
{
    TESS_TRY(tess_strbuf_add(t, "%s\n", p->finding_numel > 0 ? "odd" : "nothing is odd"));
    for (int i = 0; i < p->finding_numel; i++)
        TESS_TRY(tess_strbuf_add(t, "  %s\n", p->finding[i]));
    if (p->finding_more_numel > 0)
        TESS_TRY(tess_strbuf_add(t, "  and %d more\n", p->finding_more_numel));
    return TESS_OK;
}

tess_status tess_preflight_text(const tess_preflight *p, char **out)
{
    tess_strbuf t = {0};
    tess_status st = say_ranks(p, &t);
    if (st == TESS_OK)
        st = say_links(p, &t);
    if (st == TESS_OK)
        st = say_findings(p, &t);
    if (st == TESS_OK)
        st = tess_strdup(t.text, out);
    tess_strbuf_fini(&t);
    return st;
}

/* ---- JSON ---- */

static tess_status json_card(const tess_preflight *p, int rank, tess_json *list)
{
    const tess_preflight_card *c = &p->card[rank];
    const struct {
        const char *key, *value;
    } text[] = {{"host", c->host},     {"tessera", c->program}, {"mpi", c->mpi},
                {"hdf5", c->hdf5},     {"cuda", c->cuda},       {"driver", c->driver},
                {"device", c->device}, {"kernels", c->kernels}, {"cores", c->cores},
                {"numa", c->numa}};
    tess_json *v = NULL;
    TESS_TRY(tess_json_add_object(list, NULL, &v));
    for (int i = 0; i < TESS_NELEM(text); i++)
        TESS_TRY(tess_json_add_string(v, text[i].key, text[i].value));
    TESS_TRY(tess_json_add_i64(v, "rank", rank));
    TESS_TRY(tess_json_add_i64(v, "node", c->node));
    TESS_TRY(tess_json_add_i64(v, "node_rank", c->node_rank));
    TESS_TRY(tess_json_add_i64(v, "core_count", c->core_numel));
    TESS_TRY(tess_json_add_i64(v, "memory_free_bytes", c->memory_free_nbytes));
    TESS_TRY(tess_json_add_i64(v, "disk_free_bytes", c->disk_free_nbytes));
    TESS_TRY(tess_json_add_f64(v, "clock_offset_s", c->clock_s - p->card[0].clock_s));
    return tess_json_add_bool(v, "sees_output_dir", c->sees_folder);
}

static tess_status json_pair(const tess_preflight *p, const tess_preflight_pair *pair,
                             tess_json *list)
{
    tess_json *v = NULL;
    const bool is_across = p->card[pair->a].node != p->card[pair->b].node;
    TESS_TRY(tess_json_add_object(list, NULL, &v));
    TESS_TRY(tess_json_add_i64(v, "a", pair->a));
    TESS_TRY(tess_json_add_i64(v, "b", pair->b));
    TESS_TRY(tess_json_add_string(v, "link", is_across ? "network" : "node"));
    TESS_TRY(tess_json_add_f64(v, "latency_s", pair->latency_s));
    return tess_json_add_f64(v, "gb_per_s", pair->gbps);
}

static tess_status json_fill(const tess_preflight *p, tess_json *root)
{
    tess_json *list = NULL;
    TESS_TRY(tess_json_add_i64(root, "nodes", p->node_numel));
    TESS_TRY(tess_json_add_string(root, "output_dir", p->dir));
    TESS_TRY(tess_json_add_array(root, "ranks", &list));
    for (int r = 0; r < p->world; r++)
        TESS_TRY(json_card(p, r, list));
    TESS_TRY(tess_json_add_array(root, "pairs", &list));
    for (int64_t i = 0; i < p->pair_numel; i++)
        TESS_TRY(json_pair(p, &p->pair[i], list));
    TESS_TRY(tess_json_add_array(root, "odd", &list));
    for (int i = 0; i < p->finding_numel; i++)
        TESS_TRY(tess_json_add_string(list, NULL, p->finding[i]));
    return tess_json_add_i64(root, "odd_more", p->finding_more_numel);
}

tess_status tess_preflight_json(const tess_preflight *p, char **out)
{
    tess_json *root = NULL;
    TESS_TRY(tess_json_create_object(&root));
    tess_status st = json_fill(p, root);
    if (st == TESS_OK)
        st = tess_json_dump(root, 2, out, NULL);
    tess_json_destroy(&root);
    return st;
}
