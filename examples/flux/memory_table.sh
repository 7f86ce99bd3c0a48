#!/usr/bin/env bash
# Memory of a rank, in GB (10^9 bytes), for LoRA over FLUX.1-dev in every form of its base, as docs/flux.md shows it:
# rank 16 on the layers of targets all, AdamW with f32 masters, one image at a time, 512 text tokens, blocks recomputed;
# on several ranks the base is sharded over all of them. Planned for an H100; no GPU is needed.
#
#   examples/flux/memory_table.sh [KEY=VALUE...]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tessera=${TESSERA_BIN:-tessera}

plan() { # RANKS KEY=VALUE...: "base total" in GB
    local ranks=$1
    shift
    "$tessera" plan "$here/16gb-nf4-512.yaml" "model.path=$here/model" model.init=random compute.memory_limit=auto \
        compute.activation_checkpointing=on "$@" --ranks "$ranks" --device h100-80g --json |
        sed -n '/"memory_bytes"/,/}/p' | tr -d '" ,' |
        awk -F: '{ v[$1] = $2 / 1e9 } END { printf "%.1f %.1f\n", v["base"] + v["slots"], v["total"] }'
}

formats=(bf16 int8 e4m3 q8_0 int4 nf4 int2)
echo '| base | 512 px | 768 px | 1024 px | of it base | 1024 px on 2 ranks | 4 | 8 |'
echo '|---|---|---|---|---|---|---|---|'
for format in "${formats[@]}"; do
    row="| $format |"
    for side in 512 768 1024; do
        read -r base total < <(plan 1 "base.format=$format" "data.resolution=$side" "$@")
        row+=" $total |"
    done
    row+=" $base |"
    for ranks in 2 4 8; do
        read -r _ total < <(plan "$ranks" "base.format=$format" data.resolution=1024 shard.gather_group=world \
            shard.reshard_after_forward=on train.micro_batches=8 "$@")
        row+=" $total |"
    done
    echo "$row"
done
