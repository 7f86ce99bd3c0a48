#include <stdio.h>

#include "core/arith.h"
#include "core/memory.h"
#include "format/tokenizer_priv.h"

tess_status tess_tokenizer_put_token(tess_tokenizer *t, const char *byte, size_t nbytes,
                                     tess_token_span *span)
{
    /* One NUL behind each token, so that its text can be handed out as a string. */
    const int64_t needed = t->pool_numel + (int64_t)nbytes + 1;
    if (needed > t->pool_room_numel) {
        void *grown = t->pool;
        TESS_CHECK(needed < UINT32_MAX, TESS_E_RANGE, "tokenizer '%s': tokens of more than 4 GiB",
                   t->name);
        TESS_TRY(tess_realloc_array(t->pool_room_numel, 2 * needed, 1, &grown));
        t->pool = grown;
        t->pool_room_numel = 2 * needed;
    }
    memcpy(t->pool + t->pool_numel, byte, nbytes);
    t->pool[t->pool_numel + (int64_t)nbytes] = '\0';
    *span = (tess_token_span){(uint32_t)t->pool_numel, (uint32_t)nbytes, true};
    t->pool_numel = needed;
    return TESS_OK;
}

static tess_status check_token(const tess_tokenizer *t, const char *text, int64_t id,
                               int64_t id_limit)
{
    const size_t nbytes = strlen(text);
    TESS_CHECK(nbytes <= TESS_TOKENIZER_TOKEN_NBYTES_LIMIT, TESS_E_FORMAT,
               "tokenizer '%s': token %" PRId64 " has %zu bytes, at most %d are accepted", t->name,
               id, nbytes, TESS_TOKENIZER_TOKEN_NBYTES_LIMIT);
    TESS_CHECK(id >= 0 && id < id_limit, TESS_E_FORMAT,
               "tokenizer '%s': token '%.64s' has id %" PRId64 ", expected 0 .. %" PRId64
               " for a file with so many tokens",
               t->name, text, id, id_limit - 1);
    return TESS_OK;
}

tess_status tess_tokenizer_load_added(tess_tokenizer *t, const tess_json *root)
{
    const tess_json *list = NULL;
    void *room = NULL;
    TESS_TRY(tess_json_opt_array(root, "added_tokens", &list));
    const int64_t numel = list != NULL ? tess_json_numel(list) : 0;
    TESS_TRY(tess_alloc_array(numel, sizeof(tess_added_token), &room));
    t->added = room;
    for (int64_t i = 0; i < numel; i++) {
        const tess_json *item = tess_json_at(list, i);
        tess_added_token *a = &t->added[i];
        const char *content = NULL;
        int64_t id = 0;
        TESS_TRY(tess_json_expect(item, TESS_JSON_OBJECT));
        TESS_TRY(tess_json_get_string(item, "content", &content));
        TESS_TRY(tess_json_get_i64(item, "id", &id));
        TESS_CHECK(content[0] != '\0', TESS_E_FORMAT,
                   "tokenizer '%s': added token %" PRId64 " is empty", t->name, id);
        TESS_TRY(check_token(t, content, id, TESS_TOKENIZER_VOCAB_LIMIT));
        TESS_TRY(tess_json_opt_bool(item, "single_word", false, &a->single_word));
        TESS_TRY(tess_json_opt_bool(item, "lstrip", false, &a->lstrip));
        TESS_TRY(tess_json_opt_bool(item, "rstrip", false, &a->rstrip));
        TESS_TRY(tess_json_opt_bool(item, "special", false, &a->special));
        TESS_TRY(tess_json_opt_bool(item, "normalized", !a->special, &a->normalized));
        TESS_TRY(tess_strdup(content, &a->content));
        a->id = (int32_t)id;
        t->added_numel = i + 1;
    }
    return TESS_OK;
}

/* Tables for ids 0 .. greatest; holes are accepted in moderation, so that a small file cannot ask
 * for large tables. */
