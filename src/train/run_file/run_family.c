/* Which keys a family reads: jobs over vectors have no language model, and the other way round. */
#include <string.h>

#include "train/run_file/run_priv.h"

/* Keys, whole sections as "section.", that a family reads. */
static const char *const of_kmeans[] = {"model.family",
                                        "data.path",
                                        "data.eval_path",
                                        "data.mask_path",
                                        "data.eval_mask_path",
                                        "train.seed",
                                        "quantizer.type",
                                        "quantizer.codes",
                                        "quantizer.levels",
                                        "quantizer.groups",
                                        "quantizer.beam",
                                        "quantizer.dim",
                                        "quantizer.init",
                                        "quantizer.passes",
                                        "quantizer.refine",
                                        "quantizer.batch",
                                        "quantizer.spherical",
                                        "quantizer.sharding",
                                        "shard.check_copies",
                                        "shard.check_collectives",
                                        "compute.device",
                                        "compute.share_device",
                                        "compute.threads",
                                        "compute.comm_thread",
                                        "compute.memory_limit",
                                        "output.dir",
                                        "output.checkpoint_every",
                                        "output.keep",
                                        "output.keep_every",
                                        "output.verify_after_save",
                                        "output.probe_disk",
                                        "output.on_disk_full",
                                        "output.when_busy",
                                        "output.resume",
                                        NULL};
static const char *const of_rqvae[] = {"model.family",
                                       "data.path",
                                       "data.eval_path",
                                       "data.mask_path",
                                       "data.eval_mask_path",
                                       "train.",
                                       "shard.reshard_after_forward",
                                       "shard.prefetch",
                                       "shard.bucket_bytes",
                                       "shard.reduction",
                                       "shard.exchange",
                                       "shard.check_copies",
                                       "shard.check_collectives",
                                       "compute.device",
                                       "compute.share_device",
                                       "compute.dtype",
                                       "compute.activation_checkpointing",
                                       "compute.threads",
                                       "compute.comm_thread",
                                       "compute.memory_limit",
                                       "output.dir",
                                       "output.checkpoint_every",
                                       "output.keep",
                                       "output.keep_every",
                                       "output.verify_after_save",
                                       "output.probe_disk",
                                       "output.on_disk_full",
                                       "output.when_busy",
                                       "output.resume",
                                       "output.trace",
                                       "output.export_weights",
                                       NULL};

/* Keys of language models that a FLUX run has no use for. */
static const char *const not_of_flux[] = {"quantizer.",     "data.sequence_length",
                                          "data.packing",   "data.mask_prompt",
                                          "data.mask_path", "data.eval_mask_path",
                                          "sample.tokens",  "sample.temperature",
                                          "sample.top_k",   NULL};

/* What language models have no use for. */
static const char *const of_others[] = {
    "quantizer.",     "objective.",          "data.resolution", "data.text_length",
    "data.mask_path", "data.eval_mask_path", "sample.steps",    "sample.guidance",
    "sample.width",   "sample.height",       "sample.images",   NULL};

static bool is_listed(const char *const *list, const char *path)
{
    for (; *list != NULL; list++) {
        const size_t nbytes = strlen(*list);
        if ((*list)[nbytes - 1] == '.' ? strncmp(path, *list, nbytes) == 0
                                       : strcmp(path, *list) == 0)
            return true;
    }
    return false;
}

bool run_family_reads(const tess_run *run, tess_run_key_idx key)
{
    const tess_run_key *k = tess_run_key_at(key);
    if (tess_run_is_kmeans(run))
        return is_listed(of_kmeans, k->path);
    if (tess_run_is_flux(run))
        return !is_listed(not_of_flux, k->path);
    if (!tess_run_is_rqvae(run))
        return !is_listed(of_others, k->path);
    if (strcmp(k->section, "quantizer") == 0)
        return run_quantizer_reads(run, key);
    return key != TESS_RUN_KEY_train_mode &&
           (is_listed(of_rqvae, k->path) || key == TESS_RUN_KEY_output_trace_steps);
}

void run_family_resolve(tess_run *run)
{
    run->data.sequence_length = 1; /* a sample, whatever its size */
    if (tess_run_is_flux(run))
        return;
    run->train.mode = TESS_RUN_MODE_FULL;
    run->model.init = TESS_RUN_INIT_RANDOM;
    run->output.export_as = TESS_RUN_EXPORT_NONE;
}

/* What a key of another family is good for. */
static const char *other_family(const tess_run *run, tess_run_key_idx key)
{
    const char *section = tess_run_key_at(key)->section;
    if (tess_run_is_vectors(run) || tess_run_is_flux(run))
        return "";
    return strcmp(section, "quantizer") == 0 ? " or set model.family: kmeans"
                                             : " or set model.family: flux";
}

