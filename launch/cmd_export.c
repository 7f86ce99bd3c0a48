/* tessera export CHECKPOINT|ADAPTER --format FORMAT -o OUT */
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "launch/commands.h"
#include "launch/convert.h"
#include "launch/job.h"
#include "launch/launch.h"

static error_t set_format(struct argp_state *state, const char *arg, tess_export_options *export)
{
    static const struct {
        const char *name;
        tess_run_export run_export;
        tess_adapter_dialect dialect;
    } known[] = {{"peft", TESS_RUN_EXPORT_PEFT, TESS_ADAPTER_PEFT},
                 {"gguf", TESS_RUN_EXPORT_GGUF, TESS_ADAPTER_GGUF},
                 {"hf", TESS_RUN_EXPORT_HF, TESS_ADAPTER_DIALECT_NUMEL},
                 {"diffusers", TESS_RUN_EXPORT_DIFFUSERS, TESS_ADAPTER_DIFFUSERS},
                 {"kohya", TESS_RUN_EXPORT_KOHYA, TESS_ADAPTER_KOHYA},
                 {"comfyui", TESS_RUN_EXPORT_COMFYUI, TESS_ADAPTER_COMFYUI}};
    static const char *const codebooks[] = {[TESS_CODEBOOK_SAFETENSORS] = "safetensors",
                                            [TESS_CODEBOOK_NPY] = "npy",
                                            [TESS_CODEBOOK_FAISS] = "faiss"};
    for (int i = 0; i < TESS_NELEM(codebooks); i++) {
        if (strcmp(arg, codebooks[i]) == 0) {
            export->format = codebooks[i];
            export->is_codebook = true;
            export->codebook = (tess_codebook_format)i;
            export->run_export = TESS_RUN_EXPORT_NONE;
            return 0;
        }
    }
    for (int i = 0; i < TESS_NELEM(known); i++) {
        if (strcmp(arg, known[i].name) == 0) {
            export->format = known[i].name;
            export->run_export = known[i].run_export;
            export->dialect = known[i].dialect;
            return 0;
        }
    }
    return tess_launch_refuse(
        state,
        "--format: expected peft, gguf, diffusers, kohya, comfyui, hf, safetensors, npy or faiss, "
        "found '%.100s'",
        arg);
}

static error_t set_dtype(struct argp_state *state, const char *arg, tess_dtype *dtype)
{
    static const tess_dtype known[] = {TESS_BF16, TESS_F32, TESS_F16};
    for (int i = 0; i < TESS_NELEM(known); i++) {
        if (strcmp(arg, tess_dtype_name(known[i])) == 0) {
            *dtype = known[i];
            return 0;
        }
    }
    return tess_launch_refuse(state, "--dtype: expected bf16, f32 or f16, found '%.100s'", arg);
}

static error_t set_weights(struct argp_state *state, const char *arg, tess_export_options *export)
{
    if (strcmp(arg, "trained") != 0 && strcmp(arg, "ema") != 0)
        return tess_launch_refuse(state, "--weights: expected trained or ema, found '%.100s'", arg);
    export->has_weights = true;
    export->weights = *arg == 'e' ? TESS_RUN_WEIGHTS_EMA : TESS_RUN_WEIGHTS_TRAINED;
    return 0;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    tess_export_options *export = state->input;
    const char **slots[] = {&export->source};
    switch (key) {
    case 'f':
        return set_format(state, arg, export);
    case 'b':
        export->base = arg;
        return 0;
    case 's':
        export->skip_text_encoders = true;
        return 0;
    case 'd':
        export->has_dtype = true;
        return set_dtype(state, arg, &export->dtype);
    case 'w':
        return set_weights(state, arg, export);
    case 'o':
        export->output = arg;
        return 0;
    case 'D':
        export->is_difference = true;
        return 0;
    case TESS_LAUNCH_KEY_MANIFEST:
        return tess_launch_manifest(state, arg, &export->manifest_sha256);
    case ARGP_KEY_ARG:
        return tess_launch_positional(state, arg, slots, 1);
    case ARGP_KEY_END:
        if (export->source == NULL)
            return tess_launch_refuse(state, "no checkpoint or adapter given");
        return export->output == NULL ? tess_launch_refuse(state, "-o OUT is missing") : 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"format", 'f', "FORMAT", 0,
     "Adapters: peft or gguf (language models), diffusers, kohya or comfyui (FLUX.1); hf: a model "
     "directory; codebooks: safetensors, npy or faiss; without it what the checkpoint holds",
     0},
    {"output", 'o', "OUT", 0, "Folder to write, of codebooks a file; it must not exist", 0},
    {"dtype", 'd', "DTYPE", 0,
     "bf16 (default): the copy that was trained with and evaluated; f32: the masters; f16: the "
     "masters, rounded. An adapter keeps its dtype by default",
     0},
    {"base", 'b', "MODEL", 0,
     "Model that an adapter is for, a directory or .gguf file: to read and write gguf adapters; "
     "without it the model that the adapter names",
     0},
    {"skip-text-encoders", 's', NULL, 0,
     "Leave out what an adapter holds for text encoders, which is refused otherwise", 0},
    {"weights", 'w', "WEIGHTS", 0,
     "trained, or ema: the moving average that train.ema_decay keeps; without it what the run file "
     "says (output.export_weights)",
     0},
    {"difference", 'D', 0, 0,
     "After lora.init pissa or loftq: an adapter of twice the rank for the weights that the run "
     "started from, instead of one for its own base",
     0},
    TESS_LAUNCH_MANIFEST_OPTION,
    {0},
};
static const struct argp export_argp = {
    .options = options,
    .parser = parse,
    .args_doc = "CHECKPOINT -o OUT\nADAPTER --format FORMAT -o OUT",
    .doc = "Write what a checkpoint trained, or an adapter of any dialect, in a form that other "
           "programs read.",
};

