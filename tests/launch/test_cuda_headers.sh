#!/bin/bash
# Headers of NCCL and cuDNN that are too old for what is used leave their part out of a build with CUDA, and the
# configuration says so; those that are new enough are taken beside them.
set -u
work="$(mktemp -d /tmp/tessera-headers-XXXXXX)"
trap 'rm -rf "$work"' EXIT
fail() {
    echo "failed: $1"
    cat "$work/log"
    exit 1
}
nvcc=$(sed -n 's/^CMAKE_CUDA_COMPILER:[A-Z]*=//p' "${TESS_BUILD_DIR:?set by ctest}/CMakeCache.txt")
if [ ! -x "$nvcc" ]; then
    echo "skipped: this build has no CUDA toolkit"
    exit 77
fi
# A folder with headers that state a version, as far as the configuration reads them.
headers() { # FOLDER MAJOR MINOR PATCH
    mkdir -p "$work/$1/include"
    printf '#define %s\n' "NCCL_MAJOR $2" "NCCL_MINOR $3" "NCCL_PATCH $4" > "$work/$1/include/nccl.h"
    printf '#define %s\n' "CUDNN_MAJOR $2" "CUDNN_MINOR $3" "CUDNN_PATCHLEVEL $4" \
        > "$work/$1/include/cudnn_version.h"
    : > "$work/$1/include/cudnn.h"
}
# The lines that a configuration must say.
configure() { # NCCL_FOLDER CUDNN_FOLDER LINE...
    local nccl=$1 cudnn=$2 line
    shift 2
    cmake -S "${TESS_SOURCE_DIR:?set by ctest}" -B "$work/build-$nccl-$cudnn" -DCMAKE_BUILD_TYPE=Release \
        -DTESS_CUDA=ON -DCUDAToolkit_ROOT="${nvcc%/bin/nvcc}" -DNCCL_ROOT="$work/$nccl" \
        -DCUDNN_ROOT="$work/$cudnn" > "$work/log" 2>&1 || fail "$nccl, $cudnn: exit code $?"
    for line in "$@"; do
        grep -qF -- "$line" "$work/log" || fail "$nccl, $cudnn: no '$line'"
    done
}
headers old-nccl 2 26 5
headers old-cudnn 9 10 1
headers new 100 0 0
configure old-nccl new \
    "NCCL: the header in $work/old-nccl/include is of version 2.26.5 (set NCCL_ROOT to 2.27 or newer)" \
    "cuDNN: header 100.0.0 in $work/new/include"
configure new old-cudnn \
    "cuDNN: the header in $work/old-cudnn/include is of version 9.10.1 (set CUDNN_ROOT to 9.10.2 or newer)" \
    "NCCL: header 100.0.0 in $work/new/include"
echo "2 configurations"
