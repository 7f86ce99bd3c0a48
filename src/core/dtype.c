#include "core/dtype.h"

#include <inttypes.h>
#include <string.h>

static const struct {
    const char *name;
    int64_t block_numel;
    size_t block_nbytes;
} table[TESS_DTYPE_NUMEL] = {
#define X(name, text, block_numel, block_nbytes, reducible)                                        \
    [TESS_##name] = {text, block_numel, block_nbytes},
    TESS_DTYPE_LIST(X)
#undef X
};

const char *tess_dtype_name(tess_dtype dt)
{
    return (unsigned)dt < TESS_DTYPE_NUMEL ? table[dt].name : "unknown";
}

tess_status tess_dtype_parse(const char *name, tess_dtype *dt)
{
    for (int i = 0; i < TESS_DTYPE_NUMEL; i++) {
        if (strcmp(table[i].name, name) == 0) {
            *dt = (tess_dtype)i;
            return TESS_OK;
        }
    }
    return TESS_FAIL(TESS_E_ARG, "unknown dtype '%s'", name);
}

size_t tess_dtype_block_nbytes(tess_dtype dt)
{
    return (unsigned)dt < TESS_DTYPE_NUMEL ? table[dt].block_nbytes : 0;
}

tess_status tess_nbytes(tess_dtype dt, int64_t numel, size_t *nbytes)
{
    TESS_CHECK((unsigned)dt < TESS_DTYPE_NUMEL, TESS_E_ARG, "dtype number %d is not in the table",
               (int)dt);
    const int64_t block_numel = table[dt].block_numel;
    size_t product = 0;
    TESS_CHECK(numel >= 0 && numel % block_numel == 0, TESS_E_RANGE,
               "%" PRId64 " elements are not whole blocks of %s (%" PRId64 " elements each)", numel,
               table[dt].name, block_numel);
    TESS_CHECK(
        !__builtin_mul_overflow((size_t)(numel / block_numel), table[dt].block_nbytes, &product),
        TESS_E_RANGE, "byte count of %" PRId64 " %s elements overflows", numel, table[dt].name);
    *nbytes = product;
    return TESS_OK;
}
