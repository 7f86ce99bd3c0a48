#include "format/model_dir.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "format/json.h"
#include "format/model_dir_priv.h"
#include "format/text_priv.h"

enum { COMPARE_NBYTES = 1 << 20 };

static int by_name(const void *a, const void *b)
{
    return strcmp(((const tess_model_tensor *)a)->name, ((const tess_model_tensor *)b)->name);
}

static int by_file_name(const void *a, const void *b)
{
    return strcmp(((const weight_file *)a)->name, ((const weight_file *)b)->name);
}

/* ---- files ---- */

static tess_status add_file(tess_model_dir *dir, const char *base_name)
{
    for (int i = 0; i < dir->file_numel; i++)
        if (strcmp(dir->file[i].name, base_name) == 0)
            return TESS_OK;
    TESS_CHECK(dir->file_numel < TESS_MODEL_DIR_FILE_MAX, TESS_E_FORMAT,
               "'%s': the index names more than %d files", dir->path, TESS_MODEL_DIR_FILE_MAX);
    TESS_TRY(tess_strdup(base_name, &dir->file[dir->file_numel].name));
    dir->file_numel++;
    return TESS_OK;
}

static tess_status open_files(tess_model_dir *dir)
{
    qsort(dir->file, (size_t)dir->file_numel, sizeof dir->file[0], by_file_name);
    for (int i = 0; i < dir->file_numel; i++) {
        char *path = NULL;
        TESS_TRY(tess_asprintf(&path, "%s/%s", dir->path, dir->file[i].name));
        const tess_status st = tess_safetensors_open(dir->ctx->io, path, &dir->file[i].st);
        tess_free(path);
        TESS_TRY(st);
    }
    return TESS_OK;
}

/* All tensors of all files, sorted; a name in two files is refused. */
static tess_status list_tensors(const tess_model_dir *dir, tess_model_tensor **all,
                                int64_t *all_numel)
{
    int64_t numel = 0, at = 0;
    void *table = NULL;
    for (int i = 0; i < dir->file_numel; i++)
        numel += tess_safetensors_numel(dir->file[i].st);
    TESS_TRY(tess_alloc_array(numel, sizeof(tess_model_tensor), &table));
    tess_model_tensor *t = table;
    for (int i = 0; i < dir->file_numel; i++) {
        for (int64_t j = 0; j < tess_safetensors_numel(dir->file[i].st); j++, at++) {
            t[at].st = tess_safetensors_at(dir->file[i].st, j);
            t[at].name = t[at].st->name;
            t[at].file_idx = i;
        }
    }
    if (numel > 1)
        qsort(t, (size_t)numel, sizeof *t, by_name);
    for (int64_t i = 1; i < numel; i++) {
        if (strcmp(t[i - 1].name, t[i].name) == 0) {
            const tess_status st = TESS_FAIL(
                TESS_E_FORMAT, "'%s': tensor '%s' is in two files, '%s' and '%s'", dir->path,
                t[i].name, dir->file[t[i - 1].file_idx].name, dir->file[t[i].file_idx].name);
            tess_free(t);
            return st;
        }
    }
    *all = t;
    *all_numel = numel;
    return TESS_OK;
}

/* ---- index ---- */

static bool is_base_name(const char *name)
{
    static const char suffix[] = ".safetensors";
    const size_t nbytes = strlen(name);
    return nbytes > sizeof suffix - 1 && nbytes <= 255 && strpbrk(name, "/\\") == NULL &&
           strstr(name, "..") == NULL && strcmp(name + nbytes - (sizeof suffix - 1), suffix) == 0;
}

static tess_status read_weight_map(tess_model_dir *dir, const tess_json *map)
{
    const char *file = NULL;
    char where[512], tame[128];
    for (int64_t i = 0; i < tess_json_numel(map); i++) {
        const tess_json *member = tess_json_at(map, i);
        TESS_TRY(tess_json_as_string(member, &file));
        if (!is_base_name(file)) {
            tess_json_where(member, where, sizeof where);
            return TESS_FAIL(TESS_E_FORMAT,
                             "%s: expected the plain name of a .safetensors file beside the index, "
                             "found '%s'",
                             where, tess_text_tame(file, tame, sizeof tame));
        }
        TESS_TRY(add_file(dir, file));
    }
    TESS_CHECK(dir->file_numel > 0, TESS_E_FORMAT, "'%s': weight_map of the index is empty",
               dir->path);
    return TESS_OK;
}

