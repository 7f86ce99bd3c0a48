/*
 * The bits of a run do not depend on ranks, gather groups, buckets, prefetch, checkpointing,
 * resharding, threads or a communication thread.
 *
 * NF4 double-quantized base, packed data with masked prompts, dropout, weight decay, clipping. Each
 * variant is compared with the plainest run: one rank, everything off.
 *
 * Runs at 5 and 8 ranks too. Chooses the communication thread itself.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/rank_test.h"
#include "support/tiny_run.h"

typedef struct variant {
    const char *micro_batches;
    const char *group; /* "2" is the world where 2 does not divide it */
    const char *prefetch, *checkpointing, *reshard, *threads;
    bool has_comm_thread;
    const char *bucket;
} variant;

/* A pairwise cover: any two choices of two keys meet in a row. M = 7 and 12 give rounds in which
 * some ranks have nothing to do. */
static const variant variants[] = {
    {"8", "1", "0", "off", "off", "1", true, "0"},
    {"8", "2", "1", "on", "on", "1", false, "64KiB"},
    {"8", "world", "1", "off", "on", "2", false, "0"},
    {"7", "1", "1", "on", "off", "2", true, "auto"},
    {"7", "2", "0", "off", "on", "1", true, "auto"},
    {"7", "world", "0", "on", "off", "2", false, "64KiB"},
    {"12", "1", "1", "on", "on", "1", false, "64KiB"},
    {"12", "2", "1", "on", "off", "2", true, "0"},
    {"12", "world", "0", "off", "off", "1", true, "auto"},
};

/* The engine of a communicator has a thread or none; both lie over one MPI and are used in turn. */
typedef struct world_pair {
    tess_comm *plain, *threaded;
} world_pair;

static tess_status reference(tess_comm *self, tiny_run *t, const char *micro_batches,
                             tiny_outcome *out)
{
    char m[64], name[64];
    snprintf(m, sizeof m, "train.micro_batches=%s", micro_batches);
    snprintf(name, sizeof name, "reference-%s", micro_batches);
    const char *const overrides[] = {m, "compute.activation_checkpointing=off", "shard.prefetch=0",
                                     NULL};
    return tiny_run_train(self, t, name, overrides, out);
}

static tess_status check_reference(const tiny_outcome *r)
{
    TESS_CHECK(r->step_numel == 20, TESS_E_STATE, "%lld steps", (long long)r->step_numel);
    TESS_CHECK(r->clipped_numel >= 10, TESS_E_STATE, "clipping in %lld of 20 steps",
               (long long)r->clipped_numel);
    /* Uniform guessing costs ln 61 = 4.11 nats; the adapters alone must learn a good part of the
     * chain. */
    TESS_CHECK(r->last_loss < r->first_loss - 0.3, TESS_E_STATE, "loss %.4f to %.4f", r->first_loss,
               r->last_loss);
    return TESS_OK;
}

static tess_status run_variant(const world_pair *w, tiny_run *t, const variant *v, int idx,
                               const tiny_outcome *want)
{
    tess_comm *comm = v->has_comm_thread ? w->threaded : w->plain;
    const int world = tess_comm_world(comm);
    const bool is_pair = strcmp(v->group, "2") == 0;
    const char *group = is_pair && world % 2 != 0 ? "world" : v->group;
    char text[8][64], name[64];
    tiny_outcome got;
    snprintf(text[0], sizeof text[0], "train.micro_batches=%s", v->micro_batches);
    snprintf(text[1], sizeof text[1], "shard.gather_group=%s", group);
    snprintf(text[2], sizeof text[2], "shard.prefetch=%s", v->prefetch);
    snprintf(text[3], sizeof text[3], "compute.activation_checkpointing=%s", v->checkpointing);
    snprintf(text[4], sizeof text[4], "shard.reshard_after_forward=%s", v->reshard);
    snprintf(text[5], sizeof text[5], "compute.threads=%s", v->threads);
    snprintf(text[6], sizeof text[6], "compute.comm_thread=%s", v->has_comm_thread ? "on" : "off");
    snprintf(text[7], sizeof text[7], "shard.bucket_bytes=%s", v->bucket);
    snprintf(name, sizeof name, "variant-%d", idx);
    const char *const overrides[] = {text[0], text[1], text[2], text[3], text[4],
                                     text[5], text[6], text[7], NULL};
    TESS_TRY(tiny_run_train(comm, t, name, overrides, &got));
    TESS_CHECK(tess_sha256_is_equal(&got.losses, &want->losses), TESS_E_STATE,
               "variant %d (M %s, group %s): losses differ; last %.17g, one rank has %.17g", idx,
               v->micro_batches, v->group, got.last_loss, want->last_loss);
    TESS_CHECK(tess_sha256_is_equal(&got.adapter, &want->adapter), TESS_E_STATE,
               "variant %d: adapter differs", idx);
    return TESS_OK;
}

