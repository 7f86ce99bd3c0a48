/*
 * [Note: which path is best] The CPU's feature bits say which paths it has. Where it has bf16
 * products, they are not always the fastest: Intel's cores that also carry a matrix unit run
 * vdpbf16ps at a quarter of the rate of an fp32 multiply-add (measured on family 6 model 207:
 * 2.2 cycles against 0.53), so there the fp32 kernels on widened operands are twice as fast. The
 * choice depends on the vendor alone, never on a timing, because the path decides bits.
 */
#include <cpuid.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu_priv.h"

/* -1: not selected yet. Written once by tess_kernels_cpu_select before any kernel runs. */
static atomic_int selected_path = -1;

static const char *const path_names[] = {
    [TESS_CPU_PORTABLE] = "portable",
    [TESS_CPU_AVX2] = "avx2",
    [TESS_CPU_AVX512] = "avx512",
    [TESS_CPU_AVX512_BF16] = "avx512_bf16",
};

const char *tess_cpu_path_name(tess_cpu_path path)
{
    return (unsigned)path < (unsigned)TESS_NELEM(path_names) ? path_names[path] : "unknown";
}

static bool has_avx512_bf16(void)
{
    unsigned eax = 0;
    unsigned ebx = 0;
    unsigned ecx = 0;
    unsigned edx = 0;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & (1U << 5)) != 0;
}

static bool has_slow_bf16(void)
{
    unsigned eax = 0;
    unsigned ebx = 0;
    unsigned ecx = 0;
    unsigned edx = 0;
    if (__get_cpuid(0, &eax, &ebx, &ecx, &edx) == 0)
        return false;
    return ebx == signature_INTEL_ebx && ecx == signature_INTEL_ecx && edx == signature_INTEL_edx;
}

static tess_cpu_path detect_highest(void)
{
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return TESS_CPU_PORTABLE;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
        return TESS_CPU_AVX2;
    return has_avx512_bf16() ? TESS_CPU_AVX512_BF16 : TESS_CPU_AVX512;
}

static tess_cpu_path detect_fastest(void)
{
    const tess_cpu_path highest = detect_highest();
    return highest == TESS_CPU_AVX512_BF16 && has_slow_bf16() ? TESS_CPU_AVX512 : highest;
}

/* cpuid leaves a virtual machine, so it is asked once; every thread would store the same. */
static tess_cpu_path cached(atomic_int *cache, tess_cpu_path (*detect)(void))
{
    int path = atomic_load_explicit(cache, memory_order_relaxed);
    if (path < 0) {
        path = (int)detect();
        atomic_store_explicit(cache, path, memory_order_relaxed);
    }
    return (tess_cpu_path)path;
}

tess_cpu_path tess_cpu_path_highest(void)
{
    static atomic_int cache = -1;
    return cached(&cache, detect_highest);
}

tess_cpu_path tess_cpu_path_best(void)
{
    static atomic_int cache = -1;
    const tess_cpu_path highest = tess_cpu_path_highest();
    const char *name = getenv("TESSERA_CPU_PATH");
    for (int i = 0; name != NULL && i <= (int)highest; i++) {
        if (strcmp(name, path_names[i]) == 0)
            return (tess_cpu_path)i;
    }
    return cached(&cache, detect_fastest);
}

static bool is_usable_name(const char *name, tess_cpu_path highest)
{
    for (int i = 0; i <= (int)highest; i++) {
        if (strcmp(name, path_names[i]) == 0)
            return true;
    }
    return false;
}

tess_status tess_kernels_cpu_select(tess_cpu_path path)
{
    TESS_CHECK((unsigned)path < (unsigned)TESS_NELEM(path_names), TESS_E_ARG,
               "instruction path number %d is not in the table", (int)path);
    const tess_cpu_path highest = tess_cpu_path_highest();
    TESS_CHECK(path <= highest, TESS_E_UNSUPPORTED,
               "instruction path '%s': this CPU has at most '%s'; choose that or a lower one",
               path_names[path], path_names[highest]);
    const char *name = getenv("TESSERA_CPU_PATH");
    TESS_CHECK(name == NULL || is_usable_name(name, highest), TESS_E_UNSUPPORTED,
               "TESSERA_CPU_PATH is '%s': expected portable, avx2, avx512 or avx512_bf16, at most "
               "'%s' on this CPU",
               name, path_names[highest]);
    const int current = atomic_load(&selected_path);
    TESS_CHECK(current < 0 || current == (int)path, TESS_E_STATE,
               "instruction path '%s' is already in use; it cannot become '%s' in this process",
               tess_cpu_path_name((tess_cpu_path)current), path_names[path]);
    atomic_store(&selected_path, (int)path);
    return TESS_OK;
}

tess_cpu_path tess_cpu_path_current(void)
{
    const int current = atomic_load_explicit(&selected_path, memory_order_relaxed);
    return current >= 0 ? (tess_cpu_path)current : tess_cpu_path_best();
}

void tess_cpu_path_reset(void) { atomic_store(&selected_path, -1); }
