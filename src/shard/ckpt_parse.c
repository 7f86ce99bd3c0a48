/* Reading manifests: the last line first, then every field. Nothing here is trusted. */
#include <stdio.h>
#include <string.h>

#include "shard/ckpt_priv.h"

enum { LAST_LINE_NBYTES = 65 };

static tess_status check_last_line(const char *source, const char *text, size_t nbytes,
                                   tess_sha256 *digest)
{
    TESS_CHECK(nbytes > LAST_LINE_NBYTES && nbytes <= CKPT_MANIFEST_NBYTES_MAX, TESS_E_FORMAT,
               "'%s': %zu bytes, expected %d to %d", source, nbytes, LAST_LINE_NBYTES + 1,
               (int)CKPT_MANIFEST_NBYTES_MAX);
    const size_t body_nbytes = nbytes - LAST_LINE_NBYTES;
    char stated[TESS_SHA256_HEX_NBYTES], found[TESS_SHA256_HEX_NBYTES];
    memcpy(stated, text + body_nbytes, sizeof stated - 1);
    stated[sizeof stated - 1] = '\0';
    TESS_TRY(tess_sha256_of(text, body_nbytes, digest));
    tess_hex(digest->byte, sizeof digest->byte, found);
    TESS_CHECK(memcmp(stated, found, sizeof stated) == 0 && text[nbytes - 1] == '\n' &&
                   text[body_nbytes - 1] == '\n',
               TESS_E_FORMAT, "'%s' is damaged: its last line is not the SHA-256 of the rest (%s)",
               source, found);
    return TESS_OK;
}

static tess_status get_object(const tess_json *v, const char *key, const tess_json **out)
{
    return tess_json_get_object(v, key, out);
}

static tess_status get_unhex(const tess_json *v, const char *key, size_t nbytes, void *out)
{
    const char *hex = NULL;
    char where[512];
    TESS_TRY(tess_json_get_string(v, key, &hex));
    tess_json_where(v, where, sizeof where);
    TESS_CHECK(ckpt_is_hex(hex, nbytes), TESS_E_FORMAT, "%s: '%s' must be %zu hex digits", where,
               key, 2 * nbytes);
    return tess_unhex(hex, nbytes, out);
}

static tess_status get_numel(const tess_json *v, const char *key, int64_t *out)
{
    char where[512];
    TESS_TRY(tess_json_get_i64(v, key, out));
    tess_json_where(v, where, sizeof where);
    TESS_CHECK(*out >= 0, TESS_E_FORMAT, "%s: '%s' is %" PRId64 ", expected at least 0", where, key,
               *out);
    return TESS_OK;
}

static tess_status get_array(const tess_json *v, const char *key, size_t elem_nbytes,
                             const tess_json **items, void **out)
{
    TESS_TRY(tess_json_get_array(v, key, items));
    return tess_alloc_array(tess_json_numel(*items), elem_nbytes, out);
}

/* ---- format ---- */

static tess_status parse_format(const tess_json *root, const char *source)
{
    const tess_json *format = NULL, *required = NULL;
    int64_t major = 0, minor = 0;
    TESS_TRY(get_object(root, "format", &format));
    TESS_TRY(tess_json_get_i64(format, "major", &major));
    TESS_TRY(tess_json_get_i64(format, "minor", &minor));
    TESS_CHECK(major == TESS_CKPT_FORMAT_MAJOR, TESS_E_UNSUPPORTED,
               "'%s': checkpoint format %" PRId64 ".%" PRId64 ", this program reads %d.x", source,
               major, minor, TESS_CKPT_FORMAT_MAJOR);
    TESS_TRY(tess_json_get_array(format, "features_required", &required));
    for (int64_t i = 0; i < tess_json_numel(required); i++) {
        const char *feature = NULL;
        TESS_TRY(tess_json_as_string(tess_json_at(required, i), &feature));
        return TESS_FAIL(TESS_E_UNSUPPORTED,
                         "'%s' requires the feature '%.100s', which this program does not know",
                         source, feature);
    }
    return TESS_OK;
}

/* ---- run ---- */

