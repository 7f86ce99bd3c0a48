/*
 * k-means jobs on emulated devices: blocks go up on a stream of their own while kernels work on the
 * one before. Any legal order gives the host's bits, replicated and by rows, nothing is touched
 * that is not ordered, and each wait for a block, taken away, shows.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "emulation/emu_world.h"
#include "support/vector_run.h"
#include "train/vectors/kmeans_priv.h"
#include "train/vectors/vectors_session.h"

/* Four blocks, the last one ragged. */
enum { N = 3 * 1024 + 100, D = 6, SEED_NUMEL = 2 };

#define SMALL "quantizer.dim=6", "output.checkpoint_every=0"

/* Beams of one: with more, nobody says how many rows of vectors code_residual() reads. */
static const vector_launch launches[] = {
    {.name = "levels",
     .override = {SMALL, "quantizer.codes=7", "quantizer.levels=2", "quantizer.refine=1",
                  "quantizer.init=sample", "quantizer.beam=1"}},
    {.name = "groups",
     .override = {SMALL, "quantizer.codes=270", "quantizer.groups=2", "quantizer.refine=0",
                  "quantizer.beam=1"}},
    {.name = "batch",
     .override = {SMALL, "quantizer.batch=2000", "quantizer.init=random", "quantizer.refine=0",
                  "quantizer.beam=1"}},
};

typedef struct job {
    const vector_launch *launch;
    char name[64]; /* of the run's folder */
    bool is_broken;
    int block_idx; /* whose waits are taken away then */
} job;

static vector_run files; /* every rank of every run reads them */

/* `rank` NULL: the host. */
static tess_status run_on(const job *j, const emu_rank *rank, tess_comm *comm)
{
    vector_run v = files;
    vector_launch l = *j->launch;
    tess_session *s = NULL;
    tess_io *io = NULL;
    TESS_TRY(tess_io_create(tess_comm_rank(comm), &io));
    v.ctx.io = io;
    l.name = j->name;
    l.device = rank != NULL ? rank->device : NULL;
    l.kernels = rank != NULL ? &emu_kernels : &tess_kernels_cpu;
    tess_status st = vector_run_open(comm, &v, &l, false, &s);
    if (st == TESS_OK && rank != NULL && j->is_broken)
        emu_ignore_event(rank, &s->vectors->job->block[j->block_idx].up);
    if (st == TESS_OK)
        st = tess_session_train(s);
    if (rank != NULL)
        emu_ignore_event(rank, NULL);
    tess_session_close(&s);
    tess_io_destroy(&io);
    return st;
}

static tess_status body(void *arg, const emu_rank *rank) { return run_on(arg, rank, rank->comm); }

/* A folder for every run: none goes on with another's. */
static void name_run(job *j, const char *what)
{
    static int numel;
    snprintf(j->name, sizeof j->name, "%s-%s-%d", j->launch->name, what, numel++);
}

static tess_sha256 outcome_of(const job *j)
{
    tess_sha256 out;
    if (vector_run_outcome(&files, j->name, &out) != TESS_OK)
        fail_msg("%s: %s", j->name, tess_error_message());
    return out;
}

static tess_sha256 on_host(const vector_launch *l)
{
    job j = {.launch = l};
    tess_comm *self = NULL;
    name_run(&j, "host");
    assert_int_equal(tess_comm_create_self(&self), TESS_OK);
    if (run_on(&j, NULL, self) != TESS_OK)
        fail_msg("%s: %s", j.name, tess_error_message());
    tess_comm_destroy(&self);
    return outcome_of(&j);
}

static void test_bits(void **state)
{
    (void)state;
    for (int i = 0; i < TESS_NELEM(launches); i++) {
        const tess_sha256 want = on_host(&launches[i]);
        for (int rank_numel = 1; rank_numel <= 3; rank_numel++)
            for (int seed = 0; seed < SEED_NUMEL; seed++) {
                job j = {.launch = &launches[i]};
                emu_report report;
                const emu_options o = {.rank_numel = rank_numel,
                                       .seed = (uint64_t)(seed + 2 * i + rank_numel),
                                       .is_serial = seed % 2 == 1};
                name_run(&j, "device");
                emu_run(&o, body, &j, &report);
                if (report.status != TESS_OK || report.violation_numel != 0)
                    fail_msg("%s, %d ranks: %s %s", j.name, rank_numel, report.error,
                             report.violation);
                const tess_sha256 got = outcome_of(&j);
                if (!tess_sha256_is_equal(&want, &got))
                    fail_msg("%s, %d ranks, seed %d: other bits than the host's", j.name,
                             rank_numel, (int)o.seed);
            }
    }
}

/* Kernels before their block is there. */
static void test_missing_waits(void **state)
{
    (void)state;
    for (int rank_numel = 1; rank_numel <= 2; rank_numel++)
        for (int block_idx = 0; block_idx < 2; block_idx++)
            for (int i = 0; i < TESS_NELEM(launches); i++) {
                job j = {.launch = &launches[i], .is_broken = true, .block_idx = block_idx};
                emu_report report;
                const emu_options o = {.rank_numel = rank_numel, .seed = 3};
                name_run(&j, "broken");
                emu_run(&o, body, &j, &report);
                if (report.violation_numel == 0 ||
                    strstr(report.violation, "(stream blocks") == NULL)
                    fail_msg("%s, %d ranks, block %d: found '%s'", j.name, rank_numel, block_idx,
                             report.violation);
            }
}

static int make_files(void **state)
{
    tess_comm *self = NULL;
    (void)state;
    if (tess_comm_create_self(&self) != TESS_OK ||
        vector_run_create(self, N, D, VECTORS_CLUSTERS, &files) != TESS_OK)
        return 1;
    tess_comm_destroy(&self);
    return 0;
}

static int remove_files(void **state)
{
    tess_comm *self = NULL;
    (void)state;
    if (tess_comm_create_self(&self) != TESS_OK)
        return 1;
    vector_run_destroy(self, &files);
    tess_comm_destroy(&self);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bits),
        cmocka_unit_test(test_missing_waits),
    };
    return cmocka_run_group_tests(tests, make_files, remove_files);
}
