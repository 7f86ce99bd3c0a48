#!/usr/bin/env bash
# Whole runs that are killed, stopped, starved and crowded: whatever happens, the next start goes on
# from the newest committed checkpoint and ends with the bits of a run that nothing happened to.
# Runs alone: it measures how soon ranks end.
# TESS_KILL_SEED sets the instants, TESS_KILL_NUMEL the number of random kills.
. "${TESS_SOURCE_DIR:?set by ctest}/tests/support/cli_run.sh"
seed="${TESS_KILL_SEED:-$(date +%s)}"
kill_numel="${TESS_KILL_NUMEL:-20}"
RANDOM=$((seed % 32768))
echo "TESS_KILL_SEED=$seed"
worlds=(1 3 2 4 5)
lives=0
resumed_lives=0 # that said where they went on from
late_kills=0    # after a checkpoint was committed
last_step=0 # that a life said was committed
# All ranks must be gone 5 s after one of them was killed. In 720 kills on two cores with a load of 5
# to 12 the slowest took 0.4 s, half of them 0.02 s: the promised 5 s are ten times that.
limit_ms=5000
# mpirun itself may not end: Open MPI 4.1.4 with PMIx 4.2 was seen, with all ranks dead, in
# PMIx_server_finalize, where its main thread joins a progress thread that waits for a lock for ever.
# It is ended then, and counted.
launcher_hangs=0
job_limit_s=120 # soon, where that happens in a job whose rank ends itself; all runs here are tiny

# instant of the kill: wait for the end of all ranks, then of the job
finish_killed() {
    local p state until_ms=$(($1 + limit_ms)) alive=1
    while [ -n "$alive" ]; do
        alive=
        for p in $(ranks_of "$job"); do
            state="$(sed 's/.*) //' "/proc/$p/stat" 2> /dev/null | cut -c 1)"
            [ -z "$state" ] || [ "$state" = Z ] || alive="$alive $p"
        done
        took_ms=$(($(now_ms) - $1))
        [ -z "$alive" ] || [ "$(now_ms)" -lt "$until_ms" ] ||
            fail "ranks$alive live on $took_ms ms after a kill$2"
        [ -z "$alive" ] || sleep 0.02
    done
    until_ms=$(($(now_ms) + limit_ms))
    while kill -0 "$job" 2> /dev/null && [ -n "$(mpirun_of "$job")" ]; do
        if [ "$(now_ms)" -ge "$until_ms" ]; then
            launcher_hangs=$((launcher_hangs + 1))
            echo "mpirun does not end, its ranks have$2"
            kill -KILL $(mpirun_of "$job")
        fi
        sleep 0.02
    done
    is_killed=1
    finish
    is_killed=
}

check_resumed() {
    local at
    at="$(sed -n "s/.*resumed from .* at step \([0-9]*\) .*/\1/p" log | head -n 1)"
    if [ -z "$at" ]; then
        # killed before it loaded, or there was nothing to load
        [ "$last_step" -eq 0 ] || ! grep -q 'checkpoint step=\|^step' log ||
            fail "step $last_step was committed and the next life began anew"
    else
        [ "$at" -ge "$last_step" ] || fail "step $last_step was committed, the next life is at $at"
        resumed_lives=$((resumed_lives + 1))
    fi
    at="$(sed -n 's/.*checkpoint step=\([0-9]*\) .*/\1/p' log | tail -n 1)"
    last_step="${at:-$last_step}"
}

# folder: the finished run has the reference's bits; then it is cleared away
check_finished() {
    bits_of "$1" > bits.found
    cmp -s bits.want bits.found || fail "$1: bits differ: $(diff bits.want bits.found | head -n 5)"
    rm -rf "$1"
    last_step=0
    done_numel=$((done_numel + 1))
}

done_numel=0
launch 1 train run.yaml output.dir=whole
[ "$rc" -eq 0 ] || fail "the run in one go: exit code $rc"
bits_of whole > bits.want
[ "$(wc -l < bits.want)" -eq 31 ] || fail "expected 30 steps and a digest"

