#include "format_test.h"

#include <math.h>

#include "format/json.h"

static tess_status parse(const char *text, tess_json **out)
{
    return tess_json_parse("some.json", text, strlen(text), out);
}

static void test_parse_values_are_kept_in_file_order(void **state)
{
    (void)state;
    tess_json *root = NULL;
    const char *text = NULL;
    int64_t number = 0;
    double real = 0.0;
    bool flag = false;
    assert_ok(parse("{\"z\": 1, \"a\": [true, null, -2.5, \"x\\u00e9\\ud83d\\ude00\"], \"b\": {}}",
                    &root));
    assert_int_equal(tess_json_numel(root), 3);
    assert_string_equal(tess_json_key(tess_json_at(root, 0)), "z");
    assert_string_equal(tess_json_key(tess_json_at(root, 2)), "b");
    assert_null(tess_json_at(root, 3));
    const tess_json *list = tess_json_find(root, "a");
    assert_int_equal(tess_json_numel(list), 4);
    assert_ok(tess_json_as_bool(tess_json_at(list, 0), &flag));
    assert_true(flag);
    assert_int_equal(tess_json_type_of(tess_json_at(list, 1)), TESS_JSON_NULL);
    assert_ok(tess_json_as_f64(tess_json_at(list, 2), &real));
    assert_true(real == -2.5);
    assert_ok(tess_json_as_string(tess_json_at(list, 3), &text));
    assert_string_equal(text, "x\xc3\xa9\xf0\x9f\x98\x80");
    assert_ok(tess_json_get_i64(root, "z", &number));
    assert_int_equal(number, 1);
    assert_ok(tess_json_get_f64(root, "z", &real));
    assert_true(real == 1.0);
    assert_null(tess_json_find(root, "zz"));
    tess_json_destroy(&root);
    assert_null(root);
}

static void test_parse_bad_text_is_refused_with_its_place(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const char *place;
        const char *why;
    } bad[] = {
        {"", "line 1", "unexpected token near end of file"},
        {"{\"a\": 1, \"a\": 2}", "line 1, column 12", "duplicate object key"},
        {"{\"a\":\n 1} x", "line 2", "end of file expected"},
        {"[1,]", "line 1, column 4", "unexpected token"},
        {"[1", "line 1", "end of file"},
        {"{\"a\" 1}", "line 1", "':' expected"},
        {"[NaN]", "line 1", "invalid token"},
        {"[1e999]", "line 1", "real number overflow"},
        {"[9223372036854775808]", "line 1", "too big integer"},
        {"[-9223372036854775809]", "line 1", "too big negative integer"},
        {"[1,\n -0]", "line 2, column 2", "-0 is refused"},
        {"[\"\\ud800\"]", "line 1", "invalid Unicode"},
        {"[\"\xc0\x80\"]", "line 1", "unable to decode byte"},
        {"[\"\xff\"]", "line 1", "unable to decode byte"},
        {"[\"\\u0000\"]", "line 1", "\\u0000 in a text, expected none"},
        {"[\"a\nb\"]", "line 1", "unexpected newline"},
        {"[01]", "line 1", "invalid token"},
        {"[+1]", "line 1", "invalid token"},
        {"{1: 2}", "line 1", "string or '}' expected"},
        {"// c\n1", "line 1", "invalid token"},
    };
    for (int i = 0; i < TESS_NELEM(bad); i++) {
        tess_json *root = NULL;
        assert_refused(parse(bad[i].text, &root), TESS_E_FORMAT, "'some.json'", bad[i].place,
                       bad[i].why);
        assert_null(root);
    }
}

static void test_parse_depth_32_is_the_last_legal(void **state)
{
    (void)state;
    char text[128];
    tess_json *root = NULL;
    for (int depth = 32; depth <= 33; depth++) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        text[2 * depth] = '\0';
        if (depth == 32)
            assert_ok(parse(text, &root));
        else
            assert_refused(parse(text, &root), TESS_E_FORMAT, "column 33", "deeper than 32");
        tess_json_destroy(&root);
    }
    assert_ok(parse("\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\\\"[\"", &root));
    tess_json_destroy(&root);
}

