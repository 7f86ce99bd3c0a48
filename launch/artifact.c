/*
 * [Note: one tree] What is found is built as a JSON value; --json dumps it, text is read off the
 * same value, so both say the same.
 */
#include "launch/artifact.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/digest.h"
#include "core/memory.h"
#include "format/adapter.h"
#include "format/gguf.h"
#include "format/json.h"
#include "format/model_dir.h"
#include "format/safetensors.h"
#include "launch/launch.h"
#include "train/data/codes_file.h"
#include "train/data/latents.h"
#include "train/data/token_file.h"
#include "train/data/vectors.h"
#include "train/strbuf.h"

enum { PATH_NBYTES = 4096 + 64, SHAPE_NBYTES = 192, HEX_NBYTES = 2 * TESS_SHA256_NBYTES + 1 };
enum { VECTORS_AT_ONCE_NBYTES = 4 << 20 };

static tess_status has_file(const tess_ctx *ctx, const char *folder, const char *name, bool *out)
{
    char path[PATH_NBYTES];
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    snprintf(path, sizeof path, "%.4096s/%s", folder, name);
    TESS_TRY(tess_io_stat(ctx->io, path, &kind, &nbytes));
    *out = kind == TESS_IO_FILE;
    return TESS_OK;
}

static bool ends_in(const char *text, const char *tail)
{
    const size_t text_nbytes = strlen(text);
    const size_t tail_nbytes = strlen(tail);
    return text_nbytes >= tail_nbytes && strcmp(text + text_nbytes - tail_nbytes, tail) == 0;
}

/* Files of several kinds are HDF5: ours say what they are in their first bytes. */
static tess_status kind_of_file(const tess_ctx *ctx, const char *path, tess_artifact_kind *kind)
{
    bool is_it = false;
    TESS_TRY(tess_adapter_is_path(ctx->io, path, &is_it));
    *kind = is_it                           ? TESS_ARTIFACT_ADAPTER
            : ends_in(path, ".safetensors") ? TESS_ARTIFACT_SAFETENSORS
            : ends_in(path, ".gguf")        ? TESS_ARTIFACT_MODEL
                                            : TESS_ARTIFACT_TOKEN_FILE;
    if (*kind != TESS_ARTIFACT_TOKEN_FILE)
        return TESS_OK;
    TESS_TRY(tess_codes_file_is(ctx, path, &is_it));
    if (is_it) {
        *kind = TESS_ARTIFACT_CODES;
        return TESS_OK;
    }
    TESS_TRY(tess_latents_is(ctx, path, &is_it));
    if (is_it) {
        *kind = TESS_ARTIFACT_CACHE;
        return TESS_OK;
    }
    TESS_TRY(tess_vectors_is_source(ctx, path, &is_it));
    if (is_it)
        *kind = TESS_ARTIFACT_VECTORS;
    return TESS_OK;
}

/* Of a pipeline of diffusers, which keeps its transformer in a folder of its own. */
static const char pipeline_mark[] = "model_index.json";

