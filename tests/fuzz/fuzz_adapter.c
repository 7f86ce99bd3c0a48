/* Any bytes as an adapter in one file: refused, or modules whose parts are read whole; and what is
 * written of it in another dialect opens again with the same modules. */
#include <math.h>

#include "format/adapter.h"
#include "fuzz.h"

static int64_t numel_of(const tess_adapter_module *m, tess_adapter_part part)
{
    return part == TESS_ADAPTER_A   ? m->rank * m->in_numel
           : part == TESS_ADAPTER_B ? m->out_numel * m->rank
                                    : m->out_numel;
}

static void read_all(const tess_adapter *a)
{
    for (int64_t i = 0; i < tess_adapter_numel(a); i++) {
        const tess_adapter_module *m = tess_adapter_at(a, i);
        fuzz_require(tess_adapter_find(a, m->path) == i, "a module is not found");
        fuzz_require(m->rank > 0 && m->in_numel > 0 && m->out_numel > 0, "an empty module");
        fuzz_require(isfinite(m->alpha) && m->alpha > 0.0, "alpha is not positive");
        for (int part = TESS_ADAPTER_A; part < TESS_ADAPTER_PART_NUMEL; part++) {
            void *value = NULL;
            if (part == TESS_ADAPTER_MAGNITUDE && !m->has_magnitude)
                continue;
            fuzz_require(tess_alloc_array(numel_of(m, (tess_adapter_part)part), sizeof(float),
                                          &value) == TESS_OK,
                         "no memory");
            const tess_status st = tess_adapter_read(a, i, (tess_adapter_part)part, value);
            fuzz_require(st == TESS_OK || st == TESS_E_CONFIG, "a part is not read");
            tess_error_clear();
            tess_free(value);
        }
    }
}

static void write_as(const tess_adapter *a, tess_adapter_dialect dialect, const char *name)
{
    char path[512];
    const tess_adapter_target to = {.dialect = dialect, .dt = TESS_F32};
    tess_adapter *again = NULL;
    const tess_status st = tess_adapter_write(fuzz_io(), a, &to, fuzz_folder);
    if (st == TESS_OK) {
        snprintf(path, sizeof path, "%s/%s", fuzz_folder, name);
        fuzz_require(tess_adapter_open(fuzz_io(), path, NULL, &again) == TESS_OK,
                     "what was written does not open");
        for (int64_t i = 0; i < tess_adapter_numel(a); i++)
            fuzz_require(tess_adapter_find(again, tess_adapter_at(a, i)->path) >= 0,
                         "a module is lost");
        tess_adapter_close(&again);
        unlink(path);
    }
    /* Values that are not finite; parts that do not fit; nothing of FLUX.1; DoRA of some parts. */
    fuzz_require(st == TESS_OK || st == TESS_E_RANGE || st == TESS_E_FORMAT ||
                     st == TESS_E_UNSUPPORTED,
                 "unexpected status of a writer");
    tess_error_clear();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    (void)fuzz_io();
    char path[512];
    const size_t before_nbytes = tess_alloc_nbytes();
    const bool is_gguf = nbytes >= 4 && memcmp(data, "GGUF", 4) == 0;
    const char *name = is_gguf ? "input.gguf" : "input.safetensors";
    const tess_adapter_options options = {.skip_text_encoders = nbytes % 2 == 0};
    tess_adapter *a = NULL;
    fuzz_put(name, data, nbytes);
    snprintf(path, sizeof path, "%s/%s", fuzz_folder, name);
    tess_error_clear();
    const tess_status st = tess_adapter_open(fuzz_io(), path, &options, &a);
    if (st == TESS_OK) {
        read_all(a);
        write_as(a, TESS_ADAPTER_DIFFUSERS, "pytorch_lora_weights.safetensors");
        write_as(a, TESS_ADAPTER_KOHYA, "kohya.safetensors");
        write_as(a, TESS_ADAPTER_COMFYUI, "comfyui.safetensors");
        tess_adapter_close(&a);
    }
    fuzz_verdict(st, before_nbytes);
    return 0;
}
