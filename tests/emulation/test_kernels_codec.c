/*
 * Decoders of every format in the emulation, against the C twins bit for bit: whole tensors and
 * ranges from any element, rows that lie apart, rows by token; sizes that are no multiples of
 * anything, operands at any alignment, both results. Runs on a device too.
 */
#include "tests/emulation/emulation.h"
#include "tests/emulation/twin.h"

#include "core/arith.h"
#include "core/half.h"
#include "kernels/cuda/codec_priv.h"

/* %d: a divisor of the row length. `multiple`: of which the row length has to be one. */
static const struct {
    const char *text;
    int multiple;
} formats[] = {
    {"nf4/64", 1},
    {"nf4/32/double", 1},
    {"fp4/128/double", 1},
    {"f16", 1},
    {"q8_0", 32},
    {"q4_0", 32},
    {"q4_1", 32},
    {"q5_0", 32},
    {"q5_1", 32},
    {"q2_k", 256},
    {"q3_k", 256},
    {"q4_k", 256},
    {"q5_k", 256},
    {"q6_k", 256},
    {"int8/%d", 1},
    {"qint8/row/f32", 1},
    {"qint8/row/bf16", 1},
    {"qint8/row/f16", 1},
    {"qfloat8/row/f32", 1},
    {"qfloat8/row/bf16", 1},
    {"qfloat8/row/f16", 1},
    {"qfloat8_e5m2/row/bf16", 1},
    {"qint4/%d/f32", 1},
    {"qint4/%d/bf16", 1},
    {"qint4/%d/f16", 1},
    {"qint2/%d/f32", 1},
    {"qint2/%d/bf16", 1},
    {"qint2/%d/f16", 1},
    {"e4m3/raw", 1},
    {"e5m2/raw", 1},
    {"e4m3/tensor/dequant_scale", 1},
    {"e4m3/tensor/quant_scale/bf16", 1},
    {"e4m3/row/dequant_scale/f16", 1},
    {"e4m3/row/quant_scale", 1},
    {"e5m2/tensor/quant_scale", 1},
    {"e5m2/row/dequant_scale/bf16", 1},
};

/* `part_shift`, `dst_shift`: elements by which operands lie off an aligned address. */
typedef struct shape {
    int64_t rows, cols;
    int64_t part_shift, dst_shift;
} shape;

static const shape shapes[] = {
    {1, 1, 0, 0},    {5, 33, 0, 0},   {6, 40, 1, 0},    {3, 2056, 0, 0},  {8, 96, 0, 0},
    {5, 96, 0, 1},   {7, 160, 3, 0},  {37, 256, 0, 0},  {3, 768, 1, 0},   {4, 512, 0, 3},
    {5, 2304, 0, 0}, {16, 768, 0, 0}, {40, 1024, 0, 0}, {2, 18432, 0, 0}, {100, 4096, 0, 0},
};

enum { CASE_NUMEL = TESS_NELEM(formats) * TESS_NELEM(shapes), TOKEN_NUMEL = 11, PAD = 8 };

typedef struct problem {
    tess_codec codec;
    shape s;
    tess_codec_part part[TESS_CODEC_PART_MAX];
    int part_numel;
} problem;

static problem problems[CASE_NUMEL];
static int problem_numel;

/* Groups of 32 where rows have them, else the whole row: 33 elements are no whole chunks. */
static void problem_add(int format_idx, const shape *s)
{
    char text[64];
    problem *p = &problems[problem_numel];
    const bool is_group = strncmp(formats[format_idx].text, "qint", 4) == 0;
    if (s->cols % formats[format_idx].multiple != 0)
        return;
    snprintf(text, sizeof text, formats[format_idx].text,
             (int)(is_group && s->cols % 32 == 0 ? 32 : s->cols));
    p->s = *s;
    if (tess_codec_parse(text, s->cols, &p->codec) != TESS_OK ||
        tess_codec_parts(&p->codec, s->rows * s->cols, p->part, &p->part_numel) != TESS_OK)
        fail_msg("%s", tess_error_message());
    problem_numel++;
}

/* ---- contents ---- */

/* Of any magnitude that the dtype has, some of them zero, huge or none. */
static void constants_fill(twin_operand *x)
{
    static const float special[] = {0.0F,     -0.0F,    0x1p-149F, 0x1p-130F, 3e38F,
                                    INFINITY, 0x1p-24F, -1.5F,     65504.0F,  0x1p-100F};
    const tess_rng rng = tess_rng_make(11, TESS_RNG_TEST, 0, 3);
    for (int64_t i = 0; i < x->numel; i++) {
        float v = (float)tess_rng_normal(&rng, (uint64_t)i) * 0.05F;
        if (i % 7 == 3)
            v = special[i / 7 % TESS_NELEM(special)];
        if (x->dt == TESS_F32)
            ((float *)x->initial)[i] = v;
        else
            ((uint16_t *)x->initial)[i] =
                x->dt == TESS_BF16 ? tess_bf16_from_f32(v) : tess_f16_from_f32(v);
    }
}

