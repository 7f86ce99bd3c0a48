#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "format/peft_priv.h"
#include "format/text_priv.h"

static const char prefix[] = "base_model.model.";
static const char *const suffix[] = {[TESS_PEFT_A] = ".lora_A.weight",
                                     [TESS_PEFT_B] = ".lora_B.weight",
                                     [TESS_PEFT_MAGNITUDE] = ".lora_magnitude_vector"};

struct tess_peft_dir {
    tess_json *root; /* adapter_config.json */
    const char *base_name;
    tess_peft_spec *spec;
    tess_safetensors *weights;
    tess_peft_adapter *adapter; /* [adapter_numel] by path */
    char **path;                /* [adapter_numel] what their paths point to */
    int64_t adapter_numel;
    int part_numel; /* of an adapter */
};

tess_status tess_peft_tensor_name(const char *module_path, tess_peft_part part,
                                  char name[TESS_ST_NAME_MAX_NBYTES + 1])
{
    const int nbytes = snprintf(name, TESS_ST_NAME_MAX_NBYTES + 1, "%s%s%s", prefix, module_path,
                                suffix[part]);
    TESS_CHECK(nbytes > 0 && nbytes <= TESS_ST_NAME_MAX_NBYTES, TESS_E_RANGE,
               "adapter of module '%.64s...': a tensor name of %d bytes, at most %d are legal",
               module_path, nbytes, TESS_ST_NAME_MAX_NBYTES);
    return TESS_OK;
}

tess_status tess_peft_saved_name(const char *tensor, char name[TESS_ST_NAME_MAX_NBYTES + 1])
{
    const int nbytes = snprintf(name, TESS_ST_NAME_MAX_NBYTES + 1, "%s%s", prefix, tensor);
    TESS_CHECK(nbytes > 0 && nbytes <= TESS_ST_NAME_MAX_NBYTES, TESS_E_RANGE,
               "tensor '%.64s...' of modules_to_save: a name of %d bytes, at most %d are legal",
               tensor, nbytes, TESS_ST_NAME_MAX_NBYTES);
    return TESS_OK;
}

/* Module path and part of a tensor name; part -1 when it is none of ours. */
static int split_name(const char *name, size_t *path_nbytes)
{
    const size_t nbytes = strlen(name), head = strlen(prefix);
    if (strncmp(name, prefix, head) != 0)
        return -1;
    for (int part = 0; part < TESS_NELEM(suffix); part++) {
        const size_t tail = strlen(suffix[part]);
        if (nbytes > head + tail && strcmp(name + nbytes - tail, suffix[part]) == 0) {
            *path_nbytes = nbytes - head - tail;
            return part;
        }
    }
    return -1;
}

/* "<path>.base_layer.weight" or ".bias" of a path with an adapter. */
bool tess_peft_is_base_copy(const tess_peft_dir *dir, const char *name)
{
    static const char middle[] = ".base_layer.";
    char a[TESS_ST_NAME_MAX_NBYTES + 1];
    const char *at = strstr(name, middle);
    if (at == NULL ||
        (strcmp(at, ".base_layer.weight") != 0 && strcmp(at, ".base_layer.bias") != 0))
        return false;
    const int nbytes =
        snprintf(a, sizeof a, "%s%.*s%s", prefix, (int)(at - name), name, suffix[TESS_PEFT_A]);
    return nbytes < (int)sizeof a && tess_safetensors_find(dir->weights, a) != NULL;
}

/* A tensor of the directory: a part of an adapter, or one of a module that is saved whole. */
static tess_status check_tensor(const tess_peft_dir *dir, const tess_st_tensor *t, int part)
{
    char shape[256];
    const char *file = tess_safetensors_path(dir->weights);
    const bool has_prefix = strncmp(t->name, prefix, strlen(prefix)) == 0;
    const char *bare = t->name + strlen(prefix); /* only where it has the prefix */
    const bool is_saved =
        part < 0 && has_prefix &&
        (tess_peft_spec_saves(dir->spec, bare) || tess_peft_is_base_copy(dir, bare));
    TESS_CHECK(is_saved || (part >= 0 && part < dir->part_numel), TESS_E_UNSUPPORTED,
               "'%s': tensor '%s' is not supported, expected only "
               "base_model.model.<module>.lora_A.weight and .lora_B.weight, .lora_magnitude_vector "
               "with use_dora, and tensors of modules_to_save",
               file, t->name);
    TESS_CHECK(t->dtype == TESS_ST_F32 || t->dtype == TESS_ST_BF16 || t->dtype == TESS_ST_F16,
               TESS_E_FORMAT, "'%s': tensor '%s': expected dtype F32, BF16 or F16, found %s", file,
               t->name, tess_st_dtype_name(t->dtype));
    tess_st_shape_text(t->dim, t->dim_numel, shape, sizeof shape);
    const bool is_vector = part == TESS_PEFT_MAGNITUDE || (is_saved && t->dim_numel == 1);
    TESS_CHECK(t->dim_numel == (is_vector ? 1 : 2) && t->numel > 0, TESS_E_FORMAT,
               "'%s': tensor '%s': expected a %s, found shape %s", file, t->name,
               is_vector ? "vector" : "matrix", shape);
    return TESS_OK;
}

