/**
 * The schema of the run file: every key stands here once, and drives parsing, overrides, errors,
 * the resolved copy, the numerics digest and the generated reference (docs/run-file.md).
 *
 * A key is X(section, field, name, c_type, KIND, words, default, lo, hi, class, help):
 *
 * | KIND  | c_type            | value in the file                                                |
 * |-------|-------------------|------------------------------------------------------------------|
 * | INT   | int64_t           | integer in [lo, hi]; a word of `words` is -1, -2, ... in order   |
 * | BYTES | int64_t           | as INT, with an optional KiB, MiB, GiB or TiB                    |
 * | F64   | double            | decimal in [lo, hi]                                              |
 * | BOOL  | bool              | true or false                                                    |
 * | ENUM  | the enum          | one of `words`, in the order of the enum                         |
 * | TEXT  | char *            | one string of lo to hi bytes; "" is never valid; NULL: not given |
 * | PATH  | char *            | as TEXT, a file or folder                                        |
 * | NAMES | tess_run_names    | one string or a list of strings                                  |
 * | RULES | tess_run_rules    | a list of {match: REGEX, format: FORMAT}                         |
 * | INTS  | tess_run_ints     | one integer or a list of integers in [lo, hi]                    |
 * | PATTERNS | tess_run_patterns | a mapping {PATTERN: number in [lo, hi]}, in its order         |
 *
 * `default` is the text that would stand in the file; TESS_RUN_REQUIRED and TESS_RUN_UNSET are the
 * two others. `class`: NUMERICS keys decide the bits of a result and enter the numerics digest,
 * FREE keys do not. A path is FREE where the identity of what it names is checked by content.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base.h"
#include "train/run_file/run_values.h"

TESS_BEGIN_DECLS

#define TESS_RUN_REQUIRED NULL
#define TESS_RUN_UNSET ""
#define TESS_RUN_STEPS_MAX 1000000000

/* clang-format off */
#define TESS_RUN_MODEL_KEYS(X) \
    X(model, path, "path", char *, PATH, "", TESS_RUN_UNSET, 1, 4096, FREE, \
      "HF or diffusers directory, GGUF file, or .safetensors file of FLUX.1; required but for " \
      "kmeans, rqvae and vqvae. The weights' identity (base id) is checked by content, not by " \
      "path.") \
    X(model, family, "family", tess_run_family, ENUM, TESS_RUN_WORDS_(FAMILY), "auto", 0, 0, \
      FREE, \
      "Model family; auto takes it from the model's own config or tensors. The family that was " \
      "taken enters the numerics digest. kmeans: codebooks over vectors, by section quantizer; " \
      "rqvae: an encoder, codebooks and a decoder over vectors, all trained; vqvae: the same " \
      "with convolutions over images; flux: the FLUX.1 transformer over cached latents.") \
    X(model, init, "init", tess_run_init, ENUM, TESS_RUN_WORDS_(INIT), "weights", 0, 0, \
      NUMERICS, \
      "weights reads the tensors; random draws them from train.seed and needs only the config.")

#define TESS_RUN_BASE_KEYS(X) \
    X(base, format, "format", tess_run_base_format, ENUM, TESS_RUN_WORDS_(BASE), "nf4", 0, \
      0, NUMERICS, \
      "How frozen linear layers are stored; keep: as in the file. With train.mode full the " \
      "default is keep. Weights that a file holds in few bits (GGUF, bitsandbytes, quanto, fp8) " \
      "are kept or widened, never quantized again. int4 and int2 are other words for qint4 and " \
      "qint2.") \
    X(base, block_size, "block_size", int64_t, INT, "", "64", 32, 4096, NUMERICS, \
      "Elements of a row-major tensor that share one absmax (nf4, fp4); a power of two.") \
    X(base, double_quant, "double_quant", bool, BOOL, "", "true", 0, 0, NUMERICS, \
      "Store the absmax values in 8 bits as well (nf4, fp4).") \
    X(base, group_size, "group_size", int64_t, INT, "auto", "auto", 2, 1048576, NUMERICS, \
      "Elements of a row that share scale and shift (qint4, qint2); divides the row. auto: 128, " \
      "96, 64 or 32, whichever divides the row first, else the whole row.") \
    X(base, rule, "rule", tess_scale_rule, ENUM, TESS_RUN_WORDS_(RULE), "minmax", 0, 0, NUMERICS, \
      "How scale and shift of a group are chosen (qint4, qint2): minmax spans its values, mse " \
      "has the least squared error, hqq is half-quadratic quantization.") \
    X(base, scaling, "scaling", tess_scaling, ENUM, TESS_RUN_WORDS_(SCALING), "row", 0, 0, \
      NUMERICS, \
      "What has a scale of its own (e4m3, e5m2): nothing (raw, a plain cast), the tensor, or " \
      "every row.") \
    X(base, scale_meaning, "scale_meaning", tess_scale_meaning, ENUM, TESS_RUN_WORDS_(MEANING), \
      "dequant_scale", 0, 0, NUMERICS, \
      "Which scale is stored (e4m3, e5m2): dequant_scale multiplies codes, quant_scale is what " \
      "weights were multiplied with.") \
    X(base, overrides, "overrides", tess_run_rules, RULES, "", TESS_RUN_UNSET, 0, 1024, NUMERICS, \
      "Rules [{match: REGEX, format: FORMAT}]: the first that matches a matrix's name " \
      "decides its format; norms and biases keep theirs.")

