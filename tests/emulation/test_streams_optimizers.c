/*
 * Optimizers that exchange something inside an update, on emulated devices: the host's bits in
 * every order of streams, kernels that touch their operands alone, and every wait that an update
 * holds by hand is needed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "emulation/emu_case.h"
#include "shard/runtime_priv.h"

enum { SEED_NUMEL = 14, VARIANT_NUMEL = 16, ORDER_NUMEL = 200 };

static const tess_optimizer_kind kinds[] = {TESS_OPTIMIZER_ADAFACTOR,
                                            TESS_OPTIMIZER_ADAFACTOR_MOMENTUM, TESS_OPTIMIZER_MUON};

static emu_case case_of(tess_optimizer_kind kind, int rank_numel, int variant)
{
    return (emu_case){.step_numel = 3,
                      .m = variant & 1 ? 5 : 2,
                      .group = variant & 2 ? rank_numel : 1,
                      .is_full = (variant & 4) != 0,
                      .is_tied = (variant & 8) != 0,
                      .between_numel = variant & 1 ? 0 : 3, /* more matrices than ranks, or fewer */
                      .optimizer = tess_optimizer_get(kind)};
}

static void check_report(const emu_case *c, const emu_options *o, const emu_report *r)
{
    if (r->status != TESS_OK || r->violation_numel != 0)
        fail_msg("%s, %d ranks, seed %llu, M %lld, full %d: status %s, %lld violations; %s %s",
                 c->optimizer->name, o->rank_numel, (unsigned long long)o->seed, (long long)c->m,
                 c->is_full, tess_status_name(r->status), (long long)r->violation_numel,
                 r->violation, r->error);
}

/* ---- orders ---- */

/* Distinct executed orders. */
typedef struct order_set {
    uint64_t hash[TESS_OPTIMIZER_NUMEL * VARIANT_NUMEL * SEED_NUMEL];
    int numel;
} order_set;

static void add_order(order_set *set, uint64_t hash)
{
    for (int i = 0; i < set->numel; i++)
        if (set->hash[i] == hash)
            return;
    set->hash[set->numel++] = hash;
}

static void check_case(const emu_case *c, int rank_numel, order_set *orders)
{
    emu_outcome want, got;
    assert_int_equal(emu_case_on_host(c, &want), TESS_OK);
    for (uint64_t seed = 0; seed < SEED_NUMEL; seed++) {
        emu_report report;
        const emu_options o = {.rank_numel = rank_numel, .seed = seed, .is_serial = seed % 3 == 2};
        emu_case_run(&o, c, &report, &got);
        check_report(c, &o, &report);
        if (memcmp(&want, &got, sizeof want) != 0)
            fail_msg("%s, %d ranks, seed %llu: loss %.17g, the host has %.17g", c->optimizer->name,
                     rank_numel, (unsigned long long)seed, got.loss[c->step_numel - 1],
                     want.loss[c->step_numel - 1]);
        add_order(orders, report.order_hash);
    }
}

static void check_ranks(int rank_numel)
{
    order_set orders = {.numel = 0};
    for (int k = 0; k < TESS_NELEM(kinds); k++)
        for (int variant = 0; variant < VARIANT_NUMEL; variant++) {
            const emu_case c = case_of(kinds[k], rank_numel, variant);
            check_case(&c, rank_numel, &orders);
        }
    print_message("%d ranks: %d distinct orders\n", rank_numel, orders.numel);
    assert_true(orders.numel >= ORDER_NUMEL);
}

static void test_one_rank(void **state)
{
    (void)state;
    check_ranks(1);
}

static void test_two_ranks(void **state)
{
    (void)state;
    check_ranks(2);
}

static void test_three_ranks(void **state)
{
    (void)state;
    check_ranks(3);
}

static void test_four_ranks(void **state)
{
    (void)state;
    check_ranks(4);
}

/* ---- operands ---- */

static void check_has_run(const emu_report *r, const emu_kernel *wanted, int wanted_numel)
{
    for (int i = 0; i < wanted_numel; i++)
        if (!r->has_run[wanted[i]])
            fail_msg("'%s' was not called", emu_kernel_name(wanted[i]));
}

static void test_operands(void **state)
{
    (void)state;
    static const emu_kernel of_adafactor[] = {
        EMU_KERNEL_adafactor_most, EMU_KERNEL_adafactor_sum, EMU_KERNEL_adafactor_factor,
        EMU_KERNEL_adafactor_size, EMU_KERNEL_adafactor_apply};
    static const emu_kernel of_muon[] = {EMU_KERNEL_muon_momentum, EMU_KERNEL_muon_apply,
                                         EMU_KERNEL_scale, EMU_KERNEL_gemm};
    for (int k = 0; k < TESS_NELEM(kinds); k++) {
        emu_report report;
        emu_outcome out;
        const emu_options o = {.rank_numel = 2, .is_audited = true};
        emu_case c = case_of(kinds[k], 2, 0);
        c.step_numel = 1;
        emu_case_run(&o, &c, &report, &out);
        check_report(&c, &o, &report);
        if (kinds[k] == TESS_OPTIMIZER_MUON)
            check_has_run(&report, of_muon, TESS_NELEM(of_muon));
        else
            check_has_run(&report, of_adafactor, TESS_NELEM(of_adafactor));
    }
}

/* ---- waits ---- */

typedef struct removal {
    size_t offset; /* of the event in the runtime */
    int64_t ignored_numel;
} removal;

static tess_status ignore_event(void *arg, const emu_rank *rank, tess_runtime *rt)
{
    const removal *r = arg;
    if (rank->rank == 1)
        emu_ignore_event(rank, (const tess_event *)(const void *)((const char *)rt + r->offset));
    return TESS_OK;
}

static void count_ignored(void *arg, const emu_rank *rank)
{
    removal *r = arg;
    if (rank->rank == 1)
        r->ignored_numel = emu_ignored_numel(rank);
    emu_ignore_event(rank, NULL);
}

/* Without the wait for `offset` on one of two ranks, every order shows what races. */
static void check_removal(size_t offset, const char *want)
{
    for (uint64_t seed = 0; seed < SEED_NUMEL; seed++) {
        emu_report report;
        emu_outcome out;
        removal r = {.offset = offset};
        const emu_options o = {.rank_numel = 2, .seed = seed};
        emu_case c = case_of(TESS_OPTIMIZER_MUON, 2, 0);
        c.step_numel = 1;
        c.loaded = ignore_event;
        c.end = count_ignored;
        c.arg = &r;
        emu_case_run(&o, &c, &report, &out);
        assert_true(r.ignored_numel > 0);
        if (report.violation_numel == 0 || strstr(report.violation, want) == NULL)
            fail_msg("seed %llu: expected a report of '%s', found '%s'", (unsigned long long)seed,
                     want, report.violation);
    }
}

/* Momenta are there before they travel, and an owner has all of a matrix before it begins. */
static void test_missing_waits_of_muon(void **state)
{
    (void)state;
    check_removal(offsetof(struct tess_runtime, updated), "which 'muon_momentum'");
    check_removal(offsetof(struct tess_runtime, drained[1]), "which 'exchange");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_rank),    cmocka_unit_test(test_two_ranks),
        cmocka_unit_test(test_three_ranks), cmocka_unit_test(test_four_ranks),
        cmocka_unit_test(test_operands),    cmocka_unit_test(test_missing_waits_of_muon),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
