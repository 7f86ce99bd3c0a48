#include "tests/emulation/collectives_mpi.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mpi.h>

#include "core/memory.h"
#include "tests/support/plain_device.h"

enum { REQUEST_MAX = 1024, ENROLLED_MAX = 16, TAG = 11, READY_TAG = 12, POLLS_UNTIL_READY = 3 };

struct tess_gpu_group {
    tess_device *device;
    MPI_Comm mpi; /* MPI_COMM_NULL for a world of one */
    int rank;
    int world;
    int polls_left;
    int split_polls_left; /* until a split of this group is done with it */
    const void *enrolled[ENROLLED_MAX];
    int enrolled_numel;
    bool is_ready; /* all ranks are here */
    char here[2];  /* what tells so, and where it is received */
    bool is_aborted;
    bool is_open;        /* between group_begin and group_end */
    tess_stream *stream; /* of the open group's calls */
    /* the collective under way */
    MPI_Request request[REQUEST_MAX];
    int request_numel;
    bool is_hung;
    char *spoiled; /* a byte that comes out wrong, NULL: none */
    float *rows;   /* reduce-scatter: [world, numel] */
    float *sum;
    int64_t numel;
    int serial;           /* a group is made after the one that it is split from */
    tess_gpu_group *next; /* of those kept below */
};

/* Aborted groups: late messages may still land in them. */
static tess_gpu_group *kept;

static struct {
    char kind[16];
    int rank, after;
} fault;
static int begun_numel; /* collectives of this process */
static int made_numel;
static collectives_mpi_aborts aborts = {.is_ordered = true};

void collectives_mpi_inject(const char *text)
{
    memset(&fault, 0, sizeof fault);
    begun_numel = 0;
    if (text != NULL)
        (void)sscanf(text, "%15[a-z]:%d:%d", fault.kind, &fault.rank, &fault.after);
}

collectives_mpi_aborts collectives_mpi_aborted(void)
{
    const collectives_mpi_aborts since = aborts;
    aborts = (collectives_mpi_aborts){.is_ordered = true};
    return since;
}

static bool is_faulty(const char *kind)
{
    int is_started = 0, rank = 0;
    if (strcmp(fault.kind, kind) != 0)
        return false;
    if (MPI_Initialized(&is_started) == MPI_SUCCESS && is_started)
        MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    return rank == fault.rank && begun_numel > fault.after - (strcmp(kind, "join") == 0);
}

static tess_status check_mpi(int rc, const char *what)
{
    TESS_CHECK(rc == MPI_SUCCESS, TESS_E_COMM, "emulated %s failed", what);
    return TESS_OK;
}

/* Whether the group's messages are all there. Without any no MPI is needed: a world of one works
 * before it is initialized. */
static bool is_through(tess_gpu_group *g, tess_status *st)
{
    int is_done = 1;
    *st = g->request_numel == 0
              ? TESS_OK
              : check_mpi(MPI_Testall(g->request_numel, g->request, &is_done, MPI_STATUSES_IGNORE),
                          "poll");
    return *st == TESS_OK && is_done != 0;
}

/* ---- the collective under way ---- */

static bool step(void *arg)
{
    tess_gpu_group *g = arg;
    tess_status st = TESS_OK;
    if (g->is_aborted || g->is_hung)
        return false; /* kernels of an aborted group never say that they are done */
    if (!is_through(g, &st))
        return false;
    g->request_numel = 0;
    if (g->spoiled != NULL)
        *g->spoiled ^= 1;
    g->spoiled = NULL;
    for (int64_t i = 0; g->sum != NULL && i < g->numel; i++) {
        float sum = 0.0f;
        for (int r = 0; r < g->world; r++)
            sum += g->rows[r * g->numel + i];
        g->sum[i] = sum;
    }
    free(g->rows);
    g->rows = g->sum = NULL;
    return true;
}

static tess_status begin(tess_gpu_group *g, tess_stream *s)
{
    TESS_CHECK(!g->is_aborted, TESS_E_COMM, "a collective on an aborted group");
    TESS_CHECK(g->is_ready && g->split_polls_left == 0, TESS_E_COMM,
               "a collective on a group that is not ready");
    begun_numel++;
    g->is_hung = is_faulty("hang");
    return tess_stream_finish(s);
}

static tess_status post(tess_gpu_group *g, void *data, size_t nbytes, int peer, bool is_receive)
{
    TESS_CHECK(g->request_numel < REQUEST_MAX, TESS_E_COMM, "more than %d messages", REQUEST_MAX);
    MPI_Request *request = &g->request[g->request_numel];
    if (g->is_hung)
        return TESS_OK;
    const int rc = is_receive ? MPI_Irecv(data, (int)nbytes, MPI_BYTE, peer, TAG, g->mpi, request)
                              : MPI_Isend(data, (int)nbytes, MPI_BYTE, peer, TAG, g->mpi, request);
    g->request_numel += rc == MPI_SUCCESS;
    return check_mpi(rc, is_receive ? "receive" : "send");
}

