/* tessera bench step and scaling: the time of training steps, and what more ranks make of it. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "launch/bench_spans.h"

/* ---- step ---- */

/* [Note: utilization] Model FLOPs are what the mathematics asks for once: of a frozen linear 2 N
 * forward and 2 N backward a token, as its weights have no gradient; no recomputation. Hardware
 * FLOPs count work that is done again, and the scores of attention's backward. */
static tess_status utilization_members(const tess_bench_run *run, const tess_bench_times *t,
                                       const tess_device_profile *device, int world,
                                       tess_json *root)
{
    const double hardware = run->cost.hardware_flops;
    TESS_TRY(tess_json_add_f64(root, "hardware_flop", hardware));
    TESS_TRY(tess_json_add_f64(root, "hardware_gflop_per_s", 1e-9 * hardware / t->step.median));
    if (device == NULL)
        return TESS_OK;
    const double able = device->peak_flops * t->step.median;
    TESS_TRY(tess_json_add_string(root, "device", device->name));
    TESS_TRY(tess_json_add_f64(root, "peak_tflop_per_s", 1e-12 * device->peak_flops));
    TESS_TRY(tess_json_add_f64(root, "model_flops_utilization", run->model_flops / (able * world)));
    return tess_json_add_f64(root, "hardware_flops_utilization", hardware / able);
}

static tess_status step_members(const tess_bench *b, const tess_bench_case *what,
                                const tess_bench_run *run, const tess_bench_times *t,
                                tess_json *root)
{
    tess_device_profile profile;
    const tess_device_profile *device = b->options->device != NULL ? &profile : NULL;
    if (device != NULL)
        TESS_TRY(tess_device_profile_read(b->ctx->io, b->options->device, &profile));
    TESS_TRY(tess_bench_add_run(root, what, run, tess_comm_world(b->comm)));
    TESS_TRY(tess_bench_add_spread(root, "step", t->step));
    TESS_TRY(tess_json_add_string(root, "unit", run->unit));
    TESS_TRY(tess_json_add_i64(root, "items", run->item_numel));
    TESS_TRY(tess_json_add_f64(root, "items_per_s", (double)run->item_numel / t->step.median));
    if (!isnan(t->exposed_s)) {
        TESS_TRY(tess_json_add_f64(root, "exposed_s", t->exposed_s));
        TESS_TRY(tess_json_add_f64(root, "imbalance_s", t->imbalance_s));
    }
    TESS_TRY(tess_json_add_i64(root, "planned_bytes", run->planned_nbytes));
    TESS_TRY(tess_json_add_i64(root, "host_peak_bytes", t->host_peak_nbytes));
    TESS_TRY(tess_json_add_i64(root, "device_peak_bytes", t->device_peak_nbytes));
    TESS_TRY(tess_json_add_f64(root, "model_flop", run->model_flops));
    TESS_TRY(
        tess_json_add_f64(root, "model_gflop_per_s", 1e-9 * run->model_flops / t->step.median));
    TESS_TRY(utilization_members(run, t, device, tess_comm_world(b->comm), root));
    TESS_TRY(tess_json_add_f64(root, "setup_s", run->setup_s));
    TESS_TRY(tess_bench_spans_members(t, &run->cost, device, root));
    TESS_TRY(tess_json_add_i64(root, "warmup", b->options->warmup_numel));
    return tess_json_add_i64(root, "repeats", b->options->repeat_numel);
}

static tess_status measure_step(tess_bench *b, const tess_bench_scratch *scratch,
                                const tess_bench_case *what, const char *format)
{
    char dir[TESS_BENCH_PATH_NBYTES + 16];
    tess_bench_run run = {0};
    tess_bench_times t = {0};
    tess_json *root = NULL;
    snprintf(dir, sizeof dir, "%s/run", scratch->path);
    tess_bench_job job = {.what = what, .format = format, .dir = dir};
    TESS_TRY(tess_bench_time_steps(b, &job, tess_comm_world(b->comm), &run, &t));
    tess_bench_row(b,
                   "%-16.16s %-8s %7" PRId64 " %8.4f (%.4f to %.4f) s  %12.1f %s/s  %8.2f "
                   "GFLOP/s  %7.1f MiB planned, %.1f peak",
                   what->name, run.format, run.length, t.step.median, t.step.p10, t.step.p90,
                   (double)run.item_numel / t.step.median, run.unit,
                   1e-9 * run.model_flops / t.step.median, (double)run.planned_nbytes / (1 << 20),
                   (double)TESS_MAX(t.host_peak_nbytes, t.device_peak_nbytes) / (1 << 20));
    tess_status st = TESS_OK;
    if (tess_comm_rank(b->comm) == 0)
        st = tess_json_create_object(&root);
    if (root != NULL)
        st = step_members(b, what, &run, &t, root);
    return tess_bench_line(b, root, st);
}

tess_status tess_bench_step(tess_bench *b)
{
    tess_device_profile profile;
    tess_status st = TESS_OK;
    if (b->options->device != NULL) /* before minutes of loading */
        st = tess_device_profile_read(b->ctx->io, b->options->device, &profile);
    TESS_TRY(tess_agree(b->comm, st));
    tess_bench_row(b, "%-16s %-8s %7s %8s (10 %% to 90 %%)", "run", "format", "length", "step");
    return tess_bench_grid(b, measure_step);
}

