/** How each tensor of the base is stored: what files hold, and what the run file asks for. */
#pragma once

#include "format/regex.h"
#include "train/describe/describe.h"

TESS_BEGIN_DECLS

/** In the config.json of a GGUF file, of packed weights and of files that differ from torch_dtype:
 * how each tensor is kept. */
#define TESS_BASE_FORMATS_KEY "tessera_formats"

/** What the callbacks of the model description see. */
typedef struct tess_base_choices {
    tess_description *d;
    tess_regex **override; /* [base.overrides] compiled */
} tess_base_choices;

/** How a weight of open files is kept when nothing else is asked: tess_describe_kept. Local. */
tess_codec tess_base_kept(const tess_model_tensor *t, tess_codec stored);
/** How weights are kept whose files are gone, by torch_dtype of config.json alone. Local. */
tess_codec tess_base_hinted(const tess_description *d);
/** Callbacks of tess_model_options; `arg`: tess_base_choices. Local. @return TESS_E_CONFIG */
TESS_MUST_CHECK tess_status tess_base_source_of(void *arg, const tess_param *p, tess_codec *out);
TESS_MUST_CHECK tess_status tess_base_codec_of(void *arg, const tess_param *p, bool is_linear,
                                               tess_codec source, tess_codec *out);

TESS_END_DECLS