static tess_status allocate_tables(tess_tokenizer *t, const tess_json *vocab)
{
    void *text = NULL, *raw = NULL, *special = NULL;
    const int64_t entry_numel = tess_json_numel(vocab) + t->added_numel;
    const int64_t id_limit = TESS_MIN(2 * entry_numel + 1024, (int64_t)TESS_TOKENIZER_VOCAB_LIMIT);
    int64_t greatest = -1;
    TESS_CHECK(entry_numel >= 1 && entry_numel <= TESS_TOKENIZER_VOCAB_LIMIT, TESS_E_FORMAT,
               "tokenizer '%s': %" PRId64 " tokens, expected 1 .. %d", t->name, entry_numel,
               TESS_TOKENIZER_VOCAB_LIMIT);
    for (int64_t i = 0; i < tess_json_numel(vocab); i++) {
        int64_t id = 0;
        const tess_json *item = tess_json_at(vocab, i);
        TESS_TRY(tess_json_as_i64(item, &id));
        TESS_TRY(check_token(t, tess_json_key(item), id, id_limit));
        greatest = TESS_MAX(greatest, id);
    }
    for (int64_t i = 0; i < t->added_numel; i++) {
        TESS_TRY(check_token(t, t->added[i].content, t->added[i].id, id_limit));
        greatest = TESS_MAX(greatest, (int64_t)t->added[i].id);
    }
    TESS_TRY(tess_alloc_array(greatest + 1, sizeof(tess_token_span), &text));
    t->text = text;
    TESS_TRY(tess_alloc_array(greatest + 1, sizeof(tess_token_span), &raw));
    t->raw = raw;
    TESS_TRY(tess_alloc_array(greatest + 1, sizeof(bool), &special));
    t->special = special;
    t->vocab_numel = greatest + 1;
    TESS_TRY(tess_token_map_create(tess_json_numel(vocab), &t->by_text));
    return tess_token_map_create(tess_json_numel(vocab), &t->by_raw);
}

/* The bytes that a token of a byte-level model stands for; none when a character is not one of the
 * 256: such a token is never the result of a merge. */
static tess_status put_raw(tess_tokenizer *t, const char *token, int32_t id)
{
    char raw[TESS_TOKENIZER_TOKEN_NBYTES_LIMIT];
    size_t numel = 0, char_nbytes = 0;
    const size_t nbytes = strlen(token);
    for (size_t at = 0; at < nbytes; at += char_nbytes) {
        const int byte = tess_byte_of_char(tess_utf8_next(token, nbytes, at, &char_nbytes));
        if (byte < 0)
            return TESS_OK;
        raw[numel++] = (char)byte;
    }
    return tess_tokenizer_put_token(t, raw, numel, &t->raw[id]);
}

static tess_status load_vocab(tess_tokenizer *t, const tess_json *vocab)
{
    TESS_TRY(allocate_tables(t, vocab));
    for (int64_t i = 0; i < tess_json_numel(vocab); i++) {
        const tess_json *item = tess_json_at(vocab, i);
        int64_t id64 = 0;
        int32_t found = -1;
        TESS_TRY(tess_json_as_i64(item, &id64));
        const int32_t id = (int32_t)id64;
        const char *token = tess_json_key(item);
        TESS_CHECK(!t->text[id].is_present, TESS_E_FORMAT,
                   "tokenizer '%s': id %d belongs to '%.64s' and '%.64s'", t->name, id,
                   t->pool + t->text[id].offset, token);
        TESS_TRY(tess_tokenizer_put_token(t, token, strlen(token), &t->text[id]));
        tess_token_map_add(&t->by_text, t->pool, t->text, id, &found);
        if (!t->is_byte_level)
            continue;
        TESS_TRY(put_raw(t, token, id));
        if (t->raw[id].is_present)
            tess_token_map_add(&t->by_raw, t->pool, t->raw, id, &found);
    }
    return TESS_OK;
}

/* tokenizers leaves the ids that a file states for added tokens unread: those that the vocabulary
 * lacks are numbered behind it in the file's order. Another id would be another token there. */
