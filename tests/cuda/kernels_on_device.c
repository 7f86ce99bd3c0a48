/*
 * The cases of tests/emulation on a device: the functions of emulation.h over its memory, and the
 * entries of cuda_priv.h through the table of the CUDA part.
 *
 * Every entry is followed by the end of the stream, so that an error of a kernel belongs to its op,
 * and by a look at the canaries around all device memory. Memory is one block of the device, cut
 * from its begin. With TESS_TEST_APART=1 every operand is an allocation of the device instead, with
 * no canaries: compute-sanitizer then finds reads behind one as well. A kernel that does not end is
 * given up after TESS_TEST_DEADLINE_S seconds (120).
 *
 * [Note: what differs on a device] Results are the C twins' bits there as well, on two runs over
 * memory filled with other bytes. NaN is one value, except where an op defines its bits, which are
 * then made by integer operations (tess_pack with IS_EXACT, f16). The search for nearest codes adds
 * in tensor cores, which may truncate: only its bound sees that, and it counts every addition as
 * truncated, so keys are equal.
 */
#include "tests/emulation/emulation.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "kernels/cuda/codec_priv.h"
#include "tests/cuda/on_device.h"
#include "tests/emulation/emu_ranges.h"
#include "tests/emulation/mma_probe.h"

enum {
    CANARY_BYTE = 0xa5,
    CANARY_NUMEL = 256,
    ALIGNMENT = 256,
    ALLOCATION_MAX = 64,
    REGION_NBYTES = 256 << 20, /* a product of 1027 x 33000 takes most of it */
    STAGE_NBYTES = 4 << 20
};

typedef struct allocation {
    const char *name;
    char *data;
    size_t nbytes;
} allocation;

static tess_cuda_door door;
static tess_stream *stream;
static char *region, *stage; /* of the device; pinned, of the host */
static size_t region_used;
static allocation memory[ALLOCATION_MAX];
static int memory_numel;
static bool is_apart; /* every allocation is the device's own */
static double deadline_s = 120.0;
static int poison_byte = 0xff; /* as the emulation has it: other orders, other bytes */

/* ---- bytes ---- */

static tess_view bytes(const void *data, size_t nbytes, tess_space space)
{
    return (tess_view){(void *)(uintptr_t)data, (int64_t)nbytes, TESS_U8, space};
}

static tess_status copy(tess_view dst, tess_view src)
{
    TESS_TRY(tess_device_copy(door.device, dst, src, stream));
    return tess_stream_finish(stream);
}

static tess_status fill(char *dst, int byte, size_t nbytes)
{
    memset(stage, byte, TESS_MIN(nbytes, (size_t)STAGE_NBYTES));
    for (size_t at = 0, n; at < nbytes; at += n) {
        n = TESS_MIN(nbytes - at, (size_t)STAGE_NBYTES);
        TESS_TRY(copy(bytes(dst + at, n, TESS_DEVICE), bytes(stage, n, TESS_HOST)));
    }
    return TESS_OK;
}

static tess_status store(char *dst, const char *src, size_t nbytes)
{
    for (size_t at = 0, n; at < nbytes; at += n) {
        n = TESS_MIN(nbytes - at, (size_t)STAGE_NBYTES);
        memcpy(stage, src + at, n);
        TESS_TRY(copy(bytes(dst + at, n, TESS_DEVICE), bytes(stage, n, TESS_HOST)));
    }
    return TESS_OK;
}

static tess_status load(char *dst, const char *src, size_t nbytes)
{
    for (size_t at = 0, n; at < nbytes; at += n) {
        n = TESS_MIN(nbytes - at, (size_t)STAGE_NBYTES);
        TESS_TRY(copy(bytes(stage, n, TESS_HOST), bytes(src + at, n, TESS_DEVICE)));
        memcpy(dst + at, stage, n);
    }
    return TESS_OK;
}

/* ---- canaries ---- */