static tess_status check_mapped(const tess_model_dir *dir, const tess_json *map,
                                const tess_model_tensor *all, int64_t all_numel)
{
    const char *file = NULL;
    char where[512];
    for (int64_t i = 0; i < tess_json_numel(map); i++) {
        const tess_json *member = tess_json_at(map, i);
        const tess_model_tensor key = {.name = tess_json_key(member)};
        const tess_model_tensor *found =
            all_numel > 0 ? bsearch(&key, all, (size_t)all_numel, sizeof key, by_name) : NULL;
        TESS_TRY(tess_json_as_string(member, &file));
        if (found != NULL && strcmp(dir->file[found->file_idx].name, file) == 0)
            continue;
        tess_json_where(member, where, sizeof where);
        return TESS_FAIL(TESS_E_FORMAT, "%s: the tensor is not in '%s'%s%s%s", where, file,
                         found != NULL ? " but in '" : "",
                         found != NULL ? dir->file[found->file_idx].name : "",
                         found != NULL ? "'" : "");
    }
    return TESS_OK;
}

/* Move what the map lists to `tensor`, the rest to `extra`; both stay sorted. NULL map: all. */
static tess_status split_listed(tess_model_dir *dir, const tess_json *map,
                                const tess_model_tensor *all, int64_t all_numel)
{
    void *tensor = NULL, *extra = NULL, *claimed = NULL;
    TESS_TRY(tess_alloc_array(all_numel, sizeof *all, &tensor));
    dir->tensor = tensor;
    TESS_TRY(tess_alloc_array(all_numel, sizeof *all, &extra));
    dir->extra = extra;
    for (int64_t i = 0; i < all_numel; i++) {
        if (map == NULL || tess_json_find(map, all[i].name) != NULL)
            dir->tensor[dir->tensor_numel++] = all[i];
        else
            dir->extra[dir->extra_numel++] = all[i];
    }
    TESS_TRY(tess_alloc_array(dir->tensor_numel, sizeof(bool), &claimed));
    dir->is_claimed = claimed;
    return TESS_OK;
}

static tess_status warn_about_index(const tess_model_dir *dir, const tess_json *root)
{
    const tess_json *metadata = NULL;
    double total = -1.0;
    int64_t nbytes = 0;
    const tess_log *log = &dir->ctx->log;
    for (int i = 0; i < dir->file_numel; i++)
        for (int64_t j = 0; j < tess_safetensors_numel(dir->file[i].st); j++)
            nbytes += tess_safetensors_at(dir->file[i].st, j)->nbytes;
    for (int64_t i = 0; i < dir->extra_numel; i++)
        nbytes -= dir->extra[i].st->nbytes;
    TESS_TRY(tess_json_opt_object(root, "metadata", &metadata));
    if (metadata != NULL) /* a double: some writers store one */
        TESS_TRY(tess_json_opt_f64(metadata, "total_size", -1.0, &total));
    if (total >= 0.0 && total != (double)nbytes)
        tess_log_root(log, TESS_LOG_WARN, "index_total_size path=%s stated=%.0f found=%" PRId64,
                      dir->path, total, nbytes);
    if (dir->extra_numel > 0)
        tess_log_root(log, TESS_LOG_WARN,
                      "index_unlisted_tensors path=%s numel=%" PRId64 " first=%s", dir->path,
                      dir->extra_numel, dir->extra[0].name);
    return TESS_OK;
}

static tess_status open_with_map(tess_model_dir *dir, const tess_json *map)
{
    tess_model_tensor *all = NULL;
    int64_t all_numel = 0;
    TESS_TRY(open_files(dir));
    TESS_TRY(list_tensors(dir, &all, &all_numel));
    tess_status st = map != NULL ? check_mapped(dir, map, all, all_numel) : TESS_OK;
    if (st == TESS_OK)
        st = split_listed(dir, map, all, all_numel);
    tess_free(all);
    return st == TESS_OK ? tess_packed_join(dir) : st;
}

