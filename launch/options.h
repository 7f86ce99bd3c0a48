/** What the subcommands were asked to do. Strings are borrowed from argv. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/dtype.h"
#include "format/adapter.h"
#include "train/run_file/run_file.h"
#include "train/vectors/vectors_code.h"

TESS_BEGIN_DECLS

/** Options of every subcommand. */
typedef struct tess_common_options {
    bool is_help;    /* --help was given and answered: nothing else is to be done */
    bool is_verbose; /* -v, or TESSERA_TRACE=1: debug lines, and the trace of an error */
} tess_common_options;

/** RUN.yaml [KEY=VALUE ...] */
typedef struct tess_run_options {
    const char *path;
    tess_run_override *override; /* [override_numel], owned: tess_launch_run_fini */
    int64_t override_numel;
} tess_run_options;

typedef struct tess_train_options {
    tess_common_options common;
    tess_run_options run;
    bool accept_config_change;   /* resume although numerics keys differ from the checkpoint's */
    const char *manifest_sha256; /* of the checkpoint to go on from; NULL: any. So in all below */
} tess_train_options;

typedef struct tess_plan_command {
    tess_common_options common;
    tess_run_options run;
    int rank_numel;       /* --ranks, 0: the ranks of this launch */
    const char *device;   /* --device, NULL: the device of this launch */
    const char *network;  /* --network, NULL: the one that goes with the device */
    const char *timeline; /* --timeline, NULL: none */
    bool is_json;
} tess_plan_command;

typedef struct tess_check_options {
    tess_common_options common;
    tess_run_options run; /* path NULL: none */
    const char *dir;      /* in place of a run's output.dir, NULL: not given */
    bool is_json;
} tess_check_options;

typedef struct tess_eval_options {
    tess_common_options common;
    tess_run_options run;
    const char *checkpoint; /* directory, "none": the base alone, NULL: the newest of output.dir */
    const char *adapter;    /* in place of a checkpoint, NULL: none */
    const char *manifest_sha256;
    bool is_json;
} tess_eval_options;

enum { TESS_PROMPT_MAX = 64 };

typedef struct tess_sample_options {
    tess_common_options common;
    tess_run_options run;
    const char *checkpoint; /* as in tess_eval_options */
    const char *adapter;    /* same */
    const char *manifest_sha256;
    const char *prompt[TESS_PROMPT_MAX];
    int64_t prompt_numel;
    /* -1: not given */
    int64_t token_numel; /* --tokens: at most so many new ones */
    double temperature;  /* 0: always the likeliest token */
    int64_t top_k;       /* 0: all */
    int64_t seed;
    bool is_json;
    /* of diffusion runs; 0, guidance -1: not given */
    const char *output, *cache;
    const char *base_format;
    char base_override[48]; /* "base.format=nf4" */
    int64_t width, height;  /* pixels */
    int64_t step_numel, image_numel;
    double guidance;
    double shift; /* 0: by resolution */
} tess_sample_options;

/** inspect and verify. */
typedef struct tess_path_options {
    tess_common_options common;
    const char *path;
    const char *manifest_sha256; /* verify */
    bool is_json;
} tess_path_options;

typedef struct tess_diff_options {
    tess_common_options common;
    const char *a;
    const char *b;
    bool is_json;
} tess_diff_options;

typedef struct tess_export_options {
    tess_common_options common;
    const char *source; /* checkpoint or adapter */
    const char *manifest_sha256;
    const char *output;
    const char *format;           /* as given, NULL: what a checkpoint holds */
    tess_run_export run_export;   /* of a checkpoint; none: it has no such form */
    tess_adapter_dialect dialect; /* of an adapter; TESS_ADAPTER_DIALECT_NUMEL: it is none */
    tess_dtype dtype;        /* bf16: the copy that was evaluated; f32: the masters; f16: rounded */
    bool has_dtype;          /* it was given; else an adapter keeps its own */
    const char *base;        /* model that the adapter is for, NULL: as the adapter says */
    bool skip_text_encoders; /* leave their keys out */
    bool has_weights;        /* `weights` were given; else what the run file says */
    tess_run_weights weights;
    bool is_difference; /* an adapter of the weights that the run started from */
    bool is_codebook;   /* `codebook` was chosen */
    tess_codebook_format codebook;
} tess_export_options;

enum { TESS_BENCH_LIST_MAX = 32 };

typedef struct tess_bench_options {
    tess_common_options common;
    const char *part;   /* device, links, collectives, step, scaling, checkpoint, load */
    const char *output; /* NULL: stdout */
    int64_t thread_numel, repeat_numel, max_mib; /* repeats 0: as many as the part thinks fit */
    /* of step, scaling, checkpoint and load */
    const char *subject[TESS_BENCH_LIST_MAX]; /* run files and built-in shapes */
    tess_run_override override[TESS_BENCH_LIST_MAX];
    const char *format[TESS_BENCH_LIST_MAX]; /* base.format */
    int64_t length[TESS_BENCH_LIST_MAX], rank[TESS_BENCH_LIST_MAX];
    int subject_numel, override_numel, format_numel, length_numel, rank_numel;
    int64_t warmup_numel, every_numel;
    int64_t kernels_numel; /* of step: further steps, kernel by kernel */
    const char *device;    /* of step: description that times are held against, NULL: none */
    const char *dir;       /* scratch goes there; NULL: TMPDIR or /tmp */
} tess_bench_options;

/** encode and decode. */
typedef struct tess_code_options {
    tess_common_options common;
    const char *checkpoint;
    const char *manifest_sha256;
    const char *input;
    const char *output;
    const char *mask; /* encode: NULL: none */
    bool is_json;     /* encode */
} tess_code_options;

TESS_END_DECLS