static tess_status canary_check(const char *op, const allocation *a, const char *canary,
                                bool is_end)
{
    for (int i = 0; i < CANARY_NUMEL; i++)
        TESS_CHECK((uint8_t)canary[i] == CANARY_BYTE, TESS_E_STATE,
                   "%s: byte %d %s '%s' (%zu bytes of device memory) was overwritten", op,
                   is_end ? i : CANARY_NUMEL - i, is_end ? "behind" : "before", a->name, a->nbytes);
    return TESS_OK;
}

/* One copy serves all of them where the whole memory in use is small. */
static tess_status canaries_check(const char *op)
{
    char canary[CANARY_NUMEL];
    if (is_apart)
        return TESS_OK;
    const bool is_small = region_used <= STAGE_NBYTES;
    if (is_small && region_used > 0)
        TESS_TRY(
            copy(bytes(stage, region_used, TESS_HOST), bytes(region, region_used, TESS_DEVICE)));
    for (int i = 0; i < 2 * memory_numel; i++) {
        const allocation *a = &memory[i / 2];
        const char *at = i % 2 == 0 ? a->data - CANARY_NUMEL : a->data + a->nbytes;
        if (!is_small)
            TESS_TRY(load(canary, at, sizeof canary));
        TESS_TRY(canary_check(op, a, is_small ? stage + (at - region) : canary, i % 2 != 0));
    }
    return TESS_OK;
}

/* ---- on_device.h ---- */

const tess_cuda_door *on_device_door(void) { return &door; }

tess_status on_device_check(const char *op) { return canaries_check(op); }

/* ---- emulation.h ---- */

/* What comes behind a kernel that does not end is not waited for. */
static tess_status look(void *self, const tess_stream *s, double waited_s, double slice_s)
{
    (void)self;
    (void)slice_s;
    if (waited_s <= deadline_s)
        return TESS_OK;
    deadline_s = 0.0;
    return TESS_FAIL(TESS_E_TIMEOUT, "work of stream '%s' has not ended after %.1f s", s->name,
                     waited_s);
}

bool tess_emulation_is_device(void) { return true; }

int tess_emulation_setup(void **state)
{
    void *memory_of[2] = {NULL, NULL};
    (void)state;
    const char *deadline = getenv("TESS_TEST_DEADLINE_S");
    is_apart = getenv("TESS_TEST_APART") != NULL;
    deadline_s = deadline != NULL ? strtod(deadline, NULL) : deadline_s;
    cuda_door_open_or_skip(&door);
    door.device->watch = (tess_device_watch){.look = look};
    tess_status st = tess_device_stream_create(door.device, "test", false, &stream);
    if (st == TESS_OK && !is_apart)
        st = door.device->ops->alloc(door.device, TESS_DEVICE, REGION_NBYTES, &memory_of[0]);
    if (st == TESS_OK)
        st = door.device->ops->alloc(door.device, TESS_HOST, STAGE_NBYTES, &memory_of[1]);
    region = memory_of[0];
    stage = memory_of[1];
    printf("%s, %s, %s: %s\n", door.device->name, door.kernels->path(), door.plugin->versions,
           st == TESS_OK ? "orders of threads and limits of blocks are the device's own"
                         : tess_error_message());
    return st == TESS_OK ? 0 : 1;
}

const tess_kernels *tess_emulation_sizes(void) { return door.kernels; }

void tess_emulation_set(const tess_emulation_settings *settings)
{
    poison_byte = settings->order == TESS_EMULATION_FORWARD ? 0xff : 0xcb;
}

int tess_emulation_barrier_numel(void) { return 0; }

tess_emulation_barrier tess_emulation_barrier_get(int idx)
{
    (void)idx;
    return (tess_emulation_barrier){.kind = "none", .file = ""};
}

tess_tensor_faults tess_tensor_faults_take(void) { return (tess_tensor_faults){0}; }

