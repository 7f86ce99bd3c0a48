#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "format/json_priv.h"
#include "format/partial_file.h"
#include "format/safetensors.h"
#include "format/safetensors_priv.h"
#include "format/text_priv.h"

struct tess_safetensors_writer {
    tess_partial_file file; /* a range a tensor, in the caller's order */
    tess_st_tensor *tensor; /* [tensor_numel] likewise */
    char **name;            /* [tensor_numel] what their names point to */
    int64_t tensor_numel;
    char *header; /* [header_nbytes] as written */
    int64_t header_nbytes;
};

int tess_st_file_order(const tess_st_tensor *x, const tess_st_tensor *y)
{
    if (x->dtype != y->dtype)
        return x->dtype > y->dtype ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int by_file_order(const void *a, const void *b)
{
    return tess_st_file_order(*(tess_st_tensor *const *)a, *(tess_st_tensor *const *)b);
}

static int by_pair_key(const void *a, const void *b)
{
    return strcmp(((const tess_st_pair *)a)->key, ((const tess_st_pair *)b)->key);
}

static int by_tensor_name(const void *a, const void *b)
{
    return strcmp((*(tess_st_tensor *const *)a)->name, (*(tess_st_tensor *const *)b)->name);
}

static tess_status copy_tensor(tess_safetensors_writer *w, const tess_st_tensor *from)
{
    char tame[128], *name = NULL;
    TESS_CHECK(tess_st_name_is_valid(from->name) && strcmp(from->name, "__metadata__") != 0,
               TESS_E_ARG, "'%s': illegal tensor name '%s'", w->file.path,
               tess_text_tame(from->name, tame, sizeof tame));
    TESS_CHECK((unsigned)from->dtype < TESS_ST_DTYPE_NUMEL && from->dim_numel >= 0 &&
                   from->dim_numel <= TESS_ST_DIM_MAX,
               TESS_E_ARG, "'%s': tensor '%s' has dtype %d and %d dimensions", w->file.path,
               from->name, (int)from->dtype, from->dim_numel);
    for (int i = 0; i < from->dim_numel; i++)
        TESS_CHECK(from->dim[i] >= 0, TESS_E_ARG, "'%s': tensor '%s' has a negative extent",
                   w->file.path, from->name);
    TESS_TRY(tess_strdup(from->name, &name));
    w->name[w->tensor_numel] = name;
    tess_st_tensor *t = &w->tensor[w->tensor_numel++];
    *t = *from;
    t->name = name;
    return tess_st_sizes(name, TESS_E_RANGE, t);
}

static tess_status check_unique(const tess_safetensors_writer *w, tess_st_tensor **order)
{
    if (w->tensor_numel > 1)
        qsort(order, (size_t)w->tensor_numel, sizeof *order, by_tensor_name);
    for (int64_t i = 1; i < w->tensor_numel; i++)
        TESS_CHECK(strcmp(order[i - 1]->name, order[i]->name) != 0, TESS_E_ARG,
                   "'%s': tensor '%s' is listed twice", w->file.path, order[i]->name);
    return TESS_OK;
}

static void put_text(json_sink *s, const char *text) { tess_json_sink_put(s, text, strlen(text)); }

static void put_i64(json_sink *s, int64_t value)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRId64, value);
    put_text(s, text);
}

static void put_metadata(json_sink *s, const tess_st_pair *metadata, int64_t metadata_numel)
{
    put_text(s, "\"__metadata__\":{");
    for (int64_t i = 0; i < metadata_numel; i++) {
        put_text(s, i > 0 ? "," : "");
        tess_json_sink_put_string(s, metadata[i].key);
        put_text(s, ":");
        tess_json_sink_put_string(s, metadata[i].value);
    }
    put_text(s, "}");
}

