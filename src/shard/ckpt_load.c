/* Loading: the newest checkpoint that verifies, or a named one, cut anew for this world. */
#include <stdio.h>
#include <string.h>

#include "shard/ckpt_priv.h"

/* Rank 0's file to everybody; every rank checks the bytes itself afterwards. */
tess_status ckpt_bcast_manifest(tess_comm *comm, tess_io *io, const char *dir, char **text,
                                size_t *nbytes)
{
    char *bytes = NULL;
    size_t bytes_nbytes = 0;
    const bool is_root = tess_comm_rank(comm) == 0;
    tess_status st = is_root ? ckpt_manifest_read_bytes(io, dir, &bytes, &bytes_nbytes) : TESS_OK;
    TESS_TRY(tess_agree(comm, st));
    int64_t shared_nbytes = (int64_t)bytes_nbytes;
    st = tess_comm_bcast(comm, 0, &shared_nbytes, sizeof shared_nbytes);
    void *memory = bytes;
    if (st == TESS_OK && !is_root)
        st = tess_alloc((size_t)shared_nbytes + 1, &memory);
    if (st == TESS_OK || !tess_status_is_fatal(st))
        st = tess_agree(comm, st);
    if (st == TESS_OK)
        st = tess_comm_bcast(comm, 0, memory, (size_t)shared_nbytes);
    if (st != TESS_OK) {
        tess_free(memory);
        return st;
    }
    *text = memory;
    *nbytes = (size_t)shared_nbytes;
    return TESS_OK;
}

/* ---- what the file holds against what is wanted ---- */

static void describe_shape(const tess_ckpt_tensor *t, char text[200])
{
    ckpt_text out = {text, 200, 0};
    ckpt_text_put(&out, "[");
    for (int i = 0; i < t->dim_numel; i++)
        ckpt_text_put(&out, "%s%" PRId64, i > 0 ? ", " : "", t->shape[i]);
    ckpt_text_put(&out, "]");
}

static const char *or_all(const char *role) { return role != NULL ? role : "(all)"; }

static tess_status compare_tensor(const char *where, const tess_ckpt_tensor *stored,
                                  const tess_ckpt_tensor *wanted)
{
    char stored_shape[200], wanted_shape[200];
    describe_shape(stored, stored_shape);
    describe_shape(wanted, wanted_shape);
    TESS_CHECK(strcmp(stored_shape, wanted_shape) == 0, TESS_E_FORMAT,
               "'%s': tensor '%s' has shape %s, this run needs %s", where, stored->name,
               stored_shape, wanted_shape);
    TESS_CHECK(strcmp(stored->dtype, wanted->dtype) == 0, TESS_E_FORMAT,
               "'%s': tensor '%s' is %s, this run needs %s", where, stored->name, stored->dtype,
               wanted->dtype);
    TESS_CHECK(strcmp(stored->quant, wanted->quant) == 0, TESS_E_FORMAT,
               "'%s': tensor '%s' is quantized as %s, this run needs %s", where, stored->name,
               stored->quant, wanted->quant);
    TESS_CHECK(strcmp(stored->unit, wanted->unit) == 0 &&
                   strcmp(or_all(stored->role), or_all(wanted->role)) == 0,
               TESS_E_FORMAT, "'%s': tensor '%s' lies in unit %s role %s, this run has %s role %s",
               where, stored->name, stored->unit, or_all(stored->role), wanted->unit,
               or_all(wanted->role));
    TESS_CHECK(stored->offset_numel == wanted->offset_numel &&
                   stored->extent_numel == wanted->extent_numel,
               TESS_E_FORMAT,
               "'%s': tensor '%s' lies at [%" PRId64 ", +%" PRId64
               ") of its unit, this run has [%" PRId64 ", +%" PRId64 ")",
               where, stored->name, stored->offset_numel, stored->extent_numel,
               wanted->offset_numel, wanted->extent_numel);
    return TESS_OK;
}

