/* Plans are arithmetic: shards tile, buffers do not overlap, `auto` takes the smallest that fits,
 * and what is refused says why. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/clock.h"
#include "core/memory.h"
#include "model/model.h"
#include "shard/plan.h"

enum { MIB = 1 << 20 };

static void expect_ok(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s: %s\n%s", tess_status_name(st), tess_error_message(), tess_error_trace_text());
}

static void expect_refusal(tess_status st, tess_status want, const char *text)
{
    assert_int_equal(st, want);
    if (strstr(tess_error_message(), text) == NULL)
        fail_msg("'%s' does not say '%s'", tess_error_message(), text);
}

/* ---- models ---- */

static void add_param(tess_registry *reg, int unit_idx, tess_role role, int64_t rows, int64_t cols)
{
    int idx = 0;
    tess_param p = {.unit_idx = unit_idx,
                    .role = role,
                    .shape_rank = 2,
                    .shape = {rows, cols},
                    .codec = {.format = TESS_FORMAT_BF16},
                    .init = TESS_INIT_ZERO,
                    .learning_rate_ratio = 1.0};
    snprintf(p.name, sizeof p.name, "u%d.%d", unit_idx, reg->param_numel);
    expect_ok(tess_registry_add_param(reg, &p, &idx));
}

/* Units of uneven sizes, one stage each; `is_tied`: the last stage uses the first unit again. */
static void make_model(tess_registry *reg, int unit_numel, bool is_tied)
{
    tess_registry_init(reg, TESS_BF16);
    for (int u = 0; u < unit_numel; u++) {
        char name[16];
        int idx = 0;
        snprintf(name, sizeof name, "unit%d", u);
        expect_ok(tess_registry_add_unit(reg, name, &idx));
        add_param(reg, u, TESS_ROLE_FROZEN, 700 + 13 * u, 511);
        add_param(reg, u, TESS_ROLE_FROZEN, 1, 33);
        if (u != 2)
            add_param(reg, u, TESS_ROLE_TRAINABLE, 8, 700 + 13 * u);
        if (u != 2)
            add_param(reg, u, TESS_ROLE_TRAINABLE, 511, 8);
    }
    for (int s = 0; s < unit_numel + is_tied; s++) {
        const bool is_last = s == unit_numel + is_tied - 1;
        tess_stage stage = {.unit_idx = s % unit_numel,
                            .output_nbytes = is_last ? 0 : 200000,
                            .saved_nbytes = is_last ? 0 : 900000,
                            .work_nbytes = 50000,
                            .is_fused_loss = is_last};
        snprintf(stage.name, sizeof stage.name, "stage%d", s);
        expect_ok(tess_registry_add_stage(reg, &stage));
    }
    expect_ok(tess_registry_lay_out(reg));
}

static tess_plan_options base_options(int world)
{
    return (tess_plan_options){.world = world,
                               .micro_batch_numel = 12,
                               .prefetch = 1,
                               .outside_nbytes = 64 * MIB,
                               .load_nbytes = 3 * MIB + 5,
                               .data_nbytes = 1000,
                               .has_snapshot = true,
                               .kernel_path = "cpu/plain"};
}

static void make_plan(const tess_registry *reg, const tess_plan_options *o, tess_plan **plan)
{
    tess_error_clear();
    expect_ok(tess_plan_create(reg, o, plan));
}

/* ---- arithmetic ---- */

