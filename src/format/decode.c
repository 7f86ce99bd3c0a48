#include "core/memory.h"
#include "format/tokenizer_priv.h"

/* The byte of a `<0xNN>` token, -1 for any other text. */
static int fallback_byte(const char *text, size_t nbytes)
{
    int value = 0;
    if (nbytes != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>')
        return -1;
    for (int i = 3; i < 5; i++) {
        const char c = text[i];
        const int digit = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                                 : -1;
        if (digit < 0)
            return -1;
        value = value * 16 + digit;
    }
    return value;
}

static tess_status replace_all(tess_text *token, const char *from, const char *to, tess_text *work)
{
    const size_t from_nbytes = strlen(from), nbytes = (size_t)token->numel;
    size_t at = 0;
    work->numel = 0;
    while (at < nbytes) {
        const char *hit = memmem(token->byte + at, nbytes - at, from, from_nbytes);
        const size_t end = hit != NULL ? (size_t)(hit - token->byte) : nbytes;
        TESS_TRY(tess_text_append(work, token->byte + at, end - at));
        if (hit != NULL)
            TESS_TRY(tess_text_append(work, to, strlen(to)));
        at = end + (hit != NULL ? from_nbytes : 0);
    }
    const tess_text swapped = *token;
    *token = *work;
    *work = swapped;
    return TESS_OK;
}

/* What one token contributes; `is_first`: nothing came before it. */
static tess_status decode_token(const tess_tokenizer *t, bool is_first, tess_text *token,
                                tess_text *work)
{
    for (int i = 0; i < t->decoder_numel; i++) {
        const tess_decoder_step *step = &t->decoder[i];
        if (step->kind == TESS_DECODE_REPLACE) {
            TESS_TRY(replace_all(token, step->from, step->to, work));
        } else if (step->kind == TESS_DECODE_METASPACE) {
            const bool drops = is_first && step->metaspace.scheme != TESS_PREPEND_NEVER;
            TESS_TRY(replace_all(token, step->metaspace.replacement, drops ? "" : " ", work));
        } else if (step->kind == TESS_DECODE_BYTE_FALLBACK) {
            const int byte = fallback_byte(token->byte, (size_t)token->numel);
            const char as_char = (char)byte;
            token->numel = byte >= 0 ? 0 : token->numel;
            TESS_TRY(tess_text_append(token, &as_char, byte >= 0 ? 1 : 0));
        }
    }
    return TESS_OK;
}

static tess_status append_token(const tess_tokenizer *t, int32_t id, bool is_first,
                                tess_text work[2], tess_text *out)
{
    const tess_token_span *span = t->raw[id].is_present ? &t->raw[id] : &t->text[id];
    if (t->is_byte_level)
        return tess_text_append(out, t->pool + span->offset, span->nbytes);
    work[0].numel = 0;
    TESS_TRY(tess_text_append(&work[0], t->pool + span->offset, span->nbytes));
    TESS_TRY(decode_token(t, is_first, &work[0], &work[1]));
    return tess_text_append(out, work[0].byte, (size_t)work[0].numel);
}

/* Strip runs over the whole text. */
static void strip_front(const tess_tokenizer *t, tess_text *out)
{
    for (int i = 0; i < t->decoder_numel; i++) {
        const tess_decoder_step *step = &t->decoder[i];
        const int64_t nbytes = (int64_t)strlen(step->strip);
        if (step->kind != TESS_DECODE_STRIP)
            continue;
        int64_t cut = 0;
        for (int64_t n = 0; n < step->strip_numel && out->numel - cut >= nbytes &&
                            memcmp(out->byte + cut, step->strip, (size_t)nbytes) == 0;
             n++)
            cut += nbytes;
        if (cut > 0)
            memmove(out->byte, out->byte + cut, (size_t)(out->numel - cut));
        out->numel -= cut;
    }
}

static tess_status decode_all(const tess_tokenizer *t, const int32_t *id, int64_t numel,
                              bool skip_special, tess_text *out)
{
    tess_text work[2] = {{0}, {0}};
    bool is_first = true;
    tess_status st = TESS_OK;
    for (int64_t i = 0; i < numel && st == TESS_OK; i++) {
        if (id[i] < 0 || id[i] >= t->vocab_numel || !t->text[id[i]].is_present)
            st = TESS_FAIL(TESS_E_RANGE, "tokenizer '%s': id %d has no token", t->name, id[i]);
        if (st != TESS_OK || (skip_special && t->special[id[i]]))
            continue;
        st = append_token(t, id[i], is_first, work, out);
        is_first = false;
    }
    tess_text_fini(&work[0]);
    tess_text_fini(&work[1]);
    if (st == TESS_OK)
        strip_front(t, out);
    return st;
}

tess_status tess_decode(const tess_tokenizer *tokenizer, const int32_t *id, int64_t numel,
                        bool skip_special, char **text, size_t *nbytes)
{
    tess_text joined = {0}, out = {0};
    tess_status st = decode_all(tokenizer, id, numel, skip_special, &joined);
    if (st == TESS_OK)
        st = tess_utf8_mend(joined.byte, (size_t)joined.numel, &out);
    tess_text_fini(&joined);
    const int64_t used = out.numel;
    if (st == TESS_OK)
        st = tess_text_append(&out, "", 1);
    if (st != TESS_OK) {
        tess_text_fini(&out);
        return st;
    }
    *text = out.byte;
    *nbytes = (size_t)used;
    return TESS_OK;
}
