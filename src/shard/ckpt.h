/**
 * Checkpoints: one HDF5 file per writing rank, a manifest published last, reshard on load.
 *
 * A run directory holds `LOCK`, `LATEST` (a hint), `base/<id>/` (frozen bytes, written once) and
 * one `step-<10 digits>.<8 hex>/` per attempt. A directory is a checkpoint only if its MANIFEST
 * verifies (docs/checkpoints.md). This floor knows flat slabs, not models: the caller describes
 * every slab by a record, and every logical tensor in it by a table entry.
 *
 * Nothing here allocates through tess_alloc on the calling thread in save_begin, poll and commit,
 * so they may be called in a frozen step; prepare, load and the tools allocate.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/ctx.h"
#include "core/device.h"
#include "core/digest.h"
#include "core/trace.h"
#include "core/view.h"
#include "dist/comm.h"

TESS_BEGIN_DECLS

enum {
    TESS_CKPT_FORMAT_MAJOR = 1,
    TESS_CKPT_FORMAT_MINOR = 0,
    TESS_CKPT_NAME_NBYTES_MAX = 512,
    TESS_CKPT_DIM_MAX = 8,
    TESS_CKPT_CHUNK_NBYTES = 4 << 20
};

/* ---- what is stored ---- */

/**
 * One dataset: a slab of one unit in one role, cut over `shard_world` ranks by tess_ckpt_range().
 * On save `view` is read, on load it is written; it holds [lo_idx, hi_idx) and may be empty.
 * Strings are borrowed.
 */
typedef struct tess_ckpt_record {
    const char *unit; /* "blk.3": 1-512 bytes of UTF-8, no '/', no control bytes, not "." or ".." */
    const char *role; /* "frozen", "param", "master", "exp_avg", "exp_avg_sq", ...; same rules */
    tess_dtype dt;    /* element type on disk; frozen byte strings are U8_OPAQUE */
    int64_t total_numel; /* elements of the whole unpadded slab */
    int64_t
        align_numel; /* slabs are cut at multiples of this (256 bytes frozen, 256 elements else) */
    int64_t lo_idx;  /* this rank's range of the slab, without padding */
    int64_t hi_idx;
    tess_view view; /* [hi_idx - lo_idx] dt, host or the store's device */
    const char
        *contract;     /* "stored=f32 logical=f32 compute=bf16 reduce=f32", shown by HDF5 tools */
    const char *quant; /* "none" or scheme, block, code table digest, packing */
} tess_ckpt_record;

/**
 * One logical tensor inside the slabs of a unit. It lies at the same place in every record of the
 * unit in its set, or only in the record of `role` when that is not NULL.
 */
typedef struct tess_ckpt_tensor {
    const char *unit;
    const char *name;  /* canonical name, unique in its set */
    const char *role;  /* NULL: all records of the unit */
    const char *dtype; /* logical dtype ("bf16"), not that of the slab */
    int dim_numel;
    int64_t shape[TESS_CKPT_DIM_MAX];
    int64_t offset_numel; /* first element in the slab; a multiple of 8 for byte slabs */
    int64_t extent_numel; /* elements of the slab it covers (bytes for frozen) */
    const char *quant;    /* quantizer rule ("nf4/64/double") or "none" */
} tess_ckpt_tensor;

/** Everything one kind of checkpoint directory holds. Borrowed arrays. */
typedef struct tess_ckpt_set {
    const tess_ckpt_record
        *records; /* [record_numel] the same list, in the same order, on all ranks */
    int64_t record_numel;
    const tess_ckpt_tensor *tensors; /* [tensor_numel] */
    int64_t tensor_numel;
    int shard_world; /* ranks 0 .. shard_world-1 write; rank r holds the range of r % shard_world */
} tess_ckpt_set;

