#!/usr/bin/env bash
# The HDF5 tools read shard files without our help: structure, attributes, numbers.
set -u
root="${TESS_SOURCE_DIR:?set by ctest}/tests/golden/ckpt_v1"
for tool in h5dump h5ls; do
    command -v "$tool" > /dev/null || { echo "skipped: needs $tool (package hdf5-tools)"; exit 77; }
done
step=$(echo "$root"/step-*/shard-00000-of-00001.h5)
base=$(echo "$root"/base/*/shard-00000-of-00001.h5)
bad=0

expect() { # name, pattern, text
    grep -qE -- "$2" <<< "$3" && return
    echo "$1: no line matches '$2' in:"
    echo "$3"
    bad=1
}

out=$(h5dump -H "$step") || { echo "h5dump -H failed"; exit 1; }
expect "h5dump -H" 'ATTRIBUTE "run_id"' "$out"
expect "h5dump -H" 'DATASET "exp_avg_sq"' "$out"
expect "h5dump -H" 'H5T_STD_U64LE "offset"' "$out"
out=$(h5ls -r "$step") || { echo "h5ls -r failed"; exit 1; }
expect "h5ls -r" '^/units/blk.0/master +Dataset \{1157\}' "$out"
expect "h5ls -r" '^/units/empty/master +Dataset \{0\}' "$out"
expect "h5ls -r" '^/state/tokens +Dataset \{SCALAR\}' "$out"
# bf16 shows as numbers; the values are those of tests/support/ckpt_fixture.c
out=$(h5dump -d /units/blk.1/param -s 0 -c 4 "$step") || { echo "h5dump -d failed"; exit 1; }
expect "bf16" '\(0\): 0.589844, 1.75, -0.847656, 1.39062' "$out"
expect "attributes" '\(0\): "bf16"' "$out"
expect "attributes" '\(0\): 0, 700' "$out"
out=$(h5dump -d /state/tokens "$step")
expect "state" '\(0\): 7000' "$out"
out=$(h5dump -p -d /units/blk.0/frozen -c 4 "$base")
expect "base" 'CONTIGUOUS' "$out"
expect "base" '"nf4/64/double low nibble first"' "$out"
exit $bad