static tess_status find_part(const tess_peft_dir *dir, const char *path, int part,
                             const tess_st_tensor **out)
{
    static const char *const part_name[] = {"lora_A", "lora_B", "lora_magnitude_vector"};
    char name[TESS_ST_NAME_MAX_NBYTES + 1];
    TESS_TRY(tess_peft_tensor_name(path, (tess_peft_part)part, name));
    *out = tess_safetensors_find(dir->weights, name);
    TESS_CHECK(*out != NULL, TESS_E_FORMAT, "'%s': module '%s' has lora_A but no %s",
               tess_safetensors_path(dir->weights), path, part_name[part]);
    return TESS_OK;
}

static tess_status check_adapter(const tess_peft_dir *dir, tess_peft_adapter *a)
{
    tess_peft_match match = {.is_target = false};
    const tess_peft_module module = {.path = a->path};
    const char *file = tess_safetensors_path(dir->weights);
    const tess_st_tensor *part[TESS_PEFT_PART_MAX] = {NULL};
    for (int i = 0; i < dir->part_numel; i++)
        TESS_TRY(find_part(dir, a->path, i, &part[i]));
    const tess_st_tensor *b = part[TESS_PEFT_B], *m = part[TESS_PEFT_MAGNITUDE];
    a->out_numel = b->dim[0];
    TESS_TRY(tess_peft_spec_match(dir->spec, &module, &match));
    TESS_CHECK(match.is_target, TESS_E_FORMAT,
               "'%s': module '%s' is not among the target_modules of adapter_config.json", file,
               a->path);
    TESS_CHECK(a->rank == match.rank && b->dim[1] == match.rank, TESS_E_FORMAT,
               "'%s': module '%s': expected rank %" PRId64
               " from adapter_config.json, found lora_A [%" PRId64 ", %" PRId64
               "] and lora_B [%" PRId64 ", %" PRId64 "]",
               file, a->path, match.rank, a->rank, a->in_numel, b->dim[0], b->dim[1]);
    TESS_CHECK(m == NULL || m->dim[0] == b->dim[0], TESS_E_FORMAT,
               "'%s': module '%s': expected %" PRId64 " magnitudes as lora_B has rows, found "
               "%" PRId64,
               file, a->path, b->dim[0], m != NULL ? m->dim[0] : 0);
    return TESS_OK;
}

static int by_path(const void *a, const void *b)
{
    return strcmp(((const tess_peft_adapter *)a)->path, ((const tess_peft_adapter *)b)->path);
}

/* Fill one adapter from its A; the other parts must be there too. */
static tess_status add_adapter(tess_peft_dir *dir, const tess_st_tensor *t, size_t path_nbytes)
{
    char *path = NULL;
    TESS_TRY(tess_strndup(t->name + strlen(prefix), path_nbytes, &path));
    dir->path[dir->adapter_numel] = path;
    tess_peft_adapter *a = &dir->adapter[dir->adapter_numel++];
    a->path = path;
    a->rank = t->dim[0];
    a->in_numel = t->dim[1];
    return check_adapter(dir, a);
}

static tess_status add_adapters(tess_peft_dir *dir)
{
    const int64_t tensor_numel = tess_safetensors_numel(dir->weights);
    int64_t part_numel = 0;
    for (int64_t i = 0; i < tensor_numel; i++) {
        const tess_st_tensor *t = tess_safetensors_at(dir->weights, i);
        size_t path_nbytes = 0;
        const int part = split_name(t->name, &path_nbytes);
        TESS_TRY(check_tensor(dir, t, part));
        part_numel += part >= 0;
    }
    for (int64_t i = 0; i < tensor_numel; i++) {
        const tess_st_tensor *t = tess_safetensors_at(dir->weights, i);
        size_t path_nbytes = 0;
        if (split_name(t->name, &path_nbytes) == TESS_PEFT_A)
            TESS_TRY(add_adapter(dir, t, path_nbytes));
    }
    const char *file = tess_safetensors_path(dir->weights);
    TESS_CHECK(dir->adapter_numel > 0, TESS_E_FORMAT, "'%s': holds no adapter", file);
    TESS_CHECK(part_numel == dir->part_numel * dir->adapter_numel, TESS_E_FORMAT,
               "'%s': %" PRId64 " lora_A but %" PRId64 " tensors of other parts, expected %d each",
               file, dir->adapter_numel, part_numel - dir->adapter_numel, dir->part_numel - 1);
    return TESS_OK;
}

static tess_status read_adapters(tess_peft_dir *dir)
{
    void *adapter = NULL, *path = NULL;
    const int64_t tensor_numel = tess_safetensors_numel(dir->weights);
    dir->part_numel = tess_peft_part_numel(tess_peft_spec_options(dir->spec));
    TESS_TRY(tess_alloc_array(tensor_numel, sizeof(tess_peft_adapter), &adapter));
    dir->adapter = adapter;
    TESS_TRY(tess_alloc_array(tensor_numel, sizeof(char *), &path));
    dir->path = path;
    TESS_TRY(add_adapters(dir));
    qsort(dir->adapter, (size_t)dir->adapter_numel, sizeof *dir->adapter, by_path);
    return TESS_OK;
}

