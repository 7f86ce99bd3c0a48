/**
 * The engine: every MPI call of a rank that moves data is made here.
 *
 * [Note: engine] A communicator has three queues (gather, reduce, control), each with an MPI
 * communicator of its own, so their traffic never meets. A queue runs its operations one after
 * another; an operation is a set of flows, one per peer and direction, each a list of pieces cut in
 * chunks of at most chunk_nbytes. Chunks of one (sender, receiver, queue) are sent and received in
 * list order, and MPI keeps that order, so nothing but the tag of the operation travels with them.
 * Each flow has a window of its own: a peer that is late holds up nobody else, and two ranks can
 * not wait for each other's window, whatever the order of their lists.
 *
 * [Note: gathers across nodes] Where a communicator spans whole nodes of k ranks each, a row of an
 * all-gather crosses to every other node once: first each rank gathers from the ranks at its own
 * place on the other nodes, then the ranks of a node give each other what they have. Straight from
 * everybody to everybody, it would cross k times. The bytes that land are the same.
 *
 * [Note: chunks across nodes] Over TCP a message above MPI's eager limit waits for a word of its
 * receiver, which on a shared connection queues behind the bulk going that way. Two ranks a little
 * apart then send in turns instead of at once, and nothing moves while either computes. Chunks
 * between nodes stay below the limit (64 KiB in Open MPI): the kernel carries them while ranks
 * compute. `bench/two_hosts.sh` shows it: two hosts at 1 Gbit/s, steps 1.4 times as long with
 * chunks of 1 MiB.
 *
 * [Note: lists of gathers] An operation that carries several all-gathers runs through their rows
 * one after another in every flow, piece by piece: peers start once, and requests of several pieces
 * are under way together. Nothing is copied.
 *
 * Whoever holds `lock` may drive: the waiting thread, the enqueuing thread once, or the
 * communication thread. What is sent does not depend on who drives.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include <mpi.h>

#include "core/memory.h"
#include "dist/comm_priv.h"

TESS_BEGIN_DECLS

enum {
    ENGINE_QUEUE_OP_NUMEL = 1024, /* operations a queue can hold */
    ENGINE_RECORD_NUMEL = 4096,   /* collective records kept for the dump */
    ENGINE_FLOW_WINDOW = 4,       /* chunks in flight per peer and direction */
    ENGINE_CHUNK_NBYTES = 1 << 20,
    ENGINE_FAR_WINDOW = TESS_COMM_FAR_MESSAGE_NUMEL, /* the same on other nodes */
    ENGINE_FAR_CHUNK_NBYTES =
        TESS_COMM_FAR_NBYTES / ENGINE_FAR_WINDOW, /* see [Note: chunks across nodes] */
    ENGINE_REDUCE_SLOTS = 2, /* chunks of a reduce-scatter that can be under way */
    ENGINE_REDUCE_SCRATCH_NBYTES = 8 << 20,
    ENGINE_FAILURE_NBYTES = 1536
};

typedef enum engine_op_kind {
    ENGINE_WAIT, /* for an event of another queue */
    ENGINE_ALL_GATHER,
    ENGINE_EXCHANGE,
    ENGINE_REDUCE_SCATTER
} engine_op_kind;

typedef struct engine_op {
    engine_op_kind kind;
    uint32_t entry_idx;
    bool has_seq;           /* `seq` is the caller's, not the queue's count */
    uint64_t seq;           /* same on all ranks: data collectives of this queue before this one */
    uint64_t record_serial; /* its record in the ring */
    tess_event event;       /* ENGINE_WAIT */
    tess_comm_exchange_args pieces;
    const tess_gather_piece *gathers; /* all-gathers of a list, into `full`; NULL: one */
    int gather_numel;
    char *shard;       /* all-gather: source; reduce-scatter: destination */
    char *full;        /* [world, row_nbytes] */
    size_t row_nbytes; /* bytes of one rank's row; of a list 0 */
    char name[96];
} engine_op;

