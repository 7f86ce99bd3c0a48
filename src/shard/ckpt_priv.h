/** Parts of the checkpoint module shared by its files; see ckpt.h for the words used. */
#pragma once

#include <limits.h>
#include <pthread.h>

#include "core/arith.h"
#include "core/device.h"
#include "core/memory.h"
#include "format/json.h"
#include "shard/ckpt.h"

enum {
    CKPT_MANIFEST_NBYTES_MAX = TESS_JSON_LIMIT_NBYTES,
    CKPT_DIR_NAME_NBYTES = 160,
    CKPT_SHARD_NAME_NBYTES = 32,
    CKPT_WORLD_MAX = 99999, /* five digits in shard names */
    CKPT_ATTEMPT_NBYTES = 9,
    CKPT_CHUNK_ENTRY_NBYTES = 28, /* u64 offset, u32 length, 16 bytes XXH3-128, packed */
    CKPT_LOCK_NBYTES = 512
};

#define CKPT_WRITER "tessera 0.1.0"

/* ---- text ---- */

/* Text in a fixed buffer; counts on when the room is used up, so a NULL buffer measures. */
typedef struct ckpt_text {
    char *text;
    size_t room_nbytes;
    size_t nbytes;
} ckpt_text;

void ckpt_text_put(ckpt_text *t, const char *fmt, ...) TESS_PRINTF(2, 3);
/* A JSON string with quotes and escapes. */
void ckpt_text_quote(ckpt_text *t, const char *s);
/* A JSON number that reads back to the same bits and is no integer. */
void ckpt_text_f64(ckpt_text *t, double x);
void ckpt_text_value(ckpt_text *t, const tess_ckpt_value *v);

/* ---- names and sets ---- */

/* UTF-8, 1-512 bytes, no control bytes, no '/', no backslash, not "." or "..". */
bool ckpt_is_component(const char *name);
/* As above, but '/' inside is fine and ".." is not. */
bool ckpt_is_tensor_name(const char *name);
/* UTF-8 that JSON can hold. */
bool ckpt_is_text(const char *text);
bool ckpt_is_hex(const char *text, size_t nbytes);
void ckpt_shard_name(int rank, int world, char name[CKPT_SHARD_NAME_NBYTES]);
/* "step-<10 digits>.<8 hex>"; *step gets the number. */
bool ckpt_parse_step_name(const char *name, int64_t *step);
void ckpt_step_name(int64_t step, const char *attempt, char name[CKPT_DIR_NAME_NBYTES]);
tess_status ckpt_join(char *out, const char *dir, const char *name); /* out[PATH_MAX] */

/* One logical tensor in one role. */
typedef struct ckpt_pair {
    int64_t tensor_idx;
    int64_t record_idx;
} ckpt_pair;

/* Look-up tables of one set. Pairs are ordered by (tensor, role). */
typedef struct ckpt_index {
    const tess_ckpt_set *set; /* borrowed */
    int64_t *record_order;    /* [record_numel] sorted by (unit, role) */
    int64_t *tensor_order;    /* [tensor_numel] sorted by name */
    ckpt_pair *pairs;         /* [pair_numel] */
    int64_t pair_numel;
    int64_t *first_pair; /* [tensor_numel + 1] */
} ckpt_index;

/* Check a set (names, sizes, duplicates, extents) and index it. `where` is for messages. */
TESS_MUST_CHECK tess_status ckpt_index_create(const char *where, const tess_ckpt_set *set,
                                              ckpt_index *out);
void ckpt_index_destroy(ckpt_index *index);
/* Position in the set, -1 when absent. */
int64_t ckpt_index_record(const ckpt_index *index, const char *unit, const char *role);
int64_t ckpt_index_tensor(const ckpt_index *index, const char *name);
/* Add the part of a pair that `data`, elements [lo, hi) of the record, holds. */
void ckpt_hash_pair(const tess_ckpt_set *set, ckpt_pair pair, const void *data, int64_t lo_idx,
                    int64_t hi_idx, tess_logical_hash *hash);
