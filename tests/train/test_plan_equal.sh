#!/usr/bin/env bash
# `tessera plan RUN --ranks W --json` prints what a run of W ranks writes to plan.json; a 70B model on
# 1024 ranks is planned without weights; the text form shows what a plan consists of.
set -euo pipefail
source_dir=${TESS_SOURCE_DIR:-$(cd "$(dirname "$0")/../.." && pwd)}
tessera=${TESSERA_BIN:-$source_dir/build/bin/tessera}
[ -x "$tessera" ] || { echo "skipped: needs $tessera"; exit 77; }
command -v mpirun >/dev/null || { echo "skipped: needs mpirun (package openmpi-bin)"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

mkdir -p "$work/model" "$work/big"
for i in $(seq 1 120); do
    echo "Document $i counts from $i to $((i * 3)) and then says how much of $((i * i)) is left over."
    [ $((i % 6)) -ne 0 ] || echo "----"
done >"$work/text.txt"
"$tessera" tokenize "$source_dir/examples/base" "$work/text.txt" --separator=---- --no-bos \
    -o "$work/data.h5" >/dev/null

vocab=$(sed -n 's/.*"vocab_size": *\([0-9]*\).*/\1/p' "$source_dir/examples/base/config.json")
cat >"$work/model/config.json" <<JSON
{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64,
 "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
 "num_key_value_heads": 2, "head_dim": 16, "vocab_size": $vocab, "rms_norm_eps": 1e-6,
 "rope_theta": 10000.0, "tie_word_embeddings": true, "hidden_act": "silu",
 "max_position_embeddings": 512, "torch_dtype": "bfloat16"}
JSON
cat >"$work/run.yaml" <<YAML
model: {path: $work/model, init: random}
base: {format: nf4, block_size: 64, double_quant: true}
lora: {rank: 4, alpha: 8, targets: all-linear}
data: {path: $work/data.h5, sequence_length: 16}
train: {steps: 2, micro_batch: 1, micro_batches: 6, learning_rate: 1.0e-3, warmup_steps: 0, seed: 3}
output: {dir: $work/unused, checkpoint_every: 0}
YAML

# Full-parameter training has no base and no adapter.
sed -e '/^base:/d' -e '/^lora:/d' -e 's/^train: {/train: {mode: full, /' "$work/run.yaml" >"$work/full.yaml"

run=$work/run.yaml
equal_numel=0
compare() { # ranks, name, overrides...
    local ranks=$1 out="$work/$2" name=$2
    shift 2
    "$tessera" plan "$run" --ranks "$ranks" --json "$@" >"$work/planned.json" ||
        fail "$name: plan"
    mpirun --oversubscribe -n "$ranks" "$tessera" train "$run" "output.dir=$out" "$@" \
        >"$work/log" 2>&1 || fail "$name: run: $(grep -m1 "error" "$work/log" || tail -3 "$work/log")"
    [ -s "$out/plan.json" ] || fail "$name: no plan.json"
    cmp -s "$work/planned.json" "$out/plan.json" ||
        fail "$name: $(diff "$work/planned.json" "$out/plan.json" | head -5)"
    grep -qE "\"world\": *$ranks\\b" "$out/plan.json" || fail "$name: the plan is not for $ranks ranks"
    [ ! -e "$work/unused" ] || fail "$name: plan wrote to output.dir"
    equal_numel=$((equal_numel + 1))
}

for ranks in 1 2 3 4 5 8; do
    compare $ranks "lora-$ranks" shard.gather_group=world
done
compare 4 group-2 shard.gather_group=2 shard.reduction=library shard.reshard_after_forward=on
compare 2 auto-2 shard.prefetch=0
compare 4 by-node-4 shard.exchange=by-node
run=$work/full.yaml
compare 3 full-3 compute.dtype=f32

# What a person reads.
text=$("$tessera" plan "$work/run.yaml" --ranks 4 shard.gather_group=world)
for part in '4 ranks, gather group 4, 6 micro-batches in 2 rounds (the last for 2 of the ranks), reduction exact' \
    'units (what a stage takes whole)' 'frozen matrices (how products take them)' \
    'dequantized panel by panel' 'contracts (collectives with dtypes)' \
    'all_gather     stored u8_opaque wire u8_opaque' 'memory of every rank' 'outside arenas' \
    'unit gathers received' 'reductions' 'library, once per step' '<- this plan'; do
    grep -qF -- "$part" <<<"$text" || fail "no '$part' in:
$text"
done

# Optimizers: what is kept is listed, and what an update takes on a device and on its host.
for optimizer in adamw-8bit lion adamw-schedule-free prodigy adafactor adafactor-momentum muon; do
    run=$work/run.yaml
    compare 2 "lora-$optimizer" "train.optimizer=$optimizer" train.schedule=constant train.ema_decay=0.5
    run=$work/full.yaml
    compare 3 "full-$optimizer" "train.optimizer=$optimizer" train.schedule=constant
done
text=$("$tessera" plan "$work/run.yaml" train.optimizer=adamw-8bit train.ema_decay=0.9)
grep -qF 'optimizer adamw-8bit keeps master f32, exp_avg u8, exp_avg_sq u8, exp_avg_absmax f32, exp_avg_sq_absmax f32, ema f32: 10.03 bytes a parameter' \
    <<<"$text" || fail "plan of adamw-8bit: $text"
text=$("$tessera" plan "$work/run.yaml" train.optimizer=muon)
grep -qF 'optimizer muon keeps master f32, exp_avg f32: 8.00 bytes a parameter' <<<"$text" ||
    fail "plan of muon over adapters: $text"
for optimizer in lion adafactor muon; do
    text=$("$tessera" plan "$work/run.yaml" --device h100-80g "train.optimizer=$optimizer") || fail "$optimizer on a GPU"
    grep -qF "optimizer $optimizer keeps" <<<"$text" || fail "plan of $optimizer on a GPU: $text"
    sums=$(grep -cF 'sums of the optimizer' <<<"$text" || true)
    [ "$sums" -eq "$([ "$optimizer" = adafactor ] && echo 1 || echo 0)" ] || fail "host of a GPU with $optimizer: $text"
    "$tessera" plan "$work/run.yaml" --device h100-80g --json "train.optimizer=$optimizer" >"$work/plan.json"
    grep -q '"optimizer work"' "$work/plan.json" || [ "$optimizer" = lion ] || fail "no work memory of $optimizer"
done

# 70B: no weights, no device, no ranks.
cat >"$work/big/config.json" <<'JSON'
{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8192,
 "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
 "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "rms_norm_eps": 1e-5,
 "rope_theta": 500000.0, "tie_word_embeddings": false, "hidden_act": "silu",
 "max_position_embeddings": 8192, "torch_dtype": "bfloat16"}
JSON
big=("$work/run.yaml" "model.path=$work/big" --ranks 1024 train.micro_batches=1024
    data.sequence_length=2048 shard.gather_group=world)
start_ns=$(date +%s%N)
"$tessera" plan "${big[@]}" --json >"$work/big.json" || fail "70B at 1024 ranks"
took_ms=$((($(date +%s%N) - start_ns) / 1000000))
grep -qE '"world": *1024\b' "$work/big.json" || fail "70B plan is not for 1024 ranks"
[ "$(grep -c '"trainable_shard_elements"' "$work/big.json")" = 82 ] || fail "70B plan: expected 82 units"
# Ten times what the issue asks for: a plan that looks at weights or loops over ranks takes minutes.
[ "$took_ms" -lt 10000 ] || fail "70B plan took $took_ms ms"

# Too large for a rank: refused before anything is allocated, with what would help.
status=0
"$tessera" plan "$work/run.yaml" "model.path=$work/big" --ranks 2 data.sequence_length=2048 \
    compute.memory_limit=24GiB >"$work/out" 2>"$work/err" || status=$?
[ "$status" -ne 0 ] || fail "a 70B model fits 2 ranks of 24 GiB"
grep -q 'compute.memory_limit is 24576 MiB; cheapest changes: .* ranks ([0-9]* MiB, fits)' \
    "$work/err" || fail "refusal says: $(cat "$work/err")"
# A device: its memory is the limit, and times are predicted and called that.
text=$("$tessera" plan "${big[@]}" --device h100-80g)
for part in 'kernels cuda/sm_90' 'predictions, per step (simulated schedule, not measured; device h100-80g: published' \
    'gradients, exact' 'gradients, library, once per step' 'exposed communication' 'single ranks'; do
    grep -qF -- "$part" <<<"$text" || fail "--device: no '$part' in:
$text"
done
# Every format trains on every device, and the plan says how products take its matrices.
for format in nf4 fp4 f16 q8_0 q4_0 int8 qint8 qint4 qint2 qfloat8 qfloat8_e5m2 int4 int2 e4m3 e5m2; do
    for dtype in f32 bf16; do
        text=$("$tessera" plan "${big[@]}" --device h100-80g base.format=$format base.block_size=64 \
            compute.dtype=$dtype) || fail "$format behind $dtype activations on a GPU"
        stored=${format/#int4/qint4}
        stored=${stored/#int2/qint2}
        grep -qE "^  $stored(/[^ ]*)? +[0-9]+ .* dequantized, then multiplied\$" <<<"$text" ||
            fail "$format behind $dtype activations on a GPU: no path in:
$text"
    done
done
# Weights that stay decoded: as much memory as is asked for and of use, on a device, where codes lie in place.
kept=("$work/run.yaml" "model.path=$work/big" data.sequence_length=2048 --ranks 8 --device h200-141g)
text=$("$tessera" plan "${kept[@]}" shard.gather_group=1 compute.decoded_memory=30GiB)
grep -qE '^  weights that stay decoded +30\.00 GiB$' <<<"$text" || fail "compute.decoded_memory: $text"
before=$("$tessera" plan "${kept[@]}" shard.gather_group=1 --json | sed -n 's/.*"step_s": *\([0-9.e-]*\).*/\1/p' | head -n 1)
after=$("$tessera" plan "${kept[@]}" shard.gather_group=1 compute.decoded_memory=30GiB --json |
    sed -n 's/.*"step_s": *\([0-9.e-]*\).*/\1/p' | head -n 1)
awk -v a="$after" -v b="$before" 'BEGIN { exit !(a > 0 && a < b) }' || fail "step_s $after after, $before before"
! "$tessera" plan "${kept[@]}" shard.gather_group=2 compute.decoded_memory=30GiB >"$work/out" 2>"$work/err" ||
    fail "codes in a slot stay decoded"
grep -q 'weights stay decoded where their codes lie in place, found .* set shard.gather_group: 1' "$work/err" ||
    fail "refusal says: $(cat "$work/err")"
! "$tessera" plan "${kept[@]:0:3}" --ranks 8 --device a100-40g shard.gather_group=1 compute.decoded_memory=100GiB \
    >"$work/out" 2>"$work/err" || fail "100 GiB stay decoded on an a100-40g"
grep -q 'cheapest changes: compute.decoded_memory=0 (' "$work/err" || fail "refusal says: $(cat "$work/err")"
both=(shard.check_base=on compute.decoded_memory=30GiB)
! "$tessera" plan "${kept[@]}" shard.gather_group=1 "${both[@]}" >"$work/out" 2>"$work/err" ||
    fail "decoded copies of a base that is checked"
grep -q 'compute.decoded_memory: products read decoded copies .* set shard.check_base: off, or leave' "$work/err" ||
    fail "refusal says: $(cat "$work/err")"
"$tessera" plan "${big[@]}" "${both[@]}" >/dev/null || fail "a CPU keeps none, and checks its base"
# auto takes what is free but for a sixteenth, changes no other choice, and nothing where codes may be gathered.
free=("${kept[@]:0:3}" --ranks 1 --device h200-141g compute.memory_limit=96GiB)
said() { "$tessera" plan "${free[@]}" "$@" --json; }
number() { sed -n "s/.*\"$1\": *\([0-9]*\).*/\1/p" | head -n 1; }
alone=$(said) auto=$(said compute.decoded_memory=auto)
taken=$(number decoded_weights <<<"$auto")
((${taken:-0} > 0)) || fail "auto keeps nothing of what is free"
[[ $(number total <<<"$auto") == $(($(number total <<<"$alone") + taken)) ]] || fail "auto: other memory differs"
(($(number total <<<"$auto") <= (96 << 30) / 16 * 15)) || fail "auto takes the spare sixteenth too"
for choice in activation_checkpointing reshard_after_forward gather_group; do
    [[ $(grep -m 1 "\"$choice\"" <<<"$auto") == "$(grep -m 1 "\"$choice\"" <<<"$alone")" ]] || fail "auto changes $choice"
done
for held in shard.check_base=on "shard.gather_group=2 --ranks 2"; do
    # shellcheck disable=SC2086 # words
    text=$("$tessera" plan "${free[@]}" compute.decoded_memory=auto $held) || fail "auto beside $held is refused"
    ! grep -q 'stay decoded' <<<"$text" || fail "auto keeps decoded weights beside $held"
done
text=$("$tessera" plan "${big[@]}" compute.decoded_memory=30GiB)
! grep -q 'stay decoded' <<<"$text" || fail "a CPU keeps decoded weights: $text"
text=$("$tessera" plan "${big[@]}" base.format=f32 compute.dtype=bf16)
grep -qE '^  f32 .* converted panel by panel$' <<<"$text" || fail "f32 base on a CPU: $text"
text=$("$tessera" plan "${big[@]}" base.format=bf16 compute.dtype=bf16)
grep -qE '^  bf16 .* multiplied as stored$' <<<"$text" || fail "bf16 base on a CPU: $text"
"$tessera" plan "${big[@]}" --device h100-80g --json >"$work/predicted.json"
grep -q '"predicted"' "$work/predicted.json" || fail "--device --json predicts nothing"
! grep -q '"predicted"' "$work/big.json" || fail "a plan without a device predicts"
status=0
"$tessera" plan "$work/run.yaml" "model.path=$work/big" --device a100-40g data.sequence_length=2048 \
    >"$work/out" 2>"$work/err" || status=$?
[ "$status" -ne 0 ] || fail "a 70B model fits one a100-40g"
grep -q 'compute.memory_limit is 38146 MiB' "$work/err" || fail "refusal says: $(cat "$work/err")"
! "$tessera" plan "$work/run.yaml" --device h100 >"$work/out" 2>"$work/err" || fail "h100 is known"
grep -q "'h100' is not known; known: a100-40g, a100-80g, cpu, h100-80g, h200-141g" "$work/err" ||
    fail "unknown device: $(cat "$work/err")"
echo "plan = plan.json of $equal_numel runs; 70B at 1024 ranks in $took_ms ms"
