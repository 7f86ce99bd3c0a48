/** A command that works with a run: communicator, context, session, and a clean end on every rank.
 */
#pragma once

#include "launch/launch.h"
#include "train/session.h"

TESS_BEGIN_DECLS

/** The work itself; `arg` is the command's own. Called on every rank. */
typedef tess_status (*tess_job_body)(tess_session *session, tess_comm *comm, void *arg);

/** Work of all ranks that needs no run. */
typedef tess_status (*tess_ranks_body)(const tess_ctx *ctx, tess_comm *comm, void *arg);

/** Run `body` on all ranks of the launch and end cleanly. Collective; failures as in
 * tess_launch_job(). */
TESS_MUST_CHECK tess_status tess_launch_ranks(const tess_common_options *common,
                                              tess_ranks_body body, void *arg);
/**
 * Open a session on all ranks of the launch (one rank without mpirun), run `body`, close.
 *
 * Collective. A failure that peers cannot know of ends the whole job with its exit code.
 * `options` comes without progress and signals: they are set here.
 */
TESS_MUST_CHECK tess_status tess_launch_job(const tess_common_options *common,
                                            const tess_session_options *options, tess_job_body body,
                                            void *arg);
/** A job on a checkpoint, or the newest of a run directory, by the run file that it carries; `arg`
 * is the command's own. Collective.
 * @param manifest_sha256  that its MANIFEST must have, NULL: any
 * @return TESS_E_NOT_FOUND no checkpoint; TESS_E_FORMAT another manifest */
TESS_MUST_CHECK tess_status tess_launch_checkpoint(const tess_common_options *common,
                                                   const tess_ctx *ctx, const char *path,
                                                   const char *manifest_sha256, tess_job_body body,
                                                   void *arg);
/** Signals of a process that trains: before any thread starts. Local. */
void tess_launch_listen(void);
/** Session options of a RUN.yaml argument. */
tess_session_options tess_launch_session(const tess_run_options *run, tess_session_kind kind,
                                         const char *checkpoint);

TESS_END_DECLS
