/* What ranks hold copies of: whether these are still equal, and whose are not. */
#include <inttypes.h>
#include <string.h>

#include "core/memory.h"
#include "train/loop_priv.h"

tess_status loop_copies_init(const tess_session *s, int digest_numel, loop_copy_name *name,
                             loop_copies *out)
{
    const int64_t all_numel = (int64_t)digest_numel * tess_comm_world(s->world);
    *out = (loop_copies){.digest_numel = digest_numel, .name = name};
    TESS_TRY(tess_alloc_array(digest_numel, sizeof *out->mine, (void **)&out->mine));
    if (tess_comm_rank(s->world) == 0)
        TESS_TRY(tess_alloc_array(all_numel, sizeof *out->all, (void **)&out->all));
    return TESS_OK;
}

void loop_copies_fini(loop_copies *c)
{
    tess_free(c->mine);
    tess_free(c->all);
    *c = (loop_copies){.mine = NULL};
}

/* Which digest differs between ranks, and on which one. */
typedef struct verdict {
    int digest_idx; /* -1: none */
    int odd_rank;   /* its bytes are not those that most ranks have; -1: no bytes are of most */
    int rank[2];    /* two that differ */
} verdict;

static const tess_xxh128 *digest_of(const loop_copies *c, int rank, int digest_idx)
{
    return &c->all[(int64_t)rank * c->digest_numel + digest_idx];
}

/* Ranks `first`, `first` + stride, ... hold the same: the vote of Boyer and Moore among them. */
static void judge_digest(const loop_copies *c, int world, int first, int stride, verdict *v)
{
    const int d = v->digest_idx;
    int candidate = first, lead_numel = 0, vote_numel = 0, copy_numel = 0;
    for (int r = first; r < world; r += stride, copy_numel++) {
        if (lead_numel == 0)
            candidate = r;
        lead_numel += tess_xxh128_is_equal(digest_of(c, r, d), digest_of(c, candidate, d)) ? 1 : -1;
    }
    v->odd_rank = v->rank[0] = v->rank[1] = -1;
    for (int r = first; r < world; r += stride) {
        const bool agrees = tess_xxh128_is_equal(digest_of(c, r, d), digest_of(c, candidate, d));
        vote_numel += agrees;
        if (!agrees && v->odd_rank < 0)
            v->odd_rank = r;
        if (v->rank[1] < 0 && !tess_xxh128_is_equal(digest_of(c, r, d), digest_of(c, first, d)))
            v->rank[1] = r;
    }
    v->rank[0] = first;
    if (2 * vote_numel <= copy_numel)
        v->odd_rank = -1;
}

static verdict judge(const loop_copies *c, int world, int copy_stride)
{
    verdict v = {.odd_rank = -1, .rank = {-1, -1}};
    for (v.digest_idx = 0; v.digest_idx < c->digest_numel; v.digest_idx++)
        for (int first = 0; first < copy_stride; first++) {
            judge_digest(c, world, first, copy_stride, &v);
            if (v.rank[1] >= 0)
                return v;
        }
    v.digest_idx = -1;
    return v;
}

static tess_status refuse(const tess_session *s, const loop_copies *c, const verdict *v,
                          const char *what)
{
    const char *unit = c->name(s, v->digest_idx);
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
tess_status loop_commit_before(session_loop *l, tess_status refused)
{
    tess_progress_hide(&l->progress);
    if (refused != TESS_OK && l->is_saving)
        tess_log_root(&l->s->ctx->log, TESS_LOG_WARN, "%s", tess_error_message());
    tess_error_clear();
    const tess_status st = loop_commit(l);
    /* A verdict is a graver reason to end than a checkpoint that could not be written. */
    if (st != TESS_E_IO || tess_session_is_broken(l->s))
        return st;
    tess_log_root(&l->s->ctx->log, TESS_LOG_WARN, "%s", tess_error_message());
    tess_error_clear();
    return TESS_OK;
}

tess_status loop_copies_compare(session_loop *l, const loop_copies *c, int copy_stride,
                                const char *what)
{
    const tess_session *s = l->s;
    verdict v = {0};
    TESS_TRY(tess_comm_gather_bytes(s->world, 0, c->mine, (size_t)c->digest_numel * sizeof *c->mine,
                                    c->all));
    if (tess_comm_rank(s->world) == 0)
        v = judge(c, tess_comm_world(s->world), copy_stride);
    TESS_TRY(tess_comm_bcast(s->world, 0, &v, sizeof v));
    if (v.digest_idx < 0)
        return TESS_OK;
    TESS_TRY(
        loop_commit_before(l, refuse(s, c, &v, what))); /* it was compared before it was saved */
    return refuse(s, c, &v, what);
}
