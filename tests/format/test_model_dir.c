#include "format_test.h"

#include "format/model_dir.h"

#define GOLDEN TESS_TEST_SOURCE_DIR "/tests/golden/format/"

typedef struct log_lines {
    char text[4096];
} log_lines;

static void keep_line(void *arg, tess_log_level level, const char *line)
{
    log_lines *lines = arg;
    const size_t used = strlen(lines->text);
    snprintf(lines->text + used, sizeof lines->text - used, "%d %s\n", (int)level, line);
}

static tess_ctx make_ctx(const fixture *f, log_lines *lines)
{
    lines->text[0] = '\0';
    const tess_ctx ctx = {f->io, {.sink = keep_line, .arg = lines, .least = TESS_LOG_INFO}};
    return ctx;
}

static tess_status try_open(const fixture *f, const char *path)
{
    log_lines lines;
    const tess_ctx ctx = make_ctx(f, &lines);
    tess_model_dir *dir = NULL;
    const tess_status st = tess_model_dir_open(&ctx, path, &dir);
    tess_model_dir_close(&dir);
    return st;
}

static void put_one(const fixture *f, const char *file, const char *tensor)
{
    char header[256];
    snprintf(header, sizeof header,
             "{\"%s\":{\"dtype\":\"U8\",\"shape\":[2,2],\"data_offsets\":[0,4]}}", tensor);
    put_tensors(f, file, header, 4);
}

static void put_index(const fixture *f, const char *map)
{
    char text[1024];
    snprintf(text, sizeof text, "{\"metadata\":{\"total_size\":8},\"weight_map\":%s}", map);
    put_text(f, "model.safetensors.index.json", text);
}

/* "model NAME DTYPE 2x3 SHA" per line, made from the files by Python. */
static void test_golden_sharded_directory_reads_every_tensor(void **state)
{
    const fixture *f = *state;
    log_lines lines;
    const tess_ctx ctx = make_ctx(f, &lines);
    tess_model_dir *dir = NULL;
    char *text = NULL, *next = NULL;
    size_t nbytes = 0;
    int64_t seen = 0;
    assert_ok(tess_model_dir_open(&ctx, GOLDEN "model", &dir));
    assert_int_equal(tess_model_dir_file_numel(dir), 3);
    assert_string_equal(tess_model_dir_file_name(dir, 0), "model-00001-of-00003.safetensors");
    assert_int_equal(tess_model_dir_extra_numel(dir), 0);
    assert_string_equal(lines.text, "");
    assert_ok(tess_io_read_all(f->io, GOLDEN "tensors.txt", 1 << 20, &text, &nbytes));
    for (char *line = strtok_r(text, "\n", &next); line != NULL;
         line = strtok_r(NULL, "\n", &next)) {
        char kind[16], name[128], dtype[16], shape[64], hex[80], found[64] = "";
        char sha_hex[TESS_SHA256_HEX_NBYTES];
        unsigned char data[4096];
        tess_sha256 sha;
        assert_int_equal(sscanf(line, "%15s %127s %15s %63s %79s", kind, name, dtype, shape, hex),
                         5);
        if (strcmp(kind, "model") != 0)
            continue;
        const tess_model_tensor *t = tess_model_dir_find(dir, name);
        assert_non_null(t);
        seen++;
        assert_string_equal(tess_st_dtype_name(t->st->dtype), dtype);
        for (int i = 0; i < t->st->dim_numel; i++) {
            const size_t used = strlen(found);
            snprintf(found + used, sizeof found - used, "%s%d", i > 0 ? "x" : "",
                     (int)t->st->dim[i]);
        }
        assert_string_equal(found, shape);
        assert_true(t->st->nbytes <= (int64_t)sizeof data);
        /* In two pieces, to cover ranges. */
        const int64_t half = t->st->nbytes / 2;
        assert_ok(tess_model_dir_read(dir, t, 0, (size_t)half, data));
        assert_ok(tess_model_dir_read(dir, t, half, (size_t)(t->st->nbytes - half), data + half));
        assert_ok(tess_sha256_of(data, (size_t)t->st->nbytes, &sha));
        tess_hex(sha.byte, sizeof sha.byte, sha_hex);
        assert_string_equal(sha_hex, hex);
    }
    assert_int_equal(seen, tess_model_dir_tensor_numel(dir));
    tess_free(text);
    tess_model_dir_close(&dir);
}