static tess_status open_sharded(tess_model_dir *dir, const char *index_path)
{
    tess_json *root = NULL;
    const tess_json *map = NULL;
    TESS_TRY(tess_json_read(dir->ctx->io, index_path, &root));
    tess_status st = tess_json_get_object(root, "weight_map", &map);
    if (st == TESS_OK)
        st = read_weight_map(dir, map);
    if (st == TESS_OK)
        st = open_with_map(dir, map);
    if (st == TESS_OK)
        st = warn_about_index(dir, root);
    tess_json_destroy(&root);
    return st;
}

/* ---- directory ---- */

static tess_status kind_of(const tess_model_dir *dir, const char *name, tess_io_kind *kind)
{
    char *path = NULL;
    int64_t nbytes = 0;
    TESS_TRY(tess_asprintf(&path, "%s/%s", dir->path, name));
    const tess_status st = tess_io_stat(dir->ctx->io, path, kind, &nbytes);
    tess_free(path);
    return st;
}

static tess_status refuse_no_weights(const tess_model_dir *dir)
{
    static const char *const other[] = {"pytorch_model.bin", "pytorch_model.bin.index.json",
                                        "consolidated.00.pth", "model.ckpt.index"};
    for (int i = 0; i < TESS_NELEM(other); i++) {
        tess_io_kind kind = TESS_IO_MISSING;
        TESS_TRY(kind_of(dir, other[i], &kind));
        TESS_CHECK(kind == TESS_IO_MISSING, TESS_E_UNSUPPORTED,
                   "'%s': found '%s', but only safetensors weights are read; convert them with "
                   "save_pretrained(safe_serialization=True)",
                   dir->path, other[i]);
    }
    return TESS_FAIL(TESS_E_FORMAT,
                     "'%s': expected model.safetensors or model.safetensors.index.json, found "
                     "neither",
                     dir->path);
}

/* ---- GGUF ---- */

/* config NULL: names and rows stay as they are. */
static tess_status describe_tensor(const tess_model_dir *dir, const tess_llm_config *config,
                                   int64_t idx, tess_model_tensor *t)
{
    const tess_gguf_tensor *g = tess_gguf_at(dir->gguf, idx);
    tess_st_tensor *s = &dir->shape[dir->tensor_numel];
    char *name = dir->name[dir->tensor_numel];
    if (config == NULL)
        snprintf(name, sizeof *dir->name, "%s", g->name);
    else
        TESS_CHECK(tess_gguf_hf_name(g->name, name), TESS_E_UNSUPPORTED,
                   "'%s': tensor '%s' belongs to no %s model that is known here",
                   tess_gguf_path(dir->gguf), g->name, tess_llm_family_name(config->family));
    *s = (tess_st_tensor){.name = name,
                          .dtype = g->format == TESS_FORMAT_F32    ? TESS_ST_F32
                                   : g->format == TESS_FORMAT_F16  ? TESS_ST_F16
                                   : g->format == TESS_FORMAT_BF16 ? TESS_ST_BF16
                                                                   : TESS_ST_U8,
                          .dim_numel = g->dim_numel,
                          .numel = g->numel,
                          .offset_nbytes = g->offset_nbytes,
                          .nbytes = g->nbytes};
    memcpy(s->dim, g->dim, (size_t)g->dim_numel * sizeof *g->dim);
    *t = (tess_model_tensor){.name = name,
                             .st = s,
                             .gguf = g,
                             .head_dim =
                                 config == NULL ? 0 : tess_gguf_interleaved(config, g->name)};
    return TESS_OK;
}

