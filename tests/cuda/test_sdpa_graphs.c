/*
 * Attention's graphs on machines without a GPU: for a described A100 and H100 every case must
 * finalize and find the engine that is known to serve it, or be refused where none exists. Skipped
 * by name where cuDNN or any libcuda (the toolkit's stub is enough) is absent.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "kernels/cuda/sdpa_priv.h"

enum { JSON_NBYTES = 2048, NONE = -1 };

/* What engines are chosen by; the rest is equal for both. */
typedef struct described {
    const char *name;
    int capability, sm_numel, shared_nbytes, l2_nbytes;
} described;

static const described a100 = {"NVIDIA A100-SXM4-80GB", 800, 108, 166912, 41943040};
static const described h100 = {"NVIDIA H100 80GB HBM3", 900, 132, 232448, 52428800};

static tess_sdpa *open_described(const described *d, const tess_sdpa_settings *settings)
{
    char json[JSON_NBYTES];
    tess_sdpa *sdpa = NULL;
    tess_sdpa_settings of_device = *settings;
    of_device.capability = d->capability / 10;
    const int used = snprintf(
        json, sizeof(json),
        "{\"deviceVer\":%d,\"driverVer\":13000,\"multiProcessorCount\":%d,\"warpSize\":32,"
        "\"maxGridSize\":[2147483647,65535,65535],\"maxBlockSize\":[1024,1024,64],"
        "\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":2048,\"maxRegistersPerSM\":65536,"
        "\"regsPerBlock\":65536,\"maxCtasPerSM\":32,\"maxSharedMemoryPerBlock\":49152,"
        "\"maxSharedMemoryPerSM\":%d,\"maxSharedMemoryPerBlockOptin\":%d,"
        "\"reservedSharedMemoryPerBlock\":1024,\"l2CacheSize\":%d,\"smClockRateKHz\":1980000,"
        "\"memClockRateKHz\":2619000,\"totalGlobalMem\":85000000000,\"deviceName\":\"%s\","
        "\"pciDeviceId\":0,\"cudaDeviceId\":0,\"isTccDriver\":0,\"supportCoopLaunch\":1}",
        d->capability, d->sm_numel, d->shared_nbytes + 1024, d->shared_nbytes, d->l2_nbytes,
        d->name);
    assert_in_range(used, 1, JSON_NBYTES - 1);
    if (tess_sdpa_create(&of_device, json, &sdpa) != TESS_OK)
        fail_msg("%s", tess_error_message());
    return sdpa;
}

static const tess_sdpa_settings usual = {.document_max = 16, .work_max_nbytes = (size_t)1 << 30};

static tess_sdpa_case case_of(int64_t kv_head_numel, int64_t dim, bool is_packed, bool is_backward)
{
    tess_sdpa_case c;
    memset(&c, 0, sizeof(c));
    c.batch_numel = is_packed ? 16 : 1;
    c.length_numel = 4096;
    c.dim = dim;
    c.head_numel = 32;
    c.kv_head_numel = c.group_kv_numel = kv_head_numel;
    c.is_packed = is_packed;
    c.is_backward = is_backward;
    return c;
}

static void expect_engine(tess_sdpa *sdpa, const described *d, const tess_sdpa_case *c,
                          int64_t engine_idx)
{
    tess_sdpa_engine engine = {0};
    tess_error_clear();
    const tess_status st = tess_sdpa_probe(sdpa, c, &engine);
    const bool is_expected =
        engine_idx == NONE
            ? st == TESS_E_UNSUPPORTED && strstr(tess_error_message(), "no engine") != NULL
            : st == TESS_OK && engine.engine_idx == engine_idx;
    if (!is_expected)
        fail_msg("%s, %s, packed %d, %d kv heads, dim %d, deterministic %d: engine %d of %d, "
                 "expected %d: %s",
                 d->name, c->is_backward ? "backward" : "forward", (int)c->is_packed,
                 (int)c->kv_head_numel, (int)c->dim, (int)c->is_deterministic,
                 (int)engine.engine_idx, (int)engine.engine_numel, (int)engine_idx,
                 tess_error_message());
    tess_error_clear();
    assert_false(engine.is_compiled);
}

