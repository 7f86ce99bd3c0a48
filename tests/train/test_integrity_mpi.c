/*
 * Bits that change in memory while a run trains: damage to the base is found before anything is
 * updated from it, the base is read again and the run keeps its bits; a rank that is damaged twice
 * ends the run; copies that differ between ranks are never saved; a processor that computes wrong
 * once is found where the step is replayed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "support/rank_test.h"
#include "support/tiny_run.h"
#include "train/session_priv.h"

enum { FLIP_MAX = 3, WARNING_MAX = 8 };

/* One bit that changes on one rank when so many steps are completed. */
typedef struct flip {
    int64_t step;   /* 0: none */
    int rank;       /* modulo the world */
    int ahead;      /* base: of the unit that is looked at so many steps later */
    bool is_copy;   /* of the gathered weights instead, in the last unit that has some */
    bool is_scalar; /* of the numbers of the run */
} flip;

typedef struct life {
    const char *name, *override[8];
    flip flip[FLIP_MAX];
    bool is_before_save; /* flips happen there instead */
    int64_t wrong_step;  /* 0: none; in this one `wrong_rank` computes its first loss wrong */
    int wrong_rank;
} life;

static struct {
    const life *plan;
    const tess_session *session;
    int64_t loss_step; /* the last one that a loss was computed in */
    const session_feed *feed;
    int line_numel;
    char line[WARNING_MAX][500];
    int64_t reload_numel;
    int64_t told_numel; /* verdicts on copies that are warned of */
} seen;

static void listen(void *arg, tess_log_level level, const char *line)
{
    (void)arg;
    if (level == TESS_LOG_WARN && strstr(line, "changed in memory") != NULL &&
        seen.line_numel < WARNING_MAX)
        snprintf(seen.line[seen.line_numel++], sizeof seen.line[0], "%s", line);
    seen.told_numel += level == TESS_LOG_WARN && strstr(line, "differ between ranks") != NULL;
    seen.reload_numel += strstr(line, "the base was read again") != NULL;
}

/* ---- damage ---- */

static int nth_frozen(const tess_plan *plan, int64_t n)
{
    int numel = 0;
    for (int i = 0; i < plan->unit_numel; i++)
        numel += plan->unit[i].frozen_nbytes > 0;
    int64_t left = n % numel;
    for (int i = 0; i < plan->unit_numel; i++)
        if (plan->unit[i].frozen_nbytes > 0 && left-- == 0)
            return i;
    return -1;
}

static void flip_base(tess_session *s, const flip *f)
{
    const tess_view v = tess_runtime_frozen_shard(s->rt, nth_frozen(s->d.plan, s->step + f->ahead));
    ((uint8_t *)v.data)[v.numel / 3] ^= 8;
}

static void flip_copy(tess_session *s)
{
    const tess_plan *plan = s->d.plan;
    for (int i = plan->unit_numel - 1; i >= 0; i--)
        if (plan->unit[i].slab_wire_idx >= 0) {
            uint8_t *all = tess_runtime_arena(s->rt, TESS_LIFE_PARAM).data;
            all[plan->unit[i].param_offset_nbytes + 5] ^= 1;
            return;
        }
}

static void flip_due(tess_session *s)
{
    const int world = tess_comm_world(s->world), rank = tess_comm_rank(s->world);
    for (int i = 0; i < FLIP_MAX; i++) {
        const flip *f = &seen.plan->flip[i];
        if (f->step == 0 || f->step != s->step || f->rank % world != rank)
            continue;
        if (f->is_scalar)
            s->update_numel++;
        else if (f->is_copy)
            flip_copy(s);
        else
            flip_base(s, f);
    }
}

static tess_status stepped(tess_session *s, struct tess_metrics *metrics)
{
    (void)metrics;
    if (!seen.plan->is_before_save)
        flip_due(s);
    return TESS_OK;
}

static tess_status before_save(tess_session *s)
{
    if (seen.plan->is_before_save)
        flip_due(s);
    return TESS_OK;
}

