/* Saving: snapshot at a step boundary, write on the writer thread, commit at a later boundary. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "core/clock.h"
#include "core/rng.h"
#include "shard/ckpt_priv.h"

enum { STATE_ROOM_DEFAULT_NBYTES = 1 << 20, STATE_NUMEL_MAX = 4096 };

/* ---- prepare ---- */

static bool is_writer(const tess_ckpt_store *s, const tess_ckpt_set *set)
{
    return tess_comm_rank(s->comm) < set->shard_world;
}

/* Views against ranges: a rank holds what tess_ckpt_range() says. */
tess_status ckpt_check_views(const tess_ckpt_store *s, const tess_ckpt_set *set)
{
    const int rank = tess_comm_rank(s->comm);
    const tess_device *device = s->window.device;
    for (int64_t i = 0; i < set->record_numel; i++) {
        const tess_ckpt_record *r = &set->records[i];
        int64_t lo_idx = 0, hi_idx = 0;
        tess_ckpt_range(r, set->shard_world, rank % set->shard_world, &lo_idx, &hi_idx);
        TESS_CHECK(r->lo_idx == lo_idx && r->hi_idx == hi_idx, TESS_E_ARG,
                   "record '%s/%s': this rank gives [%" PRId64 ", %" PRId64
                   "), the cut over %d ranks is [%" PRId64 ", %" PRId64 ")",
                   r->unit, r->role, r->lo_idx, r->hi_idx, set->shard_world, lo_idx, hi_idx);
        TESS_CHECK(r->view.dt == r->dt && r->view.numel == hi_idx - lo_idx &&
                       (r->view.data != NULL || r->view.numel == 0),
                   TESS_E_DTYPE, "record '%s/%s': view of %" PRId64 " %s, expected %" PRId64 " %s",
                   r->unit, r->role, r->view.numel, tess_dtype_name(r->view.dt), hi_idx - lo_idx,
                   tess_dtype_name(r->dt));
        TESS_CHECK(r->view.space == TESS_HOST || device != NULL, TESS_E_DTYPE,
                   "record '%s/%s': view in memory of a device, the store was opened for the host; "
                   "set tess_ckpt_config.device",
                   r->unit, r->role);
    }
    return TESS_OK;
}

static tess_status check_base(const tess_ckpt_base *base)
{
    TESS_CHECK(base->mode == TESS_CKPT_BASE_NONE ||
                   (base->id != NULL && ckpt_is_hex(base->id, TESS_SHA256_NBYTES)),
               TESS_E_ARG, "checkpoint base: the id must be 64 hex digits");
    for (int64_t i = 0; i < base->file_numel; i++)
        TESS_CHECK(ckpt_is_text(base->files[i].path), TESS_E_ARG,
                   "checkpoint base: the path of source file %" PRId64 " is no UTF-8", i);
    return TESS_OK;
}

static tess_status alloc_lists(tess_ckpt_store *s)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(s->set.record_numel, sizeof(tess_view), &memory));
    s->snapshot = memory;
    TESS_TRY(tess_alloc_array(s->index.pair_numel, sizeof(tess_logical_hash), &memory));
    s->hashes = memory;
    TESS_TRY(tess_alloc_array(s->index.pair_numel, 4 * sizeof(int64_t), &memory));
    s->sums = memory;
    TESS_TRY(tess_alloc_array(STATE_NUMEL_MAX, sizeof(tess_ckpt_value), &memory));
    s->state = memory;
    s->state_max_numel = STATE_NUMEL_MAX;
    TESS_TRY(tess_alloc(s->state_room_nbytes, &memory));
    s->state_room = memory;
    if (tess_comm_rank(s->comm) != 0)
        return TESS_OK;
    TESS_TRY(tess_alloc_array(tess_comm_world(s->comm), sizeof(ckpt_file), &memory));
    s->files = memory;
    s->text_room_nbytes = ckpt_manifest_room(s, &s->index, &s->base, s->state_room_nbytes);
    TESS_TRY(tess_alloc(s->text_room_nbytes, &memory));
    s->text = memory;
    /* Entries are added inside steps; room for more than a run keeps. */
    memory = s->list.entries;
    const int64_t room_numel = s->list.numel + s->keep_numel + 256;
    TESS_TRY(tess_realloc_array(s->list.numel, room_numel, sizeof(ckpt_entry), &memory));
    s->list.entries = memory;
    s->list.room_numel = room_numel;
    return TESS_OK;
}

