/* What other trainers call their keys, and which of these have none here: a hint for a key that is
 * unknown, and tables for people. */
#include <stdio.h>
#include <string.h>

#include "train/run_file/run_priv.h"

typedef struct run_other_word {
    const char *words;    /* of Transformers, PEFT, axolotl, FSDP, sd-scripts, SimpleTuner: "a|b|c",
                             without a section */
    tess_run_key_idx key; /* NONE: nothing here does what it does */
    const char *note;     /* what differs, "" where only the word does; what to do without */
} run_other_word;

#define KEY(name) TESS_RUN_KEY_##name
#define NONE TESS_RUN_KEY_NUMEL

static const run_other_word other_words[] = {
    {"model_name_or_path|pretrained_model_name_or_path|base_model", KEY(model_path), ""},
    {"load_in_4bit|bnb_4bit_quant_type", KEY(base_format), "nf4 or fp4"},
    {"load_in_8bit", KEY(base_format), "int8"},
    {"base_model_precision", KEY(base_format), ""},
    {"bnb_4bit_use_double_quant", KEY(base_double_quant), ""},
    {"r|lora_r|network_dim", KEY(lora_rank), ""},
    {"lora_alpha|network_alpha", KEY(lora_alpha), ""},
    {"lora_dropout", KEY(lora_dropout), ""},
    {"target_modules|lora_target_modules|lora_target_linear|flux_lora_target", KEY(lora_targets),
     ""},
    {"exclude_modules", KEY(lora_exclude), ""},
    {"use_rslora|peft_use_rslora", KEY(lora_rslora), ""},
    {"use_dora|peft_use_dora", KEY(lora_dora), ""},
    {"layers_to_transform|peft_layers_to_transform", KEY(lora_layers), ""},
    {"lora_modules_to_save", KEY(lora_modules_to_save), ""},
    {"init_lora_weights|peft_init_lora_weights", KEY(lora_init), ""},
    {"loraplus_lr_ratio", KEY(lora_plus_ratio), ""},
    {"datasets|dataset|train_file", KEY(data_path), "one file, made by tessera tokenize"},
    {"test_datasets|eval_dataset|validation_file", KEY(data_eval_path),
     "one file, made by tessera tokenize"},
    {"sequence_len|max_seq_length|max_length|cutoff_len", KEY(data_sequence_length), ""},
    {"sample_packing", KEY(data_packing), ""},
    {"val_set_size", KEY(data_eval_path), "held-out examples in a file of their own"},
    {"train_on_inputs|train_on_prompt", KEY(data_mask_prompt), "the opposite"},
    {"assistant_only_loss|completion_only_loss", KEY(data_mask_prompt), ""},
    {"max_steps|max_train_steps", KEY(train_steps), ""},
    {"num_epochs|num_train_epochs|max_train_epochs", KEY(train_epochs), ""},
    {"batch_size|train_batch_size|micro_batch_size|per_device_train_batch_size",
     KEY(train_micro_batch), "sequences that a rank takes at once"},
    {"eval_batch_size|per_device_eval_batch_size", KEY(train_micro_batch),
     "evaluations take as many"},
    {"gradient_accumulation_steps|accumulation_steps", KEY(train_micro_batches),
     "accumulation steps times ranks"},
    {"global_batch_size", KEY(train_micro_batches), "divided by train.micro_batch"},
    {"lr", KEY(train_learning_rate), ""},
    {"min_lr|min_lr_ratio|cosine_min_lr_ratio", KEY(train_min_learning_rate_ratio),
     "over the peak"},
    {"lr_scheduler|lr_scheduler_type", KEY(train_schedule), ""},
    {"warmup|lr_warmup_steps", KEY(train_warmup_steps), "in steps"},
    {"optim|optimizer_type", KEY(train_optimizer), ""},
    {"adam_beta1", KEY(train_beta1), ""},
    {"adam_beta2", KEY(train_beta2), ""},
    {"adam_epsilon", KEY(train_eps), ""},
    {"max_grad_norm|gradient_clipping", KEY(train_clip_norm), ""},
    {"eval_steps|evals_per_epoch|eval_strategy|evaluation_strategy", KEY(train_eval_every),
     "in steps"},
    {"use_ema", KEY(train_ema_decay), "0 is none"},
    {"bf16|fp16|mixed_precision|torch_dtype|bnb_4bit_compute_dtype", KEY(compute_dtype),
     "bf16 or f32"},
    {"gradient_checkpointing", KEY(compute_activation_checkpointing), ""},
    {"fsdp|fsdp_config|sharding_strategy|deepspeed|zero_stage", KEY(shard_gather_group),
     "world shards over all ranks, node inside each, 1 not at all"},
    {"lora_model_dir", KEY(adapter_resume), ""},
    {"output_dir", KEY(output_dir), ""},
    {"save_steps|saves_per_epoch|save_strategy|save_every_n_steps|checkpointing_steps",
     KEY(output_checkpoint_every), "in steps"},
    {"save_total_limit|checkpoints_total_limit", KEY(output_keep), ""},
    {"overwrite_output_dir", KEY(output_resume), "never starts afresh in a used folder"},
    {"resume_from_checkpoint|auto_resume_from_checkpoints", KEY(output_resume),
     "auto is the default"},
    {"logging_steps|logging_dir|report_to|wandb_project|use_tensorboard", KEY(output_dir),
     "every step is logged there, for TensorBoard too"},
    {"guidance_scale|flux_guidance_value", KEY(objective_guidance), ""},
    {"timestep_sampling", KEY(objective_timesteps), ""},
    {"weighting_scheme", KEY(objective_weighting), ""},
    {"discrete_flow_shift|flow_schedule_shift", KEY(objective_shift_factor), ""},
    {"flow_schedule_auto_shift", KEY(objective_shift), ""},
    {"flow_sigmoid_scale", KEY(objective_sigmoid_scale), ""},
    {"caption_dropout_probability|caption_dropout_rate", KEY(objective_caption_dropout), ""},
    {"sample_prompts|validation_prompt|validation_prompts", KEY(sample_prompts), ""},
    {"sample_every_n_steps|validation_steps", KEY(sample_every), "in steps"},
    {"group_by_length", NONE, "data.packing fills sequences with several documents"},
    {"shuffle_dataset|dataloader_num_workers|dataloader_drop_last|remove_unused_columns", NONE,
     "data is shuffled in every epoch and read ahead of the step that needs it"},
    {"chat_template|special_tokens|add_special_tokens|dataset_text_field", NONE,
     "`tessera tokenize` decides what becomes of text"},
    {"attn_implementation|flash_attention|use_flash_attention|xformers|xformers_attention|"
     "sdp_attention|sdpa|torch_compile|use_liger_kernel|tf32",
     NONE, "the fastest kernels that the device has are always taken"},
    {"trust_remote_code|tokenizer_type|model_type|task_type|adapter|lora_type", NONE,
     "model.path says what the model is, train.mode how it is trained"},
    {"bias", NONE, "biases of the base stay frozen; train.mode full trains them"},
    {"neftune_noise_alpha|noise_offset|label_smoothing_factor", NONE,
     "leave it out: nothing here trains so"},
    {"ddp_find_unused_parameters|local_rank|world_size|num_processes|ddp_timeout", NONE,
     "`mpirun -n` decides how many ranks there are"},
    {"push_to_hub|hub_model_id|hub_strategy|save_safetensors|save_only_model", NONE,
     "output.export decides what is written at the end"},
    {"load_best_model_at_end|metric_for_best_model|greater_is_better", NONE,
     "keep checkpoints with output.keep_every, and export the one whose evaluation in "
     "metrics.jsonl is best with `tessera export`"},
    {"early_stopping_patience|early_stopping_threshold", NONE,
     "SIGINT or SIGUSR1 ends a run behind a checkpoint; evaluations are in metrics.jsonl"},
};

