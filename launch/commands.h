/** The subcommands: one file, one function and one line of help each. */
#pragma once

#include "core/base.h"
#include "core/status.h"

TESS_BEGIN_DECLS

/* X(name, "summary"), in the order of `tessera --help`. */
#define TESS_COMMAND_LIST(X)                                                                       \
    X(train, "train or resume a run")                                                              \
    X(plan, "print what a run allocates and sends, without running it")                            \
    X(check, "look at the ranks, devices and links of a launch before a run")                      \
    X(eval, "loss of a model or checkpoint on held-out text")                                      \
    X(sample, "continue a prompt")                                                                 \
    X(tokenize, "turn text into a token file")                                                     \
    X(cache, "turn cached latents and texts into a cache file")                                    \
    X(inspect, "show what is in a checkpoint, model, adapter or token file")                       \
    X(verify, "check every digest of a checkpoint, adapter or token file")                         \
    X(diff, "compare two checkpoints tensor by tensor, whatever their sharding")                   \
    X(quantize, "write a model in another format, and what each tensor loses")                     \
    X(merge, "add an adapter to the weights it was trained on")                                    \
    X(export, "write a checkpoint or an adapter in a form that other programs read")               \
    X(encode, "codes of vectors, by trained codebooks")                                            \
    X(decode, "vectors that codes stand for")                                                      \
    X(bench, "measure kernels, links, steps, scaling, checkpoints and starts")                  \
    X(help, "show help of a command, or the run file's keys")

/** Run a subcommand. argv[0] is its name; results go to stdout, the rest to stderr.
 * @return exit code of the program */
#define X(name, summary) int tess_cmd_##name(int argc, char **argv);
TESS_COMMAND_LIST(X)
#undef X

/** Print all commands on stdout, as --help does. Local. @return TESS_E_IO */
TESS_MUST_CHECK tess_status tess_launch_overview(void);

TESS_END_DECLS
