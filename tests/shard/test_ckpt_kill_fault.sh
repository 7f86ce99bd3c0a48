#!/usr/bin/env bash
# SIGKILL of one rank at a sample of the I/O calls of a life that loads and saves, at 2 and 3 ranks:
# the job ends, and the next life loads the newest checkpoint with the right contents.
set -u
program="${TESS_BUILD_DIR:?set by ctest}/tests/shard.test_ckpt_fault_mpi"
command -v mpirun > /dev/null || { echo "skipped: needs mpirun"; exit 77; }
[ -x "$program" ] || { echo "skipped: needs $program"; exit 77; }
parent="${TMPDIR:-/tmp}"
[ -w /dev/shm ] && parent=/dev/shm
work="$(mktemp -d "$parent/tessera-kill-XXXXXX")"
trap 'rm -rf "$work"' EXIT

fail() {
    echo "$*"
    cat "$work/out"
    exit 1
}

# ranks, arguments...: run and keep the output
launch() {
    local n="$1"
    shift
    timeout --kill-after=5 60 mpirun --oversubscribe --mca odls_base_sigkill_timeout 0 -n "$n" \
        "$program" "$@" > "$work/out" 2>&1
}

# A life in which a call kills its rank: all ranks must be gone within a minute. mpirun itself may not end even then
# (tests/train/test_kill_fault.sh): it is ended, and counted.
launcher_hangs=0
live_killed() { # ranks, fault
    local job ranks until_s=$((SECONDS + 60))
    TESSERA_FAULT="$2" mpirun --oversubscribe --mca odls_base_sigkill_timeout 0 -n "$1" "$program" live "$dir" \
        > "$work/out" 2>&1 &
    job=$!
    while kill -0 "$job" 2> /dev/null && [ "$SECONDS" -lt "$until_s" ]; do sleep 0.02; done
    if kill -0 "$job" 2> /dev/null; then
        ranks="$(grep -lsx "PPid:[[:space:]]*$job" /proc/[0-9]*/status | xargs -r grep -Ls '^State:[[:space:]]*Z')"
        kill -KILL "$job"
        [ -z "$ranks" ] || fail "n=$1, $2: ranks live on after 60 s"
        launcher_hangs=$((launcher_hangs + 1))
        echo "mpirun does not end, its ranks have (n=$1, $2)"
    fi
    { wait "$job"; } 2> /dev/null
}

killed=0
for n in 2 3; do
    dir="$work/run$n"
    launch "$n" live "$dir" || fail "n=$n: the first life failed"
    least=2
    call=1
    while [ "$call" -le 380 ]; do
        rank=$((call % n))
        live_killed "$n" "$rank:any:$call:kill" || killed=$((killed + 1))
        launch "$n" check "$dir" "$least" || fail "n=$n rank $rank call $call: the check failed"
        call=$((call + 23 + n))
    done
    # and the run goes on
    launch "$n" live "$dir" || fail "n=$n: the last life failed"
    grep -q "committed" "$work/out" || fail "n=$n: the last life said nothing"
done
[ "$killed" -ge 12 ] || fail "only $killed lives were killed"
[ "$launcher_hangs" -le 2 ] || fail "mpirun did not end $launcher_hangs times"

# A small disk: the save that does not fit is dropped by all, the old checkpoint loads.
if unshare -m true 2> /dev/null; then
    disk="$work/disk"
    mkdir "$disk"
    unshare -m bash -c '
        set -u
        mount -t tmpfs -o size=900k none "$2" || exit 77
        mpirun --oversubscribe -n 2 "$1" live "$2/run" || exit 1
        dd if=/dev/zero of="$2/fill" bs=1k count=1000 2> /dev/null
        mpirun --oversubscribe -n 2 "$1" live "$2/run" || exit 2
        mpirun --oversubscribe -n 2 "$1" check "$2/run" 2 || exit 3
        rm "$2/fill"
        mpirun --oversubscribe -n 2 "$1" live "$2/run" || exit 4
    ' - "$program" "$disk" > "$work/out" 2>&1
    rc=$?
    if [ "$rc" -eq 77 ]; then
        echo "small disk: skipped, needs mount"
    else
        [ "$rc" -eq 0 ] || fail "small disk: phase $rc"
        [ "$(grep '^loaded' "$work/out" | tr '\n' ';')" = \
            "loaded -1 committed 2;loaded 2 committed -1;loaded 2 committed 4;" ] ||
            fail "small disk: other outcomes"
    fi
else
    echo "small disk: skipped, needs mount namespaces"
fi
echo "$killed lives killed"
