/* What is in a checkpoint, and whether all of it is intact. Local. */
#include <stdio.h>
#include <string.h>

#include "shard/ckpt_priv.h"

/* Damaged manifests sort first, but one of a later step must not be passed over without a word. */
static const ckpt_entry *newest_of(const ckpt_list *list)
{
    const ckpt_entry *newest = &list->entries[list->numel - 1];
    for (int64_t i = 0; i < list->numel; i++)
        if (!list->entries[i].is_valid && list->entries[i].step > newest->step)
            newest = &list->entries[i];
    return newest;
}

/* A run may have gone on from an earlier one since, whose steps are fewer still. */
static void tell_whole(const tess_log *log, const char *path, const ckpt_list *list)
{
    const ckpt_entry *newest = newest_of(list), *whole = &list->entries[list->numel - 1];
    if (!newest->is_valid && whole->is_valid)
        tess_log_write(
            log, TESS_LOG_WARN,
            "the MANIFEST of '%s', the newest checkpoint in '%s', is damaged; the newest "
            "that is whole is '%s/%s': name that one to read it",
            newest->name, path, path, whole->name);
}

tess_status tess_ckpt_resolve(const tess_ctx *ctx, const char *path, char *dir, size_t dir_nbytes)
{
    char manifest[PATH_MAX], found[PATH_MAX];
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    ckpt_list list = {0};
    TESS_TRY(ckpt_join(manifest, path, "MANIFEST"));
    TESS_TRY(tess_io_stat(ctx->io, manifest, &kind, &nbytes));
    const char *chosen = kind != TESS_IO_MISSING ? path : NULL;
    if (chosen == NULL) {
        TESS_TRY(tess_io_stat(ctx->io, path, &kind, &nbytes));
        TESS_CHECK(kind == TESS_IO_DIR, TESS_E_NOT_FOUND, "%s '%s'",
                   kind == TESS_IO_MISSING ? "there is no file or folder"
                                           : "expected the folder of a checkpoint, found the file",
                   path);
        TESS_TRY(ckpt_list_scan(ctx->io, path, false, &list));
    }
    tess_status st = TESS_OK;
    if (chosen == NULL && list.numel > 0) {
        tell_whole(&ctx->log, path, &list);
        st = ckpt_join(found, path, newest_of(&list)->name);
        chosen = found;
    }
    ckpt_list_fini(&list);
    TESS_TRY(st);
    TESS_CHECK(chosen != NULL, TESS_E_NOT_FOUND,
               "'%s' is no checkpoint and holds none that was committed", path);
    TESS_CHECK(strlen(chosen) < dir_nbytes, TESS_E_ARG, "path of %zu bytes is too long",
               strlen(chosen));
    snprintf(dir, dir_nbytes, "%s", chosen);
    return TESS_OK;
}

tess_status ckpt_render(const tess_ckpt_printer *printer, ckpt_render_fn fn, const void *arg)
{
    ckpt_text t = {0};
    void *memory = NULL;
    fn(&t, arg);
    TESS_TRY(tess_alloc(t.nbytes + 1, &memory));
    t = (ckpt_text){memory, t.nbytes + 1, 0};
    fn(&t, arg);
    const tess_status st = printer->sink(printer->arg, memory, t.nbytes);
    tess_free(memory);
    return st;
}

tess_status ckpt_reader_open_dir(tess_io *io, const char *dir, ckpt_reader *r)
{
    char *text = NULL;
    size_t nbytes = 0;
    TESS_TRY(ckpt_manifest_read_bytes(io, dir, &text, &nbytes));
    const tess_status st = ckpt_reader_open(io, dir, text, nbytes, r);
    tess_free(text);
    return st;
}

/* ---- inspect ---- */

typedef struct inspect_view {
    const char *dir;
    const ckpt_manifest *m;
    char digest[TESS_SHA256_HEX_NBYTES];
    int64_t file_nbytes;
} inspect_view;

static const char *base_mode_name(tess_ckpt_base_mode mode)
{
    switch (mode) {
    case TESS_CKPT_BASE_NONE:
        return "none";
    case TESS_CKPT_BASE_COPY:
        return "copy";
    case TESS_CKPT_BASE_REFERENCE:
        return "reference";
    }
    return "?";
}

static void put_shape(ckpt_text *t, const tess_ckpt_tensor *tensor)
{
    ckpt_text_put(t, "[");
    for (int d = 0; d < tensor->dim_numel; d++)
        ckpt_text_put(t, "%s%" PRId64, d > 0 ? "," : "", tensor->shape[d]);
    ckpt_text_put(t, "]");
}

