#include "train/data/codes_file.h"

#include <inttypes.h>

#include "format/format_test.h"
#include "train/data/codes_file_priv.h"

static tess_ctx ctx_of(const fixture *f) { return (tess_ctx){.io = f->io}; }

static tess_codes_info info_of(int64_t vectors, int64_t codes, int64_t groups, int64_t levels,
                               bool has_absent)
{
    return (tess_codes_info){.vector_numel = vectors,
                             .code_numel = codes,
                             .level_numel = levels,
                             .group_numel = groups,
                             .has_absent = has_absent,
                             .bit_order = TESS_CODES_ROW,
                             .codebooks = "sha256 of codebooks",
                             .source = "10x3/00"};
}

/* Every place of the range, both ends among them; every seventh is absent where that can be. */
static int64_t code_of(const tess_codes_info *info, int64_t i)
{
    if (info->has_absent && i % 7 == 3)
        return -1;
    return i % 5 == 0 ? info->code_numel - 1 : i * 2654435761 % info->code_numel;
}

static tess_status write_file(const fixture *f, const char *path, const tess_codes_info *info,
                              int64_t block_numel)
{
    const tess_ctx ctx = ctx_of(f);
    const int64_t columns = tess_codes_column_numel(info);
    tess_codes_writer *writer = NULL;
    int64_t *codes = calloc((size_t)(block_numel * columns), sizeof *codes);
    tess_status st = tess_codes_writer_create(&ctx, path, info, &writer);
    for (int64_t done = 0; st == TESS_OK && done < info->vector_numel;) {
        const int64_t part = TESS_MIN(block_numel, info->vector_numel - done);
        for (int64_t i = 0; i < part * columns; i++)
            codes[i] = code_of(info, done * columns + i);
        st = tess_codes_writer_append(writer, codes, part);
        done += part;
    }
    if (st == TESS_OK)
        st = tess_codes_writer_finish(writer);
    tess_codes_writer_destroy(&writer);
    free(codes);
    return st;
}

static void check_content(const fixture *f, const char *path, const tess_codes_info *info)
{
    const tess_ctx ctx = ctx_of(f);
    const int64_t columns = tess_codes_column_numel(info);
    tess_codes_file *file = NULL;
    int64_t *codes = calloc((size_t)(info->vector_numel * columns), sizeof *codes);
    assert_ok(tess_codes_file_open(&ctx, path, &file));
    const tess_codes_info *found = tess_codes_file_get_info(file);
    assert_int_equal(found->vector_numel, info->vector_numel);
    assert_int_equal(found->code_numel, info->code_numel);
    assert_int_equal(found->level_numel, info->level_numel);
    assert_int_equal(found->group_numel, info->group_numel);
    assert_int_equal(found->has_absent, info->has_absent);
    assert_int_equal(found->bit_order, info->bit_order);
    assert_string_equal(found->codebooks, info->codebooks);
    assert_string_equal(found->source, info->source);
    const int64_t events = tess_alloc_events();
    assert_ok(tess_codes_file_read(file, 0, info->vector_numel, codes));
    for (int64_t i = 0; i < info->vector_numel * columns; i++)
        if (codes[i] != code_of(info, i))
            fail_msg("code %" PRId64 " is %" PRId64, i, codes[i]);
    assert_ok(tess_codes_file_read(file, info->vector_numel - 1, 1, codes));
    assert_int_equal(codes[columns - 1], code_of(info, info->vector_numel * columns - 1));
    assert_int_equal(tess_alloc_events(), events);
    assert_refused(tess_codes_file_read(file, info->vector_numel, 1, codes), TESS_E_RANGE, path);
    assert_refused(tess_codes_file_read(file, -1, 1, codes), TESS_E_RANGE, path);
    assert_ok(tess_codes_file_verify(file));
    tess_codes_file_close(&file);
    free(codes);
}

