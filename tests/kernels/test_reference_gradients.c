/*
 * Finite differences of every backward of the reference.
 *
 * [Note: bound] L = sum(c * f(x)) with random c. Central differences with step h = 2^-13 err by
 * h^2 / 6 * |L'''| + u64 |L| / h. With inputs of order 1 and at most a few hundred terms, L and its
 * third derivative stay below 1e3: 2.5e-6 * 0.17 ... = h^2/6 * 1e3 = 2.5e-6, and 1e3 * 1.1e-16 *
 * 2^13 = 9e-10. A wrong formula is off by order 1.
 */
#include "tests/kernels/op_support.h"

static const double step = 0x1p-13, tolerance = 3e-6;

static double *normals(int64_t numel, uint64_t seed)
{
    const tess_rng rng = tess_rng_make(seed, TESS_RNG_TEST, 0, 0);
    double *x = doubles(numel);
    for (int64_t i = 0; i < numel; i++)
        x[i] = tess_rng_normal(&rng, (uint64_t)i);
    return x;
}

static double weighted(const double *c, const double *y, int64_t numel)
{
    double sum = 0.0;
    for (int64_t i = 0; i < numel; i++)
        sum += c[i] * y[i];
    return sum;
}

/* grad[i] against the central difference of loss(ctx) over x[i]. */
static void check_gradient(const char *name, double *x, const double *grad, int64_t numel,
                           double (*loss)(void *), void *ctx)
{
    for (int64_t i = 0; i < numel; i++) {
        const double kept = x[i];
        x[i] = kept + step;
        const double above = loss(ctx);
        x[i] = kept - step;
        const double below = loss(ctx);
        x[i] = kept;
        const double slope = (above - below) / (2.0 * step);
        if (!(fabs(slope - grad[i]) <= tolerance * (1.0 + fabs(slope))))
            fail_msg("%s[%" PRId64 "]: gradient %.9g, slope %.9g", name, i, grad[i], slope);
    }
}

typedef struct gemm_case {
    ref_gemm_shape shape;
    double *a, *b, *c_weight;
} gemm_case;

static double gemm_loss(void *ctx)
{
    const gemm_case *g = ctx;
    const int64_t numel = g->shape.m * g->shape.n;
    double *c = doubles(numel);
    ref_gemm(g->shape, g->a, g->b, 1.0, c);
    const double loss = weighted(g->c_weight, c, numel);
    tess_free(c);
    return loss;
}

static void test_gemm_gradients(void **state)
{
    (void)state;
    for (int kind = REF_NT; kind <= REF_TN; kind++) {
        gemm_case g = {
            {(ref_gemm_kind)kind, 3, 4, 5}, normals(15, 1), normals(20, 2), normals(12, 3)};
        double *d_a = doubles(15), *d_b = doubles(20);
        ref_gemm_backward(g.shape, g.a, g.b, g.c_weight, d_a, d_b);
        check_gradient("a", g.a, d_a, 15, gemm_loss, &g);
        check_gradient("b", g.b, d_b, 20, gemm_loss, &g);
        double *all[] = {g.a, g.b, g.c_weight, d_a, d_b};
        for (int i = 0; i < TESS_NELEM(all); i++)
            tess_free(all[i]);
    }
}

/* The products of a linear layer: dx = NN(dy, W), dW = TN(dy, x) are the gradients of NT(x, W). */
static void test_gemm_kinds_are_each_others_gradients(void **state)
{
    (void)state;
    enum { M = 3, N = 4, K = 5 };
    const ref_gemm_shape forward = {REF_NT, M, N, K};
    double *x = normals(M * K, 4), *w = normals(N * K, 5), *d_y = normals(M * N, 6);
    double *d_x = doubles(M * K), *d_w = doubles(N * K);
    double *d_x_product = doubles(M * K), *d_w_product = doubles(N * K);
    ref_gemm_backward(forward, x, w, d_y, d_x, d_w);
    ref_gemm((ref_gemm_shape){REF_NN, M, K, N}, d_y, w, 1.0, d_x_product);
    ref_gemm((ref_gemm_shape){REF_TN, N, K, M}, d_y, x, 1.0, d_w_product);
    for (int i = 0; i < M * K; i++)
        assert_true(fabs(d_x[i] - d_x_product[i]) < 1e-14);
    for (int i = 0; i < N * K; i++)
        assert_true(fabs(d_w[i] - d_w_product[i]) < 1e-14);
    double *all[] = {x, w, d_y, d_x, d_w, d_x_product, d_w_product};
    for (int i = 0; i < TESS_NELEM(all); i++)
        tess_free(all[i]);
}

