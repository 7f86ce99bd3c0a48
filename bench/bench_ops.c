/*
 * Time of the CPU ops other than matrix products at training shapes, one JSON line each.
 *
 *   bench_ops [--path NAME] [--threads N] [--repeats N] [--op NAME] [--dtype f32|bf16]
 *
 * Shapes: a micro-batch of 512 tokens of a 1.1B model; attention also at that of a 135M model. One
 * warm-up, then `repeats` runs: median, 10th and 90th percentile of wall time, and the median of
 * CPU time, which a busy machine leaves readable. The peer of attention: bench/peers/attention.py.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/memory.h"
#include "core/rng.h"
#include "kernels/kernels.h"

enum { REPEAT_MAX = 1000, TOKENS = 512, HIDDEN = 2048, INNER = 5632, VOCAB = 32000 };
enum { LOSS_ROWS = 64, STATE_NUMEL = 4 << 20, BUFFERS = 8 };

typedef struct bench {
    tess_stream stream;
    tess_dtype dt;
    int repeat_numel;
    const char *only;      /* NULL: every op */
    void *buffer[BUFFERS]; /* STATE_NUMEL f32 each */
    int32_t *ids;          /* [TOKENS] 0, 1, 2, ... */
    int32_t *zeros;        /* [TOKENS] */
    double *row_loss;      /* [LOSS_ROWS] */
    tess_attention_shape shape;
    tess_view work;
} bench;

static void must(tess_status st)
{
    if (st != TESS_OK) {
        fprintf(stderr, "bench_ops: %s\n", tess_error_message());
        exit(tess_status_exit_code(st));
    }
}