static void test_write_read_round_trip_at_every_width(void **state)
{
    static const struct {
        int64_t codes;
        bool has_absent;
        size_t code_nbytes;
    } cases[] = {{1, false, 1},     {1, true, 1},          {255, true, 1},
                 {256, false, 1},   {256, true, 2},        {257, false, 2},
                 {65535, true, 2},  {65536, false, 2},     {65536, true, 4},
                 {65537, false, 4}, {UINT32_MAX, true, 4}, {UINT32_MAX, false, 4}};
    const fixture *f = *state;
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        const tess_codes_info info = info_of(101, cases[i].codes, 2, 3, cases[i].has_absent);
        const tess_ctx ctx = ctx_of(f);
        const char *path = at(f, "codes.h5");
        tess_codes_file *file = NULL;
        assert_ok(write_file(f, path, &info, 7));
        check_content(f, path, &info);
        assert_ok(tess_codes_file_open(&ctx, path, &file));
        assert_int_equal(tess_codes_file_get_info(file)->code_nbytes, cases[i].code_nbytes);
        tess_codes_file_close(&file);
    }
}

/* More rows than the scratch buffers hold; the bytes do not depend on how they were appended. */
static void test_write_in_other_blocks_gives_the_same_file(void **state)
{
    const fixture *f = *state;
    const tess_codes_info info = info_of(70000, 1000, 1, 9, true);
    char *bytes[2] = {NULL, NULL};
    size_t nbytes[2] = {0, 0};
    const int64_t blocks[2] = {70000, 12345};
    assert_true(info.vector_numel * 9 * 2 > TESS_CODES_SCRATCH_NBYTES);
    for (int i = 0; i < 2; i++) {
        assert_ok(write_file(f, at(f, "codes.h5"), &info, blocks[i]));
        check_content(f, at(f, "codes.h5"), &info);
        assert_ok(tess_io_read_all(f->io, at(f, "codes.h5"), 1 << 22, &bytes[i], &nbytes[i]));
    }
    assert_int_equal(nbytes[0], nbytes[1]);
    assert_memory_equal(bytes[0], bytes[1], nbytes[0]);
    assert_memory_equal(bytes[0], "TESSERA-CODES 1", 16);
    assert_memory_equal(bytes[0] + TESS_CODES_HEADER_NBYTES, "\x89HDF\r\n\x1a\n", 8);
    tess_free(bytes[0]);
    tess_free(bytes[1]);
}

static void test_write_refuses_what_a_file_cannot_hold(void **state)
{
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    const tess_codes_info good = info_of(2, 256, 1, 2, false);
    const tess_codes_info bad[] = {
        info_of(0, 256, 1, 2, false),       info_of(2, 0, 1, 2, false),
        info_of(2, 1LL << 32, 1, 2, false), info_of(2, 256, 0, 2, false),
        info_of(2, 256, 65537, 1, false),   info_of(INT64_MAX, 256, 1, 2, false)};
    tess_codes_writer *writer = NULL;
    for (int i = 0; i < TESS_NELEM(bad); i++)
        assert_refused(tess_codes_writer_create(&ctx, at(f, "x.h5"), &bad[i], &writer), TESS_E_ARG,
                       "x.h5");
    assert_ok(tess_codes_writer_create(&ctx, at(f, "x.h5"), &good, &writer));
    assert_refused(tess_codes_writer_append(writer, (int64_t[]){1, 256}, 1), TESS_E_RANGE,
                   "code 256 in row 0, column 1", "0 to 255");
    assert_refused(tess_codes_writer_append(writer, (int64_t[]){-1, 0}, 1), TESS_E_RANGE,
                   "code -1");
    assert_ok(tess_codes_writer_append(writer, (int64_t[]){1, 255}, 1));
    assert_refused(tess_codes_writer_append(writer, (int64_t[4]){0}, 2), TESS_E_RANGE,
                   "2 more given");
    assert_refused(tess_codes_writer_finish(writer), TESS_E_STATE, "only 1 are written");
    tess_codes_writer_destroy(&writer);
    char **name = NULL;
    int64_t numel = -1;
    assert_ok(tess_io_list(f->io, f->dir, &name, &numel));
    assert_int_equal(numel, 0);
    tess_io_list_free(&name, numel);
}

/* Bytes changed one at a time all over the file: outside the codes refused at open, in them by
 * verify. */
