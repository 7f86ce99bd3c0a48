/**
 * Where a session computes: the CUDA plugin is looked for, opened and asked for the device of this
 * rank's place on its node; all ranks take the same kind of device or none.
 */
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/memory.h"
#include "dist/gpu.h"
#include "kernels/cuda/door.h"
#include "train/session_priv.h"

/* Left beside what the plan counts: code loaded late, and what libraries take on their own. */
enum { MARGIN_NBYTES = 512 << 20 };
/* Attention's library may take so much: of its deterministic backward, scores of 8 heads of 4,096
 * tokens (256 MiB), their d_k and d_v before a group of 4 is added up (16 MiB), and as much again
 * for what engines keep beside them. Documents per sequence that its plans have places for. */
enum { ATTENTION_NBYTES = 288 << 20, PACK_DOCUMENTS = 32 };
/* Workspace of the products' library on one stream, as the plugin takes it on sm_90. */
enum { LIBRARY_NBYTES = 32 << 20 };
/* An execution of attention's backward: three kernels and their start. An estimate for sm_90. */
static const double EXECUTION_S = 12e-6;
static const size_t MARGIN_SHARE = 50; /* and this part of the whole memory */

/* ---- finding the plugin ---- */

static const char PLUGIN_NAME[] = "libtessera_cuda.so";

/* Beside the program, or in the lib folder beside its own. */
static tess_status find_plugin(tess_io *io, char path[PATH_MAX])
{
    static const char *const place[] = {".", "../lib"};
    const char *chosen = getenv("TESSERA_CUDA_PLUGIN");
    if (chosen != NULL && chosen[0] != '\0') {
        snprintf(path, PATH_MAX, "%s", chosen);
        return TESS_OK;
    }
    char folder[PATH_MAX - 64];
    const ssize_t n = readlink("/proc/self/exe", folder, sizeof folder - 1);
    TESS_CHECK(n > 0, TESS_E_UNSUPPORTED, "the program's own folder is unknown: no /proc/self/exe");
    folder[n] = '\0';
    *strrchr(folder, '/') = '\0';
    for (int i = 0; i < TESS_NELEM(place); i++) {
        tess_io_kind kind = TESS_IO_MISSING;
        int64_t nbytes = 0;
        snprintf(path, PATH_MAX, "%s/%s/%s", folder, place[i], PLUGIN_NAME);
        TESS_TRY(tess_io_stat(io, path, &kind, &nbytes));
        if (kind != TESS_IO_MISSING)
            return TESS_OK;
    }
    return TESS_FAIL(TESS_E_UNSUPPORTED,
                     "this program was built without CUDA: no %s in '%s'; build with TESS_CUDA=ON, "
                     "name the file in TESSERA_CUDA_PLUGIN, or set compute.device: cpu",
                     PLUGIN_NAME, folder);
}

/* The libraries behind the plugin take 0.1 s and 200 MB: not without a driver. */
static tess_status look_for_driver(bool is_asked)
{
    if (is_asked || getenv("TESSERA_CUDA_PLUGIN") != NULL)
        return TESS_OK;
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    TESS_CHECK(driver != NULL, TESS_E_UNSUPPORTED, "no CUDA driver (libcuda.so.1) on this machine");
    return TESS_OK; /* it stays: the plugin opens it too */
}

tess_status session_open_plugin(tess_io *io, bool is_asked, const tess_cuda_plugin **out)
{
    char path[PATH_MAX];
    TESS_TRY(find_plugin(io, path));
    TESS_TRY(look_for_driver(is_asked));
    return tess_cuda_plugin_load(path, out);
}

static tess_run_device asked_device(const tess_session *s)
{
    const tess_run_device asked = s->run->compute.device;
    return asked == TESS_RUN_DEVICE_CUDA && s->options.may_lack_device ? TESS_RUN_DEVICE_AUTO
                                                                       : asked;
}

/* What makes `auto` stay on the CPU. */
static tess_status find_devices(tess_session *s, int *numel)
{
    if (s->plugin == NULL)
        TESS_TRY(
            session_open_plugin(s->ctx->io, asked_device(s) != TESS_RUN_DEVICE_AUTO, &s->plugin));
    TESS_TRY(s->plugin->device_numel(numel));
    TESS_CHECK(*numel > 0, TESS_E_UNSUPPORTED,
               "the CUDA driver shows no device; look at CUDA_VISIBLE_DEVICES");
    return TESS_OK;
}