static tess_status list_gguf(tess_model_dir *dir, const tess_llm_config *config)
{
    void *tensor = NULL, *shape = NULL, *name = NULL, *claimed = NULL;
    const int64_t numel = tess_gguf_tensor_numel(dir->gguf);
    TESS_TRY(tess_alloc_array(numel, sizeof *dir->tensor, &tensor));
    dir->tensor = tensor;
    TESS_TRY(tess_alloc_array(numel, sizeof *dir->shape, &shape));
    dir->shape = shape;
    TESS_TRY(tess_alloc_array(numel, sizeof *dir->name, &name));
    dir->name = name;
    TESS_TRY(tess_alloc_array(numel, sizeof(bool), &claimed));
    dir->is_claimed = claimed;
    for (int64_t i = 0; i < numel; i++) {
        if (strcmp(tess_gguf_at(dir->gguf, i)->name, "rope_freqs.weight") == 0)
            continue; /* part of the configuration */
        TESS_TRY(describe_tensor(dir, config, i, &dir->tensor[dir->tensor_numel]));
        dir->tensor_numel++;
    }
    if (dir->tensor_numel > 1)
        qsort(dir->tensor, (size_t)dir->tensor_numel, sizeof *dir->tensor, by_name);
    return TESS_OK;
}

/* `path` is the folder from now on, and the file its only one. */
static tess_status set_single_file(tess_model_dir *dir)
{
    char *slash = strrchr(dir->path, '/');
    TESS_TRY(add_file(dir, slash != NULL ? slash + 1 : dir->path));
    if (slash == NULL)
        snprintf(dir->path, strlen(dir->path) + 1, ".");
    else
        slash[slash == dir->path] = '\0';
    return TESS_OK;
}

static tess_status open_gguf(tess_model_dir *dir)
{
    tess_llm_config config;
    const char *architecture = NULL;
    TESS_TRY(tess_gguf_open(dir->ctx->io, dir->path, &dir->gguf));
    TESS_TRY(set_single_file(dir));
    TESS_TRY(tess_gguf_get_text(dir->gguf, "general.architecture", &architecture));
    if (strcmp(architecture, "flux") == 0) { /* names of Black Forest Labs, and no config */
        TESS_TRY(list_gguf(dir, NULL));
        return tess_flux_cut(dir);
    }
    TESS_TRY(tess_gguf_llm_config(dir->gguf, &config));
    return list_gguf(dir, &config);
}

bool tess_model_is_file(const char *path)
{
    static const char suffix[] = ".safetensors";
    const size_t nbytes = strlen(path);
    return tess_gguf_is_path(path) ||
           (nbytes >= sizeof suffix && strcmp(path + nbytes - (sizeof suffix - 1), suffix) == 0);
}

/* The names that transformers and diffusers give weights. */
static const char *const stems[] = {"model", "diffusion_pytorch_model"};

/* Whether `stem`.safetensors or its index is there, and open it. */
static tess_status open_stem(tess_model_dir *dir, const char *stem, bool *is_there)
{
    char single[64], index[64];
    tess_io_kind single_kind = TESS_IO_MISSING, index_kind = TESS_IO_MISSING;
    snprintf(single, sizeof single, "%s.safetensors", stem);
    snprintf(index, sizeof index, "%s.safetensors.index.json", stem);
    TESS_TRY(kind_of(dir, single, &single_kind));
    TESS_TRY(kind_of(dir, index, &index_kind));
    *is_there = single_kind != TESS_IO_MISSING || index_kind != TESS_IO_MISSING;
    if (single_kind != TESS_IO_MISSING) { /* transformers prefers it too */
        if (index_kind != TESS_IO_MISSING)
            tess_log_root(&dir->ctx->log, TESS_LOG_WARN, "index_ignored path=%s reason=%s_exists",
                          dir->path, single);
        TESS_TRY(add_file(dir, single));
        return open_with_map(dir, NULL);
    }
    if (!*is_there)
        return TESS_OK;
    char *index_path = NULL;
    TESS_TRY(tess_asprintf(&index_path, "%s/%s", dir->path, index));
    const tess_status st = open_sharded(dir, index_path);
    tess_free(index_path);
    return st;
}

static tess_status open_weights(tess_model_dir *dir)
{
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    bool is_there = false;
    TESS_TRY(tess_io_stat(dir->ctx->io, dir->path, &kind, &nbytes));
    if (kind == TESS_IO_FILE && tess_gguf_is_path(dir->path))
        return open_gguf(dir);
    if (kind == TESS_IO_FILE && tess_model_is_file(dir->path)) {
        TESS_TRY(set_single_file(dir));
        TESS_TRY(open_with_map(dir, NULL));
        return tess_flux_cut(dir);
    }
    TESS_CHECK(kind == TESS_IO_DIR, TESS_E_FORMAT,
               "'%s': expected a model directory, or a .gguf or .safetensors file, found %s",
               dir->path, kind == TESS_IO_MISSING ? "nothing" : "another file");
    for (int i = 0; i < TESS_NELEM(stems) && !is_there; i++)
        TESS_TRY(open_stem(dir, stems[i], &is_there));
    return is_there ? tess_flux_cut(dir) : refuse_no_weights(dir);
}

