/* Any bytes as model.safetensors.index.json beside two fixed weight files: refused, or every listed
 * tensor can be read. */
#include <string.h>

#include "format/model_dir.h"
#include "fuzz.h"

/* The minimal file of two bf16 values, its tensor named by one letter. */
static void put_weights(const char *name, char letter)
{
    char bytes[69] = "8\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"BF16\",\"shape\":[2],"
                     "\"data_offsets\":[0,4]}} \200?\0\300";
    bytes[10] = letter;
    fuzz_put(name, bytes, 68);
}

static tess_status read_all(const tess_model_dir *dir)
{
    for (int64_t i = 0; i < tess_model_dir_tensor_numel(dir); i++) {
        const tess_model_tensor *t = tess_model_dir_at(dir, i);
        char value[4];
        fuzz_require(tess_model_dir_find(dir, t->name) == t, "a tensor is not found");
        fuzz_require(tess_model_dir_read(dir, t, 0, 4, value) == TESS_OK, "a tensor is not read");
        fuzz_require(memcmp(value, "\200?\0\300", 4) == 0, "other bytes");
    }
    return TESS_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    tess_model_dir *dir = NULL;
    const tess_ctx ctx = {.io = fuzz_io()};
    if (fuzz_folder[0] == '\0') {
        put_weights("x.safetensors", 'a');
        put_weights("y.safetensors", 'b');
    }
    const size_t before_nbytes = tess_alloc_nbytes();
    fuzz_put("model.safetensors.index.json", data, nbytes);
    tess_error_clear();
    tess_status st = tess_model_dir_open(&ctx, fuzz_folder, &dir);
    if (st == TESS_OK)
        st = read_all(dir);
    tess_model_dir_close(&dir);
    /* A name that no file has is an I/O refusal. */
    if (st == TESS_E_IO)
        fuzz_require(strstr(tess_error_message(), "No such file") != NULL ||
                         strstr(tess_error_message(), "name too long") != NULL,
                     "an I/O error");
    fuzz_verdict(st == TESS_E_IO ? TESS_OK : st, before_nbytes);
    return 0;
}