static tess_status compare_record(const char *where, const tess_ckpt_record *stored,
                                  const tess_ckpt_record *wanted)
{
    TESS_CHECK(stored->dt == wanted->dt, TESS_E_FORMAT,
               "'%s': slab '%s/%s' is stored as %s, this run needs %s", where, stored->unit,
               stored->role, tess_dtype_name(stored->dt), tess_dtype_name(wanted->dt));
    TESS_CHECK(stored->total_numel == wanted->total_numel, TESS_E_FORMAT,
               "'%s': slab '%s/%s' has %" PRId64 " elements, this run needs %" PRId64, where,
               stored->unit, stored->role, stored->total_numel, wanted->total_numel);
    TESS_CHECK(strcmp(stored->quant, wanted->quant) == 0, TESS_E_FORMAT,
               "'%s': slab '%s/%s' is quantized as '%.200s', this run needs '%.200s'", where,
               stored->unit, stored->role, stored->quant, wanted->quant);
    return TESS_OK;
}

static bool may_leave(const tess_ckpt_load_request *request, const char *unit)
{
    return request != NULL && request->may_leave != NULL &&
           request->may_leave(request->accept_arg, unit);
}

tess_status ckpt_compare_sets(const char *where, const ckpt_index *wanted, const ckpt_manifest *m,
                              const tess_ckpt_load_request *request)
{
    const tess_ckpt_set *w = wanted->set;
    for (int64_t i = 0; i < w->tensor_numel; i++) {
        const int64_t at = ckpt_index_tensor(&m->index, w->tensors[i].name);
        TESS_CHECK(at >= 0, TESS_E_FORMAT, "'%s': tensor '%s' of this run is missing", where,
                   w->tensors[i].name);
        TESS_TRY(compare_tensor(where, &m->tensors[at], &w->tensors[i]));
    }
    for (int64_t i = 0; i < m->set.tensor_numel; i++)
        TESS_CHECK(ckpt_index_tensor(wanted, m->tensors[i].name) >= 0 ||
                       may_leave(request, m->tensors[i].unit),
                   TESS_E_FORMAT, "'%s': holds tensor '%s', which this run does not have", where,
                   m->tensors[i].name);
    for (int64_t i = 0; i < w->record_numel; i++) {
        const tess_ckpt_record *r = &w->records[i];
        const int64_t at = ckpt_index_record(&m->index, r->unit, r->role);
        TESS_CHECK(at >= 0, TESS_E_FORMAT, "'%s': slab '%s/%s' of this run is missing", where,
                   r->unit, r->role);
        TESS_TRY(compare_record(where, &m->records[at], r));
    }
    for (int64_t i = 0; i < m->set.record_numel; i++)
        TESS_CHECK(ckpt_index_record(wanted, m->records[i].unit, m->records[i].role) >= 0 ||
                       may_leave(request, m->records[i].unit),
                   TESS_E_FORMAT, "'%s': holds slab '%s/%s', which this run does not have", where,
                   m->records[i].unit, m->records[i].role);
    return TESS_OK;
}

/* ---- one directory ---- */

typedef struct load_part {
    const tess_ckpt_set *set; /* NULL: not wanted */
    ckpt_index index;
    tess_view *views; /* [record_numel] */
    tess_logical_hash *hashes;
    int64_t *sums;
    ckpt_reader *reader;
} load_part;

typedef struct load {
    tess_ckpt_store *store;
    const tess_ckpt_load_request *request;
    load_part step, base;
    bool wants_base;    /* of this candidate */
    char dir[PATH_MAX]; /* of the candidate */
    bool is_final;      /* a failure says nothing about older checkpoints */
    tess_ckpt_loaded *out;
} load;

