/** What inspect and verify can open besides checkpoints: token files, vectors and their codes,
 * caches, safetensors files, model directories and adapters. */
#pragma once

#include <stdbool.h>

#include "core/ctx.h"
#include "core/status.h"

TESS_BEGIN_DECLS

typedef enum tess_artifact_kind {
    TESS_ARTIFACT_CHECKPOINT, /* everything else: src/shard knows */
    TESS_ARTIFACT_TOKEN_FILE,
    TESS_ARTIFACT_VECTORS,
    TESS_ARTIFACT_CODES,
    TESS_ARTIFACT_CACHE,
    TESS_ARTIFACT_SAFETENSORS,
    TESS_ARTIFACT_MODEL,
    TESS_ARTIFACT_ADAPTER
} tess_artifact_kind;

/** What a path is, by name and by what lies in the folder; of files the header at most. Local. */
TESS_MUST_CHECK tess_status tess_artifact_kind_of(const tess_ctx *ctx, const char *path,
                                                  tess_artifact_kind *kind);
/**
 * Print what is in it on stdout, as text or JSON. Local.
 *
 * With `is_verify` every byte is read as well: digests that the file keeps are compared, and the
 * SHA-256 of a file that keeps none is printed; of vectors their identity (train/data/vectors.h).
 * @return TESS_E_FORMAT damaged: file and place are named; TESS_E_IO
 */
TESS_MUST_CHECK tess_status tess_artifact_print(const tess_ctx *ctx, tess_artifact_kind kind,
                                                const char *path, bool is_json, bool is_verify);

TESS_END_DECLS
