# shellcheck shell=bash
# Source me in place of cli_run.sh: runs on the device of TESSERA_CUDA_PLUGIN, else of the build's CUDA part, beside
# runs on the CPU, and what of them has to agree. Exit code 77 where there is no device, with what is missing.
# Over the CUDA part without CUDA (tests/emulation/fake_plugin.c) kernels are the CPU's: what is promised within a
# bound has to be equal to the bit there, beside keeping the bound.
check_run="${TESS_BUILD_DIR:?set by ctest}/tests/cuda.check_run"
[ -x "$check_run" ] || { echo "FAILED: needs $check_run; build it"; exit 1; }
device="$("$check_run" device)" || { code=$?; echo "$device"; exit "$code"; }
echo "$device"
is_fake=
[[ "$device" != Fake* ]] || is_fake=1
# shellcheck source=tests/support/cli_run.sh
source "${TESS_SOURCE_DIR:?set by ctest}/tests/support/cli_run.sh"
export FAKE_CUDA_DEVICES=1
run_file=run.yaml
device_launches=0

# ---- runs ----

# cpu|cuda, ranks, arguments of tessera: exit code in `rc`, output in `log`. One rank needs no mpirun, but for the
# collectives of the fake.
tessera_on() {
    local where="$1" ranks="$2"
    shift 2
    [ "$where" = cpu ] || device_launches=$((device_launches + 1))
    if [ "$ranks" -gt 1 ] || [ "$where$is_fake" = cuda1 ]; then
        launch "$ranks" "$@"
        return
    fi
    timeout --kill-after=5 "$job_limit_s" "$tessera" "$@" > log 2>&1
    rc=$?
    [ "$rc" -ne 124 ] && [ "$rc" -ne 137 ] || fail "$*: hung"
}

# cpu|cuda, folder, ranks, arguments: a run that succeeds; its output in FOLDER.log
run_on() {
    local where="$1" dir="$2" ranks="$3"
    shift 3
    tessera_on "$where" "$ranks" train "$run_file" "compute.device=$where" compute.share_device=true \
        "output.dir=$dir" "$@"
    cp log "$dir.log"
    [ "$rc" -eq 0 ] || fail "$dir: exit code $rc"
    [ "$where" = cpu ] || says "$dir" "device: cuda:0, ${device%%;*} "
}

# folder, pattern: the run said it
says() {
    grep -Eq -- "$2" "$1.log" || fail "$1: no '$2' in its log"
}

# file, key: the number of its last line
last() {
    tail -n 1 "$1" | sed -n "s/.*\"$2\": \([-+0-9.e]*\).*/\1/p"
}

# The checkpoint of a run on a device is read on it, and as on a machine that has none.
# cpu|cuda, run, input, output, ranks
code_on() {
    local where="$1" run="$2" ranks="$5" plugin="${TESSERA_CUDA_PLUGIN:-}"
    [ "$where" = cuda ] || export TESSERA_CUDA_PLUGIN="$work/none.so"
    tessera_on "$where" "$ranks" encode "$run" "$3" -o "$4.h5" --json
    [ "$rc" -eq 0 ] || fail "encode, $4: exit code $rc"
    if [ "$where" = cuda ]; then
        grep -q "device: cuda:0, ${device%%;*} " log || fail "encode, $4: not on the device"
    else
        grep -q "device: cpu; rank 0: " log || fail "encode, $4: not on the CPU"
    fi
    sed -n 's/.*"error": \([^,]*\),.*/\1/p' log > "$4.error"
    tessera_on "$where" "$ranks" decode "$run" "$4.h5" -o "$4.npy"
    [ "$rc" -eq 0 ] || fail "decode, $4: exit code $rc"
    export TESSERA_CUDA_PLUGIN="$plugin"
    [ -n "$plugin" ] || unset TESSERA_CUDA_PLUGIN
}

