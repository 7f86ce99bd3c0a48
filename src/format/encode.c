#include "core/memory.h"
#include "format/tokenizer_priv.h"

struct tess_encoder {
    const tess_tokenizer *tokenizer;
    tess_bpe bpe;
    tess_text normalized, work; /* one piece between added tokens */
    tess_text changed;          /* with a prefix or replaced spaces */
    tess_text joined;           /* header and content */
    tess_ids header;
};

/* A piece on its way through the pre-tokenizers. */
typedef struct run {
    tess_encoder *encoder;
    bool is_first; /* opens the text */
    tess_ids *ids;
} run;

tess_status tess_encoder_create(const tess_tokenizer *tokenizer, tess_encoder **out)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(tess_encoder), &object));
    tess_encoder *e = object;
    e->tokenizer = tokenizer;
    *out = e;
    return TESS_OK;
}

void tess_encoder_destroy(tess_encoder **encoder)
{
    tess_encoder *e = *encoder;
    if (e == NULL)
        return;
    tess_bpe_fini(&e->bpe);
    tess_text_fini(&e->normalized);
    tess_text_fini(&e->work);
    tess_text_fini(&e->changed);
    tess_text_fini(&e->joined);
    tess_ids_fini(&e->header);
    tess_free(e);
    *encoder = NULL;
}

static tess_status add_prefix_space(tess_encoder *e, const char **text, size_t *nbytes)
{
    if ((*text)[0] == ' ')
        return TESS_OK;
    e->changed.numel = 0;
    TESS_TRY(tess_text_append(&e->changed, " ", 1));
    TESS_TRY(tess_text_append(&e->changed, *text, *nbytes));
    *text = e->changed.byte;
    *nbytes = (size_t)e->changed.numel;
    return TESS_OK;
}

static tess_status replace_spaces(const run *r, const char **text, size_t *nbytes)
{
    tess_encoder *e = r->encoder;
    const tess_metaspace *m = &e->tokenizer->metaspace;
    const bool has_prefix =
        (*text)[0] == ' ' || (*nbytes >= m->replacement_nbytes &&
                              memcmp(*text, m->replacement, m->replacement_nbytes) == 0);
    e->changed.numel = 0;
    if (!has_prefix &&
        (m->scheme == TESS_PREPEND_ALWAYS || (m->scheme == TESS_PREPEND_FIRST && r->is_first)))
        TESS_TRY(tess_text_append(&e->changed, m->replacement, m->replacement_nbytes));
    for (size_t i = 0; i < *nbytes; i++) {
        const bool is_space = (*text)[i] == ' ';
        TESS_TRY(tess_text_append(&e->changed, is_space ? m->replacement : *text + i,
                                  is_space ? m->replacement_nbytes : 1));
    }
    *text = e->changed.byte;
    *nbytes = (size_t)e->changed.numel;
    return TESS_OK;
}

/* Each replacement character opens a piece. */
static size_t metaspace_next(const tess_metaspace *m, const char *text, size_t nbytes)
{
    if (!m->split || nbytes <= 1)
        return nbytes;
    const char *hit = memmem(text + 1, nbytes - 1, m->replacement, m->replacement_nbytes);
    return hit != NULL ? (size_t)(hit - text) : nbytes;
}

static tess_status split_from(const run *r, int step, const char *text, size_t nbytes)
{
    tess_encoder *e = r->encoder;
    const tess_tokenizer *t = e->tokenizer;
    if (step == t->split_numel)
        return tess_bpe_encode(t, &e->bpe, text, nbytes, r->ids);
    const tess_split_kind kind = t->split[step];
    if (kind == TESS_SPLIT_PREFIX_SPACE) {
        TESS_TRY(add_prefix_space(e, &text, &nbytes));
        return split_from(r, step + 1, text, nbytes);
    }
    if (kind == TESS_SPLIT_METASPACE)
        TESS_TRY(replace_spaces(r, &text, &nbytes));
    while (nbytes > 0) {
        const size_t n = kind == TESS_SPLIT_METASPACE ? metaspace_next(&t->metaspace, text, nbytes)
                                                      : tess_split_next(kind, text, nbytes);
        TESS_TRY(split_from(r, step + 1, text, n));
        text += n;
        nbytes -= n;
    }
    return TESS_OK;
}

