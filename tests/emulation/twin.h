/**
 * An op on emulated device memory, or on a device's, against its C twin, bit for bit, in several
 * orders of threads; and with each barrier of its kernels taken out in turn.
 */
#pragma once

#include <stdio.h>

#include "kernels/cuda/cuda_priv.h"
#include "tests/emulation/barriers.h"
#include "tests/emulation/emulation.h"
#include "tests/kernels/op_support.h"

enum { TWIN_OPERAND_MAX = 12, TWIN_BARRIER_MAX = 64, TWIN_LINE_NBYTES = 256 };

typedef struct twin_operand {
    const char *name;
    tess_dtype dt;
    int64_t numel;
    size_t nbytes, lead_nbytes; /* `lead`: how far it starts behind an aligned address */
    void *initial, *want, *got;
    void *data; /* of the call under way */
} twin_operand;

/** One call: operands and the numbers of its shape. */
typedef struct twin {
    twin_operand x[TWIN_OPERAND_MAX];
    int operand_numel;
    int64_t shift; /* elements that the operands made next start behind an aligned address */
    bool is_cuda;
    bool has_nan_bits; /* the op defines which NaN it gives */
    const void *ctx;
} twin;

/** The twins of one op and its shapes. */
typedef struct twin_op {
    const char *name;
    void (*make)(twin *t, int case_idx); /* operands and ctx */
    tess_status (*call)(twin *t, tess_stream *s);
    int case_numel;
    int large_numel; /* of them the last, which fill a device and are too much for the emulation */
} twin_op;

typedef struct twin_suite {
    const twin_op *ops;
    int op_numel;
    const char *sources[8]; /* of which every barrier has to be passed, NULL after the last */
} twin_suite;

static inline twin_operand *twin_add(twin *t, const char *name, tess_dtype dt, int64_t numel)
{
    if (t->operand_numel == TWIN_OPERAND_MAX)
        fail_msg("%s: too many operands", name);
    twin_operand *x = &t->x[t->operand_numel++];
    const size_t elem_nbytes = tess_dtype_block_nbytes(dt);
    x->name = name;
    x->dt = dt;
    x->numel = numel;
    x->nbytes = (size_t)numel * elem_nbytes;
    x->lead_nbytes = (size_t)t->shift * elem_nbytes;
    x->initial = must_alloc(x->nbytes);
    x->want = must_alloc(x->nbytes);
    x->got = must_alloc(x->nbytes);
    return x;
}

/** Normal values times `scale`; many of them repeat after a prime number. */
static inline twin_operand *twin_random(twin *t, const char *name, tess_dtype dt, int64_t numel,
                                        double scale)
{
    enum { PERIOD = 262139 };
    twin_operand *x = twin_add(t, name, dt, numel);
    const size_t elem_nbytes = tess_dtype_block_nbytes(dt);
    const tess_rng rng = tess_rng_make((uint64_t)t->operand_numel, TESS_RNG_TEST, 0, 7);
    for (int64_t i = 0; i < TESS_MIN(numel, (int64_t)PERIOD); i++) {
        const double v = tess_rng_normal(&rng, (uint64_t)i) * scale;
        if (dt == TESS_BF16)
            ((uint16_t *)x->initial)[i] = tess_bf16_from_f32((float)v);
        else if (dt == TESS_F32)
            ((float *)x->initial)[i] = (float)v;
        else
            ((double *)x->initial)[i] = v;
    }
    for (int64_t i = PERIOD; i < numel; i += PERIOD)
        memcpy((char *)x->initial + (size_t)i * elem_nbytes, x->initial,
               (size_t)TESS_MIN(numel - i, (int64_t)PERIOD) * elem_nbytes);
    return x;
}

/** Chunks of eight with small values only, chunks with zeros, with values too small or large for an
 * exponential or a quotient, and all others. */
