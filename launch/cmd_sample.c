/* tessera sample RUN.yaml --prompt TEXT */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "format/json.h"
#include "launch/commands.h"
#include "launch/job.h"
#include "launch/launch.h"

/* Keys without a letter. */
enum { KEY_STEPS = 256, KEY_GUIDANCE, KEY_SIZE, KEY_COUNT, KEY_SHIFT, KEY_CACHE, KEY_BASE };

static error_t parse_size(struct argp_state *state, const char *arg, tess_sample_options *sample)
{
    char rest = '\0';
    int width = 0, height = 0;
    const int found = sscanf(arg, "%5dx%5d%c", &width, &height, &rest);
    if (found != 2 || width < 16 || height < 16)
        return tess_launch_refuse(state, "--size: expected WIDTHxHEIGHT in pixels, found '%.100s'",
                                  arg);
    sample->width = width;
    sample->height = height;
    return 0;
}

static error_t parse_diffusion(int key, char *arg, struct argp_state *state)
{
    static const int64_t steps[2] = {1, 10000}, counts[2] = {1, 65536};
    static const double guidances[2] = {0, 100}, shifts[2] = {1e-3, 1000};
    tess_sample_options *sample = state->input;
    switch (key) {
    case 'o':
        sample->output = arg;
        return 0;
    case KEY_STEPS:
        return tess_launch_int(state, "--steps", arg, steps, &sample->step_numel);
    case KEY_GUIDANCE:
        return tess_launch_f64(state, "--guidance", arg, guidances, &sample->guidance);
    case KEY_SIZE:
        return parse_size(state, arg, sample);
    case KEY_COUNT:
        return tess_launch_int(state, "--count", arg, counts, &sample->image_numel);
    case KEY_SHIFT:
        return tess_launch_f64(state, "--shift", arg, shifts, &sample->shift);
    case KEY_CACHE:
        sample->cache = arg;
        return 0;
    case KEY_BASE:
        sample->base_format = arg;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* An adapter lies over any base; a checkpoint holds one of its own. */
static error_t set_base(struct argp_state *state, tess_sample_options *sample)
{
    const bool is_base_alone =
        sample->checkpoint != NULL && strcmp(sample->checkpoint, "none") == 0;
    if (sample->base_format == NULL)
        return 0;
    if (sample->adapter == NULL && !is_base_alone)
        return tess_launch_refuse(state,
                                  "--base-format: a checkpoint belongs to its own base: give "
                                  "--adapter with its export, or --checkpoint none");
    snprintf(sample->base_override, sizeof sample->base_override, "base.format=%.32s",
             sample->base_format);
    return tess_launch_run_arg(state, sample->base_override, &sample->run);
}

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
        return parse_diffusion(key, arg, state);
    }
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    tess_sample_options *sample = state->input;
    switch (key) {
    case 'p':
        if (sample->prompt_numel == TESS_PROMPT_MAX)
            return tess_launch_refuse(state, "--prompt: more than %d", TESS_PROMPT_MAX);
        sample->prompt[sample->prompt_numel++] = arg;
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
    case TESS_LAUNCH_KEY_MANIFEST:
        return tess_launch_manifest(state, arg, &sample->manifest_sha256);
    case ARGP_KEY_ARG:
        return tess_launch_run_arg(state, arg, &sample->run);
    case ARGP_KEY_END:
        if (sample->run.path == NULL)
            return tess_launch_refuse(state, "no run file given");
        if (sample->prompt_numel == 0 && sample->output == NULL)
            return tess_launch_refuse(
                state,
                "--prompt is missing (a diffusion run has sample.prompts, and needs -o FILE)");
        if (set_base(state, sample) != 0)
            return EINVAL;
        return tess_launch_one_source(state, sample->checkpoint, sample->adapter,
                                      sample->manifest_sha256);
    default:
        return parse_number(key, arg, state);
    }
}