/* One gradient of the first micro-batch, and of it the first time alone, is twice what it is. */
static tess_status cross_entropy(const tess_cross_entropy_args *a, tess_stream *s)
{
    const int64_t step = tess_session_step(seen.session) + 1;
    const int world = tess_comm_world(seen.session->world);
    TESS_TRY(tess_kernels_cpu.cross_entropy(a, s));
    const bool is_first = step != seen.loss_step && a->d_logits.numel > 0;
    if (is_first)
        seen.loss_step = step;
    if (is_first && step == seen.plan->wrong_step &&
        tess_comm_rank(seen.session->world) == seen.plan->wrong_rank % world) {
        uint16_t *bf16 = a->d_logits.data; /* compute.dtype */
        for (int64_t i = 0; i < a->d_logits.numel; i++)
            if (bf16[i] != 0) {
                bf16[i] = (uint16_t)(bf16[i] ^ 0x80);
                break;
            }
    }
    return TESS_OK;
}

/* ---- one life ---- */

static tess_status open_life(tess_comm *comm, tiny_run *t, const life *l, tess_session **session)
{
    const char *overrides[TINY_OVERRIDE_MAX + 1] = {"train.steps=9", "train.eval_every=0"};
    for (int i = 0; i < 8 && l->override[i] != NULL; i++)
        overrides[i + 2] = l->override[i];
    static tess_kernels kernels;
    const tess_session_options o = {.kind = TESS_SESSION_TRAIN, .kernels = &kernels};
    kernels = tess_kernels_cpu;
    kernels.cross_entropy = cross_entropy;
    memset(&seen, 0, sizeof seen);
    seen.plan = l;
    t->ctx.log.sink = listen;
    TESS_TRY(tiny_run_open_as(comm, t, l->name, overrides, &o, session));
    seen.session = *session;
    return TESS_OK;
}

static tess_status train(tess_session *session)
{
    session_feed feed = *session->feed;
    seen.feed = session->feed;
    feed.stepped = stepped;
    feed.before_save = before_save;
    session->feed = &feed;
    const tess_status st = tess_session_train(session);
    session->feed = seen.feed;
    return st;
}

static tess_status live(tess_comm *comm, tiny_run *t, const life *l)
{
    tess_session *session = NULL;
    TESS_TRY(open_life(comm, t, l, &session));
    const tess_status st = train(session);
    tess_session_close(&session);
    return st;
}

static tess_status expect_same(tiny_run *t, const char *a, const char *b)
{
    tiny_outcome x, y;
    TESS_TRY(tiny_run_outcome(t, a, &x));
    TESS_TRY(tiny_run_outcome(t, b, &y));
    TESS_CHECK(x.step_numel == y.step_numel && tess_sha256_is_equal(&x.losses, &y.losses) &&
                   tess_sha256_is_equal(&x.adapter, &y.adapter),
               TESS_E_STATE, "'%s' and '%s' have other bits", a, b);
    return TESS_OK;
}

static tess_status expect_end(tess_comm *comm, const char *name, tess_status st, const char *words)
{
    char message[TESS_ERROR_MESSAGE_NBYTES];
    snprintf(message, sizeof message, "%s", tess_error_message());
    tess_error_clear();
    tess_status told = TESS_OK;
    if (st != TESS_E_NUMERIC || strstr(message, words) == NULL)
        told = TESS_FAIL(TESS_E_STATE, "%s: status %s, expected E_NUMERIC and '%s' in: %.900s",
                         name, tess_status_name(st), words, message);
    return tess_agree(comm, told);
}

/* ---- the base ---- */