static void test_claim_checks_shapes_and_marks(void **state)
{
    const fixture *f = *state;
    log_lines lines;
    const tess_ctx ctx = make_ctx(f, &lines);
    tess_model_dir *dir = NULL;
    const tess_model_tensor *t = NULL;
    put_tensors(f, "model.safetensors",
                "{\"b\":{\"dtype\":\"U8\",\"shape\":[2,2],\"data_offsets\":[0,4]},"
                "\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[4,7]},"
                "\"m.rotary_emb.inv_freq\":{\"dtype\":\"U8\",\"shape\":[1],"
                "\"data_offsets\":[7,8]}}",
                8);
    assert_ok(tess_model_dir_open(&ctx, f->dir, &dir));
    assert_int_equal(tess_model_dir_tensor_numel(dir), 3);
    assert_string_equal(tess_model_dir_at(dir, 0)->name, "a");
    assert_null(tess_model_dir_at(dir, 3));
    assert_refused(tess_model_dir_claim(dir, "c", (int64_t[]){2, 2}, 2, &t), TESS_E_FORMAT, f->dir,
                   "tensor 'c' [2, 2] is missing");
    assert_refused(tess_model_dir_claim(dir, "b", (int64_t[]){4, 1}, 2, &t), TESS_E_FORMAT,
                   "model.safetensors'", "tensor 'b'", "expected shape [4, 1]", "found [2, 2]");
    assert_refused(tess_model_dir_claim(dir, "b", (int64_t[]){4}, 1, &t), TESS_E_FORMAT,
                   "expected shape [4]");
    assert_string_equal(tess_model_dir_unclaimed(dir, 0)->name, "a");
    assert_string_equal(tess_model_dir_unclaimed(dir, 1)->name, "b");
    assert_null(tess_model_dir_unclaimed(dir, 2));
    assert_ok(tess_model_dir_claim(dir, "b", (int64_t[]){2, 2}, 2, &t));
    assert_string_equal(t->name, "b");
    assert_string_equal(tess_model_dir_unclaimed(dir, 0)->name, "a");
    assert_null(tess_model_dir_unclaimed(dir, 1));
    tess_model_dir_close(&dir);
}

static void test_missing_tensors_are_told_with_what_lies_there(void **state)
{
    static const struct {
        const char *there, *wanted, *why;
    } rows[] = {{"m.q.qweight", "m.q.weight", "is missing, found 'm.q.qweight' instead"},
                {"m.q.weight_packed", "m.q.weight", "found 'm.q.weight_packed' instead"},
                {"m.q.bias", "m.q.weight", "tensor 'm.q.weight' [2] is missing"},
                {"m.q.weight", "m.q.bias", "tensor 'm.q.bias' [2] is missing"},
                {"text.m.q.weight", "m.q.weight", "found 'text.m.q.weight' instead"},
                {"q.weight", "m.q.weight", "found 'q.weight' instead"},
                {"m.qq.weight", "m.q.weight", "tensor 'm.q.weight' [2] is missing"},
                {"xm.q.weight", "m.q.weight", "tensor 'm.q.weight' [2] is missing"},
                {"weight", "m.q.weight", "tensor 'm.q.weight' [2] is missing"}};
    const fixture *f = *state;
    log_lines lines;
    const tess_ctx ctx = make_ctx(f, &lines);
    for (int i = 0; i < TESS_NELEM(rows); i++) {
        tess_model_dir *dir = NULL;
        const tess_model_tensor *t = NULL;
        put_one(f, "model.safetensors", rows[i].there);
        assert_ok(tess_model_dir_open(&ctx, f->dir, &dir));
        assert_refused(tess_model_dir_claim(dir, rows[i].wanted, (int64_t[]){2}, 1, &t),
                       TESS_E_FORMAT, f->dir, rows[i].why);
        tess_model_dir_close(&dir);
    }
}

