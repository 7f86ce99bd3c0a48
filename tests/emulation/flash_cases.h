/**
 * Attention that every device has to get right by own kernels: head dims, documents, windows,
 * segments, layouts. HAS_GAPS stands before this header is included: whether the program reaches
 * entries that take rows with gaps in every operand; those of the table know gaps of `out` alone.
 */
#pragma once

#include "tests/emulation/flash_problem.h"

static void check_case(flash_case c)
{
    problem p = problem_create(c);
    check_problem(&p);
    problem_destroy(&p);
}

static void check_cases(const flash_case *c, int numel)
{
    for (int i = 0; i < numel; i++)
        if (HAS_GAPS || c[i].gap == 0)
            check_case(c[i]);
}

static void test_flash_bf16_heads_and_dims_match_twin(void **state)
{
    (void)state;
    static const flash_case cases[] = {
        {TESS_BF16, 1, 1, 1, 64, 0, 1, 0, 0, 0},    {TESS_BF16, 7, 2, 1, 128, 0, 1, 0, 0, 0},
        {TESS_BF16, 64, 6, 2, 16, 0, 1, 0, 0, 0},   {TESS_BF16, 65, 6, 3, 96, 0, 1, 0, 0, 0},
        {TESS_BF16, 200, 2, 1, 128, 0, 1, 0, 0, 0}, {TESS_BF16, 333, 2, 2, 64, 0, 1, 0, 0, 0},
        {TESS_BF16, 130, 1, 1, 256, 0, 2, 0, 0, 0}, {TESS_BF16, 70, 1, 1, 40, 0, 1, 0, 0, 0},
        {TESS_BF16, 129, 1, 1, 200, 0, 1, 0, 0, 0},
    };
    check_cases(cases, TESS_NELEM(cases));
}

static void test_flash_bf16_documents_and_windows_match_twin(void **state)
{
    (void)state;
    static const flash_case cases[] = {
        {TESS_BF16, 333, 1, 1, 64, 0, 5, 0, 0, 0},  {TESS_BF16, 200, 1, 1, 96, 0, 0, 0, 0, 0},
        {TESS_BF16, 333, 1, 1, 16, 70, 1, 0, 0, 0}, {TESS_BF16, 200, 2, 1, 64, 17, 3, 0, 0, 0},
        {TESS_BF16, 200, 1, 1, 128, 1, 1, 0, 0, 0}, {TESS_BF16, 333, 1, 1, 128, 100, 4, 0, 0, 0},
    };
    check_cases(cases, TESS_NELEM(cases));
}

/* Segments around the sizes of tiles and blocks, one and more of them. */
static void test_flash_segments_match_twin(void **state)
{
    (void)state;
    static const flash_case cases[] = {
        {TESS_BF16, 1, 1, 1, 64, 0, 1, 0, 0, 1},      {TESS_BF16, 21, 2, 1, 128, 0, 1, 0, 0, 7},
        {TESS_BF16, 128, 2, 2, 128, 0, 1, 0, 0, 128}, {TESS_BF16, 130, 2, 1, 64, 0, 1, 0, 0, 65},
        {TESS_BF16, 387, 1, 1, 32, 0, 1, 0, 0, 129},  {TESS_BF16, 200, 1, 1, 96, 0, 1, 8, 8, 100},
        {TESS_BF16, 140, 1, 1, 256, 0, 1, 0, 0, 70},  {TESS_BF16, 90, 2, 2, 20, 0, 1, 3, 0, 45},
        {TESS_F32, 1, 1, 1, 7, 0, 1, 0, 0, 1},        {TESS_F32, 99, 4, 2, 24, 0, 1, 0, 0, 33},
        {TESS_F32, 140, 1, 1, 128, 0, 1, 5, 1, 70},
    };
    check_cases(cases, TESS_NELEM(cases));
}

