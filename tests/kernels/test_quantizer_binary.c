/* Binary codes: worked examples on one rank and on two, entropies and gradients against the sum
 * over all codes in fp64, the same bits on every instruction path and number of threads. */
#include "kernels/codebook.h"
#include "kernels/quantizer_binary.h"
#include "kernels/quantizer_priv.h"
#include "kernels/quantizer_vector.h"
#include "tests/kernels/op_support.h"

enum { TOKENS = 4, BITS = 3, CODES = 8 };

static const float tokens[TOKENS * BITS] = {0.5f, 0.25f, -0.1f, -0.3f, 0.0f, 0.8f,
                                            0.2f, -0.2f, -0.6f, -0.4f, 0.1f, 0.3f};

static tess_sign_rows rows_of(const float *x, int64_t row_numel, int64_t dim)
{
    return (tess_sign_rows){.x = x, .row_numel = row_numel, .dim = dim, .magnitude = 1.0f};
}

static double sum_of(const double *x, int64_t numel)
{
    double sum = 0.0;
    for (int64_t i = 0; i < numel; i++)
        sum += x[i];
    return sum;
}

static void assert_near(double got, double want, double tolerance)
{
    if (!(fabs(got - want) <= tolerance))
        fail_msg("got %.17g, want %.17g", got, want);
}

/* ---- worked examples ---- */

static void test_indices_and_commitment(void **state)
{
    (void)state;
    static const uint32_t msb[] = {6, 1, 4, 3}, lsb[] = {3, 4, 1, 6};
    uint32_t index[TOKENS];
    double loss[TOKENS];
    float out[TOKENS * BITS], again[TOKENS * BITS];
    tess_stream s = inline_stream();
    tess_quantizer_sign_args a = {.rows = rows_of(tokens, TOKENS, BITS),
                                  .out = tess_view_host(out, TOKENS * BITS, TESS_F32),
                                  .index = index};
    tess_quantizer_sign_decode_args d = {.index = index,
                                         .row_numel = TOKENS,
                                         .dim = BITS,
                                         .magnitude = 1.0f,
                                         .out = tess_view_host(again, TOKENS * BITS, TESS_F32)};
    for (int order = TESS_BITS_MSB_FIRST; order <= TESS_BITS_LSB_FIRST; order++) {
        a.order = d.order = (tess_bit_order)order;
        assert_done(tess_cpu_quantizer_sign(&a, &s));
        assert_memory_equal(index, order == TESS_BITS_MSB_FIRST ? msb : lsb, sizeof msb);
        assert_done(tess_cpu_quantizer_sign_decode(&d, &s));
        assert_memory_equal(out, again, sizeof out);
    }
    for (int i = 0; i < TOKENS * BITS; i++) /* zero is negative */
        assert_true(out[i] == (tokens[i] > 0.0f ? 1.0f : -1.0f));
    const tess_quantizer_sign_loss_args l = {.rows = a.rows, .loss = loss};
    assert_done(tess_cpu_quantizer_sign_loss(&l, &s));
    /* the printed digits, and twelve inputs rounded to f32 */
    assert_near(sum_of(loss, TOKENS) / (TOKENS * BITS), 0.521041667, 0.5e-9 + 4 * F32_U);
}

static void test_spherical_example(void **state)
{
    (void)state;
    static const double unit[] = {0.880451, 0.440225, -0.176090};
    float core[BITS], norm[1], out[BITS];
    tess_stream s = inline_stream();
    const tess_quantizer_enter_args e = {
        .x = tess_view_host((void *)(uintptr_t)tokens, BITS, TESS_F32),
        .row_numel = 1,
        .dim = BITS,
        .length = 1.0f,
        .least = 1e-12f,
        .core = core,
        .norm = norm};
    assert_done(tess_cpu_quantizer_enter(&e, &s));
    tess_quantizer_sign_args a = {.rows = rows_of(core, 1, BITS),
                                  .out = tess_view_host(out, BITS, TESS_F32)};
    a.rows.magnitude = (float)(1.0 / sqrt(BITS));
    assert_done(tess_cpu_quantizer_sign(&a, &s));
    for (int j = 0; j < BITS; j++) {
        assert_near((double)core[j], unit[j], 0.5e-6);
        assert_near((double)out[j], j < 2 ? 0.577350269 : -0.577350269, 2 * F32_U);
    }
}

