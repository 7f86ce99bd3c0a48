#include <stdarg.h>
#include <stdio.h>

#include "core/memory.h"
#include "shard/simulate_print.h"

const char *tess_profile_kind(bool is_measured) { return is_measured ? "measured" : "published"; }

void tess_time_text(double s, char text[TESS_TIME_TEXT_NBYTES])
{
    if (s >= 1.0)
        snprintf(text, TESS_TIME_TEXT_NBYTES, "%.3f s", s);
    else if (s >= 1e-3)
        snprintf(text, TESS_TIME_TEXT_NBYTES, "%.3f ms", s * 1e3);
    else
        snprintf(text, TESS_TIME_TEXT_NBYTES, "%.3f us", s * 1e6);
}

/* ---- text ---- */

typedef struct lines {
    char text[6144];
    size_t used;
} lines;

static TESS_PRINTF(2, 3) void add(lines *l, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    const size_t left = sizeof l->text - l->used;
    const int n = vsnprintf(l->text + l->used, left, fmt, args);
    va_end(args);
    l->used += n > 0 ? TESS_MIN((size_t)n, left - 1) : 0;
}

static void add_time(lines *l, const char *label, double s)
{
    char time[TESS_TIME_TEXT_NBYTES];
    tess_time_text(s, time);
    add(l, "  %-38s %14s\n", label, time);
}

static void add_rank(lines *l, const tess_sim_rank *r)
{
    char text[5][TESS_TIME_TEXT_NBYTES];
    tess_time_text(r->compute_s, text[0]);
    tess_time_text(r->gather_s, text[1]);
    tess_time_text(r->reduce_s, text[2]);
    tess_time_text(r->exposed_s, text[3]);
    tess_time_text(r->imbalance_s, text[4]);
    add(l, "  rank %-6d compute %s, gathers %s, reductions %s, exposed %s, agreement %s\n", r->rank,
        text[0], text[1], text[2], text[3], text[4]);
}

static void add_range(lines *l, const char *label, const tess_rank_range *r)
{
    add(l, "  %-26s least %14.0f B (rank %d), most %14.0f B (rank %d)\n", label, r->least,
        r->least_rank, r->most, r->most_rank);
}

tess_status tess_rank_ranges_text(const tess_rank_ranges *r, char **out)
{
    lines l = {.used = 0};
    add(&l, "single ranks (what is not padding; every rank allocates the same)\n");
    add_range(&l, "memory", &r->memory);
    add_range(&l, "received in a step", &r->received);
    add_range(&l, "sent in a step", &r->sent);
    return tess_strdup(l.text, out);
}

tess_status tess_prediction_text(const tess_prediction *p, char **out)
{
    const tess_simulation *s = p->simulation;
    lines l = {.used = 0};
    add(&l,
        "predictions, per step (simulated schedule, not measured; device %s: %s rates, network %s: "
        "%s rates)\n",
        p->device->name, tess_profile_kind(p->device->is_measured), p->network->name,
        tess_profile_kind(p->network->is_measured));
    add_time(&l, "step", s->step_s);
    add_time(&l, "exposed communication, most of any", s->exposed_s);
    add_time(&l, "of it copies after the optimizer", s->publish_s);
    for (int kind = 0; kind < TESS_REDUCTION_NUMEL; kind++) {
        char label[64], time[TESS_TIME_TEXT_NBYTES];
        snprintf(label, sizeof label, "gradients, %s", tess_reduction_name((tess_reduction)kind));
        tess_time_text(s->reduction_s[kind], time);
        add(&l, "  %-38s %14s%s\n", label, time, (int)p->reduction == kind ? "  <- this plan" : "");
    }
    add(&l, "  %-38s %14.1f\n", p->item_name, s->items_per_s);
    add(&l, "  %-38s %13.1f%%\n", "model FLOPs of what the peak allows", 100.0 * s->utilization);
    if (!p->has_kernels)
        add(&l,
            "  the program has no kernels of this family for the device: memory is planned as on "
            "a CPU, times are what the device's rates allow\n");
    if (s->unlisted_numel > 0.0)
        add(&l, "  %-38s %14.0f\n", "kernels without a closed form", s->unlisted_numel);
    for (int i = 0; i < s->rank_numel; i++)
        add_rank(&l, &s->rank[i]);
    return tess_strdup(l.text, out);
}

