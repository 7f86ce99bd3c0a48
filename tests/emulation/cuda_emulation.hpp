/**
 * What a kernel file sees instead of the CUDA headers: the emulation's half that is compiled with
 * kernels (kernels/cuda/launch_priv.cuh includes it under TESS_EMULATE). No CUDA header is needed.
 *
 * [Note: static shared memory] Plain `__shared__` variables lie in one linker section that is
 * poisoned before each block; g++ ignores the section inside templates, so templates declare shared
 * arrays with TESS_SHARED or TESS_DYN_SHARED, which also put canaries around them.
 *
 * [Note: tensor cores] Instructions of a whole warp (mma, ldmatrix) are small functions in the
 * kernel sources; their emulations stand in tests/emulation/cuda_tensor_emulation.hpp and are built
 * on warp_collective().
 */
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "core/half.h"
#include "core/stream.h"
#include "tests/emulation/emulation.h"

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define TESS_EMULATION_VECTOR(T, name, align)                                                      \
    struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                             \
    struct alignas(align) name##4 { T x, y, z, w; };                                               \
    inline name##2 make_##name##2(T x, T y) { return name##2 {x, y}; }                             \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return name##4 {x, y, z, w}; }
TESS_EMULATION_VECTOR(float, float, 16)
TESS_EMULATION_VECTOR(int, int, 16)
TESS_EMULATION_VECTOR(unsigned, uint, 16)
TESS_EMULATION_VECTOR(unsigned short, ushort, 8)
#undef TESS_EMULATION_VECTOR

struct alignas(16) double2 {
    double x, y;
};

