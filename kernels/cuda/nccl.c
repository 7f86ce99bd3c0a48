/**
 * tess_gpu_collectives over NCCL. Communicators never block: every call may say that it is still in
 * progress, and the caller polls until it is not before the stream is used again.
 */
#include <dlfcn.h>
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/memory.h"
#include "kernels/cuda/device_priv.h"

/* Thread blocks of a collective are pinned, so that its pieces do not depend on the moment; 16 keep
 * the links of both architectures busy and leave the rest to matrix products. */
enum { GROUP_CTAS = 16, ENROLLED_MAX = 16 };
static const double LEAVE_LIMIT_S = 30.0;

_Static_assert(sizeof(ncclUniqueId) == TESS_CUDA_UNIQUE_ID_NBYTES, "plugin.h has NCCL's size");

/* X(name, result, arguments) of every function used. The library is opened at run time: one device
 * needs none. */
#define NCCL_LIST(X)                                                                               \
    X(GetVersion, ncclResult_t, (int *))                                                           \
    X(GetErrorString, const char *, (ncclResult_t))                                                \
    X(GetLastError, const char *, (ncclComm_t))                                                    \
    X(GetUniqueId, ncclResult_t, (ncclUniqueId *))                                                 \
    X(CommInitRankConfig, ncclResult_t, (ncclComm_t *, int, ncclUniqueId, int, ncclConfig_t *))    \
    X(CommSplit, ncclResult_t, (ncclComm_t, int, int, ncclComm_t *, ncclConfig_t *))               \
    X(CommGetAsyncError, ncclResult_t, (ncclComm_t, ncclResult_t *))                               \
    X(CommRegister, ncclResult_t, (ncclComm_t, void *, size_t, void **))                           \
    X(CommDeregister, ncclResult_t, (ncclComm_t, void *))                                          \
    X(CommAbort, ncclResult_t, (ncclComm_t))                                                       \
    X(CommFinalize, ncclResult_t, (ncclComm_t))                                                    \
    X(CommDestroy, ncclResult_t, (ncclComm_t))                                                     \
    X(GroupStart, ncclResult_t, (void))                                                            \
    X(GroupEnd, ncclResult_t, (void))                                                              \
    X(AllGather, ncclResult_t,                                                                     \
      (const void *, void *, size_t, ncclDataType_t, ncclComm_t, cudaStream_t))                    \
    X(Send, ncclResult_t, (const void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t))   \
    X(Recv, ncclResult_t, (void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t))         \
    X(ReduceScatter, ncclResult_t,                                                                 \
      (const void *, void *, size_t, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t))

static struct {
#define X(name, result, args) result(*name) args;
    NCCL_LIST(X)
#undef X
} nccl;

struct tess_gpu_group {
    tess_device *device;
    ncclComm_t comm;   /* NULL after an abort */
    bool is_splitting; /* a thread of the library may still write `comm` */
    void *enrolled[ENROLLED_MAX];
    int enrolled_numel;
    char name[64];
};

static tess_status fail(const tess_gpu_group *g, ncclResult_t r, const char *call)
{
    const ncclComm_t comm = g != NULL ? g->comm : NULL;
    const char *detail = nccl.GetLastError(comm);
    return TESS_FAIL(TESS_E_COMM, "%s%s%s: NCCL says %s%s%s", g != NULL ? g->name : "",
                     g != NULL ? ": " : "", call, nccl.GetErrorString(r),
                     detail != NULL && detail[0] != '\0' ? ": " : "", detail != NULL ? detail : "");
}

