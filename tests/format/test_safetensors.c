#include "format_test.h"

#include "format/safetensors.h"

/* The file of docs: {1, -2} in bf16. */
static const char minimal_header[] = "{\"a\":{\"dtype\":\"BF16\",\"shape\":[2],"
                                     "\"data_offsets\":[0,4]}} ";

static size_t minimal_file(unsigned char bytes[68])
{
    static const unsigned char data[4] = {0x80, 0x3f, 0x00, 0xc0};
    memset(bytes, 0, 8);
    bytes[0] = 0x38;
    assert_int_equal(strlen(minimal_header), 56);
    memcpy(bytes + 8, minimal_header, 56);
    memcpy(bytes + 64, data, 4);
    return 68;
}

static tess_status try_open(const fixture *f, const char *path)
{
    tess_safetensors *file = NULL;
    const tess_status st = tess_safetensors_open(f->io, path, &file);
    if (st == TESS_OK)
        tess_safetensors_close(&file);
    else
        assert_null(file);
    return st;
}

static void test_open_minimal_file_of_68_bytes(void **state)
{
    const fixture *f = *state;
    unsigned char bytes[68], data[4] = {0};
    tess_safetensors *file = NULL;
    tess_dtype dt = TESS_U8;
    tess_sha256 sha, expected;
    const char *path = put_file(f, "m.safetensors", bytes, minimal_file(bytes));
    assert_ok(tess_safetensors_open(f->io, path, &file));
    assert_int_equal(tess_safetensors_numel(file), 1);
    assert_int_equal(tess_safetensors_file_nbytes(file), 68);
    const tess_st_tensor *t = tess_safetensors_find(file, "a");
    assert_ptr_equal(t, tess_safetensors_at(file, 0));
    assert_null(tess_safetensors_at(file, 1));
    assert_null(tess_safetensors_find(file, "b"));
    assert_int_equal(t->dtype, TESS_ST_BF16);
    assert_ok(tess_st_dtype_to_core(t->dtype, &dt));
    assert_int_equal(dt, TESS_BF16);
    assert_int_equal(t->dim_numel, 1);
    assert_int_equal(t->dim[0], 2);
    assert_int_equal(t->numel, 2);
    assert_int_equal(t->nbytes, 4);
    assert_int_equal(t->offset_nbytes, 64);
    assert_ok(tess_safetensors_read(file, t, 0, 4, data));
    assert_memory_equal(data, ((unsigned char[]){0x80, 0x3f, 0x00, 0xc0}), 4);
    assert_ok(tess_safetensors_read(file, t, 3, 1, data));
    assert_int_equal(data[0], 0xc0);
    assert_ok(tess_safetensors_read(file, t, 4, 0, data));
    assert_refused(tess_safetensors_read(file, t, 3, 2, data), TESS_E_RANGE, "'a' has 4 bytes",
                   "2 at 3");
    assert_refused(tess_safetensors_read(file, t, -1, 1, data), TESS_E_RANGE, "'a'");
    assert_null(tess_safetensors_metadata(file, "format"));
    assert_int_equal(tess_safetensors_metadata_numel(file), 0);
    assert_ok(tess_safetensors_sha256(file, &sha));
    assert_ok(tess_sha256_of(bytes, sizeof bytes, &expected));
    assert_true(tess_sha256_is_equal(&sha, &expected));
    tess_safetensors_close(&file);
    assert_null(file);
}

static void test_open_truncated_at_every_byte_is_refused(void **state)
{
    const fixture *f = *state;
    unsigned char bytes[68];
    minimal_file(bytes);
    for (size_t nbytes = 0; nbytes < 68; nbytes++) {
        const char *path = put_file(f, "cut.safetensors", bytes, nbytes);
        assert_refused(try_open(f, path), TESS_E_FORMAT, "cut.safetensors'");
    }
}

