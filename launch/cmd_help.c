/* tessera help [COMMAND | run-file] */
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "launch/commands.h"
#include "launch/launch.h"

static error_t parse(int key, char *arg, struct argp_state *state)
{
    const char **topic = state->input;
    const char **slots[] = {topic};
    return key == ARGP_KEY_ARG ? tess_launch_positional(state, arg, slots, 1) : ARGP_ERR_UNKNOWN;
}

static const struct argp_option options[] = {{0}};
static const struct argp help_argp = {
    .options = options,
    .parser = parse,
    .args_doc = "[COMMAND]\nrun-file",
    .doc = "Show all commands, the help of one, or every key of the run file as Markdown.",
};

tess_status tess_launch_overview(void)
{
    static const char *const commands[][2] = {
#define X(name, summary) {#name, summary},
        TESS_COMMAND_LIST(X)
#undef X
    };
    TESS_TRY(tess_launch_print("Usage: tessera COMMAND [OPTION...]\n"
                               "Train, adapt and check models on many ranks.\n\n"));
    for (int i = 0; i < TESS_NELEM(commands); i++) {
        char line[160];
        (void)snprintf(line, sizeof line, "  %-10s %s\n", commands[i][0], commands[i][1]);
        TESS_TRY(tess_launch_print(line));
    }
    return tess_launch_print(
        "\n'tessera COMMAND --help' explains a command, 'tessera help run-file' lists the keys of\n"
        "the run file, 'tessera --version' prints the version. Results go to stdout, progress and\n"
        "errors to stderr. Exit codes: 0 done, 64 usage, 65 input or configuration refused,\n"
        "66 no valid checkpoint, 70 internal error, 71 out of memory, 74 input or output failed,\n"
        "75 stopped on request after a save, 76 non-finite numbers or spikes,\n"
        "86 a rank or link is lost.\n");
}

static tess_status print_run_file(void)
{
    char *text = NULL;
    size_t nbytes = 0;
    TESS_TRY(tess_run_reference(&text, &nbytes));
    const tess_status st = tess_launch_print(text);
    tess_free(text);
    return st;
}

int tess_cmd_help(int argc, char **argv)
{
    static char help_option[] = "--help";
    tess_common_options common = {0};
    const char *topic = NULL;
    tess_status st = tess_launch_parse(&help_argp, argc, argv, &topic, &common);
    if (st != TESS_OK || common.is_help)
        return tess_launch_finish(&common, st);
    if (topic == NULL)
        return tess_launch_finish(&common, tess_launch_overview());
    if (strcmp(topic, "run-file") == 0)
        return tess_launch_finish(&common, print_run_file());
#define X(name, summary)                                                                           \
    if (strcmp(topic, #name) == 0) {                                                               \
        static char command[] = #name;                                                             \
        char *arguments[] = {command, help_option, NULL};                                          \
        return tess_cmd_##name(2, arguments);                                                      \
    }
    TESS_COMMAND_LIST(X)
#undef X
    st = TESS_FAIL(TESS_E_ARG, "help: unknown command '%.100s'; see 'tessera --help'", topic);
    return tess_launch_finish(&common, st);
}
