/*
 * What a step really sends, seen by a spy around the communicator, is the list that its plan's
 * schedule implies: order, contract, dtype and elements. And each micro-batch is computed once.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/digest.h"
#include "core/memory.h"
#include "shard/loader.h"
#include "shard/runtime.h"
#include "support/rank_test.h"
#include "support/two_matrices.h"

enum { STEP_NUMEL = 4, MICRO_BATCH_MAX = 12, RECORD_MAX = 1024 };

typedef struct setting {
    int64_t m;
    int group;
    tess_choice reshard, once;
    int64_t bucket_nbytes;
    bool is_full, is_library, is_tied;
} setting;

/* The family with a tally of which micro-batch went through which stage. */
typedef struct counted_model {
    two_matrices inner; /* first: the family's own calls see only this */
    int64_t seen[2][2][STEP_NUMEL * MICRO_BATCH_MAX]; /* [backward][stage][micro-batch] */
    bool is_batch_wrong;
} counted_model;

typedef struct trial {
    tess_comm *comm, *group;
    const setting *s;
    tess_registry registry;
    tess_plan *plan;
    counted_model model;
} trial;

typedef struct outcome {
    double loss[STEP_NUMEL], norm[STEP_NUMEL];
    tess_logical_hash master;
} outcome;

/* ---- the family, counted ---- */

static void count(counted_model *m, const tess_stage_call *call, int is_backward)
{
    const two_matrices_batch *batch = call->batch;
    m->is_batch_wrong = m->is_batch_wrong || batch->micro_batch_idx != call->micro_batch_idx;
    m->seen[is_backward][call->stage_idx][call->micro_batch_idx]++;
}

static tess_status forward(void *model, const tess_stage_call *call)
{
    count(model, call, 0);
    return two_matrices_ops.forward(model, call);
}

static tess_status backward(void *model, const tess_stage_call *call)
{
    count(model, call, 1);
    return two_matrices_ops.backward(model, call);
}

static const tess_stage_ops counted_ops = {.forward = forward, .backward = backward};

/* Every micro-batch once over all ranks: stage 0 forward, both backward (the last one is fused). */
static tess_status check_counts(trial *t)
{
    const int64_t numel = STEP_NUMEL * t->s->m;
    int64_t sum[2 * 2 * STEP_NUMEL * MICRO_BATCH_MAX];
    memcpy(sum, t->model.seen, sizeof sum);
    TESS_TRY(tess_comm_control(t->comm, sum, TESS_NELEM(sum), NULL, 0));
    for (int kind = 0; kind < 4; kind++)
        for (int64_t i = 0; i < STEP_NUMEL * MICRO_BATCH_MAX; i++) {
            const int64_t want = i < numel && kind != 1;
            const int64_t found = sum[kind * STEP_NUMEL * MICRO_BATCH_MAX + i];
            TESS_CHECK(found == want, TESS_E_STATE,
                       "micro-batch %" PRId64 ", %s of stage %d: computed %" PRId64
                       " times over all ranks, expected %" PRId64,
                       i, kind < 2 ? "forward" : "backward", kind % 2, found, want);
        }
    TESS_CHECK(!t->model.is_batch_wrong, TESS_E_STATE, "a stage got another micro-batch's data");
    return TESS_OK;
}

/* ---- the planned list ---- */

typedef struct record_list {
    tess_spy_record item[RECORD_MAX];
    int64_t numel;
} record_list;

static tess_spy_record *expect_record(record_list *list, const tess_wire *wire, int world,
                                      int64_t send_numel, int64_t receive_numel)
{
    tess_spy_record *r = &list->item[list->numel++];
    *r = (tess_spy_record){.op = wire->op,
                           .entry_idx = wire->entry_idx,
                           .wire = wire->wire,
                           .send_numel = send_numel,
                           .receive_numel = receive_numel,
                           .world = world,
                           .together_numel = 1};
    memcpy(r->name, wire->name, sizeof r->name);
    return r;
}

static tess_spy_record *expect_rows(record_list *list, const tess_wire *wire, int world,
                                    bool is_gather)
{
    const int64_t others_numel = wire->numel_per_rank * (world - 1);
    return expect_record(list, wire, world, is_gather ? wire->numel_per_rank : others_numel,
                         others_numel);
}

