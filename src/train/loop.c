/* The step loop: data, step, metrics, evaluation, checkpoints, requests to stop. */
#include <inttypes.h>
#include <signal.h>
#include <string.h>

#include "core/clock.h"
#include "core/memory.h"
#include "train/learning_rate.h"
#include "train/metrics.h"
#include "train/progress.h"
#include "train/session_priv.h"
#include "train/trace_file.h"

/* Flags of the control record; maxima over ranks come back. */
enum { FLAG_STOP, FLAG_WRITING, FLAG_HOST_PEAK, FLAG_DEVICE_PEAK, FLAG_NUMEL };

/* Values of the resume block beside the optimizer's. */
enum { SAVED_NUMEL = 10 };

enum { SKIPPED_IN_ROW_MAX = 5, SKIPPED_PER_THOUSAND_MAX = 10 };

static const double START_DEADLINE_S = 600.0, STEP_DEADLINE_LEAST_S = 60.0,
                    STEP_DEADLINE_FACTOR = 20.0;

typedef struct loop {
    tess_session *s;
    tess_metrics *metrics; /* rank 0 */
    tess_trace *trace;     /* NULL: not asked for, or given up */
    tess_trace_file *trace_file;
    tess_progress progress;
    tess_watchdog *watchdog;
    char *run_yaml;
    bool is_saving;
    bool is_stopping;
    double longest_step_s;
    int64_t asked_step;         /* of the last save that was asked for, -1: none */
    int64_t committed_step;     /* of the last one that is on disk, -1: none by this process */
    int64_t device_peak_nbytes; /* of this rank, so far */
    int64_t done_numel;         /* steps of this call */
    double begun_s, begin_s;    /* of the save under way: when it began, how long that took */
} loop;

/* ---- watchdog ---- */

/* A section may take `least_s`, or longer where steps take long; an explicit deadline holds for
 * all. */
static void beat_for(loop *l, const char *label, double least_s)
{
    double deadline_s = l->s->options.deadline_s;
    if (deadline_s <= 0.0)
        deadline_s = TESS_MAX(least_s, STEP_DEADLINE_FACTOR * l->longest_step_s);
    tess_watchdog_beat(l->watchdog, label, l->s->step, deadline_s);
}

static void beat(loop *l, const char *label)
{
    beat_for(l, label, l->longest_step_s > 0.0 ? STEP_DEADLINE_LEAST_S : START_DEADLINE_S);
}

/* Files may be slow without being lost: they get the time of a start. */
static void beat_files(loop *l, const char *label) { beat_for(l, label, START_DEADLINE_S); }

/* Metrics of rank 0 that cannot be written: say it, the run is worth more. */
static void note_metrics(const loop *l, tess_status st)
{
    if (st == TESS_OK)
        return;
    tess_log_write(&l->s->ctx->log, TESS_LOG_WARN, "metrics: %s", tess_error_message());
    tess_error_clear();
}

/* ---- trace ---- */

static tess_status stop_trace(loop *l)
{
    tess_runtime_trace(l->s->rt, NULL);
    tess_ckpt_trace(l->s->store, NULL);
    tess_trace_destroy(&l->trace);
    return tess_trace_file_close(&l->trace_file);
}

/* Every rank writes its own file; one that cannot goes on without. */
static void give_up_trace(loop *l)
{
    tess_log_write(&l->s->ctx->log, TESS_LOG_WARN, "trace: %s", tess_error_message());
    tess_error_clear();
    if (stop_trace(l) != TESS_OK)
        tess_error_clear(); /* said already that there is something wrong with the file */
}

static tess_status open_trace(loop *l)
{
    tess_session *s = l->s;
    const tess_trace_config config = {.clock = tess_runtime_stream(s->rt),
                                      .comm = s->world,
                                      .span_numel = tess_runtime_span_numel(s->rt),
                                      .step_numel = s->run->output.trace_steps};
    TESS_TRY(tess_trace_create(&config, &l->trace));
    return tess_trace_file_open(s->ctx, s->run->output.dir, tess_comm_rank(s->world),
                                &l->trace_file);
}

