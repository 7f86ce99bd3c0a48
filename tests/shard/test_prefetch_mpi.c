/*
 * A running step gathers the next unit before it computes with this one, and only then: a spy
 * around the communicator says what was issued, the model says what was issued before each call.
 * With resharding two slots are all that is ever in use.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "shard/loader.h"
#include "shard/runtime.h"
#include "support/rank_test.h"
#include "support/two_matrices.h"

enum { ROUND_NUMEL = 2, BETWEEN_NUMEL = 3, UNIT_NUMEL = BETWEEN_NUMEL + 2 };
enum { CALL_MAX = 4 * ROUND_NUMEL * UNIT_NUMEL, GATHER_MAX = 2 * ROUND_NUMEL * UNIT_NUMEL };

typedef struct setting {
    int group, prefetch;
    bool is_full, is_checkpointed, keeps_all;
} setting;

/* One call of a stage: what had been issued before, and where the unit lay. */
typedef struct stage_visit {
    int unit_idx;
    int64_t issued_numel;
    const char *place;
    bool is_backward;
} stage_visit;

typedef struct watched_model {
    two_matrices inner;
    tess_comm *spy;
    stage_visit call[CALL_MAX];
    int call_numel;
    bool is_full; /* the unit is looked for at its slab where it has no gathered base */
} watched_model;

typedef struct gather {
    int unit_idx;
    int64_t record_idx;
} gather;

typedef struct trial {
    tess_comm *spy, *group;
    const setting *s;
    tess_registry registry;
    tess_plan *plan;
    watched_model model;
    gather gather[GATHER_MAX];
    int gather_numel;
} trial;

/* ---- the family, watched ---- */

static tess_status watch(watched_model *m, const tess_stage_call *call, bool is_backward)
{
    const tess_spy_record *record = NULL;
    TESS_CHECK(m->call_numel < CALL_MAX, TESS_E_STATE, "more than %d stage calls in a step",
               CALL_MAX);
    m->call[m->call_numel++] =
        (stage_visit){.unit_idx = call->registry->stage[call->stage_idx].unit_idx,
                      .issued_numel = tess_spy_records(m->spy, &record),
                      .place = m->is_full ? call->trainable : call->frozen,
                      .is_backward = is_backward};
    return TESS_OK;
}

static tess_status forward(void *model, const tess_stage_call *call)
{
    TESS_TRY(watch(model, call, false));
    return two_matrices_ops.forward(model, call);
}

static tess_status backward(void *model, const tess_stage_call *call)
{
    TESS_TRY(watch(model, call, true));
    return two_matrices_ops.backward(model, call);
}

static const tess_stage_ops watched_ops = {.forward = forward, .backward = backward};

/* ---- what was seen ---- */

/* The gathers of units among the records; one of two where base and slab travel apart. */
static tess_status list_gathers(trial *t)
{
    const tess_spy_record *record = NULL;
    const int64_t numel = tess_spy_records(t->spy, &record);
    t->gather_numel = 0;
    for (int64_t i = 0; i < numel; i++)
        for (int u = 0; u < UNIT_NUMEL; u++) {
            const tess_unit_plan *unit = &t->plan->unit[u];
            const int wire =
                t->s->is_full && t->s->group == 1 ? unit->slab_wire_idx : unit->frozen_wire_idx;
            if (record[i].op != TESS_COMM_ALL_GATHER || (int)record[i].entry_idx != wire)
                continue;
            TESS_CHECK(t->gather_numel < GATHER_MAX, TESS_E_STATE, "more than %d gathers",
                       GATHER_MAX);
            t->gather[t->gather_numel++] = (gather){u, i};
        }
    return TESS_OK;
}

/* Forward of all but the last unit, whose backward computes it; the others' again when asked. */
static tess_status check_calls(const trial *t)
{
    const watched_model *m = &t->model;
    int numel[2] = {0, 0};
    for (int i = 0; i < m->call_numel; i++)
        numel[m->call[i].is_backward]++;
    const int want = ROUND_NUMEL * (UNIT_NUMEL - 1) * (t->s->is_checkpointed ? 2 : 1);
    TESS_CHECK(numel[0] == want && numel[1] == ROUND_NUMEL * UNIT_NUMEL, TESS_E_STATE,
               "%d forward and %d backward calls, expected %d and %d", numel[0], numel[1], want,
               ROUND_NUMEL * UNIT_NUMEL);
    return TESS_OK;
}