#define TESS_RUN_LORA_KEYS(X) \
    X(lora, rank, "rank", int64_t, INT, "", "16", 1, 4096, NUMERICS, \
      "Rank r of the adapters.") \
    X(lora, alpha, "alpha", double, F64, "", "32", 1e-6, 1e6, NUMERICS, \
      "The adapter's product is scaled by alpha / rank.") \
    X(lora, targets, "targets", tess_run_names, NAMES, "", "all-linear", 1, 4096, NUMERICS, \
      "all-linear (every linear layer but the output embedding), a list of layer names, or " \
      "a regular expression on the whole path; with flux also a word of other trainers, such as " \
      "mmdit, all or kohya ([targets](flux.md#targets)). What names no layer is refused.") \
    X(lora, exclude, "exclude", tess_run_names, NAMES, "", TESS_RUN_UNSET, 1, 4096, NUMERICS, \
      "Layers that get no adapter although targets names them; same forms.") \
    X(lora, dropout, "dropout", double, F64, "", "0.0", 0, 0.99, NUMERICS, \
      "Probability of dropping an element of the adapter's input.") \
    X(lora, rslora, "rslora", bool, BOOL, "", "false", 0, 0, NUMERICS, \
      "Scale by alpha / sqrt(rank) instead (rsLoRA).") \
    X(lora, rank_pattern, "rank_pattern", tess_run_patterns, PATTERNS, "", TESS_RUN_UNSET, 1, \
      4096, NUMERICS, \
      "Ranks of some layers: the first pattern that matches the end of a layer's path, from a " \
      "dot on, decides.") \
    X(lora, alpha_pattern, "alpha_pattern", tess_run_patterns, PATTERNS, "", TESS_RUN_UNSET, 1e-6, \
      1e6, NUMERICS, \
      "Alpha of some layers, by the same rule.") \
    X(lora, layers, "layers", tess_run_ints, INTS, "", TESS_RUN_UNSET, 0, 1000000, NUMERICS, \
      "Decoder blocks that get adapters, from 0 (layers_to_transform of PEFT); targets must then " \
      "be a list. Not set: all.") \
    X(lora, layers_pattern, "layers_pattern", tess_run_names, NAMES, "", TESS_RUN_UNSET, 1, 4096, \
      NUMERICS, \
      "What stands in front of a block's number in paths; not set: any name. flux: " \
      "transformer_blocks, single_transformer_blocks or both.") \
    X(lora, modules_to_save, "modules_to_save", tess_run_names, NAMES, "", TESS_RUN_UNSET, 1, \
      4096, NUMERICS, \
      "Ends of module paths, such as [norm, lm_head]: modules that are trained as a whole and " \
      "saved with the adapter; they get no adapter.") \
    X(lora, dora, "dora", bool, BOOL, "", "false", 0, 0, NUMERICS, \
      "DoRA: a trained magnitude per output beside the adapter.") \
    X(lora, init, "init", tess_run_start, ENUM, TESS_RUN_WORDS_(START), "default", 0, 0, \
      NUMERICS, \
      "How adapters begin. default: A uniform in 1 / sqrt(in), B zero; gaussian: A normal with " \
      "1 / rank, B zero; pissa: the largest singular values of the weights, which the base " \
      "loses; loftq: the largest of what quantizing loses. The last two make a base of their own " \
      "and need weights of 16 or 32 bits.") \
    X(lora, init_iterations, "init_iterations", int64_t, INT, "", "1", 1, 100, NUMERICS, \
      "loftq: how often the base is quantized and the adapter fitted in turn.") \
    X(lora, power_iterations, "power_iterations", int64_t, INT, "", "4", 0, 100, NUMERICS, \
      "pissa, loftq: iterations of the randomized subspace.") \
    X(lora, plus_ratio, "plus_ratio", double, F64, "", "1.0", 1e-3, 1e3, NUMERICS, \
      "LoRA+: learning rate of B over that of A.")

#define TESS_RUN_DATA_KEYS(X) \
    X(data, path, "path", char *, PATH, "", TESS_RUN_REQUIRED, 1, 4096, FREE, \
      "Token file made by tessera tokenize; with family kmeans or rqvae vectors (.fvecs, " \
      ".bvecs, .ivecs, .fbin, .u8bin, .i8bin, .npy, HDF5); with vqvae a folder of images (.png, " \
      ".npy); with flux a cache made by tessera cache. The digest, not the path, enters the " \
      "numerics digest.") \
    X(data, eval_path, "eval_path", char *, PATH, "", TESS_RUN_UNSET, 1, 4096, FREE, \
      "Held-out token file, vectors, images, or cache; without it nothing is evaluated.") \
    X(data, mask_path, "mask_path", char *, PATH, "", TESS_RUN_UNSET, 1, 4096, FREE, \
      "kmeans, rqvae: vectors [N, 1] beside data.path: 1, or 0 where a vector is padding: it " \
      "counts nowhere and has code -1; vqvae: [N, positions of an image]. Enters the identity of " \
      "data.path.") \
    X(data, eval_mask_path, "eval_mask_path", char *, PATH, "", TESS_RUN_UNSET, 1, 4096, FREE, \
      "The same beside data.eval_path.") \
    X(data, resolution, "resolution", int64_t, INT, "auto", "auto", 16, 16384, FREE, \
      "flux: memory is planned for images of as many pixels as a square of this side; " \
      "auto: for the " \
      "largest of data.path and data.eval_path.") \
    X(data, text_length, "text_length", int64_t, INT, "auto", "auto", 1, 4096, FREE, \
      "flux: tokens of text that memory is planned for; auto: those of data.path. 512 is " \
      "usual for " \
      "dev, 256 for schnell.") \
    X(data, sequence_length, "sequence_length", int64_t, INT, "", "512", 2, 1048576, NUMERICS, \
      "Tokens per sequence.") \
    X(data, packing, "packing", bool, BOOL, "", "true", 0, 0, NUMERICS, \
      "Fill a sequence with several documents; attention and positions restart at each.") \
    X(data, mask_prompt, "mask_prompt", bool, BOOL, "", "true", 0, 0, NUMERICS, \
      "Leave out of the loss the tokens that the token file marks as prompt.")

