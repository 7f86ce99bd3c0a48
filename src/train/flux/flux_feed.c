/*
 * A cache as a session's data: micro-batches of one bucket, see flux_data.h.
 *
 * Elements with a loss are samples. Held-out micro-batches are counted in slots: a bucket that does
 * not fill its last one leaves slots of it empty.
 */
#include <inttypes.h>

#include "core/memory.h"
#include "core/trace.h"
#include "train/flux/flux_data.h"
#include "train/session_priv.h"

enum { TRAINING, HELD_OUT, KIND_NUMEL };

struct flux_feed {
    tess_flux_data *data[KIND_NUMEL];
    tess_flux_arrays arrays; /* of the host, in the DATA arena */
    tess_flux_batch batch;   /* where kernels read it */
};

static tess_status open_file(tess_session *s, int kind)
{
    tess_flux_data **data = &s->flux->data[kind];
    const bool is_training = kind == TRAINING;
    const tess_flux_data_request request = {.path = is_training ? s->run->data.path
                                                                : s->run->data.eval_path,
                                            .key = is_training ? "data.path" : "data.eval_path",
                                            .config = &s->d.flux,
                                            .shape = &s->d.flux_shape,
                                            .run = s->run,
                                            .is_training = is_training};
    TESS_TRY(tess_flux_data_open(s->ctx, &request, data));
    const tess_latents_info *info = tess_latents_get_info(tess_flux_data_cache(*data));
    tess_hex(info->digest.byte, sizeof info->digest.byte, s->source[kind].digest);
    s->source[kind].sequence_numel = info->sample_numel;
    s->source[kind].slot_numel =
        tess_flux_held_out_numel(tess_flux_data_order(*data)) * s->run->train.micro_batch;
    return TESS_OK;
}

/* Texts of both were encoded alike. */
static tess_status check_pair(const tess_session *s)
{
    const tess_latents_info *info[KIND_NUMEL];
    for (int kind = 0; kind < KIND_NUMEL; kind++) {
        if (s->flux->data[kind] == NULL)
            return TESS_OK;
        info[kind] = tess_latents_get_info(tess_flux_data_cache(s->flux->data[kind]));
    }
    TESS_CHECK(info[TRAINING]->is_text_masked == info[HELD_OUT]->is_text_masked, TESS_E_CONFIG,
               "data.eval_path: '%s' %s, data.path '%s' %s: make both caches with the same tool "
               "and settings",
               s->run->data.eval_path,
               info[HELD_OUT]->is_text_masked ? "masks padding of texts" : "has padded texts",
               s->run->data.path, info[TRAINING]->is_text_masked ? "masks it" : "has padded texts");
    return TESS_OK;
}

static tess_status open_files(tess_session *s)
{
    void *object = NULL;
    TESS_TRY(tess_alloc(sizeof(flux_feed), &object));
    s->flux = object;
    TESS_TRY(tess_flux_layout_make(&s->d.flux, &s->d.flux_shape, &s->flux->arrays.at));
    if (!s->options.needs_data)
        return TESS_OK;
    if (s->options.kind == TESS_SESSION_TRAIN)
        TESS_TRY(open_file(s, TRAINING));
    if (s->run->data.eval_path != NULL)
        TESS_TRY(open_file(s, HELD_OUT));
    return check_pair(s);
}

static tess_status open_data(tess_session *s)
{
    TESS_TRY(session_agree(s, open_files(s)));
    if (s->options.kind != TESS_SESSION_TRAIN || !s->options.needs_data)
        return TESS_OK;
    const tess_latents *cache = tess_flux_data_cache(s->flux->data[TRAINING]);
    if (tess_latents_get_info(cache)->is_text_masked)
        tess_log_root(&s->ctx->log, TESS_LOG_WARN,
                      "data.path: '%s' was made with masked texts; the transformer attends to "
                      "their padding all the same",
                      s->run->data.path);
    return session_agree(s, session_check_images(s));
}

static tess_status carve(tess_session *s)
{
    tess_flux_arrays *a = &s->flux->arrays;
    const tess_view mirror = tess_runtime_arena(s->rt, TESS_LIFE_MIRROR);
    a->base = tess_runtime_arena(s->rt, TESS_LIFE_DATA).data;
    a->read = a->base;
    if (tess_runtime_device(s->rt)->space != TESS_HOST)
        a->read = (const char *)mirror.data + (mirror.numel - (int64_t)a->at.nbytes);
    s->has_batch_event = true;
    return tess_event_init(&s->batch_read, tess_runtime_stream(s->rt));
}

void session_flux_feed_close(tess_session *s)
{
    if (s->flux == NULL)
        return;
    for (int kind = 0; kind < KIND_NUMEL; kind++)
        tess_flux_data_close(&s->flux->data[kind]);
    tess_free(s->flux);
    s->flux = NULL;
}

tess_flux_arrays *session_flux_arrays(tess_session *s) { return &s->flux->arrays; }

tess_status session_flux_send(tess_session *s)
{
    const tess_flux_arrays *a = &s->flux->arrays;
    tess_stream *stream = tess_runtime_stream(s->rt);
    const int64_t numel = (int64_t)(a->at.read_nbytes / sizeof(float));
    if (a->read == a->base)
        return TESS_OK;
    const tess_view dst = {(void *)(uintptr_t)a->read, numel, TESS_F32,
                           tess_runtime_device(s->rt)->space};
    const int span = tess_trace_begin(stream->tracer, TESS_TRACE_COMPUTE, "copy batch",
                                      (int64_t)a->at.read_nbytes, stream);
    TESS_TRY(tess_device_copy(tess_runtime_device(s->rt), dst,
                              tess_view_host(a->base, numel, TESS_F32), stream));
    tess_trace_end(stream->tracer, span, stream);
    return tess_event_record(&s->batch_read, stream);
}

static tess_status fill(tess_session *s, int64_t micro_batch_idx, const void **batch)
{
    flux_feed *f = s->flux;
    *batch = &f->batch;
    TESS_TRY(session_begin_batch(s));
    TESS_TRY(tess_flux_data_fill(f->data[TRAINING], micro_batch_idx, &f->arrays, &f->batch));
    return session_flux_send(s);
}

static tess_status count(tess_session *s, int64_t *loss_numel)
{
    *loss_numel = s->run->train.micro_batches * s->run->train.micro_batch;
    return TESS_OK;
}

static tess_status fill_eval(tess_session *s, int64_t first, int64_t numel, const void **batch,
                             int64_t *loss_numel)
{
    flux_feed *f = s->flux;
    (void)numel; /* slots come in whole micro-batches */
    *batch = &f->batch;
    TESS_TRY(session_begin_batch(s));
    TESS_TRY(tess_flux_data_fill_held_out(f->data[HELD_OUT], first / s->run->train.micro_batch,
                                          &f->arrays, &f->batch));
    *loss_numel = f->batch.sample_numel;
    return session_flux_send(s);
}

const session_feed session_flux_feed = {.unit = "samples",
                                        .sequence = "samples",
                                        .open = open_data,
                                        .carve = carve,
                                        .fill = fill,
                                        .count = count,
                                        .fill_eval = fill_eval,
                                        .sample = session_sample_images};
