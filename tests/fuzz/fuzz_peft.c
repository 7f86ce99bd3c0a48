/* Any bytes as adapter_config.json: refused, or a spec that decides for any module path. */
#include "format/peft.h"
#include "fuzz.h"

static tess_status use(const tess_peft_spec *spec)
{
    static const char *const path[] = {"model.layers.0.self_attn.q_proj", "lm_head", "a.b.12.c.d",
                                       "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!"};
    for (int i = 0; i < TESS_NELEM(path); i++) {
        const tess_peft_module module = {.path = path[i], .is_output_embedding = i == 1};
        tess_peft_match m = {.is_target = false};
        TESS_TRY(tess_peft_spec_match(spec, &module, &m)); /* a match limit is a legal refusal */
        fuzz_require(!m.is_target || (m.rank >= 1 && m.scale > 0.0), "a target without rank");
    }
    return TESS_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    tess_json *root = NULL;
    tess_peft_spec *spec = NULL;
    const char *base_name = NULL;
    const size_t before_nbytes = tess_alloc_nbytes();
    tess_error_clear();
    tess_status st = tess_json_parse("adapter_config.json", (const char *)data, nbytes, &root);
    if (st == TESS_OK)
        st = tess_peft_config_parse(root, &spec, &base_name);
    if (st == TESS_OK)
        st = use(spec);
    tess_peft_spec_destroy(&spec);
    tess_json_destroy(&root);
    fuzz_verdict(st, before_nbytes);
    return 0;
}
