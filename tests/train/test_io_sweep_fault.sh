#!/usr/bin/env bash
# A short run on one rank in which one I/O call fails or kills, for calls all over the run: it ends
# well or with one line and code 74, and the next start ends with the bits of a run without faults.
# TESS_SWEEP_STRIDE sets how many calls are passed over (1: every call), TESS_SWEEP_SEED which.
. "${TESS_SOURCE_DIR:?set by ctest}/tests/support/cli_run.sh"
stride="${TESS_SWEEP_STRIDE:-5}"
seed="${TESS_SWEEP_SEED:-$(date +%s)}"
RANDOM=$((seed % 32768))
echo "TESS_SWEEP_SEED=$seed"
run=("$tessera" train run.yaml train.steps=6)

"${run[@]}" output.dir=whole > log 2>&1 || fail "the run in one go failed"
bits_of whole > bits.want

# folder: same adapter; same losses unless this or an earlier life said that it lost some of them
check_bits() {
    bits_of "$1" > bits.found
    if [ -n "$metrics_lost" ]; then
        [ "$(tail -n 1 bits.want)" = "$(tail -n 1 bits.found)" ]
    else
        cmp -s bits.want bits.found
    fi || fail "$kind at call $call: $2: bits differ: $(diff bits.want bits.found | head -n 4)"
}

# the last save's own error is a warning: the line that ends the run says what it means
said='failed:\|LOCK. cannot be read\|could not be written'
for kind in kill eio enospc; do
    met=0
    # a run that passes its last call unharmed ends the sweep: nothing is left to fail
    for ((call = 1 + RANDOM % stride; ; call += stride)); do
        rm -rf out
        metrics_lost=
        { TESSERA_FAULT="0:any:$call:$kind" timeout 60 "${run[@]}" > log 2>&1; } 2> /dev/null
        rc=$?
        grep -q 'warn metrics: ' log && metrics_lost=1
        case "$kind:$rc" in
        *:0) check_bits out "a life that survived" ;;
        kill:137) met=$((met + 1)) ;;
        eio:74 | enospc:74)
            met=$((met + 1))
            [ "$(grep -c "tessera: error: .*\($said\)" log)" -eq 1 ] ||
                fail "$kind at call $call: not one error line"
            ;;
        *) fail "$kind at call $call: exit code $rc" ;;
        esac
        timeout 60 "${run[@]}" > log 2>&1 || fail "$kind at call $call: the next life failed"
        check_bits out "the next life"
        # far past the calls of this run: kills tell exactly, errors reach as far as the kills did
        [ "$kind:$rc" = kill:0 ] && last_call="$call" && break
        [ "$kind" = kill ] || [ "$call" -lt "$last_call" ] || break
    done
    [ "$met" -gt 0 ] || fail "$kind: no fault was met"
    echo "$kind: $met faults met up to call $call"
done
