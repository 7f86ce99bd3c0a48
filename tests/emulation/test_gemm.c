/*
 * Matrix products of the CUDA backend with its kernels in the emulation and the C twin for the
 * library's products: how terms become products, scratch, rounding, bias, accumulation, strides.
 * Bounds stand in gemm_cases.h.
 */
#include "kernels/cuda/gemm_priv.h"
#include "tests/emulation/blas_emulation.h"
#include "tests/emulation/emulation.h"

enum { LIBRARY_WORK_NBYTES = 4096, RUN_NUMEL = 2 };

#include "tests/emulation/gemm_cases.h"

static tess_blas_emulation blas;
static tess_cuda_library library;

tess_status tess_cuda_stream_library(tess_stream *s, const tess_cuda_library **out)
{
    (void)s;
    *out = &library;
    return TESS_OK;
}

static void run_device(problem *p, int run_idx)
{
    tess_stream s;
    void *work = NULL;
    const size_t work_nbytes = tess_cuda_gemm_work_nbytes(&p->device, 1);
    if (work_nbytes > 0)
        must(tess_emulation_alloc("work", work_nbytes, &work));
    p->device.work = (tess_view){work, (int64_t)work_nbytes, TESS_U8_OPAQUE, TESS_DEVICE};
    tess_stream_init_inline(&s, "compute", NULL);
    const bool is_late = blas.base.is_settled;
    if (!is_late)
        must(tess_cuda_gemm_plan(&p->device, &library));
    const int64_t planned_numel = blas.base.entry_numel;
    blas.run_numel = 0;
    must(tess_cuda_gemm(&p->device, &s));
    assert_true(is_late || blas.base.entry_numel == planned_numel);
    if (run_idx == 0 && p->s.product_numel != 0)
        assert_int_equal(blas.run_numel, TESS_MAX(p->s.product_numel, INT64_C(0)));
}

static void release_device(void)
{
    tess_emulation_release_all();
    must(tess_emulation_alloc("workspace", LIBRARY_WORK_NBYTES, &library.work));
}

static int setup(void **state)
{
    (void)state;
    random_state = 1;
    const tess_emulation_settings settings = {
        .order = TESS_EMULATION_REVERSED, .block_max = 2, .dropped_barrier = -1}; /* grids loop */
    tess_emulation_set(&settings);
    must(tess_blas_emulation_init(&blas, "emulation"));
    library = (tess_cuda_library){.blas = &blas.base, .work_nbytes = LIBRARY_WORK_NBYTES};
    must(tess_emulation_alloc("workspace", LIBRARY_WORK_NBYTES, &library.work));
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    tess_blas_emulation_fini(&blas);
    tess_emulation_release_all();
    return 0;
}
static void test_gemm_many_rows_apart_are_planned_in_chunks(void **state)
{
    (void)state;
    spec s = spec_of(TESS_GEMM_NT, TESS_BF16, 1030, 33000, 1);
    s.term_numel = 2;
    s.k[1] = 1;
    s.codec[1] = plain(TESS_BF16);
    const size_t sums_nbytes = 1024u * 33000u * 4u;
    problem *p = zeroed(1, sizeof(*p));
    p->device = (tess_gemm_args){.kind = s.kind, .m = s.m, .n = s.n, .term_numel = 2};
    for (int t = 0; t < 2; t++) {
        p->device.term[t].a.dt = TESS_BF16;
        p->device.term[t].k = 1;
        p->device.term[t].scale = 1.0F;
        p->device.term[t].b = (tess_matrix){.codec = plain(TESS_BF16), .rows = s.n, .cols = 1};
    }
    p->device.c.dt = TESS_BF16;
    /* B's of one column are rows of 8 in scratch; the second may lie 256 columns behind */
    const size_t b_nbytes = 33000u * (8u + 264u) * 2u;
    assert_in_range(tess_cuda_gemm_work_nbytes(&p->device, 1), sums_nbytes + b_nbytes,
                    sums_nbytes + b_nbytes + 4096);
    /* both ways of joining, and the rest of 6 rows */
    const int64_t before = blas.choose_numel;
    must(tess_cuda_gemm_plan(&p->device, &library));
    assert_int_equal(blas.choose_numel - before, 1 + 2 * 2);
    tess_free(p);
}

/* What was planned without addresses is what runs: nothing is late. */
static void test_gemm_planned_products_are_those_that_run(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        spec s = spec_of(i % 2 == 0 ? TESS_GEMM_NT : TESS_GEMM_NN, TESS_BF16, 16, 24, 64);
        s.term_numel = 2;
        s.k[1] = 16;
        s.codec[0] = nf4(64, true);
        s.codec[1] = plain(TESS_BF16);
        s.is_adjacent = i < 2;
        problem *p = problem_create(&s);
        tess_gemm_args plan = p->device;
        for (int t = 0; t < 2; t++) {
            plan.term[t].a.data = NULL;
            memset(plan.term[t].b.part, 0, sizeof(plan.term[t].b.part));
        }
        plan.c.data = NULL;
        if (!s.is_adjacent) { /* own buffers of even addresses */
            p->device.term[1].a = p->device.term[0].a;
            p->device.term[1].a.numel = 16 * 64;
            p->device.term[1].a_stride = plan.term[1].a_stride = 64;
        }
        must(tess_cuda_gemm_plan(&plan, &library));
        tess_blas_settle(&blas.base);
        run_device(p, 1);
        assert_int_equal(blas.run_numel, s.is_adjacent ? 1 : 2);
        assert_int_equal(blas.base.late_numel, 0);
        blas.base.is_settled = false;
        problem_destroy(p);
    }
}

