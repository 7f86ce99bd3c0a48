/* Files of each dialect, matrix by matrix: no more than one is in memory. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/digest.h"
#include "core/memory.h"
#include "format/adapter_priv.h"
#include "format/gguf_llm.h"
#include "format/safetensors_priv.h"

/* ---- safetensors files of FLUX.1 ---- */

static const struct {
    const char *file, *prefix, *suffix[ADAPTER_ROLE_NUMEL]; /* NULL: no such tensor */
} layout[TESS_ADAPTER_DIALECT_NUMEL] = {
    [TESS_ADAPTER_DIFFUSERS] = {"pytorch_lora_weights.safetensors",
                                "transformer.",
                                {".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"}},
    [TESS_ADAPTER_KOHYA] = {"kohya.safetensors",
                            "lora_unet_",
                            {".lora_down.weight", ".lora_up.weight", ".dora_scale", ".alpha"}},
    [TESS_ADAPTER_COMFYUI] = {"comfyui.safetensors",
                              "diffusion_model.",
                              {".lora_down.weight", ".lora_up.weight", NULL, ".alpha"}},
};

const char *adapter_file_name(tess_adapter_dialect dialect)
{
    return dialect == TESS_ADAPTER_GGUF ? "adapter.gguf" : layout[dialect].file;
}

typedef char tensor_name[TESS_ST_NAME_MAX_NBYTES + 1];

typedef struct flux_item {
    tess_st_tensor tensor;
    const adapter_group *group;
    int role;
} flux_item;

typedef struct flux_file {
    const adapter_output *o;
    tensor_name *name;
    flux_item *item;        /* [numel] in the order of the file's data */
    tess_st_tensor *tensor; /* [numel] of the items */
    int64_t numel;
} flux_file;

static void shape_item(flux_item *item, tess_adapter_dialect dialect)
{
    const adapter_group *g = item->group;
    tess_st_tensor *t = &item->tensor;
    switch (item->role) {
    case TESS_ADAPTER_A:
        t->dim_numel = 2;
        t->dim[0] = g->rank;
        t->dim[1] = g->in_numel;
        return;
    case TESS_ADAPTER_B:
        t->dim_numel = 2;
        t->dim[0] = g->out_numel;
        t->dim[1] = g->rank;
        return;
    case TESS_ADAPTER_MAGNITUDE: /* LyCORIS tells the axis by the shape */
        t->dim_numel = dialect == TESS_ADAPTER_KOHYA ? 2 : 1;
        t->dim[0] = g->out_numel;
        t->dim[1] = 1;
        return;
    default: /* alpha is a scalar */
        t->dim_numel = 0;
    }
}

static int by_file_order(const void *a, const void *b)
{
    return tess_st_file_order(&((const flux_item *)a)->tensor, &((const flux_item *)b)->tensor);
}

/* alpha stays f32: bf16 could not hold every one of them. */
static tess_status list_items(flux_file *f)
{
    const adapter_output *o = f->o;
    const int64_t room = o->group_numel * ADAPTER_ROLE_NUMEL;
    tess_st_dtype dtype = TESS_ST_F32;
    TESS_TRY(tess_st_dtype_from_core(o->to->dt, &dtype));
    TESS_TRY(tess_alloc_array(room, sizeof *f->name, (void **)&f->name));
    TESS_TRY(tess_alloc_array(room, sizeof *f->tensor, (void **)&f->tensor));
    TESS_TRY(tess_alloc_array(room, sizeof *f->item, (void **)&f->item));
    for (int64_t i = 0; i < o->group_numel; i++)
        for (int role = 0; role < ADAPTER_ROLE_NUMEL; role++) {
            const char *suffix = layout[o->to->dialect].suffix[role];
            char *name = f->name[f->numel];
            if (suffix == NULL || (role == TESS_ADAPTER_MAGNITUDE && !o->group[i].has_magnitude))
                continue;
            snprintf(name, sizeof *f->name, "%s%.400s%s", layout[o->to->dialect].prefix,
                     o->group[i].stem, suffix);
            f->item[f->numel] = (flux_item){
                .tensor = {.name = name, .dtype = role == ADAPTER_ALPHA ? TESS_ST_F32 : dtype},
                .group = &o->group[i],
                .role = role};
            shape_item(&f->item[f->numel++], o->to->dialect);
        }
    qsort(f->item, (size_t)f->numel, sizeof *f->item, by_file_order);
    for (int64_t i = 0; i < f->numel; i++)
        f->tensor[i] = f->item[i].tensor;
    return TESS_OK;
}

static tess_status make_alpha(const adapter_group *g, void **bytes)
{
    const float alpha = (float)g->alpha;
    TESS_CHECK(isfinite(alpha) && alpha > 0.0F, TESS_E_RANGE,
               "export of '%s': alpha %g is outside of what f32 can hold; write diffusers, which "
               "folds it",
               g->stem, g->alpha);
    TESS_TRY(tess_alloc(sizeof alpha, bytes));
    memcpy(*bytes, &alpha, sizeof alpha);
    return TESS_OK;
}

