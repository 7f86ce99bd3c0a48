/** Inside of model writers: one kind of output each. */
#pragma once

#include "format/model_write.h"

TESS_BEGIN_DECLS

enum { TESS_BASE_ID_NBYTES = 64, TESS_PACKED_ITEM_MAX = 8, TESS_PACKED_TEXT_NBYTES = 256 };

/** base.identity before it is known. */
#define TESS_BASE_ID_UNKNOWN "0000000000000000000000000000000000000000000000000000000000000000"

/** A kind of output. `self` is what its create gave. */
typedef struct tess_model_write_ops {
    tess_status (*put)(void *self, int64_t tensor_idx, const void *const *part);
    tess_status (*finish)(void *self, const char *base_id);
    void (*destroy)(void *self);
    int64_t (*nbytes)(const void *self);
} tess_model_write_ops;

struct tess_model_writer {
    const tess_model_write_ops *ops;
    void *self;
};

extern const tess_model_write_ops tess_model_dir_ops, tess_model_gguf_ops;
TESS_MUST_CHECK tess_status tess_model_dir_writer(const tess_ctx *ctx,
                                                  const tess_model_write_request *request,
                                                  void **self);
TESS_MUST_CHECK tess_status tess_model_gguf_writer(const tess_ctx *ctx,
                                                   const tess_model_write_request *request,
                                                   void **self);

/** What a tensor of a file is made of. */
typedef enum tess_packed_source {
    TESS_PACKED_PART,  /* part `part_idx` */
    TESS_PACKED_TABLE, /* constants */
    TESS_PACKED_STATE, /* JSON text */
    TESS_PACKED_ZERO   /* one byte: rows */
} tess_packed_source;

/** One tensor of a file that belongs to a tensor of the model. */
typedef struct tess_packed_item {
    char name[TESS_ST_NAME_MAX_NBYTES + 1];
    tess_st_tensor st; /* its name is to be set to `name` */
    tess_packed_source source;
    int part_idx;
    const float *table;
} tess_packed_item;

/** The tensors that stand for one tensor of a model. Local. @return TESS_E_UNSUPPORTED codes that
 * the storage dtype cannot label */
TESS_MUST_CHECK tess_status tess_packed_items(const tess_model_write_request *request,
                                              const tess_model_write_tensor *tensor,
                                              tess_packed_item item[TESS_PACKED_ITEM_MAX],
                                              int *item_numel);
/** The quant_state of a 4-bit weight: as many bytes whatever `nested_offset` is. Local. */
void tess_packed_state_text(const tess_model_write_tensor *tensor, float nested_offset,
                            char text[TESS_PACKED_TEXT_NBYTES]);
/** Whether its codec is one that bitsandbytes packs. Local. */
bool tess_packed_is_packed(const tess_codec *codec);
/** quantization_config of config.json, NULL when nothing is packed. Local. @return
 * TESS_E_UNSUPPORTED 4 and 8 bits in one model */
TESS_MUST_CHECK tess_status tess_packed_config(const tess_model_write_request *request,
                                               tess_json *config);

TESS_END_DECLS
