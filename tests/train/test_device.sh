#!/bin/bash
# compute.device: every way in which a GPU can be missing, unfit or failing, by name; with the real
# CUDA part where it was built, and with a fake one that shows what the environment says.
# shellcheck source=tests/support/cli_run.sh
source "${TESS_SOURCE_DIR:?set by ctest}/tests/support/cli_run.sh"
fake="${TESS_FAKE_CUDA:?set by ctest}"
[ -f "$fake" ] || { echo "skipped: needs $fake"; exit 77; }
steps=(train.steps=2 output.checkpoint_every=0)

# name, ranks, exit code, text in the output, settings NAME=VALUE..., --, overrides...
case_numel=0
expect() {
    local name="$1" ranks="$2" want="$3" text="$4" settings=() seen
    shift 4
    while [ "$1" != -- ]; do
        settings+=("$1")
        shift
    done
    shift
    case_numel=$((case_numel + 1))
    if [ "$ranks" -eq 1 ]; then
        env "${settings[@]}" timeout 60 "$tessera" train run.yaml "${steps[@]}" \
            "output.dir=$name" "$@" > log 2>&1
        rc=$?
    else
        for seen in "${settings[@]}"; do export "${seen?}"; done
        launch "$ranks" train run.yaml "${steps[@]}" "output.dir=$name" "$@"
        for seen in "${settings[@]}"; do unset "${seen%%=*}"; done
    fi
    [ "$rc" -eq "$want" ] || fail "$name: exit code $rc, expected $want"
    grep -qF -- "$text" log || fail "$name: no '$text'"
    [ "$want" -eq 0 ] || [ "$(grep -c 'tessera: error' log)" -ge 1 ] || fail "$name: no error line"
}

cuda=(compute.device=cuda)
plugin=("TESSERA_CUDA_PLUGIN=$fake")

# ---- no CUDA part, or none of ours ----
mkdir alone
cp "$tessera" alone/tessera
tessera_saved="$tessera"
tessera="$work/alone/tessera"
expect built_without 1 65 "this program was built without CUDA: no libtessera_cuda.so in" -- "${cuda[@]}"
expect auto_without 1 0 "device: cpu; rank 0: this program was built without CUDA" --
tessera="$tessera_saved"
expect no_file 1 65 "the CUDA part cannot be loaded: $work/none.so: cannot open shared object file" \
    "TESSERA_CUDA_PLUGIN=$work/none.so" -- "${cuda[@]}"
expect other_library 1 65 "is not the CUDA part of this program" TESSERA_CUDA_PLUGIN=libm.so.6 -- \
    "${cuda[@]}"
expect other_version 1 65 "was built from another version (interface 0, the program's is" \
    "${plugin[@]}" FAKE_CUDA_FAULT=abi -- "${cuda[@]}"
expect cpu_asked 1 0 "" "${plugin[@]}" FAKE_CUDA_FAULT=abi -- compute.device=cpu
! grep -q "device:" log || fail "compute.device: cpu looked for a device"

# ---- the real one without a driver ----
real="$(dirname "$tessera")/libtessera_cuda.so"
if [ -f "$real" ] && ! ldconfig -p | grep -q 'libcuda\.so\.1'; then
    expect no_driver 1 65 "this machine has no CUDA driver (libcuda.so.1)" -- "${cuda[@]}"
    expect no_driver_on_3 3 65 "rank 0: this machine has no CUDA driver (libcuda.so.1)" -- "${cuda[@]}"
    expect auto_no_driver 1 0 "device: cpu; rank 0: no CUDA driver (libcuda.so.1)" --
else
    echo "not run: the real CUDA part on a machine without a driver"
fi

# ---- the real one with a driver that answers with an error: the toolkit's stub ----
stub="$(dirname "$(command -v nvcc)")/../lib64/stubs/libcuda.so"
if [ -f "$real" ] && [ -f "$stub" ] && ! ldconfig -p | grep -q 'libcuda\.so\.1'; then
    mkdir stub
    ln -s "$(realpath "$stub")" stub/libcuda.so.1
    expect stub_driver 2 65 "cudaGetDeviceCount: CUDA says" "LD_LIBRARY_PATH=$work/stub" -- "${cuda[@]}"
    grep -q "cudaErrorStubLibrary" log || fail "stub_driver: another error"
    expect auto_stub_driver 2 0 "device: cpu; rank 0: cudaGetDeviceCount: CUDA says" \
        "LD_LIBRARY_PATH=$work/stub" --
else
    echo "not run: the real CUDA part with the toolkit's stub of a driver"
fi

# ---- drivers and devices that do not serve ----
expect old_driver 1 65 "the CUDA driver supports CUDA 12.4" "${plugin[@]}" FAKE_CUDA_FAULT=driver -- \
    "${cuda[@]}"
