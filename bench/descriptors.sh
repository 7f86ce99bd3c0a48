#!/usr/bin/env bash
# 200,000 + 20,000 descriptors of photographs that Debian ships, for quantizers to be measured on.
#
#     bench/descriptors.sh FOLDER [DESCRIPTORS]     (build/release/bench/descriptors)
#
# Packages come by apt-get download and are unpacked below FOLDER/images, nothing is installed.
# bench/descriptors.txt lists the images with their SHA-256, so another version of a package is
# found out. FOLDER/train.bvecs and FOLDER/held_out.bvecs (128 x u8) must have the SHA-256 below.
# tests/golden/descriptors/ has the first 16,000 and 4,000 of them (head -c $((16000 * 132)), a
# record has 132 bytes). bench/peers/residual_quantizer.py made the errors of faiss on those, and on
# all of them (mode default) in bench/results/2026-11-29-descriptors-faiss.jsonl.
set -euo pipefail
folder=${1:?usage: bench/descriptors.sh FOLDER [DESCRIPTORS]}
here=$(cd "$(dirname "$0")" && pwd)
program=$(realpath "${2:-$here/../build/release/bench/descriptors}")
packages=(lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 mate-backgrounds plasma-workspace-wallpapers ukui-wallpapers)
train=2ddc23f761dd2041f8bcf9ce2625a73469c6b7c21222ffa8bae3857e29afb5a0
held_out=7df043907f711a6637ade048b38dca2fe7e938eaf200e764cfb6070820a3c3b3

mkdir -p "$folder/images"
cd "$folder"
folder=$PWD
if ! (cd images && sha256sum --quiet -c "$here/descriptors.txt") >/dev/null 2>&1; then
    apt-get download "${packages[@]}"
    for package in "${packages[@]}"; do
        dpkg -x "$package"_*.deb images
    done
    (cd images && sha256sum --quiet -c "$here/descriptors.txt")
fi
cut -c 67- "$here/descriptors.txt" | (cd images && xargs -d '\n' "$program" -o "$folder")
sha256sum -c <<END
$train  train.bvecs
$held_out  held_out.bvecs
END
