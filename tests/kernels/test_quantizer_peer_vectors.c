/*
 * Vector quantizers against vector-quantize-pytorch, composed of this folder's ops.
 *
 * [Note: tolerances] The peer's gradient of a row passes about 16 roundings (norms, unit vectors,
 * two products, their sum, the ratio of norms) of terms that are at most R = 5 |g| |q| / |x| for
 * the rotation and |g| for straight-through, plus its commitment c (|x| + |q|), all of it divided
 * by |x| where rows are normalized, twice. In bf16 it forms all of them in bf16; ours are f32 with
 * one rounding at the edge, which CASE.f32 holds the peer's f32 numbers for. Outputs of the peer
 * are x + (q - x) or the rotated x: codes up to 16 roundings of 5 |q|; ours are the codes.
 */
#include "kernels/codebook.h"
#include "kernels/quantizer_codebook.h"
#include "tests/kernels/quantizer_golden.h"

enum { N = 24, D = 6, K = 10, LEVELS = 4, PATH_ROUNDINGS = 16 };

static tess_golden *golden;

/* ---- one quantizer ---- */

typedef struct vector_case {
    const char *name;
    tess_estimator estimator;
    double commitment; /* weight */
    bool is_cosine, is_learnable, is_masked;
    double orthogonal, threshold, decay;
} vector_case;

typedef struct quantized {
    const vector_case *c;
    tess_dtype dt;
    char name[64];  /* of the case with its dtype */
    char exact[64]; /* of what the peer made of these inputs in f32 */
    op_buffer x, g, out, d_x;
    const float *codes;
    uint32_t code[N];
    float core[N * D], norm[N], d_core[N * D], d_codes[K * D];
    double loss, orthogonal;
    int64_t valid_numel;
} quantized;

static bool is_valid(const quantized *q, int64_t row)
{
    if (!q->c->is_masked)
        return true;
    const int64_t *mask = tensor_of(golden, q->c->name, "mask", TESS_I64, NULL);
    return mask[row] != 0;
}

static void forward(quantized *q, tess_stream *s)
{
    double row_loss[N];
    const tess_quantizer_enter_args enter = {.x = q->x.view,
                                             .row_numel = N,
                                             .dim = D,
                                             .length = q->c->is_cosine ? 1.0f : 0.0f,
                                             .least = TESS_UNIT_LEAST,
                                             .core = q->core,
                                             .norm = q->norm};
    assert_done(tess_cpu_quantizer_enter(&enter, s));
    find_codes(q->core, N, q->codes, K, D, q->code);
    for (int64_t i = 0; i < N; i++) {
        q->valid_numel += is_valid(q, i);
        q->code[i] = is_valid(q, i) ? q->code[i] : TESS_NO_CODE;
    }
    const tess_coded_rows rows = {q->codes, q->code, N, D, K};
    const tess_quantizer_gather_args gather = {.rows = rows, .out = q->out.view};
    assert_done(tess_cpu_quantizer_gather(&gather, s));
    const tess_quantizer_row_loss_args loss = {.rows = rows, .x = q->core, .out = row_loss};
    assert_done(tess_cpu_quantizer_row_loss(&loss, s));
    q->loss = q->c->commitment * total_of(row_loss, N) / (double)(q->valid_numel * D);
    assert_canaries(&q->out);
    buffer_read(&q->out);
}

static void add_orthogonal(quantized *q, tess_stream *s)
{
    int64_t gram[D * D] = {0};
    double work[(D + 1) * D];
    const tess_quantizer_gram_args g = {.codes = q->codes,
                                        .code_numel = K,
                                        .dim = D,
                                        .exponent = tess_fixed_exponent(1.0f, K),
                                        .gram = gram};
    assert_done(tess_cpu_quantizer_gram(&g, s));
    const tess_quantizer_orthogonal_args o = {.codes = q->codes,
                                              .gram = gram,
                                              .code_numel = K,
                                              .dim = D,
                                              .used_numel = K,
                                              .exponent = g.exponent,
                                              .weight = q->c->orthogonal,
                                              .work = work,
                                              .d_codes = q->d_codes,
                                              .loss = &q->orthogonal};
    assert_done(tess_cpu_quantizer_orthogonal(&o, s));
    q->loss += q->c->orthogonal * q->orthogonal;
}

