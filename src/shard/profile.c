#include "shard/profile.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "format/json.h"
#include "shard/profile_texts.h"

double tess_curve_at(const tess_curve *curve, double size)
{
    const int last = curve->point_numel - 1;
    if (last < 0)
        return 0.0;
    if (size <= curve->size[0])
        return curve->rate[0];
    for (int i = 0; i < last; i++) {
        const double from = curve->size[i], to = curve->size[i + 1];
        if (size > to)
            continue;
        const double part = log(size / from) / log(to / from);
        return curve->rate[i] + part * (curve->rate[i + 1] - curve->rate[i]);
    }
    return curve->rate[last];
}

/* ---- members ---- */

static tess_status refuse(const tess_json *v, const char *key, const char *expected)
{
    char where[128];
    tess_json_where(v, where, sizeof where);
    return TESS_FAIL(TESS_E_FORMAT, "%s: member '%s': expected %s", where, key, expected);
}

/* A file with a misspelt member would silently describe another machine. */
static tess_status check_members(const tess_json *v, const char *const *known, int known_numel)
{
    for (int64_t i = 0; i < tess_json_numel(v); i++) {
        const char *key = tess_json_key(tess_json_at(v, i));
        bool is_known = false;
        for (int k = 0; k < known_numel; k++)
            is_known = is_known || strcmp(known[k], key) == 0;
        if (!is_known)
            return refuse(v, key, "no such member; it is not known");
    }
    return TESS_OK;
}

/* A number above 0 in units of `scale`; absent: 0 where that is allowed. */
static tess_status take_rate(const tess_json *v, const char *key, double scale, bool is_needed,
                             double *out)
{
    double x = 0;
    TESS_TRY(tess_json_opt_f64(v, key, 0.0, &x));
    const bool is_there = tess_json_find(v, key) != NULL;
    if ((is_needed && !is_there) || (is_there && x <= 0.0))
        return refuse(v, key, "a number above 0");
    *out = x * scale;
    return TESS_OK;
}

static tess_status take_seconds(const tess_json *v, const char *key, double *out)
{
    double x = 0;
    TESS_TRY(tess_json_opt_f64(v, key, 0.0, &x));
    if (x < 0.0)
        return refuse(v, key, "microseconds, 0 or more");
    *out = x * 1e-6;
    return TESS_OK;
}

static tess_status take_text(const tess_json *v, const char *key, const char *absent, char *out,
                             size_t out_nbytes)
{
    const char *text = NULL;
    TESS_TRY(tess_json_opt_string(v, key, absent, &text));
    if (text == NULL)
        return refuse(v, key, "a string");
    if (strlen(text) >= out_nbytes)
        return refuse(v, key, "a shorter string");
    snprintf(out, out_nbytes, "%s", text);
    return TESS_OK;
}

/* [[size, rate], ...] */
static tess_status take_curve(const tess_json *v, const char *key, double scale, tess_curve *out)
{
    const tess_json *list = NULL;
    TESS_TRY(tess_json_get_array(v, key, &list));
    const int64_t numel = tess_json_numel(list);
    if (numel < 1 || numel > TESS_CURVE_POINT_MAX)
        return refuse(v, key, "1 to 32 points [size, rate]");
    out->point_numel = (int)numel;
    for (int i = 0; i < out->point_numel; i++) {
        const tess_json *point = tess_json_at(list, i);
        TESS_TRY(tess_json_expect(point, TESS_JSON_ARRAY));
        if (tess_json_numel(point) != 2)
            return refuse(v, key, "points [size, rate]");
        TESS_TRY(tess_json_as_f64(tess_json_at(point, 0), &out->size[i]));
        TESS_TRY(tess_json_as_f64(tess_json_at(point, 1), &out->rate[i]));
        out->rate[i] *= scale;
        if (out->size[i] <= (i > 0 ? out->size[i - 1] : 0.0) || out->rate[i] <= 0.0)
            return refuse(v, key, "ascending sizes and rates above 0");
    }
    return TESS_OK;
}

static tess_status take_link(const tess_json *v, tess_link *out)
{
    static const char *const known[] = {"latency_us", "message_us", "gb_per_s", "arrived_gb_per_s",
                                        "adapters_per_node"};
    int64_t adapters = 1;
    TESS_TRY(check_members(v, known, TESS_NELEM(known)));
    TESS_TRY(take_seconds(v, "latency_us", &out->latency_s));
    TESS_TRY(take_seconds(v, "message_us", &out->message_s));
    TESS_TRY(take_curve(v, "gb_per_s", 1e9, &out->rate));
    TESS_TRY(take_rate(v, "arrived_gb_per_s", 1e9, false, &out->arrived_rate));
    TESS_TRY(tess_json_opt_i64(v, "adapters_per_node", 1, &adapters));
    if (adapters < 1 || adapters > 1024)
        return refuse(v, "adapters_per_node", "1 to 1024");
    out->adapter_numel = (int)adapters;
    return TESS_OK;
}

