/* The door of the CUDA part: a device opens, its table is whole, memory and copies work. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "tests/emulation/emu_ranges.h"
#include "tests/support/cuda_door.h"
#include "tests/support/must.h"

static tess_cuda_door door;

static void check_entry(const char *table, const char *op, bool has)
{
    if (!has)
        fail_msg("%s: the table of %s has no entry '%s'", door.device->name, table, op);
}

static void test_every_op_has_an_entry(void **state)
{
    (void)state;
    const tess_kernels *k = door.kernels;
    must(tess_kernels_check(k));
    assert_non_null(k->quantizers);
    assert_non_null(k->modulated);
#define X(op, type) check_entry("kernels", #op, k->op != NULL);
    EMU_KERNEL_LIST(X)
    EMU_CODE_LIST(X)
#undef X
#define X(op, type) check_entry("modulated transformers", #op, k->modulated->op != NULL);
    EMU_MODULATED_LIST(X)
#undef X
#define X(op, type) check_entry("quantizers", #op, k->quantizers->op != NULL);
    EMU_QUANTIZER_LIST(X)
#undef X
}

static void test_bytes_come_back(void **state)
{
    (void)state;
    enum { NUMEL = 1 << 20 };
    tess_stream *s = NULL;
    void *memory = NULL, *there = NULL, *back = NULL;
    must(tess_device_stream_create(door.device, "test", false, &s));
    must(door.device->ops->alloc(door.device, TESS_DEVICE, NUMEL, &memory));
    must(tess_alloc(NUMEL, &there));
    must(tess_alloc(NUMEL, &back));
    for (int i = 0; i < NUMEL; i++)
        ((uint8_t *)there)[i] = (uint8_t)(i * 31 + i / 256);
    const tess_view device = {memory, NUMEL, TESS_U8, TESS_DEVICE};
    must(tess_device_copy(door.device, device, tess_view_host(there, NUMEL, TESS_U8), s));
    must(tess_device_copy(door.device, tess_view_host(back, NUMEL, TESS_U8), device, s));
    must(tess_stream_finish(s));
    assert_memory_equal(there, back, NUMEL);
    tess_free(there);
    tess_free(back);
    door.device->ops->release(door.device, TESS_DEVICE, memory, NUMEL);
    tess_device_stream_destroy(door.device, &s);
}

int main(void)
{
    cuda_door_open_or_skip(&door);
    print_message("%s, %s, %s\n", door.device->name, door.kernels->path(), door.plugin->versions);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_op_has_an_entry),
        cmocka_unit_test(test_bytes_come_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