static tess_status enter_added(tess_tokenizer *t, int64_t vocab_numel)
{
    int64_t next = vocab_numel;
    for (int64_t i = 0; i < t->added_numel; i++) {
        const tess_added_token *a = &t->added[i];
        const size_t nbytes = strlen(a->content);
        const int32_t in_model =
            tess_token_map_find(&t->by_text, t->pool, t->text, a->content, nbytes);
        TESS_CHECK(in_model < 0 || in_model == a->id, TESS_E_FORMAT,
                   "tokenizer '%s': added token '%.64s' has id %d, the vocabulary says %d", t->name,
                   a->content, a->id, in_model);
        TESS_CHECK(in_model == a->id || !t->text[a->id].is_present, TESS_E_FORMAT,
                   "tokenizer '%s': id %d belongs to '%.64s' and to added token '%.64s'", t->name,
                   a->id, t->pool + t->text[a->id].offset, a->content);
        t->special[a->id] = t->special[a->id] || a->special;
        if (in_model >= 0)
            continue;
        TESS_CHECK(a->id == next, TESS_E_FORMAT,
                   "tokenizer '%s': added token '%.64s' has id %d, but tokenizers numbers it "
                   "%" PRId64
                   ", behind the vocabulary and those before it; save the file anew there",
                   t->name, a->content, a->id, next);
        next++;
        TESS_TRY(tess_tokenizer_put_token(t, a->content, nbytes, &t->text[a->id]));
        if (t->is_byte_level)
            TESS_TRY(put_raw(t, a->content, a->id));
    }
    return TESS_OK;
}

/* The halves of a merge: "a b" or ["a", "b"]. */
static tess_status merge_halves(const tess_tokenizer *t, const tess_json *item, int64_t rank,
                                int32_t id[2])
{
    const char *half[2] = {NULL, NULL};
    size_t nbytes[2] = {0, 0};
    if (tess_json_type_of(item) == TESS_JSON_ARRAY) {
        TESS_CHECK(tess_json_numel(item) == 2, TESS_E_FORMAT,
                   "tokenizer '%s': merge %" PRId64 " has %" PRId64 " parts, expected 2", t->name,
                   rank, tess_json_numel(item));
        for (int i = 0; i < 2; i++) {
            TESS_TRY(tess_json_as_string(tess_json_at(item, i), &half[i]));
            nbytes[i] = strlen(half[i]);
        }
    } else {
        TESS_TRY(tess_json_as_string(item, &half[0]));
        const char *space = strchr(half[0], ' ');
        TESS_CHECK(space != NULL && strchr(space + 1, ' ') == NULL, TESS_E_FORMAT,
                   "tokenizer '%s': merge %" PRId64
                   " is '%.64s', expected two tokens and one space",
                   t->name, rank, half[0]);
        nbytes[0] = (size_t)(space - half[0]);
        half[1] = space + 1;
        nbytes[1] = strlen(half[1]);
    }
    for (int i = 0; i < 2; i++) {
        id[i] = tess_token_map_find(&t->by_text, t->pool, t->text, half[i], nbytes[i]);
        TESS_CHECK(id[i] >= 0 && nbytes[i] > 0, TESS_E_FORMAT,
                   "tokenizer '%s': merge %" PRId64 " uses '%.*s', which is not in the vocabulary",
                   t->name, rank, (int)TESS_MIN(nbytes[i], (size_t)64), half[i]);
    }
    return TESS_OK;
}

static tess_status load_merge(tess_tokenizer *t, const tess_json *item, int64_t rank)
{
    char joined[2 * TESS_TOKENIZER_TOKEN_NBYTES_LIMIT];
    int32_t id[2];
    TESS_TRY(merge_halves(t, item, rank, id));
    const tess_token_span *left = &t->text[id[0]], *right = &t->text[id[1]];
    memcpy(joined, t->pool + left->offset, left->nbytes);
    memcpy(joined + left->nbytes, t->pool + right->offset, right->nbytes);
    const size_t nbytes = (size_t)left->nbytes + right->nbytes;
    const int32_t merged = tess_token_map_find(&t->by_text, t->pool, t->text, joined, nbytes);
    TESS_CHECK(merged >= 0, TESS_E_FORMAT,
               "tokenizer '%s': merge %" PRId64 " makes '%.*s', which is not in the vocabulary",
               t->name, rank, (int)TESS_MIN(nbytes, (size_t)64), joined);
    tess_merge_map_set(&t->merges, id[0], id[1], (uint32_t)rank, merged);
    return TESS_OK;
}

