#!/usr/bin/env bash
# Why does the adapter look noisy? Its held-out loss over every form of the base.
#
#   examples/format_table.sh RUN.yaml ADAPTER [KEY=VALUE...] [-- FORMAT...]
#
# RUN.yaml names the original (16 or 32 bit) model and data.eval_path; ADAPTER is a PEFT directory, such as the run's
# export/. A FORMAT is a word of base.format with what else it takes: nf4 int4,base.rule=hqq. Each row: the loss of the
# base alone in that form, with the adapter over it, and how far that is from the best row. An adapter learns the
# quantization error of the base it was trained over, so over another form it can be worse than over its own.
set -euo pipefail

(($# >= 2)) || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 64; }
tessera=${TESSERA_BIN:-tessera}
run=$1 adapter=$2
shift 2
keys=()
while (($# > 0)) && [[ $1 != -- ]]; do
    keys+=("$1")
    shift
done
(($# > 0)) && shift
formats=("$@")
((${#formats[@]} > 0)) || formats=(bf16 q8_0 qint8 e4m3 nf4 fp4 q4_0 int4 int4,base.rule=hqq int2 int2,base.rule=hqq)

loss() { # ARGS...: the loss of one evaluation
    "$tessera" eval "$run" "${keys[@]}" "$@" --json | sed -n 's/.*"loss": \([^,]*\),.*/\1/p'
}

rows=()
for format in "${formats[@]}"; do
    IFS=, read -r -a base <<<"base.format=$format"
    alone=$(loss "${base[@]}" --checkpoint none)
    with=$(loss "${base[@]}" --adapter "$adapter")
    rows+=("$format $alone $with")
done
best=$(printf '%s\n' "${rows[@]}" | sort -g -k3 | head -n 1 | cut -d' ' -f3)
printf '%-22s %12s %12s %10s\n' base alone adapter 'to best'
printf '%s\n' "${rows[@]}" | while read -r format alone with; do
    printf '%-22s %12.4f %12.4f %+10.4f\n' "$format" "$alone" "$with" \
        "$(awk -v a="$with" -v b="$best" 'BEGIN { print a - b }')"
done
