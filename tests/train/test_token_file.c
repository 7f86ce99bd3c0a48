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

#include "core/ctx.h"
#include "core/memory.h"
#include "train/data/token_file_priv.h"

typedef struct fixture {
    tess_ctx ctx;
    char folder[64];
    char path[96], other[96];
} fixture;

static int set_up(void **state)
{
    static fixture f;
    memset(&f, 0, sizeof f);
    snprintf(f.folder, sizeof f.folder, "/tmp/tess-token-file-XXXXXX");
    if (mkdtemp(f.folder) == NULL || tess_io_create(0, &f.ctx.io) != TESS_OK)
        return -1;
    snprintf(f.path, sizeof f.path, "%s/data.h5", f.folder);
    snprintf(f.other, sizeof f.other, "%s/other.h5", f.folder);
    tess_error_clear();
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    unlink(f->path);
    unlink(f->other);
    /* Fails when a writer left a temporary file behind. */
    const int left = rmdir(f->folder);
    tess_io_destroy(&f->ctx.io);
    return left;
}

/* Documents of 1, 2, ... tokens; ids and masks by a rule that the reader can repeat. */
static int32_t id_of(int64_t i, int64_t vocab_numel) { return (int32_t)(i * 7919 % vocab_numel); }
static uint8_t mask_of(int64_t i) { return i % 3 != 0; }

static tess_status write_file(const fixture *f, int64_t vocab_numel, int64_t documents,
                              bool with_mask, tess_token_file_info *info)
{
    tess_token_writer *writer = NULL;
    tess_sha256 tokenizer;
    memset(tokenizer.byte, 0x5a, sizeof tokenizer.byte);
    tess_status st = tess_token_writer_create(&f->ctx, f->path, vocab_numel, &tokenizer, &writer);
    int64_t place = 0;
    for (int64_t d = 0; d < documents && st == TESS_OK; d++) {
        int32_t id[64];
        uint8_t mask[64];
        const int64_t numel = d % 64 + 1;
        for (int64_t i = 0; i < numel; i++, place++) {
            id[i] = id_of(place, vocab_numel);
            mask[i] = mask_of(place);
        }
        st = tess_token_writer_add(writer, id, with_mask ? mask : NULL, numel);
    }
    if (st == TESS_OK)
        st = tess_token_writer_add_source(writer, "a \"quoted\"\nname", 12345, &tokenizer);
    if (st == TESS_OK)
        st = tess_token_writer_finish(writer, info);
    tess_token_writer_destroy(&writer);
    return st;
}

static void check_content(const fixture *f, int64_t vocab_numel, bool with_mask)
{
    tess_token_file *file = NULL;
    assert_int_equal(tess_token_file_open(&f->ctx, f->path, &file), TESS_OK);
    const tess_token_file_info *info = tess_token_file_get_info(file);
    const int64_t numel = info->token_numel;
    void *tokens = NULL, *mask = NULL;
    char *sources = NULL;
    assert_int_equal(info->token_nbytes, vocab_numel <= 65536 ? 2 : 4);
    assert_int_equal(info->has_mask, with_mask);
    assert_int_equal(tess_token_file_verify(file), TESS_OK);
    assert_int_equal(tess_alloc_array(numel, 4, &tokens), TESS_OK);
    assert_int_equal(tess_alloc_array(numel, 1, &mask), TESS_OK);
    assert_int_equal(tess_token_file_read(file, 0, numel, tokens, mask), TESS_OK);
    for (int64_t i = 0; i < numel; i++) {
        assert_int_equal(((int32_t *)tokens)[i], id_of(i, vocab_numel));
        assert_int_equal(((uint8_t *)mask)[i], with_mask ? mask_of(i) : 1);
    }
    for (int64_t first = 0; first < numel; first += 101) {
        const int64_t part = TESS_MIN(numel - first, 17);
        assert_int_equal(tess_token_file_read(file, first, part, tokens, mask), TESS_OK);
        for (int64_t i = 0; i < part; i++)
            assert_int_equal(((int32_t *)tokens)[i], id_of(first + i, vocab_numel));
    }
    const int64_t *offset = tess_token_file_doc_offsets(file);
    for (int64_t d = 0; d < info->document_numel; d++)
        assert_int_equal(offset[d + 1] - offset[d], d % 64 + 1);
    assert_int_equal(tess_token_file_read_sources(file, &sources), TESS_OK);
    assert_non_null(strstr(sources, "{\"name\": \"a \\u0022quoted\\u0022\\u000aname\", "
                                    "\"nbytes\": 12345, \"sha256\": \"5a5a"));
    assert_int_equal(tess_token_file_read(file, numel - 1, 2, tokens, mask), TESS_E_RANGE);
    tess_error_clear();
    tess_free(sources);
    tess_free(tokens);
    tess_free(mask);
    tess_token_file_close(&file);
}

