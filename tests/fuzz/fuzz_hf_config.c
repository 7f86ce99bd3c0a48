/* Any bytes: refused, or a config that passes its own check and has finite frequencies. */
#include <math.h>

#include "format/hf_config.h"
#include "fuzz.h"

static tess_status use(const tess_llm_config *c)
{
    float inv[TESS_LLM_HEAD_DIM_MAX / 2];
    fuzz_require(tess_llm_config_check(c) == TESS_OK, "an accepted config fails its check");
    tess_rope_inv_freq(c, inv);
    for (int64_t i = 0; i < c->head_dim / 2; i++)
        fuzz_require(!isnan(inv[i]), "a frequency is no number");
    for (int64_t i = 0; i < c->layer_numel; i++)
        fuzz_require(tess_llm_window(c, i) >= 0, "a negative window");
    return TESS_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    static tess_llm_config config;
    tess_json *root = NULL;
    const size_t before_nbytes = tess_alloc_nbytes();
    tess_error_clear();
    tess_status st = tess_json_parse("config.json", (const char *)data, nbytes, &root);
    if (st == TESS_OK)
        st = tess_hf_config_parse(root, &config);
    if (st == TESS_OK)
        st = use(&config);
    tess_json_destroy(&root);
    fuzz_verdict(st, before_nbytes);
    return 0;
}
