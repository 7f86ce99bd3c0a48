/**
 * LoRA adapters in PEFT's directory format, and PEFT's rules for which modules get one.
 *
 * A directory holds adapter_config.json and adapter_model.safetensors; what Tessera writes, `peft`
 * loads as is. Tensors: base_model.model.<module>.lora_A.weight [r, in] and .lora_B.weight [out,
 * r]; with DoRA .lora_magnitude_vector [out]; of modules_to_save base_model.model.<tensor>, whole.
 *
 * @source peft 0.21, tuners/lora/config.py, tuners/tuners_utils.py, utils/save_and_load.py
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/io.h"
#include "format/json.h"
#include "format/safetensors.h"

TESS_BEGIN_DECLS

#define TESS_PEFT_ALL_LINEAR "all-linear"

/** One entry of rank_pattern or alpha_pattern. */
typedef struct tess_peft_pattern {
    const char *pattern; /* matches a path as (.*\.)?(pattern)$ */
    double value;        /* a positive integer for ranks */
} tess_peft_pattern;

/** A module set as PEFT writes it: a string or a list. */
typedef struct tess_peft_modules {
    const char *regex;       /* full match on the path, or "all-linear" (targets only); else NULL */
    const char *const *name; /* [name_numel] path equals it or ends in "." + it */
    int name_numel;
} tess_peft_modules;

/** What decides the math of an adapter. Plain data, borrowed. */
typedef struct tess_peft_options {
    int64_t rank;    /* r >= 1 */
    double alpha;    /* lora_alpha > 0 */
    double dropout;  /* [0, 1) */
    bool use_rslora; /* scale alpha / sqrt(r) */
    bool use_dora;   /* a magnitude per output beside A and B */
    tess_peft_modules targets;
    tess_peft_modules excludes;
    const int64_t *layer; /* [layer_numel] layers_to_transform; 0: all */
    int layer_numel;
    const char *const *layers_pattern; /* [layers_pattern_numel] names in front of the number */
    int layers_pattern_numel;
    const tess_peft_pattern *rank_pattern;
    int rank_pattern_numel;
    const tess_peft_pattern *alpha_pattern;
    int alpha_pattern_numel;
    const char *const *saved; /* [saved_numel] modules_to_save: ends of module paths */
    int saved_numel;
} tess_peft_options;

typedef struct tess_peft_spec tess_peft_spec;

/**
 * Check options, copy them and compile their patterns. Local.
 * @return TESS_E_CONFIG names the option; a pattern that does not compile shows where
 */
TESS_MUST_CHECK tess_status tess_peft_spec_create(const tess_peft_options *options,
                                                  tess_peft_spec **out);
void tess_peft_spec_destroy(tess_peft_spec **spec);
/** The options as given, borrowed from the spec. */
const tess_peft_options *tess_peft_spec_options(const tess_peft_spec *spec);

/** A linear layer of the base model. */
typedef struct tess_peft_module {
    const char *path;         /* "model.layers.0.self_attn.q_proj": no prefix, no ".weight" */
    bool is_output_embedding; /* lm_head: left out by "all-linear" */
} tess_peft_module;

/** What a module gets. */
typedef struct tess_peft_match {
    bool is_target;
    int64_t rank; /* r after rank_pattern */
    double alpha; /* after alpha_pattern */
    double scale; /* alpha / r, or alpha / sqrt(r) with rslora */
} tess_peft_match;

/**
 * Decide for one linear layer, as PEFT would. Local.
 * @return TESS_E_CONFIG a pattern exceeded its match limit on this path
 */
TESS_MUST_CHECK tess_status tess_peft_spec_match(const tess_peft_spec *spec,
                                                 const tess_peft_module *module,
                                                 tess_peft_match *out);

/** Whether an entry of a list of modules names a path, as PEFT takes it: all of the path, or what
 * follows a dot in it. Local. */
bool tess_peft_entry_names(const char *entry, const char *path);
/** Whether an entry of rank_pattern, or of alpha_pattern, fits a module's path. Local.
 * @return TESS_E_CONFIG it exceeded its match limit */