/* What torch pickled holds code; files of old versions of peft are such. */
static tess_status refuse_pickle(tess_io *io, const char *path)
{
    char *file = NULL;
    tess_io_kind kind[2] = {TESS_IO_MISSING, TESS_IO_MISSING};
    int64_t nbytes = 0;
    for (int i = 0; i < 2; i++) {
        TESS_TRY(tess_asprintf(&file, "%s/adapter_model.%s", path, i == 0 ? "safetensors" : "bin"));
        const tess_status st = tess_io_stat(io, file, &kind[i], &nbytes);
        tess_free(file);
        TESS_TRY(st);
    }
    TESS_CHECK(
        kind[0] != TESS_IO_MISSING || kind[1] == TESS_IO_MISSING, TESS_E_UNSUPPORTED,
        "'%s': found adapter_model.bin, but only adapter_model.safetensors is read; load the "
        "adapter in peft and save it again with save_pretrained",
        path);
    return TESS_OK;
}

static tess_status open_parts(tess_peft_dir *dir, tess_io *io, const char *path)
{
    char *file = NULL;
    TESS_TRY(refuse_pickle(io, path));
    TESS_TRY(tess_asprintf(&file, "%s/adapter_config.json", path));
    tess_status st = tess_json_read(io, file, &dir->root);
    tess_free(file);
    TESS_TRY(st);
    TESS_TRY(tess_peft_config_parse(dir->root, &dir->spec, &dir->base_name));
    TESS_TRY(tess_asprintf(&file, "%s/adapter_model.safetensors", path));
    st = tess_safetensors_open(io, file, &dir->weights);
    tess_free(file);
    TESS_TRY(st);
    return read_adapters(dir);
}

tess_status tess_peft_dir_open(tess_io *io, const char *path, tess_peft_dir **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_peft_dir), &object));
    tess_peft_dir *dir = object;
    const tess_status st = open_parts(dir, io, path);
    if (st != TESS_OK) {
        tess_peft_dir_close(&dir);
        return st;
    }
    *out = dir;
    return TESS_OK;
}

void tess_peft_dir_close(tess_peft_dir **dir)
{
    tess_peft_dir *d = *dir;
    if (d == NULL)
        return;
    for (int64_t i = 0; i < d->adapter_numel; i++)
        tess_free(d->path[i]);
    tess_free(d->path);
    tess_free(d->adapter);
    tess_safetensors_close(&d->weights);
    tess_peft_spec_destroy(&d->spec);
    tess_json_destroy(&d->root);
    tess_free(d);
    *dir = NULL;
}

const tess_peft_spec *tess_peft_dir_spec(const tess_peft_dir *dir) { return dir->spec; }

const char *tess_peft_dir_base_name(const tess_peft_dir *dir) { return dir->base_name; }

const char *tess_peft_dir_metadata(const tess_peft_dir *dir, const char *key)
{
    return tess_safetensors_metadata(dir->weights, key);
}

const tess_safetensors *tess_peft_dir_weights(const tess_peft_dir *dir) { return dir->weights; }

int64_t tess_peft_dir_adapter_numel(const tess_peft_dir *dir) { return dir->adapter_numel; }

const tess_peft_adapter *tess_peft_dir_adapter_at(const tess_peft_dir *dir, int64_t idx)
{
    return idx >= 0 && idx < dir->adapter_numel ? &dir->adapter[idx] : NULL;
}

const tess_peft_adapter *tess_peft_dir_find(const tess_peft_dir *dir, const char *module_path)
{
    const tess_peft_adapter key = {.path = module_path};
    return bsearch(&key, dir->adapter, (size_t)dir->adapter_numel, sizeof key, by_path);
}

int64_t tess_peft_dir_tensor_numel(const tess_peft_dir *dir)
{
    return tess_safetensors_numel(dir->weights);
}

const tess_st_tensor *tess_peft_dir_tensor_at(const tess_peft_dir *dir, int64_t idx,
                                              const char **name)
{
    const tess_st_tensor *t = tess_safetensors_at(dir->weights, idx);
    if (t != NULL)
        *name = t->name + strlen(prefix);
    return t;
}

const tess_st_tensor *tess_peft_dir_tensor(const tess_peft_dir *dir, const char *name)
{
    char full[TESS_ST_NAME_MAX_NBYTES + 1];
    const int nbytes = snprintf(full, sizeof full, "%s%s", prefix, name);
    return nbytes < (int)sizeof full ? tess_safetensors_find(dir->weights, full) : NULL;
}

tess_status tess_peft_dir_read(const tess_peft_dir *dir, const tess_st_tensor *tensor,
                               int64_t first_nbytes, size_t nbytes, void *dst)
{
    return tess_safetensors_read(dir->weights, tensor, first_nbytes, nbytes, dst);
}