static tess_status take_origin(const tess_json *v, char *name, char *source, bool *is_measured)
{
    char kind[16] = "";
    TESS_TRY(take_text(v, "name", NULL, name, TESS_PROFILE_NAME_NBYTES));
    TESS_TRY(take_text(v, "source", NULL, source, TESS_PROFILE_SOURCE_NBYTES));
    TESS_TRY(take_text(v, "kind", NULL, kind, sizeof kind));
    *is_measured = strcmp(kind, "measured") == 0;
    if (!*is_measured && strcmp(kind, "published") != 0)
        return refuse(v, "kind", "'measured' or 'published'");
    return TESS_OK;
}

/* ---- devices ---- */

static tess_status take_ops(const tess_json *v, tess_device_profile *out)
{
    const tess_json *ops = NULL;
    const char *known[TESS_COST_OP_NUMEL];
    TESS_TRY(tess_json_opt_object(v, "ops", &ops));
    for (int i = 0; i < TESS_COST_OP_NUMEL; i++)
        known[i] = tess_cost_op_name((tess_cost_op)i);
    if (ops != NULL)
        TESS_TRY(check_members(ops, known, TESS_COST_OP_NUMEL));
    for (int i = 0; ops != NULL && i < TESS_COST_OP_NUMEL; i++)
        TESS_TRY(take_rate(ops, known[i], 1e9, false, &out->op_rate[i]));
    for (int i = 0; i < TESS_COST_OP_NUMEL; i++)
        /* Few distances follow a search: memory's rate will do where nobody measured them. */
        if (out->op_rate[i] == 0.0 && tess_cost_op_is_flops((tess_cost_op)i) &&
            i != TESS_COST_DISTANCE)
            return refuse(v, "ops", "rates of attention, attention_backward and search");
    return TESS_OK;
}

static tess_status take_weights(const tess_json *v, tess_device_profile *out)
{
    const tess_json *weights = NULL;
    const char *known[TESS_FORMAT_NUMEL];
    TESS_TRY(tess_json_opt_object(v, "weights_gelem_per_s", &weights));
    for (int i = 0; i < TESS_FORMAT_NUMEL; i++)
        known[i] = tess_format_name((tess_format)i);
    if (weights == NULL)
        return TESS_OK;
    TESS_TRY(check_members(weights, known, TESS_FORMAT_NUMEL));
    for (int i = 0; i < TESS_FORMAT_NUMEL; i++)
        TESS_TRY(take_rate(weights, known[i], 1e9, false, &out->weight_rate[i]));
    return TESS_OK;
}

static tess_status take_device(const tess_json *v, tess_device_profile *out)
{
    static const char *const known[] = {"name",
                                        "source",
                                        "kind",
                                        "kernels",
                                        "network",
                                        "memory_bytes",
                                        "ranks_per_node",
                                        "peak_tflop_per_s",
                                        "product_tflop_per_s",
                                        "memory_gb_per_s",
                                        "ops",
                                        "weights_gelem_per_s",
                                        "launch_us",
                                        "decodes_beside_products",
                                        "overlaps",
                                        "gathers_in_rings",
                                        "link"};
    const tess_json *link = NULL;
    int64_t memory = 0, ranks = 0;
    TESS_TRY(check_members(v, known, TESS_NELEM(known)));
    TESS_TRY(take_origin(v, out->name, out->source, &out->is_measured));
    TESS_TRY(take_text(v, "kernels", "", out->kernel_path, sizeof out->kernel_path));
    TESS_TRY(take_text(v, "network", "", out->network, sizeof out->network));
    TESS_TRY(tess_json_opt_i64(v, "memory_bytes", 0, &memory));
    TESS_TRY(tess_json_get_i64(v, "ranks_per_node", &ranks));
    if (memory < 0)
        return refuse(v, "memory_bytes", "0 or more");
    if (ranks < 1 || ranks > 1024)
        return refuse(v, "ranks_per_node", "1 to 1024");
    out->memory_nbytes = (size_t)memory;
    out->node_rank_numel = (int)ranks;
    TESS_TRY(take_rate(v, "peak_tflop_per_s", 1e12, true, &out->peak_flops));
    TESS_TRY(take_curve(v, "product_tflop_per_s", 1e12, &out->product_flops));
    TESS_TRY(take_rate(v, "memory_gb_per_s", 1e9, true, &out->memory_rate));
    TESS_TRY(take_ops(v, out));
    TESS_TRY(take_weights(v, out));
    TESS_TRY(take_seconds(v, "launch_us", &out->launch_s));
    TESS_TRY(tess_json_opt_bool(v, "decodes_beside_products", false, &out->has_decoding_beside));
    TESS_TRY(tess_json_opt_bool(v, "overlaps", true, &out->has_overlap));
    TESS_TRY(tess_json_opt_bool(v, "gathers_in_rings", false, &out->is_ring));
    TESS_TRY(tess_json_get_object(v, "link", &link));
    return take_link(link, &out->link);
}