/* The units of a bucket: frozen strings in one collective, in full mode slabs in another. */
static void expect_bucket(record_list *list, const trial *t, const tess_bucket_plan *b)
{
    for (int i = 0; i < b->unit_numel; i++) {
        const tess_unit_plan *u = &t->plan->unit[t->plan->bucket_unit[b->first_idx + i]];
        if (u->frozen_wire_idx >= 0)
            expect_rows(list, &t->plan->wire[u->frozen_wire_idx], t->s->group, true)
                ->together_numel = b->unit_numel;
    }
    for (int i = 0; i < b->unit_numel && t->s->is_full; i++) {
        const tess_unit_plan *u = &t->plan->unit[t->plan->bucket_unit[b->first_idx + i]];
        expect_rows(list, &t->plan->wire[u->slab_wire_idx], tess_comm_world(t->comm), true)
            ->together_numel = b->unit_numel;
    }
}

static void expect_send(record_list *list, const trial *t, const tess_sched_op *op)
{
    const int world = tess_comm_world(t->comm), rank = tess_comm_rank(t->comm);
    const tess_unit_plan *u = &t->plan->unit[op->unit_idx];
    const int64_t left = t->s->m - (int64_t)op->round_idx * world;
    const int64_t sender_numel = TESS_MIN(left, (int64_t)world);
    const bool is_sender = rank < sender_numel;
    int64_t lo = 0, hi = 0;
    tess_plan_owned(t->plan, op->unit_idx, rank, &lo, &hi);
    expect_record(list, &t->plan->wire[u->grad_wire_idx], world,
                  is_sender ? u->slab_numel - (hi - lo) : 0,
                  (sender_numel - is_sender) * (hi - lo));
}

static void expect_op(record_list *list, const trial *t, const tess_sched_op *op)
{
    const int world = tess_comm_world(t->comm);
    const tess_unit_plan *u = &t->plan->unit[op->unit_idx];
    if (op->kind == TESS_SCHED_GATHER)
        expect_bucket(list, t, &t->plan->bucket[op->bucket_idx]);
    if (op->kind == TESS_SCHED_SEND)
        expect_send(list, t, op);
    if (op->kind == TESS_SCHED_REDUCE)
        expect_rows(list, &t->plan->wire[u->grad_wire_idx], world, false);
}

static tess_status list_step(const trial *t, record_list *list)
{
    tess_schedule schedule;
    list->numel = 0;
    TESS_TRY(tess_plan_schedule(t->plan, &t->registry, tess_comm_rank(t->comm), false, &schedule));
    for (int i = 0; i < schedule.op_numel; i++)
        expect_op(list, t, &schedule.op[i]);
    tess_schedule_fini(&schedule);
    for (int u = 0; u < t->plan->unit_numel && !t->s->is_full; u++)
        expect_rows(list, &t->plan->wire[t->plan->unit[u].slab_wire_idx], tess_comm_world(t->comm),
                    true);
    return TESS_OK;
}

static bool is_same_record(const tess_spy_record *a, const tess_spy_record *b)
{
    return a->op == b->op && a->entry_idx == b->entry_idx && a->wire == b->wire &&
           a->send_numel == b->send_numel && a->receive_numel == b->receive_numel &&
           a->world == b->world && a->together_numel == b->together_numel &&
           strcmp(a->name, b->name) == 0;
}

/* Bytes of the list against the numbers that `tessera plan` prints. */
static tess_status check_bytes(const trial *t, const tess_spy_record *record, int64_t numel)
{
    double gathered = 0, kept = 0, sent = 0;
    for (int64_t i = 0; i < numel; i++) {
        const double nbytes = (double)tess_dtype_block_nbytes(record[i].wire);
        if (record[i].op != TESS_COMM_ALL_GATHER)
            sent += (double)record[i].send_numel * nbytes;
        else if (record[i].wire == TESS_U8_OPAQUE || t->s->is_full)
            gathered += (double)record[i].receive_numel * nbytes;
        else
            kept += (double)record[i].receive_numel * nbytes;
    }
    TESS_CHECK(gathered == t->plan->gather_nbytes_per_step, TESS_E_STATE,
               "gathers received %.0f bytes, the plan says %.0f", gathered,
               t->plan->gather_nbytes_per_step);
    TESS_CHECK(kept == t->plan->slab_nbytes_per_step, TESS_E_STATE,
               "trainable copies received %.0f bytes, the plan says %.0f", kept,
               t->plan->slab_nbytes_per_step);
    TESS_CHECK(tess_comm_rank(t->comm) > 0 || sent == t->plan->grad_nbytes_per_step, TESS_E_STATE,
               "rank 0 sent %.0f gradient bytes, the plan says %.0f", sent,
               t->plan->grad_nbytes_per_step);
    return TESS_OK;
}

