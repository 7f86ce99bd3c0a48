/* tessera export CHECKPOINT --format peft|hf -o OUT */
#include <string.h>

#include "launch/commands.h"
#include "launch/launch.h"

static error_t set_format(struct argp_state *state, const char *arg, tess_run_export *format)
{
    if (strcmp(arg, "peft") != 0 && strcmp(arg, "hf") != 0)
        return tess_launch_refuse(state, "--format: expected peft or hf, found '%.100s'", arg);
    *format = *arg == 'p' ? TESS_RUN_EXPORT_PEFT : TESS_RUN_EXPORT_HF;
    return 0;
}

static error_t set_dtype(struct argp_state *state, const char *arg, tess_run_dtype *dtype)
{
    if (strcmp(arg, "bf16") != 0 && strcmp(arg, "f32") != 0)
        return tess_launch_refuse(state, "--dtype: expected bf16 or f32, found '%.100s'", arg);
    *dtype = *arg == 'b' ? TESS_RUN_DTYPE_BF16 : TESS_RUN_DTYPE_F32;
    return 0;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    tess_export_options *export = state->input;
    const char **slots[] = {&export->checkpoint};
    switch (key) {
    case 'f':
        return set_format(state, arg, &export->format);
    case 'd':
        return set_dtype(state, arg, &export->dtype);
    case 'o':
        export->output = arg;
        return 0;
    case ARGP_KEY_ARG:
        return tess_launch_positional(state, arg, slots, 1);
    case ARGP_KEY_END:
        if (export->checkpoint == NULL)
            return tess_launch_refuse(state, "no checkpoint given");
        return export->output == NULL ? tess_launch_refuse(state, "-o OUT is missing") : 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"format", 'f', "FORMAT", 0,
     "peft (adapter) or hf (model directory); without it what the checkpoint holds", 0},
    {"output", 'o', "OUT", 0, "Folder to write; it must not exist", 0},
    {"dtype", 'd', "DTYPE", 0,
     "bf16 (default): the copy that was trained with and evaluated; f32: the masters", 0},
    {0},
};
static const struct argp export_argp = {
    .options = options,
    .parser = parse,
    .args_doc = "CHECKPOINT -o OUT",
    .doc = "Write what a checkpoint trained in a form that other programs read.",
};

static tess_status run(const tess_export_options *export)
{
    return TESS_FAIL(TESS_E_UNSUPPORTED,
                     "export: '%s' needs the checkpoint reader, which this build lacks",
                     export->checkpoint);
}

int tess_cmd_export(int argc, char **argv)
{
    tess_export_options export = {.format = TESS_RUN_EXPORT_AUTO, .dtype = TESS_RUN_DTYPE_BF16};
    tess_status st = tess_launch_parse(&export_argp, argc, argv, &export, &export.common);
    if (st == TESS_OK && !export.common.is_help)
        st = run(&export);
    return tess_launch_finish(&export.common, st);
}
