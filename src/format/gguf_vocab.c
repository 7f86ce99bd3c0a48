#include "format/gguf_vocab.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "format/tokenizer_priv.h"

enum { PAD_NBYTES = 32 };

/* Numbers of llama.cpp. */
enum {
    TYPE_NORMAL = 1,
    TYPE_UNKNOWN = 2,
    TYPE_CONTROL = 3,
    TYPE_USER_DEFINED = 4,
    TYPE_UNUSED = 5,
    TYPE_BYTE = 6
};

typedef struct ranked {
    uint32_t rank;
    int32_t left, right, merged;
} ranked;

typedef struct tess_gguf_vocab_tables {
    tess_tokenizer *tokenizer;
    int64_t numel; /* rows of the embedding */
    const char **text;
    int32_t *type;
    float *score;
    char (*pad)[PAD_NBYTES]; /* names of rows without a token */
    ranked *merge;           /* [merge_numel] by rank */
    int64_t merge_numel;
    char **merge_text; /* [merge_numel] */
} tables;

static tess_status refuse(const tables *v, const char *why)
{
    return TESS_FAIL(TESS_E_UNSUPPORTED,
                     "tokenizer '%s' (%s): %s; a GGUF file would split text otherwise: write a "
                     "directory instead",
                     v->tokenizer->name, v->tokenizer->kind, why);
}

static int by_rank(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    return (x->rank > y->rank) - (x->rank < y->rank);
}

static tess_status list_merges(tables *v)
{
    const tess_merge_map *map = &v->tokenizer->merges;
    void *array = NULL;
    TESS_TRY(tess_alloc_array(map->slot_numel, sizeof *v->merge, &array));
    v->merge = array;
    for (int64_t i = 0; i < map->slot_numel; i++) {
        const tess_merge *m = &map->slot[i];
        if (m->pair != TESS_MERGE_NONE)
            v->merge[v->merge_numel++] = (ranked){m->rank, (int32_t)(m->pair >> 32),
                                                  (int32_t)(m->pair & 0xffffffffU), m->merged};
    }
    if (v->merge_numel > 1)
        qsort(v->merge, (size_t)v->merge_numel, sizeof *v->merge, by_rank);
    return TESS_OK;
}

static const char *text_of(const tess_tokenizer *t, int32_t id)
{
    return t->pool + t->text[id].offset;
}

/* ---- tokens ---- */

static tess_status list_tokens(tables *v)
{
    const tess_tokenizer *t = v->tokenizer;
    void *text = NULL, *type = NULL, *pad = NULL;
    TESS_TRY(tess_alloc_array(v->numel, sizeof *v->text, &text));
    v->text = text;
    TESS_TRY(tess_alloc_array(v->numel, sizeof *v->type, &type));
    v->type = type;
    TESS_TRY(tess_alloc_array(v->numel, sizeof *v->pad, &pad));
    v->pad = pad;
    for (int64_t i = 0; i < v->numel; i++) {
        const bool is_there = i < t->vocab_numel && t->text[i].is_present;
        snprintf(v->pad[i], PAD_NBYTES, "[PAD%" PRId64 "]", i);
        v->text[i] = is_there ? text_of(t, (int32_t)i) : v->pad[i];
        v->type[i] = is_there ? TYPE_NORMAL : TYPE_UNUSED;
    }
    for (int i = 0; i < 256 && !t->is_byte_level; i++)
        if (t->byte_id[i] >= 0)
            v->type[t->byte_id[i]] = TYPE_BYTE;
    for (int64_t i = 0; i < t->added_numel; i++) {
        v->text[t->added[i].id] = t->added[i].content;
        v->type[t->added[i].id] = t->added[i].special ? TYPE_CONTROL : TYPE_USER_DEFINED;
    }
    if (t->unk_id >= 0 && !t->is_byte_level)
        v->type[t->unk_id] = TYPE_UNKNOWN;
    return TESS_OK;
}

/* ---- byte level ---- */

/* The pre-tokenizer of llama.cpp that splits as the tokenizer does, NULL: none. */
static const char *pre_of(const tess_tokenizer *t)
{
    const bool has_nfc = t->normalizer_numel == 1 && t->normalizer[0].kind == TESS_NORMALIZE_NFC;
    if (t->split_numel == 2 && t->split[0] == TESS_SPLIT_DIGITS && t->split[1] == TESS_SPLIT_GPT2)
        return t->normalizer_numel == 0 ? "smollm" : NULL;
    if (t->split_numel != 1)
        return NULL;
    if (t->split[0] == TESS_SPLIT_QWEN2)
        return t->normalizer_numel == 0 || has_nfc ? "qwen2" : NULL;
    if (t->normalizer_numel != 0)
        return NULL;
    return t->split[0] == TESS_SPLIT_LLAMA3 ? "llama-bpe"
           : t->split[0] == TESS_SPLIT_GPT2 ? "gpt-2"
                                            : NULL;
}

