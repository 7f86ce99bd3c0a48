/** Growing text for files that are written at once, and shortest decimals. */
#pragma once

#include <stddef.h>

#include "core/status.h"

TESS_BEGIN_DECLS

/** Starts as {0}; free with tess_strbuf_fini. */
typedef struct tess_strbuf {
    char *text; /* NUL-terminated, NULL while nothing was appended */
    size_t nbytes;
    size_t room_nbytes;
} tess_strbuf;

enum { TESS_F64_TEXT_NBYTES = 32 };

/** Append formatted text. Local. @return TESS_E_MEMORY; the buffer is unchanged */
TESS_MUST_CHECK tess_status tess_strbuf_add(tess_strbuf *buf, const char *fmt, ...)
    TESS_PRINTF(2, 3);
/** Append bytes. Local. @return TESS_E_MEMORY; the buffer is unchanged */
TESS_MUST_CHECK tess_status tess_strbuf_add_bytes(tess_strbuf *buf, const void *src, size_t nbytes);
void tess_strbuf_fini(tess_strbuf *buf);

/**
 * Shortest decimal that strtod() reads back as the same double; always a JSON and a YAML number
 * for finite values. Infinities and NaN become "inf", "-inf", "nan". Local.
 */
void tess_f64_text(double value, char text[TESS_F64_TEXT_NBYTES]);

TESS_END_DECLS
