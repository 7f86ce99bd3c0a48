/* Asynchronous saves, retention, LOCK, the base, tools, the golden checkpoint. One process. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/memory.h"
#include "shard/ckpt_priv.h"
#include "support/ckpt_fixture.h"

typedef struct bench {
    tess_comm *comm;
    ckpt_fixture *f;
    tess_ckpt_store *store;
    char dir[256];
} bench;

static void ok(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s\n%s", tess_error_message(), tess_error_trace_text());
}

static void refused(tess_status st, tess_status code, const char *text)
{
    if (st != code || strstr(tess_error_message(), text) == NULL)
        fail_msg("status %s, expected %s with '%s', message '%s'", tess_status_name(st),
                 tess_status_name(code), text, tess_error_message());
    tess_error_clear();
}

static int set_up(void **state)
{
    static bench b;
    memset(&b, 0, sizeof b);
    ok(tess_comm_create_self(&b.comm));
    ok(ckpt_fixture_dir(b.comm, b.dir));
    ok(ckpt_fixture_create(1, 0, 1, 1, &b.f));
    ok(ckpt_fixture_open(b.f, b.comm, b.dir, false, &b.store));
    *state = &b;
    return 0;
}

static int tear_down(void **state)
{
    bench *b = *state;
    tess_ckpt_store_close(&b->store);
    ckpt_fixture_remove(b->dir);
    ckpt_fixture_destroy(&b->f);
    tess_comm_destroy(&b->comm);
    return 0;
}

static void reopen(bench *b)
{
    tess_ckpt_store_close(&b->store);
    ok(ckpt_fixture_open(b->f, b->comm, b->dir, false, &b->store));
}

/* Directories of steps, committed or not. */
static int64_t count_steps(const bench *b, char last[CKPT_DIR_NAME_NBYTES])
{
    char **names = NULL;
    int64_t name_numel = 0, numel = 0, step = 0;
    ok(tess_io_list(b->f->io, b->dir, &names, &name_numel));
    for (int64_t i = 0; i < name_numel; i++) {
        if (!ckpt_parse_step_name(names[i], &step))
            continue;
        numel++;
        snprintf(last, CKPT_DIR_NAME_NBYTES, "%.159s", names[i]);
    }
    tess_io_list_free(&names, name_numel);
    return numel;
}

/* ---- saving ---- */

static void test_async_save_stores_the_snapshot_and_allocates_nothing(void **state)
{
    bench *b = *state;
    tess_ckpt_report report;
    tess_ckpt_value values[8];
    int64_t seed = 0;
    ok(ckpt_fixture_prepare(b->f, b->store));
    ok(tess_ckpt_preflight(b->store));
    assert_int_equal(tess_ckpt_poll(b->store), TESS_CKPT_IDLE);
    ckpt_fixture_fill(b->f, 3);
    const int64_t numel = ckpt_fixture_state(3, values);
    tess_alloc_freeze();
    tess_status st = tess_ckpt_save_begin(b->store, 3, values, numel, &report);
    const tess_ckpt_outcome begun = report.outcome;
    /* What the next steps do to the records and the state must not reach the file. */
    ckpt_fixture_fill(b->f, 4);
    memset(values, 0, sizeof values);
    while (st == TESS_OK && tess_ckpt_poll(b->store) == TESS_CKPT_WRITING)
        usleep(1000);
    const tess_ckpt_state after = tess_ckpt_poll(b->store);
    if (st == TESS_OK)
        st = tess_ckpt_commit(b->store, &report);
    tess_alloc_thaw();
    ok(st);
    assert_int_equal(begun, TESS_CKPT_PENDING);
    assert_int_equal(after, TESS_CKPT_WRITTEN);
    assert_int_equal(report.outcome, TESS_CKPT_COMMITTED);
    assert_int_equal(tess_ckpt_poll(b->store), TESS_CKPT_IDLE);
    ok(ckpt_fixture_load(b->f, b->store, NULL, &seed, NULL));
    assert_int_equal(seed, 3);
}

