/* Updates of optimizers give the same bits on every instruction path and number of threads; what
 * they compute is compared with the peers in tests/shard/test_optimizers_mpi.c. */
#include "kernels/nf4.h"
#include "kernels/optimizers.h"
#include "tests/kernels/op_support.h"

enum { BUFFER_MAX = 6 };

/* A part of a tensor with state of any kind: state[0] .. in the order of each call below. */
typedef struct problem {
    op_buffer master, grad, param, state[BUFFER_MAX];
    tess_prodigy_sums *sums;
    int64_t numel;
} problem;

static problem problem_create(tess_dtype dt, int64_t numel, int state_numel)
{
    problem p = {.master = buffer_random(TESS_F32, numel, 61, 0.5),
                 .grad = buffer_random(TESS_F32, numel, 62, 1.0),
                 .param = buffer_create(dt, numel, true),
                 .numel = numel};
    for (int i = 0; i < state_numel; i++)
        p.state[i] = buffer_random(TESS_F32, numel, 63 + (uint64_t)i, 0.1);
    return p;
}

static void problem_destroy(problem *p)
{
    op_buffer *all[] = {&p->master, &p->grad, &p->param};
    for (int i = 0; i < TESS_NELEM(all); i++)
        buffer_destroy(all[i]);
    for (int i = 0; i < BUFFER_MAX; i++)
        buffer_destroy(&p->state[i]);
}

static tess_update_part part_of(const problem *p)
{
    return (tess_update_part){.master = p->master.view.data,
                              .grad = p->grad.view.data,
                              .param = p->param.view,
                              .numel = p->numel,
                              .clip_factor = 0.7f};
}

static void make_squares(op_buffer *b)
{
    for (int64_t i = 0; i < b->view.numel; i++)
        buffer_set(b, i, (float)fabs(b->value[i]));
    buffer_read(b);
}

/* ---- calls ---- */

static tess_lion_args lion_args(const problem *p)
{
    return (tess_lion_args){.part = part_of(p),
                            .exp_avg = p->state[0].view.data,
                            .learning_rate = 1e-2,
                            .beta1 = 0.9,
                            .beta2 = 0.99,
                            .weight_decay = 0.1};
}

static tess_status lion_call(void *ctx, tess_stream *s)
{
    const tess_lion_args a = lion_args(ctx);
    return tess_cpu_lion(&a, s);
}

static tess_schedule_free_args schedule_free_args(const problem *p)
{
    return (tess_schedule_free_args){.part = part_of(p),
                                     .z = p->state[0].view.data,
                                     .exp_avg_sq = p->state[1].view.data,
                                     .learning_rate = 1e-2,
                                     .beta2 = 0.999,
                                     .eps = 1e-8,
                                     .weight_decay = 0.1,
                                     .blend = 0.1,
                                     .average = 0.5,
                                     .step = 3};
}

static tess_status schedule_free_call(void *ctx, tess_stream *s)
{
    const tess_schedule_free_args a = schedule_free_args(ctx);
    return tess_cpu_schedule_free(&a, s);
}

/* Codes are the bytes of the random numbers. */
static tess_adamw_8bit_args adamw_8bit_args(const problem *p)
{
    return (tess_adamw_8bit_args){.part = part_of(p),
                                  .exp_avg = p->state[0].view.data,
                                  .exp_avg_sq = p->state[1].view.data,
                                  .exp_avg_absmax = p->state[2].view.data,
                                  .exp_avg_sq_absmax = p->state[3].view.data,
                                  .learning_rate = 1e-2,
                                  .beta1 = 0.9,
                                  .beta2 = 0.999,
                                  .eps = 1e-8,
                                  .weight_decay = 0.1,
                                  .step = 3};
}

static tess_status adamw_8bit_call(void *ctx, tess_stream *s)
{
    const tess_adamw_8bit_args a = adamw_8bit_args(ctx);
    return tess_cpu_adamw_8bit(&a, s);
}

static tess_status blend_call(void *ctx, tess_stream *s)
{
    const problem *p = ctx;
    const tess_blend_args a = {
        .a = p->master.view.data, .b = p->grad.view.data, .dst = p->param.view, .weight = 0.25};
    return tess_cpu_blend(&a, s);
}

/* Both passes; the sums of every run are the first one's. */
static tess_status prodigy_call(void *ctx, tess_stream *s)
{
    problem *p = ctx;
    tess_prodigy_sums sums = {0};
    const tess_prodigy_measure_args measure = {.part = part_of(p),
                                               .start = p->state[3].view.data,
                                               .exp_avg = p->state[0].view.data,
                                               .exp_avg_sq = p->state[1].view.data,
                                               .s = p->state[2].view.data,
                                               .sums = &sums,
                                               .beta1 = 0.9,
                                               .beta2 = 0.999,
                                               .beta3 = 0.99,
                                               .d = 0.125,
                                               .s_rate = 0.5};
    const tess_prodigy_apply_args apply = {.part = part_of(p),
                                           .exp_avg = p->state[0].view.data,
                                           .exp_avg_sq = p->state[1].view.data,
                                           .rate = 1e-2,
                                           .decay = 1e-3,
                                           .eps = 1e-9};
    TESS_TRY(tess_cpu_prodigy_measure(&measure, s));
    TESS_CHECK(sums.nonfinite_numel == 0, TESS_E_STATE, "sums are not finite");
    if (p->sums->nonfinite_numel < 0)
        *p->sums = sums;
    TESS_CHECK(memcmp(p->sums, &sums, sizeof sums) == 0, TESS_E_STATE, "other sums");
    return tess_cpu_prodigy_apply(&apply, s);
}

