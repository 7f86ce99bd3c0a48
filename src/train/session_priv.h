/** Inner structure of a session, shared by the files of its jobs. */
#pragma once

#include "dist/contract.h"
#include "dist/watchdog.h"
#include "shard/ckpt.h"
#include "shard/loader.h"
#include "shard/profile.h"
#include "shard/runtime.h"
#include "train/anomaly.h"
#include "train/data/dataset.h"
#include "train/data/vectors.h"
#include "train/describe/describe.h"
#include "train/session.h"

TESS_BEGIN_DECLS

typedef struct vectors_session vectors_session;
typedef struct vector_feed vector_feed;
typedef struct flux_feed flux_feed;
struct tess_metrics;

/** One of the two sources of a run, as contracts and listings know it. */
typedef struct session_source {
    char digest[TESS_VECTORS_DIGEST_TEXT_NBYTES]; /* "": not open */
    int64_t sequence_numel;                       /* or vectors, or samples; 0: not open */
    int64_t slot_numel; /* of held-out micro-batches, where some are not full; 0: sequence_numel */
} session_source;

/** How a model gets its data: tokens, vectors or images. Elements with a loss are tokens, vectors,
 * or samples. */
typedef struct session_feed {
    const char *unit;     /* of what has a loss, for people: "samples"; NULL: "tokens" */
    const char *sequence; /* of what a micro-batch is made of: "sequences", "samples" */
    /** Open data.path and data.eval_path, where the session needs data, and say what they are in
     * `source`. Collective. */
    tess_status (*open)(tess_session *s);
    /** Collectives of its own, behind the plan's. NULL: none. Local. */
    tess_status (*add_wires)(tess_session *s, tess_contract *c);
    /** The batch over the DATA arena. Local. */
    tess_status (*carve)(tess_session *s);
    /** Micro-batch `micro_batch_idx` (global number over the whole run) of training. Local. */
    tess_status (*fill)(tess_session *s, int64_t micro_batch_idx, const void **batch);
    /** Elements with a loss in the step that comes. Collective. */
    tess_status (*count)(tess_session *s, int64_t *loss_numel);
    /** Held-out sequences [first, first + numel). Local. */
    tess_status (*fill_eval)(tess_session *s, int64_t first, int64_t numel, const void **batch,
                             int64_t *loss_numel);
    /** Gradients of units that are held (tess_step_request.sum_held, `arg` is the session). NULL:
     * there are none. Collective. */
    tess_status (*sum_held)(void *session, float grad_scale);
    /** After a step, and after an evaluation: what the feed counts beside the loss goes into
     * `metrics` (rank 0; may be NULL). NULL: nothing. Collective. */
    tess_status (*stepped)(tess_session *s, struct tess_metrics *metrics);
    tess_status (*evaluated)(tess_session *s, struct tess_metrics *metrics);
    /** Before a save: state of the feed moves to the rank that saves it. NULL: it has none.
     * Collective. */
    tess_status (*before_save)(tess_session *s);
    /** Add its records. NULL: none. Local. */
    void (*add_records)(tess_session *s);
    /** Masters that a fresh run takes from its data. NULL: none. Collective. */
    tess_status (*start)(tess_session *s);
    /** After a checkpoint was loaded. NULL: nothing. Collective. */
    tess_status (*resumed)(tess_session *s);
    /** After compute copies became those of other weights than before. NULL: nothing. Collective.
     */
    tess_status (*shown)(tess_session *s);
    /** What section sample asks for, into output.dir/samples; `tick` for a watchdog. NULL: there is
     * nothing to sample. Collective. */
    tess_status (*sample)(tess_session *s, void (*tick)(void *arg), void *arg);
} session_feed;

extern const session_feed session_token_feed, session_vector_feed, session_flux_feed;
/** NULL is fine. Local. */
void session_vector_feed_close(tess_session *s);
/** The layout of a batch of vectors where kernels read it, and bytes of the DATA arena on their way
 * there; on the host the arena itself. Local. */
char *session_vector_near(const tess_session *s);
TESS_MUST_CHECK tess_status session_vector_send(tess_session *s, size_t offset_nbytes,
                                                int64_t nbytes);
