/* Checkpoints of records in memory that the host cannot touch: saved from a device, loaded by the
 * host and the other way round, snapshots beside the next step, failing copies. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/memory.h"
#include "shard/ckpt_priv.h"
#include "support/ckpt_fixture.h"
#include "support/far_device.h"
#include "support/rank_test.h"

#define EXPECT(cond, ...) TESS_CHECK(cond, TESS_E_STATE, "not true: " #cond " " __VA_ARGS__)

/* One rank alone has records of more than one chunk. */
enum { SCALE_ALONE = 1300, SCALE_WITH_PEERS = 60 };

typedef struct bench {
    tess_comm *comm;
    ckpt_fixture *f;
    far_device far;
    tess_stream *compute;
    tess_ckpt_record step_records[CKPT_FIXTURE_RECORD_MAX], base_records[CKPT_FIXTURE_RECORD_MAX];
    tess_ckpt_set step, base; /* the fixture's, with views on the device */
    tess_ckpt_store *store;
    char dir[256];
} bench;

static tess_status make_far(bench *b, const tess_ckpt_set *from, tess_ckpt_record *records,
                            tess_ckpt_set *to)
{
    *to = *from;
    to->records = records;
    for (int64_t i = 0; i < from->record_numel; i++) {
        records[i] = from->records[i];
        records[i].view.space = TESS_DEVICE;
        records[i].view.data = far_alloc(&b->far, tess_view_nbytes(records[i].view));
        TESS_CHECK(records[i].view.data != NULL, TESS_E_MEMORY, "no far memory");
    }
    return TESS_OK;
}

/* The fixture's bytes to the device, enqueued on the compute stream and not done. */
static tess_status send(bench *b, const tess_ckpt_set *from, const tess_ckpt_set *to)
{
    for (int64_t i = 0; i < from->record_numel; i++)
        TESS_TRY(
            tess_device_copy(&b->far.base, to->records[i].view, from->records[i].view, b->compute));
    return TESS_OK;
}

static tess_status fill_far(bench *b, uint64_t seed)
{
    TESS_TRY(tess_stream_finish(b->compute));
    ckpt_fixture_fill(b->f, seed);
    TESS_TRY(send(b, &b->f->step, &b->step));
    return send(b, &b->f->base, &b->base);
}

/* What the device holds, into the fixture's memory. */
static void fetch(bench *b, const tess_ckpt_set *from, const tess_ckpt_set *to)
{
    for (int64_t i = 0; i < from->record_numel; i++)
        far_get(&b->far, to->records[i].view.data, from->records[i].view.data,
                tess_view_nbytes(from->records[i].view));
}

static tess_status open_store(bench *b, bool is_far)
{
    const tess_ckpt_config config = {.dir = b->dir,
                                     .keep_numel = 2,
                                     .plan_digest = "plan",
                                     .config_digest = "config",
                                     .binary_id = "test",
                                     .gather_group = b->f->base.shard_world,
                                     .device = is_far ? &b->far.base : NULL,
                                     .after = is_far ? b->compute : NULL,
                                     .comm = b->comm,
                                     .ctx = &b->f->ctx};
    tess_ckpt_store_close(&b->store);
    TESS_TRY(tess_comm_barrier(b->comm));
    return tess_ckpt_store_open(&config, &b->store);
}

static const tess_ckpt_base base = {.mode = TESS_CKPT_BASE_COPY, .id = ckpt_fixture_base_id};

static tess_status prepare_far(bench *b)
{
    bool was_there = true;
    TESS_TRY(fill_far(b, 1));
    TESS_TRY(tess_ckpt_save_base(b->store, ckpt_fixture_base_id, &b->base, &was_there));
    EXPECT(!was_there);
    return tess_ckpt_prepare(b->store, &b->step, &base, 0);
}

static int64_t sum_staging(const bench *b)
{
    tess_ckpt_sizes sizes = {0};
    return tess_ckpt_plan(&b->step, tess_comm_rank(b->comm), &sizes) == TESS_OK
               ? (int64_t)sizes.staging_nbytes
               : -1;
}

/* The state changes as soon as the snapshot's event lets it, and not before. */
static tess_status overwrite_state(bench *b)
{
    TESS_TRY(tess_stream_wait(b->compute, tess_ckpt_snapshot_event(b->store)));
    for (int64_t i = 0; i < b->step.record_numel; i++)
        TESS_TRY(tess_device_zero(&b->far.base, b->step.records[i].view, b->compute));
    return TESS_OK;
}

