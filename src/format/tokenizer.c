#include "format/tokenizer.h"

#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "format/tokenizer_priv.h"

tess_status tess_ids_append(tess_ids *ids, const int32_t *id, int64_t numel)
{
    if (ids->numel > ids->room_numel - numel) {
        void *grown = ids->id;
        const int64_t room = 2 * (ids->numel + numel) + 64;
        TESS_TRY(tess_realloc_array(ids->room_numel, room, sizeof(int32_t), &grown));
        ids->id = grown;
        ids->room_numel = room;
    }
    for (int64_t i = 0; i < numel; i++)
        ids->id[ids->numel + i] = id[i];
    ids->numel += numel;
    return TESS_OK;
}

void tess_ids_fini(tess_ids *ids)
{
    tess_free(ids->id);
    *ids = (tess_ids){0};
}

tess_status tess_text_append(tess_text *text, const char *byte, size_t nbytes)
{
    if ((int64_t)nbytes > text->room_numel - text->numel) {
        void *grown = text->byte;
        const int64_t room = 2 * (text->numel + (int64_t)nbytes) + 64;
        TESS_TRY(tess_realloc_array(text->room_numel, room, 1, &grown));
        text->byte = grown;
        text->room_numel = room;
    }
    if (nbytes > 0)
        memcpy(text->byte + text->numel, byte, nbytes);
    text->numel += (int64_t)nbytes;
    return TESS_OK;
}

void tess_text_fini(tess_text *text)
{
    tess_free(text->byte);
    *text = (tess_text){0};
}

static void describe_kind(tess_tokenizer *t)
{
    const char *pattern = "no split";
    for (int i = 0; i < t->split_numel; i++) {
        if (t->split[i] <= TESS_SPLIT_TEKKEN)
            pattern = tess_split_name(t->split[i]);
    }
    bool has_nfc = false;
    for (int i = 0; i < t->normalizer_numel; i++)
        has_nfc = has_nfc || t->normalizer[i].kind == TESS_NORMALIZE_NFC;
    if (t->is_byte_level)
        snprintf(t->kind, sizeof t->kind, "byte-level BPE, %s pattern%s", pattern,
                 has_nfc ? ", NFC" : "");
    else
        snprintf(t->kind, sizeof t->kind, "SentencePiece-style BPE%s%s",
                 t->byte_fallback ? ", byte fallback" : "", has_nfc ? ", NFC" : "");
}

static tess_status load(tess_tokenizer *t, const char *name, const char *text, size_t nbytes)
{
    tess_json *root = NULL;
    TESS_TRY(tess_strdup(name, &t->name));
    TESS_TRY(tess_sha256_of(text, nbytes, &t->digest));
    TESS_TRY(tess_json_parse(name, text, nbytes, &root));
    tess_status st = tess_json_expect(root, TESS_JSON_OBJECT);
    if (st == TESS_OK)
        st = tess_tokenizer_load_pipeline(t, root);
    if (st == TESS_OK)
        st = tess_tokenizer_load_added(t, root);
    if (st == TESS_OK)
        st = tess_tokenizer_load_model(t, root);
    if (st == TESS_OK)
        st = tess_tokenizer_load_template(t, root);
    if (st == TESS_OK)
        st = tess_tokenizer_load_decoder(t, root);
    if (st == TESS_OK)
        st = tess_patterns_build(t);
    tess_json_destroy(&root);
    describe_kind(t);
    return st;
}

tess_status tess_tokenizer_parse(const char *name, const char *text, size_t nbytes,
                                 tess_tokenizer **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_tokenizer), &object));
    tess_tokenizer *t = object;
    t->unk_id = -1;
    const tess_status st = load(t, name, text, nbytes);
    if (st != TESS_OK) {
        tess_tokenizer_destroy(&t);
        return st;
    }
    *out = t;
    return TESS_OK;
}

tess_status tess_tokenizer_open(tess_io *io, const char *path, tess_tokenizer **out)
{
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t file_nbytes = 0;
    char *file = NULL, *text = NULL;
    size_t nbytes = 0;
    TESS_TRY(tess_io_stat(io, path, &kind, &file_nbytes));
    TESS_CHECK(kind != TESS_IO_MISSING, TESS_E_IO,
               "tokenizer '%s' does not exist; give a tokenizer.json or the directory that "
               "holds it",
               path);
    TESS_TRY(kind == TESS_IO_DIR ? tess_asprintf(&file, "%s/tokenizer.json", path)
                                 : tess_strdup(path, &file));
    tess_status st = tess_io_read_all(io, file, TESS_TOKENIZER_FILE_NBYTES_LIMIT, &text, &nbytes);
    if (st == TESS_OK)
        st = tess_tokenizer_parse(file, text, nbytes, out);
    tess_free(text);
    tess_free(file);
    return st;
}

static void free_pipeline(tess_tokenizer *t)
{
    for (int i = 0; i < t->normalizer_numel; i++) {
        tess_free(t->normalizer[i].from);
        tess_free(t->normalizer[i].to);
    }
    for (int i = 0; i < t->decoder_numel; i++) {
        tess_free(t->decoder[i].from);
        tess_free(t->decoder[i].to);
    }
    for (int64_t i = 0; i < t->added_numel; i++)
        tess_free(t->added[i].content);
    tess_patterns_fini(&t->raw_patterns);
    tess_patterns_fini(&t->normalized_patterns);
    tess_ids_fini(&t->prefix);
    tess_ids_fini(&t->suffix);
}

void tess_tokenizer_destroy(tess_tokenizer **tokenizer)
{
    tess_tokenizer *t = *tokenizer;
    if (t == NULL)
        return;
    free_pipeline(t);
    tess_free(t->name);
    tess_free(t->pool);
    tess_free(t->text);
    tess_free(t->raw);
    tess_free(t->special);
    tess_free(t->by_text.slot);
    tess_free(t->by_raw.slot);
    tess_free(t->merges.slot);
    tess_free(t->added);
    tess_free(t);
    *tokenizer = NULL;
}

int64_t tess_tokenizer_vocab_numel(const tess_tokenizer *t) { return t->vocab_numel; }

const tess_sha256 *tess_tokenizer_digest(const tess_tokenizer *t) { return &t->digest; }

const char *tess_tokenizer_kind(const tess_tokenizer *t) { return t->kind; }

int32_t tess_tokenizer_find(const tess_tokenizer *t, const char *text)
{
    for (int64_t i = 0; i < t->added_numel; i++) {
        if (strcmp(t->added[i].content, text) == 0)
            return t->added[i].id;
    }
    return tess_token_map_find(&t->by_text, t->pool, t->text, text, strlen(text));
}

bool tess_tokenizer_is_special(const tess_tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->vocab_numel && t->special[id];
}

const tess_ids *tess_tokenizer_prefix(const tess_tokenizer *t) { return &t->prefix; }

const tess_ids *tess_tokenizer_suffix(const tess_tokenizer *t) { return &t->suffix; }
