/* Plans of units that are not like others: wider than the compute dtype, set by the trainer, held
 * by their owners. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "shard/plan.h"

static void expect_ok(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s: %s", tess_status_name(st), tess_error_message());
}

/* After the layout. */
static void expect_late(tess_status st)
{
    assert_int_equal(st, TESS_E_STATE);
    assert_non_null(strstr(tess_error_message(), "unit 'a'"));
    tess_error_clear();
}

/* 'a', 'b' and 'c' of 512, 1024 and 768 elements, a stage each. */
static void three_units(tess_registry *reg, tess_dtype dt)
{
    static const int64_t rows[] = {2, 4, 3};
    tess_registry_init(reg, dt);
    for (int u = 0; u < 3; u++) {
        int idx = 0;
        const char name[2] = {(char)('a' + u), '\0'};
        tess_param p = {.unit_idx = u,
                        .role = TESS_ROLE_TRAINABLE,
                        .shape_rank = 2,
                        .shape = {rows[u], 256},
                        .learning_rate_ratio = 1.0};
        memcpy(p.name, name, sizeof name);
        const tess_stage stage = {.unit_idx = u, .output_nbytes = u < 2 ? 64 : 0};
        expect_ok(tess_registry_add_unit(reg, name, &idx));
        expect_ok(tess_registry_add_param(reg, &p, &idx));
        expect_ok(tess_registry_add_stage(reg, &stage));
    }
}

/* The second in f32: its copies lie behind the others',
 * and everything that counts bytes counts four of each. */
static void test_widened_unit_is_f32_on_every_edge(void **state)
{
    (void)state;
    for (int is_full = 0; is_full < 2; is_full++) {
        const tess_plan_options o = {.world = 2,
                                     .gather_group_numel = 1,
                                     .reshard = TESS_ON,
                                     .checkpointing = TESS_OFF,
                                     .micro_batch_numel = 2,
                                     .is_full = is_full};
        tess_registry reg;
        tess_plan *plan = NULL;
        three_units(&reg, TESS_BF16);
        expect_ok(tess_registry_widen_unit(&reg, 1));
        expect_ok(tess_registry_lay_out(&reg));
        expect_late(tess_registry_widen_unit(&reg, 0));
        expect_ok(tess_plan_create(&reg, &o, &plan));
        const size_t copies = is_full ? 1 : 2; /* whole slabs on both ranks, or this rank's part */
        assert_int_equal(plan->unit[0].slab_shard_numel, 256);
        assert_int_equal(plan->unit[2].slab_shard_numel, 512);
        assert_int_equal(plan->unit[0].param_offset_nbytes, 0);
        assert_int_equal(plan->unit[2].param_offset_nbytes, copies * 256 * 2);
        assert_int_equal(plan->unit[1].param_offset_nbytes, copies * (256 + 512) * 2);
        assert_int_equal(plan->arena_nbytes[TESS_LIFE_PARAM], copies * ((256 + 512) * 2 + 512 * 4));
        assert_int_equal(plan->wire[plan->unit[0].slab_wire_idx].wire, TESS_BF16);
        assert_int_equal(plan->wire[plan->unit[1].slab_wire_idx].wire, TESS_F32);
        assert_int_equal(plan->slot_nbytes, is_full ? 2 * 512 * 4 : 0);
        const double received = 256.0 * 2 + 512.0 * 4 + 512.0 * 2;
        if (!is_full)
            assert_true(plan->slab_nbytes_per_step == received);
        else
            assert_true(plan->gather_nbytes_per_step >= received);
        tess_plan_destroy(&plan);
        tess_registry_fini(&reg);
    }
}

/* The trainer sets the first, and adds up the gradients
 * of the second. On two ranks shards of 256, 512 and 512; 4 micro-batches are 3 levels. Arrays of
 * the optimizer and the last level have no place for the first unit, levels below none for the
 * second either; masters and their average are of all. */
static void test_units_that_are_set_or_held_have_no_more_than_they_use(void **state)
{
    (void)state;
    for (int has_ema = 0; has_ema < 2; has_ema++) {
        const tess_plan_options o = {.world = 2,
                                     .gather_group_numel = 1,
                                     .reshard = TESS_ON,
                                     .checkpointing = TESS_OFF,
                                     .micro_batch_numel = 4,
                                     .has_ema = has_ema,
                                     .is_full = true};
        tess_registry reg;
        tess_plan *plan = NULL;
        three_units(&reg, TESS_F32);
        expect_ok(tess_registry_set_unit(&reg, 0));
        expect_ok(tess_registry_hold_unit(&reg, 1));
        expect_ok(tess_registry_lay_out(&reg));
        expect_late(tess_registry_hold_unit(&reg, 0));
        expect_ok(tess_plan_create(&reg, &o, &plan));
        assert_int_equal(plan->unit[2].state_first_idx, 0);
        assert_int_equal(plan->unit[1].state_first_idx, 512);
        assert_int_equal(plan->unit[0].state_first_idx, 512 + 512);
        assert_int_equal(plan->summed_numel, 512);
        assert_int_equal(plan->learning_numel, 512 + 512);
        assert_int_equal(plan->state_numel, 512 + 512 + 256);
        assert_int_equal(plan->arena_nbytes[TESS_LIFE_STATE],
                         4 * ((1 + has_ema) * (512 + 512 + 256) + 2 * (512 + 512)));
        int64_t levels = 0;
        for (int i = 0; i < plan->buffer_numel; i++)
            if (strcmp(plan->buffer[i].name, "sum levels") == 0)
                levels = plan->buffer[i].numel;
        assert_int_equal(levels, 2 * 512 + (512 + 512));
        for (int i = 0; i < plan->state_array_numel; i++) {
            const bool is_moment = i == 1 || i == 2;
            assert_int_equal(tess_plan_state_total(plan, 0, i), is_moment ? 0 : 512);
            assert_int_equal(tess_plan_state_total(plan, 1, i), 1024);
        }
        assert_int_equal(plan->unit[0].grad_wire_idx, -1);
        assert_int_equal(plan->unit[1].grad_wire_idx, -1);
        assert_int_equal(plan->unit[1].slab_wire_idx, -1);
        assert_true(plan->unit[0].slab_wire_idx >= 0 && plan->unit[2].grad_wire_idx >= 0);
        tess_plan_destroy(&plan);
        tess_registry_fini(&reg);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_widened_unit_is_f32_on_every_edge),
        cmocka_unit_test(test_units_that_are_set_or_held_have_no_more_than_they_use),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
