/** The table every communicator fills and the part of a communicator that all kinds share. */
#pragma once

#include "dist/comm.h"
#include "dist/nodes_priv.h"

TESS_BEGIN_DECLS

typedef struct tess_comm_exchange_args {
    const tess_piece *sends;
    int send_numel;
    const tess_piece *receives;
    int receive_numel;
} tess_comm_exchange_args;

/** What a communicator can do. Arguments were checked by comm.c. Every entry is required but the
 * last two. */
typedef struct tess_comm_ops {
    tess_status (*all_gather)(tess_comm *comm, const tess_wire *wire, tess_view shard,
                              tess_view full, tess_stream *s);
    tess_status (*all_gather_list)(tess_comm *comm, const tess_gather_piece *pieces,
                                   int piece_numel, tess_view full, tess_stream *s);
    tess_status (*exchange)(tess_comm *comm, const tess_wire *wire,
                            const tess_comm_exchange_args *args, tess_stream *s);
    tess_status (*reduce_scatter)(tess_comm *comm, const tess_wire *wire, tess_view full,
                                  tess_view shard, tess_stream *s);
    tess_status (*control)(tess_comm *comm, int64_t *sum, int sum_numel, int64_t *max,
                           int max_numel);
    tess_status (*bcast)(tess_comm *comm, int root_rank, void *data, size_t nbytes);
    tess_status (*gather_bytes)(tess_comm *comm, int root_rank, const void *src, size_t nbytes,
                                void *dst);
    tess_status (*split_group)(tess_comm *comm, int group_numel, tess_comm **out);
    void (*destroy)(tess_comm *comm); /* frees the object too */
    void (*abort)(tess_comm *comm, int exit_code);
    double (*blocked_s)(const tess_comm *comm);
    void (*dump)(const tess_comm *comm, int fd);
    void (*describe)(const tess_comm *comm, int fd); /* what runs now, one line per busy stream */
    void (*set_checking)(tess_comm *comm, bool is_on);
    /* Both or none. */
    uint64_t (*collective_numel)(const tess_comm *comm);
    bool (*collective_times)(const tess_comm *comm, uint64_t serial, tess_comm_times *out);
} tess_comm_ops;

enum { TESS_COMM_STREAM_NUMEL = 2 };

struct tess_comm {
    const tess_comm_ops *ops;
    int rank;
    int world;
    int first_world_rank;    /* rank in the launch of this communicator's rank 0 */
    tess_space space;        /* where views must lie */
    tess_comm *host;         /* of the same ranks, for host memory; NULL: this one */
    const dist_nodes *nodes; /* of the launch; NULL: one process */
    char name[32];
    tess_stream *gather; /* owned by the concrete communicator */
    tess_stream *reduce;
    bool is_checking;
    uint64_t checked_seq[TESS_COMM_STREAM_NUMEL]; /* data collectives enqueued while checking */
};

/** Where a piece of a list lands in `full`: [world, numel_per_rank]. Local. */
tess_view tess_gather_piece_rows(const tess_comm *comm, const tess_gather_piece *piece,
                                 tess_view full);
/** What messages call a list: the first contract, its name followed by "and 3 more". Local. */
tess_wire tess_gather_list_wire(const tess_gather_piece *pieces, int piece_numel);

/** Refuse a table with holes. Local. @return TESS_E_STATE names the communicator */
TESS_MUST_CHECK tess_status tess_comm_ops_check(const tess_comm_ops *ops, const char *name);

/** Write one formatted line to a file descriptor, newline added; errors are ignored. Local. */
void tess_fd_line(int fd, const char *fmt, ...) TESS_PRINTF(2, 3);

/** The first piece of `list` from index `from` on that `rank` exchanges with itself; numel: none.
 */
static inline int piece_next_own(const tess_piece *list, int numel, int rank, int from)
{
    while (from < numel && (list[from].peer_rank != rank || list[from].view.numel == 0))
        from++;
    return from;
}

TESS_END_DECLS
