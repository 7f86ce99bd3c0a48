/* Draws of the objective against golden values, their moments, and what is done with them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/memory.h"
#include "train/flux/objective.h"

static tess_run *run_of(const char *objective)
{
    char text[1024];
    tess_run *run = NULL;
    snprintf(text, sizeof text,
             "model: {path: m, family: flux}\ndata: {path: d}\noutput: {dir: o}\n"
             "objective: %s\n",
             objective);
    tess_error_clear();
    if (tess_run_parse(text, strlen(text), "run.yaml", NULL, 0, &run) != TESS_OK)
        fail_msg("%s", tess_error_message());
    return run;
}

static void check_near(const char *line, double found, double expected)
{
    /* Two formulas of one number in f64: some units in the last place, and weights of sigma near
     * 0.001 multiply sigma's by two. */
    if (!(fabs(found - expected) <= 1e-12 * fabs(expected)))
        fail_msg("%s: %.17g, expected %.17g", line, found, expected);
}

static void check_draw(char *line)
{
    uint64_t seed = 0;
    int64_t sample = 0, tokens = 0;
    double x[6];
    char *bar = strchr(line, '|');
    assert_non_null(bar);
    *bar = '\0';
    assert_int_equal(sscanf(bar + 1,
                            "%" SCNu64 " %" SCNd64 " %" SCNd64 " | %lf %lf %lf %lf %lf %lf", &seed,
                            &sample, &tokens, &x[0], &x[1], &x[2], &x[3], &x[4], &x[5]),
                     9);
    tess_run *run = run_of(line);
    const tess_objective o = {seed, &run->objective};
    float noise[6];
    const double sigma = tess_objective_sigma(&o, sample, tokens);
    check_near(line, sigma, x[0]);
    check_near(line, tess_objective_weight(o.keys, sigma), x[1]);
    check_near(line, tess_objective_guidance(&o, sample), x[2]);
    assert_int_equal(tess_objective_drops_caption(&o, sample), (int)x[3]);
    tess_objective_noise(&o, sample, 6, noise);
    assert_true(noise[0] == (float)x[4] && noise[5] == (float)x[5]);
    tess_run_destroy(&run);
}

static void test_draws_equal_the_golden_ones(void **state)
{
    (void)state;
    FILE *file = fopen(TESS_TEST_SOURCE_DIR "/tests/golden/objective/draws.txt", "r");
    char line[512];
    int numel = 0;
    assert_non_null(file);
    for (; fgets(line, sizeof line, file) != NULL; numel++)
        check_draw(line);
    fclose(file);
    assert_int_equal(numel, 14 * 5);
}

/* Mean and variance of 40000 draws within five standard errors of those of the distribution. */
static void check_moments(const char *objective, double mean, double variance)
{
    enum { NUMEL = 40000 };
    tess_run *run = run_of(objective);
    const tess_objective o = {11, &run->objective};
    double sum = 0.0, squares = 0.0;
    for (int64_t i = 0; i < NUMEL; i++) {
        const double sigma = tess_objective_sigma(&o, i, 1024);
        assert_true(sigma > 0.0 && sigma <= 1.0);
        sum += sigma;
        squares += (sigma - mean) * (sigma - mean);
    }
    if (fabs(sum / NUMEL - mean) > 5.0 * sqrt(variance / NUMEL))
        fail_msg("%s: mean %.6f, expected %.6f", objective, sum / NUMEL, mean);
    /* the fourth central moment of a variable in [0, 1] is at most a quarter of its variance */
    if (fabs(squares / NUMEL - variance) > 5.0 * sqrt(variance / 4.0 / NUMEL))
        fail_msg("%s: variance %.6f, expected %.6f", objective, squares / NUMEL, variance);
    tess_run_destroy(&run);
}

static void test_moments_are_those_of_the_distributions(void **state)
{
    (void)state;
    check_moments("{timesteps: uniform}", 0.5, 1.0 / 12.0);
    check_moments("{timesteps: beta}", 0.5, 0.05);
    check_moments("{timesteps: beta, beta_alpha: 5, beta_beta: 3}", 0.625, 15.0 / (64.0 * 9.0));
    check_moments("{timesteps: fast}", 0.85, 0.065);
    /* integral of the logistic function of a normal number, by quadrature */
    check_moments("{timesteps: logit-normal}", 0.5, 0.0433790);
    check_moments("{timesteps: sigmoid}", 0.5, 0.0433790);
    /* E u + s (E cos^2 - 1 + E u) = 1/2: E cos^2(pi u / 2) = 1/2; variance by quadrature */
    check_moments("{timesteps: mode}", 0.5, 0.0463950);
    check_moments("{min_timestep: 200, max_timestep: 800}", 0.5, 0.36 / 12.0);
}

