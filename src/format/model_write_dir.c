/*
 * A Hugging Face directory: safetensors in files of a limited size, index, config.json and the
 * tokenizer's files, in a folder of another name until all of it is durable.
 */
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "format/model_dir.h"
#include "format/model_write_priv.h"

enum { FILE_MAX = 512, SMALL_FILE_LIMIT_NBYTES = 256 << 20, BASE_NAME_NBYTES = 64 };

static const char folder_suffix[] = ".tessera-tmp", identity_key[] = "base.identity";

/* A tensor of a file. */
typedef struct slot {
    tess_packed_item item;
    int file_idx;
    int64_t tensor_idx; /* in its file */
} slot;

typedef struct dir_writer {
    const tess_ctx *ctx;
    char *path, *folder; /* the name it gets, and the one it has until then */
    bool is_started;     /* `folder` is ours */
    char *stem;          /* of the names of weight files */
    char *quant;
    tess_model_write_tensor *tensor; /* [tensor_numel] names are owned */
    int64_t *first_slot;             /* [tensor_numel + 1] */
    int64_t tensor_numel;
    slot *slot; /* [slot_numel] */
    int64_t slot_numel, nbytes;
    tess_safetensors_writer *file[FILE_MAX];
    int file_numel;
} dir_writer;

static void name_file(const dir_writer *w, int file_idx, char name[BASE_NAME_NBYTES])
{
    if (w->file_numel == 1)
        snprintf(name, BASE_NAME_NBYTES, "%s.safetensors", w->stem);
    else
        snprintf(name, BASE_NAME_NBYTES, "%s-%05d-of-%05d.safetensors", w->stem, file_idx + 1,
                 w->file_numel);
}

static tess_status path_of(const dir_writer *w, const char *name, char path[PATH_MAX])
{
    TESS_CHECK(snprintf(path, PATH_MAX, "%s/%s", w->folder, name) < PATH_MAX, TESS_E_CONFIG,
               "path of %zu bytes is too long", strlen(w->folder));
    return TESS_OK;
}

/* ---- what is written where ---- */

/* A tensor of the model stays in one file; a new one begins where the limit would be passed. */
static tess_status assign_files(dir_writer *w, int64_t shard_nbytes)
{
    int64_t used = 0;
    w->file_numel = 1;
    for (int64_t i = 0; i < w->tensor_numel; i++) {
        int64_t nbytes = 0;
        for (int64_t s = w->first_slot[i]; s < w->first_slot[i + 1]; s++)
            nbytes += w->slot[s].item.st.nbytes;
        if (used > 0 && used + nbytes > shard_nbytes) {
            w->file_numel++;
            used = 0;
        }
        TESS_CHECK(w->file_numel <= FILE_MAX, TESS_E_CONFIG,
                   "'%s': more than %d files of %" PRId64 " bytes; give a larger --max-shard-size",
                   w->path, FILE_MAX, shard_nbytes);
        for (int64_t s = w->first_slot[i]; s < w->first_slot[i + 1]; s++)
            w->slot[s].file_idx = w->file_numel - 1;
        used += nbytes;
        w->nbytes += nbytes;
    }
    return TESS_OK;
}

static tess_status list_slots(dir_writer *w, const tess_model_write_request *q)
{
    tess_packed_item item[TESS_PACKED_ITEM_MAX];
    int item_numel = 0;
    for (int64_t i = 0; i < q->tensor_numel; i++) {
        void *grown = w->slot;
        w->first_slot[i] = w->slot_numel;
        TESS_TRY(tess_packed_items(q, &q->tensor[i], item, &item_numel));
        TESS_TRY(
            tess_realloc_array(w->slot_numel, w->slot_numel + item_numel, sizeof *w->slot, &grown));
        w->slot = grown;
        for (int k = 0; k < item_numel; k++)
            w->slot[w->slot_numel++].item = item[k];
        char *name = NULL;
        TESS_TRY(tess_strdup(q->tensor[i].name, &name));
        w->tensor[i] = q->tensor[i];
        w->tensor[i].name = name;
        w->tensor_numel++;
    }
    w->first_slot[q->tensor_numel] = w->slot_numel;
    return assign_files(w, q->shard_nbytes);
}