tess_status tess_artifact_kind_of(const tess_ctx *ctx, const char *path, tess_artifact_kind *kind)
{
    static const struct {
        const char *name;
        tess_artifact_kind kind;
    } marks[] = {{pipeline_mark, TESS_ARTIFACT_MODEL},
                 {"model.safetensors", TESS_ARTIFACT_MODEL},
                 {"model.safetensors.index.json", TESS_ARTIFACT_MODEL},
                 {"diffusion_pytorch_model.safetensors", TESS_ARTIFACT_MODEL},
                 {"diffusion_pytorch_model.safetensors.index.json", TESS_ARTIFACT_MODEL}};
    tess_io_kind found = TESS_IO_MISSING;
    int64_t nbytes = 0;
    TESS_TRY(tess_io_stat(ctx->io, path, &found, &nbytes));
    *kind = TESS_ARTIFACT_CHECKPOINT;
    if (found == TESS_IO_FILE)
        return kind_of_file(ctx, path, kind);
    if (found == TESS_IO_MISSING && strchr(path, ':') != NULL && tess_vectors_is_path(path))
        *kind = TESS_ARTIFACT_VECTORS; /* FILE.h5:DATASET */
    if (found == TESS_IO_DIR) {
        bool is_adapter = false;
        TESS_TRY(tess_adapter_is_path(ctx->io, path, &is_adapter));
        if (is_adapter)
            *kind = TESS_ARTIFACT_ADAPTER;
    }
    for (int i = 0;
         i < TESS_NELEM(marks) && *kind == TESS_ARTIFACT_CHECKPOINT && found == TESS_IO_DIR; i++) {
        bool is_there = false;
        TESS_TRY(has_file(ctx, path, marks[i].name, &is_there));
        if (is_there) {
            *kind = marks[i].kind;
            break;
        }
    }
    return TESS_OK;
}

static tess_status add_hex(tess_json *to, const char *key, const void *digest, size_t nbytes)
{
    char hex[HEX_NBYTES];
    tess_hex(digest, nbytes, hex);
    return tess_json_add_string(to, key, hex);
}

static tess_status add_tensor(tess_json *list, const char *name, const char *dtype,
                              const tess_st_tensor *st)
{
    tess_json *tensor = NULL;
    tess_json *shape = NULL;
    TESS_TRY(tess_json_add_object(list, NULL, &tensor));
    TESS_TRY(tess_json_add_string(tensor, "name", name));
    TESS_TRY(tess_json_add_string(tensor, "dtype", dtype));
    TESS_TRY(tess_json_add_i64(tensor, "nbytes", st->nbytes));
    TESS_TRY(tess_json_add_array(tensor, "shape", &shape));
    for (int i = 0; i < st->dim_numel; i++)
        TESS_TRY(tess_json_add_i64(shape, NULL, st->dim[i]));
    return TESS_OK;
}

static tess_status add_metadata(tess_json *to, const tess_safetensors *file)
{
    tess_json *metadata = NULL;
    TESS_TRY(tess_json_add_object(to, "metadata", &metadata));
    for (int64_t i = 0; i < tess_safetensors_metadata_numel(file); i++) {
        const tess_st_pair pair = tess_safetensors_metadata_at(file, i);
        TESS_TRY(tess_json_add_string(metadata, pair.key, pair.value));
    }
    return TESS_OK;
}

static tess_status fill_safetensors(const tess_safetensors *file, bool is_verify, tess_json *to)
{
    tess_json *tensors = NULL;
    TESS_TRY(tess_json_add_i64(to, "nbytes", tess_safetensors_file_nbytes(file)));
    TESS_TRY(add_metadata(to, file));
    if (is_verify) {
        tess_sha256 digest;
        TESS_TRY(tess_safetensors_sha256(file, &digest));
        TESS_TRY(add_hex(to, "sha256", digest.byte, sizeof digest.byte));
    }
    TESS_TRY(tess_json_add_array(to, "tensors", &tensors));
    for (int64_t i = 0; i < tess_safetensors_numel(file); i++) {
        const tess_st_tensor *st = tess_safetensors_at(file, i);
        TESS_TRY(add_tensor(tensors, st->name, tess_st_dtype_name(st->dtype), st));
    }
    return TESS_OK;
}

static tess_status describe_safetensors(const tess_ctx *ctx, const char *path, bool is_verify,
                                        tess_json *to)
{
    tess_safetensors *file = NULL;
    TESS_TRY(tess_safetensors_open(ctx->io, path, &file));
    const tess_status st = fill_safetensors(file, is_verify, to);
    tess_safetensors_close(&file);
    return st;
}