static void test_write_read_round_trip(void **state)
{
    const fixture *f = *state;
    const int64_t vocab[] = {300, 65536, 65537, INT32_MAX};
    for (int i = 0; i < TESS_NELEM(vocab); i++) {
        for (int with_mask = 0; with_mask < 2; with_mask++) {
            tess_token_file_info info;
            assert_int_equal(write_file(f, vocab[i], 200, with_mask != 0, &info), TESS_OK);
            check_content(f, vocab[i], with_mask != 0);
        }
    }
}

static void test_write_many_blocks_round_trip(void **state)
{
    /* 2 * 650,000 bytes of ids: more than one digest block, with a rest. */
    const fixture *f = *state;
    tess_token_file_info info;
    assert_int_equal(write_file(f, 1000, 20000, true, &info), TESS_OK);
    assert_true(info.tokens.nbytes > TESS_TOKEN_BLOCK_NBYTES);
    check_content(f, 1000, true);
}

static void test_write_is_reproducible(void **state)
{
    const fixture *f = *state;
    char *first = NULL, *second = NULL;
    size_t first_nbytes = 0, second_nbytes = 0;
    assert_int_equal(write_file(f, 300, 50, true, NULL), TESS_OK);
    assert_int_equal(tess_io_read_all(f->ctx.io, f->path, 1 << 20, &first, &first_nbytes), TESS_OK);
    assert_int_equal(write_file(f, 300, 50, true, NULL), TESS_OK);
    assert_int_equal(tess_io_read_all(f->ctx.io, f->path, 1 << 20, &second, &second_nbytes),
                     TESS_OK);
    assert_int_equal(first_nbytes, second_nbytes);
    assert_memory_equal(first, second, first_nbytes);
    /* HDF5 superblock behind the user block: other readers find it there. */
    assert_memory_equal(first + 512, "\x89HDF\r\n\x1a\n", 8);
    tess_free(first);
    tess_free(second);
}

static void test_write_refuses_bad_documents(void **state)
{
    const fixture *f = *state;
    const tess_sha256 tokenizer = {{0}};
    const int32_t bad[2] = {5, 300}, negative[1] = {-1};
    tess_token_writer *writer = NULL;
    assert_int_equal(tess_token_writer_create(&f->ctx, f->path, 0, &tokenizer, &writer),
                     TESS_E_ARG);
    tess_error_clear();
    assert_int_equal(tess_token_writer_create(&f->ctx, f->path, 300, &tokenizer, &writer), TESS_OK);
    assert_int_equal(tess_token_writer_add(writer, bad, NULL, 2), TESS_E_RANGE);
    assert_non_null(strstr(tess_error_message(),
                           "id 300 at place 1 of document 0, the vocabulary has 300 ids"));
    tess_error_clear();
    assert_int_equal(tess_token_writer_add(writer, negative, NULL, 1), TESS_E_RANGE);
    tess_error_clear();
    assert_int_equal(tess_token_writer_add(writer, bad, NULL, 0), TESS_E_ARG);
    tess_error_clear();
    assert_int_equal(tess_token_writer_finish(writer, NULL), TESS_E_ARG);
    assert_non_null(strstr(tess_error_message(), "no document was added"));
    tess_error_clear();
    tess_token_writer_destroy(&writer);
}

/* The file with bytes changed by `change`, written to f->other; opened and verified. */
typedef void (*changer)(uint8_t *bytes, size_t *nbytes, const int64_t *arg);