static tess_status prepare_part(const load *l, const char *where, const tess_ckpt_set *set,
                                load_part *part)
{
    void *memory = NULL;
    const int world = tess_comm_world(l->store->comm);
    if (set == NULL)
        return TESS_OK;
    TESS_CHECK(set->shard_world >= 1 && world % set->shard_world == 0, TESS_E_ARG,
               "load: %d ranks hold one copy, which does not divide the world of %d",
               set->shard_world, world);
    TESS_TRY(ckpt_index_create(where, set, &part->index));
    part->set = set;
    TESS_TRY(ckpt_check_views(l->store, set));
    TESS_TRY(tess_alloc_array(set->record_numel, sizeof(tess_view), &memory));
    part->views = memory;
    for (int64_t i = 0; i < set->record_numel; i++)
        part->views[i] = set->records[i].view;
    TESS_TRY(tess_alloc_array(part->index.pair_numel, sizeof(tess_logical_hash), &memory));
    part->hashes = memory;
    TESS_TRY(tess_alloc_array(part->index.pair_numel, 4 * sizeof(int64_t), &memory));
    part->sums = memory;
    return TESS_OK;
}

static void close_reader(load_part *part)
{
    if (part->reader == NULL)
        return;
    ckpt_reader_close(part->reader);
    tess_free(part->reader);
    part->reader = NULL;
}

static void free_part(load_part *part)
{
    close_reader(part);
    ckpt_index_destroy(&part->index);
    tess_free(part->views);
    tess_free(part->hashes);
    tess_free(part->sums);
}

static tess_status open_part(load *l, const char *dir, const char *kind, load_part *part)
{
    tess_comm *comm = l->store->comm;
    char *text = NULL;
    size_t nbytes = 0;
    void *memory = NULL;
    TESS_TRY(ckpt_bcast_manifest(comm, l->store->ctx->io, dir, &text, &nbytes));
    tess_status st = tess_alloc(sizeof(ckpt_reader), &memory);
    if (st == TESS_OK) {
        part->reader = memory;
        st = ckpt_reader_open(l->store->ctx->io, dir, text, nbytes, part->reader);
    }
    tess_free(text);
    if (st == TESS_OK && strcmp(part->reader->manifest.kind, kind) != 0)
        st = TESS_FAIL(TESS_E_FORMAT, "'%s' is a %s directory, expected a %s", dir,
                       part->reader->manifest.kind, kind);
    return tess_agree(comm, st);
}

static tess_status open_base(load *l)
{
    const ckpt_manifest *m = &l->step.reader->manifest;
    char dir[PATH_MAX] = "";
    if (!l->wants_base || m->base.mode != TESS_CKPT_BASE_COPY)
        return TESS_OK;
    TESS_TRY(ckpt_base_dir(l->dir, m->base.id, dir));
    TESS_TRY(open_part(l, dir, "base", &l->base));
    const ckpt_manifest *base = &l->base.reader->manifest;
    TESS_CHECK(tess_sha256_is_equal(&base->digest, &m->base_manifest) &&
                   strcmp(base->base_id, m->base.id) == 0,
               TESS_E_FORMAT,
               "'%s' is not the base that '%s' was written with (manifest digest differs)", dir,
               l->dir);
    return TESS_OK;
}

static void fill_loaded(load *l)
{
    const ckpt_manifest *m = &l->step.reader->manifest;
    tess_ckpt_loaded *out = l->out;
    *out = (tess_ckpt_loaded){.found = TESS_CKPT_LOADED,
                              .step = m->step,
                              .epoch = m->epoch,
                              .stored_world = m->set.shard_world,
                              .fallback_numel = out->fallback_numel,
                              .state = m->state,
                              .state_numel = m->state_numel,
                              .base = m->base};
    snprintf(out->path, sizeof out->path, "%.1000s", l->dir);
    snprintf(out->run_id, sizeof out->run_id, "%.16s", m->run_id);
}

