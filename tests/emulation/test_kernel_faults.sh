#!/usr/bin/env bash
# Tests of kernels on a device notice a broken one: each op of the table in turn gives a wrong element, and
# the program whose cases have that op must fail and say where. Over a CUDA part without CUDA, whose kernels break by
# name (tests/emulation/fake_kernels.h); products and attention have tests of their own.
set -uo pipefail
export TESSERA_CUDA_PLUGIN="${TESS_FAKE_CUDA:?set by ctest}"
programs="${TESS_BUILD_DIR:?set by ctest}/tests"
ranges="${TESS_SOURCE_DIR:?set by ctest}/tests/emulation/emu_ranges.h"
if [ ! -x "$programs/cuda.test_kernels" ]; then
    echo "skipped: needs $programs/cuda.test_kernels and the others of its kind"
    exit 77
fi

fail() {
    echo "$*" >&2
    exit 1
}

# program, fault: it fails; its first line of error in $said.
breaks() {
    local rc=0 text
    text=$(FAKE_CUDA_FAULT="kernel:$2" "$programs/cuda.$1" 2>&1) || rc=$?
    said=$(grep -m 1 "ERROR: \|error: \|has no kernels" <<< "$text")
    [ "$rc" -ne 0 ] && [ "$rc" -ne 77 ]
}

# list: the ops of a list of emu_ranges.h.
ops_of() {
    sed -n "/^#define $1(X)/,/^\$/p" "$ranges" | grep -oE "X\([a-z0-9_]+," | tr -d 'X(,'
}

# program, ops: a wrong element of each shows, named.
notices() {
    local program="$1" op
    shift
    for op in "$@"; do
        breaks "$program" "$op:element" || fail "$program passes although '$op' gives a wrong element"
        [[ "$said" =~ \[[0-9]+\]\ is|differ ]] || fail "$program, $op: '$said' does not say which element"
        tested+=("$op")
    done
}

tested=()
notices test_kernels swiglu_forward swiglu_backward add add_bias sum_rows dropout row_norm dora_forward dora_backward \
    cast fold fold_pieces square_norm sum exact_add adamw
notices test_kernels_rows rmsnorm_forward rmsnorm_backward rope cross_entropy
notices test_kernels_nf4 quantize embedding_forward embedding_backward
notices test_kernels_codec dequantize
notices test_optimizers lion adamw_8bit schedule_free blend prodigy_measure prodigy_apply adafactor_most adafactor_sum \
    adafactor_factor adafactor_size adafactor_apply muon_momentum muon_apply scale
mapfile -t ops < <(ops_of EMU_MODULATED_LIST)
notices test_kernels_modulated "${ops[@]}"
mapfile -t ops < <(ops_of EMU_CODE_LIST | grep -vx nearest_prepare)
notices test_kernels_codes "${ops[@]}"
# What it packs bounds distances and decides none: a last bit of it has no say in the keys.
breaks test_kernels_codes nearest_prepare:past || fail "a pack that is written too far passes"
tested+=(nearest_prepare)
mapfile -t ops < <(ops_of EMU_QUANTIZER_LIST | sed 's/^/quantizer_/')
notices test_kernels_quantizers "${ops[@]}"
for op in $(ops_of EMU_KERNEL_LIST); do
    [[ " ${tested[*]} gemm attention_forward attention_backward " == *" $op "* ]] || fail "no case has '$op'"
done

# Every other way to break, on one op.
breaks test_kernels dora_backward:past || fail "a write behind an operand passes"
[[ "$said" == *"dora_backward: byte 0 behind "*" was overwritten" ]] || fail "past: '$said'"
breaks test_kernels dora_backward:error || fail "a kernel that fails passes"
[[ "$said" == *"dora_backward: "*"an illegal memory access"* ]] || fail "error: '$said'"
breaks test_kernels dora_backward:missing || fail "a table without an op passes"
[[ "$said" == *"has no entry 'dora_backward'"* ]] || fail "missing: '$said'"
breaks test_kernels dora_backward:unstable || fail "results that change from run to run pass"
export TESS_TEST_DEADLINE_S=0.2
breaks test_kernels dora_backward:hang || fail "a kernel that does not end passes"
[[ "$said" == *"dora_backward: work of stream 'test' has not ended after 0.2 s"* ]] || fail "hang: '$said'"
unset TESS_TEST_DEADLINE_S
breaks test_kernels no_such_op:element || fail "a fault of no op passes"

# Every operand an allocation of its own, as sanitizers want it.
TESS_TEST_APART=1 "$programs/cuda.test_kernels" > /dev/null || fail "operands that lie apart: code $?"

# rc, text, setting: what a program says where something is missing (77) or fails (1).
expect() {
    local rc=0 text
    text=$(env "$3" "$programs/cuda.test_kernels" 2>&1) || rc=$?
    [ "$rc" -eq "$1" ] && [[ "$text" == *"$2"* ]] || fail "$3: expected code $1 and '$2', found $rc and '$text'"
}

expect 77 "skipped: no CUDA part: no file '/none.so'" TESSERA_CUDA_PLUGIN=/none.so
expect 77 "skipped: the CUDA driver supports CUDA 12.4" FAKE_CUDA_FAULT=driver
expect 77 "skipped: the CUDA driver shows no device" FAKE_CUDA_DEVICES=0
expect 1 "cuda:0: CUDA says all devices are busy" FAKE_CUDA_FAULT=open
expect 1 "was built from another version" FAKE_CUDA_FAULT=abi
echo "${#tested[@]} ops: all passed"
