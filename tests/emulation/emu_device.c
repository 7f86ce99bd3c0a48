/*
 * Memory, streams and operations of one emulated device.
 *
 * [Note: two addresses] Device memory is mapped twice over: at its address, where any access of the
 * host faults, and at an alias where operations find the bytes. Addresses are moved from one to the
 * other by the same list of operands that the checker reads.
 */
#include "emulation/emu_device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "core/arith.h"

enum { PAGE_NBYTES = 4096, CANARY = 0xc5, POISON = 0xff };

static emu_device *device_of(tess_device *d) { return (emu_device *)(void *)d; }

/* ---- memory ---- */

static void *map(size_t nbytes, int protection)
{
    void *p = mmap(NULL, nbytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p != MAP_FAILED ? p : NULL;
}

/* Bytes with one page of canaries in front and behind. */
static size_t walled_nbytes(size_t nbytes)
{
    return (size_t)tess_round_up((int64_t)nbytes, PAGE_NBYTES) + 2 * PAGE_NBYTES;
}

static tess_status alloc_memory(tess_device *base, tess_space space, size_t nbytes, void **out)
{
    emu_device *d = device_of(base);
    const size_t whole = walled_nbytes(nbytes);
    char *alias = map(whole, PROT_READ | PROT_WRITE);
    char *known = space == TESS_DEVICE ? map(whole, PROT_NONE) : alias;
    emu_memory *m = calloc(1, sizeof *m);
    TESS_CHECK(alias != NULL && known != NULL && m != NULL, TESS_E_MEMORY, "no %zu bytes", nbytes);
    memset(alias, CANARY, whole);
    memset(alias + PAGE_NBYTES, POISON, nbytes);
    *m = (emu_memory){.base = known + PAGE_NBYTES,
                      .alias = alias + PAGE_NBYTES,
                      .nbytes = nbytes,
                      .idx = d->memory_numel++,
                      .space = space,
                      .next = d->memory};
    if (space == TESS_DEVICE)
        emu_memory_init(m);
    d->memory = m;
    *out = m->base;
    return TESS_OK;
}

static bool is_canary(const char *p, size_t nbytes)
{
    for (size_t i = 0; i < nbytes; i++)
        if ((unsigned char)p[i] != CANARY)
            return false;
    return true;
}

static void unmap(emu_device *d, emu_memory *m)
{
    const size_t whole = walled_nbytes(m->nbytes), slack = whole - 2 * PAGE_NBYTES - m->nbytes;
    if (!is_canary(m->alias - PAGE_NBYTES, PAGE_NBYTES) ||
        !is_canary(m->alias + m->nbytes, slack + PAGE_NBYTES))
        emu_violation(d, "bytes in front of or behind allocation %d of %zu bytes were written",
                      m->idx, m->nbytes);
    munmap(m->alias - PAGE_NBYTES, whole);
    if (m->base != m->alias)
        munmap(m->base - PAGE_NBYTES, whole);
    free(m->segment);
    free(m->before);
    free(m->after);
    free(m->access);
    free(m);
}

static void release_memory(tess_device *base, tess_space space, void *memory, size_t nbytes)
{
    emu_device *d = device_of(base);
    (void)space;
    (void)nbytes;
    for (emu_memory **at = &d->memory; *at != NULL; at = &(*at)->next) {
        emu_memory *m = *at;
        if (m->base != memory)
            continue;
        if (!d->world->is_failed)
            emu_check_release(d, m);
        *at = m->next;
        unmap(d, m);
        return;
    }
    emu_violation(d, "release of %p, which was never allocated", memory);
}

char *emu_alias(const emu_device *d, const void *data, size_t nbytes)
{
    const char *p = data;
    for (const emu_memory *m = d->memory; m != NULL; m = m->next)
        if (m->space == TESS_DEVICE && p >= m->base && p < m->base + m->nbytes &&
            nbytes <= (size_t)(m->base + m->nbytes - p))
            return m->alias + (p - m->base);
    return NULL;
}

const char *emu_source(const emu_device *d, tess_view v)
{
    return v.space == TESS_HOST ? v.data : emu_alias(d, v.data, tess_view_nbytes(v));
}

void emu_deliver(emu_device *d, uint32_t entry, tess_view dst, const char *bytes)
{
    const size_t nbytes = tess_view_nbytes(dst);
    if (dst.space != TESS_HOST) {
        memmove(emu_alias(d, dst.data, nbytes), bytes, nbytes);
        return;
    }
    for (const emu_host_range *r = d->writes; r != NULL; r = r->next) {
        const char *at = dst.data;
        if (r->entry != entry || at < r->data || at + nbytes > r->data + r->nbytes)
            continue;
        memcpy(r->bytes + (at - r->data), bytes, nbytes);
        return;
    }
    emu_violation(d, "'%s' writes host memory that it did not announce", d->entry[entry - 1].what);
}

/* ---- operations ---- */

static uint32_t add_entry(emu_stream *s, const char *what)
{
    emu_device *d = s->device;
    if (d->entry_numel == d->entry_room) {
        d->entry_room = d->entry_room * 2 + 1024;
        d->entry = realloc(d->entry, d->entry_room * sizeof *d->entry);
    }
    emu_clock_join(&s->clock, &d->host);
    s->clock.seq[s->idx] = ++s->seq;
    emu_entry *e = &d->entry[d->entry_numel++];
    *e = (emu_entry){.stream_idx = s->idx, .seq = s->seq, .clock = s->clock};
    snprintf(e->what, sizeof e->what, "%s", what);
    return d->entry_numel;
}

tess_status emu_begin(emu_stream *s, emu_op_kind kind, const char *what, emu_op **out)
{
    emu_world *w = s->device->world;
    TESS_CHECK(!w->is_failed, TESS_E_COMM, "%s", w->failure);
    emu_check_host_reads(s->device);
    emu_op *op = calloc(1, sizeof *op);
    op->kind = kind;
    op->entry = kind == EMU_OP_WAIT ? 0 : add_entry(s, what);
    *out = op;
    return TESS_OK;
}

static void free_op(emu_op *op)
{
    free(op->call);
    if (op->collective != NULL)
        emu_collective_destroy(op->collective);
    free(op);
}

static bool is_mark(const emu_op *op)
{
    return op->kind == EMU_OP_RECORD || op->kind == EMU_OP_WAIT;
}

void emu_retire(emu_stream *s)
{
    emu_op *op = s->head;
    if (op->kind != EMU_OP_WAIT)
        s->device->entry[op->entry - 1].is_done = true;
    s->head = op->next;
    if (s->head == NULL)
        s->tail = NULL;
    free_op(op);
}

/* Marks in front of streams are passed as soon as they can be: they are no work. */
static void settle(emu_device *d)
{
    for (bool is_moving = true; is_moving;) {
        is_moving = false;
        for (int i = 0; i < d->stream_numel; i++) {
            emu_stream *s = d->stream[i];
            while (s != NULL && s->head != NULL && is_mark(s->head) &&
                   (s->head->kind == EMU_OP_RECORD || d->entry[s->head->entry - 1].is_done)) {
                emu_retire(s);
                is_moving = true;
            }
        }
    }
}

tess_status emu_enqueue(emu_stream *s, emu_op *op)
{
    const bool is_work = !is_mark(op); /* a mark may be gone once the device has settled */
    if (s->tail != NULL)
        s->tail->next = op;
    else
        s->head = op;
    s->tail = op;
    settle(s->device);
    return is_work ? emu_may_yield(s->device) : TESS_OK;
}

emu_op *emu_startable(emu_stream *s)
{
    emu_device *d = s->device;
    if (s->head == NULL || is_mark(s->head))
        return NULL;
    if (s->head->kind != EMU_OP_COLLECTIVE)
        return s->head;
    const bool is_turn = !d->world->options.is_serial || s->head->issue == d->issued_done_numel;
    return is_turn && emu_collective_is_met(s->head->collective) ? s->head : NULL;
}

/* ---- running ---- */

static tess_status call_twin(const emu_kernel_call *call, tess_stream *s)
{
    switch (call->kernel) {
#define X(name, type)                                                                              \
    case EMU_KERNEL_##name:                                                                        \
        return tess_kernels_cpu.name(&call->args.name, s);
        EMU_KERNEL_LIST(X)
        EMU_CODE_LIST(X)
#undef X
#define X(name, type)                                                                              \
    case EMU_KERNEL_##name:                                                                        \
        return tess_kernels_cpu.modulated->name(&call->args.name, s);
        EMU_MODULATED_LIST(X)
#undef X
#define X(name, type)                                                                              \
    case EMU_KERNEL_quantizer_##name:                                                              \
        return tess_kernels_cpu.quantizers->name(&call->args.quantizer_##name, s);
        EMU_QUANTIZER_LIST(X)
#undef X
    case EMU_KERNEL_NUMEL:
        break;
    }
    return TESS_FAIL(TESS_E_STATE, "no such kernel");
}

static void move_operand(void *arg, const emu_operand *o)
{
    const emu_device *d = arg;
    const char *last = emu_operand_row(o, o->group_numel * o->row_numel - 1);
    const size_t nbytes = (size_t)(last - (const char *)*o->pointer_at) + o->row_nbytes;
    *o->pointer_at = emu_alias(d, *o->pointer_at, nbytes);
}

tess_status emu_run_twin(const emu_device *d, const emu_kernel_call *call)
{
    emu_kernel_call moved = *call;
    tess_stream host;
    emu_own(&moved);
    tess_stream_init_inline(&host, "emulated", NULL);
    emu_visit(
        &moved,
        &(emu_visitor){.operand = move_operand, .arg = (void *)(uintptr_t)d, .makes_host = true});
    return call_twin(&moved, &host);
}

static void run_kernel(emu_device *d, emu_op *op)
{
    const bool is_audited = d->world->options.is_audited;
    d->world->report->has_run[op->call->kernel] = true;
    if ((is_audited ? emu_audit(d, op) : emu_run_twin(d, op->call)) == TESS_OK)
        return;
    emu_fail(d->world, "'%s' of rank %d: %s", d->entry[op->entry - 1].what, d->rank,
             tess_error_message());
    tess_error_clear(); /* of whichever rank's thread ran it */
}

static void run_copy_rows(const emu_device *d, const tess_rows_copy *c)
{
    const size_t nbytes = (size_t)c->row_nbytes;
    for (int64_t i = 0; i < c->row_numel; i++)
        memcpy(emu_alias(d, (char *)c->dst + i * c->dst_stride_nbytes, nbytes),
               emu_alias(d, (const char *)c->src + i * c->src_stride_nbytes, nbytes), nbytes);
}

void emu_execute(emu_stream *s)
{
    emu_device *d = s->device;
    emu_op *op = s->head;
    const bool is_collective = op->kind == EMU_OP_COLLECTIVE;
    switch (op->kind) {
    case EMU_OP_KERNEL:
        run_kernel(d, op);
        break;
    case EMU_OP_COPY:
        emu_deliver(d, op->entry, op->dst, emu_source(d, op->src));
        break;
    case EMU_OP_COPY_ROWS:
        run_copy_rows(d, &op->rows);
        break;
    case EMU_OP_ZERO:
        memset(emu_alias(d, op->dst.data, tess_view_nbytes(op->dst)), 0, tess_view_nbytes(op->dst));
        break;
    case EMU_OP_COLLECTIVE:
        emu_collective_run(op->collective); /* retires it on all ranks */
        break;
    case EMU_OP_RECORD:
    case EMU_OP_WAIT:
        break;
    }
    if (!is_collective)
        emu_retire(s);
    for (int i = 0; i < d->world->options.rank_numel; i++)
        settle(&d->world->device[i]);
}

/* ---- streams ---- */

static const tess_stream_ops stream_ops;

static emu_stream *ours(tess_stream *s) { return (emu_stream *)(void *)s; }

static const emu_stream *recorded_on(const tess_event *ev)
{
    return ev->stream != NULL && ev->stream->ops == &stream_ops ? ours(ev->stream) : NULL;
}

static tess_status stream_record(tess_stream *base, tess_event *ev)
{
    emu_op *op = NULL;
    TESS_TRY(emu_begin(ours(base), EMU_OP_RECORD, "event", &op));
    ev->stream = base;
    ev->mark = op->entry;
    return emu_enqueue(ours(base), op);
}

static bool is_ignored(emu_device *d, const tess_event *ev)
{
    if (ev != d->ignored)
        return false;
    d->ignored_numel++;
    return true;
}

static tess_status stream_wait(tess_stream *base, const tess_event *ev)
{
    emu_stream *s = ours(base);
    const emu_stream *from = recorded_on(ev);
    emu_op *op = NULL;
    if (from == NULL || is_ignored(s->device, ev))
        return from == NULL ? tess_event_finish(ev) : TESS_OK;
    TESS_CHECK(from->device == s->device, TESS_E_ARG, "stream '%s' waits for another device",
               base->name);
    TESS_TRY(emu_begin(s, EMU_OP_WAIT, "wait", &op));
    op->entry = (uint32_t)ev->mark;
    emu_clock_join(&s->clock, &s->device->entry[ev->mark - 1].clock);
    TESS_TRY(emu_enqueue(s, op));
    const emu_lane *lane = &s->device->lane;
    const bool is_shared = lane->compute == s && from != s && from != lane->stream &&
                           !s->device->world->options.is_lane_apart;
    return is_shared ? stream_wait(&lane->stream->base, ev) : TESS_OK;
}

typedef struct awaited {
    const emu_device *d;
    uint64_t mark;
} awaited;

static bool is_reached_now(const void *arg)
{
    const awaited *a = arg;
    return a->d->entry[a->mark - 1].is_done;
}

static tess_status stream_finish(tess_stream *base, const tess_event *ev)
{
    emu_device *d = ours(base)->device;
    const awaited a = {d, ev->mark};
    if (is_ignored(d, ev))
        return TESS_OK;
    TESS_TRY(emu_block(d, base->name, is_reached_now, &a));
    emu_host_joins(d, &d->entry[ev->mark - 1].clock, true);
    return TESS_OK;
}

static tess_status stream_query(tess_stream *base, const tess_event *ev, bool *is_reached)
{
    emu_device *d = ours(base)->device;
    TESS_TRY(emu_block(d, "query", NULL, NULL));
    *is_reached = d->entry[ev->mark - 1].is_done;
    if (*is_reached)
        emu_host_joins(d, &d->entry[ev->mark - 1].clock, false);
    return TESS_OK;
}

static const tess_stream_ops stream_ops = {
    .record = stream_record, .wait = stream_wait, .finish = stream_finish, .query = stream_query};

tess_status emu_stream_of(const char *what, tess_stream *s, emu_stream **out)
{
    TESS_CHECK(s != NULL && s->ops == &stream_ops, TESS_E_ARG,
               "%s: stream '%s' is not the emulated device's", what, s != NULL ? s->name : "NULL");
    *out = ours(s);
    return TESS_OK;
}

tess_status emu_stream_create(emu_device *d, const char *name, emu_stream **out)
{
    TESS_CHECK(d->stream_numel < EMU_STREAM_MAX, TESS_E_RANGE, "%s: more than %d streams", d->name,
               EMU_STREAM_MAX);
    emu_stream *s = calloc(1, sizeof *s);
    s->idx = d->stream_numel++;
    snprintf(d->stream_name[s->idx], sizeof d->stream_name[0], "%s", name);
    s->base = (tess_stream){.ops = &stream_ops, .name = d->stream_name[s->idx]};
    s->device = d;
    d->stream[s->idx] = s;
    *out = s;
    return TESS_OK;
}

void emu_stream_destroy(emu_stream *s)
{
    emu_device *d = s->device;
    if (!d->world->is_failed && d->host.seq[s->idx] < s->seq) {
        const emu_entry *last = NULL;
        for (uint32_t i = 0; i < d->entry_numel; i++)
            if (d->entry[i].stream_idx == s->idx && strcmp(d->entry[i].what, "event") != 0)
                last = &d->entry[i];
        if (last != NULL && d->host.seq[s->idx] < last->seq)
            emu_violation(d, "stream %s is destroyed, and the host has not waited for '%s' on it",
                          s->base.name, last->what);
    }
    while (s->head != NULL)
        emu_retire(s);
    d->stream[s->idx] = NULL;
    free(s);
}

/* ---- the device ---- */

static tess_status create_stream(tess_device *d, const char *name, bool is_urgent,
                                 tess_stream **out)
{
    emu_stream *s = NULL;
    (void)is_urgent; /* any legal order must do */
    TESS_TRY(emu_stream_create(device_of(d), name, &s));
    *out = &s->base;
    const bool has_lane = device_of(d)->world->options.is_ahead && strcmp(name, "compute") == 0;
    return has_lane ? emu_lane_open(s) : TESS_OK;
}

static void destroy_stream(tess_device *d, tess_stream *s)
{
    (void)d;
    emu_lane_close(ours(s));
    emu_stream_destroy(ours(s));
}

static tess_status enqueue_copy(tess_device *base, tess_view dst, tess_view src, tess_stream *to)
{
    emu_stream *s = NULL;
    emu_op *op = NULL;
    char what[EMU_WHAT_NBYTES];
    (void)base;
    snprintf(what, sizeof what, "copy of %zu bytes %s to %s", tess_view_nbytes(src),
             src.space == TESS_HOST ? "host" : "device",
             dst.space == TESS_HOST ? "host" : "device");
    TESS_TRY(emu_stream_of("copy", to, &s));
    TESS_TRY(emu_begin(s, EMU_OP_COPY, what, &op));
    op->src = src;
    op->dst = dst;
    emu_touch_view(s->device, op->entry, src, EMU_READ);
    emu_touch_view(s->device, op->entry, dst, EMU_WRITE);
    return emu_enqueue(s, op);
}

static tess_status enqueue_copy_rows(tess_device *base, const tess_rows_copy *c, tess_stream *to)
{
    emu_stream *s = NULL;
    emu_op *op = NULL;
    (void)base;
    TESS_TRY(emu_stream_of("copy of rows", to, &s));
    TESS_TRY(emu_begin(s, EMU_OP_COPY_ROWS, "copy of rows", &op));
    op->rows = *c;
    emu_touch_rows(s->device, op->entry, c);
    return emu_enqueue(s, op);
}

static tess_status enqueue_zero(tess_device *base, tess_view dst, tess_stream *to)
{
    emu_stream *s = NULL;
    emu_op *op = NULL;
    (void)base;
    TESS_CHECK(dst.space == TESS_DEVICE, TESS_E_ARG, "zero of host memory");
    TESS_TRY(emu_stream_of("zero", to, &s));
    TESS_TRY(emu_begin(s, EMU_OP_ZERO, "zero", &op));
    op->dst = dst;
    emu_touch_view(s->device, op->entry, dst, EMU_WRITE);
    return emu_enqueue(s, op);
}

static tess_status free_memory(tess_device *d, size_t *free_nbytes, size_t *total_nbytes)
{
    (void)d;
    *free_nbytes = *total_nbytes = (size_t)1 << 34;
    return TESS_OK;
}

static const tess_device_ops device_ops = {
    .alloc = alloc_memory,
    .release = release_memory,
    .stream_create = create_stream,
    .stream_destroy = destroy_stream,
    .copy = enqueue_copy,
    .copy_rows = enqueue_copy_rows,
    .zero = enqueue_zero,
    .memory = free_memory,
};

void emu_device_init(emu_device *d, emu_world *w, int rank)
{
    snprintf(d->name, sizeof d->name, "emulated:%d", rank);
    d->base = (tess_device){.ops = &device_ops, .name = d->name, .space = TESS_DEVICE};
    d->world = w;
    d->rank = rank;
    sem_init(&d->baton, 0, 0);
}

static void free_ranges(emu_host_range *r)
{
    while (r != NULL) {
        emu_host_range *next = r->next;
        free(r->bytes);
        free(r);
        r = next;
    }
}

void emu_device_fini(emu_device *d)
{
    for (int i = 0; i < d->stream_numel; i++)
        if (d->stream[i] != NULL)
            emu_stream_destroy(d->stream[i]);
    while (d->memory != NULL) {
        emu_memory *m = d->memory;
        if (d->status == TESS_OK)
            emu_violation(d, "allocation %d of %zu bytes was never released", m->idx, m->nbytes);
        d->memory = m->next;
        unmap(d, m);
    }
    free_ranges(d->reads);
    free_ranges(d->writes);
    free(d->entry);
    sem_destroy(&d->baton);
}