/* Flash engines of the library: 2 and 6 on sm_90, 1 and 7 on sm_80. */
static void test_graphs_causal_and_packed_find_flash_engines(void **state)
{
    (void)state;
    const described *devices[] = {&a100, &h100};
    const int64_t engines[][2] = {{1, 7}, {2, 6}};
    for (int i = 0; i < 2; i++) {
        tess_sdpa *sdpa = open_described(devices[i], &usual);
        for (int bits = 0; bits < 16; bits++) {
            const bool is_backward = (bits & 1) != 0;
            const tess_sdpa_case c = case_of((bits & 2) != 0 ? 8 : 32, (bits & 4) != 0 ? 64 : 128,
                                             (bits & 8) != 0, is_backward);
            expect_engine(sdpa, devices[i], &c, engines[i][is_backward]);
        }
        tess_sdpa_destroy(&sdpa);
    }
}

/* Groups of heads inside tensors of more: what bounds the workspace of the deterministic form. */
static void test_graphs_deterministic_backward_takes_groups_of_heads(void **state)
{
    (void)state;
    const described *devices[] = {&a100, &h100};
    const int64_t engines[] = {7, 6};
    for (int i = 0; i < 2; i++) {
        tess_sdpa *sdpa = open_described(devices[i], &usual);
        for (int64_t group = 1; group <= 8; group *= 2) {
            tess_sdpa_case c = case_of(8, 128, false, true);
            c.is_deterministic = true;
            c.group_kv_numel = group;
            expect_engine(sdpa, devices[i], &c, engines[i]);
            c.is_packed = true;
            c.batch_numel = 16;
            expect_engine(sdpa, devices[i], &c, i == 0 ? NONE : 6);
        }
        tess_sdpa_destroy(&sdpa);
    }
}

static void test_graphs_dim_256_has_no_backward_on_sm_80(void **state)
{
    (void)state;
    tess_sdpa *ampere = open_described(&a100, &usual);
    tess_sdpa *hopper = open_described(&h100, &usual);
    const tess_sdpa_case c = case_of(8, 256, false, true);
    expect_engine(ampere, &a100, &c, NONE);
    expect_engine(hopper, &h100, &c, 6);
    tess_sdpa_destroy(&ampere);
    tess_sdpa_destroy(&hopper);
}

/* Samples of FLUX.1 at 512, 768 and 1024 pixels, one and more; a length that is no multiple of
 * anything. */
static void test_graphs_segments_find_flash_engines(void **state)
{
    (void)state;
    const described *devices[] = {&a100, &h100};
    const int64_t engines[][2] = {{1, 7}, {2, 6}};
    static const int64_t lengths[] = {1536, 2816, 4608, 1021};
    for (int i = 0; i < 2; i++) {
        tess_sdpa *sdpa = open_described(devices[i], &usual);
        for (int n = 0; n < TESS_NELEM(lengths); n++)
            for (int bits = 0; bits < 8; bits++) {
                tess_sdpa_case c = case_of(24, 128, false, (bits & 1) != 0);
                c.is_whole = true;
                c.head_numel = 24;
                c.length_numel = lengths[n];
                c.batch_numel = (bits & 2) != 0 ? 4 : 1;
                c.is_deterministic = (bits & 4) != 0 && c.is_backward;
                expect_engine(sdpa, devices[i], &c, engines[i][c.is_backward]);
                c.group_kv_numel = 6; /* of 24 heads */
                expect_engine(sdpa, devices[i], &c, engines[i][c.is_backward]);
            }
        tess_sdpa_destroy(&sdpa);
    }
}

static tess_attention_shape shape_of(int64_t longest_numel, int64_t document_numel)
{
    const tess_attention_shape shape = {.dt = TESS_BF16,
                                        .token_numel = 4096,
                                        .head_numel = 32,
                                        .kv_head_numel = 8,
                                        .dim = 128,
                                        .longest_numel = longest_numel,
                                        .document_numel = document_numel};
    return shape;
}

