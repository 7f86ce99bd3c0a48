/**
 * One interface to other ranks: communicators `self`, `mpi`, `spy` (tests), later `nccl`.
 *
 * Data collectives are enqueued on one of the communicator's own streams and carry a contract; host
 * collectives move small control data and block (with a deadline). Every rank enqueues the same
 * data collectives of one stream in the same order. There is no shortcut for a world of one.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/status.h"
#include "core/stream.h"
#include "core/view.h"

TESS_BEGIN_DECLS

typedef struct tess_comm tess_comm;

typedef enum tess_comm_op {
    TESS_COMM_ALL_GATHER, /* rank-major concatenation of equal shards */
    TESS_COMM_EXCHANGE,   /* planned point-to-point pieces (gradients to owners, bytes to owners) */
    TESS_COMM_REDUCE_SCATTER, /* library reduction: order of additions not defined */
    TESS_COMM_OP_NUMEL
} tess_comm_op;

const char *tess_comm_op_name(tess_comm_op op);

/**
 * What one collective promises. Made at plan time, hashed into the contract digest, and checked
 * against the views on every call. Both sides of a transfer hold `wire` dtype: nothing converts on
 * the way.
 */
typedef struct tess_wire {
    tess_comm_op op;
    uint32_t entry_idx;    /* place in the plan's contract table */
    tess_dtype storage;    /* dtype of the buffer the data comes from, for the record */
    tess_dtype wire;       /* dtype of the views passed in and of what travels */
    tess_dtype accumulate; /* dtype of sums made with it (equal to wire where nothing is summed) */
    int64_t
        numel_per_rank;  /* elements of `wire` a rank gives or owns (largest rank where uneven) */
    int64_t numel_total; /* elements of the whole, without padding */
    char name[96];       /* "blk.3/frozen", "blk.3/lora_grad" */
    const char *config_key; /* run-file key that decides the dtype, e.g. "base.format" */
} tess_wire;

/** One piece of an exchange. A piece to or from the own rank is a local copy. */
typedef struct tess_piece {
    int peer_rank;
    tess_view view; /* elements of the contract's wire dtype */
} tess_piece;

/**
 * One of several all-gathers that travel together: every rank gives `shard` [numel_per_rank of
 * `wire`], and [world, numel_per_rank] lands from byte `place_nbytes` of the memory given with the
 * list.
 */
typedef struct tess_gather_piece {
    const tess_wire *wire;
    tess_view shard;
    size_t place_nbytes;
} tess_gather_piece;

/** Limits of waiting; 0 means the default in parentheses. */
typedef struct tess_deadlines {
    double start_s;      /* init and first collectives (600) */
    double collective_s; /* any later wait (300) */
} tess_deadlines;

/** What the engine hands to the network at once for a peer on another node, per collective, in so
 * many messages; none holds parts of two pieces. The network carries it while both compute. */
enum { TESS_COMM_FAR_NBYTES = 960 << 10, TESS_COMM_FAR_MESSAGE_NUMEL = 16 };

typedef enum tess_comm_thread { TESS_COMM_THREAD_OFF, TESS_COMM_THREAD_ON } tess_comm_thread;

/** One rank, no MPI. `streams` as for mpi. Local. */
TESS_MUST_CHECK tess_status tess_comm_create_self(tess_comm **out);
/**
 * World communicator over MPI. Initializes MPI when `argc`/`argv` come from main and MPI is not
 * initialized yet; destroy then finalizes it. One engine per process drives all non-blocking
 * operations of this communicator and of those split from it. Collective over all processes of the
 * launch.
 */
TESS_MUST_CHECK tess_status tess_comm_create_mpi(int *argc, char ***argv, tess_comm_thread thread,
                                                 const tess_deadlines *deadlines, tess_comm **out);
/**
 * Sub-communicator of the consecutive ranks [k*group, (k+1)*group) that holds this rank; `group`
 * divides the world. Shares the parent's engine; the parent outlives it. Collective over `comm`.
 */
TESS_MUST_CHECK tess_status tess_comm_split_group(tess_comm *comm, int group_numel,
                                                  tess_comm **out);
