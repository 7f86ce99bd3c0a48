/* Token for token against the reference data of tests/golden/make_tokenizers.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/memory.h"
#include "format/tokenizer_priv.h"

#define GOLDEN TESS_TEST_SOURCE_DIR "/tests/golden/tokenizers/"

enum { BLOCK = 96, TEXT_NBYTES = 8192, SHOWN = 5 };

static tess_io *io;

static int open_io(void **state)
{
    (void)state;
    return tess_io_create(0, &io) == TESS_OK ? 0 : -1;
}

static int close_io(void **state)
{
    (void)state;
    tess_io_destroy(&io);
    return 0;
}

static FILE *open_golden(const char *name, const char *suffix)
{
    char path[512];
    snprintf(path, sizeof path, GOLDEN "%s%s", name, suffix);
    FILE *f = fopen(path, "r");
    if (f == NULL)
        fail_msg("%s is missing", path);
    return f;
}

static tess_tokenizer *open_kind(const char *kind)
{
    char path[512];
    tess_tokenizer *t = NULL;
    snprintf(path, sizeof path, GOLDEN "%s.json", kind);
    tess_error_clear();
    if (tess_tokenizer_open(io, path, &t) != TESS_OK)
        fail_msg("%s", tess_error_message());
    return t;
}

static uint32_t fnv(const void *data, size_t nbytes)
{
    uint32_t h = 0x811c9dc5u;
    for (size_t i = 0; i < nbytes; i++)
        h = (h ^ ((const uint8_t *)data)[i]) * 0x01000193u;
    return h;
}

/* One escaped line into its bytes; false at the end of the file. */
static bool read_text(FILE *f, char *text, size_t *nbytes)
{
    static char line[TEXT_NBYTES];
    if (fgets(line, sizeof line, f) == NULL)
        return false;
    *nbytes = 0;
    for (const char *p = line; *p != '\n'; p++) {
        unsigned byte = (unsigned char)*p;
        if (p[0] == '\\' && sscanf(p, "\\x%2x", &byte) == 1)
            p += 3;
        text[(*nbytes)++] = (char)byte;
    }
    return true;
}

static uint32_t hash_encoded(tess_encoder *e, const char *text, size_t nbytes, unsigned flags,
                             tess_ids *ids)
{
    ids->numel = 0;
    if (tess_encode(e, text, nbytes, flags, ids) != TESS_OK)
        fail_msg("%s", tess_error_message());
    return fnv(ids->id, (size_t)ids->numel * sizeof(int32_t));
}

static void check_decoded(const tess_tokenizer *t, const tess_ids *ids, bool skip, const char *want)
{
    char *text = NULL, found[16];
    size_t nbytes = 0;
    if (strcmp(want, "-") == 0)
        return;
    assert_int_equal(tess_decode(t, ids->id, ids->numel, skip, &text, &nbytes), TESS_OK);
    snprintf(found, sizeof found, "%08x", fnv(text, nbytes));
    if (strcmp(found, want) != 0)
        print_error("decoded to '%s'\n", text);
    tess_free(text);
    assert_string_equal(found, want);
}

static void report(const char *kind, const char *text, size_t nbytes, const tess_ids *ids)
{
    print_error("%s: '%.*s' gave", kind, (int)nbytes, text);
    for (int64_t i = 0; i < ids->numel && i < 40; i++)
        print_error(" %d", ids->id[i]);
    print_error("\n");
}

