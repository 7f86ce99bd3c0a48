/*
 * Without arguments: the watchdog's own behaviour, ends with 0. With the name of a fault as first
 * argument: rank 1 has it at step 3 and the job must end as test_watchdog_fault.sh says.
 */
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/memory.h"
#include "dist/comm.h"
#include "dist/watchdog.h"
#include "tests/support/expect.h"

static void nap(double s)
{
    const struct timespec t = {(time_t)s, (long)((s - (double)(time_t)s) * 1e9)};
    nanosleep(&t, NULL);
}

typedef struct seen {
    atomic_int expiries;
    char line[1024];
} seen;

static void on_report(void *arg, const char *line)
{
    seen *s = arg;
    snprintf(s->line, sizeof s->line, "%s", line);
}

static void on_expiry(void *arg) { atomic_fetch_add(&((seen *)arg)->expiries, 1); }

static void test_beats_keep_it_quiet_and_silence_does_not(tess_comm *comm)
{
    seen s = {0};
    FILE *dump = tmpfile();
    EXPECT(dump != NULL);
    if (dump == NULL)
        return;
    const tess_watchdog_options options = {
        .report = on_report, .arg = &s, .dump_fd = fileno(dump), .on_expiry = on_expiry};
    tess_watchdog *w = NULL;
    EXPECT(tess_watchdog_create(comm, &options, &w) == TESS_OK);
    EXPECT(tess_comm_barrier(comm) == TESS_OK);
    tess_alloc_freeze();
    for (int step = 0; step < 20; step++) {
        tess_watchdog_beat(w, "forward", step, 30.0);
        nap(0.002);
    }
    tess_watchdog_beat(w, "no limit", 20, 0.0);
    nap(0.05);
    EXPECT(atomic_load(&s.expiries) == 0);
    tess_watchdog_beat(w, "backward", 21, 0.05);
    tess_alloc_thaw();
    for (int i = 0; i < 6000 && atomic_load(&s.expiries) == 0; i++)
        nap(0.01);
    nap(0.1);
    EXPECT(atomic_load(&s.expiries) == 1); /* once */
    char want[128];
    snprintf(want, sizeof want, "watchdog: rank %d is late: step 21, section 'backward' had 0.1 s",
             tess_comm_rank(comm));
    EXPECT(strncmp(s.line, want, strlen(want)) == 0);
    tess_watchdog_destroy(&w);
    EXPECT(w == NULL);
    tess_watchdog_destroy(&w);
    char line[512];
    bool has_records = false;
    rewind(dump);
    while (fgets(line, sizeof line, dump) != NULL)
        has_records |= strstr(line, "control record") != NULL;
    fclose(dump);
    EXPECT(has_records || tess_comm_world(comm) == 0);
}

static void suffer(const char *fault, tess_comm *comm)
{
    if (strcmp(fault, "stop") == 0)
        raise(SIGSTOP);
    else if (strcmp(fault, "kill") == 0)
        raise(SIGKILL);
    else if (strcmp(fault, "hang") == 0)
        nap(3600.0);
    else if (strcmp(fault, "fail") == 0) {
        (void)TESS_FAIL(TESS_E_IO, "disk of step 3 is gone");
        tess_comm_abort(comm, tess_status_exit_code(TESS_E_IO));
    }
}

static tess_status step(tess_comm *comm)
{
    static unsigned char full[64 * 64];
    tess_wire w = {.op = TESS_COMM_ALL_GATHER, .entry_idx = 2, .wire = TESS_U8};
    w.numel_per_rank = 64;
    snprintf(w.name, sizeof w.name, "blk.2/frozen");
    tess_stream *s = tess_comm_gather_stream(comm);
    TESS_TRY(tess_comm_all_gather(comm, &w,
                                  tess_view_host(full + 64 * tess_comm_rank(comm), 64, TESS_U8),
                                  tess_view_host(full, 64 * tess_comm_world(comm), TESS_U8), s));
    return tess_stream_finish(s);
}

/* A training loop in small. `section_s` is the watchdog's limit for the step of the fault, on the
 * rank that has it: watchdogs of others, which only wait for it, could end the job before it
 * speaks. */
static int run_with_fault(const char *fault, tess_comm *comm, double section_s)
{
    tess_watchdog *w = NULL;
    if (tess_watchdog_create(comm, NULL, &w) != TESS_OK)
        return 1;
    for (int k = 0; k < 10; k++) {
        const bool is_faulty = k == 3 && tess_comm_rank(comm) == 1;
        tess_watchdog_beat(w, "step", k, is_faulty ? section_s : 0.0);
        if (is_faulty)
            suffer(fault, comm);
        const tess_status st = step(comm);
        if (st != TESS_OK) {
            tess_comm_abort(comm, tess_status_exit_code(st));
            return 1;
        }
    }
    tess_watchdog_destroy(&w);
    return 0;
}

static int count_plugin(struct dl_phdr_info *info, size_t nbytes, void *arg)
{
    (void)nbytes;
    *(int *)arg += strstr(info->dlpi_name, "/mca_pmix") != NULL;
    return 0;
}

/* Threads of MPI may call them when it is over. */
static void end_with_plugins_in_place(tess_comm **comm)
{
    int before = 0, after = 0;
    (void)dl_iterate_phdr(count_plugin, &before);
    tess_comm_destroy(comm);
    (void)dl_iterate_phdr(count_plugin, &after);
    EXPECT(after == before);
}

int main(int argc, char **argv)
{
    const char *fault = argc > 1 ? argv[1] : NULL;
    /* stopped rank: its peers' waits must end the job; hanging rank: its own watchdog must */
    const bool is_stop = fault != NULL && strcmp(fault, "stop") == 0;
    const tess_deadlines deadlines = {20.0, is_stop ? 2.0 : 20.0};
    tess_comm *comm = NULL;
    if (tess_comm_create_mpi(&argc, &argv, TESS_COMM_THREAD_OFF, &deadlines, &comm) != TESS_OK) {
        fprintf(stderr, "%s\n", tess_error_message());
        return 1;
    }
    if (fault != NULL)
        failures = run_with_fault(fault, comm, is_stop ? 0.0 : 1.0);
    else
        test_beats_keep_it_quiet_and_silence_does_not(comm);
    end_with_plugins_in_place(&comm);
    return failures > 0;
}
