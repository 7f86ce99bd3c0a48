/**
 * Instructions that C has no words for: tensor-core product, ldmatrix, cp.async, exp2, bf16 pairs.
 * sm_80 and later. The host emulation gives its own versions of the same functions.
 *
 * [Note: fragments] Lane l, g = l / 4, c = 2 (l % 4); a register holds two bf16, lower half first.
 *   A [16, 16]: a[0] (g, c..c+1), a[1] (g+8, c..), a[2] (g, c+8..), a[3] (g+8, c+8..)
 *   B [16, 8]:  b[0] (c..c+1, g), b[1] (c+8.., g)         (k, n)
 *   C [16, 8]:  d[0..1] (g, c..c+1), d[2..3] (g+8, c..c+1)
 * so two C tiles side by side, packed, are one A fragment.
 */
#pragma once

#include "kernels/cuda/launch_priv.cuh"

/** Let `kernel` have `nbytes` of dynamic shared memory. */
#define TESS_ALLOW_SHARED(kernel, nbytes)                                                          \
    TESS_CUDA_TRY(cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),                     \
                                       cudaFuncAttributeMaxDynamicSharedMemorySize,                \
                                       static_cast<int>(nbytes)))

/** Whether a block of the current device can have `nbytes` of shared memory: 163 KiB on sm_80, 227
 * on sm_90, but 99 on sm_86, sm_89 and sm_120 (the programming guide's table of technical
 * specifications). */
static inline bool tess_shared_fits(size_t nbytes)
{
    int device = 0, max = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&max, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) ==
               cudaSuccess &&
           nbytes <= static_cast<size_t>(max);
}

#ifdef TESS_EMULATE
#include "tests/emulation/mma_emulation.hpp"
#else

/** What lanes of the warp read before is read, what they wrote is there: votes and shuffles, at
 * which lanes meet too, order no memory. The emulation's lanes have done all before they meet, so
 * that it cannot show where this is missing. */
static __device__ __forceinline__ void tess_warp_fence(void) { __syncwarp(); }

static __device__ __forceinline__ uint32_t tess_shared_address(const void *p)
{
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

/** d += a b; fp32 accumulation, order of the 16 products up to the hardware. */
static __device__ __forceinline__ void tess_mma(float *d, const uint32_t *a, const uint32_t *b)
{
    /* volatile: the whole warp has to come here, and a plain asm may be moved into a branch */
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/** Four 8 x 8 matrices of 16-byte rows: lane l gives the address of row l % 8 of matrix l / 8, and
 * receives elements (l / 4, 2 (l % 4) ..) of each. */
static __device__ __forceinline__ void tess_ldmatrix(uint32_t *r, const uint16_t *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(tess_shared_address(row))
                 : "memory");
}

/** The same, each matrix transposed on the way. */
static __device__ __forceinline__ void tess_ldmatrix_trans(uint32_t *r, const uint16_t *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(tess_shared_address(row))
                 : "memory");
}

/** 16 bytes to shared memory, zeros when `has` is false (`src` is then not read). In effect for
 * this thread after the wait for its group, for others after a barrier too. */
static __device__ __forceinline__ void tess_cp_async_16(void *dst, const void *src, bool has)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(tess_shared_address(dst)), "l"(src), "r"(has ? 16 : 0)
                 : "memory");
}

/** 4 bytes, the same. */
static __device__ __forceinline__ void tess_cp_async_4(void *dst, const void *src, bool has)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :
                 : "r"(tess_shared_address(dst)), "l"(src), "r"(has ? 4 : 0)
                 : "memory");
}

/** Close the group of copies begun since the last call. */
static __device__ __forceinline__ void tess_cp_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/** All groups of this thread are done. */
static __device__ __forceinline__ void tess_cp_wait(void)
{
    asm volatile("cp.async.wait_group 0;" ::: "memory");
}

/** 2^x within 2^-22, results below 2^-126 are 0. */
static __device__ __forceinline__ float tess_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/** Two values rounded to nearest even, `lo` in the lower half. */
static __device__ __forceinline__ uint32_t tess_pack_bf16(float lo, float hi)
{
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(hi), "f"(lo));
    return pair;
}
#endif
