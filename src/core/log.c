#include "core/log.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

static void emit(const tess_log *log, tess_log_level level, const char *fmt, va_list args)
{
    char line[2048];
    vsnprintf(line, sizeof line, fmt, args);
    log->sink(log->arg, level, line);
}

void tess_log_write(const tess_log *log, tess_log_level level, const char *fmt, ...)
{
    if (log == NULL || log->sink == NULL || level < log->least)
        return;
    va_list args;
    va_start(args, fmt);
    emit(log, level, fmt, args);
    va_end(args);
}

void tess_log_root(const tess_log *log, tess_log_level level, const char *fmt, ...)
{
    if (log == NULL || log->sink == NULL || log->rank != 0 || level < log->least)
        return;
    va_list args;
    va_start(args, fmt);
    emit(log, level, fmt, args);
    va_end(args);
}