tess_status tess_model_dir_open(const tess_ctx *ctx, const char *path, tess_model_dir **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_model_dir), &object));
    tess_model_dir *dir = object;
    dir->ctx = ctx;
    tess_status st = tess_strdup(path, &dir->path);
    if (st == TESS_OK)
        st = open_weights(dir);
    if (st != TESS_OK) {
        tess_model_dir_close(&dir);
        return st;
    }
    *out = dir;
    return TESS_OK;
}

void tess_model_dir_close(tess_model_dir **dir)
{
    tess_model_dir *d = *dir;
    if (d == NULL)
        return;
    for (int i = 0; i < d->file_numel; i++) {
        tess_safetensors_close(&d->file[i].st);
        tess_free(d->file[i].name);
    }
    tess_gguf_close(&d->gguf);
    for (int64_t i = 0; i < d->packed_numel; i++)
        tess_free(d->packed[i].name);
    tess_free(d->packed);
    tess_free(d->cut);
    tess_free(d->shape);
    tess_free(d->name);
    tess_free(d->tensor);
    tess_free(d->extra);
    tess_free(d->is_claimed);
    tess_free(d->path);
    tess_free(d);
    *dir = NULL;
}

const char *tess_model_dir_path(const tess_model_dir *dir) { return dir->path; }

const tess_gguf *tess_model_dir_gguf(const tess_model_dir *dir) { return dir->gguf; }

tess_status tess_model_tensor_codec(const tess_model_tensor *t, tess_codec *out)
{
    static const struct {
        tess_st_dtype dtype;
        tess_format format;
    } plain[] = {{TESS_ST_F32, TESS_FORMAT_F32},
                 {TESS_ST_BF16, TESS_FORMAT_BF16},
                 {TESS_ST_F16, TESS_FORMAT_F16}};
    if (t->gguf != NULL) {
        *out = tess_codec_of_format(t->gguf->format);
        return TESS_OK;
    }
    if (t->packed != NULL) {
        *out = t->packed->codec;
        return TESS_OK;
    }
    for (int i = 0; i < TESS_NELEM(plain); i++) {
        if (plain[i].dtype == t->st->dtype) {
            *out = tess_codec_of_format(plain[i].format);
            return TESS_OK;
        }
    }
    return TESS_FAIL(TESS_E_UNSUPPORTED, "tensor '%s': expected F32, BF16 or F16 weights, found %s",
                     t->name, tess_st_dtype_name(t->st->dtype));
}

int64_t tess_model_dir_tensor_numel(const tess_model_dir *dir) { return dir->tensor_numel; }

const tess_model_tensor *tess_model_dir_at(const tess_model_dir *dir, int64_t idx)
{
    return idx >= 0 && idx < dir->tensor_numel ? &dir->tensor[idx] : NULL;
}

const tess_model_tensor *tess_model_dir_find(const tess_model_dir *dir, const char *name)
{
    const tess_model_tensor key = {.name = name};
    if (dir->tensor_numel == 0)
        return NULL;
    return bsearch(&key, dir->tensor, (size_t)dir->tensor_numel, sizeof key, by_name);
}

/* Groups become rows of whole groups, if they can. */
static void shape_groups(tess_packed *p, const int64_t *dim, int dim_numel)
{
    if (dim_numel != 2 || dim[0] <= 0 || dim[1] <= 0 || dim[1] % p->codec.block_numel != 0 ||
        p->whole.numel % dim[1] != 0 || p->whole.numel / dim[1] != dim[0])
        return;
    p->whole.dim[0] = dim[0];
    p->whole.dim[1] = dim[1];
    p->is_grouped = false;
}

/* What lies in the place of a missing tensor, NULL: nothing: of a weight another tensor of its
 * module (packed otherwise), or the tensor under a path that is longer or shorter in front. */
