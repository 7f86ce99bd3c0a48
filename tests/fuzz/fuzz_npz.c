/* Any bytes as an archive of arrays: refused, or every array can be read as f32. */
#include "format/npz.h"
#include "fuzz.h"

enum { NUMEL_MAX = 1 << 20 };

static tess_status read_all(const tess_npz *npz)
{
    static float x[NUMEL_MAX];
    for (int64_t i = 0; i < tess_npz_numel(npz); i++) {
        tess_npz_array a;
        fuzz_require(tess_npz_find(npz, tess_npz_name(npz, i)) >= 0, "a name that is not found");
        TESS_TRY(tess_npz_read(npz, i, &a));
        if (a.numel <= NUMEL_MAX)
            tess_npz_to_f32(&a, x);
        tess_npz_array_fini(&a);
    }
    return TESS_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    tess_npz *npz = NULL;
    char path[64];
    tess_io *io = fuzz_io();
    const int fd = fuzz_file_open(data, nbytes, path);
    const size_t before_nbytes = tess_alloc_nbytes();
    tess_error_clear();
    tess_status st = tess_npz_open(io, path, &npz);
    if (st == TESS_OK)
        st = read_all(npz);
    tess_npz_close(&npz);
    fuzz_file_close(fd);
    fuzz_verdict(st, before_nbytes);
    return 0;
}
