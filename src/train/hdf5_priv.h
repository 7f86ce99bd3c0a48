/** What the HDF5 modules of this folder share: errors in the library's own words. */
#pragma once

#include "core/status.h"

TESS_BEGIN_DECLS

/** Silence the library and leave nothing to exit handlers. Local; any number of times.
 * @return TESS_E_IO */
TESS_MUST_CHECK tess_status tess_h5_start(void);
/** Record what the library says about a failed call. Local. @return `code` */
tess_status tess_h5_fail(tess_status code, const char *path, const char *call, const char *file,
                         int line);

/* Set `st` and leave for `done` when a call of the library fails. */
#define TESS_H5(st, done, code, path, call)                                                        \
    do {                                                                                           \
        if ((call) < 0) {                                                                          \
            (st) = tess_h5_fail((code), (path), #call, __FILE__, __LINE__);                        \
            goto done;                                                                             \
        }                                                                                          \
    } while (0)

TESS_END_DECLS
