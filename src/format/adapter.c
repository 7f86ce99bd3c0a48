#include "format/adapter.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "core/memory.h"
#include "format/adapter_priv.h"
#include "format/gguf_llm.h"

const char *tess_adapter_dialect_name(tess_adapter_dialect dialect)
{
    static const char *const name[] = {
#define X(name, text, is_written) [TESS_ADAPTER_##name] = text,
        TESS_ADAPTER_DIALECT_LIST(X)
#undef X
    };
    return name[dialect];
}

/* ---- keys ---- */

int adapter_role_of(const char *key, size_t *stem_nbytes)
{
    static const struct {
        const char *text;
        int role;
    } suffix[] = {
        {".lora_A.weight", TESS_ADAPTER_A},
        {".lora_down.weight", TESS_ADAPTER_A},
        {".down.weight", TESS_ADAPTER_A},
        {".lora_B.weight", TESS_ADAPTER_B},
        {".lora_up.weight", TESS_ADAPTER_B},
        {".up.weight", TESS_ADAPTER_B},
        {".dora_scale", TESS_ADAPTER_MAGNITUDE},
        {".lora_magnitude_vector", TESS_ADAPTER_MAGNITUDE},
        {".lora_magnitude_vector.weight", TESS_ADAPTER_MAGNITUDE},
        {".alpha", ADAPTER_ALPHA},
    };
    const size_t nbytes = strlen(key);
    for (int i = 0; i < TESS_NELEM(suffix); i++) {
        const size_t tail = strlen(suffix[i].text);
        if (nbytes > tail && strcmp(key + nbytes - tail, suffix[i].text) == 0) {
            *stem_nbytes = nbytes - tail;
            return suffix[i].role;
        }
    }
    return -1;
}

const char *adapter_other_kind(const char *key)
{
    static const struct {
        const char *mark, *name;
    } kinds[] = {{".lokr_", "LoKr"}, {".hada_", "LoHa"}, {".oft_", "OFT"}};
    for (int i = 0; i < TESS_NELEM(kinds); i++)
        if (strstr(key, kinds[i].mark) != NULL)
            return kinds[i].name;
    return NULL;
}

/* A and B under any of their names, or what other adapters have: what tells one from a model. */
static bool has_adapter_keys(const tess_safetensors *file)
{
    for (int64_t i = 0; i < tess_safetensors_numel(file); i++) {
        const char *key = tess_safetensors_at(file, i)->name;
        if (strstr(key, ".lora_A.") != NULL || strstr(key, ".lora_down.") != NULL ||
            strstr(key, ".lora.down.") != NULL || strstr(key, ".processor.") != NULL ||
            adapter_other_kind(key) != NULL)
            return true;
    }
    return false;
}

static bool ends_in(const char *text, const char *tail)
{
    const size_t text_nbytes = strlen(text), tail_nbytes = strlen(tail);
    return text_nbytes >= tail_nbytes && strcmp(text + text_nbytes - tail_nbytes, tail) == 0;
}

static tess_status is_adapter_file(tess_io *io, const char *path, bool *out)
{
    *out = false;
    if (ends_in(path, ".safetensors")) {
        tess_safetensors *file = NULL;
        TESS_TRY(tess_safetensors_open(io, path, &file));
        *out = has_adapter_keys(file);
        tess_safetensors_close(&file);
    } else if (tess_gguf_is_path(path)) {
        tess_gguf *file = NULL;
        TESS_TRY(tess_gguf_open(io, path, &file));
        const tess_gguf_value *type = tess_gguf_value_of(file, "general.type");
        *out = type != NULL && type->kind == TESS_GGUF_STRING && strcmp(type->text, "adapter") == 0;
        tess_gguf_close(&file);
    }
    return TESS_OK;
}

static tess_status holds_file(tess_io *io, const char *dir, const char *name, bool *out)
{
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    char *path = NULL;
    TESS_TRY(tess_asprintf(&path, "%s/%s", dir, name));
    const tess_status st = tess_io_stat(io, path, &kind, &nbytes);
    tess_free(path);
    *out = st == TESS_OK && kind == TESS_IO_FILE;
    return st;
}

