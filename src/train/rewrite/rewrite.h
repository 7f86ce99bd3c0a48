/**
 * A model that is written again tensor by tensor: what `tessera quantize` and `tessera merge`
 * share.
 *
 * Everything runs on one process; memory is that of the largest tensor.
 */
#pragma once

#include "format/identity.h"
#include "format/model_write.h"
#include "train/describe/describe.h"
#include "train/rewrite/stored.h"

TESS_BEGIN_DECLS

/** REGEX=FORMAT: a rule of base.overrides. */
typedef struct tess_rewrite_rule {
    const char *match;
    const char *format;
} tess_rewrite_rule;

/** How linear layers are to be stored: keys of the run file's section `base`. */
typedef struct tess_rewrite_choice {
    const tess_run_override *key; /* [key_numel] "base.format=nf4", "base.block_size=128", ... */
    int64_t key_numel;
    const tess_rewrite_rule *rule; /* [rule_numel] */
    int64_t rule_numel;
} tess_rewrite_choice;

/** A described model; free with tess_rewrite_base_close. */
typedef struct tess_rewrite_base {
    tess_run *run;
    tess_description d;
} tess_rewrite_base;

/** Open `model` with the codecs of a choice. Local. @return as tess_run_parse, tess_describe_base
 * @param flags  tess_describe_flags */
TESS_MUST_CHECK tess_status tess_rewrite_base_open(const tess_ctx *ctx, const char *model,
                                                   const tess_rewrite_choice *choice,
                                                   unsigned flags, tess_rewrite_base *out);
void tess_rewrite_base_close(tess_rewrite_base *base);

/** Whether a parameter is the weight of a linear layer, lm_head among them. Local. */
bool tess_rewrite_is_linear(const tess_param *p);

/** One tensor of a model on its way. Plain data. */
typedef struct tess_rewrite_tensor {
    const tess_param *param;
    const tess_model_tensor *source;
    tess_codec stored; /* in the source's files */
    tess_codec made;   /* as training keeps it */
    tess_codec out;    /* as it is written */
    tess_codec kept;   /* as training over the output keeps it: its rule in base ids */
    bool is_linear;
} tess_rewrite_tensor;

/** The parameters of a base with their codecs; [d.registry.param_numel], free with tess_free.
 * `out` and `kept` are for an output at `path` where everything is written as it is made. Local. */
TESS_MUST_CHECK tess_status tess_rewrite_list(const tess_rewrite_base *base, const char *path,
                                              tess_rewrite_tensor **out);
/** Set how a tensor is written, and with it how training over the output keeps it. Local. */
void tess_rewrite_set_out(tess_rewrite_tensor *t, const char *path, tess_codec out);

/** Start the output. Local. @param request  what is not about tensors, source or config */
TESS_MUST_CHECK tess_status tess_rewrite_start(const tess_ctx *ctx, const tess_rewrite_base *base,
                                               const tess_rewrite_tensor *tensor,
                                               const tess_model_write_request *request,
                                               tess_model_writer **out);
/** Add a tensor to a base id, with the rule of how it is kept. Local. */
TESS_MUST_CHECK tess_status tess_rewrite_identify(tess_identity *identity,
                                                  const tess_rewrite_tensor *t,
                                                  const tess_codec *kept, const tess_stored *s);
/** Hex of the base id. Local. */
TESS_MUST_CHECK tess_status tess_rewrite_id_text(tess_identity *identity,
                                                 char text[TESS_SHA256_HEX_NBYTES]);
/** Rule of most weights: that of the first quantized matrix, else of the first. Local. */
void tess_rewrite_describe(const tess_rewrite_tensor *tensor, int64_t tensor_numel,
                           char text[TESS_CODEC_TEXT_NBYTES]);

TESS_END_DECLS
