#include "format/model_write.h"

#include <string.h>

#include "core/memory.h"
#include "format/gguf_llm.h"
#include "format/model_write_priv.h"

tess_status tess_model_writer_create(const tess_ctx *ctx, const tess_model_write_request *request,
                                     tess_model_writer **out)
{
    const bool is_gguf = tess_gguf_is_path(request->path);
    tess_io_kind kind = TESS_IO_MISSING;
    int64_t nbytes = 0;
    void *object = NULL;
    TESS_TRY(tess_io_stat(ctx->io, request->path, &kind, &nbytes));
    TESS_CHECK(kind == TESS_IO_MISSING, TESS_E_CONFIG,
               "'%s' exists; remove it or give another name with -o", request->path);
    TESS_TRY(tess_alloc(sizeof(tess_model_writer), &object));
    tess_model_writer *w = object;
    w->ops = is_gguf ? &tess_model_gguf_ops : &tess_model_dir_ops;
    const tess_status st = is_gguf ? tess_model_gguf_writer(ctx, request, &w->self)
                                   : tess_model_dir_writer(ctx, request, &w->self);
    if (st != TESS_OK) {
        tess_free(w);
        return st;
    }
    *out = w;
    return TESS_OK;
}

tess_status tess_model_writer_put(tess_model_writer *writer, int64_t tensor_idx,
                                  const void *const *part)
{
    return writer->ops->put(writer->self, tensor_idx, part);
}

tess_status tess_model_writer_set(tess_model_writer *writer, const char *key, const char *value)
{
    return writer->ops->set(writer->self, key, value);
}

tess_status tess_model_writer_finish(tess_model_writer *writer, const char *base_id)
{
    TESS_CHECK(strlen(base_id) == TESS_BASE_ID_NBYTES, TESS_E_ARG,
               "base id '%s': expected %d digits", base_id, TESS_BASE_ID_NBYTES);
    return writer->ops->finish(writer->self, base_id);
}

void tess_model_writer_destroy(tess_model_writer **writer)
{
    if (*writer == NULL)
        return;
    (*writer)->ops->destroy((*writer)->self);
    tess_free(*writer);
    *writer = NULL;
}