/* Warnings of this rank, and where the first of them begins. */
static tess_status expect_warnings(tess_comm *comm, const life *l, int64_t reload_numel)
{
    const int world = tess_comm_world(comm), rank = tess_comm_rank(comm);
    int numel = 0;
    char text[64] = "";
    for (int i = 0; i < FLIP_MAX; i++)
        if (l->flip[i].step > 0 && l->flip[i].rank % world == rank) {
            if (numel++ == 0)
                snprintf(text, sizeof text, "before step %d: frozen bytes of unit '",
                         (int)l->flip[i].step + l->flip[i].ahead + 1);
        }
    TESS_CHECK(seen.line_numel == numel && (numel == 0 || strstr(seen.line[0], text) != NULL),
               TESS_E_STATE, "%s: rank %d warned %d times, expected %d with '%s', first: %s",
               l->name, rank, seen.line_numel, numel, text,
               seen.line_numel > 0 ? seen.line[0] : "none");
    TESS_CHECK(rank != 0 || seen.reload_numel == reload_numel, TESS_E_STATE,
               "%s: the base was read again %d times, expected %d", l->name, (int)seen.reload_numel,
               (int)reload_numel);
    return TESS_OK;
}

static tess_status check_repair(tess_comm *comm, tiny_run *t, const char *clean, const life *l,
                                int64_t reload_numel)
{
    TESS_TRY(live(comm, t, l));
    tess_status st = expect_warnings(comm, l, reload_numel);
    if (st == TESS_OK)
        st = expect_same(t, l->name, clean);
    return tess_agree(comm, st);
}

#define QUANTIZED "shard.gather_group=world", "output.checkpoint_every=3"
#define FROM_FILES "model.init=weights", "base.format=keep"

static const life clean = {.name = "clean", .override = {QUANTIZED}};
/* Looked at right after the flip, before anything used it; a save is on its way at step 6. */
static const life once = {
    .name = "once", .override = {QUANTIZED}, .flip = {{.step = 6, .rank = 1}}};
static const life two_ranks = {
    .name = "two ranks", .override = {QUANTIZED}, .flip = {{.step = 4}, {.step = 5, .rank = 1}}};
static const life together = {
    .name = "together", .override = {QUANTIZED}, .flip = {{.step = 4}, {.step = 4, .rank = 1}}};
static const life replicated = {
    .name = "replicated", .override = {"shard.gather_group=1"}, .flip = {{.step = 2, .rank = 2}}};
static const life unchecked = {.name = "unchecked",
                               .override = {QUANTIZED, "shard.check_base=off"},
                               .flip = {{.step = 4, .rank = 1}}};
static const life twice = {.name = "twice",
                           .override = {QUANTIZED},
                           .flip = {{.step = 4, .rank = 1}, {.step = 7, .rank = 1}}};
static const life late = {
    .name = "late", .override = {QUANTIZED}, .flip = {{.step = 4, .rank = 1, .ahead = 2}}};

static tess_status check_twice(tess_comm *comm, tiny_run *t)
{
    char words[100];
    tess_status st = live(comm, t, &twice);
    const int rank = 1 % tess_comm_world(comm);
    const int told = tess_error_rank();
    TESS_TRY(expect_end(comm, "twice", st, "the second time for this rank"));
    st = TESS_OK;
    if (tess_comm_rank(comm) != rank && told != rank)
        st = TESS_FAIL(TESS_E_STATE, "the damage is said to be on rank %d, not %d", told, rank);
    snprintf(words, sizeof words, "before step 5: frozen bytes");
    if (tess_comm_rank(comm) == rank &&
        (seen.line_numel != 1 || strstr(seen.line[0], words) == NULL))
        st = TESS_FAIL(TESS_E_STATE, "twice: %d warnings", seen.line_numel);
    return tess_agree(comm, st);
}

/* Damage that steps have used: how many of them is said, and the others' bits are not kept. */
static tess_status check_late(tess_comm *comm, tiny_run *t)
{
    TESS_TRY(live(comm, t, &late));
    tess_status st = expect_warnings(comm, &late, 1);
    if (st == TESS_OK && seen.line_numel > 0 &&
        strstr(seen.line[0], "5 steps from there may have used") == NULL)
        st = TESS_FAIL(TESS_E_STATE, "no 5 steps in: %s", seen.line[0]);
    return tess_agree(comm, st);
}

