#!/usr/bin/env bash
# Runs on a device that are killed, in the middle of a step and of a save, and go on with the bits of a run that nothing
# happened to; checkpoints of a device that go on on the CPU, and back.
# shellcheck source=tests/support/device_run.sh
source "${TESS_SOURCE_DIR:?set by ctest}/tests/support/device_run.sh"

# ---- SIGKILL of a rank, whatever it does ----
# Endless runs, so that none is over before it is killed; what is compared is the steps that both have made.
endless=(train.steps=1000000 train.schedule=constant output.checkpoint_every=2)
# folder, ranks, arguments: until a checkpoint of that step or a later one is on disk
run_until() {
    local dir="$1" ranks="$2" step="$3" seen
    device_launches=$((device_launches + 1))
    start "$ranks" train run.yaml compute.device=cuda compute.share_device=true "output.dir=$dir" "${endless[@]}"
    await 'checkpoint step=' 60
    for ((i = 0; i < 3000; i++)); do
        seen="$(sed -n 's/.*checkpoint step=\([0-9]*\) .*/\1/p' log | tail -n 1)"
        [ "$seen" -lt "$step" ] || return 0
        kill -0 "$job" 2> /dev/null || fail "$dir ended before step $step"
        sleep 0.02
    done
    fail "$dir: step $seen after 60 s, expected $step"
}
# folder: a save on request
stop() {
    kill -USR1 "$(mpirun_of "$job")"
    finish
    cp log "$1.log"
    [ "$rc" -eq 75 ] || fail "$1: exit code $rc after SIGUSR1, expected 75"
}
kill_rank() { # folder, rank's place among the processes
    local ranks state alive=1
    mapfile -t ranks < <(ranks_of "$job")
    [ -n "${ranks[$2]:-}" ] || fail "$1: found ${#ranks[@]} ranks"
    kill -KILL "${ranks[$2]}"
    for ((i = 0; i < 1500 && alive; i++)); do
        alive=0
        for p in $(ranks_of "$job"); do
            state="$(sed 's/.*) //' "/proc/$p/stat" 2> /dev/null | cut -c 1)"
            [ -z "$state" ] || [ "$state" = Z ] || alive=1
        done
        [ "$alive" -eq 0 ] || sleep 0.02
    done
    [ "$alive" -eq 0 ] || fail "$1: ranks live on 30 s after one was killed"
    kill -KILL "$(mpirun_of "$job")" 2> /dev/null # it may hang in its own end (tests/train/test_kill_fault.sh)
    is_killed=1
    finish
    is_killed=
    [ "$rc" -ne 0 ] || fail "$1: a killed run ended with 0"
    last_step="$(ls -d "$1"/step-*/MANIFEST | tail -n 1 | sed 's/.*step-0*\([0-9]*\).*/\1/')"
}
same_prefix() { # folder, folder: the steps that both have, 8 at least
    local numel
    numel="$(cat "$1/metrics.jsonl" "$2/metrics.jsonl" | sed -n 's/{"step": \([0-9]*\),.*/\1/p' | sort -n | uniq -d |
        wc -l)"
    [ "$numel" -ge 8 ] || fail "$1 and $2 have only $numel steps in common"
    untimed "$1/metrics.jsonl" | head -n "$numel" > want
    untimed "$2/metrics.jsonl" | head -n "$numel" > got
    diff want got > difference || { cut -c 1-400 difference; fail "$2 has other steps than $1"; }
    echo "$2: $numel steps as in $1"
}
run_until whole 1 16
stop whole
run_until killed 2 4
kill_rank killed 1
first_kill="$last_step"
run_until killed 1 $((last_step + 4))
kill_rank killed 0
grep -q "resumed from .* at step $first_kill " log || fail "the second life did not go on from step $first_kill"
run_until killed 4 $((last_step + 2))
stop killed
same_prefix whole killed

# ---- killed at one place of a save ----
short=(train.steps=4 train.warmup_steps=0 output.checkpoint_every=2 compute.dtype=f32)
run_on cuda short 1 "${short[@]}"
is_killed=1
export TESSERA_FAULT=0:link:3:kill # before the manifest of step 4 has its name: the base and step 2 have theirs
tessera_on cuda 2 train run.yaml compute.device=cuda compute.share_device=true output.dir=torn "${short[@]}"
unset TESSERA_FAULT
is_killed=
[ "$rc" -eq 137 ] || fail "torn: exit code $rc, expected 137"
[ ! -e torn/export ] || fail "torn: it was over before it was killed"
run_on cuda torn 1 "${short[@]}"
says torn "resumed from .* at step 2 "
same_runs short torn

# ---- a checkpoint of the device on the CPU, and back ----
run_on cpu short.cpu 1 "${short[@]}"
agree llama-f32 short.cpu short
# first, second: after step 2 of one the other goes on
move() {
    local dir="$1.$2" from=short.cpu
    [ "$1" = cpu ] || from=short
    cp -r "$from" "$dir"
    forget_after "$dir" 2
    tessera_on "$2" 1 train run.yaml "compute.device=$2" "output.dir=$dir" "${short[@]}"
    [ "$rc" -eq 65 ] || fail "$dir: a resume on another backend was not refused: exit code $rc"
    grep -q "accept-config-change" log || fail "$dir: the refusal names no way out"
    run_on "$2" "$dir" 1 "${short[@]}" --accept-config-change
    says "$dir" "resumed from .* at step 2 "
    "$check_run" losses llama-f32 short.cpu "$dir" > difference 2>&1 || fail "$dir: $(cat difference)"
    same_base short.cpu "$dir"
    [ -z "$is_fake" ] || cmp short.cpu/export/adapter_model.safetensors "$dir/export/adapter_model.safetensors" ||
        fail "$dir: another adapter"
}
move cuda cpu
move cpu cuda
passed
