/**
 * Host versions of the instructions of kernels/cuda/mma_priv.cuh, with what a device would not
 * tell: copies that are used before they are waited for, and rows of ldmatrix that share a bank.
 *
 * [Note: order of products] tess_mma() adds the 16 products of an element in ascending k, one fp32
 * rounding each, to the value that was there. Tensor cores add them in an order, and with an
 * alignment of exponents, that is not documented; results are compared by bounds, never bit by bit.
 *
 * [Note: late copies] cp.async only notes what is to be copied and poisons the destination at once;
 * the bytes arrive in the wait. So a read before the wait, or before the barrier after it, sees
 * NaN, and a refill of a buffer that another warp still reads destroys what that warp reads.
 */
#pragma once

#include <vector>

#include "tests/emulation/cuda_emulation.hpp"

namespace tess_emulation
{

/** What went wrong without showing in results; a test resets and reads it. */
struct tensor_faults {
    int64_t misaligned;     /* addresses of ldmatrix or cp.async off their size */
    int64_t bank_conflicts; /* pairs of rows of one 8 x 8 matrix on the same banks */
    int64_t lost_copies;    /* still pending when their block was over */
    int64_t mma_numel, ldmatrix_numel;
};
inline tensor_faults tensor;

struct late_copy {
    void *dst;
    const void *src;
    size_t nbytes;
    bool has;
};

/** Copies of one thread: committed ones come first. */
struct late_copies {
    std::vector<late_copy> list;
    size_t committed_numel = 0;
    uint3 block = {};
};
inline std::vector<late_copies> copies_of_thread;

/** Forget what is pending; adds it to the lost copies. */
inline void copies_clear(late_copies &c)
{
    tensor.lost_copies += static_cast<int64_t>(c.list.size());
    c.list.clear();
    c.committed_numel = 0;
}

inline late_copies &copies_here()
{
    const size_t thread =
        (here.thread.z * here.block_dim.y + here.thread.y) * here.block_dim.x + here.thread.x;
    if (copies_of_thread.size() <= thread)
        copies_of_thread.resize(thread + 1);
    late_copies &c = copies_of_thread[thread];
    const bool is_same_block =
        c.block.x == here.block.x && c.block.y == here.block.y && c.block.z == here.block.z;
    if (!is_same_block && !c.list.empty())
        copies_clear(c);
    c.block = here.block;
    return c;
}

/** After the last launch of a test: what happened since the last call. */
inline tensor_faults tensor_faults_take()
{
    for (late_copies &c : copies_of_thread)
        copies_clear(c);
    const tensor_faults taken = tensor;
    tensor = {};
    return taken;
}

inline void copy_later(void *dst, const void *src, size_t nbytes, bool has)
{
    if (reinterpret_cast<uintptr_t>(dst) % nbytes != 0 ||
        (has && reinterpret_cast<uintptr_t>(src) % nbytes != 0))
        tensor.misaligned++;
    std::memset(dst, 0xFF, nbytes);
    copies_here().list.push_back({dst, src, nbytes, has});
}

inline float bf16_value(uint32_t bits) { return __uint_as_float(bits << 16); }

struct mma_operand {
    float *d;
    const uint32_t *a, *b;
};

/* Fragments: see [Note: fragments] in mma_priv.cuh. */
inline void mma_body(void *const operand[32], unsigned)
{
    float a[16][16], b[8][16];
    for (int lane = 0; lane < 32; lane++) {
        const auto *o = static_cast<const mma_operand *>(operand[lane]);
        const int g = lane / 4, c = lane % 4 * 2;
        for (int e = 0; e < 2; e++) {
            for (int r = 0; r < 4; r++)
                a[g + r % 2 * 8][c + r / 2 * 8 + e] = bf16_value(o->a[r] >> 16 * e & 0xffff);
            for (int r = 0; r < 2; r++)
                b[g][c + r * 8 + e] = bf16_value(o->b[r] >> 16 * e & 0xffff);
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        float *const d = static_cast<const mma_operand *>(operand[lane])->d;
        for (int e = 0; e < 4; e++) {
            const float *const row = a[lane / 4 + e / 2 * 8], *const col = b[lane % 4 * 2 + e % 2];
            float sum = d[e];
            for (int k = 0; k < 16; k++)
                sum = sum + row[k] * col[k];
            d[e] = sum;
        }
    }
    tensor.mma_numel++;
}

struct ldmatrix_operand {
    uint32_t *r;
    const uint16_t *row;
};

/* The 8 rows of each matrix are read at once: 16 bytes each, 128 bytes of banks. */
inline void ldmatrix_check(void *const operand[32])
{
    for (int matrix = 0; matrix < 4; matrix++) {
        unsigned used = 0;
        for (int i = 0; i < 8; i++) {
            const auto *o = static_cast<const ldmatrix_operand *>(operand[8 * matrix + i]);
            const uintptr_t address = reinterpret_cast<uintptr_t>(o->row);
            const unsigned bank = 1u << (address / 16 % 8);
            tensor.misaligned += address % 16 != 0;
            tensor.bank_conflicts += (used & bank) != 0;
            used |= bank;
        }
    }
    tensor.ldmatrix_numel++;
}

template <bool IS_TRANSPOSED> void ldmatrix_body(void *const operand[32], unsigned)
{
    ldmatrix_check(operand);
    for (int lane = 0; lane < 32; lane++)
        for (int matrix = 0; matrix < 4; matrix++) {
            uint32_t word = 0;
            for (int e = 0; e < 2; e++) {
                const int g = lane / 4, c = lane % 4 * 2 + e;
                const int row = IS_TRANSPOSED ? c : g, col = IS_TRANSPOSED ? g : c;
                const void *from = operand[8 * matrix + row];
                const uint32_t bits = static_cast<const ldmatrix_operand *>(from)->row[col];
                word |= bits << 16 * e;
            }
            static_cast<const ldmatrix_operand *>(operand[lane])->r[matrix] = word;
        }
}

} // namespace tess_emulation

inline void tess_warp_fence() {}

inline void tess_mma(float *d, const uint32_t *a, const uint32_t *b)
{
    tess_emulation::mma_operand o = {d, a, b};
    tess_emulation::warp_collective(TESS_EMULATION_SITE("mma.sync"), 0xffffffffu, &o,
                                    tess_emulation::mma_body);
}

inline void tess_ldmatrix(uint32_t *r, const uint16_t *row)
{
    tess_emulation::ldmatrix_operand o = {r, row};
    tess_emulation::warp_collective(TESS_EMULATION_SITE("ldmatrix"), 0xffffffffu, &o,
                                    tess_emulation::ldmatrix_body<false>);
}

inline void tess_ldmatrix_trans(uint32_t *r, const uint16_t *row)
{
    tess_emulation::ldmatrix_operand o = {r, row};
    tess_emulation::warp_collective(TESS_EMULATION_SITE("ldmatrix.trans"), 0xffffffffu, &o,
                                    tess_emulation::ldmatrix_body<true>);
}

inline void tess_cp_async_16(void *dst, const void *src, bool has)
{
    tess_emulation::copy_later(dst, src, 16, has);
}

inline void tess_cp_async_4(void *dst, const void *src, bool has)
{
    tess_emulation::copy_later(dst, src, 4, has);
}

inline void tess_cp_commit()
{
    tess_emulation::late_copies &c = tess_emulation::copies_here();
    c.committed_numel = c.list.size();
}

inline void tess_cp_wait()
{
    tess_emulation::late_copies &c = tess_emulation::copies_here();
    for (size_t i = 0; i < c.committed_numel; i++) {
        const tess_emulation::late_copy &copy = c.list[i];
        if (copy.has)
            std::memcpy(copy.dst, copy.src, copy.nbytes);
        else
            std::memset(copy.dst, 0, copy.nbytes);
    }
    c.list.erase(c.list.begin(), c.list.begin() + static_cast<ptrdiff_t>(c.committed_numel));
    c.committed_numel = 0;
}

inline float tess_exp2(float x)
{
    const float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}

inline uint32_t tess_pack_bf16(float lo, float hi)
{
    return static_cast<uint32_t>(__float2bfloat16_rn(lo).x) |
           static_cast<uint32_t>(__float2bfloat16_rn(hi).x) << 16;
}
