/* Offsets of documents and transposed statistics, exact by nature; each barrier taken out shows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/arith.h"
#include "core/memory.h"
#include "kernels/cuda/sdpa_priv.h"
#include "tests/emulation/barriers.h"
#include "tests/emulation/emulation.h"
#include "tests/support/must.h"

enum { DOCUMENT_MAX = 9, PLACE_MAX = 4 * DOCUMENT_MAX, TOKEN_MAX = 1300 };
static const int chunks[] = {DOCUMENT_MAX, 3, 1};

static void *on_device(const void *host, size_t nbytes)
{
    void *device = NULL;
    must(tess_emulation_alloc("operand", nbytes, &device));
    if (host != NULL)
        must(tess_emulation_write(device, host, nbytes));
    return device;
}

/* Few blocks in some, so that one takes several tiles. */
static const tess_emulation_settings orders[] = {
    {TESS_EMULATION_FORWARD, 0, 0, 0, -1},
    {TESS_EMULATION_REVERSED, 0, 1, 0, -1},
    {TESS_EMULATION_SEEDED, 7, 2, 0, -1},
    {TESS_EMULATION_FORWARD, 0, 1, 0, -1},
};

/* `dropped`: number of a barrier that is taken out, -1: none. */
static void use_order(int idx, int dropped)
{
    tess_emulation_settings settings = orders[idx];
    settings.dropped_barrier = dropped;
    tess_emulation_set(&settings);
}

/* -------- offsets -------- */

static bool are_offsets_right(const int32_t *length, int document_numel, int chunk)
{
    int32_t doc_start[TOKEN_MAX], start[DOCUMENT_MAX + 1], got[PLACE_MAX];
    const int stride = (int)tess_sdpa_place_stride(chunk);
    int32_t token_numel = 0;
    bool is_right = true;
    for (int d = 0; d < document_numel; d++) {
        start[d] = token_numel;
        for (int32_t i = 0; i < length[d]; i++)
            doc_start[token_numel++] = start[d];
    }
    for (int d = document_numel; d <= DOCUMENT_MAX; d++)
        start[d] = token_numel;
    tess_sdpa_offsets_args args = {.token_numel = token_numel,
                                   .document_max = DOCUMENT_MAX,
                                   .chunk_numel = chunk,
                                   .scale = {1, 3, 128, 4096, 7},
                                   .scaled_numel = TESS_SDPA_SCALE_MAX};
    args.doc_start = on_device(doc_start, (size_t)token_numel * sizeof(int32_t));
    const size_t nbytes = (size_t)(DOCUMENT_MAX / chunk * stride) * sizeof(int32_t);
    args.length = on_device(NULL, nbytes);
    for (int k = 0; k < TESS_SDPA_SCALE_MAX; k++)
        args.offset[k] = on_device(NULL, nbytes);
    if (tess_cuda_sdpa_offsets(&args, NULL) != TESS_OK) {
        tess_error_clear();
        is_right = false;
    }
    must(tess_emulation_read(got, args.length, nbytes));
    for (int d = 0; d < DOCUMENT_MAX; d++)
        is_right = is_right && got[d / chunk * stride + d % chunk] == start[d + 1] - start[d];
    for (int k = 0; k < TESS_SDPA_SCALE_MAX; k++) {
        must(tess_emulation_read(got, args.offset[k], nbytes));
        for (int d = 0; d < DOCUMENT_MAX; d += chunk)
            for (int i = 0; i <= chunk; i++)
                is_right = is_right && got[d / chunk * stride + i] == start[d + i] * args.scale[k];
    }
    tess_emulation_release_all();
    return is_right;
}

static const struct {
    int32_t length[DOCUMENT_MAX];
    int document_numel;
} packs[] = {
    {{1}, 1},
    {{TOKEN_MAX}, 1},
    {{5, 1, 640, 1}, 4},
    {{1, 1, 2, 255, 256, 257, 1, 400, 3}, DOCUMENT_MAX},
};

