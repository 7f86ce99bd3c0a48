/* `tessera plan` for 10,000 ranks of a 405B model: within 200 MiB, and with what single ranks hold,
 * how a step goes, and a timeline that is JSON. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/clock.h"
#include "core/memory.h"
#include "format/json.h"
#include "train/session.h"

enum { MEMORY_LIMIT_MIB = 200 };

typedef struct folder {
    char path[64], run[96], timeline[96];
    tess_ctx ctx;
} folder;

static void expect_ok(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s: %s", tess_status_name(st), tess_error_message());
}

static void write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

/* Sizes of Llama-3.1-405B. */
static int make_folder(void **state)
{
    static folder f;
    char path[128], run[1024];
    strcpy(f.path, "/tmp/tess_scale_XXXXXX");
    assert_non_null(mkdtemp(f.path));
    snprintf(path, sizeof path, "%s/config.json", f.path);
    snprintf(f.run, sizeof f.run, "%s/run.yaml", f.path);
    snprintf(f.timeline, sizeof f.timeline, "%s/timeline.json", f.path);
    write_file(path, "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\","
                     "\"hidden_size\":16384,\"intermediate_size\":53248,\"num_hidden_layers\":126,"
                     "\"num_attention_heads\":128,\"num_key_value_heads\":8,\"vocab_size\":128256,"
                     "\"rms_norm_eps\":1e-5,\"rope_theta\":500000.0,"
                     "\"max_position_embeddings\":8192,\"tie_word_embeddings\":false,"
                     "\"hidden_act\":\"silu\"}");
    snprintf(run, sizeof run,
             "model: {path: %s, init: random}\ndata: {path: none.h5, sequence_length: 4096}\n"
             "base: {format: nf4}\nlora: {rank: 16}\n"
             "train: {mode: lora, steps: 10, micro_batch: 1, micro_batches: 9000}\n"
             "output: {dir: %s/run}\n",
             f.path, f.path);
    write_file(f.run, run);
    expect_ok(tess_io_create(0, &f.ctx.io));
    *state = &f;
    return 0;
}

static int remove_folder(void **state)
{
    folder *f = *state;
    char path[128];
    snprintf(path, sizeof path, "%s/config.json", f->path);
    unlink(path);
    unlink(f->run);
    unlink(f->timeline);
    rmdir(f->path);
    tess_io_destroy(&f->ctx.io);
    return 0;
}

static tess_json *plan_of(folder *f, const tess_plan_request *request)
{
    const tess_session_options o = {.kind = TESS_SESSION_READER, .run_path = f->run};
    char *text = NULL;
    tess_json *root = NULL;
    expect_ok(tess_session_plan(&f->ctx, &o, request, &text));
    expect_ok(tess_json_parse("plan", text, strlen(text), &root));
    tess_free(text);
    return root;
}

static double member(const tess_json *v, const char *key)
{
    double x = -1.0;
    expect_ok(tess_json_get_f64(v, key, &x));
    return x;
}

static const tess_json *object(const tess_json *v, const char *key)
{
    const tess_json *out = NULL;
    expect_ok(tess_json_get_object(v, key, &out));
    return out;
}

static void check_range(const tess_json *ranges, const char *key)
{
    const tess_json *r = object(ranges, key);
    assert_true(member(r, "least") > 0 && member(r, "least") <= member(r, "most"));
    assert_in_range((int)member(r, "least_rank"), 0, 9999);
    assert_in_range((int)member(r, "most_rank"), 0, 9999);
}

static void test_405b_on_10000_ranks(void **state)
{
    folder *f = *state;
    const double start_s = tess_clock_s();
    tess_json *root = plan_of(f, &(tess_plan_request){.rank_numel = 10000,
                                                      .device = "h100-80g",
                                                      .timeline = f->timeline,
                                                      .is_json = true});
    print_message("planned and simulated in %.2f s, %zu MiB at most\n", tess_clock_s() - start_s,
                  tess_peak_rss_nbytes() >> 20);
#ifndef __SANITIZE_ADDRESS__
    assert_true(tess_peak_rss_nbytes() < (size_t)MEMORY_LIMIT_MIB << 20);
#endif
    const tess_json *single = object(root, "single_ranks"), *predicted = object(root, "predicted");
    check_range(single, "memory_bytes");
    check_range(single, "received_bytes");
    check_range(single, "sent_bytes");
    /* 1,000 ranks have no micro-batch, and send no gradients */
    assert_true(member(object(single, "sent_bytes"), "least_rank") >= 9000);
    assert_true(member(predicted, "step_s") > member(predicted, "exposed_comm_s"));
    const double tokens = 9000.0 * 4096.0 / member(predicted, "step_s");
    assert_true(member(predicted, "tokens_per_s") > 0.999 * tokens &&
                member(predicted, "tokens_per_s") < 1.001 * tokens);
    const double utilization = member(predicted, "model_flops_utilization");
    assert_true(utilization > 0.0 && utilization < 1.0);
    assert_true(member(predicted, "kernels_without_closed_form") == 0.0);
    tess_json_destroy(&root);
}

/* As trace viewers want it: complete events with times, lanes named, one process a rank. */
static void test_timeline_is_a_trace(void **state)
{
    folder *f = *state;
    tess_json *root = NULL;
    const tess_json *events = NULL;
    int complete_numel = 0, process_numel = 0;
    expect_ok(tess_json_read(f->ctx.io, f->timeline, &root));
    expect_ok(tess_json_get_array(root, "traceEvents", &events));
    for (int64_t i = 0; i < tess_json_numel(events); i++) {
        const tess_json *e = tess_json_at(events, i);
        const char *phase = NULL, *name = NULL;
        expect_ok(tess_json_get_string(e, "ph", &phase));
        expect_ok(tess_json_get_string(e, "name", &name));
        process_numel += strcmp(name, "process_name") == 0;
        if (strcmp(phase, "X") != 0)
            continue;
        assert_true(member(e, "ts") >= 0.0 && member(e, "dur") >= 0.0);
        complete_numel++;
    }
    assert_int_equal(process_numel, 3); /* ranks 0, 8999 and 9999 */
    assert_true(complete_numel > 1000);
    tess_json_destroy(&root);
}

/* Without a device the plan is the run's own: plan.json has no predictions in it. */
static void test_no_device_no_prediction(void **state)
{
    folder *f = *state;
    tess_json *root = plan_of(f, &(tess_plan_request){.rank_numel = 8, .is_json = true});
    assert_null(tess_json_find(root, "predicted"));
    assert_null(tess_json_find(root, "single_ranks"));
    tess_json_destroy(&root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_405b_on_10000_ranks),
        cmocka_unit_test(test_timeline_is_a_trace),
        cmocka_unit_test(test_no_device_no_prediction),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
