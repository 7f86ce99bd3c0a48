/* tessera help [COMMAND | run-file] */
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
    .doc = "Show the help of a command, or every key of the run file as Markdown.",
};

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
        topic = "help";
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