static void check_shards(const tess_registry *reg, const tess_plan *plan)
{
    const size_t group = (size_t)plan->options.gather_group_numel;
    size_t base_nbytes = 0;
    int64_t state_numel = 0;
    for (int i = 0; i < plan->unit_numel; i++) {
        const tess_unit_plan *u = &plan->unit[i];
        assert_int_equal(u->frozen_nbytes, reg->unit[i].frozen_nbytes);
        assert_int_equal(u->frozen_shard_nbytes % 256, 0);
        assert_int_equal(u->base_offset_nbytes, base_nbytes);
        assert_true(u->frozen_shard_nbytes * group >= u->frozen_nbytes);
        /* 256 ceil(ceil(n / 256) / G) G < n + 256 G */
        assert_true(u->frozen_shard_nbytes * group < u->frozen_nbytes + 256 * group);
        base_nbytes += u->frozen_shard_nbytes;
        int64_t end = 0;
        for (int rank = 0; rank < plan->options.world; rank++) {
            int64_t lo = 0, hi = 0;
            tess_plan_owned(plan, i, rank, &lo, &hi);
            assert_int_equal(lo, end);
            assert_int_equal(lo % 256, 0);
            assert_in_range(hi - lo, 0, u->slab_shard_numel);
            end = hi;
        }
        assert_int_equal(end, u->slab_numel);
        assert_int_equal(u->state_first_idx, state_numel);
        state_numel += u->slab_shard_numel;
    }
    assert_int_equal(plan->arena_nbytes[TESS_LIFE_BASE], base_nbytes);
    assert_int_equal(plan->state_numel, state_numel);
}

static int by_place(const void *a, const void *b)
{
    const tess_buffer_plan *x = a, *y = b;
    if (x->life != y->life)
        return x->life < y->life ? -1 : 1;
    return (x->offset_nbytes > y->offset_nbytes) - (x->offset_nbytes < y->offset_nbytes);
}

/* Sorted by arena and place, every buffer starts where the one before it ends. */
static void check_buffers(const tess_plan *plan)
{
    void *copy = NULL;
    size_t end[TESS_LIFE_NUMEL] = {0}, total = plan->options.outside_nbytes;
    expect_ok(tess_alloc_array(plan->buffer_numel, sizeof *plan->buffer, &copy));
    tess_buffer_plan *b = copy;
    memcpy(b, plan->buffer, (size_t)plan->buffer_numel * sizeof *b);
    qsort(b, (size_t)plan->buffer_numel, sizeof *b, by_place);
    for (int i = 0; i < plan->buffer_numel; i++) {
        const size_t needed = (size_t)b[i].numel * tess_dtype_block_nbytes(b[i].dt);
        assert_true(b[i].numel > 0 && b[i].name[0] != '\0');
        assert_int_equal(b[i].offset_nbytes, end[b[i].life]);
        assert_true(b[i].nbytes >= needed && b[i].nbytes < needed + 256);
        end[b[i].life] += b[i].nbytes;
    }
    for (int life = 0; life < TESS_LIFE_NUMEL; life++) {
        assert_int_equal(end[life], plan->arena_nbytes[life]);
        total += end[life];
    }
    assert_int_equal(plan->total_nbytes, total);
    assert_true(plan->arena_nbytes[TESS_LIFE_WORK] >= plan->options.load_nbytes);
    tess_free(copy);
}

static void check_wires(const tess_plan *plan)
{
    for (int i = 0; i < plan->wire_numel; i++) {
        const tess_wire *w = &plan->wire[i];
        const int64_t members =
            w->wire == TESS_U8_OPAQUE ? plan->options.gather_group_numel : plan->options.world;
        assert_int_equal(w->entry_idx, i);
        assert_non_null(w->config_key);
        assert_true(w->numel_per_rank * members >= w->numel_total);
        assert_int_equal(w->accumulate, w->wire);
    }
}

static void test_shards_and_buffers(void **state)
{
    static const int worlds[] = {1, 2, 3, 4, 5, 8, 12, 1024};
    (void)state;
    for (int w = 0; w < TESS_NELEM(worlds); w++)
        for (int variant = 0; variant < 32; variant++) {
            tess_registry reg;
            tess_plan *plan = NULL;
            tess_plan_options o = base_options(worlds[w]);
            o.gather_group_numel = variant & 1 ? worlds[w] : worlds[w] % 2 == 0 ? 2 : 1;
            o.reshard = variant & 2 ? TESS_ON : TESS_OFF;
            o.checkpointing = variant & 4 ? TESS_ON : TESS_OFF;
            o.is_full = (variant & 8) != 0;
            o.is_library = (variant & 16) != 0;
            make_model(&reg, 5, (variant & 6) == 0);
            make_plan(&reg, &o, &plan);
            check_shards(&reg, plan);
            check_buffers(plan);
            check_wires(plan);
            tess_plan_destroy(&plan);
            tess_registry_fini(&reg);
        }
}

