/** Inside of tokenizers: tables filled by the loader, scratch of the encoder. */
#pragma once

#include <string.h>

#include "format/json.h"
#include "format/tokenizer.h"

TESS_BEGIN_DECLS

enum {
    TESS_TOKENIZER_STEP_LIMIT = 8, /* normalizers, pre-tokenizers or decoders in a sequence */
    TESS_PIECE_NBYTES_MAX = INT32_MAX / 8
};

/** A token's bytes in the pool. */
typedef struct tess_token_span {
    uint32_t offset;
    uint32_t nbytes;
    bool is_present;
} tess_token_span;

/** Hash table from bytes in a pool to ids. */
typedef struct tess_token_map {
    int32_t *slot; /* [slot_numel] id or -1 */
    int64_t slot_numel;
} tess_token_map;

typedef struct tess_merge {
    uint64_t pair; /* left id << 32 | right id; TESS_MERGE_NONE: free slot */
    uint32_t rank;
    int32_t merged;
} tess_merge;

typedef struct tess_merge_map {
    tess_merge *slot;
    int64_t slot_numel;
} tess_merge_map;

#define TESS_MERGE_NONE UINT64_MAX

typedef enum tess_normalizer_kind {
    TESS_NORMALIZE_NFC,
    TESS_NORMALIZE_PREPEND,
    TESS_NORMALIZE_REPLACE
} tess_normalizer_kind;

typedef struct tess_normalizer {
    tess_normalizer_kind kind;
    char *from; /* replace: what to look for */
    char *to;   /* replace, prepend */
} tess_normalizer;

typedef enum tess_split_kind {
    TESS_SPLIT_GPT2,
    TESS_SPLIT_LLAMA3,
    TESS_SPLIT_QWEN2,
    TESS_SPLIT_TEKKEN,
    TESS_SPLIT_DIGITS,          /* each numeric character alone */
    TESS_SPLIT_DIGITS_TOGETHER, /* runs of numeric characters */
    TESS_SPLIT_PREFIX_SPACE,    /* a space in front of each piece that lacks one */
    TESS_SPLIT_METASPACE        /* spaces become `replacement`; prefix and splits by its options */
} tess_split_kind;

typedef enum tess_prepend_scheme {
    TESS_PREPEND_ALWAYS,
    TESS_PREPEND_FIRST,
    TESS_PREPEND_NEVER
} tess_prepend_scheme;

typedef struct tess_metaspace {
    char replacement[8];
    size_t replacement_nbytes;
    tess_prepend_scheme scheme;
    bool split;
} tess_metaspace;

typedef struct tess_added_token {
    int32_t id;
    char *content;
    bool single_word, lstrip, rstrip, normalized, special;
} tess_added_token;

/** Patterns of added tokens, sorted bytewise so that a common prefix is a range. */
typedef struct tess_pattern {
    char *text;
    size_t nbytes;
    int64_t added_idx;
} tess_pattern;

typedef struct tess_pattern_set {
    tess_pattern *pattern;
    int64_t numel;
    bool has_first[256];
} tess_pattern_set;

typedef enum tess_decoder_kind {
    TESS_DECODE_REPLACE,
    TESS_DECODE_BYTE_FALLBACK,
    TESS_DECODE_FUSE,
    TESS_DECODE_STRIP,
    TESS_DECODE_BYTE_LEVEL,
    TESS_DECODE_METASPACE
} tess_decoder_kind;

typedef struct tess_decoder_step {
    tess_decoder_kind kind;
    char *from, *to;     /* replace */
    char strip[8];       /* strip: the character */
    int64_t strip_numel; /* strip: at most so many from the left */
    tess_metaspace metaspace;
} tess_decoder_step;

struct tess_tokenizer {
    char *name; /* for messages */
    tess_sha256 digest;
    char kind[96];

    char *pool;
    int64_t pool_numel, pool_room_numel;
    int64_t vocab_numel;
    tess_token_span *text; /* [vocab_numel] as in the file */
    tess_token_span *raw;  /* [vocab_numel] what a token decodes from where that is not `text`: its
                    bytes (byte level), the normalized form of an added token */
    bool *special;         /* [vocab_numel] */
    tess_token_map by_text, by_raw; /* tokens of the model, without added ones */
    tess_merge_map merges;
    int32_t byte_id[256]; /* byte level: token of a byte; else its <0xNN>; -1: none */
    int32_t unk_id;
    bool is_byte_level, byte_fallback, fuse_unk, ignore_merges;

    tess_added_token *added;
    int64_t added_numel;
    tess_pattern_set raw_patterns, normalized_patterns;

    tess_normalizer normalizer[TESS_TOKENIZER_STEP_LIMIT];
    int normalizer_numel;
    tess_split_kind split[TESS_TOKENIZER_STEP_LIMIT];
    int split_numel;
    tess_metaspace metaspace;
    tess_decoder_step decoder[TESS_TOKENIZER_STEP_LIMIT];
    int decoder_numel;
    tess_ids prefix, suffix;
};

/** Growing bytes. */
typedef struct tess_text {
    char *byte;
    int64_t numel, room_numel;
} tess_text;

TESS_MUST_CHECK tess_status tess_text_append(tess_text *text, const char *byte, size_t nbytes);
void tess_text_fini(tess_text *text);

