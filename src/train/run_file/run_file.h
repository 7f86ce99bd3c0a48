/**
 * The run file: YAML text and KEY=VALUE overrides in, a checked `tess_run` out.
 *
 * Rank 0 reads the bytes and broadcasts them, every rank parses the same text: a run file is seen
 * alike everywhere, and a refusal is the same on every rank without a message.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"
#include "train/run_file/run_schema.h"
#include "train/strbuf.h"

TESS_BEGIN_DECLS

/* One struct per section: tess_run_model_keys {char *path; ...} and so on. */
#define TESS_RUN_FIELD_(section, field, name, c_type, kind, words, text, lo, hi, class_, help)     \
    c_type field;
#define TESS_RUN_STRUCT_(section, SECTION, help)                                                   \
    typedef struct tess_run_##section##_keys {                                                     \
        TESS_RUN_##SECTION##_KEYS(TESS_RUN_FIELD_)                                                 \
    } tess_run_##section##_keys;
TESS_RUN_SECTION_LIST(TESS_RUN_STRUCT_)
#undef TESS_RUN_STRUCT_
#undef TESS_RUN_FIELD_

/** Where a value came from. */
typedef struct tess_run_place {
    bool is_given;    /* false: the default */
    int line;         /* from 1 in the run file; 0: not from the file */
    int column;       /* from 1 */
    int argument_idx; /* from 1 on the command line; 0: not from there */
} tess_run_place;

/** A checked run. Strings are owned; free with tess_run_destroy. `run->train.steps` and so on. */
typedef struct tess_run {
#define X(section, SECTION, help) tess_run_##section##_keys section;
    TESS_RUN_SECTION_LIST(X)
#undef X
    char *source_name; /* name of the run file in messages */
    tess_run_place place[TESS_RUN_KEY_NUMEL];
} tess_run;

/** One KEY=VALUE of the command line. */
typedef struct tess_run_override {
    const char *text;
    int argument_idx; /* its position among the program's arguments, from 1 */
} tess_run_override;

enum { TESS_RUN_TEXT_LIMIT_NBYTES = 1 << 20, TESS_RUN_PLACE_NBYTES = 512 };

/**
 * Parse a run file, apply overrides in order, fill defaults, check every key and how keys fit
 * together.
 *
 * Local; the same verdict for the same arguments. Options with a default that depends on another
 * key are resolved: train.steps (where train.epochs is given), train.warmup_steps, base.format,
 * train.schedule, train.beta2, train.decay_steps and output.export.
 *
 * @param[in]  text           [nbytes] UTF-8, borrowed; need not end in NUL
 * @param[in]  source_name    the file's name in messages
 * @param[in]  overrides      [override_numel] borrowed, NULL when none
 * @param[out] run            new run, free with tess_run_destroy; untouched on failure
 * @return TESS_E_CONFIG with "FILE:LINE:COLUMN: " or "command line, argument N: " in front;
 *         TESS_E_ARG an override without '='; TESS_E_MEMORY
 */
TESS_MUST_CHECK tess_status tess_run_parse(const char *text, size_t nbytes, const char *source_name,
                                           const tess_run_override *overrides,
                                           int64_t override_numel, tess_run **run);
/** Says how many sequences (vectors, images, samples) an epoch of data.path has, 0: that is not
 * known. Called where train.epochs says how long a run is, once the family is known. */
typedef tess_status (*tess_run_epoch_of)(const void *arg, const tess_run *run,
                                         int64_t *sequence_numel);

/** What a run is parsed from; arguments as those of tess_run_parse(). */
typedef struct tess_run_source {
    const char *text;
    size_t nbytes;
    const char *name;
    const tess_run_override *overrides;
    int64_t override_numel;
    /* NULL: nobody knows. Called with the `arg` of tess_run_parse_with(). */
    tess_run_epoch_of epoch_of;
} tess_run_source;

/** Says which family model.family: auto is, as far as keys depend on it: called when all keys have
 * values and before they are checked. What is left at auto is a language model, whose config tells
 * which. */
typedef tess_status (*tess_run_family_of)(const void *arg, const tess_run *run,
                                          tess_run_family *family);

/** tess_run_parse() that asks `family_of(arg, ...)`, unless it is NULL or the family is given.
 * @return as tess_run_parse(); what family_of returned */
TESS_MUST_CHECK tess_status tess_run_parse_with(const tess_run_source *source,
                                                tess_run_family_of family_of, const void *arg,
                                                tess_run **run);
void tess_run_destroy(tess_run **run);