#define TESS_RUN_TRAIN_KEYS(X) \
    X(train, mode, "mode", tess_run_mode, ENUM, TESS_RUN_WORDS_(MODE), "lora", 0, 0, \
      NUMERICS, \
      "lora trains adapters on a frozen base, full trains every weight.") \
    X(train, steps, "steps", int64_t, INT, "", "100", 1, TESS_RUN_STEPS_MAX, NUMERICS, \
      "Optimizer steps of the whole run.") \
    X(train, epochs, "epochs", double, F64, "", TESS_RUN_UNSET, 1e-6, 1e6, FREE, \
      "Instead of train.steps: as many steps as it takes to see data.path so often, rounded up. " \
      "A run says how many that are, and keeps them as train.steps.") \
    X(train, micro_batch, "micro_batch", int64_t, INT, "", "1", 1, 65536, NUMERICS, \
      "Sequences, vectors, or samples of one latent size, per micro-batch.") \
    X(train, micro_batches, "micro_batches", int64_t, INT, "", "8", 1, 1048576, NUMERICS, \
      "Micro-batches per step over all ranks (M); results do not depend on the number of " \
      "ranks.") \
    X(train, learning_rate, "learning_rate", double, F64, "", "2.0e-4", 0, 10, NUMERICS, \
      "Peak learning rate; with prodigy, which finds the scale itself, the default is 1.") \
    X(train, min_learning_rate_ratio, "min_learning_rate_ratio", double, F64, "", "0.0", 0, 1, \
      NUMERICS, \
      "Learning rate at the last step over the peak (every schedule but constant).") \
    X(train, schedule, "schedule", tess_run_schedule, ENUM, TESS_RUN_WORDS_(SCHEDULE), \
      "cosine", 0, 0, NUMERICS, \
      "Shape of the learning rate after the warm-up ([shapes](optimizers.md#learning-rate)); " \
      "with adamw-schedule-free the default is constant, and so must it be.") \
    X(train, cycles, "cycles", int64_t, INT, "", "1", 1, 1000000, NUMERICS, \
      "Times the shape is run through; each begins at the peak again (linear, cosine and " \
      "polynomial).") \
    X(train, power, "power", double, F64, "", "1.0", 0.01, 100, NUMERICS, \
      "Exponent of the polynomial schedule.") \
    X(train, decay_steps, "decay_steps", int64_t, INT, "auto", "auto", 0, 1000000000, NUMERICS, \
      "Last steps of the run in which a wsd schedule falls; auto: a tenth of train.steps, but " \
      "not into the warm-up.") \
    X(train, decay_shape, "decay_shape", tess_run_decay, ENUM, TESS_RUN_WORDS_(DECAY), "cosine", \
      0, 0, NUMERICS, \
      "How a wsd schedule falls.") \
    X(train, warmup_steps, "warmup_steps", int64_t, INT, "", "10", 0, 1000000000, NUMERICS, \
      "Steps of linear warm-up; at most train.steps (where it is not given: the lesser of " \
      "10 and train.steps).") \
    X(train, warmup_ratio, "warmup_ratio", double, F64, "", TESS_RUN_UNSET, 0, 1, FREE, \
      "Instead of train.warmup_steps: this share of train.steps, rounded up.") \
    X(train, optimizer, "optimizer", tess_optimizer_kind, ENUM, TESS_RUN_WORDS_(OPTIMIZER), \
      "adamw", 0, 0, NUMERICS, \
      "Optimizer ([which one](optimizers.md)).") \
    X(train, beta1, "beta1", double, F64, "", "0.9", 0, 0.999999, NUMERICS, \
      "Decay of the first moment.") \
    X(train, beta2, "beta2", double, F64, "", "0.999", 0, 0.99999999, NUMERICS, \
      "Decay of the second moment; with lion the default is 0.99.") \
    X(train, eps, "eps", double, F64, "", "1.0e-8", 1e-30, 1, NUMERICS, \
      "Added to the root of the second moment.") \
    X(train, prodigy_d0, "prodigy_d0", double, F64, "", "1.0e-6", 1e-30, 1, NUMERICS, \
      "First estimate of the distance to the solution.") \
    X(train, prodigy_d_coef, "prodigy_d_coef", double, F64, "", "1.0", 1e-6, 1e6, NUMERICS, \
      "Factor of later estimates.") \
    X(train, prodigy_bias_correction, "prodigy_bias_correction", bool, BOOL, "", "false", 0, 0, \
      NUMERICS, \
      "Correct the bias of the moments as Adam does.") \
    X(train, prodigy_safeguard_warmup, "prodigy_safeguard_warmup", bool, BOOL, "", "false", 0, 0, \
      NUMERICS, \
      "Leave the learning rate out of the estimate's denominator, for runs with a warm-up.") \
    X(train, adafactor_relative_step, "adafactor_relative_step", bool, BOOL, "", "false", 0, 0, \
      NUMERICS, \
      "Multiply the learning rate of step t by min(0.01, 1 / sqrt(t)).") \
    X(train, adafactor_scale_parameter, "adafactor_scale_parameter", bool, BOOL, "", "false", 0, \
      0, NUMERICS, \
      "Multiply the learning rate of a tensor by the root of its mean square, at least 0.001.") \
    X(train, muon_momentum, "muon_momentum", double, F64, "", "0.95", 0, 0.999999, NUMERICS, \
      "Momentum of matrices; beta1, beta2 and eps are those of all other tensors.") \
    X(train, muon_scale, "muon_scale", tess_run_muon_scale, ENUM, TESS_RUN_WORDS_(MUON_SCALE), \
      "match_rms_adamw", 0, 0, NUMERICS, \
      "Size of a matrix's update: 0.2 sqrt(max(rows, columns)), with learning rates as for " \
      "AdamW, or sqrt(max(1, rows / columns)).") \
    X(train, ema_decay, "ema_decay", double, F64, "", "0.0", 0, 0.99999999, NUMERICS, \
      "Keep a moving average of the trained weights in f32: average = decay average + " \
      "(1 - decay) weights after every update; 0: none.") \
    X(train, eval_weights, "eval_weights", tess_run_weights, ENUM, TESS_RUN_WORDS_(WEIGHTS), \
      "trained", 0, 0, FREE, \
      "Weights that are evaluated and sampled from; ema needs train.ema_decay.") \
    X(train, weight_decay, "weight_decay", double, F64, "", "0.0", 0, 10, NUMERICS, \
      "Decoupled weight decay.") \
    X(train, clip_norm, "clip_norm", double, F64, "", "1.0", 0, 1e9, NUMERICS, \
      "Global gradient norm above which gradients are scaled down; 0 never clips.") \
    X(train, spike_threshold, "spike_threshold", double, F64, "", "8.0", 0, 1e6, FREE, \
      "Robust z-score of a step's loss or gradient norm above which it is a spike, and the log " \
      "names its micro-batches ([loss guard](trace.md#loss-guard)); 0: never. Decides bits, and " \
      "so is compared, with another train.on_spike than warn.") \
    X(train, on_spike, "on_spike", tess_run_spike, ENUM, TESS_RUN_WORDS_(SPIKE), "warn", 0, 0, \
      NUMERICS, \
      "What becomes of a step that spikes: it is taken; its update is not applied; or the run " \
      "goes back to the checkpoint before it and leaves out the data since, at most 3 times " \
      "([loss guard](trace.md#loss-guard)).") \
    X(train, seed, "seed", int64_t, INT, "", "0", 0, INT64_MAX, NUMERICS, \
      "Key of every random number of the run.") \
    X(train, eval_every, "eval_every", int64_t, INT, "", "50", 0, 1000000000, FREE, \
      "Evaluate after every so many steps; 0: only before the first and after the last.")

