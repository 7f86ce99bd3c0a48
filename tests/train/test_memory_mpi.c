/*
 * The peak resident set of a whole run, load included, as the kernel counts it, stays within what
 * the run's own plan.json says: its arenas and the one constant for everything else. (Runs that
 * load files: test_memory_load.sh.) From step 2 on the thread that trains allocates nothing, with
 * evaluations and checkpoints between the steps.
 */
#include <stdio.h>
#include <string.h>
#include <sys/types.h>

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

/* ---- allocations ---- */

/* From the first kernel of step 2 to the update of the last step the thread that trains may not
 * allocate: not in steps, which refuse it anyway, and not in what lies between them. */
static tess_session *watched;
static bool is_frozen;
static int64_t probe_numel;
static tess_status probe_status;

static tess_status embedding_forward(const tess_embedding_args *a, tess_stream *s)
{
    if (watched != NULL && tess_session_step(watched) == 1 && !is_frozen) {
        /* the step itself refuses: this thread has not been frozen by the test yet */
        void *memory = NULL;
        probe_numel++;
        probe_status = tess_alloc(64, &memory);
        tess_free(memory);
        tess_error_clear();
        tess_alloc_freeze();
        is_frozen = true;
    }
    return tess_kernels_cpu.embedding_forward(a, s);
}

static void thaw(void)
{
    if (is_frozen)
        tess_alloc_thaw();
    is_frozen = false;
}

static tess_status adamw(const tess_adamw_args *a, tess_stream *s)
{
    if (watched != NULL && tess_session_step(watched) == tess_session_run(watched)->train.steps - 1)
        thaw();
    return tess_kernels_cpu.adamw(a, s);
}

/* @param more  further overrides @param[out] events  allocations of the whole run, all threads */
static tess_status train(tess_comm *comm, tiny_run *t, const char *name, const char *const more[3],
                         int64_t *events)
{
    const char *const overrides[] = {"train.micro_batches=4",
                                     "train.warmup_steps=0",
                                     "shard.gather_group=world",
                                     "shard.reshard_after_forward=on",
                                     more[0],
                                     more[1],
                                     more[2],
                                     NULL};
    tess_kernels kernels = tess_kernels_cpu;
    const tess_session_options o = {.kind = TESS_SESSION_TRAIN, .kernels = &kernels};
    const int64_t before = tess_alloc_events();
    const size_t held_nbytes = tess_alloc_nbytes();
    kernels.embedding_forward = embedding_forward;
    kernels.adamw = adamw;
    probe_numel = 0;
    TESS_TRY(tiny_run_open_as(comm, t, name, overrides, &o, &watched));
    const tess_status st = tess_session_train(watched);
    thaw();
    tess_session_close(&watched);
    TESS_TRY(st);
    *events = tess_alloc_events() - before;
    TESS_CHECK(probe_numel == 1 && probe_status == TESS_E_STATE, TESS_E_STATE,
               "%lld allocations were tried in step 2 of '%s', with %s", (long long)probe_numel,
               name, tess_status_name(probe_status));
    TESS_CHECK(tess_alloc_nbytes() == held_nbytes, TESS_E_STATE, "'%s' left %zd bytes", name,
               (ssize_t)(tess_alloc_nbytes() - held_nbytes));
    return TESS_OK;
}

/* What may allocate once step 2 began: the thread that writes a checkpoint, for names and handles
 * of its files. Measured: 5 blocks a save, and 3 more on rank 0 for one that is removed. */
enum { SAVE_EVENTS_MAX = 10 };

/* Runs of 4 and of 8 steps, both of which save and evaluate as they are told, differ by this many
 * allocations at most. */
static tess_status compare_lengths(tess_comm *comm, tiny_run *t, const char *eval,
                                   const char *checkpoint, int64_t most)
{
    static int name_numel;
    char name[2][20];
    int64_t events[2];
    for (int i = 0; i < 2; i++) {
        const char *const more[3] = {i == 0 ? "train.steps=4" : "train.steps=8", eval, checkpoint};
        snprintf(name[i], sizeof name[i], "length-%d", name_numel++);
        TESS_TRY(train(comm, t, name[i], more, &events[i]));
    }
    TESS_CHECK(events[0] > 0 && events[1] - events[0] <= most && events[1] >= events[0],
               TESS_E_STATE,
               "%s %s: 4 steps made %lld allocations, 8 steps %lld; at most %lld more expected",
               eval, checkpoint, (long long)events[0], (long long)events[1], (long long)most);
    return TESS_OK;
}

static tess_status check_allocations(tess_comm *comm, tiny_run *t)
{
    TESS_TRY(compare_lengths(comm, t, "train.eval_every=0", "output.checkpoint_every=0", 0));
    TESS_TRY(compare_lengths(comm, t, "train.eval_every=1", "output.checkpoint_every=0", 0));
    return compare_lengths(comm, t, "train.eval_every=1", "output.checkpoint_every=1",
                           4 * SAVE_EVENTS_MAX);
}

static tess_status check(tess_comm *comm, tiny_run *t)
{
    static const char *const more[3] = {"train.steps=3", "train.eval_every=0",
                                        "output.checkpoint_every=0"};
    char path[400];
    memory_plan plan = {0};
    int64_t events = 0;
    tess_status st = TESS_OK;
    snprintf(path, sizeof path, "%s/config.json", t->model);
    if (tess_comm_rank(comm) == 0)
        st = tess_io_write_all(t->ctx.io, path, config_text, strlen(config_text));
    TESS_TRY(tess_agree(comm, st));
    TESS_TRY(train(comm, t, "memory", more, &events));
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
    return TESS_OK;
}

static tess_status run(tess_comm *comm)
{
    tiny_run t;
    TESS_TRY(tiny_run_create(comm, &t));
    tess_status st = check_allocations(comm, &t); /* of the small model */
    if (st == TESS_OK)
        st = check(comm, &t);
    st = tess_agree(comm, st);
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