static tess_status load_merges(tess_tokenizer *t, const tess_json *model)
{
    const tess_json *merges = NULL;
    TESS_TRY(tess_json_get_array(model, "merges", &merges));
    const int64_t numel = tess_json_numel(merges);
    TESS_CHECK(numel <= TESS_TOKENIZER_MERGE_LIMIT, TESS_E_FORMAT,
               "tokenizer '%s': %" PRId64 " merges, at most %d are accepted", t->name, numel,
               TESS_TOKENIZER_MERGE_LIMIT);
    TESS_TRY(tess_merge_map_create(numel, &t->merges));
    for (int64_t rank = 0; rank < numel; rank++)
        TESS_TRY(load_merge(t, tess_json_at(merges, rank), rank));
    return TESS_OK;
}

static void find_bytes(tess_tokenizer *t)
{
    for (int b = 0; b < 256; b++) {
        char text[8];
        const char byte = (char)b;
        const int nbytes = snprintf(text, sizeof text, "<0x%02X>", (unsigned)b);
        t->byte_id[b] =
            t->is_byte_level
                ? tess_token_map_find(&t->by_raw, t->pool, t->raw, &byte, 1)
                : tess_token_map_find(&t->by_text, t->pool, t->text, text, (size_t)nbytes);
    }
}

static tess_status refuse_affix(const tess_tokenizer *t, const tess_json *model, const char *key)
{
    const char *value = NULL;
    TESS_TRY(tess_json_opt_string(model, key, "", &value));
    TESS_CHECK(value[0] == '\0', TESS_E_UNSUPPORTED,
               "tokenizer '%s': model.%s is '%.32s', only an empty one is supported", t->name, key,
               value);
    return TESS_OK;
}

tess_status tess_tokenizer_load_model(tess_tokenizer *t, const tess_json *root)
{
    const tess_json *model = NULL, *vocab = NULL;
    const char *type = NULL, *unknown = NULL;
    double dropout = 0.0;
    TESS_TRY(tess_json_get_object(root, "model", &model));
    TESS_TRY(tess_json_opt_string(model, "type", "BPE", &type));
    TESS_CHECK(strcmp(type, "BPE") == 0, TESS_E_UNSUPPORTED,
               "tokenizer '%s': model type '%.32s' is not supported, only BPE is", t->name, type);
    TESS_TRY(refuse_affix(t, model, "continuing_subword_prefix"));
    TESS_TRY(refuse_affix(t, model, "end_of_word_suffix"));
    TESS_TRY(tess_json_opt_f64(model, "dropout", 0.0, &dropout));
    TESS_CHECK(!(dropout > 0.0), TESS_E_UNSUPPORTED,
               "tokenizer '%s': model.dropout is %g, only null or 0 is supported", t->name,
               dropout);
    TESS_TRY(tess_json_opt_bool(model, "byte_fallback", false, &t->byte_fallback));
    TESS_TRY(tess_json_opt_bool(model, "fuse_unk", false, &t->fuse_unk));
    TESS_TRY(tess_json_opt_bool(model, "ignore_merges", false, &t->ignore_merges));
    TESS_TRY(tess_json_opt_string(model, "unk_token", NULL, &unknown));
    TESS_TRY(tess_json_get_object(model, "vocab", &vocab));
    TESS_TRY(load_vocab(t, vocab));
    TESS_TRY(enter_added(t, tess_json_numel(vocab)));
    TESS_TRY(load_merges(t, model));
    find_bytes(t);
    if (unknown == NULL)
        return TESS_OK;
    t->unk_id = tess_token_map_find(&t->by_text, t->pool, t->text, unknown, strlen(unknown));
    TESS_CHECK(t->unk_id >= 0, TESS_E_FORMAT,
               "tokenizer '%s': unknown token '%.64s' is not in the vocabulary", t->name, unknown);
    return TESS_OK;
}