/* The unit that is computed with after call `from` and is another one; -1: none. */
static int next_unit(const watched_model *m, int from)
{
    for (int i = from + 1; i < m->call_numel; i++)
        if (m->call[i].unit_idx != m->call[from].unit_idx)
            return m->call[i].unit_idx;
    return -1;
}

/*
 * A gather lies in front of the first call that came after it. Without prefetch it is of that
 * call's unit. With a prefetch of one it is of the unit after that, so that it travels while this
 * one computes; nothing computes before the very first.
 */
static tess_status check_order(const trial *t)
{
    const watched_model *m = &t->model;
    int ahead_numel = 0;
    for (int g = 0; g < t->gather_numel; g++) {
        const gather *at = &t->gather[g];
        int c = 0;
        while (c < m->call_numel && m->call[c].issued_numel <= at->record_idx)
            c++;
        TESS_CHECK(c < m->call_numel, TESS_E_STATE, "unit %d is gathered and not used",
                   at->unit_idx);
        const bool is_ahead = t->s->prefetch == 1 && g > 0;
        const int want = is_ahead ? next_unit(m, c) : m->call[c].unit_idx;
        TESS_CHECK(at->unit_idx == want, TESS_E_STATE,
                   "gather %d, in front of call %d with unit %d, is of unit %d, expected unit %d",
                   g, c, m->call[c].unit_idx, at->unit_idx, want);
        ahead_numel += is_ahead;
    }
    /* The first round gathers all units forward and all but the last two, still there, backward. */
    TESS_CHECK(t->gather_numel >= (t->s->keeps_all ? UNIT_NUMEL : 2 * UNIT_NUMEL - 2), TESS_E_STATE,
               "%d gathers of %d units", t->gather_numel, UNIT_NUMEL);
    TESS_CHECK(t->s->prefetch == 0 || ahead_numel == t->gather_numel - 1, TESS_E_STATE,
               "%d of %d gathers issued ahead", ahead_numel, t->gather_numel);
    return TESS_OK;
}

/* Whether unit `u`, as gathered at or before record `now`, is used after it. */
static bool is_live(const trial *t, int u, int64_t now)
{
    int64_t until = INT64_MAX;
    bool is_there = false;
    for (int g = t->gather_numel - 1; g >= 0; g--) {
        if (t->gather[g].unit_idx != u)
            continue;
        if (t->gather[g].record_idx > now)
            until = t->gather[g].record_idx;
        else
            is_there = true;
    }
    for (int c = 0; is_there && c < t->model.call_numel; c++) {
        const stage_visit *v = &t->model.call[c];
        if (v->unit_idx == u && v->issued_numel > now && v->issued_numel <= until)
            return true;
    }
    return false;
}

static int count_places(const watched_model *m)
{
    int numel = 0;
    for (int i = 0; i < m->call_numel; i++) {
        int before = 0;
        while (m->call[before].place != m->call[i].place)
            before++;
        numel += before == i;
    }
    return numel;
}

static tess_status check_slots(const trial *t)
{
    const int slot_numel = t->s->keeps_all ? UNIT_NUMEL : 2;
    int most = 0;
    for (int g = 0; g < t->gather_numel; g++) {
        int live = 0;
        for (int u = 0; u < UNIT_NUMEL; u++)
            live += is_live(t, u, t->gather[g].record_idx);
        most = TESS_MAX(most, live);
    }
    TESS_CHECK(most == slot_numel, TESS_E_STATE,
               "up to %d gathered units at once are still to be used, expected %d", most,
               slot_numel);
    const int found = count_places(&t->model);
    TESS_CHECK(found == slot_numel, TESS_E_STATE, "units lay at %d addresses, expected %d", found,
               slot_numel);
    return TESS_OK;
}

/* ---- a run ---- */

