#include "launch/job.h"

#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "core/memory.h"
#include "format/json.h"
#include "shard/ckpt.h"
#include "train/describe/describe.h"
#include "train/strbuf.h"

static volatile sig_atomic_t stop_request;

static void on_stop_request(int number)
{
    (void)number;
    stop_request = 1;
}

void tess_launch_listen(void)
{
    struct sigaction action = {.sa_handler = on_stop_request, .sa_flags = SA_RESTART};
    (void)sigaction(SIGUSR1, &action, NULL);
    action.sa_handler = SIG_IGN;
    (void)sigaction(SIGXFSZ, &action,
                    NULL); /* a full quota is an error of the write, not a death */
    (void)sigaction(SIGPIPE, &action, NULL);
    /* Before any thread starts, so that all of them inherit it: the watchdog's listener takes it.
     */
    sigset_t asked;
    sigemptyset(&asked);
    sigaddset(&asked, SIGUSR2);
    (void)pthread_sigmask(SIG_BLOCK, &asked, NULL);
}

static void show_on_stderr(void *arg, const char *text)
{
    (void)arg;
    fputs(text, stderr);
    fflush(stderr);
}

static int terminal_columns(void)
{
    struct winsize size;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

/* Seconds from the environment, 0 when it does not say. */
static tess_status read_seconds(const char *name, double *value_s)
{
    static const double range[] = {0.1, 1e5};
    const char *text = getenv(name);
    *value_s = 0.0;
    TESS_CHECK(text == NULL || *text == '\0' || tess_launch_read_f64(text, range, value_s),
               TESS_E_CONFIG,
               "%s: expected seconds from %g to %g, found '%.100s'; leave it unset for the default",
               name, range[0], range[1], text);
    return TESS_OK;
}

/*
 * The engine needs to know about its thread before MPI starts, so the run file is looked at early.
 * What is wrong with it is said later, by all ranks together; ranks that differ here still give the
 * same bits.
 */
static tess_comm_thread thread_of(const tess_ctx *ctx, const tess_session_options *o)
{
    char *text = NULL;
    size_t nbytes = 0;
    tess_run *run = NULL;
    tess_comm_thread thread = TESS_COMM_THREAD_OFF;
    tess_status st =
        tess_io_read_all(ctx->io, o->run_path, TESS_RUN_TEXT_LIMIT_NBYTES, &text, &nbytes);
    const tess_run_source source = {.text = text,
                                    .nbytes = nbytes,
                                    .name = o->run_path,
                                    .overrides = o->overrides,
                                    .override_numel = o->override_numel};
    if (st == TESS_OK)
        st = tess_run_parse_with(&source, tess_describe_family, ctx, &run);
    if (st == TESS_OK && run->compute.comm_thread == TESS_RUN_SWITCH_ON)
        thread = TESS_COMM_THREAD_ON;
    tess_run_destroy(&run);
    tess_free(text);
    tess_error_clear();
    return thread;
}

static tess_status open_comm(tess_comm_thread thread, double deadline_s, tess_ctx *ctx,
                             tess_comm **comm)
{
    const tess_deadlines deadlines = {.start_s = deadline_s, .collective_s = deadline_s};
    if (!tess_comm_is_launched())
        return tess_comm_create_self(comm);
    TESS_TRY(tess_comm_create_mpi(NULL, NULL, thread, &deadlines, comm));
    ctx->log.rank = tess_comm_rank(*comm); /* ranks are numbered by node */
    return TESS_OK;
}

/* A failure that peers cannot know of ends all of them. */
static void end_if_lost(const tess_common_options *common, tess_comm *comm, tess_status st,
                        bool is_broken)
{
    if (st == TESS_OK || (!tess_status_is_fatal(st) && !is_broken))
        return;
    tess_launch_report(common, st, true);
    if (comm != NULL)
        tess_comm_abort(comm, tess_status_exit_code(st));
    _Exit(tess_status_exit_code(st));
}

static void close_comm(const tess_common_options *common, tess_status st, tess_comm **comm)
{
    if (*comm != NULL) /* before the others can leave: mpirun ends the job at the first exit */
        tess_launch_report(common, st, false);
    tess_comm_destroy(comm);
}

tess_status tess_launch_ranks(const tess_common_options *common, tess_ranks_body body, void *arg)
{
    tess_ctx ctx = {0};
    tess_comm *comm = NULL;
    double deadline_s = 0.0;
    TESS_TRY(read_seconds("TESSERA_DEADLINE_S", &deadline_s));
    TESS_TRY(tess_launch_open(common, tess_launch_rank(), &ctx));
    tess_status st = open_comm(TESS_COMM_THREAD_OFF, deadline_s, &ctx, &comm);
    if (st == TESS_OK)
        st = body(&ctx, comm, arg);
    end_if_lost(common, comm, st, false);
    close_comm(common, st, &comm);
    tess_launch_close(&ctx);
    return st;
}

tess_status tess_launch_job(const tess_common_options *common, const tess_session_options *options,
                            tess_job_body body, void *arg)
{
    tess_ctx ctx = {0};
    tess_comm *comm = NULL;
    tess_session *session = NULL;
    tess_session_options o = *options;
    o.stop_request = &stop_request;
    TESS_TRY(read_seconds("TESSERA_DEADLINE_S", &o.deadline_s));
    TESS_TRY(read_seconds("TESSERA_PAUSE_S", &o.pause_s));
    o.show = show_on_stderr;
    o.is_terminal = isatty(STDERR_FILENO) != 0;
    o.columns = terminal_columns();
    tess_launch_listen();
    TESS_TRY(tess_launch_open(common, tess_launch_rank(), &ctx));
    tess_status st = open_comm(thread_of(&ctx, &o), o.deadline_s, &ctx, &comm);
    if (st == TESS_OK)
        st = tess_session_open(&ctx, comm, &o, &session);
    if (st == TESS_OK)
        st = body(session, comm, arg);
    end_if_lost(common, comm, st, tess_session_is_broken(session));
    tess_session_close(&session);
    close_comm(common, st, &comm);
    tess_launch_close(&ctx);
    return st;
}

tess_session_options tess_launch_session(const tess_run_options *run, tess_session_kind kind,
                                         const char *checkpoint)
{
    return (tess_session_options){.kind = kind,
                                  .run_path = run->path,
                                  .overrides = run->override,
                                  .override_numel = run->override_numel,
                                  .checkpoint = checkpoint};
}

/* ---- from a checkpoint ---- */

static tess_status to_buffer(void *arg, const char *text, size_t nbytes)
{
    return tess_strbuf_add_bytes(arg, text, nbytes);
}

/* The resolved run file that a checkpoint carries. */
static tess_status read_run(const tess_ctx *ctx, const char *dir, const char *manifest_sha256,
                            char **text)
{
    tess_strbuf buffer = {0};
    tess_json *root = NULL;
    const tess_json *state = NULL;
    const char *run = NULL;
    const tess_ckpt_printer printer = {.sink = to_buffer, .arg = &buffer, .is_json = true};
    tess_status st = tess_ckpt_inspect(ctx, dir, manifest_sha256, &printer);
    if (st == TESS_OK)
        st = tess_json_parse(dir, buffer.text, buffer.nbytes, &root);
    if (st == TESS_OK)
        st = tess_json_get_object(root, "state", &state);
    if (st == TESS_OK)
        st = tess_json_get_string(state, "run", &run);
    if (st == TESS_OK)
        st = tess_strdup(run, text);
    tess_json_destroy(&root);
    tess_strbuf_fini(&buffer);
    return st;
}

/* The run directory is the checkpoint's parent, wherever it was moved to. */
tess_status tess_launch_checkpoint(const tess_common_options *common, const tess_ctx *ctx,
                                   const char *path, const char *manifest_sha256,
                                   tess_job_body body, void *arg)
{
    char dir[PATH_MAX], output[PATH_MAX + 16], *text = NULL;
    TESS_TRY(tess_ckpt_resolve(ctx, path, dir, sizeof dir));
    TESS_TRY(read_run(ctx, dir, manifest_sha256, &text));
    snprintf(output, sizeof output, "output.dir=%s/..", dir);
    const tess_run_override override = {.text = output, .argument_idx = 1};
    const tess_session_options o = {.kind = TESS_SESSION_READER,
                                    .run_path = dir,
                                    .run_text = text,
                                    .overrides = &override,
                                    .override_numel = 1,
                                    .may_lack_device = true,
                                    .manifest_sha256 = manifest_sha256,
                                    .checkpoint = dir};
    const tess_status st = tess_launch_job(common, &o, body, arg);
    tess_free(text);
    return st;
}
