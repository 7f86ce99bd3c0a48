/* Keys of the section `train` whose meaning or default depends on the optimizer or the schedule. */
#include <math.h>
#include <stdio.h>

#include "core/arith.h"
#include "train/run_file/run_file.h"
#include "train/run_file/run_priv.h"

/* ---- which keys mean something ---- */

static bool has_cycles(const tess_run *run)
{
    const tess_run_schedule s = run->train.schedule;
    return s == TESS_RUN_SCHEDULE_LINEAR || s == TESS_RUN_SCHEDULE_COSINE ||
           s == TESS_RUN_SCHEDULE_POLYNOMIAL;
}

static bool is_polynomial(const tess_run *run)
{
    return run->train.schedule == TESS_RUN_SCHEDULE_POLYNOMIAL;
}

static bool is_wsd(const tess_run *run) { return run->train.schedule == TESS_RUN_SCHEDULE_WSD; }

static bool is_adafactor(const tess_run *run)
{
    return run->train.optimizer == TESS_OPTIMIZER_ADAFACTOR ||
           run->train.optimizer == TESS_OPTIMIZER_ADAFACTOR_MOMENTUM;
}

static bool is_muon(const tess_run *run) { return run->train.optimizer == TESS_OPTIMIZER_MUON; }

static bool has_beta1(const tess_run *run)
{
    return run->train.optimizer != TESS_OPTIMIZER_ADAFACTOR;
}

static bool has_beta2(const tess_run *run) { return !is_adafactor(run); }

static bool has_eps(const tess_run *run)
{
    return run->train.optimizer != TESS_OPTIMIZER_LION && !is_adafactor(run);
}

static bool is_prodigy(const tess_run *run)
{
    return run->train.optimizer == TESS_OPTIMIZER_PRODIGY;
}

static bool always(const tess_run *run)
{
    (void)run;
    return true;
}

/* A key with a `neutral` value, at which it changes nothing, is not listed then: listings of runs
 * that do not know it stay as they were. */
typedef struct key_rule {
    tess_run_key_idx key;
    bool (*applies)(const tess_run *run);
    bool (*is_neutral)(const tess_run *run);
    const char *needs; /* in words */
} key_rule;

static bool has_no_ema(const tess_run *run) { return !(run->train.ema_decay > 0.0); }
static bool only_warns(const tess_run *run) { return run->train.on_spike == TESS_RUN_SPIKE_WARN; }
static bool has_one_cycle(const tess_run *run) { return run->train.cycles == 1; }

static const key_rule rules[] = {
    /* a run as resolved has steps */
    {TESS_RUN_KEY_train_epochs, always, always, ""},
    {TESS_RUN_KEY_train_warmup_ratio, always, always, ""},
    {TESS_RUN_KEY_train_cycles, has_cycles, has_one_cycle,
     "train.schedule linear, cosine or polynomial"},
    {TESS_RUN_KEY_train_power, is_polynomial, NULL, "train.schedule polynomial"},
    {TESS_RUN_KEY_train_decay_steps, is_wsd, NULL, "train.schedule wsd"},
    {TESS_RUN_KEY_train_decay_shape, is_wsd, NULL, "train.schedule wsd"},
    {TESS_RUN_KEY_train_beta1, has_beta1, NULL, "another train.optimizer"},
    {TESS_RUN_KEY_train_beta2, has_beta2, NULL, "another train.optimizer"},
    {TESS_RUN_KEY_train_eps, has_eps, NULL, "another train.optimizer"},
    {TESS_RUN_KEY_train_adafactor_relative_step, is_adafactor, NULL, "train.optimizer adafactor"},
    {TESS_RUN_KEY_train_adafactor_scale_parameter, is_adafactor, NULL, "train.optimizer adafactor"},
    {TESS_RUN_KEY_train_muon_momentum, is_muon, NULL, "train.optimizer muon"},
    {TESS_RUN_KEY_train_muon_scale, is_muon, NULL, "train.optimizer muon"},
    {TESS_RUN_KEY_train_ema_decay, always, has_no_ema, ""},
    {TESS_RUN_KEY_train_on_spike, always, only_warns, ""},
    {TESS_RUN_KEY_train_prodigy_d0, is_prodigy, NULL, "train.optimizer prodigy"},
    {TESS_RUN_KEY_train_prodigy_d_coef, is_prodigy, NULL, "train.optimizer prodigy"},
    {TESS_RUN_KEY_train_prodigy_bias_correction, is_prodigy, NULL, "train.optimizer prodigy"},
    {TESS_RUN_KEY_train_prodigy_safeguard_warmup, is_prodigy, NULL, "train.optimizer prodigy"},
};