size_t ckpt_record_nbytes(const tess_ckpt_record *record, int world, int rank);
/* Upper bound of what is not payload in a rank's file. */
size_t ckpt_metadata_nbytes_max(const tess_ckpt_set *set, int rank);

/* ---- memory of records ---- */

/* How the store reaches memory that is a device's; all zero on the host. */
typedef struct ckpt_window {
    tess_device *device;
    tess_stream *after;  /* work enqueued on it comes before what a snapshot sees; borrowed */
    tess_stream *stream; /* of all copies */
    tess_event ready, copied;
    bool has_events;
    tess_arena *arena; /* one chunk of host memory */
    void *memory;
} ckpt_window;

/* Nothing to do for the host. */
TESS_MUST_CHECK tess_status ckpt_window_open(tess_device *device, tess_stream *after,
                                             ckpt_window *w);
/* Waits for copies under way. */
void ckpt_window_close(ckpt_window *w);
/* Later copies come after what is enqueued on `after` now. */
TESS_MUST_CHECK tess_status ckpt_window_follow(ckpt_window *w);
/* Bytes [offset, +nbytes) of a view, at most a chunk, where the host can read them until the next
 * call. */
TESS_MUST_CHECK tess_status ckpt_window_read(ckpt_window *w, tess_view v, int64_t offset_nbytes,
                                             int64_t nbytes, const void **out);
/* At most a chunk of host memory into a view; done on return. */
TESS_MUST_CHECK tess_status ckpt_window_write(ckpt_window *w, tess_view v, int64_t offset_nbytes,
                                              const void *src, int64_t nbytes);

/* What one rank holds of a set. */
typedef struct ckpt_shard_views {
    const ckpt_index *index;
    const tess_view *views; /* [record_numel] */
    ckpt_window *window;
    int rank; /* of shard_world */
} ckpt_shard_views;

/* Sees every chunk, in order of records. */
typedef void (*ckpt_chunk_fn)(void *arg, int64_t record_idx, int64_t at_nbytes, const void *data,
                              int64_t nbytes);
/* Hash what a rank holds, each byte read once; `fn` may be NULL. hashes [pair_numel] */
TESS_MUST_CHECK tess_status ckpt_hash_records(const ckpt_shard_views *from, ckpt_chunk_fn fn,
                                              void *arg, tess_logical_hash *hashes);

/* ---- manifest ---- */

/* One shard file as the manifest knows it; gathered as bytes. */
typedef struct ckpt_file {
    int64_t file_nbytes;
    int64_t table_offset_nbytes;
    int64_t table_nbytes;
    tess_sha256 metadata; /* of every byte outside payload and chunk table */
    tess_sha256 table;
} ckpt_file;

/* What a manifest says, to be written. */
typedef struct ckpt_manifest_spec {
    const char *kind; /* "step" or "base" */
    const char *attempt;
    const char *run_id;
    const char *plan_digest, *config_digest, *binary_id;
    int gather_group;
    int64_t step, epoch, wall_time_s;
    const char *base_id; /* of a base manifest, else NULL */
    const ckpt_index *index;
    const ckpt_file *files;          /* [set->shard_world] */
    const tess_logical_hash *hashes; /* [pair_numel] */
    const tess_ckpt_value *state;    /* [state_numel], sorted by name */
    int64_t state_numel;
    const tess_ckpt_base *base; /* what a step stands on */
    tess_sha256 base_manifest;
    bool has_parent;
    int64_t parent_step;
    tess_sha256 parent_manifest;
} ckpt_manifest_spec;

void ckpt_manifest_format(const ckpt_manifest_spec *spec, ckpt_text *t);
/* Add the last line; *digest is what it says. */
TESS_MUST_CHECK tess_status ckpt_manifest_seal(ckpt_text *t, tess_sha256 *digest);