#define TESS_RUN_QUANTIZER_KEYS(X) \
    X(quantizer, type, "type", tess_run_quantizer, ENUM, TESS_RUN_WORDS_(QUANTIZER), \
      "auto", 0, 0, NUMERICS, \
      "residual-kmeans (kmeans, auto): each level's codes are the k-means centers of what the " \
      "levels before it leave. rqvae, vqvae: residual-vq (auto), vq (one level), cosine, simvq, " \
      "residual-simvq, fsq, residual-fsq, lfq, bsq, latent; rqvae alone: random-projection " \
      "([vectors](vectors.md)).") \
    X(quantizer, codes, "codes", int64_t, INT, "", "256", 1, 4294967294, NUMERICS, \
      "Codes of a codebook (K).") \
    X(quantizer, levels, "levels", int64_t, INT, "", "1", 1, 64, NUMERICS, \
      "Codebooks one after the other, each for what those before it leave; 1: plain k-means.") \
    X(quantizer, groups, "groups", int64_t, INT, "", "1", 1, 65536, NUMERICS, \
      "Equal parts of the dimensions with codebooks of their own (product quantizer, heads); " \
      "divides the dimension. lfq and bsq: with an index each, of at most 31 bits.") \
    X(quantizer, shared_codes, "shared_codes", bool, BOOL, "", "false", 0, 0, NUMERICS, \
      "rqvae, vqvae: all groups take the codes of a level from one codebook (heads that share " \
      "it).") \
    X(quantizer, beam, "beam", int64_t, INT, "", "1", 1, 32, NUMERICS, \
      "Partial assignments that are kept from level to level; 1: the nearest code of each level.") \
    X(quantizer, dim, "dim", int64_t, INT, "auto", "auto", 1, 4194304, FREE, \
      "Dimension of the vectors; auto: what data.path holds, which must agree.") \
    X(quantizer, init, "init", tess_run_code_init, ENUM, TESS_RUN_WORDS_(CODE_INIT), "auto", 0, \
      0, NUMERICS, \
      "Start codes. kmeans++: spread over a sample of 64 vectors per code; sample: drawn " \
      "vectors; random: normal. auto: kmeans++ for one level of at most 4096 codes, else " \
      "sample. With rqvae and vqvae of what the encoder makes of the first step, level by " \
      "level: kmeans (auto; quantizer.passes rounds), sample, or random: uniform.") \
    X(quantizer, passes, "passes", int64_t, INT, "", "25", 1, 1000000000, NUMERICS, \
      "Most passes over the data, or mini-batches, of a level; it ends early when its error " \
      "repeats. With rqvae and vqvae the rounds of init kmeans, 10 where it is not given.") \
    X(quantizer, refine, "refine", int64_t, INT, "", "0", 0, 1000000, NUMERICS, \
      "Passes after the last level in which each level is fitted to what all others leave, " \
      "and vectors are assigned again.") \
    X(quantizer, batch, "batch", int64_t, INT, "", "0", 0, 1000000000000, NUMERICS, \
      "Vectors of a mini-batch; 0: every pass takes all vectors.") \
    X(quantizer, spherical, "spherical", bool, BOOL, "", "false", 0, 0, NUMERICS, \
      "Vectors and codes are brought to length 1; one level, one group, full passes.") \
    X(quantizer, sharding, "sharding", tess_run_sharding, ENUM, TESS_RUN_WORDS_(SHARDING), \
      "auto", 0, 0, FREE, \
      "replicated: every rank holds all codes; rows: each rank holds and searches its part; " \
      "auto: what fits and sends less. With rqvae and vqvae rows has no quantizer.orthogonal; " \
      "auto: what receives less while training, else what fits. Same bits.") \
    X(quantizer, code_dim, "code_dim", int64_t, INT, "", "32", 1, 65536, NUMERICS, \
      "rqvae, vqvae: dimension of the codes, and of what the encoder gives; lfq and bsq: bits. " \
      "With quantizer.axis_levels it is the length of that list.") \
    X(quantizer, axis_levels, "axis_levels", tess_run_ints, INTS, "", TESS_RUN_UNSET, 2, 65536, \
      NUMERICS, \
      "fsq, residual-fsq, latent: levels of each dimension, such as [8, 5, 5, 5]; codes are " \
      "their product.") \
    X(quantizer, rule, "rule", tess_run_level_rule, ENUM, TESS_RUN_WORDS_(LEVEL_RULE), "upper", 0, \
      0, NUMERICS, \
      "fsq: how a number becomes a level. upper: as vector-quantize-pytorch; lower: as the " \
      "published notebook; symmetric: evenly over [-1, 1]; clamped: the same without tanh.") \
    X(quantizer, noise, "noise", double, F64, "", "0.0", 0, 1, NUMERICS, \
      "fsq with rule symmetric or clamped: probability that a number of a code moves by up to " \
      "1/2 while training.") \
    X(quantizer, encoder, "encoder", tess_run_ints, INTS, "", TESS_RUN_UNSET, 1, 1048576, \
      NUMERICS, \
      "rqvae: sizes of the encoder's hidden layers, such as [512, 256, 128]; the decoder has " \
      "them backwards. Not set: one linear layer each.") \
    X(quantizer, image, "image", tess_run_ints, INTS, "", TESS_RUN_UNSET, 1, 1048576, FREE, \
      "vqvae: channels (1 or 3), height and width of the images, such as [3, 64, 64]; not set: " \
      "what data.path holds, which must agree.") \
    X(quantizer, downsample, "downsample", int64_t, INT, "", "2", 1, 8, NUMERICS, \
      "vqvae: convolutions of 4 x 4 with stride 2 that halve height and width; each position of " \
      "what is left is a vector.") \
    X(quantizer, channels, "channels", int64_t, INT, "", "128", 1, 65536, NUMERICS, \
      "vqvae: channels between the layers.") \
    X(quantizer, residual_blocks, "residual_blocks", int64_t, INT, "", "2", 0, 16, NUMERICS, \
      "vqvae: residual blocks (3 x 3, 1 x 1) of encoder and of decoder.") \
    X(quantizer, residual_channels, "residual_channels", int64_t, INT, "", "32", 1, 65536, \
      NUMERICS, "vqvae: channels inside a residual block.") \
    X(quantizer, bias, "bias", bool, BOOL, "", "true", 0, 0, NUMERICS, \
      "rqvae, vqvae: the layers of encoder and decoder have biases.") \
    X(quantizer, loss, "loss", tess_run_over, ENUM, TESS_RUN_WORDS_(OVER), "mean", 0, 0, \
      NUMERICS, \
      "rqvae, vqvae: squared errors of a vector, of its reconstruction and of each level, are " \
      "means or sums over elements.") \
    X(quantizer, commitment, "commitment", double, F64, "", "0.25", 0, 1e6, NUMERICS, \
      "rqvae, vqvae: weight of what moves vectors to their codes; what moves codes to vectors " \
      "has 1.") \
    X(quantizer, entropy, "entropy", double, F64, "", "0.1", 0, 1e6, NUMERICS, \
      "lfq, bsq: weight of the entropy of each vector's soft assignment, in nats; 0: none. bsq " \
      "divides it by quantizer.inverse_temperature.") \
    X(quantizer, confidence, "confidence", double, F64, "", "1.0", 0, 1e6, NUMERICS, \
      "lfq, bsq: weight of that entropy of vectors alone (gamma0 of BSQ), times " \
      "quantizer.entropy.") \
    X(quantizer, scale, "scale", double, F64, "", "1.0", 1e-6, 1e6, NUMERICS, \
      "lfq: magnitude of the codes' numbers (codebook_scale).") \
    X(quantizer, diversity, "diversity", double, F64, "", "1.0", 0, 1e6, NUMERICS, \
      "lfq, bsq: the entropy of the mean assignment of a whole step is rewarded with " \
      "quantizer.entropy times this; 0: none, which saves a pass of the encoder over the step.") \
    X(quantizer, inverse_temperature, "inverse_temperature", double, F64, "", "100.0", 1e-6, 1e9, \
      NUMERICS, "lfq, bsq: sharpness of that assignment.") \
    X(quantizer, orthogonal, "orthogonal", double, F64, "", "0.0", 0, 1e6, NUMERICS, \
      "Codes that are learned by gradient: weight of the loss that makes them orthogonal to each " \
      "other (10 in the paper); 0: none.") \
    X(quantizer, temperature, "temperature", double, F64, "", "0.0", 0, 1e6, NUMERICS, \
      "Codebooks: codes are drawn while training, by -distance / temperature; 0: the nearest.") \
    X(quantizer, estimator, "estimator", tess_run_estimator, ENUM, TESS_RUN_WORDS_(ESTIMATOR), \
      "straight-through", 0, 0, NUMERICS, \
      "rqvae, vqvae: how the decoder's gradient passes the codes: as it is, or by the rotation " \
      "trick; once, from the sum of codes to the encoder.") \
    X(quantizer, update, "update", tess_run_update, ENUM, TESS_RUN_WORDS_(UPDATE), "gradient", 0, \
      0, NUMERICS, \
      "rqvae, vqvae: what moves codes. gradient: the optimizer; ema: moving averages of the " \
      "vectors they are nearest to, once per step.") \
    X(quantizer, decay, "decay", double, F64, "", "0.99", 0, 0.999999, NUMERICS, \
      "update ema: decay of the averages.") \
    X(quantizer, threshold, "threshold", double, F64, "", "0.0", 0, 1e9, NUMERICS, \
      "update ema: codes whose average of hits per step, over all ranks, falls below it are " \
      "replaced by vectors of the step; 0: none are.") \
    X(quantizer, window, "window", int64_t, INT, "", "50", 1, 1000000000, FREE, \
      "rqvae, vqvae: steps over which usage and errors of levels are counted before they are " \
      "reported.")