/* put_tensors() repeats its bytes every 256: b is a again, d is not. */
static void test_same_compares_bytes_shape_and_dtype(void **state)
{
    static const struct {
        const char *name;
        const char *refusal; /* NULL: the same */
    } rows[] = {{"a", NULL},
                {"b", NULL},
                {"c", "'c' (U8 [16, 16]) differs from 'a' (U8 [256]), and so"},
                {"d", "'d' differs from 'a', and so"},
                {"e", "'e' (I8 [256]) differs from 'a' (U8 [256]), and so"}};
    const fixture *f = *state;
    log_lines lines;
    const tess_ctx ctx = make_ctx(f, &lines);
    tess_model_dir *dir = NULL;
    put_tensors(f, "model.safetensors",
                "{\"a\":{\"dtype\":\"U8\",\"shape\":[256],\"data_offsets\":[0,256]},"
                "\"b\":{\"dtype\":\"U8\",\"shape\":[256],\"data_offsets\":[256,512]},"
                "\"c\":{\"dtype\":\"U8\",\"shape\":[16,16],\"data_offsets\":[512,768]},"
                "\"e\":{\"dtype\":\"I8\",\"shape\":[256],\"data_offsets\":[768,1024]},"
                "\"f\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[1024,1028]},"
                "\"d\":{\"dtype\":\"U8\",\"shape\":[256],\"data_offsets\":[1028,1284]}}",
                1284);
    assert_ok(tess_model_dir_open(&ctx, f->dir, &dir));
    const tess_model_tensor *a = tess_model_dir_find(dir, "a");
    for (int i = 0; i < TESS_NELEM(rows); i++) {
        const tess_model_tensor *t = tess_model_dir_find(dir, rows[i].name);
        if (rows[i].refusal == NULL)
            assert_ok(tess_model_dir_same(dir, a, t, "and so"));
        else
            assert_refused(tess_model_dir_same(dir, t, a, "and so"), TESS_E_FORMAT, f->dir,
                           rows[i].refusal);
    }
    tess_model_dir_close(&dir);
}

static void test_file_sha256_is_of_the_whole_file(void **state)
{
    const fixture *f = *state;
    log_lines lines;
    const tess_ctx ctx = make_ctx(f, &lines);
    tess_model_dir *dir = NULL;
    tess_sha256 found, expected;
    char *bytes = NULL;
    size_t nbytes = 0;
    put_one(f, "model.safetensors", "t");
    assert_ok(tess_io_read_all(f->io, at(f, "model.safetensors"), 4096, &bytes, &nbytes));
    assert_ok(tess_sha256_of(bytes, nbytes, &expected));
    assert_ok(tess_model_dir_open(&ctx, f->dir, &dir));
    for (int i = 0; i < 2; i++) { /* the second answer is the kept one */
        assert_ok(tess_model_dir_file_sha256(dir, 0, &found));
        assert_true(tess_sha256_is_equal(&found, &expected));
    }
    assert_int_equal(tess_model_dir_file_nbytes(dir, 0), nbytes);
    assert_refused(tess_model_dir_file_sha256(dir, 1, &found), TESS_E_ARG, "file 1 of 1");
    tess_free(bytes);
    tess_model_dir_close(&dir);
}

static void test_open_warns_of_total_size_and_unlisted_tensors(void **state)
{
    const fixture *f = *state;
    log_lines lines;
    const tess_ctx ctx = make_ctx(f, &lines);
    tess_model_dir *dir = NULL;
    put_tensors(f, "x.safetensors",
                "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
                "\"extra\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]}}",
                8);
    put_index(f, "{\"a\":\"x.safetensors\"}");
    assert_ok(tess_model_dir_open(&ctx, f->dir, &dir));
    assert_non_null(strstr(lines.text, "index_total_size"));
    assert_non_null(strstr(lines.text, "stated=8 found=4"));
    assert_non_null(strstr(lines.text, "index_unlisted_tensors"));
    assert_int_equal(tess_model_dir_extra_numel(dir), 1);
    assert_string_equal(tess_model_dir_extra_name(dir, 0), "extra");
    assert_null(tess_model_dir_extra_name(dir, 1));
    assert_null(tess_model_dir_find(dir, "extra"));
    tess_model_dir_close(&dir);
}

static void test_open_prefers_the_single_file_and_says_so(void **state)
{
    const fixture *f = *state;
    log_lines lines;
    const tess_ctx ctx = make_ctx(f, &lines);
    tess_model_dir *dir = NULL;
    put_one(f, "model.safetensors", "single");
    put_index(f, "{\"a\":\"x.safetensors\"}");
    assert_ok(tess_model_dir_open(&ctx, f->dir, &dir));
    assert_non_null(tess_model_dir_find(dir, "single"));
    assert_non_null(strstr(lines.text, "index_ignored"));
    tess_model_dir_close(&dir);
}