static void backward(quantized *q, tess_stream *s)
{
    const float commitment = (float)(2.0 * q->c->commitment / (double)(q->valid_numel * D));
    const tess_quantizer_backward_args b = {.rows = {q->codes, q->code, N, D, K},
                                            .x = q->core,
                                            .d_out = q->g.view,
                                            .estimator = q->c->estimator,
                                            .commitment = commitment,
                                            .d_x = q->d_core};
    assert_done(tess_cpu_quantizer_backward(&b, s));
    const tess_quantizer_enter_backward_args e = {.core = q->core,
                                                  .norm = q->norm,
                                                  .d_core = q->d_core,
                                                  .row_numel = N,
                                                  .dim = D,
                                                  .length = q->c->is_cosine ? 1.0f : 0.0f,
                                                  .least = TESS_UNIT_LEAST,
                                                  .d_x = q->d_x.view};
    assert_done(tess_cpu_quantizer_enter_backward(&e, s));
    assert_canaries(&q->d_x);
    buffer_read(&q->d_x);
    const tess_quantizer_code_gradient_args c = {
        .rows = b.rows, .x = q->core, .coefficient = commitment, .d_codes = q->d_codes};
    assert_done(tess_cpu_quantizer_code_gradient(&c, s));
    if (q->c->orthogonal > 0.0)
        add_orthogonal(q, s);
}

/* Scale of a row's gradient: see [Note: tolerances]. */
static double gradient_scale(const quantized *q, int64_t row)
{
    if (q->code[row] == TESS_NO_CODE)
        return 0.0;
    float g[D];
    for (int j = 0; j < D; j++)
        g[j] = (float)q->g.value[row * D + j];
    const double x = norm_of(q->core + row * D, D), c = norm_of(q->codes + q->code[row] * D, D);
    const double output = q->c->estimator == TESS_ESTIMATOR_ROTATION ? 5 * c / x : 1.0;
    const double scale =
        output * norm_of(g, D) + 2 * q->c->commitment / (double)(q->valid_numel * D) * (x + c);
    return q->c->is_cosine ? 2 * scale / (double)q->norm[row] : scale;
}

static void check_rows(const quantized *q, const char *name, double unit)
{
    const float *out = floats_of(golden, name, "out"), *d_x = floats_of(golden, name, "d_x");
    const double edge = q->dt == TESS_BF16 ? BF16_U : 0.0;
    for (int64_t i = 0; i < N * D; i++) {
        const uint32_t code = q->code[i / D];
        const double size = code == TESS_NO_CODE ? 0.0 : norm_of(q->codes + code * D, D);
        const double x = norm_of(q->core + i / D * D, D);
        assert_value(name, i, q->out.value[i], (double)out[i],
                     PATH_ROUNDINGS * unit * (5 * size + x) + edge * fabs((double)out[i]));
        assert_value(name, i, q->d_x.value[i], (double)d_x[i],
                     PATH_ROUNDINGS * unit * gradient_scale(q, i / D) +
                         edge * fabs((double)d_x[i]));
    }
    /* the peer's mean adds N D terms */
    assert_value(name, -1, q->loss, number_of(golden, name, "loss"),
                 (PATH_ROUNDINGS * unit + N * D * F32_U) * fabs(q->loss));
}

static void check_codes(const quantized *q, const char *name, double unit)
{
    const int64_t *index = tensor_of(golden, name, "index", TESS_I64, NULL);
    for (int64_t i = 0; i < N; i++)
        assert_int_equal(index[i], q->code[i] == TESS_NO_CODE ? -1 : (int64_t)q->code[i]);
    if (!q->c->is_learnable)
        return;
    /* at most N vectors of c (|q| + |x|), and for unit rows of ten codes 4 weight / |c| / K */
    const float *d_codes = floats_of(golden, name, "d_codes");
    for (int64_t i = 0; i < K * D; i++)
        assert_value(name, i, (double)q->d_codes[i], (double)d_codes[i],
                     PATH_ROUNDINGS * unit * (0.5 + q->c->orthogonal));
}

/* ---- moving averages after the step ---- */

