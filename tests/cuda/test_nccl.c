/*
 * The table of collectives between devices with one rank: every entry does what plugin.h says, also
 * while other work of the stream is under way, with enrolled memory, in groups that were split, and
 * after an abort. Every wait has a limit.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/arith.h"
#include "tests/support/cuda_door.h"
#include "tests/support/must.h"

enum { NBYTES = 1 << 20, BLOCK_NBYTES = 64 << 20, BLOCK_NUMEL = 50 };
static const double LIMIT_S = 60.0;

static tess_cuda_door door;
static const tess_gpu_collectives *library;
static tess_stream *gather, *reduce;
static uint8_t *host[2];   /* pinned, NBYTES each */
static uint8_t *device[2]; /* NBYTES each */

static bool is_fake(void) { return !tess_stream_is_timed(gather); }

static void *take(tess_space space, size_t nbytes)
{
    void *memory = NULL;
    must(door.device->ops->alloc(door.device, space, nbytes, &memory));
    return memory;
}

static void give(tess_space space, void *memory, size_t nbytes)
{
    door.device->ops->release(door.device, space, memory, nbytes);
}

static void copy(void *dst, tess_space to, void *src, tess_space from, size_t nbytes,
                 tess_stream *s)
{
    must(tess_device_copy(door.device, (tess_view){dst, (int64_t)nbytes, TESS_U8, to},
                          (tess_view){src, (int64_t)nbytes, TESS_U8, from}, s));
}

/* All work is done when this returns, so that no call may say it is still in progress. */
static void settle(tess_gpu_group *g, const char *doing)
{
    const struct timespec nap = {0, 100000};
    const double until_s = tess_clock_s() + LIMIT_S;
    bool is_ready = false;
    for (;;) {
        must(library->poll(g, &is_ready));
        if (is_ready)
            return;
        if (tess_clock_s() > until_s)
            fail_msg("%s is not done after %.0f s", doing, LIMIT_S);
        nanosleep(&nap, NULL);
    }
}

static tess_gpu_group *join(const char *name)
{
    uint8_t id[TESS_CUDA_UNIQUE_ID_NBYTES];
    tess_gpu_group *g = NULL;
    const double begin_s = tess_clock_s();
    must(library->unique_id(id));
    must(library->join(door.device, id, 0, 1, name, &g));
    settle(g, "joining");
    print_message("joined in %.2f s\n", tess_clock_s() - begin_s);
    return g;
}

static tess_gpu_group *split(tess_gpu_group *parent, const char *name)
{
    tess_gpu_group *g = NULL;
    must(library->split(parent, 0, 0, name, &g));
    settle(g, "splitting");
    settle(parent, "the split's parent");
    return g;
}

static void fill(int seed)
{
    for (size_t i = 0; i < NBYTES; i++) {
        host[0][i] = (uint8_t)((size_t)seed * 89 + i * 31 + (i >> 8) * 7);
        host[1][i] = 0xa5;
    }
    copy(device[0], TESS_DEVICE, host[0], TESS_HOST, NBYTES, gather);
    copy(device[1], TESS_DEVICE, host[1], TESS_HOST, NBYTES, gather);
    must(tess_stream_finish(gather));
}

/* The first `nbytes` of the second buffer are those of the first, and no more. */
static void check(const char *what, size_t nbytes, tess_stream *s)
{
    copy(host[1], TESS_HOST, device[1], TESS_DEVICE, NBYTES, s);
    must(tess_stream_finish(s));
    for (size_t i = 0; i < NBYTES; i++)
        if (host[1][i] != (i < nbytes ? host[0][i] : 0xa5))
            fail_msg("%s of %zu bytes: byte %zu is %02x, expected %02x", what, nbytes, i,
                     host[1][i], i < nbytes ? host[0][i] : 0xa5);
}

static void gather_of(tess_gpu_group *g, size_t nbytes, int seed)
{
    fill(seed);
    must(library->all_gather(g, device[0], device[1], nbytes, gather));
    settle(g, "a gather");
    check("gather", nbytes, gather);
}

static void test_every_collective(void **state)
{
    static const size_t nbytes[] = {1, 255, 4097, NBYTES};
    (void)state;
    tess_gpu_group *g = join("every collective");
    for (int i = 0; i < TESS_NELEM(nbytes); i++) {
        gather_of(g, nbytes[i], i);
        fill(10 + i);
        const size_t numel = nbytes[i] / sizeof(float);
        must(library->reduce_scatter(g, (const float *)(const void *)device[0],
                                     (float *)(void *)device[1], (int64_t)numel, gather));
        settle(g, "a reduction");
        check("reduction", numel * sizeof(float), gather);
    }
    /* a row where it belongs stays there */
    fill(20);
    must(library->all_gather(g, device[0], device[0], NBYTES, gather));
    settle(g, "a gather in place");
    copy(device[1], TESS_DEVICE, device[0], TESS_DEVICE, NBYTES, gather);
    check("gather in place", NBYTES, gather);
    library->leave(g);
}

/* Two gathers in one launch; then pieces of a rank to itself, which the fake's caller never sends.
 */
