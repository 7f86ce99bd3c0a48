/* tessera plan RUN.yaml [--ranks N] [--device NAME] [--json] */
#include <errno.h>

#include "launch/commands.h"
#include "launch/launch.h"

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
    case 'j':
        plan->is_json = true;
        return 0;
    case ARGP_KEY_ARG:
        return tess_launch_run_arg(state, arg, &plan->run);
    case ARGP_KEY_END:
        return plan->run.path == NULL ? tess_launch_refuse(state, "no run file given") : 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"ranks", 'n', "N", 0, "Plan for N ranks, from 1 to 1048576", 0},
    {"device", 'd', "NAME", 0, "Plan for a device such as cpu or h100-80g", 0},
    {"json", 'j', NULL, 0, "Print JSON", 0},
    {0},
};
static const struct argp plan_argp = {
    .options = options,
    .parser = parse,
    .args_doc = "RUN.yaml [KEY=VALUE...]",
    .doc = "Print units, buffers, collectives and the memory of every rank of a run, as the run "
           "itself would allocate them. Reads no weights and needs no device.\v"
           "What each number means stands in the README.",
};

static tess_status run(const tess_plan_command *plan)
{
    return TESS_FAIL(TESS_E_UNSUPPORTED, "plan: '%s' needs the planner, which this build lacks",
                     plan->run.path);
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
