/* Predicted times of k-means jobs for people and as JSON. */
#include <stdio.h>

#include "core/memory.h"
#include "shard/simulate_print.h"
#include "train/strbuf.h"
#include "train/vectors/kmeans_predict.h"

static const char *const way_name[2] = {"replicated", "rows"};

/* ---- text ---- */

/* A part under both shardings: its time, and what of it is communication. */
static tess_status add_part(tess_strbuf *b, const char *name, const tess_kmeans_time *replicated,
                            const tess_kmeans_time *rows)
{
    char text[4][TESS_TIME_TEXT_NBYTES];
    tess_time_text(tess_kmeans_time_s(*replicated), text[0]);
    tess_time_text(replicated->comm_s, text[1]);
    tess_time_text(tess_kmeans_time_s(*rows), text[2]);
    tess_time_text(rows->comm_s, text[3]);
    return tess_strbuf_add(b, "%-30s %14s %14s %14s %14s\n", name, text[0], text[1], text[2],
                           text[3]);
}

static tess_status add_levels(tess_strbuf *b, const tess_kmeans_outlook *o)
{
    const tess_kmeans_prediction *w = o->way;
    const tess_kmeans_config *c = &o->plan->config;
    char name[48];
    for (int l = 0; l < c->level_numel; l++) {
        snprintf(name, sizeof name, "level %d: start", l);
        TESS_TRY(add_part(b, name, &w[0].start[l], &w[1].start[l]));
        snprintf(name, sizeof name, "level %d: %s", l, c->batch_numel > 0 ? "mini-batch" : "pass");
        TESS_TRY(add_part(b, name, &w[0].pass[l], &w[1].pass[l]));
        snprintf(name, sizeof name, "level %d: encode", l);
        TESS_TRY(add_part(b, name, &w[0].encode[l], &w[1].encode[l]));
    }
    return c->refine_numel > 0 ? add_part(b, "refinement of a stack", &w[0].refine, &w[1].refine)
                               : TESS_OK;
}

static tess_status write_text(const tess_kmeans_outlook *o, tess_strbuf *b)
{
    const tess_kmeans_prediction *w = o->way;
    const bool is_sharded = o->plan->book.shape.is_sharded;
    TESS_TRY(tess_strbuf_add(b,
                             "\npredictions (counted, not measured; device %s: %s rates, network "
                             "%s: %s rates)\n",
                             o->device->name, tess_profile_kind(o->device->is_measured),
                             o->network->name, tess_profile_kind(o->network->is_measured)));
    TESS_TRY(tess_strbuf_add(b, "%-30s %14s %14s %14s %14s\n", "", way_name[0], "of it comm.",
                             way_name[1], "of it comm."));
    TESS_TRY(add_part(b, "scan of the vectors", &w[0].scan, &w[1].scan));
    TESS_TRY(add_levels(b, o));
    TESS_TRY(add_part(b, "job, all passes of all groups", &w[0].job, &w[1].job));
    TESS_TRY(tess_strbuf_add(b, "%-30s %14.0f %14s %14.0f\n", "vectors_per_s of a pass",
                             w[0].vectors_per_s, "", w[1].vectors_per_s));
    TESS_TRY(tess_strbuf_add(b, "%-30s %13.1f%% %14s %13.1f%%\n", "searches of what ranks could",
                             100.0 * w[0].utilization, "", 100.0 * w[1].utilization));
    if (o->device->kernel_path[0] != '\0')
        TESS_TRY(tess_strbuf_add(b, "k-means runs on the hosts' cores: times are what the device's "
                                    "rates would allow\n"));
    return tess_strbuf_add(b, "this plan: %s\n", way_name[is_sharded]);
}

tess_status tess_kmeans_outlook_text(const tess_kmeans_outlook *outlook, char **text)
{
    tess_strbuf b = {0};
    tess_status st = write_text(outlook, &b);
    if (st == TESS_OK)
        st = tess_strdup(b.text, text);
    tess_strbuf_fini(&b);
    return st;
}

/* ---- JSON ---- */

static tess_status json_part(tess_json *v, const char *name, tess_kmeans_time t)
{
    tess_json *o = NULL;
    TESS_TRY(tess_json_add_object(v, name, &o));
    TESS_TRY(tess_json_add_f64(o, "compute_s", t.compute_s));
    TESS_TRY(tess_json_add_f64(o, "communication_s", t.comm_s));
    return tess_json_add_f64(o, "total_s", tess_kmeans_time_s(t));
}

static tess_status json_way(const tess_kmeans_outlook *o, int way, tess_json *parent)
{
    const tess_kmeans_prediction *p = &o->way[way];
    tess_json *v = NULL, *list = NULL;
    TESS_TRY(tess_json_add_object(parent, way_name[way], &v));
    TESS_TRY(json_part(v, "scan", p->scan));
    TESS_TRY(tess_json_add_array(v, "levels", &list));
    for (int l = 0; l < o->plan->config.level_numel; l++) {
        tess_json *level = NULL;
        TESS_TRY(tess_json_add_object(list, NULL, &level));
        TESS_TRY(json_part(level, "start", p->start[l]));
        TESS_TRY(json_part(level, "pass", p->pass[l]));
        TESS_TRY(json_part(level, "encode", p->encode[l]));
    }
    TESS_TRY(json_part(v, "refinement", p->refine));
    TESS_TRY(json_part(v, "job", p->job));
    TESS_TRY(tess_json_add_f64(v, "vectors_per_s", p->vectors_per_s));
    TESS_TRY(tess_json_add_f64(v, "search_flops_of_pass", p->flops));
    return tess_json_add_f64(v, "search_utilization", p->utilization);
}

tess_status tess_kmeans_outlook_json(const tess_kmeans_outlook *o, tess_json *plan)
{
    tess_json *v = NULL;
    TESS_TRY(tess_json_add_object(plan, "predicted", &v));
    TESS_TRY(tess_profiles_json(o->device, o->network, v));
    TESS_TRY(tess_json_add_bool(v, "has_kernels", o->device->kernel_path[0] == '\0'));
    for (int way = 0; way < 2; way++)
        TESS_TRY(json_way(o, way, v));
    return TESS_OK;
}