tess_status tess_adapter_locate(tess_io *io, const char *path, char **out)
{
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    const char *found = NULL;
    TESS_TRY(tess_io_stat(io, path, &kind, &nbytes));
    for (int i = 0; i < TESS_ADAPTER_DIALECT_NUMEL && kind == TESS_IO_DIR && found == NULL; i++) {
        const char *name = adapter_file_name((tess_adapter_dialect)i);
        bool is_there = false;
        if (name != NULL)
            TESS_TRY(holds_file(io, path, name, &is_there));
        found = is_there ? name : NULL;
    }
    return found != NULL ? tess_asprintf(out, "%s/%s", path, found) : tess_strdup(path, out);
}

tess_status tess_adapter_is_path(tess_io *io, const char *path, bool *out)
{
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    char *file = NULL;
    TESS_TRY(tess_adapter_locate(io, path, &file));
    tess_status st = tess_io_stat(io, file, &kind, &nbytes);
    if (st == TESS_OK)
        st = kind == TESS_IO_DIR ? holds_file(io, file, "adapter_config.json", out)
                                 : is_adapter_file(io, file, out);
    tess_free(file);
    return st;
}

/* ---- modules ---- */

tess_status adapter_add(tess_adapter *a, const char *path, size_t path_nbytes, adapter_module **out)
{
    char *copy = NULL;
    if (a->numel == a->room) {
        void *grown = a->module;
        const int64_t room = a->room * 2 + 64;
        TESS_TRY(tess_realloc_array(a->room, room, sizeof *a->module, &grown));
        a->module = grown;
        a->room = room;
    }
    TESS_TRY(tess_strndup(path, path_nbytes, &copy));
    *out = &a->module[a->numel++];
    **out = (adapter_module){.is = {.path = copy}};
    return TESS_OK;
}

tess_status adapter_check_tensor(const tess_adapter *a, const tess_st_tensor *t,
                                 tess_adapter_part part)
{
    char shape[256];
    TESS_CHECK(t->dtype == TESS_ST_F32 || t->dtype == TESS_ST_BF16 || t->dtype == TESS_ST_F16,
               TESS_E_UNSUPPORTED, "'%s': tensor '%s': expected dtype F32, BF16 or F16, found %s",
               a->path, t->name, tess_st_dtype_name(t->dtype));
    tess_st_shape_text(t->dim, t->dim_numel, shape, sizeof shape);
    if (part == TESS_ADAPTER_MAGNITUDE)
        TESS_CHECK((t->dim_numel == 1 || (t->dim_numel == 2 && t->dim[1] == 1)) && t->numel > 0,
                   TESS_E_UNSUPPORTED,
                   "'%s': tensor '%s': expected one magnitude per output, [out] or [out, 1], found "
                   "shape %s",
                   a->path, t->name, shape);
    else
        TESS_CHECK(t->dim_numel == 2 && t->numel > 0, TESS_E_FORMAT,
                   "'%s': tensor '%s': expected a matrix, found shape %s", a->path, t->name, shape);
    return TESS_OK;
}

adapter_slice adapter_whole(const tess_st_tensor *t)
{
    return (adapter_slice){.st = t,
                           .row_numel = t->dim_numel > 0 ? t->dim[0] : 1,
                           .col_numel = t->dim_numel == 2 ? t->dim[1] : 1};
}

static int by_path(const void *a, const void *b)
{
    return strcmp(((const adapter_module *)a)->is.path, ((const adapter_module *)b)->is.path);
}

static tess_status check_modules(tess_adapter *a)
{
    TESS_CHECK(a->numel > 0, TESS_E_FORMAT, "'%s': holds no adapter", a->path);
    qsort(a->module, (size_t)a->numel, sizeof *a->module, by_path);
    for (int64_t i = 1; i < a->numel; i++)
        TESS_CHECK(strcmp(a->module[i - 1].is.path, a->module[i].is.path) != 0, TESS_E_FORMAT,
                   "'%s': module '%s' is adapted twice", a->path, a->module[i].is.path);
    return TESS_OK;
}

