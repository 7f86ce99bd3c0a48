#!/usr/bin/env bash
# k-means jobs on a device: the CPU's bits, whoever holds the codes, on 1, 2 and 4 ranks of one device; runs that go on
# from one to the other; codes of files byte for byte.
# shellcheck source=tests/support/device_run.sh
source "${TESS_SOURCE_DIR:?set by ctest}/tests/support/device_run.sh"
# Two blocks of vectors, the second one ragged: one rank has both, or some have none.
head -c $((1100 * 132)) "$source_dir/tests/golden/descriptors/train.bvecs" > train.bvecs
cat > run.yaml << 'YAML'
model: {family: kmeans}
data: {path: train.bvecs, eval_path: train.bvecs}
quantizer: {passes: 2, refine: 0, beam: 1}
output: {dir: out, checkpoint_every: 1, keep: 9}
YAML

# name, ranks of the device, arguments; of the CPU too where there is no folder of it yet
beside_cpu() {
    local name="$1" ranks="$2" place="$3"
    shift 3
    [ -d "$name.cpu" ] || run_on cpu "$name.cpu" 1 "$@"
    run_on cuda "$name.$place$ranks" "$ranks" "quantizer.sharding=$place" "$@"
    same_runs "$name.cpu" "$name.$place$ranks"
}
levels=(quantizer.codes=7 quantizer.levels=2 quantizer.refine=1 quantizer.init=sample quantizer.beam=2)
beside_cpu levels 1 replicated "${levels[@]}"
beside_cpu levels 4 replicated "${levels[@]}"
beside_cpu levels 2 rows "${levels[@]}"
beside_cpu batch 2 replicated quantizer.codes=11 quantizer.batch=500 quantizer.init=random
beside_cpu groups 1 rows quantizer.codes=5 quantizer.groups=2
beside_cpu spherical 1 replicated quantizer.codes=5 quantizer.spherical=true
beside_cpu empty 1 replicated quantizer.codes=400 quantizer.init=random # many codes have no vector
says levels.replicated1 "collectives: (NCCL|emulated collectives)"
if nccl_shares_device; then
    run_by_nccl levels.nccl 2 quantizer.sharding=rows "${levels[@]}"
    same_runs levels.cpu levels.nccl
else
    echo "not run: two ranks by NCCL on one device need NCCL 2.30.3 or later; there is $device"
fi
grep -q '"split": [1-9]' empty.cpu/metrics.jsonl || fail "no empty code was repaired"

# The comparison tells a code's last bit.
cp -r levels.cpu tampered
book=tampered/export/codebooks.safetensors
printf '\377' | dd of=$book bs=1 seek=$(($(stat -c %s $book) - 4)) conv=notrunc status=none
! (same_runs levels.cpu tampered) > /dev/null 2>&1 || fail "other codes pass"

# From one to the other, without a word: the bits are the same.
for way in "cpu cuda" "cuda cpu"; do
    read -r first second <<< "$way"
    [ "$first" = cpu ] && cp -r levels.cpu "$first.$second" || cp -r levels.replicated4 "$first.$second"
    forget_after "$first.$second" 2
    run_on "$second" "$first.$second" 1 "${levels[@]}"
    says "$first.$second" "resumed from .* at step 2 "
    same_runs levels.cpu "$first.$second"
done

code_on cpu levels.replicated1 train.bvecs cpu 1
code_on cuda levels.replicated1 train.bvecs one 1
code_on cuda levels.rows2 train.bvecs two 2
for kind in h5 npy error; do
    cmp "cpu.$kind" "one.$kind" && cmp "cpu.$kind" "two.$kind" || fail "codes differ"
done
passed
