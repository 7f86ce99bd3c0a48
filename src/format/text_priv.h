/** Small text helpers of this folder. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base.h"

TESS_BEGIN_DECLS

/** Whether `nbytes` bytes are well-formed UTF-8 (no surrogates, no overlong forms). Local. */
static inline bool tess_utf8_is_valid(const char *text, size_t nbytes)
{
    const unsigned char *p = (const unsigned char *)text, *end = p + nbytes;
    while (p < end) {
        const unsigned c = *p++;
        if (c < 0x80)
            continue;
        const int more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
        if (c < 0xc2 || c > 0xf4 || end - p < more)
            return false;
        uint32_t code = c & (0x3fu >> more);
        for (int i = 0; i < more; i++, p++) {
            if ((*p & 0xc0) != 0x80)
                return false;
            code = code << 6 | (*p & 0x3fu);
        }
        static const uint32_t least[4] = {0, 0x80, 0x800, 0x10000};
        if (code < least[more] || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff))
            return false;
    }
    return true;
}

/** Copy for a one-line message: control bytes become '?', what does not fit is cut. Local. */
static inline const char *tess_text_tame(const char *text, char *out, size_t out_nbytes)
{
    size_t i = 0;
    for (; text[i] != '\0' && i + 1 < out_nbytes; i++) {
        const unsigned char c = (unsigned char)text[i];
        out[i] = c < 0x20 || c == 0x7f ? '?' : text[i];
    }
    out[i] = '\0';
    return out;
}

TESS_END_DECLS