static tess_status check_records(const trial *t)
{
    static record_list want;
    const tess_spy_record *record = NULL;
    const int64_t numel = tess_spy_records(t->comm, &record);
    TESS_TRY(list_step(t, &want));
    for (int64_t i = 0; i < TESS_MIN(numel, want.numel); i++)
        TESS_CHECK(is_same_record(&record[i], &want.item[i]), TESS_E_STATE,
                   "collective %" PRId64 ": planned %s '%s' to %" PRId64 " from %" PRId64
                   ", seen %s '%s' to %" PRId64 " from %" PRId64,
                   i, tess_comm_op_name(want.item[i].op), want.item[i].name,
                   want.item[i].send_numel, want.item[i].receive_numel,
                   tess_comm_op_name(record[i].op), record[i].name, record[i].send_numel,
                   record[i].receive_numel);
    TESS_CHECK(numel == want.numel, TESS_E_STATE,
               "%" PRId64 " collectives planned, %" PRId64 " seen", want.numel, numel);
    return check_bytes(t, record, numel);
}

/* ---- a run ---- */

/* Nothing is under way after a step, not even on a rank that computed nothing in it: the optimizer
 * has written what gathers read, and the caller may free what they fill. */
static tess_status check_idle(const trial *t)
{
    char text[256] = "";
    FILE *file = tmpfile();
    TESS_CHECK(file != NULL, TESS_E_IO, "no temporary file");
    tess_comm_describe(t->comm, fileno(file));
    rewind(file);
    const size_t nbytes = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    TESS_CHECK(nbytes == 0, TESS_E_STATE, "after the step: %s", text);
    return TESS_OK;
}

static tess_status run_step(trial *t, tess_runtime *rt, int step, outcome *out)
{
    two_matrices_feed f = {.first_idx = step * t->s->m};
    tess_step_result result;
    const tess_step_request request = {
        .first_micro_batch_idx = f.first_idx,
        .loss_token_numel = 7 * t->s->m,
        .update = {.step = step + 1,
                   .learning_rate = 0.01,
                   .beta1 = 0.9,
                   .beta2 = 0.99,
                   .eps = 1e-8,
                   .weight_decay = 0.1,
                   .clip_norm = 0.05},
        .arg = &f,
        .batch_of = two_matrices_batch_of,
    };
    const int64_t events = tess_alloc_events();
    tess_spy_clear(t->comm);
    TESS_TRY(tess_runtime_step(rt, &request, &result));
    TESS_CHECK(step == 0 || tess_alloc_events() == events, TESS_E_STATE,
               "step %d: %" PRId64 " allocations, expected none", step + 1,
               tess_alloc_events() - events);
    TESS_TRY(check_idle(t));
    out->loss[step] = result.loss;
    out->norm[step] = result.grad_norm;
    return strncmp(tess_comm_name(t->comm), "spy", 3) == 0 ? check_records(t) : TESS_OK;
}

/* A rank holds at most its part of each unit's bytes and the padding to 256. */
static tess_status check_base(const trial *t, tess_runtime *rt)
{
    size_t bound_nbytes = 0;
    for (int u = 0; u < t->registry.unit_numel; u++)
        bound_nbytes += t->registry.unit[u].frozen_nbytes / (size_t)t->s->group + 256;
    const int64_t found = tess_runtime_arena(rt, TESS_LIFE_BASE).numel;
    TESS_CHECK(found <= (int64_t)bound_nbytes, TESS_E_STATE,
               "base arena of %" PRId64 " bytes, a share and padding are %zu", found, bound_nbytes);
    /* a slot holds the largest bucket, and what lies in it is what its units take */
    size_t largest_nbytes = 0;
    for (int i = 0; i < t->plan->bucket_numel; i++) {
        const tess_bucket_plan *b = &t->plan->bucket[i];
        const size_t nbytes = b->frozen_shard_nbytes * (size_t)t->s->group +
                              b->slab_shard_nbytes * (size_t)tess_comm_world(t->comm);
        TESS_CHECK(b->nbytes == nbytes, TESS_E_STATE, "bucket %d of %zu bytes holds %zu", i,
                   b->nbytes, nbytes);
        largest_nbytes = TESS_MAX(largest_nbytes, nbytes);
    }
    const int64_t slots = tess_runtime_arena(rt, TESS_LIFE_SLOT).numel;
    TESS_CHECK(slots == (int64_t)largest_nbytes * t->plan->slot_numel, TESS_E_STATE,
               "%" PRId64 " bytes for %d slots of %zu", slots, t->plan->slot_numel, largest_nbytes);
    return TESS_OK;
}

