#include "emulation/emu_case.h"

#include <string.h>

#include "core/digest.h"
#include "core/memory.h"
#include "shard/loader.h"

static tess_status run_steps(tess_runtime *rt, const emu_case *c, emu_outcome *out)
{
    for (int step = 0; step < c->step_numel; step++) {
        two_matrices_feed f = {.first_idx = step * c->m};
        tess_step_result result;
        const tess_step_request request = {.first_micro_batch_idx = f.first_idx,
                                           .loss_token_numel = 7 * c->m,
                                           .update = {.step = step + 1,
                                                      .learning_rate = 0.01,
                                                      .beta1 = 0.9,
                                                      .beta2 = 0.99,
                                                      .eps = 1e-8,
                                                      .weight_decay = 0.1,
                                                      .clip_norm = 0.05,
                                                      .scales_by_param = true,
                                                      .momentum = 0.9,
                                                      .matches_adamw = true},
                                           .arg = &f,
                                           .batch_of = two_matrices_batch_of};
        TESS_TRY(tess_runtime_step(rt, &request, &result));
        TESS_CHECK(result.nonfinite_numel == 0, TESS_E_NUMERIC, "step %d is not finite", step);
        out->loss[step] = result.loss;
        out->norm[step] = result.grad_norm;
    }
    two_matrices_batch batch = {.micro_batch_idx = 1000};
    return tess_runtime_forward(rt, TESS_CALL_EVAL, &batch, &out->eval);
}

/* The masters that a rank owns of a unit, as many at once as the staging memory holds. */
static tess_status hash_unit(tess_runtime *rt, tess_view host, int unit_idx, int64_t first_idx,
                             tess_logical_hash *hash)
{
    const tess_view master = tess_runtime_state(rt, unit_idx, TESS_STATE_MASTER);
    const int64_t room_numel = host.numel / (int64_t)sizeof(float);
    for (int64_t done = 0; done < master.numel;) {
        const int64_t numel = TESS_MIN(room_numel, master.numel - done);
        const tess_view copy = tess_view_host(host.data, numel, TESS_F32);
        TESS_TRY(tess_runtime_copy(rt, copy, tess_view_slice(master, done, numel)));
        tess_logical_hash_add(hash, copy.data, numel, sizeof(float), first_idx + done);
        done += numel;
    }
    return TESS_OK;
}

tess_status emu_hash_masters(tess_comm *comm, tess_runtime *rt, const tess_plan *plan,
                             int64_t lane[2])
{
    tess_logical_hash hash = {0};
    tess_view host = {0};
    TESS_TRY(tess_runtime_host_work(rt, &host));
    for (int u = 0; u < plan->unit_numel; u++) {
        int64_t lo = 0, hi = 0;
        tess_plan_owned(plan, u, tess_comm_rank(comm), &lo, &hi);
        TESS_TRY(hash_unit(rt, host, u, lo + ((int64_t)u << 40), &hash));
    }
    memcpy(lane, hash.lane, 2 * sizeof *lane);
    return tess_comm_control(comm, lane, 2, NULL, 0);
}

tess_status emu_check_allocations(const emu_rank *rank, int numel)
{
    const int found = emu_allocation_numel(rank);
    TESS_CHECK(found == numel, TESS_E_STATE, "%s: %d allocations in steps, expected none",
               rank->device->name, found - numel);
    return TESS_OK;
}

/* What a rank works with. */
typedef struct parts {
    const emu_case *c;
    const emu_rank *rank; /* NULL: the host */
    tess_comm *world, *group;
    tess_registry reg;
    tess_plan *plan;
    two_matrices model;
    tess_runtime *rt;
} parts;