static tess_status list_metadata(tess_adapter *a)
{
    const size_t head = sizeof ADAPTER_GGUF_PREFIX - 1;
    const int64_t numel = a->gguf != NULL ? tess_gguf_pair_numel(a->gguf)
                                          : tess_safetensors_metadata_numel(a->weights);
    TESS_TRY(tess_alloc_array(numel, sizeof *a->pair, (void **)&a->pair));
    for (int64_t i = 0; i < numel; i++) {
        if (a->gguf == NULL) {
            a->pair[a->pair_numel++] = tess_safetensors_metadata_at(a->weights, i);
            continue;
        }
        const tess_gguf_pair *pair = tess_gguf_pair_at(a->gguf, i);
        if (pair->value.kind == TESS_GGUF_STRING &&
            strncmp(pair->key, ADAPTER_GGUF_PREFIX, head) == 0)
            a->pair[a->pair_numel++] = (tess_st_pair){pair->key + head, pair->value.text};
    }
    return TESS_OK;
}

/* ---- open ---- */

static tess_status open_source(tess_adapter *a, const tess_adapter_options *options)
{
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    TESS_TRY(tess_io_stat(a->io, a->path, &kind, &nbytes));
    if (kind == TESS_IO_DIR) {
        TESS_TRY(tess_peft_dir_open(a->io, a->path, &a->peft));
        a->weights = tess_peft_dir_weights(a->peft);
        return adapter_open_peft(a);
    }
    if (tess_gguf_is_path(a->path)) {
        TESS_TRY(tess_gguf_open(a->io, a->path, &a->gguf));
        return adapter_open_gguf(a, options);
    }
    TESS_TRY(tess_safetensors_open(a->io, a->path, &a->own));
    a->weights = a->own;
    return adapter_open_flux(a, options);
}

tess_status tess_adapter_open(tess_io *io, const char *path, const tess_adapter_options *options,
                              tess_adapter **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_adapter), &object));
    static const tess_adapter_options plain;
    tess_adapter *a = object;
    a->io = io;
    tess_status st = tess_adapter_locate(io, path, &a->path);
    if (st == TESS_OK)
        st = open_source(a, options != NULL ? options : &plain);
    if (st == TESS_OK)
        st = check_modules(a);
    if (st == TESS_OK)
        st = list_metadata(a);
    if (st != TESS_OK) {
        tess_adapter_close(&a);
        return st;
    }
    *out = a;
    return TESS_OK;
}

void tess_adapter_close(tess_adapter **adapter)
{
    tess_adapter *a = *adapter;
    if (a == NULL)
        return;
    for (int64_t i = 0; i < a->numel; i++)
        tess_free((void *)(uintptr_t)a->module[i].is.path);
    tess_free(a->module);
    tess_free(a->pair);
    tess_gguf_close(&a->gguf);
    tess_peft_dir_close(&a->peft);
    tess_safetensors_close(&a->own);
    tess_free(a->path);
    tess_free(a);
    *adapter = NULL;
}

/* ---- what it holds ---- */

tess_adapter_dialect tess_adapter_dialect_of(const tess_adapter *adapter)
{
    return adapter->dialect;
}

bool tess_adapter_is_flux(const tess_adapter *adapter) { return adapter->is_flux; }

int64_t tess_adapter_numel(const tess_adapter *adapter) { return adapter->numel; }

const tess_adapter_module *tess_adapter_at(const tess_adapter *adapter, int64_t idx)
{
    return idx >= 0 && idx < adapter->numel ? &adapter->module[idx].is : NULL;
}

int64_t tess_adapter_find(const tess_adapter *adapter, const char *path)
{
    const adapter_module key = {.is = {.path = path}};
    const adapter_module *found =
        bsearch(&key, adapter->module, (size_t)adapter->numel, sizeof key, by_path);
    return found != NULL ? found - adapter->module : -1;
}

static tess_dtype dtype_of(const adapter_slice *slice)
{
    if (slice->gguf != NULL)
        return slice->gguf->format == TESS_FORMAT_F32   ? TESS_F32
               : slice->gguf->format == TESS_FORMAT_F16 ? TESS_F16
                                                        : TESS_BF16;
    return slice->st->dtype == TESS_ST_F32   ? TESS_F32
           : slice->st->dtype == TESS_ST_F16 ? TESS_F16
                                             : TESS_BF16;
}

