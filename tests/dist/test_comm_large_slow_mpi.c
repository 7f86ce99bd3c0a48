/*
 * One transfer of more than 2^31 bytes. The address range is real, the memory is not: one small
 * memory file is mapped again and again, with a page of its own at the end.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dist/comm.h"
#include "tests/support/expect.h"

enum { BLOCK_NBYTES = 32 << 20, BLOCKS = 65, TAIL_NBYTES = 4096 };
static const size_t ROW_NBYTES = (size_t)BLOCK_NBYTES * BLOCKS + TAIL_NBYTES; /* > 2^31 */

/* [BLOCKS] views of the same block, then a tail of its own. */
static char *map_row(void)
{
    const int fd = memfd_create("row", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, BLOCK_NBYTES + TAIL_NBYTES) != 0)
        return NULL;
    char *base =
        mmap(NULL, ROW_NBYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return NULL;
    for (size_t i = 0; i <= BLOCKS; i++) {
        const size_t nbytes = i < BLOCKS ? (size_t)BLOCK_NBYTES : TAIL_NBYTES;
        const off_t from = i < BLOCKS ? 0 : BLOCK_NBYTES;
        if (mmap(base + i * BLOCK_NBYTES, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                 fd, from) == MAP_FAILED)
            return NULL;
    }
    close(fd);
    return base;
}

static unsigned char pattern(size_t i) { return (unsigned char)(i * 131 + (i >> 12) * 7 + 3); }

int main(int argc, char **argv)
{
    tess_comm *comm = NULL;
    if (tess_comm_create_mpi(&argc, &argv, TESS_COMM_THREAD_OFF, NULL, &comm) != TESS_OK) {
        fprintf(stderr, "%s\n", tess_error_message());
        return 1;
    }
    const int rank = tess_comm_rank(comm);
    const bool runs = tess_comm_world(comm) == 2; /* the same code at any size, the time is not */
    char *row = runs ? map_row() : NULL;
    if (runs) {
        EXPECT(row != NULL);
        EXPECT(tess_agree(comm, row != NULL ? TESS_OK : TESS_E_MEMORY) == TESS_OK);
    }
    if (row != NULL && failures == 0) {
        for (size_t i = 0; i < BLOCK_NBYTES && rank == 0; i++)
            row[i] = (char)pattern(i);
        for (size_t i = 0; i < TAIL_NBYTES && rank == 0; i++)
            row[(size_t)BLOCK_NBYTES * BLOCKS + i] = (char)~pattern(i);
        tess_wire w = {.op = TESS_COMM_EXCHANGE, .wire = TESS_U8, .name = "large"};
        w.numel_per_rank = (int64_t)ROW_NBYTES;
        const tess_piece piece = {1 - rank, tess_view_host(row, (int64_t)ROW_NBYTES, TESS_U8)};
        tess_stream *s = tess_comm_reduce_stream(comm);
        EXPECT(tess_comm_exchange(comm, &w, &piece, rank == 0, &piece, rank == 1, s) == TESS_OK);
        EXPECT(tess_stream_finish(s) == TESS_OK);
        size_t wrong = 0;
        for (size_t i = 0; i < BLOCK_NBYTES; i++)
            wrong += (unsigned char)row[i] != pattern(i);
        for (size_t i = 0; i < TAIL_NBYTES; i++)
            wrong += (unsigned char)~row[(size_t)BLOCK_NBYTES * BLOCKS + i] != pattern(i);
        EXPECT(wrong == 0);
    }
    tess_comm_destroy(&comm);
    if (!runs)
        return 77;
    return failures > 0;
}