/* Whatever one byte becomes: refused, or a file whose table is still consistent. Never a crash. */
static void test_open_any_byte_altered_is_refused_or_consistent(void **state)
{
    const fixture *f = *state;
    unsigned char bytes[68];
    int refused = 0;
    for (int i = 0; i < 64; i++) {
        for (int flip = 1; flip < 256; flip = flip * 2 + 1) {
            tess_safetensors *file = NULL;
            minimal_file(bytes);
            bytes[i] = (unsigned char)(bytes[i] ^ flip);
            tess_error_clear();
            const char *path = put_file(f, "odd.safetensors", bytes, sizeof bytes);
            if (tess_safetensors_open(f->io, path, &file) != TESS_OK) {
                refused++;
                assert_int_equal(tess_error_status(), TESS_E_FORMAT);
                assert_non_null(strstr(tess_error_message(), "odd.safetensors'"));
                continue;
            }
            const tess_st_tensor *t = tess_safetensors_at(file, 0);
            assert_int_equal(t->offset_nbytes + t->nbytes, 68);
            assert_int_equal(t->nbytes, 4);
            tess_safetensors_close(&file);
        }
    }
    /* Legal variants: 8 other names of one byte (not a quote, backslash or slash), F16, I16 or
     * U16 by one byte, the padding space as another space. */
    assert_true(refused >= 64 * 8 - 14);
}

static void test_open_header_length_is_checked(void **state)
{
    const fixture *f = *state;
    static const struct {
        uint64_t length;
        const char *why;
    } bad[] = {{0, "expected 8 to 100000000, found 0"},
               {7, "found 7"},
               {57, "line 1"},
               {61, "but the file has 68"},
               {100000000, "but the file has 68"},
               {100000001, "found 100000001"},
               {UINT64_C(1) << 31, "found 2147483648"},
               {UINT64_C(1) << 32, "found 4294967296"},
               {UINT64_C(1) << 63, "found 9223372036854775808"},
               {UINT64_MAX, "found 18446744073709551615"}};
    for (int i = 0; i < TESS_NELEM(bad); i++) {
        unsigned char bytes[68];
        minimal_file(bytes);
        for (int b = 0; b < 8; b++)
            bytes[b] = (unsigned char)(bad[i].length >> (8 * b) & 0xff);
        assert_refused(try_open(f, put_file(f, "n.safetensors", bytes, 68)), TESS_E_FORMAT,
                       "n.safetensors'", bad[i].why);
    }
}

static void test_open_bad_headers_are_refused(void **state)
{
    const fixture *f = *state;
    static const struct {
        const char *header;
        const char *why;
    } bad[] = {
        {"[1, 2, 3]", "expected '{'"},
        {" {}", "expected '{'"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}} x",
         "end of file expected"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
         "\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,4]}}",
         "duplicate object key"},
        {"{\"a\":{\"dtype\":\"U9\",\"shape\":[4],\"data_offsets\":[0,4]}}", "a: dtype 'U9'"},
        {"{\"a\":{\"dtype\":8,\"shape\":[4],\"data_offsets\":[0,4]}}",
         "a.dtype: expected a string, found an integer"},
        {"{\"a\":{\"shape\":[4],\"data_offsets\":[0,4]}}", "a: 'dtype' is missing"},
        {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,4]}}", "a: 'shape' is missing"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4]}}", "a: 'data_offsets' is missing"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4],\"x\":1}}",
         "found 4 fields"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4]}}", "1 offsets"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,2,4]}}", "3 offsets"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":4,\"data_offsets\":[0,4]}}",
         "a.shape: expected an array, found an integer"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4.0],\"data_offsets\":[0,4]}}",
         "a.shape[0]: expected an integer, found a number with a fraction"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4e0],\"data_offsets\":[0,4]}}", "a.shape[0]"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4,-0],\"data_offsets\":[0,4]}}", "-0 is refused"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[-4],\"data_offsets\":[0,4]}}",
         "a.shape[0]: expected a non-negative integer, found -4"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,4],\"data_offsets\":[0,4]}}",
         "9 dimensions, at most 8"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,4]}}",
         "overflows"},
        {"{\"a\":{\"dtype\":\"F64\",\"shape\":[1152921504606846976],\"data_offsets\":[0,4]}}",
         "overflows"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}",
         "need 8 bytes, found 4"},
        {"{\"a\":{\"dtype\":\"F4\",\"shape\":[7],\"data_offsets\":[0,4]}}",
         "whole number of bytes"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,0]}}", "not inside"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,-4]}}",
         "a.data_offsets[1]: expected a non-negative integer"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[0,5]}}",
         "not inside the 4 bytes"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}", "expected 4 (the end"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[1,4]}}",
         "hole before tensor 'a'"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,4]}}",
         "hole before tensor 'b'"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,4]}}",
         "overlap before tensor 'b'"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}",
         "overlap before tensor"},
        {"{}", "expected 4 (the end"},
        {"{\"\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", "illegal tensor name"},
        {"{\"/a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", "illegal tensor name"},
        {"{\"a..b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}",
         "illegal tensor name"},
        {"{\"a\\\\b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}",
         "illegal tensor name"},
        {"{\"a\":7}", "a: expected an object, found an integer"},
        {"{\"__metadata__\":[],\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}",
         "__metadata__: expected an object"},
        {"{\"__metadata__\":{\"k\":1},\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}"
         "}",
         "__metadata__.k: expected a string, found an integer"},
    };
    for (int i = 0; i < TESS_NELEM(bad); i++)
        assert_refused(try_open(f, put_tensors(f, "bad.safetensors", bad[i].header, 4)),
                       TESS_E_FORMAT, "bad.safetensors'", bad[i].why);
}