typedef enum tess_ckpt_value_kind {
    TESS_CKPT_I64,
    TESS_CKPT_F64, /* finite; kept to the bit */
    TESS_CKPT_TEXT /* UTF-8 without NUL */
} tess_ckpt_value_kind;

/** One named scalar of the resume block (step, epoch, seed, tokens, numerics digest, run file,
 * ...). */
typedef struct tess_ckpt_value {
    const char *name;
    tess_ckpt_value_kind kind;
    int64_t i64;
    double f64;
    const char *text;
} tess_ckpt_value;

/* ---- arithmetic, local and pure ---- */

/** Range of `rank` of `world`: c = align * ceil(ceil(total / align) / world); [r c, (r+1) c) cut at
 * total. Local. */
void tess_ckpt_range(const tess_ckpt_record *record, int world, int rank, int64_t *lo_idx,
                     int64_t *hi_idx);
/**
 * Which shards of a slab cut over `stored_world` ranks hold elements of [lo, hi): ranks first ..
 * end-1 (first == end: none); each gives its range of tess_ckpt_range() cut to [lo, hi). Local.
 */
void tess_ckpt_sources(const tess_ckpt_record *record, int stored_world, int64_t lo_idx,
                       int64_t hi_idx, int *first_rank, int *end_rank);

typedef struct tess_ckpt_sizes {
    size_t staging_nbytes;  /* host snapshot of this rank; the base needs none */
    size_t payload_nbytes;  /* of this rank's file, exact */
    size_t file_nbytes_max; /* of this rank's file: payload, chunk table and an upper bound of
                               metadata */
    size_t disk_nbytes_max; /* of all files of one checkpoint */
} tess_ckpt_sizes;

/** Sizes for any rank of any world; reads no views and no lo/hi. Local. */
TESS_MUST_CHECK tess_status tess_ckpt_plan(const tess_ckpt_set *set, int rank,
                                           tess_ckpt_sizes *out);

/* ---- the store ---- */

typedef struct tess_ckpt_store tess_ckpt_store;

typedef struct tess_ckpt_config {
    const char *dir;         /* output.dir; created when missing */
    int keep_numel;          /* committed checkpoints kept, at least 2 */
    int64_t keep_every;      /* steps; checkpoints at multiples of it are never removed, 0: none */
    int64_t last_step;       /* of the run: how many of those are to come */
    bool has_read_back;      /* files are read back before a manifest names them */
    bool is_reader;          /* no LOCK, nothing is written or removed (evaluation, export) */
    const char *plan_digest; /* texts for the record; NULL: "" */
    const char *config_digest;
    const char *binary_id;
    int gather_group;    /* mesh: ranks per copy of the base */
    tess_device *device; /* whose memory views may lie in; NULL: the host's only. Until close */
    tess_stream *after;  /* of that device: what a save or load finds enqueued there comes first */
    tess_comm *comm;     /* borrowed until close */
    const tess_ctx *ctx; /* borrowed until close */
} tess_ckpt_config;

/**
 * Open a run directory: rank 0 takes LOCK, raises the epoch and removes attempts that were never
 * committed. Collective over `config->comm`.
 * @return TESS_E_IO the directory cannot be used, or another process holds LOCK (named);
 * TESS_E_CONFIG keep < 2
 */
TESS_MUST_CHECK tess_status tess_ckpt_store_open(const tess_ckpt_config *config,
                                                 tess_ckpt_store **out);
/** Wait for the writer, drop an attempt that was not committed, release LOCK; NULL is fine. Local.
 */
void tess_ckpt_store_close(tess_ckpt_store **store);
/** Epoch of LOCK, from 1. Local. */
int64_t tess_ckpt_epoch(const tess_ckpt_store *store);
/** 16 hex digits drawn when the run started, adopted on resume. Local. */
const char *tess_ckpt_run_id(const tess_ckpt_store *store);

/* ---- save ---- */