static void sum_vectors(const quantized *q, float *sum, int64_t *count, tess_stream *s)
{
    int64_t fixed[K * D] = {0};
    float most = 0.0f;
    for (int64_t i = 0; i < N * D; i++)
        most = fmaxf(most, fabsf(q->core[i]));
    const tess_code_sum_args a = {.x = q->core,
                                  .row = q->code,
                                  .vector_numel = N,
                                  .dim = D,
                                  .row_numel = K,
                                  .exponent = tess_fixed_exponent(most, N),
                                  .sum = fixed,
                                  .count = count};
    assert_done(tess_cpu_code_sum(&a, s));
    for (int64_t i = 0; i < K * D; i++)
        sum[i] = (float)tess_fixed_value(fixed[i], a.exponent);
}

static void replace_expired(const quantized *q, tess_codebook_rows rows, tess_stream *s)
{
    uint8_t expired[K];
    int64_t expired_numel = 0, drawn_numel = 0, row[K], at = 0;
    const tess_quantizer_expire_args e = {.cluster_size = rows.cluster_size,
                                          .row_numel = K,
                                          .threshold = q->c->threshold,
                                          .expired = expired,
                                          .expired_numel = &expired_numel};
    assert_done(tess_cpu_quantizer_expire(&e, s));
    const float *drawn = tensor_of(golden, q->name, "drawn", TESS_F32, &drawn_numel);
    assert_true(expired_numel > 0 && drawn_numel == expired_numel * D);
    for (int64_t k = 0; k < K; k++)
        if (expired[k])
            row[at++] = k;
    const tess_quantizer_replace_args r = {.rows = rows,
                                           .row = row,
                                           .vector = drawn,
                                           .replace_numel = expired_numel,
                                           .reset = q->c->threshold,
                                           .is_cosine = q->c->is_cosine};
    assert_done(tess_cpu_quantizer_replace(&r, s));
}

static void check_averages(const quantized *q, tess_stream *s, double unit)
{
    float embed[K * D], embed_avg[K * D], cluster_size[K], sum[K * D];
    int64_t count[K] = {0}, total = 0;
    memcpy(embed_avg, q->codes, sizeof embed_avg);
    for (int k = 0; k < K; k++)
        cluster_size[k] = 1.0f;
    sum_vectors(q, sum, count, s);
    const tess_codebook_rows rows = {embed, embed_avg, cluster_size, K, D};
    const tess_quantizer_average_args a = {
        .rows = rows, .count = count, .sum = sum, .decay = q->c->decay};
    assert_done(tess_cpu_quantizer_average(&a, s));
    const tess_quantizer_total_args t = {cluster_size, K, &total};
    assert_done(tess_cpu_quantizer_total(&t, s));
    const tess_quantizer_embed_args e = {.rows = rows,
                                         .total = ldexp((double)total, -20),
                                         .code_numel = K,
                                         .eps = 1e-5,
                                         .is_cosine = q->c->is_cosine};
    assert_done(tess_cpu_quantizer_embed(&e, s));
    if (q->c->threshold > 0.0)
        replace_expired(q, rows, s);
    const float *want[] = {floats_of(golden, q->name, "embed"),
                           floats_of(golden, q->name, "embed_avg"),
                           floats_of(golden, q->name, "cluster_size")};
    /* sums of at most N vectors of norm 4, divided by sizes of 0.8 or more; N F32_U for the peer's
     * order */
    const double tolerance = (PATH_ROUNDINGS * unit + N * F32_U) * 8;
    for (int64_t i = 0; i < K * D; i++) {
        assert_value("embed", i, (double)embed[i], (double)want[0][i], tolerance);
        assert_value("embed_avg", i, (double)embed_avg[i], (double)want[1][i], tolerance);
    }
    for (int64_t k = 0; k < K; k++)
        assert_value("cluster_size", k, (double)cluster_size[k], (double)want[2][k], 8 * F32_U * N);
}

