/*
 * A device as the program sees one: memory, copies, streams and the order between them, marks.
 *
 * What orders streams is tested with work that is under way: copies of the device's own memory, as
 * many as take LONG_S, stand in front of the bytes that another stream waits for, and an event
 * behind them is asked first, so that a wait that did nothing would show.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/arith.h"
#include "tests/support/cuda_door.h"
#include "tests/support/must.h"

enum { BLOCK_NBYTES = 32 << 20, SMALL_NBYTES = 100003, GUARD_NBYTES = 64, GUARD_BYTE = 0xa5 };
enum { COPIES_MAX = 2000 };
static const double LONG_S = 5e-3;

static tess_cuda_door door;
static tess_stream *first, *second;
static void *block[2]; /* of the device, BLOCK_NBYTES each */

static tess_view view(void *data, size_t nbytes, tess_space space)
{
    return (tess_view){data, (int64_t)nbytes, TESS_U8, space};
}

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

static void *host_take(size_t nbytes)
{
    void *memory = NULL;
    must(tess_alloc(nbytes, &memory));
    return memory;
}

static void copy(void *dst, tess_space to, void *src, tess_space from, size_t nbytes,
                 tess_stream *s)
{
    must(tess_device_copy(door.device, view(dst, nbytes, to), view(src, nbytes, from), s));
}

static uint8_t pattern(int seed, size_t at)
{
    return (uint8_t)((size_t)seed * 89 + at * 31 + (at >> 8) * 7 + 3);
}

static void fill(void *data, int seed, size_t nbytes)
{
    for (size_t i = 0; i < nbytes; i++)
        ((uint8_t *)data)[i] = pattern(seed, i);
}

static void check_pattern(const char *what, const void *data, int seed, size_t nbytes)
{
    for (size_t i = 0; i < nbytes; i++)
        if (((const uint8_t *)data)[i] != pattern(seed, i))
            fail_msg("%s: byte %zu of %zu is %02x, expected %02x", what, i, nbytes,
                     ((const uint8_t *)data)[i], pattern(seed, i));
}

static int setup(void **state)
{
    (void)state;
    must(tess_device_stream_create(door.device, "first", false, &first));
    must(tess_device_stream_create(door.device, "second", true, &second));
    for (int i = 0; i < 2; i++)
        block[i] = take(TESS_DEVICE, BLOCK_NBYTES);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    must(tess_stream_finish(first));
    must(tess_stream_finish(second));
    for (int i = 0; i < 2; i++)
        give(TESS_DEVICE, block[i], BLOCK_NBYTES);
    tess_device_stream_destroy(door.device, &first);
    tess_device_stream_destroy(door.device, &second);
    return 0;
}

/* ---- what is there ---- */

static void test_info_names_the_device(void **state)
{
    static const uint8_t nobody[16] = {0};
    tess_cuda_info info;
    size_t free_nbytes = 0, total_nbytes = 0;
    (void)state;
    must(door.plugin->device_info(0, &info));
    must(tess_device_memory(door.device, &free_nbytes, &total_nbytes));
    print_message("%s, sm_%d, %d multiprocessors, %s, %zu of %zu MiB free\n", info.name,
                  info.capability, info.sm_numel, info.bus_id, free_nbytes >> 20,
                  total_nbytes >> 20);
    assert_true(info.name[0] != '\0' && info.bus_id[0] != '\0');
    assert_true(memcmp(info.uuid, nobody, sizeof nobody) != 0);
    assert_in_range(info.capability, 80, 999);
    assert_in_range(info.sm_numel, 1, 1000);
    assert_true(total_nbytes <= info.memory_nbytes && free_nbytes <= total_nbytes);
    assert_string_equal(door.device->name, "cuda:0");
    assert_int_equal(door.device->space, TESS_DEVICE);
    char path[16];
    snprintf(path, sizeof path, "sm_%d", info.capability);
    assert_string_equal(door.kernels->path(), path);
}

static size_t free_now(void)
{
    size_t free_nbytes = 0, total_nbytes = 0;
    must(tess_device_memory(door.device, &free_nbytes, &total_nbytes));
    return free_nbytes;
}

