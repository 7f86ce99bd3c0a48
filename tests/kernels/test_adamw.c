#include "tests/kernels/op_support.h"

typedef struct problem {
    tess_adamw_args args;
    op_buffer master, m, v, grad, param;
    double *master_ref, *m_ref, *v_ref;
} problem;

static problem problem_create(tess_dtype dt, int64_t numel)
{
    problem p = {.master = buffer_random(TESS_F32, numel, 61, 0.5),
                 .m = buffer_random(TESS_F32, numel, 62, 0.1),
                 .v = buffer_random(TESS_F32, numel, 63, 0.1),
                 .grad = buffer_random(TESS_F32, numel, 64, 1.0),
                 .param = buffer_create(dt, numel, true),
                 .master_ref = doubles(numel),
                 .m_ref = doubles(numel),
                 .v_ref = doubles(numel)};
    for (int64_t i = 0; i < numel; i++) /* second moments are not negative */
        buffer_set(&p.v, i, (float)fabs(p.v.value[i]));
    buffer_read(&p.v);
    memcpy(p.master_ref, p.master.value, (size_t)numel * sizeof(double));
    memcpy(p.m_ref, p.m.value, (size_t)numel * sizeof(double));
    memcpy(p.v_ref, p.v.value, (size_t)numel * sizeof(double));
    p.args = (tess_adamw_args){p.master.view.data,
                               p.m.view.data,
                               p.v.view.data,
                               p.grad.view.data,
                               p.param.view,
                               numel,
                               0.7f,
                               1e-2,
                               0.9,
                               0.999,
                               1e-8,
                               0.05,
                               7};
    return p;
}

static void problem_destroy(problem *p)
{
    op_buffer *buffers[] = {&p->master, &p->m, &p->v, &p->grad, &p->param};
    for (int i = 0; i < TESS_NELEM(buffers); i++)
        buffer_destroy(buffers[i]);
    tess_free(p->master_ref);
    tess_free(p->m_ref);
    tess_free(p->v_ref);
}

static tess_status call(void *ctx, tess_stream *s)
{
    return tess_cpu_adamw(&((problem *)ctx)->args, s);
}

/*
 * m and v: three products and a sum, each with a rounded factor: 8 u32 of the larger term. The
 * update is a quotient of values with such errors: the root halves v's; cancellation in m is
 * bounded by its terms T_m = |m| + |g|: lr / bias1 * 12 u32 * T_m / (sqrt(v / bias2)).
 */
static void check(void *ctx)
{
    problem *p = ctx;
    const int64_t numel = p->args.numel;
    const double g = largest(p->grad.value, numel);
    assert_close("exp_avg", &p->m, p->m_ref, 8.0 * F32_U * (largest(p->m_ref, numel) + g), 0.0);
    assert_close("exp_avg_sq", &p->v, p->v_ref, 1e-45, 10.0 * F32_U);
    const double bias1 = 1.0 - pow(0.9, 7.0), bias2 = 1.0 - pow(0.999, 7.0);
    const double terms = largest(p->m_ref, numel) + g;
    for (int64_t i = 0; i < numel; i++) {
        const double update = 1e-2 / bias1 * terms / (sqrt(p->v_ref[i] / bias2) + 1e-8);
        const double bound = 3.0 * F32_U * fabs(p->master_ref[i]) + 16.0 * F32_U * update;
        assert_true(fabs(p->master.value[i] - p->master_ref[i]) <= bound);
        const float rounded = (float)p->master.value[i];
        if (p->param.view.dt == TESS_BF16)
            assert_int_equal(((const uint16_t *)p->param.view.data)[i],
                             tess_bf16_from_f32(rounded));
        else
            assert_true(((const float *)p->param.view.data)[i] == rounded);
    }
}

static void test_adamw_matches_reference(void **state)
{
    (void)state;
    static const int64_t sizes[] = {0, 1, 15, 64, 1000, 20001};
    const ref_adamw_args ref = {1e-2, 0.9, 0.999, 1e-8, 0.05, (double)0.7f, 7};
    for (int i = 0; i < 2 * TESS_NELEM(sizes); i++) {
        problem p = problem_create(i % 2 ? TESS_BF16 : TESS_F32, sizes[i / 2]);
        ref_adamw(&ref, sizes[i / 2], p.grad.value, p.master_ref, p.m_ref, p.v_ref);
        const op_run run = {.call = call,
                            .ctx = &p,
                            .outputs = {&p.master, &p.m, &p.v, &p.param},
                            .output_numel = 4};
        run_everywhere(&run, check);
        problem_destroy(&p);
    }
}

/* First step from zero moments: m_hat = g and v_hat = g^2, so the update is lr * sign(g). */
static void test_adamw_first_step_is_the_learning_rate(void **state)
{
    (void)state;
    float master[3] = {1.0f, 1.0f, 1.0f}, m[3] = {0}, v[3] = {0};
    const float grad[3] = {0.5f, -2.0f, 0.0f};
    const tess_adamw_args a = {.master = master,
                               .exp_avg = m,
                               .exp_avg_sq = v,
                               .grad = grad,
                               .numel = 3,
                               .clip_factor = 1.0f,
                               .learning_rate = 0.125,
                               .beta1 = 0.9,
                               .beta2 = 0.999,
                               .eps = 0.0,
                               .step = 1};
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    tess_adamw_args with_eps = a;
    with_eps.eps = 1e-12;
    assert_int_equal(tess_cpu_adamw(&with_eps, &s), TESS_OK);
    assert_true(fabs((double)master[0] - 0.875) < 8 * F32_U);
    assert_true(fabs((double)master[1] - 1.125) < 8 * F32_U);
    assert_true(master[2] == 1.0f);
}

static void test_adamw_wrong_arguments_are_refused(void **state)
{
    (void)state;
    problem p = problem_create(TESS_F32, 4);
    tess_adamw_args a = p.args;
    a.step = 0;
    assert_refused(tess_adamw_check(&a), TESS_E_ARG, "step is 0, expected at least 1");
    a = p.args;
    a.beta2 = 1.0;
    assert_refused(tess_adamw_check(&a), TESS_E_RANGE, "beta2 is 1");
    a = p.args;
    a.param.numel = 3;
    assert_refused(tess_adamw_check(&a), TESS_E_ARG, "param holds 3 elements, expected 4");
    problem_destroy(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adamw_matches_reference),
        cmocka_unit_test(test_adamw_first_step_is_the_learning_rate),
        cmocka_unit_test(test_adamw_wrong_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