static inline void twin_extremes(twin_operand *x)
{
    static const float extremes[] = {0.0f,    -0.0f,    0x1p-61f, -0x1p-100f, 40.5f,
                                     -40.25f, 88.0f,    -89.0f,   200.0f,     INFINITY,
                                     NAN,     0x1p-60f, 40.0f,    -40.0f};
    for (int64_t i = 0; i < x->numel; i++) {
        float v = x->dt == TESS_BF16 ? tess_bf16_to_f32(((uint16_t *)x->initial)[i])
                                     : ((float *)x->initial)[i];
        if (i / 8 % 3 != 0)
            v = v / 32.0f;
        if (i % 43 == 7)
            v = extremes[i / 43 % TESS_NELEM(extremes)];
        if (x->dt == TESS_BF16)
            ((uint16_t *)x->initial)[i] = tess_bf16_from_f32(v);
        else
            ((float *)x->initial)[i] = v;
    }
}

/** Output that starts as NaN. */
static inline twin_operand *twin_output(twin *t, const char *name, tess_dtype dt, int64_t numel)
{
    twin_operand *x = twin_add(t, name, dt, numel);
    memset(x->initial, 0xff, x->nbytes);
    return x;
}

/** Integers in [0, bound). */
static inline twin_operand *twin_index(twin *t, const char *name, int64_t numel, int64_t bound)
{
    twin_operand *x = twin_add(t, name, TESS_I32, numel);
    const tess_rng rng = tess_rng_make(99, TESS_RNG_TEST, 0, 0);
    for (int64_t i = 0; i < numel; i++)
        ((int32_t *)x->initial)[i] = (int32_t)tess_rng_below(&rng, (uint64_t)i, (uint64_t)bound);
    return x;
}

static inline tess_view twin_view(const twin *t, int i)
{
    const twin_operand *x = &t->x[i];
    const tess_view v = {x->data, x->numel, x->dt, t->is_cuda ? TESS_DEVICE : TESS_HOST};
    return v;
}

/** Bytes that a call has beside its operands and nobody compares. */
static inline tess_view twin_room(const twin *t, size_t nbytes)
{
    void *data = NULL;
    if (t->is_cuda)
        assert_int_equal(tess_emulation_alloc("room", nbytes, &data), TESS_OK);
    else
        data = must_alloc(nbytes);
    return (tess_view){data, (int64_t)nbytes, TESS_U8_OPAQUE, t->is_cuda ? TESS_DEVICE : TESS_HOST};
}

/** The host's; that of a device goes with all of its memory. */
static inline void twin_room_free(tess_view room)
{
    if (room.space == TESS_HOST)
        tess_free(room.data);
}

static inline void twin_destroy(twin *t)
{
    for (int i = 0; i < t->operand_numel; i++) {
        tess_free(t->x[i].initial);
        tess_free(t->x[i].want);
        tess_free(t->x[i].got);
    }
}

static inline twin twin_make(const twin_op *op, int case_idx)
{
    twin t = {0};
    op->make(&t, case_idx);
    return t;
}

/** What the C twin makes of the initial contents. */
static inline void twin_expect(twin *t, const twin_op *op, int case_idx)
{
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    t->is_cuda = false;
    for (int i = 0; i < t->operand_numel; i++) {
        memcpy(t->x[i].want, t->x[i].initial, t->x[i].nbytes);
        t->x[i].data = t->x[i].want;
    }
    tess_error_clear();
    if (op->call(t, &s) != TESS_OK)
        fail_msg("%s, case %d: the C twin refused: %s", op->name, case_idx, tess_error_message());
}

static inline bool is_nan_at(const void *data, tess_dtype dt, int64_t i)
{
    if (dt == TESS_BF16)
        return (((const uint16_t *)data)[i] & 0x7fff) > 0x7f80;
    if (dt == TESS_F32)
        return isnan(((const float *)data)[i]);
    return dt == TESS_F64 && isnan(((const double *)data)[i]);
}