/* A verified and checked manifest. All strings belong to `json`. */
typedef struct ckpt_manifest {
    tess_json *json;
    char source[PATH_MAX]; /* path, for messages */
    const char *kind, *attempt, *run_id, *plan_digest, *config_digest, *binary_id, *writer;
    int64_t step, epoch, wall_time_s, gather_group;
    const char *base_id; /* of a base manifest */
    tess_ckpt_record *records;
    tess_ckpt_tensor *tensors;
    tess_ckpt_set set;
    ckpt_index index;
    ckpt_file *files;          /* [set.shard_world] */
    tess_logical_hash *hashes; /* [index.pair_numel] */
    tess_ckpt_value *state;
    int64_t state_numel;
    tess_ckpt_base base;
    tess_ckpt_source_file *base_files;
    tess_sha256 base_manifest;
    bool has_parent;
    int64_t parent_step;
    tess_sha256 digest;
} ckpt_manifest;

/* Verify the last line and every field. @return TESS_E_FORMAT names source and field */
TESS_MUST_CHECK tess_status ckpt_manifest_parse(const char *source, const char *text, size_t nbytes,
                                                ckpt_manifest *out);
/* The manifest is the one that was asked for; `sha256` NULL: any. @return TESS_E_FORMAT */
TESS_MUST_CHECK tess_status ckpt_manifest_check_digest(const char *dir, const ckpt_manifest *m,
                                                       const char *sha256);
/* Bytes of DIR/MANIFEST, no symlink; free with tess_free. */
TESS_MUST_CHECK tess_status ckpt_manifest_read_bytes(tess_io *io, const char *dir, char **text,
                                                     size_t *nbytes);
TESS_MUST_CHECK tess_status ckpt_manifest_read(tess_io *io, const char *dir, ckpt_manifest *out);
void ckpt_manifest_fini(ckpt_manifest *m);

/* ---- HDF5 ---- */

/* What one shard file must contain. */
typedef struct ckpt_h5_spec {
    const char *kind;
    const char *run_id;
    const char *plan_digest;
    int64_t step;
    int rank;
    const tess_ckpt_set *set;
    const tess_ckpt_value *state;
    int64_t state_numel;
    int64_t chunk_numel; /* only for building */
} ckpt_h5_spec;

typedef struct ckpt_h5_layout {
    int64_t *payload_offset_nbytes; /* [record_numel], caller's memory; -1 for empty ranges */
    int64_t table_offset_nbytes;    /* -1 without chunks */
    int64_t file_nbytes;
} ckpt_h5_layout;

/* Prepare the library for this thread; false where it may be called from one thread only. */
bool ckpt_h5_start(void);
/* Build a file without payload in the file `path`, whose name is removed as soon as it is open. */
TESS_MUST_CHECK tess_status ckpt_h5_build(const char *path, const ckpt_h5_spec *spec,
                                          ckpt_h5_layout *out);
/* Open a file whose metadata digest was checked; compare all of it with `spec`. */
TESS_MUST_CHECK tess_status ckpt_h5_check(const char *path, const ckpt_h5_spec *spec,
                                          ckpt_h5_layout *out);

/* ---- one shard file ---- */

typedef struct ckpt_chunk {
    int64_t offset_nbytes;
    int64_t nbytes;
    tess_xxh128 digest;
} ckpt_chunk;

typedef struct ckpt_times {
    double snapshot_s, hash_s, write_s, fsync_s, read_back_s, commit_s;
} ckpt_times;

typedef struct ckpt_shard_job {
    tess_io *io;
    const char *dir; /* exists */
    ckpt_h5_spec h5;
    const ckpt_index *index;
    const tess_view *views; /* [record_numel] this rank's elements */
    ckpt_window *window;    /* to read them */
    bool has_read_back;
    tess_logical_hash *hashes; /* [pair_numel] out: this rank's parts */
    ckpt_file file;            /* out */
    bool is_h5_failed;         /* out: HDF5 itself failed */
    bool is_disk_full;         /* out: there was no room */
    ckpt_times times;          /* out */
} ckpt_shard_job;

