/* The cache of algorithms: what one rank chose reaches the others whole, or is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "core/memory.h"
#include "kernels/cuda/blas_priv.h"
#include "tests/emulation/blas_emulation.h"
#include "tests/emulation/emulation.h"
#include "tests/support/must.h"

static tess_blas_emulation blas;

static void *zeroed(int64_t numel, size_t elem_nbytes)
{
    void *p = NULL;
    must(tess_alloc_array(numel, elem_nbytes, &p));
    return p;
}

static int setup(void **state)
{
    (void)state;
    must(tess_blas_emulation_init(&blas, "emulation"));
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    tess_blas_emulation_fini(&blas);
    tess_emulation_release_all();
    return 0;
}

static tess_blas_product product_of(int64_t m)
{
    tess_blas_product p;
    memset(&p, 0, sizeof(p));
    p.m = m;
    p.n = p.k = p.a_stride = p.b_stride = p.c_stride = 8;
    return p;
}

static void test_blas_import_takes_the_choices_of_another_rank(void **state)
{
    (void)state;
    tess_blas_emulation other;
    must(tess_blas_emulation_init(&other, "emulation"));
    for (int64_t m = 1; m <= 300; m++) {
        const tess_blas_product p = product_of(m);
        must(tess_blas_plan(&blas.base, &p));
    }
    const tess_blas_product first = product_of(1);
    must(tess_blas_plan(&other.base, &first));
    const size_t nbytes = tess_blas_export_nbytes(&blas.base);
    uint8_t *data = zeroed((int64_t)nbytes, 1);
    tess_blas_export(&blas.base, data);
    must(tess_blas_import(&other.base, data, nbytes));
    assert_int_equal(other.base.entry_numel, 300);
    assert_int_equal(tess_blas_export_nbytes(&other.base), nbytes);
    for (int64_t m = 1; m <= 300; m++) {
        const tess_blas_product p = product_of(m);
        must(tess_blas_plan(&other.base, &p));
    }
    assert_int_equal(other.choose_numel, 1);

    data[nbytes - 1] ^= 1;
    assert_int_equal(tess_blas_import(&other.base, data, nbytes), TESS_E_FORMAT);
    assert_non_null(strstr(tess_error_message(), "damaged"));
    tess_error_clear();
    assert_int_equal(tess_blas_import(&other.base, data, nbytes - 1), TESS_E_FORMAT);
    tess_error_clear();
    data[nbytes - 1] ^= 1;
    other.identity = "another device";
    assert_int_equal(tess_blas_import(&other.base, data, nbytes), TESS_E_CONTRACT);
    assert_non_null(strstr(tess_error_message(), "'another device'"));
    tess_error_clear();
    tess_free(data);
    tess_blas_emulation_fini(&other);
}

static void test_blas_full_cache_still_runs(void **state)
{
    (void)state;
    tess_status st = TESS_OK;
    int64_t m = 1;
    for (; st == TESS_OK && m < 5000; m++) {
        const tess_blas_product p = product_of(m);
        st = tess_blas_plan(&blas.base, &p);
    }
    assert_int_equal(st, TESS_E_RANGE);
    assert_non_null(strstr(tess_error_message(), "more than 768 different products"));
    tess_error_clear();
    /* one more: chosen every time, and right */
    const float a[] = {1.0F, 2.0F}, want = 11.0F;
    const float b_host[] = {3.0F, 4.0F};
    float got = 0.0F;
    void *device = NULL;
    must(tess_emulation_alloc("operands", 64, &device));
    must(tess_emulation_write(device, a, sizeof(a)));
    must(tess_emulation_write((char *)device + 16, b_host, sizeof(b_host)));
    tess_blas_product p = product_of(1);
    p.n = 1;
    p.k = p.a_stride = p.b_stride = 2;
    p.c_stride = 1;
    p.kind = TESS_GEMM_NT;
    p.dt = p.c_dt = TESS_F32;
    p.a_align = p.b_align = p.c_align = 16;
    const tess_blas_operands o = {
        .a = device, .b = (char *)device + 16, .c = (char *)device + 32, .alpha = 1.0F};
    const int64_t before = blas.choose_numel;
    tess_stream stream;
    tess_stream_init_inline(&stream, "compute", NULL);
    for (int i = 0; i < 2; i++)
        must(tess_blas_run(&blas.base, &p, &o, &stream));
    must(tess_emulation_read(&got, o.c, sizeof(got)));
    assert_true(got == want);
    assert_int_equal(blas.choose_numel - before, 2);
    assert_int_equal(blas.base.entry_numel, 768);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_blas_import_takes_the_choices_of_another_rank, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_blas_full_cache_still_runs, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
