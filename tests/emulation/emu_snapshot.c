#include "emulation/emu_snapshot.h"

#include "core/memory.h"

enum { ROOM_NBYTES = 1 << 16, UNIT_NUMEL = 2 };

static tess_status copy_state(emu_copying *s, const emu_rank *rank, tess_runtime *rt)
{
    size_t at = 0;
    for (int i = 0; i < UNIT_NUMEL * TESS_STATE_NUMEL; i++) {
        const tess_view v =
            tess_runtime_state(rt, i / TESS_STATE_NUMEL, (tess_state_kind)(i % TESS_STATE_NUMEL));
        tess_view place = {0};
        TESS_TRY(tess_arena_view(s->arena, at, v.numel, v.dt, &place));
        TESS_TRY(tess_device_copy(rank->device, place, v, s->copy));
        at += (tess_view_nbytes(v) + 255) / 256 * 256;
    }
    return TESS_OK;
}

/* On a stream of its own behind the compute stream. */
tess_status emu_snapshot_take(void *arg, const emu_rank *rank, tess_runtime *rt)
{
    emu_snapshot *b = arg;
    emu_copying *s = &b->of[rank->rank];
    s->rt = rt;
    TESS_TRY(tess_device_arena_create(rank->device, TESS_HOST, "snapshot", ROOM_NBYTES, &s->arena));
    TESS_TRY(tess_device_stream_create(rank->device, "copy", false, &s->copy));
    TESS_TRY(tess_event_init(&s->ready, tess_runtime_stream(rt)));
    TESS_TRY(tess_event_init(&s->copied, s->copy));
    TESS_TRY(tess_event_record(&s->ready, tess_runtime_stream(rt)));
    TESS_TRY(tess_stream_wait(s->copy, &s->ready));
    TESS_TRY(copy_state(s, rank, rt));
    TESS_TRY(tess_event_record(&s->copied, s->copy));
    tess_runtime_hold(rt, b->is_held ? &s->copied : NULL);
    return TESS_OK;
}

void emu_snapshot_drop(void *arg, const emu_rank *rank)
{
    emu_copying *s = &((emu_snapshot *)arg)->of[rank->rank];
    if (s->copy == NULL)
        return;
    if (tess_event_finish(&s->copied) != TESS_OK)
        tess_error_clear();
    tess_event_fini(&s->ready, tess_runtime_stream(s->rt));
    tess_event_fini(&s->copied, s->copy);
    tess_device_stream_destroy(rank->device, &s->copy);
    tess_arena_destroy(&s->arena);
}
