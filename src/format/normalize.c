#include <utf8proc.h>

#include "core/memory.h"
#include "format/tokenizer_priv.h"

/* Below U+0300 every character is its own NFC and no pair composes. */
static bool is_nfc_at_sight(const char *text, size_t nbytes)
{
    for (size_t i = 0; i < nbytes; i++) {
        if ((unsigned char)text[i] >= 0xcc)
            return false;
    }
    return true;
}

static tess_status compose(const tess_tokenizer *t, const char *text, size_t nbytes, tess_text *out)
{
    const utf8proc_option_t options = UTF8PROC_STABLE | UTF8PROC_COMPOSE;
    void *room = NULL;
    const utf8proc_ssize_t numel = utf8proc_decompose((const utf8proc_uint8_t *)text,
                                                      (utf8proc_ssize_t)nbytes, NULL, 0, options);
    TESS_CHECK(numel >= 0, TESS_E_FORMAT, "tokenizer '%s': NFC: %s", t->name,
               utf8proc_errmsg(numel));
    /* One place more: the text is encoded in the same memory, with a NUL. */
    TESS_TRY(tess_alloc_array((int64_t)numel + 1, sizeof(utf8proc_int32_t), &room));
    utf8proc_ssize_t done = utf8proc_decompose((const utf8proc_uint8_t *)text,
                                               (utf8proc_ssize_t)nbytes, room, numel, options);
    if (done >= 0)
        done = utf8proc_reencode(room, done, options);
    tess_status st = TESS_OK;
    if (done < 0)
        st = TESS_FAIL(TESS_E_FORMAT, "tokenizer '%s': NFC: %s", t->name, utf8proc_errmsg(done));
    else
        st = tess_text_append(out, room, (size_t)done);
    tess_free(room);
    return st;
}

static tess_status replace_all(const char *text, size_t nbytes, const tess_normalizer *n,
                               tess_text *out)
{
    const size_t from_nbytes = strlen(n->from), to_nbytes = strlen(n->to);
    size_t at = 0;
    while (at < nbytes) {
        const char *hit = memmem(text + at, nbytes - at, n->from, from_nbytes);
        const size_t end = hit != NULL ? (size_t)(hit - text) : nbytes;
        TESS_TRY(tess_text_append(out, text + at, end - at));
        if (hit != NULL)
            TESS_TRY(tess_text_append(out, n->to, to_nbytes));
        at = end + (hit != NULL ? from_nbytes : 0);
    }
    return TESS_OK;
}

static tess_status run_step(const tess_tokenizer *t, const tess_normalizer *n, const tess_text *in,
                            tess_text *out)
{
    const size_t nbytes = (size_t)in->numel;
    out->numel = 0;
    switch (n->kind) {
    case TESS_NORMALIZE_NFC:
        return is_nfc_at_sight(in->byte, nbytes) ? tess_text_append(out, in->byte, nbytes)
                                                 : compose(t, in->byte, nbytes, out);
    case TESS_NORMALIZE_PREPEND:
        if (nbytes > 0)
            TESS_TRY(tess_text_append(out, n->to, strlen(n->to)));
        return tess_text_append(out, in->byte, nbytes);
    case TESS_NORMALIZE_REPLACE:
        return replace_all(in->byte, nbytes, n, out);
    }
    return TESS_FAIL(TESS_E_STATE, "normalizer %d", (int)n->kind);
}

tess_status tess_normalize(const tess_tokenizer *t, const char *text, size_t nbytes,
                           tess_text *work, tess_text *out)
{
    out->numel = 0;
    TESS_TRY(tess_text_append(out, text, nbytes));
    for (int i = 0; i < t->normalizer_numel; i++) {
        TESS_TRY(run_step(t, &t->normalizer[i], out, work));
        const tess_text swapped = *out;
        *out = *work;
        *work = swapped;
    }
    return TESS_OK;
}