/* What names and bytes of a file's weights do not tell: TESS_MODEL_FORMATS_KEY, NULL: nothing. */
static tess_status state_formats(const dir_writer *w, int file_idx, char **text)
{
    tess_json *root = NULL;
    TESS_TRY(tess_json_create_object(&root));
    tess_status st = TESS_OK;
    for (int64_t i = 0; i < w->tensor_numel && st == TESS_OK; i++) {
        const tess_codec *codec = &w->tensor[i].codec;
        char identity[TESS_CODEC_TEXT_NBYTES];
        if (w->slot[w->first_slot[i]].file_idx != file_idx ||
            !(tess_packed_is_quanto_codec(codec) || tess_packed_is_fp8_codec(codec)))
            continue;
        tess_codec_describe(codec, identity);
        st = tess_json_add_string(root, w->tensor[i].name, identity);
    }
    if (st == TESS_OK && tess_json_numel(root) > 0)
        st = tess_json_dump(root, 0, text, NULL);
    tess_json_destroy(&root);
    return st;
}

static tess_status create_file(dir_writer *w, const tess_model_write_request *q, int file_idx,
                               const tess_st_tensor *st, int64_t numel)
{
    char *formats = NULL, name[BASE_NAME_NBYTES], path[PATH_MAX];
    void *array = NULL;
    int64_t pair_numel = 0;
    name_file(w, file_idx, name);
    TESS_TRY(path_of(w, name, path));
    TESS_TRY(tess_alloc_array(q->extra_numel + 4, sizeof(tess_st_pair), &array));
    tess_st_pair *pair = array;
    tess_status result = state_formats(w, file_idx, &formats);
    pair[pair_numel++] = (tess_st_pair){"format", "pt"};
    pair[pair_numel++] = (tess_st_pair){"base.quant", w->quant};
    pair[pair_numel++] = (tess_st_pair){identity_key, TESS_BASE_ID_UNKNOWN};
    if (formats != NULL)
        pair[pair_numel++] = (tess_st_pair){TESS_MODEL_FORMATS_KEY, formats};
    for (int64_t i = 0; i < q->extra_numel; i++)
        pair[pair_numel++] = q->extra[i];
    if (result == TESS_OK)
        result = tess_safetensors_writer_create(w->ctx->io, path, st, numel, pair, pair_numel,
                                                &w->file[file_idx]);
    tess_free(pair);
    tess_free(formats);
    return result;
}

static tess_status start_file(dir_writer *w, const tess_model_write_request *q, int file_idx,
                              tess_st_tensor *st)
{
    int64_t numel = 0;
    for (int64_t s = 0; s < w->slot_numel; s++) {
        if (w->slot[s].file_idx != file_idx)
            continue;
        w->slot[s].tensor_idx = numel;
        st[numel] = w->slot[s].item.st;
        st[numel++].name = w->slot[s].item.name;
    }
    return create_file(w, q, file_idx, st, numel);
}

/* ---- small files ---- */

static bool is_replaced(const char *key, const char *torch_dtype)
{
    static const char *const ours[] = {"quantization_config", "tessera_formats"};
    for (int i = 0; i < TESS_NELEM(ours); i++)
        if (strcmp(key, ours[i]) == 0)
            return true;
    return torch_dtype != NULL && (strcmp(key, "torch_dtype") == 0 || strcmp(key, "dtype") == 0);
}

static tess_status fill_config(const tess_model_write_request *q, const tess_json *from,
                               tess_json *to)
{
    for (int64_t i = 0; i < tess_json_numel(from); i++) {
        const tess_json *member = tess_json_at(from, i);
        if (!is_replaced(tess_json_key(member), q->torch_dtype))
            TESS_TRY(tess_json_add_copy(to, tess_json_key(member), member));
    }
    if (q->torch_dtype != NULL)
        TESS_TRY(tess_json_add_string(to, "torch_dtype", q->torch_dtype));
    return tess_packed_config(q, to);
}

static tess_status write_config(const dir_writer *w, const tess_model_write_request *q)
{
    char path[PATH_MAX];
    tess_json *made = NULL, *root = NULL;
    const tess_json *from = q->config_root;
    tess_status st = path_of(w, "config.json", path);
    if (st == TESS_OK && from == NULL) {
        st = tess_hf_config_json(q->config, "bfloat16", &made);
        from = made;
    }
    if (st == TESS_OK)
        st = tess_json_create_object(&root);
    if (st == TESS_OK)
        st = fill_config(q, from, root);
    if (st == TESS_OK)
        st = tess_json_write(w->ctx->io, path, root, 2);
    tess_json_destroy(&root);
    tess_json_destroy(&made);
    return st;
}

static tess_status write_map(const dir_writer *w, const tess_model_write_request *q)
{
    char path[PATH_MAX];
    tess_json *map = NULL;
    TESS_TRY(path_of(w, "quanto_qmap.json", path));
    TESS_TRY(tess_packed_quanto_map(q, &map));
    const tess_status st = map != NULL ? tess_json_write(w->ctx->io, path, map, 2) : TESS_OK;
    tess_json_destroy(&map);
    return st;
}

