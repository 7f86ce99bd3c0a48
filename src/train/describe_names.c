/* Names in a run that no module or tensor of its model has: a misspelt one would be left out
 * without a word. */
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "format/regex.h"
#include "train/describe_flux.h"
#include "train/describe_priv.h"

enum { WORDS_NBYTES = 256 };

/* Bytes of the path of the module whose adapter a tensor is of; 0: it is of none. Parts of a fused
 * matrix may share A: each has a B. */
static size_t adapted_path(const char *tensor_name)
{
    static const char tail[] = ".lora_B.weight";
    const size_t nbytes = strlen(tensor_name), tail_nbytes = sizeof tail - 1;
    const bool is_it =
        nbytes > tail_nbytes && strcmp(tensor_name + nbytes - tail_nbytes, tail) == 0;
    return is_it ? nbytes - tail_nbytes : 0;
}

/* As PEFT takes an entry of a list: the whole path, or what follows a dot in it. */
static bool is_named(const char *entry, const char *path, size_t path_nbytes)
{
    const size_t nbytes = strlen(entry);
    return nbytes <= path_nbytes && strncmp(path + path_nbytes - nbytes, entry, nbytes) == 0 &&
           (nbytes == path_nbytes || path[path_nbytes - nbytes - 1] == '.');
}

/* Whether an adapter lies where `entry` says; NULL: anywhere. */
static bool is_adapted(const tess_registry *reg, const char *entry)
{
    for (int i = 0; i < reg->param_numel; i++) {
        const size_t nbytes = adapted_path(reg->param[i].name);
        if (nbytes > 0 && (entry == NULL || is_named(entry, reg->param[i].name, nbytes)))
            return true;
    }
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

/* Whether an expression matches the whole of any tensor's name or, of adapters, of a module's path.
 */
static tess_status matches_any(const tess_registry *reg, const tess_regex *regex,
                               bool is_of_adapters, bool *out)
{
    char text[TESS_NAME_NBYTES];
    *out = false;
    for (int i = 0; i < reg->param_numel && !*out; i++) {
        const char *name = reg->param[i].name;
        const size_t nbytes = is_of_adapters ? adapted_path(name) : strlen(name);
        snprintf(text, sizeof text, "%.*s", (int)nbytes, name);
        if (nbytes > 0)
            TESS_TRY(tess_regex_matches(regex, text, out));
    }
    return TESS_OK;
}

static tess_status check_expression(const tess_description *d, const char *key, const char *pattern,
                                    bool is_of_adapters)
{
    char *whole = NULL;
    tess_regex *regex = NULL;
    bool is_found = false;
    TESS_TRY(tess_asprintf(&whole, "%s%s%s", is_of_adapters ? "(.*\\.)?(" : "", pattern,
                           is_of_adapters ? ")" : ""));
    tess_status st = tess_regex_create(whole, &regex);
    if (st == TESS_OK)
        st = matches_any(&d->registry, regex, is_of_adapters, &is_found);
    tess_regex_destroy(&regex);
    tess_free(whole);
    TESS_TRY(st);
    TESS_CHECK(is_found, TESS_E_CONFIG,
               "%s: '%s' matches no %s of this model; `tessera inspect` lists its tensors", key,
               pattern, is_of_adapters ? "module with an adapter" : "tensor");
    return TESS_OK;
}

static tess_status check_patterns(const tess_description *d, const char *key,
                                  const tess_run_patterns *patterns)
{
    for (int64_t i = 0; i < patterns->item_numel && !d->shares_a; i++)
        TESS_TRY(check_expression(d, key, patterns->item[i].pattern, true));
    return TESS_OK;
}

tess_status describe_check_names(const tess_description *d, bool has_own_adapters)
{
    const tess_run *run = d->run;
    for (int64_t i = 0; i < run->base.overrides.item_numel; i++)
        TESS_TRY(check_expression(d, "base.overrides", run->base.overrides.item[i].match, false));
    if (!has_own_adapters)
        return TESS_OK;
    TESS_TRY(check_targets(d));
    TESS_TRY(check_patterns(d, "lora.rank_pattern", &run->lora.rank_pattern));
    return check_patterns(d, "lora.alpha_pattern", &run->lora.alpha_pattern);
}
