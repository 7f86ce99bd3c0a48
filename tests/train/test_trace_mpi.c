/* The trace of a run against its schedule and plan: lanes, operations, order, bytes; and the run's
 * bits with and without it. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "format/json.h"
#include "support/rank_test.h"
#include "support/tiny_run.h"
#include "support/trace_check.h"
#include "train/session_priv.h"

#define EXPECT(cond, ...) TESS_CHECK(cond, TESS_E_STATE, "not true: " #cond " " __VA_ARGS__)

enum { TRACED = 3, SAVE_EVERY = 2, OP_MAX = 4096 };

/* Every weight trained: slabs go through the slots. */
static const char full_text[] =
    "model: {path: MODEL, init: random}\n"
    "data: {path: TRAIN, sequence_length: 32}\n"
    "train: {mode: full, micro_batch: 2, learning_rate: 1.0e-3, warmup_steps: 2}\n"
    "output: {dir: OUT}\n";

typedef struct variant {
    const char *run_text; /* NULL: LoRA over a quantized base */
    const char *group, *micro_batches, *reduction, *reshard;
} variant;

static const variant variants[] = {
    {NULL, "world", "8", "exact", "on"},
    {NULL, "1", "7", "exact", "off"},
    {NULL, "world", "8", "library", "off"},
    {NULL, "2", "6", "exact", "on"}, /* the world where 2 does not divide it */
    {full_text, "world", "5", "exact", "on"},
};

/* What is added up while the events are read. */
typedef struct tally {
    const tess_plan *plan;
    const tess_schedule *sched;
    int seen[TRACED][OP_MAX]; /* events of an operation */
    int64_t lane_nbytes[TESS_TRACE_LANE_NUMEL];
    int64_t event_numel[TESS_TRACE_LANE_NUMEL];
    double wait_us[TRACED];
} tally;

static tess_status check_operation(tally *t, const trace_event *e)
{
    static const tess_trace_lane lane_of[TESS_LANE_NUMEL] = {
        [TESS_LANE_COMPUTE] = TESS_TRACE_COMPUTE,
        [TESS_LANE_GATHER] = TESS_TRACE_GATHER,
        [TESS_LANE_REDUCE] = TESS_TRACE_REDUCE,
    };
    const char *name = e->name;
    int64_t op_idx = -1;
    TESS_TRY(tess_json_opt_i64(e->args, "operation", -1, &op_idx));
    if (op_idx < 0)
        return TESS_OK;
    EXPECT(op_idx < t->sched->op_numel && op_idx < OP_MAX);
    const tess_sched_op *op = &t->sched->op[op_idx];
    if (strncmp(name, "wait ", 5) == 0 || strncmp(name, "batch", 5) == 0)
        return TESS_OK; /* in front of the operation */
    const char *kind = tess_sched_kind_name(op->kind);
    EXPECT(strncmp(name, kind, strlen(kind)) == 0 && name[strlen(kind)] == ' ', "(%s, %s)", name,
           kind);
    EXPECT(e->lane == (int64_t)lane_of[op->lane]);
    t->seen[e->step - 1][op_idx]++;
    return TESS_OK;
}

static tess_status check_event(void *arg, const trace_event *e)
{
    tally *t = arg;
    int64_t nbytes = 0;
    TESS_TRY(tess_json_opt_i64(e->args, "bytes", 0, &nbytes));
    EXPECT(e->step <= TRACED, "(%lld)", (long long)e->step);
    t->event_numel[e->lane]++;
    t->lane_nbytes[e->lane] += nbytes;
    if (strncmp(e->name, "wait ", 5) == 0)
        t->wait_us[e->step - 1] += e->end_us - e->start_us;
    return check_operation(t, e);
}

/* Every operation of the schedule once a step; bytes as the plan has them. */
static tess_status check_tally(tess_session *s, const tally *t)
{
    const tess_plan *plan = t->plan;
    for (int step = 0; step < TRACED; step++)
        for (int i = 0; i < t->sched->op_numel; i++)
            EXPECT(t->seen[step][i] == 1, "(operation %d of step %d: %d events)", i, step + 1,
                   t->seen[step][i]);
    const bool is_alone = tess_comm_world(s->world) == 1;
    EXPECT((t->lane_nbytes[TESS_TRACE_GATHER] > 0) ==
           (!is_alone && plan->gather_nbytes_per_step > 0.0));
    if (tess_comm_rank(s->world) == 0) { /* the plan counts an active rank, and rank 0 as sender */
        EXPECT((double)t->lane_nbytes[TESS_TRACE_GATHER] == TRACED * plan->gather_nbytes_per_step);
        EXPECT((double)t->lane_nbytes[TESS_TRACE_REDUCE] == TRACED * plan->grad_nbytes_per_step,
               "(%lld, %.0f)", (long long)t->lane_nbytes[TESS_TRACE_REDUCE],
               TRACED * plan->grad_nbytes_per_step);
    }
    EXPECT((double)t->lane_nbytes[TESS_TRACE_PUBLISH] == TRACED * plan->slab_nbytes_per_step);
    int64_t owned_numel = 0;
    for (int i = 0; i < plan->unit_numel; i++)
        owned_numel += tess_runtime_state(s->rt, i, TESS_STATE_MASTER).numel;
    EXPECT(t->event_numel[TESS_TRACE_COPY] == TRACED / SAVE_EVERY);
    EXPECT(t->lane_nbytes[TESS_TRACE_COPY] ==
           TRACED / SAVE_EVERY * owned_numel * 3 * (int64_t)sizeof(float));
    EXPECT(t->event_numel[TESS_TRACE_DEQUANTIZE] == 0);    /* inside the product on a CPU */
    EXPECT(t->event_numel[TESS_TRACE_HOST] >= 3 * TRACED); /* count, agree, batches or saves */
    return TESS_OK;
}

