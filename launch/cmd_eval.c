/* tessera eval RUN.yaml [--checkpoint DIR] */
#include <math.h>
#include <stdio.h>

#include "launch/commands.h"
#include "launch/launch.h"
#include "launch/job.h"

static error_t parse(int key, char *arg, struct argp_state *state)
{
    tess_eval_options *eval = state->input;
    switch (key) {
    case 'c':
        eval->checkpoint = arg;
        return 0;
    case 'a':
        eval->adapter = arg;
        return 0;
    case 'j':
        eval->is_json = true;
        return 0;
    case TESS_LAUNCH_KEY_MANIFEST:
        return tess_launch_manifest(state, arg, &eval->manifest_sha256);
    case ARGP_KEY_ARG:
        return tess_launch_run_arg(state, arg, &eval->run);
    case ARGP_KEY_END:
        if (eval->run.path == NULL)
            return tess_launch_refuse(state, "no run file given");
        return tess_launch_one_source(state, eval->checkpoint, eval->adapter,
                                      eval->manifest_sha256);
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"checkpoint", 'c', "DIR", 0,
     "Evaluate this checkpoint; none: the base alone; without it the newest of output.dir", 0},
    {"adapter", 'a', "PATH", 0,
     "Evaluate this adapter (a PEFT directory, a GGUF file, or for FLUX.1 a file of any dialect) "
     "over the base that the run file describes, whatever its format",
     0},
    {"json", 'j', NULL, 0, "Print JSON", 0},
    TESS_LAUNCH_MANIFEST_OPTION,
    {0},
};
static const struct argp eval_argp = {
    .options = options,
    .parser = parse,
    .args_doc = "RUN.yaml [KEY=VALUE...]",
    .doc =
        "Print the mean loss over data.eval_path in nats, of language models its perplexity, and "
        "over how many tokens it is the mean.",
};

static tess_status print_result(const tess_eval_result *r, bool is_json)
{
    char perplexity[64] = "", line[320];
    if (r->perplexity > 0 && isfinite(r->perplexity))
        snprintf(perplexity, sizeof perplexity,
                 is_json ? "\"perplexity\": %.17g, " : ", perplexity %.4g,", r->perplexity);
    const int n = snprintf(
        line, sizeof line,
        is_json ? "{\"step\": %lld, \"loss\": %.17g, %s\"tokens\": %lld, \"sequences\": %lld}\n"
                : "step %lld: loss %.6f%s over %lld tokens in %lld sequences\n",
        (long long)r->step, r->loss, perplexity, (long long)r->loss_token_numel,
        (long long)r->sequence_numel);
    TESS_CHECK(n > 0 && (size_t)n < sizeof line, TESS_E_STATE, "eval: result line too long");
    return tess_launch_print(line);
}

static tess_status work(tess_session *session, tess_comm *comm, void *arg)
{
    const tess_eval_options *eval = arg;
    tess_eval_result result;
    TESS_TRY(tess_session_evaluate(session, &result));
    return tess_agree(comm,
                      tess_comm_rank(comm) == 0 ? print_result(&result, eval->is_json) : TESS_OK);
}

static tess_status run(tess_eval_options *eval)
{
    tess_session_options o = tess_launch_session(&eval->run, TESS_SESSION_READER, eval->checkpoint);
    o.manifest_sha256 = eval->manifest_sha256;
    o.needs_data = true;
    o.adapter = eval->adapter;
    return tess_launch_job(&eval->common, &o, work, eval);
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
