#include "train/loop_priv.h"

#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#include "core/clock.h"
#include "core/memory.h"
#include "train/vectors/vectors_session.h"

static const double START_DEADLINE_S = 600.0, STEP_DEADLINE_LEAST_S = 60.0,
                    STEP_DEADLINE_FACTOR = 20.0;
/* Of a pause: between looks at the disk, and between looks at requests to stop, which come sooner
 * than the shortest deadline. */
static const double PAUSE_S = 30.0;
static const long PAUSE_NAP_NS = 50 * 1000 * 1000;

/* ---- watchdog ---- */

/* A section may take `least_s`, or longer where steps take long; an explicit deadline holds for
 * all. */
static void beat_for(session_loop *l, const char *label, double least_s)
{
    double deadline_s = l->s->options.deadline_s;
    if (deadline_s <= 0.0)
        deadline_s = TESS_MAX(least_s, STEP_DEADLINE_FACTOR * l->longest_step_s);
    tess_watchdog_beat(l->watchdog, label, l->s->step, deadline_s);
}

void loop_beat(session_loop *l, const char *label)
{
    beat_for(l, label, l->longest_step_s > 0.0 ? STEP_DEADLINE_LEAST_S : START_DEADLINE_S);
}

/* Files may be slow without being lost: they get the time of a start. */
void loop_beat_files(session_loop *l, const char *label) { beat_for(l, label, START_DEADLINE_S); }

/* Metrics of rank 0 that cannot be written: say it, the run is worth more. */
void loop_note_metrics(const session_loop *l, tess_status st)
{
    if (st == TESS_OK)
        return;
    tess_log_write(&l->s->ctx->log, TESS_LOG_WARN, "metrics: %s", tess_error_message());
    tess_error_clear();
}

bool loop_is_asked(const session_loop *l)
{
    const tess_session *s = l->s;
    return s->options.stop_request != NULL && *s->options.stop_request != 0;
}

void loop_note_step(session_loop *l, double step_s)
{
    l->longest_step_s = TESS_MAX(l->longest_step_s, step_s);
}

int64_t loop_device_peak(session_loop *l)
{
    const int64_t used_nbytes = (int64_t)session_device_used_nbytes(l->s);
    l->device_peak_nbytes = TESS_MAX(l->device_peak_nbytes, used_nbytes);
    return l->device_peak_nbytes;
}

void loop_tell_device_memory(session_loop *l, size_t planned_nbytes, size_t library_nbytes)
{
    const double taken_nbytes = (double)loop_device_peak(l);
    if (l->s->device != NULL)
        tess_log_root(&l->s->ctx->log, TESS_LOG_INFO,
                      "device memory: planned %.1f MiB, of it %.1f MiB for libraries; taken %.1f "
                      "MiB",
                      (double)planned_nbytes / (1 << 20), (double)library_nbytes / (1 << 20),
                      taken_nbytes / (1 << 20));
}

/* ---- checkpoints ---- */

static void report_save(session_loop *l, const tess_ckpt_report *r)
{
    const tess_log *log = &l->s->ctx->log;
    if (r->outcome != TESS_CKPT_DROPPED)
        l->committed_step = r->step;
    tess_progress_hide(&l->progress);
    if (r->outcome == TESS_CKPT_DROPPED)
        tess_log_root(log, TESS_LOG_WARN, "checkpoint of step %" PRId64 " was dropped: %s", r->step,
                      r->message);
    else if (r->outcome == TESS_CKPT_UNSURE)
        tess_log_root(log, TESS_LOG_WARN, "checkpoint of step %" PRId64 " may not be durable: %s",
                      r->step, r->message);
    else
        tess_log_root(log, TESS_LOG_INFO,
                      "checkpoint step=%" PRId64 " dir=%s bytes=%" PRId64
                      " snapshot_s=%.4f hash_s=%.4f write_s=%.4f fsync_s=%.4f read_back_s=%.4f"
                      " commit_s=%.4f",
                      r->step, r->dir, r->disk_nbytes, r->snapshot_s, r->hash_s, r->write_s,
                      r->fsync_s, r->read_back_s, r->commit_s);
}