/* Other programs may take and give back meanwhile: one of several tries is enough. */
static void test_memory_is_reported_as_it_is_taken(void **state)
{
    enum { NBYTES = 256 << 20, TRY_NUMEL = 20 };
    size_t before_nbytes = 0, during_nbytes = 0, after_nbytes = 0;
    bool is_reported = false;
    (void)state;
    for (int i = 0; i < TRY_NUMEL && !is_reported; i++) {
        before_nbytes = free_now();
        void *memory = take(TESS_DEVICE, NBYTES);
        during_nbytes = free_now();
        give(TESS_DEVICE, memory, NBYTES);
        after_nbytes = free_now();
        assert_true((uintptr_t)memory % TESS_ARENA_ALIGN_NBYTES == 0);
        is_reported =
            before_nbytes >= during_nbytes + NBYTES && after_nbytes >= during_nbytes + NBYTES;
    }
    if (!is_reported)
        fail_msg("%d bytes were taken and given back; free were %zu, %zu, %zu", NBYTES,
                 before_nbytes, during_nbytes, after_nbytes);
}

/* More than there is: the bytes stand in the message, and the device goes on. */
static void test_too_much_memory_is_refused(void **state)
{
    size_t free_nbytes = 0, total_nbytes = 0;
    void *memory = NULL;
    char want[96];
    uint8_t byte = 7, back = 0;
    (void)state;
    must(tess_device_memory(door.device, &free_nbytes, &total_nbytes));
    snprintf(want, sizeof want, "cuda:0: cannot allocate %zu bytes of device memory",
             total_nbytes + 1);
    assert_int_equal(door.device->ops->alloc(door.device, TESS_DEVICE, total_nbytes + 1, &memory),
                     TESS_E_MEMORY);
    assert_non_null(strstr(tess_error_message(), want));
    assert_null(memory);
    tess_error_clear();
    copy(block[0], TESS_DEVICE, &byte, TESS_HOST, 1, first);
    copy(&back, TESS_HOST, block[0], TESS_DEVICE, 1, first);
    must(tess_stream_finish(first));
    assert_int_equal(back, 7);
}

/* ---- copies ---- */

/* Bytes go to the device, inside it, and back, at odd addresses; guards around them stay. */
static void round_trip(tess_space host, size_t nbytes, size_t skew)
{
    const size_t whole = nbytes + skew + 2 * (size_t)GUARD_NBYTES;
    const bool is_pinned = host == TESS_HOST;
    uint8_t *here = is_pinned ? take(TESS_HOST, whole) : host_take(whole);
    uint8_t *back = is_pinned ? take(TESS_HOST, whole) : host_take(whole);
    uint8_t *there = block[0], *copied = block[1];
    fill(here, (int)nbytes, whole);
    memset(back, GUARD_BYTE, whole);
    copy(there, TESS_DEVICE, back, TESS_HOST, whole, first);
    copy(copied, TESS_DEVICE, back, TESS_HOST, whole, first);
    copy(there + GUARD_NBYTES, TESS_DEVICE, here, TESS_HOST, nbytes, first);
    copy(copied + GUARD_NBYTES + skew, TESS_DEVICE, there + GUARD_NBYTES, TESS_DEVICE, nbytes,
         first);
    copy(back, TESS_HOST, copied, TESS_DEVICE, whole, first);
    must(tess_stream_finish(first));
    check_pattern("copied", back + GUARD_NBYTES + skew, (int)nbytes, nbytes);
    for (size_t i = 0; i < whole; i++)
        if (i < GUARD_NBYTES + skew || i >= GUARD_NBYTES + skew + nbytes)
            assert_int_equal(back[i], GUARD_BYTE);
    if (is_pinned) {
        give(TESS_HOST, here, whole);
        give(TESS_HOST, back, whole);
    } else {
        tess_free(here);
        tess_free(back);
    }
}

