#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "format/gguf_priv.h"
#include "format/partial_file.h"
#include "format/safetensors.h"
#include "format/text_priv.h"

struct tess_gguf_writer {
    tess_partial_file file;   /* a range a tensor */
    tess_gguf_tensor *tensor; /* [tensor_numel] names are owned */
    int64_t tensor_numel;
    int64_t align_nbytes;
    uint8_t *header; /* [header_nbytes] as written */
    int64_t header_nbytes;
};

/* A growing header. The first failure stays in `st`. */
typedef struct sink {
    uint8_t *byte;
    int64_t nbytes, room;
    tess_status st;
} sink;

static void put(sink *s, const void *src, size_t nbytes)
{
    void *grown = s->byte;
    int64_t end = 0;
    if (s->st == TESS_OK)
        s->st = tess_add_i64(s->nbytes, (int64_t)nbytes, &end);
    if (s->st == TESS_OK && end > s->room) {
        s->st = tess_realloc_array(s->room, end * 2, 1, &grown);
        if (s->st != TESS_OK)
            return;
        s->byte = grown;
        s->room = end * 2;
    }
    if (s->st == TESS_OK && nbytes > 0) {
        memcpy(s->byte + s->nbytes, src, nbytes);
        s->nbytes = end;
    }
}

static void put_number(sink *s, uint64_t x, size_t nbytes)
{
    uint8_t byte[8];
    for (size_t i = 0; i < nbytes; i++)
        byte[i] = (uint8_t)(x >> (8 * i) & 255);
    put(s, byte, nbytes);
}

static void put_text(sink *s, const char *text)
{
    put_number(s, strlen(text), 8);
    put(s, text, strlen(text));
}

static void put_array(sink *s, const tess_gguf_value *v)
{
    const char *const *text = v->data;
    put_number(s, v->of, 4);
    put_number(s, (uint64_t)v->numel, 8);
    for (int64_t i = 0; v->of == TESS_GGUF_STRING && i < v->numel; i++)
        put_text(s, text[i]);
    if (v->of != TESS_GGUF_STRING)
        put(s, v->data, (size_t)v->numel * tess_gguf_kind_nbytes(v->of));
}

static void put_pair(sink *s, const tess_gguf_pair *p)
{
    const tess_gguf_value *v = &p->value;
    const float f32 = (float)v->f64;
    put_text(s, p->key);
    put_number(s, v->kind, 4);
    if (v->kind == TESS_GGUF_STRING)
        put_text(s, v->text);
    else if (v->kind == TESS_GGUF_ARRAY)
        put_array(s, v);
    else if (v->kind == TESS_GGUF_F32)
        put(s, &f32, sizeof f32);
    else if (v->kind == TESS_GGUF_F64)
        put(s, &v->f64, sizeof v->f64);
    else
        put_number(s, (uint64_t)v->i64, tess_gguf_kind_nbytes(v->kind));
}

static void put_tensor(sink *s, const tess_gguf_tensor *t)
{
    put_text(s, t->name);
    put_number(s, (uint64_t)t->dim_numel, 4);
    for (int i = t->dim_numel - 1; i >= 0; i--)
        put_number(s, (uint64_t)t->dim[i], 8);
    put_number(s, (uint64_t)tess_gguf_type_of(t->format), 4);
    put_number(s, (uint64_t)t->offset_nbytes, 8);
}

/* ---- checks ---- */

