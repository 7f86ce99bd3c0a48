/*
 * Attention, forward and backward, one JSON line each.
 *
 *   bench_attention [--plugin LIBRARY [--index N]] [--path NAME] [--threads N] [--repeats N]
 *                   [--case T:S:HEADS:KV_HEADS:DIM:causal|whole]... [--dtype f32|bf16]
 *                   [--memory MIB]
 *
 * T tokens are sequences of S: causal, or whole segments where every token sees all of its own. On
 * the CPU the defaults are one sequence of 512 of a 135M and of a 1.1B model; the peer:
 * bench/peers/attention.py. On a device: 8192 tokens in sequences of 4096 of Llama 3 8B, and FLUX.1
 * at 512, 768 and 1024 pixels, by the library, by the library bound to be deterministic, and by the
 * own kernels; "taken" says which of them took the call, "why" in the plugin's words. --memory:
 * what the library may take (256 MiB, as runs give it). FLOPs are the hardware's of the closed
 * form: backward 2.5 times forward.
 */
#include <inttypes.h>
#include <math.h>

#include "bench/measured.h"

enum { SLOTS = 9, DEVICE_SETS = 2, CASE_MAX = 16, DOCUMENT_MAX = 32 };
enum { Q, K, V, OUT, D_OUT, D_Q, D_K, D_V, LSE };

typedef struct problem {
    char text[64];
    tess_attention_shape shape;
} problem;

static const char *const host_cases[] = {"512:512:9:3:64:causal", "512:512:32:4:64:causal"};
static const char *const device_cases[] = {"8192:4096:32:8:128:causal", "1536:1536:24:24:128:whole",
                                           "2816:2816:24:24:128:whole",
                                           "4608:4608:24:24:128:whole"};

typedef struct bench {
    bench_device at;
    bench_room room;
    problem problem[CASE_MAX];
    int problem_numel;
    tess_dtype dt;
    int repeat_numel, thread_numel;
    size_t library_nbytes;
    const problem *now;
    int32_t *doc_start; /* of the device, as `work` */
    tess_view work;
} bench;

static tess_view operand(const bench *b, int i, int64_t head_numel)
{
    const tess_attention_shape *s = &b->now->shape;
    return (tess_view){bench_slot(&b->room, i), s->token_numel * head_numel * s->dim, b->dt,
                       b->at.device->space};
}

static tess_attention_args forward_args(const bench *b)
{
    const tess_attention_shape *s = &b->now->shape;
    return (tess_attention_args){.shape = *s,
                                 .q = operand(b, Q, s->head_numel),
                                 .k = operand(b, K, s->kv_head_numel),
                                 .v = operand(b, V, s->kv_head_numel),
                                 .doc_start = s->segment_numel > 0 ? NULL : b->doc_start,
                                 .scale = 1.0F / sqrtf((float)s->dim),
                                 .out = operand(b, OUT, s->head_numel),
                                 .lse = bench_slot(&b->room, LSE),
                                 .work = b->work};
}

static tess_attention_backward_args backward_args(const bench *b)
{
    const tess_attention_args f = forward_args(b);
    const tess_attention_shape *s = &b->now->shape;
    return (tess_attention_backward_args){.shape = *s,
                                          .q = f.q,
                                          .k = f.k,
                                          .v = f.v,
                                          .out = f.out,
                                          .lse = f.lse,
                                          .d_out = operand(b, D_OUT, s->head_numel),
                                          .doc_start = f.doc_start,
                                          .scale = f.scale,
                                          .d_q = operand(b, D_Q, s->head_numel),
                                          .d_k = operand(b, D_K, s->kv_head_numel),
                                          .d_v = operand(b, D_V, s->kv_head_numel),
                                          .work = b->work};
}

static tess_status run_forward(void *arg)
{
    bench *b = arg;
    bench_next_set(&b->room);
    const tess_attention_args a = forward_args(b);
    return b->at.kernels->attention_forward(&a, b->at.stream);
}