static void bytes_fill(twin_operand *x)
{
    const tess_rng rng = tess_rng_make(12, TESS_RNG_TEST, 0, 3);
    for (size_t i = 0; i < x->nbytes; i++)
        ((uint8_t *)x->initial)[i] = (uint8_t)tess_rng_below(&rng, i, 256);
}

static void parts_make(twin *t, const problem *p)
{
    t->ctx = p;
    t->shift = p->s.part_shift;
    t->has_nan_bits = p->codec.format == TESS_FORMAT_F16;
    for (int i = 0; i < TESS_CODEC_PART_MAX; i++) {
        const bool is_there = i < p->part_numel;
        twin_operand *x =
            twin_add(t, is_there ? p->part[i].name : "none",
                     is_there && p->part[i].dt != TESS_F16 ? p->part[i].dt : TESS_BF16,
                     is_there ? p->part[i].numel : 0);
        if (!is_there)
            continue;
        if (p->part[i].dt == TESS_U8 || i == 0) /* blocks of GGUF have all bits of an f16 too */
            bytes_fill(x);
        else
            constants_fill(x);
    }
    t->shift = p->s.dst_shift;
}

static void parts_of(const twin *t, const void *part[TESS_CODEC_PART_MAX])
{
    const problem *p = t->ctx;
    for (int i = 0; i < TESS_CODEC_PART_MAX; i++)
        part[i] = i < p->part_numel ? t->x[i].data : NULL;
}

#define CALL(t, op, args) ((t)->is_cuda ? tess_cuda_##op(args, s) : tess_cpu_##op(args, s))

/* ---- ranges ---- */

enum { DST = TESS_CODEC_PART_MAX };

static void ranges_make(twin *t, int case_idx)
{
    const problem *p = &problems[case_idx];
    const int64_t numel = p->s.rows * p->s.cols;
    parts_make(t, p);
    twin_output(t, "whole_f32", TESS_F32, numel);
    twin_output(t, "whole_bf16", TESS_BF16, numel);
    twin_output(t, "ranges_f32", TESS_F32, numel);
    twin_output(t, "ranges_bf16", TESS_BF16, numel);
}

static tess_status range_call(twin *t, tess_stream *s, int64_t first_idx, tess_view dst)
{
    const problem *p = t->ctx;
    tess_dequantize_args a = {
        .codec = p->codec, .numel = p->s.rows * p->s.cols, .first_idx = first_idx, .dst = dst};
    parts_of(t, a.part);
    return CALL(t, dequantize, &a);
}

/* All at once, and in ranges that begin at block ends, inside chunks and inside blocks. */
static tess_status ranges_call(twin *t, tess_stream *s)
{
    const problem *p = t->ctx;
    const int64_t numel = p->s.rows * p->s.cols;
    static const int64_t run[] = {1, 7, 32, 64, 8, 16, 129, 1000, 3, 4096};
    for (int i = 0; i < 2; i++) {
        TESS_TRY(range_call(t, s, 0, twin_view(t, DST + i)));
        const tess_view ranges = twin_view(t, DST + 2 + i);
        int64_t at = 0;
        for (int k = 0; at < numel; k++) {
            const int64_t n = k < TESS_NELEM(run) ? TESS_MIN(run[k], numel - at) : numel - at;
            TESS_TRY(range_call(t, s, at, tess_view_slice(ranges, at, n)));
            at += n;
        }
    }
    return TESS_OK;
}

/* ---- rows ---- */

static void rows_make(twin *t, int case_idx)
{
    const problem *p = &problems[case_idx];
    parts_make(t, p);
    twin_output(t, "apart_f32", TESS_F32, p->s.rows * (p->s.cols + PAD));
    twin_output(t, "apart_bf16", TESS_BF16, p->s.rows * (p->s.cols + PAD));
    twin_output(t, "tokens_f32", TESS_F32, TOKEN_NUMEL * p->s.cols);
    twin_output(t, "tokens_bf16", TESS_BF16, TOKEN_NUMEL * p->s.cols);
    t->shift = 0;
    twin_index(t, "tokens", TOKEN_NUMEL, p->s.rows);
}

/* As weights beside an adapter's: the twin row by row. Behind the door products alone do this. */
static tess_status apart_call(twin *t, tess_stream *s, tess_view dst)
{
    const problem *p = t->ctx;
    const int64_t stride = p->s.cols + PAD;
    tess_decode_args a = {.codec = p->codec,
                          .numel = p->s.rows * p->s.cols,
                          .rows = p->s.rows,
                          .cols = p->s.cols,
                          .dst = dst.data,
                          .dst_stride = stride,
                          .dt = dst.dt};
    parts_of(t, a.part);
    if (t->is_cuda)
        return tess_cuda_decode(&a, s);
    for (int64_t r = 0; r < p->s.rows; r++)
        TESS_TRY(range_call(t, s, r * p->s.cols, tess_view_slice(dst, r * stride, p->s.cols)));
    return TESS_OK;
}

