/** Buffers with canaries, and runs of one op on every path and thread count. */
#pragma once

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "core/memory.h"
#include "core/rng.h"
#include "kernels/cpu/ops_priv.h"
#include "tests/reference/reference.h"

/* Unit roundoff: half the distance of 1 to the next number. */
#define F32_U 0x1p-24
#define BF16_U 0x1p-8

enum { CANARY_NBYTES = 64, CANARY = 0xA5, THREAD_MAX = 3, OUTPUT_MAX = 6 };

static inline double unit_of(tess_dtype dt) { return dt == TESS_BF16 ? BF16_U : F32_U; }

/** Elements of a dtype between canaries, and their values widened to fp64. */
typedef struct op_buffer {
    tess_view view;
    double *value; /* [numel] */
    uint8_t *base; /* canary, elements, canary */
    uint8_t *initial;
    size_t nbytes;
} op_buffer;

static inline void *must_alloc(size_t nbytes)
{
    void *p = NULL;
    assert_int_equal(tess_alloc(nbytes, &p), TESS_OK);
    return p;
}

/** `odd` shifts the start by one element, so that no kernel may count on alignment. */
static inline op_buffer buffer_create(tess_dtype dt, int64_t numel, bool odd)
{
    op_buffer b = {0};
    const size_t elem_nbytes = tess_dtype_block_nbytes(dt);
    const size_t lead = CANARY_NBYTES + (odd ? elem_nbytes : 0);
    b.nbytes = lead + (size_t)numel * elem_nbytes + CANARY_NBYTES;
    b.base = must_alloc(b.nbytes);
    b.initial = must_alloc(b.nbytes);
    memset(b.base, CANARY, b.nbytes);
    b.view = tess_view_host(b.base + lead, numel, dt);
    memset(b.view.data, 0, (size_t)numel * elem_nbytes);
    b.value = must_alloc((size_t)numel * sizeof(double));
    return b;
}

static inline void buffer_destroy(op_buffer *b)
{
    tess_free(b->base);
    tess_free(b->initial);
    tess_free(b->value);
}

/** Refresh `value` from what is stored. */
static inline void buffer_read(op_buffer *b)
{
    for (int64_t i = 0; i < b->view.numel; i++) {
        if (b->view.dt == TESS_BF16)
            b->value[i] = (double)tess_bf16_to_f32(((const uint16_t *)b->view.data)[i]);
        else if (b->view.dt == TESS_F32)
            b->value[i] = (double)((const float *)b->view.data)[i];
        else
            b->value[i] = ((const double *)b->view.data)[i];
    }
}

static inline void buffer_set(op_buffer *b, int64_t i, float x)
{
    if (b->view.dt == TESS_BF16)
        ((uint16_t *)b->view.data)[i] = tess_bf16_from_f32(x);
    else
        ((float *)b->view.data)[i] = x;
}

/** Normal values times `scale`, rounded to the dtype. */
static inline void buffer_fill(op_buffer *b, uint64_t seed, double scale)
{
    const tess_rng rng = tess_rng_make(seed, TESS_RNG_TEST, 0, 0);
    for (int64_t i = 0; i < b->view.numel; i++)
        buffer_set(b, i, (float)(tess_rng_normal(&rng, (uint64_t)i) * scale));
    buffer_read(b);
}

static inline op_buffer buffer_random(tess_dtype dt, int64_t numel, uint64_t seed, double scale)
{
    op_buffer b = buffer_create(dt, numel, seed % 2 == 1);
    buffer_fill(&b, seed, scale);
    return b;
}

static inline void assert_canaries(const op_buffer *b)
{
    const uint8_t *first = b->view.data;
    const uint8_t *last = first + tess_view_nbytes(b->view);
    for (const uint8_t *p = b->base; p < first; p++)
        assert_int_equal(*p, CANARY);
    for (const uint8_t *p = last; p < b->base + b->nbytes; p++)
        assert_int_equal(*p, CANARY);
}

/** |got - want| <= absolute + relative * |want| for every element. */
static inline void assert_close(const char *name, const op_buffer *got, const double *want,
                                double absolute, double relative)
{
    for (int64_t i = 0; i < got->view.numel; i++) {
        const double error = fabs(got->value[i] - want[i]);
        if (!(error <= absolute + relative * fabs(want[i])))
            fail_msg("%s[%" PRId64 "]: got %.9g, want %.9g, error %.3g above %.3g", name, i,
                     got->value[i], want[i], error, absolute + relative * fabs(want[i]));
    }
}