/* The caller's view of the manifest, then every name, shape and dtype. */
static tess_status judge(load *l)
{
    const ckpt_manifest *m = &l->step.reader->manifest;
    TESS_TRY(ckpt_manifest_check_digest(l->dir, m, l->request->manifest_sha256));
    fill_loaded(l);
    if (l->request->accept != NULL)
        TESS_TRY(l->request->accept(l->request->accept_arg, l->out, &l->wants_base));
    return ckpt_compare_sets(l->dir, &l->step.index, m, l->request);
}

static tess_status judge_base(const load *l)
{
    if (l->base.reader == NULL)
        return TESS_OK;
    return ckpt_compare_sets(l->base.reader->dir, &l->base.index, &l->base.reader->manifest, NULL);
}

static tess_status check_part(load_part *part)
{
    for (int64_t i = 0; part->reader != NULL && i < part->set->record_numel; i++) {
        const tess_ckpt_record *r = &part->set->records[i];
        const int64_t at = ckpt_index_record(&part->reader->manifest.index, r->unit, r->role);
        TESS_TRY(ckpt_reader_check_range(part->reader, at, r->lo_idx, r->hi_idx));
    }
    return TESS_OK;
}

static tess_status read_part(load *l, load_part *part)
{
    for (int64_t i = 0; part->reader != NULL && i < part->set->record_numel; i++) {
        const tess_ckpt_record *r = &part->set->records[i];
        const int64_t at = ckpt_index_record(&part->reader->manifest.index, r->unit, r->role);
        TESS_TRY(ckpt_reader_load(part->reader, at, r->lo_idx, r->view, &l->store->window));
    }
    return TESS_OK;
}

/* Of a wanted tensor in a wanted slab, the hash that the file has: it may hold more slabs of the
 * unit. */
static const tess_logical_hash *stored_hash(const load_part *part, const ckpt_pair *pair)
{
    const ckpt_manifest *m = &part->reader->manifest;
    const int64_t at = ckpt_index_tensor(&m->index, part->set->tensors[pair->tensor_idx].name);
    int64_t p = m->index.first_pair[at];
    while (p + 1 < m->index.first_pair[at + 1] &&
           strcmp(m->records[m->index.pairs[p].record_idx].role,
                  part->set->records[pair->record_idx].role) != 0)
        p++;
    return &m->hashes[p];
}

/* Sums over all ranks are `copies` times the stored hash: every copy of the slabs is checked. */
static tess_status compare_sums(const load_part *part, int copies_numel)
{
    for (int64_t p = 0; p < part->index.pair_numel; p++) {
        const ckpt_pair pair = part->index.pairs[p];
        const tess_ckpt_tensor *t = &part->set->tensors[pair.tensor_idx];
        const tess_logical_hash *stored = stored_hash(part, &pair);
        const tess_logical_hash *found = &part->hashes[p];
        for (int k = 0; k < 2; k++)
            TESS_CHECK(found->lane[k] == stored->lane[k] * (uint64_t)copies_numel, TESS_E_FORMAT,
                       "'%s': tensor '%s' role %s: what the ranks read has another hash than the "
                       "manifest says (%016" PRIx64 ", %016" PRIx64 ")",
                       part->reader->dir, t->name, part->set->records[pair.record_idx].role,
                       found->lane[k], stored->lane[k] * (uint64_t)copies_numel);
    }
    return TESS_OK;
}

static tess_status check_hashes(load *l, load_part *part)
{
    if (part->reader == NULL)
        return TESS_OK;
    tess_comm *comm = l->store->comm;
    const ckpt_shard_views from = {&part->index, part->views, &l->store->window,
                                   tess_comm_rank(comm) % part->set->shard_world};
    /* Of what lies in the views now, so that also the way there is checked. */
    TESS_TRY(tess_agree(comm, ckpt_hash_records(&from, NULL, NULL, part->hashes)));
    TESS_TRY(ckpt_hash_reduce(comm, true, part->hashes, part->index.pair_numel, part->sums));
    return compare_sums(part, tess_comm_world(comm) / part->set->shard_world);
}