bool run_train_applies(const tess_run *run, tess_run_key_idx key)
{
    for (int i = 0; i < TESS_NELEM(rules); i++)
        if (rules[i].key == key)
            return rules[i].applies(run) &&
                   (rules[i].is_neutral == NULL || !rules[i].is_neutral(run));
    return true;
}

bool run_train_decides(const tess_run *run, tess_run_key_idx key)
{
    if (key == TESS_RUN_KEY_train_spike_threshold)
        return !only_warns(run);
    return key == TESS_RUN_KEY_output_checkpoint_every &&
           run->train.on_spike == TESS_RUN_SPIKE_ROLLBACK;
}

/* ---- defaults ---- */

typedef struct key_default {
    tess_optimizer_kind optimizer;
    tess_run_key_idx key;
    double value;
} key_default;

/* Of the papers and packages that docs/optimizers.md names. */
static const key_default defaults[] = {
    {TESS_OPTIMIZER_LION, TESS_RUN_KEY_train_beta2, 0.99},
    {TESS_OPTIMIZER_PRODIGY, TESS_RUN_KEY_train_learning_rate, 1.0},
};

void run_train_resolve(tess_run *run)
{
    for (int i = 0; i < TESS_NELEM(defaults); i++) {
        const key_default *d = &defaults[i];
        const tess_run_key *key = tess_run_key_at(d->key);
        if (d->optimizer == run->train.optimizer && !run->place[d->key].is_given)
            *(double *)(void *)((char *)run + key->offset_nbytes) = d->value;
    }
    if (run->train.optimizer == TESS_OPTIMIZER_SCHEDULE_FREE &&
        !run->place[TESS_RUN_KEY_train_schedule].is_given)
        run->train.schedule = TESS_RUN_SCHEDULE_CONSTANT;
    if (!run->place[TESS_RUN_KEY_train_warmup_steps].is_given &&
        !run->place[TESS_RUN_KEY_train_warmup_ratio].is_given)
        run->train.warmup_steps = TESS_MIN(run->train.warmup_steps, run->train.steps);
    const int64_t after_warmup = TESS_MAX(run->train.steps - run->train.warmup_steps, 0);
    if (run->train.decay_steps == TESS_RUN_AUTO)
        run->train.decay_steps = TESS_MIN(tess_ceil_div(run->train.steps, 10), after_warmup);
}

/* ---- how long a run is ---- */

/* Two keys that say the same: an argument takes the place of what the file says. */
static tess_status choose(tess_run *run, tess_run_key_idx steps, tess_run_key_idx share)
{
    tess_run_place *a = &run->place[steps], *b = &run->place[share];
    char place[TESS_RUN_PLACE_NBYTES];
    if (!a->is_given || !b->is_given)
        return TESS_OK;
    tess_run_place_text(run, share, place);
    TESS_CHECK((a->argument_idx > 0) != (b->argument_idx > 0), TESS_E_CONFIG,
               "%s: stands beside %s, which it is another way to say: remove one of both", place,
               tess_run_key_at(steps)->path);
    *(a->argument_idx > 0 ? b : a) = (tess_run_place){0};
    return TESS_OK;
}

/* A share of something as whole steps; 0.07 of 100 is a little more than 7 in fp64, and no eighth
 * step. */
static double round_up(double exact) { return ceil(exact * (1.0 - 1e-12)); }

static tess_status count_warmup(tess_run *run)
{
    TESS_TRY(choose(run, TESS_RUN_KEY_train_warmup_steps, TESS_RUN_KEY_train_warmup_ratio));
    if (run->place[TESS_RUN_KEY_train_warmup_ratio].is_given)
        run->train.warmup_steps =
            (int64_t)round_up(run->train.warmup_ratio * (double)run->train.steps);
    return TESS_OK;
}

static tess_status count_steps(tess_run *run, tess_run_epoch_of epoch_of, const void *arg)
{
    int64_t sequence_numel = 0;
    TESS_TRY(choose(run, TESS_RUN_KEY_train_steps, TESS_RUN_KEY_train_epochs));
    if (!run->place[TESS_RUN_KEY_train_epochs].is_given) {
        run->train.epochs = 0.0;
        return TESS_OK;
    }
    run->train.steps = TESS_RUN_STEPS_MAX;
    if (epoch_of != NULL)
        TESS_TRY(epoch_of(arg, run, &sequence_numel));
    if (sequence_numel == 0)
        return TESS_OK;
    const double step = (double)run->train.micro_batches * (double)run->train.micro_batch;
    const double whole = fmax(round_up(run->train.epochs * (double)sequence_numel / step), 1.0);
    char place[TESS_RUN_PLACE_NBYTES];
    tess_run_place_text(run, TESS_RUN_KEY_train_epochs, place);
    TESS_CHECK(whole < TESS_RUN_STEPS_MAX, TESS_E_CONFIG,
               "%s: expected fewer than %d steps, found %.6g, as an epoch has %.6g", place,
               TESS_RUN_STEPS_MAX, whole, (double)sequence_numel / step);
    run->train.steps = (int64_t)whole;
    return TESS_OK;
}

