#!/bin/bash
# tessera bench: descriptions that tessera plan reads, collectives whose results are checked, and what is refused.
set -euo pipefail
command -v mpirun >/dev/null || { echo "skipped: needs mpirun"; exit 77; }

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

refused "expected device, links or collectives, found 'nothing'" "$TESSERA_BIN" bench
refused "found 'devices'" "$TESSERA_BIN" bench devices
refused "device writes a description: give a file with -o" "$TESSERA_BIN" bench device
refused "expected 2 ranks or more, found 1" "$TESSERA_BIN" bench links -o x.json
refused "--timeline needs --device" "$TESSERA_BIN" plan run.yaml --timeline t.json
refused "--network needs --device" "$TESSERA_BIN" plan run.yaml --network ethernet-10g
refused "--device 'gpu' is not known" "$TESSERA_BIN" plan run.yaml --device gpu
refused "none.json" "$TESSERA_BIN" plan run.yaml --device none.json
sed 's/"memory_gb_per_s"/"memory_rate"/' device.json >bad.json
refused "member 'memory_rate': expected no such member" "$TESSERA_BIN" plan run.yaml --device bad.json