static tess_status add_module(tess_json *list, const tess_adapter_module *m)
{
    tess_json *module = NULL;
    TESS_TRY(tess_json_add_object(list, NULL, &module));
    TESS_TRY(tess_json_add_string(module, "name", m->path));
    TESS_TRY(tess_json_add_i64(module, "rank", m->rank));
    TESS_TRY(tess_json_add_f64(module, "alpha", m->alpha));
    TESS_TRY(tess_json_add_f64(module, "scale", m->alpha / (double)m->rank));
    TESS_TRY(tess_json_add_i64(module, "in", m->in_numel));
    TESS_TRY(tess_json_add_i64(module, "out", m->out_numel));
    return tess_json_add_bool(module, "dora", m->has_magnitude);
}

static tess_status fill_adapter(const tess_adapter *adapter, tess_json *to)
{
    tess_json *modules = NULL;
    TESS_TRY(tess_json_add_string(to, "dialect",
                                  tess_adapter_dialect_name(tess_adapter_dialect_of(adapter))));
    TESS_TRY(tess_json_add_string(to, "dtype", tess_dtype_name(tess_adapter_dtype(adapter))));
    if (tess_adapter_skipped_numel(adapter) > 0)
        TESS_TRY(
            tess_json_add_i64(to, "text_encoder_tensors", tess_adapter_skipped_numel(adapter)));
    TESS_TRY(tess_json_add_array(to, "modules", &modules));
    for (int64_t i = 0; i < tess_adapter_numel(adapter); i++)
        TESS_TRY(add_module(modules, tess_adapter_at(adapter, i)));
    return TESS_OK;
}

/* Of a dialect that is not read its tensors are still shown, and why it is not. */
static tess_status add_modules(const tess_ctx *ctx, const char *path, tess_json *to)
{
    const tess_adapter_options options = {.skip_text_encoders = true};
    tess_adapter *adapter = NULL;
    tess_status st = tess_adapter_open(ctx->io, path, &options, &adapter);
    if (st == TESS_E_UNSUPPORTED) {
        st = tess_json_add_string(to, "not_read", tess_error_message());
        tess_error_clear();
        return st;
    }
    TESS_TRY(st);
    st = fill_adapter(adapter, to);
    tess_adapter_close(&adapter);
    return st;
}

static tess_status fill_gguf(const tess_gguf *file, bool is_verify, tess_json *to)
{
    tess_sha256 digest;
    TESS_TRY(tess_json_add_i64(to, "nbytes", tess_gguf_file_nbytes(file)));
    if (!is_verify)
        return TESS_OK;
    TESS_TRY(tess_gguf_sha256(file, &digest));
    return add_hex(to, "sha256", digest.byte, sizeof digest.byte);
}

static tess_status describe_gguf(const tess_ctx *ctx, const char *path, bool is_verify,
                                 tess_json *to)
{
    tess_gguf *file = NULL;
    TESS_TRY(tess_gguf_open(ctx->io, path, &file));
    const tess_status st = fill_gguf(file, is_verify, to);
    tess_gguf_close(&file);
    return st;
}

/* The config is copied, so that --json shows what peft sees. */
static tess_status describe_peft(const tess_ctx *ctx, const char *path, bool is_verify,
                                 tess_json *to)
{
    char name[PATH_NBYTES];
    tess_json *config = NULL;
    snprintf(name, sizeof name, "%.4096s/adapter_config.json", path);
    TESS_TRY(tess_json_read(ctx->io, name, &config));
    const tess_status st = tess_json_add_copy(to, "config", config);
    tess_json_destroy(&config);
    TESS_TRY(st);
    snprintf(name, sizeof name, "%.4096s/adapter_model.safetensors", path);
    return describe_safetensors(ctx, name, is_verify, to);
}

