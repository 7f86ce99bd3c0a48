/**
 * Status codes, the thread-local error record and the macros that fill it.
 *
 * Anything that can fail returns `tess_status`; results go through out-parameters that stay
 * untouched on failure. The first failure writes code, place and message; callers add trace lines
 * while they unwind.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "core/base.h"

TESS_BEGIN_DECLS

/* X(name, fatal, exit code of the program, text). Exit codes: docs/errors.md. */
#define TESS_STATUS_LIST(X)                                                                        \
    X(OK, false, 0, "success")                                                                     \
    X(E_ARG, false, 64, "invalid argument")                                                        \
    X(E_CONFIG, false, 65, "run file or option refused")                                           \
    X(E_FORMAT, false, 65, "input file refused")                                                   \
    X(E_DTYPE, false, 65, "dtype does not match the contract")                                     \
    X(E_CONTRACT, false, 65, "ranks disagree about the plan")                                      \
    X(E_RANGE, false, 65, "value out of range")                                                    \
    X(E_UNSUPPORTED, false, 65, "not supported")                                                   \
    X(E_FIT, false, 65, "does not fit the memory limit")                                           \
    X(E_NOT_FOUND, false, 66, "no valid checkpoint")                                               \
    X(E_STATE, false, 70, "wrong object state")                                                    \
    X(E_MEMORY, false, 71, "out of memory")                                                        \
    X(E_IO, false, 74, "input or output failed")                                                   \
    X(E_PREEMPTED, false, 75, "stopped on request after a save")                                   \
    X(E_NUMERIC, false, 76, "numbers that cannot be right stopped the run")                        \
    X(E_COMM, true, 86, "communicator failed")                                                     \
    X(E_TIMEOUT, true, 86, "deadline passed")

typedef enum tess_status {
#define X(name, fatal, exit_code, text) TESS_##name,
    TESS_STATUS_LIST(X)
#undef X
        TESS_STATUS_NUMEL
} tess_status;

enum { TESS_ERROR_MESSAGE_NBYTES = 2048, TESS_ERROR_TRACE_NBYTES = 2048 };

/** Short English text of a status, never NULL. Local. */
const char *tess_status_text(tess_status st);
/** Name of a status without prefix ("E_IO"). Local. */
const char *tess_status_name(tess_status st);
/** Whether communicators or streams are lost: only destroy is legal afterwards. Local. */
bool tess_status_is_fatal(tess_status st);
/** Exit code of the program for this status. Local. */
int tess_status_exit_code(tess_status st);

/** Record a failure of this thread and return `st`. The first record wins until tess_error_clear().
 * Local. */
tess_status tess_error_set(tess_status st, const char *file, int line, const char *fmt, ...)
    TESS_PRINTF(4, 5);
/** Add one "file:line call" line to this thread's trace; returns `st`. Local. */
tess_status tess_error_trace(tess_status st, const char *file, int line, const char *call);
/** Forget this thread's record. Local. */
void tess_error_clear(void);
/** Status of this thread's record, TESS_OK when there is none. Local. */
tess_status tess_error_status(void);
/** Message of this thread's record: one line, never NULL. Local. */
const char *tess_error_message(void);
/** Trace of this thread's record: "file:line: what" lines, innermost first. Local. */
const char *tess_error_trace_text(void);
/** Rank whose failure the record describes, -1 while it is this rank's own. Local. */
int tess_error_rank(void);
/** Replace the record, as an agreement does when another rank failed first. Local. */
void tess_error_adopt(tess_status st, int rank, const char *message);

/** Fail with `code` and a message unless `cond` holds. */
#define TESS_CHECK(cond, code, ...)                                                                \
    do {                                                                                           \
        if (TESS_UNLIKELY(!(cond)))                                                                \
            return tess_error_set((code), __FILE__, __LINE__, __VA_ARGS__);                        \
    } while (0)

/** Fail with `code` and a message. */
#define TESS_FAIL(code, ...) tess_error_set((code), __FILE__, __LINE__, __VA_ARGS__)

/** Return the status of `call` when it is not TESS_OK, adding a trace line. */
#define TESS_TRY(call)                                                                             \
    do {                                                                                           \
        const tess_status tess_try_st_ = (call);                                                   \
        if (TESS_UNLIKELY(tess_try_st_ != TESS_OK))                                                \
            return tess_error_trace(tess_try_st_, __FILE__, __LINE__, #call);                      \
    } while (0)

/** As TESS_TRY, but stores the status in `st` and jumps to `label`. */
#define TESS_TRY_GOTO(st, label, call)                                                             \
    do {                                                                                           \
        (st) = (call);                                                                             \
        if (TESS_UNLIKELY((st) != TESS_OK)) {                                                      \
            (void)tess_error_trace((st), __FILE__, __LINE__, #call);                               \
            goto label;                                                                            \
        }                                                                                          \
    } while (0)

/** Report an impossible state of our own and stop the process; compiled out of release builds. */
#ifdef TESS_CHECKED
void tess_assert_fail(const char *file, int line, const char *expr);
#define TESS_ASSERT(expr) ((expr) ? (void)0 : tess_assert_fail(__FILE__, __LINE__, #expr))
#else
#define TESS_ASSERT(expr) ((void)sizeof((expr) ? 1 : 0))
#endif

TESS_END_DECLS