/* ---- one device a rank ---- */

/* What ranks tell rank 0 of their device. Plain bytes: it travels. */
typedef struct device_card {
    tess_cuda_info info;
    char host[64]; /* for messages: containers may all have one name */
    int32_t node;
    int32_t visible_numel;
    int32_t idx;
} device_card;

static tess_status take_device(tess_session *s, int visible_numel, device_card *card)
{
    const int idx = tess_comm_node_rank(s->world) % visible_numel;
    memset(card, 0, sizeof *card);
    card->node = tess_comm_node_of(s->world, tess_comm_rank(s->world));
    card->visible_numel = visible_numel;
    card->idx = idx;
    (void)gethostname(card->host, sizeof card->host - 1);
    TESS_TRY(s->plugin->device_info(idx, &card->info));
    TESS_TRY(s->plugin->device_open(idx, &s->device));
    s->kernels = s->plugin->kernels(s->device);
    TESS_CHECK(s->kernels != NULL, TESS_E_UNSUPPORTED,
               "%s: the CUDA part was built without kernels", s->device->name);
    snprintf(s->kernel_path, sizeof s->kernel_path, "cuda/%s", s->kernels->path());
    return TESS_OK;
}

static tess_status compare_models(const device_card *card, int world)
{
    const tess_cuda_info *a = &card[0].info;
    for (int r = 1; r < world; r++) {
        const tess_cuda_info *b = &card[r].info;
        TESS_CHECK(strcmp(a->name, b->name) == 0 && a->capability == b->capability &&
                       a->sm_numel == b->sm_numel,
                   TESS_E_CONTRACT,
                   "rank %d has a %s (sm_%d, %d multiprocessors) on '%s', rank 0 a %s (sm_%d, %d) "
                   "on '%s': results differ between models of GPU; choose equal ones with "
                   "CUDA_VISIBLE_DEVICES",
                   r, b->name, b->capability, b->sm_numel, card[r].host, a->name, a->capability,
                   a->sm_numel, card[0].host);
    }
    return TESS_OK;
}

/* A slice of a device is one of its own, with memory of its own. */
static bool is_same_device(const device_card *a, const device_card *b)
{
    return memcmp(a->info.uuid, b->info.uuid, sizeof a->info.uuid) == 0;
}

/* Slices of a device, too, stand at one place: NCCL refuses them. */
static bool is_same_place(const device_card *a, const device_card *b)
{
    return a->node == b->node && strcmp(a->info.bus_id, b->info.bus_id) == 0;
}

/* @param most  ranks on the device, and at the place, that has most */
static tess_status count_shares(const tess_session *s, const device_card *card, int64_t most[2])
{
    const int world = tess_comm_world(s->world);
    for (int r = 0; r < world; r++) {
        int64_t numel = 1, place_numel = 1;
        for (int q = r + 1; q < world; q++) {
            place_numel += is_same_place(&card[r], &card[q]);
            if (!is_same_device(&card[r], &card[q]))
                continue;
            numel++;
            TESS_CHECK(s->run->compute.share_device, TESS_E_CONFIG,
                       "ranks %d and %d would share the GPU %s on '%s', which shows them %d; start "
                       "as many ranks as GPUs, or set compute.share_device: true",
                       r, q, card[r].info.bus_id, card[r].host, card[q].visible_numel);
        }
        most[0] = TESS_MAX(most[0], numel);
        most[1] = TESS_MAX(most[1], place_numel);
    }
    return TESS_OK;
}