/** Whether the run finds codebooks by k-means: a job over vectors without a model. Local. */
static inline bool tess_run_is_kmeans(const tess_run *run)
{
    return run->model.family == TESS_RUN_FAMILY_KMEANS;
}
/** Whether its data are folders of images. Local. */
static inline bool tess_run_is_of_images(const tess_run *run)
{
    return run->model.family == TESS_RUN_FAMILY_VQVAE;
}
/** Whether it trains a quantized autoencoder: over vectors, or over images. Local. */
static inline bool tess_run_is_rqvae(const tess_run *run)
{
    return run->model.family == TESS_RUN_FAMILY_RQVAE || tess_run_is_of_images(run);
}
/** Whether it makes codes of vectors or images. Local. */
static inline bool tess_run_is_vectors(const tess_run *run)
{
    return tess_run_is_kmeans(run) || tess_run_is_rqvae(run);
}

/** Whether it trains a FLUX.1 transformer: its data are cached latents and texts. Local. */
static inline bool tess_run_is_flux(const tess_run *run)
{
    return run->model.family == TESS_RUN_FAMILY_FLUX;
}

/** Whether train.epochs says how long the run is, and nobody knew what an epoch is: train.steps is
 * then the most that there may be. Local. */
static inline bool tess_run_has_open_end(const tess_run *run)
{
    return run->train.epochs > 0.0 && run->train.steps == TESS_RUN_STEPS_MAX;
}

/** Where a key's value stands, for messages of those who use it: "run.yaml:3:9: train.steps".
 * Local. */
void tess_run_place_text(const tess_run *run, tess_run_key_idx key,
                         char text[TESS_RUN_PLACE_NBYTES]);

/** Refuse a key's value, its place first. Local. @return TESS_E_CONFIG */
TESS_MUST_CHECK tess_status tess_run_refuse(const tess_run *run, tess_run_key_idx key,
                                            const char *why);

/** The resolved run as YAML; parses back to the same run. Free with tess_free. Local. */
TESS_MUST_CHECK tess_status tess_run_yaml(const tess_run *run, char **text, size_t *nbytes);

/**
 * Every NUMERICS key that applies, and free ones that decide bits in this run, as one line
 * "key=value\n", sorted by key: what the numerics digest hashes and a checkpoint stores. Free with
 * tess_free. Local.
 */
TESS_MUST_CHECK tess_status tess_run_numerics(const tess_run *run, char **text, size_t *nbytes);

/**
 * Compare two listings of "key=value\n" lines sorted by key. A key of the schema that `stored`
 * lacks had its default there: it may be of an older version.
 *
 * Local. A key that only `current` has, with its default, is no difference: the stored run is older
 * than the key. @param[out] text one line "train.seed: 0 -> 1, ...", "" when equal; free with
 * tess_free
 * @param[out] difference_numel keys that differ or stand in one listing only
 */
TESS_MUST_CHECK tess_status tess_run_numerics_diff(const char *stored, const char *current,
                                                   char **text, int64_t *difference_numel);

/** The reference of all keys as Markdown (docs/run-file.md). Free with tess_free. Local. */
TESS_MUST_CHECK tess_status tess_run_reference(char **text, size_t *nbytes);

typedef enum tess_run_kind {
    TESS_RUN_INT,
    TESS_RUN_BYTES,
    TESS_RUN_F64,
    TESS_RUN_BOOL,
    TESS_RUN_ENUM,
    TESS_RUN_TEXT,
    TESS_RUN_PATH,
    TESS_RUN_NAMES,
    TESS_RUN_RULES,
    TESS_RUN_INTS,
    TESS_RUN_PATTERNS
} tess_run_kind;

/** One row of the schema. */
typedef struct tess_run_key {
    const char *path; /* "train.steps" */
    const char *section;
    const char *name;
    tess_run_kind kind;
    bool is_numerics;
    const char *words;   /* "auto|node", a leading bar is ignored */
    const char *initial; /* default as text; NULL: required; "": not set */
    int64_t least_int, most_int;
    double least, most;
    const char *help;
    size_t offset_nbytes; /* of the field in tess_run */
} tess_run_key;

/** Row of the schema, in the order of the file. Local. */
const tess_run_key *tess_run_key_at(tess_run_key_idx key);
/** Whether a key has a value: those without a default may have none. Local. */
bool tess_run_value_is_set(const tess_run *run, const tess_run_key *key);
/** Append a value as YAML flow text, nothing for one that is not set. Local.
 * @return TESS_E_MEMORY */
TESS_MUST_CHECK tess_status tess_run_value_write(const tess_run *run, const tess_run_key *key,
                                                 tess_strbuf *out);
/** The word at a position of "a|b|c" (a leading bar is ignored): tess_run_key.words. Local. */
void tess_run_word_at(const char *words, int idx, char text[32]);

TESS_END_DECLS