static void test_second_save_in_flight_is_refused(void **state)
{
    bench *b = *state;
    tess_ckpt_report report;
    refused(tess_ckpt_save_begin(b->store, 1, NULL, 0, &report), TESS_E_STATE, "is not prepared");
    refused(tess_ckpt_commit(b->store, &report), TESS_E_STATE, "no checkpoint is in flight");
    ok(ckpt_fixture_prepare(b->f, b->store));
    ok(tess_ckpt_save_begin(b->store, 1, NULL, 0, &report));
    refused(tess_ckpt_save_begin(b->store, 2, NULL, 0, &report), TESS_E_STATE,
            "checkpoint of step 1 is still in flight");
    ok(tess_ckpt_commit(b->store, &report));
    assert_int_equal(report.outcome, TESS_CKPT_COMMITTED);
}

/* After an error of HDF5 nothing is written through it: saves are dropped, loud, and training goes
 * on. */
static void test_save_after_an_hdf5_failure_is_dropped(void **state)
{
    bench *b = *state;
    tess_ckpt_report report;
    char last[CKPT_DIR_NAME_NBYTES];
    ok(ckpt_fixture_prepare(b->f, b->store));
    b->store->is_h5_broken = true;
    ok(ckpt_fixture_save(b->f, b->store, 1, &report));
    assert_int_equal(report.outcome, TESS_CKPT_DROPPED);
    assert_non_null(strstr(report.message, "HDF5 failed before in this process"));
    assert_int_equal(count_steps(b, last), 0);
}

static void test_begin_refuses_bad_state(void **state)
{
    bench *b = *state;
    tess_ckpt_report report;
    const tess_ckpt_value twice[] = {{.name = "a"}, {.name = "a"}};
    const tess_ckpt_value nan = {.name = "x", .kind = TESS_CKPT_F64, .f64 = (double)NAN};
    const tess_ckpt_value slash = {.name = "x/y"};
    const tess_ckpt_value bytes = {.name = "x", .kind = TESS_CKPT_TEXT, .text = "\xff"};
    ok(ckpt_fixture_prepare(b->f, b->store));
    refused(tess_ckpt_save(b->store, 1, twice, 2, &report), TESS_E_ARG, "'a' is there twice");
    refused(tess_ckpt_save(b->store, 1, &nan, 1, &report), TESS_E_ARG, "'x' is not finite");
    refused(tess_ckpt_save(b->store, 1, &slash, 1, &report), TESS_E_ARG, "'x/y': bad name");
    refused(tess_ckpt_save(b->store, 1, &bytes, 1, &report), TESS_E_ARG, "no UTF-8");
    refused(tess_ckpt_save(b->store, -1, NULL, 0, &report), TESS_E_ARG, "out of range");
    ok(ckpt_fixture_save(b->f, b->store, 1, &report));
    assert_int_equal(report.outcome, TESS_CKPT_COMMITTED);
}

static void test_prepare_refuses_other_ranges(void **state)
{
    bench *b = *state;
    const tess_ckpt_base base = {.mode = TESS_CKPT_BASE_NONE};
    b->f->step_records[1].hi_idx--;
    refused(tess_ckpt_prepare(b->store, &b->f->step, &base, 0), TESS_E_ARG,
            "record 'blk.1/master': this rank gives [0, 699), the cut over 1 ranks is [0, 700)");
}

static void test_store_refuses_keep_one(void **state)
{
    bench *b = *state;
    tess_ckpt_store *store = NULL;
    const tess_ckpt_config config = {
        .dir = b->dir, .keep_numel = 1, .comm = b->comm, .ctx = &b->f->ctx};
    refused(tess_ckpt_store_open(&config, &store), TESS_E_CONFIG, "expected at least 2");
}

/* ---- retention ---- */

static void test_retention_keeps_two_and_latest_names_the_newest(void **state)
{
    bench *b = *state;
    tess_ckpt_report report;
    char last[CKPT_DIR_NAME_NBYTES], path[PATH_MAX], *text = NULL;
    size_t nbytes = 0;
    ok(ckpt_fixture_prepare(b->f, b->store));
    for (int i = 1; i <= 5; i++) {
        ok(ckpt_fixture_save(b->f, b->store, i, &report));
        assert_int_equal(report.outcome, TESS_CKPT_COMMITTED);
        assert_int_equal(count_steps(b, last), TESS_MIN(i, 2));
        assert_string_equal(last, report.dir);
    }
    ok(ckpt_join(path, b->dir, "LATEST"));
    ok(tess_io_read_all(b->f->io, path, 1000, &text, &nbytes));
    assert_int_equal(nbytes, strlen(report.dir) + 1);
    assert_memory_equal(text, report.dir, strlen(report.dir));
    tess_free(text);
    assert_string_equal(b->f->log, "");
}

