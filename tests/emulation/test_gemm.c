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

/* An adapter beside nf4 weights, forward or backward, `gap` columns behind its layer's. */
static problem *adapted_create(tess_gemm_kind kind, int64_t gap)
{
    spec s = spec_of(kind, TESS_BF16, 11, 24, 64);
    s.term_numel = 2;
    s.k[1] = 16;
    s.codec[0] = nf4(64, true);
    s.codec[1] = plain(TESS_BF16);
    s.is_adjacent = true;
    s.gap = gap;
    return problem_create(&s);
}

/* C of a product; the caller frees. */
static void *result_of(problem *p, void *work, size_t work_nbytes)
{
    tess_stream s;
    void *got = zeroed((int64_t)p->c->nbytes, 1);
    tess_stream_init_inline(&s, "compute", NULL);
    p->device.work = (tess_view){work, (int64_t)work_nbytes, TESS_U8_OPAQUE, TESS_DEVICE};
    must(tess_cuda_gemm(&p->device, &s));
    must(tess_emulation_read(got, p->c->device, p->c->nbytes));
    return got;
}

static void erase(const void *codes, size_t nbytes)
{
    void *zeros = zeroed((int64_t)nbytes, 1), *place = NULL;
    memcpy(&place, &codes, sizeof place);
    must(tess_emulation_write(place, zeros, nbytes));
    tess_free(zeros);
}

/* Weights are decoded by the first product alone, adapters come from every one. */
static void test_gemm_kept_weights_are_decoded_once(void **state)
{
    (void)state;
    static const tess_gemm_kind kind[] = {TESS_GEMM_NT, TESS_GEMM_NN};
    for (int i = 0; i < TESS_NELEM(kind); i++) {
        problem *p = adapted_create(kind[i], 16);
        const size_t work_nbytes = tess_cuda_gemm_work_nbytes(&p->device, 1);
        const size_t kept_nbytes = tess_cuda_gemm_kept_nbytes(&p->device);
        tess_kept kept;
        void *work = NULL, *memory = NULL;
        must(tess_emulation_alloc("work", work_nbytes, &work));
        must(tess_emulation_alloc("kept", kept_nbytes, &memory));
        must(tess_kept_init(&kept, memory, kept_nbytes));
        void *want = result_of(p, work, work_nbytes);
        library.kept = &kept;
        void *first = result_of(p, work, work_nbytes);
        assert_memory_equal(first, want, p->c->nbytes);
        check_bound(p, first);
        assert_int_equal(kept.place_numel, 1);

        erase(p->device.term[0].b.part[0], (size_t)(p->s.n * p->s.k[0]) / 2);
        void *second = result_of(p, work, work_nbytes);
        assert_memory_equal(second, want, p->c->nbytes);
        erase(p->device.term[1].b.part[0], (size_t)(p->s.n * p->s.k[1]) * 2);
        void *third = result_of(p, work, work_nbytes);
        assert_memory_not_equal(third, want, p->c->nbytes);
        assert_int_equal(kept.place_numel, 1);

        library.kept = NULL;
        tess_kept_fini(&kept);
        void *all[] = {want, first, second, third};
        for (int k = 0; k < TESS_NELEM(all); k++)
            tess_free(all[k]);
        problem_destroy(p);
    }
}

/* One matrix forward and backward, and another: places of their own, and none once memory is full.
 */
static void test_gemm_kept_weights_have_places_of_their_own(void **state)
{
    (void)state;
    problem *p[3] = {adapted_create(TESS_GEMM_NT, 0), adapted_create(TESS_GEMM_NN, 0),
                     adapted_create(TESS_GEMM_NT, 0)};
    size_t kept_nbytes = 0, work_nbytes = 0;
    void *work = NULL, *memory = NULL;
    tess_kept kept;
    for (int i = 0; i < 3; i++)
        work_nbytes = TESS_MAX(work_nbytes, tess_cuda_gemm_work_nbytes(&p[i]->device, 1));
    for (int i = 0; i < 2; i++)
        kept_nbytes += tess_cuda_gemm_kept_nbytes(&p[i]->device);
    must(tess_emulation_alloc("work", work_nbytes, &work));
    must(tess_emulation_alloc("kept", kept_nbytes, &memory));
    must(tess_kept_init(&kept, memory, kept_nbytes));
    for (int turn = 0; turn < 2; turn++) {
        for (int i = 0; i < 3; i++) {
            library.kept = NULL;
            void *want = result_of(p[i], work, work_nbytes);
            library.kept = &kept;
            void *got = result_of(p[i], work, work_nbytes);
            assert_memory_equal(got, want, p[i]->c->nbytes);
            tess_free(want);
            tess_free(got);
        }
        assert_int_equal(kept.place_numel, 2);
        assert_in_range(kept.used_nbytes, kept_nbytes / 2, kept_nbytes);
    }
    library.kept = NULL;
    tess_kept_fini(&kept);
    for (int i = 0; i < 3; i++)
        problem_destroy(p[i]);
}

/* A decoding that failed is done again. */
static void test_gemm_kept_weights_that_failed_to_decode_are_decoded_again(void **state)
{
    (void)state;
    problem *p = adapted_create(TESS_GEMM_NT, 0);
    const size_t work_nbytes = tess_cuda_gemm_work_nbytes(&p->device, 1);
    const size_t kept_nbytes = tess_cuda_gemm_kept_nbytes(&p->device);
    tess_stream s;
    tess_kept kept;
    void *work = NULL, *memory = NULL;
    must(tess_emulation_alloc("work", work_nbytes, &work));
    must(tess_emulation_alloc("kept", kept_nbytes, &memory));
    must(tess_kept_init(&kept, memory, kept_nbytes));
    void *want = result_of(p, work, work_nbytes);
    library.kept = &kept;
    const void *constants = p->device.term[0].b.part[1];
    p->device.term[0].b.part[1] = p; /* no memory of the device */
    tess_stream_init_inline(&s, "compute", NULL);
    assert_int_equal(tess_cuda_gemm(&p->device, &s), TESS_E_STATE);
    tess_error_clear();
    p->device.term[0].b.part[1] = constants;
    void *got = result_of(p, work, work_nbytes);
    assert_memory_equal(got, want, p->c->nbytes);
    library.kept = NULL;
    tess_kept_fini(&kept);
    tess_free(want);
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
        CASE(test_gemm_kept_weights_are_decoded_once),
        CASE(test_gemm_kept_weights_have_places_of_their_own),
        CASE(test_gemm_kept_weights_that_failed_to_decode_are_decoded_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
