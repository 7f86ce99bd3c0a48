#include "tests/emulation/emulation_probe.h"

#include "kernels/cuda/launch_priv.cuh"

enum { THREADS = 64, BLOCKS = 2 };

static unsigned global_thread() { return blockIdx.x * blockDim.x + threadIdx.x; }

static void legal_kernel(unsigned *out)
{
    TESS_SHARED(unsigned, sum, 1);
    const unsigned lane = threadIdx.x % 32;
    if (threadIdx.x >= 32) {
        unsigned v = lane;
        for (int step = 16; step > 0; step /= 2)
            v += __shfl_xor_sync(0xffffffffu, v, step);
        if (lane == 0)
            *sum = v;
    }
    __syncthreads();
    const unsigned mask = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    unsigned first = __shfl_sync(mask, threadIdx.x, 0, 16);
    if (lane < 16)
        first += __popc(__ballot_sync(mask, lane % 2 == 0));
    out[global_thread()] = *sum + first;
}

static void named_kernel(unsigned *out)
{
    TESS_SHARED(unsigned, word, THREADS);
    static tess_emulation::site here_site = {"bar.sync", __FILE__, __LINE__, -1};
    const unsigned half = threadIdx.x / 32;
    word[threadIdx.x] = threadIdx.x;
    tess_emulation::named_barrier(&here_site, static_cast<int>(half) + 1, 32);
    out[global_thread()] = word[half * 32 + 31 - threadIdx.x % 32];
}

static void read_higher_kernel(unsigned *out)
{
    TESS_SHARED(unsigned, word, THREADS);
    word[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[global_thread()] = word[TESS_MIN(threadIdx.x + 1, THREADS - 1)];
}

static void barriers_differ_kernel(unsigned *out)
{
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
    out[global_thread()] = 1;
}

static void thread_leaves_kernel(unsigned *out)
{
    if (threadIdx.x == 5)
        return;
    __syncthreads();
    out[global_thread()] = 1;
}

static void masks_differ_kernel(unsigned *out)
{
    const unsigned mask = threadIdx.x % 2 == 0 ? 0xffffffffu : 0xfffffffeu;
    out[global_thread()] = __shfl_sync(mask, threadIdx.x, 0);
}

static void sites_differ_kernel(unsigned *out)
{
    unsigned v = 0;
    if (threadIdx.x % 2 == 0)
        v = __shfl_sync(0xffffffffu, threadIdx.x, 0);
    else
        v = __shfl_sync(0xffffffffu, threadIdx.x, 0);
    out[global_thread()] = v;
}

static void lane_leaves_kernel(unsigned *out)
{
    if (threadIdx.x % 32 == 7)
        return;
    out[global_thread()] = __shfl_sync(0xffffffffu, threadIdx.x, 0);
}

static void named_numbers_kernel(unsigned *out)
{
    static tess_emulation::site here_site = {"bar.sync", __FILE__, __LINE__, -1};
    tess_emulation::named_barrier(&here_site, 3, threadIdx.x < 32 ? 64 : 48);
    out[global_thread()] = 1;
}

static void writes_kernel(unsigned *out, int64_t at) { out[at] = global_thread(); }

static void writes_shared_kernel(unsigned *out, int64_t at)
{
    TESS_SHARED(unsigned, word, THREADS);
    word[at] = 1;
    out[global_thread()] = 1;
}

static void writes_dynamic_kernel(unsigned *out, int64_t at)
{
    TESS_DYN_SHARED(unsigned, word);
    word[at] = 1;
    out[global_thread()] = 1;
}

static void misaligned_kernel(unsigned *out)
{
    TESS_ALIGNED(out + threadIdx.x, 16);
    out[global_thread()] = 1;
}

extern "C" tess_status emulation_probe(probe_kind kind, unsigned *out, tess_stream *s)
{
    const int64_t numel = THREADS * BLOCKS;
    switch (kind) {
#define RUN(kernel, ...) TESS_LAUNCH(kernel, BLOCKS, THREADS, 64, s, __VA_ARGS__)
    case PROBE_LEGAL:
        RUN(legal_kernel, out);
        break;
    case PROBE_NAMED:
        RUN(named_kernel, out);
        break;
    case PROBE_READ_HIGHER:
        RUN(read_higher_kernel, out);
        break;
    case PROBE_BARRIERS_DIFFER:
        RUN(barriers_differ_kernel, out);
        break;
    case PROBE_THREAD_LEAVES:
        RUN(thread_leaves_kernel, out);
        break;
    case PROBE_MASKS_DIFFER:
        RUN(masks_differ_kernel, out);
        break;
    case PROBE_SITES_DIFFER:
        RUN(sites_differ_kernel, out);
        break;
    case PROBE_LANE_LEAVES:
        RUN(lane_leaves_kernel, out);
        break;
    case PROBE_NAMED_NUMBERS:
        RUN(named_numbers_kernel, out);
        break;
    case PROBE_WRITES_BEHIND:
        RUN(writes_kernel, out, numel);
        break;
    case PROBE_WRITES_BEFORE:
        RUN(writes_kernel, out, -1);
        break;
    case PROBE_WRITES_BEHIND_SHARED:
        RUN(writes_shared_kernel, out, static_cast<int64_t>(THREADS));
        break;
    case PROBE_WRITES_BEHIND_DYNAMIC:
        RUN(writes_dynamic_kernel, out, static_cast<int64_t>(16));
        break;
    case PROBE_MISALIGNED:
        RUN(misaligned_kernel, out);
        break;
    case PROBE_SHARED_LARGE:
        TESS_LAUNCH(misaligned_kernel, BLOCKS, THREADS, 49 << 10, s, out);
        break;
    case PROBE_NUMEL:
        break;
#undef RUN
    }
    return TESS_OK;
}

struct probe_struct {
    int64_t numel;
    const unsigned *hidden;
};

static void struct_kernel(unsigned *out, probe_struct p) { out[0] = *p.hidden; }

extern "C" tess_status emulation_probe_struct(unsigned *out, const unsigned *hidden, tess_stream *s)
{
    const probe_struct p = {1, hidden};
    TESS_LAUNCH(struct_kernel, 1, 1, 0, s, out, p);
    return TESS_OK;
}

static void static_kernel(unsigned *out)
{
    __shared__ unsigned word[4];
    out[blockIdx.x] = word[2];
    word[2] = 7;
}

extern "C" tess_status emulation_probe_static(unsigned *out, tess_stream *s)
{
    TESS_LAUNCH(static_kernel, BLOCKS, 1, 0, s, out);
    return TESS_OK;
}
