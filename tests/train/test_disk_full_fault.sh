#!/usr/bin/env bash
# output.on_disk_full, probe_disk, verify_after_save and keep_every through the program: disks without
# room, real and injected, and runs that end with the bits of one that nothing happened to.
. "${TESS_SOURCE_DIR:?set by ctest}/tests/support/cli_run.sh"
export TESSERA_PAUSE_S=0.2
launch 1 train run.yaml output.dir=whole
[ "$rc" -eq 0 ] || fail "the run in one go: exit code $rc"
bits_of whole > bits.want
[ "$(wc -l < bits.want)" -eq 31 ] || fail "expected 30 steps and a digest"

check_bits() {
    bits_of "$1" > bits.found
    cmp -s bits.want bits.found || fail "$2: bits differ: $(diff bits.want bits.found | head -n 5)"
    rm -rf "$1"
}

# Steps of the checkpoints of a folder.
steps_of() { ls -d "$1"/step-*/MANIFEST | sed 's/.*step-0*\([0-9]*\)\..*/\1/' | sort -n | tr '\n' ' '; }

# ---- no room for one save, whichever rank finds it ----
# The 5th file that a rank reserves room for is that of a save in the midst of the run.
for n in 1 2 3 4; do
    export TESSERA_FAULT="$((n - 1)):fallocate:5:enospc"
    launch "$n" train run.yaml output.on_disk_full=pause
    [ "$rc" -eq 0 ] || fail "pause at n=$n: exit code $rc"
    [ "$(grep -c 'training pauses after step' log)" -eq 1 ] || fail "pause at n=$n: not said once"
    dropped="$(sed -n 's/.*checkpoint of step \([0-9]*\) was dropped: .*a checkpoint needs [0-9]* bytes, .* has [0-9]* free.*/\1/p' log)"
    [ -n "$dropped" ] || fail "pause at n=$n: the room that is needed is not told"
    grep -q "checkpoint step=$dropped " log || fail "pause at n=$n: step $dropped was never written"
    [ "$(grep -c 'checkpoint step=' log)" -eq 15 ] || fail "pause at n=$n: not 15 checkpoints"
    check_bits out "pause at n=$n"
done
TESSERA_FAULT=1:fallocate:5:edquot launch 3 train run.yaml
[ "$rc" -eq 0 ] || fail "continue: exit code $rc"
[ "$(grep -c 'checkpoint step=' log)" -eq 14 ] || fail "continue: not 14 checkpoints"
check_bits out continue
TESSERA_FAULT=1:fallocate:5:efbig launch 3 train run.yaml output.on_disk_full=stop
[ "$rc" -eq 74 ] || fail "stop: exit code $rc"
[ "$(grep -c 'tessera: error:' log)" -eq 1 ] || fail "stop: not one error line"
grep -q 'tessera: error: output.on_disk_full is stop, .* step [0-9]*: rank 1: .*needs [0-9]* bytes' log ||
    fail "stop: nothing said"
unset TESSERA_FAULT
launch 2 train run.yaml
[ "$rc" -eq 0 ] && grep -q 'resumed from' log || fail "after stop: exit code $rc"
check_bits out "after stop"
# another error than a full disk neither stops nor pauses
TESSERA_FAULT=0:fallocate:5:eio launch 1 train run.yaml output.on_disk_full=stop
[ "$rc" -eq 0 ] || fail "an error of the disk: exit code $rc"
check_bits out "an error of the disk"
# asked to end in a pause, a run looks once more: there is room, so nothing is lost
TESSERA_PAUSE_S=3600 TESSERA_FAULT=1:fallocate:5:enospc start 2 train run.yaml output.on_disk_full=pause
await 'training pauses after step' 60
kill -USR1 $(mpirun_of "$job")
finish
[ "$rc" -eq 75 ] || fail "asked to end in a pause: exit code $rc, expected 75"
dropped="$(sed -n 's/.*checkpoint of step \([0-9]*\) was dropped: .*/\1/p' log)"
grep -q "checkpoint step=$dropped " log || fail "asked to end in a pause: step $dropped was never written"
launch 3 train run.yaml
[ "$rc" -eq 0 ] && grep -q 'resumed from' log || fail "after an end in a pause: exit code $rc"
check_bits out "after an end in a pause"
echo "no room for one save: pause, continue, stop"