typedef struct rows_case {
    ref_rows shape;
    double *x, *w, *weight;
    const int32_t *labels;
} rows_case;

static double rmsnorm_loss(void *ctx)
{
    const rows_case *c = ctx;
    const int64_t numel = c->shape.row_numel * c->shape.dim;
    double *y = doubles(numel);
    ref_rmsnorm(c->shape, c->x, c->w, 0.01, y);
    const double loss = weighted(c->weight, y, numel);
    tess_free(y);
    return loss;
}

static void test_rmsnorm_gradients(void **state)
{
    (void)state;
    rows_case c = {{4, 6}, normals(24, 7), normals(6, 8), normals(24, 9), NULL};
    double *grads[2] = {doubles(24), doubles(6)};
    ref_rmsnorm_backward(c.shape, c.x, c.w, 0.01, c.weight, grads);
    check_gradient("x", c.x, grads[0], 24, rmsnorm_loss, &c);
    check_gradient("w", c.w, grads[1], 6, rmsnorm_loss, &c);
    double *all[] = {c.x, c.w, c.weight, grads[0], grads[1]};
    for (int i = 0; i < TESS_NELEM(all); i++)
        tess_free(all[i]);
}

static double cross_entropy_loss(void *ctx)
{
    const rows_case *c = ctx;
    double *loss = doubles(c->shape.row_numel);
    ref_cross_entropy(c->shape, c->x, c->labels, 0.0, loss, NULL);
    double sum = 0.0;
    for (int64_t r = 0; r < c->shape.row_numel; r++)
        sum += 0.25 * loss[r];
    tess_free(loss);
    return sum;
}

static void test_cross_entropy_gradients(void **state)
{
    (void)state;
    static const int32_t labels[] = {2, -1, 0, 6};
    rows_case c = {{4, 7}, normals(28, 10), NULL, NULL, labels};
    double *loss = doubles(4), *d = doubles(28);
    ref_cross_entropy(c.shape, c.x, labels, 0.25, loss, d);
    check_gradient("logits", c.x, d, 28, cross_entropy_loss, &c);
    tess_free(c.x);
    tess_free(loss);
    tess_free(d);
}

typedef struct dora_case {
    ref_rows shape;
    double *z, *m, *n, *weight;
    double direct; /* how much of z is taken away again: 1 for what passes the scale by */
} dora_case;

static double dora_loss(void *ctx)
{
    const dora_case *c = ctx;
    const int64_t numel = c->shape.row_numel * c->shape.dim;
    double *y = doubles(numel);
    ref_dora(c->shape, c->z, c->m, c->n, y);
    for (int64_t i = 0; i < numel; i++)
        y[i] -= c->direct * c->z[i];
    const double loss = weighted(c->weight, y, numel);
    tess_free(y);
    return loss;
}

static void test_dora_gradients(void **state)
{
    (void)state;
    dora_case c = {{4, 6}, normals(24, 17), normals(6, 18), normals(6, 19), normals(24, 20), 0.0};
    for (int i = 0; i < 6; i++)
        c.n[i] = i == 3 ? 0.0 : 1.0 + fabs(c.n[i]);
    double *grads[3] = {doubles(24), doubles(24), doubles(6)};
    ref_dora_backward(c.shape, c.z, c.m, c.n, c.weight, grads);
    check_gradient("z", c.z, grads[0], 24, dora_loss, &c);
    check_gradient("m", c.m, grads[2], 6, dora_loss, &c);
    c.direct = 1.0;
    check_gradient("direct", c.z, grads[1], 24, dora_loss, &c);
    double *all[] = {c.z, c.m, c.n, c.weight, grads[0], grads[1], grads[2]};
    for (int i = 0; i < TESS_NELEM(all); i++)
        tess_free(all[i]);
}