static void put_tensor(json_sink *s, const tess_st_tensor *t)
{
    tess_json_sink_put_string(s, t->name);
    put_text(s, ":{\"dtype\":\"");
    put_text(s, tess_st_dtype_name(t->dtype));
    put_text(s, "\",\"shape\":[");
    for (int i = 0; i < t->dim_numel; i++) {
        put_text(s, i > 0 ? "," : "");
        put_i64(s, t->dim[i]);
    }
    put_text(s, "],\"data_offsets\":[");
    put_i64(s, t->offset_nbytes);
    put_text(s, ",");
    put_i64(s, t->offset_nbytes + t->nbytes);
    put_text(s, "]}");
}

/* Give every tensor its offset (relative to the data) in file order. */
static tess_status assign_offsets(const tess_safetensors_writer *w, tess_st_tensor **order,
                                  int64_t *data_nbytes)
{
    int64_t at = 0;
    if (w->tensor_numel > 1)
        qsort(order, (size_t)w->tensor_numel, sizeof *order, by_file_order);
    for (int64_t i = 0; i < w->tensor_numel; i++) {
        order[i]->offset_nbytes = at;
        TESS_TRY(tess_add_i64(at, order[i]->nbytes, &at));
    }
    *data_nbytes = at;
    return TESS_OK;
}

static tess_status check_metadata(const char *path, const tess_st_pair *pair, int64_t numel)
{
    for (int64_t i = 0; i < numel; i++) {
        TESS_CHECK(tess_utf8_is_valid(pair[i].key, strlen(pair[i].key)) &&
                       tess_utf8_is_valid(pair[i].value, strlen(pair[i].value)),
                   TESS_E_ARG, "'%s': metadata entry %" PRId64 " is not UTF-8", path, i);
        TESS_CHECK(i == 0 || strcmp(pair[i - 1].key, pair[i].key) != 0, TESS_E_ARG,
                   "'%s': metadata key '%s' is listed twice", path, pair[i].key);
    }
    return TESS_OK;
}

static tess_status make_header(const tess_safetensors_writer *w, tess_st_tensor **order,
                               const tess_st_pair *metadata, int64_t metadata_numel, json_sink *s)
{
    static const char length_placeholder[8] = {0};
    tess_json_sink_put(s, length_placeholder, sizeof length_placeholder);
    put_text(s, "{");
    if (metadata_numel > 0)
        put_metadata(s, metadata, metadata_numel);
    for (int64_t i = 0; i < w->tensor_numel; i++) {
        put_text(s, i > 0 || metadata_numel > 0 ? "," : "");
        put_tensor(s, order[i]);
    }
    put_text(s, "}");
    while (s->st == TESS_OK && s->numel % 8 != 0)
        put_text(s, " ");
    TESS_TRY(s->st);
    const int64_t header_nbytes = s->numel - 8;
    TESS_CHECK(header_nbytes <= TESS_ST_HEADER_MAX_NBYTES, TESS_E_RANGE,
               "'%s': a header of %" PRId64 " bytes, at most %d are legal", w->file.path,
               header_nbytes, TESS_ST_HEADER_MAX_NBYTES);
    for (int i = 0; i < 8; i++)
        s->text[i] = (char)(header_nbytes >> (8 * i) & 0xff);
    return TESS_OK;
}

static tess_status start_file(tess_safetensors_writer *w, int64_t data_nbytes)
{
    int64_t file_nbytes = 0;
    TESS_TRY(tess_add_i64(w->header_nbytes, data_nbytes, &file_nbytes));
    for (int64_t i = 0; i < w->tensor_numel; i++)
        w->file.range[i] =
            (tess_partial_range){.name = w->name[i],
                                 .offset_nbytes = w->header_nbytes + w->tensor[i].offset_nbytes,
                                 .nbytes = w->tensor[i].nbytes};
    return tess_partial_file_start(&w->file, w->header, (size_t)w->header_nbytes, file_nbytes);
}

