/** One golden case of the Llama family, ready to run: configuration, batches, weights. */
#pragma once

#include "tests/support/golden.h"
#include "tests/support/run_model.h"

TESS_BEGIN_DECLS

enum { TESS_CASE_BATCH_MAX = 8 };

typedef struct tess_llama_case {
    tess_golden *golden;
    tess_peft_spec *spec; /* of the file's adapter_config.json, NULL where it has none */
    tess_llm_config config;
    tess_run_options options; /* f32 compute, one thread; change before creating a run */
    tess_token_batch batch[TESS_CASE_BATCH_MAX];
    int batch_numel;
} tess_llama_case;

/** Open tests/golden/llama/`name`.golden, or with a folder in its name tests/golden/`name`.golden.
 * Local. */
TESS_MUST_CHECK tess_status tess_llama_case_open(const char *name, tess_llama_case *out);
void tess_llama_case_close(tess_llama_case *c);
/** Create a run of the case and give it the weights of the golden script. Local. */
TESS_MUST_CHECK tess_status tess_llama_case_run(const tess_llama_case *c, tess_run_model **out);
/** The weights of the golden script (tess_run_value). */
void tess_llama_case_value(void *arg, const tess_param *param, float *value);

TESS_END_DECLS
