/* `tessera plan`: a run described for ranks and a device that need not be there. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "kernels/cuda_work.h"
#include "shard/simulate_print.h"
#include "train/session_priv.h"
#include "train/trace_file.h"

/* What was asked for beside the plan. */
typedef struct outlook {
    const tess_plan_request *request;
    bool has_device;
    bool has_kernels; /* the program's, of the device, for this family */
    session_profiles profiles;
    tess_simulation simulation;
    tess_rank_ranges ranges;
} outlook;

static tess_status read_profiles(const tess_ctx *ctx, outlook *o)
{
    const tess_plan_request *r = o->request;
    if (r->device == NULL)
        return TESS_OK;
    o->has_device = true;
    TESS_TRY(tess_device_profile_read(ctx->io, r->device, &o->profiles.device));
    const char *network = r->network != NULL ? r->network : o->profiles.device.network;
    TESS_CHECK(network[0] != '\0', TESS_E_CONFIG,
               "plan: device '%s' names no network; give one with --network",
               o->profiles.device.name);
    TESS_TRY(tess_network_profile_read(ctx->io, network, &o->profiles.network));
    if (o->profiles.network.node_rank_numel > 0)
        o->profiles.device.node_rank_numel = o->profiles.network.node_rank_numel;
    return TESS_OK;
}

static const tess_link *link_inside(const outlook *o)
{
    return o->profiles.network.has_node ? &o->profiles.network.node : &o->profiles.device.link;
}

static tess_prediction prediction_of(const tess_description *d, const outlook *o)
{
    return (tess_prediction){.device = &o->profiles.device,
                             .network = &o->profiles.network,
                             .simulation = &o->simulation,
                             .reduction = d->plan->reduction,
                             .has_kernels = o->has_kernels,
                             .item_name = tess_run_is_rqvae(d->run)  ? "vectors_per_s"
                                          : tess_run_is_flux(d->run) ? "images_per_s"
                                                                     : "tokens_per_s"};
}

static tess_status fill_json(const tess_description *d, const outlook *o, tess_json *root)
{
    const tess_prediction p = prediction_of(d, o);
    if (!o->has_device)
        return TESS_OK; /* exactly plan.json of the run */
    TESS_TRY(tess_rank_ranges_json(&o->ranges, root));
    return tess_prediction_json(&p, root);
}

static tess_status plan_json(const tess_description *d, const outlook *o, char **text)
{
    tess_json *root = NULL;
    TESS_TRY(tess_plan_json(d->plan, &d->registry, &root));
    tess_status st = fill_json(d, o, root);
    if (st == TESS_OK)
        st = tess_json_dump(root, 2, text, NULL);
    tess_json_destroy(&root);
    return st;
}

/* What checkpoints take of output.dir: metadata, what a feed keeps and a copied base come on top.
 */
static tess_status disk_text(const tess_description *d, char **text)
{
    const tess_run_output_keys *out = &d->run->output;
    const bool is_open = out->keep_every > 0 && tess_run_has_open_end(d->run);
    const int64_t stay_numel =
        out->keep_every > 0 && !is_open ? d->run->train.steps / out->keep_every : 0;
    double state_nbytes = 0;
    char stay[96] = "";
    if (is_open)
        snprintf(stay, sizeof stay, ", and those of every %" PRId64 " steps, not counted",
                 out->keep_every);
    else if (out->keep_every > 0)
        snprintf(stay, sizeof stay, ", %" PRId64 " that stay", stay_numel);
    for (int u = 0; u < d->registry.unit_numel; u++)
        for (int i = 0; i < d->plan->state_array_numel; i++)
            state_nbytes += (double)tess_plan_state_total(d->plan, u, i) *
                            (double)tess_dtype_block_nbytes(d->plan->state[i].array.dt);
    return tess_asprintf(
        text,
        "checkpoints in output.dir, files of all ranks\n"
        "  %-34s %10.1f MiB\n  %-34s %10.1f MiB  (keep %" PRId64 " and one more%s)\n",
        "state in each", state_nbytes / 0x1p20, "at most at once",
        (double)(out->keep + 1 + stay_numel) * state_nbytes / 0x1p20, out->keep, stay);
}

static tess_status plan_text(const tess_description *d, const outlook *o, char **text)
{
    const tess_prediction p = prediction_of(d, o);
    char *plan = NULL, *disk = NULL, *ranks = NULL, *predicted = NULL;
    tess_status st = tess_plan_text(d->plan, &d->registry, &plan);
    if (st == TESS_OK)
        st = disk_text(d, &disk);
    if (st == TESS_OK)
        st = tess_rank_ranges_text(&o->ranges, &ranks);
    if (st == TESS_OK && o->has_device)
        st = tess_prediction_text(&p, &predicted);
    if (st == TESS_OK)
        st = tess_asprintf(text, "%s%s%s%s", plan, disk, ranks, predicted != NULL ? predicted : "");
    tess_free(plan);
    tess_free(disk);
    tess_free(ranks);
    tess_free(predicted);
    return st;
}