/* Make every tensor, in order, for the digest or for the file. */
static tess_status for_each_item(const flux_file *f, tess_sha256_state *digest,
                                 tess_safetensors_writer *w)
{
    for (int64_t i = 0; i < f->numel; i++) {
        const flux_item *item = &f->item[i];
        const tess_adapter_part part = (tess_adapter_part)item->role;
        const bool is_alpha = item->role == ADAPTER_ALPHA;
        void *bytes = NULL;
        size_t nbytes = sizeof(float);
        if (!is_alpha)
            TESS_TRY(
                tess_nbytes(f->o->to->dt, adapter_group_part_numel(item->group, part), &nbytes));
        TESS_TRY(is_alpha ? make_alpha(item->group, &bytes)
                          : adapter_make_part(f->o->from, item->group, part, f->o->to->dt, &bytes));
        const tess_status st = w != NULL ? tess_safetensors_writer_append(w, i, bytes, nbytes)
                                         : tess_sha256_update(digest, bytes, nbytes);
        tess_free(bytes);
        TESS_TRY(st);
    }
    return TESS_OK;
}

/* kohya's name of a file: SHA-256 of its data. The header holds it, so the data is made twice. */
static tess_status hash_items(const flux_file *f, char hex[TESS_SHA256_HEX_NBYTES])
{
    tess_sha256_state *digest = NULL;
    tess_sha256 sum;
    TESS_TRY(tess_sha256_create(&digest));
    tess_status st = for_each_item(f, digest, NULL);
    if (st == TESS_OK)
        st = tess_sha256_final(digest, &sum);
    if (st == TESS_OK)
        tess_hex(sum.byte, sizeof sum.byte, hex);
    tess_sha256_destroy(&digest);
    return st;
}

static tess_status write_items(const flux_file *f, const char *path)
{
    const adapter_output *o = f->o;
    char hex[TESS_SHA256_HEX_NBYTES];
    adapter_metadata meta = {0};
    tess_safetensors_writer *w = NULL;
    const bool is_hashed = o->to->dialect != TESS_ADAPTER_DIFFUSERS;
    tess_status st = is_hashed ? hash_items(f, hex) : TESS_OK;
    if (st == TESS_OK)
        st = adapter_metadata_make(o->from, o->to, o->group, o->group_numel, &meta);
    if (st == TESS_OK && is_hashed)
        st = adapter_metadata_add(&meta, "sshs_model_hash", hex);
    if (st == TESS_OK)
        st = tess_safetensors_writer_create(o->io, path, f->tensor, f->numel, meta.pair, meta.numel,
                                            &w);
    if (st == TESS_OK)
        st = for_each_item(f, NULL, w);
    if (st == TESS_OK)
        st = tess_safetensors_writer_finish(w);
    tess_safetensors_writer_destroy(&w);
    adapter_metadata_fini(&meta);
    return st;
}

tess_status adapter_write_flux(const adapter_output *o)
{
    flux_file f = {.o = o};
    char *path = NULL;
    tess_status st = tess_asprintf(&path, "%s/%s", o->dir, layout[o->to->dialect].file);
    if (st == TESS_OK)
        st = list_items(&f);
    if (st == TESS_OK)
        st = write_items(&f, path);
    tess_free(f.name);
    tess_free(f.tensor);
    tess_free(f.item);
    tess_free(path);
    return st;
}

/* ---- GGUF ---- */

typedef struct gguf_file {
    const adapter_output *o;
    char (*name)[TESS_GGUF_NAME_NBYTES];
    tess_gguf_tensor *tensor; /* [2 * group_numel] A, then B */
    char (*key)[TESS_GGUF_NAME_NBYTES];
    tess_gguf_pair *pair;
    int64_t pair_numel;
    tess_gguf_writer *writer;
} gguf_file;

static tess_format format_of(tess_dtype dt)
{
    return dt == TESS_F32 ? TESS_FORMAT_F32 : dt == TESS_F16 ? TESS_FORMAT_F16 : TESS_FORMAT_BF16;
}

static tess_status list_gguf_tensors(gguf_file *f)
{
    const adapter_output *o = f->o;
    TESS_TRY(tess_alloc_array(2 * o->group_numel, sizeof *f->name, (void **)&f->name));
    TESS_TRY(tess_alloc_array(2 * o->group_numel, sizeof *f->tensor, (void **)&f->tensor));
    for (int64_t i = 0; i < 2 * o->group_numel; i++) {
        const adapter_group *g = &o->group[i / 2];
        const bool is_a = i % 2 == 0;
        const int n =
            snprintf(f->name[i], sizeof *f->name, "%.100s.lora_%c", g->stem, is_a ? 'a' : 'b');
        TESS_CHECK(n < (int)sizeof *f->name, TESS_E_RANGE,
                   "export gguf: '%s.lora_a' is longer than a tensor name may be", g->stem);
        f->tensor[i] = (tess_gguf_tensor){
            .name = f->name[i],
            .format = format_of(o->to->dt),
            .dim_numel = 2,
            .dim = {is_a ? g->rank : g->out_numel, is_a ? g->in_numel : g->rank}};
    }
    return TESS_OK;
}

