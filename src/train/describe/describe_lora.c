#include "train/describe/describe_priv.h"

#include "core/memory.h"
#include "format/adapter.h"
#include "train/describe/base_formats_priv.h"
#include "train/describe/describe_flux.h"

/* ---- rules ---- */

static tess_peft_modules modules_of(const tess_run_names *names)
{
    tess_peft_modules m = {0};
    if (!names->is_list && names->item_numel == 1)
        m.regex = names->item[0];
    else {
        m.name = (const char *const *)names->item;
        m.name_numel = (int)names->item_numel;
    }
    return m;
}

/* A word that trainers of FLUX.1 know stands for a list. */
static tess_peft_modules targets_of(tess_description *d)
{
    const tess_run_names *names = &d->run->lora.targets;
    const tess_flux_targets *set = NULL;
    if (tess_run_is_flux(d->run) && !names->is_list && names->item_numel == 1)
        set = tess_flux_targets_find(names->item[0]);
    if (set == NULL)
        return modules_of(names);
    d->shares_a = set->shares_a;
    return set->modules;
}

/* The rules by which an adapter was made. */
static tess_status adopt_spec(const tess_ctx *ctx, const char *path, tess_description *d)
{
    tess_adapter *adapter = NULL;
    TESS_CHECK(d->run->train.mode == TESS_RUN_MODE_LORA, TESS_E_CONFIG,
               "adapter '%s': train.mode is full, and an adapter lies over a frozen base; set "
               "train.mode=lora",
               path);
    const tess_adapter_options options = {.skip_text_encoders = tess_run_is_flux(d->run)};
    TESS_TRY(tess_adapter_open(ctx->io, path, &options, &adapter));
    const tess_status st = tess_adapter_spec(adapter, &d->spec);
    tess_adapter_close(&adapter);
    return st;
}

static tess_status patterns_of(const tess_run_patterns *from, tess_peft_pattern **out)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(from->item_numel, sizeof **out, &memory));
    *out = memory;
    for (int64_t i = 0; i < from->item_numel; i++)
        (*out)[i] = (tess_peft_pattern){from->item[i].pattern, from->item[i].value};
    return TESS_OK;
}

/* Both kinds of block of FLUX.1 are numbered from 0, and so is what their MLPs hold (ff.net.0). */
static tess_status check_layers(const tess_run *run)
{
    TESS_CHECK(!tess_run_is_flux(run) || run->lora.layers.item_numel == 0 ||
                   run->lora.layers_pattern.item_numel > 0,
               TESS_E_CONFIG,
               "lora.layers: FLUX.1 has two kinds of blocks, and nothing says which are meant; set "
               "lora.layers_pattern to transformer_blocks, single_transformer_blocks or a list of "
               "both");
    return TESS_OK;
}

static tess_status make_spec(tess_description *d)
{
    const tess_run_lora_keys *lora = &d->run->lora;
    tess_peft_pattern *rank = NULL, *alpha = NULL;
    TESS_TRY(check_layers(d->run));
    tess_status st = patterns_of(&lora->rank_pattern, &rank);
    if (st == TESS_OK)
        st = patterns_of(&lora->alpha_pattern, &alpha);
    const tess_peft_options options = {
        .rank = lora->rank,
        .alpha = lora->alpha,
        .dropout = lora->dropout,
        .use_rslora = lora->rslora,
        .use_dora = lora->dora,
        .targets = targets_of(d),
        .excludes = modules_of(&lora->exclude),
        .layer = lora->layers.item,
        .layer_numel = (int)lora->layers.item_numel,
        .layers_pattern = (const char *const *)lora->layers_pattern.item,
        .layers_pattern_numel = (int)lora->layers_pattern.item_numel,
        .rank_pattern = rank,
        .rank_pattern_numel = (int)lora->rank_pattern.item_numel,
        .alpha_pattern = alpha,
        .alpha_pattern_numel = (int)lora->alpha_pattern.item_numel,
        .saved = (const char *const *)lora->modules_to_save.item,
        .saved_numel = (int)lora->modules_to_save.item_numel,
    };
    if (st == TESS_OK)
        st = tess_peft_spec_create(&options, &d->spec);
    tess_free(rank);
    tess_free(alpha);
    return st;
}

tess_status describe_lora(const tess_ctx *ctx, const char *adapter, tess_description *d)
{
    if (adapter != NULL)
        return adopt_spec(ctx, adapter, d);
    return d->run->train.mode == TESS_RUN_MODE_LORA ? make_spec(d) : TESS_OK;
}