tess_status run_train_count(tess_run *run, tess_run_epoch_of epoch_of, const void *arg)
{
    TESS_TRY(count_steps(run, epoch_of, arg));
    return count_warmup(run);
}

/* ---- checks ---- */

static tess_status check_rules(const tess_run *run)
{
    for (int i = 0; i < TESS_NELEM(rules); i++) {
        const key_rule *r = &rules[i];
        char why[160];
        const bool is_harmless = r->is_neutral != NULL && r->is_neutral(run);
        if (!run->place[r->key].is_given || r->applies(run) || is_harmless)
            continue;
        snprintf(why, sizeof why, "has no meaning here: remove it or choose %s", r->needs);
        return tess_run_refuse(run, r->key, why);
    }
    return TESS_OK;
}

static tess_status check_weights(const tess_run *run)
{
    static const char why[] = "ema needs train.ema_decay above 0, at which an average is kept";
    if (run->train.ema_decay > 0.0)
        return TESS_OK;
    if (run->train.eval_weights == TESS_RUN_WEIGHTS_EMA)
        return tess_run_refuse(run, TESS_RUN_KEY_train_eval_weights, why);
    if (run->output.export_weights == TESS_RUN_WEIGHTS_EMA)
        return tess_run_refuse(run, TESS_RUN_KEY_output_export_weights, why);
    return TESS_OK;
}

static tess_status check_spikes(const tess_run *run)
{
    if (!only_warns(run) && !(run->train.spike_threshold > 0.0))
        return tess_run_refuse(run, TESS_RUN_KEY_train_on_spike,
                               "skip and rollback need train.spike_threshold above 0, at which "
                               "there are spikes");
    if (run->train.on_spike != TESS_RUN_SPIKE_ROLLBACK)
        return TESS_OK;
    if (run->output.checkpoint_every == 0)
        return tess_run_refuse(run, TESS_RUN_KEY_train_on_spike,
                               "rollback needs output.checkpoint_every above 0, or there is no "
                               "checkpoint to go back to");
    if (run->output.when_busy == TESS_RUN_BUSY_SKIP)
        return tess_run_refuse(run, TESS_RUN_KEY_train_on_spike,
                               "rollback needs output.when_busy wait: with skip it depends on time "
                               "which checkpoints there are");
    return TESS_OK;
}

static tess_status check_steps(const tess_run *run)
{
    char place[TESS_RUN_PLACE_NBYTES];
    tess_run_place_text(run, TESS_RUN_KEY_train_warmup_steps, place);
    TESS_CHECK(run->train.warmup_steps <= run->train.steps, TESS_E_CONFIG,
               "%s: expected at most train.steps (%" PRId64 "), found %" PRId64, place,
               run->train.steps, run->train.warmup_steps);
    tess_run_place_text(run, TESS_RUN_KEY_train_decay_steps, place);
    TESS_CHECK(!is_wsd(run) || run->train.decay_steps <= run->train.steps - run->train.warmup_steps,
               TESS_E_CONFIG,
               "%s: expected at most train.steps - train.warmup_steps (%" PRId64
               "), found %" PRId64,
               place, run->train.steps - run->train.warmup_steps, run->train.decay_steps);
    const int64_t span = TESS_MAX(run->train.steps - run->train.warmup_steps, 1);
    tess_run_place_text(run, TESS_RUN_KEY_train_cycles, place);
    TESS_CHECK(!has_cycles(run) || run->train.cycles <= span, TESS_E_CONFIG,
               "%s: expected at most a cycle per step after the warm-up (%" PRId64
               "), found %" PRId64,
               place, span, run->train.cycles);
    return TESS_OK;
}

tess_status run_train_check(const tess_run *run)
{
    TESS_TRY(check_rules(run));
    TESS_TRY(check_weights(run));
    TESS_TRY(check_spikes(run));
    TESS_TRY(check_steps(run));
    if (run->train.optimizer == TESS_OPTIMIZER_SCHEDULE_FREE &&
        run->train.schedule != TESS_RUN_SCHEDULE_CONSTANT)
        return tess_run_refuse(
            run, TESS_RUN_KEY_train_schedule,
            "adamw-schedule-free averages instead of lowering the learning rate: "
            "expected constant; remove it");
    return TESS_OK;
}