static const char *find_instead(const tess_model_dir *dir, const char *name)
{
    const char *dot = strrchr(name, '.');
    const size_t nbytes = strlen(name), stem = dot != NULL ? (size_t)(dot - name) + 1 : nbytes;
    const bool is_weight = dot != NULL && strcmp(dot, ".weight") == 0;
    for (int64_t i = 0; is_weight && i < dir->tensor_numel; i++)
        if (strncmp(dir->tensor[i].name, name, stem) == 0 &&
            strcmp(dir->tensor[i].name + stem, "bias") != 0)
            return dir->tensor[i].name;
    for (int64_t i = 0; i < dir->tensor_numel; i++) {
        const char *other = dir->tensor[i].name;
        const size_t other_nbytes = strlen(other);
        const bool is_longer = other_nbytes > nbytes;
        const char *longer = is_longer ? other : name, *shorter = is_longer ? name : other;
        const size_t apart = is_longer ? other_nbytes - nbytes : nbytes - other_nbytes;
        if (apart > 0 && longer[apart - 1] == '.' && strchr(shorter, '.') != NULL &&
            strcmp(longer + apart, shorter) == 0)
            return other;
    }
    return NULL;
}

static tess_status refuse_missing(const tess_model_dir *dir, const char *name, const char *shape)
{
    const char *instead = find_instead(dir, name);
    TESS_CHECK(instead == NULL, TESS_E_FORMAT,
               "'%s': tensor '%s' %s is missing, found '%s' instead (another packing, or another "
               "name); get the model in 16 bits and under the usual names",
               dir->path, name, shape, instead);
    return TESS_FAIL(TESS_E_FORMAT, "'%s': tensor '%s' %s is missing", dir->path, name, shape);
}

tess_status tess_model_dir_claim(tess_model_dir *dir, const char *name, const int64_t *dim,
                                 int dim_numel, const tess_model_tensor **out)
{
    char expected[256], found[256];
    const tess_model_tensor *t = tess_model_dir_find(dir, name);
    tess_st_shape_text(dim, dim_numel, expected, sizeof expected);
    if (t == NULL)
        return refuse_missing(dir, name, expected);
    if (t->packed != NULL && t->packed->is_grouped)
        shape_groups(&dir->packed[t->packed - dir->packed], dim, dim_numel);
    bool is_equal = t->st->dim_numel == dim_numel;
    for (int i = 0; is_equal && i < dim_numel; i++)
        is_equal = t->st->dim[i] == dim[i];
    tess_st_shape_text(t->st->dim, t->st->dim_numel, found, sizeof found);
    TESS_CHECK(is_equal, TESS_E_FORMAT,
               "'%s/%s': tensor '%s': expected shape %s from the model's configuration, found %s",
               dir->path, dir->file[t->file_idx].name, name, expected, found);
    dir->is_claimed[t - dir->tensor] = true;
    *out = t;
    return TESS_OK;
}

/* Buffers that old transformers versions saved with the weights. */
static bool is_never_a_weight(const char *name)
{
    static const char suffix[] = ".rotary_emb.inv_freq";
    const size_t nbytes = strlen(name);
    return nbytes >= sizeof suffix - 1 && strcmp(name + nbytes - (sizeof suffix - 1), suffix) == 0;
}

const tess_model_tensor *tess_model_dir_unclaimed(const tess_model_dir *dir, int64_t idx)
{
    for (int64_t i = 0; i < dir->tensor_numel; i++)
        if (!dir->is_claimed[i] && !is_never_a_weight(dir->tensor[i].name) && idx-- == 0)
            return &dir->tensor[i];
    return NULL;
}

tess_status tess_model_dir_read(const tess_model_dir *dir, const tess_model_tensor *tensor,
                                int64_t first_nbytes, size_t nbytes, void *dst)
{
    if (tensor->cut != NULL)
        return tess_flux_cut_read(dir, tensor->cut, first_nbytes, nbytes, dst);
    if (tensor->gguf != NULL)
        return tess_gguf_read_rows(dir->gguf, tensor->gguf, tensor->head_dim, first_nbytes, nbytes,
                                   dst);
    if (tensor->packed != NULL)
        return tess_packed_read(dir, tensor, first_nbytes, nbytes, dst);
    return tess_safetensors_read(dir->file[tensor->file_idx].st, tensor->st, first_nbytes, nbytes,
                                 dst);
}