static tess_status check_unchecked(tess_comm *comm, tiny_run *t)
{
    TESS_TRY(live(comm, t, &unchecked));
    tess_status st = TESS_OK;
    if (seen.line_numel + seen.reload_numel > 0)
        st = TESS_FAIL(TESS_E_STATE, "shard.check_base off: damage was found");
    if (st == TESS_OK && expect_same(t, "unchecked", "clean") == TESS_OK)
        st = TESS_FAIL(TESS_E_STATE, "the flipped bit has no effect on the run");
    tess_error_clear();
    return tess_agree(comm, st);
}

/* What is read again is another base than the run began with, or is not there. */
static tess_status check_lost(tess_comm *comm, tiny_run *t)
{
    static const life lost = {
        .name = "lost", .override = {QUANTIZED}, .flip = {{.step = 4, .rank = 1}}};
    tess_session *session = NULL;
    char path[500];
    TESS_TRY(open_life(comm, t, &lost, &session));
    snprintf(path, sizeof path, "%s/lost/base/%s/MANIFEST", t->dir, session->base_id);
    tess_status st = tess_comm_barrier(comm);
    if (st == TESS_OK && tess_comm_rank(comm) == 0 && unlink(path) != 0)
        st = TESS_FAIL(TESS_E_STATE, "no '%s'", path);
    st = tess_agree(comm, st);
    const bool is_ready = st == TESS_OK;
    if (is_ready)
        st = train(session);
    tess_session_close(&session);
    if (is_ready && (st == TESS_OK || strstr(tess_error_message(), "MANIFEST") == NULL))
        st = TESS_FAIL(TESS_E_STATE, "a lost base: status %s, %.900s", tess_status_name(st),
                       tess_error_message());
    else if (is_ready) {
        tess_error_clear();
        st = TESS_OK;
    }
    return tess_agree(comm, st);
}

static tess_status check_base(tess_comm *comm, tiny_run *t)
{
    const bool is_alone = tess_comm_world(comm) == 1;
    TESS_TRY(live(comm, t, &clean));
    TESS_TRY(check_repair(comm, t, "clean", &once, 1));
    TESS_TRY(check_repair(comm, t, "clean", &replicated, 1));
    if (!is_alone) {
        TESS_TRY(check_repair(comm, t, "clean", &two_ranks, 2));
        TESS_TRY(check_repair(comm, t, "clean", &together, 1));
    }
    TESS_TRY(check_twice(comm, t));
    TESS_TRY(check_late(comm, t));
    TESS_TRY(check_unchecked(comm, t));
    return check_lost(comm, t);
}

/* The base is the source's own bytes: checkpoints refer to it, and so does the reload. */
static tess_status check_source(tess_comm *comm, tiny_run *t)
{
    static const life whole = {.name = "source", .override = {FROM_FILES}};
    static const life hit = {
        .name = "source hit", .override = {FROM_FILES}, .flip = {{.step = 3, .rank = 1}}};
    TESS_TRY(tiny_run_make_weights(comm, t));
    TESS_TRY(live(comm, t, &whole));
    return check_repair(comm, t, "source", &hit, 1);
}

/* ---- copies ---- */

static const life copy = {.name = "copy",
                          .override = {"shard.check_copies=2"},
                          .flip = {{.step = 4, .rank = 2, .is_copy = true}}};
/* A save is under way, whose commit may fail: what was found is said before. */
static const life on_its_way = {.name = "on its way",
                                .override = {"shard.check_copies=2", "output.checkpoint_every=3"},
                                .flip = {{.step = 4, .rank = 2, .is_copy = true}}};
/* That save finds no room, and the run is to stop then: what was found is graver. */
static const life full = {
    .name = "full",
    .override = {"shard.check_copies=2", "output.checkpoint_every=3", "output.on_disk_full=stop"},
    .flip = {{.step = 4, .rank = 2, .is_copy = true}}};
