#!/bin/bash
# Whole runs on a device with memory of its own (tests/emulation/fake_plugin.c), through the same
# plugin door as CUDA: the CPU's bits with both kinds of collectives at 1 to 3 ranks, checkpoints
# that move between host and device, failures of collectives in the middle of a run.
# shellcheck source=tests/support/cli_run.sh
source "${TESS_SOURCE_DIR:?set by ctest}/tests/support/cli_run.sh"
export TESSERA_CUDA_PLUGIN="${TESS_FAKE_CUDA:?set by ctest}"
[ -f "$TESSERA_CUDA_PLUGIN" ] || { echo "skipped: needs $TESSERA_CUDA_PLUGIN"; exit 77; }
steps=(train.steps=6 output.checkpoint_every=3)

# folder, ranks, arguments: a run that must succeed
run_file=run.yaml
run_in() {
    local dir="$1" ranks="$2"
    shift 2
    launch "$ranks" train "$run_file" "${steps[@]}" "output.dir=$dir" "$@"
    [ "$rc" -eq 0 ] || fail "$dir: exit code $rc"
}

# folder, folder of the expectation
expect_bits() {
    bits_of "$2" > want || fail "no results in $2"
    bits_of "$1" > got || fail "no results in $1"
    [ "$(wc -l < want)" -ge 7 ] || fail "$2 has too few steps"
    diff want got > difference || { cat difference; fail "$1 differs from $2"; }
}

run_in host 1 compute.device=cpu
run_in host_f32 1 compute.device=cpu compute.dtype=f32 base.format=keep

# ---- the same bits on a device ----
export FAKE_CUDA_DEVICES=3
for n in 1 2 3; do
    run_in "direct$n" "$n" compute.device=cuda
    grep -q "collectives: emulated collectives" log || fail "direct$n: other collectives"
    grep -q "device: cuda:0, Fake H100 (sm_90, 64.0 GiB" log || fail "direct$n: no device line"
    expect_bits "direct$n" host
    export FAKE_CUDA_DEVICES=1
    run_in "shared$n" "$n" compute.share_device=true compute.activation_checkpointing=on
    [ "$n" -eq 1 ] || grep -q "collectives: through host memory and MPI; ranks share a GPU" log ||
        fail "shared$n: other collectives"
    expect_bits "shared$n" host
    export FAKE_CUDA_DEVICES=3
done
run_in gathered 2 shard.gather_group=2 shard.reshard_after_forward=on shard.prefetch=0 shard.check_base=on \
    compute.check_replay=2
expect_bits gathered host
run_in groups 2 shard.gather_group=1 shard.check_base=on shard.check_copies=2
expect_bits groups host
FAKE_CUDA_NCCL=none
export FAKE_CUDA_NCCL
run_in staged_f32 2 compute.dtype=f32 base.format=keep shard.gather_group=2
grep -q "collectives: through host memory and MPI; the CUDA part has no NCCL" log || fail "staged_f32"
unset FAKE_CUDA_NCCL
expect_bits staged_f32 host_f32

# ---- the same text: logits of a device come to memory that it pinned ----
cp "$source_dir"/examples/base/tokenizer*.json model/
for where in cpu cuda; do
    launch 2 sample run.yaml output.dir=host "compute.device=$where" \
        --prompt "line 3 counts" --tokens 6 --seed 5
    [ "$rc" -eq 0 ] || fail "sample on $where: exit code $rc"
    grep '^line 3 counts' log > "text.$where" || fail "sample on $where: no text"
done
cmp text.cpu text.cuda || fail "a sample on a device differs"
rm model/tokenizer*.json

# ---- checkpoints move ----
forget_step_6() {
    local newest
    newest="$(find "$1" -maxdepth 2 -type d -name 'step-0000000006.*')"
    [ -d "$newest" ] || fail "$1 has no checkpoint of step 6"
    rm -rf "$newest" "$1/export"
}
run_in moved 2 compute.device=cuda
forget_step_6 moved
launch 1 train run.yaml "${steps[@]}" output.dir=moved compute.device=cpu
[ "$rc" -eq 65 ] || fail "a resume on another backend was not refused: $rc"
grep -q "accept-config-change" log || fail "the refusal names no way out"
launch 1 train run.yaml "${steps[@]}" output.dir=moved compute.device=cpu --accept-config-change
[ "$rc" -eq 0 ] || fail "resume on the host: exit code $rc"
cmp -s moved/export/adapter_model.safetensors host/export/adapter_model.safetensors ||
    fail "device to host: another adapter"