static tess_status emu_all_gather(tess_gpu_group *g, const void *shard, void *full, size_t nbytes,
                                  tess_stream *s)
{
    if (!g->is_open || g->stream == NULL)
        TESS_TRY(begin(g, s));
    TESS_CHECK(!g->is_open || g->stream == NULL || !is_faulty("piece"), TESS_E_COMM,
               "emulated failure: a call inside a group");
    void *src = plain_device_near(g->device, shard);
    char *dst = plain_device_near(g->device, full);
    if (src != dst + (size_t)g->rank * nbytes)
        memcpy(dst + (size_t)g->rank * nbytes, src, nbytes);
    for (int p = 0; p < g->world; p++) {
        if (p == g->rank)
            continue;
        TESS_TRY(post(g, dst + (size_t)p * nbytes, nbytes, p, true));
        TESS_TRY(post(g, src, nbytes, p, false));
    }
    g->stream = s;
    g->spoiled = nbytes > 0 && is_faulty("wrong") ? dst + (size_t)g->world * nbytes - 1 : NULL;
    return g->is_open ? TESS_OK : plain_stream_defer(s, step, g);
}

static tess_status emu_reduce_scatter(tess_gpu_group *g, const float *full, float *shard,
                                      int64_t numel, tess_stream *s)
{
    TESS_TRY(begin(g, s));
    const size_t nbytes = (size_t)numel * sizeof(float);
    float *src = plain_device_near(g->device, full);
    g->rows = calloc((size_t)g->world, nbytes);
    TESS_CHECK(g->rows != NULL, TESS_E_MEMORY, "no memory for an emulated reduction");
    g->sum = plain_device_near(g->device, shard);
    g->numel = numel;
    memcpy(g->rows + g->rank * numel, src + g->rank * numel, nbytes);
    for (int p = 0; p < g->world; p++) {
        if (p == g->rank)
            continue;
        TESS_TRY(post(g, g->rows + p * numel, nbytes, p, true));
        TESS_TRY(post(g, src + p * numel, nbytes, p, false));
    }
    return plain_stream_defer(s, step, g);
}

static tess_status emu_group_begin(tess_gpu_group *g)
{
    TESS_CHECK(!g->is_open, TESS_E_COMM, "a group inside a group");
    g->is_open = true;
    g->stream = NULL;
    return TESS_OK;
}

static tess_status emu_group_end(tess_gpu_group *g)
{
    TESS_CHECK(g->is_open, TESS_E_COMM, "the end of a group without its begin");
    g->is_open = false;
    return g->stream != NULL ? plain_stream_defer(g->stream, step, g) : TESS_OK;
}

static tess_status emu_piece(tess_gpu_group *g, void *data, size_t nbytes, int peer, tess_stream *s,
                             bool is_receive)
{
    TESS_CHECK(g->is_open && peer != g->rank, TESS_E_COMM, "a piece outside a group, or to itself");
    if (g->stream == NULL)
        TESS_TRY(begin(g, s));
    g->stream = s;
    return post(g, data, nbytes, peer, is_receive);
}

static tess_status emu_send(tess_gpu_group *g, const void *data, size_t nbytes, int peer,
                            tess_stream *s)
{
    return emu_piece(g, plain_device_near(g->device, data), nbytes, peer, s, false);
}

static tess_status emu_receive(tess_gpu_group *g, void *data, size_t nbytes, int peer,
                               tess_stream *s)
{
    return emu_piece(g, plain_device_near(g->device, data), nbytes, peer, s, true);
}

/* ---- groups ---- */

static tess_status emu_unique_id(uint8_t id[TESS_CUDA_UNIQUE_ID_NBYTES])
{
    memset(id, 0x5a, TESS_CUDA_UNIQUE_ID_NBYTES);
    return TESS_OK;
}

static tess_status make(tess_device *d, MPI_Comm mpi, int rank, int world, tess_gpu_group **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_gpu_group), &object));
    tess_gpu_group *g = object;
    *g = (tess_gpu_group){.device = d,
                          .mpi = mpi,
                          .rank = rank,
                          .world = world,
                          .polls_left = POLLS_UNTIL_READY,
                          .serial = made_numel++};
    *out = g;
    return TESS_OK;
}

static tess_status emu_join(tess_device *d, const uint8_t id[TESS_CUDA_UNIQUE_ID_NBYTES], int rank,
                            int world, const char *name, tess_gpu_group **out)
{
    MPI_Comm mpi = MPI_COMM_NULL;
    (void)name;
    for (int i = 0; i < TESS_CUDA_UNIQUE_ID_NBYTES; i++)
        TESS_CHECK(id[i] == 0x5a, TESS_E_COMM, "rank %d joined with another id", rank);
    if (world > 1)
        TESS_TRY(check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &mpi), "join"));
    return make(d, mpi, rank, world, out);
}

