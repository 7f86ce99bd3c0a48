/** Regular expressions of run files and adapter configs: PCRE2 with match limits, whole-text
 * matches. */
#pragma once

#include <stdbool.h>

#include "core/status.h"

TESS_BEGIN_DECLS

typedef struct tess_regex tess_regex;

/** Compile. Local. @return TESS_E_CONFIG with the pattern, the place and the reason */
TESS_MUST_CHECK tess_status tess_regex_create(const char *pattern, tess_regex **out);
void tess_regex_destroy(tess_regex **regex);
/** Whether the whole of `text` matches. Local. @return TESS_E_CONFIG the match exceeded its limits
 */
TESS_MUST_CHECK tess_status tess_regex_matches(const tess_regex *regex, const char *text,
                                               bool *out);

TESS_END_DECLS
