/* Writing manifests. Keys are in byte order at every level; readers compare whole bytes. */
#include <stdio.h>
#include <string.h>

#include "shard/ckpt_priv.h"

static void put_key_text(ckpt_text *t, const char *key, const char *value, const char *after)
{
    ckpt_text_quote(t, key);
    ckpt_text_put(t, ":");
    if (value != NULL)
        ckpt_text_quote(t, value);
    else
        ckpt_text_put(t, "null");
    ckpt_text_put(t, "%s", after);
}

static void put_key_i64(ckpt_text *t, const char *key, int64_t value, const char *after)
{
    ckpt_text_quote(t, key);
    ckpt_text_put(t, ":%" PRId64 "%s", value, after);
}

static void put_key_sha256(ckpt_text *t, const char *key, const tess_sha256 *digest,
                           const char *after)
{
    char hex[TESS_SHA256_HEX_NBYTES];
    tess_hex(digest->byte, sizeof digest->byte, hex);
    put_key_text(t, key, hex, after);
}

static void put_base(const ckpt_manifest_spec *spec, ckpt_text *t)
{
    static const char *const mode_name[] = {[TESS_CKPT_BASE_NONE] = "none",
                                            [TESS_CKPT_BASE_COPY] = "copy",
                                            [TESS_CKPT_BASE_REFERENCE] = "reference"};
    const tess_ckpt_base *base = spec->base;
    ckpt_text_put(t, "\"base\":{\"files\":[");
    for (int64_t i = 0; i < base->file_numel; i++) {
        const tess_ckpt_source_file *f = &base->files[i];
        ckpt_text_put(t, "%s{", i > 0 ? "," : "");
        put_key_i64(t, "nbytes", f->nbytes, ",");
        put_key_text(t, "path", f->path, ",");
        put_key_sha256(t, "sha256", &f->sha256, "}");
    }
    ckpt_text_put(t, "],");
    put_key_text(t, "id", base->id, ",");
    if (base->mode == TESS_CKPT_BASE_COPY)
        put_key_sha256(t, "manifest_sha256", &spec->base_manifest, ",");
    else
        put_key_text(t, "manifest_sha256", NULL, ",");
    put_key_text(t, "mode", mode_name[base->mode], "},\n");
}

static void put_files(const ckpt_manifest_spec *spec, ckpt_text *t)
{
    const int world = spec->index->set->shard_world;
    ckpt_text_put(t, "\"files\":[");
    for (int i = 0; i < world; i++) {
        static const ckpt_file unknown; /* measuring: digests have a fixed width */
        const ckpt_file *f = spec->files != NULL ? &spec->files[i] : &unknown;
        char name[CKPT_SHARD_NAME_NBYTES];
        ckpt_shard_name(i, world, name);
        ckpt_text_put(t, "%s\n{\"chunks\":{", i > 0 ? "," : "");
        put_key_i64(t, "nbytes", f->table_nbytes, ",");
        put_key_i64(t, "offset", f->table_offset_nbytes, ",");
        put_key_sha256(t, "sha256", &f->table, "},");
        put_key_sha256(t, "metadata_sha256", &f->metadata, ",");
        put_key_text(t, "name", name, ",");
        put_key_i64(t, "nbytes", f->file_nbytes, "}");
    }
    ckpt_text_put(t, "],\n");
}

static void put_records(const ckpt_manifest_spec *spec, ckpt_text *t)
{
    const tess_ckpt_set *set = spec->index->set;
    ckpt_text_put(t, "\"records\":[");
    for (int64_t i = 0; i < set->record_numel; i++) {
        const tess_ckpt_record *r = &set->records[i];
        ckpt_text_put(t, "%s\n{", i > 0 ? "," : "");
        put_key_i64(t, "align", r->align_numel, ",");
        put_key_text(t, "contract", r->contract, ",");
        put_key_text(t, "dtype", tess_dtype_name(r->dt), ",");
        put_key_i64(t, "numel", r->total_numel, ",");
        put_key_text(t, "quant", r->quant, ",");
        put_key_text(t, "role", r->role, ",");
        put_key_text(t, "unit", r->unit, "}");
    }
    ckpt_text_put(t, "],\n");
}

static void put_run(const ckpt_manifest_spec *spec, ckpt_text *t)
{
    ckpt_text_put(t, "\"run\":{");
    put_key_text(t, "attempt", spec->attempt, ",");
    put_key_text(t, "base_id", spec->base_id, ",");
    put_key_text(t, "binary_id", spec->binary_id, ",");
    put_key_text(t, "config_digest", spec->config_digest, ",");
    put_key_i64(t, "epoch", spec->epoch, ",");
    put_key_i64(t, "gather_group", spec->gather_group, ",");
    put_key_text(t, "plan_digest", spec->plan_digest, ",");
    put_key_text(t, "run_id", spec->run_id, ",");
    put_key_i64(t, "step", spec->step, ",");
    put_key_i64(t, "wall_time_s", spec->wall_time_s, ",");
    put_key_i64(t, "world", spec->index->set->shard_world, ",");
    put_key_text(t, "writer", CKPT_WRITER, "},\n");
}

