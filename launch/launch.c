#include "launch/launch.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int tess_launch_rank(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK",
                                        "SLURM_PROCID"};
    for (int i = 0; i < TESS_NELEM(names); i++) {
        const char *text = getenv(names[i]);
        if (text != NULL && *text >= '0' && *text <= '9')
            return (int)strtol(text, NULL, 10);
    }
    return 0;
}

/* mpirun pins one or two ranks to one core each, which leaves a rank's own threads on that core. */
static void use_all_cpus(void)
{
    if (getenv("OMPI_COMM_WORLD_RANK") == NULL ||
        getenv("OMPI_MCA_hwloc_base_binding_policy") != NULL)
        return;
    cpu_set_t all;
    memset(&all, 0xff, sizeof all);
    (void)sched_setaffinity(0, sizeof all, &all); /* the kernel keeps what the job may use */
}

void tess_launch_prepare_mpi(void)
{
    static const char *const defaults[][2] = {
        {"OMPI_MCA_mpi_yield_when_idle", "1"}, /* a spinning rank starves the one it waits for */
        {"OMPI_MCA_btl_vader_single_copy_mechanism", "none"}, /* the other needs ptrace rights */
    };
    for (int i = 0; i < TESS_NELEM(defaults); i++)
        (void)setenv(defaults[i][0], defaults[i][1], 0);
    use_all_cpus();
}

static void log_to_stderr(void *arg, tess_log_level level, const char *line)
{
    static const char *const names[] = {"debug", "info", "warn", "error"};
    (void)arg;
    fprintf(stderr, "%s %s\n", names[level], line);
}

/* The line may hold a progress bar: what is said takes its place. */
static void log_to_terminal(void *arg, tess_log_level level, const char *line)
{
    fputs("\r\x1b[K", stderr);
    log_to_stderr(arg, level, line);
}

tess_status tess_launch_open(const tess_common_options *common, int rank, tess_ctx *ctx)
{
    tess_io *io = NULL;
    TESS_TRY(tess_io_create(rank, &io));
    *ctx = (tess_ctx){.io = io,
                      .log = {.sink = isatty(STDERR_FILENO) != 0 ? log_to_terminal : log_to_stderr,
                              .least = common->is_verbose ? TESS_LOG_DEBUG : TESS_LOG_INFO,
                              .rank = rank}};
    return TESS_OK;
}

void tess_launch_close(tess_ctx *ctx) { tess_io_destroy(&ctx->io); }

tess_status tess_launch_print(const char *text)
{
    const bool is_written = fputs(text, stdout) >= 0 && fflush(stdout) == 0;
    TESS_CHECK(is_written, TESS_E_IO, "stdout: cannot write results: %s", strerror(errno));
    return TESS_OK;
}

tess_status tess_launch_sink(void *arg, const char *text, size_t nbytes)
{
    (void)arg;
    TESS_CHECK(fwrite(text, 1, nbytes, stdout) == nbytes, TESS_E_IO,
               "stdout: cannot write results");
    return TESS_OK;
}

/* After an agreement every rank holds the same record, and rank 0 speaks for all. What was not
 * agreed, a lost communicator or a failure that leaves peers waiting, is said by whoever saw it. */
static bool is_speaker(tess_status st, bool is_alone)
{
    const bool is_own = tess_error_rank() < 0;
    return tess_launch_rank() == 0 || ((tess_status_is_fatal(st) || is_alone) && is_own);
}

/* mpirun ends the whole job at the first exit that is not 0: the others leave rank 0 the time to
 * speak. A rank that is not ended with it waits in vain, but not for long. */
static void let_speaker_speak(void)
{
    const struct timespec pause = {.tv_sec = 2};
    if (tess_launch_rank() > 0)
        (void)nanosleep(&pause, NULL);
}

static bool is_said; /* this process has reported its failure */

void tess_launch_report(const tess_common_options *common, tess_status st, bool is_alone)
{
    if (st == TESS_OK || is_said)
        return;
    is_said = true;
    if (!is_speaker(st, is_alone))
        return;
    const char *message =
        tess_error_status() == TESS_OK ? tess_status_text(st) : tess_error_message();
    const int rank = tess_error_rank() >= 0 ? tess_error_rank() : tess_launch_rank();
    if (tess_error_rank() >= 0 || rank > 0)
        fprintf(stderr, "tessera: error: rank %d: %s\n", rank, message);
    else
        fprintf(stderr, "tessera: error: %s\n", message);
    if (common->is_verbose)
        fputs(tess_error_trace_text(), stderr);
}

int tess_launch_finish(const tess_common_options *common, tess_status st)
{
    if (st == TESS_OK && fflush(stdout) != 0)
        st = TESS_FAIL(TESS_E_IO, "stdout: cannot write results: %s", strerror(errno));
    if (st != TESS_OK && !is_said) {
        tess_launch_report(common, st, false);
        let_speaker_speak();
    }
    return tess_status_exit_code(st);
}
