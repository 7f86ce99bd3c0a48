#!/bin/bash
# An RQ-VAE from the command line, on descriptors of photographs: plan, train on one and on several ranks, a kill and a
# resume, eval, export, inspect, verify; and what is refused.
set -euo pipefail
command -v mpirun >/dev/null || { echo "skipped: needs mpirun"; exit 77; }

data="$TESS_SOURCE_DIR/tests/golden/descriptors"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() {
    echo "$*" >&2
    exit 1
}

# Mean squared distance of the vectors of a .bvecs and a .fbin file.
mean_error() {
    local dim
    dim=$(od -An -tu4 -j4 -N4 "$2" | tr -d ' ')
    paste <(od -An -v -tu1 -w$((4 + dim)) "$1") <(od -An -v -tf4 -j8 -w$((4 * dim)) "$2") |
        awk -v d="$dim" '{ for (j = 1; j <= d; j++) s += ($(4 + j) - $(4 + d + j)) ^ 2; n++ } END { printf "%.9g\n", s / n }'
}

cat >run.yaml <<YAML
model: {family: rqvae}
data: {path: $data/train.bvecs, eval_path: $data/held_out.bvecs}
train: {steps: 30, micro_batch: 64, micro_batches: 5, learning_rate: 3.0e-3, warmup_steps: 5, eval_every: 0}
quantizer: {codes: 61, levels: 2, code_dim: 12, encoder: [48], window: 10, passes: 4, update: ema, threshold: 1.0}
compute: {memory_limit: 1GiB}
output: {dir: one, checkpoint_every: 10}
YAML

# More hits than the vectors of a step have for all codes.
"$TESSERA_BIN" train run.yaml train.steps=1 train.warmup_steps=0 quantizer.threshold=6 output.dir=often 2>log || fail "$(cat log)"
grep -q "quantizer.threshold is 6: 61 codes do not get that many of the 320 hits of a step.*set at most 5.25" log || fail "$(cat log)"

# What is planned is what runs, whatever the number of ranks.
"$TESSERA_BIN" train run.yaml 2>log || fail "$(cat log)"
! grep -q "quantizer.threshold" log || fail "$(cat log)"
"$TESSERA_BIN" plan run.yaml --ranks 1 --json | cmp - one/plan.json || fail "plan.json is not the plan"
mpirun --oversubscribe -n 3 "$TESSERA_BIN" train run.yaml output.dir=three compute.threads=2 2>log || fail "$(cat log)"
"$TESSERA_BIN" plan run.yaml compute.threads=2 --ranks 3 --json | cmp - three/plan.json || fail "plan.json is not the plan"
for file in export/model.safetensors levels.jsonl eval.jsonl; do
    cmp one/$file three/$file || fail "$file differs on three ranks"
done
[ "$(grep -c '"kind": "train"' one/levels.jsonl)" = 9 ] || fail "levels.jsonl: $(cat one/levels.jsonl)"

vectors=$("$TESSERA_BIN" inspect "$data/train.bvecs" --json | grep -o '"vectors":[0-9]*' | cut -d: -f2)
"$TESSERA_BIN" plan run.yaml train.epochs=3 2>log >/dev/null || fail "$(cat log)"
grep -q "train.epochs=3 train.steps=$(((3 * vectors + 319) / 320))$" log || fail "epochs: $(cat log)"

# Killed after a save: what is there belongs to the run as it was, and to no other.
{ TESSERA_FAULT=0:link:2:kill "$TESSERA_BIN" train run.yaml output.dir=killed output.checkpoint_every=1 train.steps=3000 \
    2>/dev/null; } 2>/dev/null || code=$?
[ "${code:-0}" = 137 ] && ls killed/step-*/MANIFEST >/dev/null || fail "exit code ${code:-0}, and in killed: $(ls killed)"
more=(output.dir=killed train.steps=3000 output.checkpoint_every=0 "train.eval_every=0")
! "$TESSERA_BIN" train run.yaml "${more[@]}" quantizer.decay=0.5 2>refused || fail "another decay went on"
grep -q "quantizer.decay: 0.99 -> 0.5" refused || fail "$(cat refused)"

# Without the training data.
checkpoint=$(echo one/step-0000000030.*)
sed "s|$data/train.bvecs|$work/gone.bvecs|" one/run.yaml >reader.yaml
"$TESSERA_BIN" eval reader.yaml >shown 2>&1 || fail "$(cat shown)"
grep -q "step 30: loss" shown || fail "$(cat shown)"
"$TESSERA_BIN" verify "$checkpoint" >/dev/null || fail "verify"
"$TESSERA_BIN" inspect "$checkpoint" >shown || fail "inspect"
grep -q "quantizer.1.codes f32 \[61,12\]" shown || fail "inspect names no codes: $(cat shown)"
"$TESSERA_BIN" export "$checkpoint" -o again 2>log || fail "$(cat log)"
cmp again/model.safetensors one/export/model.safetensors || fail "exports differ"

# Codes of every kind of quantizer: the same file on three ranks, the error of an evaluation, and decoded what it was of.
kinds=("codes: 61, levels: 2, code_dim: 12, groups: 2, update: ema" "type: simvq, codes: 61, code_dim: 12"
    "type: residual-fsq, axis_levels: [5, 4, 3], levels: 2" "type: bsq, code_dim: 16, groups: 2" "type: latent, axis_levels: [8, 5, 5]")
