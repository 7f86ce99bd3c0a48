/* The recorder over streams that keep their own time; what a step tells a profiler; the update that
 * waits for a snapshot. One process. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "core/memory.h"
#include "shard/loader.h"
#include "shard/runtime.h"
#include "support/two_matrices.h"

static void ok(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s\n%s", tess_error_message(), tess_error_trace_text());
}

/* ---- a stream whose work runs behind the calls, in seconds of its own ---- */

typedef struct late_stream {
    tess_stream base;
    double now_s;
    int mark_numel, failing_mark; /* made and not freed; -1: none fails */
} late_stream;

static tess_status late_record(tess_stream *s, tess_event *ev)
{
    ev->stream = s;
    return TESS_OK;
}

static tess_status late_finish(tess_stream *s, const tess_event *ev)
{
    (void)s;
    (void)ev;
    return TESS_OK;
}

static tess_status late_mark_init(tess_stream *s, tess_mark *m)
{
    m->handle = s;
    ((late_stream *)s)->mark_numel++;
    return TESS_OK;
}

static void late_mark_fini(tess_stream *s, tess_mark *m)
{
    m->handle = NULL;
    ((late_stream *)s)->mark_numel--;
}

static tess_status late_mark_record(tess_stream *s, tess_mark *m)
{
    late_stream *late = (late_stream *)s;
    assert_non_null(m->handle);
    TESS_CHECK(late->failing_mark-- != 0, TESS_E_IO, "the mark fails");
    m->time_s = late->now_s;
    return TESS_OK;
}

static tess_status late_mark_elapsed(tess_stream *s, const tess_mark *from, const tess_mark *to,
                                     double *elapsed_s)
{
    (void)s;
    *elapsed_s = to->time_s - from->time_s;
    return TESS_OK;
}

static const tess_stream_ops late_ops = {.record = late_record,
                                         .finish = late_finish,
                                         .mark_init = late_mark_init,
                                         .mark_fini = late_mark_fini,
                                         .mark_record = late_mark_record,
                                         .mark_elapsed = late_mark_elapsed};

typedef struct kept {
    tess_trace_event event[8];
    int numel;
} kept;

static tess_status keep(void *arg, const tess_trace_event *event)
{
    kept *k = arg;
    assert_true(k->numel < 8);
    k->event[k->numel++] = *event;
    return TESS_OK;
}

static void test_spans_of_late_streams_have_the_streams_times(void **state)
{
    (void)state;
    late_stream late = {{.ops = &late_ops, .name = "late"}, 100.0, 0, -1};
    late_stream other = {{.ops = &late_ops, .name = "other"}, 100.0, 0, -1};
    tess_comm *comm = NULL;
    tess_trace *trace = NULL;
    kept k = {.numel = 0};
    ok(tess_comm_create_self(&comm));
    const tess_trace_config config = {
        .clock = &late.base, .comm = comm, .span_numel = 3, .step_numel = 1};
    ok(tess_trace_create(&config, &trace));
    assert_null(tess_trace_tracer(trace)); /* off before the first step */
    ok(tess_trace_step(trace, 7));
    tess_tracer *tracer = tess_trace_tracer(trace);
    const tess_trace_place place = {.unit = "blk.3", .round_idx = 1, .op_idx = 12};
    tess_trace_at(trace, &place);
    const int64_t allocated = tess_alloc_events();
    const int a = tess_trace_begin(tracer, TESS_TRACE_COMPUTE, "forward", -1, &late.base);
    const int b = tess_trace_begin(tracer, TESS_TRACE_GATHER, "gather", 640, &other.base);
    late.now_s = 102.0;
    tess_trace_end(tracer, a, &late.base);
    other.now_s = 105.0;
    tess_trace_end(tracer, b, &other.base);
    const int c = tess_trace_begin(tracer, TESS_TRACE_DEQUANTIZE, "expand", 64, &late.base);
    late.failing_mark = 0;
    tess_trace_end(tracer, c, &late.base);
    assert_int_equal(tess_error_status(), TESS_OK);
    assert_int_equal(tess_trace_begin(tracer, TESS_TRACE_HOST, "full", -1, NULL), -1);
    assert_int_equal(tess_alloc_events(), allocated);
    ok(tess_trace_flush(trace, keep, &k));
    assert_int_equal(k.numel, 2);
    assert_int_equal(tess_trace_lost(trace), 2); /* the mark that failed, and no room */
    assert_int_equal(k.event[0].step, 7);
    assert_string_equal(k.event[1].place.unit, "blk.3");
    assert_int_equal(k.event[1].nbytes, 640);
    const double start_s = k.event[0].start_s;
    assert_true(k.event[1].start_s == start_s);
    /* Sums of a few seconds with the clock of the host: exact to well below a microsecond. */
    assert_true(k.event[0].end_s - start_s > 1.999999 && k.event[0].end_s - start_s < 2.000001);
    assert_true(k.event[1].end_s - start_s > 4.999999 && k.event[1].end_s - start_s < 5.000001);
    ok(tess_trace_step(trace, 8)); /* one step was asked for */
    assert_false(tess_trace_is_on(trace));
    tess_trace_destroy(&trace);
    assert_int_equal(late.mark_numel, 0);
    tess_comm_destroy(&comm);
}