void session_flux_feed_close(tess_session *s);
/** Whether section sample can be done: captions, sizes. Local. @return TESS_E_CONFIG */
TESS_MUST_CHECK tess_status session_check_images(tess_session *s);
/** As session_feed.sample. Collective. */
TESS_MUST_CHECK tess_status session_sample_images(tess_session *s, void (*tick)(void *arg),
                                                  void *arg);
TESS_MUST_CHECK tess_status session_sample_texts(tess_session *s, void (*tick)(void *arg),
                                                 void *arg);
/** Whether section sample can be done: tokenizer, prompts. Local; ranks may differ.
 * @return as tess_session_sample() */
TESS_MUST_CHECK tess_status session_check_texts(tess_session *s);
/** What samples of texts keep until the session closes. NULL is fine. Local. */
void session_text_close(tess_session *s);
/** The arrays of a micro-batch, in the DATA arena; and to bring them where kernels read, after
 * session_begin_batch() and writing them. Local. */
struct tess_flux_arrays *session_flux_arrays(tess_session *s);
TESS_MUST_CHECK tess_status session_flux_send(tess_session *s);

enum { TESS_TOKENIZER_LIMIT_NBYTES = 64 << 20 };

/** What the checkpoint floor is told: records, tensors and their strings. */
typedef struct session_records {
    tess_ckpt_set state, base;
    tess_ckpt_record *state_record, *base_record;
    tess_ckpt_tensor *state_tensor, *base_tensor;
    char (*quant)[TESS_CODEC_TEXT_NBYTES]; /* [param_numel] */
    char (*name)[TESS_NAME_NBYTES + 16];   /* of units and tensors of coarser state */
    int64_t name_numel;
} session_records;

/** Series in which spikes are looked for. */
typedef enum session_series { SESSION_LOSS, SESSION_NORM, SESSION_SERIES_NUMEL } session_series;

/** The loss guard: equal on all ranks. Windows and numbers are part of a checkpoint. */
typedef struct session_guard {
    tess_spike_window window[SESSION_SERIES_NUMEL];
    tess_spike found[SESSION_SERIES_NUMEL]; /* of the last step */
    bool is_high[SESSION_SERIES_NUMEL];     /* above train.spike_threshold */
    bool was_high[SESSION_SERIES_NUMEL];    /* of the step before */
    int64_t rollback_numel;
    int64_t passed_numel; /* steps whose data rollbacks have passed over */
} session_guard;

struct tess_session {
    const tess_ctx *ctx;
    tess_comm *world;
    tess_comm *group; /* NULL, world, or owned */
    bool owns_group;
    tess_session_options options;
    tess_run *run;
    tess_description d;
    tess_device *device;                   /* NULL: the host */
    const struct tess_cuda_plugin *plugin; /* that opened it */
    int device_share_numel;                /* ranks that share a device, 1: each has its own */
    int device_place_numel;                /* the same with slices of one device */
    bool has_collectives;                  /* of the plugin, on all ranks */
    size_t device_before_nbytes;           /* of the device, taken when this session began */
    tess_comm *fabric;                     /* all ranks, over the device's memory; NULL: `world` */
    const tess_kernels *kernels;
    char kernel_path[48];
    tess_pool *pool;
    tess_stream codes_stream; /* where a device trains: for codes that the host sets */
    tess_runtime *rt;
    const session_feed *feed;
    session_source source[2];  /* training, evaluation */
    vector_feed *vector;       /* of session_vector_feed */
    flux_feed *flux;           /* of session_flux_feed */
    struct session_text *text; /* of samples; NULL: not open */
    tess_dataset *train_data, *eval_data;
    tess_token_batch batch;      /* over the DATA arena */
    tess_dataset_batch batch_in; /* the arrays as the host writes them */
    int64_t batch_numel;         /* of all four */
    tess_event batch_read;       /* the last copy of a batch to the device */
    bool has_batch_event;        /* it is initialized */
    vectors_session *vectors;    /* job over vectors; then nothing of models is there */
    session_records records;
    tess_ckpt_store *store;
    tess_ckpt_base base;
    tess_ckpt_source_file *source_file;
    char (*source_path)[PATH_MAX];
    char base_id[TESS_SHA256_HEX_NBYTES]; /* "" when nothing is frozen */
    char *base_previous;                  /* ids of bases trained on before, by commas, or NULL */
    bool is_base_changed;                 /* the checkpoint resumed from has another */
    char *numerics;                       /* listing of what decides bits */
    char contract_digest[TESS_SHA256_HEX_NBYTES];
    int64_t step;          /* completed */
    int64_t token_numel;   /* trained so far */
    int64_t update_numel;  /* steps that changed parameters: t of AdamW */
    int64_t skipped_numel; /* steps with non-finite values, or that spiked */
    int64_t skipped_in_row;
    session_guard guard;
    tess_open_times times;
    tess_weights shown; /* what the compute copies hold */
    bool was_resumed;
    bool is_broken; /* a collective section failed on this rank alone */
};

