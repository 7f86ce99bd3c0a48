#!/bin/bash
# k-means from the command line: plan, train on several ranks, stop and go on, encode, decode, export; and the error on
# descriptors of photographs beside faiss's (tests/golden/descriptors/faiss.jsonl, by bench/peers/residual_quantizer.py).
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

# The number behind a key of the last line of a JSON lines file.
last() { tail -1 "$1" | sed "s/.*\"$2\": \([-0-9.e+]*\).*/\1/"; }

# check VALUE MOST: at most so much.
at_most() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a <= b) }' || fail "$3: $1, expected at most $2"; }

cat >run.yaml <<YAML
model: {family: kmeans}
data: {path: $data/train.bvecs, eval_path: $data/held_out.bvecs}
quantizer: {codes: 256}
output: {dir: one, checkpoint_every: 10}
YAML

"$TESSERA_BIN" plan run.yaml --ranks 4 --json >plan.json
grep -q '"sharding": "replicated"' plan.json || fail "plan.json names no sharding"

# Predicted under both shardings, at numbers of ranks that nobody has here; without --device the plan is the run's own.
! grep -q '"predicted"' plan.json || fail "a plan without a device has predictions"
"$TESSERA_BIN" plan run.yaml quantizer.levels=2 --ranks 10000 --device cpu --network ethernet-100g --timeline line.json --json >predicted.json
for member in predicted levels refinement job search_utilization vectors_per_s communication_s; do
    grep -q "\"$member\":" predicted.json || fail "no $member in $(cat predicted.json)"