static int check_strings(const char *kind, const tess_tokenizer *t, tess_encoder *e, FILE *want)
{
    static char text[TEXT_NBYTES];
    FILE *strings = open_golden("strings.txt", "");
    tess_ids ids = {0}, plain = {0};
    size_t nbytes = 0;
    int numel = 0, wrong = 0;
    for (; read_text(strings, text, &nbytes); numel++) {
        uint32_t expected[2];
        char decoded[2][16];
        assert_int_equal(
            fscanf(want, "%x %x %15s %15s", &expected[0], &expected[1], decoded[0], decoded[1]), 4);
        const uint32_t found = hash_encoded(e, text, nbytes, TESS_ENCODE_ADD_SPECIAL, &ids);
        const uint32_t found_plain =
            hash_encoded(e, text, nbytes, TESS_ENCODE_NO_SPECIAL_TEXT, &plain);
        const bool is_wrong = found != expected[0] || found_plain != expected[1];
        if (is_wrong && wrong++ < SHOWN)
            report(kind, text, nbytes, found != expected[0] ? &ids : &plain);
        if (is_wrong)
            continue;
        check_decoded(t, &ids, false, decoded[0]);
        check_decoded(t, &ids, true, decoded[1]);
    }
    fclose(strings);
    tess_ids_fini(&ids);
    tess_ids_fini(&plain);
    assert_int_equal(wrong, 0);
    return numel;
}

static size_t put_utf8(char *at, uint32_t c)
{
    if (c < 0x80) {
        at[0] = (char)c;
        return 1;
    }
    const int tails = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    at[0] = (char)((tails == 1 ? 0xc0u : tails == 2 ? 0xe0u : 0xf0u) | c >> (6 * tails));
    for (int i = 1; i <= tails; i++)
        at[i] = (char)(0x80 | (c >> (6 * (tails - i)) & 0x3f));
    return (size_t)tails + 1;
}

/* The two texts of a block of code points, as code_point_texts() of the script makes them. */
static size_t block_text(const uint32_t *c, int numel, bool with_separators, char *text)
{
    static const char *const separators[] = {"", "a", " ", "1", "'s", "\n", "  ", "e", "!", " z"};
    size_t nbytes = 0;
    for (int i = 0; i < numel; i++) {
        nbytes += put_utf8(text + nbytes, c[i]);
        if (!with_separators)
            continue;
        if (i % 7 == 0)
            nbytes += put_utf8(text + nbytes, c[i]);
        const char *separator = separators[i % 10];
        memcpy(text + nbytes, separator, strlen(separator));
        nbytes += strlen(separator);
    }
    return nbytes;
}

static int check_block(const char *kind, tess_encoder *e, FILE *want, const uint32_t *c, int numel)
{
    static char text[TEXT_NBYTES];
    tess_ids ids = {0};
    int wrong = 0;
    for (int with_separators = 0; with_separators < 2; with_separators++) {
        uint32_t expected = 0;
        assert_int_equal(fscanf(want, "%x", &expected), 1);
        const size_t nbytes = block_text(c, numel, with_separators != 0, text);
        if (hash_encoded(e, text, nbytes, TESS_ENCODE_PLAIN, &ids) != expected) {
            print_error("%s: block from U+%04X, %s\n", kind, c[0],
                        with_separators ? "separated" : "in a row");
            wrong++;
        }
    }
    tess_ids_fini(&ids);
    return wrong;
}

static char reference_class[0x110000];
static bool is_old[0x110000], has_other_class[0x110000], has_other_nfc[0x110000];

static void load_unicode(void)
{
    static const char *const files[] = {"classes.txt", "assigned.txt", "differences.txt"};
    memset(reference_class, 'O', sizeof reference_class);
    for (int i = 0; i < TESS_NELEM(files); i++) {
        uint32_t first = 0, last = 0;
        char label = 0;
        FILE *f = open_golden(files[i], "");
        while (fscanf(f, " %c %x %x", &label, &first, &last) == 3) {
            for (uint32_t c = first; c <= last; c++) {
                if (i == 0)
                    reference_class[c] = label;
                else
                    (i == 1 ? is_old : label == 'C' ? has_other_class : has_other_nfc)[c] = true;
            }
        }
        fclose(f);
    }
}

/* Every code point assigned in Unicode 13, in blocks, but for the listed marks where the tokenizer
 * has NFC; the number of code points seen. */
