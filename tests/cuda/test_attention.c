/*
 * Attention on a device as libraries take it, on streams that were prepared for a shape, within the
 * bounds of own kernels (cuda.test_flash). Who took a call stands in
 * prepare's note; with TESS_TEST_CUDNN=1 a note that does not name cuDNN where it should is an
 * error (on a machine without it own kernels serve, and the cases run by them).
 */
#include <stdlib.h>
#include <string.h>

#include "tests/cuda/attention_on_device.h"

enum { DOCUMENT_MAX = 8, LIBRARY_NBYTES = 256 << 20 };

/* ---- libraries ---- */

/* A stream that libraries are opened for, and what they said. */
typedef struct prepared {
    tess_stream *stream;
    char note[TESS_CUDA_NOTE_NBYTES];
    bool has_forward, has_backward; /* by cuDNN */
} prepared;

static tess_cuda_work work_for(const problem *p)
{
    tess_attention_shape shape = shape_of(p);
    shape.document_numel = 0; /* as sessions prepare: it is not known yet */
    return (tess_cuda_work){.attention = {shape},
                            .attention_numel = 1,
                            .document_max = p->document_numel == 1 ? 1 : DOCUMENT_MAX,
                            .is_deterministic = true,
                            .attention_nbytes = LIBRARY_NBYTES};
}

static prepared prepare(const tess_cuda_work *work)
{
    const tess_cuda_door *door = on_device_door();
    prepared out = {.note = ""};
    must(tess_device_stream_create(door->device, "compute", false, &out.stream));
    must(door->plugin->prepare(door->device, out.stream, work, out.note));
    out.has_forward = strstr(out.note, "forward cuDNN") != NULL;
    out.has_backward = strstr(out.note, "backward cuDNN") != NULL;
    print_message("%" PRId64 " tokens, %" PRId64 " of %" PRId64 " heads of %" PRId64 ": %s\n",
                  work->attention[0].token_numel, work->attention[0].kv_head_numel,
                  work->attention[0].head_numel, work->attention[0].dim, out.note);
    assert_true(strlen(out.note) > strlen("own kernels: ")); /* who, and why */
    stream = out.stream;
    return out;
}

static void prepared_end(prepared *x)
{
    tess_device_stream_destroy(on_device_door()->device, &x->stream);
    stream = own;
}

/* cuDNN is there, as whoever starts the test says. */
static void expect_library(const prepared *x, bool has_forward, bool has_backward)
{
    const char *text = getenv("TESS_TEST_CUDNN");
    if (text != NULL && strcmp(text, "1") == 0 &&
        (x->has_forward != has_forward || x->has_backward != has_backward))
        fail_msg("cuDNN should take forward: %s, backward: %s; the note is '%s'",
                 has_forward ? "yes" : "no", has_backward ? "yes" : "no", x->note);
}

/* Results of a forward and a backward on the stream of the calls, as bytes. */
static void run_keep(problem *p, uint8_t *keep[5])
{
    set_order(TESS_EMULATION_FORWARD);
    device_create(p);
    must(device_forward(p));
    (void)is_same_output(p, 0, 2, keep);
    must(device_backward(p));
    (void)is_same_output(p, 2, 5, keep);
}

static void keep_free(uint8_t *keep[5])
{
    for (int i = 0; i < 5; i++) {
        tess_free(keep[i]);
        keep[i] = NULL;
    }
}

/* Whether the stream of the calls gives the bits that are kept. */
static bool is_kept(problem *p, uint8_t *keep[5]) { return is_same_run(p, keep); }

static void check_prepared(flash_case c, int64_t out_gap, bool is_deterministic)
{
    problem p = problem_create(c);
    if (out_gap > 0)
        out_gap_set(&p, out_gap);
    tess_cuda_work work = work_for(&p);
    work.is_deterministic = is_deterministic;
    prepared x = prepare(&work);
    p.varies = x.has_backward && !is_deterministic;
    check_problem(&p);
    expect_library(&x, true, true);
    prepared_end(&x);
    problem_destroy(&p);
}

/* One document: causal, grouped heads, head dims, lengths that fill no tile. */
static void test_library_takes_one_document(void **state)
{
    (void)state;
    static const flash_case cases[] = {
        {TESS_BF16, 256, 4, 2, 64, 0, 1, 0, 0, 0},
        {TESS_BF16, 333, 6, 2, 128, 0, 1, 0, 0, 0},
        {TESS_BF16, 130, 2, 2, 128, 0, 1, 0, 0, 0},
    };
    for (int i = 0; i < TESS_NELEM(cases); i++)
        for (int is_deterministic = 0; is_deterministic < 2; is_deterministic++)
            check_prepared(cases[i], 0, is_deterministic != 0);
}