TESS_MUST_CHECK tess_status tess_peft_spec_fits_rank(const tess_peft_spec *spec, int idx,
                                                     const char *path, bool *out);
TESS_MUST_CHECK tess_status tess_peft_spec_fits_alpha(const tess_peft_spec *spec, int idx,
                                                      const char *path, bool *out);

/**
 * Whether a tensor ("model.norm.weight") belongs to a module that is trained and saved whole: its
 * module's path, or that of one above it, ends in an entry of modules_to_save, as PEFT decides.
 * Local.
 */
bool tess_peft_spec_saves(const tess_peft_spec *spec, const char *tensor_name);
/** The same for one entry. Local. */
bool tess_peft_entry_saves(const char *entry, const char *tensor_name);

/** Parts of an adapter: A [r, in], B [out, r], and with DoRA the magnitude [out]. */
typedef enum tess_peft_part { TESS_PEFT_A, TESS_PEFT_B, TESS_PEFT_MAGNITUDE } tess_peft_part;
enum { TESS_PEFT_PART_MAX = 3 };
/** Parts that every adapter of these options has. */
int tess_peft_part_numel(const tess_peft_options *options);

/** "base_model.model.<path>.lora_A.weight" into `name`. Local. @return TESS_E_RANGE too long */
TESS_MUST_CHECK tess_status tess_peft_tensor_name(const char *module_path, tess_peft_part part,
                                                  char name[TESS_ST_NAME_MAX_NBYTES + 1]);

/** Adapter in one of our keys: the identity of what was trained and against what. */
typedef struct tess_peft_identity {
    const char *base_name;     /* base.name; NULL: not written (so for all) */
    const char *base_sha256;   /* base.sha256: of the original weight file(s) */
    const char *base_quant;    /* base.quant: "nf4/64/double" */
    const char *base_id;       /* base.identity: hex of format/identity.h */
    const char *base_previous; /* base.previous: ids of bases trained on before, by commas */
    const char *compute_dtype; /* compute.dtype */
    const char *master_dtype;  /* adapter.master_dtype */
} tess_peft_identity;

/** One adapted module in a file. */
typedef struct tess_peft_adapter {
    const char *path;  /* module path */
    int64_t rank;      /* rows of A, columns of B */
    int64_t in_numel;  /* columns of A */
    int64_t out_numel; /* rows of B */
} tess_peft_adapter;

/** One tensor of a module that is saved whole. */
typedef struct tess_peft_saved {
    const char *name; /* "lm_head.weight": no prefix */
    int dim_numel;
    int64_t dim[2];
} tess_peft_saved;

/** What a written directory holds. */
typedef struct tess_peft_content {
    const tess_peft_spec *spec;
    const tess_peft_adapter *adapter; /* [adapter_numel] */
    int64_t adapter_numel;
    const tess_peft_saved *saved; /* [saved_numel] */
    int64_t saved_numel;
    tess_dtype dt;         /* of all tensors: f32, bf16 or f16 */
    const char *task_type; /* of the model, which peft wraps by it: "CAUSAL_LM"; NULL: no task */
    tess_peft_identity identity;
} tess_peft_content;

typedef struct tess_peft_writer tess_peft_writer;

/**
 * Start writing into `dir` (created when missing). Local: one rank writes. All of `content` is
 * copied; `io` is kept (view).
 *
 * target_modules are written as given; "all-linear" is written as the sorted list of last path
 * components, as PEFT itself saves it; of "to_out.0", whose end names blocks too, the last two.
 */
TESS_MUST_CHECK tess_status tess_peft_writer_create(tess_io *io, const char *dir,
                                                    const tess_peft_content *content,
                                                    tess_peft_writer **out);
/** Append the next bytes of one part of one adapter; any order, in pieces. Local. */
TESS_MUST_CHECK tess_status tess_peft_writer_append(tess_peft_writer *writer, int64_t adapter_idx,
                                                    tess_peft_part part, const void *src,
                                                    size_t nbytes);
