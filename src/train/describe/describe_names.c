/* Names in a run that no module or tensor of its model has: a misspelt one would be left out
 * without a word. */
#include "format/regex.h"
#include "train/describe/describe_flux.h"
#include "train/describe/describe_priv.h"
#include "train/session_priv.h"

enum { WORDS_NBYTES = 256 };

/* The path of the module whose adapter a tensor is of. Parts of a fused matrix may share A: each
 * has a B. */
static bool is_adapter(const tess_param *p, char path[TESS_NAME_NBYTES])
{
    tess_peft_part part = TESS_PEFT_A;
    return session_parse_lora(p->name, path, &part) && part == TESS_PEFT_B;
}

/* Whether an adapter lies where `entry` says; NULL: anywhere. */
static bool is_adapted(const tess_registry *reg, const char *entry)
{
    char path[TESS_NAME_NBYTES];
    for (int i = 0; i < reg->param_numel; i++)
        if (is_adapter(&reg->param[i], path) &&
            (entry == NULL || tess_peft_entry_names(entry, path)))
            return true;
    return false;
}

static tess_status check_targets(const tess_description *d)
{
    const tess_run_names *targets = &d->run->lora.targets;
    char words[WORDS_NBYTES] = "";
    for (int64_t i = 0; targets->is_list && i < targets->item_numel; i++)
        TESS_CHECK(is_adapted(&d->registry, targets->item[i]), TESS_E_CONFIG,
                   "lora.targets: '%s' names no linear layer that gets an adapter: no path ends in "
                   "it (or lora.exclude and lora.layers take all of them out); `tessera inspect` "
                   "lists the tensors of a model",
                   targets->item[i]);
    if (tess_run_is_flux(d->run))
        tess_flux_targets_words(sizeof words, words);
    TESS_CHECK(is_adapted(&d->registry, NULL), TESS_E_CONFIG,
               "lora.targets: '%s' names no linear layer; expected %sall-linear, a list of ends of "
               "paths, or a regular expression that fits whole paths; `tessera inspect` lists the "
               "tensors of a model",
               targets->item_numel > 0 ? targets->item[0] : "[]", words);
    return TESS_OK;
}

typedef tess_status (*entry_fits)(const tess_peft_spec *spec, int idx, const char *path, bool *out);

static tess_status check_patterns(const tess_description *d, const char *key,
                                  const tess_run_patterns *patterns, entry_fits fits)
{
    const tess_registry *reg = &d->registry;
    char path[TESS_NAME_NBYTES];
    for (int64_t k = 0; k < patterns->item_numel; k++) {
        bool is_found = false;
        for (int i = 0; i < reg->param_numel && !is_found; i++)
            if (is_adapter(&reg->param[i], path))
                TESS_TRY(fits(d->spec, (int)k, path, &is_found));
        TESS_CHECK(is_found, TESS_E_CONFIG,
                   "%s: '%s' matches no module with an adapter of this model; `tessera inspect` "
                   "lists its tensors",
                   key, patterns->item[k].pattern);
    }
    return TESS_OK;
}

static tess_status check_override(const tess_registry *reg, const char *match)
{
    tess_regex *regex = NULL;
    bool is_found = false;
    TESS_TRY(tess_regex_create(match, &regex));
    tess_status st = TESS_OK;
    for (int i = 0; i < reg->param_numel && !is_found && st == TESS_OK; i++)
        st = tess_regex_matches(regex, reg->param[i].name, &is_found);
    tess_regex_destroy(&regex);
    TESS_TRY(st);
    TESS_CHECK(is_found, TESS_E_CONFIG,
               "base.overrides: '%s' matches no tensor of this model; `tessera inspect` lists its "
               "tensors",
               match);
    return TESS_OK;
}

tess_status describe_check_names(const tess_description *d, bool has_own_adapters)
{
    const tess_run *run = d->run;
    for (int64_t i = 0; i < run->base.overrides.item_numel; i++)
        TESS_TRY(check_override(&d->registry, run->base.overrides.item[i].match));
    if (!has_own_adapters)
        return TESS_OK;
    TESS_TRY(check_targets(d));
    TESS_TRY(
        check_patterns(d, "lora.rank_pattern", &run->lora.rank_pattern, tess_peft_spec_fits_rank));
    return check_patterns(d, "lora.alpha_pattern", &run->lora.alpha_pattern,
                          tess_peft_spec_fits_alpha);
}