/** How the source of the frozen base is found again. */
typedef enum tess_ckpt_base_mode {
    TESS_CKPT_BASE_NONE,     /* nothing is frozen */
    TESS_CKPT_BASE_COPY,     /* base/<id>/ of this run directory */
    TESS_CKPT_BASE_REFERENCE /* the source files, by SHA-256 */
} tess_ckpt_base_mode;

typedef struct tess_ckpt_source_file {
    const char *path;
    int64_t nbytes;
    tess_sha256 sha256;
} tess_ckpt_source_file;

typedef struct tess_ckpt_base {
    tess_ckpt_base_mode mode;
    const char *id;                     /* base id, 64 hex digits; NULL for NONE */
    const tess_ckpt_source_file *files; /* [file_numel], REFERENCE only */
    int64_t file_numel;
} tess_ckpt_base;

/**
 * Plan memory for saving `set`: staging, hash tables, manifest text; starts the writer thread.
 * Once, before the first save; the set, its strings, views and `base` are borrowed until close.
 * Collective.
 * @param state_room_nbytes  names and texts of the largest state list; 0: 1 MiB
 * @return TESS_E_ARG a record or tensor breaks its rules (named)
 */
TESS_MUST_CHECK tess_status tess_ckpt_prepare(tess_ckpt_store *store, const tess_ckpt_set *set,
                                              const tess_ckpt_base *base, size_t state_room_nbytes);
/** Room for keep + 1 checkpoints and those to come that stay? Local. @return TESS_E_IO with bytes
 * needed and free */
TESS_MUST_CHECK tess_status tess_ckpt_preflight(tess_ckpt_store *store);
/**
 * Write the bytes of one checkpoint, random ones, and remove them: quotas and disks that promise
 * more than they have are found before anything depends on them.
 *
 * Collective, after prepare and before the first save. Nothing of it counts, also where it fails or
 * is killed. @return TESS_E_IO on all ranks, with bytes needed and free where there is no room
 */
TESS_MUST_CHECK tess_status tess_ckpt_probe(tess_ckpt_store *store);

/** Of one rank's writer; goes into the control record. */
typedef enum tess_ckpt_state {
    TESS_CKPT_IDLE, /* no save in flight */
    TESS_CKPT_WRITING,
    TESS_CKPT_WRITTEN, /* done, well or badly: tess_ckpt_commit() tells all ranks */
} tess_ckpt_state;

typedef enum tess_ckpt_outcome {
    TESS_CKPT_PENDING,   /* begin: the snapshot is taken, the writer runs */
    TESS_CKPT_COMMITTED, /* on disk for all ranks */
    TESS_CKPT_DROPPED, /* the attempt failed on some rank; nothing of it counts; training may go on
                        */
    TESS_CKPT_UNSURE   /* published, but a last fsync failed; looked at again by the next save */
} tess_ckpt_outcome;

/** Equal on all ranks except the times, which are this rank's. */
typedef struct tess_ckpt_report {
    tess_ckpt_outcome outcome;
    bool is_disk_full; /* dropped for want of room: no space, a quota, a limit of a file's size */
    int64_t step;
    char dir[160];       /* name inside the run directory */
    char message[1024];  /* why it was dropped, with the rank; empty when committed */
    int64_t disk_nbytes; /* of all files */
    double snapshot_s;   /* the call that takes it; on a device copies go on after it */
    double hash_s;
    double write_s;
    double fsync_s;
    double read_back_s;
    double commit_s;
} tess_ckpt_report;

/**
 * Take the snapshot and start the writer; the records may change as soon as this returns, those in
 * memory of a device as soon as tess_ckpt_snapshot_event() is reached.
 *
 * Collective over the store's communicator. One save in flight: while tess_ckpt_poll() is not IDLE
 * on all ranks this is TESS_E_STATE (the caller commits first, or skips).
 * @param report  PENDING, or DROPPED when the directory could not be made or space is short
 */
