/*
 * Argument parsing by argp.
 *
 * [Note: one line per error] argp prints two lines and exits by itself. Here it does neither: it
 * stops, and the line that is printed comes from the error record like every other error, once per
 * job and not once per rank.
 */
#include "launch/launch.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"

enum { TEXT_NBYTES = 512, NAME_NBYTES = 64 };

/* Parent of a command's own parser and of the options that all commands have. */
typedef struct parse_root {
    void *input;
    tess_common_options *common;
} parse_root;

enum { STOP_AFTER_HELP = ECANCELED };

static error_t on_common(int key, char *arg, struct argp_state *state)
{
    (void)arg;
    parse_root *root = state->input;
    if (key == 'v') {
        root->common->is_verbose = true;
        return 0;
    }
    if (key != 'h')
        return ARGP_ERR_UNKNOWN;
    root->common->is_help = true;
    return STOP_AFTER_HELP;
}

static const struct argp_option common_options[] = {
    {"verbose", 'v', NULL, 0, "Say more on stderr, and where an error came from", 100},
    {"help", 'h', NULL, 0, "Print this page", 101},
    {0},
};
static const struct argp common_argp = {.options = common_options, .parser = on_common};

static error_t on_root(int key, char *arg, struct argp_state *state)
{
    (void)arg;
    parse_root *root = state->input;
    if (key != ARGP_KEY_INIT)
        return ARGP_ERR_UNKNOWN;
    state->child_inputs[0] = root->input;
    state->child_inputs[1] = root;
    return 0;
}

error_t tess_launch_refuse(const struct argp_state *state, const char *fmt, ...)
{
    char text[TEXT_NBYTES];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    (void)TESS_FAIL(TESS_E_ARG, "%s: %s; see 'tessera %s --help'", state->name, text, state->name);
    return EINVAL;
}

/* The option of that long name or letter, NULL where there is none. No abbreviations: a new option
 * must never change what an old command line means. */
static const struct argp_option *find_option(const struct argp *argp, const char *name,
                                             size_t name_nbytes, int letter)
{
    const struct argp_option *const tables[] = {argp->options, common_options};
    for (int i = 0; i < TESS_NELEM(tables); i++) {
        for (const struct argp_option *option = tables[i]; option->name != NULL; option++) {
            const bool is_name = name != NULL && strlen(option->name) == name_nbytes &&
                                 memcmp(option->name, name, name_nbytes) == 0;
            if (is_name || (letter != 0 && option->key == letter))
                return option;
        }
    }
    return NULL;
}

static tess_status wrong_option(const char *command, const char *why, const char *arg)
{
    return TESS_FAIL(TESS_E_ARG, "%s: %s '%.100s'; see 'tessera %s --help'", command, why, arg,
                     command);
}

static tess_status check_long(const struct argp *argp, int argc, char **argv, int *at)
{
    const char *arg = argv[*at];
    const size_t name_nbytes = strcspn(arg + 2, "=");
    const bool has_value = arg[2 + name_nbytes] == '=';
    const struct argp_option *option = find_option(argp, arg + 2, name_nbytes, 0);
    if (option == NULL)
        return wrong_option(argv[0], "unknown option", arg);
    if (option->arg == NULL && has_value)
        return wrong_option(argv[0], "no value is taken by option", arg);
    if (option->arg == NULL || has_value)
        return TESS_OK;
    *at += 1;
    return *at < argc ? TESS_OK : wrong_option(argv[0], "a value is needed by option", arg);
}

static tess_status check_letters(const struct argp *argp, int argc, char **argv, int *at)
{
    const char *arg = argv[*at];
    for (const char *letter = arg + 1; *letter != '\0'; letter++) {
        const struct argp_option *option = find_option(argp, NULL, 0, *letter);
        if (option == NULL)
            return wrong_option(argv[0], "unknown option", arg);
        if (option->arg == NULL)
            continue;
        *at += letter[1] == '\0';
        return *at < argc ? TESS_OK : wrong_option(argv[0], "a value is needed by option", arg);
    }
    return TESS_OK;
}

/* argp does not tell what it stopped at, so options are looked up before it sees them. */
static tess_status check_options(const struct argp *argp, int argc, char **argv)
{
    for (int at = 1; at < argc && strcmp(argv[at], "--") != 0; at++) {
        if (strncmp(argv[at], "--", 2) == 0)
            TESS_TRY(check_long(argp, argc, argv, &at));
        else if (argv[at][0] == '-' && argv[at][1] != '\0')
            TESS_TRY(check_letters(argp, argc, argv, &at));
    }
    return TESS_OK;
}

