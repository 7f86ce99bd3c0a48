/*
 * The golden numbers of a tiny FLUX.1: config, data and values of the table, which two other
 * programs in fp64 agree on; and that every convention that implementations get wrong shows.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "tests/support/flux_case.h"

enum { H = 64, N = 16, T = 8, S = N + T, C = 16 };

static void expect_ok(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s: %s\n%s", tess_status_name(st), tess_error_message(), tess_error_trace_text());
}

/* ---- the table ---- */

typedef struct row {
    const char *name;
    double first[4], sum, square;
} row;

/* In the order of flux_reference.trace. */
static const row table[] = {
    {"temb", {0.287370616, 0.828001857, 0.452421168, -0.155289748}, 2.730930483, 19.747388407},
    {"x_embedder",
     {-0.987942996, -0.132689309, -0.281796044, 0.039277162},
     39.470192574,
     232.885248253},
    {"context_embedder",
     {-0.391043029, 0.641735156, -0.593519517, -1.143175618},
     -3.093075872,
     197.514543017},
    {"double 0, image",
     {-0.867013001, -0.020278005, 0.176179340, 0.099848525},
     34.161247322,
     351.065414185},
    {"double 0, text",
     {-0.374902787, 0.882864009, -0.524936433, -1.013754796},
     -5.731698089,
     232.754219820},
    {"double 1, image",
     {-0.805465376, -0.240784829, 0.918023265, 0.135297354},
     63.139235475,
     451.531034062},
    {"double 1, text",
     {-0.417541451, 0.762994145, 0.505828775, -1.077825550},
     14.768945342,
     286.332973045},
    {"single 0",
     {-0.391270442, 0.517127020, 0.249980820, -1.203888126},
     59.986670627,
     777.066605277},
    {"single 1",
     {-0.295083736, 0.517139081, -0.220959735, -1.401464025},
     67.701388821,
     808.162030062},
    {"output", {0.161748865, 0.225329155, 2.090279135, -0.619132327}, 31.579421835, 274.597912922},
};
static const row lora_output = {"output with LoRA",
                                {0.236836775, 0.054577951, 2.099865844, -0.472205973},
                                29.769798037,
                                276.585589532};
static const double golden_loss = 1.920782332724, golden_lora_loss = 1.906625803402;

typedef struct gradient_row {
    const char *module;
    double a00, a13, b00, b51, a_norm, b_norm;
} gradient_row;

static const gradient_row gradient_table[] = {
    {"transformer_blocks.0.attn.to_q", 7.4133480e-03, 9.8687216e-04, 6.7198667e-03, -7.5074889e-03,
     7.258711006e-02, 6.340578758e-02},
    {"transformer_blocks.0.attn.add_k_proj", -1.2518426e-03, 3.1725910e-03, 1.5362261e-03,
     -2.9051675e-04, 3.545378252e-02, 7.949737020e-02},
    {"transformer_blocks.1.ff_context.net.2", -1.8978872e-03, -2.1127767e-03, -8.3245824e-03,
     4.1580132e-03, 3.773073046e-02, 3.130875729e-02},
    {"transformer_blocks.1.norm1.linear", -1.5516654e-02, -1.4530204e-03, 2.6353154e-02,
     -1.0600317e-02, 2.272145537e-01, 5.227286633e-01},
    {"single_transformer_blocks.0.attn.to_v", -7.0791600e-03, -2.1429288e-03, -3.4947433e-03,
     2.1187355e-02, 6.183949259e-02, 8.282458726e-02},
    {"single_transformer_blocks.1.proj_mlp", -5.9620020e-03, -1.8188613e-04, 1.4243248e-03,
     1.1950275e-04, 8.169130984e-02, 2.819905231e-01},
    {"single_transformer_blocks.1.proj_out", -5.7775457e-03, 1.7733156e-02, 2.3086855e-02,
     -2.9425695e-03, 2.844314739e-01, 1.612541912e-01},
};

/* Values of a matrix of the table; `bound` is relative to its root mean square, and for sums to the
 * root of their number, as errors of single values add up. */
