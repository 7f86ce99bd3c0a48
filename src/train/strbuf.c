#include "train/strbuf.h"

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"

static tess_status reserve(tess_strbuf *buf, size_t more_nbytes)
{
    TESS_CHECK(more_nbytes < SIZE_MAX / 4 && buf->nbytes < SIZE_MAX / 4, TESS_E_MEMORY,
               "text of %zu more bytes is too large", more_nbytes);
    const size_t need = buf->nbytes + more_nbytes + 1;
    if (need <= buf->room_nbytes)
        return TESS_OK;
    size_t room = TESS_MAX(buf->room_nbytes, (size_t)256);
    while (room < need)
        room *= 2;
    void *grown = buf->text;
    TESS_TRY(tess_realloc_array((int64_t)buf->room_nbytes, (int64_t)room, 1, &grown));
    buf->text = grown;
    buf->room_nbytes = room;
    return TESS_OK;
}

tess_status tess_strbuf_add_bytes(tess_strbuf *buf, const void *src, size_t nbytes)
{
    TESS_TRY(reserve(buf, nbytes));
    if (nbytes > 0)
        memcpy(buf->text + buf->nbytes, src, nbytes);
    buf->nbytes += nbytes;
    buf->text[buf->nbytes] = '\0';
    return TESS_OK;
}

tess_status tess_strbuf_add(tess_strbuf *buf, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    const int need = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    TESS_CHECK(need >= 0, TESS_E_ARG, "text cannot be formatted: '%s'", fmt);
    TESS_TRY(reserve(buf, (size_t)need));
    va_start(args, fmt);
    vsnprintf(buf->text + buf->nbytes, (size_t)need + 1, fmt, args);
    va_end(args);
    buf->nbytes += (size_t)need;
    return TESS_OK;
}

void tess_strbuf_fini(tess_strbuf *buf)
{
    tess_free(buf->text);
    *buf = (tess_strbuf){0};
}

/* "1e-05" is a string to YAML 1.1 readers, so an exponent always comes with a point. */
static void insert_point(char text[TESS_F64_TEXT_NBYTES])
{
    char *exponent = strchr(text, 'e');
    if (exponent == NULL || strchr(text, '.') != NULL)
        return;
    const size_t tail_nbytes = strlen(exponent) + 1;
    memmove(exponent + 2, exponent, tail_nbytes);
    memcpy(exponent, ".0", 2);
}

void tess_f64_text(double value, char text[TESS_F64_TEXT_NBYTES])
{
    if (!isfinite(value)) {
        snprintf(text, TESS_F64_TEXT_NBYTES, "%s",
                 isnan(value) ? "nan"
                 : value > 0  ? "inf"
                              : "-inf");
        return;
    }
    /* 17 digits always suffice for a double: 1 sign, 17 digits, point, 5 of exponent fit. */
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, TESS_F64_TEXT_NBYTES, "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
    insert_point(text);
}
