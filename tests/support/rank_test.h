/** main() of tests that run on several ranks: MPI, one verdict for all, the message on stderr. */
#pragma once

#include "dist/comm.h"

typedef tess_status (*rank_test_body)(tess_comm *comm);
/** What one rank alone finds, on every rank. Collective: ranks may share the work. */
typedef tess_status (*rank_test_finder)(tess_comm *comm, void *out);

/** Run `body`, with a communication thread when the first argument is --comm-thread; 0: all ranks
 * succeeded. */
int rank_test_main(int argc, char **argv, rank_test_body body);

/**
 * `find`, once for all numbers of ranks: ctest runs the test at one rank first, which leaves
 * [nbytes] of `out` in the file TESS_TEST_ALONE, where the same program finds them at more ranks.
 * Without that variable each finds them itself. Collective.
 * @param out  plain bytes
 */
tess_status rank_test_alone(tess_comm *comm, rank_test_finder find, void *out, size_t nbytes);