/* What an earlier process left is not counted, but goes when enough newer ones exist; attempts go
 * at the next start; strangers stay. */
static void test_restart_cleans_up(void **state)
{
    bench *b = *state;
    tess_ckpt_report report;
    char last[CKPT_DIR_NAME_NBYTES], path[PATH_MAX], stranger[PATH_MAX], linked[PATH_MAX];
    int64_t seed = 0;
    struct stat info;
    ok(ckpt_fixture_prepare(b->f, b->store));
    ok(ckpt_fixture_save(b->f, b->store, 1, &report));
    ok(ckpt_fixture_save(b->f, b->store, 2, &report));
    ok(ckpt_join(path, b->dir, "step-0000000009.00000000"));
    ok(ckpt_join(stranger, b->dir, "step-9"));
    ok(ckpt_join(linked, b->dir, "step-0000000010.00000000"));
    assert_int_equal(mkdir(path, 0755), 0);
    assert_int_equal(mkdir(stranger, 0755), 0);
    assert_int_equal(symlink("step-9", linked), 0);
    tess_ckpt_store_close(&b->store);
    ok(ckpt_join(path, path, "shard-00000-of-00001.h5"));
    ok(tess_io_write_all(b->f->io, path, "half", 4));
    ok(ckpt_fixture_open(b->f, b->comm, b->dir, false, &b->store));
    assert_int_equal(stat(path, &info), -1);
    assert_int_equal(stat(stranger, &info), 0);
    assert_int_equal(lstat(linked, &info), 0);
    assert_int_equal(unlink(linked), 0);
    ok(ckpt_fixture_load(b->f, b->store, NULL, &seed, NULL));
    assert_int_equal(seed, 2);
    ok(ckpt_fixture_prepare(b->f, b->store));
    ok(ckpt_fixture_save(b->f, b->store, 3, &report));
    /* 2 was read and 3 written by this process: 1 may go. */
    assert_int_equal(count_steps(b, last), 2);
    ok(ckpt_fixture_save(b->f, b->store, 4, &report));
    assert_int_equal(count_steps(b, last), 2);
    assert_string_equal(b->f->log, "");
}

/* The checkpoint that the run continued from stays while the newer one does not read back. */
static void check_resumed_one_stays(bench *b, bool is_named)
{
    tess_ckpt_report report;
    char last[CKPT_DIR_NAME_NBYTES], path[PATH_MAX];
    int64_t seed = 0;
    ok(ckpt_fixture_prepare(b->f, b->store));
    ok(ckpt_fixture_save(b->f, b->store, 1, &report));
    reopen(b);
    snprintf(path, sizeof path, "%s/./%s/", b->dir, report.dir); /* another spelling */
    ok(ckpt_fixture_load(b->f, b->store, is_named ? path : NULL, &seed, NULL));
    assert_null(strstr(b->f->log, "is left behind"));
    ok(ckpt_fixture_prepare(b->f, b->store));
    ok(ckpt_fixture_save(b->f, b->store, 2, &report));
    /* The base is damaged on disk: nothing newer can verify. */
    snprintf(path, sizeof path, "%s/base/%s/shard-00000-of-00001.h5", b->dir, ckpt_fixture_base_id);
    assert_int_equal(truncate(path, 100), 0);
    ok(ckpt_fixture_save(b->f, b->store, 3, &report));
    assert_int_equal(report.outcome, TESS_CKPT_COMMITTED);
    assert_int_equal(count_steps(b, last), 3);
    assert_non_null(strstr(b->f->log, "old checkpoints stay"));
}

static void test_resumed_one_stays_until_a_newer_one_verifies(void **state)
{
    check_resumed_one_stays(*state, false);
}

static void test_named_one_stays_until_a_newer_one_verifies(void **state)
{
    check_resumed_one_stays(*state, true);
}

