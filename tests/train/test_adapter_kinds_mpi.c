/*
 * Every kind of adapter: the same bits on one rank and on all of them, and after a run that is
 * stopped by all and goes on alone, or the other way round.
 */
#include <stdio.h>
#include <string.h>

#include "support/rank_test.h"
#include "support/tiny_run.h"

enum { STEP_NUMEL = 4, STOP_AFTER = 2, KEY_MAX = 8 };

#define COMMON "train.steps=4", "train.micro_batches=3", "train.warmup_steps=1"

typedef struct kind {
    const char *name;
    const char *override[KEY_MAX + 1];
} kind;

static const kind kinds[] = {
    {"patterns",
     {COMMON, "lora.rslora=true", "lora.targets=[q_proj, v_proj, down_proj, lm_head]",
      "lora.layers=[0, 2]", "lora.rank_pattern={v_proj: 2, '.*': 3}",
      "lora.alpha_pattern={q_proj: 1.5}"}},
    {"saved", {COMMON, "lora.modules_to_save=[norm, v_proj, embed_tokens, lm_head]"}},
    {"dora", {COMMON, "lora.dora=true"}},
    {"pissa", {COMMON, "lora.init=pissa", "lora.rank=3"}},
    {"pissa-plain",
     {COMMON, "lora.init=pissa", "base.format=bf16", "lora.targets=[q_proj, down_proj, lm_head]"}},
    {"loftq", {COMMON, "lora.init=loftq", "lora.init_iterations=3", "base.double_quant=false"}},
    {"dora-qint4",
     {COMMON, "lora.dora=true", "base.format=qint4", "lora.targets=[q_proj, o_proj]"}},
    {"gaussian", {COMMON, "lora.init=gaussian"}},
    {"dora-plain", {COMMON, "lora.dora=true", "base.format=keep", "lora.dropout=0"}},
};

typedef struct world_pair {
    tess_comm *comm, *self;
    tiny_run t;
} world_pair;

static tess_status compare(world_pair *w, const char *name, const tiny_outcome *want)
{
    tiny_outcome got;
    TESS_TRY(tess_agree(w->comm, tiny_run_outcome(&w->t, name, &got)));
    TESS_CHECK(got.step_numel == STEP_NUMEL, TESS_E_STATE, "'%s' has %lld steps", name,
               (long long)got.step_numel);
    TESS_CHECK(tess_sha256_is_equal(&got.losses, &want->losses), TESS_E_STATE,
               "'%s': losses differ; last %.17g, one rank has %.17g", name, got.last_loss,
               want->last_loss);
    TESS_CHECK(tess_sha256_is_equal(&got.adapter, &want->adapter), TESS_E_STATE,
               "'%s': adapter differs from that of one rank", name);
    return TESS_OK;
}

/* Rank 0 alone; the others wait. */
static tess_status alone(world_pair *w, const kind *k, const char *name, int64_t first,
                         int64_t stop)
{
    const bool is_root = tess_comm_rank(w->comm) == 0;
    return tess_agree(w->comm, is_root
                                   ? tiny_run_until(w->self, &w->t, name, k->override, first, stop)
                                   : TESS_OK);
}

static tess_status check_kind(world_pair *w, const kind *k)
{
    char whole[64], all[64], shrunk[64], grown[64];
    tiny_outcome want;
    snprintf(whole, sizeof whole, "%s-whole", k->name);
    snprintf(all, sizeof all, "%s-all", k->name);
    snprintf(shrunk, sizeof shrunk, "%s-shrunk", k->name);
    snprintf(grown, sizeof grown, "%s-grown", k->name);
    TESS_TRY(alone(w, k, whole, 0, 0));
    TESS_TRY(tess_agree(w->comm, tiny_run_outcome(&w->t, whole, &want)));
    TESS_CHECK(want.last_loss < want.first_loss, TESS_E_STATE, "'%s' learns nothing: %.6f to %.6f",
               whole, want.first_loss, want.last_loss);
    TESS_TRY(tiny_run_until(w->comm, &w->t, all, k->override, 0, 0));
    TESS_TRY(compare(w, all, &want));
    TESS_TRY(tiny_run_until(w->comm, &w->t, shrunk, k->override, 0, STOP_AFTER));
    TESS_TRY(alone(w, k, shrunk, STOP_AFTER, 0));
    TESS_TRY(compare(w, shrunk, &want));
    TESS_TRY(alone(w, k, grown, 0, STOP_AFTER));
    TESS_TRY(tiny_run_until(w->comm, &w->t, grown, k->override, STOP_AFTER, 0));
    return compare(w, grown, &want);
}

static tess_status run(tess_comm *comm)
{
    world_pair w = {.comm = comm};
    TESS_TRY(tess_comm_create_self(&w.self));
    tess_status st = tiny_run_create(comm, &w.t);
    if (st == TESS_OK) {
        for (int i = 0; i < TESS_NELEM(kinds) && st == TESS_OK; i++)
            st = check_kind(&w, &kinds[i]);
        tiny_run_destroy(comm, &w.t);
    }
    tess_comm_destroy(&w.self);
    return st;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
