/* Keys that are read for some formats, starts, schedules or draws alone: a value of theirs that
 * would change nothing is refused, as a mistake. Their defaults may stand beside anything, so that
 * a run file as resolved is one; and what a file says may stand when the command line chooses
 * another format, start or schedule than the file's. */
#include <stdio.h>
#include <string.h>

#include "train/run_file/run_priv.h"

/* ---- who reads a key ---- */

static bool has_blocks(tess_run_base_format f)
{
    return f == TESS_RUN_BASE_NF4 || f == TESS_RUN_BASE_FP4;
}

static bool has_groups(tess_run_base_format f)
{
    return f == TESS_RUN_BASE_QINT4 || f == TESS_RUN_BASE_INT4 || f == TESS_RUN_BASE_QINT2 ||
           f == TESS_RUN_BASE_INT2;
}

static bool is_fp8(tess_run_base_format f)
{
    return f == TESS_RUN_BASE_E4M3 || f == TESS_RUN_BASE_E5M2;
}

/* Whether base.format or a rule of base.overrides makes such a format. */
static bool makes(const tess_run *run, bool (*is_such)(tess_run_base_format f))
{
    bool is_made = is_such(run->base.format);
    for (int64_t i = 0; i < run->base.overrides.item_numel; i++)
        is_made = is_made || is_such(run->base.overrides.item[i].format);
    return is_made;
}

static bool makes_blocks(const tess_run *run) { return makes(run, has_blocks); }
static bool makes_groups(const tess_run *run) { return makes(run, has_groups); }
static bool makes_fp8(const tess_run *run) { return makes(run, is_fp8); }

static bool makes_scales(const tess_run *run)
{
    return makes_fp8(run) && run->base.scaling != TESS_SCALING_RAW;
}

static bool is_loftq(const tess_run *run) { return run->lora.init == TESS_RUN_START_LOFTQ; }

static bool is_decomposed(const tess_run *run)
{
    return is_loftq(run) || run->lora.init == TESS_RUN_START_PISSA;
}

static bool is_exact(const tess_run *run)
{
    return run->shard.reduction == TESS_RUN_REDUCTION_EXACT;
}

static bool falls(const tess_run *run) { return run->train.schedule != TESS_RUN_SCHEDULE_CONSTANT; }

/* ---- of the objective ---- */

static bool draws(const tess_run *run, tess_run_timesteps how)
{
    return run->objective.timesteps == how;
}

static bool is_logit_normal(const tess_run *run)
{
    return draws(run, TESS_RUN_TIMESTEPS_LOGIT_NORMAL);
}
static bool is_sigmoid(const tess_run *run) { return draws(run, TESS_RUN_TIMESTEPS_SIGMOID); }
static bool is_mode(const tess_run *run) { return draws(run, TESS_RUN_TIMESTEPS_MODE); }
static bool is_beta(const tess_run *run) { return draws(run, TESS_RUN_TIMESTEPS_BETA); }
static bool is_not_fast(const tess_run *run) { return !draws(run, TESS_RUN_TIMESTEPS_FAST); }

static bool is_static(const tess_run *run) { return run->objective.shift == TESS_RUN_SHIFT_STATIC; }

static bool is_range(const tess_run *run)
{
    return run->objective.guidance_mode == TESS_RUN_GUIDANCE_UNIFORM;
}

static bool samples(const tess_run *run) { return run->sample.prompts.item_numel > 0; }

typedef struct reader {
    tess_run_key_idx key, choice; /* the key that chooses whether `key` is read */
    bool (*is_read)(const tess_run *run);
    const char *needs; /* in words */
} reader;

