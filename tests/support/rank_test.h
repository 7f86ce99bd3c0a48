/** main() of tests that run on several ranks: MPI, one verdict for all, the message on stderr. */
#pragma once

#include "dist/comm.h"

typedef tess_status (*rank_test_body)(tess_comm *comm);

/** Run `body`, with a communication thread when the first argument is --comm-thread; 0: all ranks
 * succeeded. */
int rank_test_main(int argc, char **argv, rank_test_body body);
