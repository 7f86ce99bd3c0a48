/* tessera check [RUN.yaml [KEY=VALUE...]] [--dir DIR] */
#include "core/memory.h"
#include "launch/commands.h"
#include "launch/job.h"
#include "launch/launch.h"
#include "train/describe/describe.h"
#include "train/preflight/preflight.h"

static error_t parse(int key, char *arg, struct argp_state *state)
{
    tess_check_options *check = state->input;
    switch (key) {
    case 'd':
        check->dir = arg;
        return 0;
    case 'j':
        check->is_json = true;
        return 0;
    case ARGP_KEY_ARG:
        return tess_launch_run_arg(state, arg, &check->run);
    case ARGP_KEY_END:
        if (check->run.path != NULL && check->dir != NULL)
            return tess_launch_refuse(state, "--dir beside a run file: give output.dir=DIR");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"dir", 'd', "DIR", 0,
     "Folder that all ranks must share, in place of a run's output.dir; without either the present "
     "one",
     0},
    {"json", 'j', NULL, 0, "Print JSON, with every measured pair of ranks", 0},
    {0},
};
static const struct argp check_argp = {
    .options = options,
    .parser = parse,
    .args_doc = "[RUN.yaml [KEY=VALUE...]]",
    .doc = "Look at a launch before a run: under mpirun or srun as the run itself, print every "
           "rank's host, cores, memory, disk, clock and device, the libraries, and the latency and "
           "bandwidth of the links, and name what is odd.\v"
           "Odd is what differs from most ranks (program, libraries, driver), a clock off by more "
           "than 1 s, less than half the median of memory or disk, a folder that rank 0 writes and "
           "another rank does not see, and a link slower than half of its like. Exit code 65 when "
           "anything is.",
};

static tess_status print_report(const tess_check_options *check, const tess_preflight *p)
{
    char *text = NULL;
    TESS_TRY(check->is_json ? tess_preflight_json(p, &text) : tess_preflight_text(p, &text));
    tess_status st = tess_launch_print(text);
    if (st == TESS_OK && check->is_json)
        st = tess_launch_print("\n");
    tess_free(text);
    return st;
}

static tess_status work(const tess_check_options *check, const tess_ctx *ctx, tess_comm *comm,
                        const char *dir)
{
    const tess_preflight_request request = {.dir = dir, .version = TESS_VERSION};
    tess_preflight p;
    TESS_TRY(tess_preflight_run(ctx, comm, &request, &p));
    const int odd_numel = p.finding_numel;
    const bool is_root = tess_comm_rank(comm) == 0;
    const tess_status st = tess_agree(comm, is_root ? print_report(check, &p) : TESS_OK);
    tess_preflight_fini(&p);
    TESS_TRY(st);
    TESS_CHECK(odd_numel == 0, TESS_E_CONFIG, "check: %d odd thing%s in this launch, listed above",
               odd_numel, odd_numel == 1 ? "" : "s");
    return TESS_OK;
}

/* Every rank reads the run file: that it can is part of the question. */
static tess_status read_run(const tess_check_options *check, const tess_ctx *ctx, tess_run **run)
{
    char *text = NULL;
    size_t nbytes = 0;
    if (check->run.path == NULL)
        return TESS_OK;
    TESS_TRY(
        tess_io_read_all(ctx->io, check->run.path, TESS_RUN_TEXT_LIMIT_NBYTES, &text, &nbytes));
    const tess_run_source source = {.text = text,
                                    .nbytes = nbytes,
                                    .name = check->run.path,
                                    .overrides = check->run.override,
                                    .override_numel = check->run.override_numel};
    const tess_status st = tess_run_parse_with(&source, tess_describe_family, ctx, run);
    tess_free(text);
    return st;
}

static tess_status body(const tess_ctx *ctx, tess_comm *comm, void *arg)
{
    const tess_check_options *check = arg;
    tess_run *run = NULL;
    tess_status st = tess_agree(comm, read_run(check, ctx, &run));
    const char *dir = run != NULL ? run->output.dir : check->dir != NULL ? check->dir : ".";
    if (st == TESS_OK)
        st = work(check, ctx, comm, dir);
    tess_run_destroy(&run);
    return st;
}

int tess_cmd_check(int argc, char **argv)
{
    tess_check_options check = {0};
    tess_status st = tess_launch_parse(&check_argp, argc, argv, &check, &check.common);
    if (st == TESS_OK && !check.common.is_help)
        st = tess_launch_ranks(&check.common, body, &check);
    tess_launch_run_fini(&check.run);
    return tess_launch_finish(&check.common, st);
}