static tess_status open_changed(const fixture *f, changer change, const int64_t *arg)
{
    char *bytes = NULL;
    size_t nbytes = 0;
    tess_token_file *file = NULL;
    tess_error_clear();
    assert_int_equal(tess_io_read_all(f->ctx.io, f->path, 1 << 20, &bytes, &nbytes), TESS_OK);
    change((uint8_t *)bytes, &nbytes, arg);
    /* Thousands of variants: without the fsync of tess_io_write_all. */
    FILE *out = fopen(f->other, "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(bytes, 1, nbytes, out), nbytes);
    assert_int_equal(fclose(out), 0);
    tess_free(bytes);
    tess_status st = tess_token_file_open(&f->ctx, f->other, &file);
    if (st == TESS_OK)
        st = tess_token_file_verify(file);
    tess_token_file_close(&file);
    return st;
}

static void truncate_to(uint8_t *bytes, size_t *nbytes, const int64_t *arg)
{
    (void)bytes;
    *nbytes = (size_t)arg[0];
}

static void test_open_truncated_is_refused(void **state)
{
    const fixture *f = *state;
    tess_token_file_info info;
    assert_int_equal(write_file(f, 300, 200, true, &info), TESS_OK);
    for (int64_t i = 0; i < 16; i++) {
        const int64_t cut = i == 15 ? info.file_nbytes - 1 : info.file_nbytes * i / 16;
        assert_int_equal(open_changed(f, truncate_to, &cut), TESS_E_FORMAT);
        assert_non_null(strstr(tess_error_message(),
                               cut < 512 ? "is not a token file: " : "the file is truncated"));
        assert_non_null(strstr(tess_error_message(), f->other));
    }
}

static void extend_by_one(uint8_t *bytes, size_t *nbytes, const int64_t *arg)
{
    (void)bytes, (void)arg;
    *nbytes += 1; /* the NUL that read_all puts behind */
}

static void flip(uint8_t *bytes, size_t *nbytes, const int64_t *arg)
{
    (void)nbytes;
    bytes[arg[0]] ^= 0x10;
}

static void test_open_any_changed_byte_is_refused(void **state)
{
    const fixture *f = *state;
    tess_token_file_info info;
    assert_int_equal(write_file(f, 300, 20, true, &info), TESS_OK);
    assert_int_equal(open_changed(f, extend_by_one, NULL), TESS_E_FORMAT);
    for (int64_t at = 0; at < info.file_nbytes; at++) {
        const tess_status st = open_changed(f, flip, &at);
        if (st != TESS_E_FORMAT)
            print_error("byte %lld: status %d\n", (long long)at, st);
        assert_int_equal(st, TESS_E_FORMAT);
    }
}

/* Set an integer of the user block and make its digest fit again: arg = place, bytes, value. */
static void set_field(uint8_t *bytes, size_t *nbytes, const int64_t *arg)
{
    (void)nbytes;
    for (int64_t i = 0; i < arg[1]; i++)
        bytes[arg[0] + i] = (uint8_t)((uint64_t)arg[2] >> (8 * i));
    const tess_xxh128 digest = tess_xxh128_of(bytes, TESS_TOKEN_AT_HEADER_DIGEST);
    memcpy(bytes + TESS_TOKEN_AT_HEADER_DIGEST, digest.byte, sizeof digest.byte);
}

static void test_open_altered_field_is_refused_by_name(void **state)
{
    const fixture *f = *state;
    tess_token_file_info info;
    assert_int_equal(write_file(f, 300, 20, true, &info), TESS_OK);
    const struct {
        int64_t arg[3];
        const char *message;
    } cases[] = {
        {{TESS_TOKEN_AT_MAGIC, 4, 0}, "is not a token file: expected 'TESSERA-TOKENS 1'"},
        {{TESS_TOKEN_AT_VERSION, 4, 2}, "format version 2, this program reads version 1"},
        {{TESS_TOKEN_AT_HEADER_NBYTES, 4, 1024}, "field header_nbytes is 1024, expected 512"},
        {{TESS_TOKEN_AT_FILE_NBYTES, 8, 99}, "expected 99 (field file_nbytes)"},
        {{TESS_TOKEN_AT_VOCAB, 8, 0}, "field vocab_numel is 0"},
        {{TESS_TOKEN_AT_VOCAB, 8, -1}, "field vocab_numel is -1"},
        {{TESS_TOKEN_AT_VOCAB, 8, 70000}, "field token_nbytes is 2, expected 4"},
        {{TESS_TOKEN_AT_VOCAB, 8, 3}, "is 119, the vocabulary has 3 ids"},
        {{TESS_TOKEN_AT_TOKENS, 8, 0}, "field token_numel is 0"},
        {{TESS_TOKEN_AT_TOKENS, 8, INT64_MAX}, "field token_numel is 9223372036854775807"},
        {{TESS_TOKEN_AT_TOKENS, 8, 211}, "section tokens has 420 bytes, expected 422"},
        {{TESS_TOKEN_AT_DOCUMENTS, 8, 0}, "field document_numel is 0"},
        {{TESS_TOKEN_AT_DOCUMENTS, 8, INT64_MIN}, "field document_numel is -9223"},
        {{TESS_TOKEN_AT_DOCUMENTS, 8, 21}, "section doc_offsets has 168 bytes, expected 176"},
        {{TESS_TOKEN_AT_LOSS_TOKENS, 8, 1}, "140 masks are 1, field loss_token_numel says 1"},
        {{TESS_TOKEN_AT_LOSS_TOKENS, 8, 211}, "field loss_token_numel is 211 of 210"},
        {{TESS_TOKEN_AT_TOKEN_NBYTES, 4, 4}, "field token_nbytes is 4, expected 2"},
        {{TESS_TOKEN_AT_FLAGS, 4, 0}, "field loss_token_numel is 140 of 210 tokens without"},
        {{TESS_TOKEN_AT_FLAGS, 4, 3}, "field flags is 3, expected 0 or 1"},
        {{TESS_TOKEN_AT_SECTIONS, 8, 0}, "overlaps what ends at 512"},
        {{TESS_TOKEN_AT_SECTIONS, 8, INT64_MAX}, "leaves the file"},
        {{TESS_TOKEN_AT_SECTIONS + 16, 8, 0}, "section tokens does not match its digest"},
        {{TESS_TOKEN_AT_SECTIONS + 40, 8, 8}, "section doc_offsets has 8 bytes, expected 168"},
        {{TESS_TOKEN_AT_SECTIONS + 48, 8, 0}, "section doc_offsets does not match its digest"},
        {{TESS_TOKEN_AT_SECTIONS + 72, 8, 209}, "section loss_mask has 209 bytes, expected 210"},
        {{TESS_TOKEN_AT_SECTIONS + 80, 8, 0}, "section loss_mask does not match its digest"},
        {{TESS_TOKEN_AT_SECTIONS + 104, 8, -5}, "section sources has -5 bytes"},
        {{TESS_TOKEN_AT_SECTIONS + 112, 8, 0}, "section sources does not match its digest"},
        {{TESS_TOKEN_AT_METADATA_DIGEST, 8, 0}, "HDF5 metadata does not match its digest"},
    };
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        const tess_status st = open_changed(f, set_field, cases[i].arg);
        if (st != TESS_E_FORMAT || strstr(tess_error_message(), cases[i].message) == NULL)
            print_error("case %d: expected '%s', found '%s'\n", i, cases[i].message,
                        tess_error_message());
        assert_int_equal(st, TESS_E_FORMAT);
        assert_non_null(strstr(tess_error_message(), cases[i].message));
    }
}

