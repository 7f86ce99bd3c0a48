#!/usr/bin/env bash
# The parts of tessera bench and tessera check where runs compute on devices: a CUDA part without CUDA
# (tests/emulation/fake_plugin.c) with memory of its own, through the same door as the real one.
# shellcheck source=tests/support/cli_run.sh
source "${TESS_SOURCE_DIR:?set by ctest}/tests/support/cli_run.sh"
export TESSERA_CUDA_PLUGIN="${TESS_FAKE_CUDA:?set by ctest}"
[ -f "$TESSERA_CUDA_PLUGIN" ] || { echo "skipped: needs $TESSERA_CUDA_PLUGIN"; exit 77; }
export FAKE_CUDA_DEVICES=3
small=(--repeats 2 --warmup 1 --dir "$work" train.micro_batches=3 compute.device=cuda)

# ranks, arguments of bench: they succeed; measurements in lines.jsonl.
bench_on() {
    local ranks="$1"
    shift
    rm -f lines.jsonl
    launch "$ranks" bench "$@" "${small[@]}" -o lines.jsonl
    [ "$rc" -eq 0 ] || fail "bench $*: exit code $rc"
}

# lines, pattern: so many lines of lines.jsonl, all with the pattern.
all_lines() {
    [ "$(wc -l < lines.jsonl)" -eq "$1" ] || fail "expected $1 lines, found $(cat lines.jsonl)"
    [ "$(grep -cE "$2" lines.jsonl)" -eq "$1" ] || fail "not all of $(cat lines.jsonl) have $2"
}

for n in 1 2; do
    bench_on "$n" step run.yaml train.steps=3 output.checkpoint_every=0
    all_lines 1 '"kernels":"cuda/sm_90"'
    all_lines 1 '"device_peak_bytes":[1-9]'
    all_lines 1 "\"ranks\":$n,"
    bench_on "$n" step flux rqvae --length 16
    all_lines 2 '"kernels":"cuda/sm_90"'
    all_lines 2 '"device_peak_bytes":[1-9]'
    all_lines 2 '"exposed_s":[0-9]'
done
bench_on 2 scaling rqvae --length 16
all_lines 4 '"loss_exposed":[0-9].*"kernels":"cuda/sm_90"|"kernels":"cuda/sm_90".*"loss_exposed":[0-9]'
bench_on 2 checkpoint rqvae --length 16 --every 1
all_lines 3 '"kernels":"cuda/sm_90"'
bench_on 1 load rqvae --length 16
all_lines 2 '"kernels":"cuda/sm_90"'

rm -f lines.jsonl
launch 2 bench step kmeans "${small[@]:0:6}" compute.device=cuda -o lines.jsonl # has no micro-batches
[ "$rc" -eq 0 ] || fail "bench step kmeans: exit code $rc"
all_lines 1 '"kernels":"cuda/sm_90"'

# Rates of kernels are those of the CPU, with a CUDA part or without.
"$tessera" bench device --repeats 1 -o device.json > log 2>&1 || fail "bench device: exit code $?"
"$tessera" plan run.yaml --device device.json > log 2>&1 || fail "plan with it: exit code $?"

# What check says of devices: a rank's own, and how many it sees.
launch 2 check --dir here
[ "$rc" -eq 0 ] || fail "check: exit code $rc"
for bus in 01 02; do
    grep -q "Fake H100 at 0000:$bus:00.0, 3 visible" log || fail "check: no device $bus"
done
grep -q "CUDA part: Fake CUDA 13.0" log || fail "check: no CUDA part"
launch 2 check --dir here --json
[ "$(grep -c 'Fake H100' log)" -eq 2 ] || fail "check --json: $(grep -c 'Fake H100' log) devices, expected 2"
FAKE_CUDA_FAULT=driver launch 1 check --dir here
[ "$rc" -eq 0 ] || fail "check with a driver that is too old: exit code $rc"
! grep -q "Fake H100" log || fail "check: a device behind a driver that is too old"
echo "all passed"