static tess_status run_all(trial *t, tess_runtime *rt, outcome *out)
{
    const tess_load_request load = {.wants_frozen = true, .wants_trainable = true, .seed = 5};
    TESS_TRY(tess_load(rt, &load, NULL));
    TESS_TRY(tess_runtime_publish(rt));
    TESS_TRY(check_base(t, rt));
    for (int step = 0; step < STEP_NUMEL; step++)
        TESS_TRY(run_step(t, rt, step, out));
    for (int u = 0; u < t->plan->unit_numel; u++) {
        int64_t lo = 0, hi = 0;
        const tess_view v = tess_runtime_state(rt, u, TESS_STATE_MASTER);
        tess_plan_owned(t->plan, u, tess_comm_rank(t->comm), &lo, &hi);
        tess_logical_hash_add(&out->master, v.data, v.numel, 4, lo + ((int64_t)u << 40));
    }
    TESS_TRY(tess_comm_control(t->comm, (int64_t *)(void *)out->master.lane, 2, NULL, 0));
    return check_counts(t);
}

static tess_status describe(trial *t)
{
    const setting *s = t->s;
    const tess_plan_options o = {.world = tess_comm_world(t->comm),
                                 .gather_group_numel = s->group,
                                 .reshard = s->reshard,
                                 .checkpointing = TESS_OFF,
                                 .prefetch = 1,
                                 .bucket_nbytes = s->bucket_nbytes,
                                 .is_full = s->is_full,
                                 .is_library = s->is_library,
                                 .library_once = s->once,
                                 .micro_batch_numel = s->m,
                                 .load_nbytes = 1 << 16};
    t->model.inner = (two_matrices){
        .row_numel = 7, .in_numel = 19, .mid_numel = 33, .out_numel = 29, .is_tied = s->is_tied};
    if (s->is_tied)
        t->model.inner.in_numel = t->model.inner.out_numel = t->model.inner.mid_numel;
    tess_registry_init(&t->registry, TESS_F32);
    TESS_TRY(two_matrices_describe(&t->model.inner, &t->registry));
    return tess_plan_create(&t->registry, &o, &t->plan);
}

static tess_status run_trial(trial *t, outcome *out)
{
    tess_runtime *rt = NULL;
    tess_comm *split = NULL;
    const int group = t->s->group;
    TESS_TRY(describe(t));
    if (group > 1 && group < tess_comm_world(t->comm))
        TESS_TRY(tess_comm_split_group(t->comm, group, &split));
    t->group = group == 1 ? NULL : split != NULL ? split : t->comm;
    const tess_runtime_parts parts = {.plan = t->plan,
                                      .registry = &t->registry,
                                      .kernels = &tess_kernels_cpu,
                                      .world = t->comm,
                                      .group = t->group,
                                      .ops = &counted_ops,
                                      .model = &t->model};
    tess_status st = tess_runtime_create(&parts, &rt);
    if (st == TESS_OK)
        st = run_all(t, rt, out);
    tess_runtime_destroy(&rt);
    tess_comm_destroy(&split);
    return st;
}

static tess_status run_setting(tess_comm *comm, const setting *s, outcome *out)
{
    static trial t;
    memset(&t, 0, sizeof t);
    memset(out, 0, sizeof *out);
    t.comm = comm;
    t.s = s;
    const tess_status st = run_trial(&t, out);
    tess_plan_destroy(&t.plan);
    tess_registry_fini(&t.registry);
    return st;
}

static tess_status check_setting(tess_comm *comm, tess_comm *spy, const setting *s)
{
    outcome plain, spied;
    TESS_TRY(run_setting(spy, s, &spied));
    TESS_TRY(run_setting(comm, s, &plain));
    /* The library leaves the order of additions open from three ranks on. */
    const bool is_fixed = !s->is_library || tess_comm_world(comm) <= 2;
    TESS_CHECK(!is_fixed || memcmp(&plain, &spied, sizeof plain) == 0, TESS_E_STATE,
               "the spy changes the result: loss %.17g with it, %.17g without",
               spied.loss[STEP_NUMEL - 1], plain.loss[STEP_NUMEL - 1]);
    return TESS_OK;
}

