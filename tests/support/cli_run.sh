# shellcheck shell=bash
# Source me: a tiny run on files of its own for scripts that drive the program. Sets `work`, makes
# model, token files and run.yaml there, and gives launch, start, ranks_of, finish and fail.
set -u
tessera="${TESSERA_BIN:?set by ctest}"
source_dir="${TESS_SOURCE_DIR:?set by ctest}"
command -v mpirun > /dev/null || { echo "skipped: needs mpirun"; exit 77; }
[ -x "$tessera" ] || { echo "skipped: needs $tessera"; exit 77; }
parent="${TMPDIR:-/tmp}"
# Simulated hosts (launch/hosts.sh) have a /dev/shm each; containers often one of 64 MiB.
[ -w /dev/shm ] && [ -z "${TESS_HOSTS_INSIDE:-}" ] && [ "$(($(stat -f -c '%a * %S' /dev/shm) >> 32))" -gt 0 ] &&
    parent=/dev/shm
work="$(mktemp -d "$parent/tessera-cli-XXXXXX")"
job=
clean_up() {
    if [ -n "$job" ]; then kill -KILL "$job" $(descendants "$job") 2> /dev/null; fi
    rm -rf "$work"
}
trap clean_up EXIT
cd "$work" || exit 1
# Each job in a PID namespace of its own where that is allowed: its end leaves no process behind.
namespace=(setsid)
if unshare -pfm --mount-proc true 2> /dev/null; then
    namespace=(unshare -pfm --kill-child --mount-proc)
fi

fail() {
    echo "FAILED: $*"
    [ ! -s "$work/log" ] || tail -n 30 "$work/log"
    exit 1
}

# All processes below one, by their parents.
descendants() {
    local p
    for p in $(grep -lsx "PPid:[[:space:]]*$1" /proc/[0-9]*/status | cut -d / -f 3); do
        echo "$p"
        descendants "$p"
    done
}

# Process ids of the ranks of the job.
ranks_of() {
    local p
    for p in $(descendants "$1"); do
        [ "$(cat "/proc/$p/comm" 2> /dev/null)" != tessera ] || echo "$p"
    done
}

mpirun_of() {
    local p
    for p in $(descendants "$1"); do
        [ "$(cat "/proc/$p/comm" 2> /dev/null)" != mpirun ] || echo "$p"
    done
}

# Since the machine started: the time of day may be set meanwhile.
now_ms() {
    local up
    read -r up _ < /proc/uptime
    echo $((10#${up/./} * 10))
}

# ranks, arguments of tessera...: start in the background; `job` is its process, output in `log`.
# The namespaces' process numbers repeat, and Open MPI names files by them: a folder for each job.
job_numel=0
job_limit_s=600 # a job that takes longer hangs; on a busy machine one of a few seconds has taken two minutes
start() {
    local n="$1"
    shift
    job_numel=$((job_numel + 1))
    mkdir -p "$work/mpi.$job_numel"
    : > "$work/log"
    TMPDIR="$work/mpi.$job_numel" \
        OMPI_MCA_btl_vader_backing_directory="$work/mpi.$job_numel" "${namespace[@]}" \
        bash -c 'timeout --kill-after=5 "$1" mpirun --oversubscribe \
            --mca odls_base_sigkill_timeout 0 "${@:2}"; exit $?' - "$job_limit_s" -n "$n" "$tessera" "$@" \
        > "$work/log" 2>&1 &
    job=$!
}

# Wait for the job; its exit code in `rc`.
finish() {
    { wait "$job"; } 2> /dev/null
    rc=$?
    job=
    rm -rf "$work/mpi.$job_numel"
    [ "$rc" -ne 124 ] && [ "$rc" -ne 137 ] || [ -n "${is_killed:-}" ] || fail "the job hung"
}

launch() {
    start "$@"
    finish
}

# text, seconds: wait until the log of the running job has it
await() {
    local until_ms=$(($(now_ms) + $2 * 1000))
    until grep -q -- "$1" "$work/log"; do
        [ "$(now_ms)" -lt "$until_ms" ] || fail "no '$1' within $2 s"
        kill -0 "$job" 2> /dev/null || fail "the job ended before '$1'"
        sleep 0.02
    done
}

# loss_bits of all steps and the adapter of a finished run
bits_of() {
    sed 's/.*"step": \([0-9]*\),.*"loss_bits": "\([0-9a-f]*\)".*/\1 \2/' "$1/metrics.jsonl" &&
        sha256sum < "$1"/export/*model.safetensors # of an adapter, or the model's own
}

mkdir model
cat > model/config.json << 'JSON'
{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32,
 "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
 "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 4096, "rms_norm_eps": 1e-6,
 "rope_theta": 10000.0, "tie_word_embeddings": true, "hidden_act": "silu",
 "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16"}
JSON
cat > run.yaml << 'YAML'
model: {path: model, init: random}
base: {format: nf4, block_size: 64, double_quant: true}
lora: {rank: 4, alpha: 8, targets: all-linear, dropout: 0.1}
data: {path: train.h5, sequence_length: 32}
train: {steps: 30, micro_batch: 1, micro_batches: 3, learning_rate: 2.0e-2, warmup_steps: 2,
        weight_decay: 0.1, clip_norm: 0.05, seed: 3, eval_every: 0}
output: {dir: out, checkpoint_every: 2, keep: 2}
YAML
for ((i = 1; i <= 200; i++)); do
    echo "{\"text\": \"line $i counts up to $((i * 7 % 61)) and then $((i * 13 % 53)) more\"}"
done > text.jsonl
"$tessera" tokenize "$source_dir/examples/base" text.jsonl -o train.h5 > log 2>&1 ||
    fail "cannot tokenize"