/* ---- entropies of micro-batches ---- */

/* Parts of the tokens, each a micro-batch or a rank's; the loss, its slopes and the integers. */
typedef struct step_entropy {
    int64_t sum[CODES];
    double loss, per_sample, slope[CODES];
} step_entropy;

static step_entropy entropy_of(double beta, int part_numel)
{
    step_entropy e = {.loss = 0.0};
    double work[CODES + TESS_ENTROPY_ROW_NUMEL * (2 + 4)], row[TOKENS];
    tess_stream s = inline_stream();
    assert_int_equal(tess_entropy_work_numel(BITS), TESS_NELEM(work));
    const int exponent = tess_fixed_exponent(1.0f, TOKENS);
    for (int part = 0; part < part_numel; part++) {
        const int lo = TOKENS * part / part_numel, hi = TOKENS * (part + 1) / part_numel;
        const tess_sign_rows rows = rows_of(tokens + lo * BITS, hi - lo, BITS);
        const tess_quantizer_pbar_args p = {rows, beta, exponent, e.sum, work};
        assert_done(tess_cpu_quantizer_pbar(&p, &s));
        const tess_quantizer_sign_loss_args l = {.rows = rows, .beta = beta, .entropy = row + lo};
        assert_done(tess_cpu_quantizer_sign_loss(&l, &s));
    }
    e.per_sample = sum_of(row, TOKENS) / TOKENS;
    const tess_quantizer_batch_entropy_args b = {.sum = e.sum,
                                                 .dim = BITS,
                                                 .valid_numel = TOKENS,
                                                 .exponent = exponent,
                                                 .least = 1e-5,
                                                 .loss = &e.loss,
                                                 .slope = e.slope};
    assert_done(tess_cpu_quantizer_batch_entropy(&b, &s));
    return e;
}

/* Printed digits, and inputs rounded to f32: an error of 2^-25 in x moves t = 4 beta x by beta
 * 2^-23 and entropies by less than that. */
static void test_entropies_of_four_tokens(void **state)
{
    (void)state;
    static const double cold[CODES] = {0.0769126637, 0.1641198204, 0.0676614972, 0.1987489211,
                                       0.1496063552, 0.0744182213, 0.1523584597, 0.1161740614};
    static const double hot[CODES] = {0, 0.125, 0, 0.375, 0.25, 0, 0.25, 0};
    const double scale = ldexp(1.0, -tess_fixed_exponent(1.0f, TOKENS)) / TOKENS;
    step_entropy e = entropy_of(1.0, 1);
    assert_near(e.per_sample, 1.553129433, 0.5e-9 + 2 * F32_U);
    assert_near(e.loss, 2.011533965, 0.5e-9 + 2 * F32_U);
    assert_near(0.1 * (e.per_sample - e.loss), -0.0458404532, 0.5e-10 + F32_U);
    for (int c = 0; c < CODES; c++)
        assert_near((double)e.sum[c] * scale, cold[c], 0.5e-10 + 2 * F32_U);
    e = entropy_of(100.0, 1);
    assert_near(e.per_sample, 0.173286795, 0.5e-9 + 1e-12);
    assert_near(e.loss, 1.320888343, 0.5e-9 + 1e-12);
    assert_near(e.per_sample - e.loss, -1.147601548, 0.5e-9 + 1e-12);
    for (int c = 0; c < CODES; c++) /* 1e-15, and half a unit of the integers */
        assert_near((double)e.sum[c] * scale, hot[c], 1e-15 + scale);
}

/* A rank's own tokens give another entropy than all; integers of two ranks give that of all. The
 * discarded reduction (local sums divided by the number of ranks) gives neither. */