static void run_case(const vector_case *c, tess_dtype dt)
{
    tess_stream s = inline_stream();
    quantized q = {.c = c, .dt = dt, .codes = floats_of(golden, c->name, "codes")};
    const bool is_bf16 = dt == TESS_BF16;
    snprintf(q.name, sizeof q.name, "%s%s", c->name, is_bf16 ? ".bf16" : "");
    snprintf(q.exact, sizeof q.exact, "%s%s", c->name, is_bf16 ? ".f32" : "");
    q.x = buffer_golden(golden, q.name, "x", dt);
    q.g = buffer_golden(golden, q.name, "g", dt);
    q.out = buffer_create(dt, N * D, true);
    q.d_x = buffer_create(dt, N * D, true);
    forward(&q, &s);
    backward(&q, &s);
    check_rows(&q, q.exact, F32_U);
    check_codes(&q, q.exact, F32_U);
    if (is_bf16) {
        check_rows(&q, q.name, BF16_U);
        check_codes(&q, q.name, BF16_U);
    }
    if (!c->is_learnable) /* the peer normalizes in bf16 */
        check_averages(&q, &s, is_bf16 && c->is_cosine ? BF16_U : F32_U);
    op_buffer *all[] = {&q.x, &q.g, &q.out, &q.d_x};
    for (int i = 0; i < TESS_NELEM(all); i++)
        buffer_destroy(all[i]);
}

static void test_vector_quantize(void **state)
{
    (void)state;
    static const vector_case cases[] = {
        {.name = "straight", .estimator = TESS_ESTIMATOR_STRAIGHT, .commitment = 0.5, .decay = 0.8},
        {.name = "rotation",
         .estimator = TESS_ESTIMATOR_ROTATION,
         .commitment = 1.0,
         .threshold = 2.0,
         .decay = 0.8},
        {.name = "masked",
         .estimator = TESS_ESTIMATOR_ROTATION,
         .commitment = 1.0,
         .is_masked = true,
         .decay = 0.8},
        {.name = "cosine",
         .estimator = TESS_ESTIMATOR_ROTATION,
         .commitment = 1.0,
         .is_cosine = true,
         .threshold = 1.1,
         .decay = 0.9},
        {.name = "learnable",
         .estimator = TESS_ESTIMATOR_STRAIGHT,
         .commitment = 0.25,
         .is_learnable = true},
        {.name = "orthogonal",
         .estimator = TESS_ESTIMATOR_ROTATION,
         .commitment = 1.0,
         .is_learnable = true,
         .orthogonal = 10.0},
    };
    golden = open_golden("vector");
    for (int i = 0; i < TESS_NELEM(cases); i++) {
        run_case(&cases[i], TESS_F32);
        run_case(&cases[i], TESS_BF16);
    }
    tess_golden_close(&golden);
}

static void test_drawn_codes(void **state)
{
    (void)state;
    golden = open_golden("vector");
    uint64_t key[N];
    memset(key, 0xff, sizeof key);
    tess_stream s = inline_stream();
    const tess_quantizer_sample_args a = {.x = floats_of(golden, "drawn", "x"),
                                          .codes = floats_of(golden, "drawn", "codes"),
                                          .row_numel = N,
                                          .dim = D,
                                          .code_numel = K,
                                          .all_numel = K,
                                          .temperature = 0.5,
                                          .uniform = floats_of(golden, "drawn", "uniform"),
                                          .key = key};
    assert_done(tess_cpu_quantizer_sample(&a, &s));
    const int64_t *index = tensor_of(golden, "drawn", "index", TESS_I64, NULL);
    for (int i = 0; i < N; i++)
        assert_int_equal(tess_key_row(key[i]), index[i]);
    tess_golden_close(&golden);
}

/* The peer's directions and lengths are f32: the output, x and a vector of length |q - x|, passes
 * about 8 roundings of them, the gradients as many of |g|. */
