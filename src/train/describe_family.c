/* What model.family: auto is, by the model's files alone. */
#include <stdio.h>
#include <string.h>

#include "format/model_dir.h"
#include "train/describe_priv.h"

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
    tess_json_destroy(&root);
    return TESS_OK;
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

/* A pipeline of diffusers keeps its transformer in a folder of its own. */
static tess_status look_into_pipeline(const tess_ctx *ctx, const tess_run *run, bool *is_flux)
{
    char path[PATH_MAX], kept[PATH_MAX];
    const char *dir = run->model.path;
    bool is_pipeline = false, is_there = false, was_begun = false;
    TESS_TRY(describe_is_file(ctx, dir, "model_index.json", &is_pipeline));
    if (!is_pipeline)
        return look_into_dir(ctx, dir, is_flux);
    TESS_CHECK(snprintf(path, sizeof path, "%s/transformer", dir) < (int)sizeof path, TESS_E_CONFIG,
               "path of %zu bytes is too long", strlen(dir));
    TESS_TRY(describe_is_file(ctx, path, "config.json", &is_there));
    TESS_TRY(describe_find_kept(ctx, run, kept, &was_begun));
    TESS_CHECK(is_there || was_begun, TESS_E_CONFIG,
               "model.path: '%s' is a pipeline of diffusers, and '%s' has no config.json; complete "
               "the folder, or give a single .safetensors or GGUF file of its transformer",
               dir, path);
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
        TESS_TRY(look_into_pipeline(c, run, &is_flux));
    else if (kind == TESS_IO_FILE && tess_model_is_file(run->model.path))
        TESS_TRY(look_into_file(c, run->model.path, &is_flux));
    else
        TESS_TRY(look_at_kept(c, run, kind, &is_flux));
    if (is_flux)
        *family = TESS_RUN_FAMILY_FLUX;
    return TESS_OK;
}