/* The second of two segments has the bits that it has alone. */
static void check_alone(tess_dtype dt)
{
    enum { SEGMENT = 75, HEADS = 2, DIM = 32, ROW = HEADS * DIM };
    static const int inputs[] = {Q, K, V, D_OUT}, outputs[] = {OUT, D_Q, D_K, D_V};
    problem both =
        problem_create((flash_case){dt, 2 * SEGMENT, HEADS, HEADS, DIM, 0, 1, 0, 0, SEGMENT});
    problem one = problem_create((flash_case){dt, SEGMENT, HEADS, HEADS, DIM, 0, 1, 0, 0, SEGMENT});
    const size_t nbytes = (size_t)SEGMENT * ROW * tess_dtype_block_nbytes(dt);
    for (int i = 0; i < TESS_NELEM(inputs); i++) {
        const char *second = (const char *)both.x[inputs[i]].host.view.data + nbytes;
        memcpy(one.x[inputs[i]].host.view.data, second, nbytes);
    }
    problem *const problems[] = {&both, &one};
    for (int i = 0; i < TESS_NELEM(problems); i++) {
        problem *p = problems[i];
        twin_run(p, false); /* what the backward starts from */
        set_order(TESS_EMULATION_FORWARD);
        device_create(p);
        must(device_forward(p));
        take_results(p, forward_outputs, 2, TESS_EMULATION_FORWARD);
        must(device_backward(p));
        take_results(p, backward_outputs, 3, TESS_EMULATION_FORWARD);
        tess_emulation_release_all();
    }
    for (int i = 0; i < TESS_NELEM(outputs); i++)
        assert_memory_equal(both.x[outputs[i]].result + nbytes, one.x[outputs[i]].result, nbytes);
    for (int h = 0; h < HEADS; h++)
        assert_memory_equal((float *)(void *)both.x[LSE].result + (2 * h + 1) * SEGMENT,
                            (float *)(void *)one.x[LSE].result + h * SEGMENT,
                            SEGMENT * sizeof(float));
    problem_destroy(&both);
    problem_destroy(&one);
}

static void test_flash_segments_are_alone(void **state)
{
    (void)state;
    check_alone(TESS_BF16);
    check_alone(TESS_F32);
}

static void test_flash_f32_matches_twin(void **state)
{
    (void)state;
    static const flash_case cases[] = {
        {TESS_F32, 1, 1, 1, 64, 0, 1, 0, 0, 0},    {TESS_F32, 7, 2, 1, 7, 0, 1, 0, 0, 0},
        {TESS_F32, 65, 6, 3, 96, 0, 2, 0, 0, 0},   {TESS_F32, 200, 2, 1, 128, 33, 3, 0, 0, 0},
        {TESS_F32, 333, 1, 1, 16, 0, 1, 0, 0, 0},  {TESS_F32, 64, 1, 1, 256, 0, 0, 0, 0, 0},
        {TESS_F32, 100, 2, 1, 64, 0, 1, 24, 3, 0},
    };
    check_cases(cases, TESS_NELEM(cases));
}

/* Rows with gaps keep the tensor cores; odd gaps, odd addresses and odd dims take the plain path.
 */
static void test_flash_bf16_layouts_match_twin(void **state)
{
    (void)state;
    static const flash_case cases[] = {
        {TESS_BF16, 150, 2, 1, 64, 0, 2, 8, 0, 0}, {TESS_BF16, 70, 2, 1, 128, 0, 1, 72, 8, 0},
        {TESS_BF16, 70, 2, 1, 64, 0, 2, 3, 0, 0},  {TESS_BF16, 70, 2, 1, 32, 0, 1, 0, 1, 0},
        {TESS_BF16, 70, 3, 1, 20, 0, 1, 0, 0, 0},
    };
    check_cases(cases, TESS_NELEM(cases));
}

/* The one gap that the arguments of attention themselves know. */
static void test_flash_out_stride_of_arguments_is_kept(void **state)
{
    (void)state;
    problem p = problem_create((flash_case){TESS_BF16, 40, 2, 1, 32, 0, 1, 0, 0, 0});
    out_gap_set(&p, 8);
    check_problem(&p);
    problem_destroy(&p);
}

/** All of them, X(name). */
#define FLASH_CASE_LIST(X)                                                                         \
    X(test_flash_bf16_heads_and_dims_match_twin)                                                   \
    X(test_flash_bf16_documents_and_windows_match_twin)                                            \
    X(test_flash_segments_match_twin)                                                              \
    X(test_flash_segments_are_alone)                                                               \
    X(test_flash_f32_matches_twin)                                                                 \
    X(test_flash_bf16_layouts_match_twin)                                                          \
    X(test_flash_out_stride_of_arguments_is_kept)
