#!/bin/bash
# FLUX.1 from the command line, from files of other trainers to adapters for other programs: cache, inspect, verify, plan,
# train on two ranks, a kill and a resume on three, eval, sample, export, a run that goes on from an export; quantize and
# merge; and what is refused.
set -euo pipefail
command -v mpirun >/dev/null || { echo "skipped: needs mpirun"; exit 77; }

golden="$TESS_SOURCE_DIR/tests/golden/caches"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() {
    echo "$*" >&2
    exit 1
}

# good ARGS...: exit 0; stdout in `said`, stderr in `log`.
good() {
    "$TESSERA_BIN" "$@" >said 2>log || fail "tessera $*: $(cat said log)"
}

# on RANKS ARGS...: the same under mpirun.
on() {
    local ranks=$1
    shift
    mpirun --oversubscribe -n "$ranks" "$TESSERA_BIN" "$@" >said 2>log || fail "tessera $* on $ranks: $(cat said log)"
}

# says PATTERN: the last command printed it.
says() {
    grep -Eq -- "$1" said || fail "no '$1' in: $(cat said)"
}

# refuse WORDS ARGS...
refuse() {
    local words="$1"
    shift
    ! "$TESSERA_BIN" "$@" >said 2>refused || fail "tessera $* was taken"
    grep -q -- "$words" refused || fail "tessera $*: $(cat refused)"
}

same() {
    cmp "$1" "$2" || fail "$1 and $2 differ"
}

# equal A B: one number, as printed with 17 digits and with the fewest that read back.
equal() {
    awk -v a="$1" -v b="$2" 'BEGIN { exit !(a > 0 && (a - b) ^ 2 <= (1e-15 * b) ^ 2) }'
}

# The bytes of a safetensors file behind its header, which names paths.
tensors_of() {
    tail -c +$(($(od -An -tu8 -N8 "$1") + 9)) "$1"
}

# same_tensors FILE FILE
same_tensors() {
    cmp <(tensors_of "$1") <(tensors_of "$2") || fail "$1 and $2 hold other tensors"
}

# same_adapter FOLDER FOLDER
same_adapter() {
    same_tensors "$1/pytorch_lora_weights.safetensors" "$2/pytorch_lora_weights.safetensors"
}

# ---- caches of sd-scripts and of others ----
good cache "$golden/kohya" -o train.h5
says "4 samples in 3 sizes, 2 captions of 6 tokens, the empty one first"
good cache "$golden/tensors" -o held-out.h5 --json
says '"samples": 4, "captions": 2, "buckets": 3, "has_empty": true'
good inspect train.h5
says '^tool: sd-scripts$'
says '"height":4,"samples":2,"tokens":6,"width":6'
good verify train.h5
says '^verified: true$'
cp train.h5 damaged.h5
printf '\377' | dd of=damaged.h5 bs=1 seek=$(($(stat -c %s damaged.h5) - 100)) conv=notrunc status=none
refuse "damaged.h5" verify damaged.h5

# ---- a model: random weights as a whole run writes them ----
mkdir config
cat >config/config.json <<'JSON'
{"_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 64, "out_channels": null, "num_layers": 1,
 "num_single_layers": 1, "attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": 8,
 "pooled_projection_dim": 4, "guidance_embeds": true, "axes_dims_rope": [8, 12, 12]}
JSON
cat >whole.yaml <<YAML
model: {path: config, init: random}
data: {path: train.h5}
train: {mode: full, steps: 1, learning_rate: 0.0}
compute: {memory_limit: 1GiB}
output: {dir: whole, checkpoint_every: 0}
YAML
good train whole.yaml
model=whole/export
[ -e $model/diffusion_pytorch_model.safetensors ] || fail "no model: $(ls $model)"
mkdir pipeline
cp -r $model pipeline/transformer
echo '{"_class_name": "FluxPipeline"}' >pipeline/model_index.json
for path in $model pipeline $model/diffusion_pytorch_model.safetensors; do
    good inspect "$path"
    says 'BF16 +\[64, 64\] +transformer_blocks.0.attn.add_k_proj.weight'
    says '^tensors: 66$'
done