/* Until it is time to look at the disk again, or a rank was asked to stop: both for all ranks. */
static tess_status wait_for_room(session_loop *l, double pause_s)
{
    const struct timespec nap = {0, PAUSE_NAP_NS};
    const double begin_s = tess_clock_s();
    for (;;) {
        loop_beat_files(l, "pause: disk full");
        (void)nanosleep(&nap, NULL); /* a signal ends it early */
        int64_t max[] = {loop_is_asked(l), tess_clock_s() - begin_s >= pause_s};
        TESS_TRY(session_section(l->s, tess_comm_control(l->s->world, NULL, 0, max, 2)));
        l->is_stopping = l->is_stopping || max[0] != 0;
        if (l->is_stopping || max[1] != 0)
            return TESS_OK;
    }
}

/* The snapshot of the save that found no room is still there: it is written when there is, so which
 * checkpoints exist does not depend on when that was. */
static tess_status pause_for_room(session_loop *l, tess_ckpt_report *r)
{
    tess_session *s = l->s;
    const double pause_s = s->options.pause_s > 0.0 ? s->options.pause_s : PAUSE_S;
    tess_log_root(&s->ctx->log, TESS_LOG_WARN,
                  "output.on_disk_full: training pauses after step %" PRId64
                  " until there is room for the checkpoint of step %" PRId64
                  ", which is tried every %g s; SIGUSR1 ends the run",
                  s->step, r->step, pause_s);
    while (r->is_disk_full && !l->is_stopping) {
        TESS_TRY(wait_for_room(l, pause_s));
        /* Asked to stop, it is tried once more. */
        TESS_TRY(session_section(s, tess_ckpt_save_again(s->store, r)));
        if (r->outcome == TESS_CKPT_PENDING)
            TESS_TRY(session_section(s, tess_ckpt_commit(s->store, r)));
    }
    if (!r->is_disk_full)
        report_save(l, r);
    return TESS_OK;
}

static bool has_steps_left(const tess_session *s)
{
    return s->vectors != NULL ? !tess_kmeans_is_done(s->vectors->job)
                              : s->step < s->run->train.steps;
}

/* A save whose outcome is known. Behind the last step there is nothing to stop: the run comes to
 * its export, and loop_check_last_save() to the same end. */
static tess_status end_save(session_loop *l, tess_ckpt_report *r)
{
    report_save(l, r);
    const tess_run_full choice = l->s->run->output.on_disk_full;
    TESS_CHECK(
        !r->is_disk_full || choice != TESS_RUN_FULL_STOP || !has_steps_left(l->s), TESS_E_IO,
        "output.on_disk_full is stop, and there is no room for the checkpoint of step %" PRId64
        ": %s; make room and start again",
        r->step, r->message);
    if (!r->is_disk_full || choice != TESS_RUN_FULL_PAUSE || l->is_stopping)
        return TESS_OK;
    return pause_for_room(l, r);
}

/* Who measures saves hears of those that are on disk. */
static void measure_save(const session_loop *l, const tess_ckpt_report *r, double start_s,
                         double end_s)
{
    const tess_session_measure *m = l->s->options.measure;
    if (m == NULL || m->on_save == NULL || r->outcome != TESS_CKPT_COMMITTED)
        return;
    const tess_measured_save save = {.begin_s = l->begin_s,
                                     .commit_s = end_s - start_s,
                                     .publish_s = end_s - l->begun_s,
                                     .write_s = r->hash_s + r->write_s + r->fsync_s,
                                     .disk_nbytes = r->disk_nbytes};
    m->on_save(m->arg, &save);
}

tess_status loop_commit(session_loop *l)
{
    tess_ckpt_report report;
    if (!l->is_saving)
        return TESS_OK;
    loop_beat_files(l, "commit");
    l->is_saving = false;
    const double start_s = tess_clock_s();
    TESS_TRY(tess_ckpt_commit(l->s->store, &report));
    const double end_s = tess_clock_s();
    tess_trace_host(l->trace, "commit checkpoint", start_s, end_s);
    measure_save(l, &report, start_s, end_s);
    return end_save(l, &report);
}

tess_status loop_prepare_save(session_loop *l, bool is_last, bool *is_due)
{
    tess_session *s = l->s;
    *is_due = !l->is_saving || is_last || s->run->output.when_busy != TESS_RUN_BUSY_SKIP;
    if (!*is_due) {
        tess_log_root(&s->ctx->log, TESS_LOG_WARN,
                      "checkpoint of step %" PRId64 " skipped: one is being written", s->step);
        return TESS_OK;
    }
    TESS_TRY(loop_commit(l));
    loop_beat_files(l, "save");
    if (l->metrics != NULL)
        loop_note_metrics(l, tess_metrics_sync(l->metrics));
    return TESS_OK;
}