#define TRY_NCCL(g, call)                                                                          \
    do {                                                                                           \
        const ncclResult_t r_ = (call);                                                            \
        if (r_ != ncclSuccess && r_ != ncclInProgress)                                             \
            return fail((g), r_, #call);                                                           \
    } while (0)

static tess_status check_alive(const tess_gpu_group *g)
{
    TESS_CHECK(g->comm != NULL, TESS_E_COMM, "%s: its communicator was aborted", g->name);
    return TESS_OK;
}

/* ---- the library ---- */

/* 2.28.3 to 2.28.8 can crash when communicators are made again in a process. */
static tess_status check_version(int v)
{
    TESS_CHECK(v < 22803 || v > 22808, TESS_E_UNSUPPORTED,
               "NCCL %d.%d.%d has a known defect; use 2.28.9 or newer", v / 10000, v % 10000 / 100,
               v % 100);
    TESS_CHECK(v >= 22700, TESS_E_UNSUPPORTED, "NCCL %d.%d.%d is older than 2.27", v / 10000,
               v % 10000 / 100, v % 100);
    return TESS_OK;
}

/* It stays open: its threads do not survive the contrary. */
tess_status tess_nccl_open(int *version)
{
    void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    TESS_CHECK(library != NULL, TESS_E_UNSUPPORTED, "no NCCL (%s)", dlerror());
#define X(name, result, args)                                                                      \
    *(void **)(void *)&nccl.name = dlsym(library, "nccl" #name);                                   \
    TESS_CHECK(nccl.name != NULL, TESS_E_UNSUPPORTED,                                              \
               "NCCL lacks nccl" #name "; use 2.27 or newer");
    NCCL_LIST(X)
#undef X
    TRY_NCCL(NULL, nccl.GetVersion(version));
    return check_version(*version);
}

/* ---- groups ---- */

static tess_status nccl_unique_id(uint8_t id[TESS_CUDA_UNIQUE_ID_NBYTES])
{
    ncclUniqueId made;
    TRY_NCCL(NULL, nccl.GetUniqueId(&made));
    memcpy(id, made.internal, TESS_CUDA_UNIQUE_ID_NBYTES);
    return TESS_OK;
}

static ncclConfig_t config_of(const tess_gpu_group *g)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.minCTAs = config.maxCTAs = GROUP_CTAS;
    config.commName = g->name;
    config.splitShare = 0; /* gathers and reductions are under way together */
    return config;
}

static tess_status make_group(tess_device *d, const char *name, tess_gpu_group **out)
{
    void *object = NULL;
    TESS_TRY(tess_cuda_enter(d));
    TESS_TRY(tess_alloc(sizeof(tess_gpu_group), &object));
    tess_gpu_group *g = object;
    g->device = d;
    snprintf(g->name, sizeof g->name, "%s", name);
    *out = g;
    return TESS_OK;
}

/* Collectives of several communicators run on the device in the order of the host's calls. */
static void order_launches(void) { (void)setenv("NCCL_LAUNCH_ORDER_IMPLICIT", "1", 0); }

static tess_status nccl_join(tess_device *d, const uint8_t id[TESS_CUDA_UNIQUE_ID_NBYTES], int rank,
                             int world, const char *name, tess_gpu_group **out)
{
    ncclUniqueId given;
    tess_gpu_group *g = NULL;
    memcpy(given.internal, id, TESS_CUDA_UNIQUE_ID_NBYTES);
    TESS_TRY(make_group(d, name, &g));
    order_launches();
    ncclConfig_t config = config_of(g);
    const ncclResult_t r = nccl.CommInitRankConfig(&g->comm, world, given, rank, &config);
    if (r != ncclSuccess && r != ncclInProgress) {
        const tess_status st = fail(NULL, r, "ncclCommInitRankConfig");
        tess_free(g);
        return st;
    }
    *out = g;
    return TESS_OK;
}

static tess_status nccl_split(tess_gpu_group *parent, int color, int key, const char *name,
                              tess_gpu_group **out)
{
    tess_gpu_group *g = NULL;
    TESS_TRY(check_alive(parent));
    TESS_TRY(make_group(parent->device, name, &g));
    ncclConfig_t config = config_of(g);
    const ncclResult_t r = nccl.CommSplit(parent->comm, color, key, &g->comm, &config);
    if (r != ncclSuccess && r != ncclInProgress) {
        const tess_status st = fail(parent, r, "ncclCommSplit");
        tess_free(g);
        return st;
    }
    g->is_splitting = true;
    *out = g;
    return TESS_OK;
}

static tess_status nccl_poll(tess_gpu_group *g, bool *is_ready)
{
    ncclResult_t state = ncclSuccess;
    /* A split writes the new communicator when the parent gets to it. */
    if (g->comm == NULL) {
        *is_ready = false;
        return TESS_OK;
    }
    TRY_NCCL(g, nccl.CommGetAsyncError(g->comm, &state));
    if (state != ncclSuccess && state != ncclInProgress)
        return fail(g, state, "a collective or its peers");
    *is_ready = state == ncclSuccess;
    g->is_splitting = g->is_splitting && !*is_ready;
    return TESS_OK;
}

/* ---- collectives ---- */

static tess_status nccl_group_begin(tess_gpu_group *g)
{
    TESS_TRY(check_alive(g));
    TESS_TRY(tess_cuda_enter(g->device));
    TRY_NCCL(g, nccl.GroupStart());
    return TESS_OK;
}

static tess_status nccl_group_end(tess_gpu_group *g)
{
    TRY_NCCL(g, nccl.GroupEnd());
    return TESS_OK;
}

static tess_status nccl_all_gather(tess_gpu_group *g, const void *shard, void *full, size_t nbytes,
                                   tess_stream *s)
{
    TESS_TRY(check_alive(g));
    TESS_TRY(tess_cuda_enter(g->device));
    TRY_NCCL(g, nccl.AllGather(shard, full, nbytes, ncclUint8, g->comm, tess_cuda_stream(s)));
    return TESS_OK;
}

static tess_status nccl_send(tess_gpu_group *g, const void *data, size_t nbytes, int peer,
                             tess_stream *s)
{
    TESS_TRY(check_alive(g));
    TRY_NCCL(g, nccl.Send(data, nbytes, ncclUint8, peer, g->comm, tess_cuda_stream(s)));
    return TESS_OK;
}

static tess_status nccl_receive(tess_gpu_group *g, void *data, size_t nbytes, int peer,
                                tess_stream *s)
{
    TESS_TRY(check_alive(g));
    TRY_NCCL(g, nccl.Recv(data, nbytes, ncclUint8, peer, g->comm, tess_cuda_stream(s)));
    return TESS_OK;
}

static tess_status nccl_reduce_scatter(tess_gpu_group *g, const float *full, float *shard,
                                       int64_t numel, tess_stream *s)
{
    TESS_TRY(check_alive(g));
    TESS_TRY(tess_cuda_enter(g->device));
    TRY_NCCL(g, nccl.ReduceScatter(full, shard, (size_t)numel, ncclFloat32, ncclSum, g->comm,
                                   tess_cuda_stream(s)));
    return TESS_OK;
}

static tess_status nccl_enroll(tess_gpu_group *g, void *memory, size_t nbytes)
{
    TESS_TRY(check_alive(g));
    TESS_CHECK(g->enrolled_numel < ENROLLED_MAX, TESS_E_STATE, "%s: more than %d arenas enrolled",
               g->name, ENROLLED_MAX);
    TRY_NCCL(g, nccl.CommRegister(g->comm, memory, nbytes, &g->enrolled[g->enrolled_numel]));
    g->enrolled_numel++;
    return TESS_OK;
}

static void nccl_withdraw(tess_gpu_group *g)
{
    for (int i = 0; i < g->enrolled_numel && g->comm != NULL; i++)
        (void)nccl.CommDeregister(g->comm, g->enrolled[i]);
    g->enrolled_numel = 0;
}

/* ---- end ---- */

/* [Note: aborts together] ncclCommAbort raises the communicator's flag and then waits for its
 * streams, whether it blocks elsewhere or not: a kernel of one communicator may stand on the device
 * behind one of another, which only that one's flag ends. Inside a group the waiting is left to
 * ncclGroupEnd, when all flags are up. Source: ncclCommAbort, commReclaim and commDestroySync in
 * src/init.cc, ncclAsyncLaunch in src/group.cc of NCCL 2.28.9. */
static void nccl_abort_all(tess_gpu_group *const *groups, int group_numel)
{
    const bool is_group = nccl.GroupStart() == ncclSuccess;
    for (int i = 0; i < group_numel; i++) {
        const ncclComm_t comm = groups[i]->comm;
        groups[i]->comm = NULL;
        if (comm != NULL)
            (void)nccl.CommAbort(comm);
    }
    if (is_group)
        (void)nccl.GroupEnd();
}

/* Whether the communicator came to rest in time. */
static bool rest(ncclComm_t comm)
{
    const double until_s = tess_cuda_now_s() + LEAVE_LIMIT_S;
    const struct timespec nap = {0, 100000};
    ncclResult_t state = ncclInProgress;
    while (nccl.CommGetAsyncError(comm, &state) == ncclSuccess && state == ncclInProgress) {
        if (tess_cuda_now_s() > until_s)
            return false;
        nanosleep(&nap, NULL);
    }
    return state == ncclSuccess;
}

static void nccl_leave(tess_gpu_group *g)
{
    if (g == NULL || g->is_splitting)
        return; /* a start that failed: its memory stays */
    if (g->comm != NULL) {
        nccl_withdraw(g);
        const ncclResult_t r = nccl.CommFinalize(g->comm);
        if ((r == ncclSuccess || r == ncclInProgress) && rest(g->comm))
            (void)nccl.CommDestroy(g->comm);
        else
            nccl_abort_all(&g, 1);
    }
    tess_free(g);
}

const tess_gpu_collectives tess_nccl_collectives = {
    .name = "NCCL",
    .unique_id = nccl_unique_id,
    .join = nccl_join,
    .split = nccl_split,
    .poll = nccl_poll,
    .group_begin = nccl_group_begin,
    .group_end = nccl_group_end,
    .all_gather = nccl_all_gather,
    .send = nccl_send,
    .receive = nccl_receive,
    .reduce_scatter = nccl_reduce_scatter,
    .enroll = nccl_enroll,
    .withdraw = nccl_withdraw,
    .abort_all = nccl_abort_all,
    .leave = nccl_leave,
};
