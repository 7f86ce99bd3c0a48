#!/usr/bin/env bash
# Everything that is measured on one GPU, the most valuable first, and a summary that holds it against the goals.
#
#   bench/gpu.sh PROGRAMS OUT [--seconds N] [--only NAME,NAME...] [--tiny]
#
# PROGRAMS: a build folder, or any with tessera, bench_* and libtessera_cuda.so in it, or in its bin, bench or lib;
# where it has a file `env` (launch/bundle), that is read. Every part has a time limit of its own and none ends the
# others; with --seconds, parts that would begin after so many are left out. OUT gets a .jsonl (results) and a
# .log of every part, commands.tsv and summary.md; parts that an earlier call left there stay. Exit code 0: all parts
# ran, 1: some failed, 77: some were left out for time; summary.md says which, and tells goals met from goals missed.
# --tiny: small shapes, for machines without a GPU, where no figure means anything.
#
# The environment may say TESSERA_CUDA_PLUGIN (else the library in PROGRAMS), PYTHON (python3) with torch, transformers
# and peft for the peer, TESS_BENCH_DEVICE (h200-141g: whose peak and memory times are held against).
set -u -o pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
die() { echo "gpu.sh: $*" >&2; exit 64; }
[ $# -ge 2 ] || die "expected PROGRAMS OUT [--seconds N] [--only NAMES] [--tiny]"
[ -d "$1" ] || die "'$1' is no folder of programs"
programs=$(cd "$1" && pwd)
mkdir -p "$2" || die "'$2' cannot be made"
out=$(cd "$2" && pwd)
shift 2
seconds=3600 only="" tiny=0
while [ $# -gt 0 ]; do
    case $1 in
    --seconds) seconds=${2:?--seconds needs a number}; shift 2 ;;
    --only) only=,${2:?--only needs names}, ; shift 2 ;;
    --tiny) tiny=1; shift ;;
    *) die "unknown option '$1'" ;;
    esac
done
python=${PYTHON:-python3} device=${TESS_BENCH_DEVICE:-h200-141g}
if [ -f "$programs/env" ]; then
    # shellcheck source=/dev/null
    . "$programs/env"
fi
cpus() { env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc; } # which follows these
find_file() {
    local folder
    for folder in "$programs" "$programs"/{bin,bench,lib}; do
        [ -e "$folder/$1" ] && { echo "$folder/$1"; return; }
    done
    echo "$programs/bin/$1" # its absence shows where it is used
}
export TESSERA_CUDA_PLUGIN=${TESSERA_CUDA_PLUGIN:-$(find_file libtessera_cuda.so)}
tessera=$(find_file tessera)
scratch=$(mktemp -d) || die "no folder for scratch files"
trap 'rm -rf "$scratch"' EXIT
[ -s "$out/commands.tsv" ] || printf 'part\tcode\tseconds\tcommand\n' > "$out/commands.tsv"
failed=0 late=0

# name, most seconds, command: its lines go to OUT/name.jsonl.
part() {
    local name=$1 most=$2 rc=0 begin=$SECONDS left
    shift 2
    [ -z "$only" ] || [[ $only == *,$name,* ]] || return 0
    left=$((seconds - SECONDS))
    if [ "$left" -lt 5 ]; then
        printf '%s\t%s\t0\t%s\n' "$name" "no time left" "$*" >> "$out/commands.tsv"
        late=1
        return 0
    fi
    echo "$name: $*" >&2
    # in this script's group, to end with it
    timeout --foreground -k 10 $((left < most ? left : most)) "$@" \
        > "$out/$name.jsonl" 2> "$out/$name.log" < /dev/null || rc=$?
    printf '%s\t%s\t%s\t%s\n' "$name" "$rc" $((SECONDS - begin)) "$*" >> "$out/commands.tsv"
    [ "$rc" -eq 0 ] || { failed=1; echo "$name: exit code $rc: $(tail -n 1 "$out/$name.log")" >&2; }
}

# name, seconds, program, arguments: on the device.
on_device() { part "$1" "$2" "$(find_file "$3")" --plugin "$TESSERA_CUDA_PLUGIN" "${@:4}"; }