static void put_named(ckpt_text *t, const char *before, const char *key, const char *value)
{
    ckpt_text_put(t, "%s", before);
    ckpt_text_quote(t, key);
    ckpt_text_put(t, ":");
    if (value != NULL)
        ckpt_text_quote(t, value);
    else
        ckpt_text_put(t, "null");
}

static void put_tensors_json(ckpt_text *t, const ckpt_manifest *m)
{
    ckpt_text_put(t, ",\"tensors\":[");
    for (int64_t i = 0; i < m->set.tensor_numel; i++) {
        const tess_ckpt_tensor *tensor = &m->tensors[i];
        put_named(t, i > 0 ? ",\n{" : "\n{", "dtype", tensor->dtype);
        put_named(t, ",", "name", tensor->name);
        put_named(t, ",", "quant", tensor->quant);
        ckpt_text_put(t, ",\"roles\":[");
        for (int64_t p = m->index.first_pair[i]; p < m->index.first_pair[i + 1]; p++) {
            ckpt_text_put(t, "%s", p > m->index.first_pair[i] ? "," : "");
            ckpt_text_quote(t, m->records[m->index.pairs[p].record_idx].role);
        }
        ckpt_text_put(t, "],\"shape\":");
        put_shape(t, tensor);
        put_named(t, ",", "unit", tensor->unit);
        ckpt_text_put(t, "}");
    }
    ckpt_text_put(t, "]");
}

static void render_json(ckpt_text *t, const void *arg)
{
    const inspect_view *view = arg;
    const ckpt_manifest *m = view->m;
    put_named(t, "{\"base\":{", "id", m->base.id);
    put_named(t, ",", "mode", base_mode_name(m->base.mode));
    put_named(t, "},", "binary_id", m->binary_id);
    put_named(t, ",", "config_digest", m->config_digest);
    ckpt_text_put(t, ",\"epoch\":%" PRId64 ",\"files\":[", m->epoch);
    for (int i = 0; i < m->set.shard_world; i++) {
        char name[CKPT_SHARD_NAME_NBYTES];
        ckpt_shard_name(i, m->set.shard_world, name);
        ckpt_text_put(t, "%s{\"name\":\"%s\",\"nbytes\":%" PRId64 "}", i > 0 ? "," : "", name,
                      m->files[i].file_nbytes);
    }
    put_named(t, "],", "kind", m->kind);
    put_named(t, ",", "manifest_sha256", view->digest);
    put_named(t, ",", "path", view->dir);
    put_named(t, ",", "plan_digest", m->plan_digest);
    put_named(t, ",", "run_id", m->run_id);
    ckpt_text_put(t, ",\"state\":{");
    for (int64_t i = 0; i < m->state_numel; i++) {
        ckpt_text_put(t, "%s", i > 0 ? "," : "");
        ckpt_text_quote(t, m->state[i].name);
        ckpt_text_put(t, ":");
        ckpt_text_value(t, &m->state[i]);
    }
    ckpt_text_put(t, "},\"step\":%" PRId64, m->step);
    put_tensors_json(t, m);
    ckpt_text_put(t, ",\"world\":%d", m->set.shard_world);
    put_named(t, ",", "writer", m->writer);
    ckpt_text_put(t, "}\n");
}

static void put_state_text(ckpt_text *t, const tess_ckpt_value *v)
{
    ckpt_text_put(t, "  %s = ", v->name);
    if (v->kind == TESS_CKPT_TEXT && strpbrk(v->text, "\n\r") != NULL)
        ckpt_text_put(t, "(text of %zu bytes)", strlen(v->text));
    else
        ckpt_text_value(t, v);
    ckpt_text_put(t, "\n");
}

