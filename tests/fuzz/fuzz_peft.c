/* Any bytes as adapter_config.json: refused, or a spec that decides for any module path. What
 * follows the first NUL byte (JSON has none) is adapter_model.safetensors of the same directory. */
#include <string.h>

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

static tess_status try_config(const uint8_t *data, size_t nbytes)
{
    tess_json *root = NULL;
    tess_peft_spec *spec = NULL;
    const char *base_name = NULL;
    tess_status st = tess_json_parse("adapter_config.json", (const char *)data, nbytes, &root);
    if (st == TESS_OK)
        st = tess_peft_config_parse(root, &spec, &base_name);
    if (st == TESS_OK)
        st = use(spec);
    tess_peft_spec_destroy(&spec);
    tess_json_destroy(&root);
    return st;
}

static tess_status try_directory(const uint8_t *data, size_t config_nbytes, size_t nbytes)
{
    tess_peft_dir *dir = NULL;
    char last = 0;
    fuzz_put("adapter_config.json", data, config_nbytes);
    fuzz_put("adapter_model.safetensors", data + config_nbytes + 1, nbytes - config_nbytes - 1);
    TESS_TRY(tess_peft_dir_open(fuzz_io(), fuzz_folder, &dir));
    for (int64_t i = 0; i < tess_peft_dir_adapter_numel(dir); i++) {
        const tess_peft_adapter *a = tess_peft_dir_adapter_at(dir, i);
        fuzz_require(tess_peft_dir_find(dir, a->path) == a, "an adapter is not found");
    }
    for (int64_t i = 0; i < tess_peft_dir_tensor_numel(dir); i++) {
        const char *name = NULL;
        const tess_st_tensor *t = tess_peft_dir_tensor_at(dir, i, &name);
        fuzz_require(tess_peft_dir_tensor(dir, name) == t, "a tensor is not found");
        fuzz_require(tess_peft_dir_read(dir, t, t->nbytes - 1, 1, &last) == TESS_OK,
                     "the end of a tensor is not read");
        fuzz_require(tess_peft_dir_read(dir, t, t->nbytes, 1, &last) == TESS_E_RANGE,
                     "more than the tensor is read");
        tess_error_clear();
    }
    tess_peft_dir_close(&dir);
    return TESS_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    (void)fuzz_io();
    const size_t before_nbytes = tess_alloc_nbytes();
    const uint8_t *nul = nbytes > 0 ? memchr(data, '\0', nbytes) : NULL;
    tess_error_clear();
    const tess_status st =
        nul == NULL ? try_config(data, nbytes) : try_directory(data, (size_t)(nul - data), nbytes);
    fuzz_verdict(st, before_nbytes);
    return 0;
}