static int64_t check_code_points(const char *kind, bool has_nfc, tess_encoder *e, FILE *want)
{
    uint32_t block[BLOCK];
    int filled = 0, wrong = 0;
    int64_t numel = 0;
    load_unicode();
    for (uint32_t c = 0; c < 0x110000; c++) {
        if (!is_old[c] || (has_nfc && has_other_nfc[c]))
            continue;
        numel++;
        block[filled++] = c;
        if (filled < BLOCK)
            continue;
        wrong += check_block(kind, e, want, block, filled);
        filled = 0;
    }
    if (filled > 0)
        wrong += check_block(kind, e, want, block, filled);
    assert_int_equal(wrong, 0);
    return numel;
}

static void check_kind(const char *kind, const char *description)
{
    tess_tokenizer *t = open_kind(kind);
    tess_encoder *e = NULL;
    FILE *want = open_golden(kind, ".ids");
    uint32_t rest = 0;
    assert_string_equal(tess_tokenizer_kind(t), description);
    assert_int_equal(tess_encoder_create(t, &e), TESS_OK);
    assert_true(check_strings(kind, t, e, want) >= 2000);
    /* Unicode 13: 143,859 characters, 65 control codes, 137,468 for private use; without NUL. The
     * reference's NFC does not know 58 marks of them. */
    const bool has_nfc = strcmp(kind, "qwen2") == 0;
    assert_int_equal(check_code_points(kind, has_nfc, e, want),
                     143859 + 65 + 137468 - 1 - (has_nfc ? 58 : 0));
    assert_int_equal(fscanf(want, "%x", &rest), EOF);
    fclose(want);
    tess_encoder_destroy(&e);
    tess_tokenizer_destroy(&t);
}

static void test_encode_llama3_equals_reference(void **state)
{
    (void)state;
    check_kind("llama3", "byte-level BPE, llama3 pattern");
}

static void test_encode_qwen2_nfc_equals_reference(void **state)
{
    (void)state;
    check_kind("qwen2", "byte-level BPE, qwen2 pattern, NFC");
}

static void test_encode_tekken_equals_reference(void **state)
{
    (void)state;
    check_kind("tekken", "byte-level BPE, tekken pattern");
}

static void test_encode_gpt2_equals_reference(void **state)
{
    (void)state;
    check_kind("gpt2", "byte-level BPE, gpt2 pattern");
}

static void test_encode_digits_equals_reference(void **state)
{
    (void)state;
    check_kind("digits", "byte-level BPE, gpt2 pattern");
}

static void test_encode_sentencepiece_legacy_equals_reference(void **state)
{
    (void)state;
    check_kind("sp-legacy", "SentencePiece-style BPE, byte fallback");
}

static void test_encode_metaspace_first_equals_reference(void **state)
{
    (void)state;
    check_kind("sp-first", "SentencePiece-style BPE, byte fallback");
}

static void test_encode_metaspace_split_unknown_equals_reference(void **state)
{
    (void)state;
    check_kind("sp-split", "SentencePiece-style BPE");
}

/* The first texts once more with their ids in the open: a failure here can be read. */
static void test_encode_full_ids_equal_reference(void **state)
{
    (void)state;
    static const char *const kinds[] = {"llama3", "qwen2",     "gpt2",     "digits",
                                        "tekken", "sp-legacy", "sp-first", "sp-split"};
    static char text[TEXT_NBYTES], line[TEXT_NBYTES], found[TEXT_NBYTES];
    for (int k = 0; k < TESS_NELEM(kinds); k++) {
        tess_tokenizer *t = open_kind(kinds[k]);
        tess_encoder *e = NULL;
        tess_ids ids = {0};
        size_t nbytes = 0;
        FILE *want = open_golden(kinds[k], ".full"), *strings = open_golden("strings.txt", "");
        assert_int_equal(tess_encoder_create(t, &e), TESS_OK);
        while (fgets(line, sizeof line, want) != NULL && read_text(strings, text, &nbytes)) {
            (void)hash_encoded(e, text, nbytes, TESS_ENCODE_ADD_SPECIAL, &ids);
            int used = 0;
            for (int64_t i = 0; i < ids.numel; i++)
                used += snprintf(found + used, sizeof found - (size_t)used, "%s%d",
                                 i > 0 ? " " : "", ids.id[i]);
            snprintf(found + used, sizeof found - (size_t)used, "\n");
            assert_string_equal(found, line);
        }
        fclose(want);
        fclose(strings);
        tess_ids_fini(&ids);
        tess_encoder_destroy(&e);
        tess_tokenizer_destroy(&t);
    }
}