static void test_directed(void **state)
{
    (void)state;
    golden = open_golden("vector");
    tess_stream s = inline_stream();
    op_buffer x = buffer_golden(golden, "directed", "x", TESS_F32);
    op_buffer g = buffer_golden(golden, "directed", "g", TESS_F32);
    op_buffer out = buffer_create(TESS_F32, N * D, true),
              d_x = buffer_create(TESS_F32, N * D, true);
    uint32_t code[N];
    float d_q[N * D], d_codes[K * D] = {0};
    const float *codes = floats_of(golden, "directed", "codes");
    find_codes(x.view.data, N, codes, K, D, code);
    const tess_quantizer_directed_args a = {.rows = {codes, code, N, D, K},
                                            .x = x.view.data,
                                            .noise = floats_of(golden, "directed", "noise"),
                                            .spread = (float)sqrt(5e-3),
                                            .out = out.view};
    assert_done(tess_cpu_quantizer_directed(&a, &s));
    const tess_quantizer_directed_backward_args b = {.rows = a.rows,
                                                     .x = a.x,
                                                     .noise = a.noise,
                                                     .spread = a.spread,
                                                     .d_out = g.view,
                                                     .d_x = d_x.view.data,
                                                     .d_q = d_q};
    assert_done(tess_cpu_quantizer_directed_backward(&b, &s));
    const tess_quantizer_code_gradient_args c = {.rows = a.rows, .d_q = d_q, .d_codes = d_codes};
    assert_done(tess_cpu_quantizer_code_gradient(&c, &s));
    buffer_read(&out);
    buffer_read(&d_x);
    const float *want[] = {floats_of(golden, "directed", "out"),
                           floats_of(golden, "directed", "d_x"),
                           floats_of(golden, "directed", "d_codes")};
    const double most = largest(g.value, N * D) * sqrt(D);
    for (int i = 0; i < N * D; i++) {
        const double size = norm_of(codes + (int)code[i / D] * D, D) +
                            2 * norm_of((const float *)x.view.data + i / D * D, D);
        assert_value("out", i, out.value[i], (double)want[0][i], 8 * F32_U * size);
        assert_value("d_x", i, d_x.value[i], (double)want[1][i], PATH_ROUNDINGS * F32_U * most);
    }
    for (int i = 0; i < K * D; i++)
        assert_value("d_codes", i, (double)d_codes[i], (double)want[2][i],
                     (PATH_ROUNDINGS + N) * F32_U * N * most);
    op_buffer *all[] = {&x, &g, &out, &d_x};
    for (int i = 0; i < TESS_NELEM(all); i++)
        buffer_destroy(all[i]);
    tess_golden_close(&golden);
}

/* ---- heads ---- */

/* Heads are columns of x, g, out and d_x; the loss is the mean over all of them. */
enum { HEADS = 2, WIDTH = HEADS * D };

typedef struct head_run {
    op_buffer x, g, out, d_x; /* [N, WIDTH] */
    const float *codes;       /* [K, D], this head's */
    float core[N * D], d_core[N * D];
    uint32_t code[N];
    int head;
} head_run;

static tess_view head_of(const head_run *r, const op_buffer *b)
{
    return tess_view_slice(b->view, r->head * D, (N - 1) * WIDTH + D);
}

static void head_compute(head_run *r, tess_stream *s)
{
    const tess_quantizer_enter_args e = {
        .x = head_of(r, &r->x), .row_numel = N, .dim = D, .x_stride = WIDTH, .core = r->core};
    assert_done(tess_cpu_quantizer_enter(&e, s));
    find_codes(r->core, N, r->codes, K, D, r->code);
    const tess_quantizer_gather_args o = {
        .rows = {r->codes, r->code, N, D, K}, .out_stride = WIDTH, .out = head_of(r, &r->out)};
    assert_done(tess_cpu_quantizer_gather(&o, s));
    const tess_quantizer_backward_args b = {.rows = o.rows,
                                            .x = r->core,
                                            .d_out = head_of(r, &r->g),
                                            .d_stride = WIDTH,
                                            .estimator = TESS_ESTIMATOR_ROTATION,
                                            .commitment = 2.0f / (N * WIDTH),
                                            .d_x = r->d_core};
    assert_done(tess_cpu_quantizer_backward(&b, s));
    const tess_quantizer_enter_backward_args d = {.d_core = r->d_core,
                                                  .row_numel = N,
                                                  .dim = D,
                                                  .d_stride = WIDTH,
                                                  .d_x = head_of(r, &r->d_x)};
    assert_done(tess_cpu_quantizer_enter_backward(&d, s));
    buffer_read(&r->out);
    buffer_read(&r->d_x);
}