static void expect_row(const row *r, const double *x, int64_t numel, double bound)
{
    double sum = 0.0, square = 0.0;
    for (int64_t i = 0; i < numel; i++) {
        sum += x[i];
        square += x[i] * x[i];
    }
    const double rms = sqrt(r->square / (double)numel);
    for (int i = 0; i < 4; i++)
        if (!(fabs(x[i] - r->first[i]) <= bound * rms))
            fail_msg("%s[%d]: %.9f, expected %.9f", r->name, i, x[i], r->first[i]);
    if (!(fabs(sum - r->sum) <= bound * rms * sqrt((double)numel)))
        fail_msg("%s: sum %.9f, expected %.9f", r->name, sum, r->sum);
    if (!(fabs(square - r->square) <= 2.0 * bound * r->square))
        fail_msg("%s: sum of squares %.9f, expected %.9f", r->name, square, r->square);
}

static double norm_of(const double *x, int64_t numel)
{
    double square = 0.0;
    for (int64_t i = 0; i < numel; i++)
        square += x[i] * x[i];
    return sqrt(square);
}

static void expect_near(const char *what, double found, double expected, double bound)
{
    if (!(fabs(found - expected) <= bound))
        fail_msg("%s: %.9e, expected %.9e, bound %.3g", what, found, expected, bound);
}

/* Bound relative to the norm of the gradient. */
static void expect_gradients(const gradient_row *g, const double *d_a, int64_t in_numel,
                             const double *d_b, int64_t out_numel, double bound)
{
    expect_near(g->module, d_a[0], g->a00, bound * g->a_norm);
    expect_near(g->module, d_a[in_numel + 3], g->a13, bound * g->a_norm);
    expect_near(g->module, d_b[0], g->b00, bound * g->b_norm);
    expect_near(g->module, d_b[2 * 5 + 1], g->b51, bound * g->b_norm);
    expect_near(g->module, norm_of(d_a, 2 * in_numel), g->a_norm, bound * g->a_norm);
    expect_near(g->module, norm_of(d_b, 2 * out_numel), g->b_norm, bound * g->b_norm);
}

/* ---- data ---- */

static void test_hash_values(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int64_t rows, cols, numel;
        double value[3];
    } spot[] = {{"x_embedder.weight", 64, 16, 3, {-0.37385234, 0.22460674, 0.25098822}},
                {"proj_out.bias", 1, 16, 2, {-0.07497960, -0.01569535, 0}},
                {"transformer_blocks.0.attn.norm_q.weight", 1, 16, 2, {0.93562502, 1.01618576, 0}}};
    for (int s = 0; s < TESS_NELEM(spot); s++) {
        float all[64 * 16];
        flux_hash_fill(spot[s].name, spot[s].rows, spot[s].cols, all);
        for (int64_t i = 0; i < spot[s].numel; i++)
            expect_near(spot[s].name, (double)all[i], spot[s].value[i], 5e-9);
    }
    static const double latent[3] = {0.26151288, -0.73123896, -0.35357463};
    for (int i = 0; i < 3; i++)
        expect_near("input.latent", (double)flux_hash_value("input.latent", i, 0.0, 1.0), latent[i],
                    5e-9);
}

static void test_the_model_has_its_tensors(void **state)
{
    (void)state;
    const flux_choice o = flux_tiny();
    stage_chain c = flux_open(&o);
    int64_t numel = 0;
    for (int i = 0; i < c.reg.param_numel; i++)
        numel += c.reg.param[i].numel;
    assert_int_equal(c.reg.param_numel, 112);
    assert_int_equal(numel, 483280);
    assert_int_equal(c.reg.unit_numel, 6);
    stage_chain_fini(&c);
}

/* ---- fp64 ---- */

/* Inputs of both are rounded to f32: noisy latents, sinusoids and angles, 2^-24 of each, which the
 * blocks pass on about as they are. */
static const double exact = 2e-7;

