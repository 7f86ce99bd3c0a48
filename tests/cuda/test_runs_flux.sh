#!/usr/bin/env bash
# Whole runs of a small FLUX.1 on a device: beside the CPU over two base formats and with all weights trained, twice, on
# 2 and 4 ranks of one device; latents of samples.
# shellcheck source=tests/support/device_run.sh
source "${TESS_SOURCE_DIR:?set by ctest}/tests/support/device_run.sh"
golden="$source_dir/tests/golden/caches"
"$tessera" cache "$golden/kohya" -o train.h5 > log 2>&1 || fail "cannot make the cache"
"$tessera" cache "$golden/tensors" -o held_out.h5 > log 2>&1 || fail "cannot make the cache"
cat > model/config.json << 'JSON'
{"_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 64, "out_channels": null, "num_layers": 1,
 "num_single_layers": 1, "attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": 8,
 "pooled_projection_dim": 4, "guidance_embeds": true, "axes_dims_rope": [8, 12, 12]}
JSON
cat > run.yaml << 'YAML'
model: {path: model, init: random}
base: {format: nf4}
lora: {rank: 4, alpha: 8, targets: all}
data: {path: train.h5, eval_path: held_out.h5}
objective: {timesteps: sigmoid, shift: auto, caption_dropout: 0.1, masked_loss: true}
train: {steps: 2, micro_batches: 3, micro_batch: 2, learning_rate: 1.0e-3, warmup_steps: 0, eval_every: 1, seed: 3}
output: {dir: out, checkpoint_every: 1, base: copy}
YAML
sed '/^base:/d; /^lora:/d; s/train: {/train: {mode: full, /' run.yaml > full.yaml
f32=compute.dtype=f32

run_on cpu nf4.cpu 1
run_on cuda nf4 1
agree flux-bf16 nf4.cpu nf4
run_on cpu int8.cpu 1 base.format=int8 "$f32" compute.activation_checkpointing=on
run_on cuda int8 1 base.format=int8 "$f32" compute.activation_checkpointing=on
agree flux-f32 int8.cpu int8
run_file=full.yaml
run_on cpu full.cpu 1 "$f32"
run_on cuda full 1 "$f32"
agree flux-f32 full.cpu full
run_file=run.yaml

# Other noise, timesteps and captions are told apart.
run_on cpu other_seed 1 base.format=int8 "$f32" train.seed=4
differ flux-f32 int8 other_seed

run_on cuda again 1
same_runs nf4 again
for n in 2 4; do
    run_on cuda "shared$n" "$n"
    same_runs nf4 "shared$n"
done

# Latents: the same on two ranks as on one, and over the fake as on the CPU.
ask=(--size 48x32 --steps 2 --seed 5 --prompt "" output.dir=nf4)
# cpu|cuda, file, ranks
sample_on() {
    tessera_on "$1" "$3" sample run.yaml "compute.device=$1" compute.share_device=true "${ask[@]}" -o "$2.safetensors"
    [ "$rc" -eq 0 ] || fail "sample, $2: exit code $rc"
}
sample_on cuda latents 1
sample_on cuda latents2 2
cmp latents.safetensors latents2.safetensors || fail "latents differ on two ranks"
if [ -n "$is_fake" ]; then
    sample_on cpu latents.cpu 1
    cmp latents.cpu.safetensors latents.safetensors || fail "latents differ from the CPU's"
fi
passed