#define TESS_RUN_OBJECTIVE_KEYS(X) \
    X(objective, timesteps, "timesteps", tess_run_timesteps, ENUM, TESS_RUN_WORDS_(TIMESTEPS), \
      "uniform", 0, 0, NUMERICS, \
      "How sigma, the share of noise, is drawn for a sample ([formulas](objective.md)): uniform; " \
      "logit-normal: 1 / (1 + exp(-(logit_mean + logit_std N))); sigmoid: the same with mean 0 " \
      "and sigmoid_scale; beta; mode: of Stable Diffusion 3; fast: 1 in seven of ten, else " \
      "0.75, 0.5 or 0.25, for schnell.") \
    X(objective, logit_mean, "logit_mean", double, F64, "", "0.0", -20, 20, NUMERICS, \
      "timesteps logit-normal: mean; above 0 there is more noise.") \
    X(objective, logit_std, "logit_std", double, F64, "", "1.0", 1e-6, 100, NUMERICS, \
      "timesteps logit-normal: standard deviation.") \
    X(objective, sigmoid_scale, "sigmoid_scale", double, F64, "", "1.0", 1e-6, 100, NUMERICS, \
      "timesteps sigmoid: factor of the normal number.") \
    X(objective, mode_scale, "mode_scale", double, F64, "", "1.29", -1, 1.75, NUMERICS, \
      "timesteps mode: scale of the bend.") \
    X(objective, beta_alpha, "beta_alpha", int64_t, INT, "", "2", 1, 64, NUMERICS, \
      "timesteps beta: first parameter, a whole number.") \
    X(objective, beta_beta, "beta_beta", int64_t, INT, "", "2", 1, 64, NUMERICS, \
      "timesteps beta: second parameter.") \
    X(objective, levels, "levels", int64_t, INT, "", "0", 0, 1000000, NUMERICS, \
      "Sigma is rounded up to a multiple of 1 / levels, before it is shifted: 1000 is what " \
      "schedulers with 1000 training timesteps do; 0: not rounded.") \
    X(objective, shift, "shift", tess_run_shift, ENUM, TESS_RUN_WORDS_(SHIFT), "none", 0, 0, \
      NUMERICS, \
      "sigma becomes S sigma / (1 + (S - 1) sigma): static: S is shift_factor; auto: S = " \
      "exp(mu), mu linear in the packed tokens of the sample from 0.5 at 256 to 1.15 at 4096.") \
    X(objective, shift_factor, "shift_factor", double, F64, "", "3.0", 1e-3, 1000, NUMERICS, \
      "shift static: S.") \
    X(objective, min_timestep, "min_timestep", double, F64, "", "0.0", 0, 999, NUMERICS, \
      "After the shift, sigma in [0, 1] is mapped to [min_timestep, max_timestep] / 1000.") \
    X(objective, max_timestep, "max_timestep", double, F64, "", "1000.0", 0, 1000, NUMERICS, \
      "See min_timestep, which is below it.") \
    X(objective, weighting, "weighting", tess_run_weighting, ENUM, TESS_RUN_WORDS_(WEIGHTING), \
      "none", 0, 0, NUMERICS, \
      "Factor of a sample's loss: 1, sigma^-2 (sigma_sqrt) or 2 / (pi (1 - 2 sigma + 2 sigma^2)) " \
      "(cosmap).") \
    X(objective, guidance_mode, "guidance_mode", tess_run_guidance, ENUM, \
      TESS_RUN_WORDS_(GUIDANCE), "constant", 0, 0, NUMERICS, \
      "Guidance that a model with a guidance embedding (dev) is told: objective.guidance, or " \
      "drawn for each sample between guidance_min and guidance_max.") \
    X(objective, guidance, "guidance", double, F64, "", "1.0", 0, 100, NUMERICS, \
      "guidance_mode constant: the value; also of evaluations.") \
    X(objective, guidance_min, "guidance_min", double, F64, "", "0.0", 0, 100, NUMERICS, \
      "guidance_mode uniform: least value.") \
    X(objective, guidance_max, "guidance_max", double, F64, "", "4.0", 0, 100, NUMERICS, \
      "guidance_mode uniform: largest value.") \
    X(objective, caption_dropout, "caption_dropout", double, F64, "", "0.0", 0, 1, NUMERICS, \
      "Probability that a sample is trained with the empty caption, which the cache must then " \
      "hold.") \
    X(objective, masked_loss, "masked_loss", bool, BOOL, "", "false", 0, 0, NUMERICS, \
      "Multiply the loss of a token by the mean of the cached mask over it; samples without a " \
      "mask count in full.")

