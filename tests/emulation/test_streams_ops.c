/*
 * Ops that no run under the checker of streams calls (models of diffusion run with the sources of
 * kernels/cuda alone), called by hand: each touches what emu_ranges*.c lists, and nothing else.
 * Rows have gaps, so that a list that names them whole shows.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/arith.h"
#include "core/memory.h"
#include "core/rng.h"
#include "emulation/emu_world.h"

enum { B = 2, N = 5, D = 6, GAP = 3, K = 4, HEADS = 2, ROOM_NUMEL = 1 << 14 };

/* Memory of a device full of small numbers, handed out piece by piece. */
typedef struct room {
    tess_device *device;
    tess_arena *arena;
    tess_stream *stream;
    size_t used_nbytes;
} room;

static tess_view take(room *r, int64_t numel, tess_dtype dt)
{
    tess_view v = {0};
    if (tess_arena_view(r->arena, r->used_nbytes, numel, dt, &v) != TESS_OK)
        return (tess_view){0}; /* which the op refuses */
    r->used_nbytes += (size_t)tess_round_up((int64_t)tess_view_nbytes(v), TESS_ARENA_ALIGN_NBYTES);
    return v;
}

static void *take_floats(room *r, int64_t numel) { return take(r, numel, TESS_F32).data; }

/* Rows of all samples with gaps behind them. */
static tess_sample_rows take_rows(room *r, int64_t width)
{
    return tess_sample_rows_of(take(r, B * N * (width + GAP), TESS_F32), N, width + GAP);
}

static tess_factor take_factor(room *r) { return take(r, B * (D + GAP), TESS_F32); }

static tess_status open_room(const emu_rank *rank, room *r)
{
    static float source[ROOM_NUMEL];
    const tess_rng rng = tess_rng_make(3, TESS_RNG_TEST, 0, 0);
    for (int i = 0; i < ROOM_NUMEL; i++)
        source[i] = (float)tess_rng_normal(&rng, (uint64_t)i);
    *r = (room){.device = rank->device};
    TESS_TRY(tess_device_arena_create(r->device, TESS_DEVICE, "room", sizeof source, &r->arena));
    TESS_TRY(tess_device_stream_create(r->device, "ops", false, &r->stream));
    const tess_view all = take(r, ROOM_NUMEL, TESS_F32);
    r->used_nbytes = 0;
    TESS_TRY(
        tess_device_copy(r->device, all, tess_view_host(source, ROOM_NUMEL, TESS_F32), r->stream));
    return tess_stream_finish(r->stream);
}

static tess_status close_room(room *r, tess_status st)
{
    if (st == TESS_OK)
        st = tess_stream_finish(r->stream);
    tess_device_stream_destroy(r->device, &r->stream);
    tess_arena_destroy(&r->arena);
    return st;
}

/* ---- codes ---- */

/* One of the N vectors has none. */
static tess_status take_codes(room *r, uint32_t **out)
{
    static uint32_t code[N] = {2, 0, TESS_NO_CODE, 3, 2};
    const tess_view v = take(r, N, TESS_I32);
    *out = v.data;
    TESS_TRY(tess_device_copy(r->device, v, tess_view_host(code, N, TESS_I32), r->stream));
    return tess_stream_finish(r->stream);
}

static tess_status take_zeros(room *r, int64_t numel, int64_t **out)
{
    const tess_view v = take(r, numel, TESS_I64);
    *out = v.data;
    return tess_device_zero(r->device, v, r->stream);
}

static tess_status call_means(room *r)
{
    int64_t *sum = NULL, *count = NULL;
    uint32_t *code = NULL;
    TESS_TRY(take_codes(r, &code));
    TESS_TRY(take_zeros(r, K * D, &sum));
    TESS_TRY(take_zeros(r, K, &count));
    float *x = take_floats(r, N * D), *codes = take_floats(r, K * D);
    const tess_code_sum_args add = {.x = x,
                                    .row = code,
                                    .vector_numel = N,
                                    .dim = D,
                                    .row_numel = K,
                                    .exponent = 30,
                                    .sum = sum,
                                    .count = count};
    const tess_code_mean_args mean = {sum, count, codes, K, D, 30, true};
    const tess_code_residual_args residual = {.x = x,
                                              .code = codes,
                                              .row = code,
                                              .vector_numel = N,
                                              .code_numel = K,
                                              .dim = D,
                                              .dst = take_floats(r, N * D)};
    TESS_TRY(emu_kernels.code_sum(&add, r->stream));
    TESS_TRY(emu_kernels.code_mean(&mean, r->stream));
    return emu_kernels.code_residual(&residual, r->stream);
}

