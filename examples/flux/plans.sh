#!/usr/bin/env bash
# What every run file of this folder takes, planned without weights, cache or GPU, into NAME.plan.txt beside it:
#
#   examples/flux/plans.sh [FOLDER]        (FOLDER: where to write; default: here)
#
# model/config.json is that of FLUX.1-dev; ranks are the number in front of the card in a file's name.
# A device stands for the kernels and workspaces of its generation; memory is the run file's compute.memory_limit.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-$here}
tessera=${TESSERA_BIN:-tessera}
for run in "$here"/*.yaml; do
    name=$(basename "$run" .yaml)
    ranks=1
    [[ $name =~ ^([0-9]+)x ]] && ranks=${BASH_REMATCH[1]}
    device=a100-80g # kernels of the generation that most cards of these sizes are
    [[ $name == *80gb* ]] && device=h100-80g
    {
        echo "# tessera plan examples/flux/$name.yaml model.path=examples/flux/model model.init=random \\"
        echo "#     --ranks $ranks --device $device"
        "$tessera" plan "$run" "model.path=$here/model" model.init=random --ranks "$ranks" --device $device
    } >"$out/$name.plan.txt"
done
