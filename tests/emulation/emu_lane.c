/*
 * Weights that are dequantized ahead, as the CUDA part does it ([Note: dequantizing ahead] in
 * kernels/cuda/library_priv.h): two slots in turn on a stream beside the compute stream, which
 * waits for whatever that one waits for, and for nothing else. A product of quantized matrices
 * becomes decodings on the lane and a product of what they left.
 */
#include <string.h>

#include "emulation/emu_device.h"

enum { SLOT_NBYTES = 1 << 17 }; /* larger products decode for themselves, as on a device */

tess_status emu_lane_open(emu_stream *compute)
{
    emu_device *d = compute->device;
    emu_lane *lane = &d->lane;
    if (lane->stream != NULL)
        return TESS_OK;
    TESS_TRY(emu_stream_create(d, "dequantize", &lane->stream));
    lane->compute = compute;
    for (int i = 0; i < TESS_NELEM(lane->slot); i++) {
        emu_slot *slot = &lane->slot[i];
        void *memory = NULL;
        TESS_TRY(d->base.ops->alloc(&d->base, TESS_DEVICE, SLOT_NBYTES, &memory));
        slot->data = memory;
        TESS_TRY(tess_event_init(&slot->ready, &lane->stream->base));
        TESS_TRY(tess_event_init(&slot->free, &compute->base));
    }
    return TESS_OK;
}

void emu_lane_close(emu_stream *compute)
{
    emu_device *d = compute->device;
    emu_lane *lane = &d->lane;
    if (lane->compute != compute)
        return;
    emu_stream_destroy(lane->stream);
    for (int i = 0; i < TESS_NELEM(lane->slot); i++)
        d->base.ops->release(&d->base, TESS_DEVICE, lane->slot[i].data, SLOT_NBYTES);
    memset(lane, 0, sizeof *lane);
}

static bool is_quantized(const tess_gemm_term *t)
{
    return t->k > 0 && tess_format_is_quantized(t->b.codec.format);
}

static int64_t decoded_numel(const tess_gemm_args *a)
{
    int64_t numel = 0;
    for (int i = 0; i < a->term_numel; i++)
        if (is_quantized(&a->term[i]))
            numel += a->term[i].b.rows * a->term[i].b.cols;
    return numel;
}

/* One matrix to its place in the slot, which takes the stored one's in the product. */
static tess_status decode(const emu_lane *lane, tess_gemm_term *t, char *place)
{
    tess_matrix *b = &t->b;
    tess_dequantize_args args = {.codec = b->codec,
                                 .numel = b->rows * b->cols,
                                 .dst = {place, b->rows * b->cols, t->a.dt, TESS_DEVICE}};
    memcpy(args.part, b->part, sizeof args.part);
    TESS_TRY(emu_kernels.dequantize(&args, &lane->stream->base));
    const tess_format plain = t->a.dt == TESS_BF16 ? TESS_FORMAT_BF16 : TESS_FORMAT_F32;
    *b = (tess_matrix){.codec = {.format = plain}, .rows = b->rows, .cols = b->cols};
    b->part[0] = place;
    return TESS_OK;
}

tess_status emu_lane_fill(emu_stream *s, tess_gemm_args *a, emu_slot **out)
{
    emu_lane *lane = &s->device->lane;
    const int64_t numel = decoded_numel(a);
    *out = NULL;
    if (lane->compute != s || numel == 0)
        return TESS_OK;
    const size_t elem_nbytes = tess_dtype_block_nbytes(a->term[0].a.dt);
    if ((size_t)numel * elem_nbytes > SLOT_NBYTES)
        return TESS_OK;
    emu_slot *slot = &lane->slot[lane->next_idx];
    lane->next_idx = (lane->next_idx + 1) % TESS_NELEM(lane->slot);
    TESS_TRY(tess_stream_wait(&lane->stream->base, &slot->free));
    char *place = slot->data;
    for (int i = 0; i < a->term_numel; i++) {
        if (!is_quantized(&a->term[i]))
            continue;
        TESS_TRY(decode(lane, &a->term[i], place));
        place += (size_t)(a->term[i].b.rows * a->term[i].b.cols) * elem_nbytes;
    }
    TESS_TRY(tess_event_record(&slot->ready, &lane->stream->base));
    TESS_TRY(tess_stream_wait(&s->base, &slot->ready));
    s->device->world->report->ahead_numel++;
    *out = slot;
    return TESS_OK;
}

const tess_event *emu_lane_event(const emu_rank *rank, int slot_idx, bool is_free)
{
    const emu_device *d = (const emu_device *)(const void *)rank->device;
    const emu_slot *slot = &d->lane.slot[slot_idx];
    return is_free ? &slot->free : &slot->ready;
}
