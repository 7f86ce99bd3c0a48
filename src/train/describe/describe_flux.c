#include "train/describe/describe_flux.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "train/describe/base_formats_priv.h"
#include "train/describe/describe_priv.h"
#include "train/flux/flux_data.h"

/* ---- targets ---- */

/* As SimpleTuner's flux_lora_target, diffusers' script and sd-scripts choose them; lists match ends
 * of paths, so "proj_out" is that of single blocks and the last layer. */
#define MMDIT "to_k", "to_q", "to_v", "to_out.0"
#define CONTEXT "add_k_proj", "add_q_proj", "add_v_proj", "to_add_out"
#define CONTEXT_FFS CONTEXT, "ff_context.net.0.proj", "ff_context.net.2"
#define ALL MMDIT, CONTEXT
#define ALL_FFS MMDIT, CONTEXT_FFS, "ff.net.0.proj", "ff.net.2", "proj_mlp", "proj_out"
#define LIST(...)                                                                                  \
    {                                                                                              \
        .name = (const char *const[]){__VA_ARGS__},                                                \
        .name_numel = (int)(sizeof((const char *const[]){__VA_ARGS__}) / sizeof(const char *))     \
    }

static const tess_flux_targets sets[] = {
    {.name = "mmdit", .modules = LIST(MMDIT)},
    {.name = "context", .modules = LIST(CONTEXT)},
    {.name = "context+ffs", .modules = LIST(CONTEXT_FFS)},
    {.name = "all", .modules = LIST(ALL)},
    {.name = "all+ffs", .modules = LIST(ALL_FFS)},
    {.name = "all+ffs+embedder", .modules = LIST(ALL_FFS, "x_embedder")},
    {.name = "ai-toolkit",
     .modules = LIST(ALL_FFS, "norm.linear", "norm1.linear", "norm1_context.linear")},
    {.name = "tiny",
     .modules =
         LIST("single_transformer_blocks.7.proj_out", "single_transformer_blocks.20.proj_out")},
    {.name = "nano", .modules = LIST("single_transformer_blocks.7.proj_out")},
    {.name = "diffusers",
     .modules = LIST("attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0", "attn.add_k_proj",
                     "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out", "ff.net.0.proj",
                     "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")},
    /* Linear layers alone: peft takes no other module that an expression fits. */
    {.name = "kohya",
     .modules = {.regex = "(single_)?transformer_blocks\\.\\d+\\."
                          "(norm(1|1_context)?\\.linear|attn\\.(to_[qkv]|to_out\\.0|add_[qkv]_proj|"
                          "to_add_out)|ff(_context)?\\.net\\.(0\\.proj|2)|proj_mlp|proj_out)"},
     .shares_a = true},
};

const tess_flux_targets *tess_flux_targets_find(const char *name)
{
    for (int i = 0; i < TESS_NELEM(sets); i++)
        if (strcmp(sets[i].name, name) == 0)
            return &sets[i];
    return NULL;
}

void tess_flux_targets_words(size_t nbytes, char *text)
{
    size_t at = 0;
    for (int i = 0; i < TESS_NELEM(sets) && at < nbytes; i++)
        at += (size_t)snprintf(text + at, nbytes - at, "%s, ", sets[i].name);
}

/* ---- weights ---- */

static int shape_of(void *arg, const char *name, int64_t dim[8])
{
    const tess_model_tensor *t = tess_model_dir_find(arg, name);
    if (t == NULL)
        return -1;
    memcpy(dim, t->st->dim, (size_t)t->st->dim_numel * sizeof *dim);
    return t->st->dim_numel;
}

/* diffusers keeps a pipeline's transformer in a folder of its own. */
static tess_status find_weights(const tess_ctx *ctx, const tess_run *run, char path[PATH_MAX],
                                tess_io_kind *kind)
{
    int64_t nbytes = 0;
    bool is_pipeline = false;
    TESS_TRY(tess_io_stat(ctx->io, run->model.path, kind, &nbytes));
    if (*kind == TESS_IO_DIR)
        TESS_TRY(describe_is_file(ctx, run->model.path, "model_index.json", &is_pipeline));
    TESS_CHECK(snprintf(path, PATH_MAX, "%s%s", run->model.path,
                        is_pipeline ? "/transformer" : "") < PATH_MAX,
               TESS_E_CONFIG, "model.path: path is too long");
    return TESS_OK;
}

static tess_status read_config(const tess_ctx *ctx, const char *dir, bool *is_flux,
                               tess_json **root)
{
    char path[PATH_MAX];
    bool is_there = false;
    *is_flux = false;
    TESS_TRY(describe_is_file(ctx, dir, "config.json", &is_there));
    if (!is_there)
        return TESS_OK;
    TESS_CHECK(snprintf(path, sizeof path, "%s/config.json", dir) < (int)sizeof path, TESS_E_CONFIG,
               "model.path: path is too long");
    TESS_TRY(tess_json_read(ctx->io, path, root));
    *is_flux = tess_flux_config_is(*root);
    return TESS_OK;
}