static const char *const numels[] = {"8", "7", "12"};

static const tiny_outcome *wanted(const tiny_outcome *want, const char *micro_batches)
{
    for (int k = 0; k < TESS_NELEM(numels); k++)
        if (strcmp(micro_batches, numels[k]) == 0)
            return &want[k];
    return NULL;
}

static tess_status run_cover(const world_pair *w, tiny_run *t, const tiny_outcome *want)
{
    for (int i = 0; i < TESS_NELEM(variants); i++)
        TESS_TRY(run_variant(w, t, &variants[i], i, wanted(want, variants[i].micro_batches)));
    return TESS_OK;
}

/* Every combination: the target check-same-bits. */
static tess_status run_product(const world_pair *w, tiny_run *t, const tiny_outcome *want)
{
    static const char *const groups[] = {"1", "2", "world"}, *const bits[] = {"0", "1"};
    static const char *const switches[] = {"off", "on"}, *const threads[] = {"1", "2"};
    static const char *const buckets[] = {"0", "64KiB", "auto"};
    for (int i = 0; i < 3 * 3 * 32; i++) {
        const variant v = {numels[i % 3],        groups[i / 3 % 3],    bits[i / 9 & 1],
                           switches[i / 18 & 1], switches[i / 36 & 1], threads[i / 72 & 1],
                           (i / 144 & 1) != 0,   buckets[i % 7 % 3]};
        TESS_TRY(run_variant(w, t, &v, 100 + i, wanted(want, v.micro_batches)));
    }
    return TESS_OK;
}

/* Rank 0 alone makes the references; the others wait in the agreement. */
static tess_status run_all(const world_pair *w, tess_comm *self, tiny_run *t)
{
    tess_comm *comm = w->plain;
    tiny_outcome want[TESS_NELEM(numels)] = {0};
    tess_status st = TESS_OK;
    for (int i = 0; i < TESS_NELEM(numels) && st == TESS_OK && tess_comm_rank(comm) == 0; i++)
        st = reference(self, t, numels[i], &want[i]);
    if (st == TESS_OK && tess_comm_rank(comm) == 0)
        st = check_reference(&want[0]);
    TESS_TRY(tess_agree(comm, st));
    TESS_TRY(tess_comm_bcast(comm, 0, want, sizeof want));
    return getenv("TESS_TEST_PRODUCT") != NULL ? run_product(w, t, want) : run_cover(w, t, want);
}

static tess_status run(tess_comm *comm)
{
    world_pair w = {.plain = comm};
    tess_comm *self = NULL;
    tiny_run t;
    TESS_TRY(tess_comm_create_mpi(NULL, NULL, TESS_COMM_THREAD_ON, NULL, &w.threaded));
    TESS_TRY(tess_comm_create_self(&self));
    tess_status st = tiny_run_create(comm, &t);
    if (st == TESS_OK) {
        st = run_all(&w, self, &t);
        tiny_run_destroy(comm, &t);
    }
    tess_comm_destroy(&self);
    tess_comm_destroy(&w.threaded);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