static void test_copies_of_any_size_keep_their_neighbours(void **state)
{
    static const size_t nbytes[] = {0, 1, 3, 255, 4097, SMALL_NBYTES, (8 << 20) + 5};
    (void)state;
    for (int i = 0; i < TESS_NELEM(nbytes); i++)
        for (size_t skew = 0; skew < 4; skew += 3) {
            round_trip(TESS_HOST, nbytes[i], skew);
            round_trip(TESS_DEVICE, nbytes[i], skew); /* memory that is not pinned */
        }
    assert_int_equal(tess_device_copy(door.device, view(block[0], 3, TESS_DEVICE),
                                      view(block[1], 4, TESS_DEVICE), first),
                     TESS_E_ARG);
    tess_error_clear();
}

/* Rows apart on both sides: what lies between them stays. */
static void test_copies_of_rows_leave_gaps_alone(void **state)
{
    enum { ROWS = 37, ROW = 129, FROM = 200, TO = 177, NBYTES = ROWS * FROM };
    (void)state;
    uint8_t *here = host_take(NBYTES), *back = host_take(NBYTES);
    fill(here, 5, NBYTES);
    memset(back, GUARD_BYTE, NBYTES);
    copy(block[0], TESS_DEVICE, here, TESS_HOST, NBYTES, first);
    copy(block[1], TESS_DEVICE, back, TESS_HOST, NBYTES, first);
    const tess_rows_copy rows = {.dst = (uint8_t *)block[1] + 1,
                                 .src = (uint8_t *)block[0] + 2,
                                 .dst_stride_nbytes = TO,
                                 .src_stride_nbytes = FROM,
                                 .row_numel = ROWS,
                                 .row_nbytes = ROW};
    must(tess_device_copy_rows(door.device, &rows, first));
    copy(back, TESS_HOST, block[1], TESS_DEVICE, NBYTES, first);
    must(tess_stream_finish(first));
    for (int i = 0; i < NBYTES; i++) {
        const int row = (i - 1) / TO, col = (i - 1) % TO;
        const bool is_copied = i >= 1 && row < ROWS && col < ROW;
        const uint8_t want = is_copied ? pattern(5, (size_t)(row * FROM + col + 2)) : GUARD_BYTE;
        if (back[i] != want)
            fail_msg("byte %d (row %d, column %d) is %02x, expected %02x", i, row, col, back[i],
                     want);
    }
    tess_free(here);
    tess_free(back);
}

static void test_zero_keeps_its_neighbours(void **state)
{
    enum { NBYTES = 5000, BEGIN = 13, ZEROS = 4099 };
    uint8_t bytes[NBYTES];
    (void)state;
    memset(bytes, GUARD_BYTE, NBYTES);
    copy(block[0], TESS_DEVICE, bytes, TESS_HOST, NBYTES, first);
    must(tess_device_zero(door.device, view((uint8_t *)block[0] + BEGIN, ZEROS, TESS_DEVICE),
                          first));
    copy(bytes, TESS_HOST, block[0], TESS_DEVICE, NBYTES, first);
    must(tess_stream_finish(first));
    for (int i = 0; i < NBYTES; i++)
        assert_int_equal(bytes[i], i < BEGIN || i >= BEGIN + ZEROS ? GUARD_BYTE : 0);
}

/* ---- order ---- */

static void copy_block(tess_stream *s)
{
    copy(block[1], TESS_DEVICE, block[0], TESS_DEVICE, BLOCK_NBYTES, s);
}

/* Copies of a block that take LONG_S together. */
static int long_numel(void)
{
    tess_mark begin, end;
    double elapsed_s = 0.0;
    must(tess_mark_init(&begin, first));
    must(tess_mark_init(&end, first));
    copy_block(first);
    must(tess_stream_finish(first));
    must(tess_mark_record(&begin, first));
    for (int i = 0; i < 4; i++)
        copy_block(first);
    must(tess_stream_finish(first));
    must(tess_mark_record(&end, first));
    must(tess_mark_elapsed(first, &begin, &end, &elapsed_s));
    tess_mark_fini(&begin, first);
    tess_mark_fini(&end, first);
    return (int)fmin(COPIES_MAX, ceil(LONG_S / fmax(elapsed_s / 4.0, 1e-9)));
}

/* Small pinned buffers and their place on the device. */
typedef struct relay {
    uint8_t *fresh, *stale, *back; /* pinned */
    uint8_t *from, *to;            /* of the device */
} relay;