TESS_MUST_CHECK tess_status tess_ckpt_save_begin(tess_ckpt_store *store, int64_t step,
                                                 const tess_ckpt_value *state, int64_t state_numel,
                                                 tess_ckpt_report *report);
/**
 * Begin to write the last snapshot again, whose save was dropped: the same step and state, another
 * directory. The records may have changed since.
 *
 * Collective.
 * @param report  as of tess_ckpt_save_begin(), and what follows is as after it
 * @return TESS_E_STATE the last snapshot could not be taken, or is on disk or on its way there
 */
TESS_MUST_CHECK tess_status tess_ckpt_save_again(tess_ckpt_store *store, tess_ckpt_report *report);
/**
 * The end of the last snapshot's copies: work that changes records on a device waits for it. NULL
 * on the host, where begin returns when they are made. Valid until close. Local.
 */
const tess_event *tess_ckpt_snapshot_event(const tess_ckpt_store *store);
/** Later snapshots record spans; borrowed, NULL for none. Local. */
void tess_ckpt_trace(tess_ckpt_store *store, tess_tracer *tracer);
/** State of this rank's writer; on a device it is started here, once its snapshot has arrived.
 * Local. */
tess_ckpt_state tess_ckpt_poll(tess_ckpt_store *store);
/**
 * Agree, publish the manifest or drop the attempt; waits for writers that still run. Old
 * checkpoints are then removed by the writer thread of rank 0. Collective.
 */
TESS_MUST_CHECK tess_status tess_ckpt_commit(tess_ckpt_store *store, tess_ckpt_report *report);
/** Begin, commit and wait for the removal of old checkpoints. Collective. */
TESS_MUST_CHECK tess_status tess_ckpt_save(tess_ckpt_store *store, int64_t step,
                                           const tess_ckpt_value *state, int64_t state_numel,
                                           tess_ckpt_report *report);
/** Wait until the writer thread has nothing to do. Local. */
void tess_ckpt_drain(tess_ckpt_store *store);

/**
 * Write base/<id>/ unless a valid one is there (`*was_there`). Synchronous, straight from the
 * views (a device's through one chunk). Collective. @return TESS_E_IO on all ranks when any rank
 * failed
 */
TESS_MUST_CHECK tess_status tess_ckpt_save_base(tess_ckpt_store *store, const char *id,
                                                const tess_ckpt_set *set, bool *was_there);

/* ---- load ---- */

typedef enum tess_ckpt_found {
    TESS_CKPT_FRESH, /* auto: nothing was ever committed here that may be loaded */
    TESS_CKPT_LOADED
} tess_ckpt_found;

/** What a loaded checkpoint said; owned by the caller. */
typedef struct tess_ckpt_loaded {
    tess_ckpt_found found;
    int64_t step;
    int64_t epoch;
    int stored_world;
    int64_t fallback_numel; /* newer committed checkpoints that did not verify */
    char path[1024];
    char run_id[17];
    const tess_ckpt_value *state; /* [state_numel] sorted by name */
    int64_t state_numel;
    tess_ckpt_base base; /* mode, id, files */
    void *memory;        /* owner of the pointers above */
} tess_ckpt_loaded;

/**
 * Judge a verified manifest before any payload is read (numerics digest, base id, ...). Called on
 * all ranks with equal contents and must answer the same. Any failure ends the load: it is no
 * reason to fall back to an older checkpoint. `*wants_base` is true where the request has a base;
 * false leaves the stored one alone.
 */
typedef tess_status (*tess_ckpt_accept)(void *arg, const tess_ckpt_loaded *manifest,
                                        bool *wants_base);

