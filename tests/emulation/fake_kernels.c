/*
 * Every entry passes through a wrapper that knows what the op writes (emu_ranges.h), so that any of
 * them can be broken by name. Views in device memory are the CPU's too: where its kernels would
 * refuse them, arguments are copied and the views become the host's.
 */
#include "tests/emulation/fake_kernels.h"

#include <stdio.h>
#include <string.h>

#include "tests/emulation/emu_ranges.h"
#include "tests/support/plain_device.h"

typedef enum fault_kind {
    FAULT_NONE,
    FAULT_ELEMENT,
    FAULT_UNSTABLE,
    FAULT_WRONG,
    FAULT_PAST,
    FAULT_ERROR,
    FAULT_MISSING,
    FAULT_HANG,
} fault_kind;

static const char *const kind_names[] = {"none", "element", "unstable", "wrong",
                                         "past", "error",   "missing",  "hang"};

static fault_kind broken_kind;
static emu_kernel broken; /* the op that has it */
static int call_numel;    /* of that op so far */

/* ---- what goes wrong ---- */

/* The last row of what an op writes: its first result, or else the first operand it changes, which
 * stands before scratch. */
typedef struct written {
    uint8_t *row;
    size_t row_nbytes;
    bool is_result;
} written;

static void find_written(void *arg, const emu_operand *o)
{
    written *w = arg;
    const bool is_result = o->access == EMU_WRITE;
    if ((o->access & EMU_WRITE) == 0 || w->is_result || (w->row != NULL && !is_result))
        return;
    w->row = (uint8_t *)emu_operand_row(o, o->group_numel * o->row_numel - 1);
    w->row_nbytes = o->row_nbytes;
    w->is_result = is_result;
}

/* The lowest byte of the last f32, or of the last bf16 but one. It grows, so that two calls do not
 * make up for each other. */
static void spoil(emu_kernel_call *call)
{
    written w = {0};
    call_numel++;
    emu_visit(call, &(emu_visitor){.operand = find_written, .arg = &w});
    if (w.row == NULL || w.row_nbytes == 0)
        return;
    if (broken_kind == FAULT_WRONG)
        w.row[w.row_nbytes - 1] ^= 0x40; /* of its exponent */
    else if (broken_kind == FAULT_PAST)
        w.row[w.row_nbytes]++;
    else if (broken_kind == FAULT_ELEMENT || (broken_kind == FAULT_UNSTABLE && call_numel % 2 == 0))
        w.row[w.row_nbytes >= 4 ? w.row_nbytes - 4 : 0]++;
}

static void keep_operand(void *arg, const emu_operand *o)
{
    (void)arg;
    (void)o;
}

/* Of the copy that the CPU's kernel takes. */
static void bring_near(emu_kernel_call *call)
{
    if (call->kernel == EMU_KERNEL_gemm || call->kernel == EMU_KERNEL_quantize)
        emu_visit(call, &(emu_visitor){.operand = keep_operand, .makes_host = true});
}

static bool never(void *arg)
{
    (void)arg;
    return false;
}

static tess_status finish(emu_kernel_call *call, tess_status st, tess_stream *s)
{
    if (call->kernel != broken || broken_kind == FAULT_NONE || st != TESS_OK)
        return st;
    TESS_CHECK(broken_kind != FAULT_ERROR, TESS_E_COMM,
               "emulated fault: CUDA says an illegal memory access was encountered");
    if (broken_kind == FAULT_HANG)
        return plain_stream_defer(s, never, NULL);
    spoil(call);
    return TESS_OK;
}

/* ---- entries ---- */

