#!/bin/bash
# A quantized autoencoder over a folder of images from the command line: plan, train on one and on several ranks, eval
# without the training data, encode, decode; and what is refused.
set -euo pipefail
command -v mpirun >/dev/null || { echo "skipped: needs mpirun"; exit 77; }

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() {
    echo "$*" >&2
    exit 1
}

# Gray image N of 8 x 12 as .npy of bytes: a bright bar on a dark ground.
make_image() {
    local header="{'descr': '|u1', 'fortran_order': False, 'shape': (8, 12), }"
    printf '\223NUMPY\001\000v\000%-117s\n' "$header"
    LC_ALL=C awk -v n="$1" 'BEGIN { for (i = 0; i < 96; i++) printf "%c", int(i / 12) == n % 8 || i % 12 == n % 5 ? 200 + n : 40 + n }'
}

mkdir images
for ((n = 0; n < 23; n++)); do make_image $n >"images/$(printf %02d $n).npy"; done

cat >run.yaml <<YAML
model: {family: vqvae}
data: {path: images, eval_path: images}
train: {steps: 60, micro_batch: 4, micro_batches: 3, learning_rate: 5.0e-3, eval_every: 0}
quantizer: {type: vq, codes: 13, code_dim: 4, downsample: 2, channels: 8, residual_blocks: 1, residual_channels: 4,
            update: ema, decay: 0.9, threshold: 0.5, window: 20}
compute: {memory_limit: 1GiB, dtype: f32}
output: {dir: one, checkpoint_every: 30}
YAML

# What is planned is what runs, whatever the number of ranks.
"$TESSERA_BIN" train run.yaml 2>log || fail "$(cat log)"
"$TESSERA_BIN" plan run.yaml --ranks 1 --json | cmp - one/plan.json || fail "plan.json is not the plan"
"$TESSERA_BIN" plan run.yaml train.epochs=2.5 2>log >/dev/null || fail "$(cat log)"
grep -q 'train.epochs=2.5 train.steps=5$' log || fail "epochs of 23 images: $(cat log)" # 57.5 / 12
mpirun --oversubscribe -n 3 "$TESSERA_BIN" train run.yaml output.dir=three 2>log || fail "$(cat log)"
"$TESSERA_BIN" plan run.yaml --ranks 3 --json | cmp - three/plan.json || fail "plan.json is not the plan"
for file in export/model.safetensors levels.jsonl eval.jsonl; do
    cmp one/$file three/$file || fail "$file differs on three ranks"
done
grep -q '"vectors": 138, .*"perplexity"' one/levels.jsonl || fail "23 images of 2 x 3 positions: $(cat one/levels.jsonl)"

# Without the training data: the size of the images is in the run file as resolved.
cp -r images held_out
mv images moved
sed "s|eval_path: images|eval_path: held_out|" one/run.yaml >reader.yaml
grep -q "image: \[1, 8, 12\]" reader.yaml || fail "$(cat reader.yaml)"
"$TESSERA_BIN" eval reader.yaml >shown 2>&1 || fail "$(cat shown)"
grep -q "step 60: loss" shown || fail "$(cat shown)"

# Codes: 6 rows an image, the same file on three ranks, the error of an evaluation; decoded it is what the images are off.
"$TESSERA_BIN" encode one held_out -o codes.h5 --json >said 2>log || fail "$(cat log)"
grep -q '"images": 23' said || fail "$(cat said)"
mpirun --oversubscribe -n 3 "$TESSERA_BIN" encode one held_out -o other.h5 2>log >/dev/null || fail "$(cat log)"
cmp codes.h5 other.h5 || fail "codes differ on three ranks"
"$TESSERA_BIN" inspect codes.h5 >shown
grep -q "138" shown || fail "$(cat shown)"
"$TESSERA_BIN" decode one codes.h5 -o back.npy 2>log || fail "$(cat log)"
mpirun --oversubscribe -n 2 "$TESSERA_BIN" decode one codes.h5 -o other.npy 2>log || fail "$(cat log)"
cmp back.npy other.npy || fail "decoded images differ on two ranks"
head -c 128 back.npy | grep -aq "(23, 8, 12, 1)" || fail "$(head -c 128 back.npy)"
error=$(grep -o '"error": [^,]*' said | cut -d' ' -f2)
evaluated=$(grep '"kind": "eval", "level": -1' one/levels.jsonl | tail -1 | grep -o '"square_error": [^,]*' | cut -d' ' -f2)
awk -v a="$error" -v b="$evaluated" 'BEGIN { exit !(a > 0 && (a - b) ^ 2 <= (1e-6 * b) ^ 2) }' ||
    fail "encode says an error of $error, the evaluation $evaluated"
# The model has images in [-1, 1], files in [0, 1]: squares 4 times as large.
decoded=$(paste <(od -An -v -tu1 -w1 <(for f in held_out/*; do tail -c 96 "$f"; done)) <(od -An -v -tf4 -w4 -j128 back.npy) |
    awk '{ s += 4 * ($1 / 255 - $2) ^ 2 } END { printf "%.9g", s / 23 }')
awk -v a="$error" -v b="$decoded" 'BEGIN { exit !((a - b) ^ 2 <= (1e-5 * b) ^ 2) }' ||
    fail "encode says an error of $error, decoded images are $decoded away"

refuse() {
    local words="$1"
    shift
    ! "$TESSERA_BIN" "$@" 2>refused || fail "$* was taken"
    grep -q "$words" refused || fail "$*: $(cat refused)"
}
mkdir wide
{ printf '\223NUMPY\001\000v\000%-117s\n' "{'descr': '|u1', 'fortran_order': False, 'shape': (8, 8, 3), }"; head -c 192 /dev/zero; } >wide/a.npy
refuse "holds images of 8 x 8 with 3 channels, the checkpoint is of images of 12 x 8 with 1 channels" encode one wide -o other.h5
refuse "images of 12 x 8 are not halved 3 times" train run.yaml data.path=held_out data.eval_path=held_out output.dir=other quantizer.downsample=3
refuse "quantizer.channels: 8 -> 9" train run.yaml data.path=held_out data.eval_path=held_out quantizer.channels=9 train.steps=70
echo passed