static void test_two_ranks_example(void **state)
{
    (void)state;
    static const double local[] = {1.879518740, 1.960464739}, wrong[] = {1.286332960, 1.326805960};
    const step_entropy one = entropy_of(1.0, 1), two = entropy_of(1.0, 2),
                       four = entropy_of(1.0, 4);
    assert_near(two.loss, 2.011533965, 0.5e-9 + 2 * F32_U);
    /* rounding per micro-batch: codes differ by a few units of 2^-50 */
    assert_near(two.loss, one.loss, 1e-13);
    assert_near(four.loss, one.loss, 1e-13);
    for (int rank = 0; rank < 2; rank++) {
        int64_t sum[CODES] = {0};
        double work[CODES + TESS_ENTROPY_ROW_NUMEL * (2 + 4)], slope[CODES], loss = 0.0;
        tess_stream s = inline_stream();
        const int exponent = tess_fixed_exponent(1.0f, TOKENS);
        const tess_quantizer_pbar_args p = {rows_of(tokens + rank * 2 * BITS, 2, BITS), 1.0,
                                            exponent, sum, work};
        assert_done(tess_cpu_quantizer_pbar(&p, &s));
        tess_quantizer_batch_entropy_args b = {.sum = sum,
                                               .dim = BITS,
                                               .valid_numel = 2,
                                               .exponent = exponent,
                                               .least = 1e-5,
                                               .loss = &loss,
                                               .slope = slope};
        assert_done(tess_cpu_quantizer_batch_entropy(&b, &s));
        assert_near(loss, local[rank], 0.5e-9 + 2 * F32_U);
        b.valid_numel = 4; /* as if the sum had come from both */
        assert_done(tess_cpu_quantizer_batch_entropy(&b, &s));
        assert_near(loss, wrong[rank], 0.5e-9 + 2 * F32_U);
        assert_true(fabs(loss - one.loss) > 0.5);
    }
}

/* ---- against the sum over all codes ---- */

typedef struct problem {
    op_buffer x, d_out, d_x, loss, entropy, slope, batch;
    int64_t *sum;
    double *work;
    uint8_t *valid;
    int64_t row_numel, dim, stride, valid_numel;
    double beta, least;
    float magnitude;
    int part_numel;
} problem;

enum { EXPONENT = 40 };

static tess_sign_rows part_of(const problem *p, int64_t lo, int64_t hi)
{
    return (tess_sign_rows){.x = (const float *)p->x.view.data + lo * p->stride,
                            .valid = p->valid + lo,
                            .row_numel = hi - lo,
                            .dim = p->dim,
                            .stride = p->stride,
                            .magnitude = p->magnitude};
}

static tess_status call_entropies(void *ctx, tess_stream *s)
{
    const problem *p = ctx;
    const tess_sign_rows rows = part_of(p, 0, p->row_numel);
    memset(p->sum, 0, sizeof(int64_t) << p->dim);
    for (int part = 0; part < p->part_numel; part++) {
        const tess_quantizer_pbar_args a = {part_of(p, p->row_numel * part / p->part_numel,
                                                    p->row_numel * (part + 1) / p->part_numel),
                                            p->beta, EXPONENT, p->sum, p->work};
        TESS_TRY(tess_cpu_quantizer_pbar(&a, s));
    }
    const tess_quantizer_batch_entropy_args b = {.sum = p->sum,
                                                 .dim = p->dim,
                                                 .valid_numel = p->valid_numel,
                                                 .exponent = EXPONENT,
                                                 .least = p->least,
                                                 .loss = p->batch.view.data,
                                                 .slope = p->slope.view.data};
    TESS_TRY(tess_cpu_quantizer_batch_entropy(&b, s));
    const tess_quantizer_sign_loss_args l = {
        .rows = rows, .beta = p->beta, .loss = p->loss.view.data, .entropy = p->entropy.view.data};
    TESS_TRY(tess_cpu_quantizer_sign_loss(&l, s));
    const tess_quantizer_sign_backward_args g = {.rows = rows,
                                                 .d_out = p->d_out.view,
                                                 .d_out_stride = p->stride,
                                                 .beta = p->beta,
                                                 .commitment = 0.25f,
                                                 .entropy = 0.5,
                                                 .d_x = p->d_x.view.data};
    TESS_TRY(tess_cpu_quantizer_sign_backward(&g, s));
    const tess_quantizer_batch_entropy_backward_args h = {.rows = rows,
                                                          .beta = p->beta,
                                                          .slope = p->slope.view.data,
                                                          .weight = -2.0,
                                                          .d_x = p->d_x.view.data};
    return tess_cpu_quantizer_batch_entropy_backward(&h, s);
}