/* ---- JSON ---- */

static tess_status json_origin(tess_json *v, const char *key, const char *name, bool is_measured,
                               const char *source)
{
    tess_json *o = NULL;
    TESS_TRY(tess_json_add_object(v, key, &o));
    TESS_TRY(tess_json_add_string(o, "name", name));
    TESS_TRY(tess_json_add_string(o, "kind", tess_profile_kind(is_measured)));
    return tess_json_add_string(o, "source", source);
}

tess_status tess_profiles_json(const tess_device_profile *device,
                               const tess_network_profile *network, tess_json *v)
{
    TESS_TRY(json_origin(v, "device", device->name, device->is_measured, device->source));
    return json_origin(v, "network", network->name, network->is_measured, network->source);
}

static tess_status json_rank(const tess_sim_rank *r, tess_json *list)
{
    tess_json *v = NULL;
    TESS_TRY(tess_json_add_object(list, NULL, &v));
    TESS_TRY(tess_json_add_i64(v, "rank", r->rank));
    TESS_TRY(tess_json_add_f64(v, "compute_s", r->compute_s));
    TESS_TRY(tess_json_add_f64(v, "gathers_s", r->gather_s));
    TESS_TRY(tess_json_add_f64(v, "reductions_s", r->reduce_s));
    TESS_TRY(tess_json_add_f64(v, "exposed_comm_s", r->exposed_s));
    return tess_json_add_f64(v, "agreement_s", r->imbalance_s);
}

static tess_status json_range(tess_json *v, const char *key, const tess_rank_range *r)
{
    tess_json *o = NULL;
    TESS_TRY(tess_json_add_object(v, key, &o));
    TESS_TRY(tess_json_add_i64(o, "least", (int64_t)r->least));
    TESS_TRY(tess_json_add_i64(o, "least_rank", r->least_rank));
    TESS_TRY(tess_json_add_i64(o, "most", (int64_t)r->most));
    return tess_json_add_i64(o, "most_rank", r->most_rank);
}

tess_status tess_rank_ranges_json(const tess_rank_ranges *r, tess_json *plan)
{
    tess_json *v = NULL;
    TESS_TRY(tess_json_add_object(plan, "single_ranks", &v));
    TESS_TRY(json_range(v, "memory_bytes", &r->memory));
    TESS_TRY(json_range(v, "received_bytes", &r->received));
    return json_range(v, "sent_bytes", &r->sent);
}

tess_status tess_prediction_json(const tess_prediction *p, tess_json *plan)
{
    const tess_simulation *s = p->simulation;
    tess_json *v = NULL, *list = NULL;
    TESS_TRY(tess_json_add_object(plan, "predicted", &v));
    TESS_TRY(tess_profiles_json(p->device, p->network, v));
    TESS_TRY(tess_json_add_bool(v, "has_kernels", p->has_kernels));
    TESS_TRY(tess_json_add_f64(v, "step_s", s->step_s));
    TESS_TRY(tess_json_add_f64(v, "exposed_comm_s", s->exposed_s));
    TESS_TRY(tess_json_add_f64(v, "exposed_comm_least_s", s->exposed_least_s));
    TESS_TRY(tess_json_add_f64(v, "trainable_copies_s", s->publish_s));
    TESS_TRY(tess_json_add_f64(v, p->item_name, s->items_per_s));
    TESS_TRY(tess_json_add_f64(v, "model_flops_utilization", s->utilization));
    TESS_TRY(tess_json_add_f64(v, "model_flops_of_rank_0", s->model_flops));
    TESS_TRY(tess_json_add_f64(v, "kernels_without_closed_form", s->unlisted_numel));
    TESS_TRY(tess_json_add_object(v, "gradients_s", &list));
    for (int kind = 0; kind < TESS_REDUCTION_NUMEL; kind++)
        TESS_TRY(tess_json_add_f64(list, tess_reduction_name((tess_reduction)kind),
                                   s->reduction_s[kind]));
    TESS_TRY(tess_json_add_array(v, "ranks", &list));
    for (int i = 0; i < s->rank_numel; i++)
        TESS_TRY(json_rank(&s->rank[i], list));
    return TESS_OK;
}
