/* tessera inspect PATH */
#include "launch/artifact.h"
#include "launch/commands.h"
#include "launch/launch.h"
#include "shard/ckpt.h"

static error_t parse(int key, char *arg, struct argp_state *state)
{
    tess_path_options *inspect = state->input;
    const char **slots[] = {&inspect->path};
    switch (key) {
    case 'j':
        inspect->is_json = true;
        return 0;
    case ARGP_KEY_ARG:
        return tess_launch_positional(state, arg, slots, 1);
    case ARGP_KEY_END:
        return inspect->path == NULL ? tess_launch_refuse(state, "no path given") : 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"json", 'j', NULL, 0, "Print JSON", 0},
    {0},
};
static const struct argp inspect_argp = {
    .options = options,
    .parser = parse,
    .args_doc = "PATH",
    .doc = "Show what is in a checkpoint, a model, an adapter, a token file, a file of vectors or "
           "one of codes, a cache: tensors with dtype and shape, where it came from, and sizes. Of "
           "an HDF5 "
           "file PATH may name the dataset: FILE.h5:DATASET.",
};

static tess_status run(const tess_path_options *inspect)
{
    tess_ctx ctx;
    tess_artifact_kind kind = TESS_ARTIFACT_CHECKPOINT;
    const tess_ckpt_printer printer = {.sink = tess_launch_sink, .is_json = inspect->is_json};
    TESS_TRY(tess_launch_open(&inspect->common, 0, &ctx));
    tess_status st = tess_artifact_kind_of(&ctx, inspect->path, &kind);
    if (st == TESS_OK && kind == TESS_ARTIFACT_CHECKPOINT)
        st = tess_ckpt_inspect(&ctx, inspect->path, NULL, &printer);
    else if (st == TESS_OK)
        st = tess_artifact_print(&ctx, kind, inspect->path, inspect->is_json, false);
    tess_launch_close(&ctx);
    return st;
}

int tess_cmd_inspect(int argc, char **argv)
{
    tess_path_options inspect = {0};
    tess_status st = tess_launch_parse(&inspect_argp, argc, argv, &inspect, &inspect.common);
    if (st == TESS_OK && !inspect.common.is_help)
        st = run(&inspect);
    return tess_launch_finish(&inspect.common, st);
}