/* Collective: the ranks' times begin at one moment. */
static tess_status start_trace(loop *l)
{
    if (!l->s->run->output.trace)
        return TESS_OK;
    if (open_trace(l) != TESS_OK)
        give_up_trace(l);
    TESS_TRY(tess_comm_barrier(l->s->world));
    if (l->trace == NULL)
        return TESS_OK;
    tess_trace_start(l->trace);
    tess_runtime_trace(l->s->rt, l->trace);
    return TESS_OK;
}

/* What was recorded since the last step goes to the file. */
static void flush_trace(loop *l)
{
    if (tess_trace_is_on(l->trace) && tess_trace_file_flush(l->trace_file, l->trace) != TESS_OK)
        give_up_trace(l);
}

static tess_status begin_traced_step(loop *l)
{
    flush_trace(l);
    if (l->trace == NULL)
        return TESS_OK;
    TESS_TRY(tess_trace_step(l->trace, l->s->step + 1));
    if (!tess_trace_is_on(l->trace) && stop_trace(l) != TESS_OK)
        give_up_trace(l);
    return TESS_OK;
}

/* ---- checkpoints ---- */

static tess_ckpt_value number(const char *name, int64_t value)
{
    return (tess_ckpt_value){.name = name, .kind = TESS_CKPT_I64, .i64 = value};
}

static tess_ckpt_value words(const char *name, const char *value)
{
    return (tess_ckpt_value){.name = name, .kind = TESS_CKPT_TEXT, .text = value};
}

static void report_save(loop *l, const tess_ckpt_report *r)
{
    const tess_log *log = &l->s->ctx->log;
    if (r->outcome != TESS_CKPT_DROPPED)
        l->committed_step = r->step;
    if (r->outcome == TESS_CKPT_DROPPED)
        tess_log_root(log, TESS_LOG_WARN, "checkpoint of step %" PRId64 " was dropped: %s", r->step,
                      r->message);
    else if (r->outcome == TESS_CKPT_UNSURE)
        tess_log_root(log, TESS_LOG_WARN, "checkpoint of step %" PRId64 " may not be durable: %s",
                      r->step, r->message);
    else
        tess_log_root(log, TESS_LOG_INFO,
                      "checkpoint step=%" PRId64 " dir=%s bytes=%" PRId64
                      " snapshot_s=%.4f hash_s=%.4f write_s=%.4f fsync_s=%.4f commit_s=%.4f",
                      r->step, r->dir, r->disk_nbytes, r->snapshot_s, r->hash_s, r->write_s,
                      r->fsync_s, r->commit_s);
}

/* Who measures saves hears of those that are on disk. */
static void measure_save(const loop *l, const tess_ckpt_report *r, double start_s, double end_s)
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

static tess_status commit(loop *l)
{
    tess_ckpt_report report;
    if (!l->is_saving)
        return TESS_OK;
    beat_files(l, "commit");
    l->is_saving = false;
    const double start_s = tess_clock_s();
    TESS_TRY(tess_ckpt_commit(l->s->store, &report));
    const double end_s = tess_clock_s();
    tess_trace_host(l->trace, "commit checkpoint", start_s, end_s);
    measure_save(l, &report, start_s, end_s);
    report_save(l, &report);
    return TESS_OK;
}

