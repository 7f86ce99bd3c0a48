#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/dtype.h"
#include "core/status.h"

static void test_error_set_keeps_first_record(void **state)
{
    (void)state;
    tess_error_clear();
    assert_int_equal(TESS_FAIL(TESS_E_IO, "first %d", 1), TESS_E_IO);
    assert_int_equal(TESS_FAIL(TESS_E_ARG, "second"), TESS_E_ARG);
    assert_int_equal(tess_error_status(), TESS_E_IO);
    assert_string_equal(tess_error_message(), "first 1");
    tess_error_clear();
    assert_int_equal(tess_error_status(), TESS_OK);
}

static void test_nbytes_overflow_is_refused(void **state)
{
    (void)state;
    size_t nbytes = 7;
    tess_error_clear();
    assert_int_equal(tess_nbytes(TESS_F64, INT64_MAX, &nbytes), TESS_E_RANGE);
    assert_int_equal(nbytes, 7);
    tess_error_clear();
    assert_int_equal(tess_nbytes(TESS_BF16, 3, &nbytes), TESS_OK);
    assert_int_equal(nbytes, 6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_error_set_keeps_first_record),
        cmocka_unit_test(test_nbytes_overflow_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