/* Whether the system call that failed last wanted more room than there is. */
bool ckpt_is_full(void);
/* Digest, build, write, fsync, read back where asked; allocates, never communicates. */
TESS_MUST_CHECK tess_status ckpt_shard_write(ckpt_shard_job *job);
/* Read a chunk of an open file. @param[out] buffer  [c->nbytes] @param[out] is_whole  it has its
 * digest */
TESS_MUST_CHECK tess_status ckpt_chunk_read(tess_io *io, const char *path, int fd,
                                            const ckpt_chunk *c, void *buffer, bool *is_whole);
/* Size, chunk table and metadata digest; then the table [*chunk_numel], free with tess_free. */
TESS_MUST_CHECK tess_status ckpt_shard_check(tess_io *io, const char *path, const ckpt_file *file,
                                             ckpt_chunk **chunks, int64_t *chunk_numel);

/* Open a file that a published checkpoint must have. @return TESS_E_FORMAT it is not there, or is a
 * symbolic link: the checkpoint is damaged; TESS_E_IO it cannot be read */
TESS_MUST_CHECK tess_status ckpt_open_part(tess_io *io, const char *path, int *fd,
                                           int64_t *file_nbytes);

/* ---- reading a whole checkpoint, any ranges ---- */

typedef struct ckpt_reader_shard {
    bool is_checked;
    int64_t *payload_offset_nbytes; /* [record_numel] */
    ckpt_chunk *chunks;
    int64_t chunk_numel;
} ckpt_reader_shard;

typedef struct ckpt_reader {
    tess_io *io;
    char dir[PATH_MAX];
    ckpt_manifest manifest;
    ckpt_reader_shard *shards; /* [shard_world] */
    void *buffer;              /* one chunk */
    int open_rank;             /* shard behind fd, -1 */
    int fd;
    char path[PATH_MAX]; /* of fd */
} ckpt_reader;

/* From the bytes of its manifest (read by whoever). */
TESS_MUST_CHECK tess_status ckpt_reader_open(tess_io *io, const char *dir, const char *text,
                                             size_t nbytes, ckpt_reader *out);
void ckpt_reader_close(ckpt_reader *r);
/* Free everything but the manifest; only close is legal afterwards. */
void ckpt_reader_release(ckpt_reader *r);
/* Check one file up to its datasets; free when it was checked before. */
TESS_MUST_CHECK tess_status ckpt_reader_check(ckpt_reader *r, int shard_rank);
/* Check every file that holds a part of [lo, hi) of a record. */
TESS_MUST_CHECK tess_status ckpt_reader_check_range(ckpt_reader *r, int64_t record_idx,
                                                    int64_t lo_idx, int64_t hi_idx);
/* Elements [lo, hi) of a record into a view of as many, every chunk verified. */
TESS_MUST_CHECK tess_status ckpt_reader_load(ckpt_reader *r, int64_t record_idx, int64_t lo_idx,
                                             tess_view dst, ckpt_window *window);
/* The same into host memory. */
TESS_MUST_CHECK tess_status ckpt_reader_read(ckpt_reader *r, int64_t record_idx, int64_t lo_idx,
                                             int64_t hi_idx, void *dst);
/* Every chunk of one file. */
TESS_MUST_CHECK tess_status ckpt_reader_verify_shard(ckpt_reader *r, int shard_rank);
/* Every chunk of every file and every logical hash. */
TESS_MUST_CHECK tess_status ckpt_reader_verify(ckpt_reader *r);

/* From a directory. */
TESS_MUST_CHECK tess_status ckpt_reader_open_dir(tess_io *io, const char *dir, ckpt_reader *r);

/* ---- tools ---- */

typedef void (*ckpt_render_fn)(ckpt_text *t, const void *arg);
/* Text of `fn` to the printer: called once to measure, once to fill. */
TESS_MUST_CHECK tess_status ckpt_render(const tess_ckpt_printer *printer, ckpt_render_fn fn,
                                        const void *arg);

/* ---- directories ---- */

