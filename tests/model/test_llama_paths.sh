#!/bin/bash
# Parity and same bits on every instruction path of this CPU, not only on the one it would choose.
set -euo pipefail
flags=" $(grep -m1 '^flags' /proc/cpuinfo || true) "
tested=0
for path in portable:fpu avx2:avx2 avx512:avx512bw avx512_bf16:avx512_bf16; do
    if [[ $flags != *" ${path#*:} "* ]]; then
        echo "skipped: this CPU lacks ${path%:*}"
        continue
    fi
    for program in parity gradients; do
        echo "== ${path%:*} $program"
        TESSERA_CPU_PATH=${path%:*} "$TESS_BUILD_DIR/tests/model.test_llama_$program"
    done
    tested=$((tested + 1))
done
[ "$tested" -ge 1 ] || { echo "skipped: needs an x86-64 CPU"; exit 77; }