static tess_status describe_adapter(const tess_ctx *ctx, const char *path, bool is_verify,
                                    tess_json *to)
{
    char *file = NULL;
    TESS_TRY(add_modules(ctx, path, to));
    TESS_TRY(tess_adapter_locate(ctx->io, path, &file));
    const tess_status st = ends_in(file, ".gguf") ? describe_gguf(ctx, file, is_verify, to)
                           : ends_in(file, ".safetensors")
                               ? describe_safetensors(ctx, file, is_verify, to)
                               : describe_peft(ctx, file, is_verify, to);
    tess_free(file);
    return st;
}

static tess_status add_model_files(tess_model_dir *dir, bool is_verify, tess_json *to)
{
    tess_json *files = NULL;
    TESS_TRY(tess_json_add_array(to, "files", &files));
    for (int i = 0; i < tess_model_dir_file_numel(dir); i++) {
        tess_json *file = NULL;
        TESS_TRY(tess_json_add_object(files, NULL, &file));
        TESS_TRY(tess_json_add_string(file, "name", tess_model_dir_file_name(dir, i)));
        TESS_TRY(tess_json_add_i64(file, "nbytes", tess_model_dir_file_nbytes(dir, i)));
        if (!is_verify)
            continue;
        tess_sha256 digest;
        TESS_TRY(tess_model_dir_file_sha256(dir, i, &digest));
        TESS_TRY(add_hex(file, "sha256", digest.byte, sizeof digest.byte));
    }
    return TESS_OK;
}

static tess_status fill_model(tess_model_dir *dir, bool is_verify, tess_json *to)
{
    tess_json *tensors = NULL;
    TESS_TRY(add_model_files(dir, is_verify, to));
    TESS_TRY(tess_json_add_array(to, "tensors", &tensors));
    int64_t nbytes = 0;
    for (int64_t i = 0; i < tess_model_dir_tensor_numel(dir); i++) {
        const tess_model_tensor *tensor = tess_model_dir_at(dir, i);
        char format[TESS_CODEC_TEXT_NBYTES];
        snprintf(format, sizeof format, "%s", tess_st_dtype_name(tensor->st->dtype));
        if (tensor->gguf != NULL || tensor->packed != NULL) {
            tess_codec codec;
            TESS_TRY(tess_model_tensor_codec(tensor, &codec));
            tess_codec_describe(&codec, format);
        }
        TESS_TRY(add_tensor(tensors, tensor->name, format, tensor->st));
        nbytes += tensor->st->nbytes;
    }
    return tess_json_add_i64(to, "nbytes", nbytes);
}

static tess_status describe_model(const tess_ctx *ctx, const char *path, bool is_verify,
                                  tess_json *to)
{
    char transformer[PATH_NBYTES];
    bool is_pipeline = false;
    tess_model_dir *dir = NULL;
    TESS_TRY(has_file(ctx, path, pipeline_mark, &is_pipeline));
    snprintf(transformer, sizeof transformer, "%.4096s/transformer", path);
    TESS_TRY(tess_model_dir_open(ctx, is_pipeline ? transformer : path, &dir));
    const tess_status st = fill_model(dir, is_verify, to);
    tess_model_dir_close(&dir);
    return st;
}

/* The file keeps one JSON object per input. */
static tess_status add_sources(const tess_token_file *file, tess_json *to)
{
    char *text = NULL;
    tess_json *sources = NULL;
    TESS_TRY(tess_json_add_array(to, "sources", &sources));
    TESS_TRY(tess_token_file_read_sources(file, &text));
    tess_status st = TESS_OK;
    for (const char *line = text; st == TESS_OK && *line != '\0';) {
        const size_t nbytes = strcspn(line, "\n");
        tess_json *source = NULL;
        st = tess_json_parse(tess_token_file_path(file), line, nbytes, &source);
        if (st == TESS_OK)
            st = tess_json_add_copy(sources, NULL, source);
        tess_json_destroy(&source);
        line += nbytes + (line[nbytes] == '\n');
    }
    tess_free(text);
    return st;
}