static void test_open_name_of_513_bytes_is_refused(void **state)
{
    const fixture *f = *state;
    char header[1024], name[600];
    for (int nbytes = 512; nbytes <= 513; nbytes++) {
        memset(name, 'n', sizeof name);
        name[nbytes] = '\0';
        snprintf(header, sizeof header,
                 "{\"%s\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", name);
        const char *path = put_tensors(f, "long.safetensors", header, 4);
        if (nbytes == 512)
            assert_ok(try_open(f, path));
        else
            assert_refused(try_open(f, path), TESS_E_FORMAT, "illegal tensor name");
    }
}

static void test_open_scalars_empty_tensors_and_all_dtypes_are_legal(void **state)
{
    const fixture *f = *state;
    static const int nbits[TESS_ST_DTYPE_NUMEL] = {
#define X(name, text, bits) [TESS_ST_##name] = bits,
        TESS_ST_DTYPE_LIST(X)
#undef X
    };
    char header[4096] = "{", entry[160];
    tess_safetensors *file = NULL;
    int end = 0;
    for (int i = 0; i < TESS_ST_DTYPE_NUMEL; i++) {
        const int begin = end;
        end += nbits[i];
        snprintf(entry, sizeof entry,
                 "\"t%d\":{\"dtype\":\"%s\",\"shape\":[2,4],\"data_offsets\":[%d,%d]},", i,
                 tess_st_dtype_name((tess_st_dtype)i), begin, end);
        strcat(header, entry);
    }
    snprintf(entry, sizeof entry,
             "\"none\":{\"dtype\":\"F32\",\"shape\":[3,0],\"data_offsets\":[4,4]},"
             "\"one\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[%d,%d]}}",
             end, end + 1);
    /* An empty tensor may begin wherever another one does: here where the second dtype ends. */
    char *place = strstr(entry, "[4,4]");
    memcpy(place, "[8,8]", 5);
    strcat(header, entry);
    assert_ok(tess_safetensors_open(
        f->io, put_tensors(f, "all.safetensors", header, (size_t)end + 1), &file));
    assert_int_equal(tess_safetensors_numel(file), TESS_ST_DTYPE_NUMEL + 2);
    assert_int_equal(tess_safetensors_find(file, "none")->nbytes, 0);
    assert_int_equal(tess_safetensors_find(file, "one")->numel, 1);
    assert_int_equal(tess_safetensors_find(file, "one")->dim_numel, 0);
    for (int64_t i = 1; i < tess_safetensors_numel(file); i++)
        assert_true(
            strcmp(tess_safetensors_at(file, i - 1)->name, tess_safetensors_at(file, i)->name) < 0);
    tess_safetensors_close(&file);
}

static void test_open_missing_and_folder_are_refused(void **state)
{
    const fixture *f = *state;
    assert_refused(try_open(f, at(f, "none.safetensors")), TESS_E_IO, "none.safetensors");
    assert_refused(try_open(f, f->dir), TESS_E_FORMAT, f->dir, "expected a regular file");
}

