/** The libraries behind the compute stream: opened and given their memory before the first step. */
#include "kernels/cuda/library_priv.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "kernels/cuda/device_priv.h"
#include "kernels/cuda/sdpa_priv.h"

enum { PART_NUMEL = 5 }; /* workspaces, the two slots, kept weights */

typedef struct stream_library {
    tess_cuda_library base; /* first */
    tess_device *device;
    tess_stream *owner;
    tess_dequant_lane lane;
    tess_kept kept;
    void *part[PART_NUMEL]; /* of the device's memory, released with the stream */
    size_t part_nbytes[PART_NUMEL];
    int part_numel;
} stream_library;

tess_stream *tess_cuda_library_lane(const stream_library *library)
{
    return library->base.lane != NULL ? library->base.lane->stream : NULL;
}

static tess_status take(stream_library *l, size_t nbytes, void **out)
{
    void *memory = NULL;
    TESS_CHECK(l->part_numel < PART_NUMEL, TESS_E_STATE, "%s: workspaces taken twice",
               l->device->name);
    TESS_TRY(l->device->ops->alloc(l->device, TESS_DEVICE, nbytes, &memory));
    l->part[l->part_numel] = memory;
    l->part_nbytes[l->part_numel++] = nbytes;
    *out = memory;
    return TESS_OK;
}

void tess_cuda_library_close(stream_library **inout)
{
    stream_library *l = *inout;
    if (l == NULL)
        return;
    tess_device *d = l->device;
    for (int i = 0; i < TESS_NELEM(l->lane.slot) && l->lane.stream != NULL; i++) {
        tess_event_fini(&l->lane.slot[i].ready, l->lane.stream);
        tess_event_fini(&l->lane.slot[i].free, l->owner);
    }
    if (l->lane.stream != NULL)
        d->ops->stream_destroy(d, l->lane.stream);
    tess_kept_fini(&l->kept);
    tess_sdpa_destroy(&l->base.sdpa);
    tess_blas_destroy(&l->base.blas);
    for (int i = 0; i < l->part_numel; i++)
        d->ops->release(d, TESS_DEVICE, l->part[i], l->part_nbytes[i]);
    tess_free(l);
    *inout = NULL;
}

static tess_status open_blas(stream_library *l)
{
    l->base.work_nbytes = tess_cuda_library_work_nbytes(tess_cuda_capability(l->device));
    TESS_TRY(take(l, l->base.work_nbytes, &l->base.work));
    return tess_blas_lt_create(&l->base.blas);
}

/* Matrix products alone: what a stream gets that nobody prepared. */
static tess_status open_library(tess_stream *s, stream_library **out)
{
    void *object = NULL;
    stream_library **place = tess_cuda_stream_slot(s);
    if (*place != NULL) {
        *out = *place;
        return TESS_OK;
    }
    TESS_TRY(tess_cuda_enter(tess_cuda_stream_device(s)));
    TESS_TRY(tess_alloc(sizeof(stream_library), &object));
    stream_library *l = object;
    l->device = tess_cuda_stream_device(s);
    l->owner = s;
    const tess_status st = open_blas(l);
    if (st != TESS_OK) {
        tess_cuda_library_close(&l);
        return st;
    }
    *out = *place = l;
    return TESS_OK;
}

tess_status tess_cuda_stream_library(tess_stream *s, const tess_cuda_library **out)
{
    stream_library *l = *tess_cuda_stream_slot(s);
    if (l == NULL)
        TESS_TRY(open_library(s, &l));
    *out = &l->base;
    return TESS_OK;
}

static tess_status open_lane(stream_library *l, size_t slot_nbytes)
{
    if (slot_nbytes == 0)
        return TESS_OK;
    TESS_TRY(l->device->ops->stream_create(l->device, "dequantize", false, &l->lane.stream));
    for (int i = 0; i < TESS_NELEM(l->lane.slot); i++) {
        tess_dequant_slot *slot = &l->lane.slot[i];
        TESS_TRY(take(l, slot_nbytes, &slot->data));
        slot->nbytes = slot_nbytes;
        TESS_TRY(tess_event_init(&slot->ready, l->lane.stream));
        TESS_TRY(tess_event_init(&slot->free, l->owner));
    }
    l->base.lane = &l->lane;
    return TESS_OK;
}