static void test_active_rounds(void **state)
{
    (void)state;
    for (int world = 1; world <= 9; world++)
        for (int64_t m = 1; m <= 13; m++) {
            tess_registry reg;
            tess_plan *plan = NULL;
            tess_plan_options o = base_options(world);
            int64_t sum = 0;
            o.micro_batch_numel = m;
            make_model(&reg, 1, false);
            make_plan(&reg, &o, &plan);
            for (int rank = 0; rank < world; rank++) {
                const int active = tess_plan_active_rounds(plan, rank);
                assert_in_range(active, plan->round_numel - 1, plan->round_numel);
                sum += active;
            }
            assert_int_equal(sum, m);
            tess_plan_destroy(&plan);
            tess_registry_fini(&reg);
        }
}

/* ---- buckets ---- */

/* Every gathered unit is in one bucket, in the order of stages, in a place of its own. */
static void check_buckets(const tess_registry *reg, const tess_plan *plan)
{
    const size_t group = (size_t)plan->options.gather_group_numel;
    const size_t world = (size_t)plan->options.world;
    size_t largest_nbytes = 0;
    int at = 0;
    for (int i = 0; i < plan->bucket_numel; i++) {
        const tess_bucket_plan *b = &plan->bucket[i];
        size_t end_nbytes = 0, frozen_nbytes = 0, slab_nbytes = 0;
        assert_int_equal(b->first_idx, at);
        assert_true(b->unit_numel > 0);
        for (int k = 0; k < b->unit_numel; k++, at++) {
            const int unit = plan->bucket_unit[at];
            const tess_unit_plan *u = &plan->unit[unit];
            const size_t frozen = group > 1 ? u->frozen_shard_nbytes : 0;
            const size_t slab = plan->options.is_full && world > 1
                                    ? (size_t)u->slab_shard_numel *
                                          tess_dtype_block_nbytes(reg->unit[unit].compute_dt)
                                    : 0;
            assert_int_equal(u->bucket_idx, i);
            assert_int_equal(u->slot_offset_nbytes, end_nbytes);
            assert_int_equal(u->slot_slab_offset_nbytes, end_nbytes + frozen * group);
            end_nbytes += frozen * group + slab * world;
            frozen_nbytes += frozen;
            slab_nbytes += slab;
            if (at > 0)
                assert_true(plan->bucket_unit[at - 1] < unit); /* stages take units in order */
        }
        assert_int_equal(b->nbytes, end_nbytes);
        assert_int_equal(b->frozen_shard_nbytes, frozen_nbytes);
        assert_int_equal(b->slab_shard_nbytes, slab_nbytes);
        assert_true(b->unit_numel == 1 || (int64_t)b->nbytes <= plan->options.bucket_nbytes);
        largest_nbytes = b->nbytes > largest_nbytes ? b->nbytes : largest_nbytes;
    }
    int gathered_numel = 0;
    for (int i = 0; i < plan->unit_numel; i++)
        gathered_numel += plan->unit[i].bucket_idx >= 0;
    assert_int_equal(at, gathered_numel);
    assert_int_equal(plan->slot_nbytes, largest_nbytes);
    assert_int_equal(plan->arena_nbytes[TESS_LIFE_SLOT], largest_nbytes * (size_t)plan->slot_numel);
}