static tess_status alloc_staging(tess_ckpt_store *s)
{
    tess_ckpt_sizes sizes;
    const int rank = tess_comm_rank(s->comm);
    TESS_TRY(tess_ckpt_plan(&s->set, rank, &sizes));
    if (s->window.device == NULL)
        TESS_TRY(tess_arena_create("checkpoint staging", sizes.staging_nbytes, &s->staging));
    else
        TESS_TRY(tess_device_arena_create(s->window.device, TESS_HOST, "checkpoint staging",
                                          sizes.staging_nbytes, &s->staging));
    s->disk_nbytes_max = (int64_t)sizes.disk_nbytes_max;
    size_t offset_nbytes = 0;
    for (int64_t i = 0; is_writer(s, &s->set) && i < s->set.record_numel; i++) {
        const tess_ckpt_record *r = &s->set.records[i];
        tess_view place;
        TESS_TRY(tess_arena_view(s->staging, offset_nbytes, r->view.numel, r->dt, &place));
        /* Fresh pages cost more than copying: the first snapshot must not pay for them. */
        memset(place.data, 0, tess_view_nbytes(place));
        s->snapshot[i] = place;
        offset_nbytes +=
            (size_t)tess_round_up((int64_t)tess_view_nbytes(place), TESS_ARENA_ALIGN_NBYTES);
    }
    return TESS_OK;
}

/* Rank 0: digest of the base that steps will name. */
static tess_status read_base_digest(tess_ckpt_store *s)
{
    char base_name[80], dir[PATH_MAX];
    ckpt_manifest m;
    if (s->base.mode != TESS_CKPT_BASE_COPY || tess_comm_rank(s->comm) != 0)
        return TESS_OK;
    snprintf(base_name, sizeof base_name, "base/%.64s", s->base.id);
    TESS_TRY(ckpt_join(dir, s->dir, base_name));
    TESS_TRY(ckpt_manifest_read(s->ctx->io, dir, &m));
    s->base_manifest = m.digest;
    ckpt_manifest_fini(&m);
    return TESS_OK;
}

static tess_status prepare_local(tess_ckpt_store *s)
{
    TESS_CHECK(!s->is_prepared && !s->is_reader, TESS_E_STATE, "checkpoint store '%s' is %s",
               s->dir, s->is_reader ? "open for reading only" : "prepared already");
    TESS_TRY(check_base(&s->base));
    TESS_TRY(ckpt_index_create("checkpoint", &s->set, &s->index));
    TESS_TRY(ckpt_check_views(s, &s->set));
    TESS_TRY(alloc_lists(s));
    TESS_TRY(alloc_staging(s));
    TESS_TRY(read_base_digest(s));
    s->is_single_threaded = !ckpt_h5_start();
    return ckpt_thread_start(s);
}

tess_status tess_ckpt_prepare(tess_ckpt_store *store, const tess_ckpt_set *set,
                              const tess_ckpt_base *base, size_t state_room_nbytes)
{
    if (!store->is_prepared) {
        store->set = *set;
        store->base = *base;
        store->state_room_nbytes =
            state_room_nbytes > 0 ? state_room_nbytes : STATE_ROOM_DEFAULT_NBYTES;
    }
    tess_status st = prepare_local(store);
    if (st == TESS_OK && set->shard_world > tess_comm_world(store->comm))
        st = TESS_FAIL(TESS_E_ARG, "checkpoint: %d writing ranks in a world of %d",
                       set->shard_world, tess_comm_world(store->comm));
    TESS_TRY(tess_agree(store->comm, st));
    store->is_prepared = true;
    return TESS_OK;
}