# ---- SIGKILL at uniform instants: of 20, 8 or more after a committed checkpoint, and 4 or more lives that go on ----
# (a life after a late kill may be killed itself before it says that it does)
killed=0
slowest_ms=0
declare -A span_ms
while [ "$killed" -lt "$kill_numel" ] || [ $((late_kills * 20)) -lt $((kill_numel * 8)) ] ||
    [ $((resumed_lives * 20)) -lt $((kill_numel * 4)) ]; do
    n="${worlds[$((lives % 5))]}"
    lives=$((lives + 1))
    [ "$lives" -lt $((kill_numel * 6)) ] || fail "only $killed of $lives lives were killed, $late_kills of them" \
        "after a committed checkpoint, and $resumed_lives resumed"
    # the first life of a size is timed, as far as a kill lets it
    limit="${span_ms[$n]:-1500}"
    at_ms=$(((RANDOM * 32768 + RANDOM) % limit))
    start_ms="$(now_ms)"
    start "$n" train run.yaml
    sleep "$((at_ms / 1000)).$(printf %03d $((at_ms % 1000)))"
    pids=($(ranks_of "$job"))
    if [ "${#pids[@]}" -gt 0 ]; then
        kill -KILL "${pids[$((RANDOM % ${#pids[@]}))]}" 2> /dev/null
    else
        kill -KILL $(mpirun_of "$job") "$job" 2> /dev/null
    fi
    finish_killed "$(now_ms)" " (n=$n, at $at_ms ms, ${#pids[@]} ranks seen)"
    slowest_ms=$((took_ms > slowest_ms ? took_ms : slowest_ms))
    check_resumed
    if [ "$rc" -eq 0 ]; then
        span_ms[$n]=$(($(now_ms) - start_ms))
        check_finished out
        continue
    fi
    # on the disk, not as the log has it: its last lines may be lost
    [ -z "$(ls out/step-*/MANIFEST 2> /dev/null)" ] || late_kills=$((late_kills + 1))
    # lives that end early were short: the instants of the next one reach further, on a slow machine soon far enough
    span_ms[$n]=$((limit * 5 / 4 + 300))
    killed=$((killed + 1))
done
echo "$killed kills in $lives lives at uniform instants, $late_kills after a committed checkpoint; the ranks" \
    "were gone after $slowest_ms ms at most"
launch 3 train run.yaml
[ "$rc" -eq 0 ] || fail "the life after the last kill: exit code $rc"
check_resumed
check_finished out
echo "$resumed_lives lives said that they resumed"

# ---- a kill in each phase of a save, on rank 0 and on another ----
# What the life since file `mark` was at when it died, as its directory shows.
phase_of() {
    local changed newest d
    changed="$(find out -maxdepth 1 -name 'step-*' -newer mark | sort)"
    newest="$(echo "$changed" | tail -n 1)"
    for d in $changed; do # an older checkpoint that has lost its manifest
        [ -e "$d/MANIFEST" ] || [ -z "$(ls -d out/step-*/MANIFEST 2> /dev/null | tail -n 1)" ] ||
            [[ ! "$d" < "$(ls -d out/step-*/MANIFEST | tail -n 1)" ]] || { echo removal && return; }
    done
    if [ -n "$(find out -maxdepth 1 -name LATEST.tmp -newer mark)" ]; then
        echo latest
    elif [ -z "$newest" ]; then
        echo before
    elif [ -e "$newest/MANIFEST.tmp" ]; then
        [ -e "$newest/MANIFEST" ] && echo committed || echo manifest
    elif [ -e "$newest/MANIFEST" ]; then
        echo between
    else
        [ -n "$(ls "$newest")" ] && echo shards || echo attempt
    fi
}

# rank:operation:first call:phase. Which call of a life is in which phase depends on ranks and on
# what a life finds; calls are tried upwards from the first until the directory shows the phase. All
# lives of a search find the same directory, else a call may move on as fast as the search does.
keep_found() {
    rm -rf found
    [ ! -e out ] || cp -a out found
    found_step="$last_step"
}