static tess_status fill_token_file(const tess_token_file *file, bool is_verify, tess_json *to)
{
    const tess_token_file_info *info = tess_token_file_get_info(file);
    if (is_verify)
        TESS_TRY(tess_token_file_verify(file));
    TESS_TRY(tess_json_add_i64(to, "nbytes", info->file_nbytes));
    TESS_TRY(tess_json_add_i64(to, "tokens", info->token_numel));
    TESS_TRY(tess_json_add_i64(to, "loss_tokens", info->loss_token_numel));
    TESS_TRY(tess_json_add_i64(to, "documents", info->document_numel));
    TESS_TRY(tess_json_add_i64(to, "vocabulary", info->vocab_numel));
    TESS_TRY(tess_json_add_i64(to, "token_nbytes", (int64_t)info->token_nbytes));
    TESS_TRY(tess_json_add_bool(to, "has_mask", info->has_mask));
    TESS_TRY(add_hex(to, "tokenizer_sha256", info->tokenizer.byte, sizeof info->tokenizer.byte));
    TESS_TRY(add_hex(to, "digest", info->payload_digest.byte, sizeof info->payload_digest.byte));
    return add_sources(file, to);
}

static tess_status describe_token_file(const tess_ctx *ctx, const char *path, bool is_verify,
                                       tess_json *to)
{
    tess_token_file *file = NULL;
    TESS_TRY(tess_token_file_open(ctx, path, &file));
    const tess_status st = fill_token_file(file, is_verify, to);
    tess_token_file_close(&file);
    return st;
}

/* Read all vectors: they are finite, and what their identity is. */
static tess_status add_identity(tess_vectors *vectors, float *x, int64_t room_numel, tess_json *to)
{
    const tess_vectors_info *info = tess_vectors_get_info(vectors);
    tess_logical_hash identity = {{0}};
    char text[TESS_VECTORS_DIGEST_TEXT_NBYTES];
    for (int64_t done = 0; done < info->vector_numel;) {
        const int64_t part = TESS_MIN(info->vector_numel - done, room_numel);
        TESS_TRY(tess_vectors_read(vectors, done, part, x));
        for (int64_t i = 0; i < part * info->dim; i++)
            TESS_CHECK(isfinite(x[i]), TESS_E_FORMAT,
                       "'%s': element %" PRId64 " of vector %" PRId64 " is %g, expected a finite "
                       "number; leave the vector out",
                       info->path, i % info->dim, done + i / info->dim, (double)x[i]);
        tess_vectors_digest_add(&identity, x, info->dim, done, part);
        done += part;
    }
    tess_vectors_digest_text(&identity, info->vector_numel, info->dim, text);
    return tess_json_add_string(to, "identity", text);
}

static tess_status fill_vectors(tess_vectors *vectors, bool is_verify, tess_json *to)
{
    const tess_vectors_info *info = tess_vectors_get_info(vectors);
    TESS_TRY(tess_json_add_string(to, "format", info->format));
    if (info->dataset != NULL)
        TESS_TRY(tess_json_add_string(to, "dataset", info->dataset));
    TESS_TRY(tess_json_add_i64(to, "vectors", info->vector_numel));
    TESS_TRY(tess_json_add_i64(to, "dimensions", info->dim));
    TESS_TRY(tess_json_add_string(to, "dtype", info->dtype));
    if (!is_verify)
        return TESS_OK;
    const int64_t row_nbytes = info->dim * (int64_t)sizeof(float);
    const int64_t room_numel = TESS_MAX(VECTORS_AT_ONCE_NBYTES / row_nbytes, 1);
    void *x = NULL;
    TESS_TRY(tess_alloc_array(room_numel, (size_t)row_nbytes, &x));
    const tess_status st = add_identity(vectors, x, room_numel, to);
    tess_free(x);
    return st;
}

static tess_status describe_vectors(const tess_ctx *ctx, const char *path, bool is_verify,
                                    tess_json *to)
{
    tess_vectors *vectors = NULL;
    TESS_TRY(tess_vectors_open(ctx, path, &vectors));
    const tess_status st = fill_vectors(vectors, is_verify, to);
    tess_vectors_close(&vectors);
    return st;
}

