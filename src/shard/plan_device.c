#include "shard/plan_device.h"

#include <stdio.h>
#include <string.h>

#include "core/memory.h"

/*
 * [Note: sources] NVIDIA's data sheets of the SXM parts: H100 (80 GB, NVLink 900 GB/s both ways,
 * bf16 989 TFLOP/s without sparsity), H200 (141 GB, links and rate of the H100), A100 (80 or 40 GB,
 * NVLink 600 GB/s both ways, 312 TFLOP/s). Between nodes: one adapter per GPU as in the DGX H100
 * (400 Gb/s) and DGX A100 (200 Gb/s) user guides. `cpu` stands for a rank on a few server cores and
 * has no data sheet: the order of magnitude of copies through shared memory, of 10 Gb/s Ethernet
 * shared by the ranks of a node, and of bf16 products on eight AVX-512 cores.
 */
static const tess_plan_device devices[] = {
    {"cpu", NULL, 0, 8, 5.0, 0.15, 1.0},
    {"h100-80g", "cuda/sm_90", 80000000000, 8, 450.0, 50.0, 989.0},
    {"h200-141g", "cuda/sm_90", 141000000000, 8, 450.0, 50.0, 989.0},
    {"a100-80g", "cuda/sm_80", 80000000000, 8, 300.0, 25.0, 312.0},
    {"a100-40g", "cuda/sm_80", 40000000000, 8, 300.0, 25.0, 312.0},
};

tess_status tess_plan_device_find(const char *name, const tess_plan_device **out)
{
    char known[160] = "";
    size_t used = 0;
    for (int i = 0; i < TESS_NELEM(devices); i++) {
        if (strcmp(devices[i].name, name) == 0) {
            *out = &devices[i];
            return TESS_OK;
        }
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i > 0 ? ", " : "",
                                 devices[i].name);
    }
    return TESS_FAIL(TESS_E_UNSUPPORTED, "plan: --device '%s' is not known; known: %s", name,
                     known);
}

static double seconds(const tess_plan_device *d, int member_numel, double nbytes)
{
    const double rate = member_numel <= d->node_rank_numel ? d->intra_gb_per_s : d->inter_gb_per_s;
    return nbytes / (rate * 1e9);
}

/* The first stage looks rows up; every other matrix is multiplied. */
static bool is_multiplied(const tess_registry *reg, const tess_param *p)
{
    const tess_unit *u = &reg->unit[p->unit_idx];
    const bool is_lookup = u->stage_numel == 1 && u->first_stage_idx == 0 && reg->stage_numel > 1;
    return p->shape_rank == 2 && !is_lookup;
}

/* 2 operations a weight and token for the forward pass, for its recomputation, for the gradient of
 * the input, and for the gradient of a weight that learns. */
static double compute_s(const tess_plan *plan, const tess_registry *reg,
                        const tess_plan_device *device, int64_t token_numel)
{
    double per_token = 0;
    for (int i = 0; i < reg->param_numel; i++) {
        const tess_param *p = &reg->param[i];
        const double passes =
            2 + (plan->options.checkpointing == TESS_ON) + (p->role == TESS_ROLE_TRAINABLE);
        if (is_multiplied(reg, p))
            per_token += 2 * (double)p->numel * passes;
    }
    return per_token * (double)token_numel * plan->round_numel / (device->bf16_tflop_per_s * 1e12);
}

void tess_plan_predict(const tess_plan *plan, const tess_registry *reg,
                       const tess_plan_device *device, int64_t token_numel, tess_prediction *out)
{
    const int world = plan->options.world;
    const bool is_world = plan->options.is_full; /* slabs come from everywhere */
    *out = (tess_prediction){.device = device, .reduction = plan->reduction};
    out->gather_s = seconds(device, is_world ? world : plan->options.gather_group_numel,
                            plan->gather_nbytes_per_step);
    for (int kind = 0; kind < TESS_REDUCTION_NUMEL; kind++)
        out->reduction_s[kind] =
            seconds(device, world, plan->reduction_cost[kind].grad_nbytes_per_step);
    out->trainable_s = seconds(device, world, plan->slab_nbytes_per_step);
    out->compute_s = compute_s(plan, reg, device, token_numel);
}

static void time_text(double s, char text[24])
{
    if (s >= 1.0)
        snprintf(text, 24, "%.3f s", s);
    else if (s >= 1e-3)
        snprintf(text, 24, "%.3f ms", s * 1e3);
    else
        snprintf(text, 24, "%.3f us", s * 1e6);
}

tess_status tess_prediction_text(const tess_prediction *p, char **out)
{
    char gather[24], trainable[24], compute[24], lines[TESS_REDUCTION_NUMEL * 96] = "";
    size_t used = 0;
    time_text(p->gather_s, gather);
    time_text(p->trainable_s, trainable);
    time_text(p->compute_s, compute);
    for (int kind = 0; kind < TESS_REDUCTION_NUMEL; kind++) {
        char label[64], time[24];
        snprintf(label, sizeof label, "gradients, %s", tess_reduction_name((tess_reduction)kind));
        time_text(p->reduction_s[kind], time);
        used += (size_t)snprintf(lines + used, sizeof lines - used, "  %-38s %14s%s\n", label, time,
                                 (int)p->reduction == kind ? "  <- this plan" : "");
    }
    return tess_asprintf(out,
                         "predictions for %s, per step (data-sheet rates; no latency, no overlap; "
                         "not measured)\n  %-38s %14s\n%s  %-38s %14s\n  %-38s %14s\n",
                         p->device->name, "unit gathers", gather, lines, "trainable copies",
                         trainable, "matrix products", compute);
}

tess_status tess_prediction_json(const tess_prediction *p, tess_json *plan)
{
    tess_json *v = NULL, *gradients = NULL;
    TESS_TRY(tess_json_add_object(plan, "predicted", &v));
    TESS_TRY(tess_json_add_string(v, "device", p->device->name));
    TESS_TRY(tess_json_add_f64(v, "unit_gathers_s", p->gather_s));
    TESS_TRY(tess_json_add_f64(v, "trainable_copies_s", p->trainable_s));
    TESS_TRY(tess_json_add_f64(v, "matrix_products_s", p->compute_s));
    TESS_TRY(tess_json_add_object(v, "gradients_s", &gradients));
    for (int kind = 0; kind < TESS_REDUCTION_NUMEL; kind++)
        TESS_TRY(tess_json_add_f64(gradients, tess_reduction_name((tess_reduction)kind),
                                   p->reduction_s[kind]));
    return TESS_OK;
}