static tess_gguf_pair text_pair(const char *key, const char *text)
{
    return (tess_gguf_pair){key, {.kind = TESS_GGUF_STRING, .text = text}};
}

static tess_status list_gguf_pairs(gguf_file *f, const adapter_metadata *meta)
{
    const adapter_output *o = f->o;
    const int64_t room = meta->numel + 4;
    TESS_TRY(tess_alloc_array(room, sizeof *f->pair, (void **)&f->pair));
    TESS_TRY(tess_alloc_array(room, sizeof *f->key, (void **)&f->key));
    TESS_CHECK(isfinite((float)o->group[0].alpha), TESS_E_RANGE,
               "export gguf: alpha %g is outside of what f32 can hold", o->group[0].alpha);
    f->pair[f->pair_numel++] = text_pair("general.type", "adapter");
    f->pair[f->pair_numel++] = text_pair("general.architecture", tess_gguf_arch_name(o->to->base));
    f->pair[f->pair_numel++] = text_pair("adapter.type", "lora");
    f->pair[f->pair_numel++] =
        (tess_gguf_pair){"adapter.lora.alpha", {.kind = TESS_GGUF_F32, .f64 = o->group[0].alpha}};
    for (int64_t i = 0; i < meta->numel; i++) {
        char *key = f->key[f->pair_numel];
        const int n =
            snprintf(key, sizeof *f->key, ADAPTER_GGUF_PREFIX "%.100s", meta->pair[i].key);
        if (n < (int)sizeof *f->key)
            f->pair[f->pair_numel++] = text_pair(key, meta->pair[i].value);
    }
    return TESS_OK;
}

static tess_status write_gguf_tensors(gguf_file *f)
{
    const adapter_output *o = f->o;
    for (int64_t i = 0; i < 2 * o->group_numel; i++) {
        const adapter_group *g = &o->group[i / 2];
        const tess_adapter_part part = i % 2 == 0 ? TESS_ADAPTER_A : TESS_ADAPTER_B;
        void *bytes = NULL;
        TESS_TRY(adapter_make_part(o->from, g, part, o->to->dt, &bytes));
        const size_t nbytes =
            (size_t)adapter_group_part_numel(g, part) * tess_dtype_block_nbytes(o->to->dt);
        const tess_status st = tess_gguf_writer_append(f->writer, i, bytes, nbytes);
        tess_free(bytes);
        TESS_TRY(st);
    }
    return tess_gguf_writer_finish(f->writer);
}

tess_status adapter_write_gguf(const adapter_output *o)
{
    gguf_file f = {.o = o};
    adapter_metadata meta = {0};
    char *path = NULL;
    tess_status st = tess_asprintf(&path, "%s/adapter.gguf", o->dir);
    if (st == TESS_OK)
        st = adapter_metadata_make(o->from, o->to, o->group, o->group_numel, &meta);
    if (st == TESS_OK)
        st = list_gguf_tensors(&f);
    if (st == TESS_OK)
        st = list_gguf_pairs(&f, &meta);
    if (st == TESS_OK)
        st = tess_gguf_writer_create(o->io, path, f.pair, f.pair_numel, f.tensor,
                                     2 * o->group_numel, &f.writer);
    if (st == TESS_OK)
        st = write_gguf_tensors(&f);
    tess_gguf_writer_destroy(&f.writer);
    tess_free(f.name);
    tess_free(f.tensor);
    tess_free(f.key);
    tess_free(f.pair);
    adapter_metadata_fini(&meta);
    tess_free(path);
    return st;
}

/* ---- all ---- */

tess_status tess_adapter_write(tess_io *io, const tess_adapter *from, const tess_adapter_target *to,
                               const char *dir)
{
    adapter_group *group = NULL;
    int64_t group_numel = 0;
    TESS_CHECK(to->dt == TESS_F32 || to->dt == TESS_BF16 || to->dt == TESS_F16, TESS_E_DTYPE,
               "adapter export: expected dtype f32, bf16 or f16, found %s",
               tess_dtype_name(to->dt));
    TESS_TRY(adapter_plan_groups(from, to, &group, &group_numel));
    const adapter_output o = {io, from, to, group, group_numel, dir};
    tess_status st = tess_io_mkdirs(io, dir);
    if (st == TESS_OK)
        st = to->dialect == TESS_ADAPTER_PEFT   ? adapter_write_peft(&o)
             : to->dialect == TESS_ADAPTER_GGUF ? adapter_write_gguf(&o)
                                                : adapter_write_flux(&o);
    tess_free(group);
    return st;
}