static tess_status fill_codes(tess_codes_file *file, bool is_verify, tess_json *to)
{
    const tess_codes_info *info = tess_codes_file_get_info(file);
    if (is_verify)
        TESS_TRY(tess_codes_file_verify(file));
    TESS_TRY(tess_json_add_i64(to, "nbytes", info->file_nbytes));
    TESS_TRY(tess_json_add_i64(to, "vectors", info->vector_numel));
    TESS_TRY(tess_json_add_i64(to, "codes", info->code_numel));
    TESS_TRY(tess_json_add_i64(to, "groups", info->group_numel));
    TESS_TRY(tess_json_add_i64(to, "levels", info->level_numel));
    TESS_TRY(tess_json_add_bool(to, "has_absent", info->has_absent));
    TESS_TRY(tess_json_add_string(to, "bit_order", tess_codes_order_name(info->bit_order)));
    TESS_TRY(tess_json_add_string(to, "codebooks", info->codebooks));
    return tess_json_add_string(to, "source", info->source);
}

static tess_status describe_codes(const tess_ctx *ctx, const char *path, bool is_verify,
                                  tess_json *to)
{
    tess_codes_file *file = NULL;
    TESS_TRY(tess_codes_file_open(ctx, path, &file));
    const tess_status st = fill_codes(file, is_verify, to);
    tess_codes_file_close(&file);
    return st;
}

static tess_status add_buckets(const tess_latents *file, tess_json *to)
{
    const tess_latents_info *info = tess_latents_get_info(file);
    tess_json *list = NULL, *row = NULL;
    TESS_TRY(tess_json_add_array(to, "buckets", &list));
    for (int64_t i = 0; i < info->bucket_numel; i++) {
        const tess_latents_bucket *b = &tess_latents_buckets(file)[i];
        TESS_TRY(tess_json_add_object(list, NULL, &row));
        TESS_TRY(tess_json_add_i64(row, "height", b->height));
        TESS_TRY(tess_json_add_i64(row, "width", b->width));
        TESS_TRY(tess_json_add_i64(row, "tokens", tess_latents_token_numel(b)));
        TESS_TRY(tess_json_add_i64(row, "samples", b->sample_numel));
    }
    return TESS_OK;
}

/* What `tessera sample --prompt` takes. */
static tess_status add_captions(const tess_latents *file, tess_json *to)
{
    tess_json *list = NULL;
    tess_status st = tess_json_add_array(to, "texts", &list);
    for (int64_t i = 0; i < tess_latents_get_info(file)->caption_numel && st == TESS_OK; i++) {
        char *text = NULL;
        st = tess_latents_caption(file, i, &text);
        if (st == TESS_OK)
            st = tess_json_add_string(list, NULL, text);
        tess_free(text);
    }
    return st;
}

static tess_status fill_cache(const tess_latents *file, bool is_verify, tess_json *to)
{
    const tess_latents_info *info = tess_latents_get_info(file);
    if (is_verify)
        TESS_TRY(tess_latents_verify(file));
    TESS_TRY(tess_json_add_i64(to, "nbytes", info->file_nbytes));
    TESS_TRY(tess_json_add_i64(to, "samples", info->sample_numel));
    TESS_TRY(tess_json_add_i64(to, "captions", info->caption_numel));
    TESS_TRY(tess_json_add_bool(to, "has_empty", info->has_empty));
    TESS_TRY(tess_json_add_bool(to, "has_masks", info->has_masks));
    TESS_TRY(tess_json_add_i64(to, "channels", info->channel_numel));
    TESS_TRY(tess_json_add_string(to, "latent_dtype", tess_dtype_name(info->latent_dt)));
    TESS_TRY(tess_json_add_string(to, "text_dtype", tess_dtype_name(info->text_dt)));
    TESS_TRY(tess_json_add_i64(to, "text_tokens", info->text_numel));
    TESS_TRY(tess_json_add_i64(to, "text_dim", info->text_dim));
    TESS_TRY(tess_json_add_i64(to, "pooled_dim", info->pooled_dim));
    TESS_TRY(tess_json_add_bool(to, "is_text_masked", info->is_text_masked));
    TESS_TRY(tess_json_add_string(to, "tool", info->origin.tool));
    TESS_TRY(tess_json_add_string(to, "vae", info->origin.vae));
    TESS_TRY(tess_json_add_string(to, "text_encoders", info->origin.text_encoders));
    TESS_TRY(tess_json_add_string(to, "posterior", info->origin.posterior));
    TESS_TRY(add_hex(to, "digest", info->digest.byte, sizeof info->digest.byte));
    TESS_TRY(add_captions(file, to));
    return add_buckets(file, to);
}

