/*
 * [Note: classes of a step] Kernels of stages are recorded one by one, under the names of the
 * table of kernels; a class is what kernels/cost.h counts together. `gaps` is what forward and
 * backward took beside their kernels: launches, and marks between them. `rest` is what the compute
 * lane did elsewhere, waits included, under its own names. Weights that are expanded on the compute
 * stream lie inside `products`, on a stream of their own beside them: `dequantize` tells them apart
 * only by `lane`.
 */
#include "launch/bench_spans.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

/* ---- keeping ---- */

/* "blk.17" is "blk.*": layers are alike. */
static void without_numbers(const char *text, char *out, size_t nbytes)
{
    size_t n = strlen(out);
    for (; *text != '\0' && n + 2 < nbytes; text++) {
        if (!isdigit((unsigned char)*text))
            out[n++] = *text;
        else if (n == 0 || out[n - 1] != '*')
            out[n++] = '*';
    }
    out[n] = '\0';
}

static void name_of(const tess_trace_event *e, char *out, size_t nbytes)
{
    const char *where = e->place.stage != NULL ? e->place.stage : e->place.unit;
    const bool is_placed = e->lane == TESS_TRACE_COMPUTE || e->lane == TESS_TRACE_GATHER ||
                           e->lane == TESS_TRACE_REDUCE;
    out[0] = '\0';
    without_numbers(e->name, out, nbytes);
    if (!is_placed || where == NULL || strncmp(e->name, "wait", 4) == 0)
        return;
    snprintf(out + strlen(out), nbytes - strlen(out), " ");
    without_numbers(where, out, nbytes);
}

tess_status tess_bench_spans_add(tess_bench_spans *spans, const tess_trace_event *event)
{
    char name[sizeof spans->span[0].name];
    int i = 0;
    name_of(event, name, sizeof name);
    while (i < spans->numel &&
           (spans->span[i].lane != event->lane || strcmp(spans->span[i].name, name) != 0))
        i++;
    TESS_CHECK(i < TESS_BENCH_SPAN_MAX, TESS_E_RANGE, "bench: more than %d kinds of spans",
               TESS_BENCH_SPAN_MAX);
    tess_bench_span *s = &spans->span[i];
    if (i == spans->numel) {
        *s = (tess_bench_span){.lane = event->lane};
        memcpy(s->name, name, sizeof name);
        spans->numel++;
    }
    s->numel++;
    s->s += event->end_s - event->start_s;
    s->nbytes += TESS_MAX(event->nbytes, INT64_C(0));
    return TESS_OK;
}

/* ---- classes ---- */

enum { PRODUCTS = TESS_COST_OP_NUMEL, DEQUANTIZE, CLASS_NUMEL };

/* What the table of kernels calls them, where that is not among the elements. */
static const struct {
    const char *kernel;
    int class_idx;
} kernel_class[] = {
    {"gemm", PRODUCTS},
    {"attention_forward", TESS_COST_ATTENTION},
    {"attention_backward", TESS_COST_ATTENTION_BACKWARD},
    {"nearest", TESS_COST_SEARCH},
    {"rmsnorm_forward", TESS_COST_NORM},
    {"rmsnorm_backward", TESS_COST_NORM_BACKWARD},
    {"rope", TESS_COST_ROPE},
    {"swiglu_forward", TESS_COST_SWIGLU},
    {"swiglu_backward", TESS_COST_SWIGLU_BACKWARD},
    {"cross_entropy", TESS_COST_LOSS},
    {"embedding_forward", TESS_COST_EMBEDDING},
    {"embedding_backward", TESS_COST_EMBEDDING},
};

static int class_of(const char *kernel)
{
    for (int i = 0; i < TESS_NELEM(kernel_class); i++)
        if (strcmp(kernel_class[i].kernel, kernel) == 0)
            return kernel_class[i].class_idx;
    return TESS_COST_ELEMENT;
}

typedef struct op_class {
    double s, flops, nbytes; /* of a step */
    int64_t numel;
} op_class;

static void amounts(const tess_cost *cost, op_class out[CLASS_NUMEL])
{
    for (int i = 0; i < TESS_COST_OP_NUMEL; i++)
        *(tess_cost_op_is_flops((tess_cost_op)i) ? &out[i].flops : &out[i].nbytes) = cost->op[i];
    for (int i = 0; i < TESS_COST_EXTENT_NUMEL; i++)
        out[PRODUCTS].flops += cost->product_flops[i];
    out[DEQUANTIZE].nbytes = cost->weight_nbytes;
}