# A GGUF file, here of one tensor, is cut into diffusers' by rows: little-endian numbers of 4 and 8 bytes, and text.
bytes() { # NUMBER COUNT
    local i
    for ((i = 0; i < $2; i++)); do printf '%b' "\\x$(printf '%02x' $(($1 >> 8 * i & 255)))"; done
}
u32() { bytes "$1" 4; }
u64() { bytes "$1" 8; }
text() { u64 ${#1}; printf '%s' "$1"; }
{
    printf GGUF; u32 3; u64 1; u64 1
    text general.architecture; u32 8; text flux
    text double_blocks.0.img_attn.qkv.weight; u32 2; u64 64; u64 192; u32 8; u64 0
} >header
{
    cat header
    head -c $(((32 - $(stat -c %s header) % 32) % 32)) /dev/zero
    head -c $((192 * 64 * 34 / 32)) /dev/zero
} >flux.gguf
good inspect flux.gguf
says '^kind: model$'
for part in q k v; do
    says "q8_0 +\[64, 64\] +transformer_blocks.0.attn.to_$part.weight"
done

# ---- plan and train: the family is found, what is planned is what runs ----
cat >run.yaml <<YAML
model: {path: $model}
base: {format: nf4}
lora: {rank: 4, alpha: 8, targets: kohya}
data: {path: train.h5, eval_path: held-out.h5}
objective: {timesteps: sigmoid, shift: auto, caption_dropout: 0.1, masked_loss: true}
train: {steps: 8, micro_batches: 3, micro_batch: 2, learning_rate: 1.0e-3, warmup_steps: 2, eval_every: 4, seed: 3}
compute: {memory_limit: 1GiB}
output: {dir: two, checkpoint_every: 4, base: copy}
YAML
good plan run.yaml train.epochs=4.5 # of 4 samples, 6 a step
grep -q 'train.epochs=4.5 train.steps=3$' log || fail "epochs: $(cat log)"
on 2 train run.yaml
good plan run.yaml --ranks 2 --json
same said two/plan.json
good train run.yaml output.dir=one
for file in eval.jsonl export/pytorch_lora_weights.safetensors; do
    same two/$file one/$file
done
grep -q 'family: flux' two/run.yaml || fail "run.yaml does not name the family: $(cat two/run.yaml)"
for path in pipeline $model/diffusion_pytorch_model.safetensors; do
    good train run.yaml model.path="$path" output.dir="layout-${path##*/}"
    same_adapter "layout-${path##*/}/export" one/export
done

# ---- killed after a save, its source gone, and resumed on three ranks ----
long=(train.steps=80 train.eval_every=0)
good train run.yaml output.dir=whole-time "${long[@]}" output.checkpoint_every=0 compute.check_replay=20
cp -r $model source
# The base and step 1 have their manifests: one rank is killed before step 2 has its own, and mpirun ends the other.
TESSERA_FAULT=0:link:3:kill mpirun --oversubscribe -n 2 "$TESSERA_BIN" train run.yaml model.path=source output.dir=killed \
    "${long[@]}" output.checkpoint_every=1 2>/dev/null || code=$?
[ "${code:-0}" = 137 ] && ls killed/step-*/MANIFEST >/dev/null || fail "exit code ${code:-0}, and in killed: $(ls killed)"
rm -rf source
! "$TESSERA_BIN" train run.yaml model.path=source output.dir=killed "${long[@]}" lora.alpha=9 2>refused || fail "another alpha went on"
grep -q "lora.alpha: 8 -> 9" refused || fail "$(cat refused)"
on 3 train run.yaml model.path=source output.dir=killed "${long[@]}"
same_adapter killed/export whole-time/export

# ---- eval: the checkpoint's loss is the one that training saw ----
good eval run.yaml output.dir=one --json
loss=$(sed -n 's/.*"loss": \([^,]*\),.*/\1/p' said)
logged=$(tail -1 one/eval.jsonl | sed -n 's/.*"eval_loss": \([^,]*\),.*/\1/p')
equal "$loss" "$logged" || fail "eval says $loss, the run $logged"
good eval run.yaml output.dir=none --checkpoint none --json
bare=$(sed -n 's/.*"loss": \([^,]*\),.*/\1/p' said)
[ "$bare" != "$loss" ] || fail "the adapter changes nothing"

# ---- sample: the same latents on three ranks, and over another form of the base others ----
ask=(--size 48x32 --steps 3 --seed 5 --prompt "" --prompt "a cat, é")
good sample run.yaml output.dir=one "${ask[@]}" -o one.safetensors
on 3 sample run.yaml output.dir=one "${ask[@]}" -o three.safetensors
same one.safetensors three.safetensors
good inspect one.safetensors
says 'F32 +\[2, 16, 4, 6\] +latents'
good sample run.yaml base.format=int8 output.dir=none "${ask[@]}" --adapter one/export -o int8.safetensors
good sample run.yaml --base-format int8 output.dir=none "${ask[@]}" --adapter one/export -o again.safetensors
cmp int8.safetensors again.safetensors || fail "--base-format and base.format differ"
! cmp -s one.safetensors int8.safetensors || fail "latents over nf4 and int8 are the same"
refuse "name a file for them with -o" sample run.yaml output.dir=one --prompt ""
mkdir fill # Fill, Canny and Depth take an image beside the latent
sed 's/"in_channels": 64, "out_channels": null/"in_channels": 128, "out_channels": 64/' config/config.json >fill/config.json
refuse "holds packed latents of 64, the model takes 128 and gives 64" sample whole.yaml model.path=fill output.dir=none \
    --checkpoint none "${ask[@]}" -o fill.safetensors
refuse "memory is planned for 6; set data.resolution" sample run.yaml output.dir=one --size 512x512 --prompt "" -o big.safetensors

# ---- exports: known by their folder, alike in what they hold, and a start for other runs ----
checkpoint=$(echo one/step-0000000008.*)
good verify "$checkpoint"
good inspect "$checkpoint"
says 'lora_A'
for format in diffusers kohya comfyui peft; do
    good export "$checkpoint" --format $format -o $format
    good inspect $format
    says "^dialect: $format\$"
    good sample run.yaml output.dir=none "${ask[@]}" --adapter $format -o of-$format.safetensors
    same_tensors one.safetensors of-$format.safetensors # folding alpha / rank = 2 is exact
done
grep -q '"task_type": null' peft/adapter_config.json || fail "peft would wrap a language model: $(cat peft/adapter_config.json)"
same diffusers/pytorch_lora_weights.safetensors one/export/pytorch_lora_weights.safetensors
for format in kohya comfyui; do
    good inspect $format
    says 'rank 4 +alpha 8 +scale 2 +\[64, 64\] +transformer_blocks.0.attn.to_q'
    good export $format --format diffusers -o back-$format
    same_adapter back-$format diffusers
done
# alpha is folded into diffusers' weights, and stands beside the others'
refuse "set lora.alpha=4" train run.yaml adapter.resume=diffusers output.dir=next-diffusers
for format in "diffusers lora.alpha=4" kohya comfyui peft; do
    # shellcheck disable=SC2086 # a format and a key
    on 2 train run.yaml adapter.resume=$format output.dir="next-${format%% *}"
    first=$(head -1 "next-${format%% *}/eval.jsonl" | sed -n 's/.*"eval_loss": \([^,]*\),.*/\1/p')
    equal "$first" "$loss" || fail "the run after $format begins at $first, expected $loss"
done
refuse "which this run does not; change lora.targets" train run.yaml adapter.resume=diffusers lora.targets=context output.dir=next

# ---- quantize: what a run over nf4 quantizes itself ----
good quantize $model --format nf4 -o packed
good inspect packed
says 'nf4/64/double +\[384, 64\] +transformer_blocks.0.norm1.linear.weight'
says 'BF16 +\[64, 64\] +x_embedder.weight'
good train run.yaml model.path=packed base.format=keep output.dir=over-packed
same_adapter over-packed/export one/export
refuse "written as a directory of safetensors" quantize $model --format q8_0 -o packed.gguf
good merge $model peft -o merged
says "adapted layers merged into"
good eval run.yaml model.path=merged base.format=bf16 output.dir=none --checkpoint none --json
merged=$(sed -n 's/.*"loss": \([^,]*\),.*/\1/p' said)
awk -v a="$merged" -v b="$loss" -v c="$bare" 'BEGIN { exit !((a - b) ^ 2 < 0.25 * (c - b) ^ 2) }' ||
    fail "merged weights give $merged, the adapter $loss, the base alone $bare"
refuse "tessera export CHECKPOINT --format peft" merge $model kohya -o none

# ---- a model that is none, and keys that need the family ----
refuse "or set model.family: flux" plan "$TESS_SOURCE_DIR/examples/base.yaml" model.path="$TESS_SOURCE_DIR/examples/base" \
    data.resolution=512
mkdir other
echo '{"_class_name": "SD3Transformer2DModel"}' >other/config.json
refuse "is no FluxTransformer2DModel" plan run.yaml model.family=flux model.path=other model.init=random
echo passed
