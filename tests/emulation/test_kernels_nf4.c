/* NF4 and embedding kernels in the emulation, against the C twins: bytes, ranges, refusals.
 * Runs on a device too. */
#include "tests/emulation/emulation.h"
#include "tests/emulation/twin.h"

#include "core/arith.h"

typedef struct shape {
    tess_dtype dt;
    int64_t numel;
    int block_numel;
    bool is_double;
    int64_t shift;
    bool is_fp4;
} shape;

static const shape shapes[] = {
    {TESS_F32, 0, 64, true, 0, false},
    {TESS_F32, 1, 64, false, 0, false},
    {TESS_F32, 4097, 64, true, 0, false},
    {TESS_BF16, 999, 32, true, 1, false},
    {TESS_BF16, 32 * 600, 32, true, 0, false},
    {TESS_BF16, 8192, 4096, false, 0, false},
    {TESS_F32, 9001, 4096, true, 3, false},
    {TESS_BF16, 5120, 64, false, 0, false},
    {TESS_F32, 32 * 300 + 5, 32, true, 0, false},
    {TESS_F32, 4097, 64, true, 0, true},
    {TESS_BF16, 3200, 32, false, 0, true},
    {TESS_BF16, 1001, 128, true, 1, true},
    {TESS_BF16, 64 * 20001, 64, true, 0, false}, /* fills a device, as the last of the others do */
};

enum { SRC, CODES, ABSMAX, NESTED, OFFSET, WORK, DST };

#define CALL(t, op, args) ((t)->is_cuda ? tess_cuda_##op(args, s) : tess_cpu_##op(args, s))

static void element_set(const twin_operand *x, int64_t i, float v)
{
    if (i >= x->numel)
        return;
    if (x->dt == TESS_BF16)
        ((uint16_t *)x->initial)[i] = tess_bf16_from_f32(v);
    else
        ((float *)x->initial)[i] = v;
}

/* Blocks of zeros, of denormals, of one large value, and values on thresholds. */
static void special_fill(const twin_operand *x, int block_numel)
{
    for (int64_t i = 0; i < block_numel; i++) {
        element_set(x, 1 * block_numel + i, 0.0f);
        element_set(x, 2 * block_numel + i, (float)i * 0x1p-140f);
        element_set(x, 3 * block_numel + i, i % 2 == 0 ? 1.0f : tess_nf4_threshold[i % 15]);
        if (i % 4 == 1)
            element_set(x, 3 * block_numel + i, -tess_fp4_threshold[i % 7]);
    }
    element_set(x, 0, 3e38f);
    element_set(x, x->numel - 1, -0.0f);
}

static void codes_make(twin *t, int case_idx)
{
    const shape *c = &shapes[case_idx];
    const int64_t block_numel = tess_ceil_div(c->numel, c->block_numel);
    t->ctx = c;
    t->shift = c->shift;
    const twin_operand *src = twin_random(t, "src", c->dt, c->numel, 0.1);
    if (c->numel > 4 * c->block_numel)
        special_fill(src, c->block_numel);
    t->shift = 0;
    twin_output(t, "codes", TESS_U8, tess_ceil_div(c->numel, 2));
    twin_output(t, "absmax", c->is_double ? TESS_U8 : TESS_F32, block_numel);
    twin_output(t, "nested_absmax", TESS_F32,
                c->is_double ? tess_ceil_div(block_numel, TESS_NESTED_BLOCK_NUMEL) : 0);
    twin_output(t, "nested_offset", TESS_F32, c->is_double ? 1 : 0);
    twin_output(t, "absmax_work", TESS_F32, c->is_double ? block_numel : 0);
    t->shift = c->shift;
    twin_output(t, "dst_f32", TESS_F32, c->numel);
    twin_output(t, "dst_bf16", TESS_BF16, c->numel);
    twin_output(t, "part_f32", TESS_F32, c->numel);
    twin_output(t, "part_bf16", TESS_BF16, c->numel);
}

static tess_codec codec_of(const shape *c)
{
    return (tess_codec){.format = c->is_fp4 ? TESS_FORMAT_FP4 : TESS_FORMAT_NF4,
                        .block_numel = c->block_numel,
                        .double_quant = c->is_double};
}

static tess_status dequantize(twin *t, tess_stream *s, int64_t first_idx, tess_view dst)
{
    const tess_dequantize_args a = {
        .codec = codec_of(t->ctx),
        .part = {t->x[CODES].data, t->x[ABSMAX].data, t->x[NESTED].data, t->x[OFFSET].data},
        .first_idx = first_idx,
        .dst = dst,
    };
    return CALL(t, dequantize, &a);
}