static tess_status call_directed(room *r)
{
    tess_coded_rows rows = {.codes = take_floats(r, K * D), .row_numel = N, .dim = D, K};
    uint32_t *code = NULL;
    TESS_TRY(take_codes(r, &code));
    rows.code = code;
    const float *x = take_floats(r, N * D), *noise = take_floats(r, N * D);
    const tess_view out = take(r, N * (D + GAP), TESS_F32);
    tess_quantizer_directed_backward_args backward = {.rows = rows,
                                                      .x = x,
                                                      .noise = noise,
                                                      .spread = 0.1f,
                                                      .d_stride = D + GAP,
                                                      .d_out = out,
                                                      .d_x = take_floats(r, N * D),
                                                      .d_q = take_floats(r, N * D)};
    const tess_quantizer_directed_args forward = {rows, x, noise, 0.1f, D + GAP, out};
    TESS_TRY(emu_kernels.quantizers->directed(&forward, r->stream));
    TESS_TRY(emu_kernels.quantizers->directed_backward(&backward, r->stream));
    backward.accumulate = true;
    return emu_kernels.quantizers->directed_backward(&backward, r->stream);
}

static tess_status call_decoders(room *r)
{
    int32_t level[] = {3, 4}; /* gone when the op runs */
    uint32_t *code = NULL;
    TESS_TRY(take_codes(r, &code));
    tess_view indices = take(r, N, TESS_I32);
    TESS_TRY(tess_device_zero(r->device, indices, r->stream));
    const tess_quantizer_level_decode_args levels = {
        .levels = {.levels = level, .dim = 2, .rule = TESS_LEVEL_SYMMETRIC},
        .index = indices.data,
        .row_numel = N,
        .out_stride = 2 + GAP,
        .out = take(r, N * (2 + GAP), TESS_F32)};
    const tess_quantizer_sign_decode_args signs = {.index = code,
                                                   .row_numel = N,
                                                   .dim = 2,
                                                   .magnitude = 0.5f,
                                                   .out_stride = 2 + GAP,
                                                   .out = take(r, N * (2 + GAP), TESS_F32)};
    TESS_TRY(emu_kernels.quantizers->level_decode(&levels, r->stream));
    level[0] = level[1] = 0;
    return emu_kernels.quantizers->sign_decode(&signs, r->stream);
}

/* ---- modulated transformers ---- */

static const tess_sample_shape shape = {B, N, D};

static tess_status call_modulate(room *r)
{
    const tess_modulate_args forward = {.shape = shape,
                                        .x = take_rows(r, D),
                                        .shift = take_factor(r),
                                        .scale = take_factor(r),
                                        .factor_stride = D + GAP,
                                        .eps = 1e-6f,
                                        .y = take_rows(r, D),
                                        .mean = take_floats(r, B * N),
                                        .inv = take_floats(r, B * N)};
    const tess_modulate_backward_args backward = {.shape = shape,
                                                  .x = forward.x,
                                                  .scale = forward.scale,
                                                  .factor_stride = D + GAP,
                                                  .mean = forward.mean,
                                                  .inv = forward.inv,
                                                  .d_y = take_rows(r, D),
                                                  .residual = take_rows(r, D),
                                                  .d_x = take_rows(r, D),
                                                  .d_shift = take_factor(r),
                                                  .d_scale = take_factor(r),
                                                  .work = take_floats(r, B * 32 * D)};
    TESS_TRY(emu_kernels.modulated->modulate(&forward, r->stream));
    return emu_kernels.modulated->modulate_backward(&backward, r->stream);
}

static tess_status call_gate(room *r)
{
    const tess_gate_args forward = {.shape = shape,
                                    .x = take_rows(r, D),
                                    .f = take_rows(r, D),
                                    .gate = take_factor(r),
                                    .factor_stride = D + GAP,
                                    .y = take_rows(r, D)};
    const tess_gate_backward_args backward = {.shape = shape,
                                              .d_y = take_rows(r, D),
                                              .gate = forward.gate,
                                              .factor_stride = D + GAP,
                                              .d_f = take_rows(r, D),
                                              .f = forward.f,
                                              .d_gate = take_factor(r),
                                              .work = take_floats(r, B * 16 * D)};
    TESS_TRY(emu_kernels.modulated->gate(&forward, r->stream));
    return emu_kernels.modulated->gate_backward(&backward, r->stream);
}

