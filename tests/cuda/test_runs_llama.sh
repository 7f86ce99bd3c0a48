#!/usr/bin/env bash
# Whole runs of a small Llama on a device: beside the CPU for every family of base formats and with all weights
# trained, twice, on 1, 2 and 4 ranks of one device, and by NCCL; and that the comparisons can tell runs apart.
# shellcheck source=tests/support/device_run.sh
source "${TESS_SOURCE_DIR:?set by ctest}/tests/support/device_run.sh"
sed '/^base:/d; /^lora:/d; s/train: {/train: {mode: full, /' run.yaml > full.yaml
head -n 10 text.jsonl > held_out.jsonl
"$tessera" tokenize "$source_dir/examples/base" held_out.jsonl -o eval.h5 > log 2>&1 || fail "cannot tokenize"
few=(train.warmup_steps=0 train.eval_every=1 data.eval_path=eval.h5 output.checkpoint_every=1)
steps=(train.steps=2 "${few[@]}")

# ---- device against CPU ----
# name, bound, arguments
beside_cpu() {
    local name="$1" bound="$2"
    shift 2
    run_on cpu "$name.cpu" 1 "${steps[@]}" "$@"
    run_on cuda "$name" 1 "${steps[@]}" "$@"
    agree "$bound" "$name.cpu" "$name"
}
f32=compute.dtype=f32
beside_cpu nf4 llama-f32 "$f32"
beside_cpu nf4_bf16 llama-bf16 compute.activation_checkpointing=on
beside_cpu int8 llama-f32 base.format=int8 "$f32"
beside_cpu int4 llama-bf16 base.format=int4
beside_cpu int2 llama-f32 base.format=int2 "$f32"
beside_cpu fp8 llama-bf16 base.format=e4m3
run_file=full.yaml beside_cpu full llama-f32 "$f32"
says nf4 "collectives: (NCCL|emulated collectives)" # one rank takes the same way as many

# What is drawn at the start, without a step that moves it: equal to the bit.
for file in run full; do
    run_file=$file.yaml
    for where in cpu cuda; do
        run_on "$where" "drawn.$file.$where" 1 "${few[@]}" train.steps=1 train.learning_rate=0
    done
    for drawn in "drawn.$file.cpu"/export/*.safetensors; do
        cmp "$drawn" "drawn.$file.cuda/export/${drawn##*/}" || fail "other weights are drawn for $file.yaml"
    done
done
run_file=run.yaml

# ---- what the comparison of losses and norms is worth: other places of dropout, other data ----
run_on cpu other_dropout 1 "${steps[@]}" "$f32" lora.dropout=0.2
run_on cpu other_seed 1 "${steps[@]}" "$f32" train.seed=4
differ llama-f32 nf4 other_dropout
differ llama-f32 nf4 other_seed
! (same_base nf4 other_seed) > /dev/null || fail "another base passes"
# Sums in another order, as the CPU's other path has them, pass, and are not taken for equal bits.
if ! "$tessera" check --dir here | grep -q "kernels portable"; then
    run_file=full.yaml
    TESSERA_CPU_PATH=portable run_on cpu portable 1 "${steps[@]}" "$f32"
    run_file=run.yaml
    "$check_run" losses llama-f32 full.cpu portable > difference 2>&1 || fail "another path: $(cat difference)"
    cat difference
    ! (same_runs full.cpu portable) > /dev/null || fail "another path has the same bits"
fi
cp -r nf4 tampered
tamper() { # what, sed program on metrics.jsonl
    sed "$2" nf4/metrics.jsonl > tampered/metrics.jsonl
    differ llama-f32 nf4 tampered
    ! (same_runs nf4 tampered) > /dev/null || fail "$1 passes"
}
tamper "a loss that is 1 % larger" 's/"loss": 8\./"loss": 8.1/'
tamper "a norm that is 10 times larger" 's/"grad_norm": 0/"grad_norm": 1/'
tamper "a loss that is no number" 's/"loss": [0-9.]*/"loss": null/'
tamper "a run without its last step" '$d'
tamper "a run without its first step" 1d
tamper "half a line" '$s/"lr.*//'
sed '1s/"loss_bits": "\([0-9a-f]\{15\}\)./"loss_bits": "\1g/' nf4/metrics.jsonl > tampered/metrics.jsonl
! (same_runs nf4 tampered) > /dev/null || fail "another bit of a loss passes"
cp nf4/metrics.jsonl tampered/metrics.jsonl
same_runs nf4 tampered
printf '\377' | dd of="$(echo tampered/export/*.safetensors)" bs=1 seek=2000 conv=notrunc status=none
! (same_runs nf4 tampered) > /dev/null 2>&1 || fail "another adapter passes"