/** Append the next bytes of one tensor of `content.saved`. Local. */
TESS_MUST_CHECK tess_status tess_peft_writer_append_saved(tess_peft_writer *writer,
                                                          int64_t saved_idx, const void *src,
                                                          size_t nbytes);
/** All tensors complete: fsync and rename the weights, then write the config. Local. */
TESS_MUST_CHECK tess_status tess_peft_writer_finish(tess_peft_writer *writer);
void tess_peft_writer_destroy(tess_peft_writer **writer);

typedef struct tess_peft_dir tess_peft_dir;

/**
 * Open an adapter directory: config checked, weights checked against it (all parts present, ranks
 * equal to the config's, whole tensors only of modules_to_save). Local. `io` is kept (view).
 * @return TESS_E_FORMAT; TESS_E_UNSUPPORTED an option that changes the math; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_peft_dir_open(tess_io *io, const char *path, tess_peft_dir **out);
void tess_peft_dir_close(tess_peft_dir **dir);
/** Options of the directory's adapter_config.json, compiled. */
const tess_peft_spec *tess_peft_dir_spec(const tess_peft_dir *dir);
/** base_model_name_or_path, "" when not stated. */
const char *tess_peft_dir_base_name(const tess_peft_dir *dir);
/** Value of a key of 10.5 in the weights' metadata ("base.identity"), NULL when absent. */
const char *tess_peft_dir_metadata(const tess_peft_dir *dir, const char *key);
/** The open adapter_model.safetensors, borrowed. */
const tess_safetensors *tess_peft_dir_weights(const tess_peft_dir *dir);
int64_t tess_peft_dir_adapter_numel(const tess_peft_dir *dir);
/** Adapter `idx` in bytewise order of paths, NULL outside. */
const tess_peft_adapter *tess_peft_dir_adapter_at(const tess_peft_dir *dir, int64_t idx);
/** NULL when this module has none. */
const tess_peft_adapter *tess_peft_dir_find(const tess_peft_dir *dir, const char *module_path);
/** Tensors in the order of the file: parts of adapters, those of modules that are saved whole, and
 * copies of base weights. */
int64_t tess_peft_dir_tensor_numel(const tess_peft_dir *dir);
/** Tensor `idx`; its name without the prefix ("model.norm.weight") into `name`. NULL outside. */
const tess_st_tensor *tess_peft_dir_tensor_at(const tess_peft_dir *dir, int64_t idx,
                                              const char **name);
/** Whether a tensor is PEFT's copy of the base weight below an adapter, as it writes for adapters
 * of embeddings and output layers ("lm_head.base_layer.weight"). Local. */
bool tess_peft_is_base_copy(const tess_peft_dir *dir, const char *name);
/** Tensor by its name without the prefix, f32, bf16 or f16. NULL: there is none. */
const tess_st_tensor *tess_peft_dir_tensor(const tess_peft_dir *dir, const char *name);
/** Read bytes [first, first + nbytes) of a tensor of this directory as they are stored. Local. */
TESS_MUST_CHECK tess_status tess_peft_dir_read(const tess_peft_dir *dir,
                                               const tess_st_tensor *tensor, int64_t first_nbytes,
                                               size_t nbytes, void *dst);

/** Parse an adapter_config.json alone. Local. `base_name` (may be NULL) is borrowed from `root`. */
TESS_MUST_CHECK tess_status tess_peft_config_parse(const tess_json *root, tess_peft_spec **out,
                                                   const char **base_name);
/**
 * adapter_config.json of `spec`. Local.
 * @param targets    written instead of the spec's own when not NULL (the expansion of "all-linear")
 * @param task_type  as in tess_peft_content
 */
TESS_MUST_CHECK tess_status tess_peft_config_write(tess_io *io, const char *path,
                                                   const tess_peft_spec *spec,
                                                   const tess_peft_modules *targets,
                                                   const char *task_type, const char *base_name);

TESS_END_DECLS
