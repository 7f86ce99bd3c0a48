/* The cut of slabs, damage of every kind, hostile manifests, strict loading. One process. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/memory.h"
#include "shard/ckpt_priv.h"
#include "support/ckpt_fixture.h"

/* A run directory with committed steps 1 and 2. */
typedef struct bench {
    tess_comm *comm;
    ckpt_fixture *f;
    char dir[256];
    char step[2][PATH_MAX]; /* directories of steps 1 and 2 */
    char base[PATH_MAX];
} bench;

static void ok(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s\n%s", tess_error_message(), tess_error_trace_text());
}

/* The call failed as it had to; the record is cleared. */
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
    tess_ckpt_store *store = NULL;
    tess_ckpt_report report;
    memset(&b, 0, sizeof b);
    ok(tess_comm_create_self(&b.comm));
    ok(ckpt_fixture_dir(b.comm, b.dir));
    ok(ckpt_fixture_create(1, 0, 1, 1, &b.f));
    ok(ckpt_fixture_open(b.f, b.comm, b.dir, false, &store));
    ok(ckpt_fixture_prepare(b.f, store));
    for (int i = 0; i < 2; i++) {
        ok(ckpt_fixture_save(b.f, store, i + 1, &report));
        assert_int_equal(report.outcome, TESS_CKPT_COMMITTED);
        ok(ckpt_join(b.step[i], b.dir, report.dir));
    }
    ok(ckpt_base_dir(b.step[0], ckpt_fixture_base_id, b.base));
    tess_ckpt_store_close(&store);
    *state = &b;
    return 0;
}

static int tear_down(void **state)
{
    bench *b = *state;
    ckpt_fixture_remove(b->dir);
    ckpt_fixture_destroy(&b->f);
    tess_comm_destroy(&b->comm);
    return 0;
}

/* ---- arithmetic ---- */

static void test_range_tiles_every_slab(void **state)
{
    static const int64_t totals[] = {0, 1, 255, 256, 257, 700, 2304, 2305, 5000};
    static const int64_t aligns[] = {1, 8, 256};
    (void)state;
    for (int t = 0; t < TESS_NELEM(totals); t++) {
        for (int a = 0; a < TESS_NELEM(aligns); a++) {
            const tess_ckpt_record r = {.total_numel = totals[t], .align_numel = aligns[a]};
            for (int w = 1; w <= 9; w++) {
                int64_t end = 0;
                for (int k = 0; k < w; k++) {
                    int64_t lo = -1, hi = -1;
                    tess_ckpt_range(&r, w, k, &lo, &hi);
                    assert_int_equal(lo, end);
                    assert_true(hi >= lo && (hi == r.total_numel || hi % r.align_numel == 0));
                    end = hi;
                }
                assert_int_equal(end, r.total_numel);
            }
        }
    }
}

/* Property of the reshard planner: each element of the new cut comes from one place, once. */
static void test_sources_read_each_element_once(void **state)
{
    static const int64_t totals[] = {0, 1, 256, 257, 700, 2304, 2305, 4999};
    static uint8_t seen[5000];
    (void)state;
    for (int t = 0; t < TESS_NELEM(totals); t++) {
        const tess_ckpt_record r = {.total_numel = totals[t], .align_numel = 256};
        for (int stored = 1; stored <= 9; stored++) {
            for (int w = 1; w <= 9; w++) {
                memset(seen, 0, sizeof seen);
                for (int k = 0; k < w; k++) {
                    int64_t lo = 0, hi = 0, from = 0, to = 0;
                    int first = 0, end = 0;
                    tess_ckpt_range(&r, w, k, &lo, &hi);
                    tess_ckpt_sources(&r, stored, lo, hi, &first, &end);
                    assert_true(first >= 0 && end <= stored);
                    for (int s = first; s < end; s++) {
                        tess_ckpt_range(&r, stored, s, &from, &to);
                        assert_true(TESS_MAX(from, lo) < TESS_MIN(to, hi));
                        for (int64_t i = TESS_MAX(from, lo); i < TESS_MIN(to, hi); i++)
                            seen[i]++;
                    }
                }
                for (int64_t i = 0; i < r.total_numel; i++)
                    assert_int_equal(seen[i], 1);
            }
        }
    }
}

