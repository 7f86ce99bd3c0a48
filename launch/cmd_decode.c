/* tessera decode CHECKPOINT CODES.h5 -o OUT */
#include "launch/commands.h"
#include "launch/job.h"
#include "launch/launch.h"

static error_t parse(int key, char *arg, struct argp_state *state)
{
    tess_code_options *decode = state->input;
    const char **slots[] = {&decode->checkpoint, &decode->input};
    switch (key) {
    case 'o':
        decode->output = arg;
        return 0;
    case TESS_LAUNCH_KEY_MANIFEST:
        return tess_launch_manifest(state, arg, &decode->manifest_sha256);
    case ARGP_KEY_ARG:
        return tess_launch_positional(state, arg, slots, 2);
    case ARGP_KEY_END:
        if (decode->input == NULL)
            return tess_launch_refuse(state, "expected a checkpoint and a codes file");
        return decode->output == NULL ? tess_launch_refuse(state, "-o OUT is missing") : 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"output", 'o', "OUT", 0, "Vectors or images to write: .fvecs, .fbin, .npy or .h5", 0},
    TESS_LAUNCH_MANIFEST_OPTION,
    {0},
};
static const struct argp decode_argp = {
    .options = options,
    .parser = parse,
    .args_doc = "CHECKPOINT CODES.h5 -o OUT",
    .doc =
        "Write the vectors that codes stand for: the sum of their codes over the levels, or what "
        "the decoder makes of them; images as rows, in .npy as [N, H, W, C]. The checkpoint "
        "must be the one that encoded them.",
};

static tess_status work(tess_session *session, tess_comm *comm, void *arg)
{
    const tess_code_options *decode = arg;
    (void)comm;
    return tess_session_decode(session, decode->input, decode->output);
}

static tess_status run(tess_code_options *decode)
{
    tess_ctx ctx;
    TESS_TRY(tess_launch_open(&decode->common, tess_launch_rank(), &ctx));
    const tess_status st = tess_launch_checkpoint(&decode->common, &ctx, decode->checkpoint,
                                                  decode->manifest_sha256, work, decode);
    tess_launch_close(&ctx);
    return st;
}

int tess_cmd_decode(int argc, char **argv)
{
    tess_code_options decode = {0};
    tess_status st = tess_launch_parse(&decode_argp, argc, argv, &decode, &decode.common);
    if (st == TESS_OK && !decode.common.is_help)
        st = run(&decode);
    return tess_launch_finish(&decode.common, st);
}