static relay relay_make(void)
{
    relay r = {.fresh = take(TESS_HOST, SMALL_NBYTES),
               .stale = take(TESS_HOST, SMALL_NBYTES),
               .back = take(TESS_HOST, SMALL_NBYTES),
               .from = take(TESS_DEVICE, SMALL_NBYTES),
               .to = take(TESS_DEVICE, SMALL_NBYTES)};
    fill(r.fresh, 1, SMALL_NBYTES);
    fill(r.stale, 2, SMALL_NBYTES);
    copy(r.from, TESS_DEVICE, r.stale, TESS_HOST, SMALL_NBYTES, first);
    copy(r.to, TESS_DEVICE, r.stale, TESS_HOST, SMALL_NBYTES, first);
    must(tess_stream_finish(first));
    return r;
}

static void relay_free(relay *r)
{
    give(TESS_HOST, r->fresh, SMALL_NBYTES);
    give(TESS_HOST, r->stale, SMALL_NBYTES);
    give(TESS_HOST, r->back, SMALL_NBYTES);
    give(TESS_DEVICE, r->from, SMALL_NBYTES);
    give(TESS_DEVICE, r->to, SMALL_NBYTES);
}

/* Long work on the first stream, then fresh bytes; `written` is recorded behind them. */
static void write_late(const relay *r, int numel, tess_event *written)
{
    bool is_reached = true;
    for (int i = 0; i < numel; i++)
        copy_block(first);
    copy(r->from, TESS_DEVICE, r->fresh, TESS_HOST, SMALL_NBYTES, first);
    must(tess_event_record(written, first));
    must(tess_event_query(written, &is_reached));
    if (is_reached)
        fail_msg("the work that others should wait for was over before they were asked: it took "
                 "less than %g s",
                 LONG_S);
}

static void test_a_stream_waits_for_an_event_of_another(void **state)
{
    (void)state;
    relay r = relay_make();
    tess_event written;
    const int numel = long_numel();
    must(tess_event_init(&written, first));
    write_late(&r, numel, &written);
    must(tess_stream_wait(second, &written));
    copy(r.to, TESS_DEVICE, r.from, TESS_DEVICE, SMALL_NBYTES, second);
    copy(r.back, TESS_HOST, r.to, TESS_DEVICE, SMALL_NBYTES, second);
    must(tess_stream_finish(second));
    check_pattern("read behind the event", r.back, 1, SMALL_NBYTES);
    tess_event_fini(&written, first);
    relay_free(&r);
}

/* What the first stream does after its event is not waited for: the copy behind it overwrites what
 * the second stream has read by then, if it does wait in turn. */
static void test_streams_wait_for_each_other_in_turn(void **state)
{
    enum { ROUNDS = 20 };
    (void)state;
    relay r = relay_make();
    tess_event written, read;
    uint8_t *all = take(TESS_HOST, (size_t)ROUNDS * SMALL_NBYTES);
    must(tess_event_init(&written, first));
    must(tess_event_init(&read, second));
    for (int i = 0; i < ROUNDS; i++) {
        uint8_t *const source = i % 2 == 0 ? r.fresh : r.stale;
        must(tess_stream_wait(first, &read)); /* never recorded before round 1: no wait */
        copy_block(first);
        copy(r.from, TESS_DEVICE, source, TESS_HOST, SMALL_NBYTES, first);
        must(tess_event_record(&written, first));
        must(tess_stream_wait(second, &written));
        copy(all + (size_t)i * SMALL_NBYTES, TESS_HOST, r.from, TESS_DEVICE, SMALL_NBYTES, second);
        must(tess_event_record(&read, second));
    }
    must(tess_event_finish(&read));
    for (int i = 0; i < ROUNDS; i++)
        check_pattern("round", all + (size_t)i * SMALL_NBYTES, i % 2 == 0 ? 1 : 2, SMALL_NBYTES);
    tess_event_fini(&written, first);
    tess_event_fini(&read, second);
    give(TESS_HOST, all, (size_t)ROUNDS * SMALL_NBYTES);
    relay_free(&r);
}