#define TESS_RUN_SAMPLE_KEYS(X) \
    X(sample, prompts, "prompts", tess_run_names, NAMES, "", TESS_RUN_UNSET, 1, 4096, FREE, \
      "Texts that a language model continues while it trains, into " \
      "output.dir/samples/step-N.txt and the log; with flux captions of the cache that images " \
      "are sampled from, as latents there. Without it nothing is sampled.") \
    X(sample, every, "every", int64_t, INT, "auto", "auto", 1, 1000000000, FREE, \
      "Steps between samples, and at the end; auto: train.eval_every. A step at which a run " \
      "stops on request is passed over.") \
    X(sample, tokens, "tokens", int64_t, INT, "", "64", 1, 1048576, FREE, \
      "Language models: new tokens of a text, at most; each is a forward pass of " \
      "data.sequence_length.") \
    X(sample, temperature, "temperature", double, F64, "", "0.8", 0, 100, FREE, \
      "Language models: above 1 flattens the choice, below sharpens it; 0 takes the likeliest " \
      "token.") \
    X(sample, top_k, "top_k", int64_t, INT, "", "40", 0, 1048576, FREE, \
      "Language models: choose among so many likeliest tokens; 0: among all.") \
    X(sample, steps, "steps", int64_t, INT, "", "28", 1, 10000, FREE, \
      "flux: Euler steps of an image; 4 for schnell.") \
    X(sample, guidance, "guidance", double, F64, "", "3.5", 0, 100, FREE, \
      "flux: guidance that a model with a guidance embedding is told.") \
    X(sample, width, "width", int64_t, INT, "", "512", 16, 16384, FREE, \
      "flux: pixels of an image, a multiple of 16; what memory is planned for must hold it " \
      "(data.resolution).") \
    X(sample, height, "height", int64_t, INT, "", "512", 16, 16384, FREE, "See width.") \
    X(sample, images, "images", int64_t, INT, "", "1", 1, 65536, FREE, \
      "flux: images of each prompt.") \
    X(sample, seed, "seed", int64_t, INT, "", "0", 0, INT64_MAX, FREE, \
      "Seed of the choice of tokens, or of the noise that images begin with.")