static void ignore(void *ctx) { (void)ctx; }

static void run_op(tess_status (*call)(void *, tess_stream *), int state_numel, int output_numel)
{
    static const int64_t sizes[] = {1, 255, 256, 257, 1000, 150001};
    for (int i = 0; i < 2 * TESS_NELEM(sizes); i++) {
        tess_prodigy_sums sums = {.nonfinite_numel = -1};
        problem p = problem_create(i % 2 ? TESS_BF16 : TESS_F32, sizes[i / 2], state_numel);
        p.sums = &sums;
        for (int k = 1; k < state_numel; k++)
            make_squares(&p.state[k]);
        op_run run = {.call = call, .ctx = &p, .outputs = {&p.master, &p.param}, .output_numel = 2};
        for (int k = 0; k < output_numel; k++)
            run.outputs[run.output_numel++] = &p.state[k];
        run_everywhere(&run, ignore);
        problem_destroy(&p);
    }
}

static void test_paths_and_threads_give_the_same_bits(void **state)
{
    (void)state;
    run_op(lion_call, 1, 1);
    run_op(schedule_free_call, 2, 2);
    run_op(adamw_8bit_call, 4, 4);
    run_op(blend_call, 0, 0);
    run_op(prodigy_call, 4, 3);
}

/* ---- 8 bits, by hand (bitsandbytes' worked example) ---- */

static void test_adamw_8bit_first_step(void **state)
{
    (void)state;
    float master[2] = {1.0f, 1.0f}, most[2] = {0};
    const float grad[2] = {0.5f, 0.0f};
    uint8_t codes[2] = {0}, codes_sq[2] = {0};
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    const tess_adamw_8bit_args a = {
        .part = {.master = master, .grad = grad, .numel = 1, .clip_factor = 1.0f},
        .exp_avg = codes,
        .exp_avg_sq = codes_sq,
        .exp_avg_absmax = &most[0],
        .exp_avg_sq_absmax = &most[1],
        .learning_rate = 1e-3,
        .beta1 = 0.9,
        .beta2 = 0.999,
        .eps = 1e-8,
        .step = 1};
    assert_int_equal(tess_cpu_adamw_8bit(&a, &s), TESS_OK);
    assert_int_equal(codes[0], 255);
    assert_int_equal(codes_sq[0], 255);
    assert_true(fabs((double)most[0] - 0.05) < 4 * F32_U * 0.05);
    assert_true(fabs((double)most[1] - 0.00025) < 4 * F32_U * 0.00025);
    assert_true(fabs((double)master[0] - 0.999) < 4 * F32_U);
    tess_adamw_8bit_args zero = a; /* a block without gradients: codes of zero, nothing moves */
    zero.part.master = &master[1];
    zero.part.grad = &grad[1];
    codes[0] = codes_sq[0] = 9;
    most[0] = most[1] = 0.0f;
    assert_int_equal(tess_cpu_adamw_8bit(&zero, &s), TESS_OK);
    assert_int_equal(codes[0], 127);
    assert_int_equal(codes_sq[0], 0);
    assert_true(most[0] == 0.0f && most[1] == 0.0f && master[1] == 1.0f);
}

/* Every map is ascending, and its crc that of the package's. */
static void test_unsigned_map(void **state)
{
    (void)state;
    const float *map = tess_dynamic_map_unsigned();
    for (int i = 1; i < 256; i++)
        assert_true(map[i] > map[i - 1]);
    assert_true(map[0] == 0.0f && map[127] == 0.103515625f && map[255] == 1.0f);
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < 256 * sizeof *map; i++) {
        crc ^= ((const uint8_t *)map)[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ 0xedb88320u : crc >> 1;
    }
    assert_int_equal(~crc, 0xe871278fu);
}

/* ---- refusals ---- */

static void test_wrong_arguments_are_refused(void **state)
{
    (void)state;
    problem p = problem_create(TESS_F32, 4, 4);
    tess_lion_args lion = lion_args(&p);
    lion.beta2 = 1.0;
    assert_refused(tess_lion_check(&lion), TESS_E_RANGE, "lion: beta2 is 1");
    lion = lion_args(&p);
    lion.part.param.numel = 3;
    assert_refused(tess_lion_check(&lion), TESS_E_ARG, "lion: param holds 3 elements, expected 4");
    tess_adamw_8bit_args eight = adamw_8bit_args(&p);
    eight.step = 0;
    assert_refused(tess_adamw_8bit_check(&eight), TESS_E_ARG, "adamw-8bit: step is 0");
    eight = adamw_8bit_args(&p);
    eight.exp_avg_absmax = NULL;
    assert_refused(tess_adamw_8bit_check(&eight), TESS_E_ARG, "exp_avg_absmax is missing");
    tess_schedule_free_args free_of = schedule_free_args(&p);
    free_of.average = 1.5;
    assert_refused(tess_schedule_free_check(&free_of), TESS_E_RANGE,
                   "schedule-free: average is 1.5");
    const tess_blend_args blend = {.dst = p.param.view, .weight = 0.5};
    assert_refused(tess_blend_check(&blend), TESS_E_ARG, "blend: a is missing");
    problem_destroy(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_paths_and_threads_give_the_same_bits),
        cmocka_unit_test(test_adamw_8bit_first_step),
        cmocka_unit_test(test_unsigned_map),
        cmocka_unit_test(test_wrong_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
