/** One line per event: `level rank step key=value`. Libraries log through this; launch decides
 * where it goes. */
#pragma once

#include "core/base.h"

TESS_BEGIN_DECLS

typedef enum tess_log_level {
    TESS_LOG_DEBUG,
    TESS_LOG_INFO,
    TESS_LOG_WARN,
    TESS_LOG_ERROR
} tess_log_level;

/** Receives finished lines without newline. */
typedef void (*tess_log_sink)(void *arg, tess_log_level level, const char *line);

/** Where a rank's log lines go. Passed explicitly; a NULL log drops everything. */
typedef struct tess_log {
    tess_log_sink sink;
    void *arg;
    tess_log_level least; /* lines below are dropped */
    int rank;
} tess_log;

/** Write one line whatever the rank. Local. */
void tess_log_write(const tess_log *log, tess_log_level level, const char *fmt, ...)
    TESS_PRINTF(3, 4);
/** Write one line on rank 0 only. Local. */
void tess_log_root(const tess_log *log, tess_log_level level, const char *fmt, ...)
    TESS_PRINTF(3, 4);

TESS_END_DECLS