/* The lists are of tables of Unicode 15.0, which has U+31350 and not yet U+2EBF0. Whatever tables
 * utf8proc has, old characters are as they are there. */
static bool has_listed_tables(void) { return tess_is_letter(0x31350) && !tess_is_letter(0x2ebf0); }

/* Character classes over all of Unicode: what differs from the reference is exactly the list, and
 * nothing of it is as old as Unicode 13. */
static void test_classes_differ_exactly_as_listed(void **state)
{
    (void)state;
    load_unicode();
    for (uint32_t c = 2; c < 0x110000; c++) {
        const char ours = tess_is_letter(c)   ? 'L'
                          : tess_is_number(c) ? 'N'
                          : tess_is_space(c)  ? 'S'
                                              : 'O';
        if (!is_old[c] && !has_listed_tables())
            continue;
        if ((ours != reference_class[c]) != has_other_class[c] || (is_old[c] && has_other_class[c]))
            fail_msg("U+%04X: ours %c, reference %c, %s", c, ours, reference_class[c],
                     has_other_class[c] ? "listed" : "not listed");
    }
}

/* The NFC of the reference has the tables of Unicode 9 and leaves newer marks where they are; ours
 * reorders exactly the listed ones. What is old is compared in test_encode_qwen2. */
static void test_nfc_differs_exactly_as_listed(void **state)
{
    (void)state;
    tess_tokenizer *t = open_kind("qwen2");
    tess_text work = {0}, out = {0};
    load_unicode();
    for (uint32_t c = 2; c < 0x110000; c++) {
        bool differs = false;
        if ((is_old[c] && !has_other_nfc[c]) || (c >= 0xd800 && c < 0xe000) ||
            (!is_old[c] && !has_listed_tables()))
            continue;
        for (int form = 0; form < 3; form++) {
            char text[8];
            size_t nbytes = form == 1 ? put_utf8(text, 0x301) : 0;
            nbytes += put_utf8(text + nbytes, c);
            nbytes += form == 2 ? put_utf8(text + nbytes, 0x334) : 0;
            assert_int_equal(tess_normalize(t, text, nbytes, &work, &out), TESS_OK);
            differs =
                differs || out.numel != (int64_t)nbytes || memcmp(out.byte, text, nbytes) != 0;
        }
        if (differs != has_other_nfc[c])
            fail_msg("U+%04X: NFC %s", c, differs ? "differs, not listed" : "is equal, but listed");
    }
    tess_text_fini(&work);
    tess_text_fini(&out);
    tess_tokenizer_destroy(&t);
}

