#include "launch/convert.h"

#include <inttypes.h>
#include <stdio.h>

#include "core/memory.h"
#include "format/gguf_llm.h"

static tess_status read_base(const tess_ctx *ctx, const char *path, tess_llm_config *out)
{
    tess_gguf *file = NULL;
    if (!tess_gguf_is_path(path))
        return tess_hf_config_read(ctx->io, path, out);
    TESS_TRY(tess_gguf_open(ctx->io, path, &file));
    const tess_status st = tess_gguf_llm_config(file, out);
    tess_gguf_close(&file);
    return st;
}

/* The model that the adapter names, where it lies on this machine. */
static tess_status find_base(const tess_ctx *ctx, const tess_adapter *adapter, tess_llm_config *out,
                             bool *is_found)
{
    const char *name = tess_adapter_base_name(adapter);
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    *is_found = false;
    if (name == NULL)
        return TESS_OK;
    TESS_TRY(tess_io_stat(ctx->io, name, &kind, &nbytes));
    *is_found = kind == TESS_IO_DIR || (kind == TESS_IO_FILE && tess_gguf_is_path(name));
    return *is_found ? read_base(ctx, name, out) : TESS_OK;
}

static tess_status convert(const tess_ctx *ctx, const tess_export_options *asked,
                           const tess_adapter *adapter, tess_llm_config *base)
{
    bool has_base = asked->base != NULL;
    if (!has_base && asked->dialect == TESS_ADAPTER_GGUF)
        TESS_TRY(find_base(ctx, adapter, base, &has_base));
    const tess_adapter_target to = {.dialect = asked->dialect,
                                    .dt = asked->has_dtype ? asked->dtype
                                                           : tess_adapter_dtype(adapter),
                                    .base = has_base ? base : NULL};
    const tess_status st = tess_adapter_write(ctx->io, adapter, &to, asked->output);
    if (st != TESS_OK && tess_io_rmdir(ctx->io, asked->output) != TESS_OK)
        return st; /* it was never made, or something lies in it */
    TESS_TRY(st);
    tess_log_root(&ctx->log, TESS_LOG_INFO,
                  "exported %" PRId64 " modules of '%s' (%s) to '%s' (%s, %s)",
                  tess_adapter_numel(adapter), asked->source,
                  tess_adapter_dialect_name(tess_adapter_dialect_of(adapter)), asked->output,
                  tess_adapter_dialect_name(to.dialect), tess_dtype_name(to.dt));
    if (tess_adapter_skipped_numel(adapter) > 0)
        tess_log_root(&ctx->log, TESS_LOG_WARN, "left out %" PRId64 " tensors of text encoders",
                      tess_adapter_skipped_numel(adapter));
    return TESS_OK;
}

tess_status tess_convert_adapter(const tess_ctx *ctx, const tess_export_options *asked)
{
    tess_llm_config base;
    tess_adapter *adapter = NULL;
    if (asked->base != NULL)
        TESS_TRY(read_base(ctx, asked->base, &base));
    const tess_adapter_options options = {.skip_text_encoders = asked->skip_text_encoders,
                                          .base = asked->base != NULL ? &base : NULL};
    TESS_TRY(tess_adapter_open(ctx->io, asked->source, &options, &adapter));
    const tess_status st = convert(ctx, asked, adapter, &base);
    tess_adapter_close(&adapter);
    return st;
}
