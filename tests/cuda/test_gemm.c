/*
 * Matrix products on a device: the cases of emulation.test_gemm through the library's own
 * algorithms. Every product is announced first, and what runs is what was announced: the plan does
 * not grow. A second run has the same bits, and so has one on a stream that knows its algorithms
 * from the first stream's plan alone, as other ranks do from rank 0's.
 */
#include <inttypes.h>

#include "tests/cuda/on_device.h"

enum { PLANNED, AGAIN, IMPORTED, RUN_NUMEL };

#include "tests/emulation/gemm_cases.h"

static const tess_kernels *kernels;
static tess_stream *stream, *other; /* which plans, and which imports */

static void hand_over(void)
{
    void *plan = NULL;
    const size_t nbytes = kernels->choices_nbytes(stream);
    must(tess_alloc(nbytes, &plan));
    must(kernels->choices_export(stream, plan));
    must(kernels->choices_import(other, plan, nbytes));
    tess_free(plan);
}

static void work_take(problem *p)
{
    const size_t nbytes = kernels->gemm_work_nbytes(&p->device, 1);
    void *work = NULL;
    must(tess_emulation_alloc("work", nbytes, &work));
    p->device.work = (tess_view){work, (int64_t)nbytes, TESS_U8_OPAQUE, TESS_DEVICE};
}

static void run_device(problem *p, int run_idx)
{
    tess_stream *s = run_idx == IMPORTED ? other : stream;
    const tess_emulation_settings settings = {
        .order = run_idx == PLANNED ? TESS_EMULATION_FORWARD : TESS_EMULATION_REVERSED};
    tess_emulation_set(&settings);
    if (run_idx == PLANNED)
        work_take(p);
    if (run_idx == PLANNED)
        must(kernels->gemm_prepare(&p->device, s));
    if (run_idx == IMPORTED)
        hand_over();
    const size_t planned_nbytes = kernels->choices_nbytes(s);
    must(kernels->gemm(&p->device, s));
    must(tess_stream_finish(s));
    must(on_device_check("gemm"));
    if (kernels->choices_nbytes(s) != planned_nbytes)
        fail_msg("a product that ran had not been planned: kind %d %s [%d, %d] over %d and more",
                 (int)p->s.kind, tess_dtype_name(p->s.dt), (int)p->s.m, (int)p->s.n,
                 (int)p->s.k[0]);
}

static void release_device(void) { tess_emulation_release_all(); }

static int group_setup(void **state)
{
    if (tess_emulation_setup(state) != 0)
        return -1;
    kernels = tess_emulation_sizes();
    return 0;
}

/* Plans have room for the products of one model: each group of cases has its own. */
static int setup(void **state)
{
    (void)state;
    random_state = 1;
    must(tess_device_stream_create(on_device_door()->device, "compute", false, &stream));
    must(tess_device_stream_create(on_device_door()->device, "compute", false, &other));
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    tess_device_stream_destroy(on_device_door()->device, &stream);
    tess_device_stream_destroy(on_device_door()->device, &other);
    return 0;
}

/* An adapter beside a stored matrix, a weight gradient, a bias: the products of a step. */
enum { STEP_NUMEL = 3, STEPS = 20 };

static void step_make(problem *p[STEP_NUMEL])
{
    spec s = joined_spec(TESS_GEMM_NT, TESS_BF16, "nf4/64");
    s.m = 128;
    p[0] = problem_create(&s);
    s = spec_of(TESS_GEMM_TN, TESS_BF16, 16, 256, 128);
    s.c_dt = TESS_F32;
    p[1] = problem_create(&s);
    s = spec_of(TESS_GEMM_NN, TESS_F32, 100, 64, 72);
    s.has_bias = true;
    p[2] = problem_create(&s);
    for (int i = 0; i < STEP_NUMEL; i++) {
        work_take(p[i]);
        must(kernels->gemm_prepare(&p[i]->device, stream));
    }
}

/* The program refuses memory while it is frozen. */
static void run_steps(void *arg)
{
    problem *const *p = arg;
    tess_status st = TESS_OK;
    tess_alloc_freeze();
    for (int i = 0; i < STEPS * STEP_NUMEL && st == TESS_OK; i++)
        st = kernels->gemm(&p[i % STEP_NUMEL]->device, stream);
    tess_alloc_thaw();
    must(st);
    must(tess_stream_finish(stream));
}

static void test_gemm_planned_products_take_no_memory(void **state)
{
    (void)state;
    problem *p[STEP_NUMEL];
    step_make(p);
    run_steps(p); /* code is loaded when it first runs */
    const int64_t taken = on_device_taken_by(run_steps, p);
    if (taken != 0)
        fail_msg("%d steps of planned products took %" PRId64 " bytes of the device", STEPS, taken);
    for (int i = 0; i < STEP_NUMEL; i++)
        problem_destroy(p[i]);
    release_device();
}

