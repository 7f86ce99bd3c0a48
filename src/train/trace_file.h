/**
 * `trace.<rank>.json`: what a rank did in its first steps, as Chrome trace events (Perfetto and
 * chrome://tracing open it). The file is valid JSON whenever nothing is being written.
 */
#pragma once

#include "core/ctx.h"
#include "shard/trace.h"

TESS_BEGIN_DECLS

typedef struct tess_trace_file tess_trace_file;

/** Replace the file of an earlier launch. Local. @return TESS_E_IO */
TESS_MUST_CHECK tess_status tess_trace_file_open(const tess_ctx *ctx, const char *folder, int rank,
                                                 tess_trace_file **out);
/** A file at `path` whose events are not recorded but given: timelines of several ranks. Local. */
TESS_MUST_CHECK tess_status tess_trace_file_create(const tess_ctx *ctx, const char *path,
                                                   tess_trace_file **out);
/** What is put from here on is of this rank. Local. */
TESS_MUST_CHECK tess_status tess_trace_file_rank(tess_trace_file *file, int rank);
/** Append one event to `file` [tess_trace_file]. Local. @return TESS_E_IO */
TESS_MUST_CHECK tess_status tess_trace_file_put(void *file, const tess_trace_event *event);
/** Write what was put, and the end. Local. @return TESS_E_IO */
TESS_MUST_CHECK tess_status tess_trace_file_end(tess_trace_file *file);
/** Append what `trace` holds. Allocates nothing. Local. @return TESS_E_IO; what is already in the
 * file stays readable */
TESS_MUST_CHECK tess_status tess_trace_file_flush(tess_trace_file *file, tess_trace *trace);
/** NULL is fine. Local. @return TESS_E_IO */
TESS_MUST_CHECK tess_status tess_trace_file_close(tess_trace_file **file);

TESS_END_DECLS
