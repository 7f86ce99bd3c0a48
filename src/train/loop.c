/* The step loop: data, step, metrics, evaluation, checkpoints, requests to stop. */
#include <inttypes.h>
#include <signal.h>
#include <string.h>

#include "core/clock.h"
#include "core/memory.h"
#include "train/learning_rate.h"
#include "train/loop_priv.h"
#include "train/trace_file.h"

/* Flags of the control record; maxima over ranks come back. */
enum { FLAG_STOP, FLAG_WRITING, FLAG_HOST_PEAK, FLAG_DEVICE_PEAK, FLAG_DAMAGED, FLAG_NUMEL };

typedef struct loop {
    session_loop base;
    bool is_traced; /* spans go to a measurement, and there is no file */
    tess_trace_file *trace_file;
    loop_anomaly *anomaly; /* NULL: of measured steps nothing is said */
    loop_integrity *integrity;
} loop;

/* ---- trace ---- */

static tess_status stop_trace(loop *l)
{
    tess_runtime_trace(l->base.s->rt, NULL);
    tess_ckpt_trace(l->base.s->store, NULL);
    tess_trace_destroy(&l->base.trace);
    return tess_trace_file_close(&l->trace_file);
}

/* Every rank writes its own file; one that cannot goes on without. */
static void give_up_trace(loop *l)
{
    tess_log_write(&l->base.s->ctx->log, TESS_LOG_WARN, "trace: %s", tess_error_message());
    tess_error_clear();
    if (stop_trace(l) != TESS_OK)
        tess_error_clear(); /* said already that there is something wrong with the file */
}

static tess_status open_trace(loop *l)
{
    tess_session *s = l->base.s;
    const tess_trace_config config = {.clock = tess_runtime_stream(s->rt),
                                      .comm = s->world,
                                      .span_numel = tess_runtime_span_numel(s->rt, false),
                                      .step_numel = s->run->output.trace_steps};
    TESS_TRY(tess_trace_create(&config, &l->base.trace));
    return tess_trace_file_open(s->ctx, s->run->output.dir, tess_comm_rank(s->world),
                                &l->trace_file);
}

/* Collective: the ranks' times begin at one moment. */
static tess_status start_trace(loop *l)
{
    if (!l->base.s->run->output.trace)
        return TESS_OK;
    if (open_trace(l) != TESS_OK)
        give_up_trace(l);
    TESS_TRY(tess_comm_barrier(l->base.s->world));
    if (l->base.trace == NULL)
        return TESS_OK;
    tess_trace_start(l->base.trace);
    tess_runtime_trace(l->base.s->rt, l->base.trace);
    return TESS_OK;
}

static tess_status give_out_spans(loop *l)
{
    const tess_session_measure *m = l->base.s->options.measure;
    return l->is_traced ? tess_trace_flush(l->base.trace, m->on_event, m->arg)
                        : tess_trace_file_flush(l->trace_file, l->base.trace);
}

/* What was recorded since the last step goes to the file, or to who measures. */
static void flush_trace(loop *l)
{
    if (tess_trace_is_on(l->base.trace) && give_out_spans(l) != TESS_OK)
        give_up_trace(l);
}