static void test_dtype_maps_both_ways(void **state)
{
    (void)state;
    int mapped = 0;
    tess_st_dtype st = TESS_ST_F32;
    for (int i = 0; i < TESS_ST_DTYPE_NUMEL; i++) {
        tess_dtype dt = TESS_U8_OPAQUE;
        tess_error_clear();
        if (tess_st_dtype_to_core((tess_st_dtype)i, &dt) != TESS_OK)
            continue;
        mapped++;
        assert_ok(tess_st_dtype_from_core(dt, &st));
        assert_int_equal(st, i);
    }
    assert_int_equal(mapped, 8);
    assert_refused(tess_st_dtype_from_core(TESS_U8_OPAQUE, &st), TESS_E_UNSUPPORTED, "u8_opaque");
}

/* ---- writer ---- */

static const tess_st_tensor table[] = {
    {.name = "b", .dtype = TESS_ST_BF16, .dim_numel = 2, .dim = {2, 3}},
    {.name = "z", .dtype = TESS_ST_F32, .dim_numel = 1, .dim = {2}},
    {.name = "a\xc3\xa9\"", .dtype = TESS_ST_BF16, .dim_numel = 0},
    {.name = "e", .dtype = TESS_ST_F32, .dim_numel = 2, .dim = {0, 5}},
};
static const tess_st_pair pairs[] = {{"z", "1"}, {"format", "pt"}, {"m", "\n"}};

static void write_table(const fixture *f, const char *name, bool is_reversed)
{
    tess_safetensors_writer *w = NULL;
    tess_st_tensor order[4];
    tess_st_pair metadata[3];
    unsigned char data[12];
    for (int i = 0; i < 4; i++)
        order[i] = table[is_reversed ? 3 - i : i];
    for (int i = 0; i < 3; i++)
        metadata[i] = pairs[is_reversed ? 2 - i : i];
    for (int i = 0; i < 12; i++)
        data[i] = (unsigned char)(i + 1);
    const int b = is_reversed ? 3 : 0, z = is_reversed ? 2 : 1, a = is_reversed ? 1 : 2;
    assert_ok(tess_safetensors_writer_create(f->io, at(f, name), order, 4, metadata, 3, &w));
    assert_ok(tess_safetensors_writer_append(w, b, data, 5));
    assert_ok(tess_safetensors_writer_append(w, z, data, 8));
    assert_ok(tess_safetensors_writer_append(w, b, data + 5, 7));
    assert_refused(tess_safetensors_writer_finish(w), TESS_E_STATE, "has 2 bytes, only 0");
    assert_refused(tess_safetensors_writer_append(w, z, data, 1), TESS_E_RANGE,
                   "tensor 'z' has 8 bytes, 8 are written, 1 more");
    assert_refused(tess_safetensors_writer_append(w, 4, data, 1), TESS_E_ARG, "tensor 4 of 4");
    assert_ok(tess_safetensors_writer_append(w, a, data, 2));
    assert_ok(tess_safetensors_writer_finish(w));
    tess_safetensors_writer_destroy(&w);
}

static void test_writer_bytes_do_not_depend_on_order(void **state)
{
    const fixture *f = *state;
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\",\"m\":\"\\n\",\"z\":\"1\"},"
        "\"e\":{\"dtype\":\"F32\",\"shape\":[0,5],\"data_offsets\":[0,0]},"
        "\"z\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
        "\"a\xc3\xa9\\\"\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[8,10]},"
        "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[10,22]}}";
    char *first = NULL, *second = NULL;
    size_t first_nbytes = 0, second_nbytes = 0;
    write_table(f, "one.safetensors", false);
    write_table(f, "two.safetensors", true);
    assert_ok(tess_io_read_all(f->io, at(f, "one.safetensors"), 4096, &first, &first_nbytes));
    assert_ok(tess_io_read_all(f->io, at(f, "two.safetensors"), 4096, &second, &second_nbytes));
    assert_int_equal(first_nbytes, second_nbytes);
    assert_memory_equal(first, second, first_nbytes);
    assert_int_equal(first_nbytes % 8, 22 % 8);
    assert_memory_equal(first + 8, header, strlen(header));
    assert_memory_equal(first + first_nbytes - 22,
                        "\1\2\3\4\5\6\7\10\1\2\1\2\3\4\5\6\7\10\11\12\13\14", 22);
    tess_free(first);
    tess_free(second);
}

