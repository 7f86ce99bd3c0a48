/*
 * Own attention kernels in the emulation, against the CPU twin and against fp64; bounds stand in
 * flash_problem.h.
 */
#include "kernels/cuda/flash_priv.h"
#include "tests/emulation/barriers.h"
#include "tests/emulation/emulation.h"
#include "tests/emulation/mma_probe.h"

enum { HAS_GAPS = 1 };

#include "tests/emulation/flash_cases.h"

static tess_flash_strides strides_of(const problem *p)
{
    return (tess_flash_strides){p->x[Q].stride,   p->x[K].stride,     p->x[V].stride,
                                p->x[OUT].stride, p->x[D_OUT].stride, p->x[D_Q].stride,
                                p->x[D_K].stride, p->x[D_V].stride};
}

static tess_status device_forward(problem *p)
{
    tess_stream s;
    const tess_view none = {0};
    const tess_attention_args a = forward_args(p, true, none);
    const tess_flash_strides strides = strides_of(p);
    tess_stream_init_inline(&s, "test", NULL);
    return p->c.gap > 0 ? tess_flash_forward_strided(&a, &strides, &s) : tess_flash_forward(&a, &s);
}

static tess_status device_backward(problem *p)
{
    tess_stream s;
    void *memory = NULL;
    const tess_attention_shape shape = shape_of(p);
    const size_t nbytes = tess_flash_work_nbytes(&shape);
    must(tess_emulation_alloc("work", nbytes, &memory));
    const tess_view work = {memory, (int64_t)nbytes, TESS_U8_OPAQUE, TESS_DEVICE};
    const tess_attention_backward_args a = backward_args(p, true, work);
    const tess_flash_strides strides = strides_of(p);
    tess_stream_init_inline(&s, "test", NULL);
    upload(p, OUT);
    upload(p, LSE);
    return p->c.gap > 0 ? tess_flash_backward_strided(&a, &strides, &s)
                        : tess_flash_backward(&a, &s);
}

static int shared_max_nbytes; /* 0: as on an A100 */

static void set_dropped(tess_emulation_order order, int dropped_barrier)
{
    const tess_emulation_settings settings = {order, 5, 0, shared_max_nbytes, dropped_barrier};
    tess_emulation_set(&settings);
}

/* The first order begins a case. */
static void set_order(tess_emulation_order order)
{
    if (order == TESS_EMULATION_FORWARD)
        (void)tess_tensor_faults_take();
    set_dropped(order, -1);
}

/* Tensor cores where they can be used, and nothing amiss that results would not show. */
static void after_case(const problem *p)
{
    const flash_case c = p->c;
    const bool is_aligned = (c.dim | c.gap | c.shift) % 8 == 0;
    const tess_tensor_faults faults = tess_tensor_faults_take();
    assert_int_equal(faults.mma_numel > 0, c.dt == TESS_BF16 && is_aligned);
    assert_int_equal(faults.misaligned, 0);
    assert_int_equal(faults.bank_conflicts, 0);
    assert_int_equal(faults.lost_copies, 0);
}

/* Blocks with 99 KiB of shared memory (sm_86, sm_89): what does not fit takes the plain kernels. */
static void test_flash_little_shared_memory_is_enough(void **state)
{
    (void)state;
    static const flash_case cases[] = {{TESS_BF16, 70, 2, 1, 128, 0, 1, 0, 0, 0},
                                       {TESS_BF16, 40, 1, 1, 256, 0, 1, 0, 0, 0}};
    shared_max_nbytes = 99 << 10;
    check_cases(cases, TESS_NELEM(cases));
    shared_max_nbytes = 0;
}

static void test_flash_wrong_arguments_are_refused(void **state)
{
    (void)state;
    problem p = problem_create((flash_case){TESS_BF16, 9, 2, 1, 264, 0, 1, 0, 0, 0});
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    set_order(TESS_EMULATION_FORWARD);
    device_create(&p);
    assert_refused(device_forward(&p), TESS_E_UNSUPPORTED, "head dim is 264");
    assert_refused(device_backward(&p), TESS_E_UNSUPPORTED, "head dim is 264");
    const tess_view none = {0};
    tess_attention_args a = forward_args(&p, true, none);
    a.k.numel--;
    assert_refused(tess_flash_forward(&a, &s), TESS_E_ARG, "k holds 2375 elements, expected 2376");
    problem_destroy(&p);
    p = problem_create((flash_case){TESS_BF16, 100, 2, 1, 16, 0, 1, 0, 0, 0});
    device_create(&p);
    const tess_view small = {p.x[D_Q].device, 64, TESS_U8_OPAQUE, TESS_DEVICE};
    const tess_attention_backward_args b = backward_args(&p, true, small);
    assert_refused(tess_flash_backward(&b, &s), TESS_E_ARG, "workspace of 64 bytes, expected 1024");
    a = forward_args(&p, true, none);
    a.shape.token_numel = 0;
    a.q.numel = a.k.numel = a.v.numel = a.out.numel = 0;
    must(tess_flash_forward(&a, &s));
    tess_emulation_release_all();
    problem_destroy(&p);
}

/* Leave out each barrier of the kernels in turn: some order of threads shows it. */
static void check_barriers(flash_case c)
{
    problem p = problem_create(c);
    uint8_t *keep[5] = {NULL};
    twin_run(&p, false);
    set_order(TESS_EMULATION_FORWARD);
    assert_true(is_same_run(&p, keep));
    for (int b = 0; b < tess_emulation_barrier_numel(); b++) {
        set_order(TESS_EMULATION_FORWARD);
        assert_true(is_same_run(&p, keep));
        const tess_emulation_barrier barrier = tess_emulation_barrier_get(b);
        if (barrier.pass_numel == 0)
            continue;
        set_dropped(TESS_EMULATION_FORWARD, b);
        bool is_seen = !is_same_run(&p, keep);
        set_dropped(TESS_EMULATION_REVERSED, b);
        is_seen = !is_same_run(&p, keep) || is_seen;
        if (!is_seen)
            fail_msg("nothing shows that %s at %s:%d is missing", barrier.kind, barrier.file,
                     barrier.line);
    }
    for (int o = 0; o < TESS_NELEM(keep); o++)
        tess_free(keep[o]);
    (void)tess_tensor_faults_take();
    tess_emulation_release_all();
    problem_destroy(&p);
}

static void test_flash_every_barrier_is_needed(void **state)
{
    (void)state;
    check_barriers((flash_case){TESS_BF16, 200, 1, 1, 64, 0, 1, 0, 0, 0});
    check_barriers((flash_case){TESS_F32, 70, 2, 1, 16, 0, 1, 0, 0, 0});
    check_barriers((flash_case){TESS_BF16, 400, 1, 1, 64, 0, 1, 0, 0, 200});
    check_barriers((flash_case){TESS_F32, 140, 1, 1, 16, 0, 1, 0, 0, 70});
    barriers_check_reach((const char *const[]){"flash_forward.cu", "flash_backward.cu",
                                               "flash_backward_plain_priv.cuh", NULL});
}

#define SHARED_CASE(name) cmocka_unit_test(name),

int main(void)
{
    const struct CMUnitTest tests[] = {
        /* clang-format off */
        FLASH_CASE_LIST(SHARED_CASE)
        /* clang-format on */
        cmocka_unit_test(test_flash_little_shared_memory_is_enough),
        cmocka_unit_test(test_flash_wrong_arguments_are_refused),
        cmocka_unit_test(test_flash_every_barrier_is_needed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
