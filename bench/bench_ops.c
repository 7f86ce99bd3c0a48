/*
 * Time of the ops other than matrix products and attention at training shapes, one JSON line each.
 *
 *   bench_ops [--plugin LIBRARY [--index N]] [--path NAME] [--threads N] [--repeats N]
 *             [--shape 1.1b|8b|tiny] [--op NAME] [--dtype f32|bf16]
 *
 * On the CPU, or with --plugin on a device of the CUDA part. Shapes: a micro-batch of 512 tokens of
 * a 1.1B model (the CPU's default), or of 8192 tokens of Llama 3 8B and 4608 of FLUX.1 (a
 * device's). Bytes are those of the closed forms (kernels/cost_count.h); "share" is their rate over
 * that of a copy on the same device, which the first line measures as bytes read and written.
 */
#include <inttypes.h>
#include <math.h>

#include "bench/measured.h"
#include "core/rng.h"

enum { SLOTS = 6, PIECES = 4, LEVELS = 3, DEVICE_SETS = 4 };

typedef struct shape {
    const char *name;
    int64_t token_numel, hidden_numel, inner_numel, head_numel, dim;
    int64_t loss_row_numel, vocab_numel, state_numel;
    int64_t image_row_numel, image_dim; /* of a modulated transformer: heads of 128 */
} shape;

static const shape shapes[] = {
    {"1.1b", 512, 2048, 5632, 32, 64, 64, 32000, 4 << 20, 512, 3072},
    {"8b", 8192, 4096, 14336, 32, 128, 1024, 128256, 42 << 20, 4608, 3072},
    {"tiny", 16, 64, 96, 2, 32, 4, 100, 1 << 12, 16, 256},
};

typedef struct bench {
    bench_device at;
    bench_room room;
    const shape *shape;
    tess_dtype dt;
    int repeat_numel;
    const char *only;             /* NULL: every op */
    tess_cost *cost;              /* count and do not run; NULL: run */
    int32_t *ids;                 /* [token_numel] 0, 1, 2, ...; of the device, as all below */
    float *cos_table, *sin_table; /* [rows, width / 2], of true angles: rotating keeps lengths */
    tess_exact *exact;
    int64_t *nonfinite_numel;
    double copy_rate; /* bytes per second, 0: not measured */
} bench;

/* Run a kernel with these arguments, or count what it would move. */
#define RUN_COUNTED(b, call, count) ((b)->cost != NULL ? ((count), (tess_status)TESS_OK) : (call))
#define RUN(b, table, kernel, args)                                                                \
    RUN_COUNTED(b, (table)->kernel((args), (b)->at.stream), TESS_COST_OF(args)((b)->cost, (args)))
#define RUN_OP(b, kernel, args) RUN(b, (b)->at.kernels, kernel, args)
#define RUN_MODULATED(b, kernel, args) RUN(b, (b)->at.kernels->modulated, kernel, args)

/* ---- operands ---- */

static tess_view operand_as(const bench *b, int i, int64_t numel, tess_dtype dt)
{
    return (tess_view){bench_slot(&b->room, i), numel, dt, b->at.device->space};
}

static tess_view operand(const bench *b, int i, int64_t numel)
{
    return operand_as(b, i, numel, b->dt);
}

static tess_view hidden(const bench *b, int i)
{
    return operand(b, i, b->shape->token_numel * b->shape->hidden_numel);
}

static tess_view inner(const bench *b, int i)
{
    return operand(b, i, b->shape->token_numel * b->shape->inner_numel);
}

static tess_sample_rows image(const bench *b, int i)
{
    const shape *s = b->shape;
    return tess_sample_rows_of(operand(b, i, s->image_row_numel * s->image_dim), s->image_row_numel,
                               s->image_dim);
}

static tess_sample_shape image_shape(const bench *b)
{
    return (tess_sample_shape){1, b->shape->image_row_numel, b->shape->image_dim};
}

/* Vectors of a sample, and f32 of a row: in a slot that holds no rows. */
static tess_view vector(const bench *b, int i, int which)
{
    const int64_t dim = b->shape->image_dim;
    tess_view v = operand(b, i, dim);
    v.data = (char *)v.data + (size_t)which * (size_t)dim * sizeof(float);
    return v;
}

static float *floats(const bench *b, int i) { return bench_slot(&b->room, i); }

/* ---- rows of a language model ---- */

