/* tessera sample RUN.yaml --prompt TEXT */
#include <stdint.h>

#include "launch/commands.h"
#include "launch/launch.h"
#include "core/memory.h"
#include "format/json.h"
#include "launch/job.h"

static error_t parse_number(int key, char *arg, struct argp_state *state)
{
    static const int64_t tokens[2] = {1, 1048576};
    static const int64_t candidates[2] = {0, 1048576};
    static const int64_t seeds[2] = {0, INT64_MAX};
    static const double temperatures[2] = {0, 100};
    tess_sample_options *sample = state->input;
    switch (key) {
    case 'n':
        return tess_launch_int(state, "--tokens", arg, tokens, &sample->token_numel);
    case 'k':
        return tess_launch_int(state, "--top-k", arg, candidates, &sample->top_k);
    case 's':
        return tess_launch_int(state, "--seed", arg, seeds, &sample->seed);
    case 't':
        return tess_launch_f64(state, "--temperature", arg, temperatures, &sample->temperature);
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    tess_sample_options *sample = state->input;
    switch (key) {
    case 'p':
        sample->prompt = arg;
        return 0;
    case 'c':
        sample->checkpoint = arg;
        return 0;
    case 'a':
        sample->adapter = arg;
        return 0;
    case 'j':
        sample->is_json = true;
        return 0;
    case ARGP_KEY_ARG:
        return tess_launch_run_arg(state, arg, &sample->run);
    case ARGP_KEY_END:
        if (sample->run.path == NULL)
            return tess_launch_refuse(state, "no run file given");
        if (sample->prompt == NULL)
            return tess_launch_refuse(state, "--prompt is missing");
        return tess_launch_one_source(state, sample->checkpoint, sample->adapter);
    default:
        return parse_number(key, arg, state);
    }
}

static const struct argp_option options[] = {
    {"prompt", 'p', "TEXT", 0, "The text to continue", 0},
    {"checkpoint", 'c', "DIR", 0,
     "Use this checkpoint; none: the base alone; without it the newest of output.dir", 0},
    {"adapter", 'a', "PATH", 0,
     "Use this adapter (a PEFT directory or a GGUF file) over the base that the run file "
     "describes, whatever its format",
     0},
    {"tokens", 'n', "N", 0, "Write at most N tokens (default 64)", 0},
    {"temperature", 't', "T", 0,
     "Flatten (above 1) or sharpen the choice (default 0.8); 0 takes "
     "the likeliest token",
     0},
    {"top-k", 'k', "K", 0, "Choose among the K likeliest tokens (default 40); 0: among all", 0},
    {"seed", 's', "SEED", 0, "Seed of the choice (default 0)", 0},
    {"json", 'j', NULL, 0, "Print JSON", 0},
    {0},
};
static const struct argp sample_argp = {
    .options = options,
    .parser = parse,
    .args_doc = "RUN.yaml [KEY=VALUE...]",
    .doc = "Continue a prompt with the model of a run. The same seed gives the same text on any "
           "number of ranks.",
};

static tess_status print_text(const char *text, bool is_json)
{
    if (!is_json) {
        TESS_TRY(tess_launch_print(text));
        return tess_launch_print("\n");
    }
    tess_json *root = NULL;
    char *dump = NULL;
    TESS_TRY(tess_json_create_object(&root));
    tess_status st = tess_json_add_string(root, "text", text);
    if (st == TESS_OK)
        st = tess_json_dump(root, 0, &dump, NULL);
    tess_json_destroy(&root);
    if (st == TESS_OK)
        st = tess_launch_print(dump);
    tess_free(dump);
    return st == TESS_OK ? tess_launch_print("\n") : st;
}

static tess_status work(tess_session *session, tess_comm *comm, void *arg)
{
    const tess_sample_options *sample = arg;
    const tess_sample_request request = {.prompt = sample->prompt,
                                         .token_numel = sample->token_numel,
                                         .temperature = sample->temperature,
                                         .top_k = sample->top_k,
                                         .seed = (uint64_t)sample->seed};
    char *text = NULL;
    TESS_TRY(tess_session_sample(session, &request, &text));
    const tess_status st = tess_comm_rank(comm) == 0 ? print_text(text, sample->is_json) : TESS_OK;
    tess_free(text);
    return tess_agree(comm, st);
}

static tess_status run(tess_sample_options *sample)
{
    tess_session_options o =
        tess_launch_session(&sample->run, TESS_SESSION_READER, sample->checkpoint);
    o.adapter = sample->adapter;
    return tess_launch_job(&sample->common, &o, work, sample);
}

int tess_cmd_sample(int argc, char **argv)
{
    tess_sample_options sample = {.token_numel = 64, .temperature = 0.8, .top_k = 40};
    tess_status st = tess_launch_parse(&sample_argp, argc, argv, &sample, &sample.common);
    if (st == TESS_OK && !sample.common.is_help)
        st = run(&sample);
    tess_launch_run_fini(&sample.run);
    return tess_launch_finish(&sample.common, st);
}