static tess_status start(tess_safetensors_writer *w, const tess_st_pair *metadata,
                         int64_t metadata_numel)
{
    void *order_memory = NULL, *pair_memory = NULL;
    json_sink header = {0};
    int64_t data_nbytes = 0;
    tess_status st = tess_alloc_array(w->tensor_numel, sizeof(tess_st_tensor *), &order_memory);
    if (st == TESS_OK)
        st = tess_alloc_array(metadata_numel, sizeof(tess_st_pair), &pair_memory);
    tess_st_tensor **order = order_memory;
    tess_st_pair *pair = pair_memory;
    for (int64_t i = 0; st == TESS_OK && i < w->tensor_numel; i++)
        order[i] = &w->tensor[i];
    if (st == TESS_OK && metadata_numel > 0) {
        memcpy(pair, metadata, (size_t)metadata_numel * sizeof *pair);
        qsort(pair, (size_t)metadata_numel, sizeof *pair, by_pair_key);
        st = check_metadata(w->file.path, pair, metadata_numel);
    }
    if (st == TESS_OK)
        st = check_unique(w, order);
    if (st == TESS_OK)
        st = assign_offsets(w, order, &data_nbytes);
    if (st == TESS_OK)
        st = make_header(w, order, pair, metadata_numel, &header);
    w->header = header.text;
    w->header_nbytes = header.numel;
    if (st == TESS_OK)
        st = start_file(w, data_nbytes);
    tess_free(pair);
    tess_free(order);
    return st;
}

tess_status tess_safetensors_writer_create(tess_io *io, const char *path,
                                           const tess_st_tensor *tensor, int64_t tensor_numel,
                                           const tess_st_pair *metadata, int64_t metadata_numel,
                                           tess_safetensors_writer **out)
{
    void *object = NULL, *table = NULL, *name = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_safetensors_writer), &object));
    tess_safetensors_writer *w = object;
    tess_status st = tess_partial_file_init(&w->file, io, path, tensor_numel);
    if (st == TESS_OK)
        st = tess_alloc_array(tensor_numel, sizeof(tess_st_tensor), &table);
    w->tensor = table;
    if (st == TESS_OK)
        st = tess_alloc_array(tensor_numel, sizeof(char *), &name);
    w->name = name;
    for (int64_t i = 0; st == TESS_OK && i < tensor_numel; i++)
        st = copy_tensor(w, &tensor[i]);
    if (st == TESS_OK)
        st = start(w, metadata, metadata_numel);
    if (st != TESS_OK) {
        tess_safetensors_writer_destroy(&w);
        return st;
    }
    *out = w;
    return TESS_OK;
}

tess_status tess_safetensors_writer_append(tess_safetensors_writer *writer, int64_t tensor_idx,
                                           const void *src, size_t nbytes)
{
    return tess_partial_file_append(&writer->file, tensor_idx, src, nbytes);
}

tess_status tess_safetensors_writer_set(tess_safetensors_writer *writer, const char *key,
                                        const char *value)
{
    json_sink mark = {0};
    tess_json_sink_put_string(&mark, key);
    put_text(&mark, ":\"");
    const size_t nbytes = strlen(value), skip = (size_t)mark.numel;
    /* Metadata comes first, and inside strings a quote is never bare: the first match is the key.
     */
    const char *at = mark.st == TESS_OK
                         ? memmem(writer->header, (size_t)writer->header_nbytes, mark.text, skip)
                         : NULL;
    tess_free(mark.text);
    TESS_TRY(mark.st);
    TESS_CHECK(at != NULL && strcspn(at + skip, "\"") == nbytes &&
                   strcspn(value, "\"\\") == nbytes && tess_utf8_is_valid(value, nbytes),
               TESS_E_ARG, "'%s': metadata '%s': expected a value of as many plain bytes",
               writer->file.path, key);
    return tess_partial_file_patch(&writer->file, at + skip - writer->header, value, nbytes);
}

tess_status tess_safetensors_writer_finish(tess_safetensors_writer *writer)
{
    return tess_partial_file_finish(&writer->file);
}

void tess_safetensors_writer_destroy(tess_safetensors_writer **writer)
{
    tess_safetensors_writer *w = *writer;
    if (w == NULL)
        return;
    tess_partial_file_fini(&w->file);
    for (int64_t i = 0; i < w->tensor_numel; i++)
        tess_free(w->name[i]);
    tess_free(w->name);
    tess_free(w->tensor);
    tess_free(w->header);
    tess_free(w);
    *writer = NULL;
}
