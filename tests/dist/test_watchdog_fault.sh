#!/usr/bin/env bash
# Faults of one rank of three: the job must end in time, with the right code and a line that says
# why. Runs alone: it measures how soon.
set -u
program="${TESS_BUILD_DIR:?set by ctest}/tests/dist.test_watchdog_fault_mpi"
command -v mpirun > /dev/null || exit 77
[ -x "$program" ] || exit 77
out="$(mktemp)"
trap 'rm -f "$out"' EXIT
bad=0

# fault, exit code (any: not 0), seconds allowed, text that must appear
run() {
    local fault="$1" want="$2" limit="$3" text="$4" start end rc
    start=$(date +%s%N)
    timeout --kill-after=5 60 mpirun --oversubscribe --mca odls_base_sigkill_timeout 0 -n 3 \
        "$program" "$fault" > "$out" 2>&1
    rc=$?
    end=$(date +%s%N)
    local ms=$(((end - start) / 1000000))
    if { [ "$want" = any ] && [ "$rc" -eq 0 ]; } ||
        { [ "$want" != any ] && [ "$rc" -ne "$want" ]; }; then
        echo "$fault: exit code $rc, expected $want"
        bad=1
    fi
    if [ "$ms" -gt $((limit * 1000)) ]; then
        echo "$fault: took $ms ms, allowed $limit s"
        bad=1
    fi
    if [ -n "$text" ] && ! grep -qF -- "$text" "$out"; then
        echo "$fault: no line with '$text'"
        bad=1
    fi
    [ "$bad" -eq 0 ] || cat "$out"
    echo "$fault: exit code $rc after $ms ms"
}

# a stopped rank: the waits of the others expire (2 s)
call="all_gather 'blk.2/frozen' (sequence 3, entry 2, stream gather, 3 ranks)"
run stop 86 10 "$call: nothing heard from rank 1"
# a rank that hangs outside of communication: its own watchdog (1 s)
run hang 86 10 "watchdog: rank 1 is late: step 3, section 'step' had 1.0 s"
grep -qF "rank 1: stack of the late thread:" "$out" &&
    grep -q "test_watchdog_fault_mpi.*\[0x" "$out" || {
    echo "hang: no stack of the late thread"
    bad=1
}
grep -qE "^[0-9]+ gather [0-9]+ 3 all_gather 2 done .* blk.2/frozen$" "$out" || {
    echo "hang: no dump of the collective records"
    bad=1
}
# a rank that is killed: mpirun ends the others
run kill any 10 ""
# a rank that ends the job itself
run fail 74 10 "rank 1: input or output failed: disk of step 3 is gone"
exit "$bad"
