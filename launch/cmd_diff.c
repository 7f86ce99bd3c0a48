/* tessera diff A B */
#include "launch/commands.h"
#include "launch/launch.h"
#include "shard/ckpt.h"

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

static tess_status run(const tess_diff_options *diff, bool *is_equal)
{
    tess_ctx ctx;
    const tess_ckpt_printer printer = {.sink = tess_launch_sink, .is_json = diff->is_json};
    TESS_TRY(tess_launch_open(&diff->common, 0, &ctx));
    const tess_status st = tess_ckpt_diff(&ctx, diff->a, diff->b, &printer, is_equal);
    tess_launch_close(&ctx);
    return st;
}

int tess_cmd_diff(int argc, char **argv)
{
    tess_diff_options diff = {0};
    bool is_equal = true;
    tess_status st = tess_launch_parse(&diff_argp, argc, argv, &diff, &diff.common);
    if (st == TESS_OK && !diff.common.is_help)
        st = run(&diff, &is_equal);
    const int code = tess_launch_finish(&diff.common, st);
    return code == 0 && !is_equal ? 1 : code;
}