/* What transformers reads beside the weights; what there is goes along as it is. */
static const char *const small_file[] = {"tokenizer.json",
                                         "tokenizer_config.json",
                                         "special_tokens_map.json",
                                         "tokenizer.model",
                                         "vocab.json",
                                         "merges.txt",
                                         "added_tokens.json",
                                         "chat_template.jinja",
                                         "chat_template.json",
                                         "generation_config.json"};

static tess_status copy_small_file(const dir_writer *w, const char *folder, const char *name)
{
    char from[PATH_MAX], to[PATH_MAX], *text = NULL;
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t file_nbytes = 0;
    size_t nbytes = 0;
    TESS_TRY(path_of(w, name, to));
    TESS_CHECK(snprintf(from, sizeof from, "%s/%s", folder, name) < PATH_MAX, TESS_E_CONFIG,
               "path of %zu bytes is too long", strlen(folder));
    TESS_TRY(tess_io_stat(w->ctx->io, from, &kind, &file_nbytes));
    if (kind != TESS_IO_FILE)
        return TESS_OK;
    TESS_TRY(tess_io_read_all(w->ctx->io, from, SMALL_FILE_LIMIT_NBYTES, &text, &nbytes));
    const tess_status st = tess_io_write_all(w->ctx->io, to, text, nbytes);
    tess_free(text);
    return st;
}

static tess_status fill_index(const dir_writer *w, const char *base_id, tess_json *root)
{
    tess_json *metadata = NULL, *map = NULL;
    char name[BASE_NAME_NBYTES];
    TESS_TRY(tess_json_add_object(root, "metadata", &metadata));
    TESS_TRY(tess_json_add_i64(metadata, "total_size", w->nbytes));
    TESS_TRY(tess_json_add_string(metadata, "base.quant", w->quant));
    TESS_TRY(tess_json_add_string(metadata, identity_key, base_id));
    TESS_TRY(tess_json_add_object(root, "weight_map", &map));
    for (int64_t s = 0; s < w->slot_numel; s++) {
        name_file(w, w->slot[s].file_idx, name);
        TESS_TRY(tess_json_add_string(map, w->slot[s].item.name, name));
    }
    return TESS_OK;
}

static tess_status write_index(const dir_writer *w, const char *base_id)
{
    char path[PATH_MAX], name[BASE_NAME_NBYTES + sizeof ".safetensors.index.json"];
    tess_json *root = NULL;
    snprintf(name, sizeof name, "%.63s.safetensors.index.json", w->stem);
    TESS_TRY(path_of(w, name, path));
    TESS_TRY(tess_json_create_object(&root));
    tess_status st = fill_index(w, base_id, root);
    if (st == TESS_OK)
        st = tess_json_write(w->ctx->io, path, root, 2);
    tess_json_destroy(&root);
    return st;
}

/* ---- folder ---- */

/* The folder of an earlier attempt, or of this one after a failure. Files only: whatever else lies
 * there is nobody's but the user's. */
static tess_status remove_folder(const dir_writer *w)
{
    char **name = NULL, path[PATH_MAX];
    int64_t name_numel = 0;
    TESS_TRY(tess_io_list(w->ctx->io, w->folder, &name, &name_numel));
    tess_status st = TESS_OK;
    for (int64_t i = 0; i < name_numel && st == TESS_OK; i++) {
        st = path_of(w, name[i], path);
        if (st == TESS_OK)
            st = tess_io_unlink(w->ctx->io, path, true);
    }
    tess_io_list_free(&name, name_numel);
    return st == TESS_OK ? tess_io_rmdir(w->ctx->io, w->folder) : st;
}

static tess_status start_folder(dir_writer *w)
{
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    TESS_TRY(tess_io_stat(w->ctx->io, w->folder, &kind, &nbytes));
    if (kind == TESS_IO_DIR)
        TESS_TRY(remove_folder(w));
    w->is_started = true;
    return tess_io_mkdirs(w->ctx->io, w->folder);
}

static tess_status start_files(dir_writer *w, const tess_model_write_request *q)
{
    void *st_memory = NULL;
    TESS_TRY(start_folder(w));
    TESS_TRY(write_config(w, q));
    TESS_TRY(write_map(w, q));
    for (int i = 0; q->source_path != NULL && i < TESS_NELEM(small_file); i++)
        TESS_TRY(copy_small_file(w, q->source_path, small_file[i]));
    TESS_TRY(tess_alloc_array(w->slot_numel, sizeof(tess_st_tensor), &st_memory));
    tess_status st = TESS_OK;
    for (int i = 0; i < w->file_numel && st == TESS_OK; i++)
        st = start_file(w, q, i, st_memory);
    tess_free(st_memory);
    return st;
}