static tess_status begin_save(loop *l)
{
    tess_session *s = l->s;
    const tess_run *run = s->run;
    const bool is_last = l->is_stopping || s->step == run->train.steps;
    if (l->is_saving && !is_last && run->output.when_busy == TESS_RUN_BUSY_SKIP) {
        tess_log_root(&s->ctx->log, TESS_LOG_WARN,
                      "checkpoint of step %" PRId64 " skipped: one is being written", s->step);
        return TESS_OK;
    }
    TESS_TRY(commit(l));
    beat_files(l, "save");
    if (s->feed->before_save != NULL)
        TESS_TRY(session_section(s, s->feed->before_save(s)));
    if (l->metrics != NULL)
        note_metrics(l, tess_metrics_sync(l->metrics));
    tess_ckpt_value state[SAVED_NUMEL + TESS_OPTIMIZER_SCALAR_MAX] = {
        number("step", s->step),
        number("tokens", s->token_numel),
        number("updates", s->update_numel),
        number("skipped", s->skipped_numel),
        number("skipped_in_row", s->skipped_in_row),
        number("seed", run->train.seed),
        words("numerics", s->numerics),
        words("run", l->run_yaml),
        words("base_id", s->base_id),
        words("base_previous", s->base_previous != NULL ? s->base_previous : ""),
        words("model_config", s->d.config_text),
    };
    const int state_numel = SAVED_NUMEL + session_optimizer_values(s, state + SAVED_NUMEL);
    tess_ckpt_report report;
    const double start_s = tess_clock_s();
    tess_ckpt_trace(s->store, tess_trace_tracer(l->trace));
    TESS_TRY(tess_ckpt_save_begin(s->store, s->step, state, state_numel, &report));
    l->begun_s = start_s;
    l->begin_s = tess_clock_s() - start_s;
    tess_trace_host(l->trace, "begin checkpoint", start_s, start_s + l->begin_s);
    tess_runtime_hold(s->rt, tess_ckpt_snapshot_event(s->store));
    l->is_saving = report.outcome == TESS_CKPT_PENDING;
    l->asked_step = s->step;
    if (!l->is_saving)
        report_save(l, &report);
    return TESS_OK;
}

/* ---- evaluation ---- */

static void beat_evaluation(void *arg) { beat(arg, "evaluation"); }
static void beat_sample(void *arg) { beat(arg, "sample"); }

/* A run is worth more than its images: what they lack is said, and training goes on. */
static tess_status sample_images(loop *l)
{
    tess_session *s = l->s;
    const tess_status st = session_sample_images(s, beat_sample, l);
    if (st == TESS_OK || tess_session_is_broken(s))
        return st;
    tess_log_root(&s->ctx->log, TESS_LOG_WARN, "sample of step %" PRId64 ": %s", s->step,
                  tess_error_message());
    tess_error_clear();
    return TESS_OK;
}

static tess_status evaluate(loop *l)
{
    tess_session *s = l->s;
    tess_eval_result result;
    if (!session_has_eval(s))
        return TESS_OK;
    const double start_s = tess_clock_s();
    TESS_TRY(session_eval_loss(s, beat_evaluation, l, &result));
    if (s->feed->evaluated != NULL)
        TESS_TRY(session_section(s, s->feed->evaluated(s, l->metrics)));
    tess_trace_host(l->trace, "evaluate", start_s, tess_clock_s());
    if (tess_comm_rank(s->world) == 0) {
        const tess_metrics_eval_row row = {
            .step = s->step, .loss = result.loss, .loss_token_numel = result.loss_token_numel};
        tess_progress_hide(&l->progress);
        tess_log_root(&s->ctx->log, TESS_LOG_INFO,
                      "eval step=%" PRId64 " loss=%.6f tokens=%" PRId64, s->step, result.loss,
                      result.loss_token_numel);
        note_metrics(l, tess_metrics_eval(l->metrics, &row));
    }
    return TESS_OK;
}

/* ---- one step ---- */

static tess_status batch_of(void *arg, int64_t m, const void **batch)
{
    tess_session *s = arg;
    return s->feed->fill(s, s->step * s->run->train.micro_batches + m, batch);
}

static tess_status judge_finite(loop *l, const tess_step_result *r)
{
    tess_session *s = l->s;
    if (r->nonfinite_numel == 0) {
        s->update_numel++;
        s->skipped_in_row = 0;
        return TESS_OK;
    }
    s->skipped_numel++;
    s->skipped_in_row++;
    tess_log_root(&s->ctx->log, TESS_LOG_WARN,
                  "step %" PRId64 " skipped: %" PRId64
                  " non-finite gradient values, first in unit '%s' (rank %d)",
                  s->step, r->nonfinite_numel, s->d.registry.unit[r->nonfinite_unit].name,
                  r->nonfinite_rank);
    TESS_CHECK(s->skipped_in_row < SKIPPED_IN_ROW_MAX &&
                   s->skipped_numel * 1000 <= SKIPPED_PER_THOUSAND_MAX * TESS_MAX(s->step, 1000),
               TESS_E_NUMERIC,
               "step %" PRId64 ": %" PRId64 " steps in a row and %" PRId64
               " in all had non-finite gradients, "
               "last in unit '%s'; lower train.learning_rate or look at the data",
               s->step, s->skipped_in_row, s->skipped_numel,
               s->d.registry.unit[r->nonfinite_unit].name);
    return TESS_OK;
}