static void test_encode_invalid_utf8_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t nbytes;
        const char *message;
    } cases[] = {
        {"ab\x80", 3, "text is not UTF-8 at byte 2 (0x80)"},
        {"\xc3", 1, "at byte 0 (0xc3)"},
        {"x\xc0\xaf", 3, "at byte 1 (0xc0)"},
        {"\xe0\x80\x80", 3, "at byte 0 (0xe0)"},
        {"\xed\xa0\x80", 3, "at byte 0 (0xed)"},
        {"\xf0\x80\x80\x80", 4, "at byte 0 (0xf0)"},
        {"\xf4\x90\x80\x80", 4, "at byte 0 (0xf4)"},
        {"\xf5\x80\x80\x80", 4, "at byte 0 (0xf5)"},
        {"ok \xe2\x82", 5, "at byte 3 (0xe2)"},
        {"\xff", 1, "at byte 0 (0xff)"},
    };
    tess_tokenizer *t = open_kind("llama3");
    tess_encoder *e = NULL;
    tess_ids ids = {0};
    const int32_t kept = 7;
    assert_int_equal(tess_encoder_create(t, &e), TESS_OK);
    assert_int_equal(tess_ids_append(&ids, &kept, 1), TESS_OK);
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        tess_error_clear();
        assert_int_equal(
            tess_encode(e, cases[i].text, cases[i].nbytes, TESS_ENCODE_ADD_SPECIAL, &ids),
            TESS_E_FORMAT);
        assert_non_null(strstr(tess_error_message(), cases[i].message));
        assert_int_equal(ids.numel, 1);
    }
    tess_error_clear();
    tess_ids_fini(&ids);
    tess_encoder_destroy(&e);
    tess_tokenizer_destroy(&t);
}

static void test_encode_nul_is_a_character(void **state)
{
    (void)state;
    tess_tokenizer *t = open_kind("llama3");
    tess_encoder *e = NULL;
    tess_ids ids = {0};
    char *text = NULL;
    size_t nbytes = 0;
    assert_int_equal(tess_encoder_create(t, &e), TESS_OK);
    assert_int_equal(tess_encode(e, "a\0b", 3, TESS_ENCODE_PLAIN, &ids), TESS_OK);
    assert_int_equal(tess_decode(t, ids.id, ids.numel, false, &text, &nbytes), TESS_OK);
    assert_int_equal(nbytes, 3);
    assert_memory_equal(text, "a\0b", 4);
    tess_free(text);
    tess_ids_fini(&ids);
    tess_encoder_destroy(&e);
    tess_tokenizer_destroy(&t);
}

