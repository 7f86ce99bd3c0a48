/**
 * What every loop of steps has, whatever a step is: signs of life, metrics, progress, checkpoints
 * on their way to disk, requests to stop.
 */
#pragma once

#include "train/metrics.h"
#include "train/progress.h"
#include "train/session_priv.h"

TESS_BEGIN_DECLS

typedef struct session_loop {
    tess_session *s;
    tess_metrics *metrics; /* rank 0 */
    tess_trace *trace;     /* NULL: not asked for, or given up */
    tess_progress progress;
    tess_watchdog *watchdog;
    char *run_yaml;
    bool is_saving;
    bool is_stopping;
    int64_t done_numel; /* steps of this call */
    double longest_step_s;
    int64_t device_peak_nbytes; /* of this rank, so far */
    int64_t asked_step;         /* of the last save that was asked for, -1: none */
    int64_t committed_step;     /* of the last one that is on disk, -1: none by this process */
    double begun_s, begin_s;    /* of the save under way: when it began, how long that took */
} session_loop;

/** How a loop differs from others at its start. */
typedef struct session_loop_kind {
    const char *unit;   /* of progress */
    int64_t step_numel; /* of the whole run, at most */
    tess_status (*write_plan)(tess_session *s, const char *path);
} session_loop_kind;

/** Watchdog, progress, run.yaml, plan.json, metrics. Local; loop_end releases what there is. */
TESS_MUST_CHECK tess_status loop_begin(session_loop *l, tess_session *s,
                                       const session_loop_kind *kind);
/** Release. @return `st`: metrics of rank 0 that cannot be closed are said where it is TESS_OK */
tess_status loop_end(session_loop *l, tess_status st);

/** The next section begins: how long it may take follows from the longest step. Local. */
void loop_beat(session_loop *l, const char *label);
/** The same of files, which may be slow without being lost: they get the time of a start. Local. */
void loop_beat_files(session_loop *l, const char *label);
/** Whether this rank was asked to stop. Local. */
bool loop_is_asked(const session_loop *l);
/** Metrics of rank 0 that cannot be written: say it, the run is worth more. Local. */
void loop_note_metrics(const session_loop *l, tess_status st);
/** What a step took. Local. */
void loop_note_step(session_loop *l, double step_s);

/** What this rank has taken of its device, at most and with now; 0 on the host. Local. */
int64_t loop_device_peak(session_loop *l);
/** What a plan says of a device's memory, and what was taken. Local. @param library_nbytes  of
 * `planned_nbytes`, for libraries */
void loop_tell_device_memory(session_loop *l, size_t planned_nbytes, size_t library_nbytes);

/** Publish the save under way, where there is one. A full disk is met as output.on_disk_full says;
 * a request to stop that comes while it is waited for is in `is_stopping`. Collective.
 * @return TESS_E_IO on_disk_full is stop */
TESS_MUST_CHECK tess_status loop_commit(session_loop *l);
/** Before a save: an earlier one is on disk then. Collective. @param[out] is_due  false: this one
 * is left out, and said so; never the last of a run */
TESS_MUST_CHECK tess_status loop_prepare_save(session_loop *l, bool is_last, bool *is_due);
/** Start to save records and `state`; a full disk is met as in loop_commit(). Collective. */
TESS_MUST_CHECK tess_status loop_save(session_loop *l, const tess_ckpt_value *state,
                                      int state_numel);
/** After the last step: nothing is under way any more. Collective. */
TESS_MUST_CHECK tess_status loop_drain(session_loop *l);
/** A save that was asked for last and is not on disk: the run is not safe, whatever else went well.
 * Local. @return TESS_E_IO */
TESS_MUST_CHECK tess_status loop_check_last_save(const session_loop *l);

/** Rank 0's files of metrics go on behind step s->step, as when a run is resumed. Collective.
 * @return TESS_E_IO */
TESS_MUST_CHECK tess_status loop_reopen_metrics(session_loop *l);

/** What became of a step. */
typedef enum loop_verdict {
    LOOP_UPDATED,
    LOOP_NONFINITE,   /* skipped */
    LOOP_SPIKE,       /* skipped */
    LOOP_ROLLED_BACK, /* it is as if it had not been, nor those before it back to a checkpoint */
} loop_verdict;
/** The loss guard's tess_step_request.wants_update, where `arg` is the session: where it is not
 * given, nothing spikes. Local. */