/* After a return to an older step the new line of descent is the newest, not the highest step. */
static void test_newest_follows_the_line_of_descent(void **state)
{
    bench *b = *state;
    tess_ckpt_report first, report;
    char path[PATH_MAX];
    int64_t seed = 0;
    ok(ckpt_fixture_prepare(b->f, b->store));
    ok(ckpt_fixture_save(b->f, b->store, 10, &first));
    ok(ckpt_fixture_save(b->f, b->store, 20, &report));
    const char *run_id = tess_ckpt_run_id(b->store);
    char kept_id[17];
    snprintf(kept_id, sizeof kept_id, "%s", run_id);
    reopen(b);
    ok(ckpt_join(path, b->dir, first.dir));
    ok(ckpt_fixture_load(b->f, b->store, path, &seed, NULL));
    assert_int_equal(seed, 10);
    assert_non_null(strstr(b->f->log, report.dir)); /* the newest, which is left behind */
    assert_non_null(strstr(b->f->log, "is left behind"));
    assert_string_equal(tess_ckpt_run_id(b->store), kept_id);
    ok(ckpt_fixture_prepare(b->f, b->store));
    ok(ckpt_fixture_save(b->f, b->store, 12, &report));
    reopen(b);
    ok(ckpt_fixture_load(b->f, b->store, NULL, &seed, NULL));
    assert_int_equal(seed, 12);
}

/* ---- LOCK ---- */