static tess_status codes_call(twin *t, tess_stream *s)
{
    const shape *c = t->ctx;
    const tess_quantize_args a = {
        .codec = codec_of(c),
        .src = twin_view(t, SRC),
        .part = {t->x[CODES].data, t->x[ABSMAX].data, t->x[NESTED].data, t->x[OFFSET].data},
        .absmax_work = t->x[WORK].data,
        .tensor_name = "w",
    };
    TESS_TRY(CALL(t, quantize, &a));
    for (int i = 0; i < 2; i++) {
        /* All of it; then from an odd place, from a multiple of 8, and one element. */
        const tess_view whole = twin_view(t, DST + i), part = twin_view(t, DST + 2 + i);
        const int64_t odd = c->numel / 3 | 1, even = c->numel / 16 * 8;
        TESS_TRY(dequantize(t, s, 0, whole));
        if (c->numel < 64)
            continue;
        TESS_TRY(dequantize(t, s, odd, tess_view_slice(part, 0, c->numel - odd)));
        TESS_TRY(dequantize(t, s, even, tess_view_slice(part, 0, c->numel / 3)));
        TESS_TRY(dequantize(t, s, c->numel - 1, tess_view_slice(part, 8, 1)));
    }
    return TESS_OK;
}

/* Tokens from a table in NF4: numel is rows x cols. */
typedef struct table_shape {
    shape c;
    int64_t rows, cols, token_numel;
} table_shape;

static const table_shape tables[] = {
    {{TESS_F32, 9 * 40, 64, true, 0, false}, 9, 40, 21},
    {{TESS_BF16, 5 * 33, 32, false, 1, false}, 5, 33, 8},
    {{TESS_BF16, 3 * 2056, 64, true, 0, false}, 3, 2056, 0},
    {{TESS_BF16, 3 * 2056, 64, true, 0, false}, 3, 2056, 4},
    {{TESS_BF16, 9 * 40, 64, true, 0, true}, 9, 40, 21},
    {{TESS_BF16, 3000 * 512, 64, true, 0, false}, 3000, 512, 2000},
};

static void table_make(twin *t, int case_idx)
{
    const table_shape *c = &tables[case_idx];
    const int64_t numel = c->c.numel, block_numel = tess_ceil_div(numel, c->c.block_numel);
    t->ctx = c;
    twin_index(t, "tokens", c->token_numel, c->rows);
    const twin_operand *codes = twin_add(t, "codes", TESS_U8, tess_ceil_div(numel, 2));
    for (int64_t i = 0; i < codes->numel; i++)
        ((uint8_t *)codes->initial)[i] = (uint8_t)(i * 37 + i / 7);
    if (c->c.is_double) {
        const twin_operand *absmax = twin_add(t, "absmax", TESS_U8, block_numel);
        for (int64_t i = 0; i < block_numel; i++)
            ((uint8_t *)absmax->initial)[i] = (uint8_t)(i * 91 + 5);
    } else {
        twin_random(t, "absmax", TESS_F32, block_numel, 1.0);
    }
    twin_random(t, "nested", TESS_F32, tess_ceil_div(block_numel, TESS_NESTED_BLOCK_NUMEL), 1.0);
    twin_random(t, "offset", TESS_F32, 1, 1.0);
    t->shift = c->c.shift;
    twin_output(t, "out", c->c.dt, c->token_numel * c->cols);
}

static tess_status table_call(twin *t, tess_stream *s)
{
    const table_shape *c = t->ctx;
    const tess_embedding_args a = {
        .tokens = t->x[0].data,
        .token_numel = c->token_numel,
        .table = {.codec = codec_of(&c->c),
                  .rows = c->rows,
                  .cols = c->cols,
                  .part = {t->x[1].data, t->x[2].data, t->x[3].data, t->x[4].data}},
        .out = twin_view(t, 5),
    };
    return CALL(t, embedding_forward, &a);
}

typedef struct plain_shape {
    tess_dtype dt, table_dt;
    int64_t token_numel, dim, shift, vocab_numel;
} plain_shape;