static tess_status take_network(const tess_json *v, tess_network_profile *out)
{
    static const char *const known[] = {"name",           "source", "kind",
                                        "ranks_per_node", "node",   "across"};
    const tess_json *node = NULL, *across = NULL;
    int64_t ranks = 0;
    TESS_TRY(check_members(v, known, TESS_NELEM(known)));
    TESS_TRY(take_origin(v, out->name, out->source, &out->is_measured));
    TESS_TRY(tess_json_opt_i64(v, "ranks_per_node", 0, &ranks));
    if (ranks < 0 || ranks > 1024)
        return refuse(v, "ranks_per_node", "1 to 1024");
    out->node_rank_numel = (int)ranks;
    TESS_TRY(tess_json_opt_object(v, "node", &node));
    TESS_TRY(tess_json_get_object(v, "across", &across));
    out->has_node = node != NULL;
    if (node != NULL)
        TESS_TRY(take_link(node, &out->node));
    return take_link(across, &out->across);
}

/* ---- files ---- */

static bool is_path(const char *name)
{
    const size_t n = strlen(name);
    return strchr(name, '/') != NULL || (n > 5 && strcmp(name + n - 5, ".json") == 0);
}

static tess_status read_text(tess_io *io, const char *folder, const char *name, tess_json **out)
{
    char known[512] = "", path[128];
    size_t used = 0;
    if (is_path(name))
        return tess_json_read(io, name, out);
    for (int i = 0; i < tess_profile_text_numel; i++) {
        const tess_profile_text *t = &tess_profile_texts[i];
        if (strcmp(t->folder, folder) != 0)
            continue;
        snprintf(path, sizeof path, "share/%s/%s.json", folder, t->name);
        if (strcmp(t->name, name) == 0)
            return tess_json_parse(path, t->text, t->nbytes, out);
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", used > 0 ? ", " : "",
                                 t->name);
    }
    return TESS_FAIL(TESS_E_UNSUPPORTED,
                     "plan: --%s '%s' is not known; known: %s; or give the path of a description "
                     "that `tessera bench` wrote",
                     strcmp(folder, "devices") == 0 ? "device" : "network", name, known);
}

tess_status tess_device_profile_read(tess_io *io, const char *name, tess_device_profile *out)
{
    tess_json *root = NULL;
    tess_device_profile made = {.is_measured = false};
    TESS_TRY(read_text(io, "devices", name, &root));
    const tess_status st = take_device(root, &made);
    tess_json_destroy(&root);
    if (st == TESS_OK)
        *out = made;
    return st;
}

tess_status tess_network_profile_read(tess_io *io, const char *name, tess_network_profile *out)
{
    tess_json *root = NULL;
    tess_network_profile made = {.is_measured = false};
    TESS_TRY(read_text(io, "networks", name, &root));
    const tess_status st = take_network(root, &made);
    tess_json_destroy(&root);
    if (st == TESS_OK)
        *out = made;
    return st;
}

/* ---- time ---- */

static double weight_s(const tess_device_profile *d, const tess_cost *c)
{
    double s = 0, left = 0;
    for (int i = 0; i < TESS_FORMAT_NUMEL; i++) {
        if (d->weight_rate[i] > 0.0)
            s += c->weight_numel[i] / d->weight_rate[i];
        else if (tess_format_is_quantized((tess_format)i))
            left += c->weight_numel[i];
    }
    return left > 0.0 ? s + c->weight_nbytes / d->memory_rate : s;
}

double tess_profile_seconds(const tess_device_profile *d, const tess_cost *c)
{
    double s = 0;
    for (int i = 0; i < TESS_COST_EXTENT_NUMEL; i++)
        if (c->product_flops[i] > 0.0)
            s += c->product_flops[i] / tess_curve_at(&d->product_flops, ldexp(1.0, i));
    const double decode_s = weight_s(d, c);
    s = d->has_decoding_beside ? TESS_MAX(s, decode_s) : s + decode_s;
    for (int i = 0; i < TESS_COST_OP_NUMEL; i++)
        if (c->op[i] > 0.0)
            s += c->op[i] / (d->op_rate[i] > 0.0 ? d->op_rate[i] : d->memory_rate);
    return TESS_MAX(s, c->launch_numel * d->launch_s);
}
