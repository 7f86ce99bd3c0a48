/* What model.family: auto is, by the model's files alone. */
#include <stdio.h>
#include <string.h>

#include "format/model_dir.h"
#include "train/describe/describe_priv.h"

/* Classes stand in configs of diffusers alone. */
static tess_status check_class(const tess_json *root)
{
    const char *name = NULL;
    char where[512];
    TESS_TRY(tess_json_opt_string(root, "_class_name", NULL, &name));
    tess_json_where(root, where, sizeof where);
    TESS_CHECK(name == NULL, TESS_E_CONFIG,
               "model.path: %s: _class_name is '%.64s', expected FluxTransformer2DModel, or the "
               "config of a language model",
               where, name);
    return TESS_OK;
}

static tess_status look_into_dir(const tess_ctx *ctx, const char *dir, bool *is_flux)
{
    char path[PATH_MAX];
    bool is_there = false;
    tess_json *root = NULL;
    TESS_TRY(describe_is_file(ctx, dir, "config.json", &is_there));
    if (!is_there)
        return TESS_OK;
    TESS_CHECK(snprintf(path, sizeof path, "%s/config.json", dir) < (int)sizeof path, TESS_E_CONFIG,
               "path of %zu bytes is too long", strlen(dir));
    TESS_TRY(tess_json_read(ctx->io, path, &root));
    *is_flux = tess_flux_config_is(root);
    const tess_status st = *is_flux ? TESS_OK : check_class(root);
    tess_json_destroy(&root);
    return st;
}

/* Files of Black Forest Labs have diffusers' names once they are open. */
static tess_status look_into_file(const tess_ctx *ctx, const char *path, bool *is_flux)
{
    tess_model_dir *dir = NULL;
    TESS_TRY(tess_model_dir_open(ctx, path, &dir));
    *is_flux = tess_model_dir_find(dir, "transformer_blocks.0.attn.add_k_proj.weight") != NULL;
    tess_model_dir_close(&dir);
    return TESS_OK;
}

/* A pipeline of diffusers keeps its transformer in a folder of its own. A run that was begun may do
 * without either. */
static tess_status look_into_model(const tess_ctx *ctx, const tess_run *run, bool *is_flux)
{
    char path[PATH_MAX], kept[PATH_MAX];
    const char *dir = run->model.path;
    bool is_pipeline = false, is_there = false, was_begun = false;
    TESS_TRY(describe_is_file(ctx, dir, "model_index.json", &is_pipeline));
    TESS_CHECK(snprintf(path, sizeof path, "%s%s", dir, is_pipeline ? "/transformer" : "") <
                   (int)sizeof path,
               TESS_E_CONFIG, "path of %zu bytes is too long", strlen(dir));
    TESS_TRY(describe_is_file(ctx, path, "config.json", &is_there));
    TESS_TRY(describe_find_kept(ctx, run, kept, &was_begun));
    TESS_CHECK(is_there || was_begun, TESS_E_CONFIG,
               "model.path: '%s' has no config.json%s; give a model directory of Hugging Face or "
               "diffusers, or a .safetensors or GGUF file itself",
               path, is_pipeline ? " beside the pipeline's model_index.json" : "");
    return look_into_dir(ctx, is_there ? path : kept, is_flux);
}

static tess_status look_at_kept(const tess_ctx *ctx, const tess_run *run, tess_io_kind kind,
                                bool *is_flux)
{
    char kept[PATH_MAX];
    bool was_begun = false;
    TESS_TRY(describe_find_kept(ctx, run, kept, &was_begun));
    /* said here: what else the run file has would be judged as of a language model */
    const bool is_run = strcmp(run->output.dir, run->model.path) != 0; /* else a model alone */
    TESS_CHECK(was_begun || kind != TESS_IO_MISSING, TESS_E_CONFIG,
               "model.path: '%s' is missing%s%s%s; give a model directory, or a .safetensors or "
               "GGUF file",
               run->model.path, is_run ? ", and '" : "", is_run ? run->output.dir : "",
               is_run ? "' holds nothing to go on from" : "");
    return was_begun ? look_into_dir(ctx, kept, is_flux) : TESS_OK;
}

tess_status tess_describe_family(const void *ctx, const tess_run *run, tess_run_family *family)
{
    const tess_ctx *c = ctx;
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    bool is_flux = false;
    if (run->model.path == NULL)
        return TESS_OK;
    TESS_TRY(tess_io_stat(c->io, run->model.path, &kind, &nbytes));
    if (kind == TESS_IO_DIR)
        TESS_TRY(look_into_model(c, run, &is_flux));
    else if (kind == TESS_IO_FILE)
        TESS_TRY(look_into_file(c, run->model.path, &is_flux));
    else
        TESS_TRY(look_at_kept(c, run, kind, &is_flux));
    if (is_flux)
        *family = TESS_RUN_FAMILY_FLUX;
    return TESS_OK;
}
