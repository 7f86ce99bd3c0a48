/*
 * Happens-before: an operation may touch bytes only after everything that touched them before, as
 * streams, events and what the host has waited for put it. All of that is known when an operation
 * is enqueued, so a missing wait is found in every run, whatever order operations really take.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/arith.h"
#include "emulation/emu_device.h"

void emu_clock_join(emu_clock *a, const emu_clock *b)
{
    for (int i = 0; i < EMU_STREAM_MAX; i++)
        a->seq[i] = TESS_MAX(a->seq[i], b->seq[i]);
}

/* ---- history of device memory ---- */

void emu_memory_init(emu_memory *m)
{
    m->segment_room = 16;
    m->segment = calloc((size_t)m->segment_room, sizeof *m->segment);
    m->segment[0] = (emu_segment){.lo = 0, .hi = m->nbytes};
    m->segment_numel = 1;
}

/* Index of the segment that holds byte `at`. */
static int find(const emu_memory *m, size_t at)
{
    int lo = 0, hi = m->segment_numel - 1;
    while (lo < hi) {
        const int mid = (lo + hi) / 2;
        if (m->segment[mid].hi <= at)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* A segment begins at `at` afterwards; its index. */
static int split(emu_memory *m, size_t at)
{
    if (at >= m->nbytes)
        return m->segment_numel;
    const int i = find(m, at);
    if (m->segment[i].lo == at)
        return i;
    if (m->segment_numel == m->segment_room) {
        m->segment_room *= 2;
        m->segment = realloc(m->segment, (size_t)m->segment_room * sizeof *m->segment);
    }
    memmove(&m->segment[i + 1], &m->segment[i],
            (size_t)(m->segment_numel - i) * sizeof *m->segment);
    m->segment_numel++;
    m->segment[i].hi = m->segment[i + 1].lo = at;
    return i + 1;
}

static bool has_same_history(const emu_segment *a, const emu_segment *b)
{
    return a->writer == b->writer && memcmp(a->reader, b->reader, sizeof a->reader) == 0;
}

/* Join neighbours in [first, end] whose histories are equal. */
static void merge(emu_memory *m, int first, int end)
{
    int kept = TESS_MAX(first, 0);
    end = TESS_MIN(end, m->segment_numel - 1);
    const int from = kept;
    for (int i = from + 1; i <= end; i++) {
        if (has_same_history(&m->segment[kept], &m->segment[i]))
            m->segment[kept].hi = m->segment[i].hi;
        else
            m->segment[++kept] = m->segment[i];
    }
    if (end < from || kept == end)
        return;
    memmove(&m->segment[kept + 1], &m->segment[end + 1],
            (size_t)(m->segment_numel - 1 - end) * sizeof *m->segment);
    m->segment_numel -= end - kept;
}

static const char *verb(bool is_write) { return is_write ? "writes" : "reads"; }

/* `earlier` touched the segment; the operation in hand comes after it only if its clock says so. */
static void compare(emu_device *d, const emu_memory *m, const emu_segment *g, uint32_t later,
                    uint32_t earlier, const bool is_write[2])
{
    if (earlier == 0 || earlier == later)
        return;
    const emu_entry *a = &d->entry[earlier - 1], *b = &d->entry[later - 1];
    if (b->clock.seq[a->stream_idx] >= a->seq)
        return;
    emu_violation(d,
                  "'%s' (stream %s, number %u) %s bytes [%zu, %zu) of allocation %d, which '%s' "
                  "(stream %s, number %u) %s; nothing orders the two: a wait is missing",
                  b->what, d->stream_name[b->stream_idx], b->seq, verb(is_write[1]), g->lo, g->hi,
                  m->idx, a->what, d->stream_name[a->stream_idx], a->seq, verb(is_write[0]));
}

static void touch_segment(emu_device *d, const emu_memory *m, emu_segment *g, uint32_t entry,
                          bool is_write)
{
    compare(d, m, g, entry, g->writer, (const bool[2]){true, is_write});
    for (int s = 0; s < d->stream_numel && is_write; s++)
        compare(d, m, g, entry, g->reader[s], (const bool[2]){false, true});
    if (is_write) {
        g->writer = entry;
        memset(g->reader, 0, sizeof g->reader);
    } else {
        g->reader[d->entry[entry - 1].stream_idx] = entry;
    }
}

static void touch_bytes(emu_device *d, emu_memory *m, size_t lo, size_t nbytes, uint32_t entry,
                        bool is_write)
{
    const int first = split(m, lo), end = split(m, lo + nbytes);
    for (int i = first; i < end; i++)
        touch_segment(d, m, &m->segment[i], entry, is_write);
    merge(m, first - 1, end);
}

static emu_memory *memory_of(const emu_device *d, const char *data, size_t nbytes)
{
    for (emu_memory *m = d->memory; m != NULL; m = m->next)
        if (m->space == TESS_DEVICE && data >= m->base && data < m->base + m->nbytes &&
            nbytes <= (size_t)(m->base + m->nbytes - data))
            return m;
    return NULL;
}

static void touch_device(emu_device *d, uint32_t entry, const char *data, size_t nbytes,
                         emu_access access)
{
    emu_memory *m = memory_of(d, data, nbytes);
    if (m == NULL) {
        emu_violation(d, "'%s': an operand of %zu bytes at %p is not in memory of %s",
                      d->entry[entry - 1].what, nbytes, (const void *)data, d->name);
        emu_fail(d->world, "'%s' cannot run without its operand", d->entry[entry - 1].what);
        return;
    }
    if (access & EMU_READ)
        touch_bytes(d, m, (size_t)(data - m->base), nbytes, entry, false);
    if (access & EMU_WRITE)
        touch_bytes(d, m, (size_t)(data - m->base), nbytes, entry, true);
}

void emu_check_release(emu_device *d, const emu_memory *m)
{
    for (int i = 0; i < m->segment_numel; i++)
        for (int s = -1; s < d->stream_numel; s++) {
            const uint32_t last = s < 0 ? m->segment[i].writer : m->segment[i].reader[s];
            const emu_entry *e = last > 0 ? &d->entry[last - 1] : NULL;
            if (e == NULL || d->host.seq[e->stream_idx] >= e->seq)
                continue;
            emu_violation(d,
                          "allocation %d is released, and the host has not waited for '%s' "
                          "(stream %s, number %u), which uses bytes [%zu, %zu) of it",
                          m->idx, e->what, d->stream_name[e->stream_idx], e->seq, m->segment[i].lo,
                          m->segment[i].hi);
            emu_fail(d->world, "memory that work uses was released");
            return;
        }
}

/* ---- operands ---- */

typedef struct toucher {
    emu_device *d;
    uint32_t entry;
} toucher;

static void touch_operand(void *arg, const emu_operand *o)
{
    const toucher *t = arg;
    for (int64_t i = 0; i < o->group_numel * o->row_numel; i++)
        touch_device(t->d, t->entry, emu_operand_row(o, i), o->row_nbytes, o->access);
}

void emu_touch_call(emu_device *d, uint32_t entry, emu_kernel_call *call)
{
    toucher t = {d, entry};
    emu_visit(call, &(emu_visitor){.operand = touch_operand, .arg = &t});
}

void emu_touch_rows(emu_device *d, uint32_t entry, const tess_rows_copy *c)
{
    for (int64_t i = 0; i < c->row_numel; i++) {
        touch_device(d, entry, (const char *)c->src + i * c->src_stride_nbytes,
                     (size_t)c->row_nbytes, EMU_READ);
        touch_device(d, entry, (const char *)c->dst + i * c->dst_stride_nbytes,
                     (size_t)c->row_nbytes, EMU_WRITE);
    }
}

/* ---- host memory ---- */

static uint64_t hash_of(const char *data, size_t nbytes)
{
    uint64_t h = 1469598103934665603u;
    for (size_t i = 0; i < nbytes; i++)
        h = (h ^ (unsigned char)data[i]) * 1099511628211u;
    return h;
}

static bool is_crossing(const emu_host_range *r, const char *data, size_t nbytes)
{
    return data < r->data + r->nbytes && r->data < data + nbytes;
}

static void touch_host(emu_device *d, uint32_t entry, char *data, size_t nbytes, emu_access access)
{
    for (const emu_host_range *r = d->writes; r != NULL; r = r->next)
        if (r->entry != entry && is_crossing(r, data, nbytes))
            emu_violation(d,
                          "'%s' uses %zu bytes of host memory that '%s' writes, and the host has "
                          "not waited for it",
                          d->entry[entry - 1].what, nbytes, d->entry[r->entry - 1].what);
    emu_host_range *r = calloc(1, sizeof *r);
    *r = (emu_host_range){.entry = entry, .data = data, .nbytes = nbytes};
    if (access == EMU_READ) {
        r->hash = hash_of(data, nbytes);
        r->next = d->reads;
        d->reads = r;
        return;
    }
    r->bytes = malloc(nbytes);
    memset(data, 0xff, nbytes); /* nobody may read it yet */
    r->next = d->writes;
    d->writes = r;
}

void emu_touch_view(emu_device *d, uint32_t entry, tess_view v, emu_access access)
{
    const size_t nbytes = tess_view_nbytes(v);
    if (nbytes == 0)
        return;
    if (v.space == TESS_HOST)
        touch_host(d, entry, v.data, nbytes, access);
    else
        touch_device(d, entry, v.data, nbytes, access);
}

void emu_check_host_reads(emu_device *d)
{
    for (emu_host_range *r = d->reads; r != NULL; r = r->next) {
        if (hash_of(r->data, r->nbytes) == r->hash)
            continue;
        emu_violation(d,
                      "%zu bytes of host memory changed after '%s' was enqueued, which reads them, "
                      "and before the host waited for it",
                      r->nbytes, d->entry[r->entry - 1].what);
        r->hash = hash_of(r->data, r->nbytes);
    }
}

static bool host_knows(const emu_device *d, const emu_host_range *r)
{
    const emu_entry *e = &d->entry[r->entry - 1];
    return d->seen.seq[e->stream_idx] >= e->seq;
}

static void drop_known(emu_device *d, emu_host_range **list)
{
    while (*list != NULL) {
        emu_host_range *r = *list;
        if (!host_knows(d, r)) {
            list = &r->next;
            continue;
        }
        if (r->bytes != NULL)
            memcpy(r->data, r->bytes, r->nbytes);
        *list = r->next;
        free(r->bytes);
        free(r);
    }
}

void emu_host_joins(emu_device *d, const emu_clock *clock, bool has_waited)
{
    emu_check_host_reads(d);
    emu_clock_join(&d->seen, clock);
    if (has_waited)
        emu_clock_join(&d->host, clock);
    drop_known(d, &d->reads);
    drop_known(d, &d->writes);
}
