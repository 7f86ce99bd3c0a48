/** What the tests of packed weights share: golden models, and one weight to damage. */
#pragma once

#include "core/arith.h"
#include "format/model_dir.h"
#include "format_test.h"
#include "kernels/kernels.h"
#include "support/crc32.h"

enum { NUMEL_MAX = 80 * 48, MEMBER_MAX = 12, BYTES_MAX = 8192 };

/* ---- golden models ---- */

static inline void decode(const tess_codec *codec, const char *stored, int64_t numel, float *out)
{
    tess_codec_part part[TESS_CODEC_PART_MAX];
    static float place[TESS_CODEC_PART_MAX][NUMEL_MAX]; /* aligned */
    tess_dequantize_args a = {.codec = *codec, .dst = tess_view_host(out, numel, TESS_F32)};
    tess_stream stream;
    int part_numel = 0;
    tess_stream_init_inline(&stream, "test", NULL);
    assert_ok(tess_codec_parts(codec, numel, part, &part_numel));
    for (int i = 0; i < part_numel; stored += part[i++].nbytes) {
        memcpy(place[i], stored, part[i].nbytes);
        a.part[i] = place[i];
    }
    assert_ok(tess_kernels_cpu.dequantize(&a, &stream));
}

static inline void check_tensor(const tess_model_dir *dir, const char *name, uint32_t crc)
{
    static char stored[4 * NUMEL_MAX], again[4 * NUMEL_MAX];
    static float value[NUMEL_MAX];
    const tess_model_tensor *t = tess_model_dir_find(dir, name);
    tess_codec codec;
    assert_non_null(t);
    assert_non_null(t->packed);
    assert_ok(tess_model_tensor_codec(t, &codec));
    assert_int_equal(t->st->dim_numel, 2);
    assert_true(t->st->numel <= NUMEL_MAX);
    assert_ok(tess_model_dir_read(dir, t, 0, (size_t)t->st->nbytes, stored));
    decode(&codec, stored, t->st->numel, value);
    const uint32_t found = crc_of(value, (size_t)t->st->numel * sizeof *value);
    if (found != crc)
        fail_msg("%s: crc %08x, expected %08x", name, found, crc);
    for (int64_t first = 0; first < t->st->nbytes; first += 333) {
        const int64_t nbytes = TESS_MIN(t->st->nbytes - first, INT64_C(333));
        assert_ok(tess_model_dir_read(dir, t, first, (size_t)nbytes, again + first));
    }
    assert_memory_equal(again, stored, (size_t)t->st->nbytes);
    assert_refused(tess_model_dir_read(dir, t, 1, (size_t)t->st->nbytes, again), TESS_E_RANGE,
                   name);
}

/* "MODEL TENSOR CRC-32" of the decoded f32 bytes, per line of values.txt. */
static inline int check_golden(const fixture *f, const char *golden, int64_t tensor_numel)
{
    const tess_ctx ctx = {.io = f->io};
    char model[64], name[256], path[512], open_name[64] = "";
    unsigned crc = 0;
    int seen = 0;
    tess_model_dir *dir = NULL;
    snprintf(path, sizeof path, "%s/values.txt", golden);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    while (fscanf(file, "%63s %255s %x", model, name, &crc) == 3) {
        if (strcmp(model, open_name) != 0) {
            tess_model_dir_close(&dir);
            snprintf(path, sizeof path, "%s/%s", golden, model);
            assert_ok(tess_model_dir_open(&ctx, path, &dir));
            assert_int_equal(tess_model_dir_tensor_numel(dir), tensor_numel);
            snprintf(open_name, sizeof open_name, "%s", model);
        }
        check_tensor(dir, name, crc);
        seen++;
    }
    fclose(file);
    tess_model_dir_close(&dir);
    return seen;
}

/* ---- damage ---- */

/* One tensor of a file that a test may change before it is written. */
typedef struct member {
    char name[128];
    tess_st_tensor st;
    char bytes[BYTES_MAX];
} member;

typedef struct weight {
    member list[MEMBER_MAX];
    int numel;
    const char *formats; /* TESS_MODEL_FORMATS_KEY of the file, or NULL */
    const char *layers;  /* "_quantization_metadata" of ComfyUI, or NULL */
} weight;