/* Kernels have spans where they were asked for, and pass on what they returned in any case. */
static void test_kernels_are_recorded_where_they_are_asked_for(void **state)
{
    (void)state;
    for (int asked = 0; asked < 2; asked++) {
        late_stream late = {{.ops = &late_ops, .name = "late"}, 100.0, 0, -1};
        tess_comm *comm = NULL;
        tess_trace *trace = NULL;
        kept k = {.numel = 0};
        ok(tess_comm_create_self(&comm));
        const tess_trace_config config = {.clock = &late.base,
                                          .comm = comm,
                                          .span_numel = 4,
                                          .step_numel = 1,
                                          .has_kernels = asked == 1};
        ok(tess_trace_create(&config, &trace));
        tess_trace_kernel_begin(&late.base, "untraced");
        ok(tess_trace_kernel_end(&late.base, TESS_OK));
        ok(tess_trace_step(trace, 1));
        late.base.tracer = tess_trace_tracer(trace);
        for (int i = 0; i < 2; i++) {
            tess_trace_kernel_begin(&late.base, i == 0 ? "gemm" : "add");
            late.now_s += 1.0 + i;
            const tess_status st = i == 0 ? TESS_OK : TESS_E_ARG;
            assert_int_equal(tess_trace_kernel_end(&late.base, st), st);
        }
        ok(tess_trace_flush(trace, keep, &k));
        assert_int_equal(k.numel, asked == 1 ? 2 : 0);
        for (int i = 0; i < k.numel; i++) {
            const double took_s = k.event[i].end_s - k.event[i].start_s;
            assert_int_equal(k.event[i].lane, TESS_TRACE_KERNEL);
            assert_string_equal(k.event[i].name, i == 0 ? "gemm" : "add");
            assert_true(took_s > 0.999999 + i && took_s < 1.000001 + i);
        }
        tess_trace_destroy(&trace);
        tess_comm_destroy(&comm);
    }
}

static void test_spans_that_never_end_are_lost(void **state)
{
    (void)state;
    tess_host_device host;
    tess_stream stream;
    tess_comm *comm = NULL;
    tess_trace *trace = NULL;
    tess_host_device_init(&host, NULL);
    tess_stream_init_inline(&stream, "compute", NULL);
    ok(tess_comm_create_self(&comm));
    const tess_trace_config config = {
        .clock = &stream, .comm = comm, .span_numel = 4, .step_numel = 2};
    ok(tess_trace_create(&config, &trace));
    ok(tess_trace_step(trace, 1));
    tess_trace_host(trace, "batch", 1.0, 2.0);
    /* Begun and never ended: nothing to show. */
    (void)tess_trace_begin(tess_trace_tracer(trace), TESS_TRACE_HOST, "open", -1, NULL);
    kept k = {.numel = 0};
    ok(tess_trace_flush(trace, keep, &k));
    assert_int_equal(k.numel, 1);
    assert_string_equal(k.event[0].name, "batch");
    assert_true(k.event[0].end_s - k.event[0].start_s == 1.0);
    assert_int_equal(tess_trace_lost(trace), 1);
    tess_trace_destroy(&trace);
    tess_comm_destroy(&comm);
}

/* ---- a step ---- */

typedef struct bench {
    tess_comm *comm;
    two_matrices model;
    two_matrices_batch batch;
    tess_registry reg;
    tess_plan *plan;
    tess_host_device host;
    tess_device_ops ops;
    tess_runtime *rt;
} bench;

static int range_depth, range_numel, forward_numel;

static void push_range(tess_device *d, const char *name)
{
    (void)d;
    assert_int_equal(range_depth++, 0);
    range_numel++;
    forward_numel += strncmp(name, "forward ", 8) == 0;
}

static void pop_range(tess_device *d)
{
    (void)d;
    range_depth--;
}

static tess_status batch_of(void *arg, int64_t m, const void **batch)
{
    bench *b = arg;
    b->batch.micro_batch_idx = m;
    *batch = &b->batch;
    return TESS_OK;
}