static void test_buckets_of_any_size(void **state)
{
    (void)state;
    for (int variant = 0; variant < 32; variant++)
        for (int64_t nbytes = 0; nbytes < 12 * MIB; nbytes += 700000) {
            tess_registry reg;
            tess_plan *plan = NULL;
            tess_plan_options o = base_options(4);
            const bool is_tied = (variant & 8) != 0;
            o.gather_group_numel = variant & 1 ? 2 : 4;
            o.is_full = (variant & 2) != 0;
            o.reshard = variant & 4 ? TESS_ON : TESS_OFF;
            o.gather_group_numel = variant & 16 ? 1 : o.gather_group_numel;
            o.bucket_nbytes = nbytes;
            make_model(&reg, 9, is_tied);
            make_plan(&reg, &o, &plan);
            check_buckets(&reg, plan);
            const int most = o.gather_group_numel > 1 ? 9
                             : o.is_full              ? 8
                                                      : 0; /* unit 2 has no slab */
            if (nbytes == 0)
                assert_int_equal(plan->bucket_numel, most);
            else if (nbytes > 11 * MIB && most > 0) /* the tied unit stays alone */
                assert_int_equal(plan->bucket_numel, 1 + is_tied);
            assert_int_equal(plan->slot_numel, o.reshard == TESS_OFF || plan->bucket_numel < 2
                                                   ? plan->bucket_numel
                                                   : 2);
            tess_plan_destroy(&plan);
            tess_registry_fini(&reg);
        }
}

/* auto takes what the link asks for: 960 KiB a rank on the host; between devices 64 MiB inside
 * nodes and 256 MiB across them. Where that does not fit, units alone. */
static void test_auto_buckets(void **state)
{
    (void)state;
    tess_registry reg;
    tess_plan *plan = NULL;
    tess_plan_options o = base_options(8);
    make_model(&reg, 64, false); /* units of 0.7 to 1.5 MiB, an eighth of all: 9 MiB */
    o.bucket_nbytes = TESS_BUCKET_AUTO;
    o.gather_group_numel = 4;
    o.node_rank_numel = 4;
    o.exchange = TESS_EXCHANGE_DIRECT; /* what else could give way */
    o.reshard = TESS_ON;
    make_plan(&reg, &o, &plan);
    assert_int_equal(plan->options.bucket_nbytes, 4 * 960 << 10);
    check_buckets(&reg, plan);
    assert_in_range(plan->bucket_numel, 64 / 5, 64 / 2); /* 2 to 5 units in 3.75 MiB */
    const size_t packed_nbytes = plan->total_nbytes;
    tess_plan_destroy(&plan);
    o.memory_limit_nbytes = packed_nbytes - 1;
    o.checkpointing = TESS_OFF;
    make_plan(&reg, &o, &plan);
    assert_int_equal(plan->options.bucket_nbytes, 0);
    assert_int_equal(plan->bucket_numel, 64);
    tess_plan_destroy(&plan);
    o.bucket_nbytes = 4 * MIB;
    expect_refusal(tess_plan_create(&reg, &o, &plan), TESS_E_FIT, "shard.bucket_bytes=auto");
    tess_error_clear();
    o.memory_limit_nbytes = 0;
    o.is_device = true;
    o.bucket_nbytes = TESS_BUCKET_AUTO;
    tess_registry_fini(&reg);
    make_model(&reg, 800, false); /* an eighth of all: 570 MiB */
    make_plan(&reg, &o, &plan);
    assert_int_equal(plan->options.bucket_nbytes, 64 * MIB);
    tess_plan_destroy(&plan);
    o.gather_group_numel = 8;
    make_plan(&reg, &o, &plan);
    assert_int_equal(plan->options.bucket_nbytes, 256 * MIB);
    check_buckets(&reg, plan);
    tess_plan_destroy(&plan);
    o.bucket_nbytes = -2;
    expect_refusal(tess_plan_create(&reg, &o, &plan), TESS_E_CONFIG,
                   "shard.bucket_bytes: -2 is negative");
    tess_registry_fini(&reg);
}

/* ---- choices ---- */

static size_t total_of(const tess_registry *reg, const tess_plan_options *options, int group,
                       tess_choice reshard, tess_choice checkpointing)
{
    tess_plan_options o = *options;
    tess_plan *plan = NULL;
    o.gather_group_numel = group;
    o.reshard = reshard;
    o.checkpointing = checkpointing;
    o.memory_limit_nbytes = 0;
    make_plan(reg, &o, &plan);
    const size_t total = plan->total_nbytes;
    tess_plan_destroy(&plan);
    return total;
}

