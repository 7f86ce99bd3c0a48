#!/bin/bash
# Every source of kernels/cuda with a barrier stands in the list of a test that takes its barriers
# out one by one (barriers_check_reach), so that a new one cannot be forgotten.
set -u
cd "${TESS_SOURCE_DIR:?set by ctest}" || exit 1
listed=0
for source in kernels/cuda/*.cu kernels/cuda/*.cuh; do
    name="$(basename "$source")"
    grep -qE '__syncthreads\(\)|__syncwarp\(' "$source" || continue
    # Its one barrier is replaced where kernels are emulated, see tess_warp_fence().
    [ "$name" = mma_priv.cuh ] && continue
    grep -lF "\"$name\"" tests/emulation/test_*.c > /dev/null || {
        echo "$source has barriers, and no test of tests/emulation/ lists it"
        exit 1
    }
    listed=$((listed + 1))
done
[ "$listed" -ge 17 ] || { echo "only $listed sources with barriers were found"; exit 1; }
echo "$listed sources"