static tess_status report_step(loop *l, const tess_step_result *r, double lr, double step_s)
{
    tess_session *s = l->s;
    const int64_t token_numel =
        s->run->train.micro_batches * s->run->train.micro_batch * s->run->data.sequence_length;
    s->token_numel += token_numel;
    if (tess_comm_rank(s->world) != 0)
        return TESS_OK;
    const tess_metrics_step_row row = {.step = s->step,
                                       .loss = r->loss,
                                       .grad_norm = r->grad_norm,
                                       .learning_rate = lr,
                                       .token_numel = token_numel,
                                       .tokens_per_s = (double)token_numel / step_s,
                                       .step_s = step_s,
                                       .exposed_comm_s = r->exposed_comm_s,
                                       .exposed_comm_least_s = r->exposed_comm_least_s,
                                       .mem_device_peak_nbytes = r->flags[FLAG_DEVICE_PEAK],
                                       .mem_host_peak_nbytes = r->flags[FLAG_HOST_PEAK]};
    const tess_progress_row shown = {.step = s->step,
                                     .loss = r->loss,
                                     .tokens_per_s = row.tokens_per_s,
                                     .step_s = step_s,
                                     .now_s = tess_clock_s()};
    tess_progress_step(&l->progress, &shown);
    return tess_metrics_step(l->metrics, &row);
}

/* What the plan said of a device's memory, and what was taken. */
static void tell_device_memory(const loop *l)
{
    const tess_session *s = l->s;
    if (s->device != NULL)
        tess_log_root(
            &s->ctx->log, TESS_LOG_INFO,
            "device memory: planned %.1f MiB, of it %.1f MiB for libraries; taken %.1f MiB",
            (double)s->d.plan->total_nbytes / (1 << 20),
            (double)s->d.plan->options.library_nbytes / (1 << 20),
            (double)l->device_peak_nbytes / (1 << 20));
}

static tess_update update_of(const tess_session *s)
{
    const tess_run_train_keys *t = &s->run->train;
    return (tess_update){.step = s->update_numel + 1,
                         .learning_rate = tess_learning_rate(s->run, s->step),
                         .beta1 = t->beta1,
                         .beta2 = t->beta2,
                         .eps = t->eps,
                         .weight_decay = t->weight_decay,
                         .clip_norm = t->clip_norm,
                         .ema_decay = t->ema_decay,
                         .d0 = t->prodigy_d0,
                         .d_coef = t->prodigy_d_coef,
                         .has_bias_correction = t->prodigy_bias_correction,
                         .has_safeguard = t->prodigy_safeguard_warmup,
                         .has_relative_step = t->adafactor_relative_step,
                         .scales_by_param = t->adafactor_scale_parameter,
                         .momentum = t->muon_momentum,
                         .matches_adamw = t->muon_scale == TESS_RUN_MUON_SCALE_MATCH};
}

static void measure_step(loop *l, const tess_step_result *r, double step_s)
{
    const tess_session_measure *m = l->s->options.measure;
    l->done_numel++;
    if (m == NULL || m->on_step == NULL)
        return;
    const tess_measured_step step = {.step_s = step_s,
                                     .wait_s = r->wait_s,
                                     .host_peak_nbytes = r->flags[FLAG_HOST_PEAK],
                                     .device_peak_nbytes = r->flags[FLAG_DEVICE_PEAK],
                                     .loss = r->loss};
    m->on_step(m->arg, &step);
}

