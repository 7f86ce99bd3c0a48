/* Offsets of documents and transposed statistics, exact by nature. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "kernels/cuda/sdpa_priv.h"
#include "tests/emulation/emulation.h"

enum { DOCUMENT_MAX = 9, TOKEN_MAX = 1300 };

static void must(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s", tess_error_message());
}

static void *on_device(const void *host, size_t nbytes)
{
    void *device = NULL;
    must(tess_emulation_alloc("operand", nbytes, &device));
    if (host != NULL)
        must(tess_emulation_write(device, host, nbytes));
    return device;
}

static const tess_emulation_order orders[] = {TESS_EMULATION_FORWARD, TESS_EMULATION_REVERSED,
                                              TESS_EMULATION_SEEDED};

static void use_order(int idx)
{
    const tess_emulation_settings settings = {
        .order = orders[idx], .seed = 7, .dropped_barrier = -1};
    tess_emulation_set(&settings);
}

static void check_offsets(const int32_t *length, int document_numel)
{
    int32_t doc_start[TOKEN_MAX], start[DOCUMENT_MAX + 1], got[DOCUMENT_MAX + 1];
    int32_t token_numel = 0;
    for (int d = 0; d < document_numel; d++) {
        start[d] = token_numel;
        for (int32_t i = 0; i < length[d]; i++)
            doc_start[token_numel++] = start[d];
    }
    for (int d = document_numel; d <= DOCUMENT_MAX; d++)
        start[d] = token_numel;
    tess_sdpa_offsets_args args = {.token_numel = token_numel,
                                   .document_max = DOCUMENT_MAX,
                                   .scale = {1, 3, 128, 4096, 7},
                                   .scaled_numel = TESS_SDPA_SCALE_MAX};
    args.doc_start = on_device(doc_start, (size_t)token_numel * sizeof(int32_t));
    args.length = on_device(NULL, DOCUMENT_MAX * sizeof(int32_t));
    for (int k = 0; k < TESS_SDPA_SCALE_MAX; k++)
        args.offset[k] = on_device(NULL, sizeof(got));
    must(tess_cuda_sdpa_offsets(&args, NULL));
    must(tess_emulation_read(got, args.length, DOCUMENT_MAX * sizeof(int32_t)));
    for (int d = 0; d < DOCUMENT_MAX; d++)
        assert_int_equal(got[d], start[d + 1] - start[d]);
    for (int k = 0; k < TESS_SDPA_SCALE_MAX; k++) {
        must(tess_emulation_read(got, args.offset[k], sizeof(got)));
        for (int d = 0; d <= DOCUMENT_MAX; d++)
            assert_int_equal(got[d], start[d] * args.scale[k]);
    }
    tess_emulation_release_all();
}

static void test_offsets_of_any_pack(void **state)
{
    (void)state;
    const int32_t one[] = {1}, whole[] = {1300}, full[] = {1, 1, 2, 255, 256, 257, 1, 400, 3};
    const int32_t some[] = {5, 1, 640, 1};
    for (int order = 0; order < TESS_NELEM(orders); order++) {
        use_order(order);
        check_offsets(one, 1);
        check_offsets(whole, 1);
        check_offsets(some, 4);
        check_offsets(full, DOCUMENT_MAX);
    }
}

static void test_offsets_of_no_plan_are_refused(void **state)
{
    (void)state;
    const tess_sdpa_offsets_args args = {.document_max = TESS_SDPA_DOCUMENT_MAX + 1};
    tess_error_clear();
    assert_int_equal(tess_cuda_sdpa_offsets(&args, NULL), TESS_E_ARG);
    assert_non_null(strstr(tess_error_message(), "a plan for 1025 documents"));
    tess_error_clear();
}

static void test_transpose_of_any_size(void **state)
{
    (void)state;
    const int64_t sizes[][2] = {{1, 1}, {1, 77}, {33, 1}, {32, 64}, {31, 33}, {100, 70}, {0, 5}};
    for (int order = 0; order < TESS_NELEM(orders); order++) {
        use_order(order);
        for (int i = 0; i < TESS_NELEM(sizes); i++) {
            const int64_t rows = sizes[i][0], cols = sizes[i][1];
            float src[7001] = {0}, got[7001];
            const size_t nbytes = (size_t)(rows * cols) * sizeof(float);
            for (int64_t j = 0; j < rows * cols; j++)
                src[j] = (float)j;
            float *dst = on_device(NULL, nbytes + 4);
            must(tess_cuda_sdpa_transpose(on_device(src, nbytes + 4), rows, cols, dst, NULL));
            must(tess_emulation_read(got, dst, nbytes + 4));
            for (int64_t j = 0; j < rows * cols; j++)
                assert_true(got[j] == src[j % rows * cols + j / rows]);
            tess_emulation_release_all();
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_offsets_of_any_pack),
        cmocka_unit_test(test_offsets_of_no_plan_are_refused),
        cmocka_unit_test(test_transpose_of_any_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