/* Between canaries, behind what was cut from the block before. */
static tess_status cut(const char *name, size_t nbytes, allocation *a)
{
    const size_t whole = 2 * CANARY_NUMEL + (nbytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    TESS_CHECK(whole <= REGION_NBYTES - region_used, TESS_E_MEMORY,
               "device memory of tests: '%s' needs %zu bytes, %zu are free", name, nbytes,
               REGION_NBYTES - region_used);
    *a = (allocation){name, region + region_used + CANARY_NUMEL, nbytes};
    region_used += whole;
    TESS_TRY(fill(a->data - CANARY_NUMEL, CANARY_BYTE, CANARY_NUMEL));
    return fill(a->data + nbytes, CANARY_BYTE, whole - CANARY_NUMEL - nbytes);
}

static tess_status take_apart(const char *name, size_t nbytes, allocation *a)
{
    void *data = NULL;
    TESS_TRY(door.device->ops->alloc(door.device, TESS_DEVICE, TESS_MAX(nbytes, (size_t)1), &data));
    *a = (allocation){name, data, nbytes};
    return TESS_OK;
}

tess_status tess_emulation_alloc(const char *name, size_t nbytes, void **out)
{
    TESS_CHECK(memory_numel < ALLOCATION_MAX, TESS_E_MEMORY,
               "device memory of tests: '%s' is one block too many, there is room for %d", name,
               ALLOCATION_MAX);
    allocation *a = &memory[memory_numel];
    TESS_TRY(is_apart ? take_apart(name, nbytes, a) : cut(name, nbytes, a));
    memory_numel++;
    *out = a->data;
    return fill(a->data, poison_byte, nbytes);
}

void tess_emulation_release_all(void)
{
    for (int i = 0; is_apart && i < memory_numel; i++)
        door.device->ops->release(door.device, TESS_DEVICE, memory[i].data,
                                  TESS_MAX(memory[i].nbytes, (size_t)1));
    region_used = 0;
    memory_numel = 0;
}

static tess_status inside_check(const void *data, size_t nbytes)
{
    const char *at = data;
    for (int i = 0; i < memory_numel; i++)
        if (at >= memory[i].data && at + nbytes <= memory[i].data + memory[i].nbytes)
            return TESS_OK;
    return TESS_FAIL(TESS_E_ARG, "%s: %zu bytes at %p are not inside one allocation",
                     door.device->name, nbytes, data);
}

tess_status tess_emulation_write(void *device, const void *host, size_t nbytes)
{
    if (nbytes == 0)
        return TESS_OK;
    TESS_TRY(inside_check(device, nbytes));
    return store(device, host, nbytes);
}

tess_status tess_emulation_read(void *host, const void *device, size_t nbytes)
{
    if (nbytes == 0)
        return TESS_OK;
    TESS_TRY(inside_check(device, nbytes));
    return load(host, device, nbytes);
}

/* ---- entries ---- */

/* What was enqueued is over, and failed with this op's name or left its neighbours alone. A refusal
 * keeps its words. */
static tess_status finish(const char *op, tess_status enqueued)
{
    char text[TESS_ERROR_MESSAGE_NBYTES - 64];
    const tess_status st = enqueued == TESS_OK ? tess_stream_finish(stream) : enqueued;
    if (st == TESS_OK)
        return canaries_check(op);
    if (st == enqueued && !tess_status_is_fatal(st))
        return st;
    snprintf(text, sizeof text, "%s", tess_error_message());
    tess_error_clear();
    return TESS_FAIL(st, "%s: %s", op, text);
}

static tess_status missing(const char *op)
{
    return TESS_FAIL(TESS_E_UNSUPPORTED, "the table of %s has no entry '%s'", door.device->name,
                     op);
}

#define FORWARD(name, type, entry)                                                                 \
    tess_status tess_cuda_##name(const type *a, tess_stream *s)                                    \
    {                                                                                              \
        (void)s; /* of the host */                                                                 \
        return (entry) == NULL ? missing(#name) : finish(#name, (entry)(a, stream));               \
    }
#define X(name, type) FORWARD(name, type, door.kernels->name)
EMU_KERNEL_LIST(X)
EMU_CODE_LIST(X)
#undef X
#define X(name, type) FORWARD(name, type, door.kernels->modulated->name)
EMU_MODULATED_LIST(X)
#undef X
#define X(name, type) FORWARD(quantizer_##name, type, door.kernels->quantizers->name)
EMU_QUANTIZER_LIST(X)
#undef X

tess_status tess_cuda_decode(const tess_decode_args *a, tess_stream *s)
{
    (void)a;
    (void)s;
    return missing("decode");
}