static void test_plan_bounds_the_files(void **state)
{
    bench *b = *state;
    tess_ckpt_sizes sizes;
    ckpt_manifest m;
    ok(tess_ckpt_plan(&b->f->step, 0, &sizes));
    ok(ckpt_manifest_read(b->f->io, b->step[0], &m));
    assert_int_equal(sizes.payload_nbytes, 3 * (1157 + 700) * 4 + (1157 + 700) * 2 + 3 * 8);
    assert_true((size_t)m.files[0].file_nbytes >= sizes.payload_nbytes);
    assert_true((size_t)m.files[0].file_nbytes <= sizes.file_nbytes_max);
    assert_int_equal(sizes.disk_nbytes_max, sizes.file_nbytes_max);
    ckpt_manifest_fini(&m);
}

/* ---- damage ---- */

static void xor_byte(const char *path, off_t at, uint8_t mask)
{
    uint8_t byte = 0;
    const int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte ^= mask;
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

static off_t size_of(const char *path)
{
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    return info.st_size;
}

/* Flip one bit at every `stride`-th byte: each is refused and the file is named. */
static void check_flips(bench *b, const char *dir, const char *name, off_t stride)
{
    char path[PATH_MAX];
    ok(ckpt_join(path, dir, name));
    const off_t nbytes = size_of(path);
    for (off_t at = 0; at < nbytes; at += stride) {
        const uint8_t mask = (uint8_t)(1u << (at / stride) % 8);
        xor_byte(path, at, mask);
        tess_error_clear();
        const tess_status st = ckpt_verify_dir(b->f->io, b->step[1]);
        if (st != TESS_E_FORMAT || strstr(tess_error_message(), name) == NULL)
            fail_msg("%s: bit flip at %lld: %s '%s'", name, (long long)at, tess_status_name(st),
                     tess_error_message());
        xor_byte(path, at, mask);
    }
    tess_error_clear();
}

static void test_bit_flips_are_refused_everywhere(void **state)
{
    bench *b = *state;
    check_flips(b, b->step[1], "MANIFEST", 11);
    check_flips(b, b->base, "MANIFEST", 7);
    check_flips(b, b->step[1], "shard-00000-of-00001.h5", 61);
    check_flips(b, b->base, "shard-00000-of-00001.h5", 17);
    ok(ckpt_verify_dir(b->f->io, b->step[1]));
}

/* One flip in each region, and the region is the one that the message names. */
static void test_bit_flip_names_its_region(void **state)
{
    bench *b = *state;
    char path[PATH_MAX];
    ckpt_manifest m;
    ckpt_chunk *chunks = NULL;
    int64_t chunk_numel = 0;
    ok(ckpt_join(path, b->step[1], "shard-00000-of-00001.h5"));
    ok(ckpt_manifest_read(b->f->io, b->step[1], &m));
    ok(ckpt_shard_check(b->f->io, path, &m.files[0], &chunks, &chunk_numel));
    const struct {
        int64_t at;
        const char *text;
    } flips[] = {{0, "metadata does not have the digest"},
                 {m.files[0].table_offset_nbytes + 5, "the chunk table at byte"},
                 {chunks[3].offset_nbytes, "/units/"}};
    for (int i = 0; i < TESS_NELEM(flips); i++) {
        xor_byte(path, flips[i].at, 4);
        refused(ckpt_verify_dir(b->f->io, b->step[1]), TESS_E_FORMAT, flips[i].text);
        xor_byte(path, flips[i].at, 4);
    }
    tess_free(chunks);
    ckpt_manifest_fini(&m);
}

static void test_truncation_is_refused(void **state)
{
    bench *b = *state;
    char path[PATH_MAX];
    static uint8_t bytes[1 << 17];
    ok(ckpt_join(path, b->step[1], "shard-00000-of-00001.h5"));
    const off_t nbytes = size_of(path);
    int fd = open(path, O_RDWR);
    assert_int_equal(pread(fd, bytes, sizeof bytes, 0), nbytes);
    for (off_t at = 0; at < nbytes; at += 4096) {
        assert_int_equal(ftruncate(fd, at), 0);
        refused(ckpt_verify_dir(b->f->io, b->step[1]), TESS_E_FORMAT, "shard-00000-of-00001.h5");
        /* The same size again, filled with zeros: as after a power cut. */
        assert_int_equal(ftruncate(fd, nbytes), 0);
        refused(ckpt_verify_dir(b->f->io, b->step[1]), TESS_E_FORMAT, "shard-00000-of-00001.h5");
        assert_int_equal(pwrite(fd, bytes, (size_t)nbytes, 0), nbytes);
    }
    close(fd);
    ok(ckpt_verify_dir(b->f->io, b->step[1]));
}

static void swap_files(const char *a, const char *b)
{
    char spare[PATH_MAX];
    snprintf(spare, sizeof spare, "%.4000s.spare", a);
    assert_int_equal(rename(a, spare), 0);
    assert_int_equal(rename(b, a), 0);
    assert_int_equal(rename(spare, b), 0);
}

/* An older shard of the same size, a missing one, a link instead of a file. */
static void test_wrong_shard_is_refused(void **state)
{
    bench *b = *state;
    char path[2][PATH_MAX], spare[PATH_MAX];
    for (int i = 0; i < 2; i++)
        ok(ckpt_join(path[i], b->step[i], "shard-00000-of-00001.h5"));
    assert_int_equal(size_of(path[0]), size_of(path[1]));
    swap_files(path[0], path[1]);
    refused(ckpt_verify_dir(b->f->io, b->step[1]), TESS_E_FORMAT, path[1]);
    refused(ckpt_verify_dir(b->f->io, b->step[0]), TESS_E_FORMAT, path[0]);
    swap_files(path[0], path[1]);
    ok(ckpt_join(spare, b->step[1], "spare"));
    assert_int_equal(rename(path[1], spare), 0);
    refused(ckpt_verify_dir(b->f->io, b->step[1]), TESS_E_FORMAT, "h5' is missing");
    assert_int_equal(symlink("spare", path[1]), 0);
    refused(ckpt_verify_dir(b->f->io, b->step[1]), TESS_E_FORMAT, "h5' is a symbolic link");
    assert_int_equal(unlink(path[1]), 0);
    assert_int_equal(rename(spare, path[1]), 0);
    ok(ckpt_verify_dir(b->f->io, b->step[1]));
}

/* A base that was written for another run: same id, other bytes. */
static void test_other_base_is_refused(void **state)
{
    bench *b = *state;
    char path[PATH_MAX];
    char *text = NULL;
    size_t nbytes = 0;
    ok(ckpt_manifest_read_bytes(b->f->io, b->base, &text, &nbytes));
    ok(ckpt_join(path, b->base, "MANIFEST"));
    char *changed = NULL;
    ok(tess_strdup(text, &changed));
    char *at = strstr(changed, "\"wall_time_s\":");
    assert_non_null(at);
    at[14] = at[14] == '1' ? '2' : '1';
    tess_sha256 digest;
    char hex[TESS_SHA256_HEX_NBYTES];
    ok(tess_sha256_of(changed, nbytes - 65, &digest));
    tess_hex(digest.byte, sizeof digest.byte, hex);
    memcpy(changed + nbytes - 65, hex, 64);
    assert_int_equal(unlink(path), 0);
    ok(tess_io_write_all(b->f->io, path, changed, nbytes));
    refused(ckpt_verify_dir(b->f->io, b->step[1]), TESS_E_FORMAT, "is not the base that");
    ok(tess_io_write_all(b->f->io, path, text, nbytes));
    ok(ckpt_verify_dir(b->f->io, b->step[1]));
    tess_free(changed);
    tess_free(text);
}

/* ---- hostile manifests: edited and sealed again ---- */

/* Replace the first `from` by `to` and seal; the text must then be refused with `text`. */
static void check_edit(const bench *b, const char *from, const char *to, tess_status code,
                       const char *text)
{
    char *original = NULL;
    size_t nbytes = 0;
    void *memory = NULL;
    ckpt_manifest m;
    tess_sha256 digest;
    ok(ckpt_manifest_read_bytes(b->f->io, b->step[1], &original, &nbytes));
    const size_t room = nbytes + strlen(to) + 128;
    ok(tess_alloc(room, &memory));
    ckpt_text t = {memory, room, 0};
    original[nbytes - 65] = '\0';
    char *at = strstr(original, from);
    if (at == NULL)
        fail_msg("the manifest has no '%s'", from);
    ckpt_text_put(&t, "%.*s%s%s", (int)(at - original), original, to, at + strlen(from));
    ok(ckpt_manifest_seal(&t, &digest));
    refused(ckpt_manifest_parse("edited", t.text, t.nbytes, &m), code, text);
    tess_free(original);
    tess_free(memory);
}

static void test_hostile_manifests_are_refused(void **state)
{
    const bench *b = *state;
    check_edit(b, "\"major\":1", "\"major\":2", TESS_E_UNSUPPORTED, "checkpoint format 2.0");
    check_edit(b, "\"features_required\":[]", "\"features_required\":[\"warp\"]",
               TESS_E_UNSUPPORTED, "requires the feature 'warp'");
    check_edit(b, "\"name\":\"shard-00000-of-00001.h5\"", "\"name\":\"../../etc/passwd\"",
               TESS_E_FORMAT, "files[0].name");
    check_edit(b, "\"world\":1", "\"world\":2", TESS_E_FORMAT, "expected run.world = 2");
    check_edit(b, "\"world\":1", "\"world\":100000", TESS_E_FORMAT, "expected 1 to 99999");
    check_edit(b, "\"world\":1", "\"world\":0", TESS_E_FORMAT, "expected 1 to 99999");
    check_edit(b, "\"chunks\":{\"nbytes\":252", "\"chunks\":{\"nbytes\":99999988", TESS_E_FORMAT,
               "does not fit a file");
    check_edit(b, "\"numel\":1157", "\"numel\":100", TESS_E_FORMAT, "covers [");
    check_edit(b, "\"numel\":1157", "\"numel\":9223372036854775807", TESS_E_FORMAT, "elements");
    check_edit(b, "\"numel\":1157", "\"numel\":-1", TESS_E_FORMAT, "elements");
    check_edit(b, "\"align\":256", "\"align\":0", TESS_E_FORMAT, "alignment 0");
    check_edit(b, "\"dtype\":\"f32\"", "\"dtype\":\"f33\"", TESS_E_FORMAT, "dtype 'f33' unknown");
    check_edit(b, "\"unit\":\"blk.0\"", "\"unit\":\"../x\"", TESS_E_FORMAT, "names must be");
    check_edit(b, "\"unit\":\"blk.0\"", "\"unit\":\"\"", TESS_E_FORMAT, "names must be");
    check_edit(b, "\"role\":\"master\",\"unit\":\"blk.1\"",
               "\"role\":\"master\",\"unit\":\"blk.0\"", TESS_E_FORMAT, "is there twice");
    check_edit(b, "\"name\":\"model.layers.0.q/lora_B\"", "\"name\":\"model.layers.0.q/lora_A\"",
               TESS_E_FORMAT, "is there twice");
    check_edit(b, "\"shape\":[5,40]", "\"shape\":[4294967296,4294967296]", TESS_E_FORMAT,
               "shape overflows");
    check_edit(b, "\"shape\":[5,40]", "\"shape\":[1,1,1,1,1,1,1,1,1]", TESS_E_FORMAT,
               "9 dimensions");
    check_edit(b, "\"offset\":256,\"quant\"", "\"offset\":-256,\"quant\"", TESS_E_FORMAT,
               "negative offset");
    check_edit(b, "\"mode\":\"copy\"", "\"mode\":\"link\"", TESS_E_FORMAT, "base.mode 'link'");
    check_edit(b, "\"kind\":\"step\"", "\"kind\":\"tail\"", TESS_E_FORMAT, "kind 'tail'");
    check_edit(b, "{\"base\":{\"files\":[],\"id\":\"01", "{\"base\":{\"files\":[],\"id\":\"..",
               TESS_E_FORMAT, "64 hex digits");
    check_edit(b, "\"usage\":\"", "\"other\":\"", TESS_E_FORMAT, "usage");
    check_edit(b, "\"tensors\":[", "\"tensors\":[[],", TESS_E_FORMAT, "edited");
    check_edit(b, "\"state\":{", "\"state\":{\"x/y\":1,", TESS_E_FORMAT, "state 'x/y'");
}

/* ---- strict loading ---- */

static void check_load_refuses(bench *b, const char *text)
{
    tess_ckpt_store *store = NULL;
    tess_ckpt_loaded loaded;
    const tess_ckpt_load_request request = {.set = &b->f->step, .base = &b->f->base};
    ok(ckpt_fixture_open(b->f, b->comm, b->dir, true, &store));
    refused(tess_ckpt_load(store, &request, &loaded), TESS_E_FORMAT, text);
    tess_ckpt_store_close(&store);
}

/* Every kind of difference between the file and the run, with both values in the message; auto mode
 * does not fall back because of it. */
static void test_load_is_strict_about_tensors(void **state)
{
    bench *b = *state;
    ckpt_fixture *f = b->f;
    const tess_ckpt_tensor tensor = f->step_tensors[0];
    const tess_ckpt_record record = f->step_records[0];
    f->log[0] = '\0';
    f->step_tensors[0].shape[1] = 20;
    check_load_refuses(b, "'model.layers.0.q/lora_A' has shape [5, 40], this run needs [5, 20]");
    f->step_tensors[0] = tensor;
    f->step_tensors[0].dtype = "f32";
    check_load_refuses(b, "'model.layers.0.q/lora_A' is bf16, this run needs f32");
    f->step_tensors[0] = tensor;
    f->step_tensors[0].name = "other";
    check_load_refuses(b, "tensor 'other' of this run is missing");
    f->step_tensors[0] = tensor;
    f->step_tensors[0].extent_numel = 199;
    check_load_refuses(b, "lies at [0, +200) of its unit, this run has [0, +199)");
    f->step_tensors[0] = tensor;
    f->base_tensors[0].quant = "nf4/128";
    check_load_refuses(b, "is quantized as nf4/64/double, this run needs nf4/128");
    f->base_tensors[0].quant = "nf4/64/double";
    f->step.tensor_numel--;
    check_load_refuses(b, "holds tensor 'book.usage', which this run does not have");
    f->step.tensor_numel++;
    f->step_records[0].role = "ema";
    check_load_refuses(b, "slab 'blk.0/ema' of this run is missing");
    f->step_records[0] = record;
    f->step_records[0].dt = TESS_I32;
    f->step_records[0].view.dt = TESS_I32;
    check_load_refuses(b, "slab 'blk.0/master' is stored as f32, this run needs i32");
    f->step_records[0] = record;
    assert_null(strstr(f->log, "older one"));
}

static tess_status refuse_seed(void *arg, const tess_ckpt_loaded *manifest, bool *wants_base)
{
    int *calls = arg;
    (*calls)++;
    assert_true(*wants_base);
    return TESS_FAIL(TESS_E_CONFIG, "step %lld: seed changed", (long long)manifest->step);
}

static void test_accept_ends_the_load(void **state)
{
    bench *b = *state;
    tess_ckpt_store *store = NULL;
    tess_ckpt_loaded loaded;
    int calls = 0;
    const tess_ckpt_load_request request = {
        .set = &b->f->step, .base = &b->f->base, .accept = refuse_seed, .accept_arg = &calls};
    ok(ckpt_fixture_open(b->f, b->comm, b->dir, true, &store));
    refused(tess_ckpt_load(store, &request, &loaded), TESS_E_CONFIG, "step 2: seed changed");
    assert_int_equal(calls, 1);
    tess_ckpt_store_close(&store);
}

/* Damage of the newest: auto falls back and says so, a named path does not; all damaged is 66. */
static void test_fallback_only_in_auto_mode(void **state)
{
    bench *b = *state;
    tess_ckpt_store *store = NULL;
    char path[2][PATH_MAX], manifest[PATH_MAX];
    int64_t seed = 0, fallback = 0;
    for (int i = 0; i < 2; i++)
        ok(ckpt_join(path[i], b->step[i], "shard-00000-of-00001.h5"));
    ok(ckpt_join(manifest, b->step[1], "MANIFEST"));
    xor_byte(path[1], 20000, 1);
    ok(ckpt_fixture_open(b->f, b->comm, b->dir, true, &store));
    b->f->log[0] = '\0';
    ok(ckpt_fixture_load(b->f, store, NULL, &seed, &fallback));
    assert_true(seed == 1 && fallback == 1);
    assert_non_null(strstr(b->f->log, "does not verify, an older one is tried"));
    refused(ckpt_fixture_load(b->f, store, b->step[1], &seed, NULL), TESS_E_FORMAT, path[1]);
    refused(ckpt_fixture_load(b->f, store, b->dir, &seed, NULL), TESS_E_NOT_FOUND,
            "is no checkpoint");
    xor_byte(path[0], 20000, 1);
    refused(ckpt_fixture_load(b->f, store, NULL, &seed, NULL), TESS_E_NOT_FOUND,
            "2 checkpoints were committed and none verifies");
    assert_int_equal(tess_status_exit_code(TESS_E_NOT_FOUND), 66);
    tess_ckpt_store_close(&store);
    xor_byte(path[0], 20000, 1);
    xor_byte(path[1], 20000, 1);
    xor_byte(manifest, 100, 1);
    ok(ckpt_fixture_open(b->f, b->comm, b->dir, true, &store));
    b->f->log[0] = '\0';
    ok(ckpt_fixture_load(b->f, store, NULL, &seed, &fallback));
    assert_true(seed == 1 && fallback == 1);
    assert_non_null(strstr(b->f->log, "its MANIFEST does not verify"));
    tess_ckpt_store_close(&store);
    xor_byte(manifest, 100, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_range_tiles_every_slab),
        cmocka_unit_test(test_sources_read_each_element_once),
        cmocka_unit_test(test_plan_bounds_the_files),
        cmocka_unit_test(test_bit_flips_are_refused_everywhere),
        cmocka_unit_test(test_bit_flip_names_its_region),
        cmocka_unit_test(test_truncation_is_refused),
        cmocka_unit_test(test_wrong_shard_is_refused),
        cmocka_unit_test(test_other_base_is_refused),
        cmocka_unit_test(test_hostile_manifests_are_refused),
        cmocka_unit_test(test_load_is_strict_about_tensors),
        cmocka_unit_test(test_accept_ends_the_load),
        cmocka_unit_test(test_fallback_only_in_auto_mode),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
