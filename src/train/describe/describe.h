/**
 * From a run file to a plan: model config, registry, LoRA targets, base formats, buffers.
 *
 * `tessera plan` and a real run go through the same code; nothing here needs weights, ranks or a
 * device.
 */
#pragma once

#include <limits.h>

#include "core/ctx.h"
#include "format/json.h"
#include "format/model_dir.h"
#include "format/peft.h"
#include "model/flux.h"
#include "shard/loader.h"
#include "shard/plan.h"
#include "train/data/samples.h"
#include "train/run_file/run_file.h"

TESS_BEGIN_DECLS

/** What a plan allows for outside its arenas, and how much of it the data sets may take. */
enum { TESS_OUTSIDE_NBYTES = 64 << 20, TESS_DATA_NBYTES = 40 << 20 };

/** What the launch is and was asked for, as far as a plan depends on it. */
typedef struct tess_launch_shape {
    int world;
    int node_rank_numel;        /* ranks on each node; 0: not the same everywhere */
    const int *node_first_rank; /* then [node_numel + 1], the last is the world; NULL: not known */
    int node_numel;
    const tess_link *link_inside, *link_across; /* as in tess_plan_options */
    size_t memory_limit_nbytes;                 /* of a rank; 0: none */
    const char *kernel_path;                    /* "cpu/avx512_bf16" */
    bool is_device;                             /* kernels use memory of a device, not the host's */
    size_t library_nbytes;       /* workspaces of its libraries, without slots for weights */
    const tess_kernels *kernels; /* whose workspaces are planned; NULL: tess_kernels_cpu */
    bool is_reader;              /* no training: what a step receives decides nothing */
    const char *adapter; /* PEFT directory whose own rules replace section lora; NULL: none */
} tess_launch_shape;

/** A described run. Owned parts; free with tess_description_fini. */
typedef struct tess_description {
    const tess_run *run;    /* borrowed */
    tess_llm_config config; /* of language models */
    tess_flux_config flux;  /* of the FLUX.1 transformer */
    tess_flux_shape flux_shape;
    const char *family_name; /* "llama", "rqvae", "vqvae", "flux" */
    char dtype_hint[16];     /* of the weights as the config states it: "bfloat16"; "": unknown */
    bool shares_a;           /* adapters of a fused matrix have one A */
    tess_sample_size sample; /* of a model over vectors or images */
    size_t batch_nbytes;     /* of a micro-batch, and what is counted of it */
    int64_t counter_numel;   /* words of it that checkpoints hold */
    int64_t ahead_sum_numel; /* as in tess_plan_options */
    tess_plan_codes codes;   /* as in tess_plan_options */
    size_t start_nbytes;     /* staging for start codes */
    size_t device_nbytes;    /* on a device, beside the copy of the batch */
    size_t kept_nbytes;      /* on a device, for weights that stay decoded */
    char *config_text; /* config.json as read: kept in the run directory for resumes without the
                          source */
    tess_json *config_root;
    tess_model_dir *dir;  /* NULL when there are no weights (init: random, or the source is gone) */
    tess_peft_spec *spec; /* NULL in full mode */
    tess_registry registry;
    tess_model *model;
    tess_plan *plan;
    bool is_base_as_source;         /* every frozen tensor is stored as in the source files */
    bool keeps_ragged, requantizes; /* TESS_DESCRIBE_KEEP_RAGGED, TESS_DESCRIBE_REQUANTIZE */
} tess_description;

/** What a model that is only written again may do and a run may not. */
typedef enum tess_describe_flags {
    TESS_DESCRIBE_KEEP_RAGGED = 1, /* linear layers whose rows are no whole blocks of base.format
                                      are kept as they are, unless an override names them */
    TESS_DESCRIBE_REQUANTIZE = 2   /* what the files hold quantized may be quantized again */
} tess_describe_flags;

/**
 * Describe a run and plan it.
 *
 * Local. When `model.path` has no config.json but the run directory keeps a copy, the copy is used.
 * A GGUF file describes itself: `config_text` is made of it and names how each tensor is kept, so
 * that a resume does without the file.
 * @return TESS_E_CONFIG, TESS_E_FORMAT, TESS_E_IO, TESS_E_FIT
 */
TESS_MUST_CHECK tess_status tess_describe(const tess_ctx *ctx, const tess_run *run,
                                          const tess_launch_shape *launch, tess_description *out);
/**
 * The frozen model alone: configuration, open weights, a registry of every tensor with the codec
 * that base.* of the run gives it. No adapters, no plan. Local.
 * @param flags  tess_describe_flags, combined with |
 * @return TESS_E_CONFIG, TESS_E_FORMAT, TESS_E_UNSUPPORTED, TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_describe_base(const tess_ctx *ctx, const tess_run *run,
                                               unsigned flags, tess_description *out);
void tess_description_fini(tess_description *d);
/** The codec that a word of base.format or base.overrides stands for, of a parameter that lies in
 * `source` in the files. Local. */
TESS_MUST_CHECK tess_status tess_describe_codec(tess_description *d, const tess_param *p,
                                                tess_run_base_format choice, tess_codec source,
                                                tess_codec *out);
/** Whether rows of a parameter are no whole blocks of a GGUF format. Local. */
bool tess_describe_is_ragged(const tess_param *p, const tess_codec *codec);
/** How a run keeps a tensor that lies in its files as `stored`; coded files are GGUF and packed
 * weights. Local. */
tess_codec tess_describe_kept(tess_codec stored, bool is_coded_file, bool is_matrix);
/**
 * Bytes of the largest matrices of one product as a device dequantizes them ahead of it: those of a
 * group that shares its input, adapters beside them; 0: nothing is. There are two such slots.
 * Local.
 */
size_t tess_description_slot_nbytes(const tess_description *d);
/**
 * Where a small file of the model (config.json, tokenizer.json) is: in model.path, else in the copy
 * beside the checkpoints. `path` is the place in model.path when it is in neither. Local.
 */
TESS_MUST_CHECK tess_status tess_describe_file(const tess_ctx *ctx, const tess_run *run,
                                               const char *name, char path[PATH_MAX],
                                               bool *is_there);
/** Source of the loader over the description's model directory. */
tess_load_source tess_description_source(tess_description *d);
/** "base.format" etc. resolved for loading: what tess_load() needs. Local. */
tess_load_request tess_description_load(const tess_description *d, const tess_load_source *source);

/**
 * A tess_run_family_of(): flux where model.path, or else what output.dir keeps of an earlier start,
 * is a FLUX.1 transformer. Opens single files, of directories only the config. Local.
 * @param ctx  const tess_ctx *
 */
TESS_MUST_CHECK tess_status tess_describe_family(const void *ctx, const tess_run *run,
                                                 tess_run_family *family);

/**
 * A tess_run_epoch_of(): by the headers of data.path; 0 where it is missing. Local.
 * @param ctx  const tess_ctx *
 * @return as those who open data.path
 */
TESS_MUST_CHECK tess_status tess_describe_epoch(const void *ctx, const tess_run *run,
                                                int64_t *sequence_numel);

TESS_END_DECLS
