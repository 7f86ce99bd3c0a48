/* Draws by global numbers: the outputs and the order of a worked example, and with replacement. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/status.h"
#include "shard/draw.h"

static const tess_draw example = {.seed = 1234, .purpose = 1, .step = 7, .layer = 0};

static void test_outputs_of_the_worked_example(void **state)
{
    (void)state;
    static const uint64_t expected[] = {0x12869ec3d0262202, 0x2bc5fce86e04e475, 0x91cd50576bc39fc4,
                                        0x298e40a65e63cf97, 0xec6fe20783b83b95, 0x222b4c14636fce6e,
                                        0x7bcd747bafa2fea6, 0x7d96a91a3d5e7ad4};
    for (uint64_t g = 0; g < 8; g++)
        assert_true(tess_draw_output(&example, g) == expected[g]);
    assert_int_equal(tess_draw_below(&example, 4, 1000), 923); /* 0xec6f... / 2^64 = 0.9236 */
}

static void test_smallest_outputs_are_drawn_in_their_order(void **state)
{
    (void)state;
    static const int64_t expected[] = {0, 5, 3, 1, 6, 7, 2, 4};
    tess_comm *self = NULL;
    int64_t drawn[12];
    assert_int_equal(tess_comm_create_self(&self), TESS_OK);
    for (int64_t m = 1; m <= 8; m++) {
        assert_int_equal(tess_draw_select(self, &example, 8, m, NULL, drawn), TESS_OK);
        assert_memory_equal(drawn, expected, (size_t)m * sizeof *drawn);
    }
    assert_int_equal(tess_draw_select(self, &example, 8, 12, NULL, drawn), TESS_OK);
    for (uint64_t j = 0; j < 12; j++) /* more than there are: with replacement */
        assert_int_equal(drawn[j], tess_draw_below(&example, j, 8));
    assert_int_equal(tess_draw_select(self, &example, 0, 1, NULL, drawn), TESS_E_RANGE);
    tess_error_clear();
    tess_comm_destroy(&self);
}

/* Of many, few: the limit that thins them out loses none. */
static void test_few_of_many_are_the_smallest(void **state)
{
    (void)state;
    enum { N = 20000, M = 50 };
    tess_comm *self = NULL;
    int64_t drawn[M];
    assert_int_equal(tess_comm_create_self(&self), TESS_OK);
    assert_int_equal(tess_draw_select(self, &example, N, M, NULL, drawn), TESS_OK);
    const uint64_t last = tess_draw_output(&example, (uint64_t)drawn[M - 1]);
    int64_t below = 0;
    for (uint64_t g = 0; g < N; g++)
        below += tess_draw_output(&example, g) <= last;
    assert_int_equal(below, M);
    for (int i = 1; i < M; i++)
        assert_true(tess_draw_output(&example, (uint64_t)drawn[i - 1]) <
                    tess_draw_output(&example, (uint64_t)drawn[i]));
    tess_comm_destroy(&self);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_outputs_of_the_worked_example),
        cmocka_unit_test(test_smallest_outputs_are_drawn_in_their_order),
        cmocka_unit_test(test_few_of_many_are_the_smallest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
