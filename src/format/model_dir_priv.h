/** Inside of an open model directory. */
#pragma once

#include "format/model_dir.h"

TESS_BEGIN_DECLS

/** What the numbers of a part must be. */
typedef enum tess_packed_check {
    TESS_PACKED_ANY,
    TESS_PACKED_SCALES,    /* finite, not negative */
    TESS_PACKED_POSITIVES, /* finite, above 0 */
    TESS_PACKED_SHIFTS,    /* finite */
    TESS_PACKED_CODES      /* fp8 codes: finite */
} tess_packed_check;

/** A weight whose codes and constants are tensors of their own in the files: one tensor of the
 * directory, whose bytes are its parts one after the other. */
struct tess_packed {
    tess_codec codec;
    char *name;           /* of the weight, owned */
    tess_st_tensor whole; /* name, shape of the weight, bytes of all parts */
    bool is_grouped; /* the files know groups alone: shape [groups, block], until it is claimed */
    int part_numel;
    struct {
        const tess_st_tensor *st; /* NULL: nested_offset, which lies in the JSON text */
        int file_idx;
        size_t nbytes;
        tess_packed_check check;
    } part[TESS_CODEC_PART_MAX];
    float nested_offset;
};

typedef struct weight_file {
    char *name; /* base name */
    tess_safetensors *st;
    bool has_sha;
    tess_sha256 sha;
} weight_file;

struct tess_model_dir {
    const tess_ctx *ctx;
    char *path;
    weight_file file[TESS_MODEL_DIR_FILE_MAX];
    int file_numel;
    tess_model_tensor *tensor; /* [tensor_numel] listed tensors by name */
    bool *is_claimed;          /* [tensor_numel] */
    int64_t tensor_numel;
    tess_model_tensor *extra; /* [extra_numel] in files, not in the index; by name */
    int64_t extra_numel;
    tess_gguf *gguf;                        /* NULL: a directory */
    tess_st_tensor *shape;                  /* [tensor_numel] of a GGUF file */
    char (*name)[TESS_GGUF_HF_NAME_NBYTES]; /* [tensor_numel] likewise */
    tess_packed *packed;                    /* [packed_numel] see packed.c */
    int64_t packed_numel;
};

/**
 * Join the tensors of packed weights: in `dir->tensor` the weight takes their place. Local.
 * @return TESS_E_FORMAT, TESS_E_UNSUPPORTED a weight that is damaged, or that decodes by other
 * tables: names file and tensor
 */
TESS_MUST_CHECK tess_status tess_packed_join(tess_model_dir *dir);
/** Read bytes [first, first + nbytes) of a joined weight. Local. @return TESS_E_FORMAT a scale that
 * is not finite or negative */
TESS_MUST_CHECK tess_status tess_packed_read(const tess_model_dir *dir,
                                             const tess_model_tensor *tensor, int64_t first_nbytes,
                                             size_t nbytes, void *dst);

TESS_END_DECLS