/* One candidate, l->dir equal on all ranks. Every step ends in one verdict. */
static tess_status try_candidate(load *l)
{
    tess_comm *comm = l->store->comm;
    close_reader(&l->step);
    close_reader(&l->base);
    l->wants_base = l->base.set != NULL;
    l->is_final = false;
    TESS_TRY(open_part(l, l->dir, "step", &l->step));
    l->is_final = true;
    TESS_TRY(tess_agree(comm, judge(l)));
    l->is_final = false;
    TESS_TRY(open_base(l));
    l->is_final = true;
    TESS_TRY(tess_agree(comm, judge_base(l)));
    l->is_final = false;
    tess_status st = check_part(&l->step);
    if (st == TESS_OK)
        st = check_part(&l->base);
    TESS_TRY(tess_agree(comm, st));
    st = read_part(l, &l->step);
    if (st == TESS_OK)
        st = read_part(l, &l->base);
    TESS_TRY(tess_agree(comm, st));
    TESS_TRY(check_hashes(l, &l->step));
    return check_hashes(l, &l->base);
}

/* ---- candidates ---- */

/* What rank 0 tells about the next one. */
typedef struct candidate {
    int64_t idx;             /* in rank 0's list, -1 none */
    int64_t committed_numel; /* that may be loaded */
    char dir[PATH_MAX];
} candidate;

/* Others of the directory are of other runs, or were left behind by going on from an older one. */
static bool is_own_past(const tess_ckpt_store *s, const ckpt_entry *e)
{
    bool is_past = e->epoch == s->epoch;
    for (int64_t i = 0; i < s->list.numel && !is_past; i++)
        is_past = s->list.entries[i].is_resumed && e->step <= s->list.entries[i].step;
    return is_past;
}

static bool is_eligible(const load *l, int64_t idx)
{
    const tess_ckpt_load_request *r = l->request;
    const ckpt_entry *e = &l->store->list.entries[idx];
    return r->may_load == NULL || (is_own_past(l->store, e) && r->may_load(r->accept_arg, e->step));
}

static tess_status next_candidate(load *l, int64_t before_idx, candidate *c)
{
    tess_ckpt_store *s = l->store;
    tess_status st = TESS_OK;
    *c = (candidate){.idx = -1};
    for (int64_t i = 0; tess_comm_rank(s->comm) == 0 && i < s->list.numel; i++)
        if (is_eligible(l, i)) {
            c->committed_numel++;
            c->idx = i < before_idx ? i : c->idx;
        }
    if (c->idx >= 0)
        st = ckpt_join(c->dir, s->dir, s->list.entries[c->idx].name);
    TESS_TRY(tess_agree(s->comm, st));
    TESS_TRY(tess_comm_bcast(s->comm, 0, c, sizeof *c));
    memcpy(l->dir, c->dir, sizeof l->dir);
    return TESS_OK;
}

/* Ones whose manifest is damaged sort last, so they were not tried: say so, and count them. */
static tess_status report_damaged(load *l, int64_t chosen_idx)
{
    tess_ckpt_store *s = l->store;
    int64_t numel = 0;
    for (int64_t i = 0; tess_comm_rank(s->comm) == 0 && i < chosen_idx; i++) {
        const ckpt_entry *e = &s->list.entries[i];
        if (e->is_valid || e->step <= l->out->step || !is_eligible(l, i))
            continue;
        numel++;
        tess_log_write(&s->ctx->log, TESS_LOG_WARN,
                       "checkpoint '%s' is newer but its MANIFEST does not verify", e->name);
    }
    TESS_TRY(tess_comm_bcast(s->comm, 0, &numel, sizeof numel));
    l->out->fallback_numel += numel;
    return TESS_OK;
}

