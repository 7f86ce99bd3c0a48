/**
 * A simulated disk: the changes of real runs are recorded, then any directory that a power cut
 * could have left is built from them.
 *
 * The disk keeps what was made durable: the bytes of a file by an fsync of the file, the names in a
 * folder by an fsync of the folder, nothing else. Of the rest, each 4 KiB page of a file, each file
 * size and each name goes its own way: it may be as it was, as it became, or anything it was in
 * between. That is harsher than journaling file systems are (a rename may lose both names).
 */
#pragma once

#include <pthread.h>

#include "core/io.h"
#include "dist/comm.h"

/* One change, or a mark (op TESS_IO_OP_NUMEL) of the test between changes. */
typedef struct disk_event {
    tess_io_op op;
    int rank;
    int64_t time_ns; /* monotonic: one clock for all ranks of a machine */
    char *path;      /* below the root, "" the root itself; a mark's text */
    char *from;      /* "" none */
    uint8_t *bytes;  /* [nbytes] of PWRITE */
    int64_t nbytes;
    int64_t offset_nbytes;
} disk_event;

typedef struct disk_trace {
    const char *root; /* borrowed; changes elsewhere are not recorded */
    int rank;
    pthread_mutex_t mutex;
    tess_status status; /* of recording: out of memory */
    disk_event *events;
    int64_t numel, room_numel;
} disk_trace;

void disk_trace_init(disk_trace *t, const char *root, int rank);
void disk_trace_fini(disk_trace *t);
/** The observer for tess_io_observe(); `trace` is the disk_trace. */
void disk_trace_record(void *trace, const tess_io_change *change);
/** Between changes: what the run was promised, with a number. */
void disk_trace_mark(disk_trace *t, const char *text, int64_t value);
/** Every rank gets the changes of all ranks in the order of time. Collective. */
TESS_MUST_CHECK tess_status disk_trace_join(disk_trace *t, tess_comm *comm);

typedef struct disk disk;

TESS_MUST_CHECK tess_status disk_create(disk **out);
void disk_destroy(disk **d);
/** One change happens; `e` is borrowed until destroy. @return TESS_E_STATE a path that is not there
 */
TESS_MUST_CHECK tess_status disk_apply(disk *d, const disk_event *e);

/** What becomes of changes that are not durable: the chance of each, in percent. */
typedef struct disk_choice {
    int data_percent;   /* a page, a file size */
    int add_percent;    /* a new name */
    int remove_percent; /* the end of a name */
    uint64_t seed;      /* choices are a function of it, of the file and of the place */
} disk_choice;

/** Digest of what a power cut now would leave. Local. */
TESS_MUST_CHECK tess_status disk_state_digest(const disk *d, disk_choice choice, uint64_t *digest);
/** The same as files and folders below `dir`, which is made. Local. */
TESS_MUST_CHECK tess_status disk_state_write(const disk *d, disk_choice choice, const char *dir);
