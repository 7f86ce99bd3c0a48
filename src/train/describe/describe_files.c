/* Small files of a model, where it lies or where a run keeps them. */
#include <stdio.h>
#include <string.h>

#include "train/describe/describe_priv.h"

tess_status describe_is_file(const tess_ctx *ctx, const char *dir, const char *name, bool *out)
{
    char path[PATH_MAX];
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    TESS_CHECK(snprintf(path, sizeof path, "%s/%s", dir, name) < (int)sizeof path, TESS_E_CONFIG,
               "path of %zu bytes is too long", strlen(dir));
    TESS_TRY(tess_io_stat(ctx->io, path, &kind, &nbytes));
    *out = kind == TESS_IO_FILE;
    return TESS_OK;
}

tess_status describe_find_kept(const tess_ctx *ctx, const tess_run *run, char dir[PATH_MAX],
                               bool *was_begun)
{
    const char *resume = run->output.resume;
    const bool is_path =
        resume != NULL && strcmp(resume, "auto") != 0 && strcmp(resume, "never") != 0;
    int n = snprintf(dir, PATH_MAX, "%s/model", run->output.dir);
    TESS_CHECK(n > 0 && n < PATH_MAX, TESS_E_CONFIG, "output.dir: path of %zu bytes is too long",
               strlen(run->output.dir));
    TESS_TRY(describe_is_file(ctx, dir, "config.json", was_begun));
    if (*was_begun || !is_path)
        return TESS_OK;
    n = snprintf(dir, PATH_MAX, "%s/../model", resume);
    TESS_CHECK(n > 0 && n < PATH_MAX, TESS_E_CONFIG, "output.resume: path of %zu bytes is too long",
               strlen(resume));
    return describe_is_file(ctx, dir, "config.json", was_begun);
}

tess_status tess_describe_file(const tess_ctx *ctx, const tess_run *run, const char *name,
                               char path[PATH_MAX], bool *is_there)
{
    char kept[PATH_MAX];
    char beside[PATH_MAX];
    const char *dir = run->model.path;
    bool was_begun = false;
    if (tess_model_is_file(dir)) { /* small files lie beside it */
        TESS_CHECK(strlen(dir) < sizeof beside, TESS_E_CONFIG, "model.path is too long");
        snprintf(beside, sizeof beside, "%s", dir);
        char *slash = strrchr(beside, '/');
        snprintf(slash != NULL ? slash + 1 : beside, 2, ".");
        dir = beside;
    }
    TESS_TRY(describe_is_file(ctx, dir, name, is_there));
    if (!*is_there) {
        TESS_TRY(describe_find_kept(ctx, run, kept, &was_begun));
        TESS_TRY(describe_is_file(ctx, kept, name, is_there));
        dir = *is_there ? kept : dir;
    }
    TESS_CHECK(snprintf(path, PATH_MAX, "%s/%s", dir, name) < PATH_MAX, TESS_E_CONFIG,
               "path of %zu bytes is too long", strlen(dir));
    return TESS_OK;
}