/* A child that opens the directory, says so, and waits to be killed. */
static pid_t hold_lock(bench *b)
{
    int ready[2];
    char byte = 0;
    assert_int_equal(pipe(ready), 0);
    const pid_t pid = fork();
    if (pid == 0) {
        tess_ckpt_store *store = NULL;
        byte = ckpt_fixture_open(b->f, b->comm, b->dir, false, &store) == TESS_OK ? 'y' : 'n';
        (void)!write(ready[1], &byte, 1);
        for (;;)
            pause();
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    assert_int_equal(byte, 'y');
    close(ready[0]);
    close(ready[1]);
    return pid;
}

static void test_second_run_is_refused_and_takes_over_after_a_kill(void **state)
{
    bench *b = *state;
    char holder[64];
    tess_ckpt_store_close(&b->store);
    const pid_t pid = hold_lock(b);
    snprintf(holder, sizeof holder, "\"pid\":%ld}", (long)pid);
    const tess_status st = ckpt_fixture_open(b->f, b->comm, b->dir, false, &b->store);
    const bool names_holder = strstr(tess_error_message(), holder) != NULL;
    const int code = tess_status_exit_code(st);
    refused(st, TESS_E_IO, "is used by another run");
    /* A reader needs no lock. */
    ok(ckpt_fixture_open(b->f, b->comm, b->dir, true, &b->store));
    tess_ckpt_store_close(&b->store);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    assert_true(names_holder);
    assert_int_equal(code, 74);
    ok(ckpt_fixture_open(b->f, b->comm, b->dir, false, &b->store));
    assert_int_equal(tess_ckpt_epoch(b->store), 3);
}

static void test_commit_stops_when_the_epoch_changed(void **state)
{
    bench *b = *state;
    tess_ckpt_report report;
    char path[PATH_MAX], last[CKPT_DIR_NAME_NBYTES];
    ok(ckpt_fixture_prepare(b->f, b->store));
    ok(ckpt_join(path, b->dir, "LOCK"));
    ok(tess_io_write_all(b->f->io, path, "{\"epoch\":7}", 11));
    ok(ckpt_fixture_save(b->f, b->store, 1, &report));
    assert_int_equal(report.outcome, TESS_CKPT_DROPPED);
    assert_non_null(strstr(report.message, "shows epoch 7, this run has 1"));
    assert_int_equal(count_steps(b, last), 0);
}

/* A directory that was removed under a run may belong to the next one, whose epochs begin anew. */
static void test_commit_stops_when_the_directory_was_made_anew(void **state)
{
    bench *b = *state;
    tess_ckpt_report report;
    char path[PATH_MAX], last[CKPT_DIR_NAME_NBYTES], *text = NULL;
    size_t nbytes = 0;
    ok(ckpt_fixture_prepare(b->f, b->store));
    ok(ckpt_join(path, b->dir, "LOCK"));
    ok(tess_io_read_all(b->f->io, path, 4096, &text, &nbytes));
    assert_int_equal(unlink(path), 0);
    ok(tess_io_write_all(b->f->io, path, text, nbytes));
    tess_free(text);
    ok(ckpt_fixture_save(b->f, b->store, 1, &report));
    assert_int_equal(report.outcome, TESS_CKPT_DROPPED);
    assert_non_null(strstr(report.message, "was removed and made anew"));
    assert_int_equal(count_steps(b, last), 0);
}

/* ---- base ---- */

static void test_base_is_written_once_and_again_when_damaged(void **state)
{
    bench *b = *state;
    bool was_there = true;
    char path[PATH_MAX];
    ckpt_fixture_fill(b->f, 0);
    ok(tess_ckpt_save_base(b->store, ckpt_fixture_base_id, &b->f->base, &was_there));
    assert_false(was_there);
    ok(tess_ckpt_save_base(b->store, ckpt_fixture_base_id, &b->f->base, &was_there));
    assert_true(was_there);
    snprintf(path, sizeof path, "%s/base/%s/shard-00000-of-00001.h5", b->dir, ckpt_fixture_base_id);
    assert_int_equal(truncate(path, 4096), 0);
    ok(tess_ckpt_save_base(b->store, ckpt_fixture_base_id, &b->f->base, &was_there));
    assert_false(was_there);
    assert_non_null(strstr(b->f->log, "base is written again"));
    ok(tess_ckpt_save_base(b->store, ckpt_fixture_base_id, &b->f->base, &was_there));
    assert_true(was_there);
    refused(tess_ckpt_save_base(b->store, "../x", &b->f->base, &was_there), TESS_E_ARG,
            "must be 64 hex digits");
}

static void test_base_by_reference_is_told_on_load(void **state)
{
    bench *b = *state;
    tess_ckpt_report report;
    tess_ckpt_loaded loaded;
    tess_ckpt_source_file file = {.path = "model-00001.safetensors", .nbytes = 12345};
    memset(file.sha256.byte, 0x5a, sizeof file.sha256.byte);
    const tess_ckpt_base base = {.mode = TESS_CKPT_BASE_REFERENCE,
                                 .id = ckpt_fixture_base_id,
                                 .files = &file,
                                 .file_numel = 1};
    const tess_ckpt_load_request request = {.set = &b->f->step, .base = &b->f->base};
    ok(tess_ckpt_prepare(b->store, &b->f->step, &base, 0));
    ok(ckpt_fixture_save(b->f, b->store, 1, &report));
    ok(tess_ckpt_load(b->store, &request, &loaded));
    assert_int_equal(loaded.base.mode, TESS_CKPT_BASE_REFERENCE);
    assert_int_equal(loaded.base.file_numel, 1);
    assert_string_equal(loaded.base.files[0].path, file.path);
    assert_int_equal(loaded.base.files[0].nbytes, file.nbytes);
    assert_memory_equal(&loaded.base.files[0].sha256, &file.sha256, sizeof file.sha256);
    tess_ckpt_loaded_fini(&loaded);
}

/* ---- tools ---- */

typedef struct page {
    char text[20000];
    size_t nbytes;
} page;

static tess_status keep(void *arg, const char *text, size_t nbytes)
{
    page *p = arg;
    TESS_CHECK(nbytes < sizeof p->text - p->nbytes, TESS_E_RANGE, "page is full");
    memcpy(p->text + p->nbytes, text, nbytes);
    p->nbytes += nbytes;
    p->text[p->nbytes] = '\0';
    return TESS_OK;
}

static void test_inspect_tells_what_is_there(void **state)
{
    bench *b = *state;
    static page p;
    tess_ckpt_report report;
    tess_json *root = NULL;
    int64_t step = 0;
    tess_ckpt_printer printer = {.sink = keep, .arg = &p};
    memset(&p, 0, sizeof p);
    ok(ckpt_fixture_prepare(b->f, b->store));
    ok(ckpt_fixture_save(b->f, b->store, 42, &report));
    ok(tess_ckpt_inspect(&b->f->ctx, b->dir, NULL, &printer));
    assert_non_null(strstr(p.text, "step 42, run "));
    assert_non_null(strstr(p.text, "model.layers.0.q/lora_A bf16 [5,40] unit blk.0 roles exp_avg "
                                   "exp_avg_sq master param"));
    assert_non_null(strstr(p.text, "  tokens = 42000\n"));
    memset(&p, 0, sizeof p);
    printer.is_json = true;
    ok(tess_ckpt_inspect(&b->f->ctx, b->dir, NULL, &printer));
    ok(tess_json_parse("inspect", p.text, p.nbytes, &root));
    ok(tess_json_get_i64(root, "step", &step));
    assert_int_equal(step, 42);
    assert_int_equal(tess_json_numel(tess_json_find(root, "tensors")), 4);
    tess_json_destroy(&root);
    char base[PATH_MAX];
    snprintf(base, sizeof base, "%s/base/%s", b->dir, ckpt_fixture_base_id);
    memset(&p, 0, sizeof p);
    ok(tess_ckpt_inspect(&b->f->ctx, base, NULL, &printer));
    assert_non_null(strstr(p.text, "\"kind\":\"base\""));
    refused(tess_ckpt_inspect(&b->f->ctx, "/nonexistent", NULL, &printer), TESS_E_NOT_FOUND,
            "there is no file or folder '/nonexistent'");
}

/* The last line of a MANIFEST is what the tools take, and no other digest. */
static void test_manifest_is_pinned(bench *b, const char *step_dir)
{
    static page p;
    char path[PATH_MAX], *text = NULL, digest[TESS_SHA256_HEX_NBYTES];
    size_t nbytes = 0;
    const tess_ckpt_printer printer = {.sink = keep, .arg = &p, .is_json = true};
    memset(&p, 0, sizeof p);
    snprintf(path, sizeof path, "%s/%s/MANIFEST", b->dir, step_dir);
    ok(tess_io_read_all(b->f->io, path, 1 << 20, &text, &nbytes));
    snprintf(digest, sizeof digest, "%.64s", text + nbytes - 65);
    tess_free(text);
    ok(tess_ckpt_verify(&b->f->ctx, b->dir, digest, &printer));
    ok(tess_ckpt_inspect(&b->f->ctx, b->dir, digest, &printer));
    assert_non_null(strstr(p.text, digest));
    digest[63] = digest[63] == '0' ? '1' : '0';
    refused(tess_ckpt_verify(&b->f->ctx, b->dir, digest, &printer), TESS_E_FORMAT, digest);
    refused(tess_ckpt_inspect(&b->f->ctx, b->dir, digest, &printer), TESS_E_FORMAT, digest);
}

static void test_verify_names_every_damaged_file(void **state)
{
    bench *b = *state;
    static page p;
    tess_ckpt_report report;
    char path[PATH_MAX];
    const tess_ckpt_printer printer = {.sink = keep, .arg = &p, .is_json = false};
    memset(&p, 0, sizeof p);
    ok(ckpt_fixture_prepare(b->f, b->store));
    ok(ckpt_fixture_save(b->f, b->store, 1, &report));
    ok(tess_ckpt_verify(&b->f->ctx, b->dir, NULL, &printer));
    assert_null(strstr(p.text, "DAMAGED"));
    assert_non_null(strstr(p.text, "logical hashes"));
    test_manifest_is_pinned(b, report.dir);
    snprintf(path, sizeof path, "%s/base/%s/shard-00000-of-00001.h5", b->dir, ckpt_fixture_base_id);
    assert_int_equal(truncate(path, 100), 0);
    snprintf(path, sizeof path, "%s/%s/shard-00000-of-00001.h5", b->dir, report.dir);
    assert_int_equal(truncate(path, 4096), 0);
    memset(&p, 0, sizeof p);
    refused(tess_ckpt_verify(&b->f->ctx, b->dir, NULL, &printer), TESS_E_FORMAT, path);
    const char *first = strstr(p.text, "DAMAGED");
    assert_non_null(first);
    assert_non_null(strstr(first + 1, "DAMAGED"));
}

/* A run directory whose newest checkpoint lost its manifest is not as good as its second newest. */
static void test_verify_of_a_run_sees_a_damaged_newest_manifest(void **state)
{
    bench *b = *state;
    static page p;
    tess_ckpt_report first, report;
    char path[PATH_MAX], found[PATH_MAX];
    int64_t step = 0;
    const tess_ckpt_printer printer = {.sink = keep, .arg = &p, .is_json = false};
    memset(&p, 0, sizeof p);
    ok(ckpt_fixture_prepare(b->f, b->store));
    ok(ckpt_fixture_save(b->f, b->store, 1, &first));
    ok(ckpt_fixture_save(b->f, b->store, 2, &report));
    snprintf(path, sizeof path, "%s/%s/MANIFEST", b->dir, report.dir);
    assert_int_equal(truncate(path, 100), 0);
    refused(tess_ckpt_verify(&b->f->ctx, b->dir, NULL, &printer), TESS_E_FORMAT, path);
    assert_non_null(strstr(p.text, "DAMAGED"));
    refused(tess_ckpt_inspect(&b->f->ctx, b->dir, NULL, &printer), TESS_E_FORMAT, path);
    ok(tess_ckpt_resolve(&b->f->ctx, b->dir, found, sizeof found));
    assert_non_null(strstr(found, report.dir));
    /* the one before is there for who names it */
    snprintf(path, sizeof path, "%s/%s", b->dir, first.dir);
    ok(tess_ckpt_verify(&b->f->ctx, path, NULL, &printer));
    /* a run that went on from there has passed the damaged one */
    reopen(b);
    ok(ckpt_fixture_load(b->f, b->store, NULL, &step, NULL));
    assert_int_equal(step, 1);
    ok(ckpt_fixture_prepare(b->f, b->store));
    ok(ckpt_fixture_save(b->f, b->store, 2, &report));
    ok(tess_ckpt_verify(&b->f->ctx, b->dir, NULL, &printer));
}

/* The base of a checkpoint may be files of others: they are read too where they still are. */
static void test_verify_reads_the_source_that_a_base_refers_to(void **state)
{
    bench *b = *state;
    static page p;
    tess_ckpt_report report;
    char path[PATH_MAX];
    static const char bytes[] = "weights of somebody else";
    tess_ckpt_source_file file = {.path = path, .nbytes = sizeof bytes};
    const tess_ckpt_base base = {.mode = TESS_CKPT_BASE_REFERENCE,
                                 .id = ckpt_fixture_base_id,
                                 .files = &file,
                                 .file_numel = 1};
    tess_ckpt_printer printer = {.sink = keep, .arg = &p, .is_json = false};
    snprintf(path, sizeof path, "%s/model.safetensors", b->dir);
    ok(tess_sha256_of(bytes, sizeof bytes, &file.sha256));
    ok(tess_io_write_all(b->f->ctx.io, path, bytes, sizeof bytes));
    ok(tess_ckpt_prepare(b->store, &b->f->step, &base, 0));
    ok(ckpt_fixture_save(b->f, b->store, 1, &report));
    memset(&p, 0, sizeof p);
    ok(tess_ckpt_verify(&b->f->ctx, b->dir, NULL, &printer));
    const char *line = strstr(p.text, path);
    assert_non_null(line);
    assert_memory_equal(line - 10, "ok      ", 8);
    ok(tess_io_write_all(b->f->ctx.io, path, "weights of somebody Else", sizeof bytes));
    refused(tess_ckpt_verify(&b->f->ctx, b->dir, NULL, &printer), TESS_E_FORMAT, "another SHA-256");
    ok(tess_io_write_all(b->f->ctx.io, path, bytes, sizeof bytes - 1));
    refused(tess_ckpt_verify(&b->f->ctx, b->dir, NULL, &printer), TESS_E_FORMAT,
            "has 24 bytes, the base was read from 25");
    /* another file at a relative path tells where the reader stands */
    ok(tess_io_write_all(b->f->ctx.io, "there.safetensors", "weights of somebody Else",
                         sizeof bytes));
    snprintf(path, sizeof path, "there.safetensors");
    ok(ckpt_fixture_save(b->f, b->store, 2, &report));
    memset(&p, 0, sizeof p);
    ok(tess_ckpt_verify(&b->f->ctx, b->dir, NULL, &printer));
    assert_non_null(strstr(p.text, "absent    there.safetensors"));
    assert_int_equal(unlink("there.safetensors"), 0);
    snprintf(path, sizeof path, "%s/model.safetensors", b->dir);
    ok(ckpt_fixture_save(b->f, b->store, 3, &report));
    /* moved away: told, and no damage */
    assert_int_equal(unlink(path), 0);
    memset(&p, 0, sizeof p);
    printer.is_json = true;
    ok(tess_ckpt_verify(&b->f->ctx, b->dir, NULL, &printer));
    assert_non_null(strstr(p.text, "model.safetensors"));
    assert_non_null(strstr(p.text, "\"ok\":null}"));
}

static void test_diff_counts_elements(void **state)
{
    bench *b = *state;
    static page p;
    tess_ckpt_report one, two;
    char path[2][PATH_MAX];
    bool is_equal = false;
    const tess_ckpt_printer printer = {.sink = keep, .arg = &p};
    memset(&p, 0, sizeof p);
    ok(ckpt_fixture_prepare(b->f, b->store));
    ok(ckpt_fixture_save(b->f, b->store, 1, &one));
    ok(ckpt_join(path[0], b->dir, one.dir));
    ok(tess_ckpt_diff(&b->f->ctx, path[0], path[0], &printer, &is_equal));
    assert_true(is_equal);
    assert_string_equal(p.text, "13 equal, 0 differing\n");
    /* Two elements of one tensor: 0.5 -> 0.75 and 2.0 -> NaN's neighbour 2.5. */
    ckpt_fixture_fill(b->f, 1);
    float *master = b->f->step_records[1].view.data;
    master[7] = 0.5f;
    master[9] = 2.0f;
    ok(tess_ckpt_save(b->store, 1, NULL, 0, &one));
    master[7] = 0.75f;
    master[9] = 2.5f;
    ok(tess_ckpt_save(b->store, 2, NULL, 0, &two));
    ok(ckpt_join(path[0], b->dir, one.dir));
    ok(ckpt_join(path[1], b->dir, two.dir));
    memset(&p, 0, sizeof p);
    ok(tess_ckpt_diff(&b->f->ctx, path[0], path[1], &printer, &is_equal));
    assert_false(is_equal);
    assert_string_equal(p.text, "model.layers.1.q/lora_A master: 2 of 700 elements differ, by at "
                                "most 0.5 (relative 0.333)\n12 equal, 1 differing\n");
}

/* ---- golden: format version 1 loads forever ---- */

static void test_golden_v1_loads(void **state)
{
    bench *b = *state;
    static page p;
    const tess_ckpt_printer printer = {.sink = keep, .arg = &p};
    const char *dir = TESS_TEST_SOURCE_DIR "/tests/golden/ckpt_v1";
    int64_t seed = 0, fallback = -1;
    memset(&p, 0, sizeof p);
    tess_ckpt_store_close(&b->store);
    ok(ckpt_fixture_open(b->f, b->comm, dir, true, &b->store));
    ok(ckpt_fixture_load(b->f, b->store, NULL, &seed, &fallback));
    assert_true(seed == 7 && fallback == 0);
    ok(tess_ckpt_verify(&b->f->ctx, dir, NULL, &printer));
    assert_int_equal(b->store->list.numel, 1);
}

/* tests/golden/make_ckpt_v1.sh */
static int make_golden(const char *dir)
{
    bench b = {0};
    tess_ckpt_report report;
    tess_status st = tess_comm_create_self(&b.comm);
    if (st == TESS_OK)
        st = ckpt_fixture_create(1, 0, 1, 1, &b.f);
    if (st == TESS_OK)
        st = ckpt_fixture_open(b.f, b.comm, dir, false, &b.store);
    if (st == TESS_OK)
        st = ckpt_fixture_prepare(b.f, b.store);
    if (st == TESS_OK)
        st = ckpt_fixture_save(b.f, b.store, 7, &report);
    if (st != TESS_OK)
        fprintf(stderr, "%s\n", tess_error_message());
    tess_ckpt_store_close(&b.store);
    ckpt_fixture_destroy(&b.f);
    tess_comm_destroy(&b.comm);
    return st == TESS_OK ? 0 : 1;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--make-golden") == 0)
        return make_golden(argv[2]);
#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        CASE(test_async_save_stores_the_snapshot_and_allocates_nothing),
        CASE(test_second_save_in_flight_is_refused),
        CASE(test_save_after_an_hdf5_failure_is_dropped),
        CASE(test_begin_refuses_bad_state),
        CASE(test_prepare_refuses_other_ranges),
        CASE(test_store_refuses_keep_one),
        CASE(test_retention_keeps_two_and_latest_names_the_newest),
        CASE(test_restart_cleans_up),
        CASE(test_resumed_one_stays_until_a_newer_one_verifies),
        CASE(test_named_one_stays_until_a_newer_one_verifies),
        CASE(test_newest_follows_the_line_of_descent),
        CASE(test_second_run_is_refused_and_takes_over_after_a_kill),
        CASE(test_commit_stops_when_the_epoch_changed),
        CASE(test_commit_stops_when_the_directory_was_made_anew),
        CASE(test_base_is_written_once_and_again_when_damaged),
        CASE(test_base_by_reference_is_told_on_load),
        CASE(test_inspect_tells_what_is_there),
        CASE(test_verify_names_every_damaged_file),
        CASE(test_verify_of_a_run_sees_a_damaged_newest_manifest),
        CASE(test_verify_reads_the_source_that_a_base_refers_to),
        CASE(test_diff_counts_elements),
        CASE(test_golden_v1_loads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