static tess_status run_step(loop *l)
{
    tess_session *s = l->s;
    const tess_run *run = s->run;
    const double start_s = tess_clock_s();
    const bool is_asked = s->options.stop_request != NULL && *s->options.stop_request != 0;
    const int64_t used_nbytes = (int64_t)session_device_used_nbytes(l->s);
    l->device_peak_nbytes = TESS_MAX(l->device_peak_nbytes, used_nbytes);
    const int64_t flags[FLAG_NUMEL] = {[FLAG_STOP] = is_asked,
                                       [FLAG_WRITING] =
                                           tess_ckpt_poll(s->store) == TESS_CKPT_WRITING,
                                       [FLAG_HOST_PEAK] = (int64_t)tess_peak_rss_nbytes(),
                                       [FLAG_DEVICE_PEAK] = l->device_peak_nbytes};
    tess_step_request request = {.first_micro_batch_idx = s->step * run->train.micro_batches,
                                 .update = update_of(s),
                                 .arg = s,
                                 .batch_of = batch_of,
                                 .sum_held = s->feed->sum_held,
                                 .flags = flags,
                                 .flag_numel = FLAG_NUMEL};
    tess_step_result result;
    beat(l, "step");
    TESS_TRY(session_section(s, begin_traced_step(l)));
    const double count_s = tess_clock_s();
    TESS_TRY(s->feed->count(s, &request.loss_token_numel));
    tess_trace_host(l->trace, "count tokens", count_s, tess_clock_s());
    TESS_TRY(session_section(s, tess_runtime_step(s->rt, &request, &result)));
    s->step++;
    const double step_s = tess_clock_s() - start_s;
    l->longest_step_s = TESS_MAX(l->longest_step_s, step_s);
    l->is_stopping = result.flags[FLAG_STOP] != 0;
    TESS_TRY(judge_finite(l, &result));
    note_metrics(l, report_step(l, &result, request.update.learning_rate, step_s));
    measure_step(l, &result, step_s);
    if (s->feed->stepped != NULL)
        TESS_TRY(session_section(s, s->feed->stepped(s, l->metrics)));
    return result.flags[FLAG_WRITING] == 0 ? commit(l) : TESS_OK;
}

/* Steps alone, and checkpoints where they are what is measured. */
static tess_status run_measured(loop *l)
{
    const tess_session_measure *m = l->s->options.measure;
    while (l->done_numel < m->step_numel && !l->is_stopping) {
        TESS_TRY(run_step(l));
        if (m->save_every > 0 && l->done_numel % m->save_every == 0)
            TESS_TRY(begin_save(l));
    }
    TESS_TRY(commit(l));
    flush_trace(l);
    tess_ckpt_drain(l->s->store);
    return TESS_OK;
}

static tess_status run_steps(loop *l)
{
    tess_session *s = l->s;
    const tess_run *run = s->run;
    if (!s->was_resumed)
        TESS_TRY(evaluate(l));
    if (s->step >= run->train.steps)
        tess_log_root(&s->ctx->log, TESS_LOG_INFO,
                      "step %" PRId64 " of %" PRId64 " is done already: nothing to train", s->step,
                      run->train.steps);
    while (s->step < run->train.steps && !l->is_stopping) {
        TESS_TRY(run_step(l));
        const bool is_last = s->step == run->train.steps;
        if (is_last || (run->train.eval_every > 0 && s->step % run->train.eval_every == 0))
            TESS_TRY(evaluate(l));
        if (is_last || l->is_stopping ||
            (run->output.checkpoint_every > 0 && s->step % run->output.checkpoint_every == 0))
            TESS_TRY(begin_save(l));
        if (!l->is_stopping && session_images_are_due(s, is_last))
            TESS_TRY(sample_images(l));
    }
    TESS_TRY(commit(l));
    flush_trace(l);
    tell_device_memory(l);
    beat_files(l, "removal of old checkpoints");
    tess_ckpt_drain(s->store);
    return TESS_OK;
}

/* A save that was asked for last and is not on disk: the run is not safe, whatever else went well.
 */
static tess_status check_last_save(const loop *l)
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

