#!/usr/bin/env bash
# Whole runs of RQ-VAEs and of a VQ-VAE on a device: by gradient, with rotation, moving averages, FSQ, LFQ, masks and
# images beside the CPU, twice and on 2 and 4 ranks of one device; codes of files.
# shellcheck source=tests/support/device_run.sh
source "${TESS_SOURCE_DIR:?set by ctest}/tests/support/device_run.sh"

# numbers on stdin: bytes
to_bytes() {
    local text
    text="$(awk '{ for (i = 1; i <= NF; i++) printf "\\%04o", $i }')"
    printf '%b' "$text"
}

# 320 vectors of 19 dimensions, the first of descriptors of photographs
VECTORS=320
DIM=19
head -c $((VECTORS * 132)) "$source_dir/tests/golden/descriptors/train.bvecs" | od -An -v -tu1 -w132 |
    awk -v d=$DIM '{ printf "%d 0 0 0", d; for (i = 0; i < d; i++) printf " %d", $(5 + i); print "" }' |
    to_bytes > train.bvecs
[ "$(stat -c %s train.bvecs)" -eq $((VECTORS * (4 + DIM))) ] || fail "cannot cut vectors"
# Seven of ten are there.
awk -v n=$VECTORS 'BEGIN { for (i = 0; i < n; i++) print "1 0 0 0 " (i * 7 % 10 < 7) }' | to_bytes > mask.bvecs
# 8 gray images of 8 x 12, a bar on a ground, as .npy of bytes
mkdir images
for ((n = 0; n < 8; n++)); do
    {
        printf '\223NUMPY\001\000v\000%-117s\n' "{'descr': '|u1', 'fortran_order': False, 'shape': (8, 12), }"
        awk -v n=$n 'BEGIN { for (i = 0; i < 96; i++) print int(i / 12) == n || i % 12 == n % 5 ? 200 + n : 40 + n }' |
            to_bytes
    } > "images/$n.npy"
done

# file, family, data, quantizer
write_run() {
    cat > "$1" << YAML
model: {family: $2}
data: {path: $3, eval_path: $3}
train: {steps: 3, micro_batch: 8, micro_batches: 3, learning_rate: 3.0e-3, warmup_steps: 0, eval_every: 3, seed: 11}
quantizer: {$4, window: 3}
compute: {dtype: f32}
output: {dir: out, checkpoint_every: 2}
YAML
}

# name, family, bound, quantizer, arguments
beside_cpu() {
    local name="$1" family="$2" bound="$3" data=train.bvecs
    [ "$family" = rqvae ] || data=images
    run_file="$name.yaml"
    write_run "$run_file" "$family" "$data" "$4"
    shift 4
    run_on cpu "$name.cpu" 1 "$@"
    run_on cuda "$name" 1 "$@"
    agree "$bound" "$name.cpu" "$name"
}
masked=(data.mask_path=mask.bvecs data.eval_mask_path=mask.bvecs)
codes="encoder: [24], codes: 19, levels: 2, code_dim: 6"
beside_cpu gradient rqvae rqvae-f32 "$codes, init: kmeans"
beside_cpu rotation rqvae rqvae-bf16 "$codes, groups: 2, orthogonal: 1.0, estimator: rotation" compute.dtype=bf16
beside_cpu ema rqvae rqvae-f32 "$codes, update: ema, threshold: 1.5" "${masked[@]}"
beside_cpu fsq rqvae rqvae-f32 "encoder: [24], type: fsq, axis_levels: [8, 5, 5]"
beside_cpu lfq rqvae rqvae-f32 "encoder: [24], type: lfq, code_dim: 5, entropy: 0.1, diversity: 1.0"
beside_cpu images vqvae vqvae-f32 \
    "codes: 19, code_dim: 6, downsample: 2, channels: 6, residual_blocks: 1, residual_channels: 4" train.micro_batch=2

run_file=gradient.yaml
run_on cpu other_seed 1 train.seed=4
differ rqvae-f32 gradient other_seed
for name in ema images; do
    run_file="$name.yaml"
    more=("${masked[@]}")
    [ "$name" = ema ] || more=(train.micro_batch=2)
    run_on cuda "$name.2" 2 "${more[@]}"
    same_runs "$name" "$name.2"
done
run_on cuda images.again 1 train.micro_batch=2
same_runs images images.again
cp -r ema resumed
forget_after resumed 2
run_file=ema.yaml run_on cuda resumed 2 "${masked[@]}"
says resumed "resumed from .* at step 2 "
same_runs ema resumed
run_file=lfq.yaml run_on cuda lfq.4 4
same_runs lfq lfq.4

# Codes of files: the checkpoint of a device is read on one, on two ranks of it, and on a machine that has none.
# run, input, bound
check_codes() {
    code_on cpu "$1" "$2" cpu 1
    code_on cuda "$1" "$2" one 1
    code_on cuda "$1" "$2" two 2
    cmp one.h5 two.h5 && cmp one.npy two.npy && cmp one.error two.error || fail "$1: two ranks give other codes"
    "$check_run" number "$3" "$(cat cpu.error)" "$(cat one.error)" > difference 2>&1 || fail "$1: $(cat difference)"
    [ -z "$is_fake" ] || { cmp cpu.h5 one.h5 && cmp cpu.npy one.npy; } || fail "$1: other codes than the CPU's"
}
check_codes gradient train.bvecs rqvae-pass
check_codes images images vqvae-pass
passed
