/*
 * Steps that are not taken: gradients that are not finite, and loss or gradient norm that spikes.
 *
 * [Note: spikes] Loss and norm of a step are exact and have the same bits on every rank, and all
 * ranks know them before the optimizer, on a device too. So every rank finds the verdict by itself.
 * A rollback passes over all data between its checkpoint and the spike, as Chowdhery et al. (PaLM,
 * 2022, section 5.1) do: steps have the same bits again on the same data, so that passing over the
 * spike's own alone would come to the state that skipping its update gives at once. It writes
 * nothing: a run that is killed comes to the same spike again and goes back from it again.
 */
#include <inttypes.h>
#include <stdio.h>

#include "train/loop_priv.h"

enum { SKIPPED_IN_ROW_MAX = 5, SKIPPED_PER_THOUSAND_MAX = 10, ROLLBACK_MAX = 3 };

static const char *const series_name[SESSION_SERIES_NUMEL] = {"loss", "gradient norm"};

/* ---- verdict ---- */

static bool is_spike(const tess_session *s)
{
    return s->guard.is_high[SESSION_LOSS] || s->guard.is_high[SESSION_NORM];
}

bool loop_guard_wants_update(void *session, const tess_step_result *r)
{
    tess_session *s = session;
    const tess_run_train_keys *t = &s->run->train;
    const double value[SESSION_SERIES_NUMEL] = {r->loss, r->grad_norm};
    session_guard *g = &s->guard;
    for (int i = 0; i < SESSION_SERIES_NUMEL; i++) {
        g->was_high[i] = g->is_high[i];
        g->found[i] = tess_spike_score(&g->window[i], value[i]);
        g->is_high[i] = t->spike_threshold > 0.0 && g->found[i].score > t->spike_threshold;
    }
    return t->on_spike == TESS_RUN_SPIKE_WARN || !is_spike(s);
}

/* Of steps in a row that are taken though they are high the first is said: what follows may be its
 * consequence. */
static void say_spikes(session_loop *l, const tess_step_result *r)
{
    const tess_session *s = l->s;
    const session_guard *g = &s->guard;
    const double value[SESSION_SERIES_NUMEL] = {r->loss, r->grad_norm};
    const int64_t m = s->run->train.micro_batches, end = session_data_step(s) * m;
    const bool is_taken = s->run->train.on_spike == TESS_RUN_SPIKE_WARN;
    for (int i = 0; i < SESSION_SERIES_NUMEL; i++) {
        if (!g->is_high[i] || (is_taken && g->was_high[i]))
            continue;
        tess_progress_hide(&l->progress);
        tess_log_root(&s->ctx->log, TESS_LOG_WARN,
                      "step %" PRId64 ": %s %.6g, median of the steps before %.6g, robust z-score "
                      "%.3g, above train.spike_threshold %g; its data are micro-batches %" PRId64
                      " to %" PRId64,
                      s->step, series_name[i], value[i], g->found[i].median, g->found[i].score,
                      s->run->train.spike_threshold, end - m, end - 1);
    }
}

/* ---- skipped steps ---- */

static void say_skipped(const tess_session *s, const tess_step_result *r)
{
    if (r->nonfinite_numel > 0)
        tess_log_root(&s->ctx->log, TESS_LOG_WARN,
                      "step %" PRId64 " skipped: %" PRId64
                      " non-finite gradient values, first in unit '%s' (rank %d)",
                      s->step, r->nonfinite_numel, s->d.registry.unit[r->nonfinite_unit].name,
                      r->nonfinite_rank);
    else
        tess_log_root(&s->ctx->log, TESS_LOG_WARN, "step %" PRId64 " skipped: it spikes", s->step);
}

static tess_status count_skipped(session_loop *l, const tess_step_result *r)
{
    tess_session *s = l->s;
    char why[TESS_NAME_NBYTES + 40] = "a spike (train.spike_threshold)";
    s->skipped_numel++;
    s->skipped_in_row++;
    tess_progress_hide(&l->progress);
    say_skipped(s, r);
    if (r->nonfinite_numel > 0)
        snprintf(why, sizeof why, "non-finite gradients in unit '%s'",
                 s->d.registry.unit[r->nonfinite_unit].name);
    TESS_CHECK(s->skipped_in_row < SKIPPED_IN_ROW_MAX &&
                   s->skipped_numel * 1000 <= SKIPPED_PER_THOUSAND_MAX * TESS_MAX(s->step, 1000),
               TESS_E_NUMERIC,
               "step %" PRId64 ": %" PRId64 " steps in a row and %" PRId64
               " in all were skipped, the last for %s; lower train.learning_rate or look at the "
               "data",
               s->step, s->skipped_in_row, s->skipped_numel, why);
    return TESS_OK;
}