/* Rank 0 looks at all cards; everybody hears its verdict. */
static tess_status compare_devices(tess_session *s, const device_card *mine)
{
    const int world = tess_comm_world(s->world);
    const bool is_root = tess_comm_rank(s->world) == 0;
    void *room = NULL;
    tess_status st = is_root ? tess_alloc_array(world, sizeof(device_card), &room) : TESS_OK;
    device_card *card = room;
    int64_t most[3] = {1, 1, s->plugin->collectives == NULL};
    st = session_agree(s, st);
    if (st == TESS_OK)
        st = tess_comm_gather_bytes(s->world, 0, mine, sizeof *mine, card);
    if (st != TESS_OK) {
        tess_free(room);
        return st;
    }
    if (is_root) {
        st = compare_models(card, world);
        if (st == TESS_OK)
            st = count_shares(s, card, most);
    }
    tess_free(room);
    TESS_TRY(session_agree(s, st));
    TESS_TRY(tess_comm_control(s->world, NULL, 0, most, TESS_NELEM(most)));
    s->device_share_numel = (int)most[0];
    s->device_place_numel = (int)most[1];
    s->has_collectives = most[2] == 0;
    return TESS_OK;
}

static void say_device(const tess_session *s, const device_card *card)
{
    tess_log_root(
        &s->ctx->log, TESS_LOG_INFO, "device: %s, %s (sm_%d, %.1f GiB, %s), %s, on %d rank%s",
        s->device->name, card->info.name, card->info.capability,
        (double)card->info.memory_nbytes / (double)(1 << 30), card->info.bus_id,
        s->plugin->versions, tess_comm_world(s->world), tess_comm_world(s->world) == 1 ? "" : "s");
}

/* The caller brought a device. */
static bool is_given(const tess_session *s)
{
    return s->device != NULL && s->device == s->options.device;
}

static tess_status take_given(tess_session *s)
{
    TESS_CHECK(s->options.kernels != NULL, TESS_E_ARG,
               "device '%s' was given without its kernels; pass their table too",
               s->options.device->name);
    s->device = s->options.device;
    s->kernels = s->options.kernels;
    s->device_share_numel = s->device_place_numel = 1;
    snprintf(s->kernel_path, sizeof s->kernel_path, "%s/%s", s->kernels->name, s->kernels->path());
    return TESS_OK;
}

tess_status session_choose_device(tess_session *s)
{
    const tess_run_device asked = asked_device(s);
    device_card card;
    int visible_numel = 0;
    if (s->options.device != NULL)
        return take_given(s);
    if (asked == TESS_RUN_DEVICE_CPU || s->options.kernels != NULL)
        return TESS_OK;
    const tess_status found = session_agree(s, find_devices(s, &visible_numel));
    if (found != TESS_OK && !tess_status_is_fatal(found) && asked == TESS_RUN_DEVICE_AUTO) {
        tess_log_root(&s->ctx->log, TESS_LOG_INFO, "device: cpu; rank %d: %s", tess_error_rank(),
                      tess_error_message());
        tess_error_clear();
        return TESS_OK;
    }
    TESS_TRY(found);
    TESS_TRY(session_agree(s, take_device(s, visible_numel, &card)));
    TESS_TRY(compare_devices(s, &card));
    say_device(s, &card);
    return TESS_OK;
}

/* ---- memory ---- */

/* Why collectives go through host memory; NULL: they do not. Libraries refuse two ranks on a
 * device, unless told otherwise where they can. */
static const char *why_not_direct(const tess_session *s)
{
    const char *multi = getenv("NCCL_MULTI_RANK_GPU_ENABLE");
    if (!s->has_collectives)
        return s->plugin->collectives == NULL ? "the CUDA part has no NCCL"
                                              : "another rank has no NCCL";
    if (s->device_place_numel > 1 && (multi == NULL || strcmp(multi, "1") != 0))
        return "ranks share a GPU";
    return NULL;
}

/* [Note: memory of NCCL] Sends and receives to a peer of the node hold buffers on the device, taken
 * by the first exchange, inside a step: per channel 2 MiB to send and 10 MiB to receive (protocols
 * of 0.5, 4.7 and 4 MiB and a head, in units of 2 MiB), on as many channels as a communicator has
 * thread blocks (GROUP_CTAS of kernels/cuda/nccl.c). The exact reduction has every owner for a
 * peer. Beside them, rings, multicast buffers and code. Derived from p2pSendSetup, p2pRecvSetup
 * (src/transport/p2p.cc), computeBuffSizes (src/init.cc) and ncclTopoComputeP2pChannels
 * (src/graph/paths.cc) of NCCL 2.28.9, not measured; what peers of other nodes take is not counted.
 */