bool loop_guard_wants_update(void *session, const tess_step_result *r);
/** Behind a step, with its number in the session: count it, or skip it, or go back. Collective.
 * @return TESS_E_NUMERIC too many were skipped, or went back; TESS_E_IO the checkpoint to go back
 * to could not be written */
TESS_MUST_CHECK tess_status loop_guard_step(session_loop *l, const tess_step_result *r,
                                            loop_verdict *out);

/** Watches for ranks that are slow, and warns of them. */
typedef struct loop_anomaly loop_anomaly;
/** Local. @return TESS_E_MEMORY; what there is goes with loop_anomaly_destroy() */
TESS_MUST_CHECK tess_status loop_anomaly_create(const tess_session *s, loop_anomaly **out);
/** NULL is fine. Local. */
void loop_anomaly_destroy(loop_anomaly **a);
/** Around what a step computes, behind it with its number in the session. NULL: nothing is watched.
 * The first is local, the second collective. */
void loop_anomaly_begin(const session_loop *l, loop_anomaly *a);
TESS_MUST_CHECK tess_status loop_anomaly_step(session_loop *l, loop_anomaly *a,
                                              const tess_step_result *r);

/** Digests of what ranks hold copies of. */
typedef const char *loop_copy_name(const tess_session *s, int digest_idx);
typedef struct loop_copies {
    tess_xxh128 *mine, *all; /* [digest_numel], rank 0: [world, digest_numel] */
    int digest_numel;
    loop_copy_name *name; /* of what a digest is of, in messages */
} loop_copies;
/** Local. @return TESS_E_MEMORY; what there is goes with loop_copies_fini() */
TESS_MUST_CHECK tess_status loop_copies_init(const tess_session *s, int digest_numel,
                                             loop_copy_name *name, loop_copies *out);
void loop_copies_fini(loop_copies *c);
/** Compare `mine` of ranks whose numbers are equal modulo `copy_stride`. Collective. @return
 * TESS_E_NUMERIC they differ: what, and the rank, are named */
TESS_MUST_CHECK tess_status loop_copies_compare(session_loop *l, const loop_copies *c,
                                                int copy_stride, const char *what);
/** Before a verdict ends the run: what was saved is published, and the verdict said where the disk
 * may keep that from happening. Collective. */
TESS_MUST_CHECK tess_status loop_commit_before(session_loop *l, tess_status refused);

/** Looks for bytes that changed without anybody writing them. */
typedef struct loop_integrity loop_integrity;
/** Local. @return TESS_E_MEMORY; what there is goes with loop_integrity_destroy() */
TESS_MUST_CHECK tess_status loop_integrity_create(const tess_session *s, loop_integrity **out);
/** NULL is fine. Local. */
void loop_integrity_destroy(loop_integrity **n);
/** The base as it is now is the one that later looks compare with; where gather groups hold copies
 * of it, they are compared. Collective. @return TESS_E_NUMERIC they differ */
TESS_MUST_CHECK tess_status loop_integrity_begin(session_loop *l, loop_integrity *n);
/** Before a step: this rank's shard of one unit of the base, all of them in turn. Local. */
TESS_MUST_CHECK tess_status loop_integrity_look(session_loop *l, loop_integrity *n,
                                                bool *is_damaged);
/** After a look that found damage on any rank: read the base again. Collective. @return
 * TESS_E_NUMERIC a rank has damage for the second time (named); TESS_E_FORMAT other bytes came */
TESS_MUST_CHECK tess_status loop_integrity_restore(session_loop *l, loop_integrity *n);
/** Compare what every rank has a copy of: now, or after a step where it is due. Collective. @return
 * TESS_E_NUMERIC unit and rank are named */
TESS_MUST_CHECK tess_status loop_integrity_compare(session_loop *l, loop_integrity *n);
TESS_MUST_CHECK tess_status loop_integrity_step(session_loop *l, loop_integrity *n);
/** Whether the next step replays a micro-batch; and what came of it. The first is local, the second
 * collective. @return TESS_E_NUMERIC other bits: rank, micro-batch and unit are named */
bool loop_integrity_wants_replay(const session_loop *l);
TESS_MUST_CHECK tess_status loop_integrity_replayed(session_loop *l, const tess_step_result *r);

TESS_END_DECLS