typedef struct tess_ckpt_load_request {
    const char *path; /* one checkpoint directory; NULL: auto, newest valid of the store */
    const char *manifest_sha256; /* 64 hex digits that its MANIFEST ends with; NULL: any */
    const tess_ckpt_set *set;    /* targets; views are written; shard_world: ranks of one copy */
    const tess_ckpt_set *base;   /* frozen targets; NULL: not wanted. Ignored in mode REFERENCE */
    tess_ckpt_accept accept;     /* may be NULL */
    /* Whether slabs and tensors of a unit that `set` does not have may stay unread; NULL: none. */
    bool (*may_leave)(void *arg, const char *unit);
    /* auto: whether one of this step may be loaded, among those that this process wrote and those
     * up to the one it went on from; asked on rank 0. NULL: every committed one. */
    bool (*may_load)(void *arg, int64_t step);
    void *accept_arg; /* of all three */
} tess_ckpt_load_request;

/**
 * Read a checkpoint written by any number of ranks into this rank's ranges, every byte checked.
 *
 * Collective. On failure the views hold undefined values.
 * @return TESS_E_NOT_FOUND a given path is no checkpoint, or auto found committed ones but none
 * that verifies, or none at all where `manifest_sha256` asks for one; TESS_E_FORMAT its manifest
 * has another digest, a file is damaged (named) or a tensor is missing, extra, reshaped or
 * retyped (tensor, file and both values are named); TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_ckpt_load(tess_ckpt_store *store,
                                           const tess_ckpt_load_request *request,
                                           tess_ckpt_loaded *out);
/**
 * Read base/<id>/ of the store's directory into this rank's ranges once more, as tess_ckpt_load()
 * reads a base. Collective; no save may be in flight. @return as tess_ckpt_load()
 */
TESS_MUST_CHECK tess_status tess_ckpt_load_base(tess_ckpt_store *store, const char *id,
                                                const tess_ckpt_set *set);
/** Free what a load returned. Local. */
void tess_ckpt_loaded_fini(tess_ckpt_loaded *loaded);
/** State value by name; NULL when absent. Local. */
const tess_ckpt_value *tess_ckpt_loaded_value(const tess_ckpt_loaded *loaded, const char *name);

/* ---- tools: local, no MPI, read only ---- */

/** Receives text in pieces. */
typedef tess_status (*tess_ckpt_sink)(void *arg, const char *text, size_t nbytes);

typedef struct tess_ckpt_printer {
    tess_ckpt_sink sink;
    void *arg;
    bool is_json;
} tess_ckpt_printer;

/** Whether `path` is a checkpoint or base directory, or a run directory with one (then `dir` is its
 * newest committed one, damaged or not). Local. @return TESS_E_NOT_FOUND */
TESS_MUST_CHECK tess_status tess_ckpt_resolve(const tess_ctx *ctx, const char *path, char *dir,
                                              size_t dir_nbytes);
/** What is in a checkpoint: run, step, tensors, files, state. Reads the manifest only. Local.
 * @param manifest_sha256  64 hex digits that it must end with; NULL: any
 * @return TESS_E_FORMAT it is damaged or another */
TESS_MUST_CHECK tess_status tess_ckpt_inspect(const tess_ctx *ctx, const char *path,
                                              const char *manifest_sha256,
                                              const tess_ckpt_printer *printer);
/** Check every digest of a checkpoint and of the base it needs, logical hashes included. A source
 * file that the base refers to and that is not where it was is told, and is no failure. Local.
 * @param manifest_sha256  64 hex digits that its MANIFEST must end with; NULL: any
 * @return TESS_E_FORMAT damaged, or another manifest: file and place are named */
TESS_MUST_CHECK tess_status tess_ckpt_verify(const tess_ctx *ctx, const char *path,
                                             const char *manifest_sha256,
                                             const tess_ckpt_printer *printer);
/** Compare the logical tensors of two checkpoints, whatever their sharding. Local. */
TESS_MUST_CHECK tess_status tess_ckpt_diff(const tess_ctx *ctx, const char *path_a,
                                           const char *path_b, const tess_ckpt_printer *printer,
                                           bool *is_equal);

TESS_END_DECLS