static tess_status save_far(bench *b, int64_t seed, tess_ckpt_report *report)
{
    tess_ckpt_value state[8];
    const int64_t numel = ckpt_fixture_state((uint64_t)seed, state);
    TESS_TRY(fill_far(b, (uint64_t)seed));
    tess_alloc_freeze();
    tess_status st = tess_ckpt_save_begin(b->store, seed, state, numel, report);
    const bool is_begun = st == TESS_OK && report->outcome == TESS_CKPT_PENDING;
    const bool is_writing = is_begun && tess_ckpt_poll(b->store) == TESS_CKPT_WRITING;
    if (is_begun)
        st = overwrite_state(b);
    if (st == TESS_OK && seed % 2 == 0) /* the next step first, or the writer first */
        st = tess_stream_finish(b->compute);
    while (st == TESS_OK && is_begun && tess_ckpt_poll(b->store) == TESS_CKPT_WRITING)
        usleep(100);
    if (st == TESS_OK && is_begun)
        st = tess_ckpt_commit(b->store, report);
    tess_alloc_thaw();
    TESS_TRY(st);
    EXPECT(is_begun, "(%s)", report->message);
    EXPECT(is_writing, "the writer started before the snapshot was there");
    return TESS_OK;
}

static tess_status load_into_far(bench *b, int64_t expected)
{
    tess_ckpt_loaded loaded;
    const tess_ckpt_load_request request = {.set = &b->step, .base = &b->base};
    TESS_TRY(tess_stream_finish(b->compute));
    TESS_TRY(tess_ckpt_load(b->store, &request, &loaded));
    const int64_t step = loaded.step;
    tess_ckpt_loaded_fini(&loaded);
    EXPECT(step == expected);
    ckpt_fixture_poison(b->f);
    fetch(b, &b->step, &b->f->step);
    fetch(b, &b->base, &b->f->base);
    EXPECT(ckpt_fixture_wrong(b->f, (uint64_t)expected, true) == 0);
    return TESS_OK;
}

/* A device writes, the host reads it, as does one process alone. */
static tess_status test_device_to_host(bench *b)
{
    tess_ckpt_report report;
    int64_t seed = 0;
    TESS_TRY(open_store(b, true));
    TESS_TRY(prepare_far(b));
    EXPECT(b->far.host_nbytes <= (size_t)sum_staging(b) + TESS_CKPT_CHUNK_NBYTES + 4096);
    for (int64_t step = 3; step <= 4; step++) {
        TESS_TRY(save_far(b, step, &report));
        EXPECT(report.outcome == TESS_CKPT_COMMITTED, "(%s)", report.message);
        EXPECT(report.step == step);
        TESS_TRY(load_into_far(b, step));
    }
    TESS_TRY(open_store(b, false));
    EXPECT(b->far.host_nbytes == 0);
    TESS_TRY(ckpt_fixture_load(b->f, b->store, NULL, &seed, NULL));
    EXPECT(seed == 4);
    tess_status st = TESS_OK;
    char dir[PATH_MAX];
    TESS_TRY(ckpt_join(dir, b->dir, report.dir));
    if (tess_comm_rank(b->comm) == 0)
        st = ckpt_verify_dir(b->f->io, dir);
    return tess_agree(b->comm, st);
}

static tess_status drop_text(void *arg, const char *text, size_t nbytes)
{
    (void)arg;
    (void)text;
    (void)nbytes;
    return TESS_OK;
}

/* The host writes, a device goes on from it; the directory says nothing about either. */
static tess_status test_host_to_device(bench *b)
{
    tess_ckpt_report on_host, on_device;
    char a[PATH_MAX], c[PATH_MAX];
    const tess_ckpt_printer quiet = {.sink = drop_text, .is_json = true};
    bool is_equal = false;
    TESS_TRY(open_store(b, false));
    TESS_TRY(ckpt_fixture_prepare(b->f, b->store));
    TESS_TRY(ckpt_fixture_save(b->f, b->store, 6, &on_host));
    TESS_TRY(open_store(b, true));
    TESS_TRY(load_into_far(b, 6));
    TESS_TRY(tess_ckpt_prepare(b->store, &b->step, &base, 0));
    TESS_TRY(save_far(b, 6, &on_device));
    EXPECT(on_device.outcome == TESS_CKPT_COMMITTED && on_device.disk_nbytes > 0);
    TESS_TRY(ckpt_join(a, b->dir, on_host.dir));
    TESS_TRY(ckpt_join(c, b->dir, on_device.dir));
    tess_status st = TESS_OK;
    if (tess_comm_rank(b->comm) == 0)
        st = tess_ckpt_diff(&b->f->ctx, a, c, &quiet, &is_equal);
    TESS_TRY(tess_agree(b->comm, st));
    EXPECT(tess_comm_rank(b->comm) != 0 || is_equal);
    return TESS_OK;
}

/* One rank's device refuses a copy: the attempt is dropped everywhere, the next one is fine. */
static tess_status test_failing_copy_drops_the_save(bench *b)
{
    tess_ckpt_report report;
    const int last = tess_comm_world(b->comm) - 1;
    TESS_TRY(open_store(b, true));
    TESS_TRY(prepare_far(b));
    TESS_TRY(fill_far(b, 7));
    if (tess_comm_rank(b->comm) == last)
        b->far.failing_copy = b->far.copy_numel + 1;
    TESS_TRY(tess_ckpt_save_begin(b->store, 7, NULL, 0, &report));
    EXPECT(report.outcome == TESS_CKPT_DROPPED);
    EXPECT(strstr(report.message, "fails") != NULL, "(%s)", report.message);
    char who[32];
    snprintf(who, sizeof who, "rank %d:", last);
    EXPECT(strncmp(report.message, who, strlen(who)) == 0, "(%s)", report.message);
    b->far.failing_copy = -1;
    EXPECT(tess_ckpt_poll(b->store) == TESS_CKPT_IDLE);
    TESS_TRY(save_far(b, 8, &report));
    EXPECT(report.outcome == TESS_CKPT_COMMITTED, "(%s)", report.message);
    return load_into_far(b, 8);
}

