/*
 * Run file from arbitrary bytes. The first line is an override, the rest the file. What parses must
 * write itself as YAML that parses back to the same text, and nothing may leak.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "core/memory.h"
#include "train/run_file/run_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes);

static void expect(bool is_true)
{
    if (!is_true)
        __builtin_trap();
}

/* The resolved text of `run`, which must parse. */
static void round_trip(const tess_run *run)
{
    char *first = NULL;
    char *second = NULL;
    size_t first_nbytes = 0;
    size_t second_nbytes = 0;
    tess_run *again = NULL;
    expect(tess_run_yaml(run, &first, &first_nbytes) == TESS_OK);
    expect(tess_run_parse(first, first_nbytes, "again", NULL, 0, &again) == TESS_OK);
    expect(tess_run_yaml(again, &second, &second_nbytes) == TESS_OK);
    expect(first_nbytes == second_nbytes && memcmp(first, second, first_nbytes) == 0);
    tess_run_destroy(&again);
    tess_free(first);
    tess_free(second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    char line[256];
    const uint8_t *newline = memchr(data, '\n', nbytes);
    const size_t line_nbytes = newline == NULL ? 0 : (size_t)(newline - data);
    const bool has_override = line_nbytes > 0 && line_nbytes < sizeof line;
    memcpy(line, data, has_override ? line_nbytes : 0);
    line[has_override ? line_nbytes : 0] = '\0';
    const size_t skip = newline == NULL ? 0 : line_nbytes + 1;

    const size_t held = tess_alloc_nbytes();
    const tess_run_override override = {line, 1};
    tess_run *run = NULL;
    tess_error_clear();
    const char *text = (const char *)data + skip;
    const tess_status st =
        tess_run_parse(text, nbytes - skip, "fuzz", &override, has_override ? 1 : 0, &run);
    if (st == TESS_OK)
        round_trip(run);
    else
        expect(run == NULL && *tess_error_message() != '\0' &&
               (st == TESS_E_CONFIG || st == TESS_E_ARG));
    tess_run_destroy(&run);
    expect(tess_alloc_nbytes() == held);
    return 0;
}
