/* The program: finds the subcommand and runs it. */
#include <argp.h>
#include <stdio.h>
#include <string.h>

#include "core/status.h"
#include "launch/commands.h"
#include "launch/launch.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
} commands[] = {
#define X(name, summary) {#name, tess_cmd_##name, summary},
    TESS_COMMAND_LIST(X)
#undef X
};

static tess_status print_help(void)
{
    TESS_TRY(tess_launch_print("Usage: tessera COMMAND [OPTION...]\n"
                               "Train, adapt and check models on many ranks.\n\n"));
    for (int i = 0; i < TESS_NELEM(commands); i++) {
        char line[160];
        (void)snprintf(line, sizeof line, "  %-10s %s\n", commands[i].name, commands[i].summary);
        TESS_TRY(tess_launch_print(line));
    }
    return tess_launch_print(
        "\n'tessera COMMAND --help' explains a command, 'tessera help run-file' lists the keys of\n"
        "the run file, 'tessera --version' prints the version. Results go to stdout, progress and\n"
        "errors to stderr. Exit codes: 0 done, 64 usage, 65 input or configuration refused,\n"
        "66 no valid checkpoint, 70 internal error, 71 out of memory, 74 input or output failed,\n"
        "75 stopped on request after a save, 76 non-finite numbers, 86 a rank or link is lost.\n");
}

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
        return tess_launch_finish(&common, print_help());
    if (strcmp(name, "--version") == 0)
        return tess_launch_finish(&common, tess_launch_print("tessera " TESS_VERSION "\n"));
    return tess_launch_finish(&common, no_command(argc, argv));
}