void run_key_hint(const char *path, char text[RUN_HINT_NBYTES])
{
    const char *dot = strrchr(path, '.');
    const char *leaf = dot == NULL ? path : dot + 1;
    for (int i = 0; i < TESS_NELEM(other_words); i++) {
        const run_other_word *word = &other_words[i];
        if (tess_run_word_find(word->words, leaf) < 0)
            continue;
        if (word->key == NONE) {
            snprintf(text, RUN_HINT_NBYTES, "which has no counterpart here: %s", word->note);
            return;
        }
        const char *const bracket[2] = {*word->note == '\0' ? "" : " (",
                                        *word->note == '\0' ? "" : ")"};
        snprintf(text, RUN_HINT_NBYTES, "here it is '%s'%s%s%s", tess_run_key_at(word->key)->path,
                 bracket[0], word->note, bracket[1]);
        return;
    }
    snprintf(text, RUN_HINT_NBYTES, "the nearest known key is '%s'", tess_run_key_nearest(path));
}

tess_status run_words_reference(tess_strbuf *out)
{
    TESS_TRY(tess_strbuf_add(out, "\n## Words of other trainers\n\n"
                                  "Keys of Transformers, PEFT, axolotl, FSDP, sd-scripts and "
                                  "SimpleTuner, and what they are here.\n\n"
                                  "| there | here | |\n|---|---|---|\n"));
    for (int i = 0; i < TESS_NELEM(other_words); i++) {
        const run_other_word *word = &other_words[i];
        TESS_TRY(tess_strbuf_add(out, "| "));
        for (const char *at = word->words; *at != '\0';) {
            const int nbytes = (int)strcspn(at, "|");
            TESS_TRY(tess_strbuf_add(out, "%s`%.*s`", at == word->words ? "" : ", ", nbytes, at));
            at += nbytes + (at[nbytes] == '|');
        }
        if (word->key == NONE)
            TESS_TRY(tess_strbuf_add(out, " | none | %s |\n", word->note));
        else
            TESS_TRY(tess_strbuf_add(out, " | `%s` | %s |\n", tess_run_key_at(word->key)->path,
                                     word->note));
    }
    return TESS_OK;
}