static tess_status check_space(tess_ckpt_store *s, int64_t copies_numel)
{
    tess_io_space space;
    int64_t need_nbytes = 0, need_inodes = 0;
    TESS_TRY(tess_io_statvfs(s->ctx->io, s->dir, &space));
    TESS_TRY(tess_mul_i64(copies_numel, s->disk_nbytes_max, &need_nbytes));
    TESS_TRY(tess_mul_i64(copies_numel, s->set.shard_world + 3, &need_inodes));
    s->is_disk_full = need_nbytes > space.free_nbytes ||
                      (space.free_inodes > 0 && need_inodes > space.free_inodes);
    TESS_CHECK(need_nbytes <= space.free_nbytes, TESS_E_IO,
               "'%s': %" PRId64 " checkpoint(s) need %" PRId64 " bytes, %" PRId64
               " are free; free space or choose another output.dir",
               s->dir, copies_numel, need_nbytes, space.free_nbytes);
    /* Some file systems make inodes as they go and report none. */
    TESS_CHECK(space.free_inodes == 0 || need_inodes <= space.free_inodes, TESS_E_IO,
               "'%s': %" PRId64 " checkpoint(s) need %" PRId64 " inodes, %" PRId64 " are free",
               s->dir, copies_numel, need_inodes, space.free_inodes);
    return TESS_OK;
}

tess_status tess_ckpt_preflight(tess_ckpt_store *store)
{
    TESS_CHECK(store->is_prepared, TESS_E_STATE, "checkpoint store '%s' is not prepared",
               store->dir);
    const int64_t every = store->keep_every, done = store->has_parent ? store->parent_step : 0;
    const int64_t milestone_numel =
        every > 0 ? TESS_MAX(store->last_step / every - done / every, (int64_t)0) : 0;
    return check_space(store, store->keep_numel + 1 + milestone_numel);
}

tess_status ckpt_judge_room(tess_ckpt_store *s, tess_status st)
{
    char message[TESS_ERROR_MESSAGE_NBYTES];
    tess_io_space space;
    if (st != TESS_E_IO || !ckpt_is_full() || !s->is_prepared)
        return st;
    s->is_disk_full = true;
    snprintf(message, sizeof message, "%.1500s", tess_error_message());
    tess_error_clear();
    if (tess_io_statvfs(s->ctx->io, s->dir, &space) != TESS_OK) {
        tess_error_clear();
        space.free_nbytes = 0;
    }
    return TESS_FAIL(st,
                     "%s; a checkpoint needs %" PRId64 " bytes, '%s' has %" PRId64
                     " free, less where a quota or a limit of files holds",
                     message, s->disk_nbytes_max, s->dir, space.free_nbytes);
}

/* ---- begin ---- */

static int compare_values(const void *a, const void *b)
{
    return strcmp(((const tess_ckpt_value *)a)->name, ((const tess_ckpt_value *)b)->name);
}

static tess_status keep_text(tess_ckpt_store *s, size_t *used_nbytes, const char **text)
{
    const size_t nbytes = strlen(*text) + 1;
    TESS_CHECK(nbytes <= s->state_room_nbytes - *used_nbytes, TESS_E_RANGE,
               "checkpoint state needs more than the %zu bytes it was prepared with",
               s->state_room_nbytes);
    char *copy = s->state_room + *used_nbytes;
    memcpy(copy, *text, nbytes);
    *used_nbytes += nbytes;
    *text = copy;
    return TESS_OK;
}

static tess_status check_value(const tess_ckpt_value *v)
{
    TESS_CHECK(ckpt_is_component(v->name), TESS_E_ARG, "checkpoint state '%.80s': bad name",
               v->name != NULL ? v->name : "");
    TESS_CHECK(v->kind != TESS_CKPT_F64 || isfinite(v->f64), TESS_E_ARG,
               "checkpoint state '%s' is not finite", v->name);
    TESS_CHECK(v->kind != TESS_CKPT_TEXT || (v->text != NULL && ckpt_is_text(v->text)), TESS_E_ARG,
               "checkpoint state '%s' is no UTF-8 text", v->name);
    return TESS_OK;
}

