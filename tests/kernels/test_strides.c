/* Outputs and operands in rows that lie apart: the same bits as contiguous ones, gaps untouched. */
#include "tests/kernels/op_support.h"

enum { ROWS = 13, GAP = 5, POISON = 0x5a };

static const int64_t dims[] = {1, 31, 64, 200};
static const tess_dtype dts[] = {TESS_F32, TESS_BF16};

/* [ROWS, dim] inside rows of dim + GAP. */
typedef struct wide {
    op_buffer buffer;
    tess_view view; /* behind the last row there is no gap */
    int64_t dim, stride;
} wide;

static wide wide_create(tess_dtype dt, int64_t dim)
{
    wide w = {.dim = dim, .stride = dim + GAP};
    w.buffer = buffer_create(dt, ROWS * w.stride, false);
    memset(w.buffer.view.data, POISON, tess_view_nbytes(w.buffer.view));
    w.view = tess_view_slice(w.buffer.view, 0, (ROWS - 1) * w.stride + dim);
    return w;
}

static void wide_fill(wide *w, tess_view rows)
{
    for (int64_t r = 0; r < ROWS; r++)
        memcpy(tess_view_slice(w->view, r * w->stride, w->dim).data,
               tess_view_slice(rows, r * w->dim, w->dim).data,
               (size_t)w->dim * tess_dtype_block_nbytes(rows.dt));
}

static void assert_wide_equal(const wide *w, tess_view rows)
{
    const size_t item = tess_dtype_block_nbytes(rows.dt);
    for (int64_t r = 0; r < ROWS; r++) {
        const char *found = (const char *)w->buffer.view.data + (size_t)(r * w->stride) * item;
        assert_memory_equal(found, tess_view_slice(rows, r * w->dim, w->dim).data,
                            (size_t)w->dim * item);
        for (size_t i = 0; i < GAP * item; i++)
            assert_int_equal(found[(size_t)w->dim * item + i], POISON);
    }
}

static tess_stream stream(void)
{
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    return s;
}

static void check_swiglu(tess_dtype dt, int64_t dim)
{
    tess_stream s = stream();
    op_buffer in[3], out[2];
    wide w[2];
    for (int i = 0; i < 3; i++)
        in[i] = buffer_random(dt, ROWS * dim, 70 + (uint64_t)i, 1.0);
    for (int i = 0; i < 2; i++) {
        out[i] = buffer_create(dt, ROWS * dim, true);
        w[i] = wide_create(dt, dim);
    }
    tess_swiglu_args f = {.gate = in[0].view, .up = in[1].view, .out = out[0].view};
    assert_int_equal(tess_cpu_swiglu_forward(&f, &s), TESS_OK);
    f = (tess_swiglu_args){.gate = in[0].view,
                           .up = in[1].view,
                           .out = w[0].view,
                           .dim = dim,
                           .out_stride = w[0].stride};
    assert_int_equal(tess_cpu_swiglu_forward(&f, &s), TESS_OK);
    assert_wide_equal(&w[0], out[0].view);
    tess_swiglu_backward_args b = {.gate = in[0].view,
                                   .up = in[1].view,
                                   .d_out = in[2].view,
                                   .d_gate = out[0].view,
                                   .d_up = out[1].view};
    assert_int_equal(tess_cpu_swiglu_backward(&b, &s), TESS_OK);
    b.d_gate = w[0].view;
    b.d_up = w[1].view;
    b.dim = dim;
    b.d_stride = w[0].stride;
    assert_int_equal(tess_cpu_swiglu_backward(&b, &s), TESS_OK);
    for (int i = 0; i < 2; i++)
        assert_wide_equal(&w[i], out[i].view);
    for (int i = 0; i < 3; i++)
        buffer_destroy(&in[i]);
    for (int i = 0; i < 2; i++) {
        buffer_destroy(&out[i]);
        buffer_destroy(&w[i].buffer);
    }
}