/* Nothing was ever committed: a fresh start, unless a certain checkpoint was asked for. */
static tess_status find_none(const load *l)
{
    const char *wanted = l->request->manifest_sha256;
    TESS_CHECK(wanted == NULL, TESS_E_NOT_FOUND,
               "'%s' holds no checkpoint, and the one whose MANIFEST has the SHA-256 %s was asked "
               "for (--manifest-sha256); name its folder, or leave the option out",
               l->store->dir, wanted);
    return TESS_OK;
}

static tess_status fail_all(load *l, const candidate *c, const char *newest, const char *why)
{
    return TESS_FAIL(TESS_E_NOT_FOUND,
                     "'%s': %" PRId64 " checkpoints were committed and none verifies; the newest, "
                     "'%s': %.1200s",
                     l->store->dir, c->committed_numel, newest, why);
}

static tess_status load_auto(load *l)
{
    tess_ckpt_store *s = l->store;
    candidate c;
    char first_dir[CKPT_DIR_NAME_NBYTES] = "", why[TESS_ERROR_MESSAGE_NBYTES] = "";
    int64_t before_idx = s->list.numel;
    for (;;) {
        TESS_TRY(next_candidate(l, before_idx, &c));
        if (c.committed_numel == 0)
            return tess_agree(s->comm, find_none(l));
        if (c.idx < 0)
            return fail_all(l, &c, first_dir, why);
        const tess_status st = try_candidate(l);
        if (st == TESS_OK)
            return report_damaged(l, c.idx);
        if (tess_status_is_fatal(st) || l->is_final || st == TESS_E_MEMORY)
            return st;
        tess_log_root(&s->ctx->log, TESS_LOG_WARN,
                      "checkpoint '%s' does not verify, an older one is tried: %s", l->dir,
                      tess_error_message());
        if (why[0] == '\0') {
            const char *slash = strrchr(l->dir, '/');
            snprintf(first_dir, sizeof first_dir, "%.150s", slash != NULL ? slash + 1 : l->dir);
            snprintf(why, sizeof why, "%s", tess_error_message());
        }
        tess_error_clear();
        l->out->fallback_numel++;
        before_idx = c.idx;
    }
}

static tess_status load_path(load *l)
{
    tess_ckpt_store *s = l->store;
    const char *path = l->request->path;
    char manifest[PATH_MAX];
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    tess_status st = ckpt_join(manifest, path, "MANIFEST");
    if (st == TESS_OK && tess_comm_rank(s->comm) == 0)
        st = tess_io_stat(s->ctx->io, manifest, &kind, &nbytes);
    if (st == TESS_OK && tess_comm_rank(s->comm) == 0 && kind == TESS_IO_MISSING)
        st = TESS_FAIL(
            TESS_E_NOT_FOUND,
            "'%s' is no checkpoint: it has no MANIFEST; give one of the step-* folders of a run",
            path);
    TESS_TRY(tess_agree(s->comm, st));
    snprintf(l->dir, sizeof l->dir, "%s", path);
    return try_candidate(l);
}

/* The same command started again would take the named checkpoint again. */
static void tell_left_behind(const load *l)
{
    const tess_ckpt_store *s = l->store;
    if (s->is_reader || s->list.numel == 0)
        return;
    const ckpt_entry *newest = &s->list.entries[s->list.numel - 1];
    if (newest->is_valid && newest->step > s->parent_step)
        tess_log_write(
            &s->ctx->log, TESS_LOG_WARN,
            "'%s' holds '%s', which is newer than the checkpoint that output.resume names "
            "and is left behind; output.resume: auto would go on from it",
            s->dir, newest->name);
}

