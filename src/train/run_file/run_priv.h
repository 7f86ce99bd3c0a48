/** Parts of the run file's reader that its files share. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "core/status.h"
#include "train/run_file/run_file.h"
#include "train/strbuf.h"

TESS_BEGIN_DECLS

typedef enum run_node_kind { RUN_SCALAR, RUN_LIST, RUN_MAP } run_node_kind;

/** A YAML node; children of a map carry names. */
typedef struct run_node {
    run_node_kind kind;
    bool is_quoted;
    int line;
    int column;
    char *name; /* key in the map above, owned */
    int name_line;
    int name_column;
    char *text; /* scalar, owned */
    size_t text_nbytes;
    struct run_node *child; /* [child_numel], owned */
    int64_t child_numel;
} run_node;

/** Prefix of every message: where in which source. */
typedef struct run_where {
    const char *source_name;
    tess_run_place place;
} run_where;

/** Parse one YAML document into a tree of at most RUN_DEPTH_MAX levels. */
enum { RUN_DEPTH_MAX = 5 };
TESS_MUST_CHECK tess_status tess_run_yaml_read(const char *text, size_t nbytes,
                                               const run_where *where, run_node *root);
void tess_run_node_fini(run_node *node);

/** "run.yaml:3:9" or "command line, argument 3". */
void tess_run_where_text(const run_where *where, char text[TESS_RUN_PLACE_NBYTES]);
/** First bytes of a value for a message; what is no printable UTF-8 becomes '?'. */
enum { RUN_EXCERPT_NBYTES = 72 };
void tess_run_excerpt(const char *value, char text[RUN_EXCERPT_NBYTES]);
/** Decode the UTF-8 sequence at `text` (NUL-terminated). @return its bytes, 0: not UTF-8 */
int tess_run_utf8_next(const char *text, uint32_t *code);
bool tess_run_utf8_is_valid(const char *text);
/** Append a string as YAML: plain where every reader takes it for a string, else in quotes. */
TESS_MUST_CHECK tess_status tess_run_string_write(const char *text, tess_strbuf *out);
/** Place of a node: in the file its own line, on the command line the argument. */
run_where tess_run_where_of(const run_where *base, int line, int column);

/** Index of "section.name", TESS_RUN_KEY_NUMEL when there is none. */
tess_run_key_idx tess_run_key_find(const char *path);
/** Nearest known key by edit distance, never NULL. */
const char *tess_run_key_nearest(const char *path);
/** What to say of an unknown key (run_words.c): the key that other trainers call so, else the
 * nearest. */
enum { RUN_HINT_NBYTES = 192 };
void run_key_hint(const char *path, char text[RUN_HINT_NBYTES]);
/** Append the table of other trainers' words as Markdown. */
TESS_MUST_CHECK tess_status run_words_reference(tess_strbuf *out);
bool tess_run_section_is_known(const char *section);
/** Whether a key means something in this run (adapters only exist with train.mode lora, ...). */
bool tess_run_key_applies(const tess_run *run, const tess_run_key *key);
/** Whether a key is about adapters and the base they lie on. */
bool tess_run_key_is_of_adapters(const tess_run_key *key);
/** Whether the run's family reads a key at all (run_family.c). */
bool run_family_reads(const tess_run *run, tess_run_key_idx key);
/** Sequences of an RQ-VAE are single vectors, those of FLUX.1 single samples; an RQ-VAE is a fully
 * trained model with random weights. */
void run_family_resolve(tess_run *run);
/** Whether an adapter holds what only a PEFT directory has a place for. Local. */
bool run_family_needs_peft(const tess_run *run);
/** Keys of other families, and what this one needs. @return TESS_E_CONFIG */
TESS_MUST_CHECK tess_status run_family_check(const tess_run *run);

/* run_quantizer.c: keys of section quantizer */
/** Whether the quantizer of an rqvae run reads a key. */
bool run_quantizer_reads(const tess_run *run, tess_run_key_idx key);
/** Defaults that follow from family and type. */
void run_quantizer_resolve(tess_run *run);
/** Keys that the type has no use for, and those it needs. @return TESS_E_CONFIG */
TESS_MUST_CHECK tess_status run_quantizer_check(const tess_run *run);

/* run_train.c: keys that depend on the optimizer or the schedule */
bool run_train_applies(const tess_run *run, tess_run_key_idx key);
/** Whether a free key decides bits in this run. */
bool run_train_decides(const tess_run *run, tess_run_key_idx key);
void run_train_resolve(tess_run *run);
/** train.steps where train.epochs is given, and train.warmup_steps where train.warmup_ratio is.
 * @return TESS_E_CONFIG both of two are; what epoch_of returned */
TESS_MUST_CHECK tess_status run_train_count(tess_run *run, tess_run_epoch_of epoch_of,
                                            const void *arg);
TESS_MUST_CHECK tess_status run_train_check(const tess_run *run);
/** Refuse a value that nothing in this run reads (run_unused.c). @return TESS_E_CONFIG */
TESS_MUST_CHECK tess_status run_unused_check(const tess_run *run);

/** What a key expects, in words. */
enum { RUN_EXPECTED_NBYTES = 256 };
void tess_run_expected(const tess_run_key *key, char text[RUN_EXPECTED_NBYTES]);
/** Check a node against the key's type and range and store it. */
TESS_MUST_CHECK tess_status tess_run_value_set(tess_run *run, const tess_run_key *key,
                                               const run_node *node, const run_where *where);
/** A node against a key's type and range, by kind: false when it does not fit. */
bool tess_run_set_int(const tess_run_key *key, const run_node *node, int64_t *out);
bool tess_run_set_f64(const tess_run_key *key, const run_node *node, double *out);
/** Position of `text` in "a|b|c" (a leading bar is ignored), -1 when it is none of them. */
int tess_run_word_find(const char *words, const char *text);
/** The refusal of a node that is not what its key expects. */
TESS_MUST_CHECK tess_status tess_run_mismatch(const tess_run_key *key, const run_node *node,
                                              const run_where *where);

/* Kinds with any number of items (run_lists.c); `field` is the one of their type. */
enum { RUN_LIST_MAX = 4096, RUN_NAME_MAX_NBYTES = 4096 };
bool tess_run_kind_is_list(tess_run_kind kind);
TESS_MUST_CHECK tess_status tess_run_list_set(const tess_run_key *key, const run_node *node,
                                              const run_where *where, void *field);
TESS_MUST_CHECK tess_status tess_run_list_write(tess_run_kind kind, const void *field,
                                                tess_strbuf *out);
int64_t tess_run_list_numel(tess_run_kind kind, const void *field);
void tess_run_list_fini(tess_run_kind kind, void *field);

/** Append the default of a key as a listing states it; nothing where there is none. */
TESS_MUST_CHECK tess_status tess_run_default_write(const tess_run_key *key, tess_strbuf *out);
void tess_run_value_fini(tess_run *run, const tess_run_key *key);

TESS_END_DECLS