static void expect_path(const tess_sdpa *sdpa, const tess_attention_shape *shape, int64_t window,
                        bool is_backward, bool is_covered, const char *reason)
{
    char why[TESS_SDPA_REASON_NBYTES];
    const bool got = tess_sdpa_covers(sdpa, shape, window, is_backward, why);
    if (got != is_covered || strstr(why, reason) == NULL)
        fail_msg("covers is %d and says '%s', expected %d and '%s'", got, why, is_covered, reason);
}

static void test_plan_says_what_it_covers_and_why_not(void **state)
{
    (void)state;
    tess_sdpa *sdpa = open_described(&h100, &usual);
    const tess_attention_shape packed = shape_of(4096, 5);
    assert_int_equal(tess_sdpa_plan(sdpa, &packed), TESS_OK);
    expect_path(sdpa, &packed, 0, false, true, "engine 2, 8 of 8");
    expect_path(sdpa, &packed, 0, true, true, "engine 6, 8 of 8");
    tess_attention_shape shape = shape_of(4096, 1);
    expect_path(sdpa, &shape, 0, true, true, "engine 6");
    expect_path(sdpa, &packed, 128, false, false, "sliding windows");
    expect_path(sdpa, &packed, 4096, false, true, "engine 2");
    shape = shape_of(4096, 17);
    expect_path(sdpa, &shape, 0, false, false, "17 documents in the pack, cuDNN's plan is for 16");
    shape = shape_of(4096, 0);
    expect_path(sdpa, &shape, 0, false, false, "number of documents is not known");
    shape = shape_of(2048, 5);
    expect_path(sdpa, &shape, 0, false, false, "no plan for this shape");
    shape = packed;
    shape.dt = TESS_F32;
    expect_path(sdpa, &shape, 0, false, false, "takes bf16");
    shape = packed;
    shape.dim = 100;
    expect_path(sdpa, &shape, 0, false, false, "multiples of 8");
    shape = packed;
    shape.token_numel = (int64_t)1 << 20;
    expect_path(sdpa, &shape, 0, false, false, "32 bits");
    tess_sdpa_destroy(&sdpa);
}

/* 1 GiB holds the scores of 32 heads of one document of 4,096 (2 * 32 * 4096^2), so those of a pack
 * take turns; 256 MiB holds those of 8 heads. A lone document and short ones are taken at once. */
static void test_plan_deterministic_stays_below_the_limit(void **state)
{
    (void)state;
    tess_sdpa_settings settings = usual;
    settings.is_deterministic = true;
    tess_sdpa *sdpa = open_described(&h100, &settings);
    const tess_attention_shape packed = shape_of(4096, 5), one = shape_of(4096, 1);
    assert_int_equal(tess_sdpa_plan(sdpa, &packed), TESS_OK);
    expect_path(sdpa, &one, 0, true, true, "8 of 8 key-value heads");
    expect_path(sdpa, &packed, 0, false, true, "8 of 8 key-value heads");
    expect_path(sdpa, &packed, 0, true, true, "8 of 8 key-value heads of 1 document at a time");
    const tess_attention_shape brief = shape_of(1024, 5);
    assert_int_equal(tess_sdpa_plan(sdpa, &brief), TESS_OK);
    expect_path(sdpa, &brief, 0, true, true, "8 of 8 key-value heads at a time");
    tess_sdpa_destroy(&sdpa);

    settings.work_max_nbytes = (size_t)256 << 20;
    sdpa = open_described(&h100, &settings);
    assert_int_equal(tess_sdpa_plan(sdpa, &packed), TESS_OK);
    expect_path(sdpa, &one, 0, true, true, "2 of 8 key-value heads");
    expect_path(sdpa, &packed, 0, true, true, "2 of 8 key-value heads of 1 document at a time");
    tess_sdpa_destroy(&sdpa);

    settings.work_max_nbytes = (size_t)64 << 20;
    sdpa = open_described(&h100, &settings);
    assert_int_equal(tess_sdpa_plan(sdpa, &packed), TESS_OK);
    expect_path(sdpa, &packed, 0, true, false, "one head at a time needs more than 64 MiB");
    tess_sdpa_destroy(&sdpa);

    settings = usual;
    settings.is_deterministic = true;
    settings.document_max = 2;
    sdpa = open_described(&a100, &settings);
    assert_int_equal(tess_sdpa_plan(sdpa, &packed), TESS_OK);
    const tess_attention_shape two = shape_of(4096, 2);
    expect_path(sdpa, &two, 0, true, false, "unsound on sm_80");
    expect_path(sdpa, &two, 0, false, true, "engine 1");
    const tess_attention_shape one_of_a100 = shape_of(4096, 1);
    expect_path(sdpa, &one_of_a100, 0, true, true, "engine 7");
    tess_sdpa_destroy(&sdpa);
}

