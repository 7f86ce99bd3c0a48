/* tessera verify PATH */
#include "launch/commands.h"
#include "launch/launch.h"

static error_t parse(int key, char *arg, struct argp_state *state)
{
    tess_path_options *verify = state->input;
    const char **slots[] = {&verify->path};
    switch (key) {
    case 'j':
        verify->is_json = true;
        return 0;
    case ARGP_KEY_ARG:
        return tess_launch_positional(state, arg, slots, 1);
    case ARGP_KEY_END:
        return verify->path == NULL ? tess_launch_refuse(state, "no path given") : 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"json", 'j', NULL, 0, "Print JSON", 0},
    {0},
};
static const struct argp verify_argp = {
    .options = options,
    .parser = parse,
    .args_doc = "PATH",
    .doc = "Read everything and compare every digest. Exit code 0: all match; 65: damage, with the "
           "first place; 66: no valid checkpoint in a run folder.",
};

static tess_status run(const tess_path_options *verify)
{
    return TESS_FAIL(TESS_E_UNSUPPORTED,
                     "verify: '%s' needs the checkpoint reader, which this build lacks",
                     verify->path);
}

int tess_cmd_verify(int argc, char **argv)
{
    tess_path_options verify = {0};
    tess_status st = tess_launch_parse(&verify_argp, argc, argv, &verify, &verify.common);
    if (st == TESS_OK && !verify.common.is_help)
        st = run(&verify);
    return tess_launch_finish(&verify.common, st);
}