static tess_status run_copy(bench *b)
{
    const int64_t numel = (int64_t)b->room.slot_nbytes;
    const tess_view dst = operand_as(b, 0, numel, TESS_U8), src = operand_as(b, 1, numel, TESS_U8);
    return RUN_COUNTED(b, tess_device_copy(b->at.device, dst, src, b->at.stream),
                       tess_count_copy(b->cost, (double)numel));
}

static tess_rmsnorm_args rmsnorm_of(const bench *b)
{
    return (tess_rmsnorm_args){.x = hidden(b, 0),
                               .w = operand_as(b, 1, b->shape->hidden_numel, TESS_F32),
                               .row_numel = b->shape->token_numel,
                               .dim = b->shape->hidden_numel,
                               .eps = 1e-5F,
                               .y = hidden(b, 2),
                               .inv_rms = floats(b, 3)};
}

static tess_status run_rmsnorm_forward(bench *b)
{
    const tess_rmsnorm_args a = rmsnorm_of(b);
    return RUN_OP(b, rmsnorm_forward, &a);
}

static tess_status run_rmsnorm_add(bench *b)
{
    tess_rmsnorm_args a = rmsnorm_of(b);
    a.residual = hidden(b, 4);
    a.sum = hidden(b, 5);
    return RUN_OP(b, rmsnorm_forward, &a);
}

static tess_status run_rmsnorm_backward(bench *b)
{
    const tess_rmsnorm_backward_args a = {.x = hidden(b, 0),
                                          .w = operand_as(b, 1, b->shape->hidden_numel, TESS_F32),
                                          .inv_rms = floats(b, 3),
                                          .d_y = hidden(b, 2),
                                          .row_numel = b->shape->token_numel,
                                          .dim = b->shape->hidden_numel,
                                          .residual = hidden(b, 4),
                                          .d_x = hidden(b, 5)};
    return RUN_OP(b, rmsnorm_backward, &a);
}

static tess_status run_rope(bench *b)
{
    const shape *s = b->shape;
    const tess_rope_args a = {.x = operand(b, 0, s->token_numel * s->head_numel * s->dim),
                              .token_numel = s->token_numel,
                              .head_numel = s->head_numel,
                              .dim = s->dim,
                              .positions = b->ids,
                              .cos_table = b->cos_table,
                              .sin_table = b->sin_table,
                              .table_rows = s->token_numel};
    return RUN_OP(b, rope, &a);
}

static tess_status run_swiglu_forward(bench *b)
{
    const tess_swiglu_args a = {.gate = inner(b, 0), .up = inner(b, 1), .out = inner(b, 2)};
    return RUN_OP(b, swiglu_forward, &a);
}

static tess_status run_swiglu_backward(bench *b)
{
    const tess_swiglu_backward_args a = {.gate = inner(b, 0),
                                         .up = inner(b, 1),
                                         .d_out = inner(b, 2),
                                         .d_gate = inner(b, 3),
                                         .d_up = inner(b, 4)};
    return RUN_OP(b, swiglu_backward, &a);
}

static tess_status run_add(bench *b)
{
    const tess_add_args a = {hidden(b, 0), hidden(b, 1), hidden(b, 2)};
    return RUN_OP(b, add, &a);
}

static tess_status run_dropout(bench *b)
{
    const tess_dropout_args a = {.x = hidden(b, 0),
                                 .out = hidden(b, 1),
                                 .p = 0.1F,
                                 .rng = tess_rng_make(1, TESS_RNG_DROPOUT, 0, 0)};
    return RUN_OP(b, dropout, &a);
}

static tess_status cast(bench *b, tess_dtype from, tess_dtype to)
{
    const int64_t numel = b->shape->token_numel * b->shape->hidden_numel;
    const tess_cast_args a = {operand_as(b, 0, numel, from), operand_as(b, 1, numel, to)};
    return RUN_OP(b, cast, &a);
}

static tess_status run_cast_down(bench *b) { return cast(b, TESS_F32, TESS_BF16); }
static tess_status run_cast_up(bench *b) { return cast(b, TESS_BF16, TESS_F32); }

static tess_status run_cross_entropy(bench *b)
{
    const int64_t rows = b->shape->loss_row_numel, numel = rows * b->shape->vocab_numel;
    const tess_cross_entropy_args a = {.logits = operand_as(b, 0, numel, TESS_F32),
                                       .row_numel = rows,
                                       .vocab_numel = b->shape->vocab_numel,
                                       .labels = b->ids,
                                       .row_loss = bench_slot(&b->room, 2),
                                       .grad_scale = 1e-3F,
                                       .d_logits = operand(b, 1, numel)};
    return RUN_OP(b, cross_entropy, &a);
}