/* Engines are named for these, and cuDNN's own front end keeps from them. */
static void test_plan_leaves_unsound_packs_to_own_kernels(void **state)
{
    (void)state;
    tess_sdpa *sdpa = open_described(&a100, &usual);
    tess_attention_shape packed = shape_of(4096, 5);
    const tess_attention_shape one = shape_of(4096, 1);
    assert_int_equal(tess_sdpa_plan(sdpa, &packed), TESS_OK);
    expect_path(sdpa, &packed, 0, true, false, "unsound on sm_80");
    expect_path(sdpa, &one, 0, true, true, "engine");
    tess_sdpa_destroy(&sdpa);
    sdpa = open_described(&h100, &usual);
    packed.dim = 72;
    assert_int_equal(tess_sdpa_plan(sdpa, &packed), TESS_OK);
    expect_path(sdpa, &packed, 0, true, false, "a multiple of 16, found 72");
    expect_path(sdpa, &packed, 0, false, true, "engine");
    tess_sdpa_destroy(&sdpa);
}

/* A pack of n documents executes 4 n times for want of memory, and its products shrink with n: 3
 * take 11 executions more than one, 132 us, and 344 GFLOP / 3 at half the library's rate 255 us
 * more; 4 take 180 us and 191 us, 5 take 228 us and 153 us. A lone document, a forward and packs at
 * once are the library's whatever an execution takes. */
static void test_own_kernels_take_packs_of_many_executions(void **state)
{
    (void)state;
    tess_sdpa_settings settings = usual;
    settings.is_deterministic = true;
    settings.work_max_nbytes = (size_t)256 << 20;
    settings.execution_s = 12e-6;
    tess_sdpa *sdpa = open_described(&h100, &settings);
    tess_attention_shape packed = shape_of(4096, 4);
    assert_int_equal(tess_sdpa_plan(sdpa, &packed), TESS_OK);
    expect_path(sdpa, &packed, 0, true, true, "2 of 8 key-value heads of 1 document at a time");
    packed.document_numel = 5;
    expect_path(sdpa, &packed, 0, true, false,
                "5 documents take 20 executions of cuDNN, own kernels are faster");
    expect_path(sdpa, &packed, 0, false, true, "8 of 8 key-value heads");
    packed.document_numel = 16;
    expect_path(sdpa, &packed, 0, true, false, "16 documents take 64 executions");
    packed.document_numel = 1;
    expect_path(sdpa, &packed, 0, true, true, "2 of 8 key-value heads");
    const tess_attention_shape brief = shape_of(256, 16);
    assert_int_equal(tess_sdpa_plan(sdpa, &brief), TESS_OK);
    expect_path(sdpa, &brief, 0, true, true, "8 of 8 key-value heads at a time");
    tess_sdpa_destroy(&sdpa);
}