/* The first choice that fits, in the order the planner promises; group 0: none does. */
static void first_fitting(const tess_registry *reg, const tess_plan_options *o, int *group,
                          tess_choice *reshard, tess_choice *checkpointing)
{
    for (tess_choice ck = TESS_OFF; ck <= TESS_ON; ck++)
        for (int g = 1; g <= o->world; g++)
            for (tess_choice rs = TESS_OFF; rs <= TESS_ON; rs++)
                if (o->world % g == 0 && total_of(reg, o, g, rs, ck) <= o->memory_limit_nbytes) {
                    *group = g;
                    *reshard = rs;
                    *checkpointing = ck;
                    return;
                }
    *group = 0;
}

static void test_auto_takes_the_smallest_that_fits(void **state)
{
    (void)state;
    bool is_seen[9] = {false};
    int recomputed_numel = 0, refused_numel = 0;
    tess_registry reg;
    make_model(&reg, 9, false);
    tess_plan_options o = base_options(8);
    o.load_nbytes = 0;
    const size_t most = total_of(&reg, &o, 1, TESS_OFF, TESS_OFF);
    const size_t least = total_of(&reg, &o, 8, TESS_ON, TESS_ON);
    assert_true(least < most);
    for (size_t limit = least - 1; limit <= most + 200000; limit += (most - least) / 40) {
        int group = 0;
        tess_choice reshard = TESS_AUTO, checkpointing = TESS_AUTO;
        tess_plan *plan = NULL;
        o.memory_limit_nbytes = limit;
        first_fitting(&reg, &o, &group, &reshard, &checkpointing);
        if (group == 0) {
            expect_refusal(tess_plan_create(&reg, &o, &plan), TESS_E_FIT, "compute.memory_limit");
            refused_numel++;
            continue;
        }
        make_plan(&reg, &o, &plan);
        assert_int_equal(plan->options.gather_group_numel, group);
        assert_int_equal(plan->options.reshard, reshard);
        assert_int_equal(plan->options.checkpointing, checkpointing);
        assert_true(plan->total_nbytes <= limit);
        is_seen[group] = true;
        recomputed_numel += checkpointing == TESS_ON;
        tess_plan_destroy(&plan);
    }
    /* The sweep met what it is about. */
    assert_true(is_seen[1] && is_seen[2] && refused_numel > 0 && recomputed_numel > 0);
    tess_registry_fini(&reg);
}

static void test_library_once_where_it_fits(void **state)
{
    (void)state;
    for (int full = 0; full <= 1; full++) {
        tess_registry reg;
        tess_plan *once = NULL, *each = NULL;
        tess_plan_options o = base_options(4);
        make_model(&reg, 9, false);
        o.is_full = full != 0;
        o.is_library = true;
        o.gather_group_numel = 4;
        o.reshard = TESS_ON;
        o.checkpointing = TESS_ON;
        make_plan(&reg, &o, &once);
        assert_true(once->is_library_once);
        assert_int_equal(once->reduction, TESS_REDUCTION_LIBRARY_ONCE);
        assert_int_equal(once->grad_buffer_numel, 8); /* unit 2 learns nothing */
        o.memory_limit_nbytes = once->total_nbytes - 1;
        make_plan(&reg, &o, &each);
        assert_false(each->is_library_once);
        assert_int_equal(each->reduction, TESS_REDUCTION_LIBRARY_EACH);
        assert_int_equal(each->grad_buffer_numel, 2);
        assert_true(each->total_nbytes < once->total_nbytes);
        /* Three rounds of 12 micro-batches at 4 ranks: three times the traffic. */
        assert_true(each->grad_nbytes_per_step == 3 * once->grad_nbytes_per_step);
        for (int kind = 0; kind < TESS_REDUCTION_NUMEL; kind++)
            assert_int_equal(once->reduction_cost[kind].total_nbytes,
                             each->reduction_cost[kind].total_nbytes);
        assert_int_equal(once->reduction_cost[TESS_REDUCTION_LIBRARY_ONCE].total_nbytes,
                         once->total_nbytes);
        assert_int_equal(once->reduction_cost[TESS_REDUCTION_LIBRARY_EACH].total_nbytes,
                         each->total_nbytes);
        tess_plan_destroy(&once);
        tess_plan_destroy(&each);
        /* One round: nothing to add up, so no buffers for it, and still one reduction per step. */
        o.memory_limit_nbytes = 0;
        o.micro_batch_numel = 4;
        make_plan(&reg, &o, &once);
        assert_false(once->is_library_once);
        assert_int_equal(once->reduction, TESS_REDUCTION_LIBRARY_ONCE);
        tess_plan_destroy(&once);
        tess_registry_fini(&reg);
    }
}

