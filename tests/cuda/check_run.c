/*
 * What scripts ask of runs that have ended: exit code 0 for yes, 1 for no with the reason.
 *
 *   check_run device                   a device, its architecture and the libraries behind it; 77:
 *                                      none, and why
 *   check_run losses BOUND WANT GOT    the curves of two folders of runs (run_curve.h)
 *   check_run number BOUND WANT GOT    two numbers, by the same bounds
 *   check_run trace FILE... [--beside] every trace: lanes, order, nothing lost, something computed;
 *                                      of all together: copies of snapshots while kernels run
 */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "tests/support/cuda_door.h"
#include "tests/support/run_curve.h"
#include "tests/support/trace_check.h"

static tess_status show_device(void)
{
    tess_cuda_door door = {0};
    tess_cuda_info info;
    cuda_door_open_or_skip(&door);
    TESS_TRY(door.plugin->device_info(0, &info));
    printf("%s; %s; %s\n", info.name, door.kernels->path(), door.plugin->versions);
    door.plugin->device_close(&door.device);
    return TESS_OK;
}

static tess_status check_losses(tess_io *io, char **arg)
{
    const run_bound *bound = NULL;
    run_curve want, got;
    TESS_TRY(run_bound_find(arg[0], &bound));
    TESS_TRY(run_curve_read(io, arg[1], &want));
    TESS_TRY(run_curve_read(io, arg[2], &got));
    TESS_TRY(run_curve_compare(bound, &want, &got));
    printf("%s: at most %.3g of bound %s\n", arg[2], run_curve_share(bound, &want, &got),
           bound->name);
    return TESS_OK;
}

static tess_status check_number(char **arg)
{
    const run_bound *bound = NULL;
    char *end[2];
    const double want = strtod(arg[1], &end[0]), got = strtod(arg[2], &end[1]);
    TESS_CHECK(end[0] != arg[1] && *end[0] == '\0' && end[1] != arg[2] && *end[1] == '\0',
               TESS_E_ARG, "'%s' and '%s': expected two numbers", arg[1], arg[2]);
    TESS_TRY(run_bound_find(arg[0], &bound));
    return run_bound_check(bound, "number", want, got);
}

/* ---- traces ---- */

enum { SPAN_MAX = 1 << 16 };

typedef struct span {
    double start_us, end_us;
} span;

/* Of one file; events come lane by lane in order, not in the order of all lanes. */
typedef struct tally {
    span compute[SPAN_MAX], copy[SPAN_MAX];
    int compute_numel, copy_numel;
    double busy_us[TESS_TRACE_LANE_NUMEL];
} tally;

static tess_status add_event(void *arg, const trace_event *e)
{
    tally *t = arg;
    const span s = {e->start_us, e->end_us};
    const bool is_wait = strncmp(e->name, "wait ", 5) == 0;
    TESS_CHECK(t->compute_numel < SPAN_MAX && t->copy_numel < SPAN_MAX, TESS_E_FIT,
               "more than %d events of a lane", SPAN_MAX);
    if (!is_wait)
        t->busy_us[e->lane] += e->end_us - e->start_us;
    if (e->lane == TESS_TRACE_COPY)
        t->copy[t->copy_numel++] = s;
    else if (e->lane == TESS_TRACE_COMPUTE && !is_wait)
        t->compute[t->compute_numel++] = s;
    return TESS_OK;
}

/* Time that copies and kernels have in common. */
static double beside_us(const tally *t)
{
    double sum_us = 0;
    for (int i = 0; i < t->copy_numel; i++)
        for (int k = 0; k < t->compute_numel; k++) {
            const double common_us = fmin(t->copy[i].end_us, t->compute[k].end_us) -
                                     fmax(t->copy[i].start_us, t->compute[k].start_us);
            sum_us += fmax(common_us, 0.0);
        }
    return sum_us;
}

static void print_tally(const char *path, const tally *t)
{
    printf("%s:", path);
    for (int lane = 0; lane < TESS_TRACE_LANE_NUMEL; lane++)
        printf(" %s %.1f us,", tess_trace_lane_name((tess_trace_lane)lane), t->busy_us[lane]);
    printf(" copies beside compute %.1f us\n", beside_us(t));
}

/* Timed events have a resolution of half a microsecond, and a float of milliseconds holds what is
 * within a second to 0.06 us: two ends of an event each, so 1.2 us. The times of a step count from
 * a mark of its own, whose place on the host's clock is known to 50 us (docs/gpu-pending.md). */
static tess_status check_trace(tess_io *io, const char *path, double *sum_us)
{
    static tally t;
    tess_json *root = NULL;
    memset(&t, 0, sizeof t);
    TESS_TRY(tess_json_read(io, path, &root));
    const trace_reader reader = {.slack = {1.2, 50.0}, .on_event = add_event, .arg = &t};
    const tess_status st = trace_check(root, &reader);
    tess_json_destroy(&root);
    TESS_TRY(st);
    TESS_CHECK(t.busy_us[TESS_TRACE_COMPUTE] > 0.0, TESS_E_STATE, "'%s': nothing was computed",
               path);
    print_tally(path, &t);
    *sum_us += beside_us(&t);
    return TESS_OK;
}

static tess_status check_traces(tess_io *io, int numel, char **path)
{
    const bool wants_beside = numel > 0 && strcmp(path[numel - 1], "--beside") == 0;
    double sum_us = 0;
    numel -= wants_beside;
    TESS_CHECK(numel > 0, TESS_E_ARG, "no trace is named");
    for (int i = 0; i < numel; i++)
        TESS_TRY(check_trace(io, path[i], &sum_us));
    TESS_CHECK(!wants_beside || sum_us > 0.0, TESS_E_STATE,
               "no snapshot was copied while kernels ran");
    return TESS_OK;
}

static tess_status run(tess_io *io, int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (strcmp(what, "device") == 0 && argc == 2)
        return show_device();
    if (strcmp(what, "losses") == 0 && argc == 5)
        return check_losses(io, argv + 2);
    if (strcmp(what, "number") == 0 && argc == 5)
        return check_number(argv + 2);
    if (strcmp(what, "trace") == 0)
        return check_traces(io, argc - 2, argv + 2);
    return TESS_FAIL(TESS_E_ARG, "usage: check_run device | losses BOUND WANT GOT | "
                                 "number BOUND WANT GOT | trace FILE... [--beside]");
}

int main(int argc, char **argv)
{
    tess_io *io = NULL;
    tess_status st = tess_io_create(0, &io);
    if (st == TESS_OK)
        st = run(io, argc, argv);
    if (st != TESS_OK)
        fprintf(stderr, "%s\n", tess_error_message());
    tess_io_destroy(&io);
    return st == TESS_OK ? 0 : 1;
}
