/** What every floor above core is handed instead of globals. */
#pragma once

#include "core/io.h"
#include "core/log.h"

TESS_BEGIN_DECLS

typedef struct tess_ctx {
    tess_io *io;
    tess_log log;
} tess_ctx;

TESS_END_DECLS