static void test_groups_of_calls(void **state)
{
    enum { HALF = NBYTES / 2 };
    (void)state;
    tess_gpu_group *g = join("groups of calls");
    fill(1);
    must(library->group_begin(g));
    must(library->all_gather(g, device[0], device[1], HALF, gather));
    must(library->all_gather(g, device[0] + HALF, device[1] + HALF, HALF - 1, gather));
    must(library->group_end(g));
    settle(g, "a group of gathers");
    check("group of gathers", NBYTES - 1, gather);
    if (!is_fake()) {
        fill(2);
        must(library->group_begin(g));
        must(library->receive(g, device[1], HALF + 1, 0, gather));
        must(library->send(g, device[0], HALF + 1, 0, gather));
        must(library->group_end(g));
        settle(g, "a piece");
        check("piece", HALF + 1, gather);
    }
    library->leave(g);
}

/* A gather takes what the stream's work in front of it brings, and what is behind it takes what it
 * brings. */
static void test_collectives_keep_their_place_in_a_stream(void **state)
{
    (void)state;
    tess_gpu_group *g = join("places");
    uint8_t *block[2] = {take(TESS_DEVICE, BLOCK_NBYTES), take(TESS_DEVICE, BLOCK_NBYTES)};
    gather_of(g, NBYTES, 3); /* what the library makes when first used is made */
    fill(4);
    copy(device[0], TESS_DEVICE, host[1], TESS_HOST, NBYTES, gather); /* stale */
    must(tess_stream_finish(gather));
    for (int i = 0; i < (is_fake() ? 1 : BLOCK_NUMEL); i++)
        copy(block[1], TESS_DEVICE, block[0], TESS_DEVICE, BLOCK_NBYTES, gather);
    copy(device[0], TESS_DEVICE, host[0], TESS_HOST, NBYTES, gather);
    must(library->all_gather(g, device[0], device[1], NBYTES, gather));
    settle(g, "a gather behind copies");
    check("gather behind copies", NBYTES, gather);
    give(TESS_DEVICE, block[0], BLOCK_NBYTES);
    give(TESS_DEVICE, block[1], BLOCK_NBYTES);
    library->leave(g);
}

/* Memory that was enrolled, withdrawn, and enrolled once more. */
static void test_enrolled_memory(void **state)
{
    (void)state;
    tess_gpu_group *g = join("enrolled");
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < 2; k++) {
            must(library->enroll(g, device[k], NBYTES));
            settle(g, "enrolling");
        }
        gather_of(g, NBYTES - (size_t)i, 5 + i);
        library->withdraw(g);
    }
    gather_of(g, 4097, 7);
    library->leave(g);
}

/* A group split from another works beside it, on another stream, and after its parent's work. */
static void test_split_groups_work_side_by_side(void **state)
{
    (void)state;
    tess_gpu_group *parent = join("parent"), *child = split(parent, "child");
    uint8_t *third = take(TESS_DEVICE, NBYTES);
    fill(8);
    must(library->all_gather(parent, device[0], third, NBYTES, gather));
    must(library->all_gather(child, device[0], device[1], NBYTES, reduce));
    settle(parent, "the parent's gather");
    settle(child, "the child's gather");
    check("the child's gather", NBYTES, reduce);
    copy(device[1], TESS_DEVICE, third, TESS_DEVICE, NBYTES, gather);
    check("the parent's gather", NBYTES, gather);
    give(TESS_DEVICE, third, NBYTES);
    library->leave(child);
    library->leave(parent);
}

/* All groups at once, a parent before its child; then nothing but leaving, and joining anew. */
static void test_aborted_groups_refuse_work(void **state)
{
    (void)state;
    tess_gpu_group *parent = join("parent"), *child = split(parent, "child");
    fill(9);
    must(library->all_gather(child, device[0], device[1], NBYTES, reduce));
    settle(child, "the child's gather");
    tess_gpu_group *const groups[] = {parent, child};
    const double begin_s = tess_clock_s();
    library->abort_all(groups, 2);
    assert_true(tess_clock_s() - begin_s < LIMIT_S);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(library->all_gather(groups[i], device[0], device[1], 1, gather),
                         TESS_E_COMM);
        assert_non_null(strstr(tess_error_message(), "aborted"));
        tess_error_clear();
    }
    library->leave(child);
    library->leave(parent);
    library->leave(NULL);
    tess_gpu_group *again = join("again");
    gather_of(again, NBYTES, 11);
    library->leave(again);
}

static int setup(void **state)
{
    (void)state;
    must(tess_device_stream_create(door.device, "gather", true, &gather));
    must(tess_device_stream_create(door.device, "reduce", true, &reduce));
    for (int i = 0; i < 2; i++) {
        host[i] = take(TESS_HOST, NBYTES);
        device[i] = take(TESS_DEVICE, NBYTES);
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        give(TESS_HOST, host[i], NBYTES);
        give(TESS_DEVICE, device[i], NBYTES);
    }
    tess_device_stream_destroy(door.device, &gather);
    tess_device_stream_destroy(door.device, &reduce);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_collective),
        cmocka_unit_test(test_groups_of_calls),
        cmocka_unit_test(test_collectives_keep_their_place_in_a_stream),
        cmocka_unit_test(test_enrolled_memory),
        cmocka_unit_test(test_split_groups_work_side_by_side),
        cmocka_unit_test(test_aborted_groups_refuse_work),
    };
    cuda_door_open_or_skip(&door);
    library = door.plugin->collectives;
    if (library == NULL)
        cuda_skip("the CUDA part was built without NCCL");
    print_message("%s, %s\n", library->name, door.plugin->versions);
    return cmocka_run_group_tests(tests, setup, teardown);
}
