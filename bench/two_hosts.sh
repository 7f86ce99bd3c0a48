#!/usr/bin/env bash
# Step time and exposed communication of two simulated hosts with one rank and one core each, over
# links of 200 Mbit/s, 1 Gbit/s and as fast as they are: six configurations each, as JSON lines.
#
#   bench/two_hosts.sh TESSERA OUT [RATE...]
#
# Per rate, both hosts at once measure OUT/device-RATE-{0,1}.json (tessera bench device), then
# OUT/links-RATE.json (tessera bench links); from them tessera plan makes OUT/predictions.jsonl, the
# slower host's, all of it before the first measured run of a rate; then OUT/measured.jsonl with both
# numbers side by side. Every configuration runs three times, in turns; of each run the median step
# counts, of the three the least, as the calibration keeps its least: what else the machine does is
# not predicted. Exposed communication is that run's, of both ranks the least: what exceeds it is
# one waiting for the other. RATE is tc's (200mbit) or none. Wants two free cores; root, or a kernel that
# lets users make namespaces.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$here/launch/hosts.sh"
[[ $# -ge 2 ]] || { echo "usage: bench/two_hosts.sh TESSERA OUT [RATE...]" >&2; exit 64; }
hosts_enter "$@"
set -euo pipefail
tessera=$(realpath "$1")
mkdir -p "$2"
cd "$2"
rates=("${@:3}")
((${#rates[@]} > 0)) || rates=(200mbit 1gbit none)
[[ $(nproc --all) -ge 2 ]] || hosts_skip "two cores"
hosts_up 2 "$PWD/hosts"
hosts_file 1 1 >hostfile

# name, keys: gather groups, micro-batches and formats that differ in what they send and compute
configurations=(
    "nf4-group2-m2 shard.gather_group=2 train.micro_batches=2 base.format=nf4"
    "nf4-group1-m2 shard.gather_group=1 train.micro_batches=2 base.format=nf4"
    "nf4-group2-m8 shard.gather_group=2 train.micro_batches=8 base.format=nf4"
    "nf4-group1-m8 shard.gather_group=1 train.micro_batches=8 base.format=nf4"
    "bf16-group2-m4 shard.gather_group=2 train.micro_batches=4 base.format=bf16"
    "qint8-group2-m4 shard.gather_group=2 train.micro_batches=4 base.format=qint8"
)
rounds=3
steps=30 first=6 # what is timed begins when buffers have been touched

corpus() {
    xz -dkc "$here/examples/corpus/kjv.train.jsonl.xz" | sed -n '1,400p' >text.jsonl
    "$tessera" tokenize "$here/examples/base" text.jsonl -o train.h5 >/dev/null
    cat >run.yaml <<YAML
model: {path: $here/examples/base, init: weights}
lora: {rank: 16, alpha: 32, targets: all-linear}
data: {path: train.h5, sequence_length: 256}
train: {steps: $steps, micro_batch: 1, learning_rate: 1.0e-3, warmup_steps: 2, seed: 0, eval_every: 0}
compute: {threads: 1}
output: {dir: run, checkpoint_every: 0, export: none}
YAML
}

# A command on both hosts, each rank on a core of its own.
both() {
    # shellcheck disable=SC2016 # for the rank's own shell
    hosts_on 1 "$here/launch/on-hosts" hostfile -- bash -c \
        'exec taskset -c "$OMPI_COMM_WORLD_RANK" "$@"' rank "$@" >out 2>log || { tail -n 5 log >&2; return 1; }
}

# What cores and links give; none of the runs below is part of it.
calibrate() { # RATE
    local core job=()
    for core in 0 1; do
        taskset -c "$core" "$tessera" bench device -o "device-$1-$core.json" >/dev/null &
        job+=($!)
    done
    wait "${job[@]}"
    both "$tessera" bench links --repeats 10 --max-mib 8 -o "links-$1.json"
}

# RATE KEY...: "STEP_S EXPOSED_S" of the slower host
predict() {
    for core in 0 1; do
        "$tessera" plan run.yaml "${@:2}" --ranks 2 --device "device-$1-$core.json" \
            --network "links-$1.json" --json >plan.json
        echo "$(number step_s) $(number exposed_comm_least_s)"
    done | sort -g | tail -n 1
}

number() { # member of "predicted" in plan.json
    sed -n '/"predicted"/,$p' plan.json | sed -n "s/^ *\"$1\": *\([-0-9.e+]*\),*$/\1/p" | head -n 1
}

median() { sort -g | awk '{v[NR] = $1} END {print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2}'; }

values() { # key: of the timed steps
    sed -n "s/.*\"$1\": \([-0-9.e+]*\),.*/\1/p" run/metrics.jsonl | tail -n "+$first"
}

measure() { # RATE NAME KEY...: one line of rounds.jsonl
    rm -rf run
    both "$tessera" train run.yaml "${@:3}"
    printf '{"rate": "%s", "name": "%s", "step_s": %s, "exposed_comm_s": %s, "sent_bytes_of_a_step": %s}\n' \
        "$1" "$2" "$(values step_s | median)" "$(values exposed_comm_least_s | median)" \
        "$(sed -n 's/.*"node_sent_bytes": *\([0-9]*\),*$/\1/p' run/plan.json)"
}

of() { # FILE RATE NAME: its lines' members
    grep "^{\"rate\": \"$2\", \"name\": \"$3\"" "$1" | sed "s/.*\"name\": \"$3\", \(.*\)}/\1/"
}

compare() { # RATE NAME KEY...
    local runs
    runs=$(of rounds.jsonl "$1" "$2" | sort -g -k 2)
    printf '{"rate": "%s", "name": "%s", "keys": "%s", %s, %s, "step_s_of_runs": [%s], "steps_timed": %d, ' \
        "$1" "$2" "${*:3}" "$(of predictions.jsonl "$1" "$2")" "$(head -n 1 <<<"$runs")" \
        "$(sed 's/"step_s": \([^,]*\),.*/\1/' <<<"$runs" | paste -s -d, | sed 's/,/, /g')" \
        $((steps - first + 1))
    printf '"commit": "%s", "machine": "%s"}\n' "$commit" "$machine"
}

commit=$(git -C "$here" describe --always --dirty 2>/dev/null || echo unknown)
machine=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
corpus
: >measured.jsonl
: >predictions.jsonl
: >rounds.jsonl
for rate in "${rates[@]}"; do
    for host in 1 2; do
        hosts_shape "$host" "$rate" || hosts_skip "a kernel with tc tbf"
    done
    calibrate "$rate"
    for c in "${configurations[@]}"; do
        read -ra word <<<"$c"
        read -r step exposed < <(predict "$rate" "${word[@]:1}")
        printf '{"rate": "%s", "name": "%s", "predicted_step_s": %s, "predicted_exposed_comm_s": %s}\n' \
            "$rate" "${word[0]}" "$step" "$exposed" >>predictions.jsonl
    done
    for ((round = 0; round < rounds; round++)); do
        for c in "${configurations[@]}"; do
            read -ra word <<<"$c"
            measure "$rate" "${word[@]}" >>rounds.jsonl
        done
    done
    for c in "${configurations[@]}"; do
        read -ra word <<<"$c"
        compare "$rate" "${word[@]}" | tee -a measured.jsonl
    done
done
