/* tessera train RUN.yaml [KEY=VALUE ...] */
#include "launch/commands.h"
#include "launch/launch.h"
#include "launch/job.h"

enum { KEY_MAP = 256, KEY_MISSING };

/* Where it is one too many it is kept, and the count is refused. */
static error_t add(const char *arg, const char **list, int64_t *numel)
{
    if (*numel <= TESS_CKPT_EXCEPTION_MAX)
        list[(*numel)++] = arg;
    return 0;
}

static tess_ckpt_exceptions exceptions_of(const tess_train_options *train)
{
    return (tess_ckpt_exceptions){.map = train->load_map,
                                  .map_numel = train->load_map_numel,
                                  .missing = train->allow_missing,
                                  .missing_numel = train->allow_missing_numel};
}

static error_t check(struct argp_state *state, const tess_train_options *train)
{
    const tess_ckpt_exceptions exceptions = exceptions_of(train);
    if (train->run.path == NULL)
        return tess_launch_refuse(state, "no run file given");
    return tess_ckpt_exceptions_check(&exceptions) == TESS_OK ? 0 : EINVAL;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    tess_train_options *train = state->input;
    switch (key) {
    case 'a':
        train->accept_config_change = true;
        return 0;
    case KEY_MAP:
        return add(arg, train->load_map, &train->load_map_numel);
    case KEY_MISSING:
        return add(arg, train->allow_missing, &train->allow_missing_numel);
    case TESS_LAUNCH_KEY_MANIFEST:
        return tess_launch_manifest(state, arg, &train->manifest_sha256);
    case ARGP_KEY_ARG:
        return tess_launch_run_arg(state, arg, &train->run);
    case ARGP_KEY_END:
        return check(state, train);
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"accept-config-change", 'a', NULL, 0,
     "Resume although keys that decide the result differ from the checkpoint's", 0},
    {"load-map", KEY_MAP, "STORED=NAME", 0,
     "Read the checkpoint's tensor STORED as this run's NAME; with '*' in both, many at once; "
     "STORED= leaves it unread. May be given again",
     0},
    {"allow-missing", KEY_MISSING, "NAME", 0,
     "Start this tensor of the run new where the checkpoint lacks it; '*' stands for any text. May "
     "be given again",
     0},
    TESS_LAUNCH_MANIFEST_OPTION,
    {0},
};
static const struct argp train_argp = {
    .options = options,
    .parser = parse,
    .args_doc = "RUN.yaml [KEY=VALUE...]",
    .doc = "Train or resume the run that RUN.yaml describes. Alone it is one rank, under mpirun "
           "many. KEY=VALUE changes a key of the run file, as in train.steps=200.\v"
           "SIGUSR1 saves at the next step and stops with exit code 75. SIGUSR2 shows the latest "
           "collectives and the stack of every rank on stderr, and training goes on. 'tessera help "
           "run-file' "
           "lists the keys.",
};

static tess_status work(tess_session *session, tess_comm *comm, void *arg)
{
    (void)comm;
    (void)arg;
    return tess_session_train(session);
}

static tess_status run(const tess_train_options *train)
{
    tess_session_options o = tess_launch_session(&train->run, TESS_SESSION_TRAIN, NULL);
    o.accept_config_change = train->accept_config_change;
    o.exceptions = exceptions_of(train);
    o.manifest_sha256 = train->manifest_sha256;
    o.needs_data = true;
    return tess_launch_job(&train->common, &o, work, NULL);
}

int tess_cmd_train(int argc, char **argv)
{
    tess_train_options train = {0};
    tess_status st = tess_launch_parse(&train_argp, argc, argv, &train, &train.common);
    if (st == TESS_OK && !train.common.is_help)
        st = run(&train);
    tess_launch_run_fini(&train.run);
    return tess_launch_finish(&train.common, st);
}
