/* Any bytes: refused, or a table whose tensors tile the file and can be read. */
#include "format/safetensors.h"
#include "fuzz.h"

static tess_status read_all(const tess_safetensors *file)
{
    int64_t sum = 0;
    char byte = 0;
    for (int64_t i = 0; i < tess_safetensors_numel(file); i++) {
        const tess_st_tensor *t = tess_safetensors_at(file, i);
        fuzz_require(tess_safetensors_find(file, t->name) == t, "a tensor is not found");
        fuzz_require(t->offset_nbytes >= 16 && t->nbytes >= 0 &&
                         t->offset_nbytes + t->nbytes <= tess_safetensors_file_nbytes(file),
                     "a tensor outside the file");
        sum += t->nbytes;
        if (t->nbytes > 0) {
            const tess_status st = tess_safetensors_read(file, t, t->nbytes - 1, 1, &byte);
            fuzz_require(st == TESS_OK, "a tensor cannot be read");
        }
    }
    fuzz_require(sum < tess_safetensors_file_nbytes(file), "tensors overlap");
    for (int64_t i = 0; i < tess_safetensors_metadata_numel(file); i++) {
        const tess_st_pair pair = tess_safetensors_metadata_at(file, i);
        fuzz_require(tess_safetensors_metadata(file, pair.key) == pair.value, "metadata");
    }
    return TESS_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    char path[64];
    tess_safetensors *file = NULL;
    tess_io *io = fuzz_io();
    const size_t before_nbytes = tess_alloc_nbytes();
    const int fd = fuzz_file_open(data, nbytes, path);
    tess_error_clear();
    tess_status st = tess_safetensors_open(io, path, &file);
    if (st == TESS_OK)
        st = read_all(file);
    tess_safetensors_close(&file);
    fuzz_file_close(fd);
    fuzz_verdict(st, before_nbytes);
    return 0;
}
