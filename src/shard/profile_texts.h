/** Texts of share/devices and share/networks, embedded by src/CMakeLists.txt. */
#pragma once

#include <stddef.h>

#include "core/base.h"

TESS_BEGIN_DECLS

typedef struct tess_profile_text {
    const char *folder, *name; /* "devices", "h100-80g" */
    const char *text;
    size_t nbytes;
} tess_profile_text;

extern const tess_profile_text tess_profile_texts[];
extern const int tess_profile_text_numel;

TESS_END_DECLS
