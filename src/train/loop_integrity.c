/*
 * What a loop checks of memory: bytes that nothing may have changed, and bytes that all ranks hold
 * alike. Memory and links change bits now and then, and what follows is silent.
 *
 * [Note: repeated step] A step looks at the base before it computes, and its control record tells
 * all ranks what was found before anything is updated. So a step that saw damage changes nothing:
 * the base is read again and the step is done again. Steps before it that used the damaged bytes
 * are told, and stay.
 */
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/memory.h"
#include "train/loop_priv.h"

enum { HOST_NBYTES = 64, DAMAGE_NUMEL_MAX = 1 };

struct loop_integrity {
    bool looks_at_base;
    int *unit; /* [unit_numel] those with frozen bytes */
    int unit_numel;
    tess_xxh128 *base;    /* [unit_numel] of this rank's shards as they were loaded */
    int64_t *whole_step;  /* [unit_numel] completed steps when they were last found whole */
    int64_t damage_numel; /* reloads for the sake of this rank */
    int damaged;          /* of `unit`, found by the last look, -1: none */
    loop_copies copies;   /* units of the registry, and one for numbers of the run */
};

static bool looks_at_base(const tess_session *s)
{
    const tess_run_switch choice = s->run->shard.check_base;
    return choice == TESS_RUN_SWITCH_ON || (choice == TESS_RUN_SWITCH_AUTO && s->device == NULL);
}

static const char *name_of(const tess_session *s, int digest_idx)
{
    return digest_idx < s->d.plan->unit_numel ? s->d.registry.unit[digest_idx].name
                                              : "the whole run";
}

tess_status loop_integrity_create(const tess_session *s, loop_integrity **out)
{
    const tess_plan *plan = s->d.plan;
    const int64_t numel = plan->unit_numel;
    TESS_TRY(tess_alloc_array(1, sizeof **out, (void **)out));
    loop_integrity *n = *out;
    n->damaged = -1;
    TESS_TRY(tess_alloc_array(numel, sizeof *n->unit, (void **)&n->unit));
    TESS_TRY(tess_alloc_array(numel, sizeof *n->base, (void **)&n->base));
    TESS_TRY(tess_alloc_array(numel, sizeof *n->whole_step, (void **)&n->whole_step));
    TESS_TRY(loop_copies_init(s, plan->unit_numel + 1, name_of, &n->copies));
    for (int i = 0; i < plan->unit_numel; i++)
        if (plan->unit[i].frozen_nbytes > 0)
            n->unit[n->unit_numel++] = i;
    n->looks_at_base = looks_at_base(s) && n->unit_numel > 0;
    return TESS_OK;
}

void loop_integrity_destroy(loop_integrity **inout)
{
    loop_integrity *n = *inout;
    if (n == NULL)
        return;
    tess_free(n->unit);
    tess_free(n->base);
    tess_free(n->whole_step);
    loop_copies_fini(&n->copies);
    tess_free(n);
    *inout = NULL;
}

/* ---- copies ---- */

/* Numbers that every rank counts for itself. */
static tess_xxh128 digest_numbers(tess_session *s)
{
    enum { COUNT_NUMEL = 6 };
    double number[TESS_OPTIMIZER_SCALAR_MAX + COUNT_NUMEL] = {
        (double)s->step,          (double)s->token_numel,          (double)s->update_numel,
        (double)s->skipped_numel, (double)s->guard.rollback_numel, (double)session_data_step(s)};
    const int scalar_numel = s->d.plan->options.optimizer->scalar_numel;
    memcpy(number + COUNT_NUMEL, tess_runtime_scalars(s->rt),
           (size_t)scalar_numel * sizeof *number);
    return tess_xxh128_of(number, sizeof number);
}

tess_status loop_integrity_compare(session_loop *l, loop_integrity *n)
{
    tess_session *s = l->s;
    tess_status st = TESS_OK;
    if (tess_comm_world(s->world) == 1 || s->run->shard.check_copies == 0)
        return TESS_OK;
    for (int i = 0; i < s->d.plan->unit_numel && st == TESS_OK; i++)
        st = tess_runtime_copies_digest(s->rt, i, &n->copies.mine[i]);
    TESS_TRY(session_agree(s, st));
    n->copies.mine[s->d.plan->unit_numel] = digest_numbers(s);
    return loop_copies_compare(l, &n->copies, 1, "trained weights or numbers of the optimizer");
}

tess_status loop_integrity_step(session_loop *l, loop_integrity *n)
{
    const int64_t every = l->s->run->shard.check_copies;
    return every > 0 && l->s->step % every == 0 ? loop_integrity_compare(l, n) : TESS_OK;
}

/* ---- the base ---- */

static tess_status digest_base(const tess_session *s, const loop_integrity *n, tess_xxh128 *out)
{
    for (int i = 0; i < n->unit_numel; i++)
        TESS_TRY(tess_runtime_frozen_digest(s->rt, n->unit[i], &out[i]));
    return TESS_OK;
}

/* Digests inside a step pass through it, and a step allocates nothing. A run that loaded its base
 * has it; one that resumed from a copy does not. */
static tess_status make_host_work(const tess_session *s)
{
    tess_view near;
    return tess_runtime_host_work(s->rt, &near);
}