/* The metric is the most of any rank; alone, it is what the waits of the trace enclose. */
static tess_status check_metric(tess_session *s, const tally *t)
{
    char path[1024], *text = NULL;
    size_t nbytes = 0;
    double exposed_s = -1;
    tess_json *row = NULL;
    TESS_TRY(session_path(s, "metrics.jsonl", path));
    TESS_TRY(tess_io_read_all(s->ctx->io, path, 1 << 20, &text, &nbytes));
    const char *end = memchr(text, '\n', nbytes);
    tess_status st = end != NULL ? tess_json_parse(path, text, (size_t)(end - text), &row)
                                 : TESS_FAIL(TESS_E_STATE, "'%s' is empty", path);
    if (st == TESS_OK)
        st = tess_json_get_f64(row, "exposed_comm_s", &exposed_s);
    tess_json_destroy(&row);
    tess_free(text);
    TESS_TRY(st);
    EXPECT(isfinite(exposed_s) && exposed_s >= 0.0);
    if (tess_comm_world(s->world) == 1)
        EXPECT(1e6 * exposed_s <= t->wait_us[0] + 1.0, "(%g us of %g)", 1e6 * exposed_s,
               t->wait_us[0]);
    return TESS_OK;
}

static tess_status check_file(tess_session *s)
{
    static tally t;
    char name[32], path[1024];
    tess_schedule sched = {0};
    tess_json *root = NULL;
    const int rank = tess_comm_rank(s->world);
    memset(&t, 0, sizeof t);
    snprintf(name, sizeof name, "trace.%d.json", rank);
    TESS_TRY(session_path(s, name, path));
    TESS_TRY(tess_plan_schedule(s->d.plan, &s->d.registry, rank, false, &sched));
    t.plan = s->d.plan;
    t.sched = &sched;
    tess_status st = tess_json_read(s->ctx->io, path, &root);
    if (st == TESS_OK)
        st = trace_check(root, &(trace_reader){.on_event = check_event, .arg = &t});
    if (st == TESS_OK)
        st = check_tally(s, &t);
    if (st == TESS_OK && rank == 0)
        st = check_metric(s, &t);
    tess_json_destroy(&root);
    tess_schedule_fini(&sched);
    return st;
}

/* All state of this rank, to the bit. */
static tess_status hash_state(tess_session *s, tess_sha256 *out)
{
    tess_sha256_state *sha = NULL;
    TESS_TRY(tess_sha256_create(&sha));
    tess_status st = TESS_OK;
    for (int i = 0; i < s->d.plan->unit_numel * TESS_STATE_NUMEL && st == TESS_OK; i++) {
        const tess_view v = tess_runtime_state(s->rt, i / TESS_STATE_NUMEL,
                                               (tess_state_kind)(i % TESS_STATE_NUMEL));
        st = tess_sha256_update(sha, v.data, tess_view_nbytes(v));
    }
    if (st == TESS_OK)
        st = tess_sha256_final(sha, out);
    tess_sha256_destroy(&sha);
    return st;
}

static tess_status train(tess_comm *comm, tiny_run *t, const char *run_text,
                         const char *const *overrides, bool is_traced, tess_sha256 *state)
{
    tess_session *s = NULL;
    const tess_session_options options = {
        .kind = TESS_SESSION_TRAIN, .needs_data = true, .run_text = run_text};
    TESS_TRY(tiny_run_open_as(comm, t, is_traced ? "traced" : "plain", overrides, &options, &s));
    tess_status st = tess_session_train(s);
    if (st == TESS_OK)
        st = tess_agree(comm, is_traced ? check_file(s) : TESS_OK);
    if (st == TESS_OK)
        st = tess_agree(comm, hash_state(s, state));
    tess_session_close(&s);
    return st;
}

static tess_status run_variant(tess_comm *comm, tiny_run *t, const variant *v)
{
    char text[4][64];
    tess_sha256 plain, traced;
    snprintf(text[0], sizeof text[0], "shard.gather_group=%s",
             strcmp(v->group, "2") == 0 && tess_comm_world(comm) % 2 != 0 ? "world" : v->group);
    snprintf(text[1], sizeof text[1], "train.micro_batches=%s", v->micro_batches);
    snprintf(text[2], sizeof text[2], "shard.reduction=%s", v->reduction);
    snprintf(text[3], sizeof text[3], "shard.reshard_after_forward=%s", v->reshard);
    const char *overrides[] = {text[0],
                               text[1],
                               text[2],
                               text[3],
                               "train.steps=5",
                               "train.eval_every=2",
                               "output.checkpoint_every=2",
                               "output.export=none",
                               "output.resume=never",
                               "output.trace_steps=3",
                               "output.trace=true",
                               NULL};
    TESS_TRY(train(comm, t, v->run_text, overrides, true, &traced));
    overrides[TESS_NELEM(overrides) - 2] = "output.trace=false";
    TESS_TRY(train(comm, t, v->run_text, overrides, false, &plain));
    /* A library reduction of several ranks promises no bits. */
    if (strcmp(v->reduction, "exact") == 0 || tess_comm_world(comm) <= 2)
        EXPECT(tess_sha256_is_equal(&plain, &traced));
    return TESS_OK;
}

static tess_status run(tess_comm *comm)
{
    tiny_run t;
    TESS_TRY(tiny_run_create(comm, &t));
    tess_status st = TESS_OK;
    for (int i = 0; i < TESS_NELEM(variants) && st == TESS_OK; i++)
        st = run_variant(comm, &t, &variants[i]);
    tiny_run_destroy(comm, &t);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
