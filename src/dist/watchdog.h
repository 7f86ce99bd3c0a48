/**
 * A thread per rank that ends the job when this rank does not reach its next mark in time.
 *
 * Waits for other ranks have deadlines of their own; the watchdog covers everything else: compute,
 * files, and calls into MPI that do not return.
 */
#pragma once

#include <stdint.h>

#include "core/status.h"
#include "dist/comm.h"

TESS_BEGIN_DECLS

enum { TESS_WATCHDOG_EXIT_CODE = 86 };

typedef struct tess_watchdog tess_watchdog;

typedef struct tess_watchdog_options {
    /** Receives each line of the report; called from the watchdog's thread. NULL: stderr. */
    void (*report)(void *arg, const char *line);
    void *arg;
    /** Receives the dump of the collective records; negative: none. Borrowed. */
    int dump_fd;
    /** Seconds between asking MPI to end the job and ending this process (0: 10). */
    double grace_s;
    /** A signal that makes this rank show its collective records and the stack of the thread that
     * created the watchdog, and go on; 0: none. Every thread of the process has it blocked. */
    int dump_signal;
    /** Called instead of ending the job; NULL: end it with exit code 86. For tests. */
    void (*on_expiry)(void *arg);
} tess_watchdog_options;

/** Starts idle: nothing is late before the first beat. `comm` is borrowed and outlives it. Local.
 */
TESS_MUST_CHECK tess_status tess_watchdog_create(tess_comm *comm,
                                                 const tess_watchdog_options *options,
                                                 tess_watchdog **out);
/**
 * Section `label` of step `step` begins now and ends, at the latest in `deadline_s` seconds, with
 * the next beat. A `deadline_s` of 0 or less means no limit. The label is copied. Allocates
 * nothing. Local.
 */
void tess_watchdog_beat(tess_watchdog *watchdog, const char *label, int64_t step,
                        double deadline_s);
/** Stops the thread; NULL is fine. Local. */
void tess_watchdog_destroy(tess_watchdog **watchdog);

TESS_END_DECLS