/* ---- the writer ---- */

static void destroy(void *self)
{
    dir_writer *w = self;
    for (int i = 0; i < FILE_MAX; i++)
        tess_safetensors_writer_destroy(&w->file[i]);
    if (w->is_started) /* after a failure: its error is the one to keep */
        (void)!remove_folder(w);
    for (int64_t i = 0; i < w->tensor_numel; i++)
        tess_free((void *)(uintptr_t)w->tensor[i].name);
    tess_free(w->slot);
    tess_free(w->first_slot);
    tess_free(w->tensor);
    tess_free(w->quant);
    tess_free(w->stem);
    tess_free(w->folder);
    tess_free(w->path);
    tess_free(w);
}

static tess_status put_item(dir_writer *w, const slot *s, const tess_model_write_tensor *t,
                            const void *const *part)
{
    char text[TESS_PACKED_TEXT_NBYTES];
    const void *bytes = NULL;
    switch (s->item.source) {
    case TESS_PACKED_PART:
        bytes = part[s->item.part_idx];
        break;
    case TESS_PACKED_TABLE:
        bytes = s->item.table;
        break;
    case TESS_PACKED_STATE:
        tess_packed_state_text(t, t->codec.double_quant ? *(const float *)part[3] : 0.0F, text);
        bytes = text;
        break;
    case TESS_PACKED_CONSTANT: /* little endian, as all of this program is */
        bytes = &s->item.constant;
        break;
    }
    return tess_safetensors_writer_append(w->file[s->file_idx], s->tensor_idx, bytes,
                                          (size_t)s->item.st.nbytes);
}

static tess_status put(void *self, int64_t tensor_idx, const void *const *part)
{
    dir_writer *w = self;
    for (int64_t s = w->first_slot[tensor_idx]; s < w->first_slot[tensor_idx + 1]; s++)
        TESS_TRY(put_item(w, &w->slot[s], &w->tensor[tensor_idx], part));
    return TESS_OK;
}

static tess_status set(void *self, const char *key, const char *value)
{
    dir_writer *w = self;
    for (int i = 0; i < w->file_numel; i++)
        TESS_TRY(tess_safetensors_writer_set(w->file[i], key, value));
    return TESS_OK;
}

static tess_status finish(void *self, const char *base_id)
{
    dir_writer *w = self;
    TESS_TRY(set(w, identity_key, base_id));
    for (int i = 0; i < w->file_numel; i++)
        TESS_TRY(tess_safetensors_writer_finish(w->file[i]));
    if (w->file_numel > 1)
        TESS_TRY(write_index(w, base_id));
    TESS_TRY(tess_io_fsync_dir(w->ctx->io, w->folder));
    TESS_TRY(tess_io_rename(w->ctx->io, w->folder, w->path));
    w->is_started = false;
    return tess_io_fsync_parent(w->ctx->io, w->path);
}

const tess_model_write_ops tess_model_dir_ops = {put, set, finish, destroy};

static tess_status fill_writer(dir_writer *w, const tess_model_write_request *q)
{
    void *tensor = NULL, *first = NULL;
    size_t path_nbytes = strlen(q->path);
    while (path_nbytes > 1 && q->path[path_nbytes - 1] == '/')
        path_nbytes--;
    TESS_TRY(tess_strndup(q->path, path_nbytes, &w->path));
    TESS_TRY(tess_asprintf(&w->folder, "%s%s", w->path, folder_suffix));
    TESS_TRY(tess_strdup(q->quant, &w->quant));
    TESS_TRY(tess_strdup(q->stem != NULL ? q->stem : "model", &w->stem));
    TESS_TRY(tess_alloc_array(q->tensor_numel, sizeof *w->tensor, &tensor));
    w->tensor = tensor;
    TESS_TRY(tess_alloc_array(q->tensor_numel + 1, sizeof *w->first_slot, &first));
    w->first_slot = first;
    TESS_TRY(list_slots(w, q));
    return start_files(w, q);
}

tess_status tess_model_dir_writer(const tess_ctx *ctx, const tess_model_write_request *request,
                                  void **self)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(dir_writer), &object));
    dir_writer *w = object;
    w->ctx = ctx;
    const tess_status st = fill_writer(w, request);
    if (st != TESS_OK) {
        destroy(w);
        return st;
    }
    *self = w;
    return TESS_OK;
}
