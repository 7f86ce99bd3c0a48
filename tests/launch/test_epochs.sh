#!/usr/bin/env bash
# train.epochs: resolved from the data on all ranks, told, kept as steps; another number of epochs is another run; a plan
# does without the data, and so do readers.
. "${TESS_SOURCE_DIR:?set by ctest}/tests/support/cli_run.sh"

says() { grep -qF -- "$1" log || fail "no '$1' in the log"; }

cp "$source_dir"/examples/base/tokenizer*.json model
tokens=$("$tessera" inspect train.h5 --json | grep -o '"tokens":[0-9]*' | cut -d: -f2)
sequences=$((tokens / 32))
sed -i 's/steps: 30, micro_batch: 1/epochs: 0.2, micro_batch: 3/; s/micro_batches: 3/micro_batches: 2/' run.yaml
steps=$(((sequences + 29) / 30)) # a fifth of an epoch, six sequences a step

"$tessera" plan run.yaml > plan 2> log || fail plan
says "train.epochs=0.2 train.steps=$steps"
"$tessera" plan run.yaml data.path=nowhere.h5 > other 2> log || fail "plan without data"
says "warn train.epochs: how many steps they are is not known, as 'nowhere.h5' is missing"
cmp plan other || fail "the plan depends on the data"
! "$tessera" plan run.yaml output.checkpoint_every=1 output.keep_every=1 | grep -q "not counted" || fail "steps are known"
once=$(grep -o 'at most at once .*(keep 2 and one more' plan)
"$tessera" plan run.yaml data.path=nowhere.h5 output.checkpoint_every=1 output.keep_every=1 > plan 2> log || fail "keep_every"
grep -qF "$once, and those of every 1 steps, not counted)" plan || fail "checkpoints that stay: $(grep 'at once' plan)"
! "$tessera" train run.yaml data.path=nowhere.h5 output.dir=nowhere 2> log || fail "trained without data"
says "data.path: there is no file 'nowhere.h5'"

launch 3 train run.yaml
[ "$rc" -eq 0 ] || fail "exit code $rc"
says "epochs=$(awk "BEGIN { printf \"%.3g\", $steps * 6 / $sequences }") steps=$steps"
[ "$(wc -l < out/metrics.jsonl)" -eq "$steps" ] || fail "$(wc -l < out/metrics.jsonl) steps, expected $steps"
grep -qx "  steps: $steps" out/run.yaml || fail "run.yaml has no steps"
! grep -q epochs out/run.yaml || fail "run.yaml has epochs"

# The same bits as of so many steps; the run as resolved is one that goes on.
launch 2 train run.yaml train.steps=$steps output.dir=steps
[ "$rc" -eq 0 ] || fail "exit code $rc"
[ "$(bits_of out)" = "$(bits_of steps)" ] || fail "epochs and steps differ"
launch 1 train out/run.yaml
says "info step $steps of $steps is done already"
launch 2 train run.yaml train.epochs=0.4
[ "$rc" -eq 65 ] || fail "more epochs: exit code $rc"
says "train.steps: $steps -> $(((sequences * 4 + 59) / 60))"
launch 2 train run.yaml train.epochs=0.4 --accept-config-change
[ "$rc" -eq 0 ] || fail "exit code $rc"

rm train.h5
"$tessera" sample run.yaml --prompt line --tokens 3 > /dev/null 2> log || fail "sample without data: $(cat log)"
echo passed