/* Sizes, as the config.json beside the weights states them or else as the weights show them. */
static tess_status find_sizes(const tess_ctx *ctx, tess_description *d, const char *path)
{
    tess_json *root = NULL;
    bool is_flux = false;
    tess_status st =
        read_config(ctx, d->dir != NULL ? tess_model_dir_path(d->dir) : path, &is_flux, &root);
    if (st == TESS_OK && is_flux)
        st = tess_flux_config_parse(root, &d->flux);
    else if (st == TESS_OK && root != NULL && !tess_model_is_file(path))
        st = TESS_FAIL(TESS_E_CONFIG,
                       "model.path: '%s/config.json' is no FluxTransformer2DModel's; give a FLUX.1 "
                       "model or leave out model.family",
                       path);
    else if (st == TESS_OK && d->dir != NULL)
        st = tess_flux_config_find(path, shape_of, d->dir, &d->flux);
    else if (st == TESS_OK)
        st = TESS_FAIL(TESS_E_CONFIG, "model.path: '%s' has no config.json of a FLUX.1 transformer",
                       path);
    tess_json_destroy(&root);
    return st;
}

/* That of the first matrix that is an array of one: what scales of quanto formats take. */
static tess_status find_dtype(tess_description *d)
{
    for (int64_t i = 0; i < tess_model_dir_tensor_numel(d->dir); i++) {
        const tess_model_tensor *t = tess_model_dir_at(d->dir, i);
        const bool is_half = t->st->dtype == TESS_ST_F16, is_wide = t->st->dtype == TESS_ST_F32;
        if (t->gguf != NULL || t->packed != NULL || t->st->dim_numel != 2 ||
            !(is_half || is_wide || t->st->dtype == TESS_ST_BF16))
            continue;
        snprintf(d->dtype_hint, sizeof d->dtype_hint, "%s",
                 is_half   ? "float16"
                 : is_wide ? "float32"
                           : "bfloat16");
        return TESS_OK;
    }
    return TESS_OK;
}

/* Sizes under diffusers' names, and how tensors are kept where bf16 is not the whole answer: the
 * same text for the same weights in any layout. */
static tess_status make_config(tess_description *d)
{
    size_t nbytes = 0;
    bool is_plain = true;
    snprintf(d->dtype_hint, sizeof d->dtype_hint, "bfloat16");
    if (d->dir != NULL)
        TESS_TRY(find_dtype(d));
    TESS_TRY(tess_flux_config_json(&d->flux, &d->config_root));
    TESS_TRY(tess_json_add_string(d->config_root, "torch_dtype", d->dtype_hint));
    if (d->dir != NULL)
        TESS_TRY(describe_is_as_hinted(d, &is_plain));
    if (!is_plain)
        TESS_TRY(describe_add_formats(d, d->config_root));
    return tess_json_dump(d->config_root, 2, &d->config_text, &nbytes);
}

static tess_status go_on_without(const tess_ctx *ctx, tess_description *d, const char *kept)
{
    enum { LIMIT_NBYTES = 4 << 20 };
    char path[PATH_MAX];
    size_t nbytes = 0;
    TESS_CHECK(snprintf(path, sizeof path, "%s/config.json", kept) < (int)sizeof path,
               TESS_E_CONFIG, "output.dir: path is too long");
    TESS_TRY(tess_io_read_all(ctx->io, path, LIMIT_NBYTES, &d->config_text, &nbytes));
    TESS_TRY(tess_json_parse(path, d->config_text, nbytes, &d->config_root));
    const char *hint = "bfloat16";
    TESS_TRY(tess_json_opt_string(d->config_root, "torch_dtype", hint, &hint));
    snprintf(d->dtype_hint, sizeof d->dtype_hint, "%.15s", hint);
    return tess_flux_config_parse(d->config_root, &d->flux);
}

/* Whether there are weights to open; a run that was begun may do without. */
static tess_status has_weights(const tess_ctx *ctx, const char *path, tess_io_kind kind, bool *out)
{
    static const char *const name[] = {"diffusion_pytorch_model.safetensors",
                                       "diffusion_pytorch_model.safetensors.index.json",
                                       "model.safetensors", "model.safetensors.index.json"};
    *out = kind == TESS_IO_FILE;
    for (int i = 0; i < TESS_NELEM(name) && kind == TESS_IO_DIR && !*out; i++)
        TESS_TRY(describe_is_file(ctx, path, name[i], out));
    return TESS_OK;
}