static tess_status list_merge_texts(tables *v)
{
    void *array = NULL;
    TESS_TRY(tess_alloc_array(v->merge_numel, sizeof *v->merge_text, &array));
    v->merge_text = array;
    for (int64_t i = 0; i < v->merge_numel; i++)
        TESS_TRY(tess_asprintf(&v->merge_text[i], "%s %s", text_of(v->tokenizer, v->merge[i].left),
                               text_of(v->tokenizer, v->merge[i].right)));
    return TESS_OK;
}

/* ---- SentencePiece's kind ---- */

/* [Note: scores for ranks] llama.cpp merges the neighbours whose concatenation is the token with
 * the highest score. With the first rank as score that is BPE by ranks exactly when the merges that
 * make one token follow each other, and when every two tokens that make a third are a merge: so it
 * is in what was converted from SentencePiece. */
static tess_status score_tokens(tables *v)
{
    void *array = NULL;
    TESS_TRY(tess_alloc_array(v->numel, sizeof *v->score, &array));
    v->score = array;
    for (int64_t i = 0; i < v->merge_numel; i++) {
        const int32_t id = v->merge[i].merged;
        const bool is_next = i > 0 && v->merge[i - 1].merged == id;
        if (!is_next && v->score[id] != 0.0F)
            return refuse(v, "merges that make one token do not follow each other");
        if (!is_next)
            v->score[id] = -(float)(i + 1);
    }
    return TESS_OK;
}

static tess_status check_splits(const tables *v, int32_t id)
{
    const tess_tokenizer *t = v->tokenizer;
    const char *text = text_of(t, id);
    const size_t nbytes = t->text[id].nbytes;
    for (size_t cut = 1; cut < nbytes; cut++) {
        const int32_t left = tess_token_map_find(&t->by_text, t->pool, t->text, text, cut);
        const int32_t right =
            left < 0 ? -1
                     : tess_token_map_find(&t->by_text, t->pool, t->text, text + cut, nbytes - cut);
        if (right >= 0 && tess_merge_map_find(&t->merges, left, right) == NULL)
            return refuse(v, "two tokens make a third without being a merge");
    }
    return TESS_OK;
}

static bool is_metaspace(const tess_tokenizer *t)
{
    if (t->split_numel == 1)
        return t->split[0] == TESS_SPLIT_METASPACE && t->normalizer_numel == 0 &&
               !t->metaspace.split;
    return t->split_numel == 0 && t->normalizer_numel == 2 &&
           t->normalizer[0].kind == TESS_NORMALIZE_PREPEND &&
           t->normalizer[1].kind == TESS_NORMALIZE_REPLACE;
}

static tess_status check_sentencepiece(tables *v)
{
    const tess_tokenizer *t = v->tokenizer;
    if (!t->byte_fallback || !is_metaspace(t))
        return refuse(v, "its normalizer and pre-tokenizer are not SentencePiece's");
    TESS_TRY(score_tokens(v));
    for (int64_t i = 0; i < t->vocab_numel; i++)
        if (v->type[i] == TYPE_NORMAL)
            TESS_TRY(check_splits(v, (int32_t)i));
    return TESS_OK;
}

/* ---- keys ---- */

static void add(tess_gguf_vocab *out, const char *key, tess_gguf_value value)
{
    out->pair[out->pair_numel++] = (tess_gguf_pair){key, value};
}

static void add_text(tess_gguf_vocab *out, const char *key, const char *text)
{
    add(out, key, (tess_gguf_value){.kind = TESS_GGUF_STRING, .text = text});
}

static void add_array(tess_gguf_vocab *out, const char *key, tess_gguf_kind of, int64_t numel,
                      const void *data)
{
    add(out, key,
        (tess_gguf_value){.kind = TESS_GGUF_ARRAY, .of = of, .numel = numel, .data = data});
}

static void add_ids(tess_gguf_vocab *out, const tess_llm_config *config)
{
    const tess_tokenizer *t = out->tables->tokenizer;
    if (config->bos_id >= 0)
        add(out, "tokenizer.ggml.bos_token_id",
            (tess_gguf_value){.kind = TESS_GGUF_U32, .i64 = config->bos_id});
    if (config->eos_numel > 0)
        add(out, "tokenizer.ggml.eos_token_id",
            (tess_gguf_value){.kind = TESS_GGUF_U32, .i64 = config->eos_id[0]});
    add(out, "tokenizer.ggml.add_bos_token",
        (tess_gguf_value){.kind = TESS_GGUF_BOOL, .i64 = t->prefix.numel > 0});
    add(out, "tokenizer.ggml.add_eos_token",
        (tess_gguf_value){.kind = TESS_GGUF_BOOL, .i64 = t->suffix.numel > 0});
}