/* Every digest of a step or base directory, and of the base it stands on. */
TESS_MUST_CHECK tess_status ckpt_verify_dir(tess_io *io, const char *dir);
/* base/<id> beside a step directory. */
TESS_MUST_CHECK tess_status ckpt_base_dir(const char *step_dir, const char *id, char *out);
/* Remove a directory of ours: MANIFEST first, made durable, then the rest. */
TESS_MUST_CHECK tess_status ckpt_remove_dir(tess_io *io, const char *dir);

/* One committed checkpoint of the run directory. */
typedef struct ckpt_entry {
    char name[CKPT_DIR_NAME_NBYTES];
    int64_t step;
    int64_t epoch;
    bool is_valid;      /* its manifest verified */
    bool is_counted;    /* written or read in full by this process */
    bool is_resumed;    /* the run continued from it */
    bool is_unsure;     /* published, durability unknown */
    bool is_new_unsure; /* since the last tidy job: looked at by the next save, not at once */
} ckpt_entry;

typedef struct ckpt_list {
    ckpt_entry *entries; /* oldest first by (valid, epoch, step) */
    int64_t numel;
    int64_t room_numel;
} ckpt_list;

/* Committed checkpoints of a directory; with `remove_attempts` others are deleted. */
TESS_MUST_CHECK tess_status ckpt_list_scan(tess_io *io, const char *dir, bool remove_attempts,
                                           ckpt_list *out);
void ckpt_list_fini(ckpt_list *list);

/* ---- the store ---- */

typedef enum ckpt_job_kind { CKPT_JOB_NONE, CKPT_JOB_WRITE, CKPT_JOB_TIDY } ckpt_job_kind;

struct tess_ckpt_store {
    tess_comm *comm;
    const tess_ctx *ctx;
    char dir[PATH_MAX];
    int keep_numel;
    int64_t keep_every, last_step;
    bool is_reader;
    bool has_read_back;
    char plan_digest[TESS_SHA256_HEX_NBYTES], config_digest[TESS_SHA256_HEX_NBYTES], binary_id[128];
    int gather_group;
    int lock_fd; /* rank 0 */
    int64_t epoch;
    char run_id[17];
    ckpt_list list; /* rank 0 */
    bool has_parent;
    int64_t parent_step;
    tess_sha256 parent_manifest;
    ckpt_window window;

    /* prepared for saving */
    bool is_prepared;
    tess_tracer *tracer;
    tess_ckpt_set set;
    ckpt_index index;
    tess_ckpt_base base;
    tess_sha256 base_manifest;
    tess_arena *staging;
    int64_t disk_nbytes_max;   /* of one checkpoint, all ranks */
    tess_view *snapshot;       /* [record_numel] places in staging */
    tess_logical_hash *hashes; /* [pair_numel] */
    int64_t *sums;             /* [pair_numel * 4] */
    ckpt_file *files;          /* [world] rank 0 */
    char *text;                /* [text_room_nbytes] rank 0 */
    size_t text_room_nbytes;
    char *state_room; /* copies of names and texts */
    size_t state_room_nbytes;
    tess_ckpt_value *state; /* [state_max_numel] */
    int64_t state_max_numel, state_numel;

    /* the save in flight */
    bool is_in_flight;
    bool is_dropped;   /* the last snapshot, which is there still */
    bool is_disk_full; /* what dropped it on this rank */
    bool is_copying;   /* the snapshot is on its way: the writer starts when it is there */
    int64_t step;
    char attempt[CKPT_ATTEMPT_NBYTES];
    char attempt_name[CKPT_DIR_NAME_NBYTES];
    char attempt_dir[PATH_MAX];
    ckpt_shard_job job;
    ckpt_times times;

    /* writer thread; fields below are guarded by `mutex` */
    pthread_t thread;
    bool has_thread;
    bool is_h5_broken; /* HDF5 failed to build a file: it is not asked again in this process */
    bool is_single_threaded; /* this HDF5 may be called from one thread only */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    ckpt_job_kind todo;
    bool is_stopping;
    tess_status job_status;
    char job_message[TESS_ERROR_MESSAGE_NBYTES];
    char drop_dir[PATH_MAX]; /* attempt to remove, "" none; handed over with the job */
};