/* Of each set the forward has run: its results are operands here. */
static tess_status run_backward(void *arg)
{
    bench *b = arg;
    bench_next_set(&b->room);
    const tess_attention_backward_args a = backward_args(b);
    return b->at.kernels->attention_backward(&a, b->at.stream);
}

/* ---- measuring ---- */

static void print(const bench *b, const char *op, const char *way, const bench_time *t, double flop)
{
    printf("{\"bench\": \"attention\", \"op\": \"%s\", \"shape\": \"%s\", \"dtype\": \"%s\", "
           "\"way\": \"%s\", ",
           op, b->now->text, tess_dtype_name(b->dt), way);
    bench_print_time(&b->at, t, b->repeat_numel);
    printf(", \"threads\": %d, \"flop\": %.0f, \"tflop_per_s\": %.4g}\n", b->thread_numel, flop,
           1e-12 * flop / t->median_s);
    fflush(stdout);
}

static tess_status measure(bench *b, const char *way)
{
    bench_time time = {0};
    tess_cost forward = {0}, backward = {0};
    const tess_attention_args f = forward_args(b);
    const tess_attention_backward_args d = backward_args(b);
    TESS_COST_OF (&f)(&forward, &f);
    TESS_COST_OF (&d)(&backward, &d);
    TESS_TRY(bench_measure(&b->at, run_forward, b, b->repeat_numel, &time));
    print(b, "attention_forward", way, &time, forward.hardware_flops);
    for (int i = 0; i < b->room.set_numel; i++)
        TESS_TRY(run_forward(b));
    TESS_TRY(bench_measure(&b->at, run_backward, b, b->repeat_numel, &time));
    print(b, "attention_backward", way, &time, backward.hardware_flops);
    return TESS_OK;
}

/* Documents begin at every sequence. */
static tess_status place_documents(bench *b)
{
    const tess_attention_shape *s = &b->now->shape;
    void *memory = NULL, *placed = NULL;
    TESS_TRY(tess_alloc_array(s->token_numel, sizeof(int32_t), &memory));
    int32_t *start = memory;
    for (int64_t i = 0; i < s->token_numel; i++)
        start[i] = (int32_t)(i / s->longest_numel * s->longest_numel);
    const size_t nbytes = (size_t)s->token_numel * sizeof *start;
    const tess_status st = bench_place(&b->at, start, nbytes, &placed);
    tess_free(memory);
    b->doc_start = placed;
    return st;
}

static tess_status measure_cases(bench *b, const char *way)
{
    for (int i = 0; i < b->problem_numel; i++) {
        void *work = NULL;
        b->now = &b->problem[i];
        const size_t nbytes = b->at.kernels->attention_work_nbytes(&b->now->shape, b->thread_numel);
        TESS_TRY(bench_take(&b->at, nbytes, &work));
        b->work = (tess_view){work, (int64_t)nbytes, TESS_U8_OPAQUE, b->at.device->space};
        TESS_TRY(place_documents(b));
        TESS_TRY(measure(b, way));
    }
    return TESS_OK;
}

/* A stream of its own for each way: libraries are opened once a stream. */
static tess_status measure_way(bench *b, const char *way, bool is_library, bool is_deterministic)
{
    char note[TESS_CUDA_NOTE_NBYTES] = "own kernels: no library was opened";
    tess_cuda_work work = {.attention_numel = b->problem_numel,
                           .document_max = DOCUMENT_MAX,
                           .is_deterministic = is_deterministic,
                           .attention_nbytes = b->library_nbytes};
    for (int i = 0; i < b->problem_numel; i++)
        work.attention[i] = b->problem[i].shape;
    TESS_TRY(tess_device_stream_create(b->at.device, "compute", false, &b->at.stream));
    if (is_library)
        TESS_TRY(b->at.plugin->prepare(b->at.device, b->at.stream, &work, note));
    fprintf(stderr, "attention, %s: %s\n", way, note);
    return measure_cases(b, way);
}

