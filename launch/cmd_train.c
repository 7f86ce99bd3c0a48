/* tessera train RUN.yaml [KEY=VALUE ...] */
#include "launch/commands.h"
#include "launch/launch.h"
#include "launch/job.h"

static error_t parse(int key, char *arg, struct argp_state *state)
{
    tess_train_options *train = state->input;
    switch (key) {
    case 'a':
        train->accept_config_change = true;
        return 0;
    case TESS_LAUNCH_KEY_MANIFEST:
        return tess_launch_manifest(state, arg, &train->manifest_sha256);
    case ARGP_KEY_ARG:
        return tess_launch_run_arg(state, arg, &train->run);
    case ARGP_KEY_END:
        return train->run.path == NULL ? tess_launch_refuse(state, "no run file given") : 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"accept-config-change", 'a', NULL, 0,
     "Resume although keys that decide the result differ from the checkpoint's", 0},
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