/* tokenizer_maps.c */
TESS_MUST_CHECK tess_status tess_token_map_create(int64_t numel, tess_token_map *out);
/** Add an id; `*found` is the id already there with the same bytes, or -1. Local. */
void tess_token_map_add(tess_token_map *map, const char *pool, const tess_token_span *spans,
                        int32_t id, int32_t *found);
int32_t tess_token_map_find(const tess_token_map *map, const char *pool,
                            const tess_token_span *spans, const char *key, size_t nbytes);
TESS_MUST_CHECK tess_status tess_merge_map_create(int64_t numel, tess_merge_map *out);
void tess_merge_map_set(tess_merge_map *map, int32_t left, int32_t right, uint32_t rank,
                        int32_t merged);
const tess_merge *tess_merge_map_find(const tess_merge_map *map, int32_t left, int32_t right);

/* byte_level.c */
/** The byte that a mapped character stands for, -1: none. */
int tess_byte_of_char(uint32_t code_point);

/* unicode.c */
enum { TESS_CASE_FRONT = 1, TESS_CASE_BEHIND = 2 };
/** Code point at `at` (UTF-8 known to be valid); `*nbytes` its length. */
uint32_t tess_utf8_next(const char *text, size_t nbytes, size_t at, size_t *char_nbytes);
/* Append the text, with U+FFFD for each run of bytes that is no character but could begin one, or
 * else for each byte: as peers decode. */
TESS_MUST_CHECK tess_status tess_utf8_mend(const char *text, size_t nbytes, tess_text *out);
bool tess_is_letter(uint32_t code_point);
bool tess_is_number(uint32_t code_point);
/** Where in a word of the tekken pattern it may stand: FRONT Lu, Lt, Lm, Lo, M, BEHIND Ll, Lm, Lo,
 * M; 0 for what is neither letter nor mark. */
unsigned tess_case_of(uint32_t code_point);
bool tess_is_space(uint32_t code_point);
/** As \w of Rust's regex: alphabetic, marks, decimal digits, connectors, joiners. */
bool tess_is_word(uint32_t code_point);

/* tokenizer_load.c, tokenizer_pipeline.c */
TESS_MUST_CHECK tess_status tess_tokenizer_load_model(tess_tokenizer *t, const tess_json *root);
TESS_MUST_CHECK tess_status tess_tokenizer_load_added(tess_tokenizer *t, const tess_json *root);
TESS_MUST_CHECK tess_status tess_tokenizer_load_pipeline(tess_tokenizer *t, const tess_json *root);
TESS_MUST_CHECK tess_status tess_tokenizer_load_template(tess_tokenizer *t, const tess_json *root);
TESS_MUST_CHECK tess_status tess_tokenizer_load_decoder(tess_tokenizer *t, const tess_json *root);
/** Copy bytes into the pool, a NUL behind them. */
TESS_MUST_CHECK tess_status tess_tokenizer_put_token(tess_tokenizer *t, const char *byte,
                                                     size_t nbytes, tess_token_span *span);
/** Metaspace options, of a pre-tokenizer or a decoder. */
TESS_MUST_CHECK tess_status tess_metaspace_load(const tess_json *object, tess_metaspace *out);
/** One UTF-8 character given as a string. */
TESS_MUST_CHECK tess_status tess_one_char_load(const tess_json *object, const char *key,
                                               char out[8]);

/* added_tokens.c */
TESS_MUST_CHECK tess_status tess_patterns_build(tess_tokenizer *t);
void tess_patterns_fini(tess_pattern_set *set);
/** Next added token at or behind `at`: true with its place; honours single_word, special text. */
typedef struct tess_added_match {
    int64_t added_idx;
    size_t start, end; /* with stripped white space */
    size_t resume;     /* where the search goes on */
} tess_added_match;
typedef struct tess_match_request {
    const tess_pattern_set *set;
    const char *text;
    size_t nbytes;
    bool no_special;
} tess_match_request;
bool tess_added_next(const tess_tokenizer *t, const tess_match_request *request, size_t at,
                     size_t done, tess_added_match *out);

/* normalize.c */
/** Run the normalizers over one piece; `out` is cleared first. `work` is scratch. */
TESS_MUST_CHECK tess_status tess_normalize(const tess_tokenizer *t, const char *text, size_t nbytes,
                                           tess_text *work, tess_text *out);

/* pretokenize.c */
/** Length of the next piece of text[0, nbytes), nbytes > 0. */
size_t tess_split_next(tess_split_kind kind, const char *text, size_t nbytes);
/** Whether a pattern of the file is one of those compiled in. */
bool tess_split_pattern_find(const char *pattern, tess_split_kind *out);
const char *tess_split_name(tess_split_kind kind);

/* bpe.c */
typedef struct tess_symbol {
    int32_t id;
    int32_t prev, next; /* -1: none */
    bool is_merged;     /* into its left neighbour */
} tess_symbol;
typedef struct tess_candidate {
    uint32_t rank;
    int32_t place;
    int32_t merged;
} tess_candidate;
typedef struct tess_bpe {
    tess_symbol *symbol;
    int64_t symbol_numel, symbol_room_numel;
    tess_candidate *heap;
    int64_t heap_numel, heap_room_numel;
} tess_bpe;
void tess_bpe_fini(tess_bpe *bpe);
/** BPE of one pre-token (its bytes before byte-level mapping); ids are appended. */
TESS_MUST_CHECK tess_status tess_bpe_encode(const tess_tokenizer *t, tess_bpe *bpe,
                                            const char *text, size_t nbytes, tess_ids *ids);

TESS_END_DECLS