static const reader readers[] = {
    {TESS_RUN_KEY_base_block_size, TESS_RUN_KEY_base_format, makes_blocks,
     "base.format nf4 or fp4"},
    {TESS_RUN_KEY_base_double_quant, TESS_RUN_KEY_base_format, makes_blocks,
     "base.format nf4 or fp4"},
    {TESS_RUN_KEY_base_group_size, TESS_RUN_KEY_base_format, makes_groups,
     "base.format qint4 or qint2"},
    {TESS_RUN_KEY_base_rule, TESS_RUN_KEY_base_format, makes_groups, "base.format qint4 or qint2"},
    {TESS_RUN_KEY_base_scaling, TESS_RUN_KEY_base_format, makes_fp8, "base.format e4m3 or e5m2"},
    {TESS_RUN_KEY_base_scale_meaning, TESS_RUN_KEY_base_format, makes_scales,
     "base.format e4m3 or e5m2 with base.scaling row or tensor"},
    {TESS_RUN_KEY_lora_init_iterations, TESS_RUN_KEY_lora_init, is_loftq, "lora.init loftq"},
    {TESS_RUN_KEY_lora_power_iterations, TESS_RUN_KEY_lora_init, is_decomposed,
     "lora.init pissa or loftq"},
    {TESS_RUN_KEY_train_min_learning_rate_ratio, TESS_RUN_KEY_train_schedule, falls,
     "another train.schedule than constant"},
    {TESS_RUN_KEY_shard_exchange, TESS_RUN_KEY_shard_reduction, is_exact, "shard.reduction exact"},
    {TESS_RUN_KEY_compute_check_replay, TESS_RUN_KEY_shard_reduction, is_exact,
     "shard.reduction exact"},
    {TESS_RUN_KEY_objective_logit_mean, TESS_RUN_KEY_objective_timesteps, is_logit_normal,
     "objective.timesteps logit-normal"},
    {TESS_RUN_KEY_objective_logit_std, TESS_RUN_KEY_objective_timesteps, is_logit_normal,
     "objective.timesteps logit-normal"},
    {TESS_RUN_KEY_objective_sigmoid_scale, TESS_RUN_KEY_objective_timesteps, is_sigmoid,
     "objective.timesteps sigmoid"},
    {TESS_RUN_KEY_objective_mode_scale, TESS_RUN_KEY_objective_timesteps, is_mode,
     "objective.timesteps mode"},
    {TESS_RUN_KEY_objective_beta_alpha, TESS_RUN_KEY_objective_timesteps, is_beta,
     "objective.timesteps beta"},
    {TESS_RUN_KEY_objective_beta_beta, TESS_RUN_KEY_objective_timesteps, is_beta,
     "objective.timesteps beta"},
    {TESS_RUN_KEY_objective_levels, TESS_RUN_KEY_objective_timesteps, is_not_fast,
     "other objective.timesteps than fast"},
    {TESS_RUN_KEY_objective_shift, TESS_RUN_KEY_objective_timesteps, is_not_fast,
     "other objective.timesteps than fast"},
    {TESS_RUN_KEY_objective_shift_factor, TESS_RUN_KEY_objective_shift, is_static,
     "objective.shift static"},
    {TESS_RUN_KEY_objective_guidance_min, TESS_RUN_KEY_objective_guidance_mode, is_range,
     "objective.guidance_mode uniform"},
    {TESS_RUN_KEY_sample_every, TESS_RUN_KEY_sample_prompts, samples, "sample.prompts"},
    {TESS_RUN_KEY_objective_guidance_max, TESS_RUN_KEY_objective_guidance_mode, is_range,
     "objective.guidance_mode uniform"},
};

/* ---- check ---- */

static tess_status is_default(const tess_run *run, const tess_run_key *key, bool *out)
{
    tess_strbuf initial = {0}, value = {0};
    tess_status st = tess_run_default_write(key, &initial);
    if (st == TESS_OK)
        st = tess_run_value_write(run, key, &value);
    if (st == TESS_OK)
        *out =
            initial.nbytes == value.nbytes && memcmp(initial.text, value.text, value.nbytes) == 0;
    tess_strbuf_fini(&initial);
    tess_strbuf_fini(&value);
    return st;
}

tess_status run_unused_check(const tess_run *run)
{
    for (int i = 0; i < TESS_NELEM(readers); i++) {
        const reader *r = &readers[i];
        const tess_run_key *key = tess_run_key_at(r->key);
        char place[TESS_RUN_PLACE_NBYTES];
        bool is_harmless = true;
        const bool is_of_file = run->place[r->key].argument_idx == 0;
        if (is_of_file && run->place[r->choice].argument_idx > 0)
            continue;
        if (!run->place[r->key].is_given || r->is_read(run) || !tess_run_key_applies(run, key))
            continue;
        TESS_TRY(is_default(run, key, &is_harmless));
        tess_run_place_text(run, r->key, place);
        TESS_CHECK(is_harmless, TESS_E_CONFIG, "%s: changes nothing here: remove it or choose %s",
                   place, r->needs);
    }
    return TESS_OK;
}