tess_dtype tess_adapter_dtype(const tess_adapter *adapter)
{
    const tess_dtype dt = dtype_of(&adapter->module[0].part[TESS_ADAPTER_A]);
    for (int64_t i = 0; i < adapter->numel; i++)
        for (int part = TESS_ADAPTER_A; part <= TESS_ADAPTER_B; part++)
            if (dtype_of(&adapter->module[i].part[part]) != dt)
                return TESS_F32;
    return dt;
}

int64_t tess_adapter_skipped_numel(const tess_adapter *adapter) { return adapter->skipped_numel; }

const char *tess_adapter_metadata(const tess_adapter *adapter, const char *key)
{
    for (int64_t i = 0; i < adapter->pair_numel; i++)
        if (strcmp(adapter->pair[i].key, key) == 0)
            return adapter->pair[i].value;
    return NULL;
}

const char *tess_adapter_base_name(const tess_adapter *adapter)
{
    const char *stated = adapter->peft != NULL ? tess_peft_dir_base_name(adapter->peft) : "";
    return *stated != '\0' ? stated : tess_adapter_metadata(adapter, "base.name");
}

/* ---- values ---- */

static int64_t row_of(const adapter_slice *slice, int64_t row)
{
    if (slice->head_dim > 0)
        return tess_gguf_row(row, slice->head_dim);
    if (slice->is_swapped)
        row = row < slice->row_numel / 2 ? row + slice->row_numel / 2 : row - slice->row_numel / 2;
    return slice->first_row + row;
}

static void widen(tess_dtype dt, const char *src, int64_t numel, float *dst)
{
    for (int64_t i = 0; i < numel; i++) {
        uint16_t half = 0;
        if (dt == TESS_F32) {
            memcpy(&dst[i], src + i * 4, sizeof dst[i]);
            continue;
        }
        memcpy(&half, src + i * 2, sizeof half);
        const uint32_t bits = (uint32_t)half << 16;
        if (dt == TESS_F16)
            dst[i] = tess_f16_to_f32(half);
        else
            memcpy(&dst[i], &bits, sizeof bits);
    }
}

tess_status adapter_read_slice(const tess_adapter *a, const adapter_slice *slice, float *dst)
{
    const tess_dtype dt = dtype_of(slice);
    const int64_t item = (int64_t)tess_dtype_block_nbytes(dt);
    const int64_t row_nbytes = slice->gguf != NULL ? slice->gguf->nbytes / slice->gguf->dim[0]
                               : slice->st->dim_numel > 0 ? slice->st->nbytes / slice->st->dim[0]
                                                          : item;
    const int64_t nbytes = row_nbytes * slice->row_numel;
    void *raw = NULL;
    TESS_CHECK(slice->head_dim >= 0, TESS_E_CONFIG,
               "'%s': rows of '%s' are interleaved by heads, whose size is not in the file; give "
               "the model it adapts with --base",
               a->path, slice->gguf->name);
    TESS_TRY(tess_alloc((size_t)nbytes, &raw));
    const int64_t first = slice->first_row * row_nbytes;
    const tess_status st =
        slice->gguf != NULL
            ? tess_gguf_read(a->gguf, slice->gguf, first, (size_t)nbytes, raw)
            : tess_safetensors_read(a->weights, slice->st, first, (size_t)nbytes, raw);
    for (int64_t row = 0; row < slice->row_numel && st == TESS_OK; row++)
        widen(dt,
              (const char *)raw + (row_of(slice, row) - slice->first_row) * row_nbytes +
                  slice->first_col * item,
              slice->col_numel, dst + row * slice->col_numel);
    tess_free(raw);
    return st;
}

tess_status tess_adapter_read(const tess_adapter *adapter, int64_t idx, tess_adapter_part part,
                              float *dst)
{
    TESS_CHECK(idx >= 0 && idx < adapter->numel, TESS_E_ARG, "'%s': module %" PRId64 " of %" PRId64,
               adapter->path, idx, adapter->numel);
    const adapter_module *m = &adapter->module[idx];
    TESS_CHECK(part != TESS_ADAPTER_MAGNITUDE || m->is.has_magnitude, TESS_E_ARG,
               "'%s': module '%s' has no magnitudes", adapter->path, m->is.path);
    return adapter_read_slice(adapter, &m->part[part], dst);
}
