#include "emulation/emu_removal.h"

#include <stdio.h>
#include <stdlib.h>

#include "shard/runtime_priv.h"

static void list_waits(emu_removal *r, int rank, bool is_eval, const tess_schedule *s)
{
    for (int i = 0; i < s->op_numel; i++)
        for (int lane = 0; lane < TESS_LANE_NUMEL; lane++) {
            if (s->op[i].wait[lane] < 0)
                continue;
            if (r->numel == EMU_PLACE_MAX) {
                fprintf(stderr, "more than %d waits: raise EMU_PLACE_MAX\n", EMU_PLACE_MAX);
                abort();
            }
            r->list[r->numel++] = (emu_place){rank, is_eval, i, lane};
            r->slot_numel += s->op[i].kind == TESS_SCHED_GATHER;
        }
}

void emu_take_away(void *arg, const emu_rank *rank, tess_runtime *rt)
{
    emu_removal *r = arg;
    if (r->taken.rank < 0) {
        list_waits(r, rank->rank, false, &rt->train.schedule);
        list_waits(r, rank->rank, true, &rt->eval.schedule);
    }
    if (r->taken.rank != rank->rank)
        return;
    const tess_schedule *s = r->taken.is_eval ? &rt->eval.schedule : &rt->train.schedule;
    tess_sched_op *op = &s->op[r->taken.op_idx];
    const tess_sched_op *from = &s->op[op->wait[r->taken.lane]];
    snprintf(r->what, sizeof r->what,
             "rank %d: %s of unit %d, round %d, after %s of unit %d, round %d", rank->rank,
             tess_sched_kind_name(op->kind), op->unit_idx, op->round_idx,
             tess_sched_kind_name(from->kind), from->unit_idx, from->round_idx);
    r->may_be_idle =
        op->kind == TESS_SCHED_BACKWARD && op->stage_idx == 0 && from->kind == TESS_SCHED_GATHER;
    op->wait[r->taken.lane] = -1;
}