static void check_head(const head_run *r, const char *exact, double edge)
{
    const int64_t *index = tensor_of(golden, exact, "index", TESS_I64, NULL);
    const float *out = floats_of(golden, exact, "out"), *d_x = floats_of(golden, exact, "d_x");
    for (int i = 0; i < N * D; i++) {
        const int row = i / D, first = row * WIDTH + r->head * D, at = first + i % D;
        float g[D];
        for (int j = 0; j < D; j++)
            g[j] = (float)r->g.value[first + j];
        const double q = norm_of(r->codes + (int)r->code[row] * D, D);
        const double x = norm_of(r->core + row * D, D);
        assert_int_equal(r->code[row], index[row * HEADS + r->head]);
        assert_value(exact, at, r->out.value[at], (double)out[at],
                     PATH_ROUNDINGS * F32_U * 5 * q + edge * fabs((double)out[at]));
        assert_value(exact, at, r->d_x.value[at], (double)d_x[at],
                     PATH_ROUNDINGS * F32_U * (5 * q / x * norm_of(g, D) + q + x) +
                         edge * fabs((double)d_x[at]));
    }
}

static void run_heads(const char *base, int codebook_numel, tess_dtype dt)
{
    char name[64], exact[64];
    snprintf(name, sizeof name, "%s%s", base, dt == TESS_BF16 ? ".bf16" : "");
    snprintf(exact, sizeof exact, "%s%s", base, dt == TESS_BF16 ? ".f32" : "");
    tess_stream s = inline_stream();
    for (int head = 0; head < HEADS; head++) {
        head_run r = {.x = buffer_golden(golden, name, "x", dt),
                      .g = buffer_golden(golden, name, "g", dt),
                      .out = buffer_create(dt, N * WIDTH, true),
                      .d_x = buffer_create(dt, N * WIDTH, true),
                      .codes = floats_of(golden, base, "codes") + head % codebook_numel * K * D,
                      .head = head};
        head_compute(&r, &s);
        check_head(&r, exact, dt == TESS_BF16 ? BF16_U : 0.0);
        op_buffer *all[] = {&r.x, &r.g, &r.out, &r.d_x};
        for (int i = 0; i < TESS_NELEM(all); i++)
            buffer_destroy(all[i]);
    }
}

static void test_heads(void **state)
{
    (void)state;
    golden = open_golden("heads");
    for (int i = 0; i < 2; i++) {
        run_heads("separate", 2, i == 0 ? TESS_F32 : TESS_BF16);
        run_heads("shared", 1, i == 0 ? TESS_F32 : TESS_BF16);
    }
    tess_golden_close(&golden);
}

/* ---- stacks ---- */

typedef enum stack_variant { SUMMED, UNDETACHED, SINGLE } stack_variant;

typedef struct stack {
    stack_variant variant;
    tess_estimator estimator;
    const float *codes; /* [LEVELS, K, D] */
    float r[LEVELS + 1][N * D], sum[N * D], d_x[N * D];
    uint32_t code[LEVELS][N];
    double loss[LEVELS];
} stack;

static void stack_forward(stack *t, tess_stream *s)
{
    double row_loss[N];
    for (int i = 0; i < LEVELS; i++) {
        const float *codes = t->codes + i * K * D;
        find_codes(t->r[i], N, codes, K, D, t->code[i]);
        const tess_coded_rows rows = {codes, t->code[i], N, D, K};
        const tess_quantizer_residual_args next = {
            .rows = rows, .r = t->r[i], .next = t->r[i + 1], .sum = t->sum};
        assert_done(tess_cpu_quantizer_residual(&next, s));
        const tess_quantizer_row_loss_args loss = {.rows = rows, .x = t->r[i], .out = row_loss};
        assert_done(tess_cpu_quantizer_row_loss(&loss, s));
        t->loss[i] = total_of(row_loss, N) / (N * D);
    }
}

/* From the last level: what arrives at a level's residual goes on where it is not detached. */
static void stack_backward(stack *t, tess_view g, tess_stream *s)
{
    for (int i = LEVELS - 1; i >= 0; i--) {
        tess_quantizer_backward_args b = {.rows = {t->codes + i * K * D, t->code[i], N, D, K},
                                          .x = t->r[i],
                                          .d_out = g,
                                          .estimator = t->estimator,
                                          .commitment = 2.0f / (N * D),
                                          .d_x = t->d_x};
        if (t->variant == UNDETACHED) {
            b.d_next = t->d_x;
            b.keep = 1.0f;
        } else {
            b.accumulate = true;
        }
        if (t->variant == SINGLE)
            b.estimator = i == 0 ? TESS_ESTIMATOR_STRAIGHT : TESS_ESTIMATOR_NONE;
        assert_done(tess_cpu_quantizer_backward(&b, s));
    }
}