static tess_status check_below(const tess_run *run, tess_run_key_idx key, double low,
                               tess_run_key_idx high_key, double high)
{
    char place[TESS_RUN_PLACE_NBYTES];
    const tess_run_key_idx given = run->place[key].is_given ? key : high_key;
    tess_run_place_text(run, given, place);
    TESS_CHECK(low < high, TESS_E_CONFIG, "%s: %s %g must be less than %s %g", place,
               tess_run_key_at(key)->path, low, tess_run_key_at(high_key)->path, high);
    return TESS_OK;
}

static tess_status check_objective(const tess_run *run)
{
    const tess_run_objective_keys *o = &run->objective;
    char place[TESS_RUN_PLACE_NBYTES];
    TESS_TRY(check_below(run, TESS_RUN_KEY_objective_min_timestep, o->min_timestep,
                         TESS_RUN_KEY_objective_max_timestep, o->max_timestep));
    if (o->guidance_mode == TESS_RUN_GUIDANCE_UNIFORM)
        TESS_TRY(check_below(run, TESS_RUN_KEY_objective_guidance_min, o->guidance_min,
                             TESS_RUN_KEY_objective_guidance_max, o->guidance_max));
    tess_run_place_text(run, TESS_RUN_KEY_objective_weighting, place);
    /* sigma^-2 has no bound: one draw near 0 would be the whole step. */
    TESS_CHECK(o->weighting != TESS_RUN_WEIGHTING_SIGMA_SQRT || o->levels > 0 ||
                   o->min_timestep > 0.0,
               TESS_E_CONFIG,
               "%s: sigma_sqrt grows without bound where sigma comes near 0: set objective.levels "
               "(1000 in the trainers that have it) or objective.min_timestep",
               place);
    return TESS_OK;
}

bool run_family_needs_peft(const tess_run *run)
{
    return run->lora.modules_to_save.item_numel > 0 || run->lora.init == TESS_RUN_START_PISSA ||
           run->lora.init == TESS_RUN_START_LOFTQ;
}

/* Forms of adapters that a family's tools do not read. */
static tess_status check_export(const tess_run *run)
{
    const tess_run_export form = run->output.export_as;
    const bool is_of_flux = form == TESS_RUN_EXPORT_DIFFUSERS || form == TESS_RUN_EXPORT_KOHYA ||
                            form == TESS_RUN_EXPORT_COMFYUI;
    char place[TESS_RUN_PLACE_NBYTES];
    tess_run_place_text(run, TESS_RUN_KEY_output_export_as, place);
    TESS_CHECK(!is_of_flux || tess_run_is_flux(run), TESS_E_CONFIG,
               "%s: that is a form of FLUX.1 adapters: use peft or gguf", place);
    TESS_CHECK(!is_of_flux || !run_family_needs_peft(run), TESS_E_CONFIG,
               "%s: has no place for lora.modules_to_save and lora.init pissa or loftq: use peft",
               place);
    TESS_CHECK(!run->lora.dora || form == TESS_RUN_EXPORT_DIFFUSERS || !is_of_flux, TESS_E_CONFIG,
               "%s: lora.dora trains magnitudes of single rows, which ComfyUI takes otherwise and "
               "kohya's form has for whole fused matrices alone: use diffusers or peft",
               place);
    TESS_CHECK(form != TESS_RUN_EXPORT_GGUF || !tess_run_is_flux(run), TESS_E_CONFIG,
               "%s: gguf holds adapters of language models: use diffusers, kohya, comfyui or peft",
               place);
    return TESS_OK;
}

tess_status run_family_check(const tess_run *run)
{
    char place[TESS_RUN_PLACE_NBYTES];
    TESS_TRY(check_export(run));
    if (tess_run_is_flux(run))
        TESS_TRY(check_objective(run));
    if (tess_run_is_vectors(run))
        TESS_TRY(run_quantizer_check(run));
    for (int i = 0; i < TESS_RUN_KEY_NUMEL; i++) {
        if (!run->place[i].is_given || run_family_reads(run, (tess_run_key_idx)i))
            continue;
        tess_run_place_text(run, (tess_run_key_idx)i, place);
        return TESS_FAIL(TESS_E_CONFIG, "%s: has no meaning with model.family %s: remove it%s",
                         place,
                         tess_run_is_kmeans(run)      ? "kmeans"
                         : tess_run_is_of_images(run) ? "vqvae"
                         : tess_run_is_rqvae(run)     ? "rqvae"
                         : tess_run_is_flux(run)      ? "flux"
                                                      : "of a language model",
                         other_family(run, (tess_run_key_idx)i));
    }
    if (tess_run_is_vectors(run) || run->model.path != NULL)
        return TESS_OK;
    return TESS_FAIL(TESS_E_CONFIG, "%s:1:1: key 'model.path' is missing (%s)", run->source_name,
                     tess_run_key_at(TESS_RUN_KEY_model_path)->help);
}
