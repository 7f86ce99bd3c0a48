/* Recording and joining the changes of several ranks; what they mean is in disk_model.c. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/memory.h"
#include "support/disk_model.h"

void disk_trace_init(disk_trace *t, const char *root, int rank)
{
    *t = (disk_trace){.root = root, .rank = rank};
    (void)pthread_mutex_init(&t->mutex, NULL);
}

static void free_event(disk_event *e)
{
    tess_free(e->path);
    tess_free(e->from);
    tess_free(e->bytes);
}

static void free_events(disk_event *events, int64_t numel)
{
    for (int64_t i = 0; i < numel; i++)
        free_event(&events[i]);
    tess_free(events);
}

void disk_trace_fini(disk_trace *t)
{
    free_events(t->events, t->numel);
    (void)pthread_mutex_destroy(&t->mutex);
    *t = (disk_trace){0};
}

static int64_t now_ns(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The part of a path below the root; NULL: elsewhere. */
static const char *below(const disk_trace *t, const char *path)
{
    const size_t nbytes = strlen(t->root);
    if (strncmp(path, t->root, nbytes) != 0 || (path[nbytes] != '/' && path[nbytes] != '\0'))
        return NULL;
    return path[nbytes] == '/' ? path + nbytes + 1 : path + nbytes;
}

/* A copy of `e` at the end, with the strings and bytes it points to. */
static tess_status push(disk_trace *t, const disk_event *e)
{
    if (t->numel == t->room_numel) {
        void *list = t->events;
        TESS_TRY(tess_realloc_array(t->room_numel, t->room_numel * 2 + 64, sizeof *e, &list));
        t->events = list;
        t->room_numel = t->room_numel * 2 + 64;
    }
    disk_event copy = *e;
    copy.path = NULL;
    copy.from = NULL;
    copy.bytes = NULL;
    void *bytes = NULL;
    tess_status st = tess_strdup(e->path, &copy.path);
    if (st == TESS_OK)
        st = tess_strdup(e->from, &copy.from);
    if (st == TESS_OK && e->bytes != NULL)
        st = tess_alloc((size_t)e->nbytes, &bytes);
    copy.bytes = bytes;
    if (st != TESS_OK) {
        free_event(&copy);
        return st;
    }
    if (bytes != NULL)
        memcpy(bytes, e->bytes, (size_t)e->nbytes);
    t->events[t->numel++] = copy;
    return TESS_OK;
}

static void push_now(disk_trace *t, disk_event e)
{
    (void)pthread_mutex_lock(&t->mutex);
    e.rank = t->rank;
    e.time_ns = now_ns();
    const tess_status st = push(t, &e);
    t->status = t->status == TESS_OK ? st : t->status;
    (void)pthread_mutex_unlock(&t->mutex);
}

void disk_trace_record(void *trace, const tess_io_change *change)
{
    disk_trace *t = trace;
    const char *path = below(t, change->path);
    const char *from = change->from != NULL ? below(t, change->from) : "";
    if (path == NULL || from == NULL)
        return;
    push_now(t, (disk_event){.op = change->op,
                             .path = (char *)(uintptr_t)path,
                             .from = (char *)(uintptr_t)from,
                             .bytes = (uint8_t *)(uintptr_t)change->bytes,
                             .nbytes = change->nbytes,
                             .offset_nbytes = change->offset_nbytes});
}

void disk_trace_mark(disk_trace *t, const char *text, int64_t value)
{
    push_now(t, (disk_event){.op = TESS_IO_OP_NUMEL,
                             .path = (char *)(uintptr_t)text,
                             .from = (char *)(uintptr_t) "",
                             .nbytes = value});
}

/* ---- joining ---- */

/* From `root` to all; the other ranks get memory for it. */
static tess_status share_text(tess_comm *comm, int root, char **text)
{
    int64_t nbytes = tess_comm_rank(comm) == root ? (int64_t)strlen(*text) + 1 : 0;
    void *memory = *text;
    TESS_TRY(tess_comm_bcast(comm, root, &nbytes, sizeof nbytes));
    if (tess_comm_rank(comm) != root)
        TESS_TRY(tess_alloc((size_t)nbytes, &memory));
    *text = memory;
    return tess_comm_bcast(comm, root, *text, (size_t)nbytes);
}

static tess_status share_event(tess_comm *comm, int root, disk_event *e)
{
    struct {
        int64_t op, time_ns, has_bytes, nbytes, offset_nbytes;
    } head = {(int64_t)e->op, e->time_ns, e->bytes != NULL, e->nbytes, e->offset_nbytes};
    TESS_TRY(tess_comm_bcast(comm, root, &head, sizeof head));
    TESS_TRY(share_text(comm, root, &e->path));
    TESS_TRY(share_text(comm, root, &e->from));
    e->op = (tess_io_op)head.op;
    e->rank = root;
    e->time_ns = head.time_ns;
    e->nbytes = head.nbytes;
    e->offset_nbytes = head.offset_nbytes;
    if (head.has_bytes == 0)
        return TESS_OK;
    void *memory = e->bytes;
    if (tess_comm_rank(comm) != root)
        TESS_TRY(tess_alloc((size_t)e->nbytes, &memory));
    e->bytes = memory;
    return tess_comm_bcast(comm, root, e->bytes, (size_t)e->nbytes);
}

static int by_time(const void *a, const void *b)
{
    const disk_event *x = a, *y = b;
    if (x->time_ns != y->time_ns)
        return x->time_ns > y->time_ns ? 1 : -1;
    return x->rank - y->rank;
}

tess_status disk_trace_join(disk_trace *t, tess_comm *comm)
{
    TESS_TRY(tess_agree(comm, t->status));
    const int rank = tess_comm_rank(comm);
    int64_t numels[64] = {0}, total = 0, at = 0;
    TESS_CHECK(tess_comm_world(comm) <= TESS_NELEM(numels), TESS_E_ARG, "too many ranks");
    for (int i = 0; i < tess_comm_world(comm); i++) {
        numels[i] = i == rank ? t->numel : 0;
        TESS_TRY(tess_comm_bcast(comm, i, &numels[i], sizeof numels[i]));
        total += numels[i];
    }
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(total, sizeof(disk_event), &memory));
    disk_event *all = memory;
    for (int i = 0; i < tess_comm_world(comm); i++)
        for (int64_t k = 0; k < numels[i]; k++, at++) {
            if (i == rank)
                all[at] = t->events[k];
            TESS_TRY(share_event(comm, i, &all[at]));
        }
    tess_free(t->events);
    if (total > 1)
        qsort(all, (size_t)total, sizeof *all, by_time);
    t->events = all;
    t->numel = total;
    t->room_numel = total;
    return TESS_OK;
}