/* Rank 0 writes, so it looks: nothing of another program is mixed with the export. */
static tess_status check_output(const tess_export_options *export)
{
    tess_ctx ctx;
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    TESS_TRY(tess_launch_open(&export->common, 0, &ctx));
    const tess_status st = tess_io_stat(ctx.io, export->output, &kind, &nbytes);
    tess_launch_close(&ctx);
    TESS_TRY(st);
    TESS_CHECK(kind == TESS_IO_MISSING, TESS_E_CONFIG,
               "export: '%s' exists; remove it or give another folder with -o", export->output);
    return TESS_OK;
}

static tess_status work(tess_session *session, tess_comm *comm, void *arg)
{
    const tess_export_options *export = arg;
    TESS_TRY(tess_agree(comm, tess_comm_rank(comm) == 0 ? check_output(export) : TESS_OK));
    const tess_run *run = tess_session_run(session);
    if (tess_run_is_kmeans(run) || export->is_codebook)
        return tess_session_export_codebooks(session, export->codebook, export->output);
    const bool is_f32 = export->dtype == TESS_BF16 && run->compute.dtype == TESS_RUN_DTYPE_F32;
    const tess_export_request request = {
        .dir = export->output,
        .format = export->run_export,
        .weights = export->has_weights ? export->weights : run->output.export_weights,
        .dt = is_f32 ? TESS_F32 : export->dtype,
        .is_difference = export->is_difference};
    return tess_session_export(session, &request);
}

/* Rank 0 converts; an adapter has nothing to share out. */
static tess_status convert(const tess_export_options *export, const tess_ctx *ctx)
{
    if (tess_launch_rank() != 0)
        return TESS_OK;
    TESS_CHECK(export->format != NULL && export->dialect != TESS_ADAPTER_DIALECT_NUMEL,
               TESS_E_CONFIG,
               "export: '%s' is an adapter; choose with --format: peft, gguf, diffusers, kohya or "
               "comfyui",
               export->source);
    TESS_CHECK(export->manifest_sha256 == NULL, TESS_E_CONFIG,
               "export: --manifest-sha256 is for checkpoints; '%s' is an adapter and has no "
               "MANIFEST: remove it",
               export->source);
    TESS_CHECK(
        !export->has_weights, TESS_E_CONFIG,
        "export: --weights chooses among those of a checkpoint; '%s' is an adapter: remove it",
        export->source);
    TESS_TRY(check_output(export));
    return tess_convert_adapter(ctx, export);
}

static tess_status export_any(tess_export_options *export, const tess_ctx *ctx)
{
    bool is_adapter = false;
    TESS_TRY(tess_adapter_is_path(ctx->io, export->source, &is_adapter));
    if (is_adapter)
        return convert(export, ctx);
    return tess_launch_checkpoint(&export->common, ctx, export->source, export->manifest_sha256,
                                  work, export);
}

static tess_status run(tess_export_options *export)
{
    tess_ctx ctx;
    TESS_TRY(tess_launch_open(&export->common, tess_launch_rank(), &ctx));
    const tess_status st = export_any(export, &ctx);
    tess_launch_close(&ctx);
    return st;
}

int tess_cmd_export(int argc, char **argv)
{
    tess_export_options export = {.run_export = TESS_RUN_EXPORT_AUTO,
                                  .dialect = TESS_ADAPTER_DIALECT_NUMEL,
                                  .dtype = TESS_BF16};
    tess_status st = tess_launch_parse(&export_argp, argc, argv, &export, &export.common);
    if (st == TESS_OK && !export.common.is_help)
        st = run(&export);
    return tess_launch_finish(&export.common, st);
}