/* The run goes on from here: lineage, run id, and what retention must not touch. */
static void adopt(load *l, bool is_named)
{
    char name[CKPT_DIR_NAME_NBYTES];
    tess_ckpt_store *s = l->store;
    const ckpt_manifest *m = &l->step.reader->manifest;
    s->has_parent = true;
    s->parent_step = m->step;
    s->parent_manifest = m->digest;
    snprintf(s->run_id, sizeof s->run_id, "%s", m->run_id);
    /* By the name that is its own: a path to it may be spelled in many ways. */
    ckpt_step_name(m->step, m->attempt, name);
    for (int64_t i = 0; i < s->list.numel; i++) {
        ckpt_entry *e = &s->list.entries[i];
        e->is_resumed = strcmp(e->name, name) == 0;
        e->is_counted |= e->is_resumed;
    }
    if (is_named)
        tell_left_behind(l);
    /* The manifest lives on behind the caller's pointers; what is large goes now. */
    ckpt_reader_release(l->step.reader);
    l->out->memory = l->step.reader;
    l->step.reader = NULL;
}

static tess_status prepare_load(load *l)
{
    TESS_CHECK(l->request->set != NULL, TESS_E_ARG, "load: no records wanted");
    TESS_TRY(ckpt_window_follow(&l->store->window));
    TESS_TRY(prepare_part(l, "load", l->request->set, &l->step));
    return prepare_part(l, "load of the base", l->request->base, &l->base);
}

tess_status tess_ckpt_load(tess_ckpt_store *store, const tess_ckpt_load_request *request,
                           tess_ckpt_loaded *out)
{
    tess_ckpt_loaded loaded = {.found = TESS_CKPT_FRESH};
    load l = {.store = store, .request = request, .out = &loaded};
    tess_ckpt_drain(store);
    tess_status st = tess_agree(store->comm, prepare_load(&l));
    if (st == TESS_OK)
        st = request->path != NULL ? load_path(&l) : load_auto(&l);
    if (st == TESS_OK) {
        if (loaded.found == TESS_CKPT_LOADED)
            adopt(&l, request->path != NULL);
        *out = loaded;
    }
    free_part(&l.step);
    free_part(&l.base);
    return st;
}

static tess_status load_base_alone(load *l, const char *id)
{
    tess_comm *comm = l->store->comm;
    TESS_TRY(open_part(l, l->dir, "base", &l->base));
    const char *found = l->base.reader->manifest.base_id;
    TESS_CHECK(strcmp(found, id) == 0, TESS_E_FORMAT, "'%s' holds base %.16s, expected %.16s",
               l->dir, found, id);
    tess_status st = judge_base(l);
    if (st == TESS_OK)
        st = check_part(&l->base);
    TESS_TRY(tess_agree(comm, st));
    TESS_TRY(tess_agree(comm, read_part(l, &l->base)));
    return check_hashes(l, &l->base);
}

static tess_status prepare_base(load *l, const char *id, const tess_ckpt_set *set)
{
    char root[PATH_MAX];
    TESS_TRY(ckpt_join(root, l->store->dir, "base"));
    TESS_TRY(ckpt_join(l->dir, root, id));
    TESS_TRY(ckpt_window_follow(&l->store->window));
    return prepare_part(l, "load of the base", set, &l->base);
}

tess_status tess_ckpt_load_base(tess_ckpt_store *store, const char *id, const tess_ckpt_set *set)
{
    load l = {.store = store};
    tess_ckpt_drain(store);
    tess_status st = tess_agree(store->comm, prepare_base(&l, id, set));
    if (st == TESS_OK)
        st = load_base_alone(&l, id);
    free_part(&l.base);
    return st;
}

void tess_ckpt_loaded_fini(tess_ckpt_loaded *loaded)
{
    ckpt_reader *reader = loaded->memory;
    if (reader != NULL) {
        ckpt_reader_close(reader);
        tess_free(reader);
    }
    *loaded = (tess_ckpt_loaded){0};
}

const tess_ckpt_value *tess_ckpt_loaded_value(const tess_ckpt_loaded *loaded, const char *name)
{
    for (int64_t i = 0; i < loaded->state_numel; i++)
        if (strcmp(loaded->state[i].name, name) == 0)
            return &loaded->state[i];
    return NULL;
}
