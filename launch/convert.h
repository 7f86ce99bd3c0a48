/** An adapter file into another dialect, without a run. */
#pragma once

#include "core/ctx.h"
#include "launch/options.h"

TESS_BEGIN_DECLS

/**
 * Write the adapter at `asked->source` as `asked->dialect` into `asked->output`. Local.
 * @return TESS_E_CONFIG the base model is needed and not found; else as tess_adapter_open,
 * tess_adapter_write
 */
TESS_MUST_CHECK tess_status tess_convert_adapter(const tess_ctx *ctx,
                                                 const tess_export_options *asked);

TESS_END_DECLS