/* ---- sums and updates ---- */

static tess_status run_square_norm(bench *b)
{
    const int64_t numel = b->shape->state_numel;
    const tess_square_norm_args a = {floats(b, 0), numel, b->exact, b->nonfinite_numel};
    return RUN_COUNTED(b, b->at.kernels->square_norm(&a, b->at.stream),
                       tess_count_squares(b->cost, (double)numel));
}

static tess_status run_fold(bench *b)
{
    const int64_t numel = b->shape->state_numel;
    const tess_fold_args a = {floats(b, 0), floats(b, 1), floats(b, 2), numel};
    return RUN_COUNTED(b, b->at.kernels->fold(&a, b->at.stream),
                       tess_count_fold(b->cost, (double)numel));
}

/* What the owner of a quarter of the state does with the pieces of four ranks in one round. */
static tess_status run_fold_pieces(bench *b)
{
    const int64_t numel = b->shape->state_numel / PIECES;
    const tess_fold_pieces_args a = {.pieces = floats(b, 0),
                                     .piece_numel = PIECES,
                                     .stride_numel = numel,
                                     .levels = floats(b, 1),
                                     .level_stride_numel = numel,
                                     .level_numel = LEVELS,
                                     .numel = numel};
    /* four pieces leave one sum */
    return RUN_COUNTED(b, b->at.kernels->fold_pieces(&a, b->at.stream),
                       tess_count_fold_pieces(b->cost, (double)numel, PIECES, 1.0));
}

static tess_status run_adamw(bench *b)
{
    const int64_t numel = b->shape->state_numel;
    const tess_adamw_args a = {.master = floats(b, 0),
                               .exp_avg = floats(b, 1),
                               .exp_avg_sq = floats(b, 2),
                               .grad = floats(b, 3),
                               .param = operand(b, 4, numel),
                               .numel = numel,
                               .clip_factor = 1.0F,
                               .learning_rate = 1e-6,
                               .beta1 = 0.9,
                               .beta2 = 0.999,
                               .eps = 1e-8,
                               .step = 10};
    return RUN_OP(b, adamw, &a);
}

/* ---- rows of a modulated transformer ---- */

static tess_status run_modulate(bench *b)
{
    const tess_modulate_args a = {.shape = image_shape(b),
                                  .x = image(b, 0),
                                  .shift = vector(b, 2, 0),
                                  .scale = vector(b, 2, 1),
                                  .factor_stride = b->shape->image_dim,
                                  .eps = 1e-6F,
                                  .y = image(b, 1),
                                  .mean = floats(b, 3),
                                  .inv = floats(b, 4)};
    return RUN_MODULATED(b, modulate, &a);
}

static tess_status run_modulate_backward(bench *b)
{
    const tess_modulate_backward_args a = {.shape = image_shape(b),
                                           .x = image(b, 0),
                                           .scale = vector(b, 2, 1),
                                           .factor_stride = b->shape->image_dim,
                                           .mean = floats(b, 3),
                                           .inv = floats(b, 4),
                                           .d_y = image(b, 1),
                                           .d_x = image(b, 5)};
    return RUN_MODULATED(b, modulate_backward, &a);
}

static tess_status run_gate(bench *b)
{
    const tess_gate_args a = {.shape = image_shape(b),
                              .x = image(b, 0),
                              .f = image(b, 1),
                              .gate = vector(b, 2, 0),
                              .factor_stride = b->shape->image_dim,
                              .y = image(b, 3)};
    return RUN_MODULATED(b, gate, &a);
}

static tess_status run_gate_backward(bench *b)
{
    const tess_gate_backward_args a = {.shape = image_shape(b),
                                       .d_y = image(b, 0),
                                       .gate = vector(b, 2, 0),
                                       .factor_stride = b->shape->image_dim,
                                       .d_f = image(b, 3)};
    return RUN_MODULATED(b, gate_backward, &a);
}

enum { HEAD_DIM = 128 };

static tess_status run_rotate(bench *b)
{
    const tess_rotate_args a = {.shape = {1, b->shape->image_row_numel, HEAD_DIM},
                                .head_numel = b->shape->image_dim / HEAD_DIM,
                                .x = image(b, 0),
                                .w = operand_as(b, 2, HEAD_DIM, TESS_BF16),
                                .eps = 1e-6F,
                                .cos_table = b->cos_table,
                                .sin_table = b->sin_table,
                                .y = image(b, 1)};
    return RUN_MODULATED(b, rotate, &a);
}

