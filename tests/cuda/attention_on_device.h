/**
 * How the attention of flash_problem.h runs on a device: through the table, on a stream of its own.
 * Every addition may be one of a tensor core, so that bounds count it as cut off. For one program
 * each.
 */
#pragma once

#include "tests/cuda/on_device.h"
#include "tests/emulation/flash_problem.h"

static const tess_kernels *kernels;
static tess_stream *own;    /* nobody prepared it: own kernels */
static tess_stream *stream; /* of the calls */

static void set_order(tess_emulation_order order)
{
    const tess_emulation_settings settings = {.order = order};
    tess_emulation_set(&settings);
}

static tess_view work_take(const problem *p)
{
    const tess_attention_shape shape = shape_of(p);
    const size_t nbytes = kernels->attention_work_nbytes(&shape, 1);
    void *memory = NULL;
    must(tess_emulation_alloc("work", nbytes, &memory));
    return (tess_view){memory, (int64_t)nbytes, TESS_U8_OPAQUE, TESS_DEVICE};
}

static tess_status finish(const char *op)
{
    TESS_TRY(tess_stream_finish(stream));
    return on_device_check(op);
}

static tess_status device_forward(problem *p)
{
    const tess_attention_args a = forward_args(p, true, work_take(p));
    TESS_TRY(kernels->attention_forward(&a, stream));
    return finish("attention_forward");
}

static tess_status device_backward(problem *p)
{
    const tess_attention_backward_args a = backward_args(p, true, work_take(p));
    upload(p, OUT);
    upload(p, LSE);
    TESS_TRY(kernels->attention_backward(&a, stream));
    return finish("attention_backward");
}

static void after_case(const problem *p) { (void)p; }

static int attention_setup(void **state)
{
    if (tess_emulation_setup(state) != 0)
        return -1;
    kernels = tess_emulation_sizes();
    flash_addition_u = FLASH_TRUNCATED_U;
    must(tess_device_stream_create(on_device_door()->device, "compute", false, &own));
    stream = own;
    return 0;
}
