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
#include "kernels/cost.h"
#include "kernels/kernels.h"
#include "shard/trace.h"
#include "train/run_file/run_file.h"

TESS_BEGIN_DECLS

typedef struct tess_session tess_session;

typedef enum tess_session_kind {
    TESS_SESSION_TRAIN,  /* writes output.dir */
    TESS_SESSION_READER, /* evaluation, sampling, export: nothing of the run directory changes */
} tess_session_kind;

/** One step as this rank saw it. */
typedef struct tess_measured_step {
    double step_s; /* from the step's first look at flags to its end */
    double wait_s; /* of it: the compute lane stood still for others; NaN: not known */
    int64_t host_peak_nbytes, device_peak_nbytes; /* so far; maxima over ranks */
    double loss;
    bool is_traced;
} tess_measured_step;

/** One checkpoint as this rank saw it: how long its training thread stood still, and what the
 * writer did. */
typedef struct tess_measured_save {
    double begin_s, commit_s; /* of the training thread: snapshot; agreement and publication */
    double publish_s;         /* from the beginning to a manifest on disk, steps between included */
    double write_s;           /* of the writer: digests, writing, fsync */
    int64_t disk_nbytes;      /* of all ranks' files */
} tess_measured_save;

/**
 * A training session that is measured: no evaluation, images or export, and checkpoints only where
 * they are asked for. Callbacks are called on every rank, between steps; NULL: not wanted.
 */
typedef struct tess_session_measure {
    int64_t step_numel;   /* end after so many; at most what is left of the run's train.steps, of
                             k-means jobs less than quantizer.passes */
    int64_t save_every;   /* steps; 0: nothing is kept in output.dir */
    int64_t traced_numel; /* further steps, whose spans go to on_event, single kernels among them;
                             none of k-means jobs */
    void *arg;
    void (*on_step)(void *arg, const tess_measured_step *step);
    void (*on_save)(void *arg, const tess_measured_save *save);
    tess_trace_sink on_event; /* of traced steps; local failures end the recording alone */
} tess_session_measure;

/** Seconds that opening took on this rank. */
typedef struct tess_open_times {
    double open_s;       /* run file, model, plan, data, agreement, memory */
    double read_s;       /* tensors from files, or everything from a checkpoint */
    double make_s;       /* drawing, decoding, quantizing, digests */
    double distribute_s; /* bytes to their owners, with waits for slower ranks */
    double rest_s;       /* of loading: files beside the checkpoints, compute copies */
} tess_open_times;

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
    const char *manifest_sha256; /* 64 hex digits: of the checkpoint's MANIFEST; NULL: any */
    /* reader: a PEFT adapter directory over the run's base, in place of a checkpoint; its own rules
     * replace section lora. NULL: none. */
    const char *adapter;
    bool needs_data; /* open the data sets */
    /* compute.device: cuda is as auto: a checkpoint is read on machines without the device that
     * its run asked for. */
    bool may_lack_device;
    /* Refuses runs that the caller has no use for, as soon as the run file is known and before
     * anything else is read; the same verdict on all ranks. NULL: takes any. */
    tess_status (*accept)(const void *arg, const tess_run *run);
    const void *accept_arg;
    const volatile sig_atomic_t *stop_request; /* set by a signal: save and stop; NULL: none */
    const tess_session_measure *measure; /* NULL: a run as its file says; outlives the session */
    double deadline_s; /* of a step's sections; 0: from the measured step time, at least 60 */
    double pause_s;    /* between looks at a full disk, output.on_disk_full: pause; 0: 30 */
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
    double loss;       /* mean over all held-out loss tokens */
    double perplexity; /* exp(loss) of language models, else 0 */
    int64_t loss_token_numel;
    int64_t sequence_numel;
    int64_t step; /* of the parameters */
} tess_eval_result;

/** Loss on data.eval_path. @return TESS_E_CONFIG without eval data */
TESS_MUST_CHECK tess_status tess_session_evaluate(tess_session *session, tess_eval_result *out);

typedef struct tess_sample_request {
    const char *const *prompt; /* [prompt_numel] */
    int64_t prompt_numel;
    int64_t token_numel; /* at most so many new ones */
    double temperature;  /* 0: always the likeliest */
    int64_t top_k;       /* 0: all */
    uint64_t seed;       /* of every prompt alike */
    /* Called before every token, for a watchdog; NULL: nobody. */
    void (*tick)(void *arg);
    void *tick_arg;
} tess_sample_request;

/** What section sample of a language model's run asks for. Local. */
tess_sample_request tess_session_sample_request(const tess_session *session);

/**
 * Continue prompts with the model's tokenizer.json, each on a rank of its own; the same request
 * gives the same texts on any number of ranks. Collective.
 * @param[out] text  [prompt_numel] prompts and what follows, on every rank; free each with
 * tess_free; NULL on failure
 * @return TESS_E_UNSUPPORTED no language model; TESS_E_CONFIG there is no tokenizer.json,
 * or a prompt is longer than data.sequence_length; TESS_E_ARG a prompt without a token;
 * TESS_E_NUMERIC a logit that is not finite
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
/** The family that was taken, and base.format as the run file writes it. Local. */
const char *tess_session_family(const tess_session *session);
const char *tess_session_base_format(const tess_session *session);
/** Backend and instruction path of its kernels: "cpu/avx2". Local. */
const char *tess_session_kernel_path(const tess_session *session);
/** How long opening took. Local. */
tess_open_times tess_session_open_times(const tess_session *session);
/** What the plan says of every rank's memory, and of a step's model FLOPs over all ranks; of
 * k-means jobs: of the searches of a pass of the first level. Local. */
size_t tess_session_planned_nbytes(const tess_session *session);
double tess_session_model_flops(const tess_session *session);
/** Closed forms of a step's forwards and backwards on this rank, recomputation included; zero for
 * k-means jobs. Local. */
tess_cost tess_session_step_cost(const tess_session *session);
/** Vectors of a pass or mini-batch of a k-means job, of all ranks; 0 for other runs. Local. */
int64_t tess_session_pass_numel(const tess_session *session);
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