tess_adapter_start describe_lora_start(const tess_run *run)
{
    const bool is_lora = run->train.mode == TESS_RUN_MODE_LORA;
    const tess_run_start init = is_lora ? run->lora.init : TESS_RUN_START_DEFAULT;
    return (tess_adapter_start){.is_gaussian = init == TESS_RUN_START_GAUSSIAN,
                                .low_rank = init == TESS_RUN_START_PISSA   ? TESS_LOW_RANK_PISSA
                                            : init == TESS_RUN_START_LOFTQ ? TESS_LOW_RANK_LOFTQ
                                                                           : TESS_LOW_RANK_NONE,
                                .power_numel = (int)run->lora.power_iterations,
                                .turn_numel = (int)run->lora.init_iterations};
}

/* ---- callbacks of the model ---- */

tess_status describe_lora_of(void *arg, const char *path, bool is_head, tess_lora_choice *out)
{
    const tess_base_choices *c = arg;
    const tess_peft_module module = {.path = path, .is_output_embedding = is_head};
    tess_peft_match match;
    *out = (tess_lora_choice){0};
    if (c->d->spec == NULL)
        return TESS_OK;
    TESS_TRY(tess_peft_spec_match(c->d->spec, &module, &match));
    if (match.is_target)
        *out = (tess_lora_choice){.rank = (int)match.rank,
                                  .scale = match.scale,
                                  .is_dora = tess_peft_spec_options(c->d->spec)->use_dora,
                                  .shares_a = c->d->shares_a};
    return TESS_OK;
}

bool describe_is_saved(void *arg, const char *name)
{
    const tess_base_choices *c = arg;
    return c->d->spec != NULL && tess_peft_spec_saves(c->d->spec, name);
}

/* ---- checks ---- */

/* Modules that are trained whole: each entry names one, and they start from values of the files
 * that are not quantized there, as PEFT asks too. */
static tess_status check_saved(tess_description *d)
{
    const tess_peft_options *o = d->spec != NULL ? tess_peft_spec_options(d->spec) : NULL;
    char text[TESS_CODEC_TEXT_NBYTES];
    tess_base_choices c = {.d = d};
    for (int i = 0; o != NULL && i < o->saved_numel; i++) {
        bool is_found = false;
        for (int k = 0; k < d->registry.param_numel; k++) {
            const tess_param *p = &d->registry.param[k];
            tess_codec source = {.format = TESS_FORMAT_BF16};
            if (p->role != TESS_ROLE_TRAINABLE || !tess_peft_entry_saves(o->saved[i], p->name))
                continue;
            is_found = true;
            TESS_TRY(tess_base_source_of(&c, p, &source));
            tess_codec_describe(&source, text);
            TESS_CHECK(!tess_format_is_quantized(source.format) || source.format == TESS_FORMAT_F16,
                       TESS_E_UNSUPPORTED,
                       "lora.modules_to_save: '%s' names '%s', which is %s in the model files: a "
                       "module that is trained whole needs weights of 16 or 32 bits",
                       o->saved[i], p->name, text);
        }
        TESS_CHECK(is_found, TESS_E_CONFIG,
                   "lora.modules_to_save: no module's path ends in '%s'; `tessera inspect` lists "
                   "the tensors of a model",
                   o->saved[i]);
    }
    return TESS_OK;
}

/* A base that gives a part of its weights to adapters is made from weights, not from codes. */
static tess_status check_start(tess_description *d)
{
    tess_base_choices c = {.d = d};
    char text[TESS_CODEC_TEXT_NBYTES];
    for (int i = 0; i < d->registry.param_numel; i++) {
        const tess_param *p = &d->registry.param[i];
        tess_codec source = {.format = TESS_FORMAT_BF16};
        if (p->derived.low_rank == TESS_LOW_RANK_NONE)
            continue;
        d->is_base_as_source = false;
        TESS_TRY(tess_base_source_of(&c, p, &source));
        tess_codec_describe(&source, text);
        TESS_CHECK(!tess_format_is_quantized(source.format) || source.format == TESS_FORMAT_F16,
                   TESS_E_UNSUPPORTED,
                   "lora.init: '%s' is %s in the model files: an adapter that starts from the "
                   "weights needs them in 16 or 32 bits; give such a model, or set lora.init to "
                   "default",
                   p->name, text);
        TESS_CHECK(p->derived.low_rank != TESS_LOW_RANK_LOFTQ ||
                       tess_format_is_quantized(p->codec.format),
                   TESS_E_CONFIG,
                   "lora.init: loftq makes up for what quantizing loses, and '%s' is stored as "
                   "%s; choose a quantized base.format, or lora.init pissa",
                   p->name, text);
    }
    return TESS_OK;
}

tess_status describe_check_lora(tess_description *d)
{
    TESS_TRY(check_saved(d));
    return check_start(d);
}