static void test_parse_exponent_is_no_minus_zero(void **state)
{
    (void)state;
    tess_json *root = NULL;
    double real = 0.0;
    assert_ok(parse("[1e-0, -0.0, -0e1, \"-0\"]", &root));
    assert_ok(tess_json_as_f64(tess_json_at(root, 1), &real));
    assert_true(real == 0.0 && signbit(real));
    tess_json_destroy(&root);
}

static void test_parse_too_long_is_refused(void **state)
{
    (void)state;
    tess_json *root = NULL;
    assert_refused(tess_json_parse("big.json", "[]", (size_t)TESS_JSON_LIMIT_NBYTES + 1, &root),
                   TESS_E_FORMAT, "'big.json'", "67108865 bytes", "at most 67108864");
}

static void test_getters_name_path_expected_and_found(void **state)
{
    (void)state;
    tess_json *root = NULL;
    const tess_json *object = NULL, *list = NULL;
    const char *text = "kept";
    int64_t number = 77;
    double real = 7.0;
    bool flag = true;
    assert_ok(parse("{\"rope\": {\"factor\": \"8\", \"low\": null}, \"list\": [1, 2.0, [\"x\"]]}",
                    &root));
    assert_ok(tess_json_get_object(root, "rope", &object));
    assert_refused(tess_json_get_f64(object, "factor", &real), TESS_E_FORMAT,
                   "'some.json': rope.factor: expected a number, found a string");
    assert_true(real == 7.0);
    assert_refused(tess_json_get_i64(object, "high", &number), TESS_E_FORMAT,
                   "'some.json': rope: 'high' is missing, expected an integer");
    assert_refused(tess_json_get_string(object, "low", &text), TESS_E_FORMAT,
                   "rope.low: expected a string, found null");
    char copy[2] = "";
    assert_ok(tess_json_get_text(object, "factor", sizeof copy, copy));
    assert_string_equal(copy, "8");
    assert_refused(tess_json_get_text(object, "factor", 1, copy), TESS_E_FORMAT,
                   "factor has 1 bytes, at most 0 are read");
    assert_ok(tess_json_opt_i64(object, "low", 5, &number));
    assert_int_equal(number, 5);
    assert_ok(tess_json_opt_i64(object, "absent", 6, &number));
    assert_int_equal(number, 6);
    assert_refused(tess_json_opt_bool(object, "factor", true, &flag), TESS_E_FORMAT,
                   "rope.factor: expected a boolean, found a string");
    assert_ok(tess_json_get_array(root, "list", &list));
    assert_refused(tess_json_as_i64(tess_json_at(list, 1), &number), TESS_E_FORMAT,
                   "list[1]: expected an integer, found a number with a fraction");
    assert_refused(tess_json_as_i64(tess_json_at(tess_json_at(list, 2), 0), &number), TESS_E_FORMAT,
                   "'some.json': list[2][0]: expected an integer, found a string");
    assert_refused(tess_json_get_array(root, "rope", &list), TESS_E_FORMAT,
                   "rope: expected an array, found an object");
    assert_refused(tess_json_opt_object(root, "list", &object), TESS_E_FORMAT,
                   "list: expected an object, found an array");
    assert_refused(tess_json_get_i64(tess_json_find(root, "list"), "x", &number), TESS_E_FORMAT,
                   "list: expected an object, found an array");
    assert_ok(tess_json_opt_string(object, "none", "absent", &text));
    assert_string_equal(text, "absent");
    tess_json_destroy(&root);
    assert_ok(parse("3", &root));
    assert_refused(tess_json_expect(root, TESS_JSON_OBJECT), TESS_E_FORMAT,
                   "top level: expected an object, found an integer");
    tess_json_destroy(&root);
}

static tess_json *build(bool is_reversed)
{
    tess_json *root = NULL, *list = NULL, *object = NULL;
    assert_ok(tess_json_create_object(&root));
    for (int i = 0; i < 3; i++) {
        const int turn = is_reversed ? 2 - i : i;
        if (turn == 0) {
            assert_ok(tess_json_add_array(root, "list", &list));
            assert_ok(tess_json_add_i64(list, NULL, INT64_MIN));
            assert_ok(tess_json_add_f64(list, NULL, 0.1));
            assert_ok(tess_json_add_f64(list, NULL, 3.0));
            assert_ok(tess_json_add_null(list, NULL));
        } else if (turn == 1) {
            assert_ok(tess_json_add_object(root, "empty", &object));
        } else {
            assert_ok(tess_json_add_string(root, "a\"b", "\x01\n\\\xc3\xa9/"));
            assert_ok(tess_json_add_bool(root, "B", true));
        }
    }
    return root;
}