/* What tokenizers' ByteLevel decoder gives, which is Rust's from_utf8_lossy. */
static void test_decode_of_broken_characters_is_utf8(void **state)
{
    static const struct {
        const char *bytes, *expected;
    } rows[] = {{"a\xf0\x9f\x98\x80z", "a\xf0\x9f\x98\x80z"},
                {"a\xf0\x9f\x98", "a\xef\xbf\xbd"},
                {"a\xf0\x9f", "a\xef\xbf\xbd"},
                {"a\xf0", "a\xef\xbf\xbd"},
                {"\x98\x80z", "\xef\xbf\xbd\xef\xbf\xbdz"},
                {"\xe2\x82z", "\xef\xbf\xbdz"},
                {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
                {"\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd"},
                {"\xf4\x90\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}};
    (void)state;
    tess_tokenizer *t = open_kind("llama3");
    for (int i = 0; i < TESS_NELEM(rows); i++) {
        tess_ids ids = {0};
        char *text = NULL;
        size_t nbytes = 0;
        for (const char *p = rows[i].bytes; *p != '\0'; p++)
            assert_int_equal(tess_ids_append(&ids, &t->byte_id[(uint8_t)*p], 1), TESS_OK);
        assert_int_equal(tess_decode(t, ids.id, ids.numel, false, &text, &nbytes), TESS_OK);
        assert_string_equal(text, rows[i].expected);
        assert_int_equal(nbytes, strlen(rows[i].expected));
        tess_free(text);
        tess_ids_fini(&ids);
    }
    tess_tokenizer_destroy(&t);
}

static void test_encode_long_piece_takes_the_heap(void **state)
{
    /* One piece of 300,000 characters: quadratic rescans would need minutes. */
    (void)state;
    enum { NUMEL = 300000 };
    tess_tokenizer *t = open_kind("sp-legacy");
    tess_encoder *e = NULL;
    tess_ids ids = {0};
    void *room = NULL;
    char *text = NULL;
    size_t nbytes = 0;
    assert_int_equal(tess_alloc(NUMEL, &room), TESS_OK);
    for (int i = 0; i < NUMEL; i++)
        ((char *)room)[i] = "the letter of small a "[i % 22];
    assert_int_equal(tess_encoder_create(t, &e), TESS_OK);
    assert_int_equal(tess_encode(e, room, NUMEL, TESS_ENCODE_PLAIN, &ids), TESS_OK);
    assert_int_equal(tess_decode(t, ids.id, ids.numel, false, &text, &nbytes), TESS_OK);
    assert_int_equal(nbytes, NUMEL);
    assert_memory_equal(text, room, NUMEL);
    tess_free(text);
    tess_free(room);
    tess_ids_fini(&ids);
    tess_encoder_destroy(&e);
    tess_tokenizer_destroy(&t);
}

/* A small valid file; each case replaces the first text by the second. */
static const char small_file[] =
    "{\"version\":\"1.0\",\"added_tokens\":[{\"id\":4,\"content\":\"<s>\",\"single_word\":false,"
    "\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true}],"
    "\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"ByteLevel\","
    "\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true},"
    "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":"
    "\"<s>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[],"
    "\"special_tokens\":{\"<s>\":{\"id\":\"<s>\",\"ids\":[4],\"tokens\":[\"<s>\"]}}},"
    "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"dropout\":null,"
    "\"unk_token\":null,\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,"
    "\"fuse_unk\":false,\"byte_fallback\":false,\"ignore_merges\":false,"
    "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"aba\":3},\"merges\":[\"a b\",[\"ab\",\"a\"]]}}";

static tess_status parse_changed(const char *from, const char *to, tess_tokenizer **t)
{
    static char text[4096];
    const char *hit = strstr(small_file, from);
    assert_non_null(hit);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(hit - small_file), small_file, to,
             hit + strlen(from));
    tess_error_clear();
    return tess_tokenizer_parse("small.json", text, strlen(text), t);
}

static void test_parse_small_file_merges_in_order(void **state)
{
    (void)state;
    tess_tokenizer *t = NULL;
    tess_encoder *e = NULL;
    tess_ids ids = {0};
    const int32_t expected[] = {4, 3, 2, 1};
    assert_int_equal(parse_changed("", "", &t), TESS_OK);
    assert_int_equal(tess_encoder_create(t, &e), TESS_OK);
    assert_int_equal(tess_encode(e, "abaabb", 6, TESS_ENCODE_ADD_SPECIAL, &ids), TESS_OK);
    assert_int_equal(ids.numel, 4);
    assert_memory_equal(ids.id, expected, sizeof expected);
    assert_int_equal(tess_tokenizer_vocab_numel(t), 5);
    assert_int_equal(tess_tokenizer_find(t, "<s>"), 4);
    assert_int_equal(tess_tokenizer_find(t, "zz"), -1);
    assert_true(tess_tokenizer_is_special(t, 4));
    assert_false(tess_tokenizer_is_special(t, 3));
    assert_int_equal(tess_encode(e, "abc", 3, TESS_ENCODE_PLAIN, &ids), TESS_E_FORMAT);
    assert_non_null(strstr(tess_error_message(), "byte 0x63 is not in the vocabulary"));
    tess_error_clear();
    tess_ids_fini(&ids);
    tess_encoder_destroy(&e);
    tess_tokenizer_destroy(&t);
}

/* Ids of tokenizers 0.23: a match that the white space of the one before has used up is none. */
static void test_encode_added_white_space_counts_once(void **state)
{
    static const struct {
        const char *text;
        int32_t id[4];
        int numel;
    } rows[] = {{"a  b", {0, 5, 1}, 3},
                {"a    b", {0, 5, 1}, 3},
                {"a      b", {0, 5, 1}, 3},
                {"a  ab    ", {0, 5, 2, 5}, 4}};
    static const char *const normalized[] = {"false", "true"};
    (void)state;
    for (int k = 0; k < TESS_NELEM(normalized); k++) {
        tess_tokenizer *t = NULL;
        tess_encoder *e = NULL;
        char more[256];
        snprintf(
            more, sizeof more,
            ",{\"id\":5,\"content\":\"  \",\"single_word\":false,"
            "\"lstrip\":true,\"rstrip\":true,\"normalized\":%s,\"special\":false}],\"normalizer\"",
            normalized[k]);
        assert_int_equal(parse_changed("],\"normalizer\"", more, &t), TESS_OK);
        assert_int_equal(tess_encoder_create(t, &e), TESS_OK);
        for (int i = 0; i < TESS_NELEM(rows); i++) {
            tess_ids ids = {0};
            assert_int_equal(
                tess_encode(e, rows[i].text, strlen(rows[i].text), TESS_ENCODE_PLAIN, &ids),
                TESS_OK);
            assert_int_equal(ids.numel, rows[i].numel);
            assert_memory_equal(ids.id, rows[i].id, (size_t)rows[i].numel * sizeof ids.id[0]);
            tess_ids_fini(&ids);
        }
        tess_encoder_destroy(&e);
        tess_tokenizer_destroy(&t);
    }
}

static void test_parse_refuses_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *message;
        tess_status st;
    } cases[] = {
        {"\"NFC\"", "\"NFKC\"", "normalizer 'NFKC' is not supported", TESS_E_UNSUPPORTED},
        {"{\"type\":\"NFC\"}",
         "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"x\"},\"content\":\"\"}",
         "Replace with a regular expression", TESS_E_UNSUPPORTED},
        {"{\"type\":\"ByteLevel\",\"add", "{\"type\":\"Whitespace\",\"add",
         "pre-tokenizer 'Whitespace' is not supported", TESS_E_UNSUPPORTED},
        {"{\"type\":\"ByteLevel\",\"add",
         "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\d+\"},\"behavior\":\"Isolated\",\"add",
         "split pattern '\\d+' is not one of those compiled in", TESS_E_UNSUPPORTED},
        {"\"TemplateProcessing\"", "\"RobertaProcessing\"",
         "post-processor 'RobertaProcessing' is not supported", TESS_E_UNSUPPORTED},
        {"\"decoder\":{\"type\":\"ByteLevel\"}", "\"decoder\":{\"type\":\"WordPiece\"}",
         "decoder 'WordPiece' is not supported", TESS_E_UNSUPPORTED},
        {"\"type\":\"BPE\"", "\"type\":\"Unigram\"", "model type 'Unigram' is not supported",
         TESS_E_UNSUPPORTED},
        {"\"dropout\":null", "\"dropout\":0.1", "model.dropout is 0.1", TESS_E_UNSUPPORTED},
        {"\"continuing_subword_prefix\":null", "\"continuing_subword_prefix\":\"##\"",
         "model.continuing_subword_prefix is '##'", TESS_E_UNSUPPORTED},
        {"\"unk_token\":null", "\"unk_token\":\"zz\"", "unknown token 'zz' is not in the vocab",
         TESS_E_FORMAT},
        {"\"b\":1", "\"b\":0", "id 0 belongs to 'a' and 'b'", TESS_E_FORMAT},
        {"\"b\":1", "\"b\":-1", "token 'b' has id -1, expected 0 .. 1033", TESS_E_FORMAT},
        {"\"b\":1", "\"b\":1034", "token 'b' has id 1034, expected 0 .. 1033", TESS_E_FORMAT},
        {"\"b\":1", "\"b\":1.5", "model.vocab.b", TESS_E_FORMAT},
        {"\"b\":1", "\"a\":1", "duplicate", TESS_E_FORMAT},
        {"\"a b\"", "\"a c\"", "merge 0 uses 'c', which is not in the vocabulary", TESS_E_FORMAT},
        {"\"a b\"", "\"b a\"", "merge 0 makes 'ba', which is not in the vocabulary", TESS_E_FORMAT},
        {"\"a b\"", "\"ab\"", "merge 0 is 'ab', expected two tokens", TESS_E_FORMAT},
        {"\"a b\"", "\"a b c\"", "merge 0 is 'a b c', expected two tokens", TESS_E_FORMAT},
        {"[\"ab\",\"a\"]", "[\"ab\"]", "merge 1 has 1 parts, expected 2", TESS_E_FORMAT},
        {"[\"ab\",\"a\"]", "7", "model.merges[1]", TESS_E_FORMAT},
        {"\"ids\":[4]", "\"ids\":[9]", "post-processor adds id 9 for '<s>'", TESS_E_FORMAT},
        {"\"id\":4", "\"id\":3", "id 3 belongs to 'aba' and to added token '<s>'", TESS_E_FORMAT},
        {"\"id\":4", "\"id\":4194304", "has id 4194304", TESS_E_FORMAT},
        {"\"id\":4", "\"id\":6", "'<s>' has id 6, but tokenizers numbers it 4", TESS_E_FORMAT},
        {"\"content\":\"<s>\"", "\"content\":\"\"", "added token 4 is empty", TESS_E_FORMAT},
        {"\"content\":\"<s>\"", "\"content\":\"b\"", "has id 4, the vocabulary says 1",
         TESS_E_FORMAT},
        {"\"vocab\":{", "\"vocab\":[], \"x\":{", "model.vocab", TESS_E_FORMAT},
        {"\"merges\":", "\"merge\":", "merges", TESS_E_FORMAT},
    };
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        tess_tokenizer *t = NULL;
        const tess_status st = parse_changed(cases[i].from, cases[i].to, &t);
        if (st != cases[i].st || strstr(tess_error_message(), cases[i].message) == NULL)
            print_error("case %d: expected '%s', found %s '%s'\n", i, cases[i].message,
                        tess_status_name(st), tess_error_message());
        assert_int_equal(st, cases[i].st);
        assert_non_null(strstr(tess_error_message(), cases[i].message));
        assert_non_null(strstr(tess_error_message(), "small.json"));
        assert_null(t);
    }
    tess_error_clear();
}