static void test_normal_draws_have_two_moments(void **state)
{
    (void)state;
    enum { NUMEL = 1 << 16 };
    static float noise[NUMEL];
    tess_run *run = run_of("{}");
    const tess_objective o = {3, &run->objective};
    double sum = 0.0, squares = 0.0;
    tess_objective_noise(&o, 9, NUMEL, noise);
    for (int i = 0; i < NUMEL; i++) {
        sum += (double)noise[i];
        squares += (double)noise[i] * (double)noise[i];
    }
    assert_true(fabs(sum / NUMEL) < 5.0 / 256.0);
    assert_true(fabs(squares / NUMEL - 1.0) < 5.0 * sqrt(2.0) / 256.0);
    tess_run_destroy(&run);
}

/* The figures of flux.md 3.2. */
static void test_shift_follows_the_resolution(void **state)
{
    (void)state;
    tess_run *run = run_of("{shift: auto}");
    assert_true(fabs(tess_objective_shift_factor(&run->objective, 4096) - 3.1582) < 5e-5);
    assert_true(fabs(tess_objective_shift_factor(&run->objective, 2304) - 2.332) < 5e-4);
    assert_true(fabs(tess_objective_shift_factor(&run->objective, 1024) - 1.878) < 5e-4);
    tess_run_destroy(&run);
}

static void test_dropout_ends_are_exact(void **state)
{
    (void)state;
    tess_run *never = run_of("{caption_dropout: 0}"), *always = run_of("{caption_dropout: 1}");
    for (int64_t i = 0; i < 10000; i++) {
        const tess_objective a = {1, &never->objective}, b = {1, &always->objective};
        assert_false(tess_objective_drops_caption(&a, i));
        assert_true(tess_objective_drops_caption(&b, i));
    }
    tess_run_destroy(&never);
    tess_run_destroy(&always);
}

/* Held-out sigmas are the centers of N equal parts, each once. */
static void test_held_out_sigmas_are_stratified(void **state)
{
    (void)state;
    enum { NUMEL = 37 };
    bool is_seen[NUMEL] = {false};
    for (int64_t i = 0; i < NUMEL; i++) {
        const double sigma = tess_objective_held_out_sigma(i, NUMEL);
        const int part = (int)(sigma * NUMEL);
        assert_true(fabs(sigma - (part + 0.5) / NUMEL) < 1e-15);
        assert_false(is_seen[part]);
        is_seen[part] = true;
    }
    assert_true(tess_objective_held_out_sigma(0, 1) == 0.5);
}

static void test_pack_is_the_layout_of_the_model(void **state)
{
    (void)state;
    enum { C = 4, H = 6, W = 10, NUMEL = C * H * W };
    const tess_flux_image image = {C, H, W};
    float latent[NUMEL], packed[NUMEL], back[NUMEL];
    for (int i = 0; i < NUMEL; i++)
        latent[i] = (float)i;
    tess_flux_pack(&image, latent, packed);
    for (int row = 0; row < H / 2; row++)
        for (int column = 0; column < W / 2; column++)
            for (int c = 0; c < C; c++)
                for (int dy = 0; dy < 2; dy++)
                    for (int dx = 0; dx < 2; dx++)
                        assert_true(
                            packed[(row * (W / 2) + column) * 4 * C + c * 4 + dy * 2 + dx] ==
                            latent[(c * H + 2 * row + dy) * W + 2 * column + dx]);
    tess_flux_unpack(&image, packed, back);
    assert_memory_equal(latent, back, sizeof latent);
}

static void test_mix_ends_are_latent_and_noise(void **state)
{
    (void)state;
    float latent[] = {1.5F, -2.0F, 0.1F}, noise[] = {0.25F, 3.0F, -0.7F};
    const float z[] = {1.5F, -2.0F, 0.1F}, e[] = {0.25F, 3.0F, -0.7F};
    tess_objective_mix(1.0, 3, latent, noise);
    for (int i = 0; i < 3; i++)
        assert_true(latent[i] == e[i] && noise[i] == (float)((double)e[i] - (double)z[i]));
    memcpy(latent, z, sizeof z);
    memcpy(noise, e, sizeof e);
    tess_objective_mix(0.75, 3, latent, noise);
    for (int i = 0; i < 3; i++)
        assert_true(latent[i] == (float)(0.25 * (double)z[i] + 0.75 * (double)e[i]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_draws_equal_the_golden_ones),
        cmocka_unit_test(test_moments_are_those_of_the_distributions),
        cmocka_unit_test(test_normal_draws_have_two_moments),
        cmocka_unit_test(test_shift_follows_the_resolution),
        cmocka_unit_test(test_dropout_ends_are_exact),
        cmocka_unit_test(test_held_out_sigmas_are_stratified),
        cmocka_unit_test(test_pack_is_the_layout_of_the_model),
        cmocka_unit_test(test_mix_ends_are_latent_and_noise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