static const plain_shape plain_tables[] = {
    {TESS_F32, TESS_F32, 0, 8, 0, 5},        {TESS_F32, TESS_F32, 1, 1, 0, 1},
    {TESS_F32, TESS_BF16, 700, 13, 0, 9},    {TESS_F32, TESS_F32, 300, 64, 0, 3},
    {TESS_BF16, TESS_F32, 40, 40, 0, 7},     {TESS_BF16, TESS_BF16, 5, 2056, 0, 11},
    {TESS_BF16, TESS_BF16, 600, 31, 1, 400}, {TESS_BF16, TESS_BF16, 5000, 256, 0, 7001}};

static void plain_make(twin *t, int case_idx)
{
    const plain_shape *c = &plain_tables[case_idx];
    t->ctx = c;
    t->shift = c->shift;
    twin_index(t, "tokens", c->token_numel, c->vocab_numel);
    twin_random(t, "table", c->table_dt, c->vocab_numel * c->dim, 1.0);
    twin_output(t, "out", c->dt, c->token_numel * c->dim);
    twin_random(t, "d_out", c->dt, c->token_numel * c->dim, 1.0);
    twin_random(t, "d_table", TESS_F32, c->vocab_numel * c->dim, 1.0);
}

static tess_status plain_call(twin *t, tess_stream *s)
{
    const plain_shape *c = t->ctx;
    const tess_embedding_args forward = {
        .tokens = t->x[0].data,
        .token_numel = c->token_numel,
        .table = {.codec = {c->table_dt == TESS_BF16 ? TESS_FORMAT_BF16 : TESS_FORMAT_F32, 0,
                            false},
                  .rows = c->vocab_numel,
                  .cols = c->dim,
                  .part = {t->x[1].data}},
        .out = twin_view(t, 2)};
    const tess_embedding_backward_args backward = {t->x[0].data,   c->token_numel, twin_view(t, 3),
                                                   c->vocab_numel, c->dim,         t->x[4].data};
    TESS_TRY(CALL(t, embedding_forward, &forward));
    return CALL(t, embedding_backward, &backward);
}

static const twin_op ops[] = {
    {"nf4", codes_make, codes_call, TESS_NELEM(shapes), 1},
    {"embedding in nf4", table_make, table_call, TESS_NELEM(tables), 1},
    {"embedding", plain_make, plain_call, TESS_NELEM(plain_tables), 1},
};

static const twin_suite suite = {
    ops, TESS_NELEM(ops), {"nf4.cu", "codec_priv.cuh", "embedding.cu", NULL}};

/* Both backends refuse the same element with the same words. */
static void test_quantize_not_finite_is_refused(void **state)
{
    (void)state;
    for (int case_idx = 2; case_idx < 4; case_idx++) {
        char text[TWIN_LINE_NBYTES], want[TWIN_LINE_NBYTES];
        twin t = twin_make(&ops[0], case_idx);
        element_set(&t.x[SRC], 700, -INFINITY);
        element_set(&t.x[SRC], 900, NAN);
        tess_stream s;
        tess_stream_init_inline(&s, "test", NULL);
        for (int i = 0; i < t.operand_numel; i++)
            t.x[i].data = t.x[i].initial;
        t.is_cuda = false;
        assert_int_equal(ops[0].call(&t, &s), TESS_E_FORMAT);
        snprintf(want, sizeof want, "%s", tess_error_message());
        assert_non_null(strstr(want, "tensor 'w': element 700 is -inf"));
        for (int o = 0; o < TESS_NELEM(twin_orders); o++) {
            twin_run(&t, &ops[0], &twin_orders[o], text);
            assert_string_equal(text, want);
        }
        twin_destroy(&t);
    }
}

/* Other families are encoded on the host. */
static void test_encoding_other_formats_is_refused(void **state)
{
    (void)state;
    static uint8_t bytes[256];
    tess_stream s;
    tess_stream_init_inline(&s, "test", NULL);
    const tess_quantize_args a = {.codec = tess_codec_of_format(TESS_FORMAT_Q8_0),
                                  .src = {bytes, 32, TESS_F32, TESS_DEVICE},
                                  .part = {bytes},
                                  .tensor_name = "w"};
    assert_refused(tess_cuda_quantize(&a, &s), TESS_E_UNSUPPORTED,
                   "w: base format q8_0 has no encoder on a CUDA device");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TWIN_SUITE_TESTS(&suite),
        cmocka_unit_test(test_quantize_not_finite_is_refused),
        cmocka_unit_test(test_encoding_other_formats_is_refused),
    };
    return cmocka_run_group_tests(tests, tess_emulation_setup, NULL);
}