static void test_dump_is_sorted_whatever_the_order(void **state)
{
    (void)state;
    static const char compact[] = "{\"B\":true,\"a\\\"b\":\"\\u0001\\n\\\\\xc3\xa9/\",\"empty\":{},"
                                  "\"list\":[-9223372036854775808,0.1,3.0,null]}";
    static const char indented[] = "{\n  \"B\": true,\n  \"a\\\"b\": \"\\u0001\\n\\\\\xc3\xa9/\",\n"
                                   "  \"empty\": {},\n  \"list\": [\n    -9223372036854775808,\n"
                                   "    0.1,\n    3.0,\n    null\n  ]\n}";
    for (int turn = 0; turn < 2; turn++) {
        char *text = NULL;
        size_t nbytes = 0;
        tess_json *root = build(turn == 1), *again = NULL;
        assert_ok(tess_json_dump(root, 0, &text, &nbytes));
        assert_string_equal(text, compact);
        assert_int_equal(nbytes, strlen(compact));
        assert_ok(tess_json_parse("dump", text, nbytes, &again));
        tess_free(text);
        assert_ok(tess_json_dump(again, 2, &text, NULL));
        assert_string_equal(text, indented);
        tess_free(text);
        tess_json_destroy(&again);
        tess_json_destroy(&root);
    }
}

static void test_dump_doubles_read_back_to_the_same_bits(void **state)
{
    (void)state;
    uint64_t bits = 0x243f6a8885a308d3;
    tess_json *root = NULL, *again = NULL;
    char *text = NULL;
    size_t nbytes = 0;
    static double value[2000];
    assert_ok(tess_json_create_array(&root));
    for (int i = 0; i < 2000; i++) {
        do {
            bits = bits * 6364136223846793005u + 1442695040888963407u;
            const uint64_t mixed = bits ^ bits >> 29;
            memcpy(&value[i], &mixed, 8);
        } while (!isfinite(value[i]));
        if (i < 4)
            value[i] = ((double[]){5e-324, 1.7976931348623157e308, 1e22, -0.0})[i];
        assert_ok(tess_json_add_f64(root, NULL, value[i]));
    }
    assert_ok(tess_json_dump(root, 0, &text, &nbytes));
    assert_ok(tess_json_parse("dump", text, nbytes, &again));
    for (int i = 0; i < 2000; i++) {
        double back = 0.0;
        assert_int_equal(tess_json_type_of(tess_json_at(again, i)), TESS_JSON_F64);
        assert_ok(tess_json_as_f64(tess_json_at(again, i), &back));
        assert_memory_equal(&back, &value[i], 8);
    }
    tess_free(text);
    tess_json_destroy(&again);
    tess_json_destroy(&root);
}

static void test_add_misuse_is_refused(void **state)
{
    (void)state;
    tess_json *root = NULL, *list = NULL, *parsed = NULL, *deep = NULL;
    assert_ok(tess_json_create_object(&root));
    assert_ok(tess_json_add_i64(root, "a", 1));
    assert_refused(tess_json_add_i64(root, "a", 2), TESS_E_STATE, "key 'a' was added before");
    assert_refused(tess_json_add_i64(root, NULL, 2), TESS_E_STATE, "without a key", "an object");
    assert_ok(tess_json_add_array(root, "list", &list));
    assert_refused(tess_json_add_i64(list, "k", 2), TESS_E_STATE, "list", "with a key", "an array");
    assert_refused(tess_json_add_f64(root, "x", (double)NAN), TESS_E_RANGE, "'x'", "finite");
    assert_refused(tess_json_add_string(root, "s", "\xff"), TESS_E_ARG, "'s' is not UTF-8");
    assert_refused(tess_json_add_null(root, "\xff"), TESS_E_ARG, "a key is not UTF-8");
    assert_ok(parse("{}", &parsed));
    assert_refused(tess_json_add_i64(parsed, "a", 1), TESS_E_STATE, "parsed tree");
    deep = list;
    for (int i = 2; i < 32; i++)
        assert_ok(tess_json_add_array(deep, NULL, &deep));
    assert_refused(tess_json_add_array(deep, NULL, &deep), TESS_E_RANGE, "deeper than 32");
    tess_json_destroy(&parsed);
    tess_json_destroy(&root);
}