namespace tess_emulation
{

/** A place in a kernel where threads meet. One object per call site (and instantiation). */
struct site {
    const char *kind, *file;
    int line;
    int idx; /* in the table of barriers, -1: not there yet */
};

struct fiber;

/** The running thread and its launch, as kernels read them. */
struct place {
    uint3 thread, block;
    dim3 block_dim, grid_dim;
};
extern place here;

void block_barrier(site *s);
/** Sum of `value` over the block, received by all its threads. */
int block_sum(site *s, int value);
/** `thread_numel` threads of the block meet at barrier `id`. */
void named_barrier(site *s, int id, int thread_numel);

/** Computes the results of all lanes: operand[l] is what lane l gave, NULL outside the mask. */
typedef void (*warp_body)(void *const operand[32], unsigned mask);

/**
 * Lanes of `mask` meet, each with the address of its operands and results on its own stack; the
 * last to arrive runs `body` for all. Lanes that come with another kind, mask, place or body are an
 * error.
 */
void warp_collective(site *s, unsigned mask, void *operand, warp_body body);
unsigned lane_idx();

/** Fails the launch when a vector access at `p` is not aligned to its size. */
void check_aligned(const void *p, size_t nbytes);

void *dynamic_shared();
/** The block's shared array behind `key`; the first thread to ask makes it. */
void *static_shared(const void *key, size_t nbytes);

/** Start a launch; arguments are checked before. */
typedef void (*thread_body)(void *closure);
struct launch_args {
    const char *kernel;
    const void *entry; /* address of the kernel, for its attributes */
    dim3 grid, block;
    size_t shared_nbytes;
    thread_body body;
    void *closure;
};
TESS_MUST_CHECK tess_status launch(const launch_args &a);
/** @return TESS_E_STATE `p` is not NULL and not device memory */
TESS_MUST_CHECK tess_status check_pointer(const char *kernel, int arg_idx, const void *p);
/** Look for host addresses among the words of a struct passed by value. */
TESS_MUST_CHECK tess_status check_struct(const char *kernel, int arg_idx, const void *value,
                                         size_t nbytes);
tess_status set_shared_max(const void *entry, size_t nbytes);
/** Most bytes of shared memory that a block can have. */
size_t shared_max();
int64_t block_max();

template <typename T> tess_status check_arg(const char *kernel, int arg_idx, const T &value)
{
    if constexpr (std::is_pointer_v<T>)
        return check_pointer(kernel, arg_idx, value);
#if __has_builtin(__builtin_clear_padding)
    if constexpr (std::is_class_v<T>) {
        T copy = value;
        __builtin_clear_padding(&copy); /* or half a number and garbage make an address */
        return check_struct(kernel, arg_idx, &copy, sizeof copy);
    }
#endif
    return TESS_OK;
}

template <typename... P> struct closure {
    void (*kernel)(P...);
    std::tuple<std::remove_const_t<P>...> args;
};

template <typename... P> void run_thread(void *p)
{
    const auto *c = static_cast<const closure<P...> *>(p);
    std::apply(c->kernel, c->args);
}

template <typename... P, typename... A>
tess_status launch_kernel(const char *name, dim3 grid, dim3 block, size_t shared_nbytes,
                          void (*kernel)(P...), A &&...args)
{
    closure<P...> c = {kernel, {std::forward<A>(args)...}};
    tess_status st = TESS_OK;
    int arg_idx = 0;
    std::apply(
        [&](const auto &...value) {
            ((st = st == TESS_OK ? check_arg(name, arg_idx++, value) : st), ...);
        },
        c.args);
    if (st != TESS_OK)
        return st;
    const launch_args a = {
        name, reinterpret_cast<const void *>(kernel), grid, block, shared_nbytes, run_thread<P...>,
        &c};
    return launch(a);
}

/** What each lane gives to and takes from a shuffle. */
template <typename T> struct shuffle_operand {
    T value, result;
    int src_lane;
};

template <typename T> void shuffle_body(void *const operand[32], unsigned mask)
{
    for (int lane = 0; lane < 32; lane++) {
        auto *o = static_cast<shuffle_operand<T> *>(operand[lane]);
        if (o == nullptr)
            continue;
        /* A source outside the mask has no defined value: poison. */
        if (mask >> o->src_lane & 1)
            o->result = static_cast<shuffle_operand<T> *>(operand[o->src_lane])->value;
        else
            std::memset(&o->result, 0xCB, sizeof o->result);
    }
}

template <typename T> T shuffle(site *s, unsigned mask, T value, int src_lane)
{
    shuffle_operand<T> o = {value, value, src_lane};
    warp_collective(s, mask, &o, shuffle_body<T>);
    return o.result;
}

template <typename T> T shuffle_xor(site *s, unsigned mask, T value, int distance, int width = 32)
{
    const int lane = static_cast<int>(lane_idx()), src = lane ^ distance;
    return shuffle(s, mask, value, src / width == lane / width ? src : lane);
}

template <typename T> T shuffle_down(site *s, unsigned mask, T value, unsigned d, int width = 32)
{
    const int lane = static_cast<int>(lane_idx()), src = lane + static_cast<int>(d);
    return shuffle(s, mask, value, src / width == lane / width ? src : lane);
}

template <typename T> T shuffle_up(site *s, unsigned mask, T value, unsigned d, int width = 32)
{
    const int lane = static_cast<int>(lane_idx()), distance = static_cast<int>(d);
    return shuffle(s, mask, value, lane % width >= distance ? lane - distance : lane);
}

template <typename T> T shuffle_idx(site *s, unsigned mask, T value, int src, int width = 32)
{
    const int lane = static_cast<int>(lane_idx());
    return shuffle(s, mask, value, lane / width * width + (src & (width - 1)));
}

inline dim3 extent(dim3 e) { return e; }
template <typename T, typename = std::enable_if_t<std::is_integral_v<T>>> dim3 extent(T numel)
{
    return dim3(static_cast<unsigned>(numel));
}

unsigned ballot(site *s, unsigned mask, bool predicate);
void warp_barrier(site *s, unsigned mask);

} // namespace tess_emulation

#define TESS_EMULATION_SITE(kind)                                                                  \
    ({                                                                                             \
        static ::tess_emulation::site site_ = {kind, __FILE__, __LINE__, -1};                      \
        &site_;                                                                                    \
    })