static tess_status parse_run(const tess_json *root, ckpt_manifest *m)
{
    const tess_json *run = NULL;
    int64_t world = 0;
    TESS_TRY(tess_json_get_string(root, "kind", &m->kind));
    TESS_CHECK(strcmp(m->kind, "step") == 0 || strcmp(m->kind, "base") == 0, TESS_E_FORMAT,
               "'%s': kind '%.40s', expected step or base", m->source, m->kind);
    TESS_TRY(get_object(root, "run", &run));
    TESS_TRY(tess_json_get_string(run, "attempt", &m->attempt));
    TESS_TRY(tess_json_opt_string(run, "base_id", NULL, &m->base_id));
    TESS_TRY(tess_json_get_string(run, "binary_id", &m->binary_id));
    TESS_TRY(tess_json_get_string(run, "config_digest", &m->config_digest));
    TESS_TRY(tess_json_get_string(run, "plan_digest", &m->plan_digest));
    TESS_TRY(tess_json_get_string(run, "run_id", &m->run_id));
    TESS_TRY(tess_json_get_string(run, "writer", &m->writer));
    TESS_TRY(get_numel(run, "epoch", &m->epoch));
    TESS_TRY(get_numel(run, "gather_group", &m->gather_group));
    TESS_TRY(get_numel(run, "step", &m->step));
    TESS_TRY(get_numel(run, "wall_time_s", &m->wall_time_s));
    TESS_TRY(get_numel(run, "world", &world));
    TESS_CHECK(world >= 1 && world <= CKPT_WORLD_MAX, TESS_E_FORMAT,
               "'%s': run.world is %" PRId64 ", expected 1 to %d", m->source, world,
               CKPT_WORLD_MAX);
    TESS_CHECK(ckpt_is_hex(m->run_id, 8) && ckpt_is_hex(m->attempt, 4) &&
                   m->step <= INT64_C(9999999999),
               TESS_E_FORMAT, "'%s': run_id, attempt or step out of form", m->source);
    const bool is_base = strcmp(m->kind, "base") == 0;
    TESS_CHECK(is_base ? m->base_id != NULL && ckpt_is_hex(m->base_id, 32) : m->base_id == NULL,
               TESS_E_FORMAT,
               "'%s': run.base_id must be 64 hex digits in a base and null in a step", m->source);
    m->set.shard_world = (int)world;
    return TESS_OK;
}

static tess_status parse_parent(const tess_json *root, ckpt_manifest *m)
{
    const tess_json *parent = NULL;
    tess_sha256 digest;
    TESS_TRY(tess_json_opt_object(root, "parent", &parent));
    m->has_parent = parent != NULL;
    if (parent == NULL)
        return TESS_OK;
    TESS_TRY(get_unhex(parent, "manifest_sha256", sizeof digest.byte, digest.byte));
    return get_numel(parent, "step", &m->parent_step);
}

static tess_status parse_base(const tess_json *root, ckpt_manifest *m)
{
    const tess_json *base = NULL, *files = NULL;
    const char *mode = NULL;
    void *memory = NULL;
    TESS_TRY(get_object(root, "base", &base));
    TESS_TRY(tess_json_get_string(base, "mode", &mode));
    TESS_TRY(tess_json_opt_string(base, "id", NULL, &m->base.id));
    TESS_TRY(get_array(base, "files", sizeof(tess_ckpt_source_file), &files, &memory));
    m->base_files = memory;
    m->base.files = m->base_files;
    m->base.file_numel = tess_json_numel(files);
    for (int64_t i = 0; i < m->base.file_numel; i++) {
        tess_ckpt_source_file *f = &m->base_files[i];
        const tess_json *v = tess_json_at(files, i);
        TESS_TRY(tess_json_get_string(v, "path", &f->path));
        TESS_TRY(get_numel(v, "nbytes", &f->nbytes));
        TESS_TRY(get_unhex(v, "sha256", sizeof f->sha256.byte, f->sha256.byte));
    }
    TESS_CHECK(m->base.id == NULL || ckpt_is_hex(m->base.id, 32), TESS_E_FORMAT,
               "'%s': base.id must be 64 hex digits", m->source);
    if (strcmp(mode, "none") == 0) {
        m->base.mode = TESS_CKPT_BASE_NONE;
        return TESS_OK;
    }
    TESS_CHECK(m->base.id != NULL, TESS_E_FORMAT, "'%s': base.id is missing", m->source);
    if (strcmp(mode, "copy") == 0) {
        m->base.mode = TESS_CKPT_BASE_COPY;
        return get_unhex(base, "manifest_sha256", sizeof m->base_manifest.byte,
                         m->base_manifest.byte);
    }
    TESS_CHECK(strcmp(mode, "reference") == 0, TESS_E_FORMAT,
               "'%s': base.mode '%.40s', expected none, copy or reference", m->source, mode);
    m->base.mode = TESS_CKPT_BASE_REFERENCE;
    return TESS_OK;
}

