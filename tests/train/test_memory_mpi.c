/*
 * The peak resident set of a whole run, load included, as the kernel counts it, stays within what
 * the run's own plan.json says: its arenas and the one constant for everything else.
 */
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "format/json.h"
#include "support/rank_test.h"
#include "support/tiny_run.h"

/* Sanitizers keep shadow memory and quarantined blocks: their resident set says nothing. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define IS_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) ||                         \
    __has_feature(memory_sanitizer)
#define IS_SANITIZED 1
#endif
#endif
#ifndef IS_SANITIZED
#define IS_SANITIZED 0
#endif

enum { SKIPPED = 77, MIB = 1 << 20 };

/* About 30 million parameters: weights outweigh activations of 64 tokens. */
static const char config_text[] =
    "{\"model_type\": \"llama\", \"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": 512,"
    " \"intermediate_size\": 1792, \"num_hidden_layers\": 8, \"num_attention_heads\": 8,"
    " \"num_key_value_heads\": 4, \"head_dim\": 64, \"vocab_size\": 2048, \"rms_norm_eps\": 1e-6,"
    " \"rope_theta\": 10000.0, \"tie_word_embeddings\": false, \"hidden_act\": \"silu\","
    " \"max_position_embeddings\": 512, \"bos_token_id\": 0, \"eos_token_id\": 1,"
    " \"torch_dtype\": \"bfloat16\"}\n";

static const double PARAM_NUMEL =
    8.0 * (2 * 512 * 512 + 2 * 512 * 256 + 3 * 512 * 1792) + 2.0 * 2048 * 512;

static size_t start_nbytes; /* resident when main began */

typedef struct memory_plan {
    int64_t total_nbytes, outside_nbytes, base_nbytes;
} memory_plan;

static tess_status read_plan(tiny_run *t, const char *name, memory_plan *out)
{
    char path[400];
    tess_json *root = NULL;
    const tess_json *memory = NULL;
    snprintf(path, sizeof path, "%s/%s/plan.json", t->dir, name);
    TESS_TRY(tess_json_read(t->ctx.io, path, &root));
    tess_status st = tess_json_get_object(root, "memory_bytes", &memory);
    if (st == TESS_OK)
        st = tess_json_get_i64(memory, "total", &out->total_nbytes);
    if (st == TESS_OK)
        st = tess_json_get_i64(memory, "outside_arenas", &out->outside_nbytes);
    if (st == TESS_OK)
        st = tess_json_get_i64(memory, "base", &out->base_nbytes);
    tess_json_destroy(&root);
    return st;
}

/* @param[out] events  allocations of the whole run */
static tess_status train(tess_comm *comm, tiny_run *t, const char *name, const char *steps,
                         int64_t *events)
{
    const char *const overrides[] = {steps,
                                     "train.micro_batches=4",
                                     "train.warmup_steps=0",
                                     "train.eval_every=0",
                                     "shard.gather_group=world",
                                     "shard.reshard_after_forward=on",
                                     NULL};
    tess_session *session = NULL;
    const int64_t before = tess_alloc_events();
    TESS_TRY(tiny_run_open(comm, t, name, overrides, TESS_SESSION_TRAIN, &session));
    const tess_status st = tess_session_train(session);
    tess_session_close(&session);
    *events = tess_alloc_events() - before;
    return st;
}

/* Longer runs allocate no more than short ones: steps allocate nothing. */
static tess_status check_steps_allocate_nothing(tess_comm *comm, tiny_run *t, int64_t short_events)
{
    int64_t long_events = 0;
    TESS_TRY(train(comm, t, "longer", "train.steps=7", &long_events));
    TESS_CHECK(short_events > 0 && long_events == short_events, TESS_E_STATE,
               "3 steps made %lld allocations, 7 steps %lld", (long long)short_events,
               (long long)long_events);
    return TESS_OK;
}

static tess_status check(tess_comm *comm, tiny_run *t)
{
    char path[400];
    memory_plan plan = {0};
    int64_t events = 0;
    tess_status st = TESS_OK;
    snprintf(path, sizeof path, "%s/config.json", t->model);
    if (tess_comm_rank(comm) == 0)
        st = tess_io_write_all(t->ctx.io, path, config_text, strlen(config_text));
    TESS_TRY(tess_agree(comm, st));
    TESS_TRY(train(comm, t, "memory", "train.steps=3", &events));
    TESS_TRY(tess_comm_barrier(comm)); /* plan.json is complete */
    TESS_TRY(read_plan(t, "memory", &plan));
    const int world = tess_comm_world(comm);
    const size_t used = tess_peak_rss_nbytes() - start_nbytes;
    fprintf(stderr,
            "rank %d of %d: peak %.1f MiB above start, plan: arenas %.1f MiB (base %.1f) and at "
            "most %lld MiB outside\n",
            tess_comm_rank(comm), world, (double)used / MIB,
            (double)(plan.total_nbytes - plan.outside_nbytes) / MIB, (double)plan.base_nbytes / MIB,
            (long long)(plan.outside_nbytes / MIB));
    TESS_CHECK(plan.outside_nbytes == 64 * MIB, TESS_E_STATE,
               "memory outside arenas: expected 64 MiB, the plan says %lld bytes",
               (long long)plan.outside_nbytes);
    TESS_CHECK((int64_t)used <= plan.total_nbytes, TESS_E_STATE,
               "peak of %zu bytes above the start exceeds the plan's %lld", used,
               (long long)plan.total_nbytes);
    /* The base was really loaded, and really sharded: half a byte a weight over all ranks, beside
     * the constants and the bf16 embeddings. */
    TESS_CHECK((int64_t)used > plan.base_nbytes, TESS_E_STATE,
               "peak of %zu bytes is less than the base of %lld", used,
               (long long)plan.base_nbytes);
    TESS_CHECK((double)plan.base_nbytes * world > 0.5 * PARAM_NUMEL &&
                   (double)plan.base_nbytes * world < 0.8 * PARAM_NUMEL,
               TESS_E_STATE, "base of %lld bytes on %d ranks for %.0f weights",
               (long long)plan.base_nbytes, world, PARAM_NUMEL);
    return check_steps_allocate_nothing(comm, t, events);
}

static tess_status run(tess_comm *comm)
{
    tiny_run t;
    TESS_TRY(tiny_run_create(comm, &t));
    const tess_status st = tess_agree(comm, check(comm, &t));
    tiny_run_destroy(comm, &t);
    return st;
}

int main(int argc, char **argv)
{
    if (IS_SANITIZED) {
        fprintf(stderr, "skipped: resident memory means nothing under a sanitizer\n");
        return SKIPPED;
    }
    start_nbytes = tess_peak_rss_nbytes();
    if (start_nbytes == 0) {
        fprintf(stderr, "skipped: this kernel does not tell a process's peak (VmHWM)\n");
        return SKIPPED;
    }
    return rank_test_main(argc, argv, run);
}
