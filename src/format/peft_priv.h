/** Helpers shared by the adapter files. */
#pragma once

#include "format/peft.h"

TESS_BEGIN_DECLS

enum { TESS_PEFT_LIST_MAX = 4096, TESS_PEFT_RANK_MAX = 1 << 16 };

/** A number as in adapter files: integers without point. Local. */
void tess_peft_number_text(double value, char text[32]);
/** A module path as a pattern for itself alone; freed with tess_free. Local. */
TESS_MUST_CHECK tess_status tess_peft_escape_path(const char *path, char **out);
/** "base_model.model.<tensor>" into `name`. Local. @return TESS_E_RANGE too long */
TESS_MUST_CHECK tess_status tess_peft_saved_name(const char *tensor,
                                                 char name[TESS_ST_NAME_MAX_NBYTES + 1]);
/** Whether the patterns stand in bytewise order, which is the order of a written file. Local. */
bool tess_peft_patterns_are_sorted(const tess_peft_pattern *pattern, int pattern_numel);

TESS_END_DECLS