/**
 * The first `rank_numel` ranks as a communicator of their own; the others are left in groups of at
 * most as many. Shares the parent's engine; the parent outlives it. Of host memory only. Collective
 * over `comm`.
 */
TESS_MUST_CHECK tess_status tess_comm_split_first(tess_comm *comm, int rank_numel, tess_comm **out);
/**
 * Wrapper that records every data collective; `inner` is borrowed. Local.
 */
TESS_MUST_CHECK tess_status tess_comm_create_spy(tess_comm *inner, tess_comm **out);
/** Never fails; NULL is fine. Collective for mpi unless a fatal error came first. */
void tess_comm_destroy(tess_comm **comm);

int tess_comm_rank(const tess_comm *comm);
/** The communicator of the same ranks for views in host memory: itself unless it is a device's. */
tess_comm *tess_comm_host(tess_comm *comm);
int tess_comm_world(const tess_comm *comm);
/** "self", "mpi", "spy(mpi)". */
const char *tess_comm_name(const tess_comm *comm);

/** Streams of the communicator for gathers and for gradient traffic; each is ordered, they run side
 * by side. */
tess_stream *tess_comm_gather_stream(tess_comm *comm);
tess_stream *tess_comm_reduce_stream(tess_comm *comm);

/**
 * Give `shard` [numel_per_rank], receive `full` [world, numel_per_rank] rank-major; `shard` may
 * alias row `rank`.
 *
 * Collective over `comm`, enqueued on `s`, views borrowed until `s` passes it.
 * @return TESS_E_DTYPE a view differs from the contract (names tensor, contract, config key);
 * TESS_E_COMM fatal
 */
TESS_MUST_CHECK tess_status tess_comm_all_gather(tess_comm *comm, const tess_wire *wire,
                                                 tess_view shard, tess_view full, tess_stream *s);
/**
 * All the listed all-gathers as one collective: with one start, and no order among its pieces.
 * `full` (u8_opaque) holds all their places, which keep apart; `shard` may alias row `rank` of its
 * own. List, contracts and views are borrowed until `s` passes. No pieces: nothing is enqueued.
 *
 * Collective over `comm`, enqueued on `s`. @return as tess_comm_all_gather()
 */
TESS_MUST_CHECK tess_status tess_comm_all_gather_list(tess_comm *comm,
                                                      const tess_gather_piece *pieces,
                                                      int piece_numel, tess_view full,
                                                      tess_stream *s);
/**
 * Move the listed pieces. The k-th piece from rank a to rank b on a's send list meets the k-th
 * piece from a on b's receive list; sizes must agree. Empty pieces are skipped on both sides. Lists
 * are borrowed until `s` passes.
 *
 * Collective over `comm`, enqueued on `s`.
 */
TESS_MUST_CHECK tess_status tess_comm_exchange(tess_comm *comm, const tess_wire *wire,
                                               const tess_piece *sends, int send_numel,
                                               const tess_piece *receives, int receive_numel,
                                               tess_stream *s);
/**
 * Library reduction: give `full` [world, numel_per_rank] f32, receive the sum of row `rank` in
 * `shard`. Collective over `comm`, enqueued on `s`. The order of additions is not defined.
 */
TESS_MUST_CHECK tess_status tess_comm_reduce_scatter(tess_comm *comm, const tess_wire *wire,
                                                     tess_view full, tess_view shard,
                                                     tess_stream *s);

/* ---- host collectives on the control channel: blocking, small, deadline applies ---- */

/**
 * The control record: element-wise sums of `sum` and maxima of `max`, in one all-reduce, in place
 * on all ranks. Collective over `comm`.
 */
TESS_MUST_CHECK tess_status tess_comm_control(tess_comm *comm, int64_t *sum, int sum_numel,
                                              int64_t *max, int max_numel);
/** Collective. Bytes of `root` to everybody. */
TESS_MUST_CHECK tess_status tess_comm_bcast(tess_comm *comm, int root_rank, void *data,
                                            size_t nbytes);
/** Collective. `dst` [world, nbytes] on root (NULL elsewhere), rank-major. */
TESS_MUST_CHECK tess_status tess_comm_gather_bytes(tess_comm *comm, int root_rank, const void *src,
                                                   size_t nbytes, void *dst);
