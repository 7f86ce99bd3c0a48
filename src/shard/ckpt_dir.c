/* Directories of a run: listing, verifying, removing. Local, rank 0 or tools. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shard/ckpt_priv.h"

tess_status ckpt_base_dir(const char *step_dir, const char *id, char *out)
{
    char parent[PATH_MAX], base[80];
    TESS_CHECK(strlen(step_dir) < sizeof parent, TESS_E_ARG, "path of %zu bytes is too long",
               strlen(step_dir));
    snprintf(parent, sizeof parent, "%s", step_dir);
    size_t nbytes = strlen(parent);
    while (nbytes > 1 && parent[nbytes - 1] == '/')
        parent[--nbytes] = '\0';
    char *slash = strrchr(parent, '/');
    const char *last = slash != NULL ? slash + 1 : parent;
    const bool is_dots = strcmp(last, ".") == 0 || strcmp(last, "..") == 0;
    if (is_dots && nbytes + 4 < sizeof parent)
        memcpy(parent + nbytes, "/..", 4);
    else if (slash == NULL)
        snprintf(parent, sizeof parent, ".");
    else
        slash[slash == parent] = '\0';
    snprintf(base, sizeof base, "base/%.64s", id);
    return ckpt_join(out, parent, base);
}

static tess_status verify_one(tess_io *io, const char *dir, const char *kind, ckpt_reader *r)
{
    TESS_TRY(ckpt_reader_open_dir(io, dir, r));
    if (kind != NULL && strcmp(kind, r->manifest.kind) != 0)
        return TESS_FAIL(TESS_E_FORMAT, "'%s': kind '%s', expected '%s'", dir, r->manifest.kind,
                         kind);
    return ckpt_reader_verify(r);
}

static tess_status verify_base_of(tess_io *io, const char *dir, const ckpt_manifest *m)
{
    char base_dir[PATH_MAX];
    ckpt_reader base = {.open_rank = -1, .fd = -1};
    TESS_TRY(ckpt_base_dir(dir, m->base.id, base_dir));
    tess_status st = verify_one(io, base_dir, "base", &base);
    if (st == TESS_OK && (!tess_sha256_is_equal(&base.manifest.digest, &m->base_manifest) ||
                          strcmp(base.manifest.base_id, m->base.id) != 0))
        st = TESS_FAIL(TESS_E_FORMAT,
                       "'%s' is not the base that '%s' was written with (manifest digest differs)",
                       base_dir, dir);
    ckpt_reader_close(&base);
    return st;
}

tess_status ckpt_verify_dir(tess_io *io, const char *dir)
{
    ckpt_reader r = {.open_rank = -1, .fd = -1};
    tess_status st = verify_one(io, dir, NULL, &r);
    if (st == TESS_OK && r.manifest.base.mode == TESS_CKPT_BASE_COPY)
        st = verify_base_of(io, dir, &r.manifest);
    ckpt_reader_close(&r);
    return st;
}

/* ---- removing ---- */

static tess_status unlink_name(tess_io *io, const char *dir, const char *name)
{
    char path[PATH_MAX];
    TESS_TRY(ckpt_join(path, dir, name));
    return tess_io_unlink(io, path, true);
}

tess_status ckpt_remove_dir(tess_io *io, const char *dir)
{
    char **names = NULL;
    int64_t name_numel = 0;
    TESS_TRY(unlink_name(io, dir, "MANIFEST"));
    TESS_TRY(tess_io_fsync_dir(io, dir));
    TESS_TRY(tess_io_list(io, dir, &names, &name_numel));
    tess_status st = TESS_OK;
    for (int64_t i = 0; st == TESS_OK && i < name_numel; i++)
        st = unlink_name(io, dir, names[i]);
    tess_io_list_free(&names, name_numel);
    TESS_TRY(st);
    return tess_io_rmdir(io, dir);
}

/* ---- listing ---- */

/* Damaged ones first, then by (epoch, step): the last is the newest that can be loaded. A later
 * epoch is a later launch, so after a return to an older step its line of descent goes on. */
static int by_age(const void *a, const void *b)
{
    const ckpt_entry *x = a, *y = b;
    if (x->is_valid != y->is_valid)
        return x->is_valid ? 1 : -1;
    if (x->epoch != y->epoch)
        return x->epoch > y->epoch ? 1 : -1;
    if (x->step != y->step)
        return x->step > y->step ? 1 : -1;
    return strcmp(x->name, y->name);
}

static tess_status add_entry(tess_io *io, const char *path, const char *name, int64_t step,
                             ckpt_list *list)
{
    ckpt_manifest m;
    if (list->numel == list->room_numel) {
        void *memory = list->entries;
        TESS_TRY(tess_realloc_array(list->room_numel, list->room_numel * 2 + 64, sizeof(ckpt_entry),
                                    &memory));
        list->entries = memory;
        list->room_numel = list->room_numel * 2 + 64;
    }
    ckpt_entry entry = {.step = step};
    snprintf(entry.name, sizeof entry.name, "%s", name);
    const tess_status st = ckpt_manifest_read(io, path, &m);
    if (st == TESS_E_MEMORY)
        return st;
    if (st == TESS_OK) {
        entry.is_valid =
            strcmp(m.kind, "step") == 0 && m.step == step && strcmp(name + 16, m.attempt) == 0;
        entry.epoch = m.epoch;
        ckpt_manifest_fini(&m);
    }
    tess_error_clear();
    list->entries[list->numel++] = entry;
    return TESS_OK;
}

static tess_status scan_name(tess_io *io, const char *dir, const char *name, bool remove_attempts,
                             ckpt_list *list)
{
    char path[PATH_MAX], manifest[PATH_MAX];
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0, step = 0;
    if (!ckpt_parse_step_name(name, &step))
        return TESS_OK;
    TESS_TRY(ckpt_join(path, dir, name));
    TESS_TRY(ckpt_join(manifest, path, "MANIFEST"));
    TESS_TRY(tess_io_stat(io, path, &kind, &nbytes));
    bool is_link = false;
    TESS_TRY(tess_io_is_link(io, path, &is_link));
    if (kind != TESS_IO_DIR || is_link)
        return TESS_OK;
    TESS_TRY(tess_io_stat(io, manifest, &kind, &nbytes));
    if (kind != TESS_IO_MISSING)
        return add_entry(io, path, name, step, list);
    return remove_attempts ? ckpt_remove_dir(io, path) : TESS_OK;
}

tess_status ckpt_list_scan(tess_io *io, const char *dir, bool remove_attempts, ckpt_list *out)
{
    char **names = NULL;
    int64_t name_numel = 0;
    ckpt_list list = {0};
    TESS_TRY(tess_io_list(io, dir, &names, &name_numel));
    tess_status st = TESS_OK;
    for (int64_t i = 0; st == TESS_OK && i < name_numel; i++)
        st = scan_name(io, dir, names[i], remove_attempts, &list);
    tess_io_list_free(&names, name_numel);
    if (st != TESS_OK) {
        ckpt_list_fini(&list);
        return st;
    }
    if (list.numel > 1)
        qsort(list.entries, (size_t)list.numel, sizeof *list.entries, by_age);
    *out = list;
    return TESS_OK;
}

void ckpt_list_fini(ckpt_list *list)
{
    tess_free(list->entries);
    *list = (ckpt_list){0};
}