/* ---- refusals ---- */

static void test_fit_message_names_changes(void **state)
{
    (void)state;
    tess_registry reg;
    tess_plan *plan = NULL;
    tess_plan_options o = base_options(2);
    make_model(&reg, 40, false);
    o.gather_group_numel = 1;
    o.reshard = TESS_OFF;
    o.checkpointing = TESS_OFF;
    const size_t needed = total_of(&reg, &o, 1, TESS_OFF, TESS_OFF);
    o.memory_limit_nbytes = needed - 4 * MIB;
    tess_error_clear();
    char want[160];
    snprintf(want, sizeof want, "plan needs %zu MiB per rank, compute.memory_limit is %zu MiB",
             needed / MIB, o.memory_limit_nbytes / MIB);
    expect_refusal(tess_plan_create(&reg, &o, &plan), TESS_E_FIT, want);
    int numel = 0;
    for (const char *p = strstr(tess_error_message(), "changes: "); (p = strstr(p, ", fits)")); p++)
        numel++;
    assert_int_equal(numel, 3);
    /* The sizes are those of real plans. */
    tess_error_clear();
    o.memory_limit_nbytes = needed - 4 * MIB;
    assert_int_equal(tess_plan_create(&reg, &o, &plan), TESS_E_FIT);
    snprintf(want, sizeof want, "compute.activation_checkpointing=on (%zu MiB, fits)",
             total_of(&reg, &o, 1, TESS_OFF, TESS_ON) / MIB);
    tess_plan_options again = o;
    tess_error_clear();
    expect_refusal(tess_plan_create(&reg, &again, &plan), TESS_E_FIT, want);
    tess_registry_fini(&reg);
}

/* Nothing fits: still three changes, none of them called fitting. */
static void test_fit_message_when_hopeless(void **state)
{
    (void)state;
    tess_registry reg;
    tess_plan *plan = NULL;
    tess_plan_options o = base_options(2);
    make_model(&reg, 5, false);
    o.memory_limit_nbytes = 10 * MIB; /* less than what lies outside arenas */
    tess_error_clear();
    expect_refusal(tess_plan_create(&reg, &o, &plan), TESS_E_FIT, "cheapest changes: 4 ranks (");
    expect_refusal(TESS_E_FIT, TESS_E_FIT, "; 8 ranks (");
    expect_refusal(TESS_E_FIT, TESS_E_FIT, "; 16 ranks (");
    assert_null(strstr(tess_error_message(), "fits"));
    tess_registry_fini(&reg);
}

static void refuse(const tess_registry *reg, const tess_plan_options *o, tess_status want,
                   const char *text)
{
    tess_plan *plan = NULL;
    tess_error_clear();
    expect_refusal(tess_plan_create(reg, o, &plan), want, text);
    assert_null(plan);
}