static tess_status run_rotate_backward(bench *b)
{
    const tess_rotate_backward_args a = {.shape = {1, b->shape->image_row_numel, HEAD_DIM},
                                         .head_numel = b->shape->image_dim / HEAD_DIM,
                                         .x = image(b, 0),
                                         .w = operand_as(b, 2, HEAD_DIM, TESS_BF16),
                                         .eps = 1e-6F,
                                         .cos_table = b->cos_table,
                                         .sin_table = b->sin_table,
                                         .d_y = image(b, 1),
                                         .d_x = image(b, 5)};
    return RUN_MODULATED(b, rotate_backward, &a);
}

static tess_status run_gelu(bench *b)
{
    const shape *s = b->shape;
    const tess_activation_args a = {.kind = TESS_ACTIVATION_GELU_TANH,
                                    .row_numel = s->image_row_numel,
                                    .dim = s->image_dim,
                                    .x = image(b, 0).view,
                                    .y = image(b, 1).view};
    return RUN_MODULATED(b, activation, &a);
}

static tess_status run_gelu_backward(bench *b)
{
    const shape *s = b->shape;
    const tess_activation_backward_args a = {.kind = TESS_ACTIVATION_GELU_TANH,
                                             .row_numel = s->image_row_numel,
                                             .dim = s->image_dim,
                                             .x = image(b, 0).view,
                                             .d_y = image(b, 1).view,
                                             .d_x = image(b, 2).view};
    return RUN_MODULATED(b, activation_backward, &a);
}

/* ---- measuring ---- */

static const struct {
    const char *name;
    tess_status (*run)(bench *b);
    bool is_modulated;
} ops[] = {
    {"copy", run_copy, false}, /* first: the others are held against it */
    {"rmsnorm_forward", run_rmsnorm_forward, false},
    {"rmsnorm_add", run_rmsnorm_add, false},
    {"rmsnorm_backward", run_rmsnorm_backward, false},
    {"cross_entropy", run_cross_entropy, false},
    {"rope", run_rope, false},
    {"swiglu_forward", run_swiglu_forward, false},
    {"swiglu_backward", run_swiglu_backward, false},
    {"add", run_add, false},
    {"dropout", run_dropout, false},
    {"cast_to_bf16", run_cast_down, false},
    {"cast_to_f32", run_cast_up, false},
    {"square_norm", run_square_norm, false},
    {"fold", run_fold, false},
    {"fold_pieces", run_fold_pieces, false},
    {"adamw", run_adamw, false},
    {"modulate", run_modulate, true},
    {"modulate_backward", run_modulate_backward, true},
    {"gate", run_gate, true},
    {"gate_backward", run_gate_backward, true},
    {"rotate", run_rotate, true},
    {"rotate_backward", run_rotate_backward, true},
    {"gelu", run_gelu, true},
    {"gelu_backward", run_gelu_backward, true},
};

typedef struct turn {
    bench *b;
    tess_status (*run)(bench *b);
} turn;

static tess_status take_turn(void *arg)
{
    const turn *t = arg;
    bench_next_set(&t->b->room);
    return t->run(t->b);
}

static tess_status measure(bench *b, int op)
{
    tess_cost cost = {0};
    bench_time time = {0};
    turn t = {b, ops[op].run};
    b->cost = &cost;
    TESS_TRY(ops[op].run(b));
    b->cost = NULL;
    for (int set = 0; ops[op].run == run_adamw && set < b->room.set_numel; set++) {
        bench_next_set(&b->room); /* second moments are no less than 0 */
        TESS_TRY(bench_draw(&b->at, bench_slot(&b->room, 2), b->room.slot_nbytes, true));
    }
    TESS_TRY(bench_measure(&b->at, take_turn, &t, b->repeat_numel, &time));
    const double rate = cost.nbytes / time.median_s;
    if (ops[op].run == run_copy)
        b->copy_rate = rate;
    printf("{\"bench\": \"ops\", \"op\": \"%s\", \"shape\": \"%s\", \"dtype\": \"%s\", ",
           ops[op].name, b->shape->name, tess_dtype_name(b->dt));
    bench_print_time(&b->at, &time, b->repeat_numel);
    printf(", \"bytes\": %.0f, \"gb_per_s\": %.1f", cost.nbytes, 1e-9 * rate);
    if (b->copy_rate > 0.0)
        printf(", \"share\": %.3f", rate / b->copy_rate);
    printf("}\n");
    fflush(stdout);
    return TESS_OK;
}

