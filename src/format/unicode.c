#include <utf8proc.h>

#include "format/tokenizer_priv.h"

uint32_t tess_utf8_next(const char *text, size_t nbytes, size_t at, size_t *char_nbytes)
{
    const unsigned char *p = (const unsigned char *)text + at;
    (void)nbytes;
    if (p[0] < 0x80) {
        *char_nbytes = 1;
        return p[0];
    }
    if (p[0] < 0xe0) {
        *char_nbytes = 2;
        return (uint32_t)(p[0] & 0x1f) << 6 | (p[1] & 0x3fu);
    }
    if (p[0] < 0xf0) {
        *char_nbytes = 3;
        return (uint32_t)(p[0] & 0x0f) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
    }
    *char_nbytes = 4;
    return (uint32_t)(p[0] & 0x07) << 18 | (p[1] & 0x3fu) << 12 | (p[2] & 0x3fu) << 6 |
           (p[3] & 0x3fu);
}

static bool is_tail(unsigned char c) { return (c & 0xc0) == 0x80; }

/* Bytes at p that are a character, or as much of one as is there (*is_whole false, 1 where none
 * begins), by Unicode table 3-7. */
static size_t span_nbytes(const unsigned char *p, size_t nbytes, bool *is_whole)
{
    const size_t whole = p[0] < 0x80   ? 1
                         : p[0] < 0xc2 ? 0
                         : p[0] < 0xe0 ? 2
                         : p[0] < 0xf0 ? 3
                         : p[0] < 0xf5 ? 4
                                       : 0;
    const unsigned char low = p[0] == 0xe0 ? 0xa0 : p[0] == 0xf0 ? 0x90 : 0x80;
    const unsigned char high = p[0] == 0xed ? 0x9f : p[0] == 0xf4 ? 0x8f : 0xbf;
    size_t n = 1;
    if (n < whole && n < nbytes && p[1] >= low && p[1] <= high)
        for (n = 2; n < whole && n < nbytes && is_tail(p[n]);)
            n++;
    *is_whole = n == whole;
    return n;
}

size_t tess_utf8_check(const char *text, size_t nbytes)
{
    size_t at = 0;
    bool is_whole = true;
    while (at < nbytes) {
        const size_t n = span_nbytes((const unsigned char *)text + at, nbytes - at, &is_whole);
        if (!is_whole)
            return at;
        at += n;
    }
    return nbytes;
}

tess_status tess_utf8_mend(const char *text, size_t nbytes, tess_text *out)
{
    bool is_whole = true;
    for (size_t at = 0, n = 0; at < nbytes; at += n) {
        n = span_nbytes((const unsigned char *)text + at, nbytes - at, &is_whole);
        TESS_TRY(is_whole ? tess_text_append(out, text + at, n)
                          : tess_text_append(out, "\xef\xbf\xbd", 3));
    }
    return TESS_OK;
}

static utf8proc_category_t category(uint32_t code_point)
{
    return utf8proc_category((utf8proc_int32_t)code_point);
}

bool tess_is_letter(uint32_t code_point)
{
    if (code_point < 0x80)
        return (code_point | 0x20) - 'a' < 26;
    const utf8proc_category_t c = category(code_point);
    return c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO;
}

bool tess_is_number(uint32_t code_point)
{
    if (code_point < 0x80)
        return code_point - '0' < 10;
    const utf8proc_category_t c = category(code_point);
    return c >= UTF8PROC_CATEGORY_ND && c <= UTF8PROC_CATEGORY_NO;
}

unsigned tess_case_of(uint32_t code_point)
{
    const utf8proc_category_t c = category(code_point);
    if (c == UTF8PROC_CATEGORY_LU || c == UTF8PROC_CATEGORY_LT)
        return TESS_CASE_FRONT;
    if (c == UTF8PROC_CATEGORY_LL)
        return TESS_CASE_BEHIND;
    const bool is_both = c == UTF8PROC_CATEGORY_LM || c == UTF8PROC_CATEGORY_LO ||
                         c == UTF8PROC_CATEGORY_MN || c == UTF8PROC_CATEGORY_MC ||
                         c == UTF8PROC_CATEGORY_ME;
    return is_both ? TESS_CASE_FRONT | TESS_CASE_BEHIND : 0;
}

/* White_Space of PropList.txt; the set has been stable since Unicode 6.3. */
bool tess_is_space(uint32_t code_point)
{
    if (code_point < 0x80)
        return code_point == ' ' || code_point - '\t' < 5;
    return code_point == 0x85 || code_point == 0xa0 || code_point == 0x1680 ||
           (code_point >= 0x2000 && code_point <= 0x200a) || code_point == 0x2028 ||
           code_point == 0x2029 || code_point == 0x202f || code_point == 0x205f ||
           code_point == 0x3000;
}

/* Alphabetic symbols that are neither letters nor marks (Other_Alphabetic of PropList.txt). */
static bool is_alphabetic_symbol(uint32_t code_point)
{
    return (code_point >= 0x24b6 && code_point <= 0x24e9) ||
           (code_point >= 0x1f130 && code_point <= 0x1f149) ||
           (code_point >= 0x1f150 && code_point <= 0x1f169) ||
           (code_point >= 0x1f170 && code_point <= 0x1f189);
}

bool tess_is_word(uint32_t code_point)
{
    const utf8proc_category_t c = category(code_point);
    return tess_is_letter(code_point) || c == UTF8PROC_CATEGORY_MN || c == UTF8PROC_CATEGORY_MC ||
           c == UTF8PROC_CATEGORY_ME || c == UTF8PROC_CATEGORY_ND || c == UTF8PROC_CATEGORY_NL ||
           c == UTF8PROC_CATEGORY_PC || code_point == 0x200c || code_point == 0x200d ||
           is_alphabetic_symbol(code_point);
}
