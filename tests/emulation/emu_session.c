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

void emu_session_check(const char *name, const emu_options *o, const emu_report *r)
{
    if (r->status != TESS_OK || r->violation_numel != 0)
        fail_msg("%s, %d ranks, seed %llu: %s; %lld violations: %s", name, o->rank_numel,
                 (unsigned long long)o->seed, r->error, (long long)r->violation_numel,
                 r->violation);
}

int emu_session_take_each(const emu_setting *setting)
{
    static emu_removal r;
    emu_report report;
    memset(&r, 0, sizeof r);
    *setting->removal = &r;
    r.taken.rank = -1;
    emu_run(&setting->options, setting->body, setting->arg, &report);
    emu_session_check(setting->name, &setting->options, &report);
    for (int i = 0; i < r.numel; i++) {
        r.taken = r.list[i];
        emu_run(&setting->options, setting->body, setting->arg, &report);
        if (report.violation_numel == 0 && r.may_be_idle)
            continue;
        if (report.violation_numel == 0)
            fail_msg("%s, %d ranks: nothing shows without the wait of %s", setting->name,
                     setting->options.rank_numel, r.what);
        assert_non_null(strstr(report.violation, "nothing orders the two"));
    }
    *setting->removal = NULL;
    return r.numel;
}

void emu_session_check_bits(const char *name, const emu_options *o, const emu_trained *want,
                            const emu_trained *out)
{
    for (int r = 0; r < o->rank_numel; r++)
        if (memcmp(want, &out[r], sizeof *want) != 0)
            fail_msg("%s, %d ranks, seed %llu, rank %d: losses %.17g, %.17g, evaluation %.17g; the "
                     "host %.17g, %.17g, %.17g",
                     name, o->rank_numel, (unsigned long long)o->seed, r, out[r].loss[0],
                     out[r].loss[1], out[r].eval_loss, want->loss[0], want->loss[1],
                     want->eval_loss);
}
