#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "shard/ckpt_priv.h"

void ckpt_text_put(ckpt_text *t, const char *fmt, ...)
{
    const bool has_room = t->text != NULL && t->nbytes < t->room_nbytes;
    va_list args;
    va_start(args, fmt);
    const int n = vsnprintf(has_room ? t->text + t->nbytes : NULL,
                            has_room ? t->room_nbytes - t->nbytes : 0, fmt, args);
    va_end(args);
    if (n > 0)
        t->nbytes += (size_t)n;
}

void ckpt_text_quote(ckpt_text *t, const char *s)
{
    ckpt_text_put(t, "\"");
    while (*s != '\0') {
        const size_t plain = strcspn(s, "\"\\\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d"
                                        "\x0e\x0f\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b"
                                        "\x1c\x1d\x1e\x1f");
        if (plain > 0)
            ckpt_text_put(t, "%.*s", (int)TESS_MIN(plain, (size_t)INT_MAX), s);
        s += plain;
        if (*s == '\0')
            break;
        if (*s == '"' || *s == '\\')
            ckpt_text_put(t, "\\%c", *s);
        else if (*s == '\n')
            ckpt_text_put(t, "\\n");
        else
            ckpt_text_put(t, "\\u%04x", (unsigned)(unsigned char)*s);
        s++;
    }
    ckpt_text_put(t, "\"");
}

void ckpt_text_f64(ckpt_text *t, double x)
{
    char digits[40];
    snprintf(digits, sizeof digits, "%.17g", x);
    const bool is_integer = strpbrk(digits, ".e") == NULL;
    ckpt_text_put(t, "%s%s", digits, is_integer ? ".0" : "");
}

void ckpt_text_value(ckpt_text *t, const tess_ckpt_value *v)
{
    switch (v->kind) {
    case TESS_CKPT_I64:
        ckpt_text_put(t, "%" PRId64, v->i64);
        break;
    case TESS_CKPT_F64:
        ckpt_text_f64(t, v->f64);
        break;
    case TESS_CKPT_TEXT:
        ckpt_text_quote(t, v->text);
        break;
    }
}