static tess_status write_texts(loop *l)
{
    tess_session *s = l->s;
    char path[1024];
    tess_json *plan = NULL;
    TESS_TRY(session_path(s, "run.yaml", path));
    TESS_TRY(tess_io_write_all(s->ctx->io, path, l->run_yaml, strlen(l->run_yaml)));
    TESS_TRY(session_path(s, "plan.json", path));
    TESS_TRY(tess_plan_json(s->d.plan, &s->d.registry, &plan));
    const tess_status st = tess_json_write(s->ctx->io, path, plan, 2);
    tess_json_destroy(&plan);
    return st;
}

static tess_status start(loop *l)
{
    tess_session *s = l->s;
    const tess_watchdog_options watch = {.dump_fd = 2, .dump_signal = SIGUSR2};
    const bool is_root = tess_comm_rank(s->world) == 0;
    const tess_progress_options progress = {.unit = s->feed->unit,
                                            .write =
                                                is_root && s->options.show != NULL ? show : NULL,
                                            .arg = s,
                                            .is_terminal = s->options.is_terminal,
                                            .columns = s->options.columns,
                                            .done_numel = s->step,
                                            .step_numel = s->run->train.steps,
                                            .interval_s = 10.0};
    tess_progress_init(&l->progress, &progress);
    size_t yaml_nbytes = 0;
    TESS_TRY(tess_run_yaml(s->run, &l->run_yaml, &yaml_nbytes));
    TESS_TRY(tess_watchdog_create(s->fabric != NULL ? s->fabric : s->world, &watch, &l->watchdog));
    if (!is_root)
        return TESS_OK;
    TESS_TRY(write_texts(l));
    TESS_TRY(tess_metrics_open(s->ctx, s->run->output.dir, s->step, &l->metrics));
    if (s->feed->stepped == NULL)
        return TESS_OK;
    return tess_metrics_open_levels(s->ctx, s->run->output.dir, s->step, l->metrics);
}

/* After a failure its record stays; what closing adds to it is not worth a second message. */
static void note_metrics_close(loop *l, tess_status st)
{
    const tess_status closed = tess_metrics_close(&l->metrics);
    if (st == TESS_OK)
        note_metrics(l, closed);
}

static tess_status finish(loop *l, tess_status st)
{
    const tess_status stopped = stop_trace(l);
    if (st == TESS_OK && stopped != TESS_OK)
        give_up_trace(l);
    tess_watchdog_destroy(&l->watchdog);
    tess_progress_fini(&l->progress);
    note_metrics_close(l, st);
    tess_free(l->run_yaml);
    return st;
}

static tess_status export_result(tess_session *s)
{
    char path[1024];
    TESS_TRY(session_path(s, "export", path));
    if (tess_run_is_rqvae(s->run))
        return session_export_tensors(s, path, s->run->output.export_weights);
    if (s->run->output.export_as == TESS_RUN_EXPORT_NONE)
        return TESS_OK;
    const tess_export_request request = {.dir = path,
                                         .format = s->run->output.export_as,
                                         .weights = s->run->output.export_weights,
                                         .dt = s->d.registry.compute_dt};
    return tess_session_export(s, &request);
}

tess_status tess_session_train(tess_session *s)
{
    if (s->vectors != NULL)
        return session_vectors_train(s);
    loop l = {.s = s, .asked_step = -1, .committed_step = -1};
    tess_status st = session_agree(s, start(&l));
    if (st == TESS_OK)
        st = start_trace(&l);
    if (st == TESS_OK)
        st = s->options.measure != NULL ? run_measured(&l) : run_steps(&l);
    st = finish(&l, st);
    if (st != TESS_OK)
        return st;
    const bool is_measured = s->options.measure != NULL && !l.is_stopping;
    const bool is_done = is_measured || s->step >= s->run->train.steps;
    if (is_done &&
        !is_measured) /* also where the last save was lost: the adapter is worth having */
        TESS_TRY(export_result(s));
    TESS_TRY(check_last_save(&l));
    if (!is_done)
        return TESS_FAIL(TESS_E_PREEMPTED,
                         "stopped on request after step %" PRId64 " of %" PRId64
                         "; start again to go on",
                         s->step, s->run->train.steps);
    return TESS_OK;
}
