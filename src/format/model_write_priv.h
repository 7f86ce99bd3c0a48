/** Inside of model writers: one kind of output each. */
#pragma once

#include "format/model_write.h"

TESS_BEGIN_DECLS

enum { TESS_BASE_ID_NBYTES = 64, TESS_PACKED_ITEM_MAX = 8, TESS_PACKED_TEXT_NBYTES = 256 };

/** A kind of output. `self` is what its create gave. */
typedef struct tess_model_write_ops {
    tess_status (*put)(void *self, int64_t tensor_idx, const void *const *part);
    tess_status (*set)(void *self, const char *key, const char *value);
    tess_status (*finish)(void *self, const char *base_id);
    void (*destroy)(void *self);
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
    TESS_PACKED_PART,    /* part `part_idx` */
    TESS_PACKED_TABLE,   /* `table` */
    TESS_PACKED_STATE,   /* JSON text */
    TESS_PACKED_CONSTANT /* `constant` */
} tess_packed_source;

/** One tensor of a file that belongs to a tensor of the model. */
typedef struct tess_packed_item {
    char name[TESS_ST_NAME_MAX_NBYTES + 1];
    tess_st_tensor st; /* its name is to be set to `name` */
    tess_packed_source source;
    int part_idx;
    const float *table;
    uint32_t constant; /* its first bytes */
} tess_packed_item;

/** A list of them that is being made for one tensor. */
typedef struct tess_packed_list {
    const tess_model_write_tensor *tensor;
    tess_packed_item *item;
    int numel;
} tess_packed_list;

/** Add X + `suffix`, `cut` bytes cut off the end of the tensor's name before: part 0, a vector,
 * unless the caller says otherwise. Local. */
tess_packed_item *tess_packed_add(tess_packed_list *l, int cut, const char *suffix,
                                  tess_st_dtype dtype, int64_t numel);

/** The tensors that stand for one tensor of a model. Local. @return TESS_E_UNSUPPORTED codes that
 * the storage dtype cannot label */
TESS_MUST_CHECK tess_status tess_packed_items(const tess_model_write_request *request,
                                              const tess_model_write_tensor *tensor,
                                              tess_packed_item item[TESS_PACKED_ITEM_MAX],
                                              int *item_numel);
/** The quant_state of a 4-bit weight: as many bytes whatever `nested_offset` is. Local. */
void tess_packed_state_text(const tess_model_write_tensor *tensor, float nested_offset,
                            char text[TESS_PACKED_TEXT_NBYTES]);
/** Tensors of a weight as optimum-quanto packs it, and of one in fp8. Local. */
TESS_MUST_CHECK tess_status tess_packed_add_quanto(tess_packed_list *l);
TESS_MUST_CHECK tess_status tess_packed_add_fp8(tess_packed_list *l);
/** Whether its codec is one of these. Local. */
bool tess_packed_is_quanto_codec(const tess_codec *codec);
bool tess_packed_is_fp8_codec(const tess_codec *codec);
/** quanto's map of modules to types; NULL when nothing is packed so. Local. */
TESS_MUST_CHECK tess_status tess_packed_quanto_map(const tess_model_write_request *request,
                                                   tess_json **out);
/** Whether its codec is one that bitsandbytes packs. Local. */
bool tess_packed_is_packed(const tess_codec *codec);
/** Add quantization_config of bitsandbytes to config.json where something is packed so. Local.
 * @return TESS_E_UNSUPPORTED 4 and 8 bits in one model */
TESS_MUST_CHECK tess_status tess_packed_config(const tess_model_write_request *request,
                                               tess_json *config);

TESS_END_DECLS
