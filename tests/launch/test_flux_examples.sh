#!/bin/bash
# The run files of examples/flux: each plans as the text beside it says, within the memory that its name gives; the table
# of docs/flux.md is what its script prints.
set -euo pipefail
root=${TESS_SOURCE_DIR:?set by ctest}
export TESSERA_BIN=${TESSERA_BIN:?set by ctest}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
    echo "$*" >&2
    exit 1
}

# Without the model that a run file names, that is what is said, and no key is judged as of another family.
if (cd "$work" && "$TESSERA_BIN" plan "$root/examples/flux/24gb-int8-1024.yaml") >"$work/log" 2>&1; then
    fail "a plan without its model"
fi
grep -qF "model.path: 'models/FLUX.1-dev' is missing, and 'runs/flux/24gb-int8-1024' holds nothing" "$work/log" ||
    fail "$(cat "$work/log")"

"$root/examples/flux/plans.sh" "$work"
numel=0
for run in "$root"/examples/flux/*.yaml; do
    name=$(basename "$run" .yaml)
    cmp "$work/$name.plan.txt" "$root/examples/flux/$name.plan.txt" || fail "$name.plan.txt: run examples/flux/plans.sh"
    [[ $name =~ ^([0-9]+x)?([0-9]+)gb- ]] || fail "$name: no memory in the name"
    # the first total is the device's; GB are those of a card's name, 10^9 bytes
    awk -v card="${BASH_REMATCH[2]}" '$1 == "total" && $3 == "GiB" { exit !($2 * 1.073741824 < card) }' \
        "$work/$name.plan.txt" || fail "$name takes more than its card has: $(grep total "$work/$name.plan.txt")"
    numel=$((numel + 1))
done
[ $numel -ge 10 ] || fail "$numel run files"
for word in 16gb 24gb 48gb 80gb 8x; do
    compgen -G "$root/examples/flux/$word*.yaml" >/dev/null || fail "no run file for $word"
done

"$root/examples/flux/memory_table.sh" >"$work/table"
sed -n '/^| base | 512 px/,/^$/p' "$root/docs/flux.md" | sed '/^$/d' >"$work/shown"
cmp "$work/table" "$work/shown" || fail "docs/flux.md shows another table than examples/flux/memory_table.sh prints: $(diff "$work/table" "$work/shown")"
! grep -q '| 0.0 |' "$work/table" || fail "nothing was planned: $(cat "$work/table")"