/* Samples need no number of documents; other batches have plans of their own. */
static void test_plan_covers_segments(void **state)
{
    (void)state;
    tess_sdpa *sdpa = open_described(&h100, &usual);
    tess_attention_shape shape = {.dt = TESS_BF16,
                                  .token_numel = (int64_t)2 * 1536,
                                  .head_numel = 24,
                                  .kv_head_numel = 24,
                                  .dim = 128,
                                  .longest_numel = 1536,
                                  .segment_numel = 1536};
    assert_int_equal(tess_sdpa_plan(sdpa, &shape), TESS_OK);
    expect_path(sdpa, &shape, 0, false, true, "engine 2, 24 of 24");
    expect_path(sdpa, &shape, 0, true, true, "engine 6, 24 of 24");
    shape.token_numel = 1536;
    expect_path(sdpa, &shape, 0, false, false, "no plan for this shape");
    assert_int_equal(tess_sdpa_plan(sdpa, &shape), TESS_OK);
    expect_path(sdpa, &shape, 0, false, true, "engine 2, 24 of 24");
    shape.segment_numel = 0; /* as one causal document */
    shape.document_numel = 1;
    expect_path(sdpa, &shape, 0, false, false, "no plan for this shape");
    tess_sdpa_destroy(&sdpa);

    /* 1 GiB holds the scores of 24 heads of one sample of 4,608 (2 * 24 * 4608^2), not of two */
    tess_sdpa_settings settings = usual;
    settings.is_deterministic = true;
    sdpa = open_described(&h100, &settings);
    shape.token_numel = shape.longest_numel = shape.segment_numel = 4608;
    shape.document_numel = 0;
    assert_int_equal(tess_sdpa_plan(sdpa, &shape), TESS_OK);
    expect_path(sdpa, &shape, 0, true, true, "24 of 24 key-value heads");
    shape.token_numel = 2 * 4608;
    assert_int_equal(tess_sdpa_plan(sdpa, &shape), TESS_OK);
    expect_path(sdpa, &shape, 0, true, true, "12 of 24 key-value heads");
    tess_sdpa_destroy(&sdpa);

    /* whatever number is given: what executions take is set against all of a segment */
    settings.work_max_nbytes = (size_t)256 << 20;
    settings.execution_s = 12e-6;
    sdpa = open_described(&h100, &settings);
    shape.token_numel = shape.longest_numel = shape.segment_numel = 4608;
    shape.document_numel = 1000;
    assert_int_equal(tess_sdpa_plan(sdpa, &shape), TESS_OK);
    expect_path(sdpa, &shape, 0, true, true, "6 of 24 key-value heads");
    tess_sdpa_destroy(&sdpa);
}

static void test_create_refuses_what_is_no_description(void **state)
{
    (void)state;
    tess_sdpa *sdpa = NULL;
    tess_error_clear();
    assert_int_equal(tess_sdpa_create(&usual, "{", &sdpa), TESS_E_UNSUPPORTED);
    assert_null(sdpa);
    assert_non_null(strstr(tess_error_message(), "cuDNN: "));
    assert_null(strchr(tess_error_message(), '\n'));
    tess_error_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_graphs_causal_and_packed_find_flash_engines),
        cmocka_unit_test(test_graphs_deterministic_backward_takes_groups_of_heads),
        cmocka_unit_test(test_graphs_dim_256_has_no_backward_on_sm_80),
        cmocka_unit_test(test_graphs_segments_find_flash_engines),
        cmocka_unit_test(test_plan_says_what_it_covers_and_why_not),
        cmocka_unit_test(test_plan_deterministic_stays_below_the_limit),
        cmocka_unit_test(test_plan_leaves_unsound_packs_to_own_kernels),
        cmocka_unit_test(test_own_kernels_take_packs_of_many_executions),
        cmocka_unit_test(test_plan_covers_segments),
        cmocka_unit_test(test_create_refuses_what_is_no_description),
    };
    if (dlopen("libcudnn.so.9", RTLD_NOW) == NULL) {
        (void)fprintf(stderr, "skipped: %s\n", dlerror());
        return 77;
    }
    /* a stub that is loaded serves whoever asks for libcuda.so.1 by name */
    if (dlopen("libcuda.so.1", RTLD_NOW) == NULL &&
        dlopen(TESS_TEST_CUDA_DRIVER, RTLD_NOW | RTLD_GLOBAL) == NULL) {
        (void)fprintf(stderr, "skipped: %s\n", dlerror());
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