static tess_status copy_state(tess_ckpt_store *s, const tess_ckpt_value *state, int64_t state_numel)
{
    size_t used_nbytes = 0;
    TESS_CHECK(state_numel >= 0 && state_numel <= s->state_max_numel, TESS_E_ARG,
               "checkpoint state has %" PRId64 " values, at most %" PRId64, state_numel,
               s->state_max_numel);
    for (int64_t i = 0; i < state_numel; i++) {
        TESS_TRY(check_value(&state[i]));
        s->state[i] = state[i];
        TESS_TRY(keep_text(s, &used_nbytes, &s->state[i].name));
        if (state[i].kind == TESS_CKPT_TEXT)
            TESS_TRY(keep_text(s, &used_nbytes, &s->state[i].text));
    }
    s->state_numel = state_numel;
    if (state_numel > 1)
        qsort(s->state, (size_t)state_numel, sizeof *s->state, compare_values);
    for (int64_t i = 1; i < state_numel; i++)
        TESS_CHECK(compare_values(&s->state[i - 1], &s->state[i]) != 0, TESS_E_ARG,
                   "checkpoint state '%s' is there twice", s->state[i].name);
    return TESS_OK;
}

static size_t snapshot_nbytes(const tess_ckpt_store *s)
{
    size_t nbytes = 0;
    for (int64_t i = 0; is_writer(s, &s->set) && i < s->set.record_numel; i++)
        nbytes += tess_view_nbytes(s->snapshot[i]);
    return nbytes;
}

/* On a device: enqueued behind what `after` holds, so that the next step may begin at once. What
 * the host holds is copied here and now. */
static tess_status copy_snapshot(tess_ckpt_store *s)
{
    ckpt_window *w = &s->window;
    const int span = tess_trace_begin(s->tracer, TESS_TRACE_COPY, "snapshot",
                                      (int64_t)snapshot_nbytes(s), w->stream);
    for (int64_t i = 0; is_writer(s, &s->set) && i < s->set.record_numel; i++) {
        const tess_view v = s->set.records[i].view;
        if (v.space != TESS_HOST)
            TESS_TRY(tess_device_copy(w->device, s->snapshot[i], v, w->stream));
        else if (v.numel > 0)
            memcpy(s->snapshot[i].data, v.data, tess_view_nbytes(v));
    }
    tess_trace_end(s->tracer, span, w->stream);
    return w->device != NULL ? tess_event_record(&w->copied, w->stream) : TESS_OK;
}

static tess_status take_snapshot(tess_ckpt_store *s)
{
    const double start_s = tess_clock_s();
    tess_status st = ckpt_window_follow(&s->window);
    if (st == TESS_OK)
        st = copy_snapshot(s);
    s->times = (ckpt_times){.snapshot_s = tess_clock_s() - start_s};
    /* Copies inside the host's memory cannot fail, so nothing is to be agreed on there. */
    return s->window.device != NULL ? tess_agree(s->comm, st) : st;
}

static tess_status name_attempt(tess_ckpt_store *s, const char *attempt)
{
    snprintf(s->attempt, sizeof s->attempt, "%s", attempt);
    ckpt_step_name(s->step, attempt, s->attempt_name);
    return ckpt_join(s->attempt_dir, s->dir, s->attempt_name);
}

/* Rank 0: a new directory, durable in its parent. */
static tess_status make_attempt(tess_ckpt_store *s, char attempt[CKPT_ATTEMPT_NBYTES])
{
    uint8_t random[4];
    TESS_CHECK(getrandom(random, sizeof random, 0) == (ssize_t)sizeof random, TESS_E_IO,
               "the system gives no random bytes");
    tess_hex(random, sizeof random, attempt);
    TESS_TRY(name_attempt(s, attempt));
    TESS_TRY(check_space(s, 1));
    errno = 0;
    tess_status st = tess_io_mkdir(s->ctx->io, s->attempt_dir, false);
    if (st == TESS_OK)
        st = tess_io_fsync_dir(s->ctx->io, s->dir);
    return ckpt_judge_room(s, st);
}