static tess_status check_steps(tess_comm *comm, tess_comm *spy)
{
    const int world = tess_comm_world(comm);
    for (int variant = 0; variant < 96; variant++) {
        const int group_choice = variant / 16 % 3;
        const setting s = {.m = variant & 1 ? (group_choice == 2 ? 1 : 7) : 12,
                           .group = group_choice == 0   ? 1
                                    : group_choice == 1 ? world
                                                        : 2,
                           .reshard = variant & 1 ? TESS_ON : TESS_OFF,
                           .once = variant & 8 ? TESS_ON : TESS_OFF,
                           .bucket_nbytes = variant < 48 ? 0 : 1 << 20, /* both units together */
                           .is_full = (variant & 2) != 0,
                           .is_library = (variant & 12) != 0,
                           .is_tied = (variant & 12) == 12};
        if (group_choice == 2 && (world % 2 != 0 || world == 2))
            continue;
        const tess_status st = check_setting(comm, spy, &s);
        TESS_CHECK(st == TESS_OK, st, "variant %d", variant);
    }
    return TESS_OK;
}

/* ---- refusals ---- */

static tess_status expect_error(tess_status st, tess_status want, const char *const *part)
{
    TESS_CHECK(st == want, TESS_E_STATE, "expected %s, found %s", tess_status_name(want),
               tess_status_name(st));
    for (int i = 0; part[i] != NULL; i++) {
        if (strstr(tess_error_message(), part[i]) != NULL)
            continue;
        char message[TESS_ERROR_MESSAGE_NBYTES];
        snprintf(message, sizeof message, "%s", tess_error_message());
        tess_error_clear();
        return TESS_FAIL(TESS_E_STATE, "'%s' does not say '%s'", message, part[i]);
    }
    tess_error_clear();
    return TESS_OK;
}

static tess_status agree_with_odd_rank(trial *t)
{
    tess_contract *c = NULL;
    const int last = tess_comm_world(t->comm) - 1;
    tess_wire *wire = &t->plan->wire[t->plan->unit[1].slab_wire_idx];
    if (tess_comm_rank(t->comm) == last)
        wire->wire = TESS_BF16;
    TESS_TRY(tess_contract_create(&c));
    tess_status st = tess_plan_contract(t->plan, &t->registry, c);
    if (st == TESS_OK)
        st = tess_contract_agree(t->comm, c);
    tess_contract_destroy(&c);
    return st;
}

/* One rank whose build or file says another dtype: refused before anything travels. */
static tess_status check_disagreement(tess_comm *spy)
{
    static trial t;
    const setting s = {.m = 7, .group = 1, .reshard = TESS_ON};
    char who[32];
    const char *const part[] = {who, "second/trainable", "wire dtype bf16", "rank 0: f32", NULL};
    const tess_spy_record *record = NULL;
    if (tess_comm_world(spy) == 1)
        return TESS_OK;
    t.comm = spy;
    t.s = &s;
    snprintf(who, sizeof who, "rank %d: ", tess_comm_world(spy) - 1);
    tess_spy_clear(spy);
    tess_status st = describe(&t);
    if (st == TESS_OK)
        st = expect_error(agree_with_odd_rank(&t), TESS_E_CONTRACT, part);
    tess_plan_destroy(&t.plan);
    tess_registry_fini(&t.registry);
    TESS_TRY(st);
    TESS_CHECK(tess_spy_records(spy, &record) == 0, TESS_E_STATE,
               "data travelled although the contracts differ");
    return TESS_OK;
}

/* A view of another dtype than the contract's: refused at the call. */
static tess_status check_wrong_view(tess_comm *spy)
{
    static float full[8 * 64];
    const char *const part[] = {"all_gather 'blk.3/trainable'", "wire dtype bf16",
                                "shard view is f32", "compute.dtype", NULL};
    const tess_wire wire = {.op = TESS_COMM_ALL_GATHER,
                            .storage = TESS_BF16,
                            .wire = TESS_BF16,
                            .accumulate = TESS_BF16,
                            .numel_per_rank = 64,
                            .numel_total = 64,
                            .name = "blk.3/trainable",
                            .config_key = "compute.dtype"};
    const tess_view shard = tess_view_host(full, 64, TESS_F32);
    const tess_view whole = tess_view_host(full, 64 * tess_comm_world(spy), TESS_F32);
    TESS_CHECK(tess_comm_world(spy) <= 8, TESS_E_ARG, "test has room for 8 ranks");
    return expect_error(
        tess_comm_all_gather(spy, &wire, shard, whole, tess_comm_gather_stream(spy)), TESS_E_DTYPE,
        part);
}

static tess_status run(tess_comm *comm)
{
    tess_comm *spy = NULL;
    TESS_TRY(tess_comm_create_spy(comm, &spy));
    tess_status st = check_steps(comm, spy);
    if (st == TESS_OK)
        st = check_disagreement(spy);
    if (st == TESS_OK)
        st = check_wrong_view(spy);
    tess_comm_destroy(&spy);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