tess_status loop_integrity_begin(session_loop *l, loop_integrity *n)
{
    tess_session *s = l->s;
    if (s->run->compute.check_replay > 0)
        TESS_TRY(session_agree(s, make_host_work(s)));
    if (!n->looks_at_base)
        return TESS_OK;
    TESS_TRY(session_agree(s, digest_base(s, n, n->base)));
    for (int i = 0; i < n->unit_numel; i++)
        n->whole_step[i] = s->step;
    memset(n->copies.mine, 0, (size_t)n->copies.digest_numel * sizeof *n->copies.mine);
    for (int i = 0; i < n->unit_numel; i++)
        n->copies.mine[n->unit[i]] = n->base[i];
    return loop_copies_compare(l, &n->copies, s->d.plan->options.gather_group_numel,
                               "frozen bytes");
}

tess_status loop_integrity_look(session_loop *l, loop_integrity *n, bool *is_damaged)
{
    const tess_session *s = l->s;
    tess_xxh128 found;
    n->damaged = -1;
    *is_damaged = false;
    if (!n->looks_at_base)
        return TESS_OK;
    const double start_s = tess_clock_s();
    const int i = (int)(s->step % n->unit_numel);
    TESS_TRY(tess_runtime_frozen_digest(s->rt, n->unit[i], &found));
    tess_trace_host(l->trace, "check base", start_s, tess_clock_s());
    *is_damaged = !tess_xxh128_is_equal(&found, &n->base[i]);
    if (*is_damaged)
        n->damaged = i;
    else
        n->whole_step[i] = s->step;
    return TESS_OK;
}

/* The rank with the damage says it, and has its memory condemned the second time. */
static tess_status tell_damage(const session_loop *l, loop_integrity *n)
{
    const tess_session *s = l->s;
    char host[HOST_NBYTES] = "";
    if (n->damaged < 0)
        return TESS_OK;
    const char *unit = s->d.registry.unit[n->unit[n->damaged]].name;
    const int64_t whole = TESS_MIN(n->whole_step[n->damaged], s->step); /* a rollback goes back */
    (void)gethostname(host, sizeof host - 1);
    TESS_CHECK(n->damage_numel < DAMAGE_NUMEL_MAX, TESS_E_NUMERIC,
               "before step %" PRId64 ": frozen bytes of unit '%s' changed in memory on '%s' (%s), "
               "the second time for this rank: its memory is not to be trusted; nothing was saved "
               "since; start again without it, from the newest checkpoint",
               s->step + 1, unit, host, s->kernel_path);
    n->damage_numel++;
    tess_log_write(&s->ctx->log, TESS_LOG_WARN,
                   "before step %" PRId64 ": frozen bytes of unit '%s' changed in memory on rank "
                   "%d, '%s' (%s); they were whole before step %" PRId64 ", and %" PRId64
                   " steps from there may have used the damaged ones; the base is read again and "
                   "the run goes on",
                   s->step + 1, unit, tess_comm_rank(s->world), host, s->kernel_path, whole + 1,
                   s->step - whole);
    return TESS_OK;
}

static tess_status check_reload(const tess_session *s, const loop_integrity *n)
{
    for (int i = 0; i < n->unit_numel; i++) {
        tess_xxh128 found;
        TESS_TRY(tess_runtime_frozen_digest(s->rt, n->unit[i], &found));
        TESS_CHECK(tess_xxh128_is_equal(&found, &n->base[i]), TESS_E_FORMAT,
                   "frozen bytes of unit '%s', read again from %s, are not those that the run "
                   "began with; restore the files, or start again from the newest checkpoint",
                   s->d.registry.unit[n->unit[i]].name,
                   s->base.mode == TESS_CKPT_BASE_COPY ? "output.dir" : "model.path");
    }
    return TESS_OK;
}

tess_status loop_integrity_restore(session_loop *l, loop_integrity *n)
{
    tess_session *s = l->s;
    TESS_TRY(loop_commit(l)); /* also for the reader: it shares a window of host memory */
    TESS_TRY(session_agree(s, tell_damage(l, n)));
    loop_beat_files(l, "base");
    TESS_TRY(session_reload_base(s));
    TESS_TRY(session_agree(s, check_reload(s, n)));
    for (int i = 0; i < n->unit_numel; i++)
        n->whole_step[i] = s->step;
    tess_log_root(&s->ctx->log, TESS_LOG_INFO,
                  "the base was read again and is whole; step %" PRId64 " is done again",
                  s->step + 1);
    return TESS_OK;
}

/* ---- replay ---- */

bool loop_integrity_wants_replay(const session_loop *l)
{
    const int64_t every = l->s->run->compute.check_replay;
    return every > 0 && (l->s->step + 1) % every == 0;
}

static tess_status refuse_replayed(const tess_session *s, const tess_step_result *r)
{
    return TESS_FAIL(
        TESS_E_NUMERIC,
        "step %" PRId64 ": rank %d computed micro-batch %" PRId64
        " twice, and the gradients of unit '%s' have other bits the second time; nothing was "
        "updated and nothing more is saved; its processor or memory fails: start again without "
        "it, from the newest checkpoint",
        s->step + 1, r->replay_rank,
        session_data_step(s) * s->run->train.micro_batches + r->replay_rank,
        s->d.registry.unit[r->replay_unit].name);
}

tess_status loop_integrity_replayed(session_loop *l, const tess_step_result *r)
{
    if (r->replay_unit < 0)
        return TESS_OK;
    TESS_TRY(loop_commit_before(l, refuse_replayed(l->s, r)));
    return refuse_replayed(l->s, r);
}