/** First difference in words, or nothing in `text`. */
static inline void twin_compare(const twin *t, char text[TWIN_LINE_NBYTES])
{
    text[0] = '\0';
    for (int i = 0; i < t->operand_numel && text[0] == '\0'; i++) {
        const twin_operand *x = &t->x[i];
        const size_t elem_nbytes = tess_dtype_block_nbytes(x->dt);
        if (memcmp(x->want, x->got, x->nbytes) == 0)
            continue;
        for (int64_t k = 0; k < x->numel && text[0] == '\0'; k++) {
            const size_t at = (size_t)k * elem_nbytes;
            if (memcmp((char *)x->want + at, (char *)x->got + at, elem_nbytes) == 0)
                continue;
            if (!t->has_nan_bits && is_nan_at(x->want, x->dt, k) && is_nan_at(x->got, x->dt, k))
                continue;
            uint64_t want = 0, got = 0;
            memcpy(&want, (char *)x->want + at, elem_nbytes);
            memcpy(&got, (char *)x->got + at, elem_nbytes);
            snprintf(text, TWIN_LINE_NBYTES,
                     "%s[%" PRId64 "] is %" PRIx64 ", the twin has %" PRIx64, x->name, k, got,
                     want);
        }
    }
}

/** One run of the kernels; `text` says what is wrong with it, or nothing. */
static inline void twin_run(twin *t, const twin_op *op, const tess_emulation_settings *settings,
                            char text[TWIN_LINE_NBYTES])
{
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    tess_emulation_set(settings);
    t->is_cuda = true;
    for (int i = 0; i < t->operand_numel; i++) {
        twin_operand *x = &t->x[i];
        void *base = NULL;
        assert_int_equal(tess_emulation_alloc(x->name, x->lead_nbytes + x->nbytes, &base), TESS_OK);
        x->data = (char *)base + x->lead_nbytes;
        assert_int_equal(tess_emulation_write(x->data, x->initial, x->nbytes), TESS_OK);
    }
    tess_error_clear();
    if (op->call(t, &s) != TESS_OK) {
        snprintf(text, TWIN_LINE_NBYTES, "%s", tess_error_message());
    } else {
        for (int i = 0; i < t->operand_numel; i++)
            assert_int_equal(tess_emulation_read(t->x[i].got, t->x[i].data, t->x[i].nbytes),
                             TESS_OK);
        twin_compare(t, text);
    }
    tess_error_clear();
    tess_emulation_release_all();
}

/* Every other one on a device with as little shared memory as sm_86 and sm_89 have. */
enum { TWIN_SHARED_LEAST = 99 << 10 };
static const tess_emulation_settings twin_orders[] = {
    {TESS_EMULATION_FORWARD, 0, 0, 0, -1}, {TESS_EMULATION_REVERSED, 0, 2, TWIN_SHARED_LEAST, -1},
    {TESS_EMULATION_SEEDED, 1, 3, 0, -1},  {TESS_EMULATION_SEEDED, 2, 1, TWIN_SHARED_LEAST, -1},
    {TESS_EMULATION_SEEDED, 3, 0, 0, -1},  {TESS_EMULATION_SEEDED, 4, 2, TWIN_SHARED_LEAST, -1},
};

/** Orders a case runs in: a device has its own, so twice shows whether they matter. */
static inline int twin_order_numel(int emulated)
{
    return tess_emulation_is_device() ? 2 : emulated;
}

/** Cases [from, end) in the first four orders. */
static inline void twin_check_cases(const twin_op *op, int from, int end)
{
    for (int c = from; c < end; c++) {
        twin t = twin_make(op, c);
        twin_expect(&t, op, c);
        for (int o = 0; o < twin_order_numel(4); o++) {
            char text[TWIN_LINE_NBYTES];
            twin_run(&t, op, &twin_orders[o], text);
            if (text[0] != '\0')
                fail_msg("%s, case %d, order %d: %s", op->name, c, o, text);
        }
        twin_destroy(&t);
    }
}

/** Cases for emulation and device. */
static inline int twin_small_numel(const twin_op *op) { return op->case_numel - op->large_numel; }