static void test_the_reference_has_the_golden_numbers(void **state)
{
    (void)state;
    for (int with_lora = 0; with_lora < 2; with_lora++) {
        flux_choice o = flux_tiny();
        o.targets = with_lora ? flux_golden_targets : NULL;
        stage_chain c = flux_open(&o);
        flux_inputs x = flux_inputs_open(&o, 0, 1);
        flux_twin t;
        flux_twin_open(&o, &c, &x, FLUX_RIGHT, &t);
        tape *const graph = t.f.t;
        assert_int_equal(t.f.trace_numel, TESS_NELEM(table));
        for (int i = 0; i < TESS_NELEM(table) && !with_lora; i++)
            expect_row(&table[i], tape_value(graph, t.f.trace[i]),
                       tape_rows(graph, t.f.trace[i]) * tape_cols(graph, t.f.trace[i]), exact);
        if (with_lora)
            expect_row(&lora_output, tape_value(graph, t.output[0]), N * C, exact);
        expect_near("loss", tape_value(graph, t.loss)[0],
                    with_lora ? golden_lora_loss : golden_loss, exact);
        tape_backward(graph, t.loss, &(const double){1.0});
        for (int i = 0; i < TESS_NELEM(gradient_table) && with_lora; i++) {
            char name[2][160];
            snprintf(name[0], sizeof name[0], "%s.lora_A.weight", gradient_table[i].module);
            snprintf(name[1], sizeof name[1], "%s.lora_B.weight", gradient_table[i].module);
            const tape_node a = flux_reference_find(&t.f, name[0]);
            const tape_node b = flux_reference_find(&t.f, name[1]);
            expect_gradients(&gradient_table[i], tape_grad(graph, a), tape_cols(graph, a),
                             tape_grad(graph, b), tape_rows(graph, b), exact);
        }
        flux_twin_close(&t);
        flux_inputs_close(&x);
        stage_chain_fini(&c);
    }
}

/* ---- f32 ---- */

/*
 * f32 against the table. A path has some 60 roundings of relative 2^-24 per op and products of at
 * most 320 terms whose errors walk (sqrt(320) = 18 of them): sqrt(60) * 18 * 6e-8 = 8e-6 of the
 * values' root mean square at the end. 1e-5 everywhere.
 */
static const double f32_bound = 1e-5;

static void widen(const float *x, int64_t numel, double *out)
{
    for (int64_t i = 0; i < numel; i++)
        out[i] = (double)x[i];
}

static void expect_stage_rows(stage_chain *c, int stage_idx, const row *image, const row *text)
{
    double x[S * H];
    widen((const float *)(void *)c->output[stage_idx], S * H, x);
    expect_row(text, x, T * H, f32_bound);
    expect_row(image, x + T * H, N * H, f32_bound);
}

static void test_stages_have_the_golden_numbers(void **state)
{
    (void)state;
    const flux_choice o = flux_tiny();
    stage_chain c = flux_open(&o);
    flux_inputs x = flux_inputs_open(&o, 0, 1);
    double loss = 0.0, rows[S * H], s[H];
    expect_ok(stage_chain_eval(&c, &x.batch, &loss));
    expect_stage_rows(&c, 0, &table[1], &table[2]);
    expect_stage_rows(&c, 1, &table[3], &table[4]);
    expect_stage_rows(&c, 2, &table[5], &table[6]);
    for (int i = 0; i < 2; i++) {
        widen((const float *)(void *)c.output[3 + i], S * H, rows);
        expect_row(&table[7 + i], rows, S * H, f32_bound);
    }
    /* Behind the rows lies silu(temb), unchanged from stage to stage. */
    widen((const float *)(void *)c.output[0] + S * H, H, s);
    for (int i = 0; i < 4; i++)
        expect_near("silu(temb)", s[i], table[0].first[i] / (1.0 + exp(-table[0].first[i])),
                    f32_bound);
    for (int stage = 1; stage < 5; stage++)
        assert_memory_equal(c.output[stage] + S * H * sizeof(float),
                            c.output[0] + S * H * sizeof(float), H * sizeof(float));
    expect_near("loss", loss, golden_loss, f32_bound * golden_loss);
    expect_ok(stage_chain_forward(&c, TESS_CALL_LOGITS, &x.batch, NULL));
    widen(x.batch.velocity, N * C, rows);
    expect_row(&table[9], rows, N * C, f32_bound);
    flux_inputs_close(&x);
    stage_chain_fini(&c);
}

