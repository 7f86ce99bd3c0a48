#include "kernels/cpu/ops_priv.h"

static int override_path = -1;

tess_cpu_path tess_cpu_ops_path(void)
{
    if (override_path >= 0)
        return (tess_cpu_path)override_path;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return __builtin_cpu_supports("avx512bf16") ? TESS_CPU_AVX512_BF16 : TESS_CPU_AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return TESS_CPU_AVX2;
    return TESS_CPU_PORTABLE;
}

void tess_cpu_ops_path_override(int path) { override_path = path; }

const tess_cpu_rows *tess_cpu_rows_get(void)
{
    switch (tess_cpu_ops_path()) {
    case TESS_CPU_AVX512_BF16:
    case TESS_CPU_AVX512:
        return &tess_cpu_rows_avx512;
    case TESS_CPU_AVX2:
        return &tess_cpu_rows_avx2;
    case TESS_CPU_PORTABLE:
        break;
    }
    return &tess_cpu_rows_portable;
}

int tess_cpu_part_numel(const tess_stream *s, int64_t cost_numel)
{
    enum { WORTH_A_THREAD_NUMEL = 16384 };
    const int thread_numel = tess_pool_thread_numel(s->pool);
    const int64_t worth = cost_numel / WORTH_A_THREAD_NUMEL;
    return worth >= thread_numel ? thread_numel : (int)TESS_MAX(worth, 1);
}
