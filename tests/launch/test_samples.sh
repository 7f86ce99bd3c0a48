#!/usr/bin/env bash
# Texts that a run shows of itself: the same at any number of ranks, without a trace in what is trained, not twice after a
# kill; what they need is planned and said at the start.
. "${TESS_SOURCE_DIR:?set by ctest}/tests/support/cli_run.sh"

says() { grep -qF -- "$1" log || fail "no '$1' in the log"; }

prompts='sample.prompts=["line 1 counts", "a: #\n\"b\"", "line 9"]'
keys=(train.steps=8 train.eval_every=0 "$prompts" sample.every=3 sample.tokens=12)

# A tokenizer that is missing is said before anything is trained.
launch 2 train run.yaml "${keys[@]}" output.dir=none
[ "$rc" -ne 0 ] || fail "sampled without a tokenizer"
says "'model' has no tokenizer.json"
[ ! -s none/metrics.jsonl ] || fail "steps were trained"
cp "$source_dir"/examples/base/tokenizer*.json model

launch 2 train run.yaml "sample.prompts=[\"$(seq -s ' ' 40)\"]" output.dir=none
[ "$rc" -eq 65 ] || fail "a prompt longer than a sequence: exit code $rc"
says "tokens, of which data.sequence_length 32 would show the last alone"
[ ! -s none/metrics.jsonl ] || fail "steps were trained"

launch 2 train run.yaml train.steps=8 output.dir=without
for n in 1 2 3 4; do
    launch $n train run.yaml "${keys[@]}" output.dir=with$n shard.gather_group=world
    [ "$rc" -eq 0 ] || fail "$n ranks: exit code $rc"
    [ "$(bits_of with$n)" = "$(bits_of without)" ] || fail "$n ranks: samples change what is trained"
    diff -r with1/samples with$n/samples || fail "$n ranks: other texts"
    [ "$(grep -c '^info sample step=' log)" -eq 9 ] || fail "$n ranks: not a line for each text"
    "$tessera" plan run.yaml "${keys[@]}" shard.gather_group=world --ranks $n --json > plan || fail plan
    cmp plan with$n/plan.json || fail "$n ranks: another plan"
done
grep -q '"samples": ' plan || fail "no memory for samples in the plan"
[ "$(ls with1/samples)" = "$(printf 'step-%08d.txt\n' 3 6 8)" ] || fail "samples: $(ls with1/samples)"
[ "$(grep -c '^== prompt [123] ==$' with1/samples/step-00000008.txt)" -eq 3 ] || fail "a text of a prompt is missing"
! cmp -s with1/samples/step-00000003.txt with1/samples/step-00000008.txt || fail "training changes no text"

# `tessera sample` gives the same text from the last checkpoint.
sed -n '/^== prompt 3 ==$/,$p' with1/samples/step-00000008.txt | tail -n +2 > text
"$tessera" sample run.yaml "${keys[@]}" output.dir=with1 --prompt "line 9" > again 2> log || fail sample
cmp text again || fail "tessera sample gives another text"
"$tessera" sample run.yaml output.dir=with1 --prompt "line 9" --tokens 12 > again 2> log || fail sample
cmp text again || fail "options stand for keys"

# Killed and gone on with: what was sampled already is not sampled again, and nothing differs.
keys=(train.steps=900 train.eval_every=0 "$prompts" sample.every=100 sample.tokens=4 output.checkpoint_every=100)
launch 2 train run.yaml "${keys[@]}" output.dir=whole
start 2 train run.yaml "${keys[@]}" output.dir=killed
await 'checkpoint step=100 ' 60
is_killed=yes
kill -KILL $(ranks_of "$job") 2> /dev/null
finish
is_killed=
launch 3 train run.yaml "${keys[@]}" output.dir=killed
[ "$rc" -eq 0 ] || fail "exit code $rc"
! grep -q 'sample step=100 ' log || fail "sampled again"
[ "$(bits_of killed)" = "$(bits_of whole)" ] || fail "other bits after a kill"
diff -r whole/samples killed/samples || fail "other texts after a kill"

# Keys of other families are refused with their place.
launch 1 train run.yaml sample.width=64
[ "$rc" -eq 65 ] || fail "sample.width of a language model: exit code $rc"
says "sample.width: has no meaning with model.family of a language model"
echo passed