#define TESS_RUN_SHARD_KEYS(X) \
    X(shard, gather_group, "gather_group", int64_t, INT, "auto|node|world", "auto", 1, 1048576, \
      FREE, \
      "Ranks that together hold one copy of the frozen base; divides the world. 1 " \
      "replicates it, auto takes the smallest that fits.") \
    X(shard, reshard_after_forward, "reshard_after_forward", tess_run_switch, ENUM, \
      TESS_RUN_WORDS_(SWITCH), "auto", 0, 0, FREE, \
      "Give a unit's gathered bytes back after the forward pass and gather them again for " \
      "the backward pass.") \
    X(shard, prefetch, "prefetch", int64_t, INT, "", "1", 0, 1, FREE, \
      "Buckets of units gathered ahead of the one that computes.") \
    X(shard, bucket_bytes, "bucket_bytes", int64_t, BYTES, "auto", "auto", 0, INT64_MAX, \
      FREE, \
      "Consecutive units are gathered together as long as they have at most so many bytes; 0 " \
      "gathers every unit alone. auto takes what messages need on their link: 64 MiB between " \
      "GPUs of a node, 256 MiB across nodes, 960 KiB a rank between CPU ranks, but no more " \
      "than an eighth of all that is gathered or the largest unit, and units alone where " \
      "memory is short.") \
    X(shard, reduction, "reduction", tess_run_reduction, ENUM, TESS_RUN_WORDS_(REDUCTION), \
      "exact", 0, 0, NUMERICS, \
      "exact: the same bits on any number of ranks; library: the communication library's " \
      "own reduction.") \
    X(shard, exchange, "exchange", tess_run_exchange, ENUM, TESS_RUN_WORDS_(EXCHANGE), "auto", 0, \
      0, FREE, \
      "How gradient pieces reach their owners, with reduction exact; same bits. direct: a " \
      "message to each; by-node: one message to each other node, passed on there; auto: for " \
      "each unit what takes less time, which is by-node where pieces are of a few kilobytes. " \
      "On GPUs direct: NCCL groups messages itself.") \
    X(shard, check_base, "check_base", tess_run_switch, ENUM, TESS_RUN_WORDS_(SWITCH), "auto", 0, \
      0, FREE, \
      "Before every step compare this rank's shard of one unit's frozen bytes with what was " \
      "loaded, all units in turn ([what is checked](checkpoints.md#bits-that-change-in-memory)). " \
      "auto: on CPU ranks; on a GPU the shard has to come to the host.") \
    X(shard, check_copies, "check_copies", int64_t, INT, "", "100", 0, 1000000000, FREE, \
      "Steps between comparisons of what every rank has a copy of: gathered LoRA weights, whole " \
      "state and numbers of the optimizer, replicated codes of k-means; also before every save, " \
      "which is refused where they differ; 0: never.") \
    X(shard, check_collectives, "check_collectives", bool, BOOL, "", "false", 0, 0, FREE, \
      "Before each collective of weights and gradients compare on all ranks what is about to " \
      "run: operation, stream, order, contract, dtype, elements. For finding defects: it costs a " \
      "round of messages each time.")

#define TESS_RUN_COMPUTE_KEYS(X) \
    X(compute, device, "device", tess_run_device, ENUM, TESS_RUN_WORDS_(DEVICE), "auto", 0, \
      0, FREE, \
      "Where ranks compute; the backend that was taken enters the numerics digest.") \
    X(compute, share_device, "share_device", bool, BOOL, "", "false", 0, 0, FREE, \
      "Let several ranks of a node use one GPU, for tests; they exchange data through host " \
      "memory.") \
    X(compute, dtype, "dtype", tess_run_dtype, ENUM, TESS_RUN_WORDS_(DTYPE), "bf16", 0, 0, \
      NUMERICS, \
      "Dtype of activations and of the inputs of matrix products.") \
    X(compute, activation_checkpointing, "activation_checkpointing", tess_run_switch, ENUM, \
      TESS_RUN_WORDS_(SWITCH), "auto", 0, 0, FREE, \
      "Keep only a unit's input and compute its forward pass again in the backward pass; " \
      "same bits.") \
    X(compute, threads, "threads", int64_t, INT, "", "1", 1, 1024, FREE, \
      "Compute threads per rank; same bits.") \
    X(compute, comm_thread, "comm_thread", tess_run_switch, ENUM, TESS_RUN_WORDS_(SWITCH), \
      "auto", 0, 0, FREE, \
      "Drive communication from a thread of its own; same bits.") \
    X(compute, decoded_memory, "decoded_memory", int64_t, BYTES, "auto", "0", 0, INT64_MAX, FREE, \
      "Memory of a GPU for quantized weights that stay decoded, instead of decoding them for " \
      "every product; as much of it as is of use is taken. auto: what the plan leaves free, but " \
      "for a sixteenth of compute.memory_limit. Same bits; " \
      "[how much](cuda.md#weights-that-stay-decoded).") \
    X(compute, check_replay, "check_replay", int64_t, INT, "", "0", 0, 1000000000, FREE, \
      "Every so many steps each rank computes its first micro-batch twice and compares the bits " \
      "of its gradients: processors that compute wrong now and then are found so. Language " \
      "models and flux, with shard.reduction exact; 0: never.") \
    X(compute, memory_limit, "memory_limit", int64_t, BYTES, "auto", "auto", 1048576, \
      INT64_MAX, FREE, \
      "Bytes a rank may use; auto: the least over ranks of what is free.")

#define TESS_RUN_ADAPTER_KEYS(X) \
    X(adapter, resume, "resume", char *, PATH, "", TESS_RUN_UNSET, 1, 4096, FREE, \
      "Adapter whose weights the run starts from (mode lora): a PEFT directory, a GGUF adapter, " \
      "or with flux a file of any dialect ([adapters](adapters.md)); their digest, not the path, " \
      "enters the numerics digest.") \
    X(adapter, allow_base_change, "allow_base_change", bool, BOOL, "", "false", 0, 0, FREE, \
      "Go on over another base than the adapter, or the checkpoint, was trained on: masters and " \
      "moments are kept, and the export names all of them.")