static tess_status compare_bytes(const tess_model_dir *dir, const tess_model_tensor *a,
                                 const tess_model_tensor *b, unsigned char *piece, bool *is_same)
{
    const int64_t nbytes = a->st->nbytes;
    for (int64_t at = 0; at < nbytes && *is_same; at += COMPARE_NBYTES) {
        const size_t part = (size_t)TESS_MIN(nbytes - at, (int64_t)COMPARE_NBYTES);
        TESS_TRY(tess_model_dir_read(dir, a, at, part, piece));
        TESS_TRY(tess_model_dir_read(dir, b, at, part, piece + COMPARE_NBYTES));
        *is_same = memcmp(piece, piece + COMPARE_NBYTES, part) == 0;
    }
    return TESS_OK;
}

static tess_status check_same_kind(const tess_model_dir *dir, const tess_model_tensor *a,
                                   const tess_model_tensor *b, const char *why)
{
    const tess_st_tensor *x = a->st, *y = b->st;
    char shape[128], other[128];
    tess_st_shape_text(x->dim, x->dim_numel, shape, sizeof shape);
    tess_st_shape_text(y->dim, y->dim_numel, other, sizeof other);
    TESS_CHECK(x->dtype == y->dtype && x->dim_numel == y->dim_numel &&
                   memcmp(x->dim, y->dim, (size_t)x->dim_numel * sizeof *x->dim) == 0,
               TESS_E_FORMAT, "'%s': tensor '%s' (%s %s) differs from '%s' (%s %s), %s", dir->path,
               a->name, tess_st_dtype_name(x->dtype), shape, b->name, tess_st_dtype_name(y->dtype),
               other, why);
    return TESS_OK;
}

tess_status tess_model_dir_same(const tess_model_dir *dir, const tess_model_tensor *a,
                                const tess_model_tensor *b, const char *why)
{
    void *piece = NULL;
    bool is_same = a->packed == NULL && b->packed == NULL;
    TESS_TRY(check_same_kind(dir, a, b, why));
    TESS_TRY(tess_alloc(2 * COMPARE_NBYTES, &piece));
    const tess_status st = compare_bytes(dir, a, b, piece, &is_same);
    tess_free(piece);
    TESS_TRY(st);
    TESS_CHECK(is_same, TESS_E_FORMAT, "'%s': tensor '%s' differs from '%s', %s", dir->path,
               a->name, b->name, why);
    return TESS_OK;
}

int tess_model_dir_file_numel(const tess_model_dir *dir) { return dir->file_numel; }

const char *tess_model_dir_file_name(const tess_model_dir *dir, int file_idx)
{
    return dir->file[file_idx].name;
}

int64_t tess_model_dir_file_nbytes(const tess_model_dir *dir, int file_idx)
{
    return dir->gguf != NULL ? tess_gguf_file_nbytes(dir->gguf)
                             : tess_safetensors_file_nbytes(dir->file[file_idx].st);
}

tess_status tess_model_dir_file_sha256(tess_model_dir *dir, int file_idx, tess_sha256 *out)
{
    TESS_CHECK(file_idx >= 0 && file_idx < dir->file_numel, TESS_E_ARG, "'%s': file %d of %d",
               dir->path, file_idx, dir->file_numel);
    weight_file *file = &dir->file[file_idx];
    if (!file->has_sha) {
        TESS_TRY(dir->gguf != NULL ? tess_gguf_sha256(dir->gguf, &file->sha)
                                   : tess_safetensors_sha256(file->st, &file->sha));
        file->has_sha = true;
    }
    *out = file->sha;
    return TESS_OK;
}

int64_t tess_model_dir_extra_numel(const tess_model_dir *dir) { return dir->extra_numel; }

const char *tess_model_dir_extra_name(const tess_model_dir *dir, int64_t idx)
{
    return idx >= 0 && idx < dir->extra_numel ? dir->extra[idx].name : NULL;
}