TESS_MUST_CHECK tess_status tess_comm_barrier(tess_comm *comm);
/**
 * One verdict on all ranks: the status and message of the lowest failing rank (fatal codes before
 * others), or TESS_OK. The thread's error record of every rank then holds that rank's number and
 * message. Collective over `comm`; must be entered also by ranks that failed.
 */
TESS_MUST_CHECK tess_status tess_agree(tess_comm *comm, tess_status local);
/**
 * End the whole job after a fatal error: tell what is known on stderr, then MPI_Abort with
 * `exit_code`. Local; does not return for mpi. For self it returns and the caller exits.
 */
void tess_comm_abort(tess_comm *comm, int exit_code);
/** Seconds this rank has spent blocked in waits for communication since creation. Local. */
double tess_comm_blocked_s(const tess_comm *comm);

/* ---- looking inside ---- */

/** Whether a process launcher (mpirun, Slurm) started this process as one of several or as one rank
 * of a job; without one, `self` is the communicator to use. Reads the environment; no MPI. Local.
 */
bool tess_comm_is_launched(void);
/** Nodes up to that of the last rank of `comm`. Ranks are numbered so that those of a node are
 * consecutive, whatever the launcher's order was. Local. */
int tess_comm_node_numel(const tess_comm *comm);
/** Node of a rank of `comm`, from 0 in the order of ranks. Local. */
int tess_comm_node_of(const tess_comm *comm, int rank);
/** Number of this process among the ranks of the launch on its node. Local. */
int tess_comm_node_rank(const tess_comm *comm);
/** Ranks of `comm` on a node. Local. */
int tess_comm_node_rank_numel(const tess_comm *comm, int node);
/** What the MPI library says of itself, first words: "Open MPI v4.1.4". Local. */
void tess_comm_library(char *text, size_t text_nbytes);
/** Number of this rank in the whole launch (differs from tess_comm_rank in a group). Local. */
int tess_comm_launch_rank(const tess_comm *comm);
/** Write this rank's last 4,096 collective records as text lines. May be called from any thread.
 * Local. */
void tess_comm_dump(const tess_comm *comm, int fd);
/** When a data collective of this rank ran, in seconds of tess_clock_s(). */
typedef struct tess_comm_times {
    double queued_s, started_s, done_s;
} tess_comm_times;
/** Data collectives that this rank has enqueued on `comm` and what shares its engine; 0 always
 * where no such record is kept (collectives between devices). Local. */
uint64_t tess_comm_collective_numel(const tess_comm *comm);
/** Times of collective `serial` of that count; false when it is not done, or too long ago. Local.
 */
bool tess_comm_collective_times(const tess_comm *comm, uint64_t serial, tess_comm_times *out);
/** Write one line per stream that has work: what it waits for and which ranks were heard from. May
 * be called from any thread. Local. */
void tess_comm_describe(const tess_comm *comm, int fd);
/**
 * Debug mode: before each data collective the ranks compare what they are about to enqueue
 * (operation, stream, sequence, entry, dtype, elements) and fail with TESS_E_CONTRACT naming both
 * sides of the first difference. Costs one control record per collective. Groups split later
 * inherit it. Logically collective.
 */
void tess_comm_set_checking(tess_comm *comm, bool is_on);

/* ---- spy ---- */

typedef struct tess_spy_record {
    tess_comm_op op;
    uint32_t entry_idx;
    tess_dtype wire;
    int64_t send_numel;    /* elements given by this rank (exchange: to other ranks) */
    int64_t receive_numel; /* elements received (exchange: from other ranks) */
    int send_piece_numel;  /* exchange: pieces given to other ranks that are not empty; else 0 */
    int world;          /* ranks of the communicator it ran on: a group's land in the same list */
    int together_numel; /* contracts that this collective carried: as many records follow each
                           other, this one among them */
    char name[96];
} tess_spy_record;

/** Records since creation or the last clear; borrowed. Local. */
int64_t tess_spy_records(const tess_comm *spy, const tess_spy_record **records);
void tess_spy_clear(tess_comm *spy);

TESS_END_DECLS