phases=0
kills=0
for target in 0:mkdir:8:between 0:fsync:18:attempt 1:open:16:shards 1:fallocate:3:shards 1:pwrite:30:shards \
    2:fsync:4:shards 0:pwrite:20:manifest 0:link:2:manifest 0:unlink:9:committed 0:rename:6:latest \
    0:unlink:14:removal 0:rmdir:1:removal; do
    IFS=: read -r rank op call want <<< "$target"
    n="${worlds[$((1 + phases % 4))]}"
    [ "$n" -gt "$rank" ] || n=3
    keep_found
    first="$call"
    for ((tries = 0; tries < 50; tries++, call++)); do
        touch mark
        sleep 0.02
        is_killed=1
        TESSERA_FAULT="$rank:$op:$call:kill" launch "$n" train run.yaml
        is_killed=
        check_resumed
        if [ "$rc" -eq 0 ]; then # it made fewer calls than that, a run from the start makes more
            check_finished out
            keep_found
            call=$((first - 1))
            continue
        fi
        kills=$((kills + 1))
        [ "$rc" -eq 137 ] || fail "$rank:$op:$call at n=$n: exit code $rc"
        found="$(phase_of)"
        [ "$found" != "$want" ] || break
        rm -rf out
        [ ! -e found ] || cp -a found out
        last_step="$found_step"
    done
    [ "$tries" -lt 50 ] || fail "$target at n=$n: $tries lives and no kill in that phase, the last: $found"
    echo "$rank:$op:$call at n=$n: killed in phase $want"
    phases=$((phases + 1))
    if [ $((phases % 3)) -eq 0 ]; then
        launch "${worlds[$((phases / 3 % 5))]}" train run.yaml
        [ "$rc" -eq 0 ] || fail "after $target: exit code $rc"
        check_resumed
        check_finished out
    fi
done
launch 2 train run.yaml
[ "$rc" -eq 0 ] || fail "after all phases: exit code $rc"
check_finished out
echo "$kills kills to meet $phases phases of a save, $done_numel finished runs with equal bits"

# ---- SIGUSR1: save, 75, and go on ----
start 2 train run.yaml train.steps=100000
await 'checkpoint step=4 ' 60
kill -USR1 $(mpirun_of "$job")
finish
[ "$rc" -eq 75 ] || fail "SIGUSR1: exit code $rc, expected 75"
grep -q 'tessera: error: stopped on request after step' log || fail "SIGUSR1: nothing said"
at="$(sed -n 's/.*after step \([0-9]*\) of.*/\1/p' log | tail -n 1)"
start 3 train run.yaml train.steps=100000
await "resumed from .* at step $at " 60
kill -USR1 $(mpirun_of "$job")
finish
[ "$rc" -eq 75 ] || fail "SIGUSR1 while it starts: exit code $rc, expected 75"

# ---- SIGUSR2: every rank shows its collectives and its stack, and the run goes on ----
start 3 train run.yaml train.steps=100000
await 'resumed from' 60
await 'checkpoint step=' 60
kill -USR2 $(mpirun_of "$job")
for ((i = 0; i < 3; i++)); do
    await "# collectives of rank $i: [1-9][0-9]* made" 60
    await "rank $i: stack of the main thread:" 60
done
saved="$(grep -c 'checkpoint step=' log)"
await '^[0-9]* gather [0-9]* 3 all_gather [0-9]* done ' 60
await 'bin/tessera(.*\[0x' 60
until_ms=$(($(now_ms) + 60000))
while [ "$(grep -c 'checkpoint step=' log)" -le "$saved" ]; do
    [ "$(now_ms)" -lt "$until_ms" ] || fail "SIGUSR2: no checkpoint within 60 s after it"
    sleep 0.02
done
kill -USR1 $(mpirun_of "$job")
finish
[ "$rc" -eq 75 ] || fail "SIGUSR2, then SIGUSR1: exit code $rc, expected 75"

