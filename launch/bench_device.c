/*
 * Rates of the CPU's kernels: products by their smallest extent, weights of every format, the other
 * ops of a step.
 *
 * [Note: weights and products] A product brings its weights into the layout of the kernels,
 * whatever the number of rows: its time is a + b rows. Weights' rates come from a, taken from two
 * numbers of rows; rates of products are those of the rest.
 */
#include <string.h>

#include "core/arith.h"
#include "core/memory.h"
#include "kernels/cost_count.h"
#include "launch/bench.h"
#include "shard/profile.h"

/* Shapes of the ops: rows of a small model, in cache as they are in a step. */
enum { ROWS = 512, DIM = 1024, HEADS = 8, KV_HEADS = 4, HEAD_DIM = 64, VOCAB = 4096 };
enum { CODES = 4096, CODE_DIM = 64, PARAMS = 1 << 20, WEIGHT_EXTENT = 768 };
enum { EXTENT_FIRST = 3, EXTENT_END = 11, PRODUCT_ROWS = 512 };

typedef struct device_bench {
    tess_bench *b;
    tess_json *root, *ops, *weights;
    double plain_s; /* bf16 weights: seconds of an element */
} device_bench;

/* ---- products ---- */

static tess_status run_gemm(void *arg, tess_stream *s) { return tess_kernels_cpu.gemm(arg, s); }

static tess_view view_of(tess_bench *b, int64_t numel, tess_dtype dt)
{
    return tess_view_host(tess_bench_take(b, (size_t)numel * tess_dtype_block_nbytes(dt)), numel,
                          dt);
}

static tess_status take_matrix(tess_bench *b, const tess_codec *codec, int64_t rows, int64_t cols,
                               tess_matrix *out)
{
    tess_codec_part part[TESS_CODEC_PART_MAX];
    int part_numel = 0;
    *out = (tess_matrix){.codec = *codec, .rows = rows, .cols = cols};
    TESS_TRY(tess_codec_parts(codec, rows * cols, part, &part_numel));
    for (int i = 0; i < part_numel; i++)
        out->part[i] = tess_bench_take(b, part[i].nbytes);
    return TESS_OK;
}

/* Median seconds of one product. */
static tess_status time_product(tess_bench *b, tess_gemm_kind kind, const tess_codec *codec,
                                const int64_t mnk[3], double *out_s)
{
    const int64_t m = mnk[0], n = mnk[1], k = mnk[2];
    const tess_dtype c_dt = kind == TESS_GEMM_TN ? TESS_F32 : TESS_BF16;
    tess_gemm_args a = {.kind = kind, .m = m, .n = n, .term_numel = 1};
    const size_t mark = b->used_nbytes;
    a.term[0] = (tess_gemm_term){.a = view_of(b, m * k, TESS_BF16), .k = k, .scale = 1.0F};
    TESS_TRY(take_matrix(b, codec, kind == TESS_GEMM_NT ? n : k, kind == TESS_GEMM_NT ? k : n,
                         &a.term[0].b));
    a.c = view_of(b, m * n, c_dt);
    const size_t work_nbytes = tess_kernels_cpu.gemm_work_nbytes(&a, (int)b->options->thread_numel);
    a.work = tess_view_host(tess_bench_take(b, work_nbytes), (int64_t)work_nbytes, TESS_U8_OPAQUE);
    const tess_status st = tess_bench_time(b, run_gemm, &a, out_s);
    b->used_nbytes = mark;
    return st;
}

/* Seconds to bring an element of a format in front of a product: the part that rows do not change.
 */
static tess_status weight_s(tess_bench *b, const tess_codec *codec, double *out_s)
{
    const int64_t few[3] = {128, WEIGHT_EXTENT, WEIGHT_EXTENT};
    const int64_t many[3] = {512, WEIGHT_EXTENT, WEIGHT_EXTENT};
    double sum_s = 0.0;
    for (int kind = TESS_GEMM_NT; kind <= TESS_GEMM_NN; kind++) {
        double few_s = 0.0, many_s = 0.0;
        TESS_TRY(time_product(b, (tess_gemm_kind)kind, codec, few, &few_s));
        TESS_TRY(time_product(b, (tess_gemm_kind)kind, codec, many, &many_s));
        const double row_s = (many_s - few_s) / (double)(many[0] - few[0]);
        sum_s += TESS_MAX(few_s - row_s * (double)few[0], 0.0);
    }
    *out_s = 0.5 * sum_s / ((double)WEIGHT_EXTENT * (double)WEIGHT_EXTENT);
    return TESS_OK;
}