/* The sum with a residual and the norm of it are what two ops give. */
static void check_rmsnorm(tess_dtype dt, int64_t dim)
{
    tess_stream s = stream();
    op_buffer x = buffer_random(dt, ROWS * dim, 80, 1.0), w = buffer_random(dt, dim, 81, 1.0);
    op_buffer residual = buffer_random(dt, ROWS * dim, 82, 1.0);
    op_buffer sum = buffer_create(dt, ROWS * dim, true), both = buffer_create(dt, ROWS * dim, true);
    op_buffer y = buffer_create(dt, ROWS * dim, true);
    float inv[2][ROWS];
    wide apart = wide_create(dt, dim);
    const tess_add_args add = {x.view, residual.view, sum.view};
    assert_int_equal(tess_cpu_add(&add, &s), TESS_OK);
    tess_rmsnorm_args a = {.x = sum.view,
                           .w = w.view,
                           .row_numel = ROWS,
                           .dim = dim,
                           .eps = 1e-5f,
                           .y = y.view,
                           .inv_rms = inv[0]};
    assert_int_equal(tess_cpu_rmsnorm_forward(&a, &s), TESS_OK);
    a.x = x.view;
    a.residual = residual.view;
    a.sum = both.view;
    a.y = apart.view;
    a.y_stride = apart.stride;
    a.inv_rms = inv[1];
    assert_int_equal(tess_cpu_rmsnorm_forward(&a, &s), TESS_OK);
    assert_memory_equal(both.view.data, sum.view.data, tess_view_nbytes(sum.view));
    assert_memory_equal(inv[0], inv[1], sizeof inv[0]);
    assert_wide_equal(&apart, y.view);
    op_buffer *buffers[] = {&x, &w, &residual, &sum, &both, &y, &apart.buffer};
    for (int i = 0; i < TESS_NELEM(buffers); i++)
        buffer_destroy(buffers[i]);
}

/* Weight gradient of an input in rows apart. */
static void check_gemm(tess_dtype dt, int64_t dim)
{
    tess_stream s = stream();
    op_buffer a = buffer_random(dt, ROWS * 7, 90, 1.0), b = buffer_random(dt, ROWS * dim, 91, 1.0);
    op_buffer c = buffer_create(TESS_F32, 7 * dim, true),
              d = buffer_create(TESS_F32, 7 * dim, true);
    wide apart = wide_create(dt, dim);
    wide_fill(&apart, b.view);
    tess_gemm_args args = {.kind = TESS_GEMM_TN, .m = 7, .n = dim, .term_numel = 1, .c = c.view};
    args.term[0] = (tess_gemm_term){.a = a.view, .k = ROWS, .scale = 1.0f};
    args.term[0].b =
        (tess_matrix){.codec = {.format = dt == TESS_F32 ? TESS_FORMAT_F32 : TESS_FORMAT_BF16},
                      .rows = ROWS,
                      .cols = dim,
                      .part = {b.view.data}};
    void *work = must_alloc(tess_cpu_gemm_work_nbytes(&args, 1));
    args.work = tess_view_host(work, (int64_t)tess_cpu_gemm_work_nbytes(&args, 1), TESS_U8_OPAQUE);
    assert_int_equal(tess_cpu_gemm(&args, &s), TESS_OK);
    args.term[0].b.part[0] = apart.view.data;
    args.term[0].b.stride = apart.stride;
    args.c = d.view;
    assert_int_equal(tess_cpu_gemm(&args, &s), TESS_OK);
    assert_memory_equal(c.view.data, d.view.data, tess_view_nbytes(c.view));
    args.term[0].b.stride = dim - 1;
    assert_int_equal(tess_gemm_check(&args), dim > 1 ? TESS_E_ARG : TESS_OK);
    tess_error_clear();
    tess_free(work);
    op_buffer *buffers[] = {&a, &b, &c, &d, &apart.buffer};
    for (int i = 0; i < TESS_NELEM(buffers); i++)
        buffer_destroy(buffers[i]);
}