static tess_status open_kept(stream_library *l, size_t nbytes)
{
    void *memory = NULL;
    if (nbytes == 0)
        return TESS_OK;
    TESS_TRY(take(l, nbytes, &memory));
    TESS_TRY(tess_kept_init(&l->kept, memory, nbytes));
    l->base.kept = &l->kept;
    return TESS_OK;
}

/* Its workspace depends on the engines it finds. */
static tess_status plan_attention(stream_library *l, const tess_cuda_work *work)
{
    void *memory = NULL;
    for (int i = 0; i < work->attention_numel; i++)
        TESS_TRY(tess_sdpa_plan(l->base.sdpa, &work->attention[i]));
    const size_t nbytes = tess_sdpa_library_nbytes(l->base.sdpa);
    if (nbytes == 0)
        return TESS_OK;
    TESS_TRY(take(l, nbytes, &memory));
    tess_sdpa_library_set(l->base.sdpa, memory, nbytes);
    return TESS_OK;
}

/* The most documents of a pack that the library takes; 0: none. */
static int64_t most_documents(const tess_sdpa *sdpa, const tess_cuda_work *work, bool is_backward,
                              char why[TESS_SDPA_REASON_NBYTES])
{
    tess_attention_shape shape = work->attention[0];
    why[0] = '\0';
    for (int64_t n = work->document_max; n > 0; n--) {
        char other[TESS_SDPA_REASON_NBYTES];
        shape.document_numel = n;
        if (tess_sdpa_covers(sdpa, &shape, 0, is_backward, n == work->document_max ? why : other)) {
            if (n < work->document_max)
                (void)snprintf(why, TESS_SDPA_REASON_NBYTES, "%.120s, to %" PRId64 " documents",
                               other, n);
            return n;
        }
    }
    return 0;
}

static void say_attention(const tess_sdpa *sdpa, const tess_cuda_work *work,
                          char note[TESS_CUDA_NOTE_NBYTES])
{
    char why[2][TESS_SDPA_REASON_NBYTES];
    const char *who[2];
    for (int back = 0; back < 2; back++)
        who[back] = most_documents(sdpa, work, back != 0, why[back]) > 0 ? tess_sdpa_version(sdpa)
                                                                         : "own kernels";
    (void)snprintf(note, TESS_CUDA_NOTE_NBYTES, "forward %s (%.140s), backward %s (%.140s)", who[0],
                   why[0], who[1], why[1]);
}

/* Without the library, or where it refuses, own kernels serve: never a failure. */
static tess_status open_attention(stream_library *l, const tess_cuda_work *work,
                                  char note[TESS_CUDA_NOTE_NBYTES])
{
    const tess_sdpa_settings settings = {.capability = tess_cuda_capability(l->device),
                                         .document_max = work->document_max,
                                         .work_max_nbytes = work->attention_nbytes,
                                         .is_deterministic = work->is_deterministic,
                                         .execution_s = work->execution_s};
    tess_status st = tess_sdpa_create(&settings, NULL, &l->base.sdpa);
    if (st == TESS_OK)
        st = plan_attention(l, work);
    if (st == TESS_E_MEMORY)
        return st;
    if (st != TESS_OK) {
        (void)snprintf(note, TESS_CUDA_NOTE_NBYTES, "own kernels: %.300s", tess_error_message());
        tess_error_clear();
        tess_sdpa_destroy(&l->base.sdpa);
        return TESS_OK;
    }
    say_attention(l->base.sdpa, work, note);
    return TESS_OK;
}

tess_status tess_cuda_prepare(tess_device *d, tess_stream *compute, const tess_cuda_work *work,
                              char note[TESS_CUDA_NOTE_NBYTES])
{
    stream_library *l = NULL;
    TESS_CHECK(*tess_cuda_stream_slot(compute) == NULL, TESS_E_STATE,
               "%s: stream '%s' has its libraries already", d->name, compute->name);
    TESS_TRY(open_library(compute, &l));
    TESS_TRY(open_lane(l, work->slot_nbytes));
    TESS_TRY(open_kept(l, work->kept_nbytes));
    return open_attention(l, work, note);
}

size_t tess_cuda_prepare_nbytes(const tess_cuda_work *work)
{
    return tess_cuda_library_work_nbytes(90) + work->attention_nbytes + 2 * work->slot_nbytes +
           work->kept_nbytes;
}