static void test_offsets_of_any_pack(void **state)
{
    (void)state;
    for (int order = 0; order < TESS_NELEM(orders); order++)
        for (int i = 0; i < TESS_NELEM(packs); i++) {
            for (int c = 0; c < TESS_NELEM(chunks); c++) {
                use_order(order, -1);
                if (!are_offsets_right(packs[i].length, packs[i].document_numel, chunks[c]))
                    fail_msg("pack %d, order %d, %d documents at a time: other lengths or offsets",
                             i, order, chunks[c]);
            }
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
    const tess_sdpa_offsets_args uneven = {.document_max = 9, .chunk_numel = 2};
    assert_int_equal(tess_cuda_sdpa_offsets(&uneven, NULL), TESS_E_ARG);
    assert_non_null(strstr(tess_error_message(), "chunks of 2 documents, expected a divisor of 9"));
    tess_error_clear();
}

/* -------- transpose -------- */

static bool is_transpose_right(int64_t rows, int64_t cols)
{
    float src[7001] = {0}, got[7001];
    const size_t nbytes = (size_t)(rows * cols) * sizeof(float);
    for (int64_t j = 0; j < rows * cols; j++)
        src[j] = (float)j;
    float *dst = on_device(NULL, nbytes + 4);
    bool is_right =
        tess_cuda_sdpa_transpose(on_device(src, nbytes + 4), rows, cols, dst, NULL) == TESS_OK;
    tess_error_clear();
    must(tess_emulation_read(got, dst, nbytes + 4));
    for (int64_t j = 0; j < rows * cols; j++)
        is_right = is_right && got[j] == src[j % rows * cols + j / rows];
    tess_emulation_release_all();
    return is_right;
}

static const int64_t sizes[][2] = {{1, 1}, {1, 77}, {33, 1}, {32, 64}, {31, 33}, {100, 70}, {0, 5}};

static void test_transpose_of_any_size(void **state)
{
    (void)state;
    for (int order = 0; order < TESS_NELEM(orders); order++)
        for (int i = 0; i < TESS_NELEM(sizes); i++) {
            use_order(order, -1);
            if (!is_transpose_right(sizes[i][0], sizes[i][1]))
                fail_msg("size %d, order %d: not the transpose", i, order);
        }
}

/* -------- barriers -------- */

static bool is_all_right(int barrier)
{
    bool is_right = true;
    for (int order = 0; order < TESS_NELEM(orders); order++) {
        for (int i = 0; i < TESS_NELEM(packs); i++) {
            use_order(order, barrier);
            is_right = is_right && are_offsets_right(packs[i].length, packs[i].document_numel, 3);
        }
        for (int i = 0; i < TESS_NELEM(sizes); i++) {
            use_order(order, barrier);
            is_right = is_right && is_transpose_right(sizes[i][0], sizes[i][1]);
        }
    }
    return is_right;
}

/* In a process of its own: a document that is counted wrongly is a place outside memory. */
static bool is_noticed(int barrier)
{
    int code = 0;
    (void)fflush(NULL);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        const struct rlimit no_core = {0, 0};
        (void)setrlimit(RLIMIT_CORE, &no_core);
        (void)signal(SIGSEGV, SIG_DFL);
        _exit(is_all_right(barrier) ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &code, 0), child);
    return !WIFEXITED(code) || WEXITSTATUS(code) != 0;
}

/* After the cases above, which pass all barriers. */
static void test_barriers_taken_out_show(void **state)
{
    static const char *const sources[] = {"sdpa.cu", NULL};
    (void)state;
    barriers_check_reach(sources);
    assert_false(is_noticed(-1));
    for (int b = 0; b < tess_emulation_barrier_numel(); b++) {
        const tess_emulation_barrier barrier = tess_emulation_barrier_get(b);
        if (!is_noticed(b))
            fail_msg("%s of %s:%d can be taken out and nothing shows it", barrier.kind,
                     barrier.file, barrier.line);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_offsets_of_any_pack),
        cmocka_unit_test(test_offsets_of_no_plan_are_refused),
        cmocka_unit_test(test_transpose_of_any_size),
        cmocka_unit_test(test_barriers_taken_out_show),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