static const life number = {.name = "number",
                            .override = {"shard.check_copies=2"},
                            .flip = {{.step = 4, .rank = 2, .is_scalar = true}}};
static const life saved = {.name = "saved",
                           .override = {"output.checkpoint_every=3"},
                           .flip = {{.step = 6, .rank = 2, .is_copy = true}},
                           .is_before_save = true};
static const life uncompared = {.name = "uncompared",
                                .override = {"shard.check_copies=0", "output.checkpoint_every=3"},
                                .flip = {{.step = 6, .rank = 2, .is_copy = true}},
                                .is_before_save = true};

static tess_status expect_odd(tess_comm *comm, tiny_run *t, const life *l, const char *unit)
{
    char words[2 * TESS_NAME_NBYTES], who[80];
    const int world = tess_comm_world(comm);
    const tess_status st = live(comm, t, l);
    snprintf(who, sizeof who, "those of rank 0 and rank 1 are not equal");
    if (world >= 3)
        snprintf(who, sizeof who, "rank %d has other bytes than most", l->flip[0].rank % world);
    snprintf(words, sizeof words,
             "after step %d: trained weights or numbers of the optimizer of %s differ between "
             "ranks that hold copies of them: %s",
             (int)l->flip[0].step, unit, who);
    return expect_end(comm, l->name, st, words);
}

/* The newest checkpoint is that of `step`: a life that goes on begins there. */
static tess_status expect_newest(tess_comm *comm, tiny_run *t, const life *l, int64_t step)
{
    tess_session *session = NULL;
    TESS_TRY(open_life(comm, t, l, &session));
    const int64_t found = tess_session_step(session);
    tess_session_close(&session);
    TESS_CHECK(found == step, TESS_E_STATE, "%s goes on from step %d, expected %d", l->name,
               (int)found, (int)step);
    return TESS_OK;
}

/* The unit whose gathered weights flip_copy() changes. */
static tess_status last_trained(tess_comm *comm, tiny_run *t, char *name, size_t nbytes)
{
    tess_session *session = NULL;
    TESS_TRY(open_life(comm, t, &copy, &session));
    for (int i = 0; i < session->d.plan->unit_numel; i++)
        if (session->d.plan->unit[i].slab_wire_idx >= 0)
            snprintf(name, nbytes, "'%s'", session->d.registry.unit[i].name);
    tess_session_close(&session);
    return TESS_OK;
}

/* The base is the first file that rank 0 makes room for, the checkpoint of step 3 the second. */
static tess_status check_full(tess_comm *comm, tiny_run *t, const char *unit)
{
    tess_io *whole = t->ctx.io, *failing = NULL;
    (void)setenv("TESSERA_FAULT", "0:fallocate:2:edquot", 1);
    tess_status st = tess_io_create(tess_comm_rank(comm), &failing);
    (void)unsetenv("TESSERA_FAULT");
    TESS_TRY(tess_agree(comm, st));
    t->ctx.io = failing;
    st = expect_odd(comm, t, &full, unit);
    t->ctx.io = whole;
    tess_io_destroy(&failing);
    return st;
}

static tess_status check_copies(tess_comm *comm, tiny_run *t)
{
    char unit[TESS_NAME_NBYTES + 2];
    if (tess_comm_world(comm) == 1) {
        TESS_TRY(live(comm, t, &copy)); /* there is nothing to compare with */
        return expect_newest(comm, t, &copy, 9);
    }
    TESS_TRY(last_trained(comm, t, unit, sizeof unit));
    TESS_TRY(expect_odd(comm, t, &copy, unit));
    TESS_TRY(expect_odd(comm, t, &saved, unit));
    TESS_TRY(expect_newest(comm, t, &saved, 3));
    TESS_TRY(expect_odd(comm, t, &on_its_way, unit));
    TESS_CHECK(seen.told_numel == (tess_comm_rank(comm) == 0), TESS_E_STATE,
               "what was found was warned of %d times", (int)seen.told_numel);
    TESS_TRY(expect_newest(comm, t, &on_its_way, 3));
    TESS_TRY(check_full(comm, t, unit));
    TESS_TRY(expect_odd(comm, t, &number, "'the whole run'"));
    TESS_TRY(live(comm, t, &uncompared));
    return expect_newest(comm, t, &uncompared, 9);
}