# at the last step there is nothing to stop: the result is exported
TESSERA_FAULT=1:fallocate:3:enospc launch 2 train run.yaml train.steps=6 output.on_disk_full=stop
[ "$rc" -eq 74 ] && [ -f out/export/adapter_model.safetensors ] || fail "stop at the last step: exit code $rc"
[ "$(grep -c 'tessera: error:' log)" -eq 1 ] || fail "stop at the last step: not one error line"
rm -rf out
cat > vectors.yaml << YAML
model: {family: kmeans}
data: {path: $source_dir/tests/golden/descriptors/train.bvecs}
quantizer: {codes: 8}
output: {dir: out, checkpoint_every: 0, on_disk_full: stop}
YAML
TESSERA_FAULT=0:fallocate:1:enospc launch 2 train vectors.yaml
[ "$rc" -eq 74 ] && [ -f out/export/codebooks.safetensors ] || fail "stop at the last pass: exit code $rc"
rm -rf out

# ---- no room for the checkpoint that a rollback goes back to ----
# Which steps spike depends on bits: those of the path that every machine has.
export TESSERA_CPU_PATH=portable
back=(train.steps=56 output.checkpoint_every=5 output.keep=3 train.on_spike=rollback train.spike_threshold=4
    compute.device=cpu)
launch 1 train run.yaml "${back[@]}" output.dir=back
[ "$rc" -eq 0 ] || fail "rollbacks: exit code $rc"
grep -q 'rollback 1 .* to the checkpoint of step 35;' log || fail "rollbacks: none to step 35"
cp bits.want bits.usual
bits_of back > bits.want
for fault in 1:fallocate:7:enospc 1:fallocate:7:eio; do # rank 1 reserves no room for a base: step 35
    TESSERA_FAULT="$fault" launch 2 train run.yaml "${back[@]}"
    [ "$rc" -eq 74 ] || fail "rollback past a lost checkpoint: exit code $rc"
    grep -q 'tessera: error: step [0-9]* spikes, and the checkpoint of step 35 that it is to go back to' log ||
        fail "rollback past a lost checkpoint: nothing said"
    launch 3 train run.yaml "${back[@]}"
    [ "$rc" -eq 0 ] && grep -q 'resumed from .* at step 30 ' log || fail "after a lost checkpoint: exit code $rc"
    check_bits out "after a lost checkpoint"
done
unset TESSERA_CPU_PATH
cp bits.usual bits.want
rm -rf out
echo "rollbacks keep their bits without room"

# ---- checkpoints that stay, and are read back ----
"$tessera" plan run.yaml output.keep_every=8 > log || fail "plan: exit code $?"
grep -q 'at most at once .*(keep 2 and one more, 3 that stay)' log || fail "plan: nothing of disks"
launch 2 train run.yaml output.keep_every=8 output.verify_after_save=true output.probe_disk=true train.steps=20
[ "$rc" -eq 0 ] || fail "keep_every: exit code $rc"
[ "$(steps_of out)" = "8 16 18 20 " ] || fail "keep_every: checkpoints of steps $(steps_of out)"
grep -q 'read_back_s=0.0*[1-9]' log || fail "verify_after_save: nothing was read"
launch 3 train run.yaml output.keep_every=8 output.verify_after_save=true --accept-config-change
[ "$rc" -eq 0 ] || fail "keep_every, resumed: exit code $rc"
[ "$(steps_of out)" = "8 16 24 28 30 " ] || fail "keep_every, resumed: checkpoints of steps $(steps_of out)"
for dir in out/step-*; do
    "$tessera" verify "$dir" > /dev/null 2>&1 || fail "$dir does not verify"
