#!/bin/bash
# tessera bench: descriptions that tessera plan reads, collectives whose results are checked, measured runs whose
# numbers agree with each other, tables and plots of them, and what is refused.
set -euo pipefail
command -v mpirun >/dev/null || { echo "skipped: needs mpirun"; exit 77; }
command -v python3 >/dev/null || { echo "skipped: needs python3"; exit 77; }

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() {
    echo "$*" >&2
    exit 1
}

# refused TEXT COMMAND...: it fails and says so.
refused() {
    local want="$1"
    shift
    if "$@" >out.txt 2>err.txt; then fail "not refused: $*"; fi
    grep -qF -- "$want" err.txt || fail "$*: '$(cat err.txt)' does not say '$want'"
}

cat >run.yaml <<YAML
model: {path: $TESS_SOURCE_DIR/examples/base, init: random}
data: {path: none.h5, sequence_length: 256}
train: {steps: 1, micro_batch: 2, micro_batches: 4}
output: {dir: run}
YAML

# Every collective at every size on 1 and 3 ranks, nothing wrong.
for n in 1 3; do
    mpirun -n "$n" "$TESSERA_BIN" bench collectives --repeats 2 --max-mib 1 >lines.txt
    [ "$(wc -l <lines.txt)" -eq 15 ] || fail "expected 3 collectives of 5 sizes, found $(wc -l <lines.txt) lines"
    [ "$(grep -c '"wrong_elements":0' lines.txt)" -eq 15 ] || fail "wrong results: $(cat lines.txt)"
    [ "$(grep -c "\"world\":$n" lines.txt)" -eq 15 ] || fail "not $n ranks"
done
mpirun -n 2 "$TESSERA_BIN" bench collectives --repeats 1 --max-mib 1 -o file.jsonl
[ "$(wc -l <file.jsonl)" -eq 15 ] || fail "-o wrote $(wc -l <file.jsonl) lines"

# Measured descriptions are read again, and say that they are measured.
"$TESSERA_BIN" bench device --repeats 1 -o device.json
mpirun -n 2 "$TESSERA_BIN" bench links --repeats 2 --max-mib 1 -o links.json
"$TESSERA_BIN" plan run.yaml --ranks 2 --device device.json --network links.json --timeline t.json >plan.txt
grep -q 'device this-machine: measured rates, network this-network: measured rates' plan.txt ||
    fail "no prediction in $(cat plan.txt)"
grep -q 'traceEvents' t.json || fail "no timeline"

refused "expected device, links, collectives, step, scaling, checkpoint or load, found 'nothing'" "$TESSERA_BIN" bench
refused "found 'devices'" "$TESSERA_BIN" bench devices
refused "device writes a description: give a file with -o" "$TESSERA_BIN" bench device
refused "expected 2 ranks or more, found 1" "$TESSERA_BIN" bench links -o x.json
refused "--timeline needs --device" "$TESSERA_BIN" plan run.yaml --timeline t.json
refused "--network needs --device" "$TESSERA_BIN" plan run.yaml --network ethernet-10g
refused "--device 'gpu' is not known" "$TESSERA_BIN" plan run.yaml --device gpu
refused "none.json" "$TESSERA_BIN" plan run.yaml --device none.json
sed 's/"memory_gb_per_s"/"memory_rate"/' device.json >bad.json
refused "member 'memory_rate': expected no such member" "$TESSERA_BIN" plan run.yaml --device bad.json

# ---- measured runs: steps, scaling, checkpoints, starts ----

# lines FILE NUMBER: so many lines, each with where it comes from.
lines() {
    [ "$(wc -l <"$1")" -eq "$2" ] || fail "$1: expected $2 lines, found $(cat "$1")"
    for member in bench machine kernels version time command world load_average; do
        [ "$(grep -c "\"$member\":" "$1")" -eq "$2" ] || fail "$1: lines without $member"
    done
}

# where FILE CONDITION: every line satisfies it; `l` is the line's members.
where() {
    python3 -c '
import json, sys
for text in open(sys.argv[1]):
    l = json.loads(text)
    if not eval(sys.argv[2]):
        sys.exit(f"{sys.argv[1]}: not {sys.argv[2]}: {text}")' "$1" "$2" || fail "see above"
}

mkdir scratch
small=(train.micro_batches=3 --length 16 --repeats 2 --warmup 1 --dir scratch)
spread='l["{0}_p10_s"] <= l["{0}_s"] <= l["{0}_p90_s"]'