cp -r host back
forget_step_6 back
run_in back 3 compute.device=cuda --accept-config-change
cmp -s back/export/adapter_model.safetensors host/export/adapter_model.safetensors ||
    fail "host to device: another adapter"
run_in again 2 compute.device=cuda
forget_step_6 again
run_in again 3 compute.device=cuda
expect_bits again host

# nothing of a base that is copied back makes the room that a replay needs
is_killed=1
TESSERA_FAULT=0:link:3:kill launch 2 train run.yaml "${steps[@]}" output.dir=replayed compute.device=cuda \
    compute.check_replay=1
is_killed=
[ "$rc" -eq 137 ] || fail "replayed: exit code $rc of a run that is killed"
run_in replayed 3 compute.device=cuda compute.check_replay=1
grep -q "resumed from '.*' at step 3 " log || fail "replayed: not resumed"
expect_bits replayed host

# ---- optimizers that exchange something in an update, of adapters and of all weights ----
sed -e '/^base:/d' -e '/^lora:/d' -e 's/^train: {/&mode: full, /' run.yaml > full.yaml
for run_file in run.yaml full.yaml; do
    for optimizer in adafactor-momentum muon; do
        name="$optimizer.$run_file"
        run_in "host.$name" 1 compute.device=cpu "train.optimizer=$optimizer"
        run_in "direct.$name" 3 compute.device=cuda "train.optimizer=$optimizer" compute.check_replay=3
        expect_bits "direct.$name" "host.$name"
        forget_step_6 "direct.$name"
        run_in "direct.$name" 2 compute.device=cuda "train.optimizer=$optimizer"
        expect_bits "direct.$name" "host.$name"
        export FAKE_CUDA_DEVICES=1
        run_in "shared.$name" 2 compute.share_device=true "train.optimizer=$optimizer"
        expect_bits "shared.$name" "host.$name"
        export FAKE_CUDA_DEVICES=3
    done
done
run_file=run.yaml

# ---- collectives that fail in the middle ----
export FAKE_CUDA_NCCL=fail:1:10
launch 2 train run.yaml "${steps[@]}" output.dir=failing compute.device=cuda shard.gather_group=2
[ "$rc" -eq 86 ] || fail "failing: exit code $rc"
grep -q "rank 1: emulated collectives, .*emulated failure: unhandled system error" log ||
    fail "failing: rank 1 is not named"
export FAKE_CUDA_NCCL=hang:1:10 TESSERA_DEADLINE_S=3
launch 2 train run.yaml "${steps[@]}" output.dir=hanging compute.device=cuda shard.gather_group=2
[ "$rc" -eq 86 ] || fail "hanging: exit code $rc"
grep -Eq "rank [01] waited [0-9.]+ s: (all_gather|exchange|reduce_scatter) '" log ||
    fail "hanging: no collective is named"

# ---- copies that fail on one rank, until a run makes fewer ----
# Whatever copy or collective is hit, all ranks leave at once, with the cause; none waits for its
# deadline.
unset FAKE_CUDA_NCCL
export TESSERA_DEADLINE_S=60
for n in 1 2 3; do
    for devices in 3 1; do # collectives between devices; through host memory
        export FAKE_CUDA_DEVICES="$devices"
        failed=0
        for ((at = 0; ; at += 1 + at / 3)); do
            what="copy $at of rank $((n - 1)), $n ranks on $devices devices"
            export FAKE_CUDA_FAULT="copy:$((n - 1)):$at"
            rm -rf copies
            began="$(now_ms)"
            launch "$n" train run.yaml "${steps[@]}" output.dir=copies compute.device=cuda \
                compute.share_device=true shard.gather_group="$n"
            took=$(($(now_ms) - began))
            [ "$rc" -ne 0 ] || break
            [ "$rc" -eq 70 ] || [ "$rc" -eq 86 ] || fail "$what: exit code $rc"
            grep -q "error: .*rank $((n - 1)): .*emulated failure of a copy" log ||
                { [ "$n" -eq 1 ] && grep -q "error: .*emulated failure of a copy" log; } ||
                fail "$what: the rank and its cause are not named"
            [ "$took" -lt 30000 ] || fail "$what: ended after $took ms"
            failed=$((failed + 1))
            echo "$what: $rc after $took ms"
        done
        [ "$failed" -ge 10 ] || fail "only $failed copies failed on $n ranks, $devices devices"
    done
done
