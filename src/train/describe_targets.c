/* What lora.targets names must be there: a word or an ending that fits nothing would train less
 * than was asked for, or nothing, and say so at the export. */
#include <stdio.h>
#include <string.h>

#include "train/describe_flux.h"
#include "train/describe_priv.h"

enum { WORDS_NBYTES = 256 };

/* Bytes of the path in front of an adapter's B; 0: no such tensor. */
static size_t adapted_nbytes(const tess_param *p)
{
    static const char suffix[] = ".lora_B.weight";
    const size_t nbytes = strlen(p->name), tail = sizeof suffix - 1;
    return p->role == TESS_ROLE_TRAINABLE && nbytes > tail &&
                   strcmp(p->name + nbytes - tail, suffix) == 0
               ? nbytes - tail
               : 0;
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
        const size_t nbytes = adapted_nbytes(&reg->param[i]);
        if (nbytes > 0 && (entry == NULL || is_named(entry, reg->param[i].name, nbytes)))
            return true;
    }
    return false;
}

tess_status describe_check_targets(const tess_description *d)
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