/* Forward writes tokens apart, backward reads them so. Two heads of dim / 2. */
static void check_attention(tess_dtype dt, int64_t head_dim)
{
    tess_stream s = stream();
    const tess_attention_shape shape = {.dt = dt,
                                        .token_numel = ROWS,
                                        .head_numel = 2,
                                        .kv_head_numel = 1,
                                        .dim = head_dim,
                                        .longest_numel = ROWS};
    const size_t work_nbytes = tess_cpu_attention_work_nbytes(&shape, 1);
    void *work = must_alloc(work_nbytes);
    int32_t doc_start[ROWS] = {0};
    float lse[2 * ROWS];
    op_buffer q = buffer_random(dt, ROWS * 2 * head_dim, 95, 1.0);
    op_buffer k = buffer_random(dt, ROWS * head_dim, 96, 1.0);
    op_buffer v = buffer_random(dt, ROWS * head_dim, 97, 1.0);
    op_buffer d_out = buffer_random(dt, ROWS * 2 * head_dim, 98, 1.0);
    op_buffer out = buffer_create(dt, ROWS * 2 * head_dim, true);
    op_buffer d[2][3];
    wide apart = wide_create(dt, 2 * head_dim);
    tess_attention_args a = {.shape = shape,
                             .q = q.view,
                             .k = k.view,
                             .v = v.view,
                             .doc_start = doc_start,
                             .scale = 0.25f,
                             .out = out.view,
                             .lse = lse,
                             .work = tess_view_host(work, (int64_t)work_nbytes, TESS_U8_OPAQUE)};
    assert_int_equal(tess_cpu_attention_forward(&a, &s), TESS_OK);
    a.out = apart.view;
    a.out_stride = apart.stride;
    assert_int_equal(tess_cpu_attention_forward(&a, &s), TESS_OK);
    assert_wide_equal(&apart, out.view);
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 3; j++)
            d[i][j] = buffer_create(dt, ROWS * (j == 0 ? 2 : 1) * head_dim, true);
        const tess_attention_backward_args b = {.shape = shape,
                                                .q = q.view,
                                                .k = k.view,
                                                .v = v.view,
                                                .out = i == 0 ? out.view : apart.view,
                                                .out_stride = i == 0 ? 0 : apart.stride,
                                                .lse = lse,
                                                .d_out = d_out.view,
                                                .doc_start = doc_start,
                                                .scale = 0.25f,
                                                .d_q = d[i][0].view,
                                                .d_k = d[i][1].view,
                                                .d_v = d[i][2].view,
                                                .work = a.work};
        assert_int_equal(tess_cpu_attention_backward(&b, &s), TESS_OK);
    }
    for (int j = 0; j < 3; j++) {
        assert_memory_equal(d[0][j].view.data, d[1][j].view.data, tess_view_nbytes(d[0][j].view));
        buffer_destroy(&d[0][j]);
        buffer_destroy(&d[1][j]);
    }
    op_buffer *buffers[] = {&q, &k, &v, &d_out, &out, &apart.buffer};
    for (int i = 0; i < TESS_NELEM(buffers); i++)
        buffer_destroy(buffers[i]);
    tess_free(work);
}

static void test_rows_apart_give_the_same_bits(void **state)
{
    (void)state;
    for (int i = 0; i < TESS_NELEM(dims); i++)
        for (int j = 0; j < TESS_NELEM(dts); j++) {
            check_swiglu(dts[j], dims[i]);
            check_rmsnorm(dts[j], dims[i]);
            check_gemm(dts[j], dims[i]);
            check_attention(dts[j], dims[i] < 2 ? 2 : dims[i] / 2);
        }
}

static void test_rows_that_overlap_are_refused(void **state)
{
    (void)state;
    float x[8] = {0}, y[8] = {0}, out[16] = {0};
    const tess_swiglu_args a = {.gate = tess_view_host(x, 8, TESS_F32),
                                .up = tess_view_host(y, 8, TESS_F32),
                                .out = tess_view_host(out, 16, TESS_F32),
                                .dim = 4,
                                .out_stride = 3};
    assert_refused(tess_swiglu_check(&a), TESS_E_ARG,
                   "rows of out are 3 elements apart but hold 4");
    tess_error_clear();
    const tess_rmsnorm_args n = {.x = tess_view_host(x, 8, TESS_F32),
                                 .w = tess_view_host(y, 4, TESS_F32),
                                 .row_numel = 2,
                                 .dim = 4,
                                 .y = tess_view_host(out, 9, TESS_F32),
                                 .y_stride = 6};
    assert_refused(tess_rmsnorm_check(&n), TESS_E_ARG, "y holds 9 elements, expected at least 10");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_apart_give_the_same_bits),
        cmocka_unit_test(test_rows_that_overlap_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