/* One matrix whose codes are replaced while products run: codes of either problem, in turn, come by
 * a stream of their own into the place that the product reads. */
enum { ARRIVAL_NUMEL = 8, ARRIVING = 2 };

typedef struct arrival {
    problem *p[ARRIVING];                       /* of one shape; the first has the place */
    void *codes[ARRIVING][TESS_CODEC_PART_MAX]; /* pinned */
    tess_codec_part part[TESS_CODEC_PART_MAX];
    int part_numel;
    char *result; /* pinned, [ARRIVAL_NUMEL, C] */
    tess_stream *copying;
    tess_event arrived, used;
} arrival;

static void *pinned_take(size_t nbytes)
{
    void *memory = NULL;
    must(
        on_device_door()->device->ops->alloc(on_device_door()->device, TESS_HOST, nbytes, &memory));
    return memory;
}

static void arrival_make(arrival *x)
{
    spec s = spec_of(TESS_GEMM_NT, TESS_BF16, 64, 1024, 2048);
    s.codec[0] = nf4(64, true);
    must(tess_codec_parts(&s.codec[0], s.n * s.k[0], x->part, &x->part_numel));
    for (int i = 0; i < ARRIVING; i++) {
        x->p[i] = problem_create(&s);
        for (int k = 0; k < x->part_numel; k++) {
            x->codes[i][k] = pinned_take(x->part[k].nbytes);
            memcpy(x->codes[i][k], x->p[i]->host.term[0].b.part[k], x->part[k].nbytes);
        }
        work_take(x->p[i]);
    }
    x->p[1]->device.term[0].a = x->p[0]->device.term[0].a; /* the same rows for both matrices */
    x->result = pinned_take(ARRIVAL_NUMEL * x->p[0]->c->nbytes);
}

static void arrival_free(arrival *x)
{
    tess_device *d = on_device_door()->device;
    for (int i = 0; i < ARRIVING; i++) {
        for (int k = 0; k < x->part_numel; k++)
            d->ops->release(d, TESS_HOST, x->codes[i][k], x->part[k].nbytes);
    }
    d->ops->release(d, TESS_HOST, x->result, ARRIVAL_NUMEL * x->p[0]->c->nbytes);
    for (int i = 0; i < ARRIVING; i++)
        problem_destroy(x->p[i]);
}

/* The compute stream waits for codes, and what dequantizes ahead of it waits with it. */
static void arrive(arrival *x, int idx, tess_stream *compute)
{
    tess_device *d = on_device_door()->device;
    problem *p = x->p[0];
    must(tess_stream_wait(x->copying, &x->used));
    for (int k = 0; k < x->part_numel; k++) {
        tess_view place = {NULL, (int64_t)x->part[k].nbytes, TESS_U8, TESS_DEVICE};
        memcpy(&place.data, &p->device.term[0].b.part[k], sizeof place.data);
        must(tess_device_copy(d, place,
                              tess_view_host(x->codes[idx % ARRIVING][k], place.numel, TESS_U8),
                              x->copying));
    }
    must(tess_event_record(&x->arrived, x->copying));
    must(tess_stream_wait(compute, &x->arrived));
    must(kernels->gemm(&p->device, compute));
    must(tess_event_record(&x->used, compute));
    const size_t nbytes = p->c->nbytes;
    must(tess_device_copy(
        d, tess_view_host(x->result + (size_t)idx * nbytes, (int64_t)nbytes, TESS_U8),
        (tess_view){p->c->device, (int64_t)nbytes, TESS_U8, TESS_DEVICE}, compute));
}

