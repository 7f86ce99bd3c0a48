#include "dist/watchdog.h"

#include <errno.h>
#include <execinfo.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/memory.h"
#include "dist/comm_priv.h"

struct tess_watchdog {
    tess_comm *comm;
    tess_watchdog_options options;
    pthread_t thread;
    pthread_t watched;  /* the thread that created it */
    pthread_t listener; /* waits for the signal, where there is one */
    bool has_listener;
    atomic_bool is_deaf; /* the next signal ends the listener */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool is_stopping;
    bool has_expired;
    double begun_s;
    double deadline_s; /* of the section, 0 none */
    int64_t step;
    char label[64];
};

static struct timespec at_s(double s)
{
    const struct timespec t = {(time_t)s, (long)((s - (double)(time_t)s) * 1e9)};
    return t;
}

static void say(tess_watchdog *w, const char *fmt, ...) TESS_PRINTF(2, 3);
static void say(tess_watchdog *w, const char *fmt, ...)
{
    char line[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    if (w->options.report != NULL)
        w->options.report(w->options.arg, line);
    else
        tess_fd_line(STDERR_FILENO, "%s", line);
}

/* MPI_Abort may hang as everything else does: this thread ends the process all the same. */
static void *killer_main(void *arg)
{
    const double *grace_s = arg;
    const struct timespec nap = at_s(*grace_s);
    nanosleep(&nap, NULL);
    _exit(TESS_WATCHDOG_EXIT_CODE);
}

static void print_stack(int signal_number)
{
    const int error = errno;
    void *frame[48];
    (void)signal_number;
    backtrace_symbols_fd(frame, backtrace(frame, TESS_NELEM(frame)), STDERR_FILENO);
    errno = error;
}

/* Where the watched thread stands. It works inside MPI calls too, and the thread goes on where it
 * was. */
static void show_stack(tess_watchdog *w, const char *what)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = print_stack;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGURG, &action, NULL) != 0)
        return;
    tess_fd_line(STDERR_FILENO, "rank %d: stack of the %s thread:", tess_comm_launch_rank(w->comm),
                 what);
    if (pthread_kill(w->watched, SIGURG) != 0)
        return;
    const struct timespec nap = {0, 200000000};
    nanosleep(&nap, NULL);
}

static void end_job(tess_watchdog *w)
{
    pthread_t killer;
    if (pthread_create(&killer, NULL, killer_main, &w->options.grace_s) != 0)
        (void)alarm((unsigned)w->options.grace_s + 1);
    show_stack(w, "late");
    tess_comm_abort(w->comm, TESS_WATCHDOG_EXIT_CODE);
    _exit(TESS_WATCHDOG_EXIT_CODE);
}

static void expire(tess_watchdog *w, double late_s)
{
    say(w,
        "watchdog: rank %d is late: step %" PRId64 ", section '%s' had %.1f s and has taken "
        "%.1f s; the job ends with exit code %d",
        tess_comm_launch_rank(w->comm), w->step, w->label, w->deadline_s, late_s,
        TESS_WATCHDOG_EXIT_CODE);
    if (w->options.dump_fd >= 0) {
        tess_comm_describe(w->comm, w->options.dump_fd);
        tess_comm_dump(w->comm, w->options.dump_fd);
    }
    if (w->options.on_expiry != NULL)
        w->options.on_expiry(w->options.arg);
    else
        end_job(w);
}

static void *watchdog_main(void *arg)
{
    tess_watchdog *w = arg;
    pthread_mutex_lock(&w->lock);
    while (!w->is_stopping) {
        if (w->deadline_s <= 0.0 || w->has_expired) {
            pthread_cond_wait(&w->changed, &w->lock);
            continue;
        }
        const double end_s = w->begun_s + w->deadline_s;
        const double late_s = tess_clock_s();
        if (late_s < end_s) {
            const struct timespec until = at_s(end_s);
            pthread_cond_timedwait(&w->changed, &w->lock, &until);
            continue;
        }
        w->has_expired = true; /* once per section */
        expire(w, late_s - w->begun_s);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* A thread of its own: the watchdog may be asleep until a deadline, and the main thread in a call
 * that never returns. */
static void *listener_main(void *arg)
{
    tess_watchdog *w = arg;
    sigset_t asked;
    int number = 0;
    sigemptyset(&asked);
    sigaddset(&asked, w->options.dump_signal);
    while (sigwait(&asked, &number) == 0 && !atomic_load(&w->is_deaf)) {
        const int fd = w->options.dump_fd >= 0 ? w->options.dump_fd : STDERR_FILENO;
        show_stack(w,
                   "main"); /* first: a dump holds the engine, and the thread would wait for it */
        tess_comm_describe(w->comm, fd);
        tess_comm_dump(w->comm, fd);
    }
    return NULL;
}

static void stop_listener(tess_watchdog *w)
{
    if (!w->has_listener)
        return;
    atomic_store(&w->is_deaf, true);
    (void)pthread_kill(w->listener, w->options.dump_signal);
    pthread_join(w->listener, NULL);
    w->has_listener = false;
}

static int start(tess_watchdog *w)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, &attr);
    pthread_condattr_destroy(&attr);
    sigset_t all;
    sigset_t before;
    sigfillset(&all); /* signals are for the main thread */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = 0;
    if (w->options.dump_signal != 0)
        rc = pthread_create(&w->listener, NULL, listener_main, w);
    w->has_listener = rc == 0 && w->options.dump_signal != 0;
    if (rc == 0)
        rc = pthread_create(&w->thread, NULL, watchdog_main, w);
    if (rc != 0)
        stop_listener(w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc;
}

static void watchdog_free(tess_watchdog *w)
{
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    tess_free(w);
}

tess_status tess_watchdog_create(tess_comm *comm, const tess_watchdog_options *options,
                                 tess_watchdog **out)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_watchdog), &memory));
    tess_watchdog *w = memory;
    w->comm = comm;
    w->watched = pthread_self();
    void *frame[1];
    (void)backtrace(frame, 1); /* the first call loads a library, which a handler should not */
    w->options.dump_fd = STDERR_FILENO;
    if (options != NULL)
        w->options = *options;
    if (!(w->options.grace_s > 0.0))
        w->options.grace_s = 10.0;
    const int rc = start(w);
    if (rc != 0) {
        watchdog_free(w);
        return TESS_FAIL(TESS_E_MEMORY, "cannot start the watchdog thread: %s", strerror(rc));
    }
    *out = w;
    return TESS_OK;
}

void tess_watchdog_beat(tess_watchdog *w, const char *label, int64_t step, double deadline_s)
{
    pthread_mutex_lock(&w->lock);
    w->begun_s = tess_clock_s();
    w->deadline_s = deadline_s;
    w->step = step;
    w->has_expired = false;
    snprintf(w->label, sizeof w->label, "%s", label);
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

void tess_watchdog_destroy(tess_watchdog **watchdog)
{
    tess_watchdog *w = *watchdog;
    if (w == NULL)
        return;
    pthread_mutex_lock(&w->lock);
    w->is_stopping = true;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->thread, NULL);
    stop_listener(w);
    watchdog_free(w);
    *watchdog = NULL;
}