#define __global__
#define __device__
#define __host__
#define __shared__ static __attribute__((section("tess_shared")))
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __grid_constant__

#define threadIdx (::tess_emulation::here.thread)
#define blockIdx (::tess_emulation::here.block)
#define blockDim (::tess_emulation::here.block_dim)
#define gridDim (::tess_emulation::here.grid_dim)
#define warpSize 32

#define __syncthreads() ::tess_emulation::block_barrier(TESS_EMULATION_SITE("__syncthreads"))
#define __syncthreads_count(p)                                                                     \
    ::tess_emulation::block_sum(TESS_EMULATION_SITE("__syncthreads_count"), (p) ? 1 : 0)
#define __syncthreads_or(p)                                                                        \
    (::tess_emulation::block_sum(TESS_EMULATION_SITE("__syncthreads_or"), (p) ? 1 : 0) != 0)
#define __syncthreads_and(p)                                                                       \
    (::tess_emulation::block_sum(TESS_EMULATION_SITE("__syncthreads_and"), (p) ? 0 : 1) == 0)
#define TESS_EMULATION_FULL_MASK 0xffffffffu
inline unsigned tess_emulation_mask(unsigned mask = TESS_EMULATION_FULL_MASK) { return mask; }
#define __syncwarp(...)                                                                            \
    ::tess_emulation::warp_barrier(TESS_EMULATION_SITE("__syncwarp"),                              \
                                   tess_emulation_mask(__VA_ARGS__))
#define __shfl_sync(...)                                                                           \
    ::tess_emulation::shuffle_idx(TESS_EMULATION_SITE("__shfl_sync"), __VA_ARGS__)
#define __shfl_xor_sync(...)                                                                       \
    ::tess_emulation::shuffle_xor(TESS_EMULATION_SITE("__shfl_xor_sync"), __VA_ARGS__)
#define __shfl_down_sync(...)                                                                      \
    ::tess_emulation::shuffle_down(TESS_EMULATION_SITE("__shfl_down_sync"), __VA_ARGS__)
#define __shfl_up_sync(...)                                                                        \
    ::tess_emulation::shuffle_up(TESS_EMULATION_SITE("__shfl_up_sync"), __VA_ARGS__)
#define __ballot_sync(mask, p)                                                                     \
    ::tess_emulation::ballot(TESS_EMULATION_SITE("__ballot_sync"), (mask), (p) ? true : false)
#define __any_sync(mask, p) (__ballot_sync(mask, p) != 0)
#define __all_sync(mask, p) (__ballot_sync(mask, !(p)) == 0)

template <typename T> T __ldg(const T *p) { return *p; }
template <typename T> T __ldcs(const T *p) { return *p; }
template <typename T> T __ldcg(const T *p) { return *p; }
template <typename T> void __stcs(T *p, T value) { *p = value; }
template <typename T> void __stcg(T *p, T value) { *p = value; }

