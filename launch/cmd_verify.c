/* tessera verify PATH */
#include "launch/artifact.h"
#include "launch/commands.h"
#include "launch/launch.h"
#include "shard/ckpt.h"

static error_t parse(int key, char *arg, struct argp_state *state)
{
    tess_path_options *verify = state->input;
    const char **slots[] = {&verify->path};
    switch (key) {
    case 'j':
        verify->is_json = true;
        return 0;
    case TESS_LAUNCH_KEY_MANIFEST:
        return tess_launch_manifest(state, arg, &verify->manifest_sha256);
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
    TESS_LAUNCH_MANIFEST_OPTION,
    {0},
};
static const struct argp verify_argp = {
    .options = options,
    .parser = parse,
    .args_doc = "PATH",
    .doc = "Read everything and compare every digest. Exit code 0: all match; 65: damage or a "
           "missing part, with the first place; 66: no valid checkpoint in a run folder; 74: a "
           "file cannot be read. Models and adapters keep no "
           "digests: their structure is checked and the SHA-256 of each file printed. Vectors are "
           "checked to be finite and their identity printed.",
};

static tess_status run(const tess_path_options *verify)
{
    tess_ctx ctx;
    tess_artifact_kind kind = TESS_ARTIFACT_CHECKPOINT;
    const tess_ckpt_printer printer = {.sink = tess_launch_sink, .is_json = verify->is_json};
    TESS_TRY(tess_launch_open(&verify->common, 0, &ctx));
    tess_status st = tess_artifact_kind_of(&ctx, verify->path, &kind);
    if (st == TESS_OK && kind == TESS_ARTIFACT_CHECKPOINT)
        st = tess_ckpt_verify(&ctx, verify->path, verify->manifest_sha256, &printer);
    else if (st == TESS_OK && verify->manifest_sha256 != NULL)
        st = TESS_FAIL(TESS_E_CONFIG,
                       "verify: --manifest-sha256 is for checkpoints, and '%s' is none: remove it",
                       verify->path);
    else if (st == TESS_OK)
        st = tess_artifact_print(&ctx, kind, verify->path, verify->is_json, true);
    tess_launch_close(&ctx);
    return st;
}

int tess_cmd_verify(int argc, char **argv)
{
    tess_path_options verify = {0};
    tess_status st = tess_launch_parse(&verify_argp, argc, argv, &verify, &verify.common);
    if (st == TESS_OK && !verify.common.is_help)
        st = run(&verify);
    return tess_launch_finish(&verify.common, st);
}
