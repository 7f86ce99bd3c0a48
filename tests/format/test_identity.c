#include "format_test.h"

#include "format/identity.h"

static const struct {
    const char *name;
    int64_t dim[2];
    int dim_numel;
    const char *rule;
} rows[] = {
    {"model.a", {2, 3}, 2, "bf16"},
    {"model.a.b", {6}, 1, "nf4/64/double"},
    {"model.a-", {6}, 1, "f32"},
    {"scale", {0}, 0, "f32"},
};

static tess_sha256 id_of(const int order[4])
{
    tess_identity *identity = NULL;
    tess_sha256 sha, id;
    assert_ok(tess_identity_create(&identity));
    for (int i = 0; i < 4; i++) {
        const int r = order[i];
        assert_ok(tess_sha256_of(rows[r].name, strlen(rows[r].name), &sha));
        assert_ok(tess_identity_add(identity, rows[r].name, rows[r].dim, rows[r].dim_numel,
                                    rows[r].rule, &sha));
    }
    assert_ok(tess_identity_final(identity, &id));
    tess_identity_destroy(&identity);
    return id;
}

/* The text by hand: what the header promises, so that any language can check an id. */
static void test_final_is_sha256_of_the_documented_text(void **state)
{
    (void)state;
    static const int sorted[4] = {0, 2, 1, 3};
    static const char *const shapes[4] = {"2x3", "6", "6", "scalar"};
    char text[1024] = "tessera-base-id 1\n", hex[TESS_SHA256_HEX_NBYTES], line[256];
    tess_sha256 sha, expected;
    for (int i = 0; i < 4; i++) {
        const int r = sorted[i];
        assert_ok(tess_sha256_of(rows[r].name, strlen(rows[r].name), &sha));
        tess_hex(sha.byte, sizeof sha.byte, hex);
        snprintf(line, sizeof line, "%s\t%s\t%s\t%s\n", rows[r].name, shapes[r], rows[r].rule, hex);
        strcat(text, line);
    }
    assert_ok(tess_sha256_of(text, strlen(text), &expected));
    const tess_sha256 found = id_of((int[]){0, 1, 2, 3});
    assert_true(tess_sha256_is_equal(&found, &expected));
}

static void test_final_does_not_depend_on_order(void **state)
{
    (void)state;
    const tess_sha256 a = id_of((int[]){0, 1, 2, 3}), b = id_of((int[]){3, 1, 0, 2});
    assert_true(tess_sha256_is_equal(&a, &b));
}

static void test_final_changes_with_every_field(void **state)
{
    (void)state;
    static const struct {
        const char *name, *rule;
        int64_t dim[2];
        int dim_numel;
        int byte;
    } other[] = {
        {"x", "bf16", {2, 3}, 2, 0}, {"y", "bf16", {2, 3}, 2, 0}, {"x", "f32", {2, 3}, 2, 0},
        {"x", "bf16", {3, 2}, 2, 0}, {"x", "bf16", {6, 1}, 2, 0}, {"x", "bf16", {6}, 1, 0},
        {"x", "bf16", {2, 3}, 2, 1},
    };
    tess_sha256 id[7];
    for (int i = 0; i < TESS_NELEM(other); i++) {
        tess_identity *identity = NULL;
        tess_sha256 sha = {{0}};
        sha.byte[31] = (uint8_t)other[i].byte;
        assert_ok(tess_identity_create(&identity));
        assert_ok(tess_identity_add(identity, other[i].name, other[i].dim, other[i].dim_numel,
                                    other[i].rule, &sha));
        assert_ok(tess_identity_final(identity, &id[i]));
        tess_identity_destroy(&identity);
        for (int j = 0; j < i; j++)
            assert_false(tess_sha256_is_equal(&id[i], &id[j]));
    }
}

static void test_add_bad_rows_are_refused(void **state)
{
    (void)state;
    const tess_sha256 sha = {{0}};
    const int64_t dim[1] = {4};
    tess_identity *identity = NULL;
    tess_sha256 id;
    assert_ok(tess_identity_create(&identity));
    assert_refused(tess_identity_add(identity, "a\tb", dim, 1, "f32", &sha), TESS_E_ARG, "'a?b'");
    assert_refused(tess_identity_add(identity, "", dim, 1, "f32", &sha), TESS_E_ARG, "base id");
    assert_refused(tess_identity_add(identity, "a", dim, 1, "", &sha), TESS_E_ARG, "'a'");
    assert_refused(tess_identity_add(identity, "a", dim, 9, "f32", &sha), TESS_E_ARG,
                   "9 dimensions");
    assert_ok(tess_identity_add(identity, "a", dim, 1, "f32", &sha));
    assert_ok(tess_identity_add(identity, "a", dim, 1, "bf16", &sha));
    assert_refused(tess_identity_final(identity, &id), TESS_E_STATE, "'a' was added twice");
    tess_identity_destroy(&identity);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        format_test(test_final_is_sha256_of_the_documented_text),
        format_test(test_final_does_not_depend_on_order),
        format_test(test_final_changes_with_every_field),
        format_test(test_add_bad_rows_are_refused),
    };
    return cmocka_run_group_tests_name("format.identity", tests, NULL, NULL);
}
