/** What readers and writers of adapters share. */
#pragma once

#include "format/adapter.h"
#include "format/gguf.h"
#include "format/peft.h"

TESS_BEGIN_DECLS

/** Where a part lies: a rectangle of a tensor (a vector has one column). */
typedef struct adapter_slice {
    const tess_st_tensor *st; /* one of the two */
    const tess_gguf_tensor *gguf;
    int64_t first_row, row_numel;
    int64_t first_col, col_numel;
    int64_t head_dim; /* rows of heads that the file interleaves, 0: none, -1: not known */
    bool is_swapped;  /* the halves of the rows are in the other order */
} adapter_slice;

typedef struct adapter_module {
    tess_adapter_module is; /* its path is owned */
    adapter_slice part[TESS_ADAPTER_PART_NUMEL];
} adapter_module;

struct tess_adapter {
    tess_io *io;
    char *path;
    tess_adapter_dialect dialect;
    bool is_flux;
    const tess_safetensors *weights; /* of `own` or `peft` */
    tess_safetensors *own;
    tess_peft_dir *peft;
    tess_gguf *gguf;
    adapter_module *module; /* [numel] by path */
    int64_t numel, room;
    int64_t skipped_numel;
    const char *whole; /* a tensor of a module that is stored whole (modules_to_save), NULL: none */
    tess_st_pair *pair; /* [pair_numel] borrowed from the file */
    int64_t pair_numel;
};

/** Start of metadata keys in GGUF files. */
#define ADAPTER_GGUF_PREFIX "tessera."

/** Add a module; `path` is copied. `*out` is borrowed until the next call. */
TESS_MUST_CHECK tess_status adapter_add(tess_adapter *a, const char *path, size_t path_nbytes,
                                        adapter_module **out);
/** dtype and shape of a matrix or vector of an adapter are legal. */
TESS_MUST_CHECK tess_status adapter_check_tensor(const tess_adapter *a, const tess_st_tensor *t,
                                                 tess_adapter_part part);
/** Rectangle of a whole tensor. */
adapter_slice adapter_whole(const tess_st_tensor *t);
/** Read a rectangle as f32. */
TESS_MUST_CHECK tess_status adapter_read_slice(const tess_adapter *a, const adapter_slice *slice,
                                               float *dst);
/** What a key ends in, -1: not a part. `*stem_nbytes`: what stands in front. */
enum { ADAPTER_ALPHA = TESS_ADAPTER_PART_NUMEL, ADAPTER_ROLE_NUMEL };
int adapter_role_of(const char *key, size_t *stem_nbytes);
/** Kind of adapter that a key shows and that is not read, such as "LoKr"; NULL: none. */
const char *adapter_other_kind(const char *key);

/* The three kinds of sources. */
TESS_MUST_CHECK tess_status adapter_open_peft(tess_adapter *a);
/** Name of the file that an export writes; NULL: a PEFT directory. */
const char *adapter_file_name(tess_adapter_dialect dialect);
TESS_MUST_CHECK tess_status adapter_open_flux(tess_adapter *a, const tess_adapter_options *options);
TESS_MUST_CHECK tess_status adapter_open_gguf(tess_adapter *a, const tess_adapter_options *options);

/** One adapted matrix of a written file: one module, or the parts of a fused matrix. */
typedef struct adapter_group {
    char stem[TESS_ST_NAME_MAX_NBYTES + 1]; /* name in the file, without prefix and suffix */
    int64_t member[4];                      /* modules, -1: this part has no adapter */
    int64_t first_row[4];                   /* of B */
    double fold[4];                         /* B of this member is multiplied by it */
    int member_numel;
    int64_t rank, in_numel, out_numel;
    double alpha;
    bool is_shared; /* all members have the same A */
    bool has_magnitude;
    bool is_swapped;
    int64_t head_dim;
} adapter_group;

/** List what the target holds; checks that it has a place for everything. */
TESS_MUST_CHECK tess_status adapter_plan_groups(const tess_adapter *from,
                                                const tess_adapter_target *to,
                                                adapter_group **group, int64_t *group_numel);
/** Elements of a part of a group. */
int64_t adapter_group_part_numel(const adapter_group *g, tess_adapter_part part);
/** Make a part of a group in `dt`: bytes in `*out`, freed with tess_free. */
TESS_MUST_CHECK tess_status adapter_make_part(const tess_adapter *from, const adapter_group *g,
                                              tess_adapter_part part, tess_dtype dt, void **out);

/** Texts that a written file carries: those of `from`, corrected for the new file. */
typedef struct adapter_metadata {
    tess_st_pair *pair; /* [numel] */
    int64_t numel, room;
    char **text; /* [text_numel] owned */
    int64_t text_numel, text_room;
} adapter_metadata;

TESS_MUST_CHECK tess_status adapter_metadata_make(const tess_adapter *from,
                                                  const tess_adapter_target *to,
                                                  const adapter_group *group, int64_t group_numel,
                                                  adapter_metadata *out);
/** Add a borrowed pair; a key that is there already stays, and NULL is no value. */
TESS_MUST_CHECK tess_status adapter_metadata_add(adapter_metadata *m, const char *key,
                                                 const char *value);
void adapter_metadata_fini(adapter_metadata *m);

/* The three kinds of targets. */
typedef struct adapter_output {
    tess_io *io;
    const tess_adapter *from;
    const tess_adapter_target *to;
    const adapter_group *group;
    int64_t group_numel;
    const char *dir;
} adapter_output;

TESS_MUST_CHECK tess_status adapter_write_peft(const adapter_output *o);
TESS_MUST_CHECK tess_status adapter_write_gguf(const adapter_output *o);
TESS_MUST_CHECK tess_status adapter_write_flux(const adapter_output *o);

TESS_END_DECLS