static tess_status check_pair(const tess_gguf_writer *w, const tess_gguf_pair *pair, int64_t idx)
{
    const tess_gguf_value *v = &pair[idx].value;
    const size_t nbytes = strlen(pair[idx].key);
    TESS_CHECK(nbytes >= 1 && nbytes <= TESS_GGUF_KEY_MAX_NBYTES &&
                   tess_utf8_is_valid(pair[idx].key, nbytes),
               TESS_E_ARG, "'%s': key %" PRId64 ": expected 1 to %d bytes of UTF-8", w->file.path,
               idx, TESS_GGUF_KEY_MAX_NBYTES);
    TESS_CHECK((unsigned)v->kind < TESS_GGUF_KIND_NUMEL &&
                   (v->kind != TESS_GGUF_ARRAY ||
                    ((unsigned)v->of < TESS_GGUF_KIND_NUMEL && v->of != TESS_GGUF_ARRAY)),
               TESS_E_ARG, "'%s': key '%s': no such kind of value", w->file.path, pair[idx].key);
    for (int64_t i = 0; i < idx; i++)
        TESS_CHECK(strcmp(pair[i].key, pair[idx].key) != 0, TESS_E_ARG,
                   "'%s': key '%s' is given twice", w->file.path, pair[idx].key);
    return TESS_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static tess_status check_unique(const tess_gguf_writer *w)
{
    void *array = NULL;
    TESS_TRY(tess_alloc_array(w->tensor_numel, sizeof(char *), &array));
    const char **name = array;
    for (int64_t i = 0; i < w->tensor_numel; i++)
        name[i] = w->tensor[i].name;
    if (w->tensor_numel > 1)
        qsort(name, (size_t)w->tensor_numel, sizeof *name, by_name);
    tess_status st = TESS_OK;
    for (int64_t i = 1; i < w->tensor_numel && st == TESS_OK; i++)
        if (strcmp(name[i - 1], name[i]) == 0)
            st = TESS_FAIL(TESS_E_ARG, "'%s': tensor '%s' is given twice", w->file.path, name[i]);
    tess_free(array);
    return st;
}

static tess_status copy_tensor(tess_gguf_writer *w, const tess_gguf_tensor *t)
{
    char where[PATH_MAX + 256], *name = NULL;
    tess_gguf_tensor *copy = &w->tensor[w->tensor_numel];
    TESS_CHECK(tess_st_name_is_valid(t->name) && strlen(t->name) < TESS_GGUF_NAME_NBYTES,
               TESS_E_ARG,
               "'%s': tensor name '%s': expected 1 to %d bytes, no '..', no leading "
               "'/', no backslash",
               w->file.path, t->name, TESS_GGUF_NAME_NBYTES - 1);
    TESS_CHECK(tess_gguf_type_of(t->format) >= 0, TESS_E_UNSUPPORTED,
               "'%s': tensor '%s': GGUF has no type for %s", w->file.path, t->name,
               tess_format_name(t->format));
    TESS_CHECK(t->dim_numel >= 1 && t->dim_numel <= TESS_GGUF_DIM_MAX, TESS_E_ARG,
               "'%s': tensor '%s' has %d dimensions, expected 1 to %d", w->file.path, t->name,
               t->dim_numel, TESS_GGUF_DIM_MAX);
    TESS_TRY(tess_strdup(t->name, &name));
    *copy = *t;
    copy->name = name;
    w->tensor_numel++;
    snprintf(where, sizeof where, "'%s': tensor '%s'", w->file.path, t->name);
    return tess_gguf_sizes(where, TESS_E_RANGE, copy);
}

/* Places relative to the data. */
static tess_status place_tensors(tess_gguf_writer *w, int64_t *data_nbytes)
{
    int64_t at = 0;
    for (int64_t i = 0; i < w->tensor_numel; i++) {
        w->tensor[i].offset_nbytes = at;
        TESS_TRY(tess_add_i64(at, w->tensor[i].nbytes, &at));
        TESS_CHECK(at <= INT64_MAX - w->align_nbytes, TESS_E_RANGE, "'%s': sizes overflow",
                   w->file.path);
        at = tess_round_up(at, w->align_nbytes);
    }
    *data_nbytes = at;
    return TESS_OK;
}

/* ---- file ---- */

static tess_status start_file(tess_gguf_writer *w, int64_t data_nbytes)
{
    const int64_t first = tess_round_up(w->header_nbytes, w->align_nbytes);
    int64_t file_nbytes = 0;
    TESS_TRY(tess_add_i64(first, data_nbytes, &file_nbytes));
    for (int64_t i = 0; i < w->tensor_numel; i++)
        w->file.range[i] = (tess_partial_range){.name = w->tensor[i].name,
                                                .offset_nbytes = first + w->tensor[i].offset_nbytes,
                                                .nbytes = w->tensor[i].nbytes};
    /* new bytes are zeros: the padding */
    return tess_partial_file_start(&w->file, w->header, (size_t)w->header_nbytes, file_nbytes);
}

static tess_status start(tess_gguf_writer *w, const tess_gguf_pair *pair, int64_t pair_numel)
{
    sink header = {0};
    int64_t data_nbytes = 0;
    for (int64_t i = 0; i < pair_numel; i++) {
        TESS_TRY(check_pair(w, pair, i));
        TESS_CHECK(strcmp(pair[i].key, "general.alignment") != 0, TESS_E_ARG,
                   "'%s': general.alignment is the writer's own", w->file.path);
    }
    TESS_TRY(check_unique(w));
    TESS_TRY(place_tensors(w, &data_nbytes));
    put(&header, "GGUF", 4);
    put_number(&header, 3, 4);
    put_number(&header, (uint64_t)w->tensor_numel, 8);
    put_number(&header, (uint64_t)pair_numel, 8);
    for (int64_t i = 0; i < pair_numel; i++)
        put_pair(&header, &pair[i]);
    for (int64_t i = 0; i < w->tensor_numel; i++)
        put_tensor(&header, &w->tensor[i]);
    w->header = header.byte;
    w->header_nbytes = header.nbytes;
    return header.st == TESS_OK ? start_file(w, data_nbytes) : header.st;
}

tess_status tess_gguf_writer_create(tess_io *io, const char *path, const tess_gguf_pair *pair,
                                    int64_t pair_numel, const tess_gguf_tensor *tensor,
                                    int64_t tensor_numel, tess_gguf_writer **out)
{
    void *object = NULL, *table = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_gguf_writer), &object));
    tess_gguf_writer *w = object;
    w->align_nbytes = TESS_GGUF_ALIGN_NBYTES;
    tess_status st = tess_partial_file_init(&w->file, io, path, tensor_numel);
    if (st == TESS_OK)
        st = tess_alloc_array(tensor_numel, sizeof *w->tensor, &table);
    w->tensor = table;
    for (int64_t i = 0; st == TESS_OK && i < tensor_numel; i++)
        st = copy_tensor(w, &tensor[i]);
    if (st == TESS_OK)
        st = start(w, pair, pair_numel);
    if (st != TESS_OK) {
        tess_gguf_writer_destroy(&w);
        return st;
    }
    *out = w;
    return TESS_OK;
}