for n in 1 2 3; do
    mpirun -n "$n" "$TESSERA_BIN" bench step llama flux rqvae --format nf4 --format bf16 "${small[@]}" \
        -o "step-$n.jsonl" 2>table.txt
    lines "step-$n.jsonl" 5
    [ "$(grep -c '/s ' table.txt)" -eq 5 ] || fail "no table in $(cat table.txt)"
    where "step-$n.jsonl" "${spread//\{0\}/step} and l['ranks'] == l['world'] == $n"
    where "step-$n.jsonl" "abs(l['items_per_s'] * l['step_s'] / l['items'] - 1) < 1e-9 and l['model_flop'] > 0"
    where "step-$n.jsonl" "abs(l['model_gflop_per_s'] * 1e9 * l['step_s'] / l['model_flop'] - 1) < 1e-9"
    where "step-$n.jsonl" "0 <= l['exposed_s'] + l['imbalance_s'] and l['planned_bytes'] > 0 < l['host_peak_bytes']"
    where "step-$n.jsonl" "l['items'] == 3 * l['micro_batch'] * (16 if l['unit'] == 'tokens' else 1)"
done
# What is counted does not depend on the number of ranks.
counted() { grep -o '"\(model_flop\|items\|family\|format\)":[^,]*' "$1"; }
[ "$(counted step-1.jsonl)" = "$(counted step-3.jsonl)" ] || fail "counts differ between 1 and 3 ranks"

# Kernels one by one, in further steps: all that a step computes is in a class, none twice, and nothing overlaps.
for n in 1 2; do
    mpirun -n "$n" "$TESSERA_BIN" bench step llama flux rqvae --kernels 2 --device h200-141g "${small[@]}" \
        compute.activation_checkpointing=on -o "kernels-$n.jsonl" 2>table.txt
    lines "kernels-$n.jsonl" 3
    where "kernels-$n.jsonl" "all(c['s'] > 0 and c['calls'] > 0 for c in l['classes'])"
    where "kernels-$n.jsonl" "abs(sum(c['flop'] for c in l['classes']) / l['hardware_flop'] - 1) < 1e-9"
    where "kernels-$n.jsonl" "abs(sum(c['s'] for c in l['classes']) / l['kernels_s'] - 1) < 1e-9"
    where "kernels-$n.jsonl" "l['kernels_s'] + l['gaps_s'] + l['rest_s'] < l['traced_step_s'] and l['gaps_s'] >= 0"
    where "kernels-$n.jsonl" "l['device'] == 'h200-141g' and l['peak_tflop_per_s'] == 989 and l['setup_s'] > 0"
    where "kernels-$n.jsonl" "l['hardware_flop'] * l['ranks'] >= l['model_flop'] > 0"
    where "kernels-$n.jsonl" "abs(l['model_flops_utilization'] * l['ranks'] * l['step_s'] * 989e12 / l['model_flop'] - 1) < 1e-9"
done
# Recomputation is the hardware's work alone.
"$TESSERA_BIN" bench step llama --kernels 1 "${small[@]}" compute.activation_checkpointing=off -o once.jsonl 2>table.txt
once() { grep -o "\"$2\":[^,]*" "$1" | head -n 1; }
[ "$(once once.jsonl model_flop)" = "$(once kernels-1.jsonl model_flop)" ] || fail "recomputed model FLOPs are counted"
[ "$(once once.jsonl hardware_flop)" != "$(once kernels-1.jsonl hardware_flop)" ] || fail "no recomputed hardware FLOPs"
for n in 1 2 3; do
    mpirun -n "$n" "$TESSERA_BIN" bench scaling rqvae "${small[@]}" -o "scaling-$n.jsonl"
    points=$n # powers of two, and all
    lines "scaling-$n.jsonl" $((2 * points))
    where "scaling-$n.jsonl" \
        "abs(l['efficiency'] + l['loss_exposed'] + l['loss_imbalance'] + l['loss_other'] - 1) < 1e-9"
    where "scaling-$n.jsonl" "l['loss_exposed'] >= 0 and l['loss_imbalance'] >= 0"
    where "scaling-$n.jsonl" "l['ranks'] > 1 or l['efficiency'] == 1"
    where "scaling-$n.jsonl" "l['micro_batches'] == 3 * (l['ranks'] if l['scaling'] == 'weak' else 1)"
done

for n in 1 2 3; do
    mpirun -n "$n" "$TESSERA_BIN" bench checkpoint "${small[@]}" --every 1 --ranks 1 --ranks "$n" \
        -o "checkpoint-$n.jsonl"
    lines "checkpoint-$n.jsonl" $((n == 1 ? 2 : 3))
    where "checkpoint-$n.jsonl" "l['what'] == 'load' or l['bytes'] > 1e6 and ${spread//\{0\}/stall}"
    where "checkpoint-$n.jsonl" "l['what'] == 'load' or l['write_s'] <= l['publish_p90_s'] and l['ranks'] == $n"
    where "checkpoint-$n.jsonl" "l['what'] == 'save' or l['saved_by'] == $n and l['read_s'] <= l['open_s']"
done