/* A codec of the format that is usual for it. */
static tess_codec usual_codec(tess_format format)
{
    tess_codec codec = tess_codec_of_format(format);
    if (format == TESS_FORMAT_NF4 || format == TESS_FORMAT_FP4)
        codec = (tess_codec){.format = format, .block_numel = 64, .double_quant = true};
    if (format == TESS_FORMAT_QINT4 || format == TESS_FORMAT_QINT2)
        codec.block_numel = 128;
    if (format == TESS_FORMAT_INT8 || format == TESS_FORMAT_QINT8 ||
        format == TESS_FORMAT_QFLOAT8 || format == TESS_FORMAT_QFLOAT8_E5M2)
        codec.block_numel = WEIGHT_EXTENT;
    if (format >= TESS_FORMAT_QINT8 && format <= TESS_FORMAT_QINT2)
        codec.scale_dt = TESS_BF16;
    return codec;
}

static tess_status bench_weights(device_bench *d)
{
    for (int i = 0; i < TESS_FORMAT_NUMEL; i++) {
        const tess_codec codec = usual_codec((tess_format)i);
        double s = 0.0;
        TESS_TRY(weight_s(d->b, &codec, &s));
        if (i == TESS_FORMAT_BF16)
            d->plain_s = s;
        if (s > 0.0)
            TESS_TRY(tess_json_add_f64(d->weights, tess_format_name((tess_format)i), 1e-9 / s));
    }
    return TESS_OK;
}

/* FLOP/s of products whose smallest extent is `e`: forward, backward and weight gradient; short
 * ones as adapters have them, in each place that may be short. */
static tess_status product_rate(device_bench *d, int64_t e, double *rate)
{
    const int64_t rows = TESS_MAX(e, (int64_t)PRODUCT_ROWS), wide = e <= 64 ? DIM : e;
    const int64_t shape[][4] = {{TESS_GEMM_NT, rows, e, wide}, {TESS_GEMM_NT, rows, wide, e},
                                {TESS_GEMM_NN, rows, e, wide}, {TESS_GEMM_NN, rows, wide, e},
                                {TESS_GEMM_TN, wide, e, rows}, {TESS_GEMM_TN, e, wide, rows}};
    const tess_codec codec = tess_codec_of_format(TESS_FORMAT_BF16);
    double flops = 0.0, sum_s = 0.0;
    for (int i = 0; i < TESS_NELEM(shape); i++) {
        const int64_t *s = shape[i];
        double one_s = 0.0;
        TESS_TRY(time_product(d->b, (tess_gemm_kind)s[0], &codec, s + 1, &one_s));
        const double weight = d->plain_s * (double)s[2] * (double)s[3];
        flops += 2.0 * (double)s[1] * (double)s[2] * (double)s[3];
        sum_s += TESS_MAX(one_s - weight, 0.1 * one_s);
    }
    *rate = flops / sum_s;
    return TESS_OK;
}

static tess_status bench_products(device_bench *d)
{
    tess_json *list = NULL, *point = NULL;
    double best = 0.0;
    TESS_TRY(tess_json_add_array(d->root, "product_tflop_per_s", &list));
    for (int i = EXTENT_FIRST; i < EXTENT_END; i++) {
        double rate = 0.0;
        TESS_TRY(product_rate(d, INT64_C(1) << i, &rate));
        TESS_TRY(tess_json_add_array(list, NULL, &point));
        TESS_TRY(tess_json_add_i64(point, NULL, INT64_C(1) << i));
        TESS_TRY(tess_json_add_f64(point, NULL, rate * 1e-12));
        best = TESS_MAX(best, rate);
    }
    return tess_json_add_f64(d->root, "peak_tflop_per_s", best * 1e-12);
}