static void render_text(ckpt_text *t, const void *arg)
{
    const inspect_view *view = arg;
    const ckpt_manifest *m = view->m;
    ckpt_text_put(t, "%s %s\n", m->kind, view->dir);
    ckpt_text_put(t, "  step %" PRId64 ", run %s, epoch %" PRId64 ", written by %s\n", m->step,
                  m->run_id, m->epoch, m->writer);
    ckpt_text_put(t, "  %d files, %" PRId64 " bytes, manifest %s\n", m->set.shard_world,
                  view->file_nbytes, view->digest);
    ckpt_text_put(t, "  base %s %s\n", base_mode_name(m->base.mode),
                  m->base.id != NULL   ? m->base.id
                  : m->base_id != NULL ? m->base_id
                                       : "");
    ckpt_text_put(t, "tensors (%" PRId64 ")\n", m->set.tensor_numel);
    for (int64_t i = 0; i < m->set.tensor_numel; i++) {
        const tess_ckpt_tensor *tensor = &m->tensors[i];
        ckpt_text_put(t, "  %s %s ", tensor->name, tensor->dtype);
        put_shape(t, tensor);
        ckpt_text_put(t, " unit %s", tensor->unit);
        if (strcmp(tensor->quant, "none") != 0)
            ckpt_text_put(t, " quant %s", tensor->quant);
        ckpt_text_put(t, " roles");
        for (int64_t p = m->index.first_pair[i]; p < m->index.first_pair[i + 1]; p++)
            ckpt_text_put(t, " %s", m->records[m->index.pairs[p].record_idx].role);
        ckpt_text_put(t, "\n");
    }
    ckpt_text_put(t, "state (%" PRId64 ")\n", m->state_numel);
    for (int64_t i = 0; i < m->state_numel; i++)
        put_state_text(t, &m->state[i]);
}

tess_status tess_ckpt_inspect(const tess_ctx *ctx, const char *path, const char *manifest_sha256,
                              const tess_ckpt_printer *printer)
{
    char dir[PATH_MAX];
    void *memory = NULL;
    TESS_TRY(tess_ckpt_resolve(ctx, path, dir, sizeof dir));
    TESS_TRY(tess_alloc(sizeof(ckpt_manifest), &memory));
    ckpt_manifest *m = memory;
    tess_status st = ckpt_manifest_read(ctx->io, dir, m);
    if (st == TESS_OK) {
        inspect_view view = {.dir = dir, .m = m};
        st = ckpt_manifest_check_digest(dir, m, manifest_sha256);
        tess_hex(m->digest.byte, sizeof m->digest.byte, view.digest);
        for (int i = 0; i < m->set.shard_world; i++)
            view.file_nbytes += m->files[i].file_nbytes;
        if (st == TESS_OK)
            st = ckpt_render(printer, printer->is_json ? render_json : render_text, &view);
        ckpt_manifest_fini(m);
    }
    tess_free(memory);
    return st;
}

/* ---- verify ---- */

typedef enum verdict {
    VERDICT_OK,
    VERDICT_DAMAGED,
    VERDICT_ABSENT /* a source file that is not where it was: it may lie elsewhere */
} verdict;

typedef struct verify_line {
    const char *dir; /* NULL: `name` is a whole path */
    const char *name;
    verdict verdict;
    const char *message;
} verify_line;

static void render_verify_json(ckpt_text *t, const void *arg)
{
    const verify_line *line = arg;
    put_named(t, "{", "file", line->name);
    put_named(t, ",", "dir", line->dir);
    if (line->verdict != VERDICT_OK)
        put_named(t, ",", "message", line->message);
    static const char *const words[] = {"true", "false", "null"};
    ckpt_text_put(t, ",\"ok\":%s}\n", words[line->verdict]);
}

static void render_verify_text(ckpt_text *t, const void *arg)
{
    const verify_line *line = arg;
    static const char *const words[] = {"ok", "DAMAGED", "absent"};
    const bool has_dir = line->dir != NULL;
    ckpt_text_put(t, "%-8s  %s%s%s", words[line->verdict], has_dir ? line->dir : "",
                  has_dir ? "/" : "", line->name);
    if (line->verdict != VERDICT_OK)
        ckpt_text_put(t, ": %s", line->message);
    ckpt_text_put(t, "\n");
}

/* Print a verdict; the first failure stays in `first` with its message. */
typedef struct verify_run {
    const tess_ckpt_printer *printer;
    tess_status first;
    char message[TESS_ERROR_MESSAGE_NBYTES];
} verify_run;

static tess_status print_line(const verify_run *run, const verify_line *line)
{
    return ckpt_render(run->printer,
                       run->printer->is_json ? render_verify_json : render_verify_text, line);
}

static tess_status tell(verify_run *run, const char *dir, const char *name, tess_status st)
{
    char message[TESS_ERROR_MESSAGE_NBYTES];
    snprintf(message, sizeof message, "%s", st == TESS_OK ? "" : tess_error_message());
    tess_error_clear();
    if (st != TESS_OK && run->first == TESS_OK) {
        run->first = st;
        memcpy(run->message, message, sizeof run->message);
    }
    const verify_line line = {dir, name, st == TESS_OK ? VERDICT_OK : VERDICT_DAMAGED, message};
    return print_line(run, &line);
}

