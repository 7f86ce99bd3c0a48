/* Sinusoids and rotations against the formulas of flux.h, element by element. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "model/flux.h"

static void test_sinusoid_has_the_cosine_half_first(void **state)
{
    (void)state;
    static const double values[] = {0.0, 1000.0 * 0.75, 1000.0 * 3.5, 1.0};
    for (int v = 0; v < TESS_NELEM(values); v++) {
        float out[TESS_FLUX_SINUSOID_NUMEL];
        tess_flux_sinusoid(values[v], out);
        for (int i = 0; i < 128; i++) {
            const double angle = values[v] * pow(10000.0, -i / 128.0);
            /* f64 angles up to 3500 differ by at most 3500 x 2^-50 between two formulas. */
            assert_true(fabs((double)out[i] - cos(angle)) < 1e-7);
            assert_true(fabs((double)out[128 + i] - sin(angle)) < 1e-7);
        }
    }
}

static void check_rope(int64_t text, int64_t height, int64_t width)
{
    static const tess_flux_config config = {.head_dim = 16, .axis_dim = {4, 6, 6}};
    enum { TOKEN_MAX = 64 };
    float cosine[TOKEN_MAX * 8], sine[TOKEN_MAX * 8];
    assert_true(text + height * width <= TOKEN_MAX);
    tess_flux_rope(&config, text, height, width, cosine, sine);
    for (int64_t token = 0; token < text + height * width; token++) {
        const int64_t k = token - text;
        const double id[3] = {0, k < 0 ? 0 : (double)(k / width), k < 0 ? 0 : (double)(k % width)};
        int64_t at = token * 8;
        for (int axis = 0; axis < 3; axis++)
            for (int j = 0; j < config.axis_dim[axis] / 2; j++, at++) {
                const double angle =
                    id[axis] * pow(10000.0, -2.0 * j / (double)config.axis_dim[axis]);
                assert_true(cosine[at] == (float)cos(angle) && sine[at] == (float)sin(angle));
            }
    }
}

static void test_rope_rotates_rows_and_columns_of_the_image_alone(void **state)
{
    (void)state;
    check_rope(8, 4, 4);
    check_rope(3, 2, 7);
    check_rope(0, 5, 1);
    check_rope(0, 1, 6);
    check_rope(2, 1, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sinusoid_has_the_cosine_half_first),
        cmocka_unit_test(test_rope_rotates_rows_and_columns_of_the_image_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
