/** Small questions about text. */
#pragma once

#include <stdbool.h>
#include <string.h>

#include "core/base.h"

TESS_BEGIN_DECLS

/** Whether `text` ends in `suffix`; it may be all of it. Local. */
static inline bool tess_ends_with(const char *text, const char *suffix)
{
    const size_t nbytes = strlen(text), tail = strlen(suffix);
    return nbytes >= tail && strcmp(text + nbytes - tail, suffix) == 0;
}

TESS_END_DECLS