static tess_status fill_byte_level(tess_gguf_vocab *out)
{
    tables *v = out->tables;
    const char *pre = pre_of(v->tokenizer);
    if (pre == NULL)
        return refuse(v, "llama.cpp has no pre-tokenizer that splits so");
    TESS_TRY(list_merge_texts(v));
    add_text(out, "tokenizer.ggml.model", "gpt2");
    add_text(out, "tokenizer.ggml.pre", pre);
    add_array(out, "tokenizer.ggml.merges", TESS_GGUF_STRING, v->merge_numel, v->merge_text);
    return TESS_OK;
}

static tess_status fill_sentencepiece(tess_gguf_vocab *out)
{
    tables *v = out->tables;
    const tess_tokenizer *t = v->tokenizer;
    TESS_TRY(check_sentencepiece(v));
    const bool has_prefix = t->split_numel == 0 || t->metaspace.scheme != TESS_PREPEND_NEVER;
    add_text(out, "tokenizer.ggml.model", "llama");
    add_text(out, "tokenizer.ggml.pre", "default");
    add_array(out, "tokenizer.ggml.scores", TESS_GGUF_F32, v->numel, v->score);
    add(out, "tokenizer.ggml.add_space_prefix",
        (tess_gguf_value){.kind = TESS_GGUF_BOOL, .i64 = has_prefix});
    if (t->unk_id >= 0)
        add(out, "tokenizer.ggml.unknown_token_id",
            (tess_gguf_value){.kind = TESS_GGUF_U32, .i64 = t->unk_id});
    return TESS_OK;
}

static tess_status check_there(tess_io *io, const char *folder)
{
    char path[PATH_MAX];
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    TESS_CHECK(snprintf(path, sizeof path, "%s/tokenizer.json", folder) < (int)sizeof path,
               TESS_E_CONFIG, "path of %zu bytes is too long", strlen(folder));
    TESS_TRY(tess_io_stat(io, path, &kind, &nbytes));
    TESS_CHECK(kind == TESS_IO_FILE, TESS_E_CONFIG,
               "'%s' has no tokenizer.json, of which a GGUF file takes its vocabulary; put it "
               "there, or write a directory instead",
               folder);
    return TESS_OK;
}

static tess_status fill(tess_io *io, const char *folder, const tess_llm_config *config,
                        tess_gguf_vocab *out)
{
    tables *v = out->tables;
    v->numel = config->vocab_numel;
    TESS_TRY(check_there(io, folder));
    TESS_TRY(tess_tokenizer_open(io, folder, &v->tokenizer));
    TESS_CHECK(v->tokenizer->vocab_numel <= v->numel, TESS_E_FORMAT,
               "tokenizer '%s' has %" PRId64 " tokens, the model %" PRId64 " rows",
               v->tokenizer->name, v->tokenizer->vocab_numel, v->numel);
    TESS_TRY(list_merges(v));
    TESS_TRY(list_tokens(v));
    TESS_TRY(v->tokenizer->is_byte_level ? fill_byte_level(out) : fill_sentencepiece(out));
    add_array(out, "tokenizer.ggml.tokens", TESS_GGUF_STRING, v->numel, v->text);
    add_array(out, "tokenizer.ggml.token_type", TESS_GGUF_I32, v->numel, v->type);
    add_ids(out, config);
    return TESS_OK;
}

tess_status tess_gguf_vocab_create(tess_io *io, const char *folder, const tess_llm_config *config,
                                   tess_gguf_vocab *out)
{
    void *object = NULL;
    *out = (tess_gguf_vocab){0};
    TESS_TRY(tess_alloc(sizeof(tables), &object));
    out->tables = object;
    const tess_status st = fill(io, folder, config, out);
    if (st != TESS_OK)
        tess_gguf_vocab_fini(out);
    return st;
}

void tess_gguf_vocab_fini(tess_gguf_vocab *vocab)
{
    tables *v = vocab->tables;
    if (v == NULL)
        return;
    for (int64_t i = 0; v->merge_text != NULL && i < v->merge_numel; i++)
        tess_free(v->merge_text[i]);
    tess_free(v->merge_text);
    tess_free(v->merge);
    tess_free(v->pad);
    tess_free(v->score);
    tess_free(v->type);
    tess_free(v->text);
    tess_tokenizer_destroy(&v->tokenizer);
    tess_free(v);
    *vocab = (tess_gguf_vocab){0};
}