static void start_report(const tess_ckpt_store *s, tess_ckpt_report *report)
{
    *report = (tess_ckpt_report){.outcome = TESS_CKPT_PENDING, .step = s->step};
    snprintf(report->dir, sizeof report->dir, "%s", s->attempt_name);
}

/* The agreed error record becomes the report's message. Collective. */
static tess_status drop(tess_ckpt_store *s, tess_ckpt_report *report)
{
    int64_t is_full = s->is_disk_full;
    report->outcome = TESS_CKPT_DROPPED;
    if (tess_error_rank() >= 0)
        snprintf(report->message, sizeof report->message, "rank %d: %.900s", tess_error_rank(),
                 tess_error_message());
    else
        snprintf(report->message, sizeof report->message, "%.1000s", tess_error_message());
    tess_error_clear();
    s->is_in_flight = false;
    s->is_dropped = true;
    if (tess_comm_rank(s->comm) == 0) {
        ckpt_thread_wait(s);
        snprintf(s->drop_dir, sizeof s->drop_dir, "%s", s->attempt_dir);
        ckpt_thread_post(s, CKPT_JOB_TIDY);
    }
    TESS_TRY(tess_comm_control(s->comm, NULL, 0, &is_full, 1));
    report->is_disk_full = is_full != 0;
    return TESS_OK;
}

static tess_status begin_local(tess_ckpt_store *s, int64_t step, const tess_ckpt_value *state,
                               int64_t state_numel)
{
    TESS_CHECK(s->is_prepared, TESS_E_STATE, "checkpoint store '%s' is not prepared", s->dir);
    TESS_CHECK(!s->is_in_flight, TESS_E_STATE,
               "checkpoint of step %" PRId64 " is still in flight, commit it first", s->step);
    TESS_CHECK(step >= 0 && step <= INT64_C(9999999999), TESS_E_ARG,
               "checkpoint: step %" PRId64 " is out of range", step);
    ckpt_thread_wait(s);
    return copy_state(s, state, state_numel);
}

/* A directory for what staging holds, and the writers at work. @param is_copying  it is on its way
 * there */
static tess_status begin_attempt(tess_ckpt_store *s, bool is_copying, tess_ckpt_report *report)
{
    char attempt[CKPT_ATTEMPT_NBYTES] = "";
    s->attempt_dir[0] = '\0';
    s->is_disk_full = false;
    tess_status st = tess_comm_rank(s->comm) == 0 ? make_attempt(s, attempt) : TESS_OK;
    st = tess_agree(s->comm, st);
    if (st != TESS_OK && tess_status_is_fatal(st))
        return st;
    if (st != TESS_OK) {
        s->attempt_name[0] = '\0'; /* rank 0 alone has one */
        start_report(s, report);
        return drop(s, report);
    }
    TESS_TRY(tess_comm_bcast(s->comm, 0, attempt, sizeof attempt));
    TESS_TRY(name_attempt(s, attempt));
    start_report(s, report);
    s->is_in_flight = true;
    s->is_dropped = false;
    s->job_status = TESS_OK;
    if (!is_writer(s, &s->set))
        return TESS_OK;
    s->job = (ckpt_shard_job){.io = s->ctx->io,
                              .dir = s->attempt_dir,
                              .h5 = {.kind = "step",
                                     .run_id = s->run_id,
                                     .plan_digest = s->plan_digest,
                                     .step = s->step,
                                     .rank = tess_comm_rank(s->comm),
                                     .set = &s->set,
                                     .state = s->state,
                                     .state_numel = s->state_numel},
                              .index = &s->index,
                              .views = s->snapshot,
                              .window = &s->window,
                              .has_read_back = s->has_read_back,
                              .hashes = s->hashes};
    s->is_copying = is_copying;
    if (!s->is_copying)
        ckpt_thread_post(s, CKPT_JOB_WRITE);
    return TESS_OK;
}