/** One direction to one peer of the running operation. */
typedef struct engine_flow {
    int list_idx;        /* next piece of the list to look at */
    int inflight;        /* chunks posted and not complete */
    int64_t chunk_idx;   /* chunks posted */
    char *at;            /* next byte of the current piece */
    size_t left_nbytes;  /* of the current piece, not posted */
    size_t total_nbytes; /* of all pieces */
    size_t done_nbytes;
} engine_flow;

/** What a posted request belongs to. */
typedef struct engine_posted {
    int peer;
    bool is_receive;
    size_t nbytes;
    int64_t chunk_idx;
} engine_posted;

typedef struct engine engine;
typedef struct engine_alarm engine_alarm;

typedef struct engine_queue {
    tess_stream base; /* first: a stream of this kind is a queue */
    engine *owner;
    struct engine_queue *next; /* in the engine's list */
    MPI_Comm mpi;              /* MPI_COMM_NULL for self */
    int rank;
    int world;
    int first_world_rank;
    engine_op *ring;                  /* [ENGINE_QUEUE_OP_NUMEL] */
    uint64_t enqueued;                /* operations and waits so far */
    atomic_uint_fast64_t done;        /* of them complete */
    uint64_t data_seq;                /* collectives enqueued */
    bool is_started;                  /* the operation at `done` has begun */
    int near_first, near_end;         /* peers on this rank's node */
    int node_rank_numel;              /* k of [Note: gathers across nodes]; 0: straight */
    int phase;                        /* of an all-gather across nodes: 0, then 1 */
    size_t left_nbytes;               /* of all its flows */
    engine_flow *send;                /* [world] */
    engine_flow *receive;             /* [world] */
    size_t copied_nbytes;             /* own row */
    int own_send_idx;                 /* exchange: next own piece in either list; gathers: piece */
    int own_receive_idx;              /* exchange */
    bool is_copied;                   /* own part done */
    int64_t reduced_numel;            /* reduce-scatter: chunks added up */
    int arrived[ENGINE_REDUCE_SLOTS]; /* reduce-scatter: peers whose chunk is here */
    tess_arena *scratch;              /* reduce-scatter; NULL for other queues */
    size_t reduce_chunk_nbytes;       /* same on all ranks */
    int active_numel;
    MPI_Request *request;  /* for both directions' windows of all peers */
    engine_posted *posted; /* same */
    MPI_Status *statuses;  /* same */
    int *finished;         /* same */
} engine_queue;

typedef enum engine_record_state { ENGINE_QUEUED, ENGINE_STARTED, ENGINE_DONE } engine_record_state;

typedef struct engine_record {
    uint64_t serial;
    uint64_t seq;
    engine_op_kind kind;
    engine_record_state state;
    uint32_t entry_idx;
    int world;
    const char *stream;
    double queued_s; /* since the engine was made */
    double started_s;
    double done_s;
    char name[64];
} engine_record;

struct engine {
    pthread_mutex_t lock;
    pthread_cond_t work_cond; /* for the communication thread */
    pthread_cond_t done_cond; /* for waiting threads */
    pthread_t thread;
    bool has_thread;
    bool is_stopping;
    bool is_warm; /* a data collective is done: collective_s applies */
    bool owns_mpi;
    int refs; /* communicators that share it */
    engine_queue *queues;
    size_t chunk_nbytes;
    tess_deadlines deadlines;
    double created_s;
    double moved_s; /* last time anything moved */
    double blocked_s;
    dist_nodes *nodes;   /* of the launch; NULL: one process */
    engine_alarm *alarm; /* see alarm_priv.h; NULL: none */
    atomic_int failed;   /* tess_status; not TESS_OK: only destroy is legal */
    char failure[ENGINE_FAILURE_NBYTES];
    engine_record *records; /* [ENGINE_RECORD_NUMEL] */
    uint64_t record_serial; /* records made */
};