static const struct argp_option options[] = {
    {"prompt", 'p', "TEXT", 0,
     "The text to continue; of a diffusion run a caption of the cache (default sample.prompts), "
     "and may be given again",
     0},
    {"checkpoint", 'c', "DIR", 0,
     "Use this checkpoint; none: the base alone; without it the newest of output.dir", 0},
    {"adapter", 'a', "PATH", 0,
     "Use this adapter, of any dialect, over the base that the run file describes, whatever its "
     "format (base.format=nf4, say)",
     0},
    {"base-format", KEY_BASE, "FORMAT", 0,
     "Store the base in FORMAT, as base.format=FORMAT does: the same seed over any of them", 0},
    {"tokens", 'n', "N", 0, "Write at most N tokens (default sample.tokens)", 0},
    {"temperature", 't', "T", 0,
     "Flatten (above 1) or sharpen the choice (default sample.temperature); 0 takes "
     "the likeliest token",
     0},
    {"top-k", 'k', "K", 0,
     "Choose among the K likeliest tokens (default sample.top_k); 0: among all", 0},
    {"seed", 's', "SEED", 0, "Seed of the choice or of the noise (default sample.seed)", 0},
    {"json", 'j', NULL, 0, "Print JSON", 0},
    {"output", 'o', "FILE", 0, "Diffusion: file of the latents (safetensors)", 1},
    {"steps", KEY_STEPS, "N", 0, "Diffusion: Euler steps (default sample.steps)", 1},
    {"guidance", KEY_GUIDANCE, "G", 0,
     "Diffusion: guidance that the model is told (default sample.guidance)", 1},
    {"size", KEY_SIZE, "WxH", 0, "Diffusion: pixels (default sample.width and sample.height)", 1},
    {"count", KEY_COUNT, "N", 0, "Diffusion: images of each prompt (default sample.images)", 1},
    {"shift", KEY_SHIFT, "S", 0,
     "Diffusion: shift of the steps; without it by resolution, and none for models without "
     "guidance",
     1},
    {"cache", KEY_CACHE, "FILE", 0, "Diffusion: cache that holds the prompts (default data.path)",
     1},
    TESS_LAUNCH_MANIFEST_OPTION,
    {0},
};
static const struct argp sample_argp = {
    .options = options,
    .parser = parse,
    .args_doc = "RUN.yaml [KEY=VALUE...]",
    .doc = "Continue a prompt with the model of a run; with a diffusion model sample latents of "
           "images. The same seed gives the same result on any number of ranks.",
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

static tess_status accept_diffusion(const tess_sample_options *sample, const tess_run *run)
{
    TESS_CHECK(sample->prompt_numel > 0 || run->sample.prompts.item_numel > 0, TESS_E_CONFIG,
               "sample: no prompt: give --prompt, or sample.prompts in the run file");
    TESS_CHECK(sample->output != NULL, TESS_E_CONFIG,
               "sample: a diffusion run gives latents: name a file for them with -o FILE");
    return TESS_OK;
}

static tess_status accept_language(const tess_sample_options *sample)
{
    TESS_CHECK(sample->prompt_numel > 0, TESS_E_CONFIG, "sample: --prompt is missing");
    TESS_CHECK(sample->step_numel == 0 && sample->width == 0 && sample->image_numel == 0 &&
                   sample->cache == NULL && sample->guidance < 0.0 && sample->shift == 0.0,
               TESS_E_CONFIG,
               "sample: --steps, --size, --count, --cache, --guidance and --shift are of diffusion "
               "runs, and this is a language model: leave them out");
    TESS_CHECK(sample->output == NULL && sample->prompt_numel == 1, TESS_E_CONFIG,
               "sample: a language model continues one prompt on stdout: leave out -o and further "
               "--prompt");
    return TESS_OK;
}

/* What the options say of a family that the run is not of, before its weights are read. */
static tess_status accept(const void *arg, const tess_run *run)
{
    const tess_sample_options *sample = arg;
    TESS_CHECK(!tess_run_is_vectors(run), TESS_E_UNSUPPORTED,
               "sample: the run is over vectors, not text: there is nothing to continue");
    return tess_run_is_flux(run) ? accept_diffusion(sample, run) : accept_language(sample);
}

static tess_status sample_latents(tess_session *session, const tess_sample_options *sample)
{
    tess_latent_request request = tess_session_latent_request(session);
    request.cache = sample->cache;
    request.shift = sample->shift;
    request.output = sample->output;
    if (sample->prompt_numel > 0) {
        request.caption = sample->prompt;
        request.caption_numel = sample->prompt_numel;
    }
    if (sample->image_numel > 0)
        request.image_numel = sample->image_numel;
    if (sample->width > 0) {
        request.width = sample->width;
        request.height = sample->height;
    }
    if (sample->step_numel > 0)
        request.step_numel = sample->step_numel;
    if (sample->guidance >= 0.0)
        request.guidance = sample->guidance;
    if (sample->seed >= 0)
        request.seed = (uint64_t)sample->seed;
    return tess_session_sample_latents(session, &request);
}

static tess_status sample_text(tess_session *session, tess_comm *comm,
                               const tess_sample_options *sample)
{
    tess_sample_request request = tess_session_sample_request(session);
    char *text = NULL;
    request.prompt = sample->prompt;
    request.prompt_numel = 1;
    if (sample->token_numel >= 0)
        request.token_numel = sample->token_numel;
    if (sample->temperature >= 0.0)
        request.temperature = sample->temperature;
    if (sample->top_k >= 0)
        request.top_k = sample->top_k;
    if (sample->seed >= 0)
        request.seed = (uint64_t)sample->seed;
    TESS_TRY(tess_session_sample(session, &request, &text));
    const tess_status st = tess_comm_rank(comm) == 0 ? print_text(text, sample->is_json) : TESS_OK;
    tess_free(text);
    return tess_agree(comm, st);
}

static tess_status work(tess_session *session, tess_comm *comm, void *arg)
{
    const tess_sample_options *sample = arg;
    return tess_run_is_flux(tess_session_run(session)) ? sample_latents(session, sample)
                                                       : sample_text(session, comm, sample);
}

static tess_status run(tess_sample_options *sample)
{
    tess_session_options o =
        tess_launch_session(&sample->run, TESS_SESSION_READER, sample->checkpoint);
    o.adapter = sample->adapter;
    o.manifest_sha256 = sample->manifest_sha256;
    o.accept = accept;
    o.accept_arg = sample;
    return tess_launch_job(&sample->common, &o, work, sample);
}

int tess_cmd_sample(int argc, char **argv)
{
    tess_sample_options sample = {
        .token_numel = -1, .temperature = -1.0, .top_k = -1, .seed = -1, .guidance = -1.0};
    tess_status st = tess_launch_parse(&sample_argp, argc, argv, &sample, &sample.common);
    if (st == TESS_OK && !sample.common.is_help)
        st = run(&sample);
    tess_launch_run_fini(&sample.run);
    return tess_launch_finish(&sample.common, st);
}
