#include "kernels/cpu/ops_priv.h"

const tess_cpu_rows *tess_cpu_rows_get(void)
{
    switch (tess_cpu_path_current()) {
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