/* One directory whose files are written, to be published. Memory is the caller's. */
typedef struct ckpt_attempt {
    const char *dir;
    const ckpt_index *index;
    const ckpt_file *file;     /* this rank's, if it writes */
    tess_logical_hash *hashes; /* in: this rank's parts, out: sums */
    int64_t *sums;             /* [4 * pair_numel] */
    ckpt_file *files;          /* [world] on rank 0 */
    ckpt_text text;            /* on rank 0 */
    ckpt_manifest_spec spec;   /* what differs between kinds is filled in */
    tess_ckpt_outcome outcome; /* out */
    char message[1024];        /* out: why unsure */
    tess_sha256 digest;        /* out */
    int64_t disk_nbytes;       /* out */
} ckpt_attempt;

/* Gather, write MANIFEST on rank 0, tell everybody. DROPPED leaves the agreed error record. Returns
 * only what ends a run. Collective; allocates nothing. */
TESS_MUST_CHECK tess_status ckpt_publish(tess_ckpt_store *s, ckpt_attempt *a);
/* After a failed system call: where it wanted more room than there is, that is noted, and told with
 * what a checkpoint needs. @return st */
TESS_MUST_CHECK tess_status ckpt_judge_room(tess_ckpt_store *s, tess_status st);
/* A step was published: list, parent, and the tidy job. */
void ckpt_note_commit(tess_ckpt_store *s, const ckpt_attempt *a);
/* Bytes a manifest of `set` may need, state included. */
size_t ckpt_manifest_room(const tess_ckpt_store *s, const ckpt_index *index,
                          const tess_ckpt_base *base, size_t state_room_nbytes);

/* Write one shard, unless HDF5 has failed in this process before. */
TESS_MUST_CHECK tess_status ckpt_store_write(tess_ckpt_store *s, ckpt_shard_job *job);
/* Wait for the writer, then give it something to do. */
void ckpt_thread_post(tess_ckpt_store *s, ckpt_job_kind kind);
void ckpt_thread_wait(tess_ckpt_store *s);
TESS_MUST_CHECK tess_status ckpt_thread_start(tess_ckpt_store *s);
void ckpt_thread_stop(tess_ckpt_store *s);
/* Body of a tidy job on rank 0: LATEST, unsure ones, retention, a dropped attempt. */
void ckpt_tidy(tess_ckpt_store *s);
/* Manifest of a directory, read by rank 0, to everybody; free with tess_free. Collective. */
TESS_MUST_CHECK tess_status ckpt_bcast_manifest(tess_comm *comm, tess_io *io, const char *dir,
                                                char **text, size_t *nbytes);
/* What a manifest holds is what `wanted` has, no less, and no more than the request (NULL: none)
 * may leave; ranks may differ. */
TESS_MUST_CHECK tess_status ckpt_compare_sets(const char *where, const ckpt_index *wanted,
                                              const ckpt_manifest *m,
                                              const tess_ckpt_load_request *request);
/* Views of this rank against the ranges it must hold, and against where the store reaches. */
TESS_MUST_CHECK tess_status ckpt_check_views(const tess_ckpt_store *s, const tess_ckpt_set *set);
/* Epoch that LOCK shows now; -1 when unreadable. Allocates nothing. */
int64_t ckpt_lock_epoch(tess_ckpt_store *s);
/* Whether LOCK is the file that this run holds: a directory that was removed and made anew has
 * another, and its epochs begin anew. Rank 0 of a writer. */
bool ckpt_lock_is_held(const tess_ckpt_store *s);
/* Sum hashes over the ranks whose `is_counted`; `sums` [4 * numel] is scratch. Collective. */
TESS_MUST_CHECK tess_status ckpt_hash_reduce(tess_comm *comm, bool is_counted,
                                             tess_logical_hash *hashes, int64_t numel,
                                             int64_t *sums);
