/** What operations of a schedule read and write, a second time, and what happens before what: every
 * wait is needed, and no pair that touches one buffer is left without. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "shard/schedule.h"

enum { STAGE_MAX = 6, OP_MAX = 1024, NO_OP = -1 };

/* A spec with the arrays it points at. */
typedef struct model {
    int stage_unit[STAGE_MAX];
    bool stage_checkpoints[STAGE_MAX];
    bool unit_has_grad[STAGE_MAX];
    int unit_bucket[STAGE_MAX];
    int unit_stage_numel[STAGE_MAX];
    bool unit_is_sent[STAGE_MAX], unit_is_owned[STAGE_MAX], unit_is_relayed[STAGE_MAX];
    bool round_has_peer[STAGE_MAX];
    tess_sched_spec spec;
} model;

typedef struct access {
    uint64_t reads, writes; /* one bit a buffer */
} access;

static uint64_t slot_bit(int slot_idx) { return (uint64_t)1 << slot_idx; }
static uint64_t grad_bit(int grad_idx) { return (uint64_t)1 << (24 + grad_idx); }
static const uint64_t RECEIVE_BIT = (uint64_t)1 << 62;

static access access_of(const model *m, const tess_sched_op *op)
{
    const bool is_owned = m->unit_is_owned[op->unit_idx];
    const bool is_received = is_owned && m->round_has_peer[op->round_idx];
    const bool is_relayed = m->unit_is_relayed[op->unit_idx] && m->round_has_peer[op->round_idx];
    access a = {0, 0};
    switch (op->kind) {
    case TESS_SCHED_GATHER:
        a.writes = slot_bit(op->slot_idx);
        break;
    case TESS_SCHED_FORWARD:
    case TESS_SCHED_BACKWARD:
        if (op->slot_idx >= 0)
            a.reads = slot_bit(op->slot_idx);
        if (op->grad_idx >= 0)
            a.writes = grad_bit(op->grad_idx);
        break;
    case TESS_SCHED_SEND: /* moves pieces to, from and between other ranks */
        if (m->unit_is_sent[op->unit_idx] && op->round_idx < m->spec.active_round_numel)
            a.reads = grad_bit(op->grad_idx);
        if (is_received || is_relayed)
            a.writes = RECEIVE_BIT;
        break;
    case TESS_SCHED_CLEAR:
        a.writes = grad_bit(op->grad_idx);
        break;
    case TESS_SCHED_REDUCE:
        a.reads = grad_bit(op->grad_idx);
        a.writes = RECEIVE_BIT;
        break;
    case TESS_SCHED_FOLD:
        a.reads = grad_bit(op->grad_idx);
        if (m->spec.is_library ? is_owned : is_received)
            a.reads |= RECEIVE_BIT;
        break;
    }
    return a;
}

static bool is_conflict(access a, access b)
{
    return ((a.writes & (b.reads | b.writes)) | (a.reads & b.writes)) != 0;
}

/* The last operation of each lane that is over when operation i starts. */
typedef struct history {
    int over[OP_MAX][TESS_LANE_NUMEL];
} history;

static history scratch;
static int64_t checked_wait_numel; /* over all schedules, so that a test can say how much it saw */

/* `skip_op`'s wait for `skip_lane` is left out. */
static void replay(const tess_schedule *s, int skip_op, int skip_lane)
{
    int last_of_lane[TESS_LANE_NUMEL] = {NO_OP, NO_OP, NO_OP};
    for (int i = 0; i < s->op_numel; i++) {
        const tess_sched_op *op = &s->op[i];
        int *over = scratch.over[i];
        const int before = last_of_lane[op->lane];
        for (int lane = 0; lane < TESS_LANE_NUMEL; lane++)
            over[lane] = before == NO_OP ? NO_OP : scratch.over[before][lane];
        over[op->lane] = before;
        for (int lane = 0; lane < TESS_LANE_NUMEL; lane++) {
            const int w = op->wait[lane];
            if (w == NO_OP || (i == skip_op && lane == skip_lane))
                continue;
            for (int other = 0; other < TESS_LANE_NUMEL; other++)
                if (other != lane && scratch.over[w][other] > over[other])
                    over[other] = scratch.over[w][other];
            if (w > over[lane])
                over[lane] = w;
        }
        last_of_lane[op->lane] = i;
    }
}

/* The first pair of operations that touch one buffer with nothing between them; false: none. */
static bool find_hazard(const model *m, const tess_schedule *s, int skip_op, int skip_lane,
                        int pair[2])
{
    replay(s, skip_op, skip_lane);
    for (int b = 0; b < s->op_numel; b++)
        for (int a = 0; a < b; a++)
            if (is_conflict(access_of(m, &s->op[a]), access_of(m, &s->op[b])) &&
                scratch.over[b][s->op[a].lane] < a) {
                pair[0] = a;
                pair[1] = b;
                return true;
            }
    return false;
}

static void check_waits(const model *m, const tess_schedule *s, const char *name)
{
    int pair[2] = {NO_OP, NO_OP};
    bool is_waited_for[OP_MAX] = {false};
    for (int i = 0; i < s->op_numel; i++)
        for (int lane = 0; lane < TESS_LANE_NUMEL; lane++) {
            const int w = s->op[i].wait[lane];
            if (w == NO_OP)
                continue;
            checked_wait_numel++;
            if (w >= i || (int)s->op[w].lane != lane || lane == (int)s->op[i].lane)
                fail_msg("%s: op %d waits for op %d of another kind of lane", name, i, w);
            is_waited_for[w] = true;
        }
    for (int i = 0; i < s->op_numel; i++)
        if (s->op[i].is_recorded != is_waited_for[i])
            fail_msg("%s: op %d recorded %d, waited for %d", name, i, s->op[i].is_recorded,
                     is_waited_for[i]);
    if (find_hazard(m, s, NO_OP, NO_OP, pair))
        fail_msg("%s: %s (op %d) and %s (op %d) are not ordered", name,
                 tess_sched_kind_name(s->op[pair[0]].kind), pair[0],
                 tess_sched_kind_name(s->op[pair[1]].kind), pair[1]);
    for (int i = 0; i < s->op_numel; i++)
        for (int lane = 0; lane < TESS_LANE_NUMEL; lane++)
            if (s->op[i].wait[lane] != NO_OP && !find_hazard(m, s, i, lane, pair))
                fail_msg("%s: op %d (%s) waits for op %d without need", name, i,
                         tess_sched_kind_name(s->op[i].kind), s->op[i].wait[lane]);
}
