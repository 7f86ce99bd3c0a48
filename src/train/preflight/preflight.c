#include "train/preflight/preflight.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/digest.h"
#include "core/memory.h"
#include "kernels/cuda/plugin.h"
#include "kernels/kernels.h"
#include "train/data/hdf5_layout.h"
#include "train/preflight/preflight_priv.h"
#include "train/session_priv.h"

enum { PROGRAM_LIMIT_NBYTES = 256 << 20, PROC_LIMIT_NBYTES = 1 << 16, TOKEN_NBYTES = 32 };

static const double TOKEN_WAIT_S = 3.0; /* file systems that cache directories show it late */

/* ---- a rank's own ---- */

/* Value of "NAME:\tVALUE\n" in the text of a /proc file; empty where there is none. */
static void proc_value(const char *text, const char *name, char *out, size_t out_nbytes)
{
    const char *at = strstr(text, name);
    out[0] = '\0';
    if (at == NULL)
        return;
    at += strlen(name);
    at += strspn(at, ":\t ");
    snprintf(out, out_nbytes, "%.*s", (int)strcspn(at, "\n"), at);
}

static void describe_machine(tess_preflight_card *card)
{
    char text[PROC_LIMIT_NBYTES];
    cpu_set_t set;
    CPU_ZERO(&set);
    (void)gethostname(card->host, sizeof card->host - 1);
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        card->core_numel = CPU_COUNT(&set);
    tess_io_kernel_text("/proc/self/status", text, sizeof text);
    proc_value(text, "Cpus_allowed_list", card->cores, sizeof card->cores);
    proc_value(text, "Mems_allowed_list", card->numa, sizeof card->numa);
    tess_io_kernel_text("/proc/driver/nvidia/version", text, sizeof text);
    const char *number = strstr(text, "Module  ");
    if (number != NULL)
        snprintf(card->driver, sizeof card->driver, "%.*s", (int)strcspn(number + 8, " "),
                 number + 8);
    card->memory_free_nbytes = (int64_t)tess_memory_free_nbytes();
    snprintf(card->kernels, sizeof card->kernels, "%s", tess_cpu_path_name(tess_cpu_path_best()));
}

/* The build is the bytes of the program itself. */
static void describe_program(tess_io *io, const char *version, tess_preflight_card *card)
{
    char *bytes = NULL, hex[9] = "unknown";
    size_t nbytes = 0;
    if (tess_io_read_all(io, "/proc/self/exe", PROGRAM_LIMIT_NBYTES, &bytes, &nbytes) == TESS_OK) {
        const tess_xxh128 digest = tess_xxh128_of(bytes, nbytes);
        tess_hex(digest.byte, 4, hex);
    }
    tess_error_clear();
    tess_free(bytes);
    snprintf(card->program, sizeof card->program, "%.40s build %s", version, hex);
    tess_comm_library(card->mpi, sizeof card->mpi);
    tess_h5_version(card->hdf5, sizeof card->hdf5);
}

/* No device is no failure: the card then says nothing. */
static void describe_device(tess_io *io, tess_preflight_card *card)
{
    const tess_cuda_plugin *plugin = NULL;
    tess_cuda_info info;
    int numel = 0;
    if (session_open_plugin(io, false, &plugin) == TESS_OK) {
        snprintf(card->cuda, sizeof card->cuda, "%s", plugin->versions);
        if (plugin->device_numel(&numel) == TESS_OK && numel > 0 &&
            plugin->device_info(card->node_rank % numel, &info) == TESS_OK)
            snprintf(card->device, sizeof card->device, "%.64s at %.31s, %d visible", info.name,
                     info.bus_id, numel);
    }
    tess_error_clear();
}

/* ---- the shared folder ---- */

typedef struct token {
    char path[512];
    char text[TOKEN_NBYTES];
} token;

static tess_status lay_token(tess_io *io, const char *dir, token *t)
{
    TESS_TRY(tess_io_mkdirs(io, dir));
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    const int pid = (int)getpid();
    const int n = snprintf(t->path, sizeof t->path, "%s/.check-%d-%ld", dir, pid, now.tv_nsec);
    TESS_CHECK(n > 0 && (size_t)n < sizeof t->path, TESS_E_ARG, "'%.64s...': path too long", dir);
    snprintf(t->text, sizeof t->text, "%d %lld %ld", pid, (long long)now.tv_sec, now.tv_nsec);
    return tess_io_write_all(io, t->path, t->text, sizeof t->text);
}