/* Gather groups hold copies of the base: those that were not loaded alike do not begin. */
static tess_status check_groups(tess_comm *comm, tiny_run *t)
{
    static const life groups = {.name = "groups", .override = {"shard.gather_group=1"}};
    static const flip first = {.step = 1};
    tess_session *session = NULL;
    TESS_TRY(open_life(comm, t, &groups, &session));
    if (tess_comm_rank(comm) == tess_comm_world(comm) - 1)
        flip_base(session, &first);
    const tess_status st = train(session);
    tess_session_close(&session);
    if (tess_comm_world(comm) == 1)
        return st;
    return expect_end(comm, "groups", st,
                      "after step 0: frozen bytes of 'embed' differ between ranks");
}

static tess_status check_collectives(tess_comm *comm, tiny_run *t)
{
    static const life checked = {.name = "checked",
                                 .override = {QUANTIZED, "shard.check_collectives=true"}};
    return check_repair(comm, t, "clean", &checked, 0);
}

/* ---- replay ---- */

static const life replayed = {.name = "replayed",
                              .override = {QUANTIZED, "compute.check_replay=2"}};
static const life wrong = {.name = "wrong",
                           .override = {QUANTIZED, "compute.check_replay=2"},
                           .wrong_step = 4,
                           .wrong_rank = 2};
/* Ranks without a micro-batch, buckets that are gathered again, slabs that nothing is ahead of. */
static const life few = {.name = "few",
                         .override = {"train.micro_batches=2", "shard.gather_group=world",
                                      "shard.bucket_bytes=0", "shard.reshard_after_forward=on",
                                      "shard.prefetch=0", "compute.check_replay=1"}};
static const life not_replayed = {.name = "not replayed",
                                  .override = {QUANTIZED, "compute.check_replay=2"},
                                  .wrong_step = 5,
                                  .wrong_rank = 2};

static tess_status check_replay(tess_comm *comm, tiny_run *t)
{
    char words[200];
    const int rank = wrong.wrong_rank % tess_comm_world(comm);
    TESS_TRY(check_repair(comm, t, "clean", &replayed, 0));
    TESS_TRY(live(comm, t, &few));
    snprintf(words, sizeof words,
             "step 4: rank %d computed micro-batch %d twice, and the gradients of unit '", rank,
             24 + rank);
    const tess_status st = live(comm, t, &wrong);
    TESS_TRY(expect_end(comm, "wrong", st, words));
    TESS_TRY(expect_newest(comm, t, &wrong, 3));
    TESS_TRY(live(comm, t, &not_replayed));
    tess_status differs = TESS_OK;
    if (expect_same(t, "not replayed", "clean") == TESS_OK)
        differs = TESS_FAIL(TESS_E_STATE, "the wrong gradient has no effect on the run");
    else
        tess_error_clear();
    return tess_agree(comm, differs);
}

static tess_status run_all(tess_comm *comm, tiny_run *t)
{
    TESS_TRY(check_base(comm, t));
    TESS_TRY(check_collectives(comm, t));
    TESS_TRY(check_copies(comm, t));
    TESS_TRY(check_groups(comm, t));
    TESS_TRY(check_replay(comm, t));
    return check_source(comm, t);
}

static tess_status run(tess_comm *comm)
{
    tiny_run t;
    TESS_TRY(tiny_run_create(comm, &t));
    const tess_status st = tess_agree(comm, run_all(comm, &t));
    tiny_run_destroy(comm, &t);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
