/** Inside of an open model directory. */
#pragma once

#include "format/flux_names.h"
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

/** Rows of a tensor under another name. */
enum { TESS_FLUX_TENSOR_NBYTES = TESS_FLUX_NAME_NBYTES + 32, TESS_ROW_WINDOW_MAX = 2 };

typedef struct tess_row_window {
    int64_t first, numel; /* rows */
} tess_row_window;

struct tess_row_cut {
    char name[TESS_FLUX_TENSOR_NBYTES];
    tess_model_tensor whole; /* as it is in the file */
    tess_st_tensor shape;    /* of the cut */
    int64_t row_numel;       /* of the whole */
    int window_numel;
    tess_row_window window[TESS_ROW_WINDOW_MAX]; /* one below the other */
    int part_numel;
    struct {
        int64_t nbytes; /* of the whole */
        bool is_whole;  /* goes with every cut as it is */
    } part[TESS_CODEC_PART_MAX];
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
    tess_row_cut *cut; /* [cut_numel] see flux_cut.c */
    int64_t cut_numel;
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

/**
 * Where tensors have the names of Black Forest Labs' FLUX.1 files: put those of diffusers in their
 * place, fused ones cut. Any other directory stays as it is. Local.
 * @return TESS_E_FORMAT, TESS_E_UNSUPPORTED a tensor that is not known, or cannot be cut
 */
TESS_MUST_CHECK tess_status tess_flux_cut(tess_model_dir *dir);
/** Read bytes [first, first + nbytes) of a cut. Local. */
TESS_MUST_CHECK tess_status tess_flux_cut_read(const tess_model_dir *dir, const tess_row_cut *cut,
                                               int64_t first_nbytes, size_t nbytes, void *dst);

TESS_END_DECLS