static void test_the_host_waits_for_events(void **state)
{
    (void)state;
    relay r = relay_make();
    tess_event written, never;
    bool is_reached = false;
    must(tess_event_init(&written, first));
    must(tess_event_init(&never, first));
    must(tess_event_query(&never, &is_reached));
    assert_true(is_reached);
    write_late(&r, long_numel(), &written);
    must(tess_event_finish(&written));
    must(tess_event_query(&written, &is_reached));
    assert_true(is_reached);
    copy(r.back, TESS_HOST, r.from, TESS_DEVICE, SMALL_NBYTES, second);
    must(tess_stream_finish(second));
    check_pattern("read by another stream", r.back, 1, SMALL_NBYTES);
    tess_event_fini(&written, first);
    tess_event_fini(&never, first);
    relay_free(&r);
}

/* The device cannot wait for a queue of the host: the caller does. */
static void test_a_stream_takes_events_of_the_host(void **state)
{
    tess_stream host;
    tess_event ev;
    (void)state;
    tess_stream_init_inline(&host, "host", NULL);
    must(tess_event_init(&ev, &host));
    must(tess_event_record(&ev, &host));
    must(tess_stream_wait(first, &ev));
    /* an event of the host cannot mark a point of a device's stream */
    assert_int_equal(tess_event_record(&ev, first), TESS_E_STATE);
    tess_error_clear();
    tess_event_fini(&ev, &host);
}

/* Whoever watches the device is asked while the host waits, and can end the wait. */
typedef struct spy {
    int look_numel;
    tess_status verdict;
} spy;

static tess_status look(void *self, const tess_stream *s, double waited_s, double slice_s)
{
    spy *w = self;
    w->look_numel++;
    assert_ptr_equal(s, first);
    assert_true(waited_s >= 0.0 && slice_s >= 0.0 && slice_s <= waited_s + 1e-3);
    return w->verdict;
}

static void test_a_watch_is_asked_and_ends_a_wait(void **state)
{
    (void)state;
    relay r = relay_make();
    tess_event written;
    const int numel = long_numel();
    must(tess_event_init(&written, first));
    for (int i = 0; i < 2; i++) {
        spy w = {.verdict = i == 0 ? TESS_OK : TESS_E_TIMEOUT};
        write_late(&r, numel, &written);
        door.device->watch = (tess_device_watch){look, &w};
        const tess_status st = tess_event_finish(&written);
        door.device->watch = (tess_device_watch){NULL, NULL};
        assert_int_equal(st, w.verdict);
        assert_true(w.look_numel > 0);
        must(tess_stream_finish(first));
    }
    tess_event_fini(&written, first);
    relay_free(&r);
}

/* ---- marks ---- */

/* Where the host's clock tells, the work in front of a mark has to be over. */
static void mark_work(tess_mark *m, tess_stream *s)
{
    if (!tess_stream_is_timed(s))
        must(tess_stream_finish(s));
    must(tess_mark_record(m, s));
}

/* Parts add up (each is rounded to what CUDA resolves, half a microsecond), and the whole is not
 * more than the host saw pass, with 50 us for the two clocks. */
static void test_marks_tell_seconds(void **state)
{
    static const double RESOLUTION_S = 1e-6, CLOCKS_S = 50e-6;
    tess_mark mark[3];
    double part_s[2], whole_s = 0.0;
    (void)state;
    const int numel = long_numel();
    for (int i = 0; i < 3; i++)
        must(tess_mark_init(&mark[i], first));
    must(tess_stream_finish(first));
    const double begin_s = tess_clock_s();
    must(tess_mark_record(&mark[0], first));
    for (int i = 0; i < numel; i++)
        copy_block(first);
    mark_work(&mark[1], first);
    tess_event between;
    must(tess_event_init(&between, first));
    must(tess_event_record(&between, first));
    must(tess_stream_wait(second, &between));
    copy_block(second);
    mark_work(&mark[2], second);
    for (int i = 0; i < 2; i++)
        must(tess_mark_elapsed(first, &mark[i], &mark[i + 1], &part_s[i]));
    must(tess_mark_elapsed(second, &mark[0], &mark[2], &whole_s));
    const double seen_s = tess_clock_s() - begin_s;
    print_message("%d copies of %d MiB in %.3f ms, %.0f GB/s read and written\n", numel,
                  BLOCK_NBYTES >> 20, part_s[0] * 1e3,
                  2.0 * numel * BLOCK_NBYTES / part_s[0] * 1e-9);
    assert_true(part_s[0] > 0.0 && part_s[1] > 0.0);
    if (fabs(part_s[0] + part_s[1] - whole_s) > 3.0 * RESOLUTION_S)
        fail_msg("%.9g s and %.9g s are %.9g s together", part_s[0], part_s[1], whole_s);
    if (whole_s > seen_s + CLOCKS_S)
        fail_msg("marks say %.9g s, the host saw %.9g s", whole_s, seen_s);
    tess_event_fini(&between, first);
    for (int i = 0; i < 3; i++)
        tess_mark_fini(&mark[i], first);
}