static tess_status emu_split(tess_gpu_group *parent, int color, int key, const char *name,
                             tess_gpu_group **out)
{
    MPI_Comm mpi = MPI_COMM_NULL;
    int rank = 0, world = 1;
    (void)name;
    TESS_CHECK(parent->is_ready && parent->split_polls_left == 0, TESS_E_COMM,
               "a split of a group that is not ready");
    if (parent->mpi != MPI_COMM_NULL) {
        TESS_TRY(check_mpi(MPI_Comm_split(parent->mpi, color, key, &mpi), "split"));
        MPI_Comm_rank(mpi, &rank);
        MPI_Comm_size(mpi, &world);
    }
    parent->split_polls_left = POLLS_UNTIL_READY;
    return make(parent->device, mpi, rank, world, out);
}

/* A byte to and from everybody. */
static tess_status tell_peers(tess_gpu_group *g)
{
    for (int p = 0; p < g->world; p++) {
        MPI_Request *request = &g->request[g->request_numel];
        if (p == g->rank)
            continue;
        TESS_TRY(
            check_mpi(MPI_Irecv(&g->here[1], 1, MPI_BYTE, p, READY_TAG, g->mpi, request), "poll"));
        TESS_TRY(check_mpi(MPI_Isend(&g->here[0], 1, MPI_BYTE, p, READY_TAG, g->mpi, request + 1),
                           "poll"));
        g->request_numel += 2;
    }
    return TESS_OK;
}

static tess_status emu_poll(tess_gpu_group *g, bool *is_ready)
{
    TESS_CHECK(!is_faulty("fail"), TESS_E_COMM, "emulated failure: unhandled system error");
    if (g->polls_left > 0 && !is_faulty("join") && --g->polls_left == 0)
        TESS_TRY(tell_peers(g));
    if (!g->is_ready && g->polls_left == 0) {
        tess_status st = TESS_OK;
        g->is_ready = is_through(g, &st);
        TESS_TRY(st);
        g->request_numel = g->is_ready ? 0 : g->request_numel;
    }
    if (g->split_polls_left > 0)
        g->split_polls_left--;
    *is_ready = g->is_ready && g->split_polls_left == 0;
    return TESS_OK;
}

static tess_status emu_enroll(tess_gpu_group *g, void *memory, size_t nbytes)
{
    TESS_CHECK(plain_device_near(g->device, memory) != NULL && nbytes > 0, TESS_E_COMM,
               "nothing to enroll");
    TESS_CHECK(g->enrolled_numel < ENROLLED_MAX, TESS_E_COMM, "more than %d arenas", ENROLLED_MAX);
    g->enrolled[g->enrolled_numel++] = memory;
    return TESS_OK;
}

/* What is still enrolled must still be there: reading it faults where it is not. */
static void emu_withdraw(tess_gpu_group *g)
{
    for (int i = 0; i < g->enrolled_numel; i++)
        (void)*(const volatile char *)plain_device_near(g->device, g->enrolled[i]);
    g->enrolled_numel = 0;
}

static void abort_one(tess_gpu_group *g)
{
    g->is_aborted = true;
    for (int i = 0; i < g->request_numel; i++) {
        if (g->request[i] == MPI_REQUEST_NULL)
            continue;
        MPI_Cancel(&g->request[i]);
        MPI_Request_free(&g->request[i]);
    }
    g->request_numel = 0;
}

static void emu_abort_all(tess_gpu_group *const *groups, int group_numel)
{
    aborts.call_numel++;
    aborts.group_numel += group_numel;
    for (int i = 0; i < group_numel; i++) {
        if (i > 0 && groups[i]->serial < groups[i - 1]->serial)
            aborts.is_ordered = false;
        abort_one(groups[i]);
    }
}

static void emu_leave(tess_gpu_group *g)
{
    if (g == NULL)
        return;
    emu_withdraw(g);
    if (!g->is_aborted && g->mpi != MPI_COMM_NULL)
        MPI_Comm_free(&g->mpi);
    if (!g->is_aborted) {
        tess_free(g);
        return;
    }
    g->next = kept;
    kept = g;
}

const tess_gpu_collectives collectives_mpi = {
    .name = "emulated collectives",
    .unique_id = emu_unique_id,
    .join = emu_join,
    .split = emu_split,
    .poll = emu_poll,
    .group_begin = emu_group_begin,
    .group_end = emu_group_end,
    .all_gather = emu_all_gather,
    .send = emu_send,
    .receive = emu_receive,
    .reduce_scatter = emu_reduce_scatter,
    .enroll = emu_enroll,
    .withdraw = emu_withdraw,
    .abort_all = emu_abort_all,
    .leave = emu_leave,
};