static tess_status verify_files(verify_run *run, ckpt_reader *r)
{
    const tess_status before = run->first;
    for (int i = 0; i < r->manifest.set.shard_world; i++) {
        char name[CKPT_SHARD_NAME_NBYTES];
        ckpt_shard_name(i, r->manifest.set.shard_world, name);
        TESS_TRY(tell(run, r->dir, name, ckpt_reader_verify_shard(r, i)));
    }
    if (run->first != before)
        return TESS_OK;
    return tell(run, r->dir, "logical hashes", ckpt_reader_verify(r));
}

static tess_status verify_base(verify_run *run, const tess_ctx *ctx, const ckpt_reader *step)
{
    char dir[PATH_MAX];
    ckpt_reader base = {.open_rank = -1, .fd = -1};
    TESS_TRY(ckpt_base_dir(step->dir, step->manifest.base.id, dir));
    tess_status st = ckpt_reader_open_dir(ctx->io, dir, &base);
    if (st == TESS_OK &&
        !tess_sha256_is_equal(&base.manifest.digest, &step->manifest.base_manifest))
        st = TESS_FAIL(TESS_E_FORMAT,
                       "'%s' is not the base that '%s' was written with (manifest digest differs)",
                       dir, step->dir);
    const bool is_open = st == TESS_OK;
    st = tell(run, dir, "MANIFEST", st);
    if (st == TESS_OK && is_open)
        st = verify_files(run, &base);
    ckpt_reader_close(&base);
    return st;
}

static tess_status check_source(tess_io *io, const tess_ckpt_source_file *f, int fd, int64_t nbytes)
{
    tess_sha256 found;
    TESS_CHECK(nbytes == f->nbytes, TESS_E_FORMAT,
               "'%s' has %" PRId64 " bytes, the base was read from %" PRId64, f->path, nbytes,
               f->nbytes);
    TESS_TRY(tess_io_sha256(io, f->path, fd, nbytes, &found));
    TESS_CHECK(tess_sha256_is_equal(&found, &f->sha256), TESS_E_FORMAT,
               "'%s' is not the file that the base was read from: it has another SHA-256", f->path);
    return TESS_OK;
}

/* One file that the base refers to, where it was when the run saw it. Another one at a relative
 * path tells where the reader stands, not what became of it. */
static tess_status verify_source(verify_run *run, tess_io *io, const tess_ckpt_source_file *f)
{
    static const char gone[] =
        "the base refers to it; a resume needs model.path to name it or its folder";
    const verify_line absent = {NULL, f->path, VERDICT_ABSENT, gone};
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    int fd = -1;
    tess_status st = tess_io_stat(io, f->path, &kind, &nbytes);
    if (st == TESS_OK && kind == TESS_IO_MISSING)
        return print_line(run, &absent);
    if (st == TESS_OK)
        st = tess_io_open_read(io, f->path, true, &fd, &nbytes);
    if (st == TESS_OK)
        st = check_source(io, f, fd, nbytes);
    (void)!tess_io_close(io, f->path, &fd);
    if (st == TESS_E_FORMAT && f->path[0] != '/') {
        tess_error_clear();
        return print_line(run, &absent);
    }
    return tell(run, NULL, f->path, st);
}

tess_status tess_ckpt_verify(const tess_ctx *ctx, const char *path, const char *manifest_sha256,
                             const tess_ckpt_printer *printer)
{
    char dir[PATH_MAX];
    verify_run run = {.printer = printer};
    ckpt_reader r = {.open_rank = -1, .fd = -1};
    TESS_TRY(tess_ckpt_resolve(ctx, path, dir, sizeof dir));
    tess_status opened = ckpt_reader_open_dir(ctx->io, dir, &r);
    if (opened == TESS_OK)
        opened = ckpt_manifest_check_digest(dir, &r.manifest, manifest_sha256);
    tess_status st = tell(&run, dir, "MANIFEST", opened);
    if (st == TESS_OK && opened == TESS_OK)
        st = verify_files(&run, &r);
    if (st == TESS_OK && opened == TESS_OK && r.manifest.base.mode == TESS_CKPT_BASE_COPY)
        st = verify_base(&run, ctx, &r);
    const bool refers = opened == TESS_OK && r.manifest.base.mode == TESS_CKPT_BASE_REFERENCE;
    for (int64_t i = 0; refers && st == TESS_OK && i < r.manifest.base.file_numel; i++)
        st = verify_source(&run, ctx->io, &r.manifest.base.files[i]);
    ckpt_reader_close(&r);
    TESS_TRY(st);
    if (run.first != TESS_OK)
        return TESS_FAIL(run.first, "%s", run.message);
    return TESS_OK;
}
