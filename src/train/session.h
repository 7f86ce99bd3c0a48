/**
 * A run on its ranks: run file, plan, memory, data, checkpoints, ready to train, evaluate, sample
 * or export.
 *
 * Everything here is Collective over the communicator that the session was opened with, unless it
 * says Local.
 */
#pragma once

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/ctx.h"
#include "core/device.h"
#include "dist/comm.h"
#include "kernels/kernels.h"
#include "train/run_file.h"

TESS_BEGIN_DECLS

typedef struct tess_session tess_session;

typedef enum tess_session_kind {
    TESS_SESSION_TRAIN,  /* writes output.dir */
    TESS_SESSION_READER, /* evaluation, sampling, export: nothing of the run directory changes */
} tess_session_kind;

typedef struct tess_session_options {
    tess_session_kind kind;
    const char *run_path;
    const char
        *run_text; /* the run file's text where it is known already (rank 0); NULL: read run_path */
    const tess_run_override *overrides; /* [override_numel] */
    int64_t override_numel;
    bool accept_config_change;
    const char
        *checkpoint; /* reader: a directory; "none": the base alone; NULL: newest of output.dir */
    /* reader: a PEFT adapter directory over the run's base, in place of a checkpoint; its own rules
     * replace section lora. NULL: none. */
    const char *adapter;
    bool needs_data;                           /* open the data sets */
    const volatile sig_atomic_t *stop_request; /* set by a signal: save and stop; NULL: none */
    double deadline_s; /* of a step's sections; 0: from the measured step time, at least 60 */
    const tess_kernels *kernels; /* NULL: the table of compute.device; outlives the session */
    /* NULL: what compute.device says. A device of the caller's, with `kernels` of its own, whose
     * memory the session's communicator reaches; outlives the session. */
    tess_device *device;
    /* Progress goes here on rank 0, as text for a terminal of `columns` or as lines; NULL: none. */
    void (*show)(void *arg, const char *text);
    void *show_arg;
    bool is_terminal;
    int columns;
} tess_session_options;

/** Open: parse, plan, agree, allocate, load or resume. */
TESS_MUST_CHECK tess_status tess_session_open(const tess_ctx *ctx, tess_comm *world,
                                              const tess_session_options *options,
                                              tess_session **out);
/** Local. NULL is fine. */
void tess_session_close(tess_session **session);

/** Train to the last step. @return TESS_E_PREEMPTED after a save on request; TESS_E_NUMERIC */
TESS_MUST_CHECK tess_status tess_session_train(tess_session *session);

typedef struct tess_eval_result {
    double loss; /* mean over all held-out loss tokens */
    int64_t loss_token_numel;
    int64_t sequence_numel;
    int64_t step; /* of the parameters */
} tess_eval_result;

/** Loss on data.eval_path. @return TESS_E_CONFIG without eval data */
TESS_MUST_CHECK tess_status tess_session_evaluate(tess_session *session, tess_eval_result *out);

typedef struct tess_sample_request {
    const char *prompt;
    int64_t token_numel; /* at most so many new ones */
    double temperature;  /* 0: always the likeliest */
    int64_t top_k;       /* 0: all */
    uint64_t seed;
} tess_sample_request;

/** Continue a prompt with the model's tokenizer.json; `text` (free with tess_free) on every rank.
 */
TESS_MUST_CHECK tess_status tess_session_sample(tess_session *session,
                                                const tess_sample_request *request, char **text);

/** Images of a diffusion run, as latents. */
typedef struct tess_latent_request {
    const char *cache; /* where captions are; NULL: data.path */
    const char *const *caption;
    int64_t caption_numel;
    int64_t image_numel;   /* of each caption */
    int64_t height, width; /* pixels, multiples of 16 */
    int64_t step_numel;
    double guidance;    /* ignored by models without it */
    double shift;       /* S; 0: by resolution for models with guidance, none for others */
    uint64_t seed;      /* image k of every caption begins with noise of (seed, k) */
    const char *output; /* .safetensors */
    /* Called before every step, for a watchdog; NULL: nobody. */
    void (*tick)(void *arg);
    void *tick_arg;
} tess_latent_request;

/** What section sample of a diffusion run asks for; `output` is the caller's. Local. */
tess_latent_request tess_session_latent_request(const tess_session *session);

/**
 * Sample from the flow: Euler steps of equal length in shifted sigma from 1 to 0. The file holds
 * "latents" [captions x images, C, height / 8, width / 8] f32 in model space, caption by caption;
 * the metadata says how they were made. The same request gives the same bits on any number of
 * ranks. Collective.
 * @return TESS_E_CONFIG a caption that the cache does not hold, a size above the planned one;
 * TESS_E_UNSUPPORTED no diffusion run; TESS_E_NUMERIC a latent that is not finite
 */
TESS_MUST_CHECK tess_status tess_session_sample_latents(tess_session *session,
                                                        const tess_latent_request *request);

typedef struct tess_export_request {
    const char *dir;
    tess_run_export format; /* auto: what the run's mode says */
    tess_dtype dt; /* of the tensors: compute dtype = the copy that was evaluated; f32: the masters;
                      f16: these, rounded */
    tess_run_weights weights; /* the trained ones or their moving average */
    bool is_difference; /* peft, after a start from the weights: an adapter of those, rank 2r */
} tess_export_request;

/** Write the adapter (PEFT) or the model (HF directory). */
TESS_MUST_CHECK tess_status tess_session_export(tess_session *session,
                                                const tess_export_request *request);

/** The run and what was resolved; borrowed. Local. */
const tess_run *tess_session_run(const tess_session *session);
/** Whether a failure inside a collective section leaves peers waiting: the job must be ended. NULL
 * is fine. Local. */
bool tess_session_is_broken(const tess_session *session);
/** Completed steps. Local. */
int64_t tess_session_step(const tess_session *session);

/** What `tessera plan` is asked for. */
typedef struct tess_plan_request {
    int rank_numel;       /* world size to plan for, >= 1 */
    const char *device;   /* plan for this device and predict times (shard/profile.h); NULL: not */
    const char *network;  /* between nodes; NULL: the one that goes with the device */
    const char *timeline; /* write the simulated step there; NULL: not */
    bool is_json;
} tess_plan_request;

/**
 * `tessera plan`: describe without ranks or device. Local.
 * @param text  JSON (without `device`: the same as plan.json of the run) or text for people; free
 * with tess_free
 * @return TESS_E_UNSUPPORTED an unknown device or network; TESS_E_FORMAT a bad description
 */
TESS_MUST_CHECK tess_status tess_session_plan(const tess_ctx *ctx,
                                              const tess_session_options *options,
                                              const tess_plan_request *request, char **text);

TESS_END_DECLS