/* Packs: documents of unequal lengths, as many as were planned for and fewer. */
static void test_library_takes_packs(void **state)
{
    (void)state;
    static const flash_case cases[] = {
        {TESS_BF16, 333, 4, 2, 64, 0, 5, 0, 0, 0},
        {TESS_BF16, 512, 4, 1, 128, 0, DOCUMENT_MAX, 0, 0, 0},
        {TESS_BF16, 200, 2, 2, 128, 0, 2, 0, 0, 0},
    };
    for (int i = 0; i < TESS_NELEM(cases); i++)
        for (int is_deterministic = 0; is_deterministic < 2; is_deterministic++)
            check_prepared(cases[i], 0, is_deterministic != 0);
}

/* A batch of segments without a mask; rows of the result apart. */
static void test_library_takes_segments_and_gaps(void **state)
{
    (void)state;
    static const flash_case cases[] = {
        {TESS_BF16, 256, 4, 4, 128, 0, 1, 0, 0, 128},
        {TESS_BF16, 387, 2, 2, 64, 0, 1, 0, 0, 129},
    };
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        check_prepared(cases[i], 0, true);
        check_prepared(cases[i], 24, true);
    }
    check_prepared((flash_case){TESS_BF16, 192, 4, 2, 64, 0, 1, 0, 0, 0}, 8, true);
    check_prepared((flash_case){TESS_BF16, 256, 4, 2, 64, 0, 3, 0, 0, 0}, 8, true);
}

/* What a plan does not cover has the bits of own kernels: a pack of more documents than were
 * planned for, a window, f32, a head dim that is no multiple of 8. */
static void test_own_kernels_take_the_rest(void **state)
{
    (void)state;
    static const flash_case cases[] = {
        {TESS_BF16, 200, 2, 1, 64, 0, 0, 0, 0, 0},
        {TESS_BF16, 200, 2, 1, 64, 0, DOCUMENT_MAX + 1, 0, 0, 0},
        {TESS_BF16, 200, 2, 1, 64, 33, 1, 0, 0, 0},
        {TESS_F32, 100, 2, 1, 64, 0, 1, 0, 0, 0},
        {TESS_BF16, 90, 2, 2, 20, 0, 1, 0, 0, 0},
    };
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        problem p = problem_create(cases[i]);
        uint8_t *keep[5] = {NULL};
        twin_run(&p, false);
        run_keep(&p, keep);
        const tess_cuda_work work = work_for(&p);
        prepared x = prepare(&work);
        if (!is_kept(&p, keep))
            fail_msg("case %d: a prepared stream has other bits than own kernels; its note is '%s'",
                     i, x.note);
        prepared_end(&x);
        keep_free(keep);
        tess_emulation_release_all();
        problem_destroy(&p);
    }
}

/* As much memory as the deterministic form of all heads asks for, and less and less of it: groups
 * of heads one after another, in the end own kernels. All groups have one result. */
static void test_groups_of_heads_have_the_bits_of_all(void **state)
{
    (void)state;
    problem p = problem_create((flash_case){TESS_BF16, 1024, 8, 4, 64, 0, 1, 0, 0, 0});
    const size_t scores_nbytes = 2u * 8u * 1024u * 1024u; /* of all heads, in bf16 */
    uint8_t *keep[5] = {NULL};
    int group_numel = 0;
    twin_run(&p, false);
    tess_cuda_work work = work_for(&p);
    for (size_t nbytes = 8 * scores_nbytes; nbytes >= scores_nbytes / 8; nbytes /= 2) {
        work.attention_nbytes = nbytes;
        prepared x = prepare(&work);
        if (x.has_backward && strstr(x.note, " 4 of 4 key-value heads") == NULL)
            group_numel++;
        if (x.has_forward && x.has_backward && keep[0] == NULL)
            run_keep(&p, keep);
        if (x.has_forward && x.has_backward && !is_kept(&p, keep))
            fail_msg("with %zu bytes results are others: %s", nbytes, x.note);
        prepared_end(&x);
    }
    if (keep[0] == NULL)
        print_message("skipped: cuDNN's deterministic backward is not there\n");
    else
        print_message("%d sizes of memory asked for groups\n", group_numel);
    const bool is_skipped = keep[0] == NULL;
    keep_free(keep);
    tess_emulation_release_all();
    problem_destroy(&p);
    if (is_skipped)
        skip();
}

/* Opened before the first step, libraries take what prepare_nbytes says and what their code needs,
 * for which programs keep a margin (session_device_limit). Other programs may come in between. */