typedef struct pair_case {
    int64_t numel;
    double *gate, *up, *weight;
} pair_case;

static double swiglu_loss(void *ctx)
{
    const pair_case *c = ctx;
    double *y = doubles(c->numel);
    ref_swiglu(c->numel, c->gate, c->up, y);
    const double loss = weighted(c->weight, y, c->numel);
    tess_free(y);
    return loss;
}

static void test_swiglu_gradients(void **state)
{
    (void)state;
    pair_case c = {40, normals(40, 11), normals(40, 12), normals(40, 13)};
    double *d_gate = doubles(40), *d_up = doubles(40);
    ref_swiglu_backward(40, c.gate, c.up, c.weight, d_gate, d_up);
    check_gradient("gate", c.gate, d_gate, 40, swiglu_loss, &c);
    check_gradient("up", c.up, d_up, 40, swiglu_loss, &c);
    double *all[] = {c.gate, c.up, c.weight, d_gate, d_up};
    for (int i = 0; i < TESS_NELEM(all); i++)
        tess_free(all[i]);
}

typedef struct rope_case {
    ref_rope_shape shape;
    double *x, *cos_table, *sin_table, *weight;
    int32_t positions[3];
} rope_case;

static double rope_loss(void *ctx)
{
    const rope_case *c = ctx;
    const int64_t numel = c->shape.token_numel * c->shape.head_numel * c->shape.dim;
    double *y = doubles(numel);
    memcpy(y, c->x, (size_t)numel * sizeof *y);
    ref_rope(c->shape, c->positions, c->cos_table, c->sin_table, 1.0, y);
    const double loss = weighted(c->weight, y, numel);
    tess_free(y);
    return loss;
}

/* The inverse rotation is the backward, and undoes the forward. */
static void test_rope_gradients(void **state)
{
    (void)state;
    rope_case c = {{3, 2, 6},   normals(36, 14), doubles(15),
                   doubles(15), normals(36, 15), {4, 0, 2}};
    for (int i = 0; i < 15; i++) {
        c.cos_table[i] = cos(0.3 * i);
        c.sin_table[i] = sin(0.3 * i);
    }
    double *d_x = doubles(36), *round_trip = doubles(36);
    memcpy(d_x, c.weight, 36 * sizeof *d_x);
    ref_rope(c.shape, c.positions, c.cos_table, c.sin_table, -1.0, d_x);
    check_gradient("x", c.x, d_x, 36, rope_loss, &c);
    memcpy(round_trip, c.x, 36 * sizeof *d_x);
    ref_rope(c.shape, c.positions, c.cos_table, c.sin_table, 1.0, round_trip);
    ref_rope(c.shape, c.positions, c.cos_table, c.sin_table, -1.0, round_trip);
    for (int i = 0; i < 36; i++)
        assert_true(fabs(round_trip[i] - c.x[i]) < 1e-14);
    double *all[] = {c.x, c.cos_table, c.sin_table, c.weight, d_x, round_trip};
    for (int i = 0; i < TESS_NELEM(all); i++)
        tess_free(all[i]);
}

typedef struct attention_case {
    ref_attention a;
    double *q, *k, *v, *weight;
    int64_t query_numel;
} attention_case;

static double attention_loss(void *ctx)
{
    const attention_case *c = ctx;
    double *out = doubles(c->query_numel);
    ref_attention_forward(&c->a, out, NULL);
    const double loss = weighted(c->weight, out, c->query_numel);
    tess_free(out);
    return loss;
}