tess_status tess_launch_parse(const struct argp *argp, int argc, char **argv, void *input,
                              tess_common_options *common)
{
    const char *trace = getenv("TESSERA_TRACE");
    common->is_verbose = trace != NULL && strcmp(trace, "1") == 0;
    parse_root root = {.input = input, .common = common};
    const struct argp_child children[] = {{argp, 0, NULL, 0}, {&common_argp, 0, NULL, 0}, {0}};
    const struct argp parent = {.parser = on_root, .children = children};
    const unsigned flags = ARGP_NO_EXIT | ARGP_NO_HELP | ARGP_NO_ERRS | ARGP_IN_ORDER;
    TESS_TRY(check_options(argp, argc, argv));
    const error_t error = argp_parse(&parent, argc, argv, flags, NULL, &root);
    if (common->is_help) {
        char name[NAME_NBYTES];
        snprintf(name, sizeof name, "tessera %.40s", argv[0]);
        argp_help(&parent, stdout, ARGP_HELP_SHORT_USAGE | ARGP_HELP_LONG | ARGP_HELP_PRE_DOC,
                  name);
        argp_help(&parent, stdout, ARGP_HELP_POST_DOC, name);
        return TESS_OK;
    }
    if (error == 0)
        return TESS_OK;
    if (tess_error_status() != TESS_OK)
        return tess_error_status();
    return TESS_FAIL(TESS_E_ARG, "%s: arguments refused: %s; see 'tessera %s --help'", argv[0],
                     strerror(error), argv[0]);
}

error_t tess_launch_int(const struct argp_state *state, const char *option, const char *arg,
                        const int64_t range[2], int64_t *out)
{
    char *end = NULL;
    errno = 0;
    const bool starts_well = *arg == '-' || (*arg >= '0' && *arg <= '9');
    const long long value = strtoll(arg, &end, 10);
    if (!starts_well || errno != 0 || *end != '\0' || value < range[0] || value > range[1])
        return tess_launch_refuse(
            state, "%s: expected an integer from %" PRId64 " to %" PRId64 ", found '%.100s'",
            option, range[0], range[1], arg);
    *out = value;
    return 0;
}

bool tess_launch_read_f64(const char *text, const double range[2], double *out)
{
    char *end = NULL;
    const bool is_decimal = *text != '\0' && strspn(text, "+-.0123456789eE") == strlen(text);
    const double value = strtod(text, &end);
    if (!is_decimal || *end != '\0' || !(value >= range[0] && value <= range[1]))
        return false;
    *out = value;
    return true;
}

error_t tess_launch_f64(const struct argp_state *state, const char *option, const char *arg,
                        const double range[2], double *out)
{
    if (!tess_launch_read_f64(arg, range, out))
        return tess_launch_refuse(state, "%s: expected a number from %g to %g, found '%.100s'",
                                  option, range[0], range[1], arg);
    return 0;
}

error_t tess_launch_run_arg(const struct argp_state *state, const char *arg, tess_run_options *run)
{
    if (run->path == NULL) {
        run->path = arg;
        return 0;
    }
    void *grown = run->override;
    if (tess_realloc_array(run->override_numel, run->override_numel + 1, sizeof *run->override,
                           &grown) != TESS_OK)
        return EINVAL;
    run->override = grown;
    /* state->argv[0] is the command, which is argument 1 of the program. */
    run->override[run->override_numel++] =
        (tess_run_override){.text = arg, .argument_idx = state->next};
    return 0;
}

void tess_launch_run_fini(tess_run_options *run)
{
    tess_free(run->override);
    *run = (tess_run_options){0};
}

error_t tess_launch_one_source(const struct argp_state *state, const char *checkpoint,
                               const char *adapter, const char *manifest_sha256)
{
    if (checkpoint != NULL && adapter != NULL)
        return tess_launch_refuse(state, "--checkpoint and --adapter: give one of them");
    const bool is_none = adapter != NULL || (checkpoint != NULL && strcmp(checkpoint, "none") == 0);
    return manifest_sha256 != NULL && is_none
               ? tess_launch_refuse(state, "--manifest-sha256: no checkpoint is read with %s",
                                    adapter != NULL ? "--adapter" : "--checkpoint none")
               : 0;
}

error_t tess_launch_manifest(const struct argp_state *state, const char *arg, const char **out)
{
    const size_t nbytes = strlen(arg);
    if (nbytes != 64 || strspn(arg, "0123456789abcdef") != nbytes)
        return tess_launch_refuse(state,
                                  "--manifest-sha256: expected 64 hex digits in lower case, as "
                                  "'tail -n 1 MANIFEST' prints them, found '%.100s'",
                                  arg);
    *out = arg;
    return 0;
}

error_t tess_launch_positional(const struct argp_state *state, const char *arg, const char **slot[],
                               int slot_numel)
{
    for (int i = 0; i < slot_numel; i++) {
        if (*slot[i] == NULL) {
            *slot[i] = arg;
            return 0;
        }
    }
    return tess_launch_refuse(state, "one argument too many: '%.100s'", arg);
}