TESS_MUST_CHECK tess_status engine_create(tess_comm_thread thread, const tess_deadlines *deadlines,
                                          engine **out);
void engine_ref(engine *e);
/** Last one stops the thread and frees; tells whether it was the last. */
bool engine_unref(engine *e);
/** Remember the first failure; later calls of any kind return it. The lock is held. */
void engine_fail(engine *e, tess_status st, const char *fmt, ...) TESS_PRINTF(3, 4);
/** TESS_OK, or the engine's failure put in this thread's record. */
TESS_MUST_CHECK tess_status engine_verdict(engine *e);

typedef struct engine_queue_args {
    const char *name;
    MPI_Comm mpi;
    int rank;
    int world;
    int first_world_rank;
    bool has_reduce;
    int node_rank_numel;
} engine_queue_args;
TESS_MUST_CHECK tess_status engine_queue_create(engine *e, const engine_queue_args *args,
                                                engine_queue **out);
/** Cancels what is posted, leaves the list, frees; does not touch the MPI communicator. */
void engine_queue_destroy(engine_queue **queue);
/** Copy `op` into the queue (kind, entry, data fields set by the caller) and start it if possible.
 */
TESS_MUST_CHECK tess_status engine_enqueue(engine_queue *q, const engine_op *op);
/** Return when `mark` operations are done. `grace_s` is added to the deadline. */
TESS_MUST_CHECK tess_status engine_wait(engine_queue *q, uint64_t mark, double grace_s);
/** Limit that a wait has now: start_s before the first data collective is done. */
double engine_deadline_s(const engine *e);
/** Run all queues as far as they get. The lock is held. @return something moved */
bool engine_drive(engine *e);

/* engine_op.c: the state machines. The lock is held. */
bool engine_op_step(engine_queue *q, engine_op *op);
void engine_op_start(engine_queue *q, engine_op *op);
bool engine_op_is_done(const engine_queue *q, const engine_op *op);
void engine_op_cancel(engine_queue *q);
const char *engine_op_kind_name(engine_op_kind kind);
/** Text of what the running operation has received from whom. */
void engine_op_describe(const engine_queue *q, char *text, size_t nbytes);

/* engine_record.c */
uint64_t engine_record_add(engine_queue *q, const engine_op *op);
void engine_record_mark(engine *e, uint64_t serial, engine_record_state state);
uint64_t engine_record_count(engine *e);
bool engine_record_times(engine *e, uint64_t serial, tess_comm_times *out);
void engine_record_dump(engine *e, int rank, int fd);
/** Lock for a reader that must not hang; false: read anyway. */
bool engine_try_lock(engine *e, double limit_s);

/** Record a failed MPI call with MPI's own text. */
tess_status engine_mpi_fail(int code, const char *file, int line, const char *call);
#define TESS_MPI(call)                                                                             \
    do {                                                                                           \
        const int tess_mpi_rc_ = (call);                                                           \
        if (TESS_UNLIKELY(tess_mpi_rc_ != MPI_SUCCESS))                                            \
            return engine_mpi_fail(tess_mpi_rc_, __FILE__, __LINE__, #call);                       \
    } while (0)

/* mpi_setup.c */
/** Environment and affinity before MPI_Init, without overriding what the user set. */
void engine_mpi_prepare(tess_comm_thread thread);
/** After MPI_Init: what MPI has loaded stays loaded, also beyond MPI_Finalize. */
void engine_mpi_keep_plugins(void);

/** The chunk size of every communicator that shares the engine of `comm` (self or mpi, not a spy);
 * equal on all ranks. For tests. */
void tess_comm_set_chunk(tess_comm *comm, size_t nbytes);
/** Treat every `node_rank_numel` consecutive ranks as a node in all-gathers, 0: none; divides the
 * world, equal on all ranks. For tests. */
void tess_comm_set_nodes(tess_comm *comm, int node_rank_numel);

TESS_END_DECLS