tess_status tess_describe_flux_open(const tess_ctx *ctx, tess_description *d)
{
    char path[PATH_MAX], kept[PATH_MAX];
    tess_io_kind kind = TESS_IO_MISSING;
    bool was_begun = false, is_there = false;
    const bool is_random = d->run->model.init == TESS_RUN_INIT_RANDOM;
    d->family_name = "flux";
    TESS_TRY(find_weights(ctx, d->run, path, &kind));
    TESS_TRY(has_weights(ctx, path, kind, &is_there));
    TESS_TRY(describe_find_kept(ctx, d->run, kept, &was_begun));
    if (was_begun && (kind == TESS_IO_MISSING || (!is_there && !is_random)))
        return go_on_without(ctx, d, kept);
    TESS_CHECK(kind != TESS_IO_MISSING, TESS_E_CONFIG,
               "model.path: '%s' is missing, and '%s' holds nothing to go on from",
               d->run->model.path, d->run->output.dir);
    if (!is_random)
        TESS_TRY(tess_model_dir_open(ctx, path, &d->dir));
    TESS_TRY(find_sizes(ctx, d, path));
    return make_config(d);
}

tess_status tess_flux_codec_of(void *arg, const tess_param *p, bool is_linear, tess_codec source,
                               tess_codec *out)
{
    static const char *const left_alone[] = {"x_embedder.weight", "context_embedder.weight",
                                             "norm_out.linear.weight", "proj_out.weight"};
    for (int i = 0; i < TESS_NELEM(left_alone); i++)
        is_linear = is_linear && strcmp(p->name, left_alone[i]) != 0;
    return tess_base_codec_of(arg, p, is_linear, source, out);
}

tess_status tess_describe_flux_left(const tess_description *d)
{
    const tess_model_tensor *t = tess_model_dir_unclaimed(d->dir, 0);
    TESS_CHECK(t == NULL, TESS_E_FORMAT,
               "model.path: '%s': tensor '%s' has no place in the model that config.json describes "
               "(%d + %d blocks, guidance_embeds %s); give the config.json that belongs to the "
               "weights",
               d->run->model.path, t->name, (int)d->flux.double_numel, (int)d->flux.single_numel,
               d->flux.has_guidance ? "true" : "false");
    return TESS_OK;
}

/* ---- data ---- */

/* Packed tokens of a square image: 16 x 16 pixels each. */
static int64_t square_numel(int64_t resolution)
{
    const int64_t side = TESS_LATENTS_PIXELS * TESS_LATENTS_PATCH;
    return tess_ceil_div(resolution, side) * tess_ceil_div(resolution, side);
}

/* The largest bucket, and the text, of one cache. Who exports or samples may be without it: then
 * the usual sizes are planned, and who trains is told when it is opened. */
static tess_status look_at(const tess_ctx *ctx, const char *path, tess_flux_shape *shape)
{
    enum { USUAL_RESOLUTION = 1024, USUAL_TEXT_NUMEL = 512 };
    tess_latents *cache = NULL;
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    TESS_TRY(tess_io_stat(ctx->io, path, &kind, &nbytes));
    if (kind == TESS_IO_MISSING) {
        shape->image_numel = TESS_MAX(shape->image_numel, square_numel(USUAL_RESOLUTION));
        shape->text_numel = TESS_MAX(shape->text_numel, (int64_t)USUAL_TEXT_NUMEL);
        return TESS_OK;
    }
    TESS_TRY(tess_latents_open(ctx, path, &cache));
    shape->image_numel = TESS_MAX(shape->image_numel, tess_flux_largest(cache));
    shape->text_numel = TESS_MAX(shape->text_numel, tess_latents_get_info(cache)->text_numel);
    tess_latents_close(&cache);
    return TESS_OK;
}

tess_status tess_describe_flux_data(const tess_ctx *ctx, tess_description *d)
{
    const tess_run_data_keys *data = &d->run->data;
    const bool has_resolution = data->resolution != TESS_RUN_AUTO;
    const bool has_text = data->text_length != TESS_RUN_AUTO;
    tess_flux_shape shape = {.sample_numel = d->run->train.micro_batch};
    tess_flux_layout layout;
    if (!has_resolution || !has_text) {
        TESS_TRY(look_at(ctx, data->path, &shape));
        if (data->eval_path != NULL)
            TESS_TRY(look_at(ctx, data->eval_path, &shape));
    }
    if (has_resolution)
        shape.image_numel = square_numel(data->resolution);
    if (has_text)
        shape.text_numel = data->text_length;
    TESS_TRY(tess_flux_layout_make(&d->flux, &shape, &layout));
    d->flux_shape = shape;
    d->batch_nbytes = layout.nbytes;
    return TESS_OK;
}
