#include "emulation/emu_world.h"

#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/arith.h"
#include "emulation/emu_device.h"

/* ---- what was found ---- */

void emu_fail(emu_world *w, const char *fmt, ...)
{
    va_list list;
    if (w->is_failed)
        return;
    va_start(list, fmt);
    vsnprintf(w->failure, sizeof w->failure, fmt, list);
    va_end(list);
    w->is_failed = true;
}

void emu_violation(emu_device *d, const char *fmt, ...)
{
    emu_report *r = d->world->report;
    va_list list;
    if (r->violation_numel++ > 0)
        return;
    const int used = snprintf(r->violation, sizeof r->violation, "rank %d: ", d->rank);
    va_start(list, fmt);
    vsnprintf(r->violation + used, sizeof r->violation - (size_t)used, fmt, list);
    va_end(list);
}

/* ---- who comes next ---- */

/* splitmix64 (Steele, Lea, Flood 2014) */
static uint64_t draw(emu_world *w)
{
    uint64_t z = w->random += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

typedef struct choice {
    emu_stream *stream; /* run what is in front of it */
    emu_device *host;   /* or let this rank go on */
} choice;

static int list_operations(emu_world *w, choice *list)
{
    int numel = 0;
    for (int r = 0; r < w->options.rank_numel; r++)
        for (int s = 0; s < w->device[r].stream_numel; s++) {
            emu_stream *stream = w->device[r].stream[s];
            if (stream != NULL && emu_startable(stream) != NULL)
                list[numel++].stream = stream;
        }
    return numel;
}

static int list_hosts(emu_world *w, choice *list)
{
    int numel = 0;
    for (int r = 0; r < w->options.rank_numel; r++) {
        emu_device *d = &w->device[r];
        if (!d->is_finished && (w->is_failed || d->is_ready == NULL || d->is_ready(d->ready_arg)))
            list[numel++].host = d;
    }
    return numel;
}

/* A third of the seeds prefers operations, a third hosts: short queues and long ones. */
static choice choose(emu_world *w)
{
    choice operation[EMU_RANK_MAX * EMU_STREAM_MAX] = {0}, host[EMU_RANK_MAX] = {0};
    const int operation_numel = w->is_failed ? 0 : list_operations(w, operation);
    const int host_numel = list_hosts(w, host);
    const int total = operation_numel + host_numel;
    if (total == 0)
        return (choice){0};
    uint64_t pick = draw(w) % (uint64_t)total;
    const int favour = (int)(w->options.seed % 3);
    if (favour != 0 && operation_numel > 0 && host_numel > 0 && draw(w) % 8 != 0)
        pick = favour == 1 ? draw(w) % (uint64_t)operation_numel
                           : (uint64_t)operation_numel + draw(w) % (uint64_t)host_numel;
    return pick < (uint64_t)operation_numel ? operation[pick]
                                            : host[pick - (uint64_t)operation_numel];
}

static void note_order(emu_world *w, const emu_stream *s)
{
    emu_report *r = w->report;
    const uint64_t what = (uint64_t)s->device->rank << 48 | (uint64_t)s->idx << 40 | s->head->entry;
    r->order_hash = (r->order_hash ^ what) * 0x9e3779b97f4a7c15u;
    r->order_hash ^= r->order_hash >> 29;
    r->operation_numel++;
}

static void describe_rank(const emu_device *d, char *text, size_t nbytes)
{
    size_t used = (size_t)snprintf(text, nbytes, " rank %d %s%s", d->rank,
                                   d->is_finished ? "has returned" : "waits for ",
                                   d->is_finished ? "" : d->waits_for);
    for (int i = 0; i < d->stream_numel && used < nbytes; i++) {
        const emu_stream *s = d->stream[i];
        if (s == NULL || s->head == NULL)
            continue;
        used += (size_t)snprintf(text + used, nbytes - used, ", stream %s is at %s'%s'",
                                 s->base.name, s->head->kind == EMU_OP_WAIT ? "a wait for " : "",
                                 d->entry[s->head->entry - 1].what);
    }
}

static void report_deadlock(emu_world *w)
{
    char text[EMU_TEXT_NBYTES] = "";
    for (int r = 0; r < w->options.rank_numel; r++) {
        const size_t used = strlen(text);
        describe_rank(&w->device[r], text + used, sizeof text - used);
        strncat(text, ";", sizeof text - strlen(text) - 1);
    }
    emu_fail(w, "deadlock:%.900s", text);
}

/* Run operations until it is some rank's turn; NULL: all ranks have returned. */
static emu_device *next_host(emu_world *w)
{
    for (;;) {
        bool is_over = true;
        for (int r = 0; r < w->options.rank_numel; r++)
            is_over = is_over && w->device[r].is_finished;
        if (is_over)
            return NULL;
        const choice c = choose(w);
        if (c.host != NULL)
            return c.host;
        if (c.stream == NULL) {
            report_deadlock(w);
            continue;
        }
        note_order(w, c.stream);
        emu_execute(c.stream);
    }
}

static void pass_baton(emu_device *next, emu_device *self)
{
    if (next == self)
        return;
    sem_post(&next->baton);
    if (self != NULL)
        while (sem_wait(&self->baton) != 0)
            continue;
}

tess_status emu_block(emu_device *d, const char *what, bool (*is_ready)(const void *arg),
                      const void *arg)
{
    emu_world *w = d->world;
    d->is_ready = is_ready;
    d->ready_arg = arg;
    d->waits_for = what;
    if (!w->is_failed)
        pass_baton(next_host(w), d);
    d->is_ready = NULL;
    TESS_CHECK(!w->is_failed, TESS_E_COMM, "%s", w->failure);
    return TESS_OK;
}

tess_status emu_may_yield(emu_device *d)
{
    static const uint64_t one_in[] = {2, 8, 32, 1};
    emu_world *w = d->world;
    if (draw(w) % one_in[w->options.seed / 3 % TESS_NELEM(one_in)] != 0)
        return TESS_OK;
    return emu_block(d, "its turn", NULL, NULL);
}

/* ---- a touch of device memory by the host ---- */

static emu_world *watched;

static void on_fault(int number, siginfo_t *info, void *context)
{
    const char *at = info->si_addr;
    (void)context;
    for (int r = 0; watched != NULL && r < watched->options.rank_numel; r++)
        for (const emu_memory *m = watched->device[r].memory; m != NULL; m = m->next) {
            char line[160];
            if (m->space != TESS_DEVICE || at < m->base || at >= m->base + m->nbytes)
                continue;
            const int used = snprintf(line, sizeof line,
                                      "host code touched device memory: rank %d, allocation %d, "
                                      "byte %zu of %zu\n",
                                      r, m->idx, (size_t)(at - m->base), m->nbytes);
            if (write(2, line, (size_t)used) < 0)
                _exit(EMU_EXIT_TOUCHED + 1);
            _exit(EMU_EXIT_TOUCHED);
        }
    signal(number, SIG_DFL); /* not ours: the instruction faults again */
}

/* ---- ranks ---- */

static tess_status run_body(emu_device *d)
{
    d->self = (emu_rank){.device = &d->base, .rank = d->rank};
    TESS_TRY(emu_comm_create(d, &d->self.comm));
    const tess_status st = d->world->body(d->world->arg, &d->self);
    tess_comm_destroy(&d->self.comm);
    return st;
}

static void *rank_main(void *arg)
{
    emu_device *d = arg;
    while (sem_wait(&d->baton) != 0)
        continue;
    tess_error_clear();
    d->status = run_body(d);
    if (d->status != TESS_OK) {
        snprintf(d->error, sizeof d->error, "rank %d: %.1900s", d->rank, tess_error_message());
        emu_fail(d->world, "rank %d failed: %.900s", d->rank, tess_error_message());
    }
    d->is_finished = true;
    emu_device *next = next_host(d->world);
    if (next != NULL)
        pass_baton(next, NULL);
    return NULL;
}

static void report_status(const emu_world *w, emu_report *out)
{
    for (int pass = 0; pass < 2 && out->status == TESS_OK; pass++)
        for (int r = 0; r < w->options.rank_numel && out->status == TESS_OK; r++) {
            const emu_device *d = &w->device[r];
            /* first who failed by itself, then who was told */
            if (d->status == TESS_OK || (pass == 0 && strstr(d->error, w->failure) != NULL))
                continue;
            out->status = d->status;
            snprintf(out->error, sizeof out->error, "%s", d->error);
        }
}

void emu_run(const emu_options *options, emu_body body, void *arg, emu_report *out)
{
    pthread_t thread[EMU_RANK_MAX];
    struct sigaction fault = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO}, before;
    emu_world *w = calloc(1, sizeof *w);
    memset(out, 0, sizeof *out);
    w->options = *options;
    w->body = body;
    w->arg = arg;
    w->report = out;
    w->random = options->seed * 0x2545f4914f6cdd1du + 1;
    for (int r = 0; r < options->rank_numel; r++)
        emu_device_init(&w->device[r], w, r);
    watched = w;
    sigaction(SIGSEGV, &fault, &before);
    for (int r = 0; r < options->rank_numel; r++)
        if (pthread_create(&thread[r], NULL, rank_main, &w->device[r]) != 0)
            abort();
    pass_baton(next_host(w), NULL);
    for (int r = 0; r < options->rank_numel; r++)
        pthread_join(thread[r], NULL);
    sigaction(SIGSEGV, &before, NULL);
    report_status(w, out);
    for (int r = 0; r < options->rank_numel; r++)
        emu_device_fini(&w->device[r]);
    watched = NULL;
    emu_groups_destroy(w);
    free(w);
}

static emu_device *device_of(const emu_rank *rank) { return (emu_device *)(void *)rank->device; }

void emu_ignore_event(const emu_rank *rank, const tess_event *ev) { device_of(rank)->ignored = ev; }

int64_t emu_ignored_numel(const emu_rank *rank) { return device_of(rank)->ignored_numel; }

int emu_allocation_numel(const emu_rank *rank) { return device_of(rank)->memory_numel; }