tess_status loop_save(session_loop *l, const tess_ckpt_value *state, int state_numel)
{
    tess_session *s = l->s;
    tess_ckpt_report report;
    l->begun_s = tess_clock_s();
    tess_ckpt_trace(s->store, tess_trace_tracer(l->trace));
    TESS_TRY(tess_ckpt_save_begin(s->store, s->step, state, state_numel, &report));
    l->begin_s = tess_clock_s() - l->begun_s;
    tess_trace_host(l->trace, "begin checkpoint", l->begun_s, l->begun_s + l->begin_s);
    l->is_saving = report.outcome == TESS_CKPT_PENDING;
    l->asked_step = s->step;
    return l->is_saving ? TESS_OK : end_save(l, &report);
}

tess_status loop_drain(session_loop *l)
{
    TESS_TRY(loop_commit(l));
    loop_beat_files(l, "removal of old checkpoints");
    tess_ckpt_drain(l->s->store);
    return TESS_OK;
}

tess_status loop_check_last_save(const session_loop *l)
{
    TESS_CHECK(
        l->committed_step == l->asked_step, TESS_E_IO,
        "output.dir: the checkpoint of step %" PRId64
        " could not be written to '%s' (the warning above says why); make room and start again",
        l->asked_step, l->s->run->output.dir);
    return TESS_OK;
}

/* ---- start and end ---- */

static void show(void *arg, const char *text)
{
    const tess_session *s = arg;
    s->options.show(s->options.show_arg, text);
}

static tess_status write_texts(session_loop *l, const session_loop_kind *kind)
{
    tess_session *s = l->s;
    char path[1024];
    TESS_TRY(session_path(s, "run.yaml", path));
    TESS_TRY(tess_io_write_all(s->ctx->io, path, l->run_yaml, strlen(l->run_yaml)));
    TESS_TRY(session_path(s, "plan.json", path));
    return kind->write_plan(s, path);
}

/* Of quantizers in models with their levels. */
static tess_status open_metrics(session_loop *l)
{
    const tess_session *s = l->s;
    const char *dir = s->run->output.dir;
    TESS_TRY(tess_metrics_open(s->ctx, dir, s->step, &l->metrics));
    if (s->feed == NULL || s->feed->stepped == NULL)
        return TESS_OK;
    return tess_metrics_open_levels(s->ctx, dir, s->step, l->metrics);
}

tess_status loop_reopen_metrics(session_loop *l)
{
    tess_status st = TESS_OK;
    if (tess_comm_rank(l->s->world) == 0) {
        loop_note_metrics(l, tess_metrics_close(&l->metrics));
        st = open_metrics(l);
    }
    return session_agree(l->s, st);
}

tess_status loop_begin(session_loop *l, tess_session *s, const session_loop_kind *kind)
{
    const tess_watchdog_options watch = {.dump_fd = 2, .dump_signal = SIGUSR2};
    const bool is_root = tess_comm_rank(s->world) == 0;
    *l = (session_loop){.s = s, .asked_step = -1, .committed_step = -1};
    const tess_progress_options progress = {.unit = kind->unit,
                                            .write =
                                                is_root && s->options.show != NULL ? show : NULL,
                                            .arg = s,
                                            .is_terminal = s->options.is_terminal,
                                            .columns = s->options.columns,
                                            .done_numel = s->step,
                                            .step_numel = kind->step_numel,
                                            .interval_s = 10.0};
    tess_progress_init(&l->progress, &progress);
    size_t yaml_nbytes = 0;
    TESS_TRY(tess_run_yaml(s->run, &l->run_yaml, &yaml_nbytes));
    TESS_TRY(tess_watchdog_create(s->fabric != NULL ? s->fabric : s->world, &watch, &l->watchdog));
    if (!is_root)
        return TESS_OK;
    TESS_TRY(write_texts(l, kind));
    return open_metrics(l);
}

/* After a failure its record stays; what closing adds to it is not worth a second message. */
tess_status loop_end(session_loop *l, tess_status st)
{
    tess_watchdog_destroy(&l->watchdog);
    tess_progress_fini(&l->progress);
    const tess_status closed = tess_metrics_close(&l->metrics);
    if (st == TESS_OK)
        loop_note_metrics(l, closed);
    tess_free(l->run_yaml);
    return st;
}