static tess_status begin_traced_step(loop *l)
{
    flush_trace(l);
    if (l->base.trace == NULL)
        return TESS_OK;
    TESS_TRY(tess_trace_step(l->base.trace, l->base.s->step + 1));
    if (!tess_trace_is_on(l->base.trace) && stop_trace(l) != TESS_OK)
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

static tess_status begin_save(loop *l)
{
    tess_session *s = l->base.s;
    const tess_run *run = s->run;
    bool is_due = false;
    TESS_TRY(
        loop_prepare_save(&l->base, l->base.is_stopping || s->step == run->train.steps, &is_due));
    if (!is_due)
        return TESS_OK;
    if (s->feed->before_save != NULL)
        TESS_TRY(session_section(s, s->feed->before_save(s)));
    TESS_TRY(loop_integrity_compare(&l->base, l->integrity));
    char window[SESSION_SERIES_NUMEL][TESS_SPIKE_TEXT_NBYTES];
    const tess_ckpt_value own[] = {
        number("step", s->step),
        number("tokens", s->token_numel),
        number("updates", s->update_numel),
        number("skipped", s->skipped_numel),
        number("skipped_in_row", s->skipped_in_row),
        number("seed", run->train.seed),
        words("numerics", s->numerics),
        words("run", l->base.run_yaml),
        words("base_id", s->base_id),
        words("base_previous", s->base_previous != NULL ? s->base_previous : ""),
    };
    enum { BEFORE_OPTIMIZER = TESS_NELEM(own) + SESSION_GUARD_VALUE_NUMEL };
    tess_ckpt_value state[BEFORE_OPTIMIZER + TESS_OPTIMIZER_SCALAR_MAX];
    memcpy(state, own, sizeof own);
    session_guard_values(s, window, state + TESS_NELEM(own));
    const int state_numel =
        BEFORE_OPTIMIZER + session_optimizer_values(s, state + BEFORE_OPTIMIZER);
    TESS_TRY(loop_save(&l->base, state, state_numel));
    tess_runtime_hold(s->rt, tess_ckpt_snapshot_event(s->store));
    return TESS_OK;
}

/* ---- evaluation ---- */

static void beat_evaluation(void *arg) { loop_beat(arg, "evaluation"); }
static void beat_sample(void *arg) { loop_beat(arg, "sample"); }

static bool samples_are_due(const tess_session *s, bool is_last)
{
    const int64_t asked = s->run->sample.every;
    const int64_t every = asked == TESS_RUN_AUTO ? s->run->train.eval_every : asked;
    return session_samples(s) && (is_last || (every > 0 && s->step % every == 0));
}

/* A run is worth more than its samples: what they lack is said, and training goes on. */
static tess_status sample(loop *l)
{
    tess_session *s = l->base.s;
    tess_progress_hide(&l->base.progress);
    const tess_status st = s->feed->sample(s, beat_sample, &l->base);
    if (st == TESS_OK || tess_session_is_broken(s))
        return st;
    tess_log_root(&s->ctx->log, TESS_LOG_WARN, "sample of step %" PRId64 ": %s", s->step,
                  tess_error_message());
    tess_error_clear();
    return TESS_OK;
}

static tess_status evaluate(loop *l)
{
    tess_session *s = l->base.s;
    tess_eval_result result;
    if (!session_has_eval(s))
        return TESS_OK;
    const double start_s = tess_clock_s();
    TESS_TRY(session_eval_loss(s, beat_evaluation, &l->base, &result));
    if (s->feed->evaluated != NULL)
        TESS_TRY(session_section(s, s->feed->evaluated(s, l->base.metrics)));
    tess_trace_host(l->base.trace, "evaluate", start_s, tess_clock_s());
    if (tess_comm_rank(s->world) == 0) {
        const tess_metrics_eval_row row = {
            .step = s->step, .loss = result.loss, .loss_token_numel = result.loss_token_numel};
        tess_progress_hide(&l->base.progress);
        tess_log_root(&s->ctx->log, TESS_LOG_INFO,
                      "eval step=%" PRId64 " loss=%.6f tokens=%" PRId64, s->step, result.loss,
                      result.loss_token_numel);
        loop_note_metrics(&l->base, tess_metrics_eval(l->base.metrics, &row));
    }
    return TESS_OK;
}

/* ---- one step ---- */

static tess_status batch_of(void *arg, int64_t m, const void **batch)
{
    tess_session *s = arg;
    return s->feed->fill(s, session_data_step(s) * s->run->train.micro_batches + m, batch);
}

static tess_status report_step(loop *l, const tess_step_result *r, loop_verdict verdict, double lr,
                               double step_s)
{
    static const char *const skipped[] = {[LOOP_NONFINITE] = "non-finite", [LOOP_SPIKE] = "spike"};
    tess_session *s = l->base.s;
    const int64_t token_numel =
        s->run->train.micro_batches * s->run->train.micro_batch * s->run->data.sequence_length;
    s->token_numel += token_numel;
    if (tess_comm_rank(s->world) != 0)
        return TESS_OK;
    const tess_metrics_step_row row = {.step = s->step,
                                       .loss = r->loss,
                                       .grad_norm = r->grad_norm,
                                       .skipped = verdict == LOOP_UPDATED ? NULL : skipped[verdict],
                                       .rollback_numel = s->guard.rollback_numel,
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
    tess_progress_step(&l->base.progress, &shown);
    return tess_metrics_step(l->base.metrics, &row);
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
    const tess_session_measure *m = l->base.s->options.measure;
    l->base.done_numel++;
    if (m == NULL || m->on_step == NULL)
        return;
    const tess_measured_step step = {.step_s = step_s,
                                     .wait_s = r->wait_s,
                                     .host_peak_nbytes = r->flags[FLAG_HOST_PEAK],
                                     .device_peak_nbytes = r->flags[FLAG_DEVICE_PEAK],
                                     .loss = r->loss,
                                     .is_traced = l->is_traced};
    m->on_step(m->arg, &step);
}

/* A step of which nothing was updated is left as it was begun. */
static tess_status try_step(loop *l, bool *is_done)
{
    tess_session *s = l->base.s;
    const tess_run *run = s->run;
    const double start_s = tess_clock_s();
    bool is_damaged = false;
    loop_beat(&l->base, "step");
    TESS_TRY(session_section(s, begin_traced_step(l)));
    TESS_TRY(session_section(s, loop_integrity_look(&l->base, l->integrity, &is_damaged)));
    const int64_t flags[FLAG_NUMEL] = {[FLAG_STOP] = loop_is_asked(&l->base),
                                       [FLAG_WRITING] =
                                           tess_ckpt_poll(s->store) == TESS_CKPT_WRITING,
                                       [FLAG_HOST_PEAK] = (int64_t)tess_peak_rss_nbytes(),
                                       [FLAG_DEVICE_PEAK] = loop_device_peak(&l->base),
                                       [FLAG_DAMAGED] = is_damaged};
    tess_step_request request = {
        .first_micro_batch_idx = session_data_step(s) * run->train.micro_batches,
        .update = update_of(s),
        .arg = s,
        .batch_of = batch_of,
        .sum_held = s->feed->sum_held,
        .wants_update = s->options.measure == NULL ? loop_guard_wants_update : NULL,
        .flags = flags,
        .flag_numel = FLAG_NUMEL,
        .wants_replay = loop_integrity_wants_replay(&l->base),
        .has_veto = true};
    tess_step_result result;
    loop_verdict verdict;
    const double count_s = tess_clock_s();
    TESS_TRY(s->feed->count(s, &request.loss_token_numel));
    tess_trace_host(l->base.trace, "count tokens", count_s, tess_clock_s());
    loop_anomaly_begin(&l->base, l->anomaly);
    TESS_TRY(session_section(s, tess_runtime_step(s->rt, &request, &result)));
    *is_done = !result.is_vetoed;
    if (result.is_vetoed)
        return loop_integrity_restore(&l->base, l->integrity);
    TESS_TRY(loop_integrity_replayed(&l->base, &result));
    s->step++;
    const double step_s = tess_clock_s() - start_s;
    loop_note_step(&l->base, step_s);
    TESS_TRY(session_section(s, loop_anomaly_step(&l->base, l->anomaly, &result)));
    l->base.is_stopping = result.flags[FLAG_STOP] != 0;
    TESS_TRY(loop_guard_step(&l->base, &result, &verdict));
    if (verdict == LOOP_ROLLED_BACK)
        return TESS_OK;
    const double lr = request.update.learning_rate;
    loop_note_metrics(&l->base, report_step(l, &result, verdict, lr, step_s));
    measure_step(l, &result, step_s);
    if (s->feed->stepped != NULL)
        TESS_TRY(session_section(s, s->feed->stepped(s, l->base.metrics)));
    TESS_TRY(loop_integrity_step(&l->base, l->integrity));
    return result.flags[FLAG_WRITING] == 0 ? loop_commit(&l->base) : TESS_OK;
}

static tess_status run_step(loop *l)
{
    bool is_done = false;
    while (!is_done)
        TESS_TRY(try_step(l, &is_done));
    return TESS_OK;
}

/* Kernel by kernel: what recording costs is in none of the steps before. */
static tess_status run_traced(loop *l, int64_t step_numel)
{
    tess_session *s = l->base.s;
    const tess_trace_config config = {.clock = tess_runtime_stream(s->rt),
                                      .comm = s->world,
                                      .span_numel = tess_runtime_span_numel(s->rt, true),
                                      .step_numel = step_numel,
                                      .has_kernels = true};
    tess_status st = stop_trace(l); /* the file that output.trace asks for ends */
    if (st == TESS_OK)
        st = tess_trace_create(&config, &l->base.trace);
    TESS_TRY(session_agree(s, st));
    l->is_traced = true;
    tess_runtime_trace(s->rt, l->base.trace);
    for (int64_t i = 0; i < step_numel && !l->base.is_stopping; i++)
        TESS_TRY(run_step(l));
    flush_trace(l);
    if (l->base.trace != NULL && tess_trace_lost(l->base.trace) > 0)
        tess_log_write(&s->ctx->log, TESS_LOG_WARN, "trace: %" PRId64 " spans were lost",
                       tess_trace_lost(l->base.trace));
    return TESS_OK;
}

/* Steps alone, and checkpoints where they are what is measured. */
static tess_status run_measured(loop *l)
{
    const tess_session_measure *m = l->base.s->options.measure;
    while (l->base.done_numel < m->step_numel && !l->base.is_stopping) {
        TESS_TRY(run_step(l));
        if (m->save_every > 0 && l->base.done_numel % m->save_every == 0)
            TESS_TRY(begin_save(l));
    }
    TESS_TRY(loop_drain(&l->base));
    flush_trace(l);
    return m->traced_numel > 0 ? run_traced(l, m->traced_numel) : TESS_OK;
}

/* What is trained on how many ranks, and what a step is of the data: a person thinks in epochs. */
static void say_start(const tess_session *s)
{
    const tess_plan *plan = s->d.plan;
    const tess_run_train_keys *t = &s->run->train;
    const tess_log *log = &s->ctx->log;
    const int world = plan->options.world;
    const double step_numel =
        (double)s->source[0].sequence_numel / (double)(t->micro_batches * t->micro_batch);
    tess_log_root(log, TESS_LOG_INFO,
                  "train ranks=%d gather_group=%d trainable=%" PRId64 " planned_mib=%.0f", world,
                  plan->options.gather_group_numel, plan->trainable_numel,
                  (double)plan->total_nbytes / (1 << 20));
    tess_log_root(log, TESS_LOG_INFO,
                  "data %s=%" PRId64 " steps_per_epoch=%.5g epochs=%.3g steps=%" PRId64,
                  s->feed->sequence, s->source[0].sequence_numel, step_numel,
                  (double)t->steps / step_numel, t->steps);
    if (t->micro_batches < world)
        tess_log_root(log, TESS_LOG_WARN,
                      "train.micro_batches is %" PRId64 ": %" PRId64
                      " of the %d ranks compute nothing; give as many as there are ranks, or a "
                      "multiple",
                      t->micro_batches, world - t->micro_batches, world);
}

static tess_status run_steps(loop *l)
{
    tess_session *s = l->base.s;
    const tess_run *run = s->run;
    say_start(s);
    if (!s->was_resumed)
        TESS_TRY(evaluate(l));
    if (s->step >= run->train.steps)
        tess_log_root(&s->ctx->log, TESS_LOG_INFO,
                      "step %" PRId64 " of %" PRId64 " is done already: nothing to train", s->step,
                      run->train.steps);
    while (s->step < run->train.steps && !l->base.is_stopping) {
        const int64_t before = s->step;
        TESS_TRY(run_step(l));
        if (s->step <= before) /* rolled back to where all of this was done */
            continue;
        const bool is_last = s->step == run->train.steps;
        if (is_last || (run->train.eval_every > 0 && s->step % run->train.eval_every == 0))
            TESS_TRY(evaluate(l));
        if (is_last || l->base.is_stopping ||
            (run->output.checkpoint_every > 0 && s->step % run->output.checkpoint_every == 0))
            TESS_TRY(begin_save(l));
        if ((is_last || !l->base.is_stopping) && samples_are_due(s, is_last))
            TESS_TRY(sample(l));
    }
    TESS_TRY(loop_drain(&l->base));
    flush_trace(l);
    loop_tell_device_memory(&l->base, s->d.plan->total_nbytes, s->d.plan->options.library_nbytes);
    return TESS_OK;
}

/* ---- start and end ---- */

static tess_status write_plan(tess_session *s, const char *path)
{
    tess_json *plan = NULL;
    TESS_TRY(tess_plan_json(s->d.plan, &s->d.registry, &plan));
    const tess_status st = tess_json_write(s->ctx->io, path, plan, 2);
    tess_json_destroy(&plan);
    return st;
}

static tess_status start(loop *l, tess_session *s)
{
    const session_loop_kind kind = {
        .unit = s->feed->unit, .step_numel = s->run->train.steps, .write_plan = write_plan};
    TESS_TRY(loop_begin(&l->base, s, &kind));
    if (s->options.measure == NULL)
        TESS_TRY(loop_anomaly_create(s, &l->anomaly));
    return loop_integrity_create(s, &l->integrity);
}

static tess_status finish(loop *l, tess_status st)
{
    const tess_status stopped = stop_trace(l);
    if (st == TESS_OK && stopped != TESS_OK)
        give_up_trace(l);
    loop_anomaly_destroy(&l->anomaly);
    loop_integrity_destroy(&l->integrity);
    return loop_end(&l->base, st);
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
    loop l = {0};
    tess_status st = session_agree(s, start(&l, s));
    if (st == TESS_OK)
        st = loop_integrity_begin(&l.base, l.integrity);
    if (st == TESS_OK)
        st = start_trace(&l);
    if (st == TESS_OK)
        st = s->options.measure != NULL ? run_measured(&l) : run_steps(&l);
    st = finish(&l, st);
    if (st != TESS_OK)
        return st;
    const bool is_measured = s->options.measure != NULL && !l.base.is_stopping;
    const bool is_done = is_measured || s->step >= s->run->train.steps;
    if (is_done &&
        !is_measured) /* also where the last save was lost: the adapter is worth having */
        TESS_TRY(export_result(s));
    TESS_TRY(loop_check_last_save(&l.base));
    if (!is_done)
        return TESS_FAIL(TESS_E_PREEMPTED,
                         "stopped on request after step %" PRId64 " of %" PRId64
                         "; start again to go on",
                         s->step, s->run->train.steps);
    return TESS_OK;
}
