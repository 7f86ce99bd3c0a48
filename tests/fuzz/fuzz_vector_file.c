/* Any bytes as a file of vectors: refused, or every vector can be read. The first byte chooses the
 * suffix. */
#include "format/vector_file.h"
#include "fuzz.h"

static tess_status read_all(tess_vector_file *file, size_t nbytes)
{
    static float x[1 << 20];
    const tess_vector_layout *l = tess_vector_file_get_layout(file);
    fuzz_require(l->vector_numel >= 1 && l->dim >= 1, "no vectors");
    fuzz_require((size_t)(l->vector_numel * l->dim) <= nbytes, "more elements than bytes");
    if (l->vector_numel * l->dim > TESS_NELEM(x))
        return TESS_OK;
    TESS_TRY(tess_vector_file_read(file, 0, l->vector_numel, x));
    return tess_vector_file_read(file, l->vector_numel - 1, 1, x);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    static const char *const names[] = {"x.fvecs", "x.bvecs", "x.ivecs", "x.fbin",
                                        "x.u8bin", "x.i8bin", "x.ibin",  "x.npy"};
    char path[512];
    tess_vector_file *file = NULL;
    tess_io *io = fuzz_io();
    if (nbytes < 1)
        return 0;
    const char *name = names[data[0] % TESS_NELEM(names)];
    fuzz_put(name, data + 1, nbytes - 1);
    snprintf(path, sizeof path, "%s/%s", fuzz_folder, name);
    const size_t before_nbytes = tess_alloc_nbytes();
    tess_error_clear();
    tess_status st = tess_vector_file_open(io, path, &file);
    if (st == TESS_OK)
        st = read_all(file, nbytes);
    tess_vector_file_close(&file);
    fuzz_verdict(st, before_nbytes);
    return 0;
}
