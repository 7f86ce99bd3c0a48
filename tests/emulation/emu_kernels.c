/* The kernel table of the emulated device: arguments are copied, the C twin runs later. */
#include <stdlib.h>

#include "emulation/emu_device.h"

static tess_status enqueue(emu_kernel_call *call, tess_stream *stream)
{
    emu_stream *s = NULL;
    emu_op *op = NULL;
    emu_slot *slot = NULL;
    const char *name = emu_kernel_name(call->kernel);
    TESS_TRY(emu_stream_of(name, stream, &s));
    if (call->kernel == EMU_KERNEL_gemm)
        TESS_TRY(emu_lane_fill(s, &call->args.gemm, &slot));
    TESS_TRY(emu_begin(s, EMU_OP_KERNEL, name, &op));
    op->call = malloc(sizeof *op->call);
    *op->call = *call;
    emu_own(op->call);
    emu_touch_call(s->device, op->entry, op->call);
    TESS_TRY(emu_enqueue(s, op));
    return slot != NULL ? tess_event_record(&slot->free, stream) : TESS_OK;
}

/* Checks of embedding_* and of the others are named after the op, not after its direction. */
#define tess_embedding_forward_check tess_embedding_check
#define tess_rmsnorm_forward_check tess_rmsnorm_check
#define tess_attention_forward_check tess_attention_check
#define tess_swiglu_forward_check tess_swiglu_check
#define tess_dora_forward_check tess_dora_check
#define tess_adafactor_most_check tess_adafactor_check
#define tess_adafactor_sum_check tess_adafactor_check
#define tess_adafactor_factor_check tess_adafactor_check
#define tess_adafactor_size_check tess_adafactor_check
#define tess_adafactor_apply_check tess_adafactor_check

/* Rooms of the search are the backend's. */
static size_t nearest_pack_nbytes(int64_t code_numel, int64_t dim)
{
    return tess_kernels_cpu.nearest_pack_nbytes(code_numel, dim);
}

static size_t nearest_work_nbytes(int64_t dim, int best_numel, int thread_numel)
{
    return tess_kernels_cpu.nearest_work_nbytes(dim, best_numel, thread_numel);
}

#define tess_nearest_prepare_check(a)                                                              \
    tess_nearest_prepare_check(a, nearest_pack_nbytes((a)->code_numel, (a)->dim))
#define tess_nearest_check(a)                                                                      \
    tess_nearest_check(a, nearest_pack_nbytes((a)->code_numel, (a)->dim),                          \
                       nearest_work_nbytes((a)->dim, (a)->best_numel, 1))

#define X(name, type)                                                                              \
    static tess_status emu_##name(const type *a, tess_stream *s)                                   \
    {                                                                                              \
        emu_kernel_call call = {.kernel = EMU_KERNEL_##name};                                      \
        TESS_TRY(tess_##name##_check(a));                                                          \
        call.args.name = *a;                                                                       \
        return enqueue(&call, s);                                                                  \
    }
EMU_TABLE_LIST(X)
#undef X
#define X(name, type)                                                                              \
    static tess_status emu_quantizer_##name(const type *a, tess_stream *s)                         \
    {                                                                                              \
        emu_kernel_call call = {.kernel = EMU_KERNEL_quantizer_##name};                            \
        TESS_TRY(tess_quantizer_##name##_check(a));                                                \
        call.args.quantizer_##name = *a;                                                           \
        return enqueue(&call, s);                                                                  \
    }
EMU_QUANTIZER_LIST(X)
#undef X

static const tess_modulated_kernels modulated = {
#define X(name, type) .name = emu_##name,
    EMU_MODULATED_LIST(X)
#undef X
};

static const tess_quantizer_kernels quantizers = {
#define X(name, type) .name = emu_quantizer_##name,
    EMU_QUANTIZER_LIST(X)
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
                                  .logits_row_max = 256,
                                  .logits_max_numel = 16 << 20,
                                  .modulated = &modulated,
                                  .quantizers = &quantizers,
                                  .gemm_work_nbytes = gemm_work_nbytes,
                                  .attention_work_nbytes = attention_work_nbytes,
                                  .nearest_pack_nbytes = nearest_pack_nbytes,
                                  .nearest_work_nbytes = nearest_work_nbytes,
#define X(name, type) .name = emu_##name,
                                  EMU_KERNEL_LIST(X) EMU_CODE_LIST(X)
#undef X
};

/*
 * [Note: a new op] Every entry of the tables is known here: as one that the checker lists operands
 * of, or as one that enqueues nothing. An op that is neither does not compile, and has its operands
 * written down in emu_ranges*.c first.
 */
typedef tess_status (*entry)(void);
enum { SIZES_NUMEL = 4, CHOICE_NUMEL = 4, TEXT_NUMEL = 2, TABLE_NUMEL = 2 };
#define ONE(name, type) +1
/* wants_adjacent_terms and what pads it, then numbers of logits */
enum { FLAG_NBYTES = sizeof(void *) + 2 * sizeof(int64_t) };
_Static_assert(sizeof(tess_kernels) == (TEXT_NUMEL + SIZES_NUMEL + CHOICE_NUMEL +
                                        TABLE_NUMEL EMU_KERNEL_LIST(ONE) EMU_CODE_LIST(ONE)) *
                                               sizeof(entry) +
                                           FLAG_NBYTES,
               "an entry of tess_kernels whose operands the checker does not know");
_Static_assert(sizeof(tess_quantizer_kernels) == (0 EMU_QUANTIZER_LIST(ONE)) * sizeof(entry),
               "an entry of tess_quantizer_kernels whose operands the checker does not know");
_Static_assert(sizeof(tess_modulated_kernels) == (0 EMU_MODULATED_LIST(ONE)) * sizeof(entry),
               "an entry of tess_modulated_kernels whose operands the checker does not know");
