/** What a job over vectors adds to a session, for the files that work with it. */
#pragma once

#include "train/loop_priv.h"
#include "train/vectors/kmeans.h"

TESS_BEGIN_DECLS

struct vectors_session {
    tess_vectors *data;      /* training vectors; NULL in a reader */
    tess_stream host_stream; /* with the session's threads */
    tess_stream *stream;     /* of the device; NULL: it is the host's */
    tess_kmeans_plan plan;
    tess_kmeans *job;
    tess_ckpt_record *record;       /* [2 books]: codes and counts */
    tess_ckpt_tensor *tensor;       /* [2 books] */
    char (*name)[TESS_NAME_NBYTES]; /* [books] "group.0.level.3" */
    char (*count_name)[TESS_NAME_NBYTES];
    loop_copies copies; /* books, and one for where the job stands */
};

/** The settings of section quantizer. Local. */
tess_kmeans_config session_kmeans_config(const tess_run *run);
/** Plan a job as the run file has it. Local, pure. */
TESS_MUST_CHECK tess_status session_kmeans_plan(const tess_run *run,
                                                const tess_kmeans_plan_request *sizes,
                                                const tess_kernels *kernels, tess_kmeans_plan *out);
/** Vectors of data.path, or of data.eval_path, without those that their mask leaves out. Local.
 * @return as tess_vectors_open and tess_vectors_leave_out */
TESS_MUST_CHECK tess_status session_open_vectors(const tess_ctx *ctx, const tess_run *run,
                                                 bool is_eval, tess_vectors **out);
/** plan.json. Local. */
TESS_MUST_CHECK tess_status session_kmeans_plan_json(const tess_kmeans_plan *plan, char **text);

TESS_END_DECLS