static size_t slot_nbytes(const shape *s)
{
    int64_t numel = TESS_MAX(s->token_numel * s->inner_numel, s->state_numel);
    numel = TESS_MAX(numel, s->loss_row_numel * s->vocab_numel);
    return sizeof(float) * (size_t)TESS_MAX(numel, s->image_row_numel * s->image_dim);
}

static tess_status place_tables(bench *b)
{
    const shape *s = b->shape;
    const int64_t rows = TESS_MAX(s->token_numel, s->image_row_numel);
    const int64_t width = TESS_MAX(s->dim, (int64_t)HEAD_DIM) / 2;
    void *memory = NULL, *placed = NULL;
    TESS_TRY(tess_alloc_array(rows * width, sizeof(float), &memory));
    float *table = memory;
    tess_status st = TESS_OK;
    for (int which = 0; which < 2 && st == TESS_OK; which++) {
        for (int64_t i = 0; i < rows * width; i++)
            table[i] = which == 0 ? cosf((float)i) : sinf((float)i);
        st = bench_place(&b->at, table, (size_t)(rows * width) * sizeof *table, &placed);
        *(which == 0 ? &b->cos_table : &b->sin_table) = placed;
    }
    tess_free(memory);
    return st;
}

static tess_status prepare(bench *b)
{
    const shape *s = b->shape;
    void *memory = NULL;
    TESS_TRY(tess_alloc_array(s->token_numel, sizeof(int32_t), &memory));
    int32_t *ids = memory;
    for (int32_t i = 0; i < s->token_numel; i++)
        ids[i] = i;
    TESS_TRY(bench_place(&b->at, ids, (size_t)s->token_numel * sizeof *ids, &memory));
    tess_free(ids);
    b->ids = memory;
    TESS_TRY(place_tables(b));
    const tess_exact zero = {{0}};
    const int64_t none = 0;
    TESS_TRY(bench_place(&b->at, &zero, sizeof zero, &memory));
    b->exact = memory;
    TESS_TRY(bench_place(&b->at, &none, sizeof none, &memory));
    b->nonfinite_numel = memory;
    const int sets = tess_stream_is_timed(b->at.stream) ? DEVICE_SETS : 1;
    return bench_room_init(&b->at, slot_nbytes(s), SLOTS, sets, &b->room);
}

static tess_status run_all(bench *b)
{
    int numel = 0;
    TESS_TRY(prepare(b));
    for (int i = 0; i < TESS_NELEM(ops); i++) {
        if ((b->only != NULL && strcmp(b->only, ops[i].name) != 0) ||
            (ops[i].is_modulated && b->at.kernels->modulated == NULL))
            continue;
        TESS_TRY(measure(b, i));
        numel++;
    }
    TESS_CHECK(numel > 0, TESS_E_ARG, "--op '%s' is none of this backend's", b->only);
    return TESS_OK;
}

static tess_status parse(int argc, char **argv, bench_options *o, bench *b)
{
    const char *name = NULL;
    for (int i = 1; i < argc; i += 2) {
        TESS_CHECK(i + 1 < argc, TESS_E_ARG, "option '%s' has no value", argv[i]);
        if (bench_option_set(o, argv[i], argv[i + 1]))
            continue;
        if (strcmp(argv[i], "--op") == 0)
            b->only = argv[i + 1];
        else if (strcmp(argv[i], "--shape") == 0)
            name = argv[i + 1];
        else if (strcmp(argv[i], "--dtype") == 0)
            TESS_TRY(tess_dtype_parse(argv[i + 1], &b->dt));
        else
            return TESS_FAIL(TESS_E_ARG, "unknown option '%s' (usage: head of bench_ops.c)",
                             argv[i]);
    }
    if (name == NULL)
        name = o->plugin != NULL ? "8b" : "1.1b";
    for (int i = 0; i < TESS_NELEM(shapes); i++)
        if (strcmp(shapes[i].name, name) == 0)
            b->shape = &shapes[i];
    TESS_CHECK(b->shape != NULL, TESS_E_ARG, "--shape '%s': expected 1.1b, 8b or tiny", name);
    b->repeat_numel = o->repeat_numel;
    return TESS_OK;
}

int main(int argc, char **argv)
{
    bench b = {.dt = TESS_BF16};
    bench_options o = {.thread_numel = 1, .repeat_numel = 20};
    tess_status st = parse(argc, argv, &o, &b);
    if (st == TESS_OK)
        st = bench_open(&o, &b.at);
    if (st == TESS_OK)
        st = run_all(&b);
    if (st != TESS_OK)
        fprintf(stderr, "bench_ops: %s\n", tess_error_message());
    return tess_status_exit_code(st);
}
