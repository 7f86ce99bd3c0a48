/* tessera plan RUN.yaml [--ranks N] [--device NAME] [--network NAME] [--timeline FILE] [--json] */
#include <errno.h>

#include "launch/commands.h"
#include "launch/launch.h"
#include "core/memory.h"
#include "launch/job.h"

static error_t parse(int key, char *arg, struct argp_state *state)
{
    static const int64_t ranks[2] = {1, 1048576};
    tess_plan_command *plan = state->input;
    int64_t value = 0;
    switch (key) {
    case 'n':
        if (tess_launch_int(state, "--ranks", arg, ranks, &value) != 0)
            return EINVAL;
        plan->rank_numel = (int)value;
        return 0;
    case 'd':
        plan->device = arg;
        return 0;
    case 'l':
        plan->network = arg;
        return 0;
    case 't':
        plan->timeline = arg;
        return 0;
    case 'j':
        plan->is_json = true;
        return 0;
    case ARGP_KEY_ARG:
        return tess_launch_run_arg(state, arg, &plan->run);
    case ARGP_KEY_END:
        if (plan->run.path == NULL)
            return tess_launch_refuse(state, "no run file given");
        if (plan->device == NULL && (plan->network != NULL || plan->timeline != NULL))
            return tess_launch_refuse(state, "%s needs --device",
                                      plan->network != NULL ? "--network" : "--timeline");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"ranks", 'n', "N", 0, "Plan for N ranks, from 1 to 1048576", 0},
    {"device", 'd', "NAME", 0,
     "Plan for a device and simulate a step: cpu, h100-80g, h200-141g, a100-80g, a100-40g, or the "
     "file that tessera bench device wrote; its memory is the default of compute.memory_limit",
     0},
    {"network", 'l', "NAME", 0,
     "The network between nodes: infiniband-8x400g, infiniband-8x200g, ethernet-100g, "
     "ethernet-10g, or a file; default: what goes with the device",
     0},
    {"timeline", 't', "FILE", 0,
     "Write the simulated step, or k-means job, as a trace for Perfetto", 0},
    {"json", 'j', NULL, 0, "Print JSON", 0},
    {0},
};
static const struct argp plan_argp = {
    .options = options,
    .parser = parse,
    .args_doc = "RUN.yaml [KEY=VALUE...]",
    .doc = "Print units, buckets, buffers, collectives and the memory of every rank of a run, as "
           "the run itself would allocate them. Reads no weights and needs no device.\v"
           "What each number means stands in the README.",
};

static tess_status print_plan(const tess_plan_command *plan, const tess_ctx *ctx)
{
    const tess_session_options o = tess_launch_session(&plan->run, TESS_SESSION_READER, NULL);
    char *text = NULL;
    const tess_plan_request request = {.rank_numel = plan->rank_numel > 0 ? plan->rank_numel : 1,
                                       .device = plan->device,
                                       .network = plan->network,
                                       .timeline = plan->timeline,
                                       .is_json = plan->is_json};
    TESS_TRY(tess_session_plan(ctx, &o, &request, &text));
    tess_status st = tess_launch_print(text);
    if (st == TESS_OK && plan->is_json)
        st = tess_launch_print("\n");
    tess_free(text);
    return st;
}

static tess_status run(const tess_plan_command *plan)
{
    tess_ctx ctx;
    TESS_TRY(tess_launch_open(&plan->common, 0, &ctx));
    const tess_status st = print_plan(plan, &ctx);
    tess_launch_close(&ctx);
    return st;
}

int tess_cmd_plan(int argc, char **argv)
{
    tess_plan_command plan = {0};
    tess_status st = tess_launch_parse(&plan_argp, argc, argv, &plan, &plan.common);
    if (st == TESS_OK && !plan.common.is_help)
        st = run(&plan);
    tess_launch_run_fini(&plan.run);
    return tess_launch_finish(&plan.common, st);
}
