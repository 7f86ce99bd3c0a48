/** What the subcommands share: argument parsing, the context, and the end of the program. */
#pragma once

#include <argp.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/ctx.h"
#include "core/status.h"
#include "launch/options.h"

TESS_BEGIN_DECLS

/**
 * Parse the arguments of a subcommand; answers --help on stdout.
 *
 * Local. `argp->parser` gets `input`, fails with tess_error_set() and EINVAL, and checks what is
 * missing at ARGP_KEY_END.
 *
 * @return TESS_E_ARG with one line that names command and argument
 */
TESS_MUST_CHECK tess_status tess_launch_parse(const struct argp *argp, int argc, char **argv,
                                              void *input, tess_common_options *common);

/** Refuse the parse: records TESS_E_ARG and returns EINVAL for argp. */
error_t tess_launch_refuse(const struct argp_state *state, const char *fmt, ...) TESS_PRINTF(2, 3);
/** Parse an integer option in [least, most]; refuses with `option` named. */
error_t tess_launch_int(const struct argp_state *state, const char *option, const char *arg,
                        const int64_t range[2], int64_t *out);
/** Whether `text` is a decimal in [least, most]; `out` is untouched where it is not. Local. */
bool tess_launch_read_f64(const char *text, const double range[2], double *out);
/** Parse a decimal option in [least, most]; refuses with `option` named. */
error_t tess_launch_f64(const struct argp_state *state, const char *option, const char *arg,
                        const double range[2], double *out);
/** Take one positional argument of "RUN.yaml [KEY=VALUE ...]". */
error_t tess_launch_run_arg(const struct argp_state *state, const char *arg, tess_run_options *run);
void tess_launch_run_fini(tess_run_options *run);
/** Refuse a checkpoint beside an adapter, and a manifest's digest where no checkpoint is read. */
error_t tess_launch_one_source(const struct argp_state *state, const char *checkpoint,
                               const char *adapter, const char *manifest_sha256);
/** --manifest-sha256, the same of every command that reads a checkpoint: an entry of its options,
 * and what takes its argument. */
enum { TESS_LAUNCH_KEY_MANIFEST = 1024 };
#define TESS_LAUNCH_MANIFEST_OPTION                                                                \
    {                                                                                              \
        "manifest-sha256", TESS_LAUNCH_KEY_MANIFEST, "HEX", 0,                                     \
            "Take no checkpoint but the one whose MANIFEST has this digest: its last line, and "   \
            "what 'tessera inspect' shows",                                                        \
            0                                                                                      \
    }
error_t tess_launch_manifest(const struct argp_state *state, const char *arg, const char **out);
/** Store a positional argument in the first free slot; refuses one too many. */
error_t tess_launch_positional(const struct argp_state *state, const char *arg, const char **slot[],
                               int slot_numel);

/** Rank of this process as its launcher says, 0 where there is none. For use before MPI starts. */
int tess_launch_rank(void);
/** Set what MPI must find when it starts: yielding, and all allowed CPUs; a user's own choice wins.
 * Call before MPI_Init. */
void tess_launch_prepare_mpi(void);

/** I/O table and log to stderr. @return TESS_E_CONFIG bad TESSERA_FAULT */
TESS_MUST_CHECK tess_status tess_launch_open(const tess_common_options *common, int rank,
                                             tess_ctx *ctx);
void tess_launch_close(tess_ctx *ctx);

/** Receives pieces of a result for stdout; `arg` is not used. @return TESS_E_IO */
TESS_MUST_CHECK tess_status tess_launch_sink(void *arg, const char *text, size_t nbytes);
/** Write a result to stdout. @return TESS_E_IO stdout is closed or full */
TESS_MUST_CHECK tess_status tess_launch_print(const char *text);
/** Print the error of this thread, if there is one and this rank is to speak: once per process.
 * @param is_alone  this rank failed where its peers did not */
void tess_launch_report(const tess_common_options *common, tess_status st, bool is_alone);
/** The same where it has not been done, then the exit code. */
int tess_launch_finish(const tess_common_options *common, tess_status st);

TESS_END_DECLS