static bool has_token(tess_io *io, const token *t)
{
    char *text = NULL;
    size_t nbytes = 0;
    const bool is_read = tess_io_read_all(io, t->path, TOKEN_NBYTES, &text, &nbytes) == TESS_OK;
    const bool is_it = is_read && nbytes == sizeof t->text && memcmp(text, t->text, nbytes) == 0;
    tess_free(text);
    return is_it;
}

static void look_for_token(tess_io *io, const char *dir, const token *t, tess_preflight_card *card)
{
    const double until_s = tess_clock_s() + TOKEN_WAIT_S;
    const struct timespec nap = {0, 50000000};
    tess_io_space space = {0};
    tess_error_clear();
    while (!(card->sees_folder = has_token(io, t)) && tess_clock_s() < until_s) {
        tess_error_clear();
        (void)nanosleep(&nap, NULL);
    }
    if (!card->sees_folder)
        snprintf(card->folder, sizeof card->folder, "%s", tess_error_message());
    tess_error_clear();
    if (tess_io_statvfs(io, dir, &space) == TESS_OK)
        card->disk_free_nbytes = space.free_nbytes;
    tess_error_clear();
}

static tess_status check_folder(const tess_ctx *ctx, tess_comm *world, const char *dir,
                                tess_preflight_card *card)
{
    token t = {.path = ""};
    const bool is_root = tess_comm_rank(world) == 0;
    TESS_TRY(tess_agree(world, is_root ? lay_token(ctx->io, dir, &t) : TESS_OK));
    TESS_TRY(tess_comm_bcast(world, 0, &t, sizeof t));
    look_for_token(ctx->io, dir, &t, card);
    TESS_TRY(tess_comm_barrier(world)); /* before it goes */
    return tess_agree(world, is_root ? tess_io_unlink(ctx->io, t.path, false) : TESS_OK);
}

/* ---- all of it ---- */

static double calendar_s(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static tess_status fill_card(const tess_ctx *ctx, tess_comm *world,
                             const tess_preflight_request *request, tess_preflight_card *card)
{
    memset(card, 0, sizeof *card);
    card->node = tess_comm_node_of(world, tess_comm_rank(world));
    card->node_rank = tess_comm_node_rank(world);
    describe_machine(card);
    describe_program(ctx->io, request->version, card);
    describe_device(ctx->io, card);
    TESS_TRY(check_folder(ctx, world, request->dir, card));
    TESS_TRY(tess_comm_barrier(world));
    card->clock_s = calendar_s();
    return TESS_OK;
}

static tess_status alloc_report(tess_preflight *p)
{
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(p->world, sizeof *p->card, &memory));
    p->card = memory;
    TESS_TRY(tess_alloc_array(TESS_PREFLIGHT_FINDING_MAX, sizeof *p->finding, &memory));
    p->finding = memory;
    return TESS_OK;
}

static tess_status examine(const tess_ctx *ctx, tess_comm *world,
                           const tess_preflight_request *request, tess_preflight *p)
{
    tess_preflight_card card;
    TESS_TRY(tess_agree(world, alloc_report(p)));
    TESS_TRY(fill_card(ctx, world, request, &card));
    TESS_TRY(tess_comm_gather_bytes(world, 0, &card, sizeof card,
                                    tess_comm_rank(world) == 0 ? p->card : NULL));
    TESS_TRY(preflight_links(world, p));
    if (tess_comm_rank(world) == 0)
        tess_preflight_judge(p);
    int64_t numel = p->finding_numel;
    TESS_TRY(tess_comm_control(world, NULL, 0, &numel, 1));
    p->finding_numel = (int)numel;
    return TESS_OK;
}

tess_status tess_preflight_run(const tess_ctx *ctx, tess_comm *world,
                               const tess_preflight_request *request, tess_preflight *out)
{
    *out = (tess_preflight){.world = tess_comm_world(world),
                            .node_numel = tess_comm_node_numel(world),
                            .dir = request->dir};
    const tess_status st = examine(ctx, world, request, out);
    if (st != TESS_OK)
        tess_preflight_fini(out);
    return st;
}

void tess_preflight_fini(tess_preflight *p)
{
    tess_free(p->finding);
    tess_free(p->pair);
    tess_free(p->card);
    *p = (tess_preflight){0};
}