for i in "${!kinds[@]}"; do
    sed "s|^quantizer:.*|quantizer: {${kinds[i]}, encoder: [48]}|; s|dir: one|dir: kind$i|" run.yaml >kind.yaml
    "$TESSERA_BIN" train kind.yaml train.steps=3 train.warmup_steps=0 compute.dtype=f32 2>log || fail "${kinds[i]}: $(cat log)"
    "$TESSERA_BIN" encode "kind$i" "$data/held_out.bvecs" -o "codes$i.h5" --json >said 2>log || fail "${kinds[i]}: $(cat log)"
    mpirun --oversubscribe -n 3 "$TESSERA_BIN" encode "kind$i" "$data/held_out.bvecs" -o other.h5 2>log >/dev/null || fail "$(cat log)"
    cmp "codes$i.h5" other.h5 || fail "${kinds[i]}: codes differ on three ranks"
    "$TESSERA_BIN" decode "kind$i" "codes$i.h5" -o back.fbin 2>log || fail "${kinds[i]}: $(cat log)"
    mpirun --oversubscribe -n 3 "$TESSERA_BIN" decode "kind$i" "codes$i.h5" -o other.fbin 2>log || fail "$(cat log)"
    cmp back.fbin other.fbin || fail "${kinds[i]}: decoded vectors differ on three ranks"
    error=$(grep -o '"error": [^,]*' said | cut -d' ' -f2)
    evaluated=$(grep '"kind": "eval", "level": -1' "kind$i/levels.jsonl" | tail -1 | grep -o '"square_error": [^,]*' | cut -d' ' -f2)
    awk -v a="$error" -v b="$evaluated" 'BEGIN { exit !(a > 0 && (a - b) ^ 2 <= (1e-6 * b) ^ 2) }' ||
        fail "${kinds[i]}: encode says an error of $error, the evaluation $evaluated"
    mean_error "$data/held_out.bvecs" back.fbin >decoded
    awk -v a="$error" -v b="$(cat decoded)" 'BEGIN { exit !((a - b) ^ 2 <= (1e-5 * b) ^ 2) }' ||
        fail "${kinds[i]}: encode says an error of $error, decoded vectors are $(cat decoded) away"
done
! "$TESSERA_BIN" decode kind1 codes0.h5 -o back.fbin 2>refused || fail "codes of another model were decoded"
grep -q "give the checkpoint that encoded it" refused || fail "$(cat refused)"

refuse() {
    local words="$1"
    shift
    ! "$TESSERA_BIN" "$@" 2>refused || fail "$* was taken"
    grep -q "$words" refused || fail "$*: $(cat refused)"
}
refuse "leave out --format" export "$checkpoint" -o other --format hf
refuse "vectors, not text" sample one/run.yaml --prompt word

# A limit that codes fit by rows alone: said where they are replicated, to readers too, and taken by auto.
sed "s|^quantizer:.*|quantizer: {type: vq, codes: 100000, code_dim: 12, update: ema, init: sample, encoder: [48]}|; s|dir: one|dir: large|" \
    run.yaml >large.yaml
needed() {
    ! "$TESSERA_BIN" plan large.yaml --ranks 2 "quantizer.sharding=$1" compute.memory_limit=1MiB 2>refused || fail "1 MiB was enough"
    ! grep -q sequence_length refused || fail "vectors have no sequences: $(cat refused)"
    sed -n 's/.*plan needs \([0-9]*\) MiB.*/\1/p' refused
}
by_rows=$(needed rows) replicated=$(needed replicated)
[ "$by_rows" -lt $((replicated - 2)) ] || fail "by rows codes need $by_rows MiB, replicated $replicated"
limit="compute.memory_limit=$(((by_rows + replicated) / 2))MiB"
refuse "or set quantizer.sharding: rows, which fits" plan large.yaml --ranks 2 quantizer.sharding=replicated "$limit"
"$TESSERA_BIN" plan large.yaml --ranks 2 "$limit" >plan.txt || fail "auto fits nothing into $limit"
grep -q "codebooks sharded by rows" plan.txt || fail "auto takes what does not fit: $(cat plan.txt)"
mpirun --oversubscribe -n 2 "$TESSERA_BIN" train large.yaml train.steps=1 train.warmup_steps=0 "$limit" 2>log || fail "$(cat log)"
mpirun --oversubscribe -n 2 "$TESSERA_BIN" eval large/run.yaml 2>log >by_rows.txt || fail "$(cat log)"
! mpirun --oversubscribe -n 2 "$TESSERA_BIN" eval large/run.yaml quantizer.sharding=replicated 2>refused >/dev/null || fail "eval took what does not fit"
grep -q "or set quantizer.sharding: rows, which fits" refused || fail "$(cat refused)"
mpirun --oversubscribe -n 2 "$TESSERA_BIN" eval large/run.yaml quantizer.sharding=replicated compute.memory_limit=1GiB 2>log >whole.txt || fail "$(cat log)"
cmp -s by_rows.txt whole.txt || fail "eval by rows: $(cat by_rows.txt), with all codes: $(cat whole.txt)"
echo passed