/* ---- scaling ---- */

/*
 * [Note: efficiency] T_n: median step on n ranks. Strong: the same step, E = T_1 / (n T_n). Weak: n
 * times the micro-batches, E = T_1 / T_n. Of the loss 1 - E, exposed communication is the least
 * wait of any rank over T_n, imbalance is the mean wait less that over T_n, and other is the rest:
 * kernels that became slower, work that every rank repeats, and rounds that a rank sits out without
 * waiting. It is negative where ranks together have more cache or memory bandwidth than one.
 */
typedef struct curve_point {
    bool is_weak;
    int rank_numel;
    int64_t micro_batch_numel; /* of the run itself */
    double one_s;              /* T_1 */
    double efficiency, exposed, imbalance, other;
} curve_point;

static void judge(curve_point *p, const tess_bench_times *t)
{
    const double ideal_s = p->is_weak ? p->one_s : p->one_s / p->rank_numel;
    p->efficiency = ideal_s / t->step.median;
    p->exposed = t->exposed_s / t->step.median;
    p->imbalance = t->imbalance_s / t->step.median;
    p->other = 1.0 - p->efficiency - p->exposed - p->imbalance;
}

static tess_status scaling_members(const tess_bench *b, const tess_bench_case *what,
                                   const tess_bench_run *run, const tess_bench_times *t,
                                   const curve_point *p, tess_json *root)
{
    TESS_TRY(tess_bench_add_run(root, what, run, p->rank_numel));
    TESS_TRY(tess_json_add_string(root, "scaling", p->is_weak ? "weak" : "strong"));
    TESS_TRY(tess_bench_add_spread(root, "step", t->step));
    TESS_TRY(tess_json_add_string(root, "unit", run->unit));
    TESS_TRY(tess_json_add_f64(root, "items_per_s", (double)run->item_numel / t->step.median));
    TESS_TRY(tess_json_add_f64(root, "efficiency", p->efficiency));
    TESS_TRY(tess_json_add_f64(root, "loss_exposed", p->exposed));
    TESS_TRY(tess_json_add_f64(root, "loss_imbalance", p->imbalance));
    TESS_TRY(tess_json_add_f64(root, "loss_other", p->other));
    TESS_TRY(tess_json_add_i64(root, "warmup", b->options->warmup_numel));
    return tess_json_add_i64(root, "repeats", b->options->repeat_numel);
}

static tess_status measure_point(tess_bench *b, tess_bench_job *job, curve_point *p)
{
    char batches[64];
    tess_bench_run run = {0};
    tess_bench_times t = {0};
    tess_json *root = NULL;
    job->setting_numel = 0;
    if (p->is_weak) {
        snprintf(batches, sizeof batches, "train.micro_batches=%" PRId64,
                 p->micro_batch_numel * p->rank_numel);
        job->setting[job->setting_numel++] = batches;
    }
    TESS_TRY(tess_bench_time_steps(b, job, p->rank_numel, &run, &t));
    tess_status st = TESS_OK;
    if (p->micro_batch_numel == 0) {
        p->micro_batch_numel = run.micro_batch_numel;
        TESS_TRY(tess_comm_bcast(b->comm, 0, &p->micro_batch_numel, sizeof p->micro_batch_numel));
    }
    if (tess_comm_rank(b->comm) == 0) {
        p->one_s = p->rank_numel == 1 ? t.step.median : p->one_s;
        judge(p, &t);
        st = tess_json_create_object(&root);
    }
    if (root != NULL)
        st = scaling_members(b, job->what, &run, &t, p, root);
    tess_bench_row(
        b, "%-16.16s %-8s %-6s %6d %8.4f s %12.1f %s/s %6.1f %% %8.1f %% %8.1f %% %6.1f %%",
        job->what->name, run.format, p->is_weak ? "weak" : "strong", p->rank_numel, t.step.median,
        (double)run.item_numel / t.step.median, run.unit, 100.0 * p->efficiency, 100.0 * p->exposed,
        100.0 * p->imbalance, 100.0 * p->other);
    return tess_bench_line(b, root, st);
}

static tess_status measure_scaling(tess_bench *b, const tess_bench_scratch *scratch,
                                   const tess_bench_case *what, const char *format)
{
    char dir[TESS_BENCH_PATH_NBYTES + 16];
    int rank[TESS_BENCH_LIST_MAX + 1], rank_numel = 0;
    snprintf(dir, sizeof dir, "%s/run", scratch->path);
    tess_bench_job job = {.what = what, .format = format, .dir = dir, .needs_waits = true};
    TESS_TRY(tess_bench_ranks(b, true, rank, &rank_numel));
    curve_point p = {.is_weak = false};
    for (int weak = 0; weak < 2; weak++) {
        p.is_weak = weak == 1;
        for (int i = 0; i < rank_numel; i++) {
            p.rank_numel = rank[i];
            TESS_TRY(measure_point(b, &job, &p));
        }
    }
    return TESS_OK;
}

tess_status tess_bench_scaling(tess_bench *b)
{
    tess_bench_row(b, "%-16s %-8s %-6s %6s %8s   %12s    efficiency  exposed  imbalance  other",
                   "run", "format", "", "ranks", "step", "");
    return tess_bench_grid(b, measure_scaling);
}
