#include "tests/kernels/op_support.h"

typedef struct problem {
    op_buffer a, b, dst;
    double *ref;
    tess_exact acc;
    int64_t nonfinite_numel;
} problem;

static tess_status call_fold(void *ctx, tess_stream *s)
{
    const problem *p = ctx;
    const tess_fold_args a = {p->a.view.data, p->b.view.data, p->dst.view.data, p->a.view.numel};
    return tess_cpu_fold(&a, s);
}

/* One f32 sum is exact to u32 of itself. */
static void check_fold(void *ctx)
{
    problem *p = ctx;
    assert_close("dst", &p->dst, p->ref, 0.0, F32_U);
}

static const int64_t sizes[] = {0, 1, 255, 256, 257, 5000, 70001, 300000};

static void test_fold_matches_reference(void **state)
{
    (void)state;
    for (int i = 0; i < TESS_NELEM(sizes); i++) {
        problem p = {.a = buffer_random(TESS_F32, sizes[i], 51, 1.0),
                     .b = buffer_random(TESS_F32, sizes[i], 52, 1.0),
                     .dst = buffer_create(TESS_F32, sizes[i], true),
                     .ref = doubles(sizes[i])};
        ref_add(sizes[i], p.a.value, p.b.value, p.ref);
        const op_run run = {.call = call_fold, .ctx = &p, .outputs = {&p.dst}, .output_numel = 1};
        run_everywhere(&run, check_fold);
        buffer_destroy(&p.dst);
        p.dst = p.a; /* in place */
        run_once(&run, 2);
        buffer_read(&p.dst);
        check_fold(&p);
        buffer_destroy(&p.a);
        buffer_destroy(&p.b);
        tess_free(p.ref);
    }
}

/* ---- pieces ---- */

enum { PIECE_MAX = 70, LEVELS = 7 };

typedef struct pieces_case {
    int64_t numel, stride_numel;
    int64_t cut[4];  /* pieces pushed after each call, 0: no more calls */
    int64_t own_idx; /* of each call, -1: none */
} pieces_case;

typedef struct pieces_problem {
    const pieces_case *c;
    op_buffer pieces, levels, own;
} pieces_problem;

/* Calls over parts of the same pieces; the own one is taken out of its row and handed over. */
static tess_status call_pieces(void *ctx, tess_stream *s)
{
    const pieces_problem *p = ctx;
    const float *all = p->pieces.view.data;
    float *rows = p->own.view.data;
    int64_t first = 0;
    for (int i = 0; i < 4 && p->c->cut[i] > 0; i++) {
        const int64_t numel = p->c->numel, piece_numel = p->c->cut[i] - first;
        const bool has_own = p->c->own_idx >= 0 && p->c->own_idx < piece_numel;
        int64_t row = 0;
        for (int64_t k = 0; k < piece_numel; k++)
            if (!has_own || k != p->c->own_idx)
                memcpy(rows + row++ * p->c->stride_numel, all + (first + k) * numel,
                       (size_t)numel * sizeof(float));
        const tess_fold_pieces_args a = {.pieces = rows,
                                         .own =
                                             has_own ? all + (first + p->c->own_idx) * numel : NULL,
                                         .own_idx = p->c->own_idx,
                                         .piece_numel = piece_numel,
                                         .stride_numel = p->c->stride_numel,
                                         .levels = p->levels.view.data,
                                         .level_stride_numel = p->c->stride_numel,
                                         .level_numel = LEVELS,
                                         .first_idx = first,
                                         .numel = numel};
        TESS_TRY(tess_cpu_fold_pieces(&a, s));
        first = p->c->cut[i];
    }
    return TESS_OK;
}

/* Pairwise over [lo, lo + 2^l): the sum that level l must hold, to the bit. */
static float tree(const float *all, int64_t numel, int64_t i, int64_t lo, int l)
{
    if (l == 0)
        return all[lo * numel + i];
    const float older = tree(all, numel, i, lo, l - 1);
    return older + tree(all, numel, i, lo + ((int64_t)1 << (l - 1)), l - 1);
}