static void put_state(const ckpt_manifest_spec *spec, ckpt_text *t)
{
    ckpt_text_put(t, "\"state\":{");
    for (int64_t i = 0; i < spec->state_numel; i++) {
        const tess_ckpt_value *v = &spec->state[i];
        ckpt_text_put(t, "%s\n", i > 0 ? "," : "");
        ckpt_text_quote(t, v->name);
        ckpt_text_put(t, ":");
        ckpt_text_value(t, v);
    }
    ckpt_text_put(t, "},\n");
}

static void put_tensors(const ckpt_manifest_spec *spec, ckpt_text *t)
{
    const ckpt_index *x = spec->index;
    ckpt_text_put(t, "\"tensors\":[");
    for (int64_t i = 0; i < x->set->tensor_numel; i++) {
        const tess_ckpt_tensor *tensor = &x->set->tensors[i];
        ckpt_text_put(t, "%s\n{", i > 0 ? "," : "");
        put_key_text(t, "dtype", tensor->dtype, ",");
        put_key_i64(t, "extent", tensor->extent_numel, ",");
        ckpt_text_put(t, "\"hash\":{");
        for (int64_t p = x->first_pair[i]; p < x->first_pair[i + 1]; p++) {
            static const tess_logical_hash unknown;
            const tess_logical_hash *h = spec->hashes != NULL ? &spec->hashes[p] : &unknown;
            ckpt_text_quote(t, x->set->records[x->pairs[p].record_idx].role);
            ckpt_text_put(t, ":\"%016" PRIx64 "%016" PRIx64 "\"%s", h->lane[0], h->lane[1],
                          p + 1 < x->first_pair[i + 1] ? "," : "");
        }
        ckpt_text_put(t, "},");
        put_key_text(t, "name", tensor->name, ",");
        put_key_i64(t, "offset", tensor->offset_numel, ",");
        put_key_text(t, "quant", tensor->quant, ",");
        put_key_text(t, "role", tensor->role, ",");
        ckpt_text_put(t, "\"shape\":[");
        for (int d = 0; d < tensor->dim_numel; d++)
            ckpt_text_put(t, "%s%" PRId64, d > 0 ? "," : "", tensor->shape[d]);
        ckpt_text_put(t, "],");
        put_key_text(t, "unit", tensor->unit, "}");
    }
    ckpt_text_put(t, "]");
}

void ckpt_manifest_format(const ckpt_manifest_spec *spec, ckpt_text *t)
{
    ckpt_text_put(t, "{");
    put_base(spec, t);
    put_files(spec, t);
    ckpt_text_put(t,
                  "\"format\":{\"features_optional\":[],\"features_required\":[],\"major\":%d,"
                  "\"minor\":%d},\n",
                  TESS_CKPT_FORMAT_MAJOR, TESS_CKPT_FORMAT_MINOR);
    put_key_text(t, "kind", spec->kind, ",\n");
    if (spec->has_parent) {
        ckpt_text_put(t, "\"parent\":{");
        put_key_sha256(t, "manifest_sha256", &spec->parent_manifest, ",");
        put_key_i64(t, "step", spec->parent_step, "},\n");
    } else {
        ckpt_text_put(t, "\"parent\":null,\n");
    }
    put_records(spec, t);
    put_run(spec, t);
    put_state(spec, t);
    put_tensors(spec, t);
    ckpt_text_put(t, "}\n");
}

tess_status ckpt_manifest_seal(ckpt_text *t, tess_sha256 *digest)
{
    enum { LAST_LINE_NBYTES = TESS_SHA256_HEX_NBYTES + 1 };
    TESS_CHECK(t->nbytes + LAST_LINE_NBYTES <= t->room_nbytes &&
                   t->nbytes + LAST_LINE_NBYTES <= CKPT_MANIFEST_NBYTES_MAX,
               TESS_E_RANGE, "manifest of %zu bytes exceeds its planned %zu; raise state_room",
               t->nbytes + LAST_LINE_NBYTES, t->room_nbytes);
    char hex[TESS_SHA256_HEX_NBYTES];
    TESS_TRY(tess_sha256_of(t->text, t->nbytes, digest));
    tess_hex(digest->byte, sizeof digest->byte, hex);
    ckpt_text_put(t, "%s\n", hex);
    return TESS_OK;
}