/* A dropped save is written again from its snapshot, after the device's memory has changed. A probe
 * before it needs no snapshot. */
static tess_status test_dropped_save_is_written_again(bench *b)
{
    tess_ckpt_value state[8];
    tess_ckpt_report report;
    TESS_TRY(open_store(b, true));
    TESS_TRY(prepare_far(b));
    TESS_TRY(tess_ckpt_probe(b->store));
    TESS_TRY(fill_far(b, 7));
    b->store->is_h5_broken = true;
    TESS_TRY(tess_ckpt_save_begin(b->store, 7, state, ckpt_fixture_state(7, state), &report));
    TESS_TRY(overwrite_state(b));
    TESS_TRY(tess_ckpt_commit(b->store, &report));
    EXPECT(report.outcome == TESS_CKPT_DROPPED && !report.is_disk_full);
    b->store->is_h5_broken = false;
    TESS_TRY(tess_stream_finish(b->compute));
    TESS_TRY(tess_ckpt_save_again(b->store, &report));
    EXPECT(report.outcome == TESS_CKPT_PENDING);
    TESS_TRY(tess_ckpt_commit(b->store, &report));
    EXPECT(report.outcome == TESS_CKPT_COMMITTED, "(%s)", report.message);
    return load_into_far(b, 7);
}

/* Closing while copies are under way waits for them before their memory goes. */
static tess_status test_close_under_way(bench *b)
{
    tess_ckpt_report report;
    int64_t seed = 0;
    TESS_TRY(open_store(b, true));
    TESS_TRY(prepare_far(b));
    TESS_TRY(save_far(b, 9, &report));
    TESS_TRY(fill_far(b, 10));
    TESS_TRY(tess_ckpt_save_begin(b->store, 10, NULL, 0, &report));
    EXPECT(report.outcome == TESS_CKPT_PENDING);
    TESS_TRY(open_store(b, false));
    EXPECT(b->far.host_nbytes == 0);
    TESS_TRY(ckpt_fixture_load(b->f, b->store, NULL, &seed, NULL));
    EXPECT(seed == 9);
    return TESS_OK;
}

static tess_status test_host_store_refuses_device_memory(bench *b)
{
    TESS_TRY(open_store(b, false));
    const tess_ckpt_base none = {.mode = TESS_CKPT_BASE_NONE};
    EXPECT(tess_ckpt_prepare(b->store, &b->step, &none, 0) == TESS_E_DTYPE);
    EXPECT(strstr(tess_error_message(), "record 'blk.0/master': view in memory of a device") !=
           NULL);
    tess_error_clear();
    return TESS_OK;
}

static tess_status set_up(bench *b, int gather_group)
{
    far_device_init(&b->far);
    TESS_TRY(ckpt_fixture_dir(b->comm, b->dir));
    TESS_TRY(ckpt_fixture_create(tess_comm_world(b->comm), tess_comm_rank(b->comm), gather_group,
                                 tess_comm_world(b->comm) == 1 ? SCALE_ALONE : SCALE_WITH_PEERS,
                                 &b->f));
    TESS_TRY(tess_device_stream_create(&b->far.base, "compute", false, &b->compute));
    TESS_TRY(make_far(b, &b->f->step, b->step_records, &b->step));
    return make_far(b, &b->f->base, b->base_records, &b->base);
}

static void tear_down(bench *b)
{
    tess_ckpt_store_close(&b->store);
    for (int64_t i = 0; i < b->step.record_numel; i++)
        far_free(&b->far, b->step_records[i].view.data);
    for (int64_t i = 0; i < b->base.record_numel; i++)
        far_free(&b->far, b->base_records[i].view.data);
    tess_device_stream_destroy(&b->far.base, &b->compute);
    ckpt_fixture_destroy(&b->f);
    if (tess_comm_barrier(b->comm) == TESS_OK && tess_comm_rank(b->comm) == 0)
        ckpt_fixture_remove(b->dir);
}

static tess_status run(tess_comm *comm)
{
    static tess_status (*const tests[])(bench *) = {test_device_to_host,
                                                    test_host_to_device,
                                                    test_failing_copy_drops_the_save,
                                                    test_dropped_save_is_written_again,
                                                    test_close_under_way,
                                                    test_host_store_refuses_device_memory};
    for (int i = 0; i < TESS_NELEM(tests); i++) {
        bench b = {.comm = comm};
        tess_status st = set_up(&b, i % 2 == 0 ? tess_comm_world(comm) : 1);
        if (st == TESS_OK)
            st = tests[i](&b);
        tear_down(&b);
        TESS_TRY(st);
    }
    return TESS_OK;
}

int main(int argc, char **argv) { return rank_test_main(argc, argv, run); }