#define DEFINE(kernels, prefix, name, type)                                                        \
    static tess_status fake_##prefix##name(const type *a, tess_stream *s)                          \
    {                                                                                              \
        emu_kernel_call call = {.kernel = EMU_KERNEL_##prefix##name};                              \
        call.args.prefix##name = *a;                                                               \
        bring_near(&call);                                                                         \
        return finish(&call, kernels->name(&call.args.prefix##name, s), s);                        \
    }
#define X(name, type) DEFINE((&tess_kernels_cpu), , name, type)
EMU_KERNEL_LIST(X)
EMU_CODE_LIST(X)
#undef X
#define X(name, type) DEFINE(tess_kernels_cpu.modulated, , name, type)
EMU_MODULATED_LIST(X)
#undef X
#define X(name, type) DEFINE(tess_kernels_cpu.quantizers, quantizer_, name, type)
EMU_QUANTIZER_LIST(X)
#undef X

/* Encoders of a device are few. */
static tess_status quantize(const tess_quantize_args *a, tess_stream *s)
{
    TESS_CHECK(a->codec.format == TESS_FORMAT_NF4 || a->codec.format == TESS_FORMAT_FP4,
               TESS_E_UNSUPPORTED,
               "%s: base format %s has no encoder on a CUDA device, expected nf4 or fp4",
               a->tensor_name, tess_format_name(a->codec.format));
    return fake_quantize(a, s);
}

static const char *path(void) { return "sm_90"; }

/* ---- the table ---- */

static tess_quantizer_kernels quantizers = {
#define X(name, type) .name = fake_quantizer_##name,
    EMU_QUANTIZER_LIST(X)
#undef X
};

static tess_modulated_kernels modulated = {
#define X(name, type) .name = fake_##name,
    EMU_MODULATED_LIST(X)
#undef X
};

static tess_kernels kernels = {
#define X(name, type) .name = fake_##name,
    EMU_KERNEL_LIST(X) EMU_CODE_LIST(X)
#undef X
};

static void remove_broken(void)
{
#define X(op, type)                                                                                \
    if (broken == EMU_KERNEL_##op)                                                                 \
        kernels.op = NULL;
    EMU_KERNEL_LIST(X)
    EMU_CODE_LIST(X)
#undef X
#define X(op, type)                                                                                \
    if (broken == EMU_KERNEL_##op)                                                                 \
        modulated.op = NULL;
    EMU_MODULATED_LIST(X)
#undef X
#define X(op, type)                                                                                \
    if (broken == EMU_KERNEL_quantizer_##op)                                                       \
        quantizers.op = NULL;
    EMU_QUANTIZER_LIST(X)
#undef X
}

static bool parse(const char *fault)
{
    static const char *const op_names[] = {
#define X(name, type) #name,
        EMU_TABLE_LIST(X)
#undef X
#define X(name, type) "quantizer_" #name,
            EMU_QUANTIZER_LIST(X)
#undef X
    };
    char op[64], kind[16];
    if (sscanf(fault, "%63[a-z0-9_]:%15s", op, kind) != 2)
        return false;
    for (int i = FAULT_ELEMENT; i < TESS_NELEM(kind_names); i++)
        if (strcmp(kind, kind_names[i]) == 0)
            broken_kind = (fault_kind)i;
    for (int i = 0; i < EMU_KERNEL_NUMEL; i++) {
        if (strcmp(op, op_names[i]) != 0)
            continue;
        broken = (emu_kernel)i;
        return broken_kind != FAULT_NONE;
    }
    return false;
}

const tess_kernels *fake_kernels_make(const char *fault)
{
    if ((fault != NULL && !parse(fault)) ||
        tess_kernels_cpu_select(tess_cpu_path_best()) != TESS_OK)
        return NULL;
    kernels.name = "cuda";
    kernels.path = path;
    kernels.quantize = quantize;
    kernels.wants_adjacent_terms = tess_kernels_cpu.wants_adjacent_terms;
    kernels.quantizers = &quantizers;
    kernels.modulated = &modulated;
#define X(name) kernels.name = tess_kernels_cpu.name;
    X(logits_row_max)
    X(logits_max_numel)
    X(gemm_work_nbytes)
    X(attention_work_nbytes)
    X(nearest_pack_nbytes)
    X(nearest_work_nbytes)
    X(gemm_prepare)
    X(choices_nbytes)
    X(choices_export)
    X(choices_import)
#undef X
    if (broken_kind == FAULT_MISSING)
        remove_broken();
    return &kernels;
}