static void test_open_and_verify_find_changed_bytes(void **state)
{
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    const tess_codes_info info = info_of(50, 200, 1, 2, false);
    char *bytes = NULL;
    size_t nbytes = 0;
    assert_ok(write_file(f, at(f, "codes.h5"), &info, 50));
    assert_ok(tess_io_read_all(f->io, at(f, "codes.h5"), 1 << 20, &bytes, &nbytes));
    for (size_t i = 0; i < nbytes; i += i < 256 ? 1 : i >= TESS_CODES_HEADER_NBYTES ? 11 : 61) {
        tess_codes_file *file = NULL;
        bytes[i] = (char)(bytes[i] ^ 1);
        const char *path = put_file(f, "changed.h5", bytes, nbytes);
        tess_error_clear();
        tess_status st = tess_codes_file_open(&ctx, path, &file);
        if (st == TESS_OK)
            st = tess_codes_file_verify(file);
        if (st != TESS_E_FORMAT && st != TESS_E_UNSUPPORTED)
            fail_msg("byte %zu: status %d", i, (int)st);
        tess_codes_file_close(&file);
        bytes[i] = (char)(bytes[i] ^ 1);
    }
    for (size_t keep = 0; keep < nbytes; keep += 97) {
        tess_codes_file *file = NULL;
        assert_refused(tess_codes_file_open(&ctx, put_file(f, "cut.h5", bytes, keep), &file),
                       TESS_E_FORMAT, "cut.h5");
    }
    tess_free(bytes);
}

static void test_open_another_version_is_named(void **state)
{
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    const tess_codes_info info = info_of(5, 200, 1, 2, false);
    tess_codes_file *file = NULL;
    char *bytes = NULL;
    size_t nbytes = 0;
    bool is_codes = false;
    assert_ok(write_file(f, at(f, "codes.h5"), &info, 5));
    assert_ok(tess_codes_file_is(&ctx, at(f, "codes.h5"), &is_codes));
    assert_true(is_codes);
    assert_ok(tess_io_read_all(f->io, at(f, "codes.h5"), 1 << 20, &bytes, &nbytes));
    bytes[14] = '2';
    assert_refused(tess_codes_file_open(&ctx, put_file(f, "new.h5", bytes, nbytes), &file),
                   TESS_E_UNSUPPORTED, "new.h5", "version 2", "reads 1");
    bytes[0] = 'X';
    assert_refused(tess_codes_file_open(&ctx, put_file(f, "no.h5", bytes, nbytes), &file),
                   TESS_E_FORMAT, "no.h5", "is no codes file");
    assert_ok(tess_codes_file_is(&ctx, at(f, "no.h5"), &is_codes));
    assert_false(is_codes);
    tess_free(bytes);
}

/* A code of K or more under digests that fit: only the range check sees it. */
static void test_read_a_code_beyond_the_codebook_is_named(void **state)
{
    const fixture *f = *state;
    const tess_ctx ctx = ctx_of(f);
    const tess_codes_info info = info_of(5, 200, 1, 2, false);
    tess_codes_file *file = NULL;
    tess_codes_info found;
    tess_codes_place place;
    char *bytes = NULL;
    size_t nbytes = 0;
    int64_t codes[10];
    assert_ok(write_file(f, at(f, "codes.h5"), &info, 5));
    assert_ok(tess_io_read_all(f->io, at(f, "codes.h5"), 1 << 20, &bytes, &nbytes));
    assert_ok(tess_codes_header_decode("x", (uint8_t *)bytes, (int64_t)nbytes, &found, &place));
    bytes[place.offset_nbytes + 7] = (char)200;
    assert_ok(tess_codes_file_open(&ctx, put_file(f, "beyond.h5", bytes, nbytes), &file));
    assert_ok(tess_codes_file_read(file, 0, 3, codes));
    assert_refused(tess_codes_file_read(file, 2, 3, codes), TESS_E_FORMAT, "beyond.h5",
                   "code 200 in row 3, column 1", "less than 200");
    tess_codes_file_close(&file);
    tess_free(bytes);
}

static void assert_only_file(const fixture *f, const char *file)
{
    char **name = NULL;
    int64_t numel = -1;
    assert_ok(tess_io_list(f->io, f->dir, &name, &numel));
    assert_int_equal(numel, 1);
    assert_string_equal(name[0], file);
    tess_io_list_free(&name, numel);
}