done
grep -q '"has_kernels": true' predicted.json || fail "k-means has kernels on a CPU"
[ "$(grep -c '"name":"search group.0.level.1' line.json)" -eq 5 ] || fail "4 passes of level 1, and its encoding, are not in the timeline"
"$TESSERA_BIN" plan run.yaml --ranks 64 --device h100-80g >predicted.txt
grep -Eq '^level 0: pass +[0-9.]+ [mu]?s +[0-9.]+ [mu]?s' predicted.txt || fail "no pass in $(cat predicted.txt)"
grep -q "k-means runs on the hosts' cores" predicted.txt || fail "an H100 is said to run k-means"

! "$TESSERA_BIN" plan run.yaml quantizer.codes=16000000 compute.memory_limit=2GiB 2>refused || fail "2 GiB hold no 16,000,000 codes"
grep -q "the limit is 2147483648" refused || fail "$(cat refused)"

# One level: the error of faiss's Kmeans, median of three seeds each.
faiss_kmeans=$(sed -n 's/.*"what": "kmeans".*"median": \([0-9.]*\).*/\1/p' "$data/faiss.jsonl")
for seed in 0 1 2; do
    "$TESSERA_BIN" train run.yaml train.seed=$seed output.dir=one$seed 2>/dev/null
    last one$seed/eval.jsonl eval_loss
done | sort -g >errors
at_most "$(sed -n 2p errors)" "$faiss_kmeans" "k-means"

# A held-out file that cannot be evaluated is refused before anything is trained.
printf '\2\0\0\0\0\0\200\77\0\0\200\77' >narrow.fvecs
! "$TESSERA_BIN" train run.yaml data.eval_path=narrow.fvecs output.dir=refused_run 2>refused || fail "2 of 128 dimensions"
grep -q "'narrow.fvecs' holds vectors of 2 dimensions, those of data.path have 128" refused || fail "$(cat refused)"
[ ! -e refused_run/metrics.jsonl ] || fail "the run was begun"

# Fewer vectors than codes are said.
printf '\1\0\0\0\0\0\200\77\1\0\0\0\0\0\0\100' >few.fvecs
"$TESSERA_BIN" train run.yaml data.path=few.fvecs data.eval_path=few.fvecs quantizer.codes=5 output.dir=few 2>warned
grep -q "quantizer.codes is 5: data.path holds 2 vectors, so that at least 3 codes of the first level have none" warned ||
    fail "$(cat warned)"

# What spherical codes do not go with, and values whose squares f32 does not hold.
for key in levels=2 groups=2 batch=128; do
    ! "$TESSERA_BIN" train run.yaml quantizer.spherical=true quantizer.$key output.dir=refused_run 2>refused || fail "$key"
    grep -q "quantizer.spherical: .*expected .*${key%=*}" refused || fail "$(cat refused)"
done
printf '\1\0\0\0\377\377\177\177\1\0\0\0\377\377\177\377' >large.fvecs
! "$TESSERA_BIN" train run.yaml data.path=large.fvecs data.eval_path=large.fvecs output.dir=refused_run 2>refused ||
    fail "values of 3e38"
grep -q "the largest value is 3.40282e+38.*scale the vectors" refused || fail "$(cat refused)"

# A stack on three ranks, and one that is killed after its first save and goes on with two: the codes of one rank.
stack=(quantizer.levels=3 quantizer.beam=3 quantizer.passes=3 quantizer.refine=1)
"$TESSERA_BIN" train run.yaml "${stack[@]}" output.dir=alone 2>/dev/null
mpirun --oversubscribe -n 3 "$TESSERA_BIN" train run.yaml "${stack[@]}" output.dir=three quantizer.sharding=rows \
    compute.threads=2 2>/dev/null
cmp alone/export/codebooks.safetensors three/export/codebooks.safetensors || fail "codes differ on three ranks"

stack+=(output.dir=killed output.checkpoint_every=1)
{ TESSERA_FAULT=0:link:2:kill "$TESSERA_BIN" train run.yaml "${stack[@]}" 2>/dev/null; } 2>/dev/null || code=$?
[ "${code:-0}" = 137 ] && ls killed/step-*/MANIFEST >/dev/null || fail "exit code ${code:-0}, and in killed: $(ls killed)"
mpirun --oversubscribe -n 2 "$TESSERA_BIN" train run.yaml "${stack[@]}" 2>resumed
grep -q "resumed from" resumed || fail "nothing was resumed: $(cat resumed)"
cmp alone/export/codebooks.safetensors killed/export/codebooks.safetensors || fail "codes differ after a kill"

"$TESSERA_BIN" encode alone "$data/held_out.bvecs" -o codes.h5 --json >encoded 2>/dev/null
mpirun --oversubscribe -n 2 "$TESSERA_BIN" encode three "$data/held_out.bvecs" -o codes2.h5 >/dev/null 2>&1
cmp codes.h5 codes2.h5 || fail "codes files differ"
[ "$(last encoded error)" = "$(last alone/eval.jsonl eval_loss)" ] || fail "encode: $(cat encoded), eval: $(cat alone/eval.jsonl)"
"$TESSERA_BIN" verify codes.h5 >/dev/null
"$TESSERA_BIN" decode alone codes.h5 -o out.npy 2>/dev/null
mpirun --oversubscribe -n 2 "$TESSERA_BIN" decode alone codes.h5 -o out2.npy 2>/dev/null
cmp out.npy out2.npy || fail "decoded vectors differ"
"$TESSERA_BIN" inspect out.npy >shown
grep -q "4000" shown || fail "decode wrote other vectors: $(cat shown)"
! "$TESSERA_BIN" decode one0 codes.h5 -o no.npy 2>refused || fail "codes of other codebooks were decoded"
grep -q "was encoded with codebooks" refused || fail "$(cat refused)"

for format in safetensors npy faiss; do
    "$TESSERA_BIN" export alone --format $format -o codebooks.$format 2>/dev/null
done
cmp codebooks.safetensors alone/export/codebooks.safetensors
[ "$(head -c 4 codebooks.faiss)" = IxRq ] || fail "no residual quantizer of faiss"
beam_of() { tail -c 20 "$1" | od -An -tu4 -N4 | tr -d ' '; }
[ "$(beam_of codebooks.faiss)" = 3 ] || fail "faiss searches with a beam of $(beam_of codebooks.faiss)"
"$TESSERA_BIN" train run.yaml quantizer.codes=2 quantizer.beam=5 quantizer.passes=1 output.dir=two 2>/dev/null
"$TESSERA_BIN" export two --format faiss -o two.faiss 2>/dev/null
[ "$(beam_of two.faiss)" = 2 ] || fail "two codes, but faiss searches with a beam of $(beam_of two.faiss)"

# Mini-batches make codebooks that are read like others.
"$TESSERA_BIN" train run.yaml quantizer.batch=500 quantizer.passes=3 output.dir=batches 2>/dev/null
"$TESSERA_BIN" encode batches "$data/held_out.bvecs" -o batches.h5 --json >encoded 2>/dev/null || fail "batches: no codes"
[ "$(last encoded error)" = "$(last batches/eval.jsonl eval_loss)" ] || fail "encode: $(cat encoded)"
"$TESSERA_BIN" export batches --format npy -o batches.npy 2>/dev/null || fail "batches: no export"

! "$TESSERA_BIN" sample alone/run.yaml --prompt x 2>refused || fail "codebooks were sampled from"
! "$TESSERA_BIN" train run.yaml lora.rank=4 2>refused || fail "a key of language models was accepted"
grep -q "has no meaning with model.family kmeans" refused || fail "$(cat refused)"

# Eight levels, beam 5, as faiss sets itself up. Seeds of either side differ by 0.5 %.
faiss_residual=$(sed -n 's/.*"what": "residual default".*"median": \([0-9.]*\).*/\1/p' "$data/faiss.jsonl")
"$TESSERA_BIN" train run.yaml quantizer.levels=8 quantizer.beam=5 output.dir=eight output.checkpoint_every=0 2>/dev/null
at_most "$(last eight/eval.jsonl eval_loss)" "$(awk -v e="$faiss_residual" 'BEGIN { print 1.01 * e }')" "residual quantizer"
