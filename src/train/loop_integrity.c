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
    tess_xxh128 *base;       /* [unit_numel] of this rank's shards as they were loaded */
    int64_t *whole_step;     /* [unit_numel] completed steps when they were last found whole */
    int64_t damage_numel;    /* reloads for the sake of this rank */
    int damaged;             /* of `unit`, found by the last look, -1: none */
    tess_xxh128 *mine, *all; /* [digest_numel], rank 0: [world, digest_numel] */
    int digest_numel;        /* units of the registry, and one for numbers of the run */
};

static bool looks_at_base(const tess_session *s)
{
    const tess_run_switch choice = s->run->shard.check_base;
    return choice == TESS_RUN_SWITCH_ON || (choice == TESS_RUN_SWITCH_AUTO && s->device == NULL);
}

tess_status loop_integrity_create(const tess_session *s, loop_integrity **out)
{
    const tess_plan *plan = s->d.plan;
    const int world = tess_comm_world(s->world);
    const int64_t numel = plan->unit_numel;
    TESS_TRY(tess_alloc_array(1, sizeof **out, (void **)out));
    loop_integrity *n = *out;
    n->damaged = -1;
    n->digest_numel = plan->unit_numel + 1;
    TESS_TRY(tess_alloc_array(numel, sizeof *n->unit, (void **)&n->unit));
    TESS_TRY(tess_alloc_array(numel, sizeof *n->base, (void **)&n->base));
    TESS_TRY(tess_alloc_array(numel, sizeof *n->whole_step, (void **)&n->whole_step));
    TESS_TRY(tess_alloc_array(n->digest_numel, sizeof *n->mine, (void **)&n->mine));
    if (tess_comm_rank(s->world) == 0)
        TESS_TRY(
            tess_alloc_array((int64_t)n->digest_numel * world, sizeof *n->all, (void **)&n->all));
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
    tess_free(n->mine);
    tess_free(n->all);
    tess_free(n);
    *inout = NULL;
}

/* ---- copies ---- */

/* Which digest differs between ranks, and on which one. */
typedef struct verdict {
    int digest_idx; /* -1: none */
    int odd_rank;   /* its bytes are not those that most ranks have; -1: no bytes are of most */
    int rank[2];    /* two that differ */
} verdict;

static const tess_xxh128 *digest_of(const loop_integrity *n, int rank, int digest_idx)
{
    return &n->all[(int64_t)rank * n->digest_numel + digest_idx];
}

static bool is_equal(const tess_xxh128 *a, const tess_xxh128 *b)
{
    return memcmp(a->byte, b->byte, sizeof a->byte) == 0;
}

/* Ranks `first`, `first` + stride, ... hold the same: the vote of Boyer and Moore among them. */
static void judge_digest(const loop_integrity *n, int world, int first, int stride, verdict *v)
{
    const int d = v->digest_idx;
    int candidate = first, lead_numel = 0, vote_numel = 0, copy_numel = 0;
    for (int r = first; r < world; r += stride, copy_numel++) {
        if (lead_numel == 0)
            candidate = r;
        lead_numel += is_equal(digest_of(n, r, d), digest_of(n, candidate, d)) ? 1 : -1;
    }
    v->odd_rank = v->rank[0] = v->rank[1] = -1;
    for (int r = first; r < world; r += stride) {
        const bool agrees = is_equal(digest_of(n, r, d), digest_of(n, candidate, d));
        vote_numel += agrees;
        if (!agrees && v->odd_rank < 0)
            v->odd_rank = r;
        if (v->rank[1] < 0 && !is_equal(digest_of(n, r, d), digest_of(n, first, d)))
            v->rank[1] = r;
    }
    v->rank[0] = first;
    if (2 * vote_numel <= copy_numel)
        v->odd_rank = -1;
}

static verdict judge(const loop_integrity *n, int world, int copy_stride)
{
    verdict v = {.odd_rank = -1, .rank = {-1, -1}};
    for (v.digest_idx = 0; v.digest_idx < n->digest_numel; v.digest_idx++)
        for (int first = 0; first < copy_stride; first++) {
            judge_digest(n, world, first, copy_stride, &v);
            if (v.rank[1] >= 0)
                return v;
        }
    v.digest_idx = -1;
    return v;
}

static tess_status refuse(const tess_session *s, const loop_integrity *n, const verdict *v,
                          const char *what)
{
    const bool is_unit = v->digest_idx < n->digest_numel - 1;
    const char *unit = is_unit ? s->d.registry.unit[v->digest_idx].name : "the whole run";
    if (v->odd_rank >= 0)
        return TESS_FAIL(TESS_E_NUMERIC,
                         "after step %" PRId64 ": %s of '%s' differ between ranks that hold copies "
                         "of them: rank %d has other bytes than most; nothing more is saved; look "
                         "at its memory and links, then start again from the newest checkpoint",
                         s->step, what, unit, v->odd_rank);
    return TESS_FAIL(
        TESS_E_NUMERIC,
        "after step %" PRId64 ": %s of '%s' differ between ranks that hold copies of "
        "them: those of rank %d and rank %d are not equal; nothing more is saved; look "
        "at their memory and links, then start again from the newest checkpoint",
        s->step, what, unit, v->rank[0], v->rank[1]);
}

/* A verdict ends the run; what was saved before it is published first. The disk may keep that from
 * happening, and would hide the verdict: it is said before. */
static tess_status commit_before(session_loop *l, tess_status refused)
{
    tess_progress_hide(&l->progress);
    if (refused != TESS_OK && l->is_saving)
        tess_log_root(&l->s->ctx->log, TESS_LOG_WARN, "%s", tess_error_message());
    tess_error_clear();
    return loop_commit(l);
}

/* Compare `mine` of ranks whose numbers are equal modulo `copy_stride`. */
static tess_status compare(session_loop *l, loop_integrity *n, int copy_stride, const char *what)
{
    const tess_session *s = l->s;
    verdict v = {0};
    TESS_TRY(tess_comm_gather_bytes(s->world, 0, n->mine, (size_t)n->digest_numel * sizeof *n->mine,
                                    n->all));
    if (tess_comm_rank(s->world) == 0)
        v = judge(n, tess_comm_world(s->world), copy_stride);
    TESS_TRY(tess_comm_bcast(s->world, 0, &v, sizeof v));
    if (v.digest_idx < 0)
        return TESS_OK;
    TESS_TRY(commit_before(l, refuse(s, n, &v, what))); /* it was compared before it was saved */
    return refuse(s, n, &v, what);
}

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
        st = tess_runtime_copies_digest(s->rt, i, &n->mine[i]);
    TESS_TRY(session_agree(s, st));
    n->mine[n->digest_numel - 1] = digest_numbers(s);
    return compare(l, n, 1, "trained weights or numbers of the optimizer");
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
    memset(n->mine, 0, (size_t)n->digest_numel * sizeof *n->mine);
    for (int i = 0; i < n->unit_numel; i++)
        n->mine[n->unit[i]] = n->base[i];
    return compare(l, n, s->d.plan->options.gather_group_numel, "frozen bytes");
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
    *is_damaged = !is_equal(&found, &n->base[i]);
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
        TESS_CHECK(is_equal(&found, &n->base[i]), TESS_E_FORMAT,
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
    TESS_TRY(commit_before(l, refuse_replayed(l->s, r)));
    return refuse_replayed(l->s, r);
}
