/* What plans know of optimizers on devices: who has the kernels, and memory of the host. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "core/exact.h"
#include "core/memory.h"
#include "kernels/cuda_work.h"
#include "shard/plan.h"

static void expect_ok(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s: %s", tess_status_name(st), tess_error_message());
}

/* Without one of its ops an optimizer is refused by name, and no other is. */
static void check_lacking(const tess_kernels *lacking, const char *name)
{
    for (int i = 0; i < TESS_OPTIMIZER_NUMEL; i++) {
        const tess_optimizer *o = tess_optimizer_get((tess_optimizer_kind)i);
        char text[160];
        const tess_status st = tess_optimizer_check(o, lacking);
        snprintf(text, sizeof text,
                 "train.optimizer: %s has no kernels on other; choose another one or set "
                 "compute.device to cpu",
                 o->name);
        if (strncmp(o->name, name, strlen(name)) == 0) {
            assert_int_equal(st, TESS_E_UNSUPPORTED);
            assert_string_equal(tess_error_message(), text);
        } else {
            expect_ok(st);
        }
        tess_error_clear();
    }
}

static void test_optimizers_without_kernels(void **state)
{
    (void)state;
#define X(op, optimizer)                                                                           \
    {                                                                                              \
        tess_kernels lacking = tess_kernels_cpu;                                                   \
        lacking.name = "other";                                                                    \
        lacking.op = NULL;                                                                         \
        check_lacking(&lacking, optimizer);                                                        \
    }
    X(lion, "lion")
    X(prodigy_measure, "prodigy")
    X(prodigy_apply, "prodigy")
    X(adafactor_most, "adafactor")
    X(adafactor_sum, "adafactor")
    X(adafactor_factor, "adafactor")
    X(adafactor_size, "adafactor")
    X(adafactor_apply, "adafactor")
    X(muon_momentum, "muon")
    X(muon_apply, "muon")
    X(scale, "muon")
#undef X
}

static void test_cuda_has_every_optimizer(void **state)
{
    (void)state;
    for (int i = 0; i < TESS_OPTIMIZER_NUMEL; i++)
        expect_ok(tess_optimizer_check(tess_optimizer_get((tess_optimizer_kind)i),
                                       tess_kernels_cuda_planned()));
}

/* One unit with a matrix to train and a frozen one. */
static void make_model(tess_registry *reg, int64_t rows, int64_t cols)
{
    int idx = 0;
    tess_param p = {.role = TESS_ROLE_TRAINABLE,
                    .shape_rank = 2,
                    .shape = {rows, cols},
                    .codec = {.format = TESS_FORMAT_F32},
                    .name = "matrix"};
    tess_stage stage = {.is_fused_loss = true, .name = "stage"};
    tess_registry_init(reg, TESS_F32);
    expect_ok(tess_registry_add_unit(reg, "unit", &idx));
    expect_ok(tess_registry_add_param(reg, &p, &idx));
    p.role = TESS_ROLE_FROZEN;
    snprintf(p.name, sizeof p.name, "frozen");
    expect_ok(tess_registry_add_param(reg, &p, &idx));
    expect_ok(tess_registry_add_stage(reg, &stage));
    expect_ok(tess_registry_lay_out(reg));
}

static void plan_nbytes(const tess_registry *reg, tess_optimizer_kind kind, bool is_device,
                        size_t *host, size_t *of_optimizer)
{
    tess_plan *plan = NULL;
    const tess_plan_options o = {.world = 3,
                                 .gather_group_numel = 1,
                                 .micro_batch_numel = 3,
                                 .load_nbytes = 1 << 20,
                                 .is_device = is_device,
                                 .optimizer = tess_optimizer_get(kind)};
    expect_ok(tess_plan_create(reg, &o, &plan));
    *host = plan->host_nbytes;
    *of_optimizer = plan->optimizer_host_nbytes;
    tess_plan_destroy(&plan);
}

/* What goes through the exchanges of an update lies in memory of a device's host: numbers of lines,
 * at most 1 MiB at a time, or two exact sums a tensor, whichever is more. */
static void check_host_memory(int64_t rows, int64_t cols, size_t want)
{
    tess_registry reg;
    size_t plain = 0, host = 0, of_optimizer = 0;
    make_model(&reg, rows, cols);
    plan_nbytes(&reg, TESS_OPTIMIZER_LION, true, &plain, &of_optimizer);
    assert_int_equal(of_optimizer, 0);
    plan_nbytes(&reg, TESS_OPTIMIZER_ADAFACTOR, true, &host, &of_optimizer);
    assert_int_equal(of_optimizer, want);
    assert_int_equal(host, plain + want);
    plan_nbytes(&reg, TESS_OPTIMIZER_ADAFACTOR, false, &host, &of_optimizer);
    assert_int_equal(of_optimizer, 0);
    assert_int_equal(host, 0);
    tess_registry_fini(&reg);
}

static void test_host_memory_of_optimizers(void **state)
{
    (void)state;
    check_host_memory(8, 12, 2 * 2 * sizeof(tess_exact)); /* 20 lines in a block of 256 */
    check_host_memory(500, 300, 1024 * sizeof(int64_t));
    check_host_memory(200000, 2, 1 << 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_optimizers_without_kernels),
        cmocka_unit_test(test_cuda_has_every_optimizer),
        cmocka_unit_test(test_host_memory_of_optimizers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