static void test_open_absent_section_is_all_zero(void **state)
{
    const fixture *f = *state;
    const int64_t offset[] = {TESS_TOKEN_AT_SECTIONS + 64, 8, 600},
                  digest[] = {TESS_TOKEN_AT_SECTIONS + 80, 8, 1};
    assert_int_equal(write_file(f, 300, 20, false, NULL), TESS_OK);
    assert_int_equal(open_changed(f, set_field, offset), TESS_E_FORMAT);
    assert_non_null(strstr(tess_error_message(), "section 2 is absent, but has an offset"));
    assert_int_equal(open_changed(f, set_field, digest), TESS_E_FORMAT);
    assert_non_null(strstr(tess_error_message(), "section 2 is absent, but has an offset"));
}

/* Each call of each operation fails once: the run reports it, leaks nothing, leaves no temporary
 * file, and what stands under the final name is either nothing or whole. */
static void test_write_with_faults_leaves_nothing_half_done(void **state)
{
    fixture *f = *state;
    static const char *const operations[] = {"open", "pread", "pwrite", "fsync", "close", "rename"};
    int failures = 0;
    for (int i = 0; i < TESS_NELEM(operations); i++) {
        tess_status st = TESS_E_IO;
        for (int n = 1; st != TESS_OK; n++) {
            char fault[64];
            fixture broken = *f;
            assert_true(n < 100);
            snprintf(fault, sizeof fault, "0:%s:%d:enospc", operations[i], n);
            setenv("TESSERA_FAULT", fault, 1);
            const size_t before = tess_alloc_nbytes();
            assert_int_equal(tess_io_create(0, &broken.ctx.io), TESS_OK);
            tess_error_clear();
            st = write_file(&broken, 300, 20, true, NULL);
            tess_io_destroy(&broken.ctx.io);
            unsetenv("TESSERA_FAULT");
            assert_int_equal(tess_alloc_nbytes(), before);
            if (st != TESS_OK) {
                assert_int_equal(st, TESS_E_IO);
                assert_non_null(strstr(tess_error_message(), "No space left on device"));
                failures++;
            }
            if (access(f->path, F_OK) == 0)
                check_content(f, 300, true);
            unlink(f->path);
        }
    }
    assert_true(failures >= 15);
    assert_int_equal(rmdir(f->folder), 0);
    assert_int_equal(mkdir(f->folder, 0700), 0);
}