static void test_lora_has_the_golden_numbers(void **state)
{
    (void)state;
    flux_choice o = flux_tiny();
    o.targets = flux_golden_targets;
    for (int recomputed = 0; recomputed < 2; recomputed++) {
        o.is_recomputed = recomputed != 0;
        stage_chain c = flux_open(&o);
        flux_inputs x = flux_inputs_open(&o, 0, 1);
        double loss = 0.0, out[N * C];
        expect_ok(stage_chain_train(&c, &x.batch, 1.0f, &loss));
        expect_near("loss", loss, golden_lora_loss, f32_bound * golden_lora_loss);
        for (int i = 0; i < TESS_NELEM(gradient_table); i++) {
            char name[160];
            double d_a[2 * 320], d_b[2 * 384];
            snprintf(name, sizeof name, "%s.lora_A.weight", gradient_table[i].module);
            const tess_param *a = &c.reg.param[tess_registry_find(&c.reg, name)];
            widen(stage_chain_grad(&c, name), a->numel, d_a);
            snprintf(name, sizeof name, "%s.lora_B.weight", gradient_table[i].module);
            const tess_param *b = &c.reg.param[tess_registry_find(&c.reg, name)];
            widen(stage_chain_grad(&c, name), b->numel, d_b);
            expect_gradients(&gradient_table[i], d_a, a->shape[1], d_b, b->shape[0], f32_bound);
        }
        expect_ok(stage_chain_forward(&c, TESS_CALL_LOGITS, &x.batch, NULL));
        widen(x.batch.velocity, N * C, out);
        expect_row(&lora_output, out, N * C, f32_bound);
        flux_inputs_close(&x);
        stage_chain_fini(&c);
    }
}

/* ---- wrong conventions ---- */

/* What each of them gives: output[0][0] and loss. */
static const struct {
    const char *name;
    double first, loss;
} fingerprint[FLUX_WRONG_NUMEL] = {
    [FLUX_HALF_SPLIT] = {"half-split rotation", 0.122038, 1.944138},
    [FLUX_FINAL_SWAPPED] = {"final scale and shift swapped", 0.959408, 2.197277},
    [FLUX_MSA_SWAPPED] = {"shift and scale swapped before attention", 0.077778, 1.959181},
    [FLUX_ALL_SWAPPED] = {"shift and scale swapped in double blocks", 0.737820, 1.951811},
    [FLUX_SINE_FIRST] = {"sine half first", -2.146095, 1.921534},
    [FLUX_NO_THOUSAND] = {"time and guidance not times 1000", -1.465663, 1.749968},
    [FLUX_IMAGE_FIRST] = {"image before text", -0.118923, 1.849570},
    [FLUX_MLP_FIRST] = {"MLP before attention in proj_out", 0.412994, 1.955734},
};

static void spoil_sinusoids(flux_inputs *x, flux_wrong wrong)
{
    float *const half[2] = {(float *)(uintptr_t)x->batch.time,
                            (float *)(uintptr_t)x->batch.guidance};
    const double argument[2] = {0.75, 3.5};
    for (int i = 0; i < 2; i++) {
        if (wrong == FLUX_NO_THOUSAND)
            tess_flux_sinusoid(argument[i], half[i]);
        for (int k = 0; k < 128 && wrong == FLUX_SINE_FIRST; k++) {
            const float cosine = half[i][k];
            half[i][k] = half[i][128 + k];
            half[i][128 + k] = cosine;
        }
    }
}

/* Outputs of the model are far from what any wrong convention gives, and that is what it gives. */
static void test_wrong_conventions_show(void **state)
{
    (void)state;
    const flux_choice o = flux_tiny();
    stage_chain c = flux_open(&o);
    flux_inputs x = flux_inputs_open(&o, 0, 1);
    expect_ok(stage_chain_forward(&c, TESS_CALL_LOGITS, &x.batch, NULL));
    const double first = (double)x.batch.velocity[0];
    for (int wrong = FLUX_RIGHT + 1; wrong < FLUX_WRONG_NUMEL; wrong++) {
        flux_inputs bad = flux_inputs_open(&o, 0, 1);
        flux_twin t;
        spoil_sinusoids(&bad, (flux_wrong)wrong);
        flux_twin_open(&o, &c, &bad, (flux_wrong)wrong, &t);
        expect_near(fingerprint[wrong].name, tape_value(t.f.t, t.output[0])[0],
                    fingerprint[wrong].first, 6e-7);
        expect_near(fingerprint[wrong].name, tape_value(t.f.t, t.loss)[0], fingerprint[wrong].loss,
                    6e-7);
        if (!(fabs(first - fingerprint[wrong].first) > 1000.0 * f32_bound))
            fail_msg("%s would pass", fingerprint[wrong].name);
        flux_twin_close(&t);
        flux_inputs_close(&bad);
    }
    flux_inputs_close(&x);
    stage_chain_fini(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hash_values),
        cmocka_unit_test(test_the_model_has_its_tensors),
        cmocka_unit_test(test_the_reference_has_the_golden_numbers),
        cmocka_unit_test(test_stages_have_the_golden_numbers),
        cmocka_unit_test(test_lora_has_the_golden_numbers),
        cmocka_unit_test(test_wrong_conventions_show),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
