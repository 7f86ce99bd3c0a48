/** Options of the commands that write a model: quantize and merge. */
#pragma once

#include <argp.h>

#include "format/json.h"
#include "launch/launch.h"
#include "train/rewrite/rewrite.h"

TESS_BEGIN_DECLS

enum {
    TESS_REWRITE_BLOCK = 0x200,
    TESS_REWRITE_DOUBLE,
    TESS_REWRITE_GROUP,
    TESS_REWRITE_RULE,
    TESS_REWRITE_SCALING,
    TESS_REWRITE_MEANING,
    TESS_REWRITE_OVERRIDE,
    TESS_REWRITE_STORAGE,
    TESS_REWRITE_SHARD,
    TESS_REWRITE_THREADS,
    TESS_REWRITE_BASE_OVERRIDE
};

/** For the table of a command's options. */
/* clang-format off */
#define TESS_REWRITE_OPTIONS \
    {"output", 'o', "OUT", 0, "Directory or .gguf file to write; it must not exist", 0}, \
    {"block-size", TESS_REWRITE_BLOCK, "N", 0, \
     "Elements that share a scale in nf4 and fp4 (default 64)", 0}, \
    {"double-quant", TESS_REWRITE_DOUBLE, "yes|no", 0, \
     "Scales of nf4 and fp4 in 8 bits (default yes)", 0}, \
    {"group-size", TESS_REWRITE_GROUP, "N", 0, \
     "Elements of a row that share scale and shift in qint4 and qint2 (default auto)", 0}, \
    {"rule", TESS_REWRITE_RULE, "RULE", 0, \
     "How scales of qint4 and qint2 are chosen: minmax (default), mse or hqq", 0}, \
    {"scaling", TESS_REWRITE_SCALING, "WHAT", 0, \
     "What has a scale in e4m3 and e5m2: row (default), tensor, or raw: nothing", 0}, \
    {"scale-meaning", TESS_REWRITE_MEANING, "WHICH", 0, \
     "Scale stored with e4m3 and e5m2: dequant_scale (default) or quant_scale", 0}, \
    {"override", TESS_REWRITE_OVERRIDE, "REGEX=FORMAT", 0, \
     "Format of the tensors whose whole name matches; the first that matches decides", 0}, \
    {"quant-storage", TESS_REWRITE_STORAGE, "DTYPE", 0, \
     "Label of nf4 and fp4 codes in a directory: uint8 (default), bf16, f16 or f32", 0}, \
    {"max-shard-size", TESS_REWRITE_SHARD, "SIZE", 0, \
     "Largest safetensors file, in bytes or as 500MB, 5GB (default 5GB)", 0}, \
    {"threads", TESS_REWRITE_THREADS, "N", 0, "Threads (default 1)", 0}
/* clang-format on */

typedef struct tess_rewrite_options {
    const char *output;
    tess_run_override *key; /* [key_numel], texts owned */
    int64_t key_numel;
    tess_rewrite_rule *rule; /* [rule_numel], matches owned */
    int64_t rule_numel;
    tess_rewrite_rule *base_rule; /* [base_rule_numel], matches owned: --base-override of merge */
    int64_t base_rule_numel;
    tess_dtype storage;
    int64_t shard_nbytes;
    int64_t thread_numel;
} tess_rewrite_options;

tess_rewrite_options tess_rewrite_options_default(void);
void tess_rewrite_options_fini(tess_rewrite_options *o);
/** One option of TESS_REWRITE_OPTIONS. @return ARGP_ERR_UNKNOWN any other; EINVAL refused */
error_t tess_rewrite_options_parse(const struct argp_state *state, tess_rewrite_options *o, int key,
                                   const char *arg);
/** A key of the run file's section base: "base.format" and its value. */
error_t tess_rewrite_options_key(const struct argp_state *state, tess_rewrite_options *o,
                                 const char *key, const char *value);
/** What was chosen, borrowed. */
tess_rewrite_choice tess_rewrite_options_choice(const tess_rewrite_options *o);
/** One line of JSON to stdout. @return TESS_E_IO */
TESS_MUST_CHECK tess_status tess_rewrite_print_json(const tess_json *root);

TESS_END_DECLS
