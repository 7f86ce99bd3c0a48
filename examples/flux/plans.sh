#!/usr/bin/env bash
# What every run file of this folder takes, planned without weights, cache or device, into NAME.plan.txt beside it:
#
#   examples/flux/plans.sh [FOLDER]        (FOLDER: where to write; default: here)
#
# model/config.json is that of FLUX.1-dev; ranks are the number in front of the card in a file's name.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-$here}
tessera=${TESSERA_BIN:-tessera}
for run in "$here"/*.yaml; do
    name=$(basename "$run" .yaml)
    ranks=1
    [[ $name =~ ^([0-9]+)x ]] && ranks=${BASH_REMATCH[1]}
    {
        echo "# tessera plan examples/flux/$name.yaml model.path=examples/flux/model model.init=random --ranks $ranks"
        "$tessera" plan "$run" "model.path=$here/model" model.init=random --ranks "$ranks" |
            sed 's|kernels cpu/[a-z0-9]*|kernels cpu|' # the instructions of the machine that planned
    } >"$out/$name.plan.txt"
done