static void test_refusals_name_keys(void **state)
{
    (void)state;
    tess_registry reg;
    make_model(&reg, 5, false);
    tess_plan_options o = base_options(4);
    o.gather_group_numel = 3;
    refuse(&reg, &o, TESS_E_CONFIG, "shard.gather_group: 3 does not divide the 4 ranks");
    o.gather_group_numel = 8;
    refuse(&reg, &o, TESS_E_CONFIG, "shard.gather_group: 8 does not divide the 4 ranks");
    o = base_options(4);
    o.prefetch = -1;
    refuse(&reg, &o, TESS_E_CONFIG, "shard.prefetch: -1 is negative");
    o.prefetch = 2;
    o.gather_group_numel = 4;
    o.reshard = TESS_ON;
    refuse(&reg, &o, TESS_E_CONFIG, "shard.prefetch: 2 needs 3 slots, the plan has 2; lower it");
    o = base_options(4);
    o.micro_batch_numel = 0;
    refuse(&reg, &o, TESS_E_CONFIG, "train.micro_batches: expected 1 to 2147483647, found 0");
    tess_registry_fini(&reg);
}

/* ---- what is shown ---- */

static char *json_of(const tess_plan *plan, const tess_registry *reg)
{
    tess_json *root = NULL;
    char *text = NULL;
    expect_ok(tess_plan_json(plan, reg, &root));
    expect_ok(tess_json_dump(root, 2, &text, NULL));
    tess_json_destroy(&root);
    return text;
}

static tess_sha256 digest_of(const tess_plan *plan, const tess_registry *reg)
{
    tess_contract *c = NULL;
    tess_sha256 sha;
    expect_ok(tess_contract_create(&c));
    expect_ok(tess_plan_contract(plan, reg, c));
    expect_ok(tess_contract_digest(c, &sha));
    assert_int_equal(tess_contract_wire_numel(c), plan->wire_numel);
    tess_contract_destroy(&c);
    return sha;
}

/* Equal options, equal text and digest; any other choice, another digest. */
static void test_digest_covers_choices(void **state)
{
    (void)state;
    tess_registry reg;
    tess_sha256 first = {{0}};
    make_model(&reg, 5, false);
    for (int variant = 0; variant < 9; variant++) {
        tess_plan *a = NULL, *b = NULL;
        tess_plan_options o = base_options(4);
        o.gather_group_numel = variant == 1 ? 2 : 4;
        o.reshard = variant == 2 ? TESS_OFF : TESS_ON;
        o.checkpointing = variant == 3 ? TESS_ON : TESS_OFF;
        o.prefetch = variant == 4 ? 0 : 1;
        o.is_library = variant == 5;
        o.data_nbytes = variant == 6 ? 2000 : 1000;
        o.kernel_path = variant == 7 ? "cpu/avx2" : "cpu/plain";
        o.bucket_nbytes = variant == 8 ? 2 * MIB : 0;
        make_plan(&reg, &o, &a);
        make_plan(&reg, &o, &b);
        char *x = json_of(a, &reg), *y = json_of(b, &reg);
        assert_string_equal(x, y);
        const tess_sha256 d = digest_of(a, &reg), e = digest_of(b, &reg);
        assert_memory_equal(&d, &e, sizeof d);
        if (variant == 0)
            first = d;
        else
            assert_memory_not_equal(&first, &d, sizeof d);
        tess_free(x);
        tess_free(y);
        tess_plan_destroy(&a);
        tess_plan_destroy(&b);
    }
    tess_registry_fini(&reg);
}

static void test_text_shows_everything(void **state)
{
    static const char *const want[] = {
        "4 ranks, gather group 4, 12 micro-batches in 3 rounds, reduction library, once per step",
        "unit0",
        "unit0/frozen",
        "unit0/grad",
        "reduce_scatter",
        "buckets (one collective each, into one of 5 slots of ",
        "memory of every rank",
        "slots",
        "outside arenas (at most)",
        "library, per micro-batch",
        "<- this plan"};
    (void)state;
    tess_registry reg;
    tess_plan *plan = NULL;
    char *text = NULL;
    make_model(&reg, 5, false);
    tess_plan_options o = base_options(4);
    o.gather_group_numel = 4;
    o.is_library = true;
    make_plan(&reg, &o, &plan);
    expect_ok(tess_plan_text(plan, &reg, &text));
    for (int i = 0; i < TESS_NELEM(want); i++)
        if (strstr(text, want[i]) == NULL)
            fail_msg("no '%s' in\n%s", want[i], text);
    tess_free(text);
    tess_plan_destroy(&plan);
    tess_registry_fini(&reg);
}