/* ---- files ---- */

static tess_status parse_file(const tess_json *v, int rank, ckpt_manifest *m)
{
    ckpt_file *f = &m->files[rank];
    char expected[CKPT_SHARD_NAME_NBYTES];
    const tess_json *chunks = NULL;
    const char *name = NULL;
    TESS_TRY(tess_json_get_string(v, "name", &name));
    ckpt_shard_name(rank, m->set.shard_world, expected);
    TESS_CHECK(strcmp(name, expected) == 0, TESS_E_FORMAT,
               "'%s': files[%d].name is '%.60s', expected '%s'", m->source, rank, name, expected);
    TESS_TRY(get_numel(v, "nbytes", &f->file_nbytes));
    TESS_TRY(get_unhex(v, "metadata_sha256", sizeof f->metadata.byte, f->metadata.byte));
    TESS_TRY(get_object(v, "chunks", &chunks));
    TESS_TRY(get_numel(chunks, "nbytes", &f->table_nbytes));
    TESS_TRY(get_numel(chunks, "offset", &f->table_offset_nbytes));
    TESS_TRY(get_unhex(chunks, "sha256", sizeof f->table.byte, f->table.byte));
    TESS_CHECK(f->table_nbytes % CKPT_CHUNK_ENTRY_NBYTES == 0 &&
                   f->table_offset_nbytes <= f->file_nbytes &&
                   f->table_nbytes <= f->file_nbytes - f->table_offset_nbytes,
               TESS_E_FORMAT,
               "'%s': files[%d]: chunk table of %" PRId64 " bytes at %" PRId64
               " does not fit a file of %" PRId64,
               m->source, rank, f->table_nbytes, f->table_offset_nbytes, f->file_nbytes);
    return TESS_OK;
}

static tess_status parse_files(const tess_json *root, ckpt_manifest *m)
{
    const tess_json *files = NULL;
    void *memory = NULL;
    TESS_TRY(get_array(root, "files", sizeof(ckpt_file), &files, &memory));
    m->files = memory;
    TESS_CHECK(tess_json_numel(files) == m->set.shard_world, TESS_E_FORMAT,
               "'%s': %" PRId64 " files, expected run.world = %d", m->source,
               tess_json_numel(files), m->set.shard_world);
    for (int i = 0; i < m->set.shard_world; i++)
        TESS_TRY(parse_file(tess_json_at(files, i), i, m));
    return TESS_OK;
}

/* ---- records and tensors ---- */

static tess_status parse_records(const tess_json *root, ckpt_manifest *m)
{
    const tess_json *records = NULL;
    void *memory = NULL;
    TESS_TRY(get_array(root, "records", sizeof(tess_ckpt_record), &records, &memory));
    m->records = memory;
    m->set.records = m->records;
    m->set.record_numel = tess_json_numel(records);
    for (int64_t i = 0; i < m->set.record_numel; i++) {
        const tess_json *v = tess_json_at(records, i);
        tess_ckpt_record *r = &m->records[i];
        const char *dtype = NULL;
        TESS_TRY(tess_json_get_i64(v, "align", &r->align_numel));
        TESS_TRY(tess_json_get_string(v, "contract", &r->contract));
        TESS_TRY(tess_json_get_string(v, "dtype", &dtype));
        TESS_TRY(tess_json_get_i64(v, "numel", &r->total_numel));
        TESS_TRY(tess_json_get_string(v, "quant", &r->quant));
        TESS_TRY(tess_json_get_string(v, "role", &r->role));
        TESS_TRY(tess_json_get_string(v, "unit", &r->unit));
        const tess_status st = tess_dtype_parse(dtype, &r->dt);
        if (st != TESS_OK)
            tess_error_clear(); /* it knows neither file nor place */
        TESS_CHECK(st == TESS_OK, TESS_E_FORMAT, "'%s': records[%" PRId64 "].dtype '%.40s' unknown",
                   m->source, i, dtype);
    }
    return TESS_OK;
}