tess_status tess_ckpt_save_begin(tess_ckpt_store *store, int64_t step, const tess_ckpt_value *state,
                                 int64_t state_numel, tess_ckpt_report *report)
{
    tess_ckpt_store *s = store;
    TESS_TRY(tess_agree(s->comm, begin_local(s, step, state, state_numel)));
    s->step = step;
    s->is_dropped = false;
    /* Before the directory: where there is no room for one, the snapshot is written later. */
    const tess_status st = take_snapshot(s);
    if (st != TESS_OK && tess_status_is_fatal(st))
        return st;
    if (st == TESS_OK) {
        TESS_TRY(begin_attempt(s, s->window.device != NULL, report));
    } else {
        s->attempt_dir[0] = '\0';
        s->is_disk_full = false;
        start_report(s, report);
        TESS_TRY(drop(s, report));
        s->is_dropped = false; /* there is nothing to be tried again */
    }
    report->snapshot_s = s->times.snapshot_s;
    return TESS_OK;
}

tess_status tess_ckpt_save_again(tess_ckpt_store *store, tess_ckpt_report *report)
{
    tess_ckpt_store *s = store;
    TESS_CHECK(s->is_dropped, TESS_E_STATE, "checkpoint store '%s': no save was dropped", s->dir);
    ckpt_thread_wait(s);
    TESS_TRY(begin_attempt(s, s->window.device != NULL, report));
    report->snapshot_s = s->times.snapshot_s;
    return TESS_OK;
}

void tess_ckpt_trace(tess_ckpt_store *store, tess_tracer *tracer) { store->tracer = tracer; }

const tess_event *tess_ckpt_snapshot_event(const tess_ckpt_store *store)
{
    return store->window.device != NULL ? &store->window.copied : NULL;
}

/* Start the writer once the snapshot has arrived. Devices are asked by the calling thread only. */
static void follow_copy(tess_ckpt_store *s, bool waits)
{
    bool is_reached = false;
    if (!s->is_copying)
        return;
    tess_status st = waits ? tess_event_finish(&s->window.copied) : TESS_OK;
    if (st == TESS_OK)
        st = tess_event_query(&s->window.copied, &is_reached);
    if (st == TESS_OK && !is_reached)
        return;
    s->is_copying = false;
    if (st == TESS_OK) {
        ckpt_thread_post(s, CKPT_JOB_WRITE);
        return;
    }
    s->job_status = st; /* told by the commit, to all ranks */
    snprintf(s->job_message, sizeof s->job_message, "snapshot: %.1900s", tess_error_message());
    tess_error_clear();
}

tess_ckpt_state tess_ckpt_poll(tess_ckpt_store *store)
{
    if (!store->is_in_flight)
        return TESS_CKPT_IDLE;
    follow_copy(store, false);
    if (store->is_copying)
        return TESS_CKPT_WRITING;
    (void)pthread_mutex_lock(&store->mutex);
    const bool is_busy = store->todo != CKPT_JOB_NONE;
    (void)pthread_mutex_unlock(&store->mutex);
    return is_busy ? TESS_CKPT_WRITING : TESS_CKPT_WRITTEN;
}

void tess_ckpt_drain(tess_ckpt_store *store) { ckpt_thread_wait(store); }

/* ---- commit ---- */

static tess_status job_result(tess_ckpt_store *s)
{
    follow_copy(s, true);
    ckpt_thread_wait(s);
    if (s->job_status == TESS_OK)
        return TESS_OK;
    errno = s->job.is_disk_full ? ENOSPC : 0;
    return ckpt_judge_room(s, TESS_FAIL(s->job_status, "%s", s->job_message));
}