/* p_i over all codes by the definition: softmax of 2 beta x . c. */
static void ref_softmax(const problem *p, const double *x, double *out)
{
    const int64_t code_numel = INT64_C(1) << p->dim;
    double most = -INFINITY, sum = 0.0;
    for (int64_t c = 0; c < code_numel; c++) {
        out[c] = 0.0;
        for (int64_t j = 0; j < p->dim; j++)
            out[c] += 2 * p->beta * x[j] * (double)p->magnitude *
                      ((c >> (p->dim - 1 - j)) % 2 != 0 ? 1 : -1);
        most = fmax(most, out[c]);
    }
    for (int64_t c = 0; c < code_numel; c++)
        sum += out[c] = exp(out[c] - most);
    for (int64_t c = 0; c < code_numel; c++)
        out[c] /= sum;
}

/* d_out . x + 1/8 |x - q|^2 + 1/2 sum_i H(p_i) - 2 H(pbar), with `row` at `x`; the last two terms
 * in `part` where it is wanted. */
static double ref_loss(const problem *p, int64_t row, const double *x, double part[2])
{
    const int64_t code_numel = INT64_C(1) << p->dim;
    double *prob = doubles(code_numel), *mean = doubles(code_numel), loss = 0.0, each = 0.0;
    memset(mean, 0, (size_t)code_numel * sizeof *mean);
    for (int64_t i = 0; i < p->row_numel; i++) {
        if (p->valid[i] == 0)
            continue;
        const double *at = i == row ? x : p->x.value + i * p->stride;
        ref_softmax(p, at, prob);
        for (int64_t c = 0; c < code_numel; c++) {
            each -= prob[c] > 0.0 ? prob[c] * log(prob[c]) : 0.0;
            mean[c] += prob[c] / (double)p->valid_numel;
        }
        for (int64_t j = 0; j < p->dim; j++) {
            const double q = (double)p->magnitude * (p->x.value[i * p->stride + j] > 0 ? 1 : -1);
            loss += p->d_out.value[i * p->stride + j] * at[j] + 0.125 * (at[j] - q) * (at[j] - q);
        }
    }
    double batch = 0.0;
    for (int64_t c = 0; c < code_numel; c++)
        if (mean[c] > 0.0)
            batch -= mean[c] * log(fmax(mean[c], p->least));
    tess_free(prob);
    tess_free(mean);
    if (part != NULL) {
        part[0] = each;
        part[1] = batch;
    }
    return loss + 0.5 * each - 2.0 * batch;
}

#define STEP 0x1p-12

static void check_entropies(void *ctx)
{
    problem *p = ctx;
    double part[2], *x = doubles(p->dim);
    (void)ref_loss(p, -1, NULL, part);
    /* integers of 2^-40: entropies move by |ln p| a unit and code */
    assert_near(p->batch.value[0], part[1], 64 * ldexp(1.0, (int)p->dim - EXPONENT));
    assert_near(sum_of(p->entropy.value, p->row_numel), part[0], 1e-11);
    for (int64_t row = 0; row < p->row_numel; row++)
        for (int64_t j = 0; j < p->stride; j++) {
            const int64_t at = row * p->stride + j;
            double want = p->valid[row] != 0 || j >= p->dim ? p->d_x.value[at] : 0.0;
            if (p->valid[row] != 0 && j < p->dim) {
                memcpy(x, p->x.value + row * p->stride, (size_t)p->dim * sizeof *x);
                x[j] += STEP;
                const double above = ref_loss(p, row, x, NULL);
                x[j] -= 2 * STEP;
                want = (above - ref_loss(p, row, x, NULL)) / (2 * STEP);
            }
            /* third derivatives of entropies: at most (4 beta m)^3, h^2 / 6 of it; f32 results */
            const double slope = 4 * p->beta * (double)p->magnitude;
            assert_near(p->d_x.value[at], want,
                        slope * slope * slope * STEP * STEP / 6 + 1e-9 +
                            8 * F32_U * (1 + fabs(want)));
        }
    tess_free(x);
}