/**
 * Open the CUDA part of the program. Local.
 * @param is_asked  look into it without a driver too, so that its own words say what is missing
 * @return TESS_E_UNSUPPORTED why there is none
 */
TESS_MUST_CHECK tess_status session_open_plugin(tess_io *io, bool is_asked,
                                                const struct tess_cuda_plugin **out);
/** Take the device of compute.device, or stay on the host; all ranks alike. Collective. */
TESS_MUST_CHECK tess_status session_choose_device(tess_session *s);
/** Bytes a rank may take of its device: what is free less a margin. Local. */
TESS_MUST_CHECK tess_status session_device_limit(tess_session *s, size_t *nbytes);
/** That the node has the host memory that the plan takes beside the device. Local. @return
 * TESS_E_FIT */
TESS_MUST_CHECK tess_status session_check_host(tess_session *s);
/** Bytes of the device that were taken since the session began, by this rank and those that share
 * it; 0 on the host. Local. */
size_t session_device_used_nbytes(const tess_session *s);
/** What the device's libraries take beside the slots for weights; 0 on the host. Local. */
size_t session_library_nbytes(const tess_session *s);
/** The same before there is a device: on sm_90. Local. */
size_t session_planned_library_nbytes(void);
/** Open them for the runtime's stream. Local. */
TESS_MUST_CHECK tess_status session_prepare_device(tess_session *s);
/** Make `fabric`. Collective. */
TESS_MUST_CHECK tess_status session_connect_devices(tess_session *s);
/** Tell the fabric of the runtime's arenas. Collective. */
TESS_MUST_CHECK tess_status session_enroll_arenas(tess_session *s);
/** Its end, before that of the runtime. Local. */
void session_withdraw_arenas(tess_session *s);
/** Give fabric and device back; NULLs are fine. Collective as tess_comm_destroy(). */
void session_close_device(tess_session *s);

/** Place in the data of the step that comes: its micro-batches are M times this and those behind
 * it. Local. */
static inline int64_t session_data_step(const tess_session *s)
{
    return s->step + s->guard.passed_numel;
}

static inline bool session_has_eval(const tess_session *s) { return *s->source[1].digest != '\0'; }

/** Whether checkpoints, and what goes with them, are written. Local. */
static inline bool session_keeps(const tess_session *s)
{
    return s->options.kind == TESS_SESSION_TRAIN &&
           (s->options.measure == NULL || s->options.measure->save_every > 0);
}

/** Whether steps are followed by samples. Local. */
static inline bool session_samples(const tess_session *s)
{
    return s->options.kind == TESS_SESSION_TRAIN && s->options.measure == NULL &&
           s->feed->sample != NULL && s->run->sample.prompts.item_numel > 0;
}

/** Pass on the verdict of a section in which peers may now wait for this rank. */
tess_status session_section(tess_session *s, tess_status st);
/** Agree on a local verdict: every rank leaves with the same status. */
TESS_MUST_CHECK tess_status session_agree(tess_session *s, tess_status st);

/** Open `store`, with `numerics` listed. Collective. */
TESS_MUST_CHECK tess_status session_open_store(tess_session *s);
/** After tess_ckpt_prepare(): is there room for checkpoints? Too little is said, and with
 * output.probe_disk is the end. Collective. @return TESS_E_IO */
TESS_MUST_CHECK tess_status session_check_room(tess_session *s);
/** An integer of a manifest. Local. @return TESS_E_FORMAT it is missing */
TESS_MUST_CHECK tess_status session_number_of(const tess_ckpt_loaded *m, const char *name,
                                              int64_t *out);
/** Add every line of `numerics` to a contract. Local. */
TESS_MUST_CHECK tess_status session_add_numerics(const tess_session *s, tess_contract *c);
/** Bytes a rank may use. Collective. */
TESS_MUST_CHECK tess_status session_memory_limit(tess_session *s, size_t *limit_nbytes);

