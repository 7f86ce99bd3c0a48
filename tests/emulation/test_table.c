/* Every op that a device enqueues has a CUDA twin and is known to the checker of streams: the lists
 * of emu_ranges.h are whole (emu_kernels.c), and both tables have what they name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/emulation/emu_ranges.h"
#include "tests/emulation/emu_world.h"
#include "tests/emulation/emulated_device.h"
#include "tests/emulation/emulation.h"

static void check_entry(const tess_kernels *k, const char *op, bool has)
{
    if (!has)
        fail_msg("table '%s' has no entry '%s'", k->name, op);
}

static void check_table(const tess_kernels *k)
{
    assert_int_equal(tess_kernels_check(k), TESS_OK);
    assert_non_null(k->modulated);
    assert_non_null(k->quantizers);
#define X(op, type) check_entry(k, #op, k->op != NULL);
    EMU_KERNEL_LIST(X)
    EMU_CODE_LIST(X)
#undef X
#define X(op, type) check_entry(k, #op, k->modulated->op != NULL);
    EMU_MODULATED_LIST(X)
#undef X
#define X(op, type) check_entry(k, #op, k->quantizers->op != NULL);
    EMU_QUANTIZER_LIST(X)
#undef X
}

static void test_devices_have_every_op(void **state)
{
    (void)state;
    check_table(&tess_kernels_cuda);
    check_table(&emu_kernels);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_devices_have_every_op)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