static void ignore(void *ctx) { (void)ctx; }

static void run_problem(tess_dtype dt, int64_t row_numel, int64_t dim, problem like)
{
    problem p = like;
    p.row_numel = row_numel;
    p.dim = dim;
    p.stride = dim + 3;
    p.x = buffer_random(TESS_F32, row_numel * p.stride, 81, 0.5);
    p.d_out = buffer_random(dt, row_numel * p.stride, 83, 1.0);
    p.d_x = buffer_create(TESS_F32, row_numel * p.stride, true);
    p.loss = buffer_create(TESS_F64, row_numel, false);
    p.entropy = buffer_create(TESS_F64, row_numel, false);
    p.slope = buffer_create(TESS_F64, INT64_C(1) << dim, false);
    p.batch = buffer_create(TESS_F64, 1, false);
    p.sum = must_alloc(sizeof(int64_t) << dim);
    p.work = doubles(tess_entropy_work_numel(dim));
    p.valid = must_alloc((size_t)row_numel);
    for (int64_t i = 0; i < row_numel; i++) {
        p.valid[i] = i % 5 != 2;
        p.valid_numel += p.valid[i];
    }
    op_run run = {.call = call_entropies,
                  .ctx = &p,
                  .outputs = {&p.d_x, &p.loss, &p.entropy, &p.slope, &p.batch},
                  .output_numel = 5};
    run_everywhere(&run, row_numel < 50 ? check_entropies : ignore);
    op_buffer *all[] = {&p.x, &p.d_out, &p.d_x, &p.loss, &p.entropy, &p.slope, &p.batch};
    for (int i = 0; i < TESS_NELEM(all); i++)
        buffer_destroy(all[i]);
    tess_free(p.sum);
    tess_free(p.work);
    tess_free(p.valid);
}

static void test_gradients_on_every_path(void **state)
{
    (void)state;
    const problem plain = {.beta = 0.7, .magnitude = 1.0f, .part_numel = 1};
    const problem parts = {.beta = 1.3, .magnitude = 0.5f, .part_numel = 3, .least = 1e-5};
    for (int64_t dim = 1; dim <= 7; dim += 2) {
        run_problem(TESS_F32, 9, dim, plain);
        run_problem(TESS_BF16, 41, dim, parts);
    }
    /* enough work for three threads */
    run_problem(TESS_F32, 300, 9, plain);
    run_problem(TESS_F32, 67, 13, parts);
}

/* At 18 bits the integers and the slopes are there; one vector's entropy follows from its coins. */
static void test_most_bits(void **state)
{
    (void)state;
    enum { DIM = TESS_ENTROPY_DIM_MAX, NUMEL = 1 << DIM };
    float x[DIM], d_x[DIM] = {0};
    for (int j = 0; j < DIM; j++)
        x[j] = 0.05f * (float)(j - 7);
    int64_t *sum = must_alloc(NUMEL * sizeof *sum);
    double *slope = doubles(NUMEL), *work = doubles(tess_entropy_work_numel(DIM));
    double batch = 0.0, each = 0.0;
    memset(sum, 0, NUMEL * sizeof *sum);
    tess_stream s = inline_stream();
    const tess_quantizer_pbar_args p = {rows_of(x, 1, DIM), 2.0, 50, sum, work};
    assert_done(tess_cpu_quantizer_pbar(&p, &s));
    const tess_quantizer_batch_entropy_args b = {
        .sum = sum, .dim = DIM, .valid_numel = 1, .exponent = 50, .loss = &batch, .slope = slope};
    assert_done(tess_cpu_quantizer_batch_entropy(&b, &s));
    tess_quantizer_sign_loss_args l = {.rows = p.rows, .beta = 2.0, .entropy = &each};
    assert_done(tess_cpu_quantizer_sign_loss(&l, &s));
    assert_near(batch, each, 1e-7); /* codes of less than 2^-50 count as none */
    const tess_quantizer_batch_entropy_backward_args g = {p.rows, 2.0, slope, 1.0, d_x};
    assert_done(tess_cpu_quantizer_batch_entropy_backward(&g, &s));
    for (int j = 0; j < DIM; j++) {
        const tess_coin coin = tess_coin_of(8.0 * (double)x[j]);
        assert_near((double)d_x[j], -64.0 * (double)x[j] * coin.positive * coin.negative, 1e-6);
    }
    tess_free(sum);
    tess_free(slope);
    tess_free(work);
}