static size_t collectives_nbytes(const tess_session *s)
{
    enum { PEER_CHANNEL_NBYTES = 12 << 20, CHANNEL_NUMEL = 16, RING_NBYTES = 512 << 20 };
    const int node = tess_comm_node_of(s->world, tess_comm_rank(s->world));
    const size_t peer_numel = (size_t)tess_comm_node_rank_numel(s->world, node) - 1;
    if (is_given(s) || tess_comm_world(s->world) == 1 || why_not_direct(s) != NULL ||
        s->run->shard.reduction != TESS_RUN_REDUCTION_EXACT)
        return 0;
    return RING_NBYTES + peer_numel * CHANNEL_NUMEL * PEER_CHANNEL_NBYTES;
}

tess_status session_device_limit(tess_session *s, size_t *nbytes)
{
    size_t free_nbytes = 0;
    size_t total_nbytes = 0;
    TESS_TRY(tess_device_memory(s->device, &free_nbytes, &total_nbytes));
    s->device_before_nbytes = total_nbytes - free_nbytes;
    const size_t collectives = collectives_nbytes(s);
    const size_t margin = collectives + TESS_MAX(TESS_MIN((size_t)MARGIN_NBYTES, total_nbytes / 8),
                                                 total_nbytes / MARGIN_SHARE);
    TESS_CHECK(free_nbytes > margin, TESS_E_FIT,
               "%s: %zu of %zu bytes are free, %zu are kept for its libraries, %zu of them for "
               "collectives; end the programs that use it, or choose another with "
               "CUDA_VISIBLE_DEVICES",
               s->device->name, free_nbytes, total_nbytes, margin, collectives);
    *nbytes = (free_nbytes - margin) / (size_t)s->device_share_numel;
    return TESS_OK;
}

tess_status session_check_host(tess_session *s)
{
    const int node = tess_comm_node_of(s->world, tess_comm_rank(s->world));
    const int rank_numel = tess_comm_node_rank_numel(s->world, node);
    const size_t free_nbytes = tess_memory_free_nbytes();
    TESS_CHECK(
        s->d.plan->host_nbytes <= free_nbytes / (size_t)rank_numel, TESS_E_FIT,
        "rank %d takes %zu bytes of host memory, pinned, beside its device; %zu are free for "
        "the %d ranks of its node: start fewer ranks there, or lower what `tessera plan` "
        "lists under memory on the host",
        tess_comm_rank(s->world), s->d.plan->host_nbytes, free_nbytes, rank_numel);
    return TESS_OK;
}

size_t session_device_used_nbytes(const tess_session *s)
{
    size_t free_nbytes = 0, total_nbytes = 0;
    if (s->device == NULL)
        return 0;
    if (tess_device_memory(s->device, &free_nbytes, &total_nbytes) != TESS_OK) {
        tess_error_clear(); /* a figure for the report: the step has its own errors */
        return 0;
    }
    const size_t now_nbytes = total_nbytes - free_nbytes;
    return now_nbytes > s->device_before_nbytes ? now_nbytes - s->device_before_nbytes : 0;
}

/* ---- libraries ---- */

static tess_attention_shape attention_of(const tess_session *s)
{
    const tess_run *run = s->run;
    const tess_dtype dt = run->compute.dtype == TESS_RUN_DTYPE_F32 ? TESS_F32 : TESS_BF16;
    if (tess_run_is_flux(run)) { /* the largest bucket; others take own kernels */
        const tess_flux_shape *batch = &s->d.flux_shape;
        const int64_t token_numel = batch->image_numel + batch->text_numel;
        return (tess_attention_shape){.dt = dt,
                                      .token_numel = batch->sample_numel * token_numel,
                                      .head_numel = s->d.flux.head_numel,
                                      .kv_head_numel = s->d.flux.head_numel,
                                      .dim = s->d.flux.head_dim,
                                      .longest_numel = token_numel,
                                      .segment_numel = token_numel};
    }
    return (tess_attention_shape){.dt = dt,
                                  .token_numel = run->train.micro_batch * run->data.sequence_length,
                                  .head_numel = s->d.config.head_numel,
                                  .kv_head_numel = s->d.config.kv_head_numel,
                                  .dim = s->d.config.head_dim,
                                  .longest_numel = run->data.sequence_length};
}