static tess_status write_timeline(const tess_ctx *ctx, const tess_description *d, outlook *o)
{
    tess_trace_file *file = NULL;
    if (o->request->timeline == NULL)
        return TESS_OK;
    TESS_TRY(tess_trace_file_create(ctx, o->request->timeline, &file));
    tess_status st = TESS_OK;
    for (int i = 0; i < o->simulation.rank_numel && st == TESS_OK; i++) {
        st = tess_trace_file_rank(file, o->simulation.rank[i].rank);
        if (st == TESS_OK)
            st = tess_simulation_trace(&o->simulation.rank[i], &d->registry, tess_trace_file_put,
                                       file);
    }
    if (st == TESS_OK)
        st = tess_trace_file_end(file);
    const tess_status closed = tess_trace_file_close(&file);
    return st != TESS_OK ? st : closed;
}

static tess_status look_ahead(const tess_ctx *ctx, const tess_description *d, outlook *o)
{
    const tess_run *run = d->run;
    const bool has_tokens = !tess_run_is_rqvae(run) && !tess_run_is_flux(run);
    const double length = has_tokens ? (double)run->data.sequence_length : 1.0;
    const tess_sim_options options = {.device = &o->profiles.device,
                                      .network = &o->profiles.network,
                                      .item_numel = (double)run->train.micro_batch * length,
                                      .has_spans = o->request->timeline != NULL};
    tess_plan_rank_ranges(d->plan, &d->registry, &o->ranges);
    if (!o->has_device)
        return TESS_OK;
    TESS_TRY(tess_simulate(d->plan, &d->registry, &options, &o->simulation));
    return write_timeline(ctx, d, o);
}

static tess_status describe_for(const tess_ctx *ctx, const tess_run *run, outlook *o, char **text)
{
    char path[48];
    tess_description d;
    const int64_t limit = run->compute.memory_limit;
    const size_t memory = o->has_device ? o->profiles.device.memory_nbytes : 0;
    const int node = o->has_device ? o->profiles.device.node_rank_numel : 8;
    snprintf(path, sizeof path, "cpu/%s", tess_cpu_path_name(tess_cpu_path_best()));
    const tess_kernels *planned = tess_kernels_cuda_planned();
    const bool is_other = o->has_device && o->profiles.device.kernel_path[0] != '\0';
    /* A family that has no kernels there yet is planned with the CPU's. */
    o->has_kernels = !is_other || !tess_run_is_rqvae(run) || planned->nearest != NULL;
    const bool is_device = is_other && o->has_kernels;
    const tess_launch_shape launch = {
        .world = o->request->rank_numel,
        .node_rank_numel = TESS_MIN(o->request->rank_numel, node),
        .link_inside = o->has_device ? link_inside(o) : NULL,
        .link_across = o->has_device ? &o->profiles.network.across : NULL,
        .memory_limit_nbytes = limit == TESS_RUN_AUTO ? memory : (size_t)limit,
        .kernel_path = is_device ? o->profiles.device.kernel_path : path,
        .is_device = is_device,
        .kernels = is_device ? planned : NULL,
        .library_nbytes = is_device ? session_planned_library_nbytes() : 0};
    TESS_TRY(tess_describe(ctx, run, &launch, &d));
    tess_status st = look_ahead(ctx, &d, o);
    if (st == TESS_OK)
        st = o->request->is_json ? plan_json(&d, o, text) : plan_text(&d, o, text);
    tess_simulation_fini(&o->simulation);
    tess_description_fini(&d);
    return st;
}

/* Memory and traffic are those of a step, whatever their number. */
static void say_length(const tess_ctx *ctx, const tess_run *run)
{
    if (tess_run_has_open_end(run))
        tess_log_root(&ctx->log, TESS_LOG_WARN,
                      "train.epochs: how many steps they are is not known, as '%s' is missing or "
                      "holds less than a sequence; the plan is the same for any number",
                      run->data.path);
    else if (run->train.epochs > 0.0)
        tess_log_root(&ctx->log, TESS_LOG_INFO, "train.epochs=%.6g train.steps=%" PRId64,
                      run->train.epochs, run->train.steps);
}

tess_status tess_session_plan(const tess_ctx *ctx, const tess_session_options *options,
                              const tess_plan_request *request, char **text)
{
    char *source = NULL;
    size_t nbytes = 0;
    tess_run *run = NULL;
    outlook o = {.request = request};
    TESS_TRY(read_profiles(ctx, &o));
    TESS_TRY(
        tess_io_read_all(ctx->io, options->run_path, TESS_RUN_TEXT_LIMIT_NBYTES, &source, &nbytes));
    const tess_run_source from = {.text = source,
                                  .nbytes = nbytes,
                                  .name = options->run_path,
                                  .overrides = options->overrides,
                                  .override_numel = options->override_numel,
                                  .epoch_of = tess_describe_epoch};
    tess_status st = tess_run_parse_with(&from, tess_describe_family, ctx, &run);
    tess_free(source);
    if (st != TESS_OK)
        return st;
    say_length(ctx, run);
    const session_profiles *profiles = o.has_device ? &o.profiles : NULL;
    st = tess_run_is_kmeans(run) ? session_vectors_plan(ctx, run, request, profiles, text)
                                 : describe_for(ctx, run, &o, text);
    tess_run_destroy(&run);
    return st;
}