static void test_writer_file_reads_back(void **state)
{
    const fixture *f = *state;
    tess_safetensors *file = NULL;
    unsigned char data[12];
    write_table(f, "one.safetensors", false);
    assert_ok(tess_safetensors_open(f->io, at(f, "one.safetensors"), &file));
    assert_int_equal(tess_safetensors_numel(file), 4);
    assert_string_equal(tess_safetensors_metadata(file, "m"), "\n");
    assert_int_equal(tess_safetensors_metadata_numel(file), 3);
    assert_string_equal(tess_safetensors_metadata_at(file, 0).key, "format");
    assert_null(tess_safetensors_metadata_at(file, 3).key);
    assert_ok(tess_safetensors_read(file, tess_safetensors_find(file, "b"), 0, 12, data));
    assert_int_equal(data[11], 12);
    tess_safetensors_close(&file);
}

static void test_writer_unfinished_leaves_nothing(void **state)
{
    const fixture *f = *state;
    tess_safetensors_writer *w = NULL;
    tess_io_kind kind = TESS_IO_FILE;
    int64_t nbytes = 0;
    put_text(f, "kept.safetensors", "old");
    put_text(f, "kept.safetensors.tmp", "stale");
    assert_ok(
        tess_safetensors_writer_create(f->io, at(f, "kept.safetensors"), table, 4, NULL, 0, &w));
    tess_safetensors_writer_destroy(&w);
    assert_ok(tess_io_stat(f->io, at(f, "kept.safetensors.tmp"), &kind, &nbytes));
    assert_int_equal(kind, TESS_IO_MISSING);
    assert_ok(tess_io_stat(f->io, at(f, "kept.safetensors"), &kind, &nbytes));
    assert_int_equal(nbytes, 3);
}

static void test_writer_bad_tables_are_refused(void **state)
{
    const fixture *f = *state;
    tess_safetensors_writer *w = NULL;
    const char *path = at(f, "w.safetensors");
    tess_st_tensor t[2] = {table[0], table[0]};
    tess_st_pair same[2] = {{"k", "1"}, {"k", "2"}};
    assert_refused(tess_safetensors_writer_create(f->io, path, t, 2, NULL, 0, &w), TESS_E_ARG,
                   "tensor 'b' is listed twice");
    assert_refused(tess_safetensors_writer_create(f->io, path, t, 1, same, 2, &w), TESS_E_ARG,
                   "metadata key 'k' is listed twice");
    t[0].name = "__metadata__";
    assert_refused(tess_safetensors_writer_create(f->io, path, t, 1, NULL, 0, &w), TESS_E_ARG,
                   "illegal tensor name '__metadata__'");
    t[0].name = "../x";
    assert_refused(tess_safetensors_writer_create(f->io, path, t, 1, NULL, 0, &w), TESS_E_ARG,
                   "illegal tensor name");
    t[0] = (tess_st_tensor){
        .name = "big", .dtype = TESS_ST_F32, .dim_numel = 2, .dim = {INT64_MAX, 2}};
    assert_refused(tess_safetensors_writer_create(f->io, path, t, 1, NULL, 0, &w), TESS_E_RANGE,
                   "big", "overflows");
    t[0].dim[0] = -1;
    assert_refused(tess_safetensors_writer_create(f->io, path, t, 1, NULL, 0, &w), TESS_E_ARG,
                   "negative extent");
    assert_refused(
        tess_safetensors_writer_create(f->io, at(f, "no/x.safetensors"), table, 4, NULL, 0, &w),
        TESS_E_IO, "no/x.safetensors.tmp");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        format_test(test_open_minimal_file_of_68_bytes),
        format_test(test_open_truncated_at_every_byte_is_refused),
        format_test(test_open_any_byte_altered_is_refused_or_consistent),
        format_test(test_open_header_length_is_checked),
        format_test(test_open_bad_headers_are_refused),
        format_test(test_open_name_of_513_bytes_is_refused),
        format_test(test_open_scalars_empty_tensors_and_all_dtypes_are_legal),
        format_test(test_open_missing_and_folder_are_refused),
        format_test(test_dtype_maps_both_ways),
        format_test(test_writer_bytes_do_not_depend_on_order),
        format_test(test_writer_file_reads_back),
        format_test(test_writer_unfinished_leaves_nothing),
        format_test(test_writer_bad_tables_are_refused),
    };
    return cmocka_run_group_tests_name("format.safetensors", tests, NULL, NULL);
}