static void test_gemm_dequantized_ahead_waits_for_its_codes(void **state)
{
    (void)state;
    const tess_cuda_door *door = on_device_door();
    const tess_cuda_work work = {.attention = {{.dt = TESS_F32,
                                                .token_numel = 1,
                                                .head_numel = 1,
                                                .kv_head_numel = 1,
                                                .dim = 8,
                                                .longest_numel = 1}},
                                 .attention_numel = 1,
                                 .document_max = 1,
                                 .slot_nbytes = 1024 * 2048 * 2};
    char note[TESS_CUDA_NOTE_NBYTES];
    arrival x = {.part_numel = 0};
    void *want[ARRIVING];
    arrival_make(&x);
    for (int i = 0; i < ARRIVING; i++) { /* on a stream without a lane */
        want[i] = zeroed((int64_t)x.p[i]->c->nbytes, 1);
        must(kernels->gemm(&x.p[i]->device, stream));
        must(tess_stream_finish(stream));
        must(tess_emulation_read(want[i], x.p[i]->c->device, x.p[i]->c->nbytes));
    }
    must(door->plugin->prepare(door->device, other, &work, note));
    must(tess_device_stream_create(door->device, "gather", true, &x.copying));
    must(tess_event_init(&x.arrived, x.copying));
    must(tess_event_init(&x.used, other));
    for (int i = 0; i < ARRIVAL_NUMEL; i++)
        arrive(&x, i, other);
    must(tess_stream_finish(other));
    must(on_device_check("gemm"));
    for (int i = 0; i < ARRIVAL_NUMEL; i++)
        if (memcmp(want[i % ARRIVING], x.result + (size_t)i * x.p[0]->c->nbytes,
                   x.p[0]->c->nbytes) != 0)
            fail_msg("product %d of %d did not have the codes that arrived for it", i,
                     ARRIVAL_NUMEL);
    tess_event_fini(&x.arrived, x.copying);
    tess_event_fini(&x.used, other);
    tess_device_stream_destroy(door->device, &x.copying);
    for (int i = 0; i < ARRIVING; i++)
        tess_free(want[i]);
    arrival_free(&x);
    release_device();
}

/* Weights that stay decoded give the bits of those that do not, the first time and later. */
static void test_gemm_kept_weights_have_the_same_bits(void **state)
{
    (void)state;
    const tess_cuda_door *door = on_device_door();
    tess_stream *keeping = NULL;
    char note[TESS_CUDA_NOTE_NBYTES];
    arrival x = {.part_numel = 0};
    arrival_make(&x);
    const tess_cuda_work work = {.attention = {{.dt = TESS_F32,
                                                .token_numel = 1,
                                                .head_numel = 1,
                                                .kv_head_numel = 1,
                                                .dim = 8,
                                                .longest_numel = 1}},
                                 .attention_numel = 1,
                                 .document_max = 1,
                                 /* the last has no room left, and goes through the slots */
                                 .kept_nbytes = (ARRIVING - 1) * 1024 * 2048 * 2,
                                 .slot_nbytes = 1024 * 2048 * 2};
    must(tess_device_stream_create(door->device, "compute", false, &keeping));
    must(door->plugin->prepare(door->device, keeping, &work, note));
    for (int turn = 0; turn < 3; turn++) {
        for (int i = 0; i < ARRIVING; i++) {
            problem *p = x.p[i];
            void *want = zeroed((int64_t)p->c->nbytes, 1), *got = zeroed((int64_t)p->c->nbytes, 1);
            must(kernels->gemm(&p->device, stream));
            must(tess_stream_finish(stream));
            must(tess_emulation_read(want, p->c->device, p->c->nbytes));
            must(kernels->gemm(&p->device, keeping));
            must(tess_stream_finish(keeping));
            must(tess_emulation_read(got, p->c->device, p->c->nbytes));
            assert_memory_equal(got, want, p->c->nbytes);
            tess_free(want);
            tess_free(got);
        }
    }
    must(on_device_check("gemm"));
    tess_device_stream_destroy(door->device, &keeping);
    arrival_free(&x);
    release_device();
}

/* A plan that was damaged on its way, or is another program's. */
static void test_gemm_damaged_plan_is_refused(void **state)
{
    (void)state;
    spec s = spec_of(TESS_GEMM_NT, TESS_BF16, 16, 24, 64);
    check(&s);
    void *plan = NULL;
    const size_t nbytes = kernels->choices_nbytes(stream);
    must(tess_alloc(nbytes, &plan));
    must(kernels->choices_export(stream, plan));
    ((uint8_t *)plan)[nbytes - 1] ^= 1;
    assert_int_equal(kernels->choices_import(other, plan, nbytes), TESS_E_FORMAT);
    assert_non_null(strstr(tess_error_message(), "they were damaged on the way"));
    tess_error_clear();
    assert_int_equal(kernels->choices_import(other, plan, nbytes - 1), TESS_E_FORMAT);
    tess_error_clear();
    tess_free(plan);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define SHARED_CASE(name) CASE(name),

int main(void)
{
    const struct CMUnitTest tests[] = {
        /* clang-format off */
        GEMM_CASE_LIST(SHARED_CASE)
        /* clang-format on */
        CASE(test_gemm_planned_products_take_no_memory),
        CASE(test_gemm_dequantized_ahead_waits_for_its_codes),
        CASE(test_gemm_kept_weights_have_the_same_bits),
        CASE(test_gemm_damaged_plan_is_refused),
    };
    return cmocka_run_group_tests(tests, group_setup, NULL);
}