# ---- two jobs in one directory ----
start 1 train run.yaml train.steps=100000
await 'checkpoint step=' 60
first="$job"
first_log="$(cat log)"
pids=($(ranks_of "$first"))
kill -STOP "${pids[0]}"
launch 2 train run.yaml train.steps=100000
job="$first"
[ "$rc" -eq 74 ] || fail "the second job in one directory: exit code $rc, expected 74"
grep -q "tessera: error: .*$(hostname).*pid" log || fail "the holder is not named"
[ "$(grep -c 'tessera: error:' log)" -eq 1 ] || fail "more than one error line"
kill -KILL "${pids[0]}"
finish_killed "$(now_ms)" " of the first job"
start 2 train run.yaml train.steps=100000
await 'resumed from' 60
kill -USR1 $(mpirun_of "$job")
finish
[ "$rc" -eq 75 ] || fail "taking over: exit code $rc, expected 75"
rm -rf out

# ---- a rank that is killed, one that stands still ----
start 3 train run.yaml train.steps=100000 output.checkpoint_every=0
await 'step 1/' 60
pids=($(ranks_of "$job"))
kill -KILL "${pids[1]}"
finish_killed "$(now_ms)" " of rank 1"
[ "$rc" -ne 0 ] || fail "a killed rank: code 0"
rm -rf out
export TESSERA_DEADLINE_S=5
start 3 train run.yaml train.steps=100000 output.checkpoint_every=0
await 'step 1/' 60
pids=($(ranks_of "$job"))
kill_ms="$(now_ms)"
kill -STOP "${pids[1]}"
finish
took_ms=$(($(now_ms) - kill_ms))
unset TESSERA_DEADLINE_S
[ "$rc" -eq 86 ] && [ "$took_ms" -lt 30000 ] || fail "a stopped rank: code $rc, $took_ms ms"
grep -q 'tessera: error: .*rank' log || grep -q 'watchdog: rank' log ||
    fail "a stopped rank: no line names a rank"
rm -rf out

# ---- disks ----
if unshare -m true 2> /dev/null && unshare -m mount -t tmpfs none "$work/model" 2> /dev/null; then
    mkdir disk
    # the rest of the script sees the mount: everything below runs in the namespace
    mpi=(mpirun --oversubscribe -n 2 "$tessera" train run.yaml output.dir=disk/out)
    unshare -m bash -c '
        mount -t tmpfs -o size=2m none disk || exit 77
        TESSERA_FAULT=0:link:4:kill timeout 60 "$@" && exit 1
        left=$(($(stat -f -c "%a * %S" disk) / 1024 - 60))
        dd if=/dev/zero of=disk/fill bs=1k count=$left 2> /dev/null
        echo "the disk is full"
        timeout 60 "$@"
        [ $? -eq 74 ] || exit 2
        rm disk/fill
        echo "the disk has room"
        timeout 60 "$@" || exit 3
        cp -r disk/out full
        mount -o remount,ro disk || exit 77
        echo "the disk is read-only"
        timeout 60 "$@"
        [ $? -eq 74 ] || exit 4
    ' - "${mpi[@]}" > log 2>&1
    rc=$?
    [ "$rc" -eq 0 ] || fail "disks: phase $rc"
    sed -n '/is full/,/has room/p' log > log.full
    grep -q 'resumed from' log.full || fail "full disk: the old checkpoint did not load"
    grep -q 'checkpoint of step .* was dropped: .*bytes' log.full || fail "full disk: nothing said"
    grep -q 'step 30/30' log.full || fail "full disk: training did not go on"
    grep -q 'tessera: error: .*checkpoint of step 30 could not be written' log.full ||
        fail "full disk: a run whose last save is lost must say so"
    sed -n '/is read-only/,$p' log > log.ro
    [ "$(grep -c 'tessera: error:' log.ro)" -eq 1 ] || fail "read-only disk: not one error line"
    ! grep -q 'step 1/' log.ro || fail "read-only disk: training began"
    check_finished full
    echo "full and read-only disks"
else
    echo "full and read-only disks: skipped, needs root and mount namespaces"
fi
[ "$launcher_hangs" -le 2 ] || fail "mpirun did not end $launcher_hangs times"