for n in 1 3; do
    mpirun -n "$n" "$TESSERA_BIN" bench load llama rqvae "${small[@]}" -o "load-$n.jsonl"
    lines "load-$n.jsonl" 5
    [ "$(grep -o '"source":"[a-z0-9 ]*"' "load-$n.jsonl" | tr '\n' ' ')" = \
        '"source":"safetensors" "source":"gguf" "source":"hdf5" "source":"random" "source":"hdf5" ' ] ||
        fail "sources: $(cat "load-$n.jsonl")"
    # Medians of parts of the slowest rank in each: no part is longer than the whole ever was.
    where "load-$n.jsonl" \
        "all(0 <= l[p + '_p10_s'] <= l['total_p90_s'] for p in ('open', 'read', 'quantize', 'first_step'))"
    where "load-$n.jsonl" "(l['read_s'] > 0) == (l['source'] != 'random')"
done
[ -z "$(ls -A scratch)" ] || fail "left behind: $(ls scratch)"

# A run file of the user's own.
"$TESSERA_BIN" tokenize "$TESS_SOURCE_DIR/examples/base" "$TESS_SOURCE_DIR/docs/lora.md" -o text.h5 >/dev/null
"$TESSERA_BIN" bench step run.yaml data.path=text.h5 train.steps=9 --length 32 --repeats 2 --format keep \
    --dir scratch -o own.jsonl
where own.jsonl "l['run'] == 'run.yaml' and l['format'] == 'keep' and l['items'] == 2 * 4 * 32"

# Tables and plots from any of them.
report="$TESS_SOURCE_DIR/bench/report"
"$report" ./*.jsonl --commands >report.txt
for part in collectives step scaling save 'load of checkpoint' load; do
    grep -q "^### $part\$" report.txt || fail "no table of $part in $(cat report.txt)"
done
if command -v gnuplot >/dev/null; then
    "$report" scaling-3.jsonl --plot scaling.svg >/dev/null
    grep -q '<svg' scaling.svg || fail "no plot"
else
    echo "plots: skipped, no gnuplot"
fi
rc=0
mkdir bare
python="$(python3 -c "import sys; print(sys.executable)")" # not a wrapper that needs PATH
PATH="$PWD/bare" "$python" "$report" scaling-3.jsonl --plot x.svg >/dev/null 2>err.txt || rc=$?
[ "$rc" -eq 3 ] || fail "without gnuplot: expected status 3, found $rc"
grep -q 'skipped: plots need gnuplot' err.txt || fail "without gnuplot: $(cat err.txt)"
echo '{"loss": 1}' >other.jsonl
refused "report: other.jsonl:1: expected a line of tessera bench" "$report" other.jsonl

bench() { "$TESSERA_BIN" bench "$@" --dir scratch; }
refused "'none.yaml' is neither a run file nor a shape" bench step none.yaml
refused "output.dir and output.resume belong to the measurement" bench step output.dir=x
refused "base.format and --format: give one of them" bench step base.format=nf4 --format nf4
refused "data.sequence_length and --length: give one of them" bench step data.sequence_length=8 --length 8
refused "device measures no run: what is 'llama' for?" bench device llama -o x.json
refused "--threads is of device: say compute.threads=2" bench step --threads 2
refused "expected at most the 1 ranks of this launch, found 2" bench scaling --ranks 2
refused "--length of flux: expected pixels, a multiple of 16, found 100" bench step flux --length 100
refused "expected at least 22, for 22 measured steps after step 0, found 1" bench step run.yaml data.path=text.h5
refused "no folder can be made in 'nowhere'" "$TESSERA_BIN" bench step --dir nowhere
refused "'nowhere/x' cannot be written; choose another -o" bench step -o nowhere/x

# Passes of k-means: built-in vectors, and a run file whose levels end.
for n in 1 3; do
    mpirun -n "$n" "$TESSERA_BIN" bench step kmeans --length 2048 quantizer.codes=64 --repeats 2 --warmup 1 --dir scratch \
        -o "kmeans-$n.jsonl"
    lines "kmeans-$n.jsonl" 1
    where "kmeans-$n.jsonl" "${spread//\{0\}/step} and l['items'] == 2048 and l['unit'] == 'vectors'"
    where "kmeans-$n.jsonl" "l['model_flop'] == 2 * 2048 * 64 * 64 and 'exposed_s' not in l and l['family'] == 'kmeans'"
done
cat >kmeans.yaml <<YAML
model: {family: kmeans}
data: {path: $TESS_SOURCE_DIR/tests/golden/descriptors/train.bvecs}
quantizer: {codes: 4, passes: 9}
output: {dir: run}
YAML
bench step kmeans.yaml --repeats 2 --warmup 1 -o own.jsonl
where own.jsonl "l['run'] == 'kmeans.yaml' and l['items'] == 16000"
refused "quantizer.passes: expected more than the 9 measured ones" bench step kmeans.yaml --repeats 8 --warmup 1
refused "passes of kmeans do not tell what they wait for others" bench scaling kmeans.yaml
refused "--kernels and --device are of step" bench scaling llama --kernels 1
refused "nor its single kernels" bench step kmeans --length 2048 --kernels 1 --repeats 2
refused "h900" bench step llama --device h900
refused "saves of kmeans are not measured" bench checkpoint kmeans.yaml --repeats 2
refused "expected 1024 vectors or more, found 100" bench step kmeans --length 100