# ---- a second run, and several ranks on the device: the same bits ----
ranked=("${steps[@]}" compute.activation_checkpointing=on)
run_on cuda again 1 "${ranked[@]}"
same_runs nf4_bf16 again
run_on cuda kept 1 "${ranked[@]}" compute.decoded_memory=1GiB
same_runs nf4_bf16 kept
run_on cuda few_kept 1 "${ranked[@]}" compute.decoded_memory=40KiB
same_runs nf4_bf16 few_kept
run_on cuda auto_kept 1 "${ranked[@]}" compute.decoded_memory=auto
grep -q '"decoded_weights": [1-9]' auto_kept/plan.json || fail "auto keeps no decoded weights"
same_runs nf4_bf16 auto_kept
for n in 2 4; do
    run_on cuda "shared$n" "$n" "${ranked[@]}"
    says "shared$n" "collectives: through host memory and MPI; ranks share a GPU"
    same_runs nf4_bf16 "shared$n"
done
run_file=full.yaml run_on cuda full2 2 "${steps[@]}" "$f32" shard.gather_group=world
same_runs full full2
# ---- readers: an evaluation has the run's bits; text is the same on two ranks ----
tessera_on cuda 1 eval run.yaml output.dir=nf4_bf16 compute.device=cuda data.eval_path=eval.h5 --json \
    compute.activation_checkpointing=on
[ "$rc" -eq 0 ] || fail "eval: exit code $rc"
loss="$(sed -n 's/.*"loss": \([^,]*\),.*/\1/p' log)"
logged="$(last nf4_bf16/eval.jsonl eval_loss)" # printed with the fewest digits that read back, the other with 17
awk -v a="$loss" -v b="$logged" 'BEGIN { exit !(a > 0 && (a - b) ^ 2 <= (1e-15 * b) ^ 2) }' ||
    fail "eval says $loss, the run $logged"
cp "$source_dir"/examples/base/tokenizer*.json model/
# cpu|cuda, ranks, file
text_on() {
    tessera_on "$1" "$2" sample run.yaml output.dir=nf4_bf16 "compute.device=$1" compute.share_device=true \
        --prompt "line 3 counts" --tokens 6 --seed 5
    [ "$rc" -eq 0 ] || fail "sample on $1, $2 ranks: exit code $rc"
    grep '^line 3 counts' log > "$3" || fail "sample on $1, $2 ranks: no text"
}
text_on cuda 1 text1
text_on cuda 2 text2
cmp text1 text2 || fail "a sample on two ranks differs"
if [ -n "$is_fake" ]; then
    text_on cpu 1 text0
    cmp text0 text1 || fail "a sample differs from the CPU's"
fi
run_on cuda sampled 2 "${ranked[@]}" 'sample.prompts=[line 1, line 3 counts]' sample.every=2 sample.tokens=6 sample.seed=5
same_runs nf4_bf16 sampled
sed -n '/^== prompt 2 ==$/{n;p}' "$(printf '%s\n' sampled/samples/*.txt | tail -n 1)" | cmp - text1 ||
    fail "a sample while training differs from one of its checkpoint"
rm model/tokenizer*.json

if nccl_shares_device; then
    run_by_nccl nccl2 2 "${ranked[@]}" shard.gather_group=world
    same_runs nf4_bf16 nccl2
else
    echo "not run: two ranks by NCCL on one device need NCCL 2.30.3 or later; there is $device"
fi
passed
