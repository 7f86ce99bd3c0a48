/* Predicted passes of k-means jobs against arithmetic by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "train/vectors/kmeans_predict.h"

enum { VECTORS = 2048, DIM = 4, CODES = 8 };

static void expect_ok(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s: %s", tess_status_name(st), tess_error_message());
}

static void expect_near(double found, double want)
{
    if (fabs(found - want) > 1e-9 * (1.0 + fabs(want)))
        fail_msg("found %.9f, expected %.9f", found, want);
}

/* A byte and a FLOP a second; 0.5 s of latency, 0.25 s a message, 10 bytes a second. */
static tess_device_profile make_device(void)
{
    tess_device_profile d = {.memory_rate = 1.0, .node_rank_numel = 8};
    d.op_rate[TESS_COST_SEARCH] = 1.0;
    d.link = (tess_link){
        .latency_s = 0.5, .message_s = 0.25, .rate = {1, {1}, {10}}, .adapter_numel = 1};
    return d;
}

static tess_kmeans_plan make_plan(int world, tess_kmeans_config config)
{
    tess_kmeans_plan plan;
    const tess_kmeans_plan_request r = {
        .config = config, .vector_numel = VECTORS, .dim = DIM, .world = world, .thread_numel = 1};
    expect_ok(tess_kmeans_plan_make(&r, &tess_kernels_cpu, &plan));
    return plan;
}

static tess_kmeans_config one_level(void)
{
    return (tess_kmeans_config){.code_numel = CODES,
                                .level_numel = 1,
                                .group_numel = 1,
                                .beam_numel = 1,
                                .pass_numel = 7,
                                .init = TESS_KMEANS_SAMPLE};
}

static void look_ahead(const tess_kmeans_plan *plan, const tess_device_profile *device,
                       tess_kmeans_outlook *out)
{
    static tess_network_profile network; /* copied by nobody: outlooks borrow it */
    network = (tess_network_profile){.across = device->link};
    tess_kmeans_look_ahead(plan, device, &network, out);
}

/* What a rank with `numel` vectors copies and adds in a pass: vectors as read and as entries, read
 * and written; sums of d (4 + 16) bytes, a row and a count; counts of all codes gone through. */
static double vector_bytes(double numel)
{
    return numel * (2 * 2 * 4 * DIM + DIM * 20 + 4 + 16) + 128;
}

static void test_pass_of_one_rank(void **state)
{
    const tess_device_profile d = make_device();
    const tess_kmeans_plan plan = make_plan(1, one_level());
    tess_kmeans_outlook o;
    (void)state;
    look_ahead(&plan, &d, &o);
    const double cleared = CODES * DIM * 8 + 2 * CODES * 8; /* sums; counts, and those received */
    const double means = CODES * (DIM * 12 + 8), packed = 2 * CODES * DIM * 4;
    const double search = 2.0 * VECTORS * CODES * DIM, nearest = 2.0 * VECTORS * DIM;
    expect_near(o.way[0].pass[0].compute_s,
                cleared + vector_bytes(VECTORS) + search + nearest + means + packed);
    expect_near(o.way[0].pass[0].comm_s, 0.0);
    expect_near(o.way[0].flops, search);
    expect_near(o.way[0].utilization, search / o.way[0].pass[0].compute_s);
    expect_near(o.way[0].vectors_per_s, VECTORS / o.way[0].pass[0].compute_s);
}

/*
 * Two ranks with half of the vectors and codes each. Replicated: 4 sums of 4 integers and 4 counts
 * go to the other rank and are added (three operands), 4 codes come back. Records take two
 * latencies: two agreements, the error's 68 integers, the counts of 8 codes.
 */
static void test_replicated_pass_of_two_ranks(void **state)
{
    const tess_device_profile d = make_device();
    const tess_kmeans_plan plan = make_plan(2, one_level());
    tess_kmeans_outlook o;
    (void)state;
    look_ahead(&plan, &d, &o);
    const double cleared = CODES * DIM * 8 + 2 * CODES * 8, added = 3 * 4 * 8 * (DIM + 1);
    const double means = 4 * (DIM * 12 + 8), packed = 2 * CODES * DIM * 4;
    const double search = 2.0 * 1024 * (CODES + 1) * DIM; /* and the nearest one's distance */
    expect_near(o.way[0].pass[0].compute_s,
                cleared + vector_bytes(1024) + search + added + means + packed);
    const double records = 4 * 1.0 + 2 * (68 * 8 + CODES * 8) / 10.0;
    const double moves = 3 * 0.75 + 4 * (8 * DIM + 8 + 4 * DIM) / 10.0;
    expect_near(o.way[0].pass[0].comm_s, records + moves);
}

/*
 * Row-sharded: both blocks are searched in 4 rows; whole blocks of vectors and of rows are
 * gathered, keys are swapped and compared, and the round is agreed on twice.
 */
