/** What keys of a run file need beside them, for tests of all keys. */
#pragma once

#include "core/arith.h"
#include "train/run_file/run_priv.h"

/* Keys that are refused unless another one has a certain value. */
static const struct {
    tess_run_key_idx key, needed;
    const char *value;
} needs[] = {
    {TESS_RUN_KEY_base_block_size, TESS_RUN_KEY_base_format, "nf4"},
    {TESS_RUN_KEY_base_double_quant, TESS_RUN_KEY_base_format, "nf4"},
    {TESS_RUN_KEY_base_group_size, TESS_RUN_KEY_base_format, "qint4"},
    {TESS_RUN_KEY_base_rule, TESS_RUN_KEY_base_format, "qint4"},
    {TESS_RUN_KEY_base_scaling, TESS_RUN_KEY_base_format, "e4m3"},
    {TESS_RUN_KEY_base_scale_meaning, TESS_RUN_KEY_base_format, "e4m3"},
    {TESS_RUN_KEY_lora_init_iterations, TESS_RUN_KEY_lora_init, "loftq"},
    {TESS_RUN_KEY_lora_power_iterations, TESS_RUN_KEY_lora_init, "pissa"},
    {TESS_RUN_KEY_train_min_learning_rate_ratio, TESS_RUN_KEY_train_schedule, "linear"},
    {TESS_RUN_KEY_train_power, TESS_RUN_KEY_train_schedule, "polynomial"},
    {TESS_RUN_KEY_train_decay_steps, TESS_RUN_KEY_train_schedule, "wsd"},
    {TESS_RUN_KEY_train_decay_shape, TESS_RUN_KEY_train_schedule, "wsd"},
    {TESS_RUN_KEY_train_prodigy_d0, TESS_RUN_KEY_train_optimizer, "prodigy"},
    {TESS_RUN_KEY_train_prodigy_d_coef, TESS_RUN_KEY_train_optimizer, "prodigy"},
    {TESS_RUN_KEY_train_prodigy_bias_correction, TESS_RUN_KEY_train_optimizer, "prodigy"},
    {TESS_RUN_KEY_train_prodigy_safeguard_warmup, TESS_RUN_KEY_train_optimizer, "prodigy"},
    {TESS_RUN_KEY_train_adafactor_relative_step, TESS_RUN_KEY_train_optimizer,
     "adafactor-momentum"},
    {TESS_RUN_KEY_train_adafactor_scale_parameter, TESS_RUN_KEY_train_optimizer,
     "adafactor-momentum"},
    {TESS_RUN_KEY_train_muon_momentum, TESS_RUN_KEY_train_optimizer, "muon"},
    {TESS_RUN_KEY_train_muon_scale, TESS_RUN_KEY_train_optimizer, "muon"},
    {TESS_RUN_KEY_quantizer_decay, TESS_RUN_KEY_quantizer_update, "ema"},
    {TESS_RUN_KEY_quantizer_threshold, TESS_RUN_KEY_quantizer_update, "ema"},
    {TESS_RUN_KEY_quantizer_shared_codes, TESS_RUN_KEY_quantizer_groups, "2"},
    {TESS_RUN_KEY_objective_logit_mean, TESS_RUN_KEY_objective_timesteps, "logit-normal"},
    {TESS_RUN_KEY_objective_logit_std, TESS_RUN_KEY_objective_timesteps, "logit-normal"},
    {TESS_RUN_KEY_objective_sigmoid_scale, TESS_RUN_KEY_objective_timesteps, "sigmoid"},
    {TESS_RUN_KEY_objective_mode_scale, TESS_RUN_KEY_objective_timesteps, "mode"},
    {TESS_RUN_KEY_objective_beta_alpha, TESS_RUN_KEY_objective_timesteps, "beta"},
    {TESS_RUN_KEY_objective_beta_beta, TESS_RUN_KEY_objective_timesteps, "beta"},
    {TESS_RUN_KEY_objective_shift_factor, TESS_RUN_KEY_objective_shift, "static"},
    {TESS_RUN_KEY_objective_guidance_min, TESS_RUN_KEY_objective_guidance_mode, "uniform"},
    {TESS_RUN_KEY_shard_exchange, TESS_RUN_KEY_shard_reduction, "exact"},
    {TESS_RUN_KEY_output_keep_every, TESS_RUN_KEY_output_checkpoint_every, "1"},
    {TESS_RUN_KEY_compute_check_replay, TESS_RUN_KEY_shard_reduction, "exact"},
    {TESS_RUN_KEY_sample_every, TESS_RUN_KEY_sample_prompts, "[a]"},
    {TESS_RUN_KEY_objective_guidance_max, TESS_RUN_KEY_objective_guidance_mode, "uniform"},
};

/* Types of quantizers that read keys which that of AUTO does not. */
static const struct {
    tess_run_quantizer type;
    const char *word;
} types[] = {{TESS_RUN_QUANTIZER_AUTO, "auto"},
             {TESS_RUN_QUANTIZER_FSQ, "fsq"},
             {TESS_RUN_QUANTIZER_LFQ, "lfq"}};

/* A family and a type that read `changed`: the first of these. */
static inline tess_run family_of(tess_run_key_idx changed)
{
    static const tess_run_family family[] = {TESS_RUN_FAMILY_AUTO, TESS_RUN_FAMILY_KMEANS,
                                             TESS_RUN_FAMILY_RQVAE, TESS_RUN_FAMILY_VQVAE,
                                             TESS_RUN_FAMILY_FLUX};
    tess_run run = {.quantizer = {.update = TESS_RUN_UPDATE_EMA, .groups = 2, .entropy = 0.1}};
    for (int t = 0; t < TESS_NELEM(types); t++)
        for (int i = 0; i < TESS_NELEM(family); i++) {
            run.model.family = family[i];
            run.quantizer.type = types[t].type;
            if (changed == TESS_RUN_KEY_NUMEL || run_family_reads(&run, changed))
                return run;
        }
    return run;
}