/* ---- rollback ---- */

/* Where a run goes back to decides its bits: not past a checkpoint that only its disk kept from
 * being. Started again it saves that one again, comes to the same spike and goes back to it. */
static tess_status check_newest(const session_loop *l)
{
    TESS_CHECK(l->committed_step == l->asked_step, TESS_E_IO,
               "step %" PRId64 " spikes, and the checkpoint of step %" PRId64
               " that it is to go back to could not be written to '%s' (the warning above says "
               "why); make room and start again: the run saves it again and goes on with the same "
               "bits",
               l->s->step, l->asked_step, l->s->run->output.dir);
    return TESS_OK;
}

/* Of checkpoints that earlier runs lost, or that are damaged, nothing can be made again. */
static void warn_of_lost(const session_loop *l, int64_t spike_step, bool is_back)
{
    const tess_session *s = l->s;
    const int64_t every = s->run->output.checkpoint_every;
    const int64_t due = (spike_step - 1) / every * every, found = is_back ? s->step : 0;
    if (found != due)
        tess_log_root(&s->ctx->log, TESS_LOG_WARN,
                      "the spike of step %" PRId64 " is to go back to the checkpoint of step "
                      "%" PRId64 ", which is missing or damaged: from here on the run has other "
                      "bits than one that has it",
                      spike_step, due);
}

static tess_status roll_back(session_loop *l, bool *is_back)
{
    tess_session *s = l->s;
    const tess_log *log = &s->ctx->log;
    const int64_t step = s->step, m = s->run->train.micro_batches, end = session_data_step(s) * m;
    TESS_CHECK(s->guard.rollback_numel < ROLLBACK_MAX, TESS_E_NUMERIC,
               "step %" PRId64 ": loss or gradient norm spikes again after %d rollbacks; lower "
               "train.learning_rate, raise train.spike_threshold or look at the data",
               step, ROLLBACK_MAX);
    TESS_TRY(loop_commit(l));
    TESS_TRY(check_newest(l));
    loop_beat_files(l, "rollback");
    TESS_TRY(session_roll_back(s, is_back));
    tess_progress_hide(&l->progress);
    warn_of_lost(l, step, *is_back);
    if (!*is_back) {
        tess_log_root(log, TESS_LOG_WARN,
                      "step %" PRId64 ": there is no checkpoint to go back to yet "
                      "(output.checkpoint_every %" PRId64 "), its update is skipped",
                      step, s->run->output.checkpoint_every);
        return TESS_OK;
    }
    tess_log_root(log, TESS_LOG_WARN,
                  "rollback %" PRId64 " of at most %d: from step %" PRId64
                  " to the checkpoint of step %" PRId64 "; micro-batches %" PRId64 " to %" PRId64
                  " are left out from here on",
                  s->guard.rollback_numel, ROLLBACK_MAX, step, s->step, end - (step - s->step) * m,
                  end - 1);
    return loop_reopen_metrics(l);
}

/* ---- a step ---- */

tess_status loop_guard_step(session_loop *l, const tess_step_result *r, loop_verdict *out)
{
    tess_session *s = l->s;
    const tess_run_spike how = s->run->train.on_spike;
    const bool is_finite = r->nonfinite_numel == 0, is_high = is_finite && is_spike(s);
    bool is_back = false;
    *out = LOOP_UPDATED;
    if (is_high)
        say_spikes(l, r);
    if (is_finite && (!is_high || how == TESS_RUN_SPIKE_WARN)) {
        s->update_numel++;
        s->skipped_in_row = 0;
        return TESS_OK;
    }
    if (is_high && how == TESS_RUN_SPIKE_ROLLBACK)
        TESS_TRY(roll_back(l, &is_back));
    *out = is_back ? LOOP_ROLLED_BACK : is_high ? LOOP_SPIKE : LOOP_NONFINITE;
    return is_back ? TESS_OK : count_skipped(l, r);
}