/* Text between two added tokens that match before normalization. */
static tess_status encode_piece(tess_encoder *e, const char *text, size_t nbytes, bool opens_text,
                                unsigned flags, tess_ids *ids)
{
    const tess_tokenizer *t = e->tokenizer;
    TESS_TRY(tess_normalize(t, text, nbytes, &e->work, &e->normalized));
    const tess_match_request request = {&t->normalized_patterns, e->normalized.byte,
                                        (size_t)e->normalized.numel,
                                        (flags & TESS_ENCODE_NO_SPECIAL_TEXT) != 0};
    size_t done = 0, from = 0;
    tess_added_match match;
    while (tess_added_next(t, &request, from, done, &match)) {
        const run r = {e, opens_text && done == 0, ids};
        if (done < match.start)
            TESS_TRY(split_from(&r, 0, request.text + done, match.start - done));
        TESS_TRY(tess_ids_append(ids, &t->added[match.added_idx].id, 1));
        done = match.end;
        from = match.resume;
    }
    const run r = {e, opens_text && done == 0, ids};
    return done < request.nbytes ? split_from(&r, 0, request.text + done, request.nbytes - done)
                                 : TESS_OK;
}

static tess_status encode_text(tess_encoder *e, const char *text, size_t nbytes, unsigned flags,
                               tess_ids *ids)
{
    const tess_tokenizer *t = e->tokenizer;
    const tess_match_request request = {&t->raw_patterns, text, nbytes,
                                        (flags & TESS_ENCODE_NO_SPECIAL_TEXT) != 0};
    size_t done = 0, from = 0;
    tess_added_match match;
    while (tess_added_next(t, &request, from, done, &match)) {
        if (done < match.start)
            TESS_TRY(encode_piece(e, text + done, match.start - done, done == 0, flags, ids));
        TESS_TRY(tess_ids_append(ids, &t->added[match.added_idx].id, 1));
        done = match.end;
        from = match.resume;
    }
    return done < nbytes ? encode_piece(e, text + done, nbytes - done, done == 0, flags, ids)
                         : TESS_OK;
}

tess_status tess_encode(tess_encoder *encoder, const char *text, size_t nbytes, unsigned flags,
                        tess_ids *ids)
{
    const tess_tokenizer *t = encoder->tokenizer;
    const int64_t before = ids->numel;
    const size_t valid = tess_utf8_check(text, nbytes);
    TESS_CHECK(valid == nbytes, TESS_E_FORMAT,
               "text is not UTF-8 at byte %zu (0x%02x); convert the input first", valid,
               (unsigned)(uint8_t)text[valid]);
    tess_status st = TESS_OK;
    if ((flags & TESS_ENCODE_ADD_SPECIAL) != 0)
        st = tess_ids_append(ids, t->prefix.id, t->prefix.numel);
    if (st == TESS_OK)
        st = encode_text(encoder, text, nbytes, flags, ids);
    if (st == TESS_OK && (flags & TESS_ENCODE_ADD_SPECIAL) != 0)
        st = tess_ids_append(ids, t->suffix.id, t->suffix.numel);
    if (st != TESS_OK)
        ids->numel = before;
    return st;
}

tess_status tess_encode_joined(tess_encoder *e, const tess_encode_parts *parts, tess_ids *ids,
                               int64_t *content_idx)
{
    const int64_t before = ids->numel;
    e->header.numel = 0;
    e->joined.numel = 0;
    TESS_TRY(tess_encode(e, parts->header, parts->header_nbytes, parts->flags, &e->header));
    TESS_TRY(tess_text_append(&e->joined, parts->header, parts->header_nbytes));
    TESS_TRY(tess_text_append(&e->joined, parts->content, parts->content_nbytes));
    TESS_TRY(tess_encode(e, e->joined.byte, (size_t)e->joined.numel, parts->flags, ids));
    int64_t same = 0;
    while (same < e->header.numel && before + same < ids->numel &&
           ids->id[before + same] == e->header.id[same])
        same++;
    /* Where the header alone ends in other tokens, the first that differs crosses its end. */
    const int64_t first = before + same + (same < e->header.numel ? 1 : 0);
    *content_idx = TESS_MIN(first, ids->numel);
    return TESS_OK;
}