static void test_add_copy_and_write_round_trip(void **state)
{
    const fixture *f = *state;
    tess_json *parsed = NULL, *root = NULL, *again = NULL;
    char *text = NULL;
    size_t nbytes = 0;
    assert_ok(parse("{\"b\": [1, {\"y\": 0.5, \"x\": \"t\"}], \"a\": false}", &parsed));
    assert_ok(tess_json_create_object(&root));
    assert_ok(tess_json_add_copy(root, "copy", parsed));
    assert_ok(tess_json_write(f->io, at(f, "out.json"), root, 0));
    assert_ok(tess_io_read_all(f->io, at(f, "out.json"), 1000, &text, &nbytes));
    assert_string_equal(text, "{\"copy\":{\"a\":false,\"b\":[1,{\"x\":\"t\",\"y\":0.5}]}}\n");
    assert_ok(tess_json_read(f->io, at(f, "out.json"), &again));
    assert_refused(tess_json_expect(tess_json_find(again, "copy"), TESS_JSON_ARRAY), TESS_E_FORMAT,
                   f->dir, "out.json': copy:");
    tess_free(text);
    tess_json_destroy(&again);
    tess_json_destroy(&root);
    tess_json_destroy(&parsed);
    assert_refused(tess_json_read(f->io, at(f, "none.json"), &again), TESS_E_IO, "none.json");
}

static void test_read_reals_takes_integers_of_any_size(void **state)
{
    static const char text[] = "{\"most\": 1000000000000000019884624838656, \"few\": 3}";
    const fixture *f = *state;
    tess_json *root = NULL;
    double most = 0.0, few = 0.0;
    assert_ok(tess_io_write_all(f->io, at(f, "out.json"), text, sizeof text - 1));
    assert_refused(tess_json_read(f->io, at(f, "out.json"), &root), TESS_E_FORMAT, "line 1",
                   "integer");
    assert_ok(tess_json_read_reals(f->io, at(f, "out.json"), &root));
    assert_ok(tess_json_get_f64(root, "most", &most));
    assert_ok(tess_json_get_f64(root, "few", &few));
    assert_true(most == 1e30 && few == 3.0);
    tess_json_destroy(&root);
}

static void test_find_in_a_large_object(void **state)
{
    (void)state;
    tess_json *root = NULL;
    char key[16];
    int64_t number = 0;
    assert_ok(tess_json_create_object(&root));
    for (int i = 0; i < 2000; i++) {
        snprintf(key, sizeof key, "k%d", i * 7919 % 2000);
        assert_ok(tess_json_add_i64(root, key, i * 7919 % 2000));
    }
    for (int i = 0; i < 2000; i++) {
        snprintf(key, sizeof key, "k%d", i);
        assert_ok(tess_json_get_i64(root, key, &number));
        assert_int_equal(number, i);
    }
    tess_json_destroy(&root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        format_test(test_parse_values_are_kept_in_file_order),
        format_test(test_parse_bad_text_is_refused_with_its_place),
        format_test(test_parse_depth_32_is_the_last_legal),
        format_test(test_parse_exponent_is_no_minus_zero),
        format_test(test_parse_too_long_is_refused),
        format_test(test_getters_name_path_expected_and_found),
        format_test(test_dump_is_sorted_whatever_the_order),
        format_test(test_dump_doubles_read_back_to_the_same_bits),
        format_test(test_add_misuse_is_refused),
        format_test(test_add_copy_and_write_round_trip),
        format_test(test_read_reals_takes_integers_of_any_size),
        format_test(test_find_in_a_large_object),
    };
    return cmocka_run_group_tests_name("format.json", tests, NULL, NULL);
}
