#!/usr/bin/env bash
# Makes tests/golden/ckpt_v1, the checkpoint of format version 1 that every later version must load:
#   tests/golden/make_ckpt_v1.sh BUILD_DIR
# Written once with version 0.1.0. Never made again: a reader that cannot load it is wrong.
set -eu
build="${1:?usage: make_ckpt_v1.sh BUILD_DIR}"
out="$(cd "$(dirname "$0")" && pwd)/ckpt_v1"
[ ! -e "$out" ] || { echo "$out exists" >&2; exit 1; }
"$build/tests/shard.test_ckpt_store" --make-golden "$out"
rm "$out/LOCK" # names the machine