static tess_status describe_cache(const tess_ctx *ctx, const char *path, bool is_verify,
                                  tess_json *to)
{
    tess_latents *file = NULL;
    TESS_TRY(tess_latents_open(ctx, path, &file));
    const tess_status st = fill_cache(file, is_verify, to);
    tess_latents_close(&file);
    return st;
}

static tess_status describe(const tess_ctx *ctx, tess_artifact_kind kind, const char *path,
                            bool is_verify, tess_json *to)
{
    static const char *const names[] = {
        [TESS_ARTIFACT_CHECKPOINT] = "checkpoint", [TESS_ARTIFACT_TOKEN_FILE] = "token file",
        [TESS_ARTIFACT_VECTORS] = "vectors",       [TESS_ARTIFACT_CODES] = "codes file",
        [TESS_ARTIFACT_CACHE] = "cache",           [TESS_ARTIFACT_SAFETENSORS] = "safetensors file",
        [TESS_ARTIFACT_MODEL] = "model",           [TESS_ARTIFACT_ADAPTER] = "adapter"};
    TESS_TRY(tess_json_add_string(to, "kind", names[kind]));
    TESS_TRY(tess_json_add_string(to, "path", path));
    if (is_verify)
        TESS_TRY(tess_json_add_bool(to, "verified", true));
    switch (kind) {
    case TESS_ARTIFACT_CHECKPOINT:
        return TESS_FAIL(TESS_E_STATE, "'%s': checkpoints are described by src/shard", path);
    case TESS_ARTIFACT_TOKEN_FILE:
        return describe_token_file(ctx, path, is_verify, to);
    case TESS_ARTIFACT_VECTORS:
        return describe_vectors(ctx, path, is_verify, to);
    case TESS_ARTIFACT_CODES:
        return describe_codes(ctx, path, is_verify, to);
    case TESS_ARTIFACT_CACHE:
        return describe_cache(ctx, path, is_verify, to);
    case TESS_ARTIFACT_SAFETENSORS:
        return describe_safetensors(ctx, path, is_verify, to);
    case TESS_ARTIFACT_MODEL:
        return describe_model(ctx, path, is_verify, to);
    case TESS_ARTIFACT_ADAPTER:
        return describe_adapter(ctx, path, is_verify, to);
    }
    return TESS_OK;
}

/* "  BF16  [64, 32]  name" for a tensor. */
static tess_status tensor_text(const tess_json *tensor, tess_strbuf *out)
{
    const char *name = NULL;
    const char *dtype = NULL;
    const tess_json *shape = tess_json_find(tensor, "shape");
    TESS_TRY(tess_json_get_string(tensor, "name", &name));
    TESS_TRY(tess_json_get_string(tensor, "dtype", &dtype));
    int64_t dim[TESS_ST_DIM_MAX] = {0};
    const int dim_numel = (int)TESS_MIN(tess_json_numel(shape), (int64_t)TESS_ST_DIM_MAX);
    for (int i = 0; i < dim_numel; i++)
        TESS_TRY(tess_json_as_i64(tess_json_at(shape, i), &dim[i]));
    char text[SHAPE_NBYTES];
    tess_st_shape_text(dim, dim_numel, text, sizeof text);
    return tess_strbuf_add(out, "  %-5s %-20s %s\n", dtype, text, name);
}