/* The coin of sizes that f32 could not tell from certainty. */
static void test_coins(void **state)
{
    (void)state;
    for (int i = -2800; i <= 2800; i++) {
        const double t = i * 0.25, e = exp(-fabs(t)), least = e / (1 + e), most = 1 / (1 + e);
        const tess_coin coin = tess_coin_of(t);
        const double entropy = log1p(e) + fabs(t) * least;
        assert_near(t < 0 ? coin.positive : coin.negative, least, 8 * 0x1p-53 * least);
        assert_near(t < 0 ? coin.negative : coin.positive, most, 8 * 0x1p-53 * most);
        /* ln(1 + e) of a sum that was rounded */
        assert_near(coin.entropy, entropy, 8 * 0x1p-53 * (entropy + 1));
    }
}

static void test_wrong_arguments_are_refused(void **state)
{
    (void)state;
    float x[TESS_SIGN_DIM_MAX + 1] = {0};
    int64_t sum = 0;
    double work = 0.0;
    const tess_quantizer_pbar_args wide = {rows_of(x, 1, 19), 1.0, 40, &sum, &work};
    assert_refused(tess_quantizer_pbar_check(&wide), TESS_E_RANGE,
                   "quantizer pbar: the mean of 2^19 probabilities, expected 1 to 18 bits; take "
                   "the batch entropy of groups of 9 bits");
    tess_quantizer_sign_args a = {.rows = rows_of(x, 1, 33)};
    assert_refused(tess_quantizer_sign_check(&a), TESS_E_RANGE, "33 bits, expected 1 to 32");
    a.rows = rows_of(x, 1, 4);
    a.out = tess_view_host(x, 4, TESS_F16);
    assert_refused(tess_quantizer_sign_check(&a), TESS_E_DTYPE,
                   "quantizer sign: out is f16, expected f32 or bf16");
    a.out.numel = 0;
    a.rows.magnitude = 0.0f;
    assert_refused(tess_quantizer_sign_check(&a), TESS_E_RANGE, "magnitude is 0");
    const uint32_t index = 16;
    tess_stream s = inline_stream();
    const tess_quantizer_sign_decode_args d = {.index = &index,
                                               .row_numel = 1,
                                               .dim = 4,
                                               .magnitude = 1.0f,
                                               .out = tess_view_host(x, 4, TESS_F32)};
    assert_refused(tess_cpu_quantizer_sign_decode(&d, &s), TESS_E_RANGE,
                   "vector 0 has index 16, expected below 2^4");
}

/* What is not finite is nowhere in the sums, the same on every machine. */
static void test_nan_adds_nothing(void **state)
{
    (void)state;
    float x[TOKENS * BITS];
    int64_t sum[CODES] = {0};
    double work[CODES + 2 * 4 * TESS_ENTROPY_ROW_NUMEL];
    tess_stream s = inline_stream();
    memcpy(x, tokens, sizeof x);
    x[4] = NAN;
    assert_true(tess_entropy_work_numel(BITS) <= TESS_NELEM(work));
    const tess_quantizer_pbar_args a = {rows_of(x, TOKENS, BITS), 1.0, 40, sum, work};
    assert_done(tess_cpu_quantizer_pbar(&a, &s));
    for (int c = 0; c < CODES; c++)
        assert_int_equal(sum[c], 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_indices_and_commitment),
        cmocka_unit_test(test_spherical_example),
        cmocka_unit_test(test_entropies_of_four_tokens),
        cmocka_unit_test(test_two_ranks_example),
        cmocka_unit_test(test_gradients_on_every_path),
        cmocka_unit_test(test_most_bits),
        cmocka_unit_test(test_coins),
        cmocka_unit_test(test_nan_adds_nothing),
        cmocka_unit_test(test_wrong_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
