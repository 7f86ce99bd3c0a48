/* Which instruction path a process uses, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu_priv.h"

static int setup(void **state)
{
    (void)state;
    unsetenv("TESSERA_CPU_PATH");
    tess_cpu_path_reset();
    tess_error_clear();
    return 0;
}

static void test_path_best_is_one_the_cpu_has(void **state)
{
    (void)state;
    assert_in_range(tess_cpu_path_best(), TESS_CPU_PORTABLE, tess_cpu_path_highest());
    assert_int_equal(tess_cpu_path_current(), tess_cpu_path_best());
    assert_string_equal(tess_kernels_cpu.path(), tess_cpu_path_name(tess_cpu_path_best()));
}

static void test_path_environment_names_another(void **state)
{
    (void)state;
    setenv("TESSERA_CPU_PATH", "portable", 1);
    assert_int_equal(tess_cpu_path_best(), TESS_CPU_PORTABLE);
    assert_int_equal(tess_kernels_cpu_select(tess_cpu_path_best()), TESS_OK);
    assert_string_equal(tess_kernels_cpu.path(), "portable");
    unsetenv("TESSERA_CPU_PATH");
    assert_string_equal(tess_kernels_cpu.path(), "portable");
}

static void test_path_unknown_name_is_refused(void **state)
{
    (void)state;
    setenv("TESSERA_CPU_PATH", "sse9", 1);
    assert_int_equal(tess_kernels_cpu_select(TESS_CPU_PORTABLE), TESS_E_UNSUPPORTED);
    assert_non_null(strstr(tess_error_message(),
                           "TESSERA_CPU_PATH is 'sse9': expected portable, avx2, avx512 or "
                           "avx512_bf16, at most"));
}

static void test_path_second_selection_is_refused(void **state)
{
    (void)state;
    assert_int_equal(tess_kernels_cpu_select(TESS_CPU_PORTABLE), TESS_OK);
    assert_int_equal(tess_kernels_cpu_select(TESS_CPU_PORTABLE), TESS_OK);
    if (tess_cpu_path_highest() == TESS_CPU_PORTABLE)
        return;
    assert_int_equal(tess_kernels_cpu_select(TESS_CPU_AVX2), TESS_E_STATE);
    assert_string_equal(tess_error_message(), "instruction path 'portable' is already in use; it "
                                              "cannot become 'avx2' in this process");
    assert_string_equal(tess_kernels_cpu.path(), "portable");
}

static void test_path_outside_the_table_is_refused(void **state)
{
    (void)state;
    assert_int_equal(tess_kernels_cpu_select((tess_cpu_path)17), TESS_E_ARG);
    assert_string_equal(tess_error_message(), "instruction path number 17 is not in the table");
    assert_string_equal(tess_cpu_path_name((tess_cpu_path)17), "unknown");
}

static void test_table_hole_is_named(void **state)
{
    (void)state;
    tess_kernels k = tess_kernels_cpu;
    k.gemm = NULL;
    assert_int_equal(tess_kernels_check(&k), TESS_E_UNSUPPORTED);
    assert_non_null(strstr(tess_error_message(), "kernel table 'cpu': entry 3 of "));
    assert_non_null(strstr(tess_error_message(), " is missing"));
    tess_error_clear();
    k.logits_row_max = 0;
    assert_int_equal(tess_kernels_check(&k), TESS_E_UNSUPPORTED);
    assert_non_null(strstr(tess_error_message(), "kernel table 'cpu': entry 1 of "));
}

/* A backend has all quantizers or none. */
static void test_part_of_the_quantizers_is_refused(void **state)
{
    (void)state;
    tess_kernels k = tess_kernels_cpu;
    assert_int_equal(tess_kernels_check(&k), TESS_OK);
    tess_quantizer_kernels part = *k.quantizers;
    part.enter_backward = NULL;
    k.quantizers = &part;
    assert_int_equal(tess_kernels_check(&k), TESS_E_UNSUPPORTED);
    assert_non_null(strstr(tess_error_message(), "kernel table 'cpu': entry 1 of "));
    assert_non_null(strstr(tess_error_message(), " of the quantizers is missing"));
    k.quantizers = NULL;
    assert_int_equal(tess_kernels_check(&k), TESS_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_path_best_is_one_the_cpu_has, setup),
        cmocka_unit_test_setup(test_path_environment_names_another, setup),
        cmocka_unit_test_setup(test_path_unknown_name_is_refused, setup),
        cmocka_unit_test_setup(test_path_second_selection_is_refused, setup),
        cmocka_unit_test_setup(test_path_outside_the_table_is_refused, setup),
        cmocka_unit_test_setup(test_table_hole_is_named, setup),
        cmocka_unit_test_setup(test_part_of_the_quantizers_is_refused, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