static void check_attention(int64_t window, const int32_t *doc_start, int64_t segment_numel)
{
    enum { T = 9, HEADS = 4, KV = 2, DIM = 3 };
    attention_case c = {.q = normals(T * HEADS * DIM, 16),
                        .k = normals(T * KV * DIM, 17),
                        .v = normals(T * KV * DIM, 18),
                        .weight = normals(T * HEADS * DIM, 19),
                        .query_numel = T * HEADS * DIM};
    c.a = (ref_attention){.token_numel = T,
                          .head_numel = HEADS,
                          .kv_head_numel = KV,
                          .dim = DIM,
                          .window = window,
                          .segment_numel = segment_numel,
                          .doc_start = doc_start,
                          .scale = 0.6,
                          .q = c.q,
                          .k = c.k,
                          .v = c.v};
    double *d_q = doubles(T * HEADS * DIM), *d_k = doubles(T * KV * DIM);
    double *d_v = doubles(T * KV * DIM);
    ref_attention_backward(&c.a, c.weight, d_q, d_k, d_v);
    check_gradient("q", c.q, d_q, T * HEADS * DIM, attention_loss, &c);
    check_gradient("k", c.k, d_k, T * KV * DIM, attention_loss, &c);
    check_gradient("v", c.v, d_v, T * KV * DIM, attention_loss, &c);
    double *all[] = {c.q, c.k, c.v, c.weight, d_q, d_k, d_v};
    for (int i = 0; i < TESS_NELEM(all); i++)
        tess_free(all[i]);
}

static void test_attention_gradients(void **state)
{
    (void)state;
    static const int32_t one[9] = {0}, three[9] = {0, 0, 0, 3, 3, 3, 3, 7, 7};
    check_attention(0, one, 0);
    check_attention(0, three, 0);
    check_attention(2, three, 0);
    check_attention(0, one, 3);
    check_attention(0, one, 9);
}

/* One query that sees two equal keys averages their values; the mask of windows and documents. */
static void test_attention_known_answers(void **state)
{
    (void)state;
    static const int32_t doc_start[3] = {0, 0, 2};
    const double q[3] = {1, 1, 1}, k[3] = {2, 2, 2}, v[3] = {10, 20, 40};
    ref_attention a = {.token_numel = 3,
                       .head_numel = 1,
                       .kv_head_numel = 1,
                       .dim = 1,
                       .doc_start = doc_start,
                       .scale = 1.0,
                       .q = q,
                       .k = k,
                       .v = v};
    double out[3], lse[3];
    ref_attention_forward(&a, out, lse);
    assert_true(out[0] == 10.0 && fabs(out[1] - 15.0) < 1e-13 && out[2] == 40.0);
    assert_true(fabs(lse[1] - (2.0 + log(2.0))) < 1e-14 && lse[2] == 2.0);
    a.window = 1;
    ref_attention_forward(&a, out, lse);
    assert_true(out[1] == 20.0);
    a.window = 0;
    a.segment_numel = 3;
    ref_attention_forward(&a, out, lse);
    assert_true(fabs(out[0] - 70.0 / 3.0) < 1e-13 && fabs(out[2] - 70.0 / 3.0) < 1e-13);
}

static void test_embedding_backward_is_a_scatter_add(void **state)
{
    (void)state;
    static const int32_t tokens[4] = {2, 0, 2, 1};
    const double d_out[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    double d_table[6] = {100, 0, 0, 0, 0, 0};
    ref_embedding_backward(d_out, 2, tokens, 4, d_table);
    const double want[6] = {103, 4, 7, 8, 6, 8};
    for (int i = 0; i < 6; i++)
        assert_true(d_table[i] == want[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gemm_gradients),
        cmocka_unit_test(test_gemm_kinds_are_each_others_gradients),
        cmocka_unit_test(test_rmsnorm_gradients),
        cmocka_unit_test(test_cross_entropy_gradients),
        cmocka_unit_test(test_dora_gradients),
        cmocka_unit_test(test_swiglu_gradients),
        cmocka_unit_test(test_rope_gradients),
        cmocka_unit_test(test_attention_gradients),
        cmocka_unit_test(test_attention_known_answers),
        cmocka_unit_test(test_embedding_backward_is_a_scatter_add),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