TESS_MUST_CHECK tess_status session_records_create(tess_session *s);
/** Whether slabs of a unit that a checkpoint holds beyond the records stay unread: of tensors that
 * are set, older ones keep moments too. Local. */
bool session_may_leave(void *session, const char *unit);
void session_records_destroy(tess_session *s);
/** The optimizer's numbers of the whole run as values of the resume block, at most
 * TESS_OPTIMIZER_SCALAR_MAX. Local. @return how many */
int session_optimizer_values(tess_session *s, tess_ckpt_value *out);
/** Take them back. Local. @return TESS_E_FORMAT one is missing */
TESS_MUST_CHECK tess_status session_optimizer_restore(tess_session *s, const tess_ckpt_loaded *m);

/** Bring these weights into the compute copies, where others are there. Collective. */
TESS_MUST_CHECK tess_status session_show(tess_session *s, tess_weights weights);
/** The same whatever they were. Collective. */
TESS_MUST_CHECK tess_status session_publish(tess_session *s, tess_weights weights);
static inline tess_weights session_weights(tess_run_weights choice)
{
    return choice == TESS_RUN_WEIGHTS_EMA ? TESS_WEIGHTS_EMA : TESS_WEIGHTS_TRAINED;
}

/** A job over vectors: plan, memory, scan, checkpoint. Collective. */
TESS_MUST_CHECK tess_status session_vectors_open(tess_session *s);
void session_vectors_close(tess_session *s);
TESS_MUST_CHECK tess_status session_vectors_train(tess_session *s);
/** Memory of the plan; steps of the job, at most; vectors of a pass of all ranks, and FLOPs of the
 * searches of one of the first level. Local. */
size_t session_vectors_planned_nbytes(const tess_session *s);
int64_t session_vectors_step_numel(const tess_session *s);
int64_t session_vectors_pass_numel(const tess_session *s);
double session_vectors_pass_flops(const tess_session *s);
TESS_MUST_CHECK tess_status session_vectors_evaluate(tess_session *s, tess_eval_result *out);
/** What a plan is predicted for. */
typedef struct session_profiles {
    tess_device_profile device;
    tess_network_profile network;
} session_profiles;
/** The plan for any number of ranks, as text for people or JSON; `profiles` NULL: no times. Local.
 */
TESS_MUST_CHECK tess_status session_vectors_plan(const tess_ctx *ctx, const tess_run *run,
                                                 const tess_plan_request *request,
                                                 const session_profiles *profiles, char **text);

/** Sort the lines of a listing in place. Local. */
TESS_MUST_CHECK tess_status session_sort_lines(char *text);
/** List what decides bits into `numerics`. */
TESS_MUST_CHECK tess_status session_list_numerics(tess_session *s);
/** Compare the keys of the run, which decide what ranks do together: command lines may differ.
 * Collective. @return TESS_E_CONTRACT with the key and both values */
TESS_MUST_CHECK tess_status session_agree_on_run(tess_session *s);
/** Compare plan, numerics and what the ranks see of the files. @return TESS_E_CONTRACT */
TESS_MUST_CHECK tess_status session_agree_on_contract(tess_session *s);
/** What ranks must agree on, entered into an empty contract. Local. */
typedef tess_status (*session_contract_filler)(tess_session *s, tess_contract *c);
/** Fill a contract, compare it across ranks, keep its digest. Collective. @return TESS_E_CONTRACT
 */
TESS_MUST_CHECK tess_status session_settle_contract(tess_session *s, session_contract_filler fill);
/** Whether adapters train on over another base than their checkpoint's. Local. */
bool session_may_change_base(const tess_session *s);
/**
 * Judge the numerics listing of a checkpoint: training must have the same, a reader the same model.
 * With adapter.allow_base_change training goes on over another base: then `is_base_changed` is set.
 * Local; the same answer on all ranks. @return TESS_E_CONFIG with every key and both values
 */
TESS_MUST_CHECK tess_status session_accept_numerics(tess_session *s, const char *path,
                                                    const char *stored);

/** Fill the masters from the session's adapter, or from adapter.resume: a reader may lay an adapter
 * over any base, and is told when it is another. Local; ranks may differ. */