/* One thread runs at a time, so plain code is atomic. */
template <typename T> T atomicAdd(T *p, std::common_type_t<T> value)
{
    const T old = *p;
    *p = static_cast<T>(old + value);
    return old;
}
template <typename T> T atomicMin(T *p, std::common_type_t<T> value)
{
    const T old = *p;
    *p = value < old ? value : old;
    return old;
}
template <typename T> T atomicMax(T *p, std::common_type_t<T> value)
{
    const T old = *p;
    *p = value > old ? value : old;
    return old;
}
template <typename T> T atomicExch(T *p, std::common_type_t<T> value)
{
    return std::exchange(*p, value);
}
template <typename T> T atomicCAS(T *p, std::common_type_t<T> expected, std::common_type_t<T> value)
{
    const T old = *p;
    *p = old == expected ? value : old;
    return old;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
/** Bytes of y and x, x the lower four, by the four low hex digits of `selector`; no sign bits. */
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector)
{
    const unsigned long long bytes = static_cast<unsigned long long>(y) << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; i++)
        r |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    return r;
}
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename To, typename From> To tess_emulation_bits(From x)
{
    static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
    To out;
    std::memcpy(&out, &x, sizeof out);
    return out;
}
inline float __uint_as_float(unsigned x) { return tess_emulation_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return tess_emulation_bits<unsigned>(x); }
inline float __int_as_float(int x) { return tess_emulation_bits<float>(x); }
inline int __float_as_int(float x) { return tess_emulation_bits<int>(x); }
inline double __longlong_as_double(long long x) { return tess_emulation_bits<double>(x); }
inline long long __double_as_longlong(double x) { return tess_emulation_bits<long long>(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }

/** bf16 as the device rounds it: nearest even, NaN to 0x7fff. */
struct __nv_bfloat16 {
    unsigned short x;
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
inline __nv_bfloat16 __float2bfloat16_rn(float v)
{
    const unsigned u = __float_as_uint(v);
    if (v != v)
        return {0x7fff};
    return {static_cast<unsigned short>((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
}
inline float __bfloat162float(__nv_bfloat16 v)
{
    return __uint_as_float(static_cast<unsigned>(v.x) << 16);
}
inline __nv_bfloat162 __floats2bfloat162_rn(float lo, float hi)
{
    return {__float2bfloat16_rn(lo), __float2bfloat16_rn(hi)};
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 v) { return v.x; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short v) { return {v}; }

/** f16 to nearest even. */
struct alignas(4) __half2 {
    unsigned short x, y;
};
inline __half2 __floats2half2_rn(float lo, float hi)
{
    return {tess_f16_from_f32(lo), tess_f16_from_f32(hi)};
}
inline float2 __half22float2(__half2 v) { return {tess_f16_to_f32(v.x), tess_f16_to_f32(v.y)}; }

/* The few runtime calls of launchers; a launch is done when it returns. */
typedef tess_stream *cudaStream_t;
typedef tess_status cudaError_t;
constexpr cudaError_t cudaSuccess = TESS_OK;
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline cudaStream_t tess_cuda_stream(const tess_stream *s) { return const_cast<tess_stream *>(s); }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return TESS_OK; }
inline cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute, int nbytes)
{
    return tess_emulation::set_shared_max(kernel, static_cast<size_t>(nbytes));
}
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };
inline cudaError_t cudaGetDevice(int *device)
{
    *device = 0;
    return TESS_OK;
}
inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr, int)
{
    *value = static_cast<int>(tess_emulation::shared_max());
    return TESS_OK;
}
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
inline cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t nbytes, cudaMemcpyKind kind,
                                   cudaStream_t)
{
    return kind == cudaMemcpyHostToDevice ? tess_emulation_write(dst, src, nbytes)
                                          : tess_emulation_read(dst, src, nbytes);
}
template <typename T>
cudaError_t cudaMemcpyFromSymbolAsync(void *dst, const T &symbol, size_t nbytes, size_t offset,
                                      cudaMemcpyKind, cudaStream_t)
{
    std::memcpy(dst, reinterpret_cast<const char *>(&symbol) + offset, nbytes);
    return TESS_OK;
}

#define TESS_CUDA_TRY(call) TESS_TRY(call)

#define TESS_LAUNCH(kernel, grid, block, shared_nbytes, s, ...)                                    \
    do {                                                                                           \
        (void)(s);                                                                                 \
        TESS_TRY(::tess_emulation::launch_kernel(#kernel, ::tess_emulation::extent(grid),          \
                                                 ::tess_emulation::extent(block), (shared_nbytes), \
                                                 (kernel), __VA_ARGS__));                          \
    } while (0)

#define TESS_ALIGNED(p, nbytes) ::tess_emulation::check_aligned((p), (nbytes))

#define TESS_DYN_SHARED(T, name) T *name = static_cast<T *>(::tess_emulation::dynamic_shared())

#define TESS_SHARED(T, name, numel)                                                                \
    T *const name = static_cast<T *>(({                                                            \
        static char key_;                                                                          \
        ::tess_emulation::static_shared(&key_, (numel) * sizeof(T));                               \
    }))