static double now_s(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static tess_view operand(const bench *b, int i, int64_t numel)
{
    return tess_view_host(b->buffer[i], numel, b->dt);
}

static tess_status run_rmsnorm_forward(bench *b)
{
    const tess_rmsnorm_args a = {.x = operand(b, 0, TOKENS * HIDDEN),
                                 .w = tess_view_host(b->buffer[1], HIDDEN, TESS_F32),
                                 .row_numel = TOKENS,
                                 .dim = HIDDEN,
                                 .eps = 1e-5F,
                                 .y = operand(b, 2, TOKENS * HIDDEN),
                                 .inv_rms = b->buffer[3]};
    return tess_kernels_cpu.rmsnorm_forward(&a, &b->stream);
}

static tess_status run_rmsnorm_backward(bench *b)
{
    const tess_rmsnorm_backward_args a = {.x = operand(b, 0, TOKENS * HIDDEN),
                                          .w = tess_view_host(b->buffer[1], HIDDEN, TESS_F32),
                                          .inv_rms = b->buffer[3],
                                          .d_y = operand(b, 2, TOKENS * HIDDEN),
                                          .row_numel = TOKENS,
                                          .dim = HIDDEN,
                                          .residual = operand(b, 4, TOKENS * HIDDEN),
                                          .d_x = operand(b, 5, TOKENS * HIDDEN)};
    return tess_kernels_cpu.rmsnorm_backward(&a, &b->stream);
}

static tess_status run_rope(bench *b)
{
    const tess_rope_args a = {.x = operand(b, 0, TOKENS * HIDDEN),
                              .token_numel = TOKENS,
                              .head_numel = HIDDEN / 64,
                              .dim = 64,
                              .positions = b->zeros,
                              .cos_table = b->buffer[1],
                              .sin_table = b->buffer[2],
                              .table_rows = TOKENS};
    return tess_kernels_cpu.rope(&a, &b->stream);
}

static tess_status run_swiglu_forward(bench *b)
{
    const tess_swiglu_args a = {.gate = operand(b, 0, TOKENS * INNER),
                                .up = operand(b, 1, TOKENS * INNER),
                                .out = operand(b, 2, TOKENS * INNER)};
    return tess_kernels_cpu.swiglu_forward(&a, &b->stream);
}

static tess_status run_swiglu_backward(bench *b)
{
    const tess_swiglu_backward_args a = {.gate = operand(b, 0, TOKENS * INNER),
                                         .up = operand(b, 1, TOKENS * INNER),
                                         .d_out = operand(b, 2, TOKENS * INNER),
                                         .d_gate = operand(b, 3, TOKENS * INNER),
                                         .d_up = operand(b, 4, TOKENS * INNER)};
    return tess_kernels_cpu.swiglu_backward(&a, &b->stream);
}

static tess_status run_add(bench *b)
{
    const tess_add_args a = {operand(b, 0, TOKENS * HIDDEN), operand(b, 1, TOKENS * HIDDEN),
                             operand(b, 2, TOKENS * HIDDEN)};
    return tess_kernels_cpu.add(&a, &b->stream);
}

static tess_status run_dropout(bench *b)
{
    const tess_dropout_args a = {.x = operand(b, 0, TOKENS * HIDDEN),
                                 .out = operand(b, 1, TOKENS * HIDDEN),
                                 .p = 0.1F,
                                 .rng = tess_rng_make(1, TESS_RNG_DROPOUT, 0, 0)};
    return tess_kernels_cpu.dropout(&a, &b->stream);
}

static tess_status run_cross_entropy(bench *b)
{
    const tess_cross_entropy_args a = {
        .logits = tess_view_host(b->buffer[0], LOSS_ROWS * VOCAB, TESS_F32),
        .row_numel = LOSS_ROWS,
        .vocab_numel = VOCAB,
        .labels = b->ids,
        .row_loss = b->row_loss,
        .grad_scale = 1e-3F,
        .d_logits = operand(b, 1, LOSS_ROWS * VOCAB)};
    return tess_kernels_cpu.cross_entropy(&a, &b->stream);
}

static tess_status run_square_norm(bench *b)
{
    tess_exact acc = {{0}};
    int64_t nonfinite_numel = 0;
    const tess_square_norm_args a = {b->buffer[0], STATE_NUMEL, &acc, &nonfinite_numel};
    return tess_kernels_cpu.square_norm(&a, &b->stream);
}

static tess_status run_fold(bench *b)
{
    const tess_fold_args a = {b->buffer[0], b->buffer[1], b->buffer[2], STATE_NUMEL};
    return tess_kernels_cpu.fold(&a, &b->stream);
}

static tess_status run_adamw(bench *b)
{
    const tess_adamw_args a = {.master = b->buffer[0],
                               .exp_avg = b->buffer[1],
                               .exp_avg_sq = b->buffer[2],
                               .grad = b->buffer[3],
                               .param = operand(b, 4, STATE_NUMEL),
                               .numel = STATE_NUMEL,
                               .clip_factor = 1.0F,
                               .learning_rate = 1e-6,
                               .beta1 = 0.9,
                               .beta2 = 0.999,
                               .eps = 1e-8,
                               .step = 10};
    return tess_kernels_cpu.adamw(&a, &b->stream);
}

static int64_t query_numel(const bench *b)
{
    return b->shape.token_numel * b->shape.head_numel * b->shape.dim;
}

static int64_t key_numel(const bench *b)
{
    return b->shape.token_numel * b->shape.kv_head_numel * b->shape.dim;
}

static tess_status run_attention_forward(bench *b)
{
    const tess_attention_args a = {.shape = b->shape,
                                   .q = operand(b, 0, query_numel(b)),
                                   .k = operand(b, 1, key_numel(b)),
                                   .v = operand(b, 2, key_numel(b)),
                                   .doc_start = b->zeros,
                                   .scale = 0.125F,
                                   .out = operand(b, 3, query_numel(b)),
                                   .lse = b->buffer[7],
                                   .work = b->work};
    return tess_kernels_cpu.attention_forward(&a, &b->stream);
}

static tess_status run_attention_backward(bench *b)
{
    const tess_attention_backward_args a = {
        .shape = b->shape,
        .q = operand(b, 0, query_numel(b)),
        .k = operand(b, 1, key_numel(b)),
        .v = operand(b, 2, key_numel(b)),
        .out = operand(b, 3, query_numel(b)),
        .lse = b->buffer[7],
        .d_out = operand(b, 4, query_numel(b)),
        .doc_start = b->zeros,
        .scale = 0.125F,
        .d_q = operand(b, 5, query_numel(b)),
        .d_k = operand(b, 6, key_numel(b)),
        .d_v = tess_view_slice(operand(b, 6, 2 * key_numel(b)), key_numel(b), key_numel(b)),
        .work = b->work};
    return tess_kernels_cpu.attention_backward(&a, &b->stream);
}

/* Values of ordinary size; buffer 2 positive, as second moments are. */
static void fill(bench *b)
{
    const tess_rng rng = tess_rng_make(1, TESS_RNG_TEST, 0, 0);
    for (int i = 0; i < BUFFERS; i++)
        for (int64_t j = 0; j < STATE_NUMEL; j++) {
            const float x = tess_rng_uniform(&rng, (uint64_t)j) * 2.0F - 1.0F;
            const float value = i == 2 ? x * x : x;
            if (b->dt == TESS_BF16)
                ((uint16_t *)b->buffer[i])[j] = tess_bf16_from_f32(value);
            else
                ((float *)b->buffer[i])[j] = value;
        }
}

static void measure(bench *b, const char *name, const char *shape, tess_status (*run)(bench *))
{
    double wall_s[REPEAT_MAX], cpu_s[REPEAT_MAX];
    if (b->only != NULL && strcmp(b->only, name) != 0)
        return;
    fill(b);
    must(run(b));
    for (int i = 0; i < b->repeat_numel; i++) {
        const double wall = now_s(CLOCK_MONOTONIC), cpu = now_s(CLOCK_PROCESS_CPUTIME_ID);
        must(run(b));
        wall_s[i] = now_s(CLOCK_MONOTONIC) - wall;
        cpu_s[i] = now_s(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    }
    const size_t numel = (size_t)b->repeat_numel;
    qsort(wall_s, numel, sizeof *wall_s, by_value);
    qsort(cpu_s, numel, sizeof *cpu_s, by_value);
    printf("{\"bench\": \"ops\", \"op\": \"%s\", \"shape\": \"%s\", \"dtype\": \"%s\", "
           "\"path\": \"%s\", \"threads\": %d, \"repeats\": %d, \"median_s\": %.3e, "
           "\"p10_s\": %.3e, \"p90_s\": %.3e, \"cpu_median_s\": %.3e}\n",
           name, shape, tess_dtype_name(b->dt), tess_kernels_cpu.path(),
           tess_pool_thread_numel(b->stream.pool), b->repeat_numel, wall_s[numel / 2],
           wall_s[numel / 10], wall_s[numel * 9 / 10], cpu_s[numel / 2]);
}

static void measure_attention(bench *b, const char *text, int64_t heads, int64_t kv_heads)
{
    const int thread_numel = tess_pool_thread_numel(b->stream.pool);
    b->shape = (tess_attention_shape){.dt = b->dt,
                                      .token_numel = TOKENS,
                                      .head_numel = heads,
                                      .kv_head_numel = kv_heads,
                                      .dim = 64,
                                      .longest_numel = TOKENS};
    void *work = NULL;
    const size_t nbytes = tess_kernels_cpu.attention_work_nbytes(&b->shape, thread_numel);
    must(tess_alloc(nbytes, &work));
    b->work = tess_view_host(work, (int64_t)nbytes, TESS_U8_OPAQUE);
    measure(b, "attention_forward", text, run_attention_forward);
    measure(b, "attention_backward", text, run_attention_backward);
    tess_free(work);
}

static void measure_all(bench *b)
{
    measure_attention(b, "T512 heads9 kv3 dim64", 9, 3);
    measure_attention(b, "T512 heads32 kv4 dim64", 32, 4);
    measure(b, "rmsnorm_forward", "512x2048", run_rmsnorm_forward);
    measure(b, "rmsnorm_backward", "512x2048", run_rmsnorm_backward);
    measure(b, "rope", "512x32x64", run_rope);
    measure(b, "swiglu_forward", "512x5632", run_swiglu_forward);
    measure(b, "swiglu_backward", "512x5632", run_swiglu_backward);
    measure(b, "add", "512x2048", run_add);
    measure(b, "dropout", "512x2048", run_dropout);
    measure(b, "cross_entropy", "64x32000", run_cross_entropy);
    measure(b, "square_norm", "4194304", run_square_norm);
    measure(b, "fold", "4194304", run_fold);
    measure(b, "adamw", "4194304", run_adamw);
}

static void set_path(const char *name)
{
    for (int path = TESS_CPU_PORTABLE; path <= TESS_CPU_AVX512_BF16; path++)
        if (strcmp(name, tess_cpu_path_name((tess_cpu_path)path)) == 0) {
            must(tess_kernels_cpu_select((tess_cpu_path)path));
            return;
        }
    must(
        TESS_FAIL(TESS_E_ARG, "--path '%s': expected portable, avx2, avx512 or avx512_bf16", name));
}

int main(int argc, char **argv)
{
    bench b = {.dt = TESS_BF16, .repeat_numel = 20};
    int thread_numel = 1;
    const char *path = tess_cpu_path_name(tess_cpu_path_best());
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--path") == 0)
            path = argv[i + 1];
        else if (strcmp(argv[i], "--threads") == 0)
            thread_numel = (int)strtol(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--repeats") == 0)
            b.repeat_numel = (int)TESS_MIN(TESS_MAX(strtol(argv[i + 1], NULL, 10), 1), REPEAT_MAX);
        else if (strcmp(argv[i], "--op") == 0)
            b.only = argv[i + 1];
        else if (strcmp(argv[i], "--dtype") == 0)
            must(tess_dtype_parse(argv[i + 1], &b.dt));
        else
            must(
                TESS_FAIL(TESS_E_ARG, "unknown option '%s' (usage: head of bench_ops.c)", argv[i]));
    }
    set_path(path);
    tess_pool *pool = NULL;
    void *memory = NULL;
    must(tess_pool_create(thread_numel, &pool));
    tess_stream_init_inline(&b.stream, "compute", pool);
    for (int i = 0; i < BUFFERS; i++)
        must(tess_alloc_array(STATE_NUMEL, sizeof(float), &b.buffer[i]));
    must(tess_alloc_array(2 * TOKENS, sizeof(int32_t), &memory));
    b.ids = memory;
    b.zeros = b.ids + TOKENS;
    for (int32_t i = 0; i < TOKENS; i++)
        b.ids[i] = i;
    must(tess_alloc_array(LOSS_ROWS, sizeof(double), &memory));
    b.row_loss = memory;
    measure_all(&b);
    for (int i = 0; i < BUFFERS; i++)
        tess_free(b.buffer[i]);
    tess_free(b.ids);
    tess_free(b.row_loss);
    tess_pool_destroy(&pool);
    return 0;
}
