#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "core/memory.h"

static void test_alloc_is_zeroed_and_counted(void **state)
{
    (void)state;
    const size_t held = tess_alloc_nbytes();
    const int64_t events = tess_alloc_events();
    void *p = NULL;
    assert_int_equal(tess_alloc(1000, &p), TESS_OK);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(((const uint8_t *)p)[i], 0);
    assert_int_equal(tess_alloc_nbytes(), held + 1000);
    assert_int_equal(tess_alloc_events(), events + 1);
    assert_true(tess_alloc_peak_nbytes() >= held + 1000);
    assert_int_equal((uintptr_t)p % 16, 0);
    tess_free(p);
    assert_int_equal(tess_alloc_nbytes(), held);
    tess_free(NULL);
    assert_int_equal(tess_alloc(0, &p), TESS_OK);
    assert_non_null(p);
    tess_free(p);
}

static void test_alloc_refuses_overflow(void **state)
{
    (void)state;
    void *p = NULL;
    tess_error_clear();
    assert_int_equal(tess_alloc_array(INT64_MAX, 16, &p), TESS_E_RANGE);
    assert_non_null(strstr(tess_error_message(), "overflows"));
    tess_error_clear();
    assert_int_equal(tess_alloc_array(-1, 1, &p), TESS_E_RANGE);
    tess_error_clear();
    assert_int_equal(tess_alloc(SIZE_MAX, &p), TESS_E_MEMORY);
    assert_non_null(strstr(tess_error_message(), "cannot allocate"));
    tess_error_clear();
    assert_null(p);
}

static void test_realloc_keeps_contents_and_zeroes_the_rest(void **state)
{
    (void)state;
    void *p = NULL;
    assert_int_equal(tess_realloc_array(0, 4, sizeof(int32_t), &p), TESS_OK);
    for (int32_t i = 0; i < 4; i++)
        ((int32_t *)p)[i] = i + 1;
    assert_int_equal(tess_realloc_array(4, 9, sizeof(int32_t), &p), TESS_OK);
    for (int32_t i = 0; i < 9; i++)
        assert_int_equal(((const int32_t *)p)[i], i < 4 ? i + 1 : 0);
    void *const kept = p;
    tess_error_clear();
    assert_int_equal(tess_realloc_array(9, INT64_MAX, sizeof(int32_t), &p), TESS_E_RANGE);
    tess_error_clear();
    assert_ptr_equal(p, kept);
    assert_int_equal(tess_realloc_array(9, 2, sizeof(int32_t), &p), TESS_OK);
    assert_int_equal(((const int32_t *)p)[1], 2);
    tess_free(p);
}

static void test_strings_are_copied(void **state)
{
    (void)state;
    char *a = NULL, *b = NULL, *c = NULL;
    assert_int_equal(tess_strdup("tessera", &a), TESS_OK);
    assert_int_equal(tess_strndup("tessera", 4, &b), TESS_OK);
    assert_int_equal(tess_asprintf(&c, "%s-%d", b, 7), TESS_OK);
    assert_string_equal(a, "tessera");
    assert_string_equal(b, "tess");
    assert_string_equal(c, "tess-7");
    tess_free(a);
    tess_free(b);
    tess_free(c);
}

static void test_freeze_refuses_allocations_until_the_last_thaw(void **state)
{
    (void)state;
    void *p = NULL;
    tess_error_clear();
    tess_alloc_freeze();
    tess_alloc_freeze();
    tess_alloc_thaw();
    assert_int_equal(tess_alloc(8, &p), TESS_E_STATE);
    assert_string_equal(tess_error_message(), "allocation of 8 bytes inside a step");
    tess_alloc_thaw();
    tess_error_clear();
    assert_null(p);
    assert_int_equal(tess_alloc(8, &p), TESS_OK);
    tess_free(p);
}

static void test_arena_gives_planned_ranges_only(void **state)
{
    (void)state;
    tess_arena *arena = NULL;
    tess_view v = {0};
    assert_int_equal(tess_arena_create("slabs", 1024, &arena), TESS_OK);
    assert_int_equal(tess_arena_nbytes(arena), 1024);
    assert_int_equal(tess_arena_view(arena, 256, 192, TESS_F32, &v), TESS_OK);
    assert_int_equal(v.numel, 192);
    assert_int_equal(v.dt, TESS_F32);
    assert_int_equal((uintptr_t)v.data % 256, 0);
    for (int i = 0; i < 192; i++)
        assert_true(((const float *)v.data)[i] == 0.0f);
    ((float *)v.data)[191] = 1.0f; /* the last planned byte is ours */
    tess_error_clear();
    assert_int_equal(tess_arena_view(arena, 256, 193, TESS_F32, &v), TESS_E_RANGE);
    assert_non_null(strstr(tess_error_message(), "arena 'slabs' (1024 bytes)"));
    tess_error_clear();
    assert_int_equal(tess_arena_view(arena, 128, 1, TESS_F32, &v), TESS_E_RANGE);
    tess_error_clear();
    assert_int_equal(tess_arena_view(arena, 2048, 0, TESS_U8, &v), TESS_E_RANGE);
    tess_error_clear();
    assert_int_equal(v.numel, 192);
    tess_arena_destroy(&arena);
    assert_null(arena);
    tess_arena_destroy(&arena);
}

static void test_peak_rss_sees_touched_pages(void **state)
{
    (void)state;
    enum { NBYTES = 64 << 20 };
    const size_t before = tess_peak_rss_nbytes();
    tess_arena *arena = NULL;
    tess_view v = {0};
    assert_true(before > 0);
    assert_int_equal(tess_arena_create("rss", NBYTES, &arena), TESS_OK);
    assert_int_equal(tess_arena_view(arena, 0, NBYTES, TESS_U8, &v), TESS_OK);
    memset(v.data, 1, NBYTES);
    /* pages already resident before may be reused: three quarters must be new */
    assert_true(tess_peak_rss_nbytes() >= before + NBYTES / 4 * 3);
    tess_arena_destroy(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alloc_is_zeroed_and_counted),
        cmocka_unit_test(test_alloc_refuses_overflow),
        cmocka_unit_test(test_realloc_keeps_contents_and_zeroes_the_rest),
        cmocka_unit_test(test_strings_are_copied),
        cmocka_unit_test(test_freeze_refuses_allocations_until_the_last_thaw),
        cmocka_unit_test(test_arena_gives_planned_ranges_only),
        cmocka_unit_test(test_peak_rss_sees_touched_pages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
