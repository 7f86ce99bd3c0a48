/* tessera diff A B */
#include "launch/commands.h"
#include "launch/launch.h"

static error_t parse(int key, char *arg, struct argp_state *state)
{
    tess_diff_options *diff = state->input;
    const char **slots[] = {&diff->a, &diff->b};
    switch (key) {
    case 'j':
        diff->is_json = true;
        return 0;
    case ARGP_KEY_ARG:
        return tess_launch_positional(state, arg, slots, 2);
    case ARGP_KEY_END:
        return diff->b == NULL ? tess_launch_refuse(state, "two paths are needed") : 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"json", 'j', NULL, 0, "Print JSON", 0},
    {0},
};
static const struct argp diff_argp = {
    .options = options,
    .parser = parse,
    .args_doc = "A B",
    .doc = "Compare the logical tensors of two checkpoints, whatever number of ranks wrote them. "
           "Exit code 0: equal; 1: different, with every tensor that differs.",
};

static tess_status run(const tess_diff_options *diff)
{
    return TESS_FAIL(TESS_E_UNSUPPORTED,
                     "diff: '%s' and '%s' need the checkpoint reader, which this build lacks",
                     diff->a, diff->b);
}

int tess_cmd_diff(int argc, char **argv)
{
    tess_diff_options diff = {0};
    tess_status st = tess_launch_parse(&diff_argp, argc, argv, &diff, &diff.common);
    if (st == TESS_OK && !diff.common.is_help)
        st = run(&diff);
    return tess_launch_finish(&diff.common, st);
}
