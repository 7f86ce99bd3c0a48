/* The logical hash against its definition: every width, odd counts, cut anywhere. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "core/base.h"
#include "core/digest.h"

enum { NUMEL = 301 };

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* One element after the other, as docs/checkpoints.md says. */
static tess_logical_hash defined(const uint8_t *bytes, int64_t numel, size_t elem_nbytes,
                                 int64_t first_idx)
{
    tess_logical_hash h = {{0, 0}};
    for (int64_t i = 0; i < numel; i++) {
        uint64_t bits = 0;
        for (size_t k = 0; k < elem_nbytes; k++)
            bits |= (uint64_t)bytes[(size_t)i * elem_nbytes + k] << 8 * k;
        const uint64_t place = (uint64_t)(first_idx + i) * UINT64_C(0x9e3779b97f4a7c15);
        h.lane[0] += mix(bits ^ mix(place + UINT64_C(0x243f6a8885a308d3)));
        h.lane[1] += mix(bits + mix(place ^ UINT64_C(0x13198a2e03707344)));
    }
    return h;
}

static void test_logical_hash_add_any_width_and_cut_equals_definition(void **state)
{
    static const size_t widths[] = {1, 2, 4, 8};
    static const int64_t firsts[] = {0, 5, INT64_C(1) << 40};
    uint8_t bytes[NUMEL * 8 + 1];
    (void)state;
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * 151 + i / 7);
    for (int w = 0; w < TESS_NELEM(widths); w++)
        for (int f = 0; f < TESS_NELEM(firsts); f++)
            for (int64_t cut = 0; cut <= NUMEL; cut += 43) {
                /* misaligned by one byte */
                const tess_logical_hash want = defined(bytes + 1, NUMEL, widths[w], firsts[f]);
                tess_logical_hash h = {{0, 0}};
                tess_logical_hash_add(&h, bytes + 1, cut, widths[w], firsts[f]);
                tess_logical_hash_add(&h, bytes + 1 + (size_t)cut * widths[w], NUMEL - cut,
                                      widths[w], firsts[f] + cut);
                assert_memory_equal(&h, &want, sizeof h);
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logical_hash_add_any_width_and_cut_equals_definition),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