done
rm -rf out
launch 2 train run.yaml output.verify_after_save=true output.probe_disk=true
[ "$rc" -eq 0 ] || fail "verify_after_save: exit code $rc"
check_bits out "verify_after_save"
# one rank cannot read back what it wrote: that save is dropped, the next ones are not
TESSERA_FAULT=1:fadvise:2:eio launch 2 train run.yaml output.verify_after_save=true output.on_disk_full=stop
[ "$rc" -eq 0 ] || fail "a save that does not read back: exit code $rc"
grep -q 'checkpoint of step 4 was dropped: rank 1: fadvise' log || fail "a save that does not read back: nothing said"
[ "$(grep -c 'checkpoint step=' log)" -eq 14 ] || fail "a save that does not read back: not 14 checkpoints"
check_bits out "a save that does not read back"
is_killed=1
TESSERA_FAULT=1:fadvise:3:kill launch 2 train run.yaml output.verify_after_save=true
is_killed=
[ "$rc" -eq 137 ] || fail "killed while it reads back: exit code $rc"
launch 3 train run.yaml output.verify_after_save=true
[ "$rc" -eq 0 ] && grep -q 'resumed from .* at step 4 ' log || fail "after a kill while it read back: exit code $rc"
check_bits out "after a kill while it read back"
# rank 1 holds no base: the first file it reserves room for is the probe's
TESSERA_FAULT=1:fallocate:1:enospc launch 3 train run.yaml output.probe_disk=true
[ "$rc" -eq 74 ] || fail "probe_disk: exit code $rc"
grep -q 'tessera: error: output.probe_disk: rank 1: .*needs [0-9]* bytes' log || fail "probe_disk: nothing said"
[ "$(grep -c 'tessera: error:' log)" -eq 1 ] || fail "probe_disk: not one error line"
! grep -q 'step 1/' log || fail "probe_disk: training began"
[ -z "$(ls -d out/step-* 2> /dev/null)" ] || fail "probe_disk: files stay"
rm -rf out
echo "keep_every, verify_after_save, probe_disk"

# ---- a disk that is full ----
unshare -m true 2> /dev/null && unshare -m mount -t tmpfs none "$work/model" 2> /dev/null ||
    { echo "full disks: skipped, needs root and mount namespaces"; exit 0; }
mkdir disk
cat > on_disk << 'SH'
# With a base and a checkpoint, and no room for another: a run pauses; asked to stop it ends, and with
# room it goes on.
fill() { dd if=/dev/zero of=disk/fill bs=1k count=$(($(stat -f -c "%a * %S" disk) / 1024 - 60)) 2> /dev/null; }
await() {
    local i
    for ((i = 0; i < 3000; i++)); do
        ! grep -q "$1" "log.$phase" || return 0
        kill -0 "$job" 2> /dev/null || return 1
        sleep 0.02
    done
    return 1
}
begin() {
    phase="$1"
    timeout 120 "${run[@]}" > "log.$phase" 2>&1 &
    job=$!
    await 'training pauses after step' || exit "$2"
}
# the ranks' launcher, below timeout
signal() { kill "-$1" "$(pgrep -P "$job" -x mpirun)"; }

mount -t tmpfs -o size=2m none disk || exit 77
run=("$@")
TESSERA_FAULT=0:link:4:kill timeout 60 "${run[@]}" && exit 1
fill
begin stopped 2
signal USR2
await 'stack of the main thread' || exit 3
signal USR1
wait "$job"
[ $? -eq 74 ] || exit 4
begin resumed 5
sleep 1 # several looks at a disk that is still full
rm disk/fill
wait "$job" || exit 6
cp -r disk/out full
rm -r disk/out
fill
timeout 60 "${run[@]}" output.probe_disk=true > log.probe 2>&1
[ $? -eq 74 ] || exit 7
SH
unshare -m bash on_disk mpirun --oversubscribe -n 2 "$tessera" train run.yaml output.dir=disk/out \
    output.on_disk_full=pause > log 2>&1
rc=$?
cat log.* >> log 2> /dev/null
[ "$rc" -ne 77 ] || { echo "full disks: skipped, needs mount"; exit 0; }
[ "$rc" -eq 0 ] || fail "full disk: phase $rc"
grep -q 'tessera: error: .*checkpoint of step [0-9]* could not be written' log.stopped ||
    fail "stopped in a pause: the lost save is not told"
[ "$(grep -c 'training pauses after step' log.resumed)" -eq 1 ] || fail "the pause is not said once"
[ "$(grep -c 'was dropped' log.resumed)" -eq 1 ] || fail "the dropped save is not said once"
grep -q 'was dropped: .*checkpoint(s) need [0-9]* bytes, [0-9]* are free' log.resumed ||
    fail "the room that is needed is not told"
! grep -q 'step 1/' log.probe || fail "a full disk: training began"
check_bits full "after a pause"
echo "full disks"