static tess_status parse_tensor(const tess_json *v, ckpt_manifest *m, tess_ckpt_tensor *t)
{
    const tess_json *shape = NULL;
    TESS_TRY(tess_json_get_string(v, "dtype", &t->dtype));
    TESS_TRY(tess_json_get_i64(v, "extent", &t->extent_numel));
    TESS_TRY(tess_json_get_string(v, "name", &t->name));
    TESS_TRY(tess_json_get_i64(v, "offset", &t->offset_numel));
    TESS_TRY(tess_json_get_string(v, "quant", &t->quant));
    TESS_TRY(tess_json_opt_string(v, "role", NULL, &t->role));
    TESS_TRY(tess_json_get_string(v, "unit", &t->unit));
    TESS_TRY(tess_json_get_array(v, "shape", &shape));
    TESS_CHECK(tess_json_numel(shape) <= TESS_CKPT_DIM_MAX, TESS_E_FORMAT,
               "'%s': tensor '%.100s' has %" PRId64 " dimensions, at most %d", m->source, t->name,
               tess_json_numel(shape), TESS_CKPT_DIM_MAX);
    t->dim_numel = (int)tess_json_numel(shape);
    for (int d = 0; d < t->dim_numel; d++)
        TESS_TRY(tess_json_as_i64(tess_json_at(shape, d), &t->shape[d]));
    return TESS_OK;
}

static tess_status parse_hashes(const tess_json *tensors, ckpt_manifest *m)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(m->index.pair_numel, sizeof(tess_logical_hash), &memory));
    m->hashes = memory;
    for (int64_t t = 0; t < m->set.tensor_numel; t++) {
        const tess_json *hash = NULL;
        TESS_TRY(get_object(tess_json_at(tensors, t), "hash", &hash));
        const int64_t role_numel = m->index.first_pair[t + 1] - m->index.first_pair[t];
        TESS_CHECK(tess_json_numel(hash) == role_numel, TESS_E_FORMAT,
                   "'%s': tensor '%.100s' has %" PRId64 " hashes, its unit has %" PRId64 " roles",
                   m->source, m->tensors[t].name, tess_json_numel(hash), role_numel);
        for (int64_t p = m->index.first_pair[t]; p < m->index.first_pair[t + 1]; p++) {
            uint8_t byte[16];
            TESS_TRY(
                get_unhex(hash, m->records[m->index.pairs[p].record_idx].role, sizeof byte, byte));
            for (int i = 0; i < 16; i++)
                m->hashes[p].lane[i / 8] = m->hashes[p].lane[i / 8] << 8 | byte[i];
        }
    }
    return TESS_OK;
}

static tess_status parse_tensors(const tess_json *root, ckpt_manifest *m)
{
    const tess_json *tensors = NULL;
    void *memory = NULL;
    TESS_TRY(get_array(root, "tensors", sizeof(tess_ckpt_tensor), &tensors, &memory));
    m->tensors = memory;
    m->set.tensors = m->tensors;
    m->set.tensor_numel = tess_json_numel(tensors);
    for (int64_t i = 0; i < m->set.tensor_numel; i++)
        TESS_TRY(parse_tensor(tess_json_at(tensors, i), m, &m->tensors[i]));
    TESS_TRY(ckpt_index_create(m->source, &m->set, &m->index));
    return parse_hashes(tensors, m);
}

static tess_status parse_state(const tess_json *root, ckpt_manifest *m)
{
    const tess_json *state = NULL;
    void *memory = NULL;
    TESS_TRY(get_object(root, "state", &state));
    TESS_TRY(tess_alloc_array(tess_json_numel(state), sizeof(tess_ckpt_value), &memory));
    m->state = memory;
    m->state_numel = tess_json_numel(state);
    for (int64_t i = 0; i < m->state_numel; i++) {
        const tess_json *v = tess_json_at(state, i);
        tess_ckpt_value *value = &m->state[i];
        value->name = tess_json_key(v);
        TESS_CHECK(ckpt_is_component(value->name), TESS_E_FORMAT, "'%s': state '%.80s': bad name",
                   m->source, value->name);
        const tess_json_type type = tess_json_type_of(v);
        if (type == TESS_JSON_I64) {
            value->kind = TESS_CKPT_I64;
            TESS_TRY(tess_json_as_i64(v, &value->i64));
        } else if (type == TESS_JSON_F64) {
            value->kind = TESS_CKPT_F64;
            TESS_TRY(tess_json_as_f64(v, &value->f64));
        } else {
            value->kind = TESS_CKPT_TEXT;
            TESS_TRY(tess_json_as_string(v, &value->text));
        }
    }
    return TESS_OK;
}

