#include "core/exact.h"

#include <math.h>

bool tess_exact_add(tess_exact *acc, double x)
{
    int limb_idx = 0;
    int64_t piece[TESS_EXACT_PIECE_NUMEL];
    if (!tess_exact_split(x, &limb_idx, piece))
        return false;
    for (int i = 0; i < TESS_EXACT_PIECE_NUMEL; i++)
        acc->limb[limb_idx + i] += piece[i];
    return true;
}

/* Bring every limb but the last into [0, 2^32); the last keeps the sign. */
void tess_exact_carry(tess_exact *acc)
{
    for (int i = 0; i + 1 < TESS_EXACT_LIMB_NUMEL; i++) {
        const int64_t low = acc->limb[i] & INT64_C(0xffffffff);
        acc->limb[i + 1] += (acc->limb[i] - low) / (INT64_C(1) << 32);
        acc->limb[i] = low;
    }
}

static int top_bit(const tess_exact *acc)
{
    for (int i = TESS_EXACT_LIMB_NUMEL - 1; i >= 0; i--)
        if (acc->limb[i] != 0)
            return 32 * i + 63 - __builtin_clzll((unsigned long long)acc->limb[i]);
    return -1;
}

static int get_bit(const tess_exact *acc, int bit)
{
    const int limb_idx = TESS_MIN(bit / 32, TESS_EXACT_LIMB_NUMEL - 1);
    return (int)((uint64_t)acc->limb[limb_idx] >> (bit - 32 * limb_idx) & 1);
}

static bool any_below(const tess_exact *acc, int bit)
{
    for (int i = 0; i < bit; i++)
        if (get_bit(acc, i))
            return true;
    return false;
}

double tess_exact_round(const tess_exact *acc)
{
    tess_exact sum = *acc;
    tess_exact_carry(&sum);
    const bool is_negative = sum.limb[TESS_EXACT_LIMB_NUMEL - 1] < 0;
    if (is_negative) {
        for (int i = 0; i < TESS_EXACT_LIMB_NUMEL; i++)
            sum.limb[i] = -sum.limb[i];
        tess_exact_carry(&sum);
    }
    const int top = top_bit(&sum);
    if (top < 0)
        return 0.0;
    const int low = TESS_MAX(top - 52, 0);
    uint64_t significand = 0;
    for (int bit = top; bit >= low; bit--)
        significand = significand << 1 | (uint64_t)get_bit(&sum, bit);
    if (low > 0 && get_bit(&sum, low - 1) && ((significand & 1) || any_below(&sum, low - 1)))
        significand++;
    const double magnitude = ldexp((double)significand, low - 1074);
    return is_negative ? -magnitude : magnitude;
}