static void test_libraries_take_what_is_planned(void **state)
{
    enum { TRY_NUMEL = 3 };
    static const size_t MARGIN_NBYTES = (size_t)512 << 20;
    (void)state;
    problem p = problem_create((flash_case){TESS_BF16, 256, 4, 2, 64, 0, 3, 0, 0, 0});
    tess_cuda_work work = work_for(&p);
    work.slot_nbytes = 1 << 20;
    const size_t planned_nbytes = on_device_door()->plugin->prepare_nbytes(&work);
    size_t taken_nbytes = SIZE_MAX;
    for (int i = 0; i < TRY_NUMEL && taken_nbytes > planned_nbytes + MARGIN_NBYTES; i++) {
        const size_t before_nbytes = on_device_taken_nbytes();
        prepared x = prepare(&work);
        const size_t after_nbytes = on_device_taken_nbytes();
        taken_nbytes = after_nbytes - TESS_MIN(before_nbytes, after_nbytes);
        prepared_end(&x);
    }
    print_message("libraries took %zu MiB, planned are %zu\n", taken_nbytes >> 20,
                  planned_nbytes >> 20);
    if (taken_nbytes > planned_nbytes + MARGIN_NBYTES)
        fail_msg("libraries took %zu bytes, planned are %zu", taken_nbytes, planned_nbytes);
    problem_destroy(&p);
}

/* A forward and a backward of one problem. */
typedef struct step {
    tess_attention_args forward;
    tess_attention_backward_args backward;
} step;

enum { STEPS = 9 };

/* The program refuses memory while it is frozen. */
static void run_steps(void *arg)
{
    const step *x = arg;
    tess_status st = TESS_OK;
    tess_alloc_freeze();
    for (int i = 0; i < STEPS && st == TESS_OK; i++) {
        st = kernels->attention_forward(&x->forward, stream);
        if (st == TESS_OK)
            st = kernels->attention_backward(&x->backward, stream);
    }
    tess_alloc_thaw();
    must(st);
    must(finish("attention"));
}

static void test_steps_take_no_memory(void **state)
{
    (void)state;
    problem p = problem_create((flash_case){TESS_BF16, 256, 4, 2, 64, 0, 3, 0, 0, 0});
    const tess_cuda_work work = work_for(&p);
    prepared x = prepare(&work);
    device_create(&p);
    step s = {.forward = forward_args(&p, true, work_take(&p)),
              .backward = backward_args(&p, true, work_take(&p))};
    run_steps(&s); /* code is loaded when it first runs */
    const int64_t taken = on_device_taken_by(run_steps, &s);
    if (taken != 0)
        fail_msg("%d steps took %" PRId64 " bytes of the device", STEPS, taken);
    prepared_end(&x);
    tess_emulation_release_all();
    problem_destroy(&p);
}

/* A second preparation of one stream is a mistake of the caller. */
static void test_prepared_twice_is_refused(void **state)
{
    char note[TESS_CUDA_NOTE_NBYTES];
    (void)state;
    problem p = problem_create((flash_case){TESS_BF16, 64, 2, 2, 64, 0, 1, 0, 0, 0});
    const tess_cuda_work work = work_for(&p);
    prepared x = prepare(&work);
    const tess_cuda_door *door = on_device_door();
    assert_int_equal(door->plugin->prepare(door->device, x.stream, &work, note), TESS_E_STATE);
    assert_non_null(strstr(tess_error_message(), "has its libraries already"));
    tess_error_clear();
    prepared_end(&x);
    problem_destroy(&p);
}

/* A library that stays open: to load it again for every stream takes long. */
static int group_setup(void **state)
{
    const tess_cuda_work work = {.attention = {{.dt = TESS_F32,
                                                .token_numel = 1,
                                                .head_numel = 1,
                                                .kv_head_numel = 1,
                                                .dim = 8,
                                                .longest_numel = 1}},
                                 .attention_numel = 1,
                                 .document_max = 1};
    if (attention_setup(state) != 0)
        return -1;
    (void)prepare(&work);
    stream = own;
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_library_takes_one_document),
        cmocka_unit_test(test_library_takes_packs),
        cmocka_unit_test(test_library_takes_segments_and_gaps),
        cmocka_unit_test(test_own_kernels_take_the_rest),
        cmocka_unit_test(test_groups_of_heads_have_the_bits_of_all),
        cmocka_unit_test(test_libraries_take_what_is_planned),
        cmocka_unit_test(test_steps_take_no_memory),
        cmocka_unit_test(test_prepared_twice_is_refused),
    };
    return cmocka_run_group_tests(tests, group_setup, NULL);
}