expect auto_old_driver 2 0 "device: cpu; rank 0: the CUDA driver supports CUDA 12.4" "${plugin[@]}" \
    FAKE_CUDA_FAULT=driver --
expect no_device 1 65 "the CUDA driver shows no device; look at CUDA_VISIBLE_DEVICES" "${plugin[@]}" \
    FAKE_CUDA_DEVICES=0 -- "${cuda[@]}"
expect auto_no_device 1 0 "device: cpu; rank 0: the CUDA driver shows no device" "${plugin[@]}" \
    FAKE_CUDA_DEVICES=0 --
expect device_busy 1 65 "cuda:0: CUDA says all devices are busy" "${plugin[@]}" FAKE_CUDA_FAULT=open -- \
    "${cuda[@]}"
expect no_kernels 1 65 "cuda:0: the CUDA part was built without kernels" "${plugin[@]}" \
    FAKE_CUDA_FAULT=kernels --

# ---- ranks and devices ----
expect too_few 3 65 "ranks 0 and 2 would share the GPU 0000:01:00.0" "${plugin[@]}" \
    FAKE_CUDA_DEVICES=2 -- "${cuda[@]}"
grep -q "which shows them 2; start as many ranks as GPUs, or set compute.share_device: true" log ||
    fail "too_few: no way out"
expect auto_too_few 2 65 "ranks 0 and 1 would share the GPU" "${plugin[@]}" --
expect mixed 2 65 "rank 1 has a Fake A100 (sm_90, 132 multiprocessors)" "${plugin[@]}" \
    FAKE_CUDA_DEVICES=2 "FAKE_CUDA_MODELS=Fake H100,Fake A100" -- "${cuda[@]}"
# Slices of a GPU have memory of their own, but NCCL refuses them.
expect slices 2 0 "collectives: through host memory and MPI; ranks share a GPU" "${plugin[@]}" \
    FAKE_CUDA_DEVICES=2 FAKE_CUDA_SLICES=1 -- "${cuda[@]}"

# The library is one of the machine: where one rank has none, all take the other way.
expect one_without 2 0 "collectives: through host memory and MPI; another rank has no NCCL" "${plugin[@]}" \
    FAKE_CUDA_DEVICES=2 FAKE_CUDA_NCCL=none:1 -- "${cuda[@]}"
expect root_without 2 0 "collectives: through host memory and MPI; the CUDA part has no NCCL" "${plugin[@]}" \
    FAKE_CUDA_DEVICES=2 FAKE_CUDA_NCCL=none:0 -- "${cuda[@]}"

# ---- memory ----
expect too_small 2 65 "per rank, compute.memory_limit is 7 MiB" "${plugin[@]}" FAKE_CUDA_DEVICES=2 FAKE_CUDA_MEMORY=8388608 \
    FAKE_CUDA_NCCL=none -- "${cuda[@]}"
# An eighth, 512 MiB, and 16 channels of 12 MiB to each peer: 832 MiB of 1024 at 2 ranks, 1024 at 3.
gib=1073741824
expect buffers_of_2 2 0 "collectives: emulated collectives; 0.7 GiB of the device" "${plugin[@]}" FAKE_CUDA_DEVICES=3 \
    "FAKE_CUDA_MEMORY=$gib" -- "${cuda[@]}"
expect buffers_of_3 3 65 "1073741824 are kept for its libraries, 939524096 of them for collectives" "${plugin[@]}" \
    FAKE_CUDA_DEVICES=3 "FAKE_CUDA_MEMORY=$gib" -- "${cuda[@]}"
# 2047 x 1048576 tokens, 16 bytes each, are 34 GB of host memory
if [ "$(awk '/MemAvailable/ { print $2 }' /proc/meminfo)" -lt 33000000 ]; then
    expect pinned 1 65 "bytes of host memory, pinned, beside its device" "${plugin[@]}" \
        FAKE_CUDA_MEMORY=1000000000000000000 -- "${cuda[@]}" data.sequence_length=1048576 train.micro_batch=2047
else
    echo "not run: more pinned memory than this machine has"
fi
expect out_of_memory 2 71 "arena 'activations': cuda:0 has no" "${plugin[@]}" FAKE_CUDA_DEVICES=2 \
    FAKE_CUDA_FAULT=alloc -- "${cuda[@]}"

# ---- collectives ----
expect failing 2 86 "emulated failure: unhandled system error" "${plugin[@]}" FAKE_CUDA_DEVICES=2 \
    FAKE_CUDA_NCCL=fail:1:-1 -- "${cuda[@]}"
expect never_joins 2 86 "for emulated collectives: joining" "${plugin[@]}" FAKE_CUDA_DEVICES=2 \
    FAKE_CUDA_NCCL=join:1:0 TESSERA_DEADLINE_S=2 -- "${cuda[@]}"
echo "$case_numel cases"
