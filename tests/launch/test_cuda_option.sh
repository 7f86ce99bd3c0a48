#!/bin/bash
# The CMake option TESS_CUDA: OFF, and AUTO without a toolkit, configure the CPU part alone and say
# why; ON without one, and a value that is none, are refused with a way out.
set -u
work="$(mktemp -d /tmp/tessera-option-XXXXXX)"
trap 'rm -rf "$work"' EXIT
fail() {
    echo "failed: $1"
    cat "$work/log"
    exit 1
}
# name, wanted exit code (0 or 1), text in the output, options...
configure() {
    local name="$1" want="$2" text="$3" rc
    shift 3
    cmake -S "${TESS_SOURCE_DIR:?set by ctest}" -B "$work/$name" -DCMAKE_BUILD_TYPE=Release "$@" > "$work/log" 2>&1
    rc=$?
    [ "$rc" -eq "$want" ] || fail "$name: exit code $rc, expected $want"
    tr '\n' ' ' < "$work/log" | tr -s ' ' | grep -qF -- "$text" || fail "$name: no '$text'"
}
# No rule of the build names the CUDA part.
expect_cpu_alone() {
    ! cmake --build "$work/$1" --target help | grep -q tessera_cuda || fail "$1: builds the CUDA part"
}
hidden=-DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=TRUE

configure off 0 "CUDA: off by TESS_CUDA; the CPU part alone is built" -DTESS_CUDA=OFF
expect_cpu_alone off
configure auto 0 "CUDA: no CUDA toolkit was found (set CUDAToolkit_ROOT); the CPU part alone is built" "$hidden"
expect_cpu_alone auto
configure on 1 "TESS_CUDA=ON, but no CUDA toolkit was found (set CUDAToolkit_ROOT); install it or set TESS_CUDA=OFF" \
    -DTESS_CUDA=ON "$hidden"
configure other 1 "TESS_CUDA is 'MAYBE'; set AUTO, ON or OFF" -DTESS_CUDA=MAYBE
echo "4 configurations"