# name, seconds, arguments of bench.
steps() {
    part "$1" "$2" "$tessera" bench -v "${@:3}" --dir "$scratch" compute.device=cuda compute.threads="$threads"
}
peer() {
    part "$1" "$2" "$python" "$here/peers/torch_qlora.py" --threads "$threads" "${peer[@]}" --base "$base" "${@:3}"
}

if [ "$tiny" -eq 1 ]; then
    threads=1 model=llama layer=llama base=nf4
    images=(flux --length 32 --repeats 2 --warmup 1 --kernels 1 train.micro_batches=1)
    few=(--repeats 2) ops=(--shape tiny) products=(--shape nt:16:64:128:nf4double:bf16:8 --shape nt:2:64:64:bf16:bf16)
    heads=(--case 32:16:4:2:32:causal --case 16:16:2:2:32:whole) weights=(--rows 32 --cols 256 --format nf4/64/double)
    search=(--vectors 100 --codes 64 --dim 8 --side 64)
    run=(--length 16 --repeats 2 --warmup 1 --kernels 1 train.micro_batches=1)
    save=(--length 16 --every 1 --repeats 1 --warmup 0) wires=(--layer tiny)
    peer=(--shape tiny --length 16 --repeats 2 --warmup 1)
else
    threads=$(cpus) model=llama-8b layer=llama-70b-layer base=triton
    images=(flux-12b --length 1024 --repeats 5 --warmup 2 --kernels 1 train.micro_batches=1)
    few=() ops=() products=() heads=() weights=() search=() wires=()
    save=(--length 4096 --every 2 --repeats 3 --warmup 1 train.micro_batch=2 train.micro_batches=2)
    run=(--length 4096 --repeats 10 --warmup 3 --kernels 1 train.micro_batch=2 train.micro_batches=2)
    peer=(--shape 8b --device cuda --length 4096 --micro-batch 2 --micro-batches 2 --repeats 10)
fi
step=(step "$model" "${run[@]}" --device "$device")
plain=compute.activation_checkpointing=off

{
    uname -sr
    sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1
    cpus
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv,noheader 2>&1 |
        head -n 2
    "$tessera" --version 2>&1 | head -n 1
    cat "$programs/commit" 2> /dev/null || git -C "$here" rev-parse HEAD 2> /dev/null
    date -u +%Y-%m-%dT%H:%M:%SZ
} > "$out/machine.txt" 2>&1

# Expected seconds on an H200, a host of 16 cores: 10, 20, 60, 40, 60, 60, 40, 30, 60, 20, 5, 120, 60, 40, 60, 20, 60.
on_device ops 90 bench_ops "${few[@]}" "${ops[@]}"
on_device gemm 120 bench_gemm "${few[@]}" "${products[@]}"
steps step 240 "${step[@]}" $plain shard.reduction=exact
peer peer 180
steps step-library 240 "${step[@]}" $plain shard.reduction=library
steps step-decoded 240 "${step[@]}" $plain shard.reduction=exact compute.decoded_memory=27GiB
on_device dequantize 120 bench_dequantize_device "${few[@]}" "${weights[@]}"
on_device attention 120 bench_attention "${few[@]}" "${heads[@]}"
steps step-recomputed 240 "${step[@]}" compute.activation_checkpointing=on shard.reduction=exact
steps layer 120 step "$layer" "${run[@]}" --device "$device" $plain
on_device gather 60 bench_gather_device "${few[@]}" "${wires[@]}"
peer peer-compiled 300 --compile
peer peer-recomputed 180 --checkpointing
"$python" -c 'import bitsandbytes' 2> /dev/null && base=bnb peer peer-bnb 240
steps checkpoint 240 checkpoint "$model" "${save[@]}" $plain
on_device nearest 90 bench_nearest_device "${few[@]}" "${search[@]}"
steps flux 240 step "${images[@]}" --device "$device" $plain

python3 "$here/gpu_summary.py" "$out" > "$out/summary.md" || { echo "gpu.sh: no summary" >&2; failed=1; }
cat "$out/summary.md"
[ "$failed" -ne 0 ] || [ "$late" -eq 0 ] || exit 77
exit "$failed"