tess_status tess_gguf_writer_append(tess_gguf_writer *writer, int64_t tensor_idx, const void *src,
                                    size_t nbytes)
{
    return tess_partial_file_append(&writer->file, tensor_idx, src, nbytes);
}

tess_status tess_gguf_writer_set(tess_gguf_writer *writer, const char *key, const char *value)
{
    const tess_gguf_pair pair = {key, {.kind = TESS_GGUF_STRING, .text = value}};
    const size_t value_nbytes = strlen(value);
    sink mark = {0};
    put_pair(&mark, &pair);
    TESS_TRY(mark.st);
    /* Key, kind and length: only the bytes of the text differ. */
    const size_t skip = (size_t)mark.nbytes - value_nbytes;
    const uint8_t *at = memmem(writer->header, (size_t)writer->header_nbytes, mark.byte, skip);
    tess_free(mark.byte);
    TESS_CHECK(at != NULL && tess_utf8_is_valid(value, value_nbytes), TESS_E_ARG,
               "'%s': key '%s': expected a string of as many bytes", writer->file.path, key);
    return tess_partial_file_patch(&writer->file, at + skip - writer->header, value, value_nbytes);
}

tess_status tess_gguf_writer_finish(tess_gguf_writer *writer)
{
    return tess_partial_file_finish(&writer->file);
}

void tess_gguf_writer_destroy(tess_gguf_writer **writer)
{
    tess_gguf_writer *w = *writer;
    if (w == NULL)
        return;
    tess_partial_file_fini(&w->file);
    for (int64_t i = 0; i < w->tensor_numel; i++)
        tess_free((void *)(uintptr_t)w->tensor[i].name);
    tess_free(w->tensor);
    tess_free(w->header);
    tess_free(w);
    *writer = NULL;
}
