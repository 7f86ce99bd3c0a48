/** What `tessera bench` trains: a user's run file, or a built-in shape with files of its own. */
#pragma once

#include "launch/bench.h"

TESS_BEGIN_DECLS

enum { TESS_BENCH_PATH_NBYTES = 512 };

/** Scratch folder of a measurement; the same path on every rank. */
typedef struct tess_bench_scratch {
    char path[TESS_BENCH_PATH_NBYTES];
} tess_bench_scratch;

/** Make a folder below --dir. Collective. @return TESS_E_IO */
TESS_MUST_CHECK tess_status tess_bench_scratch_create(tess_bench *b, tess_bench_scratch *scratch);
/** Remove it with all that is in it; what cannot be removed is named in a warning. Collective. */
void tess_bench_scratch_destroy(tess_bench *b, tess_bench_scratch *scratch);
/** Remove a folder in it, so that a next session begins anew. Rank 0; missing is fine. Local. */
TESS_MUST_CHECK tess_status tess_bench_remove(tess_bench *b, const char *path);

/** One subject at one length. */
typedef struct tess_bench_case {
    const char *name;                      /* shape, or path of the run file */
    bool is_builtin;                       /* random weights, made-up data */
    bool has_model_files;                  /* of this family weights can be exported and read */
    bool has_no_base;                      /* and no format to choose; of run files not known */
    int64_t length;                        /* 0: as the run file says */
    char text[2048];                       /* run file of a built-in shape; "": read `name` */
    char override[TESS_BENCH_PATH_NBYTES]; /* what the length changes in a run file; "": nothing */
} tess_bench_case;

/**
 * Describe a subject; of a built-in shape its config and data are written into the scratch folder,
 * once per length. Collective.
 * @param length  0: the shape's, or the run file's, own
 * @return TESS_E_ARG neither a shape nor a file; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_bench_case_make(tess_bench *b, const tess_bench_scratch *scratch,
                                                 const char *name, int64_t length,
                                                 tess_bench_case *out);

TESS_END_DECLS