static void check_pieces(void *ctx)
{
    const pieces_problem *p = ctx;
    const float *all = p->pieces.view.data, *levels = p->levels.view.data;
    int64_t end = 0, lo = 0;
    for (int i = 0; i < 4; i++)
        end = TESS_MAX(end, p->c->cut[i]);
    for (int l = LEVELS - 1; l >= 0; l--) {
        if ((end >> l & 1) == 0)
            continue;
        for (int64_t i = 0; i < p->c->numel; i++) {
            const float want = tree(all, p->c->numel, i, lo, l);
            if (memcmp(&want, &levels[l * p->c->stride_numel + i], sizeof want) != 0)
                fail_msg("level %d element %d: %.9g, expected %.9g", l, (int)i,
                         (double)levels[l * p->c->stride_numel + i], (double)want);
        }
        lo += (int64_t)1 << l;
    }
}

/* Any cut into calls gives the sums of one tree. */
static void test_fold_pieces_is_one_tree(void **state)
{
    static const pieces_case cases[] = {
        {1, 1, {1}, -1},          {257, 300, {2}, 0},         {256, 256, {7}, 6},
        {5, 8, {3, 4, 9, 10}, 0}, {1030, 1030, {5, 10}, 2},   {3000, 3072, {64}, 63},
        {63, 64, {1, 2, 3}, -1},  {20001, 20001, {6, 13}, 3}, {100, 100, {31, 70}, 11},
        {0, 0, {4}, -1},
    };
    (void)state;
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        const pieces_case *c = &cases[i];
        pieces_problem p = {.c = c,
                            .pieces = buffer_random(TESS_F32, PIECE_MAX * c->numel, 57, 1.0),
                            .levels = buffer_create(TESS_F32, LEVELS * c->stride_numel, true),
                            .own = buffer_create(TESS_F32, PIECE_MAX * c->stride_numel, true)};
        for (int threads = 1; threads <= 3; threads++) {
            const op_run run = {
                .call = call_pieces, .ctx = &p, .outputs = {&p.levels}, .output_numel = 1};
            run_once(&run, threads);
            check_pieces(&p);
        }
        buffer_destroy(&p.pieces);
        buffer_destroy(&p.levels);
        buffer_destroy(&p.own);
    }
}

static tess_status call_norm(void *ctx, tess_stream *s)
{
    problem *p = ctx;
    memset(&p->acc, 0, sizeof p->acc);
    p->nonfinite_numel = 0;
    const tess_square_norm_args a = {p->a.view.data, p->a.view.numel, &p->acc, &p->nonfinite_numel};
    const tess_status st = tess_cpu_square_norm(&a, s);
    if (st == TESS_OK)
        memcpy(p->dst.view.data, &p->acc, sizeof p->acc);
    return st;
}

/* The rule of the header, bit for bit: ascending fp64 sums of blocks of 256, added exactly. */
static void expected_norm(const problem *p, tess_exact *acc, int64_t *nonfinite_numel)
{
    memset(acc, 0, sizeof *acc);
    *nonfinite_numel = 0;
    for (int64_t lo = 0; lo < p->a.view.numel; lo += 256) {
        double sum = 0.0;
        int64_t bad_numel = 0;
        for (int64_t i = lo; i < TESS_MIN(p->a.view.numel, lo + 256); i++) {
            sum += p->a.value[i] * p->a.value[i];
            bad_numel += isfinite(p->a.value[i]) ? 0 : 1;
        }
        *nonfinite_numel += bad_numel;
        if (bad_numel == 0)
            assert_true(tess_exact_add(acc, sum));
    }
}

static void check_norm(void *ctx)
{
    problem *p = ctx;
    tess_exact acc;
    int64_t nonfinite_numel = 0;
    expected_norm(p, &acc, &nonfinite_numel);
    assert_memory_equal(&acc, &p->acc, sizeof acc);
    assert_int_equal(nonfinite_numel, p->nonfinite_numel);
    if (nonfinite_numel == 0) {
        const double want = ref_square_norm(p->a.view.numel, p->a.value);
        assert_true(fabs(tess_exact_round(&p->acc) - want) <=
                    (double)p->a.view.numel * 0x1p-52 * want);
    }
}

