#!/usr/bin/env bash
# What a run on a device says of itself: memory beside its plan, who computes attention, traces; and snapshots that are
# copied while the next step runs, which hold the state of their own step.
# Runs alone: it measures device memory, of which CUDA says no more than how much is free.
# shellcheck source=tests/support/device_run.sh
source "${TESS_SOURCE_DIR:?set by ctest}/tests/support/device_run.sh"
# On a GPU 190 MB of state, so that a copy takes milliseconds; over the fake, which copies in place, little.
if [ -z "$is_fake" ]; then
    sed -i 's/"hidden_size": 32/"hidden_size": 512/; s/"intermediate_size": 48/"intermediate_size": 1792/
        s/"num_hidden_layers": 2/"num_hidden_layers": 4/; s/"head_dim": 8/"head_dim": 128/' model/config.json
fi
sed '/^base:/d; /^lora:/d; s/train: {/train: {mode: full, schedule: constant, /' run.yaml > full.yaml
run_file=full.yaml
steps=(train.warmup_steps=0 train.micro_batch=8)
run_on cuda loaded 1 "${steps[@]}" train.steps=4 output.checkpoint_every=1 output.keep=9 output.trace=true
run_on cuda quiet 1 "${steps[@]}" train.steps=3 output.checkpoint_every=0

# Step 3 was saved while step 4 ran, and in the quiet run after everything.
"$tessera" diff loaded/step-0000000003.* quiet/step-0000000003.* > difference 2>&1 ||
    { head -n 5 difference; fail "a snapshot under load holds another state"; }
diff <(untimed loaded/metrics.jsonl | head -n 3) <(untimed quiet/metrics.jsonl) || fail "a trace changes the bits"

# ---- traces ----
beside=()
[ -n "$is_fake" ] || beside=(--beside)
"$check_run" trace loaded/trace.0.json "${beside[@]}" || fail "loaded: its trace"
grep -q '"cat":"copy"' loaded/trace.0.json || fail "loaded: no copies of snapshots in the trace"
run_on cuda traced2 2 "${steps[@]}" train.steps=2 output.checkpoint_every=1 output.trace=true shard.gather_group=world
"$check_run" trace traced2/trace.0.json traced2/trace.1.json || fail "traced2: its traces"
for lane in gather reduce; do
    grep -q "\"cat\":\"$lane\"" traced2/trace.1.json || fail "traced2: nothing in lane $lane"
done
# The check finds what it looks for: an event that starts before its lane is free, lost events, half a file.
untrue() { # what, sed program
    sed "$2" loaded/trace.0.json > tampered.json
    ! cmp -s loaded/trace.0.json tampered.json || fail "$1: nothing was changed"
    ! "$check_run" trace tampered.json > difference 2>&1 || fail "$1 passes"
}
last_forward="$(grep -n '"name":"forward ' loaded/trace.0.json | tail -n 1 | cut -d : -f 1)"
untrue "an event before its time" "${last_forward}s/\"ts\":[0-9.]*/\"ts\":0.5/"
untrue "a lost event" 's/"lost_events":0/"lost_events":1/'
untrue "a lane without a name" 's/{"name":"gather"}/{"name":"other"}/'
untrue "half a file" '$d'
# That a copy runs beside kernels: not over the fake, but where one is moved there.
copy="$(grep -n '"cat":"copy"' loaded/trace.0.json | tail -n 1 | cut -d : -f 1)"
start_us="$(grep '"cat":"compute"' loaded/trace.0.json | grep -v '"wait ' | tail -n 1 |
    sed 's/.*"ts":\([0-9.]*\),.*/\1/')"
[ -z "$is_fake" ] || ! "$check_run" trace loaded/trace.0.json --beside > difference 2>&1 ||
    fail "copies beside kernels over the fake"
sed "${copy}s/\"ts\":[0-9.]*/\"ts\":$start_us/" loaded/trace.0.json > tampered.json
"$check_run" trace tampered.json --beside > difference 2>&1 ||
    fail "a copy beside a kernel is not seen: $(cat difference)"
! "$check_run" trace quiet/trace.0.json > difference 2>&1 || fail "no trace passes"

# ---- memory, attention ----
# key: bytes in plan.json
planned() { sed -n "s/^ *\"$1\": \([0-9]*\),\{0,1\}\$/\1/p" loaded/plan.json | tail -n 1; }
memory_as_planned "a training run" "$(last loaded/metrics.jsonl mem_device_peak)" \
    $(($(planned total) - $(planned outside_arenas))) "$(planned libraries)"
grep -E "attention: |collectives: |device memory: " loaded.log
says loaded "attention: .+"
says loaded "device memory: planned [0-9.]+ MiB, of it [0-9.]+ MiB for libraries; taken [0-9.]+ MiB"
head -c $((1100 * 132)) "$source_dir/tests/golden/descriptors/train.bvecs" > train.bvecs
cat > kmeans.yaml << 'YAML'
model: {family: kmeans}
data: {path: train.bvecs}
quantizer: {codes: 7, levels: 2, passes: 2, refine: 1}
output: {dir: out, checkpoint_every: 0}
YAML
run_file=kmeans.yaml run_on cuda kmeans 1
memory_as_planned k-means "$(last kmeans/metrics.jsonl mem_device_peak)" \
    "$(sed -n 's/.*"total_nbytes": \([0-9]*\).*/\1/p' kmeans/plan.json)" 0
says kmeans "device memory: planned [0-9.]+ MiB, of it 0.0 MiB for libraries; taken [0-9.]+ MiB"
passed