static tess_status rows_call(twin *t, tess_stream *s)
{
    const problem *p = t->ctx;
    for (int i = 0; i < 2; i++) {
        tess_embedding_args a = {.tokens = t->x[DST + 4].data,
                                 .token_numel = TOKEN_NUMEL,
                                 .table = {.codec = p->codec, .rows = p->s.rows, .cols = p->s.cols},
                                 .out = twin_view(t, DST + 2 + i)};
        parts_of(t, a.table.part);
        if (!tess_emulation_is_device())
            TESS_TRY(apart_call(t, s, twin_view(t, DST + i)));
        TESS_TRY(CALL(t, embedding_forward, &a));
    }
    return TESS_OK;
}

/* ---- int8 ---- */

enum { SCB_NUMEL = 1 << 16 };

/* Quotients by 127 without a division: scales all over one binade, and around the limits beyond
 * which it divides. */
static void quotients_make(twin *t, int case_idx)
{
    static problem p;
    (void)case_idx;
    p = (problem){.codec = {.format = TESS_FORMAT_INT8, .block_numel = 8},
                  .s = {SCB_NUMEL, 8, 0, 0}};
    assert_int_equal(tess_codec_parts(&p.codec, SCB_NUMEL * 8, p.part, &p.part_numel), TESS_OK);
    parts_make(t, &p);
    float *scb = t->x[1].initial;
    for (int i = 0; i < SCB_NUMEL; i++) {
        scb[i] = 1.0F + (float)i * 0x1p-16F + (float)(i % 128) * 0x1p-23F;
        if (i % 16 == 0)
            scb[i] = ldexpf(scb[i], i % 32 == 0 ? -149 + i / 32 % 62 : 111 + i / 32 % 17);
        if (i % 64 == 5)
            scb[i] = -ldexpf(scb[i], -i % 150);
    }
    twin_output(t, "values", TESS_F32, SCB_NUMEL * 8);
}

static tess_status quotients_call(twin *t, tess_stream *s)
{
    return range_call(t, s, 0, twin_view(t, DST));
}

static const twin_op quotients = {"quotients by 127", quotients_make, quotients_call, 1, 0};

/* ---- tests ---- */

static twin_op ops[] = {
    {"ranges", ranges_make, ranges_call, 0, 0},
    {"rows", rows_make, rows_call, 0, 0},
};

static const twin_suite suite = {ops, TESS_NELEM(ops), {"codec_priv.cuh", "codec_bnb4.cu", NULL}};

static int setup(void **state)
{
    if (tess_emulation_is_device())
        print_message("skipped on a device: rows that lie apart, which no entry of a table has\n");
    int small_numel = 0;
    for (int i = 0; i < TESS_NELEM(shapes); i++) {
        small_numel = problem_numel; /* the last shape fills a device */
        for (int f = 0; f < TESS_NELEM(formats); f++)
            problem_add(f, &shapes[i]);
    }
    for (int i = 0; i < TESS_NELEM(ops); i++) {
        ops[i].case_numel = problem_numel;
        ops[i].large_numel = problem_numel - small_numel;
    }
    return tess_emulation_setup(state);
}

static void describe_failure(const twin_op *op, int case_idx, int order, const char *text)
{
    char codec[TESS_CODEC_TEXT_NBYTES];
    const problem *p = &problems[case_idx];
    tess_codec_describe(&p->codec, codec);
    fail_msg("%s of %s [%d, %d], operands %d and %d off, order %d: %s", op->name, codec,
             (int)p->s.rows, (int)p->s.cols, (int)p->s.part_shift, (int)p->s.dst_shift, order,
             text);
}

/* Two orders a case: nothing but tables is shared by threads. */
static void test_decoders_match_twins(void **state)
{
    (void)state;
    for (int i = 0; i < TESS_NELEM(ops); i++) {
        for (int c = 0; c < twin_case_numel(&ops[i]); c++) {
            twin t = twin_make(&ops[i], c);
            twin_expect(&t, &ops[i], c);
            for (int o = 0; o < 2; o++) {
                char text[TWIN_LINE_NBYTES];
                twin_run(&t, &ops[i], &twin_orders[o], text);
                if (text[0] != '\0')
                    describe_failure(&ops[i], c, o, text);
            }
            twin_destroy(&t);
        }
    }
    twin_check_reach(&suite);
}

/* Formats that are in the table and in no case would go unnoticed. */
static void test_every_quantized_format_has_a_case(void **state)
{
    (void)state;
    for (int f = 0; f < TESS_FORMAT_NUMEL; f++) {
        bool is_there = !tess_format_is_quantized((tess_format)f);
        for (int c = 0; c < problem_numel && !is_there; c++)
            is_there = problems[c].codec.format == (tess_format)f;
        if (!is_there)
            fail_msg("%s has no case", tess_format_name((tess_format)f));
    }
}

static void test_int8_quotients_are_rounded_as_divided(void **state)
{
    (void)state;
    twin_check_cases(&quotients, 0, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_quantized_format_has_a_case),
        cmocka_unit_test(test_decoders_match_twins),
        cmocka_unit_test(test_int8_quotients_are_rounded_as_divided),
        cmocka_unit_test_prestate(test_barriers_taken_out_show, (void *)(uintptr_t)&suite),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