static inline double *doubles(int64_t numel) { return must_alloc((size_t)numel * sizeof(double)); }

static inline double largest(const double *x, int64_t numel)
{
    double max = 0.0;
    for (int64_t i = 0; i < numel; i++)
        max = fmax(max, fabs(x[i]));
    return max;
}

/** One op call, and everything it may write. */
typedef struct op_run {
    tess_status (*call)(void *ctx, tess_stream *s);
    void *ctx;
    op_buffer *outputs[OUTPUT_MAX];
    int output_numel;
    bool is_per_path; /* products differ by instruction path: compare threads only */
} op_run;

static inline void run_once(const op_run *run, int thread_numel)
{
    tess_pool *pool = NULL;
    tess_stream s;
    assert_int_equal(tess_pool_create(thread_numel, &pool), TESS_OK);
    tess_stream_init_inline(&s, "test", pool);
    tess_error_clear();
    if (run->call(run->ctx, &s) != TESS_OK)
        fail_msg("%s", tess_error_message());
    tess_pool_destroy(&pool);
    for (int o = 0; o < run->output_numel; o++)
        assert_canaries(run->outputs[o]);
}

/** A stream without threads. */
static inline tess_stream inline_stream(void)
{
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    return s;
}

/** The call succeeds; its message is shown where it does not. */
#define assert_done(call_expr)                                                                     \
    do {                                                                                           \
        if ((call_expr) != TESS_OK)                                                                \
            fail_msg("%s", tess_error_message());                                                  \
    } while (0)

static inline int best_path(void) { return (int)tess_cpu_path_highest(); }

/** Run the kernels of this process on `path`, -1: on the default one. */
static inline void use_path(int path)
{
    tess_cpu_path_reset();
    if (path >= 0)
        assert_int_equal(tess_kernels_cpu_select((tess_cpu_path)path), TESS_OK);
}

/**
 * Run with 1, 2 and 3 threads on one path from the same initial contents of the outputs; all bits
 * equal. `want` holds the first result of the comparison, taken here when it is NULL.
 */
static inline void run_threads(const op_run *run, int path, uint8_t *want[OUTPUT_MAX])
{
    use_path(path);
    for (int threads = 1; threads <= THREAD_MAX; threads++) {
        for (int o = 0; o < run->output_numel; o++)
            memcpy(run->outputs[o]->base, run->outputs[o]->initial, run->outputs[o]->nbytes);
        run_once(run, threads);
        for (int o = 0; o < run->output_numel; o++) {
            const op_buffer *b = run->outputs[o];
            if (want[o] == NULL) {
                want[o] = must_alloc(b->nbytes);
                memcpy(want[o], b->base, b->nbytes);
            } else if (memcmp(want[o], b->base, b->nbytes) != 0) {
                fail_msg("output %d differs: path %s, %d threads", o,
                         tess_cpu_path_name((tess_cpu_path)path), threads);
            }
        }
    }
    use_path(-1);
}

/** Every path this CPU has, 1 to 3 threads; `check` sees the outputs of each path. */
static inline void run_everywhere(const op_run *run, void (*check)(void *ctx))
{
    uint8_t *want[OUTPUT_MAX] = {0};
    for (int o = 0; o < run->output_numel; o++)
        memcpy(run->outputs[o]->initial, run->outputs[o]->base, run->outputs[o]->nbytes);
    const int best = best_path();
    for (int path = 0; path <= best; path++) {
        run_threads(run, path, want);
        for (int o = 0; o < run->output_numel; o++) {
            buffer_read(run->outputs[o]);
            if (run->is_per_path) {
                tess_free(want[o]);
                want[o] = NULL;
            }
        }
        check(run->ctx);
    }
    for (int o = 0; o < run->output_numel; o++)
        tess_free(want[o]);
}

/** The call fails with `st` and a message that holds `text`. */
#define assert_refused(call_expr, st, text)                                                        \
    do {                                                                                           \
        tess_error_clear();                                                                        \
        assert_int_equal((call_expr), (st));                                                       \
        if (strstr(tess_error_message(), (text)) == NULL)                                          \
            fail_msg("message '%s' lacks '%s'", tess_error_message(), (text));                     \
        tess_error_clear();                                                                        \
    } while (0)
