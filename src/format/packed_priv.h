/** Putting packed weights together: what the readers of the several kinds share. */
#pragma once

#include "format/json.h"
#include "format/model_dir_priv.h"

TESS_BEGIN_DECLS

/** A directory whose tensors are being joined. */
typedef struct tess_packing {
    tess_model_dir *dir;
    bool *is_member;                             /* [tensor_numel] part of a weight */
    tess_json *map;                              /* of optimum-quanto; NULL: none */
    const char *map_name;                        /* its file */
    tess_json *config;                           /* config.json, read where there is no map */
    tess_json *formats[TESS_MODEL_DIR_FILE_MAX]; /* per file: TESS_MODEL_FORMATS_KEY, or NULL */
} tess_packing;

/** One packed weight while it is put together. */
typedef struct tess_packing_weight {
    tess_packing *p;
    const tess_model_tensor *codes;
    const char *name; /* of the weight: "X.weight" */
    tess_packed *to;
} tess_packing_weight;

/** File of the codes, for messages. */
const char *tess_packing_file(const tess_packing_weight *w);
TESS_MUST_CHECK tess_status tess_packing_read(const tess_packing_weight *w,
                                              const tess_model_tensor *t, void *dst);
/** A vector of `numel` elements of `dtype` must be there. @return TESS_E_FORMAT */
TESS_MUST_CHECK tess_status tess_packing_check(const tess_packing_weight *w,
                                               const tess_model_tensor *t, const char *suffix,
                                               tess_st_dtype dtype, int64_t numel);
/** Tensor "X" + `suffix` beside "X.weight", NULL when there is none. */
const tess_model_tensor *tess_packing_beside(const tess_packing_weight *w, const char *suffix);
/** `t` is part of a weight and no tensor of its own. */
void tess_packing_take(const tess_packing_weight *w, const tess_model_tensor *t);
/** The next part of the weight; NULL: the offset in the JSON text of bitsandbytes. */
void tess_packing_put(tess_packed *to, const tess_model_tensor *t, tess_packed_check check);
/** What the file's metadata says of the weight; NULL: nothing. @return TESS_E_FORMAT no text */
TESS_MUST_CHECK tess_status tess_packing_stated(const tess_packing_weight *w, const char **text);
/** A scale of activations must be absent or 1, and is taken. @return TESS_E_UNSUPPORTED */
TESS_MUST_CHECK tess_status tess_packing_no_activations(const tess_packing_weight *w,
                                                        const char *suffix);
/** Dtype of a tensor of scales. @return TESS_E_FORMAT none of F32, BF16, F16 */
TESS_MUST_CHECK tess_status tess_packing_scale_dtype(const tess_packing_weight *w,
                                                     const tess_model_tensor *t, tess_dtype *dt);

/* The kinds. Each takes the weight whose codes are w->codes; to->part_numel stays 0 where it is of
 * another kind. */
TESS_MUST_CHECK tess_status tess_packed_bnb(tess_packing_weight *w);
TESS_MUST_CHECK tess_status tess_packed_fp8(tess_packing_weight *w);
TESS_MUST_CHECK tess_status tess_packed_quanto(tess_packing_weight *w);
/** Take ComfyUI's marks of fp8 files, which must name formats that are read.
 * @return TESS_E_UNSUPPORTED another format, TESS_E_FORMAT no JSON */
TESS_MUST_CHECK tess_status tess_packed_fp8_marks(tess_packing *p);
/** Whether a tensor holds codes of optimum-quanto; `nbytes`: of the weight's name in it. */
bool tess_packed_is_quanto(const char *name, size_t *nbytes);
/** Read the map, if there is one. @return TESS_E_FORMAT */
TESS_MUST_CHECK tess_status tess_packed_quanto_open(tess_packing *p);
/** Every weight of the map is packed as it says. Of the joined directory. @return TESS_E_FORMAT */
TESS_MUST_CHECK tess_status tess_packed_quanto_check(const tess_packing *p);

TESS_END_DECLS