/** Cases that run here: sanitizers take too long for the large ones. */
static inline int twin_case_numel(const twin_op *op)
{
#if defined(__SANITIZE_ADDRESS__)
    return twin_small_numel(op);
#else
    return tess_emulation_is_device() ? op->case_numel : twin_small_numel(op);
#endif
}

/** The test is one of the emulation alone. */
static inline void twin_skip_on_device(const char *why)
{
    if (!tess_emulation_is_device())
        return;
    print_message("skipped on a device: %s\n", why);
    skip();
}

/** Whether taking out `barrier` shows in this case. */
static inline bool twin_notices(const twin_op *op, int case_idx, int barrier)
{
    bool is_noticed = false;
    twin t = twin_make(op, case_idx);
    twin_expect(&t, op, case_idx);
    for (int o = 0; o < TESS_NELEM(twin_orders) && !is_noticed; o++) {
        char text[TWIN_LINE_NBYTES];
        tess_emulation_settings settings = twin_orders[o];
        settings.dropped_barrier = barrier;
        twin_run(&t, op, &settings, text);
        is_noticed = text[0] != '\0';
        /* Not this one's barrier: the other orders pass it no more than this. */
        if (tess_emulation_barrier_get(barrier).pass_numel == 0)
            break;
    }
    twin_destroy(&t);
    return is_noticed;
}

/** Every barrier that the suite passes, taken out, changes a result or trips a check. */
static inline void twin_check_barriers(const twin_suite *suite)
{
    twin_skip_on_device("barriers of a device cannot be taken out");
#if defined(__SANITIZE_ADDRESS__)
    skip(); /* what a missing barrier does to addresses would stop the process */
#endif
    for (int b = 0; b < tess_emulation_barrier_numel(); b++) {
        bool is_noticed = false;
        for (int i = 0; i < suite->op_numel && !is_noticed; i++)
            for (int c = 0; c < twin_case_numel(&suite->ops[i]) && !is_noticed; c++)
                is_noticed = twin_notices(&suite->ops[i], c, b);
        const tess_emulation_barrier barrier = tess_emulation_barrier_get(b);
        print_message("%s of %s:%d taken out: %s\n", barrier.kind, barrier.file, barrier.line,
                      is_noticed ? "noticed" : "not noticed");
        if (!is_noticed)
            fail_msg("%s of %s:%d can be taken out and nothing shows it: another case has to, or "
                     "the kernel does not need it",
                     barrier.kind, barrier.file, barrier.line);
    }
}

/** The cases reach every barrier that stands in the sources; a device does not tell. */
static inline void twin_check_reach(const twin_suite *suite)
{
    if (!tess_emulation_is_device())
        barriers_check_reach(suite->sources);
}

/** Every case of every op, the large ones last; they reach what there is. */
static inline void twin_check_suite(const twin_suite *suite)
{
    for (int i = 0; i < suite->op_numel; i++)
        twin_check_cases(&suite->ops[i], 0, twin_small_numel(&suite->ops[i]));
    for (int i = 0; i < suite->op_numel; i++)
        twin_check_cases(&suite->ops[i], twin_small_numel(&suite->ops[i]),
                         twin_case_numel(&suite->ops[i]));
    twin_check_reach(suite);
}

static inline void test_kernels_match_twins(void **state) { twin_check_suite(*state); }

static inline void test_barriers_taken_out_show(void **state) { twin_check_barriers(*state); }

/** The tests of a suite, in a list of cmocka's. */
#define TWIN_SUITE_TESTS(suite)                                                                    \
    cmocka_unit_test_prestate(test_kernels_match_twins, (void *)(uintptr_t)(suite)),               \
        cmocka_unit_test_prestate(test_barriers_taken_out_show, (void *)(uintptr_t)(suite))

/** A program that has no other tests. */
static inline int twin_suite_main(const twin_suite *suite)
{
    const struct CMUnitTest tests[] = {TWIN_SUITE_TESTS(suite)};
    return cmocka_run_group_tests(tests, tess_emulation_setup, NULL);
}