/* Work of an urgent stream that is given last is done before that of the other stream. Were the two
 * priorities mixed up, it would wait for all of it. */
static void test_urgent_work_does_not_wait_for_the_rest(void **state)
{
    enum { LOAD_NUMEL = 400, URGENT_NUMEL = 20 };
    static const double LATEST = 0.8; /* a twentieth of the work, and that of others meanwhile */
    (void)state;
    if (!tess_stream_is_timed(second)) {
        print_message("skipped: streams of this device run when they are called\n");
        skip();
    }
    const tess_view load = {block[0], BLOCK_NBYTES / 4, TESS_F32, TESS_DEVICE};
    const tess_view urgent = {block[1], BLOCK_NBYTES / 4, TESS_F32, TESS_DEVICE};
    tess_mark begin, end[2];
    double end_s[2] = {0.0, 0.0};
    must(tess_device_zero(door.device, load, first));
    must(tess_device_zero(door.device, urgent, first));
    must(tess_stream_finish(first));
    must(tess_mark_init(&begin, first));
    for (int i = 0; i < 2; i++)
        must(tess_mark_init(&end[i], first));
    must(tess_mark_record(&begin, first));
    for (int i = 0; i < LOAD_NUMEL; i++)
        must(door.kernels->add(&(tess_add_args){load, load, load}, first));
    must(tess_mark_record(&end[0], first));
    for (int i = 0; i < URGENT_NUMEL; i++)
        must(door.kernels->add(&(tess_add_args){urgent, urgent, urgent}, second));
    must(tess_mark_record(&end[1], second));
    for (int i = 0; i < 2; i++)
        must(tess_mark_elapsed(first, &begin, &end[i], &end_s[i]));
    print_message("%d kernels took %.3f ms, %d urgent ones were done after %.3f ms\n", LOAD_NUMEL,
                  end_s[0] * 1e3, URGENT_NUMEL, end_s[1] * 1e3);
    if (end_s[1] > LATEST * end_s[0])
        fail_msg("urgent work was done after %.6f s of %.6f s: has the other stream its priority?",
                 end_s[1], end_s[0]);
    tess_mark_fini(&begin, first);
    for (int i = 0; i < 2; i++)
        tess_mark_fini(&end[i], first);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_info_names_the_device),
        CASE(test_memory_is_reported_as_it_is_taken),
        CASE(test_too_much_memory_is_refused),
        CASE(test_copies_of_any_size_keep_their_neighbours),
        CASE(test_copies_of_rows_leave_gaps_alone),
        CASE(test_zero_keeps_its_neighbours),
        CASE(test_a_stream_waits_for_an_event_of_another),
        CASE(test_streams_wait_for_each_other_in_turn),
        CASE(test_the_host_waits_for_events),
        CASE(test_a_stream_takes_events_of_the_host),
        CASE(test_a_watch_is_asked_and_ends_a_wait),
        CASE(test_marks_tell_seconds),
        CASE(test_urgent_work_does_not_wait_for_the_rest),
    };
    (void)setenv("FAKE_CUDA_LATE", "1", 0); /* streams have nothing but copies here */
    cuda_door_open_or_skip(&door);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
