/* Descriptions of devices and networks: what is installed is sound, what is wrong is named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <math.h>

#include "core/io.h"
#include "shard/profile.h"
#include "shard/profile_texts.h"

static void expect_ok(tess_status st)
{
    if (st != TESS_OK)
        fail_msg("%s: %s", tess_status_name(st), tess_error_message());
}

static tess_io *io_of(void)
{
    static tess_io *io = NULL;
    if (io == NULL)
        expect_ok(tess_io_create(0, &io));
    return io;
}

static void test_installed_ones_are_read(void **state)
{
    int device_numel = 0, network_numel = 0;
    (void)state;
    for (int i = 0; i < tess_profile_text_numel; i++) {
        const tess_profile_text *t = &tess_profile_texts[i];
        tess_device_profile device;
        tess_network_profile network;
        if (strcmp(t->folder, "networks") == 0) {
            expect_ok(tess_network_profile_read(io_of(), t->name, &network));
            assert_string_equal(network.name, t->name);
            assert_false(network.is_measured);
            network_numel++;
            continue;
        }
        expect_ok(tess_device_profile_read(io_of(), t->name, &device));
        assert_string_equal(device.name, t->name);
        assert_true(device.peak_flops >= device.product_flops.rate[0]);
        /* the network that goes with it is installed too */
        expect_ok(tess_network_profile_read(io_of(), device.network, &network));
        device_numel++;
    }
    assert_int_equal(device_numel, 5);
    assert_true(network_numel >= 4);
}

static void test_curve_is_linear_in_the_logarithm(void **state)
{
    const tess_curve c = {.point_numel = 3, .size = {16, 64, 1024}, .rate = {1, 3, 4}};
    (void)state;
    assert_true(tess_curve_at(&c, 1) == 1.0 && tess_curve_at(&c, 16) == 1.0);
    assert_true(fabs(tess_curve_at(&c, 32) - 2.0) < 1e-12);
    assert_true(fabs(tess_curve_at(&c, 256) - 3.5) < 1e-12);
    assert_true(tess_curve_at(&c, 1e9) == 4.0);
}

/* What a device takes for work that is all of one kind. */
static void test_seconds_are_amounts_over_rates(void **state)
{
    tess_device_profile d = {.memory_rate = 100.0, .launch_s = 1.0};
    tess_cost c = {.launch_numel = 1.0};
    (void)state;
    d.product_flops = (tess_curve){.point_numel = 2, .size = {1, 1024}, .rate = {10, 20}};
    d.op_rate[TESS_COST_NORM] = 50.0;
    d.weight_rate[TESS_FORMAT_NF4] = 4.0;
    c.product_flops[10] = 400.0;             /* 20 s */
    c.op[TESS_COST_NORM] = 100.0;            /* 2 s */
    c.op[TESS_COST_ELEMENT] = 100.0;         /* 1 s, as memory */
    c.weight_numel[TESS_FORMAT_NF4] = 120.0; /* 30 s */
    c.weight_numel[TESS_FORMAT_BF16] = 1e9;  /* multiplied as stored */
    assert_true(fabs(tess_profile_seconds(&d, &c) - 53.0) < 1e-12);
    d.has_decoding_beside = true;
    assert_true(fabs(tess_profile_seconds(&d, &c) - 33.0) < 1e-12);
    c.launch_numel = 90.0;
    assert_true(fabs(tess_profile_seconds(&d, &c) - 90.0) < 1e-12);
}

static void write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

#define DEVICE_HEAD "{\"name\":\"d\",\"source\":\"s\",\"kind\":\"measured\",\"ranks_per_node\":1,"
#define DEVICE_REST                                                                                \
    "\"memory_gb_per_s\":1,\"ops\":{\"attention\":1,\"attention_backward\":1,\"search\":1},"       \
    "\"link\":{\"gb_per_s\":[[1,1]]}}"

static void test_bad_descriptions_are_named(void **state)
{
    static const struct {
        const char *text, *said;
    } bad[] = {
        {DEVICE_HEAD "\"peak_tflop_per_s\":1,\"product_tflop_per_s\":[[16,1]]," DEVICE_REST, NULL},
        {DEVICE_HEAD "\"peak\":1," DEVICE_REST, "member 'peak': expected no such member"},
        {DEVICE_HEAD "\"product_tflop_per_s\":[[16,1]]," DEVICE_REST, "'peak_tflop_per_s'"},
        {DEVICE_HEAD "\"peak_tflop_per_s\":-1,\"product_tflop_per_s\":[[16,1]]," DEVICE_REST,
         "'peak_tflop_per_s': expected a number above 0"},
        {DEVICE_HEAD "\"peak_tflop_per_s\":1,\"product_tflop_per_s\":[[16,1],[8,2]]," DEVICE_REST,
         "expected ascending sizes and rates above 0"},
        {DEVICE_HEAD "\"peak_tflop_per_s\":1,\"product_tflop_per_s\":[]," DEVICE_REST,
         "1 to 32 points"},
        {"{\"name\":\"d\",\"source\":\"s\",\"kind\":\"guessed\"}", "'measured' or 'published'"},
        {"{\"name\":\"d\",\"kind\":\"measured\"}", "'source': expected a string"},
        {"[]", "object"},
    };
    char path[] = "/tmp/tess_profile_XXXXXX", name[64];
    const int fd = mkstemp(path);
    (void)state;
    assert_true(fd >= 0);
    close(fd);
    snprintf(name, sizeof name, "%s.json", path);
    for (int i = 0; i < TESS_NELEM(bad); i++) {
        tess_device_profile d;
        write_file(name, bad[i].text);
        tess_error_clear();
        const tess_status st = tess_device_profile_read(io_of(), name, &d);
        if (bad[i].said == NULL) {
            expect_ok(st);
            assert_true(d.is_measured);
            continue;
        }
        assert_int_equal(st, TESS_E_FORMAT);
        if (strstr(tess_error_message(), bad[i].said) == NULL)
            fail_msg("'%s' does not say '%s'", tess_error_message(), bad[i].said);
    }
    unlink(name);
    unlink(path);
}

static void test_unknown_names_list_the_known(void **state)
{
    tess_device_profile d;
    tess_network_profile n;
    (void)state;
    tess_error_clear();
    assert_int_equal(tess_device_profile_read(io_of(), "h100", &d), TESS_E_UNSUPPORTED);
    assert_non_null(
        strstr(tess_error_message(),
               "--device 'h100' is not known; known: a100-40g, a100-80g, cpu, h100-80g"));
    tess_error_clear();
    assert_int_equal(tess_network_profile_read(io_of(), "lan", &n), TESS_E_UNSUPPORTED);
    assert_non_null(strstr(tess_error_message(), "--network 'lan' is not known; known: ethernet"));
    tess_error_clear();
    assert_int_equal(tess_device_profile_read(io_of(), "./none.json", &d), TESS_E_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_installed_ones_are_read),
        cmocka_unit_test(test_curve_is_linear_in_the_logarithm),
        cmocka_unit_test(test_seconds_are_amounts_over_rates),
        cmocka_unit_test(test_bad_descriptions_are_named),
        cmocka_unit_test(test_unknown_names_list_the_known),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