static tess_status run(bench *b)
{
    size_t slot = 0;
    for (int i = 0; i < b->problem_numel; i++) {
        const tess_attention_shape *s = &b->problem[i].shape;
        slot = TESS_MAX(slot, sizeof(float) * (size_t)(s->token_numel * s->head_numel * s->dim));
    }
    TESS_TRY(
        bench_room_init(&b->at, slot, SLOTS, b->at.plugin != NULL ? DEVICE_SETS : 1, &b->room));
    if (b->at.plugin == NULL)
        return measure_cases(b, "own");
    TESS_TRY(measure_way(b, "library", true, false));
    TESS_TRY(measure_way(b, "deterministic", true, true));
    return measure_way(b, "own", false, false);
}

/* ---- options ---- */

static tess_status add_case(bench *b, const char *text)
{
    int64_t length = 0;
    char kind[8] = "";
    TESS_CHECK(b->problem_numel < CASE_MAX, TESS_E_ARG, "--case: at most %d of them", CASE_MAX);
    problem *p = &b->problem[b->problem_numel++];
    tess_attention_shape *s = &p->shape;
    snprintf(p->text, sizeof p->text, "%s", text);
    const int n =
        sscanf(text, "%" SCNd64 ":%" SCNd64 ":%" SCNd64 ":%" SCNd64 ":%" SCNd64 ":%7s",
               &s->token_numel, &length, &s->head_numel, &s->kv_head_numel, &s->dim, kind);
    const bool is_whole = strcmp(kind, "whole") == 0;
    TESS_CHECK(n == 6 && (is_whole || strcmp(kind, "causal") == 0) && length > 0 &&
                   s->token_numel > 0 && s->token_numel % length == 0,
               TESS_E_ARG,
               "--case '%s': expected T:S:HEADS:KV_HEADS:DIM:causal|whole with T in whole S", text);
    s->longest_numel = length;
    if (is_whole)
        s->segment_numel = length;
    else
        s->document_numel = s->token_numel / length;
    return TESS_OK;
}

static tess_status parse(int argc, char **argv, bench_options *o, bench *b)
{
    for (int i = 1; i < argc; i += 2) {
        TESS_CHECK(i + 1 < argc, TESS_E_ARG, "option '%s' has no value", argv[i]);
        if (bench_option_set(o, argv[i], argv[i + 1]))
            continue;
        if (strcmp(argv[i], "--case") == 0)
            TESS_TRY(add_case(b, argv[i + 1]));
        else if (strcmp(argv[i], "--memory") == 0)
            b->library_nbytes = (size_t)strtoull(argv[i + 1], NULL, 10) << 20;
        else if (strcmp(argv[i], "--dtype") == 0)
            TESS_TRY(tess_dtype_parse(argv[i + 1], &b->dt));
        else
            return TESS_FAIL(TESS_E_ARG, "unknown option '%s' (usage: head of bench_attention.c)",
                             argv[i]);
    }
    const bool has_own = b->problem_numel > 0, is_host = o->plugin == NULL;
    for (int i = 0; !has_own && is_host && i < TESS_NELEM(host_cases); i++)
        TESS_TRY(add_case(b, host_cases[i]));
    for (int i = 0; !has_own && !is_host && i < TESS_NELEM(device_cases); i++)
        TESS_TRY(add_case(b, device_cases[i]));
    for (int i = 0; i < b->problem_numel; i++)
        b->problem[i].shape.dt = b->dt;
    b->repeat_numel = o->repeat_numel;
    b->thread_numel = o->thread_numel;
    return TESS_OK;
}

int main(int argc, char **argv)
{
    bench b = {.dt = TESS_BF16, .library_nbytes = (size_t)256 << 20};
    bench_options o = {.thread_numel = 1, .repeat_numel = 20};
    tess_status st = parse(argc, argv, &o, &b);
    if (st == TESS_OK)
        st = bench_open(&o, &b.at);
    if (st == TESS_OK)
        st = run(&b);
    if (st != TESS_OK)
        fprintf(stderr, "bench_attention: %s\n", tess_error_message());
    return tess_status_exit_code(st);
}