static void test_sharded_pass_of_two_ranks(void **state)
{
    const tess_device_profile d = make_device();
    const tess_kmeans_plan plan = make_plan(2, one_level());
    tess_kmeans_outlook o;
    (void)state;
    look_ahead(&plan, &d, &o);
    const double cleared = 4 * DIM * 8 + 4 * 8, means = 4 * (DIM * 12 + 8),
                 packed = 2 * 4 * DIM * 4;
    const double search = 2.0 * VECTORS * (4 + 1) * DIM, keys = 2 * 2 * 1024 * 8,
                 rows = 2 * 1024 * 4;
    expect_near(o.way[1].pass[0].compute_s,
                cleared + vector_bytes(1024) + search + keys + rows + means + packed);
    const double records = 5 * 1.0 + 2 * (68 * 8 + CODES * 8) / 10.0;
    const double moves = 3 * 0.75 + 1024 * (4 * DIM + 8 + 4) / 10.0;
    expect_near(o.way[1].pass[0].comm_s, records + moves);
}

/* Later levels: every entry of the beam is searched, what earlier levels leave costs more; a job is
 * its parts. */
static void test_job_is_its_parts(void **state)
{
    const tess_device_profile d = make_device();
    tess_kmeans_config c = one_level();
    c.level_numel = 3;
    c.beam_numel = 4;
    c.group_numel = 2;
    c.refine_numel = 5;
    (void)state;
    for (int world = 1; world <= 4; world++) {
        const tess_kmeans_plan plan = make_plan(world, c);
        tess_kmeans_outlook o;
        look_ahead(&plan, &d, &o);
        for (int way = 0; way < 2; way++) {
            const tess_kmeans_prediction *p = &o.way[way];
            double stack_s = 5.0 * tess_kmeans_time_s(p->refine);
            for (int l = 0; l < 3; l++)
                stack_s += tess_kmeans_time_s(p->start[l]) + 7.0 * tess_kmeans_time_s(p->pass[l]) +
                           tess_kmeans_time_s(p->encode[l]);
            expect_near(tess_kmeans_time_s(p->job), tess_kmeans_time_s(p->scan) + 2.0 * stack_s);
            assert_true(p->pass[1].compute_s > 3.0 * p->pass[0].compute_s);
            assert_true(p->pass[2].compute_s > p->pass[1].compute_s);
        }
    }
}

typedef struct line {
    double end_s;
    int64_t step;
    int span_numel;
} line;

static tess_status follow(void *arg, const tess_trace_event *e)
{
    line *l = arg;
    assert_true(e->start_s >= l->end_s - 1e-9 * l->end_s && e->end_s > e->start_s);
    assert_true(e->step >= l->step);
    l->end_s = e->end_s;
    l->step = e->step;
    l->span_numel++;
    return TESS_OK;
}

static void test_timeline_is_the_job(void **state)
{
    const tess_device_profile d = make_device();
    tess_kmeans_config c = one_level();
    (void)state;
    c.level_numel = 2;
    c.refine_numel = 1;
    c.init = TESS_KMEANS_PLUS_PLUS;
    for (int world = 1; world <= 3; world += 2) {
        const tess_kmeans_plan plan = make_plan(world, c);
        tess_kmeans_outlook o;
        look_ahead(&plan, &d, &o);
        for (int way = 0; way < 2; way++) {
            const bool is_chosen = plan.book.shape.is_sharded == (way == 1);
            const tess_kmeans_predict_request r = {.plan = &plan,
                                                   .book = is_chosen ? &plan.book : &plan.other,
                                                   .device = &d,
                                                   .network = o.network};
            line l = {0};
            expect_ok(tess_kmeans_predict_trace(&r, follow, &l));
            expect_near(l.end_s, tess_kmeans_time_s(o.way[way].job));
            assert_int_equal(l.step, tess_kmeans_step_numel(&c));
            assert_true(l.span_numel > 100);
        }
    }
}

/* More ranks never compute longer, and mini-batches take their share of a pass. */
static void test_ranks_and_batches(void **state)
{
    const tess_device_profile d = make_device();
    tess_kmeans_config c = one_level();
    double before_s[2] = {INFINITY, INFINITY};
    (void)state;
    for (int world = 1; world <= 10000; world *= 10) {
        const tess_kmeans_plan plan = make_plan(world, c);
        tess_kmeans_outlook o;
        look_ahead(&plan, &d, &o);
        const double searched_s = o.way[0].pass[0].compute_s;
        assert_true(searched_s <= before_s[0] || world > 2); /* two blocks: two ranks work */
        before_s[0] = searched_s;
        assert_true(o.way[0].pass[0].comm_s >= 0.0 && isfinite(o.way[1].job.comm_s));
    }
    tess_kmeans_outlook whole, half;
    const tess_kmeans_plan plan = make_plan(1, c);
    look_ahead(&plan, &d, &whole);
    c.batch_numel = VECTORS / 2;
    const tess_kmeans_plan batches = make_plan(1, c);
    look_ahead(&batches, &d, &half);
    const double fixed =
        CODES * DIM * 8 + 2 * CODES * 8 + CODES * (DIM * 12 + 8) + 2 * CODES * DIM * 4 + 128;
    expect_near(whole.way[0].pass[0].compute_s - fixed,
                2.0 * (half.way[0].pass[0].compute_s - fixed));
    expect_near(whole.way[0].encode[0].compute_s, half.way[0].encode[0].compute_s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pass_of_one_rank),
        cmocka_unit_test(test_replicated_pass_of_two_ranks),
        cmocka_unit_test(test_sharded_pass_of_two_ranks),
        cmocka_unit_test(test_job_is_its_parts),
        cmocka_unit_test(test_timeline_is_the_job),
        cmocka_unit_test(test_ranks_and_batches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
