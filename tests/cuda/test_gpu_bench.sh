#!/usr/bin/env bash
# bench/gpu.sh over a folder that is no build folder: every part gives its lines, one that fails or finds no time ends no
# other, and the summary tells goals met from goals missed and from those that were not measured.
set -u
here="${TESS_SOURCE_DIR:?set by ctest}" build="${TESS_BUILD_DIR:?set by ctest}"
plugin="${TESSERA_CUDA_PLUGIN:-$build/bin/libtessera_cuda.so}"
command -v python3 > /dev/null || { echo "skipped: needs python3"; exit 77; }
[ -f "$plugin" ] || { echo "skipped: needs $plugin"; exit 77; }
why=$("$build/bench/bench_ops" --plugin "$plugin" --shape tiny --op copy --repeats 1 2>&1) ||
    { echo "skipped: needs a device: $why"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work" TESSERA_CUDA_PLUGIN="$plugin"

fail() {
    echo "FAILED: $*"
    tail -n 40 "$work/log" 2> /dev/null
    exit 1
}

# expected exit code, arguments of gpu.sh
measure() {
    local expected="$1" rc=0
    shift
    bash "$here/bench/gpu.sh" "$work/programs" "$work/out" --tiny "$@" > "$work/log" 2>&1 || rc=$?
    [ "$rc" -eq "$expected" ] || fail "gpu.sh $*: exit code $rc, expected $expected"
    [ -s "$work/out/summary.md" ] || fail "gpu.sh $*: no summary"
}

has() { grep -qE -- "$1" "$work/out/summary.md" || fail "no '$1' in $(cat "$work/out/summary.md")"; }

mkdir "$work/programs"
ln -s "${TESSERA_BIN:?set by ctest}" "$build"/bench/bench_{ops,gemm,attention,gather_device,dequantize_device} \
    "$build/bench/bench_nearest_device" "$work/programs" || fail "programs are missing"

# Every part but the peer, which needs other people's packages.
parts=ops,gemm,step,step-library,step-decoded,step-recomputed,layer,gather,dequantize,attention,checkpoint,nearest,flux
measure 0 --only $parts
for part in ${parts//,/ }; do
    [ -s "$work/out/$part.jsonl" ] || fail "$part: no lines: $(cat "$work/out/$part.log")"
    has "^\| $part \| 0 \|"
done
has '^\| products \| [0-9.]+ \| [1-9][0-9]* \|' # kernels of a step by class, with calls
has '^\| attention_backward \| [0-9.]+ \| [1-9]'
has '^\| gaps \|'
has '^\| over the best peer \| >= 1.5 \| - \| not measured \|'
has '^\| elements that differ from the CPU.s \| 0 \| 0 \| met \|'
for member in model_flops_utilization hardware_flop planned_bytes device_peak_bytes setup_s roofline_s; do
    grep -q "\"$member\":" "$work/out/step.jsonl" || fail "step: no $member in $(cat "$work/out/step.jsonl")"
done
[ "$(grep -c '"share"' "$work/out/ops.jsonl")" -eq 24 ] || fail "ops: $(cat "$work/out/ops.jsonl")"

# A part that fails is told, and the others run; a part without time is left out by name.
rm -r "$work/out"
PYTHON=false measure 1 --only peer,nearest
has '^\| peer \| 1 \|'
has '^\| nearest \| 0 \|'
measure 77 --only ops --seconds 0
has '^\| ops \| no time left \|'

# Verdicts, on figures that nobody measured. tokens per second of the run and of its peer, share of a norm, what follows
verdict() {
    rm -rf "$work/out"
    mkdir "$work/out"
    : > "$work/out/machine.txt"
    printf 'part\tcode\tseconds\tcommand\n' > "$work/out/commands.tsv"
    local line='"bench": "step", "run": "x", "format": "", "step_s": 1, "step_p10_s": 1, "step_p90_s": 1.1,
        "model_gflop_per_s": 1, "planned_bytes": 1, "device_peak_bytes": 1'
    tr -d '\n' <<< "{$line, \"items_per_s\": $1}" > "$work/out/step.jsonl"
    tr -d '\n' <<< "{$line, \"items_per_s\": $2}" > "$work/out/peer.jsonl"
    echo "{\"op\": \"rmsnorm_forward\", \"shape\": \"\", \"median_s\": 1, \"gb_per_s\": 1, \"share\": $3}" \
        > "$work/out/ops.jsonl"
    python3 "$here/bench/gpu_summary.py" "$work/out" > "$work/out/summary.md" || fail "no summary"
    has "^\| tokens/s of the 8B step, no recomputation \|.*\| $4 \|"
    has "^\| over the best peer \|.*\| $5 \|"
    has "^\| norms and loss, share of copy \|.*\| $6 \|"
    has '^\| products at M = 8192, TFLOP/s \|.*\| not measured \|'
}
missed='\*\*MISSED\*\*'
verdict 16000 10000 0.85 met met met
verdict 15999 10000 0.84 "$missed" met "$missed"
verdict 17000 12000 0.9 met "$missed" met
echo passed