/* ---- other ops ---- */

/* Amount of an op, as a step counts it, over its time. */
static tess_status add_rate(device_bench *d, tess_cost_op op, const tess_cost *cost, double s)
{
    return tess_json_add_f64(d->ops, tess_cost_op_name(op), 1e-9 * cost->op[op] / s);
}

#define OP_FUNCTIONS(kernel, type)                                                                 \
    static tess_status run_##kernel(void *arg, tess_stream *s)                                     \
    {                                                                                              \
        return tess_kernels_cpu.kernel(arg, s);                                                    \
    }                                                                                              \
    static tess_cost count_##kernel(const type *args)                                              \
    {                                                                                              \
        tess_cost cost = {0};                                                                      \
        TESS_COST_OF(args)(&cost, args);                                                           \
        return cost;                                                                               \
    }
OP_FUNCTIONS(rmsnorm_forward, tess_rmsnorm_args)
OP_FUNCTIONS(rmsnorm_backward, tess_rmsnorm_backward_args)
OP_FUNCTIONS(rope, tess_rope_args)
OP_FUNCTIONS(swiglu_forward, tess_swiglu_args)
OP_FUNCTIONS(swiglu_backward, tess_swiglu_backward_args)
OP_FUNCTIONS(cross_entropy, tess_cross_entropy_args)
OP_FUNCTIONS(embedding_forward, tess_embedding_args)
OP_FUNCTIONS(add, tess_add_args)
OP_FUNCTIONS(attention_forward, tess_attention_args)
OP_FUNCTIONS(attention_backward, tess_attention_backward_args)
OP_FUNCTIONS(nearest, tess_nearest_args)
OP_FUNCTIONS(adamw, tess_adamw_args)
/* Time a kernel of the table and note its rate. */
#define BENCH_OP(d, kind, kernel, args)                                                            \
    bench_op(d, TESS_COST_##kind, run_##kernel, args, count_##kernel(args))

static tess_status bench_op(device_bench *d, tess_cost_op op, tess_bench_call call, void *args,
                            tess_cost cost)
{
    double s = 0.0;
    TESS_TRY(tess_bench_time(d->b, call, args, &s));
    return add_rate(d, op, &cost, s);
}

static int32_t *indices(tess_bench *b, int64_t numel, int64_t modulus)
{
    int32_t *out = tess_bench_take(b, (size_t)numel * sizeof *out);
    for (int64_t i = 0; i < numel; i++)
        out[i] = (int32_t)(modulus > 0 ? i % modulus : 0);
    return out;
}

static tess_view bf16(tess_bench *b, int64_t rows, int64_t cols)
{
    return view_of(b, rows * cols, TESS_BF16);
}

static void clear(void *data, size_t nbytes) { memset(data, 0, nbytes); }

static tess_status bench_rows(device_bench *d)
{
    tess_bench *b = d->b;
    float *inv = tess_bench_take(b, ROWS * sizeof(float));
    const tess_view x = bf16(b, ROWS, DIM), y = bf16(b, ROWS, DIM), r = bf16(b, ROWS, DIM);
    const tess_view sum = bf16(b, ROWS, DIM), w = bf16(b, 1, DIM);
    tess_rmsnorm_args norm = {.x = x,
                              .w = w,
                              .row_numel = ROWS,
                              .dim = DIM,
                              .eps = 1e-5F,
                              .y = y,
                              .inv_rms = inv,
                              .residual = r,
                              .sum = sum};
    tess_rmsnorm_backward_args back = {.x = x,
                                       .w = w,
                                       .inv_rms = inv,
                                       .d_y = y,
                                       .row_numel = ROWS,
                                       .dim = DIM,
                                       .residual = r,
                                       .d_x = sum};
    tess_swiglu_args swiglu = {.gate = x, .up = y, .out = r, .dim = DIM};
    tess_swiglu_backward_args swiglu_back = {
        .gate = x, .up = y, .d_out = r, .d_gate = sum, .d_up = bf16(b, ROWS, DIM), .dim = DIM};
    tess_add_args add = {.a = x, .b = y, .out = r};
    TESS_TRY(BENCH_OP(d, NORM, rmsnorm_forward, &norm));
    TESS_TRY(BENCH_OP(d, NORM_BACKWARD, rmsnorm_backward, &back));
    TESS_TRY(BENCH_OP(d, SWIGLU, swiglu_forward, &swiglu));
    TESS_TRY(BENCH_OP(d, SWIGLU_BACKWARD, swiglu_backward, &swiglu_back));
    return BENCH_OP(d, ELEMENT, add, &add);
}

static tess_status bench_tokens(device_bench *d)
{
    tess_bench *b = d->b;
    const tess_codec plain = tess_codec_of_format(TESS_FORMAT_BF16);
    float *table[2];
    for (int i = 0; i < 2; i++) {
        table[i] = tess_bench_take(b, ROWS * HEAD_DIM / 2 * sizeof(float));
        clear(table[i], ROWS * HEAD_DIM / 2 * sizeof(float));
    }
    tess_rope_args rope = {.x = bf16(b, ROWS, HEADS * HEAD_DIM),
                           .token_numel = ROWS,
                           .head_numel = HEADS,
                           .dim = HEAD_DIM,
                           .positions = indices(b, ROWS, ROWS),
                           .cos_table = table[0],
                           .sin_table = table[1],
                           .table_rows = ROWS};
    const int64_t rows = 128;
    tess_cross_entropy_args loss = {.logits = view_of(b, rows * VOCAB, TESS_F32),
                                    .row_numel = rows,
                                    .vocab_numel = VOCAB,
                                    .labels = indices(b, rows, VOCAB),
                                    .row_loss = tess_bench_take(b, (size_t)rows * sizeof(double)),
                                    .grad_scale = 1.0F,
                                    .d_logits = bf16(b, rows, VOCAB)};
    clear(loss.logits.data, (size_t)rows * VOCAB * sizeof(float));
    tess_embedding_args embed = {
        .tokens = indices(b, ROWS, VOCAB), .token_numel = ROWS, .out = bf16(b, ROWS, DIM)};
    TESS_TRY(take_matrix(b, &plain, VOCAB, DIM, &embed.table));
    TESS_TRY(BENCH_OP(d, ROPE, rope, &rope));
    TESS_TRY(BENCH_OP(d, LOSS, cross_entropy, &loss));
    return BENCH_OP(d, EMBEDDING, embedding_forward, &embed);
}

static tess_status bench_attention(device_bench *d)
{
    tess_bench *b = d->b;
    const tess_attention_shape shape = {.dt = TESS_BF16,
                                        .token_numel = ROWS,
                                        .head_numel = HEADS,
                                        .kv_head_numel = KV_HEADS,
                                        .dim = HEAD_DIM,
                                        .longest_numel = ROWS,
                                        .document_numel = 1};
    const tess_view q = bf16(b, ROWS, HEADS * HEAD_DIM), out = bf16(b, ROWS, HEADS * HEAD_DIM);
    const tess_view k = bf16(b, ROWS, KV_HEADS * HEAD_DIM), v = bf16(b, ROWS, KV_HEADS * HEAD_DIM);
    const int32_t *start = indices(b, ROWS, 0);
    float *lse = tess_bench_take(b, (size_t)HEADS * ROWS * sizeof(float));
    const size_t nbytes =
        tess_kernels_cpu.attention_work_nbytes(&shape, (int)b->options->thread_numel);
    const tess_view work =
        tess_view_host(tess_bench_take(b, nbytes), (int64_t)nbytes, TESS_U8_OPAQUE);
    tess_attention_args forward = {.shape = shape,
                                   .q = q,
                                   .k = k,
                                   .v = v,
                                   .doc_start = start,
                                   .scale = 0.125F,
                                   .out = out,
                                   .lse = lse,
                                   .work = work};
    tess_attention_backward_args backward = {.shape = shape,
                                             .q = q,
                                             .k = k,
                                             .v = v,
                                             .out = out,
                                             .lse = lse,
                                             .d_out = bf16(b, ROWS, HEADS * HEAD_DIM),
                                             .doc_start = start,
                                             .scale = 0.125F,
                                             .d_q = bf16(b, ROWS, HEADS * HEAD_DIM),
                                             .d_k = bf16(b, ROWS, KV_HEADS * HEAD_DIM),
                                             .d_v = bf16(b, ROWS, KV_HEADS * HEAD_DIM),
                                             .work = work};
    TESS_TRY(BENCH_OP(d, ATTENTION, attention_forward, &forward));
    return BENCH_OP(d, ATTENTION_BACKWARD, attention_backward, &backward);
}

static tess_status bench_search(device_bench *d)
{
    tess_bench *b = d->b;
    const int threads = (int)b->options->thread_numel;
    const size_t pack = tess_kernels_cpu.nearest_pack_nbytes(CODES, CODE_DIM);
    const size_t work = tess_kernels_cpu.nearest_work_nbytes(CODE_DIM, 1, threads);
    tess_nearest_args a = {.x = view_of(b, ROWS * CODE_DIM, TESS_F32),
                           .code = view_of(b, CODES * CODE_DIM, TESS_F32),
                           .pack = view_of(b, (int64_t)pack, TESS_U8_OPAQUE),
                           .key = view_of(b, ROWS, TESS_U64),
                           .work = view_of(b, (int64_t)work, TESS_U8_OPAQUE),
                           .vector_numel = ROWS,
                           .code_numel = CODES,
                           .dim = CODE_DIM,
                           .best_numel = 1};
    tess_nearest_prepare_args prepare = {
        .code = a.code, .pack = a.pack, .code_numel = CODES, .dim = CODE_DIM};
    float *value = a.x.data, *code = a.code.data;
    for (int64_t i = 0; i < a.x.numel; i++)
        value[i] = (float)(i * 2654435761 % 1000003) * 1e-6F;
    for (int64_t i = 0; i < a.code.numel; i++)
        code[i] = (float)(i * 40503 % 1000003) * 1e-6F;
    TESS_TRY(tess_kernels_cpu.nearest_prepare(&prepare, &b->stream));
    TESS_TRY(BENCH_OP(d, SEARCH, nearest, &a));
    a.code_numel = prepare.code_numel = 1; /* one distance a vector, next to no search */
    a.code.numel = prepare.code.numel = CODE_DIM;
    TESS_TRY(tess_kernels_cpu.nearest_prepare(&prepare, &b->stream));
    return BENCH_OP(d, DISTANCE, nearest, &a);
}

/* ---- sums and updates ---- */

static tess_status run_fold(void *arg, tess_stream *s) { return tess_kernels_cpu.fold(arg, s); }
static tess_status run_squares(void *arg, tess_stream *s)
{
    return tess_kernels_cpu.square_norm(arg, s);
}

static tess_status bench_state(device_bench *d)
{
    tess_bench *b = d->b;
    float *x[4];
    tess_exact exact = {0};
    int64_t nonfinite = 0;
    tess_cost fold_cost = {0}, squares_cost = {0};
    for (int i = 0; i < TESS_NELEM(x); i++) {
        x[i] = tess_bench_take(b, PARAMS * sizeof(float));
        for (int k = 0; k < PARAMS; k++)
            x[i][k] = 1e-3F * (float)(k % 1000 + 1);
    }
    tess_fold_args fold = {.a = x[0], .b = x[1], .dst = x[2], .numel = PARAMS};
    tess_square_norm_args squares = {
        .x = x[0], .numel = PARAMS, .acc = &exact, .nonfinite_numel = &nonfinite};
    tess_adamw_args adamw = {.master = x[0],
                             .exp_avg = x[1],
                             .exp_avg_sq = x[2],
                             .grad = x[3],
                             .param = bf16(b, PARAMS, 1),
                             .numel = PARAMS,
                             .clip_factor = 1.0F,
                             .learning_rate = 1e-5,
                             .beta1 = 0.9,
                             .beta2 = 0.99,
                             .eps = 1e-8,
                             .step = 10};
    tess_count_fold(&fold_cost, PARAMS);
    tess_count_squares(&squares_cost, PARAMS);
    TESS_TRY(bench_op(d, TESS_COST_FOLD, run_fold, &fold, fold_cost));
    TESS_TRY(bench_op(d, TESS_COST_SQUARES, run_squares, &squares, squares_cost));
    return BENCH_OP(d, OPTIMIZER, adamw, &adamw);
}

typedef struct copy_args {
    char *dst;
    const char *src;
    size_t nbytes;
} copy_args;

static tess_status run_copy(void *arg, tess_stream *s)
{
    const copy_args *a = arg;
    (void)s;
    memcpy(a->dst, a->src, a->nbytes);
    return TESS_OK;
}

static tess_status bench_memory(device_bench *d)
{
    const size_t nbytes = 128 << 20;
    copy_args a = {tess_bench_take(d->b, nbytes), tess_bench_take(d->b, nbytes), nbytes};
    double s = 0.0;
    TESS_TRY(tess_bench_time(d->b, run_copy, &a, &s));
    return tess_json_add_f64(d->root, "memory_gb_per_s", 2e-9 * (double)nbytes / s);
}

/* ---- the file ---- */

static tess_status measure_all(device_bench *d)
{
    static tess_status (*const part[])(device_bench *) = {
        bench_weights,   bench_products, bench_rows,  bench_tokens,
        bench_attention, bench_search,   bench_state, bench_memory};
    for (int i = 0; i < TESS_NELEM(part); i++) {
        d->b->used_nbytes = 0;
        TESS_TRY(part[i](d));
    }
    return TESS_OK;
}

/* Ranks of one machine talk through its memory: until `tessera bench links` says more. */
static tess_status add_link(tess_json *root)
{
    tess_json *link = NULL, *list = NULL, *point = NULL;
    TESS_TRY(tess_json_add_object(root, "link", &link));
    TESS_TRY(tess_json_add_f64(link, "latency_us", 5.0));
    TESS_TRY(tess_json_add_array(link, "gb_per_s", &list));
    TESS_TRY(tess_json_add_array(list, NULL, &point));
    TESS_TRY(tess_json_add_i64(point, NULL, 1 << 20));
    return tess_json_add_f64(point, NULL, 2.0);
}

static tess_status make_description(device_bench *d)
{
    char source[TESS_PROFILE_SOURCE_NBYTES];
    tess_bench_source(d->b, source, sizeof source);
    TESS_TRY(tess_json_create_object(&d->root));
    TESS_TRY(tess_json_add_string(d->root, "name", "this-machine"));
    TESS_TRY(tess_json_add_string(d->root, "kind", "measured"));
    TESS_TRY(tess_json_add_string(d->root, "source", source));
    TESS_TRY(tess_json_add_string(d->root, "network", "ethernet-10g"));
    TESS_TRY(tess_json_add_i64(d->root, "ranks_per_node", 8));
    TESS_TRY(tess_json_add_bool(d->root, "overlaps", false));
    TESS_TRY(tess_json_add_object(d->root, "ops", &d->ops));
    TESS_TRY(tess_json_add_object(d->root, "weights_gelem_per_s", &d->weights));
    TESS_TRY(add_link(d->root));
    return measure_all(d);
}

/* The last pass has every pass's times. */
static tess_status measure_passes(device_bench *d)
{
    tess_bench *b = d->b;
    for (b->pass_idx = 0; b->pass_idx < b->pass_numel; b->pass_idx++) {
        b->timed_idx = 0;
        tess_json_destroy(&d->root);
        TESS_TRY(make_description(d));
    }
    return tess_json_write(b->ctx->io, b->options->output, d->root, 2);
}

tess_status tess_bench_device(tess_bench *b)
{
    device_bench d = {.b = b};
    void *timed = NULL;
    TESS_TRY(tess_alloc_array(TESS_BENCH_TIMED_MAX, sizeof *b->timed_s, &timed));
    b->timed_s = timed;
    b->pass_numel = (int)TESS_MIN(b->options->repeat_numel, (int64_t)TESS_BENCH_PASS_MAX);
    const tess_status st = measure_passes(&d);
    tess_json_destroy(&d.root);
    tess_free(timed);
    b->timed_s = NULL;
    return st;
}