tess_status tess_ckpt_commit(tess_ckpt_store *store, tess_ckpt_report *report)
{
    tess_ckpt_store *s = store;
    const double start_s = tess_clock_s();
    const bool was_in_flight = s->is_in_flight;
    tess_status st =
        was_in_flight ? job_result(s) : TESS_FAIL(TESS_E_STATE, "no checkpoint is in flight");
    st = tess_agree(s->comm, st);
    if (st != TESS_OK && (tess_status_is_fatal(st) || !was_in_flight))
        return st;
    start_report(s, report);
    if (st != TESS_OK)
        return drop(s, report);
    ckpt_attempt a = {.dir = s->attempt_dir,
                      .index = &s->index,
                      .file = &s->job.file,
                      .hashes = s->hashes,
                      .sums = s->sums,
                      .files = s->files,
                      .text = {s->text, s->text_room_nbytes, 0},
                      .spec = {.kind = "step",
                               .attempt = s->attempt,
                               .step = s->step,
                               .state = s->state,
                               .state_numel = s->state_numel,
                               .base = &s->base,
                               .base_manifest = s->base_manifest,
                               .has_parent = s->has_parent,
                               .parent_step = s->parent_step,
                               .parent_manifest = s->parent_manifest}};
    TESS_TRY(ckpt_publish(s, &a));
    report->disk_nbytes = a.disk_nbytes;
    s->is_in_flight = false;
    if (a.outcome == TESS_CKPT_DROPPED)
        return drop(s, report);
    report->outcome = a.outcome;
    snprintf(report->message, sizeof report->message, "%s", a.message);
    ckpt_note_commit(s, &a);
    report->snapshot_s = s->times.snapshot_s;
    report->hash_s = s->job.times.hash_s;
    report->write_s = s->job.times.write_s;
    report->fsync_s = s->job.times.fsync_s;
    report->read_back_s = s->job.times.read_back_s;
    report->commit_s = tess_clock_s() - start_s;
    return TESS_OK;
}

tess_status tess_ckpt_save(tess_ckpt_store *store, int64_t step, const tess_ckpt_value *state,
                           int64_t state_numel, tess_ckpt_report *report)
{
    TESS_TRY(tess_ckpt_save_begin(store, step, state, state_numel, report));
    if (report->outcome == TESS_CKPT_PENDING)
        TESS_TRY(tess_ckpt_commit(store, report));
    tess_ckpt_drain(store);
    return TESS_OK;
}

/* ---- probe ---- */

/* What no file system can make smaller. */
static void fill_random(const tess_ckpt_store *s, tess_view v, uint32_t record_idx)
{
    const size_t end = tess_view_nbytes(v);
    const tess_rng rng = {.key = {(uint32_t)s->epoch, (uint32_t)tess_comm_rank(s->comm)},
                          .index = record_idx};
    uint32_t word[4];
    for (size_t at = 0; at < end; at += sizeof word) {
        tess_rng_quad(&rng, at / sizeof word, word);
        memcpy((char *)v.data + at, word, TESS_MIN(sizeof word, end - at));
    }
}

tess_status tess_ckpt_probe(tess_ckpt_store *store)
{
    tess_ckpt_store *s = store;
    tess_ckpt_report report;
    TESS_TRY(tess_agree(s->comm, begin_local(s, 0, NULL, 0)));
    s->step = 0;
    for (int64_t i = 0; is_writer(s, &s->set) && i < s->set.record_numel; i++)
        fill_random(s, s->snapshot[i], (uint32_t)i);
    TESS_TRY(begin_attempt(s, false, &report));
    const bool is_begun = report.outcome == TESS_CKPT_PENDING;
    tess_status st = TESS_OK;
    if (is_begun) {
        st = tess_agree(s->comm, job_result(s));
        if (st != TESS_OK && tess_status_is_fatal(st))
            return st;
        TESS_TRY(drop(s, &report)); /* the attempt has done its duty */
    }
    s->is_dropped = false;
    ckpt_thread_wait(s);
    TESS_CHECK(is_begun && st == TESS_OK, TESS_E_IO,
               "output.probe_disk: %s; free space or raise the quota, or choose another output.dir",
               report.message);
    return tess_comm_barrier(s->comm);
}
