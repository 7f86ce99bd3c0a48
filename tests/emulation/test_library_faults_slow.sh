#!/usr/bin/env bash
# Tests of a device, its libraries and its collectives notice what they are there for: each fault in turn, over
# a CUDA part without CUDA (tests/emulation/fake_*.h, collectives_mpi.h), makes the program fail and say why.
set -uo pipefail
export TESSERA_CUDA_PLUGIN="${TESS_FAKE_CUDA:?set by ctest}"
programs="${TESS_BUILD_DIR:?set by ctest}/tests"
case_numel=0

fail() {
    echo "$*" >&2
    exit 1
}

# program, variable=value, part of what it says: it fails, for that reason. More words start it.
notices() {
    local program="$1" fault="$2" part="$3" text rc=0
    shift 3
    [ -x "$programs/cuda.$program" ] || fail "no program $programs/cuda.$program"
    text=$(env "$fault" timeout 300 "$@" "$programs/cuda.$program" 2>&1) || rc=$?
    [ "$rc" -ne 0 ] || fail "$program passes with $fault"
    [ "$rc" -ne 77 ] || fail "$program is skipped with $fault"
    [ "$rc" -ne 124 ] || fail "$program does not end with $fault"
    grep -qF -- "$part" <<< "$text" || fail "$program with $fault: no '$part' in:"$'\n'"${text: -2000}"
    case_numel=$((case_numel + 1))
}

f=FAKE_CUDA_FAULT
notices test_device $f=order "read behind the event: byte 0 of"
notices test_device $f=order "round: byte 0 of"
notices test_device $f=rows "byte 129 (row 0, column 128)"
notices test_device $f=zero "test_zero_keeps_its_neighbours"
notices test_device $f=copy:0:9 "an illegal memory access was encountered"
notices test_device_fault $f=none "kernel: not ok"
notices test_device_fault $f=none "copy: not ok"

notices test_gemm $f=kernel:gemm:wrong "C[0, 0] is"
notices test_gemm $f=kernel:gemm:element "test_gemm_plain_any_size_runs_where_it_lies"
notices test_gemm $f=kernel:gemm:unstable "difference at offset"
notices test_gemm $f=kernel:gemm:past "was overwritten"
notices test_gemm $f=kernel:gemm:error "illegal memory access"
notices test_gemm $f=unplanned "had not been planned"
notices test_gemm $f=takes "20 steps of planned products took"

for op in attention_forward attention_backward; do
    notices test_flash $f=kernel:$op:wrong ", exact "
    notices test_flash $f=kernel:$op:unstable "differs between two runs"
    notices test_flash $f=kernel:$op:past "was overwritten"
    notices test_attention $f=kernel:$op:wrong ", exact "
done
notices test_attention $f=kernel:attention_backward:unstable "has other bits than own kernels"
notices test_attention $f=takes "9 steps took"
notices test_attention TESS_TEST_CUDNN=1 "cuDNN should take forward: yes"

n=FAKE_CUDA_NCCL
notices test_nccl $n=wrong:0:0 "gather of 1 bytes: byte 0 is"
notices test_nccl $n=fail:0:0 "emulated failure: unhandled system error"
launch=(mpirun --oversubscribe -n 2)
notices test_comm_mpi $n=wrong:1:3 "not true: wrong" "${launch[@]}"
notices test_comm_mpi $n=fail:0:2 "rank 0: emulated collectives" "${launch[@]}"
notices test_comm_mpi $n=wrong:0:3 "not true: wrong" mpirun -n 1
echo "$case_numel faults noticed"