static tess_status run_step(trial *t, tess_runtime *rt, int64_t step)
{
    two_matrices_feed feed = {0};
    tess_step_result result;
    const tess_step_request request = {
        .loss_token_numel = 14,
        .update = {.step = step, .learning_rate = 0.01, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8},
        .arg = &feed,
        .batch_of = two_matrices_batch_of};
    tess_spy_clear(t->spy);
    t->model.call_numel = 0;
    TESS_TRY(tess_runtime_step(rt, &request, &result));
    TESS_TRY(list_gathers(t));
    TESS_TRY(check_calls(t));
    if (tess_comm_world(t->spy) == 1) {
        TESS_CHECK(t->gather_numel == 0, TESS_E_STATE, "one rank alone gathered %d units",
                   t->gather_numel);
        return TESS_OK;
    }
    TESS_TRY(check_order(t));
    return check_slots(t);
}

static tess_status describe(trial *t)
{
    const setting *s = t->s;
    const int world = tess_comm_world(t->spy);
    const tess_plan_options o = {.world = world,
                                 .gather_group_numel = s->group,
                                 .reshard = s->keeps_all ? TESS_OFF : TESS_ON,
                                 .checkpointing = s->is_checkpointed ? TESS_ON : TESS_OFF,
                                 .prefetch = s->prefetch,
                                 .is_full = s->is_full,
                                 .micro_batch_numel = (int64_t)ROUND_NUMEL * world,
                                 .load_nbytes = 1 << 16};
    t->model.inner = (two_matrices){.row_numel = 7,
                                    .in_numel = 19,
                                    .mid_numel = 33,
                                    .out_numel = 29,
                                    .between_numel = BETWEEN_NUMEL};
    t->model.spy = t->spy;
    t->model.is_full = s->is_full && s->group == 1;
    tess_registry_init(&t->registry, TESS_F32);
    TESS_TRY(two_matrices_describe(&t->model.inner, &t->registry));
    return tess_plan_create(&t->registry, &o, &t->plan);
}

static tess_status run_steps(trial *t)
{
    tess_runtime *rt = NULL;
    const tess_load_request load = {.wants_frozen = true, .wants_trainable = true, .seed = 5};
    const tess_runtime_parts parts = {.plan = t->plan,
                                      .registry = &t->registry,
                                      .kernels = &tess_kernels_cpu,
                                      .world = t->spy,
                                      .group = t->group,
                                      .ops = &watched_ops,
                                      .model = &t->model};
    TESS_TRY(tess_runtime_create(&parts, &rt));
    tess_status st = tess_load(rt, &load, NULL);
    if (st == TESS_OK)
        st = tess_runtime_publish(rt);
    for (int64_t step = 1; step <= 2 && st == TESS_OK; step++)
        st = run_step(t, rt, step);
    tess_runtime_destroy(&rt);
    return st;
}

static tess_status run_setting(tess_comm *spy, const setting *s)
{
    static trial t;
    tess_comm *split = NULL;
    memset(&t, 0, sizeof t);
    t.spy = spy;
    t.s = s;
    tess_status st = describe(&t);
    if (st == TESS_OK && s->group > 1 && s->group < tess_comm_world(spy))
        st = tess_comm_split_group(spy, s->group, &split);
    t.group = s->group == 1 ? NULL : split != NULL ? split : spy;
    if (st == TESS_OK)
        st = run_steps(&t);
    tess_comm_destroy(&split);
    tess_plan_destroy(&t.plan);
    tess_registry_fini(&t.registry);
    return st;
}

static tess_status check_settings(tess_comm *spy)
{
    const int world = tess_comm_world(spy);
    const int group[3] = {world, 2, 1};
    for (int variant = 0; variant < 48; variant++) {
        const setting s = {.group = group[variant / 16],
                           .prefetch = variant & 1,
                           .is_checkpointed = (variant & 2) != 0,
                           .is_full = (variant & 4) != 0,
                           .keeps_all = (variant & 8) != 0};
        if (variant / 16 == 1 && (world % 2 != 0 || world == 2))
            continue;
        if (variant / 16 == 2 && !s.is_full) /* every rank has the base: nothing to gather */
            continue;
        const tess_status st = run_setting(spy, &s);
        TESS_CHECK(st == TESS_OK, st,
                   "group %d, prefetch %d, checkpointing %d, full %d, keeps all %d", s.group,
                   s.prefetch, s.is_checkpointed, s.is_full, s.keeps_all);
    }
    return TESS_OK;
}

static tess_status run(tess_comm *comm)
{
    tess_comm *spy = NULL;
    TESS_TRY(tess_comm_create_spy(comm, &spy));
    const tess_status st = check_settings(spy);
    tess_comm_destroy(&spy);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