static tess_status parse_all(const char *text, size_t nbytes, ckpt_manifest *m)
{
    TESS_TRY(check_last_line(m->source, text, nbytes, &m->digest));
    TESS_TRY(tess_json_parse(m->source, text, nbytes - LAST_LINE_NBYTES, &m->json));
    TESS_TRY(parse_format(m->json, m->source));
    TESS_TRY(parse_run(m->json, m));
    TESS_TRY(parse_parent(m->json, m));
    TESS_TRY(parse_base(m->json, m));
    TESS_TRY(parse_files(m->json, m));
    TESS_TRY(parse_records(m->json, m));
    TESS_TRY(parse_tensors(m->json, m));
    return parse_state(m->json, m);
}

tess_status ckpt_manifest_parse(const char *source, const char *text, size_t nbytes,
                                ckpt_manifest *out)
{
    *out = (ckpt_manifest){0};
    snprintf(out->source, sizeof out->source, "%s", source);
    const tess_status st = parse_all(text, nbytes, out);
    if (st != TESS_OK)
        ckpt_manifest_fini(out);
    return st;
}

void ckpt_manifest_fini(ckpt_manifest *m)
{
    ckpt_index_destroy(&m->index);
    tess_free(m->records);
    tess_free(m->tensors);
    tess_free(m->files);
    tess_free(m->hashes);
    tess_free(m->state);
    tess_free(m->base_files);
    tess_json_destroy(&m->json);
    *m = (ckpt_manifest){0};
}

tess_status ckpt_manifest_read_bytes(tess_io *io, const char *dir, char **text, size_t *nbytes)
{
    char path[PATH_MAX];
    int fd = -1;
    int64_t file_nbytes = 0;
    void *memory = NULL;
    TESS_TRY(ckpt_join(path, dir, "MANIFEST"));
    TESS_TRY(ckpt_open_part(io, path, &fd, &file_nbytes));
    tess_status st = TESS_OK;
    if (file_nbytes > CKPT_MANIFEST_NBYTES_MAX)
        st = TESS_FAIL(TESS_E_FORMAT, "'%s': %" PRId64 " bytes, at most %d", path, file_nbytes,
                       (int)CKPT_MANIFEST_NBYTES_MAX);
    if (st == TESS_OK)
        st = tess_alloc((size_t)file_nbytes + 1, &memory);
    if (st == TESS_OK)
        st = tess_io_pread(io, path, fd, memory, (size_t)file_nbytes, 0);
    const tess_status closed = tess_io_close(io, path, &fd);
    st = st != TESS_OK ? st : closed;
    if (st != TESS_OK) {
        tess_free(memory);
        return st;
    }
    *text = memory;
    *nbytes = (size_t)file_nbytes;
    return TESS_OK;
}

tess_status ckpt_manifest_read(tess_io *io, const char *dir, ckpt_manifest *out)
{
    char path[PATH_MAX];
    char *text = NULL;
    size_t nbytes = 0;
    TESS_TRY(ckpt_join(path, dir, "MANIFEST"));
    TESS_TRY(ckpt_manifest_read_bytes(io, dir, &text, &nbytes));
    const tess_status st = ckpt_manifest_parse(path, text, nbytes, out);
    tess_free(text);
    return st;
}

tess_status ckpt_manifest_check_digest(const char *dir, const ckpt_manifest *m, const char *sha256)
{
    char found[TESS_SHA256_HEX_NBYTES];
    if (sha256 == NULL)
        return TESS_OK;
    tess_hex(m->digest.byte, sizeof m->digest.byte, found);
    TESS_CHECK(strcmp(found, sha256) == 0, TESS_E_FORMAT,
               "'%s' is another checkpoint than was asked for: its MANIFEST has the SHA-256 %s, "
               "expected %s (--manifest-sha256); get the one that was meant, or ask for this one",
               dir, found, sha256);
    return TESS_OK;
}