static void test_parse_truncated_is_refused(void **state)
{
    (void)state;
    const size_t nbytes = strlen(small_file);
    for (size_t i = 0; i < 16; i++) {
        tess_tokenizer *t = NULL;
        tess_error_clear();
        assert_int_equal(tess_tokenizer_parse("small.json", small_file, nbytes * i / 16, &t),
                         TESS_E_FORMAT);
        assert_null(t);
    }
    tess_error_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_encode_full_ids_equal_reference),
        cmocka_unit_test(test_encode_llama3_equals_reference),
        cmocka_unit_test(test_encode_qwen2_nfc_equals_reference),
        cmocka_unit_test(test_encode_tekken_equals_reference),
        cmocka_unit_test(test_encode_gpt2_equals_reference),
        cmocka_unit_test(test_encode_digits_equals_reference),
        cmocka_unit_test(test_encode_sentencepiece_legacy_equals_reference),
        cmocka_unit_test(test_encode_metaspace_first_equals_reference),
        cmocka_unit_test(test_encode_metaspace_split_unknown_equals_reference),
        cmocka_unit_test(test_classes_differ_exactly_as_listed),
        cmocka_unit_test(test_nfc_differs_exactly_as_listed),
        cmocka_unit_test(test_encode_invalid_utf8_is_refused),
        cmocka_unit_test(test_encode_nul_is_a_character),
        cmocka_unit_test(test_decode_of_broken_characters_is_utf8),
        cmocka_unit_test(test_encode_long_piece_takes_the_heap),
        cmocka_unit_test(test_parse_small_file_merges_in_order),
        cmocka_unit_test(test_encode_added_white_space_counts_once),
        cmocka_unit_test(test_parse_refuses_by_name),
        cmocka_unit_test(test_parse_truncated_is_refused),
    };
    return cmocka_run_group_tests(tests, open_io, close_io);
}