/* Roundings of all levels; every level's gradient is at most as large as its own row's R. */
static void check_stack(const stack *t, const op_buffer *g, const char *name, double edge)
{
    const int64_t *index = tensor_of(golden, name, "index", TESS_I64, NULL);
    const float *out = floats_of(golden, name, "out"), *d_x = floats_of(golden, name, "d_x");
    const float *loss = floats_of(golden, name, "loss");
    for (int64_t row = 0; row < N; row++) {
        double size = 0.0, most = 1.0, scale = 1.0;
        float row_g[D];
        for (int j = 0; j < D; j++)
            row_g[j] = (float)g->value[row * D + j];
        for (int i = 0; i < LEVELS; i++) {
            assert_int_equal(t->code[i][row], index[row * LEVELS + i]);
            const double q = norm_of(t->codes + (i * K + (int)t->code[i][row]) * D, D);
            const double r = norm_of(t->r[i] + row * D, D);
            size += 5 * q + r;
            most = fmax(most, t->estimator == TESS_ESTIMATOR_ROTATION ? 5 * q / r : 1.0);
            scale = t->variant == UNDETACHED ? scale * (1 + most) : scale + most;
        }
        for (int64_t j = row * D; j < (row + 1) * D; j++) {
            assert_value(name, j, (double)t->sum[j], (double)out[j], PATH_ROUNDINGS * F32_U * size);
            assert_value(name, j, (double)t->d_x[j], (double)d_x[j],
                         PATH_ROUNDINGS * F32_U * scale * (1 + norm_of(row_g, D)) +
                             edge * fabs((double)d_x[j]));
        }
    }
    for (int i = 0; i < LEVELS; i++)
        assert_value(name, i, t->loss[i], (double)loss[i],
                     (PATH_ROUNDINGS + N * D) * F32_U * (1 + t->loss[i]));
}

static void run_stack(const char *base, stack_variant variant, tess_estimator estimator,
                      tess_dtype dt)
{
    char name[64], exact[64];
    snprintf(name, sizeof name, "%s%s", base, dt == TESS_BF16 ? ".bf16" : "");
    snprintf(exact, sizeof exact, "%s%s", base, dt == TESS_BF16 ? ".f32" : "");
    stack *t = must_alloc(sizeof *t);
    memset(t, 0, sizeof *t);
    t->variant = variant;
    t->estimator = estimator;
    t->codes = floats_of(golden, base, "codes");
    tess_stream s = inline_stream();
    op_buffer x = buffer_golden(golden, name, "x", dt), g = buffer_golden(golden, name, "g", dt);
    const tess_quantizer_enter_args enter = {
        .x = x.view, .row_numel = N, .dim = D, .core = t->r[0]};
    assert_done(tess_cpu_quantizer_enter(&enter, &s));
    stack_forward(t, &s);
    stack_backward(t, g.view, &s);
    check_stack(t, &g, exact, 0.0);
    if (dt == TESS_BF16) { /* the peer rounds every residual to bf16: its first level is ours */
        const int64_t *index = tensor_of(golden, name, "index", TESS_I64, NULL);
        for (int64_t row = 0; row < N; row++)
            assert_int_equal(t->code[0][row], index[row * LEVELS]);
    }
    buffer_destroy(&x);
    buffer_destroy(&g);
    tess_free(t);
}

static void test_residual_vq(void **state)
{
    (void)state;
    golden = open_golden("residual");
    run_stack("summed", SUMMED, TESS_ESTIMATOR_STRAIGHT, TESS_F32);
    run_stack("summed_rotation", SUMMED, TESS_ESTIMATOR_ROTATION, TESS_F32);
    run_stack("summed_rotation", SUMMED, TESS_ESTIMATOR_ROTATION, TESS_BF16);
    run_stack("undetached", UNDETACHED, TESS_ESTIMATOR_STRAIGHT, TESS_F32);
    run_stack("undetached_rotation", UNDETACHED, TESS_ESTIMATOR_ROTATION, TESS_F32);
    run_stack("single", SINGLE, TESS_ESTIMATOR_STRAIGHT, TESS_F32);
    run_stack("single", SINGLE, TESS_ESTIMATOR_STRAIGHT, TESS_BF16);
    tess_golden_close(&golden);
}