static void test_square_norm_matches_rule_and_reference(void **state)
{
    (void)state;
    for (int i = 0; i < TESS_NELEM(sizes); i++)
        for (int with_bad = 0; with_bad < 2; with_bad++) {
            problem p = {.a = buffer_random(TESS_F32, sizes[i], 53, 1e-3),
                         .dst = buffer_create(TESS_I64, TESS_EXACT_LIMB_NUMEL, false)};
            if (with_bad != 0 && sizes[i] > 1) {
                buffer_set(&p.a, sizes[i] - 1, INFINITY);
                buffer_set(&p.a, sizes[i] / 2, NAN);
                buffer_set(&p.a, sizes[i] / 2 - 1, -INFINITY);
                buffer_read(&p.a);
            }
            const op_run run = {
                .call = call_norm, .ctx = &p, .outputs = {&p.dst}, .output_numel = 1};
            run_everywhere(&run, check_norm);
            buffer_destroy(&p.a);
            buffer_destroy(&p.dst);
        }
}

/* Ascending, one rounding an addition: 2^54 swallows a 1 that comes after it, not a 4 before. */
static void test_sum_adds_in_ascending_order(void **state)
{
    (void)state;
    const double x[] = {2.0, 2.0, 0x1p54, 1.0, 1.0};
    double out = NAN;
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    assert_int_equal(tess_cpu_sum(&(tess_sum_args){x, 5, &out}, &s), TESS_OK);
    assert_true(out == 0x1p54 + 4.0);
    assert_int_equal(tess_cpu_sum(&(tess_sum_args){x, 0, &out}, &s), TESS_OK);
    assert_true(out == 0.0);
}

static void test_exact_add_counts_what_is_not_finite(void **state)
{
    (void)state;
    const double x[] = {0x1p-1000, 1.0, INFINITY, -1.0, NAN};
    tess_exact acc = {{0}};
    int64_t nonfinite_numel = 0;
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    for (int i = 0; i < TESS_NELEM(x); i++)
        assert_int_equal(
            tess_cpu_exact_add(&(tess_exact_add_args){&x[i], &acc, &nonfinite_numel}, &s), TESS_OK);
    assert_int_equal(nonfinite_numel, 2);
    assert_true(tess_exact_round(&acc) == 0x1p-1000);
}

/* Terms ascending, in fp64: the first two cancel before the third is added. */
static void test_mix_adds_terms_in_order(void **state)
{
    (void)state;
    double x[] = {1e300, 3.0, -1e300, 5.0, 1.0, 7.0};
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    tess_mix_args a = {
        .x = x, .weight = {1.0, 1.0, 0.5}, .term_numel = 3, .row_numel = 2, .out = x};
    assert_int_equal(tess_cpu_mix(&a, &s), TESS_OK);
    assert_true(x[0] == 0.5 && x[1] == 11.5);
    a.term_numel = TESS_MIX_TERM_MAX + 1;
    assert_refused(tess_cpu_mix(&a, &s), TESS_E_RANGE, "66 terms");
}

static void test_reduce_wrong_arguments_are_refused(void **state)
{
    (void)state;
    float x = 0.0f;
    const tess_fold_args fold = {&x, NULL, &x, 1};
    assert_refused(tess_fold_check(&fold), TESS_E_ARG, "fold: b is missing");
    tess_fold_pieces_args pieces = {.pieces = &x,
                                    .piece_numel = 3,
                                    .stride_numel = 1,
                                    .levels = &x,
                                    .level_stride_numel = 1,
                                    .level_numel = 2,
                                    .first_idx = 1,
                                    .numel = 1};
    assert_refused(tess_fold_pieces_check(&pieces), TESS_E_RANGE,
                   "fold_pieces: 2 levels do not hold 4 pieces");
    pieces.level_numel = 3;
    pieces.own = &x;
    pieces.own_idx = 3;
    assert_refused(tess_fold_pieces_check(&pieces), TESS_E_RANGE,
                   "fold_pieces: own piece is number 3 of 3");
    pieces.own_idx = 0;
    pieces.numel = 2;
    assert_refused(tess_fold_pieces_check(&pieces), TESS_E_ARG,
                   "fold_pieces: rows of 2 elements, 1 from one to the next");
    const tess_square_norm_args norm = {&x, -1, NULL, NULL};
    assert_refused(tess_square_norm_check(&norm), TESS_E_ARG, "numel is -1, expected at least 0");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fold_matches_reference),
        cmocka_unit_test(test_fold_pieces_is_one_tree),
        cmocka_unit_test(test_square_norm_matches_rule_and_reference),
        cmocka_unit_test(test_sum_adds_in_ascending_order),
        cmocka_unit_test(test_exact_add_counts_what_is_not_finite),
        cmocka_unit_test(test_mix_adds_terms_in_order),
        cmocka_unit_test(test_reduce_wrong_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
