/* The emulated tensor-core instructions against plain loops. */
#include "tests/emulation/emulation.h"
#include "tests/emulation/mma_probe.h"
#include "tests/kernels/op_support.h"
#include "tests/support/must.h"

static tess_stream stream;

static void *device_of(const void *host, size_t nbytes)
{
    void *p = NULL;
    must(tess_emulation_alloc("operand", nbytes, &p));
    if (host != NULL)
        must(tess_emulation_write(p, host, nbytes));
    return p;
}

static int start(void **state)
{
    (void)state;
    const tess_emulation_settings settings = {.order = TESS_EMULATION_REVERSED,
                                              .dropped_barrier = -1};
    tess_emulation_release_all();
    tess_emulation_set(&settings);
    tess_stream_init_inline(&stream, "test", NULL);
    (void)tess_tensor_faults_take();
    return 0;
}

static void fill(uint16_t *x, int numel, uint64_t seed)
{
    const tess_rng rng = tess_rng_make(seed, TESS_RNG_TEST, 0, 0);
    for (int i = 0; i < numel; i++)
        x[i] = tess_bf16_from_f32((float)tess_rng_normal(&rng, (uint64_t)i));
}

/* Small integers: equal in any order of additions. */
static void test_mma_of_integers_equals_plain_product(void **state)
{
    (void)state;
    uint16_t a[16 * 16], b[16 * 8];
    float d[16 * 8], want[16 * 8];
    for (int i = 0; i < 256; i++)
        a[i] = tess_bf16_from_f32((float)(i * 7 % 19 - 9));
    for (int i = 0; i < 128; i++)
        b[i] = tess_bf16_from_f32((float)(i * 5 % 23 - 11));
    for (int i = 0; i < 128; i++) {
        d[i] = want[i] = (float)(i - 60);
        for (int k = 0; k < 16; k++)
            want[i] += tess_bf16_to_f32(a[i / 8 * 16 + k]) * tess_bf16_to_f32(b[k * 8 + i % 8]);
    }
    float *device = device_of(d, sizeof d);
    must(probe_mma(device_of(a, sizeof a), device_of(b, sizeof b), device, &stream));
    must(tess_emulation_read(d, device, sizeof d));
    for (int i = 0; i < 128; i++)
        if (d[i] != want[i])
            fail_msg("element %d: got %g, want %g", i, (double)d[i], (double)want[i]);
    assert_int_equal(tess_tensor_faults_take().mma_numel, 1);
}

/* Matrix m of lane l: row l / 4, columns 2 (l % 4) and the next; rows and columns change places. */
static void test_ldmatrix_gives_each_lane_its_pairs(void **state)
{
    (void)state;
    uint16_t src[256], got[256];
    for (int i = 0; i < 256; i++)
        src[i] = (uint16_t)(1000 + i);
    for (int is_transposed = 0; is_transposed < 2; is_transposed++) {
        uint16_t *dst = device_of(NULL, sizeof got);
        must(probe_ldmatrix(device_of(src, sizeof src), is_transposed != 0, dst, &stream));
        must(tess_emulation_read(got, dst, sizeof got));
        for (int i = 0; i < 256; i++) {
            const int lane = i / 8, matrix = i / 2 % 4, g = lane / 4, c = lane % 4 * 2 + i % 2;
            const int row = is_transposed ? c : g, col = is_transposed ? g : c;
            assert_int_equal(got[i], src[matrix * 64 + row * 8 + col]);
        }
    }
    const tess_tensor_faults faults = tess_tensor_faults_take();
    assert_int_equal(faults.misaligned, 0);
    assert_int_equal(faults.bank_conflicts, 0);
}

/*
 * Two tiles through cp.async, swizzle and fragments. c: dim products, (dim + 2) u sum |a b|. d: 16
 * products of c rounded to bf16, so the error of c, one rounding of c and 18 u of the sum of
 * magnitudes.
 */
