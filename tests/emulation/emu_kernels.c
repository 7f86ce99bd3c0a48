/* The kernel table of the emulated device: arguments are copied, the C twin runs later. */
#include <stdlib.h>

#include "emulation/emu_device.h"

static tess_status enqueue(emu_kernel_call *call, tess_stream *stream)
{
    emu_stream *s = NULL;
    emu_op *op = NULL;
    const char *name = emu_kernel_name(call->kernel);
    TESS_TRY(emu_stream_of(name, stream, &s));
    TESS_TRY(emu_begin(s, EMU_OP_KERNEL, name, &op));
    op->call = malloc(sizeof *op->call);
    *op->call = *call;
    if (call->kernel == EMU_KERNEL_gemm && call->args.gemm.bias != NULL) {
        op->call->bias = *call->args.gemm.bias;
        op->call->args.gemm.bias = &op->call->bias;
    }
    emu_touch_call(s->device, op->entry, op->call);
    return emu_enqueue(s, op);
}

/* Checks of embedding_* and of the others are named after the op, not after its direction. */
#define tess_embedding_forward_check tess_embedding_check
#define tess_rmsnorm_forward_check tess_rmsnorm_check
#define tess_attention_forward_check tess_attention_check
#define tess_swiglu_forward_check tess_swiglu_check
#define tess_dora_forward_check tess_dora_check

#define X(name, type)                                                                              \
    static tess_status emu_##name(const type *a, tess_stream *s)                                   \
    {                                                                                              \
        emu_kernel_call call = {.kernel = EMU_KERNEL_##name};                                      \
        TESS_TRY(tess_##name##_check(a));                                                          \
        call.args.name = *a;                                                                       \
        return enqueue(&call, s);                                                                  \
    }
EMU_ALL_LIST(X)
#undef X

static const tess_modulated_kernels modulated = {
#define X(name, type) .name = emu_##name,
    EMU_MODULATED_LIST(X)
#undef X
};

static const char *path(void) { return tess_kernels_cpu.path(); }

static size_t gemm_work_nbytes(const tess_gemm_args *a, int thread_numel)
{
    return tess_kernels_cpu.gemm_work_nbytes(a, thread_numel);
}

static size_t attention_work_nbytes(const tess_attention_shape *shape, int thread_numel)
{
    return tess_kernels_cpu.attention_work_nbytes(shape, thread_numel);
}

const tess_kernels emu_kernels = {.name = "emulated",
                                  .path = path,
                                  .modulated = &modulated,
                                  .gemm_work_nbytes = gemm_work_nbytes,
                                  .attention_work_nbytes = attention_work_nbytes,
#define X(name, type) .name = emu_##name,
                                  EMU_KERNEL_LIST(X)
#undef X
};