static const char *class_name(int i)
{
    return i == PRODUCTS     ? "products"
           : i == DEQUANTIZE ? "dequantize"
                             : tess_cost_op_name((tess_cost_op)i);
}

static tess_status put_class(const op_class *c, const char *name, const tess_device_profile *device,
                             tess_json *list)
{
    tess_json *o = NULL;
    TESS_TRY(tess_json_add_object(list, NULL, &o));
    TESS_TRY(tess_json_add_string(o, "class", name));
    TESS_TRY(tess_json_add_f64(o, "s", c->s));
    TESS_TRY(tess_json_add_i64(o, "calls", c->numel));
    TESS_TRY(tess_json_add_f64(o, "flop", c->flops));
    TESS_TRY(tess_json_add_f64(o, "bytes", c->nbytes));
    if (device == NULL)
        return TESS_OK;
    const double least_s = TESS_MAX(c->flops / device->peak_flops, c->nbytes / device->memory_rate);
    TESS_TRY(tess_json_add_f64(o, "roofline_s", least_s));
    return tess_json_add_f64(o, "share", c->s > 0.0 ? least_s / c->s : 0.0);
}

static tess_status put_classes(const tess_bench_times *times, const tess_cost *cost,
                               const tess_device_profile *device, tess_json *root)
{
    op_class class[CLASS_NUMEL] = {0};
    double stage_s = 0.0, kernel_s = 0.0, compute_s = 0.0;
    const double steps_numel = (double)times->traced_numel;
    tess_json *list = NULL;
    amounts(cost, class);
    for (int i = 0; i < times->spans.numel; i++) {
        const tess_bench_span *s = &times->spans.span[i];
        const bool is_stage =
            strncmp(s->name, "forward", 7) == 0 || strncmp(s->name, "backward", 8) == 0;
        compute_s += s->lane == TESS_TRACE_COMPUTE ? s->s / steps_numel : 0.0;
        stage_s += s->lane == TESS_TRACE_COMPUTE && is_stage ? s->s / steps_numel : 0.0;
        kernel_s += s->lane == TESS_TRACE_KERNEL ? s->s / steps_numel : 0.0;
        if (s->lane != TESS_TRACE_KERNEL && s->lane != TESS_TRACE_DEQUANTIZE)
            continue;
        op_class *c = &class[s->lane == TESS_TRACE_KERNEL ? class_of(s->name) : DEQUANTIZE];
        c->s += s->s / steps_numel;
        c->numel += s->numel / times->traced_numel;
    }
    TESS_TRY(tess_json_add_array(root, "classes", &list));
    for (int i = 0; i < CLASS_NUMEL; i++)
        if (class[i].numel > 0)
            TESS_TRY(put_class(&class[i], class_name(i), device, list));
    TESS_TRY(tess_json_add_f64(root, "kernels_s", kernel_s));
    TESS_TRY(tess_json_add_f64(root, "gaps_s", stage_s - kernel_s));
    TESS_TRY(tess_json_add_f64(root, "rest_s", compute_s - stage_s));
    return tess_json_add_f64(root, "traced_step_s", times->traced_s / steps_numel);
}

static tess_status put_spans(const tess_bench_times *times, tess_json *root)
{
    tess_json *list = NULL, *o = NULL;
    TESS_TRY(tess_json_add_array(root, "spans", &list));
    for (int i = 0; i < times->spans.numel; i++) {
        const tess_bench_span *s = &times->spans.span[i];
        TESS_TRY(tess_json_add_object(list, NULL, &o));
        TESS_TRY(tess_json_add_string(o, "lane", tess_trace_lane_name(s->lane)));
        TESS_TRY(tess_json_add_string(o, "name", s->name));
        TESS_TRY(tess_json_add_f64(o, "s", s->s / (double)times->traced_numel));
        TESS_TRY(tess_json_add_i64(o, "calls", s->numel / times->traced_numel));
        TESS_TRY(tess_json_add_i64(o, "bytes", s->nbytes / times->traced_numel));
    }
    return TESS_OK;
}

tess_status tess_bench_spans_members(const tess_bench_times *times, const tess_cost *cost,
                                     const tess_device_profile *device, tess_json *root)
{
    if (times->traced_numel == 0)
        return TESS_OK;
    TESS_TRY(put_classes(times, cost, device, root));
    return put_spans(times, root);
}
