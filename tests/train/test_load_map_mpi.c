/*
 * A run that goes on from a checkpoint whose tensors are not its own: refused by default; what
 * --load-map and --allow-missing name is read, left and started as they say, and nothing else.
 */
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "shard/ckpt_priv.h"
#include "support/rank_test.h"
#include "support/tiny_run.h"
#include "train/session_priv.h"

typedef struct bench {
    tess_comm *comm;
    tiny_run t;
    tess_session *session;
} bench;

/* A launch: the run's folder, what it adapts, and what it lets pass; NULL: nothing. */
typedef struct launch {
    const char *name, *targets, *map, *missing;
    const char *resume; /* NULL: auto */
} launch;

static tess_status open_run(bench *b, const launch *l)
{
    static const volatile sig_atomic_t always = 1;
    const tess_session_options options = {.kind = TESS_SESSION_TRAIN,
                                          .stop_request = &always,
                                          .accept_config_change =
                                              l->map != NULL || l->missing != NULL,
                                          .exceptions = {.map = &l->map,
                                                         .map_numel = l->map != NULL,
                                                         .missing = &l->missing,
                                                         .missing_numel = l->missing != NULL}};
    const char *const overrides[] = {l->targets, l->resume, NULL};
    return tiny_run_open_as(b->comm, &b->t, l->name, overrides, &options, &b->session);
}

/* One step, after which the run saves and stops. */
static tess_status one_step(bench *b, const launch *l)
{
    TESS_TRY(open_run(b, l));
    const tess_status st = tess_session_train(b->session);
    tess_session_close(&b->session);
    if (st != TESS_E_PREEMPTED)
        return st == TESS_OK ? TESS_FAIL(TESS_E_STATE, "the run ended") : st;
    tess_error_clear();
    return TESS_OK;
}

/* Masters and moments of the tensors whose names hold `word`, of all ranks together. */
static tess_status hash_index(bench *b, const ckpt_index *index, const char *word,
                              tess_logical_hash *out)
{
    const tess_ckpt_set *set = index->set;
    int64_t sums[4], numel = 0;
    *out = (tess_logical_hash){0};
    for (int64_t p = 0; p < index->pair_numel; p++) {
        const tess_ckpt_record *r = &set->records[index->pairs[p].record_idx];
        if (strstr(set->tensors[index->pairs[p].tensor_idx].name, word) == NULL)
            continue;
        ckpt_hash_pair(set, index->pairs[p], r->view.data, r->lo_idx, r->hi_idx, out);
        numel++;
    }
    TESS_CHECK(numel > 0, TESS_E_STATE, "no tensor of this run is a %s", word);
    return ckpt_hash_reduce(b->comm, true, out, 1, sums);
}

static tess_status hash_state(bench *b, const char *word, tess_logical_hash *out)
{
    ckpt_index index = {0};
    TESS_TRY(ckpt_index_create("test", &b->session->records.state, &index));
    const tess_status st = hash_index(b, &index, word, out);
    ckpt_index_destroy(&index);
    return st;
}

/* State of k_proj and v_proj as a launch opens it; a word that is NULL is left out. */
typedef struct found {
    tess_logical_hash k, v;
    int64_t step;
    char changes[600];
} found;

static tess_status look(bench *b, const launch *l, const char *k, const char *v, found *out)
{
    memset(out, 0, sizeof *out);
    TESS_TRY(open_run(b, l));
    tess_status st = k != NULL ? hash_state(b, k, &out->k) : TESS_OK;
    if (st == TESS_OK && v != NULL)
        st = hash_state(b, v, &out->v);
    out->step = tess_session_step(b->session);
    snprintf(out->changes, sizeof out->changes, "%s",
             b->session->load_changes != NULL ? b->session->load_changes : "");
    tess_session_close(&b->session);
    return tess_agree(b->comm, st);
}

static bool is_same(const tess_logical_hash *a, const tess_logical_hash *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}

static tess_status expect(bench *b, bool is_true, const char *what)
{
    return tess_agree(b->comm, is_true ? TESS_OK : TESS_FAIL(TESS_E_STATE, "%s", what));
}

static tess_status expect_refusal(bench *b, const launch *l, tess_status wanted, const char *word)
{
    const tess_status st = open_run(b, l);
    tess_session_close(&b->session);
    if (st != wanted || strstr(tess_error_message(), word) == NULL)
        return tess_agree(b->comm, TESS_FAIL(TESS_E_STATE, "%s without '%s': %.900s",
                                             tess_status_name(st), word, tess_error_message()));
    tess_error_clear();
    return tess_agree(b->comm, TESS_OK);
}

static const char of_k[] = "lora.targets=[k_proj]", of_v[] = "lora.targets=[v_proj]",
                  of_both[] = "lora.targets=[k_proj, v_proj]";
static const char any_v[] = "*.v_proj.*";