TESS_MUST_CHECK tess_status session_import_adapter(tess_session *s);
/** The same from an adapter in one file. Local. */
TESS_MUST_CHECK tess_status session_import_file(tess_session *s, const char *path);
/** What an adapter says of the base it was trained on; NULL: not stated. */
typedef struct tess_adapter_origin {
    const char *id, *quant, *previous; /* base.identity, base.quant, base.previous */
} tess_adapter_origin;
/** That base is this run's, or another one is allowed. Local. @return TESS_E_CONFIG */
TESS_MUST_CHECK tess_status session_check_origin(tess_session *s,
                                                 const tess_adapter_origin *origin);
/** Whether the run has an adapter on this module. Local. */
bool session_adapts(const tess_session *s, const char *path);

/** Load or resume parameters, then publish them. */
TESS_MUST_CHECK tess_status session_load(tess_session *s);
/**
 * Go back to the newest checkpoint of this run at a multiple of output.checkpoint_every before step
 * s->step: parameters, state and numbers become its own, and the data go on behind the ones used so
 * far. No save is under way. Collective.
 * @param[out] is_back  false: there is none, and nothing has changed
 * @return TESS_E_NOT_FOUND none verifies
 */
TESS_MUST_CHECK tess_status session_roll_back(tess_session *s, bool *is_back);
/** The guard as values of the resume block, SESSION_GUARD_VALUE_NUMEL; `text` holds the windows and
 * is borrowed. Local. */
enum { SESSION_GUARD_VALUE_NUMEL = SESSION_SERIES_NUMEL + 2 };
void session_guard_values(const tess_session *s,
                          char text[SESSION_SERIES_NUMEL][TESS_SPIKE_TEXT_NBYTES],
                          tess_ckpt_value out[SESSION_GUARD_VALUE_NUMEL]);
/** Read the frozen weights from where the run has them once more. Between steps, no save in flight.
 * Collective. */
TESS_MUST_CHECK tess_status session_reload_base(tess_session *s);

/** Around every write of `batch_in`: before it, and after it to bring it where kernels read. Local.
 */
TESS_MUST_CHECK tess_status session_begin_batch(tess_session *s);
TESS_MUST_CHECK tess_status session_send_batch(tess_session *s);
/** Micro-batch `g` (global number over the whole run) of training data into the batch. Local. */
TESS_MUST_CHECK tess_status session_fill_batch(tess_session *s, int64_t micro_batch_idx);

/** Mean held-out loss; the caller knows that there is evaluation data. `tick` (may be NULL) is
 * called before every micro-batch. */
TESS_MUST_CHECK tess_status session_eval_loss(tess_session *s, void (*tick)(void *arg), void *arg,
                                              tess_eval_result *out);

/** Copy the model's tokenizer files, where there are some, into `dir`. Local. */
TESS_MUST_CHECK tess_status session_keep_tokenizer(tess_session *s, const char *dir);

/** Module path of an adapter tensor, and which of the two it is; false for other names. Local. */
bool session_parse_lora(const char *name, char path[TESS_NAME_NBYTES], tess_peft_part *part);

typedef tess_status (*session_tensor_sink)(void *arg, int param_idx, const void *data,
                                           size_t nbytes);
/** What rank 0 wants of the run's tensors. */
typedef struct session_collection {
    tess_dtype dt;      /* of the trainable ones, as in tess_export_request */
    bool wants_initial; /* also what adapters started as, in f32 */
    session_tensor_sink sink;
} session_collection;
/** All trainable tensors, in order; the sink is called on rank 0. Collective. @return TESS_E_RANGE
 * a value that f16 cannot hold */
TESS_MUST_CHECK tess_status session_collect(tess_session *s, const session_collection *what,
                                            void *arg);
/** Whether a tensor is what an adapter started as: frozen, f32. Local. */
bool session_is_initial(const tess_param *p);
/** All trained tensors in f32, as `dir`/model.safetensors. Collective. */
TESS_MUST_CHECK tess_status session_export_tensors(tess_session *s, const char *dir,
                                                   tess_run_weights weights);
/** The adapter as a PEFT directory. Collective. */
TESS_MUST_CHECK tess_status session_export_peft(tess_session *s,
                                                const tess_export_request *request);
/** Path inside output.dir. Local. @return TESS_E_CONFIG too long */
TESS_MUST_CHECK tess_status session_path(const tess_session *s, const char *name, char path[1024]);

TESS_END_DECLS
