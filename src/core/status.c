#include "core/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct error_record {
    tess_status status;
    int rank;
    size_t trace_nbytes;
    char message[TESS_ERROR_MESSAGE_NBYTES];
    char trace[TESS_ERROR_TRACE_NBYTES];
} error_record;

static _Thread_local error_record record = {.status = TESS_OK, .rank = -1};

static const struct {
    const char *name;
    const char *text;
    int exit_code;
    bool is_fatal;
} table[TESS_STATUS_NUMEL] = {
#define X(name, fatal, exit_code, text) [TESS_##name] = {#name, text, exit_code, fatal},
    TESS_STATUS_LIST(X)
#undef X
};

static tess_status clamp(tess_status st)
{
    return (unsigned)st < TESS_STATUS_NUMEL ? st : TESS_E_STATE;
}

const char *tess_status_text(tess_status st) { return table[clamp(st)].text; }
const char *tess_status_name(tess_status st) { return table[clamp(st)].name; }
bool tess_status_is_fatal(tess_status st) { return table[clamp(st)].is_fatal; }
int tess_status_exit_code(tess_status st) { return table[clamp(st)].exit_code; }

static void fold_to_one_line(char *text)
{
    for (; *text; text++)
        if (*text == '\n' || *text == '\r')
            *text = ' ';
}

tess_status tess_error_trace(tess_status st, const char *file, int line, const char *call)
{
    const size_t room = sizeof record.trace - record.trace_nbytes;
    const int n =
        snprintf(record.trace + record.trace_nbytes, room, "%s:%d: %s\n", file, line, call);
    if (n > 0)
        record.trace_nbytes += (size_t)n < room ? (size_t)n : room - 1;
    return st;
}

tess_status tess_error_set(tess_status st, const char *file, int line, const char *fmt, ...)
{
    if (record.status != TESS_OK)
        return st;
    va_list args;
    va_start(args, fmt);
    vsnprintf(record.message, sizeof record.message, fmt, args);
    va_end(args);
    fold_to_one_line(record.message);
    record.status = st;
    record.rank = -1;
    record.trace_nbytes = 0;
    return tess_error_trace(st, file, line, "failed here");
}

void tess_error_clear(void)
{
    record.status = TESS_OK;
    record.rank = -1;
    record.trace_nbytes = 0;
    record.message[0] = '\0';
    record.trace[0] = '\0';
}

tess_status tess_error_status(void) { return record.status; }
const char *tess_error_message(void) { return record.message; }
const char *tess_error_trace_text(void) { return record.trace; }
int tess_error_rank(void) { return record.rank; }

void tess_error_adopt(tess_status st, int rank, const char *message)
{
    record.status = st;
    record.rank = rank;
    record.trace_nbytes = 0;
    record.trace[0] = '\0';
    snprintf(record.message, sizeof record.message, "%s", message);
    fold_to_one_line(record.message);
}

#ifdef TESS_CHECKED
void tess_assert_fail(const char *file, int line, const char *expr)
{
    fprintf(stderr, "%s:%d: impossible state: %s\n", file, line, expr);
    abort();
}
#endif
