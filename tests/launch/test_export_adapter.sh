#!/usr/bin/env bash
# export of adapter files: one dialect into another, and what is refused.
set -u
bin=${TESSERA_BIN:?}
root=${TESS_SOURCE_DIR:?}
golden=$root/tests/golden/adapter
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

complain() {
    printf 'FAILED: %s\n' "$*"
    failures=$((failures + 1))
}

# good ARGS...: exit 0.
good() {
    "$bin" "$@" >"$work/out" 2>"$work/err" || complain "tessera $*: exit $?: $(cat "$work/err")"
}

# shows FILE PATTERN: inspect FILE prints it.
shows() {
    "$bin" inspect "$1" >"$work/out" 2>&1
    grep -Eq -- "$2" "$work/out" || complain "inspect $1: '$(head -c 400 "$work/out")' lacks '$2'"
}

# bad CODE PATTERN ARGS...: exit code, and one line on stderr that matches.
bad() {
    local code=$1 pattern=$2 status=0
    shift 2
    "$bin" "$@" >"$work/out" 2>"$work/err" || status=$?
    [[ $status == "$code" ]] || complain "tessera $*: exit $status, expected $code"
    grep -Eq -- "$pattern" "$work/err" || complain "tessera $*: '$(cat "$work/err")' lacks '$pattern'"
}

# Once alpha is folded, a file comes back bit for bit, through every dialect.
source=$golden/flux.safetensors
shows "$source" '^dialect: diffusers$'
shows "$source" '^  rank 4 +alpha 3.5 +scale 0.875 +\[16, 16\] +transformer_blocks.0.attn.to_k$'
good export "$source" --format diffusers -o "$work/folded"
folded=$work/folded/pytorch_lora_weights.safetensors
shows "$folded" '^  rank 4 +alpha 4 +scale 1 +\[16, 16\] +transformer_blocks.0.attn.to_k$'
for format in kohya comfyui; do
    good export "$folded" --format $format -o "$work/$format"
    shows "$work/$format/$format.safetensors" "^dialect: $format\$"
    good export "$work/$format/$format.safetensors" --format diffusers -o "$work/$format.back"
    good export "$work/$format.back/pytorch_lora_weights.safetensors" --format $format -o "$work/$format.again"
    cmp -s "$work/$format/$format.safetensors" "$work/$format.again/$format.safetensors" ||
        complain "$format, diffusers, $format: other bytes"
done
good export "$folded" --format kohya --dtype f16 -o "$work/half"
shows "$work/half/kohya.safetensors" '^dtype: f16$'
shows "$work/half/kohya.safetensors" 'ss_network_module":"networks.lora_flux"'

# Its hash is that of the bytes behind the header.
file=$work/kohya/kohya.safetensors
header=$(od -An -tu8 -N 8 "$file")
sum=$(tail -c +$((header + 9)) "$file" | sha256sum | cut -d' ' -f1)
shows "$file" "\"sshs_model_hash\":\"$sum\""

# Language models; under mpirun one rank converts.
adapter=$root/tests/golden/format/adapter
good export "$adapter" --format gguf --base "$root/tests/golden/format/model" -o "$work/gguf"
shows "$work/gguf/adapter.gguf" '^dialect: gguf$'
good verify "$work/gguf/adapter.gguf"
mpirun -n 2 "$bin" export "$work/gguf/adapter.gguf" --format peft -o "$work/peft" >"$work/out" 2>&1 ||
    complain "export on two ranks: $(cat "$work/out")"
shows "$work/peft" '^  rank 2 +alpha 2 +scale 1 .*k_proj$'

bad 65 "choose with --format" export "$source" -o "$work/none"
bad 65 "choose with --format" export "$source" --format hf -o "$work/none"
bad 64 "expected peft, gguf, diffusers, kohya, comfyui, hf, safetensors, npy or faiss, found 'onnx'" export "$source" --format onnx -o "$work/none"
bad 65 "exists; remove it" export "$source" --format kohya -o "$work/kohya"
bad 65 "adapts FLUX.1" export "$source" --format peft -o "$work/none"
bad 65 "no linear layer of FLUX.1" export "$adapter" --format comfyui -o "$work/none"
bad 65 "give it with --base" export "$adapter" --format gguf -o "$work/none"
bad 65 "is DoRA; ComfyUI" export "$golden/flux_dora.safetensors" --format comfyui -o "$work/none"
[[ ! -e $work/none ]] || complain "a refused export left '$work/none'"

[[ $failures == 0 ]] || exit 1
