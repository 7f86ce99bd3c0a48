/* The program: finds the subcommand and runs it. */
#include <argp.h>
#include <string.h>

#include "core/status.h"
#include "launch/commands.h"
#include "launch/launch.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} commands[] = {
#define X(name, summary) {#name, tess_cmd_##name},
    TESS_COMMAND_LIST(X)
#undef X
};

static tess_status no_command(int argc, char **argv)
{
    if (argc < 2)
        return TESS_FAIL(TESS_E_ARG, "no command given; see 'tessera --help'");
    return TESS_FAIL(TESS_E_ARG, "unknown command '%.100s'; see 'tessera --help'", argv[1]);
}

int main(int argc, char **argv)
{
    const tess_common_options common = {0};
    const char *name = argc < 2 ? "" : argv[1];
    tess_launch_prepare_mpi();
    for (int i = 0; i < TESS_NELEM(commands); i++)
        if (strcmp(commands[i].name, name) == 0)
            return commands[i].run(argc - 1, argv + 1);
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)
        return tess_launch_finish(&common, tess_launch_overview());
    if (strcmp(name, "--version") == 0)
        return tess_launch_finish(&common, tess_launch_print("tessera " TESS_VERSION "\n"));
    return tess_launch_finish(&common, no_command(argc, argv));
}
