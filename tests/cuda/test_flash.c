/*
 * Attention by own kernels on a device: the cases of emulation.test_flash_slow through the table,
 * on a stream that no library was opened for.
 */
#include "tests/cuda/attention_on_device.h"

enum { HAS_GAPS = 0 }; /* the table knows those of the result alone */

#include "tests/emulation/flash_cases.h"

/* Several blocks a head, several tiles a block, heads that share keys. */
static void test_flash_many_tiles_match_twin(void **state)
{
    (void)state;
    static const flash_case cases[] = {
        {TESS_BF16, 700, 4, 2, 128, 0, 1, 0, 0, 0},
        {TESS_BF16, 900, 3, 1, 64, 0, 7, 0, 0, 0},
        {TESS_BF16, 1026, 2, 2, 96, 0, 1, 0, 0, 513},
    };
    check_cases(cases, TESS_NELEM(cases));
}

#define SHARED_CASE(name) cmocka_unit_test(name),

int main(void)
{
    const struct CMUnitTest tests[] = {
        /* clang-format off */
        FLASH_CASE_LIST(SHARED_CASE)
        /* clang-format on */
        cmocka_unit_test(test_flash_many_tiles_match_twin),
    };
    return cmocka_run_group_tests(tests, attention_setup, NULL);
}