static void test_blas_late_product_runs_and_is_counted(void **state)
{
    (void)state;
    tess_blas_settle(&blas.base);
    spec s = spec_of(TESS_GEMM_NT, TESS_F32, 4, 5, 6);
    check(&s);
    assert_int_equal(blas.base.late_numel, 1);
}

static void test_blas_weight_gradient_alone_may_split(void **state)
{
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        spec s = spec_of(kinds[kind], TESS_BF16, 4, 5, 6);
        s.c_dt = TESS_F32;
        check(&s);
        assert_int_equal(blas.last.may_split, kinds[kind] == TESS_GEMM_TN);
        assert_int_equal(blas.last.work_nbytes, LIBRARY_WORK_NBYTES);
    }
}

static void test_gemm_small_work_is_refused(void **state)
{
    (void)state;
    spec s = spec_of(TESS_GEMM_NT, TESS_BF16, 4, 8, 64);
    s.codec[0] = nf4(64, false);
    problem *p = problem_create(&s);
    tess_stream stream;
    tess_stream_init_inline(&stream, "compute", NULL);
    assert_int_equal(tess_cuda_gemm(&p->device, &stream), TESS_E_ARG);
    assert_non_null(strstr(tess_error_message(), "take it from gemm_work_nbytes"));
    tess_error_clear();
    problem_destroy(p);
}

/* What was asked of streams. */
static char spy_log[256];

static void spy_note(const char *verb, const tess_stream *s, const tess_event *ev)
{
    const tess_dequant_slot *slot = library.lane->slot;
    const size_t used = strlen(spy_log);
    const int idx = ev == &slot[0].ready || ev == &slot[0].free ? 0 : 1;
    const bool is_ready = ev == &slot[idx].ready;
    (void)snprintf(spy_log + used, sizeof(spy_log) - used, "%s %s %s%d; ", s->name, verb,
                   is_ready ? "ready" : "free", idx);
}

static tess_status spy_record(tess_stream *s, tess_event *ev)
{
    spy_note("records", s, ev);
    return TESS_OK;
}

static tess_status spy_wait(tess_stream *s, const tess_event *ev)
{
    spy_note("waits", s, ev);
    return TESS_OK;
}

static const tess_stream_ops spy_ops = {.record = spy_record, .wait = spy_wait};

static void test_gemm_with_a_lane_takes_slots_in_turn(void **state)
{
    (void)state;
    spec s = spec_of(TESS_GEMM_NT, TESS_BF16, 11, 24, 64);
    s.term_numel = 2;
    s.k[1] = 16;
    s.codec[0] = nf4(64, true);
    s.codec[1] = plain(TESS_BF16);
    s.is_adjacent = true;
    problem *p = problem_create(&s);
    tess_stream compute = {.ops = &spy_ops, .name = "compute"};
    tess_stream lane_stream = {.ops = &spy_ops, .name = "lane"};
    tess_dequant_lane lane = {.stream = &lane_stream};
    void *work = NULL, *got = zeroed((int64_t)p->c->nbytes, 1);
    for (int i = 0; i < 2; i++) {
        lane.slot[i].nbytes = 24 * 80 * 2;
        lane.slot[i].ready.stream = lane.slot[i].free.stream = &compute;
        must(tess_emulation_alloc("slot", lane.slot[i].nbytes, &lane.slot[i].data));
    }
    const size_t work_nbytes = tess_cuda_gemm_work_nbytes(&p->device, 1);
    must(tess_emulation_alloc("work", work_nbytes, &work));
    p->device.work = (tess_view){work, (int64_t)work_nbytes, TESS_U8_OPAQUE, TESS_DEVICE};
    library.lane = &lane;
    spy_log[0] = '\0';
    must(tess_cuda_gemm(&p->device, &compute));
    must(tess_cuda_gemm(&p->device, &compute));
    assert_string_equal(spy_log, "lane waits free0; lane records ready0; compute waits ready0; "
                                 "compute records free0; lane waits free1; lane records ready1; "
                                 "compute waits ready1; compute records free1; ");
    must(tess_emulation_read(got, p->c->device, p->c->nbytes));
    check_bound(p, got);
    /* too small: on the stream itself */
    lane.slot[0].nbytes--;
    spy_log[0] = '\0';
    must(tess_cuda_gemm(&p->device, &compute));
    assert_string_equal(spy_log, "");
    tess_free(got);
    problem_destroy(p);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define SHARED_CASE(name) CASE(name),

int main(void)
{
    const struct CMUnitTest tests[] = {
        /* clang-format off */
        GEMM_CASE_LIST(SHARED_CASE)
        /* clang-format on */
        CASE(test_gemm_many_rows_apart_are_planned_in_chunks),
        CASE(test_gemm_planned_products_are_those_that_run),
        CASE(test_blas_late_product_runs_and_is_counted),
        CASE(test_blas_weight_gradient_alone_may_split),
        CASE(test_gemm_small_work_is_refused),
        CASE(test_gemm_with_a_lane_takes_slots_in_turn),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
