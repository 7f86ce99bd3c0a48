/* Strings of the run file: UTF-8, excerpts for messages, and how YAML writes them. */
#include <stdio.h>
#include <string.h>

#include "train/run_file/run_priv.h"

/* Length of the UTF-8 sequence that a first byte announces, 0 for a byte that starts none. */
static int sequence_nbytes(unsigned char first)
{
    if (first < 0x80)
        return 1;
    if (first >= 0xc2 && first < 0xe0)
        return 2;
    if (first >= 0xe0 && first < 0xf0)
        return 3;
    return first >= 0xf0 && first < 0xf5 ? 4 : 0;
}

int tess_run_utf8_next(const char *text, uint32_t *code)
{
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    static const unsigned char first_mask[5] = {0, 0x7f, 0x1f, 0x0f, 0x07};
    const int nbytes = sequence_nbytes((unsigned char)text[0]);
    uint32_t value = (unsigned char)text[0] & first_mask[nbytes];
    for (int i = 1; i < nbytes; i++) {
        if (((unsigned char)text[i] & 0xc0) != 0x80)
            return 0;
        value = value << 6 | ((unsigned char)text[i] & 0x3f);
    }
    const bool is_surrogate = value >= 0xd800 && value < 0xe000;
    if (nbytes == 0 || value < least[nbytes] || value > 0x10ffff || is_surrogate)
        return 0;
    *code = value;
    return nbytes;
}

bool tess_run_utf8_is_valid(const char *text)
{
    uint32_t code = 0;
    while (*text != '\0') {
        const int nbytes = tess_run_utf8_next(text, &code);
        if (nbytes == 0)
            return false;
        text += nbytes;
    }
    return true;
}

/* Code points that a reader refuses, folds or drops where they stand bare in quotes. */
static bool needs_escape(uint32_t code)
{
    return code < 0x20 || (code >= 0x7f && code < 0xa0) || code == 0x2028 || code == 0x2029 ||
           code == 0xfeff || code == 0xfffe || code == 0xffff;
}

void tess_run_excerpt(const char *value, char text[RUN_EXCERPT_NBYTES])
{
    size_t used = 0;
    while (*value != '\0') {
        uint32_t code = 0;
        const int nbytes = tess_run_utf8_next(value, &code);
        const bool is_shown = nbytes > 0 && !needs_escape(code);
        const size_t copied = is_shown ? (size_t)nbytes : 1;
        if (used + copied > RUN_EXCERPT_NBYTES - 4) {
            memcpy(text + used, "...", 3);
            used += 3;
            break;
        }
        memcpy(text + used, is_shown ? value : "?", copied);
        used += copied;
        value += nbytes > 0 ? nbytes : 1;
    }
    text[used] = '\0';
}

/* Words that YAML readers would take for something else than a string. */
static bool reads_as_other(const char *text)
{
    static const char *const words[] = {"null", "true", "false", "on", "off",
                                        "yes",  "no",   "y",     "n"};
    for (int i = 0; i < TESS_NELEM(words); i++)
        if (strcasecmp(words[i], text) == 0)
            return true;
    return false;
}

static bool is_plain(const char *text)
{
    static const char safe[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                               "0123456789_./-";
    const bool starts_well =
        (text[0] >= 'a' && text[0] <= 'z') || (text[0] >= 'A' && text[0] <= 'Z') || text[0] == '/';
    return starts_well && strspn(text, safe) == strlen(text) && !reads_as_other(text);
}

tess_status tess_run_string_write(const char *text, tess_strbuf *out)
{
    if (is_plain(text))
        return tess_strbuf_add(out, "%s", text);
    TESS_TRY(tess_strbuf_add(out, "\""));
    while (*text != '\0') {
        uint32_t code = 0;
        const int nbytes = tess_run_utf8_next(text, &code);
        TESS_CHECK(nbytes > 0, TESS_E_CONFIG, "a string of the run is not UTF-8");
        if (code == '"' || code == '\\')
            TESS_TRY(tess_strbuf_add(out, "\\%c", *text));
        else if (needs_escape(code))
            TESS_TRY(tess_strbuf_add(out, "\\u%04x", code));
        else
            TESS_TRY(tess_strbuf_add_bytes(out, text, (size_t)nbytes));
        text += nbytes;
    }
    return tess_strbuf_add(out, "\"");
}