static tess_status call_rotate(room *r)
{
    const tess_rotate_args forward = {.shape = shape,
                                      .head_numel = HEADS,
                                      .x = take_rows(r, HEADS * D),
                                      .w = take(r, D, TESS_F32),
                                      .eps = 1e-6f,
                                      .cos_table = take_floats(r, N * D / 2),
                                      .sin_table = take_floats(r, N * D / 2),
                                      .y = take_rows(r, HEADS * D)};
    const tess_rotate_backward_args backward = {.shape = shape,
                                                .head_numel = HEADS,
                                                .x = forward.x,
                                                .w = forward.w,
                                                .eps = forward.eps,
                                                .cos_table = forward.cos_table,
                                                .sin_table = forward.sin_table,
                                                .d_y = take_rows(r, HEADS * D),
                                                .d_x = take_rows(r, HEADS * D),
                                                .d_w = take_floats(r, D),
                                                .work = take_floats(r, 16 * D)};
    TESS_TRY(emu_kernels.modulated->rotate(&forward, r->stream));
    return emu_kernels.modulated->rotate_backward(&backward, r->stream);
}

static tess_status call_edges(room *r)
{
    const int64_t stride = D + GAP;
    const tess_activation_args forward = {.row_numel = N,
                                          .dim = D,
                                          .x = take(r, N * D, TESS_F32),
                                          .y = take(r, N * stride, TESS_F32),
                                          .y_stride = stride};
    const tess_activation_backward_args backward = {.kind = TESS_ACTIVATION_SILU,
                                                    .row_numel = N,
                                                    .dim = D,
                                                    .x = forward.x,
                                                    .d_y = take(r, N * stride, TESS_F32),
                                                    .d_y_stride = stride,
                                                    .d_x = take(r, N * stride, TESS_F32),
                                                    .d_x_stride = stride};
    const tess_square_error_args error = {.row_numel = N,
                                          .dim = D,
                                          .y = take(r, N * D, TESS_F32),
                                          .target = take_floats(r, N * D),
                                          .weight = take_floats(r, N),
                                          .row_loss = take(r, N, TESS_F64).data,
                                          .grad_scale = 0.5f,
                                          .d_y = take(r, N * D, TESS_BF16)};
    TESS_TRY(emu_kernels.modulated->activation(&forward, r->stream));
    TESS_TRY(emu_kernels.modulated->activation_backward(&backward, r->stream));
    return emu_kernels.modulated->square_error(&error, r->stream);
}

static tess_status call_all(room *r)
{
    static tess_status (*const call[])(room *) = {call_means,    call_directed, call_decoders,
                                                  call_modulate, call_gate,     call_rotate,
                                                  call_edges};
    for (int i = 0; i < TESS_NELEM(call); i++)
        TESS_TRY(call[i](r));
    return TESS_OK;
}

static tess_status body(void *arg, const emu_rank *rank)
{
    room r;
    (void)arg;
    TESS_TRY(open_room(rank, &r));
    return close_room(&r, call_all(&r));
}

static void test_operands(void **state)
{
    (void)state;
    static const emu_kernel wanted[] = {
#define X(name, type) EMU_KERNEL_##name,
        EMU_MODULATED_LIST(X)
#undef X
            EMU_KERNEL_code_mean,
        EMU_KERNEL_code_residual,
        EMU_KERNEL_quantizer_directed,
        EMU_KERNEL_quantizer_directed_backward,
        EMU_KERNEL_quantizer_level_decode,
        EMU_KERNEL_quantizer_sign_decode,
    };
    emu_report report;
    const emu_options o = {.rank_numel = 1, .is_audited = true};
    emu_run(&o, body, NULL, &report);
    assert_string_equal(report.error, "");
    assert_string_equal(report.violation, "");
    for (int i = 0; i < TESS_NELEM(wanted); i++)
        if (!report.has_run[wanted[i]])
            fail_msg("'%s' was not called", emu_kernel_name(wanted[i]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_operands)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
