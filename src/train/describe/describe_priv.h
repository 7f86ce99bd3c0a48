/** What the descriptions of model families share. */
#pragma once

#include "train/describe/describe.h"

TESS_BEGIN_DECLS

TESS_MUST_CHECK tess_status describe_is_file(const tess_ctx *ctx, const char *dir, const char *name,
                                             bool *out);
/** Where a run keeps small files: beside its checkpoints; before it has any, beside the one it
 * resumes. Local. */
TESS_MUST_CHECK tess_status describe_find_kept(const tess_ctx *ctx, const tess_run *run,
                                               char dir[PATH_MAX], bool *was_begun);
/** Add to a config.json how each tensor of the open files is kept, for a resume without them.
 * Local. */
TESS_MUST_CHECK tess_status describe_add_formats(const tess_description *d, tess_json *root);
/** Whether the config's dtype tells how every tensor is kept. Local. */
TESS_MUST_CHECK tess_status describe_is_as_hinted(const tess_description *d, bool *out);

/** Every name in base.overrides and, of adapters whose rules are the run's own, in lora.targets and
 * the patterns is one that the model has, which was made. Local. @return TESS_E_CONFIG */
TESS_MUST_CHECK tess_status describe_check_names(const tess_description *d, bool has_own_adapters);

/* describe_lora.c: adapters, and modules that are trained whole beside them. All are Local. */
/** `d->spec`: the rules of the run, or those of the adapter that it starts from; NULL where every
 * weight learns. @return TESS_E_CONFIG, as tess_adapter_open() */
TESS_MUST_CHECK tess_status describe_lora(const tess_ctx *ctx, const char *adapter,
                                          tess_description *d);
tess_adapter_start describe_lora_start(const tess_run *run);
/** Callbacks of tess_model_options; `arg`: tess_base_choices. */
tess_status describe_lora_of(void *arg, const char *path, bool is_head, tess_lora_choice *out);
bool describe_is_saved(void *arg, const char *name);
/** Of a described model: what is trained whole, or given to adapters, comes from weights of the
 * files that are not quantized there. @return TESS_E_CONFIG, TESS_E_UNSUPPORTED */
TESS_MUST_CHECK tess_status describe_check_lora(tess_description *d);

TESS_END_DECLS