static int set_up(void **state)
{
    static bench b;
    memset(&b, 0, sizeof b);
    b.model = (two_matrices){.row_numel = 7, .in_numel = 19, .mid_numel = 33, .out_numel = 29};
    ok(tess_comm_create_self(&b.comm));
    tess_registry_init(&b.reg, TESS_F32);
    ok(two_matrices_describe(&b.model, &b.reg));
    const tess_plan_options o = {
        .world = 1, .gather_group_numel = 1, .micro_batch_numel = 3, .load_nbytes = 1 << 16};
    ok(tess_plan_create(&b.reg, &o, &b.plan));
    tess_host_device_init(&b.host, NULL);
    b.ops = *b.host.base.ops;
    b.ops.range_push = push_range;
    b.ops.range_pop = pop_range;
    b.host.base.ops = &b.ops;
    const tess_runtime_parts parts = {.plan = b.plan,
                                      .registry = &b.reg,
                                      .device = &b.host.base,
                                      .kernels = &tess_kernels_cpu,
                                      .world = b.comm,
                                      .ops = &two_matrices_ops,
                                      .model = &b.model};
    const tess_load_request load = {.wants_frozen = true, .wants_trainable = true, .seed = 5};
    ok(tess_runtime_create(&parts, &b.rt));
    ok(tess_load(b.rt, &load, NULL));
    ok(tess_runtime_publish(b.rt));
    *state = &b;
    return 0;
}

static int tear_down(void **state)
{
    bench *b = *state;
    tess_runtime_destroy(&b->rt);
    tess_plan_destroy(&b->plan);
    tess_registry_fini(&b->reg);
    tess_comm_destroy(&b->comm);
    return 0;
}

static void step(bench *b)
{
    tess_step_result result;
    const tess_step_request request = {
        .loss_token_numel = 21,
        .update = {.step = 1, .learning_rate = 0.01, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8},
        .arg = b,
        .batch_of = batch_of};
    ok(tess_runtime_step(b->rt, &request, &result));
    assert_int_equal(result.nonfinite_numel, 0);
    assert_true(result.exposed_comm_s >= 0.0);
}

static void test_every_operation_of_a_step_is_a_range(void **state)
{
    bench *b = *state;
    tess_schedule sched = {0};
    int wanted_forward_numel = 0;
    ok(tess_plan_schedule(b->plan, &b->reg, 0, false, &sched));
    for (int i = 0; i < sched.op_numel; i++)
        wanted_forward_numel += sched.op[i].kind == TESS_SCHED_FORWARD;
    range_numel = forward_numel = 0;
    step(b);
    assert_int_equal(range_depth, 0);
    assert_int_equal(range_numel, sched.op_numel);
    assert_int_equal(forward_numel, wanted_forward_numel);
    assert_true(wanted_forward_numel > 0);
    tess_schedule_fini(&sched);
}

/* A copy of the state that is under way: it ends when somebody waits for it. */
typedef struct copying {
    tess_stream base;
    const float *from;
    float first;
    int finish_numel;
} copying;

static tess_status copying_finish(tess_stream *s, const tess_event *ev)
{
    copying *c = (copying *)s;
    (void)ev;
    c->first = c->from[0];
    c->finish_numel++;
    return TESS_OK;
}

static void test_the_next_update_waits_for_what_holds_it(void **state)
{
    bench *b = *state;
    static const tess_stream_ops ops = {.finish = copying_finish};
    copying c = {.base = {.ops = &ops, .name = "copy"},
                 .from = tess_runtime_state(b->rt, 0, TESS_STATE_MASTER).data};
    const tess_event end = {.stream = &c.base};
    const float before = c.from[0];
    tess_runtime_hold(b->rt, &end);
    step(b);
    assert_int_equal(c.finish_numel, 1);
    assert_true(c.first == before);   /* the copy still saw the old state */
    assert_true(c.from[0] != before); /* and the update came after it */
    step(b);
    assert_int_equal(c.finish_numel, 1); /* one update */
    tess_runtime_hold(b->rt, &end);
    tess_runtime_hold(b->rt, NULL);
    step(b);
    assert_int_equal(c.finish_numel, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spans_of_late_streams_have_the_streams_times),
        cmocka_unit_test(test_kernels_are_recorded_where_they_are_asked_for),
        cmocka_unit_test(test_spans_that_never_end_are_lost),
        cmocka_unit_test_setup_teardown(test_every_operation_of_a_step_is_a_range, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_the_next_update_waits_for_what_holds_it, set_up,
                                        tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
