/* Any bytes: refused, or a table whose tensors lie apart inside the file and can be read. */
#include "format/gguf_llm.h"
#include "fuzz.h"

static void check_tensor(const tess_gguf *file, int64_t idx)
{
    char hf_name[TESS_GGUF_HF_NAME_NBYTES], name[TESS_GGUF_NAME_NBYTES];
    const tess_gguf_tensor *t = tess_gguf_at(file, idx);
    char byte = 0;
    fuzz_require(tess_gguf_find(file, t->name) == t, "a tensor is not found");
    fuzz_require(t->nbytes > 0 && t->offset_nbytes >= 24 &&
                     t->offset_nbytes + t->nbytes <= tess_gguf_file_nbytes(file),
                 "a tensor outside the file");
    fuzz_require(tess_gguf_read(file, t, t->nbytes - 1, 1, &byte) == TESS_OK,
                 "a tensor cannot be read");
    if (tess_gguf_hf_name(t->name, hf_name))
        fuzz_require(tess_gguf_name_of(hf_name, name) && strcmp(name, t->name) == 0,
                     "a name does not come back");
}

static tess_status read_all(const tess_gguf *file)
{
    tess_llm_config config;
    int64_t sum = 0;
    for (int64_t i = 0; i < tess_gguf_tensor_numel(file); i++) {
        check_tensor(file, i);
        sum += tess_gguf_at(file, i)->nbytes;
    }
    fuzz_require(sum < tess_gguf_file_nbytes(file), "tensors overlap");
    for (int64_t i = 0; i < tess_gguf_pair_numel(file); i++) {
        const tess_gguf_pair *p = tess_gguf_pair_at(file, i);
        fuzz_require(tess_gguf_value_of(file, p->key) == &p->value, "a key is not found");
    }
    return tess_gguf_llm_config(file, &config);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    char path[64];
    tess_gguf *file = NULL;
    tess_io *io = fuzz_io();
    const size_t before_nbytes = tess_alloc_nbytes();
    const int fd = fuzz_file_open(data, nbytes, path);
    tess_error_clear();
    tess_status st = tess_gguf_open(io, path, &file);
    if (st == TESS_OK)
        st = read_all(file);
    tess_gguf_close(&file);
    fuzz_file_close(fd);
    fuzz_verdict(st, before_nbytes);
    return 0;
}