static tess_cuda_work work_of(const tess_session *s)
{
    const tess_run *run = s->run;
    /* a plan has room for every place of a pack, so more of them cost memory */
    const int64_t document_numel =
        run->data.packing ? PACK_DOCUMENTS * run->train.micro_batch : run->train.micro_batch;
    return (tess_cuda_work){.attention = {attention_of(s)},
                            .attention_numel = 1,
                            .document_max = document_numel,
                            .is_deterministic = run->shard.reduction == TESS_RUN_REDUCTION_EXACT,
                            .attention_nbytes = ATTENTION_NBYTES,
                            .execution_s = EXECUTION_S};
}

size_t session_planned_library_nbytes(void) { return (size_t)LIBRARY_NBYTES + ATTENTION_NBYTES; }

size_t session_library_nbytes(const tess_session *s)
{
    const tess_cuda_work work = {.attention_nbytes = ATTENTION_NBYTES};
    return s->device != NULL && !is_given(s) ? s->plugin->prepare_nbytes(&work) : 0;
}

tess_status session_prepare_device(tess_session *s)
{
    char note[TESS_CUDA_NOTE_NBYTES] = "";
    if (s->device == NULL || is_given(s))
        return TESS_OK;
    tess_cuda_work work = work_of(s);
    work.slot_nbytes = tess_description_slot_nbytes(&s->d);
    work.kept_nbytes = s->d.kept_nbytes;
    TESS_TRY(s->plugin->prepare(s->device, tess_runtime_stream(s->rt), &work, note));
    tess_log_root(&s->ctx->log, TESS_LOG_INFO, "attention: %s", note);
    return TESS_OK;
}

/* ---- collectives ---- */

tess_status session_connect_devices(tess_session *s)
{
    if (s->device == NULL || is_given(s))
        return TESS_OK;
    const char *why = why_not_direct(s);
    if (why == NULL) {
        const tess_deadlines deadlines = {s->options.deadline_s, s->options.deadline_s};
        tess_log_root(&s->ctx->log, TESS_LOG_INFO,
                      "collectives: %s; %.1f GiB of the device are left to its buffers",
                      s->plugin->collectives->name,
                      (double)collectives_nbytes(s) / (double)(1 << 30));
        return tess_comm_create_gpu(s->world, s->device, s->plugin->collectives, &deadlines,
                                    &s->fabric);
    }
    tess_log_root(&s->ctx->log, TESS_LOG_INFO, "collectives: through host memory and MPI; %s", why);
    return tess_comm_create_staged(s->world, s->device, TESS_STAGED_CHUNK_AUTO, &s->fabric);
}

/* What collectives read and write, in this order on all ranks. */
tess_status session_enroll_arenas(tess_session *s)
{
    static const tess_lifetime life[] = {TESS_LIFE_BASE, TESS_LIFE_SLOT, TESS_LIFE_PARAM,
                                         TESS_LIFE_GRAD};
    tess_comm *comm[2] = {s->fabric, s->owns_group ? s->group : NULL};
    for (int c = 0; c < 2; c++)
        for (int i = 0; i < TESS_NELEM(life) && comm[c] != NULL; i++)
            TESS_TRY(tess_comm_enroll(comm[c], tess_runtime_arena(s->rt, life[i])));
    return TESS_OK;
}

/* Registrations name memory, so they end before it: this comes in front of the runtime's end.
 * Between devices of one node NCCL has no use for memory of cudaMalloc (it shares that of
 * cuMemCreate, or with NCCL_LEGACY_CUDA_REGISTER=1); between nodes it is registered with the
 * network card. */
void session_withdraw_arenas(tess_session *s)
{
    if (s->owns_group)
        tess_comm_withdraw(s->group);
    tess_comm_withdraw(s->fabric);
}

void session_close_device(tess_session *s)
{
    tess_comm_destroy(&s->fabric);
    if (s->device != NULL && !is_given(s))
        s->plugin->device_close(&s->device);
}