static int64_t vectors_in(const fixture *f, const char *path)
{
    const tess_ctx ctx = ctx_of(f);
    tess_codes_file *file = NULL;
    assert_ok(tess_codes_file_open(&ctx, path, &file));
    const int64_t numel = tess_codes_file_get_info(file)->vector_numel;
    tess_codes_file_close(&file);
    return numel;
}

/* Each call of each operation fails once while a file is replaced: the failure is reported, nothing
 * leaks, no temporary file is left, and the old file or the new one stands there whole. */
static void test_write_with_faults_leaves_a_whole_file(void **state)
{
    static const struct {
        const char *name;
        tess_io_op op;
    } operations[] = {{"open", TESS_IO_OPEN},     {"pread", TESS_IO_PREAD},
                      {"pwrite", TESS_IO_PWRITE}, {"fsync", TESS_IO_FSYNC},
                      {"close", TESS_IO_CLOSE},   {"fallocate", TESS_IO_FALLOCATE},
                      {"rename", TESS_IO_RENAME}};
    const fixture *f = *state;
    const tess_codes_info old = info_of(5, 200, 1, 2, false), new = info_of(9, 300, 2, 2, true);
    const char *path = at(f, "codes.h5");
    int failure_numel = 0;
    assert_ok(write_file(f, path, &old, 5));
    for (int i = 0; i < TESS_NELEM(operations); i++) {
        bool has_fired = true;
        for (int64_t n = 1; has_fired; n++) {
            char fault[64];
            fixture broken = *f;
            snprintf(fault, sizeof fault, "0:%s:%" PRId64 ":enospc", operations[i].name, n);
            setenv("TESSERA_FAULT", fault, 1);
            const size_t before_nbytes = tess_alloc_nbytes();
            assert_ok(tess_io_create(0, &broken.io));
            unsetenv("TESSERA_FAULT");
            tess_error_clear();
            const tess_status st = write_file(&broken, path, &new, 4);
            has_fired = tess_io_calls(broken.io, operations[i].op) >= n;
            tess_io_destroy(&broken.io);
            assert_int_equal(tess_alloc_nbytes(), before_nbytes);
            if (st != TESS_OK) {
                assert_int_equal(st, TESS_E_IO);
                assert_non_null(strstr(tess_error_message(), "No space left on device"));
                failure_numel++;
            }
            assert_only_file(f, "codes.h5");
            check_content(f, path, vectors_in(f, path) == 5 ? &old : &new);
            assert_ok(write_file(f, path, &old, 5));
        }
    }
    assert_true(failure_numel >= 10);
}

/* Files that another program made by the documented layout. */
static void test_open_golden_files_hold_their_codes(void **state)
{
    static const struct {
        const char *path;
        int64_t absent;
    } cases[] = {{TESS_TEST_SOURCE_DIR "/tests/golden/vectors/codes_u8.h5", 0},
                 {TESS_TEST_SOURCE_DIR "/tests/golden/vectors/codes_absent.h5", -1}};
    const tess_ctx ctx = ctx_of(*state);
    for (int c = 0; c < TESS_NELEM(cases); c++) {
        const int64_t expected[8] = {0, 11, 37, 48, 74, cases[c].absent, 111, 122};
        tess_codes_file *file = NULL;
        int64_t codes[8];
        assert_ok(tess_codes_file_open(&ctx, cases[c].path, &file));
        const tess_codes_info *info = tess_codes_file_get_info(file);
        assert_int_equal(info->code_numel, 250);
        assert_int_equal(info->code_nbytes, 1);
        assert_int_equal(info->has_absent, cases[c].absent < 0);
        assert_string_equal(info->codebooks, "golden");
        assert_string_equal(info->source, "4x3/0");
        assert_ok(tess_codes_file_read(file, 0, 4, codes));
        assert_memory_equal(codes, expected, sizeof codes);
        assert_ok(tess_codes_file_verify(file));
        tess_codes_file_close(&file);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        format_test(test_write_read_round_trip_at_every_width),
        format_test(test_write_in_other_blocks_gives_the_same_file),
        format_test(test_write_refuses_what_a_file_cannot_hold),
        format_test(test_open_and_verify_find_changed_bytes),
        format_test(test_open_another_version_is_named),
        format_test(test_open_golden_files_hold_their_codes),
        format_test(test_write_with_faults_leaves_a_whole_file),
        format_test(test_read_a_code_beyond_the_codebook_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