/* Change a section and its digests, as a hostile writer would: arg = section, place, byte. */
static void forge_section(uint8_t *bytes, size_t *nbytes, const int64_t *arg)
{
    tess_token_file_info info;
    tess_xxh128 metadata;
    tess_token_section *section[TESS_TOKEN_SECTION_NUMEL];
    tess_token_chain chain = {{0}};
    assert_int_equal(tess_token_header_decode("x", bytes, (int64_t)*nbytes, &info, &metadata),
                     TESS_OK);
    tess_token_sections(&info, section);
    tess_token_section *changed = section[arg[0]];
    bytes[changed->offset_nbytes + arg[1]] = (uint8_t)arg[2];
    tess_token_chain_add(&chain, bytes + changed->offset_nbytes, (size_t)changed->nbytes);
    changed->digest = tess_token_chain_digest(&chain);
    tess_token_header_encode(&info, &metadata, bytes);
}

static void test_open_forged_sections_are_refused(void **state)
{
    const fixture *f = *state;
    assert_int_equal(write_file(f, 300, 20, true, NULL), TESS_OK);
    const struct {
        int64_t arg[3];
        const char *message;
    } cases[] = {
        {{0, 1, 0x80}, "tokens[0] is 32768, the vocabulary has 300 ids"},
        {{1, 0, 1}, "doc_offsets[0] is 1, expected 0"},
        {{1, 8, 0}, "doc_offsets[1] is 0, expected more than 0"},
        {{1, 15, 0x80}, "doc_offsets[1] is -9223372036854775807"},
        {{1, 160, 211}, "doc_offsets ends at 211, expected 210 tokens"},
        {{2, 7, 2}, "loss_mask[7] is 2, expected 0 or 1"},
    };
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        assert_int_equal(open_changed(f, forge_section, cases[i].arg), TESS_E_FORMAT);
        if (strstr(tess_error_message(), cases[i].message) == NULL)
            print_error("case %d: found '%s'\n", i, tess_error_message());
        assert_non_null(strstr(tess_error_message(), cases[i].message));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_write_read_round_trip, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_write_many_blocks_round_trip, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_write_is_reproducible, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_write_refuses_bad_documents, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_open_truncated_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_open_any_changed_byte_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_open_altered_field_is_refused_by_name, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_open_absent_section_is_all_zero, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_write_with_faults_leaves_nothing_half_done, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_open_forged_sections_are_refused, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