static void check_tiles(int dim, int columns)
{
    enum { DIM_MAX = 256 };
    static uint16_t ab[32 * DIM_MAX];
    static float c[256], d[16 * DIM_MAX];
    const size_t ab_nbytes = (size_t)(32 * dim) * 2, d_nbytes = (size_t)(16 * dim) * 4;
    fill(ab, 32 * dim, 3);
    float *c_device = device_of(NULL, sizeof c), *d_device = device_of(NULL, d_nbytes);
    must(probe_tiles(device_of(ab, ab_nbytes), dim, columns, c_device, d_device, &stream));
    must(tess_emulation_read(c, c_device, sizeof c));
    must(tess_emulation_read(d, d_device, d_nbytes));
    double want[256], bound[256];
    for (int i = 0; i < 256; i++) {
        double magnitude = 0.0;
        want[i] = 0.0;
        for (int k = 0; k < dim; k++) {
            const double x = (double)tess_bf16_to_f32(ab[i / 16 * dim + k]);
            const double y = (double)tess_bf16_to_f32(ab[(16 + i % 16) * dim + k]);
            want[i] += x * y;
            magnitude += fabs(x * y);
        }
        bound[i] = (dim + 2) * F32_U * magnitude;
        assert_true(fabs((double)c[i] - want[i]) <= bound[i]);
    }
    for (int i = 0; i < 16 * dim; i++) {
        double sum = 0.0, error = 0.0;
        for (int k = 0; k < 16; k++) {
            const double y = (double)tess_bf16_to_f32(ab[(16 + k) * dim + i % dim]);
            const int at = i / dim * 16 + k;
            sum += want[at] * y;
            error += (bound[at] + (BF16_U + 18.0 * F32_U) * fabs(want[at])) * fabs(y);
        }
        assert_true(fabs((double)d[i] - sum) <= error);
    }
    const tess_tensor_faults faults = tess_tensor_faults_take();
    assert_int_equal(faults.misaligned, 0);
    assert_int_equal(faults.bank_conflicts, 0);
    assert_int_equal(faults.lost_copies, 0);
    assert_int_equal(faults.mma_numel, columns / 16 * 2 + columns / 8);
}

static void test_tiles_of_every_width_equal_plain_product(void **state)
{
    (void)state;
    check_tiles(32, 32);
    check_tiles(16, 32);
    check_tiles(64, 64);
    check_tiles(96, 96);
    check_tiles(72, 96);
    check_tiles(128, 128);
    check_tiles(256, 256);
    check_tiles(200, 256);
}

static void test_copy_shows_only_after_its_wait(void **state)
{
    (void)state;
    static const probe_copy_part parts[] = {PROBE_COPY_ALL, PROBE_COPY_NO_WAIT,
                                            PROBE_COPY_NO_COMMIT, PROBE_COPY_NO_SOURCE};
    static const int lost[] = {0, 32, 32, 0};
    uint16_t src[256], got[256];
    fill(src, 256, 9);
    for (int i = 0; i < TESS_NELEM(parts); i++) {
        uint16_t *dst = device_of(NULL, sizeof got);
        must(probe_copy(device_of(src, sizeof src), parts[i], dst, &stream));
        must(tess_emulation_read(got, dst, sizeof got));
        for (int e = 0; e < 256; e++)
            assert_int_equal(got[e], lost[i] != 0                 ? 0xffff
                                     : parts[i] == PROBE_COPY_ALL ? src[e]
                                                                  : 0);
        assert_int_equal(tess_tensor_faults_take().lost_copies, lost[i]);
    }
}

static void test_exp2_and_pairs_equal_host(void **state)
{
    (void)state;
    float x[32], y[32];
    uint32_t pair[32];
    for (int i = 0; i < 32; i++)
        x[i] = (float)(i - 20) * 1.7f;
    x[30] = -INFINITY;
    x[31] = -140.0f;
    float *y_device = device_of(NULL, sizeof y);
    uint32_t *pair_device = device_of(NULL, sizeof pair);
    must(probe_scalar(device_of(x, sizeof x), y_device, pair_device, &stream));
    must(tess_emulation_read(y, y_device, sizeof y));
    must(tess_emulation_read(pair, pair_device, sizeof pair));
    for (int i = 0; i < 32; i++) {
        const double want = i == 31 ? 0.0 : exp2((double)x[i]);
        assert_true(fabs((double)y[i] - want) <= ldexp(want, -22));
        assert_int_equal(pair[i] & 0xffff, tess_bf16_from_f32(x[i]));
        assert_int_equal(pair[i] >> 16, tess_bf16_from_f32(y[i]));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_mma_of_integers_equals_plain_product, start),
        cmocka_unit_test_setup(test_ldmatrix_gives_each_lane_its_pairs, start),
        cmocka_unit_test_setup(test_tiles_of_every_width_equal_plain_product, start),
        cmocka_unit_test_setup(test_copy_shows_only_after_its_wait, start),
        cmocka_unit_test_setup(test_exp2_and_pairs_equal_host, start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