/* The tensors of k_proj of a golden model, under the name "x.weight". */
static inline void take_from(const fixture *f, const char *golden, const char *model, weight *w)
{
    static const char base[] = "model.layers.0.self_attn.k_proj.";
    char path[512];
    tess_safetensors *file = NULL;
    snprintf(path, sizeof path, "%s/%s/model.safetensors", golden, model);
    assert_ok(tess_safetensors_open(f->io, path, &file));
    memset(w, 0, sizeof *w);
    for (int64_t i = 0; i < tess_safetensors_numel(file); i++) {
        const tess_st_tensor *t = tess_safetensors_at(file, i);
        if (strncmp(t->name, base, sizeof base - 1) != 0)
            continue;
        member *m = &w->list[w->numel++];
        m->st = *t;
        snprintf(m->name, sizeof m->name, "x.%.100s", t->name + sizeof base - 1);
        assert_true(t->nbytes < BYTES_MAX);
        assert_ok(tess_safetensors_read(file, t, 0, (size_t)t->nbytes, m->bytes));
        m->bytes[t->nbytes] = '\0';
    }
    tess_safetensors_close(&file);
    assert_true(w->numel >= 1);
}

static inline member *find(weight *w, const char *name)
{
    for (int i = 0; i < w->numel; i++)
        if (strcmp(w->list[i].name, name) == 0)
            return &w->list[i];
    fail_msg("no %s", name);
    return &w->list[0];
}

static inline void drop(weight *w, const char *name)
{
    member *m = find(w, name);
    memmove(m, m + 1, (size_t)(&w->list[--w->numel] - m) * sizeof *m);
}

static inline void add_copy(weight *w, const char *name, const char *as)
{
    w->list[w->numel] = *find(w, name);
    snprintf(w->list[w->numel++].name, sizeof w->list->name, "%s", as);
}

/* Write, open and read it whole. */
static inline tess_status try_read(const fixture *f, weight *w)
{
    const tess_ctx ctx = {.io = f->io};
    tess_st_tensor list[MEMBER_MAX];
    tess_safetensors_writer *writer = NULL;
    const tess_st_pair pair = w->formats != NULL
                                  ? (tess_st_pair){TESS_MODEL_FORMATS_KEY, w->formats}
                                  : (tess_st_pair){"_quantization_metadata", w->layers};
    static char bytes[4 * BYTES_MAX];
    tess_model_dir *dir = NULL;
    for (int i = 0; i < w->numel; i++) {
        list[i] = w->list[i].st;
        list[i].name = w->list[i].name;
    }
    assert_ok(tess_safetensors_writer_create(f->io, at(f, "model.safetensors"), list, w->numel,
                                             &pair, pair.value != NULL, &writer));
    for (int i = 0; i < w->numel; i++) {
        int64_t numel = 1;
        for (int k = 0; k < list[i].dim_numel; k++)
            numel *= list[i].dim[k];
        const size_t elem_nbytes = list[i].dtype == TESS_ST_F32 ? 4
                                   : list[i].dtype == TESS_ST_BF16 || list[i].dtype == TESS_ST_F16
                                       ? 2
                                       : 1;
        assert_ok(tess_safetensors_writer_append(writer, i, w->list[i].bytes,
                                                 (size_t)numel * elem_nbytes));
    }
    assert_ok(tess_safetensors_writer_finish(writer));
    tess_safetensors_writer_destroy(&writer);
    tess_status st = tess_model_dir_open(&ctx, f->dir, &dir);
    const tess_model_tensor *t = st == TESS_OK ? tess_model_dir_find(dir, "x.weight") : NULL;
    if (st == TESS_OK) {
        assert_non_null(t);
        assert_int_equal(tess_model_dir_tensor_numel(dir), 1);
        st = tess_model_dir_read(dir, t, 0, (size_t)t->st->nbytes, bytes);
    }
    tess_model_dir_close(&dir);
    return st;
}

static inline void put_f32(weight *w, const char *name, int idx, float value)
{
    memcpy(find(w, name)->bytes + idx * 4, &value, sizeof value);
}