static void test_open_bad_directories_are_refused(void **state)
{
    const fixture *f = *state;
    assert_refused(try_open(f, at(f, "none")), TESS_E_FORMAT, "none'", "found nothing");
    assert_refused(try_open(f, f->dir), TESS_E_FORMAT, f->dir, "found neither");
    put_text(f, "pytorch_model.bin", "x");
    assert_refused(try_open(f, f->dir), TESS_E_UNSUPPORTED, "found 'pytorch_model.bin'",
                   "only safetensors");
    assert_refused(try_open(f, at(f, "pytorch_model.bin")), TESS_E_FORMAT,
                   "expected a model directory, or a .gguf or .safetensors file",
                   "found another file");
    put_text(f, "model.safetensors", "short");
    assert_refused(try_open(f, f->dir), TESS_E_FORMAT, "model.safetensors'", "5 bytes");
}

static void test_open_bad_indexes_are_refused(void **state)
{
    const fixture *f = *state;
    static const struct {
        const char *map;
        const char *why;
    } bad[] = {
        {"{\"a\":\"../x.safetensors\"}", "found '../x.safetensors'"},
        {"{\"a\":\"/etc/x.safetensors\"}", "weight_map.a: expected the plain name"},
        {"{\"a\":\"d\\\\x.safetensors\"}", "weight_map.a: expected the plain name"},
        {"{\"a\":\"..safetensors\"}", "weight_map.a: expected the plain name"},
        {"{\"a\":\".safetensors\"}", "weight_map.a: expected the plain name"},
        {"{\"a\":\"x.bin\"}", "found 'x.bin'"},
        {"{\"a\":\"\"}", "weight_map.a: expected the plain name"},
        {"{\"a\":3}", "weight_map.a: expected a string, found an integer"},
        {"{}", "weight_map of the index is empty"},
        {"[]", "weight_map: expected an object, found an array"},
        {"{\"b\":\"x.safetensors\"}", "weight_map.b: the tensor is not in 'x.safetensors'"},
        {"{\"a\":\"x.safetensors\",\"b\":\"x.safetensors\",\"c\":\"y.safetensors\"}",
         "weight_map.b: the tensor is not in 'x.safetensors' but in 'y.safetensors'"},
        {"{\"a\":\"x.safetensors\",\"b\":\"z.safetensors\"}",
         "tensor 'a' is in two files, 'x.safetensors' and 'z.safetensors'"},
        {"{\"a\":\"x.safetensors\",\"a\":\"x.safetensors\"}", "duplicate object key"},
    };
    put_one(f, "x.safetensors", "a");
    put_tensors(f, "y.safetensors",
                "{\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
                "\"c\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]}}",
                8);
    put_tensors(f, "z.safetensors",
                "{\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
                "\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]}}",
                8);
    for (int i = 0; i < TESS_NELEM(bad); i++) {
        put_index(f, bad[i].map);
        assert_refused(try_open(f, f->dir), TESS_E_FORMAT, f->dir, bad[i].why);
    }
    put_index(f, "{\"a\":\"gone.safetensors\"}");
    assert_refused(try_open(f, f->dir), TESS_E_IO, "gone.safetensors");
    put_text(f, "model.safetensors.index.json", "{\"metadata\":{}}");
    assert_refused(try_open(f, f->dir), TESS_E_FORMAT, "index.json': top level",
                   "'weight_map' is missing");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        format_test(test_golden_sharded_directory_reads_every_tensor),
        format_test(test_claim_checks_shapes_and_marks),
        format_test(test_missing_tensors_are_told_with_what_lies_there),
        format_test(test_same_compares_bytes_shape_and_dtype),
        format_test(test_file_sha256_is_of_the_whole_file),
        format_test(test_open_warns_of_total_size_and_unlisted_tensors),
        format_test(test_open_prefers_the_single_file_and_says_so),
        format_test(test_open_bad_directories_are_refused),
        format_test(test_open_bad_indexes_are_refused),
    };
    return cmocka_run_group_tests_name("format.model_dir", tests, NULL, NULL);
}
