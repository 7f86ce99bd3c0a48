#!/usr/bin/env bash
# A model file with a damaged weight gives gradients that are not finite: the program warns of each
# step it skips and ends after five in a row with code 76, one error line, and nothing exported.
. "${TESS_SOURCE_DIR:?set by ctest}/tests/support/cli_run.sh"
sed '/^base:/d; /^lora:/d; s/train: {/train: {mode: full, /' run.yaml > full.yaml
launch 2 train full.yaml output.dir=source train.steps=2 output.checkpoint_every=0
[ "$rc" -eq 0 ] || fail "the run that makes the model: exit code $rc"
weights="$(ls source/export/*.safetensors)"

# The file is sound: the same run without damage goes through.
launch 2 train run.yaml model.path=source/export model.init=weights base.format=keep train.steps=6
[ "$rc" -eq 0 ] || fail "the sound model: exit code $rc"
! grep -q ' skipped: ' log || fail "the sound model: a step was skipped"
rm -rf out

# All bits of the last bf16 weight set: a NaN.
printf '\377\377' | dd of="$weights" bs=1 seek=$(($(stat -c %s "$weights") - 2)) conv=notrunc 2> /dev/null
for n in 1 2; do
    launch "$n" train run.yaml model.path=source/export model.init=weights base.format=keep
    [ "$rc" -eq 76 ] || fail "n=$n: exit code $rc, expected 76"
    for step in 1 2 3 4 5; do
        grep -q "warn step $step skipped: [1-9][0-9]* non-finite gradient values, first in unit '.*' (rank 0)" \
            log || fail "n=$n: no warning of step $step"
    done
    ! grep -q 'step 6 skipped' log || fail "n=$n: a sixth step was run"
    [ "$(grep -c 'tessera: error:' log)" -eq 1 ] || fail "n=$n: not one error line"
    grep -q 'tessera: error: .*step 5: 5 steps in a row and 5 in all were skipped, the last for non-finite gradients in unit' \
        log || fail "n=$n: the error does not say what happened"
    [ ! -e out/export ] || fail "n=$n: a run that failed has exported"
    rm -rf out
done