/* ---- codes that a matrix makes ---- */

/* out [m, n] = a [m, k] b^T, b [n, k] */
static void multiply(const float *a, const float *b, int m, int n, int k, float *out)
{
    for (int i = 0; i < m * n; i++) {
        double sum = 0.0;
        for (int j = 0; j < k; j++)
            sum += (double)a[i / n * k + j] * (double)b[i % n * k + j];
        out[i] = (float)sum;
    }
}

static void test_sim_vq(void **state)
{
    (void)state;
    enum { FROZEN = 5 };
    static const vector_case c = {
        .name = "sim", .estimator = TESS_ESTIMATOR_ROTATION, .commitment = 0.25};
    golden = open_golden("sim");
    tess_stream s = inline_stream();
    float codes[K * D];
    const float *frozen = floats_of(golden, "sim", "frozen");
    const float *weight = floats_of(golden, "sim", "weight");
    multiply(frozen, weight, K, D, FROZEN, codes);
    quantized q = {.c = &c, .dt = TESS_F32, .codes = codes};
    snprintf(q.name, sizeof q.name, "sim");
    q.x = buffer_golden(golden, "sim", "x", TESS_F32);
    q.g = buffer_golden(golden, "sim", "g", TESS_F32);
    q.out = buffer_create(TESS_F32, N * D, true);
    q.d_x = buffer_create(TESS_F32, N * D, true);
    forward(&q, &s);
    backward(&q, &s);
    /* codes learn with weight 1 and vectors with 0.25; both losses are the same mean */
    q.loss = q.loss / 0.25 * 1.25;
    check_rows(&q, "sim", F32_U);
    check_codes(&q, "sim", F32_U);
    const float *d_weight = floats_of(golden, "sim", "d_weight");
    for (int i = 0; i < D * FROZEN; i++) { /* dA = dC^T F */
        double want = 0.0;
        for (int k = 0; k < K; k++)
            want += 4.0 * (double)q.d_codes[k * D + i / FROZEN] *
                    (double)frozen[k * FROZEN + i % FROZEN];
        assert_value("d_weight", i, want, (double)d_weight[i], PATH_ROUNDINGS * N * F32_U);
    }
    op_buffer *all[] = {&q.x, &q.g, &q.out, &q.d_x};
    for (int i = 0; i < TESS_NELEM(all); i++)
        buffer_destroy(all[i]);
    tess_golden_close(&golden);
}

static void test_random_projection(void **state)
{
    (void)state;
    enum { E = 4 };
    golden = open_golden("random");
    tess_stream s = inline_stream();
    op_buffer x = buffer_golden(golden, "random", "x", TESS_F32);
    float projected[N * E], core[N * E], norm[N], transposed[E * D];
    uint32_t code[N];
    const tess_quantizer_layer_norm_args l = {
        .x = x.view, .row_numel = N, .dim = D, .eps = 1e-5, .y = x.view};
    assert_done(tess_cpu_quantizer_layer_norm(&l, &s));
    const float *projection = floats_of(golden, "random", "projection");
    for (int i = 0; i < D * E; i++)
        transposed[i % E * D + i / E] = projection[i];
    multiply(x.view.data, transposed, N, E, D, projected);
    const tess_quantizer_enter_args enter = {.x = tess_view_host(projected, N * E, TESS_F32),
                                             .row_numel = N,
                                             .dim = E,
                                             .length = 1.0f,
                                             .least = TESS_UNIT_LEAST,
                                             .core = core,
                                             .norm = norm};
    assert_done(tess_cpu_quantizer_enter(&enter, &s));
    find_codes(core, N, floats_of(golden, "random", "codes"), K, E, code);
    const int64_t *index = tensor_of(golden, "random", "index", TESS_I64, NULL);
    for (int i = 0; i < N; i++)
        assert_int_equal(code[i], index[i]);
    buffer_destroy(&x);
    tess_golden_close(&golden);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vector_quantize),   cmocka_unit_test(test_drawn_codes),
        cmocka_unit_test(test_directed),          cmocka_unit_test(test_heads),
        cmocka_unit_test(test_residual_vq),       cmocka_unit_test(test_sim_vq),
        cmocka_unit_test(test_random_projection),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
