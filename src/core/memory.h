/**
 * The only allocator of the program: counted, and refused while a step runs.
 *
 * Metadata comes from tess_alloc(); everything whose size the plan states comes from one arena per
 * (memory space, lifetime class). Offsets in an arena are multiples of 256 bytes.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/status.h"
#include "core/view.h"

TESS_BEGIN_DECLS

enum { TESS_ARENA_ALIGN_NBYTES = 256 };

/** Zeroed memory of `nbytes` (at least one byte is allocated). Local. @return TESS_E_MEMORY;
 * TESS_E_STATE in a step */
TESS_MUST_CHECK tess_status tess_alloc(size_t nbytes, void **out);
/** Zeroed array of `numel` objects of `elem_nbytes`, overflow-checked. Local. */
TESS_MUST_CHECK tess_status tess_alloc_array(int64_t numel, size_t elem_nbytes, void **out);
/** Grow or shrink; new bytes are zero. `*inout` may be NULL with `old_numel` 0; untouched on
 * failure. Local. */
TESS_MUST_CHECK tess_status tess_realloc_array(int64_t old_numel, int64_t new_numel,
                                               size_t elem_nbytes, void **inout);
/** Copy of a NUL-terminated string. Local. */
TESS_MUST_CHECK tess_status tess_strdup(const char *text, char **out);
/** Copy of the first `nbytes` of a text, NUL-terminated. Local. */
TESS_MUST_CHECK tess_status tess_strndup(const char *text, size_t nbytes, char **out);
/** printf into a new string. Local. */
TESS_MUST_CHECK tess_status tess_asprintf(char **out, const char *fmt, ...) TESS_PRINTF(2, 3);
/** Free; NULL is fine. Local. */
void tess_free(void *ptr);

/** Number of allocations since start, by tess_alloc and its kin. Local. */
int64_t tess_alloc_events(void);
/** Bytes now held through tess_alloc (not arenas), and their peak. Local. */
size_t tess_alloc_nbytes(void);
size_t tess_alloc_peak_nbytes(void);
/** From freeze to thaw an allocation by this thread is an error. Calls nest. Local. */
void tess_alloc_freeze(void);
void tess_alloc_thaw(void);

typedef struct tess_arena tess_arena;

/** One zero-touched host allocation of `nbytes`, aligned to 4096. `name` is for messages. Local. */
TESS_MUST_CHECK tess_status tess_arena_create(const char *name, size_t nbytes, tess_arena **out);
void tess_arena_destroy(tess_arena **arena);
/** Memory at a planned offset. Local. @return TESS_E_RANGE outside the arena or misaligned */
TESS_MUST_CHECK tess_status tess_arena_view(tess_arena *arena, size_t offset_nbytes, int64_t numel,
                                            tess_dtype dt, tess_view *out);
size_t tess_arena_nbytes(const tess_arena *arena);

/** Bytes a process may still take: the least of MemAvailable and what the cgroups leave; SIZE_MAX
 * where unknown. */
size_t tess_memory_free_nbytes(void);
/** Peak resident set of this process as the kernel counts it (VmHWM), 0 where unknown. Local. */
size_t tess_peak_rss_nbytes(void);

TESS_END_DECLS
