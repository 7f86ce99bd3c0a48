#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "core/device.h"

static void test_host_arenas_copy_and_zero(void **state)
{
    (void)state;
    tess_host_device host;
    tess_arena *arena = NULL;
    tess_stream *stream = NULL;
    tess_view a = {0}, b = {0};
    tess_host_device_init(&host, NULL);
    assert_int_equal(tess_device_arena_create(&host.base, host.base.space, "pair", 1024, &arena),
                     TESS_OK);
    assert_int_equal(tess_device_stream_create(&host.base, "compute", true, &stream), TESS_OK);
    assert_int_equal(tess_arena_view(arena, 0, 128, TESS_F32, &a), TESS_OK);
    assert_int_equal(tess_arena_view(arena, 512, 128, TESS_F32, &b), TESS_OK);
    assert_int_equal(b.space, TESS_HOST);
    memset(a.data, 7, 512);
    memset(b.data, 9, 512);
    assert_int_equal(tess_device_copy(&host.base, b, a, stream), TESS_OK);
    assert_memory_equal(a.data, b.data, 512);
    assert_int_equal(tess_device_zero(&host.base, tess_view_slice(a, 1, 126), stream), TESS_OK);
    const float *v = a.data;
    const uint8_t *bytes = a.data;
    assert_true(v[1] == 0.0f && v[126] == 0.0f);
    assert_int_equal(bytes[3], 7);
    assert_int_equal(bytes[508], 7);
    tess_device_stream_destroy(&host.base, &stream);
    assert_null(stream);
    tess_arena_destroy(&arena);
}

static void test_copies_of_unequal_size_are_refused(void **state)
{
    (void)state;
    tess_host_device host;
    float x[4] = {0}, y[3] = {0};
    tess_host_device_init(&host, NULL);
    assert_int_equal(tess_device_copy(&host.base, tess_view_host(y, 3, TESS_F32),
                                      tess_view_host(x, 4, TESS_F32), NULL),
                     TESS_E_ARG);
    assert_non_null(strstr(tess_error_message(), "copy of 16 bytes to 12"));
}

/* A device that has no memory says which arena it was for, and what there is. */
static tess_status refuse(tess_device *d, tess_space space, size_t nbytes, void **out)
{
    (void)d;
    (void)space;
    (void)out;
    return TESS_FAIL(TESS_E_MEMORY, "no %zu bytes", nbytes);
}

static tess_status little(tess_device *d, size_t *free_nbytes, size_t *total_nbytes)
{
    (void)d;
    *free_nbytes = 100;
    *total_nbytes = 1000;
    return TESS_OK;
}

static void test_full_device_names_the_arena(void **state)
{
    (void)state;
    const tess_device_ops ops = {.alloc = refuse, .memory = little};
    tess_device full = {.ops = &ops, .name = "tiny:0", .space = TESS_DEVICE};
    tess_arena *arena = NULL;
    assert_int_equal(tess_device_arena_create(&full, TESS_DEVICE, "state", 4096, &arena),
                     TESS_E_MEMORY);
    assert_null(arena);
    assert_non_null(
        strstr(tess_error_message(), "arena 'state': tiny:0 has no 4096 bytes (100 of 1000 free)"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_host_arenas_copy_and_zero),
        cmocka_unit_test(test_copies_of_unequal_size_are_refused),
        cmocka_unit_test(test_full_device_names_the_arena),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