# folder, step: as the run was when it had saved that step
forget_after() {
    local checkpoint step
    for checkpoint in "$1"/step-*; do
        step="${checkpoint##*/step-}"
        [ $((10#${step%.*})) -le "$2" ] || rm -rf "$checkpoint"
    done
    [ -n "$(ls "$1"/step-*/MANIFEST 2> /dev/null)" ] || fail "$1 has no checkpoint up to step $2"
    rm -rf "$1/export"
}

# ---- comparisons ----

# file: lines without what depends on the clock, on memory and on how many ranks there were
untimed() {
    sed -E 's/, "(tokens_per_s|vectors_per_s|step_s|exposed_[a-z_]*|mem_[a-z_]*)": [^,}]*//g' "$1"
}

# folder, folder: the same tensors to the bit in all checkpoints, and the same base
same_checkpoints() {
    local checkpoint step seen=0
    for checkpoint in "$1"/step-*; do
        step="${checkpoint##*/}"
        [ -e "$checkpoint/MANIFEST" ] || fail "$1 has no checkpoint"
        "$tessera" diff "$checkpoint" "$2/${step%.*}".* > difference 2>&1 ||
            { head -n 5 difference; fail "$2: step ${step%.*} differs from that of $1"; }
        seen=$((seen + 1))
    done
    [ "$seen" -ge 1 ] || fail "$1 has no checkpoint"
    same_base "$1" "$2"
}

# folder, folder: the same base id, codes and constants, as each device gave them back
same_base() {
    local base
    [ -d "$1/base" ] || [ -d "$2/base" ] || return 0
    for base in "$1"/base/*; do
        "$tessera" diff "$base" "$2/base/${base##*/}" > difference 2>&1 ||
            { head -n 5 difference; fail "$2: another base than that of $1"; }
    done
}

# folder, folder: everything that two runs leave is the same to the bit
same_runs() {
    local file
    for file in metrics.jsonl eval.jsonl levels.jsonl; do
        [ -e "$1/$file" ] || [ -e "$2/$file" ] || continue
        diff <(untimed "$1/$file") <(untimed "$2/$file") > difference ||
            { cut -c 1-400 difference; fail "$2: another $file than that of $1"; }
    done
    [ -s "$1/metrics.jsonl" ] || fail "$1 has no steps"
    for file in "$1"/export/*.safetensors; do
        cmp "$file" "$2/export/${file##*/}" || fail "$2: another ${file##*/} than that of $1"
    done
    same_checkpoints "$1" "$2"
}

# bound, folder of the CPU, folder of the device: losses and norms of all steps within the bound, base equal
agree() {
    local loss
    "$check_run" losses "$1" "$2" "$3" > difference 2>&1 || fail "$3 and $2: $(cat difference)"
    cat difference
    if [ -s "$2/eval.jsonl" ]; then
        loss="$(last "$2/eval.jsonl" eval_loss)"
        "$check_run" number "$1" "$loss" "$(last "$3/eval.jsonl" eval_loss)" > difference 2>&1 ||
            fail "$3 and $2: last evaluation: $(cat difference)"
    fi
    same_base "$2" "$3"
    [ -z "$is_fake" ] || same_runs "$2" "$3"
}

# bound, folder, folder: the comparison tells them apart
differ() {
    ! "$check_run" losses "$1" "$2" "$3" > difference 2>&1 || fail "$3 passes for $2"
}

# ---- collectives ----

# Whether NCCL takes several ranks of one device: from 2.30.3 on. The fake does.
nccl_shares_device() {
    local version
    [ -z "$is_fake" ] || return 0
    version="$(sed -n 's/.*NCCL \([0-9.]*\).*/\1/p' <<< "$device")"
    [ -n "$version" ] && [ "$(printf '%s\n' 2.30.3 "$version" | sort -V | head -n 1)" = 2.30.3 ]
}

# folder, ranks, arguments: run_on cuda by NCCL with all ranks on the one device; a hang ends at the deadline
run_by_nccl() {
    NCCL_MULTI_RANK_GPU_ENABLE=1 TESSERA_DEADLINE_S=30 run_on cuda "$@"
    says "$1" "collectives: (NCCL|emulated collectives)"
}

# what, bytes taken of the device, bytes of arenas, bytes for libraries: as planned. Everything else that grows on the
# device meanwhile counts as taken.
memory_as_planned() {
    echo "device memory of $1: $3 bytes of arenas, $4 for libraries, $2 taken"
    if [ -n "$is_fake" ]; then
        # no libraries; an arena without a buffer has 256 bytes all the same
        [ "$2" -ge "$3" ] && [ "$2" -le $(($3 + 9 * 256)) ] || fail "$1 takes $2 bytes, planned are $3"
    else
        # pages of 2 MiB; code that CUDA loads when it is first used, for which the program leaves 512 MiB
        [ "$2" -ge $(($3 - (2 << 20))) ] && [ "$2" -le $(($3 + $4 + (512 << 20))) ] ||
            fail "$1 takes $2 bytes; planned are $3 for arenas, $4 for libraries, and 512 MiB for code"
    fi
}

passed() {
    echo "passed: $device_launches launches on the device in $SECONDS s"
}