/* "  rank 16    alpha 32     scale 2        [64, 32]  name" for a module. */
static tess_status module_text(const tess_json *module, tess_strbuf *out)
{
    const char *name = NULL;
    int64_t rank = 0, dim[2] = {0};
    double alpha = 0.0, scale = 0.0;
    bool is_dora = false;
    char shape[SHAPE_NBYTES];
    TESS_TRY(tess_json_get_string(module, "name", &name));
    TESS_TRY(tess_json_get_i64(module, "rank", &rank));
    TESS_TRY(tess_json_get_f64(module, "alpha", &alpha));
    TESS_TRY(tess_json_get_f64(module, "scale", &scale));
    TESS_TRY(tess_json_get_i64(module, "out", &dim[0]));
    TESS_TRY(tess_json_get_i64(module, "in", &dim[1]));
    TESS_TRY(tess_json_opt_bool(module, "dora", false, &is_dora));
    tess_st_shape_text(dim, 2, shape, sizeof shape);
    return tess_strbuf_add(out, "  rank %-4" PRId64 " alpha %-8g scale %-8g %-16s %s%s\n", rank,
                           alpha, scale, shape, name, is_dora ? " (DoRA)" : "");
}

static tess_status compact_text(const tess_json *value, tess_strbuf *out)
{
    char *text = NULL;
    size_t nbytes = 0;
    TESS_TRY(tess_json_dump(value, 0, &text, &nbytes));
    const tess_status st = tess_strbuf_add_bytes(out, text, nbytes);
    tess_free(text);
    return st;
}

static tess_status member_text(const tess_json *member, tess_strbuf *out)
{
    const char *key = tess_json_key(member);
    const bool is_modules = strcmp(key, "modules") == 0;
    if (is_modules || strcmp(key, "tensors") == 0) {
        TESS_TRY(tess_strbuf_add(out, "%s: %" PRId64 "\n", key, tess_json_numel(member)));
        for (int64_t i = 0; i < tess_json_numel(member); i++)
            TESS_TRY(is_modules ? module_text(tess_json_at(member, i), out)
                                : tensor_text(tess_json_at(member, i), out));
        return TESS_OK;
    }
    TESS_TRY(tess_strbuf_add(out, "%s: ", key));
    const char *string = NULL;
    if (tess_json_type_of(member) == TESS_JSON_STRING) {
        TESS_TRY(tess_json_as_string(member, &string));
        TESS_TRY(tess_strbuf_add(out, "%s", string));
    } else {
        TESS_TRY(compact_text(member, out));
    }
    return tess_strbuf_add(out, "\n");
}

static tess_status render(const tess_json *root, bool is_json, tess_strbuf *out)
{
    if (is_json) {
        TESS_TRY(compact_text(root, out));
        return tess_strbuf_add(out, "\n");
    }
    for (int64_t i = 0; i < tess_json_numel(root); i++)
        TESS_TRY(member_text(tess_json_at(root, i), out));
    return TESS_OK;
}

tess_status tess_artifact_print(const tess_ctx *ctx, tess_artifact_kind kind, const char *path,
                                bool is_json, bool is_verify)
{
    tess_json *root = NULL;
    tess_strbuf out = {0};
    TESS_TRY(tess_json_create_object(&root));
    tess_status st = describe(ctx, kind, path, is_verify, root);
    if (st == TESS_OK)
        st = render(root, is_json, &out);
    if (st == TESS_OK)
        st = tess_launch_print(out.text);
    tess_strbuf_fini(&out);
    tess_json_destroy(&root);
    return st;
}