static tess_status run_with(parts *p, emu_outcome *out)
{
    const emu_case *c = p->c;
    const tess_runtime_parts given = {.plan = p->plan,
                                      .registry = &p->reg,
                                      .device = p->rank != NULL ? p->rank->device : NULL,
                                      .kernels = p->rank != NULL ? &emu_kernels : &tess_kernels_cpu,
                                      .world = p->world,
                                      .group = p->group,
                                      .ops = &two_matrices_ops,
                                      .model = &p->model};
    const tess_load_request load = {
        .wants_frozen = true, .wants_trainable = true, .is_device = p->rank != NULL, .seed = 5};
    TESS_TRY(tess_runtime_create(&given, &p->rt));
    if (c->begin != NULL)
        c->begin(c->arg, p->rank, p->rt);
    TESS_TRY(tess_load(p->rt, &load, NULL));
    TESS_TRY(tess_runtime_publish(p->rt));
    if (c->loaded != NULL && p->rank != NULL)
        TESS_TRY(c->loaded(c->arg, p->rank, p->rt));
    const int allocation_numel = p->rank != NULL ? emu_allocation_numel(p->rank) : 0;
    TESS_TRY(run_steps(p->rt, c, out));
    if (p->rank != NULL)
        TESS_TRY(emu_check_allocations(p->rank, allocation_numel));
    return emu_hash_masters(p->world, p->rt, p->plan, out->master);
}

static tess_status make_plan(parts *p)
{
    const emu_case *c = p->c;
    const bool is_device = p->rank != NULL;
    const tess_plan_options o = {.world = tess_comm_world(p->world),
                                 .gather_group_numel = is_device ? c->group : 1,
                                 .reshard = c->keeps ? TESS_OFF : TESS_ON,
                                 .checkpointing = c->checkpoints ? TESS_ON : TESS_OFF,
                                 .prefetch = c->prefetch,
                                 .bucket_nbytes = c->bucket_nbytes,
                                 .is_full = c->is_full,
                                 .is_library = c->is_library,
                                 .optimizer = c->optimizer,
                                 .library_once = c->is_once ? TESS_ON : TESS_OFF,
                                 .micro_batch_numel = c->m,
                                 .load_nbytes = 1 << 16,
                                 .is_device = is_device,
                                 .mirror_nbytes =
                                     is_device ? two_matrices_ops.constant_nbytes(&p->model) : 0};
    TESS_TRY(two_matrices_describe(&p->model, &p->reg));
    return tess_plan_create(&p->reg, &o, &p->plan);
}

static tess_status run_rank(const emu_case *c, const emu_rank *rank, tess_comm *world,
                            emu_outcome *out)
{
    parts p = {.c = c, .rank = rank, .world = world};
    p.model = (two_matrices){.row_numel = 7,
                             .in_numel = c->is_tied ? 33 : 19,
                             .mid_numel = 33,
                             .out_numel = c->is_tied ? 33 : 29,
                             .is_tied = c->is_tied,
                             .is_quantized = c->is_quantized,
                             .between_numel = c->between_numel};
    memset(out, 0, sizeof *out);
    tess_registry_init(&p.reg, TESS_F32);
    tess_status st = make_plan(&p);
    const int group_numel = p.plan != NULL ? p.plan->options.gather_group_numel : 1;
    tess_comm *own = NULL;
    if (st == TESS_OK && group_numel > 1 && group_numel < tess_comm_world(world))
        st = tess_comm_split_group(world, group_numel, &own);
    p.group = group_numel == 1 ? NULL : own != NULL ? own : world;
    if (st == TESS_OK)
        st = run_with(&p, out);
    if (c->end != NULL && rank != NULL)
        c->end(c->arg, rank);
    tess_runtime_destroy(&p.rt);
    tess_comm_destroy(&own);
    tess_plan_destroy(&p.plan);
    tess_registry_fini(&p.reg);
    return st;
}

tess_status emu_case_on_host(const emu_case *c, emu_outcome *out)
{
    tess_comm *self = NULL;
    emu_case plain = *c;
    plain.begin = NULL;
    TESS_TRY(tess_comm_create_self(&self));
    const tess_status st = run_rank(&plain, NULL, self, out);
    tess_comm_destroy(&self);
    return st;
}

typedef struct job {
    const emu_case *c;
    emu_outcome outcome[EMU_RANK_MAX];
} job;

static tess_status body(void *arg, const emu_rank *rank)
{
    job *j = arg;
    return run_rank(j->c, rank, rank->comm, &j->outcome[rank->rank]);
}

void emu_case_run(const emu_options *options, const emu_case *c, emu_report *report,
                  emu_outcome *out)
{
    job j = {.c = c};
    emu_run(options, body, &j, report);
    *out = j.outcome[0];
    for (int r = 1; r < options->rank_numel && report->status == TESS_OK; r++)
        if (memcmp(&j.outcome[0], &j.outcome[r], sizeof *out) != 0)
            report->status = TESS_E_STATE;
}
