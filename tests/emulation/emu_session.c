#include "emulation/emu_session.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "emulation/emu_case.h"
#include "train/session_priv.h"

static tess_status batch_of(void *arg, int64_t m, const void **batch)
{
    tess_session *s = arg;
    return s->feed->fill(s, s->step * s->run->train.micro_batches + m, batch);
}

static tess_status run_step(tess_session *s, emu_trained *out)
{
    tess_step_result result;
    tess_step_request request = {.first_micro_batch_idx = s->step * s->run->train.micro_batches,
                                 .update = {.step = s->step + 1,
                                            .learning_rate = 0.02,
                                            .beta1 = s->run->train.beta1,
                                            .beta2 = s->run->train.beta2,
                                            .eps = s->run->train.eps,
                                            .clip_norm = s->run->train.clip_norm},
                                 .arg = s,
                                 .batch_of = batch_of};
    TESS_TRY(s->feed->count(s, &request.loss_token_numel));
    TESS_TRY(tess_runtime_step(s->rt, &request, &result));
    TESS_CHECK(result.nonfinite_numel == 0, TESS_E_NUMERIC, "step %lld is not finite",
               (long long)s->step);
    out->loss[s->step] = result.loss;
    out->norm[s->step] = result.grad_norm;
    s->step++;
    s->update_numel++;
    return s->feed->stepped != NULL ? s->feed->stepped(s, NULL) : TESS_OK;
}

tess_status emu_session_use(tess_session *s, const emu_rank *rank, emu_removal *removal,
                            emu_trained *out)
{
    tess_eval_result eval = {0};
    memset(out, 0, sizeof *out);
    if (removal != NULL && rank != NULL)
        emu_take_away(removal, rank, s->rt);
    const int allocation_numel = rank != NULL ? emu_allocation_numel(rank) : 0;
    for (int i = 0; i < EMU_SESSION_STEPS; i++)
        TESS_TRY(run_step(s, out));
    TESS_TRY(tess_session_evaluate(s, &eval));
    if (rank != NULL)
        TESS_TRY(emu_check_allocations(rank, allocation_numel));
    out->eval_loss = eval.loss;
    return emu_hash_masters(s->world, s->rt, s->d.plan, out->master);
}

typedef struct job {
    const emu_subject *subject;
    emu_removal *removal; /* NULL: nothing is taken away */
    emu_trained out[EMU_RANK_MAX];
} job;

static tess_status body(void *arg, const emu_rank *rank)
{
    job *j = arg;
    return j->subject->run(j->subject->launch, rank->comm, rank, j->removal, &j->out[rank->rank]);
}

static void on_host(const emu_subject *subject, emu_trained *out)
{
    tess_comm *self = NULL;
    assert_int_equal(tess_comm_create_self(&self), TESS_OK);
    if (subject->run(subject->launch, self, NULL, NULL, out) != TESS_OK)
        fail_msg("%s, on the host: %s", subject->name, tess_error_message());
    tess_comm_destroy(&self);
}

void emu_session_check(const char *name, const emu_options *o, const emu_report *r)
{
    if (r->status != TESS_OK || r->violation_numel != 0)
        fail_msg("%s, %d ranks, seed %llu: %s; %lld violations: %s", name, o->rank_numel,
                 (unsigned long long)o->seed, r->error, (long long)r->violation_numel,
                 r->violation);
}

static void run_job(job *j, const emu_options *o, emu_report *r)
{
    emu_run(o, body, j, r);
    emu_session_check(j->subject->name, o, r);
}

void emu_session_run(const emu_subject *subject, const emu_options *o, emu_report *report)
{
    static job j;
    j = (job){.subject = subject};
    run_job(&j, o, report);
}

static void check_bits(const emu_subject *subject, const emu_options *o, const emu_trained *want)
{
    static job j;
    emu_report report;
    j = (job){.subject = subject};
    run_job(&j, o, &report);
    if ((report.ahead_numel > 0) != subject->is_ahead)
        fail_msg("%s: %lld products were prepared ahead", subject->name,
                 (long long)report.ahead_numel);
    for (int r = 0; r < o->rank_numel; r++)
        if (memcmp(want, &j.out[r], sizeof *want) != 0)
            fail_msg("%s, %d ranks, seed %llu, rank %d: losses %.17g, %.17g, evaluation %.17g; the "
                     "host %.17g, %.17g, %.17g",
                     subject->name, o->rank_numel, (unsigned long long)o->seed, r, j.out[r].loss[0],
                     j.out[r].loss[1], j.out[r].eval_loss, want->loss[0], want->loss[1],
                     want->eval_loss);
}

void emu_session_check_orders(const emu_subject *subject, emu_options o, uint64_t seed)
{
    emu_trained want;
    on_host(subject, &want);
    for (o.rank_numel = 1; o.rank_numel <= 3; o.rank_numel++)
        for (uint64_t turn = 0; turn < 2; turn++) {
            o.seed = turn + 2 * seed + (uint64_t)o.rank_numel;
            o.is_serial = turn == 1;
            check_bits(subject, &o, &want);
        }
}

int emu_session_take_each(const emu_subject *subject, const emu_options *o)
{
    static emu_removal r;
    static job j;
    emu_report report;
    r = (emu_removal){.taken = {.rank = -1}};
    j = (job){.subject = subject, .removal = &r};
    run_job(&j, o, &report);
    for (int i = 0; i < r.numel; i++) {
        r.taken = r.list[i];
        emu_run(o, body, &j, &report);
        if (report.violation_numel == 0 && r.may_be_idle)
            continue;
        if (report.violation_numel == 0)
            fail_msg("%s, %d ranks: nothing shows without the wait of %s", subject->name,
                     o->rank_numel, r.what);
        assert_non_null(strstr(report.violation, "nothing orders the two"));
    }
    return r.numel;
}
