#!/usr/bin/env bash
# The peak resident set of runs that load files stays within their own plan.json: NF4 quantized on
# load from a directory of bf16 weights, and a resume from the checkpoint of that run once the
# source is gone; checkpoints and evaluations included. Each run is a set of fresh processes, so no
# peak is another phase's; metrics.jsonl has the most of all ranks, as the kernel counts it.
. "${TESS_SOURCE_DIR:?set by ctest}/tests/support/cli_run.sh"
grep -q '^VmHWM:' /proc/self/status || { echo "skipped: no VmHWM"; exit 77; }
# Shadow memory and quarantined blocks: a resident set says nothing.
! grep -aq '__asan_init\|__tsan_init\|__msan_init' "$tessera" || { echo "skipped: sanitized"; exit 77; }

# About 85 million parameters, 160 MiB in the file: far more than the 64 MiB that a run may take
# beside its arenas, so that a loader that holds the file is found out.
cat > model/config.json << 'JSON'
{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 512,
 "intermediate_size": 1792, "num_hidden_layers": 24, "num_attention_heads": 8,
 "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 4096, "rms_norm_eps": 1e-6,
 "rope_theta": 10000.0, "tie_word_embeddings": true, "hidden_act": "silu",
 "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16"}
JSON
head -n 20 text.jsonl > held.jsonl
"$tessera" tokenize "$source_dir/examples/base" held.jsonl -o eval.h5 > log 2>&1 || fail "cannot tokenize"
sed '/^base:/d; /^lora:/d; s/train: {/train: {mode: full, /' run.yaml > full.yaml
launch 2 train full.yaml output.dir=whole train.steps=1 train.warmup_steps=0 \
    train.micro_batches=1 output.checkpoint_every=0 output.export=hf
[ "$rc" -eq 0 ] || fail "the run that makes the model: exit code $rc"
mkdir source
mv whole/export/* source/
rm -rf whole
file_nbytes="$(cat source/*.safetensors | wc -c)"
[ "$file_nbytes" -gt $((150 << 20)) ] || fail "the model has only $file_nbytes bytes"

number() { sed -n "s/^ *\"$1\": \([0-9]*\),\{0,1\}\$/\1/p" out/plan.json | head -n 1; }

# what, ranks: the last step's record against the plan
check_peak() {
    local peak total outside base
    peak="$(tail -n 1 out/metrics.jsonl | sed -n 's/.*"mem_host_peak": \([0-9]*\).*/\1/p')"
    total="$(number total)"
    outside="$(number outside_arenas)"
    base="$(number base)"
    [ -n "$peak" ] && [ -n "$total" ] && [ -n "$base" ] || fail "no peak or no plan"
    [ "$outside" -eq $((64 << 20)) ] || fail "$1: the plan has $outside bytes outside arenas"
    echo "$1, $2 ranks: peak $((peak >> 10)) KiB, plan $((total >> 10)) KiB, base $((base >> 10)) KiB," \
        "file $((file_nbytes >> 10)) KiB"
    [ "$peak" -le "$total" ] || fail "$1: peak of $peak bytes exceeds the plan's $total"
    [ "$peak" -gt "$base" ] || fail "$1: peak of $peak bytes is less than the base of $base"
    # Half a byte a weight and the constants, beside the bf16 embedding, over the ranks.
    [ $((base * $2)) -gt $((file_nbytes / 4)) ] && [ $((base * $2)) -lt $((file_nbytes * 2 / 5)) ] ||
        fail "$1: base of $base bytes on $2 ranks for a file of $file_nbytes"
}

options=(model.path=source model.init=weights data.eval_path=eval.h5 train.eval_every=1
    output.checkpoint_every=1 output.base=copy shard.gather_group=world train.micro_batches=4 train.schedule=constant)
for n in 1 4; do
    launch "$n" train run.yaml "${options[@]}" train.steps=3
    [ "$rc" -eq 0 ] || fail "$n ranks, from weights: exit code $rc"
    [ "$(grep -c 'checkpoint step=' log)" -ge 2 ] && grep -q 'eval step=2 ' log ||
        fail "$n ranks: no checkpoint or no evaluation on the way"
    check_peak "quantized on load" "$n"
    mv source away
    launch "$n" train run.yaml "${options[@]}" train.steps=6 --accept-config-change
    [ "$rc" -eq 0 ] || fail "$n ranks, resumed: exit code $rc"
    grep -q 'resumed from .* at step 3 ' log || fail "$n ranks: not resumed"
    check_peak "resumed" "$n"
    mv away source
    rm -rf out
done