/* ---- size ---- */

static tess_status rank_16(void *arg, const char *path, bool is_head, tess_lora_choice *out)
{
    (void)arg;
    (void)path;
    *out = (tess_lora_choice){.rank = is_head ? 0 : 16, .scale = 2.0};
    return TESS_OK;
}

static tess_status nf4_linears(void *arg, const tess_param *p, bool is_linear, tess_codec source,
                               tess_codec *out)
{
    (void)arg;
    *out = is_linear && strcmp(p->name, "lm_head.weight") != 0
               ? (tess_codec){.format = TESS_FORMAT_NF4, .block_numel = 64, .double_quant = true}
               : source;
    return TESS_OK;
}

static const tess_llm_config llama_70b = {.family = TESS_LLM_LLAMA,
                                          .hidden_numel = 8192,
                                          .intermediate_numel = 28672,
                                          .layer_numel = 80,
                                          .head_numel = 64,
                                          .kv_head_numel = 8,
                                          .head_dim = 128,
                                          .vocab_numel = 128256,
                                          .rms_eps = 1e-5,
                                          .rope = {.theta = 5e5, .factor = 1.0},
                                          .bos_id = -1};

static void test_70b_on_1024_ranks(void **state)
{
    (void)state;
    tess_registry reg;
    tess_model *model = NULL;
    tess_plan *plan = NULL;
    const tess_model_options options = {.compute_dt = TESS_BF16,
                                        .is_random = true,
                                        .sequence_length = 2048,
                                        .micro_batch = 1,
                                        .thread_numel = 1,
                                        .lora_plus_ratio = 1.0,
                                        .lora_of = rank_16,
                                        .codec_of = nf4_linears};
    const double start_s = tess_clock_s();
    tess_registry_init(&reg, TESS_BF16);
    expect_ok(tess_llama_create(&llama_70b, &options, &reg, &model));
    tess_plan_options o = base_options(1024);
    o.micro_batch_numel = 4096;
    o.memory_limit_nbytes = (size_t)24 << 30;
    make_plan(&reg, &o, &plan);
    print_message("70B at 1024 ranks: group %d, %.2f GiB per rank, planned in %.3f s\n",
                  plan->options.gather_group_numel, (double)plan->total_nbytes / 0x1p30,
                  tess_clock_s() - start_s);
    int64_t frozen_numel = 0;
    size_t frozen_nbytes = 0;
    for (int i = 0; i < reg.param_numel; i++)
        frozen_numel += reg.param[i].role == TESS_ROLE_FROZEN ? reg.param[i].numel : 0;
    for (int i = 0; i < reg.unit_numel; i++)
        frozen_nbytes += reg.unit[i].frozen_nbytes;
    /* Published: 70,553,706,496 parameters. */
    assert_true(frozen_numel == INT64_C(70553706496));
    assert_true(plan->total_nbytes <= o.memory_limit_nbytes);
    assert_true(plan->arena_nbytes[TESS_LIFE_BASE] * (size_t)plan->options.gather_group_numel >=
                frozen_nbytes);
    check_shards(&reg, plan);
    check_buffers(plan);
    tess_plan_destroy(&plan);
    tess_model_destroy(&model);
    tess_registry_fini(&reg);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shards_and_buffers),
        cmocka_unit_test(test_active_rounds),
        cmocka_unit_test(test_buckets_of_any_size),
        cmocka_unit_test(test_auto_buckets),
        cmocka_unit_test(test_auto_takes_the_smallest_that_fits),
        cmocka_unit_test(test_library_once_where_it_fits),
        cmocka_unit_test(test_fit_message_names_changes),
        cmocka_unit_test(test_fit_message_when_hopeless),
        cmocka_unit_test(test_refusals_name_keys),
        cmocka_unit_test(test_digest_covers_choices),
        cmocka_unit_test(test_text_shows_everything),
        cmocka_unit_test(test_70b_on_1024_ranks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