#define TESS_RUN_OUTPUT_KEYS(X) \
    X(output, dir, "dir", char *, PATH, "", TESS_RUN_REQUIRED, 1, 4096, FREE, \
      "Folder of metrics, plan, resolved run file, checkpoints and export.") \
    X(output, checkpoint_every, "checkpoint_every", int64_t, INT, "", "50", 0, 1000000000, FREE, \
      "Save after every so many steps; 0: only after the last. A run always saves after its" \
      " last step.") \
    X(output, keep, "keep", int64_t, INT, "", "3", 2, 1000000, FREE, \
      "Checkpoints that are kept; older ones are removed.") \
    X(output, keep_every, "keep_every", int64_t, INT, "", "0", 0, 1000000000, FREE, \
      "Checkpoints at multiples of so many steps are never removed, beside those that keep" \
      " counts; a multiple of checkpoint_every, 0: none.") \
    X(output, verify_after_save, "verify_after_save", bool, BOOL, "", "false", 0, 0, FREE, \
      "Read the files of a checkpoint back from the disk before it counts as one.") \
    X(output, probe_disk, "probe_disk", bool, BOOL, "", "false", 0, 0, FREE, \
      "Before training, write as many bytes as a checkpoint has, and remove them: a quota or disk" \
      " that has no room for them ends the run with 74.") \
    X(output, on_disk_full, "on_disk_full", tess_run_full, ENUM, TESS_RUN_WORDS_(FULL), \
      "continue", 0, 0, FREE, \
      "When a checkpoint finds no room: drop it and train on, wait for room and write it, or" \
      " end with 74.") \
    X(output, when_busy, "when_busy", tess_run_busy, ENUM, TESS_RUN_WORDS_(BUSY), "wait", 0, 0, \
      FREE, \
      "What to do when a save is due while another is being written.") \
    X(output, resume, "resume", char *, PATH, "", "auto", 1, 4096, FREE, \
      "auto: the newest valid checkpoint of output.dir, or a fresh start where none was " \
      "ever committed; never: a fresh start; else a checkpoint's path.") \
    X(output, base, "base", tess_run_store, ENUM, TESS_RUN_WORDS_(STORE), "auto", 0, 0, FREE, \
      "auto: checkpoints refer to the source files where the trained bytes are theirs, and " \
      "copy them where they were quantized; copy: always copy.") \
    X(output, trace, "trace", bool, BOOL, "", "false", 0, 0, FREE, \
      "Write output.dir/trace.<rank>.json, a Chrome trace (Perfetto opens it) of what every rank " \
      "does in its first steps; same bits.") \
    X(output, trace_steps, "trace_steps", int64_t, INT, "", "20", 1, 1000000, FREE, \
      "Steps of a launch that are traced.") \
    X(output, export_as, "export", tess_run_export, ENUM, TESS_RUN_WORDS_(EXPORT), "auto", 0, \
      0, FREE, \
      "What to write to output.dir/export at the end; auto: peft for mode lora, hf for " \
      "mode full; " \
      "with flux diffusers for mode lora. gguf is for language models, diffusers, kohya " \
      "and comfyui " \
      "are for flux.") \
    X(output, export_weights, "export_weights", tess_run_weights, ENUM, \
      TESS_RUN_WORDS_(WEIGHTS), "trained", 0, 0, FREE, \
      "Weights that are exported; ema needs train.ema_decay.")

/** Sections in the order of the file: S(name, NAME, help). */
#define TESS_RUN_SECTION_LIST(S) \
    S(model, MODEL, "The model that is trained or adapted.") \
    S(base, BASE, "How the frozen base is stored.") \
    S(lora, LORA, "Adapters; only with train.mode lora.") \
    S(data, DATA, "What is trained on, and how sequences are cut.") \
    S(train, TRAIN, "Steps, batch, optimizer, schedule.") \
    S(quantizer, QUANTIZER, "Vector quantization: codebooks and how they are found.") \
    S(objective, OBJECTIVE, "What a FLUX.1 transformer is trained to do ([how](objective.md)).") \
    S(sample, SAMPLE, "What a run shows of itself: texts of a language model, images of FLUX.1.") \
    S(shard, SHARD, "How the base is spread over ranks.") \
    S(compute, COMPUTE, "Device, dtype, memory, threads.") \
    S(adapter, ADAPTER, "An adapter to continue from.") \
    S(output, OUTPUT, "Where results go.")
/* clang-format on */

#define TESS_RUN_KEY_LIST(X)                                                                       \
    TESS_RUN_MODEL_KEYS(X)                                                                         \
    TESS_RUN_BASE_KEYS(X)                                                                          \
    TESS_RUN_LORA_KEYS(X)                                                                          \
    TESS_RUN_DATA_KEYS(X)                                                                          \
    TESS_RUN_TRAIN_KEYS(X)                                                                         \
    TESS_RUN_QUANTIZER_KEYS(X)                                                                     \
    TESS_RUN_OBJECTIVE_KEYS(X)                                                                     \
    TESS_RUN_SAMPLE_KEYS(X)                                                                        \
    TESS_RUN_SHARD_KEYS(X)                                                                         \
    TESS_RUN_COMPUTE_KEYS(X)                                                                       \
    TESS_RUN_ADAPTER_KEYS(X)                                                                       \
    TESS_RUN_OUTPUT_KEYS(X)

/** TESS_RUN_KEY_train_steps and so on: index of a key in tess_run_key_at(). */
typedef enum tess_run_key_idx {
#define X(section, field, name, c_type, kind, words, text, lo, hi, class_, help)                   \
    TESS_RUN_KEY_##section##_##field,
    TESS_RUN_KEY_LIST(X)
#undef X
        TESS_RUN_KEY_NUMEL
} tess_run_key_idx;

TESS_END_DECLS
