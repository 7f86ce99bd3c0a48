/* tessera eval RUN.yaml [--checkpoint DIR] */
#include "launch/commands.h"
#include "launch/launch.h"

static error_t parse(int key, char *arg, struct argp_state *state)
{
    tess_eval_options *eval = state->input;
    switch (key) {
    case 'c':
        eval->checkpoint = arg;
        return 0;
    case 'j':
        eval->is_json = true;
        return 0;
    case ARGP_KEY_ARG:
        return tess_launch_run_arg(state, arg, &eval->run);
    case ARGP_KEY_END:
        return eval->run.path == NULL ? tess_launch_refuse(state, "no run file given") : 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"checkpoint", 'c', "DIR", 0,
     "Evaluate this checkpoint; none: the base alone; without it the newest of output.dir", 0},
    {"json", 'j', NULL, 0, "Print JSON", 0},
    {0},
};
static const struct argp eval_argp = {
    .options = options,
    .parser = parse,
    .args_doc = "RUN.yaml [KEY=VALUE...]",
    .doc = "Print the mean loss over data.eval_path, the number of its loss tokens and the "
           "perplexity.",
};

static tess_status run(const tess_eval_options *eval)
{
    return TESS_FAIL(TESS_E_UNSUPPORTED, "eval: '%s' needs the evaluator, which this build lacks",
                     eval->run.path);
}

int tess_cmd_eval(int argc, char **argv)
{
    tess_eval_options eval = {0};
    tess_status st = tess_launch_parse(&eval_argp, argc, argv, &eval, &eval.common);
    if (st == TESS_OK && !eval.common.is_help)
        st = run(&eval);
    tess_launch_run_fini(&eval.run);
    return tess_launch_finish(&eval.common, st);
}