/* Modules that a run adds start as a fresh run's, the others go on. */
static tess_status test_added(bench *b)
{
    found before, fresh, after, later;
    TESS_TRY(one_step(b, &(launch){.name = "a", .targets = of_k}));
    TESS_TRY(look(b, &(launch){.name = "a", .targets = of_k}, "k_proj", NULL, &before));
    TESS_TRY(look(b, &(launch){.name = "fresh", .targets = of_both}, "k_proj", "v_proj", &fresh));
    TESS_TRY(expect(b, !is_same(&before.k, &fresh.k), "a step changes what is trained"));
    const launch strict = {.name = "a", .targets = of_both};
    launch add = {.name = "a", .targets = of_both, .missing = "*.q_proj.*"};
    TESS_TRY(expect_refusal(b, &strict, TESS_E_CONFIG, "lora.targets"));
    TESS_TRY(
        expect_refusal(b, &add, TESS_E_FORMAT, "v_proj.lora_A.weight' of this run is missing"));
    add.missing = any_v;
    TESS_TRY(look(b, &add, "k_proj", "v_proj", &after));
    TESS_TRY(expect(b, after.step == 1 && is_same(&after.k, &before.k), "k_proj goes on"));
    TESS_TRY(expect(b, is_same(&after.v, &fresh.v), "v_proj starts as in a fresh run"));
    TESS_TRY(expect(b, strcmp(after.changes, "step 1: --allow-missing '*.v_proj.*'") == 0,
                    "what was let pass is told"));
    /* once a checkpoint has it, it is a run like any other, also with the same options again */
    TESS_TRY(one_step(b, &add));
    TESS_TRY(look(b, &strict, "k_proj", "v_proj", &later));
    TESS_TRY(look(b, &add, "k_proj", "v_proj", &after));
    TESS_TRY(expect(b, later.step == 2 && strcmp(later.changes, after.changes) == 0, "once"));
    TESS_TRY(expect(b, is_same(&later.k, &after.k) && is_same(&later.v, &after.v), "same state"));
    return expect(b, !is_same(&later.v, &fresh.v), "v_proj is trained");
}

/* Of the checkpoint of both, one is left, or is read as the other. */
static tess_status test_left_and_renamed(bench *b)
{
    found both, v, k;
    TESS_TRY(look(b, &(launch){.name = "a", .targets = of_both}, "k_proj", "v_proj", &both));
    launch l = {.name = "a", .targets = of_v, .map = "*.k_proj.*="};
    TESS_TRY(look(b, &l, NULL, "v_proj", &v));
    TESS_TRY(expect(b, v.step == 2 && is_same(&v.v, &both.v), "v_proj goes on alone"));
    TESS_TRY(expect(b, strstr(v.changes, "\nstep 2: --load-map '*.k_proj.*='") != NULL, "told"));
    TESS_TRY(one_step(b, &l));
    TESS_TRY(look(b, &(launch){.name = "a", .targets = of_v}, NULL, "v_proj", &v));
    l = (launch){.name = "a", .targets = of_k, .map = "*.v_proj.*=*.k_proj.*"};
    TESS_TRY(look(b, &l, "k_proj", NULL, &k));
    TESS_TRY(expect(b, k.step == 3 && is_same(&k.k, &v.v), "k_proj has what v_proj had"));
    l.map = "*.q_proj.*=*.k_proj.*";
    TESS_TRY(expect_refusal(b, &l, TESS_E_FORMAT, "which this run does not have"));
    l = (launch){.name = "a", .targets = of_v, .map = "*.q_proj.*="};
    TESS_TRY(expect_refusal(b, &l, TESS_E_FORMAT, "'*.q_proj.*=' is for no tensor"));
    l = (launch){.name = "a", .targets = of_v, .missing = any_v};
    TESS_TRY(expect_refusal(b, &l, TESS_E_FORMAT, "matches no tensor of this run"));
    l = (launch){.name = "a", .targets = of_k, .map = "*.v_proj.*=*.k_proj.lora_A"};
    TESS_TRY(expect_refusal(b, &l, TESS_E_ARG, "as many '*'"));
    l = (launch){.name = "new", .targets = of_v, .missing = any_v};
    TESS_TRY(expect_refusal(b, &l, TESS_E_NOT_FOUND, "holds no checkpoint"));
    l = (launch){.name = "a", .targets = of_v, .missing = any_v, .resume = "output.resume=never"};
    return expect_refusal(b, &l, TESS_E_CONFIG, "output.resume: never");
}

static tess_status run(tess_comm *comm)
{
    bench b = {.comm = comm};
    TESS_TRY(tiny_run_create(comm, &b.t));
    tess_status st = test_added(&b);
    if (st == TESS_OK)
        st = test_left_and_renamed(&b);
    if (st != TESS_OK)
        fprintf(stderr, "rank %d: %s\n%s", tess_comm_rank(comm), tess_error_message(),
                tess_error_trace_text());
    tess_session_close(&b.session);
    tiny_run_destroy(comm, &b.t);
    return tess_agree(comm, st);
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
